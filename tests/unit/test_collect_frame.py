"""Frames: rows of a map become series."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import random
import struct
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint
from prometheus_client.parser import text_string_to_metric_families

from exporter.collect import Frame, SeriesBudget
from exporter.collect.histogram import gain
from exporter.errors import PlanError
from exporter.model import CellType, Scope
from exporter.plan.plan import HistogramRule, LabelRule, MetricPlan, TablePlan, ValueRule
from tests.support.frame_model import (
    OVERFLOW,
    SCOPE,
    SECOND,
    START,
    FrameModel,
    counter,
    gauge,
    histogram,
    slot_key_table,
    table,
    unresolved,
)

CODES = {CellType.U64: "Q", CellType.I64: "q", CellType.F64: "d"}


def make(plan: TablePlan, *, limit: int = 1000, budget: SeriesBudget | None = None) -> Frame:
    """A frame that needs no machine."""
    return Frame(plan, scope=SCOPE, resolve=unresolved, budget=budget or SeriesBudget(limit), start_ns=START)


def u32(number: int) -> bytes:
    """A key."""
    return struct.pack("<I", number)


def u64(*numbers: int) -> bytes:
    """A value."""
    return struct.pack(f"<{len(numbers)}Q", *(number & (1 << 64) - 1 for number in numbers))


def read(frame: Frame, rows: Mapping[bytes, bytes], second: int, *, cpus: int = 1, chunk: int = 3) -> None:
    """One whole read, in small batches."""
    frame.begin(START + second * SECOND)
    left = iter(rows.items())
    while some := list(itertools.islice(left, chunk)):
        keys, values = (b"".join(part) for part in zip(*some, strict=True))
        frame.apply(keys, values, len(some), len(some[0][1]), cpus)
    frame.finish()


def shown(frame: Frame) -> dict[bytes, tuple[tuple[int | float, ...], int]]:
    """Label text to cells and start time of what is exported."""
    codes = {}
    for one in frame.instruments:
        for cell in range(one.cells):
            is_count = bool(one.bounds) and cell < len(one.bounds) + 1
            codes[one.first_cell + cell] = "Q" if is_count else CODES[one.cell_type]
    form = "<" + "".join(codes[cell] for cell in sorted(codes))
    return {text: (struct.unpack(form, cells), start) for text, _, cells, start, _ in frame._table.series()}


def cells(frame: Frame) -> dict[bytes, tuple[int | float, ...]]:
    """Label text to cells."""
    return {text: numbers for text, (numbers, _) in shown(frame).items()}


# ---- counters ----


def test_row_becomes_a_series_with_its_label_and_count() -> None:
    """One row of a map is one series."""
    frame = make(table())
    read(frame, {u32(7): u64(40)}, 1)
    assert cells(frame) == {b'id="7"': (40,)}
    assert frame.series == 1


@pytest.mark.parametrize(
    ("cell_type", "raws", "total"),
    [
        (CellType.U64, (0,), 0),
        (CellType.U64, (5, 5, 9), 9),
        (CellType.U64, (5, 2), 7),
        (CellType.U64, (5, 2, 3), 8),
        (CellType.U64, ((1 << 64) - 1, 1), 0),
        (CellType.I64, (5, -3, 4), 12),
        (CellType.I64, (-3,), 0),
        (CellType.F64, (1.5, 0.5, 1.0), 2.5),
        (CellType.F64, (1.5, float("nan"), 2.0), 2.0),
        (CellType.F64, (1.5, float("inf"), 2.0), 2.0),
    ],
)
def test_counter_that_falls_in_the_kernel_counts_on(cell_type: CellType, raws: tuple[float, ...], total: float) -> None:
    """A key that was evicted and made again never makes a counter fall."""
    rule = ValueRule(0, 64, signed=cell_type is CellType.I64, is_float=cell_type is CellType.F64)
    frame = make(table(metrics=[MetricPlan(counter(cell_type=cell_type), rule)]))
    for second, raw in enumerate(raws):
        read(frame, {u32(1): struct.pack(f"<{CODES[cell_type]}", raw)}, second)
    assert cells(frame) == {b'id="1"': (total,)}


@given(st.lists(st.integers(0, (1 << 63) - 1) | st.floats(0, 1e300)))
def test_gain_is_never_negative(raws: list[float]) -> None:
    """Whatever the kernel shows, a counter does not go back."""
    for cell_type in (CellType.U64, CellType.F64):
        last: float = 0
        for raw in raws:
            gained, last = gain(cell_type, raw, last)
            assert gained >= 0


def test_row_that_was_gone_for_a_read_counts_from_zero_again() -> None:
    """A key that came back was made anew: all of its count is new, also when it is above the last one."""
    frame = make(table())
    read(frame, {u32(1): u64(5)}, 1)
    read(frame, {}, 2)
    assert cells(frame) == {b'id="1"': (5,)}
    read(frame, {u32(1): u64(8)}, 3)
    assert cells(frame) == {b'id="1"': (13,)}


def test_read_that_was_not_finished_forgets_no_row() -> None:
    """A read that broke off says nothing about the rows it did not bring."""
    frame = make(table())
    read(frame, {u32(1): u64(5), u32(2): u64(1)}, 1)
    frame.begin(START + 2 * SECOND)
    frame.apply(u32(2), u64(2), 1, 8, 1)
    read(frame, {u32(1): u64(6), u32(2): u64(2)}, 3)
    assert cells(frame) == {b'id="1"': (6,), b'id="2"': (2,)}


def test_row_twice_in_one_read_counts_once() -> None:
    """A walk by keys may repeat itself."""
    frame = make(table(metrics=[MetricPlan(counter(), ValueRule(0, 64)), MetricPlan(gauge(cell=1), ValueRule(0, 64))]))
    frame.begin(START + SECOND)
    frame.apply(u32(1) * 2, u64(4, 6), 2, 8, 1)
    frame.finish()
    assert cells(frame) == {b'id="1"': (6, 6)}


def test_rows_with_a_dropped_label_are_summed() -> None:
    """Rows that differ in what is not shown share a series, also when one of them is made anew."""
    frame = make(table(labels=[LabelRule("id", "uint", 0, 16)]))
    read(frame, {u32(1): u64(10), u32(1 | 1 << 16): u64(100)}, 1)
    read(frame, {u32(1): u64(2), u32(1 | 1 << 16): u64(101)}, 2)
    assert cells(frame) == {b'id="1"': (113,)}


def test_keys_that_look_alike_share_a_series() -> None:
    """Two keys with one label text are one series: what follows a NUL is not shown."""
    frame = make(table(labels=[LabelRule("comm", "string", 0, 32)]))
    read(frame, {b"a\0xy": u64(1), b"a\0zz": u64(2)}, 1)
    assert cells(frame) == {b'comm="a"': (3,)}


def test_values_of_all_cpus_are_summed() -> None:
    """A per-CPU value is one slot a CPU, each rounded up to eight bytes."""
    metrics = [MetricPlan(counter(), ValueRule(0, 32)), MetricPlan(counter("ebpf.other", cell=1), ValueRule(32, 64))]
    frame = make(table(metrics=metrics, value_size=12, per_cpu=True))
    read(frame, {u32(1): b"".join(struct.pack("<IQ4x", cpu, 10 * cpu) for cpu in range(5))}, 1, cpus=5)
    assert cells(frame) == {b'id="1"': (10, 100)}


def test_bitfields_and_signed_numbers_are_read_where_they_lie() -> None:
    """Several numbers of one value, at any bit."""
    metrics = [
        MetricPlan(counter(), ValueRule(3, 7)),
        MetricPlan(gauge("ebpf.b", cell=1, cell_type=CellType.I64), ValueRule(10, 5, signed=True)),
        MetricPlan(gauge("ebpf.c", cell=2, cell_type=CellType.F64), ValueRule(32, 32, is_float=True)),
        MetricPlan(gauge("ebpf.d", cell=3, cell_type=CellType.F64), ValueRule(16, 8, signed=True)),
    ]
    frame = make(table(metrics=metrics))
    value = struct.pack("<Hbxf", 99 << 3 | (-3 & 31) << 10, -9, 1.5)
    read(frame, {u32(1): value}, 1)
    assert cells(frame) == {b'id="1"': (99, -3, 1.5, -9.0)}


def test_rows_that_never_counted_have_no_series() -> None:
    """The zeros of an array map are not shown, and cost no budget."""
    budget = SeriesBudget(10)
    frame = make(table(skip_zero_rows=True), budget=budget)
    read(frame, {u32(slot): u64(slot == 3) for slot in range(100)}, 1)
    assert cells(frame) == {b'id="3"': (1,)}
    assert budget.used == 1
    read(frame, {u32(slot): u64(0) for slot in range(100)}, 2)
    assert cells(frame) == {b'id="3"': (1,)}


# ---- gauges ----


def test_gauge_is_the_sum_of_the_rows_there_are_and_leaves_with_them() -> None:
    """A gauge has no memory."""
    budget = SeriesBudget(10)
    frame = make(
        table(labels=[LabelRule("id", "uint", 0, 16)], metrics=[MetricPlan(gauge(), ValueRule(0, 64))]), budget=budget
    )
    read(frame, {u32(1): u64(10), u32(1 | 1 << 16): u64(5)}, 1)
    assert cells(frame) == {b'id="1"': (15,)}
    read(frame, {u32(1): u64(3)}, 2)
    assert cells(frame) == {b'id="1"': (3,)}
    read(frame, {}, 3)
    assert cells(frame) == {}
    assert (frame.series, budget.used) == (0, 0)


def test_gauge_beside_a_counter_leaves_while_the_counter_stays() -> None:
    """The series of a row that is gone says so, for encoders to leave the gauge out."""
    metrics = [MetricPlan(counter(), ValueRule(0, 64)), MetricPlan(gauge(cell=1), ValueRule(64, 64))]
    frame = make(table(metrics=metrics, value_size=16))
    read(frame, {u32(1): u64(10, 7)}, 1)
    assert [values for _, values in frame.rows()] == [(10, 7)]
    read(frame, {}, 2)
    assert [values for _, values in frame.rows()] == [(10, None)]
    read(frame, {u32(1): u64(1, 8)}, 3)
    assert [values for _, values in frame.rows()] == [(11, 8)]


def test_float_gauge_does_not_drift() -> None:
    """After large numbers have come and gone a small one is exact."""
    metrics = [MetricPlan(gauge(cell_type=CellType.F64), ValueRule(0, 64, is_float=True))]
    frame = make(table(labels=(), metrics=metrics))
    for second in range(100):
        read(frame, {u32(1): struct.pack("<d", 1e18 / (second + 1)), u32(2): struct.pack("<d", 0.1)}, second)
    read(frame, {u32(2): struct.pack("<d", 0.1)}, 101)
    assert cells(frame) == {b"": (0.1,)}


# ---- histograms ----


def test_slots_in_the_key_become_the_cells_of_one_series() -> None:
    """Each row counts one slot; a slot beyond the last is counted in the last."""
    frame = make(slot_key_table(4, has_sum=True))
    rows = {u32(9) + u32(slot): u64(slot + 1, 100) for slot in (0, 2, 3, 77)}
    read(frame, rows, 1)
    assert cells(frame) == {b'id="9"': (1, 0, 3, 82, 400)}


def test_slots_in_the_value_become_cells() -> None:
    """A slot array, and a sum beside it."""
    rule = HistogramRule(slot=None, slots=ValueRule(64, 32), slot_count=3, sum=ValueRule(0, 64))
    frame = make(table(metrics=[MetricPlan(histogram(3, has_sum=True), histogram=rule)], value_size=20))
    read(frame, {u32(1): struct.pack("<QIII", 1000, 1, 2, 3)}, 1)
    read(frame, {u32(1): struct.pack("<QIII", 1500, 1, 3, 1)}, 2)
    assert cells(frame) == {b'id="1"': (1, 3, 4, 1500)}
    assert list(frame.rows()) == [
        ({"id": 1}, ({"count": 8, "sum": 1500 / 10**9, "buckets": {"1.0": 1, "2.0": 3, "+Inf": 4}},))
    ]


# ---- start times, expiry ----


def test_start_time_is_the_frames_or_the_last_read_without_the_series() -> None:
    """What the first read finds began with the frame; what comes later began after the read that had none of it."""
    frame = make(table())
    read(frame, {u32(1): u64(1)}, 10)
    read(frame, {u32(1): u64(1), u32(2): u64(1)}, 25)
    assert {text: start for text, (_, start) in shown(frame).items()} == {
        b'id="1"': START,
        b'id="2"': START + 10 * SECOND,
    }


def test_series_of_a_row_that_is_gone_stays_for_its_time() -> None:
    """Without labels that come and go, only the row's leaving counts, not whether it changed."""
    frame = make(table(expire_after_s=60))
    read(frame, {u32(1): u64(1), u32(2): u64(1)}, 0)
    read(frame, {u32(1): u64(1)}, 100)
    assert set(cells(frame)) == {b'id="1"', b'id="2"'}
    read(frame, {u32(1): u64(1)}, 159)
    assert set(cells(frame)) == {b'id="1"', b'id="2"'}
    read(frame, {u32(1): u64(1)}, 160)
    assert set(cells(frame)) == {b'id="1"'}


