"""Events on their way: the account always balances, the queue is bounded, and a delivery answers for each record."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from prometheus_client.core import GaugeMetricFamily

from exporter.agent.delivery import LogsDelivery, MetricsDelivery
from exporter.agent.events import EventReader, Ledger, Parcel, ParcelQueue, count_records
from exporter.agent.telemetry import StreamCounts
from exporter.collect import AttributeLimits, LogBatch
from exporter.errors import KernelError
from exporter.export.metrics import MetricsExport
from exporter.export.registry import families
from exporter.export.sender import Account, Outcome, Verdict
from exporter.model import Resource, Scope, Snapshot

SCOPE = Scope("dns")


def framed(*payloads: bytes) -> bytes:
    """Records as they come from a ring."""
    return b"".join(
        struct.pack("=QII", position, len(data), 0) + data + bytes(-len(data) % 8)
        for position, data in enumerate(payloads)
    )


def log_record(number: int = 0) -> bytes:
    """One field 2 of ScopeLogs that holds an empty-bodied record with a time."""
    record = b"\x09" + struct.pack("<Q", number)
    return b"\x12" + bytes([len(record)]) + record


def balances(count: StreamCounts) -> bool:
    """Whether every record received has its place."""
    return count.received == count.exported + count.failed + sum(count.dropped.values()) + count.queued


def only(ledger: Ledger) -> StreamCounts:
    """The one account there is."""
    [count] = ledger.counts()
    return count


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 7), max_size=30))
def test_ledger_balances_after_every_step(steps: Sequence[tuple[int, ...]]) -> None:
    """Received = exported + failed + dropped + queued, whatever the order of what happens."""
    ledger = Ledger()
    ledger.open("dns", "query")
    for failed, by_rate, queued, *ends in steps:
        ledger.receive("dns", "query", failed=failed, dropped={"rate": by_rate}, queued=queued)
        assert balances(only(ledger))
        left = only(ledger).queued
        exported, refused, dropped = (min(end, left // 3) for end in ends[:3])
        ledger.settle("dns", "query", exported=exported, failed=refused, dropped=dropped, reason="queue_full")
        assert balances(only(ledger))
        assert only(ledger).queued == left - exported - refused - dropped


def test_ledger_balances_in_every_look_while_threads_move_records() -> None:
    """A look is one instant: never half of a step."""
    ledger = Ledger()
    stop = threading.Event()

    def move() -> None:
        while not stop.is_set():
            ledger.receive("dns", "query", failed=1, dropped={"rate": 2}, queued=3)
            ledger.settle("dns", "query", exported=2, failed=1)

    threads = [threading.Thread(target=move) for _ in range(3)]
    for thread in threads:
        thread.start()
    looks = [ledger.counts() for _ in range(2000)]
    stop.set()
    for thread in threads:
        thread.join()
    assert all(balances(count) for look in looks for count in look)
    assert only(ledger).queued == 0


def test_settling_more_than_is_queued_is_a_bug_and_says_so() -> None:
    """An account that could go negative would hide a loss."""
    ledger = Ledger()
    ledger.receive("dns", "query", queued=1)
    with pytest.raises(AssertionError):
        ledger.settle("dns", "query", exported=2)


def parcel(size: int, records: int = 1) -> Parcel:
    """A parcel of so many bytes."""
    return Parcel("dns", "query", SCOPE, records, bytes(size))


@given(st.lists(st.integers(0, 300), max_size=50), st.integers(1, 200))
def test_queue_is_bounded_and_keeps_the_order(sizes: Sequence[int], limit: int) -> None:
    """What was taken in comes out in order; beyond the limit nothing is taken in, but for one parcel alone."""
    queue = ParcelQueue(1000)
    kept = [size for size in sizes if queue.put(parcel(size))]
    assert sum(kept[1:]) <= 1000
    out = []
    while taken := queue.take(limit):
        assert len(taken) == 1 or sum(len(each.body) for each in taken) <= limit
        out += [len(each.body) for each in taken]
    assert out == kept


def test_queue_takes_one_parcel_larger_than_itself() -> None:
    """A burst larger than the limit is not refused for ever."""
    queue = ParcelQueue(10)
    assert queue.put(parcel(100))
    assert not queue.put(parcel(1))
    assert queue.take(10) == [parcel(100)]
    assert queue.put(parcel(1))


@dataclass
class FakeStream:
    """A stream whose decoder does as it is told."""

    image: str = "dns"
    name: str = "query"
    scope: Scope = SCOPE
    fill_ratio_max: float = 0.0
    ring_lost: int | None = None
    ring: object = None
    limits: AttributeLimits | None = None
    batch: LogBatch | Exception = field(default_factory=LogBatch)

    def limit(self, limits: AttributeLimits) -> None:
        self.limits = limits

    def decode(self, records: bytes, *, otlp: bool, json: bool) -> LogBatch:
        if isinstance(self.batch, Exception):
            raise self.batch
        return self.batch


class FakeRings:
    """Rings that hold what a test puts there."""

    def __init__(self) -> None:
        self.records: dict[int, list[bytes | KernelError]] = {}

    def add(self, map: object) -> int:
        self.records[len(self.records)] = []
        return len(self.records) - 1

    def remove(self, index: int) -> None:
        del self.records[index]

    def wait(self, timeout_s: float) -> bool:
        time.sleep(0.001)
        return any(self.records.values())

    def read(self, index: int, limit_bytes: int = 0) -> bytes:
        if not self.records[index]:
            return b""
        found = self.records[index].pop(0)
        if isinstance(found, KernelError):
            raise found
        return found

    def fill_ratio(self, index: int) -> float:
        return 0.25

    def lost(self, index: int) -> int | None:
        return 3

    def close(self) -> None:
        pass


def reader(queue: ParcelQueue | None) -> tuple[EventReader, Ledger]:
    """A reader of no rings and its account."""
    ledger = Ledger()
    return EventReader(ledger, queue, FakeRings()), ledger


def test_records_without_a_receiver_are_dropped_and_counted() -> None:
    """Nobody has to guess why a stream exports nothing."""
    events, ledger = reader(None)
    events.deliver(FakeStream(batch=LogBatch(received=5, exported=3, failed=1, dropped={"rate": 1})), framed(b"x"))
    count = only(ledger)
    assert balances(count)
    assert (count.received, count.failed, dict(count.dropped)) == (5, 1, {"rate": 1, "no_receiver": 3})


def test_records_that_do_not_fit_into_the_queue_are_dropped_and_counted() -> None:
    """The newest go; those that wait keep their place."""
    queue = ParcelQueue(10)
    events, ledger = reader(queue)
    stream = FakeStream(batch=LogBatch(received=2, exported=2, otlp=bytes(8)))
    events.deliver(stream, framed(b"x"))
    events.deliver(stream, framed(b"x"))
    count = only(ledger)
    assert balances(count)
    assert (count.queued, dict(count.dropped)) == (2, {"queue_full": 2})


def test_decoder_that_fails_costs_its_records_only() -> None:
    """They are counted as failed, each of them."""
    events, ledger = reader(ParcelQueue())
    events.deliver(FakeStream(batch=RuntimeError("bug")), framed(b"", b"abc", bytes(8), bytes(9)))
    assert balances(only(ledger))
    assert (only(ledger).failed, only(ledger).received) == (4, 4)


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_records_are_counted_by_their_framing(payloads: Sequence[bytes]) -> None:
    """As many as were framed."""
    assert count_records(framed(*payloads)) == len(payloads)


def test_one_ring_that_cannot_be_read_does_not_stop_another() -> None:
    """Its error is told, the other's records arrive."""
    rings = FakeRings()
    ledger = Ledger()
    events = EventReader(ledger, None, rings)
    bad, good = FakeStream(name="bad"), FakeStream(name="good", batch=LogBatch(received=1, exported=1))
    events.add(bad)
    events.add(good)
    rings.records[0] += [KernelError("ring 0: damaged")]
    rings.records[1] += [framed(b"x")]
    events.drain()
    assert {count.stream: count.received for count in ledger.counts()} == {"bad": 0, "good": 1}
    assert good.fill_ratio_max == 0.25


