"""Labels: from every member of a key or record, by its tags, metadata, typedef name or type."""

import re
import runpy
from pathlib import Path

import pytest

from exporter.bpf import Field, FieldKind
from exporter.plan import Condition, LabelRule
from exporter.plan.conventions import decoder_mismatch, enum_texts, infer_decoder, kind_prefix, typedef_decoders
from tests.support.plans import plan_of, problems_of, table_of

ROOT = Path(__file__).parents[2]
COUNTER = 'MAP(m, HASH, 10, {key}, u64) TAG("kind=counter");'


def labels(source: str, key: str = "struct key", **arguments: object) -> list[tuple[str, str]]:
    """Names and decoders of the labels of a counter with that key."""
    plan = plan_of(source + COUNTER.format(key=key), **arguments)  # type: ignore[arg-type]
    return [(rule.name, rule.decoder) for rule in table_of(plan, "m").labels]


def wrong(source: str, key: str = "struct key", **arguments: object) -> list[str]:
    """What is wrong with a counter with that key."""
    return problems_of(source + COUNTER.format(key=key), **arguments)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("counter_exits", ("counter", "exits")),
        ("gauge_load", ("gauge", "load")),
        ("hist_latency", ("histogram", "latency")),
        ("print_events", ("event", "events")),
        ("counter_", (None, "counter_")),
        ("counters", (None, "counters")),
        ("my_counter_x", (None, "my_counter_x")),
    ],
)
def test_prefix_gives_the_kind_and_is_no_part_of_the_name(name: str, expected: tuple[str | None, str]) -> None:
    """A prefix with nothing behind it is a name."""
    assert kind_prefix(name) == expected


@pytest.mark.parametrize(
    ("enumerators", "texts"),
    [
        (((1, "TCP_ESTABLISHED"), (2, "TCP_SYN_SENT")), ["established", "syn_sent"]),
        (((0, "OP_A"),), ["op_a"]),
        (((0, "A"), (1, "B")), ["a", "b"]),
        (((0, "OP"), (1, "OP_READ")), ["op", "op_read"]),
        (((0, "OP_X"), (1, "OP_X_Y")), ["x", "x_y"]),
        (((0, "OPEN"), (1, "OPAL")), ["open", "opal"]),
        (((0, "OP_A"), (1, "OP_B"), (2, "__OP_MAX")), ["a", "b", "__op_max"]),
        (((0, "OP_A"), (0, "OP_ALIAS"), (1, "OP_B")), ["a", "b"]),
        (((0, "S_SYN_SENT"), (1, "S_SYN_RECV")), ["sent", "recv"]),
    ],
)
def test_enumerator_loses_the_words_that_all_begin_with(
    enumerators: tuple[tuple[int, str], ...], texts: list[str]
) -> None:
    """Whole words only, and something always remains."""
    field = Field("x", FieldKind.ENUM, 0, 32, enumerators=enumerators)
    assert [text for _, _, text in enum_texts(field)] == texts


def test_negative_enumerator_is_the_number_that_the_bits_make() -> None:
    """Old compilers call every enum unsigned; a packed one has fewer bits than BTF's values."""
    field = Field("x", FieldKind.ENUM, 0, 8, enumerators=((0xFFFFFFFF, "E_NONE"), (1, "E_ONE")))
    assert [value for value, _, _ in enum_texts(field)] == [255, 1]


def test_enum_rule_says_what_the_running_kernel_must_be_asked() -> None:
    """Kernel enums differ from those at compile time; a CO-RE flavour is not part of the name."""
    source = "enum state___new { STATE_A, STATE_B }; struct key { enum state___new state; };"
    (rule,) = table_of(plan_of(source + COUNTER.format(key="struct key")), "m").labels
    assert rule.enum_name == "state"
    assert rule.values == ((0, "a"), (1, "b"))
    assert rule.enumerators == (("STATE_A", "a"), ("STATE_B", "b"))


@pytest.mark.parametrize(
    ("typedef", "decoder"),
    [
        ("typedef u32 t; typedef t ipv4_addr;", "ipv4_addr:ipv4"),
        ("typedef u32 ipv6_addr;", "ipv6_addr:ipv4"),
        ("typedef u8 ipv6_addr[16];", "ipv6_addr:ipv6"),
        ("typedef unsigned __int128 ipv6_addr;", "ipv6_addr:ipv6"),
        ("typedef struct { u8 bytes[16]; } ipv6_addr;", "ipv6_addr:ipv6"),
        ("typedef union { u8 bytes[16]; u32 words[4]; } ipv6_addr;", "ipv6_addr:ipv6"),
        ("typedef u64 duration;", "duration:duration"),
        ("typedef u64 ktime_ns;", "ktime_ns:time"),
        ("typedef u32 pid_t;", "pid_t:uint"),
    ],
)
def test_typedef_name_gives_the_decoder(typedef: str, decoder: str) -> None:
    """The names of BumbleBee's header and of ours; others are transparent."""
    name, _, expected = decoder.partition(":")
    assert labels(f"{typedef} struct key {{ {name} member; }};") == [("member", expected)]


