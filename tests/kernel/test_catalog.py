"""The shipped programs count exactly what happened; a referee that shares no code with them agrees."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import mmap
import os
import signal
import socket
import struct
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from exporter.bpf import read_object
from exporter.cli.build import Built, build
from exporter.cli.clang import Clang, Source
from tests.support import workload
from tests.support.libbpf import Loaded, can_load, loaded, settled

pytestmark = pytest.mark.skipif(not can_load(), reason="needs root and a kernel with BTF")

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "configs" / "catalog"
PROGRAMS = ROOT / "tests" / "programs"
IMAGES = sorted(path.parent.name for path in CATALOG.glob("*/*.bpf.c"))
needs_cgroup2 = pytest.mark.skipif(workload.cgroup2_root() is None, reason="no cgroup2 hierarchy may be written here")
needs_loop = pytest.mark.skipif(not workload.loop_available(), reason="this kernel has no loop devices")


@functools.cache
def built(path: Path, *cflags: str) -> Built:
    """A source, built once for all tests."""
    return build(Clang(), Source(path, cflags=cflags), {}, warn=print)


def shipped(name: str, *cflags: str) -> bytes:
    """The object of a shipped image for this machine."""
    image = built(CATALOG / name / f"{name}.bpf.c", *cflags)
    return image.objects[image.primary]


def smaller(name: str, folder: Path, *replaced: str) -> bytes:
    """A shipped image's object, compiled anew with a text of its source (a map's size) replaced by another."""
    old, new = replaced
    for path in (*CATALOG.glob("*.h"), *(CATALOG / name).glob("*.c")):
        copy = folder / path.relative_to(CATALOG)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(path.read_text().replace(old, new) if path.suffix == ".c" else path.read_text())
    return Clang().compile(Source(folder / name / f"{name}.bpf.c", include_dirs=(ROOT / "_native",)), "amd64")


@functools.cache
def referee() -> bytes:
    """The referee's object. It exports nothing, so it is compiled and not planned."""
    clang = Clang()
    return clang.compile(Source(PROGRAMS / "referee.bpf.c", include_dirs=(ROOT / "_native",)), "amd64")


@functools.cache
def trampolines_refused() -> bool:
    """Whether this kernel refuses fentry and fexit to everybody, as one that is locked down does."""
    try:
        with loaded(shipped("capability-checks"), programs=("on_check",)):
            return False
    except AssertionError as error:
        assert "Operation not permitted" in str(error) or "-EPERM" in str(error), error
        return True


def why_not_here(name: str) -> str:
    """Why the agent cannot run an image on this kernel, as it is; empty if it can."""
    if name == "nfs-operations" and not workload.sunrpc_available():
        return "needs the module sunrpc (CONFIG_SUNRPC) and its types (first in 5.11)"
    if name == "capability-checks" and trampolines_refused() and workload.kernel_version() < (6, 14):
        return "this kernel's lockdown refuses trampolines, and it has no tracepoint cap_capable (first in 6.14)"
    return ""


def programs_here(name: str) -> tuple[str, ...]:
    """Of an image with alternatives the programs to load here, as the agent chooses; none: all without "?"."""
    if reason := why_not_here(name):
        pytest.skip(reason)
    return ("on_check_traced",) if name == "capability-checks" and trampolines_refused() else ()


def observed(rows: dict[tuple[int, ...], dict[str, int]], *keys: tuple[int, ...]) -> int:
    """How many values the histograms under some keys (or all) hold."""
    chosen = [rows[key] for key in keys if key in rows] if keys else rows.values()
    return sum(number for row in chosen for name, number in row.items() if name.startswith("slots["))


@pytest.mark.parametrize("name", IMAGES)
def test_shipped_program_loads_and_attaches_here(name: str) -> None:
    """Every program of every shipped image, with its ``const volatile`` switches as they are."""
    chosen = programs_here(name)
    with loaded(shipped(name), programs=chosen) as program:
        by_themselves = {spec.name for spec in program.spec.programs if not spec.section.startswith("?")}
        assert set(program.programs) == (set(chosen) or by_themselves)


