"""Who may ask: TLS, passwords and the rate of requests, as a file says it that is read again when it changes.

Every request and every handshake looks at the file's and the certificates' stat, and reads
them again if one differs. While they cannot be read everybody gets 500, over the last TLS context
that worked, so that the client is told; nobody is let in by a file that is damaged:

- a file that was written a moment ago may be half written, and half a file may be one without users:
  it has to rest first;
- a certificate and its key are two files, so a rotation is seen half done: for some seconds the
  pair that was there goes on;
- TLS or not, and the rate limit, are decided once, at start.

A password is checked by bcrypt one at a time, and what was found is remembered under a keyed hash:
those that were right apart from those that were wrong, so that guessing cannot push a scraper out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import os
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from socket import SHUT_WR, socket
from typing import Any

from exporter.errors import ConfigError, Problems

from .web_config import Material, RateLimit, TlsConfig, WebConfig, load, make_context, read_material

_REST_S = 0.2  # how long a file must not have changed to be taken for whole
_REST_LIMIT_S = 1.0
_ROTATION_S = 10.0  # how long a certificate may not fit its key before anyone hears of it
_BCRYPT_WAIT_S = 10.0
_BCRYPT_QUEUE = 64  # requests that may wait for it: more would hold connections that others need
_REMEMBERED = 128
_BCRYPT_BYTES = 72  # what bcrypt reads of a password


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered."""

    status: HTTPStatus
    text: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """All of one reading."""

    config: WebConfig
    material: Material | None
    context: ssl.SSLContext | None


_Stat = tuple[int, ...]


