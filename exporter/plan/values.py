"""Turns the members of a value into metrics."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from exporter.bpf import Field, FieldKind, Layout
from exporter.errors import PlanError
from exporter.model import CellType, Instrument, Kind, prometheus_name

from .context import MapContext, described, listed
from .conventions import DURATION_UNITS, decoder_mismatch, is_padding
from .decoders import parse_expression
from .labels import label_rule, value_rule
from .metadata import MetricDeclaration, over
from .plan import HistogramRule, LabelRule, RecordRule, ValueRule
from .slots import BCC, SlotScheme, model_scale, parse_scale

OTEL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_./-]{0,254}")
_UNIT = re.compile(r"[!-~]{0,63}")


ELEMENTS_LIMIT = 4096
"""Of an array in a value: each is a series."""
_INDEX = "index"


@dataclass(frozen=True, slots=True)
class Elements:
    """An array whose elements have a series each.

    Attributes:
        count: Of them.
        stride: Bytes from one to the next.
        label: What tells them apart; it lies behind the map's key.
    """

    count: int
    stride: int
    label: LabelRule


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric before its frame is known.

    Attributes:
        owner: The map it comes from, as messages call it.
        name, prometheus_name: As the object and its metadata say; what the configuration says comes after.
        value, histogram, record: Where its cells come from, one of the three.
        elements: The array it is an element of.
    """

    owner: str
    name: str
    prometheus_name: str
    kind: Kind
    unit: str
    help: str
    scale: Fraction
    cell_type: CellType
    enabled: bool
    bounds: tuple[float, ...] = ()
    value: ValueRule | None = None
    histogram: HistogramRule | None = None
    record: RecordRule | None = None
    elements: Elements | None = None

    def instrument(self, first_cell: int) -> Instrument:
        return Instrument(
            name=self.name,
            prometheus_name=self.prometheus_name,
            kind=self.kind,
            unit=self.unit,
            description=self.help,
            first_cell=first_cell,
            cell_type=self.cell_type,
            scale=model_scale(self.scale),
            bounds=self.bounds,
            has_sum=bool(self.histogram and self.histogram.sum)
            or (self.record is not None and self.kind is Kind.HISTOGRAM),
        )


