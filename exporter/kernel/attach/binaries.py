"""A binary by name: a library as the dynamic linker finds it, a program as the shell does.

The order is the linker's: ``LD_LIBRARY_PATH``, then glibc's cache, then the standard
directories; where there is no cache, musl's path file. A library of one process is the
one it has mapped, seen through its own root, so that a container's is found from outside.
And in a binary, the place of a function that it exports.
"""

from __future__ import annotations

import errno
import os
import struct
from array import array
from collections.abc import Iterator
from typing import BinaryIO

CACHE = "/etc/ld.so.cache"
_MAGIC = b"glibc-ld.so.cache1.1"
_HEADER, _ENTRY = 48, struct.Struct("=iIIIQ")
# FLAG_ELF_LIBC6 with the word size of the architecture (glibc's ldconfig.h).
_FLAGS = {"x86_64": 0x0303, "aarch64": 0x0A03, "riscv64": 0x1003, "s390x": 0x0403, "ppc64le": 0x0503}
# Elf64_Shdr and Elf64_Sym of elf.h, and of its numbers those that are looked for.
_SECTION, _SYMBOL = struct.Struct("=IIQQQQIIQQ"), struct.Struct("=IBBHQQ")
_SYMTAB, _DYNSYM, _VERSYM, _STT_FUNC = 2, 11, 0x6FFFFFFF, 2
_HIDDEN = 0x8000  # in a symbol's version: nothing is linked against it any more
_TABLE_LIMIT = 64 << 20
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


def exported_place(path: str, function: str) -> int:
    """Where in the file a function is that a stripped library or program exports.

    Of several versions of the function it is the one that is linked against today.

    Returns:
        0 if there is a symbol table, which has local functions too and others can search; and if there is no such
        function, or no such 64-bit file.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            header = file.read(64)
            if len(header) < 64 or header[:5] != b"\x7fELF\x02":
                return 0
            (start,), (count,) = struct.unpack_from("=Q", header, 40), struct.unpack_from("=H", header, 60)
            sections = list(_SECTION.iter_unpack(_cut(file, start, count * _SECTION.size)))
            tables = {
                kind: (index, at, size, link) for index, (_, kind, _, _, at, size, link, *_) in enumerate(sections)
            }
            if _SYMTAB in tables or _DYNSYM not in tables:
                return 0
            _, at, size, names_index = tables[_DYNSYM]
            names = _cut(file, sections[names_index][4], sections[names_index][5])
            symbols = list(_SYMBOL.iter_unpack(_cut(file, at, size)))
            _, at, size, _ = tables.get(_VERSYM, (0, 0, 0, 0))
            versions = array("H", _cut(file, at, size))
    except (OSError, ValueError, struct.error, IndexError):
        return 0
    wanted = function.encode() + b"\0"
    places: dict[bool, int] = {}
    for index, (name, info, _, section, value, _) in enumerate(symbols):
        if info & 0xF == _STT_FUNC and 0 < section < len(sections) and names.startswith(wanted, name):
            older = index < len(versions) and bool(versions[index] & _HIDDEN)
            _, _, _, address, at, *_ = sections[section]
            places[older] = value - address + at
    return max(0, places.get(False, places.get(True, 0)))


def _cut(file: BinaryIO, start: int, size: int) -> bytes:
    if size > _TABLE_LIMIT:
        raise ValueError(f"{size} bytes, at most {_TABLE_LIMIT} are read")
    file.seek(start)
    return file.read(size)


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
