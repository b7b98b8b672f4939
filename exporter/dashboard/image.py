"""The dashboard of an image, by rule, from its plan.

A histogram is shown as a heatmap, as quantiles, and as the rate and the 99th percentile of each label set; a
counter or gauge as its largest label sets and its largest hosts. Counters without labels share a row. Where a counter
``<thing>.errors`` stands beside a count of the same things (``<thing>.duration``, ``<thing>.calls``), the share that
failed is shown. Each stream of events has a panel that accounts for its records. A label whose values are few by
nature is also a variable to choose by.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from exporter.model import Instrument, Kind, prometheus_label
from exporter.plan import LabelRule, Plan, StreamPlan

from .board import TOP, Board, Panel, Query, Row, Shape, Variable, legend, quantile, rate, select, top, total

_LABELS_SHOWN = 3
_VARIABLES = 5
_UID_CHARACTERS = 40

# Decoders of labels that have few values on one host; addresses, ports and plain numbers do not.
_CHOOSABLE = frozenset(
    {"bool", "enum", "string", "device", "interface", "errno", "syscall", "signal", "uid",
     "cgroup", "cgroup.unit", "cgroup.slice", "cgroup.container", "cgroup.pod"}
)  # fmt: skip
_GROUPS = "cgroup"

# Labels that every scrape already has: Prometheus then calls ours by the name behind.
_TARGET_LABELS = {"job": "exported_job", "instance": "exported_instance"}

# UCUM to Grafana's unit ids: of a value, and of its increase per second.
_VALUE_UNITS = {
    "s": "s", "ms": "ms", "us": "µs", "ns": "ns", "min": "m", "h": "h", "d": "d", "By": "bytes", "KiBy": "kbytes",
    "MiBy": "mbytes", "GiBy": "gbytes", "kBy": "deckbytes", "MBy": "decmbytes", "GBy": "decgbytes", "bit": "bits",
    "1": "percentunit", "%": "percent", "Cel": "celsius", "Hz": "hertz", "V": "volt", "A": "amp", "J": "joule",
    "W": "watt", "By/s": "binBps", "m": "lengthm", "g": "massg",
}  # fmt: skip
_RATE_UNITS = {
    "s": "percentunit", "By": "binBps", "KiBy": "KiBs", "MiBy": "MiBs", "GiBy": "GiBs", "kBy": "KBs", "MBy": "MBs",
    "GBy": "GBs", "bit": "bps", "J": "watt", "{packet}": "pps", "{request}": "reqps", "{operation}": "ops",
}  # fmt: skip

_COUNTED = ("duration", "latency", "calls", "requests", "operations", "attempts")
_ERRORS = ("errors", "failures", "failed")
_ACRONYMS = {
    "tcp": "TCP", "udp": "UDP", "ip": "IP", "cpu": "CPU", "io": "I/O", "nfs": "NFS", "dns": "DNS", "http": "HTTP",
    "oom": "OOM", "vfs": "VFS", "tls": "TLS", "xdp": "XDP", "irq": "IRQ", "softirq": "softirq", "rcu": "RCU",
    "runqueue": "run queue",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Metric:
    """A metric as panels need it.

    Attributes:
        labels: Prometheus label names that tell its series apart, those of control groups aside.
        groups: Those that name a control group, the most telling first.
        matchers: What the dashboard's variables hold it to.
    """

    instrument: Instrument
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    matchers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.instrument.prometheus_name

    @property
    def title(self) -> str:
        return _title(self.instrument.name)

    @property
    def all_labels(self) -> tuple[str, ...]:
        return self.labels + self.groups

    @property
    def shown(self) -> tuple[str, ...]:
        """The labels a panel can show at once."""
        return self.labels[:_LABELS_SHOWN]

    @property
    def count_rate(self) -> str:
        """How often it happened, per second: of a histogram, its observations."""
        if self.instrument.kind is not Kind.HISTOGRAM:
            return rate(self.name, *self.matchers)
        if self.instrument.has_sum:
            return rate(f"{self.name}_count", *self.matchers)
        # OpenMetrics, which Prometheus prefers, has no count without a sum.
        return rate(f"{self.name}_bucket", 'le="+Inf"', *self.matchers)

    def level(self, by: Sequence[str]) -> str:
        """What a line of a counter or gauge panel shows."""
        gauge = self.instrument.kind is Kind.GAUGE
        return total(select(self.name, *self.matchers) if gauge else rate(self.name, *self.matchers), by)

    @property
    def level_unit(self) -> str:
        unit = self.instrument.unit
        if self.instrument.kind is Kind.GAUGE:
            return _VALUE_UNITS.get(unit, "short")
        return _RATE_UNITS.get(unit, "cps")

    @property
    def value_unit(self) -> str:
        return _VALUE_UNITS.get(self.instrument.unit, "short")

    def described(self, sentence: str) -> str:
        """Its own help, and what the panel makes of it."""
        return " ".join(filter(None, (self.instrument.description, sentence)))


def image_board(plan: Plan) -> Board:
    """The dashboard of an image."""
    metrics = _metrics(plan)
    variables = _variables(plan)
    chosen = {variable.label for variable in variables}
    metrics = [
        replace(metric, matchers=tuple(f'{label}=~"${label}"' for label in metric.all_labels if label in chosen))
        for metric in metrics
    ]
    labelled = [metric for metric in metrics if metric.all_labels or metric.instrument.kind is Kind.HISTOGRAM]
    rows = [_health(plan)]
    for metric in labelled:
        panels = [*_panels(metric)]
        base = _counted_by(metric, metrics)
        if base:
            panels.append(_failed_share(metric, base))
        rows.append(_row(metric.title, panels))
    plain = [metric for metric in metrics if metric not in labelled]
    if plain:
        rows.append(_row("Totals", [_by_host(metric) for metric in plain]))
    if plan.streams:
        rows.append(
            _row(
                "Events" if any(not one.metrics_only for one in plan.streams) else "Records",
                [_events(stream) for stream in plan.streams],
            )
        )
    return Board(
        uid=uid(plan.scope.name),
        title=f"skep / {plan.scope.name}",
        description=plan.description or f"What the image {plan.scope.name} counts.",
        rows=tuple(rows),
        variables=variables,
    )


def image_summary(plan: Plan) -> Row:
    """The row of an image among others: what matters most, one panel per metric that has labels or buckets."""
    panels = []
    for metric in _metrics(plan):
        if metric.instrument.kind is Kind.HISTOGRAM:
            panels.append(_quantile_of_each(metric) if metric.labels else _quantiles(metric))
            panels.append(_rate_of_each(metric))
        elif metric.all_labels:
            panels.append(_level_of_each(metric))
    if not panels:
        panels = [_by_host(metric) for metric in _metrics(plan)]
    if not panels:
        panels = [_events(stream) for stream in plan.streams]
    return _row(plan.scope.name, panels)


def uid(name: str) -> str:
    """A dashboard's fixed uid from an image's name, in the characters and the length Grafana takes."""
    slug = "skep-" + re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    if len(slug) <= _UID_CHARACTERS and slug == f"skep-{name}":
        return slug
    return f"{slug[: _UID_CHARACTERS - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _metrics(plan: Plan) -> list[_Metric]:
    """Each metric once; tables that share one have equal labels."""
    found: dict[str, _Metric] = {}
    for table in plan.tables:
        labels: dict[str, None] = {}
        groups: dict[str, None] = {}
        for rule in table.labels:
            (groups if rule.decoder.startswith(_GROUPS) else labels)[_label(rule)] = None
        for metric in table.metrics:
            name = metric.instrument.prometheus_name
            found.setdefault(name, _Metric(metric.instrument, tuple(labels), tuple(groups)))
    return list(found.values())


def _variables(plan: Plan) -> tuple[Variable, ...]:
    """Labels to choose by, in the order the image names them."""
    found: dict[str, Variable] = {}
    for table in plan.tables:
        for rule in table.labels:
            if rule.decoder in _CHOOSABLE:
                instrument = table.metrics[0].instrument
                counted = "_count" if instrument.has_sum else "_bucket"
                suffix = counted if instrument.kind is Kind.HISTOGRAM else ""
                found.setdefault(_label(rule), Variable(_label(rule), instrument.prometheus_name + suffix))
    return tuple(found.values())[:_VARIABLES]


def _label(rule: LabelRule) -> str:
    label = prometheus_label(rule.name)
    return _TARGET_LABELS.get(label, label)


def _title(otel_name: str) -> str:
    """``ebpf.tcp.state_changes`` to "TCP state changes"."""
    words = [_ACRONYMS.get(word, word) for word in re.split(r"[._/-]+", otel_name.removeprefix("ebpf."))]
    text = " ".join(word for word in words if word)
    return text[:1].upper() + text[1:]


def _row(title: str, panels: Sequence[Panel]) -> Row:
    """Two panels a line; the last one fills its line."""
    if len(panels) % 2:
        panels = [*panels[:-1], replace(panels[-1], width=24)]
    return Row(title, tuple(panels))


def _panels(metric: _Metric) -> Iterator[Panel]:
    if metric.instrument.kind is Kind.HISTOGRAM:
        yield _heatmap(metric)
        yield _quantiles(metric)
        yield _rate_of_each(metric)
        if metric.labels:
            yield _quantile_of_each(metric)
        if metric.groups:
            yield _quantile_by(metric, metric.groups[0], "control group")
        yield _quantile_by(metric, "instance", "host")
        return
    yield _level_of_each(metric)
    if metric.groups and metric.labels:
        yield _level_by_group(metric)
    yield _by_host(metric)


def _heatmap(metric: _Metric) -> Panel:
    return Panel(
        title=f"{metric.title}, distribution",
        description=metric.described("Colour: observations per second in each bucket."),
        unit=metric.value_unit,
        queries=(Query(total(rate(f"{metric.name}_bucket", *metric.matchers), ["le"]), "{{le}}"),),
        shape=Shape.HEATMAP,
    )


def _quantiles(metric: _Metric) -> Panel:
    queries = [Query(quantile(q, metric.name, (), *metric.matchers), f"p{100 * q:g}") for q in (0.5, 0.9, 0.99)]
    sentence = "Quantiles over all that is chosen, estimated from the buckets."
    if metric.instrument.has_sum:
        mean = f"{total(rate(f'{metric.name}_sum', *metric.matchers))} / {total(metric.count_rate)}"
        queries.append(Query(mean, "mean"))
        sentence = "Quantiles over all that is chosen, estimated from the buckets, and the exact mean."
    return Panel(f"{metric.title}, quantiles", metric.described(sentence), metric.value_unit, tuple(queries))


def _rate_of_each(metric: _Metric) -> Panel:
    """How often something was observed, for each label set of a histogram."""
    by = metric.shown
    suffix = f" by {_and(by)}" if by else ""
    expr = top(total(metric.count_rate, by)) if by else total(metric.count_rate)
    return Panel(
        f"{metric.title}, observations{suffix}",
        metric.described(f"Observations per second{_largest(by)}."),
        "cps",
        (Query(expr, legend(by) or "observations"),),
    )


def _quantile_of_each(metric: _Metric) -> Panel:
    by = metric.shown
    return Panel(
        f"{metric.title}, p99 by {_and(by)}",
        metric.described(f"99th percentile{_largest(by)}."),
        metric.value_unit,
        (Query(top(quantile(0.99, metric.name, by, *metric.matchers)), legend(by)),),
    )


def _quantile_by(metric: _Metric, label: str, what: str) -> Panel:
    return Panel(
        f"{metric.title}, p99 by {what}",
        metric.described(f"99th percentile{_largest([what])}."),
        metric.value_unit,
        (Query(top(quantile(0.99, metric.name, (label,), *metric.matchers)), legend([label])),),
    )


def _level_of_each(metric: _Metric) -> Panel:
    """A counter's rate, or a gauge, for each label set."""
    by = metric.shown or (metric.groups[0],)
    return Panel(
        f"{metric.title} by {_and(by)}",
        metric.described(f"{_per_second(metric)}{_largest(by)}."),
        metric.level_unit,
        (Query(top(metric.level(by)), legend(by)),),
    )


