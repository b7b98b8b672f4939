"""Stack traces as one line, the outermost function first: ``main;work;read``.

A stack map keeps addresses under an id; it is asked once per id and ten seconds at
most, by whoever shows the id. Kernel addresses become symbols, a process's become
symbols of its binaries as far as they have them. What cannot be shown says why in
brackets: a stack that was not kept because another took its place (``[lost]``), one
that was let go of (``[gone]``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from exporter.errors import KernelError

from .maps import Map

TEXT_LIMIT = 8192
_NAME_LIMIT = 256
_BUILD_ID = struct.Struct("=i20sQ")
_VALID, _ADDRESS = 1, 2
_EFAULT = -14


class Stacks:
    """Gives the text of stacks in the maps of one object.

    Args:
        maps: By name; they stay their owner's.
        resolve: Gives the symbol of an address: ``ksym`` of one, ``usym`` of one with a process's number above its
            64 bits.
    """

    def __init__(self, maps: Mapping[str, Map], resolve: Callable[[str, int], str]) -> None:
        self._maps = maps
        self._resolve = resolve

    def text(self, decoder: str, map_name: str, value: int, *, build_ids: bool = False) -> str:
        """The stack of an id; empty where the program had none to take.

        Args:
            decoder: ``kstack`` or ``ustack``.
            map_name: Where the id is of.
            value: The id, 32 bits as ``bpf_get_stackid`` gave them; above them the process's number.
            build_ids: The map keeps build ids and offsets instead of addresses.
        """
        number = value & 0xFFFFFFFF
        if number >> 31:
            return "" if number - (1 << 32) == _EFAULT else "[lost]"
        try:
            frames = self._maps[map_name].lookup(number.to_bytes(4, "little"))
        except KernelError:
            frames = None
        if frames is None:
            return "[gone]"
        process = value >> 32
        names = self._built(frames, process) if build_ids else self._named(decoder, frames, process)
        return folded(names)

    def _named(self, decoder: str, frames: bytes, process: int) -> list[str]:
        names = []
        for (address,) in struct.iter_unpack("=Q", frames[: len(frames) // 8 * 8]):
            if not address:
                break
            names.append(self._symbol(decoder, address, process))
        return names

    def _symbol(self, decoder: str, address: int, process: int) -> str:
        if decoder == "kstack":
            return self._resolve("ksym", address)
        return self._resolve("usym", process << 64 | address) if process else hex(address)

    def _built(self, frames: bytes, process: int) -> list[str]:
        names = []
        for status, build_id, place in _BUILD_ID.iter_unpack(frames[: len(frames) // _BUILD_ID.size * _BUILD_ID.size]):
            if status == _VALID:
                names.append(f"{build_id.hex()}+{place:#x}")
            elif status == _ADDRESS:
                names.append(self._symbol("ustack", place, process))
            else:
                break
        return names


def folded(names: list[str]) -> str:
    """Innermost-first names as one line with the outermost first, cut there if it is too long."""
    clean = [name.replace(";", ":")[:_NAME_LIMIT] for name in names]
    kept, size = 0, 0
    for name in clean:
        size += len(name) + 1
        if size > TEXT_LIMIT:
            break
        kept += 1
    cut = ["…"] if kept < len(clean) else []
    return ";".join([*cut, *reversed(clean[:kept])])
