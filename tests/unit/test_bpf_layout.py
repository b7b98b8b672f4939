"""Layouts: where each member lies, against what the compiler says and what damaged BTF says."""

import pytest

from exporter.bpf import Btf, Field, FieldKind, Layout, layout_of, read_object
from exporter.bpf.btf import Struct, Typedef, parse_btf
from exporter.errors import ObjectError
from tests.support.clang import compile_bpf
from tests.support.elfwriter import BtfWriter

EVERYTHING = """
typedef u32 ipv4_addr; typedef u8 ipv6_addr[16];
enum op { OP_A = 1, OP_B = 7 } ;
struct inner { u16 a; u64 b; };
typedef struct { u32 one; } wrapped_t;
struct everything {
    u8 byte; s64 number; bool yes; char comm[16]; u8 raw[6]; u32 table[2][3]; ipv4_addr address;
    ipv6_addr address6; enum op op; struct inner nested; wrapped_t wrapped; union { u32 x; u64 y; } un;
    struct { u32 hidden; }; u32 low:3, high:5; bool flag:1; float f; double d; unsigned __int128 big; void *p;
    struct inner pair[2]; enum op ops[3]; bool bools[2]; s16 shorts[4]; s8 tiny; char letter; char tail[];
};
MAP(m, HASH, 1, struct everything, u64);
"""


def everything() -> tuple[Btf, Layout]:
    """The layout of a struct with a member of every sort."""
    spec = read_object(compile_bpf(EVERYTHING))
    return spec.btf, layout_of(spec.btf, spec.map("m").key_type_id)


@pytest.mark.parametrize(
    ("name", "kind", "byte", "size_bits", "count", "signed"),
    [
        ("byte", FieldKind.UINT, 0, 8, 1, False),
        ("number", FieldKind.INT, 8, 64, 1, True),
        ("yes", FieldKind.BOOL, 16, 8, 1, False),
        ("comm", FieldKind.CHARS, 17, 128, 16, True),
        ("raw", FieldKind.BYTES, 33, 48, 6, False),
        ("table", FieldKind.ARRAY, 40, 192, 6, False),
        ("address", FieldKind.UINT, 64, 32, 1, False),
        ("address6", FieldKind.BYTES, 68, 128, 16, False),
        ("op", FieldKind.ENUM, 84, 32, 1, False),
        ("nested", FieldKind.STRUCT, 88, 128, 1, False),
        ("wrapped", FieldKind.STRUCT, 104, 32, 1, False),
        ("un", FieldKind.UNION, 112, 64, 1, False),
        ("", FieldKind.STRUCT, 120, 32, 1, False),
        ("low", FieldKind.UINT, 124, 3, 1, False),
        ("high", FieldKind.UINT, 124.375, 5, 1, False),
        ("flag", FieldKind.BOOL, 125, 1, 1, False),
        ("f", FieldKind.FLOAT, 128, 32, 1, False),
        ("d", FieldKind.FLOAT, 136, 64, 1, False),
        ("big", FieldKind.UINT, 144, 128, 1, False),
        ("p", FieldKind.POINTER, 160, 64, 1, False),
        ("pair", FieldKind.OTHER, 168, 256, 2, False),
        ("ops", FieldKind.OTHER, 200, 96, 3, False),
        ("bools", FieldKind.OTHER, 212, 16, 2, False),
        ("shorts", FieldKind.ARRAY, 214, 64, 4, True),
        ("tiny", FieldKind.INT, 222, 8, 1, True),
        ("letter", FieldKind.INT, 223, 8, 1, True),
    ],
)
def test_member_lies_where_the_compiler_put_it(
    *, name: str, kind: FieldKind, byte: float, size_bits: int, count: int, signed: bool
) -> None:
    """Offsets, sizes and signs of every sort of member, padding and bit-fields included."""
    _, layout = everything()
    (member,) = [entry for entry in layout.fields if entry.name == name]
    assert (member.kind, member.offset_bits / 8, member.size_bits) == (kind, byte, size_bits)
    assert (member.count, member.signed) == (count, signed)


def test_every_member_is_there_once_and_the_flexible_array_is_not() -> None:
    """A member without bytes has nothing to show."""
    _, layout = everything()
    assert len(layout.fields) == 26
    assert layout.size == 224 and layout.type_name == "struct everything" and not layout.scalar


