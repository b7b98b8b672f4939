"""``skep build``: what clang makes of a source, for whom, and what is refused before it reaches a host."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from exporter.bpf import layout_of, read_object
from exporter.cli import build as verb
from exporter.cli.clang import Clang, CompileError, Source, fetching_atomics, register_readers
from exporter.errors import SkepError
from exporter.image import Store, host_architecture, parse_reference
from tests.support.clang import compile_bpf

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "_native"

COUNTER = """
#include <skep.bpf.h>
struct key { errno_code error; __u32 which SKEP_LABEL("disk"); };
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct key);
	__type(value, __u64);
} failures SEC(".maps") SKEP_COUNTER("disk.failures") SKEP_UNIT("{request}") SKEP_HELP("Requests that failed.");
SEC("raw_tp/sys_enter")
int on_call(void *ctx)
{
	struct key key = {};
	__u64 zero = 0, *count = skep_lookup_or_init(&failures, &key, &zero);

	if (count)
		skep_add(count, 1);
	return 0;
}
char LICENSE[] SEC("license") = "Dual BSD/GPL";
"""
KPROBE = """
#include "vmlinux.h"
#include <skep.bpf.h>
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, __u64);
} counter_opens SEC(".maps");
static __always_inline long second(struct pt_regs *ctx) { return PT_REGS_PARM2(ctx); }
SEC("kprobe/do_unlinkat")
int BPF_KPROBE(on_unlink, int dfd)
{
	__u64 key = dfd, one = 1;

	return bpf_map_update_elem(&counter_opens, &key, &one, 0);
}
SEC("kprobe/do_sys_open")
int on_open(struct pt_regs *ctx)
{
	__u64 key = second(ctx), one = 1;

	return bpf_map_update_elem(&counter_opens, &key, &one, 0);
}
SEC("kprobe/do_exit")
int on_exit(struct pt_regs *ctx) { return 0; }
char LICENSE[] SEC("license") = "GPL";
"""
# As little of each architecture's vmlinux.h as the headers need.
VMLINUX = """
#ifndef __VMLINUX_H__
#define __VMLINUX_H__
typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned int __u32; typedef unsigned long long __u64;
typedef signed char __s8; typedef short __s16; typedef int __s32; typedef long long __s64;
typedef __u16 __be16; typedef __u32 __be32; typedef __u32 __wsum; typedef _Bool bool;
enum { false, true };
enum bpf_map_type { BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_PERCPU_ARRAY = 6 };
enum { BPF_ANY, BPF_NOEXIST };
"""
VMLINUX_X86 = (
    VMLINUX
    + "struct pt_regs { unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di; };\n#endif\n"
)
VMLINUX_ARM = (
    VMLINUX + "struct user_pt_regs { __u64 regs[31], sp, pc; };\nstruct pt_regs { __u64 regs[31], sp, pc; };\n#endif\n"
)


@pytest.fixture(scope="module")
def clang() -> Clang:
    """The compiler of this machine."""
    return Clang()


def run(*arguments: object, store: Path | None = None) -> int:
    """``skep build`` as its own command."""
    extra = ["--store", str(store)] if store else []
    return verb.main([*map(str, arguments), *extra])


def written(folder: Path, text: str, name: str = "program.bpf.c") -> Path:
    """A source file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


# -- From source to object -------------------------------------------------------------------


def test_tags_of_the_header_land_in_btf_on_maps_members_and_typedefs(clang: Clang, tmp_path: Path) -> None:
    """Three places, three ways in which a compiler may lose a declaration tag."""
    text = COUNTER.replace("struct key {", 'typedef __u32 disk_nr SKEP_DECODE("hex");\nstruct key { disk_nr third;')
    content = clang.compile(Source(written(tmp_path, text), include_dirs=(NATIVE,)), "amd64")
    spec = read_object(content)
    found = spec.map("failures")
    assert found.tags == (
        "skep:kind=counter", "skep:name=disk.failures", "skep:unit={request}", "skep:help=Requests that failed.",
    )  # fmt: skip
    third, error, which = layout_of(spec.btf, found.key_type_id).leaves()
    assert third.tags == ("skep:decode=hex",)
    assert which.tags == ("skep:label=disk",)
    assert error.typedefs[0] == "errno_code"


