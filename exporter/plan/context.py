"""What all steps of planning one map share: the map, what is said about it, and where to put what is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from exporter.bpf import Field, FieldKind, MapSpec, MapType, ObjectSpec
from exporter.errors import PlanError, SkepError

from .metadata import ImageMetadata

TABLES = (
    MapType.HASH, MapType.LRU_HASH, MapType.ARRAY, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH, MapType.PERCPU_ARRAY,
    MapType.LPM_TRIE, MapType.CGROUP_STORAGE, MapType.PERCPU_CGROUP_STORAGE,
)  # fmt: skip
"""Map types whose rows can be read, by batch or one by one."""
NOT_TABLES: dict[MapType, str] = {
    MapType.PROG_ARRAY: "holds programs to jump to",
    MapType.PERF_EVENT_ARRAY: "carries records and has no rows; export them as events",
    MapType.STACK_TRACE: "holds the addresses of stacks; show one as a label of the map that counts them, with kstack "
    "or ustack",
    MapType.CGROUP_ARRAY: "holds cgroups to compare with",
    MapType.DEVMAP: "holds interfaces to send packets to",
    MapType.DEVMAP_HASH: "holds interfaces to send packets to",
    MapType.SOCKMAP: "holds sockets, which the kernel does not show as bytes",
    MapType.SOCKHASH: "holds sockets, which the kernel does not show as bytes",
    MapType.REUSEPORT_SOCKARRAY: "holds sockets, which the kernel does not show as bytes",
    MapType.CPUMAP: "holds processors to send packets to",
    MapType.XSKMAP: "holds sockets to send packets to",
    MapType.QUEUE: "gives each element away once and has no rows; export them as events",
    MapType.STACK: "gives each element away once and has no rows; export them as events",
    MapType.SK_STORAGE: "shows a row only to who holds its socket; count in a hash by bpf_get_socket_cookie()",
    MapType.INODE_STORAGE: "shows a row only to who has its file open; count in a hash by inode number",
    MapType.STRUCT_OPS: "holds functions of the kernel's that the program replaces",
    MapType.RINGBUF: "carries records and has no rows; export them as events",
    MapType.BLOOM_FILTER: "only tells whether a value may be in it; it has no keys and counts nothing",
    MapType.USER_RINGBUF: "carries records to the program and not from it; nothing is to be read there",
    MapType.ARENA: "is plain memory whose layout only its program knows; count in a map or a global variable",
    MapType.INSN_ARRAY: "holds places in a program to jump to",
}
"""Map types that are no tables, and why."""
BY_CGROUP = (MapType.CGROUP_STORAGE, MapType.PERCPU_CGROUP_STORAGE)
STORAGE = {MapType.TASK_STORAGE: "task", MapType.CGRP_STORAGE: "cgroup"}
"""Local storage that is read by asking everyone, and whom."""
OF_MAPS = (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)
ARRAYS = (MapType.ARRAY, MapType.PERCPU_ARRAY)
RINGS = (MapType.RINGBUF, MapType.USER_RINGBUF)
SOURCES = {
    MapType.RINGBUF: "ring", MapType.PERF_EVENT_ARRAY: "perf", MapType.QUEUE: "queue", MapType.STACK: "stack",
}  # fmt: skip
"""Map types that records are taken from."""


@dataclass(frozen=True, slots=True)
class MapContext:
    """One map of an object.

    Attributes:
        base_name: The map's name without its kind prefix.
        problems, notes: Of the whole image; both grow.
        what: What it is to a person: a global variable is planned as the array it lies in the kernel as.
    """

    object: ObjectSpec
    document: ImageMetadata
    spec: MapSpec
    base_name: str
    problems: list[SkepError]
    notes: list[str]
    what: str = "map"

    @property
    def owner(self) -> str:
        """The map as messages call it."""
        return f"{self.what} {self.spec.name!r}"

    @property
    def is_array(self) -> bool:
        """Whether its rows are numbered and all there from the start."""
        return self.spec.type in ARRAYS

    @property
    def is_trie(self) -> bool:
        """Whether its keys begin with the number of bits that count."""
        return self.spec.type is MapType.LPM_TRIE

    def problem(self, code: str, text: str) -> None:
        """Something about the map that is wrong."""
        self.problems.append(PlanError(f"{self.owner}: {text}", code=f"plan.{code}"))

    def problem_in_metadata(self, key: str, text: str) -> None:
        """Something about the map's entry in the metadata that is wrong."""
        self.problems.append(PlanError(f"metadata 'metrics.{key}' {text}", code="plan.metadata"))

    def note(self, text: str) -> None:
        """Something about the map that a person should know."""
        self.notes.append(f"{self.owner}: {text}")


def described(leaf: Field) -> str:
    """A field as messages call it: ``an integer of 32 bits``."""
    size = leaf.size_bits
    match leaf.kind:
        case FieldKind.CHARS | FieldKind.BYTES:
            return f"an array of {leaf.count} {'chars' if leaf.kind is FieldKind.CHARS else 'bytes'}"
        case FieldKind.ARRAY:
            return f"an array of {leaf.count} {leaf.type_name}"
        case FieldKind.OTHER:
            return f"an array {leaf.type_name}"
        case FieldKind.UINT:
            return f"an unsigned integer of {size} bits"
        case FieldKind.INT:
            return f"a signed integer of {size} bits"
        case FieldKind.ENUM:
            return f"an enum of {size} bits"
        case FieldKind.BOOL | FieldKind.POINTER:
            return f"a {leaf.kind.value}"
    return f"a {leaf.kind.value} of {size} bits"


def map_type_name(spec: MapSpec) -> str:
    """A map's type as messages call it: ``map type lpm_trie``."""
    return f"map type {spec.type.name.lower()}" if spec.type else f"map type {spec.type_number}"


def why_no_table(spec: MapSpec) -> str:
    """Why a map's rows cannot be read, beginning with its type; what to do stands at the end."""
    if spec.type in NOT_TABLES:
        return f"{map_type_name(spec)} {NOT_TABLES[spec.type]}"
    return f"{map_type_name(spec)} is not known to this skep; use a newer one, or a hash or an array"


def listed(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(names) or "none"


def mebibytes(size: int) -> str:
    """A size for people: ``12.5 MiB``."""
    return f"{size / (1 << 20):.1f} MiB"
