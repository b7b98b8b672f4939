"""Metrics: from scalar values, struct values, slot arrays and slot keys; what has none is a note or an error."""

import pytest

from exporter.bpf import MapType
from exporter.config import MetricConfig
from exporter.model import CellType, Kind, Scale
from exporter.plan import HistogramRule, Plan, ValueRule
from exporter.plan.context import NOT_TABLES, SOURCES
from tests.support.plans import instruments, plan_of, problems_of, table_of


@pytest.mark.parametrize(
    ("value", "rule", "cell"),
    [
        ("u8", ValueRule(0, 8), CellType.U64),
        ("u64", ValueRule(0, 64), CellType.U64),
        ("s16", ValueRule(0, 16, signed=True), CellType.I64),
        ("s64", ValueRule(0, 64, signed=True), CellType.I64),
        ("float", ValueRule(0, 32, is_float=True), CellType.F64),
        ("double", ValueRule(0, 64, is_float=True), CellType.F64),
        ("bool", ValueRule(0, 8), CellType.U64),
    ],
)
def test_scalar_value_is_one_metric(value: str, rule: ValueRule, cell: CellType) -> None:
    """Of every width, sign and sort of number."""
    (metric,) = table_of(plan_of(f"MAP(gauge_x, HASH, 1, u32, {value});"), "gauge_x").metrics
    assert (metric.value, metric.instrument.cell_type, metric.instrument.name) == (rule, cell, "ebpf.x")


def test_struct_value_is_one_metric_a_number_with_its_own_cell() -> None:
    """Bit-fields and nested members included; what is no number is noted."""
    source = """
    struct value { u32 low:4, high:12; s32 depth; struct { u64 deep; } in; char text[8]; u8 pad; };
    MAP(gauge_x, HASH, 1, u32, struct value);
    """
    plan = plan_of(source)
    metrics = table_of(plan, "gauge_x").metrics
    assert [(metric.instrument.name, metric.value) for metric in metrics] == [
        ("ebpf.x.low", ValueRule(0, 4)),
        ("ebpf.x.high", ValueRule(4, 12)),
        ("ebpf.x.depth", ValueRule(32, 32, signed=True)),
        ("ebpf.x.in.deep", ValueRule(64, 64)),
    ]
    assert [metric.instrument.first_cell for metric in metrics] == [0, 1, 2, 3]
    assert plan.notes == ("map 'gauge_x': value member 'text' is not exported: an array of 8 chars makes no gauge",)


def test_duration_is_exported_in_seconds_unless_its_unit_is_said() -> None:
    """Prometheus wants base units; a declared unit decides the scale."""
    source = """
    typedef u64 duration;
    struct value {
        duration a; duration b TAG("unit=ms"); duration c TAG("unit=s") TAG("scale=1"); u64 d TAG("unit=By");
    };
    MAP(counter_x, HASH, 1, u32, struct value);
    """
    found = instruments(plan_of(source))
    assert {name: (one.unit, one.scale) for name, one in found.items()} == {
        "ebpf_x_a_seconds_total": ("s", Scale(exp10=-9)),
        "ebpf_x_b_milliseconds_total": ("ms", Scale(exp10=-6)),
        "ebpf_x_c_seconds_total": ("s", Scale()),
        "ebpf_x_d_bytes_total": ("By", Scale()),
    }


def test_member_may_say_everything_for_itself() -> None:
    """Kind, name, unit, help, or that it is no metric."""
    source = """
    struct value {
        u64 a; u64 b TAG("kind=gauge") TAG("name=ebpf.other") TAG("unit=1") TAG("help=Other.");
        u64 c TAG("drop=true"); u64 d TAG("kind=none"); u64 e TAG("enabled=false");
    };
    MAP(counter_x, HASH, 1, u32, struct value);
    """
    found = instruments(plan_of(source))
    assert list(found) == ["ebpf_x_a_total", "ebpf_other_ratio"]
    assert (found["ebpf_other_ratio"].kind, found["ebpf_other_ratio"].description) == (Kind.GAUGE, "Other.")


