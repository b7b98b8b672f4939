"""The rows of the maps inside a map, as one map's rows.

A map of maps gives the kernel's numbers of those it holds; a descriptor by number
needs CAP_SYS_ADMIN. The key of a row is the outer key, the inner map's number, and
the inner key: a map that takes another's place has rows of its own, however much
they look like the old ones'.

Descriptors are kept between reads, at most :data:`OPEN_LIMIT` of them, and only of
maps that are still held: one that was replaced is let go of at the next read.
"""

from __future__ import annotations

import errno
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator

from exporter.errors import KernelError

from ._reader import map_by_id, map_info, prefixed
from .diagnosis import errno_name
from .maps import Batch, Map

OPEN_LIMIT = 64
_CHUNK_ROWS = 1024
_ID = struct.Struct("=I")


class InnerRows:
    """Reads the rows of all maps that a map holds; the outer map stays its owner's.

    Args:
        outer: A hash or array of maps.
        key_size, value_size: Of the inner maps.

    Attributes:
        max_entries: Rows that all inner maps of the last reading can hold.
        is_array: Whether those are arrays, which are always full.
    """

    def __init__(self, outer: Map, *, key_size: int, value_size: int) -> None:
        self._outer = outer
        self._key_size, self._value_size = key_size, value_size
        self._open: OrderedDict[int, Map] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        self.max_entries = 0
        self.is_array = False

    def batches(self) -> Iterator[Batch]:
        """All rows of all inner maps.

        Raises:
            KernelError: ``kernel.inner_map``: an inner map may not be opened, or is not what the object declared;
                else as :meth:`.Map.batches`.
        """
        held = [
            (
                bytes(batch.keys[i * self._outer.key_size :][: self._outer.key_size]),
                *_ID.unpack_from(batch.values, 4 * i),
            )
            for batch in self._outer.batches()
            for i in range(batch.count)
        ]
        self._let_go({number for _, number in held})
        most, arrays = 0, False
        for key, number in held:
            inner = self._inner(number)
            if inner is None:
                continue
            most += inner.max_entries
            arrays = arrays or inner.is_array
            prefix = key + _ID.pack(number)
            for batch in inner.batches(_CHUNK_ROWS):
                keys = memoryview(prefixed(prefix, batch.keys, batch.count, self._key_size))
                yield Batch(batch.count, keys, batch.values, batch.value_stride, batch.cpus)
        self.max_entries, self.is_array = most, arrays

    @property
    def open_maps(self) -> int:
        """How many descriptors are kept."""
        return len(self._open)

    def _inner(self, number: int) -> Map | None:
        """The inner map of that number; None if it is gone by now."""
        with self._lock:
            known = self._open.get(number)
            if known is not None:
                self._open.move_to_end(number)
                return known
            if self._closed:
                raise KernelError(f"map {self._outer.name!r}: closed while it was read", code="kernel.read")
            try:
                fd = map_by_id(number)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return None
                remedy = "; give skep CAP_SYS_ADMIN" if error.errno in (errno.EPERM, errno.EACCES) else ""
                raise KernelError(
                    f"map {self._outer.name!r}: the maps it holds cannot be opened: "
                    f"{errno_name(error.errno or 0)}{remedy}",
                    code="kernel.inner_map",
                ) from error
            kind, _, key_size, value_size, most = map_info(fd)
            inner = Map(self._outer.name, type=kind, key_size=key_size, value_size=value_size, max_entries=most, fd=fd)
            if (key_size, value_size) != (self._key_size, self._value_size):
                inner.close()
                raise KernelError(
                    f"map {self._outer.name!r}: holds a map of {key_size} + {value_size} bytes, expected "
                    f"{self._key_size} + {self._value_size}; declare its values as the maps that are put there",
                    code="kernel.inner_map",
                )
            while len(self._open) >= OPEN_LIMIT:
                self._open.popitem(last=False)[1].close()
            self._open[number] = inner
            return inner

    def _let_go(self, held: set[int]) -> None:
        with self._lock:
            for number in [number for number in self._open if number not in held]:
                self._open.pop(number).close()

    def close(self) -> None:
        """Let go of the inner maps."""
        with self._lock:
            self._closed = True
            while self._open:
                self._open.popitem()[1].close()
