"""One program and what is said about its place; and descriptors out of libbpf's links."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from .places import Options

if TYPE_CHECKING:
    from .._libbpf import Program


class Site(NamedTuple):
    """A program, its section in parts, and the operator's options over it."""

    program: Program
    section: str
    word: str
    rest: str
    options: Options


class Attached(NamedTuple):
    """What keeps a program attached.

    Attributes:
        links: Descriptors, the caller's: closing the last copy of each detaches.
        cpus: The CPU of each link, for what is attached CPU by CPU; else empty.
    """

    links: list[int]
    cpus: tuple[int, ...] = ()


def links_of(make: Callable[[], int | None]) -> Attached:
    """Call what attaches, and give the link's descriptor, or those of all its parts (USDT)."""
    before = set(_own_descriptors())
    link = make()
    if link is not None:
        return Attached([link])
    # libbpf shows no descriptor of a composite link: its parts are those that were not there before.
    return Attached([os.dup(fd) for fd, kind in _own_descriptors().items() if fd not in before and _is_link(kind)])


@contextlib.contextmanager
def all_or_none() -> Iterator[list[int]]:
    """Collect descriptors, and close them all if one cannot be had: a part would look like the whole."""
    links: list[int] = []
    try:
        yield links
    except BaseException:
        from .. import netlink  # noqa: PLC0415  few need it

        for link in links:
            netlink.let_go(link)
            os.close(link)
        raise


def _own_descriptors() -> dict[int, str]:
    """Every open descriptor of this process and what it is."""
    found: dict[int, str] = {}
    # os and not pathlib: the loader does without it.
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")  # noqa: PTH115
    return found


def _is_link(kind: str) -> bool:
    return kind.startswith(("anon_inode:bpf_link", "anon_inode:bpf-link", "anon_inode:[perf_event]"))