class WebAccess:
    """What one web configuration file says, kept up to date.

    Args:
        path: The file.
        told: Called with what is wrong when the file, or a certificate, cannot be used any more, once per
            problem, and with "" when it was read again and is well.

    Raises:
        ConfigError, Problems: the file or a certificate cannot be used.
    """

    def __init__(self, path: Path, told: Callable[[str], None] = lambda _: None) -> None:
        self._path = path
        self._told = told
        self._lock = threading.Lock()
        self._seen: dict[str, _Stat | None] = {str(path): None}
        self._good = self._read(None, self._seen)
        self._problem = ""
        self._told_problem = ""
        self._in_rotation_until_s = 0.0
        self._passwords = _Passwords()
        limit = self._good.config.rate_limit
        self._bucket = _Bucket(limit) if limit is not None else None

    @property
    def is_secure(self) -> bool:
        """Whether connections are TLS."""
        return self._good.context is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the file asks for and does not get, one line each."""
        return self._good.config.notes

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What every answer carries."""
        return self._good.config.headers

    @property
    def context(self) -> ssl.SSLContext | None:
        """What new connections are secured by; another one as soon as anything about TLS changed."""
        self._refresh()
        return self._good.context

    def secure(self, accepted: socket, register: Callable[[ssl.SSLSocket], None]) -> ssl.SSLSocket:
        """Talk TLS over an accepted connection, within its timeout.

        Args:
            accepted: Is used up.
            register: Gets the connection before the handshake, to be able to end it.

        Raises:
            OSError: the client cannot, may not, or is too slow.
        """
        self._refresh()
        loaded = self._good
        assert loaded.context is not None
        assert loaded.config.tls is not None
        connection = loaded.context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        try:
            register(connection)
            connection.do_handshake()
            _check_names(connection, loaded.config.tls)
        except BaseException as error:
            if isinstance(error, ssl.SSLError) and error.reason == "HTTP_REQUEST":
                _answer_in_the_clear(connection)
            connection.close()
            raise
        return connection

    def refusal(self, authorization: str | None) -> Refusal | None:
        """Judge a request by its ``Authorization``; None lets it in."""
        problem = self._refresh()
        if problem:
            return Refusal(
                HTTPStatus.INTERNAL_SERVER_ERROR, "the web configuration cannot be used; see the log of skep"
            )
        if self._bucket is not None and not self._bucket.take():
            retry_s = str(max(1, round(self._bucket.interval_s)))
            return Refusal(
                HTTPStatus.TOO_MANY_REQUESTS, "limit of requests per time is reached", (("Retry-After", retry_s),)
            )
        users = self._good.config.users
        if not users:
            return None
        credentials = _credentials(authorization)
        if credentials is not None:
            known = self._passwords.check(users, *credentials)
            if known:
                return None
            if known is None:
                return Refusal(
                    HTTPStatus.SERVICE_UNAVAILABLE, "too many passwords to check, try again", (("Retry-After", "5"),)
                )
        return Refusal(HTTPStatus.UNAUTHORIZED, "unauthorized", (("WWW-Authenticate", "Basic"),))

    # ---- reading again ----

    def _changed(self) -> bool:
        return _look(self._seen) != self._seen

    def _refresh(self) -> str:
        """Read again what changed; give what is wrong now, or ""."""
        if not self._in_rotation_until_s and not self._changed():
            return self._problem
        with self._lock:
            if self._changed():
                self._read_again()
            if self._in_rotation_until_s and time.monotonic() >= self._in_rotation_until_s:
                self._in_rotation_until_s = 0.0
                self._tell(self._problem)
            return "" if self._in_rotation_until_s else self._problem

    def _read_again(self) -> None:
        seen = self._at_rest()
        try:
            self._good = self._read(self._good, seen)
            self._problem, self._in_rotation_until_s = "", 0.0
        except _MaterialError as error:
            if not self._problem:
                self._in_rotation_until_s = time.monotonic() + _ROTATION_S
            self._problem = str(error)
        except (ConfigError, Problems) as error:
            self._problem, self._in_rotation_until_s = str(error), 0.0
        self._seen = seen
        if not self._in_rotation_until_s:
            self._tell(self._problem, again=True)

    def _tell(self, problem: str, *, again: bool = False) -> None:
        if problem != self._told_problem or (again and not problem):
            self._told_problem = problem
            self._told(problem)

    def _at_rest(self) -> dict[str, _Stat | None]:
        """Wait until no file is being written; give how they look then."""
        end_s = time.monotonic() + _REST_LIMIT_S
        while True:
            seen = _look(self._seen)
            newest_ns = max((stat[0] for stat in seen.values() if stat is not None), default=0)
            left_s = _REST_S - (time.time_ns() - newest_ns) / 1e9
            if left_s <= 0 or time.monotonic() >= end_s:
                return seen
            time.sleep(min(left_s, _REST_S))
            if _look(seen) == seen:
                return seen

    def _read(self, good: _Loaded | None, seen: dict[str, _Stat | None]) -> _Loaded:
        """Read the file and what it points to.

        Args:
            good: The last that worked.
            seen: Gets how each file looked before it was read: what changes meanwhile is seen by the next request.

        Raises:
            ConfigError, Problems: they cannot be used, or not without a restart.
        """
        seen[str(self._path)] = _stat(str(self._path))
        config = load(self._path)
        if good is not None:
            if (config.tls is None) != (good.config.tls is None):
                change = "is gone" if config.tls is None else "is new"
                raise ConfigError(f"tls_server_config {change}; restart skep to apply it", file=str(self._path))
            if good.config != WebConfig() and config == WebConfig():
                raise ConfigError(
                    "says nothing any more; restart skep without --web.config.file to serve everybody",
                    file=str(self._path),
                )
        if config.tls is None:
            return _Loaded(config, None, None)
        for path in seen.keys() - {str(self._path)}:
            del seen[path]
        seen.update(_look(config.tls.paths))
        try:
            material = read_material(config.tls, str(self._path))
            if good is not None and (good.config.tls, good.material) == (config.tls, material):
                return _Loaded(config, material, good.context)
            return _Loaded(config, material, make_context(config.tls, material, str(self._path)))
        except ConfigError as error:
            raise _MaterialError(error) from error


class _MaterialError(ConfigError):
    """A certificate, a key or an authority cannot be used; the file that names them is right."""

    def __init__(self, error: ConfigError) -> None:
        super().__init__(str(error))
        self.file, self.line, self.column = error.file, error.line, error.column


def _look(paths: Iterable[str]) -> dict[str, _Stat | None]:
    return {path: _stat(path) for path in paths}


def _stat(path: str) -> _Stat | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - on every request
    except OSError:
        return None
    # The change time first: unlike the modification time, nobody can set it back.
    return (found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)


_PLAIN_TO_TLS = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"this port speaks HTTPS; use https:// in the URL\n"
)


def _answer_in_the_clear(connection: ssl.SSLSocket) -> None:
    """Tell a client that speaks HTTP; by the socket's own methods, as TLS has none for it."""
    with suppress(OSError):
        socket.sendall(connection, _PLAIN_TO_TLS)
        socket.shutdown(connection, SHUT_WR)
        # What is left unread when a socket is closed becomes a reset, which overtakes the answer.
        socket.settimeout(connection, 1.0)
        socket.recv(connection, 65536)


