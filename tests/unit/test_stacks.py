"""Stack labels: which map they are of, what a process's addresses are called, and what stands for what is missing."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import KernelError
from exporter.kernel.stacks import TEXT_LIMIT, Stacks, folded
from exporter.kernel.usersymbols import Mapping, UserSymbols, read_functions, read_mappings
from exporter.plan import StackSource
from tests.support.plans import plan_of, problems_of, table_of

SOURCE = """
struct {{ __uint(type, STACK_TRACE); __uint(max_entries, 9); __uint(key_size, 4); __uint(value_size, 80);
    __uint(map_flags, {flags}); }} stacks SEC(".maps");
struct key {{ {members} }};
MAP(counter_x, HASH, 9, struct key, u64);
"""
SECOND = "struct { __uint(type, STACK_TRACE); __uint(max_entries, 9); __uint(key_size, 4); __uint(value_size, 80); } "


def source(members: str, *, flags: int = 0) -> str:
    """A map whose key has these members, beside a map of stacks."""
    return SOURCE.format(members=members, flags=flags)


# The plan.


def test_only_stack_map_of_an_object_needs_no_name() -> None:
    """The process is a member beside it, shown or not; it takes part only where a user's stack is named."""
    text = source('u64 t; u32 tgid TAG("drop=true"); s32 k TAG("decode=kstack"); s32 u TAG("label=user:ustack");')
    plan = plan_of(text)
    _, kernel, user = table_of(plan, "counter_x").labels
    assert (kernel.name, kernel.decoder, kernel.stack) == ("k", "kstack", StackSource("stacks"))
    assert (user.name, user.stack) == ("user", StackSource("stacks", process=(64, 32)))
    assert plan.read_maps == ("counter_x", "stacks")


def test_stack_of_build_ids_is_told_from_one_of_addresses() -> None:
    """By the flag of its map."""
    plan = plan_of(source('u32 u TAG("decode=ustack");', flags=32))
    (rule,) = table_of(plan, "counter_x").labels
    assert rule.stack == StackSource("stacks", build_ids=True)
    assert (
        "map 'counter_x': key member 'u' is shown as addresses: no member tgid or pid says whose they are" in plan.notes
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            source('u32 k TAG("decode=kstack") TAG("stack=no");'),
            "stack 'no' is no map of type STACK_TRACE; the object has",
        ),
        (SECOND + 'more SEC(".maps");' + source('u32 k TAG("decode=kstack");'), "nothing says which of 2 maps"),
        ('struct key { u32 k TAG("decode=kstack"); }; MAP(counter_x, HASH, 9, struct key, u64);', "has none, name one"),
        (source('char k[8] TAG("decode=kstack");'), "decoder 'kstack' reads integers"),
    ],
)
def test_stack_of_no_map_is_an_error(text: str, words: str) -> None:
    """In one line with what there is."""
    found = problems_of(text)
    assert any(words in problem and "\n" not in problem for problem in found), found


def test_metadata_names_a_stack() -> None:
    """For an object that cannot be rebuilt."""
    labels = {"k": {"name": "stack", "decode": "kstack", "stack": "stacks"}}
    metadata = {"version": 1, "metrics": {"counter_x": {"labels": labels}}}
    (rule,) = table_of(plan_of(source("u32 k;"), metadata=metadata), "counter_x").labels
    assert (rule.name, rule.stack) == ("stack", StackSource("stacks"))


# Ids to text.


class FakeMap:
    """A stack map with what was put there."""

    def __init__(self, stacks: dict[int, bytes]) -> None:
        self.stacks = stacks

    def lookup(self, key: bytes) -> bytes | None:
        number = int.from_bytes(key, "little")
        if number == 99:
            raise KernelError("refused")
        return self.stacks.get(number)


def resolve(decoder: str, value: int) -> str:
    """Names that say what was asked."""
    return f"{decoder}_{value >> 64}_{value & 0xFFFFFFFFFFFFFFFF:x}"


ADDRESSES = struct.pack("=5Q", 0x30, 0x20, 0x10, 0, 0x40)
BUILT = b"".join(
    struct.pack("=i20sQ", *one)
    for one in [(1, b"\xab" * 20, 0x123), (2, bytes(20), 0x77), (0, bytes(20), 0), (1, bytes(20), 1)]
)


@pytest.mark.parametrize(
    ("decoder", "value", "build_ids", "text"),
    [
        ("kstack", 5, False, "ksym_0_10;ksym_0_20;ksym_0_30"),
        ("ustack", 7 << 32 | 5, False, "usym_7_10;usym_7_20;usym_7_30"),
        ("ustack", 5, False, "0x10;0x20;0x30"),
        ("ustack", 7 << 32 | 6, True, f"usym_7_77;{'ab' * 20}+0x123"),
        ("kstack", 8, False, "[gone]"),
        ("kstack", 99, False, "[gone]"),
        ("kstack", -14 & 0xFFFFFFFF, False, ""),
        ("ustack", 7 << 32 | -14 & 0xFFFFFFFF, False, ""),
        ("kstack", -17 & 0xFFFFFFFF, False, "[lost]"),
    ],
)
def test_stack_is_shown_outermost_first(decoder: str, value: int, build_ids: bool, text: str) -> None:
    """Up to the first zero; what cannot be shown says why, and where there was nothing nothing is shown."""
    stacks = Stacks({"s": FakeMap({5: ADDRESSES, 6: BUILT})}, resolve)  # type: ignore[dict-item]
    assert stacks.text(decoder, "s", value, build_ids=build_ids) == text


