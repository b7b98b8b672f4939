"""What the kernel says a program cost, and the switch that has it measured."""

import os
from pathlib import Path

from exporter.kernel import ProgramRequest
from exporter.kernel.usage import SYSCTL, ProgramUsage, RunStatistics, program_usage
from tests.support.workload import kernel_version

from .conftest import GETPGID, Compile, Loading, make_calls, own_globals


def test_runs_are_counted_while_the_statistics_are_held(loading: Loading, compile_object: Compile) -> None:
    """To the last one before the program was detached; not before, unless the sysctl has them counted anyway."""
    hooks = loading(
        "hooks",
        ProgramRequest("on_tracepoint", "tracepoint/syscalls/sys_enter_getpgid"),
        globals=own_globals(compile_object("hooks"), syscall=GETPGID),
        read_maps=("calls",),
    )
    make_calls(50)
    if SYSCTL.read_text().strip() == "0":
        assert hooks.usage()["on_tracepoint"].runs == 0
    statistics = RunStatistics()
    assert statistics.held
    before = hooks.usage()["on_tracepoint"].runs
    make_calls(1000)
    used = hooks.usage()["on_tracepoint"]
    assert used.runs >= before + 1000
    assert used.time_ns > used.runs
    make_calls(10)
    hooks.detach()
    make_calls(10)
    last = hooks.usage()["on_tracepoint"]
    assert last.runs >= used.runs + 10
    statistics.close()
    statistics.close()
    assert not statistics.held
    assert hooks.usage() == {"on_tracepoint": last}
    assert (last.recursion_misses is not None) == (kernel_version() >= (5, 12))


def test_usage_of_what_is_no_program_is_none() -> None:
    """A descriptor that has become something else is not believed."""
    with Path(os.devnull).open() as other:
        assert program_usage(other.fileno()) is None


def test_usage_adds_up_what_is_known() -> None:
    """A kernel that does not count misses leaves them out; the sum has what one of two says."""
    assert ProgramUsage(1, 2, None) + ProgramUsage(3, 4, None) == ProgramUsage(4, 6, None)
    assert ProgramUsage(1, 2, 5) + ProgramUsage() == ProgramUsage(1, 2, 5)
