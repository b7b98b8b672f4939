"""Numbers as text: native writers against their statement in Python."""

import math
import struct
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exporter.export import _encode
from exporter.export.form import bucket_edge
from tests.support.export_twins import decimal_text, double_text, edge_text
from tests.support.frame_strategies import patient

any_double = st.integers(0, (1 << 64) - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])


@pytest.mark.parametrize(
    ("value", "exp10", "text"),
    [
        (0, -9, "0"),
        (1, -9, "0.000000001"),
        (123456789, -9, "0.123456789"),
        (1_000_000_000, -9, "1"),
        (1_500_000_000, -9, "1.5"),
        (-1_500_000_000, -9, "-1.5"),
        (10, -1, "1"),
        (7, 3, "7000"),
        (0, 3, "0"),
        (-(1 << 63), 0, "-9223372036854775808"),
        ((1 << 63) - 1, -22, "0.0009223372036854775807"),
        (-(1 << 63), 22, "-92233720368547758080000000000000000000000"),
    ],
)
def test_scaled_integer_is_an_exact_decimal(value: int, exp10: int, text: str) -> None:
    """No digit comes from floating point, and no zero is there that says nothing."""
    assert _encode.decimal(value, exp10).decode() == text


@patient
@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-22, 22))
def test_scaled_integer_equals_its_twin_and_its_meaning(value: int, exp10: int) -> None:
    """For every 64-bit integer and every exponent it is called with."""
    text = _encode.decimal(value, exp10).decode()
    assert text == decimal_text(value, exp10)
    assert Decimal(text) == Decimal(value).scaleb(exp10)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (5e-324, "5e-324"),
        (2.2250738585072014e-308, "2.2250738585072014e-308"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (0.1, "0.1"),
        (0.000128, "0.000128"),
        (0.0001, "0.0001"),
        (0.00009, "9e-05"),
        (1e-9, "1e-09"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (9007199254740993.0, "9007199254740992"),
        (2.0**60, "1152921504606847000"),
        (math.nan, "NaN"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
    ],
)
def test_double_is_the_shortest_text_that_reads_back(value: float, text: str) -> None:
    """Edges of the format and of the doubles."""
    assert _encode.shortest(value).decode() == text


@patient
@given(any_double | st.floats() | st.integers(-1074, 1023).map(lambda k: math.ldexp(1.0, k)))
@example(9.5367431640625e-07)
def test_double_equals_its_twin_and_reads_back(value: float) -> None:
    """Every bit pattern, powers of two (whose lower neighbour is nearer) included."""
    text = _encode.shortest(value).decode()
    assert text == double_text(value)
    assert struct.pack("<d", float(text)) == struct.pack("<d", value) or math.isnan(value)


@pytest.mark.parametrize(
    ("bound", "text"),
    [
        (0.0, "0.0"),
        (1.0, "1.0"),
        (0.000128, "0.000128"),
        (1e-9, "1e-09"),
        (0.00001024, "1.024e-05"),
        (524288.0, "524288.0"),
        (1e6, "1e+06"),
        (1048576.0, "1.048576e+06"),
        (-2.5, "-2.5"),
        (1e16, "1e+16"),
        (12345678.5, "1.23456785e+07"),
        (math.inf, "+Inf"),
    ],
)
def test_bucket_edge_is_canonical(bound: float, text: str) -> None:
    """As OpenMetrics writes it, which Prometheus 3 leaves as it is."""
    assert bucket_edge(bound) == text


@patient
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_bucket_edge_equals_its_twin_and_reads_back(bound: float) -> None:
    """The text of an edge is the edge."""
    text = bucket_edge(bound)
    assert float(text) == bound
    assert text == edge_text(bound)


@patient
@given(st.integers(0, 62), st.sampled_from([-9, -6, -3, 0]))
def test_power_of_two_edge_shows_no_rounding(slot: int, exp10: int) -> None:
    """2**k ns is printed with the digits of 2**k, as far as a double keeps them."""
    exact = Decimal(1 << slot).scaleb(exp10)
    text = Decimal(bucket_edge(float(exact)))
    assert text == exact or len(exact.normalize().as_tuple().digits) > 15
