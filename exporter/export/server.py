"""The scrape server: metrics, health and a landing page over HTTP/1.1.

Each connection has a thread of its own, so a client that says nothing, reads
nothing or sends a byte now and then costs one of a bounded number of
connections and its time limit, never somebody else's scrape:

- waiting for a request has one limit, receiving its head another, over the whole head;
- a scrape holds one of ``max_requests`` places only while it is made, not while it is
  sent; answers being sent are bounded in bytes together, and each in time;
- when there are as many connections as there may be, the one that has said nothing for longest
  gives way to a new one; beyond the other bounds the answer is 503.

:meth:`MetricsServer.serve_forever` is called by a thread of the agent. A TLS handshake and the check
of a password run in the connection's thread, so they block nobody (:mod:`.web_access`).
"""

from __future__ import annotations

import errno
import html
import http.server
import io
import logging
import math
import os
import selectors
import socket
import socketserver
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from exporter.errors import ExportError

from .listening import handed_over, listen, location, parse_address
from .negotiation import accepted, accepts_gzip
from .prometheus import Exposition
from .web_access import WebAccess, reason

__all__ = ["Handlers", "MetricsServer", "Scrape", "UnknownCollectorError", "parse_address"]

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_log = logging.getLogger(__name__)

_IDLE_TIMEOUT_S = 300.0  # a scraper's connection between scrapes
_FIRST_TIMEOUT_S = 15.0  # a new connection until it says something
_HEAD_TIMEOUT_S = 10.0
_WRITE_TIMEOUT_S = 30.0
_CONNECTIONS_LIMIT = 512
_DEADLINE_MARGIN_S = 0.25  # of a scraper's timeout, for the way back; at most a tenth of it
_SENDING_LIMIT_BYTES = 256 << 20
# Per line of histograms with three labels (137 bytes), CPU and what is left: level 1 0.27 us and 10.2 B,
# 6 0.68 us and 9.1 B, 9 1.56 us and 8.0 B. Rendering the line takes 0.014 us.
_GZIP_LEVEL = 1


class UnknownCollectorError(ValueError):
    """A scrape names, in ``collect[]`` or ``exclude[]``, what is not there; the client gets 400 and the text."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a scraper asked for.

    Attributes:
        collect: Only these images, if any are named.
        exclude: All but these; never together with ``collect``.
        exposition: The format to answer in, one of :attr:`Handlers.expositions`.
        deadline_s: On the monotonic clock: an answer that is made later comes too late for the
            scraper, which said so in ``X-Prometheus-Scrape-Timeout-Seconds``; None if it did not.
    """

    collect: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    exposition: Exposition = Exposition.TEXT_0_0_4
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the agent answers; called from many threads at once.

    Attributes:
        metrics: Text of a scrape; raises :class:`UnknownCollectorError`.
        healthy: One line of text while the agent works, or raises.
        ready: Whether every required image runs, and one line that says so.
        reload: Reads the configuration again, and says whether it was good, and one line; None: nobody may ask for it.
        landing: Title and one sentence of the landing page.
        expositions: The formats ``metrics`` can give; the text format 0.0.4 must be among them.
        web_config: Is told what is wrong when the web configuration cannot be used any more, and ""
            when it was read again and is well.
        refused: Is told of a connection that ended without a request, TLS not agreed upon: the client and why.
    """

    metrics: Callable[[Scrape], bytes]
    expositions: tuple[Exposition, ...] = (Exposition.TEXT_0_0_4,)
    web_config: Callable[[str], None] = lambda _problem: None
    refused: Callable[[str, str], None] = lambda _client, _reason: None
    healthy: Callable[[], str] = lambda: "skep is healthy"
    ready: Callable[[], tuple[bool, str]] = lambda: (True, "skep is ready")
    reload: Callable[[], tuple[bool, str]] | None = None
    landing: Callable[[], tuple[str, str]] = lambda: ("skep", "Numbers and events of eBPF programs.")


@dataclass(frozen=True, slots=True)
class Answer:
    """One response."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()

    def packed(self) -> Answer:
        """The same, compressed at the level that costs a scrape least."""
        packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)
        body = packer.compress(self.body) + packer.flush()
        return replace(self, body=body, headers=(*self.headers, ("Content-Encoding", "gzip")))


