"""Every kind of hook: it attaches where section and options say, counts what happens there, and stops at close."""

import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from exporter.errors import KernelError
from exporter.kernel import GlobalRequest, ProgramRequest, netlink, online_cpus
from exporter.kernel.adopt import adopt, descriptors_of, view_of
from exporter.kernel.attach.cgroup import cgroup2_root
from tests.support.libbpf import settled
from tests.support.workload import kernel_version
from tests.vm.guest import channel

from .conftest import Compile, Loading, Network, make_calls, rodata_offsets
from .test_load import burn, cells, map_cells, outlive


@contextlib.contextmanager
def first_in(version: str, *refusals: str, setting: str = "") -> Iterator[None]:
    """Skip when the kernel is older, or was built without the setting; a kernel that has both must carry it.

    ``refusals`` are the words a kernel without the setting, or in lockdown, refuses with.
    """
    if kernel_version() < tuple(int(part) for part in version.split(".")):
        pytest.skip(f"first in {version}")
    try:
        yield
    except KernelError as error:
        if setting and any(word in str(error) for word in refusals):
            pytest.skip(f"needs {setting}: {error}")
        raise


def own_tgid(object: bytes) -> tuple[GlobalRequest, ...]:
    """The global ``tgid`` set to this process."""
    return (GlobalRequest(".rodata", rodata_offsets(object)["tgid"], struct.pack("=I", os.getpid())),)


