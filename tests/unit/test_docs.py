"""What the README and the pages of ``docs/`` tell a reader to follow, read or type is there."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.cli import parser

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings can be reached by, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Each ``skep …`` line of a page's shell blocks: its line number and words, without comment and pipe."""
    in_shell = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            in_shell = line.strip() in ("```sh", "```console")
        elif in_shell:
            for part in re.split(r" (?:\||&&) ", re.sub(r"(?: +…)?(?: +#.*)?$", "", line)):
                words = shlex.split(part.removeprefix("$ "))
                if words[:1] == ["skep"]:
                    yield number, words[1:]


SHOWN = [
    pytest.param(words, id=f"{page.name}:{number}") for page in (README, *PAGES) for number, words in commands(page)
]


@pytest.mark.parametrize("page", [README, *PAGES, *sorted(ROOT.glob("configs/catalog/*/README.md"))], ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    """To a file of the tree, and to a heading that it has."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not fragment or fragment in anchors(target), link


def test_readme_names_every_page() -> None:
    """A page that nothing leads to is not read."""
    listed = set(re.findall(r"\]\(docs/([a-z_-]+\.md)\)", README.read_text().partition("## Where to read on")[2]))
    assert listed == {page.name for page in PAGES}


def test_commands_are_found() -> None:
    """Else the next test would hold nothing."""
    assert len(SHOWN) > 30
    assert {page.name for page in (README, *PAGES) if any(commands(page))} >= {"README.md", "authoring.md", "images.md"}


@pytest.mark.parametrize("words", SHOWN)
def test_command_shown_is_one_that_skep_takes(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Its verb, its flags and as many arguments: a renamed flag makes a page wrong."""
    try:
        args = parser().parse_args(words)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    assert isinstance(args, argparse.Namespace) and args.verb


def test_errors_in_troubleshooting_are_those_that_skep_says() -> None:
    """Whoever looks a line up finds it: each piece of a first column is in the source, around what is filled in."""
    sources = "".join(path.read_text() for path in sorted((ROOT / "exporter").rglob("*.py")))
    # Literals that stand one after the other are one text; what is filled in is a gap.
    said = re.sub(r"\{[^{}]*\}", "…", re.sub(r'"\s+f?"', "", sources)) + (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    pieces = [
        part for row in rows for text in re.findall(r"`(.+?)`", row) for part in re.split(r"…|'bpf/|sha256:", text)
    ]
    missing = [part for part in pieces if len(part) > 3 and part.strip(" ,;'") not in said]
    assert not missing