def test_row_that_leaves_late_is_still_followed_by_its_series() -> None:
    """When it left decides, not how old the series is, nor what else happened meanwhile."""
    frame = make(table(expire_after_s=60))
    for second in (0, 100, 200):
        read(frame, {u32(1): u64(1)}, second)
    read(frame, {}, 210)
    read(frame, {}, 269)
    assert cells(frame) == {b'id="1"': (1,)}
    read(frame, {}, 270)
    assert cells(frame) == {}


def test_gauge_is_never_idle_while_its_row_is_there() -> None:
    """That a value stays the same says nothing against it."""
    metrics = [MetricPlan(counter(), ValueRule(0, 64)), MetricPlan(gauge(cell=1), ValueRule(0, 64))]
    frame = make(table(metrics=metrics, expire_idle=True, expire_after_s=60))
    read(frame, {u32(1): u64(5)}, 0)
    read(frame, {u32(1): u64(5)}, 600)
    assert cells(frame) == {b'id="1"': (5, 5)}
    read(frame, {}, 601)
    assert cells(frame) == {}


def test_idle_series_is_hidden_until_it_changes_and_then_goes_on() -> None:
    """With labels that come and go, an unchanged series is not shown; its count is not lost."""
    budget = SeriesBudget(10)
    frame = make(table(expire_idle=True, expire_after_s=60), budget=budget)
    read(frame, {u32(1): u64(5)}, 0)
    read(frame, {u32(1): u64(5)}, 59)
    assert cells(frame) == {b'id="1"': (5,)}
    read(frame, {u32(1): u64(5)}, 60)
    assert (cells(frame), budget.used, frame.series) == ({}, 0, 0)
    read(frame, {u32(1): u64(7)}, 5000)
    assert shown(frame) == {b'id="1"': ((7,), START)}
    assert budget.used == 1


