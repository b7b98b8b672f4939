"""A frame: the rows of one map, remembered as series.

A plan is compiled once; after that each read of the map is three calls, and no
Python object is made for a row or a series::

    frame.begin(now_ns)
    for batch in map.batches():
        frame.apply(batch.keys, batch.values, batch.count, batch.value_stride, batch.cpus)
    frame.finish()

``finish`` says that *all* rows were brought: rows that were not are gone from the
kernel. After a read that failed halfway it must not be called; what was applied
stays, and the next read begins anew.

A frame of a ring (``TablePlan.records``) takes records instead, whenever there are some, with
:meth:`Frame.add`; ``begin`` and ``finish`` then only let time pass: series expire, gaps are closed.

A frame belongs to one owner, which holds one lock around a whole read and around
everything a reader does with :meth:`Frame.view`. The frame itself locks nothing,
and its calls release the GIL. Only the :class:`SeriesBudget` may be shared with
frames of other owners.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from exporter.collect import _frame
from exporter.collect.histogram import compile_values
from exporter.collect.labels import ATTRIBUTE_OF_POINT, Resolve, Value, compile_labels
from exporter.collect.limits import SeriesBudget
from exporter.collect.tally import compile_records
from exporter.model import CellType, Instrument, Kind, Scope
from exporter.plan.plan import TablePlan

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CODES = {CellType.U64: "Q", CellType.I64: "q", CellType.F64: "d"}


class Frame:
    """The series of one table (``model.FrameView`` to encoders).

    Args:
        plan: What is measured.
        scope: The image.
        resolve: Gives the text of a slow label's value; asked once per value and ten seconds at most.
        budget: Of the image.
        enums: The running kernel's enums, ``{enum: {enumerator: value}}``.
        start_ns: ``CLOCK_REALTIME`` when counting began: start time of the series the first read
            finds. Series found later began after the last finished read, when they were not there.

    Raises:
        PlanError: the plan does not fit itself (a rule beyond its key, two labels of one name).
    """

    def __init__(
        self,
        plan: TablePlan,
        *,
        scope: Scope,
        resolve: Resolve,
        budget: SeriesBudget,
        enums: Mapping[str, Mapping[str, int]] | None = None,
        start_ns: int,
    ) -> None:
        self.plan = plan
        self._scope = scope
        self._instruments = tuple(metric.instrument for metric in plan.metrics)
        self._shows_time = any(rule.decoder == "time" for rule in plan.labels)
        records, rules, key_size = None, plan.labels, plan.key_size
        if plan.records:
            records, rules = compile_records(plan)
            key_size = len(records.mask)
        labels = compile_labels(
            rules,
            plan.constant_labels,
            size=key_size + (4 if plan.elements > 1 else 0),
            subject=f"map {plan.map!r}",
            tag=ATTRIBUTE_OF_POINT,
            enums=enums or {},
        )
        self._table = _frame.Table(
            labels=labels,
            ops=[] if plan.records else [op.native() for op in compile_values(plan)],
            records=records,
            budget=budget.native,
            ask=resolve,
            resolvers=labels.resolvers,
            key_size=key_size,
            value_size=plan.value_size,
            elements=plan.elements,
            element_stride=plan.element_stride,
            cells=max((one.first_cell + one.cells for one in self._instruments), default=0),
            instruments=len(self._instruments),
            per_cpu=plan.per_cpu,
            skip_zero_rows=plan.skip_zero_rows,
            expire_idle=plan.expire_idle,
            gauges=sum(one.kind is Kind.GAUGE for one in self._instruments),
            expire_after_s=min(max(math.ceil(plan.expire_after_s), 1), 1 << 30),
            start_ns=start_ns,
        )

    @property
    def scope(self) -> Scope:
        """The image; a frame that lives on under a newer version of it is given that one's."""
        return self._scope

    @scope.setter
    def scope(self, scope: Scope) -> None:
        self._scope = scope

    @property
    def instruments(self) -> tuple[Instrument, ...]:
        """What each series measures."""
        return self._instruments

    def view(self) -> object:
        """A capsule ``skep.frame_view`` for encoders; valid while the owner's lock is held."""
        return self._table.view()

    def begin(self, now_ns: int, *, realtime_minus_monotonic_ns: int | None = None) -> None:
        """Start a read of all rows.

        Args:
            now_ns: ``CLOCK_REALTIME``.
            realtime_minus_monotonic_ns: For labels that show a time of the kernel's clock; measured if not given.
        """
        if realtime_minus_monotonic_ns is None:
            realtime_minus_monotonic_ns = time.time_ns() - time.monotonic_ns() if self._shows_time else 0
        self._table.begin(now_ns, realtime_minus_monotonic_ns)

    def apply(self, keys: Buffer, values: Buffer, count: int, value_stride: int, cpus: int) -> None:
        """Take ``count`` rows.

        Args:
            keys: ``count * key_size`` bytes.
            values: ``count * value_stride`` bytes.
            count: Rows.
            value_stride: Bytes from one row's value to the next; of a per-CPU map one slot per
                possible CPU, each rounded up to 8 bytes.
            cpus: Slots in a value, 1 if the map is not per-CPU.

        Raises:
            ValueError: the buffers are too small, or the stride does not fit the plan.
            Exception: whatever ``resolve`` raised; the rows before that one are applied.
        """
        self._table.apply(keys, values, count, value_stride, cpus)

    def add(self, records: Buffer, now_ns: int, *, realtime_minus_monotonic_ns: int | None = None) -> None:
        """Count records, of a frame that is fed with them; those shorter than their type are passed over.

        Args:
            records: Any number of whole records, framed as ``record.h`` says.
            now_ns: ``CLOCK_REALTIME``.
            realtime_minus_monotonic_ns: For labels that show a time of the kernel's clock; measured if not given.

        Raises:
            ValueError: the framing is damaged; the records before that are counted.
            Exception: whatever ``resolve`` raised; the records before that one are counted.
        """
        if realtime_minus_monotonic_ns is None:
            realtime_minus_monotonic_ns = time.time_ns() - time.monotonic_ns() if self._shows_time else 0
        self._table.add(records, now_ns, realtime_minus_monotonic_ns)

    def finish(self) -> None:
        """All rows were brought: forget those that are gone, hide or remove what expired."""
        self._table.finish()

    def forget_rows(self, now_ns: int) -> None:
        """Another map takes the place of the one that was read: its rows add to what the series have.

        Without this a row of the new map that is above the old one's last value would count from there.
        """
        self.begin(now_ns)
        self.finish()

    @property
    def series(self) -> int:
        """Label sets that are exported now."""
        return self._table.live

    @property
    def folded_total(self) -> int:
        """Rows that were folded into the overflow series so far, for lack of budget."""
        return self._table.folded

    @property
    def memory_bytes(self) -> int:
        """What the native tables and text hold."""
        return self._table.memory()[0]

    def rows(self) -> Iterator[tuple[dict[str, Value], tuple[object, ...]]]:
        """``(labels, values)`` of each live series, for people; one value an instrument.

        A counter or gauge is a number in the instrument's unit, a histogram
        ``{"count": …, "sum": …, "buckets": {"<upper edge>": count, …}}``, not
        cumulative, without a sum if the program keeps none. A gauge whose row
        is gone is ``None``.
        """
        for _, attributes, cells, _, has_rows in self._table.series():
            yield read_attributes(attributes), tuple(_shown(one, cells, has_rows) for one in self._instruments)


