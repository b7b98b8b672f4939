"""What ``skep run`` shows on a terminal: a table for each map, the events below, until ``q``.

The screen is the terminal's alternate one and its line is in cbreak mode; both are given back however
this ends. Everything shown comes from a stranger's program: control characters are shown as ``?``.
Needs the extra ``tui`` (rich).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import sys
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from exporter.cli.filters import Filters, parse_filter
from exporter.errors import ConfigError, KernelError, SkepError
from exporter.model import Instrument, Kind

if TYPE_CHECKING:
    from exporter.agent.program import Program, Stream
    from exporter.kernel import RingReader
    from exporter.plan import Plan, TablePlan

WIDTH_AT_LEAST, HEIGHT_AT_LEAST = 40, 10
_READ_BYTES = 1 << 20
_TURN_S = 0.1
_EVENTS_KEPT = 1000
_CELL_LIMIT = 48
_KEYS = "q quit  p pause  s sort  r reverse  tab next map  / filter"


@dataclass(slots=True)
class Row:
    """One label set of one table at the last read."""

    labels: tuple[str, ...]
    cells: list[tuple[str, float]]


@dataclass(slots=True)
class Shown:
    """One table as it is shown: headings, rows, which column sorts it."""

    title: str
    map: str
    labels: list[str]
    columns: list[str]
    rows: list[Row] = field(default_factory=list)


def check_terminal(columns: int, lines: int) -> None:
    """Refuse a terminal in which nothing could be read.

    Raises:
        SkepError: ``run.terminal``.
    """
    if columns < WIDTH_AT_LEAST or lines < HEIGHT_AT_LEAST:
        raise SkepError(
            f"terminal is {columns} columns by {lines} lines, the live view needs {WIDTH_AT_LEAST} by "
            f"{HEIGHT_AT_LEAST}; enlarge it, or print JSON lines with --no-tty",
            code="run.terminal",
        )


def terminal_size() -> tuple[int, int]:
    """Columns and lines; a terminal that does not know them counts as 80 by 24."""
    columns, lines = os.get_terminal_size(sys.stdout.fileno())
    return columns or 80, lines or 24


@contextlib.contextmanager
def keyboard() -> Iterator[Callable[[], list[str]]]:
    """Read keys as they are pressed; the terminal is as it was afterwards."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed() -> list[str]:
        if not select.select([descriptor], [], [], 0)[0]:
            return []
        data = os.read(descriptor, 64)
        return _keys(data) if data else ["q"]

    try:
        tty.setcbreak(descriptor, termios.TCSANOW)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def _keys(data: bytes) -> list[str]:
    """Single characters; an arrow or other sequence is one key."""
    text = data.decode("utf-8", "replace")
    if text.startswith("\x1b"):
        return [{"\x1b[A": "up", "\x1b[B": "down", "\x1b[Z": "back", "\x1b": "escape"}.get(text, "")]
    return list(text)