def test_scalar_key_is_called_key() -> None:
    """It has no member name; tags on the map's variable may give it another."""
    assert labels("", "u32") == [("key", "uint")]
    assert labels("typedef u32 uid_nr;", "uid_nr") == [("key", "uid")]
    source = 'MAP(m, HASH, 10, u64, u64) TAG("kind=counter") TAG("label=group:cgroup") TAG("label=unit:cgroup.unit");'
    assert [rule.name for rule in table_of(plan_of(source), "m").labels] == ["group", "unit"]


@pytest.mark.parametrize(("entries", "names"), [(1, []), (2, ["index"])])
def test_array_index_is_a_label_only_if_there_are_several(entries: int, names: list[str]) -> None:
    """A single row needs nothing to tell it apart."""
    plan = plan_of(f"MAP(counter_x, ARRAY, {entries}, u32, u64);")
    assert [rule.name for rule in table_of(plan, "counter_x").labels] == names


def test_tagged_array_index_is_a_label_even_of_one_row() -> None:
    """What is asked for is done."""
    plan = plan_of('MAP(counter_x, ARRAY, 1, u32, u64) TAG("label=cpu");')
    assert [rule.name for rule in table_of(plan, "counter_x").labels] == ["cpu"]


def test_metadata_wins_over_tags_and_tags_over_typedefs() -> None:
    """The order of strength, member by member."""
    source = """
    typedef u64 cgroup_id;
    struct key { cgroup_id a TAG("decode=hex"); cgroup_id b TAG("label=tagged:uint"); cgroup_id c; cgroup_id d; };
    """
    declared = {
        "a": {"decode": "uint"},
        "b": {"name": "said"},
        "c": {"drop": True},
        "d": {"labels": {"x": "cgroup", "y": "hex"}},
    }
    metadata = {"version": 1, "metrics": {"m": {"labels": declared}}}
    assert labels(source) == [("a", "hex"), ("tagged", "uint"), ("c", "cgroup"), ("d", "cgroup")]
    assert labels(source, metadata=metadata) == [("a", "uint"), ("said", "cgroup"), ("x", "cgroup"), ("y", "hex")]


def test_padding_is_no_label() -> None:
    """Members that fill a gap are zero, and would be a label on every series."""
    source = "struct key { u32 a; u32 pad; u8 _pad1; u8 padding; u8 __reserved; u8 paddle; };"
    assert labels(source) == [("a", "uint"), ("paddle", "uint")]


