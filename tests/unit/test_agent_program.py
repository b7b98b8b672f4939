"""One image's maps into frames: one failing map costs itself, scrapes share a read, an image's life goes on."""

from __future__ import annotations

import contextlib
import errno
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from exporter.agent import Agent
from exporter.agent import image as life
from exporter.agent.events import EventReader, Ledger
from exporter.agent.fdstore import DescriptorStore
from exporter.agent.program import Program, load, plan_bundle
from exporter.agent.systemd import Notifier
from exporter.cli import main
from exporter.config import ImageConfig, RetryConfig
from exporter.errors import ImageError, KernelError, PlanError
from exporter.image import Bundle, Digest, parse_reference
from exporter.kernel import Batch, ProgramUsage
from exporter.plan import Plan
from tests.support.clang import compile_bpf

SOURCE = """
struct pair { u32 a; };
MAP(counter_good, HASH, 64, struct pair, u64);
MAP(counter_bad, HASH, 64, struct pair, u64);
MAP(lost, PERCPU_ARRAY, 1, u32, u64);
"""


class FakeMap:
    """A map that gives rows, or raises."""

    def __init__(self, rows: dict[int, int]) -> None:
        self.rows = rows
        self.max_entries = 64
        self.is_array = False
        self.error: Exception | None = None
        self.reads = 0
        self.pause_s = 0.0

    def batches(self) -> Iterator[Batch]:
        self.reads += 1
        time.sleep(self.pause_s)
        for index, (key, value) in enumerate(self.rows.items()):
            if self.error is not None and index:
                raise self.error
            yield Batch(1, memoryview(struct.pack("=I", key)), memoryview(struct.pack("=Q", value)), 8, 1)
        if self.error is not None:
            raise self.error


