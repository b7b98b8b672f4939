"""HTTP to a registry under one deadline, and the rules that keep it from being led elsewhere.

Sockets are urllib3's; what is added here:

- One :class:`Deadline` over everything. A server that sends a byte now and then keeps every
  per-read timeout happy for ever, so each read and write of the connection waits in slices
  and asks the deadline, and the stop event, in between.
- Redirects: at most five, never to plain HTTP from HTTPS, never to a loopback or link-local
  address unless the registry itself is one; the *connected* address is checked, so a name
  that resolves there is refused too. Credentials go to the registry's own origin only.
- Retries: connecting, timing out before an answer, 408, 429 and 5xx; full jitter; ``Retry-After`` is obeyed
  up to a cap. A registry that stayed unreachable is not tried again by anyone in this process for five seconds.
- Content codings are refused: a blob's digest is of the bytes as stored.

Resolving a name is the C library's and beyond the deadline's reach: resolv.conf(5) bounds it.

The trust store is OpenSSL's (the machine's), plus ``ca_file``. Client certificates and
credentials are never offered to a redirect's target. ``~/.netrc`` is not read.
"""

from __future__ import annotations

import email.utils
import io
import ipaddress
import logging
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import urljoin

import certifi
import urllib3
from requests.utils import get_environ_proxies, select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, LocationValueError, ProtocolError, SSLError
from urllib3.exceptions import TimeoutError as TransportTimeoutError
from urllib3.util import Timeout, Url, parse_url

from exporter.config import RegistryConfig
from exporter.errors import ImageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
ATTEMPTS = 4
_REDIRECTS = 5
_BACKOFF_FIRST_S = 0.5
_BACKOFF_MAX_S = 8.0
_RETRY_AFTER_MAX_S = 30.0
_SLICE_S = 0.2
_OPEN_CIRCUIT_S = 5.0
_REMEDY = "check the network and that the registry runs"
_USER_AGENT = "skep"
# urllib3 logs a malformed header with a traceback and goes on; whether it mattered shows in our own errors.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)
_STATUSES_TO_RETRY = frozenset({408, 429, 500, 502, 503, 504})

Authorization = Callable[[], str]


class Deadline:
    """A point in time after which, or a stop event upon which, nothing goes on.

    Args:
        seconds: From now.
        stop: Set by another thread to give up early.
        subject: Opens the error message.
    """

    def __init__(self, seconds: float, *, stop: threading.Event | None = None, subject: str = "image") -> None:
        self.seconds = seconds
        self.subject = subject
        self._end = time.monotonic() + seconds
        self._stop = stop or threading.Event()

    def remaining(self) -> float:
        """Seconds left, at least a millisecond.

        Raises:
            ImageError: ``img.deadline`` or ``img.stopped``.
        """
        if self._stop.is_set():
            raise ImageError(f"{self.subject}: stopped before it was complete", code="img.stopped")
        left = self._end - time.monotonic()
        if left <= 0:
            raise ImageError(
                f"{self.subject}: not complete after {self.seconds:g} s; the registry is too slow or the limit too low",
                code="img.deadline",
            )
        return max(left, 0.001)

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than the deadline or the stop event allow."""
        self._stop.wait(min(seconds, self.remaining()))
        self.remaining()


class _GuardedSocket:
    """A connected socket whose every read and write asks the deadline.

    A thin shell around ``socket.socket`` or ``ssl.SSLSocket``; what it does not define is the socket's own.
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline
        self._timeout: float | None = sock.gettimeout()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 whatever the socket has
        return getattr(self._sock, name)

    def settimeout(self, value: float | None) -> None:
        self._timeout = value
        self._sock.settimeout(value)

    def makefile(self, mode: str, *_args: object, **_kwargs: object) -> io.BufferedReader:
        """What ``http.client`` reads responses through."""
        if mode != "rb":
            raise ValueError(f"makefile mode {mode!r}")
        return io.BufferedReader(_GuardedReader(self, self._sock.makefile("rb", buffering=0)), 1 << 16)

    def sendall(self, data: ReadableBuffer, *_flags: int) -> None:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), 1 << 16):
            self._limit()
            self._sock.sendall(view[start : start + (1 << 16)])

    def wait_readable(self) -> None:
        """Return when a read would find something, in slices so that a stop is noticed."""
        limit = self._limit()
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            return
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN | select.POLLPRI)
        end = time.monotonic() + limit
        while True:
            left = end - time.monotonic()
            if poll.poll(max(0.0, min(_SLICE_S, left)) * 1000):
                self._limit()
                return
            self._deadline.remaining()
            if left <= 0:
                raise TimeoutError("timed out")

    def _limit(self) -> float:
        """Bound the next blocking call by its own timeout and the deadline's rest."""
        limit = min(self._timeout if self._timeout is not None else READ_TIMEOUT_S, self._deadline.remaining())
        self._sock.settimeout(limit)
        return limit


