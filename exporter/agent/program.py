"""One image's way from verified bytes to numbers: bundle → object → plan → kernel → frames and streams.

The only module that knows all stages, and only to introduce each to the next. A
:class:`Program` is what comes out: loaded, attached, and readable. It has no
thread; the agent and ``skep run`` call it from theirs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

from exporter import bpf, collect, kernel
from exporter.config import AttachConfig, ImageConfig
from exporter.errors import KernelError, SkepError
from exporter.image import Bundle
from exporter.kernel.lookup import Lookup
from exporter.model import FrameView, Scope
from exporter.plan import InnerSource, Plan, SectionSource, StorageSource, StreamPlan, TablePlan, make_plan

LOAD_DEADLINE_S = 60.0
WAITING_LIMIT_BYTES = 8 << 20
"""Records of one ring that may wait while its frames are being shown."""

Resolve = Callable[[str, int], str]


def plan_bundle(bundle: Bundle, config: ImageConfig) -> Plan:
    """Decide what an image measures on this host; nothing is loaded.

    Raises:
        ObjectError: the bytes are not a BPF object.
        PlanError, Problems: object, metadata, configuration and limits do not go together.
    """
    return make_plan(
        bpf.read_object(bundle.object),
        config=config,
        version=bundle.version,
        metadata=bundle.metadata,
        possible_cpus=kernel.possible_cpus(),
    )


def plan_identity(plan: Plan) -> str:
    """Give a digest of all in a plan that decides what is loaded and what its numbers mean; prose is not."""
    told = asdict(replace(plan, description="", notes=(), map_memory=0))
    return hashlib.sha256(json.dumps(told, default=_plain, separators=(",", ":")).encode()).hexdigest()


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else str(value)


def load(
    bundle: Bundle, plan: Plan, config: ImageConfig, *, resolve: Resolve, before: Program | None = None
) -> Program:
    """Load, attach and open everything that ``plan`` reads.

    ``before`` runs now and will be succeeded, see :meth:`Program.succeed`.

    Raises:
        KernelError: this kernel refused the object, every program, or with ``partial: refuse`` any.
    """
    types, no_types = kernel_types(bundle, config)
    request = kernel.LoadRequest(
        name=config.name,
        object=bundle.object,
        programs=tuple(
            kernel.ProgramRequest(p.name, p.section, _attach(p.attach), p.alternative, p.rank) for p in plan.programs
        ),
        maps=tuple(
            kernel.MapRequest(
                m.name,
                clear_value_size=m.clear_value_size,
                max_entries=m.max_entries,
                pin=m.pin,
                value_size=m.value_size,
            )
            for m in plan.maps
        ),
        globals=tuple(kernel.GlobalRequest(g.section, g.offset, g.value, g.ksym) for g in plan.globals),
        read_maps=plan.read_maps,
        enums=plan.enums,
        partial=plan.partial == "run",
        deadline_s=LOAD_DEADLINE_S,
        types=types,
        no_types=no_types,
    )
    collection = kernel.load(request)
    try:
        return Program(bundle, plan, config, collection, resolve, before=before)
    except BaseException:
        collection.close()
        raise


def kernel_types(bundle: Bundle, config: ImageConfig) -> tuple[bytes, str]:
    """Find the types of a kernel that does not show its own: by the configuration's path, then in the image.

    Returns:
        The types, empty if none are needed or found; and why there are none, where that was looked for. That is no
        failure yet: a program that reads nothing of the kernel needs none.
    """
    if kernel.shows_types():
        return b"", ""
    host = kernel.Host.this()
    failures = []
    if config.btf:
        try:
            return kernel.find_types(config.btf, host), ""
        except KernelError as error:
            failures.append(str(error))
    if bundle.types:
        try:
            return kernel.types_in(bundle.types(), f"image {config.name}", host), ""
        except SkepError as error:
            failures.append(str(error))
    return b"", "; ".join(failures)


def _attach(config: AttachConfig | None) -> Mapping[str, object] | None:
    """Give only what was set: the kernel package refuses a key that does not fit the program."""
    if config is None:
        return None
    said = {field.name: getattr(config, field.name) for field in fields(config) if getattr(config, field.name)}
    return {name: value for name, value in said.items() if name != "enabled"}


@dataclass(slots=True)
class Read:
    """How the last read of an image's maps went."""

    began_s: float = 0.0
    took_s: float | None = None
    error: str = ""


