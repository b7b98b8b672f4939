"""Prometheus text from literals: against its twin, another parser, and promtool."""

import math
import re
import shutil
import subprocess
from decimal import Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from exporter.export import _encode, prometheus
from exporter.export.form import compiled
from exporter.export.prometheus import Exposition, registry_text
from exporter.model import CellType, Instrument, Kind, Scale, Scope
from tests.support.export_twins import prometheus_text
from tests.support.frame_literals import FrameLiteral, SeriesLiteral, counter, gauge, histogram, snapshot
from tests.support.frame_strategies import BOUNDS, frames, label_value, patient


def render(*frames: FrameLiteral, own: bytes = b"") -> str:
    """The scrape of some frames."""
    return prometheus.render(snapshot(*frames), own).decode()


@patient
@given(st.lists(st.sampled_from(["one", "two"]).flatmap(frames), max_size=3))
def test_text_equals_its_twin(drawn: list[FrameLiteral]) -> None:
    """Whatever the instruments, numbers, labels and dead series: the same bytes as said in Python."""
    assert prometheus.render(snapshot(*drawn)) == prometheus_text(drawn)


@patient
@given(st.lists(st.tuples(label_value, st.integers(0, (1 << 63) - 1)), min_size=1, max_size=5))
def test_another_parser_reads_back_labels_and_numbers(rows: list[tuple[str, int]]) -> None:
    """prometheus-client's parser finds exactly the label values and the numbers that went in."""
    frame = FrameLiteral(
        [counter(scale=Scale(-9))], [SeriesLiteral((("value", text),), (cell,)) for text, cell in rows]
    )
    (family,) = text_string_to_metric_families(render(frame))
    assert family.type == "counter"
    found = [(sample.labels["value"], sample.value) for sample in family.samples]
    assert found == [(text, float(Decimal(cell).scaleb(-9))) for text, cell in rows]


def test_family_of_two_frames_is_contiguous_under_one_header() -> None:
    """Two images with one metric: HELP and TYPE once, then all samples."""
    first = FrameLiteral([counter(), gauge(first_cell=1)], [SeriesLiteral((("tier", "db"),), (1, 2))])
    second = FrameLiteral([counter()], [SeriesLiteral((("tier", "web"),), (3,))], scope=Scope("other"))
    assert render(first, second) == (
        "# HELP ebpf_things_total Things.\n"
        "# TYPE ebpf_things_total counter\n"
        'ebpf_things_total{tier="db"} 1\n'
        'ebpf_things_total{tier="web"} 3\n'
        "# HELP ebpf_level A level.\n"
        "# TYPE ebpf_level gauge\n"
        'ebpf_level{tier="db"} 2\n'
    )


def test_histogram_is_cumulative_with_exact_edges() -> None:
    """Buckets add up, the last is +Inf and equals the count; the sum is in seconds."""
    instrument = histogram(bounds=(0.000128, 1.0), has_sum=True, scale=Scale(-9))
    frame = FrameLiteral([instrument], [SeriesLiteral((("device", "sda"),), (3, 4, 5, 1_000_000_128))])
    assert render(frame).splitlines()[2:] == [
        'ebpf_latency_seconds_bucket{device="sda",le="0.000128"} 3',
        'ebpf_latency_seconds_bucket{device="sda",le="1.0"} 7',
        'ebpf_latency_seconds_bucket{device="sda",le="+Inf"} 12',
        'ebpf_latency_seconds_sum{device="sda"} 1.000000128',
        'ebpf_latency_seconds_count{device="sda"} 12',
    ]


def test_histogram_without_labels_and_sum_has_neither() -> None:
    """No stray comma before ``le``, no ``_sum`` nobody counted."""
    frame = FrameLiteral([histogram(bounds=(1.0,))], [SeriesLiteral((), (1, 2))])
    assert render(frame).splitlines()[2:] == [
        'ebpf_latency_seconds_bucket{le="1.0"} 1',
        'ebpf_latency_seconds_bucket{le="+Inf"} 3',
        "ebpf_latency_seconds_count 3",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(math.nan, "NaN"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (-0.0, "-0"), (2.5, "2.5")]
)
def test_float_gauge_shows_every_double(value: float, text: str) -> None:
    """Not-a-number and the infinities have names in the format."""
    frame = FrameLiteral([gauge(cell_type=CellType.F64)], [SeriesLiteral((), (value,))])
    assert render(frame).endswith(f"\nebpf_level {text}\n")


