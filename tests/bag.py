"""Throw folders of BPF objects at ``skep run`` and tabulate what becomes of each.

::

    python -m tests.bag DIRECTORY... [--seconds 1] [--output build/bag]

Each ``*.o`` runs as root with its own network namespace and its own cgroup as root of the hierarchy, so what
filters packets or guards a cgroup meets nobody else; what traces, traces the whole machine. A file
``NAME.flags`` beside ``NAME.o`` has flags of ``skep run``, one a line, for a second try: what a person would say
about an object that does not say it itself.

An object counts as *faulty treated* if skep showed a traceback, died by a signal, did not end in time, or gave
a reason without a remedy; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.workload import repeated

ROOT = Path(__file__).resolve().parents[1]
_PATIENCE_S = 45

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
        status: Of the process; negative is a signal, None is no end in time.
        attached: Programs that ran, None if none was tried.
        lines: JSON lines of rows and events.
        said: Its stderr.
    """

    name: str
    status: int | None
    attached: int | None
    lines: int
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
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    faulty = False
    table = [
        "| objects | number | run | of these in part | with rows or events | say why not | faulty treated |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    reasons: Counter[str] = Counter()
    with repeated(_process, 0.05), _cgroup() as group:
        for directory in args.directories:
            first, second = [], []
            for path in sorted(directory.glob("*.o")):
                plain = _run(path, [], group, args)
                first.append(plain)
                flags = path.with_suffix(".flags")
                if flags.exists():
                    second.append(_run(path, shlex.split(flags.read_text(), comments=True), group, args))
                for outcome in (plain, *second[-1:]):
                    if outcome.name.startswith(path.stem) and outcome.fault:
                        print(f"{outcome.name}: {outcome.fault}", file=sys.stderr)
            table.append(_row(directory.name, first))
            if second:
                table.append(_row(f"{directory.name}, with flags", second))
            reasons.update(outcome.reason for outcome in first if outcome.status)
            faulty = faulty or any(outcome.fault for outcome in (*first, *second))
    print(f"Linux {platform.release()}, {platform.machine()}\n", *table, sep="\n")
    print("\n| why not | objects |\n|---|--:|")
    for reason, count in reasons.most_common():
        print(f"| {reason} | {count} |")
    return int(faulty)


def _row(name: str, outcomes: Sequence[Outcome]) -> str:
    running = [outcome for outcome in outcomes if outcome.attached]
    part = sum(bool(outcome.errors) for outcome in running)
    shown = sum(bool(outcome.lines) for outcome in running)
    why = sum(bool(outcome.status) and not outcome.fault for outcome in outcomes)
    faults = sum(bool(outcome.fault) for outcome in outcomes)
    return f"| {name} | {len(outcomes)} | {len(running)} | {part} | {shown} | {why} | {faults} |"


def _run(path: Path, flags: Sequence[str], group: Path, args: argparse.Namespace) -> Outcome:
    """Run one object apart from the rest of the machine."""
    name = f"{path.stem}.flags" if flags else path.stem
    skep = [sys.executable, "-m", "exporter", "run", str(path.resolve()), "--no-tty", f"--duration={args.seconds}s"]
    if args.seconds < 1 or args.seconds != int(args.seconds):
        skep[-1] = f"--duration={int(args.seconds * 1000)}ms"
    else:
        skep[-1] = f"--duration={int(args.seconds)}s"
    mounts = [
        line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line
    ]
    inside = "ip link set lo up; " + "".join(f"umount -l {shlex.quote(mount)}; " for mount in mounts)
    inside += f'mount -t cgroup2 none {shlex.quote(mounts[0])} && exec "$@"'
    outside = (
        f'echo $$ > {shlex.quote(str(group))}/cgroup.procs && exec unshare -n -m -C sh -c {shlex.quote(inside)} _ "$@"'
    )
    process = subprocess.Popen(
        ["sh", "-c", outside, "_", *skep, *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    status: int | None
    try:
        out, err = process.communicate(timeout=_PATIENCE_S + args.seconds)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        status = None
    (args.output / f"{name}.out").write_bytes(out)
    (args.output / f"{name}.err").write_bytes(err)
    said = err.decode(errors="replace")
    attached = re.search(r"^skep: running .*: (\d+) programs attached", said, re.MULTILINE)
    return Outcome(name, status, int(attached[1]) if attached else None, out.count(b"\n"), said)


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    """A cgroup of our own, which each object sees as the root."""
    listing = json.loads(subprocess.check_output(["findmnt", "-J", "-t", "cgroup2", "-o", "TARGET"]))
    group = Path(listing["filesystems"][0]["target"]) / f"skep-bag-{os.getpid()}"
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