def test_label_set_that_comes_back_after_it_expired_starts_anew() -> None:
    """An expired series is forgotten; its successor has a start time of its own."""
    frame = make(table(expire_after_s=60))
    read(frame, {u32(1): u64(5)}, 0)
    read(frame, {}, 10)
    read(frame, {}, 70)
    assert frame.series == 0
    read(frame, {u32(1): u64(2)}, 80)
    assert shown(frame) == {b'id="1"': ((2,), START + 70 * SECOND)}


# ---- limits ----


def test_rows_beyond_the_budget_share_one_overflow_series() -> None:
    """No count is lost, and the number of folded rows is told."""
    budget = SeriesBudget(3)
    frame = make(table(constant_labels=(("tier", "db"),)), budget=budget)
    read(frame, {u32(i): u64(1) for i in range(10)}, 1)
    read(frame, {u32(i): u64(2) for i in range(10)}, 2)
    assert cells(frame) == {f'id="{i}",tier="db"'.encode(): (2,) for i in range(3)} | {OVERFLOW + b',tier="db"': (14,)}
    assert (frame.folded_total, budget.used, frame.series) == (7, 3, 4)
    assert ({"otel.metric.overflow": True, "tier": "db"}, (14,)) in list(frame.rows())


def test_budget_counts_instruments_and_is_shared() -> None:
    """Two frames of one image, one with two instruments a label set."""
    budget = SeriesBudget(5)
    two = [MetricPlan(counter(), ValueRule(0, 64)), MetricPlan(counter("ebpf.other", cell=1), ValueRule(0, 64))]
    first, second = make(table(metrics=two), budget=budget), make(table(), budget=budget)
    read(first, {u32(i): u64(1) for i in range(3)}, 1)
    assert (first.folded_total, budget.used) == (1, 4)
    read(second, {u32(i): u64(1) for i in range(3)}, 1)
    assert (second.folded_total, budget.used) == (2, 5)
    del first
    gc.collect()
    assert budget.used == 1


