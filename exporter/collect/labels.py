"""From the bytes of a key or record to labels, attributes and JSON members.

:func:`compile_labels` turns a plan's rules into numbers for ``labels.c``, which
runs them over whole batches. The other functions are its twin: they state in
Python what each decoder means, and property tests hold the two equal.

A label's value is an ``int``, a ``bool`` or a ``str``, or of an array a tuple of
those. Prometheus shows its text, a list's joined by commas. OTLP gets ``int_value``
for ``uint``, ``int``, ``port`` and ``port_be`` (text where 63 bits do not hold it),
``bool_value`` for ``bool``, ``string_value`` for all else, ``array_value`` for a list.
JSON has numbers, ``true`` and ``false``, strings, arrays. Empty text: no such label,
anywhere.
"""

from __future__ import annotations

import ipaddress
import json
import math
import os
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from exporter.collect.names import (
    CAPABILITIES,
    COMPAT_SYSCALLS,
    ERRNO,
    ETHERTYPES,
    FAMILIES,
    PROTOCOLS,
    SIGNALS,
    SYSCALLS,
    TCP_STATES,
)
from exporter.errors import PlanError
from exporter.model import prometheus_label
from exporter.plan.conventions import common_words
from exporter.plan.decoders import DECODERS, Cost, compile_step, size_mismatch
from exporter.plan.plan import Condition, LabelRule, Step

Scalar = int | bool | str
Value = Scalar | tuple[Scalar, ...]
Resolve = Callable[[str, int], str]
Enums = Mapping[str, Mapping[str, int]]
Span = tuple[int, int]

SLOW = tuple(decoder.name for decoder in DECODERS.values() if decoder.cost is Cost.MACHINE)
"""Decoders that ask the machine, through a bounded cache; the order numbers them."""

ATTRIBUTE_OF_POINT = 0x3A
"""Tag of ``NumberDataPoint.attributes``, field 7."""
ATTRIBUTE_OF_LOG = 0x32
"""Tag of ``LogRecord.attributes``, field 6."""

# Numbers are shared with ``enum skep_decoder`` in labels.h.
_TABLE, _SLOW = 7, 15
_CODES = {
    "uint": 0, "int": 1, "natural": 1, "bool": 2, "float": 3, "hex": 4, "string": 5, "bytes": 6, "ipv4": 8, "ipv6": 9,
    "ip": 10, "port": 11, "port_be": 12, "duration": 13, "time": 14, "flags": 16, "mac": 17, "dns": 18,
    "prefix": 40,
}  # fmt: skip
_CODES |= {
    decoder.name: _TABLE if decoder.cost is Cost.TABLE else _SLOW
    for decoder in DECODERS.values()
    if decoder.name not in _CODES and decoder.cost is not Cost.FORMAT
}
_SIGNED = 1
_MAGNITUDE = 2
_STEPS = 4
_NATURAL = 8
_STACK = 16
_STATIC = {
    "errno": {0: ""} | ERRNO, "signal": {0: ""} | SIGNALS, "protocol": PROTOCOLS, "family": FAMILIES,
    "tcp_state": TCP_STATES, "capability": CAPABILITIES, "ethertype": ETHERTYPES,
}  # fmt: skip
_CALLS = {"syscall": SYSCALLS, "syscall.compat": COMPAT_SYSCALLS}
_U64 = (1 << 64) - 1


# ---- what the decoders mean ----


