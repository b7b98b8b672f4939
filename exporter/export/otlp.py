"""OTLP: export requests as protobuf bytes, metrics from frames and logs from record batches.

Points are written natively, attribute bytes copied as the frame keeps them; the
few messages around them (resource, scope, metric) are put together here. A
request is cut where it would outgrow its limit, between points, never inside
one: a stock collector takes 4 MiB a message.

Source: ``opentelemetry/proto/{metrics,logs,resource,common}/v1``; field numbers
are named where they are used.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.resource.v1 import resource_pb2

from exporter.model import Instrument, Kind, Resource, Scope, Snapshot

from ._encode import Points, fields, message
from ._sent import Sent
from .form import compiled, varint

MAX_REQUEST_BYTES = 3 << 20

_LOG_RECORDS_TAG = 0x12  # ScopeLogs.log_records: field 2
# A length-delimited field's tag and length, at most: what is reserved before the length is known.
_FRAMING_BYTES = 6


class Temporality(enum.Enum):
    """What a sum or histogram counts from: its series' start, or the last point that was taken."""

    CUMULATIVE = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
    DELTA = metrics_pb2.AGGREGATION_TEMPORALITY_DELTA


@dataclass(frozen=True, slots=True)
class Run:
    """Points of one instrument in a request, in the order they stand there.

    Attributes:
        points: How many.
        sent: Who wants to know what becomes of them, if anyone.
        first, end: Their places in it.
    """

    points: int
    sent: Sent | None = None
    first: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One export request, ready to post.

    Attributes:
        body: The serialized message.
        items: Data points or log records in it.
        runs: Of a metrics request, its points; their numbers add up to ``items``.
    """

    body: bytes
    items: int
    runs: tuple[Run, ...] = ()

    def accept(self) -> None:
        """Tell those who want to know: the receiver has it."""
        for run in self.runs:
            if run.sent is not None:
                run.sent.accept(run.first, run.end)

    def refuse(self, *, maybe_taken: bool) -> None:
        """Tell those who want to know: it is not sent again, though the receiver may have it."""
        for run in self.runs:
            if run.sent is not None:
                run.sent.refuse(run.first, run.end, maybe_taken)


def _attributes(pairs: Iterable[tuple[str, str]]) -> list[common_pb2.KeyValue]:
    return [common_pb2.KeyValue(key=key, value=common_pb2.AnyValue(string_value=value)) for key, value in pairs]


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content


@lru_cache(maxsize=64)
def _resource(resource: Resource) -> bytes:
    encoded = resource_pb2.Resource(attributes=_attributes(resource.attributes)).SerializeToString(deterministic=True)
    return _field(b"\x0a", encoded)  # ResourceMetrics.resource and ResourceLogs.resource: 1


@lru_cache(maxsize=4096)
def _scope(scope: Scope) -> bytes:
    encoded = common_pb2.InstrumentationScope(
        name=scope.name, version=scope.version, attributes=_attributes(scope.attributes)
    ).SerializeToString(deterministic=True)
    return _field(b"\x0a", encoded)  # ScopeMetrics.scope and ScopeLogs.scope: 1


@dataclass(frozen=True, slots=True)
class Shape:
    """What stands around the points of one instrument.

    Attributes:
        head: Fields of the metric before its data: name, description, unit, metadata.
        tag: Of the data.
        tail: Fields of the data after its points: temporality, whether monotonic.
    """

    head: bytes
    tag: bytes
    tail: bytes

    @property
    def overhead_bytes(self) -> int:
        """Bytes around the points, at most."""
        return 2 * _FRAMING_BYTES + len(self.head) + len(self.tail)


@lru_cache(maxsize=4096)
def shape(
    instrument: Instrument, temporality: Temporality = Temporality.CUMULATIVE, prometheus_type: str = ""
) -> Shape:
    """Compile what stands around an instrument's points.

    Args:
        instrument: What is measured.
        temporality: Of counters and histograms.
        prometheus_type: Of a gauge that is none in Prometheus: ``unknown`` stays a gauge with that said,
            ``info`` and ``stateset`` become sums that may fall.
    """
    metric = metrics_pb2.Metric(name=instrument.name, description=instrument.description, unit=instrument.unit)
    if prometheus_type:
        metric.metadata.add(key="prometheus.type").value.string_value = prometheus_type
    head = metric.SerializeToString()
    if instrument.kind is Kind.HISTOGRAM:
        histogram = metrics_pb2.Histogram(aggregation_temporality=temporality.value)
        return Shape(head, b"\x4a", histogram.SerializeToString())  # Metric.histogram: 9
    if instrument.kind is Kind.COUNTER:
        counter = metrics_pb2.Sum(aggregation_temporality=temporality.value, is_monotonic=True)
        return Shape(head, b"\x3a", counter.SerializeToString())  # Metric.sum: 7
    if prometheus_type in ("info", "stateset"):
        state = metrics_pb2.Sum(aggregation_temporality=Temporality.CUMULATIVE.value)
        return Shape(head, b"\x3a", state.SerializeToString())
    return Shape(head, b"\x2a", b"")  # Metric.gauge: 5


@dataclass(slots=True)
class _Node:
    """A message under construction: parts whose size is known, their tags already in them."""

    parts: list[bytes | Points] = field(default_factory=list)
    size: int = 0

    def add(self, part: bytes | Points) -> None:
        self.parts.append(part)
        self.size += part.size if isinstance(part, Points) else len(part)

    def extend(self, inner: _Node) -> None:
        """Add another node's parts."""
        self.parts += inner.parts
        self.size += inner.size

    def wrap(self, tag: bytes, inner: _Node) -> None:
        """Add another node as a length-delimited field."""
        self.add(tag + varint(inner.size))
        self.extend(inner)


