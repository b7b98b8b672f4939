"""A real kernel hash map, filled from user space: the rows all scrape cases read."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

from exporter.model import Instrument, Kind, Scope
from exporter.plan.plan import LabelRule, MetricPlan, TablePlan, ValueRule

_SYS_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
_MAP_CREATE, _MAP_UPDATE_BATCH = 0, 26
_MAP_TYPE_HASH = 1
_ROW = struct.Struct("<QIHxx")

KEY_SIZE, VALUE_SIZE = _ROW.size, 8
OPERATIONS = ((0, "read"), (1, "write"), (2, "discard"), (3, "flush"))
INSTRUMENT = Instrument(
    name="ebpf.bench.requests",
    prometheus_name="ebpf_bench_requests_total",
    kind=Kind.COUNTER,
    unit="{request}",
    description="Requests, by where they came from.",
)
PLAN = TablePlan(
    map="requests",
    key_size=KEY_SIZE,
    value_size=VALUE_SIZE,
    per_cpu=False,
    labels=(
        LabelRule("id", "uint", 0, 64),
        LabelRule("operation", "enum", 64, 32, values=OPERATIONS),
        LabelRule("port", "port", 96, 16),
    ),
    metrics=(MetricPlan(INSTRUMENT, value=ValueRule(0, 64)),),
    series_limit=1 << 20,
)
SCOPE = Scope("bench")

_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """Make the system call.

    Returns:
        Its result, and the attributes as the kernel left them.
    """
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = _libc.syscall(_SYS_BPF, command, buffer, len(attributes))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf command {command}: {os.strerror(number)}")
    return result, buffer.raw


def create_map(entries: int) -> int:
    """Create an empty hash map; its descriptor."""
    return bpf(_MAP_CREATE, struct.pack("<IIII60x", _MAP_TYPE_HASH, KEY_SIZE, VALUE_SIZE, entries))[0]


def keys(count: int) -> bytes:
    """The keys of all rows."""
    return b"".join(_ROW.pack(1_000_000 + index, index % 4, 1024 + index % 50_000) for index in range(count))


def labels(count: int) -> list[list[str]]:
    """The label values of all rows, as text."""
    return [[str(1_000_000 + index), OPERATIONS[index % 4][1], str(1024 + index % 50_000)] for index in range(count)]


def fill(fd: int, all_keys: bytes, generation: int) -> None:
    """Give every row a value that no earlier generation had."""
    count = len(all_keys) // KEY_SIZE
    values = struct.pack(f"<{count}Q", *range(generation * 1009, generation * 1009 + 7 * count, 7))
    key_buffer = ctypes.create_string_buffer(all_keys, len(all_keys))
    value_buffer = ctypes.create_string_buffer(values, len(values))
    done = 0
    while done < count:
        attributes = struct.pack(
            "<QQQQIIQQ",
            0,
            0,
            ctypes.addressof(key_buffer) + done * KEY_SIZE,
            ctypes.addressof(value_buffer) + done * VALUE_SIZE,
            count - done,
            fd,
            0,
            0,
        )
        _, after = bpf(_MAP_UPDATE_BATCH, attributes)
        done += struct.unpack_from("<I", after, 32)[0]
