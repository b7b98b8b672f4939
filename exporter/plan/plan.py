"""What will be measured: every name, unit, label, bucket and limit settled; made without a kernel.

A :class:`Plan` is what ``skep plan`` prints, what ``collect`` compiles into field
operations, and what the agent turns into a load request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from exporter.config import AttachConfig
from exporter.model import Instrument, Scope


@dataclass(frozen=True, slots=True)
class Step:
    r"""What is done with the text that a decoder gave; empty text stays empty.

    Attributes:
        kind: ``map`` or ``regexp``.
        pairs, default: Of ``map``: texts and what they become; other texts become ``default``, or stay if it is None.
        pattern, replacement: Of ``regexp``, RE2: what matches is replaced, ``\1`` being the first group. Without a
            replacement what matches, or its first group, is what remains.
    """

    kind: str
    pairs: tuple[tuple[str, str], ...] = ()
    default: str | None = None
    pattern: str = ""
    replacement: str | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """A number that decides whether there is a label: the tag of a union.

    Attributes:
        offset_bits, size_bits: Where in the key or record, 1 to 64 bits.
        values: Unsigned, one of which it must be; with ``negated``, none of which.
    """

    offset_bits: int
    size_bits: int
    values: tuple[int, ...]
    negated: bool = False

    def excludes(self, other: Condition) -> bool:
        """Whether the two are never met together."""
        if (self.offset_bits, self.size_bits) != (other.offset_bits, other.size_bits):
            return False
        if self.negated == other.negated:
            return not self.negated and not set(self.values) & set(other.values)
        met, unmet = (other, self) if self.negated else (self, other)
        return set(met.values) <= set(unmet.values)


@dataclass(frozen=True, slots=True)
class StackSource:
    """The map of type STACK_TRACE that a stack id is of.

    Attributes:
        process: Offset and size in bits of the number of the process whose stack it is, or None.
        build_ids: The map keeps build ids and offsets instead of addresses.
    """

    map: str
    process: tuple[int, int] | None = None
    build_ids: bool = False


@dataclass(frozen=True, slots=True)
class LabelRule:
    """One label of a series, or one attribute of an event.

    Attributes:
        name: OpenTelemetry attribute name.
        decoder: One of :data:`.decoders.DECODERS`.
        offset_bits, size_bits: Where in the key (of a table) or record (of a stream).
        signed: Of the integer the decoder gets.
        values: ``(value, text)`` for ``enum``; other values are shown as decimals.
        enum_name: The kernel enum to ask for its values at load, or ``""``.
        enumerators: ``(C enumerator, text)`` of that enum: where the running kernel gives an enumerator another
            value than ``values`` has, the kernel's value gets the text.
        steps: What is done with the decoder's text.
        count: Elements of an array, each decoded so, ``size_bits`` apart: text joined by ``,``, lists elsewhere.
        conditions: All must be met, else there is no such label.
        stack: ``kstack`` and ``ustack``: where the stacks are.
        base_bytes: ``prefix``: where the trie's key begins, with the 32 bits of its prefix length.
    """

    name: str
    decoder: str
    offset_bits: int
    size_bits: int
    signed: bool = False
    values: tuple[tuple[int, str], ...] = ()
    enum_name: str = ""
    enumerators: tuple[tuple[str, str], ...] = ()
    base_bytes: int = 0
    stack: StackSource | None = None
    steps: tuple[Step, ...] = ()
    count: int = 1
    conditions: tuple[Condition, ...] = ()

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """``(offset_bits, size_bits)`` of all it reads: its elements together, each condition, a stack's process."""
        own = (self.offset_bits, self.size_bits * self.count)
        process = (self.stack.process,) if self.stack is not None and self.stack.process is not None else ()
        return (own, *((one.offset_bits, one.size_bits) for one in self.conditions), *process)

    def placed(self, place: Callable[[int], int]) -> LabelRule:
        """The same label where all that it reads lies elsewhere; ``place`` tells the new place of a bit."""
        stack = self.stack
        if stack is not None and stack.process is not None:
            stack = replace(stack, process=(place(stack.process[0]), stack.process[1]))
        return replace(
            self,
            offset_bits=place(self.offset_bits),
            conditions=tuple(replace(one, offset_bits=place(one.offset_bits)) for one in self.conditions),
            stack=stack,
        )

    def excludes(self, other: LabelRule) -> bool:
        """Whether no row has both labels, so that they may share a name."""
        return any(mine.excludes(theirs) for mine in self.conditions for theirs in other.conditions)