@pytest.mark.parametrize(
    ("name", "switch"),
    [
        ("active-connections", "by_cgroup"),
        ("capability-checks", "by_cgroup"),
        ("file-opens", "by_cgroup"),
        ("file-opens", "events_enabled"),
        ("process-exits", "by_cgroup"),
        ("runqueue-latency", "by_cgroup"),
        ("tcp-connect-latency", "by_cgroup"),
        ("tcp-connect-latency", "by_port"),
        ("tcp-connects", "by_cgroup"),
        ("tcp-retransmits", "by_cgroup"),
        ("tcp-retransmits", "events_enabled"),
        ("tcp-states", "events_enabled"),
    ],
)
def test_shipped_program_loads_with_its_switch_on(name: str, switch: str) -> None:
    """What a switch turns on is dead code to the verifier while it is off."""
    with loaded(shipped(name), {switch: 1}, programs_here(name)) as program:
        assert program.programs


@pytest.mark.parametrize("name", IMAGES)
def test_shipped_program_attaches_only_where_bpf_and_perfmon_suffice(name: str) -> None:
    """raw_tp, tp_btf and fexit need neither tracefs nor perf events, whatever perf_event_paranoid is."""
    sections = [spec.section for spec in read_object(shipped(name)).programs]
    assert {section.removeprefix("?").split("/")[0] for section in sections} <= {"raw_tp", "tp_btf", "fexit"}


# -- process-exits -------------------------------------------------------------------------

ENDINGS = """
import os, signal, time
exits = [("exit", 0)] * 20 + [("exit", 3)] * 50 + [("exit", 255)] * 7
kills = [("kill", signal.SIGTERM)] * 30 + [("kill", signal.SIGKILL)] * 5
for ending in exits + kills:
    child = os.fork()
    if child == 0:
        if ending[0] == "exit":
            os._exit(ending[1])
        while True:
            time.sleep(60)
    if ending[0] == "kill":
        os.kill(child, ending[1])
    os.waitpid(child, 0)
"""
EXITED, KILLED = 0, 1


@needs_cgroup2
def test_process_exits_are_counted_by_status_to_the_last() -> None:
    """50 end with code 3, 30 by SIGTERM, and so on; their parent's own end is the 21st success."""
    with (
        workload.control_group("skep-exits") as (group, group_id),
        loaded(shipped("process-exits"), {"by_cgroup": 1}) as program,
    ):
        workload.run_in_group(group, ENDINGS)
        rows = {key[:3]: row[""] for key, row in program.rows("exits").items() if key[3] == group_id}
        events = Counter(
            (record["end.reason"], record["end.code"], record["end.signal"])
            for record in program.records("events")
            if record["end.group"] == group_id
        )
    expected = {
        (EXITED, 0, 0): 21,
        (EXITED, 3, 0): 50,
        (EXITED, 255, 0): 7,
        (KILLED, -1, signal.SIGTERM): 30,
        (KILLED, -1, signal.SIGKILL): 5,
    }
    assert rows == expected
    del expected[EXITED, 0, 0]
    assert events == expected, "an event for each failure and signal, none for a success"


@needs_cgroup2
def test_process_whose_threads_end_together_is_counted_once(tmp_path: Path) -> None:
    """Several threads may each find themselves the last (before 6.16); wait() says how many processes there were."""
    race = tmp_path / "exit_race"
    subprocess.run(["gcc", "-O1", "-pthread", "-o", race, PROGRAMS / "exit_race.c"], check=True, timeout=60)
    code = f"os.execv({str(race)!r}, ['exit_race', '400', '7'])"
    with (
        workload.control_group("skep-race") as (group, group_id),
        loaded(shipped("process-exits"), {"by_cgroup": 1}) as program,
        workload.busy_cpus(),
    ):
        waited = int(workload.run_in_group(group, code))
        rows = {key[:3]: row[""] for key, row in program.rows("exits").items() if key[3] == group_id}
        skipped = program.skipped()
    assert waited == 400
    counted = rows.pop((EXITED, 7, 0))
    assert rows == {(EXITED, 0, 0): 1}
    # A thread that is preempted inside the program keeps others on its CPU from running it: the kernel says how often.
    assert counted <= waited <= counted + skipped


