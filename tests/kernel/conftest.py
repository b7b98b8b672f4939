"""What kernel tests need: root, tracefs, objects built by clang, and bpf(2) to write maps with."""

import ctypes
import os
import platform
import resource
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from exporter.hooks import split_section
from exporter.kernel import Collection, GlobalRequest, LoadRequest, ProgramRequest, load
from exporter.kernel.features import Capability, probe

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "programs"
TRACING = Path("/sys/kernel/tracing")

MACHINE = {"x86_64": "x86", "aarch64": "arm64"}[platform.machine()]
INCLUDE = f"/usr/include/{platform.machine()}-linux-gnu"
FLAGS = (
    *("-g", "-O2", "-Wall", "-target", "bpf", "-mcpu=v2", f"-D__TARGET_ARCH_{MACHINE}"),
    *("-I", INCLUDE, "-I", str(ROOT / "_native")),
)
GETPGID = {"x86_64": 121, "aarch64": 155}[platform.machine()]
"""A system call that Python and pytest do not make by themselves."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Kernel tests need what loading BPF needs; without it they are skipped with that reason."""
    if probe().has(Capability.BPF, Capability.PERFMON, Capability.SYS_ADMIN):
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs root to load BPF programs"))


@pytest.fixture(scope="session", autouse=True)
def tracefs() -> None:
    """Tracepoints have their ids there; systemd mounts it, a bare container has not."""
    if not (TRACING / "events").exists():
        subprocess.run(["mount", "-t", "tracefs", "nodev", TRACING], check=True)


@pytest.fixture(autouse=True)
def row_of_the_matrix(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Tell the table of kernels which hook or map type a case stands for, by its ``matrix`` mark."""
    mark = request.node.get_closest_marker("matrix")
    if mark is None:
        return
    group, row = mark.args
    if callspec := getattr(request.node, "callspec", None):
        row = callspec.params.get(row, row)
    if group == "hook":
        # Of a cgroup the place says which, of the others the first word: kprobe and kretprobe, tc and tcx.
        row = " ".join(one if one.startswith("cgroup") else split_section(one)[0] for one in row.split())
    record_property("matrix", " ".join(f"{group}/{one}" for one in row.split()))


@pytest.fixture(scope="session", autouse=True)
def memory_lock() -> None:
    """Tests that make maps themselves are not held to the limit that kernels before 5.11 count them against."""
    if probe().version < (5, 11):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


Compile = Callable[[str], bytes]


@pytest.fixture(scope="session")
def compile_object(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Build ``tests/programs/NAME.bpf.c`` once a session and return the ELF bytes."""
    built: dict[str, bytes] = {}
    directory = tmp_path_factory.mktemp("objects")

    def build(name: str) -> bytes:
        if name not in built:
            target = directory / f"{name}.o"
            source = PROGRAMS / f"{name}.bpf.c"
            subprocess.run(["clang", *FLAGS, "-c", source, "-o", target], check=True)
            built[name] = target.read_bytes()
        return built[name]

    return build


def own_globals(object: bytes, *, syscall: int | None = None) -> tuple[GlobalRequest, ...]:
    """The globals ``tgid`` and ``syscall_nr`` of the test programs, set to this process and a system call."""
    offsets = rodata_offsets(object)
    values = [GlobalRequest(".rodata", offsets["tgid"], struct.pack("=I", os.getpid()))]
    if syscall is not None:
        values.append(GlobalRequest(".rodata", offsets["syscall_nr"], struct.pack("=q", syscall)))
    return tuple(values)


def rodata_offsets(object: bytes) -> Mapping[str, int]:
    """Where each symbol of ``.rodata`` lies."""
    import io

    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    elf = ELFFile(io.BytesIO(object))
    index = elf.get_section_index(".rodata")
    table = elf.get_section_by_name(".symtab")
    symbols = table.iter_symbols() if isinstance(table, SymbolTableSection) else iter(())
    return {symbol.name: symbol["st_value"] for symbol in symbols if symbol["st_shndx"] == index}


def make_calls(count: int) -> None:
    """Exactly so many ``getpgid`` system calls of this process."""
    for _ in range(count):
        os.getpgid(0)


Loading = Callable[..., Collection]


@pytest.fixture
def loading(compile_object: Compile) -> Iterator[Loading]:
    """Load programs of a test object; everything is closed when the test ends."""
    opened: list[Collection] = []

    def open_collection(name: str, *programs: ProgramRequest, **options: object) -> Collection:
        object = compile_object(name)
        options.setdefault("globals", ())
        collection = load(LoadRequest(name=name, object=object, programs=programs, **options))  # type: ignore[arg-type]
        opened.append(collection)
        return collection

    yield open_collection
    for collection in opened:
        collection.close()


_LIBC = ctypes.CDLL(None, use_errno=True)

Network = Callable[[Callable[[], None]], None]


@pytest.fixture
def network() -> Network:
    """Run a function in a thread with a network of its own: ``lo`` is up, and a pair ``skep0``, ``skep1``."""

    def run(function: Callable[[], None]) -> None:
        failures: list[BaseException] = []

        def inside() -> None:
            try:
                assert _LIBC.unshare(0x40000000) == 0, os.strerror(ctypes.get_errno())
                pair = "link add skep0 type veth peer name skep1"
                for command in ("link set lo up", pair, "link set skep0 up", "link set skep1 up"):
                    subprocess.run(["ip", *command.split()], check=True)
                function()
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]

    return run


_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]


def bpf(command: int, attr: bytes) -> int:
    """The system call itself, raising ``OSError``."""
    buffer = ctypes.create_string_buffer(attr, 128)
    result: int = _LIBC.syscall(_BPF, command, buffer, 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf command {command}")
    return result


def recursion_misses(collection: Collection) -> int:
    """How many runs of its programs the kernel left out, since the program ran on that CPU already.

    Where tracepoints are preemptible (sys_enter from Linux 7.0 on), a task that is preempted inside a program
    keeps every other task on its CPU from running it. Before 5.12 nobody counts them, nor are there any.
    """
    total = 0
    for program in collection.programs:
        fd = bpf(13, struct.pack("=III", program.id, 0, 0))  # BPF_PROG_GET_FD_BY_ID
        try:
            text = Path(f"/proc/self/fdinfo/{fd}").read_text()
        finally:
            os.close(fd)
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("recursion_misses"))
    return total


def update(fd: int, key: bytes, value: bytes) -> None:
    """Write one row."""
    k, v = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    bpf(2, struct.pack("=IxxxxQQQ", fd, ctypes.addressof(k), ctypes.addressof(v), 0))


def delete(fd: int, key: bytes) -> None:
    """Delete one row."""
    k = ctypes.create_string_buffer(key, len(key))
    bpf(3, struct.pack("=IxxxxQQQ", fd, ctypes.addressof(k), 0, 0))
