"""Decides about one ring: the events and the metrics that its records make.

A ring says itself what its records are: events (``print_``, ``kind=event``), counts
(``counter_``: one a record) or observations (``hist_``: one member of each). One
that makes events may make metrics beside them, of the same records: counted
(``count=NAME``), and of each member that has a kind. In a ring without events
every member that makes no number is a label, as BumbleBee has it; beside events
only members that are named as labels are, since an attribute of an event may
well be different in every record.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from exporter.bpf import Field, FieldKind, Layout, MapSpec, MapType, layout_of
from exporter.bpf.btf import Struct, Typedef, Union
from exporter.errors import PlanError
from exporter.model import CellType, Kind, prometheus_label

from .context import ARRAYS, SOURCES, MapContext, described, listed, map_type_name
from .conventions import Tags, is_padding, member_tags
from .decoders import TEXT_BYTES
from .labels import LabelReader, value_rule
from .metadata import EventMetadata, LabelDeclaration, MetricDeclaration, MetricMetadata, over
from .plan import LabelRule, RecordRule, StreamPlan
from .slots import SlotScheme
from .values import OTEL_NAME, Metric, cell_type_of, is_number, metric_of, unit_and_scale

OBSERVED_NAMES = ("le", "value")
"""What the member that a histogram observes is called, if nothing is said; the first is BumbleBee's."""
BUMBLEBEE_EDGES = SlotScheme("edges", edges=tuple(map(Fraction, (0, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000))))
_DEFAULT_SLOTS = 37
"""Of log2 buckets nobody asked for: up to 2^36, 69 seconds of nanoseconds or 64 GiB."""
_DESCRIPTOR_SIZE = 4
_MADE = ("counter", "histogram")
_SOURCE_NAMES = {"ring": "ring buffer", "perf": "perf event array", "queue": "queue", "stack": "stack"}
_TAIL_DECODERS = {FieldKind.CHARS: ("string", "bytes"), FieldKind.BYTES: ("bytes", "string")}
"""What the bytes of a flexible array may be, first what they are if nothing is said."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The metrics that a ring's records make: their labels and cells before the configuration."""

    spec: MapSpec
    labels: tuple[LabelRule, ...]
    metrics: tuple[Metric, ...]
    record_size: int


@dataclass(frozen=True, slots=True)
class Ring:
    """A ring that is read; without a tally it only makes events."""

    stream: StreamPlan
    tally: Tally | None


@dataclass(frozen=True, slots=True)
class RingKind:
    """What a ring's records become.

    Attributes:
        event: Whether they become events.
        metric: ``counter`` or ``histogram``, if the ring itself is one.
        explicit: Whether more than a name prefix says so.
    """

    event: bool
    metric: str | None
    explicit: bool


def ring_kind(map: MapContext, prefix_kind: str | None, tags: Tags) -> RingKind:
    """What the metadata, the tags and the name of a ring say it is."""
    said = map.document.metrics.get(map.spec.name, MetricMetadata(MetricDeclaration())).metric.kind
    event = map.spec.name in map.document.events
    if said == "none" and not event:
        return RingKind(False, None, True)
    tagged = tags.metric.kind
    if tagged is None and prefix_kind is not None:
        tagged, explicit = prefix_kind, False
    else:
        explicit = tagged is not None
    event = event or tagged == "event"
    metric = said if said in _MADE else tagged if tagged in _MADE and said is None else None
    if metric is None and tags.event.count is not None:
        metric = "counter"
    return RingKind(event, metric, explicit or (event and map.spec.name in map.document.events) or said is not None)


def plan_ring(map: MapContext, prefix_kind: str | None, tags: Tags) -> Ring | None:
    """Decide about one ring.

    Returns:
        What it makes; None if it is private or something is wrong with it, which is then in the context.
    """
    return _RingPlanner(map, tags, ring_kind(map, prefix_kind, tags)).made(prefix_kind)


