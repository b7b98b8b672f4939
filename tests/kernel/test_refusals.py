"""What a kernel, an object or an operator can get wrong, and the one line that comes of it."""

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from exporter.errors import KernelError
from exporter.kernel import GlobalRequest, LoadRequest, MapRequest, ProgramRequest, load
from exporter.kernel.features import probe

from .conftest import ROOT, Compile, Loading

SYSCALL = ProgramRequest("on_syscall", "raw_tp/sys_enter")
FINE = ProgramRequest("fine", "raw_tp/sys_enter")
REFUSED = {
    "unchecked_pointer": "raw_tp/sys_enter",
    "missing_member": "raw_tp/sys_enter",
    "missing_typed_tracepoint": "tp_btf/skep_no_such_tracepoint",
    "missing_function": "fexit/skep_no_such_function",
    "missing_check": "lsm/skep_no_such_check",
    "missing_tracepoint": "tracepoint/skep/no_such_tracepoint",
    "missing_raw_tracepoint": "raw_tp/skep_no_such_tracepoint",
}


def refused(name: str) -> ProgramRequest:
    """A program of ``refused.bpf.c``."""
    return ProgramRequest(name, REFUSED[name])


def one_line(error: KernelError) -> str:
    """The message, which must be one line without a full stop."""
    message = str(error)
    assert "\n" not in message
    assert not message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("unchecked_pointer", "elf.verifier", ["'unchecked_pointer'", "R0 invalid mem access 'map_value_or_null'"]),
        ("missing_member", "elf.core_reloc", ["'missing_member'", "struct task_struct.no_such_member"]),
        ("missing_typed_tracepoint", "kernel.attach_target", ["'skep_no_such_tracepoint'", "attach.target"]),
        ("missing_tracepoint", "kernel.attach_target", ["'skep/no_such_tracepoint'", "ENOENT"]),
        ("missing_raw_tracepoint", "kernel.attach_target", ["'skep_no_such_tracepoint'", "ENOENT"]),
    ],
)
def test_refused_program_is_named_with_the_kernels_reason(
    loading: Loading, program: str, code: str, words: list[str]
) -> None:
    """The message has program, cause and remedy; the log has the last lines of whoever refused."""
    with pytest.raises(KernelError) as caught:
        loading("refused", FINE, refused(program), partial=False)
    assert caught.value.code == code
    assert all(word in one_line(caught.value) for word in words), str(caught.value)
    assert caught.value.log
    assert "loader: " not in caught.value.log


def test_verifier_log_ends_with_the_verifiers_last_lines(loading: Loading) -> None:
    """Forty lines at most, newest last."""
    with pytest.raises(KernelError) as caught:
        loading("refused", refused("unchecked_pointer"))
    lines = caught.value.log.splitlines()
    assert len(lines) <= 40
    complaint = next(i for i, line in enumerate(lines) if "R0 invalid mem access" in line)
    assert lines[complaint + 1].startswith("processed ")


def test_programs_that_cannot_attach_are_reported_and_the_others_run(loading: Loading) -> None:
    """One is missed at load, one by tracefs, one by the kernel; the fourth runs."""
    names = ("missing_typed_tracepoint", "missing_tracepoint", "missing_raw_tracepoint")
    collection = loading("refused", refused(names[0]), FINE, *map(refused, names[1:]), partial=True)
    assert [program.name for program in collection.programs] == [names[0], "fine", *names[1:]]
    for program in collection.programs:
        assert program.attached == (program.name == "fine")
        assert bool(program.error) == (program.name != "fine")
        assert program.attached or "no_such_tracepoint" in program.error
        assert repr(program.name) not in program.error
        assert bool(program.links) == program.attached


