"""Documents and descriptors between parent and child, over a socket pair of this process."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.kernel.channel import Answer, receive, send


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def answer(text: str) -> Answer:
    """A document with this text in it."""
    return {"failure": None, "maps": [], "programs": [], "enums": {text: {"x": 1}}}


@pytest.mark.parametrize("count", [0, 1, 253, 254, 600])
def test_descriptors_arrive_in_order_and_close_on_exec(pair: tuple[socket.socket, socket.socket], count: int) -> None:
    """However many messages they take: each is the file that was sent at its place."""
    files = [os.memfd_create(str(n)) for n in range(count)]
    sender = threading.Thread(target=send, args=(pair[1], answer("y" * 300_000), files))
    sender.start()
    document, arrived = receive(pair[0], deadline=time.monotonic() + 10)
    sender.join()
    assert document == answer("y" * 300_000)
    assert [os.fstat(fd).st_ino for fd in arrived] == [os.fstat(fd).st_ino for fd in files]
    assert not any(os.get_inheritable(fd) for fd in arrived)
    for fd in [*files, *arrived]:
        os.close(fd)


def test_other_side_that_ends_in_the_middle_is_the_end_of_file(pair: tuple[socket.socket, socket.socket]) -> None:
    """Descriptors that had come are closed again."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    pair[1].sendall(b"\x10\0\0\0\x01\0\0\0")
    socket.send_fds(pair[1], [b"\0"], [pair[0].fileno()])
    pair[1].shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        receive(pair[0], deadline=time.monotonic() + 10)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_silence_ends_at_the_deadline(pair: tuple[socket.socket, socket.socket]) -> None:
    """Not later, and as a timeout."""
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        receive(pair[0], deadline=started + 0.1)
    assert 0.05 < time.monotonic() - started < 2


def test_slow_drip_does_not_outlive_the_deadline(pair: tuple[socket.socket, socket.socket]) -> None:
    """Each byte in time is not the whole in time."""
    stop = threading.Event()

    def drip() -> None:
        pair[1].sendall(b"\xff\xff\0\0\0\0\0\0")
        while not stop.wait(0.02):
            pair[1].sendall(b" ")

    thread = threading.Thread(target=drip)
    thread.start()
    with pytest.raises(TimeoutError):
        receive(pair[0], deadline=time.monotonic() + 0.3)
    stop.set()
    thread.join()


def test_absurd_length_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    """A child gone wrong cannot make its parent take gigabytes."""
    pair[1].sendall(b"\xff\xff\xff\xff\0\0\0\0")
    with pytest.raises(EOFError, match="4294967295"):
        receive(pair[0], deadline=time.monotonic() + 10)
