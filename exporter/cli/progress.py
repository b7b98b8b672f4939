"""How far a transfer or a build is, on a terminal; nothing at all where stderr is none.

Bars come from ``rich`` where it is installed (``skep[tui]``); else one line that is written over.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.image.formats import Descriptor
    from exporter.image.transfer import Progress

_EVERY_S = 0.1
_NAMES = {
    "application/ebpf.oci.image.program.v1+binary": "program",
    "application/ebpf.oci.image.config.v1+json": "config",
}


def is_terminal() -> bool:
    """Whether a person watches stderr, on something that can go back in a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def has_rich() -> bool:
    """Whether the extra ``tui`` is installed."""
    return find_spec("rich") is not None


@contextmanager
def transfer(verb: str) -> Iterator[Progress | None]:
    """Show each blob of a pull or push as it goes; give what is told of them, or ``None``."""
    if not is_terminal():
        yield None
    elif has_rich():
        with _bars(verb) as progress:
            yield progress
    else:
        line = _Line()
        try:
            yield _plain(verb, line)
        finally:
            line.clear()


@contextmanager
def steps(subject: str) -> Iterator[Callable[[str], None]]:
    """Show which step of a few is being done; give what is told of them."""
    if not is_terminal():
        yield lambda _: None
        return
    line = _Line()
    try:
        yield lambda step: line.write(f"{subject}: {step} …")
    finally:
        line.clear()


class _Line:
    """The last line of the terminal, written over and removed in the end."""

    def __init__(self) -> None:
        self._shown = False

    def write(self, text: str) -> None:
        # A terminal that does not know its size says 0.
        width = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
        sys.stderr.write(f"\r\x1b[K{text[:width]}")
        sys.stderr.flush()
        self._shown = True

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False


def _name(blob: Descriptor) -> str:
    return f"{_NAMES.get(blob.media_type, 'blob')} {blob.digest.short}"


def _plain(verb: str, line: _Line) -> Progress:
    shown_s = 0.0

    def tell(blob: Descriptor, done: int) -> None:
        nonlocal shown_s
        now_s = time.monotonic()
        if 0 < done < blob.size and now_s - shown_s < _EVERY_S:
            return
        shown_s = now_s
        line.write(f"{verb} {_name(blob)}: {done >> 10} of {(blob.size + 1023) >> 10} KiB")

    return tell


@contextmanager
def _bars(verb: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    # Removed at the end: what stays is the line on stdout, as without a terminal.
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bars = Bars(*columns, console=Console(stderr=True), transient=True)
    tasks: dict[str, TaskID] = {}

    def tell(blob: Descriptor, done: int) -> None:
        key = str(blob.digest)
        if key not in tasks:
            tasks[key] = bars.add_task(f"{verb} {_name(blob)}", total=blob.size)
        bars.update(tasks[key], completed=done)

    with bars:
        yield tell
