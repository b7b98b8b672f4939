"""The text formats a scraper takes: Prometheus text 0.0.4 and 1.0.0, and OpenMetrics 1.0.0.

A family's header is written once and all its samples follow, whichever frames
they come from; a sample is one copy of the series' label text and its number, and is the
same bytes in every format that has it. Counters and gauges whose scale is a power of ten, and
bucket edges, are printed as exact decimals; other numbers as the shortest text that
reads back the same.

What differs is the header and the end. OpenMetrics names a counter's family without
``_total``, says the unit where the family's name ends in it, and closes with ``# EOF``.
All of our names are valid in the oldest format, so 1.0.0, which would quote others, differs in
its content type alone. Where the program kept no sum OpenMetrics has no ``_count`` either, only buckets, of
which the last says the same: one without the other makes strict parsers refuse the whole scrape.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.model import FrameView, Instrument, Kind, Snapshot

from ._encode import Form, text
from .form import compiled, unit_words

if TYPE_CHECKING:
    from prometheus_client.registry import Collector


class Exposition(enum.Enum):
    """A format of a scrape; the value is its ``Content-Type``.

    Exactly these: Prometheus 3 fails a scrape over anything it does not know.
    """

    TEXT_0_0_4 = "text/plain; version=0.0.4; charset=utf-8"
    TEXT_1_0_0 = "text/plain; version=1.0.0; charset=utf-8"
    OPENMETRICS_1_0_0 = "application/openmetrics-text; version=1.0.0; charset=utf-8"

    @property
    def content_type(self) -> str:
        """The header's value, without an escaping scheme."""
        return self.value

    @property
    def is_openmetrics(self) -> bool:
        """Whether families are named and ended as OpenMetrics does it."""
        return self is Exposition.OPENMETRICS_1_0_0


CONTENT_TYPE = Exposition.TEXT_0_0_4.content_type
"""Of what :func:`render` gives unless told otherwise."""