class Program:
    """An image that runs.

    Attributes:
        map_entries: Of each map read: rows at the last read, and rows it can hold; not of arrays, always full.
        lost: Of each stream whose program counts them: records it could not put into its ring.
        lock: Held while its frames are read or shown: whoever encodes a frame holds it.
        streams: Its rings; the reader thread owns what they count.
        start_ns: When its maps began to count, ``CLOCK_REALTIME``.
        identity: Of its plan.
        attaching_s: When attaching its programs began, monotonic.
        loaded_s: When all were attached, monotonic; an instant later at most.
        detached_s: When it was detached, monotonic; 0 before.
        key: Under which its descriptors are kept by somebody else, empty if they are not.

    Args:
        start_ns: Default: now.
        before: What it will succeed; a series budget is then shared, so that the limit holds for both together.
    """

    def __init__(
        self,
        bundle: Bundle,
        plan: Plan,
        config: ImageConfig,
        collection: kernel.Collection,
        resolve: Resolve,
        *,
        start_ns: int = 0,
        before: Program | None = None,
    ) -> None:
        self.bundle = bundle
        self.plan = plan
        self.config = config
        self.collection = collection
        self.lock = threading.Lock()
        self.last_read = Read()
        self.attaching_s, self.loaded_s = collection.stages.get("attach") or (time.monotonic(), time.monotonic())
        self.detached_s = 0.0
        self.start_ns = start_ns = start_ns or time.time_ns()
        self.key = ""
        self.identity = plan_identity(plan)
        self._budget: collect.SeriesBudget
        if before is not None and before.config.limits.series == config.limits.series:
            self._budget = before._budget
        else:
            self._budget = collect.SeriesBudget(config.limits.series)
        self._folded_before = 0
        self._lost_before: Mapping[str, int] = {}
        self._usage_before: Mapping[str, kernel.ProgramUsage] = {}
        resolve = _with_stacks(plan, collection, resolve)
        # A map whose metrics keep different labels has several frames; it is read once for all.
        self._frames: dict[str, list[collect.Frame]] = {}
        self._tallies: dict[str, list[collect.Frame]] = {}  # by ring; fed by its stream
        for table in plan.tables:
            frame = collect.Frame(
                table,
                scope=plan.scope,
                resolve=resolve,
                budget=self._budget,
                enums=collection.enums,
                # What no map remembers begins here, though the programs may have run before this agent did.
                start_ns=time.time_ns() if table.records else start_ns,
            )
            (self._tallies if table.records else self._frames).setdefault(table.read_map, []).append(frame)
        self._rows = {table.read_map: _rows_of(table, collection) for table in plan.tables if not table.records}
        self._feeds = {name: Feed(self.lock, frames) for name, frames in self._tallies.items()}
        self._unreadable: set[str] = set()
        self.map_entries: dict[str, tuple[int, int]] = {}
        self.lost: dict[str, int] = {}
        self.streams = tuple(
            Stream(stream, config.name, plan.scope, collection, resolve, feed=self._feeds.get(stream.map))
            for stream in plan.streams
        )

    @property
    def attached(self) -> dict[str, bool]:
        """Each program that should run, and whether it is attached."""
        return {p.name: p.attached for p in self.collection.programs if not p.passed_over}

    @property
    def passed_over(self) -> Mapping[str, str]:
        """Why programs were left out because another alternative runs."""
        return {p.name: p.passed_over for p in self.collection.programs if p.passed_over}

    @property
    def usage(self) -> dict[str, kernel.ProgramUsage]:
        """What each program has used, together with those of its name that it succeeded."""
        now = self.collection.usage()
        none = kernel.ProgramUsage()
        names = [program.name for program in self.collection.programs]
        return {
            name: now.get(name, none) + self._usage_before.get(name, none)
            for name in names
            if name in now or name in self._usage_before
        }

    @property
    def not_attached(self) -> str:
        """Why programs are not attached, in one line; empty if all are."""
        failed = [program for program in self.collection.programs if program.error]
        return "; ".join(f"program {program.name!r}: {program.error}" for program in failed)

    def read(self, arrived_s: float, deadline_s: float = math.inf) -> bool:
        """Read every map into its frames; the caller holds :attr:`lock`.

        A map that cannot be read keeps its frames out of :meth:`frames` until it can; the others are read all the same.

        Args:
            arrived_s: Monotonic: a read that began later is as good as another, so concurrent scrapes share it.
            deadline_s: Monotonic: a map that is not read to its end by then is left, and its frames are kept out
                as well. Nobody shares such a read.

        Returns:
            Whether every map was tried to its end.
        """
        if self.last_read.took_s is not None and self.last_read.began_s >= arrived_s:
            return True
        began_s = time.monotonic()
        now_ns = time.time_ns()
        errors = []
        in_time = True
        try:
            for _ in self.collection.iterate(text=False):
                pass
        except SkepError as error:
            errors.append(str(error))
        for name, frames in self._frames.items():
            self._unreadable.add(name)
            try:
                if self._read_map(name, frames, now_ns, deadline_s):
                    self._unreadable.discard(name)
                else:
                    in_time = False
            except SkepError as error:
                errors.append(str(error))
        for feed in self._feeds.values():
            feed.pass_time(now_ns)
        for stream in self.streams:
            if stream.plan.lost_map:
                with contextlib.suppress(SkepError):  # then it shows the last count
                    count = sum_rows(self.collection.maps[stream.plan.lost_map])
                    self.lost[stream.name] = self._lost_before.get(stream.name, 0) + count
            elif stream.ring_lost is not None:
                self.lost[stream.name] = self._lost_before.get(stream.name, 0) + stream.ring_lost
        took_s = time.monotonic() - began_s
        self.last_read = Read(began_s if in_time else -math.inf, took_s, "; ".join(errors))
        return in_time

    def give_up_read(self, began_s: float, error: str) -> None:
        """Show nothing until the next read: the last one did not end."""
        self._unreadable.update(self._frames)
        self.last_read = Read(began_s, time.monotonic() - began_s, error)

    def _read_map(self, name: str, frames: Sequence[collect.Frame], now_ns: int, deadline_s: float) -> bool:
        """Read one map; False if there was no time to."""
        source = self._rows[name]
        if time.monotonic() >= deadline_s:
            return False
        for frame in frames:
            frame.begin(now_ns)
        rows = 0
        variables = False
        for batch in source.batches():
            rows += batch.count
            if time.monotonic() >= deadline_s:
                return False
            for frame in frames:
                if isinstance(frame.plan.source, SectionSource):
                    variables = True
                    _apply_variable(frame, frame.plan.source, batch.values)
                else:
                    frame.apply(batch.keys, batch.values, batch.count, batch.value_stride, batch.cpus)
        for frame in frames:
            frame.finish()
        if not variables and source.max_entries and not source.is_array:
            self.map_entries[name] = (rows, source.max_entries)
        return True

    def frames(self) -> list[FrameView]:
        """Give the frames whose maps the last read could read."""
        readable = [frames for name, frames in self._frames.items() if name not in self._unreadable]
        return [frame for frames in (*readable, *self._tallies.values()) for frame in frames]

    def tables(self) -> list[tuple[TablePlan, collect.Frame]]:
        """Give each frame with its plan, for showing rows."""
        frames = {name: iter(frames) for name, frames in (self._frames | self._tallies).items()}
        return [(table, next(frames[table.read_map])) for table in self.plan.tables]

    def succeed(self, old: Program) -> int:
        """Take over the series of what ran before, for every table that means the very same.

        Their values are then the last of the old maps plus those of the new ones, from their old start on; series of
        other tables begin anew. Both attached at once for a moment, so what happened then is in both; the other order
        would lose it. The caller holds both locks, has detached ``old``, and never reads it again.

        Returns:
            How many tables go on.
        """
        old.read(time.monotonic())
        now_ns = time.time_ns()
        left = old.tables()
        carried = 0
        folded = old.folded
        for frames in (self._frames | self._tallies).values():
            for index, frame in enumerate(frames):
                same = next((one for table, one in left if table == frame.plan and self._enums_like(old, table)), None)
                if same is None:
                    continue
                if not self._shares(old, same.plan.map):
                    same.forget_rows(now_ns)
                same.scope = self.plan.scope
                frames[index] = same
                left = [(table, one) for table, one in left if one is not same]
                carried += 1
                folded -= same.folded_total
        for name, feed in old._feeds.items():
            feed.divert(self._feeds.get(name))
        old._frames, old._tallies, old._feeds = {}, {}, {}
        self._folded_before = folded
        self._lost_before = dict(old.lost)
        self._usage_before = old.usage
        return carried

    def _shares(self, old: Program, name: str) -> bool:
        """Whether a map is pinned, so that both versions count in one: its rows go on as they are."""
        pins = [{m.name: m.pin for m in plan.plan.maps}.get(name, "") for plan in (self, old)]
        return bool(pins[0]) and pins[0] == pins[1]

    def _enums_like(self, old: Program, table: TablePlan) -> bool:
        """Whether the numbers of the enums in a table's labels mean the same: a module may have come or gone."""
        names = {rule.enum_name for rule in table.labels if rule.enum_name}
        return all(self.collection.enums.get(name) == old.collection.enums.get(name) for name in names)

    @property
    def series(self) -> int:
        """Live label sets times metrics, over all its frames."""
        return self._budget.used

    @property
    def folded(self) -> int:
        """Label sets folded into overflow series so far."""
        groups = (*self._frames.values(), *self._tallies.values())
        now = sum(frame.folded_total for frames in groups for frame in frames)
        return self._folded_before + now

    def detach(self) -> None:
        """Detach its programs; its maps can still be read. Harmless when repeated."""
        self.collection.detach()
        self.detached_s = self.detached_s or time.monotonic()

    def close(self) -> None:
        """Detach its programs and let go of its maps."""
        with self.lock:
            for rows in self._rows.values():
                if isinstance(rows, kernel.InnerRows):
                    rows.close()
            self.collection.close()


