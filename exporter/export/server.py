"""The scrape server: metrics, health and a landing page over HTTP/1.1.

Each connection has a thread of its own, so a client that says nothing, reads
nothing or sends a byte now and then costs one of a bounded number of
connections and its time limit, never somebody else's scrape:

- waiting for a request has one limit, receiving its head another, over the whole head;
- a scrape holds one of ``max_requests`` places only while it is made, not while it is
  sent; answers being sent are bounded in bytes together, and each in time;
- beyond these bounds the answer is 503, and beyond the number of connections none.

:meth:`MetricsServer.serve_forever` is called by a thread of the agent. ``wrap`` is
where TLS goes: it runs in the connection's thread, so a handshake blocks nobody.
"""

from __future__ import annotations

import errno
import html
import http.server
import io
import logging
import os
import selectors
import socket
import socketserver
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from exporter.errors import ExportError

from .prometheus import CONTENT_TYPE

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_log = logging.getLogger(__name__)

_IDLE_TIMEOUT_S = 300.0  # a scraper's connection between scrapes
_FIRST_TIMEOUT_S = 15.0  # a new connection until it says something
_HEAD_TIMEOUT_S = 10.0
_WRITE_TIMEOUT_S = 30.0
_CONNECTIONS_LIMIT = 512
_SENDING_LIMIT_BYTES = 256 << 20


class UnknownCollectorError(ValueError):
    """A scrape names, in ``collect[]`` or ``exclude[]``, what is not there; the client gets 400 and the text."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a scraper asked for.

    Attributes:
        collect: Only these images, if any are named.
        exclude: All but these; never together with ``collect``.
        timeout_s: The scraper's own limit, from ``X-Prometheus-Scrape-Timeout-Seconds``.
    """

    collect: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the agent answers; called from many threads at once.

    Attributes:
        metrics: Text of a scrape; raises :class:`UnknownCollectorError`.
        healthy: One line of text while the agent works, or raises.
        ready: Whether every required image runs, and one line that says so.
        landing: Title and one sentence of the landing page.
    """

    metrics: Callable[[Scrape], bytes]
    healthy: Callable[[], str] = lambda: "skep is healthy"
    ready: Callable[[], tuple[bool, str]] = lambda: (True, "skep is ready")
    landing: Callable[[], tuple[str, str]] = lambda: ("skep", "Numbers and events of eBPF programs.")


@dataclass(frozen=True, slots=True)
class Answer:
    """One response."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()

    def packed(self) -> Answer:
        """The same, compressed; level 1 costs a tenth of level 9."""
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        body = packer.compress(self.body) + packer.flush()
        return replace(
            self, body=body, headers=(*self.headers, ("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding"))
        )


def parse_address(address: str) -> tuple[str, int]:
    """Read ``HOST:PORT``, ``[IPV6]:PORT`` or ``:PORT``.

    Returns:
        Host, ``""`` for every address of the machine, and port.

    Raises:
        ExportError: it is none of these.
    """
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 0xFFFF:
        raise ExportError(
            f"listen address {address!r}: not HOST:PORT; write ':19435', '127.0.0.1:19435' or '[::1]:19435'",
            code="web.address",
        )
    return host, int(port)


def _listen(address: str) -> socket.socket:
    """Open a listening socket; ``:PORT`` takes IPv6 and IPv4 alike where the machine has both."""
    host, port = parse_address(address)
    try:
        if host in ("", "::") and socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
        flags = socket.AI_PASSIVE | socket.AI_ADDRCONFIG if not host else 0
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
        # A name like localhost may have both; scrapers are told IPv4 addresses more often.
        family, *_, sockaddr = min(found, key=lambda each: each[0] != socket.AF_INET)
        return socket.create_server(sockaddr[:2] if family == socket.AF_INET else sockaddr, family=family, backlog=128)
    except OSError as cause:
        if cause.errno == errno.EADDRINUSE:
            reason = "port is in use; stop what listens there (see `ss -ltnp`) or choose another port"
        elif cause.errno == errno.EACCES:
            reason = "permission denied; ports below 1024 need CAP_NET_BIND_SERVICE"
        elif cause.errno == errno.EADDRNOTAVAIL:
            reason = "this machine does not have the address"
        else:
            reason = cause.strerror or str(cause)
        raise ExportError(f"listen address {address!r}: {reason}", code="web.listen") from cause


