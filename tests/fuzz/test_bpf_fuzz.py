"""Invariant: whatever the bytes, ``read_object`` returns a spec or raises ObjectError, nothing else, and in time.

So do layouts of whatever types a damaged object has. Damage is done to real
objects of clang, since random bytes do not get past the magic.
"""

import functools
import random
import struct
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from exporter.bpf import layout_of, read_object
from exporter.bpf.btf import parse_btf
from exporter.bpf.elf import read_elf
from exporter.errors import ObjectError
from tests.support.clang import compile_bpf
from tests.support.elfwriter import BtfWriter, ObjectWriter, small_object

SECONDS = 5.0
"""No object under 100 kB may take longer, on a slow machine that others use."""
SOURCE = """
enum op { OP_READ, OP_WRITE };
struct inner { u16 a:3, b:5; u64 c; };
struct key { enum op op; char comm[16]; struct inner in; union { u32 x; u64 y; } un; } __attribute__((aligned(8)));
struct val { u64 slots[27] TAG("slots=log2_ceil"); u64 sum; double f; };
MAP(hist_latency, PERCPU_HASH, 1024, struct key, struct val) TAG("kind=histogram");
RING(print_events, struct key);
const volatile u32 limit = 3; volatile int zero;
"""
INTERESTING = [0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1]


@functools.cache
def originals() -> tuple[bytes, ...]:
    """Whole objects to damage."""
    return compile_bpf(SOURCE), compile_bpf(SOURCE, "-gdwarf-4", "-O1"), small_object().build()


def read(data: bytes) -> None:
    """Read an object and lay out all it has; only ObjectError may escape, and is then swallowed."""
    begun = time.monotonic()
    try:
        spec = read_object(data)
        for type_id in range(len(spec.btf.types)):
            try:
                tuple(layout_of(spec.btf, type_id).leaves())
            except ObjectError as error:
                assert "\n" not in str(error)
    except ObjectError as error:
        assert "\n" not in str(error)
        assert error.code.startswith("elf.")
    assert time.monotonic() - begun < SECONDS


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=400))
@example(b"\x7fELF\x02\x01\x01" + bytes(100))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Also behind a correct header."""
    read(data)
    read(small_object().build()[:64] + data)


@pytest.mark.parametrize("seed", range(6))
def test_damaged_objects_are_read_or_refused(seed: int) -> None:
    """Bytes flipped, overwritten, cut out, doubled, and numbers set to the edges."""
    chance = random.Random(seed)
    for _ in range(120):
        data = bytearray(chance.choice(originals()))
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            place = chance.randrange(len(data))
            match chance.randrange(5):
                case 0:
                    data[place] ^= 1 << chance.randrange(8)
                case 1:
                    data[place] = chance.randrange(256)
                case 2:
                    form = chance.choice(("<H", "<I", "<Q"))
                    size = struct.calcsize(form)
                    place = min(place, len(data) - size) // size * size
                    struct.pack_into(form, data, place, chance.choice(INTERESTING) & (1 << size * 8) - 1)
                case 3:
                    del data[place : place + chance.randrange(1, 64)]
                case _:
                    data[place:place] = data[place : place + chance.randrange(1, 64)]
        read(bytes(data))


@pytest.mark.parametrize("seed", range(4))
def test_damaged_section_headers_and_symbols_are_read_or_refused(seed: int) -> None:
    """Where one number decides over everything: most bytes of an object are in neither."""
    chance = random.Random(seed)
    for _ in range(120):
        data = bytearray(chance.choice(originals()))
        headers, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
        symbols = next(section for section in read_elf(bytes(data)).sections if section.type == "SHT_SYMTAB")
        for _ in range(chance.choice((1, 2, 3))):
            start, size = chance.choice(((0, 64), (headers, count * 64), (symbols.offset, symbols.size)))
            place = start + chance.randrange(size // 2) * 2
            struct.pack_into("<H", data, place, chance.choice(INTERESTING) & 0xFFFF)
        read(bytes(data))


@pytest.mark.parametrize("seed", range(4))
def test_damaged_types_are_read_or_refused(seed: int) -> None:
    """Most of what hostile types can do is in references and counts."""
    chance = random.Random(seed)
    for original in originals():
        elf = read_elf(original)
        section = elf.section(".BTF")
        assert section is not None
        types = 24 + struct.unpack_from("<I", elf.data(section), 12)[0]
        for _ in range(40):
            data = bytearray(original)
            for _ in range(chance.choice((1, 2, 4, 8))):
                place = section.offset + chance.randrange(types // 4) * 4
                value = chance.choice((*INTERESTING, chance.randrange(80), chance.randrange(1 << 32)))
                struct.pack_into("<I", data, place, value & 0xFFFFFFFF)
            read(bytes(data))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 31), st.integers(0, 12), st.booleans(), st.integers(0, 40), st.binary(max_size=48)),
        max_size=12,
    )
)
def test_any_records_are_read_or_refused(records: list[tuple[int, int, bool, int, bytes]]) -> None:
    """Type records of any kind, each with any tail."""
    writer = BtfWriter()
    for kind, vlen, flag, size, tail in records:
        writer.record(kind, "x", size, vlen=vlen, flag=flag, tail=tail[: len(tail) // 4 * 4])
    try:
        types = parse_btf(writer.build())
        for type_id in range(len(types.types)):
            try:
                layout_of(types, type_id)
            except ObjectError:
                continue
    except ObjectError:
        return


def bomb(name: str) -> ObjectWriter:
    """An object made to cost as much as it can."""
    writer = ObjectWriter()
    writer.program("on_switch")
    btf = writer.btf
    u32 = btf.int("u32", 4)
    match name:
        case "many maps of a wide type":
            wide = btf.struct("wide", 4, [(f"m{index}", u32, 0) for index in range(1000)])
            for index in range(60):
                writer.map(f"counter_{index}", 1, 1, key=wide, value=u32)
        case "deep arrays":
            level = u32
            for _ in range(1000):
                level = btf.array(level, 0xFFFFFFFF)
            writer.map("counter_x", 1, 1, key=u32, value=level)
        case "long names":
            level = u32
            for depth in range(31):
                level = btf.struct("s", 4, [("a" * 4000 + str(depth), level, 0)])
            writer.map("counter_x", 1, 1, key=level, value=u32)
        case "one name for many types":
            for _ in range(20000):
                btf.record(8, "same" * 1000, u32)
        case "many symbols":
            for index in range(20000):
                writer.symbol(f"s{index}", 1, 0, 0, kind=0)
        case _:
            for index in range(3000):
                writer.section(f".s{index}", b"x")
    return writer


@pytest.mark.parametrize(
    "name",
    [
        "many maps of a wide type",
        "deep arrays",
        "long names",
        "one name for many types",
        "many symbols",
        "many sections",
    ],
)
def test_object_made_to_cost_much_is_done_in_bounded_time(name: str) -> None:
    """Limits on counts, depth and length bound what bytes can make us do."""
    data = bomb(name).build()
    begun = time.monotonic()
    try:
        spec = read_object(data)
        for entry in spec.maps:
            layout_of(spec.btf, entry.key_type_id)
    except ObjectError:
        pass
    assert time.monotonic() - begun < 2 * SECONDS
