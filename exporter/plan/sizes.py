"""How many entries each map gets: what the configuration says, else the object, else a default.

Tools that bring their own user space leave sizes open in the object and set them between opening and
loading it, from flags and from the machine. Here nobody does, so what is left open gets what such tools
take most often, and a note says so.
"""

from __future__ import annotations

from dataclasses import replace

from exporter.bpf import MapSpec, MapType, ObjectSpec
from exporter.config import ImageConfig, MapConfig
from exporter.errors import PlanError, SkepError

from .context import OF_MAPS, RINGS, listed

LEFT_OPEN = "its object leaves open"
"""In every note about a default that was taken."""
DEFAULT_ENTRIES = 10_240
DEFAULT_STACKS = 1024
DEFAULT_RING_BYTES = 256 << 10
STACK_FRAMES = 127
"""Of the deepest stack a kernel keeps unless told otherwise: sysctl ``kernel.perf_event_max_stack``."""
_FRAME_BYTES, _BUILD_ID_BYTES = 8, 32
_BY_BUILD_ID = 1 << 5
"""``BPF_F_STACK_BUILD_ID``: a frame is a ``struct bpf_stack_build_id``."""
_PAGE = 4096
_UNSIZED = (
    MapType.SK_STORAGE, MapType.INODE_STORAGE, MapType.TASK_STORAGE, MapType.CGRP_STORAGE, MapType.CGROUP_STORAGE,
    MapType.PERCPU_CGROUP_STORAGE, MapType.STRUCT_OPS,
)  # fmt: skip
# UNSPEC: a type we do not know. libbpf gives a perf event array one entry for each CPU.
_OPEN_BY_RIGHT = (*_UNSIZED, MapType.PERF_EVENT_ARRAY, MapType.UNSPEC)


def size_maps(
    spec: ObjectSpec, config: ImageConfig, *, possible_cpus: int, problems: list[SkepError], notes: list[str]
) -> ObjectSpec:
    """Give the object with every map as large as it will be made.

    What is wrong with ``maps`` of the configuration is added to ``problems``, what was taken by default to ``notes``.
    """
    known = {entry.name: entry for entry in spec.maps}
    sized = {name: _completed(entry, config, possible_cpus, notes) for name, entry in known.items()}
    for entry in spec.maps:
        if entry.type in OF_MAPS and entry.inner is None:
            text = f"map {entry.name!r}: nothing says what maps it holds; declare __array(values, struct {{…}})"
            problems.append(PlanError(text, code="plan.map_type"))
    for name, change in config.maps.items():
        where = f"image {config.name!r}: maps.{name}"
        found = known.get(name)
        if found is None:
            problems.append(PlanError(f"{where}: no such map; it has {listed(known)}", code="plan.config"))
        elif change.max_entries and found.type in _UNSIZED:
            kind = found.type.name.lower()
            text = f"{where}.max_entries has no meaning for a map of type {kind}; it grows with what it is about"
            problems.append(PlanError(text, code="plan.config"))
        elif change.max_entries and found.type in RINGS and change.max_entries % _PAGE:
            text = f"{where}.max_entries is {change.max_entries}; of a ring it is bytes, a multiple of {_PAGE}"
            problems.append(PlanError(text, code="plan.config"))
        elif change.max_entries:
            sized[name] = replace(sized[name], max_entries=change.max_entries)
    return replace(spec, maps=tuple(sized.values()))


def _completed(entry: MapSpec, config: ImageConfig, possible_cpus: int, notes: list[str]) -> MapSpec:
    """The map with what its object leaves open."""
    if entry.type is MapType.STACK_TRACE and not entry.value_size:
        notes.append(f"map {entry.name!r}: {LEFT_OPEN} how deep stacks are; {STACK_FRAMES} frames taken")
        frame = _BUILD_ID_BYTES if entry.flags & _BY_BUILD_ID else _FRAME_BYTES
        entry = replace(entry, value_size=STACK_FRAMES * frame)
    if entry.max_entries or entry.type in _OPEN_BY_RIGHT:
        return entry
    if config.maps.get(entry.name, MapConfig()).max_entries:
        return entry
    entries = _default(entry.type, possible_cpus)
    notes.append(
        f"map {entry.name!r}: {LEFT_OPEN} max_entries; {entries} taken, set maps.{entry.name}.max_entries for another"
    )
    return replace(entry, max_entries=entries)


def _default(kind: MapType, possible_cpus: int) -> int:
    if kind in RINGS:
        return DEFAULT_RING_BYTES
    if kind is MapType.STACK_TRACE:
        return DEFAULT_STACKS
    if kind is MapType.CPUMAP:  # the kernel refuses more than there can be
        return possible_cpus
    return DEFAULT_ENTRIES