class _Gate:
    """What all connections share: places and bytes, each with a limit."""

    def __init__(self, max_requests: int) -> None:
        self._lock = threading.Condition()
        self._max_requests = max_requests
        self._scrapes = 0
        self._sending_bytes = 0
        self._active = 0
        self._connections: dict[socket.socket, socket.socket] = {}
        self.closing = False

    def admit(self, connection: socket.socket) -> bool:
        """Count a new connection, unless there are too many."""
        with self._lock:
            if len(self._connections) >= _CONNECTIONS_LIMIT or self.closing:
                return False
            self._connections[connection] = connection
            return True

    def wrapped(self, accepted: socket.socket, connection: socket.socket) -> None:
        """Remember what an accepted connection is talked over."""
        with self._lock:
            self._connections[accepted] = connection

    def dismiss(self, accepted: socket.socket) -> None:
        """Forget a connection that has ended."""
        with self._lock:
            self._connections.pop(accepted, None)

    @contextmanager
    def scrape(self) -> Iterator[bool]:
        """Hold a place while a scrape is made; False if all are taken."""
        with self._lock:
            admitted = not self._max_requests or self._scrapes < self._max_requests
            self._scrapes += admitted
        try:
            yield admitted
        finally:
            with self._lock:
                self._scrapes -= admitted

    @contextmanager
    def sending(self, size: int) -> Iterator[bool]:
        """Account for an answer's bytes while they are sent; False if there are too many already."""
        with self._lock:
            admitted = not self._sending_bytes or self._sending_bytes + size <= _SENDING_LIMIT_BYTES
            self._sending_bytes += size if admitted else 0
        try:
            yield admitted
        finally:
            with self._lock:
                self._sending_bytes -= size if admitted else 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Mark a request that has begun and not been answered."""
        with self._lock:
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1
                self._lock.notify_all()

    def drain(self, grace_s: float) -> None:
        """Let requests under way finish, then end every connection."""
        with self._lock:
            self.closing = True
            self._lock.wait_for(lambda: not self._active, grace_s)
            for connection in self._connections.values():
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _PatientReader(io.RawIOBase):
    """A connection's reading side, with one deadline over many reads."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self.deadline = 0.0
        self.received = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        count = self._connection.recv_into(buffer)
        if not self.received:
            # The first byte of a request: from here on its whole head has one limit.
            self.received = True
            self.deadline = time.monotonic() + _HEAD_TIMEOUT_S
        return count


