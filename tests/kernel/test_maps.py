"""Rows against what was written, for every map type, by batch and by walk, at rest and under churn."""

import ctypes
import gc
import os
import platform
import random
import struct
import sys
import threading
import time
from pathlib import Path

import pytest

from exporter.errors import KernelError
from exporter.kernel import Collection, Map, ProgramRequest, possible_cpus
from exporter.kernel._reader import Rows

from .conftest import Compile, Loading, delete, make_calls, own_globals, update

CPUS = possible_cpus()
HASHES = ("hash", "lru_hash", "percpu_hash", "lru_percpu_hash")
KEYED = (*HASHES, "lpm_trie")
ALL = (*KEYED, "array", "percpu_array", "large", "single", "stack_trace", "queue")


@pytest.fixture
def tables(loading: Loading, compile_object: Compile) -> Collection:
    """One map of each type, empty."""
    globals = own_globals(compile_object("tables"))
    return loading("tables", ProgramRequest("on_syscall", "raw_tp/sys_enter"), globals=globals, read_maps=ALL)


def key(number: int) -> bytes:
    """A key of the tables: for the trie a whole prefix of 32 bits."""
    return struct.pack("=II", 32, number)


def value(map: Map, number: int) -> bytes:
    """A value that tells its row, and in a per-CPU map also its CPU."""
    if map.cpus == 1:
        return struct.pack("=Q", number)
    return b"".join(struct.pack("=QIxxxx", number + cpu, number ^ cpu) for cpu in range(CPUS))


def rows(map: Map, *, chunk_rows: int = 4096, walk: bool = False) -> list[tuple[bytes, bytes]]:
    """Every row as copied bytes."""
    found: list[tuple[bytes, bytes]] = []

    def take(keys: bytes, values: bytes, count: int) -> None:
        size, stride = map.key_size, map.value_stride
        found.extend((keys[i * size :][:size], values[i * stride :][:stride]) for i in range(count))

    if walk:
        reader = Rows(
            map.fd,
            key_size=map.key_size,
            value_stride=map.value_stride,
            max_entries=map.max_entries,
            chunk_rows=chunk_rows,
            walk_only=True,
        )
        reader.start()
        while count := reader.next():
            assert not reader.by_batch
            take(bytes(reader.keys), bytes(reader.values), count)
        return found
    for batch in map.batches(chunk_rows):
        assert len(batch.keys) == batch.count * map.key_size
        assert len(batch.values) == batch.count * batch.value_stride
        take(bytes(batch.keys), bytes(batch.values), batch.count)
    return found


def without_padding(map: Map, text: bytes) -> bytes:
    """Of a per-CPU value the bytes that are the value's: what lies between slots is the kernel's."""
    slot = map.value_stride // map.cpus
    return b"".join(text[i * slot : i * slot + map.value_size] for i in range(map.cpus))


@pytest.mark.matrix("map", "name")
@pytest.mark.parametrize("walk", [False, True], ids=["batch", "walk"])
@pytest.mark.parametrize("name", KEYED)
def test_rows_are_what_was_written(tables: Collection, name: str, walk: bool) -> None:
    """Each key once with its value on every CPU, in chunks of any size."""
    map = tables.maps[name]
    expected = {key(n): without_padding(map, value(map, n)) for n in range(500)}
    for k in expected:
        update(map.fd, k, value(map, struct.unpack("=II", k)[1]))
    for chunk_rows in (4096, 500, 64, 7, 1):
        found = rows(map, chunk_rows=chunk_rows, walk=walk)
        assert len(found) == 500
        assert {k: without_padding(map, v) for k, v in found} == expected


@pytest.mark.matrix("map", "name")
@pytest.mark.parametrize("walk", [False, True], ids=["batch", "walk"])
@pytest.mark.parametrize("name", ["array", "percpu_array"])
def test_array_has_all_its_rows_in_order(tables: Collection, name: str, walk: bool) -> None:
    """Rows never written are zero."""
    map = tables.maps[name]
    for n in (0, 7, 299):
        update(map.fd, struct.pack("=I", n), value(map, n + 1))
    found = rows(map, chunk_rows=128, walk=walk)
    assert [struct.unpack("=I", k)[0] for k, _ in found] == list(range(300))
    for n, (_, v) in enumerate(found):
        expected = value(map, n + 1) if n in (0, 7, 299) else bytes(map.value_stride)
        assert without_padding(map, v) == without_padding(map, expected)


