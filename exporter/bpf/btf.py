"""BTF, the compact type format of BPF objects, read from its bytes.

A ``.BTF`` section is a header, a run of type records and a table of strings.
Types are numbered from 1 in the order they stand (0 is ``void``) and refer to
each other by number, forwards as well as backwards. :func:`parse_btf` reads all
records once and checks what can be checked record by record: kinds, lengths,
references, strings. What only makes sense from a given type on (sizes, cycles,
members outside their struct) is checked where it is asked, with a depth limit,
so that damaged bytes cost bounded time.

Source: ``Documentation/bpf/btf.rst`` of the Linux kernel.
"""

from __future__ import annotations

import builtins
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from exporter.errors import ObjectError

MAGIC = 0xEB9F
HEADER = struct.Struct("<HBBIIIII")
BYTES_LIMIT = 16 << 20
"""A ``.BTF`` section may have; programs that use all of vmlinux.h stay under 1 MiB."""
TYPES_LIMIT = 200_000
DEPTH_LIMIT = 32
"""Types on the way from a name to its bytes; the kernel's MAX_RESOLVE_DEPTH is 32."""
NAME_LIMIT = 4096
POINTER_SIZE = 8
"""A pointer in a BPF program is 8 bytes, whatever the host."""


@dataclass(frozen=True, slots=True)
class Void:
    """Type 0, which has no record."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class Int:
    """An integer of ``size`` bytes, of which ``bits`` count, ``offset_bits`` up from its lowest."""

    name: str
    size: int
    bits: int
    offset_bits: int
    signed: bool
    char: bool
    bool: bool


@dataclass(frozen=True, slots=True)
class Ptr:
    """A pointer to ``type_id``."""

    type_id: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Array:
    """``count`` elements of ``element_id``."""

    element_id: int
    index_id: int
    count: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a struct or union; ``bitfield_bits`` is 0 for all but bit-fields that BTF marks so."""

    name: str
    type_id: int
    offset_bits: int
    bitfield_bits: int


@dataclass(frozen=True, slots=True)
class Struct:
    """A struct of ``size`` bytes."""

    name: str
    size: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Union:
    """A union of ``size`` bytes."""

    name: str
    size: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Enum:
    """An enum of up to 4 bytes; compilers before LLVM 16 call every enum unsigned."""

    name: str
    size: int
    signed: bool
    values: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Enum64:
    """An enum of up to 8 bytes."""

    name: str
    size: int
    signed: bool
    values: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Fwd:
    """A struct or union that is only named."""

    name: str
    union: bool


@dataclass(frozen=True, slots=True)
class Typedef:
    """Another name of ``type_id``."""

    name: str
    type_id: int


@dataclass(frozen=True, slots=True)
class Volatile:
    """``volatile``."""

    type_id: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Const:
    """``const``."""

    type_id: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Restrict:
    """``restrict``."""

    type_id: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class TypeTag:
    """``__attribute__((btf_type_tag(name)))`` on ``type_id``."""

    name: str
    type_id: int