def test_removed_stream_is_read_to_its_end_first() -> None:
    """What an image said before it was stopped is not lost."""
    rings = FakeRings()
    ledger = Ledger()
    events = EventReader(ledger, None, rings)
    stream = FakeStream(batch=LogBatch(received=1, exported=1))
    events.add(stream)
    rings.records[0] += [framed(b"x"), framed(b"y")]
    events.remove(stream)
    assert only(ledger).received == 2
    assert rings.records == {}


class FakeSender:
    """A receiver that answers as it is told; the last answer is repeated."""

    url = "http://receiver.example/v1/logs"

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.bodies: list[bytes] = []
        self.account = Account(requests={})
        self.settled: list[tuple[Verdict, int]] = []

    def post(self, body: bytes, *, stop: threading.Event) -> Outcome:
        self.bodies.append(body)
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]

    def send(
        self, body: bytes, *, items: int, stop: threading.Event, deadline_s: float, hold: object = None
    ) -> Outcome:
        return self.post(body, stop=stop)

    def settle(self, outcome: Outcome, items: int) -> None:
        self.settled.append((outcome.verdict, items))

    def close(self) -> None:
        pass


ACCEPTED = Outcome(Verdict.ACCEPTED, 200)
REFUSED = Outcome(Verdict.REJECTED, 400, cause="http_400")
AWAY = Outcome(Verdict.UNAVAILABLE, 503, retry_after_s=0.01, cause="http_503")


