"""The shipped programs on what processes do, and what is done to them, count exactly that."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.kernel.test_catalog import needs_cgroup2, shipped, static_elf, trampolines_refused
from tests.support import workload
from tests.support.libbpf import can_load, loaded

pytestmark = [pytest.mark.skipif(not can_load(), reason="needs root and a kernel with BTF"), needs_cgroup2]


def text_of(record: dict[str, int], name: str) -> str:
    """A ``char`` array of a record, up to its first NUL; the referee reads it as one number."""
    number = record[name]
    return number.to_bytes(-(-number.bit_length() // 8), "little").split(b"\0")[0].decode()


# -- oom-kills -----------------------------------------------------------------------------


@pytest.mark.skipif(not workload.memory_can_be_limited(), reason="no memory controller may be used here")
@pytest.mark.parametrize("cflags", [(), ("-DKERNEL_GIVES_VICTIM=0",)], ids=["this kernel", "thread id alone"])
def test_processes_ended_for_want_of_memory_are_counted_by_their_group(cflags: tuple[str, ...]) -> None:
    """Four processes take more than their group may have; the kernel's own count and their parent agree."""
    with (
        workload.memory_limited_group("skep-oom", 32 << 20) as (files, group_id, ended),
        loaded(shipped("oom-kills", *cflags)) as program,
    ):
        signals = [workload.use_memory_until_killed(files) for _ in range(4)]
        kernel_says = ended()
        kills = {key: row[""] for key, row in program.rows("kills").items()}
        records = [record for record in program.records("events") if record["victim.group.id"] == group_id]
        assert program.total("missed") == program.total("events_lost") == 0
    assert signals == [signal.SIGKILL] * 4
    assert kernel_says == 4
    assert kills[group_id,] == 4
    assert [text_of(record, "victim.comm")[:6] for record in records] == ["python"] * 4
    assert len({record["victim.pid"] for record in records}) == 4


@pytest.mark.skipif(not workload.memory_can_be_limited(), reason="no memory controller may be used here")
def test_process_that_somebody_kills_is_no_oom_kill() -> None:
    """SIGKILL by a person is none, and leaves nothing behind where the kernel gives a thread id alone."""
    with loaded(shipped("oom-kills", "-DKERNEL_GIVES_VICTIM=0")) as program:
        child = os.fork()
        if child == 0:
            signal.pause()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert program.rows("kills") == {}
        assert child not in {row["pid"] for row in program.rows("signalled").values()}


# -- file-opens ----------------------------------------------------------------------------

OPENS = """
import ctypes, errno, json, sys, tempfile
folder = sys.argv[1].encode()
call = ctypes.CDLL(None, use_errno=True).syscall
there, absent = folder + b"/there", folder + b"/absent"
def opened(*arguments):
    fd = call(*arguments)
    if fd >= 0:
        os.close(fd)
        return 0
    return ctypes.get_errno()
AT_FDCWD = ctypes.c_long(-100)
how = (ctypes.c_uint64 * 3)(0, 0, 0)
found = []
for _ in range(500):
    found.append(os.close(os.open(there, os.O_RDONLY)) or 0)
for _ in range(70):
    try:
        os.open(absent, os.O_RDONLY)
    except FileNotFoundError:
        found.append(errno.ENOENT)
for _ in range(30):
    try:
        os.open(folder, os.O_WRONLY)
    except IsADirectoryError:
        found.append(errno.EISDIR)
found += [opened(437, AT_FDCWD, there, how, ctypes.sizeof(how)) for _ in range(20)]
if os.uname().machine == "x86_64":
    found += [opened(2, there, 0) for _ in range(10)] + [opened(85, there, 0o600) for _ in range(5)]
print(json.dumps(found))
"""


@pytest.mark.parametrize("hook", ["on_open", "on_exit"])
def test_opens_are_counted_by_their_end_and_group(hook: str, tmp_path: Path) -> None:
    """Each call that can open a file, with what came of it."""
    if hook == "on_open" and trampolines_refused():
        pytest.skip("this kernel's lockdown refuses trampolines")
    (tmp_path / "there").touch()
    with (
        workload.control_group("skep-opens") as (group, group_id),
        loaded(shipped("file-opens"), {"by_cgroup": 1}, (hook,)) as program,
    ):
        # The interpreter opens files of its own, each time the same: what is left is what was asked for.
        workload.run_in_group(group, OPENS.partition("found = []")[0] + "print([])\n", str(tmp_path))
        own = program.rows("calls")[group_id,][""]
        own_errors = {key[0]: row[""] for key, row in program.rows("errors").items() if key[1] == group_id}
        ends = Counter(json.loads(workload.run_in_group(group, OPENS, str(tmp_path))))
        calls = program.rows("calls")[group_id,][""] - 2 * own
        errors = Counter({key[0]: row[""] for key, row in program.rows("errors").items() if key[1] == group_id})
        for error, times in own_errors.items():
            errors[error] -= 2 * times
        assert program.total("missed") == 0
    assert ends[0] >= 520
    assert calls == ends.total()
    assert +errors == {errno.ENOENT: 70, errno.EISDIR: 30}


