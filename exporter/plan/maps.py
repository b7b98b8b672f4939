"""Decides about one map: private, a table of series, or a ring, which ``streams`` decides about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from exporter.bpf import Field, FieldKind, Layout, MapSpec, MapType, layout_of
from exporter.model import Kind, prometheus_label

from .context import SOURCES, TABLES, MapContext, listed, map_type_name
from .conventions import Tags, map_tags, member_tags
from .labels import LabelReader
from .metadata import MetricDeclaration, MetricMetadata, over
from .plan import LabelRule
from .streams import Ring, plan_ring
from .values import Metric, ValueReader, is_slot_array, value_leaves


@dataclass(frozen=True, slots=True)
class Table:
    """A map that is exported: its rows' labels and metrics before the configuration."""

    spec: MapSpec
    labels: tuple[LabelRule, ...]
    metrics: tuple[Metric, ...]


def plan_map(context: MapContext, prefix_kind: str | None) -> Table | Ring | None:
    """Decide about one map.

    Args:
        context: The map and what is said about it.
        prefix_kind: The kind that the map's name begins with, if it does.

    Returns:
        Its table or ring; None if it is private or something is wrong with it, which is then in the context.
    """
    tags = map_tags(context.owner, context.spec.tags, context.problems)
    return _MapPlanner(context, prefix_kind, tags).made()


