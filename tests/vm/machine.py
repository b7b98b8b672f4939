"""One boot of one guest under QEMU, and the events it reports.

The guest has two serial lines. The first is its console and goes to a log. The
second carries one JSON object per line from the runner to here: facts about
the kernel, the list of cases, each case's start and outcome, the end. So what
is known when a guest dies is exactly what it had said.

Disks, in this order: root, kernel modules, working tree, orders.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.vm.guest import channel
from tests.vm.packages import HarnessError

MEMORY_MIB = 2048
PROCESSORS = 2

#: One host thread for all of the guest's processors. With one each, a processor may run
#: a stale translation of code that another has just patched: 6.12 died of a breakpoint
#: that was gone again (static calls, as trampolines are detached). It costs no time here.
ACCELERATOR = "tcg,thread=single"

#: Under emulation, with cx16 offered, Debian's 6.12 panics in about a third of its boots. But kernels that
#: give BPF's local storage its memory without a lock (7.0; the allocator came with 6.18) have none to give
#: on a processor without it.
PROCESSOR = "max,-cx16"
PROCESSOR_FROM_6_18 = "max"

#: Tests, as arguments of Python, whose outcomes are told over the channel.
PYTEST = ("-m", "pytest", "-p", "tests.vm.guest.plugin", "-p", "no:cacheprovider")

BOOT_TIMEOUT_S = 180.0
COLLECT_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Guest:
    """What is booted."""

    image: Path
    initramfs: Path
    disks: tuple[Path, ...]
    command_line: str
    processor: str = PROCESSOR


@dataclass(slots=True)
class Account:
    """All that one guest said, in the order it said it.

    Attributes:
        facts: About the kernel; empty if the guest never came up.
        cases: What it was going to run; None if it never got that far.
        outcomes: Case to (outcome, reason).
        running: The case that had begun and not ended.
        finished: Whether it said that it was done.
        death: Why it is not finished, else empty.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    cases: list[str] | None = None
    outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    running: str = ""
    finished: bool = False
    status: int = -1
    death: str = ""
    boot_s: float = 0.0
    total_s: float = 0.0

    @property
    def died_before_tests(self) -> bool:
        """The guest was lost before it began a case: the machine's fault, not a test's."""
        return not self.finished and not self.running and not self.outcomes

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take one event into account."""
        match event.get("event"):
            case "facts":
                self.facts = dict(event["facts"])
            case "collected":
                self.cases = list(event["cases"])
            case "start":
                self.running = event["case"]
            case "case":
                self.outcomes[event["case"]] = (event["outcome"], event.get("reason", ""))
                if event.get("row"):
                    self.rows[event["case"]] = event["row"]
                if event.get("detail"):
                    self.details[event["case"]] = event["detail"]
                self.running = ""
            case "end":
                self.finished, self.status = True, event["status"]

    def results(self) -> dict[str, tuple[str, str]]:
        """Every case that was to run and what it came to, death included."""
        found = dict(self.outcomes)
        for case in self.cases or ():
            if case not in found:
                lost = f"the guest died during this case: {self.death}" if case == self.running else ""
                found[case] = ("failed", lost or f"not run, the guest died before: {self.death or 'no outcome'}")
        return found


def parse_events(data: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """Split what came over the line into events and the unfinished rest.

    Lines that are no event, such as a kernel message that strayed here, are left out.
    """
    *lines, rest = data.split(b"\n")
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events, rest


def encode_orders(orders: Mapping[str, Any]) -> bytes:
    """What the guest is to do, padded to whole sectors: the guest reads it as a raw disk."""
    data = json.dumps(orders).encode()
    return data + b"\0" * (-len(data) % 4096)


def qemu_command(guest: Guest, console: Path) -> list[str]:
    """The command that boots a guest; its second serial line is the command's standard output."""
    command = [
        "qemu-system-x86_64",
        *(
            "-machine",
            "pc",
            "-accel",
            ACCELERATOR,
            "-cpu",
            guest.processor,
            "-smp",
            str(PROCESSORS),
            "-m",
            str(MEMORY_MIB),
        ),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-kernel", str(guest.image), "-initrd", str(guest.initramfs), "-append", guest.command_line),
        *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
        *("-chardev", "stdio,id=events,signal=off", "-serial", "chardev:events"),
    ]
    for disk in guest.disks:
        command += ["-drive", f"file={disk},format=raw,if=virtio,snapshot=on,cache=unsafe"]
    return command


def command_line(lsm: str) -> str:
    """What the kernel is told: console, security modules, reboot (which ends QEMU) at once on a panic."""
    return f"console=ttyS0 loglevel=4 panic=-1 {lsm} mitigations=off random.trust_cpu=on"