def test_series_that_may_not_come_back_is_folded() -> None:
    """A hidden series whose place was given away counts on in the overflow series."""
    frame = make(table(expire_idle=True, expire_after_s=60), limit=1)
    read(frame, {u32(1): u64(5)}, 0)
    read(frame, {u32(1): u64(5)}, 60)
    read(frame, {u32(1): u64(5), u32(2): u64(1)}, 61)
    assert cells(frame) == {b'id="2"': (1,)}
    read(frame, {u32(1): u64(8), u32(2): u64(1)}, 62)
    assert cells(frame) == {b'id="2"': (1,), OVERFLOW: (3,)}
    assert frame.folded_total == 1


# ---- against the model ----

ROW_KEYS = st.integers(0, 12)
VALUES = st.integers(0, 5) | st.integers(0, (1 << 64) - 1)
READS = st.lists(
    st.tuples(st.integers(0, 40), st.dictionaries(ROW_KEYS, st.tuples(VALUES, VALUES), max_size=13)), max_size=8
)
SHAPES = {
    "counter": table(value_size=16),
    "summed": table(labels=[LabelRule("id", "uint", 0, 2)], value_size=16),
    "no labels": table(labels=(), value_size=16),
    "gauge": table(
        labels=[LabelRule("id", "uint", 0, 2)], metrics=[MetricPlan(gauge(), ValueRule(0, 64))], value_size=16
    ),
    "both": table(
        labels=[LabelRule("id", "uint", 0, 3)],
        metrics=[MetricPlan(counter(), ValueRule(0, 64)), MetricPlan(gauge(cell=1), ValueRule(64, 64))],
        value_size=16,
    ),
    "slot arrays": table(
        metrics=[
            MetricPlan(
                histogram(3, has_sum=True, cell_type=CellType.I64),
                histogram=HistogramRule(None, ValueRule(0, 32), 3, sum=ValueRule(96, 32, signed=True)),
            )
        ],
        value_size=16,
    ),
    "slot keys": table(
        labels=[LabelRule("id", "uint", 2, 6)],
        metrics=[
            MetricPlan(
                histogram(3, has_sum=True),
                histogram=HistogramRule(ValueRule(0, 2), None, 3, count=ValueRule(0, 64), sum=ValueRule(64, 64)),
            )
        ],
        value_size=16,
    ),
    "per cpu": table(
        labels=[LabelRule("id", "uint", 0, 2)], metrics=[MetricPlan(counter(), ValueRule(0, 64))], per_cpu=True
    ),
}


