"""What the agent's configuration changes about a plan, and what it must not name."""

import pytest

from exporter.config import AttachConfig, EventConfig, Limits, MetricConfig
from exporter.plan import Plan
from tests.support.clang import PROGRAM
from tests.support.plans import instruments, plan_of, problems_of, table_of

SOURCE = """
struct key { u32 device; u32 operation; };
struct value { u64 slots[4] TAG("slots=log2_ceil"); u64 sum; u64 errors TAG("kind=counter"); };
MAP(io, HASH, 100, struct key, struct value) TAG("kind=histogram") TAG("unit=s") TAG("help=Help.");
MAP(counter_off, HASH, 100, u32, u64) TAG("enabled=false");
RING(print_exits, u64);
"""


def planned(**config: object) -> Plan:
    """The plan of the source above with a configuration."""
    return plan_of(SOURCE, **config)  # type: ignore[arg-type]


def wrong(**config: object) -> str:
    """The one problem of the source above with a configuration."""
    (text,) = problems_of(SOURCE, **config)
    return text


def test_dropped_labels_part_a_map_into_tables() -> None:
    """Metrics of one frame have exactly the same labels; cells are counted anew in each."""
    plan = planned(metrics={"ebpf_io_seconds": MetricConfig(drop_labels=("device",))})
    tables = [table for table in plan.tables if table.map == "io"]
    assert [[rule.name for rule in table.labels] for table in tables] == [["operation"], ["device", "operation"]]
    assert [[metric.instrument.name for metric in table.metrics] for table in tables] == [
        ["ebpf.io"],
        ["ebpf.io.errors"],
    ]
    assert [table.metrics[0].instrument.first_cell for table in tables] == [0, 0]


def test_metric_that_is_off_is_turned_on_by_its_name() -> None:
    """And the other way round."""
    assert list(instruments(planned())) == ["ebpf_io_seconds", "ebpf_io_errors_total"]
    switched = {"ebpf_off_total": MetricConfig(enabled=True), "ebpf_io_seconds": MetricConfig(enabled=False)}
    assert list(instruments(planned(metrics=switched))) == ["ebpf_io_errors_total", "ebpf_off_total"]


@pytest.mark.parametrize(
    ("metric", "new", "prometheus", "otel"),
    [
        ("ebpf_io_seconds", "disk_wait_seconds", "disk_wait_seconds", "disk_wait"),
        ("ebpf_io_seconds", "disk_wait", "disk_wait", "disk_wait"),
        ("ebpf_io_seconds", "disk.wait", "disk_wait_seconds", "disk.wait"),
        ("ebpf_io_errors_total", "disk_errors_total", "disk_errors_total", "disk_errors"),
        ("ebpf_io_errors_total", "disk.errors", "disk_errors_total", "disk.errors"),
    ],
)
def test_rename_takes_either_name(metric: str, new: str, prometheus: str, otel: str) -> None:
    """A dotted name is OpenTelemetry's and gets unit and suffix; any other stands as it is."""
    found = instruments(planned(metrics={metric: MetricConfig(rename=new)}))
    assert found[prometheus].name == otel


def test_help_is_replaced() -> None:
    """One sentence for HELP and the OTLP description."""
    found = instruments(planned(metrics={"ebpf_io_seconds": MetricConfig(help="Ours.")}))
    assert found["ebpf_io_seconds"].description == "Ours."


def test_constant_labels_are_on_every_series_and_event() -> None:
    """In the order of the configuration."""
    plan = planned(labels={"tier": "db", "team": "x"})
    assert {table.constant_labels for table in plan.tables} == {(("tier", "db"), ("team", "x"))}
    assert plan.streams[0].constant_labels == (("tier", "db"), ("team", "x"))


def test_limits_and_expiry_reach_tables_and_streams() -> None:
    """They hold from the first day."""
    plan = planned(limits=Limits(series=7, events_per_s=9), expire_after_s=60.0, partial="refuse")
    assert {(table.series_limit, table.expire_after_s) for table in plan.tables} == {(7, 60.0)}
    assert plan.streams[0].events_per_s == 9
    assert plan.partial == "refuse"