def test_leaves_are_the_members_of_nested_structs_by_dotted_name() -> None:
    """Members of an unnamed struct have no part of their own; a union stays one."""
    _, layout = everything()
    names = [leaf.name for leaf in layout.leaves()]
    assert names[9:14] == ["nested.a", "nested.b", "wrapped.one", "un", "hidden"]


def test_typedef_names_and_enumerators_come_along() -> None:
    """Conventions decide by them."""
    _, layout = everything()
    fields = {entry.name: entry for entry in layout.fields}
    assert fields["address"].typedefs == ("ipv4_addr", "u32")
    assert fields["address6"].typedefs == ("ipv6_addr",)
    assert fields["op"].enumerators == ((1, "OP_A"), (7, "OP_B"))
    assert fields["op"].type_name == "op"


def test_tags_of_the_member_stand_before_those_of_its_typedef() -> None:
    """What is said closer wins."""
    source = """
    typedef u32 address __attribute__((btf_decl_tag("typedef")));
    struct key { address a __attribute__((btf_decl_tag("member"))); u32 b; };
    MAP(m, HASH, 1, struct key, u64);
    """
    spec = read_object(compile_bpf(source))
    fields = layout_of(spec.btf, spec.map("m").key_type_id).fields
    assert [entry.tags for entry in fields] == [("member", "typedef"), ()]


def test_scalar_type_is_one_field_without_a_name() -> None:
    """A bare u32 key, a bare array of slots."""
    writer = BtfWriter()
    number = writer.int("unsigned int", 4)
    array = writer.array(number, 5)
    btf = parse_btf(writer.build())
    assert layout_of(btf, number) == Layout(
        "unsigned int", 4, (Field("", FieldKind.UINT, 0, 32, type_name="unsigned int"),), scalar=True
    )
    assert layout_of(btf, array).fields[0].kind is FieldKind.ARRAY


def test_integer_of_fewer_bits_than_bytes_is_a_bit_field() -> None:
    """Before BTF marked bit-fields at the member, the integer type carried offset and width."""
    writer = BtfWriter()
    part = writer.int("part", 4, bits=5, offset=3)
    struct = writer.struct("s", 4, [("a", part, 0)])
    (member,) = layout_of(parse_btf(writer.build()), struct).fields
    assert (member.offset_bits, member.size_bits) == (3, 5)


def damaged(build: str) -> str:
    """The message about a type that cannot be laid out."""
    writer = BtfWriter()
    number = writer.int("int", 4)
    match build:
        case "outside":
            top = writer.struct("s", 4, [("a", number, 8)])
        case "outside by array":
            top = writer.struct("s", 4, [("a", writer.array(number, 2), 0)])
        case "inner outside":
            top = writer.struct("s", 8, [("in", writer.struct("t", 16, [("a", number, 0)]), 0)])
        case "itself":
            top = writer.struct("s", 8, [("again", 2, 0)])
        case "many":
            inner = writer.struct("t", 4, [(f"m{index}", number, 0) for index in range(70)])
            top = writer.struct("s", 4, [(f"m{index}", inner, 0) for index in range(70)])
        case "bit-field too wide":
            top = writer.bitfields("s", 8, [("a", number, 0, 40)])
        case "pointer in a bit-field":
            top = writer.bitfields("s", 16, [("a", writer.ptr(number), 1, 0)])
        case "name":
            top = writer.struct("s", 4, [("a b", number, 0)])
        case "long name":
            top = writer.struct("s", 4, [("a" * 600, number, 0)])
        case "function":
            top = writer.struct("s", 4, [("a", writer.record(13, "", number), 0)])
        case _:
            top = writer.struct("s", 4, [("a", 0, 0)])
    with pytest.raises(ObjectError) as caught:
        layout_of(parse_btf(writer.build()), top)
    assert caught.value.code == "elf.btf"
    return str(caught.value)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        ("outside", "member 'a' lies outside"),
        ("outside by array", "member 'a' lies outside"),
        ("inner outside", "member 'in' lies outside"),
        ("itself", "nested deeper than 32"),
        ("many", "more than 1024 members"),
        ("bit-field too wide", "bit-field of 40 bits"),
        ("pointer in a bit-field", "begin and end at a byte"),
        ("name", "no C identifier"),
        ("long name", "over 512 long"),
        ("function", "no bytes"),
        ("void", "no bytes"),
    ],
)
def test_type_that_no_compiler_makes_is_refused(build: str, words: str) -> None:
    """Nothing is laid out that a row could not hold."""
    assert words in damaged(build)