@settings(max_examples=200)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    reads=READS,
    limit=st.integers(0, 8),
    expire_idle=st.booleans(),
    skip_zero_rows=st.booleans(),
)
def test_frame_agrees_with_its_model(
    shape: str,
    reads: list[tuple[int, dict[int, tuple[int, int]]]],
    limit: int,
    expire_idle: bool,
    skip_zero_rows: bool,
) -> None:
    """Whatever rows come, go and count, the native frame shows what the model shows."""
    plan = dataclasses.replace(
        SHAPES[shape], expire_idle=expire_idle, skip_zero_rows=skip_zero_rows, expire_after_s=60.0
    )
    cpus = 2 if plan.per_cpu else 1
    budget = SeriesBudget(limit)
    frame, model = make(plan, budget=budget), FrameModel(plan, limit)
    second = 0
    for step, rows in reads:
        second += step
        encoded = {u32(key): u64(*numbers) for key, numbers in rows.items()}
        read(frame, encoded, second, cpus=cpus)
        model.read(encoded, START + second * SECOND, cpus=cpus)
        assert shown(frame) == model.shown()
        assert (frame.folded_total, budget.used) == (model.folded, model.used)
        assert frame._table.rows == len(model.rows)


@pytest.mark.parametrize("expire_idle", [False, True])
@pytest.mark.parametrize("shape", ["counter", "both", "slot keys"])
def test_churning_frame_agrees_with_its_model_through_compactions(shape: str, expire_idle: bool) -> None:
    """Thousands of rows come and go: free places are used again, tables are compacted, nothing is mixed up."""
    random_numbers = random.Random(f"{shape}{expire_idle}")
    plan = dataclasses.replace(
        SHAPES[shape],
        labels=(LabelRule("id", "uint", 2 if shape == "slot keys" else 0, 30),),
        expire_idle=expire_idle,
        expire_after_s=3.0,
    )
    frame, model = make(plan, limit=5000), FrameModel(plan, 5000)
    rows: dict[bytes, bytes] = {}
    for second in range(25):
        wanted = 1500 if second % 10 < 5 else 100
        for key in random_numbers.sample(
            sorted(rows), len(rows) // 3 if len(rows) < wanted else len(rows) - wanted // 2
        ):
            del rows[key]
        while len(rows) < wanted:
            rows[u32(random_numbers.randrange(100_000))] = u64(1, 1)
        rows = {key: u64(random_numbers.randrange(9), 3) for key in rows}
        read(frame, rows, second, chunk=512)
        model.read(rows, START + second * SECOND)
        assert shown(frame) == model.shown()
    assert frame.series < 5000


