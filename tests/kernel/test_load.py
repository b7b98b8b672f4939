"""Loading through the child: hooks count, links live by their descriptors, and only so long."""

import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exporter.errors import KernelError
from exporter.kernel import Collection, GlobalRequest, LoadRequest, Map, MapRequest, ProgramRequest, load
from tests.support.libbpf import settled
from tests.support.workload import kernel_version

from .conftest import GETPGID, Compile, Loading, make_calls, own_globals, rodata_offsets

HOOKS = (
    ProgramRequest("on_raw_tp", "raw_tp/sys_enter"),
    ProgramRequest("on_tp_btf", "tp_btf/sys_enter"),
    ProgramRequest("on_tracepoint", "tracepoint/syscalls/sys_enter_getpgid"),
)


def cells(collection: Collection, name: str) -> list[int]:
    """The u64 values of an array map; per-CPU slots are summed."""
    return map_cells(collection.maps[name])


def outlive(collection: Collection, name: str) -> Map:
    """A map that is still there when the collection has closed."""
    map = collection.maps[name]
    return Map(
        map.name,
        type=map.type,
        key_size=map.key_size,
        value_size=map.value_size,
        max_entries=map.max_entries,
        fd=os.dup(map.fd),
    )


def map_cells(map: Map) -> list[int]:
    """The u64 values of an array map; per-CPU slots are summed."""
    values: list[int] = []
    for batch in map.batches():
        numbers = struct.unpack(f"={batch.count * batch.cpus}Q", batch.values)
        values += [sum(numbers[i * batch.cpus : (i + 1) * batch.cpus]) for i in range(batch.count)]
    return values


@pytest.fixture
def hooks(loading: Loading, compile_object: Compile) -> Collection:
    """The three tracing hooks on this process's ``getpgid`` calls."""
    return loading(
        "hooks",
        *HOOKS,
        globals=own_globals(compile_object("hooks"), syscall=GETPGID),
        read_maps=("calls", "calls_per_cpu"),
    )


@pytest.mark.matrix("hook", "raw_tp tp_btf tracepoint")
def test_every_tracing_hook_counts_the_same_calls_to_the_last_one(hooks: Collection) -> None:
    """raw_tp, tp_btf and tracepoint see each call once, in plain and per-CPU cells."""
    make_calls(12_345)
    assert cells(hooks, "calls") == [12_345] * 3
    assert cells(hooks, "calls_per_cpu") == [12_345] * 3


def test_programs_say_what_the_kernel_calls_them(hooks: Collection) -> None:
    """Ids and tags are the kernel's own."""
    for program in hooks.programs:
        assert program.attached
        assert not program.error
        described = Path(f"/proc/self/fdinfo/{program.fd}").read_text()
        assert f"prog_id:\t{program.id}\n" in described
        assert f"prog_tag:\t{program.tag}\n" in described


def test_programs_stop_when_the_collection_closes(loading: Loading, compile_object: Compile) -> None:
    """The links live by their descriptors alone: nothing else holds them once the child has ended."""
    options = {"globals": own_globals(compile_object("hooks"), syscall=GETPGID), "read_maps": ("calls",)}
    collection = loading("hooks", *HOOKS, **options)
    kept = outlive(collection, "calls")
    ids = [program.id for program in collection.programs]
    make_calls(10)
    collection.close()
    make_calls(10)
    assert map_cells(kept) == [10, 10, 10]
    kept.close()
    listed = subprocess.run(["bpftool", "prog", "list"], check=True, capture_output=True, text=True).stdout
    running = {int(line.split(":")[0]) for line in listed.splitlines() if line[:1].isdigit()}
    assert not running & set(ids)


def test_close_twice_is_harmless(hooks: Collection) -> None:
    """The second close must not close somebody else's descriptors."""
    hooks.close()
    read, write = os.pipe()
    hooks.close()
    os.write(write, b"x")
    assert os.read(read, 1) == b"x"
    os.close(read)
    os.close(write)


