"""Invariant: whatever object, tags, metadata and configuration, ``make_plan`` returns a Plan or raises what is wrong.

A plan that is returned can be measured by: names are valid and single, cells do
not overlap, every rule lies inside its row, bounds increase.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from exporter.agent.program import plan_identity
from exporter.bpf import ObjectSpec, read_object
from exporter.cli.build import summary
from exporter.cli.plan import plan_json, plan_text
from exporter.collect import RecordDecoder
from exporter.collect.histogram import compile_values
from exporter.collect.labels import ATTRIBUTE_OF_POINT, compile_labels
from exporter.collect.tally import compile_records
from exporter.config import AttachConfig, EventConfig, ImageConfig, Limits, MetricConfig
from exporter.dashboard import render
from exporter.dashboard.image import image_board
from exporter.errors import ObjectError, PlanError, Problems
from exporter.model import Kind, prometheus_label
from exporter.plan import DECODERS, LabelRule, Plan, ValueRule, make_plan, parse_metadata
from exporter.plan.decoders import compile_step, parse_expression
from exporter.plan.metadata import KINDS
from tests.support.clang import compile_bpf
from tests.support.elfwriter import BtfWriter, ObjectWriter

SOURCE = """
enum op { OP_READ, OP_WRITE };
struct key { u32 device; enum op op; char comm[16]; union { u32 x TAG("label=x"); u64 y; } un; u32 slot; };
struct value { u64 slots[5]; u64 sum; s32 depth; double load; };
MAP(counter_a, HASH, 10, struct key, u64); MAP(hist_b, PERCPU_HASH, 10, u32, struct value);
RING(print_c, struct key); MAP(lost, ARRAY, 1, u32, u64); const volatile u32 limit;
"""
RICH = """
struct { __uint(type, STACK_TRACE); __uint(max_entries, 9); __uint(key_size, 4); __uint(value_size, 64); }
    stacks SEC(".maps");
struct end { u16 family; u16 pad; union { u32 v4 TAG("case=2"); u64 id TAG("case=*"); } who TAG("union=family"); };
struct inner_key { u32 tgid; s32 stack TAG("decode=ustack"); struct end peer; };
struct inner_value { u64 total; struct { u64 n; u64 slots[4]; u64 sum; } by[3]; u32 each[5]; };
struct inner { __uint(type, HASH); __uint(max_entries, 9); __type(key, struct inner_key);
    __type(value, struct inner_value); } spare SEC(".maps") = {};
struct { __uint(type, 13); __uint(max_entries, 9); __type(key, u64); __array(values, struct inner); }
    counter_held SEC(".maps");
struct trie_key { u32 bits; u8 address[4]; struct end peer; };
MAP(gauge_nets, LPM_TRIE, 9, struct trie_key, struct inner_value);
struct task { u64 n; u32 each[3]; }; enum mode { MODE_A = 1, MODE_B = 2 };
struct { __uint(type, 29); __uint(map_flags, 1); __type(key, int); __type(value, struct task); }
    counter_tasks SEC(".maps");
struct line { u64 at; s32 stack TAG("decode=kstack"); u32 pid; u64 took; struct end pair[2]; char text[]; };
RING(print_lines, struct line); MAP(counter_queue, QUEUE, 9, u32, struct end);
struct inner_value variables[2]; enum mode level TAG("kind=gauge");
const volatile enum mode wanted; const volatile bool on;
"""
RICH_PROGRAM = """
SEC("raw_tp/sched_switch") int on_switch(void *context) {
    __sync_fetch_and_add(&variables[1].total, wanted + on); level = 2; return 0; }
