"""Decides what is measured: an object, its metadata and the configuration become one :class:`Plan`.

Each map goes through the same steps: what is declared about it (metadata over
tags over name prefix), what its BTF types hold (labels from the key, metrics
from the value), and what the configuration changes. Every step adds what is
wrong to one list, so that a person sees all of it at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from exporter.bpf import GlobalSpec, MapType, ObjectSpec
from exporter.config import ImageConfig, MapConfig, MetricConfig
from exporter.errors import ObjectError, PlanError, Problems, SkepError, raise_all
from exporter.model import Kind, Scope, prometheus_label, prometheus_name

from .context import ARRAYS, RINGS, MapContext, listed, mebibytes
from .conventions import KIND_TAG, is_ours, kind_prefix
from .decoders import DECODERS
from .globals import as_array, plan_globals
from .labels import LABEL_NAME
from .maps import NO_KIND, Table, plan_map, plan_variable
from .memory import data_memory, map_memory, perf_memory
from .metadata import (
    ImageMetadata,
    parse_metadata,
)
from .plan import (
    InnerSource,
    LabelRule,
    MapPlan,
    MetricPlan,
    Plan,
    StreamPlan,
    TablePlan,
)
from .programs import plan_programs
from .sizes import size_maps
from .streams import Tally
from .together import exposed_names
from .values import OTEL_NAME, Metric

NOTHING_EXPORTED = (
    "nothing is exported: no map has a kind; give one a tag, a name prefix such as counter_, or metadata, "
    "metrics.MAP.kind (to try it: --kind MAP=counter)"
)
_PROMETHEUS_NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]{0,254}")
_RESERVED = ("skep_", "process_", "python_", "scrape_")
"""Beginnings of the agent's own metrics and of Prometheus' about a scrape."""
_LARGEST_SHOWN = 3


def make_plan(
    spec: ObjectSpec, *, config: ImageConfig, version: str, metadata: Mapping[str, object], possible_cpus: int
) -> Plan:
    """Settle every name, unit, label, bucket and limit of one image.

    Args:
        spec: What its object declares.
        config: Its entry in the agent's configuration.
        version: The image's version, for the OTel scope; may be empty.
        metadata: The image's metadata document, ``{}`` without one.
        possible_cpus: Of the host that will run it.

    Raises:
        PlanError, Problems: all that is wrong, in the order of the object's maps, then the configuration's keys.
    """
    problems: list[SkepError] = []
    document = ImageMetadata()
    try:
        document = parse_metadata(metadata)
    except Problems as error:
        problems += error.problems
    except PlanError as error:
        problems.append(error)
    notes: list[str] = []
    sized = size_maps(spec, config, possible_cpus=possible_cpus, problems=problems, notes=notes)
    return _Planner(spec, sized, config, document, problems, notes).plan(version, possible_cpus)


@dataclass(slots=True)
class _Planner:
    """Makes one plan; ``problems`` and ``notes`` grow on the way.

    Attributes:
        declared: The object as it is.
        spec: The object with its maps as large as they will be made.
    """

    declared: ObjectSpec
    spec: ObjectSpec
    config: ImageConfig
    document: ImageMetadata
    problems: list[SkepError]
    notes: list[str] = field(default_factory=list)

    def plan(self, version: str, possible_cpus: int) -> Plan:
        self._check_document()
        tables: list[Table | Tally] = []
        streams: list[StreamPlan] = []
        for spec in self.spec.maps:
            try:
                prefix_kind, base_name = kind_prefix(spec.name)
                context = MapContext(self.spec, self.document, spec, base_name, self.problems, self.notes)
                made = plan_map(context, prefix_kind)
            except ObjectError as error:
                self._problem("btf", f"map {spec.name!r}: {error}")
                continue
            if isinstance(made, Table):
                tables.append(made)
            elif made is not None:
                streams.append(made.stream)
                tables += [made.tally] if made.tally is not None else []
        tables += self._variables()
        constant_labels = self._constant_labels(tables, streams)
        configured = self._configure(tables, constant_labels)
        streams = self._configure_streams(streams, configured, constant_labels)
        if not configured and not any(stream.enabled or stream.metrics for stream in streams) and not self.problems:
            self.notes.append(NOTHING_EXPORTED)
        plan = Plan(
            scope=Scope(self.config.name, version),
            tables=configured,
            streams=tuple(streams),
            programs=plan_programs(self.spec, self.config, self.document, self.problems, self.notes),
            maps=tuple(self._map_plans()),
            globals=plan_globals(
                self.spec, {**self.config.globals, **self._switches(streams)}, self.config.name, self.problems
            ),
            partial=self.config.partial,
            map_memory=self._memory(possible_cpus, streams),
            description=self.document.description,
            notes=tuple(self.notes),
        )
        shown = {f"map {rule.stack.map!r}: {NO_KIND}" for rule in plan.label_rules if rule.stack}
        plan = replace(plan, notes=tuple(note for note in plan.notes if note not in shown))
        raise_all(list({str(problem): problem for problem in self.problems}.values()))
        return plan

    def _variables(self) -> Iterable[Table]:
        """The global variables that are measured, each as the rows of an array."""
        names = {spec.name for spec in self.spec.maps}
        told = {key.partition(".")[0] for key in (*self.document.metrics, *self.document.events)}
        for entry in self.spec.globals:
            prefix_kind, base_name = kind_prefix(entry.name)
            if entry.section.startswith(".rodata"):
                prefix_kind = None  # what is set before load measures nothing unless it is said
            # Its type alone says nothing, whatever is tagged there: programs keep zeroes to start rows with.
            if not prefix_kind and entry.name not in told and not any(map(is_ours, entry.tags)):
                continue
            if entry.name in names:  # a static variable inside a function may be called so
                continue
            if not entry.size:
                self._problem("value", f"global {entry.name!r}: an array without elements; give it a length")
                continue
            try:
                spec, source = as_array(self.spec, entry, histogram=self._kind_of(entry, prefix_kind) == "histogram")
                context = MapContext(self.spec, self.document, spec, base_name, self.problems, self.notes, "global")
                made = plan_variable(context, prefix_kind, source)
            except ObjectError as error:
                self._problem("btf", f"global {entry.name!r}: {error}")
                continue
            if made is not None:
                yield made

    def _kind_of(self, entry: GlobalSpec, prefix_kind: str | None) -> str | None:
        document = self.document.metrics.get(entry.name)
        said = document.metric.kind if document else None
        return said or next((tag.partition("=")[2] for tag in entry.tags if tag.startswith(KIND_TAG)), prefix_kind)

    def _problem(self, code: str, text: str) -> None:
        self.problems.append(PlanError(text, code=f"plan.{code}"))

    def _check_document(self) -> None:
        """Every map and variable that the metadata names must exist; members are checked with it."""
        names = [spec.name for spec in self.spec.maps]
        variables = {entry.name for entry in self.spec.globals}
        for section, keys in (("metrics", self.document.metrics), ("events", self.document.events)):
            for key in keys:
                if key.partition(".")[0] not in {*names, *variables}:
                    self._problem(
                        "metadata", f"metadata '{section}.{key}': no such map; the object has {listed(names)}"
                    )

    def _constant_labels(
        self, tables: Iterable[Table | Tally], streams: Iterable[StreamPlan]
    ) -> tuple[tuple[str, str], ...]:
        labels = tuple((name, str(value)) for name, value in self.config.labels.items())
        owners = [
            (table.owner if isinstance(table, Table) else f"map {table.spec.name!r}", table.labels) for table in tables
        ]
        owners += [
            (f"event {stream.event_name!r}", stream.attributes + ((stream.tail,) if stream.tail else ()))
            for stream in streams
        ]
        shown = {prometheus_label(name) for name in self.config.labels}
        for name in self.config.labels:
            if not LABEL_NAME.fullmatch(name) or prometheus_label(name) == "le":
                self._problem(
                    "config", f"image {self.config.name!r}: labels.{name} is no label name; use letters, digits, '_'"
                )
            for owner, rules in owners:
                if any(prometheus_label(rule.name) == prometheus_label(name) for rule in rules):
                    text = f"labels.{name} is already a label of {owner}; name it otherwise"
                    self._problem("config", f"image {self.config.name!r}: {text}")
        if len(shown) < len(labels):
            self._problem(
                "config", f"image {self.config.name!r}: two of labels {listed(self.config.labels)} become one name"
            )
        return labels

    def _configure(
        self, tables: Sequence[Table | Tally], constant_labels: tuple[tuple[str, str], ...]
    ) -> tuple[TablePlan, ...]:
        """Apply ``metrics:``, part the metrics of each map by the labels they keep, and give cells out."""
        known = [metric.prometheus_name for table in tables for metric in table.metrics]
        for name in self.config.metrics:
            if name not in known:
                self._problem(
                    "config", f"image {self.config.name!r}: metrics.{name}: no such metric; it has {listed(known)}"
                )
        owners: dict[str, str] = {}
        plans: list[TablePlan] = []
        for table in tables:
            # Metrics with the same labels share a frame, if they are not elements of different arrays.
            parts: dict[tuple[tuple[LabelRule, ...], int, int], list[Metric]] = {}
            for metric in table.metrics:
                entry = self.config.metrics.get(metric.prometheus_name, MetricConfig())
                if not (metric.enabled if entry.enabled is None else entry.enabled):
                    continue
                kept = self._kept_labels(table, metric, entry)
                changed = self._renamed(metric, entry)
                self._claim(changed, owners)
                count, stride = (metric.elements.count, metric.elements.stride) if metric.elements else (1, 0)
                parts.setdefault((kept, count, stride), []).append(changed)
            plans += [self._table_plan(table, part, metrics, constant_labels) for part, metrics in parts.items()]
        return tuple(plans)

    def _kept_labels(self, table: Table | Tally, metric: Metric, entry: MetricConfig) -> tuple[LabelRule, ...]:
        labels = (*table.labels, *([metric.elements.label] if metric.elements else ()))
        shown = dict.fromkeys(prometheus_label(rule.name) for rule in labels)
        dropped = {prometheus_label(name) for name in entry.drop_labels}
        for name in entry.drop_labels:
            if prometheus_label(name) not in shown:
                text = f"metrics.{metric.prometheus_name}.drop_labels: no label {name!r}; it has {listed(shown)}"
                self._problem("config", f"image {self.config.name!r}: {text}")
        return tuple(rule for rule in labels if prometheus_label(rule.name) not in dropped)

    def _renamed(self, metric: Metric, entry: MetricConfig) -> Metric:
        if entry.help:
            metric = replace(metric, help=entry.help)
        new = entry.rename
        if not new:
            return metric
        where = f"image {self.config.name!r}: metrics.{metric.prometheus_name}.rename"
        if "." in new:
            if not OTEL_NAME.fullmatch(new):
                self._problem("config", f"{where} is {new!r}; expected a dotted name of letters, digits and '_'")
            return replace(metric, name=new, prometheus_name=prometheus_name(new, kind=metric.kind, unit=metric.unit))
        if not _PROMETHEUS_NAME.fullmatch(new):
            self._problem("config", f"{where} is {new!r}; expected letters, digits and '_'")
        elif metric.kind is Kind.COUNTER and not new.endswith("_total"):
            self._problem("config", f"{where} is {new!r}; a counter's name ends in _total, write {new + '_total'!r}")
        return replace(metric, name=_without_suffixes(new, metric), prometheus_name=new)

    def _claim(self, metric: Metric, owners: dict[str, str]) -> None:
        """Every exposed name has one owner; a histogram exposes four."""
        name = metric.prometheus_name
        if name.startswith(_RESERVED):
            text = f"metric name {name!r} begins as the agent's own do ({', '.join(_RESERVED)}); name it otherwise"
            self._problem("name", f"{metric.owner}: {text}")
        clashes = sorted({owners[exposed] for exposed in exposed_names(name, metric.kind) if exposed in owners})
        if clashes:
            text = f"metric name {name!r} is also that of {clashes[0]}; give one of them another name"
            self._problem("name", f"{metric.owner}: {text}")
        owners.update(dict.fromkeys(exposed_names(name, metric.kind), metric.owner))

    def _table_plan(
        self,
        table: Table | Tally,
        part: tuple[tuple[LabelRule, ...], int, int],
        metrics: Sequence[Metric],
        constant_labels: tuple[tuple[str, str], ...],
    ) -> TablePlan:
        labels, elements, stride = part
        made: list[MetricPlan] = []
        cells = 0
        for metric in metrics:
            instrument = metric.instrument(cells)
            cells += instrument.cells
            made.append(MetricPlan(instrument, metric.value, metric.histogram, metric.record))
        spec, records = table.spec, isinstance(table, Tally)
        is_array = spec.type in ARRAYS
        source = table.source if isinstance(table, Table) else None
        inside = isinstance(source, InnerSource)
        return TablePlan(
            map=spec.name,
            key_size=0 if records else spec.key_size,
            value_size=table.record_size if isinstance(table, Tally) else spec.value_size,
            per_cpu=spec.type.per_cpu,
            labels=labels,
            metrics=tuple(made),
            constant_labels=constant_labels,
            elements=elements,
            element_stride=stride,
            skip_zero_rows=(is_array and spec.max_entries > 1) or elements > 1,
            # The rows of an array never go, and so do the elements of one; but inside another map the array does.
            expire_idle=any(
                not DECODERS[rule.decoder].lasting
                and not (
                    rule.decoder == "uint"
                    and ((is_array and not inside) or (elements > 1 and rule.offset_bits >= spec.key_size * 8))
                )
                for rule in labels
            ),
            expire_after_s=self.config.expire_after_s,
            series_limit=self.config.limits.series,
            source=source,
            records=records,
        )

    def _configure_streams(
        self, streams: Sequence[StreamPlan], tables: Sequence[TablePlan], constant_labels: tuple[tuple[str, str], ...]
    ) -> list[StreamPlan]:
        measured = {table.map for table in tables if table.records}
        known = [stream.event_name for stream in streams if not stream.metrics_only]
        for name in self.config.events:
            if name not in known:
                self._problem(
                    "config", f"image {self.config.name!r}: events.{name}: no such event; it has {listed(known)}"
                )
        for name in sorted({name for name in known if known.count(name) > 1}):
            maps = [stream.map for stream in streams if stream.event_name == name]
            self._problem("name", f"map {maps[1]!r}: event name {name!r} is also that of map {maps[0]!r}; rename one")
        configured = []
        for stream in streams:
            entry = self.config.events.get(stream.event_name) if not stream.metrics_only else None
            enabled = stream.enabled if entry is None or entry.enabled is None else entry.enabled
            configured.append(
                replace(
                    stream,
                    enabled=enabled,
                    sample_one_in=1 if entry is None else entry.sample_one_in,
                    constant_labels=constant_labels,
                    events_per_s=self.config.limits.events_per_s,
                    metrics=stream.map in measured,
                )
            )
        return configured

    def _switches(self, streams: Iterable[StreamPlan]) -> dict[str, bool]:
        """The globals that tell programs which events are wanted; a configuration that says otherwise is wrong."""
        switches: dict[str, bool] = {}
        for stream in streams:
            if stream.switch:
                switches[stream.switch] = switches.get(stream.switch, False) or stream.enabled or stream.metrics
        for name, on in switches.items():
            said = self.config.globals.get(name, on)
            if said is not on:
                events = [stream.event_name for stream in streams if stream.switch == name]
                told = str(said).lower() if isinstance(said, bool) else repr(said)
                self._problem(
                    "config",
                    f"image {self.config.name!r}: globals.{name} is {told}, but switches {listed(events)}, which is "
                    f"{'on' if on else 'off'}; leave it out and say events.{events[0]}.enabled",
                )
        return switches

    def _map_plans(self) -> Iterable[MapPlan]:
        """What is not made as declared: sizes, and of a ring its value type, which describes its records."""
        for spec, declared in zip(self.spec.maps, self.declared.maps, strict=True):
            perf = spec.type is MapType.PERF_EVENT_ARRAY and (spec.key_size, spec.value_size) != (4, 4)
            clear = perf or (spec.type in RINGS and bool(spec.value_size))
            entries = self.config.maps.get(spec.name, MapConfig()).max_entries
            made = MapPlan(
                spec.name,
                clear_value_size=clear,
                value_size=spec.value_size if spec.value_size != declared.value_size else 0,
                max_entries=entries or (spec.max_entries if spec.max_entries != declared.max_entries else 0),
                pin=self.config.maps.get(spec.name, MapConfig()).pin,
            )
            if made != MapPlan(spec.name):
                yield made

    def _memory(self, possible_cpus: int, streams: Iterable[StreamPlan]) -> int:
        sections: dict[str, int] = {}
        for entry in self.spec.globals:
            sections[entry.section] = max(sections.get(entry.section, 0), entry.offset + entry.size)
        sizes = {spec.name: map_memory(spec, possible_cpus) for spec in self.spec.maps}
        for stream in streams:
            if stream.source == "perf":
                sizes[stream.map] += perf_memory(possible_cpus)
        sizes |= {section: data_memory(size) for section, size in sections.items()}
        total, limit = sum(sizes.values()), self.config.limits.map_memory
        if total > limit:
            largest = sorted(sizes, key=lambda name: -sizes[name])[:_LARGEST_SHOWN]
            shown = ", ".join(f"{name!r} {mebibytes(sizes[name])}" for name in largest)
            self._problem(
                "memory",
                f"image {self.config.name!r}: its maps need {mebibytes(total)} on {possible_cpus} CPUs ({shown}), "
                f"limits.map_memory is {mebibytes(limit)}; raise limits.map_memory",
            )
        return total


def _without_suffixes(name: str, metric: Metric) -> str:
    """The OTel name that translates to a Prometheus name that was given whole."""
    suffixes = prometheus_name("x", kind=metric.kind, unit=metric.unit).removeprefix("x")
    stem = name.removesuffix(suffixes) if suffixes else name
    return stem or name
