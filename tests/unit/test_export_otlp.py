"""OTLP bytes from literals: every message equal to what the opentelemetry-proto library makes of the same values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2

from exporter.export import otlp
from exporter.model import CellType, Resource, Scale, Scope
from tests.support.export_twins import metrics_message
from tests.support.frame_literals import FrameLiteral, SeriesLiteral, counter, gauge, histogram, snapshot
from tests.support.frame_strategies import frames, patient

RESOURCE = Resource((("service.name", "skep"), ("host.name", "bee")))


def parsed(body: bytes) -> metrics_service_pb2.ExportMetricsServiceRequest:
    """A request as the library reads it."""
    return metrics_service_pb2.ExportMetricsServiceRequest.FromString(body)


def only_metric(*frames: FrameLiteral) -> metrics_pb2.Metric:
    """The one metric of the one request of some frames."""
    (body,) = otlp.metrics_requests(snapshot(*frames))
    (metric,) = parsed(body).resource_metrics[0].scope_metrics[0].metrics
    return metric


@patient
@given(st.lists(st.sampled_from(["one", "two"]).flatmap(frames), max_size=3))
def test_request_equals_the_librarys_message(drawn: list[FrameLiteral]) -> None:
    """Whatever the instruments, numbers, labels and dead series."""
    shot = snapshot(*drawn)
    bodies = otlp.metrics_requests(shot)
    expected = metrics_message(shot)
    # NaN is unequal to itself, so the comparison is of the bytes both write.
    assert [parsed(body).SerializeToString(deterministic=True) for body in bodies] == (
        [expected.SerializeToString(deterministic=True)] if expected.resource_metrics else []
    )


def points_of(request: metrics_service_pb2.ExportMetricsServiceRequest) -> list[tuple[str, str, str]]:
    """Scope, metric and point, in order, of a parsed request."""
    return [
        (scope.scope.name, metric.name, str(point))
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in getattr(metric, str(metric.WhichOneof("data"))).data_points
    ]


@patient
@given(st.lists(st.sampled_from(["one", "two"]).flatmap(frames), max_size=3), st.integers(0, 1500))
def test_split_requests_hold_every_point_once_and_keep_the_limit(drawn: list[FrameLiteral], max_bytes: int) -> None:
    """Cut anywhere, nothing is lost, repeated or out of order; only a lone point may be larger than the limit."""
    shot = snapshot(*drawn)
    requests = otlp.metrics(shot, max_bytes)
    found = [points_of(parsed(request.body)) for request in requests]
    assert [point for points in found for point in points] == points_of(metrics_message(shot))
    assert [request.items for request in requests] == [len(points) for points in found]
    for request, points in zip(requests, found, strict=True):
        assert len(request.body) <= max_bytes or len(points) == 1
        assert parsed(request.body).resource_metrics[0].resource.attributes


def test_requests_are_filled_before_the_next_is_begun() -> None:
    """A split by bytes wastes next to nothing of the limit."""
    rows = [SeriesLiteral((("cpu", str(index)),), (index,)) for index in range(5000)]
    requests = otlp.metrics(snapshot(FrameLiteral([counter()], rows)), 20_000)
    assert all(len(request.body) > 19_900 for request in requests[:-1])
    assert sum(request.items for request in requests) == 5000


def test_counter_is_a_cumulative_monotonic_sum_from_its_start() -> None:
    """Integers stay integers; a rate over a restart knows where the count began."""
    metric = only_metric(FrameLiteral([counter(unit="{call}")], [SeriesLiteral((), (7,), start_ns=5)]))
    assert metric.sum.is_monotonic
    assert metric.sum.aggregation_temporality == metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
    (point,) = metric.sum.data_points
    assert (point.start_time_unix_nano, point.time_unix_nano) == (5, 1_700_000_060_000_000_000)
    assert (metric.unit, point.WhichOneof("value"), point.as_int) == ("{call}", "as_int", 7)


@pytest.mark.parametrize(
    ("cell_type", "scale", "cell", "kind", "value"),
    [
        (CellType.U64, Scale(), (1 << 63) - 1, "as_int", (1 << 63) - 1),
        (CellType.U64, Scale(), 1 << 63, "as_double", 2.0**63),
        (CellType.I64, Scale(), -1, "as_int", -1),
        (CellType.U64, Scale(-9), 128_000, "as_double", 0.000128),
        (CellType.U64, Scale(0, 4096.0), 3, "as_double", 12288.0),
        (CellType.F64, Scale(), math.inf, "as_double", math.inf),
    ],
)
def test_number_is_an_integer_only_if_it_is_one_unscaled(
    cell_type: CellType, scale: Scale, cell: float, kind: str, value: float
) -> None:
    """``as_int`` is signed 64 bits; everything else is a double."""
    frame = FrameLiteral([gauge(cell_type=cell_type, scale=scale)], [SeriesLiteral((), (cell,))])
    (point,) = only_metric(frame).gauge.data_points
    assert (point.WhichOneof("value"), getattr(point, kind)) == (kind, value)


def test_histogram_has_bounds_counts_and_labels_of_its_own_field_number() -> None:
    """Attributes move from a number's field 7 to a histogram's field 9; counts are not cumulative."""
    instrument = histogram(bounds=(0.000128, 1.0), has_sum=True, scale=Scale(-9))
    labels = (("device", "sda"), ("operation", "x" * 300))
    (point,) = only_metric(FrameLiteral([instrument], [SeriesLiteral(labels, (1, 2, 3, 500))])).histogram.data_points
    assert [(each.key, each.value.string_value) for each in point.attributes] == list(labels)
    assert (list(point.explicit_bounds), list(point.bucket_counts), point.count) == ([0.000128, 1.0], [1, 2, 3], 6)
    assert point.sum == 5e-7


def test_sum_nobody_kept_is_unset() -> None:
    """Absent, not zero."""
    frame = FrameLiteral([histogram(bounds=(1.0,))], [SeriesLiteral((), (1, 2))])
    assert not only_metric(frame).histogram.data_points[0].HasField("sum")


def test_scope_is_the_image() -> None:
    """Name, version and attributes of the image; frames of one image share its message."""
    scope = Scope("dns", "1.4", (("oci.manifest.digest", "sha256:0"),))
    frame = FrameLiteral([counter()], [SeriesLiteral((), (1,))], scope=scope)
    again = FrameLiteral([gauge()], [SeriesLiteral((), (1,))], scope=scope)
    other = FrameLiteral([gauge()], [SeriesLiteral((), (1,))], scope=Scope("other"))
    (body,) = otlp.metrics_requests(snapshot(frame, again, other))
    (resource,) = parsed(body).resource_metrics
    assert [each.scope.name for each in resource.scope_metrics] == ["dns", "other"]
    assert resource.scope_metrics[0].scope.attributes[0].value.string_value == "sha256:0"
    assert [metric.name for metric in resource.scope_metrics[0].metrics] == ["ebpf.things", "ebpf.level"]
    assert {each.key: each.value.string_value for each in resource.resource.attributes} == {
        "host.name": "bee",
        "service.name": "skep",
    }


def test_nothing_live_makes_no_request() -> None:
    """An empty export is not sent."""
    dead = FrameLiteral([counter()], [SeriesLiteral((), (1,), live=False)])
    assert otlp.metrics_requests(snapshot(dead)) == []
    assert otlp.metrics_requests(snapshot()) == []


@pytest.mark.parametrize("attributes", [b"\x3a", b"\x3a\x05abc", b"\x4a\x01a", b"\x3a\xff\xff\xff\xff\xff\x01", b"x"])
def test_attribute_bytes_that_are_none_are_refused(attributes: bytes) -> None:
    """A damaged arena is an error with the instrument's name, not a damaged message."""
    frame = FrameLiteral([histogram(bounds=(1.0,))], [SeriesLiteral((), (1, 2))], attribute_bytes=attributes)
    with pytest.raises(ValueError, match=r"ebpf_latency_seconds.*series 0 are no KeyValue"):
        otlp.metrics_requests(snapshot(frame))


