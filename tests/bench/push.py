"""OTLP: encoding and posting points and events, beside the OpenTelemetry SDK doing the same.

``python -m tests.bench.push`` measures all and prints a table; :func:`measure` gives the figures. Each case runs in a
process of its own and posts, uncompressed where the SDK does, to a sink in another process that reads and says yes.
Times are CPU of the whole process, all threads, medians of repetitions of one run; ``--points`` and ``--events`` pick
sizes.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import socketserver
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import rows

if TYPE_CHECKING:
    from exporter.collect import Frame

ROOT = Path(__file__).parents[2]
NOW_NS = 1_700_000_000_000_000_000
NEVER = threading.Event()

Row = tuple[str, float, str, str | None, float | None]
"""Name, value, unit, what it is compared with, and how many times that."""


# ---- sinks ----


class _Sink(socketserver.StreamRequestHandler):
    """Reads HTTP requests and says 200."""

    def handle(self) -> None:
        while self.rfile.readline():
            length = 0
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            while length > 0:
                length -= len(self.rfile.read(min(length, 1 << 20)))
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n")


def serve(protocol: str) -> None:
    """Serve until stdin closes; prints the port."""
    if protocol == "http":
        http = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Sink)
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, daemon=True).start()
        print(http.server_address[1], flush=True)
        sys.stdin.read()
        return
    import grpc  # type: ignore[import-untyped]

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, _details: object) -> object:
            return grpc.unary_unary_rpc_method_handler(lambda _body, _context: b"")

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=[Handlers()])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(0).wait()


@contextmanager
def sink(protocol: str) -> Iterator[str]:
    """A sink in a process of its own; its endpoint."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.push", "sink", protocol],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin and child.stdout
    try:
        yield f"http://127.0.0.1:{int(child.stdout.readline())}"
    finally:
        child.stdin.close()
        child.wait(10)
        child.stdout.close()


# ---- points ----


def _filled_frame() -> tuple[Frame, Callable[[int, bytes, int], None]]:
    from exporter.collect import Frame, SeriesBudget

    frame = Frame(
        rows.PLAN, scope=rows.SCOPE, resolve=lambda _decoder, _value: "", budget=SeriesBudget(1 << 20), start_ns=NOW_NS
    )

    def fill(count: int, keys: bytes, generation: int) -> None:
        values = struct.pack(f"<{count}Q", *range(generation * 1009, generation * 1009 + 7 * count, 7))
        begin = time.process_time()
        frame.begin(NOW_NS + generation * 10**9)
        frame.apply(keys, values, count, 8, 1)
        frame.finish()
        fill.took_s = time.process_time() - begin  # type: ignore[attr-defined]

    return frame, fill


def skep_points(
    count: int, endpoint: str, repeats: int, *, protocol: str = "http/protobuf", temporality: str = "cumulative",
    compression: str = "none",
) -> list[float]:  # fmt: skip
    """Rows of a map to accepted points."""
    from exporter.config import OtlpConfig
    from exporter.export.metrics import MetricsExport
    from exporter.export.sender import OtlpSender
    from exporter.model import Resource, Snapshot

    config = OtlpConfig(endpoint=endpoint, protocol=protocol, compression=compression, timeout_s=60.0)
    sender = OtlpSender(config, "metrics")
    export = MetricsExport(sender, temporality)
    frame, fill = _filled_frame()
    keys = rows.keys(count)
    samples = []
    for generation in range(repeats + 1):
        fill(count, keys, generation)
        begin = time.process_time()
        export.take(Snapshot(NOW_NS + generation * 10**9, Resource((("service.name", "skep"),)), [frame]))
        export.post(stop=NEVER, deadline_s=60.0)
        samples.append(time.process_time() - begin + fill.took_s)  # type: ignore[attr-defined]
    assert sender.account.accepted == count * (repeats + 1), sender.account
    return samples[1:]


def skep_encode(count: int, _endpoint: str, repeats: int) -> list[float]:
    """Series to request bodies."""
    from exporter.export import otlp
    from exporter.model import Resource, Snapshot

    frame, fill = _filled_frame()
    fill(count, rows.keys(count), 0)
    samples = []
    for _ in range(repeats):
        begin = time.process_time()
        requests = otlp.metrics(Snapshot(NOW_NS, Resource(), [frame]))
        samples.append(time.process_time() - begin)
    assert sum(request.items for request in requests) == count
    return samples