@needs_cgroup2
def test_process_exits_beyond_the_map_take_the_place_of_the_oldest(tmp_path: Path) -> None:
    """A full map goes on counting what is new: codes x groups are unbounded over a host's life."""
    with (
        workload.control_group("skep-full") as (group, group_id),
        loaded(smaller("process-exits", tmp_path, "8192", "4"), {"by_cgroup": 1}) as program,
    ):
        workload.run_in_group(group, "for code in range(100, 120):\n    os.fork() or os._exit(code)\n    os.wait()\n")
        rows = {key[1]: row[""] for key, row in program.rows("exits").items() if key[3] == group_id}
        missed = program.total("missed")
    assert rows.get(119) == 1 or rows.get(0) == 1
    assert 100 not in rows
    assert missed == 0


@needs_cgroup2
def test_events_beyond_the_kernel_limit_are_counted_as_lost() -> None:
    """Nothing vanishes: delivered and lost events together are all failures of the group."""
    with (
        workload.control_group("skep-rate") as (group, _),
        loaded(shipped("process-exits"), {"by_cgroup": 1, "events_per_cpu_s": 5}) as program,
    ):
        workload.run_in_group(group, "for i in range(300):\n    os.fork() or os._exit(9)\n    os.wait()\n")
        # Others on this machine may fail meanwhile: take both sides of the sum from one quiet moment.
        failures, lost = settled(
            lambda: (
                sum(row[""] for key, row in program.rows("exits").items() if key[1] or key[2]),
                program.total("events_lost"),
            )
        )
        delivered = len(program.records("events"))
        if program.total("events_lost") != lost:
            pytest.skip("another process failed just now")
    assert failures >= 300
    assert lost > 0
    assert delivered + lost == failures


# -- syscalls ------------------------------------------------------------------------------

SCHED_GET_PRIORITY_MAX = {"x86_64": 146, "aarch64": 125}
needs_number = pytest.mark.skipif(os.uname().machine not in SCHED_GET_PRIORITY_MAX, reason="call number not known here")


@needs_number
def test_system_calls_are_counted_to_the_last() -> None:
    """A call that nobody else makes: 20,000 succeed, 700 fail with EINVAL, in two threads."""
    number = SCHED_GET_PRIORITY_MAX[os.uname().machine]
    call = ctypes.CDLL(None, use_errno=True).syscall
    with (
        loaded(shipped("syscalls")) as program,
        loaded(referee(), {"only_tgid": os.getpid()}, ("on_enter", "on_begin", "on_return")) as judge,
    ):
        before = program.rows("calls")[number,][""]
        failed_before = program.rows("failures").get((number, 22), {"": 0})[""]
        for _ in range(20_000):
            call(number, 0)
        for _ in range(700):
            call(number, 99)
        counted = program.rows("calls")[number,][""] - before
        failed = program.rows("failures")[number, 22][""] - failed_before
        assert counted == 20_700
        assert failed == 700
        assert judge.rows("calls")[number,][""] == counted
        assert judge.rows("errors")[number << 32 | 22,][""] == failed


