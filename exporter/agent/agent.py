"""The agent: starts, runs images until told to stop, stops.

Threads are made here and nowhere else; each has one task and a name:

==========  ==================================================================
main        signals, watchdog, what systemd and ``skep list`` are told
bring-up    a few: each takes the image that is due, pulls it, loads it
events      one: empties the rings of all images
http        the server; its request threads read maps when scraped
metrics     posts a snapshot at an interval, if a receiver is configured
logs        posts events, if a receiver is configured
==========  ==================================================================

One that ends by a bug is told and started again; the others do not notice. Maps are
read under the lock of their image, and locks of several images are always taken in
the order of the configuration.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter import kernel
from exporter.config import AgentConfig
from exporter.errors import ImageError
from exporter.export import prometheus
from exporter.export.server import Handlers, MetricsServer, Scrape, UnknownCollectorError
from exporter.image import Store, default_store_path
from exporter.model import FrameView, Snapshot
from exporter.plan import Plan, check_together

from . import log
from .events import WAIT_S, EventReader, Ledger, ParcelQueue
from .identity import detect_resource
from .image import Image, Surroundings
from .program import make_lookup
from .systemd import Notifier
from .telemetry import VERSION, ImageStatus, OwnMetrics, StreamCounts

if TYPE_CHECKING:
    from exporter.export.otlp import Request

    from .delivery import LogsDelivery, MetricsDelivery

BRING_UP_THREADS = 8
"""So many registries may hang before an image that needs none of them has to wait."""
LOADERS = 2
"""Loader processes at a time; each may take tens of MB for a moment."""
STATE_FILE = "agent-state.json"
"""In the store's directory: what ``skep list`` shows of a running agent."""

FLUSH_S = 5.0
_TICK_S = 15.0
_RESTART_PAUSE_S = 1.0
_STUCK_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """Process settings, which are flags.

    Attributes:
        listen_addresses: ``host:port``, ``:port`` or ``[v6]:port``.
        max_requests: Scrapes at a time; 0 is no limit.
    """

    listen_addresses: tuple[str, ...] = (":19435",)
    telemetry_path: str = "/metrics"
    max_requests: int = 40


