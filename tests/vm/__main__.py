"""``python -m tests.vm``: run kernel tests on every kernel of the matrix.

::

    python -m tests.vm                                   all kernels, all cases; writes docs/kernels.md
    python -m tests.vm --kernel here                     on the kernel that runs now, without a guest
    python -m tests.vm --kernel 6.1 --select tests/kernel -k ring
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.vm import disks, kernels, machine, results
from tests.vm.guest.__main__ import config_text, facts
from tests.vm.packages import Archive, HarnessError, run

REPOSITORY = Path(__file__).parents[2]
BUILD = REPOSITORY / "build"
PAGE = REPOSITORY / "docs" / "kernels.md"
SELECTION = ("tests/kernel", "tests/vm/cases")
PYTEST_SAID = {2: "interrupted", 3: "internal error", 4: "bad command line", 5: "no case was selected"}
COMMAND = "python -m tests.vm"
HERE = "here"


def say(text: str) -> None:
    """One line of progress."""
    print(f"skep vm: {text}", flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="run kernel tests in virtual machines")
    parser.add_argument(
        "--kernel", action="append", metavar="SERIES", help="5.10, 6.1, 6.12, newest or here; repeat; default: all"
    )
    parser.add_argument("--select", action="append", metavar="PATH", help="file, folder or case; default: all")
    parser.add_argument("-k", dest="expression", default="", help="pytest's own -k")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="guests at a time; default: one a processor"
    )
    parser.add_argument("--refresh", action="store_true", help="ask the mirror for newer kernels")
    parser.add_argument("--case-timeout", type=float, default=300.0, metavar="SECONDS", help="silence of one case")
    return parser.parse_args(arguments)


def progress(series: str) -> Callable[[dict[str, Any]], None]:
    """What tells of a kernel's cases as they end: each that is worth a line."""
    done, of = 0, 0

    def heard(event: dict[str, Any]) -> None:
        nonlocal done, of
        if event["event"] == "collected":
            of = len(event["cases"])
            say(f"{series}: {of} cases")
        elif event["event"] == "case":
            done += 1
            if event["outcome"] != "passed" or of <= 40 or done % 20 == 0:
                reason = f": {event['reason'][:200]}" if event.get("reason") else ""
                say(f"{series}: {done}/{of} {event['outcome']} {event['case']}{reason}")

    return heard


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other runs away.

    Raises:
        HarnessError: another run is at work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HarnessError(f"{path}: another run holds it; wait for that run to end") from error
        yield


