"""What an object's own names and tags say: declaration tags, map-name prefixes, typedef names, enum texts.

A tag is ``skep:<key>=<value>``; ``skep.bpf.h`` has a macro for each. Tags of
other owners are passed over; an unknown key under ``skep:`` is a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from exporter.bpf import Field, FieldKind
from exporter.errors import PlanError, SkepError

from .context import described
from .decoders import DECODERS, Reads, size_mismatch
from .metadata import (
    KINDS,
    SEVERITIES,
    EventDeclaration,
    LabelDeclaration,
    MetricDeclaration,
    cases,
    decoder,
    line,
    named_decoder,
    word,
)
from .slots import parse_scale, parse_slots

T = TypeVar("T")
TAG_PREFIX = "skep:"
KIND_TAG = "skep:kind="
PREFIXES = {"counter_": "counter", "gauge_": "gauge", "hist_": "histogram", "print_": "event"}
"""BumbleBee's map-name prefixes."""
DURATION_UNITS = {"s": "1e-9", "ms": "1e-6", "us": "1e-3", "ns": "1"}
"""Scales from the nanoseconds of ``duration`` to a unit."""

_TYPEDEF_DECODERS = {
    "ipv4_addr": "ipv4", "duration": "duration", "ktime_ns": "time", "net_port": "port_be", "host_port": "port",
    "cgroup_id": "cgroup", "errno_code": "errno", "syscall_nr": "syscall", "signal_nr": "signal", "uid_nr": "uid",
    "dev_nr": "device", "ifindex_nr": "interface", "ksym_addr": "ksym", "gid_nr": "gid", "mac_address": "mac",
    "mac_addr": "mac",
    "dns_name": "dns", "ip_protocol": "protocol", "sock_family": "family",
}  # fmt: skip
_KIND_DECODERS = {
    FieldKind.UINT: "uint", FieldKind.INT: "int", FieldKind.BOOL: "bool", FieldKind.CHARS: "string",
    FieldKind.BYTES: "bytes", FieldKind.ENUM: "enum", FieldKind.FLOAT: "float", FieldKind.POINTER: "hex",
}  # fmt: skip
_INTEGERS = (FieldKind.UINT, FieldKind.INT, FieldKind.BOOL, FieldKind.ENUM, FieldKind.POINTER)
_PADDING = re.compile(r"(?:.*\.)?(?:__.*|_*pad(?:ding)?_?\d*_*)")


def typedef_decoders() -> dict[str, str]:
    """The typedef names that name a decoder."""
    return _TYPEDEF_DECODERS | {"ipv6_addr": "ipv6"}


def kind_prefix(name: str) -> tuple[str | None, str]:
    """The kind that a map's name begins with, and the rest of the name: ``counter_exits`` gives ``exits``."""
    for prefix, kind in PREFIXES.items():
        if name.startswith(prefix) and len(name) > len(prefix):
            return kind, name.removeprefix(prefix)
    return None, name


def is_ours(tag: str) -> bool:
    """Whether a declaration tag is one of skep's."""
    return tag.startswith(TAG_PREFIX)


def is_padding(field: Field) -> bool:
    """Whether a member is there to fill a gap: ``pad``, ``_pad2``, or any name that begins with ``__``."""
    return bool(_PADDING.fullmatch(field.name))


def infer_decoder(field: Field) -> str | None:
    """The decoder that a field's typedef name or type asks for; None if only its author could say."""
    for name in field.typedefs:
        if name == "ipv6_addr":
            # BumbleBee's own header declares this as a u32, and its users fill it with IPv4 addresses.
            return "ipv4" if field.size_bits == 32 else "ipv6"
        if name in _TYPEDEF_DECODERS:
            return _TYPEDEF_DECODERS[name]
    if field.kind is FieldKind.FLOAT and field.size_bits not in (32, 64):
        return "bytes"
    return _KIND_DECODERS.get(field.kind)


def decoder_mismatch(name: str, field: Field, *, enum: str = "") -> str:
    """Why a decoder, told the name of an enum or not, cannot read a field; or ``""``."""
    decoder = DECODERS[name]
    expected = size_mismatch(name, offset_bits=field.offset_bits, size_bits=field.size_bits)
    match decoder.reads:
        case Reads.INTEGER:
            good, wanted = field.kind in _INTEGERS, "integers of up to 64 bits"
        case Reads.ENUM:
            good = field.kind is FieldKind.ENUM or (bool(enum) and field.kind in _INTEGERS)
            wanted = f"enums, and as {name}(…) integers of up to 64 bits"
        case Reads.FLOAT:
            good, wanted = field.kind is FieldKind.FLOAT, "float and double"
        case Reads.WIDE if name != "hex":
            good, wanted = field.kind in _INTEGERS, "integers of up to 128 bits"
        case _:
            good, wanted = True, ""
    if good and not expected:
        return ""
    return f"{described(field)}, decoder {name!r} reads {expected if good else wanted}"


def enum_texts(field: Field) -> tuple[tuple[int, str, str], ...]:
    """What an enum's values are called.

    Returns:
        ``(value, enumerator, text)``; the text is the enumerator in lower case without the words that all
        enumerators begin with. Of several names of one value the first counts. Enumerators that begin with
        ``__``, as ``__X_MAX`` does, do not take part in finding the common words.
    """
    common = common_words(name for _, name in field.enumerators)
    texts: dict[int, tuple[int, str, str]] = {}
    for value, name in field.enumerators:
        raw = value if field.signed else value & (1 << field.size_bits) - 1
        shared = 0 if name.startswith("__") else common
        texts.setdefault(raw, (raw, name, "_".join(name.split("_")[shared:]).lower()))
    return tuple(texts.values())


