"""The file of ``--web.config.file``: the schema that all Prometheus exporters share, read strictly.

Text to frozen types, and those to a TLS context. What this server cannot do, or what would
let in someone the writer did not mean, is refused with its place and a reason:

- ``RequireAnyClientCert``: Python's TLS takes no certificate without verifying it;
- more than one of ``curve_preferences``: Python's TLS can be held to one curve or to none;
- ``max_version`` below TLS 1.2; as ``min_version`` TLS 1.0 and 1.1 are taken, and 1.2 is the least all the same.

Nothing is substituted (``$`` is part of a hash), and no message shows a secret.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yaml.nodes import Node

from exporter.config.nodes import TOP, Reading, Text, compose, join, read_file
from exporter.config.schema import (
    INVALID,
    Bool,
    Choice,
    Int,
    JsonSchema,
    Key,
    ListOf,
    MapOf,
    Object,
    PathText,
    String,
)
from exporter.errors import ConfigError, raise_all

_PEM_LIMIT_BYTES = 1 << 20
_COST_LIMIT = 20

# Go's names (crypto/tls, CipherSuites) to OpenSSL's. The last three are of TLS 1.3, where there is no choice.
_CIPHERS = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "TLS_RSA_WITH_AES_128_CBC_SHA": "AES128-SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA": "AES256-SHA",
    "TLS_AES_128_GCM_SHA256": "",
    "TLS_AES_256_GCM_SHA384": "",
    "TLS_CHACHA20_POLY1305_SHA256": "",
}
_CURVES = {"CurveP256": "prime256v1", "CurveP384": "secp384r1", "CurveP521": "secp521r1", "X25519": "X25519"}
_VERSIONS = ("TLS10", "TLS11", "TLS12", "TLS13")
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "RequestClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_REFUSED_CLIENT_AUTH = ("RequireAnyClientCert", "RequireClientCert")
_FIXED_HEADERS = {"X-Content-Type-Options": ("nosniff",), "X-Frame-Options": ("deny", "sameorigin")}
_FREE_HEADERS = ("Strict-Transport-Security", "Content-Security-Policy", "X-XSS-Protection")


@dataclass(frozen=True, slots=True)
class Pem:
    """PEM text, in the file itself or in one of its own.

    Attributes:
        key: The key it stands under, for messages.
        text: As it is; empty if it is in a file.
        path: Absolute; empty if the text is here.
        line, column: Of the value.
    """

    key: str
    text: str
    path: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """How connections are secured.

    Attributes:
        client_ca: Who may vouch for clients; None for the system's authorities.
        client_allowed_sans: A client's certificate must have one of these; empty for any.
        ciphers: OpenSSL names, for TLS 1.2; empty for Python's choice.
        curve: OpenSSL name; empty for OpenSSL's choice.
    """

    certificate: Pem
    key: Pem
    client_ca: Pem | None = None
    client_auth: ssl.VerifyMode = ssl.CERT_NONE
    client_allowed_sans: tuple[str, ...] = ()
    min_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    max_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ciphers: tuple[str, ...] = ()
    prefer_server_ciphers: bool = True
    curve: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """The files it is read from."""
        return tuple(pem.path for pem in (self.certificate, self.key, self.client_ca) if pem is not None and pem.path)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A bucket of ``burst`` requests, one of which comes back every ``interval_s``."""

    interval_s: float
    burst: int


@dataclass(frozen=True, slots=True)
class WebConfig:
    """Who may ask, how, and what every answer carries.

    Attributes:
        users: Name to bcrypt hash; empty for everybody.
        notes: What is accepted and has no effect here, one line each.
    """

    tls: TlsConfig | None = None
    headers: tuple[tuple[str, str], ...] = ()
    users: Mapping[bytes, bytes] = field(default_factory=dict)
    rate_limit: RateLimit | None = None
    notes: tuple[str, ...] = ()


# ---- the schema ----


class _Literal(Reading):
    """A reading in which a dollar sign is one."""

    __slots__ = ()

    def _substitute(self, match: re.Match[str]) -> str:
        return match[0]


@dataclass(frozen=True)
class _Parsed:
    """A single value that ``parse`` understands, or raises ``ValueError`` with what follows "<path> is"."""

    parse: Callable[[Text], object]

    def read(self, reading: Reading, node: Node, path: str) -> object:
        text = reading.text(node, path)
        if text is None:
            return INVALID
        try:
            return self.parse(text)
        except ValueError as error:
            reading.fail(node, f"{path} is {error}")
            return INVALID

    def json_schema(self) -> JsonSchema:
        return {"type": ["string", "number", "boolean"]}


@dataclass(frozen=True)
class _PathOrNothing(PathText):
    """A path; empty is as good as left out."""

    def parse(self, text: Text) -> str:
        return super().parse(text) if text.value else ""


