"""OTLP over gRPC: one unary call for each attempt, its bytes already encoded.

Imported only when configured: grpcio is 16 MB of memory. Messages pass through it as
they are (no serializer); its own retries are off, since it would neither count
attempts nor honour a receiver's wish between two of ours.

Source: OpenTelemetry protocol specification, "OTLP/gRPC"; ``google/rpc/error_details.proto``.
"""

from __future__ import annotations

import os
import re
import ssl
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Its core writes every failed connection to stderr; what failed is in the outcome.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

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

METHODS = {
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}

_RETRYABLE = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
_STATUS_DETAILS = "grpc-status-details-bin"
_METADATA_KEY = re.compile(r"[0-9a-z_.-]+")
# What gRPC implementations say of a message beyond their limit, in words only: it has no status of its own.
_TOO_LARGE = re.compile(r"larger than max|too large|message size", re.IGNORECASE)
_TLS_TROUBLE = re.compile(r"ssl|tls|handshake|certificate", re.IGNORECASE)
_NO_CONNECTION = re.compile(
    r"failed to connect|connection refused|connection reset|socket closed|dns|resol|unreachable", re.IGNORECASE
)
_SLICE_S = 0.2
_RECONNECT_MAX_MS = 5000

# Where distributions keep the certificates that OpenSSL trusts; grpcio brings a list of its own instead.
_SYSTEM_CAS = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")


def grpc_target(endpoint: str, *, insecure: bool) -> tuple[str, bool]:
    """Give gRPC's name of an endpoint, and whether it is spoken to with TLS.

    Args:
        endpoint: ``https://host:port``, ``http://host:port`` or ``host:port``; a path does not count.
        insecure: Whether one without a scheme is spoken to without TLS.

    Raises:
        ExportError: it is none of these.
    """
    scheme, separator, rest = endpoint.partition("://")
    if not separator:
        scheme, rest = ("http" if insecure else "https"), endpoint
    try:
        url = urlsplit(f"{scheme}://{rest}")
        port = url.port
    except ValueError as cause:
        raise _wrong_endpoint(endpoint) from cause
    if url.username is not None or url.password is not None:
        raise ExportError(
            f"otlp endpoint of host {url.hostname!r}: has a user; put credentials into headers", code="otlp.endpoint"
        )
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
        raise _wrong_endpoint(endpoint)
    secure = url.scheme == "https"
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{host}:{port or (443 if secure else 80)}", secure


def _wrong_endpoint(endpoint: str) -> ExportError:
    return ExportError(
        f"otlp endpoint {endpoint!r}: not an endpoint of gRPC; write it like 'https://collector.example:4317'",
        code="otlp.endpoint",
    )


def _metadata(config: OtlpConfig) -> tuple[tuple[str, str | bytes], ...]:
    """Headers as gRPC takes them: names in lower case, values of ``…-bin`` as bytes."""
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in config.headers.items():
        key = name.lower()
        if not _METADATA_KEY.fullmatch(key) or key.startswith("grpc-"):
            raise ExportError(
                f"otlp header {name!r}: gRPC takes letters, digits, '_', '-' and '.', and keeps 'grpc-…' for itself",
                code="otlp.headers",
            )
        if not value.isascii() or not value.isprintable():
            raise ExportError(f"otlp header {name!r}: its value is not printable ASCII", code="otlp.headers")
        metadata.append((key, value.encode() if key.endswith("-bin") else value))
    return tuple(metadata)


def _read(name: str) -> bytes | None:
    if not name:
        return None
    try:
        content = Path(name).read_bytes()
    except OSError as cause:
        raise ExportError(
            f"otlp TLS file {name!r}: {cause.strerror}; needs a readable PEM file", code="otlp.tls"
        ) from cause
    if b"-----BEGIN " not in content or b"-----END " not in content:
        raise ExportError(f"otlp TLS file {name!r}: holds no PEM; needs a readable PEM file", code="otlp.tls")
    return content


def _system_cas() -> bytes | None:
    for name in (ssl.get_default_verify_paths().cafile, *_SYSTEM_CAS):
        if name and Path(name).is_file():
            return Path(name).read_bytes()
    return None


