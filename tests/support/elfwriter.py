"""Writes small BPF objects, ELF and BTF, byte by byte: what a compiler would never write included."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

PROGBITS, SYMTAB, STRTAB, NOBITS = 1, 2, 3, 8
WRITE, ALLOC, EXEC, COMPRESSED = 1, 2, 4, 0x800
LOCAL, GLOBAL = 0, 1
NOTYPE, OBJECT, FUNC = 0, 1, 2
EXIT = bytes([0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])
"""Two instructions: r0 = 0, exit."""


class Strings:
    """A string table."""

    def __init__(self) -> None:
        self.data = bytearray(1)
        self.places: dict[str, int] = {"": 0}

    def add(self, text: str) -> int:
        if text not in self.places:
            self.places[text] = len(self.data)
            self.data += text.encode() + b"\0"
        return self.places[text]


class BtfWriter:
    """Writes type records; every method returns the new type's id."""

    def __init__(self) -> None:
        self.records = bytearray()
        self.strings = Strings()
        self.count = 0

    def record(
        self, kind: int, name: str, size_or_type: int, *, vlen: int = 0, flag: bool = False, tail: bytes = b""
    ) -> int:
        info = vlen | kind << 24 | flag << 31
        self.records += struct.pack("<III", self.strings.add(name), info, size_or_type) + tail
        self.count += 1
        return self.count

    def int(self, name: str, size: int, *, encoding: int = 0, bits: int = 0, offset: int = 0) -> int:
        return self.record(1, name, size, tail=struct.pack("<I", encoding << 24 | offset << 16 | (bits or size * 8)))

    def ptr(self, type_id: int) -> int:
        return self.record(2, "", type_id)

    def array(self, element: int, count: int, index: int = 0) -> int:
        return self.record(3, "", 0, tail=struct.pack("<III", element, index or element, count))

    def struct(self, name: str, size: int, members: Sequence[tuple[str, int, int]], *, kind: int = 4) -> int:
        """Members are ``(name, type id, offset in bits)``."""
        tail = b"".join(struct.pack("<III", self.strings.add(member), used, at) for member, used, at in members)
        return self.record(kind, name, size, vlen=len(members), tail=tail)

    def bitfields(self, name: str, size: int, members: Sequence[tuple[str, int, int, int]]) -> int:
        """Members are ``(name, type id, offset in bits, width in bits or 0)``."""
        tail = b"".join(
            struct.pack("<III", self.strings.add(member), used, at | width << 24) for member, used, at, width in members
        )
        return self.record(4, name, size, vlen=len(members), flag=True, tail=tail)

    def enum(self, name: str, values: Sequence[tuple[str, int]], *, size: int = 4, signed: bool = False) -> int:
        tail = b"".join(struct.pack("<II", self.strings.add(text), value & 0xFFFFFFFF) for text, value in values)
        return self.record(6, name, size, vlen=len(values), flag=signed, tail=tail)

    def enum64(self, name: str, values: Sequence[tuple[str, int]], *, signed: bool = False) -> int:
        tail = b"".join(
            struct.pack("<III", self.strings.add(text), value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF)
            for text, value in values
        )
        return self.record(19, name, 8, vlen=len(values), flag=signed, tail=tail)

    def var(self, name: str, type_id: int, linkage: int = GLOBAL) -> int:
        return self.record(14, name, type_id, tail=struct.pack("<I", linkage))

    def datasec(self, name: str, variables: Sequence[tuple[int, int]]) -> int:
        """Variables are ``(type id, size)``; offsets are 0, as clang writes them."""
        tail = b"".join(struct.pack("<III", used, 0, size) for used, size in variables)
        return self.record(15, name, 0, vlen=len(variables), tail=tail)

    def decl_tag(self, text: str, type_id: int, component: int = -1) -> int:
        return self.record(17, text, type_id, tail=struct.pack("<i", component))

    def number(self, value: int) -> int:
        """What ``__uint()`` makes of a number."""
        return self.ptr(self.array(self.int("int", 4, encoding=1), value))

    def build(self) -> bytes:
        types, strings = bytes(self.records), bytes(self.strings.data)
        return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings


@dataclass
class Section:
    name: str
    data: bytes
    type: int = PROGBITS
    flags: int = WRITE | ALLOC
    size: int = -1
    link: int = 0
    offset: int = -1
    entry_size: int = 0