def _check_names(connection: ssl.SSLSocket, tls: TlsConfig) -> None:
    """Hold a client's verified certificate against the names that are let in.

    Raises:
        OSError: it has none of them.
    """
    if not tls.client_allowed_sans:
        return
    certificate: dict[str, Any] = connection.getpeercert() or {}
    names: tuple[tuple[str, str], ...] = certificate.get("subjectAltName", ())
    held = {_normal(name) if kind == "IP Address" else name for kind, name in names}
    if held.isdisjoint({*tls.client_allowed_sans, *map(_normal, tls.client_allowed_sans)}):
        shown = ", ".join(sorted(held)) or "no name"
        raise ConnectionRefusedError(f"client certificate has {shown}; client_allowed_sans has none of it")


def reason(error: OSError) -> str:
    """Say why :meth:`WebAccess.secure` failed, in words for a log."""
    if isinstance(error, TimeoutError):
        return "the TLS handshake was not done in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"client certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return error.strerror or str(error)


def _normal(address: str) -> str:
    """An IP address in its one short form; anything else as it is."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address


def _credentials(authorization: str | None) -> tuple[bytes, bytes] | None:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(token.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (name, password) if colon else None


class _Passwords:
    """Which passwords are whose."""

    def __init__(self) -> None:
        self._secret = os.urandom(32)
        self._lock = threading.Lock()
        self._bcrypt = threading.Lock()
        self._queue = threading.Semaphore(_BCRYPT_QUEUE)
        self._right: OrderedDict[bytes, None] = OrderedDict()
        self._wrong: OrderedDict[bytes, None] = OrderedDict()

    def check(self, users: Mapping[bytes, bytes], name: bytes, password: bytes) -> bool | None:
        """Whether a user has this password; None if it could not be found out in time."""
        password = password[:_BCRYPT_BYTES]
        hashed = users.get(name)
        asked = self._digest(name, hashed or b"", password)
        known = self._recall(asked)
        if known is not None:
            return known
        if not self._queue.acquire(blocking=False):
            return None
        try:
            if not self._bcrypt.acquire(timeout=_BCRYPT_WAIT_S):
                return None
            try:
                known = self._recall(asked)  # by whoever asked the same before us
                if known is None:
                    known = self._compare(hashed or self._decoy(users, name), password) and hashed is not None
                    self._remember(asked, right=known)
            finally:
                self._bcrypt.release()
        finally:
            self._queue.release()
        return known

    def _decoy(self, users: Mapping[bytes, bytes], name: bytes) -> bytes:
        """A hash no password has, for a name that is nobody's: it costs what one of the users' costs."""
        costs = sorted({hashed[4:6] for hashed in users.values()})
        place = int.from_bytes(self._digest(name)[:8], "big") % len(costs)
        return b"$2b$" + costs[place] + b"$" + b"." * 53

    @staticmethod
    def _compare(hashed: bytes, password: bytes) -> bool:
        import bcrypt  # noqa: PLC0415 - 1 MB that a server without users does not carry

        try:
            return bcrypt.checkpw(password, hashed)
        except ValueError:
            return False

    def _digest(self, *parts: bytes) -> bytes:
        found = hashlib.blake2b(key=self._secret, digest_size=32)
        for part in parts:
            found.update(len(part).to_bytes(8, "big") + part)
        return found.digest()

    def _recall(self, asked: bytes) -> bool | None:
        with self._lock:
            for store, right in ((self._right, True), (self._wrong, False)):
                if asked in store:
                    store.move_to_end(asked)
                    return right
        return None

    def _remember(self, asked: bytes, *, right: bool) -> None:
        store = self._right if right else self._wrong
        with self._lock:
            store[asked] = None
            if len(store) > _REMEMBERED:
                store.popitem(last=False)


class _Bucket:
    """A bucket of requests that fills again with time."""

    def __init__(self, limit: RateLimit, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval_s = limit.interval_s
        self._burst = float(limit.burst)
        self._clock = clock
        self._lock = threading.Lock()
        self._left = self._burst
        self._last_s = clock()

    def take(self) -> bool:
        """Take one out; False if there is none."""
        with self._lock:
            now_s = self._clock()
            self._left = min(self._burst, self._left + (now_s - self._last_s) / self.interval_s)
            self._last_s = now_s
            if self._left < 1:
                return False
            self._left -= 1
            return True