class _GuardedReader(io.RawIOBase):
    def __init__(self, guard: _GuardedSocket, raw: io.RawIOBase | socket.SocketIO) -> None:
        super().__init__()
        self._guard = guard
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        self._guard.wait_readable()
        return cast("int | None", self._raw.readinto(buffer))

    def close(self) -> None:
        # The socket closes with the last file made of it.
        self._raw.close()
        super().close()


class _Circuits:
    """Which registries were just found unreachable, shared by this process.

    Ten images of one dead registry cost one round of connecting, not ten.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, tuple[float, str]] = {}

    def check(self, origin: str, subject: str) -> None:
        with self._lock:
            until, reason = self._open.get(origin, (0.0, ""))
        if time.monotonic() < until:
            raise ImageError(f"{subject}: {reason} moments ago; {_REMEDY}", code="img.unreachable")

    def trip(self, origin: str, reason: str) -> None:
        with self._lock:
            self._open[origin] = (time.monotonic() + _OPEN_CIRCUIT_S, reason)

    def close(self, origin: str) -> None:
        with self._lock:
            self._open.pop(origin, None)

    def reset(self) -> None:
        with self._lock:
            self._open.clear()


circuits = _Circuits()


class Transport:
    """Requests to one registry, and wherever it redirects.

    Not thread-safe: one per image and thread.

    Args:
        host: ``host[:port]`` of the registry's API.
        loopback: Whether that is this machine: plain HTTP unless TLS files are configured.
        config: TLS files and ``plain_http``.
        deadline: Over all requests.
    """

    def __init__(self, host: str, *, loopback: bool, config: RegistryConfig, deadline: Deadline) -> None:
        self.deadline = deadline
        self.subject = deadline.subject
        self._config = config
        self.insecure = config.plain_http or (loopback and not (config.ca_file or config.cert_file))
        self.base = f"{'http' if self.insecure else 'https'}://{host}"
        self._home = parse_url(self.base)
        self._loopback = loopback
        self._managers: dict[tuple[bool, str, bool], urllib3.PoolManager] = {}

    def close(self) -> None:
        """Close every connection."""
        for manager in self._managers.values():
            manager.clear()
        self._managers.clear()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        authorization: Authorization | None = None,
        redirects: int = _REDIRECTS,
    ) -> urllib3.BaseHTTPResponse:
        """Send, follow redirects, retry; return the response with its body unread.

        Args:
            method: GET, HEAD, POST or PUT.
            url: Absolute.
            headers: Sent to whatever the redirects lead to.
            body: Kept in memory, so that it can be sent again.
            authorization: Gives the Authorization header's value, or ``""``, for the registry's own origin.
            redirects: How many to follow; 0 when ``headers`` or ``body`` hold a secret.

        Raises:
            ImageError: ``img.unreachable``, ``img.tls``, ``img.redirect``, ``img.deadline``, ``img.stopped``.
        """
        target = self._parse(url)
        for attempt in range(ATTEMPTS):
            pause = _backoff(attempt)
            last = attempt == ATTEMPTS - 1 or pause >= self.deadline.remaining()
            origin = _origin(target)
            circuits.check(origin, self.subject)
            try:
                response = self._follow(
                    method, target, headers=headers or {}, body=body, authorization=authorization, redirects=redirects
                )
            except (TransportTimeoutError, ProtocolError) as cause:
                # NewConnectionError and NameResolutionError are timeouts to urllib3; a
                # ProtocolError here is a connection closed before an answer.
                if last:
                    reason = f"registry {target.netloc!r} is unreachable: {_reason(cause)}"
                    circuits.trip(origin, reason)
                    raise ImageError(
                        f"{self.subject}: {reason}; {_REMEDY}",
                        code="img.unreachable",
                    ) from cause
                self.deadline.sleep(pause)
                continue
            except SSLError as cause:
                self._tls_failed(target, cause)
            except (HTTPError, UnicodeError) as cause:
                raise ImageError(
                    f"{self.subject}: request to {target.netloc!r} failed: {_reason(cause)}", code="img.unreachable"
                ) from cause
            circuits.close(origin)
            asked = _retry_after(response.headers.get("Retry-After"))
            pause = pause if asked is None else asked
            if response.status not in _STATUSES_TO_RETRY or last or pause >= self.deadline.remaining():
                return response
            response.close()
            self.deadline.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def same_origin(self, url: str) -> bool:
        """Whether ``url`` is the registry's own scheme, host and port."""
        return _origin(self._parse(url)) == _origin(self._home)

    def _follow(
        self,
        method: str,
        target: Url,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        authorization: Authorization | None,
        redirects: int,
    ) -> urllib3.BaseHTTPResponse:
        for left in range(redirects, -1, -1):
            sent = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
            if authorization and _origin(target) == _origin(self._home) and (value := authorization()):
                sent["Authorization"] = value
            seconds = self.deadline.remaining()
            response = self._manager(target).urlopen(
                method,
                target.url,
                headers=sent,
                body=body,
                redirect=False,
                retries=False,
                timeout=Timeout(connect=min(CONNECT_TIMEOUT_S, seconds), read=min(READ_TIMEOUT_S, seconds)),
                preload_content=False,
                decode_content=False,
            )
            if response.status not in (301, 302, 303, 307, 308):
                return response
            location = response.headers.get("Location", "")
            response.close()
            if body is not None and response.status not in (307, 308):
                self._redirect_refused(location, "an upload cannot follow it")
            if not left:
                self._redirect_refused(location, f"the limit is {redirects}")
            target = self._redirected(target, location)
        raise AssertionError("the loop returns or raises")

    def _redirected(self, origin: Url, location: str) -> Url:
        if not location:
            self._redirect_refused(location, "it names no address")
        try:
            joined = urljoin(origin.url, location)
        except ValueError:
            self._redirect_refused(location, "it is malformed")
        target = self._parse(joined)
        if target.auth:
            self._redirect_refused("…", "it holds credentials")
        if target.scheme != "https" and not self.insecure:
            self._redirect_refused(location, "it leaves HTTPS")
        self._check_address(target.host or "", target.host or "")
        return target

    def _check_address(self, host: str, address: str) -> None:
        """Refuse this machine and its link as targets, unless the registry is itself there."""
        if host.strip("[]") == (self._home.host or "").strip("[]"):
            return
        try:
            ip = ipaddress.ip_address(address.strip("[]").partition("%")[0])
        except ValueError:
            inward = address.rstrip(".").lower() == "localhost"
        else:
            ip = getattr(ip, "ipv4_mapped", None) or ip
            inward = ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast
        if inward and not self._loopback:
            self._redirect_refused(f"{host} ({address})", "it points into this machine or its link")

    def _redirect_refused(self, location: str, reason: str) -> NoReturn:
        raise ImageError(
            f"{self.subject}: registry {self._home.netloc!r} sends us to {location[:200]!r}; refusing it, {reason}",
            code="img.redirect",
        )

    def _parse(self, url: str) -> Url:
        try:
            parsed = parse_url(url)
        except (LocationValueError, UnicodeError) as cause:
            raise ImageError(
                f"{self.subject}: registry gave a malformed address {url[:200]!r}", code="img.redirect"
            ) from cause
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ImageError(
                f"{self.subject}: registry gave the address {url[:200]!r}; must be http or https", code="img.redirect"
            )
        return parsed

    def _tls_failed(self, target: Url, cause: SSLError) -> NoReturn:
        reason = _reason(cause)
        remedy = "check the host name, the clock and registries.*.ca_file"
        if "WRONG_VERSION_NUMBER" in reason or "record layer" in reason.lower():
            remedy = "it seems to speak plain HTTP: set registries.*.plain_http if that is meant"
        raise ImageError(
            f"{self.subject}: TLS with {target.netloc!r} failed: {reason}; {remedy}", code="img.tls"
        ) from cause

    def _manager(self, target: Url) -> urllib3.PoolManager:
        home = _origin(target) == _origin(self._home)
        proxy = "" if self._loopback else _proxy_for(target.url)
        tls = target.scheme == "https" or proxy.startswith("https")
        key = (home, proxy, tls)
        if key not in self._managers:
            self._managers[key] = self._new_manager(home, proxy, tls)
        return self._managers[key]

    def _new_manager(self, home: bool, proxy: str, tls: bool) -> urllib3.PoolManager:
        # Reading the machine's trust store takes tens of milliseconds.
        context = self._ssl_context(home) if tls else None
        manager = (
            urllib3.ProxyManager(proxy, ssl_context=context, num_pools=4)
            if proxy
            else urllib3.PoolManager(ssl_context=context, num_pools=4)
        )
        guard = self._guard

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                guard(self)

        class Tls(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                guard(self)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class TlsPool(HTTPSConnectionPool):
            ConnectionCls = Tls

        manager.pool_classes_by_scheme = {"http": PlainPool, "https": TlsPool}
        return manager

    def _guard(self, connection: HTTPConnection) -> None:
        sock = connection.sock
        assert sock is not None
        if connection.proxy is None:
            try:
                peer = str(sock.getpeername()[0])
            except OSError as cause:
                raise ProtocolError("connection closed at once", cause) from cause
            self._check_address(connection.host, peer)
        connection.sock = cast("socket.socket", _GuardedSocket(sock, self.deadline))

    def _ssl_context(self, home: bool) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if not context.get_ca_certs():
            # A directory of hashed certificates is read on demand and so not listed; a
            # machine without the ca-certificates package has neither, then certifi serves.
            paths = ssl.get_default_verify_paths()
            if not (paths.capath or paths.cafile):
                context.load_verify_locations(certifi.where())
        self._load(context, "ca_file", self._config.ca_file)
        if home:
            self._load(context, "cert_file", self._config.cert_file)
        return context

    def _load(self, context: ssl.SSLContext, key: str, path: str) -> None:
        if not path:
            return
        try:
            if key == "ca_file":
                context.load_verify_locations(cafile=path)
            else:
                context.load_cert_chain(path, self._config.key_file or None, password=_no_password)
        except (OSError, ValueError) as cause:
            raise ImageError(
                f"{self.subject}: {key} {path!r} of registry {self._home.netloc!r} cannot be used: {_reason(cause)}",
                code="img.tls",
            ) from cause


def read_limited(response: urllib3.BaseHTTPResponse, limit: int, *, subject: str) -> bytes | None:
    """Read a body into memory.

    Returns:
        The body, or ``None`` when it is longer than ``limit``.

    Raises:
        ImageError: ``img.content_encoding``, or ``img.truncated`` when the connection ends early.
    """
    refuse_encoding(response, subject=subject)
    parts, size = [], 0
    for part in stream(response, subject=subject):
        size += len(part)
        if size > limit:
            response.close()
            return None
        parts.append(part)
    return b"".join(parts)


def stream(response: urllib3.BaseHTTPResponse, *, subject: str) -> Iterator[bytes]:
    """Yield the body as transferred, in pieces; the connection is released at the end and closed on failure."""
    try:
        while part := response.read(1 << 16, decode_content=False):
            yield part
        response.release_conn()
    except TransportTimeoutError as cause:
        raise ImageError(
            f"{subject}: registry sent nothing for {READ_TIMEOUT_S:g} s in the middle of a body", code="img.timeout"
        ) from cause
    except (HTTPError, OSError, ValueError) as cause:
        # ValueError: urllib3 lets the length of a chunk be negative, and then cannot read so much.
        raise ImageError(
            f"{subject}: transfer ended early: {_reason(cause)}; try again", code="img.truncated"
        ) from cause
    finally:
        if not response.closed:
            response.close()


def refuse_encoding(response: urllib3.BaseHTTPResponse, *, subject: str) -> None:
    """A coded body is not the bytes the digest is of, and may inflate without end.

    Raises:
        ImageError: ``img.content_encoding``.
    """
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    if coding not in ("", "identity"):
        response.close()
        raise ImageError(
            f"{subject}: body came with Content-Encoding {coding[:40]!r} though none was asked for; "
            "switch it off in the registry or its proxy",
            code="img.content_encoding",
        )


def _origin(url: Url) -> str:
    port = url.port or (443 if url.scheme == "https" else 80)
    return f"{url.scheme}://{(url.host or '').lower()}:{port}"


def _proxy_for(url: str) -> str:
    return select_proxy(url, get_environ_proxies(url)) or ""


def _backoff(attempt: int) -> float:
    return random.uniform(0, min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2**attempt))  # noqa: S311 jitter, not a secret


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait as the server asks, capped; ``None`` when it does not ask."""
    if not value:
        return None
    if value.strip().isdecimal():
        return min(float(value.strip()[:9]), _RETRY_AFTER_MAX_S)
    with suppress(ValueError, TypeError, OverflowError):
        when = email.utils.parsedate_to_datetime(value).timestamp()
        return min(max(0.0, when - time.time()), _RETRY_AFTER_MAX_S)
    return None


def _no_password() -> str:
    # Without this OpenSSL asks on the terminal, and a daemon waits for ever.
    return ""


def _reason(cause: BaseException) -> str:
    """The innermost cause in a few words, without urllib3's object addresses."""
    inner: BaseException = cause
    while (deeper := inner.__cause__ or inner.__context__) is not None and not isinstance(inner, OSError):
        inner = deeper
    said = inner.strerror if isinstance(inner, OSError) else str(inner)
    text = said or str(inner) or type(inner).__name__
    return " ".join(text.split())[:200]
