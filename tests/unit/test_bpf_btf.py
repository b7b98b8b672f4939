"""BTF records: every kind, and every way to be wrong."""

import struct

import pytest

from exporter.bpf import btf
from exporter.bpf.btf import parse_btf
from exporter.errors import ObjectError
from tests.support.elfwriter import BtfWriter


def refused(data: bytes) -> str:
    """The message of the error that reading gives."""
    with pytest.raises(ObjectError) as caught:
        parse_btf(data)
    assert caught.value.code == "elf.btf"
    return str(caught.value)


def every_kind() -> BtfWriter:
    """One type of each kind, ids 1 to 19 being the kinds' own numbers."""
    writer = BtfWriter()
    writer.int("int", 4, encoding=1)
    writer.ptr(0)
    writer.array(1, 7)
    writer.bitfields("s", 8, [("a", 1, 0, 3), ("b", 1, 32, 0)])
    writer.struct("u", 4, [("a", 1, 0)], kind=5)
    writer.enum("e", [("E_A", 0), ("E_B", -1)], signed=True)
    writer.record(7, "f", 0, flag=True)
    writer.record(8, "t", 1)
    writer.record(9, "", 8)
    writer.record(10, "", 9)
    writer.record(11, "", 2)
    writer.record(12, "fn", 13, vlen=1)
    writer.record(13, "", 1, vlen=1, tail=struct.pack("<II", writer.strings.add("x"), 1))
    writer.var("v", 10)
    writer.datasec(".data", [(14, 4)])
    writer.record(16, "double", 8)
    writer.decl_tag("text", 4, 1)
    writer.record(18, "user", 1)
    writer.enum64("e64", [("E_BIG", 1 << 40), ("E_NEG", -2)], signed=True)
    return writer


def test_every_kind_is_read() -> None:
    """The kinds of the kernel's documentation, 1 to 19, with what each carries."""
    types = parse_btf(every_kind().build()).types
    assert types[1] == btf.Int("int", 4, 32, 0, signed=True, char=False, bool=False)
    assert types[2] == btf.Ptr(0)
    assert types[3] == btf.Array(1, 1, 7)
    assert types[4] == btf.Struct("s", 8, (btf.Member("a", 1, 0, 3), btf.Member("b", 1, 32, 0)))
    assert types[5] == btf.Union("u", 4, (btf.Member("a", 1, 0, 0),))
    assert types[6] == btf.Enum("e", 4, True, ((0, "E_A"), (-1, "E_B")))
    assert types[7] == btf.Fwd("f", union=True)
    assert types[8] == btf.Typedef("t", 1)
    assert types[9:12] == (btf.Volatile(8), btf.Const(9), btf.Restrict(2))
    assert types[12] == btf.Func("fn", 13, 1)
    assert types[13] == btf.FuncProto(1, (("x", 1),))
    assert types[14] == btf.Var("v", 10, 1)
    assert types[15] == btf.Datasec(".data", 0, (btf.SectionVariable(14, 0, 4),))
    assert types[16] == btf.Float("double", 8)
    assert types[17] == btf.DeclTag("text", 4, 1)
    assert types[18] == btf.TypeTag("user", 1)
    assert types[19] == btf.Enum64("e64", 8, True, ((1 << 40, "E_BIG"), (-2, "E_NEG")))


def test_types_are_found_by_class_and_name() -> None:
    """A struct and a typedef may share a name."""
    types = parse_btf(every_kind().build())
    assert types.find(btf.Union, "u") == (5, types.types[5])
    assert types.find(btf.Struct, "u") is None


def test_tags_belong_to_a_type_or_to_one_member() -> None:
    """The component of a declaration tag is a member's index."""
    types = parse_btf(every_kind().build())
    assert types.tags(4, 1) == ("text",)
    assert types.tags(4) == types.tags(4, 0) == ()


