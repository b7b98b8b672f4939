"""The agent: starts, runs images until told to stop, takes a changed configuration, stops.

Threads are made here and nowhere else (``parts.py`` starts and watches them); each has
one task and a name:

==========  ==================================================================
main        signals, watchdog, reload, what systemd and ``skep list`` are told
bring-up    a few: each takes the image that is due, pulls it, loads it
events      one: empties the rings of all images
http        the server; its request threads read maps when scraped
status      answers ``skep status``
metrics     posts a snapshot at an interval, if a receiver is configured
logs        posts events, if a receiver is configured
lines       writes events as JSON lines, if a target is configured
(SDK's)     one, gathers and posts spans of all this, if they are wanted
==========  ==================================================================

One that ends by a bug is told and started again; the others do not notice. Maps are
read under the lock of their image, and locks of several images are always taken in
the order of the configuration.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from exporter import kernel
from exporter.config import AgentConfig, settings_from_environment
from exporter.errors import ExportError, ImageError, KernelError, PlanError, Problems, SkepError
from exporter.export import prometheus
from exporter.export.account import Account
from exporter.export.prometheus import Exposition
from exporter.export.server import Handlers, MetricsServer, Scrape, UnknownCollectorError
from exporter.image import Store, default_store_path
from exporter.model import FrameView, Resource, Snapshot
from exporter.plan import Plan, check_together

from . import log, tracing
from .events import WAIT_S, EventReader, Ledger
from .fdstore import PREFIX, DescriptorStore
from .identity import detect_resource
from .image import Image, Surroundings, one_line
from .outlets import Outlets
from .parts import Parts
from .program import Program, make_lookup
from .reload import ConfigSource, ReloadState, Watch
from .status import DOCUMENT_VERSION, Document, Rates, StatusServer
from .systemd import Notifier, passed_descriptors
from .telemetry import VERSION, ImageStatus, OwnMetrics, StreamCounts

if TYPE_CHECKING:
    from exporter.export.metrics import MetricsExport

BRING_UP_THREADS = 8
"""So many registries may hang before an image that needs none of them has to wait."""
LOADERS = 2
"""Loader processes at a time; each may take tens of MB for a moment."""
STATE_FILE = "agent-state.json"
"""In the store's directory: what ``skep list`` shows of a running agent."""

FLUSH_S = 5.0
_TICK_S = 5.0
_STUCK_AFTER_S = 60.0
_BRING_UP_LIMIT_S = 900.0
"""A pull may take 300 s, and a load 60 s after it waited for its turn."""
_READY_PATIENCE_S = 60.0
"""Ready is told when every image was tried once, or after this: an image that comes late is no reason not to start."""
_EXTENSION_S = 30.0
_RELOAD_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """Process settings, which are flags.

    Attributes:
        listen_addresses: ``host:port``, ``:port`` or ``[v6]:port``.
        max_requests: Scrapes at a time; 0 is no limit.
        web_config: File that says who may ask; None for everybody, in the clear.
        systemd_socket: Serve on what systemd passed instead of on the addresses.
        status_socket: Where ``skep status`` asks; None for nowhere.
        lifecycle: Whether the configuration may be read again over HTTP.
        exporter_metrics: Whether metrics of this process and its scrapes are among them.
    """

    listen_addresses: tuple[str, ...] = (":19435",)
    telemetry_path: str = "/metrics"
    max_requests: int = 40
    web_config: Path | None = None
    systemd_socket: bool = False
    status_socket: Path | None = None
    exporter_metrics: bool = True
    lifecycle: bool = False


