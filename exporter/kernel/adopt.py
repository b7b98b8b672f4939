"""A collection kept by somebody else while its process was away: told apart, checked, and taken back.

Descriptors outlive a process if another holds them (systemd's store of them). They
come back as names and numbers; what they are is said by a *view*, a JSON-able
document that :func:`view_of` makes of a collection. :func:`adopt` believes neither:
each map and program is asked for its number in the kernel (``fdinfo``, which needs
no privilege and no system call of bpf's) and must be the very one of the view.

A link that is a perf event, as kprobe, tracepoint and uprobe attachments are before
5.15, or a packet socket, says nothing about itself; that it is held under the right name
must do. So is a socket that owns a filter of traffic control (:mod:`.netlink`): it comes
back bound to the name of its filter, which lives for as long as somebody holds it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from exporter.errors import KernelError

from .collection import Collection, Program
from .maps import Map


class MapView(TypedDict):
    """A map as the kernel has it; ``id`` is the kernel's number of it."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    id: int


class ProgramView(TypedDict):
    """A program of the collection; ``links`` counts the descriptors that keep it attached."""

    name: str
    section: str
    attached: bool
    error: str
    passed_over: str
    attach: dict[str, object]
    cpus: list[int]
    id: int
    tag: str
    links: int


class View(TypedDict):
    """What there is to know of a collection but its descriptors."""

    maps: list[MapView]
    programs: list[ProgramView]
    enums: dict[str, dict[str, int]]


def view_of(collection: Collection) -> View:
    """Describe a collection that is open.

    Raises:
        KernelError: ``kernel.adopt``: the kernel does not say what a descriptor is.
    """
    return {
        "maps": [
            {
                "name": map.name,
                "type": map.type,
                "key_size": map.key_size,
                "value_size": map.value_size,
                "max_entries": map.max_entries,
                "id": _number(_fdinfo(map.fd), "map_id", f"map {map.name!r}"),
            }
            for map in collection.maps.values()
        ],
        "programs": [
            {
                "name": program.name,
                "section": program.section,
                "attached": program.attached,
                "error": program.error,
                "passed_over": program.passed_over,
                "attach": dict(program.attach),
                "cpus": list(program.cpus),
                "id": program.id,
                "tag": program.tag,
                "links": len(program.links),
            }
            for program in collection.programs
        ],
        "enums": {name: dict(values) for name, values in collection.enums.items()},
    }


def descriptors_of(collection: Collection) -> dict[str, list[int]]:
    """Give a collection's descriptors, still its own, by role.

    ``m0`` is its first map, ``p0`` and ``l0`` its first program and that one's links; a program that is not
    attached has none.
    """
    roles = {f"m{index}": [map.fd] for index, map in enumerate(collection.maps.values())}
    for index, program in enumerate(collection.programs):
        if program.attached:
            roles |= {f"p{index}": [program.fd], f"l{index}": list(program.links)}
    return roles


def adopt(name: str, view: View, descriptors: Mapping[str, Sequence[int]]) -> Collection:
    """Make a collection of descriptors that were kept, which it owns from then on.

    Args:
        name: Of the object.
        view: As :func:`view_of` gave it.
        descriptors: By role, as :func:`descriptors_of` gave them, whatever their numbers are now.

    Raises:
        KernelError: ``kernel.adopt``: something is missing, too much, or not what the view says. The
            descriptors are then still the caller's.
    """
    wanted = {f"m{index}": 1 for index in range(len(view["maps"]))}
    for index, program in enumerate(view["programs"]):
        if program["attached"]:
            wanted |= {f"p{index}": 1, f"l{index}": program["links"]}
    wanted = {role: count for role, count in wanted.items() if count}
    found = {role: len(fds) for role, fds in descriptors.items() if fds}
    if found != wanted:
        odd = sorted(role for role in wanted.keys() | found.keys() if wanted.get(role) != found.get(role))
        raise KernelError(
            f"object {name!r}: kept are {sum(found.values())} descriptors, expected {sum(wanted.values())} "
            f"(other than expected: {', '.join(odd[:5])})",
            code="kernel.adopt",
        )
    maps = [_map(entry, descriptors[f"m{index}"][0]) for index, entry in enumerate(view["maps"])]
    programs = [
        _program(entry, descriptors.get(f"p{index}", ()), descriptors.get(f"l{index}", ()))
        for index, entry in enumerate(view["programs"])
    ]
    return Collection(name, programs, maps, view["enums"])


def _map(entry: MapView, fd: int) -> Map:
    subject = f"map {entry['name']!r}"
    told = _fdinfo(fd)
    kernel = {
        "type": _number(told, "map_type", subject),
        "key_size": _number(told, "key_size", subject),
        "value_size": _number(told, "value_size", subject),
        "max_entries": _number(told, "max_entries", subject),
        "id": _number(told, "map_id", subject),
    }
    expected = {key: entry[key] for key in kernel}  # type: ignore[literal-required]
    if kernel != expected:
        raise KernelError(f"{subject}: kept is {kernel}, expected {expected}", code="kernel.adopt")
    return Map(
        entry["name"],
        type=entry["type"],
        key_size=entry["key_size"],
        value_size=entry["value_size"],
        max_entries=entry["max_entries"],
        fd=fd,
    )


def _program(entry: ProgramView, fds: Sequence[int], links: Sequence[int]) -> Program:
    subject = f"program {entry['name']!r}"
    fd = -1
    if fds:
        fd = fds[0]
        told = _fdinfo(fd)
        found = (_number(told, "prog_id", subject), told.get("prog_tag", ""))
        if found != (entry["id"], entry["tag"]):
            raise KernelError(
                f"{subject}: kept is program {found[0]} with tag {found[1]!r}, "
                f"expected {entry['id']} with tag {entry['tag']!r}",
                code="kernel.adopt",
            )
        for link in links:
            attached = _fdinfo(link)
            if "prog_id" in attached and _number(attached, "prog_id", f"{subject}: its link") != entry["id"]:
                raise KernelError(
                    f"{subject}: a link kept under its name is of program {attached.get('prog_id')}, "
                    f"expected {entry['id']}",
                    code="kernel.adopt",
                )
    return Program(
        name=entry["name"],
        section=entry["section"],
        attached=entry["attached"],
        error=entry["error"],
        passed_over=entry["passed_over"],
        attach=entry["attach"],
        cpus=tuple(entry["cpus"]),
        id=entry["id"],
        tag=entry["tag"],
        fd=fd,
        links=tuple(links),
    )


def _fdinfo(fd: int) -> dict[str, str]:
    """What the kernel says of a descriptor (``bpf_map_show_fdinfo`` and its like): ``{key: value}``."""
    try:
        text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    except OSError as error:
        raise KernelError(
            f"descriptor {fd}: /proc/self/fdinfo cannot be read: {os.strerror(error.errno or 0)}", code="kernel.adopt"
        ) from error
    pairs = (line.partition(":") for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _number(told: Mapping[str, str], key: str, subject: str) -> int:
    try:
        return int(told[key], 0)
    except (KeyError, ValueError):
        raise KernelError(
            f"{subject}: the kernel does not tell its {key}; the descriptor is something else", code="kernel.adopt"
        ) from None


__all__ = ["MapView", "ProgramView", "View", "adopt", "descriptors_of", "view_of"]