class Agent:
    """Everything that runs, from :meth:`run` to its return."""

    def __init__(self, config: AgentConfig, options: Options) -> None:
        self.config = config
        self._options = options
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._due = threading.Condition()
        self._busy: set[str] = set()
        self._claims = threading.Lock()
        self._plans: dict[str, Plan] = {}
        self._threads: list[threading.Thread] = []
        self._notifier = Notifier()
        self._told = ""
        self._repeats = log.Repeats()

        self.resource = detect_resource(config.resource_attributes)
        self._store = Store(config.store.path or default_store_path())
        self._ledger = Ledger()
        posts_logs = bool(config.otlp.endpoint) and config.otlp.logs_enabled
        posts_metrics = bool(config.otlp.endpoint) and config.otlp.metrics_enabled
        queue = ParcelQueue() if posts_logs else None
        self._reader = EventReader(self._ledger, queue, kernel.RingReader())
        around = Surroundings(
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
        )
        self.images = tuple(Image(image, around) for image in config.images if image.enabled)
        self._metrics: MetricsDelivery | None = None
        self._logs: LogsDelivery | None = None
        if posts_metrics or posts_logs:
            self._make_deliveries(queue, posts_metrics=posts_metrics)
        self._own = OwnMetrics(self)
        self._server = MetricsServer(
            options.listen_addresses,
            Handlers(metrics=self._answer_scrape, ready=self._answer_ready, landing=self._answer_landing),
            telemetry_path=options.telemetry_path,
            max_requests=options.max_requests,
        )

    def _make_deliveries(self, queue: ParcelQueue | None, *, posts_metrics: bool) -> None:
        # Protobuf and an HTTP client: 10 MB that an agent which is only scraped does not carry.
        from exporter.export.sender import OtlpSender  # noqa: PLC0415

        from .delivery import LogsDelivery, MetricsDelivery  # noqa: PLC0415

        config = self.config.otlp
        if posts_metrics:
            sender = OtlpSender(config, "metrics")
            self._metrics = MetricsDelivery(sender, self._metrics_requests, config.metrics_interval_s)
        if queue is not None:
            self._logs = LogsDelivery(OtlpSender(config, "logs"), queue, self._ledger, self.resource)

    # ---- the story ----

    def run(self) -> int:
        """Start, run until SIGTERM or SIGINT, stop; gives the exit status."""
        self._start()
        while not self._stop.is_set():
            self._wake.wait(self._notifier.watchdog_s / 3 or _TICK_S)
            self._wake.clear()
            try:
                self._tell()
            except Exception:  # a bug in telling must not end what is told about
                if self._repeats.count("tell", "failed"):
                    log.bug("telling the state failed")
            if self._healthy():
                self._notifier.alive()
        self._shut_down()
        return 0

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
        for number in range(min(BRING_UP_THREADS, len(self.images))):
            self._spawn(f"bring-up-{number}", self._bring_up)
        self._spawn("events", self._reader.run)
        self._spawn("http", lambda _stop: self._server.serve_forever())
        if self._metrics is not None:
            self._spawn("metrics", self._metrics.run)
        if self._logs is not None:
            self._spawn("logs", self._logs.run)
        for address, port in zip(self._options.listen_addresses, self._server.ports, strict=True):
            host = address.rpartition(":")[0] or "127.0.0.1"
            log.info("listening", address=address, url=f"http://{host}:{port}{self._options.telemetry_path}")
        self._notifier.ready("started")

    def _shut_down(self) -> None:
        """Deliver what is there, then detach: nothing of ours stays in the kernel."""
        self._notifier.stopping("detaching")
        log.info("skep stops")
        end = time.monotonic() + FLUSH_S
        with self._due:
            self._due.notify_all()
        for thread in self._threads:
            if thread.name != "http":  # which answers scrapes to the last
                thread.join(max(0.1, end - time.monotonic()))
        # One that did not end in time still has its sender: what it holds ends with the process.
        alive = {thread.name for thread in self._threads if thread.is_alive()}
        if self._metrics is not None and "metrics" not in alive:
            self._metrics.flush(max(0.5, end - time.monotonic()))
            self._metrics.close()
        for image in self.images:
            image.stop()
        if self._logs is not None and "logs" not in alive:
            self._logs.flush(max(0.5, end - time.monotonic()))
            self._logs.close()
        self._server.close()
        with contextlib.suppress(OSError):
            (self._store_path / STATE_FILE).unlink()
        log.info("skep stopped")

    def _on_stop_signal(self, _number: int, _frame: object) -> None:
        self._stop.set()
        self._wake.set()

    def _on_reload_signal(self, _number: int, _frame: object) -> None:
        log.warn("the configuration is read at start only; restart to apply a change")

    # ---- threads ----

    def _spawn(self, name: str, task: Callable[[threading.Event], None]) -> None:
        def guarded() -> None:
            while not self._stop.is_set():
                try:
                    task(self._stop)
                    return
                except Exception:  # a bug in one part must not end the others
                    log.bug("a part of the agent failed and is started again", part=name)
                    self._stop.wait(_RESTART_PAUSE_S)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _bring_up(self, stop: threading.Event) -> None:
        """Take the image that is due longest and bring it up, forever."""
        while not stop.is_set():
            with self._due:
                waiting = [image for image in self.images if image.name not in self._busy]
                image = min(waiting, key=lambda image: image.due_s, default=None)
                pause_s = image.due_s - time.monotonic() if image is not None else WAIT_S
                if image is None or pause_s > 0:
                    self._due.wait(min(pause_s, _TICK_S))
                    continue
                self._busy.add(image.name)
            try:
                image.bring_up()
            finally:
                with self._due:
                    self._busy.discard(image.name)
                    self._due.notify_all()

    def _claim(self, name: str, plan: Plan) -> None:
        """Take a plan's metric names; whoever comes later in the configuration and contradicts it must go.

        Raises:
            PlanError: an image before this one has one of the names.
        """
        with self._claims:
            self._plans[name] = plan
            ordered = {image.name: self._plans[image.name] for image in self.images if image.name in self._plans}
            errors = check_together(ordered)
            for loser in errors:
                del self._plans[loser]
        for image in self.images:
            if image.name in errors and image.name != name:
                image.displace(errors[image.name])
        with self._due:
            self._due.notify_all()
        if name in errors:
            raise errors[name]

    def _prune(self) -> None:
        """Keep the store at its number of versions; one that runs is never dropped."""
        in_use = [image.program.bundle.digest for image in self.images if image.program is not None]
        try:
            dropped = self._store.prune(self.config.store.keep, in_use)
        except ImageError as error:
            if self._repeats.count("prune", str(error)):
                log.warn("old versions stay in the store", reason=error)
        else:
            for version in dropped:
                log.info("old version dropped from the store", ref=version.reference, digest=version.digest)

    def _healthy(self) -> bool:
        """Whether every part still moves; only then the watchdog hears of us."""
        stuck = [thread.name for thread in self._threads if not thread.is_alive()]
        if time.monotonic() - self._reader.beat_s > _STUCK_AFTER_S:
            stuck.append("events")
        if stuck and not self._stop.is_set() and self._repeats.count("stuck", str(stuck)):
            log.error("parts of the agent do not move", parts=",".join(stuck))
        return not stuck

    # ---- what is told to others ----

    @property
    def _store_path(self) -> Path:
        return Path(self.config.store.path or default_store_path())

    def _tell(self) -> None:
        """Tell systemd and ``skep list`` how the images are, if that changed."""
        images = [
            {"name": i.name, "ref": i.config.ref, "state": i.state, "reason": i.reason, "digest": i.digest}
            for i in self.images
        ]
        text = json.dumps({"pid": os.getpid(), "images": images}, ensure_ascii=False, indent=1)
        if text == self._told:
            return
        self._told = text
        up = sum(image.program is not None for image in self.images)
        troubled = [f"{i.name} is {i.state}: {i.reason}" for i in self.images if i.reason]
        self._notifier.status("; ".join([f"{up} of {len(self.images)} images run", *troubled[:3]]))
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

    def image_statuses(self) -> Sequence[ImageStatus]:
        """Every image in the order of the configuration."""
        return [image.status() for image in self.images]

    def stream_counts(self) -> Sequence[StreamCounts]:
        """Every stream's account at one instant."""
        return self._ledger.counts()

    def otlp_items(self) -> Mapping[tuple[str, str], int]:
        """Items posted over OTLP."""
        deliveries = [delivery for delivery in (self._metrics, self._logs) if delivery is not None]
        return {key: count for delivery in deliveries for key, count in delivery.items().items()}

    # ---- one instant of everything ----

    def _answer_scrape(self, asked: Scrape) -> bytes:
        """Read the images asked for and give the text of them and of the agent itself."""
        names = [image.name for image in self.images]
        for name in (*asked.collect, *asked.exclude):
            if name not in names:
                known = f"configured are {', '.join(names)}" if names else "none is configured"
                raise UnknownCollectorError(f"image {name!r} is not configured; {known}")
        with self._snapshot(
            [i for i in self.images if (i.name in asked.collect or not asked.collect) and i.name not in asked.exclude]
        ) as snapshot:
            return prometheus.render(snapshot, self._own.render())

    def _answer_ready(self) -> tuple[bool, str]:
        waiting = [image.name for image in self.images if image.config.required and image.program is None]
        return not waiting, f"skep waits for {', '.join(waiting)}" if waiting else "skep is ready"

    def _answer_landing(self) -> tuple[str, str]:
        up = sum(image.program is not None for image in self.images)
        return "skep", f"eBPF programs that travel as OCI images; {up} of {len(self.images)} run. Version {VERSION}."

    def _metrics_requests(self) -> Sequence[Request]:
        from exporter.export import otlp  # noqa: PLC0415 - see _make_deliveries

        with self._snapshot(self.images) as snapshot:
            return otlp.metrics(snapshot)

    @contextlib.contextmanager
    def _snapshot(self, images: Sequence[Image]) -> Iterator[Snapshot]:
        """Read images and hold them still while the caller encodes."""
        arrived_s = time.monotonic()
        frames: list[FrameView] = []
        with contextlib.ExitStack() as held:
            for image in images:
                program = image.program
                if program is None:
                    continue
                held.enter_context(program.lock)
                if image.shows(program):
                    image.read(program, arrived_s)
                    frames += program.frames()
            yield Snapshot(time.time_ns(), self.resource, frames)
