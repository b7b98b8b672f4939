"""The generated pages of the documentation say what the code says."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.support.catalog import built_catalog
from tests.support.generators import load_generator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The program that writes the pages."""
    return load_generator("reference")


@pytest.mark.slow
def test_committed_pages_are_what_the_generator_writes(generator: ModuleType, tmp_path: Path) -> None:
    """After a change of a key, a metric or an image: python packaging/generate/reference.py."""
    made = generator.generate(built_catalog(tmp_path))
    differing = [name for name, text in made.items() if (ROOT / "docs" / name).read_text(encoding="utf-8") != text]
    assert not differing, "run packaging/generate/reference.py"


def test_every_key_of_the_configuration_says_what_may_be_written_and_what_it_means(generator: ModuleType) -> None:
    """A reader finds each key once, with a sentence."""
    page = generator.config_page()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    keys = [row[0] for row in rows]
    assert len(keys) == len(set(keys)) > 60
    assert [row[0] for row in rows if not row[-1].rstrip(" |").endswith((".", "…"))] == []


def test_every_metric_of_the_agent_has_a_sentence(generator: ModuleType) -> None:
    """What a metric is, and not its name again."""
    rows = generator.own_rows()
    assert [name for name, _, _, said in rows if not said.rstrip(".").count(" ")] == []
    assert "`skep_image_state`" in {name for name, *_ in rows}