@dataclass(slots=True)
class _Metric:
    """One metric under construction: what stands around its points, and they."""

    shape: Shape
    points: _Node = field(default_factory=_Node)

    def close(self) -> _Node:
        data = _Node()
        data.extend(self.points)
        data.add(self.shape.tail)
        metric = _Node()
        metric.add(self.shape.head)
        metric.wrap(self.shape.tag, data)
        return metric


@dataclass(slots=True)
class _Scope:
    """One scope's message under construction: records, or metrics the last of which still takes points."""

    scope: Scope
    content: _Node = field(default_factory=_Node)
    metric: _Metric | None = None

    def close(self) -> _Node:
        self.close_metric()
        whole = _Node()
        whole.add(_scope(self.scope))
        whole.extend(self.content)
        return whole

    def close_metric(self) -> None:
        if self.metric is not None:
            self.content.wrap(b"\x12", self.metric.close())  # ScopeMetrics.metrics: 2
            self.metric = None


class _Builder:
    """Fills requests up to a limit.

    Layers of both signals: the request's field 1 is the resource's message, whose
    field 2 is the scope's message, whose fields 2 are the metrics or records.
    """

    def __init__(self, resource: Resource, max_bytes: int, time_ns: int = 0) -> None:
        self._resource = _resource(resource)
        self._max_bytes = max_bytes
        self._time_ns = time_ns
        self._requests: list[Request] = []
        self._open()

    def _open(self) -> None:
        self._scopes: list[_Scope] = []
        self._runs: list[Run] = []
        self._items = 0
        self._reserved = _FRAMING_BYTES + len(self._resource)

    def _here(self, scope: Scope) -> _Scope | None:
        return self._scopes[-1] if self._scopes and self._scopes[-1].scope == scope else None

    def _overhead(self, scope: Scope, around: Shape | None, join: bool) -> int:
        """Bytes that come with items of this scope before their own."""
        here = self._here(scope)
        of_scope = 0 if here else _FRAMING_BYTES + len(_scope(scope))
        if around is None or (join and here and here.metric and here.metric.shape == around):
            return of_scope
        return of_scope + around.overhead_bytes

    def room(self, scope: Scope, around: Shape | None = None, *, join: bool = False) -> int:
        """Bytes left for items of this scope, of a metric if a shape is given; it may be the last one's, to join."""
        return max(0, self._max_bytes - self._reserved - self._overhead(scope, around, join))

    @property
    def empty(self) -> bool:
        """Whether the request under construction holds nothing yet."""
        return not self._items

    def _enter(self, scope: Scope, size: int, items: int, around: Shape | None = None, join: bool = False) -> _Scope:
        self._reserved += self._overhead(scope, around, join) + size
        self._items += items
        here = self._here(scope)
        if here is None:
            here = _Scope(scope)
            self._scopes.append(here)
        return here

    def add_records(self, scope: Scope, records: bytes, items: int) -> None:
        """Add ready fields 2 of a scope's message."""
        self._enter(scope, len(records), items).content.add(records)

    def add_points(self, scope: Scope, around: Shape, points: Points, run: Run, *, join: bool) -> None:
        """Add points of a metric, to the last one if they join it."""
        here = self._enter(scope, points.size, points.count, around, join)
        if here.metric is None or here.metric.shape != around or not join:
            here.close_metric()
            here.metric = _Metric(around)
        here.metric.points.add(points)
        self._runs.append(run)

    def close(self) -> None:
        """Finish the request under construction, if it holds anything."""
        if self._items:
            of_resource = _Node()
            of_resource.add(self._resource)
            for scope in self._scopes:
                of_resource.wrap(b"\x12", scope.close())  # ResourceMetrics.scope_metrics, ResourceLogs.scope_logs: 2
            request = _Node()
            request.wrap(b"\x0a", of_resource)  # Export…ServiceRequest.resource_…: 1
            self._requests.append(Request(message(request.parts, self._time_ns), self._items, tuple(self._runs)))
        self._open()

    def requests(self) -> list[Request]:
        """All requests, the last one finished."""
        self.close()
        return self._requests