def test_programs_without_a_target_cost_one_more_load_and_not_one_each(
    loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of them ends libbpf's load; each has its own line all the same."""
    from exporter.kernel import collection

    started = []

    def starting(*arguments: int) -> subprocess.Popen[bytes]:
        started.append(start(*arguments))
        return started[-1]

    start = collection._start
    monkeypatch.setattr(collection, "_start", starting)
    names = ("missing_typed_tracepoint", "missing_function", "missing_check")
    made = loading("refused", *map(refused, names), FINE, partial=True)
    errors = {program.name: program.error for program in made.programs}
    assert errors.pop("fine") == ""
    targets = {name: REFUSED[name].partition("/")[2] for name in names}
    kernel = f"which this kernel ({probe().release}) does not have; choose another with attach.target"
    assert errors == {
        name: f"section {REFUSED[name]!r} attaches to {target!r}, {kernel}" for name, target in targets.items()
    }
    assert len(started) == 2
    with pytest.raises(KernelError, match="missing_typed_tracepoint") as caught:
        loading("refused", *map(refused, names), FINE, partial=False)
    assert "missing_function" not in str(caught.value)
    with pytest.raises(KernelError) as caught:
        loading("refused", *map(refused, names), partial=True)
    assert all(name in one_line(caught.value) for name in names) and caught.value.log
    assert len(started) == 4


def test_nothing_attached_is_no_partial_success(loading: Loading) -> None:
    """When every program fails there is no collection, and the first failure says why."""
    with pytest.raises(KernelError, match="missing_tracepoint") as caught:
        loading("refused", refused("missing_tracepoint"), refused("missing_raw_tracepoint"), partial=True)
    assert caught.value.code == "kernel.attach_target"


def test_gpl_helper_without_gpl_licence_is_refused_by_its_name(loading: Loading) -> None:
    """The verifier's words become the licence's code and the line to write."""
    with pytest.raises(KernelError, match=r'SEC."license".') as caught:
        loading("proprietary", SYSCALL)
    assert caught.value.code == "elf.license"


def test_trampolines_refused_by_lockdown_say_what_to_use_instead(loading: Loading) -> None:
    """On a kernel that refuses them; on others fentry attaches."""
    program = ProgramRequest("on_trampoline", "fentry/vfs_unlink")
    try:
        collection = loading("refused", program)
    except KernelError as error:
        assert error.code == "kernel.permission"
        assert "trampoline" in one_line(error)
        assert "tp_btf" in str(error)
    else:
        assert collection.programs[0].attached


@pytest.mark.parametrize(
    ("program", "section", "attach", "words"),
    [
        ("on_call", "uprobe", {"binary": "/skep/none", "target": "f"}, ["/skep/none", "ENOENT"]),
        ("on_call", "uprobe", {"binary": "/bin/true", "target": "no_such"}, ["'no_such'", "'/bin/true'", "ENOENT"]),
        ("on_call", "uprobe", None, ["no binary is named", "attach.binary"]),
        ("on_call", "uprobe", {"binary": "/bin/true", "target": "f+z"}, ["'z'", "not a number"]),
        ("on_probe", "usdt", {"binary": "/bin/true", "target": "skep:visit"}, ["/bin/true", "ENOENT"]),
        ("on_packet", "xdp", {"interfaces": ["skep-none"]}, ["interface 'skep-none'", "ENODEV"]),
        ("on_packet", "xdp", None, ["names no interface", "attach.interfaces"]),
        ("on_packet", "xdp", {"binary": "/bin/true"}, ["'binary' does not fit section 'xdp'", "has interfaces"]),
        ("on_egress", "cgroup_skb/egress", {"cgroup": "/skep/none"}, ["cgroup '/skep/none'", "ENOENT"]),
        ("on_egress", "cgroup_skb/egress", {"cgroup": "/tmp"}, ["'/tmp', which is no cgroup v2", "mounted at '/"]),
    ],
)
def test_place_that_is_not_there_is_named(
    loading: Loading, program: str, section: str, attach: Mapping[str, object] | None, words: list[str]
) -> None:
    """Binary, symbol, probe, interface, cgroup; missing on the machine or missing in the configuration."""
    for partial in (False, True):
        with pytest.raises(KernelError) as caught:
            loading("places", ProgramRequest(program, section, attach), partial=partial)
        assert caught.value.code == "kernel.attach_target"
        assert all(word in one_line(caught.value) for word in [repr(program), *words]), str(caught.value)


def test_one_missing_interface_attaches_to_none(loading: Loading) -> None:
    """Half of a program's interfaces would look like all of the traffic."""
    packet = ProgramRequest("on_packet", "xdp", {"interfaces": ["lo", "skep-none"]})
    with pytest.raises(KernelError, match="skep-none"):
        loading("places", packet)
    shown = subprocess.run(["ip", "link", "show", "lo"], check=True, capture_output=True, text=True).stdout
    assert "xdp" not in shown


@pytest.mark.parametrize(
    ("object", "words"),
    [
        (b"", "empty"),
        (b"not an ELF file" * 100, "not a proper ELF object"),
        (b"\x7fELF" + bytes(60), "ELF"),
        (Path(sys.executable).read_bytes(), "not a valid eBPF object file"),
    ],
)
def test_bytes_that_are_no_bpf_object_are_refused(object: bytes, words: str) -> None:
    """Nothing, text, an ELF header of nothing, a program of this machine."""
    with pytest.raises(KernelError, match=words) as caught:
        load(LoadRequest("bytes", object, (SYSCALL,)))
    assert caught.value.code == "elf.corrupt"
    one_line(caught.value)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.999])