_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_GO_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")


def _go_duration(text: Text) -> float:
    """Read a duration as Go writes it, ``1m30s`` or ``0.5s``, into seconds."""
    if text.value in ("0", ""):
        return 0.0
    seconds, end = 0.0, 0
    while match := _GO_PART.match(text.value, end):
        seconds += float(match[1]) * _GO_UNITS[match[2]]
        end = match.end()
    if end != len(text.value) or seconds > 86400:
        raise ValueError(
            f"{text.value[:100]!r}; must be a duration such as 1s or 500ms, at most 24h, or 0 for no limit"
        )
    return seconds


_HASH = re.compile(r"\$2[abxy]\$([0-9]{2})\$[./A-Za-z0-9]{53}")


def _bcrypt_hash(text: Text) -> bytes:
    # Never shown: it may be a password someone took for a hash.
    match = _HASH.fullmatch(text.value)
    if match is None:
        raise ValueError("no bcrypt hash; make one with `htpasswd -nBC 10 \"\" | tr -d ':\\n'`")
    cost = int(match[1])
    if not 4 <= cost <= _COST_LIMIT:
        raise ValueError(f"a bcrypt hash of cost {cost}; must be 4 to {_COST_LIMIT}, 10 takes about 50 ms to check")
    # No other user of this file needs the module.
    import bcrypt  # noqa: PLC0415

    try:
        bcrypt.checkpw(b"", f"{text.value[:4]}04{text.value[6:]}".encode())
    except ValueError as error:
        raise ValueError("no bcrypt hash that can be checked; make it anew with `htpasswd -nBC 10`") from error
    return text.value.encode()


def _header(name: str) -> _Parsed:
    allowed = _FIXED_HEADERS.get(name, ())

    def parse(text: Text) -> str:
        if text.value and allowed and text.value not in allowed:
            raise ValueError(f"{text.value[:100]!r}; must be {' or '.join(allowed)}")
        if not text.value.isprintable() or not text.value.isascii():
            raise ValueError(f"{text.value[:100]!r}; must be one line of ASCII")
        return text.value

    return _Parsed(parse)


def _nodes(reading: Reading, node: Node, path: str) -> dict[str, Node]:
    return {key.value: value for key, value in reading.pairs(node, path) or ()}


def _check_tls(reading: Reading, node: Node, path: str, value: dict[str, Any]) -> None:
    nodes = _nodes(reading, node, path)

    def fail(key: str, message: str) -> None:
        reading.fail(nodes.get(key, node), f"{join(path, key)} {message}")

    pems: dict[str, Pem | None] = {}
    for inline in ("cert", "key", "client_ca"):
        text, file = value.get(inline, ""), value.get(f"{inline}_file", "")
        if text and file:
            fail(inline, f"is given and {inline}_file too; keep one of the two")
        key = inline if text else f"{inline}_file"
        mark = nodes.get(key, node).start_mark
        pems[inline] = Pem(key, text, file, mark.line + 1, mark.column + 1) if text or file else None
    auth = value.get("client_auth_type", "")
    given = [key for key in nodes if value.get(key) or key == "prefer_server_cipher_suites"]
    value["pems"] = pems if any(pems.values()) or auth else None
    if value["pems"] is None:
        if given:
            fail(given[0], "has no effect without a certificate; give cert_file and key_file")
        return
    for name in ("cert", "key"):
        if pems[name] is None:
            fail(f"{name}_file", f"is missing; TLS needs it, or {name}")
    if auth in _REFUSED_CLIENT_AUTH:
        fail(
            "client_auth_type",
            f"is {auth!r}; a certificate nobody verifies proves nothing, and Python's TLS cannot take it; "
            "use RequireAndVerifyClientCert",
        )
    elif pems["client_ca"] is not None and auth in ("", "NoClientCert"):
        fail(pems["client_ca"].key, "is given but clients are not asked; set client_auth_type")
    elif value.get("client_allowed_sans") and auth != "RequireAndVerifyClientCert":
        fail("client_allowed_sans", "needs client_auth_type RequireAndVerifyClientCert; others connect without one")
    least, most = value.get("min_version", "TLS12"), value.get("max_version", "TLS13")
    if most in ("TLS10", "TLS11"):
        fail("max_version", f"is {most}; must be TLS12 or TLS13, older versions are broken and not spoken here")
    elif least > most:
        fail("min_version", f"is {least}; must not be above max_version, {most}")
    suites = value.get("cipher_suites", ())
    if suites and most == "TLS12" and not any(_CIPHERS[each] for each in suites):
        fail("cipher_suites", "holds only suites of TLS 1.3; max_version is TLS12")
    if len(value.get("curve_preferences", ())) > 1:
        fail("curve_preferences", "holds more than one; Python's TLS can be held to one curve, or leave the key out")


