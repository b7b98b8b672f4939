"""Frames to finished byte strings (``_native/encode.c``); every call releases the GIL while it encodes."""

from collections.abc import Iterable

class Form:
    """One instrument, compiled: what does not change from series to series.

    Args:
        kind: 0 counter, 1 gauge, 2 histogram.
        cell_type: ``CellType``; of a histogram, of its sum.
        exp10: Of the scale, within 300 of zero.
        factor: Of the scale.
        name: Prometheus name.
        edges: Histogram: ``,le="…"} `` of each count, the last one's ``+Inf``.
        bounds: Histogram: ``explicit_bounds`` as its protobuf field; may be empty.
        has_count: Histogram: whether its text has a ``_count``.
    """

    def __init__(
        self,
        *,
        kind: int,
        cell_type: int,
        exp10: int,
        factor: float,
        first_cell: int,
        has_sum: bool,
        name: bytes,
        edges: tuple[bytes, ...],
        bounds: bytes,
        has_count: bool = True,
    ) -> None: ...

def text(families: Iterable[tuple[bytes, Iterable[tuple[object, Form]]]], tail: bytes) -> bytes:
    """Render families of the text format.

    Args:
        families: ``(header, ((view capsule, Form), …))`` each; a family without a live series is
            left out, header and all.
        tail: Ready text to follow.
    """

class Points:
    """A run of one instrument's data points, measured: take them from series ``first`` on, as many as fit in ``room``.

    Attributes:
        end: The series after the last one taken.
        done: Whether no series is left behind it.
        count: Points taken.
        size: Their bytes in a message.

    Raises:
        ValueError: a series' attribute bytes are no ``KeyValue`` fields.
    """

    def __init__(self, capsule: object, form: Form, first: int, room: int, at_least_one: bool) -> None: ...
    @property
    def end(self) -> int: ...
    @property
    def done(self) -> bool: ...
    @property
    def count(self) -> int: ...
    @property
    def size(self) -> int: ...

def message(parts: Iterable[bytes | Points], time_ns: int) -> bytes:
    """Join parts of a message: bytes, and :class:`Points` of the instant ``time_ns``."""

def fields(encoded: bytes, tag: int, first: int, room: int, at_least_one: bool) -> tuple[int, int]:
    """Take whole length-delimited fields from offset ``first`` on, as many as fit in ``room`` bytes.

    Returns:
        The offset behind them, and how many they are.

    Raises:
        ValueError: the bytes are not fields with this tag.
    """

def decimal(value: int, exp10: int) -> bytes:
    """``value * 10**exp10`` as exact text; ``exp10`` within 22 of zero. For tests."""

def shortest(value: float) -> bytes:
    """The shortest text that reads back as ``value``. For tests."""