class LiveView:
    """One program on the screen."""

    def __init__(self, program: Program, rings: RingReader, filters: Filters) -> None:
        self._program = program
        self._plan: Plan = program.plan
        self._filters = filters
        self._rings = rings
        self._streams: list[tuple[int, Stream]] = [(rings.add(stream.ring), stream) for stream in program.streams]
        self._events: deque[str] = deque(maxlen=_EVENTS_KEPT)
        self._events_total = 0
        self._before: dict[tuple[int, tuple[str, ...]], tuple[float, list[float]]] = {}
        self._tables: list[Shown] = []
        self._frozen: tuple[list[Shown], list[str]] | None = None
        self._sort = 0
        self._descending = True
        self._focus = -1
        self._typing: str | None = None
        self._message = ""
        self.failed = 0
        self.dropped: dict[str, int] = {}

    # -- The loop ------------------------------------------------------------------------------

    def show_until(self, stop: threading.Event, interval_s: float, duration_s: float | None) -> None:
        """Show until ``stop`` is set, ``duration_s`` have passed or ``q`` is pressed.

        Raises:
            KernelError: the maps cannot be read.
        """
        began = time.monotonic()
        end = began + duration_s if duration_s is not None else math.inf
        console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        with keyboard() as pressed, Live(
            console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        ) as live:  # fmt: skip
            due = began
            while not stop.is_set() and time.monotonic() < end:
                if due <= time.monotonic():
                    self.read()
                    due = max(due + interval_s, time.monotonic())
                # Asked of the terminal each time: the variables COLUMNS and LINES do not know of a resize.
                console.size = ConsoleDimensions(*terminal_size())
                live.update(self.render(*console.size), refresh=True)
                self._wait(min(due, end) - time.monotonic())
                for key in pressed():
                    if not self.press(key):
                        return

    def _wait(self, pause_s: float) -> None:
        pause_s = min(max(pause_s, 0.0), _TURN_S)
        if self._streams:
            if self._rings.wait(pause_s):
                self._read_events()
                # A flood of events would otherwise redraw the screen for each of them.
                pause_s = _TURN_S
            else:
                return
        with contextlib.suppress(InterruptedError):
            select.select([sys.stdin], [], [], pause_s)

    # -- What is shown ---------------------------------------------------------------------------

    def read(self) -> None:
        """Read the maps, and keep the rows that the filters let through."""
        with self._program.lock:
            self._program.read(time.monotonic())
            if self._program.last_read.error:
                raise KernelError(self._program.last_read.error, code="kernel.read")
            now_s = time.monotonic()
            before, self._before = self._before, {}
            self._tables = [
                self._table(index, plan, frame.rows(), before, now_s)
                for index, (plan, frame) in enumerate(self._program.tables())
            ]

    def _table(
        self,
        index: int,
        plan: TablePlan,
        rows: Iterator[tuple[Mapping[str, object], tuple[object, ...]]],
        before: Mapping[tuple[int, tuple[str, ...]], tuple[float, list[float]]],
        now_s: float,
    ) -> Shown:
        instruments = [metric.instrument for metric in plan.metrics]
        names = [label.name for label in plan.labels] + [name for name, _ in plan.constant_labels]
        shown = Shown(instruments[0].prometheus_name, plan.map, names, [])
        for instrument in instruments:
            shown.columns += _columns(instrument, alone=len(instruments) == 1)
        for attributes, values in rows:
            if not self._filters.keep(plan.map, attributes):
                continue
            labels = tuple(printable(str(attributes.get(name, ""))) for name in names)
            then_s, last = before.get((index, labels), (0.0, []))
            numbers: list[float] = []
            cells: list[tuple[str, float]] = []
            for at, (instrument, value) in enumerate(zip(instruments, values, strict=True)):
                number = _number(value)
                numbers.append(number)
                rate = (number - last[at]) / (now_s - then_s) if last and now_s > then_s else math.nan
                cells += _cells(instrument, value, rate)
            self._before[index, labels] = (now_s, numbers)
            shown.rows.append(Row(labels, cells))
        return shown

    def _read_events(self) -> None:
        for index, stream in self._streams:
            while records := self._rings.read(index, _READ_BYTES):
                batch = stream.decode(records, json=True)
                self.failed += batch.failed
                for reason, count in batch.dropped.items():
                    self.dropped[reason] = self.dropped.get(reason, 0) + count
                # Only what can still be seen is worth the time of decoding, unless a filter has to look.
                lines = batch.json.splitlines()
                self._events_total += len(lines)
                for line in lines if self._filters.touch(stream.plan.map) else lines[-_EVENTS_KEPT:]:
                    event = json.loads(line)
                    if self._filters.keep(stream.plan.map, event["attributes"]):
                        self._events.append(_event_line(event))

    def press(self, key: str) -> bool:
        """Do what a key says; ``False`` to end."""
        if self._typing is not None:
            self._type(key)
            return True
        self._message = ""
        if key in ("q", "\x03", "\x04"):
            return False
        if key in ("p", " "):
            self._frozen = (self._tables, list(self._events)) if self._frozen is None else None
        elif key == "s":
            self._sort += 1
        elif key == "r":
            self._descending = not self._descending
        elif key in ("\t", "down"):
            self._focus = self._focus + 1 if self._focus + 1 < len(self._tables) else -1
        elif key in ("back", "up"):
            self._focus = self._focus - 1 if self._focus >= 0 else len(self._tables) - 1
        elif key == "/":
            self._typing = ""
        elif key in ("?", "h"):
            self._message = _KEYS
        return True

    def _type(self, key: str) -> None:
        assert self._typing is not None
        if key == "escape":
            self._typing = None
        elif key in ("\r", "\n"):
            text, self._typing = self._typing, None
            try:
                given = [parse_filter(text)] if text else []
                self._filters = Filters(given, self._plan)
                self._events.clear()
            except ConfigError as error:
                self._message = str(error)
        elif key in ("\x7f", "\b"):
            self._typing = self._typing[:-1]
        elif key.isprintable() and len(key) == 1:
            self._typing += key

    # -- Drawing ---------------------------------------------------------------------------------

    def render(self, columns: int, lines: int) -> RenderableType:
        """The whole screen."""
        if columns < WIDTH_AT_LEAST or lines < HEIGHT_AT_LEAST:
            return _line(f"terminal too small: {columns}x{lines}, needs {WIDTH_AT_LEAST}x{HEIGHT_AT_LEAST}", columns)
        tables, events = self._frozen if self._frozen is not None else (self._tables, self._events)
        chosen = [tables[self._focus]] if 0 <= self._focus < len(tables) else list(tables)
        room = lines - 2
        events_room = 0
        if self._streams and self._focus < 0:
            events_room = room if not chosen else max(room // 3, 3)
        parts: list[RenderableType] = [self._head(columns)]
        left = room - events_room
        for at, table in enumerate(chosen):
            share = left // (len(chosen) - at)
            # Of many maps those that do not fit are reached with tab.
            if share < 4:
                share = min(4, left)
            if share < 4:
                break
            used = min(share, len(table.rows) + 3)
            parts.append(self._draw(table, used, columns))
            left -= used
        if events_room:
            parts.append(_line(f"events: {self._events_total}", columns, style="bold"))
            newest = list(events)[-(events_room + max(left, 0) - 1) :]
            parts += [_line(event, columns) for event in newest]
        return Group(*parts, self._foot(columns))

    def _head(self, columns: int) -> Text:
        filters = "  ".join(f"filter {one}" for one in self._filters.given)
        state = "PAUSED  " if self._frozen is not None else ""
        attached = self._program.attached
        return _line(
            f"{state}{self._plan.scope.name}: {sum(attached.values())} of {len(attached)} programs attached, "
            f"{sum(len(table.rows) for table in self._tables)} rows  {filters}",
            columns,
            style="reverse",
        )

    def _foot(self, columns: int) -> Text:
        if self._typing is not None:
            return _line(f"filter MAP,LABEL,REGEX (empty for none): {self._typing}_", columns, style="reverse")
        return _line(self._message or _KEYS, columns, style="dim")

    def _draw(self, table: Shown, height: int, columns: int) -> Table:
        headings = [*table.labels, *table.columns]
        # Sorted by its first number unless told otherwise.
        at = (self._sort + len(table.labels)) % len(headings)
        numeric = at >= len(table.labels)

        def key(row: Row) -> Any:  # noqa: ANN401 - of one kind for all rows
            if not numeric:
                return row.labels[at]
            value = row.cells[at - len(table.labels)][1]
            return -math.inf if math.isnan(value) else value

        rows = sorted(table.rows, key=key, reverse=self._descending if numeric else not self._descending)
        shown = Table(
            title=None,
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1),
            width=columns,
            expand=False,
        )
        mark = "▼" if self._descending else "▲"
        for number, heading in enumerate(headings):
            text = heading + (f" {mark}" if number == at else "")
            right = number >= len(table.labels)
            shown.add_column(
                Text(text), justify="right" if right else "left", no_wrap=True, overflow="ellipsis", ratio=None
            )
        hidden = max(len(rows) - (height - 3), 0)
        caption = f"{table.title}" + (f"  {hidden} more rows" if hidden else "")
        for row in rows[: max(height - 3, 0)]:
            shown.add_row(*(Text(cell) for cell in row.labels), *(Text(text) for text, _ in row.cells))
        shown.title = Text(caption, style="bold", no_wrap=True, overflow="ellipsis")
        shown.title_justify = "left"
        return shown


