"""The table of hooks, what reads it, and the pure parts of attaching."""

import os
import re
import struct
from pathlib import Path

import pytest

from exporter.config import AttachConfig
from exporter.hooks import HOOKS, hook_of, misfit, stems
from exporter.kernel import netlink
from exporter.kernel.attach import KINDS, AttachError
from exporter.kernel.attach.binaries import cached_libraries, find_binary, is_library
from exporter.kernel.attach.cgroup import cgroup2_root
from exporter.kernel.attach.places import Netfilter, parse_direction, parse_netfilter
from exporter.kernel.symbols import addresses, variants
from exporter.kernel.weaken import weakened

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("kprobe/vfs_read", "kprobe"),
        ("?kprobe", "kprobe"),
        ("kprobe.multi/vfs_*", "kprobe.multi"),
        ("fentry.s/vfs_read", "fentry"),
        ("xdp", "xdp"),
        ("xdp.frags/eth0", "xdp"),
        ("xdp_pass", "xdp"),
        ("xdp_prog_simple", "xdp"),
        ("socket1", "socket"),
        ("classifier/ingress/drop", "tc"),
        ("tc_egress", "tc"),
        ("cgroup_skb/egress", "cgroup"),
        ("cgroup/connect4", "cgroup"),
        ("lsm_cgroup/x", "lsm_cgroup"),
        ("perf_event/type=1", "perf_event"),
        ("lwt_xmit", "lwt"),
        ("skep_kind/x", ""),
        ("", ""),
    ],
)
def test_section_names_its_hook(section: str, name: str) -> None:
    """By its first word, or by what older loaders took for it."""
    hook = hook_of(section)
    assert (hook.name if hook else "") == name


def test_every_hook_is_attached_or_says_why_not() -> None:
    """The loader has a way for each kind of the table, and none besides."""
    assert {hook.name for hook in HOOKS if not hook.refused} == set(KINDS)


def test_every_word_is_of_one_hook() -> None:
    """A section cannot be of two kinds."""
    words = [word for hook in HOOKS for word in hook.words]
    assert len(words) == len(set(words))


def test_options_are_those_of_the_configuration() -> None:
    """Nothing is offered that cannot be written, nothing can be written that no hook has."""
    assert {option for hook in HOOKS for option in hook.options} == set(AttachConfig.__dataclass_fields__) - {"enabled"}


