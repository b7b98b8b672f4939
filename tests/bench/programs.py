"""Time per event of the shipped programs: the kernel's own count while work is done that they all see.

``python -m tests.bench.programs SECONDS`` prints it alone, each image's work taking so long.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.errors import KernelError
from tests.bench.rows import bpf
from tests.support import nfs, workload
from tests.vm.guest import channel

_PROG_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD, _ENABLE_STATS = 13, 15, 32

# Every kind of event the catalog counts: processes that end (some fail), switches between tasks,
# connections (some refused), segments that nobody hears, files, writes that reach a disk, system calls (some
# fail), operations on a mount. Processes that take more memory than they may are made beside it.
_WORK = (
    workload.DEAF
    + """
import ctypes, os, socket, struct, sys, threading, time
folder, until, mounts = sys.argv[1], time.monotonic() + float(sys.argv[2]), sys.argv[3:]
def processes():
    index = 0
    while time.monotonic() < until:
        index += 1
        os.waitpid(os.posix_spawn("/bin/sh", ["sh", "-c", "exit %d" % (index % 2)], {}), 0)
def switches():
    there, back = os.pipe(), os.pipe()
    def echo():
        while os.read(there[0], 1) != b"x":
            os.write(back[1], b"b")
    other = threading.Thread(target=echo)
    other.start()
    while time.monotonic() < until:
        os.write(there[1], b"a")
        os.read(back[0], 1)
    os.write(there[1], b"x")
    other.join()
def connections():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        while time.monotonic() < until:
            with socket.create_connection(listener.getsockname()), listener.accept()[0]:
                pass
            try:
                socket.create_connection(("127.0.0.1", 1))
            except OSError:
                pass
            time.sleep(0.001)
def losses():
    pairs = []
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as hearing:
        for _ in range(64):
            pairs.append((socket.create_connection(listener.getsockname()), listener.accept()[0]))
            deaf(pairs[-1][1], True)
            pairs[-1][0].send(b"x")
        deaf(listener, True)
        while time.monotonic() < until:
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            pairs.append((client, client))
            time.sleep(0.01)
            if len(pairs) < 200:
                half = socket.socket()
                half.setblocking(False)
                deaf(half, True)
                half.connect_ex(hearing.getsockname())
                pairs.append((half, half))
    for client, server in pairs:
        client.close()
        server.close()
def opens():
    while time.monotonic() < until:
        os.close(os.open("/proc/self/stat", os.O_RDONLY))
        try:
            os.open(folder + "/none", os.O_RDONLY)
        except OSError:
            time.sleep(0)
def writes():
    with open(os.path.join(folder, "written"), "wb", buffering=0) as file:
        while time.monotonic() < until:
            file.seek(0)
            file.write(os.urandom(65536))
            os.fsync(file.fileno())
            time.sleep(0.002)
def calls():
    while time.monotonic() < until:
        for _ in range(200):
            os.getppid()
        try:
            os.stat(folder + "/none")
        except OSError:
            pass
        time.sleep(0)
def operations():
    while time.monotonic() < until:
        for mount in mounts:
            with open(mount + "/file", "wb", buffering=0) as file:
                file.write(bytes(4096))
            os.unlink(mount + "/file")
            try:
                os.stat(mount + "/none")
            except OSError:
                pass
        time.sleep(0.002)
all_work = (processes, switches, connections, losses, opens, writes, calls, operations)
threads = [threading.Thread(target=work) for work in all_work]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
)


@contextmanager
def mounts() -> Iterator[list[Path]]:
    """A mount of this machine's own NFS server, if its kernel has both ends."""
    if os.geteuid() or not nfs.available():
        yield []
        return
    with tempfile.TemporaryDirectory() as folder, nfs.mounted(Path(folder)) as mount:
        yield [mount]


