"""Records counted without a row in the kernel: counters that add, histograms that observe, and their bounds."""

from __future__ import annotations

import dataclasses
import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.collect import Frame, SeriesBudget
from exporter.collect.tally import KeySpan, key_labels, key_mask, key_spans, record_key
from exporter.errors import PlanError
from exporter.model import CellType, Instrument, Kind
from exporter.plan.plan import (
    Condition,
    LabelRule,
    MetricPlan,
    RecordRule,
    StackSource,
    Step,
    TablePlan,
    ValueRule,
)
from tests.support.frame_model import OVERFLOW, SCOPE, SECOND, START, counter, unresolved
from tests.support.record_model import TallyModel, framed

RECORD = struct.Struct("<QI8siQd")
"""time, pid, comm, delta (signed), bytes, load."""
EDGES = (1, 10, 1000)


def observed(cell: int, edges: tuple[float, ...], cell_type: CellType = CellType.U64, name: str = "size") -> Instrument:
    """A histogram with a sum."""
    return Instrument(
        f"ebpf.{name}", f"ebpf_{name}", Kind.HISTOGRAM, first_cell=cell, cell_type=cell_type, bounds=edges, has_sum=True
    )


COMM = LabelRule("comm", "string", 96, 64)
PID = LabelRule("pid", "uint", 64, 32)
PLAN = TablePlan(
    map="io",
    key_size=0,
    value_size=RECORD.size,
    per_cpu=False,
    labels=(COMM,),
    metrics=(
        MetricPlan(counter("ebpf.io"), record=RecordRule()),
        MetricPlan(counter("ebpf.io.bytes", cell=1), record=RecordRule(ValueRule(192, 64))),
        MetricPlan(observed(2, EDGES), record=RecordRule(ValueRule(192, 64), EDGES)),
    ),
    records=True,
)


def record(
    time: int = 1, *, pid: int = 7, comm: bytes = b"sh", delta: int = 0, size: int = 5, load: float = 0.0
) -> bytes:
    """One record."""
    return RECORD.pack(time, pid, comm, delta, size, load)


def make(plan: TablePlan = PLAN, *, limit: int = 1000, budget: SeriesBudget | None = None) -> Frame:
    """A frame that needs no machine."""
    return Frame(plan, scope=SCOPE, resolve=unresolved, budget=budget or SeriesBudget(limit), start_ns=START)


def shown(frame: Frame) -> dict[bytes, tuple[tuple[float, ...], int]]:
    """Label text to cells and start of every live series."""
    codes = ""
    for one in frame.instruments:
        number = {CellType.U64: "Q", CellType.I64: "q", CellType.F64: "d"}[one.cell_type]
        codes += "Q" * (len(one.bounds) + 1) + number * one.has_sum if one.kind is Kind.HISTOGRAM else number
    return {
        text: (struct.unpack("<" + codes, cells), start_ns) for text, _, cells, start_ns, _ in frame._table.series()
    }


def test_every_record_counts_in_the_series_of_its_labels() -> None:
    """Records, a sum of a member, and a histogram with its sum, at once."""
    frame = make()
    frame.add(framed(record(time=1, comm=b"a", size=1), record(2, comm=b"b", size=11)), START)
    frame.add(framed(record(3, comm=b"a", size=1001)), START)
    assert shown(frame) == {
        b'comm="a"': ((2, 1002, 1, 0, 0, 1, 1002), START),
        b'comm="b"': ((1, 11, 0, 0, 1, 0, 11), START),
    }
    assert frame.series == 2


def test_value_on_an_edge_lies_below_it() -> None:
    """As Prometheus' le says."""
    for size, slot in ((0, 0), (1, 0), (2, 1), (10, 1), (11, 2), (1000, 2), (1001, 3), ((1 << 64) - 1, 3)):
        frame = make()
        frame.add(framed(record(size=size)), START)
        ((cells, _),) = shown(frame).values()
        assert cells[2:6] == tuple(int(i == slot) for i in range(4)), size


