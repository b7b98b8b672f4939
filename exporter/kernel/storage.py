"""The rows of task and cgroup local storage.

The kernel lists neither: a row is found by a descriptor of its task or cgroup. So all
tasks below ``/proc``, or all directories of the cgroup2 hierarchy, are opened and
asked, in native code: about 9 us a thread and 16 us a cgroup of the host, whether it
has a row or not (measured with 500 and 300 of them on a busy machine). Threads other
than the first of their process can be opened since Linux 6.9.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from exporter.errors import KernelError

from ._reader import cgroup_rows, task_rows
from .diagnosis import errno_name
from .lookup import cgroup2_mount
from .maps import Batch, Map

TASK_KEY_SIZE, CGROUP_KEY_SIZE = 16, 8


class StorageRows:
    """Reads a local storage; the map stays its owner's.

    A key is of a task its process's number, its own (each 4 bytes) and its start time (8); of a cgroup its id.

    Args:
        source: The storage.
        of: ``task`` or ``cgroup``.
        proc: Where procfs is mounted.
    """

    def __init__(self, source: Map, *, of: str, proc: str = "/proc") -> None:
        self._source, self._of, self._proc = source, of, Path(proc)

    is_array = False

    @property
    def max_entries(self) -> int:
        """0: it grows with what it is attached to."""
        return 0

    def batches(self) -> Iterator[Batch]:
        """All rows at once.

        Raises:
            KernelError: ``kernel.read``: there is no cgroup2 hierarchy, or the kernel refuses.
        """
        key_size, native = (TASK_KEY_SIZE, task_rows) if self._of == "task" else (CGROUP_KEY_SIZE, cgroup_rows)
        with self._source.held() as fd:
            try:
                root = os.open(self._root(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    count, keys, values = native(fd, root, self._source.value_size)
                finally:
                    os.close(root)
            except OSError as error:
                raise KernelError(
                    f"map {self._source.name!r}: {error.strerror}: {errno_name(error.errno or 0)}", code="kernel.read"
                ) from error
        if count:
            assert len(keys) == count * key_size
            yield Batch(count, memoryview(keys), memoryview(values), self._source.value_size, 1)

    def _root(self) -> Path:
        if self._of == "task":
            return self._proc
        mount = cgroup2_mount((self._proc / "self" / "mountinfo").read_text("utf-8", "surrogateescape"))
        if not mount:
            raise KernelError(
                f"map {self._source.name!r}: no cgroup2 hierarchy is mounted; mount one on /sys/fs/cgroup",
                code="kernel.read",
            )
        return Path(mount)
