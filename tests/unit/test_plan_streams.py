"""Rings: what their records count, by name, by tag and by metadata, with events and without."""

from __future__ import annotations

import pytest

from exporter.model import CellType, Kind
from exporter.plan import Plan, TablePlan
from exporter.plan.plan import RecordRule, ValueRule
from exporter.plan.streams import BUMBLEBEE_EDGES
from tests.support.plans import instruments, plan_of, problems_of, table_of

CALL = "typedef u64 ktime_ns; typedef u64 duration; struct call { ktime_ns at; u32 pid; int code; duration value; };"
EVENT = 'RING(calls, struct call) TAG("kind=event") TAG("name=app.call")'


def labels(plan: Plan, name: str) -> list[str]:
    """Of the ring's one table."""
    return [rule.name for rule in table_of(plan, name).labels]


def test_ring_named_counter_counts_its_records_by_all_their_members() -> None:
    """BumbleBee's convention; the record's time is no label, padding neither."""
    plan = plan_of("typedef u64 ktime_ns; struct r { u32 pid; u32 pad; ktime_ns at; char comm[16]; };"
                   "RING(counter_opens, struct r);")  # fmt: skip
    table = table_of(plan, "counter_opens")
    assert labels(plan, "counter_opens") == ["pid", "comm"]
    assert (table.records, table.key_size, table.value_size) == (True, 0, 32)
    (metric,) = table.metrics
    assert (metric.instrument.prometheus_name, metric.instrument.kind) == ("ebpf_opens_total", Kind.COUNTER)
    assert metric.record == RecordRule()
    assert metric.instrument.description == "Records of eBPF ring buffer counter_opens"
    (stream,) = plan.streams
    assert (stream.event_name, stream.enabled, stream.metrics, stream.metrics_only) == (
        "counter_opens",
        False,
        True,
        True,
    )
    assert plan.read_maps == ("counter_opens",)
    assert [entry.clear_value_size for entry in plan.maps] == [True]


def test_counter_adds_the_member_that_is_its_value() -> None:
    """Then it is no label."""
    plan = plan_of('struct r { u32 pid; u32 bytes TAG("value=true"); }; RING(counter_sent, struct r) TAG("unit=By");')
    (metric,) = table_of(plan, "counter_sent").metrics
    assert metric.instrument.prometheus_name == "ebpf_sent_bytes_total"
    assert metric.record == RecordRule(ValueRule(32, 32))
    assert labels(plan, "counter_sent") == ["pid"]


@pytest.mark.parametrize("members", ["u32 pid; u64 value;", "u64 le; u32 pid;", 'u32 pid; s64 x TAG("value=true");'])
def test_ring_named_hist_observes_one_member_of_each_record(members: str) -> None:
    """The one named or tagged; the others are labels, and the sum comes for nothing."""
    plan = plan_of(f"struct r {{ {members} }}; RING(hist_size, struct r);")
    (metric,) = table_of(plan, "hist_size").metrics
    assert metric.instrument.has_sum
    assert metric.record is not None and metric.record.value is not None and metric.record.value.size_bits == 64
    assert metric.instrument.cell_type is (CellType.I64 if "s64" in members else CellType.U64)
    assert labels(plan, "hist_size") == ["pid"]
    expected = tuple(map(int, BUMBLEBEE_EDGES.edges)) if "le;" in members else tuple(1 << k for k in range(36))
    assert metric.record.edges == metric.instrument.bounds == expected
    assert any("nothing says the buckets" in note for note in plan.notes)


def test_declared_buckets_are_whole_below_and_in_the_unit_above() -> None:
    """Nanoseconds are compared with whole nanoseconds; seconds are shown."""
    source = CALL + 'RING(hist_wait, struct call) TAG("slots=edges:0.5,1e3,1e6");'
    (metric,) = table_of(plan_of(source), "hist_wait").metrics
    assert metric.record == RecordRule(ValueRule(128, 64), (0, 1000, 1000000))
    assert metric.instrument.bounds == (5e-10, 1e-6, 0.001)
    assert (metric.instrument.prometheus_name, metric.instrument.scale.exp10) == ("ebpf_wait_seconds", -9)


def test_record_that_is_one_number_is_observed_itself() -> None:
    """It has no member name."""
    (metric,) = table_of(plan_of("RING(hist_x, u32);"), "hist_x").metrics
    assert metric.record is not None and metric.record.value == ValueRule(0, 32)
    assert len(metric.record.edges) == 32


