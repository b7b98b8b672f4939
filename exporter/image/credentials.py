"""Docker's credential files and helpers, read and written, and nothing that would print a secret.

Which file: ``registries.<host>.auth_file`` when configured, and then no other;
else ``$DOCKER_CONFIG/config.json``; else ``~/.docker/config.json``.

Which entry, most particular first: ``credHelpers`` for the host; ``auths`` for the
repository's path and its parents (Podman writes those), the host, and the older
spellings with a scheme and ``/v1/``; ``credsStore`` for all hosts.

Source: docker/cli ``cli/config/configfile/file.go``; containers-auth.json(5);
docker-credential-helpers' ``get`` protocol.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import ImageError
from exporter.image.formats import strict_json
from exporter.image.reference import DOCKER_HUB
from exporter.image.transport import Deadline

_FILE_LIMIT = 4 << 20
_HELPER_LIMIT_S = 10.0
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_KEYS = ("docker.io", "https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one registry knows us by; ``repr()`` shows no secret.

    Attributes:
        username: Empty with an identity or registry token.
        identity_token: An OAuth2 refresh token, exchanged at the realm.
        registry_token: A bearer token, sent as it is.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r}, …)"

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)

    @property
    def basic(self) -> str:
        """The Authorization header of HTTP Basic, or ``""`` when there is no user name."""
        if not self.username:
            return ""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class CredentialFile:
    """One Docker configuration file, read when first asked.

    Args:
        path: Configured file, which then must exist; empty for the default places.
        deadline: Bounds the helpers.
        writing: It will be written, and need not exist.
    """

    def __init__(self, path: str, *, deadline: Deadline, writing: bool = False) -> None:
        self._deadline = deadline
        self._required = bool(path) and not writing
        self.path = Path(path) if path else default_path()
        self._body: Mapping[str, Any] | None = None

    def lookup(self, registry: str, repository: str) -> Credentials:
        """The credentials for a repository; empty ones when there are none.

        Raises:
            ImageError: ``img.credentials``: the file or an entry cannot be read, or the helper fails.
        """
        helpers = self._table("credHelpers")
        for key in _host_keys(registry):
            if isinstance(helper := helpers.get(key), str):
                return self._ask_helper(helper, registry)
        auths = self._table("auths")
        for key in _keys(registry, repository):
            if key in auths and (found := self._entry(auths[key], key)):
                return found
        store = self._read().get("credsStore")
        if isinstance(store, str) and store:
            return self._ask_helper(store, registry)
        return Credentials()

    def names(self, host: str) -> bool:
        """Whether the file has an entry for ``host``, and so its owner trusts it."""
        auths = self._table("auths")
        return any(key in auths for key in (host, f"https://{host}"))

    def save(self, registry: str, credentials: Credentials) -> str:
        """Keep a user name and password for a registry: with its helper where the file names one, else in the file.

        Returns:
            Where they are now, for the person who typed them.

        Raises:
            ImageError: ``img.credentials``.
        """
        key = _own_key(registry)
        if helper := self._helper(registry):
            body = {"ServerURL": key, "Username": credentials.username, "Secret": credentials.password}
            self._run_helper(helper, "store", json.dumps(body).encode(), key)
            return f"docker-credential-{helper}"
        encoded = base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()
        self._replace({**self._read(), "auths": {**self._table("auths"), key: {"auth": encoded}}})
        return str(self.path)

    def erase(self, registry: str) -> bool:
        """Forget what is kept for a registry, under every spelling of its name.

        Returns:
            Whether anything was; a helper does not say, so there it is always so.

        Raises:
            ImageError: ``img.credentials``.
        """
        key = _own_key(registry)
        helper = self._helper(registry)
        if helper:
            self._run_helper(helper, "erase", key.encode(), key)
        auths = self._table("auths")
        spellings = set(_keys(registry, ""))
        left = {name: entry for name, entry in auths.items() if name not in spellings}
        if left != auths:
            self._replace({**self._read(), "auths": left})
        return bool(helper) or left != auths

    def _helper(self, registry: str) -> str:
        helpers = self._table("credHelpers")
        named = next((helpers[key] for key in _host_keys(registry) if key in helpers), self._read().get("credsStore"))
        return named if isinstance(named, str) else ""

    def _run_helper(self, helper: str, verb: str, said: bytes, server: str) -> None:
        if not _HELPER_NAME.fullmatch(helper):
            raise self._fault(f"names the credential helper {helper[:80]!r}, which is not a program's name")
        program = f"docker-credential-{helper}"
        try:
            done = subprocess.run(
                [program, verb], input=said, capture_output=True, timeout=_HELPER_LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired as cause:
            raise self._fault(f"names {program!r}, which gave no answer in {_HELPER_LIMIT_S:.0f} s") from cause
        except OSError as cause:
            raise self._fault(f"names {program!r}, which cannot be run: {cause.strerror}; install it") from cause
        if done.returncode:
            # Not what it printed: that may hold the secret it was given.
            raise self._fault(f"names {program!r}, which could not {verb} {server!r}: status {done.returncode}")

    def _replace(self, body: Mapping[str, Any]) -> None:
        """Write the file whole, readable by its owner only; a link stays a link."""
        target = self.path.resolve()
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside.unlink(missing_ok=True)
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump(body, file, indent="\t")
                file.write("\n")
            beside.replace(target)
        except OSError as cause:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            raise self._fault(f"cannot be written: {cause.strerror}; name another with --auth-file") from cause
        self._body = body

    def _table(self, key: str) -> Mapping[str, Any]:
        table = self._read().get(key)
        return table if isinstance(table, dict) else {}

    def _read(self) -> Mapping[str, Any]:
        if self._body is None:
            self._body = self._load()
        return self._body

    def _load(self) -> Mapping[str, Any]:
        try:
            with self.path.open("rb") as file:
                raw = file.read(_FILE_LIMIT + 1)
        except (FileNotFoundError, NotADirectoryError) as cause:
            if not self._required:
                return {}
            raise self._fault("does not exist; correct registries.*.auth_file") from cause
        except OSError as cause:
            raise self._fault(f"cannot be read: {cause.strerror}; check its owner and mode") from cause
        if len(raw) > _FILE_LIMIT:
            raise self._fault(f"is over {_FILE_LIMIT} bytes; is it the right file?")
        body = strict_json(raw, subject=f"credentials file {str(self.path)!r}", code="img.credentials") if raw else {}
        if not isinstance(body, dict):
            raise self._fault("is not a JSON object; must be a Docker config.json")
        return body

    def _entry(self, entry: object, key: str) -> Credentials:
        if not isinstance(entry, dict):
            raise self._fault(f"has auths[{key!r}] that is not an object")

        def text(name: str) -> str:
            value = entry.get(name)
            return value if isinstance(value, str) else ""

        username, password = text("username"), text("password")
        if encoded := text("auth"):
            try:
                username, colon, password = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
            except (binascii.Error, UnicodeDecodeError) as cause:
                raise self._fault(f"has auths[{key!r}].auth that is not base64 of user:password") from cause
            if not colon:
                raise self._fault(f"has auths[{key!r}].auth without ':' between user and password")
            # Docker pads some stored passwords with NUL.
            password = password.strip("\0")
        return Credentials(username, password, text("identitytoken"), text("registrytoken"))

    def _ask_helper(self, helper: str, registry: str) -> Credentials:
        if not _HELPER_NAME.fullmatch(helper):
            raise self._fault(f"names the credential helper {helper[:80]!r}, which is not a program's name")
        program = f"docker-credential-{helper}"
        server = "https://index.docker.io/v1/" if registry == DOCKER_HUB else registry
        limit = min(_HELPER_LIMIT_S, self._deadline.remaining())
        try:
            done = subprocess.run(
                [program, "get"], input=server.encode(), capture_output=True, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired as cause:
            raise self._fault(f"names {program!r}, which gave no answer in {limit:.0f} s") from cause
        except OSError as cause:
            raise self._fault(f"names {program!r}, which cannot be run: {cause.strerror}; install it") from cause
        if done.returncode != 0:
            said = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
            if "credentials not found" in said.lower():
                return Credentials()
            # What it printed may hold a secret: only its exit status is repeated.
            raise self._fault(f"names {program!r}, which failed with status {done.returncode} for {server!r}")
        body = strict_json(done.stdout, subject=f"credential helper {program!r}", code="img.credentials")
        if not isinstance(body, dict):
            raise self._fault(f"names {program!r}, whose answer is not a JSON object")
        username, secret = body.get("Username"), body.get("Secret")
        if not isinstance(username, str) or not isinstance(secret, str):
            raise self._fault(f"names {program!r}, whose answer lacks Username or Secret")
        if username == "<token>":
            return Credentials(identity_token=secret)
        return Credentials(username, secret)

    def _fault(self, reason: str) -> ImageError:
        return ImageError(f"credentials file {str(self.path)!r} {reason}", code="img.credentials")


def default_path() -> Path:
    """Where Docker's own tools look."""
    if directory := os.environ.get("DOCKER_CONFIG"):
        return Path(directory) / "config.json"
    try:
        return Path.home() / ".docker" / "config.json"
    except RuntimeError:
        # A service user may have no home at all.
        return Path("/nonexistent/.docker/config.json")


def _own_key(registry: str) -> str:
    """What Docker writes for a registry, so that its own tools find the entry."""
    return _HUB_KEYS[1] if registry == DOCKER_HUB else registry


def _host_keys(registry: str) -> Iterator[str]:
    if registry == DOCKER_HUB:
        yield from _HUB_KEYS
        return
    yield registry
    yield f"https://{registry}"


def _keys(registry: str, repository: str) -> Iterator[str]:
    """Keys of ``auths`` that may stand for a repository, most particular first."""
    parts = repository.split("/")
    for count in range(len(parts), 0, -1):
        yield f"{registry}/{'/'.join(parts[:count])}"
    if registry == DOCKER_HUB:
        yield from _HUB_KEYS
        return
    yield registry
    for scheme in ("https", "http"):
        for tail in ("", "/", "/v1/", "/v2/", "/v1", "/v2"):
            yield f"{scheme}://{registry}{tail}"
