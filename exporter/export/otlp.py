"""OTLP: export requests as protobuf bytes, metrics from frames and logs from record batches.

Points are written natively, attribute bytes copied as the frame keeps them; the
few messages around them (resource, scope, metric) are put together here. A
request is cut where it would outgrow its limit, between points, never inside
one: a stock collector takes 4 MiB a message.

Source: ``opentelemetry/proto/{metrics,logs,resource,common}/v1``; field numbers
are named where they are used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.resource.v1 import resource_pb2

from exporter.model import Instrument, Kind, Resource, Scope, Snapshot

from ._encode import Points, fields, message
from .form import compiled, varint

MAX_REQUEST_BYTES = 3 << 20

_LOG_RECORDS_TAG = 0x12  # ScopeLogs.log_records: field 2
# A length-delimited field's tag and length, at most: what is reserved before the length is known.
_FRAMING_BYTES = 6

_DATA_TAGS = {Kind.GAUGE: b"\x2a", Kind.COUNTER: b"\x3a", Kind.HISTOGRAM: b"\x4a"}  # Metric.data: 5, 7, 9
_CUMULATIVE = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
_TRAILERS = {
    Kind.GAUGE: b"",
    Kind.COUNTER: metrics_pb2.Sum(aggregation_temporality=_CUMULATIVE, is_monotonic=True).SerializeToString(),
    Kind.HISTOGRAM: metrics_pb2.Histogram(aggregation_temporality=_CUMULATIVE).SerializeToString(),
}


@dataclass(frozen=True, slots=True)
class Request:
    """One export request, ready to post.

    Attributes:
        body: The serialized message.
        items: Data points or log records in it.
    """

    body: bytes
    items: int


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


@lru_cache(maxsize=4096)
def _metric(instrument: Instrument) -> bytes:
    return metrics_pb2.Metric(
        name=instrument.name, description=instrument.description, unit=instrument.unit
    ).SerializeToString()


@dataclass(slots=True)
class _Node:
    """A message under construction: parts whose size is known, their tags already in them."""

    parts: list[bytes | Points] = field(default_factory=list)
    size: int = 0

    def add(self, part: bytes | Points) -> None:
        self.parts.append(part)
        self.size += part.size if isinstance(part, Points) else len(part)

    def wrap(self, tag: bytes, inner: _Node) -> None:
        """Add another node as a length-delimited field."""
        self.add(tag + varint(inner.size))
        self.parts += inner.parts
        self.size += inner.size


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
        self._scopes: list[tuple[Scope, _Node]] = []
        self._items = 0
        self._reserved = _FRAMING_BYTES + len(self._resource)

    def room(self, scope: Scope, overhead: int) -> int:
        """Bytes left for items of this scope that come with ``overhead`` bytes around them; may be negative."""
        new_scope = 0 if self._scopes and self._scopes[-1][0] == scope else _FRAMING_BYTES + len(_scope(scope))
        return self._max_bytes - self._reserved - new_scope - overhead

    @property
    def empty(self) -> bool:
        """Whether the request under construction holds nothing yet."""
        return not self._items

    def add(self, scope: Scope, content: _Node, items: int) -> None:
        """Add fields 2 of a scope's message."""
        if not self._scopes or self._scopes[-1][0] != scope:
            node = _Node()
            node.add(_scope(scope))
            self._scopes.append((scope, node))
            self._reserved += _FRAMING_BYTES + len(_scope(scope))
        node = self._scopes[-1][1]
        node.parts += content.parts
        node.size += content.size
        self._items += items
        self._reserved += content.size

    def close(self) -> None:
        """Finish the request under construction, if it holds anything."""
        if self._items:
            of_resource = _Node()
            of_resource.add(self._resource)
            for _, node in self._scopes:
                of_resource.wrap(b"\x12", node)  # ResourceMetrics.scope_metrics, ResourceLogs.scope_logs: 2
            request = _Node()
            request.wrap(b"\x0a", of_resource)  # Export…ServiceRequest.resource_…: 1
            self._requests.append(Request(message(request.parts, self._time_ns), self._items))
        self._open()

    def requests(self) -> list[Request]:
        """All requests, the last one finished."""
        self.close()
        return self._requests


def _metric_node(instrument: Instrument, points: Points) -> _Node:
    data = _Node()
    data.add(points)
    data.add(_TRAILERS[instrument.kind])
    metric = _Node()
    metric.add(_metric(instrument))
    metric.wrap(_DATA_TAGS[instrument.kind], data)
    node = _Node()
    node.wrap(b"\x12", metric)  # ScopeMetrics.metrics: 2
    return node


def metrics(snapshot: Snapshot, max_bytes: int = MAX_REQUEST_BYTES) -> list[Request]:
    """Encode a snapshot as metrics export requests.

    Args:
        snapshot: Its frames' locks are held by the caller.
        max_bytes: No request is larger, unless a single point is.

    Returns:
        Requests in order; none if no series is live. Counters are cumulative monotonic
        sums from their series' start time. A number is ``as_int`` if its instrument has
        no scale and counts in integers (``as_double`` above 2**63 - 1), else ``as_double``.
    """
    builder = _Builder(snapshot.resource, max_bytes, snapshot.time_ns)
    for frame in snapshot.frames:
        view = frame.view()
        for instrument in frame.instruments:
            form = compiled(instrument)
            overhead = 2 * _FRAMING_BYTES + len(_metric(instrument)) + len(_TRAILERS[instrument.kind])
            first = 0
            done = False
            while not done:
                points = Points(view, form, first, max(0, builder.room(frame.scope, overhead)), builder.empty)
                if points.count:
                    builder.add(frame.scope, _metric_node(instrument, points), points.count)
                first, done = points.end, points.done
                if not done:
                    builder.close()
    return builder.requests()


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
            end, count = fields(encoded, _LOG_RECORDS_TAG, first, max(0, builder.room(scope, 0)), builder.empty)
            if count:
                node = _Node()
                node.add(encoded if end - first == len(encoded) else encoded[first:end])
                builder.add(scope, node, count)
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
