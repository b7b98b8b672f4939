"""The ELF side of a BPF object: sections and symbols, checked before anyone uses them.

pyelftools decodes headers and symbols; every offset, size and index it returns
is checked here before it is followed, and section bytes are cut from the file
as they stand. libbpf reads the same file later in another process, so a file
that two readers could see differently is refused: compressed sections (one
inflates them, the other does not), overlapping or like-named sections, symbols
outside their section, two definitions of one name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.construct import ConstructError
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from exporter.errors import ObjectError

OBJECT_LIMIT = 64 << 20
SECTIONS_LIMIT = 4096
SYMBOLS_LIMIT = 65_536
NAME_LIMIT = 512

_HEADER_SIZE, _SECTION_SIZE, _SYMBOL_SIZE = 64, 64, 24
_MACHINE_OFFSET = struct.Struct("<HH")
_MACHINES = {0: "no machine", 3: "x86", 40: "Arm", 62: "x86-64", 183: "AArch64", 243: "RISC-V", 247: "BPF"}
_TYPES = {1: "relocatable", 2: "an executable", 3: "a shared library", 4: "a core dump"}
_BPF, _RELOCATABLE = 247, 1
_FIRST_RESERVED_SECTION = 0xFF00
# What pyelftools lets through on damaged input, besides its own errors.
_PARSE_ERRORS = (
    ELFError,
    ConstructError,
    struct.error,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    OverflowError,
)


@dataclass(frozen=True, slots=True)
class Section:
    """A section header and its name; :meth:`ElfObject.data` has its bytes."""

    index: int
    name: str
    type: str | int
    flags: int
    offset: int
    size: int
    link: int

    @property
    def executable(self) -> bool:
        """Whether it holds instructions."""
        return self.type == "SHT_PROGBITS" and bool(self.flags & SH_FLAGS.SHF_EXECINSTR)

    @property
    def in_file(self) -> bool:
        """Whether its bytes are in the file."""
        return self.type not in ("SHT_NULL", "SHT_NOBITS")


@dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol that is defined in a section of this object."""

    name: str
    section: int
    offset: int
    size: int
    type: str | int
    binding: str | int


@dataclass(frozen=True, slots=True)
class ElfObject:
    """Sections and defined symbols of one BPF object."""

    file: bytes
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]

    def section(self, name: str) -> Section | None:
        """The section of that name, if there is one."""
        return next((section for section in self.sections if section.name == name), None)

    def data(self, section: Section) -> bytes:
        """The bytes of a section; none for one that takes no space in the file."""
        return self.file[section.offset : section.offset + section.size] if section.in_file else b""


def read_elf(data: bytes) -> ElfObject:
    """Read headers, sections and symbols of a BPF object.

    Raises:
        ObjectError: codes ``elf.magic``, ``elf.class``, ``elf.endian``, ``elf.machine``, ``elf.type``, ``elf.size``, or
            ``elf.corrupt`` for anything that is not as it must be.
    """
    _check_identity(data)
    try:
        file = ELFFile(BytesIO(data))
        sections = _sections(file, data)
        symbols = _symbols(file, data, sections)
    except _PARSE_ERRORS as error:
        raise _corrupt("its headers cannot be decoded") from error
    return ElfObject(data, sections, symbols)


def _corrupt(text: str) -> ObjectError:
    return ObjectError(f"object: {text}; it is damaged, rebuild it or pull it again", code="elf.corrupt")


def _check_identity(data: bytes) -> None:
    if data[:4] != b"\x7fELF":
        raise ObjectError(
            f"object: it begins with {bytes(data[:4])!r}, expected an ELF file; give the .o that clang wrote",
            code="elf.magic",
        )
    if len(data) > OBJECT_LIMIT:
        raise ObjectError(
            f"object: it has {len(data)} bytes, at most {OBJECT_LIMIT} are read; strip it", code="elf.size"
        )
    if len(data) < _HEADER_SIZE:
        raise _corrupt(f"it ends after {len(data)} bytes, in the middle of its header")
    if data[4] != 2:
        raise ObjectError(
            f"object: its ELF class is {data[4]}, expected 2 (64 bits); build it with `clang -target bpf`",
            code="elf.class",
        )
    if data[5] != 1:
        raise ObjectError(
            "object: its byte order is big-endian, this host's is little; build it with `clang -target bpfel`"
            if data[5] == 2
            else f"object: its byte order is {data[5]}, expected 1 (little-endian); rebuild it",
            code="elf.endian",
        )
    kind, machine = _MACHINE_OFFSET.unpack_from(data, 16)
    if machine != _BPF:
        name = _MACHINES.get(machine, "unknown")
        raise ObjectError(
            f"object: its machine is {machine} ({name}), expected {_BPF} (BPF); build it with `clang -target bpf`",
            code="elf.machine",
        )
    if kind != _RELOCATABLE:
        raise ObjectError(
            f"object: it is {_TYPES.get(kind, f'of ELF type {kind}')}, expected a relocatable file; "
            "build it with `clang -c`",
            code="elf.type",
        )