class GrpcTransport:
    """Carries one signal's requests to one gRPC service; for one thread at a time.

    Raises:
        ExportError: the endpoint, a header or a TLS file cannot be used.
    """

    def __init__(self, config: OtlpConfig, signal: Signal) -> None:
        self._target, self._secure = grpc_target(config.endpoint, insecure=config.insecure)
        self.url = f"{'https' if self._secure else 'http'}://{self._target}"
        self._config = config
        self._signal = signal
        self._metadata = _metadata(config)
        self._compression = grpc.Compression.Gzip if config.compression == "gzip" else grpc.Compression.NoCompression
        self._files = TlsFiles(config)
        self._channel = self._connect_anew()
        self._call = self._method()

    def prepare(self, body: bytes) -> bytes:
        """Compression is gRPC's own."""
        return body

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def exchange(self, prepared: bytes, stop: threading.Event) -> Outcome:
        """Make one attempt. Never raises for what the network or the receiver does."""
        if stop.is_set():
            return stopped()
        try:
            self._refresh()
        except ExportError as error:
            return Outcome(Verdict.UNAVAILABLE, message=str(error), cause="tls")
        call = self._call.future(
            prepared, timeout=self._config.timeout_s, metadata=self._metadata, compression=self._compression
        )
        while True:
            try:
                answer = call.result(timeout=_SLICE_S)
            except grpc.FutureTimeoutError:
                if stop.is_set():
                    call.cancel()
                    return stopped()
            except grpc.FutureCancelledError:
                return Outcome(Verdict.UNAVAILABLE, message=f"call of {self._place} was cancelled", cause="connect")
            except grpc.RpcError as error:
                return self._judge(error)
            else:
                return success(self._signal, 0, answer, self._place)

    @property
    def _place(self) -> str:
        return repr(self._target)

    def _judge(self, error: Any) -> Outcome:  # noqa: ANN401 - grpcio has no types
        code: grpc.StatusCode = error.code()
        said = one_line(error.details() or "")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            message = f"no answer from {self._place} in {self._config.timeout_s:g} s"
            return Outcome(Verdict.UNAVAILABLE, code.value[0], message=message, cause="timeout")
        retry_after_s = _retry_info_s(error.trailing_metadata() or ())
        # Without RetryInfo nothing says that resources will ever come back (specification, "OTLP/gRPC Throttling").
        exhausted = code is grpc.StatusCode.RESOURCE_EXHAUSTED
        retryable = code in _RETRYABLE or (exhausted and retry_after_s is not None)
        cause = f"grpc_{code.name.lower()}"
        if code is grpc.StatusCode.UNAVAILABLE and retry_after_s is None:
            cause = "tls" if _TLS_TROUBLE.search(said) else "connect" if _NO_CONNECTION.search(said) else cause
        return Outcome(
            Verdict.UNAVAILABLE if retryable else Verdict.REJECTED,
            code.value[0],
            retry_after_s=retry_after_s if retryable else None,
            message=f"{self._place} answers {code.name}{': ' + said if said else ''}",
            cause=cause,
            too_large=exhausted and not retryable and bool(_TOO_LARGE.search(said)),
        )

    def _connect_anew(self) -> Any:  # noqa: ANN401
        versions = self._files.versions()
        options = [
            ("grpc.primary_user_agent", "skep"),
            ("grpc.enable_retries", 0),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", RESPONSE_LIMIT_BYTES),
            # After a failure it tries again as often as we do; the wait between attempts is ours.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", _RECONNECT_MAX_MS),
            # Two signals of one configuration share no connection: each has its own limits.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self._secure:
            config = self._config
            credentials = grpc.ssl_channel_credentials(
                _read(config.ca_file) or _system_cas(), _read(config.key_file or ""), _read(config.cert_file)
            )
            channel = grpc.secure_channel(self._target, credentials, options=options)
        else:
            channel = grpc.insecure_channel(self._target, options=options)
        self._files.note(versions)
        return channel

    def _method(self) -> Any:  # noqa: ANN401
        return self._channel.unary_unary(METHODS[self._signal], request_serializer=None, response_deserializer=None)

    def _refresh(self) -> None:
        """Take renewed certificates; half-written ones are an error of this attempt, and tried again at the next."""
        if self._secure and self._files.changed:
            fresh = self._connect_anew()
            self._channel.close()
            self._channel = fresh
            self._call = self._method()


def _retry_info_s(metadata: Iterable[tuple[str, str | bytes]]) -> float | None:
    """Read the delay of a ``google.rpc.RetryInfo`` in the details of a status; None without one."""
    for key, value in metadata:
        if key != _STATUS_DETAILS or not isinstance(value, bytes):
            continue
        try:
            details = status_pb2.Status.FromString(value).details
            for detail in details:
                info = error_details_pb2.RetryInfo()
                if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
                    seconds: float = info.retry_delay.seconds + info.retry_delay.nanos / 1e9
                    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S)
        except DecodeError:
            return None
    return None
