"""Functions and static probes of programs and libraries: uprobe, uretprobe, patterns of them, USDT."""

from __future__ import annotations

import os

from .. import _libbpf
from .binaries import exported_place, find_binary
from .places import Options, UserSymbol, parse_usdt, parse_user_symbol, pid_of
from .site import Attached, Site, links_of

MULTI_SINCE = (6, 6)
"""Linux kernel commit 89ae89f53d20 ("bpf: Add multi uprobe link").

Through it CAP_BPF and CAP_PERFMON are enough; the perf way wants CAP_SYS_ADMIN.
"""


def prepare_uprobe(site: Site) -> None:
    """Choose the multi link, which is chosen at load."""
    if _by_multi_link(parse_user_symbol(site.rest, site.options), site.options):
        site.program.set_attach_type(_libbpf.UPROBE_MULTI)


def attach_uprobe(site: Site) -> Attached:
    """One place, by its symbol or its offset in the file."""
    place = parse_user_symbol(site.rest, site.options)
    binary, pid = find_binary(place.binary, pid_of(site.options)), pid_of(site.options)
    retprobe, program = site.word == "uretprobe", site.program
    if _by_multi_link(place, site.options):
        # Not by libbpf's own search by name, which finds nothing in a file without a symbol table (seen with 1.4).
        offset = exported_place(binary, place.symbol)
        return links_of(
            lambda: program.attach_uprobe_multi(
                binary, place.symbol, one=True, retprobe=retprobe, pid=-1, offset=offset
            )
        )
    return links_of(
        lambda: program.attach_uprobe(binary, place.symbol, offset=place.offset, retprobe=retprobe, pid=pid)
    )


def attach_uprobe_multi(site: Site) -> Attached:
    """All functions of a pattern."""
    place = parse_user_symbol(site.rest, site.options)
    binary, pid = find_binary(place.binary, pid_of(site.options)), pid_of(site.options)
    retprobe = site.word == "uretprobe.multi"
    return links_of(
        lambda: site.program.attach_uprobe_multi(binary, place.symbol, one=False, retprobe=retprobe, pid=pid)
    )


def attach_usdt(site: Site) -> Attached:
    """All places of a probe."""
    named, provider, probe = parse_usdt(site.rest, site.options)
    binary, pid = find_binary(named, pid_of(site.options)), pid_of(site.options)
    return links_of(lambda: site.program.attach_usdt(binary, provider, probe, pid=pid))


def _by_multi_link(place: UserSymbol, options: Options) -> bool:
    from ..features import parse_release  # noqa: PLC0415

    # By plain symbol only: offsets and symbol versions need the perf way. So does a
    # process: the multi link took it for a thread until Linux 6.10 (commit 46ba0e49b642).
    plain = place.symbol and not place.offset and "@" not in place.symbol
    return bool(plain) and not options.get("pid") and parse_release(os.uname().release) >= MULTI_SINCE