def send_packets(count: int, port: int = 9) -> None:
    """So many UDP packets over ``lo``, which each leave it and arrive at it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(count):
                sender.sendto(b"x", receiver.getsockname())


def filters_of_lo() -> list[netlink.Filter]:
    """The BPF filters on ``lo``, both ways."""
    with netlink._Netlink() as one:
        index = socket.if_nametoindex("lo")
        return [*one.filters(index, "ingress"), *one.filters(index, "egress")]


LO = {"interfaces": ["lo"]}


@pytest.mark.matrix("hook", "section")
@pytest.mark.parametrize(
    ("cell", "program", "section", "attach", "seen"),
    [
        (0, "on_tcx_ingress", "tcx/ingress", LO, 50),
        (1, "on_tcx_egress", "tcx/egress", LO, 50),
        (2, "on_tc_ingress", "tc/ingress", LO, 50),
        (3, "on_tc", "tc", {**LO, "direction": "egress"}, 50),
        (2, "on_tc_ingress", "tc/ingress", {**LO, "priority": 7}, 50),  # a priority is a filter's
        (3, "on_tc", "tc", {**LO, "direction": "egress", "priority": 9}, 50),
        (4, "on_classifier", "classifier/egress/all", LO, 50),
        (5, "on_action", "action", {**LO, "direction": "ingress"}, 50),
        (6, "on_socket", "socket", LO, 100),  # lo shows each packet leaving and arriving
        (7, "on_socket1", "socket1", LO, 100),
        (10, "on_xdp_pass", "xdp_pass", LO, 50),
        (11, "on_xdp_frags", "xdp.frags/lo", None, 50),
    ],
)
def test_packets_of_an_interface_are_counted_until_close(  # noqa: PLR0917
    loading: Loading,
    network: Network,
    cell: int,
    program: str,
    section: str,
    attach: Mapping[str, object] | None,
    seen: int,
) -> None:
    """Traffic control by link or by filter, packet sockets, XDP under the spellings of the field."""

    def inside() -> None:
        with first_in("5.18" if "frags" in section else "5.10"):
            collection = loading(
                "packets", ProgramRequest(program, section, attach), read_maps=("seen",), partial=False
            )
        send_packets(50)
        assert settled(lambda: cells(collection, "seen")[cell]) == seen
        kept = outlive(collection, "seen")
        collection.close()
        send_packets(50)
        assert map_cells(kept)[cell] == seen
        kept.close()
        assert not filters_of_lo()

    network(inside)


@pytest.mark.matrix("hook", "section")
@pytest.mark.parametrize(
    ("cell", "program", "section", "attach", "seen"),
    [
        (8, "on_netfilter", "netfilter", {"target": "input", "priority": -150}, 50),
        (8, "on_netfilter", "netfilter", {"target": "local_in", "family": "ipv6"}, 0),
        (9, "on_ipv4_output", "netfilter/ipv4/local_out", None, 50),
    ],
)
def test_netfilter_hook_sees_the_packets_of_its_families(  # noqa: PLR0917
    loading: Loading,
    network: Network,
    cell: int,
    program: str,
    section: str,
    attach: Mapping[str, object] | None,
    seen: int,
) -> None:
    """One link for each family; section or options name the hook."""

    def inside() -> None:
        with first_in("6.4", "CONFIG_NETFILTER_BPF_LINK", setting="CONFIG_NETFILTER_BPF_LINK"):
            collection = loading(
                "packets", ProgramRequest(program, section, attach), read_maps=("seen",), partial=False
            )
        send_packets(50)
        assert cells(collection, "seen")[cell] == seen
        kept = outlive(collection, "seen")
        collection.close()
        send_packets(50)
        assert map_cells(kept)[cell] == seen
        kept.close()

    network(inside)


def test_filter_of_a_dead_process_is_swept_and_others_are_not_touched(loading: Loading, network: Network) -> None:
    """A tc filter outlives its maker; it goes when nobody holds its owner, by whoever starts next."""

    def inside() -> None:
        places = [{**LO, "direction": way, "priority": 5} for way in ("ingress", "egress")]
        first, second = (
            loading("packets", ProgramRequest("on_tc", "tc", place), read_maps=("seen",), partial=False)
            for place in places
        )
        foreign = "filter add dev lo ingress prio 3 bpf bytecode"
        subprocess.run(["tc", *foreign.split(), "1,6 0 0 0,"], check=True)
        assert not netlink.sweep()
        assert len(filters_of_lo()) == 3
        # As a crash leaves it: descriptors closed, nothing deleted.
        for program in first.programs:
            for fd in (*program.links, program.fd):
                os.close(fd)
        first.programs = ()
        assert [(one.direction, one.name.rpartition(":")[2]) for one in netlink.sweep()] == [("ingress", "on_tc")]
        assert sorted(one.direction for one in filters_of_lo()) == ["egress", "ingress"]
        second.close()
        assert [one.name.startswith("skep:") for one in filters_of_lo()] == [False]

    network(inside)


def test_filter_goes_with_its_interface(loading: Loading, network: Network) -> None:
    """Detaching what is no longer there is no error."""

    def inside() -> None:
        place = {"interfaces": ["skep0"], "direction": "ingress", "priority": 1}
        collection = loading("packets", ProgramRequest("on_tc", "tc", place), partial=False)
        subprocess.run(["ip", "link", "del", "skep0"], check=True)
        collection.close()
        assert not netlink.sweep()

    network(inside)


CGROUP_SCRIPT = """
import os, socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 1)
udp.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY)
udp.bind(("127.0.0.1", 0))
udp.sendto(b"x", udp.getsockname())
udp.recv(1)
udp.close()
open("/proc/sys/kernel/ostype").read()
open("/dev/null").read()
"""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of its own."""
    directory = Path(cgroup2_root()) / f"skep-hooks-{os.getpid()}"
    directory.mkdir()
    yield directory
    directory.rmdir()