@dataclass(frozen=True, slots=True)
class _MapPlanner:
    """The steps of :func:`plan_map`."""

    map: MapContext
    prefix_kind: str | None
    tags: Tags

    @property
    def document(self) -> MetricMetadata:
        return self.map.document.metrics.get(self.map.spec.name, MetricMetadata(MetricDeclaration()))

    def made(self) -> Table | Ring | None:
        name = self.map.spec.name
        event = self.map.document.events.get(name)
        declared = over(self.document.metric, self.tags.metric)
        if self.map.spec.pinning:
            self.map.note("its object pins it by name below the BPF file system, shared with whoever uses that name")
        sized = (*TABLES, MapType.RINGBUF, MapType.QUEUE, MapType.STACK)
        if self.map.spec.max_entries == 0 and self.map.spec.type in sized:
            self.map.problem("map_type", "max_entries is 0, which the kernel refuses; add __uint(max_entries, …)")
        if self.map.spec.type in SOURCES:
            return plan_ring(self.map, self.prefix_kind, self.tags)
        explicit = "event" if event is not None else declared.kind
        kind = explicit or self.prefix_kind
        if kind == "none":
            self.map.note("not exported: its kind is none")
            return None
        if kind == "event":
            text = f"events come from ring buffers, this is {map_type_name(self.map.spec)}; use BPF_MAP_TYPE_RINGBUF"
            if self.map.spec.type is MapType.USER_RINGBUF:
                text = "a user ring buffer carries records from user space to the program; there is nothing to read"
            self._refuse(explicit is not None, text)
            return None
        if self.map.spec.type is MapType.USER_RINGBUF and kind is not None:
            text = "a user ring buffer carries records from user space to the program; there is nothing to read"
            self._refuse(explicit is not None, text)
            return None
        return self._table(declared, kind, explicit is not None)

    def _refuse(self, explicit: bool, text: str) -> None:
        """What was asked for by name is an error, what only a prefix suggests is left out with a note."""
        if explicit:
            self.map.problem("map_type", text)
        else:
            self.map.note(f"not exported: {text}")

    # Tables.

    def _table(self, declared: MetricDeclaration, kind: str | None, explicit: bool) -> Table | None:
        layout = self._value_layout() if self.map.spec.type in TABLES else None
        members = self._member_declarations(layout) if layout else {}
        if kind is None and not any(_makes_metric(member) for member in members.values()):
            said = [*declared.said, *(["labels"] if self.document.labels else [])]
            if said:
                self.map.problem("tag", f"it has {listed(said)} but no kind; add kind=counter, gauge or histogram")
            else:
                self.map.note("not exported: nothing says its kind")
            return None
        if self.map.spec.type not in TABLES:
            self._refuse(explicit, f"{map_type_name(self.map.spec)} holds no rows that can be read as a {kind}")
            return None
        if layout is None:
            self.map.problem("value", "its value has no type; declare __type(value, …)")
            return None
        if self.document.metric.value is not None or any(member.is_value for member in members.values()):
            self.map.problem("value", "value names what a ring's records count; a member of a row needs a kind instead")
        key = self._key_reader()
        if key is None:
            return None
        slot_wanted = self._counts_by_slot(kind, layout, members)
        labels, slot = key.rules(slot_wanted=slot_wanted)
        if slot_wanted and slot is None:
            self.map.problem(
                "slots",
                "a histogram needs an array of slots in its value (named or tagged slots), or a slot number in its key "
                "(last member named slot or bucket, tagged slot, or an integer key)",
            )
            return None
        values = ValueReader(self.map, declared, kind, layout, members, slot)
        known = len(self.map.problems)
        metrics = tuple(values.metrics())
        if explicit and not metrics and len(self.map.problems) == known:
            self.map.problem("value", f"its value has no member that can be a {kind}; add one, or say kind=none")
        for metric in metrics:
            index = metric.elements.label.name if metric.elements else ""
            if index and any(prometheus_label(rule.name) == prometheus_label(index) for rule in labels):
                self.map.problem("key", f"label {index!r} is that of its elements; name that one with index=")
            if metric.kind is Kind.HISTOGRAM and any(prometheus_label(rule.name) == "le" for rule in labels):
                self.map.problem("key", "label 'le' is the histogram's own; give the member another name with label=")
        return Table(self.map.spec, labels, metrics)

    def _value_layout(self) -> Layout | None:
        return layout_of(self.map.object.btf, self.map.spec.value_type_id) if self.map.spec.value_type_id else None

    def _member_declarations(self, layout: Layout) -> dict[str, MetricDeclaration]:
        """What metadata and tags say about each member of the value, by member name."""
        prefix = self.map.spec.name + "."
        document = {
            name.removeprefix(prefix): entry
            for name, entry in self.map.document.metrics.items()
            if name.startswith(prefix)
        }
        members: dict[str, MetricDeclaration] = {}
        arrays: dict[str, Field] = {}
        leaves = value_leaves(layout, arrays)
        # An array of structs is no leaf, but may be spoken of: then that is said of all in it.
        for leaf in [*{array.name: array for array in arrays.values()}.values(), *leaves]:
            if not leaf.name:
                continue
            tags = member_tags(f"{self.map.owner} member {leaf.name!r}", leaf.tags, self.map.problems)
            declared = replace(tags.metric, kind="none") if tags.label.drop else tags.metric
            entry = document.get(leaf.name)
            members[leaf.name] = over(entry.metric if entry else None, declared)
            if leaf.name in arrays:
                above = members.get(arrays[leaf.name].name, MetricDeclaration())
                general = MetricDeclaration(kind=above.kind, enabled=above.enabled, index=above.index)
                members[leaf.name] = over(members[leaf.name], general)
        for name, entry in document.items():
            if name not in members:
                text = f"names no member of the value; it has {listed(members)}"
                self.map.problem_in_metadata(prefix + name, text)
            elif entry.labels:
                text = f"has labels, which belong to the map's key; say them under 'metrics.{self.map.spec.name}'"
                self.map.problem_in_metadata(prefix + name, text)
        return members

    def _key_reader(self) -> LabelReader | None:
        if not self.map.spec.key_type_id:
            if self.map.is_array:
                index = Field("", FieldKind.UINT, 0, 32, type_name="unsigned int")
                layout = Layout("u32", 4, (index,), scalar=True)
            else:
                self.map.problem("key", "its key has no type; declare __type(key, …)")
                return None
        else:
            layout = layout_of(self.map.object.btf, self.map.spec.key_type_id)
        return LabelReader(self.map, "key", dict(self.document.labels), layout, self.tags.label)

    def _counts_by_slot(self, kind: str | None, layout: Layout, members: Mapping[str, MetricDeclaration]) -> bool:
        """Whether the value is a count for a slot number in the key."""
        if kind != "histogram":
            return False
        return not any(
            is_slot_array(leaf, members.get(leaf.name, MetricDeclaration())) for leaf in value_leaves(layout)
        )


def _makes_metric(member: MetricDeclaration) -> bool:
    """Whether a member asks to be exported by itself, whatever its map is."""
    return member.kind != "none" and (member.kind is not None or member.slots is not None)