def delivery(sender: FakeSender, *counts: int) -> tuple[LogsDelivery, Ledger, ParcelQueue]:
    """A delivery with parcels of so many records each."""
    ledger, queue = Ledger(), ParcelQueue()
    for index, count in enumerate(counts):
        body = b"".join(log_record(number) for number in range(count))
        ledger.receive("dns", f"stream{index}", queued=count)
        queue.put(Parcel("dns", f"stream{index}", SCOPE, count, body))
    return LogsDelivery(sender, queue, ledger, Resource()), ledger, queue  # type: ignore[arg-type]


def ends(ledger: Ledger) -> list[tuple[int, int, int]]:
    """Exported, failed and dropped of each stream, which balance."""
    counts = ledger.counts()
    assert all(balances(count) for count in counts)
    return [(count.exported, count.failed, sum(count.dropped.values())) for count in counts]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (ACCEPTED, [(3, 0, 0), (2, 0, 0)]),
        (REFUSED, [(0, 3, 0), (0, 2, 0)]),
        (Outcome(Verdict.ACCEPTED, 200, rejected_items=4, cause="partial"), [(0, 3, 0), (1, 1, 0)]),
        (Outcome(Verdict.ACCEPTED, 200, rejected_items=99, cause="partial"), [(0, 3, 0), (0, 2, 0)]),
    ],
)
def test_every_record_of_an_answered_request_has_its_end(
    outcome: Outcome, expected: list[tuple[int, int, int]]
) -> None:
    """Accepted, refused, or refused in part: the counts are the receiver's."""
    logs, ledger, _ = delivery(FakeSender(outcome), 3, 2)
    logs.flush(1.0)
    assert ends(ledger) == expected


def test_request_is_offered_until_it_is_answered() -> None:
    """Unavailable is not an end."""
    sender = FakeSender(AWAY, AWAY, ACCEPTED)
    logs, ledger, _ = delivery(sender, 3)
    logs.flush(30.0)
    assert ends(ledger) == [(3, 0, 0)]
    assert len(sender.bodies) == 3
    assert len(set(sender.bodies)) == 1


def test_what_cannot_be_delivered_in_time_is_dropped_at_the_end() -> None:
    """In hand or in the queue: each record is counted; what was offered is also what OTLP failed to deliver."""
    sender = FakeSender(AWAY)
    logs, ledger, _ = delivery(sender, 3, 2)
    logs.flush(0.05)
    assert ends(ledger) == [(0, 0, 3), (0, 0, 2)]
    assert sender.settled == [(Verdict.STOPPED, 5)]


def test_parcel_larger_than_a_request_is_settled_by_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several requests each has its own end; a stop in between loses and repeats nothing."""
    from exporter.agent import delivery as module
    from exporter.export import otlp

    whole = otlp.logs
    monkeypatch.setattr(module.otlp, "logs", lambda resource, records: whole(resource, records, 60))
    sender = FakeSender(ACCEPTED, REFUSED, AWAY)
    logs, ledger, queue = delivery(sender, 10)
    logs.flush(0.05)
    accepted, refused, *given_up = sender.settled
    assert [accepted[0], refused[0], *{verdict for verdict, _ in given_up}] == [
        Verdict.ACCEPTED,
        Verdict.REJECTED,
        Verdict.STOPPED,
    ]
    left = sum(items for _, items in given_up)
    assert ends(ledger) == [(accepted[1], refused[1], left)]
    assert logs.account().pending == 0
    assert queue.take(1) == []


def test_parcel_that_is_answered_in_part_ends_with_its_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another delivery cannot tell its records apart: it is dropped and, over OTLP, failed; others are handed on."""
    from exporter.agent import delivery as module
    from exporter.export import otlp

    whole = otlp.logs
    monkeypatch.setattr(module.otlp, "logs", lambda resource, records: whole(resource, records, 60))
    sender = FakeSender(ACCEPTED, Outcome(Verdict.STOPPED, cause="stopped"))
    logs, ledger, queue = delivery(sender, 10, 4)
    assert logs._pick()
    logs._offer(threading.Event(), float("inf"))
    assert logs.account().pending == 14 - sender.settled[0][1]
    logs.give_back()
    (_, accepted), (verdict, failed) = sender.settled
    assert (verdict, accepted + failed) == (Verdict.STOPPED, 10)
    assert [(count.exported, sum(count.dropped.values()), count.queued) for count in ledger.counts()] == [
        (accepted, failed, 0),
        (0, 0, 4),
    ]
    assert [parcel.records for parcel in queue.take(1)] == [4]
    assert logs.account().pending == 0