def test_family_whose_series_are_all_dead_is_not_mentioned() -> None:
    """A header without samples says nothing to a scraper."""
    dead = FrameLiteral([counter()], [SeriesLiteral((), (1,), live=False)])
    assert render(dead) == ""
    assert render(FrameLiteral([counter()], [])) == ""
    assert render(dead, FrameLiteral([gauge()], [SeriesLiteral((), (1,))])).count("# TYPE") == 1


def test_gauge_of_a_row_that_is_gone_is_not_shown_but_its_counter_is() -> None:
    """Instruments side by side in one frame part where the row ends."""
    rows = [SeriesLiteral((("a", "here"),), (1, 2)), SeriesLiteral((("a", "gone"),), (3, 0), rowless=True)]
    text = render(FrameLiteral([counter(), gauge(first_cell=1)], rows))
    assert 'ebpf_things_total{a="gone"} 3\n' in text
    assert [line for line in text.splitlines() if line.startswith("ebpf_level")] == ['ebpf_level{a="here"} 2']


def test_help_is_escaped() -> None:
    """A line break in a description cannot end its line."""
    frame = FrameLiteral([counter(description='a\\b\nc"d')], [SeriesLiteral((), (1,))])
    assert '# HELP ebpf_things_total a\\\\b\\nc"d\n' in render(frame)


OWN = b"# HELP skep_up Up.\n# TYPE skep_up gauge\nskep_up 1.0\n# TYPE skep_seconds histogram\nskep_seconds_count 0\n"


def test_own_metrics_follow_the_images_metrics() -> None:
    """The agent's rendered metrics end the scrape as they are."""
    frame = FrameLiteral([counter()], [SeriesLiteral((), (1,))])
    assert render(frame, own=OWN).endswith("ebpf_things_total 1\n" + OWN.decode())
    assert render(own=OWN) == OWN.decode()


@pytest.mark.parametrize("name", ["skep_up", "skep_seconds", "skep_seconds_count"])
def test_image_cannot_repeat_a_family_of_the_agent(name: str) -> None:
    """The image's family is left out, and the conflict can be shown to someone."""
    frame = FrameLiteral([gauge(prometheus_name=name)], [SeriesLiteral((), (1,))])
    assert render(frame, own=OWN) == OWN.decode()
    (conflict,) = prometheus.conflicts([frame], OWN)
    assert (conflict.name, "agent" in conflict.reason) == (name, True)


def test_later_family_of_another_kind_is_left_out() -> None:
    """A mixed family would fail the whole scrape; the first keeps the name."""
    first = FrameLiteral([counter(prometheus_name="ebpf_x")], [SeriesLiteral((), (1,))], scope=Scope("first"))
    second = FrameLiteral([gauge(prometheus_name="ebpf_x")], [SeriesLiteral((), (2,))], scope=Scope("second"))
    assert render(first, second) == render(first)
    assert prometheus.conflicts([first, second])[0].reason == "it is a gauge, metric 'ebpf_x' of 'first' is a counter"


def test_metric_named_like_a_histograms_series_is_left_out() -> None:
    """``x_count`` beside a histogram ``x`` would be two things under one name."""
    first = FrameLiteral([histogram(prometheus_name="x", bounds=(1.0,))], [SeriesLiteral((), (1, 2))])
    second = FrameLiteral([gauge(prometheus_name="x_count")], [SeriesLiteral((), (2,))])
    assert render(first, second) == render(first)
    assert [conflict.name for conflict in prometheus.conflicts([second, first])] == ["x"]