@dataclass(frozen=True, slots=True)
class Source:
    """Where points of one instrument come from.

    Attributes:
        view: A capsule ``skep.frame_view``.
        instrument: Which cells of it.
        sent: Who wants to know what becomes of its points; then it is the view's owner.
        joins: They belong to the same metric as those of the source before, if that has any.
    """

    scope: Scope
    shape: Shape
    view: object
    instrument: Instrument
    sent: Sent | None = None
    joins: bool = False


def requests_of(
    resource: Resource, time_ns: int, sources: Iterable[Source], max_bytes: int = MAX_REQUEST_BYTES
) -> list[Request]:
    """Encode points of any sources.

    Args:
        resource: What they were measured on.
        time_ns: Of every point.
        sources: In order; their views are constant meanwhile.
        max_bytes: No request is larger, unless a single point is.
    """
    builder = _Builder(resource, max_bytes, time_ns)
    for source in sources:
        form = compiled(source.instrument)
        first, done = 0, False
        while not done:
            room = builder.room(source.scope, source.shape, join=source.joins)
            points = Points(source.view, form, first, room, builder.empty)
            if points.count:
                run = Run(points.count, source.sent, first, points.end)
                builder.add_points(source.scope, source.shape, points, run, join=source.joins)
            first, done = points.end, points.done
            if not done:
                builder.close()
    return builder.requests()


def metrics(snapshot: Snapshot, max_bytes: int = MAX_REQUEST_BYTES) -> list[Request]:
    """Encode a snapshot as metrics export requests, all cumulative, remembering nothing.

    Args:
        snapshot: Its frames' locks are held by the caller.
        max_bytes: No request is larger, unless a single point is.

    Returns:
        Requests in order; none if no series is live. Counters are cumulative monotonic
        sums from their series' start time. A number is ``as_int`` if its instrument has
        no scale and counts in integers (``as_double`` above 2**63 - 1), else ``as_double``.
    """
    sources = (
        Source(frame.scope, shape(instrument), view, instrument)
        for frame in snapshot.frames
        for view in (frame.view(),)
        for instrument in frame.instruments
    )
    return requests_of(snapshot.resource, snapshot.time_ns, sources, max_bytes)


def logs(
    resource: Resource, records: Iterable[tuple[Scope, bytes]], max_bytes: int = MAX_REQUEST_BYTES
) -> list[Request]:
    """Put log records into logs export requests.

    Args:
        resource: What the records are about.
        records: For each batch its scope and its records: ``ScopeLogs.log_records``
            fields (tag, length, record), one after the other.
        max_bytes: No request is larger, unless a single record is.

    Raises:
        ValueError: the bytes of a batch are not such fields.
    """
    builder = _Builder(resource, max_bytes)
    for scope, encoded in records:
        first = 0
        while first < len(encoded):
            end, count = fields(encoded, _LOG_RECORDS_TAG, first, builder.room(scope), builder.empty)
            if count:
                part = encoded if end - first == len(encoded) else encoded[first:end]
                builder.add_records(scope, part, count)
            first = end
            if first < len(encoded):
                builder.close()
    return builder.requests()