@dataclass(frozen=True, slots=True)
class _RingPlanner:
    """The steps of :func:`plan_ring`."""

    map: MapContext
    tags: Tags
    kind: RingKind

    @property
    def document(self) -> MetricMetadata:
        return self.map.document.metrics.get(self.map.spec.name, MetricMetadata(MetricDeclaration()))

    @property
    def event(self) -> EventMetadata | None:
        return self.map.document.events.get(self.map.spec.name)

    def made(self, prefix_kind: str | None) -> Ring | None:
        if self._is_left_alone():
            return None
        layout = self._layout()
        members = self._members(layout) if layout is not None else {}
        if "gauge" in (
            self.document.metric.kind,
            self.tags.metric.kind,
            prefix_kind if not self.kind.explicit else None,
        ):
            self._refuse(
                "a gauge is what is there now, and a record tells of something that is over; use counter or histogram"
            )
            return None
        makes = self.kind.event or self.kind.metric or any(_is_metric(member) for member in members.values())
        if not makes:
            self._left_out()
            return None
        if layout is None:
            if not self.said_record:
                self.map.problem("record", "its records have no type; declare __type(value, struct …)")
            return None
        if self.kind.event and self.document != MetricMetadata(MetricDeclaration()) and self.kind.metric is None:
            self.map.problem_in_metadata(
                self.map.spec.name, f"is about a map of events; say it under 'events.{self.map.spec.name}'"
            )
        tally = self._tally(layout, members)
        if not self.kind.event and tally is None:
            return None
        return Ring(self._stream(layout), tally)

    @property
    def source(self) -> str:
        return SOURCES[MapType(self.map.spec.type_number)]

    @property
    def said_record(self) -> str:
        """The name of the records' type, if one is said."""
        return over(self.event.event if self.event else None, self.tags.event).record or ""

    def _is_left_alone(self) -> bool:
        """A queue is the program's own, and taking from it changes what the program does: only if it is asked for."""
        if self.source not in ("queue", "stack"):
            return False
        if self.kind.explicit and (self.kind.event or self.kind.metric):
            return False
        if self.kind.event or self.kind.metric:
            self.map.note(
                f"not exported: reading a {self.source} takes its values away from the program; if they are meant for "
                "that, tag it kind=event (SKEP_EVENT)"
            )
            return True
        return False

    def _layout(self) -> Layout | None:
        spec, btf = self.map.spec, self.map.object.btf
        if self.said_record:
            return self._named_layout(self.said_record)
        layout = layout_of(btf, spec.value_type_id) if spec.value_type_id else None
        if self.source == "perf" and layout is not None and layout.scalar and layout.size == _DESCRIPTOR_SIZE:
            return None  # the value the kernel means: a descriptor
        return layout

    def _named_layout(self, said: str) -> Layout | None:
        """The record type of a map whose values have none."""
        word, _, rest = said.partition(" ")
        btf, name = self.map.object.btf, rest if word in ("struct", "union") else said
        for found in (
            btf.find(Struct, name) if word != "union" else None,
            btf.find(Union, name) if word != "struct" else None,
            btf.find(Typedef, name) if name == said else None,
        ):
            if found is not None:
                layout = layout_of(btf, found[0])
                size = self.map.spec.value_size
                if self.source in ("queue", "stack") and layout.size != size:
                    self.map.problem("record", f"record is {said!r} of {layout.size} bytes, its values have {size}")
                    return None
                return layout
        self.map.problem(
            "record",
            f"record is {said!r}, which the object's BTF does not have; declare __type(value, {said}), or a global "
            "`const struct … *unused` that keeps the type",
        )
        return None

    def _left_out(self) -> None:
        said = [*self.document.metric.said, *(["labels"] if self.document.labels else [])]
        if self.document.metric.kind == "none" or self.tags.metric.kind == "none":
            self.map.note("not exported: its kind is none")
        elif said or self.tags.metric.said:
            told = listed(dict.fromkeys((*said, *self.tags.metric.said)))
            self.map.problem("tag", f"it has {told} but no kind; add kind=event, counter or histogram")
        else:
            self.map.note("not exported: nothing says its kind")

    def _refuse(self, text: str) -> None:
        """What was asked for by name is an error, what only a prefix suggests is left out with a note."""
        if self.kind.explicit:
            self.map.problem("map_type", text)
        else:
            self.map.note(f"not exported: {text}")

    # Events.

    def _stream(self, layout: Layout) -> StreamPlan:
        declared = over(self.event.event if self.event else None, self.tags.event)
        rules: tuple[LabelRule, ...] = ()
        tail: LabelRule | None = None
        time = None
        if self.kind.event:
            said = self._event_labels()
            tail = self._tail(layout, said)
            labels = LabelReader(self.map, "record", said, layout, self.tags.label)
            rules, _ = labels.rules()
            time = labels.time
            if tail is not None and any(prometheus_label(rule.name) == prometheus_label(tail.name) for rule in rules):
                self.map.problem("record", f"two labels are named {tail.name!r}; give one another name with label=")
            if time is not None and (time.size_bits != 64 or time.kind is not FieldKind.UINT):
                self.map.problem(
                    "record", f"member {time.name!r} is marked as time; expected the u64 of bpf_ktime_get_ns()"
                )
        name = self._event_name() if self.kind.event else self.map.spec.name
        if self.kind.event and not OTEL_NAME.fullmatch(name):
            self.map.problem("name", f"event name {name!r}; expected a dotted name of letters, digits and '_'")
        if declared.lost is not None:
            self._check_lost(declared.lost)
        return StreamPlan(
            map=self.map.spec.name,
            event_name=name,
            attributes=rules,
            record_size=_least_size(layout),
            description=declared.help or f"Records of eBPF {_SOURCE_NAMES[self.source]} {self.map.spec.name}",
            time=value_rule(time) if time else None,
            severity=declared.severity or 9,
            lost_map=declared.lost or "",
            enabled=self.kind.event and declared.enabled is not False,
            switch=self._switch(declared.switch) if declared.switch is not None else "",
            metrics_only=not self.kind.event,
            tail=tail,
            source=self.source,
        )

    def _tail(self, layout: Layout, said: dict[str, LabelDeclaration]) -> LabelRule | None:
        """The flexible array at the end of a record as an attribute; what is said about it is taken out of ``said``."""
        tail = layout.tail
        if tail is None:
            return None
        tags = member_tags(f"{self.map.owner} record member {tail.name!r}", tail.tags, self.map.problems).label
        declared = over(said.pop(tail.name, None), tags)
        if declared.drop or (is_padding(tail) and not declared.whole):
            return None
        allowed: tuple[str, ...] = _TAIL_DECODERS.get(tail.kind, ())
        if tail.kind is FieldKind.ARRAY:
            allowed = ("int" if tail.signed else "uint",)
        name, decoder = (declared.labels or ((tail.name, ""),))[0]
        decoder = decoder or declared.decode or next(iter(allowed), "")
        if decoder not in allowed or len(declared.labels or ()) > 1:
            self.map.problem(
                "record",
                f"record member {tail.name!r} is an array without a length of {tail.type_name or 'structs'}, shown as "
                f"{listed(allowed)}; change its decoder, or tag it drop=true",
            )
            return None
        return LabelRule(name, decoder, tail.offset_bits, tail.size_bits, tail.signed)

    def _event_name(self) -> str:
        declared = over(self.event.event if self.event else None, self.tags.event)
        return declared.name or f"ebpf.{self.map.base_name}"

    def _event_labels(self) -> dict[str, LabelDeclaration]:
        return dict(self.event.labels) if self.event else {}

    def _check_lost(self, name: str) -> None:
        try:
            lost = self.map.object.map(name)
        except KeyError:
            names = [spec.name for spec in self.map.object.maps]
            self.map.problem("record", f"lost is {name!r}, which is no map; the object has {listed(names)}")
            return
        if lost.type not in ARRAYS or lost.value_size != 8:
            self.map.problem(
                "record",
                f"lost is {name!r}, {map_type_name(lost)} of {lost.value_size} bytes; expected an array of u64",
            )

    def _switch(self, name: str) -> str:
        """The name, if it is that of a global that can be set to true or false."""
        entry = next((entry for entry in self.map.object.globals if entry.name == name and entry.constant), None)
        if entry is None:
            known = [entry.name for entry in self.map.object.globals if entry.constant]
            text = f"switch is {name!r}, which is no `const volatile` global; the object has {listed(known)}"
        else:
            layout = layout_of(self.map.object.btf, entry.type_id)
            if layout.scalar and [field.kind for field in layout.fields] == [FieldKind.BOOL]:
                return name
            text = f"switch is {name!r} of type {layout.type_name}; expected bool"
        self.map.problem("record", text)
        return ""

    # Metrics.

    def _members(self, layout: Layout) -> dict[str, MetricDeclaration]:
        """What metadata and tags say about each member as a number, by member name."""
        prefix = self.map.spec.name + "."
        document = {
            name.removeprefix(prefix): entry
            for name, entry in self.map.document.metrics.items()
            if name.startswith(prefix)
        }
        members: dict[str, MetricDeclaration] = {}
        for leaf in layout.leaves():
            tags = member_tags(f"{self.map.owner} member {leaf.name!r}", leaf.tags, self.map.problems)
            members[leaf.name] = over(document[leaf.name].metric if leaf.name in document else None, tags.metric)
        for name, entry in document.items():
            if name not in members:
                text = f"names no member of the record; it has {listed(members)}"
                self.map.problem_in_metadata(prefix + name, text)
            elif entry.labels:
                text = f"has labels, which all metrics of a ring share; say them under 'metrics.{self.map.spec.name}'"
                self.map.problem_in_metadata(prefix + name, text)
        return members

    def _tally(self, layout: Layout, members: Mapping[str, MetricDeclaration]) -> Tally | None:
        leaves = {leaf.name: leaf for leaf in layout.leaves()}
        metrics: list[Metric] = []
        numbers: list[Field] = []
        if self.kind.metric is not None:
            observed = self._observed(leaves, members, layout)
            if observed is not None:
                numbers.append(observed)
            elif self.kind.metric == "histogram":
                self._refuse(
                    "a histogram observes one member of each record; name it value, or tag it value=true (SKEP_VALUE)"
                )
                return None
            metrics += self._own(observed)
        for name, member in members.items():
            if _is_metric(member):
                numbers.append(leaves[name])
                metrics += self._of_member(leaves[name], member)
        if not metrics:
            return None
        labels = self._labels(layout, numbers)
        for metric in metrics:
            if metric.kind is Kind.HISTOGRAM and any(prometheus_label(rule.name) == "le" for rule in labels):
                self.map.problem(
                    "record", "label 'le' is the histogram's own; give the member another name with label="
                )
        return Tally(self.map.spec, labels, tuple(metrics), _least_size(layout))

    def _observed(
        self, leaves: Mapping[str, Field], members: Mapping[str, MetricDeclaration], layout: Layout
    ) -> Field | None:
        """The member that the ring's own metric adds or observes."""
        said = self.document.metric.value
        if said is not None:
            if said not in leaves:
                text = f"has value {said!r}, which is no member of the record; it has {listed(leaves)}"
                self.map.problem_in_metadata(self.map.spec.name, text)
                return None
            return leaves[said]
        tagged = [name for name, member in members.items() if member.is_value]
        if len(tagged) > 1:
            self.map.problem("record", f"members {listed(tagged)} are all tagged as its value; expected one")
        if tagged:
            return leaves[tagged[0]]
        if self.kind.metric != "histogram":
            return None
        if layout.scalar:
            return leaves[""]
        return next((leaves[name] for name in OBSERVED_NAMES if name in leaves), None)

    def _own(self, observed: Field | None) -> Iterable[Metric]:
        """The metric that the ring itself is."""
        declared = replace(over(self.document.metric, self.tags.metric), kind=self.kind.metric)
        if self.kind.event:
            # Name, help and enabled of the tags are the event's.
            declared = replace(
                declared,
                name=self.document.metric.name or self.tags.event.count,
                help=self.document.metric.help,
                enabled=self.document.metric.enabled,
            )
        what = f"member {observed.name} of records" if observed is not None and observed.name else "Records"
        help_text = (
            declared.help or f"{what[0].upper()}{what[1:]} of eBPF {_SOURCE_NAMES[self.source]} {self.map.spec.name}"
        )
        name = declared.name or (self._event_name() if self.kind.event else f"ebpf.{self.map.base_name}")
        yield from self._metric(name, observed, replace(declared, help=help_text))

    def _of_member(self, leaf: Field, declared: MetricDeclaration) -> Iterable[Metric]:
        """A metric that one member makes."""
        stem = self._event_name() if self.kind.event else self.tags.metric.name or f"ebpf.{self.map.base_name}"
        stem = self.document.metric.name or stem
        help_text = (
            declared.help or f"Member {leaf.name} of records of eBPF {_SOURCE_NAMES[self.source]} {self.map.spec.name}"
        )
        kind = declared.kind or "histogram"
        name = declared.name or (f"{stem}.{leaf.name}" if leaf.name else stem)
        yield from self._metric(name, leaf, replace(declared, kind=kind, help=help_text))

    def _metric(self, name: str, leaf: Field | None, declared: MetricDeclaration) -> Iterable[Metric]:
        """One counter or histogram of one number, or of none."""
        if declared.kind not in _MADE:
            self.map.problem("kind", f"record member {(leaf.name if leaf else '')!r} has kind {declared.kind!r}; "
                             "expected counter or histogram")  # fmt: skip
            return
        if leaf is None:
            yield from metric_of(
                self.map, name, Kind.COUNTER, unit=declared.unit or "", declared=declared, leaf=None,
                scale=declared.scale or Fraction(1), cell_type=CellType.U64, record=RecordRule(),
            )  # fmt: skip
            return
        if not is_number(leaf):
            self.map.problem(
                "record",
                f"record member {leaf.name!r} is {described(leaf)}, which is no number for a {declared.kind}; use an "
                "integer of up to 64 bits or a float",
            )
            return
        unit, scale = unit_and_scale(leaf, declared)
        bounds: tuple[float, ...] = ()
        edges: tuple[int | float, ...] = ()
        if declared.kind == "histogram":
            scheme = declared.slots or self._default_slots(leaf)
            try:
                bounds, edges = _edges(scheme, leaf, scale)
            except PlanError as error:
                self.map.problem("slots", str(error))
                return
        yield from metric_of(
            self.map, name, Kind(declared.kind), unit=unit, declared=declared, leaf=leaf, scale=scale,
            cell_type=cell_type_of(leaf), bounds=bounds, record=RecordRule(value_rule(leaf), edges),
        )  # fmt: skip

    def _default_slots(self, leaf: Field) -> SlotScheme:
        scheme = SlotScheme("log2_ceil", count=min(leaf.size_bits + 1, _DEFAULT_SLOTS))
        if leaf.name == OBSERVED_NAMES[0]:
            scheme = BUMBLEBEE_EDGES
        self.map.note(f"nothing says the buckets of {leaf.name or 'its records'!r}; taken as {scheme}")
        return scheme

    def _labels(self, layout: Layout, numbers: Sequence[Field]) -> tuple[LabelRule, ...]:
        """The labels that all metrics of the ring have."""
        said = dict(self.document.labels)
        if layout.tail is not None and not self.kind.event:
            self.map.note(f"record member {layout.tail.name!r} is no label: its length differs from record to record")
        if self.kind.event:
            # What an attribute is called and how it is shown holds for the label, too.
            said = {name: over(said.get(name), entry) for name, entry in self._event_labels().items()} | {
                name: entry for name, entry in said.items() if name not in self._event_labels()
            }
        if layout.tail is not None:
            said.pop(layout.tail.name, None)
        rules, _ = LabelReader(self.map, "record", said, layout, self.tags.label).rules()
        if self.kind.event:
            chosen = [
                leaf for leaf in _fields(layout.fields) if leaf.name in self.document.labels or self._is_label(leaf)
            ]
            return tuple(rule for rule in rules if any(_inside(rule, leaf) for leaf in chosen))
        taken = [leaf for leaf in numbers if not self._is_named(leaf)]
        return tuple(rule for rule in rules if not any(_inside(rule, leaf) for leaf in taken))

    def _is_label(self, leaf: Field) -> bool:
        return member_tags(self.map.owner, leaf.tags, []).label.series is True

    def _is_named(self, leaf: Field) -> bool:
        """Whether a number is asked for as a label, too."""
        tags = member_tags(self.map.owner, leaf.tags, []).label
        return over(self.document.labels.get(leaf.name), tags).labels is not None


