"""Events: records of a ring become log records and JSON lines."""

from __future__ import annotations

import dataclasses
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.logs.v1.logs_pb2 import ScopeLogs

from exporter.collect import AttributeLimits, RecordDecoder
from exporter.collect.labels import Value, label_value
from exporter.collect.limits import TokenBucket
from exporter.collect.records import json_line, log_record, record_time_ns, split_records, tail_value
from exporter.errors import PlanError
from exporter.model import Scope
from exporter.plan.plan import LabelRule, StreamPlan, ValueRule

SCOPE = Scope("process-exits", "1.0")
NOW = 1_700_000_000_123_456_789
OFFSET = 1_690_000_000_000_000_000
PLAN = StreamPlan(
    map="events",
    event_name="ebpf.process.exit",
    attributes=(
        LabelRule("process.pid", "uint", 64, 32),
        LabelRule("comm", "string", 96, 16 * 8),
        LabelRule("signal", "signal", 224, 8),
        LabelRule("core", "bool", 232, 8),
    ),
    record_size=30,
    time=ValueRule(0, 64),
    severity=13,
    constant_labels=(("tier", "db"),),
)


def framed(*records: bytes) -> bytes:
    """Records as a ring's reader hands them over."""
    return b"".join(
        struct.pack("<QII", position, len(record), 0) + record + bytes(-len(record) % 8)
        for position, record in enumerate(records)
    )


def record(ktime: int = 5, pid: int = 77, comm: bytes = b"sh", signal: int = 9, core: int = 1) -> bytes:
    """One event of ``PLAN``."""
    return struct.pack("<QI16sBB", ktime, pid, comm, signal, core)


def resolve(decoder: str, value: int) -> str:
    """Everything has a name."""
    return f"{decoder} {value}"


def decoder(plan: StreamPlan = PLAN) -> RecordDecoder:
    """A decoder that needs no machine."""
    return RecordDecoder(plan, scope=SCOPE, resolve=resolve)


def decode(records: bytes, plan: StreamPlan = PLAN, *, now_ns: int = NOW):  # noqa: ANN201
    """Decode once into both formats."""
    return decoder(plan).decode(records, now_ns=now_ns, realtime_minus_monotonic_ns=OFFSET, otlp=True, json=True)


def test_record_becomes_a_log_record() -> None:
    """Time, severity, event name and attributes, as the protocol's own classes read them."""
    batch = decode(framed(record()))
    (log,) = ScopeLogs.FromString(batch.otlp).log_records
    assert (log.time_unix_nano, log.observed_time_unix_nano) == (OFFSET + 5, NOW)
    assert (log.severity_number, log.event_name) == (13, "ebpf.process.exit")
    assert [(one.key, getattr(one.value, one.value.WhichOneof("value"))) for one in log.attributes] == [
        ("process.pid", 77),
        ("comm", "sh"),
        ("signal", "SIGKILL"),
        ("core", True),
        ("tier", "db"),
    ]
    assert (batch.received, batch.exported, batch.failed, dict(batch.dropped)) == (1, 1, 0, {})


def test_record_becomes_a_json_line() -> None:
    """One object a line; numbers and booleans are JSON's own; awkward text is escaped."""
    batch = decode(framed(record(comm=b'a"\\\n\x01\xff\xc3\xa9'), record(signal=0, core=0)))
    lines = [json.loads(line) for line in batch.json.splitlines()]
    assert lines[0] == {
        "time": "2023-07-22T04:26:40.000000005Z",
        "event": "ebpf.process.exit",
        "image": "process-exits",
        "attributes": {
            "process.pid": 77,
            "comm": 'a"\\\n\x01\ufffdé',
            "signal": "SIGKILL",
            "core": True,
            "tier": "db",
        },
    }
    assert lines[1]["attributes"] == {"process.pid": 77, "comm": "sh", "core": False, "tier": "db"}


def test_record_without_time_happened_when_it_was_read() -> None:
    """Neither a plan without a time nor a record with zero invents one."""
    for plan, ktime in ((dataclasses.replace(PLAN, time=None), 5), (PLAN, 0)):
        (log,) = ScopeLogs.FromString(decode(framed(record(ktime)), plan).otlp).log_records
        assert log.time_unix_nano == NOW