def _level_by_group(metric: _Metric) -> Panel:
    return Panel(
        f"{metric.title} by control group",
        metric.described(
            f"{_per_second(metric)}{_largest(['control group'])}; one line without a name if the image does not tell "
            "them apart."
        ),
        metric.level_unit,
        (Query(top(metric.level((metric.groups[0],))), legend([metric.groups[0]])),),
    )


def _by_host(metric: _Metric) -> Panel:
    return Panel(
        f"{metric.title} by host",
        metric.described(f"{_per_second(metric)}{_largest(['host'])}."),
        metric.level_unit,
        (Query(top(metric.level(("instance",))), legend(["instance"])),),
    )


def _counted_by(metric: _Metric, metrics: Sequence[_Metric]) -> _Metric | None:
    """The metric that counts the same things as this count of failures does, failed or not."""
    base, _, last = metric.instrument.name.rpartition(".")
    if metric.instrument.kind is not Kind.COUNTER or last not in _ERRORS:
        return None
    for other in metrics:
        other_base, _, other_last = other.instrument.name.rpartition(".")
        same = other_base == base and other_last in _COUNTED and other.instrument.kind is not Kind.GAUGE
        if same and set(metric.labels) & set(other.labels) == set(other.labels):
            return other
    return None


def _failed_share(metric: _Metric, base: _Metric) -> Panel:
    by = base.shown
    failed, all_ = total(metric.count_rate, by), total(base.count_rate, by)
    share = f"({failed} or 0 * {all_}) / {all_}"
    return Panel(
        f"{metric.title}, as a share" + (f" by {_and(by)}" if by else ""),
        f"What {metric.name} counts, as a share of all that {base.name} counts{_largest(by)}.",
        "percentunit",
        (Query(top(share), legend(by) or "failed"),),
        maximum=1.0,
    )


