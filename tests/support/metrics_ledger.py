"""What a receiver makes of the metrics it accepted: streams of points, added up and checked."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2

NO_RECORDED_VALUE = metrics_pb2.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK

Name = tuple[str, str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Point:
    """One data point: of a histogram its bucket counts and sum."""

    start_ns: int
    time_ns: int
    temporality: int
    ended: bool
    values: tuple[float, ...]


@dataclass
class Ledger:
    """Points by scope, metric and attributes, in the order they came."""

    streams: dict[Name, list[Point]] = field(default_factory=dict)

    def add(self, request: metrics_service_pb2.ExportMetricsServiceRequest) -> int:
        """Enter an accepted request; counts its points."""
        points = list(points_of(request))
        for name, point in points:
            self.streams.setdefault(name, []).append(point)
        return len(points)

    def totals(self) -> dict[Name, tuple[float, ...]]:
        """Differences added up; a cumulative stream's or gauge's last value."""
        totals: dict[Name, tuple[float, ...]] = {}
        for name, points in self.streams.items():
            for point in points:
                if point.ended:
                    continue
                if point.temporality == metrics_pb2.AGGREGATION_TEMPORALITY_DELTA and name in totals:
                    totals[name] = tuple(a + b for a, b in zip(totals[name], point.values, strict=True))
                else:
                    totals[name] = point.values
        return totals

    def check(self) -> None:
        """Whatever was accepted: times go forward, differences neither overlap nor begin after they end."""
        for name, points in self.streams.items():
            assert all(a.time_ns < b.time_ns for a, b in itertools.pairwise(points)), name
            assert not any(a.ended and b.ended for a, b in itertools.pairwise(points)), name
            assert not points[0].ended, name
            for a, b in itertools.pairwise(points):
                if b.temporality == metrics_pb2.AGGREGATION_TEMPORALITY_DELTA:
                    assert b.start_ns >= a.time_ns, (name, a, b)
            assert all(point.start_ns <= point.time_ns for point in points), name


def points_of(request: metrics_service_pb2.ExportMetricsServiceRequest) -> Iterator[tuple[Name, Point]]:
    """Every point of a request, its name first."""
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                assert kind in ("gauge", "sum", "histogram")
                data = getattr(metric, kind)
                temporality = 0 if kind == "gauge" else data.aggregation_temporality
                for point in data.data_points:
                    attributes = tuple(sorted((each.key, _text(each.value)) for each in point.attributes))
                    ended = bool(point.flags & NO_RECORDED_VALUE)
                    yield (
                        (scope.scope.name, metric.name, attributes),
                        Point(
                            point.start_time_unix_nano, point.time_unix_nano, temporality, ended, _values(point, ended)
                        ),
                    )


def _text(value: common_pb2.AnyValue) -> str:
    return str(getattr(value, str(value.WhichOneof("value"))))


def _values(point: metrics_pb2.NumberDataPoint | metrics_pb2.HistogramDataPoint, ended: bool) -> tuple[float, ...]:
    if isinstance(point, metrics_pb2.HistogramDataPoint):
        assert point.count == sum(point.bucket_counts)
        assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
        assert not ended or not point.count
        return (*point.bucket_counts, *([point.sum] if point.HasField("sum") else []))
    which = point.WhichOneof("value")
    assert (which is None) == ended
    return () if which is None else (getattr(point, which),)


def ledger(requests: Iterable[metrics_service_pb2.ExportMetricsServiceRequest]) -> Ledger:
    """A ledger of requests that were all accepted."""
    made = Ledger()
    for request in requests:
        made.add(request)
    return made
