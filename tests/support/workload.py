"""Things done to this machine a known number of times."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
_LOOP_SET_FD, _LOOP_CLR_FD, _LOOP_CTL_GET_FREE, _LOOP_SET_DIRECT_IO = 0x4C00, 0x4C01, 0x4C82, 0x4C08


def cgroup2_root() -> Path | None:
    """Where the cgroup2 hierarchy is mounted, if it may be written to."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            root = Path(before.split()[4])
            return root if os.access(root, os.W_OK) and " rw" in before + after else None
    return None


@contextmanager
def control_group(name: str, suffix: str = "") -> Iterator[tuple[Path, int]]:
    """A new cgroup2 group and its id; it must be empty at the end. Suffix ``.service`` makes it look like a unit."""
    root = cgroup2_root()
    assert root, "no cgroup2 hierarchy that may be written to"
    path = root / f"{name}-{os.getpid()}{suffix}"
    path.mkdir()
    try:
        yield path, path.stat().st_ino
    finally:
        if path.exists():
            path.rmdir()


def run_in_group(group: Path, code: str, *arguments: str) -> str:
    """Run Python code in a process of its own that joins the group first; its output."""
    joined = f"import os, sys\nopen({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n" + code
    done = subprocess.run(
        [sys.executable, "-c", joined, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


NEW_NETWORK = (
    "import ctypes, fcntl, os, socket, struct\n"
    f"assert ctypes.CDLL(None).unshare({CLONE_NEWNET}) == 0\n"
    "s = socket.socket(); fcntl.ioctl(s, 0x8914, struct.pack('16sH14x', b'lo', 0x49)); s.close()\n"
)
"""Python code that moves its process into a network namespace of its own with loopback up."""

DEAF = """
def deaf(sock, yes):
    \"\"\"Have the kernel drop all that arrives at a socket, before TCP sees it.\"\"\"
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0), 8)  # BPF_RET | BPF_K, 0
    if yes:
        # SO_ATTACH_FILTER, and below SO_DETACH_FILTER
        sock.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxP", 1, ctypes.addressof(program)))
    else:
        sock.setsockopt(socket.SOL_SOCKET, 27, 0)
"""
"""Python code that loses packets on purpose, on any kernel and without privilege."""


def run_in_new_network(code: str) -> str:
    """Run Python code in a network namespace of its own with loopback up; its output."""
    script = NEW_NETWORK + code
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def conversation_in_group(group: Path, code: str) -> Iterator[Callable[[str], str]]:
    """Run Python code in a process of its own that joins the group first; call with a line, get its answer.

    The code reads lines with ``input()`` and answers each with one ``print(…, flush=True)``.
    """
    joined = f"import os, sys\nopen({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n" + code
    with subprocess.Popen(
        [sys.executable, "-c", joined], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout

        def ask(line: str) -> str:
            assert process.stdin
            assert process.stdout
            process.stdin.write(line + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        yield ask
        process.stdin.close()
        assert process.wait(60) == 0


@contextmanager
def memory_limited_group(
    name: str, limit: int, suffix: str = ""
) -> Iterator[tuple[list[Path], int, Callable[[], int]]]:
    """A control group whose processes may use no more than ``limit`` bytes.

    Yields:
        The files to write a process id to; the cgroup2 id of the group; and how many processes the kernel
        says it ended there.

    Raises:
        OSError: this machine has no memory controller that we may use.
    """
    with control_group(name, suffix) as (path, group_id):
        root = path.parent
        if "memory" in (root / "cgroup.controllers").read_text().split():
            (root / "cgroup.subtree_control").write_text("+memory")
            (path / "memory.max").write_text(str(limit))
            if (path / "memory.swap.max").exists():
                (path / "memory.swap.max").write_text("0")
            yield [path / "cgroup.procs"], group_id, lambda: _count_in(path / "memory.events")
            return
        old = Path("/sys/fs/cgroup/memory") / path.name
        old.mkdir()
        try:
            (old / "memory.limit_in_bytes").write_text(str(limit))
            files = [path / "cgroup.procs", old / "cgroup.procs"]
            yield files, group_id, lambda: _count_in(old / "memory.oom_control")
        finally:
            old.rmdir()


def _count_in(path: Path) -> int:
    found = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
    assert found, path
    return int(found[1])


def use_memory_until_killed(files: list[Path]) -> int:
    """Have a process join a memory limited group and take what it may not have; the signal that ended it."""
    code = (
        "import mmap, os, sys\n"
        "for name in sys.argv[1:]: open(name, 'w').write(str(os.getpid()))\n"
        "memory = mmap.mmap(-1, 1 << 29)\n"
        "for place in range(0, 1 << 29, 4096): memory[place] = 1\n"
    )
    return -subprocess.run([sys.executable, "-c", code, *map(str, files)], check=False, timeout=120).returncode


def memory_can_be_limited() -> bool:
    """Whether there is a memory controller, of either hierarchy, that we may use."""
    root = cgroup2_root()
    if root is None:
        return False
    return "memory" in (root / "cgroup.controllers").read_text().split() or os.access("/sys/fs/cgroup/memory", os.W_OK)


def sunrpc_available() -> bool:
    """Whether this kernel has sunrpc and tells its types; loads the module if need be."""
    if not Path("/sys/module/sunrpc").exists() and shutil.which("modprobe"):
        subprocess.run(["modprobe", "sunrpc"], check=False, capture_output=True)
    return Path("/sys/kernel/btf/sunrpc").exists()


@contextmanager
def loop_device(backing: Path) -> Iterator[tuple[Path, int]]:
    """A loop device over a file, and its kernel dev_t (major << 20 | minor)."""
    control = os.open("/dev/loop-control", os.O_RDWR)
    number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    os.close(control)
    path = Path(f"/dev/loop{number}")
    file = os.open(backing, os.O_RDWR)
    device = os.open(path, os.O_RDWR)
    try:
        fcntl.ioctl(device, _LOOP_SET_FD, file)
        try:
            found = os.fstat(device).st_rdev
            yield path, os.major(found) << 20 | os.minor(found)
        finally:
            fcntl.ioctl(device, _LOOP_CLR_FD, 0)
    finally:
        os.close(device)
        os.close(file)


@contextmanager
def small_tmpfs(path: Path, size: int) -> Iterator[Path]:
    """A tmpfs that holds no more than ``size`` bytes."""
    path.mkdir()
    if _libc.mount(b"none", os.fsencode(path), b"tmpfs", 0, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "mount")
    try:
        yield path
    finally:
        _libc.umount2(os.fsencode(path), 2)


def loop_available() -> bool:
    """Whether this kernel has loop devices and we may use them."""
    return os.access("/dev/loop-control", os.W_OK)


def kernel_version() -> tuple[int, int]:
    """Of the running kernel: (6, 18)."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert found
    return int(found[1]), int(found[2])


@contextmanager
def repeated(work: Callable[[], object], pause_s: float) -> Iterator[None]:
    """Do some work over and over, in a thread, with a pause before each time."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(pause_s):
            work()

    worker = threading.Thread(target=run)
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()


@contextmanager
def busy_cpus() -> Iterator[None]:
    """Two processes for each CPU that never rest, so that others are preempted wherever they are."""
    spinning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * len(os.sched_getaffinity(0)))
    ]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()