@dataclass(frozen=True, slots=True)
class ValueRule:
    """Where a number lies in a row's value (or, of a slot, in its key): little-endian.

    Attributes:
        size_bits: 1 to 64; a float is 32 or 64.
    """

    offset_bits: int
    size_bits: int
    signed: bool = False
    is_float: bool = False


@dataclass(frozen=True, slots=True)
class HistogramRule:
    """How a row's bytes become the cells of a histogram.

    Exactly one of ``slot`` and ``slots`` is set.

    Attributes:
        slot: Slot keys: where in the *key* the slot number lies; the row's value counts it.
            A slot beyond the last is counted in the last.
        slots: Slot arrays: where in the *value* element 0 lies; ``slot_count`` of them follow each other.
        slot_count: Equals ``len(instrument.bounds) + 1``.
        count: Slot keys: where in the value the count lies.
        sum: Where in the value the sum lies, if there is one.
    """

    slot: ValueRule | None
    slots: ValueRule | None
    slot_count: int
    count: ValueRule | None = None
    sum: ValueRule | None = None


@dataclass(frozen=True, slots=True)
class RecordRule:
    """What one record of a ring adds to the cells of its series.

    Attributes:
        value: Where in the record the number lies that a counter adds or a histogram observes; None: it is 1.
        edges: Of a histogram: the inclusive upper edge of each slot but the last, in the number's own unit; whole
            where the number is.
    """

    value: ValueRule | None = None
    edges: tuple[int | float, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricPlan:
    """One instrument and where its cells come from: ``value`` for counter and gauge, else ``histogram``.

    Those of a ring's records have ``record`` instead.
    """

    instrument: Instrument
    value: ValueRule | None = None
    histogram: HistogramRule | None = None
    record: RecordRule | None = None


@dataclass(frozen=True, slots=True)
class SectionSource:
    """Rows that are a global variable: ``count`` values of the table's ``value_size``, their number the key.

    Attributes:
        section: ``.bss``, ``.data`` or ``.rodata``, perhaps with a suffix: in the kernel an array of one value.
        offset: Bytes from its start to the first.
    """

    section: str
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class InnerSource:
    """Rows of the maps inside a map: a key is the outer key, the inner map's number in 4 bytes, and the inner key.

    Attributes:
        outer_key_size: Bytes.
    """

    outer_key_size: int

    @property
    def before_bytes(self) -> int:
        """Bytes of a row's key before the inner key."""
        return self.outer_key_size + 4


@dataclass(frozen=True, slots=True)
class StorageSource:
    """Rows of a local storage, found by asking every task or cgroup.

    Attributes:
        of: ``task``: a key is the process's number, the thread's, and the start time (4, 4, 8 bytes); or ``cgroup``:
            a key is its id (8 bytes).
    """

    of: str


Source = SectionSource | InnerSource | StorageSource


@dataclass(frozen=True, slots=True)
class TablePlan:
    """One frame: the rows of one map, its labels, and the metrics that have exactly these labels.

    A map whose metrics keep different labels has several tables.

    Attributes:
        map: Map name in the object; of a global, the variable's name.
        records: The map is a ring, read by a stream of the plan: what its records count, not rows. Labels and numbers
            then both lie in the record, and a series that expires begins anew when it returns.
        key_size, value_size: Bytes of a row (of one CPU's slot, if per-CPU); of records, 0 and the record's.
        per_cpu: Values are summed over CPUs.
        labels: In the order they are shown; those dropped by configuration are absent, and rows
            that then have equal labels are summed.
        constant_labels: Added to every series, after ``labels``.
        elements: Above 1, the value holds an array of so many, each of which is a row of its own: its key is the
            map's and behind it its index, a little-endian u32; value rules say where the first one's numbers lie.
        element_stride: Bytes from one element to the next.
        skip_zero_rows: Array maps: a row whose counts were never above zero has no series.
        expire_idle: Some label's values come and go (addresses, cgroups, ids): a series unchanged
            for ``expire_after_s`` is not shown until it changes. Else a series leaves only when its
            row has been gone for that long. A gauge leaves with its row.
        series_limit: Of the image; the agent shares it among the image's tables.
        source: Where its rows come from, if they are not simply the map's own.
    """

    map: str
    key_size: int
    value_size: int
    per_cpu: bool
    labels: tuple[LabelRule, ...]
    metrics: tuple[MetricPlan, ...]
    constant_labels: tuple[tuple[str, str], ...] = ()
    elements: int = 1
    element_stride: int = 0
    skip_zero_rows: bool = False
    expire_idle: bool = False
    expire_after_s: float = 3600.0
    series_limit: int = 10_000
    records: bool = False
    source: Source | None = None

    @property
    def read_map(self) -> str:
        """The map that is read, by the name libbpf has for it."""
        return self.source.section if isinstance(self.source, SectionSource) else self.map

    @property
    def row_key_size(self) -> int:
        """Bytes that tell rows apart: the map's key and, of an array in the value, the index."""
        return self.key_size + (4 if self.elements > 1 else 0)


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """One ring that is read: its records become events, metrics, or both.

    Attributes:
        event_name: OpenTelemetry event name, dotted; of a ring without events, what its records are counted under.
        attributes: Of each record.
        time: Where the record keeps its ``bpf_ktime_get_ns``; without it the time of reading is used.
        record_size: Bytes of the declared type, without its flexible array; shorter records are counted as failed, of
            longer ones the beginning is read.
        tail: The flexible array that the record ends with, as one more attribute: ``string`` or ``bytes``, or the
            numbers ``uint`` or ``int`` of ``size_bits`` each, as many as the record holds.
        severity: OpenTelemetry severity number, 9 is INFO.
        lost_map: A per-CPU or plain array of one u64 in which the program counts failed reserves, or "".
        sample_one_in: Of so many records one is exported.
        enabled: Whether events are made. A stream without events and metrics is drained.
        source: What is read: ``ring``, ``perf`` (a perf event array), ``queue`` or ``stack``.
        metrics: Whether a table of the plan is fed with its records: with all of them, sampled or not.
        metrics_only: It never makes events, and configuration cannot ask for them.
        switch: The global that tells the program whether to fill it, or ""; set before load to whether anything is
            made.
    """

    map: str
    event_name: str
    attributes: tuple[LabelRule, ...]
    record_size: int
    description: str = ""
    time: ValueRule | None = None
    severity: int = 9
    lost_map: str = ""
    events_per_s: int = 10_000
    constant_labels: tuple[tuple[str, str], ...] = ()
    enabled: bool = True
    sample_one_in: int = 1
    switch: str = ""
    metrics: bool = False
    metrics_only: bool = False
    source: str = "ring"
    tail: LabelRule | None = None


@dataclass(frozen=True, slots=True)
class GlobalPlan:
    """A ``const volatile`` global to be written before load.

    Attributes:
        value: Its whole bytes.
        ksym: The kernel symbol whose address it gets instead, or ``""``.
    """

    name: str
    section: str
    offset: int
    value: bytes
    ksym: str = ""


@dataclass(frozen=True, slots=True)
class ProgramPlan:
    """A program to load, and where to attach it.

    Attributes:
        attach: None is: as its section says.
        alternative: A group of programs for one measurement, of which the host runs the first by ``rank`` that it can;
            ``""`` for a program that stands alone.
    """

    name: str
    section: str
    attach: AttachConfig | None = None
    alternative: str = ""
    rank: int = 0


@dataclass(frozen=True, slots=True)
class MapPlan:
    """What must be changed about a map before it is created; 0 and "" change nothing."""

    name: str
    clear_value_size: bool = False
    max_entries: int = 0
    pin: str = ""
    value_size: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about one image.

    Attributes:
        scope: OTel scope: the image's configured name and its version.
        map_memory: Bytes its maps will take, estimated upwards, for ``possible_cpus`` CPUs of the host.
        notes: What a person should know: maps not exported and why, architecture of the estimate.
    """

    scope: Scope
    tables: tuple[TablePlan, ...]
    streams: tuple[StreamPlan, ...]
    programs: tuple[ProgramPlan, ...]
    maps: tuple[MapPlan, ...] = ()
    globals: tuple[GlobalPlan, ...] = ()
    partial: str = "run"
    map_memory: int = 0
    description: str = ""
    notes: tuple[str, ...] = ()

    @property
    def read_maps(self) -> tuple[str, ...]:
        """The maps whose descriptors are needed: of tables, of rings, of counts of lost events, and of stacks."""
        names = [table.read_map for table in self.tables] + [stream.map for stream in self.streams]
        names += [stream.lost_map for stream in self.streams if stream.lost_map]
        names += [rule.stack.map for rule in self.label_rules if rule.stack]
        return tuple(dict.fromkeys(names))

    @property
    def label_rules(self) -> tuple[LabelRule, ...]:
        """The labels of all tables and streams."""
        return tuple(
            rule
            for rules in [*(t.labels for t in self.tables), *(s.attributes for s in self.streams)]
            for rule in rules
        )

    @property
    def enums(self) -> tuple[str, ...]:
        """The enums whose values on the running kernel are wanted."""
        rules = [rule for table in self.tables for rule in table.labels]
        rules += [rule for stream in self.streams for rule in stream.attributes]
        return tuple(dict.fromkeys(rule.enum_name for rule in rules if rule.enum_name))