class _Gate:
    """What all connections share: places and bytes, each with a limit."""

    def __init__(self, max_requests: int) -> None:
        self._lock = threading.Condition()
        self._max_requests = max_requests
        self._scrapes: dict[object, float] = {}  # those being made, and since when
        self._sending_bytes = 0
        self._active = 0
        self._answered: dict[int, int] = {HTTPStatus.OK: 0}
        self._connections: dict[socket.socket, socket.socket] = {}
        self._silent: dict[socket.socket, None] = {}  # those that have asked nothing, the longest first
        self.closing = False

    def admit(self, accepted: socket.socket) -> bool:
        """Count a new connection; if there are too many, the longest silent one has to go."""
        with self._lock:
            if self.closing:
                return False
            if len(self._connections) >= _CONNECTIONS_LIMIT:
                longest = next(iter(self._silent), None)
                if longest is None:
                    return False
                del self._silent[longest]
                _end(self._connections.pop(longest))
            self._connections[accepted] = accepted
            self._silent[accepted] = None
            return True

    def wrapped(self, accepted: socket.socket, connection: socket.socket) -> None:
        """Remember what an accepted connection is talked over.

        Raises:
            ConnectionAbortedError: it had to go meanwhile.
        """
        with self._lock:
            if accepted not in self._connections:
                raise ConnectionAbortedError("gave way to a newer connection")
            self._connections[accepted] = connection

    def waits(self, accepted: socket.socket) -> None:
        """Mark a connection that has no request under way."""
        with self._lock:
            if accepted in self._connections:
                self._silent[accepted] = None

    def dismiss(self, accepted: socket.socket) -> None:
        """Forget a connection that has ended."""
        with self._lock:
            self._connections.pop(accepted, None)
            self._silent.pop(accepted, None)

    @contextmanager
    def scrape(self) -> Iterator[bool]:
        """Hold a place while a scrape is made; False if all are taken."""
        with self._lock:
            admitted = not self._max_requests or len(self._scrapes) < self._max_requests
            key = object()
            if admitted:
                self._scrapes[key] = time.monotonic()
        try:
            yield admitted
        finally:
            with self._lock:
                self._scrapes.pop(key, None)

    def answered(self, status: HTTPStatus) -> None:
        """Count a scrape that has its answer."""
        with self._lock:
            self._answered[status] = self._answered.get(status, 0) + 1

    def scrapes(self) -> tuple[dict[int, int], int]:
        """Scrapes answered so far by status, and those being made."""
        with self._lock:
            return {int(status): count for status, count in self._answered.items()}, len(self._scrapes)

    def oldest_scrape_s(self) -> float:
        """When the scrape that has been made for longest began; inf if there is none."""
        with self._lock:
            return min(self._scrapes.values(), default=math.inf)

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
    def request(self, accepted: socket.socket) -> Iterator[None]:
        """Mark a request that has been received and not been answered."""
        with self._lock:
            self._active += 1
            self._silent.pop(accepted, None)
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
                _end(connection)


