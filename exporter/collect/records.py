"""Records of a ring become OTLP log records and JSON lines.

:class:`RecordDecoder` compiles a plan and runs ``records.c``; :func:`log_record` and
:func:`json_line` are its twin and state what one record becomes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exporter.collect import _frame
from exporter.collect.labels import (
    ATTRIBUTE_OF_LOG,
    Compiled,
    Resolve,
    Span,
    Value,
    compile_labels,
    json_members,
    otlp_attributes,
    time_text,
    varint,
)
from exporter.collect.labels import field as protobuf_field
from exporter.errors import PlanError
from exporter.model import Scope
from exporter.plan.plan import StreamPlan

if TYPE_CHECKING:
    from typing_extensions import Buffer

Pairs = Sequence[tuple[str, Value | list[int]]]
_HEADER = struct.Struct("<QII")


_NO_LIMIT = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class AttributeLimits:
    """What OTLP takes of what a program says in one event; 0 is no limit.

    Attributes:
        value_length: Characters of a text; the others are cut off.
        count: Attributes; the others are left out, and their number is said.
    """

    value_length: int = 0
    count: int = 0


@dataclass(frozen=True, slots=True)
class LogBatch:
    """What became of some records: ``received = exported + measured + failed + sum(dropped)``.

    Attributes:
        exported: Records of which an event is made, here in one or both forms.
        measured: Good records that only metrics are made of.
        failed: Records shorter than the declared type.
        dropped: By reason: ``rate`` above ``events_per_s``, ``disabled`` of a stream that is only drained,
            ``sample`` of one that exports one record of several.
        otlp: ``LogRecord`` messages, each as field 2 of ``ScopeLogs`` with tag and length.
        json: A JSON object per line.
    """

    received: int = 0
    exported: int = 0
    measured: int = 0
    failed: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    otlp: bytes = b""
    json: bytes = b""


class RecordDecoder:
    """Decodes the records of one ring.

    It belongs to one owner, which makes one call at a time; ``decode`` releases the GIL.

    Args:
        plan: Which bytes of a record mean what.
        scope: The image; its name is the ``image`` of JSON lines.
        resolve: Gives the text of a slow attribute's value, through a bounded cache.
        enums: The running kernel's enums, ``{enum: {enumerator: value}}``.

    Raises:
        PlanError: the plan does not fit itself.
    """

    def __init__(
        self,
        plan: StreamPlan,
        *,
        scope: Scope,
        resolve: Resolve,
        enums: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        self.plan = plan
        self.scope = scope
        if plan.time is not None and (
            not 1 <= plan.time.size_bits <= 64 or plan.time.offset_bits + plan.time.size_bits > plan.record_size * 8
        ):
            raise PlanError(
                f"map {plan.map!r}: time of {plan.time.size_bits} bits at bit {plan.time.offset_bits} does not lie "
                f"inside {plan.record_size} bytes; rebuild the object"
            )
        labels = compile_labels(
            plan.attributes,
            plan.constant_labels,
            size=plan.record_size,
            subject=f"map {plan.map!r}",
            tag=ATTRIBUTE_OF_LOG,
            enums=enums or {},
            extra={
                "severity": b"\x10" + varint(plan.severity),
                "event_name": protobuf_field(0x62, plan.event_name.encode()),
                "json_name": _json_name(plan, scope).encode(),
                **_tail_names(plan),
            },
        )
        self._stream = _frame.Stream(
            labels=labels,
            ask=resolve,
            resolvers=labels.resolvers,
            record_size=plan.record_size,
            time=(plan.time.offset_bits, plan.time.size_bits) if plan.time is not None else None,
            severity=labels.extra["severity"],
            event_name=labels.extra["event_name"],
            json_name=labels.extra["json_name"],
            events_per_s=max(plan.events_per_s, 0),
            sample_one_in=max(plan.sample_one_in, 1),
            enabled=plan.enabled,
            measured=plan.metrics,
            tail=_native_tail(plan, labels),
        )

    def limit(self, limits: AttributeLimits) -> None:
        """Hold what comes from now on to these; see :func:`limited`."""
        self._stream.limit(limits.value_length or _NO_LIMIT, limits.count or _NO_LIMIT)

    def decode(
        self, records: Buffer, *, now_ns: int, realtime_minus_monotonic_ns: int, otlp: bool, json: bool
    ) -> LogBatch:
        """Decode records framed as ``record.h`` says.

        Args:
            records: Any number of whole records.
            now_ns: ``CLOCK_REALTIME``: the observed time, and the time of records without one.
            realtime_minus_monotonic_ns: Added to a record's own ``bpf_ktime_get_ns``.
            otlp: Whether to make :attr:`LogBatch.otlp`.
            json: Whether to make :attr:`LogBatch.json`.

        Raises:
            ValueError: the framing is damaged.
            Exception: whatever ``resolve`` raised.
        """
        received, exported, failed, by_rate, disabled, sample, measured, otlp_bytes, json_bytes = self._stream.decode(
            records, now_ns, realtime_minus_monotonic_ns, otlp, json
        )
        reasons = (("rate", by_rate), ("disabled", disabled), ("sample", sample))
        dropped = {reason: n for reason, n in reasons if n}
        return LogBatch(received, exported, measured, failed, dropped, otlp_bytes, json_bytes)


_TAIL_CODES = {"uint": 0, "int": 1, "string": 5, "bytes": 6}
"""Of ``enum skep_decoder`` in labels.h."""


def _tail_names(plan: StreamPlan) -> dict[str, bytes]:
    """How the attribute of a flexible array begins in both formats."""
    if plan.tail is None:
        return {}
    name = json.dumps(plan.tail.name, ensure_ascii=False).encode()
    return {"tail_otlp": protobuf_field(0x0A, plan.tail.name.encode()), "tail_json": name + b":"}


def _native_tail(plan: StreamPlan, labels: Compiled) -> tuple[int, int, int, Span, Span] | None:
    """``(decoder, offset in bytes, bytes of an element, its name in OTLP, in JSON)``."""
    tail = plan.tail
    if tail is None:
        return None
    whole = tail.offset_bits % 8 == 0 and tail.offset_bits == plan.record_size * 8
    if not whole or tail.decoder not in _TAIL_CODES or tail.size_bits not in (8, 16, 32, 64):
        raise PlanError(
            f"map {plan.map!r}: tail {tail.name!r} of {tail.size_bits} bits by decoder {tail.decoder!r} at bit "
            f"{tail.offset_bits} does not follow {plan.record_size} bytes; rebuild the object"
        )
    return (
        _TAIL_CODES[tail.decoder],
        tail.offset_bits // 8,
        tail.size_bits // 8,
        labels.extra["tail_otlp"],
        labels.extra["tail_json"],
    )


def _json_name(plan: StreamPlan, scope: Scope) -> str:
    event, image = json.dumps(plan.event_name, ensure_ascii=False), json.dumps(scope.name, ensure_ascii=False)
    return f'","event":{event},"image":{image},"attributes":{{'


# ---- what a record becomes ----


def split_records(records: bytes) -> Iterator[bytes]:
    """The data of each framed record."""
    at = 0
    while at < len(records):
        _, length, _ = _HEADER.unpack_from(records, at)
        yield records[at + _HEADER.size : at + _HEADER.size + length]
        at += _HEADER.size + (length + 7) // 8 * 8


def record_time_ns(plan: StreamPlan, data: bytes, *, now_ns: int, realtime_minus_monotonic_ns: int) -> int:
    """When it happened: the record's own time, or the time of reading if it has none, zero, or one beyond 2262."""
    if plan.time is None:
        return now_ns
    ktime = int.from_bytes(data, "little") >> plan.time.offset_bits & ((1 << plan.time.size_bits) - 1)
    wall = ktime + realtime_minus_monotonic_ns
    return wall if 0 < ktime < 1 << 63 and 0 <= wall < 1 << 63 else now_ns