@dataclass(frozen=True, slots=True)
class FuncProto:
    """A function's type; the last parameter of a variadic one has no name and type 0."""

    return_id: int
    parameters: tuple[tuple[str, int], ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Func:
    """A function; linkage 0 static, 1 global, 2 extern."""

    name: str
    type_id: int
    linkage: int


@dataclass(frozen=True, slots=True)
class Var:
    """A global variable; linkage 0 static, 1 global, 2 extern."""

    name: str
    type_id: int
    linkage: int


@dataclass(frozen=True, slots=True)
class SectionVariable:
    """A variable of a section, as BTF has it; ``offset`` is 0 in objects that were never linked."""

    type_id: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Datasec:
    """A data section and its variables; ``size`` is 0 in objects that were never linked."""

    name: str
    size: int
    variables: tuple[SectionVariable, ...]


@dataclass(frozen=True, slots=True)
class Float:
    """A floating-point number of ``size`` bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class DeclTag:
    """``__attribute__((btf_decl_tag(value)))`` on ``type_id``, or on its member ``component`` if that is not -1."""

    value: str
    type_id: int
    component: int
    name: str = ""


Type = (
    Void | Int | Ptr | Array | Struct | Union | Enum | Fwd | Typedef | Volatile | Const | Restrict
    | Func | FuncProto | Var | Datasec | Float | DeclTag | TypeTag | Enum64
)  # fmt: skip
NamedType = TypeVar("NamedType", Struct, Union, Enum, Enum64, Typedef, Func, Var, Datasec)

LINKAGE_STATIC, LINKAGE_GLOBAL, LINKAGE_EXTERN = 0, 1, 2
_MODIFIERS = (Typedef, Volatile, Const, Restrict, TypeTag)


class Btf:
    """The types of one object.

    Args:
        types: By type id; the first is :class:`Void`.
    """

    def __init__(self, types: tuple[Type, ...]) -> None:
        self.types = types
        tags: dict[tuple[int, int], list[str]] = {}
        for entry in types:
            if isinstance(entry, DeclTag):
                tags.setdefault((entry.type_id, entry.component), []).append(entry.value)
        self._tags = {place: tuple(values) for place, values in tags.items()}

    def type(self, type_id: int) -> Type:
        """The type of that id.

        Raises:
            ObjectError: there is none.
        """
        if not 0 <= type_id < len(self.types):
            raise _damaged(f"type id {type_id} is used, the last is {len(self.types) - 1}")
        return self.types[type_id]

    def tags(self, type_id: int, component: int = -1) -> tuple[str, ...]:
        """The declaration tags on a type or variable, or on one of its members, in order."""
        return self._tags.get((type_id, component), ())

    def chain(self, type_id: int) -> Iterator[tuple[int, Type]]:
        """Walk from a type through typedefs and qualifiers to the type that has bytes, yielding each.

        Raises:
            ObjectError: the way is longer than the kernel allows, as it is in a cycle.
        """
        for _ in range(DEPTH_LIMIT):
            entry = self.type(type_id)
            yield type_id, entry
            if not isinstance(entry, _MODIFIERS):
                return
            type_id = entry.type_id
        raise _damaged(f"more than {DEPTH_LIMIT} typedefs and qualifiers follow each other before type id {type_id}")

    def resolve(self, type_id: int) -> Type:
        """The type behind typedefs and qualifiers."""
        *_, (_, entry) = self.chain(type_id)
        return entry

    def size_of(self, type_id: int) -> int:
        """Bytes of a type.

        Raises:
            ObjectError: it has none (void, a function, a struct that is only named), or is nested too deeply.
        """
        elements = 1
        for _ in range(DEPTH_LIMIT):
            entry = self.resolve(type_id)
            match entry:
                case Array(element_id=element_id, count=count):
                    elements *= count
                    type_id = element_id
                    continue
                case Ptr():
                    return elements * POINTER_SIZE
                case Int() | Struct() | Union() | Enum() | Enum64() | Float():
                    return elements * entry.size
            raise _damaged(f"{describe(entry)} has no size")
        raise _damaged(f"arrays are nested more than {DEPTH_LIMIT} deep")

    def find(self, kind: builtins.type[NamedType], name: str) -> tuple[int, NamedType] | None:
        """The first type of that class and name, with its id."""
        for type_id, entry in enumerate(self.types):
            if isinstance(entry, kind) and entry.name == name:
                return type_id, entry
        return None


def describe(entry: Type) -> str:
    """A type in the words of C, for messages: ``struct 'key'``, ``array of 27``."""
    match entry:
        case Void():
            return "void"
        case Array(count=count):
            return f"an array of {count}"
        case Ptr():
            return "a pointer"
        case Fwd(name=name, union=union):
            return f"{'union' if union else 'struct'} {name!r} without a definition"
        case FuncProto():
            return "a function type"
    word = {Enum64: "enum", Int: "integer", Func: "function", Var: "variable", Datasec: "section"}.get(
        type(entry), type(entry).__name__.lower()
    )
    return f"{word} {entry.name!r}" if entry.name else f"an unnamed {word}"


def parse_btf(data: bytes) -> Btf:
    """Read a ``.BTF`` section.

    Args:
        data: The whole section, little-endian.

    Raises:
        ObjectError: code ``elf.btf``: it is damaged, of another version, or has a kind made later than this reader.
    """
    if len(data) > BYTES_LIMIT:
        raise _damaged(f"the section has {len(data)} bytes; at most {BYTES_LIMIT} are read")
    if len(data) < HEADER.size:
        raise _damaged(f"the section has {len(data)} bytes, its header needs {HEADER.size}")
    magic, version, flags, header_length, type_offset, type_length, string_offset, string_length = HEADER.unpack_from(
        data
    )
    if magic != MAGIC:
        raise _damaged(f"magic is {magic:#06x}, expected {MAGIC:#06x}")
    if version != 1 or flags != 0:
        raise _damaged(f"version {version} with flags {flags:#x}; only version 1 without flags is known")
    if not HEADER.size <= header_length <= len(data):
        raise _damaged(f"header length is {header_length}, the section has {len(data)} bytes")
    body = memoryview(data)[header_length:]
    if type_offset + type_length > len(body) or type_offset % 4:
        raise _damaged(f"types are at {type_offset}+{type_length}, the section ends at {len(body)}")
    if string_offset + string_length > len(body) or string_length == 0:
        raise _damaged(f"strings are at {string_offset}+{string_length}, the section ends at {len(body)}")
    strings = bytes(body[string_offset : string_offset + string_length])
    if strings[0] or strings[-1]:
        raise _damaged("the string table does not begin and end with NUL")
    types = _Reader(bytes(body[type_offset : type_offset + type_length]), strings).read()
    _check_references(types)
    return Btf(types)


def _damaged(text: str) -> ObjectError:
    return ObjectError(f"object BTF: {text}; rebuild the object", code="elf.btf")


def _check_references(types: tuple[Type, ...]) -> None:
    last = len(types) - 1
    for type_id, entry in enumerate(types):
        match entry:
            case Array(element_id=element_id, index_id=index_id):
                used = [element_id, index_id]
            case Struct(members=members) | Union(members=members):
                used = [member.type_id for member in members]
            case FuncProto(return_id=return_id, parameters=parameters):
                used = [return_id, *(parameter_id for _, parameter_id in parameters)]
            case Datasec(variables=variables):
                used = [variable.type_id for variable in variables]
            case Void() | Int() | Enum() | Enum64() | Fwd() | Float():
                continue
            case _:
                used = [entry.type_id]
        if used and max(used) > last:
            raise _damaged(f"type {type_id} refers to type {max(used)}, the last is {last}")


class _Reader:
    """Reads type records one after the other."""

    def __init__(self, data: bytes, strings: bytes) -> None:
        self.data = data
        self.strings = strings
        self.position = 0
        self.names: dict[int, str] = {0: ""}

    def read(self) -> tuple[Type, ...]:
        types: list[Type] = [Void()]
        while self.position < len(self.data):
            if len(types) > TYPES_LIMIT:
                raise _damaged(f"there are more than {TYPES_LIMIT} types")
            types.append(self._record(len(types)))
        return tuple(types)

    def _take(self, layout: struct.Struct) -> tuple[int, ...]:
        if self.position + layout.size > len(self.data):
            raise _damaged(f"the types end in the middle of a record, at byte {self.position}")
        values: tuple[int, ...] = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return values

    def _take_many(self, layout: struct.Struct, count: int) -> list[tuple[int, ...]]:
        end = self.position + layout.size * count
        if end > len(self.data):
            raise _damaged(f"the types end in the middle of a record, at byte {self.position}")
        values = list(layout.iter_unpack(memoryview(self.data)[self.position : end]))
        self.position = end
        return values

    def _name(self, offset: int) -> str:
        known = self.names.get(offset)
        if known is not None:
            return known
        if offset >= len(self.strings):
            raise _damaged(f"a name is at string offset {offset}, the table has {len(self.strings)} bytes")
        end = self.strings.find(b"\0", offset, offset + NAME_LIMIT + 1)
        if end < 0:
            raise _damaged(f"the string at offset {offset} is longer than {NAME_LIMIT} bytes")
        try:
            name = self.strings[offset:end].decode()
        except UnicodeDecodeError as error:
            raise _damaged(f"the string at offset {offset} is not UTF-8") from error
        self.names[offset] = name
        return name

    def _record(self, type_id: int) -> Type:
        name_offset, info, size_or_type = self._take(_THREE)
        vlen, kind, flag = info & 0xFFFF, info >> 24 & 0x1F, bool(info >> 31)
        name = self._name(name_offset)
        match kind:
            case 1:
                return self._int(name, size_or_type)
            case 2:
                return Ptr(size_or_type)
            case 3:
                element_id, index_id, count = self._take(_THREE)
                return Array(element_id, index_id, count)
            case 4:
                return Struct(name, size_or_type, self._members(vlen, flag))
            case 5:
                return Union(name, size_or_type, self._members(vlen, flag))
            case 6:
                return Enum(name, self._size(size_or_type, (1, 2, 4, 8)), flag, self._enumerators(vlen, flag))
            case 7:
                return Fwd(name, flag)
            case 8:
                return Typedef(name, size_or_type)
            case 9:
                return Volatile(size_or_type)
            case 10:
                return Const(size_or_type)
            case 11:
                return Restrict(size_or_type)
            case 12:
                return Func(name, size_or_type, vlen)
            case 13:
                parameters = tuple((self._name(offset), used) for offset, used in self._take_many(_TWO, vlen))
                return FuncProto(size_or_type, parameters)
            case 14:
                (linkage,) = self._take(_ONE)
                return Var(name, size_or_type, linkage)
            case 15:
                return Datasec(
                    name, size_or_type, tuple(SectionVariable(*values) for values in self._take_many(_THREE, vlen))
                )
            case 16:
                return Float(name, self._size(size_or_type, (2, 4, 8, 12, 16)))
            case 17:
                (component,) = self._take(_SIGNED)
                return DeclTag(name, size_or_type, component)
            case 18:
                return TypeTag(name, size_or_type)
            case 19:
                return Enum64(name, self._size(size_or_type, (1, 2, 4, 8)), flag, self._enumerators_64(vlen, flag))
        raise _damaged(f"type {type_id} is of kind {kind}, the last known is 19 (enum64)")

    @staticmethod
    def _size(size: int, allowed: tuple[int, ...]) -> int:
        if size not in allowed:
            raise _damaged(f"a number has {size} bytes, expected one of {allowed}")
        return size

    def _int(self, name: str, size: int) -> Int:
        (data,) = self._take(_ONE)
        encoding, offset_bits, bits = data >> 24 & 0xF, data >> 16 & 0xFF, data & 0xFF
        self._size(size, (1, 2, 4, 8, 16))
        if not 1 <= bits <= 128 or offset_bits + bits > size * 8:
            raise _damaged(f"integer {name!r} has {bits} bits from bit {offset_bits} on, in {size} bytes")
        return Int(name, size, bits, offset_bits, bool(encoding & 1), bool(encoding & 2), bool(encoding & 4))

    def _members(self, count: int, bitfields: bool) -> tuple[Member, ...]:
        members = []
        for offset, type_id, place in self._take_many(_THREE, count):
            bits, start = (place >> 24, place & 0xFFFFFF) if bitfields else (0, place)
            members.append(Member(self._name(offset), type_id, start, bits))
        return tuple(members)

    def _enumerators(self, count: int, signed: bool) -> tuple[tuple[int, str], ...]:
        return tuple(
            (value - (1 << 32) if signed and value >> 31 else value, self._name(offset))
            for offset, value in self._take_many(_TWO, count)
        )

    def _enumerators_64(self, count: int, signed: bool) -> tuple[tuple[int, str], ...]:
        return tuple(
            ((low | high << 32) - (1 << 64 if signed and high >> 31 else 0), self._name(offset))
            for offset, low, high in self._take_many(_THREE, count)
        )


_ONE, _TWO, _THREE, _SIGNED = struct.Struct("<I"), struct.Struct("<II"), struct.Struct("<III"), struct.Struct("<i")
