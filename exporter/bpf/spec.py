"""What a BPF object declares, the same on every machine."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .btf import Btf


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
        return self in (MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH)


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map as the object declares it.

    Attributes:
        type: Kernel map type; an unknown number is kept as :attr:`MapType.UNSPEC` and named by ``type_number``.
        key_size, value_size: Bytes as declared; 0 where the object gives none.
        key_type_id, value_type_id: BTF ids, 0 where it gives none.
        tags: BTF declaration tags on the map's variable, in order.
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


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """A BPF program: its C function, the section that says its type and target, and its size."""

    name: str
    section: str
    instructions: int


@dataclass(frozen=True, slots=True)
class GlobalSpec:
    """A global variable.

    Attributes:
        section: ``.rodata``, ``.data`` or ``.bss``, with a suffix where the source gave one.
        offset: Bytes from the section's start, from the ELF symbol (BTF has 0 there).
        type_id: BTF id of its type.
        constant: ``const volatile``: may be set before load and never after.
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