def test_short_record_fails_and_a_longer_one_is_decoded() -> None:
    """A newer program may have grown its record; half a record means nothing."""
    batch = decode(framed(record()[:29], record() + b"more", b"", record()))
    assert (batch.received, batch.exported, batch.failed) == (4, 2, 2)
    assert len(ScopeLogs.FromString(batch.otlp).log_records) == 2


def test_record_without_attributes_is_an_object_without_members() -> None:
    """Empty values are left out, and no comma is left behind."""
    plan = dataclasses.replace(PLAN, attributes=(LabelRule("comm", "string", 96, 128),), constant_labels=())
    batch = decode(framed(record(comm=b"")), plan)
    assert json.loads(batch.json)["attributes"] == {}
    assert not ScopeLogs.FromString(batch.otlp).log_records[0].attributes


def test_formats_that_are_not_wanted_are_not_made() -> None:
    """Counting goes on without a receiver."""
    one = decoder().decode(framed(record()), now_ns=NOW, realtime_minus_monotonic_ns=0, otlp=False, json=True)
    other = decoder().decode(framed(record()), now_ns=NOW, realtime_minus_monotonic_ns=0, otlp=True, json=False)
    assert (one.otlp, other.json, one.exported, other.exported) == (b"", b"", 1, 1)
    assert one.json
    assert other.otlp


def test_events_beyond_the_rate_are_dropped_and_counted() -> None:
    """A second's worth passes at once; then as many as time allows."""
    stream = decoder(dataclasses.replace(PLAN, events_per_s=3))
    seen = []
    for now_ns in (NOW, NOW, NOW + 400_000_000, NOW + 10**10, NOW):
        batch = stream.decode(
            framed(*[record()] * 5), now_ns=now_ns, realtime_minus_monotonic_ns=0, otlp=False, json=False
        )
        seen.append((batch.exported, batch.dropped.get("rate", 0)))
    assert seen == [(3, 2), (0, 5), (1, 4), (3, 2), (0, 5)]


def test_sampling_exports_the_first_of_each_so_many() -> None:
    """Over several reads; what is short has failed whether sampled or not, and the rate is for what is left."""
    stream = decoder(dataclasses.replace(PLAN, sample_one_in=3, events_per_s=2))
    seen = []
    for records in ([record()] * 4, [record(), b"", record()], [record()] * 4):
        batch = stream.decode(framed(*records), now_ns=NOW, realtime_minus_monotonic_ns=0, otlp=False, json=True)
        assert batch.received == batch.exported + batch.failed + sum(batch.dropped.values())
        seen.append((batch.exported, batch.failed, batch.dropped.get("sample", 0), batch.dropped.get("rate", 0)))
    assert seen == [(2, 0, 2, 0), (0, 1, 2, 0), (0, 0, 2, 2)]


def test_disabled_stream_is_drained() -> None:
    """Its records are counted, under their own reason."""
    batch = decode(framed(record(), b""), dataclasses.replace(PLAN, enabled=False))
    assert (batch.received, batch.exported, batch.failed, dict(batch.dropped)) == (2, 0, 0, {"disabled": 2})
    assert batch.otlp == batch.json == b""


def test_record_that_is_only_measured_is_accounted_as_that() -> None:
    """Of a stream without events, or one whose events nobody receives; a short one has failed all the same."""
    records = framed(record(), b"", record())
    for plan, wanted, expected in (
        (dataclasses.replace(PLAN, enabled=False, metrics=True), True, (3, 0, 2, 1)),
        (dataclasses.replace(PLAN, metrics=True, events_per_s=1), False, (3, 0, 2, 1)),
        (dataclasses.replace(PLAN, metrics=True), True, (3, 2, 0, 1)),
        (dataclasses.replace(PLAN, metrics=True, sample_one_in=2), True, (3, 1, 0, 1)),
    ):
        batch = decoder(plan).decode(records, now_ns=NOW, realtime_minus_monotonic_ns=0, otlp=wanted, json=False)
        assert (batch.received, batch.exported, batch.measured, batch.failed) == expected
        assert batch.received == batch.exported + batch.measured + batch.failed + sum(batch.dropped.values())


TAILED = dataclasses.replace(PLAN, attributes=PLAN.attributes[:1], record_size=12)


