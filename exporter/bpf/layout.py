"""Where each member of a key, value or record lies: BTF offsets only, never a C compiler's guess."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class FieldKind(enum.Enum):
    """What the bits of a field are."""

    UINT = "uint"
    INT = "int"
    BOOL = "bool"
    CHARS = "chars"  # array of char: text up to the first NUL or the end
    BYTES = "bytes"  # array of unsigned char, or what we have no better word for
    ENUM = "enum"
    FLOAT = "float"
    POINTER = "pointer"
    ARRAY = "array"  # array of integers; element size in ``size_bits // count``


@dataclass(frozen=True, slots=True)
class Field:
    """One leaf of a type; nested structs are flattened.

    Attributes:
        name: Member names joined by ``.``; ``""`` when the whole type is a scalar.
        offset_bits, size_bits: From the start of the outermost type, little-endian bit order.
        count: Elements of an array, else 1.
        signed: Of an integer, array element or enum.
        typedefs: Names met on the way to the type, outermost first.
        type_name: The innermost C type's name (``unsigned int``, ``enum x`` without ``enum``).
        enumerators: ``(value, name)`` of an enum.
        tags: BTF declaration tags on the member, then on the typedefs.
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


@dataclass(frozen=True, slots=True)
class Layout:
    """A type flattened into fields in offset order; padding is what no field covers."""

    type_name: str
    size: int
    fields: tuple[Field, ...]