char LICENSE[] SEC("license") = "GPL";
"""
RICH_MAPS = [
    "counter_held", "counter_held.by", "counter_held.by.slots", "counter_held.each", "gauge_nets", "gauge_nets.total",
    "gauge_nets.by.n", "counter_tasks", "counter_tasks.each", "print_lines", "print_lines.took", "counter_queue",
    "counter_queue.family", "variables", "variables.by", "variables.each", "level",
]  # fmt: skip
RICH_MEMBERS = [
    "tgid", "stack", "peer", "peer.who", "peer.family", "outer", "address", "bits", "pid", "comm", "tid", "text", "at",
    "pair", "pair.0.who", "pair.1.family", "index", "took",
]  # fmt: skip
JUNK = st.none() | st.booleans() | st.integers(-5, 300) | st.floats(allow_nan=False) | st.text(max_size=12)
SAID: dict[str, list[object]] = {
    "kind": [*KINDS],
    "name": ["a.b", "ebpf.x", "ebpf.a", "x"],
    "unit": ["", "s", "By", "By/s", "1", "{x}"],
    "scale": ["1", "1e-9", "0.25", 1e-6, 1000],
    "help": ["Help.", ""],
    "slots": ["log2_ceil", "log2_floor", "log2_floor:5", "linear:5:0:9", "linear:2:0:5", "edges:1,2,3,4"],
    "enabled": [True, False],
    "sum": [True, False],
    "value": ["slot", "op", "comm", "took", "pid"],
    "index": ["i", "cpu:uint", "by:enum(mode)"],
    "record": ["struct line", "struct end", "duration"],
    "switch": ["on", "wanted"],
    "severity": ["warn", "trace"],
    "lost": ["lost", "counter_a"],
    "time": ["device", "un.y"],
}
MEMBERS = ["device", "op", "comm", "un", "un.x", "un.y", "slot", "key"]
MAPS = [
    "counter_a",
    "hist_b",
    "hist_b.sum",
    "hist_b.slots",
    "hist_b.depth",
    "print_c",
    "print_c.slot",
    "print_c.op",
    "lost",
]
NAMES = ["ebpf_a_total", "ebpf_b", "ebpf_b_depth", "ebpf.c", "on_switch", "limit"]


def mapping(draw: st.DrawFn, keys: list[str], noise: bool, limit: int = 3) -> list[str]:
    """A few keys, and with noise one that nobody knows."""
    chosen = draw(st.lists(st.sampled_from(keys), max_size=limit, unique=True))
    return [*chosen, draw(st.text(max_size=6))] if noise and draw(st.booleans()) else chosen


def value(draw: st.DrawFn, key: str, noise: bool) -> object:
    """Something that may be said under a key, or with noise anything."""
    if noise and draw(st.integers(0, 3)) == 0:
        return draw(JUNK)
    return draw(st.sampled_from(SAID[key])) if key in SAID else draw(JUNK)


def label(draw: st.DrawFn, noise: bool) -> object:
    """What may be said of a member."""
    decoders = st.sampled_from(sorted(DECODERS))
    forms: list[st.SearchStrategy[object]] = [
        st.just({}), st.just({"drop": True}), st.just({"slot": True}), st.builds(dict, decode=decoders),
        st.builds(dict, name=st.sampled_from(["n", "m.n"])), st.just({"labels": {"p": "uint", "q": "hex"}}),
        st.builds(dict, stack=st.sampled_from(["stacks", "none"])), st.just({"union": "family", "case": "*"}),
    ]  # fmt: skip
    return draw(st.one_of(*forms, JUNK) if noise else st.one_of(*forms))


@st.composite
def documents(
    draw: st.DrawFn, maps: Sequence[str] = MAPS, members: Sequence[str] = MEMBERS, ring: str = "print_c"
) -> dict[str, object]:
    """A metadata document for an object of these maps, in half of the cases with noise in it."""
    noise = draw(st.booleans())
    parts = ["kind", "name", "unit", "scale", "help", "slots", "enabled", "sum", "value", "index"]
    metrics: dict[str, object] = {}
    for name in mapping(draw, [*maps], noise):
        entry: dict[str, object] = {key: value(draw, key, noise) for key in mapping(draw, parts, noise)}
        if "." not in name or noise:
            entry["labels"] = {member: label(draw, noise) for member in mapping(draw, [*members], noise, 2)}
        metrics[name] = entry
    events: dict[str, object] = {}
    for name in mapping(draw, [ring], noise, 1):
        parts = ["name", "severity", "enabled", "help", "lost", "time", "record", "switch"]
        events[name] = {key: value(draw, key, noise) for key in mapping(draw, parts, noise)}
    return {"version": 1, "metrics": metrics, "events": events}


@st.composite
def configs(draw: st.DrawFn) -> ImageConfig:
    """A configuration for the object above, in half of the cases with noise in it."""
    noise = draw(st.booleans())
    text = st.text(max_size=8) if noise else st.sampled_from(["tier", "team", "x.y"])
    metric = st.builds(
        MetricConfig,
        enabled=st.none() | st.booleans(),
        rename=st.text(max_size=6) if noise else st.sampled_from(["", "", "other_total", "some.other"]),
        drop_labels=st.lists(st.sampled_from(MEMBERS if noise else ["device", "op"]), max_size=2).map(tuple),
    )
    known = ["ebpf_a_total"] if not noise else NAMES
    return ImageConfig(
        name="image",
        ref="image",
        labels={draw(text): "x" for _ in range(draw(st.integers(0, 2)))},
        metrics={name: draw(metric) for name in mapping(draw, known, noise, 1)},
        events={name: EventConfig(enabled=False) for name in mapping(draw, NAMES if noise else ["ebpf.c"], noise, 1)},
        globals={name: draw(JUNK if noise else st.integers(0, 9)) for name in mapping(draw, ["limit"], noise, 1)},  # type: ignore[misc]
        attach={name: AttachConfig(pid=draw(st.integers(0, noise))) for name in mapping(draw, ["on_switch"], noise, 1)},
        limits=Limits(map_memory=draw(st.integers(0, 1 << 30)) if noise else 1 << 30),
    )


EXPRESSIONS = ["map(0=a,*=b)", "enum(op)", "flags(op)", "enum(none)", "string|regexp(/a/b/)", "hex|map(0x0=z)"]
METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@functools.cache
def compiled() -> ObjectSpec:
    """An object with a table, a histogram, a ring and a global."""
    return read_object(compile_bpf(SOURCE))


@functools.cache
def rich() -> ObjectSpec:
    """An object with maps inside a map, a trie, storage, stacks, unions, arrays of structs, a tail and variables."""
    return read_object(compile_bpf(RICH, program=RICH_PROGRAM))


def inside(rule: LabelRule | ValueRule, size: int) -> bool:
    """Whether a rule reads only bytes that are there."""
    count = rule.count if isinstance(rule, LabelRule) else 1
    return rule.offset_bits >= 0 and rule.size_bits > 0 and rule.offset_bits + rule.size_bits * count <= size * 8


def compiles(labels: Sequence[LabelRule], constants: Sequence[tuple[str, str]], size: int) -> None:
    """What the plan says is not refused by those who run it."""
    compile_labels(labels, constants, size=size, subject="plan", tag=ATTRIBUTE_OF_POINT, enums={})


def check(plan: Plan) -> None:
    """What everyone behind the plan relies on."""
    names: set[str] = set()
    for table in plan.tables:
        labels = [prometheus_label(rule.name) for rule in table.labels]
        labels += [prometheus_label(name) for name, _ in table.constant_labels]
        assert all(map(LABEL_NAME.fullmatch, labels))
        assert table.records == (table.key_size == 0)
        label_bytes = table.value_size if table.records else table.row_key_size
        assert all(inside(rule, label_bytes) and rule.decoder in DECODERS for rule in table.labels)
        # What a plan says can be compiled: names that are not shared, sizes that decoders take, elements inside.
        if table.records:
            compiled_records, key_labels = compile_records(table)
            compiles(key_labels, table.constant_labels, len(compiled_records.mask))
        else:
            compiles(table.labels, table.constant_labels, label_bytes)
            compile_values(table)
        cell = 0
        assert table.metrics
        for metric in table.metrics:
            instrument = metric.instrument
            assert METRIC_NAME.fullmatch(instrument.prometheus_name)
            assert instrument.prometheus_name not in names
            names.add(instrument.prometheus_name)
            assert instrument.first_cell == cell
            cell += instrument.cells
            if table.records:
                assert metric.record is not None and instrument.kind is not Kind.GAUGE
                assert (metric.value, metric.histogram) == (None, None)
            else:
                assert (metric.value is None) == (instrument.kind is Kind.HISTOGRAM) == (metric.histogram is not None)
            assert list(instrument.bounds) == sorted(set(instrument.bounds))
            if metric.value:
                assert inside(metric.value, table.value_size) and metric.value.size_bits <= 64
            if metric.histogram:
                rule = metric.histogram
                assert rule.slot_count == len(instrument.bounds) + 1 and (rule.slot is None) != (rule.slots is None)
                assert rule.slot is None or (inside(rule.slot, table.key_size) and rule.count is not None)
                if rule.slots:
                    assert rule.slots.offset_bits + rule.slots.size_bits * rule.slot_count <= table.value_size * 8
                assert all(inside(part, table.value_size) for part in (rule.count, rule.sum) if part)
    for stream in plan.streams:
        assert all(inside(rule, stream.record_size) for rule in stream.attributes)
        assert stream.time is None or inside(stream.time, stream.record_size)
        assert stream.metrics == any(table.map == stream.map and table.records for table in plan.tables)
        RecordDecoder(stream, scope=plan.scope, resolve=lambda *_: "")
    # Everyone who shows a plan can show this one.
    assert plan_text(plan).startswith("image image\n") and plan_identity(plan)
    assert json.dumps(plan_json(plan)) and summary(plan) and all("\n" not in note for note in plan.notes)
    json.loads(render(image_board(plan)))


def plan(spec: ObjectSpec, config: ImageConfig, metadata: Mapping[str, object]) -> None:
    """Make a plan and check it, or see that what is wrong is said as it must be."""
    try:
        check(make_plan(spec, config=config, version="", metadata=metadata, possible_cpus=4))
    except Problems as problems:
        assert all(isinstance(problem, PlanError) for problem in problems.problems)
    except PlanError as problem:
        assert "\n" not in str(problem)
        assert problem.code.startswith("plan.")


SLOW = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SLOW
@given(documents(), configs())
def test_any_metadata_and_configuration_make_a_plan_or_say_what_is_wrong(
    metadata: dict[str, object], config: ImageConfig
) -> None:
    """Of an object that by itself is fine."""
    plan(compiled(), config, metadata)


@SLOW
@given(documents(RICH_MAPS, RICH_MEMBERS, "print_lines"), st.booleans())
def test_any_metadata_about_every_kind_of_source_makes_a_plan_or_says_what_is_wrong(
    metadata: dict[str, object], wanted: bool
) -> None:
    """Of an object that has all of them."""
    plan(rich(), ImageConfig(name="image", ref="image", globals={"wanted": "a" if wanted else 2}), metadata)


JSON = st.recursive(
    JUNK,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@SLOW
@given(st.dictionaries(st.sampled_from(["version", "description", "metrics", "events", "x"]), JSON))
def test_any_document_is_read_or_refused(document: dict[str, object]) -> None:
    """It comes from whoever pushed the image."""
    try:
        parse_metadata(document)
    except (PlanError, Problems):
        return


@st.composite
def tags(draw: st.DrawFn) -> str:
    """A declaration tag, one in eight of them with anything in it."""
    if draw(st.integers(0, 7)) == 0:
        return "skep:" + draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12))
    flags = ["drop", "slot", "time", "sum", "enabled"]
    said = {key: values for key, values in SAID.items() if key not in flags}
    said |= {key: ["true", "false"] for key in flags}
    said |= {"label": ["a", "b.c:uint", "d:cgroup", "d:map(0=x)"], "decode": [*sorted(DECODERS), *EXPRESSIONS]}
    said |= {"union": ["m0", "m1", "m2.m0"], "case": ["0", "1,OP_A", "-1", "*"], "index": ["i", "a:enum(op)", "b:hex"]}
    said |= {"value": ["true", "false"], "series": ["true", "false"], "stack": ["m0", "counter_m1", "none"]}
    said |= {"count": ["ebpf.counted"], "record": ["struct s0", "s1", "duration"], "switch": ["v0"]}
    key = draw(st.sampled_from(sorted(said)))
    return f"skep:{key}={draw(st.sampled_from(said[key]))}"


OF_MAPS = (12, 13)
MAP_TYPES = [1, 1, 2, 4, 5, 6, 7, 9, 11, *OF_MAPS, 19, 21, 22, 23, 27, 27, 29, 30, 31, 32, 33, 99]


def inner_map(btf: BtfWriter, kind: int, key: int, value: int) -> int:
    """What the maps inside a map are, as ``__array(values, struct {…})`` says it."""
    members = [btf.number(kind), btf.number(4), btf.ptr(key), btf.ptr(value)]
    names = ("type", "max_entries", "key", "value")
    return btf.struct(
        "", 32, [(name, used, 64 * at) for at, (name, used) in enumerate(zip(names, members, strict=True))]
    )


def draw_sized(draw: st.DrawFn, btf: BtfWriter) -> tuple[int, int]:
    """The type and size of a variable: a number, a struct of two, or an array of either."""
    number = btf.int("u64", 8)
    made, size = draw(
        st.sampled_from([(number, 8), (btf.struct("pair", 16, [("a", number, 0), ("sum", number, 64)]), 16)])
    )
    if draw(st.booleans()):
        count = draw(st.integers(0, 5))
        made, size = btf.array(made, count), size * count
    return made, size


@st.composite
def objects(draw: st.DrawFn) -> ObjectWriter:
    """An object of a few maps whose types and tags are drawn."""
    writer = ObjectWriter()
    writer.program("on_switch")
    btf = writer.btf
    types = [btf.int("u32", 4), btf.int("u64", 8), btf.int("s8", 1, encoding=1), btf.int("bool", 1, encoding=4)]
    types += [btf.int("big", 16), btf.ptr(types[0]), btf.record(16, "double", 8), btf.int("char", 1, encoding=1)]
    types.append(btf.enum("op", [("OP_A", 0), ("OP_B", -1)]))
    for index in range(draw(st.integers(0, 4))):
        types.append(draw_type(draw, btf, types, index))
    for index in range(draw(st.integers(1, 3))):
        prefix = draw(st.sampled_from(["counter_", "gauge_", "hist_", "print_", ""]))
        key, value = draw(st.sampled_from(types)), draw(st.sampled_from(types))
        kind = draw(st.sampled_from(MAP_TYPES))
        extra = []
        if kind in OF_MAPS:
            inner = draw(st.sampled_from(MAP_TYPES)), draw(st.sampled_from(types)), draw(st.sampled_from(types))
            extra = [("values", btf.array(btf.ptr(inner_map(btf, *inner)), 0))]
        var = writer.map(
            f"{prefix}m{index}", kind, draw(st.integers(0, 5)), key=key, value=0 if extra else value, extra=extra
        )
        for tag in draw(st.lists(tags(), max_size=2)):
            btf.decl_tag(tag, var)
    for index in range(draw(st.integers(0, 2))):
        prefix = draw(st.sampled_from(["counter_", "gauge_", "hist_", ""]))
        var = writer.variable(draw(st.sampled_from([".bss", ".rodata"])), f"{prefix}v{index}", *draw_sized(draw, btf))
        for tag in draw(st.lists(tags(), max_size=2)):
            btf.decl_tag(tag, var)
    return writer


def draw_type(draw: st.DrawFn, btf: BtfWriter, types: list[int], index: int) -> int:
    """A struct, union, array or typedef over earlier types, of a size that may be wrong."""
    match draw(st.sampled_from(["struct", "union", "array", "typedef"])):
        case "array":
            return btf.array(draw(st.sampled_from(types)), draw(st.integers(0, 70)))
        case "typedef":
            return btf.record(
                8,
                draw(st.sampled_from(["ipv4_addr", "duration", "cgroup_id", "ktime_ns"])),
                draw(st.sampled_from(types)),
            )
        case kind:
            names = st.sampled_from(["a", "b", "slots", "sum", "slot", "count", "pad", ""])
            count = draw(st.integers(0, 4))
            members = [
                (draw(names), draw(st.sampled_from(types)), 0 if kind == "union" else 128 * at) for at in range(count)
            ]
            made = btf.struct(f"s{index}", 16 * max(count, 1), members, kind=5 if kind == "union" else 4)
            for tag in draw(st.lists(tags(), max_size=2)):
                btf.decl_tag(tag, made, draw(st.integers(0, max(count - 1, 0))))
            return made


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(objects())
def test_any_object_makes_a_plan_or_says_what_is_wrong(writer: ObjectWriter) -> None:
    """Types no compiler makes, tags no header writes."""
    try:
        spec = read_object(writer.build())
    except ObjectError:
        return
    plan(spec, ImageConfig(name="image", ref="image"), {})


@given(st.text(st.sampled_from(r"map(regexp/|\\)=,*abuint0x1.enum[]{}^$+?"), max_size=60) | st.text(max_size=40))
@example("regexp(/" + "(" * 500 + "/)")
@example("regexp(/(?:(?:(?:a{900}){900}){900}/)")
def test_any_expression_is_read_or_refused(text: str) -> None:
    """In one line; and what is read can be run on any text."""
    try:
        expression = parse_expression(text)
    except PlanError as problem:
        assert "\n" not in str(problem)
        return
    assert expression.decoder in {"", *DECODERS}
    for step in expression.steps:
        assert isinstance(compile_step(step)("a/b:c\ud83d" if step.kind == "map" else "a" * 4096), str)