def metrics_requests(snapshot: Snapshot, max_bytes: int = MAX_REQUEST_BYTES) -> list[bytes]:
    """The bodies of :func:`metrics`."""
    return [request.body for request in metrics(snapshot, max_bytes)]


def logs_requests(
    resource: Resource, records: Iterable[tuple[Scope, bytes]], max_bytes: int = MAX_REQUEST_BYTES
) -> list[bytes]:
    """The bodies of :func:`logs`."""
    return [request.body for request in logs(resource, records, max_bytes)]


_ExportRequest = metrics_service_pb2.ExportMetricsServiceRequest | logs_service_pb2.ExportLogsServiceRequest


def split(request: Request) -> tuple[Request, Request] | None:
    """Halve a request that a receiver found too large; None if it is a single item.

    Rare, and therefore done with the protobuf library and not natively.

    Raises:
        ValueError: the body is not an export request of ``items`` items.
    """
    half = request.items // 2
    if not half:
        return None
    kind: type[_ExportRequest] = logs_service_pb2.ExportLogsServiceRequest
    if request.runs:  # which only metrics have
        kind = metrics_service_pb2.ExportMetricsServiceRequest
    try:
        whole = kind.FromString(request.body)
    except DecodeError as cause:
        raise ValueError("body is not an export request") from cause
    parts = (kind(), kind())
    found = _deal(whole, parts[0], parts[1], half)
    if found != request.items:
        raise ValueError(f"request has {found} items, not {request.items}")
    runs = _deal_runs(request.runs, half)
    return (
        Request(parts[0].SerializeToString(), half, runs[0]),
        Request(parts[1].SerializeToString(), request.items - half, runs[1]),
    )


def _deal(whole: _ExportRequest, front: _ExportRequest, back: _ExportRequest, half: int) -> int:
    """Give the first ``half`` items to one request and the others to another; counts them."""
    dealt = 0
    if isinstance(whole, logs_service_pb2.ExportLogsServiceRequest):
        for logs_of_resource in whole.resource_logs:
            for logs_of_scope in logs_of_resource.scope_logs:
                records = logs_of_scope.log_records
                cut = min(max(half - dealt, 0), len(records))
                dealt += len(records)
                for target, part in ((front, records[:cut]), (back, records[cut:])):
                    if part:
                        assert isinstance(target, logs_service_pb2.ExportLogsServiceRequest)
                        to_resource = target.resource_logs.add(resource=logs_of_resource.resource)
                        to_resource.scope_logs.add(scope=logs_of_scope.scope, log_records=part)
        return dealt
    for metrics_of_resource in whole.resource_metrics:
        for metrics_of_scope in metrics_of_resource.scope_metrics:
            for metric in metrics_of_scope.metrics:
                data = str(metric.WhichOneof("data"))
                points = getattr(metric, data).data_points
                cut = min(max(half - dealt, 0), len(points))
                dealt += len(points)
                for target, first, end in ((front, 0, cut), (back, cut, len(points))):
                    if first == end:
                        continue
                    assert isinstance(target, metrics_service_pb2.ExportMetricsServiceRequest)
                    copy = metrics_pb2.Metric()
                    copy.CopyFrom(metric)
                    kept = getattr(copy, data).data_points
                    del kept[end:], kept[:first]
                    to_scope = target.resource_metrics.add(resource=metrics_of_resource.resource).scope_metrics.add()
                    to_scope.scope.CopyFrom(metrics_of_scope.scope)
                    to_scope.metrics.append(copy)
    return dealt


def _deal_runs(runs: Iterable[Run], half: int) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    front: list[Run] = []
    back: list[Run] = []
    for run in runs:
        cut = min(max(half, 0), run.points)
        half -= cut
        middle = run.sent.after(run.first, run.end, cut) if run.sent is not None else run.first
        if cut:
            front.append(replace(run, points=cut, end=middle))
        if run.points - cut:
            back.append(replace(run, points=run.points - cut, first=middle))
    return tuple(front), tuple(back)