def test_same_source_gives_the_same_bytes_in_any_folder(clang: Clang, tmp_path: Path) -> None:
    """No path of the machine that built it, and no DWARF, is in an object."""
    objects = []
    for folder in (tmp_path / "one", tmp_path / "other" / "deeper"):
        shutil.copytree(NATIVE, folder / "include", ignore=lambda _, names: [n for n in names if n != "skep.bpf.h"])
        source = Source(written(folder / "src", COUNTER), include_dirs=(folder / "include",))
        objects.append(clang.compile(source, "amd64"))
    assert objects[0] == objects[1]
    assert str(tmp_path).encode() not in objects[0]
    assert b".debug_" not in objects[0]


@pytest.mark.parametrize(("value", "floor", "ceil"), [
    (0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 1, 2), (4, 2, 2), (5, 2, 3), (255, 7, 8), (256, 8, 8), (257, 8, 9),
    (2**32 - 1, 31, 32), (2**32, 32, 32), (2**32 + 1, 32, 33), (2**63, 63, 63), (2**64 - 1, 63, 64),
])  # fmt: skip
def test_log2_helpers_round_as_their_slots_are_described(header: object, value: int, floor: int, ceil: int) -> None:
    """2^k is the inclusive upper edge of ceil's slot k, and the lower one of floor's."""
    assert header.log2_floor(value) == floor  # type: ignore[attr-defined]
    assert header.log2_ceil(value) == ceil  # type: ignore[attr-defined]


@pytest.mark.parametrize(("ns", "slot"), [
    (0, 0), (1, 0), (1000, 0), (1001, 1), (2000, 1), (2001, 2), (4000, 2), (128_000, 7), (128_001, 8),
    ((1 << 25) * 1000, 25), ((1 << 25) * 1000 + 1, 26), (2**63 - 1, 26), (2**64 - 5, 0),
])  # fmt: skip
def test_duration_lands_at_or_under_its_edge_and_in_the_sum(header: object, ns: int, slot: int) -> None:
    """1000 ns is not above the bound of 1 us and 1001 is; a clock that went back counts as 0."""
    import ctypes

    cells = (ctypes.c_uint64 * 28)()
    header.observe_ns(cells, ns)  # type: ignore[attr-defined]
    assert [index for index in range(27) if cells[index]] == [slot]
    assert cells[27] == (ns if ns < 2**63 else 0)


def test_value_beyond_the_last_slot_is_counted_in_it(header: object) -> None:
    """The last slot has no upper edge; nothing is written behind it."""
    import ctypes

    cells = (ctypes.c_uint64 * 6)()
    for value in (0, 1, 2, 4, 8, 16, 1 << 40):
        header.observe(cells, value)  # type: ignore[attr-defined]
    assert list(cells) == [2, 1, 1, 3, 31 + (1 << 40), 0]


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> object:
    """The header's arithmetic, compiled for this machine."""
    import ctypes

    target = tmp_path_factory.mktemp("header") / "header.so"
    source = ROOT / "tests" / "programs" / "skep_header.c"
    subprocess.run(["clang", "-O1", "-shared", "-fPIC", f"-I{NATIVE}", source, "-o", target], check=True, timeout=60)
    library = ctypes.CDLL(str(target))
    for name in ("log2_floor", "log2_ceil"):
        getattr(library, name).argtypes = [ctypes.c_uint64]
    for name in ("observe_ns", "observe"):
        getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    return library


# -- For which architectures ------------------------------------------------------------------


