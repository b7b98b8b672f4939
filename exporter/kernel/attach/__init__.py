"""Attaching one loaded program, by the kind of hook its section names; runs in the loader child.

libbpf attaches what a section names completely. What needs an argument that a
section cannot hold or that the operator chose (interfaces, a binary, a cgroup, a
sampling frequency) is attached here call by call. Options are named as in the
configuration's ``attach``; one that does not fit the program's type is an error,
never ignored.

A kind is two functions: *prepare* says to libbpf what must be said before the object
is loaded, *attach* gives the descriptors that keep the program attached. :data:`KINDS`
has both by the names of :mod:`exporter.hooks`; :mod:`.places` reads sections and options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from exporter.hooks import hook_of, known_word, misfit, split_section, stems

from .. import _libbpf
from . import btf, cgroup, functions, network, perf, tracepoints, user
from .places import AttachError, Options
from .site import Attached, Site, links_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._libbpf import Program


class Kind(NamedTuple):
    """How one kind of hook is attached."""

    attach: Callable[[Site], Attached]
    prepare: Callable[[Site], None] | None = None


KINDS: dict[str, Kind] = {
    "kprobe": Kind(functions.attach, functions.prepare),
    "kprobe.multi": Kind(functions.attach, functions.prepare),
    "ksyscall": Kind(functions.attach, functions.prepare),
    "uprobe": Kind(user.attach_uprobe, user.prepare_uprobe),
    "uprobe.multi": Kind(user.attach_uprobe_multi),
    "usdt": Kind(user.attach_usdt),
    "tracepoint": Kind(tracepoints.attach_tracepoint),
    "raw_tracepoint": Kind(tracepoints.attach_raw_tracepoint),
    "tp_btf": Kind(btf.attach, btf.prepare),
    "fentry": Kind(btf.attach, btf.prepare),
    "iter": Kind(btf.attach, btf.prepare),
    "lsm": Kind(btf.attach, btf.prepare_lsm),
    "lsm_cgroup": Kind(cgroup.attach, btf.prepare_lsm),
    "perf_event": Kind(perf.attach),
    "xdp": Kind(network.attach_xdp, network.prepare_xdp),
    "tc": Kind(network.attach_tc),
    "netkit": Kind(network.attach_netkit),
    "socket": Kind(network.attach_socket),
    "netfilter": Kind(network.attach_netfilter),
    "flow_dissector": Kind(network.attach_netns),
    "sk_lookup": Kind(network.attach_netns),
    "cgroup": Kind(cgroup.attach),
}


def check_options(section: str, options: Options) -> None:
    """Raise :class:`AttachError` for an option that programs of this section do not have."""
    if wrong := misfit(section, list(options)):
        raise AttachError(f"attach option {wrong}")


def learn_sections(sections: Iterable[str]) -> None:
    """Before an object is opened: teach libbpf the spellings of sections that it does not know and the field uses.

    ``perf_event/type=…``, ``xdp/IFACE``, ``socket1``, ``classifier/…``: the program's type is that of the longest
    shorter spelling that libbpf knows.
    """
    for section in dict.fromkeys(section.removeprefix("?") for section in sections):
        # A traffic-control action sees what a classifier sees and answers alike; attached as one it has a link.
        if _libbpf.knows_section(section) and known_word(section) != "action":
            continue
        known = next((stem for stem in stems(section + "/") if _libbpf.knows_section(stem)), "")
        if known and not section.endswith(("/", "+")):
            _libbpf.learn_section(section, known)


def prepare(program: Program, options: Options) -> None:
    """Say what must be said about attaching before the object is loaded.

    Raises:
        AttachError: section and options do not say where, or nobody attaches such a program.
    """
    check_options(program.section, options)
    hook = hook_of(program.section)
    if hook is not None and hook.refused:
        raise AttachError(f"section {program.section!r} {hook.refused}")
    kind = KINDS.get(hook.name) if hook is not None else None
    if kind is not None and kind.prepare is not None:
        kind.prepare(_site(program, options))


def attach(program: Program, options: Options) -> Attached:
    """Attach one loaded program.

    Raises:
        AttachError: see there.
        OSError: the kernel's refusal; ``strerror`` is what was being done.
    """
    hook = hook_of(program.section)
    kind = KINDS.get(hook.name) if hook is not None else None
    if kind is None:
        return links_of(program.attach)
    return kind.attach(_site(program, options))


def _site(program: Program, options: Options) -> Site:
    word, rest = split_section(program.section)
    return Site(program, program.section, known_word(word), rest, options)


__all__ = [
    "KINDS",
    "AttachError",
    "Attached",
    "Options",
    "attach",
    "check_options",
    "learn_sections",
    "prepare",
]