@pytest.mark.matrix("map", "name")
@pytest.mark.parametrize("walk", [False, True], ids=["batch", "walk"])
@pytest.mark.parametrize("name", KEYED)
def test_empty_map_has_no_rows(tables: Collection, name: str, walk: bool) -> None:
    """Nothing was written, nothing is read."""
    assert rows(tables.maps[name], walk=walk) == []


def test_map_of_one_entry_is_read(tables: Collection) -> None:
    """The smallest chunk there can be."""
    map = tables.maps["single"]
    update(map.fd, key(3), value(map, 3))
    assert rows(map) == [(key(3), value(map, 3))]


def test_per_cpu_stride_is_the_value_rounded_up_times_possible_cpus(tables: Collection) -> None:
    """12 bytes take 16 on each possible CPU."""
    map = tables.maps["percpu_hash"]
    update(map.fd, key(1), value(map, 1))
    (batch,) = map.batches()
    assert (map.value_size, batch.value_stride, batch.cpus) == (12, 16 * CPUS, CPUS)
    assert tables.maps["hash"].value_stride == 8


def test_a_hundred_thousand_rows_come_in_chunks(tables: Collection) -> None:
    """All of them, once, quickly, and without growing on the second read."""
    map = tables.maps["large"]
    fill(map, 100_000)
    sizes = [batch.count for batch in map.batches(4096)]
    assert sum(sizes) == 100_000
    assert max(sizes) <= 4096
    assert len(sizes) >= 24
    seen: set[int] = set()
    for batch in map.batches(4096):
        keys = struct.unpack(f"={2 * batch.count}I", batch.keys)[1::2]
        assert struct.unpack(f"={batch.count}Q", batch.values) == keys
        seen.update(keys)
    assert seen == set(range(100_000))


def fill(map: Map, count: int) -> None:
    """Write rows by batch update, of which the value is the key's number."""
    keys = (ctypes.c_uint32 * (2 * count))()
    keys[0::2], keys[1::2] = [32] * count, list(range(count))
    values = (ctypes.c_uint64 * count)(*range(count))
    libc = ctypes.CDLL(None, use_errno=True)
    attr = struct.pack("=QQQQIIQQ", 0, 0, ctypes.addressof(keys), ctypes.addressof(values), count, map.fd, 0, 0)
    number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
    assert libc.syscall(number, 26, ctypes.create_string_buffer(attr), len(attr)) == 0, os.strerror(ctypes.get_errno())


def test_reads_do_not_grow_the_process(tables: Collection) -> None:
    """The buffers of one read are the buffers of the next."""
    map = tables.maps["large"]
    fill(map, 50_000)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    for _ in range(3):
        sum(batch.count for batch in map.batches())
    gc.collect()
    before = resident()
    for _ in range(50):
        sum(batch.count for batch in map.batches())
    assert resident() - before < 64


def test_full_bucket_makes_room_for_itself(tables: Collection) -> None:
    """With room for one row any hash bucket of two is ENOSPC; the reader grows and loses nothing."""
    map = tables.maps["hash"]
    for n in range(1000):
        update(map.fd, key(n), value(map, n))
    reader = Rows(map.fd, key_size=8, value_stride=8, max_entries=1000, chunk_rows=1)
    assert len(reader.keys) == 8
    reader.start()
    seen: list[bytes] = []
    while count := reader.next():
        assert reader.by_batch
        seen += [bytes(reader.keys[i * 8 : (i + 1) * 8]) for i in range(count)]
    assert sorted(seen) == sorted(key(n) for n in range(1000))
    assert len(reader.keys) > 8


