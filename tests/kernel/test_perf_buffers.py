"""Perf event arrays and queues against what the program counted: every CPU's buffer, its losses, CPUs that come."""

import contextlib
import errno
import os
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from exporter.errors import KernelError
from exporter.kernel import Collection, MapRequest, ProgramRequest, RingReader, rings
from exporter.kernel._reader import PerfBuffer
from exporter.kernel.rings import PERF_BUFFER_BYTES, online_cpus

from .conftest import GETPGID, Compile, Loading, make_calls, own_globals, recursion_misses
from .test_rings import drain

RECORD = struct.Struct("=QI20s")


@pytest.fixture
def records(loading: Loading, compile_object: Compile) -> Collection:
    """A program that tells of every ``getpgid`` of this process."""
    return loading(
        "perf",
        ProgramRequest("on_syscall", "raw_tp/sys_enter"),
        globals=own_globals(compile_object("perf"), syscall=GETPGID),
        maps=(MapRequest("events", clear_value_size=True),),
        read_maps=("events", "waiting", "piled", "tallies"),
    )


@pytest.fixture
def reader() -> Iterator[RingReader]:
    """A reader without maps."""
    reader = RingReader()
    yield reader
    reader.close()


def tallies(collection: Collection) -> tuple[int, int, int]:
    """How many records were made, lost by the buffer, and not taken by the queue, as the program counted."""
    (batch,) = collection.maps["tallies"].batches()
    made, lost, full = struct.unpack("=3Q", batch.values)
    return made, lost, full