def static_elf(code: bytes, *, machine: int) -> bytes:
    """A 32-bit executable that is nothing but this code."""
    base, header = 0x10000, 52 + 32
    size = header + len(code)
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    elf = struct.pack("<16sHHIIIIIHHHHHH", ident, 2, machine, 1, base + header, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    return elf + struct.pack("<IIIIIIII", 1, 0, base, base, size, size, 5, 0x1000) + code


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the program is x86 code")
def test_calls_of_32_bit_processes_are_not_taken_for_64_bit_ones(tmp_path: Path) -> None:
    """Number 147 is getsid in one table and sched_get_priority_min in the other."""
    path = tmp_path / "calls32"
    # mov esi,1000; again: mov eax,147; xor ebx,ebx; int 0x80; dec esi; jnz again; mov eax,1; xor ebx,ebx; int 0x80
    code = bytes.fromhex("bee8030000 b893000000 31db cd80 4e 75f4 b801000000 31db cd80")
    path.write_bytes(static_elf(code, machine=3))
    path.chmod(0o755)
    try:
        subprocess.run([path], check=True, timeout=10)
    except OSError:
        pytest.skip("this kernel does not run 32-bit programs")
    with loaded(shipped("syscalls")) as program:
        before, other_before = program.rows("calls")[147,][""], program.total("other_calls")
        subprocess.run([path], check=True, timeout=10)
        assert program.rows("calls")[147,][""] == before
        assert program.total("other_calls") - other_before == 1001


def test_call_that_a_signal_interrupts_counts_as_eintr() -> None:
    """The kernel's inner numbers (ERESTARTSYS, 512) are shown to nobody."""
    with loaded(shipped("syscalls")) as program:
        os.fork() or _interrupted_child()
        os.wait()
        errors = {key[1] for key in program.rows("failures")}
        assert 4 in errors
        assert max(errors) < 512, errors


def _interrupted_child() -> None:
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    reader, _writer = os.pipe()
    end = time.monotonic() + 0.3
    signal.siginterrupt(signal.SIGALRM, True)
    while time.monotonic() < end:
        # Through libc: Python itself would retry and never show the error.
        ctypes.CDLL(None).read(reader, ctypes.create_string_buffer(1), 1)
    os._exit(0)


# -- tcp-states ----------------------------------------------------------------------------

CONNECTIONS = """
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    listener = socket.socket(family)
    listener.bind((address, 0))
    listener.listen(8)
    for _ in range(100):
        client = socket.create_connection(listener.getsockname()[:2])
        server = listener.accept()[0]
        client.close()
        assert server.recv(1) == b""
        server.close()
    listener.close()
"""
ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE, CLOSE_WAIT, LAST_ACK, LISTEN = 1, 2, 3, 4, 5, 7, 8, 9, 10


def test_tcp_state_changes_agree_with_the_referee_and_the_connections_made() -> None:
    """100 connections of each family in a network of their own go through known states."""
    with (
        loaded(shipped("tcp-states"), {"events_enabled": 1, "events_per_cpu_s": 0}) as program,
        loaded(referee(), programs=("on_change",)) as judge,
    ):

        def both() -> tuple[dict[tuple[int, ...], int], dict[tuple[int, ...], int]]:
            first, second = program.rows("changes"), judge.rows("changes")
            return {key: row[""] for key, row in first.items()}, {key: row[""] for key, row in second.items()}

        start, judged_start = settled(both)
        workload.run_in_new_network(CONNECTIONS)
        end, judged_end = settled(both)
        counted, judged = Counter(end), Counter(judged_end)
        counted.subtract(start)
        judged.subtract(judged_start)
        records = program.records("events")
        assert program.total("missed") == program.total("events_lost") == 0
    assert +counted == +judged
    for family in (socket.AF_INET, socket.AF_INET6):
        for change in [
            (CLOSE, SYN_SENT), (SYN_SENT, ESTABLISHED), (LISTEN, SYN_RECV), (SYN_RECV, ESTABLISHED),
            (ESTABLISHED, FIN_WAIT1), (ESTABLISHED, CLOSE_WAIT), (CLOSE_WAIT, LAST_ACK), (LAST_ACK, CLOSE),
        ]:  # fmt: skip
            assert counted[*change, family] >= 100, (change, family)
        assert counted[CLOSE, LISTEN, family] >= 1
    assert len(records) == sum(end.values())


def test_tcp_event_names_both_ends_of_the_connection() -> None:
    """Ports in the order each is kept, an IPv4 address mapped into IPv6."""
    with loaded(shipped("tcp-states"), {"events_enabled": 1}) as program:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port)) as client:
                own_port = client.getsockname()[1]
        seen = [record for record in program.records("events") if record["ends.local_port"] == own_port]
    connected = next(record for record in seen if record["change.new_state"] == ESTABLISHED)
    assert socket.ntohs(connected["ends.remote_port"]) == port
    assert connected["ends.remote_address"].to_bytes(16, "little") == bytes(10) + b"\xff\xff\x7f\x00\x00\x01"


def test_tcp_events_are_not_made_unless_asked_for() -> None:
    """The event is off by default, in the kernel already."""
    with loaded(shipped("tcp-states")) as program:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
            pass
        assert program.total("changes") > 0
        assert program.records("events") == []


# -- block-latency -------------------------------------------------------------------------

READ, WRITE, DISCARD, FLUSH = range(4)
ANY_OPERATION = {0: READ, 1: WRITE, 2: FLUSH, 3: DISCARD}
_BLKDISCARD = 0x1277


