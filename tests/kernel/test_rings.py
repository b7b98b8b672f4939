"""Records out of rings against what the program counted: nothing made vanishes without being counted lost."""

import random
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.errors import KernelError
from exporter.kernel import Collection, MapRequest, ProgramRequest, RingReader
from exporter.kernel._reader import Ring

from .conftest import GETPGID, Compile, Loading, make_calls, own_globals, recursion_misses

BURST = 8
RECORD = struct.Struct("=QI20s")
HEADER = struct.Struct("=QII")


@pytest.fixture
def records(loading: Loading, compile_object: Compile) -> Collection:
    """A program that makes eight records of every ``getpgid`` of this process, and every seventh not quite."""
    return loading(
        "records",
        ProgramRequest("on_syscall", "raw_tp/sys_enter"),
        globals=own_globals(compile_object("records"), syscall=GETPGID),
        maps=(MapRequest("events", clear_value_size=True),),
        read_maps=("events", "others", "tallies"),
    )


@pytest.fixture
def reader() -> Iterator[RingReader]:
    """A reader without rings."""
    reader = RingReader()
    yield reader
    reader.close()


def tallies(collection: Collection) -> tuple[int, int, int]:
    """How many records were made, lost and discarded, as the program counted."""
    (batch,) = collection.maps["tallies"].batches()
    made, lost, discarded = struct.unpack("=3Q", batch.values)
    return made, lost, discarded


def split(framed: bytes) -> list[tuple[int, bytes]]:
    """Positions and data of framed records; the frame must come out even and its padding zero."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(framed):
        position, length, reserved = HEADER.unpack_from(framed, at)
        data = framed[at + HEADER.size :][:length]
        at += HEADER.size + length
        padding = -length % 8
        assert len(data) == length
        assert not any(framed[at : at + padding])
        assert not reserved
        at += padding
        found.append((position, data))
    assert at == len(framed)
    return found


def drain(reader: RingReader, index: int, limit_bytes: int = 1 << 20) -> list[tuple[int, bytes]]:
    """Everything a ring has now."""
    found: list[tuple[int, bytes]] = []
    while framed := reader.read(index, limit_bytes):
        found += split(framed)
    return found


@pytest.mark.matrix("map", "ringbuf")
def test_records_come_whole_in_order_and_once(records: Collection, reader: RingReader) -> None:
    """Numbers, text and positions as the program wrote them; discarded ones are passed over."""
    index = reader.add(records.maps["events"])
    make_calls(10)
    assert reader.wait(5)
    found = drain(reader, index)
    made, lost, discarded = tallies(records)
    assert (made, lost, discarded) == (80, 0, 11)
    numbers = [RECORD.unpack_from(data)[0] for _, data in found]
    assert numbers == [n for n in range(80) if n % 7 != 6]
    comm = Path("/proc/self/comm").read_text().strip().encode()
    assert {RECORD.unpack_from(data)[2].rstrip(b"\0") for _, data in found} == {comm}
    # A record of 32 bytes and its header of 8, discarded ones included.
    assert [position for position, _ in found] == [40 * n for n in numbers]
    assert reader.read(index) == b""
    assert reader.fill_ratio(index) == 0


@pytest.mark.matrix("map", "ringbuf")
@pytest.mark.parametrize("limit_bytes", [1, 47, 48, 100, 1 << 20])
def test_limit_cuts_between_records(records: Collection, reader: RingReader, limit_bytes: int) -> None:
    """Whole records up to the limit, and always at least one."""
    index = reader.add(records.maps["events"])
    make_calls(20)
    total = 0
    while framed := reader.read(index, limit_bytes):
        count = len(split(framed))
        assert count == 1 or len(framed) <= limit_bytes
        total += count
    made, lost, discarded = tallies(records)
    assert total == made - lost - discarded == 160 - 22


@pytest.mark.matrix("map", "ringbuf")
def test_full_ring_loses_exactly_what_the_program_counted(records: Collection, reader: RingReader) -> None:
    """Nobody reads: the ring fills, the rest is lost and counted; what is in it is still good."""
    index = reader.add(records.maps["events"])
    make_calls(1000)
    assert reader.fill_ratio(index) > 0.99
    found = drain(reader, index)
    made, lost, discarded = tallies(records)
    assert made == 8000
    assert lost > 6000
    assert len(found) + lost + discarded == made
    make_calls(1)
    assert len(drain(reader, index)) in (6, 7, 8)


@pytest.mark.matrix("map", "ringbuf")
def test_received_and_lost_are_all_that_was_made_under_load(records: Collection, reader: RingReader) -> None:
    """Four threads make records while one reads, some through a slow patch; the sum comes out to the last."""
    index = reader.add(records.maps["events"])
    stop = threading.Event()
    failures: list[BaseException] = []
    received: list[int] = []
    positions: list[int] = []

    def read() -> None:
        try:
            generator = random.Random(2)
            while True:
                ended = stop.is_set()
                ready = reader.wait(0.05)
                if generator.random() < 0.02:
                    time.sleep(0.02)  # the ring overflows meanwhile
                for position, data in drain(reader, index, 1 << 14) if ready else ():
                    positions.append(position)
                    received.append(RECORD.unpack_from(data)[0])
                if ended and not ready:
                    return
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=read)
    thread.start()

    def make() -> None:
        for _ in range(1000):
            make_calls(15)
            time.sleep(0.0002)  # or the makers would keep the interpreter to themselves

    makers = [threading.Thread(target=make) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    stop.set()
    thread.join(20)
    assert not failures
    assert not thread.is_alive()
    made, lost, discarded = tallies(records)
    assert len(received) + lost + discarded == made
    # Each run makes a burst; a run that the kernel left out may have been of our calls or of anybody's.
    runs, rest = divmod(made, BURST)
    assert rest == 0
    assert runs <= 4 * 15_000 <= runs + recursion_misses(records)
    assert len(received) > 10_000
    assert positions == sorted(set(positions))
    assert positions[-1] > 1 << 16  # the ring went round


@pytest.mark.matrix("map", "ringbuf")
def test_reader_asleep_is_woken_by_the_next_record(records: Collection, reader: RingReader) -> None:
    """After every drain the reader sleeps with the ring empty; no record may fail to wake it."""
    index = reader.add(records.maps["events"])
    for _ in range(300):
        timer = threading.Timer(random.random() / 1000, make_calls, (1,))
        timer.start()
        started = time.monotonic()
        assert reader.wait(5)
        assert time.monotonic() - started < 2
        timer.join()
        assert len(drain(reader, index)) >= 6


@pytest.mark.matrix("map", "ringbuf")
def test_records_that_wake_nobody_are_found_when_the_time_is_over(records: Collection, reader: RingReader) -> None:
    """The program may submit without a wake-up; the wait then ends in time and says that there is something."""
    index = reader.add(records.maps["others"])
    assert not reader.wait(0.01)
    make_calls(3)
    assert reader.wait(0.01)
    assert len(drain(reader, index)) == 3
    assert not reader.wait(0.01)


@pytest.mark.matrix("map", "ringbuf")
def test_several_rings_behind_one_wait_keep_their_records_apart(records: Collection, reader: RingReader) -> None:
    """Each index has its own ring's records; one that is removed is heard no more."""
    events, others = reader.add(records.maps["events"]), reader.add(records.maps["others"])
    assert events != others
    make_calls(7)
    assert reader.wait(1)
    assert {len(data) for _, data in drain(reader, others)} == {8}
    assert {len(data) for _, data in drain(reader, events)} == {32}
    reader.remove(events)
    make_calls(7)
    reader.wait(0.05)
    assert len(drain(reader, others)) == 7
    with pytest.raises(KeyError):
        reader.read(events)
    assert reader.add(records.maps["events"]) not in (events, others)


