"""The ring's consumer against a memory file that plays the kernel, and against a twin in Python."""

import errno
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.kernel._reader import Ring

PAGE = mmap.PAGESIZE
SIZE = PAGE
BUSY, DISCARD = 1 << 31, 1 << 30


class FakeRing:
    """Positions and data of a ring buffer as the kernel lays them out: two pages, then the data twice."""

    def __init__(self, start: int = 0) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * SIZE)
        self.consumer = start
        self.producer = start

    @property
    def consumer(self) -> int:
        """Where the reader is."""
        return int.from_bytes(os.pread(self.fd, 8, 0), "little")

    @consumer.setter
    def consumer(self, position: int) -> None:
        os.pwrite(self.fd, position.to_bytes(8, "little"), 0)

    @property
    def producer(self) -> int:
        """Where the writer is."""
        return int.from_bytes(os.pread(self.fd, 8, PAGE), "little")

    @producer.setter
    def producer(self, position: int) -> None:
        os.pwrite(self.fd, position.to_bytes(8, "little"), PAGE)

    def poke(self, position: int, data: bytes) -> None:
        """Write at a position, in both views of the data."""
        for i, byte in enumerate(data):
            at = (position + i) % SIZE
            os.pwrite(self.fd, bytes([byte]), 2 * PAGE + at)
            os.pwrite(self.fd, bytes([byte]), 2 * PAGE + SIZE + at)

    def produce(self, data: bytes, flags: int = 0) -> int:
        """Reserve and submit (or discard, or leave unfinished) a record, and say where."""
        position = self.producer
        self.poke(position, struct.pack("=II", len(data) | flags, 0) + data)
        self.producer = position + (len(data) + 8 + 7) // 8 * 8
        return position


@dataclass
class Twin:
    """What reading means: take finished records in order, pass over discarded ones, stop at an unfinished one."""

    records: list[tuple[int, bytes, int]]

    def read(self, limit: int) -> bytes:
        framed = b""
        while self.records:
            position, data, flags = self.records[0]
            if flags & BUSY:
                break
            if not flags & DISCARD:
                one = struct.pack("=QII", position, len(data), 0) + data + bytes(-len(data) % 8)
                if framed and len(framed) + len(one) > limit:
                    break
                framed += one
            self.records.pop(0)
        return framed


@pytest.fixture
def fake() -> Iterator[FakeRing]:
    """An empty ring."""
    ring = FakeRing()
    yield ring
    os.close(ring.fd)


def test_unfinished_record_stops_the_reader_until_it_is_finished(fake: FakeRing) -> None:
    """What comes after it waits; nothing is passed over."""
    ring = Ring(fake.fd, SIZE)
    fake.produce(b"first")
    unfinished = fake.produce(b"second", BUSY)
    fake.produce(b"third")
    assert ring.read(1000) == struct.pack("=QII5s3x", 0, 5, 0, b"first")
    assert fake.consumer == unfinished
    assert ring.read(1000) == b""
    assert ring.used() == 32
    fake.poke(unfinished, struct.pack("=I", 6))
    assert ring.read(1000).endswith(b"third\0\0\0")
    assert fake.consumer == fake.producer


def test_discarded_records_give_their_space_back(fake: FakeRing) -> None:
    """Though nothing is returned for them."""
    ring = Ring(fake.fd, SIZE)
    for _ in range(10):
        fake.produce(b"x" * 100, DISCARD)
    assert ring.read(1000) == b""
    assert ring.used() == 0


@pytest.mark.parametrize("start", [0, SIZE - 16, (1 << 32) - 16, (1 << 63) + SIZE - 24])
def test_record_across_the_end_and_positions_beyond_32_bits(start: int) -> None:
    """The data lies twice in a row, and positions only grow."""
    fake = FakeRing(start)
    ring = Ring(fake.fd, SIZE)
    fake.produce(bytes(range(100)))
    assert ring.read(1000) == struct.pack("=QII", start, 100, 0) + bytes(range(100)) + bytes(4)
    assert fake.consumer == start + 112
    os.close(fake.fd)


@pytest.mark.parametrize("length", [SIZE, DISCARD - 1, 17])
def test_header_that_cannot_be_true_is_an_error(fake: FakeRing, length: int) -> None:
    """A record longer than what was produced is not followed out of the ring."""
    ring = Ring(fake.fd, SIZE)
    fake.produce(b"0123456789abcdef")
    fake.poke(0, struct.pack("=I", length))
    with pytest.raises(OSError, match="contradict") as caught:
        ring.read(1000)
    assert caught.value.errno == errno.EBADMSG
    assert fake.consumer == 0


def test_positions_further_apart_than_the_ring_are_an_error(fake: FakeRing) -> None:
    """The producer may not be a whole ring ahead."""
    ring = Ring(fake.fd, SIZE)
    fake.produce(b"x")
    fake.producer = SIZE + 16
    with pytest.raises(OSError, match="contradict"):
        ring.read(1000)


RECORDS = st.lists(
    st.tuples(st.binary(max_size=200), st.sampled_from([0, 0, 0, DISCARD, BUSY])), min_size=1, max_size=12
)


@settings(max_examples=60)
@given(
    start=st.integers(0, 1 << 40).map(lambda n: n * 8),
    batches=st.lists(RECORDS, min_size=1, max_size=4),
    limit=st.integers(0, 600),
)
def test_reader_and_its_twin_agree(start: int, batches: list[list[tuple[bytes, int]]], limit: int) -> None:
    """Whatever is produced, in whatever portions it is read."""
    fake = FakeRing(start)
    try:
        ring = Ring(fake.fd, SIZE)
        twin = Twin([])
        for batch in batches:
            for data, flags in batch:
                if fake.producer - fake.consumer + len(data) + 16 > SIZE:
                    break
                twin.records.append((fake.produce(data, flags), data, flags))
            while True:
                expected = twin.read(limit)
                assert ring.read(limit) == expected
                if not expected:
                    break
            for i, (position, data, flags) in enumerate(twin.records):  # what was unfinished is now submitted
                fake.poke(position, struct.pack("=I", len(data) | flags & ~BUSY))
                twin.records[i] = (position, data, flags & ~BUSY)
    finally:
        os.close(fake.fd)


@settings(max_examples=100)
@given(
    data=st.binary(min_size=64, max_size=512),
    consumer=st.integers(0, 63).map(lambda n: n * 8),
    ahead=st.integers(0, 2 * SIZE),
)
def test_reader_survives_any_bytes(data: bytes, consumer: int, ahead: int) -> None:
    """Whatever the memory holds, reading returns a bounded byte string or raises EBADMSG, and nothing else."""
    fake = FakeRing(consumer)
    try:
        fake.poke(0, data)
        fake.producer = consumer + ahead
        ring = Ring(fake.fd, SIZE)
        for _ in range(200):
            try:
                framed = ring.read(256)
            except OSError as error:
                assert error.errno == errno.EBADMSG
                break
            assert len(framed) <= 2 * SIZE + 16
            if not framed:
                break
    finally:
        os.close(fake.fd)