def direct(path: Path, flags: int) -> int:
    """Open without the page cache, so that each call is one request."""
    return os.open(path, flags | os.O_DIRECT)


@needs_loop
def test_block_requests_are_counted_to_the_last_and_the_referee_agrees(tmp_path: Path) -> None:
    """500 reads and 300 writes of 4 KiB past the page cache, 20 discards, on a device of our own."""
    backing = tmp_path / "disk"
    backing.write_bytes(bytes(8 << 20))
    page = mmap.mmap(-1, 4096)
    with (
        loaded(shipped("block-latency")) as program,
        loaded(referee(), programs=("on_issue", "on_complete")) as judge,
        workload.loop_device(backing) as (path, device),
    ):

        def rows_of_device() -> dict[tuple[int, ...], dict[str, int]]:
            return {key: row for key, row in program.rows("requests").items() if key[0] == device}

        before = settled(rows_of_device)
        started = time.monotonic_ns()
        handle = direct(path, os.O_RDWR)
        try:
            for index in range(500):
                assert os.preadv(handle, [page], index % 1000 * 4096) == 4096
            for index in range(300):
                assert os.pwritev(handle, [page], index % 1000 * 4096) == 4096
            for index in range(20):
                fcntl.ioctl(handle, _BLKDISCARD, struct.pack("QQ", index * 65536, 65536))
        finally:
            os.close(handle)
        elapsed = time.monotonic_ns() - started
        rows = settled(rows_of_device)
        judged = Counter(
            {
                (key[0], ANY_OPERATION.get(key[1], 4)): row[""]
                for key, row in judge.rows("requests").items()
                if key[0] == device
            }
        )
        counts = {
            operation: observed(rows, (device, operation)) - observed(before, (device, operation))
            for operation in range(5)
        }
        assert counts[READ] == 500
        assert counts[WRITE] == 300
        assert counts[DISCARD] == 20
        assert {operation: judged[device, operation] for operation in range(5)} == {
            operation: observed(rows, (device, operation)) for operation in range(5)
        }
        total_ns = sum(row["sum"] for row in rows.values()) - sum(row["sum"] for row in before.values())
        assert 0 < total_ns <= elapsed, "one after the other, they cannot have taken longer than they took"
        assert all(row["errors"] == 0 for row in rows.values())
        assert min(len(program.rows("in_flight")) for _ in range(100)) == 0, "requests that are complete stay noted"


@needs_loop
def test_failed_block_requests_are_counted_as_errors(tmp_path: Path) -> None:
    """Writes beyond what the file behind the device can hold come back with an error."""
    with workload.small_tmpfs(tmp_path / "small", 1 << 20) as small:
        backing = small / "disk"
        with backing.open("wb") as file:
            file.truncate(8 << 20)
        page = mmap.mmap(-1, 4096)
        with (
            loaded(shipped("block-latency")) as program,
            loaded(referee(), programs=("on_issue", "on_complete")) as judge,
            workload.loop_device(backing) as (path, device),
        ):
            handle = direct(path, os.O_RDWR)
            failed = 0
            try:
                for index in range(1024):
                    try:
                        os.pwritev(handle, [page], index * 4096)
                    except OSError:
                        failed += 1
            finally:
                os.close(handle)
            rows = settled(lambda: program.rows("requests").get((device, WRITE)))
            judged = judge.rows("requests")
            skipped = program.skipped(), judge.skipped()
            assert failed > 0
            assert rows is not None
            assert (rows["errors"], judged[device, WRITE, 1][""]) == (failed, failed), skipped
            assert (observed({(0,): rows}), judged[device, WRITE, 0][""]) == (1024, 1024), skipped


# -- runqueue-latency ----------------------------------------------------------------------

CHURN = """
import threading, time
def worker():
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        time.sleep(0.0005)
        sum(range(2000))
def spinner():
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        pass
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        spinner()
        os._exit(0)
    children.append(child)
threads = [threading.Thread(target=worker) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
for _ in range(100):
    child = os.fork() or os._exit(0)
    os.waitpid(child, 0)
[os.waitpid(child, 0) for child in children]
"""


