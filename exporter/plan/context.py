"""What all steps of planning one map share: the map, what is said about it, and where to put what is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from exporter.bpf import Field, FieldKind, MapSpec, MapType, ObjectSpec
from exporter.errors import PlanError, SkepError

from .metadata import ImageMetadata

TABLES = (
    MapType.HASH, MapType.LRU_HASH, MapType.ARRAY, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH, MapType.PERCPU_ARRAY,
)  # fmt: skip
"""Map types whose rows can be read in batches."""
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
    """

    object: ObjectSpec
    document: ImageMetadata
    spec: MapSpec
    base_name: str
    problems: list[SkepError]
    notes: list[str]

    @property
    def owner(self) -> str:
        """The map as messages call it."""
        return f"map {self.spec.name!r}"

    @property
    def is_array(self) -> bool:
        """Whether its rows are numbered and all there from the start."""
        return self.spec.type in ARRAYS

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


def listed(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(names) or "none"


def mebibytes(size: int) -> str:
    """A size for people: ``12.5 MiB``."""
    return f"{size / (1 << 20):.1f} MiB"