class _Connection(http.server.BaseHTTPRequestHandler):
    """One client, one request after the other."""

    protocol_version = "HTTP/1.1"
    server_version = "skep"
    sys_version = ""
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"
    server: _Listener

    disable_nagle_algorithm = True

    def setup(self) -> None:
        accepted = self.request
        self.request.settimeout(_HEAD_TIMEOUT_S)
        self.request = self.server.owner.wrap(accepted)
        self.server.owner.gate.wrapped(accepted, self.request)
        super().setup()
        self.rfile.close()
        self._reader = _PatientReader(self.connection)
        self.rfile = io.BufferedReader(self._reader, 8192)
        self._first = True

    def finish(self) -> None:
        super().finish()
        self.server.shutdown_request(self.request)

    def handle_one_request(self) -> None:
        """As the base class does, but with limits over the waiting and the whole head."""
        self._reader.received = False
        self._reader.deadline = time.monotonic() + (_FIRST_TIMEOUT_S if self._first else _IDLE_TIMEOUT_S)
        self._first = False
        try:
            super().handle_one_request()
        except OSError as error:  # gone, too slow, or our own shutdown; nobody is there to be told
            _log.debug("connection of %s ended: %s", self.client_address[0], error)
            self.close_connection = True
        if self.server.owner.gate.closing:
            self.close_connection = True

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def _respond(self, *, with_body: bool) -> None:
        if self.headers.get("Transfer-Encoding") or self.headers.get("Content-Length", "0") != "0":
            # A body nobody reads would be taken for the next request.
            self.close_connection = True
        owner = self.server.owner
        with owner.gate.request():
            packed = _accepts_gzip(self.headers.get("Accept-Encoding", ""))
            answer = owner.answer(self.path, timeout_s=self._scrape_timeout_s(), packed=packed)
            with owner.gate.sending(len(answer.body)) as admitted:
                self._send(answer if admitted else _BUSY, with_body=with_body)

    def _send(self, answer: Answer, *, with_body: bool = True) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers:
            self.send_header(name, value)
        if self.close_connection or self.server.owner.gate.closing:
            self.send_header("Connection", "close")
        # `sendall` takes the socket's timeout as the limit of the whole call.
        self.connection.settimeout(_WRITE_TIMEOUT_S)
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def _scrape_timeout_s(self) -> float | None:
        try:
            seconds = float(self.headers.get("X-Prometheus-Scrape-Timeout-Seconds", ""))
        except ValueError:
            return None
        return seconds if 0 < seconds < 86400 else None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        # Whatever other method a client sends is known and not allowed.
        if name.startswith("do_"):
            return self._method_not_allowed
        raise AttributeError(name)

    def _method_not_allowed(self) -> None:
        self.close_connection = True
        self._send(Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n", headers=(("Allow", "GET, HEAD"),)))

    def log_message(self, format: str, *args: object) -> None:
        _log.debug("%s " + format, self.client_address[0], *args)


def _accepts_gzip(accepted: str) -> bool:
    for coding in accepted.split(","):
        name, _, parameters = coding.partition(";")
        if name.strip().lower() in ("gzip", "x-gzip", "*"):
            weight = parameters.replace(" ", "").lower().removeprefix("q=")
            return weight.strip("0.") != "" if parameters else True
    return False


class _Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    timeout = 0  # handle_request() never waits: the selector has

    def __init__(self, owner: MetricsServer, listening: socket.socket) -> None:
        socketserver.BaseServer.__init__(self, listening.getsockname(), _Connection)
        self.owner = owner
        self.socket = listening
        self.socket.setblocking(False)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return self.socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                time.sleep(0.1)  # the connection stays in the queue: do not spin on it
            raise

    def verify_request(self, request: Any, _client_address: object) -> bool:  # noqa: ANN401
        return self.owner.gate.admit(request)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self.owner.gate.dismiss(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.owner.gate.dismiss(request)

    def handle_error(self, _request: object, client_address: Any) -> None:  # noqa: ANN401
        _log.debug("connection of %s failed", client_address[0], exc_info=True)


_BUSY = Answer(
    HTTPStatus.SERVICE_UNAVAILABLE,
    b"limit of concurrent requests is reached, try again later\n",
    headers=(("Retry-After", "1"),),
)


class MetricsServer:
    """Listens at once; answers while :meth:`serve_forever` runs.

    Args:
        addresses: ``HOST:PORT``, ``[IPV6]:PORT`` or ``:PORT`` each; port 0 takes a free one.
        handlers: What to answer.
        telemetry_path: Where metrics are; the landing page is at ``/`` if that is elsewhere.
        max_requests: Scrapes made at the same time; more get 503; 0 is no limit.
        wrap: Turns an accepted connection into the one to talk over, in its own thread.

    Raises:
        ExportError: an address cannot be listened on; none is then.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        handlers: Handlers,
        *,
        telemetry_path: str = "/metrics",
        max_requests: int = 40,
        wrap: Callable[[socket.socket], socket.socket] = lambda connection: connection,
    ) -> None:
        if not telemetry_path.startswith("/"):
            raise ExportError(f"telemetry path is {telemetry_path!r}; must begin with '/'", code="web.path")
        self.gate = _Gate(max_requests)
        self.wrap = wrap
        self._handlers = handlers
        self._path = telemetry_path
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stopped = threading.Event()
        self._state = threading.Lock()
        self._serving = False
        self._listeners: list[_Listener] = []
        try:
            for address in addresses:
                self._listeners.append(_Listener(self, _listen(address)))
        except ExportError:
            self.close(grace_s=0)
            raise

    @property
    def ports(self) -> tuple[int, ...]:
        """The port of each address, in order."""
        return tuple(listener.socket.getsockname()[1] for listener in self._listeners)

    def serve_forever(self) -> None:
        """Accept connections until :meth:`close`."""
        with self._state:
            if self.gate.closing:
                return
            self._serving = True
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._wake_reader, selectors.EVENT_READ)
                for listener in self._listeners:
                    selector.register(listener.socket, selectors.EVENT_READ, listener)
                while not self.gate.closing:
                    for key, _ in selector.select():
                        if key.data is not None:
                            key.data.handle_request()
        finally:
            self._stopped.set()

    def close(self, grace_s: float = 5.0) -> None:
        """Stop listening, let requests under way finish for ``grace_s`` seconds, and end all connections."""
        with self._state:
            if self.gate.closing:
                return
            self.gate.closing = True
            serving = self._serving
        if serving:
            os.write(self._wake_writer, b"x")
            self._stopped.wait()
        for listener in self._listeners:
            listener.server_close()
        self.gate.drain(grace_s)
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def answer(self, target: str, *, timeout_s: float | None = None, packed: bool = False) -> Answer:
        """Answer a GET; never raises: a fault of a handler is logged and is a 500."""
        try:
            url = urlsplit(target)
            asked = parse_qs(url.query, max_num_fields=1000)
        except ValueError:
            return Answer(HTTPStatus.BAD_REQUEST, b"not a URL\n")
        try:
            if url.path == self._path:
                return self._metrics(asked, timeout_s, packed)
            if url.path == "/-/healthy":
                return Answer(HTTPStatus.OK, self._handlers.healthy().encode() + b"\n")
            if url.path == "/-/ready":
                ready, text = self._handlers.ready()
                return Answer(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, text.encode() + b"\n")
            if url.path == "/":
                return self._landing()
        except Exception:
            _log.exception("answering %s failed", url.path)
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error; see the log of skep\n")
        return Answer(HTTPStatus.NOT_FOUND, b"not found\n")

    def _metrics(self, asked: Mapping[str, Sequence[str]], timeout_s: float | None, packed: bool) -> Answer:
        collect, exclude = tuple(asked.get("collect[]", ())), tuple(asked.get("exclude[]", ()))
        if collect and exclude:
            return Answer(HTTPStatus.BAD_REQUEST, b"collect[] and exclude[] cannot be used together\n")
        with self.gate.scrape() as admitted:
            if not admitted:
                return _BUSY
            try:
                body = self._handlers.metrics(Scrape(collect, exclude, timeout_s))
            except UnknownCollectorError as error:
                return Answer(HTTPStatus.BAD_REQUEST, f"{error}\n".encode())
            answer = Answer(HTTPStatus.OK, body, CONTENT_TYPE)
            return answer.packed() if packed else answer

    def _landing(self) -> Answer:
        title, sentence = map(html.escape, self._handlers.landing())
        links = [(self._path, "Metrics"), ("/-/healthy", "Healthy"), ("/-/ready", "Ready")]
        items = "".join(f'<li><a href="{html.escape(path)}">{text}</a></li>' for path, text in links)
        page = (
            f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
            f"<body><h1>{title}</h1><p>{sentence}</p><ul>{items}</ul></body></html>\n"
        )
        return Answer(HTTPStatus.OK, page.encode(), "text/html; charset=utf-8")
