"""Several images on one page: who may share a metric name."""

import pytest

from exporter.config import MetricConfig
from exporter.plan import Plan, check_together
from tests.support.plans import plan_of

COUNTER = 'MAP(counter_x, HASH, 1, struct key, u64) TAG("help=Help.");'
KEY = "struct key { u32 a; };"


def image(source: str, **config: object) -> Plan:
    """A plan with a name of its own."""
    return plan_of(source, **config)  # type: ignore[arg-type]


def test_images_with_different_names_stand_together() -> None:
    """Nothing to say."""
    assert (
        check_together({"a": image(KEY + COUNTER), "b": image(KEY + COUNTER.replace("counter_x", "counter_y"))}) == {}
    )


def test_images_that_agree_and_differ_in_a_constant_label_share_a_name() -> None:
    """One program twice, for two things."""
    one, two = (image(KEY + COUNTER, labels={"tier": tier}) for tier in ("db", "web"))
    assert check_together({"a": one, "b": two}) == {}


def test_later_image_with_the_same_series_is_refused_and_both_are_named() -> None:
    """Who comes first keeps the name."""
    plans = {name: image(KEY + COUNTER) for name in ("a", "b")}
    errors = check_together(plans)
    assert {name: str(error) for name, error in errors.items()} == {
        "b": "image 'b': metric 'ebpf_x_total' is also in image 'a', and no constant label tells them apart; "
        "rename one with metrics.<name>.rename, or give each image other labels"
    }


@pytest.mark.parametrize(
    ("source", "config", "words"),
    [
        (KEY + COUNTER.replace("Help.", "Other."), {}, "its help is 'Other.' here and 'Help.' there"),
        ("struct key { u32 b; };" + COUNTER, {}, "its labels is ['b', 'tier'] here and ['a', 'tier'] there"),
        (KEY + COUNTER, {"labels": {"stage": "x"}}, "['a', 'stage'] here and ['a', 'tier'] there"),
        (KEY + COUNTER.replace('TAG("help', 'TAG("unit={x}") TAG("help'), {}, "its unit is '{x}' here and '' there"),
        (
            KEY + COUNTER.replace("counter_x", "gauge_x"),
            {"metrics": {"ebpf_x": MetricConfig(rename="ebpf_x_total")}},
            "its kind is 'gauge' here and 'counter' there",
        ),
    ],
)
def test_images_that_disagree_about_a_metric_are_refused_with_the_difference(
    source: str, config: dict[str, object], words: str
) -> None:
    """One family on the page has one type, one unit, one help and one set of label names."""
    first = image(KEY + COUNTER, labels={"tier": "db"})
    second = image(source, **({"labels": {"tier": "web"}} | config))
    assert words in str(check_together({"a": first, "b": second})["b"])


def test_histogram_claims_the_names_of_its_parts() -> None:
    """A count beside a histogram's own count would be one family of two types."""
    histogram = image("typedef u64 h_t[3]; MAP(hist_x, ARRAY, 1, u32, h_t);")
    gauge = image('MAP(g, HASH, 1, u32, u64) TAG("kind=gauge") TAG("name=ebpf.x.count");')
    for plans in ({"a": histogram, "b": gauge}, {"a": gauge, "b": histogram}):
        assert "ebpf_x_count" in str(check_together(plans)["b"])


def test_refused_image_does_not_stand_in_the_way_of_a_third() -> None:
    """Only what runs has its names."""
    first = image(KEY + COUNTER)
    both = image(KEY + COUNTER + "MAP(counter_y, HASH, 1, u32, u64);")
    third = image("MAP(counter_y, HASH, 1, u32, u64);")
    assert list(check_together({"a": first, "b": both, "c": third})) == ["b"]