def last_words(console: Path) -> str:
    """The console's last lines that say what went wrong, as one."""
    if not console.exists():
        return ""
    lines = [line.strip() for line in console.read_text(errors="replace").splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if any(sign in line for sign in ("Kernel panic", "BUG:", "Oops", "skep vm:", "Out of memory")):
            return " | ".join(lines[number : number + 2])[:400]
    return " | ".join(lines[-2:])[:400]


def events_of(stream: IO[bytes], patience: Callable[[], float]) -> Iterator[dict[str, Any] | None]:
    """Yield events as they come; None when ``patience()`` seconds passed without one, then stop.

    Stops without None when the other side closed the line.
    """
    descriptor = stream.fileno()
    os.set_blocking(descriptor, False)
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        quiet_since = time.monotonic()
        while True:
            left = quiet_since + patience() - time.monotonic()
            if left <= 0:
                yield None
                return
            if not selector.select(left):
                continue
            data = os.read(descriptor, 1 << 16)
            if not data:
                return
            events, rest = parse_events(rest + data)
            for event in events:
                quiet_since = time.monotonic()
                yield event


_guests: set[subprocess.Popen[bytes]] = set()
_ending = threading.Event()


def end_guests() -> None:
    """End every guest, and boot no more."""
    _ending.set()
    for process in list(_guests):
        process.kill()


def boot(guest: Guest, console: Path, *, case_timeout_s: float, heard: Callable[[dict[str, Any]], None]) -> Account:
    """Boot a guest, listen until it is done or dead, and leave nothing running.

    Args:
        guest: What to boot.
        console: Where its console is written.
        case_timeout_s: How long one case may be silent.
        heard: Called with every event as it comes.
    """
    if _ending.is_set():
        raise HarnessError("the run was ended")
    command = qemu_command(guest, console)
    if not shutil.which(command[0]):
        raise HarnessError(f"{command[0]} is not installed; run packaging/setup/system-packages vm")
    account = Account()
    started = time.monotonic()
    process = subprocess.Popen(
        # A guest ends with its harness, however that ends; and others go first.
        ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "10", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    _guests.add(process)

    def patience() -> float:
        if account.finished:
            return 20.0
        if not account.facts:
            return BOOT_TIMEOUT_S
        return COLLECT_TIMEOUT_S if account.cases is None else case_timeout_s

    try:
        for event in events_of(process.stdout, patience):
            if event is None:
                account.death = f"silent for {patience():.0f} s; {last_words(console)}"
                break
            account.hear(event)
            if event["event"] == "facts":
                account.boot_s = time.monotonic() - started
            heard(event)
        else:
            process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            process.kill()
        complaint = process.stderr.read().decode(errors="replace").strip()
        process.wait()
        _guests.discard(process)
        process.stdout.close()
        process.stderr.close()
    account.total_s = time.monotonic() - started
    if not account.finished and not account.death:
        account.death = last_words(console) or complaint or "no word on its console"
    return account


def run_here(
    arguments: Sequence[str],
    directory: Path,
    log: Path,
    *,
    facts: Mapping[str, Any],
    case_timeout_s: float,
    heard: Callable[[dict[str, Any]], None],
) -> Account:
    """Run the cases on this machine's own kernel, and listen as to a guest.

    Args:
        arguments: Of Python.
        directory: The repository.
        log: Where pytest's own output goes.
        facts: About this kernel.
        case_timeout_s: How long one case may be silent.
        heard: Called with every event as it comes.
    """
    account = Account(facts=dict(facts))
    started = time.monotonic()
    ours, theirs = os.pipe()
    command = [sys.executable, *arguments]
    with os.fdopen(ours, "rb", buffering=0) as stream, log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, channel.VARIABLE: f"/proc/{os.getpid()}/fd/{theirs}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        watcher = threading.Thread(target=lambda: (process.wait(), os.close(theirs)))
        watcher.start()
        for event in events_of(stream, lambda: COLLECT_TIMEOUT_S if account.cases is None else case_timeout_s):
            if event is None:
                account.death = f"silent for {case_timeout_s:.0f} s"
                os.killpg(process.pid, signal.SIGKILL)
                break
            account.hear(event)
            heard(event)
        watcher.join()
    if not account.death:
        account.hear({"event": "end", "status": process.returncode})
    account.total_s = time.monotonic() - started
    return account


def boot_twice(attempt: Callable[[int], Account]) -> tuple[Account, Sequence[str]]:
    """Boot, and once more if the guest died before its tests.

    Returns:
        The last account, and the words of every boot that died before its tests.
    """
    deaths: list[str] = []
    for number in (1, 2):
        account = attempt(number)
        if not account.died_before_tests:
            break
        deaths.append(account.death)
    return account, deaths
