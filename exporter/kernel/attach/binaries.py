"""A binary by name: a library as the dynamic linker finds it, a program as the shell does.

The order is the linker's: ``LD_LIBRARY_PATH``, then glibc's cache, then the standard
directories; where there is no cache, musl's path file. A library of one process is the
one it has mapped, seen through its own root, so that a container's is found from outside.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

CACHE = "/etc/ld.so.cache"
_MAGIC = b"glibc-ld.so.cache1.1"
_HEADER, _ENTRY = 48, struct.Struct("=iIIIQ")
# FLAG_ELF_LIBC6 with the word size of the architecture (glibc's ldconfig.h).
_FLAGS = {"x86_64": 0x0303, "aarch64": 0x0A03, "riscv64": 0x1003, "s390x": 0x0403, "ppc64le": 0x0503}
_DIRECTORIES = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")


def find_binary(name: str, pid: int = -1) -> str:
    """The path of a program or library.

    Args:
        name: A path, which is taken as it is; a library's file name, also without what follows ``.so`` or without
            that too (``libc``); else a program's.
        pid: Whose, if it is one process's; -1 for this machine's.

    Raises:
        OSError: ENOENT: nobody has it.
    """
    root = f"/proc/{pid}/root" if pid > 0 else ""
    if "/" in name:
        # A path is one of the process's own files, if it has such a file.
        return root + name if root and os.path.isfile(root + name) else name  # noqa: PTH113
    if root and (mapped := _mapped(name, pid)):
        return root + mapped
    for path in _candidates(name):
        if os.path.isfile(path):  # noqa: PTH113  the loader does without pathlib
            return path
    raise OSError(errno.ENOENT, f"looking for binary {name!r} as the dynamic linker and the shell would")


def _candidates(name: str) -> Iterator[str]:
    for directory in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")):
        yield f"{directory}/{name}"
    machine = os.uname().machine
    for library, path in cached_libraries(_read(CACHE), _FLAGS.get(machine, 0)):
        if is_library(library, name):
            yield path
    for file in (f"/etc/ld-musl-{machine}.path",):
        for directory in _read(file).decode(errors="replace").replace("\n", ":").split(":"):
            if directory:
                yield f"{directory}/{name}"
    for directory in (*_DIRECTORIES, f"/lib/{machine}-linux-gnu", f"/usr/lib/{machine}-linux-gnu"):
        yield f"{directory}/{name}"
    for directory in filter(None, os.environ.get("PATH", "").split(":")):
        yield f"{directory}/{name}"


def is_library(found: str, name: str) -> bool:
    """Whether ``libc.so.6`` is what ``libc.so.6``, ``libc.so`` or ``libc`` means."""
    return found == name or found.startswith(name + "." if ".so" in name else name + ".so")


def cached_libraries(cache: bytes, flags: int) -> Iterator[tuple[str, str]]:
    """Names and paths of the libraries in glibc's cache that are of an architecture, in its order."""
    start = cache.find(_MAGIC)
    if start < 0:
        return
    count = int.from_bytes(cache[start + 20 : start + 24], "little")
    for index in range(count):
        place = start + _HEADER + index * _ENTRY.size
        if place + _ENTRY.size > len(cache):
            return
        kind, key, value, _, _ = _ENTRY.unpack_from(cache, place)
        if kind == flags:
            yield _text(cache, start + key), _text(cache, start + value)


def _mapped(name: str, pid: int) -> str:
    for line in _read(f"/proc/{pid}/maps").decode(errors="replace").splitlines():
        path = line.partition("/")[2]
        if path and is_library(path.rpartition("/")[2], name):
            return "/" + path
    return ""


def _text(cache: bytes, place: int) -> str:
    return cache[place : cache.find(b"\0", place)].decode(errors="replace")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return b""