def test_event_is_turned_off_by_its_name() -> None:
    """Its ring is still drained."""
    plan = planned(events={"ebpf.exits": EventConfig(enabled=False)})
    assert [stream.enabled for stream in plan.streams] == [False]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            {"metrics": {"ebpf_oi_seconds": MetricConfig()}},
            "image 'image': metrics.ebpf_oi_seconds: no such metric; "
            "it has ebpf_io_seconds, ebpf_io_errors_total, ebpf_off_total",
        ),
        (
            {"metrics": {"ebpf_io_seconds": MetricConfig(drop_labels=("disk",))}},
            "image 'image': metrics.ebpf_io_seconds.drop_labels: no label 'disk'; it has device, operation",
        ),
        (
            {"metrics": {"ebpf_io_errors_total": MetricConfig(rename="disk_errors")}},
            "image 'image': metrics.ebpf_io_errors_total.rename is 'disk_errors'; a counter's name ends in _total, "
            "write 'disk_errors_total'",
        ),
        (
            {"metrics": {"ebpf_io_seconds": MetricConfig(rename="a b")}},
            "image 'image': metrics.ebpf_io_seconds.rename is 'a b'; expected letters, digits and '_'",
        ),
        (
            {"metrics": {"ebpf_io_seconds": MetricConfig(rename="ebpf_io_errors_total")}},
            "map 'io': metric name 'ebpf_io_errors_total' is also that of map 'io'; give one of them another name",
        ),
        ({"events": {"ebpf.exit": EventConfig()}}, "image 'image': events.ebpf.exit: no such event; it has ebpf.exits"),
        ({"attach": {"on_swich": AttachConfig()}}, "image 'image': attach.on_swich: no such program; it has on_switch"),
        (
            {"attach": {"on_switch": AttachConfig(interfaces=("eth0",))}},
            "image 'image': attach.on_switch.interfaces has no meaning for section 'raw_tp/sched_switch'; "
            "expected target",
        ),
        (
            {"labels": {"device": "x"}},
            "image 'image': labels.device is already a label of map 'io'; name it otherwise",
        ),
        ({"labels": {"le": "x"}}, "image 'image': labels.le is no label name; use letters, digits, '_'"),
        ({"labels": {"a b": "x"}}, "image 'image': labels.a b is no label name; use letters, digits, '_'"),
        ({"labels": {"a.b": "x", "a_b": "y"}}, "image 'image': two of labels a.b, a_b become one name"),
    ],
)
def test_name_that_does_not_exist_is_an_error_that_lists_what_does(config: dict[str, object], text: str) -> None:
    """A typing mistake in YAML must not go unnoticed."""
    assert wrong(**config) == text


def test_program_that_its_section_leaves_out_is_loaded_when_attach_names_it() -> None:
    """A question mark before the section name is libbpf's way to say: not by itself."""
    program = 'SEC("?tp_btf/x") int on_x(void *context) { return 0; }' + PROGRAM
    assert [entry.name for entry in planned(program=program).programs] == ["on_switch"]
    plan = planned(program=program, attach={"on_x": AttachConfig(target="y")})
    assert {entry.name: entry.attach for entry in plan.programs} == {
        "on_x": AttachConfig(target="y"),
        "on_switch": None,
    }


def test_program_that_is_off_is_not_loaded_and_one_must_remain() -> None:
    """Objects carry two programs for one measurement, and their own user space leaves one out."""
    program = 'SEC("kprobe/x") int on_x(void *context) { return 0; }' + PROGRAM
    plan = planned(program=program, attach={"on_x": AttachConfig(enabled=False)})
    assert [entry.name for entry in plan.programs] == ["on_switch"]
    assert "program 'on_x': not loaded, as attach.on_x.enabled says" in plan.notes
    text = "image 'image': none of its programs is to be loaded; name one under attach (on_switch)"
    assert wrong(attach={"on_switch": AttachConfig(enabled=False)}) == text
    assert wrong(program='SEC("?tp_btf/x") int on_x(void *context) { return 0; }').endswith("attach (on_x)")


def test_object_without_programs_is_an_error() -> None:
    """There is nothing to load."""
    (text,) = problems_of("MAP(counter_x, HASH, 1, u32, u64);", program='char LICENSE[] SEC("license") = "GPL";')
    assert text == "object: it has no programs; mark a function with SEC(…)"


def test_object_that_exports_nothing_is_planned_with_a_note() -> None:
    """It may still be wanted for what it does."""
    assert plan_of("").notes[-1].startswith("nothing is exported")


def test_maps_beyond_the_memory_limit_are_refused_with_the_numbers_and_the_key() -> None:
    """Per-CPU maps count once for every possible CPU."""
    source = "MAP(counter_big, PERCPU_HASH, 100000, u64, u64); MAP(small, ARRAY, 10, u32, u64);"
    assert plan_of(source, cpus=4).map_memory < 64 << 20
    (text,) = problems_of(source, cpus=128)
    assert text == (
        "image 'image': its maps need 105.9 MiB on 128 CPUs ('counter_big' 105.9 MiB, 'small' 0.0 MiB), "
        "limits.map_memory is 64.0 MiB; raise limits.map_memory"
    )
    assert plan_of(source, cpus=128, limits=Limits(map_memory=128 << 20)).map_memory > 100 << 20


def test_scope_is_the_image_and_its_version() -> None:
    """OTel's instrumentation scope; no image label on series."""
    plan = planned(name="disk")
    assert (plan.scope.name, plan.scope.version) == ("disk", "1.0")
    assert not table_of(plan, "io").constant_labels
