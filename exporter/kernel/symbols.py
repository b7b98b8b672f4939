"""Names and addresses of the running kernel, from ``/proc/kallsyms``: read whole once, searched as bytes.

The addresses are zeros for a process without CAP_SYSLOG; the names are there all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

PATH = "/proc/kallsyms"


@cache
def _kallsyms() -> bytes:
    try:
        # os and not pathlib, and no decoding: 200,000 lines, and the loader child is short-lived.
        with open(PATH, "rb", buffering=0) as file:  # noqa: PTH123
            return file.readall()
    except OSError:
        return b""


def _lines(text: bytes, beginning: bytes) -> Iterator[bytes]:
    """The lines of symbols whose names begin so. An expression over all lines would take a hundred times as long."""
    needle, at = b" " + beginning, -1
    while (at := text.find(needle, at + 1)) >= 0:
        end = text.find(b"\n", at)
        yield text[text.rfind(b"\n", 0, at) + 1 : end if end >= 0 else len(text)]


def addresses(name: str, *, functions: bool = False, text: bytes | None = None) -> list[int]:
    """Every address a symbol has; of functions only, if asked. A module's name may stand before it and a colon.

    ``text`` is what to search instead of this kernel's symbols.
    """
    module, _, symbol = name.rpartition(":")
    kinds = rb"[tTwW]" if functions else rb"\w"
    place = rb"\t\[" + re.escape(module.encode()) + rb"\]" if module else rb"(?:\t\[\w+\])?"
    line = re.compile(rb"([0-9a-f]+) " + kinds + rb" " + re.escape(symbol.encode()) + place)
    found = _lines(_kallsyms() if text is None else text, symbol.encode())
    return [int(match[1], 16) for one in found if (match := line.fullmatch(one))]


def variants(name: str, *, text: bytes | None = None) -> list[str]:
    """Functions that the compiler made of one: ``name.isra.0``, ``name.constprop.0`` and their kin."""
    line = re.compile(rb"[0-9a-f]+ [tT] (" + re.escape(name.encode()) + rb"\.(?:isra|constprop|part|cold)[.\w]*).*")
    found = _lines(_kallsyms() if text is None else text, name.encode() + b".")
    return sorted({match[1].decode() for one in found if (match := line.fullmatch(one))})


def readable() -> bool:
    """Whether the kernel tells its symbols at all."""
    return bool(_kallsyms())