def enum_values(rule: LabelRule, enums: Enums) -> dict[int, str]:
    """The numbers and texts of an enum, those of the running kernel if it has the enum.

    An enumerator that moved takes its text along. One that the object never knew
    is shown the way its neighbours are: without the prefix they lost, lower case.
    """
    planned = dict(rule.values[::-1])
    kernel = enums.get(rule.enum_name, {}) if rule.enum_name else {}
    texts = dict(rule.enumerators)
    if not texts and kernel:  # an enum that only the kernel knows
        shared = common_words(kernel)
        shown = {name: "_".join(name.split("_")[0 if name.startswith("__") else shared :]) for name in kernel}
        return {value: shown[name].lower() for name, value in reversed(list(kernel.items()))}
    if not texts.keys() & kernel.keys():
        return planned
    prefixes = Counter(name[: -len(text)] for name, text in texts.items() if text and name.lower().endswith(text))
    prefix = prefixes.most_common(1)[0][0] if prefixes else ""
    moved = {value: text for value, text in planned.items() if text not in texts.values()}
    # Of several enumerators with one value the first is shown, those the object knows before others.
    for name, value in kernel.items():
        if name not in texts:
            moved.setdefault(value, name.removeprefix(prefix).lower())
    moved |= {kernel[name]: text for name, text in rule.enumerators[::-1] if name in kernel}
    return moved


def table_of(rule: LabelRule, enums: Enums, machine: str) -> dict[int, str]:
    """Texts of the numbers a decoder by table knows; numbers as unsigned 64 bits."""
    if rule.decoder in _STATIC:
        return _STATIC[rule.decoder]
    if rule.decoder in _CALLS:
        return {_U64: "", (1 << 32) - 1: ""} | _CALLS[rule.decoder].get(machine, {})
    mask = (1 << rule.size_bits) - 1 if rule.decoder == "flags" else _U64
    return {value & mask: text for value, text in enum_values(rule, enums).items()}


def integer(data: bytes, rule: LabelRule, *, signed: bool) -> int:
    """The rule's bits, little-endian."""
    value = int.from_bytes(data, "little") >> rule.offset_bits & ((1 << rule.size_bits) - 1)
    return value - (1 << rule.size_bits) if signed and value >> (rule.size_bits - 1) else value


def float_text(number: float, *, single: bool) -> str:
    """The fewest digits that read back as the same number."""
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "+Inf" if number > 0 else "-Inf"
    for digits in range(1, 17):
        text = f"{number:.{digits}g}"
        try:
            back = struct.unpack("<f", struct.pack("<f", float(text)))[0] if single else float(text)
        except OverflowError:
            continue
        if back == number:
            return text
    return f"{number:.17g}"


def duration_text(ns: int) -> str:
    """Nanoseconds as seconds, exactly, without trailing zeros."""
    whole, rest = divmod(abs(ns), 1_000_000_000)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{'-' if ns < 0 else ''}{whole}{fraction}"


def time_text(unix_ns: int) -> str:
    """RFC 3339 in UTC with nanoseconds."""
    seconds, ns = divmod(unix_ns, 1_000_000_000)
    moment = datetime(1970, 1, 1) + timedelta(seconds=seconds)
    return f"{moment.isoformat()}.{ns:09d}Z"


def ipv6_text(address: bytes) -> str:
    """RFC 5952, IPv4-mapped addresses with dots."""
    if address.startswith(bytes(10) + b"\xff\xff"):
        return f"::ffff:{ipaddress.IPv4Address(address[12:])}"
    return str(ipaddress.IPv6Address(address))


def prefix_text(key: bytes, start: int, size: int) -> str:
    """A part of a trie's key as ``10.0.0.0/8``; 4 and 16 bytes are addresses, others hexadecimal digits.

    Args:
        key: The whole key: 32 bits of prefix length, then the data that it counts the bits of.
        start: Where the part begins, in bytes.
        size: Of the part, in bytes. What of it lies beyond the prefix means nothing and is shown as zero.
    """
    length = min(max(int.from_bytes(key[:4], "little") - 8 * (start - 4), 0), 8 * size)
    kept = int.from_bytes(key[start : start + size], "big") >> (8 * size - length) << (8 * size - length)
    masked = kept.to_bytes(size, "big")
    if size == 4:
        return f"{ipaddress.IPv4Address(masked)}/{length}"
    return f"{ipv6_text(masked) if size == 16 else '0x' + masked.hex()}/{length}"


