"""Labels: native rendering against its Python twin, and both against the readers of the formats."""

from __future__ import annotations

import os
import struct
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint
from prometheus_client.parser import text_string_to_metric_families

from exporter.collect import Frame, SeriesBudget, labels
from exporter.collect.labels import (
    ATTRIBUTE_OF_POINT,
    SLOW,
    Value,
    enum_values,
    label_value,
    otlp_attributes,
    prometheus_text,
    text_of,
)
from exporter.errors import PlanError
from exporter.plan.decoders import DECODERS, Cost
from exporter.plan.plan import Condition, LabelRule, StackSource, Step
from tests.support.frame_model import SCOPE, START, table

OFFSET_NS = 1_700_000_000_000_000_000
TABLES = [decoder.name for decoder in DECODERS.values() if decoder.cost is Cost.TABLE]
FAST_SIZES = {
    "uint": st.integers(1, 128),
    "int": st.integers(1, 128),
    "hex": st.integers(1, 128),
    "bool": st.integers(1, 64),
    "float": st.sampled_from([32, 64]),
    "string": st.integers(1, 32).map(lambda size: size * 8),
    "bytes": st.integers(1, 32).map(lambda size: size * 8),
    **dict.fromkeys(TABLES, st.integers(1, 64)),
    "ipv4": st.just(32),
    "ipv6": st.sampled_from([32, 128]),
    "ip": st.sampled_from([32, 128]),
    "natural": st.integers(1, 64),
    "port": st.integers(1, 64),
    "port_be": st.just(16),
    "mac": st.sampled_from([48, 64]),
    "dns": st.integers(1, 40).map(lambda size: size * 8),
    "duration": st.integers(1, 64),
    "time": st.integers(1, 60),
    "prefix": st.integers(1, 20).map(lambda size: size * 8),
}
BIT_FIELDS = {"uint", "int", "hex", "bool", "natural", "port", "duration", "time", *TABLES}
PIECES = (
    b"\x03www", b"\x07ExAmple", b"\x02.\x1f", b"\xc0\x0c",
    b"\xe2\x82", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90", b"\xff", b"\\", b'"', b"\n", b"a",
    b"\r", b"\x01", b"\0",
)  # fmt: skip
AWKWARD = st.binary(max_size=40) | st.lists(st.sampled_from(PIECES)).map(b"".join)


def resolve(decoder: str, value: int) -> str:
    """A machine on which everything has a name, but zero."""
    return f"{decoder}«{value}»" if value else ""


def native(rules: list[LabelRule], key: bytes, **others: object) -> tuple[bytes, bytes]:
    """Label text and attribute bytes of one key."""
    enums = others.pop("enums", {})
    plan = table(labels=rules, key_size=len(key), **others)
    frame = Frame(
        plan,
        scope=SCOPE,
        resolve=resolve,
        budget=SeriesBudget(9),
        enums=enums,
        start_ns=START,  # type: ignore[arg-type]
    )
    frame.begin(START, realtime_minus_monotonic_ns=OFFSET_NS)
    frame.apply(key, bytes(8), 1, 8, 1)
    frame.finish()
    ((text, attributes, *_),) = frame._table.series()
    return text, attributes


def value_of(rule: LabelRule, key: bytes) -> Value:
    """What the twin says."""
    return label_value(rule, key, resolve=resolve, machine=os.uname().machine, realtime_minus_monotonic_ns=OFFSET_NS)


CONDITIONS = st.builds(
    Condition,
    st.integers(0, 9),
    st.integers(1, 64),
    st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple),
    st.booleans(),
)
STEPS = [
    Step("map", (("0", "none"), ("a", 'x"y')), default=None),
    Step("map", (("1", "one"),), default="other"),
    Step("map", (("", "never"),), default=""),
    Step("regexp", pattern="[0-9]+", replacement="#"),
    Step("regexp", pattern="^(.)(.)", replacement=r"\2\1"),
    Step("regexp", pattern="[a-f]+"),
    Step("regexp", pattern="(x)?.$"),
]


