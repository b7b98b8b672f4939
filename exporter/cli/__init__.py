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
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import NoReturn

from exporter.errors import Problems, SkepError

FAMILIES = (
    "agent", "status", "run", "cleanup", "init", "build", "images", "access", "describe", "package",
    "plan", "dashboard", "doctor", "version",
)  # fmt: skip

_STRANGERS = {
    # Of BumbleBee, Docker and the like: what people type, and what does it here.
    "images": "list",
    "ls": "list",
    "ps": "status",
    "rmi": "images rm",
    "rm": "images rm",
    "remove": "images rm",
    "prune": "images prune",
    "save": "images export",
    "load": "images import",
    "inspect": "describe",
    "show": "describe",
    "validate": "check",
    "start": "agent",
    "serve": "agent",
    "daemon": "agent",
    "help": "--help",
    "create": "init",
    "new": "init",
    "compile": "build",
    "probe": "doctor",
    "features": "doctor",
}
_OTHER_FLAGS = {
    # BumbleBee's flags that have no meaning here, and what to do instead.
    "--insecure": "a registry's certificate is always checked: give its authority with --ca-file",
    "--build-image": "clang of this machine compiles: leave it out, or set $CLANG",
    "--builder": "no container is needed to build: leave it out",
    "--build-script": "clang of this machine compiles: leave it out, flags go to --cflags",
    "--build-script-out": "clang of this machine compiles: leave it out, flags go to --cflags",
    "--bee-image": "no base image is needed: leave it out",
    "--prom-port": "run prints; to serve metrics list the image in a configuration and use skep agent",
    "--pin-maps": "maps are not pinned: skep agent serves what they hold",
    "--pin-progs": "programs are not pinned: skep agent keeps them over its restarts",
    "--hist-buckets": "buckets are said in the C source (SKEP_SLOTS) or the metadata document",
    "--hist-value-key": "what is observed is said in the C source (SKEP_VALUE) or the metadata document",
    "--username": "log in first, with skep login HOST --username NAME",
    "--password": "every user of the machine sees a password on the command line: use skep login --password-stdin",
    "--config": "credentials are in Docker's configuration, or in the file that --auth-file names",
    "--verbose": "there is nothing to turn up: errors say all there is, and skep agent has --log.level",
    "--debug": "there is nothing to turn up: errors say all there is, and skep agent has --log.level",
    "--map": "a template has its map: edit the file",
    "--program-type": "a template has its hook: edit the file",
}
_SHORT_FLAGS = {
    # The same by one letter, which means one thing or another by the verb.
    "-u": "--username",
    "-p": "--password",
    "-c": "--config",
    "-v": "--verbose",
    "-d": "--debug",
    "-i": "--build-image",
    "-b": "--builder",
    "-k": "--hist-value-key",
    "-m": "--map",
}


class _Parser(argparse.ArgumentParser):
    """Knows the near misses of its users; wrong usage is status 2."""

    def error(self, message: str) -> NoReturn:
        """Print usage and what is wrong with it."""
        self.fail(message)

    def fail(self, message: str, hints: Iterable[str] = ()) -> NoReturn:
        """Print usage, what is wrong with it, and a line of advice for each that there is."""
        self.print_usage(sys.stderr)
        self.exit(2, "".join(f"{self.prog}: {line}\n" for line in (f"error: {message}", *hints)))

    def take_late(self, args: argparse.Namespace, words: list[str]) -> list[str]:
        """Take words for optional arguments that flags stand before; give those that are left.

        ``skep build SRC --metadata FILE REF``: argparse looks for REF right after SRC only.
        """
        wanting = [one for one in self._actions if one.nargs == "?" and getattr(args, one.dest) is None]
        wanting = [one for one in wanting if not one.option_strings and one.type is None]
        if len(words) > len(wanting) or any(word.startswith("-") for word in words):
            return words
        for action, word in zip(wanting, words, strict=False):
            setattr(args, action.dest, word)
        return []

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Say of words that nobody takes what to do instead, where that is known."""
        hints = []
        for word in words:
            flag = word.partition("=")[0] if word.startswith("--") else word[:2]
            long = _SHORT_FLAGS.get(flag, flag)
            if flag == "-b" and self.prog.endswith(" run"):
                long = "--hist-buckets"
            if long in _OTHER_FLAGS:
                hints.append(f"{flag}: {_OTHER_FLAGS[long]}")
        self.fail(f"unrecognized arguments: {' '.join(words)}", hints)


def parser() -> _Parser:
    """Give the whole command line: every verb with its arguments and their help."""
    made = _Parser(
        prog="skep",
        description="Runs eBPF programs that travel as OCI images and exports what they count.",
        epilog="'skep VERB --help' tells about one verb.",
    )
    made.add_argument("--version", action="store_true", help="show skep's version; 'skep version' shows more")
    subparsers = made.add_subparsers(title="verbs", metavar="VERB", dest="verb", parser_class=_Parser)
    for family in FAMILIES:
        import_module(f"exporter.cli.{family}").register(subparsers)
    _take_whole_flags(made)
    return made


def _take_whole_flags(of: argparse.ArgumentParser) -> None:
    """No flag by its beginning: ``login --password SECRET`` is no ``--password-stdin`` of a registry SECRET."""
    of.allow_abbrev = False
    for action in _verbs(of):
        for one in action.choices.values():
            _take_whole_flags(one)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and give the exit status.

    Args:
        argv: Without the program's name; default the process's.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    whole = parser()
    _check_verb(whole, words)
    args, unknown = whole.parse_known_args(words)
    if unknown:
        chosen = _parser_of(whole, args)
        if unknown := chosen.take_late(args, unknown):
            chosen.refuse(unknown)
    if args.verb is None:
        if not args.version:
            whole.error("no verb is given; skep --help lists them")
        from exporter.resources import version

        print(f"skep {version()}")
        return 0
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


def _verbs(of: argparse.ArgumentParser) -> list[argparse._SubParsersAction[_Parser]]:
    return [one for one in of._actions if isinstance(one, argparse._SubParsersAction)]


def _parser_of(whole: _Parser, args: argparse.Namespace) -> _Parser:
    """The verb's own parser, and the inner verb's where there is one: its usage is the one that helps."""
    for action in _verbs(whole):
        if chosen := getattr(args, action.dest, None):
            return _parser_of(action.choices[chosen], args)
    return whole


def _check_verb(whole: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Answer a verb that does not exist with the one that was meant."""
    if words and words[0].startswith("-") and words[0] not in whole._option_string_actions:
        whole.error(f"flags follow the verb: 'skep VERB {words[0]}'")
    verb = next((word for word in words if not word.startswith("-")), "")
    [action] = _verbs(whole)
    if not verb or verb in action.choices:
        return
    import difflib

    near = difflib.get_close_matches(verb, action.choices, n=1, cutoff=0.6)
    meant = _STRANGERS.get(verb) or (near[0] if near else "")
    whole.error(f"{verb!r} is no verb; " + (f"did you mean 'skep {meant}'?" if meant else "skep --help lists them"))


def report(error: SkepError) -> int:
    """Print an error, one line per problem, and give the exit status for it."""
    for problem in error.problems if isinstance(error, Problems) else (error,):
        print(f"skep: {problem}", file=sys.stderr)
    log = getattr(error, "log", "")
    if log:
        for line in log.splitlines():
            print(f"  {line}", file=sys.stderr)
    return 1
