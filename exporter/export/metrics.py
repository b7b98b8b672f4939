"""Metrics on their way to one receiver: what it knows, what it is owed, what is in hand.

Cumulative is simple: what could not be delivered until the next instant is given up, since the
next says it all. Only the end of a series is owed until it is accepted: one point
with the flag that no value was recorded.

Differences (delta temporality) are owed until they are accepted. A request without a
final answer stays in hand and goes out again unchanged, with its own instant: a receiver that had it
after all can tell that it is the same. What is gained meanwhile waits behind it. A
request that is refused for good puts its differences back; they go out with the next. So nothing is lost
and nothing counted twice, but by a receiver that takes a request and then says it did not.

One owner serialises the calls. :meth:`MetricsExport.take` runs under the frames' locks
and is quick; :meth:`MetricsExport.post` talks to the receiver and needs no lock.

Source: OpenTelemetry metrics data model, "Temporality", "Resets and Gaps", "No recorded value".
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from exporter.errors import ExportError
from exporter.model import FrameView, Instrument, Kind, Resource, Scope, Snapshot

from ._sent import Sent
from .otlp import MAX_REQUEST_BYTES, Request, Shape, Source, Temporality, requests_of, shape, split
from .outcome import Outcome, Verdict, stopped
from .registry import Family
from .sender import OtlpSender

DEPARTED_LIMIT = 100_000
"""Series of one instrument that left while the receiver was away; the ends of further ones are not told."""

SMALLEST_REQUEST_BYTES = 16 << 10
"""A request this small is not split any more: it is not its size that the receiver does not like."""

_NAMES, _LATEST, _GAINS = 0, 1, 2
_ALL = (1 << 64) - 1

_Key = tuple[str, str, Kind, str, int, float, int, tuple[float, ...], bool]


@dataclass(frozen=True, slots=True)
class Preference:
    """Which temporality each kind has for one receiver."""

    counter: Temporality
    histogram: Temporality

    @property
    def cumulative(self) -> bool:
        """Whether nothing is a difference."""
        return self.counter is self.histogram is Temporality.CUMULATIVE

    def of(self, kind: Kind) -> Temporality:
        """Temporality of an instrument; of a gauge it does not matter."""
        return self.histogram if kind is Kind.HISTOGRAM else self.counter


def preference(name: str) -> Preference:
    """Read ``cumulative``, ``delta`` or ``lowmemory``.

    ``lowmemory`` is differences for what programs record themselves, histograms, and cumulative for what is
    observed as a total, counters of the kernel.

    Raises:
        ExportError: it is none of these.

    Source: OpenTelemetry specification, "Metrics Exporter - OTLP", temporality preference.
    """
    known = {
        "cumulative": Preference(Temporality.CUMULATIVE, Temporality.CUMULATIVE),
        "delta": Preference(Temporality.DELTA, Temporality.DELTA),
        "lowmemory": Preference(Temporality.CUMULATIVE, Temporality.DELTA),
    }
    if name not in known:
        raise ExportError(
            f"otlp temporality is {name!r}; must be 'cumulative', 'delta' or 'lowmemory'", code="otlp.temporality"
        )
    return known[name]


def _key(scope: Scope, instrument: Instrument) -> _Key:
    """What makes two instruments of two instants the same: not where their cells are, nor what they are called."""
    return (
        scope.name,
        instrument.name,
        instrument.kind,
        instrument.unit,
        instrument.scale.exp10,
        instrument.scale.factor,
        int(instrument.cell_type),
        instrument.bounds,
        instrument.has_sum,
    )


@dataclass(slots=True)
class _Table:
    """What the receiver was sent of one instrument.

    Attributes:
        instrument: Of its own view: cells from 0.
        frames: That it was observed from. While one lives that is not shown now (its map could not be
            read), its series may come back as they were.
        observed: Frames of this instant.
        own: Of the agent itself: its series may always come back as they were.
    """

    scope: Scope
    instrument: Instrument
    shape: Shape
    sent: Sent
    frames: list[weakref.ref[FrameView]] = field(default_factory=list)
    observed: int = 0
    own: bool = False

    @property
    def source(self) -> Source:
        return Source(self.scope, self.shape, self.sent.view(), self.instrument, self.sent)


class MetricsExport:
    """All metrics of one receiver.

    Args:
        sender: Delivers.
        temporality: ``cumulative``, ``delta`` or ``lowmemory``.
        own_scope: Of the agent's own metrics.

    Raises:
        ExportError: the temporality is none of these.
    """

    def __init__(self, sender: OtlpSender, temporality: str = "cumulative", *, own_scope: Scope | None = None) -> None:
        self._sender = sender
        self._preference = preference(temporality)
        self._own_scope = own_scope or Scope("skep")
        self._tables: dict[_Key, _Table] = {}
        self._resource = Resource()
        self._time_ns = 0
        self._taken = False  # something was observed that no request was made of
        self._requests: deque[Request] = deque()
        self._max_bytes = MAX_REQUEST_BYTES
        self._forgotten = 0

    def use(self, sender: OtlpSender) -> None:
        """Deliver by another sender from now on, to the same receiver: what it knows and is owed stays."""
        self._sender = sender

    @property
    def in_hand(self) -> int:
        """Points of requests that have no final answer. From any thread."""
        return sum(request.items for request in list(self._requests))

    @property
    def forgotten(self) -> int:
        """Series so far whose end, or last gains, were not told for they were too many. From any thread."""
        return self._forgotten + sum(table.sent.forgotten for table in list(self._tables.values()))

    @property
    def memory_bytes(self) -> int:
        """What is remembered of all series."""
        return sum(table.sent.memory_bytes for table in self._tables.values())

    # ---- what there is ----

    def take(self, snapshot: Snapshot, own: Iterable[Family] = ()) -> None:
        """Take an instant; the frames' locks are held by the caller.

        Args:
            snapshot: Of all images.
            own: Metrics of the agent itself.
        """
        # Points of one series must not go back in time, whatever the clock does.
        self._time_ns = max(snapshot.time_ns, self._time_ns + 1)
        self._resource = snapshot.resource
        for table in self._tables.values():
            table.observed = 0
            table.sent.begin()
        direct = [source for frame in snapshot.frames for source in self._observe(frame)]
        for family in own:
            self._observe_own(family)
        self._finish()
        self._taken = True
        if self._preference.cumulative:
            for given_up in self._requests:
                given_up.refuse(maybe_taken=True)
            self._requests.clear()
            self._encode(direct)

    def _table(self, scope: Scope, instrument: Instrument, keep: int, around: Shape) -> _Table:
        key = _key(scope, instrument)
        table = self._tables.get(key)
        if table is None:
            at_zero = replace(instrument, first_cell=0)
            sent = Sent(
                keep=keep,
                is_gauge=instrument.kind is Kind.GAUGE,
                cell_type=_last_cell_type(instrument),
                cells=instrument.cells,
                departed_limit=DEPARTED_LIMIT,
            )
            table = self._tables[key] = _Table(scope, at_zero, around, sent)
            sent.begin()
        table.scope, table.shape = scope, around
        table.observed += 1
        return table

    def _observe(self, frame: FrameView) -> Iterator[Source]:
        """Observe a frame; gives what is sent from it directly."""
        view = frame.view()
        for instrument in frame.instruments:
            temporality = self._preference.of(instrument.kind)
            around = shape(instrument, temporality)
            keep = _NAMES
            if not self._preference.cumulative:
                delta = temporality is Temporality.DELTA and instrument.kind is not Kind.GAUGE
                keep = _GAINS if delta else _LATEST
            table = self._table(frame.scope, instrument, keep, around)
            if not any(each() is frame for each in table.frames):
                table.frames.append(weakref.ref(frame))
            table.sent.observe(view, instrument.first_cell)
            if keep == _NAMES:
                yield Source(frame.scope, around, view, instrument)

    def _observe_own(self, family: Family) -> None:
        instrument = family.instrument
        temporality = self._preference.of(instrument.kind)
        delta = temporality is Temporality.DELTA and instrument.kind is not Kind.GAUGE
        around = shape(instrument, temporality, family.prometheus_type)
        table = self._table(self._own_scope, instrument, _GAINS if delta else _LATEST, around)
        table.own = True
        for row in family.rows:
            table.sent.row(row.attributes, row.start_ns, row.cells)

    def _finish(self) -> None:
        """Find out what departed; drop tables of which nothing is left to tell."""
        for key, table in list(self._tables.items()):
            table.frames = [each for each in table.frames if each() is not None]
            table.sent.finish(table.own or len(table.frames) > table.observed)
            if not (table.sent.series or table.frames or table.observed):
                self._forgotten += table.sent.forgotten
                del self._tables[key]
        # The same metric in another form, as after an upgrade: its series go on, they did not end.
        present = {
            (table.scope.name, table.instrument.name): table for table in self._tables.values() if table.observed
        }
        for table in self._tables.values():
            other = present.get((table.scope.name, table.instrument.name))
            if not table.observed and other is not None:
                table.sent.yield_to(other.sent)

    # ---- what goes out ----

    def _encode(self, direct: Iterable[Source] = ()) -> None:
        """Put everything that is there into requests."""
        try:
            sources = self._sources(direct)
            self._requests.extend(requests_of(self._resource, self._time_ns, sources, self._max_bytes))
        except BaseException:
            for table in self._tables.values():
                table.sent.refuse(0, _ALL, False)
            raise
        self._taken = False

    def _sources(self, direct: Iterable[Source]) -> list[Source]:
        """Decide what goes out: what is sent from a frame, behind it the ends of the same metric, then all else."""
        sources: list[Source] = []
        left = dict(self._tables)
        for source in direct:
            sources.append(source)
            table = left.pop(_key(source.scope, source.instrument), None)
            if table is not None:
                table.sent.batch(self._time_ns)
                sources.append(replace(table.source, joins=True))
        for table in left.values():
            table.sent.batch(self._time_ns)
            sources.append(table.source)
        return sources

    def post(
        self,
        *,
        stop: threading.Event,
        deadline_s: float,
        tell: Callable[[Outcome, int], None] = lambda _outcome, _items: None,
    ) -> None:
        """Deliver what is in hand, and then what was taken since.

        Args:
            stop: Ends it at once.
            deadline_s: No request is tried again later.
            tell: Called with each outcome and the items of its request.
        """
        end_s = time.monotonic() + deadline_s
        while True:
            if not self._deliver(stop, end_s, tell):
                return
            if not self._taken:
                return
            # Only differences wait for their turn.
            self._encode()

    def _deliver(self, stop: threading.Event, end_s: float, tell: Callable[[Outcome, int], None]) -> bool:
        """Post what is in hand; False if some of it has no final answer."""
        while self._requests:
            request = self._requests[0]
            left_s = max(0.0, end_s - time.monotonic())
            outcome = self._sender.send(request.body, items=request.items, stop=stop, deadline_s=left_s, hold=True)
            if outcome.too_large:
                halves = split(request) if len(request.body) > SMALLEST_REQUEST_BYTES else None
                if halves is not None:
                    self._max_bytes = max(SMALLEST_REQUEST_BYTES, min(self._max_bytes, len(request.body) // 2))
                    self._requests.popleft()
                    self._requests.extendleft(reversed(halves))
                    continue
                self._sender.settle(outcome, request.items)
            tell(outcome, request.items)
            if outcome.accepted:
                request.accept()
            elif outcome.verdict is Verdict.REJECTED:
                request.refuse(maybe_taken=False)
            elif self._preference.cumulative:
                self._give_up(outcome)
                return False
            else:
                return False
            self._requests.popleft()
        return True

    def _give_up(self, outcome: Outcome) -> None:
        """The receiver is away: the others would fare no better."""
        for request in self._requests:
            self._sender.settle(outcome, request.items)
            request.refuse(maybe_taken=True)
        self._requests.clear()

    def abandon(self) -> int:
        """Book what is in hand as failed, at the end; gives how many points."""
        points = self.in_hand
        self._give_up(stopped())
        return points


def _last_cell_type(instrument: Instrument) -> int:
    """Of a histogram without a sum the last cell is a count."""
    if instrument.kind is Kind.HISTOGRAM and not instrument.has_sum:
        return 0
    return int(instrument.cell_type)
