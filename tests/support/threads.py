"""Stops one thread of another process while the rest of it goes on, as a debugger does (ptrace(2))."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17  # <linux/ptrace.h>
_WAIT_FOR_THREADS = 0x40000000  # __WALL of wait(2)
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def stopped_thread(pid: int, wanted: Callable[[Sequence[str]], bool], timeout_s: float = 10.0) -> Iterator[int]:
    """Stop the thread whose system call is ``wanted``, until the block ends.

    Args:
        pid: The process; a child of ours.
        wanted: Given the words of ``/proc/PID/task/TID/syscall``: the number of the call and its arguments.
        timeout_s: How long to look for it.
    """
    end = time.monotonic() + timeout_s
    while not (found := [tid for tid in _threads(pid) if wanted(_call(pid, tid))]):
        assert time.monotonic() < end, "no thread is in such a call"
        time.sleep(0.01)
    [tid] = found
    _ptrace(_SEIZE, tid)
    try:
        _ptrace(_INTERRUPT, tid)
        os.waitpid(tid, _WAIT_FOR_THREADS)
        yield tid
    finally:
        _ptrace(_DETACH, tid)


def _threads(pid: int) -> list[int]:
    return [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]


def _call(pid: int, tid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/task/{tid}/syscall").read_text().split()
    except OSError:
        return []


def _ptrace(request: int, tid: int) -> None:
    if _libc.ptrace(ctypes.c_long(request), ctypes.c_long(tid), None, None) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}: {os.strerror(ctypes.get_errno())}")
