"""Events as JSON lines, to a file that is renamed before it grows too large, or to stdout.

Whole lines only: what a full disk left of one is cut off again. What cannot be written
now is tried until it can, while newer records wait in a bounded queue. A file that
somebody else renamed or removed is opened anew.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from pathlib import Path
from typing import Protocol

from exporter.config import JsonEventsConfig

from . import log
from .events import Ledger, LineAccount, Parcel
from .parts import set_after

_BATCH_BYTES = 1 << 20
_RETRY_S = 1.0
_MODE = 0o640
# A pipe or terminal that poll() calls writable takes this much without blocking (PIPE_BUF).
_STDOUT_BYTES = 4096
_STDOUT_WAIT_S = 0.2


class Target(Protocol):
    """Where lines go."""

    name: str

    def write(self, lines: memoryview, stop: threading.Event) -> int:
        """Write lines, as many as can be, and give the bytes; raises ``OSError`` when that would be none."""

    def close(self) -> None: ...


class RotatedFile:
    """A file that is appended to, and renamed to ``.1``, ``.2``, … as it fills."""

    def __init__(self, path: str, max_size: int, keep: int) -> None:
        self.name = path
        self._path = Path(path)
        self._max_size = max_size
        self._keep = keep
        self._fd = -1

    def write(self, lines: memoryview, stop: threading.Event) -> int:
        """Write all lines, over several files if need be."""
        written = 0
        try:
            self._open()
            while written < len(lines) and not stop.is_set():
                size = os.fstat(self._fd).st_size
                end = self._fitting(lines, written, self._max_size - size)
                if end == written and size:
                    self._rotate()
                    continue
                if end == written:  # one line is larger than a file may be
                    end = bytes(lines).index(b"\n", written) + 1
                self._append(lines[written:end], size)
                written = end
        except OSError:
            if not written:  # else what is written counts, and the next call says why there is not more
                raise
        return written

    @staticmethod
    def _fitting(lines: memoryview, start: int, room: int) -> int:
        """The end of the last whole line that fits."""
        if len(lines) - start <= room:
            return len(lines)
        return start + (bytes(lines[start : start + max(0, room)]).rfind(b"\n") + 1)

    def _append(self, lines: memoryview, size: int) -> None:
        try:
            rest = lines
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
            raise

    def _open(self) -> None:
        if self._fd >= 0:
            held = os.fstat(self._fd)
            with contextlib.suppress(FileNotFoundError):
                there = self._path.stat()
                if (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino):
                    return
            self.close()
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)

    def _rotate(self) -> None:
        self.close()
        if self._keep:
            for number in range(self._keep - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    self._numbered(number).replace(self._numbered(number + 1))
            self._path.replace(self._numbered(1))
        else:
            self._path.unlink()
        self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def close(self) -> None:
        """Close it; the next write opens it again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Stdout:
    """The process's stdout; whoever does not read it holds nothing up but the lines."""

    name = "stdout"

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd

    def write(self, lines: memoryview, stop: threading.Event) -> int:
        """Write until all is written or ``stop`` is set."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        written = 0
        while written < len(lines) and not stop.is_set():
            if poll.poll(_STDOUT_WAIT_S * 1000):
                try:
                    written += os.write(self._fd, lines[written : written + _STDOUT_BYTES])
                except OSError:
                    if not written:
                        raise
                    break
        return written

    def close(self) -> None:
        """Nothing: it is the process's."""


def open_target(config: JsonEventsConfig) -> Target | None:
    """What the configuration says; None for nowhere."""
    if config.stdout:
        return Stdout()
    return RotatedFile(config.path, config.max_size, config.keep) if config.path else None


class LineWriter:
    """Writes parcels of JSON lines in the one thread that calls :meth:`run`."""

    def __init__(self, target: Target, account: LineAccount, ledger: Ledger) -> None:
        self._target = target
        self._account = account
        self._ledger = ledger
        self._held: list[Parcel] = []
        self._offset = 0
        self._repeats = log.Repeats()
        self.beat_s = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Write until ``stop`` is set; what is then in hand stays for :meth:`flush`."""
        while not stop.is_set():
            self.beat_s = time.monotonic()
            if self._held or self._pick(0.5):
                self._write(stop)

    def flush(self, deadline_s: float) -> None:
        """Write what is left until ``deadline_s`` from now; what then remains is dropped and counted."""
        with set_after(deadline_s) as late:
            while not late.is_set() and (self._held or self._pick(0.0)):
                if not self._write(late):
                    break
        left = [*self._held, *self._account.queue.take(1 << 62)]
        for parcel in left:
            self._account.drop(self._ledger, parcel, "shutdown")
        if left:
            records = sum(parcel.records for parcel in left)
            log.warn("event lines dropped at the end", records=records, target=self._target.name)
        self._held = []

    def close(self) -> None:
        """Close the file."""
        self._target.close()

    def _pick(self, timeout_s: float) -> bool:
        if timeout_s:
            self._account.queue.wait(timeout_s)
        self._held = self._account.queue.take(_BATCH_BYTES)
        return bool(self._held)

    def _write(self, stop: threading.Event) -> bool:
        """Write what is in hand; whether all of it could be."""
        while self._held:
            parcel = self._held[0]
            lines = memoryview(parcel.body)
            try:
                self._offset += self._target.write(lines[self._offset :], stop)
            except OSError as error:
                if self._repeats.count("write", str(error)):
                    log.error("events cannot be written", target=self._target.name, reason=error.strerror)
                self._target.close()
                stop.wait(_RETRY_S)
                return False
            if self._offset < len(lines):
                return False
            self._account.write(self._ledger, parcel)
            del self._held[0]
            self._offset = 0
        if failures := self._repeats.clear("write"):
            log.info("events are written again", target=self._target.name, after_failures=failures)
        return True
