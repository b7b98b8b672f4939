"""Frames written down as literals, behind the same capsule that ``collect`` hands to the encoders."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry.proto.common.v1 import common_pb2

from exporter.model import Instrument, Kind, Resource, Scope, Snapshot

LIVE = 1
ROWLESS = 4
KEPT = 0x80


class _Series(ctypes.Structure):
    _fields_ = (
        ("start_ns", ctypes.c_uint64),
        ("text", ctypes.c_uint64),
        ("labels_len", ctypes.c_uint32),
        ("attrs_len", ctypes.c_uint32),
        ("changed_s", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


class _FrameView(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32),
        ("series_count", ctypes.c_uint32),
        ("cells_per_series", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("series", ctypes.POINTER(_Series)),
        ("cells", ctypes.POINTER(ctypes.c_uint64)),
        ("arena", ctypes.POINTER(ctypes.c_uint8)),
    )


_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.restype = ctypes.py_object
_capsule_new.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
# A capsule keeps the pointer to its name, not the name.
_CAPSULE_NAME = ctypes.create_string_buffer(b"skep.frame_view")


@dataclass(frozen=True)
class SeriesLiteral:
    """One series: its labels, its cells as Python numbers, whether it is live, and whether its row is gone.

    One that is kept but not live is hidden: it may come back as it was.
    """

    labels: tuple[tuple[str, str], ...]
    cells: tuple[int | float, ...]
    start_ns: int = 1_700_000_000_000_000_000
    live: bool = True
    rowless: bool = False
    kept: bool = True

    def shows(self, instrument: Instrument) -> bool:
        """Whether it has a sample of an instrument: a gauge leaves with its row."""
        return self.live and not (self.rowless and instrument.kind is Kind.GAUGE)

    @property
    def label_text(self) -> str:
        """As the frame renders it."""
        return ",".join(f'{name}="{escaped(value)}"' for name, value in self.labels)

    @property
    def attribute_bytes(self) -> bytes:
        """As the frame encodes it: ``KeyValue`` messages, each as field 7."""
        out = b""
        for name, value in self.labels:
            pair = common_pb2.KeyValue(key=name, value=common_pb2.AnyValue(string_value=value)).SerializeToString()
            out += b"\x3a" + _varint(len(pair)) + pair
        return out


def escaped(value: str) -> str:
    """A label value as the text format escapes it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def raw_cell(value: int | float) -> int:
    """The 64 bits of a cell: two's complement, or a double's."""
    if isinstance(value, float):
        return int(struct.unpack("<Q", struct.pack("<d", value))[0])
    return value & 0xFFFF_FFFF_FFFF_FFFF


class FrameLiteral:
    """A ``model.FrameView`` of literals."""

    def __init__(
        self,
        instruments: Sequence[Instrument],
        series: Sequence[SeriesLiteral],
        *,
        scope: Scope | None = None,
        version: int = 1,
        attribute_bytes: bytes | None = None,
    ) -> None:
        self.scope = scope or Scope("literal")
        self.instruments = tuple(instruments)
        self.series = tuple(series)
        width = max((each.first_cell + each.cells for each in self.instruments), default=0)
        rows = (_Series * max(1, len(self.series)))()
        cells = (ctypes.c_uint64 * max(1, len(self.series) * width))()
        arena = b""
        for index, literal in enumerate(self.series):
            assert len(literal.cells) == width
            labels = literal.label_text.encode()
            attributes = literal.attribute_bytes if attribute_bytes is None else attribute_bytes
            flags = (LIVE if literal.live else 0) | (ROWLESS if literal.rowless else 0) | (KEPT if literal.kept else 0)
            rows[index] = _Series(literal.start_ns, len(arena), len(labels), len(attributes), 0, flags)
            arena += labels + attributes
            for place, value in enumerate(literal.cells):
                cells[index * width + place] = raw_cell(value)
        memory = (ctypes.c_uint8 * max(1, len(arena))).from_buffer_copy(arena.ljust(1, b"\0"))
        self._view = _FrameView(version, len(self.series), width, 0, rows, cells, memory)

    def view(self) -> object:
        """The capsule; it lives no longer than this frame."""
        return _capsule_new(ctypes.addressof(self._view), ctypes.addressof(_CAPSULE_NAME), None)


def snapshot(*frames: FrameLiteral, time_ns: int = 1_700_000_060_000_000_000) -> Snapshot:
    """A snapshot of literals."""
    return Snapshot(time_ns, Resource((("host.name", "bee"), ("service.name", "skep"))), frames)


def counter(name: str = "ebpf.things", **changes: object) -> Instrument:
    """A counter whose Prometheus name follows from its name."""
    given = {"prometheus_name": name.replace(".", "_") + "_total", "description": "Things.", **changes}
    return Instrument(name=name, kind=Kind.COUNTER, **given)  # type: ignore[arg-type]


def gauge(name: str = "ebpf.level", **changes: object) -> Instrument:
    """A gauge."""
    given = {"prometheus_name": name.replace(".", "_"), "description": "A level.", **changes}
    return Instrument(name=name, kind=Kind.GAUGE, **given)  # type: ignore[arg-type]


def histogram(name: str = "ebpf.latency", **changes: object) -> Instrument:
    """A histogram in seconds."""
    given = {"prometheus_name": name.replace(".", "_") + "_seconds", "unit": "s", "description": "Latency.", **changes}
    return Instrument(name=name, kind=Kind.HISTOGRAM, **given)  # type: ignore[arg-type]
