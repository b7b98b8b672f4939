"""Records on their way from the rings to a receiver: one reader thread, one bounded queue, one account.

The reader empties every ring as fast as it can, since a full ring loses records
where nobody counts. What cannot be queued is dropped here, by rule, and counted.
The :class:`Ledger` holds received = exported + failed + dropped + queued at every instant:
a record enters it once, and later only moves. A record of which an event is made is where
its event is; one that only metrics are made of is exported once it is in their frame.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from exporter.collect import AttributeLimits
from exporter.errors import SkepError
from exporter.model import Scope

from . import log
from .telemetry import StreamCounts

QUEUE_LIMIT_BYTES = 16 << 20
"""Encoded records held while a receiver is away; about 100,000 of 150 bytes."""

READ_LIMIT_BYTES = 1 << 20
WAIT_S = 0.5
TURNS_LIMIT = 64
"""Turns over all rings before the reader looks whether it shall stop."""

_RECORD = struct.Struct("=QII")


@dataclass(slots=True)
class _Account:
    received: int = 0
    exported: int = 0
    failed: int = 0
    queued: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


class Ledger:
    """Counts records by image and stream; every call is one step under one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._accounts: dict[tuple[str, str], _Account] = {}

    def open(self, image: str, stream: str) -> None:
        """Show a stream from its first scrape on, with zeros."""
        with self._lock:
            self._accounts.setdefault((image, stream), _Account())

    def receive(
        self,
        image: str,
        stream: str,
        *,
        exported: int = 0,
        failed: int = 0,
        dropped: Mapping[str, int] | None = None,
        queued: int = 0,
    ) -> None:
        """Enter records just read, by what became of them; those exported are in a frame already."""
        with self._lock:
            account = self._accounts.setdefault((image, stream), _Account())
            account.exported += exported
            account.failed += failed
            account.queued += queued
            account.received += exported + failed + queued
            for reason, count in (dropped or {}).items():
                if count:
                    account.dropped[reason] = account.dropped.get(reason, 0) + count
                    account.received += count

    def settle(
        self, image: str, stream: str, *, exported: int = 0, failed: int = 0, dropped: int = 0, reason: str = ""
    ) -> None:
        """Move queued records to what became of them."""
        with self._lock:
            account = self._accounts[image, stream]
            account.queued -= exported + failed + dropped
            account.exported += exported
            account.failed += failed
            if dropped:
                account.dropped[reason] = account.dropped.get(reason, 0) + dropped
            assert account.queued >= 0, (image, stream, account)

    def counts(self) -> list[StreamCounts]:
        """Give all accounts at one instant."""
        with self._lock:
            return [
                StreamCounts(image, stream, a.received, a.exported, a.failed, a.queued, dict(a.dropped))
                for (image, stream), a in self._accounts.items()
            ]


@dataclass(frozen=True, slots=True)
class Parcel:
    """Encoded records of one stream that travel together.

    Attributes:
        body: ``LogRecord`` messages, each with tag and length as in ``ScopeLogs``; or JSON lines.
        decides: Whether what becomes of it is what the ledger says. Of two receivers the first decides.
    """

    image: str
    stream: str
    scope: Scope
    records: int
    body: bytes
    decides: bool = True


