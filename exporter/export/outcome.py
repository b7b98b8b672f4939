"""What became of a request, whatever carried it; and what both transports need for it."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

from exporter.config import OtlpConfig
from exporter.errors import ExportError

Signal = Literal["metrics", "logs"]

RESPONSE_LIMIT_BYTES = 4 << 20
"""A receiver's answer beyond this is not read (protocol specification, "OTLP/HTTP Response")."""

RETRY_AFTER_MAX_S = 3600.0
"""A receiver that asks for more is asked again after this long."""

_MESSAGE_LIMIT = 300


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
        status: Of HTTP or gRPC; 0 without an answer, and of gRPC's OK.
        rejected_items: Of an accepted request: data points or log records the receiver refused.
        retry_after_s: When to come back, if the receiver said so.
        message: One line for a log; of the receiver where it sent one.
        cause: Few and stable, for a metric's attribute: ``""`` when accepted in full, else ``partial``,
            ``http_STATUS``, ``grpc_STATUS``, ``redirect``, ``timeout``, ``connect``, ``tls``, ``retry_after``
            (no attempt was made), ``stopped``.
        too_large: Of a rejected request: in smaller parts it may be accepted.
    """

    verdict: Verdict
    status: int = 0
    rejected_items: int = 0
    retry_after_s: float | None = None
    message: str = ""
    cause: str = ""
    too_large: bool = False

    @property
    def accepted(self) -> bool:
        """Whether the receiver has it."""
        return self.verdict is Verdict.ACCEPTED

    @property
    def retryable(self) -> bool:
        """Whether the same bytes may be sent again."""
        return self.verdict is Verdict.UNAVAILABLE


def stopped() -> Outcome:
    """We were told to stop."""
    return Outcome(Verdict.STOPPED, message="stopped before the receiver answered", cause="stopped")


def success(signal: Signal, status: int, answer: bytes, place: str) -> Outcome:
    """Read the answer to a request that was accepted, with what its ``partial_success`` says."""
    try:
        if signal == "metrics":
            of_metrics = metrics_service_pb2.ExportMetricsServiceResponse.FromString(answer).partial_success
            rejected, said = of_metrics.rejected_data_points, of_metrics.error_message
        else:
            of_logs = logs_service_pb2.ExportLogsServiceResponse.FromString(answer).partial_success
            rejected, said = of_logs.rejected_log_records, of_logs.error_message
    except DecodeError:
        return Outcome(Verdict.ACCEPTED, status, message=f"answer of {place} is not OTLP")
    rejected = max(0, rejected)
    return Outcome(
        Verdict.ACCEPTED,
        status,
        rejected_items=rejected,
        message=one_line(said),
        cause="partial" if rejected else "",
    )


def one_line(text: str) -> str:
    """Make a log line's value of whatever a receiver said."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= _MESSAGE_LIMIT else line[: _MESSAGE_LIMIT - 1] + "…"


class TlsFiles:
    """The TLS files of a configuration, and whether they are still those that were read.

    Raises:
        ExportError: a key without its certificate.
    """

    def __init__(self, config: OtlpConfig) -> None:
        if config.key_file and not config.cert_file:
            raise ExportError(f"otlp key_file {config.key_file!r}: needs cert_file beside it", code="otlp.tls")
        self._files = tuple(Path(name) for name in (config.ca_file, config.cert_file, config.key_file) if name)
        self._read: tuple[tuple[int, int, int], ...] = ()

    def versions(self) -> tuple[tuple[int, int, int], ...]:
        """Tell each file's present version; take it before the files are read."""
        return tuple(_versions(self._files))

    def note(self, versions: tuple[tuple[int, int, int], ...]) -> None:
        """Remember the versions that were read."""
        self._read = versions

    @property
    def changed(self) -> bool:
        """Whether a file is another one than was read."""
        return bool(self._files) and self.versions() != self._read


def _versions(files: Iterable[Path]) -> Iterable[tuple[int, int, int]]:
    for path in files:
        try:
            info = path.stat()
        except OSError:
            yield (0, 0, 0)
        else:
            yield (info.st_ino, info.st_mtime_ns, info.st_size)
