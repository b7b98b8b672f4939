"""The agent's own metrics, which prometheus-client keeps, in the model's terms: families in, instruments and rows out.

So they go to a receiver as everything else does, from the registry that also answers
scrapes. Names stay those of Prometheus without ``_total``; a unit is said where the name ends in one.

==============  ==========================================================
Prometheus      here
==============  ==========================================================
counter         counter
gauge           gauge
histogram       histogram; ``+Inf`` is no bound
unknown         gauge that says so
info, stateset  gauge that says so; encoded as a sum that may fall
summary         two counters, its count and its sum; quantiles are left out
gaugehistogram  left out: OTLP has none
==============  ==========================================================

Source: OpenTelemetry specification, "Prometheus and OpenMetrics Compatibility".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from opentelemetry.proto.common.v1 import common_pb2
from prometheus_client import Metric
from prometheus_client.samples import Sample

from exporter.model import CellType, Instrument, Kind

from .form import varint

_UNITS = {"seconds": "s", "bytes": "By", "ratio": "1", "celsius": "Cel", "meters": "m", "volts": "V", "amperes": "A",
          "joules": "J", "watts": "W", "grams": "g"}  # fmt: skip
_ATTRIBUTE_TAG = b"\x3a"  # NumberDataPoint.attributes: field 7, as frames keep them

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One series: its attributes as ``KeyValue`` fields, when its count began, its cells."""

    attributes: bytes
    start_ns: int
    cells: bytes


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: what it is, and its series.

    Attributes:
        prometheus_type: Of a gauge that is none in Prometheus: ``unknown``, ``info`` or ``stateset``.
    """

    instrument: Instrument
    rows: tuple[Row, ...]
    prometheus_type: str = ""


def families(metrics: Iterable[Metric], start_ns: int) -> list[Family]:
    """Turn what a prometheus-client registry collects into families.

    Args:
        metrics: What ``registry.collect()`` gives.
        start_ns: When counting began, for counts that do not say it themselves by ``_created``.
    """
    made: list[Family] = []
    for metric in metrics:
        made += _family(metric, start_ns)
    return made


def _family(metric: Metric, start_ns: int) -> list[Family]:
    name = metric.name
    by_name: dict[str, dict[Labels, float]] = {}
    for sample in metric.samples:
        by_name.setdefault(sample.name, {})[_labels(sample)] = sample.value
    created = by_name.get(f"{name}_created", {})

    def start(labels: Labels) -> int:
        return int(created[labels] * 1e9) if created.get(labels, 0.0) > 0 else start_ns

    def numbers(
        kind: Kind, sample: str, instrument: str = name, *, starts: bool = True, prometheus_type: str = ""
    ) -> list[Family]:
        rows = tuple(
            Row(_attributes(labels), start(labels) if starts else 0, struct.pack("<d", value))
            for labels, value in by_name.get(sample, {}).items()
        )
        made = _instrument(metric, instrument, kind)
        return [Family(made, rows, prometheus_type)] if rows else []

    match metric.type:
        case "counter":
            return numbers(Kind.COUNTER, f"{name}_total")
        case "gauge":
            return numbers(Kind.GAUGE, name, starts=False)
        case "histogram":
            return _histograms(metric, by_name, start)
        case "summary":
            count = numbers(Kind.COUNTER, f"{name}_count", f"{name}_count")
            return count + numbers(Kind.COUNTER, f"{name}_sum", f"{name}_sum")
        case "info":
            return numbers(Kind.GAUGE, f"{name}_info", f"{name}_info", starts=False, prometheus_type="info")
        case "stateset":
            return numbers(Kind.GAUGE, name, starts=False, prometheus_type="stateset")
        case "gaugehistogram":
            return []
    return numbers(Kind.GAUGE, name, starts=False, prometheus_type="unknown")


def _labels(sample: Sample, without: str = "") -> Labels:
    """An empty label is none, in Prometheus."""
    return tuple(sorted((name, value) for name, value in sample.labels.items() if value and name != without))


def _histograms(
    metric: Metric, by_name: Mapping[str, Mapping[Labels, float]], start: Callable[[Labels], int]
) -> list[Family]:
    name = metric.name
    buckets: dict[Labels, list[tuple[float, float]]] = {}
    for sample in metric.samples:
        if sample.name == f"{name}_bucket":
            buckets.setdefault(_labels(sample, "le"), []).append((float(sample.labels["le"]), sample.value))
    by_bounds: dict[tuple[tuple[float, ...], bool], list[Row]] = {}
    sums = by_name.get(f"{name}_sum", {})
    for labels, edges in buckets.items():
        edges.sort()
        bounds = tuple(edge for edge, _ in edges if edge != float("inf"))
        if len(bounds) == len(edges):
            continue  # without +Inf nobody knows the count
        counts, below = [], 0
        for _, value in edges:
            counts.append(max(int(value) - below, 0))
            below = max(int(value), below)
        cells = struct.pack(f"<{len(counts)}Q", *counts)
        if labels in sums:
            cells += struct.pack("<d", sums[labels])
        by_bounds.setdefault((bounds, labels in sums), []).append(Row(_attributes(labels), start(labels), cells))
    return [
        Family(_instrument(metric, name, Kind.HISTOGRAM, bounds, has_sum), tuple(rows))
        for (bounds, has_sum), rows in by_bounds.items()
    ]


def _instrument(
    metric: Metric, name: str, kind: Kind, bounds: tuple[float, ...] = (), has_sum: bool = False
) -> Instrument:
    word = metric.unit or name.removesuffix("_sum").rpartition("_")[2]
    return Instrument(
        name=name,
        prometheus_name=name,
        kind=kind,
        unit=_UNITS.get(word, ""),
        description=metric.documentation,
        cell_type=CellType.F64,
        bounds=bounds,
        has_sum=has_sum,
    )


@lru_cache(maxsize=8192)
def _attributes(labels: Labels) -> bytes:
    out = bytearray()
    for name, value in labels:
        pair = common_pb2.KeyValue(key=name, value=common_pb2.AnyValue(string_value=value)).SerializeToString()
        out += _ATTRIBUTE_TAG + varint(len(pair)) + pair
    return bytes(out)
