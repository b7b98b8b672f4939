"""``skep init``: one C file that builds and runs as it is, to be changed into what is wanted.

Asks on a terminal for what the flags do not say; without one it asks nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from exporter.errors import SkepError

TEMPLATES = {
    "counter": "how often something happens, by label",
    "histogram": "how long something takes, or how large it is",
    "events": "one record for each time it happens",
}
_OTHER_NAMES = {"print": "events", "hist": "histogram", "event": "events", "log": "events"}
_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_SUFFIX = ".bpf.c"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``init``."""
    parser = subparsers.add_parser(
        "init",
        help="write a C file to begin with",
        description="Write one eBPF C file that builds and runs as it is, and say how. On a terminal what is not given "
        "is asked for. A file that exists is never overwritten.",
    )
    parser.add_argument(
        "target",
        metavar="NAME",
        nargs="?",
        default="",
        help=f"NAME makes NAME{_SUFFIX} here, DIR/ makes DIR/DIR{_SUFFIX}, a path that ends in .c is the file itself "
        "(default: named like the template)",
    )
    parser.add_argument(
        "-t",
        "--template",
        "-o",
        "--output-type",
        dest="template",
        metavar="TEMPLATE",
        type=_template,
        help="; ".join(f"{name}: {what}" for name, what in TEMPLATES.items()) + " (default: counter)",
    )
    parser.add_argument("-f", "--file", metavar="FILE", type=Path, help="the file to write, instead of NAME")
    parser.add_argument(
        "-l", "--language", metavar="C", type=str.lower, choices=("c",), default="c", help="C is all there is"
    )
    parser.set_defaults(run=_init)


def _template(text: str) -> str:
    name = _OTHER_NAMES.get(text.lower(), text.lower())
    if name not in TEMPLATES:
        raise argparse.ArgumentTypeError(f"{text!r} is no template; there are {', '.join(TEMPLATES)}")
    return name


def _init(args: argparse.Namespace) -> int:
    template, target = args.template, args.target
    if sys.stdin.isatty() and sys.stderr.isatty():
        template = template or _ask_template()
        if not target and not args.file:
            target = _ask("Name", template)
    template = template or "counter"
    path = args.file or _path(target or template)
    name = path.name.removesuffix(".c").removesuffix(".bpf")
    if not _NAME.fullmatch(name):
        raise SkepError(
            f"name {name!r} cannot be an image's; must be a-z 0-9 with single . _ or - between, such as 'slow-reads'",
            code="init.name",
        )
    write_template(template, name, path)
    made = path.with_name(f"{name}.bpf.o")
    print(f"{path}: {template}, {TEMPLATES[template]}")
    print()
    print(f"  skep build {path} --output {made}    compiles it; needs clang")
    print(f"  skep run {made}    loads it and prints what it counts; needs root")
    print(f"  skep build {path} registry.example/me/{name}:1    makes an image of it, for skep push")
    return 0


def write_template(template: str, name: str, path: Path) -> None:
    """Write a template as program ``name``.

    Raises:
        SkepError: the file exists, or cannot be written.
    """
    from exporter.resources import share

    text = (share("templates") / f"{template}{_SUFFIX}").read_text(encoding="utf-8")
    # A dash is no part of a metric's name.
    text = text.replace("@NAME@", name).replace("@METRIC@", re.sub(r"[.-]", "_", name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise SkepError(
            f"{str(path)!r} exists and is not overwritten; give another name, or remove it", code="init.exists"
        ) from error
    except OSError as error:
        raise SkepError(
            f"{str(path)!r} cannot be written: {error.strerror}; name a folder that may be", code="init.write"
        ) from error


def _path(target: str) -> Path:
    path = Path(target)
    if target.endswith(".c"):
        return path
    if target.endswith(os.sep) or path.is_dir():
        return path / f"{path.resolve().name}{_SUFFIX}"
    return path.with_name(f"{path.name}{_SUFFIX}")


def _ask_template() -> str:
    names = list(TEMPLATES)
    for number, (name, what) in enumerate(TEMPLATES.items(), 1):
        print(f"  {number}  {name:10} {what}", file=sys.stderr)
    while True:
        answer = _ask("Template", names[0])
        if answer.isdecimal() and 1 <= int(answer) <= len(names):
            return names[int(answer) - 1]
        try:
            return _template(answer)
        except argparse.ArgumentTypeError as error:
            print(error, file=sys.stderr)


def _ask(what: str, default: str) -> str:
    # On stderr, so that what is printed stays what it is without a terminal.
    print(f"{what} [{default}]: ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise SkepError("no answer came; give NAME and --template instead", code="init.answer")
    return line.strip() or default