def test_truncated_object_is_refused(compile_object: Compile, share: float) -> None:
    """Wherever it was cut there is an error and no crash of ours."""
    object = compile_object("hooks")
    with pytest.raises(KernelError) as caught:
        load(LoadRequest("cut", object[: int(len(object) * share)], (ProgramRequest("on_raw_tp", "raw_tp/sys_enter"),)))
    assert caught.value.code in ("elf.corrupt", "kernel.crashed", "elf.difference")
    one_line(caught.value)


def test_truncated_btf_is_refused(compile_object: Compile) -> None:
    """The section header promises more types than the section has."""
    import io

    from elftools.elf.elffile import ELFFile

    object = bytearray(compile_object("hooks"))
    elf = ELFFile(io.BytesIO(bytes(object)))
    index = elf.get_section_index(".BTF")
    assert index is not None
    header = elf.header["e_shoff"] + index * elf.header["e_shentsize"]
    size = int.from_bytes(object[header + 32 : header + 40], "little")
    object[header + 32 : header + 40] = (size // 2).to_bytes(8, "little")
    with pytest.raises(KernelError, match="BTF") as caught:
        load(LoadRequest("cut-btf", bytes(object), (ProgramRequest("on_raw_tp", "raw_tp/sys_enter"),)))
    assert caught.value.code == "elf.corrupt"


def test_damaged_objects_are_loaded_or_refused_and_nothing_else(compile_object: Compile) -> None:
    """Whatever bytes are damaged, load returns a collection or raises KernelError; a crash is one of those."""
    generator = random.Random(5)
    original = compile_object("hooks")
    programs = (ProgramRequest("on_raw_tp", "raw_tp/sys_enter"), ProgramRequest("on_tp_btf", "tp_btf/sys_enter"))
    codes: Counter[str] = Counter()
    for _ in range(40):
        damaged = bytearray(original)
        for _ in range(generator.randint(1, 8)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            load(LoadRequest("damaged", bytes(damaged), programs, read_maps=("calls",), deadline_s=10)).close()
        except KernelError as error:
            codes[error.code] += 1
            assert "Traceback" not in error.log, error.log
            one_line(error)
    assert codes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"programs": (ProgramRequest("nobody", "raw_tp/sys_enter"),)}, "'nobody'"),
        ({"programs": (ProgramRequest("on_raw_tp", "raw_tp/sys_exit"),)}, "'raw_tp/sys_exit'.*'raw_tp/sys_enter'"),
        ({"read_maps": ("nothing",)}, "'nothing'"),
        ({"maps": (MapRequest("nothing", max_entries=1),)}, "'nothing'"),
        ({"globals": (GlobalRequest(".rodata", 4000, b"x"),)}, "offset 4000"),
        ({"globals": (GlobalRequest(".rodata.nothing", 0, b"x"),)}, "'.rodata.nothing'"),
    ],
)
def test_request_for_what_libbpf_does_not_see_is_an_error(
    compile_object: Compile, options: dict[str, object], words: str
) -> None:
    """Two readers of one file must see one thing; what they disagree on is named."""
    request = {"programs": (ProgramRequest("on_raw_tp", "raw_tp/sys_enter"),)} | options
    with pytest.raises(KernelError, match=words) as caught:
        load(LoadRequest(name="view", object=compile_object("hooks"), **request))  # type: ignore[arg-type]
    assert caught.value.code == "elf.difference"
    one_line(caught.value)