def _scaled(instrument: Instrument, number: float) -> float:
    """Raw units to the instrument's unit; whole numbers stay so where the scale allows."""
    scale = instrument.scale
    if scale.factor == 1.0:
        if scale.exp10 >= 0:
            return number * int(10**scale.exp10)
        return number / int(10**-scale.exp10)
    return number * scale.value()


def _shown(instrument: Instrument, cells: bytes, has_rows: bool) -> object:
    code = _CODES[instrument.cell_type]
    if instrument.kind is not Kind.HISTOGRAM:
        if instrument.kind is Kind.GAUGE and not has_rows:
            return None
        return _scaled(instrument, struct.unpack_from(f"<{code}", cells, instrument.first_cell * 8)[0])
    edges = [*map(repr, instrument.bounds), "+Inf"]
    counts = struct.unpack_from(f"<{len(edges)}Q", cells, instrument.first_cell * 8)
    shown: dict[str, object] = {"count": sum(counts)}
    if instrument.has_sum:
        total = struct.unpack_from(f"<{code}", cells, (instrument.first_cell + len(edges)) * 8)[0]
        shown["sum"] = _scaled(instrument, total)
    return shown | {"buckets": dict(zip(edges, counts, strict=True))}


def read_attributes(data: bytes) -> dict[str, Value]:
    """Repeated ``KeyValue`` as ``labels.c`` writes them, back to Python; for people, not for speed."""
    at = 0
    found: dict[str, Value] = {}

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def text() -> str:
        nonlocal at
        size = number()
        at += size
        return data[at - size : at].decode()

    def scalar() -> int | bool | str:
        nonlocal at
        kind = data[at]
        at += 1
        if kind == 0x0A:
            return text()
        if kind == 0x10:
            return bool(number())
        value = number()
        return value - (1 << 64) if value >> 63 else value

    while at < len(data):
        at += 1
        number()
        at += 1
        name = text()
        at += 1
        number()
        if data[at] != 0x2A:
            found[name] = scalar()
            continue
        at += 1
        end = number() + at
        elements: list[int | bool | str] = []
        while at < end:
            at += 1
            number()
            elements.append(scalar())
        found[name] = tuple(elements)
    return found