def descriptors() -> set[str]:
    """The numbers of this process's open descriptors."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_a_load_leaves_no_descriptor_behind(compile_object: Compile) -> None:
    """After close this process has exactly the descriptors it had."""
    object = compile_object("hooks")
    before = descriptors()
    for _ in range(2):
        load(LoadRequest("hooks", object, HOOKS, globals=own_globals(object), read_maps=("calls",))).close()
    assert descriptors() == before


def test_descriptors_are_not_inherited_by_programs_we_start(hooks: Collection) -> None:
    """A child that kept a link would keep the program running after close."""
    held = [fd for program in hooks.programs for fd in (program.fd, *program.links)]
    assert not any(os.get_inheritable(fd) for fd in [*held, *(map.fd for map in hooks.maps.values())])


def test_only_requested_programs_are_loaded(loading: Loading, compile_object: Compile) -> None:
    """What the plan leaves out stays out of the kernel."""
    globals = own_globals(compile_object("hooks"), syscall=GETPGID)
    collection = loading("hooks", HOOKS[1], globals=globals, read_maps=("calls",))
    make_calls(5)
    assert cells(collection, "calls") == [0, 5, 0]


def test_max_entries_and_enums_come_as_requested(loading: Loading) -> None:
    """A map is resized before it is made; kernel enums have the running kernel's values, unknown ones none."""
    collection = loading(
        "tables",
        ProgramRequest("on_syscall", "raw_tp/sys_enter"),
        maps=(MapRequest("hash", max_entries=7),),
        read_maps=("hash",),
        enums=("bpf_map_type", "skep_no_such_enum"),
    )
    assert collection.maps["hash"].max_entries == 7
    assert collection.enums["bpf_map_type"]["BPF_MAP_TYPE_LRU_HASH"] == 9
    assert collection.enums["skep_no_such_enum"] == {}


@pytest.mark.matrix("hook", "raw_tp tp_btf tracepoint")
@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ({"on_raw_tp": "sys_exit"}, [0, 7, 7]),
        ({"on_tp_btf": "sys_exit"}, [7, 0, 7]),
        ({"on_tracepoint": "syscalls/sys_enter_getsid"}, [7, 7, 1]),
    ],
)
def test_attach_target_replaces_the_one_of_the_section(
    loading: Loading, compile_object: Compile, targets: dict[str, str], expected: list[int]
) -> None:
    """At sys_exit the second argument is the result and not the call's number, so the same code counts nothing."""
    programs = [
        ProgramRequest(hook.name, hook.section, {"target": targets[hook.name]} if hook.name in targets else None)
        for hook in HOOKS
    ]
    globals = own_globals(compile_object("hooks"), syscall=GETPGID)
    collection = loading("hooks", *programs, globals=globals, read_maps=("calls",))
    make_calls(7)
    os.getsid(0)
    assert cells(collection, "calls") == expected


UPROBED = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((noinline)) int probe_me(int n) { __asm__ volatile(""); return n + 1; }
int main(int argc, char **argv) { int n = 0; for (int i = atoi(argv[1]); i > 0; i--) n = probe_me(n); return n < 0; }
"""


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that calls ``probe_me`` as often as its argument says."""
    directory = tmp_path_factory.mktemp("binary")
    (directory / "calls.c").write_text(UPROBED)
    subprocess.run(["clang", "-O1", directory / "calls.c", "-o", directory / "calls"], check=True)
    return directory / "calls"


@pytest.mark.matrix("hook", "uprobe uretprobe")
@pytest.mark.parametrize("target", ["probe_me", "probe_me+0x0"])
def test_uprobes_count_calls_and_returns(loading: Loading, binary: Path, target: str) -> None:
    """Binary and symbol from the operator; once by a multi link, once, with an offset, by a perf event."""
    collection = loading(
        "places",
        ProgramRequest("on_call", "uprobe", {"binary": str(binary), "target": target}),
        ProgramRequest("on_return", "uretprobe", {"binary": str(binary), "target": "probe_me"}),
        read_maps=("visits",),
        partial=False,
    )
    subprocess.run([binary, "1234"], check=True)
    assert cells(collection, "visits")[:2] == [1234, 1234]
    kept = outlive(collection, "visits")
    collection.close()
    subprocess.run([binary, "10"], check=True)
    assert map_cells(kept)[:2] == [1234, 1234]
    kept.close()


@pytest.mark.skipif(kernel_version() < (6, 6), reason="no multi links of user functions (first in 6.6)")
@pytest.mark.matrix("hook", "uprobe.multi uretprobe.multi")
def test_functions_of_a_pattern_are_counted_in_a_binary(loading: Loading, binary: Path) -> None:
    """Each once, by one link for all of them; a pattern that fits none is an error."""
    collection = loading(
        "places",
        ProgramRequest("on_pattern", "uprobe.multi", {"binary": str(binary), "target": "probe_?e"}),
        ProgramRequest("on_pattern_return", "uretprobe.multi", {"binary": str(binary), "target": "probe_*"}),
        read_maps=("visits",),
        partial=False,
    )
    subprocess.run([binary, "321"], check=True)
    assert cells(collection, "visits")[6:8] == [321, 321]
    with pytest.raises(KernelError, match=re.escape(f"'nothing_*' of '{binary}'")):
        loading("places", ProgramRequest("on_pattern", "uprobe.multi", {"binary": str(binary), "target": "nothing_*"}))