# ---- memory ----


def full_frame(count: int) -> Frame:
    """A counter with three labels and ``count`` series."""
    labels = [LabelRule("comm", "string", 0, 128), LabelRule("port", "port", 128, 16), LabelRule("id", "uint", 160, 32)]
    frame = make(table(labels=labels, key_size=24), limit=count)
    keys = b"".join(struct.pack("<16sHxxI", b"worker", i % 65536, i) for i in range(count))
    for second in (1, 2):
        frame.begin(START + second * SECOND)
        for first in range(0, count, 4096):
            rows = min(4096, count - first)
            frame.apply(keys[first * 24 : (first + rows) * 24], u64(*([second] * rows)), rows, 8, 1)
        frame.finish()
    assert frame.series == count
    return frame


@pytest.mark.parametrize("count", [5_000, 20_000, 100_000, 131_000])
def test_series_costs_at_most_60_bytes_beyond_its_key_and_labels(count: int) -> None:
    """All native memory of a frame, hash tables and spare room included; tiny frames have 2 KB more."""
    frame = full_frame(count)
    whole, keys, texts = frame._table.memory()
    assert frame.memory_bytes == whole
    assert keys == count * 24
    assert (whole - keys - texts) / count <= 60


def test_memory_is_given_back_when_keys_churn() -> None:
    """Ever new keys, few at a time: what the frame holds stays what a few need."""
    frame = make(table(expire_after_s=2), limit=1_000_000)
    most = 0
    for second in range(300):
        read(frame, {u32(second * 100 + i): u64(1) for i in range(100)}, second, chunk=100)
        most = max(most, frame.memory_bytes)
    assert frame.series <= 300
    assert most < 200_000


def test_memory_of_a_burst_is_given_back() -> None:
    """A frame that was large once does not stay so."""
    frame = make(table(expire_after_s=1), limit=1_000_000)
    read(frame, {u32(i): u64(1) for i in range(20_000)}, 0, chunk=4096)
    large = frame.memory_bytes
    for second in range(1, 6):
        read(frame, {u32(i): u64(1) for i in range(100)}, second, chunk=100)
    assert frame.series == 100
    assert frame.memory_bytes < large / 50
    read(frame, {u32(i): u64(2) for i in range(100)}, 7, chunk=100)
    assert cells(frame) == {f'id="{i}"'.encode(): (2,) for i in range(100)}


# ---- slow labels, errors ----


def test_slow_label_is_resolved_once_for_its_value() -> None:
    """Only the first key with a value asks Python."""
    asked: list[tuple[str, int]] = []

    def resolve(decoder: str, value: int) -> str:
        asked.append((decoder, value))
        return f"{decoder}-{value}"

    plan = table(labels=[LabelRule("user", "uid", 0, 8), LabelRule("n", "uint", 8, 24)])
    frame = Frame(plan, scope=SCOPE, resolve=resolve, budget=SeriesBudget(1000), start_ns=START)
    read(frame, {u32(uid | n << 8): u64(1) for uid in (0, 3) for n in range(50)}, 1)
    assert asked == [("uid", 0), ("uid", 3)]
    assert b'user="uid-3",n="49"' in cells(frame)


