"""What programs cost: how often they ran and for how long, which the kernel measures only when it is told to.

The switch is one for the whole machine: while anybody holds it, each run of every program, ours or not, takes
two readings of the clock. Held as a descriptor it goes with whoever held it, unlike the sysctl.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import KernelError

from .diagnosis import errno_name

SYSCTL = Path("/proc/sys/kernel/bpf_stats_enabled")


@dataclass(frozen=True, slots=True)
class ProgramUsage:
    """What a program has used since it was loaded.

    Attributes:
        runs, time_ns: Counted only while the kernel measures (:class:`RunStatistics`).
        recursion_misses: Runs left out because it was running on that CPU already; None before Linux 5.12.
    """

    runs: int = 0
    time_ns: int = 0
    recursion_misses: int | None = None

    def __add__(self, other: ProgramUsage) -> ProgramUsage:
        counted = [misses for misses in (self.recursion_misses, other.recursion_misses) if misses is not None]
        return ProgramUsage(self.runs + other.runs, self.time_ns + other.time_ns, sum(counted) if counted else None)


def program_usage(fd: int) -> ProgramUsage | None:
    """Ask the kernel about a program by its descriptor; None if it does not say."""
    from ._reader import program_usage as ask  # noqa: PLC0415 - as the package's preface has it

    try:
        time_ns, runs, misses = ask(fd)
    except OSError:
        return None
    return ProgramUsage(runs, time_ns, misses)


class RunStatistics:
    """Has the kernel measure programs until :meth:`close`, or until this process ends.

    Raises:
        KernelError: ``kernel.statistics``: it does not, and nobody else has it do so.
    """

    def __init__(self) -> None:
        from ._reader import enable_run_statistics  # noqa: PLC0415

        self._fd = -1
        try:
            self._fd = enable_run_statistics()
        except OSError as error:
            if not _on_by_sysctl():
                remedy = (
                    "needs CAP_SYS_ADMIN, or the sysctl kernel.bpf_stats_enabled=1"
                    if error.errno in (errno.EPERM, errno.EACCES)
                    else "set the sysctl kernel.bpf_stats_enabled=1"
                )
                raise KernelError(
                    f"BPF statistics: {errno_name(error.errno or 0)}: this process cannot turn them on; {remedy}",
                    code="kernel.statistics",
                ) from error

    @property
    def held(self) -> bool:
        """Whether it is this process that has them measured; else the sysctl does."""
        return self._fd >= 0

    def close(self) -> None:
        """Stop measuring, unless somebody else wants it; harmless when repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _on_by_sysctl() -> bool:
    try:
        return SYSCTL.read_text().strip() == "1"
    except OSError:
        return False


__all__ = ["ProgramUsage", "RunStatistics", "program_usage"]
