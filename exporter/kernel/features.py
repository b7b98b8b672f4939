"""What this machine and this process can do; read once per question, small and cheap."""

from __future__ import annotations

import enum
import os
import re
from dataclasses import dataclass
from pathlib import Path

VMLINUX_BTF = Path("/sys/kernel/btf/vmlinux")
TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))


class Capability(enum.IntEnum):
    """Bits of ``CapEff`` that matter here; numbers of ``linux/capability.h``."""

    DAC_READ_SEARCH = 2
    NET_ADMIN = 12
    SYS_ADMIN = 21
    SYS_RESOURCE = 24
    SYSLOG = 34
    PERFMON = 38
    BPF = 39


@dataclass(frozen=True, slots=True)
class Features:
    """One look at kernel and process.

    Attributes:
        release: As ``uname -r``.
        version: Its first two numbers, ``(0, 0)`` when it has none.
        btf: Whether the kernel shows its own BTF.
        tracefs: Whether this process can read the tracepoints' ids.
        capabilities: Effective ones of this thread.
        perf_event_paranoid: The sysctl; 3 is a distribution's "never without CAP_SYS_ADMIN"; None if unreadable.
        lockdown: ``none``, ``integrity``, ``confidentiality``, or ``""`` when the kernel does not say.
    """

    release: str
    version: tuple[int, int]
    btf: bool
    tracefs: bool
    capabilities: frozenset[Capability]
    perf_event_paranoid: int | None
    lockdown: str

    def has(self, *capabilities: Capability) -> bool:
        """Whether all of them are effective; CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON as the kernel has it."""
        implied = {Capability.BPF, Capability.PERFMON} if Capability.SYS_ADMIN in self.capabilities else set()
        return set(capabilities) <= self.capabilities | implied


def probe() -> Features:
    """Look at the running kernel and this process."""
    release = os.uname().release
    return Features(
        release=release,
        version=parse_release(release),
        btf=VMLINUX_BTF.exists(),
        tracefs=any(_can_list(root / "events") for root in TRACEFS),
        capabilities=parse_capabilities(_read("/proc/thread-self/status")),
        perf_event_paranoid=_integer(_read("/proc/sys/kernel/perf_event_paranoid")),
        lockdown=parse_lockdown(_read("/sys/kernel/security/lockdown")),
    )


def shows_types() -> bool:
    """Whether the kernel shows its own types."""
    return VMLINUX_BTF.exists()


def libbpf_version() -> str:
    """The libbpf this process would load objects with, ``1.4``."""
    from . import _libbpf  # noqa: PLC0415  only who asks needs the library

    return _libbpf.version()


def possible_cpus() -> int:
    """How many CPUs the kernel made room for: the number of slots in every per-CPU value."""
    return len(parse_cpu_list(_read("/sys/devices/system/cpu/possible"))) or os.cpu_count() or 1


def online_cpus() -> tuple[int, ...]:
    """Numbers of the CPUs that run now."""
    return parse_cpu_list(_read("/sys/devices/system/cpu/online")) or tuple(range(os.cpu_count() or 1))


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Read the kernel's list format, ``0-3,8``; empty for anything else."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not match:
            return ()
        numbers.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(numbers)


def parse_release(release: str) -> tuple[int, int]:
    """The kernel's major and minor version."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def parse_capabilities(status: str) -> frozenset[Capability]:
    """The effective capabilities in the text of ``/proc/…/status``."""
    match = re.search(r"^CapEff:\s*([0-9a-fA-F]+)$", status, re.MULTILINE)
    bits = int(match[1], 16) if match else 0
    return frozenset(capability for capability in Capability if bits >> capability & 1)


def parse_lockdown(text: str) -> str:
    """The chosen word of ``none [integrity] confidentiality``."""
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _can_list(directory: Path) -> bool:
    # By doing it: access(2) looks at a service user without the capabilities it was given.
    try:
        os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