def test_members_with_a_kind_are_exported_from_a_map_without_one() -> None:
    """The rest of the value stays private."""
    source = 'struct value { u64 a TAG("kind=counter"); u64 b; }; MAP(state, HASH, 1, u32, struct value);'
    assert list(instruments(plan_of(source))) == ["ebpf_state_a_total"]


def test_metadata_gives_a_map_all_that_tags_can() -> None:
    """And a member of its value by map.member."""
    source = "struct value { u64 a; u64 b; }; MAP(calls, HASH, 1, u32, struct value);"
    metrics = {
        "calls": {"kind": "counter", "name": "ebpf.call"},
        "calls.a": {"unit": "s", "scale": 1e-6, "help": "A."},
        "calls.b": {"kind": "none"},
    }
    (instrument,) = instruments(plan_of(source, metadata={"version": 1, "metrics": metrics})).values()
    assert (instrument.name, instrument.unit, instrument.scale) == ("ebpf.call.a", "s", Scale(exp10=-6))


def test_metadata_makes_a_tagged_map_private() -> None:
    """The stronger word counts."""
    plan = plan_of(
        "MAP(counter_x, HASH, 1, u32, u64);", metadata={"version": 1, "metrics": {"counter_x": {"kind": "none"}}}
    )
    assert not plan.tables
    assert "map 'counter_x': not exported: its kind is none" in plan.notes


SLOTS = 'struct value {{ {members} }}; MAP(h, HASH, 1, u32, struct value) TAG("kind=histogram") {tags};'


def histogram(members: str, tags: str = "") -> tuple[HistogramRule, tuple[float, ...], Scale, CellType]:
    """The only histogram of a struct value."""
    (metric,) = table_of(plan_of(SLOTS.format(members=members, tags=tags)), "h").metrics
    assert metric.histogram is not None
    return metric.histogram, metric.instrument.bounds, metric.instrument.scale, metric.instrument.cell_type


def test_slot_array_and_the_sum_beside_it_are_one_histogram() -> None:
    """Edges and sum may be kept in different units."""
    members = 'u64 slots[4] TAG("slots=log2_ceil") TAG("scale=1e-6"); u64 sum TAG("sum=true") TAG("scale=1e-9");'
    rule, bounds, scale, cell = histogram(members)
    assert rule == HistogramRule(slot=None, slots=ValueRule(0, 64), slot_count=4, sum=ValueRule(256, 64))
    assert (bounds, scale, cell) == ((1e-06, 2e-06, 4e-06), Scale(exp10=-9), CellType.U64)


def test_scale_of_the_map_counts_for_slots_and_sum() -> None:
    """Unless they say their own."""
    _, bounds, scale, _ = histogram("u32 slots[3]; u64 sum;", 'TAG("scale=1e-3") TAG("slots=log2_floor")')
    assert (bounds, scale) == ((0.001, 0.003), Scale(exp10=-3))


def test_slots_in_a_map_of_another_kind_are_a_histogram_of_their_own() -> None:
    """With a name, unit and help of its own; slots alone are word enough."""
    members = 'u64 calls; u64 slots[3] TAG("slots=log2_ceil"); u64 sum;'
    source = f"struct value {{ {members} }}; MAP(m, HASH, 1, u32, struct value)"
    counter = instruments(plan_of(source + 'TAG("kind=counter") TAG("name=ebpf.x") TAG("unit=s");'))
    assert {name: one.kind for name, one in counter.items()} == {
        "ebpf_x_slots": Kind.HISTOGRAM,
        "ebpf_x_calls_total": Kind.COUNTER,
    }
    assert list(instruments(plan_of(source + ";"))) == ["ebpf_m_slots"]