def test_streams_are_held_to_the_limits_of_their_receiver() -> None:
    """Those that are read, and those that come; another receiver has others."""
    events = EventReader(Ledger(), None, FakeRings())
    first, second = FakeStream(), FakeStream(name="other")
    events.add(first)
    assert first.limits == AttributeLimits()
    events.route(ParcelQueue(), None, AttributeLimits(5, 2))
    events.add(second)
    assert first.limits == second.limits == AttributeLimits(5, 2)
    events.route(None, None)
    assert first.limits == second.limits == AttributeLimits()


def test_request_holds_no_more_records_than_it_may() -> None:
    """However many arrive at once; in their order, none twice."""
    sender = FakeSender(ACCEPTED)
    _, ledger, queue = delivery(sender, 10, 5)
    logs = LogsDelivery(sender, queue, ledger, Resource(), batch_records=4)  # type: ignore[arg-type]
    logs.flush(1.0)
    assert ends(ledger) == [(10, 0, 0), (5, 0, 0)]
    sizes = [items for _, items in sender.settled]
    assert max(sizes) <= 4
    assert sum(sizes) == 15
    found = [
        record.time_unix_nano
        for body in sender.bodies
        for resource in logs_service_pb2.ExportLogsServiceRequest.FromString(body).resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]
    assert found == [*range(10), *range(5)]


def test_records_fail_when_they_were_offered_for_their_time() -> None:
    """Only where somebody set it; those behind have their own time."""
    sender = FakeSender(AWAY)
    _, ledger, queue = delivery(sender, 3)
    logs = LogsDelivery(sender, queue, ledger, Resource(), timeout_s=0.05)  # type: ignore[arg-type]
    began_s = time.monotonic()
    logs.flush(30.0)
    assert time.monotonic() - began_s < 10
    assert ends(ledger) == [(0, 3, 0)]
    assert sender.settled == [(Verdict.UNAVAILABLE, 3)]


def test_queue_is_bounded_in_records_if_it_is_told_to() -> None:
    """Whatever its bytes; room comes back as they are taken."""
    queue = ParcelQueue()
    queue.limit_records = 5
    parcels = [Parcel("dns", "dns.query", SCOPE, count, b"x") for count in (3, 2, 1)]
    assert [queue.put(parcel) for parcel in parcels] == [True, True, False]
    taken = queue.take(1)
    assert [parcel.records for parcel in taken] == [3]
    queue.give_back(taken)
    assert not queue.put(parcels[2])
    queue.take(1)
    assert queue.put(parcels[2])
    assert ParcelQueue().put(Parcel("dns", "dns.query", SCOPE, 1 << 40, b"x"))


def test_stopped_delivery_keeps_what_it_holds_for_the_flush() -> None:
    """Between the stop and the flush nothing is counted as anything but queued."""
    sender = FakeSender(Outcome(Verdict.STOPPED, cause="stopped"), ACCEPTED)
    logs, ledger, _ = delivery(sender, 4)
    stop = threading.Event()
    thread = threading.Thread(target=logs.run, args=(stop,))
    thread.start()
    while not sender.bodies:
        time.sleep(0.01)
    stop.set()
    thread.join(5)
    assert only(ledger).queued in (0, 4)
    logs.flush(1.0)
    assert ends(ledger) == [(4, 0, 0)]


def test_encoding_that_fails_does_not_end_the_metrics_thread() -> None:
    """The next interval tries again."""
    calls = []

    def take(export: MetricsExport) -> None:
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise RuntimeError("bug")
        own = families([GaugeMetricFamily("skep_test", "One.", 1.0)], 1)
        export.take(Snapshot(2, Resource(), ()), own)

    sender = FakeSender(ACCEPTED)
    export = MetricsExport(sender, "cumulative", own_scope=Scope("skep"))  # type: ignore[arg-type]
    metrics = MetricsDelivery(sender, take, 0.05, export)  # type: ignore[arg-type]
    stop = threading.Event()
    thread = threading.Thread(target=metrics.run, args=(stop,))
    thread.start()
    end = time.monotonic() + 5
    while not sender.bodies and time.monotonic() < end:
        time.sleep(0.01)
    stop.set()
    thread.join(5)
    assert sender.bodies


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.lists(
        st.sampled_from([ACCEPTED, REFUSED, Outcome(Verdict.ACCEPTED, 200, rejected_items=3, cause="partial")]),
        min_size=1,
        max_size=6,
    ),
)
def test_flush_leaves_nothing_queued(counts: list[int], outcomes: list[Outcome]) -> None:
    """Whatever the receiver answers, at the end every record has an end."""
    logs, ledger, queue = delivery(FakeSender(*outcomes), *counts)
    logs.flush(5.0)
    assert sum(sum(end) for end in ends(ledger)) == sum(counts)
    assert all(count.queued == 0 for count in ledger.counts())
    assert queue.take(1) == []
