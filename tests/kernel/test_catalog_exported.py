"""What ``/metrics`` says of the shipped images is what happened, read again and again while it happens."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter.agent.program import Program, load, make_lookup, plan_bundle
from exporter.config import ImageConfig
from exporter.export import prometheus
from exporter.image import Store, parse_reference
from exporter.model import Resource, Snapshot
from tests.kernel.test_catalog import (
    CONNECTIONS,
    ENDINGS,
    IMAGES,
    direct,
    needs_cgroup2,
    needs_loop,
    referee,
    why_not_here,
)
from tests.support import workload
from tests.support.catalog import built_catalog
from tests.support.libbpf import can_load, loaded

pytestmark = pytest.mark.skipif(not can_load(), reason="needs root and a kernel with BTF")

Sample = tuple[str, frozenset[tuple[str, str]]]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The catalog as an agent finds it."""
    return built_catalog(tmp_path_factory.mktemp("exported"))


@contextmanager
def exported(catalog: Store, name: str, **settings: bool | int) -> Iterator[Program]:
    """A shipped image as the agent runs it."""
    bundle = catalog.bundle(parse_reference(f"catalog:{name}"))
    config = ImageConfig(name=name, ref=f"catalog:{name}", globals=settings)
    program = load(bundle, plan_bundle(bundle, config), config, resolve=make_lookup().resolve)
    try:
        yield program
    finally:
        program.close()


def body(program: Program) -> bytes:
    """The text of one scrape."""
    with program.lock:
        program.read(time.monotonic())
        assert not program.last_read.error
        return prometheus.render(Snapshot(time.time_ns(), Resource(), program.frames()))


def scrape(program: Program) -> dict[Sample, float]:
    """One scrape as a Prometheus reads it."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body(program).decode())
        for sample in family.samples
    }


def value(samples: dict[Sample, float], name: str, **labels: str) -> float:
    """One sample; 0 where there is no such series yet."""
    return samples.get((name, frozenset(labels.items())), 0)


@contextmanager
def scraped_all_the_time(program: Program) -> Iterator[list[dict[Sample, float]]]:
    """Scrape without pause in another thread: reading must not change what is counted."""
    seen: list[dict[Sample, float]] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.005):
            seen.append(scrape(program))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def never_falls(seen: list[dict[Sample, float]]) -> bool:
    """Whether every counter of every scrape is at least what it was the scrape before."""
    return all(
        later.get(key, 0) >= number
        for before, later in itertools.pairwise(seen)
        for key, number in before.items()
        if key[0].endswith(("_total", "_count", "_sum", "_bucket"))
    )


@needs_cgroup2
def test_exported_exits_are_those_that_wait_saw(catalog: Store) -> None:
    """Scraped all the while; the group's path and every status are labels."""
    with (
        workload.control_group("skep-exported") as (group, _),
        exported(catalog, "process-exits", by_cgroup=True) as program,
    ):
        with scraped_all_the_time(program) as seen:
            workload.run_in_group(group, ENDINGS)
        last = scrape(program)
        label = f"/{group.name}"
        found = {
            (labels["reason"], labels.get("code", ""), labels.get("signal", "")): int(number)
            for (name, pairs), number in last.items()
            if name == "ebpf_process_exits_total" and (labels := dict(pairs)).get("cgroup") == label
        }
    assert found == {
        ("exited", "0", ""): 21,
        ("exited", "3", ""): 50,
        ("exited", "255", ""): 7,
        ("killed", "", "SIGTERM"): 30,
        ("killed", "", "SIGKILL"): 5,
    }
    assert len(seen) > 3
    assert never_falls([*seen, last])


def test_exported_calls_and_errors_are_those_made(catalog: Store) -> None:
    """20,000 calls that succeed and 700 that fail with EINVAL, of a call nobody else makes."""
    number = {"x86_64": 146, "aarch64": 125}.get(os.uname().machine)
    if number is None:
        pytest.skip("call number not known here")
    call = ctypes.CDLL(None, use_errno=True).syscall
    name = "sched_get_priority_max"
    with exported(catalog, "syscalls") as program:
        first = scrape(program)
        with scraped_all_the_time(program) as seen:
            for _ in range(20_000):
                call(number, 0)
            for _ in range(700):
                call(number, 99)
        last = scrape(program)
    made = value(last, "ebpf_syscall_calls_total", syscall=name) - value(
        first, "ebpf_syscall_calls_total", syscall=name
    )
    assert made == 20_700
    assert value(last, "ebpf_syscall_errors_total", syscall=name, errno="EINVAL") == 700
    assert never_falls([first, *seen, last])