def _end(connection: socket.socket) -> None:
    """Wake whoever reads or writes there; not by TLS's own method, which would go on in the clear."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


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
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"
    server: _Listener

    def setup(self) -> None:
        owner, accepted = self.server.owner, self.request
        self._accepted: socket.socket = accepted
        self._context: ssl.SSLContext | None = None
        accepted.settimeout(_HEAD_TIMEOUT_S)
        if accepted.family in (socket.AF_INET, socket.AF_INET6):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        if owner.access is not None and owner.access.is_secure:
            self.request = self._secured(owner.access, accepted)
            self._context = self.request.context
        else:
            self.request = owner.wrap(accepted)
            owner.gate.wrapped(accepted, self.request)
        super().setup()
        self.rfile.close()
        self._reader = _PatientReader(self.connection)
        self.rfile = io.BufferedReader(self._reader, 8192)
        self._first = True

    def _secured(self, access: WebAccess, accepted: socket.socket) -> ssl.SSLSocket:
        try:
            return access.secure(accepted, lambda connection: self.server.owner.gate.wrapped(accepted, connection))
        except OSError as error:
            self.server.owner.told_refused(str(self.client_address[0]), reason(error))
            raise

    def finish(self) -> None:
        super().finish()
        if self._context is not None:
            # Say goodbye without waiting for the other side's.
            with suppress(OSError, ValueError):
                self.connection.settimeout(0)
                self.request.unwrap()
        self.server.shutdown_request(self.request)

    def handle_one_request(self) -> None:
        """As the base class does, but with limits over the waiting and the whole head."""
        self._reader.received = False
        self._reader.deadline = time.monotonic() + (_FIRST_TIMEOUT_S if self._first else _IDLE_TIMEOUT_S)
        self._first = False
        self.server.owner.gate.waits(self._accepted)
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
        deadline_s = self._deadline_s()
        if self._outdated():
            return
        with owner.gate.request(self._accepted):
            answer = self._refusal() or owner.answer(
                self.path,
                accept=",".join(self.headers.get_all("Accept", ())),
                deadline_s=deadline_s,
                packed=accepts_gzip(",".join(self.headers.get_all("Accept-Encoding", ()))),
            )
            with owner.gate.sending(len(answer.body)) as admitted:
                self._send(answer if admitted else _BUSY, with_body=with_body)

    def _outdated(self) -> bool:
        """Whether the client has to prove itself anew: whom we ask about it is another since it connected.

        Then the connection ends without an answer, which every client of kept connections takes as
        a reason to connect again. If only our own certificate is another, it ends with the answer.
        """
        access = self.server.owner.access
        if self._context is None or access is None or self._context is access.context:
            return False
        self.close_connection = True
        return self._context.verify_mode is not ssl.CERT_NONE

    def _refusal(self) -> Answer | None:
        """What a client gets that may not ask."""
        access = self.server.owner.access
        if access is None:
            return None
        refusal = access.refusal(self.headers.get("Authorization"))
        if refusal is None:
            return None
        return Answer(refusal.status, refusal.text.encode() + b"\n", headers=refusal.headers)

    def version_string(self) -> str:
        return "skep"

    def end_headers(self) -> None:
        access = self.server.owner.access
        for name, value in access.headers if access is not None else ():
            self.send_header(name, value)
        super().end_headers()

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

    def _deadline_s(self) -> float | None:
        try:
            timeout_s = float(self.headers.get("X-Prometheus-Scrape-Timeout-Seconds", ""))
        except ValueError:
            return None
        if not 0 < timeout_s < 86400:
            return None
        return time.monotonic() + timeout_s - min(_DEADLINE_MARGIN_S, timeout_s / 10)

    def do_POST(self) -> None:
        self._change()

    def do_PUT(self) -> None:
        self._change()

    def _change(self) -> None:
        """The one thing that a client may have done: ``/-/reload``."""
        if urlsplit(self.path).path != "/-/reload":
            self._method_not_allowed()
            return
        self.close_connection = True  # a body is not read
        if self._outdated():
            return
        with self.server.owner.gate.request(self._accepted):
            self._send(self._refusal() or self.server.owner.reload())

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        # Whatever other method a client sends is known and not allowed.
        if name.startswith("do_"):
            return self._method_not_allowed
        raise AttributeError(name)

    def _method_not_allowed(self) -> None:
        self.close_connection = True
        if self._outdated():
            return
        with self.server.owner.gate.request(self._accepted):
            self._send(self._refusal() or _NOT_ALLOWED)

    def log_message(self, format: str, *args: object) -> None:
        _log.debug("%s " + format, self.client_address[0], *args)


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
            accepted, address = self.socket.accept()
            # A Unix socket's client has no address.
            return accepted, address if isinstance(address, tuple) else (address or "local", 0)
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


_VARY = (("Vary", "Accept, Accept-Encoding"),)
_BUSY = Answer(
    HTTPStatus.SERVICE_UNAVAILABLE,
    b"limit of concurrent requests is reached, try again later\n",
    headers=(("Retry-After", "1"),),
)


_NOT_ALLOWED = Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n", headers=(("Allow", "GET, HEAD"),))


class MetricsServer:
    """Listens at once; answers while :meth:`serve_forever` runs.

    Args:
        addresses: ``HOST:PORT``, ``[IPV6]:PORT`` or ``:PORT`` each; port 0 takes a free one.
        handlers: What to answer.
        telemetry_path: Where metrics are; the landing page is at ``/`` if that is elsewhere.
        max_requests: Scrapes made at the same time; more get 503; 0 is no limit.
        wrap: Turns an accepted connection into the one to talk over, in its own thread; without ``web_config``.
        web_config: File that says who may ask, and how (:mod:`.web_access`).
        descriptors: What systemd passed to this process; its listening sockets are served instead of
            ``addresses``, and the others left alone.

    Raises:
        ExportError: an address cannot be listened on; none is then.
        ConfigError, Problems: the web configuration cannot be used.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        handlers: Handlers,
        *,
        telemetry_path: str = "/metrics",
        max_requests: int = 40,
        wrap: Callable[[socket.socket], socket.socket] = lambda connection: connection,
        web_config: Path | None = None,
        descriptors: Iterable[int] | None = None,
    ) -> None:
        if not telemetry_path.startswith("/"):
            raise ExportError(f"telemetry path is {telemetry_path!r}; must begin with '/'", code="web.path")
        self.access = WebAccess(web_config, handlers.web_config) if web_config is not None else None
        self.gate = _Gate(max_requests)
        self.wrap = wrap
        self._handlers = handlers
        self._path = telemetry_path
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stopped = threading.Event()
        self._state = threading.Lock()
        self._serving = False
        self._accepting_since_s = math.inf
        self._listeners: list[_Listener] = []
        try:
            if descriptors is not None:
                self._listeners += [_Listener(self, listening) for listening in handed_over(descriptors)]
            else:
                for address in addresses:
                    self._listeners.append(_Listener(self, listen(address)))
        except ExportError:
            self.close(grace_s=0)
            raise

    @property
    def ports(self) -> tuple[int, ...]:
        """The port of each address, in order; what is no IP address has none."""
        return tuple(
            each.socket.getsockname()[1]
            for each in self._listeners
            if each.socket.family in (socket.AF_INET, socket.AF_INET6)
        )

    @property
    def urls(self) -> tuple[str, ...]:
        """Where metrics are, as this machine can ask for them."""
        scheme = "https" if self.access is not None and self.access.is_secure else "http"
        places = [location(listener.socket) for listener in self._listeners]
        return tuple(f"{scheme}:{each}{self._path}" if each.startswith("//") else each for each in places)

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
                            self._accept(key.data)
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

    def scrapes(self) -> tuple[Mapping[int, int], int]:
        """Scrapes answered so far by HTTP status, and those being made."""
        return self.gate.scrapes()

    def _accept(self, listener: _Listener) -> None:
        self._accepting_since_s = time.monotonic()
        try:
            listener.handle_request()
        finally:
            self._accepting_since_s = math.inf

    def busy_s(self) -> float:
        """For how long it has been at one thing: taking a connection, or making a scrape; sending is not counted."""
        return max(0.0, time.monotonic() - min(self._accepting_since_s, self.gate.oldest_scrape_s()))

    def told_refused(self, client: str, reason: str) -> None:
        """Pass on that a connection ended before it could ask."""
        if not self.gate.closing:
            self._handlers.refused(client, reason)

    def answer(self, target: str, *, accept: str = "", deadline_s: float | None = None, packed: bool = False) -> Answer:
        """Answer a GET; never raises: a fault of a handler is logged and is a 500."""
        try:
            url = urlsplit(target)
            asked = parse_qs(url.query, keep_blank_values=True, max_num_fields=1000)
        except ValueError:
            return Answer(HTTPStatus.BAD_REQUEST, b"not a URL\n")
        try:
            if url.path == self._path:
                answer = self._metrics(asked, accept, deadline_s, packed)
                self.gate.answered(answer.status)
                return answer
            if url.path == "/-/healthy":
                return Answer(HTTPStatus.OK, self._handlers.healthy().encode() + b"\n")
            if url.path == "/-/ready":
                ready, text = self._handlers.ready()
                return Answer(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, text.encode() + b"\n")
            if url.path == "/-/reload":
                return Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"only POST and PUT\n", headers=(("Allow", "POST, PUT"),))
            if url.path == "/":
                return self._landing()
        except Exception:
            _log.exception("answering %s failed", url.path)
            if url.path == self._path:
                self.gate.answered(HTTPStatus.INTERNAL_SERVER_ERROR)
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error; see the log of skep\n")
        return Answer(HTTPStatus.NOT_FOUND, b"not found\n")

    def reload(self) -> Answer:
        """Answer a request to read the configuration again; never raises."""
        if self._handlers.reload is None:
            return Answer(HTTPStatus.FORBIDDEN, b"reloading over HTTP is off; --web.enable-lifecycle turns it on\n")
        try:
            good, text = self._handlers.reload()
        except Exception:
            _log.exception("answering /-/reload failed")
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error; see the log of skep\n")
        return Answer(HTTPStatus.OK if good else HTTPStatus.INTERNAL_SERVER_ERROR, text.encode() + b"\n")

    def _metrics(
        self, asked: Mapping[str, Sequence[str]], accept: str, deadline_s: float | None, packed: bool
    ) -> Answer:
        collect, exclude = tuple(asked.get("collect[]", ())), tuple(asked.get("exclude[]", ()))
        if collect and exclude:
            return Answer(HTTPStatus.BAD_REQUEST, b"collect[] and exclude[] cannot be used together\n")
        with self.gate.scrape() as admitted:
            if not admitted:
                return _BUSY
            form = accepted(accept, self._handlers.expositions)
            try:
                body = self._handlers.metrics(Scrape(collect, exclude, form.exposition, deadline_s))
            except UnknownCollectorError as error:
                return Answer(HTTPStatus.BAD_REQUEST, f"{error}\n".encode())
            answer = Answer(HTTPStatus.OK, body, form.content_type, _VARY)
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
