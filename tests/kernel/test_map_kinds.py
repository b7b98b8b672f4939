"""What maps and variables of every kind hold, as a scrape shows it: from C source to Prometheus text on this kernel."""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import os
import platform
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter.agent.program import Program, load, make_lookup, plan_bundle
from exporter.config import AttachConfig, ImageConfig
from exporter.export import prometheus
from exporter.image import Bundle, Digest, parse_reference
from exporter.kernel import inner
from exporter.kernel._reader import Rows
from exporter.kernel.adopt import adopt, descriptors_of, view_of
from exporter.kernel.features import probe
from exporter.kernel.inner import OPEN_LIMIT
from exporter.kernel.lookup import cgroup2_mount
from exporter.model import Resource, Snapshot
from tests.support.plans import table_of

from .conftest import GETPGID, Compile, bpf, delete, make_calls, update

Sample = tuple[str, frozenset[tuple[str, str]]]
Running = Callable[..., Program]


def bundle_of(content: bytes) -> Bundle:
    """An object as it comes from a file."""
    digest = Digest.of(content)
    return Bundle(parse_reference("./kinds.o"), digest, digest, digest, "file", content)


@pytest.fixture
def running(compile_object: Compile) -> Iterator[Running]:
    """Run a test object as the agent does, counting this process's ``getpgid`` calls; all ends with the test."""
    programs: list[Program] = []

    def run(name: str, *, before: Program | None = None, **config: object) -> Program:
        bundle = bundle_of(compile_object(name))
        image = ImageConfig("kinds", "./kinds.o", globals={"tgid": os.getpid(), "wanted_call": GETPGID}, **config)  # type: ignore[arg-type]
        programs.append(load(bundle, plan_bundle(bundle, image), image, resolve=make_lookup().resolve, before=before))
        return programs[-1]

    yield run
    for program in programs:
        program.close()


@pytest.fixture
def own_cgroup() -> Iterator[Path]:
    """An empty cgroup below the root of the cgroup2 hierarchy."""
    path = Path(cgroup2_mount(Path("/proc/self/mountinfo").read_text())) / f"skep-test-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