def test_signed_numbers_fall_under_negative_edges_and_take_nothing_from_a_counter() -> None:
    """A counter only grows."""
    delta = ValueRule(160, 32, signed=True)
    plan = dataclasses.replace(
        PLAN,
        labels=(),
        metrics=(
            MetricPlan(counter(cell_type=CellType.I64), record=RecordRule(delta)),
            MetricPlan(observed(1, (-5, 0, 5), CellType.I64), record=RecordRule(delta, (-5, 0, 5))),
        ),
    )
    frame = make(plan)
    frame.add(framed(*(record(delta=delta) for delta in (-6, -5, 0, 5, 6))), START)
    assert shown(frame)[b""][0] == (11, 2, 1, 1, 1, 0)


def test_floats_that_are_not_finite_tell_nothing() -> None:
    """One of them would make a sum useless for ever."""
    load = ValueRule(256, 64, is_float=True)
    plan = dataclasses.replace(
        PLAN,
        labels=(),
        metrics=(
            MetricPlan(counter(cell_type=CellType.F64), record=RecordRule(load)),
            MetricPlan(observed(1, (0.5,), CellType.F64), record=RecordRule(load, (0.5,))),
        ),
    )
    frame = make(plan)
    frame.add(framed(*(record(load=load) for load in (0.25, 0.75, math.nan, math.inf, -math.inf, -1.0))), START)
    assert shown(frame)[b""][0] == (1.0, 2, 1, 0.0)


def test_what_lies_behind_the_end_of_a_text_makes_no_new_series_and_no_new_row() -> None:
    """Programs copy a name into a record that held another before."""
    frame = make()
    frame.add(framed(*(record(comm=b"sh\0" + bytes([i, i]) + b"xyz") for i in range(1, 200))), START)
    assert {text: cells[0] for text, (cells, _) in shown(frame).items()} == {b'comm="sh"': 199}
    assert frame._table.rows == 1


def test_short_record_is_passed_over_and_a_longer_one_counts() -> None:
    """A newer program may have grown its record."""
    frame = make()
    frame.add(framed(record()[:-1], b"", record() + b"more"), START)
    assert shown(frame)[b'comm="sh"'][0][0] == 1


def test_label_sets_beyond_the_budget_count_together_and_leave_nothing_behind() -> None:
    """However many there are, memory stays where it was."""
    frame = make(limit=2 * 3)
    frame.add(framed(*(record(comm=str(i % 100).encode()) for i in range(1000))), START)
    before = frame.memory_bytes
    frame.add(framed(*(record(comm=str(i).encode()) for i in range(5000))), START)
    counts = {text: cells[0] for text, (cells, _) in shown(frame).items()}
    assert set(counts) == {b'comm="0"', b'comm="1"', OVERFLOW}
    assert counts[OVERFLOW] == 980 + 4998 == frame.folded_total
    assert (frame._table.rows, frame.memory_bytes) == (2, before)


def test_ways_to_one_series_are_bounded() -> None:
    """Keys without end may read the same: what was there last is remembered, and not all."""
    owner = LabelRule("user", "uid", 64, 32)
    plan = dataclasses.replace(PLAN, labels=(owner,))
    frame = Frame(plan, scope=SCOPE, resolve=lambda *_: "somebody", budget=SeriesBudget(10), start_ns=START)
    for turn in range(10):
        frame.add(framed(*(record(pid=turn * 1000 + i) for i in range(1000))), START)
    assert shown(frame)[b'user="somebody"'][0][0] == 10_000
    assert frame._table.rows < 1200


def test_idle_series_is_forgotten_with_its_count_and_begins_anew() -> None:
    """Nobody else remembers it; a new start time says so."""
    budget = SeriesBudget(6)
    frame = make(dataclasses.replace(PLAN, expire_idle=True, expire_after_s=60), budget=budget)
    frame.add(framed(record(comm=b"a"), record(comm=b"b")), START)
    for second in (30, 60, 61):
        frame.begin(START + second * SECOND)
        frame.finish()
        frame.add(framed(record(comm=b"b")), START + second * SECOND)
    assert {text: cells[0] for text, (cells, _) in shown(frame).items()} == {b'comm="b"': 4}
    assert budget.used == 3
    frame.add(framed(record(comm=b"a")), START + 62 * SECOND)
    assert shown(frame)[b'comm="a"'] == ((1, 5, 0, 1, 0, 0, 5), START + 61 * SECOND)


