"""From a ring's records to the cells of their series: counters that add, histograms that observe.

:func:`compile_records` turns a plan's metrics into numbers for ``frame.c``. The
other functions are its twin and state what the numbers mean.

A record belongs to the series of its labels. Its *key* is what of its bytes the
labels are made of, and nothing else: two records with one key have one label
text, so that few records are rendered though every record differs (in its time).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from exporter.collect.histogram import Bits, Number, checked, native_bits, read_number, wrap
from exporter.errors import PlanError
from exporter.model import CellType, Kind
from exporter.plan.plan import LabelRule, MetricPlan, TablePlan, ValueRule

_DOUBLE = struct.Struct("<d")
_LOWEST = {CellType.U64: 0, CellType.I64: -(1 << 63)}
_HIGHEST = {CellType.U64: (1 << 64) - 1, CellType.I64: (1 << 63) - 1}


@dataclass(frozen=True, slots=True)
class KeySpan:
    """Bytes of a record that are part of its key; of text, what follows the first NUL reads as NULs."""

    offset: int
    size: int
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class RecordOp:
    """What a record adds to the cells of one instrument.

    Attributes:
        bits: Where its number lies; None: it is 1.
        cell: The counter's, or of a histogram that of slot 0.
        edges: Of a histogram, inclusive and rising, those that a number of this type may lie on both sides of.
        below: Slots below the first of these edges.
        sum_cell: Where the numbers are summed up, if they are.
    """

    bits: ValueRule | None
    cell: int
    cell_type: CellType
    is_histogram: bool = False
    edges: tuple[Number, ...] = ()
    below: int = 0
    sum_cell: int | None = None


@dataclass(frozen=True, slots=True)
class CompiledRecords:
    """As ``_frame.Table`` takes it.

    Attributes:
        ops: ``(bits, cell, cell type, is a histogram, sum cell, first edge, edges, slots below)`` each.
        edges: Of all, as 64 bits.
        spans: ``(offset, size, is text)`` in bytes.
        mask: Of a key: the bits that belong to labels.
    """

    record_size: int
    ops: tuple[tuple[Bits | None, int, int, bool, int | None, int, int, int], ...]
    edges: tuple[int, ...]
    spans: tuple[tuple[int, int, bool], ...]
    mask: bytes


def record_ops(table: TablePlan) -> tuple[RecordOp, ...]:
    """Compile the metrics of one table.

    Raises:
        PlanError: a rule reaches beyond the record, or does not fit its instrument.
    """
    return tuple(_op(metric, table) for metric in table.metrics)


def _op(metric: MetricPlan, table: TablePlan) -> RecordOp:
    instrument, rule = metric.instrument, metric.record
    where, first, cell_type = f"map {table.map!r}: {instrument.name}", instrument.first_cell, instrument.cell_type
    if rule is None or instrument.kind is Kind.GAUGE:
        raise PlanError(f"{where}: a {instrument.kind.value} of records has no record rule, or never has one")
    value = None
    if rule.value is not None:
        value = checked(rule.value, count=1, size=table.value_size, cell_type=cell_type, where=where)
        if value.signed and cell_type is CellType.U64:
            raise PlanError(f"{where}: a signed number into {cell_type.name} cells; use I64")
    if instrument.kind is Kind.COUNTER:
        return RecordOp(value, first, cell_type)
    if value is None or len(rule.edges) != len(instrument.bounds) or list(rule.edges) != sorted(set(rule.edges)):
        raise PlanError(
            f"{where}: {len(rule.edges)} edges for {len(instrument.bounds)} bounds; expected a rising edge each"
        )
    below, edges = 0, rule.edges
    if cell_type is not CellType.F64:
        # An edge that no number is below, or above, decides nothing; and does not fit 64 bits.
        below = sum(edge < _LOWEST[cell_type] for edge in edges)
        edges = tuple(edge for edge in edges if _LOWEST[cell_type] <= edge < _HIGHEST[cell_type])
    total = first + len(rule.edges) + 1 if instrument.has_sum else None
    return RecordOp(value, first, cell_type, is_histogram=True, edges=edges, below=below, sum_cell=total)


def key_spans(labels: Sequence[LabelRule]) -> tuple[KeySpan, ...]:
    """Which bytes of a record its key is made of, in rising order and none twice."""
    ranges = [
        (offset_bits // 8, -(-(offset_bits + size_bits) // 8), rule)
        for rule in labels
        for offset_bits, size_bits in rule.places
    ]
    spans: list[KeySpan] = []
    # Text comes with garbage behind its end; unless something else reads those bytes, too.
    texts = {
        (start, end)
        for start, end, rule in ranges
        if rule.decoder == "string"
        and rule.count == 1
        and start == rule.offset_bits // 8
        and all(
            other_end <= start
            or end <= other_start
            or (
                other.decoder == "string"
                and other.count == 1
                and (other_start, other_end) == (start, end)
                and start == other.offset_bits // 8
            )
            for other_start, other_end, other in ranges
        )
    }
    for start, end in sorted({(start, end) for start, end, _ in ranges}):
        last = spans[-1] if spans else None
        if (start, end) in texts:
            spans.append(KeySpan(start, end - start, is_text=True))
        elif last is not None and not last.is_text and start <= last.offset + last.size:
            spans[-1] = KeySpan(last.offset, max(last.size, end - last.offset))
        else:
            spans.append(KeySpan(start, end - start))
    return tuple(spans)


def key_labels(labels: Sequence[LabelRule], spans: Sequence[KeySpan]) -> tuple[LabelRule, ...]:
    """The same labels, read from the key instead of the record."""

    def place(offset_bits: int) -> int:
        at = 0
        for span in spans:
            if span.offset * 8 <= offset_bits < (span.offset + span.size) * 8:
                break
            at += span.size
        return offset_bits - span.offset * 8 + at * 8

    return tuple(rule.placed(place) for rule in labels)


def key_mask(labels: Sequence[LabelRule], size: int) -> bytes:
    """The bits of a key that belong to a label; ``labels`` are those of :func:`key_labels`."""
    mask = 0
    for rule in labels:
        for offset_bits, size_bits in rule.places:
            mask |= ((1 << size_bits) - 1) << offset_bits
    return mask.to_bytes(size, "little")


def compile_records(table: TablePlan) -> tuple[CompiledRecords, tuple[LabelRule, ...]]:
    """Compile a table that is fed with records.

    Returns:
        What counts, and the labels as they are read from a key.

    Raises:
        PlanError: a rule reaches beyond the record, or does not fit its instrument.
    """
    for rule in table.labels:
        for offset_bits, size_bits in rule.places:
            if offset_bits < 0 or size_bits < 1 or offset_bits + size_bits > table.value_size * 8:
                raise PlanError(
                    f"map {table.map!r}: label {rule.name!r} of {size_bits} bits at bit {offset_bits} does not "
                    f"lie inside {table.value_size} bytes; rebuild the object"
                )
    spans = key_spans(table.labels)
    labels = key_labels(table.labels, spans)
    ops: list[tuple[Bits | None, int, int, bool, int | None, int, int, int]] = []
    edges: list[int] = []
    for op in record_ops(table):
        bits = native_bits(op.bits) if op.bits is not None else None
        ops.append(
            (bits, op.cell, int(op.cell_type), op.is_histogram, op.sum_cell, len(edges), len(op.edges), op.below)
        )
        edges += [_as_bits(op.cell_type, edge) for edge in op.edges]
    compiled = CompiledRecords(
        record_size=table.value_size,
        ops=tuple(ops),
        edges=tuple(edges),
        spans=tuple((span.offset, span.size, span.is_text) for span in spans),
        mask=key_mask(labels, sum(span.size for span in spans)),
    )
    return compiled, labels


def _as_bits(cell_type: CellType, number: Number) -> int:
    if cell_type is CellType.F64:
        return int.from_bytes(_DOUBLE.pack(number), "little")
    return int(number) & ((1 << 64) - 1)


# ---- what the numbers mean ----


def record_key(data: bytes, spans: Sequence[KeySpan], mask: bytes) -> bytes:
    """What of a record its series is found by."""
    key = b""
    for span in spans:
        part = data[span.offset : span.offset + span.size]
        key += part.partition(b"\0")[0].ljust(span.size, b"\0") if span.is_text else part
    return bytes(byte & keep for byte, keep in zip(key, mask, strict=True))


def observe(op: RecordOp, data: bytes) -> Iterator[tuple[int, Number]]:
    """What a record adds to which cells.

    A counter only grows: a negative number adds nothing. A float that is not finite tells nothing.
    """
    number: Number = 1
    if op.bits is not None:
        number = wrap(op.cell_type, read_number(op.bits, data))
        if not math.isfinite(number) or (not op.is_histogram and (number < 0 or math.copysign(1, number) < 0)):
            return
    if not op.is_histogram:
        yield op.cell, wrap(op.cell_type, number)
        return
    yield op.cell + op.below + sum(edge < number for edge in op.edges), 1
    if op.sum_cell is not None:
        yield op.sum_cell, number
