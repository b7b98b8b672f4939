"""OTLP over HTTP, the client's side: one receiver, one signal, honest about what became of each request.

An attempt is one POST under one time limit that covers connecting, sending and
the whole answer: a receiver that sends a byte now and then does not get more.
Sockets are urllib3's; before each read and write the connection waits in short
slices and asks the clock and the stop event. Redirects are not followed and are no
success (the body would go where nobody configured). What may be sent again is what
the protocol says: 429, 502, 503, 504 and a connection that failed, after the
receiver's ``Retry-After`` or full jitter, whichever is longer.

No thread is started here; the agent calls :meth:`OtlpSender.send` from its own.

Source: OpenTelemetry protocol specification, "OTLP/HTTP".
"""

from __future__ import annotations

import email.utils
import enum
import io
import random
import select
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import urllib3
from google.protobuf.message import DecodeError
from google.rpc import status_pb2  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from requests.utils import get_environ_proxies, select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Timeout, Url, parse_url

from exporter.config import OtlpConfig
from exporter.errors import ExportError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

Signal = Literal["metrics", "logs"]

CONTENT_TYPE = "application/x-protobuf"
RESPONSE_LIMIT_BYTES = 4 << 20
"""A receiver's answer beyond this is not read (protocol specification, "OTLP/HTTP Response")."""

_RETRYABLE_STATUSES = frozenset({429, 502, 503, 504})
_ERROR_LIMIT_BYTES = 64 << 10
_MESSAGE_LIMIT = 300
_CONNECT_TIMEOUT_S = 5.0
_SLICE_S = 0.2
_CHUNK_BYTES = 16 << 10
_BACKOFF_FIRST_S = 1.0
_BACKOFF_MAX_S = 30.0
_RETRY_AFTER_MAX_S = 3600.0


class Verdict(enum.Enum):
    """What a receiver made of a request."""

    ACCEPTED = "accepted"  # delivered; some items may be rejected (``Outcome.rejected_items``)
    REJECTED = "rejected"  # never to be sent again as it is
    UNAVAILABLE = "unavailable"  # may be sent again later
    STOPPED = "stopped"  # we were told to stop before there was an answer


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        status: Of HTTP; 0 without an answer.
        rejected_items: Of an accepted request: data points or log records the receiver refused.
        retry_after_s: When to come back, if the receiver said so.
        message: One line for a log; of the receiver where it sent one.
        cause: Few and stable, for a metric's attribute: ``""`` when accepted in full, else
            ``partial``, ``http_STATUS``, ``redirect``, ``timeout``, ``connect``, ``tls``, ``protocol``, ``stopped``.
    """

    verdict: Verdict
    status: int = 0
    rejected_items: int = 0
    retry_after_s: float | None = None
    message: str = ""
    cause: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the receiver has it."""
        return self.verdict is Verdict.ACCEPTED

    @property
    def retryable(self) -> bool:
        """Whether the same bytes may be sent again."""
        return self.verdict is Verdict.UNAVAILABLE


@dataclass(frozen=True, slots=True)
class Account:
    """Everything a sender was given, by what became of it; items given = accepted + rejected + failed.

    Attributes:
        accepted: Items the receiver took.
        rejected: Items it refused for good, in part or with their whole request.
        failed: Items given up on: unavailable until the deadline, or stopped.
        requests: Attempts by cause (:attr:`Outcome.cause`, ``"ok"`` for success).
        sent_bytes: Bodies as they went out, every attempt.
    """

    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    requests: Mapping[str, int] = field(default_factory=dict)
    sent_bytes: int = 0


# Not of a kind that urllib3 or http.client would wrap into their own.
class _Stopped(Exception):  # noqa: N818 - not an error
    pass


class _Expired(Exception):  # noqa: N818
    pass