@pytest.mark.parametrize("hook", ["on_open", "on_exit"])
def test_open_is_an_event_with_its_path_when_asked_for(hook: str, tmp_path: Path) -> None:
    """And of failures only, if that is what was asked for."""
    if hook == "on_open" and trampolines_refused():
        pytest.skip("this kernel's lockdown refuses trampolines")
    absent = tmp_path / ("absent" * 30)
    settings = {"events_enabled": 1, "events_of_failures_only": 1, "events_per_cpu_s": 0}
    with loaded(shipped("file-opens"), settings, (hook,)) as program:
        (tmp_path / "there").touch()
        assert not absent.exists()
        with pytest.raises(FileNotFoundError):
            absent.open()
        own = [record for record in program.records("events") if record["pid"] == os.getpid()]
    assert [(record["result.error"], text_of(record, "path")) for record in own] == [(errno.ENOENT, str(absent))]
    assert text_of(own[0], "comm") == Path("/proc/self/comm").read_text().strip()
    assert own[0]["result.group.id"] != 0


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the program is x86 code")
def test_opens_of_32_bit_processes_are_counted(tmp_path: Path) -> None:
    """Number 5 opens files in one table and is fstat in the other."""
    path = tmp_path / "opens32"
    # mov esi,100; again: mov eax,5; mov ebx,name; xor ecx,ecx; int 0x80; dec esi; jnz again;
    # mov eax,1; xor ebx,ebx; int 0x80
    head, name = 52 + 32, b"/nowhere/absent32\0"
    code = bytes.fromhex("be64000000 b805000000 bb") + (0x10000 + head + 35).to_bytes(4, "little")
    code += bytes.fromhex("31c9 cd80 4e 75ef b801000000 31db cd80")
    assert len(code) <= 35
    path.write_bytes(static_elf(code.ljust(35, b"\x90") + name, machine=3))
    path.chmod(0o755)
    try:
        subprocess.run([path], check=True, timeout=10)
    except OSError:
        pytest.skip("this kernel does not run 32-bit programs")
    with (
        workload.control_group("skep-opens32") as (group, group_id),
        loaded(shipped("file-opens"), {"by_cgroup": 1, "events_enabled": 1}) as program,
    ):
        workload.run_in_group(group, f"os.execv({str(path)!r}, ['opens32'])")
        records = [text_of(record, "path") for record in program.records("events")]
        errors = {key[0]: row[""] for key, row in program.rows("errors").items() if key[1] == group_id}
    assert records.count("/nowhere/absent32") == 100
    assert errors[errno.ENOENT] >= 100


# -- capability-checks ---------------------------------------------------------------------

# reboot() asks for CAP_SYS_BOOT, which nobody else does, before it looks at its magic numbers, which are wrong.
CHECKS = """
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
def asked(times):
    ends = []
    for _ in range(times):
        assert libc.syscall({"x86_64": 169, "aarch64": 142}[os.uname().machine], 0, 0, 0, 0) == -1
        ends.append(ctypes.get_errno())
    return ends
ends = asked(70)
os.setuid(65534)
ends += asked(40)
print(json.dumps(ends))
"""
SYS_BOOT = 22
GRANTED, DENIED = range(2)


@pytest.mark.parametrize("hook", ["on_check", "on_check_traced"])
def test_capability_checks_are_counted_with_what_came_of_them(hook: str) -> None:
    """70 as root, and 40 as nobody; the calls say themselves whether they were allowed."""
    if hook == "on_check" and trampolines_refused():
        pytest.skip("this kernel's lockdown refuses trampolines")
    if hook == "on_check_traced" and workload.kernel_version() < (6, 14):
        pytest.skip("this kernel has no tracepoint cap_capable (first in 6.14)")
    with (
        workload.control_group("skep-capabilities") as (group, group_id),
        loaded(shipped("capability-checks"), {"by_cgroup": 1}, (hook,)) as program,
    ):
        ends = Counter(json.loads(workload.run_in_group(group, CHECKS)))
        rows = {key[:2]: row[""] for key, row in program.rows("checks").items() if key[2] == group_id}
        assert program.total("missed") == 0
    assert ends == {errno.EINVAL: 70, errno.EPERM: 40}
    assert rows[SYS_BOOT, GRANTED] == 70
    assert rows[SYS_BOOT, DENIED] == 40