def _check_rate(reading: Reading, node: Node, path: str, value: dict[str, Any]) -> None:
    if value.get("interval") and not value.get("burst"):
        nodes = _nodes(reading, node, path)
        reading.fail(
            nodes.get("burst", node), f"{join(path, 'burst')} is 0; must be at least 1, else nobody is answered"
        )


_TEXT = String(empty=True)
_FILE = _PathOrNothing()

_DOCUMENT = Object(
    {
        "tls_server_config": Key(
            Object(
                {
                    "cert": Key(_TEXT, "Certificate and its chain, PEM."),
                    "cert_file": Key(_FILE, "The same in a file."),
                    "key": Key(_TEXT, "Its private key, PEM."),
                    "key_file": Key(_FILE, "The same in a file."),
                    "client_ca": Key(_TEXT, "Who may vouch for clients, PEM."),
                    "client_ca_file": Key(_FILE, "The same in a file."),
                    "client_auth_type": Key(
                        Choice((*_CLIENT_AUTH, *_REFUSED_CLIENT_AUTH)), "What is asked of clients."
                    ),
                    "client_allowed_sans": Key(ListOf(String()), "Names of which a client's certificate has one."),
                    "min_version": Key(Choice(_VERSIONS), "Oldest version spoken.", "TLS12"),
                    "max_version": Key(Choice(_VERSIONS), "Newest version spoken.", "TLS13"),
                    "cipher_suites": Key(ListOf(Choice(tuple(_CIPHERS))), "Of TLS 1.2; Go's names."),
                    "prefer_server_cipher_suites": Key(Bool(), "Whether their order decides.", "true"),
                    "curve_preferences": Key(ListOf(Choice(tuple(_CURVES))), "The curve to use."),
                },
                check=_check_tls,
            ),
            "TLS.",
        ),
        "http_server_config": Key(
            Object(
                {
                    "http2": Key(Bool(), "Accepted; HTTP/1.1 is what is spoken.", "true"),
                    "headers": Key(
                        Object({name: Key(_header(name), "") for name in (*_FREE_HEADERS, *_FIXED_HEADERS)}),
                        "Added to every answer.",
                    ),
                }
            ),
            "HTTP.",
        ),
        "basic_auth_users": Key(
            MapOf(r"[^:\x00-\x1f\x7f]{1,256}", "a user name without ':'", _Parsed(_bcrypt_hash)),
            "User names and the bcrypt hashes of their passwords.",
        ),
        "rate_limit": Key(
            Object(
                {
                    "interval": Key(_Parsed(_go_duration), "Time in which one request comes back.", "0"),
                    "burst": Key(Int(0, 1 << 31), "Requests that may come at once.", "0"),
                },
                check=_check_rate,
            ),
            "A limit of all requests together.",
        ),
    }
)


def load(path: Path) -> WebConfig:
    """Read the file.

    Raises:
        ConfigError, Problems: everything that is wrong, with file, line and column.
    """
    return parse(read_file(path), str(path))


def parse(text: str, file: str) -> WebConfig:
    """Read one text; ``file`` is its name in messages and what relative paths start from.

    Raises:
        ConfigError, Problems: everything that is wrong, with file, line and column.
    """
    root = compose(text, file)
    if root is None:
        return WebConfig()
    reading = _Literal({})
    found = _DOCUMENT.read(reading, root, TOP)
    ordered: list[ConfigError] = sorted(reading.problems, key=lambda problem: (problem.line, problem.column))
    raise_all(ordered)
    assert isinstance(found, dict)
    http = found.get("http_server_config", {})
    tls = found.get("tls_server_config", {})
    rate = found.get("rate_limit", {})
    notes = []
    if http.get("http2"):
        notes.append("http_server_config.http2: HTTP/2 is not spoken; HTTP/1.1 is, which every scraper takes")
    if tls.get("min_version") in ("TLS10", "TLS11"):
        notes.append(f"tls_server_config.min_version: {tls['min_version']} is not spoken; TLS 1.2 is the least")
    if tls.get("client_auth_type") == "RequestClientCert":
        notes.append("tls_server_config.client_auth_type: certificates that nobody verifies are not asked for")
    return WebConfig(
        tls=_tls(tls) if tls.get("pems") else None,
        headers=tuple((name, value) for name, value in http.get("headers", {}).items() if value),
        users={name.encode(): value for name, value in found.get("basic_auth_users", {}).items()},
        rate_limit=RateLimit(rate["interval"], rate["burst"]) if rate.get("interval") else None,
        notes=tuple(notes),
    )