@pytest.mark.matrix("hook", "section")
@pytest.mark.parametrize(
    ("cell", "program", "section"),
    [
        (0, "on_ingress", "cgroup_skb/ingress"),
        (1, "on_egress", "cgroup_skb/egress"),
        (2, "on_sock_create", "cgroup/sock_create"),
        (3, "on_sock_release", "cgroup/sock_release"),
        (4, "on_connect4", "cgroup/connect4"),
        (5, "on_bind4", "cgroup/bind4"),
        (6, "on_sendmsg4", "cgroup/sendmsg4"),
        (7, "on_post_bind4", "cgroup/post_bind4"),
        (8, "on_sysctl", "cgroup/sysctl"),
        (9, "on_device", "cgroup/dev"),
        (10, "on_getsockopt", "cgroup/getsockopt"),
        (11, "on_setsockopt", "cgroup/setsockopt"),
        (12, "on_sockops", "sockops"),
    ],
)
def test_cgroup_hook_sees_the_processes_of_its_cgroup(
    loading: Loading, cgroup: Path, cell: int, program: str, section: str
) -> None:
    """By directory, absolute or below the hierarchy's root, and by default at that root; no others; until close."""
    for place in ({"cgroup": str(cgroup)}, {"cgroup": cgroup.name}, None):
        collection = loading("cgroups", ProgramRequest(program, section, place), read_maps=("seen",), partial=False)
        if place is not None:
            send_packets(3)
            assert cells(collection, "seen")[cell] == 0
        subprocess.run(["python3", "-S", "-c", CGROUP_SCRIPT, cgroup], check=True)
        assert cells(collection, "seen")[cell] > 0
        kept = outlive(collection, "seen")
        collection.close()
        before = map_cells(kept)[cell]
        subprocess.run(["python3", "-S", "-c", CGROUP_SCRIPT, cgroup], check=True)
        assert map_cells(kept)[cell] == before
        kept.close()


@pytest.mark.matrix("hook", "sk_lookup flow_dissector")
def test_programs_of_the_network_namespace_attach_to_ours(loading: Loading, network: Network) -> None:
    """A flow dissector takes one program for each; a look-up program sees what looks for a listening socket."""

    def inside() -> None:
        collection = loading("packets", ProgramRequest("on_sk_lookup", "sk_lookup"), read_maps=("seen",))
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
            pass
        assert cells(collection, "seen")[13] >= 1
        assert loading("packets", ProgramRequest("on_flow_dissector", "flow_dissector")).programs[0].attached

    network(inside)


@pytest.mark.parametrize(
    ("program", "section", "words"),
    [
        ("on_sk_msg", "sk_msg", "map of sockets"),
        ("on_lwt_out", "lwt_out", "ip route"),
        ("on_devmap", "xdp/devmap", 'SEC("xdp")'),
        ("on_tc", "tc", "names no direction"),
        ("on_netfilter", "netfilter", "prerouting, input"),
        ("on_plain_kprobe", "kprobe", "names no kernel function"),
        ("on_plain_fentry", "fentry", "attach.target"),
    ],
)
def test_program_that_nobody_attaches_says_what_to_do_instead(
    loading: Loading, program: str, section: str, words: str
) -> None:
    """Before it is loaded, in one line."""
    object = "functions" if section in ("kprobe", "fentry") else "packets"
    attach = LO if section == "tc" else None
    if section == "netfilter" and kernel_version() < (6, 4):
        words = "has no netfilter programs (first in 6.4)"
    with pytest.raises(KernelError, match=re.escape(words)) as caught:
        loading(object, ProgramRequest(program, section, attach))
    assert caught.value.code in ("kernel.attach_target", "kernel.hook")
    assert repr(program) in str(caught.value)


NO_KPROBES = ("no kprobes", "CONFIG_FPROBE")
LOCKDOWN = ("trampoline",)