@pytest.mark.parametrize(
    ("tail", "rest", "shown"),
    [
        (LabelRule("rest", "string", 96, 8), b'a"\0garbage', 'a"'),
        (LabelRule("rest", "bytes", 96, 8), b"\0\xff", "00ff"),
        (LabelRule("rest", "uint", 96, 16), b"\1\0\xff\xffx", [1, 65535]),
        (LabelRule("rest", "int", 96, 32), b"\xff" * 4 + b"\1\0\0\0", [-1, 1]),
        (LabelRule("rest", "uint", 96, 64), b"\xff" * 8 + b"\2" + bytes(7), [(1 << 64) - 1, 2]),
        (LabelRule("rest", "uint", 96, 64), b"\xff" * 7, None),
        (LabelRule("rest", "string", 96, 8), b"", None),
    ],
)
def test_flexible_array_at_the_end_is_one_attribute(tail: LabelRule, rest: bytes, shown: object) -> None:
    """Text, bytes or numbers, as many as the record holds; none, none is shown."""
    batch = decode(framed(record()[:12] + rest, record()[:11]), dataclasses.replace(TAILED, tail=tail))
    assert (batch.exported, batch.failed) == (1, 1)
    expected = (
        {"process.pid": 77, "rest": shown, "tier": "db"} if shown is not None else {"process.pid": 77, "tier": "db"}
    )
    assert json.loads(batch.json)["attributes"] == expected
    (log,) = ScopeLogs.FromString(batch.otlp).log_records
    told = {one.key: one.value for one in log.attributes}
    if isinstance(shown, list):
        numbers = [
            int(one.string_value) if one.string_value else one.int_value for one in told["rest"].array_value.values
        ]
        assert numbers == shown
    else:
        assert told.keys() == expected.keys()
        assert shown is None or told["rest"].string_value == shown


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([("string", 8), ("bytes", 8), ("uint", 8), ("uint", 64), ("int", 16), ("int", 64)]),
    st.lists(st.binary(max_size=60)),
)
def test_native_tail_is_what_its_twin_says(kind: tuple[str, int], records: list[bytes]) -> None:
    """Both formats byte for byte."""
    plan = dataclasses.replace(TAILED, tail=LabelRule("rest", kind[0], 96, kind[1]), time=None)
    logs, lines = [], []
    for data in records:
        if len(data) >= 12:
            pairs = [(rule.name, label_value(rule, data, resolve=resolve)) for rule in plan.attributes]
            pairs += [("rest", tail_value(plan, data)), *plan.constant_labels]
            logs.append(log_record(plan, pairs, time_ns=NOW, now_ns=NOW))
            lines.append(json_line(plan, SCOPE, pairs, time_ns=NOW))
    batch = decode(framed(*records), plan)
    assert (batch.otlp, batch.json) == (b"".join(logs), b"".join(lines))
    assert batch.failed == len(records) - len(logs)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=9), max_size=4), st.integers(0, 6), st.integers(0, 5))
def test_native_limits_are_what_their_twin_says(texts: list[str], length: int, count: int) -> None:
    """Whole characters are kept, constant labels stay, what is left out is counted; JSON lines have it all."""
    limits = AttributeLimits(length, count)
    plan = dataclasses.replace(TAILED, tail=LabelRule("rest", "string", 96, 8), time=None)
    records = [record()[:12] + text.encode() for text in texts]
    stream = decoder(plan)
    stream.limit(limits)
    batch = stream.decode(framed(*records), now_ns=NOW, realtime_minus_monotonic_ns=OFFSET, otlp=True, json=True)
    logs, lines = [], []
    for data in records:
        pairs = [(rule.name, label_value(rule, data, resolve=resolve)) for rule in plan.attributes]
        pairs += [("rest", tail_value(plan, data)), *plan.constant_labels]
        logs.append(log_record(plan, pairs, time_ns=NOW, now_ns=NOW, limits=limits))
        lines.append(json_line(plan, SCOPE, pairs, time_ns=NOW))
    assert (batch.otlp, batch.json) == (b"".join(logs), b"".join(lines))
    assert decode(framed(*records), plan).json == batch.json


def test_limited_event_says_what_it_lacks() -> None:
    """Text is cut between characters, and dropped_attributes_count is the protocol's place for the rest."""
    plan = dataclasses.replace(TAILED, tail=LabelRule("rest", "string", 96, 8), time=None)
    data = framed(record()[:12] + "žluťoučký".encode())
    stream = decoder(plan)
    for limits, expected, left_out in (
        (AttributeLimits(value_length=4), {"process.pid": 77, "rest": "žluť", "tier": "db"}, 0),
        (AttributeLimits(count=1), {"process.pid": 77, "tier": "db"}, 1),
        (AttributeLimits(), {"process.pid": 77, "rest": "žluťoučký", "tier": "db"}, 0),
    ):
        stream.limit(limits)
        batch = stream.decode(data, now_ns=NOW, realtime_minus_monotonic_ns=OFFSET, otlp=True, json=False)
        (log,) = ScopeLogs.FromString(batch.otlp).log_records
        told = {one.key: one.value.string_value or one.value.int_value for one in log.attributes}
        assert (told, log.dropped_attributes_count) == (expected, left_out)


