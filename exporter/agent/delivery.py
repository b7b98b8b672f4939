"""What is posted over OTLP, and when: metrics at an interval, events as they come.

Metrics are cumulative: a request that could not be delivered until the next one is
due is given up, and nothing is lost by it. Events are not: a parcel is offered until the receiver takes
or refuses it, while newer ones wait in the bounded queue.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from exporter.export import otlp
from exporter.export.account import Account
from exporter.export.metrics import SMALLEST_REQUEST_BYTES, MetricsExport
from exporter.export.otlp import Request
from exporter.export.outcome import stopped
from exporter.export.sender import OtlpSender, Outcome, Verdict
from exporter.model import Resource

from . import log, tracing
from .events import Ledger, Parcel, ParcelQueue
from .parts import set_after

REQUEST_BYTES = 1 << 20
_BACKOFF_FIRST_S = 1.0
_BACKOFF_MAX_S = 30.0


class _Delivery:
    """One sender and what is told about it."""

    def __init__(self, sender: OtlpSender, signal: str) -> None:
        self._sender = sender
        self.signal = signal
        self._repeats = log.Repeats()
        self.beat_s = time.monotonic()

    def account(self) -> Account:
        """What became of everything so far."""
        return self._sender.account

    def _tell(self, outcome: Outcome, items: int) -> None:
        """Log a failure once and the recovery from it."""
        if outcome.verdict is Verdict.STOPPED:
            return
        if outcome.accepted and not outcome.rejected_items:
            failures = self._repeats.clear(self.signal)
            if failures:
                log.info("receiver takes data again", signal=self.signal, url=self._sender.url, after_failures=failures)
            return
        # A message may hold a count that differs each time; its cause does not.
        count = self._repeats.count(self.signal, outcome.cause)
        if count:
            log.warn(
                "receiver refused items" if outcome.accepted or not outcome.retryable else "receiver is not available",
                signal=self.signal,
                url=self._sender.url,
                reason=outcome.message,
                items=outcome.rejected_items or items,
                times=count if count > 1 else None,
            )

    def close(self) -> None:
        """Close idle connections."""
        self._sender.close()


class MetricsDelivery(_Delivery):
    """Posts a snapshot every ``interval_s``.

    Args:
        take: Reads all images and gives this instant to the export.
        timeout_s: How long it is offered; 0 until the next is due.
    """

    def __init__(
        self,
        sender: OtlpSender,
        take: Callable[[MetricsExport], None],
        interval_s: float,
        export: MetricsExport,
        *,
        timeout_s: float = 0.0,
    ) -> None:
        super().__init__(sender, "metrics")
        self._take = take
        self._interval_s = interval_s
        self._timeout_s = timeout_s or float("inf")
        self.export = export

    def account(self) -> Account:
        """What became of everything so far, and what is in hand."""
        return replace(super().account(), pending=self.export.in_hand, forgotten=self.export.forgotten)

    def inherit(self, other: MetricsDelivery) -> None:
        """Go on where another delivery to the same receiver ended; neither may be running."""
        self.export = other.export
        self.export.use(self._sender)

    def run(self, stop: threading.Event) -> None:
        """Post until ``stop`` is set; the first time after a random part of the interval, so that a fleet spreads."""
        due_s = time.monotonic() + random.uniform(0.0, min(self._interval_s, 10.0))  # noqa: S311 - spreads load
        while not stop.wait(max(0.0, due_s - time.monotonic())):
            self.beat_s = time.monotonic()
            # A late one is followed by the next on the same beat, not by a burst.
            due_s = max(due_s + self._interval_s, time.monotonic())
            self._post(stop, due_s)

    def _post(self, stop: threading.Event, until_s: float) -> None:
        with tracing.span("export.metrics", url=self._sender.url) as note:
            try:
                with tracing.span("export.read"):
                    self._take(self.export)
            except Exception:  # a bug; the next interval tries again
                log.bug("encoding metrics failed")
            left_s = min(max(0.0, until_s - time.monotonic()), self._timeout_s)
            before = self._sender.account
            self.export.post(stop=stop, deadline_s=left_s, tell=self._tell)
            after = self._sender.account
            note.set(
                accepted=after.accepted - before.accepted,
                rejected=after.rejected - before.rejected,
                failed=after.failed - before.failed,
                attempts=sum(after.requests.values()) - sum(before.requests.values()),
            )
            if after.failed > before.failed:
                note.fail("unavailable", "no receiver took them in time")

    def flush(self, deadline_s: float) -> None:
        """Post once more, at the end."""
        with set_after(deadline_s) as late:
            self._post(late, time.monotonic() + deadline_s)
        self.export.abandon()


class LogsDelivery(_Delivery):
    """Posts parcels of events and settles them in the ledger.

    Args:
        delay_s: How long they are gathered: a request of many records costs hardly more than one of few.
        batch_records: So many in one request at most; 0: only its bytes are bounded.
        timeout_s: How long a request is offered before its records have failed; 0 for ever.
    """

    def __init__(
        self,
        sender: OtlpSender,
        queue: ParcelQueue,
        ledger: Ledger,
        resource: Resource,
        *,
        delay_s: float = 0.2,
        batch_records: int = 0,
        timeout_s: float = 0.0,
    ) -> None:
        super().__init__(sender, "logs")
        self._queue = queue
        self._ledger = ledger
        self._resource = resource
        self._delay_s = delay_s
        self._batch_records = batch_records or 1 << 62
        self._timeout_s = timeout_s or float("inf")
        self._held: list[Parcel] = []
        self._torn = False
        self._requests: deque[Request] = deque()

    def account(self) -> Account:
        """What became of everything so far, and what is in hand."""
        return replace(super().account(), pending=sum(request.items for request in list(self._requests)))

    def run(self, stop: threading.Event) -> None:
        """Post until ``stop`` is set; what is then in hand stays for :meth:`flush`."""
        while not stop.is_set():
            self.beat_s = time.monotonic()
            if not self._held:
                if not self._queue.wait(0.5):
                    continue
                stop.wait(self._delay_s)
                self._pick()
            self._offer(stop, float("inf"))

    def flush(self, deadline_s: float) -> None:
        """Offer what is left until ``deadline_s`` from now; what then remains is dropped and counted."""
        end = time.monotonic() + deadline_s
        with set_after(deadline_s) as late:
            while self._held or self._pick():
                self._offer(late, end)
                if late.is_set() or time.monotonic() >= end:
                    break
        for request in self._requests:  # offered, and never answered
            self._sender.settle(stopped(), request.items)
        self._requests.clear()
        left = [*self._held, *self._queue.take(1 << 62)]
        for parcel in left:
            self._ledger.settle(parcel.image, parcel.stream, dropped=parcel.records, reason="shutdown")
        if left:
            log.warn("events dropped at the end", records=sum(parcel.records for parcel in left), url=self._sender.url)
        self._held = []

    def give_back(self) -> None:
        """Put what is in hand back, for another delivery from the same queue."""
        if self._torn:  # some of its records were answered already, and they cannot be told from the others
            torn = self._held.pop(0)
            self._sender.settle(stopped(), torn.records)
            self._ledger.settle(torn.image, torn.stream, dropped=torn.records, reason="reload")
        self._queue.give_back(self._held)
        self._held = []
        self._requests.clear()

    def _pick(self) -> bool:
        """Take parcels in hand: one larger than a request, or several that fit into one."""
        self._torn = False
        self._held = self._queue.take(REQUEST_BYTES)
        whole = otlp.logs(self._resource, [(parcel.scope, parcel.body) for parcel in self._held])
        self._requests = deque(part for request in whole for part in _parts(request, self._batch_records))
        return bool(self._held)

    def _offer(self, stop: threading.Event, end: float) -> None:
        """Post what is in hand until it is answered; keeps the rest in hand when stopped or out of time."""
        while self._requests:
            with tracing.span("export.logs", url=self._sender.url, items=self._requests[0].items) as note:
                outcome = self._answer(self._requests[0], stop, end)
                if outcome is None or not outcome.accepted:
                    note.fail(outcome.cause if outcome is not None else "stopped", "the receiver did not take them")
            if outcome is None:
                return
            request = self._requests.popleft()
            halves = otlp.split(request) if outcome.too_large and len(request.body) > SMALLEST_REQUEST_BYTES else None
            if halves is not None:
                self._requests.extendleft(reversed(halves))
                continue
            items = request.items
            self._sender.settle(outcome, items)
            self._settle(outcome, items)
        for parcel in self._held:  # records that are in no request, though their decoder counted them
            self._ledger.settle(parcel.image, parcel.stream, failed=parcel.records)
        self._held = []

    def _answer(self, request: Request, stop: threading.Event, end: float) -> Outcome | None:
        """A final outcome, or None if there is none in time."""
        attempt = 0
        give_up_s = time.monotonic() + self._timeout_s
        while True:
            outcome = self._sender.post(request.body, stop=stop)
            self._tell(outcome, request.items)
            if outcome.verdict is Verdict.STOPPED:
                return None
            if not outcome.retryable:
                return outcome
            bound_s = min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2.0 ** min(attempt, 20))
            pause_s = max(random.uniform(0.0, bound_s), outcome.retry_after_s or 0.0)  # noqa: S311 - spreads load
            if time.monotonic() + pause_s >= give_up_s:
                log.warn("events given up: they were offered for export_timeout", records=request.items)
                return outcome
            if time.monotonic() + pause_s >= end or not self._pause(pause_s, stop):
                return None
            attempt += 1

    def _pause(self, seconds: float, stop: threading.Event) -> bool:
        """Wait, however long the receiver asked for, and be seen to; whether it was not stopped."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0:
            self.beat_s = time.monotonic()
            if stop.wait(min(left_s, 10.0)):
                return False
        self.beat_s = time.monotonic()
        return not stop.is_set()

    def _settle(self, outcome: Outcome, items: int) -> None:
        """Give ``items`` of the parcels in hand, oldest first, their end."""
        refused = items if not outcome.accepted else min(outcome.rejected_items, items)
        while items and self._held:
            parcel = self._held[0]
            part = min(items, parcel.records)
            failed = min(refused, part)
            self._ledger.settle(parcel.image, parcel.stream, exported=part - failed, failed=failed)
            items -= part
            refused -= failed
            left = parcel.records - part
            self._held[:1] = [replace(parcel, records=left)] if left else []
            self._torn = bool(left)


def _parts(request: Request, limit: int) -> Iterator[Request]:
    """A request as several of at most ``limit`` items, in their order."""
    halves = otlp.split(request) if request.items > limit else None
    if halves is None:
        yield request
        return
    for half in halves:
        yield from _parts(half, limit)
