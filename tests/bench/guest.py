"""Time per event of programs that this machine's kernel refuses, or has no events for.

``python -m tests.bench.guest`` measures all shipped programs here and then in a virtual machine, whose kernel has
trampolines and NFS. A time there is an emulated processor's, so what ran only there is told as it would be here: by the
median of how many times longer the programs took there that ran in both. Run it beside nothing else.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from tests.bench import programs
from tests.vm.__main__ import Matrix, alone, parse, say
from tests.vm.machine import boot
from tests.vm.packages import HarnessError

KERNEL = "6.1"
SECONDS_HERE, SECONDS_THERE = 4.0, 15.0
#: A mean of fewer says little.
FEWEST_RUNS = 50

Times = dict[tuple[str, str], float]


def frequent(figures: Iterable[tuple[str, str, float | None, int]]) -> Times:
    """Nanoseconds per run by image and program, of those that ran often enough."""
    return {(image, name): value for image, name, value, count in figures if value and count >= FEWEST_RUNS}


def in_guest() -> Times:
    """The same from a virtual machine.

    Raises:
        HarnessError: no such kernel, or the guest died.
    """
    matrix = Matrix(parse(["--kernel", KERNEL]))
    found: list[tuple[str, str, float | None, int]] = []

    def heard(event: dict[str, Any]) -> None:
        if event["event"] == "figure":
            found.append((event["image"], event["program"], event["value"], event["count"]))

    with alone(matrix.home / "lock"):
        prepared = matrix.prepared(KERNEL, ["-m", "tests.bench.programs", str(SECONDS_THERE)])
        if prepared is None:
            raise HarnessError(f"no kernel {KERNEL} to measure on")
        kernel, guest = prepared
        say(f"{KERNEL}: booting {kernel.release}")
        console = matrix.logs(kernel) / "console-bench.log"
        account = boot(guest, console, case_timeout_s=SECONDS_THERE * 10, heard=heard)
    if account.death or account.status:
        raise HarnessError(f"the guest did not end well: {account.death or account.status}; see {console}")
    return frequent(found)


def main() -> None:
    """Measure in both, print the table."""
    here, there = frequent(programs.measured(SECONDS_HERE)), in_guest()
    longer = sorted(there[name] / here[name] for name in here.keys() & there.keys())
    low, factor, high = statistics.quantiles(longer, method="inclusive")
    print(f"{len(longer)} programs ran in both: there {factor:.1f} times longer, half of them {low:.1f} to {high:.1f}")
    for image, name in sorted(here.keys() | there.keys()):
        own, other = here.get((image, name)), there.get((image, name))
        told = f"{own:9,.0f}" if own else f"{other / factor:9,.0f} by {KERNEL}" if other else ""
        print(f"{image:24} {name:20} {told:24} {f'{other:9,.0f} there' if other else ''}".rstrip())


if __name__ == "__main__":
    main()
