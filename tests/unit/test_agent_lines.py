"""Events as JSON lines: whole ones, in files of a bounded size, and every record accounted for."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.agent.events import Ledger, LineAccount, Parcel
from exporter.agent.lines import LineWriter, RotatedFile, Stdout, open_target
from exporter.config import JsonEventsConfig
from exporter.model import Scope

NEVER = threading.Event()


def parcel(lines: list[bytes], *, decides: bool = True) -> Parcel:
    """Lines that travel together."""
    return Parcel("dns", "dns.query", Scope("dns"), len(lines), b"".join(lines), decides)


def account_of(*parcels: Parcel) -> tuple[LineAccount, Ledger]:
    """An account with these waiting, entered in a ledger."""
    account, ledger = LineAccount(), Ledger()
    for one in parcels:
        ledger.receive(one.image, one.stream, queued=one.records)
        assert account.queue.put(one)
    return account, ledger


@given(
    lines=st.lists(st.integers(1, 90), min_size=1, max_size=40),
    cuts=st.lists(st.integers(1, 10), min_size=1, max_size=10),
    keep=st.integers(0, 4),
)
@settings(max_examples=60)
def test_files_hold_the_newest_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[int], cuts: list[int], keep: int
) -> None:
    """However they come: in order, none torn, none twice, none missing but the oldest, no file above its size."""
    path = tmp_path_factory.mktemp("lines") / "e.jsonl"
    file = RotatedFile(str(path), max_size=100, keep=keep)
    texts = [f"{number}:".encode().ljust(length, b"x") + b"\n" for number, length in enumerate(lines)]
    rest, turn = texts[:], 0
    while rest:
        count = cuts[turn % len(cuts)]
        body = b"".join(rest[:count])
        assert file.write(memoryview(body), NEVER) == len(body)
        rest, turn = rest[count:], turn + 1
    file.close()
    files = [*(path.with_name(f"e.jsonl.{number}") for number in range(9, 0, -1)), path]
    there = [one for one in files if one.exists()]
    assert len(there) <= keep + 1
    held = b"".join(one.read_bytes() for one in there)
    assert b"".join(texts).endswith(held)
    assert held.startswith(b"".join(texts)[len(b"".join(texts)) - len(held) :][:1])
    assert all(one.stat().st_size <= 100 for one in there)
    assert len(there) == keep + 1 or held == b"".join(texts)


def test_line_larger_than_a_file_has_one_of_its_own(tmp_path: Path) -> None:
    """It is not torn."""
    path = tmp_path / "e.jsonl"
    file = RotatedFile(str(path), max_size=10, keep=5)
    body = b"a\n" + b"b" * 50 + b"\nc\n"
    assert file.write(memoryview(body), NEVER) == len(body)
    file.close()
    assert [one.read_bytes() for one in (path.with_name("e.jsonl.2"), path.with_name("e.jsonl.1"), path)] == [
        b"a\n", b"b" * 50 + b"\n", b"c\n",
    ]  # fmt: skip


def test_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could be written of it is cut off again, and it is written whole when there is room."""
    path = tmp_path / "e.jsonl"
    file = RotatedFile(str(path), max_size=1000, keep=1)
    file.write(memoryview(b"one\n"), NEVER)
    real_write, room = os.write, 2

    def write(fd: int, data: memoryview) -> int:
        if room == 0:
            raise OSError(28, "No space left on device")
        return real_write(fd, data[:room])

    def fill(fd: int, data: memoryview) -> int:
        nonlocal room
        written = write(fd, data)
        room = 0
        return written

    monkeypatch.setattr("exporter.agent.lines.os.write", fill)
    with pytest.raises(OSError, match="No space"):
        file.write(memoryview(b"two\n"), NEVER)
    assert path.read_bytes() == b"one\n"
    monkeypatch.setattr("exporter.agent.lines.os.write", real_write)
    file.write(memoryview(b"two\n"), NEVER)
    assert path.read_bytes() == b"one\ntwo\n"
    file.close()


@pytest.mark.parametrize("decides", [True, False])
def test_writer_settles_what_it_writes(tmp_path: Path, decides: bool) -> None:
    """In the ledger only where nobody else does."""
    account, ledger = account_of(parcel([b"a\n", b"b\n"], decides=decides), parcel([b"c\n"], decides=decides))
    writer = LineWriter(RotatedFile(str(tmp_path / "e"), 1000, 1), account, ledger)
    writer.flush(5)
    writer.close()
    assert (tmp_path / "e").read_bytes() == b"a\nb\nc\n"
    assert account.counts() == {"written": 3, "dropped": 0}
    [count] = ledger.counts()
    assert (count.exported, count.queued) == ((3, 0) if decides else (0, 3))


def test_what_cannot_be_written_at_the_end_is_dropped_and_counted(tmp_path: Path) -> None:
    """The end comes all the same."""
    account, ledger = account_of(parcel([b"a\n", b"b\n"]))
    writer = LineWriter(RotatedFile(str(tmp_path / "no" / "e"), 1000, 1), account, ledger)
    began_s = time.monotonic()
    writer.flush(0.3)
    assert time.monotonic() - began_s < 3
    assert account.counts() == {"written": 0, "dropped": 2}
    [count] = ledger.counts()
    assert (count.queued, dict(count.dropped)) == (0, {"shutdown": 2})


def test_stdout_that_nobody_reads_ends_with_its_stop() -> None:
    """What was taken is told to the byte."""
    read_end, write_end = os.pipe()
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    written = Stdout(write_end).write(memoryview(bytes(1 << 20)), stop)
    assert 4096 <= written < 1 << 20
    os.close(write_end)
    data = b""
    while part := os.read(read_end, 1 << 20):
        data += part
    os.close(read_end)
    assert len(data) == written


def test_target_is_what_the_configuration_says() -> None:
    """A file, stdout, or nowhere."""
    assert open_target(JsonEventsConfig()) is None
    assert isinstance(open_target(JsonEventsConfig(stdout=True)), Stdout)
    file = open_target(JsonEventsConfig(path="/a/b"))
    assert file is not None
    assert file.name == "/a/b"