class _Patience:
    """How long the attempt at hand may go on."""

    def __init__(self) -> None:
        self._end = 0.0
        self._stop = threading.Event()

    def begin(self, timeout_s: float, stop: threading.Event) -> None:
        self._end = time.monotonic() + timeout_s
        self._stop = stop

    def left(self) -> float:
        """Seconds left, more than none.

        Raises:
            _Stopped: the stop event is set.
            _Expired: nothing is left.
        """
        if self._stop.is_set():
            raise _Stopped
        left = self._end - time.monotonic()
        if left <= 0:
            raise _Expired
        return left

    def wait(self, sock: socket.socket, event: int) -> None:
        """Return when the socket can be read or written."""
        poll = select.poll()
        poll.register(sock.fileno(), event)
        while not poll.poll(min(_SLICE_S, self.left()) * 1000):
            pass
        sock.settimeout(self.left())


class _PatientReader(io.RawIOBase):
    """The raw side of a response."""

    def __init__(self, sock: socket.socket, patience: _Patience) -> None:
        super().__init__()
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._patience = patience

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        # What TLS has already decrypted is no longer in the kernel's socket.
        if not (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()):
            self._patience.wait(self._sock, select.POLLIN)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _ResponseSocket:
    """What ``http.client`` needs of a socket to read a response from it."""

    def __init__(self, sock: socket.socket, patience: _Patience) -> None:
        self._sock = sock
        self._patience = patience

    def settimeout(self, value: float | None) -> None:
        self._sock.settimeout(value)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_PatientReader(self._sock, self._patience), 1 << 16)

    def close(self) -> None:
        self._sock.close()  # in truth when the last file made of it is closed


def _patient_pool(pool: type[HTTPConnectionPool], base: type[HTTPConnection], patience: _Patience) -> Any:  # noqa: ANN401
    """A pool class whose connections wait patiently."""

    class Connection(base):  # type: ignore[misc, valid-type]
        sock: Any

        def send(self, data: ReadableBuffer) -> None:
            if self.sock is None:
                self.connect()
            view = memoryview(data).cast("B")
            for start in range(0, len(view), _CHUNK_BYTES):
                patience.wait(self.sock, select.POLLOUT)
                super().send(view[start : start + _CHUNK_BYTES])

        def getresponse(self) -> Any:  # noqa: ANN401
            sock = self.sock
            self.sock = _ResponseSocket(sock, patience)
            try:
                return super().getresponse()
            finally:
                # Closed meanwhile (``Connection: close``): the response alone holds it.
                if self.sock is not None:
                    self.sock = sock

    return type("PatientPool", (pool,), {"ConnectionCls": Connection})


def signal_url(endpoint: str, signal: Signal) -> str:
    """Where a signal of a general endpoint goes: ``/v1/metrics`` or ``/v1/logs`` behind its path.

    Raises:
        ExportError: it is no http or https URL of a host.
    """
    try:
        url = parse_url(endpoint)
    except LocationParseError as cause:
        raise ExportError(
            f"otlp endpoint {endpoint!r}: not a URL; write it like 'https://collector.example:4318'",
            code="otlp.endpoint",
        ) from cause
    if url.scheme not in ("http", "https") or not url.host:
        raise ExportError(
            f"otlp endpoint {endpoint!r}: needs scheme http or https and a host; write it like "
            "'https://collector.example:4318'",
            code="otlp.endpoint",
        )
    if url.auth or url.query or url.fragment:
        raise ExportError(
            f"otlp endpoint of host {url.host!r}: has a user, query or fragment; put credentials into headers",
            code="otlp.endpoint",
        )
    path = f"{(url.path or '').rstrip('/')}/v1/{signal}"
    return Url(scheme=url.scheme, host=url.host, port=url.port, path=path).url


