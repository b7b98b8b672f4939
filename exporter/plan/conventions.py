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
from .metadata import (
    KINDS,
    SEVERITIES,
    EventDeclaration,
    LabelDeclaration,
    MetricDeclaration,
    decoder,
    line,
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
    "dev_nr": "device", "ifindex_nr": "interface", "ksym_addr": "ksym",
}  # fmt: skip
_KIND_DECODERS = {
    FieldKind.UINT: "uint", FieldKind.INT: "int", FieldKind.BOOL: "bool", FieldKind.CHARS: "string",
    FieldKind.BYTES: "bytes", FieldKind.ENUM: "enum", FieldKind.FLOAT: "float", FieldKind.POINTER: "hex",
}  # fmt: skip
BOUNDED_DECODERS = frozenset({"enum", "bool", "errno", "syscall", "signal", "device", "interface"})
"""Decoders with few results that stay: a series with only these never becomes a dead thing's."""

_INTEGERS = (FieldKind.UINT, FieldKind.INT, FieldKind.BOOL, FieldKind.ENUM, FieldKind.POINTER)
_INTEGER_DECODERS = frozenset(
    {
        "uint",
        "int",
        "bool",
        "duration",
        "time",
        "errno",
        "syscall",
        "signal",
        "uid",
        "device",
        "interface",
        "ksym",
        "natural",
        "port",
    }
    | {"cgroup", "cgroup.unit", "cgroup.slice", "cgroup.container", "cgroup.pod", "comm", "kstack", "ustack"}
)
_SIZES = {"ipv4": (32,), "ipv6": (128,), "ip": (32, 128), "port_be": (16,)}
_TEXT_LIMIT_BITS = 4096 * 8
_PADDING = re.compile(r"(?:.*\.)?(?:__.*|_*pad(?:ding)?_?\d*_*)")


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
    if field.kind in (FieldKind.UINT, FieldKind.INT) and field.size_bits > 64:
        return "hex"
    return _KIND_DECODERS.get(field.kind)


def decoder_mismatch(name: str, field: Field) -> str:
    """Why a decoder cannot read a field, or ``""``."""
    size, integer = field.size_bits, field.kind in _INTEGERS
    whole_bytes = size % 8 == 0 and field.offset_bits % 8 == 0
    if name in _SIZES:
        if size not in _SIZES[name] or not whole_bytes:
            sizes = " or ".join(str(bits // 8) for bits in _SIZES[name])
            return f"{described(field)}, decoder {name!r} reads {sizes} bytes"
    elif name == "prefix":
        if not whole_bytes or size > 256 * 8:
            return f"{described(field)}, decoder 'prefix' reads whole bytes, at most 256"
    elif name == "enum":
        if field.kind is not FieldKind.ENUM:
            return f"{described(field)}, decoder 'enum' reads enums"
    elif name == "float":
        if field.kind is not FieldKind.FLOAT or size not in (32, 64):
            return f"{described(field)}, decoder 'float' reads float and double"
    elif name in ("string", "bytes"):
        if not whole_bytes or size > _TEXT_LIMIT_BITS:
            return f"{described(field)}, decoder {name!r} reads whole bytes, at most {_TEXT_LIMIT_BITS // 8}"
    elif name == "hex":
        if not ((integer and (size <= 64 or whole_bytes)) or (whole_bytes and size <= 1024)):
            return f"{described(field)}, decoder 'hex' reads integers, and whole bytes up to 128"
    elif name in _INTEGER_DECODERS and (not integer or size > 64):
        return f"{described(field)}, decoder {name!r} reads integers of up to 64 bits"
    return ""


def enum_texts(field: Field) -> tuple[tuple[int, str, str], ...]:
    """What an enum's values are called.

    Returns:
        ``(value, enumerator, text)``; the text is the enumerator in lower case without the words that all
        enumerators begin with. Of several names of one value the first counts. Enumerators that begin with
        ``__``, as ``__X_MAX`` does, do not take part in finding the common words.
    """
    words = [name.split("_") for _, name in field.enumerators if not name.startswith("__")]
    common = 0
    if len(words) > 1:
        shortest = min(len(parts) for parts in words) - 1
        while common < shortest and len({parts[common] for parts in words}) == 1:
            common += 1
    texts: dict[int, tuple[int, str, str]] = {}
    for value, name in field.enumerators:
        raw = value if field.signed else value & (1 << field.size_bits) - 1
        shared = 0 if name.startswith("__") else common
        texts.setdefault(raw, (raw, name, "_".join(name.split("_")[shared:]).lower()))
    return tuple(texts.values())


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
        ),
        LabelDeclaration(
            labels=tuple(labels) or None,
            decode=reader.take("decode", decoder),
            drop=reader.flag("drop"),
            slot=reader.flag("slot"),
            time=reader.flag("time"),
            stack=reader.take("stack", line),
            series=reader.flag("series"),
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
