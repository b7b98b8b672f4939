"""Names of cgroups that are gone, from the kernel's own account of their removal.

A live cgroup is opened by its id. One that ended before anybody asked, as that of
a container of seconds does, cannot be; but its removal is an event (fanotify on
the whole hierarchy) that holds its id, its name and its parent's id. The kernel
queues these; they are read when a name is missed, so nothing polls and no thread
waits. Parents are removed after their children, so a parent that is gone too is
in the same queue.

Needs Linux 6.6 (a file system id for kernfs: commit 0ce7c12e88cf, "kernfs:
attach uuid for every kernfs and report it in fsid") and CAP_SYS_ADMIN; without
them there are no such names, and nothing else changes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections import OrderedDict
from collections.abc import Callable

REMEMBERED = 8192
"""Removed cgroups whose names are kept; the kernel queues up to 16384 events."""

_AT_FDCWD = -100
_CLOEXEC, _NONBLOCK = 0x1, 0x2
_REPORT = 0x200 | 0x400 | 0x800 | 0x1000  # FAN_REPORT_DFID_NAME_TARGET, since 5.17
_MARK_ADD, _MARK_FILESYSTEM = 0x1, 0x100
_DELETE, _ONDIR = 0x200, 0x40000000
_INFO_FID, _INFO_DFID_NAME = 1, 2
_EVENT = struct.Struct("=IBBHQii")  # length, version, reserved, metadata length, mask, descriptor, pid
_INFO = struct.Struct("=BBH")  # type, padding, length; then a file system id of 8 bytes
_HANDLE = struct.Struct("=Ii")  # bytes of the handle, its type; then the handle
_KERNFS = 0xFE
_DEPTH = 64

Parent = tuple[int, str]


class RemovedCgroups:
    """Follows the removal of cgroups from :meth:`open` on.

    Args:
        alive: Gives the path of a cgroup that is there, or nothing.
    """

    def __init__(self, alive: Callable[[int], str]) -> None:
        self._alive = alive
        self._fd = -1
        self._paths: OrderedDict[int, str] = OrderedDict()
        self._libc = ctypes.CDLL(None, use_errno=True)

    def open(self, mount: str) -> bool:
        """Begin to follow the hierarchy that is mounted there; False where this kernel or process cannot."""
        self.close()
        fd = self._libc.fanotify_init(_CLOEXEC | _NONBLOCK | _REPORT, os.O_RDONLY)
        if fd < 0:
            return False
        mark = ctypes.c_uint64(_DELETE | _ONDIR)
        if self._libc.fanotify_mark(fd, _MARK_ADD | _MARK_FILESYSTEM, mark, _AT_FDCWD, os.fsencode(mount)) < 0:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def close(self) -> None:
        """Follow no longer; what is known stays so."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def path(self, cgroup_id: int) -> str:
        """The path of a cgroup that was removed, or nothing."""
        self._catch_up()
        return self._paths.get(cgroup_id, "")

    def _catch_up(self) -> None:
        removed: dict[int, Parent] = {}
        while self._fd >= 0:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                self.close()
                break
            removed.update(parse_removals(data))
        for cgroup_id in removed:
            path = self._trace(cgroup_id, removed)
            if path:
                self._paths[cgroup_id] = path
                self._paths.move_to_end(cgroup_id)
        while len(self._paths) > REMEMBERED:
            self._paths.popitem(last=False)

    def _trace(self, cgroup_id: int, removed: dict[int, Parent]) -> str:
        """Go up from one that is gone to the first that is there, or whose path is known."""
        names: list[str] = []
        for _ in range(_DEPTH):
            if cgroup_id not in removed:
                above = self._paths.get(cgroup_id) or self._alive(cgroup_id)
                return above.rstrip("/") + "/" + "/".join(reversed(names)) if above else ""
            cgroup_id, name = removed[cgroup_id]
            names.append(name)
        return ""


def parse_removals(data: bytes) -> dict[int, Parent]:
    """Read fanotify events: of each directory that was removed its id, and its parent's id and its name."""
    found: dict[int, Parent] = {}
    at = 0
    while at + _EVENT.size <= len(data):
        length, _, _, head, mask, _, _ = _EVENT.unpack_from(data, at)
        if length < _EVENT.size:
            break
        child, parent = 0, None
        place, end = at + head, min(at + length, len(data))
        while place + _INFO.size + 8 + _HANDLE.size <= end:
            kind, _, size = _INFO.unpack_from(data, place)
            handle_size, handle_type = _HANDLE.unpack_from(data, place + 12)
            if size < 20 or (handle_type, handle_size) != (_KERNFS, 8):
                break
            number = int.from_bytes(data[place + 20 : place + 28], "little")
            if kind == _INFO_FID:
                child = number
            elif kind == _INFO_DFID_NAME:
                name = data[place + 28 : place + size].split(b"\0")[0].decode("utf-8", "replace")
                parent = (number, name)
            place += size
        if mask & _DELETE and mask & _ONDIR and child and parent:
            found[child] = parent
        at += length
    return found