def test_tagged_union_or_struct_is_one_label_of_all_its_bytes() -> None:
    """An address that is 4 or 16 bytes long."""
    source = """
    union address { u32 v4; u8 v6[16]; };
    struct pair { u32 a; u32 b; };
    struct key {
        union address peer TAG("label=peer:ip");
        struct pair both TAG("decode=hex");
        union address gone TAG("drop=true");
    };
    """
    assert labels(source) == [("peer", "ip"), ("both", "hex")]


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ("struct inner { u32 a; } m[200]", "key member 'm' is an array inner[200], too many for labels"),
        ("struct inner { u32 a, b; } m[100]", "key makes 200 labels, at most 128"),
        ("u32 m[300]", "key member 'm' is an array of 300 unsigned int, which has no form as a label"),
        ('u16 t; union { u32 a; u64 b; } m TAG("union=x")', "key member 'm': union=x names no member; expected an"),
        ('u16 t; union { u32 a; u64 b; } m TAG("union=t")', "its members have no case; give each a case=<value>"),
        ('u16 t; union { u32 a TAG("case=1"); u64 b TAG("case=1"); } m TAG("union=t")', "have the same case"),
        ('u16 t; union { u32 a TAG("case=x"); } m TAG("union=t")', "key member 'm.a': case 'x' is no value of 't'"),
        ('u16 t; union { u32 a TAG("case=70000"); } m TAG("union=t")', "case '70000' is no value of 't'"),
        ('u16 t; union { u32 a TAG("case=1,*"); } m TAG("union=t")', "tag 'skep:case=1,*' has '1,*'; expected values"),
        ('char t[2]; union { u32 a TAG("case=1"); } m TAG("union=t")', "names an array of 2 chars; expected an"),
        ('u32 m TAG("decode=flags")', "decoder 'flags' reads enums, and as flags(…) integers"),
        ('u32 m TAG("decode=uint|colour")', "step 'colour'; expected map(…) or regexp(…)"),
        ('u32 m TAG("decode=regexp(/(/)")', "regexp '('"),
        ('u32 m TAG("decode=port_be")', "decoder 'port_be' reads 2 bytes"),
        ('u64 m TAG("decode=ipv4")', "an unsigned integer of 64 bits, decoder 'ipv4' reads 4 bytes"),
        ('u32 m TAG("decode=ip"); u8 n[6] TAG("decode=ip")', "decoder 'ip' reads 4 or 16 bytes"),
        ('u32 m TAG("decode=enum")', "decoder 'enum' reads enums"),
        ('u32 m TAG("decode=float")', "decoder 'float' reads float and double"),
        ('char m[300] TAG("decode=uint")', "decoder 'uint' reads integers of up to 128 bits"),
        ('unsigned __int128 m TAG("decode=cgroup")', "decoder 'cgroup' reads integers of up to 64 bits"),
        ('u32 a:3; u32 m:8 TAG("decode=string")', "decoder 'string' reads whole bytes"),
        ('char m[5000]', "decoder 'string' reads whole bytes, at most 4096"),
        ('u32 m TAG("decode=colour")', "tag 'skep:decode=colour' has 'colour'; expected one of bool, bytes"),
        ('u32 m TAG("label=9x")', "label name '9x'"),
        ('u32 a; u32 m TAG("label=a")', "two labels are named 'a'"),
        ('u32 a TAG("label=x.y"); u32 m TAG("label=x_y")', "two labels are named 'x_y'"),
        ('u32 m TAG("colour=red")', "tag 'skep:colour=red'; expected skep:<key>=<value>"),
        ('u32 m TAG("drop")', "tag 'skep:drop'; expected"),
        ('u32 m TAG("drop=yes")', "'yes'; expected one of true, false"),
    ],
)  # fmt: skip
def test_member_that_cannot_be_a_label_is_an_error_that_names_it(member: str, words: str) -> None:
    """Map, member and remedy, before anything is loaded."""
    found = wrong(f"struct key {{ {member}; }};")
    assert any(words in text and text.startswith("map 'm'") for text in found), found


def test_tags_of_others_are_passed_over() -> None:
    """A declaration tag may be for another tool."""
    source = 'struct key { u32 a __attribute__((btf_decl_tag("other:x=y"))); };'
    assert labels(source) == [("a", "uint")]


def test_member_that_only_metadata_knows_is_an_error() -> None:
    """A typing mistake must not go unnoticed."""
    metadata = {"version": 1, "metrics": {"m": {"labels": {"devise": {"decode": "device"}}}}}
    (text,) = wrong("struct key { u32 device; };", metadata=metadata)
    assert text == "map 'm': metadata names key member 'devise', which does not exist; it has device"


@pytest.mark.parametrize(
    ("source", "key", "expire"),
    [
        ("", "u32", True),
        ("struct key { bool a; };", "struct key", False),
        ("enum e { E_A, E_B }; struct key { enum e a; bool b; };", "struct key", False),
        ('struct key { u32 a TAG("decode=device"); u32 b TAG("decode=interface"); };', "struct key", False),
        ('struct key { u32 a TAG("decode=errno"); u32 b TAG("decode=cgroup"); };', "struct key", True),
        ("struct key { char comm[16]; };", "struct key", True),
        ('struct key { u32 a TAG("drop=true"); };', "struct key", False),
    ],
)
def test_series_of_things_that_come_and_go_expire(source: str, key: str, expire: bool) -> None:
    """A device or an error number stays; a process or a control group does not."""
    assert table_of(plan_of(source + COUNTER.format(key=key)), "m").expire_idle is expire


def test_rows_of_an_array_never_go() -> None:
    """Its indexes are all there from the start."""
    table = table_of(plan_of("MAP(counter_x, ARRAY, 8, u32, u64);"), "counter_x")
    assert not table.expire_idle and table.skip_zero_rows