def _tls(found: Mapping[str, Any]) -> TlsConfig:
    suites: tuple[str, ...] = found.get("cipher_suites", ())
    ciphers = tuple(_CIPHERS[suite] for suite in suites if _CIPHERS[suite])
    # Suites of TLS 1.3 alone: nothing is left to speak 1.2 with.
    modern = found.get("min_version") == "TLS13" or bool(suites and not ciphers)
    curves = found.get("curve_preferences", ())
    pems = found["pems"]
    return TlsConfig(
        certificate=pems["cert"],
        key=pems["key"],
        client_ca=pems["client_ca"],
        client_auth=_CLIENT_AUTH[found.get("client_auth_type", "NoClientCert")],
        client_allowed_sans=found.get("client_allowed_sans", ()),
        min_version=ssl.TLSVersion.TLSv1_3 if modern else ssl.TLSVersion.TLSv1_2,
        max_version=ssl.TLSVersion.TLSv1_2 if found.get("max_version") == "TLS12" else ssl.TLSVersion.TLSv1_3,
        ciphers=ciphers,
        prefer_server_ciphers=found.get("prefer_server_cipher_suites", True),
        curve=_CURVES[curves[0]] if curves else "",
    )


# ---- the context ----


@dataclass(frozen=True, slots=True)
class Material:
    """Bytes of the certificate, of its key, and of the client authorities; what a context is made of."""

    certificate: bytes
    key: bytes
    client_ca: bytes


def read_material(tls: TlsConfig, file: str) -> Material:
    """Read what the configuration points to.

    Raises:
        ConfigError: a file cannot be read; it says where ``file`` names it.
    """
    return Material(_read(tls.certificate, file), _read(tls.key, file), _read(tls.client_ca, file))


def _read(pem: Pem | None, file: str) -> bytes:
    if pem is None:
        return b""
    if not pem.path:
        return pem.text.encode()
    try:
        with Path(pem.path).open("rb") as opened:
            data = opened.read(_PEM_LIMIT_BYTES + 1)
    except OSError as error:
        raise _unusable(pem, file, f"cannot be read: {error.strerror}") from error
    if len(data) > _PEM_LIMIT_BYTES:
        raise _unusable(pem, file, f"is larger than {_PEM_LIMIT_BYTES >> 10} KiB; must be PEM")
    return data


def _unusable(pem: Pem, file: str, reason: str) -> ConfigError:
    subject = f"tls_server_config.{pem.key}"
    return ConfigError(
        f"{subject} {pem.path!r} {reason}" if pem.path else f"{subject} {reason}",
        file=file,
        line=pem.line,
        column=pem.column,
    )


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """Give bytes a path for the one reader that takes nothing else; they touch no disk."""
    descriptor = os.memfd_create("skep-tls", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _no_password() -> bytes:
    # Without it OpenSSL would ask on the terminal.
    raise ValueError("encrypted")


def make_context(tls: TlsConfig, material: Material, file: str) -> ssl.SSLContext:
    """Make the server's side of TLS.

    Raises:
        ConfigError: a certificate, a key or a cipher cannot be used; it says where ``file`` names it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version, context.maximum_version = tls.min_version, tls.max_version
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    if not tls.prefer_server_ciphers:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        if tls.ciphers:
            context.set_ciphers(":".join(tls.ciphers))
        if tls.curve:
            context.set_ecdh_curve(tls.curve)
    except (ssl.SSLError, ValueError) as error:
        place = tls.certificate
        raise ConfigError(
            f"tls_server_config: the OpenSSL of this Python has none of the ciphers or not the curve: {error}",
            file=file,
            line=place.line,
            column=place.column,
        ) from error
    if b"-----BEGIN CERTIFICATE-----" not in material.certificate:
        raise _unusable(tls.certificate, file, "holds no certificate; must be PEM")
    if b"PRIVATE KEY-----" not in material.key:
        raise _unusable(tls.key, file, "holds no private key; must be PEM")
    try:
        with _as_file(material.certificate) as certificate, _as_file(material.key) as key:
            context.load_cert_chain(certificate, key, _no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _unusable(tls.key, file, f"is not the key of {tls.certificate.key}") from error
        raise _unusable(tls.certificate, file, f"or its key cannot be used: {_reason(error)}") from error
    except ValueError as error:
        raise _unusable(tls.key, file, "is encrypted; decrypt it with `openssl pkey`") from error
    context.verify_mode = tls.client_auth
    if tls.client_ca is not None:
        # Whatever is listed is trusted, an authority in the middle too, as all exporters have it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(cadata=material.client_ca.decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError) as error:
            raise _unusable(tls.client_ca, file, "holds no certificate that can be read; must be PEM") from error
    elif tls.client_auth is not ssl.CERT_NONE:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    return context


def _reason(error: ssl.SSLError) -> str:
    return error.reason.replace("_", " ").lower() if error.reason else "it is damaged"
