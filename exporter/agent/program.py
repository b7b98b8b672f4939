"""One image's way from verified bytes to numbers: bundle → object → plan → kernel → frames and streams.

The only module that knows all stages, and only to introduce each to the next. A
:class:`Program` is what comes out: loaded, attached, and readable. It has no
thread; the agent and ``skep run`` call it from theirs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from exporter import bpf, collect, kernel
from exporter.config import AttachConfig, ImageConfig
from exporter.errors import PlanError, SkepError
from exporter.image import Bundle
from exporter.kernel.lookup import Lookup
from exporter.model import FrameView, Scope
from exporter.plan import Plan, StreamPlan, TablePlan, make_plan

LOAD_DEADLINE_S = 60.0
RESERVED_PREFIXES = ("skep_", "process_", "scrape_")

Resolve = Callable[[str, int], str]


def plan_bundle(bundle: Bundle, config: ImageConfig) -> Plan:
    """Decide what an image measures on this host; nothing is loaded.

    Raises:
        ObjectError: the bytes are not a BPF object.
        PlanError, Problems: object, metadata, configuration and limits do not go together.
    """
    plan = make_plan(
        bpf.read_object(bundle.object),
        config=config,
        version=bundle.version,
        metadata=bundle.metadata,
        possible_cpus=kernel.possible_cpus(),
    )
    for table in plan.tables:
        for metric in table.metrics:
            name = metric.instrument.prometheus_name
            if name.startswith(RESERVED_PREFIXES):
                raise PlanError(
                    f"image {config.name!r}: metric {name!r} begins as the agent's own do; "
                    f"rename it with metrics.{name}.rename",
                    code="plan.clash",
                )
    return plan


def load(bundle: Bundle, plan: Plan, config: ImageConfig, *, resolve: Resolve) -> Program:
    """Load, attach and open everything that ``plan`` reads.

    Raises:
        KernelError: this kernel refused the object, every program, or with ``partial: refuse`` any.
    """
    request = kernel.LoadRequest(
        name=config.name,
        object=bundle.object,
        programs=tuple(
            kernel.ProgramRequest(name=p.name, section=p.section, attach=_attach(p.attach)) for p in plan.programs
        ),
        maps=tuple(
            kernel.MapRequest(name=m.name, clear_value_size=m.clear_value_size, max_entries=m.max_entries)
            for m in plan.maps
        ),
        globals=tuple(kernel.GlobalRequest(section=g.section, offset=g.offset, value=g.value) for g in plan.globals),
        read_maps=plan.read_maps,
        enums=plan.enums,
        partial=plan.partial == "run",
        deadline_s=LOAD_DEADLINE_S,
    )
    collection = kernel.load(request)
    try:
        return Program(bundle, plan, config, collection, resolve)
    except BaseException:
        collection.close()
        raise


def _attach(config: AttachConfig | None) -> Mapping[str, object] | None:
    """Give only what was set: the kernel package refuses a key that does not fit the program."""
    if config is None:
        return None
    return {field.name: getattr(config, field.name) for field in fields(config) if getattr(config, field.name)}


@dataclass(slots=True)
class Read:
    """How the last read of an image's maps went."""

    began_s: float = 0.0
    took_s: float | None = None
    error: str = ""