def _sections(file: ELFFile, data: bytes) -> tuple[Section, ...]:
    header = file.header
    start, count, names_at = header["e_shoff"], header["e_shnum"], header["e_shstrndx"]
    if header["e_ehsize"] != _HEADER_SIZE or header["e_shentsize"] != _SECTION_SIZE:
        raise _corrupt(f"its headers have {header['e_ehsize']} and {header['e_shentsize']} bytes, expected 64 and 64")
    if not 0 < count <= SECTIONS_LIMIT:
        raise _corrupt(f"it has {count} sections, expected 1 to {SECTIONS_LIMIT}")
    if start < _HEADER_SIZE or start + count * _SECTION_SIZE > len(data):
        raise _corrupt(f"its section headers are at {start}, the file ends at {len(data)}")
    headers = [
        struct_parse(file.structs.Elf_Shdr, file.stream, start + index * _SECTION_SIZE) for index in range(count)
    ]
    if not isinstance(names_at, int) or not 0 < names_at < count or headers[names_at]["sh_type"] != "SHT_STRTAB":
        raise _corrupt(f"its section names are in section {names_at}, which holds no strings")

    sections = []
    for index, entry in enumerate(headers):
        section = Section(
            index, "", entry["sh_type"], entry["sh_flags"], entry["sh_offset"], entry["sh_size"], entry["sh_link"]
        )
        if section.in_file and section.offset + section.size > len(data):
            raise _corrupt(f"section {index} is at {section.offset}+{section.size}, the file ends at {len(data)}")
        if section.flags & SH_FLAGS.SHF_COMPRESSED:
            raise _corrupt(f"section {index} is compressed, which libbpf does not read")
        sections.append(section)
    _check_overlap(sections, start, count)

    names = sections[names_at]
    table = data[names.offset : names.offset + names.size]
    seen: dict[str, int] = {}
    for index, (section, entry) in enumerate(zip(sections, headers, strict=True)):
        if section.type == "SHT_NULL":
            continue
        name = _string(table, entry["sh_name"], f"section {index}")
        if name in seen:
            raise _corrupt(f"sections {seen[name]} and {index} are both named {name!r}")
        seen[name] = index
        sections[index] = Section(
            index, name, section.type, section.flags, section.offset, section.size, section.link
        )  # fmt: skip
    return tuple(sections)


def _check_overlap(sections: list[Section], headers_at: int, count: int) -> None:
    places = [(0, _HEADER_SIZE, "the file header"), (headers_at, count * _SECTION_SIZE, "the section headers")]
    places += [(section.offset, section.size, f"section {section.index}") for section in sections if section.in_file]
    end, holder = 0, ""
    for offset, size, name in sorted(place for place in places if place[1]):
        if offset < end:
            raise _corrupt(f"{holder} and {name} overlap at byte {offset}")
        end, holder = offset + size, name


def _symbols(file: ELFFile, data: bytes, sections: tuple[Section, ...]) -> tuple[Symbol, ...]:
    tables = [section for section in sections if section.type == "SHT_SYMTAB"]
    if len(tables) != 1:
        raise _corrupt(f"it has {len(tables)} symbol tables, expected 1")
    table = tables[0]
    if not 0 < table.link < len(sections) or sections[table.link].type != "SHT_STRTAB":
        raise _corrupt(f"its symbol names are in section {table.link}, which holds no strings")
    names = sections[table.link]
    strings = data[names.offset : names.offset + names.size]
    count, rest = divmod(table.size, _SYMBOL_SIZE)
    if rest or count > SYMBOLS_LIMIT:
        raise _corrupt(
            f"its symbol table has {table.size} bytes, expected a multiple of 24 for at most {SYMBOLS_LIMIT} symbols"
        )

    symbols = []
    defined: set[str] = set()
    for index in range(count):
        entry = struct_parse(file.structs.Elf_Sym, file.stream, table.offset + index * _SYMBOL_SIZE)
        place = entry["st_shndx"]
        if not isinstance(place, int) or place >= _FIRST_RESERVED_SECTION:
            continue  # undefined, absolute or common: nothing of ours has such a symbol
        name = _string(strings, entry["st_name"], f"symbol {index}")
        if place >= len(sections):
            raise _corrupt(f"symbol {name!r} is in section {place}, the last is {len(sections) - 1}")
        symbol = Symbol(
            name, place, entry["st_value"], entry["st_size"], entry["st_info"]["type"], entry["st_info"]["bind"]
        )  # fmt: skip
        if symbol.offset + symbol.size > sections[place].size:
            raise _corrupt(
                f"symbol {name!r} is at {symbol.offset}+{symbol.size}, its section ends at {sections[place].size}"
            )
        if symbol.binding != "STB_LOCAL":
            if name in defined:
                raise _corrupt(f"symbol {name!r} is defined twice")
            defined.add(name)
        symbols.append(symbol)
    return tuple(symbols)


def _string(table: bytes, offset: int, owner: str) -> str:
    end = table.find(b"\0", offset, offset + NAME_LIMIT + 1)
    if offset >= len(table) or end < 0:
        raise _corrupt(f"the name of {owner} is not in its string table")
    try:
        return table[offset:end].decode()
    except UnicodeDecodeError as error:
        raise _corrupt(f"the name of {owner} is not UTF-8") from error