@pytest.mark.matrix("map", "name")
@pytest.mark.parametrize("walk", [False, True], ids=["batch", "walk"])
@pytest.mark.parametrize("name", HASHES)
def test_churn_neither_repeats_nor_loses_rows(tables: Collection, name: str, walk: bool) -> None:
    """While a thread deletes and writes other rows, those that stay are read once each, every time."""
    map = tables.maps[name]
    stay = {key(n) for n in range(200)}
    for k in stay:
        update(map.fd, k, value(map, 1))
    stop = threading.Event()
    generator = random.Random(1)
    # An LRU map evicts when its free lists run dry: few enough rows that it has no need to.
    passing = range(1000, 1100)

    written = 0

    def churn() -> None:
        nonlocal written
        while not stop.is_set():
            written += 1
            k = key(generator.choice(passing))
            update(map.fd, k, value(map, 2))
            if generator.random() < 0.7:
                delete(map.fd, k)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        begin = time.monotonic()
        reads = 0
        # An emulated processor needs its time.
        while time.monotonic() < begin + 0.5 or ((reads <= 10 or written <= 100) and time.monotonic() < begin + 60):
            reads += 1
            found = [k for k, _ in rows(map, chunk_rows=32, walk=walk)]
            assert len(found) == len(set(found))
            assert stay <= set(found)
    finally:
        stop.set()
        thread.join()
    assert written > 100
    assert reads > 10


def test_walk_ends_though_the_map_never_stands_still(tables: Collection) -> None:
    """Every key it stands on is deleted under it; it restarts, passes over what it knows, and ends."""
    map = tables.maps["hash"]
    for n in range(300):
        update(map.fd, key(n), value(map, n))
    reader = Rows(map.fd, key_size=8, value_stride=8, max_entries=1000, chunk_rows=1, walk_only=True)
    reader.start()
    seen: list[bytes] = []
    while reader.next():
        seen.append(bytes(reader.keys))
        delete(map.fd, seen[-1])
        if len(seen) % 2:
            update(map.fd, seen[-1], value(map, 0))
        assert len(seen) < 2000
    assert len(seen) == len(set(seen)) == 300


@pytest.mark.matrix("map", "stack_trace")
def test_stack_traces_are_read(tables: Collection) -> None:
    """By batch or by walk, whichever this kernel has for them."""
    make_calls(10)
    found = rows(tables.maps["stack_trace"])
    assert found
    assert all(len(v) == 8 * 16 and any(v) for _, v in found)


def test_refused_batch_turns_into_a_walk_for_good(tables: Collection) -> None:
    """A queue has neither: the refusal of its batch makes the reader walk, now and at every later read."""
    reader = Rows(tables.maps["queue"].fd, key_size=4, value_stride=8, max_entries=8, chunk_rows=8)
    modes: list[bool] = []
    for _ in range(2):
        reader.start()
        modes.append(reader.by_batch)
        with pytest.raises(OSError, match="key by key"):
            reader.next()
        modes.append(reader.by_batch)
    assert modes == [True, False, False, False]


def test_map_without_rows_is_refused_by_name(tables: Collection) -> None:
    """A queue would be emptied by reading it."""
    with pytest.raises(KernelError, match=r"map 'queue'.*no rows") as caught:
        next(tables.maps["queue"].batches())
    assert caught.value.code == "kernel.map_type"


def test_reading_releases_the_gil(tables: Collection) -> None:
    """Another thread runs while rows are copied: a counter in Python goes on during a long read."""
    map = tables.maps["large"]
    fill(map, 100_000)
    stop = threading.Event()
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(30)  # nobody gives the GIL away but who releases it
    thread = threading.Thread(target=tick)
    try:
        thread.start()
        before = ticks
        for _ in range(20):
            assert sum(batch.count for batch in map.batches()) == 100_000
        assert ticks > before
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        thread.join()


def test_map_closed_during_a_read_ends_it_with_an_error(tables: Collection) -> None:
    """Never with the rows of whatever got the descriptor next."""
    map = tables.maps["hash"]
    for n in range(1000):
        update(map.fd, key(n), value(map, n))
    batches = map.batches(64)
    next(batches)
    map.close()
    with pytest.raises(KernelError, match="closed"):
        next(batches)
    with pytest.raises(KernelError, match="closed"):
        next(map.batches())
