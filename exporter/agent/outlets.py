"""Where numbers and events go besides the scrape: metrics and logs over OTLP, JSON lines.

Made whole from a configuration before anything changes, so that one that cannot be
changes nothing; then started, and stopped with a deadline. A reload makes only those
anew whose configuration changed; the queues of events stay.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from exporter.collect import AttributeLimits
from exporter.config import AgentConfig, JsonEventsConfig, OtlpConfig
from exporter.export.account import Account
from exporter.model import Resource, Scope

from . import log
from .events import EventReader, Ledger, LineAccount, ParcelQueue
from .lines import LineWriter, open_target
from .parts import Parts
from .telemetry import VERSION
from .tracing import Traces

if TYPE_CHECKING:
    from exporter.export.metrics import MetricsExport

    from .delivery import LogsDelivery, MetricsDelivery

_STUCK_S = 60.0
Take = Callable[["MetricsExport"], None]


@dataclass(slots=True)
class _Otlp:
    """What posts, and what it was made from."""

    config: OtlpConfig
    resource: Resource
    metrics: MetricsDelivery | None
    logs: LogsDelivery | None
    traces: Traces | None = None


def _same_receiver(old: _Otlp, new: _Otlp) -> bool:
    was, now = old.config.of_signal("metrics"), new.config.of_signal("metrics")
    return (was.endpoint, was.temporality, old.resource) == (now.endpoint, now.temporality, new.resource)


@dataclass(slots=True)
class _Lines:
    config: JsonEventsConfig
    writer: LineWriter | None


@dataclass(frozen=True, slots=True)
class Made:
    """Outlets that were made and do not run yet; None: as before."""

    otlp: _Otlp | None
    lines: _Lines | None


class Outlets:
    """All of them.

    Args:
        take: Reads all images and gives this instant to an export.
    """

    def __init__(self, parts: Parts, reader: EventReader, ledger: Ledger, take: Take) -> None:
        self._parts = parts
        self._reader = reader
        self._ledger = ledger
        self._take = take
        self._queue = ParcelQueue()
        self._account = LineAccount()
        self._otlp = _Otlp(OtlpConfig(), Resource(), None, None)
        self._lines = _Lines(JsonEventsConfig(), None)
        self._stops: dict[str, threading.Event] = {}
        self._accounts_before: dict[str, Account] = {}

    @property
    def writes_lines(self) -> bool:
        """Whether events go anywhere as JSON lines."""
        return self._lines.writer is not None

    def make(self, config: AgentConfig, resource: Resource) -> Made:
        """Make what differs from what runs.

        Raises:
            SkepError: something of it cannot be made.
        """
        otlp = lines = None
        if (config.otlp, resource) != (self._otlp.config, self._otlp.resource):
            otlp = self._make_otlp(config.otlp, resource)
        if config.json_events != self._lines.config:
            target = open_target(config.json_events)
            writer = LineWriter(target, self._account, self._ledger) if target is not None else None
            lines = _Lines(config.json_events, writer)
        return Made(otlp, lines)

    def _make_otlp(self, config: OtlpConfig, resource: Resource) -> _Otlp:
        made = _Otlp(config, resource, None, None)
        of_metrics, of_logs = config.of_signal("metrics"), config.of_signal("logs")
        posts_metrics = bool(of_metrics.endpoint) and config.metrics_enabled
        posts_logs = bool(of_logs.endpoint) and config.logs_enabled
        if config.traces_enabled and config.of_signal("traces").endpoint:
            made.traces = Traces(config, resource, VERSION)
        if not (posts_metrics or posts_logs):
            return made
        # Protobuf and an HTTP client: 10 MB that an agent which is only scraped does not carry.
        from exporter.export.metrics import MetricsExport  # noqa: PLC0415
        from exporter.export.sender import OtlpSender  # noqa: PLC0415

        from .delivery import LogsDelivery, MetricsDelivery  # noqa: PLC0415

        if posts_metrics:
            sender = OtlpSender(config, "metrics")
            export = MetricsExport(sender, config.temporality, own_scope=Scope("skep", VERSION))
            made.metrics = MetricsDelivery(
                sender, self._take, config.metrics_interval_s, export, timeout_s=config.metrics_export_timeout_s
            )
        if posts_logs:
            made.logs = LogsDelivery(
                OtlpSender(config, "logs"),
                self._queue,
                self._ledger,
                resource,
                delay_s=config.logs_delay_s,
                batch_records=config.logs_batch_records,
                timeout_s=config.logs_export_timeout_s,
            )
        return made

    def start(self, made: Made, *, deadline_s: float = 2.0) -> None:
        """Run what was made instead of what ran, which has so long to finish a request under way."""
        logs = (made.otlp or self._otlp).logs
        writer = (made.lines or self._lines).writer
        # From here on records go the new ways; those on the old ones are finished or handed on.
        config = (made.otlp or self._otlp).config
        self._reader.route(
            self._queue if logs is not None else None,
            self._account if writer is not None else None,
            AttributeLimits(config.logs_value_length_limit, config.logs_attribute_limit),
        )
        if made.otlp is not None:
            self._end(["metrics", "logs"], self._otlp.config.timeout_s + deadline_s)
            self._retire_otlp(deadline_s, hand_on=logs is not None)
            before, self._otlp = self._otlp, made.otlp
            if made.otlp.traces is not None:
                made.otlp.traces.start()
            if before.metrics is not None and made.otlp.metrics is not None and _same_receiver(before, made.otlp):
                # What the receiver knows and is owed: else delta would count again from the beginning.
                made.otlp.metrics.inherit(before.metrics)
            self._queue.limit_records = made.otlp.config.logs_queue_records
            self._run_otlp()
        if made.lines is not None:
            self._end(["lines"], deadline_s)
            old, self._lines = self._lines.writer, made.lines
            if old is not None:
                old.flush(deadline_s)
                old.close()
            if writer is not None:
                self._spawn("lines", writer.run, lambda: time.monotonic() - writer.beat_s, _STUCK_S)

    def _run_otlp(self) -> None:
        metrics, logs = self._otlp.metrics, self._otlp.logs
        if metrics is not None:
            # One post may take until the next is due.
            limit_s = 2 * self._otlp.config.metrics_interval_s + self._otlp.config.timeout_s + _STUCK_S
            self._spawn("metrics", metrics.run, lambda: time.monotonic() - metrics.beat_s, limit_s)
        if logs is not None:
            limit_s = self._otlp.config.timeout_s + _STUCK_S
            self._spawn("logs", logs.run, lambda: time.monotonic() - logs.beat_s, limit_s)

    def _spawn(
        self, name: str, task: Callable[[threading.Event], None], busy_s: Callable[[], float], limit_s: float
    ) -> None:
        self._stops[name] = threading.Event()
        self._parts.spawn(name, task, self._stops[name], busy_s=busy_s, limit_s=limit_s)

    def _end(self, names: Sequence[str], deadline_s: float) -> set[str]:
        """Stop threads; gives those that did not end in time, which keep what they hold."""
        end = time.monotonic() + deadline_s
        for name in names:
            if name in self._stops:
                self._stops[name].set()
        late = {name for name in names if not self._parts.join(name, end - time.monotonic())}
        if late:
            log.warn("parts of the agent did not end in time", parts=",".join(sorted(late)))
        return late

    def _retire_otlp(self, deadline_s: float, *, hand_on: bool) -> None:
        metrics, logs = self._otlp.metrics, self._otlp.logs
        if logs is not None:
            logs.give_back() if hand_on else logs.flush(deadline_s)
        self.flush_traces(deadline_s)
        for delivery in (metrics, logs):
            if delivery is not None:
                delivery.close()
                # What is in hand is the next one's, which tells of it.
                ended = replace(delivery.account(), pending=0)
                before = self._accounts_before.get(delivery.signal, Account())
                self._accounts_before[delivery.signal] = before + ended

    def flush_traces(self, deadline_s: float) -> None:
        """Post the spans there are; none are made any more."""
        traces, self._otlp.traces = self._otlp.traces, None
        if traces is not None:
            traces.stop(deadline_s)
            before = self._accounts_before.get(traces.signal, Account())
            self._accounts_before[traces.signal] = before + traces.account()

    def stop_threads(self, deadline_s: float) -> None:
        """End all threads; what is queued stays for :meth:`flush_metrics` and :meth:`flush_events`."""
        late = self._end(list(self._stops), deadline_s)
        # One that did not end still has its sender: what it holds ends with the process.
        if "metrics" in late:
            self._otlp.metrics = None
        if "logs" in late:
            self._otlp.logs = None
        if "lines" in late:
            self._lines.writer = None

    def flush_metrics(self, deadline_s: float) -> None:
        """Post the last snapshot; the images must still be readable."""
        if self._otlp.metrics is not None:
            self._otlp.metrics.flush(deadline_s)
            self._otlp.metrics.close()

    def flush_events(self, deadline_s: float) -> None:
        """Deliver what is queued; the rings must have been read to their end."""
        if self._lines.writer is not None:
            self._lines.writer.flush(deadline_s)
            self._lines.writer.close()
        if self._otlp.logs is not None:
            self._otlp.logs.flush(deadline_s)
            self._otlp.logs.close()

    def otlp_accounts(self) -> Mapping[str, Account]:
        """What became of everything posted over OTLP, by signal."""
        accounts = dict(self._accounts_before)
        for delivery in (self._otlp.metrics, self._otlp.logs, self._otlp.traces):
            if delivery is not None:
                accounts[delivery.signal] = accounts.get(delivery.signal, Account()) + delivery.account()
        return accounts

    def line_counts(self) -> Mapping[str, int]:
        """Records by what became of their lines; empty if none were ever wanted."""
        counts = self._account.counts()
        return counts if self.writes_lines or any(counts.values()) else {}