def _sdk_reader(count: int, exporter: Any) -> Any:  # noqa: ANN401 - the SDK's
    from opentelemetry.metrics import Observation
    from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    names = [rule.name for rule in rows.PLAN.labels]
    attributes = [dict(zip(names, values, strict=True)) for values in rows.labels(count)]
    generation = 0

    def observe(_options: object) -> Iterator[Observation]:
        nonlocal generation
        generation += 1
        for index, each in enumerate(attributes):
            yield Observation(generation * 1009 + 7 * index, each)

    reader = PeriodicExportingMetricReader(
        exporter, export_interval_millis=float("inf"), cardinality_limits={ObservableCounter: count + 1}
    )
    provider = MeterProvider([reader], shutdown_on_exit=False)
    meter = provider.get_meter("bench")
    meter.create_observable_counter(rows.INSTRUMENT.name, [observe], rows.INSTRUMENT.unit, rows.INSTRUMENT.description)
    return reader


def sdk_points(count: int, endpoint: str, repeats: int, *, protocol: str = "http/protobuf") -> list[float]:
    """Observations to accepted points, the SDK's way; its limit on series is raised."""
    exporter: Any
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

        # A receiver takes 4 MiB; the SDK splits by points.
        exporter = Grpc(endpoint=endpoint, insecure=True, timeout=60, max_export_batch_size=30_000)
    else:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http

        exporter = Http(endpoint=f"{endpoint}/v1/metrics", timeout=60)
    reader = _sdk_reader(count, exporter)
    samples = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        reader.collect(timeout_millis=120_000)
        samples.append(time.process_time() - begin)
    return samples[1:]


def sdk_encode(count: int, _endpoint: str, repeats: int) -> list[float]:
    """Collected ``MetricsData`` to a request body; collecting is not counted."""
    from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
    from opentelemetry.sdk.metrics.export import (
        InMemoryMetricReader,  # noqa: F401 - same package
        MetricExporter,
        MetricExportResult,
    )

    kept: list[Any] = []

    class Keep(MetricExporter):
        def export(self, metrics_data: object, timeout_millis: float = 0, **_: object) -> MetricExportResult:
            kept[:] = [metrics_data]
            return MetricExportResult.SUCCESS

        def force_flush(self, timeout_millis: float = 0) -> bool:
            return True

        def shutdown(self, timeout_millis: float = 0, **_: object) -> None:
            """Nothing to do."""

    _sdk_reader(count, Keep()).collect(timeout_millis=120_000)
    samples = []
    for _ in range(repeats):
        begin = time.process_time()
        encode_metrics(kept[0]).SerializeToString()
        samples.append(time.process_time() - begin)
    return samples


# ---- events ----

_EVENT = struct.Struct("<QIIIIII")


def skep_events(count: int, endpoint: str, repeats: int, *, protocol: str = "http/protobuf") -> list[float]:
    """Ring records of six attributes to accepted log records."""
    from exporter.collect import RecordDecoder
    from exporter.config import OtlpConfig
    from exporter.export import otlp
    from exporter.export.sender import OtlpSender
    from exporter.model import Resource, Scope
    from exporter.plan.plan import LabelRule, StreamPlan, ValueRule

    names = ("process.pid", "process.parent_pid", "code", "signal", "runtime", "cpu.logical_number")
    plan = StreamPlan(
        map="events", event_name="ebpf.process.exit", record_size=_EVENT.size, time=ValueRule(0, 64), severity=9,
        attributes=tuple(LabelRule(name, "uint", 64 + 32 * index, 32) for index, name in enumerate(names)),
        events_per_s=1 << 40,
    )  # fmt: skip
    scope = Scope("bench")
    decoder = RecordDecoder(plan, scope=scope, resolve=lambda _decoder, _value: "")
    sender = OtlpSender(OtlpConfig(endpoint=endpoint, protocol=protocol, compression="none", timeout_s=60.0), "logs")
    records = b"".join(
        struct.pack("<QII", index, _EVENT.size, 0)
        + _EVENT.pack(index, index, 1, index % 256, 9, index % 1000, index % 64)
        for index in range(count)
    )
    samples = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        batch = decoder.decode(records, now_ns=NOW_NS, realtime_minus_monotonic_ns=NOW_NS, otlp=True, json=False)
        for request in otlp.logs(Resource((("service.name", "skep"),)), [(scope, batch.otlp)], 1 << 20):
            assert sender.send(request.body, items=request.items, stop=NEVER, deadline_s=60.0).accepted
        samples.append(time.process_time() - begin)
    assert sender.account.accepted == count * (repeats + 1), sender.account
    return samples[1:]