class Feed:
    """The way of one ring's records into the frames they count in.

    The frames belong to whoever holds the program's lock, which may be a scrape that takes its time; the reader of all
    rings must not wait for it. So records wait here, and whoever holds the lock next brings them in: the reader
    itself, or the next scrape before it shows anything. Only when very many wait does the reader wait, too.
    """

    def __init__(self, lock: threading.Lock, frames: list[collect.Frame]) -> None:
        self._lock = lock
        self._frames = frames
        self._guard = threading.Lock()
        self._waiting: list[tuple[bytes, int, int]] = []
        self._waiting_bytes = 0
        self._before: Feed | None = None

    def take(self, records: bytes, now_ns: int, realtime_minus_monotonic_ns: int) -> None:
        """Count these records, soon."""
        with self._guard:
            self._waiting.append((records, now_ns, realtime_minus_monotonic_ns))
            self._waiting_bytes += len(records)
        while True:
            lock = self._lock
            if not lock.acquire(blocking=self._waiting_bytes > WAITING_LIMIT_BYTES):
                return
            try:
                if lock is self._lock:  # the frames may have gone to another program meanwhile
                    self.bring_in()
                    return
            finally:
                lock.release()

    def bring_in(self) -> None:
        """Count what waits; the caller holds the lock. Raises what the first of several failures was."""
        if self._before is not None:
            self._before.bring_in()
        with self._guard:
            waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        failure: Exception | None = None
        for records, now_ns, offset in waiting:
            for frame in self._frames:
                try:
                    frame.add(records, now_ns, realtime_minus_monotonic_ns=offset)
                except Exception as error:  # one batch's bug must not cost the others
                    failure = failure or error
        if failure is not None:
            raise failure

    def pass_time(self, now_ns: int) -> None:
        """Bring in what waits, and let expire what has not changed for long; the caller holds the lock."""
        self.bring_in()
        for frame in self._frames:
            frame.begin(now_ns)
            frame.finish()

    def divert(self, heir: Feed | None) -> None:
        """Let what still comes count in the frames that another program has taken over; both locks are held."""
        self._before = None
        self._frames = [frame for frame in self._frames if heir is not None and frame in heir._frames]
        if heir is not None:
            self._lock = heir._lock
            heir._before = self


