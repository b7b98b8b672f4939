"""``--set``, ``--metadata`` and ``--kind``: what a flag says about an image instead of files."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from exporter.cli import overrides
from exporter.config import AttachConfig, ImageConfig, Limits, MapConfig, MetricConfig
from exporter.errors import SkepError
from exporter.image import Bundle, Digest, parse_reference

IMAGE = ImageConfig("tool", "tool.o", attach={"p": AttachConfig(target="x")}, limits=Limits(series=5))


def flags(*arguments: str) -> argparse.Namespace:
    """As the command line has them."""
    parser = argparse.ArgumentParser()
    overrides.add_arguments(parser)
    return parser.parse_args(arguments)


def settings(*said: str) -> argparse.Namespace:
    """Each with its ``--set``."""
    return flags(*(word for text in said for word in ("--set", text)))


def described(*arguments: str, metadata: dict[str, object] | None = None) -> object:
    """The metadata document that comes of it."""
    digest = Digest.of(b"")
    bundle = Bundle(parse_reference("./tool.o"), digest, digest, digest, "file", b"", metadata or {})
    return overrides.described(flags(*arguments), bundle).metadata


def test_settings_lie_over_what_is_configured() -> None:
    """What they do not name stays, inside of what they name too."""
    made = overrides.configured(
        settings(
            "limits.map_memory=128MiB", "attach.p.interfaces=[lo, eth0]", "attach.q.enabled=false", "labels.a.b=c",
            "maps.m.max_entries=9", "metrics.x_total.drop_labels=[pid]", "expire_after=2m", "globals.min_us=7",
        ),
        IMAGE,
    )  # fmt: skip
    assert made.limits == Limits(series=5, map_memory=128 << 20)
    assert made.attach == {
        "p": AttachConfig(target="x", interfaces=("lo", "eth0")),
        "q": AttachConfig(enabled=False),
    }
    assert made.maps == {"m": MapConfig(max_entries=9)}
    assert made.metrics == {"x_total": MetricConfig(drop_labels=("pid",))}
    assert (made.labels, made.globals, made.expire_after_s) == ({"a.b": "c"}, {"min_us": 7}, 120)
    assert (made.name, made.ref) == (IMAGE.name, IMAGE.ref)
    assert overrides.configured(settings(), IMAGE) is IMAGE


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("limits", "--set 'limits'; must be KEY=VALUE, such as limits.map_memory=128MiB"),
        ("=3", "--set '=3'; must be KEY=VALUE, such as limits.map_memory=128MiB"),
        ("attach.p=3", "--set 'attach.p=3'; must be KEY=VALUE, such as limits.map_memory=128MiB"),
        ("ref=x", "--set ref is not for here; give REF"),
        ("limits.map_memory=1X", "--set limits.map_memory is '1X'; must be a size such as 64MiB, 512kB or 4096B"),
        ("limits.size=1", "--set limits.size is not a key; known are series, events_per_s, map_memory"),
        ("pull=a\nb: c", "--set pull has a line break in its value; must be one line"),
    ],
)
def test_setting_that_cannot_be_is_refused_without_a_line_of_a_file_nobody_wrote(said: str, error: str) -> None:
    """The same checks as those of the file, and their words."""
    with pytest.raises(SkepError) as caught:
        overrides.configured(settings(said), IMAGE)
    assert str(caught.value) == error


def test_setting_given_twice_is_refused() -> None:
    """One of the two would be lost."""
    with pytest.raises(SkepError, match=r"--set pull is given twice"):
        overrides.configured(settings("pull=always", "pull=never"), IMAGE)


def test_kind_adds_to_what_an_image_says_of_itself(tmp_path: Path) -> None:
    """A map without a kind gets one, an event its record; a document by --metadata replaces the image's own."""
    own: dict[str, object] = {"version": 1, "metrics": {"a": {"unit": "s"}}}
    assert described("--kind", "a=gauge", "--kind", "e=event:struct event", metadata=own) == {
        "version": 1,
        "metrics": {"a": {"unit": "s", "kind": "gauge"}},
        "events": {"e": {"record": "struct event"}},
    }
    file = tmp_path / "m.yaml"
    file.write_text("version: 1\ndescription: Mine.\n")
    assert described("--metadata", str(file), "--kind", "h.slots=histogram", metadata=own) == {
        "version": 1,
        "description": "Mine.",
        "metrics": {"h.slots": {"kind": "histogram"}},
    }
    assert described(metadata=own) is own


@pytest.mark.parametrize("said", ["a", "a=", "=gauge", "a=total", "a=gauge:x"])
def test_kind_that_is_none_is_refused(said: str) -> None:
    """With those there are."""
    with pytest.raises(SkepError, match="KIND one of counter, gauge, histogram, event, none"):
        described("--kind", said)