LIBRARY = r"""
__attribute__((noinline)) int plain(int n) { __asm__ volatile(""); return n + 1; }
__attribute__((noinline)) int older(int n) { __asm__ volatile(""); return n + 1; }
__attribute__((noinline)) int newer(int n) { __asm__ volatile(""); return n + 2; }
__asm__(".symver older, versioned@V_1");
__asm__(".symver newer, versioned@@V_2");
"""
CALLER = r"""
#include <stdlib.h>
int plain(int), versioned(int);
int main(int argc, char **argv) { for (int i = atoi(argv[1]); i > 0; i--) plain(versioned(i)); return 0; }
"""


@pytest.mark.parametrize("target", ["plain", "versioned", "versioned@@V_2"])
def test_function_of_a_stripped_library_is_found(loading: Loading, tmp_path: Path, target: str) -> None:
    """It names what it exports only; without a version it is the one that programs are linked against today."""
    (tmp_path / "library.c").write_text(LIBRARY)
    (tmp_path / "caller.c").write_text(CALLER)
    (tmp_path / "versions").write_text("V_1 { global: plain; local: *; }; V_2 { } V_1;")
    library, caller = tmp_path / "libstripped.so", tmp_path / "caller"
    script = f"-Wl,--version-script={tmp_path}/versions"
    subprocess.run(
        ["clang", "-O1", "-fPIC", "-shared", "-s", script, "library.c", "-o", library], check=True, cwd=tmp_path
    )
    subprocess.run(
        ["clang", "-O1", "caller.c", library, f"-Wl,-rpath,{tmp_path}", "-o", caller], check=True, cwd=tmp_path
    )
    collection = loading(
        "places",
        ProgramRequest("on_call", "uprobe", {"binary": str(library), "target": target}),
        read_maps=("visits",),
        partial=False,
    )
    subprocess.run([caller, "50"], check=True)
    assert cells(collection, "visits")[0] == 50


USDT = r"""
#include <stdlib.h>
#define VISIT() __asm__ volatile( \
    "990: nop\n" \
    ".pushsection .note.stapsdt,\"\",\"note\"\n .balign 4\n .4byte 992f-991f, 994f-993f, 3\n" \
    "991: .asciz \"stapsdt\"\n 992: .balign 4\n" \
    "993: .8byte 990b, base_of_probes, 0\n .asciz \"skep\"\n .asciz \"visit\"\n .asciz \"\"\n" \
    "994: .balign 4\n .popsection\n")
__asm__(".pushsection .stapsdt.base,\"a\",\"progbits\"\n base_of_probes: .space 1\n .popsection");
int main(int argc, char **argv)
{
    for (int i = atoi(argv[1]); i > 0; i--)
        VISIT();
    for (int i = atoi(argv[1]); i > 0; i--)
        VISIT();
}
"""


@pytest.mark.matrix("hook", "usdt")
def test_usdt_probe_is_attached_at_all_its_places_until_close(loading: Loading, tmp_path: Path) -> None:
    """No descriptor of such a link is shown by libbpf; it must live in the parent all the same."""
    if kernel_version() < (5, 15):
        pytest.skip("libbpf needs BPF cookies to probe every process of a position-independent binary (first in 5.15)")
    (tmp_path / "visits.c").write_text(USDT)
    visits = tmp_path / "visits"
    subprocess.run(["clang", "-O1", tmp_path / "visits.c", "-o", visits], check=True)
    collection = loading(
        "places",
        ProgramRequest("on_probe", "usdt", {"binary": str(visits), "target": "skep:visit"}),
        read_maps=("visits",),
        partial=False,
    )
    subprocess.run([visits, "100"], check=False)
    assert cells(collection, "visits")[5] == 200
    kept = outlive(collection, "visits")
    collection.close()
    subprocess.run([visits, "100"], check=False)
    assert map_cells(kept)[5] == 200
    kept.close()


@pytest.mark.matrix("hook", "uprobe")
def test_uprobe_of_one_process_ignores_the_others(loading: Loading, binary: Path) -> None:
    """With ``pid`` only that process is counted, from the perf way of attaching."""
    libc = "/lib/x86_64-linux-gnu/libc.so.6"
    collection = loading(
        "places",
        ProgramRequest("on_call", "uprobe", {"binary": libc, "target": "getpgid", "pid": os.getpid()}),
        read_maps=("visits",),
        partial=False,
    )
    make_calls(21)
    subprocess.run([sys.executable, "-S", "-c", "import os; [os.getpgid(0) for _ in range(50)]"], check=True)
    assert cells(collection, "visits")[0] == 21