def test_slow_labels_beyond_the_cache_are_right_too() -> None:
    """The cache is bounded; what fell out is asked again."""
    plan = table(labels=[LabelRule("path", "cgroup", 0, 32)])
    frame = Frame(plan, scope=SCOPE, resolve=lambda _, value: f"/é{value}", budget=SeriesBudget(9999), start_ns=START)
    read(frame, {u32(i): u64(i) for i in range(9000)}, 1, chunk=4096)
    assert cells(frame) == {f'path="/é{i}"'.encode(): (i,) for i in range(9000)}


def test_unresolved_slow_label_is_left_out() -> None:
    """No text, no label."""
    plan = table(labels=[LabelRule("pod", "cgroup.pod", 0, 32)])
    frame = Frame(plan, scope=SCOPE, resolve=lambda *_: "", budget=SeriesBudget(9), start_ns=START)
    read(frame, {u32(1): u64(1), u32(2): u64(2)}, 1)
    assert cells(frame) == {b"": (3,)}


def test_exception_of_the_resolver_reaches_the_caller_and_the_frame_lives_on() -> None:
    """It is a bug of ours, and must not be hidden."""
    answers = {1: "one"}
    plan = table(labels=[LabelRule("user", "uid", 0, 32)])
    frame = Frame(plan, scope=SCOPE, resolve=lambda _, v: answers[v], budget=SeriesBudget(9), start_ns=START)
    with pytest.raises(KeyError):
        read(frame, {u32(1): u64(1), u32(2): u64(2)}, 1)
    answers[2] = "two"
    read(frame, {u32(1): u64(1), u32(2): u64(2)}, 2)
    assert cells(frame) == {b'user="one"': (1,), b'user="two"': (2,)}


@pytest.mark.parametrize(
    ("count", "keys", "values", "stride", "cpus"),
    [(2, 4, 16, 8, 1), (2, 8, 15, 8, 1), (1, 4, 4, 4, 1), (1, 4, 16, 16, 2), (1, 4, 8, 8, 0)],
)
def test_buffers_that_do_not_fit_are_refused(count: int, keys: int, values: int, stride: int, cpus: int) -> None:
    """Nothing is read beyond a buffer's end."""
    frame = make(table())
    frame.begin(START)
    with pytest.raises(ValueError, match="do not fit"):
        frame.apply(bytes(keys), bytes(values), count, stride, cpus)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (table(labels=[LabelRule("id", "uint", 8, 32)]), "do not lie inside 4 bytes"),
        (table(labels=[LabelRule("id", "colour", 0, 32)]), "decoder 'colour' is unknown"),
        (table(labels=[LabelRule("id", "ip", 0, 24)]), "takes 4 or 16 bytes"),
        (table(labels=[LabelRule("a.b", "uint", 0, 8), LabelRule("a_b", "uint", 8, 8)]), "both 'a_b'"),
        (table(constant_labels=(("id", "x"),)), "both 'id'"),
        (table(metrics=[MetricPlan(counter(), ValueRule(1, 64))]), "do not lie inside 8 bytes"),
        (table(metrics=[MetricPlan(counter(), ValueRule(0, 64, is_float=True))]), "into U64 cells"),
        (table(metrics=[MetricPlan(counter())]), "has no value rule"),
        (table(metrics=[MetricPlan(histogram(3))]), "exactly one"),
        (
            table(metrics=[MetricPlan(histogram(3), histogram=HistogramRule(None, ValueRule(0, 8), 4))]),
            "4 slots with 2 bounds",
        ),
    ],
)
def test_plan_that_does_not_fit_itself_is_refused(plan: TablePlan, message: str) -> None:
    """One line that names the map."""
    with pytest.raises(PlanError, match=message) as caught:
        make(plan)
    assert str(caught.value).startswith("map 'rows'")


# ---- what encoders see ----


