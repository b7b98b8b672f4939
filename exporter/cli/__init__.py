"""The command ``skep``: one module per family of verbs.

Each knows its arguments, runs the path up to a stage and prints that stage's type; it must not
decide what a stage decides. A user's mistake ends as ``skep: <what and what to do>`` on stderr
and status 1, wrong usage as status 2; a traceback is always a bug of ours. Families import
what they need when they run, so that ``skep --help`` starts quickly.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from exporter.errors import Problems, SkepError

FAMILIES = ("agent", "status", "run", "build", "images", "plan", "dashboard", "version")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and give the exit status.

    Args:
        argv: Without the program's name; default the process's.
    """
    parser = argparse.ArgumentParser(
        prog="skep", description="Runs eBPF programs that travel as OCI images and exports what they count."
    )
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for family in FAMILIES:
        import_module(f"exporter.cli.{family}").register(subparsers)
    args = parser.parse_args(argv)
    try:
        status = int(args.run(args))
        sys.stdout.flush()
    except SkepError as error:
        return report(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output has seen enough. The interpreter flushes once more at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


def report(error: SkepError) -> int:
    """Print an error, one line per problem, and give the exit status for it."""
    for problem in error.problems if isinstance(error, Problems) else (error,):
        print(f"skep: {problem}", file=sys.stderr)
    log = getattr(error, "log", "")
    if log:
        for line in log.splitlines():
            print(f"  {line}", file=sys.stderr)
    return 1