@contextlib.contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """Run this thread on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def numbers(found: list[tuple[int, bytes]]) -> list[int]:
    """Of records: which they are. The buffer rounds their length up to eight bytes less four."""
    return [RECORD.unpack_from(data)[0] for _, data in found]


@pytest.mark.matrix("map", "perf_event_array")
def test_records_of_every_cpu_come_whole_and_once(records: Collection, reader: RingReader) -> None:
    """In order for each CPU, with the bytes the program wrote."""
    index = reader.add(records.maps["events"])
    assert reader.lost(index) == 0
    for cpu in sorted(os.sched_getaffinity(0)):
        with on_cpu(cpu):
            make_calls(10)
    assert reader.wait(5)
    found = drain(reader, index)
    made, lost, _ = tallies(records)
    assert (sorted(numbers(found)), lost) == (list(range(made)), 0)
    assert made == 10 * len(os.sched_getaffinity(0))
    assert {RECORD.unpack_from(data)[1] for _, data in found} == os.sched_getaffinity(0)
    assert all(len(data) in (32, 36) for _, data in found)
    assert reader.read(index) == b""
    assert reader.fill_ratio(index) == 0


@pytest.mark.matrix("map", "perf_event_array")
def test_full_buffer_loses_exactly_what_the_kernel_says(records: Collection, reader: RingReader) -> None:
    """Nobody reads: the rest is lost, told of, and what is there is still good; records wrap around the end."""
    index = reader.add(records.maps["events"])
    for turn in range(2):
        with on_cpu(min(os.sched_getaffinity(0))):
            make_calls(PERF_BUFFER_BYTES // 40)
        assert reader.fill_ratio(index) > 0.99
        found = drain(reader, index)
        make_calls(1)  # before 6.0 the loss is told with the next record that fits
        found += drain(reader, index)
        _, lost, _ = tallies(records)
        assert lost > 500 * turn
        assert reader.lost(index) == lost
        assert len(set(numbers(found))) == len(found)


@pytest.mark.matrix("map", "perf_event_array")
def test_received_and_lost_are_all_that_was_made_under_load(records: Collection, reader: RingReader) -> None:
    """Makers on all CPUs, a reader that is late now and then; the sum comes out to the last."""
    index = reader.add(records.maps["events"])
    received: list[int] = []
    stop = threading.Event()

    def make() -> None:
        for _ in range(400):
            make_calls(50)
            time.sleep(0.0002)

    def read() -> None:
        while True:
            ended = stop.is_set()
            ready = reader.wait(0.05)
            found = drain(reader, index, 1 << 13)
            received.extend(numbers(found))
            if len(received) % 7 == 0:
                time.sleep(0.1)  # the buffers overflow meanwhile
            if ended and not ready and not found:
                return

    reading = threading.Thread(target=read)
    reading.start()
    makers = [threading.Thread(target=make) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    stop.set()
    reading.join(30)
    assert not reading.is_alive()
    make_calls(1)
    received += numbers(drain(reader, index))
    made, lost, _ = tallies(records)
    assert made <= 4 * 400 * 50 + 1 <= made + recursion_misses(records)
    assert len(received) + lost == made
    assert len(set(received)) == len(received)
    assert reader.lost(index) == lost


@pytest.mark.matrix("map", "perf_event_array")
def test_few_records_are_found_when_the_time_is_over(records: Collection, reader: RingReader) -> None:
    """A buffer wakes by its fill, not by each record."""
    index = reader.add(records.maps["events"])
    make_calls(1)
    assert reader.wait(0.05)
    assert len(drain(reader, index)) == 1
    assert not reader.wait(0.01)


@pytest.mark.matrix("map", "perf_event_array")
def test_reader_asleep_is_woken_by_many_records(records: Collection, reader: RingReader) -> None:
    """Long before the time is over."""
    index = reader.add(records.maps["events"])
    timer = threading.Timer(0.1, make_calls, (1000,))
    timer.start()
    started = time.monotonic()
    assert reader.wait(20)
    assert time.monotonic() - started < 10
    timer.join()
    assert len(drain(reader, index)) == 1000


@pytest.mark.matrix("map", "perf_event_array")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_cpu_that_comes_online_gets_a_buffer_and_one_that_returns_a_new_one(records: Collection) -> None:
    """Without one its records go nowhere, as the program sees."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    online = [first]
    reader = RingReader(lambda: online)
    index = reader.add(records.maps["events"])
    with on_cpu(second):
        make_calls(3)
    assert tallies(records)[:2] == (3, 3)

    def settle(*cpus: int) -> None:
        online[:] = cpus
        reader._followed_s = 0.0
        reader.wait(0.01)

    settle(first, second)
    with on_cpu(second):
        make_calls(4)
    settle(first)
    settle(first, second)
    with on_cpu(second):
        make_calls(2000)
    assert reader.wait(5)
    assert sorted(numbers(drain(reader, index))) == list(range(3, 2007))
    assert tallies(records)[:2] == (2007, 3)
    reader.close()


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EPERM])
def test_cpu_that_is_just_leaving_is_tried_again_and_a_refusal_is_told(
    records: Collection, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Only the kernel's "no such device" means the first; a CPU without a buffer would lose its records untold."""
    cpus = sorted(os.sched_getaffinity(0))

    def opened(map_fd: int, cpu: int, size: int, watermark: int) -> PerfBuffer:
        if cpu == cpus[-1]:
            raise OSError(number, "opening")
        return PerfBuffer(map_fd, cpu, size, watermark)

    reader = RingReader()
    with monkeypatch.context() as patch:
        patch.setattr(rings, "PerfBuffer", opened)
        if number != errno.ENODEV:
            with pytest.raises(KernelError, match="CAP_IPC_LOCK"):
                reader.add(records.maps["events"])
            return
        index = reader.add(records.maps["events"])
    reader._followed_s = 0.0
    reader.wait(0.01)
    with on_cpu(cpus[-1]):
        make_calls(2)
    assert len(drain(reader, index)) == 2
    reader.close()


@pytest.mark.matrix("map", "perf_event_array")
def test_entries_outlive_the_descriptor_they_were_made_through(records: Collection, reader: RingReader) -> None:
    """The array forgets its buffers when the last descriptor of its file is closed; the reader keeps one."""
    index = reader.add(records.maps["events"])
    os.close(os.dup(records.maps["events"].fd))
    records.maps["events"].close()
    make_calls(5)
    assert len(drain(reader, index)) == 5


@pytest.mark.matrix("map", "queue stack")
def test_queue_and_stack_are_emptied_in_their_order(records: Collection, reader: RingReader) -> None:
    """Oldest first and newest first; what did not fit the program counts."""
    queue, stack = reader.add(records.maps["waiting"]), reader.add(records.maps["piled"])
    make_calls(120)
    assert reader.wait(0.5)
    assert numbers(drain(reader, queue, 100)) == list(range(100))
    assert [struct.unpack("=Q", data)[0] for _, data in drain(reader, stack)] == list(range(99, -1, -1))
    assert tallies(records)[2] == 20
    assert reader.read(queue) == b""
    assert reader.lost(queue) is None
    make_calls(1)
    assert numbers(drain(reader, queue)) == [120]


def test_online_cpus_are_those_the_kernel_names() -> None:
    """At least where this process may run."""
    assert os.sched_getaffinity(0) <= set(online_cpus())


def test_map_that_cannot_be_read_as_records_is_refused(records: Collection, reader: RingReader) -> None:
    """By its name."""
    with pytest.raises(KernelError, match=r"map 'tallies'.*not a ring"):
        reader.add(records.maps["tallies"])