def test_members_of_a_counted_ring_may_be_metrics_of_their_own() -> None:
    """One read of a record feeds all; a number that is also named as a label stays one."""
    source = """struct r { u32 pid; u64 sent TAG("kind=counter") TAG("unit=By"); u64 took TAG("slots=log2_ceil:9")
                TAG("label=took"); }; RING(counter_calls, struct r);"""
    plan = plan_of(source)
    assert list(instruments(plan)) == ["ebpf_calls_total", "ebpf_calls_sent_bytes_total", "ebpf_calls_took"]
    assert labels(plan, "counter_calls") == ["pid", "took"]
    assert [metric.instrument.first_cell for metric in table_of(plan, "counter_calls").metrics] == [0, 1, 2]


def test_event_may_be_counted_and_observed_too() -> None:
    """Only members named for it are labels then: every other attribute may differ in every record."""
    source = CALL.replace("int code;", 'int code TAG("decode=errno") TAG("label=error") TAG("series=true");').replace(
        "duration value;", 'duration value TAG("kind=histogram");'
    )
    plan = plan_of(source + EVENT + ' TAG("count=app.calls");')
    table = table_of(plan, "calls")
    assert list(instruments(plan)) == ["app_calls_total", "app_call_value_seconds"]
    assert [(rule.name, rule.decoder) for rule in table.labels] == [("error", "errno")]
    (stream,) = plan.streams
    assert (stream.event_name, stream.enabled, stream.metrics, stream.metrics_only) == ("app.call", True, True, False)
    assert [rule.name for rule in stream.attributes] == ["pid", "error", "value"]
    assert stream.time == ValueRule(0, 64)


def test_metadata_makes_metrics_of_an_event() -> None:
    """As tags do, for objects that cannot be rebuilt; labels are named as the event's attributes are."""
    metadata = {
        "version": 1,
        "events": {"calls": {"name": "app.call", "labels": {"code": {"name": "error", "decode": "errno"}}}},
        "metrics": {
            "calls": {
                "kind": "histogram",
                "name": "app.latency",
                "value": "value",
                "unit": "ms",
                "labels": {"code": {}},
            },
            "calls.pid": {"kind": "counter", "name": "app.pids", "help": "Silly."},
        },
    }
    plan = plan_of(CALL + "RING(calls, struct call);", metadata=metadata)
    assert {name: one.description for name, one in instruments(plan).items()} == {
        "app_latency_milliseconds": "Member value of records of eBPF ring buffer calls",
        "app_pids_total": "Silly.",
    }
    assert labels(plan, "calls") == ["error"]
    assert plan.streams[0].enabled


def test_event_that_is_off_leaves_its_metrics_on() -> None:
    """And the program must go on making records."""
    source = "const volatile _Bool wanted = 0;" + CALL + EVENT + ' TAG("count=app.calls") TAG("switch=wanted");'
    program = 'SEC("xdp") int p(void *c) { return wanted; } char LICENSE[] SEC("license") = "GPL";'
    for metrics, value in (({}, b"\1"), ({"app_calls_total": {"enabled": False}}, b"\0")):
        plan = plan_of(source, program=program, events={"app.call": event_off()}, metrics=metric_configs(metrics))
        assert (plan.streams[0].enabled, plan.streams[0].metrics) == (False, bool(value[0]))
        assert [entry.value for entry in plan.globals] == [value]


def event_off() -> object:
    """``events: {NAME: {enabled: false}}``."""
    from exporter.config import EventConfig

    return EventConfig(enabled=False)


def metric_configs(entries: dict[str, dict[str, object]]) -> dict[str, object]:
    """``metrics:`` of an image."""
    from exporter.config import MetricConfig

    return {name: MetricConfig(**entry) for name, entry in entries.items()}  # type: ignore[arg-type]


def test_configuration_changes_metrics_of_records_as_it_does_those_of_rows() -> None:
    """Renamed, labels dropped, constant labels added, series bounded; parted by the labels they keep."""
    source = 'struct r { u32 pid; u32 cpu; u64 sent TAG("kind=counter"); }; RING(counter_calls, struct r);'
    metrics = {"ebpf_calls_total": {"rename": "calls_total", "drop_labels": ("pid",)}}
    plan = plan_of(source, metrics=metric_configs(metrics), labels={"tier": "db"})
    tables: list[TablePlan] = [table for table in plan.tables if table.records]
    assert [[rule.name for rule in table.labels] for table in tables] == [["cpu"], ["pid", "cpu"]]
    assert {table.constant_labels for table in tables} == {(("tier", "db"),)}
    assert list(instruments(plan)) == ["calls_total", "ebpf_calls_sent_total"]
    assert all(table.expire_idle for table in tables)


def test_ring_whose_metrics_are_all_off_is_still_emptied() -> None:
    """A full ring would be taken for a slow agent."""
    metrics = metric_configs({"ebpf_calls_total": {"enabled": False}})
    (stream,) = plan_of("RING(counter_calls, u32);", metrics=metrics).streams
    assert (stream.enabled, stream.metrics, stream.metrics_only) == (False, False, True)