class FakeCollection:
    """What a loader would have given."""

    more = False

    def __init__(self) -> None:
        self.good, self.bad = FakeMap({1: 10, 2: 20}), FakeMap({1: 1, 2: 2})
        self.maps: dict[str, Any] = {"counter_good": self.good, "counter_bad": self.bad}
        if self.more:
            self.maps["counter_more"] = FakeMap({})
        self.programs = (SimpleNamespace(name="on_switch", attached=True, error="", passed_over="", id=7),)
        self.enums: dict[str, dict[str, int]] = {}
        self.stages: dict[str, list[float]] = {}
        self.detached = False
        self.closed = False

    def usage(self) -> dict[str, ProgramUsage]:
        return {}

    def iterate(self, *, text: bool = True) -> tuple[()]:
        return ()

    def detach(self) -> None:
        self.detached = True

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A compiled object as it would come from a file."""
    content = compile_bpf(SOURCE)
    digest = Digest.of(content)
    return Bundle(parse_reference("./dns.o"), digest, digest, digest, "file", content)


def make(
    bundle: Bundle, config: ImageConfig | None = None, *, before: Program | None = None
) -> tuple[Program, FakeCollection]:
    """A program over fake maps, its plan a real one."""
    config = config or ImageConfig("dns", "./dns.o")
    collection = FakeCollection()
    plan = plan_bundle(bundle, config)
    program = Program(bundle, plan, config, collection, lambda *_: "", before=before)  # type: ignore[arg-type]
    return program, collection


def shown(program: Program) -> dict[str, list[int]]:
    """What the frames on show hold, by metric."""
    visible = program.frames()
    return {
        frame.instruments[0].prometheus_name: sorted(values[0] for _, values in frame.rows())
        for _, frame in program.tables()
        if frame in visible
    }


def test_map_that_cannot_be_read_costs_its_own_frames_only(bundle: Bundle) -> None:
    """It is not shown with what it had, since that would pass for the present; it is back as soon as it can be read."""
    program, collection = make(bundle)
    program.read(time.monotonic())
    assert shown(program) == {"ebpf_good_total": [10, 20], "ebpf_bad_total": [1, 2]}
    collection.bad.error = KernelError("map 'counter_bad': it is gone")
    collection.good.rows[1] = 11
    program.read(time.monotonic())
    assert shown(program) == {"ebpf_good_total": [11, 20]}
    assert program.last_read.error == "map 'counter_bad': it is gone"
    collection.bad.error = None
    collection.bad.rows[1] = 5
    program.read(time.monotonic())
    assert shown(program) == {"ebpf_good_total": [11, 20], "ebpf_bad_total": [2, 5]}
    assert program.last_read.error == ""
    assert program.map_entries == {"counter_good": (2, 64), "counter_bad": (2, 64)}


def test_scrapes_that_wait_for_a_read_share_the_next_one(bundle: Bundle) -> None:
    """Ten scrapers at once cost two reads: the one under way, and one that began after they came."""
    program, collection = make(bundle)
    collection.good.pause_s = 0.2

    def scrape() -> None:
        arrived_s = time.monotonic()
        with program.lock:
            program.read(arrived_s)

    first = threading.Thread(target=scrape)
    first.start()
    time.sleep(0.05)
    others = [threading.Thread(target=scrape) for _ in range(10)]
    for thread in others:
        thread.start()
    for thread in (first, *others):
        thread.join()
    assert collection.good.reads == 2


def test_read_ends_at_its_deadline_and_nobody_shares_it(bundle: Bundle) -> None:
    """A map that takes too long is not shown, nor one there was no time for; who has more time reads anew."""
    program, collection = make(bundle)
    began_s = time.monotonic()
    assert program.read(began_s)
    collection.good.pause_s = 0.2
    collection.good.rows[1] = 11
    began_s = time.monotonic()
    assert not program.read(began_s, began_s + 0.1)
    assert shown(program) == {}
    assert program.last_read.error == ""
    assert collection.bad.reads == 1
    assert program.read(began_s, began_s + 60)
    assert shown(program) == {"ebpf_good_total": [11, 20], "ebpf_bad_total": [1, 2]}
    assert program.map_entries["counter_good"] == (2, 64)


def test_lock_that_somebody_holds_is_waited_for_until_the_deadline(bundle: Bundle) -> None:
    """A scrape goes on without an image that is being read or replaced."""
    program, _ = make(bundle)
    image: Any = SimpleNamespace(program=program)
    with program.lock, contextlib.ExitStack() as held:
        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            Agent._hold(image, held, began_s + 0.1)
        assert 0.1 <= time.monotonic() - began_s < 5
    with contextlib.ExitStack() as held:
        assert Agent._hold(image, held, time.monotonic() + 60) is program
        assert program.lock.locked()
    assert not program.lock.locked()


def test_array_is_always_full_and_not_said_to_be(bundle: Bundle) -> None:
    """Its rows are all there from the beginning: their number would look like a map about to overflow."""
    program, collection = make(bundle)
    collection.good.is_array = True
    program.read(time.monotonic())
    assert shown(program)["ebpf_good_total"] == [10, 20]
    assert program.map_entries == {"counter_bad": (2, 64)}


def test_metric_that_begins_as_the_agents_own_is_refused(bundle: Bundle) -> None:
    """skep_ and process_ are not an image's to use."""
    from exporter.config import MetricConfig

    config = ImageConfig(
        "dns", "./dns.o", metrics={"ebpf_good_total": MetricConfig(rename="process_cpu_seconds_total")}
    )
    with pytest.raises(PlanError, match="begins as the agent's own do"):
        plan_bundle(bundle, config)


def succeeded(bundle: Bundle, config: ImageConfig | None = None, *, tables: int = 2) -> tuple[Program, FakeCollection]:
    """A program that succeeded one which was read with its rows 1: 10 and 2: 20."""
    old, collection = make(bundle)
    old.read(time.monotonic())
    collection.good.rows[2] = 25  # what the last read finds
    new, fresh = make(bundle, config, before=old)
    fresh.good.rows = {}
    old.detach()
    with old.lock, new.lock:
        assert new.succeed(old) == tables
    assert old.frames() == []
    return new, fresh