def test_instrument_beyond_the_frames_cells_is_refused() -> None:
    """A plan and a frame that do not fit are a bug that must not read foreign memory."""
    frame = FrameLiteral([counter()], [SeriesLiteral((), (1,))])
    with pytest.raises(ValueError, match="reads 3 cells, series of this frame have 1"):
        _encode.text([(b"", [(frame.view(), compiled(counter(first_cell=2)))])], b"")


def test_frame_of_another_version_is_refused() -> None:
    """Extensions built apart say so instead of misreading each other."""
    frame = FrameLiteral([counter()], [SeriesLiteral((), (1,))], version=2)
    with pytest.raises(ValueError, match="version 2, this encoder reads 1"):
        render(frame)


def test_longest_numbers_fit() -> None:
    """The room reserved per sample holds the widest number of each kind."""
    wide = [
        counter("ebpf.a", scale=Scale(22)),
        gauge("ebpf.b", scale=Scale(22), cell_type=CellType.I64, first_cell=1),
        gauge("ebpf.c", cell_type=CellType.F64, first_cell=2),
        histogram(bounds=(1e-300,), has_sum=True, scale=Scale(22), first_cell=3),
    ]
    most = (1 << 64) - 1
    row = SeriesLiteral((), (most, -(1 << 63), -2.2250738585072014e-308, most, 0, most))
    frame = FrameLiteral(wide, [row] * 100)
    assert prometheus.render(snapshot(frame)) == prometheus_text([frame])


# ---- OpenMetrics and text 1.0.0 ----


def openmetrics(*frames: FrameLiteral, own: bytes = b"") -> str:
    """The scrape of some frames, as OpenMetrics."""
    return prometheus.render(snapshot(*frames), own, Exposition.OPENMETRICS_1_0_0).decode()


def samples(text: str) -> list[str]:
    """The lines that are no comment."""
    return [line for line in text.split("\n") if line and not line.startswith("#")]


@patient
@given(st.lists(st.sampled_from(["one", "two"]).flatmap(frames), max_size=3))
def test_samples_are_the_same_bytes_in_every_format(drawn: list[FrameLiteral]) -> None:
    """A scraper that changes its mind about the format goes on with the same series; headers and the end differ.

    Only the count of a histogram without a sum is none of OpenMetrics.
    """
    plain = prometheus.render(snapshot(*drawn))
    assert prometheus.render(snapshot(*drawn), b"", Exposition.TEXT_1_0_0) == plain
    text = openmetrics(*drawn)
    instruments = [instrument for frame in drawn for instrument in frame.instruments]
    histograms = [instrument for instrument in instruments if instrument.kind is Kind.HISTOGRAM]
    bare = {f"{each.prometheus_name}_count" for each in histograms if not each.has_sum}
    # Of two families in one, or of one name that is another's sample, the lines cannot be told apart here.
    assume(not bare & {f"{each.prometheus_name}_count" for each in histograms if each.has_sum})
    assume(not bare & {each.prometheus_name for each in instruments})
    assert samples(text) == [line for line in samples(plain.decode()) if re.split("[{ ]", line)[0] not in bare]
    assert text.count("# TYPE ") == plain.count(b"# TYPE ")
    assert text.endswith("# EOF\n")
    assert text.count("# EOF") == 1


def test_openmetrics_names_a_counters_family_without_total_and_says_its_unit() -> None:
    """As the standard has it: TYPE, HELP and UNIT are of the family, samples have the suffix."""
    instruments = [
        counter("ebpf.io", prometheus_name="ebpf_io_bytes_total", unit="By", description='Says "x".\n'),
        gauge("ebpf.free", prometheus_name="ebpf_free_ratio", unit="1", first_cell=1, description=""),
        histogram(
            "ebpf.wait", prometheus_name="ebpf_wait_seconds", unit="s", first_cell=2, has_sum=True, bounds=(1.0,)
        ),
    ]
    frame = FrameLiteral(instruments, [SeriesLiteral((("a", "x"),), (5, 0, 1, 2, 3))])
    assert openmetrics(frame) == (
        '# HELP ebpf_io_bytes Says \\"x\\".\\n\n'
        "# TYPE ebpf_io_bytes counter\n"
        "# UNIT ebpf_io_bytes bytes\n"
        'ebpf_io_bytes_total{a="x"} 5\n'
        "# TYPE ebpf_free_ratio gauge\n"
        "# UNIT ebpf_free_ratio ratio\n"
        'ebpf_free_ratio{a="x"} 0\n'
        "# HELP ebpf_wait_seconds Latency.\n"
        "# TYPE ebpf_wait_seconds histogram\n"
        "# UNIT ebpf_wait_seconds seconds\n"
        'ebpf_wait_seconds_bucket{a="x",le="1.0"} 1\n'
        'ebpf_wait_seconds_bucket{a="x",le="+Inf"} 3\n'
        'ebpf_wait_seconds_sum{a="x"} 3\n'
        'ebpf_wait_seconds_count{a="x"} 3\n'
        "# EOF\n"
    )