def tail_value(plan: StreamPlan, data: bytes) -> str | list[int]:
    """What the flexible array of a record holds; nothing if it is empty."""
    assert plan.tail is not None
    raw, size = data[plan.tail.offset_bits // 8 :], plan.tail.size_bits // 8
    if plan.tail.decoder == "string":
        return raw.split(b"\0", 1)[0].decode("utf-8", "replace")
    if plan.tail.decoder == "bytes":
        return raw.hex()
    return [
        int.from_bytes(raw[at : at + size], "little", signed=plan.tail.decoder == "int")
        for at in range(0, len(raw) - size + 1, size)
    ]


def limited(plan: StreamPlan, pairs: Pairs, limits: AttributeLimits) -> tuple[Pairs, int]:
    """The pairs within the limits, and how many are left out; constant labels, which end the pairs, stay."""
    said = [(name, value) for name, value in pairs[: len(pairs) - len(plan.constant_labels)] if value not in ("", [])]
    count, length = limits.count or len(said), limits.value_length or None
    kept: list[tuple[str, Value | list[int]]] = [
        (name, value[:length] if isinstance(value, str) else value) for name, value in said[:count]
    ]
    return [*kept, *plan.constant_labels], len(said) - len(kept)


def log_record(
    plan: StreamPlan, pairs: Pairs, *, time_ns: int, now_ns: int, limits: AttributeLimits | None = None
) -> bytes:
    """One ``LogRecord`` as field 2 of ``ScopeLogs``; ``pairs`` are the attributes, the tail, the constant labels."""
    pairs, left_out = limited(plan, pairs, limits or AttributeLimits())
    return protobuf_field(
        0x12,
        b"\x09"
        + struct.pack("<Q", time_ns)
        + b"\x10"
        + varint(plan.severity)
        + otlp_attributes(pairs, tag=ATTRIBUTE_OF_LOG)
        + (b"\x38" + varint(left_out) if left_out else b"")
        + b"\x59"
        + struct.pack("<Q", now_ns)
        + protobuf_field(0x62, plan.event_name.encode()),
    )


def json_line(plan: StreamPlan, scope: Scope, pairs: Pairs, *, time_ns: int) -> bytes:
    """One line with ``time``, ``event``, ``image`` and ``attributes``."""
    return f'{{"time":"{time_text(time_ns)}{_json_name(plan, scope)}{json_members(pairs)}}}}}\n'.encode()