def dns_text(data: bytes) -> str:
    """A name of DNS wire format, up to the first thing that is no label (RFC 1035, 5.1; lower case)."""
    names: list[str] = []
    at = 0
    while at < len(data) and 0 < data[at] <= 63 and at + 1 + data[at] <= len(data):
        label = data[at + 1 : at + 1 + data[at]]
        names.append("".join(_dns_character(byte) for byte in label.lower()))
        at += 1 + len(label)
    return "." if not names and data[:1] == b"\0" else ".".join(names)


def _dns_character(byte: int) -> str:
    char = chr(byte)
    if byte < 0x80 and (char.isalnum() or char in "-_"):
        return char
    return f"\\{char}" if 0x20 < byte < 0x7F else f"\\{byte:03d}"


def flags_text(number: int, names: Mapping[int, str]) -> str:
    """The names of the bits that are set, the lowest first, then the rest; one name that means all of it instead."""
    if number in names:
        return names[number]
    parts = []
    rest = number
    for value in sorted(names):
        if value and not value & (value - 1) and rest & value:
            parts.append(names[value])
            rest &= ~value
    if rest or not number:
        parts.append(hex(rest) if number else "0")
    return "|".join(parts)


def is_met(condition: Condition, data: bytes) -> bool:
    """Whether the number has, or if negated has not, one of the values."""
    number = int.from_bytes(data, "little") >> condition.offset_bits & ((1 << condition.size_bits) - 1)
    return (number in condition.values) is not condition.negated


def label_value(
    rule: LabelRule,
    data: bytes,
    *,
    resolve: Resolve,
    enums: Enums | None = None,
    machine: str = "",
    realtime_minus_monotonic_ns: int = 0,
) -> Value:
    """What one rule makes of a key or record; the empty string means: no such label."""
    if not all(is_met(condition, data) for condition in rule.conditions):
        return ""
    around = _Around(resolve, enums or {}, machine, realtime_minus_monotonic_ns)
    steps = [compile_step(step) for step in rule.steps]
    made: list[Scalar] = []
    for index in range(rule.count):
        value = _scalar(replace(rule, offset_bits=rule.offset_bits + index * rule.size_bits), data, around)
        if steps and text_of(value):
            value = run_steps(steps, text_of(value))
        made.append(value)
    return made[0] if rule.count == 1 else tuple(made)


def run_steps(steps: Sequence[Callable[[str], str]], text: str) -> str:
    """One step after the other, until there is no text."""
    for step in steps:
        text = step(text) if text else text
    return text


@dataclass(frozen=True, slots=True)
class _Around:
    """What a value may depend on besides its bytes."""

    resolve: Resolve
    enums: Enums
    machine: str
    realtime_minus_monotonic_ns: int


