"""Which format and coding a client gets: scrapers' own headers, RFC 9110's rules, and nonsense."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.export.negotiation import accepted, accepts_gzip
from exporter.export.prometheus import Exposition

OLD, NEW, OPEN = Exposition.TEXT_0_0_4, Exposition.TEXT_1_0_0, Exposition.OPENMETRICS_1_0_0

PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", OLD),
        ("*/*", OLD),
        (BROWSER, OLD),
        (PROMETHEUS_3, OPEN),
        (f"{PROTOBUF};q=0.7,{PROMETHEUS_3}", OPEN),
        # Prometheus 2.42
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            OPEN,
        ),
        # Prometheus 2.20: an OpenMetrics that is not written here
        ("application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OLD),
        ("text/plain", OLD),
        ("text/*", OLD),
        ("application/*", OPEN),
        ("text/plain;version=1.0.0", NEW),
        ("text/plain;version=2.0.0", OLD),
        ("application/openmetrics-text", OPEN),
        ("application/openmetrics-text;version=2.0.0", OLD),
        ("application/openmetrics-text;version=99", OLD),
        ("application/openmetrics-text;version=1.0", OLD),
        (PROTOBUF, OLD),
        ("application/json", OLD),
    ],
)
def test_what_clients_send_gets_the_format_they_mean(header: str, expected: Exposition) -> None:
    """Old and new scrapers, browsers, curl; what nobody writes here falls back to 0.0.4."""
    assert accepted(header).exposition is expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("text/plain;q=0.5, application/openmetrics-text;q=0.6", OPEN),
        ("text/plain;q=0.6, application/openmetrics-text;q=0.5", OLD),
        ("text/plain;version=1.0.0;q=0.51,text/plain;version=0.0.4;q=.5", NEW),
        # equal weights: the more specific, then the one said first
        ("*/*, application/openmetrics-text", OPEN),
        ("application/openmetrics-text, text/plain", OPEN),
        ("text/plain, application/openmetrics-text", OLD),
        ("*/*;q=0.1, text/plain;q=0.1;version=1.0.0", NEW),
        # zero takes out exactly what it names
        ("text/plain;version=0.0.4;q=0, */*", NEW),
        ("text/*;q=0, */*", OPEN),
        ("text/plain;q=0, text/plain;version=1.0.0;q=0.1, */*;q=0.01", NEW),
        ("application/openmetrics-text;q=0.0, */*;q=0.2", OLD),
        ("application/openmetrics-text;q=0,text/plain;q=0", OLD),
        ("*/*;q=0", OLD),
    ],
)
def test_weights_decide(header: str, expected: Exposition) -> None:
    """The most specific range that fits a format gives its weight."""
    assert accepted(header).exposition is expected


@pytest.mark.parametrize(
    "header",
    [
        'application/openmetrics-text; version="1.0.0"',
        "APPLICATION/OpenMetrics-Text ; Version=1.0.0 ; Q=1.000",
        " ,, application/openmetrics-text;version=1.0.0\t;q=0.3 , ",
        'text/plain;q=nonsense, application/openmetrics-text;foo="a,b;q=0";version=1.0.0;q=0.1',
        "text/plain;q=2, application/openmetrics-text;q=0.1",
        "text/plain;q=-1, text/plain;version, text/plain;;, application/openmetrics-text;q=0.1",
    ],
)
def test_every_way_to_write_it_is_read_and_malformed_ranges_are_passed_over(header: str) -> None:
    """Case, blanks, quoted strings; an element that is none does not spoil the others."""
    assert accepted(header).exposition is OPEN


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("allow-utf-8", "; escaping=allow-utf-8"),
        ("underscores", "; escaping=underscores"),
        ("values", "; escaping=values"),
        # would double every underscore; this is what names look like instead
        ("dots", "; escaping=underscores"),
        ("martian", ""),
    ],
)
@pytest.mark.parametrize("exposition", list(Exposition))
def test_escaping_scheme_is_said_as_it_is(asked: str, said: str, exposition: Exposition) -> None:
    """Names that need no escaping are the same under every scheme but one."""
    base = exposition.content_type.replace("; charset=utf-8", "")
    found = accepted(f"{base}; escaping={asked}")
    assert (found.exposition, found.content_type) == (exposition, exposition.content_type + said)


def test_escaping_scheme_of_another_range_is_not_taken_over() -> None:
    """Each range speaks for itself."""
    header = "application/openmetrics-text;version=0.0.1;escaping=values,text/plain;version=0.0.4;q=0.5"
    assert accepted(header).content_type == "text/plain; version=0.0.4; charset=utf-8"


def test_only_what_is_offered_is_chosen() -> None:
    """A handler that writes one format is asked for no other."""
    assert accepted(PROMETHEUS_3, (OLD,)).exposition is OLD
    assert accepted(PROMETHEUS_3, (OLD, NEW)).exposition is NEW


@pytest.mark.slow
@given(st.text(max_size=300) | st.from_regex(r'([a-z*]+/[a-z*]+(;[a-z]+=("[^"]*"|[0-9.]*))*,?)*', fullmatch=True))
def test_whatever_the_header_there_is_an_answer(header: str) -> None:
    """Never an exception, always one of three types."""
    assert accepted(header).content_type.startswith(tuple(each.content_type for each in Exposition))
    assert accepts_gzip(header) in (True, False)


@pytest.mark.parametrize("unit", ['"', '\\"', ";q=", 'a/b;c="\\"', ",", "*/*,"])
def test_hostile_header_costs_little(unit: str) -> None:
    """As long as a header line may be, and made to be read again and again."""
    header = (unit * (65536 // len(unit)))[:65536]
    begin = time.process_time()
    accepted(header)
    accepts_gzip(header)
    assert time.process_time() - begin < 0.5


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("x-gzip", True),
        ("GZIP", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=0, *", False),
        ("identity", False),
        ("identity;q=1, gzip;q=0.5", False),
        ("identity;q=0, gzip;q=0.001", True),
        ("br, zstd", False),
        ("gzip;q=x", False),
    ],
)
def test_gzip_is_sent_to_whoever_takes_it_gladly(header: str, expected: bool) -> None:
    """Weights count, and not being named is no consent."""
    assert accepts_gzip(header) is expected
