"""Decides about one map: private, a table of series, or a ring, which ``streams`` decides about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from exporter.bpf import Field, FieldKind, Layout, MapSpec, MapType, layout_of
from exporter.bpf.btf import Array
from exporter.model import Kind, prometheus_label

from .context import OF_MAPS, SOURCES, STORAGE, TABLES, MapContext, listed, map_type_name, why_no_table
from .conventions import Tags, map_tags, member_tags
from .labels import LabelReader
from .metadata import LabelDeclaration, MetricDeclaration, MetricMetadata, over
from .plan import InnerSource, LabelRule, SectionSource, Source, StorageSource
from .streams import Ring, plan_ring
from .values import Metric, ValueReader, is_slot_array, value_leaves

_TASK = Layout(
    "task",
    16,
    (
        Field("pid", FieldKind.UINT, 0, 32),
        Field("comm", FieldKind.UINT, 0, 32, tags=("skep:decode=pid.comm",)),
        Field("tid", FieldKind.UINT, 32, 32, tags=("skep:drop=true",)),
        Field("start", FieldKind.UINT, 64, 64, tags=("skep:drop=true",)),
    ),
)
_CGROUP = Layout("cgroup", 8, (Field("cgroup", FieldKind.UINT, 0, 64, tags=("skep:decode=cgroup",)),))
"""Keys of local storage as it is read, with what each member is shown as."""
NO_KIND = "not exported: nothing says its kind"
"""Of a map that is the program's own."""
_OUTER = "outer"
"""The label of an outer key that is no struct, where nothing names it."""


@dataclass(frozen=True, slots=True)
class Table:
    """A map that is exported: its rows' labels and metrics before the configuration."""

    spec: MapSpec
    labels: tuple[LabelRule, ...]
    metrics: tuple[Metric, ...]
    source: Source | None = None

    @property
    def owner(self) -> str:
        """The map as messages call it."""
        return f"{'global' if isinstance(self.source, SectionSource) else 'map'} {self.spec.name!r}"


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


def plan_variable(context: MapContext, prefix_kind: str | None, source: SectionSource) -> Table | None:
    """Decide about one global variable, which the context shows as the array of its elements.

    Returns:
        Its table; None if it is private, as a variable is of which nothing is said.
    """
    tags = map_tags(context.owner, context.spec.tags, context.problems)
    element = context.object.btf.resolve(context.spec.value_type_id)
    if source.count > 1 and tags.metric.index is not None and not isinstance(element, Array):
        # Its index is the key of what it is planned as; a further one is that of arrays inside.
        tags = replace(tags, label=replace(tags.label, labels=(tags.metric.index,)))
        tags = replace(tags, metric=replace(tags.metric, index=None))
    made = _MapPlanner(context, prefix_kind, tags).made_of_variable()
    return replace(made, source=source) if made else None