@pytest.mark.matrix("hook", "section")
@pytest.mark.parametrize(
    ("cell", "program", "section", "attach", "since", "setting"),
    [
        (0, "on_kprobe", "kprobe/__x64_sys_getpgid", None, "4.1", "CONFIG_KPROBES"),
        (0, "on_kprobe", "kprobe/__x64_sys_getpgid", {"target": "__x64_sys_getpgid+0x0"}, "4.1", "CONFIG_KPROBES"),
        (1, "on_kretprobe", "kretprobe/__x64_sys_getpgid", None, "4.1", "CONFIG_KPROBES"),
        (2, "on_pattern", "kprobe.multi/__x64_sys_getp?id", None, "5.18", "CONFIG_FPROBE"),
        (3, "on_return_pattern", "kretprobe.multi/__x64_sys_getp?id", None, "5.18", "CONFIG_FPROBE"),
        (11, "on_multi", "kprobe.multi/__x64_sys_getpgid", None, "4.1", "CONFIG_KPROBES"),
        (4, "on_ksyscall", "ksyscall/getpgid", None, "4.17", "CONFIG_KPROBES"),
        (5, "on_kretsyscall", "kretsyscall/getpgid", None, "4.17", "CONFIG_KPROBES"),
        (6, "on_plain_kprobe", "kprobe", {"target": "__x64_sys_getpgid"}, "4.1", "CONFIG_KPROBES"),
        (7, "on_fentry", "fentry/__x64_sys_getpgid", None, "5.5", "lockdown"),
        (8, "on_fexit", "fexit/__x64_sys_getpgid", None, "5.5", "lockdown"),
        (12, "on_plain_fentry", "fentry", {"target": "__x64_sys_getpgid"}, "5.5", "lockdown"),
    ],
)
def test_functions_of_the_kernel_are_counted_by_every_kind_of_hook(  # noqa: PLR0917
    loading: Loading,
    compile_object: Compile,
    cell: int,
    program: str,
    section: str,
    attach: Mapping[str, object] | None,
    since: str,
    setting: str,
) -> None:
    """Through the multi link where there is one; a plain section takes its target from the options."""
    with first_in(since, *NO_KPROBES, *LOCKDOWN, setting=setting):
        collection = loading(
            "functions",
            ProgramRequest(program, section, attach),
            globals=own_tgid(compile_object("functions")),
            read_maps=("seen",),
        )
    make_calls(321)
    # getp?id is getpgid and getppid, of which the test makes none.
    assert cells(collection, "seen")[cell] == 321
    kept = outlive(collection, "seen")
    collection.close()
    make_calls(10)
    assert map_cells(kept)[cell] == 321
    kept.close()


@pytest.mark.matrix("hook", "section")
@pytest.mark.parametrize(
    ("cell", "program", "section", "setting"),
    [
        (9, "on_fmod_ret", "fmod_ret/security_path_unlink", "CONFIG_SECURITY_PATH"),
        (10, "on_lsm", "lsm/path_unlink", "CONFIG_SECURITY_PATH"),
    ],
)
def test_security_hooks_are_counted(  # noqa: PLR0917
    loading: Loading, compile_object: Compile, tmp_path: Path, cell: int, program: str, section: str, setting: str
) -> None:
    """They may judge; these only look."""
    with first_in("5.7", "trampoline", "does not have", "not modifiable", setting="lockdown or " + setting):
        collection = loading(
            "functions",
            ProgramRequest(program, section),
            globals=own_tgid(compile_object("functions")),
            read_maps=("seen",),
        )
    for number in range(17):
        (tmp_path / str(number)).touch()
        (tmp_path / str(number)).unlink()
    assert cells(collection, "seen")[cell] == 17


@pytest.mark.matrix("hook", "iter")
def test_iterator_runs_when_it_is_read(loading: Loading) -> None:
    """Its text comes whole, and its map has what the walk found."""
    collection = loading(
        "iterators", ProgramRequest("on_task", "iter/task"), read_maps=("gauge_threads",), partial=False
    )
    program = collection.programs[0]
    assert not sum(batch.count for batch in collection.maps["gauge_threads"].batches())
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        own = {path.name for path in Path("/proc/self/task").iterdir()}
        text = dict(collection.iterate())["on_task"]
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert program.links
    # A thread that was joined may not have left the kernel yet; what the walk met is in its text, each once.
    met = [number for number in text.decode().split() if number in own]
    assert len(met) == len(set(met))
    assert {str(os.getpid()), *(str(thread.native_id) for thread in threads)} <= set(met)
    found: dict[int, int] = {}
    for batch in collection.maps["gauge_threads"].batches():
        keys = struct.unpack(f"={batch.count}I", batch.keys)
        found.update(zip(keys, struct.unpack(f"={batch.count}Q", batch.values), strict=True))
    assert found[os.getpid()] == len(met)