def _events(stream: StreamPlan) -> Panel:
    matcher = f'stream="{stream.event_name}"'
    parts = (
        ("received", total(rate("skep_events_received_total", matcher))),
        ("exported", total(rate("skep_events_exported_total", matcher))),
        ("failed", total(rate("skep_events_failed_total", matcher))),
        ("dropped: {{reason}}", total(rate("skep_events_dropped_total", matcher), ["reason"])),
        ("lost in the ring", total(rate("skep_ring_lost_total", matcher))),
    )
    off = "" if stream.enabled or stream.metrics_only else " Off unless the configuration turns it on."
    text = f"{stream.description} " if stream.description else ""
    return Panel(
        f"Ring {stream.event_name}" if stream.metrics_only else f"Event {stream.event_name}",
        f"{text}Records received, and what became of them; lost are those the ring had no room for.{off}",
        "cps",
        tuple(Query(expr, name) for name, expr in parts),
    )


def _health(plan: Plan) -> Row:
    """Where the image runs; the agent's own metrics know it by its configured name."""
    image = f"image={json.dumps(plan.scope.name, ensure_ascii=False)}"
    called = f"The image is found by its name in the agent's configuration, {plan.scope.name}."
    return Row(
        "Image",
        (
            Panel(
                "Hosts by state",
                f"How many hosts have the image in each state. {called}",
                "short",
                (Query(total(select("skep_image_state", image), ["state"]) + " > 0", "{{state}}"),),
                Shape.STAT,
                width=8,
                height=4,
            ),
            Panel(
                "Versions",
                f"How many hosts run each version. {called}",
                "short",
                (Query(total(select("skep_image_info", image), ["version"], how="count"), "version {{version}}"),),
                Shape.STAT,
                width=8,
                height=4,
            ),
            Panel(
                "Series",
                f"Series the image has on all chosen hosts. {called}",
                "short",
                (Query(total(select("skep_metric_series", image)), "series"),),
                Shape.STAT,
                width=8,
                height=4,
            ),
        ),
    )


def _per_second(metric: _Metric) -> str:
    return "Now" if metric.instrument.kind is Kind.GAUGE else "Per second"


def _largest(by: Sequence[str]) -> str:
    return f", the {TOP} largest by {_and(by)}" if by else ""


def _and(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"