def _scalar(rule: LabelRule, data: bytes, around: _Around) -> Scalar:
    """What the decoder makes of one element."""
    start, size = rule.offset_bits // 8, rule.size_bits // 8
    raw = data[start : start + size]
    match rule.decoder:
        case "uint" | "int":
            value = integer(data, rule, signed=rule.decoder == "int")
            return value if rule.size_bits <= 64 and value < 1 << 63 else str(value)
        case "natural":
            value = integer(data, rule, signed=True)
            return value if value >= 0 else ""
        case "port":
            return integer(data, rule, signed=False)
        case "port_be":
            return int.from_bytes(raw[:2], "big")
        case "bool":
            return integer(data, rule, signed=False) != 0
        case "float":
            return float_text(struct.unpack("<f" if size == 4 else "<d", raw)[0], single=size == 4)
        case "hex":
            return hex(integer(data, rule, signed=False))
        case "string":
            return raw.split(b"\0", 1)[0].decode("utf-8", "replace")
        case "bytes":
            return raw.hex()
        case "ipv4":
            return str(ipaddress.IPv4Address(raw))
        case "ipv6":
            return str(ipaddress.IPv4Address(raw)) if size == 4 else ipv6_text(raw)
        case "ip":
            if size == 16 and raw.startswith(bytes(10) + b"\xff\xff"):
                raw = raw[12:]
            return str(ipaddress.IPv4Address(raw)) if len(raw) == 4 else ipv6_text(raw)
        case "mac":
            return raw[:6].hex(":")
        case "dns":
            return dns_text(raw)
        case "flags":
            return flags_text(integer(data, rule, signed=False), table_of(rule, around.enums, around.machine))
        case "duration":
            return duration_text(integer(data, rule, signed=rule.signed))
        case "time":
            ktime = integer(data, rule, signed=False)
            return time_text(ktime + around.realtime_minus_monotonic_ns) if ktime else ""
        case "prefix":
            return prefix_text(data[rule.base_bytes :], start - rule.base_bytes, size)
    if rule.decoder in SLOW:
        return around.resolve(resolver_of(rule), _asked(rule, data))
    value = integer(data, rule, signed=rule.signed)
    if rule.decoder == "errno":
        value = abs(value)
    return table_of(rule, around.enums, around.machine).get(value & _U64, str(value))


def resolver_of(rule: LabelRule) -> str:
    """What a slow label's value is asked of: its decoder, and of a stack id the map too."""
    return f"{rule.decoder}:{rule.stack.map}" if rule.stack is not None else rule.decoder


def _asked(rule: LabelRule, data: bytes) -> int:
    """A slow label's number; of a stack id its 32 bits, and above them the number of the process."""
    value = integer(data, rule, signed=False)
    if rule.stack is None:
        return value
    offset, size_bits = rule.stack.process or (0, 0)
    process = int.from_bytes(data, "little") >> offset & ((1 << size_bits) - 1)
    return value & 0xFFFFFFFF | process << 32