def test_series_of_lasting_labels_never_expires() -> None:
    """Its labels cannot go."""
    frame = make(dataclasses.replace(PLAN, expire_after_s=1))
    frame.add(framed(record()), START)
    frame.begin(START + 10**6 * SECOND)
    frame.finish()
    assert frame.series == 1


def test_frames_refuse_what_is_not_for_them() -> None:
    """Rows and records are told apart."""
    frame = make()
    with pytest.raises(ValueError, match="fed with records"):
        frame.apply(b"", b"", 0, RECORD.size, 1)
    with pytest.raises(ValueError, match="framed"):
        frame.add(framed(record())[:-1], START)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": (LabelRule("x", "uint", RECORD.size * 8 - 8, 16),)}, "does not lie inside 40 bytes"),
        ({"metrics": (MetricPlan(counter(), record=RecordRule(ValueRule(300, 64))),)}, "do not lie inside 40 bytes"),
        ({"metrics": (MetricPlan(counter()),)}, "no record rule"),
        ({"metrics": (MetricPlan(observed(0, EDGES), record=RecordRule(ValueRule(0, 64), (1, 2))),)}, "2 edges for 3"),
        ({"metrics": (MetricPlan(observed(0, (1, 2)), record=RecordRule(ValueRule(0, 64), (2, 2))),)}, "rising edge"),
        ({"metrics": (MetricPlan(counter(), record=RecordRule(ValueRule(160, 32, signed=True))),)}, "signed number"),
    ],
)
def test_plan_that_does_not_fit_its_records_is_refused(change: dict[str, object], message: str) -> None:
    """Nothing is read beyond a record's end."""
    with pytest.raises(PlanError, match=rf"^map 'io'.*{message}"):
        make(dataclasses.replace(PLAN, **change))


def test_key_is_made_of_label_bytes_only() -> None:
    """Bit-fields leave their neighbours out; adjoining members become one span; text stays by itself."""
    labels = (
        LabelRule("flag", "uint", 3, 2),
        LabelRule("port", "port_be", 8, 16),
        COMM,
        LabelRule("id", "uint", 64, 32),
    )
    spans = key_spans(labels)
    assert spans == (KeySpan(0, 3), KeySpan(8, 4), KeySpan(12, 8, is_text=True))
    moved = key_labels(labels, spans)
    assert [rule.offset_bits for rule in moved] == [3, 8, 56, 24]
    mask = key_mask(moved, 15)
    assert mask == b"\x18\xff\xff" + b"\xff" * 12
    data = bytes(range(0x41, 0x41 + 12)) + b"ab\0defgh" + bytes(20)
    assert record_key(data, spans, mask) == b"\x00BC" + b"IJKL" + b"ab\0\0\0\0\0\0"


def test_stack_of_a_record_is_that_of_its_process() -> None:
    """Two processes may have one stack id; the number of the process is no label, and tells them apart."""
    stack = LabelRule("stack", "ustack", 160, 32, stack=StackSource("stacks", (64, 32)))
    frame = Frame(
        dataclasses.replace(PLAN, labels=(stack,)),
        scope=SCOPE,
        resolve=lambda decoder, value: f"{decoder} {value >> 32}/{value & 0xFFFFFFFF}",
        budget=SeriesBudget(100),
        start_ns=START,
    )
    frame.add(framed(record(pid=7, delta=5), record(pid=8, delta=5), record(pid=7, delta=5)), START)
    counts = {text: cells[0] for text, (cells, _) in shown(frame).items()}
    assert counts == {b'stack="ustack:stacks 7/5"': 2, b'stack="ustack:stacks 8/5"': 1}


def test_text_that_is_also_read_whole_is_told_apart_by_all_of_its_bytes() -> None:
    """Its bytes behind the end are then shown by somebody."""
    assert key_spans((COMM, LabelRule("raw", "bytes", 96, 64))) == (KeySpan(12, 8),)


