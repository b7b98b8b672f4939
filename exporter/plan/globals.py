"""Global variables: values from the configuration for the ``const volatile`` ones, and those that are measured.

A value is checked against the BTF type. A variable that is measured is planned as
the array map that it could as well be: of one row, or if it is a C array of a row
per element, except where the array is a histogram's slots.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

from exporter.bpf import Field, FieldKind, GlobalSpec, MapSpec, MapType, ObjectSpec, layout_of
from exporter.bpf.btf import Array, Int
from exporter.errors import ObjectError, PlanError, SkepError

from .conventions import enum_texts
from .plan import GlobalPlan, SectionSource

Value = int | bool | float | str
KSYM = "ksym:"
_SYMBOL = re.compile(r"[A-Za-z_.][A-Za-z0-9_.$]{0,255}")


def plan_globals(
    spec: ObjectSpec, values: Mapping[str, Value], image: str, problems: list[SkepError]
) -> tuple[GlobalPlan, ...]:
    """Encode the configured globals; what is wrong is added to ``problems``."""
    settable = {entry.name: entry for entry in spec.globals if entry.constant}
    plans = []
    for name, value in values.items():
        where = f"image {image!r}: globals.{name}"
        entry = settable.get(name)
        if entry is None:
            other = any(known.name == name for known in spec.globals)
            found = "is a variable, but not `const volatile`" if other else "does not exist"
            listed = ", ".join(settable) or "none"
            problems.append(PlanError(f"{where} {found}; settable in this object: {listed}", code="plan.global"))
            continue
        try:
            if isinstance(value, str) and value.startswith(KSYM):
                plans.append(_symbol(spec, entry, value.removeprefix(KSYM)))
                continue
            plans.append(GlobalPlan(name, entry.section, entry.offset, _encode(spec, entry, value)))
        except (PlanError, ObjectError) as error:
            problems.append(PlanError(f"{where} {error}", code="plan.global"))
    return tuple(plans)


def as_array(spec: ObjectSpec, entry: GlobalSpec, *, histogram: bool) -> tuple[MapSpec, SectionSource]:
    """Show a variable as an array map of its elements, and say where they lie."""
    type_id, count = entry.type_id, 1
    whole = spec.btf.resolve(type_id)
    if isinstance(whole, Array):
        element = spec.btf.resolve(whole.element_id)
        text = isinstance(element, Int) and element.size == 1
        if whole.count and not text and not (histogram and isinstance(element, Int)):
            type_id, count = whole.element_id, whole.count
    array = MapSpec(
        name=entry.name,
        type=MapType.ARRAY,
        type_number=MapType.ARRAY,
        key_size=4,
        value_size=entry.size // count,
        max_entries=count,
        flags=0,
        key_type_id=0,
        value_type_id=type_id,
        tags=entry.tags,
        section=entry.section,
    )
    return array, SectionSource(entry.section, entry.offset, count)


def _symbol(spec: ObjectSpec, entry: GlobalSpec, name: str) -> GlobalPlan:
    """A global that gets the address of a kernel symbol, which only the host knows."""
    layout = layout_of(spec.btf, entry.type_id)
    field = layout.fields[0] if layout.scalar and layout.fields else None
    fits = field is not None and field.kind in (FieldKind.UINT, FieldKind.POINTER) and entry.size == 8
    if field is not None and field.kind is FieldKind.CHARS:
        return GlobalPlan(entry.name, entry.section, entry.offset, _encode(spec, entry, KSYM + name))
    if not fits:
        raise PlanError(f"is {KSYM + name!r}; an address goes into a __u64, this is {layout.type_name}")
    if not _SYMBOL.fullmatch(name):
        raise PlanError(f"is {KSYM + name!r}; expected {KSYM}NAME with the name of a kernel symbol")
    return GlobalPlan(entry.name, entry.section, entry.offset, bytes(8), name)


def _encode(spec: ObjectSpec, entry: GlobalSpec, value: Value) -> bytes:
    layout = layout_of(spec.btf, entry.type_id)
    field = layout.fields[0] if layout.scalar and layout.fields else None
    match field:
        case Field(kind=FieldKind.BOOL):
            if not isinstance(value, bool):
                raise PlanError(f"is {value!r}; expected true or false")
            return bytes([value]).ljust(entry.size, b"\0")
        case Field(kind=FieldKind.ENUM):
            return _integer(field, _enumerator(field, value), entry.size)
        case Field(kind=FieldKind.UINT | FieldKind.INT):
            if not isinstance(value, int) or isinstance(value, bool):
                raise PlanError(f"is {value!r}; expected an integer")
            return _integer(field, value, entry.size)
        case Field(kind=FieldKind.FLOAT, size_bits=32 | 64):
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise PlanError(f"is {value!r}; expected a number")
            try:
                return struct.pack("<f" if field.size_bits == 32 else "<d", value)
            except OverflowError as error:
                raise PlanError(f"is {value!r}; too large for {field.type_name}") from error
        case Field(kind=FieldKind.CHARS):
            text = value.encode() if isinstance(value, str) else None
            if text is None:
                raise PlanError(f"is {value!r}; expected text")
            if len(text) >= entry.size or b"\0" in text:
                raise PlanError(f"has {len(text)} bytes; expected fewer than {entry.size}, none of them NUL")
            return text.ljust(entry.size, b"\0")
    raise PlanError(f"is of type {layout.type_name}; only integers, bool, enums, floats and char arrays can be set")


def _enumerator(field: Field, value: Value) -> int:
    texts = enum_texts(field)
    for number, name, text in texts:
        if value in (name, text) or (value == number and not isinstance(value, bool)):
            return number
    raise PlanError(f"is {value!r}; expected one of {', '.join(name for _, name, _ in texts)}")


def _integer(field: Field, value: int, size: int) -> bytes:
    low = -(1 << field.size_bits - 1) if field.signed else 0
    high = (1 << field.size_bits - field.signed) - 1
    if not low <= value <= high:
        raise PlanError(f"is {value}; expected {low} to {high}")
    return value.to_bytes(size, "little", signed=field.signed)
