"""The agent's own metrics over OTLP: what a receiver gets is what a scrape says."""

import threading

import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    Histogram,
    Info,
    Metric,
    PlatformCollector,
    ProcessCollector,
    Summary,
)

from exporter.export.metrics import MetricsExport
from exporter.export.outcome import Outcome, Verdict
from exporter.export.registry import families
from exporter.model import Kind, Resource, Scope, Snapshot
from tests.support.metrics_ledger import points_of

START = 1_700_000_000 * 10**9


class Taking:
    """A sender that delivers everything."""

    def __init__(self) -> None:
        self.requests: list[metrics_service_pb2.ExportMetricsServiceRequest] = []

    def send(self, body: bytes, **_: object) -> Outcome:
        """Accept."""
        self.requests.append(metrics_service_pb2.ExportMetricsServiceRequest.FromString(body))
        return Outcome(Verdict.ACCEPTED)


def pushed(registry: CollectorRegistry, export: MetricsExport, second: int) -> None:
    """One interval."""
    snapshot = Snapshot(START + second * 10**9, Resource((("service.name", "skep"),)), [])
    export.take(snapshot, families(registry.collect(), START))
    export.post(stop=threading.Event(), deadline_s=0.0)


def own(registry: CollectorRegistry) -> dict[str, metrics_pb2.Metric]:
    """Every metric of the one request of a registry."""
    taking = Taking()
    pushed(registry, MetricsExport(taking, own_scope=Scope("skep", "1")), 1)  # type: ignore[arg-type]
    (request,) = taking.requests
    (scope,) = request.resource_metrics[0].scope_metrics
    assert (scope.scope.name, scope.scope.version) == ("skep", "1")
    return {metric.name: metric for metric in scope.metrics}


def test_counter_keeps_its_name_without_total_its_labels_and_its_start() -> None:
    """Prometheus adds ``_total`` again; ``_created`` is no series."""
    registry = CollectorRegistry()
    counter = Counter("skep_otlp_items", "Items.", ["signal", "outcome"], registry=registry)
    counter.labels("logs", "accepted").inc(7)
    counter.labels("logs", "").inc(2)
    (metric,) = own(registry).values()
    assert (metric.name, metric.description, metric.sum.is_monotonic) == ("skep_otlp_items", "Items.", True)
    points = {tuple((a.key, a.value.string_value) for a in p.attributes): p for p in metric.sum.data_points}
    assert {labels: point.as_double for labels, point in points.items()} == {
        (("outcome", "accepted"), ("signal", "logs")): 7.0,
        (("signal", "logs"),): 2.0,
    }
    assert all(point.start_time_unix_nano > START for point in points.values()), "prometheus-client knows when"


def test_count_that_does_not_say_its_start_began_with_the_agent() -> None:
    """As families made by hand do not."""

    class Source:
        def collect(self) -> list[Metric]:
            family = Metric("skep_events", "Events.", "counter")
            family.add_sample("skep_events_total", {"image": "a"}, 3)
            return [family]

    registry = CollectorRegistry()
    registry.register(Source())
    (point,) = own(registry)["skep_events"].sum.data_points
    assert (point.start_time_unix_nano, point.as_double) == (START, 3.0)


def test_histogram_has_its_bounds_and_counts_that_are_not_cumulative() -> None:
    """``+Inf`` is no bound; the unit is that of the name."""
    registry = CollectorRegistry()
    histogram = Histogram("skep_request_seconds", "Time.", ["signal"], buckets=(0.1, 1.0), registry=registry)
    for value in (0.05, 0.06, 0.5, 5.0):
        histogram.labels("logs").observe(value)
    metric = own(registry)["skep_request_seconds"]
    (point,) = metric.histogram.data_points
    assert (metric.unit, list(point.explicit_bounds), list(point.bucket_counts)) == ("s", [0.1, 1.0], [2, 1, 1])
    assert point.count == 4
    assert point.sum == pytest.approx(5.61)
    assert [(a.key, a.value.string_value) for a in point.attributes] == [("signal", "logs")]