@pytest.mark.parametrize("cut", [1, 8, 15, 17, 47])
def test_damaged_framing_is_an_error(cut: int) -> None:
    """It never comes from the kernel, so it is a bug of ours."""
    with pytest.raises(ValueError, match="framed"):
        decode(framed(record())[:cut])


def test_exception_of_the_resolver_reaches_the_caller() -> None:
    """It is a bug of ours, and must not be hidden."""

    def broken(decoder: str, value: int) -> str:
        raise LookupError(decoder)

    plan = dataclasses.replace(PLAN, attributes=(LabelRule("user", "uid", 64, 32),))
    stream = RecordDecoder(plan, scope=SCOPE, resolve=broken)
    with pytest.raises(LookupError, match="uid"):
        stream.decode(framed(record()), now_ns=NOW, realtime_minus_monotonic_ns=0, otlp=True, json=True)


@pytest.mark.parametrize(
    "plan",
    [
        dataclasses.replace(PLAN, time=ValueRule(200, 64)),
        dataclasses.replace(PLAN, attributes=(LabelRule("pid", "uint", 224, 32),)),
    ],
)
def test_plan_beyond_its_record_is_refused(plan: StreamPlan) -> None:
    """Nothing is read beyond a record's end."""
    with pytest.raises(PlanError, match=r"^map 'events': .* inside 30 bytes"):
        decoder(plan)


@settings(max_examples=100)
@given(
    st.lists(
        st.binary(max_size=40)
        | st.builds(
            record,
            ktime=st.integers(0, 1 << 60),
            pid=st.integers(0, (1 << 32) - 1),
            comm=st.binary(max_size=16),
            signal=st.integers(0, 255),
            core=st.integers(0, 1),
        )
    ),
    st.integers(0, 5),
)
def test_native_events_are_what_their_twin_says(records: list[bytes], rate: int) -> None:
    """Both formats byte for byte, and received = exported + failed + dropped."""
    user = LabelRule("user", "uid", 64, 32)
    plan = dataclasses.replace(PLAN, events_per_s=rate, attributes=(*PLAN.attributes, user))
    bucket = TokenBucket(rate)
    bucket.refill(NOW)
    logs, lines, failed, dropped = [], [], 0, 0
    for data in split_records(framed(*records)):
        if len(data) < plan.record_size:
            failed += 1
        elif not bucket.take():
            dropped += 1
        else:
            time_ns = record_time_ns(plan, data, now_ns=NOW, realtime_minus_monotonic_ns=OFFSET)
            pairs: list[tuple[str, Value]] = [
                (rule.name, label_value(rule, data, resolve=resolve)) for rule in plan.attributes
            ]
            pairs += plan.constant_labels
            logs.append(log_record(plan, pairs, time_ns=time_ns, now_ns=NOW))
            lines.append(json_line(plan, SCOPE, pairs, time_ns=time_ns))
    batch = decode(framed(*records), plan)
    assert batch.otlp == b"".join(logs)
    assert batch.json == b"".join(lines)
    assert (batch.failed, batch.dropped.get("rate", 0), batch.exported) == (failed, dropped, len(logs))
    assert batch.received == batch.exported + batch.failed + sum(batch.dropped.values())


@given(st.integers(0, 1000), st.lists(st.tuples(st.integers(0, 3 * 10**9), st.integers(0, 50)), max_size=6))
def test_native_bucket_is_what_its_twin_says(rate: int, steps: list[tuple[int, int]]) -> None:
    """Over time, too."""
    stream, bucket, now_ns = decoder(dataclasses.replace(PLAN, events_per_s=rate)), TokenBucket(rate), NOW
    for step, events in steps:
        now_ns += step
        bucket.refill(now_ns)
        passed = sum(bucket.take() for _ in range(events))
        batch = stream.decode(
            framed(*[record()] * events), now_ns=now_ns, realtime_minus_monotonic_ns=0, otlp=False, json=False
        )
        assert batch.exported == passed
