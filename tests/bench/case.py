"""One measured case, in a process of its own so that its peak memory is its own.

``python -m tests.bench.case NAME COUNT REPEATS MAP_FD LIBRARY BODY_BYTES`` prints one JSON object:
samples of CPU seconds, peak memory before and after, and the size of what was made. Between two samples every
row of the map gets a new value, so that nothing is cheaper for having been seen before.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import rows

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from exporter.collect import Frame
    from exporter.kernel import Map

NOW_NS = 1_700_000_000_000_000_000


def peak_bytes() -> int:
    """Highest resident memory of this process image (unlike ``ru_maxrss``, which a parent's survives exec in)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


def floor(count: int, fd: int, library: str, body_bytes: int) -> Callable[[], bytes]:
    """Batch look-up in C, and one copy of a body of the scrape's size."""
    native = ctypes.CDLL(library)
    native.floor_read.restype = ctypes.c_long
    chunks = (1024, 4096, 16384, count)
    key_buffer = ctypes.create_string_buffer(max(chunks) * rows.KEY_SIZE)
    value_buffer = ctypes.create_string_buffer(max(chunks) * rows.VALUE_SIZE)
    body = ctypes.create_string_buffer(b"x" * body_bytes, body_bytes)

    def read_s(chunk: int) -> float:
        begin = time.process_time()
        assert native.floor_read(fd, key_buffer, value_buffer, chunk) == count
        return time.process_time() - begin

    chunk = min(chunks, key=lambda chunk: min(read_s(chunk) for _ in range(3)))  # the floor is the best there is

    def once() -> bytes:
        assert native.floor_read(fd, key_buffer, value_buffer, chunk) == count
        assert native.floor_copy(body, ctypes.c_size_t(body_bytes)) == ord("x")
        return b""

    return once


def _frame() -> Frame:
    from exporter.collect import Frame, SeriesBudget

    return Frame(
        rows.PLAN,
        scope=rows.SCOPE,
        resolve=lambda _decoder, _value: "",
        budget=SeriesBudget(rows.PLAN.series_limit),
        start_ns=NOW_NS,
    )


def _reader(count: int, fd: int) -> Map:
    from exporter.kernel import Map

    return Map(
        "requests", type=1, key_size=rows.KEY_SIZE, value_size=rows.VALUE_SIZE, max_entries=count + count // 4, fd=fd
    )


def _read(source: Map, frame: Frame, now_ns: int) -> None:
    frame.begin(now_ns)
    for batch in source.batches():
        frame.apply(batch.keys, batch.values, batch.count, batch.value_stride, batch.cpus)
    frame.finish()


def scrape(count: int, fd: int, _library: str, _body_bytes: int) -> Callable[[], Sequence[bytes] | bytes]:
    """Skep's scrape: map read, apply, render."""
    from exporter.export import prometheus
    from exporter.model import Resource, Snapshot

    source, frame = _reader(count, fd), _frame()

    def once() -> bytes:
        now_ns = NOW_NS + time.monotonic_ns()
        _read(source, frame, now_ns)
        return prometheus.render(Snapshot(now_ns, Resource(), [frame]))

    return once


def render(count: int, fd: int, _library: str, _body_bytes: int) -> Callable[[], Sequence[bytes] | bytes]:
    """Of skep's scrape, the text alone."""
    from exporter.export import prometheus
    from exporter.model import Resource, Snapshot

    frame = _frame()
    _read(_reader(count, fd), frame, NOW_NS)
    snapshot = Snapshot(NOW_NS, Resource(), [frame])
    return lambda: prometheus.render(snapshot)


def openmetrics(count: int, fd: int, _library: str, _body_bytes: int) -> Callable[[], Sequence[bytes] | bytes]:
    """The same series in the format that Prometheus prefers."""
    from exporter.export import prometheus
    from exporter.model import Resource, Snapshot

    frame = _frame()
    _read(_reader(count, fd), frame, NOW_NS)
    snapshot = Snapshot(NOW_NS, Resource(), [frame])
    return lambda: prometheus.render(snapshot, b"", prometheus.Exposition.OPENMETRICS_1_0_0)


def packed(count: int, fd: int, level: int) -> Callable[[], Sequence[bytes] | bytes]:
    """The same text compressed as the server does it, at any level."""
    body = render(count, fd, "", 0)()
    assert isinstance(body, bytes)

    def once() -> bytes:
        packer = zlib.compressobj(level, zlib.DEFLATED, 31)
        return packer.compress(body) + packer.flush()

    return once


def gzip_1(count: int, fd: int, _library: str, _body_bytes: int) -> Callable[[], Sequence[bytes] | bytes]:
    """At the level that the server uses."""
    return packed(count, fd, 1)


def gzip_6(count: int, fd: int, _library: str, _body_bytes: int) -> Callable[[], Sequence[bytes] | bytes]:
    """At zlib's own default."""
    return packed(count, fd, 6)


def gzip_9(count: int, fd: int, _library: str, _body_bytes: int) -> Callable[[], Sequence[bytes] | bytes]:
    """At prometheus-client's level."""
    return packed(count, fd, 9)


def otlp(count: int, fd: int, _library: str, _body_bytes: int) -> Callable[[], Sequence[bytes] | bytes]:
    """The same series as OTLP requests."""
    from exporter.export import otlp as encoder
    from exporter.model import Resource, Snapshot

    frame = _frame()
    _read(_reader(count, fd), frame, NOW_NS)
    snapshot = Snapshot(NOW_NS, Resource((("service.name", "skep"),)), [frame])
    return lambda: encoder.metrics_requests(snapshot)


def client(count: int, _fd: int, _library: str, _body_bytes: int) -> Callable[[], Sequence[bytes] | bytes]:
    """prometheus-client rendering the same rows, their label texts and numbers ready in Python lists."""
    from prometheus_client import generate_latest

    registry = _registry(count)
    return lambda: generate_latest(registry)


def client_openmetrics(count: int, _fd: int, _library: str, _body: int) -> Callable[[], Sequence[bytes] | bytes]:
    """The same in OpenMetrics."""
    from prometheus_client.openmetrics.exposition import generate_latest

    registry = _registry(count)
    return lambda: bytes(generate_latest(registry, version="1.0.0"))  # type: ignore[no-untyped-call]


def _registry(count: int) -> CollectorRegistry:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily
    from prometheus_client.registry import Collector

    labels = rows.labels(count)
    names = [rule.name for rule in rows.PLAN.labels]

    class Rows(Collector):
        def collect(self) -> list[CounterMetricFamily]:
            family = CounterMetricFamily(
                rows.INSTRUMENT.prometheus_name.removesuffix("_total"), rows.INSTRUMENT.description, labels=names
            )
            for index, values in enumerate(labels):
                family.add_metric(values, 7 * index)
            return [family]

    registry = CollectorRegistry()
    registry.register(Rows())
    return registry


CASES = {
    each.__name__: each
    for each in (floor, scrape, render, openmetrics, gzip_1, gzip_6, gzip_9, otlp, client, client_openmetrics)
}


def text(name: str, count: int, fd: int, library: str) -> str:
    """What a case that makes text makes."""
    made = CASES[name](count, fd, library, 0)()
    assert isinstance(made, bytes)
    return made.decode()


def main() -> None:
    """Measure one case."""
    name, library = sys.argv[1], sys.argv[5]
    count, repeats, fd, body_bytes = (int(sys.argv[index]) for index in (2, 3, 4, 6))
    all_keys = rows.keys(count)
    rows.fill(fd, all_keys, 0)
    before = peak_bytes()
    once = CASES[name](count, fd, library, body_bytes)
    begin = time.process_time()
    made = once()
    first_s = time.process_time() - begin
    after_first = peak_bytes()
    samples = []
    for generation in range(1, repeats + 1):
        rows.fill(fd, all_keys, generation)
        del made
        begin = time.process_time()
        made = once()
        samples.append(time.process_time() - begin)
    print(
        json.dumps(
            {
                "first_s": first_s,
                "samples_s": samples,
                "peak_bytes": max(after_first, peak_bytes()),
                "before_bytes": before,
                "made_bytes": len(made) if isinstance(made, bytes) else sum(map(len, made)),
            }
        )
    )


if __name__ == "__main__":
    main()