def printable(text: str) -> str:
    """One line that cannot move the cursor, and is not endless."""
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if len(clean) <= _CELL_LIMIT else clean[: _CELL_LIMIT - 1] + "…"


def _line(text: str, columns: int, *, style: str = "") -> Text:
    made = Text("".join(c if c.isprintable() else "?" for c in text), style=style, no_wrap=True, overflow="ellipsis")
    made.truncate(columns, overflow="ellipsis")
    return made


def _event_line(event: Mapping[str, Any]) -> str:
    attributes = "  ".join(f"{name}={value}" for name, value in event["attributes"].items())
    return f"{str(event['time'])[11:23]}  {event['event']}  {attributes}"


def _columns(instrument: Instrument, *, alone: bool) -> list[str]:
    name = "" if alone else instrument.name.rpartition(".")[2] + " "
    unit = f" ({instrument.unit})" if instrument.unit and not instrument.unit.startswith("{") else ""
    if instrument.kind is Kind.HISTOGRAM:
        return [f"{name}count", f"{name}rate/s", f"{name}mean{unit}", f"{name}p50{unit}", f"{name}p99{unit}"]
    return [f"{name}value{unit}", f"{name}rate/s"] if instrument.kind is Kind.COUNTER else [f"{name}value{unit}"]


def _number(value: object) -> float:
    if isinstance(value, Mapping):
        return float(value["count"])
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def _cells(instrument: Instrument, value: object, rate: float) -> list[tuple[str, float]]:
    number = _number(value)
    if isinstance(value, Mapping):
        mean = value["sum"] / number if number and "sum" in value else math.nan
        quantiles = [quantile(value["buckets"], at) for at in (0.5, 0.99)]
        return [(show(each), each) for each in (number, rate, mean, *quantiles)]
    if instrument.kind is Kind.COUNTER:
        return [(show(number), number), (show(rate), rate)]
    return [(show(number), number)]


def quantile(buckets: Mapping[str, int], at: float) -> float:
    """The upper edge of the bucket in which this part of the observations ends; NaN without any."""
    wanted = at * sum(buckets.values())
    below = 0
    if not wanted:
        return math.nan
    for edge, count in buckets.items():
        below += count
        if below >= wanted:
            return math.inf if edge == "+Inf" else float(edge)
    return math.inf


def show(number: float) -> str:
    """A number in at most nine characters."""
    if math.isnan(number):
        return "-"
    if math.isinf(number):
        return "+Inf"
    if number == int(number) and abs(number) < 1e9:
        return str(int(number))
    return f"{number:.4g}"


def losses(view: LiveView, lost: Mapping[str, int]) -> Sequence[str]:
    """What was not shown, for the lines after the screen is gone."""
    told = [f"{view.failed} records could not be decoded"] if view.failed else []
    told += [f"{count} events dropped: {reason}" for reason, count in view.dropped.items()]
    return told + [
        f"{count} records of {name} lost in the kernel: its ring was full" for name, count in lost.items() if count
    ]