def test_page_on_hooks_has_every_kind_with_its_words_and_options() -> None:
    """The documented table is the one that is used."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "hooks.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    told = {row[0].strip("`"): row for row in rows}
    assert set(told) == {hook.name for hook in HOOKS if not hook.refused}
    for hook in HOOKS:
        if not hook.refused:
            row = told[hook.name]
            assert set(re.findall(r"`([^`/]+)", row[1])) >= set(hook.words), row
            assert row[3] == f"{hook.since[0]}.{hook.since[1]}"
            assert set(re.findall(r"`(\w+)`", row[5])) == set(hook.options), row


def test_misfitting_option_is_named() -> None:
    """With those that fit."""
    assert misfit("xdp", ["interfaces"]) == ""
    assert misfit("xdp", ["pid"]) == "'pid' does not fit section 'xdp', which has interfaces"
    assert misfit("unknown", ["pid"]).endswith("which has no attach options")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("classifier/egress/all", ["classifier/egress", "classifier"]),
        ("socket1", ["socket"]),
        ("xdp_prog_simple", ["xdp_prog", "xdp"]),
        ("perf_event/type=1,config=0", ["perf_event", "perf"]),
        ("action_x", ["tc"]),
        ("xdp", []),
        ("?xdp/eth0", ["xdp"]),
    ],
)
def test_shorter_spellings_of_a_section(section: str, expected: list[str]) -> None:
    """The longest first."""
    assert stems(section) == expected


@pytest.mark.parametrize(
    ("section", "options", "expected"),
    [
        ("tc/ingress", {}, "ingress"),
        ("classifier/egress/all", {}, "egress"),
        ("tc_ingress", {}, "ingress"),
        ("tc", {"direction": "egress"}, "egress"),
        ("tc/ingress", {"direction": "egress"}, "egress"),
    ],
)
def test_direction_comes_from_section_or_option(section: str, options: dict[str, object], expected: str) -> None:
    """The option wins."""
    assert parse_direction(section, options) == expected


@pytest.mark.parametrize("options", [{}, {"direction": "primary"}])
def test_missing_direction_is_asked_for(options: dict[str, object]) -> None:
    """Neither way is assumed."""
    with pytest.raises(AttachError, match="ingress"):
        parse_direction("tc", options)


@pytest.mark.parametrize(
    ("rest", "options", "expected"),
    [
        ("", {"target": "input"}, [Netfilter(2, 1, 0), Netfilter(10, 1, 0)]),
        ("local_out", {}, [Netfilter(2, 3, 0), Netfilter(10, 3, 0)]),
        ("ipv6/FORWARD", {"priority": -5}, [Netfilter(10, 2, -5)]),
        ("ipv6/forward", {"family": "ipv4", "target": "prerouting"}, [Netfilter(2, 0, 0)]),
    ],
)
def test_netfilter_hooks_come_from_section_and_options(
    rest: str, options: dict[str, object], expected: list[Netfilter]
) -> None:
    """By the names of nft or of the kernel; without a family, both."""
    assert parse_netfilter(rest, options) == expected


@pytest.mark.parametrize(("rest", "words"), [("", "no netfilter hook"), ("x", "'x'"), ("arp/input", "'arp'")])
def test_unknown_netfilter_hook_says_what_there_is(rest: str, words: str) -> None:
    """Hook, or family."""
    with pytest.raises(AttachError, match=words):
        parse_netfilter(rest, {})


@pytest.mark.parametrize(
    ("mounts", "root"),
    [
        ("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup"),
        ("31 2 0:27 / /sys/fs/cgroup rw - tmpfs n rw\n40 31 0:3 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 c rw\n",
         "/sys/fs/cgroup/unified"),
        ("30 23 0:26 /a/b /mnt rw - cgroup2 cgroup2 rw\n", ""),
        ("30 23 0:26 / /a\\040b rw - cgroup2 cgroup2 rw\n", "/a b"),
        ("31 23 0:27 / /sys/fs/cgroup rw - tmpfs none rw\n", ""),
    ],
)  # fmt: skip
def test_unified_hierarchy_is_found_in_mountinfo(mounts: str, root: str) -> None:
    """Pure and hybrid layouts; a part of it that is bound elsewhere is not its root."""
    assert cgroup2_root(mounts) == root


KALLSYMS = (
    b"ffffffff81000000 T start_here\nffffffff81000010 t twice\nffffffff81000020 t twice\n"
    b"ffffffff81000030 D data\nffffffff81000040 t twice.cold\nffffffff81000050 t made.isra.0\n"
    b"ffffffffc0000010 t start_here\t[ext4]\nffffffffc0000020 t of_module\t[ext4]\n"
)


@pytest.mark.parametrize(
    ("name", "functions", "found"),
    [
        ("start_here", True, [0xFFFFFFFF81000000, 0xFFFFFFFFC0000010]),
        ("ext4:start_here", True, [0xFFFFFFFFC0000010]),
        ("twice", True, [0xFFFFFFFF81000010, 0xFFFFFFFF81000020]),
        ("data", False, [0xFFFFFFFF81000030]),
        ("data", True, []),
        ("of_module", True, [0xFFFFFFFFC0000020]),
        ("start", False, []),
        (".*", False, []),
    ],
)
def test_symbols_are_found_by_their_whole_names(name: str, functions: bool, found: list[int]) -> None:
    """Every one of that name; of a module by that too."""
    assert addresses(name, functions=functions, text=KALLSYMS) == found


def test_what_the_compiler_made_of_a_function_is_offered() -> None:
    """Its name was changed, and a probe of the old one finds nothing."""
    assert variants("made", text=KALLSYMS) == ["made.isra.0"]
    assert variants("start_here", text=KALLSYMS) == []


def cache_of(*entries: tuple[int, str, str]) -> bytes:
    """A glibc cache of these libraries: flags, name, path."""
    strings = b""
    table = b""
    at = 48 + 24 * len(entries)
    for flags, name, path in entries:
        table += struct.pack("=iIIIQ", flags, at + len(strings), at + len(strings) + len(name) + 1, 0, 0)
        strings += name.encode() + b"\0" + path.encode() + b"\0"
    header = b"glibc-ld.so.cache1.1" + struct.pack("=II", len(entries), len(strings)) + bytes(20)
    return header + table + strings


def test_libraries_of_this_architecture_are_read_from_the_cache() -> None:
    """In its order; those of another word size are not ours; what is no cache has none."""
    cache = cache_of((0x0303, "libc.so.6", "/lib/x/libc.so.6"), (3, "libc.so.6", "/lib32/libc.so.6"))
    assert list(cached_libraries(cache, 0x0303)) == [("libc.so.6", "/lib/x/libc.so.6")]
    # An old format stands before the new one in some caches.
    assert list(cached_libraries(b"ld.so-1.7.0" + bytes(5) + cache, 3)) == [("libc.so.6", "/lib32/libc.so.6")]
    assert not list(cached_libraries(b"", 3))
    assert not list(cached_libraries(cache[:60], 0x0303))


@pytest.mark.parametrize(
    ("found", "name", "same"),
    [
        ("libc.so.6", "libc.so.6", True),
        ("libc.so.6", "libc.so", True),
        ("libc.so.6", "libc", True),
        ("libc.so.6", "lib", False),
        ("libcap.so.2", "libc", False),
        ("libc.so.60", "libc.so.6", False),
    ],
)
def test_library_is_known_by_its_shorter_names(found: str, name: str, same: bool) -> None:
    """Without its version, or without what says that it is a library."""
    assert is_library(found, name) is same


def test_binary_is_found_as_linker_and_shell_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The linker's path first, then its cache, then the shell's path; a path is taken as it is."""
    assert find_binary("/nowhere/x") == "/nowhere/x"
    assert Path(find_binary("libc.so.6")).name == "libc.so.6"
    assert Path(find_binary("libc")).name == "libc.so.6"
    assert Path(find_binary("sh")).name == "sh"
    (tmp_path / "libc.so.6").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}")
    assert find_binary("libc.so.6") == str(tmp_path / "libc.so.6")
    with pytest.raises(OSError, match="'libskep'"):
        find_binary("libskep")


def test_binary_of_a_process_is_the_one_it_has_mapped() -> None:
    """Through its own root, so that a container's is found."""
    mapped = find_binary("libc.so.6", os.getpid())
    assert mapped.startswith(f"/proc/{os.getpid()}/root/")
    assert Path(mapped).samefile(find_binary("libc.so.6"))


def test_owner_of_a_filter_says_which_it_is() -> None:
    """The two names are made of one another."""
    found = netlink.Filter(3, "egress", 1, 0, "skep:0123456789abcdef:on_packet")
    assert found.owner == netlink.owner_name("0123456789abcdef", 3, "egress")


def test_descriptors_of_others_own_no_filter(tmp_path: Path) -> None:
    """Files, sockets of any kind: nothing is deleted for them."""
    import socket

    with (tmp_path / "x").open("w") as file, socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        for one in (file, tcp, unix):
            assert not netlink.is_owner(one.fileno())
            netlink.let_go(one.fileno())


def test_object_that_makes_no_sense_is_left_as_it_is() -> None:
    """Whatever the bytes: the loader will say what is wrong with them."""
    for bytes_ in (b"", b"\x7fELF", bytes(64), b"\xff" * 200):
        assert weakened(bytes_, ["f"]) == bytes_