@needs_cgroup2
def test_every_wait_for_a_cpu_is_counted_once() -> None:
    """Sleepers, spinners that are preempted, and short processes: as many waits as switches to them."""
    with workload.control_group("skep-waits") as (group, group_id):
        before = time.monotonic_ns()
        with (
            loaded(shipped("runqueue-latency"), {"by_cgroup": 1}) as program,
            loaded(referee(), {"only_group": group_id}, ("on_switch",)) as judge,
        ):
            workload.run_in_group(group, CHURN)
            rows = settled(lambda: program.rows("waits").get((group_id,)))
            switches = judge.rows("switches")[group_id,][""]
            missed = program.total("missed")
        elapsed = time.monotonic_ns() - before
    assert switches > 1000
    # Where the kernel keeps programs from running, a wait's begin is not seen; then it must be counted as missed.
    assert 0 <= switches - observed({(0,): rows}) <= missed
    assert missed < switches / 100
    # 13 tasks cannot wait longer than they lived; and with 3 spinners somebody did wait.
    assert 1_000_000 < rows["sum"] < elapsed * 120
    assert sum(number for name, number in rows.items() if name in ("slots[25]", "slots[26]")) == 0


def test_waits_of_the_host_are_one_histogram_and_with_the_missed_ones_all_switches() -> None:
    """Without ``by_cgroup`` there is one row, under group 0; the referee counted every switch to a task of the host."""
    with loaded(shipped("runqueue-latency")) as program:
        start, first = observed(program.rows("waits")) + program.total("missed"), 0
        with loaded(referee(), programs=("on_switch",)) as judge:
            first = observed(program.rows("waits")) + program.total("missed")
            for _ in range(100):  # a machine where nothing else runs has few switches of its own
                time.sleep(0.005)
            judged = judge.total("switches")
            last = observed(program.rows("waits")) + program.total("missed")
        rows = program.rows("waits")
    assert list(rows) == [(0,)]
    assert judged > 50
    # Reading takes time in which switches go on: the referee's count lies between what we had around it.
    assert last - first - 20 <= judged <= last - start


def test_tasks_that_do_not_wait_leave_nothing_behind() -> None:
    """``waiting`` holds only tasks that are runnable now, after many have come and gone."""
    with loaded(shipped("runqueue-latency")) as program:
        for _ in range(300):
            os.fork() or os._exit(0)
            os.wait()
        assert min(len(program.rows("waiting")) for _ in range(20) if not time.sleep(0.02)) <= 16


@needs_cgroup2
def test_full_map_forgets_removed_groups_before_living_ones(tmp_path: Path) -> None:
    """With room for few groups, those that are gone make way and no wait is missed."""
    with loaded(smaller("runqueue-latency", tmp_path, "1024", "24"), {"by_cgroup": 1}) as program:
        time.sleep(0.2)
        missed_before = program.total("missed")
        for index in range(60):
            with workload.control_group(f"skep-short-{index}") as (group, last):
                child = os.fork()
                if child == 0:
                    (group / "cgroup.procs").write_text(str(os.getpid()))
                    time.sleep(0.002)
                    os._exit(0)
                os.waitpid(child, 0)
        rows, missed = program.rows("waits"), program.total("missed")
    assert (last,) in rows
    assert (1,) in rows, "the root group lives and must not have made way"
    assert len(rows) <= 24
    assert missed - missed_before <= 30, "only waits whose begin the kernel hid from us"


@pytest.mark.parametrize("name", IMAGES)
def test_maps_take_bounded_memory(name: str) -> None:
    """Nothing of a host's size but its CPUs decides; 64 CPUs stay under 16 MiB."""
    with loaded(shipped(name), programs=programs_here(name)) as program:
        total = 0
        for spec in program.spec.maps:
            per_entry = spec.key_size + 64 + -(-spec.value_size // 8) * 8 * (64 if spec.type.per_cpu else 1)
            total += spec.max_entries if spec.type.name == "RINGBUF" else spec.max_entries * per_entry
    assert total < 16 << 20


def test_referee_is_not_the_program_it_judges() -> None:
    """The two must not agree because they are one."""
    sections: set[str] = set()
    with loaded(referee(), programs=("on_switch",)) as judge:
        sections = {spec.section.split("/")[0] for spec in judge.spec.programs}
        assert isinstance(judge, Loaded)
    assert sections == {"raw_tp"}