def test_counted_ring_is_no_event_to_the_configuration() -> None:
    """There is nothing that could be turned on."""
    (text,) = problems_of("RING(counter_calls, u32);", events={"counter_calls": event_off()})
    assert "events.counter_calls: no such event; it has none" in text


def test_private_ring_stays_private() -> None:
    """Whatever its name."""
    plan = plan_of('RING(counter_x, u64) TAG("kind=none"); RING(y, u64);')
    assert not plan.streams and not plan.tables
    assert [entry.clear_value_size for entry in plan.maps] == [True, True]


def test_prefix_that_cannot_be_followed_is_noted_and_a_tag_that_cannot_is_an_error() -> None:
    """Only who asked by name is refused."""
    plan = plan_of("struct r { u32 a; u32 b; }; RING(hist_x, struct r); RING(gauge_y, u64);")
    assert not plan.streams
    assert any(note.startswith("map 'hist_x': not exported: a histogram observes one member") for note in plan.notes)
    assert any(note.startswith("map 'gauge_y': not exported: a gauge is what is there now") for note in plan.notes)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('struct r { u32 a; u32 b; }; RING(x, struct r) TAG("kind=histogram");', "observes one member of each record"),
        ('RING(x, u64) TAG("kind=gauge");', "a gauge is what is there now"),
        ('struct r { u32 a; char b[4] TAG("kind=counter"); }; RING(counter_x, struct r);',
         "which is no number for a counter"),
        ('struct r { u32 a TAG("kind=gauge"); }; RING(counter_x, struct r);', "expected counter or histogram"),
        ('struct r { u32 a TAG("value=true"); u32 b TAG("value=true"); }; RING(hist_x, struct r);', "expected one"),
        ('struct r { u32 value; u32 b TAG("label=le"); }; RING(hist_x, struct r);',
         "label 'le' is the histogram's own"),
        ('RING(hist_x, u64) TAG("slots=linear:10");', "does not say how many slots there are"),
        ('RING(hist_x, u64) TAG("slots=edges:0.1,0.2");', "fall together for whole numbers"),
        ('RING(x, u64) TAG("unit=s");', "it has unit but no kind; add kind=event, counter or histogram"),
        ('struct { __uint(type, RINGBUF); __uint(max_entries, 4096); } hist_x SEC(".maps");', "have no type"),
        ('struct v { u32 a TAG("value=true"); }; MAP(counter_x, HASH, 4, u32, struct v);',
         "what a ring's records count"),
        ('RING(counter_x, u64); MAP(counter_y, HASH, 4, u32, u64) TAG("name=ebpf.x");',
         "is also that of map 'counter_x'"),
    ],
)  # fmt: skip
def test_metric_of_records_that_cannot_be_is_an_error(source: str, words: str) -> None:
    """Before anything is loaded."""
    assert any(words in text for text in problems_of(source))


def test_metadata_about_members_that_are_not_there_is_an_error() -> None:
    """With what there is."""
    metadata = {"version": 1, "metrics": {"hist_x": {"value": "y"}, "hist_x.z": {"kind": "counter"}}}
    found = problems_of("struct r { u32 a; }; RING(hist_x, struct r);", metadata=metadata)
    assert "metadata 'metrics.hist_x' has value 'y', which is no member of the record; it has a" in found
    assert "metadata 'metrics.hist_x.z' names no member of the record; it has a" in found


def test_flexible_array_is_the_last_attribute_of_an_event() -> None:
    """A record may end where the array begins, before the struct's own padding."""
    source = "struct r { u64 a; u32 n; %s; }; RING(print_x, struct r);"
    for member, decoder, bits in (
        ("char text[]", "string", 8),
        ("u8 text[0]", "bytes", 8),
        ('u8 text[] TAG("decode=string")', "string", 8),
        ("s16 text[]", "int", 16),
        ('u32 text[] TAG("label=text")', "uint", 32),
    ):
        (stream,) = plan_of(source % member).streams
        assert stream.record_size == 12
        assert stream.tail is not None
        assert (stream.tail.name, stream.tail.decoder, stream.tail.offset_bits) == ("text", decoder, 96)
        assert stream.tail.size_bits == bits
    (stream,) = plan_of(source % 'u32 text[] TAG("drop=true")').streams
    assert stream.tail is None
    metadata = {"version": 1, "events": {"print_x": {"labels": {"text": {"name": "words"}}}}}
    (stream,) = plan_of(source % "char text[]", metadata=metadata).streams
    assert stream.tail is not None and stream.tail.name == "words"
    assert "shown as none" in problems_of(source % "struct { u32 a; } text[]")[0]
    assert "two labels are named 'a'" in problems_of(source % 'char text[] TAG("label=a")')[0]