def burn(seconds: float) -> None:
    """Use a CPU."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.matrix("hook", "perf_event")
@pytest.mark.parametrize(
    ("attach", "hertz"), [(None, 1000), ({"frequency_hz": 100}, 100), ({"period": 10_000_000}, 100)]
)
def test_perf_event_samples_every_cpu_at_the_asked_rate(
    loading: Loading, attach: dict[str, object] | None, hertz: int
) -> None:
    """Half a second of work under cpu-clock, by the section's 1000 Hz, by 100 Hz, by 10 ms."""
    section = "perf_event/type=software,config=cpu-clock,frequency=1000"
    started = time.monotonic()
    collection = loading("places", ProgramRequest("on_sample", section, attach), read_maps=("visits",), partial=False)
    assert len(collection.programs[0].links) == os.cpu_count()
    burn(0.5)
    seen = cells(collection, "visits")[2]
    # At least this process's own time, at most all of everybody's since before the load.
    most = (time.monotonic() - started) * hertz * (os.cpu_count() or 1)
    assert 0.25 * hertz <= seen <= 1.1 * most
    kept = outlive(collection, "visits")
    collection.close()
    after = map_cells(kept)
    burn(0.1)
    assert map_cells(kept) == after
    kept.close()


def xdp_modes() -> dict[str, int]:
    """How each interface's XDP program is attached: 1 by the driver, 2 above it."""
    import json

    listed = subprocess.run(["ip", "-j", "link", "show"], check=True, capture_output=True, text=True).stdout
    return {link["ifname"]: link["xdp"]["mode"] for link in json.loads(listed) if "xdp" in link}


def send_packets(port: int, count: int) -> None:
    """So many UDP packets to this host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(b"x", ("127.0.0.1", port))


@pytest.mark.matrix("hook", "section")
@pytest.mark.parametrize(
    ("program", "section", "attach", "modes"),
    [
        ("on_packet", "xdp", {"interfaces": ["lo", "skep0"]}, {"lo": 2, "skep0": 1}),
        ("on_lo_packet", "xdp/lo", None, {"lo": 2}),
    ],
)
def test_xdp_counts_packets_by_the_driver_or_above_it(  # noqa: PLR0917
    loading: Loading,
    compile_object: Compile,
    network: Callable[[Callable[[], None]], None],
    program: str,
    section: str,
    attach: dict[str, object] | None,
    modes: dict[str, int],
) -> None:
    """Every packet to one port is counted; interfaces come from the options or from the section; close detaches."""
    offset = rodata_offsets(compile_object("places"))["port"]

    def inside() -> None:
        collection = loading(
            "places",
            ProgramRequest(program, section, attach),
            globals=(GlobalRequest(".rodata", offset, struct.pack("=H", 9999)),),
            read_maps=("visits",),
            partial=False,
        )
        assert xdp_modes() == modes
        send_packets(9999, 250)
        send_packets(9998, 50)
        assert settled(lambda: cells(collection, "visits")[3]) == 250
        collection.close()
        assert xdp_modes() == {}

    network(inside)


@pytest.mark.matrix("hook", "cgroup_skb/egress")
def test_cgroup_program_attaches_where_the_operator_says(loading: Loading, tmp_path: Path) -> None:
    """The packets that a process of that cgroup sends, and no others."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    root = Path(next(fields[1] for fields in mounts if fields[2] == "cgroup2"))
    cgroup = root / f"skep-test-{os.getpid()}"
    cgroup.mkdir()
    try:
        collection = loading(
            "places",
            ProgramRequest("on_egress", "cgroup_skb/egress", {"cgroup": str(cgroup)}),
            read_maps=("visits",),
            partial=False,
        )
        send_packets(9, 5)
        assert cells(collection, "visits")[4] == 0
        script = f"echo $$ > {cgroup}/cgroup.procs; for i in 1 2 3; do echo x > /dev/udp/127.0.0.1/9; done"
        subprocess.run(["bash", "-c", script], check=True)
        assert cells(collection, "visits")[4] == 3
        collection.close()
    finally:
        cgroup.rmdir()


def test_loads_in_several_threads_do_not_mix(compile_object: Compile) -> None:
    """Each gets its own maps and links, and no child keeps those of another."""
    object = compile_object("hooks")
    globals = own_globals(object, syscall=GETPGID)
    with ThreadPoolExecutor(4) as pool:
        requests = [LoadRequest(f"hooks{n}", object, HOOKS, globals=globals, read_maps=("calls",)) for n in range(8)]
        collections = list(pool.map(load, requests))
    for closed in collections[::2]:
        closed.close()
    make_calls(100)
    for collection in collections[1::2]:
        assert cells(collection, "calls") == [100, 100, 100]
        collection.close()