def test_deep_but_narrow_nesting_costs_bounded_work() -> None:
    """Thirty levels of two members each would be a billion leaves."""
    writer = BtfWriter()
    level = writer.int("int", 4)
    for depth in range(30):
        level = writer.struct(f"s{depth}", 4, [("a", level, 0), ("b", level, 0)])
    with pytest.raises(ObjectError, match="more than 1024"):
        layout_of(parse_btf(writer.build()), level)


def test_enum_with_negative_values_keeps_them_where_btf_says_so() -> None:
    """Compilers since LLVM 16 mark a signed enum; 64-bit enums have a kind of their own."""
    writer = BtfWriter()
    signed = writer.enum("e", [("E_NEG", -1), ("E_POS", 1)], signed=True)
    wide = writer.enum64("w", [("W_BIG", 1 << 40)])
    struct = writer.struct("s", 16, [("e", signed, 0), ("w", wide, 64)])
    first, second = layout_of(parse_btf(writer.build()), struct).fields
    assert first.enumerators == ((-1, "E_NEG"), (1, "E_POS")) and first.signed
    assert second.enumerators == ((1 << 40, "W_BIG"),) and second.size_bits == 64


def test_typedef_gives_its_name_to_the_type() -> None:
    """What a person wrote is what the message says."""
    btf, _ = everything()
    found = btf.find(Typedef, "wrapped_t")
    assert found is not None
    assert layout_of(btf, found[0]).type_name == "wrapped_t"
    assert btf.find(Struct, "inner") is not None


def test_array_has_its_first_element() -> None:
    """Under its own name, with typedefs and members; the others follow."""
    _, layout = everything()
    fields = {entry.name: entry for entry in layout.fields}
    pair, ops, table = (fields[name].element for name in ("pair", "ops", "table"))
    assert pair and ops and table
    assert [(part.name, part.offset_bits) for part in pair.members] == [("pair.a", 168 * 8), ("pair.b", 176 * 8)]
    assert (ops.kind, ops.offset_bits, ops.size_bits) == (FieldKind.ENUM, 200 * 8, 32)
    assert (table.kind, table.size_bits, fields["table"].count) == (FieldKind.UINT, 32, 6)
    second = pair.moved(128, "pair.1")
    assert [(part.name, part.offset_bits) for part in second.members] == [("pair.1.a", 184 * 8), ("pair.1.b", 192 * 8)]


def test_enum_of_eight_bytes_keeps_signs_and_names() -> None:
    """As LLVM 16 and newer write them."""
    writer = BtfWriter()
    big = writer.enum64("big", [("BIG_LOW", -1), ("BIG_HIGH", (1 << 62))], signed=True)
    huge = writer.enum64("huge", [("HUGE_TOP", (1 << 64) - 1)])
    btf = parse_btf(writer.build())
    (field,) = layout_of(btf, big).fields
    assert (field.kind, field.size_bits, field.signed) == (FieldKind.ENUM, 64, True)
    assert field.enumerators == ((-1, "BIG_LOW"), (1 << 62, "BIG_HIGH"))
    (field,) = layout_of(btf, huge).fields
    assert (field.signed, field.enumerators) == (False, (((1 << 64) - 1, "HUGE_TOP"),))


def test_type_that_is_only_declared_is_named() -> None:
    """Its definition is missing from the source; a pointer to it is none the worse."""
    writer = BtfWriter()
    opaque = writer.record(7, "opaque", 0)
    pointer = writer.ptr(opaque)
    btf = parse_btf(writer.build())
    assert layout_of(btf, pointer).fields[0].kind is FieldKind.POINTER
    with pytest.raises(ObjectError, match="struct 'opaque' without a definition has no size"):
        layout_of(btf, opaque)