def common_words(enumerators: Iterable[str]) -> int:
    """How many words, ended by ``_``, all enumerators begin with; at least one word of each remains."""
    words = [name.split("_") for name in enumerators if not name.startswith("__")]
    common = 0
    if len(words) > 1:
        shortest = min(len(parts) for parts in words) - 1
        while common < shortest and len({parts[common] for parts in words}) == 1:
            common += 1
    return common


def kernel_enum(field: Field) -> str:
    """The name by which the running kernel may know an enum: without a CO-RE flavour."""
    return field.type_name.split("___")[0] if field.kind is FieldKind.ENUM else ""


@dataclass(frozen=True, slots=True)
class Tags:
    """What the tags at one place say."""

    metric: MetricDeclaration
    label: LabelDeclaration
    event: EventDeclaration


_MAP_KEYS = frozenset(
    {
        "kind",
        "name",
        "unit",
        "scale",
        "help",
        "slots",
        "enabled",
        "severity",
        "lost",
        "switch",
        "count",
        "record",
        "label",
        "decode",
        "drop",
        "stack",
        "index",
    }
)
_MEMBER_KEYS = frozenset(
    {
        "label",
        "decode",
        "drop",
        "slot",
        "time",
        "kind",
        "name",
        "unit",
        "scale",
        "help",
        "slots",
        "sum",
        "enabled",
        "stack",
        "value",
        "series",
        "index",
        "union",
        "case",
    }
)


def map_tags(owner: str, tags: Sequence[str], problems: list[SkepError]) -> Tags:
    """Read the tags on a map's variable; its ``label``, ``decode`` and ``drop`` are of a key that is no struct."""
    return _read_tags(owner, tags, _MAP_KEYS, problems)


def member_tags(owner: str, tags: Sequence[str], problems: list[SkepError]) -> Tags:
    """Read the tags on a member and its typedefs; what the member says comes first and wins."""
    return _read_tags(owner, tags, _MEMBER_KEYS, problems)


def _read_tags(owner: str, tags: Sequence[str], allowed: Iterable[str], problems: list[SkepError]) -> Tags:
    said: dict[str, list[str]] = {}
    for tag in tags:
        if not tag.startswith(TAG_PREFIX):
            continue
        key, equals, value = tag.removeprefix(TAG_PREFIX).partition("=")
        if not equals or key not in allowed:
            problems.append(
                PlanError(
                    f"{owner}: tag {tag[:100]!r}; expected {TAG_PREFIX}<key>=<value> with key one of "
                    + ", ".join(sorted(allowed)),
                    code="plan.tag",
                )
            )
            continue
        said.setdefault(key, []).append(value)

    reader = _TagReader(owner, said, problems)
    labels = []
    for text in said.get("label", ()):
        name, _, written = text.partition(":")
        labels.append((name, (reader.convert(f"label={text}", written, decoder) or "") if written else ""))
    metric_name, help_text, enabled = reader.take("name", line), reader.take("help", line), reader.flag("enabled")
    return Tags(
        MetricDeclaration(
            kind=reader.take("kind", lambda text: word(text, KINDS)),
            name=metric_name,
            unit=reader.take("unit", line),
            scale=reader.take("scale", parse_scale),
            help=help_text,
            slots=reader.take("slots", parse_slots),
            enabled=enabled,
            sum=reader.flag("sum"),
            is_value=reader.flag("value"),
            index=reader.take("index", named_decoder),
        ),
        LabelDeclaration(
            labels=tuple(labels) or None,
            decode=reader.take("decode", decoder),
            drop=reader.flag("drop"),
            slot=reader.flag("slot"),
            time=reader.flag("time"),
            stack=reader.take("stack", line),
            series=reader.flag("series"),
            union=reader.take("union", line),
            case=reader.take("case", cases),
        ),
        EventDeclaration(
            name=metric_name,
            severity=reader.take("severity", lambda text: SEVERITIES[word(text, tuple(SEVERITIES))]),
            enabled=enabled,
            help=help_text,
            lost=reader.take("lost", line),
            switch=reader.take("switch", line),
            count=reader.take("count", line),
            record=reader.take("record", line),
        ),
    )


@dataclass(frozen=True, slots=True)
class _TagReader:
    owner: str
    said: Mapping[str, Sequence[str]]
    problems: list[SkepError]

    def convert(self, tag: str, text: str, read: Callable[[str], T]) -> T | None:
        try:
            return read(text)
        except PlanError as error:
            self.problems.append(
                PlanError(f"{self.owner}: tag {TAG_PREFIX + tag[:100]!r} has {error}", code="plan.tag")
            )
            return None

    def take(self, key: str, read: Callable[[str], T]) -> T | None:
        values = self.said.get(key)
        return self.convert(f"{key}={values[0]}", values[0], read) if values else None

    def flag(self, key: str) -> bool | None:
        text = self.take(key, lambda value: word(value, ("true", "false")))
        return None if text is None else text == "true"
