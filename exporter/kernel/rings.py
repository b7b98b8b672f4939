"""Records out of maps: ring buffers, perf event arrays, and queues; copied out at once, the space given back at once.

The consumers are ours (``_native/ring.c``, ``perf.c``). They never hold a ring's
position back to wait for whoever wants the records: a full ring drops where nobody
counts. A perf event array is a buffer for each CPU, opened here when the CPU comes
online; its entries vanish with the map file they were made through, so that stays
open. A queue or stack wakes nobody and is asked on a short timer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from exporter.errors import KernelError

from ._reader import PerfBuffer, Queue, Ring
from .diagnosis import errno_name
from .maps import PERF_EVENT_ARRAY, QUEUE, RINGBUF, STACK, Map

_UNFINISHED_PAUSE_S = 0.001
_QUEUE_PAUSE_S = 0.05
PERF_BUFFER_BYTES = 256 << 10
"""Of each CPU."""
_PERF_WAKE_BYTES = 4096
_ONLINE = Path("/sys/devices/system/cpu/online")
_ONLINE_PAUSE_S = 1.0


class Source(Protocol):
    """A map that records are taken from."""

    def read(self, limit_bytes: int) -> bytes: ...
    def waiting(self) -> bool:
        """Whether there are records; never, where only a read can tell."""

    def fill_ratio(self) -> float: ...
    def lost(self) -> int | None:
        """Records that did not fit so far; None where nobody counts them."""

    def descriptors(self) -> Sequence[int]:
        """What to wait for."""

    def close(self) -> None: ...


class _RingBuffer:
    """A BPF ring buffer: one for all CPUs."""

    def __init__(self, map: Map) -> None:
        self._ring = Ring(map.fd, map.max_entries)
        self._fds = (map.fd,)
        self.read = self._ring.read
        self.close = self._ring.close

    def waiting(self) -> bool:
        return self._ring.used() > 0

    def fill_ratio(self) -> float:
        return self._ring.used() / self._ring.size

    def lost(self) -> int | None:
        return None

    def descriptors(self) -> Sequence[int]:
        return self._fds


class _PerfBuffers:
    """A perf event array: a buffer for each CPU that is online, others as they come."""

    def __init__(self, map: Map, online: Callable[[], Sequence[int]]) -> None:
        self._map_fd = os.dup(map.fd)  # the same open file: the entries live while it does
        self._cpus = map.max_entries
        self._online = online
        self._present: set[int] = set()
        self._buffers: dict[int, PerfBuffer] = {}
        self._lost_before = 0
        self._left: list[bytes] = []
        try:
            self.follow()
        except BaseException:
            self.close()
            raise

    def follow(self) -> tuple[list[int], list[int]]:
        """Open buffers of CPUs that came online; gives descriptors to wait for from now on, and no more.

        A CPU that went away and came back has a dead buffer: what it holds is taken out and it is made anew.
        """
        online = {cpu for cpu in self._online() if cpu < self._cpus}
        came, gone = [], []
        for cpu in sorted(online - self._present):
            old = self._buffers.pop(cpu, None)
            if old is not None:
                gone.append(old.fd)
                self._lost_before += old.lost()
                with contextlib.suppress(OSError):  # what contradicts itself is let go with its buffer
                    self._left.append(old.read(1 << 62))
                old.close()
            try:
                self._buffers[cpu] = PerfBuffer(self._map_fd, cpu, PERF_BUFFER_BYTES, _PERF_WAKE_BYTES)
            except OSError as error:
                # A CPU may just be leaving. At first, anything else is a refusal: records of that CPU would go nowhere.
                if error.errno != errno.ENODEV and not self._present:
                    raise
                online.discard(cpu)
                continue
            came.append(self._buffers[cpu].fd)
        self._present = online
        return came, gone

    def read(self, limit_bytes: int) -> bytes:
        found, self._left = self._left, []
        room = limit_bytes - sum(map(len, found))
        for buffer in self._buffers.values():
            if room <= 0:
                break
            found.append(buffer.read(room))
            room -= len(found[-1])
        return b"".join(found)

    def waiting(self) -> bool:
        return bool(self._left) or any(buffer.used() for buffer in self._buffers.values())

    def fill_ratio(self) -> float:
        return max((buffer.used() / buffer.size for buffer in self._buffers.values()), default=0.0)

    def lost(self) -> int | None:
        return self._lost_before + sum(buffer.lost() for buffer in self._buffers.values())

    def descriptors(self) -> Sequence[int]:
        return [buffer.fd for buffer in self._buffers.values()]

    def close(self) -> None:
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers = {}
        fd, self._map_fd = self._map_fd, -1
        if fd >= 0:
            os.close(fd)


class _Values:
    """A queue or stack: what is taken out of it is gone from it."""

    def __init__(self, map: Map) -> None:
        self.read = Queue(map.fd, map.value_size).read

    def waiting(self) -> bool:
        return False

    def fill_ratio(self) -> float:
        return 0.0

    def lost(self) -> int | None:
        return None

    def descriptors(self) -> Sequence[int]:
        return ()

    def close(self) -> None:
        pass


def online_cpus() -> list[int]:
    """The CPUs that run now; all there may be if the kernel does not say."""
    try:
        text = _ONLINE.read_text().strip()
    except OSError:
        return list(range(os.cpu_count() or 1))
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


class RingReader:
    """Several maps of records behind one wait.

    :meth:`wait` and :meth:`read` belong to one thread; :meth:`add` and
    :meth:`remove` may come from another.

    Args:
        online: Which CPUs run now.
    """

    def __init__(self, online: Callable[[], Sequence[int]] = online_cpus) -> None:
        self._epoll = select.epoll()
        self._sources: dict[int, Source] = {}
        self._fds: dict[int, list[int]] = {}
        self._next = 0
        self._lock = threading.Lock()
        self._drained = True
        self._online = online
        self._followed_s = 0.0

    def add(self, map: Map) -> int:
        """Take over as the one consumer of a map and return its index, never given twice.

        Raises:
            KernelError: ``kernel.ring``: no map of records, or it cannot be mapped.
        """
        if map.type not in (RINGBUF, PERF_EVENT_ARRAY, QUEUE, STACK):
            raise KernelError(f"map {map.name!r}: type {map.type} is not a ring buffer", code="kernel.ring")
        try:
            source: Source
            if map.type == RINGBUF:
                source = _RingBuffer(map)
            elif map.type == PERF_EVENT_ARRAY:
                source = _PerfBuffers(map, self._online)
            else:
                source = _Values(map)
        except OSError as error:
            remedy = ""
            if map.type == PERF_EVENT_ARRAY and error.errno in (errno.EPERM, errno.EACCES):
                remedy = "; needs CAP_PERFMON, and CAP_IPC_LOCK for more than kernel.perf_event_mlock_kb"
            raise KernelError(
                f"map {map.name!r}: {error.strerror}: {errno_name(error.errno or 0)}{remedy}", code="kernel.ring"
            ) from error
        with self._lock:
            index, self._next = self._next, self._next + 1
            self._sources[index], self._fds[index] = source, list(source.descriptors())
            for fd in self._fds[index]:
                self._epoll.register(fd, select.EPOLLIN)
        return index

    def remove(self, index: int) -> None:
        """Let go of a map; call it before the map is closed."""
        with self._lock:
            source = self._sources.pop(index)
            for fd in self._fds.pop(index):
                with contextlib.suppress(OSError):  # its map was closed first
                    self._epoll.unregister(fd)
            source.close()

    def wait(self, timeout_s: float) -> bool:
        """Sleep until a map has records, at most ``timeout_s``; whether one may have.

        Records submitted without waking anybody (``BPF_RB_NO_WAKEUP``, few in a perf buffer) are found when the time
        is over; of queues, after a twentieth of a second.
        """
        self._follow_cpus()
        if not self._drained:
            # Told that there is something, then found nothing finished: a record is reserved
            # and not yet submitted, and epoll would tell us again without a pause.
            time.sleep(min(_UNFINISHED_PAUSE_S, timeout_s))
        with self._lock:
            asked = any(isinstance(source, _Values) for source in self._sources.values())
        ready = bool(self._epoll.poll(min(timeout_s, _QUEUE_PAUSE_S) if asked else timeout_s))
        with self._lock:
            ready = ready or any(source.waiting() for source in self._sources.values())
        self._drained = not ready
        return ready or asked

    def _follow_cpus(self) -> None:
        now_s = time.monotonic()
        if now_s - self._followed_s < _ONLINE_PAUSE_S:
            return
        self._followed_s = now_s
        with self._lock:
            for index, source in self._sources.items():
                if not isinstance(source, _PerfBuffers):
                    continue
                try:
                    came, gone = source.follow()
                except OSError:  # the reader of all rings must not end of one; it is tried again in a second
                    continue
                # A closed descriptor left the epoll set by itself, and its number may be one of those that came.
                self._fds[index] = [fd for fd in self._fds[index] if fd not in gone] + came
                for fd in came:
                    self._epoll.register(fd, select.EPOLLIN)

    def read(self, index: int, limit_bytes: int = 1 << 20) -> bytes:
        """Take finished records of one map, oldest first; ``b""`` when there are none now.

        Those of a perf event array are in order for each CPU; a stack gives its newest first.

        Returns:
            Records as ``struct skep_record`` of ``_native/record.h`` says; at
            most ``limit_bytes``, unless one record alone is larger.

        Raises:
            KernelError: ``kernel.ring``: the ring contradicts itself, or the kernel refuses.
        """
        with self._lock:
            try:
                records = self._sources[index].read(limit_bytes)
            except OSError as error:
                raise KernelError(
                    f"ring {index}: {error.strerror}: {errno_name(error.errno or 0)}", code="kernel.ring"
                ) from error
        if records:
            self._drained = True
        return records

    def fill_ratio(self, index: int) -> float:
        """How full it is now, 0 to 1, unfinished records included; of perf buffers the fullest, of queues 0."""
        with self._lock:
            return self._sources[index].fill_ratio()

    def lost(self, index: int) -> int | None:
        """How many records did not fit so far; None where the kernel does not count them."""
        with self._lock:
            return self._sources[index].lost()

    def close(self) -> None:
        """Let go of all maps."""
        for index in list(self._sources):
            self.remove(index)
        self._epoll.close()
