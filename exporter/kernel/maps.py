"""A live map: its rows in batches of raw bytes, read through a held descriptor.

A batch look-up is one system call for thousands of rows, and right under churn:
each row once, none twice. Where the kernel has none for a map type (per-CPU
arrays and tries before 5.13, stack traces, cgroup storage) the rows are walked key
by key and remembered, so that a walk the kernel restarts still gives each key once.
A trie's batch is such a walk inside the kernel and is sifted in the same way.
Neither is a snapshot: a row written during the read is either its old or its new self.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from exporter.errors import KernelError

from ._reader import Rows, lookup
from .diagnosis import errno_name
from .features import possible_cpus

# Numbers of enum bpf_map_type.
PERF_EVENT_ARRAY = 4
QUEUE = 22
STACK = 23
RINGBUF = 27
_LPM_TRIE = 11
_PER_CPU = frozenset({5, 6, 10, 21})  # PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH, PERCPU_CGROUP_STORAGE
# HASH, ARRAY, STACK_TRACE, LRU_HASH, LPM_TRIE, arrays and hashes of maps (numbers of maps), CGROUP_STORAGE and
# the per-CPU forms. Not the others: a queue has no keys, newer local storage is keyed by descriptors, a perf event
# array holds no numbers.
_WITH_ROWS = frozenset({1, 2, 7, 9, 11, 12, 13, 19}) | _PER_CPU
_CGROUP_STORAGE = frozenset({19, 21})  # CGROUP_STORAGE and its per-CPU form, by the id of the cgroup
_ENTRIES_UNKNOWN = 1 << 16
# ARRAY_OF_MAPS, HASH_OF_MAPS: a batch stops at the first empty place.
_WALKED = frozenset({12, 13}) | _CGROUP_STORAGE
_ARRAYS = frozenset({2, 6})  # ARRAY, PERCPU_ARRAY


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one read; the buffers are overwritten by the next.

    Attributes:
        count: Rows.
        keys: ``count * key_size`` bytes.
        values: ``count * value_stride`` bytes.
        value_stride: Bytes from one value to the next: of a per-CPU map
            ``cpus`` slots of ``value_size`` rounded up to 8.
        cpus: Slots in a value; 1 if the map is not per-CPU.
    """

    count: int
    keys: memoryview
    values: memoryview
    value_stride: int
    cpus: int


class Map:
    """A map of a :class:`~exporter.kernel.Collection`.

    Reads and :meth:`close` may come from different threads; two reads at a time may not.

    Attributes:
        type: Number of ``enum bpf_map_type``.
        fd: Its descriptor, owned; -1 once closed.
    """

    def __init__(self, name: str, *, type: int, key_size: int, value_size: int, max_entries: int, fd: int) -> None:
        self.name, self.type = name, type
        self.key_size, self.value_size, self.max_entries = key_size, value_size, max_entries
        self.fd = fd
        self.cpus = possible_cpus() if type in _PER_CPU else 1
        self.value_stride = self.cpus * (-(-value_size // 8) * 8) if type in _PER_CPU else value_size
        self._rows: Rows | None = None
        self._chunk_rows = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Map({self.name!r}, type={self.type}, fd={self.fd})"

    @property
    def is_array(self) -> bool:
        """Whether all its rows are always there."""
        return self.type in _ARRAYS

    def batches(self, chunk_rows: int = 4096) -> Iterator[Batch]:
        """All rows, at most ``chunk_rows`` at a time, without the GIL while the kernel copies.

        Raises:
            KernelError: ``kernel.map_type`` for a map that has no rows to read,
                ``kernel.read`` for the kernel's refusal.
        """
        if self.type not in _WITH_ROWS:
            raise KernelError(
                f"map {self.name!r}: maps of type {self.type} have no rows to read; declare a hash or an array",
                code="kernel.map_type",
            )
        rows = self._reader(chunk_rows)
        rows.start()
        while True:
            with self._lock:
                if self.fd < 0:
                    raise KernelError(f"map {self.name!r}: closed while it was read", code="kernel.read")
                try:
                    count = rows.next()
                except OSError as error:
                    raise KernelError(
                        f"map {self.name!r}: {error.strerror}: {errno_name(error.errno or 0)}", code="kernel.read"
                    ) from error
            if not count:
                return
            yield Batch(
                count=count,
                keys=memoryview(rows.keys)[: count * self.key_size],
                values=memoryview(rows.values)[: count * self.value_stride],
                value_stride=self.value_stride,
                cpus=self.cpus,
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """Its descriptor, which stays open meanwhile.

        Raises:
            KernelError: ``kernel.read``: it is closed.
        """
        with self._lock:
            if self.fd < 0:
                raise KernelError(f"map {self.name!r}: closed while it was read", code="kernel.read")
            yield self.fd

    def lookup(self, key: bytes) -> bytes | None:
        """The value under a key, or None; not of a per-CPU map.

        Raises:
            KernelError: ``kernel.read`` for the kernel's refusal.
        """
        with self.held() as fd:
            try:
                return lookup(fd, key, self.value_size)
            except OSError as error:
                raise KernelError(
                    f"map {self.name!r}: {error.strerror}: {errno_name(error.errno or 0)}", code="kernel.read"
                ) from error

    def _reader(self, chunk_rows: int) -> Rows:
        if self._rows is None or self._chunk_rows != chunk_rows:
            self._rows = Rows(
                self.fd,
                key_size=self.key_size,
                value_stride=self.value_stride,
                max_entries=self.max_entries or _ENTRIES_UNKNOWN,
                chunk_rows=chunk_rows,
                walk_only=self.type in _WALKED,
                trie=self.type == _LPM_TRIE,
                ends_early=self.type in _CGROUP_STORAGE,
            )
            self._chunk_rows = chunk_rows
        return self._rows

    def close(self) -> None:
        """Let go of the map; the kernel keeps it while a program or somebody else does."""
        with self._lock:
            fd, self.fd = self.fd, -1
            self._rows = None
        if fd >= 0:
            os.close(fd)