def _least_size(layout: Layout) -> int:
    """Bytes that every record has: a flexible array may begin where the struct's padding does.

    A text at the end that is too long to be shown is sent as far as it was filled.
    """
    if layout.tail is not None:
        return layout.tail.offset_bits // 8
    last = layout.fields[-1] if layout.fields else None
    if last is not None and last.kind is FieldKind.CHARS and last.size_bits > 8 * TEXT_BYTES:
        return last.offset_bits // 8
    return layout.size


def _fields(fields: Iterable[Field]) -> Iterable[Field]:
    """All fields of all depths."""
    for one in fields:
        yield one
        yield from _fields(one.members)


def _inside(rule: LabelRule, leaf: Field) -> bool:
    return leaf.offset_bits <= rule.offset_bits < leaf.offset_bits + leaf.size_bits


def _is_metric(member: MetricDeclaration) -> bool:
    """Whether a member asks to be a metric of its own."""
    return not member.is_value and member.kind != "none" and (member.kind is not None or member.slots is not None)


def _edges(scheme: SlotScheme, leaf: Field, scale: Fraction) -> tuple[tuple[float, ...], tuple[int | float, ...]]:
    """The bounds of a histogram in its unit, and its edges as its numbers are.

    Raises:
        PlanError: the scheme has no edges that fit.
    """
    count = scheme.slots_for(leaf.size_bits)
    if not count:
        raise PlanError(
            f"slots {str(scheme)!r} does not say how many slots there are; write linear:<width>:<min>:<slots>",
            code="plan.slots",
        )
    bounds = scheme.bounds(count, scale)
    exact = scheme.edges_of(count)
    if leaf.kind is FieldKind.FLOAT:
        return bounds, tuple(float(edge) for edge in exact)
    whole = tuple(math.floor(edge) for edge in exact)
    if len(set(whole)) < len(whole):
        raise PlanError(f"edges of {str(scheme)!r} fall together for whole numbers; use fewer", code="plan.slots")
    return bounds, whole
