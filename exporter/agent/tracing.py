"""Spans of the agent's own work: images on their way up, reloads, scrapes, posts. Off unless it is asked for.

While it is off :func:`span` costs a look at one name and nothing of the SDK's tracing is imported.
Nothing on the way of rows and events is traced, so what is on costs a few spans a scrape, a post and a
change. Spans are made by the OpenTelemetry SDK (which reads ``OTEL_TRACES_SAMPLER`` and the limits itself),
gathered in its own thread and posted by its exporters; here is what these do not do: say once what goes wrong,
account for every span, and end in time.
"""

# ruff: noqa: PLC0415 - the SDK's tracing and its exporters are 15 MB that only those carry who want spans

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from exporter.errors import ExportError, SkepError
from exporter.export.account import Account

from . import log

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span, Tracer

    from exporter.config import OtlpConfig
    from exporter.model import Resource


class _Current:
    """What makes spans now; None while nobody wants any."""

    tracer: Tracer | None = None


Attribute = str | int | float | bool


class Note:
    """What is said of a piece of work while it is done."""

    __slots__ = ("_span",)

    def __init__(self, span: Span | None) -> None:
        self._span = span

    def set(self, **attributes: Attribute) -> None:
        """Add attributes; ``skep.`` is put before their names."""
        if self._span is not None:
            for name, value in attributes.items():
                self._span.set_attribute(f"skep.{name}", value)

    def fail(self, code: str, message: str) -> None:
        """It did not succeed."""
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_attribute("error.type", code)
            self._span.set_status(Status(StatusCode.ERROR, message))


_NOTHING = Note(None)


@contextlib.contextmanager
def span(name: str, **attributes: Attribute) -> Iterator[Note]:
    """A span over the block, below the one that is open in this thread; an exception makes it an error.

    Args:
        name: What is done, without what it is done to.
        attributes: What it is done to; ``skep.`` is put before their names.
    """
    tracer = _Current.tracer
    if tracer is None:
        yield _NOTHING
        return
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as opened:
        note = Note(opened)
        note.set(**attributes)
        try:
            yield note
        except SkepError as error:
            note.fail(error.code, str(error))
            raise
        except BaseException as error:
            note.fail(type(error).__name__, str(error))
            raise


def past(name: str, began_s: float, ended_s: float) -> None:
    """A span of what happened elsewhere, in monotonic seconds, below the one that is open in this thread."""
    if _Current.tracer is not None:
        wall_s = time.time() - time.monotonic()
        made = _Current.tracer.start_span(name, start_time=int((wall_s + began_s) * 1e9))
        made.end(end_time=int((wall_s + ended_s) * 1e9))


class Traces:
    """Posts spans to the configured receiver, from :meth:`start` to :meth:`stop`.

    Raises:
        ExportError: the configuration cannot work: endpoint, protocol, a TLS file.
    """

    signal = "traces"

    def __init__(self, config: OtlpConfig, resource: Resource, version: str) -> None:
        from opentelemetry.sdk.resources import Resource as SdkResource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        of_traces = config.of_signal("traces")
        exporter = _exporter(of_traces)
        self._counted = _Counted(exporter, of_traces.endpoint)
        self._processor = BatchSpanProcessor(cast("SpanExporter", self._counted))
        self._provider: TracerProvider = TracerProvider(
            resource=SdkResource(dict(resource.attributes)), shutdown_on_exit=False
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("skep", version)

    def start(self) -> None:
        """Make spans from now on, instead of whoever made them before."""
        _quiet()
        _Current.tracer = self._tracer

    def stop(self, deadline_s: float) -> None:
        """Make none any more and post what there is, for so long at most."""
        if _Current.tracer is self._tracer:
            _Current.tracer = None
        # The SDK's own flush has no deadline; its worker is a daemon, so what it does not end ends with the process.
        ending = threading.Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        ending.start()
        ending.join(max(0.0, deadline_s))
        if ending.is_alive():
            log.warn("traces are lost: their receiver did not take them in time")

    def account(self) -> Account:
        """What became of all spans that were offered so far."""
        return self._counted.account


def _exporter(config: OtlpConfig) -> SpanExporter:
    if config.protocol == "grpc":
        return _grpc_exporter(config)
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    endpoint = config.endpoint if config.endpoint_is_whole else config.endpoint.rstrip("/") + "/v1/traces"
    return OTLPSpanExporter(
        endpoint=endpoint,
        headers=dict(config.headers),
        timeout=config.timeout_s,
        compression=Compression.Gzip if config.compression == "gzip" else Compression.NoCompression,
        certificate_file=config.ca_file or None,
        client_certificate_file=config.cert_file or None,
        client_key_file=config.key_file or None,
    )


def _grpc_exporter(config: OtlpConfig) -> SpanExporter:
    import grpc  # type: ignore[import-untyped]
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    scheme, _, rest = config.endpoint.rpartition("://")
    insecure = scheme == "http" or (not scheme and config.insecure)
    credentials = None
    if not insecure:
        read = [_bytes_of(name) for name in (config.ca_file, config.key_file, config.cert_file)]
        credentials = grpc.ssl_channel_credentials(*read)
    return OTLPSpanExporter(
        endpoint=rest.rstrip("/"),
        insecure=insecure,
        credentials=credentials,
        headers=[(name.lower(), value) for name, value in config.headers.items()],
        timeout=config.timeout_s,
        compression=grpc.Compression.Gzip if config.compression == "gzip" else grpc.Compression.NoCompression,
    )


def _bytes_of(name: str) -> bytes | None:
    if not name:
        return None
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise ExportError(f"otlp traces: {name!r} cannot be read: {error.strerror}", code="otlp.tls") from error


class _Counted:
    """A span exporter, as the SDK calls it, that keeps the account of another and tells of it."""

    def __init__(self, inner: SpanExporter, url: str) -> None:
        self.account = Account()
        self._inner = inner
        self._url = url
        self._repeats = log.Repeats()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        from opentelemetry.sdk.trace.export import SpanExportResult

        began_s = time.monotonic()
        try:
            result, reason = self._inner.export(spans), _said.reason
        except Exception as error:  # of a library: what it could not post is counted all the same
            result, reason = SpanExportResult.FAILURE, repr(error)
        taken = result is SpanExportResult.SUCCESS
        was = self.account.attempted("ok" if taken else "failed", 0, time.monotonic() - began_s)
        self.account = replace(
            was,
            accepted=was.accepted + len(spans) * taken,
            failed=was.failed + len(spans) * (not taken),
        )
        self._tell(taken, reason, len(spans))
        return result

    def _tell(self, taken: bool, reason: str, spans: int) -> None:
        if taken:
            failures = self._repeats.clear("traces")
            if failures:
                log.info("receiver takes data again", signal="traces", url=self._url, after_failures=failures)
            return
        count = self._repeats.count("traces", "failed")
        if count:
            log.warn(
                "receiver is not available",
                signal="traces",
                url=self._url,
                reason=reason,
                items=spans,
                times=count if count > 1 else None,
            )

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _Said(logging.Handler):
    """Keeps the last that the SDK said, for the line that tells of it; attempts and tracebacks are not repeated."""

    reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.reason = " ".join(record.getMessage().split())[:300]


_said = _Said()


def _quiet() -> None:
    """What the SDK logs goes into our lines and not beside them."""
    logger = logging.getLogger("opentelemetry")
    logger.handlers[:] = [_said]
    logger.propagate = False


__all__ = ["Attribute", "Note", "Traces", "past", "span"]
