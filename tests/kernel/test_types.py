"""CO-RE by types that were given, beside a kernel that shows its own and with those hidden."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.errors import KernelError
from exporter.kernel import Collection, GlobalRequest, LoadRequest, ProgramRequest, load, shows_types

from .conftest import ROOT, Compile, make_calls, rodata_offsets

VMLINUX = Path("/sys/kernel/btf/vmlinux")
ENTER = ProgramRequest("on_enter", "raw_tp/sys_enter")
TYPED = ProgramRequest("on_typed_enter", "tp_btf/sys_enter")
pytestmark = pytest.mark.skipif(not shows_types(), reason="needs the types of this kernel to give them to it")


def request(compile_object: Compile, *programs: ProgramRequest, **options: object) -> LoadRequest:
    """Load the program that reads the kernel's structures, told of this process."""
    object = compile_object("types")
    globals = (GlobalRequest(".rodata", rodata_offsets(object)["tgid"], struct.pack("=I", os.getpid())),)
    return LoadRequest("types", object, programs, globals=globals, read_maps=("comms",), **options)  # type: ignore[arg-type]


def calls(collection: Collection) -> dict[str, int]:
    """What it counted, by the name of the process."""
    found = {}
    for batch in collection.maps["comms"].batches():
        for row in range(batch.count):
            name = bytes(batch.keys[16 * row : 16 * row + 16]).rstrip(b"\0").decode()
            found[name] = struct.unpack_from("=Q", batch.values, 8 * row)[0]
    return found


@pytest.mark.parametrize("given", [False, True], ids=["own", "given"])
def test_members_are_found_by_the_kernels_types(compile_object: Compile, given: bool) -> None:
    """Those it shows, or the same from a file: names of members decide, not the order in the source."""
    types = VMLINUX.read_bytes() if given else b""
    with load(request(compile_object, ENTER, types=types, enums=("perf_sw_ids", "no_such_enum"))) as collection:
        assert collection.enums["perf_sw_ids"]["PERF_COUNT_SW_CPU_CLOCK"] == 0
        assert collection.enums["no_such_enum"] == {}
        make_calls(20)
        found = calls(collection)
    name = Path("/proc/self/comm").read_text().rstrip("\n")
    assert found[name] >= 20


def test_types_of_something_else_refuse_what_does_not_fit(compile_object: Compile) -> None:
    """An object's own BTF is well-formed and has no kernel in it."""
    foreign = object_types(compile_object("hooks"))
    with pytest.raises(KernelError) as raised:
        load(request(compile_object, ENTER, types=foreign))
    assert raised.value.code == "elf.core_reloc"
    assert "task_struct" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("enums", [(), ("perf_sw_ids",)])
def test_damaged_types_are_said_to_be_so(compile_object: Compile, enums: tuple[str, ...]) -> None:
    """A header that is right, and nothing behind it that is."""
    types = VMLINUX.read_bytes()
    damaged = types[:24] + b"\xff" * (len(types) - 24)
    with pytest.raises(KernelError) as raised:
        load(request(compile_object, ENTER, types=damaged, enums=enums))
    assert raised.value.code == "kernel.btf"
    assert "damaged" in str(raised.value) and "\n" not in str(raised.value)


def object_types(object: bytes) -> bytes:
    """The ``.BTF`` section of an object."""
    import io

    from elftools.elf.elffile import ELFFile

    section = ELFFile(io.BytesIO(object)).get_section_by_name(".BTF")
    assert section is not None
    return section.data()


HIDDEN = """
import json, os, sys
from pathlib import Path
from exporter.errors import KernelError
from exporter.kernel import GlobalRequest, LoadRequest, ProgramRequest, load, shows_types
object, types = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]).read_bytes() if sys.argv[2] else b""
programs = tuple(ProgramRequest(*one.split(":")) for one in sys.argv[4:])
answer = {"shows": shows_types()}
try:
    request = LoadRequest("t", object, programs, types=types, no_types=sys.argv[3], enums=("perf_sw_ids",))
    with load(request) as collection:
        answer["attached"] = {program.name: program.attached for program in collection.programs}
        answer["enum"] = collection.enums["perf_sw_ids"]
except KernelError as error:
    answer |= {"code": error.code, "error": str(error)}
print(json.dumps(answer))
"""


def hidden(
    tmp_path: Path, object: bytes, types: bytes, *programs: ProgramRequest, no_types: str = ""
) -> dict[str, object]:
    """What loading comes to where the kernel's types are hidden, in a process with mounts of its own."""
    source, given = tmp_path / "object.o", tmp_path / "types"
    source.write_bytes(object)
    given.write_bytes(types)
    # libbpf looks for a vmlinux file along a list of paths when the kernel shows no BTF: none is here.
    privately = "mount --make-rprivate /sys && mount -t tmpfs none /sys/kernel/btf"
    names = [f"{program.name}:{program.section}" for program in programs]
    unshare = ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", privately + ' && exec "$@"', "sh")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", HIDDEN, str(source), str(given) if types else "", no_types, *names],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    assert answer["shows"] is False
    return answer


needs_unshare = pytest.mark.skipif(shutil.which("unshare") is None, reason="hiding BTF needs a mount namespace")


@needs_unshare
def test_kernel_that_shows_no_types_is_given_them(tmp_path: Path, compile_object: Compile) -> None:
    """Members and enums are those of the file."""
    answer = hidden(tmp_path, compile_object("types"), VMLINUX.read_bytes(), ENTER)
    assert answer["attached"] == {"on_enter": True}
    assert answer["enum"]["PERF_COUNT_SW_CPU_CLOCK"] == 0  # type: ignore[index]


@needs_unshare
def test_kernel_without_types_is_named_with_the_remedy(tmp_path: Path, compile_object: Compile) -> None:
    """Its release, and where to put them; or why what was configured has none."""
    answer = hidden(tmp_path, compile_object("types"), b"", ENTER)
    assert answer["code"] == "kernel.btf"
    assert os.uname().release in str(answer["error"]) and "`btf:`" in str(answer["error"])
    answer = hidden(tmp_path, compile_object("types"), b"", ENTER, no_types="btf: '/x' has no types of kernel 1")
    assert "'/x' has no types of kernel 1" in str(answer["error"])


@needs_unshare
def test_typed_tracepoint_needs_the_kernels_own_types(tmp_path: Path, compile_object: Compile) -> None:
    """A file serves CO-RE only, and the message says so."""
    answer = hidden(tmp_path, compile_object("types"), VMLINUX.read_bytes(), TYPED)
    assert answer["code"] == "kernel.btf"
    assert "serves CO-RE only" in str(answer["error"]) and "raw_tp" in str(answer["error"])


@needs_unshare
def test_program_that_needs_no_types_runs_without(tmp_path: Path, compile_object: Compile) -> None:
    """Names of enums are then the object's own."""
    answer = hidden(tmp_path, compile_object("tables"), b"", ProgramRequest("on_syscall", "raw_tp/sys_enter"))
    assert answer["attached"] == {"on_syscall": True}
    assert answer["enum"] == {}