label_rules = st.sampled_from(
    [
        PID,
        COMM,
        LabelRule("raw", "bytes", 96, 16),
        LabelRule("low", "uint", 64, 3),
        LabelRule("high", "uint", 69, 7),
        LabelRule("delta", "int", 160, 32, signed=True),
        LabelRule("half", "hex", 176, 12),
        LabelRule("list", "uint", 96, 16, count=3),
        LabelRule("by_pid", "string", 96, 64, conditions=(Condition(64, 32, (1, 2)),)),
        LabelRule("else", "int", 160, 8, signed=True, count=2, conditions=(Condition(66, 3, (0,), negated=True),)),
        LabelRule("step", "string", 96, 64, steps=(Step("map", (("a", "b"),)), Step("regexp", pattern="^.{3}"))),
    ]
)
edge_lists = st.lists(st.integers(-3, 40), max_size=5, unique=True).map(lambda edges: tuple(sorted(edges)))
values = st.sampled_from(
    [
        (ValueRule(192, 64), CellType.U64),
        (ValueRule(195, 11), CellType.U64),
        (ValueRule(160, 32, signed=True), CellType.I64),
        (ValueRule(256, 64, is_float=True), CellType.F64),
        (ValueRule(192, 32), CellType.F64),
    ]
)


@st.composite
def plans(draw: st.DrawFn) -> TablePlan:
    """Any labels and metrics over one record type."""
    labels = draw(st.lists(label_rules, unique_by=lambda rule: rule.name, max_size=4))
    metrics, cell = [], 0
    for index in range(draw(st.integers(1, 3))):
        value, cell_type = draw(values)
        if draw(st.booleans()):
            edges = draw(edge_lists)
            instrument = observed(cell, tuple(map(float, edges)), cell_type, f"hist.{index}")
            instrument = dataclasses.replace(instrument, has_sum=draw(st.booleans()))
            metrics.append(MetricPlan(instrument, record=RecordRule(value, edges)))
        elif draw(st.booleans()):
            metrics.append(
                MetricPlan(counter(f"ebpf.n.{index}", cell=cell, cell_type=cell_type), record=RecordRule(value))
            )
        else:
            metrics.append(MetricPlan(counter(f"ebpf.n.{index}", cell=cell), record=RecordRule()))
        cell += metrics[-1].instrument.cells
    return dataclasses.replace(
        PLAN,
        labels=tuple(labels),
        metrics=tuple(metrics),
        expire_idle=draw(st.booleans()),
        expire_after_s=draw(st.integers(1, 3)),
    )


records = st.builds(
    record,
    time=st.integers(0, 9),
    pid=st.integers(0, 3) | st.integers(0, (1 << 32) - 1),
    comm=st.sampled_from([b"", b"a", b"a\0b", b"a\0c", b"ab"]) | st.binary(max_size=8),
    delta=st.integers(-4, 41) | st.integers(-(1 << 31), (1 << 31) - 1),
    size=st.integers(0, 41) | st.integers(0, (1 << 64) - 1),
    load=st.integers(-1, 40).map(float) | st.floats(allow_nan=False, allow_infinity=False, width=16),
) | st.binary(max_size=RECORD.size - 1)


@settings(max_examples=200, deadline=None)
@given(plans(), st.integers(0, 12), st.lists(st.tuples(st.integers(0, 2), st.lists(records, max_size=8)), max_size=6))
def test_native_tally_is_what_its_twin_says(plan: TablePlan, limit: int, steps: list[tuple[int, list[bytes]]]) -> None:
    """Cells, start times, budget and folding, over scrapes and idle time."""
    budget = SeriesBudget(limit)
    frame, model, now_ns = make(plan, budget=budget), TallyModel(plan, limit), START
    for seconds, batch in steps:
        now_ns += seconds * SECOND
        if seconds:
            frame.begin(now_ns)
            frame.finish()
            model.pass_time(now_ns)
        frame.add(framed(*batch), now_ns)
        model.add(batch, now_ns)
        assert shown(frame) == model.shown()
        assert (budget.used, frame.folded_total) == (model.used, model.folded)
