"""``skep run``: one image, here and now: on a terminal as tables (:mod:`.live`), else as JSON lines.

A row is a line with ``time``, ``metric``, ``image``, ``attributes`` and ``value``; a histogram
has ``count``, ``sum`` and ``buckets`` instead, buckets not cumulative. An event is a line with
``time``, ``event``, ``image`` and ``attributes``. All else goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from exporter.cli import overrides
from exporter.cli.filters import Filter, Filters, parse_filter
from exporter.cli.progress import has_rich, transfer
from exporter.errors import ConfigError, KernelError

if TYPE_CHECKING:
    from exporter.agent.program import Program, Stream
    from exporter.kernel import RingReader

_READ_BYTES = 1 << 20
_TURN_S = 0.2


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``run``."""
    parser = subparsers.add_parser(
        "run",
        help="run one image or object until interrupted, and print what it counts",
        description="Load one image or local object, and show its rows at an interval and its events as they come, "
        "until SIGINT, SIGTERM or --duration: as tables on a terminal, else as JSON lines. Detaches at the end.",
    )
    parser.add_argument("reference", metavar="FILE-OR-REF", help="FILE.o, catalog:NAME, oci:DIR, or a registry's image")
    parser.add_argument("--no-tty", action="store_true", help="JSON lines, whatever stdout is")
    parser.add_argument(
        "--filter",
        "-f",
        metavar="MAP,LABEL,REGEX",
        dest="filters",
        action="append",
        default=[],
        type=_filter,
        help="show only rows, or events, of this map with the pattern in this label; repeatable",
    )
    parser.add_argument(
        "--interval",
        metavar="DURATION",
        type=_duration,
        default=1.0,
        help="between two prints of all rows (default: 1s)",
    )
    parser.add_argument("--duration", metavar="DURATION", type=_duration, help="stop after this long")
    parser.add_argument(
        "--global",
        metavar="NAME=VALUE",
        dest="globals",
        action="append",
        default=[],
        type=_global,
        help="set a `const volatile` global; repeatable (arrays and structs: --set globals.NAME=[1, 2])",
    )
    overrides.add_arguments(parser)
    parser.add_argument(
        "--pull",
        choices=("if-not-present", "always", "never"),
        default="if-not-present",
        help="(default: if-not-present)",
    )
    parser.add_argument(
        "--btf", metavar="PATH", help="types of a kernel that does not show its own: a file, an archive or a directory"
    )
    parser.add_argument(
        "--store", "--storage", metavar="DIR", type=Path, help="where images are kept (default: this user's)"
    )
    parser.set_defaults(run=_run)


def _duration(text: str) -> float:
    from exporter.config import parse_duration

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}; must be longer than nothing")
    return seconds


def _global(text: str) -> tuple[str, int | bool | float | str]:
    from exporter.config import parse_value

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r}; must be NAME=VALUE")
    return name, parse_value(value)