@pytest.mark.matrix("hook", "perf_event")
def test_sampling_follows_cpus_that_come_and_go(loading: Loading) -> None:
    """A CPU that went has no link, and one that came gets one; a process's own event needs neither."""
    section = "perf_event/type=software,config=cpu-clock,frequency=1000"
    collection = loading("places", ProgramRequest("on_sample", section), read_maps=("visits",), partial=False)
    online = collection.programs[0].cpus
    assert online == tuple(sorted(os.sched_getaffinity(0)))
    assert not collection.follow_cpus(online)
    assert collection.follow_cpus(online[:1])
    assert collection.programs[0].cpus == online[:1]
    assert len(collection.programs[0].links) == 1
    assert collection.follow_cpus(online)
    assert len(collection.programs[0].links) == len(online)
    before = cells(collection, "visits")[2]
    if len(online) > 1:
        os.sched_setaffinity(0, online[1:])
    try:
        burn(0.3)
    finally:
        os.sched_setaffinity(0, online)
    assert cells(collection, "visits")[2] > before


@pytest.mark.matrix("hook", "section")
@pytest.mark.parametrize(
    ("program", "section", "attach", "since"),
    [
        ("on_tcx_ingress", "tcx/ingress", LO, "6.6"),
        ("on_tc", "tc", {**LO, "direction": "ingress", "priority": 4}, "5.10"),
        ("on_socket", "socket", LO, "5.10"),
        ("on_netfilter", "netfilter", {"target": "input"}, "6.4"),
        ("on_xdp_pass", "xdp_pass", LO, "5.10"),
    ],
)
def test_attachment_that_another_process_kept_is_taken_back(  # noqa: PLR0917
    loading: Loading, network: Network, program: str, section: str, attach: Mapping[str, object], since: str
) -> None:
    """Packets go on being counted while only the copies are held; a filter is not swept, and goes with its adopter."""

    def inside() -> None:
        with first_in(since, "CONFIG_NETFILTER_BPF_LINK", setting="CONFIG_NETFILTER_BPF_LINK"):
            collection = loading("packets", ProgramRequest(program, section, attach), read_maps=("seen",))
        view = json.loads(json.dumps(view_of(collection)))
        kept = {role: [os.dup(fd) for fd in fds] for role, fds in descriptors_of(collection).items()}
        # As a crash leaves it: this process's own descriptors are closed, nothing is deleted.
        for one in collection.programs:
            for fd in (*one.links, one.fd):
                os.close(fd)
        collection.programs = ()
        collection.close()
        assert not netlink.sweep()
        send_packets(20)
        adopted = adopt("packets", view, kept)
        assert settled(lambda: sum(cells(adopted, "seen"))) >= 20
        again = outlive(adopted, "seen")
        adopted.close()
        assert not filters_of_lo()
        before = map_cells(again)
        send_packets(5)
        assert map_cells(again) == before
        again.close()

    network(inside)


@pytest.mark.matrix("hook", "perf_event")
def test_cpu_that_goes_and_comes_back_is_sampled_again(loading: Loading) -> None:
    """By the kernel's own hotplug, where there is a second CPU that may be taken away (in a guest of our own)."""
    switch = Path("/sys/devices/system/cpu/cpu1/online")
    if not channel.in_guest():
        pytest.skip("no such hardware: a machine whose CPUs are ours to take away")
    section = "perf_event/type=software,config=cpu-clock,frequency=1000"
    request = ProgramRequest("on_sample", section, {"frequency_hz": 200})
    collection = loading("places", request, read_maps=("visits",), partial=False)
    switch.write_text("0")
    try:
        assert collection.follow_cpus(online_cpus())
        assert 1 not in collection.programs[0].cpus
    finally:
        switch.write_text("1")
    assert collection.follow_cpus(online_cpus())
    before = cells(collection, "visits")[2]
    os.sched_setaffinity(0, {1})
    try:
        burn(0.5)
    finally:
        os.sched_setaffinity(0, online_cpus())
    assert cells(collection, "visits")[2] > before + 20
