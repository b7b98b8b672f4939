"""Records on their way into the frames they count in: while a scrape reads, over an upgrade, beside events."""

from __future__ import annotations

import struct
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from exporter.agent import program as way
from exporter.agent.events import EventReader, Ledger, ParcelQueue
from exporter.agent.program import Program, Stream, plan_bundle
from exporter.config import EventConfig, ImageConfig, MetricConfig
from exporter.image import Bundle, Digest, parse_reference
from tests.support.clang import compile_bpf
from tests.support.record_model import framed

SOURCE = """
struct call { u32 pid; u32 bytes; };
RING(counter_calls, struct call);
RING(told, struct call) TAG("kind=event") TAG("name=app.told") TAG("count=app.tellings");
"""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A compiled object as it would come from a file."""
    content = compile_bpf(SOURCE)
    digest = Digest.of(content)
    return Bundle(parse_reference("./app.o"), digest, digest, digest, "file", content)


def make(bundle: Bundle, *, before: Program | None = None, resolve: Any = None, **config: Any) -> Program:  # noqa: ANN401
    """A program over no kernel, its plan a real one."""
    image = ImageConfig("app", "./app.o", **config)
    collection = SimpleNamespace(
        maps={"counter_calls": None, "told": None},
        enums={},
        programs=(),
        usage=dict,
        iterate=lambda text: (),
        stages={},
        detach=lambda: None,
        close=lambda: None,
    )
    return Program(bundle, plan_bundle(bundle, image), image, collection, resolve, before=before)  # type: ignore[arg-type]


def stream(program: Program, name: str) -> Stream:
    """One of its streams."""
    return next(one for one in program.streams if one.name == name)


def calls(*pids: int) -> bytes:
    """Records of calls."""
    return framed(*(struct.pack("=II", pid, 0) for pid in pids))


def shown(program: Program, metric: str = "ebpf_calls_total") -> dict[int, int]:
    """Counts by process, after a scrape."""
    with program.lock:
        program.read(time.monotonic())
        (frame,) = [frame for frame in program.frames() if frame.instruments[0].prometheus_name == metric]
        return {int(labels.get("pid", 0)): values[0] for labels, values in frame.rows()}  # type: ignore[attr-defined]


def test_record_of_a_counted_ring_is_in_the_next_scrape(bundle: Bundle) -> None:
    """And exported as far as the account goes."""
    program, ledger = make(bundle), Ledger()
    reader = EventReader(ledger, ParcelQueue(), SimpleNamespace(add=lambda ring: 0))  # type: ignore[arg-type]
    reader.deliver(stream(program, "counter_calls"), calls(1, 2, 1) + framed(b"short"))
    assert shown(program) == {1: 2, 2: 1}
    (count,) = ledger.counts()
    assert (count.received, count.exported, count.failed, count.queued, count.dropped) == (4, 3, 1, 0, {})


def test_reader_does_not_wait_for_a_scrape_and_loses_nothing(bundle: Bundle) -> None:
    """Whoever holds the lock next brings in what waits."""
    program = make(bundle)
    with program.lock:
        stream(program, "counter_calls").decode(calls(1, 2))
        stream(program, "counter_calls").decode(calls(1))
    assert shown(program) == {1: 2, 2: 1}


def test_reader_waits_when_very_much_waits_already(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded even if a scrape hangs."""
    monkeypatch.setattr(way, "WAITING_LIMIT_BYTES", 100)
    program = make(bundle)
    ring = stream(program, "counter_calls")
    with program.lock:
        ring.decode(calls(1, 1))
        thread = threading.Thread(target=ring.decode, args=(calls(*[1] * 10),))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(10)
    assert shown(program) == {1: 12}


@pytest.mark.parametrize(
    ("config", "events"),
    [
        ({"events": {"app.told": EventConfig(sample_one_in=10)}}, 2),
        ({"events": {"app.told": EventConfig(enabled=False)}}, 0),
        ({}, 20),
    ],
)
def test_metrics_count_every_record_whatever_becomes_of_its_event(
    bundle: Bundle, config: dict[str, Any], events: int
) -> None:
    """Sampling, limits and switches are for events."""
    program, ledger, queue = make(bundle, **config), Ledger(), ParcelQueue()
    reader = EventReader(ledger, queue, SimpleNamespace(add=lambda ring: 0))  # type: ignore[arg-type]
    reader.deliver(stream(program, "app.told"), calls(*range(20)))
    assert shown(program, "app_tellings_total") == {0: 20}
    (count,) = ledger.counts()
    assert count.queued == events
    assert count.received == 20 == count.exported + count.queued + sum(count.dropped.values())
    assert count.exported == (20 if config and not events else 0)


def test_record_of_an_event_that_nobody_receives_is_exported_by_its_metrics(bundle: Bundle) -> None:
    """An agent that is only scraped need not turn it off."""
    program, ledger = make(bundle), Ledger()
    reader = EventReader(ledger, None, SimpleNamespace(add=lambda ring: 0))  # type: ignore[arg-type]
    reader.deliver(stream(program, "app.told"), calls(1, 2))
    (count,) = ledger.counts()
    assert (count.received, count.exported, count.dropped) == (2, 2, {})


def test_counts_go_on_over_an_upgrade_and_the_old_ring_still_counts(bundle: Bundle) -> None:
    """What the old ring holds at the switch is read after it, and belongs to the same series."""
    old = make(bundle)
    stream(old, "counter_calls").decode(calls(1, 1, 2))
    new = make(bundle, before=old)
    with old.lock:
        stream(old, "counter_calls").decode(calls(3))  # waits
    with old.lock, new.lock:
        assert new.succeed(old) == 2
        stream(old, "counter_calls").decode(calls(1))  # waits for the new one's lock
    stream(new, "counter_calls").decode(calls(2))
    stream(old, "counter_calls").decode(calls(3))
    assert shown(new) == {1: 3, 2: 2, 3: 2}
    assert old.frames() == []


def test_record_that_waits_for_the_old_lock_counts_in_the_new_program(bundle: Bundle, monkeypatch: Any) -> None:  # noqa: ANN401
    """The reader may be asleep at the old program's lock while the frames change hands."""
    monkeypatch.setattr(way, "WAITING_LIMIT_BYTES", 0)
    old = make(bundle)
    new = make(bundle, before=old)
    with old.lock, new.lock:
        thread = threading.Thread(target=stream(old, "counter_calls").decode, args=(calls(5),))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        new.succeed(old)
    thread.join(10)
    assert shown(new) == {5: 1}


def test_counts_of_another_meaning_begin_anew(bundle: Bundle) -> None:
    """The old ring's rest then goes nowhere."""
    old = make(bundle)
    stream(old, "counter_calls").decode(calls(1))
    new = make(bundle, before=old, metrics={"ebpf_calls_total": MetricConfig(drop_labels=("bytes",))})
    with old.lock, new.lock:
        assert new.succeed(old) == 1
    stream(old, "counter_calls").decode(calls(1))
    stream(new, "counter_calls").decode(calls(1, 1))
    assert shown(new) == {1: 2}


def test_idle_series_leaves_with_a_scrape(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the image's expire_after."""
    program = make(bundle, expire_after_s=1.0)
    stream(program, "counter_calls").decode(calls(1))
    assert shown(program) == {1: 1}
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 3 * 10**9)
    assert shown(program) == {}
