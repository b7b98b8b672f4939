"""From a row's value to the cells of its series: counters, gauges and histograms.

:func:`compile_values` turns a plan's metrics into numbers for ``frame.c``. The
other functions are its twin and state what the numbers mean.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from exporter.errors import PlanError
from exporter.model import CellType, Kind
from exporter.plan.plan import MetricPlan, TablePlan, ValueRule

Bits = tuple[int, int, bool, bool]
_U64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class ValueOp:
    """``count`` numbers that follow each other in the value, each for a cell of its own.

    Attributes:
        bits: Where the first is.
        cell: Of the first; with ``slot``, of slot 0.
        slot: Where in the *key* the slot number is, which then chooses the cell.
    """

    bits: ValueRule
    count: int
    cell: int
    cell_type: CellType
    is_gauge: bool = False
    slot: ValueRule | None = None
    slot_count: int = 0

    def native(self) -> tuple[Bits, int, int, int, bool, Bits | None, int]:
        """As ``_frame.Table`` takes it."""
        slot = native_bits(self.slot) if self.slot is not None else None
        return native_bits(self.bits), self.count, self.cell, int(self.cell_type), self.is_gauge, slot, self.slot_count


def native_bits(rule: ValueRule) -> Bits:
    """As ``_frame`` takes it."""
    return rule.offset_bits, rule.size_bits, rule.signed, rule.is_float


def checked(rule: ValueRule, *, count: int, size: int, cell_type: CellType, where: str) -> ValueRule:
    """The rule, if its numbers lie inside ``size`` bytes and fit the cells.

    Raises:
        PlanError: they do not.
    """
    if rule.offset_bits < 0 or not 1 <= rule.size_bits <= 64 or rule.offset_bits + count * rule.size_bits > size * 8:
        raise PlanError(
            f"{where}: {count} times {rule.size_bits} bits at bit {rule.offset_bits} do not lie inside {size} bytes; "
            "rebuild the object"
        )
    if rule.is_float and (cell_type is not CellType.F64 or rule.size_bits not in (32, 64) or rule.offset_bits % 8):
        raise PlanError(f"{where}: a float of {rule.size_bits} bits into {cell_type.name} cells; use 32 or 64 into F64")
    return rule


def _metric_ops(metric: MetricPlan, table: TablePlan) -> list[ValueOp]:
    instrument, rule = metric.instrument, metric.histogram
    where, first, cell_type = f"map {table.map!r}: {instrument.name}", instrument.first_cell, instrument.cell_type
    # Each rule is about the first element; what the last one has must lie inside too.
    size = table.value_size - (table.elements - 1) * table.element_stride
    if instrument.kind is not Kind.HISTOGRAM:
        if metric.value is None:
            raise PlanError(f"{where}: a {instrument.kind.value} has no value rule; expected one")
        value = checked(metric.value, count=1, size=size, cell_type=cell_type, where=where)
        return [ValueOp(value, 1, first, cell_type, is_gauge=instrument.kind is Kind.GAUGE)]
    if rule is None or (rule.slot is None) == (rule.slots is None):
        raise PlanError(f"{where}: a histogram needs slots either in its key or in its value; expected exactly one")
    if rule.slot_count != len(instrument.bounds) + 1:
        raise PlanError(
            f"{where}: {rule.slot_count} slots with {len(instrument.bounds)} bounds; expected one bound less"
        )
    ops = []
    if rule.slots is not None:
        slots = checked(rule.slots, count=rule.slot_count, size=size, cell_type=CellType.U64, where=where)
        ops.append(ValueOp(slots, rule.slot_count, first, CellType.U64))
    else:
        if rule.count is None or rule.slot is None:
            raise PlanError(f"{where}: slots in the key and no count in the value; expected both")
        slot = checked(rule.slot, count=1, size=table.key_size, cell_type=CellType.U64, where=where)
        count = checked(rule.count, count=1, size=size, cell_type=CellType.U64, where=where)
        ops.append(ValueOp(count, 1, first, CellType.U64, slot=slot, slot_count=rule.slot_count))
    if rule.sum is not None and instrument.has_sum:
        total = checked(rule.sum, count=1, size=size, cell_type=cell_type, where=where)
        ops.append(ValueOp(total, 1, first + rule.slot_count, cell_type))
    return ops


def compile_values(table: TablePlan) -> tuple[ValueOp, ...]:
    """Compile the metrics of one table.

    Raises:
        PlanError: a rule reaches beyond the key or value, or does not fit its instrument.
    """
    return tuple(op for metric in table.metrics for op in _metric_ops(metric, table))


# ---- what the numbers mean ----

Number = int | float


def read_number(rule: ValueRule, data: bytes, i: int = 0) -> Number:
    """The ``i``-th of the numbers that follow each other from the rule's bits on."""
    offset = rule.offset_bits + i * rule.size_bits
    value = int.from_bytes(data, "little") >> offset & ((1 << rule.size_bits) - 1)
    if rule.is_float:
        code = "<f" if rule.size_bits == 32 else "<d"
        number: float = struct.unpack(code, value.to_bytes(rule.size_bits // 8, "little"))[0]
        return number
    return value - (1 << rule.size_bits) if rule.signed and value >> (rule.size_bits - 1) else value


def wrap(cell_type: CellType, number: Number) -> Number:
    """A number as its 64-bit cell holds it."""
    if cell_type is CellType.F64:
        return float(number)
    value = int(number) & _U64
    return value - (1 << 64) if cell_type is CellType.I64 and value >> 63 else value


def read_row(ops: Sequence[ValueOp], value: bytes, *, value_stride: int, cpus: int) -> list[Number]:
    """The raw values of one row, summed over CPUs, in the order of the operations."""
    step = value_stride // cpus
    raw: list[Number] = []
    for op in ops:
        for i in range(op.count):
            total = wrap(op.cell_type, read_number(op.bits, value[:step], i))
            for cpu in range(1, cpus):
                slot = value[cpu * step : (cpu + 1) * step]
                total = wrap(op.cell_type, total + wrap(op.cell_type, read_number(op.bits, slot, i)))
            raw.append(total)
    return raw


def gain(cell_type: CellType, raw: Number, last: Number) -> tuple[Number, Number]:
    """What a counter gained since ``last``, and what to compare with next time.

    A value below the last one is a row that was evicted and made again: it
    counts from zero. A float that is not finite tells nothing.
    """
    if cell_type is CellType.F64 and not math.isfinite(raw):
        return 0.0, last
    return (raw - last if raw >= last else max(raw, 0)), raw


def slot_cell(op: ValueOp, key: bytes) -> int:
    """The cell that a row of a slot-key histogram counts in; a slot out of range is the nearest."""
    if op.slot is None:
        return op.cell
    return op.cell + int(min(max(read_number(op.slot, key), 0), op.slot_count - 1))


def advance(ops: Sequence[ValueOp], key: bytes, raw: Sequence[Number], last: list[Number], cells: list[Number]) -> None:
    """Add what a row gained to its series' cells and remember its raw values; gauges are only remembered."""
    at = 0
    for op in ops:
        for i in range(op.count):
            if op.is_gauge:
                last[at] = raw[at]
            else:
                gained, last[at] = gain(op.cell_type, raw[at], last[at])
                cell = slot_cell(op, key) + i
                cells[cell] = wrap(op.cell_type, cells[cell] + gained)
            at += 1