@dataclass(frozen=True, slots=True)
class _MapPlanner:
    """The steps of :func:`plan_map`."""

    map: MapContext
    prefix_kind: str | None
    tags: Tags
    labels: Mapping[str, LabelDeclaration] | None = None
    key: Layout | None = None

    @property
    def document(self) -> MetricMetadata:
        return self.map.document.metrics.get(self.map.spec.name, MetricMetadata(MetricDeclaration()))

    def made(self) -> Table | Ring | None:
        name = self.map.spec.name
        event = self.map.document.events.get(name)
        declared = over(self.document.metric, self.tags.metric)
        if self.map.spec.pinning:
            self.map.note("its object pins it by name below the BPF file system, shared with whoever uses that name")
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

    def made_of_variable(self) -> Table | None:
        declared = over(self.document.metric, self.tags.metric)
        kind = declared.kind or self.prefix_kind
        if kind == "none":
            return None
        if kind == "event" or self.map.spec.name in self.map.document.events:
            if declared.kind is not None or self.map.spec.name in self.map.document.events:
                self.map.problem("map_type", 'a variable gives no events; declare a ring buffer in SEC(".maps")')
            return None
        return self._table(declared, kind, declared.kind is not None)

    def _refuse(self, explicit: bool, text: str) -> None:
        """What was asked for by name is an error, what only a prefix suggests is left out with a note."""
        if explicit:
            self.map.problem("map_type", text)
        else:
            self.map.note(f"not exported: {text}")

    # Tables.

    def _table(self, declared: MetricDeclaration, kind: str | None, explicit: bool) -> Table | None:
        if self.map.spec.type in OF_MAPS and kind is not None:
            return self._inner_table(declared, kind, explicit)
        if self.map.spec.type in STORAGE and kind is not None:
            return self._storage_table(declared, kind, explicit)
        layout = self._value_layout() if self.map.spec.type in TABLES else None
        members = self._member_declarations(layout) if layout else {}
        if kind is None and not any(_makes_metric(member) for member in members.values()):
            said = [*declared.said, *(["labels"] if self.document.labels else [])]
            if said:
                self.map.problem("tag", f"it has {listed(said)} but no kind; add kind=counter, gauge or histogram")
            elif self.map.what == "map":
                self.map.note(NO_KIND)
            return None
        if self.map.spec.type not in TABLES:
            self._refuse(explicit, f"cannot be a {kind}: {why_no_table(self.map.spec)}")
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

    def _inner_table(self, declared: MetricDeclaration, kind: str, explicit: bool) -> Table | None:
        """The rows of the maps that a map holds, with the outer key's labels before the inner key's."""
        outer, inner = self.map.spec, self.map.spec.inner
        if inner is None:
            self._refuse(explicit, "nothing says what maps it holds; declare __array(values, struct {…})")
            return None
        if outer.key_type_id:
            layout = layout_of(self.map.object.btf, outer.key_type_id)
        else:
            layout = Layout("bytes", outer.key_size, (Field("", FieldKind.UINT, 0, 8 * outer.key_size),), scalar=True)
        names = {_OUTER} if layout.scalar else {leaf.name for leaf in layout.leaves()}
        document = dict(self.document.labels)
        said = {name: document.pop(name) for name in list(document) if name in names}
        whole = self.tags.label if layout.scalar else LabelDeclaration()
        reader = LabelReader(self.map, "key", said, layout, whole, scalar_name=_OUTER)
        outer_labels, _ = reader.rules()
        held = replace(self.map, spec=replace(inner, name=outer.name, tags=outer.tags))
        tags = replace(self.tags, label=LabelDeclaration()) if layout.scalar else self.tags
        made = _MapPlanner(held, self.prefix_kind, tags, document)._table(declared, kind, explicit)
        if made is None:
            return None
        source = InnerSource(outer.key_size)
        labels = outer_labels + tuple(_moved(rule, source.before_bytes) for rule in made.labels)
        shown = [prometheus_label(rule.name) for rule in labels]
        for name in sorted({name for name in shown if shown.count(name) > 1}):
            self.map.problem("key", f"label {name!r} is one of the outer and of the inner key; rename one with label=")
        spec = replace(held.spec, key_size=source.before_bytes + inner.key_size)
        metrics = tuple(_with_slot_moved(metric, source.before_bytes) for metric in made.metrics)
        return Table(spec, labels, metrics, source)

    def _storage_table(self, declared: MetricDeclaration, kind: str, explicit: bool) -> Table | None:
        """The rows of a local storage, by whom they belong to."""
        source = StorageSource(STORAGE[self.map.spec.type])
        layout = _TASK if source.of == "task" else _CGROUP
        # Its rows are those of a hash whose key says whose they are.
        spec = replace(self.map.spec, type=MapType.HASH, key_size=layout.size)
        shown = replace(self.map, spec=spec)
        made = _MapPlanner(shown, self.prefix_kind, self.tags, self.labels, layout)._table(declared, kind, explicit)
        return replace(made, source=source) if made else None

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
        if self.key is not None:
            layout = self.key
        elif not self.map.spec.key_type_id:
            if self.map.is_array:
                index = Field("", FieldKind.UINT, 0, 32, type_name="unsigned int")
                layout = Layout("u32", 4, (index,), scalar=True)
            elif self.map.is_trie and self.map.spec.key_size:
                size = self.map.spec.key_size
                layout = Layout("bytes", size, (Field("", FieldKind.BYTES, 0, 8 * size),), scalar=True)
            else:
                self.map.problem("key", "its key has no type; declare __type(key, …)")
                return None
        else:
            layout = layout_of(self.map.object.btf, self.map.spec.key_type_id)
        labels = self.document.labels if self.labels is None else self.labels
        return LabelReader(self.map, "key", dict(labels), layout, self.tags.label)

    def _counts_by_slot(self, kind: str | None, layout: Layout, members: Mapping[str, MetricDeclaration]) -> bool:
        """Whether the value is a count for a slot number in the key."""
        if kind != "histogram":
            return False
        return not any(
            is_slot_array(leaf, members.get(leaf.name, MetricDeclaration())) for leaf in value_leaves(layout)
        )


def _moved(rule: LabelRule, before_bytes: int) -> LabelRule:
    """A rule of a key that others were put before."""
    moved = rule.placed(lambda offset_bits: offset_bits + 8 * before_bytes)
    return replace(moved, base_bytes=rule.base_bytes + before_bytes)


def _with_slot_moved(metric: Metric, before_bytes: int) -> Metric:
    if metric.elements is not None:
        metric = replace(metric, elements=replace(metric.elements, label=_moved(metric.elements.label, before_bytes)))
    if metric.histogram is None or metric.histogram.slot is None:
        return metric
    slot = metric.histogram.slot
    moved = replace(slot, offset_bits=slot.offset_bits + 8 * before_bytes)
    return replace(metric, histogram=replace(metric.histogram, slot=moved))


def _makes_metric(member: MetricDeclaration) -> bool:
    """Whether a member asks to be exported by itself, whatever its map is."""
    return member.kind != "none" and (member.kind is not None or member.slots is not None)