def test_source_without_registers_is_built_for_both_architectures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command, one index; each architecture resolves to an object."""
    store = tmp_path / "store"
    assert run(written(tmp_path, COUNTER), "localhost:5000/x/y:1", store=store) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "counter   disk_failures_total{error,disk}"
    assert printed[1].endswith("(amd64, arm64)") or printed[1].endswith("(arm64, amd64)")
    reference = parse_reference("localhost:5000/x/y:1")
    for architecture in ("amd64", "arm64"):
        bundle = Store(store).bundle(reference, architecture)
        assert read_object(bundle.object).map("failures")
        assert str(bundle.digest) == printed[1].split()[1]


def test_function_that_reads_registers_is_named_and_one_architecture_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kprobe's arguments lie in other registers elsewhere; a context that is not read is no reason."""
    vmlinux = written(tmp_path / "x86", VMLINUX_X86, "vmlinux.h")
    source = written(tmp_path, KPROBE)
    assert run(source, "x/y:1", f"--vmlinux=amd64:{vmlinux}", store=tmp_path / "store") == 0
    said = capsys.readouterr()
    assert "functions 'on_unlink', 'second' read registers, which differ on arm64" in said.err
    assert "--vmlinux=arm64:FILE" in said.err
    assert "on_exit" not in said.err
    assert said.out.rstrip().endswith("(amd64)")


def test_registers_are_no_obstacle_where_the_other_vmlinux_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each architecture is compiled against its own types, so the objects differ."""
    x86 = written(tmp_path / "x86", VMLINUX_X86, "vmlinux.h")
    arm = written(tmp_path / "arm", VMLINUX_ARM, "vmlinux.h")
    store = tmp_path / "store"
    assert (
        run(written(tmp_path, KPROBE), "x/y:1", f"--vmlinux=x86_64:{x86}", f"--vmlinux=aarch64:{arm}", store=store) == 0
    )
    assert capsys.readouterr().err == ""
    bundles = [Store(store).bundle(parse_reference("x/y:1"), name) for name in ("amd64", "arm64")]
    assert bundles[0].object != bundles[1].object


@pytest.mark.parametrize(("line", "reads"), [
    ("  %5 = getelementptr inbounds %struct.pt_regs, %struct.pt_regs* %4, i32 0, i32 14", True),
    ("  %5 = getelementptr inbounds nuw %struct.pt_regs, ptr %4, i32 0, i32 14", True),
    ("  %5 = call ptr @llvm.preserve.struct.access.index(ptr elementtype(%struct.user_pt_regs) %4, i32 0)", True),
    ("  %5 = getelementptr inbounds %struct.pt_regs.12, ptr %4, i32 0, i32 14", True),
    ("  %5 = call ptr @llvm.preserve.struct.access.index(ptr elementtype(%struct.pt_regs___arm64) %4)", False),
    ("  store %struct.pt_regs* %0, %struct.pt_regs** %2, align 8", False),
    ("  %5 = getelementptr inbounds %struct.pt_regs_list, ptr %4, i32 0, i32 1", False),
])  # fmt: skip
def test_register_access_is_told_from_other_mentions_of_pt_regs(line: str, reads: bool) -> None:
    """Old and new spellings of LLVM's code; a CO-RE flavour is its author's own care."""
    text = f"define internal i64 @____probe(i64 %0) #2 !dbg !1 {{\n{line}\n}}\n{line}\n"
    assert register_readers(text) == (("probe",) if reads else ())


# -- What is refused ---------------------------------------------------------------------------


def test_compile_error_is_shown_once_with_the_users_file_and_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two architectures, one message."""
    source = written(tmp_path, COUNTER.replace("key = {};", "key = {}; nonsense;"))
    assert run(source, "x/y:1", store=tmp_path / "store") == 1
    said = capfd.readouterr().err
    assert said.count(f"{source}:13:23: error: use of undeclared identifier 'nonsense'") == 1
    assert said.splitlines()[-1] == "skep: source 'program.bpf.c' does not compile; clang gave 1 error"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("header", "remedy"), [
    ("bpf/no_such_thing.h", "install libbpf's headers (Debian: libbpf-dev)"),
    ("asm/no_such_thing.h", "install the kernel's user headers"),
    ("mine.h", "give its folder with -I"),
])  # fmt: skip
def test_missing_header_says_what_to_do(tmp_path: Path, clang: Clang, header: str, remedy: str) -> None:
    """The person who builds needs a package's name, not a search path."""
    source = Source(written(tmp_path, f"#include <{header}>\n"))
    with pytest.raises(CompileError, match=r"program\.bpf\.c") as refused:
        clang.compile(source, "amd64")
    assert remedy in str(refused.value)
    assert "\n" not in str(refused.value)