class ParcelQueue:
    """A queue bounded in bytes; when it is full, what comes is refused.

    Attributes:
        limit_records: Bounds it in records too, if it is not 0.
    """

    def __init__(self, limit_bytes: int = QUEUE_LIMIT_BYTES) -> None:
        self.limit_records = 0
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._records = 0
        self._parcels: deque[Parcel] = deque()
        self._changed = threading.Condition()

    def put(self, parcel: Parcel) -> bool:
        """Take a parcel, or refuse it."""
        with self._changed:
            beyond = self._bytes + len(parcel.body) > self._limit_bytes or (
                self.limit_records and self._records + parcel.records > self.limit_records
            )
            if self._parcels and beyond:  # whatever the limits, one may wait
                return False
            self._parcels.append(parcel)
            self._bytes += len(parcel.body)
            self._records += parcel.records
            self._changed.notify()
            return True

    def give_back(self, parcels: Sequence[Parcel]) -> None:
        """Take back the oldest, whatever the limit."""
        with self._changed:
            self._parcels.extendleft(reversed(parcels))
            self._bytes += sum(len(parcel.body) for parcel in parcels)
            self._records += sum(parcel.records for parcel in parcels)
            self._changed.notify()

    def wait(self, timeout_s: float) -> bool:
        """Sleep until there is a parcel, at most ``timeout_s``; whether there is one."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._parcels), timeout_s)

    def take(self, limit_bytes: int) -> list[Parcel]:
        """Take the oldest parcels that fit into ``limit_bytes`` together, or a larger one alone; [] if none wait."""
        with self._changed:
            taken: list[Parcel] = []
            size = 0
            while self._parcels and (not taken or size + len(self._parcels[0].body) <= limit_bytes):
                taken.append(self._parcels.popleft())
                size += len(taken[-1].body)
            self._bytes -= size
            self._records -= sum(parcel.records for parcel in taken)
            return taken


class LineAccount:
    """The way to the JSON lines: its queue, and what became of the records sent along it."""

    def __init__(self, limit_bytes: int = QUEUE_LIMIT_BYTES) -> None:
        self.queue = ParcelQueue(limit_bytes)
        self._lock = threading.Lock()
        self._written = 0
        self._dropped = 0

    def write(self, ledger: Ledger, parcel: Parcel) -> None:
        """Enter records that were written."""
        with self._lock:
            self._written += parcel.records
        if parcel.decides:
            ledger.settle(parcel.image, parcel.stream, exported=parcel.records)

    def drop(self, ledger: Ledger, parcel: Parcel, reason: str) -> None:
        """Enter records that never will be."""
        with self._lock:
            self._dropped += parcel.records
        if parcel.decides:
            ledger.settle(parcel.image, parcel.stream, dropped=parcel.records, reason=reason)

    def counts(self) -> dict[str, int]:
        """Records so far by outcome."""
        with self._lock:
            return {"written": self._written, "dropped": self._dropped}


class Batch(Protocol):
    """What a decoder makes of records."""

    @property
    def failed(self) -> int: ...
    @property
    def exported(self) -> int: ...
    @property
    def measured(self) -> int: ...
    @property
    def dropped(self) -> Mapping[str, int]: ...
    @property
    def otlp(self) -> bytes: ...
    @property
    def json(self) -> bytes: ...


class Stream(Protocol):
    """One ring of one image and what makes events of its records (``program.py`` has it)."""

    image: str
    name: str
    scope: Scope
    fill_ratio_max: float
    ring_lost: int | None

    @property
    def ring(self) -> Any: ...  # noqa: ANN401 - a kernel.Map, which only kernel.RingReader looks into
    def limit(self, limits: AttributeLimits) -> None: ...
    def decode(self, records: bytes, *, otlp: bool, json: bool) -> Batch: ...


class Rings(Protocol):
    """Reads several ring maps (``kernel.RingReader``); adding and removing may come from any thread."""

    def add(self, map: Any) -> int: ...  # noqa: ANN401
    def remove(self, index: int) -> None: ...
    def wait(self, timeout_s: float) -> bool: ...
    def read(self, index: int, limit_bytes: int = ...) -> bytes: ...
    def fill_ratio(self, index: int) -> float: ...
    def lost(self, index: int) -> int | None: ...
    def close(self) -> None: ...


class EventReader:
    """Empties all rings into the ledger and the queue, in the one thread that calls :meth:`run`.

    Args:
        ledger: Every record read is entered there.
        queue: Where exported records go for OTLP; None if there is no receiver.
    """

    def __init__(self, ledger: Ledger, queue: ParcelQueue | None, rings: Rings) -> None:
        self._ledger = ledger
        self._queue = queue
        self._lines: LineAccount | None = None
        self._limits = AttributeLimits()
        self._rings = rings
        self._turn = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._repeats = log.Repeats()
        self.beat_s = time.monotonic()

    def route(
        self, queue: ParcelQueue | None, lines: LineAccount | None, limits: AttributeLimits | None = None
    ) -> None:
        """Send what is read from here on to these, within these limits."""
        with self._turn:
            self._queue, self._lines = queue, lines
            self._limits = limits or AttributeLimits()
            for stream in self._streams.values():
                stream.limit(self._limits)

    def add(self, stream: Stream) -> None:
        """Read this one too; raises ``KernelError`` if its ring cannot be read."""
        self._ledger.open(stream.image, stream.name)
        with self._turn:
            stream.limit(self._limits)
            self._streams[self._rings.add(stream.ring)] = stream

    def remove(self, stream: Stream) -> None:
        """Read what is left of it, then read it no more; its ring may be closed when this returns."""
        with self._turn:
            for index, present in list(self._streams.items()):
                if present is stream:
                    while self._read(index, stream):
                        pass
                    stream.ring_lost = self._rings.lost(index)
                    del self._streams[index]
                    self._rings.remove(index)

    def run(self, stop: threading.Event) -> None:
        """Read until ``stop`` is set, then once more whatever is left."""
        while not stop.is_set():
            self.beat_s = time.monotonic()
            if self._rings.wait(WAIT_S):
                self.drain()
        self.drain()

    def drain(self) -> None:
        """Read every ring until a whole turn finds nothing; each gets its turn, however busy another is."""
        with self._turn:
            for index, stream in self._streams.items():
                stream.fill_ratio_max = max(stream.fill_ratio_max, self._rings.fill_ratio(index))
                stream.ring_lost = self._rings.lost(index)
            busy = list(self._streams.items())
            turns = 0
            while busy and turns < TURNS_LIMIT:
                busy = [(index, stream) for index, stream in busy if self._read(index, stream)]
                turns += 1

    def _read(self, index: int, stream: Stream) -> bool:
        try:
            records = self._rings.read(index, READ_LIMIT_BYTES)
        except SkepError as error:
            count = self._repeats.count((stream.image, stream.name), str(error))
            if count:
                log.error("reading a ring failed", image=stream.image, stream=stream.name, reason=error, times=count)
            return False
        if records:
            self.deliver(stream, records)
        return bool(records)

    def deliver(self, stream: Stream, records: bytes) -> None:
        """Decode records just read and enter them; what cannot be decoded or queued is counted as such."""
        image, name = stream.image, stream.name
        queue, lines = self._queue, self._lines
        try:
            batch = stream.decode(records, otlp=queue is not None, json=lines is not None)
        except Exception as error:  # one stream's bug must not stop the others
            if self._repeats.count((image, name), repr(error)):
                log.bug("decoding records failed", image=image, stream=name)
            self._ledger.receive(image, name, failed=count_records(records))
            return
        if queue is None and lines is None:
            dropped = {**batch.dropped, "no_receiver": batch.exported}
            self._ledger.receive(image, name, exported=batch.measured, failed=batch.failed, dropped=dropped)
            return
        # Entered first: the sender may settle a parcel the moment it is in the queue.
        self._ledger.receive(
            image, name, exported=batch.measured, failed=batch.failed, dropped=batch.dropped, queued=batch.exported
        )
        if not batch.exported:
            return
        if queue is not None and not queue.put(Parcel(image, name, stream.scope, batch.exported, batch.otlp)):
            self._ledger.settle(image, name, dropped=batch.exported, reason="queue_full")
        if lines is not None:
            parcel = Parcel(image, name, stream.scope, batch.exported, batch.json, decides=queue is None)
            if not lines.queue.put(parcel):
                lines.drop(self._ledger, parcel, "queue_full")


def count_records(records: bytes) -> int:
    """Count records in ``_native/record.h``'s framing."""
    count = offset = 0
    while offset < len(records):
        _, length, _ = _RECORD.unpack_from(records, offset)
        offset += _RECORD.size + (length + 7 & ~7)
        count += 1
    return count
