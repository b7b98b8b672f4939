"""What this kernel lets this process do, found by trying: hooks, maps, helpers, and the settings around them.

Each hook is tried with the least program there is, on a target that nothing runs (``bpf_fentry_test1`` is the
kernel's own for such trials) and for no longer than the call takes; nothing stays. Where this process may
not even try, the answer is ``unknown`` and not ``no``, except on a kernel that is too old.

Sources of the versions: the commits that added each, as libbpf's and the kernel's documentation list them.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import _libbpf
from .diagnosis import ENOTSUPP, MEMCG_SINCE, errno_name
from .features import Capability, Features, libbpf_version, probe
from .map_types import MAP_KINDS

Version = tuple[int, int]

_TRIAL_FUNCTION = "bpf_fentry_test1"
_TRIAL_MODIFY = "bpf_modify_return_test"
_TRIAL_TRACEPOINT = "sched_process_exec"
_TRIAL_LSM = "file_open"  # loaded, never attached

# enum bpf_prog_type, enum bpf_attach_type of linux/bpf.h.
_KPROBE, _TRACEPOINT, _PERF_EVENT, _RAW_TRACEPOINT, _TRACING, _LSM = 2, 5, 7, 17, 26, 29
_STRUCT_OPS, _EXT = 27, 28
_TP_BTF, _FENTRY, _FEXIT, _MODIFY_RETURN, _LSM_MAC, _ITER = 23, 24, 25, 26, 27, 28
_KPROBE_MULTI, _UPROBE_MULTI = 42, 48


class Verdict(enum.Enum):
    """Whether something can be had here and now."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        group: ``host``, ``hook``, ``map`` or ``helper``.
        name: As a section, map type or helper is written.
        verdict: Of a host setting: whether it is as skep wants it.
        since: The first kernel version with it, ``""`` where that says nothing.
        found: What was found, in a few words.
        remedy: What to do about a no, or about a yes that is of no use here; else empty.
    """

    group: str
    name: str
    verdict: Verdict
    since: str = ""
    found: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class _Hook:
    name: str
    since: Version
    attempt: Callable[[], None]
    capability: Capability | None = None
    """Needed beside CAP_BPF and CAP_PERFMON."""
    by_perf: bool = False
    """Attached through a perf event, so that the sysctl and CAP_SYS_ADMIN decide."""
    needs_btf: bool = False


def findings() -> list[Finding]:
    """Look at everything, in the order a reader wants it; takes about a second."""
    features = probe()
    _libbpf.be_quiet()
    return [
        *host_findings(features),
        *(_hook_finding(hook, features) for hook in _HOOKS),
        *(_type_finding("map", *row, partial(_libbpf.probe_map_type, row[0]), features) for row in MAP_KINDS),
        *(
            _type_finding("helper", number, name, since, partial(_libbpf.probe_helper, type_, number), features)
            for number, name, since, type_ in _HELPERS
        ),
    ]  # fmt: skip


def can_load(features: Features) -> bool:
    """Whether this process may load tracing programs at all, so that a refusal says something of the kernel."""
    return features.has(Capability.BPF, Capability.PERFMON) or (
        # Before Linux 5.8 there were no such capabilities.
        features.version < (5, 8) and Capability.SYS_ADMIN in features.capabilities
    )


# -- Trials ----------------------------------------------------------------------------------------


def _with_program(
    type_: int, attach_type: int, target: str, attach: Callable[[int], int] | None = None
) -> Callable[[], None]:
    def attempt() -> None:
        program = _libbpf.try_load(type_, attach_type, target)
        try:
            if attach:
                os.close(attach(program))
        finally:
            os.close(program)

    return attempt


def _raw(name: str) -> Callable[[int], int]:
    return lambda program: _libbpf.try_raw_tracepoint(name, program)


def _uprobe_multi() -> None:
    program = _libbpf.try_load(_KPROBE, _UPROBE_MULTI, "")
    try:
        number = _libbpf.try_uprobe_multi(program)
    finally:
        os.close(program)
    if number != errno.EBADF:
        raise OSError(number, "attaching")


def _pmu(name: str) -> int:
    try:
        return int(Path(f"/sys/bus/event_source/devices/{name}/type").read_text())
    except (OSError, ValueError):
        raise OSError(errno.ENODEV, f"no {name} events") from None


def _kprobe_event() -> None:
    os.close(_libbpf.try_perf_event(_pmu("kprobe"), 0, _TRIAL_FUNCTION, 0, -1, 0))


def _uprobe_event() -> None:
    # Of this process alone, and at the file's head, where no instruction is.
    os.close(_libbpf.try_perf_event(_pmu("uprobe"), 0, "/proc/self/exe", 0, 0, -1))


def _tracepoint_event() -> None:
    for root in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing"):
        with contextlib.suppress(FileNotFoundError):
            number = int(Path(f"{root}/events/sched/{_TRIAL_TRACEPOINT}/id").read_text())
            os.close(_libbpf.try_perf_event(2, number, "", 0, -1, 0))
            return
    raise OSError(errno.ENOENT, "tracefs is not mounted")


def _type(number: int) -> Callable[[], None]:
    def attempt() -> None:
        found = _libbpf.probe_program_type(number)
        if found != 1:
            raise OSError(-found or errno.EINVAL, "loading")

    return attempt


_HOOKS = (
    _Hook("raw_tp", (4, 17), _with_program(_RAW_TRACEPOINT, 0, "", _raw(_TRIAL_TRACEPOINT))),
    _Hook("tp_btf", (5, 5), _with_program(_TRACING, _TP_BTF, _TRIAL_TRACEPOINT, _raw("")), needs_btf=True),
    _Hook("tracepoint", (4, 7), _tracepoint_event, by_perf=True),
    _Hook("kprobe", (4, 1), _kprobe_event, by_perf=True),
    _Hook(
        "kprobe.multi", (5, 18),
        _with_program(_KPROBE, _KPROBE_MULTI, "", lambda fd: _libbpf.try_kprobe_multi(fd, _TRIAL_FUNCTION)),
    ),
    _Hook("uprobe", (4, 3), _uprobe_event, by_perf=True),
    _Hook("uprobe.multi", (6, 6), _uprobe_multi),
    _Hook("usdt", (4, 3), _uprobe_event, by_perf=True),
    _Hook("fentry", (5, 5), _with_program(_TRACING, _FENTRY, _TRIAL_FUNCTION, _raw("")), needs_btf=True),
    _Hook("fexit", (5, 5), _with_program(_TRACING, _FEXIT, _TRIAL_FUNCTION, _raw("")), needs_btf=True),
    _Hook("fmod_ret", (5, 7), _with_program(_TRACING, _MODIFY_RETURN, _TRIAL_MODIFY, _raw("")), needs_btf=True),
    _Hook("lsm", (5, 7), _with_program(_LSM, _LSM_MAC, _TRIAL_LSM), needs_btf=True),
    _Hook("iter", (5, 8), _with_program(_TRACING, _ITER, "task"), needs_btf=True),
    _Hook("perf_event (software)", (4, 9), lambda: os.close(_libbpf.try_perf_event(1, 0, "", 0, -1, 0)), by_perf=True),
    _Hook("perf_event (hardware)", (4, 9), lambda: os.close(_libbpf.try_perf_event(0, 0, "", 0, -1, 0)), by_perf=True),
    _Hook("xdp", (4, 8), _type(6), Capability.NET_ADMIN),
    _Hook("tc", (4, 1), _type(3), Capability.NET_ADMIN),
    _Hook("cgroup_skb", (4, 10), _type(8), Capability.NET_ADMIN),
    _Hook("cgroup/sock", (4, 10), _type(9), Capability.NET_ADMIN),
    _Hook("cgroup/sock_addr", (4, 17), _type(18), Capability.NET_ADMIN),
    _Hook("cgroup/dev", (4, 15), _type(15), Capability.NET_ADMIN),
    _Hook("cgroup/sysctl", (5, 2), _type(23), Capability.NET_ADMIN),
    _Hook("cgroup/sockopt", (5, 3), _type(25), Capability.NET_ADMIN),
    _Hook("sockops", (4, 13), _type(13), Capability.NET_ADMIN),
    _Hook("socket", (3, 19), _type(1)),
    _Hook("sk_skb", (4, 14), _type(14), Capability.NET_ADMIN),
    _Hook("sk_msg", (4, 17), _type(16), Capability.NET_ADMIN),
    _Hook("sk_lookup", (5, 9), _type(30), Capability.NET_ADMIN),
    _Hook("netfilter", (6, 4), _type(32), Capability.NET_ADMIN),
    _Hook("lwt", (4, 10), _type(10), Capability.NET_ADMIN),
    _Hook("flow_dissector", (4, 20), _type(22), Capability.NET_ADMIN),
    _Hook("struct_ops", (5, 6), _type(_STRUCT_OPS), Capability.NET_ADMIN, needs_btf=True),
    _Hook("syscall", (5, 14), _type(31)),
)  # fmt: skip

_HELPERS: tuple[tuple[int, str, Version, int], ...] = (
    (27, "bpf_get_stackid", (4, 6), _KPROBE),
    (80, "bpf_get_current_cgroup_id", (4, 18), _RAW_TRACEPOINT),
    (113, "bpf_probe_read_kernel", (5, 5), _RAW_TRACEPOINT),
    (131, "bpf_ringbuf_reserve", (5, 8), _RAW_TRACEPOINT),
    (125, "bpf_ktime_get_boot_ns", (5, 8), _RAW_TRACEPOINT),
    (158, "bpf_get_current_task_btf", (5, 11), _RAW_TRACEPOINT),
    (173, "bpf_get_func_ip", (5, 15), _KPROBE),
    (181, "bpf_loop", (5, 17), _RAW_TRACEPOINT),
)


# -- From an attempt to a finding -------------------------------------------------------------------


def _hook_finding(hook: _Hook, features: Features) -> Finding:
    since = _shown(hook.since)
    if features.version < hook.since:
        return Finding("hook", hook.name, Verdict.NO, since, "the kernel is older", f"use a kernel from {since}")
    if missing := _missing(features, *((hook.capability,) if hook.capability else ())):
        return _untried("hook", hook.name, since, missing)
    if hook.needs_btf and not features.btf:
        return Finding(
            "hook", hook.name, Verdict.NO, since, "the kernel shows no BTF", "boot one with CONFIG_DEBUG_INFO_BTF"
        )
    try:
        hook.attempt()
    except OSError as error:
        found, remedy = explain_refusal(hook.name, error.errno or 0, features, by_perf=hook.by_perf)
        return Finding("hook", hook.name, Verdict.NO, since, found, remedy)
    modules = _read("/sys/kernel/security/lsm").split(",")
    if hook.name == "lsm" and modules != [""] and "bpf" not in modules:
        # They load and attach, and nothing ever calls them.
        found, remedy = "bpf is not among the security modules", f"boot with lsm={','.join(modules)},bpf"
        return Finding("hook", hook.name, Verdict.NO, since, found, remedy)
    return Finding("hook", hook.name, Verdict.YES, since)


def explain_refusal(name: str, number: int, features: Features, *, by_perf: bool = False) -> tuple[str, str]:
    """What a refused attempt means and what to do, in a few words each."""
    found = errno_name(number)
    kind = name.partition(" ")[0].partition(".")[0]
    if by_perf and number in (errno.EPERM, errno.EACCES):
        if (features.perf_event_paranoid or 0) >= 3 and Capability.SYS_ADMIN not in features.capabilities:
            return (
                f"kernel.perf_event_paranoid is {features.perf_event_paranoid}",
                "give CAP_SYS_ADMIN, set the sysctl to 2, or use raw_tp, tp_btf or a multi probe",
            )
        if kind == "tracepoint" and not features.tracefs:
            return "tracefs is not readable to this process", "give CAP_DAC_READ_SEARCH, or use raw_tp or tp_btf"
        if kind in ("uprobe", "usdt", "kprobe") and Capability.SYS_ADMIN not in features.capabilities:
            return found, f"give CAP_SYS_ADMIN, or use {kind.replace('usdt', 'uprobe')}.multi where the kernel has it"
    if kind == "tracepoint" and number == errno.ENOENT:
        return "tracefs is not mounted", "mount -t tracefs nodev /sys/kernel/tracing, or use raw_tp or tp_btf"
    if name == "kprobe" and number in (errno.ENODEV, errno.ENOENT, errno.EOPNOTSUPP):
        return "the kernel has no kprobes (CONFIG_KPROBE_EVENTS)", "use raw_tp or tp_btf"
    if name == "uprobe" and number == errno.ENODEV:
        return "the kernel has no uprobes (CONFIG_UPROBE_EVENTS)", ""
    if name == "kprobe.multi" and number in (errno.EOPNOTSUPP, errno.EINVAL):
        return "the kernel has no fprobes (CONFIG_FPROBE)", "use kprobe, raw_tp or tp_btf"
    if name.startswith("perf_event (hardware") and number in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
        return "no hardware counters here, as in most virtual machines", "use software events"
    if kind in ("fentry", "fexit", "fmod_ret", "lsm", "struct_ops"):
        if number in (errno.EPERM, errno.EACCES):
            if features.lockdown not in ("", "none"):
                return (
                    f"refused: kernel lockdown is {features.lockdown!r}",
                    "use raw_tp or tp_btf, or boot without lockdown",
                )
            return f"refused: {found}", "use raw_tp or tp_btf"
        if number == ENOTSUPP:
            return "no trampolines on this architecture (arm64: first in 6.0)", "use raw_tp or tp_btf"
        if number in (errno.ENOENT, errno.ESRCH):
            return "the kernel lacks the function it was tried on", ""
    if number in (errno.EPERM, errno.EACCES):
        return f"refused: {found}", "look for a security module or a container's limit"
    if number == errno.EINVAL:
        return "the kernel was built without it", ""
    return found, ""


def _type_finding(
    group: str, _number: int, name: str, since: Version, ask: Callable[[], int], features: Features
) -> Finding:
    first = _shown(since)
    if features.version < since:
        return Finding(group, name, Verdict.NO, first, "the kernel is older", f"use a kernel from {first}")
    if not can_load(features):
        return _untried(group, name, first, _missing(features))
    answer = ask()
    if answer == 1:
        return Finding(group, name, Verdict.YES, first)
    if answer < 0:
        return Finding(group, name, Verdict.UNKNOWN, first, f"libbpf cannot tell: {errno_name(-answer)}")
    return Finding(group, name, Verdict.NO, first, "the kernel was built without it")


def _untried(group: str, name: str, since: str, missing: Sequence[str]) -> Finding:
    return Finding(group, name, Verdict.UNKNOWN, since, f"cannot be tried without {', '.join(missing)}", "run as root")


def _missing(features: Features, *more: Capability) -> list[str]:
    """What this process lacks of the capabilities to find something out."""
    missing = (
        [] if can_load(features) else [one for one in (Capability.BPF, Capability.PERFMON) if not features.has(one)]
    )
    admin = Capability.SYS_ADMIN in features.capabilities
    missing += [one for one in more if not features.has(one) and not admin]
    return [f"CAP_{one.name}" for one in missing]


def _shown(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


# -- Around it -------------------------------------------------------------------------------------


def host_findings(features: Features) -> list[Finding]:
    """Kernel, capabilities, sysctls and mounts."""

    def host(name: str, good: bool | None, found: str, remedy: str = "") -> Finding:
        verdict = {True: Verdict.YES, False: Verdict.NO, None: Verdict.UNKNOWN}[good]
        return Finding("host", name, verdict, "", found, "" if good else remedy)

    has = sorted(one.name for one in features.capabilities)
    lsm = _read("/sys/kernel/security/lsm")
    paranoid = features.perf_event_paranoid
    admin = Capability.SYS_ADMIN in features.capabilities
    unprivileged = _number("/proc/sys/kernel/unprivileged_bpf_disabled")
    hidden = _number("/proc/sys/kernel/kptr_restrict")
    symbols = hidden == 0 or (hidden == 1 and Capability.SYSLOG in features.capabilities)
    jit = _number("/proc/sys/net/core/bpf_jit_enable")
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    mounts = mounted(_read("/proc/self/mountinfo"))
    cgroup2 = mounts.get("cgroup2")
    release = os.uname()
    return [
        host("kernel", features.version >= (5, 10), f"{features.release} {release.machine}", "use 5.10 or newer"),
        host("libbpf", True, libbpf_version()),
        host("user", True, f"uid {os.geteuid()}"),
        host(
            "capabilities", can_load(features), ", ".join(f"CAP_{name}" for name in has) or "none of those that matter",
            "run as root, or give CAP_BPF and CAP_PERFMON (the unit does)",
        ),
        host(
            "kernel BTF", features.btf, "/sys/kernel/btf/vmlinux" if features.btf else "absent",
            "boot a kernel with CONFIG_DEBUG_INFO_BTF; without it only programs without CO-RE run",
        ),
        host(
            "lockdown", None if not features.lockdown else features.lockdown == "none", features.lockdown or "not told",
            "'integrity' refuses fentry, fexit, fmod_ret and lsm on some kernels, 'confidentiality' all tracing"
            if features.lockdown else "mount securityfs on /sys/kernel/security to see it",
        ),
        host(
            "security modules", None if not lsm else "bpf" in lsm.split(","), lsm or "not told",
            "for lsm programs boot with bpf in lsm=" if lsm else "mount securityfs on /sys/kernel/security to see them",
        ),
        host(
            "kernel.perf_event_paranoid", None if paranoid is None else admin or paranoid <= 2,
            "not readable" if paranoid is None else str(paranoid),
            "at 3 tracepoint, kprobe, uprobe and perf_event need CAP_SYS_ADMIN; raw_tp and tp_btf do not",
        ),
        host("kernel.unprivileged_bpf_disabled", True, "not readable" if unprivileged is None else str(unprivileged)),
        host(
            "kernel.kptr_restrict", None if hidden is None else symbols,
            "not readable" if hidden is None else str(hidden),
            f"kernel symbols are shown as hex: {'give CAP_SYSLOG' if hidden == 1 else 'set it to 1'}",
        ),
        host(
            "net.core.bpf_jit_enable", None if jit is None else jit > 0, "not readable" if jit is None else str(jit),
            "programs are interpreted, many times slower: set it to 1" if jit is not None else "run as root to read it",
        ),
        host(
            "memory lock", features.version >= MEMCG_SINCE or soft == resource.RLIM_INFINITY or soft >= 64 << 20,
            "not counted from 5.11" if features.version >= MEMCG_SINCE
            else "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB",
            "set LimitMEMLOCK=infinity",
        ),
        host(
            "tracefs", features.tracefs, mounts.get("tracefs", "not mounted" if not features.tracefs else "readable"),
            "for tracepoint: mount -t tracefs nodev /sys/kernel/tracing" if "tracefs" not in mounts
            else "not readable: give CAP_DAC_READ_SEARCH, or use raw_tp or tp_btf",
        ),
        host(
            "bpffs", "bpf" in mounts, mounts.get("bpf", "not mounted"),
            "only pinned maps need it: mount -t bpf bpf /sys/fs/bpf",
        ),
        host(
            "cgroup2", cgroup2 is not None, cgroup2 or "not mounted",
            "for cgroup programs and names of units and containers: mount -t cgroup2 none /sys/fs/cgroup",
        ),
    ]  # fmt: skip


def mounted(mountinfo: str) -> Mapping[str, str]:
    """Where each kind of file system is mounted first, by the text of ``/proc/self/mountinfo``."""
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split()
        if dash and len(fields) > 4 and after:
            found.setdefault(after.split()[0], fields[4])
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _number(path: str) -> int | None:
    try:
        return int(_read(path))
    except ValueError:
        return None