class Matrix:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.home = BUILD / "vm"
        archive = Archive(self.home / "apt", say)
        self.shelf = kernels.Shelf(self.home / "kernels", archive, say)
        self.disks = disks.Disks(self.home / "disks", REPOSITORY, archive, say)
        self.raw: dict[str, dict[str, tuple[str, str]]] = {}
        self.facts: dict[str, results.KernelFacts] = {}
        self.told: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, str] = {}

    @functools.cached_property
    def common_disks(self) -> tuple[Path, Path]:
        """Root and working tree, the same for all kernels of a run, whatever is edited meanwhile."""
        return self.disks.root(), self.disks.tree()

    def order(self) -> list[str]:
        """The cases that were asked for, as arguments of Python."""
        chosen = self.options.select or [path for path in SELECTION if any((REPOSITORY / path).glob("test_*.py"))]
        narrowed = ["-k", self.options.expression] if self.options.expression else []
        return [*machine.PYTEST, "--color=no", "-q", "--durations=8", *narrowed, *chosen]

    def prepared(self, name: str, order: list[str]) -> tuple[kernels.Kernel, machine.Guest] | None:
        """A kernel and what it is booted with; one that cannot be had is a failure, and the others go on.

        Args:
            name: Of the kernel's series.
            order: What Python is told to do in the guest.
        """
        try:
            kernel = self.shelf.kernel(name, refresh=self.options.refresh)
        except HarnessError as error:
            say(str(error))
            self.raw[name] = {"kernel": ("failed", str(error))}
            return None
        logs = self.logs(kernel)
        logs.mkdir(parents=True, exist_ok=True)
        initramfs = self.home / "kernels" / name / "initramfs.gz"
        initramfs.write_bytes(kernels.build_initramfs(kernel, self.disks.base() / "bin/busybox"))
        orders = logs / "orders"
        orders.write_bytes(machine.encode_orders({"python": order}))
        root, tree = self.common_disks
        return kernel, machine.Guest(
            image=kernel.image,
            initramfs=initramfs,
            disks=(root, self.disks.modules(kernel), tree, orders),
            command_line=machine.command_line(kernels.lsm_argument(kernel.config)),
            processor=machine.PROCESSOR if results.number(kernel.series) < (6, 18) else machine.PROCESSOR_FROM_6_18,
        )

    def logs(self, kernel: kernels.Kernel) -> Path:
        """Where a kernel's consoles and failures are written."""
        return self.home / "logs" / kernel.series

    def run_kernel(self, kernel: kernels.Kernel, guest: machine.Guest) -> None:
        """Boot one kernel and take its results."""
        logs = self.logs(kernel)
        say(f"{kernel.series}: booting {kernel.release}")
        account, deaths = machine.boot_twice(
            lambda number: machine.boot(
                guest,
                logs / f"console-{number}.log",
                case_timeout_s=self.options.case_timeout,
                heard=progress(kernel.series),
            )
        )
        for words in deaths:
            say(f"{kernel.series}: a guest died before its tests: {words}")
        self._take(kernel, account, deaths, logs)

    def run_here(self) -> None:
        """Run the cases on the kernel that runs now, and take its results."""
        if not Path("/sys/kernel/security/lockdown").exists():
            run(["mount", "-t", "securityfs", "nodev", "/sys/kernel/security"])
        release = platform.release()
        kernel = kernels.Kernel(
            series=f"{kernels.series_of(release)} here",
            release=release,
            version="",
            image=Path(),
            modules=Path(),
            config=kernels.parse_config(config_text(release)),
        )
        logs = self.home / "logs" / "here"
        logs.mkdir(parents=True, exist_ok=True)
        say(f"{kernel.series}: this machine's own kernel")
        account = machine.run_here(
            self.order(),
            REPOSITORY,
            logs / "pytest.log",
            # A kernel that is no distribution's is told by its version alone.
            facts={**facts(), "release": release.partition("-")[0]},
            case_timeout_s=self.options.case_timeout,
            heard=progress(kernel.series),
        )
        self._take(kernel, account, (), logs)

    def _take(self, kernel: kernels.Kernel, account: machine.Account, deaths: Sequence[str], logs: Path) -> None:
        self.raw[kernel.series] = account.results()
        if account.died_before_tests or account.cases is None:
            words = account.death or f"pytest ended with status {account.status} before it had collected"
            self.raw[kernel.series]["boot"] = ("failed", words)
        elif account.finished and account.status not in (0, 1):
            self.raw[kernel.series]["pytest"] = ("failed", f"{PYTEST_SAID.get(account.status, account.status)}")
        self.facts[kernel.series] = results.KernelFacts(
            series=kernel.series,
            config=kernel.config,
            pmu=bool(account.facts.get("pmu")),
            lockdown=str(account.facts.get("lockdown", "")),
        )
        self.told[kernel.series] = {
            **account.facts,
            "package": kernel.version,
            "boot_s": round(account.boot_s, 1),
            "total_s": round(account.total_s, 1),
            "deaths_before_tests": list(deaths),
        }
        self.rows.update(account.rows)
        stories = [f"=== {case}\n{text}" for case, text in account.details.items()]
        (logs / "failures.txt").write_text("\n\n".join(stories) + "\n")
        say(
            f"{kernel.series}: {account.facts.get('release', 'no kernel')} up after {account.boot_s:.0f} s, "
            f"done after {account.total_s:.0f} s, {len(deaths)} boots lost"
        )

    def run(self) -> int:
        """Run all that was asked for and report; a fault of the harness does not lose what was found before it."""
        names = list(self.options.kernel or (*kernels.SERIES, HERE))
        whole = not (self.options.kernel or self.options.select or self.options.expression)
        try:
            guests = [
                made for name in names if name != HERE and (made := self.prepared(name, self.order())) is not None
            ]
            with ThreadPoolExecutor(max(1, self.options.jobs)) as pool:
                try:
                    for done in [pool.submit(self.run_kernel, *each) for each in guests]:
                        done.result()
                except BaseException:
                    machine.end_guests()
                    raise
            if HERE in names:
                self.run_here()
        except HarnessError:
            self.report(whole=False)
            raise
        return self.report(whole=whole)

    def report(self, *, whole: bool) -> int:
        """Write the files, print the sum; 0 if nothing failed."""
        settled = results.settle(self.raw, self.facts, results.held_in(BUILD / "vm.json"))
        held = results.merge(BUILD / "vm.json", settled, replace=not (self.options.select or self.options.expression))
        # A kernel or a case that was run again alone takes its place among the rest.
        told = results.merge(self.home / "facts.json", self.told, replace=True)
        rows = results.merge(self.home / "rows.json", {"": self.rows}, replace=False)[""]
        if whole or (len(held) >= len(kernels.SERIES) and held.keys() == told.keys()):
            PAGE.write_text(results.table(held, rows, told, COMMAND))
            say(f"wrote {PAGE.relative_to(REPOSITORY)}")
        failures = 0
        for kernel, cases in settled.items():
            verdicts = list(cases.values())
            failed = {case: verdict for case, verdict in cases.items() if verdict.startswith("failed")}
            failures += len(failed)
            skipped = sum(verdict.startswith("skipped") for verdict in verdicts)
            say(f"{kernel}: {verdicts.count('passed')} passed, {skipped} skipped, {len(failed)} failed")
            for case, verdict in failed.items():
                say(f"{kernel}: {case}: {verdict}")
        return 1 if failures else 0


def main(arguments: list[str]) -> int:
    """Run the matrix."""
    options = parse(arguments)
    started = time.monotonic()
    # A guest is ended with its harness, however that ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    matrix = Matrix(options)
    try:
        with alone(matrix.home / "lock"):
            # The guests run what would be shipped now, not what once was built.
            catalog = ("build", "--catalog", "configs/catalog", "build/catalog")
            run([sys.executable, "-m", "exporter", *catalog], cwd=REPOSITORY)
            status = matrix.run()
    except HarnessError as error:
        say(str(error))
        return 2
    say(f"{time.monotonic() - started:.0f} s in all; outcomes in build/vm.json, logs in build/vm/logs")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