def retry_after_s(value: str | None, *, now: datetime | None = None) -> float | None:
    """Read a ``Retry-After`` header: seconds or a date; None if it is neither. At most an hour."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value), _RETRY_AFTER_MAX_S)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = (moment - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), _RETRY_AFTER_MAX_S)


def _one_line(text: str) -> str:
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= _MESSAGE_LIMIT else line[: _MESSAGE_LIMIT - 1] + "…"


def _reason(error: BaseException) -> str:
    """What the operating system or OpenSSL said at the bottom of a chain of wrappers."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ssl.SSLCertVerificationError):
            return f"certificate is refused: {link.verify_message}"
        if isinstance(link, OSError) and link.strerror:
            return _one_line(link.strerror)
        link = link.__cause__ or link.__context__
    return _one_line(str(error))


def _tls_context(config: OtlpConfig) -> ssl.SSLContext:
    name = ""
    try:
        name = config.ca_file
        context = ssl.create_default_context(cafile=config.ca_file or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        name = config.cert_file or config.key_file
        if config.cert_file:
            context.load_cert_chain(config.cert_file, config.key_file or None)
        elif config.key_file:
            raise ExportError(f"otlp key_file {name!r}: needs cert_file beside it", code="otlp.tls")
    except (OSError, ssl.SSLError) as cause:
        reason = cause.strerror if isinstance(cause, FileNotFoundError | PermissionError) else _one_line(str(cause))
        raise ExportError(f"otlp TLS file {name!r}: {reason}; needs a readable PEM file", code="otlp.tls") from cause
    return context


class OtlpSender:
    """Posts one signal's requests to the configured receiver.

    For one thread at a time, except :attr:`account`.

    Args:
        config: Endpoint, headers, limits and TLS files. Certificates are read again when their files change.
        signal: Which path, and which answer to expect.
        uniform: Gives the jitter; ``random.uniform`` if not given.

    Raises:
        ExportError: the configuration cannot work: endpoint, protocol, or a TLS file.
    """

    def __init__(
        self, config: OtlpConfig, signal: Signal, *, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        if config.protocol != "http/protobuf":
            raise ExportError(
                f"otlp protocol is {config.protocol!r}; this version speaks 'http/protobuf'", code="otlp.protocol"
            )
        if config.compression not in ("gzip", "none", ""):
            raise ExportError(
                f"otlp compression is {config.compression!r}; must be 'gzip' or 'none'", code="otlp.compression"
            )
        self.url = signal_url(config.endpoint, signal)
        self._config = config
        self._signal = signal
        self._uniform = uniform
        self._gzip = config.compression == "gzip"
        self._patience = _Patience()
        self._lock = threading.Lock()
        self._account = Account()
        self._files = tuple(Path(name) for name in (config.ca_file, config.cert_file, config.key_file) if name)
        self._versions: tuple[tuple[int, int, int], ...] = ()
        self._manager = self._connect_anew()
        self._headers = {
            "User-Agent": "skep",
            **{name: value for name, value in config.headers.items() if name.lower() not in ("content-length", "host")},
            "Content-Type": CONTENT_TYPE,
            **({"Content-Encoding": "gzip"} if self._gzip else {}),
        }

    @property
    def account(self) -> Account:
        """Totals since the start; may be read from any thread."""
        with self._lock:
            return self._account

    def close(self) -> None:
        """Close idle connections."""
        self._manager.clear()

    def post(self, body: bytes, *, stop: threading.Event) -> Outcome:
        """Make one attempt, within the configured timeout.

        Returns promptly when ``stop`` is set, but for the time a name look-up and a
        connect may take (5 s). Never raises for what the network or the receiver does.
        """
        return self._attempt(self._encode(body), stop)

    def send(self, body: bytes, *, items: int, stop: threading.Event, deadline_s: float) -> Outcome:
        """Make attempts until there is a final answer, ``stop`` is set, or ``deadline_s`` seconds have passed.

        The last attempt may begin just before the deadline. Every item ends in :attr:`account`.

        Args:
            body: A serialized export request.
            items: Data points or log records in it.
            stop: Ends the waiting at once.
            deadline_s: A retry that could not begin before it is not waited for.
        """
        encoded = self._encode(body)
        end = time.monotonic() + deadline_s
        attempt = 0
        while True:
            outcome = self._attempt(encoded, stop)
            if not outcome.retryable:
                break
            jitter = self._uniform(0.0, min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2.0**attempt))
            pause = max(jitter, outcome.retry_after_s or 0.0)
            if time.monotonic() + pause >= end or stop.wait(pause):
                break
            attempt += 1
        self.settle(outcome, items)
        return outcome

    def settle(self, outcome: Outcome, items: int) -> None:
        """Book the items of a request posted by :meth:`post` whose outcome is final."""
        rejected = min(outcome.rejected_items, items) if outcome.accepted else 0
        with self._lock:
            was = self._account
            self._account = Account(
                accepted=was.accepted + (items - rejected if outcome.accepted else 0),
                rejected=was.rejected + (items if outcome.verdict is Verdict.REJECTED else rejected),
                failed=was.failed + (items if outcome.verdict in (Verdict.UNAVAILABLE, Verdict.STOPPED) else 0),
                requests=was.requests,
                sent_bytes=was.sent_bytes,
            )

    def _encode(self, body: bytes) -> bytes:
        if not self._gzip:
            return body
        # Level 1 costs a tenth of level 9 and gives nine bytes a point instead of eight (measured).
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        return packer.compress(body) + packer.flush()

    def _attempt(self, encoded: bytes, stop: threading.Event) -> Outcome:
        outcome = self._exchange(encoded, stop)
        cause = outcome.cause or "ok"
        with self._lock:
            was = self._account
            requests = {**was.requests, cause: was.requests.get(cause, 0) + 1}
            self._account = Account(was.accepted, was.rejected, was.failed, requests, was.sent_bytes + len(encoded))
        return outcome

    def _exchange(self, encoded: bytes, stop: threading.Event) -> Outcome:
        timeout_s = self._config.timeout_s
        self._patience.begin(timeout_s, stop)
        response = None
        try:
            self._refresh()
            left = self._patience.left()
            response = self._manager.urlopen(
                "POST",
                self.url,
                body=encoded,
                headers=self._headers,
                redirect=False,
                retries=False,
                timeout=Timeout(connect=min(_CONNECT_TIMEOUT_S, left), read=left),
                preload_content=False,
                decode_content=False,
            )
            return self._judge(response)
        except _Stopped:
            return Outcome(Verdict.STOPPED, message="stopped before the receiver answered", cause="stopped")
        except ExportError as error:
            return Outcome(Verdict.UNAVAILABLE, message=str(error), cause="tls")
        except (urllib3.exceptions.SSLError, ssl.SSLError) as error:
            return Outcome(Verdict.UNAVAILABLE, message=f"TLS with {self._place}: {_reason(error)}", cause="tls")
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
            return Outcome(
                Verdict.UNAVAILABLE, message=f"cannot connect to {self._place}: {_reason(error)}", cause="connect"
            )
        except (_Expired, TimeoutError, urllib3.exceptions.TimeoutError):
            return Outcome(
                Verdict.UNAVAILABLE, message=f"no answer from {self._place} in {timeout_s:g} s", cause="timeout"
            )
        except (HTTPError, OSError) as error:
            return Outcome(
                Verdict.UNAVAILABLE, message=f"connection to {self._place}: {_reason(error)}", cause="connect"
            )
        finally:
            if response is not None:
                response.close()  # read to its end, the connection is back in its pool and stays open

    @property
    def _place(self) -> str:
        return repr(parse_url(self.url).netloc)

    def _judge(self, response: urllib3.BaseHTTPResponse) -> Outcome:
        status = response.status
        if 200 <= status < 300:
            return self._success(status, self._read(response, RESPONSE_LIMIT_BYTES))
        if 300 <= status < 400:
            location = _one_line(response.headers.get("Location", ""))
            message = f"{self._place} redirects to {location!r}; name the final address as endpoint"
            return Outcome(Verdict.REJECTED, status, message=message, cause="redirect")
        retry_after = retry_after_s(response.headers.get("Retry-After"))
        said = self._error_text(response)
        message = f"{self._place} answers {status}{': ' + said if said else ''}"
        verdict = Verdict.UNAVAILABLE if status in _RETRYABLE_STATUSES else Verdict.REJECTED
        return Outcome(verdict, status, retry_after_s=retry_after, message=message, cause=f"http_{status}")

    def _success(self, status: int, answer: bytes | None) -> Outcome:
        """An accepted request, with what its ``partial_success`` says."""
        if answer is None:
            return Outcome(
                Verdict.ACCEPTED, status, message=f"answer of {self._place} is longer than {RESPONSE_LIMIT_BYTES} bytes"
            )
        try:
            if self._signal == "metrics":
                of_metrics = metrics_service_pb2.ExportMetricsServiceResponse.FromString(answer).partial_success
                rejected, said = of_metrics.rejected_data_points, of_metrics.error_message
            else:
                of_logs = logs_service_pb2.ExportLogsServiceResponse.FromString(answer).partial_success
                rejected, said = of_logs.rejected_log_records, of_logs.error_message
        except DecodeError:
            return Outcome(Verdict.ACCEPTED, status, message=f"answer of {self._place} is not OTLP")
        rejected = max(0, rejected)
        return Outcome(
            Verdict.ACCEPTED,
            status,
            rejected_items=rejected,
            message=_one_line(said),
            cause="partial" if rejected else "",
        )

    def _error_text(self, response: urllib3.BaseHTTPResponse) -> str:
        """The message of an error's ``google.rpc.Status``, or what text there is; never an error of its own."""
        try:
            answer = self._read(response, _ERROR_LIMIT_BYTES) or b""
        except (HTTPError, OSError, _Expired, _Stopped):
            return ""
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == CONTENT_TYPE:
            try:
                return _one_line(status_pb2.Status.FromString(answer).message)
            except DecodeError:
                return ""
        return _one_line(answer.decode("utf-8", "replace")) if kind in ("text/plain", "application/json") else ""

    def _read(self, response: urllib3.BaseHTTPResponse, limit_bytes: int) -> bytes | None:
        """The whole body, or None if it is longer than the limit."""
        answer = bytearray()
        while len(answer) <= limit_bytes:
            chunk = response.read(min(1 << 16, limit_bytes + 1 - len(answer)))
            if not chunk:
                return bytes(answer)
            answer += chunk
        return None

    def _file_versions(self) -> tuple[tuple[int, int, int], ...]:
        versions = []
        for path in self._files:
            try:
                info = path.stat()
            except OSError:
                versions.append((0, 0, 0))
            else:
                versions.append((info.st_ino, info.st_mtime_ns, info.st_size))
        return tuple(versions)

    def _connect_anew(self) -> urllib3.PoolManager:
        versions = self._file_versions()
        secure = self.url.startswith("https:")
        tls: dict[str, Any] = {"ssl_context": _tls_context(self._config)} if secure else {}
        # The environment's proxy and no_proxy, as curl and every other agent on the host would use them.
        proxy = select_proxy(self.url, get_environ_proxies(self.url))
        manager = urllib3.ProxyManager(proxy, **tls) if proxy else urllib3.PoolManager(**tls)
        manager.pool_classes_by_scheme = {
            "http": _patient_pool(HTTPConnectionPool, HTTPConnection, self._patience),
            "https": _patient_pool(HTTPSConnectionPool, cast("type[HTTPConnection]", HTTPSConnection), self._patience),
        }
        self._versions = versions
        return manager

    def _refresh(self) -> None:
        """Take renewed certificates; half-written ones are an error of this attempt, and tried again at the next."""
        if self._files and self._file_versions() != self._versions:
            fresh = self._connect_anew()
            self._manager.clear()
            self._manager = fresh
