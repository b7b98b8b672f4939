"""What a frame that is fed with records does, in Python: the slow twin of ``skep_frame_add`` in ``frame.c``."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from exporter.collect.histogram import Number, wrap
from exporter.collect.labels import label_value, prometheus_text
from exporter.collect.tally import observe, record_ops
from exporter.model import CellType
from exporter.plan.plan import TablePlan

from .frame_model import OVERFLOW, SECOND, START, unresolved


def framed(*records: bytes) -> bytes:
    """Records as a ring's reader hands them over."""
    return b"".join(
        struct.pack("<QII", position, len(record), 0) + record + bytes(-len(record) % 8)
        for position, record in enumerate(records)
    )


@dataclass(slots=True)
class TallySeries:
    """A series and when it was last added to."""

    cells: list[Number]
    start_ns: int
    changed_s: int


@dataclass
class TallyModel:
    """Counts like ``Frame`` with a plan of records."""

    plan: TablePlan
    limit: int
    start_ns: int = START
    folded: int = 0
    used: int = 0
    series: dict[bytes, TallySeries] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ops = record_ops(self.plan)
        instruments = [metric.instrument for metric in self.plan.metrics]
        self.cells = max(one.first_cell + one.cells for one in instruments)
        self.weight = len(instruments)
        self.new_start_ns = self.start_ns

    def add(self, records: Iterable[bytes], now_ns: int) -> None:
        """Some records."""
        now_s = max(now_ns - self.start_ns, 0) // SECOND
        for data in records:
            if len(data) < self.plan.value_size:
                continue
            pairs = [(rule.name, label_value(rule, data, resolve=unresolved)) for rule in self.plan.labels]
            text = prometheus_text([*pairs, *self.plan.constant_labels])
            if text not in self.series:
                if self.used + self.weight <= self.limit:
                    self.used += self.weight
                else:
                    text = OVERFLOW
                    self.folded += 1
            series = self.series.setdefault(text, TallySeries([0] * self.cells, self.new_start_ns, now_s))
            series.changed_s = now_s
            for op in self.ops:
                for cell, more in observe(op, data):
                    kind = op.cell_type if cell in (op.sum_cell, None if op.is_histogram else op.cell) else CellType.U64
                    series.cells[cell] = wrap(kind, series.cells[cell] + more)

    def pass_time(self, now_ns: int) -> None:
        """A scrape."""
        now_s = max(now_ns - self.start_ns, 0) // SECOND
        for text, series in list(self.series.items()):
            if self.plan.expire_idle and now_s - series.changed_s >= self.plan.expire_after_s:
                del self.series[text]
                self.used -= self.weight * (text != OVERFLOW)
        self.new_start_ns = now_ns

    def shown(self) -> dict[bytes, tuple[tuple[Number, ...], int]]:
        """Label text to cells and start time."""
        return {text: (tuple(one.cells), one.start_ns) for text, one in self.series.items()}