@pytest.mark.matrix("map", "ringbuf")
def test_records_outlive_the_program_that_made_them(records: Collection, reader: RingReader) -> None:
    """Closing the collection stops the program; what is in the ring can still be read."""
    index = reader.add(records.maps["events"])
    make_calls(2)
    records.close()
    make_calls(2)
    assert len(drain(reader, index)) == 14


def test_map_that_is_no_ring_is_refused(records: Collection, reader: RingReader) -> None:
    """By its name."""
    with pytest.raises(KernelError, match=r"map 'tallies'.*not a ring") as caught:
        reader.add(records.maps["tallies"])
    assert caught.value.code == "kernel.ring"


def test_ring_of_an_impossible_size_is_refused(records: Collection) -> None:
    """Not a power of two, less than a page, larger than it is."""
    fd = records.maps["others"].fd
    for size in (0, 100, 4096 + 8, 1 << 20):
        with pytest.raises(OSError, match=f"mapping a ring buffer of {size} bytes"):
            Ring(fd, size)


def test_closed_ring_is_not_read(records: Collection) -> None:
    """Its pages are gone; that is an exception and no crash."""
    ring = Ring(records.maps["others"].fd, 4096)
    ring.close()
    ring.close()
    with pytest.raises(ValueError, match="closed"):
        ring.read(100)
    with pytest.raises(ValueError, match="closed"):
        ring.used()


def test_waiting_and_reading_release_the_gil(records: Collection, reader: RingReader) -> None:
    """Another thread runs meanwhile, though nobody else gives the GIL away."""
    ticks = 0
    stop = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(30)
    thread = threading.Thread(target=tick)
    try:
        thread.start()
        reader.add(records.maps["others"])
        before = ticks
        reader.wait(0.05)
        assert ticks > before
        make_calls(100)
        ring = Ring(records.maps["events"].fd, 65536)
        before = ticks
        for _ in range(200_000):
            ring.read(1)
            if ticks > before:
                break
        assert ticks > before
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        thread.join()