def test_long_stack_keeps_its_innermost_functions() -> None:
    """And says that it was cut; a name cannot end a frame."""
    assert folded(["inner;most", "outer"]) == "outer;inner:most"
    text = folded([f"{number:0250}" for number in range(127)])
    assert text.startswith("…;") and text.endswith("0" * 250)
    assert len(text) <= TEXT_LIMIT + 2


# Addresses of a process.


def test_function_of_this_process_is_found_by_any_address_inside() -> None:
    """In a library that shows only what it exports."""
    address = ctypes.cast(ctypes.CDLL(None).getpgid, ctypes.c_void_p).value
    assert address is not None
    symbols = UserSymbols(Path("/proc"))
    assert "getpgid" in symbols.name(os.getpid(), address)
    assert symbols.name(os.getpid(), address + 1) == symbols.name(os.getpid(), address)
    assert symbols.name(os.getpid(), 0x10) == "0x10"


def test_own_symbol_table_is_preferred_and_a_stripped_file_gives_offsets(tmp_path: Path) -> None:
    """A static function is in the former only."""
    source = tmp_path / "a.c"
    source.write_text(
        "static __attribute__((noinline)) int hidden(int x) { return x * 3; }\n"
        "int main(int c, char **v) { return hidden(c); }\n"
    )
    subprocess.run(["cc", "-O1", "-o", tmp_path / "a", source], check=True)
    inode = (tmp_path / "a").stat().st_ino
    functions = read_functions(str(tmp_path / "a"), inode)
    ((start, _, base),) = functions.segments
    at = functions.addresses[functions.names.index(b"hidden")] - base + start
    assert functions.name(at) == "hidden"
    assert not read_functions(str(tmp_path / "a"), inode + 1).names
    subprocess.run(["strip", tmp_path / "a"], check=True)
    assert read_functions(str(tmp_path / "a"), (tmp_path / "a").stat().st_ino).name(at) == ""


def test_process_that_ended_is_still_named_while_it_is_remembered(tmp_path: Path) -> None:
    """Its mappings are kept; one never met is shown as addresses."""
    now = 0.0
    (tmp_path / "7").mkdir()
    maps = tmp_path / "7" / "maps"
    maps.write_text(
        "00400000-00500000 r-xp 00001000 fe:01 42 /no such/file (deleted)\n00600000-00700000 rw-p 0 0:0 0\n"
    )
    symbols = UserSymbols(tmp_path, lambda: now)
    assert symbols.name(7, 0x400010) == "file+0x1010"
    maps.unlink()
    now = 100.0
    assert symbols.name(7, 0x400010) == "file+0x1010"
    assert symbols.name(7, 0x600010) == "0x600010"
    assert symbols.name(8, 0x400010) == "0x400010"


def test_what_is_mapped_is_read_by_line() -> None:
    """Only what may be executed; odd lines are passed over."""
    text = "1000-2000 r-xp 10 08:01 5 /bin/a b\nx-y r-xp 0 0 z q\n\n2000-3000 r--p 0 0:0 0\n"
    text += "7000-8000 r-xp 0 00:00 0 [vdso]\n"
    assert read_mappings(text) == [
        Mapping(0x1000, 0x2000, 0x10, 5, "/bin/a b"), Mapping(0x7000, 0x8000, 0, 0, "[vdso]"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def a_binary() -> bytes:
    """Some ELF file."""
    return Path("/bin/true").resolve().read_bytes()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_of_others_give_names_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, a_binary: bytes, data: st.DataObject
) -> None:
    """Whatever the bytes: no exception, and no more memory than the limits."""
    content = bytearray(a_binary)
    headers = int.from_bytes(content[40:48], "little")
    for _ in range(data.draw(st.integers(1, 8))):
        near = data.draw(st.sampled_from([0, headers, 0x40]))
        at = min(near + data.draw(st.integers(0, 1500)), len(content) - 8)
        content[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    path = tmp_path_factory.mktemp("damaged") / "file"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    functions = read_functions(str(path), path.stat().st_ino)
    functions.name(data.draw(st.integers(0, 1 << 20)))


def test_file_that_is_none_gives_nothing(tmp_path: Path) -> None:
    """A FIFO does not hold the reader up."""
    os.mkfifo(tmp_path / "pipe")
    assert not read_functions(str(tmp_path / "pipe"), (tmp_path / "pipe").stat().st_ino).names
    assert not read_functions(str(tmp_path), tmp_path.stat().st_ino).names
    assert not read_functions("/no\0where", 1).names
