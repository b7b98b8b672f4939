"""``skep plan``: what an image would measure, under which names, without loading anything."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.cli import overrides
from exporter.errors import ConfigError

if TYPE_CHECKING:
    from exporter.config import AgentConfig, ImageConfig
    from exporter.model import Instrument
    from exporter.plan import Condition, GlobalPlan, LabelRule, MetricPlan, Plan, StreamPlan, TablePlan

_SHOWN_VALUES = 6
_SHOWN_BOUNDS = 3
_SEVERITIES = {1: "trace", 5: "debug", 9: "info", 13: "warn", 17: "error"}

Subparsers = argparse._SubParsersAction


def register(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "plan",
        help="show what an image would measure",
        description="Show every metric, label, bucket and event of an image, and its maps' memory. Loads nothing and "
        "needs no privilege; an image that is not in the store is pulled.",
    )
    add_plan_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument(
        "--cpus",
        metavar="N",
        type=int,
        default=0,
        help="possible CPUs to estimate memory for (default: this machine's)",
    )
    parser.set_defaults(run=_plan)


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """What :func:`planned` reads: which image, and as whose configuration has it."""
    parser.add_argument(
        "reference", metavar="REF", nargs="?", default="", help="image, catalog:NAME, layout or .o file"
    )
    parser.add_argument(
        "--config",
        "--config.file",
        metavar="FILE",
        type=Path,
        dest="config_file",
        help="apply an agent's configuration",
    )
    parser.add_argument("--image", metavar="NAME", default="", help="which of its images; REF may then be left out")
    parser.add_argument("--architecture", metavar="ARCH", default="", help="instead of this machine's, such as arm64")
    parser.add_argument("--store", metavar="DIR", type=Path, help="where images are kept (default: this user's)")
    overrides.add_arguments(parser)


def _plan(args: argparse.Namespace) -> int:
    plan = planned(args, cpus=args.cpus)
    if args.json:
        print(json.dumps(plan_json(plan), indent=2, ensure_ascii=False))
    else:
        print(plan_text(plan), end="")
    return 0


def planned(args: argparse.Namespace, *, cpus: int = 0) -> Plan:
    """Plan the image that the arguments of :func:`add_plan_arguments` name, for ``cpus`` or this machine's."""
    from exporter.bpf import read_object
    from exporter.config import AgentConfig, config_files, load
    from exporter.image import ReferenceKind, Store, default_store_path, fetch, parse_reference
    from exporter.kernel import possible_cpus
    from exporter.plan import make_plan
    from exporter.resources import catalog_dir

    config = load(config_files(args.config_file)) if args.config_file else AgentConfig()
    image = overrides.configured(args, _image(args, config))
    reference = parse_reference(image.ref)
    bundle = fetch(
        reference,
        store=Store(args.store or config.store.path or default_store_path()),
        registries=config.registries,
        pull=image.pull,
        architecture=args.architecture,
        catalog=catalog_dir() if reference.kind is ReferenceKind.CATALOG else None,
    )
    bundle = overrides.described(args, bundle)
    return make_plan(
        read_object(bundle.object),
        config=image,
        version=bundle.version,
        metadata=bundle.metadata,
        possible_cpus=cpus if cpus > 0 else possible_cpus(),
    )


def _image(args: argparse.Namespace, config: AgentConfig) -> ImageConfig:
    """The image to plan: as configured, or with defaults."""
    from exporter.config import ImageConfig
    from exporter.image import parse_reference

    if not args.config_file:
        if args.image or not args.reference:
            wants = "--image needs --config" if args.image else "no image is named; give REF, or --config and --image"
            raise ConfigError(wants)
        return ImageConfig(name=parse_reference(args.reference).default_name, ref=args.reference)
    chosen = [entry for entry in config.images if args.image in ("", entry.name) and args.reference in ("", entry.ref)]
    if args.image and args.reference and not chosen:
        named = next((entry for entry in config.images if entry.name == args.image), None)
        chosen = [dataclasses.replace(named, ref=args.reference)] if named else []
    if len(chosen) != 1:
        names = ", ".join(entry.name for entry in config.images) or "none"
        found = f"{len(chosen)} images match" if chosen else "no image matches"
        raise ConfigError(f"{found} --image {args.image!r}; it has {names}", file=str(args.config_file))
    return chosen[0]