def test_carried_counter_is_the_old_final_value_plus_the_new_one(bundle: Bundle) -> None:
    """Whether the new map's row is below or above what the old one's was."""
    new, fresh = succeeded(bundle)
    new.read(time.monotonic())
    assert shown(new)["ebpf_good_total"] == [10, 25]
    fresh.good.rows = {1: 3, 2: 100, 3: 4}
    new.read(time.monotonic())
    assert shown(new)["ebpf_good_total"] == [4, 13, 125]
    fresh.good.rows[1] = 5
    new.read(time.monotonic())
    assert shown(new)["ebpf_good_total"] == [4, 15, 125]


def test_limit_holds_for_both_together(bundle: Bundle) -> None:
    """Series that were carried are in the budget of those that come."""
    new, fresh = succeeded(bundle)
    assert new.series == 4
    fresh.good.rows = {1: 1, 2: 1, 3: 1}
    new.read(time.monotonic())
    assert new.series == 5


def test_table_with_another_meaning_begins_anew(bundle: Bundle) -> None:
    """Beside one that goes on."""
    from exporter.config import MetricConfig

    renamed = ImageConfig("dns", "./dns.o", metrics={"ebpf_bad_total": MetricConfig(rename="worse_total")})
    new, fresh = succeeded(bundle, renamed, tables=1)
    fresh.bad.rows = {1: 6}
    new.read(time.monotonic())
    assert shown(new) == {"ebpf_good_total": [10, 25], "worse_total": [6]}


def test_loader_that_cannot_be_started_is_that_images_failure(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line with the remedy, never a traceback, also from ``skep run``."""

    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    config = ImageConfig("dns", "./dns.o")
    with pytest.raises(KernelError, match=r"cannot be started: EAGAIN \(.*\); raise TasksMax or LimitNPROC") as caught:
        load(bundle, plan_bundle(bundle, config), config, resolve=lambda *_: "")
    assert caught.value.code == "kernel.loader"
    (tmp_path / "dns.o").write_bytes(bundle.object)
    assert main(["run", "--no-tty", "--duration=1s", f"--store={tmp_path / 'store'}", str(tmp_path / "dns.o")]) == 1
    assert capsys.readouterr().err.startswith("skep: loader: cannot be started: ")


class Surround:
    """An agent around one image: what it fetches and loads is up to the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bundle: Bundle, pull: str = "if-not-present") -> None:
        self.bundle = bundle
        self.fetched: list[str] = []
        self.fetch_error: Exception | None = None
        self.load_error: Exception | None = None
        self.collections: list[FakeCollection] = []
        self.changes = 0
        self.claimed: list[str] = []
        monkeypatch.setattr(life, "fetch", self.fetch)
        monkeypatch.setattr(life, "load", self.load)
        self.around = life.Surroundings(
            store=None,  # type: ignore[arg-type]
            registries={},
            retry=RetryConfig(1.0, 8.0),
            resolve=lambda *_: "",
            reader=EventReader(Ledger(), None, None),  # type: ignore[arg-type]
            loading=threading.Semaphore(1),
            claim=self.claim,
            prune=lambda: None,
            changed=self.changed,
            stop=threading.Event(),
            kept=DescriptorStore(Notifier({})),
        )
        self.image = life.Image(ImageConfig("dns", "registry.example/dns:1", pull=pull), self.around)

    def fetch(self, reference: object, *, pull: str, **_: object) -> Bundle:
        self.fetched.append(pull)
        if self.fetch_error is not None and pull != "never":
            raise self.fetch_error
        return self.bundle

    def load(self, bundle: Bundle, plan: Plan, config: ImageConfig, **_: object) -> Program:
        if self.load_error is not None:
            raise self.load_error
        collection = FakeCollection()
        self.collections.append(collection)
        return Program(bundle, plan, config, collection, lambda *_: "")  # type: ignore[arg-type]

    def claim(self, name: str, plan: Plan) -> None:
        self.claimed.append(name)

    def changed(self) -> None:
        self.changes += 1