@pytest.mark.parametrize(
    ("make", "name", "data", "said"),
    [
        (lambda r: Gauge("level_bytes", "h", registry=r).set(2), "level_bytes", "gauge", ""),
        (lambda r: Info("skep_build", "h", registry=r).info({"v": "1"}), "skep_build_info", "sum", "info"),
        (lambda r: Enum("state", "h", states=["up", "down"], registry=r), "state", "sum", "stateset"),
        (lambda r: Summary("took_seconds", "h", registry=r).observe(3), "took_seconds_sum", "sum", ""),
    ],
)
def test_types_that_otlp_lacks_say_what_they_were(make: object, name: str, data: str, said: str) -> None:
    """A sum that may fall, with the type as metadata."""
    registry = CollectorRegistry()
    make(registry)  # type: ignore[operator]
    metric = own(registry)[name]
    assert metric.WhichOneof("data") == data
    assert {each.key: each.value.string_value for each in metric.metadata} == (
        {"prometheus.type": said} if said else {}
    )
    if said:
        assert not metric.sum.is_monotonic


def test_gauge_histogram_is_left_out_and_unknown_is_a_gauge() -> None:
    """OTLP has no gauge histogram."""
    one, other = Metric("depth", "h", "gaugehistogram"), Metric("thing", "h", "unknown")
    one.add_sample("depth_bucket", {"le": "+Inf"}, 1)
    other.add_sample("thing", {}, 4)
    (family,) = families([one, other], START)
    assert (family.instrument.kind, family.prometheus_type) == (Kind.GAUGE, "unknown")


def test_own_metrics_follow_the_temporality_and_end() -> None:
    """Differences of counters and histograms; a child that is removed ends, and is not counted again if it returns."""
    registry = CollectorRegistry()
    counter = Counter("skep_items", "h", ["image"], registry=registry)
    histogram = Histogram("skep_took_seconds", "h", buckets=(1.0,), registry=registry)
    taking = Taking()
    export = MetricsExport(taking, "delta")  # type: ignore[arg-type]
    for second, amount in ((1, 5), (2, 3)):
        counter.labels("a").inc(amount)
        for _ in range(amount):
            histogram.observe(0.5)
        pushed(registry, export, second)
    child = counter._metrics.pop(("a",))
    for second in (3, 4):
        pushed(registry, export, second)
    counter._metrics[("a",)] = child
    counter.labels("a").inc(2)
    pushed(registry, export, 5)
    streams: dict[str, list[tuple[tuple[float, ...], bool]]] = {}
    for request in taking.requests:
        for (_, name, _), point in points_of(request):
            streams.setdefault(name, []).append((point.values, point.ended))
    assert streams["skep_items"] == [((5.0,), False), ((3.0,), False), ((), True), ((2.0,), False)]
    assert streams["skep_took_seconds"][:2] == [((5, 0, 2.5), False), ((3, 0, 1.5), False)]


def test_registry_says_the_same_over_otlp_as_when_scraped() -> None:
    """Every sample of counters and gauges, by name, labels and value, of collectors an agent has."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    Counter("skep_otlp_items", "h", ["signal"], registry=registry).labels("logs").inc(12)
    collected = list(registry.collect())
    expected = {
        (sample.name.removesuffix("_total"), tuple(sorted(sample.labels.items())), sample.value)
        for metric in collected
        for sample in metric.samples
        if metric.type in ("counter", "gauge") and not sample.name.endswith("_created")
    }
    taking = Taking()
    export = MetricsExport(taking)  # type: ignore[arg-type]
    export.take(Snapshot(START, Resource(), []), families(collected, START - 1))
    export.post(stop=threading.Event(), deadline_s=0.0)
    found = {
        (name, labels, point.values[0])
        for request in taking.requests
        for (_, name, labels), point in points_of(request)
    }
    assert found == expected
    assert {"process_cpu_seconds", "python_info", "skep_otlp_items"} <= {name for name, _, _ in found}