STATES = {
    1: "established", 2: "syn_sent", 3: "syn_recv", 4: "fin_wait1", 5: "fin_wait2", 6: "time_wait", 7: "close",
    8: "close_wait", 9: "last_ack", 10: "listen", 11: "closing", 12: "new_syn_recv", 13: "bound_inactive",
}  # fmt: skip
FAMILIES = {2: "ipv4", 10: "ipv6"}


def test_exported_tcp_state_changes_agree_with_the_referee(catalog: Store) -> None:
    """Every change of every socket on this machine meanwhile, to the last one."""
    with exported(catalog, "tcp-states") as program, loaded(referee(), programs=("on_change",)) as judge:

        def both() -> tuple[Counter[Sample], Counter[Sample]]:
            while True:
                before = judge.rows("changes")
                samples = scrape(program)
                if judge.rows("changes") == before:
                    break
            judged: Counter[Sample] = Counter()
            for (old, new, family), row in before.items():
                labels = {"old_state": STATES[old], "new_state": STATES[new], "family": FAMILIES.get(family, "other")}
                judged["ebpf_tcp_state_changes_total", frozenset(labels.items())] += row[""]
            exported_now = {key: int(n) for key, n in samples.items() if key[0] == "ebpf_tcp_state_changes_total"}
            return Counter(exported_now), judged

        start, judged_start = both()
        with scraped_all_the_time(program) as seen:
            workload.run_in_new_network(CONNECTIONS)
        end, judged_end = both()
    end.subtract(start)
    judged_end.subtract(judged_start)
    assert +end == +judged_end
    for family in FAMILIES.values():
        labels = {"old_state": "syn_sent", "new_state": "established", "family": family}
        assert end["ebpf_tcp_state_changes_total", frozenset(labels.items())] >= 100
    assert never_falls(seen)


@needs_loop
def test_exported_request_durations_are_of_the_requests_made(catalog: Store, tmp_path: Path) -> None:
    """The device by its name; as many values in +Inf as requests; a sum no longer than the clock on the wall."""
    backing = tmp_path / "disk"
    backing.write_bytes(bytes(4 << 20))
    page = mmap.mmap(-1, 4096)
    with exported(catalog, "block-latency") as program, workload.loop_device(backing) as (path, _):
        labels = {"device": path.name, "operation": "read"}
        first = scrape(program)
        started = time.monotonic()
        handle = direct(path, os.O_RDONLY)
        try:
            with scraped_all_the_time(program) as seen:
                for index in range(1000):
                    os.preadv(handle, [page], index % 1000 * 4096)
        finally:
            os.close(handle)
        elapsed = time.monotonic() - started
        last = scrape(program)
    family = "ebpf_block_request_duration_seconds"

    def grown(name: str, **more: str) -> float:
        return value(last, name, **labels, **more) - value(first, name, **labels, **more)

    assert grown(f"{family}_count") == 1000
    assert grown(f"{family}_bucket", le="+Inf") == 1000
    assert grown(f"{family}_bucket", le="0.000001") <= grown(f"{family}_bucket", le="33.554432") == 1000
    assert 0 < grown(f"{family}_sum") <= elapsed
    assert value(last, "ebpf_block_request_errors_total", **labels) == 0
    assert never_falls(seen)


@needs_cgroup2
def test_exported_waits_and_missed_ones_are_the_switches(catalog: Store) -> None:
    """One histogram of a group that the referee watches too."""
    code = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: time.sleep(0.0002)\n"
    with (
        workload.control_group("skep-exported-waits") as (group, group_id),
        exported(catalog, "runqueue-latency", by_cgroup=True) as program,
        loaded(referee(), {"only_group": group_id}, ("on_switch",)) as judge,
    ):
        with scraped_all_the_time(program) as seen:
            workload.run_in_group(group, code)
        last = scrape(program)
        switches = judge.rows("switches")[group_id,][""]
        found = value(last, "ebpf_runqueue_latency_seconds_count", cgroup=f"/{group.name}")
        missed = value(last, "ebpf_runqueue_latency_missed_total")
    assert switches > 100
    assert 0 <= switches - found <= missed
    assert never_falls(seen)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on PATH")
def test_promtool_finds_nothing_to_say_about_the_metrics_of_all_images(catalog: Store) -> None:
    """Names, units, types and help as Prometheus' own linter wants them."""
    texts = b""
    here = [name for name in IMAGES if not why_not_here(name)]
    for name in here:
        with exported(catalog, name) as program:
            subprocess.run(["true"], check=True)
            time.sleep(0.2)
            texts += body(program)
    done = subprocess.run(["promtool", "check", "metrics"], input=texts, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    assert texts.count(b"# HELP") >= len(here) >= len(IMAGES) - 2