def test_size_is_that_of_the_bytes_behind_typedefs_and_arrays() -> None:
    """Forty-nine const volatile integers are 196 bytes."""
    writer = every_kind()
    outer = writer.array(writer.array(10, 7), 7)
    types = parse_btf(writer.build())
    assert types.size_of(outer) == 4 * 49
    assert types.size_of(11) == 8  # restrict to a pointer
    for without in (0, 7, 12, 13, 14, 15):
        with pytest.raises(ObjectError, match="has no size"):
            types.size_of(without)


def test_cycle_of_typedefs_ends_in_an_error() -> None:
    """A typedef of itself must not hang the reader."""
    writer = BtfWriter()
    writer.record(8, "a", 2)
    writer.record(8, "b", 1)
    types = parse_btf(writer.build())
    with pytest.raises(ObjectError, match="more than 32"):
        types.resolve(1)


def test_cycle_of_arrays_ends_in_an_error() -> None:
    """An array of itself must not hang the reader."""
    writer = BtfWriter()
    writer.array(1, 2)
    with pytest.raises(ObjectError, match="nested more than 32 deep"):
        parse_btf(writer.build()).size_of(1)


def header(**changed: int) -> bytes:
    """A section with one int, its header changed."""
    writer = BtfWriter()
    writer.int("int", 4)
    fields = {
        "magic": 0xEB9F,
        "version": 1,
        "flags": 0,
        "length": 24,
        "type_at": 0,
        "types": 16,
        "string_at": 16,
        "strings": 5,
    }
    return struct.pack("<HBBIIIII", *(fields | changed).values()) + writer.build()[24:]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "has 0 bytes"),
        (bytes(23), "has 23 bytes"),
        (header(magic=0x9FEB), "magic is 0x9feb"),
        (header(version=2), "version 2"),
        (header(flags=1), "flags 0x1"),
        (header(length=0xFFFFFFFF), "header length"),
        (header(length=8), "header length"),
        (header(type_at=2), "types are at"),
        (header(types=0xFFFFFFFC), "types are at"),
        (header(string_at=0xFFFFFFF0), "strings are at"),
        (header(strings=0), "strings are at"),
        (header(strings=4), "begin and end with NUL"),
        (header(types=14), "middle of a record"),
        (header(types=12), "middle of a record"),
    ],
)
def test_damaged_header_is_refused(data: bytes, words: str) -> None:
    """Every length is checked against the section before it is used."""
    assert words in refused(data)


def record(kind: int, size: int = 4, *, vlen: int = 0, name: str = "x", tail: bytes = b"") -> bytes:
    """A section with one raw record."""
    writer = BtfWriter()
    writer.record(kind, name, size, vlen=vlen, tail=tail)
    return writer.build()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (record(0), "kind 0"),
        (record(20), "kind 20"),
        (record(31), "kind 31"),
        (record(1, 3, tail=struct.pack("<I", 24)), "has 3 bytes"),
        (record(1, 4, tail=struct.pack("<I", 33)), "33 bits"),
        (record(1, 4, tail=struct.pack("<I", 0)), "0 bits"),
        (record(1, 4, tail=struct.pack("<I", 8 << 16 | 25)), "25 bits from bit 8"),
        (record(16, 3), "has 3 bytes"),
        (record(6, 3), "has 3 bytes"),
        (record(8, 2), "refers to type 2"),
        (record(2, 0xFFFFFFFF), "refers to type 4294967295"),
        (record(4, 4, vlen=0xFFFF), "middle of a record"),
        (record(4, 4, vlen=1, tail=struct.pack("<III", 0, 9, 0)), "refers to type 9"),
        (record(4, 4, vlen=1, tail=struct.pack("<III", 999, 1, 0)), "string offset 999"),
        (record(4, name="a" * 5000), "longer than 4096"),
    ],
)
def test_damaged_record_is_refused(data: bytes, words: str) -> None:
    """What can be wrong with one record is found when it is read."""
    assert words in refused(data)


def test_name_that_is_not_utf8_is_refused() -> None:
    """Names become labels and messages."""
    data = bytearray(header())
    data[-4:-1] = b"\xff\xfe\xfd"
    assert "not UTF-8" in refused(bytes(data))