@st.composite
def rules_and_keys(draw: st.DrawFn) -> tuple[LabelRule, bytes]:
    """A label somewhere in a key."""
    decoder = draw(st.sampled_from(sorted(DECODERS)))
    sizes = st.sampled_from(DECODERS[decoder].sizes) if DECODERS[decoder].sizes else st.integers(1, 64)
    size = draw(FAST_SIZES.get(decoder, sizes))
    whole = bool(DECODERS[decoder].sizes)
    bit = draw(st.integers(0, 7)) if decoder in BIT_FIELDS or (decoder in SLOW and not whole) else 0
    base = draw(st.integers(0, 5)) if decoder == "prefix" else 0
    offset = draw(st.integers(0, 3)) * 8 + bit + (8 * (base + 4) if decoder == "prefix" else 0)
    count = draw(st.sampled_from([1, 1, 1, 2, 3, 7])) if size % 8 == 0 and decoder != "prefix" else 1
    length = (offset + size * count + 7) // 8
    key = draw(AWKWARD | st.binary(min_size=length) | st.integers(0, 600).map(lambda n: n.to_bytes(2, "little")))
    if draw(st.booleans()):
        key = bytes(offset // 8) + key
    key = key[:length].ljust(length, b"\0")
    if decoder == "prefix" and draw(st.booleans()):
        key = key[:base] + draw(st.integers(0, size + 40)).to_bytes(4, "little") + key[base + 4 :]
    values = draw(
        st.sampled_from([((0, "zero"), (3, 'th"ree'), (-1, "minus"), (5, "")), ((1, "a"), (2, "b"), (64, "c"))])
    )
    conditions = draw(st.lists(CONDITIONS, max_size=2)) if draw(st.booleans()) else []
    conditions = [one for one in conditions if one.offset_bits + one.size_bits <= length * 8]
    steps = draw(st.lists(st.sampled_from(STEPS), max_size=2))
    signed = draw(st.booleans())
    rule = LabelRule("a.b", decoder, offset, size, signed, values, steps=tuple(steps), count=count, base_bytes=base)
    return replace(rule, conditions=tuple(conditions)), key


@settings(max_examples=500)
@given(rules_and_keys())
@example((LabelRule("a.b", "int", 0, 64, signed=True), (1 << 63).to_bytes(8, "little")))
@example((LabelRule("a.b", "uint", 0, 64), b"\xff" * 8))
@example((LabelRule("a.b", "uint", 7, 64), b"\xff" * 9))
@example((LabelRule("a.b", "int", 0, 128), b"\xff" * 16))
@example((LabelRule("a.b", "float", 0, 32), struct.pack("<f", 0.1)))
@example((LabelRule("a.b", "float", 0, 64), struct.pack("<d", 5e-324)))
@example((LabelRule("a.b", "ip", 0, 128), bytes(10) + b"\xff\xff\x0a\0\0\x01"))
def test_native_label_is_what_its_twin_says(case: tuple[LabelRule, bytes]) -> None:
    """Both formats, every decoder, any bytes at any bit."""
    rule, key = case
    pairs = [(rule.name, value_of(rule, key))]
    assert native([rule], key) == (prometheus_text(pairs), otlp_attributes(pairs, tag=ATTRIBUTE_OF_POINT))


def protobuf_value(value: AnyValue) -> Value:
    """What protobuf read, lists as tuples."""
    found = getattr(value, value.WhichOneof("value"))
    return tuple(map(protobuf_value, found.values)) if isinstance(found, ArrayValue) else found


@settings(max_examples=100)
@given(rules_and_keys(), st.text(max_size=5))
def test_rendered_labels_read_back(case: tuple[LabelRule, bytes], tier: str) -> None:
    """Prometheus' own parser and protobuf see what was meant, constants after labels."""
    rule, key = case
    value = value_of(rule, key)
    text, attributes = native([rule], key, constant_labels=(("tier", tier),))
    meant = {name: one for name, one in (("a.b", value), ("tier", tier)) if text_of(one)}
    (family,) = text_string_to_metric_families("x{" + text.decode() + "} 5\n")
    assert family.samples[0].labels == {name.replace(".", "_"): text_of(one) for name, one in meant.items()}
    point = NumberDataPoint.FromString(attributes)
    read = {one.key: protobuf_value(one.value) for one in point.attributes}
    assert read == meant
    assert [type(one) for one in read.values()] == [type(one) for one in meant.values()]


@pytest.mark.parametrize(
    ("decoder", "key", "signed", "value"),
    [
        ("uint", b"\xff" * 8, False, "18446744073709551615"),
        ("uint", b"\xff" * 7 + b"\x7f", False, (1 << 63) - 1),
        ("int", b"\xff\xff\xff\xff", False, -1),
        ("bool", b"\0", False, False),
        ("bool", b"\x04", False, True),
        ("float", struct.pack("<d", 0.1), False, "0.1"),
        ("float", struct.pack("<f", 0.1), False, "0.1"),
        ("float", struct.pack("<d", -0.0), False, "-0"),
        ("float", struct.pack("<d", float("-inf")), False, "-Inf"),
        ("hex", b"\x00\x10", False, "0x1000"),
        ("string", b"kworker\0\xff\xff", False, "kworker"),
        ("string", b"no-nul-here-0000", False, "no-nul-here-0000"),
        ("string", b"\0\0\0\0", False, ""),
        ("string", b"a\xffb\xe2\x82", False, "a\ufffdb\ufffd"),
        ("bytes", b"\xde\xad\0", False, "dead00"),
        ("ipv4", b"\x0a\x01\x02\x03", False, "10.1.2.3"),
        ("ipv6", bytes(15) + b"\x01", False, "::1"),
        ("ipv6", bytes(16), False, "::"),
        ("ipv6", bytes.fromhex("20010db8000000010000000000000001"), False, "2001:db8:0:1::1"),
        ("ipv6", bytes.fromhex("20010db8000100000002000300040005"), False, "2001:db8:1:0:2:3:4:5"),
        ("ipv6", bytes.fromhex("00010000000000000001000000000000"), False, "1::1:0:0:0"),
        ("ipv6", bytes(10) + b"\xff\xff\x0a\x01\x02\x03", False, "::ffff:10.1.2.3"),
        ("ipv6", b"\x0a\x01\x02\x03", False, "10.1.2.3"),
        ("ip", b"\x0a\x01\x02\x03", False, "10.1.2.3"),
        ("ip", bytes(10) + b"\xff\xff\x0a\x01\x02\x03", False, "10.1.2.3"),
        ("port", b"\x50\x00", False, 80),
        ("natural", b"\x00\x00", False, 0),
        ("natural", b"\xff\x7f", False, 32767),
        ("natural", b"\xff\xff", False, ""),
        ("port_be", b"\x00\x50", False, 80),
        ("duration", (128_000).to_bytes(8, "little"), False, "0.000128"),
        ("duration", (5_000_000_000).to_bytes(8, "little"), False, "5"),
        ("duration", bytes(8), False, "0"),
        ("duration", (-1_500_000_000).to_bytes(8, "little", signed=True), True, "-1.5"),
        ("time", (1).to_bytes(8, "little"), False, "2023-11-14T22:13:20.000000001Z"),
        ("time", bytes(8), False, ""),
        ("errno", (2).to_bytes(4, "little"), False, "ENOENT"),
        ("errno", (-11).to_bytes(4, "little", signed=True), True, "EAGAIN"),
        ("errno", (-512).to_bytes(8, "little", signed=True), True, "ERESTARTSYS"),
        ("errno", (0).to_bytes(4, "little"), False, ""),
        ("errno", (4000).to_bytes(4, "little"), False, "4000"),
        ("signal", (9).to_bytes(1, "little"), False, "SIGKILL"),
        ("signal", (0).to_bytes(1, "little"), False, ""),
        ("signal", (37).to_bytes(1, "little"), False, "SIGRTMIN+3"),
        ("syscall", (435).to_bytes(4, "little"), False, "clone3"),
        ("syscall", (-1).to_bytes(8, "little", signed=True), True, ""),
        ("syscall", (100_000).to_bytes(4, "little"), False, "100000"),
        ("uint", b"\xff" * 16, False, str((1 << 128) - 1)),
        ("int", bytes(15) + b"\x80", False, str(-(1 << 127))),
        ("syscall.compat", (1).to_bytes(4, "little"), False, "exit"),
        ("protocol", b"\x06", False, "tcp"),
        ("protocol", b"\xfe", False, "254"),
        ("family", b"\x0a\0", False, "inet6"),
        ("tcp_state", b"\x0a", False, "listen"),
        ("capability", b"\x0c", False, "net_admin"),
        ("ethertype", b"\xdd\x86", False, "ipv6"),
        ("mac", bytes.fromhex("525400123456"), False, "52:54:00:12:34:56"),
        ("mac", bytes.fromhex("5254001234560000"), False, "52:54:00:12:34:56"),
        ("dns", b"\3WWW\7example\3org\0rest", False, "www.example.org"),
        ("dns", b"\0abc", False, "."),
        ("dns", b"\5a.b c\0", False, r"a\.b\032c"),
        ("dns", b"\3www\xc0\x0c\0", False, "www"),
        ("dns", b"\3www\7exam", False, "www"),
        ("dns", b"\xff\0", False, ""),
        ("uid", (0).to_bytes(4, "little"), False, ""),
        ("uid", (7).to_bytes(4, "little"), False, "uid«7»"),
    ],
)
def test_decoder_shows(decoder: str, key: bytes, signed: bool, value: Value) -> None:
    """What each decoder means, at its edges."""
    rule = LabelRule("a", decoder, 0, len(key) * 8, signed=signed)
    assert value_of(rule, key) == value
    assert native([rule], key)[0] == prometheus_text([("a", value)])


@pytest.mark.parametrize("process", [None, (32, 32), (70, 13)])
@pytest.mark.parametrize("size_bits", [32, 64])
def test_stack_id_is_asked_with_its_map_and_its_process(process: tuple[int, int] | None, size_bits: int) -> None:
    """32 bits of id, whatever it is kept in, and above them whose stack it is."""
    key = bytes(range(200, 228))
    rule = LabelRule("s", "ustack", 96, size_bits, stack=StackSource("traces", process))
    number = int.from_bytes(key, "little")
    owner = number >> process[0] & (1 << process[1]) - 1 if process else 0
    asked = owner << 32 | number >> 96 & 0xFFFFFFFF
    assert value_of(rule, key) == f"ustack:traces«{asked}»"
    twice = [rule, LabelRule("t", "ustack", 96, 32, stack=StackSource("others")), LabelRule("u", "uid", 0, 32)]
    pairs = [(one.name, value_of(one, key)) for one in twice]
    assert native(twice, key) == (prometheus_text(pairs), otlp_attributes(pairs, tag=ATTRIBUTE_OF_POINT))


@pytest.mark.parametrize(
    ("length", "key", "start", "size", "text"),
    [
        (8, "0a010203", 4, 4, "10.0.0.0/8"),
        (0, "0a010203", 4, 4, "0.0.0.0/0"),
        (32, "0a010203", 4, 4, "10.1.2.3/32"),
        (33, "0a010203", 4, 4, "10.1.2.3/32"),
        (9, "0affffff", 4, 4, "10.128.0.0/9"),
        (64, "20010db8" + "ff" * 12, 4, 16, "2001:db8:ffff:ffff::/64"),
        (128, "00" * 15 + "01", 4, 16, "::1/128"),
        (12, "abcdef", 4, 3, "0xabc000/12"),
        (40, "0000000a01020304", 8, 4, "1.0.0.0/8"),
        (20, "0000000a01020304", 8, 4, "0.0.0.0/0"),
        (20, "0000000a01020304", 4, 4, "0.0.0.0/20"),
    ],
)
def test_prefix_shows_what_counts_of_its_part_of_the_key(
    length: int, key: str, start: int, size: int, text: str
) -> None:
    """Bits beyond the prefix are the last writer's and mean nothing; an inner trie's key begins further on."""
    for base in (0, 12):
        rule = LabelRule("a", "prefix", 8 * (base + start), 8 * size, base_bytes=base)
        whole = b"\xaa" * base + length.to_bytes(4, "little") + bytes.fromhex(key)
        assert value_of(rule, whole) == text
        assert native([rule], whole)[0] == prometheus_text([("a", text)])


def test_every_decoder_of_the_plan_is_known() -> None:
    """No decoder that a plan may name is missing here."""
    assert set(FAST_SIZES) | set(SLOW) == set(DECODERS)


STATE = LabelRule(
    "state",
    "enum",
    0,
    32,
    values=((1, "established"), (2, "syn_sent"), (7, "gone"), (1, "again")),
    enum_name="tcp_state",
    enumerators=(("TCP_ESTABLISHED", "established"), ("TCP_SYN_SENT", "syn_sent"), ("TCP_AGAIN", "again")),
)


def test_enum_shows_the_running_kernels_values() -> None:
    """Enumerators that moved, and those the object never knew, are shown as the object would."""
    kernel = {"TCP_ESTABLISHED": 1, "TCP_LISTEN": 2, "TCP_SYN_SENT": 3, "TCP_AGAIN": 1, "OTHER": 9, "TCP_ALIAS": 3}
    assert enum_values(STATE, {"tcp_state": kernel}) == {
        1: "established", 2: "listen", 3: "syn_sent", 7: "gone", 9: "other"
    }  # fmt: skip
    text, _ = native([STATE], struct.pack("<I", 3), enums={"tcp_state": kernel})
    assert text == b'state="syn_sent"'


@pytest.mark.parametrize("kernel", [{}, {"tcp_state": {}}, {"tcp_state": {"X": 1}}, {"other": {"TCP_AGAIN": 5}}])
def test_enum_the_kernel_does_not_have_shows_the_objects_values(kernel: dict[str, dict[str, int]]) -> None:
    """Without the kernel's BTF the object's own values are the best there is."""
    assert enum_values(STATE, kernel) == {1: "established", 2: "syn_sent", 7: "gone"}


FLAGS = LabelRule("f", "flags", 0, 8, values=((0, "none"), (1, "read"), (2, "write"), (3, "rw"), (8, "sync"), (9, "x")))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "none"),
        (1, "read"),
        (3, "rw"),
        (10, "write|sync"),
        (11, "read|write|sync"),
        (0x90, "0x90"),
        (0x4A, "write|sync|0x40"),
    ],
)  # fmt: skip
def test_flags_are_named_bit_by_bit(number: int, text: str) -> None:
    """What has a name of its own shows that; bits without one are shown as they are."""
    assert value_of(FLAGS, bytes((number,))) == text
    assert native([FLAGS], bytes((number,)))[0] == f'f="{text}"'.encode()