def text_of(value: Value) -> str:
    """The text of a value as labels show it."""
    if isinstance(value, tuple):
        return ",".join(map(text_of, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def prometheus_text(pairs: Sequence[tuple[str, Value]]) -> bytes:
    """``name="value",…`` as the text format 0.0.4 escapes it; empty values are left out."""
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
    shown = [
        f'{prometheus_label(name)}="{text_of(value).translate(escapes)}"' for name, value in pairs if text_of(value)
    ]
    return ",".join(shown).encode()


def varint(value: int) -> bytes:
    """Protobuf's base-128 integer; negative ones as 64-bit two's complement."""
    value &= _U64
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(tag: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return bytes((tag,)) + varint(len(payload)) + payload


def any_value(value: Value | list[int]) -> bytes:
    """An ``AnyValue``; in an array a number that 63 bits do not hold is text."""
    if isinstance(value, bool):
        return b"\x10" + varint(value)
    if isinstance(value, int):
        return b"\x18" + varint(value)
    if isinstance(value, list | tuple):
        elements = (str(one) if isinstance(one, int) and one >= 1 << 63 else one for one in value)
        return field(0x2A, b"".join(field(0x0A, any_value(one)) for one in elements))
    return field(0x0A, value.encode())


def otlp_attributes(pairs: Sequence[tuple[str, Value | list[int]]], *, tag: int) -> bytes:
    """Repeated ``KeyValue`` under one field tag; empty values are left out."""
    shown = [(name, value) for name, value in pairs if value not in ("", [])]
    return b"".join(field(tag, field(0x0A, name.encode()) + field(0x12, any_value(value))) for name, value in shown)


def json_members(pairs: Sequence[tuple[str, Value | list[int]]]) -> str:
    """``"name":value,…`` without the braces; empty values are left out."""
    shown = {name: value for name, value in pairs if value not in ("", [])}
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":"))[1:-1]


# ---- for labels.c ----


class _Pool:
    """Bytes that C refers to by offset and length."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._known: dict[bytes, Span] = {}

    def add(self, text: bytes) -> Span:
        if text not in self._known:
            self._known[text] = (len(self.data), len(text))
            self.data += text
        return self._known[text]


@dataclass(frozen=True, slots=True)
class Compiled:
    """What ``_frame`` copies into C (``struct skep_labels``).

    Attributes:
        rules: ``(decoder, flags, resolver, step, count, offset_bits, size_bits, table_first, table_count,
            condition_first, condition_count)`` and three spans: how the label's name begins in Prometheus text,
            OTLP and JSON.
        table: ``(value, text)``, of each rule sorted by value.
        conditions: ``(offset_bits, size_bits, table_first, table_count, negated)``.
        steps: What the resolver is asked beyond the slow decoders: functions from text to text.
        extra: What the caller wanted in the pool, under its names.
        resolvers: What slow labels are asked of, by the number that the rules have for it.
    """

    pool: bytes
    rules: tuple[tuple[int, int, int, int, int, int, int, int, int, int, int, Span, Span, Span], ...]
    table: tuple[tuple[int, Span], ...]
    conditions: tuple[tuple[int, int, int, int, bool], ...]
    steps: tuple[Callable[[str], str], ...]
    constant_prometheus: Span
    constant_otlp: Span
    constant_json: Span
    overflow_prometheus: Span
    overflow_otlp: Span
    extra: Mapping[str, Span]
    resolvers: tuple[str, ...] = SLOW


def _check(rule: LabelRule, size: int, subject: str) -> None:
    where = f"{subject}: label {rule.name!r}"
    if rule.decoder not in _CODES:
        raise PlanError(f"{where}: decoder {rule.decoder!r} is unknown; use one of {', '.join(sorted(_CODES))}")
    for offset_bits, size_bits in rule.places:
        if size_bits < 1 or offset_bits < 0 or offset_bits + size_bits > size * 8:
            raise PlanError(
                f"{where}: {size_bits} bits at bit {offset_bits} do not lie inside {size} bytes; rebuild the object"
            )
    if any(condition.size_bits > 64 for condition in rule.conditions):
        raise PlanError(f"{where}: a condition on more than 64 bits; choose another tag for the union")
    if rule.stack is not None and rule.stack.process is not None:
        offset, bits = rule.stack.process
        if offset < 0 or not 1 <= bits <= 32 or offset + bits > size * 8:
            raise PlanError(f"{where}: its process does not lie inside {size} bytes; rebuild the object")
    expected = size_mismatch(rule.decoder, offset_bits=rule.offset_bits, size_bits=rule.size_bits)
    if not expected and rule.count > 1:
        expected = size_mismatch(rule.decoder, offset_bits=rule.offset_bits + rule.size_bits, size_bits=rule.size_bits)
    if rule.decoder == "prefix" and not 0 <= 8 * rule.base_bytes <= rule.offset_bits - 32:
        expected = expected or "what lies behind a trie's prefix length"
    if expected:
        raise PlanError(
            f"{where}: decoder {rule.decoder!r} takes {expected}, found {rule.size_bits} bits; choose another"
        )


def _more(rule: LabelRule, table_first: int, table_count: int) -> tuple[int, int]:
    """The two numbers of a rule that mean what its decoder wants: most often its part of the table."""
    if rule.decoder == "prefix":
        return rule.base_bytes, 0
    if rule.stack is not None:
        return rule.stack.process or (0, 0)
    return table_first, table_count


def _check_names(rules: Sequence[LabelRule], constants: Sequence[tuple[str, str]], subject: str) -> None:
    names: dict[str, list[LabelRule]] = {}
    for rule in [*rules, *(LabelRule(name, "uint", 0, 1) for name, _ in constants)]:
        label = prometheus_label(rule.name)
        for other in names.get(label, ()):
            if not rule.excludes(other):
                raise PlanError(
                    f"{subject}: labels {other.name!r} and {rule.name!r} are both {label!r} to Prometheus; rename one"
                )
        names.setdefault(label, []).append(rule)


def _all_steps(steps: Sequence[Step]) -> Callable[[str], str]:
    compiled = [compile_step(step) for step in steps]
    return lambda text: run_steps(compiled, text)


def compile_labels(
    rules: Sequence[LabelRule],
    constants: Sequence[tuple[str, str]],
    *,
    size: int,
    subject: str,
    tag: int,
    enums: Enums,
    machine: str = "",
    extra: Mapping[str, bytes] | None = None,
) -> Compiled:
    """Compile the labels of one layout.

    Args:
        rules: In the order they are shown.
        constants: Added after them.
        size: Bytes of the key or record.
        subject: What errors begin with: ``map 'x'``.
        tag: Protobuf tag of the attributes.
        enums: The running kernel's, ``{enum: {enumerator: value}}``.
        machine: As ``os.uname()`` names it; default this one. Decides the syscall names.
        extra: More bytes for the pool.

    Raises:
        PlanError: a rule reaches beyond the layout, a decoder does not take its
            size, or two labels have one name.
    """
    machine = machine or os.uname().machine
    pool = _Pool()
    table: list[tuple[int, Span]] = []
    compiled = []
    conditions: list[tuple[int, int, int, int, bool]] = []
    steps: list[Callable[[str], str]] = []
    resolvers = list(SLOW)
    resolvers += dict.fromkeys(resolver_of(rule) for rule in rules if rule.stack is not None)
    _check_names(rules, constants, subject)
    for rule in rules:
        _check(rule, size, subject)
        flags, first, condition_first = 0, len(table), len(conditions)
        by_table = DECODERS[rule.decoder].cost is Cost.TABLE
        if rule.decoder in ("int", "natural") or (rule.signed and (by_table or rule.decoder == "duration")):
            flags |= _SIGNED
        if rule.decoder == "errno":
            flags |= _MAGNITUDE
        if rule.stack is not None:
            flags |= _STACK
        if rule.decoder == "natural":
            flags |= _NATURAL
        if by_table:
            texts = table_of(rule, enums, machine)
            table += [(value, pool.add(texts[value].encode())) for value in sorted(texts)]
        count = len(table) - first
        for condition in rule.conditions:
            conditions.append(
                (condition.offset_bits, condition.size_bits, len(table), len(condition.values), condition.negated)
            )
            table += [(value, pool.add(b"")) for value in condition.values]
        if rule.steps:
            flags |= _STEPS
            steps.append(_all_steps(rule.steps))
        compiled.append(
            (
                _CODES[rule.decoder],
                flags,
                resolvers.index(resolver_of(rule)) if rule.decoder in SLOW else 0,
                len(resolvers) + len(steps) - 1 if rule.steps else 0,
                rule.count,
                rule.offset_bits,
                rule.size_bits,
                *_more(rule, first, count),
                condition_first,
                len(rule.conditions),
                pool.add(prometheus_label(rule.name).encode() + b'="'),
                pool.add(field(0x0A, rule.name.encode())),
                pool.add(json.dumps(rule.name, ensure_ascii=False).encode() + b":"),
            )
        )
    constant = prometheus_text(constants)
    overflow: list[tuple[str, Value]] = [("otel.metric.overflow", True), *constants]
    return Compiled(
        rules=tuple(compiled),
        table=tuple(table),
        conditions=tuple(conditions),
        steps=tuple(steps),
        constant_prometheus=pool.add(constant),
        constant_otlp=pool.add(otlp_attributes(constants, tag=tag)),
        constant_json=pool.add(json_members(constants).encode()),
        overflow_prometheus=pool.add(prometheus_text(overflow)),
        overflow_otlp=pool.add(otlp_attributes(overflow, tag=tag)),
        extra={name: pool.add(text) for name, text in (extra or {}).items()},
        resolvers=tuple(resolvers),
        pool=bytes(pool.data),
    )