def plan_json(plan: Plan) -> dict[str, Any]:
    """The whole plan as JSON values; bytes as hexadecimal digits, enums as their names."""
    made = _plain(plan)
    assert isinstance(made, dict)
    return made


def _plain(value: object) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, enum.IntEnum):
        return value.name.lower()
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return {part.name: _plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return value


def plan_text(plan: Plan) -> str:
    """The plan for a person, in the order of the object's maps."""
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    yield f"image {plan.scope.name}" + (f" {plan.scope.version}" if plan.scope.version else "")
    if plan.description:
        yield f"  {plan.description}"
    for table in plan.tables:
        yield ""
        yield from _table(table)
    for stream in plan.streams:
        yield ""
        yield from _losses(stream) if stream.metrics_only else _stream(stream)
    yield ""
    yield "programs"
    yield from _columns(
        [
            program.name,
            program.section,
            f"alternative {program.alternative} {program.rank}" if program.alternative else "",
            _attach(program.attach) if program.attach else "",
        ]
        for program in plan.programs
    )
    if plan.globals:
        yield ""
        yield "globals"
        yield from _columns([entry.name, _bytes(entry)] for entry in plan.globals)
    yield ""
    yield f"map memory {plan.map_memory / (1 << 20):.1f} MiB"
    for note in plan.notes:
        yield f"note: {note}"


def _table(table: TablePlan) -> Iterator[str]:
    if table.records:
        yield f"ring {table.map}: counted records of {table.value_size} bytes"
    else:
        yield _rows(table)
    for metric in table.metrics:
        yield from _metric(metric)
    yield from _labels("labels", table.labels, table.constant_labels)
    if table.expire_idle and table.records:
        yield f"  a series that does not change for {table.expire_after_s:g} s is forgotten, and begins anew"
    elif table.expire_idle:
        yield f"  a series that does not change for {table.expire_after_s:g} s is not shown until it does"


def _rows(table: TablePlan) -> str:
    """What is read."""
    from exporter.plan import InnerSource, SectionSource, StorageSource

    if isinstance(table.source, SectionSource):
        count, where = table.source.count, f"{table.source.section}+{table.source.offset}"
        of = f"{count} elements of " if count > 1 else ""
        return f"global {table.map}: {of}{table.value_size} bytes at {where}"
    kind = "rows summed over CPUs" if table.per_cpu else "rows"
    if isinstance(table.source, InnerSource):
        before, key_size = table.source.outer_key_size, table.key_size - table.source.before_bytes
        return f"maps in {table.map}: {kind} of {before} + {key_size} + {table.value_size} bytes"
    if isinstance(table.source, StorageSource):
        return f"storage {table.map}: {table.value_size} bytes of each {table.source.of} that has them"
    return f"map {table.map}: {kind} of {table.key_size} + {table.value_size} bytes"


def _metric(metric: MetricPlan) -> Iterator[str]:
    from exporter.model import Kind

    instrument = metric.instrument
    yield f"  {instrument.prometheus_name}"
    parts = [f"OpenTelemetry {instrument.name}", instrument.kind.value]
    if instrument.unit:
        parts.append(f"unit {instrument.unit}")
    scale = instrument.scale.value()
    if scale != 1:
        subject = "sum" if instrument.kind is Kind.HISTOGRAM else "value"
        parts.append(f"stored {subject} × {scale:g}")
    yield f"    {', '.join(parts)}"
    if instrument.kind is Kind.HISTOGRAM:
        yield f"    {_buckets(instrument)}"
    yield f"    {instrument.description}"


def _buckets(instrument: Instrument) -> str:
    bounds = [repr(bound) for bound in instrument.bounds]
    if len(bounds) > 2 * _SHOWN_BOUNDS:
        bounds = [*bounds[:_SHOWN_BOUNDS], "…", bounds[-1]]
    total = "with a sum" if instrument.has_sum else "without a sum"
    return f"{len(instrument.bounds) + 1} buckets, up to {', '.join([*bounds, '+Inf'])}, {total}"


_SOURCES = {"ring": "ring", "perf": "perf event array", "queue": "queue", "stack": "stack"}


def _lost(stream: StreamPlan) -> str:
    """Who counts the records that did not fit."""
    if stream.lost_map:
        return f"losses counted in map {stream.lost_map}"
    return "losses counted by the kernel" if stream.source == "perf" else "losses unknown"


def _losses(stream: StreamPlan) -> Iterator[str]:
    """A ring whose records are only counted: its metrics are told already."""
    lost = _lost(stream)
    counted = "" if stream.metrics else ", and nothing made of them"
    yield f"{_SOURCES[stream.source]} {stream.map}: records of {stream.record_size} bytes, {lost}, no events{counted}"


def _stream(stream: StreamPlan) -> Iterator[str]:
    off = "" if stream.enabled else ", off"
    yield f"{_SOURCES[stream.source]} {stream.map}: records of {stream.record_size} bytes"
    yield f"  event {stream.event_name}{off}"
    severity = _SEVERITIES.get(stream.severity, str(stream.severity))
    time = "the record's own time" if stream.time else "the time of reading"
    lost = _lost(stream)
    yield f"    severity {severity}, {time}, {lost}, at most {stream.events_per_s} a second"
    if stream.sample_one_in > 1:
        yield f"    one record of {stream.sample_one_in} is exported"
    if stream.switch:
        yield f"    made only where it is enabled: sets global {stream.switch}"
    if stream.description:
        yield f"    {stream.description}"
    tail = (stream.tail,) if stream.tail else ()
    yield from _labels("attributes", stream.attributes + tail, stream.constant_labels)


def _labels(title: str, rules: Sequence[LabelRule], constant: Sequence[tuple[str, str]]) -> Iterator[str]:
    from exporter.model import prometheus_label

    if not rules and not constant:
        return
    yield f"  {title}"
    rows = []
    for rule in rules:
        shown = prometheus_label(rule.name)
        values = ", ".join(text for _, text in rule.values[:_SHOWN_VALUES])
        more = ", …" if len(rule.values) > _SHOWN_VALUES else ""
        notes = [values + more] if values else []
        notes += [_condition(condition) for condition in rule.conditions]
        notes += [f"of map {rule.stack.map}"] if rule.stack else []
        steps = "".join(f"|{step.kind}(…)" for step in rule.steps)
        decoder = rule.decoder + (f"[{rule.count}]" if rule.count > 1 else "") + steps
        rows.append([rule.name, decoder, "" if shown == rule.name else f"({shown})", "; ".join(notes)])
    rows += [[name, "constant", "", repr(value)] for name, value in constant]
    yield from _columns(rows, indent="    ")


def _condition(condition: Condition) -> str:
    values = ", ".join(map(str, condition.values))
    return f"if bits {condition.offset_bits}+{condition.size_bits} are {'not ' * condition.negated}{values}"


def _attach(attach: object) -> str:
    parts = []
    for name, value in _plain(attach).items():
        if value and name != "enabled":
            parts.append(f"{name}={','.join(value) if isinstance(value, list) else value}")
    return " ".join(parts)


def _bytes(entry: GlobalPlan) -> str:
    return f"{entry.section}+{entry.offset} = {entry.value.hex(' ')}"


def _columns(rows: Iterator[list[str]] | Sequence[list[str]], *, indent: str = "  ") -> Iterator[str]:
    """Rows with their columns aligned."""
    table = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    for row in table:
        yield (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width)).rstrip()
