"""A command in a terminal of its own: what it shows, what is typed, how it leaves the terminal.

::

    with Terminal(["skep", "run", …], columns=100, lines=30) as terminal:
        terminal.expect("programs attached")
        terminal.press("q")
        assert terminal.wait() == 0
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

_SEQUENCE = re.compile(rb"\x1b(?:\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>])")


class Terminal:
    """A process whose controlling terminal we hold the other end of."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 100,
        lines: int = 30,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.raw = b""
        master, slave = pty.openpty()
        self._master = master
        # Held open, so that what was written last can be read and the modes asked for after the end.
        self._slave = slave
        self.resize(columns, lines)
        self.modes_before = termios.tcgetattr(slave)
        self.pid = os.fork()
        if not self.pid:
            try:
                os.login_tty(slave)  # type: ignore[attr-defined]
            except AttributeError:  # before Python 3.11
                os._exit(126)
            if cwd:
                os.chdir(cwd)
            os.execvpe(command[0], list(command), {**os.environ, "TERM": "xterm", **(environment or {})})
        self.status: int | None = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._master)
        os.close(self._slave)

    @property
    def text(self) -> str:
        """All that was shown so far, without the sequences that move and colour."""
        return _SEQUENCE.sub(b"", self.raw).decode("utf-8", "replace")

    @property
    def modes(self) -> list[object]:
        """How the terminal is set now."""
        return termios.tcgetattr(self._slave)

    def resize(self, columns: int, lines: int) -> None:
        """Change its size, as a person does with the window."""
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._master, keys.encode())

    def forget(self) -> None:
        """Look only at what comes from now on."""
        self._read(0)
        self.raw = b""

    def expect(self, text: str, timeout_s: float = 20.0) -> str:
        """Wait until a text was shown; give all that was."""
        end = time.monotonic() + timeout_s
        while text not in self.text:
            assert time.monotonic() < end, f"{text!r} was not shown in {timeout_s} s:\n{self.text[-4000:]}"
            self._read(0.1)
        return self.text

    def wait(self, timeout_s: float = 20.0) -> int:
        """Give its exit status, negative for a signal."""
        end = time.monotonic() + timeout_s
        while self.status is None:
            self._read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            assert time.monotonic() < end, f"it did not end in {timeout_s} s:\n{self.text[-4000:]}"
        self._read(0)
        return self.status

    def _read(self, timeout_s: float) -> None:
        while select.select([self._master], [], [], timeout_s)[0]:
            self.raw += os.read(self._master, 65536)
            timeout_s = 0