class Stream:
    """One ring of an image and its decoder; fits :class:`exporter.agent.events.Stream`."""

    def __init__(
        self,
        plan: StreamPlan,
        image: str,
        scope: Scope,
        collection: kernel.Collection,
        resolve: Resolve,
        *,
        feed: Feed | None = None,
    ) -> None:
        self.plan = plan
        self.image = image
        self.name = plan.event_name
        self.scope = scope
        self.fill_ratio_max = 0.0
        self.ring_lost: int | None = None  # as the kernel counts it; None where it does not
        self.ring = collection.maps[plan.map]
        self._feed = feed
        self._decoder = collect.RecordDecoder(plan, scope=scope, resolve=resolve, enums=collection.enums)

    def limit(self, limits: collect.AttributeLimits) -> None:
        """Hold its events to these from now on, in OTLP."""
        self._decoder.limit(limits)

    def decode(self, records: bytes, *, otlp: bool = False, json: bool = False) -> collect.LogBatch:
        """Decode records just read, and count them in the frames of the ring."""
        now_ns = time.time_ns()
        # Measured each time: wall time is adjusted while the host runs, and it costs a tenth of a microsecond.
        offset = now_ns - time.monotonic_ns()
        batch = self._decoder.decode(records, now_ns=now_ns, realtime_minus_monotonic_ns=offset, otlp=otlp, json=json)
        if self._feed is not None:
            self._feed.take(records, now_ns, offset)
        return batch


