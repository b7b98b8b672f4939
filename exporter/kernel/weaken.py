"""Kernel functions that this kernel does not have, made optional in the object, so that only their callers fail.

libbpf refuses a whole object for one extern function that is not there, whoever calls
it, unless its ELF symbol is weak; then it spoils the calls, and the verifier refuses
just the programs that make them. So the loader is asked again with these symbols made
weak in its own copy of the bytes. Variables are left as they are: a weak one that is
missing would be an address of 0, which a program runs with.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

# elf.h: ELF64 headers and symbols, little-endian as BPF objects here are.
_SECTIONS_AT, _SECTION_SHAPE = 40, 58
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SYMTAB, _UNDEFINED, _GLOBAL, _WEAK = 2, 0, 1, 2


def weakened(object: bytes, names: Sequence[str]) -> bytes:
    """The object with the undefined symbols of these names weak; as it was where its bytes make no sense."""
    wanted = {name.encode() for name in names}
    changed = bytearray(object)
    try:
        (start,) = struct.unpack_from("<Q", object, _SECTIONS_AT)
        size, count = struct.unpack_from("<HH", object, _SECTION_SHAPE)
        sections = [_SECTION.unpack_from(object, start + index * size) for index in range(count)]
        for _, kind, _, _, place, length, link, _, _, _ in sections:
            if kind != _SYMTAB:
                continue
            names_at = sections[link][4]
            for offset in range(place, place + length, _SYMBOL.size):
                name, info, _, section, _, _ = _SYMBOL.unpack_from(object, offset)
                end = object.find(b"\0", names_at + name)
                bound = section == _UNDEFINED and info >> 4 == _GLOBAL
                if bound and object[names_at + name : end] in wanted:
                    changed[offset + 4] = _WEAK << 4 | info & 15
    except (struct.error, IndexError, OverflowError):
        return object
    return bytes(changed)
