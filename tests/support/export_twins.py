"""What the native encoders mean, said in plain Python over literals: numbers, the text format, OTLP messages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2

from exporter.model import CellType, Instrument, Kind, Scale, Snapshot

from .frame_literals import FrameLiteral, SeriesLiteral, raw_cell


def double_text(value: float) -> str:
    """Shortest round-trip text: plain from 0.0001 to below 1e21, else digits and exponent."""
    if math.isnan(value):
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    sign = "-" if str(value).startswith("-") else ""
    if value == 0:
        return sign + "0"
    _, digits, exponent = Decimal(repr(abs(value))).normalize().as_tuple()
    assert isinstance(exponent, int)
    scientific = exponent + len(digits) - 1
    if -4 <= scientific < 21:
        return f"{sign}{Decimal(repr(abs(value))).normalize():f}"
    text = "".join(map(str, digits))
    mantissa = text if len(text) == 1 else f"{text[0]}.{text[1:]}"
    return f"{sign}{mantissa}e{'-' if scientific < 0 else '+'}{abs(scientific):02}"


def decimal_text(value: int, exp10: int) -> str:
    """``value * 10**exp10``, exactly, without an exponent and without zeros that say nothing."""
    if exp10 >= 0:
        return str(value * 10**exp10)
    digits = str(abs(value)).zfill(1 - exp10)
    text = f"{digits[:exp10]}.{digits[exp10:]}".rstrip("0").removesuffix(".")
    return "-" + text if value < 0 else text


def cell_number(instrument: Instrument, cell: float) -> int | float:
    """A cell as its instrument reads it, before the scale."""
    bits = raw_cell(cell)
    if instrument.cell_type is CellType.F64:
        assert isinstance(cell, float)
        return cell
    return bits - (1 << 64) if instrument.cell_type is CellType.I64 and bits >> 63 else bits


def is_exact(instrument: Instrument) -> bool:
    """Whether the scaled number is printed as an exact decimal."""
    scale = instrument.scale
    return instrument.cell_type is not CellType.F64 and scale.factor == 1.0 and -22 <= scale.exp10 <= 22


def scaled(scale: Scale, number: float) -> float:
    """A number in instrument units; dividing by a power of ten is nearer the truth than multiplying by its inverse."""
    value = float(number) * scale.factor
    return value / 10.0**-scale.exp10 if scale.exp10 < 0 else value * 10.0**scale.exp10


def number_text(instrument: Instrument, cell: float) -> str:
    """A sample's value."""
    number = cell_number(instrument, cell)
    if is_exact(instrument):
        assert isinstance(number, int)
        return decimal_text(number, instrument.scale.exp10)
    return double_text(scaled(instrument.scale, number))


def edge_text(bound: float) -> str:
    """``le``: as Go's ``%g`` writes it, with ``.0`` where there is neither point nor exponent."""
    if bound == float("inf"):
        return "+Inf"
    _, digits, exponent = Decimal(repr(abs(bound))).normalize().as_tuple()
    assert isinstance(exponent, int)
    scientific = exponent + len(digits) - 1 if bound else 0
    sign = "-" if math.copysign(1.0, bound) < 0 else ""
    if bound and not -4 <= scientific < 6:
        text = "".join(map(str, digits))
        mantissa = text if len(text) == 1 else f"{text[0]}.{text[1:]}"
        return f"{sign}{mantissa}e{'-' if scientific < 0 else '+'}{abs(scientific):02}"
    text = f"{Decimal(repr(abs(bound))):f}"
    return sign + (text if "." in text else text + ".0")


def _cells(instrument: Instrument, series: SeriesLiteral) -> tuple[int | float, ...]:
    return series.cells[instrument.first_cell : instrument.first_cell + instrument.cells]


def _samples(instrument: Instrument, series: SeriesLiteral) -> list[str]:
    name, labels = instrument.prometheus_name, series.label_text
    braces = f"{{{labels}}}" if labels else ""
    cells = _cells(instrument, series)
    if instrument.kind is not Kind.HISTOGRAM:
        return [f"{name}{braces} {number_text(instrument, cells[0])}"]
    lines, count = [], 0
    for bound, cell in zip((*instrument.bounds, float("inf")), cells, strict=False):
        count = (count + raw_cell(cell)) % (1 << 64)
        comma = "," if labels else ""
        lines.append(f'{name}_bucket{{{labels}{comma}le="{edge_text(bound)}"}} {count}')
    if instrument.has_sum:
        lines.append(f"{name}_sum{braces} {number_text(instrument, cells[-1])}")
    return [*lines, f"{name}_count{braces} {count}"]