def test_signed_sum_makes_signed_cells() -> None:
    """Values below zero bring a sum down."""
    assert histogram("u64 slots[3]; s64 sum;")[3] is CellType.I64


def test_array_that_is_the_whole_value_is_a_histogram_without_a_sum() -> None:
    """Its slots are then numbered as bcc does, and the plan says so."""
    plan = plan_of("typedef u64 hist_t[5]; MAP(hist_x, PERCPU_ARRAY, 1, u32, hist_t);")
    (metric,) = table_of(plan, "hist_x").metrics
    assert metric.instrument.bounds == (1, 3, 7, 15) and not metric.instrument.has_sum
    (note,) = plan.notes
    assert note == "map 'hist_x': nothing says how its slots are numbered; taken as log2_floor, as bcc's log2l() does"


def test_histogram_stands_beside_counters_of_the_same_row() -> None:
    """Every instrument has its own cells."""
    members = 'u64 slots[4]; u64 sum; u64 errors TAG("kind=counter"); u64 other;'
    plan = plan_of(SLOTS.format(members=members, tags='TAG("slots=log2_ceil")'))
    metrics = table_of(plan, "h").metrics
    assert [(metric.instrument.name, metric.instrument.first_cell) for metric in metrics] == [
        ("ebpf.h", 0),
        ("ebpf.h.errors", 5),
    ]
    assert any("value member 'other' is not exported" in note for note in plan.notes)


@pytest.mark.parametrize("member", ["u32 slot", "u8 bucket", 'u16 nr TAG("slot=true")'])
def test_last_key_member_called_slot_is_the_slot_number(member: str) -> None:
    """And no label; the value counts it."""
    source = f'struct key {{ u32 a; {member}; }}; MAP(hist_x, HASH, 9, struct key, u64) TAG("slots=log2_floor:8");'
    table = table_of(plan_of(source), "hist_x")
    rule = table.metrics[0].histogram
    assert [label.name for label in table.labels] == ["a"]
    assert rule is not None and rule.slot is not None and rule.slot.offset_bits == 32
    assert (rule.slots, rule.slot_count, rule.count) == (None, 8, ValueRule(0, 64))


@pytest.mark.parametrize(
    ("source", "slots"),
    [
        ('MAP(hist_x, HASH, 9, u32, u64) TAG("slots=log2_ceil");', 65),
        ('MAP(hist_x, HASH, 9, u32, u64) TAG("slots=edges:1,5");', 3),
        ('MAP(hist_x, ARRAY, 20, u32, u64) TAG("slots=log2_ceil");', 20),
        ('MAP(hist_x, ARRAY, 20, u32, u64) TAG("slots=linear:10");', 20),
        ('MAP(hist_x, HASH, 9, u32, u64) TAG("slots=linear:10:0:7");', 7),
    ],
)
def test_slots_of_a_bare_key_are_as_many_as_the_scheme_or_the_array_has(source: str, slots: int) -> None:
    """A key does not say how large it can be."""
    rule = table_of(plan_of(source), "hist_x").metrics[0].histogram
    assert rule is not None and rule.slot_count == slots