@pytest.mark.parametrize(("map", "max_entries"), [("hash", 2**32 - 2), ("percpu_hash", 2**31)])
def test_map_too_large_for_the_machine_is_named(loading: Loading, map: str, max_entries: int) -> None:
    """More than the kernel will even try."""
    with pytest.raises(KernelError, match=f"map '{map}'.*max_entries") as caught:
        loading("tables", SYSCALL, maps=(MapRequest(map, max_entries=max_entries),))
    assert caught.value.code == "kernel.memory"


def test_ring_with_a_value_size_is_refused_until_it_is_cleared(loading: Loading) -> None:
    """The kernel's EINVAL names the map; the request that clears the size loads."""
    with pytest.raises(KernelError, match="map 'events'") as caught:
        loading("records", SYSCALL)
    assert caught.value.code == "elf.map_def"
    collection = loading("records", SYSCALL, maps=(MapRequest("events", clear_value_size=True),), read_maps=("events",))
    assert collection.maps["events"].value_size == 0


def test_map_type_that_this_kernel_does_not_have_is_named(loading: Loading) -> None:
    """With the kernel, and the first that has it if there is one."""
    release = probe().release
    with pytest.raises(KernelError) as caught:
        loading("future_map", SYSCALL, partial=False)
    assert caught.value.code == "kernel.map_type"
    assert f"map 'future': this kernel ({release}) refuses its type 9999" in one_line(caught.value)
    if probe().version < (5, 12):
        return  # what follows needs a helper that is younger still
    storage = ProgramRequest("on_syscall", "tp_btf/sys_enter")
    try:
        loading("storage_cgroup", storage)
    except KernelError as error:
        assert error.code == "kernel.map_type"
        assert f"this kernel ({release}) has no maps of type cgrp_storage (first in 6.2)" in one_line(error)
        assert probe().version < (6, 2)
    else:
        assert probe().version >= (6, 2)


def test_map_that_cannot_be_made_stops_only_the_programs_that_use_it(loading: Loading) -> None:
    """If nobody reads it; what is to be exported must be there."""
    collection = loading("future_map", SYSCALL, FINE, partial=True, read_maps=("now",))
    assert {program.name: program.attached for program in collection.programs} == {"on_syscall": False, "fine": True}
    assert collection.programs[0].error.startswith("uses map 'future': this kernel")
    with pytest.raises(KernelError, match="map 'future'") as caught:
        loading("future_map", SYSCALL, FINE, partial=True, read_maps=("now", "future"))
    assert caught.value.code == "kernel.map_type"


LOAD_ONE = """
import sys
sys.path.insert(0, sys.argv[1])
from exporter.errors import KernelError
from exporter.kernel import LoadRequest, ProgramRequest, load
object = open(sys.argv[2], "rb").read()
try:
    load(LoadRequest("hooks", object, (ProgramRequest(sys.argv[3], sys.argv[4]),))).close()
    print("loaded")
except KernelError as error:
    print(error.code, error)
"""


def load_as_nobody(  # noqa: PLR0917
    object: bytes, program: str, section: str, capabilities: str, directory: Path, memory_lock: str = ""
) -> str:
    """What a process of user nobody with these ambient capabilities gets from loading one program.

    CAP_DAC_OVERRIDE is there besides, since this Python and this checkout may lie where nobody may not look.
    """
    file = directory / "object.o"
    file.write_bytes(object)
    sets = f"+dac_override{capabilities}"
    drop = f"--reuid=65534 --regid=65534 --clear-groups --bounding-set=-all,{sets}"
    keep = f"--inh-caps=-all,{sets} --ambient-caps=-all,{sets}"
    limited = ["prlimit", f"--memlock={memory_lock}"] if memory_lock else []
    command = [*limited, "setpriv", *drop.split(), *keep.split(), sys.executable, "-c", LOAD_ONE, str(ROOT), str(file)]
    done = subprocess.run([*command, program, section], check=False, capture_output=True, text=True, cwd="/")
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("capabilities", "program", "section", "expected"),
    [
        ("", "on_raw_tp", "raw_tp/sys_enter", "kernel.permission .*CAP_BPF and CAP_PERFMON"),
        (",+bpf", "on_raw_tp", "raw_tp/sys_enter", "kernel.permission .*without CAP_PERFMON"),
        (",+bpf,+perfmon", "on_raw_tp", "raw_tp/sys_enter", "^loaded$"),
        (",+bpf,+perfmon", "on_tp_btf", "tp_btf/sys_enter", "^loaded$"),
    ],
)
def test_missing_privilege_is_named_and_no_more_is_asked_for(  # noqa: PLR0917
    compile_object: Compile, tmp_path: Path, capabilities: str, program: str, section: str, expected: str
) -> None:
    """CAP_BPF and CAP_PERFMON suffice for raw and typed tracepoints; what is missing of them is said."""
    import re

    said = load_as_nobody(compile_object("hooks"), program, section, capabilities, tmp_path)
    assert re.search(expected, said), said