_END = b"# EOF\n"
_FAMILY = re.compile(rb"^# TYPE (\S+) (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Conflict:
    """A metric that cannot be shown because its name is taken by an unlike one."""

    name: str
    reason: str


def _sample_names(name: str, kind: str) -> tuple[str, ...]:
    if kind == "histogram":
        return (name, f"{name}_bucket", f"{name}_sum", f"{name}_count")
    if kind == "summary":
        return (name, f"{name}_sum", f"{name}_count")
    return (name,)


def _own_names(name: str, kind: str) -> tuple[str, ...]:
    """The names a family of the agent itself takes, the same whichever format it is written in."""
    if kind == "counter":
        family = name.removesuffix("_total")
        return (family, f"{family}_total")
    return _sample_names(name, kind)


class _Families:
    """Families in order of first appearance, and whose name each sample name is."""

    def __init__(self, own: bytes = b"") -> None:
        self._owners: dict[str, str] = {}
        self._first: dict[str, Instrument] = {}
        self.tables: dict[str, list[tuple[FrameView, Instrument]]] = {}
        self.conflicts: list[Conflict] = []
        for found in _FAMILY.finditer(own):
            name = found[1].decode()
            self._owners.update(dict.fromkeys(_own_names(name, found[2].decode()), "the agent itself"))

    def add(self, frame: FrameView, instrument: Instrument) -> None:
        """Put an instrument of a frame where it belongs, or among the conflicts."""
        name = instrument.prometheus_name
        first = self._first.get(name)
        if first is None:
            names = _sample_names(name, instrument.kind.value)
            taken = [self._owners[each] for each in names if each in self._owners]
            if taken:
                self.conflicts.append(Conflict(name, f"the name is used by {taken[0]}"))
                return
            self._owners.update(dict.fromkeys(names, f"metric {name!r} of {frame.scope.name!r}"))
            self._first[name] = instrument
            self.tables[name] = []
        elif first.kind is not instrument.kind:
            self.conflicts.append(
                Conflict(name, f"it is a {instrument.kind.value}, {self._owners[name]} is a {first.kind.value}")
            )
            return
        self.tables[name].append((frame, instrument))

    def first(self, name: str) -> Instrument:
        """The instrument whose help a family shows."""
        return self._first[name]

    def header(self, name: str, exposition: Exposition) -> bytes:
        """What stands before a family's samples."""
        instrument = self._first[name]
        if not exposition.is_openmetrics:
            return header(instrument)
        # A counter's family is named without its suffix, which must be nobody else's name. One that has no such
        # name is of unknown type: its series stay what they are in the other formats.
        family = name.removesuffix("_total")
        is_counter = family != name and not {family, f"{family}_created"} & self._owners.keys()
        return openmetrics_header(instrument, is_counter=is_counter)


def _families(frames: Iterable[FrameView], own: bytes) -> _Families:
    families = _Families(own)
    for frame in frames:
        for instrument in frame.instruments:
            families.add(frame, instrument)
    return families


def conflicts(frames: Sequence[FrameView], own: bytes = b"") -> list[Conflict]:
    """Which metrics :func:`render` leaves out because an earlier one has their name and is unlike."""
    return _families(frames, own).conflicts


def header(instrument: Instrument) -> bytes:
    """HELP (if there is a description) and TYPE of a family, in the text formats."""
    name = instrument.prometheus_name
    description = instrument.description.replace("\\", "\\\\").replace("\n", "\\n")
    lines = f"# HELP {name} {description}\n" if description else ""
    return f"{lines}# TYPE {name} {instrument.kind.value}\n".encode()


def openmetrics_header(instrument: Instrument, *, is_counter: bool = True) -> bytes:
    """HELP (if there is a description), TYPE and UNIT (if the name ends in it) of a family, in OpenMetrics.

    Args:
        instrument: The family's first.
        is_counter: Of a counter, whether it may be called one; else its type is unknown.
    """
    family, kind = instrument.prometheus_name, instrument.kind.value
    if instrument.kind is Kind.COUNTER:
        family, kind = (family.removesuffix("_total"), kind) if is_counter else (family, "unknown")
    description = instrument.description.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    lines = f"# HELP {family} {description}\n" if description else ""
    lines += f"# TYPE {family} {kind}\n"
    unit = unit_words(instrument)
    if unit and family.endswith(f"_{unit}"):
        lines += f"# UNIT {family} {unit}\n"
    return lines.encode()


def render(snapshot: Snapshot, own: bytes = b"", exposition: Exposition = Exposition.TEXT_0_0_4) -> bytes:
    """Render a scrape.

    Args:
        snapshot: Its frames' locks are held by the caller.
        own: The agent's own metrics, in the same format (:func:`registry_text`); they come last. A
            family of an image that has the name of one of these, or of a family
            of another kind, is left out (:func:`conflicts` says which).
        exposition: The format.

    Source: Prometheus "Exposition formats"; OpenMetrics 1.0.0, "Text format".
    """
    families = _families(snapshot.frames, own)
    views: dict[int, object] = {}
    parts: list[tuple[bytes, list[tuple[object, Form]]]] = []
    for name, tables in families.tables.items():
        forms: list[tuple[object, Form]] = []
        for frame, instrument in tables:
            view = views.get(id(frame))
            if view is None:
                view = views[id(frame)] = frame.view()
            forms.append((view, compiled(instrument, openmetrics=exposition.is_openmetrics)))
        parts.append((families.header(name, exposition), forms))
    return text(parts, own.removesuffix(_END) + _END if exposition.is_openmetrics else own)


def registry_text(registry: Collector, exposition: Exposition = Exposition.TEXT_0_0_4) -> bytes:
    """Render what prometheus-client collects, ready to be ``own`` of :func:`render` in the same format."""
    # Not needed by whoever only renders frames.
    from prometheus_client import generate_latest  # noqa: PLC0415
    from prometheus_client.openmetrics import exposition as openmetrics  # noqa: PLC0415

    if exposition.is_openmetrics:
        return bytes(openmetrics.generate_latest(registry, version="1.0.0"))  # type: ignore[no-untyped-call]
    return generate_latest(registry)