def test_slot_key_may_count_and_sum_in_a_struct() -> None:
    """Each row then brings its part of the sum."""
    source = """
    struct key { u32 a; u32 slot; }; struct value { u64 count; u64 sum; };
    MAP(hist_x, HASH, 9, struct key, struct value) TAG("slots=log2_ceil:4") TAG("scale=1e-9");
    """
    (metric,) = table_of(plan_of(source), "hist_x").metrics
    assert metric.histogram == HistogramRule(
        slot=ValueRule(32, 32), slots=None, slot_count=4, count=ValueRule(0, 64), sum=ValueRule(64, 64)
    )
    assert metric.instrument.has_sum


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("MAP(hist_x, HASH, 9, u32, u64) TAG(\"slots=linear:5\");", "does not say how many slots there are"),
        ("struct key { u32 a; u32 b; }; MAP(hist_x, HASH, 9, struct key, u64);", "needs an array of slots"),
        ("MAP(hist_x, HASH, 9, u32, s32);", "a histogram's count is an unsigned integer"),
        ("struct value { u64 a; u64 b; }; MAP(hist_x, HASH, 9, u32, struct value);", "name it count"),
        (SLOTS.format(members="u64 slots[600];", tags=""), "600 histogram slots; expected 1 to 512"),
        (SLOTS.format(members="u64 slots[5];", tags='TAG("slots=edges:1,2")'), "5 histogram slots for 2 edges"),
        (SLOTS.format(members="u64 slots[5]; double sum;", tags=""), "a sum is an integer of up to 64 bits"),
        (SLOTS.format(members='u64 slots[5]; u64 a TAG("sum=true"); u64 sum;', tags=""), "1 slot arrays and 2 sums"),
        (SLOTS.format(members='u64 slots[5]; u64 x[5] TAG("slots=log2_ceil"); u64 sum;', tags=""), "2 slot arrays"),
        ("struct key { u32 le; }; struct v { u64 slots[3]; }; MAP(hist_x, HASH, 9, struct key, struct v);", "'le' is"),
        ('struct v { char t[8]; }; MAP(x, HASH, 9, u32, struct v) TAG("kind=counter");', "no member that can be"),
        ("typedef char text_t[8]; MAP(counter_x, HASH, 9, u32, text_t);", "its value is an array of 8 chars"),
        ("MAP(counter_x, HASH, 9, u32, unsigned __int128);", "which is no number for a counter"),
        ('struct v { char t[4] TAG("kind=gauge"); }; MAP(x, HASH, 9, u32, struct v);', "'t' is an array of 4 chars"),
        ('struct v { u64 t TAG("kind=event"); }; MAP(x, HASH, 9, u32, struct v);', "has kind 'event'"),
        ('MAP(x, HASH, 9, u32, u64) TAG("unit=s");', "it has unit but no kind"),
        ('MAP(x, HASH, 9, u32, u64) TAG("kind=total");', "'total'; expected one of counter, gauge"),
        ('MAP(x, HASH, 9, u32, u64) TAG("kind=counter") TAG("name=9x");', "metric name '9x'"),
        ('MAP(x, HASH, 9, u32, u64) TAG("kind=counter") TAG("unit=two words");', "unit 'two words'"),
        ('MAP(x, HASH, 9, u32, u64) TAG("kind=counter") TAG("scale=0");', "scale '0'"),
        ('MAP(x, HASH, 9, u32, u64) TAG("kind=counter") TAG("colour=red");', "tag 'skep:colour=red'"),
        ('MAP(x, HASH, 9, u32, u64) TAG("kind=counter") TAG("name=skep.x");', "begins as the agent's own do"),
        ("struct { __uint(type, ARRAY_OF_MAPS); __uint(max_entries, 1); __type(key, u32); __type(value, u32); } "
         "x SEC(\".maps\");", "nothing says what maps it holds; declare __array(values"),
        ('MAP(x, STACK_TRACE, 9, u32, u64) TAG("kind=counter");', "cannot be a counter: map type stack_trace holds"),
        ('MAP(x, HASH, 9, u32, u64) TAG("kind=event");', "events come from ring buffers, this is map type hash"),
        ("struct { __uint(type, HASH); __uint(max_entries, 1); __uint(key_size, 4); __uint(value_size, 8); } "
         "counter_x SEC(\".maps\");", "its value has no type; declare __type(value, …)"),
        ("struct { __uint(type, HASH); __uint(max_entries, 1); __uint(key_size, 4); __type(value, u64); } "
         "counter_x SEC(\".maps\");", "its key has no type; declare __type(key, …)"),
        ("struct { __uint(type, RINGBUF); __uint(max_entries, 4096); } print_x SEC(\".maps\");", "have no type"),
    ],
)  # fmt: skip
def test_value_that_cannot_be_what_is_asked_is_an_error_that_names_the_map(source: str, words: str) -> None:
    """One line for each, with what to do."""
    found = problems_of(source)
    assert any(words in text and text.startswith("map ") and "\n" not in text for text in found), found