class Agent:
    """Everything that runs, from :meth:`run` to its return.

    Args:
        source: Where the configuration came from and may be read again; None: it does not change.

    Attributes:
        sockets: Listening sockets that the service manager passed, by name.
    """

    def __init__(self, config: AgentConfig, options: Options, source: ConfigSource | None = None) -> None:
        self.config = config
        self.started_s = time.time()
        self._options = options
        self._source = source
        self._watch = Watch(source) if source is not None else None
        self._reload = ReloadState()
        self._reload_asked = False
        self._reloads: list[threading.Event] = []
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._due = threading.Condition()
        self._busy: set[str] = set()
        self._busy_since: dict[str, float] = {}
        self._retired: list[Image] = []
        self._claims = threading.Lock()
        self._plans: dict[str, Plan] = {}
        self._parts = Parts()
        self._rates = Rates()
        self._notifier = Notifier()
        self._ready = False
        self._told = ""
        self._online = kernel.online_cpus()
        self._repeats = log.Repeats()
        passed = passed_descriptors()
        self.sockets = [(name, fd) for name, fd in passed if not name.startswith(PREFIX)]
        self._kept = DescriptorStore(self._notifier, passed)

        self.resource: Resource = detect_resource(config.resource_attributes)
        self._store = Store(config.store.path or default_store_path())
        self._ledger = Ledger()
        self._reader = EventReader(self._ledger, None, kernel.RingReader())
        self._around = Surroundings(
            store=self._store,
            registries=config.registries,
            retry=config.retry,
            resolve=make_lookup().resolve,
            reader=self._reader,
            loading=threading.Semaphore(LOADERS),
            claim=self._claim,
            prune=self._prune,
            changed=self._wake.set,
            stop=self._stop,
            kept=self._kept,
        )
        self.images = tuple(Image(image, self._around) for image in config.images if image.enabled)
        self._start_ns = time.time_ns()
        self._outlets = Outlets(self._parts, self._reader, self._ledger, self._take_metrics)
        self._first_outlets = self._outlets.make(config, self.resource)
        self._own = OwnMetrics(self, exporter=options.exporter_metrics)
        self._server = MetricsServer(
            options.listen_addresses,
            Handlers(
                metrics=self._answer_scrape,
                ready=self._answer_ready,
                landing=self._answer_landing,
                expositions=tuple(Exposition),
                web_config=self._on_web_config,
                refused=self._on_refused,
                reload=self._answer_reload if options.lifecycle else None,
            ),
            telemetry_path=options.telemetry_path,
            max_requests=options.max_requests,
            web_config=options.web_config,
            descriptors=[fd for _, fd in self.sockets] if options.systemd_socket else None,
        )
        self._statistics: kernel.RunStatistics | None = None
        self._status: StatusServer | None = None
        if options.status_socket is not None:
            try:
                self._status = StatusServer(options.status_socket, self.document)
            except ExportError as error:  # numbers matter more
                log.warn("skep status cannot be answered", reason=error)

    # ---- the story ----

    def run(self) -> int:
        """Start, run until SIGTERM or SIGINT, stop; gives the exit status."""
        self._start()
        while not self._stop.is_set():
            self._wake.wait(self._turn_s())
            self._wake.clear()
            try:
                self._turn()
            except Exception:  # a bug in telling must not end what is told about
                if self._repeats.count("turn", "failed"):
                    log.bug("telling the state failed")
            if self._healthy():
                self._notifier.alive()
        self._shut_down()
        return 0

    def _turn_s(self) -> float:
        """How long the main thread may sleep."""
        waits = [_TICK_S]
        if self._notifier.watchdog_s:
            waits.append(self._notifier.watchdog_s / 3)
        if self._watch is not None:
            waits.append(self._watch.wait_s)
        return min(waits)

    def _turn(self) -> None:
        if self._reload_asked or (self._watch is not None and self._watch.changed()):
            asked, self._reload_asked = self._reload_asked, False
            waiting = [self._reloads.pop(0) for _ in range(len(self._reloads))]
            try:
                self.reload("/-/reload" if waiting else "SIGHUP" if asked else "its content changed")
            finally:
                for done in waiting:
                    done.set()
        self._follow_cpus()
        self._rates.sample(self._ledger.counts(), self._used())
        self._tell()

    def _follow_cpus(self) -> None:
        """Have programs that sample every CPU follow those that came or went; an image that is busy waits a turn."""
        online = kernel.online_cpus()
        if online == self._online:
            return
        done = True
        for image in self.images:
            with self._due:
                if image.name in self._busy:
                    done = False
                    continue
                self._busy.add(image.name)
            try:
                image.follow_cpus(online)
            finally:
                self._let_go(image)
        if done:
            self._online = online

    def _start(self) -> None:
        for stop_signal in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop_signal, self._on_stop_signal)
        signal.signal(signal.SIGHUP, self._on_reload_signal)
        log.info(
            "skep starts",
            version=VERSION,
            images=len(self.images),
            store=self._store_path,
            otlp=self.config.otlp.endpoint,
        )
        if not self.images:
            log.warn("no images are configured; add some under images")
        for warning in settings_from_environment(os.environ).warnings:
            log.warn("an OTEL_ variable has no effect", reason=warning)
        self._measure_runs(self.config.telemetry.bpf_stats)
        try:
            self._store.prepare()
        except ImageError as error:
            log.warn("images cannot be stored", reason=error)
        self._kept.keep_only({image.name for image in self.images})
        for left in kernel.sweep():
            log.info("removed a traffic filter that an agent left behind", interface=left.ifindex, way=left.direction)
        self._rates.sample(self._ledger.counts(), self._used())
        self._outlets.start(self._first_outlets)
        self._spawn_bring_ups()
        self._parts.spawn(
            "events",
            self._reader.run,
            self._stop,
            busy_s=lambda: time.monotonic() - self._reader.beat_s,
            limit_s=_STUCK_AFTER_S,
        )
        serve, served = self._server.serve_forever, self._server.busy_s
        self._parts.spawn("http", lambda _stop: serve(), self._stop, busy_s=served, limit_s=_STUCK_AFTER_S)
        if self._status is not None:
            answered = self._status.busy_s
            self._parts.spawn("status", self._status.run, self._stop, busy_s=answered, limit_s=_STUCK_AFTER_S)
        for url in self._server.urls:
            log.info("listening", url=url)
        for note in self._server.access.notes if self._server.access is not None else ():
            log.warn("the web configuration asks for what has no effect", reason=note)
        self._wake.set()

    def _shut_down(self) -> None:
        """Deliver what is there, then detach: nothing of ours stays in the kernel but what systemd keeps for us."""
        leave = self._kept.on
        self._notifier.stopping("leaving programs to systemd" if leave else "detaching")
        log.info("skep stops", programs="stay attached, systemd holds them" if leave else "are detached")
        end = time.monotonic() + FLUSH_S

        def left_s(least: float) -> float:
            return max(least, end - time.monotonic())

        with self._due:
            self._due.notify_all()
        for name in self._parts.names():
            if name == "events" or name.startswith("bring-up"):
                self._parts.join(name, left_s(0.1))
        self._outlets.stop_threads(left_s(0.1))
        self._outlets.flush_metrics(left_s(0.5))
        for image in (*self.images, *self._retired):
            image.stop(leave=leave)
        self._outlets.flush_events(left_s(0.5))
        left = sum(counts.queued for counts in self._ledger.counts())
        if left:
            log.warn("events are lost: their receiver did not let go of them in time", records=left)
        self._outlets.flush_traces(left_s(0.5))
        self._server.close()
        if self._status is not None:
            self._status.wake()
            if self._parts.join("status", left_s(0.1)):
                self._status.close()
        with contextlib.suppress(OSError):
            (self._store_path / STATE_FILE).unlink()
        log.info("skep stopped")

    def _on_stop_signal(self, _number: int, _frame: object) -> None:
        self._stop.set()
        self._wake.set()

    def _on_reload_signal(self, _number: int, _frame: object) -> None:
        self._reload_asked = True
        self._wake.set()

    # ---- another configuration ----

    def reload(self, cause: str) -> None:
        """Read the configuration again and let it take effect; one that is bad changes nothing and is told."""
        if self._source is None or self._watch is None:
            log.warn("there is no configuration to read again")
            return
        if self._ready:
            self._notifier.reloading("reloading the configuration")
        self._watch.look()
        try:
            with tracing.span("reload", cause=cause):
                self._apply(self._source.read())
        except SkepError as error:
            self._reload.fail(one_line(error))
            for problem in error.problems if isinstance(error, Problems) else (error,):
                log.error("configuration refused; what runs goes on as before", cause=cause, reason=problem)
        except Exception as error:  # a bug; what runs goes on
            self._reload.fail(f"internal error: {error!r}")
            log.bug("reloading the configuration failed", cause=cause)
        else:
            self._reload.succeed()
            log.info("configuration reloaded", cause=cause, images=len(self.images))
        if self._ready:
            self._notifier.ready(self._summary())

    def _apply(self, config: AgentConfig) -> None:
        """Let a configuration take effect. Whatever can be refused is made first; then nothing fails any more.

        Raises:
            SkepError: something of it cannot be made; nothing has changed.
        """
        if config.store.path != self.config.store.path:
            log.warn("store.path takes effect at the next start", path=config.store.path)
            config = replace(config, store=replace(config.store, path=self.config.store.path))
        resource = detect_resource(config.resource_attributes)
        outlets = self._outlets.make(config, resource)
        around = replace(self._around, registries=config.registries, retry=config.retry)

        self.config, self.resource, self._around = config, resource, around
        self._measure_runs(config.telemetry.bpf_stats)
        self._outlets.start(outlets)
        wanted = {image.name: image for image in config.images if image.enabled}
        with self._due:
            present = {image.name: image for image in self.images}
            for name, image in present.items():
                if name in wanted:
                    image.reconfigure(wanted[name], around)
            gone = [image for name, image in present.items() if name not in wanted]
            self.images = tuple(present.get(name) or Image(entry, around) for name, entry in wanted.items())
        self._kept.keep_only(set(wanted))
        for image in gone:
            self._retire(image)
        self._spawn_bring_ups()
        with self._due:
            self._due.notify_all()

    def _measure_runs(self, wanted: bool) -> None:
        """Have the kernel measure programs, or no longer; what cannot be is told and not needed."""
        statistics = self._statistics
        if not wanted:
            self._statistics = None
            if statistics is not None:
                statistics.close()
        elif statistics is None:
            try:
                self._statistics = kernel.RunStatistics()
            except KernelError as error:
                log.warn("runs of programs are not measured, as telemetry.bpf_stats would have it", reason=error)

    def _retire(self, image: Image) -> None:
        """Stop an image that is no longer configured; one that is being brought up is stopped by who does that."""
        with self._due:
            self._retired.append(image)
            if image.name in self._busy:
                return
            self._busy.add(image.name)
        self._finish_retiring(image)

    def _finish_retiring(self, image: Image) -> None:
        image.retire()
        with self._claims:
            self._plans.pop(image.name, None)
        with self._due:
            self._retired.remove(image)
            self._busy.discard(image.name)
            self._due.notify_all()

    # ---- images ----

    def _spawn_bring_ups(self) -> None:
        started = sum(name.startswith("bring-up") for name in self._parts.names())
        for number in range(started, min(BRING_UP_THREADS, len(self.images))):
            name = f"bring-up-{number}"
            busy_s = partial(self._busy_s, name)
            self._parts.spawn(name, self._bring_up, self._stop, busy_s=busy_s, limit_s=_BRING_UP_LIMIT_S)

    def _busy_s(self, thread: str) -> float:
        """For how long a bring-up thread has been at one image."""
        since_s = self._busy_since.get(thread)
        return time.monotonic() - since_s if since_s is not None else 0.0

    def _bring_up(self, stop: threading.Event) -> None:
        """Take the image that is due longest and bring it up, forever."""
        me = threading.current_thread().name
        while not stop.is_set():
            with self._due:
                waiting = [image for image in self.images if image.name not in self._busy]
                image = min(waiting, key=lambda image: image.due_s, default=None)
                pause_s = image.due_s - time.monotonic() if image is not None else WAIT_S
                if image is None or pause_s > 0:
                    self._due.wait(min(pause_s, _TICK_S))
                    continue
                self._busy.add(image.name)
            self._busy_since[me] = time.monotonic()
            try:
                image.bring_up()
            finally:
                self._busy_since.pop(me, None)
                self._let_go(image)

    def _let_go(self, image: Image) -> None:
        """An image that was taken may be taken again, unless it is to be stopped meanwhile."""
        with self._due:
            retired = image in self._retired
            if not retired:
                self._busy.discard(image.name)
                self._due.notify_all()
        if retired:
            self._finish_retiring(image)
        self._wake.set()

    def _claim(self, name: str, plan: Plan) -> None:
        """Take a plan's metric names; whoever comes later in the configuration and contradicts it must go.

        Raises:
            PlanError: an image before this one has one of the names.
        """
        images = self.images
        with self._claims:
            self._plans[name] = plan
            ordered = {image.name: self._plans[image.name] for image in images if image.name in self._plans}
            errors: Mapping[str, PlanError] = check_together(ordered)
            for loser in errors:
                del self._plans[loser]
        for image in images:
            if image.name in errors and image.name != name:
                image.displace(errors[image.name])
        with self._due:
            self._due.notify_all()
        if name in errors:
            raise errors[name]

    def _prune(self) -> None:
        """Keep the store at its number of versions; one that runs is never dropped."""
        programs = [image.program for image in self.images]
        in_use = [program.bundle.digest for program in programs if program is not None]
        try:
            dropped = self._store.prune(self.config.store.keep, in_use)
        except ImageError as error:
            if self._repeats.count("prune", str(error)):
                log.warn("old versions stay in the store", reason=error)
        else:
            for version in dropped:
                log.info("old version dropped from the store", ref=version.reference, digest=version.digest)

    def _healthy(self) -> bool:
        """Whether every part makes progress; only then the watchdog hears of us."""
        stuck = self._parts.stuck()
        if stuck and not self._stop.is_set() and self._repeats.count("stuck", str(stuck)):
            log.error("parts of the agent do not move", parts=",".join(stuck))
        return not stuck

    # ---- what is told to others ----

    @property
    def _store_path(self) -> Path:
        return Path(self.config.store.path or default_store_path())

    def _summary(self) -> str:
        """How the images are, in one line."""
        up = sum(image.program is not None for image in self.images)
        troubled = [f"{i.name} is {i.state}: {i.reason}" for i in self.images if i.reason]
        refused = [f"configuration refused: {self._reload.error}"] if self._reload.error else []
        return "; ".join([f"{up} of {len(self.images)} images run", *refused, *troubled[:3]])

    def _tell(self) -> None:
        """Tell systemd and ``skep list`` how the images are, if that changed."""
        self._tell_manager()
        images = [
            {"name": i.name, "ref": i.config.ref, "state": i.state, "reason": i.reason, "digest": i.digest}
            for i in self.images
        ]
        text = json.dumps({"pid": os.getpid(), "images": images}, ensure_ascii=False, indent=1)
        if text == self._told:
            return
        self._told = text
        target = self._store_path / STATE_FILE
        temporary = target.with_name(f".{STATE_FILE}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text + "\n")
            temporary.replace(target)
        except OSError as error:
            if self._repeats.count("state file", str(error)):
                log.warn("cannot write the state file", file=target, reason=error.strerror)
        else:
            self._repeats.clear("state file")

    def _tell_manager(self) -> None:
        """READY once every image was tried; until then how far that is, and that it may take longer."""
        untried = sum(not image.tried for image in self.images)
        if self._ready:
            self._notifier.status(self._summary())
        elif not untried or time.time() - self.started_s > _READY_PATIENCE_S:
            self._ready = True
            self._notifier.ready(self._summary())
        else:
            self._notifier.extend_timeout(_EXTENSION_S)
            self._notifier.status(f"pulling {len(self.images) - untried + 1} of {len(self.images)} images")

    def document(self) -> Document:
        """What ``skep status`` shows."""
        counts, measured = self._ledger.counts(), self.runs_measured()
        return {
            "version": DOCUMENT_VERSION,
            "skep": VERSION,
            "pid": os.getpid(),
            "started": self.started_s,
            "ready": self._answer_ready()[0],
            "listening": [f"port {port}" for port in self._server.ports],
            "reload_successful": self._reload.successful,
            "reload_success_time": self._reload.success_time_s,
            "reload_error": self._reload.error,
            "stuck": self._parts.stuck(),
            "otlp": {
                signal_name: {"accepted": each.accepted, "rejected": each.rejected, "failed": each.failed}
                for signal_name, each in self.otlp_accounts().items()
            },
            "lines": dict(self.line_counts()),
            "images": [image.document(counts, self._rates, measured=measured) for image in self.images],
        }

    def image_statuses(self) -> Sequence[ImageStatus]:
        """Every image in the order of the configuration."""
        return [image.status() for image in self.images]

    def _used(self) -> dict[tuple[str, str], kernel.ProgramUsage]:
        """What every program has used, by image and name; nothing while the kernel does not measure."""
        running = [(image.name, image.program) for image in self.images] if self.runs_measured() else []
        return {(name, one): used for name, p in running if p is not None for one, used in p.usage.items()}

    def runs_measured(self) -> bool:
        """Whether the kernel counts runs of programs and their time."""
        return self._statistics is not None

    def stream_counts(self) -> Sequence[StreamCounts]:
        """Every stream's account at one instant."""
        return self._ledger.counts()

    def otlp_accounts(self) -> Mapping[str, Account]:
        """What became of everything posted over OTLP, by signal."""
        return self._outlets.otlp_accounts()

    def line_counts(self) -> Mapping[str, int]:
        """Records by what became of their JSON lines."""
        return self._outlets.line_counts()

    def scrape_requests(self) -> tuple[Mapping[int, int], int]:
        """Scrapes answered so far by HTTP status, and those being made."""
        return self._server.scrapes()

    def last_reload(self) -> tuple[bool, float]:
        """Whether the last reading of the configuration succeeded, and when one last did."""
        return self._reload.successful, self._reload.success_time_s

    # ---- one instant of everything ----

    def _answer_scrape(self, asked: Scrape) -> bytes:
        """Read the images asked for and give the text of them and of the agent itself."""
        names = [image.name for image in self.images]
        for name in (*asked.collect, *asked.exclude):
            if name not in names:
                known = f"configured are {', '.join(names)}" if names else "none is configured"
                raise UnknownCollectorError(f"image {name!r} is not configured; {known}")
        wanted = [
            i for i in self.images if (i.name in asked.collect or not asked.collect) and i.name not in asked.exclude
        ]
        late: list[str] = []
        with (
            tracing.span("scrape", images=len(wanted)) as note,
            self._snapshot(wanted, asked.deadline_s, late) as snapshot,
        ):
            note.set(images_late=len(late))
            if late and self._repeats.count("late", ",".join(late)):
                log.warn("a scraper's deadline came before all images were read", images=",".join(late))
            return prometheus.render(snapshot, self._own.render(asked.exposition, late), asked.exposition)

    def _on_web_config(self, problem: str) -> None:
        if problem:
            log.error("the web configuration cannot be used; every request gets 500", reason=problem)
        else:
            log.info("the web configuration was read again")

    def _on_refused(self, client: str, reason: str) -> None:
        count = self._repeats.count(("refused", reason), reason)
        if count:
            log.warn("a client could not connect", client=client, reason=reason, count=count)

    def _answer_reload(self) -> tuple[bool, str]:
        """Have the main thread read the configuration again, and say how that went."""
        done = threading.Event()
        self._reloads.append(done)
        self._reload_asked = True
        self._wake.set()
        if not done.wait(_RELOAD_PATIENCE_S):
            return False, "the configuration is being read again; see the log for how that ends"
        return self._reload.successful, self._reload.error or "configuration reloaded"

    def _answer_ready(self) -> tuple[bool, str]:
        waiting = [image.name for image in self.images if image.config.required and image.program is None]
        return not waiting, f"skep waits for {', '.join(waiting)}" if waiting else "skep is ready"

    def _answer_landing(self) -> tuple[str, str]:
        up = sum(image.program is not None for image in self.images)
        return "skep", f"eBPF programs that travel as OCI images; {up} of {len(self.images)} run. Version {VERSION}."

    def _take_metrics(self, export: MetricsExport) -> None:
        from exporter.export.registry import families  # noqa: PLC0415 - protobuf, as in outlets.py

        with self._snapshot(self.images) as snapshot:
            export.take(snapshot, families(self._own.families(), self._start_ns))

    @contextlib.contextmanager
    def _snapshot(
        self, images: Sequence[Image], deadline_s: float | None = None, late: list[str] | None = None
    ) -> Iterator[Snapshot]:
        """Read images and hold them still while the caller encodes.

        Args:
            images: In the order of the configuration.
            deadline_s: Monotonic: what is not read by then is left out.
            late: Takes the names of the images of which that left something out.
        """
        arrived_s = time.monotonic()
        end_s = math.inf if deadline_s is None else deadline_s
        frames: list[FrameView] = []
        with contextlib.ExitStack() as held:
            for image in images:
                try:
                    program = self._hold(image, held, end_s)
                except TimeoutError:
                    in_time = False
                else:
                    if program is None or not image.shows(program):
                        continue
                    in_time = image.read(program, arrived_s, end_s)
                    frames += program.frames()
                if not in_time and late is not None:
                    late.append(image.name)
            yield Snapshot(time.time_ns(), self.resource, frames)

    @staticmethod
    def _hold(image: Image, held: contextlib.ExitStack, end_s: float = math.inf) -> Program | None:
        """Take the lock of what an image runs; while waiting for it, that may have become another version.

        Raises:
            TimeoutError: somebody else still had it at ``end_s``.
        """
        while (program := image.program) is not None:
            left_s = min(end_s - time.monotonic(), threading.TIMEOUT_MAX)
            if not program.lock.acquire(timeout=max(0.0, left_s)):
                raise TimeoutError
            if image.program is program:
                held.callback(program.lock.release)
                return program
            program.lock.release()
        return None
