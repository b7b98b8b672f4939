"""The command line as a whole: how it starts, what it lists, and what it says to a near miss."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.cli import main, parser

ROOT = Path(__file__).parents[2]


def test_help_imports_nothing_that_only_a_verb_needs() -> None:
    """Else completing a word in a shell would wait for an HTTP client, an ELF reader and YAML."""
    code = (
        "import sys; from exporter.cli import parser; parser().format_help();"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"yaml", "urllib3", "requests", "elftools", "opentelemetry", "oras", "rich", "prometheus_client", "ssl"}
    assert not heavy & set(done.stdout.split())


def test_every_verb_and_argument_says_what_it_is() -> None:
    """Man pages and completions are made from these words."""

    def walk(one: argparse.ArgumentParser) -> None:
        for action in one._actions:
            if isinstance(action, argparse._SubParsersAction):
                listed = {choice.dest for choice in action._choices_actions if choice.help}
                for name, inner in action.choices.items():
                    assert name in listed or name in {a for c in action._choices_actions for a in c.metavar or ()}, name
                    assert inner.description, inner.prog
                    walk(inner)
            else:
                assert action.help, (one.prog, action)

    walk(parser())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pul", "a"], "did you mean 'skep pull'?"),
        (["images-list"], "is no verb"),
        (["inspect", "a"], "did you mean 'skep "),
        (["push", "a", "--insecure"], "--ca-file"),
        (["build", "a.c", "b", "--builder=podman"], "no container is needed"),
        (["push", "-u", "me", "-p", "secret", "a"], "-u: log in first, with skep login"),
        (["push", "-u", "me", "-psecret", "a"], "-p: every user of the machine sees a password"),
        (["login", "--password", "secret"], "use skep login --password-stdin"),
        (["run", "-b", "m,[1]", "a"], "-b: buckets are said in the C source"),
        (["build", "-b", "podman", "a.c"], "-b: no container is needed"),
        (["run", "-k", "m,le", "a"], "-k: what is observed is said in the C source (SKEP_VALUE)"),
        (["init", "-m", "HashMap"], "-m: a template has its map"),
        (["--plain-http", "push", "a"], "flags follow the verb"),
        (["-v", "list"], "flags follow the verb"),
        (["push", "--frob", "a"], "skep push: error: unrecognized arguments: --frob"),
        (["images", "prune", "-a"], "skep images prune: error: unrecognized arguments: -a"),
        ([], "no verb is given"),
        (["frobnicate"], "skep --help lists them"),
    ],
)
def test_near_miss_is_told_what_was_meant(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fingers that know Docker or BumbleBee find their way; status 2 as for any wrong usage."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["build", "a.c", "--metadata", "m.yaml", "x/y:1"], ["build", "--metadata", "m.yaml", "a.c", "x/y:1"]]
)
def test_flags_may_stand_between_arguments(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they may for every other command that a person knows."""
    monkeypatch.chdir(tmp_path)
    Path("m.yaml").write_text("version: 1\n")
    assert main(words) == 1
    assert capsys.readouterr().err == "skep: source 'a.c' does not exist\n"


def test_version_flag_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """What scripts ask first."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split()[0] == "skep"