def test_flags_without_a_name_for_zero_show_zero() -> None:
    """A label that comes and goes with the bits would be two series of one thing."""
    rule = replace(FLAGS, values=((1, "read"),))
    assert native([rule], b"\0")[0] == b'f="0"'


def test_array_is_a_list() -> None:
    """Commas in labels, arrays where the format has them."""
    rule = LabelRule("a", "int", 0, 16, count=3)
    text, attributes = native([rule], struct.pack("<3h", 1, -2, 3))
    assert text == b'a="1,-2,3"'
    (attribute,) = NumberDataPoint.FromString(attributes).attributes
    assert [one.int_value for one in attribute.value.array_value.values] == [1, -2, 3]


def test_members_of_a_union_share_a_label_by_its_tag() -> None:
    """Only the one that holds is shown."""
    rules = [
        LabelRule("peer", "ipv4", 32, 32, conditions=(Condition(0, 16, (2,)),)),
        LabelRule("peer", "ipv6", 32, 128, conditions=(Condition(0, 16, (10,)),)),
        LabelRule("other", "bytes", 32, 16, conditions=(Condition(0, 16, (2, 10), negated=True),)),
    ]
    address = bytes([10, 1, 2, 3]) + bytes(12)
    assert native(rules, struct.pack("<I", 2) + address)[0] == b'peer="10.1.2.3"'
    assert native(rules, struct.pack("<I", 10) + address)[0] == b'peer="a01:203::"'
    assert native(rules, struct.pack("<I", 1) + address)[0] == b'other="0a01"'


