"""Write shell completion from the verbs' own arguments: ``python packaging/generate/completion.py bash|zsh FILE``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import shtab

from exporter.cli import parser as whole_parser

SHELLS = ("bash", "zsh")


def _say_what_is_a_file(parser: argparse.ArgumentParser) -> None:
    """Have arguments that are paths completed as such; which they are, type and metavar say."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _say_what_is_a_file(sub)
        elif action.metavar == "DIR":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.type is Path or action.metavar in ("FILE", "PATH", "FILE-OR-REF"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def script(shell: str) -> str:
    """What the shell sources."""
    parser = whole_parser()
    _say_what_is_a_file(parser)
    return str(shtab.complete(parser, shell=shell))


def main(arguments: list[str]) -> int:
    """Write the script."""
    if len(arguments) != 2 or arguments[0] not in SHELLS:
        sys.stderr.write("usage: python packaging/generate/completion.py bash|zsh FILE\n")
        return 2
    Path(arguments[1]).write_text(script(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
