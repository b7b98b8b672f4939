"""Global variables: values from the configuration for the ``const volatile`` ones, and those that are measured.

A value is checked against the BTF type. A variable that is measured is planned as
the array map that it could as well be: of one row, or if it is a C array of a row
per element, except where the array is a histogram's slots.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace

from exporter.bpf import Field, FieldKind, GlobalSpec, MapSpec, MapType, ObjectSpec, layout_of
from exporter.bpf.btf import Array, Btf, Int, Member, Struct, Union
from exporter.config import GlobalValue
from exporter.errors import ObjectError, PlanError, SkepError

from .conventions import enum_texts
from .plan import GlobalPlan, SectionSource

KSYM = "ksym:"
_SYMBOL = re.compile(r"[A-Za-z_.][A-Za-z0-9_.$]{0,255}")


def plan_globals(
    spec: ObjectSpec, values: Mapping[str, GlobalValue], image: str, problems: list[SkepError]
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
            plans.append(GlobalPlan(name, entry.section, entry.offset, _encode(spec.btf, entry, value)))
        except PlanError as error:
            problems.append(PlanError(f"{where}{error}", code="plan.global"))
        except ObjectError as error:
            problems.append(PlanError(f"{where}: {error}", code="plan.global"))
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
        return GlobalPlan(entry.name, entry.section, entry.offset, _encode(spec.btf, entry, KSYM + name))
    if not fits:
        raise PlanError(f" is {KSYM + name!r}; an address goes into a __u64, this is {layout.type_name}")
    if not _SYMBOL.fullmatch(name):
        raise PlanError(f" is {KSYM + name!r}; expected {KSYM}NAME with the name of a kernel symbol")
    return GlobalPlan(entry.name, entry.section, entry.offset, bytes(8), name)


def _encode(btf: Btf, entry: GlobalSpec, value: GlobalValue) -> bytes:
    return _bits(btf, entry.type_id, value, "").to_bytes(entry.size, "little")


def _bits(btf: Btf, type_id: int, value: GlobalValue, path: str, width: int = 0) -> int:
    """What a value is in memory, as one little-endian number; what a list or mapping leaves out is zero, as in C.

    Args:
        btf: Of the object.
        type_id: What it is to become.
        value: From the configuration.
        path: Where it stands in the global: ``.member[2]``.
        width: Bits, of a bit-field.
    """
    match btf.resolve(type_id):
        case Struct() | Union() as whole:
            return _members_bits(btf, type_id, whole, value, path)
        case Array(element_id=element_id, count=count) if not _is_text(btf, type_id, element_id):
            if not isinstance(value, list):
                raise PlanError(f"{path} is {_shown(value)}; expected a list of up to {count}")
            if len(value) > count:
                raise PlanError(f"{path} has {len(value)} elements; expected up to {count}")
            size = btf.size_of(element_id)
            elements = (_bits(btf, element_id, one, f"{path}[{index}]") for index, one in enumerate(value))
            return int.from_bytes(b"".join(bits.to_bytes(size, "little") for bits in elements), "little")
    field = layout_of(btf, type_id).fields[0]
    return _scalar_bits(replace(field, size_bits=width or field.size_bits), value, path)


def _members_bits(btf: Btf, type_id: int, whole: Struct | Union, value: GlobalValue, path: str) -> int:
    name_of_type = layout_of(btf, type_id).type_name  # which is refused if it has no end
    members = dict(_members(btf, whole))
    if not isinstance(value, Mapping):
        raise PlanError(
            f"{path} is {_shown(value)}; expected a mapping with members of {name_of_type}: {', '.join(members)}"
        )
    bits, given = 0, dict[str, int]()
    for name, item in value.items():
        if name not in members:
            raise PlanError(f"{path}.{name} is no member of {name_of_type}; there are {', '.join(members)}")
        offset, member = members[name]
        room = ((1 << (member.bitfield_bits or btf.size_of(member.type_id) * 8)) - 1) << offset
        if other := next((other for other, taken in given.items() if taken & room), ""):
            raise PlanError(f"{path}.{name} lies over .{other}; give one of them")
        given[name] = room
        bits |= _bits(btf, member.type_id, item, f"{path}.{name}", member.bitfield_bits) << offset
    return bits


def _members(btf: Btf, whole: Struct | Union, offset: int = 0) -> Iterator[tuple[str, tuple[int, Member]]]:
    """Members by name with their bits from the start; of those without a name, their own members."""
    for member in whole.members:
        inner = btf.resolve(member.type_id)
        if member.name:
            yield member.name, (offset + member.offset_bits, member)
        elif isinstance(inner, Struct | Union):
            yield from _members(btf, inner, offset + member.offset_bits)


def _is_text(btf: Btf, array_id: int, element_id: int) -> bool:
    one_dimension = not isinstance(btf.resolve(element_id), Array)
    return one_dimension and layout_of(btf, array_id).fields[0].kind is FieldKind.CHARS


def _scalar_bits(field: Field, value: GlobalValue, path: str) -> int:
    match field.kind:
        case FieldKind.BOOL:
            if not isinstance(value, bool):
                raise PlanError(f"{path} is {_shown(value)}; expected true or false")
            return int(value)
        case FieldKind.ENUM:
            return _integer(field, _enumerator(field, value, path), path)
        case FieldKind.UINT | FieldKind.INT:
            if not isinstance(value, int) or isinstance(value, bool):
                raise PlanError(f"{path} is {_shown(value)}; expected an integer")
            return _integer(field, value, path)
        case FieldKind.FLOAT if field.size_bits in (32, 64):
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise PlanError(f"{path} is {_shown(value)}; expected a number")
            try:
                return int.from_bytes(struct.pack("<f" if field.size_bits == 32 else "<d", value), "little")
            except OverflowError as error:
                raise PlanError(f"{path} is {_shown(value)}; too large for {field.type_name}") from error
        case FieldKind.CHARS:
            text = value.encode() if isinstance(value, str) else None
            if text is None:
                raise PlanError(f"{path} is {_shown(value)}; expected text")
            room = field.size_bits // 8
            if len(text) >= room or b"\0" in text:
                raise PlanError(f"{path} has {len(text)} bytes; expected fewer than {room}, none of them NUL")
            return int.from_bytes(text, "little")
    raise PlanError(
        f"{path} is of type {field.type_name}; only integers, bool, enums, floats and text, and structs, unions and "
        "arrays of them, can be set"
    )


def _enumerator(field: Field, value: GlobalValue, path: str) -> int:
    texts = enum_texts(field)
    for number, name, text in texts:
        if value in (name, text) or (value == number and not isinstance(value, bool)):
            return number
    raise PlanError(f"{path} is {_shown(value)}; expected one of {', '.join(name for _, name, _ in texts)}")


def _integer(field: Field, value: int, path: str) -> int:
    low = -(1 << field.size_bits - 1) if field.signed else 0
    high = (1 << field.size_bits - field.signed) - 1
    if not low <= value <= high:
        raise PlanError(f"{path} is {value}; expected {low} to {high}")
    return value & (1 << field.size_bits) - 1


def _shown(value: GlobalValue) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