def work(seconds: float, mounted: list[Path]) -> None:
    """Make events of every kind for so long; on a file system of a disk, if the working directory is on one."""
    place = Path("build/bench")
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        with subprocess.Popen([sys.executable, "-c", _WORK, folder, str(seconds), *map(str, mounted)]) as process:
            if workload.memory_can_be_limited():
                with workload.memory_limited_group("skep-bench", 32 << 20) as (files, _, _):
                    while process.poll() is None:
                        workload.use_memory_until_killed(files)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, "work")


def enable_statistics() -> int:
    """Have the kernel count runs and run time of all programs while the descriptor is open."""
    return bpf(_ENABLE_STATS, struct.pack("<I124x", 0))[0]


def runs(program_id: int) -> tuple[int, int]:
    """``run_time_ns`` and ``run_cnt`` of a program."""
    fd = bpf(_PROG_GET_FD_BY_ID, struct.pack("<I124x", program_id))[0]
    try:
        info = ctypes.create_string_buffer(256)
        bpf(_OBJ_GET_INFO_BY_FD, struct.pack("<IIQ112x", fd, len(info), ctypes.addressof(info)))
        # struct bpf_prog_info of linux/bpf.h: run_time_ns lies at 192, run_cnt behind it.
        run_time_ns, run_count = struct.unpack_from("<QQ", info.raw, 192)
        return int(run_time_ns), int(run_count)
    finally:
        os.close(fd)


def time_per_event(name: str, seconds: float, mounted: list[Path]) -> list[tuple[str, float | None, int]]:
    """Run one image of the catalog while work is done, on mounts too.

    Returns:
        For each program its name, nanoseconds per run (None if it never ran), and runs.

    Raises:
        KernelError: this kernel cannot run the image.
    """
    from exporter.agent.program import load, make_lookup, plan_bundle
    from exporter.config import ImageConfig
    from exporter.image import Store, fetch, parse_reference

    reference = parse_reference(f"catalog:{name}")
    config = ImageConfig(name=name, ref=str(reference))
    with tempfile.TemporaryDirectory() as folder:
        bundle = fetch(reference, store=Store(Path(folder)), pull="if-not-present")
    program = load(bundle, plan_bundle(bundle, config), config, resolve=make_lookup().resolve)
    statistics = -1
    try:
        statistics = enable_statistics()
        attached = [each for each in program.collection.programs if each.attached]
        before = {each.name: runs(each.id) for each in attached}
        work(seconds, mounted)
        # A program that runs right now is counted when it returns.
        time.sleep(0.05)
        found: list[tuple[str, float | None, int]] = []
        for each in attached:
            time_ns, count = (after - was for after, was in zip(runs(each.id), before[each.name], strict=True))
            found.append((each.name, time_ns / count if count else None, count))
        return found
    finally:
        if statistics >= 0:
            os.close(statistics)
        program.close()


def catalog() -> list[str]:
    """Names of the shipped images that are built."""
    from exporter.errors import SkepError
    from exporter.image import Store
    from exporter.resources import catalog_dir

    try:
        place = catalog_dir()
    except SkepError:
        return []
    return sorted({image.reference for image in Store(place).list()})


def measured(seconds: float) -> Iterator[tuple[str, str, float | None, int]]:
    """Image, program, nanoseconds per run (None if it never ran) and runs; what this kernel cannot run gets a line."""
    with mounts() as mounted:
        for name in catalog():
            try:
                figures = time_per_event(name, seconds, mounted)
            except KernelError as error:
                print(f"{name}: not measured: {error}", file=sys.stderr)
                continue
            for program, value, count in figures:
                yield name, program, value, count


if __name__ == "__main__":
    for image, program, value, count in measured(float(sys.argv[1])):
        if channel.in_guest():
            channel.say("figure", image=image, program=program, value=value, count=count)
        else:
            print(f"{image:24} {program:20} {'never ran' if value is None else f'{value:9,.0f} ns':>12} {count:9} runs")
