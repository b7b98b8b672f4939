"""Ring buffers: whole records copied out at once, the space given back at once.

The consumer is ours (``_native/ring.c``). It never holds a ring's position back
to wait for whoever wants the records: a full ring drops where nobody counts.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time

from exporter.errors import KernelError

from ._reader import Ring
from .diagnosis import errno_name
from .maps import RINGBUF, Map

_UNFINISHED_PAUSE_S = 0.001


class RingReader:
    """Several ring buffers behind one wait.

    :meth:`wait` and :meth:`read` belong to one thread; :meth:`add` and
    :meth:`remove` may come from another.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._rings: dict[int, Ring] = {}
        self._fds: dict[int, int] = {}
        self._next = 0
        self._lock = threading.Lock()
        self._drained = True

    def add(self, map: Map) -> int:
        """Take over as the one consumer of a ring and return its index, never given twice.

        Raises:
            KernelError: ``kernel.ring``: not a ring buffer, or it cannot be mapped.
        """
        if map.type != RINGBUF:
            raise KernelError(f"map {map.name!r}: type {map.type} is not a ring buffer", code="kernel.ring")
        try:
            ring = Ring(map.fd, map.max_entries)
        except OSError as error:
            raise KernelError(
                f"map {map.name!r}: {error.strerror}: {errno_name(error.errno or 0)}", code="kernel.ring"
            ) from error
        with self._lock:
            index, self._next = self._next, self._next + 1
            self._rings[index], self._fds[index] = ring, map.fd
            self._epoll.register(map.fd, select.EPOLLIN)
        return index

    def remove(self, index: int) -> None:
        """Let go of a ring; call it before its map is closed."""
        with self._lock:
            ring = self._rings.pop(index)
            with contextlib.suppress(OSError):  # its map was closed first
                self._epoll.unregister(self._fds.pop(index))
            ring.close()

    def wait(self, timeout_s: float) -> bool:
        """Sleep until a ring has records, at most ``timeout_s``; whether one may have.

        Records submitted without waking anybody (``BPF_RB_NO_WAKEUP``) are found when the time is over.
        """
        if not self._drained:
            # Told that there is something, then found nothing finished: a record is reserved
            # and not yet submitted, and epoll would tell us again without a pause.
            time.sleep(min(_UNFINISHED_PAUSE_S, timeout_s))
        ready = bool(self._epoll.poll(timeout_s))
        with self._lock:
            ready = ready or any(ring.used() for ring in self._rings.values())
        self._drained = not ready
        return ready

    def read(self, index: int, limit_bytes: int = 1 << 20) -> bytes:
        """Take finished records of one ring, oldest first; ``b""`` when there are none now.

        Returns:
            Records as ``struct skep_record`` of ``_native/record.h`` says; at
            most ``limit_bytes``, unless one record alone is larger.

        Raises:
            KernelError: ``kernel.ring``: the ring contradicts itself.
        """
        with self._lock:
            try:
                records = self._rings[index].read(limit_bytes)
            except OSError as error:
                raise KernelError(
                    f"ring {index}: {error.strerror}: {errno_name(error.errno or 0)}", code="kernel.ring"
                ) from error
        if records:
            self._drained = True
        return records

    def fill_ratio(self, index: int) -> float:
        """How full a ring is now, 0 to 1, unfinished records included."""
        with self._lock:
            ring = self._rings[index]
            return ring.used() / ring.size

    def close(self) -> None:
        """Let go of all rings."""
        for index in list(self._rings):
            self.remove(index)
        self._epoll.close()