def _filter(text: str) -> Filter:
    try:
        return parse_filter(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _run(args: argparse.Namespace) -> int:
    from exporter.agent.program import load, make_lookup, plan_bundle
    from exporter.config import ImageConfig
    from exporter.image import Store, default_store_path, fetch, parse_reference
    from exporter.kernel import RingReader
    from exporter.plan import LEFT_OPEN

    names = [name for name, _ in args.globals]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--global {name} is given twice")
    reference = parse_reference(args.reference)
    config = ImageConfig(
        name=reference.default_name,
        ref=args.reference,
        pull=args.pull,
        globals=dict(args.globals),
        btf=args.btf or "",
    )
    config = overrides.configured(args, config)
    live = _wants_live(args)
    stop = _stop_on_signals()
    store = Store(args.store or default_store_path())
    with transfer("pull") as progress:
        bundle = fetch(reference, store=store, pull=args.pull, stop=stop, progress=progress)
    bundle = overrides.described(args, bundle)
    plan = plan_bundle(bundle, config)
    filters = Filters(args.filters, plan)
    for note in plan.notes:
        if (not plan.tables and not plan.streams) or LEFT_OPEN in note:
            _say(note)
    program = load(bundle, plan, config, resolve=make_lookup().resolve)
    try:
        if program.not_attached:
            _say(program.not_attached)
        for name, reason in program.passed_over.items():
            _say(f"program {name!r} not taken: {reason}")
        _say(f"running {reference}: {sum(program.attached.values())} programs attached; stop with Ctrl-C")
        rings = RingReader()
        try:
            if live:
                _show(program, rings, filters, stop, args)
            else:
                printer = _Printer(program, rings, sys.stdout.buffer, filters)
                printer.print_until(stop, args.interval, args.duration)
        finally:
            rings.close()
    finally:
        program.close()
    return 0


def _wants_live(args: argparse.Namespace) -> bool:
    """Whether there is a terminal to show tables on; says so if only the extra for it is missing.

    Raises:
        SkepError: the terminal is too small.
    """
    if args.no_tty or not (sys.stdout.isatty() and sys.stdin.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        return False
    if not has_rich():
        _say("printing JSON lines; for tables install the extra, pip install 'skep[tui]'")
        return False
    from exporter.cli.live import check_terminal, terminal_size

    check_terminal(*terminal_size())
    return True


def _show(
    program: Program, rings: RingReader, filters: Filters, stop: threading.Event, args: argparse.Namespace
) -> None:
    from exporter.cli.live import LiveView, losses

    view = LiveView(program, rings, filters)
    view.show_until(stop, args.interval, args.duration)
    for line in losses(view, program.lost):
        _say(line)


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _say(text: str) -> None:
    print(f"skep: {text}", file=sys.stderr, flush=True)


class _Printer:
    """Prints one program's rows and events."""

    def __init__(self, program: Program, rings: RingReader, out: BinaryIO, filters: Filters) -> None:
        self._program = program
        self._filters = filters
        self._rings = rings
        self._out = out
        self._streams: list[tuple[int, Stream]] = [(rings.add(stream.ring), stream) for stream in program.streams]
        self._failed = 0
        self._dropped: dict[str, int] = {}

    def print_until(self, stop: threading.Event, interval_s: float, duration_s: float | None) -> None:
        """Print until ``stop`` is set or ``duration_s`` have passed, then what is left."""
        began = time.monotonic()
        end = began + duration_s if duration_s is not None else float("inf")
        due = began + interval_s
        while not stop.is_set() and time.monotonic() < end:
            pause = max(0.0, min(due, end) - time.monotonic())
            # A signal does not end the wait of epoll; a turn is short enough to feel like it.
            if self._streams:
                if self._rings.wait(min(pause, _TURN_S)):
                    self._print_events()
            else:
                stop.wait(pause)
            if due <= time.monotonic() < end:
                self._print_rows()
                due = max(due + interval_s, time.monotonic())
        self._print_events()
        self._print_rows()
        self._tell_losses()

    def _print_events(self) -> None:
        for index, stream in self._streams:
            stream.ring_lost = self._rings.lost(index)
            while records := self._rings.read(index, _READ_BYTES):
                batch = stream.decode(records, json=True)
                self._out.write(self._filtered(stream, batch.json))
                self._failed += batch.failed
                for reason, count in batch.dropped.items():
                    self._dropped[reason] = self._dropped.get(reason, 0) + count
        self._out.flush()

    def _filtered(self, stream: Stream, lines: bytes) -> bytes:
        map_ = stream.plan.map
        if not self._filters.touch(map_):
            return lines
        kept = (line for line in lines.splitlines(True) if self._filters.keep(map_, json.loads(line)["attributes"]))
        return b"".join(kept)

    def _print_rows(self) -> None:
        with self._program.lock:
            self._program.read(time.monotonic())
            if self._program.last_read.error:
                raise KernelError(self._program.last_read.error, code="kernel.read")
            for line in self._rows():
                self._out.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        self._out.flush()

    def _rows(self) -> Iterator[dict[str, object]]:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for table, frame in self._program.tables():
            names = [metric.instrument.prometheus_name for metric in table.metrics]
            for attributes, values in frame.rows():
                if not self._filters.keep(table.map, attributes):
                    continue
                for name, value in zip(names, values, strict=True):
                    if value is None:
                        continue
                    line = {
                        "time": now,
                        "metric": name,
                        "image": self._program.plan.scope.name,
                        "attributes": attributes,
                    }
                    yield {**line, **value} if isinstance(value, dict) else {**line, "value": value}

    def _tell_losses(self) -> None:
        if self._failed:
            _say(f"{self._failed} records could not be decoded")
        for reason, count in self._dropped.items():
            _say(f"{count} events dropped: {reason}")
        for stream, lost in self._program.lost.items():
            if lost:
                _say(f"{lost} records of {stream} lost in the kernel: its ring was full")