def test_memory_lock_that_is_used_up_is_named_where_the_kernel_counts_by_it(
    compile_object: Compile, tmp_path: Path
) -> None:
    """Before 5.11, for who may not raise it; later kernels do not ask."""
    features = probe()
    said = load_as_nobody(
        compile_object("hooks"), "on_raw_tp", "raw_tp/sys_enter", ",+bpf,+perfmon", tmp_path, memory_lock="0:0"
    )
    if features.version < (5, 11):
        assert said.startswith("kernel.permission")
        assert f"this kernel ({features.release}) counts BPF memory against RLIMIT_MEMLOCK; set LimitMEMLOCK=" in said
    else:
        assert said == "loaded"


def test_function_whose_name_several_have_is_refused(loading: Loading) -> None:
    """With their number, on every kernel: some would take the first, others none."""
    names = Counter(
        line.split()[2] for line in Path("/proc/kallsyms").read_text().splitlines() if line.split()[1] in "tT"
    )
    name, count = next((name, count) for name, count in names.items() if count > 1 and name.isidentifier())
    with pytest.raises(KernelError) as caught:
        loading("functions", ProgramRequest("on_plain_kprobe", "kprobe", {"target": name}))
    assert caught.value.code == "kernel.attach_target"
    said = one_line(caught.value)
    assert (
        f"program 'on_plain_kprobe': {count} functions of this kernel ({probe().release}) are called {name!r}" in said
    )
    assert "attach.target" in said


def test_function_that_may_not_be_changed_is_named(loading: Loading) -> None:
    """It has a type and can be traced, but fmod_ret is for security hooks; lockdown refuses it before that."""
    program = ProgramRequest("on_fmod_ret", "fmod_ret/security_path_unlink", {"target": "vfs_unlink"})
    with pytest.raises(KernelError) as caught:
        loading("functions", program)
    said = one_line(caught.value)
    if caught.value.code == "kernel.permission":
        assert "refuses the trampoline" in said
    else:
        assert caught.value.code == "kernel.attach_target"
        assert f"what this kernel ({probe().release}) does not let be traced: vfs_unlink() is not modifiable" in said


def test_xdp_without_cap_net_admin_says_so(compile_object: Compile, tmp_path: Path) -> None:
    """It may load with CAP_BPF; attaching to an interface is the network administrator's."""
    said = load_as_nobody(compile_object("places"), "on_lo_packet", "xdp/lo", ",+bpf,+perfmon", tmp_path)
    assert said.startswith("kernel.permission")
    assert "CAP_NET_ADMIN" in said


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> Callable[[signal.Signals, str], list[subprocess.Popen[bytes]]]:
    """Send a signal to every loader child once its log has some words, or with none at its start.

    The children are returned as they come.
    """
    from exporter.kernel import channel, collection

    children: list[subprocess.Popen[bytes]] = []
    logs: list[int] = []
    start, receive = collection._start, channel.receive

    def arm(number: signal.Signals, words: str) -> list[subprocess.Popen[bytes]]:
        def starting(channel_fd: int, log: int) -> subprocess.Popen[bytes]:
            children.append(start(channel_fd, log))
            logs.append(log)
            if not words:  # before it has been asked for anything, so that it cannot have answered
                children[-1].send_signal(number)
            return children[-1]

        def receiving(socket: socket.socket, *, deadline: float) -> object:
            if not words:
                return receive(socket, deadline=deadline)
            end = time.monotonic() + 5
            while words.encode() not in os.pread(logs[-1], 1 << 16, 0) and time.monotonic() < end:
                pass
            children[-1].send_signal(number)
            return receive(socket, deadline=deadline)

        monkeypatch.setattr(collection, "_start", starting)
        monkeypatch.setattr(channel, "receive", receiving)
        return children

    return arm