def test_all_problems_come_at_once_and_each_once() -> None:
    """Nobody likes to fix one and be shown the next."""
    source = """
    struct key { u32 u[300]; u32 t[300]; };
    MAP(counter_a, HASH, 9, struct key, u64); MAP(counter_b, HASH, 9, u32, unsigned __int128);
    """
    found = problems_of(source, globals={"no": 1}, metadata={"version": 1, "metrics": {"none": {}}})
    assert len(found) == len(set(found)) == 5
    assert [text.partition(":")[0] for text in found] == [
        "metadata 'metrics.none'",
        "map 'counter_a'",
        "map 'counter_a'",
        "map 'counter_b'",
        "image 'image'",
    ]


def test_prefix_on_a_map_without_rows_is_only_a_note() -> None:
    """A name is a weaker word than a tag."""
    plan = plan_of("MAP(counter_x, STACK_TRACE, 9, u32, u64);")
    assert plan.notes[0].startswith("map 'counter_x': not exported: cannot be a counter: map type stack_trace ")


@pytest.mark.parametrize("number", [*NOT_TABLES, 40])
def test_every_map_type_without_rows_says_why_in_one_line(number: int) -> None:
    """Also one that the kernel got after this skep was made."""
    source = f"struct {{ __uint(type, {number}); __uint(max_entries, 1); __type(key, u32); __type(value, u32); }} "
    source += 'x SEC(".maps") TAG("kind=gauge");'
    (text,) = problems_of(source)
    assert text.startswith("map 'x': ") and "\n" not in text and len(text) < 250
    if number not in (*SOURCES, MapType.USER_RINGBUF):
        assert f"map type {MapType(number).name.lower() if number in MapType.__members__.values() else number} " in text


def test_two_maps_with_one_metric_name_are_an_error_that_names_both() -> None:
    """Also where a histogram's count meets another metric."""
    (text,) = problems_of('MAP(counter_x, HASH, 9, u32, u64); MAP(x, HASH, 9, u32, u64) TAG("kind=counter");')
    assert text == (
        "map 'x': metric name 'ebpf_x_total' is also that of map 'counter_x'; give one of them another name"
    )
    source = """
    typedef u64 h_t[3]; MAP(hist_x, ARRAY, 1, u32, h_t);
    MAP(g, HASH, 9, u32, u64) TAG("kind=gauge") TAG("name=ebpf.x.count");
    """
    (text,) = problems_of(source)
    assert "'ebpf_x_count' is also that of map 'hist_x'" in text


def test_ring_of_records_is_an_event_stream() -> None:
    """Time and loss are taken from where the author says; the kernel wants no value size."""
    source = """
    typedef u64 ktime_ns; struct record { u32 code; u64 at TAG("time=true"); char comm[16]; };
    MAP(lost, PERCPU_ARRAY, 1, u32, u64);
    RING(events, struct record)
        TAG("kind=event") TAG("name=ebpf.x.y") TAG("severity=error") TAG("lost=lost") TAG("help=H.");
    """
    plan = plan_of(source)
    (stream,) = plan.streams
    assert (stream.event_name, stream.severity, stream.lost_map, stream.description) == ("ebpf.x.y", 17, "lost", "H.")
    assert stream.time == ValueRule(64, 64)
    assert [rule.name for rule in stream.attributes] == ["code", "comm"]
    assert stream.record_size == 32
    assert [(entry.name, entry.clear_value_size) for entry in plan.maps] == [("events", True)]
    assert plan.read_maps == ("events", "lost")