@dataclass
class ObjectWriter:
    """Writes an object; fields of the header can be changed to what is wrong."""

    btf: BtfWriter = field(default_factory=BtfWriter)
    sections: list[Section] = field(default_factory=list)
    symbols: list[tuple[str, int, int, int, int, int]] = field(default_factory=list)
    variables: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    machine: int = 247
    type: int = 1
    with_btf: bool = True

    def section(self, name: str, data: bytes = b"", **fields: int) -> int:
        """Add a section; returns its index."""
        self.sections.append(Section(name, data, **fields))
        return len(self.sections)

    def symbol(
        self, name: str, section: int, offset: int, size: int, *, kind: int = OBJECT, binding: int = GLOBAL
    ) -> None:
        self.symbols.append((name, section, offset, size, kind, binding))

    def program(self, name: str, section: str = "raw_tp/sched_switch", *, binding: int = GLOBAL) -> None:
        index = self.section(section, EXIT, flags=ALLOC | EXEC)
        self.symbol(name, index, 0, len(EXIT), kind=FUNC, binding=binding)

    def variable(self, section: str, name: str, type_id: int, size: int) -> int:
        """Add a variable of a data section to ELF and BTF; returns its BTF id."""
        entry = next((one for one in self.sections if one.name == section), None)
        if entry is None:
            self.section(section)
            entry = self.sections[-1]
        var = self.btf.var(name, type_id)
        self.symbol(name, self.sections.index(entry) + 1, len(entry.data), size)
        entry.data += bytes(size)
        self.variables.setdefault(section, []).append((var, size))
        return var

    def map(
        self,
        name: str,
        map_type: int,
        entries: int,
        *,
        key: int = 0,
        value: int = 0,
        extra: Sequence[tuple[str, int]] = (),
    ) -> int:
        """Add a map; ``extra`` members are ``(name, BTF type id)``. Returns the id of its variable."""
        members = [("type", self.btf.number(map_type)), ("max_entries", self.btf.number(entries))]
        members += [(part, self.btf.ptr(used)) for part, used in (("key", key), ("value", value)) if used]
        members += extra
        size = 8 * len(members)
        definition = self.btf.struct("", size, [(part, used, 64 * at) for at, (part, used) in enumerate(members)])
        return self.variable(".maps", name, definition, size)

    def build(self) -> bytes:
        for name, variables in self.variables.items():
            self.btf.datasec(name, variables)
        self.variables = {}
        sections = [Section("", b"", type=0, flags=0), *self.sections]
        if self.with_btf:
            sections.append(Section(".BTF", self.btf.build(), flags=0))
        names = Strings()
        table = bytearray(24)
        for name, section, offset, size, kind, binding in self.symbols:
            table += struct.pack("<IBBHQQ", names.add(name), binding << 4 | kind, 0, section, offset, size)
        for entry in sections:
            names.add(entry.name)
        for name in (".strtab", ".symtab"):
            names.add(name)
        strtab = len(sections)
        sections.append(Section(".strtab", bytes(names.data), type=STRTAB, flags=0))
        sections.append(Section(".symtab", bytes(table), type=SYMTAB, flags=0, link=strtab, entry_size=24))

        body = bytearray(64)
        headers = bytearray()
        for entry in sections:
            offset = entry.offset if entry.offset >= 0 else len(body)
            size = entry.size if entry.size >= 0 else len(entry.data)
            body += entry.data
            headers += struct.pack(
                "<IIQQQQIIQQ", names.add(entry.name), entry.type, entry.flags, 0, offset if entry.type else 0, size,
                entry.link, entry.type == SYMTAB, 1, entry.entry_size,
            )  # fmt: skip
        header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
        header += struct.pack(
            "<HHIQQQIHHHHHH", self.type, self.machine, 1, 0, 0, len(body), 0, 64, 0, 0, 64, len(sections), strtab
        )  # fmt: skip
        body[:64] = header
        return bytes(body + headers)


def small_object() -> ObjectWriter:
    """One program, one hash map ``counter_calls`` from u32 to u64, one settable global ``limit``."""
    writer = ObjectWriter()
    u32, u64 = writer.btf.int("unsigned int", 4), writer.btf.int("unsigned long long", 8)
    writer.program("on_switch")
    writer.map("counter_calls", 1, 100, key=u32, value=u64)
    volatile = writer.btf.record(9, "", u32)
    writer.variable(".rodata", "limit", writer.btf.record(10, "", volatile), 4)
    index = writer.section("license", b"GPL\0")
    writer.symbol("LICENSE", index, 0, 4)
    return writer
