"""What may be said about a map, an event or a member, and the image's document that says it.

Declaration tags (``conventions``) and the metadata document come down to the
same declarations, of which every part may be missing; :func:`over` lays the
stronger over the weaker one.

The document, JSON in an image and YAML beside a C file::

    version: 1
    description: Time from wake-up to running
    metrics:
      runqueue:                    # a map, or map.member for one member of a struct value
        {kind: histogram, name: ebpf.runqueue.latency, unit: s, scale: 1e-6, slots: log2_ceil, help: …}
      requests:                    # a ring: counts its records; of a histogram, value is the member observed
        {kind: histogram, value: latency_ns, labels: {path: {}}}
    events:
      exits: {name: ebpf.process.exit, severity: info, labels: {code: {name: exit_code}}, time: at}
    programs:
      on_fentry: {alternative: reads, rank: 1}    # of a group one program runs: the lowest rank that can
      on_kprobe: {alternative: reads, rank: 2}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import TypeVar

from exporter.errors import PlanError, SkepError, raise_all

from .decoders import parse_expression
from .slots import SlotScheme, parse_scale, parse_slots

KINDS = ("counter", "gauge", "histogram", "event", "none")
METRIC_KINDS = ("counter", "gauge", "histogram", "none")
"""What ``metrics`` may say; events have a section of their own."""
SEVERITIES = {"trace": 1, "debug": 5, "info": 9, "warn": 13, "error": 17}
"""OpenTelemetry severity numbers."""
TEXT_LIMIT = 1024
RANK_LIMIT = 99

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MetricDeclaration:
    """What is said about a map's, or a value or record member's metric; None is: nothing.

    Attributes:
        value: Of a ring: the member that its own metric adds or observes.
        is_value: Of a record's member: whether it is that one.
        index: Of an array: name of the label that tells its elements apart, and its decoder or "".
    """

    kind: str | None = None
    name: str | None = None
    unit: str | None = None
    scale: Fraction | None = None
    help: str | None = None
    slots: SlotScheme | None = None
    enabled: bool | None = None
    sum: bool | None = None
    value: str | None = None
    is_value: bool | None = None
    index: tuple[str, str] | None = None

    @property
    def said(self) -> tuple[str, ...]:
        """Which parts are said."""
        return tuple(part.name for part in fields(self) if getattr(self, part.name) is not None)


@dataclass(frozen=True, slots=True)
class LabelDeclaration:
    """What is said about a member of a key or record.

    Attributes:
        labels: ``(label name, decoder or "")``; several labels may come from one member.
        stack: The map that its stack id is of.
        series: Whether a record's member is also a label of the metrics that are made beside events.
        union: Of a union: the member that says which of its members holds.
        case: Of a union's member: the values of that member for which it holds; ``("*",)`` for all others.
    """

    labels: tuple[tuple[str, str], ...] | None = None
    decode: str | None = None
    drop: bool | None = None
    slot: bool | None = None
    time: bool | None = None
    stack: str | None = None
    series: bool | None = None
    union: str | None = None
    case: tuple[str, ...] | None = None

    @property
    def whole(self) -> bool:
        """Whether it makes a label of a struct or union as a whole."""
        return self.labels is not None or self.decode is not None


@dataclass(frozen=True, slots=True)
class EventDeclaration:
    """What is said about a ring's events.

    Attributes:
        switch: The ``const volatile bool`` that tells the program whether the events are wanted.
        count: The name of the counter that counts them, beside the events.
        record: The name of the records' type, of a map that has no type for its values.
    """

    name: str | None = None
    severity: int | None = None
    enabled: bool | None = None
    help: str | None = None
    lost: str | None = None
    switch: str | None = None
    count: str | None = None
    record: str | None = None


@dataclass(frozen=True, slots=True)
class ProgramDeclaration:
    """What is said about a program: the group of alternatives it is one of, and its place in it."""

    alternative: str | None = None
    rank: int | None = None


D = TypeVar("D", MetricDeclaration, LabelDeclaration, EventDeclaration)


def over(stronger: D | None, weaker: D) -> D:
    """The stronger declaration, with what it leaves unsaid taken from the weaker."""
    if stronger is None:
        return weaker
    said = {
        part.name: getattr(stronger, part.name) for part in fields(stronger) if getattr(stronger, part.name) is not None
    }
    return replace(weaker, **said)


@dataclass(frozen=True, slots=True)
class MetricMetadata:
    """One entry of ``metrics``."""

    metric: MetricDeclaration
    labels: Mapping[str, LabelDeclaration] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EventMetadata:
    """One entry of ``events``."""

    event: EventDeclaration
    labels: Mapping[str, LabelDeclaration] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """The whole document; ``metrics`` by map or ``map.member``, ``events`` by map, ``programs`` by function."""

    description: str = ""
    metrics: Mapping[str, MetricMetadata] = field(default_factory=dict)
    events: Mapping[str, EventMetadata] = field(default_factory=dict)
    programs: Mapping[str, ProgramDeclaration] = field(default_factory=dict)


def parse_metadata(document: Mapping[str, object]) -> ImageMetadata:
    """Read an image's metadata document.

    Args:
        document: As JSON or YAML gives it; an empty one says nothing.

    Raises:
        PlanError, Problems: all that is wrong with it.
    """
    reader = _Reader()
    metadata = reader.document(document) if document else ImageMetadata()
    raise_all(reader.problems)
    return metadata


def line(text: str) -> str:
    """A text that is one printable line.

    Raises:
        PlanError: it is not.
    """
    if not text.isprintable() or len(text) > TEXT_LIMIT:
        raise PlanError(
            f"{text[:60]!r}; expected one printable line of at most {TEXT_LIMIT} characters", code="plan.text"
        )
    return text


def word(text: str, allowed: Sequence[str]) -> str:
    """One of the allowed words.

    Raises:
        PlanError: it is not.
    """
    if text not in allowed:
        raise PlanError(f"{text[:60]!r}; expected one of {', '.join(allowed)}", code="plan.text")
    return text


def decoder(text: str) -> str:
    """A decoder's name, or an expression of :mod:`.decoders`.

    Raises:
        PlanError: it is none.
    """
    parse_expression(text)
    return text


def named_decoder(text: str) -> tuple[str, str]:
    """``name`` or ``name:decoder``; the decoder is empty where there is none.

    Raises:
        PlanError: what stands behind the colon is no decoder.
    """
    name, _, written = line(text).partition(":")
    return name, decoder(written) if written else ""


def cases(text: str) -> tuple[str, ...]:
    """The values of a union's tag for which a member holds: numbers or enumerators, or ``*`` for all others.

    Raises:
        PlanError: it names none.
    """
    found = tuple(part.strip() for part in line(text).split(","))
    if not all(found) or ("*" in found and len(found) > 1):
        raise PlanError(f"{text[:60]!r}; expected values such as 2,AF_INET6, or *", code="plan.text")
    return found


class _Reader:
    """Walks the document and collects what is wrong."""

    def __init__(self) -> None:
        self.problems: list[SkepError] = []

    def document(self, document: Mapping[str, object]) -> ImageMetadata:
        top = self.mapping("", document, ("version", "description", "metrics", "events", "programs"))
        if type(top.get("version")) is not int or top["version"] != 1:
            self.problem(
                "version", f"is {top.get('version')!r}; this skep reads version 1, use a newer one or write version: 1"
            )
        return ImageMetadata(
            description=self.take(top, "", "description", line) or "",
            metrics={
                name: self.metric(f"metrics.{name}", body)
                for name, body in self.mapping("metrics", top.get("metrics")).items()
            },
            events={
                name: self.event(f"events.{name}", body)
                for name, body in self.mapping("events", top.get("events")).items()
            },
            programs={
                name: self.program(f"programs.{name}", body)
                for name, body in self.mapping("programs", top.get("programs")).items()
            },
        )

    def program(self, path: str, body: object) -> ProgramDeclaration:
        parts = self.mapping(path, body, ("alternative", "rank"))
        rank = parts.get("rank")
        if rank is not None and (type(rank) is not int or not 0 <= rank <= RANK_LIMIT):
            self.problem(f"{path}.rank", f"is {rank!r:.60}; expected 0 to {RANK_LIMIT}")
            rank = None
        assert rank is None or isinstance(rank, int)
        return ProgramDeclaration(self.take(parts, path, "alternative", line), rank)

    def metric(self, path: str, body: object) -> MetricMetadata:
        parts = self.mapping(
            path, body, ("kind", "name", "unit", "scale", "help", "slots", "enabled", "sum", "value", "index", "labels")
        )
        scale = parts.get("scale")
        if type(scale) in (int, float):
            parts = {**parts, "scale": repr(scale)}
        return MetricMetadata(
            MetricDeclaration(
                kind=self.take(parts, path, "kind", lambda text: word(text, METRIC_KINDS)),
                name=self.take(parts, path, "name", line),
                unit=self.take(parts, path, "unit", line),
                scale=self.take(parts, path, "scale", parse_scale),
                help=self.take(parts, path, "help", line),
                slots=self.take(parts, path, "slots", parse_slots),
                enabled=self.flag(parts, path, "enabled"),
                sum=self.flag(parts, path, "sum"),
                value=self.take(parts, path, "value", line),
                index=self.take(parts, path, "index", named_decoder),
            ),
            self.labels(f"{path}.labels", parts.get("labels")),
        )

    def event(self, path: str, body: object) -> EventMetadata:
        parts = self.mapping(
            path, body, ("name", "severity", "enabled", "help", "lost", "switch", "record", "labels", "time")
        )
        severity = self.take(parts, path, "severity", lambda text: SEVERITIES[word(text, tuple(SEVERITIES))])
        labels = self.labels(f"{path}.labels", parts.get("labels"))
        time = self.take(parts, path, "time", line)
        if time is not None:
            labels = {**labels, time: replace(labels.get(time, LabelDeclaration()), time=True)}
        return EventMetadata(
            EventDeclaration(
                name=self.take(parts, path, "name", line),
                severity=severity,
                enabled=self.flag(parts, path, "enabled"),
                help=self.take(parts, path, "help", line),
                lost=self.take(parts, path, "lost", line),
                switch=self.take(parts, path, "switch", line),
                record=self.take(parts, path, "record", line),
            ),
            labels,
        )

    def labels(self, path: str, body: object) -> dict[str, LabelDeclaration]:
        return {member: self.label(f"{path}.{member}", entry) for member, entry in self.mapping(path, body).items()}

    def label(self, path: str, body: object) -> LabelDeclaration:
        parts = self.mapping(path, body, ("name", "decode", "drop", "slot", "labels", "stack", "union", "case"))
        if isinstance(parts.get("case"), int):
            parts = {**parts, "case": str(parts["case"])}
        name = self.take(parts, path, "name", line)
        several = self.mapping(f"{path}.labels", parts.get("labels"))
        if several and (name is not None or "decode" in parts):
            self.problem(path, "has both labels and name or decode; say each label under labels")
        labels = [(label, self.take(several, f"{path}.labels", label, decoder) or "") for label in several]
        if name is not None:
            labels.append((name, ""))
        return LabelDeclaration(
            labels=tuple(labels) or None,
            decode=self.take(parts, path, "decode", decoder),
            drop=self.flag(parts, path, "drop"),
            slot=self.flag(parts, path, "slot"),
            stack=self.take(parts, path, "stack", line),
            union=self.take(parts, path, "union", line),
            case=self.take(parts, path, "case", cases),
        )

    def mapping(self, path: str, body: object, keys: Sequence[str] = ()) -> dict[str, object]:
        """A mapping with text keys, of these if any are given; what is wrong becomes a problem and is left out."""
        if body is None:
            return {}
        if not isinstance(body, Mapping):
            self.problem(path, f"is {body!r:.60}; expected a mapping")
            return {}
        known: dict[str, object] = {}
        for key, value in body.items():
            if not isinstance(key, str) or (keys and key not in keys):
                self.problem(path, f"has key {key!r:.60}; expected one of {', '.join(keys) if keys else 'text'}")
            else:
                known[key] = value
        return known

    def take(self, parts: Mapping[str, object], path: str, key: str, read: Callable[[str], T]) -> T | None:
        """A text, read by ``read``."""
        value = parts.get(key)
        where = f"{path}.{key}" if path else key
        if value is None:
            return None
        if not isinstance(value, str):
            self.problem(where, f"is {value!r:.60}; expected text")
            return None
        try:
            return read(value)
        except PlanError as error:
            self.problem(where, f"is {error}")
            return None

    def flag(self, parts: Mapping[str, object], path: str, key: str) -> bool | None:
        value = parts.get(key)
        if value is None or isinstance(value, bool):
            return value
        self.problem(f"{path}.{key}", f"is {value!r:.60}; expected true or false")
        return None

    def problem(self, path: str, text: str) -> None:
        where = f"metadata {path!r}" if path else "metadata"
        self.problems.append(PlanError(f"{where} {text}", code="plan.metadata"))