def prometheus_text(frames: Sequence[FrameLiteral]) -> bytes:
    """The text format 0.0.4 of frames whose families do not clash."""
    families: dict[str, list[str]] = {}
    headers: dict[str, list[str]] = {}
    for frame in frames:
        for instrument in frame.instruments:
            name = instrument.prometheus_name
            lines = [line for each in frame.series if each.shows(instrument) for line in _samples(instrument, each)]
            families.setdefault(name, []).extend(lines)
            escaped_help = instrument.description.replace("\\", "\\\\").replace("\n", "\\n")
            first = [f"# HELP {name} {escaped_help}"] if escaped_help else []
            headers.setdefault(name, [*first, f"# TYPE {name} {instrument.kind.value}"])
    text = [line for name, lines in families.items() if lines for line in (*headers[name], *lines)]
    return "".join(line + "\n" for line in text).encode()


def _key_values(pairs: Sequence[tuple[str, str]]) -> list[common_pb2.KeyValue]:
    return [common_pb2.KeyValue(key=key, value=common_pb2.AnyValue(string_value=value)) for key, value in pairs]


def _fill(metric: metrics_pb2.Metric, instrument: Instrument, series: SeriesLiteral, time_ns: int) -> None:
    cells = _cells(instrument, series)
    if instrument.kind is Kind.HISTOGRAM:
        metric.histogram.aggregation_temporality = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
        counts = [raw_cell(cell) for cell in cells[: len(instrument.bounds) + 1]]
        point = metric.histogram.data_points.add(
            attributes=_key_values(series.labels),
            start_time_unix_nano=series.start_ns,
            time_unix_nano=time_ns,
            count=sum(counts) % (1 << 64),
            bucket_counts=counts,
            explicit_bounds=instrument.bounds,
        )
        if instrument.has_sum:
            point.sum = scaled(instrument.scale, cell_number(instrument, cells[-1]))
        return
    number = cell_number(instrument, cells[0])
    points = metric.gauge.data_points if instrument.kind is Kind.GAUGE else metric.sum.data_points
    if instrument.kind is Kind.COUNTER:
        metric.sum.aggregation_temporality = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
        metric.sum.is_monotonic = True
    start_ns = 0 if instrument.kind is Kind.GAUGE else series.start_ns
    sample = points.add(attributes=_key_values(series.labels), start_time_unix_nano=start_ns, time_unix_nano=time_ns)
    if is_exact(instrument) and instrument.scale.exp10 == 0 and isinstance(number, int) and number < 1 << 63:
        sample.as_int = number
    else:
        sample.as_double = scaled(instrument.scale, number)


def metrics_message(shot: Snapshot) -> metrics_service_pb2.ExportMetricsServiceRequest:
    """A snapshot as one export request; frames of one scope that follow each other share its message."""
    request = metrics_service_pb2.ExportMetricsServiceRequest()
    scopes: list[tuple[object, metrics_pb2.ScopeMetrics]] = []
    for frame in shot.frames:
        assert isinstance(frame, FrameLiteral)
        for instrument in frame.instruments:
            shown = [series for series in frame.series if series.shows(instrument)]
            if not shown:
                continue
            if not request.resource_metrics:
                request.resource_metrics.add().resource.attributes.extend(_key_values(shot.resource.attributes))
            if not scopes or scopes[-1][0] != frame.scope:
                under_scope = request.resource_metrics[0].scope_metrics.add()
                under_scope.scope.name, under_scope.scope.version = frame.scope.name, frame.scope.version
                under_scope.scope.attributes.extend(_key_values(frame.scope.attributes))
                scopes.append((frame.scope, under_scope))
            metric = scopes[-1][1].metrics.add(
                name=instrument.name, description=instrument.description, unit=instrument.unit
            )
            for series in shown:
                _fill(metric, instrument, series, shot.time_ns)
    return request