@dataclass(slots=True)
class ValueReader:
    """Turns the members of a value into metrics.

    Attributes:
        slot: Where the slot number lies in the key, if the value is a count for it.
    """

    map: MapContext
    declared: MetricDeclaration
    kind: str | None
    layout: Layout
    members: Mapping[str, MetricDeclaration]
    slot: ValueRule | None
    arrays: dict[str, Field] = field(default_factory=dict)

    def metrics(self) -> Iterable[Metric]:
        whole = self.layout.fields[0] if self.layout.scalar else None
        if whole is not None and not (whole.element and whole.element.kind is FieldKind.STRUCT):
            if self.kind != "histogram" or not is_slot_array(whole, self.declared):
                whole = self._element(whole)
            yield from self._one(whole, self.declared, self.kind or "", single=True)
            return
        leaves = [leaf for leaf in value_leaves(self.layout, self.arrays) if leaf.name]
        taken: set[str] = set()
        if self.slot is not None:
            yield from self._slot_key_struct(leaves, taken)
        arrays = [leaf for leaf in leaves if self._as_histogram(leaf)]
        for array in arrays:
            # Name, unit and help of the map are the histogram's if the map is one.
            single = len(arrays) == 1 and self.kind == "histogram"
            yield from self._slot_array(array, leaves, taken, single=single)
        for member in leaves:
            if member.name in taken or self._as_histogram(member):
                continue
            declared = self.members[member.name]
            if declared.kind is None and self._is_in_union(member):
                continue
            leaf = self._element(member) if declared.kind or member.kind is not FieldKind.BYTES else member
            kind = declared.kind or self.kind or "none"
            if kind == "none" or (is_padding(leaf) and declared.kind is None):
                continue
            if kind == "histogram" or (declared.kind is None and not is_number(leaf)):
                self.map.note(f"value member {leaf.name!r} is not exported: {described(leaf)} makes no {kind}")
                continue
            inherited = replace(self.declared, name=None, unit=None, scale=None, help=None, slots=None, kind=None)
            yield from self._one(leaf, over(declared, inherited), kind, single=False)

    def _is_in_union(self, leaf: Field) -> bool:
        """Whether it shares its bytes with others: only its author can say that it is a number all the same."""
        union = next(
            (one for one in self.layout.leaves() if one.kind is FieldKind.UNION and leaf in union_leaves(one)), None
        )
        if union is not None:
            name = union.name or listed(part.name for part in union.members)
            self.map.note(f"value member {name!r} is not exported: a union; tag the members that are to be with a kind")
        return union is not None

    def _element(self, leaf: Field) -> Field:
        """Of an array of numbers, the first, which stands for all."""
        element = leaf.element
        if element is None or leaf.kind is FieldKind.CHARS or element.kind in (FieldKind.STRUCT, FieldKind.UNION):
            return leaf
        if leaf.name in self.arrays:
            self.map.note(f"value member {leaf.name!r} is not exported: an array inside an array of structs")
            return leaf
        self.arrays[leaf.name] = leaf
        return element

    def _elements(self, leaf: Field | None, declared: MetricDeclaration) -> Elements | None:
        array = self.arrays.get(leaf.name) if leaf is not None else None
        if array is None or array.count == 1:
            return None
        if array.count > ELEMENTS_LIMIT:
            self.map.problem(
                "value",
                f"value member {array.name!r} has {array.count} elements, each a series; at most {ELEMENTS_LIMIT}",
            )
            return None
        name, written = declared.index or (_INDEX, "")
        expression = parse_expression(written or "uint")
        decoder = expression.decoder or "uint"
        index = Field(name, FieldKind.UINT, self.map.spec.key_size * 8, 32, type_name="unsigned int")
        mismatch = decoder_mismatch(decoder, index, enum=expression.enum)
        if mismatch:
            self.map.problem("tag", f"index={name}:{written}: an index is {mismatch}; choose another decoder")
        label = label_rule(self.map, name, decoder, index, expression)
        return Elements(array.count, array.size_bits // array.count // 8, label)

    def _as_histogram(self, leaf: Field) -> bool:
        declared = self.members[leaf.name]
        implied = "histogram" if self.kind == "histogram" or declared.slots is not None else None
        return (declared.kind or implied) == "histogram" and is_slot_array(leaf, declared)

    def _one(self, leaf: Field, declared: MetricDeclaration, kind: str, *, single: bool) -> Iterable[Metric]:
        """One counter, gauge or histogram from one field."""
        name = declared.name or self._name("" if single else leaf.name)
        if kind == "histogram":
            if self.slot is not None:
                yield from self._slot_key(name, declared, leaf)
            elif is_slot_array(leaf, replace(declared, slots=declared.slots or BCC)):
                yield from self._histogram(name, declared, array=leaf, sum_scale=Fraction(1))
            return
        if kind not in ("counter", "gauge"):
            self.map.problem(
                "kind", f"value member {leaf.name!r} has kind {kind!r}; expected counter, gauge or histogram"
            )
            return
        if not is_number(leaf) and not (declared.kind and leaf.kind is FieldKind.ENUM):
            what = f"value member {leaf.name!r}" if leaf.name else "its value"
            self.map.problem(
                "value",
                f"{what} is {described(leaf)}, which is no number for a {kind}; use an integer of up to 64 bits "
                "or a float",
            )
            return
        unit, scale = unit_and_scale(leaf, declared)
        yield from metric_of(
            self.map,
            name,
            Kind(kind),
            unit=unit,
            declared=declared,
            leaf=leaf,
            scale=scale,
            cell_type=cell_type_of(leaf),
            value=value_rule(leaf),
            elements=self._elements(leaf, declared),
        )

    def _slot_key(
        self, name: str, declared: MetricDeclaration, count: Field, total: Field | None = None
    ) -> Iterable[Metric]:
        if count.kind is not FieldKind.UINT or count.size_bits > 64:
            self.map.problem(
                "value",
                f"its value is {described(count)}; a histogram's count is an unsigned integer of up to 64 bits",
            )
            return
        yield from self._histogram(name, declared, count=count, total=total, sum_scale=self._sum_scale(declared, total))

    def _slot_key_struct(self, leaves: Sequence[Field], taken: set[str]) -> Iterable[Metric]:
        """A struct value beside a slot number in the key: its count and, perhaps, its sum."""
        numbers = [leaf for leaf in leaves if is_number(leaf) and self.members[leaf.name].kind is None]
        total = next((leaf for leaf in numbers if self._is_sum(leaf)), None)
        counts = [leaf for leaf in numbers if leaf is not total]
        named = [leaf for leaf in counts if leaf.name == "count"]
        if len(named or counts) != 1:
            self.map.problem(
                "value", "a histogram with slot keys needs one member of its value to be the count; name it count"
            )
            return
        taken.update(leaf.name for leaf in numbers)
        yield from self._slot_key(self.declared.name or self._name(""), self.declared, (named or counts)[0], total)

    def _slot_array(self, array: Field, leaves: Sequence[Field], taken: set[str], *, single: bool) -> Iterable[Metric]:
        """An array of slots, with the sum that stands beside it."""
        parent = array.name.rpartition(".")[0]
        siblings = [leaf for leaf in leaves if leaf.name.rpartition(".")[0] == parent]
        arrays = [leaf for leaf in siblings if self._as_histogram(leaf)]
        totals = [leaf for leaf in siblings if self._is_sum(leaf)]
        if len(totals) > 1 or (totals and len(arrays) > 1):
            self.map.problem(
                "slots",
                f"value has {len(arrays)} slot arrays and {len(totals)} sums side by side; put each pair into a "
                "struct of its own",
            )
            return
        total = totals[0] if totals else None
        taken.add(array.name)
        if total is not None:
            taken.add(total.name)
        own = self.members[array.name]
        member = parent if self.kind == "histogram" and len(arrays) == 1 else array.name
        inherited = replace(self.declared, name=self.declared.name if single else None)
        if self.kind != "histogram":
            inherited = MetricDeclaration(enabled=self.declared.enabled)
        declared = over(own, inherited)
        name = declared.name or self._name("" if single else member)
        yield from self._histogram(
            name, declared, array=array, total=total, sum_scale=self._sum_scale(inherited, total)
        )

    def _is_sum(self, leaf: Field) -> bool:
        declared = self.members[leaf.name]
        if declared.sum is not None:
            return declared.sum
        return leaf.name.rpartition(".")[2] == "sum" and declared.kind is None

    def _sum_scale(self, declared: MetricDeclaration, total: Field | None) -> Fraction:
        """The sum's own scale, else that of the map."""
        own = self.members[total.name].scale if total is not None else None
        return own or declared.scale or Fraction(1)

    def _histogram(
        self,
        name: str,
        declared: MetricDeclaration,
        *,
        array: Field | None = None,
        count: Field | None = None,
        total: Field | None = None,
        sum_scale: Fraction,
    ) -> Iterable[Metric]:
        scheme = declared.slots
        if scheme is None:
            scheme = BCC
            self.map.note("nothing says how its slots are numbered; taken as log2_floor, as bcc's log2l() does")
        slots = array.count if array else self._slot_key_count(scheme)
        if not slots:
            self.map.problem(
                "slots",
                f"slots {str(scheme)!r} does not say how many slots there are; write linear:<width>:<min>:<slots>",
            )
            return
        try:
            bounds = scheme.bounds(slots, declared.scale or Fraction(1))
        except PlanError as error:
            self.map.problem("slots", str(error))
            return
        if total is not None and (total.kind not in (FieldKind.UINT, FieldKind.INT) or total.size_bits > 64):
            self.map.problem(
                "slots", f"value member {total.name!r} is {described(total)}; a sum is an integer of up to 64 bits"
            )
            return
        rule = HistogramRule(
            slot=None if array else self.slot,
            slots=replace(value_rule(array), size_bits=array.size_bits // array.count) if array else None,
            slot_count=slots,
            count=value_rule(count) if count else None,
            sum=value_rule(total) if total else None,
        )
        yield from metric_of(
            self.map,
            name,
            Kind.HISTOGRAM,
            unit=declared.unit or "",
            declared=declared,
            leaf=array or count,
            scale=sum_scale,
            cell_type=CellType.I64 if total is not None and total.signed else CellType.U64,
            bounds=bounds,
            histogram=rule,
            elements=self._elements(array or count, declared),
        )

    def _slot_key_count(self, scheme: SlotScheme) -> int:
        """How many slots a key can name: said by the scheme, or the rows of an array."""
        if self.map.is_array and self.layout.scalar and not scheme.count and scheme.form != "edges":
            return self.map.spec.max_entries
        return scheme.slots_for(64)

    def _name(self, member: str) -> str:
        stem = self.declared.name or f"ebpf.{self.map.base_name}"
        return f"{stem}.{member}" if member else stem


def unit_and_scale(leaf: Field, declared: MetricDeclaration) -> tuple[str, Fraction]:
    """The unit of a number, and what turns it into that; a ``duration`` is shown in seconds."""
    if "duration" not in leaf.typedefs:
        return declared.unit or "", declared.scale or Fraction(1)
    unit = "s" if declared.unit is None else declared.unit
    return unit, declared.scale or parse_scale(DURATION_UNITS.get(unit, "1"))


def metric_of(
    map: MapContext,
    name: str,
    kind: Kind,
    *,
    unit: str,
    declared: MetricDeclaration,
    leaf: Field | None,
    scale: Fraction,
    cell_type: CellType,
    bounds: tuple[float, ...] = (),
    value: ValueRule | None = None,
    histogram: HistogramRule | None = None,
    record: RecordRule | None = None,
    elements: Elements | None = None,
) -> Iterable[Metric]:
    """The metric, unless its name or unit is none; that is then a problem of the map."""
    if not OTEL_NAME.fullmatch(name):
        map.problem("name", f"metric name {name!r}; expected a dotted name of letters, digits and '_'")
        return
    if not _UNIT.fullmatch(unit):
        map.problem("name", f"unit {unit!r}; expected UCUM such as s, By, 1 or {{call}}")
        return
    member = f" member {leaf.name}" if leaf is not None and leaf.name else ""
    yield Metric(
        owner=map.owner,
        name=name,
        prometheus_name=prometheus_name(name, kind=kind, unit=unit),
        kind=kind,
        unit=unit,
        help=declared.help or f"{kind.value.capitalize()} in eBPF {map.what} {map.spec.name}{member}",
        scale=scale,
        cell_type=cell_type,
        enabled=declared.enabled is not False,
        bounds=bounds,
        value=value,
        histogram=histogram,
        record=record,
        elements=elements,
    )


def union_leaves(union: Field) -> list[Field]:
    """The leaves of all members of a union."""
    return [leaf for part in union.members for leaf in part.leaves() if leaf.name]


def value_leaves(layout: Layout, arrays: dict[str, Field] | None = None) -> list[Field]:
    """The leaves of a value; of an array of structs those of its first element, which stand for all.

    ``arrays`` receives, by the leaf's name, the array of structs it was found in.
    """
    found = []
    for leaf in layout.leaves():
        element = leaf.element
        if leaf.kind is FieldKind.UNION:
            found += union_leaves(leaf)
        elif element is None or element.kind is not FieldKind.STRUCT:
            found.append(leaf)
        else:
            for part in element.leaves():
                found.append(part)
                if arrays is not None:
                    arrays[part.name] = leaf
    return found


def is_number(leaf: Field) -> bool:
    """Whether a field can be a counter or gauge."""
    if leaf.kind is FieldKind.FLOAT:
        return leaf.size_bits in (32, 64)
    return leaf.kind in (FieldKind.UINT, FieldKind.INT, FieldKind.BOOL) and leaf.size_bits <= 64


def is_slot_array(leaf: Field, declared: MetricDeclaration) -> bool:
    """Whether a field holds a count per slot: an array of unsigned integers so tagged, so named, or all there is."""
    if leaf.kind is not FieldKind.ARRAY or leaf.signed or not leaf.count or leaf.size_bits // leaf.count > 64:
        return False
    return not leaf.name or declared.slots is not None or leaf.name.rpartition(".")[2] == "slots"


def cell_type_of(leaf: Field) -> CellType:
    """How the cell of a number is read."""
    if leaf.kind is FieldKind.FLOAT:
        return CellType.F64
    return CellType.I64 if leaf.signed else CellType.U64
