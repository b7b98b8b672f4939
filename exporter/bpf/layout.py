"""Where each member of a key, value or record lies: BTF offsets only, never a C compiler's guess."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from exporter.errors import ObjectError

from .btf import (
    DEPTH_LIMIT,
    POINTER_SIZE,
    Array,
    Btf,
    Enum,
    Enum64,
    Float,
    Int,
    Ptr,
    Struct,
    Type,
    Typedef,
    Union,
    describe,
)

FIELDS_LIMIT = 1024
"""Members, of all depths, that one layout may have."""
PATH_LIMIT = 512
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class FieldKind(enum.Enum):
    """What the bits of a field are."""

    UINT = "uint"
    INT = "int"
    BOOL = "bool"
    CHARS = "chars"  # array of char: text up to the first NUL or the end
    BYTES = "bytes"  # array of unsigned char
    ENUM = "enum"
    FLOAT = "float"
    POINTER = "pointer"
    ARRAY = "array"  # array of integers; element size in ``size_bits // count``
    STRUCT = "struct"  # its members are in ``members``
    UNION = "union"  # likewise, all at the same place
    OTHER = "other"  # arrays of structs, enums, bools, floats or pointers


@dataclass(frozen=True, slots=True)
class Field:
    """One member of a type, or the type itself when it is no struct.

    Attributes:
        name: Member names from the outermost type on, joined by ``.``; ``""`` when the whole type is a scalar or
            an array. Members of an unnamed struct or union have no extra part.
        offset_bits, size_bits: From the start of the outermost type, little-endian bit order.
        count: Elements of an array, of all its dimensions, else 1.
        signed: Of the integer, array element or enum.
        typedefs: Names met on the way to the type, outermost first.
        type_name: The innermost C type's name (``unsigned int``, ``enum x`` without ``enum``).
        enumerators: ``(value, name)`` of an enum.
        tags: BTF declaration tags on the member, then on the typedefs.
        members: Of a struct or union.
        element: Of an array: its first element, under the array's own name; the others follow it
            ``size_bits // count`` apart.
    """

    name: str
    kind: FieldKind
    offset_bits: int
    size_bits: int
    count: int = 1
    signed: bool = False
    typedefs: tuple[str, ...] = ()
    type_name: str = ""
    enumerators: tuple[tuple[int, str], ...] = ()
    tags: tuple[str, ...] = ()
    members: tuple[Field, ...] = ()
    element: Field | None = None

    def leaves(self) -> Iterator[Field]:
        """The field itself, or of a struct the leaves of its members; a union is one leaf."""
        if self.kind is not FieldKind.STRUCT:
            yield self
        for member in self.members if self.kind is FieldKind.STRUCT else ():
            yield from member.leaves()

    def moved(self, bits: int, name: str) -> Field:
        """The same field so many bits further, under another name, and so all that is in it."""
        return replace(
            self,
            name=name,
            offset_bits=self.offset_bits + bits,
            members=tuple(part.moved(bits, name + part.name[len(self.name) :]) for part in self.members),
            element=self.element.moved(bits, name) if self.element else None,
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """A type as fields in offset order; padding is what no field covers.

    Attributes:
        type_name: As C would write it: ``struct key``, ``u32``.
        size: Bytes.
        fields: Members of a struct (or union), else the one field named ``""``.
        scalar: Whether the type is no struct.
        tail: The flexible array a struct ends with, as one element of it; none of ``fields``.
    """

    type_name: str
    size: int
    fields: tuple[Field, ...]
    scalar: bool = False
    tail: Field | None = None

    def leaves(self) -> Iterator[Field]:
        """All fields with structs replaced by their members."""
        for member in self.fields:
            yield from member.leaves()


def layout_of(btf: Btf, type_id: int) -> Layout:
    """Lay out a key, value or record type.

    Raises:
        ObjectError: code ``elf.btf``: the type has no size, members outside itself, or more depth or members than
            any real one.
    """
    entry = btf.resolve(type_id)
    size = btf.size_of(type_id)
    builder = _Builder(btf, size * 8)
    whole = builder.field("", type_id)
    scalar = not isinstance(entry, Struct | Union)
    fields = (whole,) if scalar or isinstance(entry, Union) else whole.members
    return Layout(_type_name(btf, type_id), size, fields, scalar, builder.tail(type_id))


def _type_name(btf: Btf, type_id: int) -> str:
    first = next(iter(btf.chain(type_id)))[1]
    if isinstance(first, Typedef):
        return first.name
    entry = btf.resolve(type_id)
    match entry:
        case Struct(name=name) | Union(name=name) | Enum(name=name) | Enum64(name=name):
            word = {Struct: "struct", Union: "union"}.get(type(entry), "enum")
            return f"{word} {name}" if name else word
        case Array(element_id=element_id, count=count):
            return f"{btf.resolve(element_id).name}[{count}]"
    return entry.name or describe(entry)


@dataclass
class _Builder:
    """Makes the fields of one type and counts them."""

    btf: Btf
    total_bits: int
    fields: int = 0

    def field(
        self,
        name: str,
        type_id: int,
        *,
        offset: int = 0,
        bitfield_bits: int = 0,
        tags: tuple[str, ...] = (),
        depth: int = 0,
    ) -> Field:
        """One member, or with name ``""`` the whole type."""
        self.fields += 1
        if self.fields > FIELDS_LIMIT or depth > DEPTH_LIMIT:
            raise self._error(name, f"is one of more than {FIELDS_LIMIT} members, or nested deeper than {DEPTH_LIMIT}")
        *way, (entry_id, entry) = self.btf.chain(type_id)
        typedefs = [(step_id, step) for step_id, step in way if isinstance(step, Typedef)]
        if isinstance(entry, Struct | Union):
            bare = self._aggregate(name, entry_id, entry, offset, depth)
        else:
            bare = self._bare(name, entry, offset, bitfield_bits, depth)
        if (bare.members or isinstance(entry, Array | Ptr | Float)) and (bitfield_bits or offset % 8):
            raise self._error(name, f"is {describe(entry)} that does not begin and end at a byte")
        if bare.offset_bits + bare.size_bits > self.total_bits:
            raise self._error(name, "lies outside its type")
        return replace(
            bare,
            name=name,
            typedefs=tuple(step.name for _, step in typedefs),
            tags=tags + tuple(tag for step_id, _ in typedefs for tag in self.btf.tags(step_id)),
        )

    def tail(self, type_id: int) -> Field | None:
        """One element of the flexible array that a struct ends with."""
        *_, (struct_id, entry) = self.btf.chain(type_id)
        if not isinstance(entry, Struct) or not entry.members:
            return None
        index, last = len(entry.members) - 1, entry.members[-1]
        array = self.btf.resolve(last.type_id)
        if not last.name or not isinstance(array, Array) or array.count or last.offset_bits % 8:
            return None
        if last.offset_bits > self.total_bits:
            raise self._error(last.name, "lies outside its type")
        made = self._array(last.name, replace(array, count=1), last.offset_bits, 0)
        return replace(made, tags=self.btf.tags(struct_id, index)) if made.size_bits else None

    def _bare(self, name: str, entry: Type, offset: int, bitfield_bits: int, depth: int) -> Field:
        match entry:
            case Int():
                self._check_bitfield(name, entry, bitfield_bits, entry.bits)
                kind = FieldKind.BOOL if entry.bool else FieldKind.INT if entry.signed else FieldKind.UINT
                start = offset if bitfield_bits else offset + entry.offset_bits
                return Field(
                    name, kind, start, bitfield_bits or entry.bits, signed=entry.signed, type_name=entry.name
                )  # fmt: skip
            case Enum() | Enum64():
                self._check_bitfield(name, entry, bitfield_bits, entry.size * 8)
                return Field(
                    name,
                    FieldKind.ENUM if entry.values else FieldKind.UINT,
                    offset,
                    bitfield_bits or entry.size * 8,
                    signed=entry.signed,
                    type_name=entry.name,
                    enumerators=entry.values,
                )
            case Float():
                return Field(name, FieldKind.FLOAT, offset, entry.size * 8, type_name=entry.name)
            case Ptr():
                return Field(name, FieldKind.POINTER, offset, POINTER_SIZE * 8, type_name="pointer")
            case Array():
                return self._array(name, entry, offset, depth)
        raise self._error(name, f"is {describe(entry)}, which has no bytes")

    def _aggregate(self, name: str, type_id: int, entry: Struct | Union, offset: int, depth: int) -> Field:
        kind = FieldKind.STRUCT if isinstance(entry, Struct) else FieldKind.UNION
        members = self._members(name, type_id, entry, offset, depth)
        return Field(name, kind, offset, entry.size * 8, type_name=entry.name, members=members)

    def _members(self, name: str, type_id: int, entry: Struct | Union, offset: int, depth: int) -> tuple[Field, ...]:
        found = []
        for index, member in enumerate(entry.members):
            path = ".".join(part for part in (name, member.name) if part)
            if len(path) > PATH_LIMIT or (member.name and not _IDENTIFIER.fullmatch(member.name)):
                raise self._error(path[:PATH_LIMIT], f"has a name that is no C identifier, or over {PATH_LIMIT} long")
            made = self.field(
                path,
                member.type_id,
                offset=offset + member.offset_bits,
                bitfield_bits=member.bitfield_bits,
                tags=self.btf.tags(type_id, index),
                depth=depth + 1,
            )
            unnamed_padding = not member.name and not made.members
            if made.size_bits and not unnamed_padding:
                found.append(made)
        return tuple(sorted(found, key=lambda one: one.offset_bits))

    def _array(self, name: str, entry: Array, offset: int, depth: int) -> Field:
        count, element_id = entry.count, entry.element_id
        element = self.btf.resolve(element_id)
        for _ in range(DEPTH_LIMIT):
            if not isinstance(element, Array):
                break
            count, element_id = count * element.count, element.element_id
            element = self.btf.resolve(element_id)
        size_bits = entry.count * self.btf.size_of(entry.element_id) * 8
        kind, signed = FieldKind.OTHER, False
        type_name = f"{element.name or describe(element)}[{count}]"
        if isinstance(element, Int) and not element.bool and element.bits == element.size * 8:
            signed, type_name = element.signed, element.name
            if element.size > 1:
                kind = FieldKind.ARRAY
            elif element.char or element.name == "char":
                kind = FieldKind.CHARS
            else:
                kind = FieldKind.ARRAY if element.signed else FieldKind.BYTES
        first = None
        if 0 < size_bits <= self.total_bits - offset:
            first = self.field(name, element_id, offset=offset, depth=depth + 1)
        return Field(name, kind, offset, size_bits, count=count, signed=signed, type_name=type_name, element=first)

    def _check_bitfield(self, name: str, entry: Type, bitfield_bits: int, bits: int) -> None:
        if bitfield_bits > bits:
            raise self._error(name, f"is a bit-field of {bitfield_bits} bits in {describe(entry)}")

    @staticmethod
    def _error(name: str, text: str) -> ObjectError:
        return ObjectError(f"object BTF: member {name!r} {text}; rebuild the object", code="elf.btf")
