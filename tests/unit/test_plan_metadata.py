"""The image's metadata document: what may be said, and that a mistake in it is found with its place."""

from fractions import Fraction

import pytest

from exporter.errors import PlanError, Problems
from exporter.plan import parse_metadata
from exporter.plan.metadata import LabelDeclaration, MetricDeclaration, over
from exporter.plan.slots import SlotScheme


def problems(document: dict[str, object]) -> list[str]:
    """What is wrong with a document."""
    with pytest.raises((PlanError, Problems)) as caught:
        parse_metadata(document)
    error = caught.value
    return [str(one) for one in error.problems] if isinstance(error, Problems) else [str(error)]


def test_no_document_says_nothing() -> None:
    """Most images have none."""
    assert parse_metadata({}) == parse_metadata({"version": 1})


def test_everything_that_can_be_said_is_read() -> None:
    """Each key of the format."""
    metadata = parse_metadata(
        {
            "version": 1,
            "description": "D",
            "metrics": {
                "m": {
                    "kind": "histogram", "name": "a.b", "unit": "s", "scale": "1e-6", "help": "H.",
                    "slots": "log2_ceil", "enabled": False, "sum": True,
                    "labels": {"x": {"name": "n", "decode": "hex"}, "y": {"drop": True}, "z": {"labels": {"p": "uid"}},
                               "s": {"slot": True}},
                },
            },
            "events": {
                "e": {"name": "e.f", "severity": "warn", "enabled": True, "help": "E.", "lost": "l", "time": "at"},
            },
        }
    )  # fmt: skip
    entry = metadata.metrics["m"]
    assert metadata.description == "D"
    assert entry.metric == MetricDeclaration(
        "histogram", "a.b", "s", Fraction(1, 10**6), "H.", SlotScheme("log2_ceil"), enabled=False, sum=True
    )
    assert entry.labels == {
        "x": LabelDeclaration(labels=(("n", ""),), decode="hex"),
        "y": LabelDeclaration(drop=True),
        "z": LabelDeclaration(labels=(("p", "uid"),)),
        "s": LabelDeclaration(slot=True),
    }
    event = metadata.events["e"]
    assert (event.event.name, event.event.severity, event.event.lost) == ("e.f", 13, "l")
    assert event.labels == {"at": LabelDeclaration(time=True)}


@pytest.mark.parametrize("scale", [1e-6, "1e-6", "0.000001"])
def test_scale_is_exact_as_text_and_as_number(scale: object) -> None:
    """JSON has 1e-06 as a float; what was written is meant, not its binary neighbour."""
    metadata = parse_metadata({"version": 1, "metrics": {"m": {"scale": scale}}})
    assert metadata.metrics["m"].metric.scale == Fraction(1, 10**6)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"metrics": {}}, "metadata 'version' is None; this skep reads version 1, use a newer one or write version: 1"),
        ({"version": 2}, "metadata 'version' is 2; this skep reads version 1, use a newer one or write version: 1"),
        (
            {"version": True},
            "metadata 'version' is True; this skep reads version 1, use a newer one or write version: 1",
        ),
        (
            {"version": 1, "metric": {}},
            "metadata has key 'metric'; expected one of version, description, metrics, events, programs",
        ),
        ({"version": 1, "metrics": []}, "metadata 'metrics' is []; expected a mapping"),
        ({"version": 1, "metrics": {"m": 3}}, "metadata 'metrics.m' is 3; expected a mapping"),
        ({"version": 1, "metrics": {3: {}}}, "metadata 'metrics' has key 3; expected one of text"),
        (
            {"version": 1, "metrics": {"m": {"kind": "total"}}},
            "metadata 'metrics.m.kind' is 'total'; expected one of counter, gauge, histogram, none",
        ),
        ({"version": 1, "metrics": {"m": {"unit": 5}}}, "metadata 'metrics.m.unit' is 5; expected text"),
        (
            {"version": 1, "metrics": {"m": {"enabled": "no"}}},
            "metadata 'metrics.m.enabled' is 'no'; expected true or false",
        ),
        (
            {"version": 1, "metrics": {"m": {"scale": -1}}},
            "metadata 'metrics.m.scale' is scale '-1'; expected a positive decimal number such as 1e-9",
        ),
        ({"version": 1, "metrics": {"m": {"scale": True}}}, "metadata 'metrics.m.scale' is True; expected text"),
        (
            {"version": 1, "metrics": {"m": {"help": "two\nlines"}}},
            r"metadata 'metrics.m.help' is 'two\nlines'; expected one printable line of at most 1024 characters",
        ),
        (
            {"version": 1, "metrics": {"m": {"labels": {"a": {"name": "x", "labels": {"y": "hex"}}}}}},
            "metadata 'metrics.m.labels.a' has both labels and name or decode; say each label under labels",
        ),
        (
            {"version": 1, "events": {"e": {"severity": "fatal"}}},
            "metadata 'events.e.severity' is 'fatal'; expected one of trace, debug, info, warn, error",
        ),
    ],
)
def test_mistake_is_shown_with_its_place_and_what_was_expected(document: dict[str, object], text: str) -> None:
    """One line each."""
    assert problems(document) == [text]


def test_all_mistakes_come_at_once() -> None:
    """The order is that of the document."""
    document: dict[str, object] = {
        "version": 3,
        "metrics": {"a": {"kind": 1, "name": 2}},
        "events": {"b": {"colour": 1}},
    }
    assert [text.split("'")[1] for text in problems(document)] == [
        "version", "metrics.a.kind", "metrics.a.name", "events.b",
    ]  # fmt: skip


def test_what_is_left_unsaid_comes_from_the_weaker_word() -> None:
    """Declarations are laid over each other part by part."""
    weaker = MetricDeclaration(kind="counter", unit="s", help="W.")
    stronger = MetricDeclaration(kind="gauge", enabled=False)
    assert over(stronger, weaker) == MetricDeclaration(kind="gauge", unit="s", help="W.", enabled=False)
    assert over(None, weaker) is weaker


def test_metric_of_a_map_or_member_that_does_not_exist_is_an_error() -> None:
    """It names what there is."""
    from tests.support.plans import problems_of

    source = "struct value { u64 a; u64 b; }; MAP(counter_m, HASH, 1, u32, struct value);"
    metrics = {"counter_n": {}, "counter_m.c": {}, "counter_m.a": {"labels": {"key": {}}}}
    assert problems_of(source, metadata={"version": 1, "metrics": metrics, "events": {"e": {}}}) == [
        "metadata 'metrics.counter_n': no such map; the object has counter_m",
        "metadata 'events.e': no such map; the object has counter_m",
        "metadata 'metrics.counter_m.c' names no member of the value; it has a, b",
        "metadata 'metrics.counter_m.a' has labels, which belong to the map's key; say them under 'metrics.counter_m'",
    ]
