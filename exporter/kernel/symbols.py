"""Names and addresses of the running kernel, from ``/proc/kallsyms``: read whole once, searched as bytes.

The addresses are zeros for a process without CAP_SYSLOG; the names are there all the same.
"""

from __future__ import annotations

import re
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


def addresses(name: str, *, functions: bool = False, text: bytes | None = None) -> list[int]:
    """Every address a symbol has; of functions only, if asked. A module's name may stand before it and a colon.

    ``text`` is what to search instead of this kernel's symbols.
    """
    module, _, symbol = name.rpartition(":")
    kinds = rb"[tTwW]" if functions else rb"\w"
    place = rb"\t\[" + re.escape(module.encode()) + rb"\]" if module else rb"(?:\t\[\w+\])?"
    pattern = rb"^([0-9a-f]+) " + kinds + rb" " + re.escape(symbol.encode()) + place + rb"$"
    return [int(found, 16) for found in re.findall(pattern, _kallsyms() if text is None else text, re.MULTILINE)]


def variants(name: str, *, text: bytes | None = None) -> list[str]:
    """Functions that the compiler made of one: ``name.isra.0``, ``name.constprop.0`` and their kin."""
    pattern = rb"^[0-9a-f]+ [tT] (" + re.escape(name.encode()) + rb"\.(?:isra|constprop|part|cold)[.\w]*)"
    found = re.findall(pattern, _kallsyms() if text is None else text, re.MULTILINE)
    return sorted({one.decode() for one in found})


def readable() -> bool:
    """Whether the kernel tells its symbols at all."""
    return bool(_kallsyms())
