"""Histogram slots: which values each of a program's slots counts, and the bucket edges that follow.

A program counts values into numbered slots; Prometheus and OTLP want the
*inclusive upper edge* of each, in the metric's unit. Edges are computed as
fractions and rounded to a float once, so that 2^7 us is 0.000128 s and no
neighbour of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from exporter.errors import PlanError
from exporter.model import Scale

SLOTS_LIMIT = 512
"""Buckets one histogram may have; each is a time series."""
_NUMBER = r"[+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][+-]?\d{1,2})?"
_DECIMAL = re.compile(_NUMBER, re.ASCII)
_FORMS = (
    "log2_ceil[:<slots>], log2_floor[:<slots>], linear:<width>[:<min>[:<slots>]] or edges:<e0>,<e1>,… "
    "with increasing edges"
)


@dataclass(frozen=True, slots=True)
class SlotScheme:
    """How a program numbers its slots.

    Attributes:
        form: ``log2_ceil``: slot k counts (2^(k-1), 2^k], slot 0 counts 0 and 1. ``log2_floor``: slot k counts
            [2^k, 2^(k+1) - 1], slot 0 also 0. ``linear``: slot k counts [min + k*width, min + (k+1)*width).
            ``edges``: slot k counts up to and including edge k. The last slot counts all that is above, too.
        count: Slots, where the text says so, else 0.
        width, minimum: Of ``linear``, in raw units.
        edges: Of ``edges``, in raw units.
    """

    form: str
    count: int = 0
    width: int = 0
    minimum: int = 0
    edges: tuple[Fraction, ...] = ()

    def slots_for(self, value_bits: int) -> int:
        """How many slots hold every value of so many bits; 0 where the scheme cannot say."""
        if self.count:
            return self.count
        return {"log2_ceil": value_bits + 1, "log2_floor": value_bits, "edges": len(self.edges) + 1}.get(self.form, 0)

    def bounds(self, count: int, scale: Fraction) -> tuple[float, ...]:
        """The inclusive upper edges of all slots but the last.

        Args:
            count: Slots, at least 1.
            scale: Instrument units per raw unit.

        Returns:
            ``(count - 1,)``, increasing.

        Raises:
            PlanError: the scheme has other slots than that, or too many.
        """
        if not 1 <= count <= SLOTS_LIMIT:
            raise PlanError(f"{count} histogram slots; expected 1 to {SLOTS_LIMIT}", code="plan.slots")
        if self.form == "edges" and count != len(self.edges) + 1:
            raise PlanError(
                f"{count} histogram slots for {len(self.edges)} edges; expected one slot more than edges",
                code="plan.slots",
            )
        if self.count and count != self.count:
            raise PlanError(
                f"{count} histogram slots, the scheme says {self.count}; make them equal", code="plan.slots"
            )
        bounds = tuple(float(edge * scale) for edge in self.edges_of(count))
        if not _increasing(bounds):
            raise PlanError("histogram edges fall together once scaled; use fewer slots", code="plan.slots")
        return bounds

    def edges_of(self, count: int) -> tuple[Fraction, ...]:
        """The inclusive upper edges of all slots but the last, in raw units."""
        return tuple(self._edge(slot) for slot in range(count - 1))

    def _edge(self, slot: int) -> Fraction:
        match self.form:
            case "log2_ceil":
                return Fraction(1 << slot)
            case "log2_floor":
                return Fraction((1 << slot + 1) - 1)
            case "linear":
                return Fraction(self.minimum + (slot + 1) * self.width - 1)
        return self.edges[slot]

    def __str__(self) -> str:
        match self.form:
            case "linear":
                return f"linear:{self.width}:{self.minimum}" + (f":{self.count}" if self.count else "")
            case "edges":
                return "edges:" + ",".join(
                    str(float(edge)) if edge.denominator > 1 else str(edge) for edge in self.edges
                )
        return self.form + (f":{self.count}" if self.count else "")


BCC = SlotScheme("log2_floor")
"""What slots are taken for when nothing says more: bcc's and libbpf-tools' ``log2l()``."""


def parse_slots(text: str) -> SlotScheme:
    """Read a slot scheme such as ``log2_ceil`` or ``linear:10:0``.

    Raises:
        PlanError: it is none of the forms.
    """
    form, colon, rest = text.partition(":")
    parts = rest.split(":") if colon else []
    scheme = None
    if form in ("log2_ceil", "log2_floor") and len(parts) <= 1:
        count = _integer(parts[0]) if parts else 0
        scheme = SlotScheme(form, count=count) if count is not None else None
        largest = 64 if form == "log2_floor" else 65
        if scheme and (scheme.count > largest or (parts and scheme.count < 1)):
            scheme = None
    elif form == "linear" and 1 <= len(parts) <= 3:
        numbers = [_integer(part) for part in parts]
        if None not in numbers:
            width, minimum, count = [number or 0 for number in numbers] + [0] * (3 - len(numbers))
            if width >= 1 and 0 <= count <= SLOTS_LIMIT:
                scheme = SlotScheme(form, count=count, width=width, minimum=minimum)
    elif (
        form == "edges" and rest and len(edges := rest.split(",")) < SLOTS_LIMIT and all(map(_DECIMAL.fullmatch, edges))
    ):
        values = tuple(Fraction(edge) for edge in edges)
        if _increasing(values):
            scheme = SlotScheme(form, edges=values)
    if scheme is None:
        raise PlanError(f"slots {text[:200]!r}; expected {_FORMS}", code="plan.slots")
    return scheme


def _increasing(numbers: Iterable[float | Fraction]) -> bool:
    return all(low < high for low, high in pairwise(numbers))


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def parse_scale(text: str) -> Fraction:
    """Read a scale such as ``1e-9``, exactly.

    Raises:
        PlanError: it is no positive decimal number of a sane size.
    """
    scale = Fraction(text) if _DECIMAL.fullmatch(text) else Fraction(0)
    if not Fraction(1, 10**30) <= scale <= 10**30:
        raise PlanError(f"scale {text[:100]!r}; expected a positive decimal number such as 1e-9", code="plan.scale")
    return scale


def model_scale(scale: Fraction) -> Scale:
    """The model's form of a scale: a power of ten exactly, anything else as a factor."""
    for exp10 in range(-30, 31):
        if scale == Fraction(10) ** exp10:
            return Scale(exp10=exp10)
    return Scale(factor=float(scale))
