"""What a frame does, in Python: the slow twin of ``frame.c`` that tests compare it with.

The arithmetic of one row is ``exporter.collect.histogram``'s; this adds what
happens over several reads: which row belongs to which series, budgets, expiry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from exporter.collect.histogram import Number, advance, compile_values, read_row, wrap
from exporter.collect.labels import label_value, prometheus_text
from exporter.model import CellType, Instrument, Kind, Scale, Scope
from exporter.plan.plan import HistogramRule, LabelRule, MetricPlan, TablePlan, ValueRule

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
SCOPE = Scope("image", "1.0")
OVERFLOW = b'otel_metric_overflow="true"'


def unresolved(decoder: str, value: int) -> str:
    """For plans without slow labels."""
    raise AssertionError(f"{decoder} {value} was asked for")


def counter(name: str = "ebpf.calls", *, cell: int = 0, cell_type: CellType = CellType.U64) -> Instrument:
    """A counter whose Prometheus name follows."""
    return Instrument(
        name, name.replace(".", "_") + "_total", Kind.COUNTER, unit="1", first_cell=cell, cell_type=cell_type
    )


def gauge(name: str = "ebpf.open", *, cell: int = 0, cell_type: CellType = CellType.U64) -> Instrument:
    """A gauge whose Prometheus name follows."""
    return Instrument(name, name.replace(".", "_"), Kind.GAUGE, first_cell=cell, cell_type=cell_type)


def histogram(slots: int, *, cell: int = 0, has_sum: bool = False, cell_type: CellType = CellType.U64) -> Instrument:
    """A histogram with edges 1, 2, 4, …."""
    bounds = tuple(float(2**slot) for slot in range(slots - 1))
    return Instrument(
        "ebpf.latency", "ebpf_latency_seconds", Kind.HISTOGRAM, unit="s", first_cell=cell, cell_type=cell_type,
        bounds=bounds, has_sum=has_sum, scale=Scale(-9),
    )  # fmt: skip


def table(
    *,
    labels: Iterable[LabelRule] = (LabelRule("id", "uint", 0, 32),),
    metrics: Iterable[MetricPlan] = (MetricPlan(counter(), ValueRule(0, 64)),),
    key_size: int = 4,
    value_size: int = 8,
    **others: object,
) -> TablePlan:
    """A plan: by default one counter by one u32."""
    fields = {"map": "rows", "per_cpu": False} | others
    return TablePlan(key_size=key_size, value_size=value_size, labels=tuple(labels), metrics=tuple(metrics), **fields)  # type: ignore[arg-type]


def slot_key_table(slots: int, *, has_sum: bool = False, **others: object) -> TablePlan:
    """A histogram by a u32, its slot in the key's second u32."""
    rule = HistogramRule(
        slot=ValueRule(32, 32),
        slots=None,
        slot_count=slots,
        count=ValueRule(0, 64),
        sum=ValueRule(64, 64) if has_sum else None,
    )
    return table(
        metrics=[MetricPlan(histogram(slots, has_sum=has_sum), histogram=rule)],
        key_size=8,
        value_size=16 if has_sum else 8,
        **others,
    )


@dataclass(slots=True)
class ModelRow:
    """A row the last finished read brought, or a later one."""

    text: bytes
    last: list[Number]
    seen: bool = True


@dataclass(slots=True)
class ModelSeries:
    """A series, shown or hidden."""

    cells: list[Number]
    start_ns: int
    changed_s: int
    live: bool = True
    rows: int = 0


