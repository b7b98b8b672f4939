"""The service manager's side of sd_notify(3): hears datagrams, keeps descriptors, starts the service with them.

Written from the manual pages sd_notify(3), sd_listen_fds(3) and systemd.service(5). As
systemd does, it keeps what the main process sends with ``FDSTORE=1`` under ``FDNAME=``
up to a limit, closes the rest without a word, keeps one file once, lets go by
``FDSTOREREMOVE=1``, and closes the descriptor of ``BARRIER=1`` when all before it is done.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import platform
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_KCMP = {"x86_64": 312, "aarch64": 272}[platform.machine()]
_libc = ctypes.CDLL(None, use_errno=True)

_LAUNCH = """
import fcntl, os, sys
count = int(sys.argv[1])
given = [int(fd) for fd in sys.argv[2:2 + count]]
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 512) for fd in given]
for fd in given:
    os.close(fd)
for index, fd in enumerate(high):
    os.dup2(fd, 3 + index, inheritable=True)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(sys.argv[2 + count], sys.argv[2 + count:])
"""


def same_file(one: int, other: int) -> bool:
    """Whether two descriptors of this process are one open file (kcmp(2))."""
    pid = os.getpid()
    return int(_libc.syscall(_KCMP, pid, pid, 0, one, other)) == 0


class ServiceManager:
    """Listens at a socket for one service; use as a context manager.

    Args:
        limit: ``FileDescriptorStoreMax=``.
        tells_limit: Whether it sets ``$FDSTORE``, as systemd does from version 254 on.
        sockets: Of its socket unit; passed before what is stored, under the unit's name.

    Attributes:
        messages: Every message, as lists of lines.
        watched: Names of descriptors that were stored without ``FDPOLL=0``.
        refused: How many were closed as they were beyond the limit.
    """

    def __init__(
        self, path: Path, *, limit: int = 512, tells_limit: bool = True, sockets: Sequence[socket.socket] = ()
    ) -> None:
        self.path = path
        self.limit = limit
        self.messages: list[list[str]] = []
        self.watched: list[str] = []
        self.refused = 0
        self.main_pid = 0
        self._tells_limit = tells_limit
        self._sockets = sockets
        self._stored: list[tuple[str, int]] = []
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(str(path))
        self._socket.settimeout(0.1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> ServiceManager:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()
        self.empty()

    # ---- the service's environment ----

    @property
    def environment(self) -> dict[str, str]:
        """What the service finds in its environment."""
        with self._lock:
            names = ["skep.socket"] * len(self._sockets) + [name for name, _ in self._stored]
        told = {"NOTIFY_SOCKET": str(self.path)}
        if self._tells_limit and self.limit:
            told["FDSTORE"] = str(self.limit)
        if names:
            told |= {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
        return told

    @property
    def descriptors(self) -> list[int]:
        """What the service is started with, from descriptor 3 on."""
        with self._lock:
            return [*(one.fileno() for one in self._sockets), *(fd for _, fd in self._stored)]

    @staticmethod
    def launcher(executable: str, descriptors: Sequence[int]) -> tuple[str, ...]:
        """A command before the service's own, that puts inherited descriptors where they belong."""
        return (executable, "-c", _LAUNCH, str(len(descriptors)), *map(str, descriptors))

    # ---- what the test asks ----

    @property
    def stored(self) -> list[str]:
        """Names of the descriptors kept, one for each."""
        with self._lock:
            return [name for name, _ in self._stored]

    def heard(self, line: str) -> int:
        """How many messages had a line that begins so."""
        with self._lock:
            return sum(any(one.startswith(line) for one in message) for message in self.messages)

    def wait(self, until: Callable[[ServiceManager], object], timeout_s: float = 20.0) -> None:
        """Wait until a predicate holds."""
        end = time.monotonic() + timeout_s
        while not until(self):
            assert time.monotonic() < end, self.messages
            time.sleep(0.02)

    def lose(self, suffix: str) -> None:
        """Drop a descriptor that nobody asked to drop."""
        with self._lock:
            [lost] = [entry for entry in self._stored if entry[0].endswith(suffix)]
            self._stored.remove(lost)
            os.close(lost[1])

    def empty(self) -> None:
        """What a stop of the service does to its store."""
        with self._lock:
            for _, fd in self._stored:
                os.close(fd)
            self._stored = []

    # ---- the protocol ----

    def _listen(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                self._receive()

    def _receive(self) -> None:
        room = socket.CMSG_SPACE(4 * 768) + socket.CMSG_SPACE(12)
        data, ancillary, flags, _ = self._socket.recvmsg(1 << 16, room, socket.MSG_CMSG_CLOEXEC)
        descriptors = array.array("i")
        pid = 0
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(payload)
            elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid, _, _ = struct.unpack("iII", payload)
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        lines = data.decode().split("\n")
        with self._lock:
            self.messages.append(lines)
            if self.main_pid and pid != self.main_pid:  # NotifyAccess=main
                for fd in descriptors:
                    os.close(fd)
                return
            self._obey(lines, list(descriptors))

    def _obey(self, lines: Sequence[str], descriptors: list[int]) -> None:
        fields = dict(line.partition("=")[::2] for line in lines)
        name = fields.get("FDNAME", "stored")
        assert name.isascii() and name.isprintable() and ":" not in name and len(name) <= 255, name
        if fields.get("FDSTORE") == "1":
            if fields.get("FDPOLL") != "0":
                self.watched.append(name)
            for fd in descriptors:
                if any(same_file(fd, kept) for _, kept in self._stored):
                    os.close(fd)
                elif len(self._stored) >= self.limit:
                    self.refused += 1
                    os.close(fd)
                else:
                    self._stored.append((name, fd))
            return
        for fd in descriptors:
            os.close(fd)
        if fields.get("FDSTOREREMOVE") == "1":
            for kept_name, fd in self._stored:
                if kept_name == name:
                    os.close(fd)
            self._stored = [entry for entry in self._stored if entry[0] != name]