@pytest.mark.parametrize(
    ("field", "decoder"),
    [
        (Field("x", FieldKind.UINT, 0, 128), "uint"),
        (Field("x", FieldKind.POINTER, 0, 64), "hex"),
        (Field("x", FieldKind.INT, 0, 8), "int"),
        (Field("x", FieldKind.OTHER, 0, 64), None),
        (Field("x", FieldKind.UNION, 0, 64), None),
    ],
)
def test_type_gives_the_decoder_when_nothing_else_does(field: Field, decoder: str | None) -> None:
    """What no type can say is left to the author."""
    assert infer_decoder(field) == decoder
    assert decoder is None or not decoder_mismatch(decoder, field)


def rules(source: str, key: str = "struct key", **arguments: object) -> dict[str, LabelRule]:
    """The labels of a counter with that key, by name."""
    plan = plan_of(source + COUNTER.format(key=key), **arguments)  # type: ignore[arg-type]
    return {rule.name: rule for rule in table_of(plan, "m").labels}


def test_array_is_one_label_of_all_its_elements() -> None:
    """Each decoded as its type or typedef says, also of several dimensions."""
    source = """
    typedef u32 ipv4_addr; enum e { E_A, E_B };
    struct key { u32 a[2][3]; ipv4_addr b[2]; enum e c[2]; bool d[2]; double f[2]; void *p[2]; u8 raw[6]; char t[4];
                 u16 g[2] TAG("decode=port_be"); u32 h[4] TAG("decode=ip"); };
    """
    found = [(rule.name, rule.decoder, rule.count, rule.size_bits) for rule in rules(source).values()]
    assert found == [
        ("a", "uint", 6, 32), ("b", "ipv4", 2, 32), ("c", "enum", 2, 32), ("d", "bool", 2, 8), ("f", "float", 2, 64),
        ("p", "hex", 2, 64), ("raw", "bytes", 1, 48), ("t", "string", 1, 32), ("g", "port_be", 2, 16),
        ("h", "ip", 1, 128),
    ]  # fmt: skip


def test_array_of_structs_is_a_label_for_each_member_of_each() -> None:
    """With the element's number in the name; a typedef that says what the struct is makes a list instead."""
    source = """
    typedef struct { u8 bytes[16]; } ipv6_addr;
    struct key { struct { u8 a; u16 b[2]; } m[2]; ipv6_addr to[2]; };
    """
    found = {name: (rule.offset_bits, rule.count) for name, rule in rules(source).items()}
    assert found == {"m.0.a": (0, 1), "m.0.b": (16, 2), "m.1.a": (48, 1), "m.1.b": (64, 2), "to": (96, 2)}


def test_union_without_a_word_is_its_bytes() -> None:
    """One that has no name is called by its members."""
    found = rules("struct key { union { u32 a; u64 b; } m; union { u32 v4; u8 v6[16]; }; };")
    assert {name: (rule.decoder, rule.size_bits) for name, rule in found.items()} == {
        "m": ("bytes", 64), "v4_v6": ("bytes", 128)
    }  # fmt: skip


UNION = """
enum family { FAMILY_NONE, FAMILY_V4 = 2, FAMILY_V6 = 10 };
struct key {
    enum family family;
    union {
        u32 v4 TAG("label=peer:ipv4") TAG("case=FAMILY_V4");
        u8 v6[16] TAG("label=peer:ipv6") TAG("case=v6,11");
        struct { u16 a; u16 b; } rest TAG("case=*");
    } address TAG("union=family");
};
"""


def test_union_is_shown_by_its_tag() -> None:
    """Members for other cases than the one at hand have no label; exclusive ones may share a name."""
    plan = plan_of(UNION + COUNTER.format(key="struct key"))
    found = [(rule.name, rule.decoder, rule.conditions) for rule in table_of(plan, "m").labels]
    assert found == [
        ("family", "enum", ()),
        ("peer", "ipv4", (Condition(0, 32, (2,)),)),
        ("peer", "ipv6", (Condition(0, 32, (10, 11)),)),
        ("address.rest.a", "uint", (Condition(0, 32, (2, 10, 11), negated=True),)),
        ("address.rest.b", "uint", (Condition(0, 32, (2, 10, 11), negated=True),)),
    ]


def test_metadata_can_say_how_a_union_is_told_apart() -> None:
    """For objects that cannot be rebuilt."""
    declared = {
        "to": {"union": "family"},
        "to.v4": {"name": "peer", "decode": "ipv4", "case": 2},
        "to.v6": {"name": "peer", "decode": "ip", "case": "10"},
    }
    source = "struct key { u16 family; union { u32 v4; u8 v6[16]; } to; };"
    plan = plan_of(
        source + COUNTER.format(key="struct key"), metadata={"version": 1, "metrics": {"m": {"labels": declared}}}
    )
    conditions = [(rule.decoder, [one.values for one in rule.conditions]) for rule in table_of(plan, "m").labels]
    assert conditions == [("uint", []), ("ipv4", [(2,)]), ("ip", [(10,)])]