@dataclass
class FrameModel:
    """Reads like ``Frame``; keys are bytes, values bytes."""

    plan: TablePlan
    limit: int
    start_ns: int = START
    folded: int = 0
    used: int = 0
    rows: dict[bytes, ModelRow] = field(default_factory=dict)
    series: dict[bytes, ModelSeries] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ops = compile_values(self.plan)
        self.instruments = [metric.instrument for metric in self.plan.metrics]
        self.cells = max(one.first_cell + one.cells for one in self.instruments)
        self.gauges = sum(one.kind is Kind.GAUGE for one in self.instruments)
        self.new_start_ns = self.start_ns

    def _take(self) -> bool:
        if self.used + len(self.instruments) > self.limit:
            return False
        self.used += len(self.instruments)
        return True

    def _give(self, text: bytes) -> None:
        if text != OVERFLOW:
            self.used -= len(self.instruments)

    def _text(self, key: bytes) -> bytes:
        pairs = [(rule.name, label_value(rule, key, resolve=unresolved)) for rule in self.plan.labels]
        return prometheus_text([*pairs, *self.plan.constant_labels])

    def _series(self, text: bytes, now_s: int) -> ModelSeries:
        if text not in self.series:
            self.series[text] = ModelSeries([0] * self.cells, self.new_start_ns, now_s)
        return self.series[text]

    def read(self, rows: Mapping[bytes, bytes], now_ns: int, *, cpus: int = 1) -> None:
        """One whole read."""
        now_s = max(now_ns - self.start_ns, 0) // SECOND
        for row in self.rows.values():
            row.seen = False
        for key, value in self._elements(rows, cpus):
            raw = read_row(self.ops, value, value_stride=len(value), cpus=cpus)
            if key not in self.rows and not (self.plan.skip_zero_rows and not any(raw)):
                text = self._text(key)
                if text not in self.series and not self._take():
                    text = OVERFLOW
                    self.folded += 1
                self._series(text, now_s).rows += 1
                self.rows[key] = ModelRow(text, [0] * len(raw))
            if key not in self.rows:
                continue
            row = self.rows[key]
            row.seen = True
            if raw != row.last:
                series = self.series[row.text]
                if not series.live:
                    if self._take():
                        series.live = True
                    else:
                        series.rows -= 1
                        row.text = OVERFLOW
                        self.folded += 1
                        series = self._series(OVERFLOW, now_s)
                        series.rows += 1
                series.changed_s = now_s
                advance(self.ops, key, raw, row.last, series.cells)
        self._forget(now_s)
        self._add_up_gauges()
        self._expire(now_s)
        self.new_start_ns = now_ns

    def _elements(self, rows: Mapping[bytes, bytes], cpus: int) -> Iterable[tuple[bytes, bytes]]:
        """Each element of an array in the value as a row of its own, of all CPUs."""
        if self.plan.elements == 1:
            yield from rows.items()
            return
        for key, value in rows.items():
            step = len(value) // cpus
            for index in range(self.plan.elements):
                skip = index * self.plan.element_stride
                slots = [value[cpu * step + skip : (cpu + 1) * step].ljust(step, b"\0") for cpu in range(cpus)]
                yield key + index.to_bytes(4, "little"), b"".join(slots)

    def _forget(self, now_s: int) -> None:
        for key in [key for key, row in self.rows.items() if not row.seen]:
            text = self.rows.pop(key).text
            series = self.series[text]
            series.rows -= 1
            if series.rows == 0 and self.gauges == len(self.instruments):
                self._give(text)
                del self.series[text]
            elif series.rows == 0 and not self.plan.expire_idle:
                series.changed_s = now_s

    def _add_up_gauges(self) -> None:
        at = 0
        for op in self.ops:
            if op.is_gauge:
                for series in self.series.values():
                    series.cells[op.cell] = 0
                for row in self.rows.values():
                    cells = self.series[row.text].cells
                    cells[op.cell] = wrap(op.cell_type, cells[op.cell] + row.last[at])
            at += op.count

    def _expire(self, now_s: int) -> None:
        for text, series in list(self.series.items()):
            late = now_s - series.changed_s >= self.plan.expire_after_s
            if series.rows == 0 and (late or not series.live):
                if series.live:
                    self._give(text)
                del self.series[text]
            elif (
                series.rows and late and self.plan.expire_idle and not self.gauges and text != OVERFLOW and series.live
            ):
                series.live = False
                self._give(text)

    def shown(self) -> dict[bytes, tuple[tuple[Number, ...], int]]:
        """Label text to cells and start time of what is exported."""
        return {text: (tuple(s.cells), s.start_ns) for text, s in self.series.items() if s.live}
