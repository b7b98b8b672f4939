"""Names of the machine: made-up trees first, then this machine."""

from __future__ import annotations

import logging
import os
import pwd
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.collect.labels import SLOW
from exporter.kernel.lookup import Cgroups, KernelSymbols, Lookup, _Recent, cgroup2_mount, walk_cgroups
from exporter.kernel.removed import RemovedCgroups, parse_removals

KALLSYMS = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81000040 t do_one
ffffffff81000100 D some_data
ffffffffc0001000 t helper\t[nf_tables]
ffffffff81000200 T do_two
"""


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A procfs with symbols, modules and a cgroup2 mount."""
    (tmp_path / "kallsyms").write_text(KALLSYMS)
    (tmp_path / "modules").write_text("nf_tables 1 0 - Live 0xffffffffc0001000\n")
    groups = tmp_path / "groups"
    (groups / "system.slice" / "nginx.service").mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text(f"35 24 0:30 / {groups} rw - cgroup2 cgroup2 rw\n")
    return tmp_path


# ---- symbols ----


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0, ""),
        (0xFFFFFFFF80FFFFFF, "0xffffffff80ffffff"),
        (0xFFFFFFFF81000000, "_text"),
        (0xFFFFFFFF8100003F, "_text"),
        (0xFFFFFFFF81000040, "do_one"),
        (0xFFFFFFFF81000100, "do_one"),
        (0xFFFFFFFF81000200, "do_two"),
        (0xFFFFFFFF81100201, "0xffffffff81100201"),
        (0xFFFFFFFFC0001004, "helper"),
        ((1 << 64) - 1, "0xffffffffffffffff"),
    ],
)
def test_address_is_named_by_the_function_it_lies_in(proc: Path, clock: Clock, address: int, name: str) -> None:
    """Data is no function, and far beyond the last one there is none."""
    assert KernelSymbols(proc, clock).name(address) == name


def test_symbols_are_read_again_when_modules_changed(proc: Path, clock: Clock) -> None:
    """Not more often than that: the list is long."""
    symbols = KernelSymbols(proc, clock)
    assert symbols.name(0xFFFFFFFFC0001000) == "helper"
    (proc / "kallsyms").write_text(KALLSYMS + "ffffffffc0002000 t fresh\t[nf_tables]\n")
    clock.now += 60
    assert symbols.name(0xFFFFFFFFC0002000) == "helper"
    (proc / "modules").write_text("nf_tables 1 0 - Live 0xffffffffc0000000\n")
    assert symbols.name(0xFFFFFFFFC0002000) == "helper"
    clock.now += 60
    assert symbols.name(0xFFFFFFFFC0002000) == "fresh"


