"""Any frame an encoder may meet, for property tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from exporter.model import CellType, Instrument, Kind, Scale

from .frame_literals import FrameLiteral, SeriesLiteral, counter, gauge, histogram

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For machines where others work too."""

BOUNDS = (1e-9, 2e-9, 0.000128, 1.0, 1048576.0)

label_value = st.text(st.characters(codec="utf-8"), max_size=12)
scales = st.builds(Scale, st.integers(-24, 24) | st.just(-9), st.sampled_from([1.0, 1.0, 0.5, 1 / 3, 4096.0]))


@st.composite
def frames(draw: st.DrawFn, name: str) -> FrameLiteral:
    """Any frame: instruments of all kinds and cell types side by side, any labels, dead series between live ones."""
    instruments: list[Instrument] = []
    cells: list[st.SearchStrategy[int | float]] = []
    for index in range(draw(st.integers(0, 4))):
        cell_type = draw(st.sampled_from(CellType))
        cell: st.SearchStrategy[int | float] = {
            CellType.U64: st.integers(0, (1 << 64) - 1),
            CellType.I64: st.integers(-(1 << 63), (1 << 63) - 1),
            CellType.F64: st.floats(),
        }[cell_type]
        given_fields = {"first_cell": len(cells), "cell_type": cell_type, "scale": draw(scales)}
        help_text = draw(st.sampled_from(["", "Plain.", 'With \\ and\nbreak and "quotes".']))
        kind = draw(st.sampled_from(Kind))
        full_name = f"{name}_{index}_{kind.value}"
        common = {"prometheus_name": full_name, "description": help_text, **given_fields}
        if kind is Kind.HISTOGRAM:
            bounds = BOUNDS[: draw(st.integers(0, len(BOUNDS)))]
            has_sum = draw(st.booleans())
            instruments.append(histogram(full_name, bounds=bounds, has_sum=has_sum, **common))
            cells += [st.integers(0, (1 << 64) - 1)] * (len(bounds) + 1) + ([cell] if has_sum else [])
        else:
            instruments.append((counter if kind is Kind.COUNTER else gauge)(full_name, **common))
            cells.append(cell)
    series = [
        SeriesLiteral(
            tuple((label, draw(label_value)) for label in draw(st.sampled_from([(), ("a",), ("a", "device", "z")]))),
            tuple(draw(cell) for cell in cells),
            live=draw(st.booleans()),
            rowless=draw(st.booleans()),
        )
        for _ in range(draw(st.integers(0, 4)))
    ]
    return FrameLiteral(instruments, series)
