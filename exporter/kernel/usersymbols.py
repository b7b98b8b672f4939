"""Names of functions in other processes: by ``/proc/PID/maps`` and the symbol tables of the files mapped there.

The files belong to whoever runs the process. They are opened without following what
blocks, read in bounded pieces, and nothing in them is believed further than that a
wrong name may be shown: a file that is odd, large or stripped gives ``file+0xoffset``.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import time
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SYMTAB, _DYNSYM, _LOAD = 2, 11, 1
_FUNCTIONS = frozenset({2, 10})  # STT_FUNC, STT_GNU_IFUNC
_TABLE_LIMIT = 24 << 20
_HEADERS_LIMIT = 4096
_FILES, _PROCESSES = 32, 128
_PROCESS_KEPT_S = 10.0
_MAPS_LIMIT = 4 << 20


@dataclass(frozen=True, slots=True)
class Mapping:
    """A part of a file that a process may execute."""

    start: int
    end: int
    offset: int
    inode: int
    path: str


class UserSymbols:
    """Looks addresses up in the processes they are of; one thread at a time.

    Keeps the symbol tables of 32 files and the mappings of 128 processes, the latter for ten seconds.

    Args:
        proc: Where procfs is mounted.
        clock: Monotonic seconds.
    """

    def __init__(self, proc: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._proc, self._clock = proc, clock
        self._files: OrderedDict[tuple[str, int], Functions] = OrderedDict()
        self._processes: OrderedDict[int, tuple[float, list[Mapping]]] = OrderedDict()

    def name(self, pid: int, address: int) -> str:
        """The function an address lies in, ``file+0xoffset``, or the address in hexadecimal."""
        mappings = self._mappings(pid)
        at = bisect_right(mappings, address, key=lambda mapping: mapping.start) - 1
        if at < 0 or address >= mappings[at].end:
            return hex(address)
        mapping = mappings[at]
        offset = address - mapping.start + mapping.offset
        if not mapping.path:
            return hex(address)
        known = self._functions(pid, mapping).name(offset) if mapping.path.startswith("/") else ""
        return known or f"{mapping.path.rpartition('/')[2]}+{offset:#x}"

    def _mappings(self, pid: int) -> list[Mapping]:
        now = self._clock()
        kept = self._processes.get(pid)
        if kept is not None and now < kept[0]:
            self._processes.move_to_end(pid)
            return kept[1]
        try:
            with (self._proc / str(pid) / "maps").open("rb") as file:
                mappings = read_mappings(file.read(_MAPS_LIMIT).decode("utf-8", "replace"))
        except OSError:
            # It ended: what was known of it is still true.
            mappings = kept[1] if kept is not None else []
        self._processes[pid] = (now + _PROCESS_KEPT_S, mappings)
        self._processes.move_to_end(pid)
        if len(self._processes) > _PROCESSES:
            self._processes.popitem(last=False)
        return mappings

    def _functions(self, pid: int, mapping: Mapping) -> Functions:
        key = (mapping.path, mapping.inode)
        known = self._files.get(key)
        if known is None:
            known = read_functions(f"{self._proc}/{pid}/root{mapping.path}", mapping.inode)
            self._files[key] = known
            if len(self._files) > _FILES:
                self._files.popitem(last=False)
        self._files.move_to_end(key)
        return known


def read_mappings(text: str) -> list[Mapping]:
    """The executable ones of ``/proc/PID/maps``, which lists them by address."""
    found = []
    for line in text.splitlines():
        fields = line.split(None, 5)
        if len(fields) < 5 or "x" not in fields[1]:
            continue
        with contextlib.suppress(ValueError):
            start, _, end = fields[0].partition("-")
            path = fields[5].removesuffix(" (deleted)") if len(fields) > 5 else ""
            found.append(Mapping(int(start, 16), int(end, 16), int(fields[2], 16), int(fields[4]), path))
    return found


class Functions:
    """The functions of one file, by offset in it."""

    def __init__(self) -> None:
        self.addresses: array[int] = array("Q")
        self.sizes: array[int] = array("Q")
        self.names: list[bytes] = []
        self.segments: list[tuple[int, int, int]] = []

    def name(self, offset: int) -> str:
        """The name of the function at an offset of the file, or nothing."""
        for start, size, address in self.segments:
            if start <= offset < start + size:
                return self._at(offset - start + address)
        return ""

    def _at(self, address: int) -> str:
        at = bisect_right(self.addresses, address) - 1
        if at < 0 or address >= self.addresses[at] + max(self.sizes[at], 1):
            return ""
        return self.names[at].decode("utf-8", "replace")


def read_functions(path: str, inode: int) -> Functions:
    """What a file's symbol table has; nothing if the file is another one by now, or no ELF of 64 bits."""
    found = Functions()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError):
        return found
    try:
        about = os.fstat(fd)
        if stat.S_ISREG(about.st_mode) and about.st_ino == inode:
            with contextlib.suppress(OSError, struct.error, ValueError, OverflowError):
                _read(fd, found)
    finally:
        os.close(fd)
    return found


def _read(fd: int, found: Functions) -> None:
    header = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
    ident, segments_at, sections_at = header[0], header[5], header[6]
    segment_count, section_count = header[10], header[12]
    if ident[:6] != b"\x7fELF\x02\x01" or max(segment_count, section_count) > _HEADERS_LIMIT:
        return
    for kind, flags, offset, address, _, size, *_ in _SEGMENT.iter_unpack(
        os.pread(fd, segment_count * _SEGMENT.size, segments_at)
    ):
        if kind == _LOAD and flags & 1:
            found.segments.append((offset, size, address))
    sections = list(_SECTION.iter_unpack(os.pread(fd, section_count * _SECTION.size, sections_at)))
    # A stripped file has only what it shows to others.
    for wanted in (_SYMTAB, _DYNSYM):
        table = next((section for section in sections if section[1] == wanted), None)
        if table is None or not 0 < table[5] <= _TABLE_LIMIT or table[6] >= len(sections):
            continue
        texts = sections[table[6]]
        if not 0 < texts[5] <= _TABLE_LIMIT:
            continue
        _read_symbols(os.pread(fd, table[5], table[4]), os.pread(fd, texts[5], texts[4]), found)
        if found.names:
            return


def _read_symbols(table: bytes, texts: bytes, found: Functions) -> None:
    entries = sorted(
        (address, size, name)
        for name, kind, _, section, address, size in _SYMBOL.iter_unpack(table[: len(table) // 24 * 24])
        if kind & 15 in _FUNCTIONS and section and address
    )
    for address, size, name in entries:
        found.addresses.append(address)
        found.sizes.append(min(size, 1 << 32))
        end = texts.find(b"\0", name)
        found.names.append(texts[name : min(end, name + 256)] if end >= 0 else b"")