def test_histogram_without_a_sum_has_buckets_only_in_openmetrics() -> None:
    """A count without a sum makes prometheus-client refuse the scrape; promtool takes the text."""
    instruments = [
        histogram("ebpf.bare", prometheus_name="ebpf_bare_seconds", unit="s", bounds=(1.0,)),
        histogram(
            "ebpf.full", prometheus_name="ebpf_full_seconds", unit="s", first_cell=2, has_sum=True, bounds=(1.0,)
        ),
    ]
    frame = FrameLiteral(
        instruments, [SeriesLiteral((("a", "x"),), (1, 2, 4, 8, 9)), SeriesLiteral((), (16, 32, 64, 128, 9))]
    )
    text = openmetrics(frame)
    assert samples(text)[:4] == [
        'ebpf_bare_seconds_bucket{a="x",le="1.0"} 1',
        'ebpf_bare_seconds_bucket{a="x",le="+Inf"} 3',
        'ebpf_bare_seconds_bucket{le="1.0"} 16',
        'ebpf_bare_seconds_bucket{le="+Inf"} 48',
    ]
    families = {family.name: family for family in openmetrics_families(text)}
    assert {sample.name for sample in families["ebpf_bare_seconds"].samples} == {"ebpf_bare_seconds_bucket"}
    assert {sample.name for sample in families["ebpf_full_seconds"].samples} == {
        "ebpf_full_seconds_bucket",
        "ebpf_full_seconds_sum",
        "ebpf_full_seconds_count",
    }
    plain = prometheus.render(snapshot(frame))
    assert b'ebpf_bare_seconds_count{a="x"} 3\n' in plain
    promtool = shutil.which("promtool")
    if promtool:
        checked = subprocess.run([promtool, "check", "metrics"], input=plain, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("name", "unit"),
    [("ebpf_bytes_read_total", "By"), ("ebpf_calls_total", "{call}"), ("ebpf_renamed", "s"), ("ebpfbytes_total", "By")],
)
def test_unit_that_does_not_end_the_name_is_not_said(name: str, unit: str) -> None:
    """A scraper refuses the whole scrape over a UNIT that is no suffix."""
    frame = FrameLiteral([counter(prometheus_name=name, unit=unit)], [SeriesLiteral((), (1,))])
    assert "# UNIT" not in openmetrics(frame)


def test_counter_whose_family_cannot_have_its_name_is_unknown_and_keeps_its_series() -> None:
    """Renamed without ``_total``, or beside a gauge of the family's name: nothing is lost, no name clashes."""
    frame = FrameLiteral(
        [
            counter("a", prometheus_name="ebpf_renamed"),
            counter("b", prometheus_name="ebpf_x_total", first_cell=1),
            gauge("c", prometheus_name="ebpf_x", first_cell=2),
            counter("d", prometheus_name="ebpf_y_total", first_cell=3),
            gauge("e", prometheus_name="ebpf_y_created", first_cell=4),
        ],
        [SeriesLiteral((), (1, 2, 3, 4, 5))],
    )
    text = openmetrics(frame)
    assert samples(text) == samples(render(frame))
    types = {family.name: family.type for family in openmetrics_families(text)}
    assert types == {
        "ebpf_renamed": "unknown",
        "ebpf_x_total": "unknown",
        "ebpf_x": "gauge",
        "ebpf_y_total": "unknown",
        "ebpf_y_created": "gauge",
    }