@pytest.mark.parametrize("text", ["", "0000000000000000 T _text\n0000000000000000 t do_one\n", None])
def test_symbols_without_addresses_are_shown_as_numbers_and_said_once(
    proc: Path, clock: Clock, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    """The remedy is named."""
    (proc / "kallsyms").unlink()
    if text is not None:
        (proc / "kallsyms").write_text(text)
    symbols = KernelSymbols(proc, clock)
    with caplog.at_level(logging.WARNING):
        assert symbols.name(0xFFFFFFFF81000000) == "0xffffffff81000000"
        clock.now += 60
        (proc / "modules").write_text("")
        assert symbols.name(0xFFFFFFFF81000001) == "0xffffffff81000001"
    (said,) = caplog.records
    assert "CAP_SYSLOG" in said.getMessage()


# ---- cgroups ----


def test_cgroup_is_found_by_walking(proc: Path, clock: Clock) -> None:
    """A made-up tree has inode numbers, but no handles: the walk finds them."""
    lookup = Lookup(proc=str(proc), clock=clock)
    groups = proc / "groups"
    service = (groups / "system.slice" / "nginx.service").stat().st_ino
    lookup._cgroups._may_open = False
    assert lookup.resolve("cgroup", service) == "/system.slice/nginx.service"
    assert lookup.resolve("cgroup.unit", service) == "nginx.service"
    assert lookup.resolve("cgroup.slice", service) == "system.slice"
    assert lookup.resolve("cgroup.pod", service) == ""
    assert lookup.resolve("cgroup", groups.stat().st_ino) == "/"
    lookup.close()


def test_unknown_cgroup_is_asked_again_later(proc: Path, clock: Clock) -> None:
    """That there is none is remembered, and expires; walks are rationed."""
    lookup = Lookup(proc=str(proc), clock=clock)
    lookup._cgroups._may_open = False
    assert lookup.resolve("cgroup", 1 << 60) == ""
    late = proc / "groups" / "late.scope"
    late.mkdir()
    assert lookup.resolve("cgroup", late.stat().st_ino) == ""
    clock.now += 11
    assert lookup.resolve("cgroup.unit", late.stat().st_ino) == "late.scope"
    late.rmdir()
    clock.now += 10_000
    assert lookup.resolve("cgroup.unit", (1 << 60) + 1) == ""
    lookup.close()


def test_removed_cgroup_keeps_its_name_for_late_counts(proc: Path, clock: Clock) -> None:
    """Ids are never given twice, so a known path stays true."""
    lookup = Lookup(proc=str(proc), clock=clock)
    lookup._cgroups._may_open = False
    late = proc / "groups" / "late.scope"
    late.mkdir()
    number = late.stat().st_ino
    assert lookup.resolve("cgroup", number) == "/late.scope"
    late.rmdir()
    clock.now += 10_000
    assert lookup.resolve("cgroup", number) == "/late.scope"
    lookup.close()


def test_walk_is_bounded_and_sees_the_highest_first(tmp_path: Path) -> None:
    """A tree of any size costs a bounded list."""
    for name in ("a/x/y", "b/x/y"):
        (tmp_path / name).mkdir(parents=True)
    assert sorted(walk_cgroups(str(tmp_path), 5).values()) in (["/", "/a", "/a/x", "/b", "/b/x"],)
    assert len(walk_cgroups(str(tmp_path), 100)) == 7


def test_machine_without_cgroup2_has_no_cgroup_names(
    proc: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once."""
    (proc / "self" / "mountinfo").write_text("")
    groups = Cgroups(proc, clock)
    for _ in range(3):
        assert groups.path(1) == ""
        clock.now += 60
    assert len(caplog.records) == 1


def test_cgroups_of_this_machine_are_found_both_ways() -> None:
    """By handle if we may, and by walking, the same."""
    mount = cgroup2_mount(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    if not mount:
        pytest.skip("no cgroup2 hierarchy is mounted")
    by_handle, by_walk = Lookup(), Lookup()
    by_walk._cgroups._may_open = False
    for number, path in list(walk_cgroups(mount, 50).items()):
        assert by_walk.resolve("cgroup", number) == path
        assert by_handle.resolve("cgroup", number) == path
    by_handle.close()
    by_walk.close()


# ---- the rest ----


def test_users_are_named() -> None:
    """Unknown ones by number; the kernel's "nobody at all" not."""
    lookup = Lookup()
    assert lookup.resolve("uid", 0) == pwd.getpwuid(0).pw_name
    assert lookup.resolve("uid", 3_999_999_999) == "3999999999"
    assert lookup.resolve("uid", 0xFFFFFFFF) == ""


def test_interfaces_are_named() -> None:
    """Unknown ones by number, none not."""
    lookup = Lookup()
    index, name = socket.if_nameindex()[0]
    assert lookup.resolve("interface", index) == name
    assert lookup.resolve("interface", 987_654) == "987654"
    assert lookup.resolve("interface", 1 << 40) == str(1 << 40)
    assert lookup.resolve("interface", 0) == ""


def test_devices_are_named(tmp_path: Path) -> None:
    """By the kernel's own numbering; a name's '/' is '!' in sysfs."""
    block = tmp_path / "dev" / "block"
    block.mkdir(parents=True)
    (block / "8:1").symlink_to("../../devices/pci0/block/sda/sda1")
    (block / "104:0").symlink_to("../../devices/pci0/block/cciss!c0d0")
    lookup = Lookup(sys=str(tmp_path))
    assert lookup.resolve("device", 8 << 20 | 1) == "sda1"
    assert lookup.resolve("device", 104 << 20) == "cciss/c0d0"
    assert lookup.resolve("device", 259 << 20 | 1048575) == "259:1048575"
    assert lookup.resolve("device", 0) == ""


def test_device_that_came_later_is_named(tmp_path: Path, clock: Clock) -> None:
    """An answer that may change is not kept for long."""
    block = tmp_path / "dev" / "block"
    block.mkdir(parents=True)
    lookup = Lookup(sys=str(tmp_path), clock=clock)
    assert lookup.resolve("device", 8 << 20) == "8:0"
    (block / "8:0").symlink_to("../../devices/block/sda")
    assert lookup.resolve("device", 8 << 20) == "8:0"
    clock.now += 11
    assert lookup.resolve("device", 8 << 20) == "sda"


def test_unknown_decoder_is_a_bug() -> None:
    """It never comes from a plan."""
    with pytest.raises(ValueError, match="'colour'"):
        Lookup().resolve("colour", 1)


def test_cache_drops_what_was_used_least_recently(clock: Clock) -> None:
    """It never holds more than it may."""
    recent = _Recent(2, clock)
    recent.put("uid", 1, "a", 60)
    recent.put("uid", 2, "b", 60)
    assert recent.get("uid", 1) == "a"
    recent.put("uid", 3, "c", 60)
    assert [recent.get("uid", value) for value in (1, 2, 3)] == ["a", None, "c"]
    clock.now += 61
    assert recent.get("uid", 1) is None
    assert len(recent) == 1


def test_groups_are_named() -> None:
    """Unknown ones by number; the kernel's "no group" not."""
    lookup = Lookup()
    assert lookup.resolve("gid", 0) == "root"
    assert lookup.resolve("gid", 3_999_999_999) == "3999999999"
    assert lookup.resolve("gid", 0xFFFFFFFF) == ""


def test_process_is_named_by_what_it_calls_itself(clock: Clock) -> None:
    """A thread too; one that is gone has no name, and an answer is not kept for long."""
    lookup = Lookup(clock=clock)
    assert lookup.resolve("pid.comm", os.getpid()) == Path("/proc/self/comm").read_text().rstrip("\n")
    assert lookup.resolve("pid.comm", 1 << 30) == ""


PCI_IDS = """# comment
1af4  Red Hat, Inc.
\t1000  Virtio network device
# between
\t1001  Virtio block device
\t\t1af4 0001  Subsystem that is no device
8086  Intel Corporation
\t1533  I210 Gigabit Network Connection
C 01  Mass storage controller
\t08  Non-Volatile memory controller
\t\t02  NVM Express
C 02  Network controller
\t00  Ethernet controller
"""


@pytest.mark.parametrize(
    ("decoder", "value", "name"),
    [
        ("pci.vendor", 0x8086, "Intel Corporation"),
        ("pci.vendor", 0x1234, "0x1234"),
        ("pci.device", 0x80861533, "I210 Gigabit Network Connection"),
        ("pci.device", 0x1AF41001, "Virtio block device"),
        ("pci.device", 0x1AF41533, "0x1533"),
        ("pci.device", 0x1AF40001, "0x0001"),
        ("pci.class", 0x010802, "Non-Volatile memory controller"),
        ("pci.class", 0x020700, "Network controller"),
        ("pci.class", 0x990000, "0x990000"),
    ],
)
def test_pci_ids_are_named_by_the_list_of_the_machine(tmp_path: Path, decoder: str, value: int, name: str) -> None:
    """A device only within its vendor; a class by its subclass if it has a name."""
    (tmp_path / "pci.ids").write_text(PCI_IDS)
    lookup = Lookup(pci_ids=[str(tmp_path / "none"), str(tmp_path / "pci.ids")])
    assert lookup.resolve(decoder, value) == name


def test_pci_ids_without_a_list_are_numbers(tmp_path: Path) -> None:
    """Small machines have none."""
    lookup = Lookup(pci_ids=[str(tmp_path / "none")])
    assert lookup.resolve("pci.vendor", 0x8086) == "0x8086"
    assert lookup.resolve("pci.class", 0x0200) == "0x000200"


def test_every_decoder_that_asks_the_machine_is_known_here() -> None:
    """Zero is a value like any other: nothing is raised. Stacks are asked of their map."""
    lookup = Lookup()
    for decoder in set(SLOW) - {"kstack", "ustack"}:
        assert isinstance(lookup.resolve(decoder, 0), str)
    lookup.close()


# ---- cgroups that are gone ----


def removal(child: int, parent: int, name: str) -> bytes:
    """A fanotify event of a directory that was removed."""
    text = name.encode() + b"\0"
    text = text.ljust(-(-len(text) // 4) * 4, b"\0")
    infos = struct.pack("=BBH8sIiQ", 2, 0, 28 + len(text), bytes(8), 8, 0xFE, parent) + text
    infos += struct.pack("=BBH8sIiQ", 1, 0, 28, bytes(8), 8, 0xFE, child)
    return struct.pack("=IBBHQii", 24 + len(infos), 3, 0, 24, 0x40000200, -1, 1) + infos


def test_removals_are_read_from_events() -> None:
    """What is no removal of a directory, of another file system or cut short says nothing."""
    good = removal(7, 1, "a") + removal(8, 7, "late.scope")
    assert parse_removals(good) == {7: (1, "a"), 8: (7, "late.scope")}
    overflow = struct.pack("=IBBHQii", 24, 3, 0, 24, 0x4000, -1, 1)
    assert parse_removals(overflow + good) == {7: (1, "a"), 8: (7, "late.scope")}
    for length in range(len(good)):
        assert set(parse_removals(good[:length]).items()) <= set(parse_removals(good).items())
    assert parse_removals(bytes(100)) == {}


@given(st.binary(max_size=200))
def test_any_events_are_read_or_passed_over(data: bytes) -> None:
    """Whatever the kernel may say one day."""
    parse_removals(data)
    parse_removals(removal(7, 1, "a") + data)


def test_removed_cgroup_is_named_by_what_is_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parents that are gone too are found in the same events; only so many names are kept."""
    monkeypatch.setattr("exporter.kernel.removed.REMEMBERED", 3)
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    removed = RemovedCgroups({1: "/", 5: "/system.slice"}.get)  # type: ignore[arg-type]
    removed._fd = ours
    os.write(theirs, removal(9, 8, "x") + removal(8, 5, "run.scope") + removal(7, 6, "orphan"))
    assert removed.path(9) == "/system.slice/run.scope/x"
    assert removed.path(8) == "/system.slice/run.scope"
    assert removed.path(7) == ""
    os.write(theirs, b"".join(removal(20 + n, 1, f"late{n}") for n in range(2)))
    assert removed.path(20) == "/late0"
    assert removed.path(9) == ""
    removed.close()
    os.close(theirs)


def test_cgroup_of_this_machine_that_ended_unseen_is_named() -> None:
    """As a container of seconds between two scrapes."""
    mount = cgroup2_mount(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    follows = RemovedCgroups(lambda _: "")
    if not mount or not os.access(mount, os.W_OK) or not follows.open(mount):
        pytest.skip("needs a cgroup2 hierarchy, root, and fanotify on it (Linux 6.6)")
    follows.close()
    lookup = Lookup()
    above = Path(mount) / f"skep-test-{os.getpid()}.slice"
    inner = above / "one.scope"
    assert lookup.resolve("cgroup", Path(mount).stat().st_ino) == "/"
    inner.mkdir(parents=True)
    number, parent = inner.stat().st_ino, above.stat().st_ino
    try:
        assert lookup.resolve("cgroup", parent) == f"/{above.name}"
    finally:
        inner.rmdir()
        above.rmdir()
    assert lookup.resolve("cgroup", number) == f"/{above.name}/{inner.name}"
    assert lookup.resolve("cgroup.unit", number) == inner.name
    assert lookup.resolve("cgroup.slice", parent) == above.name
    assert lookup.resolve("cgroup", number + 1_000_000) == ""
    lookup.close()