@contextlib.contextmanager
def inside(cgroup: Path) -> Iterator[None]:
    """Be in another cgroup, and then back where we were."""
    (before,) = (line[4:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::/"))
    (cgroup / "cgroup.procs").write_text("0")
    try:
        yield
    finally:
        (cgroup.parent / before / "cgroup.procs").write_text("0")


def scrape(program: Program) -> dict[Sample, float]:
    """One scrape as a Prometheus reads it."""
    with program.lock:
        program.read(time.monotonic())
        assert not program.last_read.error
        text = prometheus.render(Snapshot(time.time_ns(), Resource(), program.frames())).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def one(samples: dict[Sample, float], name: str, **labels: str) -> float:
    """A sample that must be there."""
    return samples[name, frozenset(labels.items())]


def named(samples: dict[Sample, float], name: str) -> dict[frozenset[tuple[str, str]], float]:
    """All samples of one name."""
    return {labels: value for (found, labels), value in samples.items() if found == name}


# Variables.


@pytest.mark.matrix("map", "variables")
def test_variables_of_every_section_and_shape_are_metrics(running: Running) -> None:
    """A number, a struct, an array by index or summed, a histogram; what nobody speaks of stays private."""
    program = running("variables")
    make_calls(5)
    samples = scrape(program)
    assert one(samples, "ebpf_calls_total") == 5
    assert one(samples, "test_limit") == 42
    assert named(samples, "test_operations_total") == {
        frozenset({("operation", "0")}): 3,
        frozenset({("operation", "1")}): 2,
    }
    assert one(samples, "ebpf_per_cpu_total") == 5
    assert one(samples, "test_sizes_calls_total", index="1") == 10
    assert one(samples, "test_sizes_level", index="1") == -3
    assert one(samples, "test_latency_seconds_count") == 5
    assert one(samples, "test_latency_seconds_sum") == pytest.approx(7.5e-6)
    assert one(samples, "test_latency_seconds_bucket", le="2e-06") == 5
    assert one(samples, "ebpf_plain_bucket", le="7.0") == 0
    assert one(samples, "ebpf_plain_bucket", le="15.0") == 5
    assert one(samples, "test_own_total") == 5
    assert one(samples, "ebpf_started") == 6
    assert not [name for name, _ in samples if "unrelated" in name or "unsaid" in name]


@pytest.mark.matrix("map", "variables")
def test_variables_count_on_and_are_no_map_that_fills(running: Running) -> None:
    """Each read is the newest value; a section of variables has no fill to warn of."""
    program = running("variables")
    for calls in (1, 2, 3):
        make_calls(1)
        assert one(scrape(program), "ebpf_calls_total") == calls
    assert program.map_entries == {}


@pytest.mark.matrix("map", "variables")
def test_newer_version_carries_the_counts_of_variables_on(running: Running) -> None:
    """Its own variables begin at zero again; the series does not."""
    old = running("variables")
    make_calls(4)
    assert one(scrape(old), "ebpf_calls_total") == 4
    new = running("variables", before=old)
    old.detach()
    assert new.succeed(old) == len(new.plan.tables)
    make_calls(3)
    assert one(scrape(new), "ebpf_calls_total") == 7
    assert one(scrape(new), "ebpf_per_cpu_total") == 7


# Tries.


def prefixes(samples: dict[Sample, float], name: str, label: str) -> dict[str, float]:
    """Values by the text of one label."""
    return {dict(labels)[label]: value for labels, value in named(samples, name).items()}


@pytest.mark.matrix("map", "lpm_trie")
def test_trie_shows_its_prefixes(running: Running) -> None:
    """Of each make of key; what lies beyond the prefix is not shown."""
    program = running("tries")
    v4, v6 = program.collection.maps["counter_v4"].fd, program.collection.maps["counter_v6"].fd
    update(v4, struct.pack("=I4B", 8, 10, 9, 9, 9), struct.pack("=Q", 100))
    update(v4, struct.pack("=I4B", 24, 10, 1, 2, 255), struct.pack("=Q", 0))
    update(v4, struct.pack("=I4B", 0, 1, 1, 1, 1), struct.pack("=Q", 7))
    update(v6, struct.pack("=I16s", 32, bytes.fromhex("20010db8" + "ff" * 12)), struct.pack("=Q", 3))
    mixed, whole = program.collection.maps["counter_mixed"].fd, program.collection.maps["counter_whole"].fd
    update(mixed, struct.pack("=IH3s", 28, 5, b"\xab\xcd\xef"), struct.pack("=Q", 4))
    update(whole, struct.pack("=I4B", 16, 192, 168, 1, 1), struct.pack("=Q", 5))
    make_calls(6)
    samples = scrape(program)
    assert prefixes(samples, "ebpf_v4_total", "network") == {"10.0.0.0/8": 100, "10.1.2.0/24": 6, "0.0.0.0/0": 7}
    assert prefixes(samples, "ebpf_v6_total", "network") == {"2001:db8::/32": 3}
    assert one(samples, "ebpf_mixed_total", zone="5", rest="0xabc000/12") == 4
    assert prefixes(samples, "ebpf_whole_total", "net") == {"192.168.0.0/16": 5}


def rows_of_trie(fd: int, *, key_size: int = 8, chunk_rows: int, walk: bool) -> list[tuple[bytes, int]]:
    """Each row of a trie of numbers."""
    reader = Rows(
        fd, key_size=key_size, value_stride=8, max_entries=1000, chunk_rows=chunk_rows, walk_only=walk, trie=True
    )
    reader.start()
    found: list[tuple[bytes, int]] = []
    while count := reader.next():
        keys, values = bytes(reader.keys), bytes(reader.values)
        found += [(keys[key_size * i :][:key_size], *struct.unpack_from("=Q", values, 8 * i)) for i in range(count)]
    return found


@pytest.mark.matrix("map", "lpm_trie")
@pytest.mark.parametrize("walk", [False, True], ids=["batch", "walk"])
@pytest.mark.parametrize("size", [4, 16])
def test_every_prefix_is_read_once_whatever_covers_it(running: Running, size: int, walk: bool) -> None:
    """Prefixes of all lengths, many inside each other, in chunks of any size."""
    generator = random.Random(size)
    source = running("tries").collection.maps["counter_v4" if size == 4 else "counter_v6"]
    written: dict[tuple[int, int], tuple[bytes, int]] = {}
    for number in range(600):
        length = generator.choice((0, 1, 7, 8, 9, 15, 8 * size - 1, 8 * size, generator.randrange(8 * size)))
        address = (
            generator.randbytes(size)
            if generator.random() < 0.5
            else bytes([10, generator.randrange(4)]).ljust(size, b"\0")
        )
        key = struct.pack("=I", length) + address
        update(source.fd, key, struct.pack("=Q", number))
        written[length, int.from_bytes(address, "big") >> (8 * size - length)] = (key, number)
    assert len(written) > 200
    for chunk_rows in (4096, 64, 7, 1):
        found = rows_of_trie(source.fd, key_size=4 + size, chunk_rows=chunk_rows, walk=walk)
        assert sorted(found) == sorted(written.values())


@pytest.mark.matrix("map", "lpm_trie")
@pytest.mark.parametrize("walk", [False, True], ids=["batch", "walk"])
def test_deleted_prefix_is_never_shown_with_the_value_of_a_shorter_one(running: Running, walk: bool) -> None:
    """A look-up of a key that is gone finds what covers it; no read of a busy trie takes that for a row."""
    source = running("tries").collection.maps["counter_v4"]
    update(source.fd, struct.pack("=I4B", 8, 10, 0, 0, 0), struct.pack("=Q", 1))
    stay = {struct.pack("=I4B", 32, 10, 1, 0, n) for n in range(200)}
    for key in stay:
        update(source.fd, key, struct.pack("=Q", 2))
    stop = threading.Event()
    churned = 0

    def churn() -> None:
        nonlocal churned
        # None comes back: of one that does within a step of a read nobody can tell that it was away.
        there: collections.deque[bytes] = collections.deque()
        while not stop.is_set():
            churned += 1
            there.append(struct.pack("=I4B", 32, 10, 2 + (churned >> 16), churned >> 8 & 255, churned & 255))
            update(source.fd, there[-1], struct.pack("=Q", 3))
            if len(there) > 200:
                delete(source.fd, there.popleft())

    thread = threading.Thread(target=churn)
    thread.start()
    reads = 0
    try:
        begin = time.monotonic()
        # An emulated processor needs its time.
        while time.monotonic() < begin + 1.5 or ((reads <= 10 or churned <= 1000) and time.monotonic() < begin + 60):
            reads += 1
            found = rows_of_trie(source.fd, chunk_rows=16, walk=walk)
            shown = dict(found)
            assert len(shown) == len(found)
            assert stay <= shown.keys()
            assert {key[0] for key, value in found if value == 1} == {8}
    finally:
        stop.set()
        thread.join()
    assert reads > 10
    assert churned > 1000


# Maps of maps.


TENANT, OPERATION = struct.Struct("=I8s"), struct.Struct("=II")


def created(map_type: int, key_size: int, value_size: int, entries: int) -> int:
    """A descriptor of a new map."""
    return bpf(0, struct.pack("=IIII", map_type, key_size, value_size, entries))


def put(program: Program, zone: int, name: bytes, rows: dict[int, int]) -> None:
    """Have the map of requests hold a new map with these rows."""
    fd = created(1, OPERATION.size, 8, 64)
    try:
        for code, value in rows.items():
            update(fd, OPERATION.pack(code, 0), struct.pack("=Q", value))
        update(program.collection.maps["requests"].fd, TENANT.pack(zone, name), struct.pack("=I", fd))
    finally:
        os.close(fd)


def requests(program: Program) -> dict[tuple[str, str, str], float]:
    """Counts by zone, name and code."""
    found = named(scrape(program), "test_requests_total")
    return {tuple(dict(labels)[name] for name in ("zone", "name", "code")): v for labels, v in found.items()}  # type: ignore[misc]


def open_descriptors() -> int:
    """Of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.matrix("map", "hash_of_maps array_of_maps")
def test_rows_of_inner_maps_have_the_outer_keys_labels_too(running: Running) -> None:
    """Hashes in a hash, and per-CPU arrays in an array; empty places have no rows."""
    program = running("inner")
    put(program, 7, b"db", {1: 10})
    put(program, 7, b"web", {1: 20, 2: 30})
    make_calls(4)
    assert requests(program) == {
        ("7", "db", "1"): 10,
        ("7", "db", "3"): 4,
        ("7", "web", "1"): 20,
        ("7", "web", "2"): 30,
    }
    samples = scrape(program)
    assert named(samples, "ebpf_levels") == {frozenset({("level", "5"), ("index", "2")}): 4}
    assert [rule.name for rule in table_of(program.plan, "requests").labels] == ["zone", "name", "code"]
    # Room is that of the maps inside; an array is always full, inside another map too.
    assert program.map_entries == {"requests": (4, 2 * 64)}


@pytest.mark.matrix("map", "hash_of_maps lpm_trie")
def test_trie_inside_a_hash_shows_its_prefixes(running: Running) -> None:
    """The prefix length lies behind the outer key."""
    program = running("inner")
    nets = program.collection.maps["counter_nets"]
    fd = bpf(0, struct.pack("=IIIII", 11, 8, 8, 16, 1))
    try:
        update(fd, struct.pack("=I4B", 24, 192, 0, 2, 9), struct.pack("=Q", 54))
        update(nets.fd, struct.pack("=Q", 77), struct.pack("=I", fd))
    finally:
        os.close(fd)
    assert one(scrape(program), "ebpf_nets_total", outer="77", pad="192.0.2.0/24") == 54


@pytest.mark.matrix("map", "hash_of_maps")
def test_map_that_takes_anothers_place_adds_to_its_series(running: Running) -> None:
    """Also if its numbers are higher from the start; and the old one is let go of."""
    program = running("inner")
    put(program, 1, b"a", {1: 10})
    assert requests(program) == {("1", "a", "1"): 10}
    before = open_descriptors()
    put(program, 1, b"a", {1: 500})
    assert requests(program) == {("1", "a", "1"): 510}
    put(program, 1, b"a", {1: 3, 2: 1})
    assert requests(program) == {("1", "a", "1"): 513, ("1", "a", "2"): 1}
    assert open_descriptors() == before
    delete(program.collection.maps["requests"].fd, TENANT.pack(1, b"a"))
    assert requests(program) == {("1", "a", "1"): 513, ("1", "a", "2"): 1}
    assert open_descriptors() == before - 1


@pytest.mark.matrix("map", "hash_of_maps")
def test_descriptors_of_inner_maps_are_bounded(running: Running) -> None:
    """More maps than may be open are read all the same, time and again; closing gives all back."""
    program = running("inner")
    scrape(program)
    before = open_descriptors()
    for zone in range(OPEN_LIMIT + 40):
        put(program, zone, b"x", {1: zone + 1})
    expected = {(str(zone), "x", "1"): zone + 1 for zone in range(OPEN_LIMIT + 40)}
    for _ in range(3):
        assert requests(program) == expected
        assert open_descriptors() <= before + OPEN_LIMIT
    program.close()
    assert open_descriptors() < before


@pytest.mark.matrix("map", "hash_of_maps")
def test_inner_maps_without_the_capability_are_an_error_with_the_remedy(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outer map is readable by its descriptor; those it holds are not."""
    program = running("inner")
    put(program, 1, b"a", {1: 10})

    def refuse(_number: int) -> int:
        raise PermissionError(errno.EPERM, "opening a map")

    monkeypatch.setattr(inner, "map_by_id", refuse)
    with program.lock:
        program.read(time.monotonic())
    assert (
        "map 'requests': the maps it holds cannot be opened: EPERM (Operation not permitted); give skep CAP_SYS_ADMIN"
        in program.last_read.error
    )
    assert all(frame.plan.map not in ("requests",) for frame in program.frames())  # type: ignore[attr-defined]


# What goes on over restarts and upgrades of the agent.

COUNTED = [
    ("variables", "ebpf_calls_total"),
    ("inner", "test_requests_total"),
    ("storage", "ebpf_by_task_total"),
    ("stacks", "ebpf_calls_total"),
]


def counted(program: Program, name: str) -> float:
    """Of all series of a metric."""
    return sum(named(scrape(program), name).values())


@pytest.mark.parametrize(("name", "metric"), COUNTED)
def test_source_of_rows_goes_on_in_a_process_that_was_given_its_descriptors(
    running: Running, name: str, metric: str
) -> None:
    """As systemd keeps them while the agent is away; what happened meanwhile is counted."""
    if name == "storage" and probe().version < (5, 12):
        pytest.skip("no task storage in tracing programs (first in 5.12)")
    old = running(name)
    if name == "inner":
        put(old, 7, b"db", {1: 0})
    make_calls(4)
    assert counted(old, metric) == 4
    view = json.loads(json.dumps(view_of(old.collection)))
    kept = {role: [os.dup(fd) for fd in fds] for role, fds in descriptors_of(old.collection).items()}
    old.close()
    make_calls(3)
    new = Program(old.bundle, old.plan, old.config, adopt("kinds", view, kept), make_lookup().resolve)
    try:
        assert counted(new, metric) == 7
        make_calls(2)
        assert counted(new, metric) == 9
    finally:
        new.close()


@pytest.mark.parametrize(("name", "metric"), COUNTED)
def test_newer_version_carries_the_counts_of_every_source_on(running: Running, name: str, metric: str) -> None:
    """Its maps are new; what the old ones had last is added."""
    if name == "storage" and probe().version < (5, 12):
        pytest.skip("no task storage in tracing programs (first in 5.12)")
    old = running(name)
    if name == "inner":
        put(old, 7, b"db", {1: 5})
    make_calls(4)
    before = counted(old, metric)
    new = running(name, before=old)
    old.detach()
    if name == "inner":
        put(new, 7, b"db", {1: 2})
    with old.lock, new.lock:
        assert new.succeed(old)
    assert counted(new, metric) == before + (2 if name == "inner" else 0)
    make_calls(3)
    assert counted(new, metric) == before + 3 + (2 if name == "inner" else 0)


# Local storage.


@pytest.mark.matrix("map", "task_storage")
@pytest.mark.skipif(probe().version < (5, 12), reason="no task storage in tracing programs (first in 5.12)")
def test_task_storage_is_read_by_process(running: Running) -> None:
    """With number and name as labels; what ended has no row, and its count stays."""
    program = running("storage")
    make_calls(6)
    mine = {"pid": str(os.getpid()), "comm": Path("/proc/self/comm").read_text().rstrip("\n")}
    assert one(scrape(program), "ebpf_by_task_total", **mine) == 6
    make_calls(1)
    samples = scrape(program)
    assert one(samples, "ebpf_by_task_total", **mine) == 7
    assert len(named(samples, "ebpf_by_task_total")) == 1


@pytest.mark.matrix("map", "task_storage")
@pytest.mark.skipif(probe().version < (6, 9), reason="no descriptors of single threads (first in 6.9)")
def test_task_storage_of_threads_is_summed_by_process(running: Running) -> None:
    """A thread that ends takes its row along, and not its count."""
    program = running("storage")
    done, end = threading.Event(), threading.Event()

    def work() -> None:
        make_calls(10)
        done.set()
        end.wait()

    make_calls(5)
    thread = threading.Thread(target=work)
    thread.start()
    done.wait()
    assert sum(named(scrape(program), "ebpf_by_task_total").values()) == 15
    end.set()
    thread.join()
    make_calls(1)
    assert sum(named(scrape(program), "ebpf_by_task_total").values()) == 16


@pytest.mark.matrix("map", "cgrp_storage")
@pytest.mark.skipif(probe().version < (6, 2), reason="no storage of cgroups by descriptor (first in 6.2)")
def test_cgroup_storage_is_read_by_path(running: Running, own_cgroup: Path) -> None:
    """Of every cgroup that has a row, whoever is in it."""
    program = running("storage_cgroup")
    make_calls(3)
    with inside(own_cgroup):
        make_calls(4)
    shown = prefixes(scrape(program), "ebpf_by_cgroup_total", "cgroup")
    assert shown[f"/{own_cgroup.name}"] == 4
    assert sum(shown.values()) == 7


@pytest.mark.matrix("map", "cgroup_storage")
def test_old_cgroup_storage_is_read_by_path(running: Running, own_cgroup: Path) -> None:
    """Of the cgroup that the program is attached to."""
    program = running("storage_old", attach={"on_socket": AttachConfig(cgroup=str(own_cgroup))})
    with inside(own_cgroup):
        for _ in range(3):
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    samples = scrape(program)
    for name in ("ebpf_sockets_total", "ebpf_on_cpus_total"):
        ((labels, value),) = named(samples, name).items()
        assert (dict(labels)["cgroup"], value) == (f"/{own_cgroup.name}", 3)


# Stacks.


@pytest.mark.matrix("map", "stack_trace")
def test_stacks_are_labels_with_names_of_both_worlds(running: Running) -> None:
    """The innermost function last; a map of build ids names files by them."""
    program = running("stacks")
    make_calls(9)
    found = named(scrape(program), "ebpf_calls_total")
    assert sum(found.values()) == 9
    labels = dict(max(found, key=lambda one: found[one]))
    assert set(labels) == {"kernel", "user", "built"}
    assert re.search(r"getpgid(@.*)?$", labels["user"]), labels
    assert "do_syscall_64" in labels["kernel"].split(";") or platform.machine() != "x86_64"
    assert re.search(r"(^|;)[0-9a-f]{40}\+0x[0-9a-f]+$", labels["built"]), labels


@pytest.mark.matrix("map", "stack_trace")
def test_counts_are_kept_when_a_stack_is_gone_or_its_id_is_used_again(running: Running) -> None:
    """The series keeps the stack it was first seen with."""
    program = running("stacks")
    make_calls(3)
    before = named(scrape(program), "ebpf_calls_total")
    for name in ("stacks", "by_build_id"):
        source = program.collection.maps[name]
        for batch in source.batches():
            for i in range(batch.count):
                delete(source.fd, bytes(batch.keys[4 * i : 4 * i + 4]))
    make_calls(2)
    after = named(scrape(program), "ebpf_calls_total")
    assert sum(after.values()) == 5
    assert set(before) <= set(after)


@pytest.mark.matrix("map", "stack_trace")
def test_row_whose_stack_is_gone_says_so(running: Running) -> None:
    """Its count is shown all the same; an id that is an error has no stack, or lost it."""
    program = running("stacks")
    rows = program.collection.maps["counter_calls"]
    for number, (kernel, user) in enumerate([(1000, -14), (-17, 1001)], 1):
        update(rows.fd, struct.pack("=Iiii", 1, kernel, user, -14), struct.pack("=Q", number))
    assert named(scrape(program), "ebpf_calls_total") == {
        frozenset({("kernel", "[gone]")}): 1,
        frozenset({("kernel", "[lost]"), ("user", "[gone]")}): 2,
    }