def own_registry() -> CollectorRegistry:
    """Metrics such as the agent has of itself."""
    registry = CollectorRegistry()
    Counter("skep_events", "Events.", ["image"], registry=registry).labels("dns").inc(3)
    Gauge("skep_build_info", "Build.", registry=registry).set(1)
    Histogram("skep_wait_seconds", 'With "quotes".', registry=registry).observe(1)
    Info("skep_thing", "Thing.", registry=registry).info({"version": "1"})
    return registry


@pytest.mark.parametrize("exposition", list(Exposition))
def test_own_metrics_end_the_scrape_in_the_same_format(exposition: Exposition) -> None:
    """One set of families, each once; OpenMetrics has its end once, behind both parts."""
    own = registry_text(own_registry(), exposition)
    frame = FrameLiteral([counter()], [SeriesLiteral((), (1,))])
    text = prometheus.render(snapshot(frame), own, exposition).decode()
    families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(families) == len(set(families))
    if exposition.is_openmetrics:
        assert text.endswith("# EOF\n")
        assert text.count("# EOF") == 1
        types = {family.name: family.type for family in openmetrics_families(text)}
        assert types["skep_events"] == types["ebpf_things"] == "counter"
    else:
        assert "# EOF" not in text
        types = {family.name: family.type for family in text_string_to_metric_families(text)}
        assert types["skep_events"] == types["ebpf_things"] == "counter"


@pytest.mark.parametrize("name", ["skep_events_total", "skep_events", "skep_build_info", "skep_wait_seconds_count"])
def test_conflict_with_the_agents_own_is_one_in_every_format(name: str) -> None:
    """A metric is never there or not by what the scraper asked for."""
    frame = FrameLiteral([gauge(prometheus_name=name)], [SeriesLiteral((), (1,))])
    for exposition in Exposition:
        own = registry_text(own_registry(), exposition)
        assert [each.name for each in prometheus.conflicts([frame], own)] == [name]
        assert prometheus.render(snapshot(frame), own, exposition) == own


@patient
@given(
    st.lists(st.tuples(label_value, st.integers(0, (1 << 53) - 1)), min_size=1, max_size=5, unique_by=lambda r: r[0])
)
def test_openmetrics_parser_reads_back_labels_and_numbers(rows: list[tuple[str, int]]) -> None:
    """prometheus-client's parser of the standard finds counters and histograms as they went in."""
    instruments: list[Instrument] = [counter(), histogram(bounds=BOUNDS, has_sum=True, first_cell=1)]
    cells = [(cell, 1, 2, 3, 4, 5, 6, 7) for _, cell in rows]
    frame = FrameLiteral(
        instruments,
        [SeriesLiteral((("value", text),), cell) for (text, _), cell in zip(rows, cells, strict=True)],
    )
    things, waits = openmetrics_families(openmetrics(frame))
    assert [(each.labels["value"], each.value) for each in things.samples] == [
        (text, float(cell)) for text, cell in rows
    ]
    counts = [each.value for each in waits.samples if each.name.endswith("_count")]
    assert counts == [21.0] * len(rows)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_complain_about() -> None:
    """A counter, a gauge and a histogram pass the format check and the naming lint."""
    first = FrameLiteral(
        [
            counter("ebpf.block.request.errors", description="Requests that failed."),
            gauge("ebpf.open.files", first_cell=1, cell_type=CellType.F64),
            histogram("ebpf.block.request.duration", first_cell=2, bounds=BOUNDS, has_sum=True, scale=Scale(-9)),
        ],
        [
            SeriesLiteral((("device", device), ("operation", 'a "quoted"\\\nthing')), (3, 0.5, 1, 2, 3, 4, 5, 6, 7))
            for device in ("sda", "nvme0n1", "ü")
        ],
    )
    body = prometheus.render(snapshot(first), OWN[:52])
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
