"""A client of one repository of one registry, which trusts nothing the registry says.

Manifests are capped, hashed, and compared with what was asked for; blobs are hashed and
counted while they stream, before anyone sees them. Authentication is Docker's: the first
request is anonymous, the 401's challenge says how to go on, a token is kept until it nearly
expires, and a request is repeated once with a new one.

Two rules about tokens. The scope asked for is ours, never the challenge's: a registry
could name somebody else's repository and be handed a token for it. And a password
goes to a realm only over HTTPS (or an insecure registry's own host) within the registry's own
domain, or to a host the credentials file has an entry for.

Source: distribution-spec 1.1; distribution "Token Authentication" and "OAuth2" specifications; RFC 9110 section 11.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlencode

import urllib3
from urllib3.exceptions import LocationValueError
from urllib3.util import parse_url

from exporter.config import RegistryConfig
from exporter.errors import ImageError
from exporter.image.credentials import CredentialFile, Credentials
from exporter.image.formats import (
    BLOB_LIMIT,
    INDEX_TYPES,
    MANIFEST_LIMIT,
    MANIFEST_TYPES,
    Descriptor,
    strict_json,
)
from exporter.image.reference import Digest, Reference
from exporter.image.transport import Deadline, Transport, read_limited, refuse_encoding, stream

_ACCEPT = ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))
_TOKEN_BODY_LIMIT = 64 << 10
_ERROR_BODY_LIMIT = 64 << 10
_TOKEN_LIFE_S = 60.0
_IPV4 = re.compile(r"\d+(\.\d+){3}")

_CHALLENGE = re.compile(
    r"""[\s,]*(?:(?P<scheme>[A-Za-z][A-Za-z0-9-]*)[ ]+)?(?P<key>[A-Za-z][A-Za-z0-9_-]*)\s*=\s*
        (?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^\s,"]*))""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class RemoteManifest:
    """Bytes of a manifest or index whose digest has been checked."""

    raw: bytes
    media_type: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class Challenge:
    """One authentication scheme a 401 offers."""

    scheme: str
    parameters: Mapping[str, str]


@dataclass(slots=True)
class _Token:
    value: str
    expires: float


class Registry:
    """Requests about one repository, all under one deadline.

    Not thread-safe; make one per image. Use it as a context manager, or close it.

    Args:
        reference: Says which registry and repository; of kind ``REGISTRY``.
        config: TLS, credentials, plain HTTP.
        deadline_s: For everything this client will do.
        stop: Gives up when set.
        push: Whether to ask for the right to push.
        credentials: Instead of those in the credentials file.
    """

    def __init__(
        self,
        reference: Reference,
        config: RegistryConfig | None = None,
        *,
        deadline_s: float,
        stop: threading.Event | None = None,
        push: bool = False,
        credentials: Credentials | None = None,
    ) -> None:
        self.reference = reference
        self.subject = f"image '{reference}'" if reference.repository else "login"
        self._config = config or RegistryConfig()
        self._deadline = Deadline(deadline_s, stop=stop, subject=self.subject)
        self._transport = Transport(
            reference.api_host, loopback=reference.loopback, config=self._config, deadline=self._deadline
        )
        self._file = CredentialFile(self._config.auth_file, deadline=self._deadline)
        self._credentials = credentials
        # Without a repository, as a login is, a token says who we are and gives no rights.
        actions = "pull,push" if push else "pull"
        self._scope = f"repository:{reference.repository}:{actions}" if reference.repository else ""
        # One client asks for one repository and one action, so one token is the whole cache.
        self._token: _Token | None = None
        self._basic = ""

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    @property
    def base(self) -> str:
        """``scheme://host[:port]`` of the registry's API."""
        return self._transport.base

    def url(self, path: str) -> str:
        """The address of ``path`` below the repository, such as ``manifests/latest``."""
        return f"{self.base}/v2/{self.reference.repository}/{path}"

    def check_login(self) -> bool:
        """Ask the registry whether it takes our credentials.

        Returns:
            Whether it wanted any: one that lets everybody in has not looked at them.

        Raises:
            ImageError: ``img.unauthorized`` if it does not take them; ``img.status`` if it is no registry.
        """
        response = self.request("GET", f"{self.base}/v2/")
        if response.status != 200:
            self.fail(response, "API at /v2/")
        response.close()
        return bool(self._authorization())

    def manifest(self, target: str | Digest, *, size: int | None = None) -> RemoteManifest:
        """Fetch a manifest or index and check its digest.

        Args:
            target: A tag, or the digest it must have.
            size: Its length according to the index it was found in.

        Raises:
            ImageError: see :mod:`exporter.image`.
        """
        response = self.request("GET", self.url(f"manifests/{target}"), headers={"Accept": _ACCEPT})
        if response.status != 200:
            self.fail(response, f"manifest {target}")
        raw = read_limited(response, MANIFEST_LIMIT, subject=f"{self.subject}: manifest")
        if raw is None:
            raise ImageError(
                f"{self.subject}: manifest is over {MANIFEST_LIMIT} bytes, the limit", code="img.manifest_too_large"
            )
        digest = Digest.of(raw)
        if isinstance(target, Digest) and digest != target:
            raise ImageError(
                f"{self.subject}: manifest is {digest}, asked for {target}; refusing it", code="img.manifest_digest"
            )
        stated = response.headers.get("Docker-Content-Digest", "").strip()
        if stated.startswith("sha256:") and stated != str(digest):
            raise ImageError(
                f"{self.subject}: manifest is {digest}, the registry calls it {stated[:100]!r}; refusing it",
                code="img.manifest_digest",
            )
        if size is not None and len(raw) != size:
            raise ImageError(
                f"{self.subject}: manifest {digest.short} is {len(raw)} bytes, its index says {size}; refusing it",
                code="img.blob_size",
            )
        return RemoteManifest(raw, response.headers.get("Content-Type", ""), digest)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Stream a blob; the last piece is followed by an error unless size and digest are as described.

        Whoever consumes it must treat what came so far as nothing until the iterator has ended.

        Raises:
            ImageError: see :mod:`exporter.image`.
        """
        subject = f"{self.subject}: blob {descriptor.digest.short}"
        if descriptor.size > BLOB_LIMIT:
            raise ImageError(
                f"{subject} is {descriptor.size} bytes, the limit is {BLOB_LIMIT}; refusing it", code="img.blob_size"
            )
        response = self.request("GET", self.url(f"blobs/{descriptor.digest}"))
        if response.status != 200:
            self.fail(response, f"blob {descriptor.digest}")
        refuse_encoding(response, subject=subject)
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length[:20]) != descriptor.size:
            response.close()
            raise ImageError(
                f"{subject} is {length[:20]} bytes, manifest says {descriptor.size}; refusing it", code="img.blob_size"
            )
        hasher, size = hashlib.sha256(), 0
        for piece in stream(response, subject=subject):
            size += len(piece)
            if size > descriptor.size:
                response.close()
                raise ImageError(
                    f"{subject} is longer than the {descriptor.size} bytes its manifest says; refusing it",
                    code="img.blob_size",
                )
            hasher.update(piece)
            yield piece
        if size < descriptor.size:
            raise ImageError(
                f"{subject} ended after {size} bytes, manifest says {descriptor.size}; try again", code="img.truncated"
            )
        found = Digest(hasher.hexdigest())
        if found != descriptor.digest:
            raise ImageError(
                f"{self.subject}: blob is {found}, manifest says {descriptor.digest}; refusing it",
                code="img.blob_digest",
            )

    def request(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> urllib3.BaseHTTPResponse:
        """Send a request, authenticating as the registry asks; any status but 401 is returned.

        Raises:
            ImageError: ``img.unauthorized``, ``img.auth_realm``, ``img.credentials`` and all of :class:`Transport`.
        """
        response = self._send(method, url, headers, body)
        if response.status == 401:
            challenges = parse_challenges(response.headers.getlist("WWW-Authenticate"))
            response.close()
            refused = bool(self._authorization())
            self._authenticate(challenges, refused=refused)
            response = self._send(method, url, headers, body)
            if response.status == 401:
                self.fail(response, "it")
        return response

    def fail(self, response: urllib3.BaseHTTPResponse, what: str) -> NoReturn:
        """Turn a refusal into an error with the registry's own words."""
        said = _registry_message(response, self.subject)
        status = response.status
        where = repr(self.reference.registry)
        if status == 401:
            known = "the credentials sent" if self._known() else "no credentials"
            raise ImageError(
                f"{self.subject}: registry {where} refuses {known} (401{said}); "
                "log in with skep login or set registries.*.auth_file",
                code="img.unauthorized",
            )
        if status == 403:
            raise ImageError(
                f"{self.subject}: registry {where} denies access to {what} (403{said}); ask its owner for the right",
                code="img.denied",
            )
        if status == 404:
            raise ImageError(
                f"{self.subject}: registry {where} has no {what} (404{said}); check the name and the tag",
                code="img.not_found",
            )
        hint = ""
        if status == 400 and not self.base.startswith("https") and "HTTPS" in said:
            hint = "; it speaks HTTPS: set registries.*.ca_file"
        raise ImageError(
            f"{self.subject}: registry {where} answered {status}{said} for {what}{hint}", code="img.status"
        )

    def _send(
        self, method: str, url: str, headers: Mapping[str, str] | None, body: bytes | None
    ) -> urllib3.BaseHTTPResponse:
        return self._transport.request(method, url, headers=headers, body=body, authorization=self._authorization)

    def _authorization(self) -> str:
        if self._token and time.monotonic() < self._token.expires:
            return f"Bearer {self._token.value}"
        return self._basic

    def _known(self) -> Credentials:
        if self._credentials is None:
            self._credentials = self._file.lookup(self.reference.registry, self.reference.repository)
        return self._credentials

    def _authenticate(self, challenges: list[Challenge], *, refused: bool) -> None:
        """Prepare the Authorization of the next try, or raise."""
        known = self._known()
        where = repr(self.reference.registry)
        bearer = next((each for each in challenges if each.scheme == "bearer" and each.parameters.get("realm")), None)
        if bearer:
            self._token = (
                _Token(known.registry_token, float("inf"))
                if known.registry_token and not refused
                else self._fetch_token(bearer, known)
            )
            return
        if any(each.scheme == "basic" for each in challenges):
            if refused or not known.basic:
                found = "refuses the credentials sent" if refused else "wants a password and none is known"
                raise ImageError(
                    f"{self.subject}: registry {where} {found} (401); "
                    "log in with skep login or set registries.*.auth_file",
                    code="img.unauthorized",
                )
            self._basic = known.basic
            return
        offered = ", ".join(each.scheme for each in challenges)[:80] or "nothing"
        raise ImageError(
            f"{self.subject}: registry {where} answers 401 and offers {offered}; "
            "must offer Basic, or Bearer with a realm",
            code="img.unauthorized",
        )

    def _fetch_token(self, challenge: Challenge, known: Credentials) -> _Token:
        realm = challenge.parameters["realm"]
        self._check_realm(realm, with_secret=bool(known))
        service = challenge.parameters.get("service", "")
        asked = challenge.parameters.get("scope", "")
        # A scope that is no resource list, such as ECR Public's 'aws', names nobody's repository.
        scope = asked if asked and ":" not in asked else self._scope
        headers: dict[str, str] = {"Accept": "application/json"}
        query = ({"scope": scope} if scope else {}) | ({"service": service} if service else {})
        started = time.monotonic()
        if known.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": known.identity_token, "client_id": "skep", **query}
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            response = self._transport.request(
                "POST", realm, headers=headers, body=urlencode(form).encode(), redirects=0
            )
        else:
            if known.basic:
                headers["Authorization"] = known.basic
                query["account"] = known.username
            separator = "&" if "?" in realm else "?"
            response = self._transport.request(
                "GET", f"{realm}{separator}{urlencode(query)}", headers=headers, redirects=0
            )
        if response.status != 200:
            if response.status in (400, 401, 403):
                response.close()
                sent = "the credentials sent" if known else "an anonymous request"
                raise ImageError(
                    f"{self.subject}: token server {realm[:120]!r} refuses {sent} ({response.status}); "
                    "log in with skep login or set registries.*.auth_file",
                    code="img.unauthorized",
                )
            self.fail(response, f"token at {realm[:120]!r}")
        return self._read_token(response, realm, started)

    def _read_token(self, response: urllib3.BaseHTTPResponse, realm: str, started: float) -> _Token:
        subject = f"{self.subject}: token of {realm[:120]!r}"
        raw = read_limited(response, _TOKEN_BODY_LIMIT, subject=subject)
        body: Any = strict_json(raw, subject=subject, code="img.auth_token") if raw is not None else None
        value = (body.get("token") or body.get("access_token")) if isinstance(body, dict) else None
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise ImageError(f"{subject} is missing from the answer or malformed", code="img.auth_token")
        life = body.get("expires_in")
        usable = isinstance(life, (int, float)) and not isinstance(life, bool) and life > 0
        seconds = float(life) if usable else _TOKEN_LIFE_S
        # The server's clock is not ours: count from before the request and stop a little early.
        return _Token(value, started + min(seconds, 86400.0) * 0.9)

    def _check_realm(self, realm: str, *, with_secret: bool) -> None:
        """Refuse to authenticate where the registry has no business sending us.

        Raises:
            ImageError: ``img.auth_realm``.
        """

        def refuse(reason: str) -> NoReturn:
            raise ImageError(
                f"{self.subject}: registry {self.reference.registry!r} asks to authenticate at {realm[:200]!r}; "
                f"refusing it, {reason}",
                code="img.auth_realm",
            )

        try:
            url = parse_url(realm)
        except (LocationValueError, UnicodeError):
            refuse("it is no address")
        if url.scheme not in ("http", "https") or not url.host or url.auth:
            refuse("it must be an https address without credentials")
        home = parse_url(self.base)
        if url.scheme == "http" and not (self._transport.insecure and url.host == home.host):
            refuse("it must be https")
        if with_secret and not same_domain(url.host, home.host or "") and not self._file.names(url.netloc or ""):
            refuse(
                f"our credentials are for another domain; if this is right, add an auths entry for {url.netloc!r} "
                f"to {str(self._file.path)!r}"
            )


def same_domain(one: str, other: str) -> bool:
    """Whether two hosts plausibly have one owner.

    Equal, or equal in their last two labels; in the last three below second-level
    registries such as ``co.uk``. There is no public suffix list at hand, so this is
    a guard against a foreign realm, not a proof of ownership. Addresses must be equal.
    """
    one, other = one.lower().rstrip("."), other.lower().rstrip(".")
    if one == other:
        return True
    if ":" in one + other or _IPV4.fullmatch(one) or _IPV4.fullmatch(other):
        return False
    ones, others = one.split("."), other.split(".")
    if len(ones) < 2 or len(others) < 2:
        return False
    count = 3 if len(ones[-1]) == 2 and len(ones[-2]) <= 3 else 2
    return len(ones) >= count and len(others) >= count and ones[-count:] == others[-count:]


def parse_challenges(headers: list[str]) -> list[Challenge]:
    """Read ``WWW-Authenticate`` headers: several challenges, quoted commas, any case."""
    found: list[Challenge] = []
    for header in headers:
        position = 0
        text = header[:8192]
        while position < len(text):
            match = _CHALLENGE.match(text, position)
            if match is None:
                bare = re.compile(r"[\s,]*([A-Za-z][A-Za-z0-9-]*)\s*(?=,|$)").match(text, position)
                if bare is None:
                    break
                found.append(Challenge(bare[1].lower(), {}))
                position = bare.end()
                continue
            if match["scheme"]:
                found.append(Challenge(match["scheme"].lower(), {}))
            if not found:
                break
            value = re.sub(r"\\(.)", r"\1", match["quoted"]) if match["quoted"] is not None else match["token"]
            parameters = found[-1].parameters
            assert isinstance(parameters, dict)
            parameters.setdefault(match["key"].lower(), value)
            position = match.end()
    return found


def _registry_message(response: urllib3.BaseHTTPResponse, subject: str) -> str:
    """The first error of a registry's JSON error body, or the start of a text, for one line."""
    try:
        raw = read_limited(response, _ERROR_BODY_LIMIT, subject=subject) or b""
        body = strict_json(raw, subject=subject) if raw.lstrip()[:1] == b"{" else None
    except ImageError:
        return ""
    if not isinstance(body, dict):
        text = " ".join(raw[:100].decode("utf-8", "replace").split())
        return f" {text!r}" if text and not text.startswith("<") else ""
    errors = body.get("errors")
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    words = [word for word in (first.get("code"), first.get("message")) if isinstance(word, str)]
    return f" {' '.join(' '.join(words).split())[:160]!r}" if words else ""