def _with_stacks(plan: Plan, collection: kernel.Collection, resolve: Resolve) -> Resolve:
    """What resolves labels of this machine and stack ids of these maps."""
    rules = {collect.resolver_of(rule): rule for rule in plan.label_rules if rule.stack is not None}
    if not rules:
        return resolve
    stacks = kernel.Stacks(collection.maps, resolve)

    def resolve_or_unwind(decoder: str, value: int) -> str:
        rule = rules.get(decoder)
        if rule is None or rule.stack is None:
            return resolve(decoder, value)
        return stacks.text(rule.decoder, rule.stack.map, value, build_ids=rule.stack.build_ids)

    return resolve_or_unwind


def _rows_of(table: TablePlan, collection: kernel.Collection) -> kernel.Map | kernel.InnerRows | kernel.StorageRows:
    """What reads the rows of a table."""
    source = collection.maps[table.read_map]
    if isinstance(table.source, InnerSource):
        key_size = table.key_size - table.source.before_bytes
        return kernel.InnerRows(source, key_size=key_size, value_size=table.value_size)
    if isinstance(table.source, StorageSource):
        return kernel.StorageRows(source, of=table.source.of)
    return source


def _apply_variable(frame: collect.Frame, source: SectionSource, section: memoryview) -> None:
    """Give a frame the elements of a variable as rows of an array."""
    stride, count = frame.plan.value_size, source.count
    values = section[source.offset : source.offset + count * stride]
    frame.apply(struct.pack(f"={count}I", *range(count)), values, count, stride, 1)


def sum_rows(source: kernel.Map) -> int:
    """Add up a map of one u64 per row and CPU."""
    total = 0
    for batch in source.batches():
        step = batch.value_stride // batch.cpus
        for offset in range(0, batch.count * batch.value_stride, step):
            total += int.from_bytes(batch.values[offset : offset + 8], "little")
    return total


def make_lookup() -> Lookup:
    """What turns numbers of this machine (users, devices, cgroups, symbols) into words; one for all images."""
    return Lookup()