def test_flexible_array_is_no_label_of_a_metric() -> None:
    """Its length differs from record to record."""
    plan = plan_of("struct r { u32 n; char text[]; }; RING(counter_x, struct r);")
    assert labels(plan, "counter_x") == ["n"]
    assert any("'text' is no label" in note for note in plan.notes)


PERF = """struct r {{ u64 number; char text[4]; }};
struct {{ __uint(type, PERF_EVENT_ARRAY); __uint(key_size, 4); {} }} {} SEC(".maps")"""


UNTYPED = PERF.format("__uint(value_size, 4);", "print_x")


def test_perf_event_array_is_read_like_a_ring() -> None:
    """Its value type is the record's; the kernel gets sizes of descriptors, and its buffers are in the memory."""
    plan = plan_of(PERF.format("__type(value, struct r);", "print_x") + ";", cpus=10)
    (stream,) = plan.streams
    assert (stream.source, stream.record_size, [rule.name for rule in stream.attributes]) == (
        "perf",
        16,
        ["number", "text"],
    )
    assert [(entry.name, entry.clear_value_size) for entry in plan.maps] == [("print_x", True)]
    assert plan.map_memory > 10 * (256 << 10)
    assert stream.description == "Records of eBPF perf event array print_x"
    assert instruments(plan_of(PERF.format("__type(value, struct r);", "counter_x") + ";")).keys() == {"ebpf_x_total"}


@pytest.mark.parametrize("value", ["__uint(value_size, 4);", "__type(value, u32);"])
@pytest.mark.parametrize("said", ["struct r", "r", "r_t"])
def test_record_type_of_a_map_without_one_is_found_by_its_name(value: str, said: str) -> None:
    """By tag or by metadata, where the object's BTF has the type."""
    array, rest = PERF.format(value, "x"), "; typedef struct r r_t; const r_t *unused;"
    tagged = plan_of(array + f' TAG("kind=event") TAG("record={said}")' + rest)
    document = plan_of(array + rest, metadata={"version": 1, "events": {"x": {"record": said}}})
    for plan in (tagged, document):
        (stream,) = plan.streams
        assert (stream.event_name, stream.record_size) == ("ebpf.x", 16)
        assert not plan.maps


@pytest.mark.parametrize("kind", ["QUEUE", "STACK"])
def test_queue_is_read_only_where_that_is_asked_for(kind: str) -> None:
    """What is read from it the program never sees again."""
    source = "struct r { u32 a; }; struct { __uint(type, %s); __uint(max_entries, 8); __type(value, struct r); }"
    source = source % kind + ' %s SEC(".maps") %s;'
    (stream,) = plan_of(source % ("x", 'TAG("kind=event")')).streams
    assert stream.source == kind.lower()
    (stream,) = plan_of(source % ("x", ""), metadata={"version": 1, "events": {"x": {}}}).streams
    assert stream.enabled
    assert instruments(plan_of(source % ("x", 'TAG("kind=counter")'))).keys() == {"ebpf_x_total"}
    for name in ("print_x", "counter_x"):
        plan = plan_of(source % (name, ""))
        assert not plan.streams and not plan.tables
        assert any("takes its values away from the program" in note for note in plan.notes)
    assert not plan_of(source % ("x", "")).streams


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (UNTYPED + ";", "its records have no type"),
        (UNTYPED + ' TAG("record=struct s");', "which the object's BTF does not have"),
        ('struct s { u64 a; } *unused; struct { __uint(type, QUEUE); __uint(max_entries, 8); __uint(value_size, 4); } '
         'x SEC(".maps") TAG("kind=event") TAG("record=struct s");', "of 8 bytes, its values have 4"),
        ('struct { __uint(type, USER_RINGBUF); __uint(max_entries, 4096); } x SEC(".maps") TAG("kind=event");',
         "there is nothing to read"),
    ],
)  # fmt: skip
def test_source_that_cannot_be_read_is_an_error(source: str, words: str) -> None:
    """Before anything is loaded."""
    assert any(words in text for text in problems_of(source))


def test_text_of_a_record_that_is_longer_than_any_label_is_left_out_and_told() -> None:
    """Foreign records carry whole command lines; what else they tell is shown."""
    plan = plan_of("struct call { u32 pid; char args[7680]; }; RING(print_x, struct call);")
    (stream,) = plan.streams
    assert [rule.name for rule in stream.attributes] == ["pid"]
    assert stream.record_size == 4, "programs send such a text as far as they filled it"
    assert any("record member 'args' left out: it is an array of 7680 chars" in note for note in plan.notes)
