"""Functions of the kernel: kprobe, kretprobe, patterns of them, and system calls by name.

Through the multi link wherever the kernel has it (Linux 5.18 with CONFIG_FPROBE), for
one function too: CAP_BPF and CAP_PERFMON are then enough whatever
kernel.perf_event_paranoid is. It needs no perf event and takes no offset.
"""

from __future__ import annotations

import errno
import os
from functools import cache

from .. import _libbpf, symbols
from .places import AttachError, option, parse_offset
from .site import Attached, Site, links_of

MULTI_SINCE = (5, 18)
# One of them is there on a kernel that has kprobes and shows them to this process.
_KPROBES = ("/sys/bus/event_source/devices/kprobe", "/sys/kernel/tracing/kprobe_events",
            "/sys/kernel/debug/tracing/kprobe_events", "/sys/kernel/debug/kprobes")  # fmt: skip
# By uname -m: how the entries of system calls are called (SYSCALL_WRAPPER of the architectures).
_SYSCALL_PREFIXES = {"x86_64": "__x64_sys_", "aarch64": "__arm64_sys_", "riscv64": "__riscv_sys_",
                     "s390x": "__s390x_sys_"}  # fmt: skip


def prepare(site: Site) -> None:
    """Choose the multi link, which is chosen at load, or with good reason not."""
    function, offset = _place(site)
    multi = not offset and ":" not in function and _has_multi()
    if _is_pattern(function) and not multi:
        raise AttachError(
            f"functions {function!r} are a pattern, which needs Linux 5.18 or later with CONFIG_FPROBE; "
            "name one function with attach.target"
        )
    site.program.set_attach_type(_libbpf.KPROBE_MULTI if multi else 0)
    if site.word not in ("ksyscall", "kretsyscall") and not offset:
        _refuse_ambiguous(function)


def attach(site: Site) -> Attached:
    """Attach to one function, or to all of a pattern."""
    function, offset = _place(site)
    program, retprobe = site.program, site.word.startswith("kret")
    try:
        if program.attach_type == _libbpf.KPROBE_MULTI:
            one = not _is_pattern(function)
            return links_of(lambda: program.attach_kprobe_multi(function, one=one, retprobe=retprobe))
        return links_of(lambda: program.attach_kprobe(function, offset=offset, retprobe=retprobe))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES) or not symbols.readable() or ":" in function:
            raise
        raise OSError(_explained(function, error.errno or 0), _words(function, offset)) from None


def _place(site: Site) -> tuple[str, int]:
    function, offset = parse_offset(option(site.options, "target") or site.rest)
    if not function:
        raise AttachError(f"section {site.section!r} names no kernel function; set attach.target")
    if site.word in ("ksyscall", "kretsyscall"):
        return _syscall_entry(function), offset
    return function, offset


def _syscall_entry(name: str) -> str:
    entry = _SYSCALL_PREFIXES.get(os.uname().machine, "__se_sys_") + name
    if not symbols.addresses(entry) and symbols.addresses(f"__se_sys_{name}"):
        return f"__se_sys_{name}"
    return entry


def _is_pattern(function: str) -> bool:
    return "*" in function or "?" in function


@cache
def _has_multi() -> bool:
    from ..features import parse_release  # noqa: PLC0415

    return parse_release(os.uname().release) >= MULTI_SINCE and _libbpf.has_kprobe_multi()


def _refuse_ambiguous(function: str) -> None:
    """The kernel would take the first of them, newer ones (6.6) refuse: either way it is no one's choice."""
    if _is_pattern(function) or ":" in function:
        return
    if (count := len(symbols.addresses(function, functions=True))) > 1:
        raise AttachError(
            f"{count} functions of this kernel ({os.uname().release}) are called {function!r}; "
            "name another with attach.target, or attach to a tracepoint"
        )


def _explained(function: str, number: int) -> int:
    """ENOENT for a function that is not there, EINVAL for one that cannot be probed, whatever the kernel called it."""
    if _is_pattern(function):
        return number
    if not any(os.path.exists(path) for path in _KPROBES):  # noqa: PTH110
        return errno.EOPNOTSUPP
    there = bool(symbols.addresses(function, functions=True))
    if there:
        return number if number in (errno.EOPNOTSUPP, errno.EBUSY, errno.EADDRNOTAVAIL, 524) else errno.EINVAL
    return errno.ENOENT


def _words(function: str, offset: int) -> str:
    at = f"{function}+{offset:#x}" if offset else function
    if symbols.addresses(function, functions=True):
        return f"attaching to function {at!r}"
    others = symbols.variants(function)
    has = f" (it has {', '.join(repr(name) for name in others[:3])})" if others else ""
    return f"attaching to function {at!r}{has}"
