"""What a BPF object declares, the same on every machine.

Maps are BTF variables in the section ``.maps``: each is a struct whose members
*are* the definition, by libbpf's convention. A number is a pointer to an array
of that many elements, a type a pointer to it; nothing in the variable's bytes
counts. Offsets of variables come from ELF symbols, since BTF of an object that
was never linked has none.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from exporter.errors import ObjectError

from .btf import (
    DEPTH_LIMIT,
    LINKAGE_EXTERN,
    LINKAGE_GLOBAL,
    LINKAGE_STATIC,
    Array,
    Btf,
    Const,
    Datasec,
    Enum,
    Enum64,
    Func,
    Fwd,
    Member,
    Ptr,
    Struct,
    Type,
    Var,
    Volatile,
    describe,
    parse_btf,
)
from .elf import ElfObject, Section, Symbol, read_elf

SIZE_LIMIT = 1 << 30
"""Bytes one key or value may have; the kernel's own limits are lower."""
NAMES_LIMIT = 512
"""Maps, and programs, that one object may have."""
MAPS_SECTION = ".maps"
_INSTRUCTION_SIZE = 8
_NAME = re.compile(r"[A-Za-z_.$][A-Za-z0-9_.$]{0,255}")


class MapType(enum.IntEnum):
    """``enum bpf_map_type`` of ``linux/bpf.h``, the kernel's names in lower case by ``.name.lower()``."""

    UNSPEC = 0
    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    STACK_TRACE = 7
    CGROUP_ARRAY = 8
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    SOCKMAP = 15
    CPUMAP = 16
    XSKMAP = 17
    SOCKHASH = 18
    CGROUP_STORAGE = 19
    REUSEPORT_SOCKARRAY = 20
    PERCPU_CGROUP_STORAGE = 21
    QUEUE = 22
    STACK = 23
    SK_STORAGE = 24
    DEVMAP_HASH = 25
    STRUCT_OPS = 26
    RINGBUF = 27
    INODE_STORAGE = 28
    TASK_STORAGE = 29
    BLOOM_FILTER = 30
    USER_RINGBUF = 31
    CGRP_STORAGE = 32
    ARENA = 33
    INSN_ARRAY = 34

    @property
    def per_cpu(self) -> bool:
        """Whether a value is one slot per possible CPU, each rounded up to 8 bytes."""
        return self in (
            MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH, MapType.PERCPU_CGROUP_STORAGE,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map as the object declares it.

    Attributes:
        type: Kernel map type; an unknown number is kept as :attr:`MapType.UNSPEC` and named by ``type_number``.
        key_size, value_size: Bytes as declared; 0 where the object gives none.
        key_type_id, value_type_id: BTF ids, 0 where it gives none.
        tags: BTF declaration tags on the map's variable, in order.
        pinning: libbpf's ``LIBBPF_PIN_*``: 1 is by name below the BPF file system, 0 not at all.
        inner: The definition of the maps it holds, of a map in map.
    """

    name: str
    type: MapType
    type_number: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    key_type_id: int
    value_type_id: int
    tags: tuple[str, ...] = ()
    section: str = ".maps"
    pinning: int = 0
    inner: MapSpec | None = None


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """A BPF program: its C function, the section that says its type and target, its size, and its BTF tags."""

    name: str
    section: str
    instructions: int
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GlobalSpec:
    """A global variable.

    Attributes:
        section: ``.rodata``, ``.data`` or ``.bss``, with a suffix where the source gave one.
        offset: Bytes from the section's start, from the ELF symbol (BTF has 0 there).
        type_id: BTF id of its type.
        constant: ``const volatile`` in ``.rodata``: may be set before load and never after. (A ``const`` without
            ``volatile`` has already been folded into the instructions.)
    """

    name: str
    section: str
    offset: int
    size: int
    type_id: int
    constant: bool
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """Everything an object declares."""

    programs: tuple[ProgramSpec, ...]
    maps: tuple[MapSpec, ...]
    globals: tuple[GlobalSpec, ...]
    license: str
    btf: Btf

    def map(self, name: str) -> MapSpec:
        """The map of that name; raises ``KeyError``."""
        for spec in self.maps:
            if spec.name == name:
                return spec
        raise KeyError(name)


def read_object(data: bytes) -> ObjectSpec:
    """Read what an object declares: programs, maps, globals, licence and types.

    Args:
        data: The whole object file.

    Raises:
        ObjectError: codes of :func:`.elf.read_elf`; ``elf.no_btf``, ``elf.btf``; ``elf.legacy_maps``,
            ``elf.map_section``, ``elf.map_def``; whatever the bytes, nothing else is raised.
    """
    elf = read_elf(data)
    for section in elf.sections:
        _check_map_section(section.name)
    types = elf.section(".BTF")
    if types is None or not types.in_file:
        raise ObjectError("object: it has no BTF; build it with `clang -g` and do not strip .BTF", code="elf.no_btf")
    btf = parse_btf(elf.data(types))
    return _ObjectReader(elf, btf).read()


def _check_map_section(name: str) -> None:
    if name == "maps" or name.startswith("maps/"):
        raise ObjectError(
            f'object: section {name!r} holds maps without types, as before libbpf 1.0; declare them in SEC(".maps")',
            code="elf.legacy_maps",
        )
    if name.startswith(MAPS_SECTION + "."):
        raise ObjectError(
            f"object: section {name!r} is a map convention of BumbleBee before 0.0.15, which is not read; declare the "
            'maps in SEC(".maps") with the kind as name prefix, such as counter_',
            code="elf.map_section",
        )


class _ObjectReader:
    """Brings ELF symbols and BTF variables together."""

    def __init__(self, elf: ElfObject, btf: Btf) -> None:
        self.elf = elf
        self.btf = btf
        self.symbols: dict[tuple[int, str], list[Symbol]] = {}
        for symbol in elf.symbols:
            self.symbols.setdefault((symbol.section, symbol.name), []).append(symbol)

    def read(self) -> ObjectSpec:
        maps: list[MapSpec] = []
        variables: list[GlobalSpec] = []
        seen: set[str] = set()
        for entry in self.btf.types:
            if not isinstance(entry, Datasec):
                continue
            is_maps, is_data = entry.name == MAPS_SECTION, _data_section(entry.name)
            if not is_maps and not is_data:
                continue  # .ksyms and .kconfig have no ELF section; licence and version are no variables of ours
            section = self.elf.section(entry.name)
            if entry.name in seen or section is None:
                raise _damaged(f"BTF describes section {entry.name!r} {'twice' if section else 'and ELF has none'}")
            seen.add(entry.name)
            for place in entry.variables:
                var = self.btf.type(place.type_id)
                if not isinstance(var, Var):
                    raise _damaged(f"section {entry.name!r} lists {describe(var)} as a variable")
                if is_maps:
                    maps.append(self._map(place.type_id, var, section))
                else:
                    variables += self._global(place.type_id, var, section)
        if MAPS_SECTION not in seen and self.elf.section(MAPS_SECTION):
            raise ObjectError("object: its maps have no BTF; build it with `clang -g`", code="elf.no_btf")
        programs = self._programs()
        _check_names("map", [spec.name for spec in maps])
        _check_names("program", [spec.name for spec in programs])
        return ObjectSpec(programs, tuple(maps), tuple(variables), self._license(), self.btf)

    def _programs(self) -> tuple[ProgramSpec, ...]:
        """Every global function outside .text, which holds what programs call."""
        found = []
        tags = {
            entry.name: self.btf.tags(index) for index, entry in enumerate(self.btf.types) if isinstance(entry, Func)
        }
        for symbol in self.elf.symbols:
            section = self.elf.sections[symbol.section]
            if symbol.type != "STT_FUNC" or not section.executable or section.name == ".text":
                continue
            if symbol.binding == "STB_LOCAL":
                raise ObjectError(
                    f"program {symbol.name!r}: it is static, which libbpf does not load; remove `static`",
                    code="elf.program",
                )
            if symbol.size == 0 or symbol.size % _INSTRUCTION_SIZE or symbol.offset % _INSTRUCTION_SIZE:
                raise _damaged(
                    f"program {symbol.name!r} is at {symbol.offset}+{symbol.size}, expected multiples of 8 bytes"
                )
            found.append(
                (
                    symbol.section,
                    symbol.offset,
                    ProgramSpec(symbol.name, section.name, symbol.size // 8, tags.get(symbol.name, ())),
                )
            )
        return tuple(spec for _, _, spec in sorted(found, key=lambda entry: entry[:2]))

    def _license(self) -> str:
        section = self.elf.section("license")
        if section is None:
            return ""
        return self.elf.data(section).split(b"\0")[0][:128].decode("ascii", "replace")

    def _global(self, var_id: int, var: Var, section: Section) -> list[GlobalSpec]:
        if var.linkage == LINKAGE_EXTERN:
            return []
        symbols = self.symbols.get((section.index, var.name), [])
        if var.linkage == LINKAGE_STATIC and len(symbols) != 1:
            return []  # static variables of functions can share a name, and may be optimised away
        symbol = self._only(symbols, var.name, section)
        size = self.btf.size_of(var.type_id)
        if symbol.size != size:
            raise _damaged(f"variable {var.name!r} has {symbol.size} bytes in ELF and {size} in BTF")
        constant = section.name.startswith(".rodata") and self._const_volatile(var.type_id)
        return [GlobalSpec(var.name, section.name, symbol.offset, size, var.type_id, constant, self.btf.tags(var_id))]

    def _const_volatile(self, type_id: int) -> bool:
        """Whether the variable, or of an array its elements, is ``const volatile``."""
        met: set[type] = set()
        for _ in range(DEPTH_LIMIT):
            for _, entry in self.btf.chain(type_id):
                met.add(type(entry))
            if not isinstance(entry, Array):
                break
            type_id = entry.element_id
        return {Const, Volatile} <= met

    def _only(self, symbols: list[Symbol], name: str, section: Section) -> Symbol:
        if len(symbols) != 1 or symbols[0].type != "STT_OBJECT":
            raise _damaged(f"variable {name!r} of section {section.name!r} has {len(symbols)} ELF symbols, expected 1")
        return symbols[0]

    def _map(self, var_id: int, var: Var, section: Section) -> MapSpec:
        if var.linkage != LINKAGE_GLOBAL:
            raise _map_error(var.name, "is static or extern, which libbpf does not create; declare it global")
        self._only(self.symbols.get((section.index, var.name), []), var.name, section)
        definition = self.btf.resolve(var.type_id)
        if not isinstance(definition, Struct):
            raise _map_error(var.name, f"is {describe(definition)}, expected a struct of __uint() and __type() members")
        return self._definition(var.name, definition, self.btf.tags(var_id), inner=False)

    def _definition(self, name: str, definition: Struct, tags: tuple[str, ...], *, inner: bool) -> MapSpec:
        numbers: dict[str, int] = {}
        types: dict[str, int] = {}
        sizes: dict[str, int] = {}
        inner_spec: MapSpec | None = None
        seen: set[str] = set()
        for member in definition.members:
            if member.name in seen:
                raise _map_error(name, f"has member {member.name!r} twice; remove one")
            seen.add(member.name)
            match member.name:
                case (
                    "type"
                    | "max_entries"
                    | "map_flags"
                    | "key_size"
                    | "value_size"
                    | "numa_node"
                    | "map_extra"
                    | "pinning"
                ):
                    numbers[member.name] = self._number(name, member)
                case "key" | "value":
                    types[member.name] = self._pointee(name, member)
                    target = self.btf.resolve(types[member.name])
                    if isinstance(target, Fwd):  # clang writes what only an inner map points to like this
                        raise _map_error(
                            name,
                            f"has as {member.name} {describe(target)}; before the map that holds it declare one "
                            f'with an initialiser, `… name SEC("{MAPS_SECTION}") = {{}};`',
                        )
                    sizes[member.name] = self.btf.size_of(types[member.name])
                case "values" if not inner:
                    inner_spec = self._inner(name, member)
                case _:
                    raise _map_error(name, f"has member {member.name!r}, which no map definition has; remove it")
        if "type" not in numbers:
            raise _map_error(name, "has no type; add __uint(type, BPF_MAP_TYPE_…)")
        for part, size in sizes.items():
            declared = numbers.get(f"{part}_size", size)
            if declared != size:
                raise _map_error(
                    name, f"says {part}_size {declared}, its {part} type has {size} bytes; remove {part}_size"
                )
        key_size = sizes.get("key", numbers.get("key_size", 0))
        value_size = sizes.get("value", numbers.get("value_size", 0))
        if max(key_size, value_size) > SIZE_LIMIT:
            raise _map_error(name, f"has keys of {key_size} and values of {value_size} bytes; at most {SIZE_LIMIT}")
        number = numbers["type"]
        known = MapType(number) if number in MapType.__members__.values() else MapType.UNSPEC
        if inner_spec and known not in (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS):
            raise _map_error(name, "holds maps, which only ARRAY_OF_MAPS and HASH_OF_MAPS do; change its type")
        return MapSpec(
            name=name,
            type=known,
            type_number=number,
            key_size=key_size,
            value_size=value_size,
            max_entries=numbers.get("max_entries", 0),
            flags=numbers.get("map_flags", 0),
            key_type_id=types.get("key", 0),
            value_type_id=types.get("value", 0),
            tags=tags,
            pinning=numbers.get("pinning", 0),
            inner=inner_spec,
        )

    def _number(self, name: str, member: Member) -> int:
        """A number as __uint() (pointer to an array of so many) or __ulong() (enum of one value) writes it."""
        entry = self.btf.resolve(member.type_id)
        if isinstance(entry, Enum | Enum64) and len(entry.values) == 1:
            return entry.values[0][0]
        if isinstance(entry, Ptr):
            target = self.btf.resolve(entry.type_id)
            if isinstance(target, Array):
                return target.count
        raise _map_error(name, f"has {describe(entry)} as {member.name!r}; write it with __uint()")

    def _pointee(self, name: str, member: Member) -> int:
        entry = self.btf.resolve(member.type_id)
        if not isinstance(entry, Ptr):
            raise _map_error(name, f"has {describe(entry)} as {member.name!r}; write it with __type()")
        return entry.type_id

    def _inner(self, name: str, member: Member) -> MapSpec | None:
        """What ``__array(values, …)`` holds: maps, or the programs of a program array."""
        entry = self.btf.resolve(member.type_id)
        element: Type = self.btf.resolve(entry.element_id) if isinstance(entry, Array) else entry
        if not isinstance(entry, Array) or not isinstance(element, Ptr):
            raise _map_error(name, f"has {describe(entry)} as 'values'; write it with __array()")
        target = self.btf.resolve(element.type_id)
        if not isinstance(target, Struct):
            return None
        return self._definition(f"{name}.inner", target, (), inner=True)


def _check_names(kind: str, names: list[str]) -> None:
    if len(names) > NAMES_LIMIT:
        raise ObjectError(
            f"object: it has {len(names)} {kind}s, at most {NAMES_LIMIT} are read; split it", code="elf.size"
        )
    seen: set[str] = set()
    for name in names:
        if name in seen or not _NAME.fullmatch(name):
            raise _damaged(f"{kind} name {name!r} is {'used twice' if name in seen else 'no C identifier'}")
        seen.add(name)


def _data_section(name: str) -> bool:
    return any(name == stem or name.startswith(stem + ".") for stem in (".rodata", ".data", ".bss"))


def _damaged(text: str) -> ObjectError:
    return ObjectError(f"object: {text}; it is damaged, rebuild it or pull it again", code="elf.corrupt")


def _map_error(name: str, text: str) -> ObjectError:
    return ObjectError(f"map {name!r}: {text}", code="elf.map_def")
