"""What the encoders need of an instrument that is the same for every series, compiled once."""

from __future__ import annotations

import struct
from functools import lru_cache

from exporter.model import Instrument, Kind, prometheus_name

from ._encode import Form

_KIND_NUMBERS = {Kind.COUNTER: 0, Kind.GAUGE: 1, Kind.HISTOGRAM: 2}
_EXPLICIT_BOUNDS_TAG = b"\x3a"  # HistogramDataPoint.explicit_bounds: field 7, packed doubles


def varint(value: int) -> bytes:
    """Encode a protobuf varint of a number that is not negative."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def bucket_edge(bound: float) -> str:
    """Say an upper edge as the value of ``le``: the shortest exact text, always with a point or an exponent.

    This is the canonical form of OpenMetrics, to which Prometheus 3 rewrites
    what it scrapes: written like this, series keep their names over its versions.
    """
    if bound == float("inf"):
        return "+Inf"
    text = repr(bound)
    digits, _, exponent = text.partition("e")
    if exponent:
        return f"{digits}e{exponent}" if exponent[0] in "+-" else f"{digits}e+{exponent.zfill(2)}"
    whole, _, fraction = digits.partition(".")
    figures = len(whole.lstrip("-"))
    if figures <= 6:
        return digits
    mantissa = (whole[-figures + 1 :] + ("" if fraction == "0" else fraction)).rstrip("0")
    return f"{whole[: 1 - figures]}{'.' if mantissa else ''}{mantissa}e+{figures - 1:02}"


@lru_cache(maxsize=4096)
def unit_words(instrument: Instrument) -> str:
    """Give the words a Prometheus name ends in for this unit: ``seconds``, ``bytes_per_second``, ``ratio``; or "".

    They are what the translation of names adds to a name that has none of them.
    """
    if not instrument.unit:
        return ""
    kind = Kind.GAUGE if instrument.kind is Kind.GAUGE else Kind.HISTOGRAM  # a counter's would end in _total
    return prometheus_name("x", kind=kind, unit=instrument.unit).removeprefix("x").removeprefix("_")


@lru_cache(maxsize=4096)
def compiled(instrument: Instrument, *, openmetrics: bool = False) -> Form:
    """Compile an instrument for both encoders.

    Args:
        instrument: What to compile.
        openmetrics: For that text, in which a histogram has a count if and only if it has a sum.
    """
    edges: tuple[bytes, ...] = ()
    bounds = b""
    if instrument.kind is Kind.HISTOGRAM:
        edges = tuple(f',le="{bucket_edge(bound)}"}} '.encode() for bound in (*instrument.bounds, float("inf")))
        if instrument.bounds:
            packed = struct.pack(f"<{len(instrument.bounds)}d", *instrument.bounds)
            bounds = _EXPLICIT_BOUNDS_TAG + varint(len(packed)) + packed
    return Form(
        kind=_KIND_NUMBERS[instrument.kind],
        cell_type=int(instrument.cell_type),
        exp10=instrument.scale.exp10,
        factor=instrument.scale.factor,
        first_cell=instrument.first_cell,
        has_sum=instrument.has_sum,
        name=instrument.prometheus_name.encode(),
        edges=edges,
        bounds=bounds,
        has_count=instrument.has_sum or not openmetrics,
    )
