"""Histogram slots: no value is above the edge of the bucket that counts it, and edges are exact."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import PlanError
from exporter.model import Scale
from exporter.plan.slots import model_scale, parse_scale, parse_slots

ONE = Fraction(1)


@pytest.mark.parametrize(("value", "slot"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (7, 2), (8, 3)])
def test_log2_floor_value_lands_under_its_own_upper_edge(value: int, slot: int) -> None:
    """Slot k counts 2^k to 2^(k+1) - 1, slot 0 also 0."""
    bounds = parse_slots("log2_floor").bounds(10, ONE)
    assert value <= bounds[slot]
    assert slot == 0 or value > bounds[slot - 1]


@pytest.mark.parametrize(("value", "slot"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4)])
def test_log2_ceil_value_lands_under_its_own_upper_edge(value: int, slot: int) -> None:
    """Slot k counts from above 2^(k-1) to 2^k, slot 0 counts 0 and 1."""
    bounds = parse_slots("log2_ceil").bounds(10, ONE)
    assert value <= bounds[slot]
    assert slot == 0 or value > bounds[slot - 1]


@pytest.mark.parametrize(("value", "slot"), [(-5, 0), (-1, 0), (0, 1), (4, 1), (5, 2)])
def test_linear_value_lands_under_its_own_upper_edge(value: int, slot: int) -> None:
    """Slot k counts from min + k*width to below min + (k+1)*width, of integers."""
    bounds = parse_slots("linear:5:-5").bounds(4, ONE)
    assert bounds == (-1, 4, 9)
    assert value <= bounds[slot]
    assert slot == 0 or value > bounds[slot - 1]


@pytest.mark.parametrize(
    ("slots", "scale", "count", "expected"),
    [
        ("log2_ceil", "1e-6", 9, (1e-06, 2e-06, 4e-06, 8e-06, 1.6e-05, 3.2e-05, 6.4e-05, 0.000128)),
        ("log2_floor", "1e-6", 4, (1e-06, 3e-06, 7e-06)),
        ("log2_ceil", "1e-9", 3, (1e-09, 2e-09)),
        ("edges:0.5,1,2.5", "1", 4, (0.5, 1, 2.5)),
        ("edges:10", "0.1", 2, (1.0,)),
        ("log2_ceil:1", "1", 1, ()),
    ],
)
def test_bounds_are_the_nearest_floats_to_the_exact_edges(
    slots: str, scale: str, count: int, expected: tuple[float, ...]
) -> None:
    """2^7 us is 0.000128, not 0.00012800000000000002: le labels are compared as text."""
    assert parse_slots(slots).bounds(count, parse_scale(scale)) == expected


@given(
    st.integers(1, 64), st.sampled_from(["log2_ceil", "log2_floor", "linear:3", "linear:7:-100"]), st.integers(-12, 3)
)
def test_bounds_increase(count: int, slots: str, exponent: int) -> None:
    """OTLP and Prometheus refuse anything else."""
    bounds = parse_slots(slots).bounds(count, Fraction(10) ** exponent)
    assert len(bounds) == count - 1
    assert all(low < high for low, high in pairwise(bounds))


@pytest.mark.parametrize(
    ("text", "bits", "slots"),
    [
        ("log2_ceil", 64, 65),
        ("log2_floor", 32, 32),
        ("edges:1,2", 64, 3),
        ("linear:1", 64, 0),
        ("linear:1:0:12", 64, 12),
    ],
)
def test_number_of_slots_is_known_where_it_can_be(text: str, bits: int, slots: int) -> None:
    """A slot in a key does not say how many there are; linear ones do not end."""
    assert parse_slots(text).slots_for(bits) == slots


@pytest.mark.parametrize(
    "text",
    [
        "", "log2", "log2_ceil:", "log2_ceil:0", "log2_ceil:66", "log2_floor:65", "log2_ceil:1:2", "linear", "linear:0",
        "linear:-1", "linear:1:2:3:4", "linear:x", "linear:1e3", "edges", "edges:", "edges:1,1", "edges:2,1",
        "edges:1,,2",
        "edges:nan", "edges:" + ",".join(map(str, range(600))), "linear:1:0:100000", "linear:" + "9" * 40,
    ],
)  # fmt: skip
def test_scheme_of_no_known_form_is_refused_with_the_forms(text: str) -> None:
    """The message says what can be written."""
    with pytest.raises(PlanError, match="expected log2_ceil"):
        parse_slots(text)


@pytest.mark.parametrize(("text", "count"), [("edges:1,2", 2), ("edges:1,2", 4), ("log2_ceil:8", 9), ("linear:1", 0)])
def test_scheme_and_slots_must_agree(text: str, count: int) -> None:
    """A wrong edge is worse than none."""
    with pytest.raises(PlanError):
        parse_slots(text).bounds(count, ONE)


def test_edges_that_fall_together_once_scaled_are_refused() -> None:
    """Equal floats would be two buckets of one name."""
    with pytest.raises(PlanError, match="fall together"):
        parse_slots("edges:1,1.00000000000000000001").bounds(3, ONE)


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("1", Scale()),
        ("1e-9", Scale(exp10=-9)),
        ("0.000001", Scale(exp10=-6)),
        ("1000", Scale(exp10=3)),
        ("1024", Scale(factor=1024.0)),
        ("0.25", Scale(factor=0.25)),
        (".5e1", Scale(factor=5.0)),
    ],
)
def test_power_of_ten_stays_exact(text: str, scale: Scale) -> None:
    """Encoders then print decimals without floating point."""
    assert model_scale(parse_scale(text)) == scale


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1e", "nan", "inf", "1e99", "1e-99", "1e999999999", "0x10", "1_0", "9" * 50]
)
def test_scale_that_is_no_sane_positive_number_is_refused(text: str) -> None:
    """An exponent of nine digits would not end."""
    with pytest.raises(PlanError, match="expected a positive decimal number"):
        parse_scale(text)


@pytest.mark.parametrize("text", ["log2_ceil", "log2_floor:10", "linear:3:-1", "linear:3:0:9", "edges:1,2.5"])
def test_scheme_shows_as_it_is_written(text: str) -> None:
    """Messages repeat it."""
    assert str(parse_slots(text)) == text