def test_labels_that_may_meet_do_not_share_a_name() -> None:
    """A duplicate name would break the whole scrape."""
    rules = [
        LabelRule("peer", "uint", 32, 32, conditions=(Condition(0, 16, (2,)),)),
        LabelRule("peer", "uint", 32, 32, conditions=(Condition(0, 16, (2, 3)),)),
    ]
    with pytest.raises(PlanError, match="are both 'peer'"):
        native(rules, bytes(20))


def test_steps_are_asked_once_for_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a regular expression made of a text is remembered."""
    asked: list[str] = []

    def run(text: str) -> str:
        asked.append(text)
        return text.upper()

    monkeypatch.setattr(labels, "_all_steps", lambda steps: run)
    plan = table(labels=[LabelRule("a", "string", 0, 32, steps=(Step("map"),))], key_size=8)
    frame = Frame(plan, scope=SCOPE, resolve=resolve, budget=SeriesBudget(9), start_ns=START)
    frame.begin(START)
    frame.apply(b"".join(b"ab\0\0" + bytes((n, 0, 0, 0)) for n in range(5)), bytes(40), 5, 8, 1)
    assert asked == ["ab"]
    assert [text for text, *_ in frame._table.series()] == [b'a="AB"']


def test_enum_that_only_the_kernel_knows_shows_its_names() -> None:
    """Without the words that all begin with."""
    rule = LabelRule("state", "enum", 0, 32, enum_name="tcp_state")
    kernel = {"tcp_state": {"TCP_ESTABLISHED": 1, "TCP_SYN_SENT": 2, "__TCP_MAX": 3}}
    assert enum_values(rule, kernel) == {1: "established", 2: "syn_sent", 3: "__tcp_max"}