def test_missing_vmlinux_for_this_machine_names_the_option(tmp_path: Path, clang: Clang) -> None:
    """The source's own words are not enough to find it."""
    with pytest.raises(CompileError, match="--vmlinux=ARCH:FILE"):
        clang.compile(Source(written(tmp_path, '#include "vmlinux.h"\n')), "amd64")


def test_missing_or_old_clang_says_what_to_install(tmp_path: Path) -> None:
    """Declaration tags on typedefs need clang 14."""
    with pytest.raises(SkepError, match=r"clang 'no-such-clang' is not on PATH; install clang 14 or newer"):
        Clang("no-such-clang")
    old = tmp_path / "clang"
    old.write_text("#!/bin/sh\necho 'Debian clang version 11.0.1-2'\n")
    old.chmod(0o755)
    with pytest.raises(SkepError, match=r"'Debian clang version 11.0.1-2'; building needs 14 or newer"):
        Clang(str(old))


ATOMICS = COUNTER.replace("skep_add(count, 1);", "return __sync_fetch_and_add(count, 1) > 7;")


def test_fetching_atomic_is_named_with_its_function(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Kernels before 5.12 refuse the instruction; with v3 it was asked for."""
    source = written(tmp_path, ATOMICS)
    assert run(source, "x/y:1", store=tmp_path / "store") == 1
    assert "'on_call' has an atomic operation that kernels before 5.12 do not have" in capfd.readouterr().err
    assert run(source, "x/y:1", "--mcpu=v3", store=tmp_path / "store") == 0


@pytest.mark.parametrize(("statement", "named"), [
    ("skep_add(count, 1);", False),
    ("__sync_fetch_and_sub(count, 1);", False),
    ("__sync_fetch_and_or(count, 1);", True),
    ("__sync_lock_test_and_set(count, 1);", True),
    ("return __sync_bool_compare_and_swap(count, 1, 2);", True),
])  # fmt: skip
def test_only_plain_addition_is_known_to_all_kernels(tmp_path: Path, clang: Clang, statement: str, named: bool) -> None:
    """Every other atomic operation came with instruction set v3."""
    source = Source(written(tmp_path, COUNTER.replace("skep_add(count, 1);", statement)), (NATIVE,), mcpu="v3")
    assert fetching_atomics(clang.compile(source, "amd64")) == (("on_call",) if named else ())


@pytest.mark.parametrize(("before", "after", "message"), [
    ('SKEP_UNIT("{request}")', 'SKEP_TAG("colour=red")', "colour"),
    ('SKEP_LABEL("disk")', 'SKEP_DECODE("nonsense")', "nonsense"),
    ("__u32 which", "struct { __u32 x[4]; __u8 y; } which[3]", "which"),
])  # fmt: skip
def test_what_cannot_be_exported_is_refused_at_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, message: str
) -> None:
    """A mistake in tags or types is found where the author is, not on the hosts."""
    assert run(written(tmp_path, COUNTER.replace(before, after)), "x/y:1", store=tmp_path / "store") == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["{source}"], "needs a name for the image (REF), or --output FILE.o"),
    (["{source}", "x/y:1", "--vmlinux=sparc:/f"], "expected ARCH:FILE with ARCH one of amd64, arm64"),
    (["{source}", "x/y:1", "--vmlinux=amd64:/nowhere"], "vmlinux.h '/nowhere' does not exist"),
    (["/nowhere.c", "x/y:1"], "source '/nowhere.c' does not exist"),
    (["{source}", "X//y:"], "X//y:"),
    (["{source}", "x/y:1", "--architecture=arm64"], "--architecture is for an object NAME.o"),
    (["/nowhere.o", "x/y:1"], "object '/nowhere.o' does not exist"),
    (["/nowhere.o", "x/y:1", "--cflags=-DX"], "--cflags is for a C file, and '/nowhere.o' is compiled already"),
    (["/nowhere.o", "-o", "x.o"], "--output is for a C file"),
    (["{source}", "x/y:1", "-I", "/nowhere"], "include folder '/nowhere' does not exist"),
])  # fmt: skip
def test_misused_option_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Subject, what was found, what was expected."""
    source = written(tmp_path, COUNTER)
    assert run(*[argument.format(source=source) for argument in arguments], store=tmp_path / "store") == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


# -- Metadata, output, store --------------------------------------------------------------------


def test_metadata_document_travels_in_the_image_and_wins_over_tags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the YAML says is planned at build and stored for the hosts."""
    metadata = written(
        tmp_path, 'version: 1\ndescription: "Disks."\nmetrics: {failures: {name: io.failed}}\n', "m.yaml"
    )
    store = tmp_path / "store"
    assert run(written(tmp_path, COUNTER), "x/y:1", "--metadata", metadata, "--version", "1.4", store=store) == 0
    assert "io_failed_total" in capsys.readouterr().out
    bundle = Store(store).bundle(parse_reference("x/y:1"))
    assert bundle.metadata["metrics"] == {"failures": {"name": "io.failed"}}
    assert bundle.version == "1.4"
    assert bundle.annotations["org.opencontainers.image.description"] == "Disks."


@pytest.mark.parametrize(("text", "message"), [
    ("metrics: {failures: {nmae: x}}\nversion: 1\n", "nmae"),
    ("version: 1\nmetrics: {nothing: {name: x}}\n", "nothing"),
    ("{", "m.yaml:1:2: not YAML"),
    ("- 1\n", "expected a mapping"),
])  # fmt: skip
def test_wrong_metadata_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    """Unknown keys and maps are mistakes; the message names them."""
    metadata = written(tmp_path, text, "m.yaml")
    assert run(written(tmp_path, COUNTER), "x/y:1", "--metadata", metadata, store=tmp_path / "store") == 1
    assert message in capsys.readouterr().err


def test_output_writes_the_object_without_a_store(tmp_path: Path) -> None:
    """For those who load it by other means."""
    target = tmp_path / "x.o"
    assert run(written(tmp_path, COUNTER), "--output", target) == 0
    assert read_object(target.read_bytes()).map("failures")
    assert list(tmp_path.glob(".x.o*")) == []


def test_same_source_gives_the_same_image_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No time and no path enters an image."""
    for name in ("one", "two"):
        assert run(written(tmp_path / name, COUNTER), "x/y:1", store=tmp_path / name / "store") == 0
    first, second = (line.split()[1] for line in capsys.readouterr().out.splitlines() if "sha256:" in line)
    assert first == second


def test_map_without_a_kind_is_said_to_export_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An author who forgot the tag learns it here."""
    text = COUNTER.replace(
        'SKEP_COUNTER("disk.failures") SKEP_UNIT("{request}") SKEP_HELP("Requests that failed.")', ""
    )
    assert run(written(tmp_path, text), "x/y:1", store=tmp_path / "store") == 0
    assert "exports nothing" in capsys.readouterr().out


def test_bumblebee_source_compiles_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own header of typedefs is there, and map names say what is exported."""
    text = """
#include "vmlinux.h"
#include "bpf/bpf_helpers.h"
#include "solo_types.h"
struct event_t { ipv4_addr daddr; __u32 pid; };
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct event_t);
	__type(value, __u64);
} counter_connections SEC(".maps");
SEC("tracepoint/syscalls/sys_enter_connect")
int on_connect(void *ctx)
{
	struct event_t key = {};
	__u64 one = 1;

	return bpf_map_update_elem(&counter_connections, &key, &one, 0);
}
char __license[] SEC("license") = "GPL";
"""
    vmlinux = written(tmp_path / "x86", VMLINUX_X86, "vmlinux.h")
    source = written(tmp_path, text)
    assert (
        run(source, "x/y:1", f"--vmlinux=amd64:{vmlinux}", f"--vmlinux=arm64:{vmlinux}", store=tmp_path / "store") == 0
    )
    assert capsys.readouterr().out.startswith("counter   ebpf_connections_total{daddr,pid}\n")


def test_cflags_and_include_folders_reach_clang(tmp_path: Path) -> None:
    """A relative folder is meant from where the command was given, as clang means it."""
    written(tmp_path / "mine", "#define ENTRIES 64\n", "mine.h")
    text = COUNTER.replace(
        "<skep.bpf.h>", '<skep.bpf.h>\n#include "mine.h"\n_Static_assert(ENTRIES == 64 && EXTRA == 7, "");'
    )
    source = written(tmp_path, text)
    done = subprocess.run(
        [sys.executable, "-m", "exporter.cli.build", source, "--output", "x.o", "-I", "mine", "--cflags=-DEXTRA=7"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.o").exists()


def test_types_of_kernels_are_put_into_the_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As they are given; what is neither BTF nor an archive is refused before the compiler runs."""
    source, store = written(tmp_path, COUNTER), tmp_path / "store"
    types = tmp_path / "kernels.tar.xz"
    with tarfile.open(types, "w:xz") as archive:
        archive.add(source, "5.4.0-91-generic.btf")
    assert run(source, "registry.example/me/prog:1", "--btf", types, store=store) == 0
    bundle = Store(store).bundle(parse_reference("registry.example/me/prog:1"))
    assert bundle.types is not None and bundle.types() == types.read_bytes()
    for path, words in ((source, "expected BTF, or a tar archive of it"), (tmp_path / "none", "No such file")):
        assert run(source, "registry.example/me/prog:1", "--btf", path, store=store) != 0
        assert words in capsys.readouterr().err


def test_object_that_exists_becomes_an_image_with_its_metadata(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Byte for byte, for the machines it is said to be for; what it cannot be is refused as of a source."""
    content = compile_bpf("MAP(calls, HASH, 9, u32, u64);")
    path, store = tmp_path / "tool.bpf.o", tmp_path / "store"
    path.write_bytes(content)
    metadata = written(tmp_path, "version: 1\nmetrics: {calls: {kind: counter}}\n", "m.yaml")
    assert run(path, "x/tool:1", "--metadata", metadata, store=store) == 0
    assert "counter   ebpf_calls_total{key}" in capfd.readouterr().out
    bundle = Store(store).bundle(parse_reference("x/tool:1"))
    assert (bundle.object, bundle.architecture) == (content, host_architecture())
    assert bundle.metadata["metrics"] == {"calls": {"kind": "counter"}}
    assert run(path, "x/tool:2", "--architecture=x86_64", "--architecture=arm64", store=store) == 0
    assert "exports nothing" in (said := capfd.readouterr().out) and "(amd64, arm64)" in said
    wrong = written(tmp_path, "version: 1\nmetrics: {none: {kind: counter}}\n", "w.yaml")
    for change, words in (
        (["--metadata", wrong], "no such map"),
        (["--architecture=sparc"], "--architecture 'sparc': expected one of amd64, arm64"),
    ):
        assert run(path, "x/tool:3", *change, store=store) == 1
        assert words in capfd.readouterr().err
    path.write_bytes(b"\x7fELF")
    assert run(path, "x/tool:3", store=store) == 1
    assert capfd.readouterr().err.count("\n") == 1