def test_failed_image_waits_a_random_time_whose_bound_doubles(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    """Full jitter between nothing and 1, 2, 4, 8, 8… s, and from the first again once it has run."""
    agent = Surround(monkeypatch, bundle)
    bounds: list[float] = []
    monkeypatch.setattr(life.random, "uniform", lambda low, high: bounds.append(high) or high)
    agent.fetch_error = ImageError("registry is down", code="img.unreachable")
    for _ in range(6):
        agent.image.bring_up()
        assert 0 < agent.image.due_s - time.monotonic() <= bounds[-1]
        assert (agent.image.state, agent.image.reason) == ("failed", "registry is down")
    assert bounds == [1, 2, 4, 8, 8, 8]
    assert dict(agent.image.status().pull_failures) == {"img.unreachable": 6}
    agent.fetch_error = None
    agent.image.bring_up()
    assert (agent.image.state, agent.image.due_s) == ("running", float("inf"))
    agent.image.stop()
    agent.fetch_error = ImageError("down", code="img.unreachable")
    agent.image.bring_up()
    assert bounds[-1] == 1


def test_newer_version_replaces_the_older_without_a_gap(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    """The old one is detached after the new one is attached; one that cannot load leaves the old one running."""
    agent = Surround(monkeypatch, bundle, pull="always")
    agent.image.bring_up()
    [old] = agent.collections
    content = compile_bpf(SOURCE + "MAP(counter_more, ARRAY, 1, u32, u64);")
    digest = Digest.of(content)
    agent.bundle = Bundle(bundle.reference, digest, digest, digest, "file", content)
    agent.load_error = KernelError("program 'f': refused")
    agent.image.bring_up()
    assert (agent.image.state, old.closed) == ("stale", False)
    assert "refused" in agent.image.reason
    assert agent.image.program is not None
    agent.load_error = None
    monkeypatch.setattr(FakeCollection, "more", True)
    agent.image.bring_up()
    assert (agent.image.state, old.closed, agent.collections[-1].closed) == ("running", True, False)
    assert agent.image.digest == str(digest)


def test_same_version_is_not_loaded_again(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    """A registry that comes back with what already runs only ends the staleness."""
    agent = Surround(monkeypatch, bundle, pull="always")
    agent.fetch_error = ImageError("registry is down", code="img.unreachable")
    agent.image.bring_up()
    assert (agent.image.state, agent.fetched) == ("stale", ["always", "never"])
    assert agent.image.due_s < float("inf")
    agent.fetch_error = None
    agent.image.bring_up()
    assert (agent.image.state, agent.image.reason, len(agent.collections)) == ("running", "", 1)


def test_unreadable_maps_make_an_image_stale_until_they_can_be_read(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    """A bug in reading is treated the same: this image shows nothing, the scrape goes on."""
    agent = Surround(monkeypatch, bundle)
    agent.image.bring_up()
    program = agent.image.program
    assert program is not None
    for error in (KernelError("map 'counter_bad': it is gone"), RuntimeError("a bug")):
        agent.collections[0].bad.error = error
        agent.image.read(program, time.monotonic())
        assert agent.image.state == "stale"
        assert str(error) in agent.image.reason
        assert not agent.image.status().scrape_ok
    assert program.frames() == []
    agent.collections[0].bad.error = None
    agent.image.read(program, time.monotonic())
    assert (agent.image.state, agent.image.reason) == ("running", "")
    assert len(program.frames()) == 2


def test_displaced_image_is_shown_no_more_and_stops_when_due(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    """Between the claim and the stop it must not put the same metric on the page twice."""
    agent = Surround(monkeypatch, bundle)
    agent.image.bring_up()
    program = agent.image.program
    assert program is not None and agent.image.shows(program)
    agent.image.displace(PlanError("image 'dns': metric 'm' is also in image 'first'"))
    assert not agent.image.shows(program)
    assert agent.image.due_s <= time.monotonic()
    agent.image.bring_up()
    assert (agent.image.state, agent.collections[0].closed) == ("failed", True)
    assert "'first'" in agent.image.reason


def test_bug_while_bringing_up_is_this_images_failure(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    """It is tried again like any other, and the agent lives."""
    agent = Surround(monkeypatch, bundle)
    agent.load_error = ZeroDivisionError("oops")
    agent.image.bring_up()
    assert agent.image.state == "failed"
    assert "internal error: ZeroDivisionError('oops')" in agent.image.reason
    assert agent.image.due_s < float("inf")