def test_private_ring_with_a_value_type_is_made_creatable_too() -> None:
    """The kernel refuses a ring with a value size, whoever reads it."""
    plan = plan_of("RING(mine, u64);")
    assert not plan.streams and plan.maps[0].clear_value_size


def test_record_that_is_one_number_has_one_attribute() -> None:
    """It has no member name."""
    (stream,) = plan_of("RING(print_x, u64);").streams
    assert [(rule.name, rule.decoder) for rule in stream.attributes] == [("value", "uint")]


def test_metadata_about_an_event_belongs_under_events() -> None:
    """What is said in the wrong place must not go unheard."""
    metadata = {"version": 1, "metrics": {"print_x": {"help": "Help."}}}
    assert problems_of("RING(print_x, u64);", metadata=metadata) == [
        "metadata 'metrics.print_x' is about a map of events; say it under 'events.print_x'"
    ]


def test_metadata_describes_an_event() -> None:
    """Name, severity, labels, time and whether it is on."""
    source = "struct record { u32 code; u64 at; }; RING(events, struct record);"
    event = {
        "name": "ebpf.e",
        "severity": "debug",
        "enabled": False,
        "labels": {"code": {"decode": "errno"}},
        "time": "at",
    }
    (stream,) = plan_of(source, metadata={"version": 1, "events": {"events": event}}).streams
    assert (stream.event_name, stream.severity, stream.enabled) == ("ebpf.e", 5, False)
    assert [(rule.name, rule.decoder) for rule in stream.attributes] == [("code", "errno")]
    assert stream.time == ValueRule(64, 64)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('RING(e, u64) TAG("kind=event") TAG("lost=none");', "lost is 'none', which is no map; the object has e"),
        ('MAP(l, HASH, 1, u32, u64); RING(e, u64) TAG("kind=event") TAG("lost=l");', "expected an array of u64"),
        ('struct r { u32 at TAG("time=true"); }; RING(e, struct r) TAG("kind=event");', "the u64 of bpf_ktime_get_ns"),
        ('RING(e, u64) TAG("kind=event") TAG("severity=fatal");', "'fatal'; expected one of trace, debug"),
        ('RING(e, u64) TAG("kind=event") TAG("name=x"); RING(f, u64) TAG("kind=event") TAG("name=x");', "map 'e'"),
    ],
)  # fmt: skip
def test_event_that_cannot_be_is_an_error(source: str, words: str) -> None:
    """Before anything is loaded."""
    assert any(words in text for text in problems_of(source))


def elements(plan: Plan, name: str) -> list[tuple[str, int, int, list[str]]]:
    """Of each metric of a map: its name, elements, their stride, and the labels."""
    return [
        (metric.instrument.name, table.elements, table.element_stride, [rule.name for rule in table.labels])
        for table in plan.tables
        if table.map == name
        for metric in table.metrics
    ]


def test_array_in_a_value_is_a_series_for_each_element() -> None:
    """The index lies behind the key; scalars beside it keep the key's labels alone."""
    source = """
    struct v { u64 total; u64 by_cpu[8] TAG("index=cpu"); u32 by_mode[2][2];
               struct { u64 a; u32 b TAG("kind=gauge"); } op[3] TAG("index=op");
               char text[8]; u8 raw[6]; };
    MAP(counter_x, HASH, 9, u32, struct v);
    """
    plan = plan_of(source)
    assert elements(plan, "counter_x") == [
        ("ebpf.x.total", 1, 0, ["key"]),
        ("ebpf.x.by_cpu", 8, 8, ["key", "cpu"]),
        ("ebpf.x.by_mode", 4, 4, ["key", "index"]),
        ("ebpf.x.op.a", 3, 16, ["key", "op"]),
        ("ebpf.x.op.b", 3, 16, ["key", "op"]),
    ]
    table = plan.tables[1]
    assert (table.row_key_size, table.labels[-1].offset_bits, table.labels[-1].decoder) == (8, 32, "uint")
    assert table.metrics[0].value == ValueRule(64, 64)


