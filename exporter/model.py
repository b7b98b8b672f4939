"""What is measured, in OpenTelemetry's terms; everyone may import this, it imports nobody.

A *frame* (``collect``) holds, per series, a row of 64-bit cells; an
:class:`Instrument` says which cells are its own and how to read them. Encoders
(``export``) need nothing else, so neither side knows the other.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Kind(enum.Enum):
    """What a number is, which decides how it may be added up and encoded."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class CellType(enum.IntEnum):
    """How the 64 bits of a cell are read; the numbers are shared with ``_native/frame.h``."""

    U64 = 0
    I64 = 1
    F64 = 2


@dataclass(frozen=True, slots=True)
class Scale:
    """From raw units to instrument units: multiply by ``factor * 10**exp10``.

    Nearly every scale is a power of ten (ns to s), and then ``factor`` is 1.0
    and encoders print exact decimals without floating point.
    """

    exp10: int = 0
    factor: float = 1.0

    def value(self) -> float:
        """The multiplier as one float."""
        return float(self.factor * 10.0**self.exp10) if self.exp10 >= 0 else self.factor / 10.0**-self.exp10


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric of one frame.

    Attributes:
        name: OpenTelemetry name, dotted: ``ebpf.block.request.duration``.
        prometheus_name: The whole name with unit and ``_total``; of a
            histogram, without ``_bucket``.
        kind: Counter (monotonic cumulative sum), gauge or histogram.
        unit: UCUM, as exported: ``s``, ``By``, ``1``, ``{call}``; may be empty.
        description: One sentence for HELP and the OTLP description.
        first_cell: Index of its first cell in a series' row of cells.
        cell_type: How its cells are read.
        scale: From the cells of counters and gauges to ``unit``; of a
            histogram, from its sum cell to ``unit``.
        bounds: Histogram only: ``(n - 1,)`` inclusive upper edges in ``unit``,
            increasing. The cells are ``n`` counts, not cumulative, then one sum
            cell if ``has_sum``.
        has_sum: Histogram only: whether the program kept a sum.
    """

    name: str
    prometheus_name: str
    kind: Kind
    unit: str = ""
    description: str = ""
    first_cell: int = 0
    cell_type: CellType = CellType.U64
    scale: Scale = field(default_factory=Scale)
    bounds: tuple[float, ...] = ()
    has_sum: bool = False

    @property
    def cells(self) -> int:
        """How many cells one series of this instrument has."""
        if self.kind is Kind.HISTOGRAM:
            return len(self.bounds) + 1 + (1 if self.has_sum else 0)
        return 1


@dataclass(frozen=True, slots=True)
class Scope:
    """OpenTelemetry's instrumentation scope: one image of the agent's configuration."""

    name: str
    version: str = ""
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Resource:
    """What all of this is measured on: host and service, the same after a restart."""

    attributes: tuple[tuple[str, str], ...] = ()


class FrameView(Protocol):
    """What an encoder may see of a frame (``_native/frame.h`` has the bytes)."""

    @property
    def scope(self) -> Scope: ...
    @property
    def instruments(self) -> tuple[Instrument, ...]: ...
    def view(self) -> object:
        """A capsule ``skep.frame_view``; valid, and constant, while the frame's owner holds its lock."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One instant of everything the agent exports.

    Attributes:
        time_ns: ``CLOCK_REALTIME`` of the read, nanoseconds.
        frames: In configuration order.
    """

    time_ns: int
    resource: Resource
    frames: Sequence[FrameView]


# OpenTelemetry to Prometheus, default translation (UnderscoreEscapingWithSuffixes).
# The words are those of the compatibility specification's unit table.
_UNIT_WORDS = {
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds", "ms": "milliseconds", "us": "microseconds",
    "ns": "nanoseconds", "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes",
    "TiBy": "tibibytes", "kBy": "kilobytes", "KBy": "kilobytes", "MBy": "megabytes", "GBy": "gigabytes",
    "TBy": "terabytes", "m": "meters", "V": "volts", "A": "amperes", "J": "joules", "W": "watts", "g": "grams",
    "Cel": "celsius", "Hz": "hertz", "1": "", "%": "percent",
}  # fmt: skip
_PER_WORDS = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}
_NOT_IN_METRIC_NAME = re.compile(r"[^A-Za-z0-9:]+")
_ANNOTATION = re.compile(r"\{[^}]*\}")


def _tokens(text: str) -> list[str]:
    """The parts between whatever a Prometheus name cannot hold, and ``_``."""
    return [token for token in _NOT_IN_METRIC_NAME.split(text) if token]


def _unit_tokens(unit: str) -> tuple[list[str], list[str]]:
    """The words of a unit, above the stroke and below it: ``By/s`` gives ``[bytes]`` and ``[second]``."""
    above, _, below = _ANNOTATION.sub("", unit).partition("/")
    above, below = above.strip(), below.strip()
    return _tokens(_UNIT_WORDS.get(above, above)), _tokens(_PER_WORDS.get(below, below))


def prometheus_name(name: str, *, kind: Kind, unit: str) -> str:
    """Derive the Prometheus name of an OpenTelemetry instrument.

    A unit word is added after the name unless the name already has it, then
    ``_total`` to a counter, ``_ratio`` to a gauge of unit ``1``.

    Args:
        name: Dotted OpenTelemetry name, normally with no unit and no ``_total`` in it.
        kind: Counter, gauge or histogram.
        unit: UCUM; annotations in braces are dropped.

    Source: OpenTelemetry specification, "Prometheus and OpenMetrics
    Compatibility", with the name translation UnderscoreEscapingWithSuffixes.
    """
    tokens = _tokens(name)
    above, below = _unit_tokens(unit)
    if not set(above) <= set(tokens):
        tokens += above
    if not set(below) <= set(tokens):
        tokens += ["per", *below]
    suffix = "total" if kind is Kind.COUNTER else "ratio" if kind is Kind.GAUGE and unit == "1" else ""
    if suffix:
        tokens = [token for token in tokens if token != suffix] + [suffix]
    full = "_".join(tokens)
    return "_" + full if full[:1].isdigit() else full


def prometheus_label(name: str) -> str:
    """Derive the Prometheus label name of an OpenTelemetry attribute name.

    Source: the same specification, "Metric Attributes"; ``key`` before a digit
    or ``_`` keeps clear of the names that Prometheus reserves.
    """
    label = re.sub(r"[^A-Za-z0-9_]", "_", name)
    if label[:1].isdigit():
        return "key_" + label
    return "key" + label if label.startswith("_") else label
