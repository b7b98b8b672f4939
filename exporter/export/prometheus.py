"""Prometheus text format 0.0.4.

A family's header is written once and all its samples follow, whichever frames
they come from; a sample is one copy of the series' label text and its number.
Counters and gauges whose scale is a power of ten, and bucket edges, are printed as
exact decimals; other numbers as the shortest text that reads back the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exporter.model import FrameView, Instrument, Snapshot

from ._encode import Form, text
from .form import compiled

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Exactly this: Prometheus 3 fails a scrape over anything it does not know."""

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


class _Families:
    """Families in order of first appearance, and whose name each sample name is."""

    def __init__(self, own: bytes = b"") -> None:
        self._owners: dict[str, str] = {}
        self._first: dict[str, Instrument] = {}
        self.tables: dict[str, list[tuple[FrameView, Instrument]]] = {}
        self.conflicts: list[Conflict] = []
        for found in _FAMILY.finditer(own):
            name = found[1].decode()
            self._owners.update(dict.fromkeys(_sample_names(name, found[2].decode()), "the agent itself"))

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
    """HELP (if there is a description) and TYPE of a family."""
    name = instrument.prometheus_name
    description = instrument.description.replace("\\", "\\\\").replace("\n", "\\n")
    lines = f"# HELP {name} {description}\n" if description else ""
    return f"{lines}# TYPE {name} {instrument.kind.value}\n".encode()


def render(snapshot: Snapshot, own: bytes = b"") -> bytes:
    """Render a scrape.

    Args:
        snapshot: Its frames' locks are held by the caller.
        own: The agent's own metrics, ready in the same format; they come last. A
            family of an image that has the name of one of these, or of a family
            of another kind, is left out (:func:`conflicts` says which).

    Source: Prometheus "Exposition formats", text format 0.0.4.
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
            forms.append((view, compiled(instrument)))
        parts.append((header(families.first(name)), forms))
    return text(parts, own)