class Program:
    """An image that runs.

    Attributes:
        map_entries: Of each map read: rows at the last read, and rows it can hold.
        lost: Of each stream whose program counts them: records it could not put into its ring.
        lock: Held while its frames are read or shown: whoever encodes a frame holds it.
        streams: Its rings; the reader thread owns what they count.
    """

    def __init__(
        self, bundle: Bundle, plan: Plan, config: ImageConfig, collection: kernel.Collection, resolve: Resolve
    ) -> None:
        self.bundle = bundle
        self.plan = plan
        self.collection = collection
        self.lock = threading.Lock()
        self.last_read = Read()
        self._budget = collect.SeriesBudget(config.limits.series)
        start_ns = time.time_ns()
        # A map whose metrics keep different labels has several frames; it is read once for all.
        self._frames: dict[str, list[collect.Frame]] = {}
        for table in plan.tables:
            frame = collect.Frame(
                table,
                scope=plan.scope,
                resolve=resolve,
                budget=self._budget,
                enums=collection.enums,
                start_ns=start_ns,
            )
            self._frames.setdefault(table.map, []).append(frame)
        self._unreadable: set[str] = set()
        self.map_entries: dict[str, tuple[int, int]] = {}
        self.lost: dict[str, int] = {}
        self.streams = tuple(Stream(stream, config.name, plan.scope, collection, resolve) for stream in plan.streams)

    @property
    def attached(self) -> dict[str, bool]:
        """Each program and whether it is attached."""
        return {program.name: program.attached for program in self.collection.programs}

    @property
    def not_attached(self) -> str:
        """Why programs are not attached, in one line; empty if all are."""
        failed = [program for program in self.collection.programs if not program.attached]
        return "; ".join(f"program {program.name!r}: {program.error}" for program in failed)

    def read(self, arrived_s: float) -> None:
        """Read every map into its frames; the caller holds :attr:`lock`.

        A read that began after ``arrived_s`` (monotonic) is as good as another: concurrent scrapes share it. A map that
        cannot be read keeps its frames out of :meth:`frames` until it can; the other maps are read all the same.
        """
        if self.last_read.took_s is not None and self.last_read.began_s >= arrived_s:
            return
        began_s = time.monotonic()
        now_ns = time.time_ns()
        errors = []
        for name, frames in self._frames.items():
            try:
                self._read_map(name, frames, now_ns)
            except SkepError as error:
                errors.append(str(error))
                self._unreadable.add(name)
            else:
                self._unreadable.discard(name)
        for stream in self.streams:
            if stream.plan.lost_map:
                with contextlib.suppress(SkepError):  # then it shows the last count
                    self.lost[stream.name] = sum_rows(self.collection.maps[stream.plan.lost_map])
        self.last_read = Read(began_s, time.monotonic() - began_s, "; ".join(errors))

    def give_up_read(self, began_s: float, error: str) -> None:
        """Show nothing until the next read: the last one did not end."""
        self._unreadable.update(self._frames)
        self.last_read = Read(began_s, time.monotonic() - began_s, error)

    def _read_map(self, name: str, frames: Sequence[collect.Frame], now_ns: int) -> None:
        source = self.collection.maps[name]
        for frame in frames:
            frame.begin(now_ns)
        rows = 0
        for batch in source.batches():
            rows += batch.count
            for frame in frames:
                frame.apply(batch.keys, batch.values, batch.count, batch.value_stride, batch.cpus)
        for frame in frames:
            frame.finish()
        self.map_entries[name] = (rows, source.max_entries)

    def frames(self) -> list[FrameView]:
        """Give the frames whose maps the last read could read."""
        return [frame for name, frames in self._frames.items() if name not in self._unreadable for frame in frames]

    def tables(self) -> list[tuple[TablePlan, collect.Frame]]:
        """Give each frame with its plan, for showing rows."""
        frames = {name: iter(frames) for name, frames in self._frames.items()}
        return [(table, next(frames[table.map])) for table in self.plan.tables]

    @property
    def series(self) -> int:
        """Live label sets times metrics, over all its frames."""
        return self._budget.used

    @property
    def folded(self) -> int:
        """Label sets folded into overflow series so far."""
        return sum(frame.folded_total for frames in self._frames.values() for frame in frames)

    def close(self) -> None:
        """Detach its programs and let go of its maps."""
        with self.lock:
            self.collection.close()


class Stream:
    """One ring of an image and its decoder; fits :class:`exporter.agent.events.Stream`."""

    def __init__(
        self, plan: StreamPlan, image: str, scope: Scope, collection: kernel.Collection, resolve: Resolve
    ) -> None:
        self.plan = plan
        self.image = image
        self.name = plan.event_name
        self.scope = scope
        self.fill_ratio_max = 0.0
        self.ring = collection.maps[plan.map]
        self._decoder = collect.RecordDecoder(plan, scope=scope, resolve=resolve, enums=collection.enums)

    def decode(self, records: bytes, *, otlp: bool = False, json: bool = False) -> collect.LogBatch:
        """Decode records just read."""
        now_ns = time.time_ns()
        # Measured each time: wall time is adjusted while the host runs, and it costs a tenth of a microsecond.
        return self._decoder.decode(
            records,
            now_ns=now_ns,
            realtime_minus_monotonic_ns=now_ns - time.monotonic_ns(),
            otlp=otlp,
            json=json,
        )


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