def record_fields(*bodies: str) -> bytes:
    """Log records as ``LogBatch.otlp`` holds them."""
    logs = logs_pb2.ScopeLogs()
    for body in bodies:
        logs.log_records.add(time_unix_nano=1, event_name="ebpf.process.exit").body.string_value = body
    return logs.SerializeToString()


def test_log_records_are_wrapped_in_resource_and_scope() -> None:
    """Batches of one scope that follow each other share its message."""
    batches = [
        (Scope("exits", "2"), record_fields("a", "b")),
        (Scope("exits", "2"), record_fields("c")),
        (Scope("tcp"), record_fields("d" * 200)),
        (Scope("none"), b""),
    ]
    (request,) = otlp.logs(RESOURCE, batches)
    (resource,) = logs_service_pb2.ExportLogsServiceRequest.FromString(request.body).resource_logs
    assert [
        (each.scope.name, each.scope.version, [record.body.string_value for record in each.log_records])
        for each in resource.scope_logs
    ] == [("exits", "2", ["a", "b", "c"]), ("tcp", "", ["d" * 200])]
    assert [each.value.string_value for each in resource.resource.attributes] == ["skep", "bee"]
    assert request.items == 4


@patient
@given(st.lists(st.lists(st.text(max_size=200), max_size=6), max_size=4), st.integers(0, 900))
def test_split_log_requests_hold_every_record_once_and_keep_the_limit(bodies: list[list[str]], max_bytes: int) -> None:
    """Cut between records; only a lone record may be larger than the limit."""
    batches = [(Scope(f"scope {index % 2}"), record_fields(*texts)) for index, texts in enumerate(bodies)]
    requests = otlp.logs(RESOURCE, batches, max_bytes)
    found = []
    for request in requests:
        message = logs_service_pb2.ExportLogsServiceRequest.FromString(request.body)
        records = [
            (scope.scope.name, record.body.string_value)
            for resource in message.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]
        assert len(records) == request.items
        assert len(request.body) <= max_bytes or len(records) == 1
        found += records
    assert found == [(scope.name, text) for (scope, _), texts in zip(batches, bodies, strict=True) for text in texts]