def test_expression_goes_on_from_what_the_type_says() -> None:
    """Steps need no decoder in front; a label's own come after its member's."""
    source = """
    struct key { u32 op TAG("decode=map(0=read,1=write,*=other)"); char comm[16] TAG("label=comm:regexp(/:.*//)");
                 u64 id TAG("decode=cgroup|regexp(/x/y/)") TAG("label=a:map(1=b)") TAG("label=c"); };
    """
    found = rules(source)
    assert (found["op"].decoder, found["op"].steps[0].default) == ("uint", "other")
    assert (found["comm"].decoder, found["comm"].steps[0].pattern) == ("string", ":.*")
    assert [step.kind for step in found["a"].steps] == ["regexp", "map"]
    assert [step.kind for step in found["c"].steps] == ["regexp"]


def test_integer_is_shown_by_the_names_of_an_enum() -> None:
    """The object's own, or one that only the kernel knows."""
    source = """
    enum mode { MODE_READ = 1, MODE_WRITE = 2 }; enum mode unused;
    struct key { u8 a TAG("decode=enum(mode)"); u16 b TAG("decode=flags(mode)"); u32 c TAG("decode=enum(tcp_state)");
                 enum mode d TAG("decode=flags"); };
    """
    found = rules(source)
    assert found["a"].values == found["b"].values == found["d"].values == ((1, "read"), (2, "write"))
    assert [found[name].enum_name for name in "abcd"] == ["mode", "mode", "tcp_state", "mode"]
    assert found["c"].values == ()


def test_plain_decoder_of_any_type_reads_it() -> None:
    """Whatever the type is, what is inferred fits it: nothing is left to fail at load."""
    for kind in FieldKind:
        for size in (1, 7, 8, 16, 48, 64, 65, 80, 128):
            field = Field("x", kind, 3 if size < 8 else 0, size)
            decoder = infer_decoder(field)
            whole = size % 8 == 0
            if decoder and (whole or kind in (FieldKind.UINT, FieldKind.INT)) and (size <= 64 or kind not in SMALL):
                assert not decoder_mismatch(decoder, field), (kind, size)


SMALL = (FieldKind.BOOL, FieldKind.ENUM, FieldKind.POINTER)


def test_page_of_decoders_says_what_the_table_has() -> None:
    """After a change that is meant: ``python packaging/generate/decoders.py``."""
    generator = runpy.run_path(str(ROOT / "packaging/generate/decoders.py"))
    assert (ROOT / "docs/decoders.md").read_text() == generator["generate"]()


def test_header_has_every_typedef_that_names_a_decoder() -> None:
    """Whoever includes it need not write them again."""
    header = (ROOT / "_native/skep.bpf.h").read_text()
    kernels = {"mac_addr"}  # vmlinux.h has it
    for name in typedef_decoders().keys() - kernels:
        assert re.search(rf"^typedef \w+ {name}(\[\d+\])?;", header, re.MULTILINE), name


def test_unions_in_an_array_of_structs_are_each_shown_by_the_tag_beside_them() -> None:
    """That of the same element."""
    text = """
    struct end { u16 family; u16 pad; union { u32 v4 TAG("case=2"); u64 id TAG("case=*"); } who TAG("union=family"); };
    struct key { struct end pair[2]; };
    MAP(counter_x, HASH, 9, struct key, u64);
    """
    rules = {rule.name: rule for rule in table_of(plan_of(text), "counter_x").labels}
    for index in range(2):
        family = rules[f"pair.{index}.family"]
        for member in ("v4", "id"):
            (only,) = rules[f"pair.{index}.who.{member}"].conditions
            assert (only.offset_bits, only.size_bits) == (family.offset_bits, family.size_bits)


def test_map_of_stacks_that_a_label_shows_is_not_said_to_be_unused() -> None:
    """One that no label names is."""
    text = """
    struct { __uint(type, STACK_TRACE); __uint(max_entries, 9); __uint(key_size, 4); __uint(value_size, 64); }
        shown SEC(".maps"), other SEC(".maps");
    struct key { s32 id TAG("decode=kstack") TAG("stack=shown"); };
    MAP(counter_x, HASH, 9, struct key, u64);
    """
    assert plan_of(text).notes == ("map 'other': not exported: nothing says its kind",)