ON_RAW_TP = (ProgramRequest("on_raw_tp", "raw_tp/sys_enter"),)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_crash_of_the_loader_is_one_error_of_one_image(
    compile_object: Compile,
    signalled: Callable[[signal.Signals, str], list[subprocess.Popen[bytes]]],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    """A signal in the middle of a load, as a bug in libbpf would give it; the next load is not touched."""
    object = compile_object("tables")  # many maps: the signal comes before it is done
    request = LoadRequest("crash", object, (SYSCALL,), enums=("bpf_map_type",))
    signalled(number, "loader: loading the object")
    with pytest.raises(KernelError, match=f"killed by {number.name} while loading the object") as caught:
        for _ in range(20):  # or it has answered before
            load(request).close()
    assert caught.value.code == "kernel.crashed"
    monkeypatch.undo()
    load(request).close()


def test_loader_that_hangs_is_killed_at_the_deadline(
    compile_object: Compile, signalled: Callable[[signal.Signals, str], list[subprocess.Popen[bytes]]]
) -> None:
    """Stopped, it never answers; the load ends in time and the child is gone."""
    children = signalled(signal.SIGSTOP, "")
    started = time.monotonic()
    with pytest.raises(KernelError, match="no answer within 1 s, killed while") as caught:
        load(LoadRequest("hang", compile_object("tables"), (SYSCALL,), deadline_s=1))
    assert time.monotonic() - started < 3
    assert caught.value.code == "kernel.deadline"
    assert [child.returncode for child in children] == [-signal.SIGKILL]


def test_object_that_is_not_the_promised_one_is_not_opened(
    compile_object: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child hashes the sealed bytes itself."""

    class Wrong:
        def __init__(self, _: bytes) -> None: ...

        def hexdigest(self) -> str:
            return "0" * 64

    monkeypatch.setattr(hashlib, "sha256", Wrong)
    with pytest.raises(KernelError, match=r"sha256:[0-9a-f]{64}, the request says sha256:0{64}") as caught:
        load(LoadRequest("hash", compile_object("hooks"), (ProgramRequest("on_raw_tp", "raw_tp/sys_enter"),)))
    assert caught.value.code == "kernel.loader"


def test_object_that_could_still_be_changed_is_not_opened(
    compile_object: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unsealed memory file may be one thing when hashed and another when read."""
    from exporter.kernel import collection

    def unsealed(data: bytes) -> int:
        fd = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(fd, data)
        return fd

    monkeypatch.setattr(collection, "_sealed", unsealed)
    with pytest.raises(KernelError, match="not sealed"):
        load(LoadRequest("seal", compile_object("hooks"), (ProgramRequest("on_raw_tp", "raw_tp/sys_enter"),)))


def test_lack_of_descriptors_is_named(compile_object: Compile) -> None:
    """At the limit of open files the answer's descriptors cannot arrive."""
    import resource

    object = compile_object("hooks")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        while True:
            try:
                held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        for _ in range(9):  # enough to start a child, too few for three programs and their links
            os.close(held.pop())
        with pytest.raises(KernelError, match=r"open files|EMFILE|descriptors") as caught:
            load(
                LoadRequest(
                    "many",
                    object,
                    (
                        ProgramRequest("on_raw_tp", "raw_tp/sys_enter"),
                        ProgramRequest("on_tp_btf", "tp_btf/sys_enter"),
                        ProgramRequest("on_tracepoint", "tracepoint/syscalls/sys_enter_getpgid"),
                    ),
                    read_maps=("calls", "calls_per_cpu"),
                )
            )
        assert caught.value.code == "kernel.descriptors"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)


def test_probe_describes_this_machine() -> None:
    """Kernel, capabilities and settings as other tools show them."""
    features = probe()
    assert features.release == os.uname().release
    assert features.btf == Path("/sys/kernel/btf/vmlinux").exists()
    assert features.tracefs