def test_value_that_is_an_array_is_a_series_for_each_element() -> None:
    """Of a map of one row the index is the only label, and may be shown by an enum's names."""
    source = """
    enum op { OP_READ, OP_WRITE }; enum op unused;
    MAP(counter_x, PERCPU_ARRAY, 1, u32, u64[2]) TAG("index=op:enum(op)");
    MAP(gauge_y, ARRAY, 1, u32, double[3]); MAP(z, ARRAY, 1, u32, u8[2]) TAG("kind=gauge");
    struct io { u64 calls; u64 bytes; }; MAP(counter_w, HASH, 9, u32, struct io[4]) TAG("index=cpu");
    """
    plan = plan_of(source)
    (rule,) = table_of(plan, "counter_x").labels
    assert (rule.name, rule.decoder, rule.values) == ("op", "enum", ((0, "read"), (1, "write")))
    assert not table_of(plan, "counter_x").expire_idle
    assert table_of(plan, "gauge_y").elements == 3
    assert table_of(plan, "z").element_stride == 1
    assert elements(plan, "counter_w") == [
        ("ebpf.w.calls", 4, 16, ["key", "cpu"]),
        ("ebpf.w.bytes", 4, 16, ["key", "cpu"]),
    ]


def test_histogram_in_an_array_of_structs_is_one_for_each_element() -> None:
    """Slots and sum of one element belong together."""
    source = """
    struct latency { u64 slots[5] TAG("slots=log2_ceil"); u64 sum; };
    struct v { struct latency op[2]; };
    MAP(hist_x, HASH, 9, u32, struct v);
    """
    plan = plan_of(source)
    (table,) = plan.tables
    (metric,) = table.metrics
    assert metric.histogram and metric.histogram.slots and metric.histogram.sum
    assert (table.elements, table.element_stride, metric.histogram.slot_count) == (2, 48, 5)
    assert metric.instrument.has_sum and metric.instrument.kind is Kind.HISTOGRAM


def test_index_label_can_be_dropped_by_configuration() -> None:
    """The elements are then added up."""
    plan = plan_of(
        "MAP(counter_x, HASH, 9, u32, u64[4]);", metrics={"ebpf_x_total": MetricConfig(drop_labels=("index",))}
    )
    assert elements(plan, "counter_x") == [("ebpf.x", 4, 8, ["key"])]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("MAP(counter_x, ARRAY, 9, u32, u64[4]);", "label 'index' is that of its elements; name that one with index="),
        ("MAP(counter_x, HASH, 9, u32, u64[5000]);", "has 5000 elements, each a series; at most 4096"),
        (
            'MAP(counter_x, HASH, 9, u32, u64[4]) TAG("index=a:float");',
            "index=a:float: an index is an unsigned integer",
        ),
        ("MAP(counter_x, HASH, 9, u32, void *);", "its value is a pointer, which is no number for a counter"),
        ("MAP(counter_x, HASH, 9, u32, unsigned __int128);", "unsigned integer of 128 bits, which is no number"),
    ],
)
def test_array_or_value_that_cannot_be_series_is_an_error_that_names_the_map(source: str, words: str) -> None:
    """With what to do."""
    assert any(words in text for text in problems_of(source)), problems_of(source)


def test_member_of_a_union_in_a_value_is_exported_only_if_it_says_so() -> None:
    """Only the author knows which of them holds."""
    source = """
    struct v { u64 a; union { u64 b TAG("kind=gauge"); u32 c; } u; union { u64 d; u32 e; } w; };
    MAP(counter_x, HASH, 9, u32, struct v);
    """
    plan = plan_of(source)
    assert [name for name, *_ in elements(plan, "counter_x")] == ["ebpf.x.a", "ebpf.x.u.b"]
    assert any("'w' is not exported: a union" in note for note in plan.notes)
