"""OTLP over HTTP: one POST for each attempt.

An attempt has one time limit that covers connecting, sending and
the whole answer: a receiver that sends a byte now and then does not get more.
Sockets are urllib3's; before each read and write the connection waits in short
slices and asks the clock and the stop event. Redirects are not followed and are no
success (the body would go where nobody configured).

Source: OpenTelemetry protocol specification, "OTLP/HTTP".
"""

from __future__ import annotations

import email.utils
import io
import select
import socket
import ssl
import threading
import time
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import urllib3
from google.protobuf.message import DecodeError
from google.rpc import status_pb2  # type: ignore[import-untyped]
from requests.utils import get_environ_proxies, select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Timeout, Url, parse_url

from exporter.config import OtlpConfig
from exporter.errors import ExportError

from .outcome import (
    RESPONSE_LIMIT_BYTES,
    RETRY_AFTER_MAX_S,
    Outcome,
    Signal,
    TlsFiles,
    Verdict,
    one_line,
    stopped,
    success,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

CONTENT_TYPE = "application/x-protobuf"

_RETRYABLE_STATUSES = frozenset({429, 502, 503, 504})
_TOO_LARGE = 413
_ERROR_LIMIT_BYTES = 64 << 10
_CONNECT_TIMEOUT_S = 5.0
_SLICE_S = 0.2
_CHUNK_BYTES = 16 << 10


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


def signal_url(endpoint: str, signal: Signal, *, whole: bool = False) -> str:
    """Where a signal goes: ``/v1/metrics`` or ``/v1/logs`` behind the path of a general endpoint.

    Args:
        endpoint: An http or https URL.
        signal: What goes there.
        whole: The endpoint is of this signal alone, and nothing is appended.

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
    path = url.path or "/"
    if not whole:
        path = f"{path.rstrip('/')}/v1/{signal}"
    return Url(scheme=url.scheme, host=url.host, port=url.port, path=path).url


def retry_after_s(value: str | None, *, now: datetime | None = None) -> float | None:
    """Read a ``Retry-After`` header: seconds or a date; None if it is neither. At most an hour."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value), RETRY_AFTER_MAX_S)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = (moment - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S)


def _reason(error: BaseException) -> str:
    """What the operating system or OpenSSL said at the bottom of a chain of wrappers."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ssl.SSLCertVerificationError):
            return f"certificate is refused: {link.verify_message}"
        if isinstance(link, OSError) and link.strerror:
            return one_line(link.strerror)
        link = link.__cause__ or link.__context__
    return one_line(str(error))


def _tls_context(config: OtlpConfig) -> ssl.SSLContext:
    name = ""
    try:
        name = config.ca_file
        context = ssl.create_default_context(cafile=config.ca_file or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        name = config.cert_file or config.key_file
        if config.cert_file:
            context.load_cert_chain(config.cert_file, config.key_file or None)
    except (OSError, ssl.SSLError) as cause:
        reason = cause.strerror if isinstance(cause, FileNotFoundError | PermissionError) else one_line(str(cause))
        raise ExportError(f"otlp TLS file {name!r}: {reason}; needs a readable PEM file", code="otlp.tls") from cause
    return context


class HttpTransport:
    """Carries one signal's requests to one URL; for one thread at a time.

    Raises:
        ExportError: the endpoint is no URL of a host, or a TLS file cannot be used.
    """

    def __init__(self, config: OtlpConfig, signal: Signal) -> None:
        self.url = signal_url(config.endpoint, signal, whole=config.endpoint_is_whole)
        self._config = config
        self._signal = signal
        self._gzip = config.compression == "gzip"
        self._patience = _Patience()
        self._files = TlsFiles(config)
        self._manager = self._connect_anew()
        self._headers = {
            "User-Agent": "skep",
            **{name: value for name, value in config.headers.items() if name.lower() not in ("content-length", "host")},
            "Content-Type": CONTENT_TYPE,
            **({"Content-Encoding": "gzip"} if self._gzip else {}),
        }

    def close(self) -> None:
        """Close idle connections."""
        self._manager.clear()

    def prepare(self, body: bytes) -> bytes:
        """Make what goes out, once for all attempts."""
        if not self._gzip:
            return body
        # Level 1 costs a tenth of level 9 and gives nine bytes a point instead of eight (measured).
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        return packer.compress(body) + packer.flush()

    def exchange(self, prepared: bytes, stop: threading.Event) -> Outcome:
        """Make one attempt. Never raises for what the network or the receiver does."""
        timeout_s = self._config.timeout_s
        self._patience.begin(timeout_s, stop)
        response = None
        try:
            self._refresh()
            left = self._patience.left()
            response = self._manager.urlopen(
                "POST",
                self.url,
                body=prepared,
                headers=self._headers,
                redirect=False,
                retries=False,
                timeout=Timeout(connect=min(_CONNECT_TIMEOUT_S, left), read=left),
                preload_content=False,
                decode_content=False,
            )
            return self._judge(response)
        except _Stopped:
            return stopped()
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
            answer = self._read(response, RESPONSE_LIMIT_BYTES)
            if answer is None:
                said = f"answer of {self._place} is longer than {RESPONSE_LIMIT_BYTES} bytes"
                return Outcome(Verdict.ACCEPTED, status, message=said)
            return success(self._signal, status, answer, self._place)
        if 300 <= status < 400:
            location = one_line(response.headers.get("Location", ""))
            message = f"{self._place} redirects to {location!r}; name the final address as endpoint"
            return Outcome(Verdict.REJECTED, status, message=message, cause="redirect")
        retry_after = retry_after_s(response.headers.get("Retry-After"))
        said = self._error_text(response)
        message = f"{self._place} answers {status}{': ' + said if said else ''}"
        verdict = Verdict.UNAVAILABLE if status in _RETRYABLE_STATUSES else Verdict.REJECTED
        return Outcome(
            verdict,
            status,
            retry_after_s=retry_after,
            message=message,
            cause=f"http_{status}",
            too_large=status == _TOO_LARGE,
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
                return one_line(status_pb2.Status.FromString(answer).message)
            except DecodeError:
                return ""
        return one_line(answer.decode("utf-8", "replace")) if kind in ("text/plain", "application/json") else ""

    def _read(self, response: urllib3.BaseHTTPResponse, limit_bytes: int) -> bytes | None:
        """The whole body, or None if it is longer than the limit."""
        answer = bytearray()
        while len(answer) <= limit_bytes:
            chunk = response.read(min(1 << 16, limit_bytes + 1 - len(answer)))
            if not chunk:
                return bytes(answer)
            answer += chunk
        return None

    def _connect_anew(self) -> urllib3.PoolManager:
        versions = self._files.versions()
        secure = self.url.startswith("https:")
        tls: dict[str, Any] = {"ssl_context": _tls_context(self._config)} if secure else {}
        # The environment's proxy and no_proxy, as curl and every other agent on the host would use them.
        proxy = select_proxy(self.url, get_environ_proxies(self.url))
        manager = urllib3.ProxyManager(proxy, **tls) if proxy else urllib3.PoolManager(**tls)
        manager.pool_classes_by_scheme = {
            "http": _patient_pool(HTTPConnectionPool, HTTPConnection, self._patience),
            "https": _patient_pool(HTTPSConnectionPool, cast("type[HTTPConnection]", HTTPSConnection), self._patience),
        }
        self._files.note(versions)
        return manager

    def _refresh(self) -> None:
        """Take renewed certificates; half-written ones are an error of this attempt, and tried again at the next."""
        if self._files.changed:
            fresh = self._connect_anew()
            self._manager.clear()
            self._manager = fresh
