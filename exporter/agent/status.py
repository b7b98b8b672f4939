"""What ``skep status`` shows: one JSON document, given to whoever connects to a socket.

Nothing is asked over it and nothing can be changed by it; who may connect is said by
the socket's mode and group. The document's ``version`` grows when a key changes its meaning.
"""

from __future__ import annotations

import contextlib
import grp
import json
import math
import os
import selectors
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from exporter.errors import ExportError
from exporter.kernel import ProgramUsage

from .telemetry import StreamCounts

DOCUMENT_VERSION = 1
GROUP = "skep"
_MODE = 0o660
_SEND_TIMEOUT_S = 5.0
_RATE_WINDOW_S = 60.0


class ProgramStatus(TypedDict):
    """One program: ``id`` is the kernel's, ``error`` says why it is not attached.

    ``passed_over`` says why another alternative runs instead, which is no error. ``runs_per_s`` and ``cpu_ratio``,
    its share of one CPU, are over the last minute or less; None while the kernel does not measure
    (``telemetry.bpf_stats``).
    """

    name: str
    id: int
    attached: bool
    error: str
    passed_over: str
    runs_per_s: float | None
    cpu_ratio: float | None


class StreamStatus(TypedDict):
    """One stream's account since the agent started, and its rate over the last minute or less.

    ``ring_lost`` is what its program could not put into the full ring, None where nobody counts that;
    ``ring_fill_max`` the highest share of the ring seen filled.
    """

    name: str
    enabled: bool
    received: int
    exported: int
    failed: int
    queued: int
    dropped: dict[str, int]
    received_per_s: float
    ring_lost: int | None
    ring_fill_max: float


class MapStatus(TypedDict):
    """One map that is read: rows at the last read and rows it can hold."""

    name: str
    entries: int
    max_entries: int


class ImageDocument(TypedDict):
    """One image of the configuration."""

    name: str
    ref: str
    digest: str
    version: str
    format: str
    state: str
    reason: str
    since: float
    counting_since: float
    retry_in_s: float | None
    required: bool
    series: int
    series_limit: int
    kept_over_restart: bool
    programs: list[ProgramStatus]
    streams: list[StreamStatus]
    maps: list[MapStatus]


class Document(TypedDict):
    """The agent; times are seconds since 1970."""

    version: int
    skep: str
    pid: int
    started: float
    ready: bool
    listening: list[str]
    reload_successful: bool
    reload_success_time: float
    reload_error: str
    stuck: list[str]
    otlp: dict[str, dict[str, int]]
    lines: dict[str, int]
    images: list[ImageDocument]


Key = tuple[str, str]
"""An image, and a stream or a program of it."""


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    received: Mapping[Key, int]
    used: Mapping[Key, ProgramUsage]


class Rates:
    """Events per second by stream and runs per second by program, over about the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[_Sample] = deque()
        self._lock = threading.Lock()

    def sample(self, counts: Sequence[StreamCounts], used: Mapping[Key, ProgramUsage] | None = None) -> None:
        """Remember how many were received by now, and what programs have used, as far as that is measured."""
        now_s = self._clock()
        with self._lock:
            received = {(one.image, one.stream): one.received for one in counts}
            self._samples.append(_Sample(now_s, received, used or {}))
            while len(self._samples) > 1 and self._samples[1].at_s <= now_s - _RATE_WINDOW_S:
                self._samples.popleft()

    def rate(self, now: StreamCounts) -> float:
        """Received per second since the oldest sample."""
        with self._lock:
            if not self._samples:
                return 0.0
            then = self._samples[0]
        passed_s = self._clock() - then.at_s
        return max(0, now.received - then.received.get((now.image, now.stream), 0)) / passed_s if passed_s > 0 else 0.0

    def of_program(self, key: Key, now: ProgramUsage) -> tuple[float | None, float | None]:
        """Runs per second and the share of one CPU since the oldest sample that has the program; None without one.

        Unlike a stream's count, a program's does not begin with the agent: systemd may have kept it attached.
        """
        with self._lock:
            then = next((sample for sample in self._samples if key in sample.used), None)
        passed_s = self._clock() - then.at_s if then is not None else 0.0
        if then is None or passed_s <= 0:
            return None, None
        before = then.used[key]
        return max(0, now.runs - before.runs) / passed_s, max(0, now.time_ns - before.time_ns) / 1e9 / passed_s


class StatusServer:
    """Gives the document to each who connects.

    Args:
        path: Of the socket; what an agent that is gone left there is replaced.
        document: Makes it.

    Raises:
        ExportError: it cannot be listened at, or another agent does.
    """

    def __init__(self, path: Path, document: Callable[[], Document]) -> None:
        self._path = path
        self._document = document
        self._answering_since_s = math.inf
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC)
        try:
            self._socket = _listen(path)
        except OSError as error:
            os.close(self._wake)
            os.close(self._woken)
            raise ExportError(
                f"status socket {str(path)!r}: {error.strerror or error}; choose another with --status.socket, "
                "or none with an empty one",
                code="status.listen",
            ) from error
        self._identity = self._stat()

    def run(self, stop: threading.Event) -> None:
        """Answer until ``stop`` is set; :meth:`close` ends the wait."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while not stop.is_set():
                for key, _ in selector.select():
                    if key.fileobj is self._socket and not stop.is_set():
                        self._answer()

    def busy_s(self) -> float:
        """For how long it has been at one answer."""
        return max(0.0, time.monotonic() - self._answering_since_s)

    def _answer(self) -> None:
        self._answering_since_s = time.monotonic()
        try:
            with contextlib.suppress(OSError):
                connection, _ = self._socket.accept()
                with connection:
                    connection.settimeout(_SEND_TIMEOUT_S)
                    connection.sendall(json.dumps(self._document(), ensure_ascii=False).encode() + b"\n")
        finally:
            self._answering_since_s = math.inf

    def wake(self) -> None:
        """Have :meth:`run` look at its ``stop``."""
        os.write(self._woken, b"x")

    def close(self) -> None:
        """Listen no more; the thread has ended."""
        if self._identity is not None and self._stat() == self._identity:
            with contextlib.suppress(OSError):
                self._path.unlink()
        self._socket.close()
        os.close(self._wake)
        os.close(self._woken)

    def _stat(self) -> tuple[int, int] | None:
        try:
            there = self._path.stat()
        except OSError:
            return None
        return there.st_dev, there.st_ino


def _listen(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    _clear(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Nobody else may connect before the mode says who may.
        before = os.umask(0o777 & ~0o600)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        with contextlib.suppress(KeyError, PermissionError):  # without the group it is the owner's alone
            os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)
        path.chmod(_MODE)
        listening.listen(64)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens at."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError("something that is no socket is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FileExistsError("another agent listens there")


def default_socket() -> Path:
    """``/run/skep/agent.sock`` for root and the service; else in the user's runtime directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.geteuid() == 0 or not runtime or os.access("/run/skep", os.W_OK):
        return Path("/run/skep/agent.sock")
    return Path(runtime) / "skep" / "agent.sock"
