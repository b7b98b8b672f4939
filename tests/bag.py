"""Throw folders of BPF objects at ``skep run`` and tabulate what becomes of each.

::

    python -m tests.bag DIRECTORY... [--seconds 1] [--output build/bag] [--kernel 6.12]

With ``--kernel`` they run in a virtual machine, whose kernel has what this machine's may refuse. Each ``*.o`` runs
as root with its own network namespace and its own cgroup as root of the hierarchy, so what filters packets or
guards a cgroup meets nobody else; what traces, traces the whole machine. A file ``NAME.flags`` beside ``NAME.o`` has
flags of ``skep run``, one a line, for a second try: what a person would say about an object that does not say it
itself.

An object counts as *faulty treated* if skep showed a traceback, died by a signal, did not end in time, or gave
a reason without a remedy; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.support.workload import repeated
from tests.vm.__main__ import Matrix, alone, parse
from tests.vm.guest import channel
from tests.vm.machine import boot
from tests.vm.packages import HarnessError

ROOT = Path(__file__).resolve().parents[1]
_PATIENCE_S = 280  # of an emulated processor; below what a guest may be silent
_SHOWN = 100_000  # characters of an output that are kept

REASONS = (
    ("names no place", r"names no (interface|direction|kernel function|target|tracepoint|cgroup)|no binary is named"
     r"|needs one of frequency and period|attach\.(interfaces|direction)"),
    ("needs a trampoline, refused by lockdown", r"refuses the trampoline"),
    ("kprobes are off in this kernel", r"has no kprobes"),
    ("function or tracepoint is absent", r"which this kernel \S+ does not have|has no such (function|tracepoint)"),
    ("kind of program is not done", r"which is not done here|does `ip route`|which `ip route` does|nobody does here"),
    ("member or symbol is absent (CO-RE)", r"has no match for|in another size|is not in this kernel|declare it __weak"),
    ("verifier", r"the verifier of"),
    ("licence", r"its licence is not one"),
    ("maps of an older convention", r"as before libbpf 1\.0|convention of BumbleBee"),
    ("section is unknown", r"knows no program type"),
    ("memory limit", r"raise limits\.map_memory"),
    ("file, symbol or process is absent (uprobe, USDT)", r"see that file, symbol and process"),
    ("map is not as the kernel wants it", r"^map "),
    ("object is not as libbpf wants it", r"^object|rebuild|is to be loaded|no programs"),
)  # fmt: skip
"""Reasons by what their messages say; the first that fits."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one object.

    Attributes:
        group: The row of the table it belongs to.
        status: Of the process; negative is a signal, None is no end in time.
        attached: Programs that ran, None if none was tried.
        out: JSON lines of rows and events.
        said: Its stderr.
    """

    name: str
    group: str
    status: int | None
    attached: int | None
    out: str
    said: str

    @property
    def errors(self) -> list[str]:
        """The messages that say why something did not run, without their log."""
        told = [line.removeprefix("skep: ") for line in self.said.splitlines() if line.startswith("skep: ")]
        quiet = r"not exported|nothing is exported|^running |its object leaves open|not loaded, as|its object pins"
        return [line for line in told if not re.search(quiet, line)]

    @property
    def fault(self) -> str:
        """What skep did wrong with it; ``""`` for nothing."""
        if self.status is None:
            return "did not end"
        if self.status < 0 or self.status > 2:
            return f"status {self.status}"
        if "Traceback" in self.said:
            return "traceback"
        if self.status and not self.errors:
            return "no reason"
        vague = [line for line in self.errors if ";" not in line and "not done here" not in line]
        return f"no remedy: {vague[0]}" if vague else ""

    @property
    def reason(self) -> str:
        """The class of why it does not run."""
        text = self.errors[0] if self.errors else ""
        return next((reason for reason, pattern in REASONS if re.search(pattern, text)), "other")


def main() -> int:
    """Run the bag."""
    parser = argparse.ArgumentParser(prog="python -m tests.bag", description=__doc__.partition("\n")[0])
    parser.add_argument("directories", metavar="DIRECTORY", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each runs (default: 1)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bag", help="where outputs are kept")
    parser.add_argument("--kernel", metavar="SERIES", help="5.10, 6.1, 6.12 or newest, in a virtual machine")
    args = parser.parse_args()
    if channel.in_guest():
        for given in _here(args):
            channel.say("outcome", **asdict(given))
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    release = platform.release()
    found: list[Outcome] = []
    if args.kernel:
        release, heard = _in_guest(args)
        found += heard
    else:
        found += _here(args)
    for outcome in found:
        (args.output / f"{outcome.name}.out").write_text(outcome.out)
        (args.output / f"{outcome.name}.err").write_text(outcome.said)
        if outcome.fault:
            print(f"{outcome.name}: {outcome.fault}", file=sys.stderr)
    print(f"Linux {release}, {platform.machine()}\n")
    print("| objects | number | run | of these in part | with rows or events | say why not | faulty treated |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for group in dict.fromkeys(outcome.group for outcome in found):
        print(_row(group, [outcome for outcome in found if outcome.group == group]))
    print("\n| why not | objects |\n|---|--:|")
    plain = [outcome for outcome in found if not outcome.name.endswith(".flags")]
    for reason, count in Counter(outcome.reason for outcome in plain if outcome.status).most_common():
        print(f"| {reason} | {count} |")
    return int(any(outcome.fault for outcome in found))


def _here(args: argparse.Namespace) -> Iterator[Outcome]:
    """Run all on the kernel that runs now: of each directory the objects as they are, then those with flags."""
    with repeated(_process, 0.05), _cgroup() as group:
        for directory in args.directories:
            objects = sorted(directory.glob("*.o"))
            for path in objects:
                yield _run(path, [], directory.name, group, args.seconds)
            for path in objects:
                if (flags := path.with_suffix(".flags")).exists():
                    said = shlex.split(flags.read_text(), comments=True)
                    yield _run(path, said, f"{directory.name}, with flags", group, args.seconds)


def _in_guest(args: argparse.Namespace) -> tuple[str, list[Outcome]]:
    """Run all in a virtual machine; its kernel's release, and what became of each.

    Raises:
        HarnessError: no such kernel, or the guest died.
    """
    given = ROOT / "build" / "bag-given"  # goes into the guest with the rest of the tree
    matrix = Matrix(parse(["--kernel", args.kernel]))
    found: list[Outcome] = []

    def heard(event: dict[str, Any]) -> None:
        if event.pop("event") == "outcome":
            found.append(Outcome(**event))

    with alone(matrix.home / "lock"):
        try:
            for directory in args.directories:
                shutil.copytree(directory, given / directory.name)
            folders = [str((given / directory.name).relative_to(ROOT)) for directory in args.directories]
            order = ["-m", "tests.bag", f"--seconds={args.seconds}", *folders]
            prepared = matrix.prepared(args.kernel, order)
        finally:
            shutil.rmtree(given, ignore_errors=True)
        if prepared is None:
            raise HarnessError(f"no kernel {args.kernel} to run them on")
        kernel, guest = prepared
        console = matrix.logs(kernel) / "console-bag.log"
        account = boot(guest, console, case_timeout_s=_PATIENCE_S, heard=heard)
    if account.death or account.status:
        raise HarnessError(f"the guest did not end well: {account.death or account.status}; see {console}")
    return kernel.release, found


def _row(name: str, outcomes: Sequence[Outcome]) -> str:
    running = [outcome for outcome in outcomes if outcome.attached]
    part = sum(bool(outcome.errors) for outcome in running)
    shown = sum(bool(outcome.out) for outcome in running)
    why = sum(bool(outcome.status) and not outcome.fault for outcome in outcomes)
    faults = sum(bool(outcome.fault) for outcome in outcomes)
    return f"| {name} | {len(outcomes)} | {len(running)} | {part} | {shown} | {why} | {faults} |"


def _run(path: Path, flags: Sequence[str], group: str, cgroup: Path, seconds: float) -> Outcome:
    """Run one object apart from the rest of the machine."""
    name = f"{path.stem}.flags" if flags else path.stem
    skep = [sys.executable, "-m", "exporter", "run", str(path.resolve()), "--no-tty"]
    skep.append(f"--duration={int(seconds * 1000)}ms")
    inside = "ip link set lo up; " + "".join(f"umount -l {shlex.quote(mount)}; " for mount in _cgroup2_mounts())
    inside += f'mount -t cgroup2 none {shlex.quote(_cgroup2_mounts()[0])} && exec "$@"'
    outside = (
        f'echo $$ > {shlex.quote(str(cgroup))}/cgroup.procs && exec unshare -n -m -C sh -c {shlex.quote(inside)} _ "$@"'
    )
    process = subprocess.Popen(
        ["sh", "-c", outside, "_", *skep, *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    status: int | None
    try:
        out, err = process.communicate(timeout=_PATIENCE_S + seconds)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        status = None
    said = err.decode(errors="replace")
    attached = re.search(r"^skep: running .*: (\d+) programs attached", said, re.MULTILINE)
    shown = out.decode(errors="replace")
    return Outcome(name, group, status, int(attached[1]) if attached else None, shown[:_SHOWN], said[:_SHOWN])


def _cgroup2_mounts() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line]


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    """A cgroup of our own, which each object sees as the root."""
    group = Path(_cgroup2_mounts()[0]) / f"skep-bag-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


def _process() -> None:
    """Start something that opens files and ends, while objects run: something to count."""
    subprocess.run(["sh", "-c", "cat /etc/hostname; kill -0 $$"], stdout=subprocess.DEVNULL, check=False)


if __name__ == "__main__":
    sys.exit(main())