def test_batch_that_holds_no_records_is_refused() -> None:
    """Wrong bytes never reach a collector."""
    with pytest.raises(ValueError, match="not fields with tag 0x12"):
        otlp.logs_requests(RESOURCE, [(Scope("x"), b"\x0a\x01a")])


@patient
@given(
    st.lists(st.sampled_from(["one", "two"]).flatmap(frames), max_size=3),
    st.lists(st.lists(st.text(max_size=20), max_size=6), max_size=3),
)
def test_halves_of_a_request_hold_what_it_held(drawn: list[FrameLiteral], bodies: list[list[str]]) -> None:
    """Every point and record once, in order; a single item has no halves."""
    for request in otlp.metrics(snapshot(*drawn)):
        halves = otlp.split(request)
        if halves is None:
            assert request.items == 1
            continue
        assert [point for half in halves for point in points_of(parsed(half.body))] == points_of(parsed(request.body))
        assert [half.items for half in halves] == [request.items // 2, request.items - request.items // 2]
        assert [sum(run.points for run in half.runs) for half in halves] == [half.items for half in halves]
    batches = [(Scope(f"scope {index % 2}"), record_fields(*texts)) for index, texts in enumerate(bodies)]
    for request in otlp.logs(RESOURCE, batches):
        halves = otlp.split(request)
        found = [
            record.body.string_value
            for half in halves or (request,)
            for resource in logs_service_pb2.ExportLogsServiceRequest.FromString(half.body).resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]
        assert found == [text for texts in bodies for text in texts]


def test_body_that_is_no_request_is_not_split() -> None:
    """A wrong count would book items that are not there."""
    request = otlp.logs(RESOURCE, [(Scope("x"), record_fields("a", "b"))])[0]
    with pytest.raises(ValueError, match="2 items, not 5"):
        otlp.split(otlp.Request(request.body, 5))
    with pytest.raises(ValueError, match="not an export request"):
        otlp.split(otlp.Request(b"\xff", 2))