def sdk_events(count: int, endpoint: str, repeats: int) -> list[float]:
    """The same events through the SDK's logger, batch processor and HTTP exporter; its queue holds them all."""
    from opentelemetry._logs import LogRecord, SeverityNumber
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    provider = LoggerProvider(shutdown_on_exit=False)
    exporter = OTLPLogExporter(endpoint=f"{endpoint}/v1/logs", timeout=60)
    provider.add_log_record_processor(
        BatchLogRecordProcessor(exporter, max_queue_size=count + 1, schedule_delay_millis=3_600_000)
    )
    logger = provider.get_logger("bench")
    samples = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        for index in range(count):
            logger.emit(
                LogRecord(
                    timestamp=NOW_NS + index,
                    observed_timestamp=NOW_NS,
                    severity_number=SeverityNumber.INFO,
                    event_name="ebpf.process.exit",
                    attributes={
                        "process.pid": index, "process.parent_pid": 1, "code": index % 256, "signal": 9,
                        "runtime": index % 1000, "cpu.logical_number": index % 64,
                    },
                )
            )  # fmt: skip
        provider.force_flush(120_000)
        samples.append(time.process_time() - begin)
    return samples[1:]


# ---- all of it ----

CASES: dict[str, Callable[[int, str, int], list[float]]] = {
    "skep_encode": skep_encode,
    "skep_http": skep_points,
    "skep_http_gzip": lambda c, e, r: skep_points(c, e, r, compression="gzip"),
    "skep_http_delta": lambda c, e, r: skep_points(c, e, r, temporality="delta"),
    "skep_grpc": lambda c, e, r: skep_points(c, e, r, protocol="grpc"),
    "sdk_encode": sdk_encode,
    "sdk_http": sdk_points,
    "sdk_grpc": lambda c, e, r: sdk_points(c, e, r, protocol="grpc"),
    "skep_events_http": skep_events,
    "skep_events_grpc": lambda c, e, r: skep_events(c, e, r, protocol="grpc"),
    "sdk_events_http": sdk_events,
}


def run(name: str, count: int, endpoint: str, repeats: int) -> float:
    """Median CPU seconds of a case, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.push", "case", name, str(count), endpoint, str(repeats)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    samples: list[float] = json.loads(done.stdout.splitlines()[-1])
    return statistics.median(samples)


def measure(points: Sequence[int] = (10_000, 100_000), events: int = 50_000) -> Iterator[Row]:
    """Measure everything; ratios are how many times cheaper than the SDK skep is, in this run."""
    with sink("http") as http, sink("grpc") as grpc:
        for count in points:
            sdk: dict[str, float] = {}
            for name, what, against in (
                ("sdk_encode", "SDK: OTLP encode", None),
                ("skep_encode", "skep: OTLP encode", "sdk_encode"),
                ("sdk_http", "SDK: collect, encode, post over HTTP", None),
                ("skep_http", "skep: apply, encode, post over HTTP", "sdk_http"),
                ("skep_http_gzip", "skep: the same, gzip", "sdk_http"),
                ("skep_http_delta", "skep: the same, delta", "sdk_http"),
                ("sdk_grpc", "SDK: collect, encode, post over gRPC", None),
                ("skep_grpc", "skep: apply, encode, post over gRPC", "sdk_grpc"),
            ):
                repeats = 3 if name.startswith("sdk") else 15
                took_s = run(name, count, grpc if "grpc" in name else http, repeats)
                sdk[name] = took_s
                ratio = sdk[against] / took_s if against else None
                title = {"sdk_encode": "SDK: OTLP encode", "sdk_http": "SDK: collect, encode, post over HTTP",
                         "sdk_grpc": "SDK: collect, encode, post over gRPC"}  # fmt: skip
                yield (
                    f"{count} points, {what}", took_s * 1e3, "ms CPU",
                    f"{count} points, {title[against]}" if against else None, ratio,
                )  # fmt: skip
        base = f"{events} events, SDK logger over HTTP"
        of_sdk = events / run("sdk_events_http", events, http, 3)
        yield base, of_sdk, "events/s of one core", None, None
        for name, endpoint in (("http", http), ("grpc", grpc)):
            rate = events / run(f"skep_events_{name}", events, endpoint, 9)
            yield f"{events} events, skep to logs over {name}", rate, "events/s of one core", base, rate / of_sdk


def main() -> None:
    """Measure, or play a part in it."""
    if sys.argv[1:2] == ["sink"]:
        serve(sys.argv[2])
        return
    if sys.argv[1:2] == ["case"]:
        print(json.dumps(CASES[sys.argv[2]](int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))))
        return
    parser = argparse.ArgumentParser(prog="tests.bench.push", description="Measure OTLP beside the SDK.")
    parser.add_argument("--points", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--events", type=int, default=50_000)
    options = parser.parse_args()
    for name, value, unit, against, ratio in measure(options.points, options.events):
        times = f"{ratio:8.1f} times better than {against}" if ratio is not None else ""
        print(f"{name:60} {value:14,.2f} {unit} {times}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