def test_text_and_attributes_are_what_prometheus_and_otlp_read() -> None:
    """Awkward bytes survive both formats; the view stays valid while its capsule lives."""
    labels = [
        LabelRule("comm", "string", 0, 128),
        LabelRule("port.no", "port_be", 128, 16),
        LabelRule("up", "bool", 144, 8),
    ]
    frame = make(table(labels=labels, key_size=20, constant_labels=(("tier", 'd"b'),)))
    read(frame, {b'a\\"\n\xff{},=\xc3\xa9'.ljust(16, b"\0") + b"\x01\xbb\x01\0": u64(5)}, 1)
    ((text, attributes, *_),) = frame._table.series()
    comm = 'a\\"\n\ufffd{},=é'
    (family,) = text_string_to_metric_families("x{" + text.decode() + "} 5\n")
    assert family.samples[0].labels == {"comm": comm, "port_no": "443", "up": "true", "tier": 'd"b'}
    point = NumberDataPoint.FromString(attributes)
    assert [(one.key, getattr(one.value, one.value.WhichOneof("value"))) for one in point.attributes] == [
        ("comm", comm),
        ("port.no", 443),
        ("up", True),
        ("tier", 'd"b'),
    ]
    assert [row[0] for row in frame.rows()] == [{"comm": comm, "port.no": 443, "up": True, "tier": 'd"b'}]


def test_view_keeps_its_frame_alive() -> None:
    """An encoder that holds the capsule may outlive the frame."""
    budget = SeriesBudget(10)
    frame = make(table(), budget=budget)
    read(frame, {u32(1): u64(1)}, 1)
    view = frame.view()
    del frame
    gc.collect()
    assert budget.used == 1
    del view
    gc.collect()
    assert budget.used == 0


def test_frame_names_its_scope_and_instruments() -> None:
    """What an encoder puts above the points."""
    frame = make(table())
    assert frame.scope == Scope("image", "1.0")
    assert frame.instruments == (counter(),)


# ---- arrays in a value ----


def elements_table(count: int, stride: int, **others: object) -> TablePlan:
    """A counter and a gauge of each element of an array, by the map's key and the element's index."""
    metrics = [
        MetricPlan(counter(), ValueRule(64, 32)),
        MetricPlan(gauge(cell=1), ValueRule(96, 32)),
    ]
    labels = [LabelRule("id", "uint", 0, 32), LabelRule("index", "uint", 32, 32)]
    size = 16 + (count - 1) * stride
    return table(labels=labels, metrics=metrics, value_size=size, elements=count, element_stride=stride, **others)


def test_each_element_of_an_array_is_a_series() -> None:
    """Elements that were never above zero have none."""
    frame = make(elements_table(3, 8, skip_zero_rows=True))
    value = u64(0) + struct.pack("<6I", 5, 1, 0, 0, 7, 2)
    read(frame, {u32(1): value, u32(2): bytes(32)}, 1)
    assert cells(frame) == {b'id="1",index="0"': (5, 1), b'id="1",index="2"': (7, 2)}
    read(frame, {u32(1): u64(0) + struct.pack("<6I", 5, 0, 4, 0, 6, 2)}, 2)
    assert cells(frame) == {
        b'id="1",index="0"': (5, 0), b'id="1",index="1"': (4, 0), b'id="1",index="2"': (13, 2)
    }  # fmt: skip
    assert frame._table.rows == 3


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(2, 4), st.sampled_from([8, 12, 16, 20]), st.integers(1, 2), st.booleans())
def test_elements_are_what_the_model_says(data: st.DataObject, count: int, stride: int, cpus: int, skip: bool) -> None:
    """Any values on any number of CPUs, over several reads with rows that come and go."""
    plan = elements_table(count, stride, per_cpu=cpus > 1, skip_zero_rows=skip)
    frame, model = make(plan, limit=12), FrameModel(plan, 12)
    step = -(-plan.value_size // 8) * 8 if cpus > 1 else plan.value_size
    values = st.lists(st.sampled_from([0, 0, 1, 5, 200]), min_size=step * cpus, max_size=step * cpus).map(bytes)
    for second in range(1, 4):
        rows = {u32(n): data.draw(values) for n in data.draw(st.sets(st.integers(1, 3)))}
        read(frame, rows, second, cpus=cpus)
        model.read(rows, START + second * SECOND, cpus=cpus)
        assert shown(frame) == model.shown()
    assert frame.folded_total == model.folded


def test_element_beyond_the_value_is_refused() -> None:
    """The last element must lie inside, not only the first."""
    plan = dataclasses.replace(elements_table(3, 8), value_size=24)
    with pytest.raises(PlanError, match="do not lie inside"):
        make(plan)
