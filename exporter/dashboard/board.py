"""What a dashboard shows, before any Grafana: rows of panels, each with its queries; and the PromQL they share.

Every selector that :func:`select` makes is held to the dashboard's ``job`` and
``instance``. "All" of them is ``.+``, which also matches the targets of every
other job; so a metric that others export too goes through :func:`of_agents`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

AGENT = "skep_build_info"
"""Every agent has exactly one series of it."""

RATE_INTERVAL = "$__rate_interval"
_TARGETS = ('job=~"$job"', 'instance=~"$instance"')
TOP = 10
"""How many series a panel shows at most, at each instant."""


class Shape(enum.Enum):
    """How a panel draws its queries."""

    LINES = "lines"
    AREAS = "areas"
    STAT = "stat"
    TABLE = "table"
    HEATMAP = "heatmap"


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression.

    Attributes:
        legend: Grafana's legend format, such as ``{{device}}``; unused in tables.
    """

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        unit: Grafana's unit id of what is drawn: ``s``, ``reqps``; of a heatmap, of its y axis.
        width, height: In Grafana's grid, 24 columns wide.
        maximum: The top of the y axis, where it is known: 1 of a ratio.
        thresholds: ``(from this value, colour)`` above green.
        columns: Tables: label, or ``Value``, to the heading it gets; in this order.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    shape: Shape = Shape.LINES
    width: int = 12
    height: int = 8
    maximum: float | None = None
    thresholds: tuple[tuple[float, str], ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice of values of one label, taken from ``metric`` as ``job`` and ``instance`` leave it."""

    label: str
    metric: str


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard.

    Attributes:
        uid: At most 40 characters and never changed: links and bookmarks hang on it.
        variables: Beside the data source, ``job`` and ``instance``, which every board has.
    """

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()
    tags: tuple[str, ...] = ("skep", "ebpf")


def select(metric: str, *matchers: str) -> str:
    """A selector of one metric, held to the dashboard's job and instance."""
    return metric + "{" + ", ".join((*_TARGETS, *matchers)) + "}"


def rate(metric: str, *matchers: str) -> str:
    """Increase per second of a counter."""
    return f"rate({select(metric, *matchers)}[{RATE_INTERVAL}])"


def total(expr: str, by: Iterable[str] = (), *, how: str = "sum") -> str:
    """An aggregation that keeps some labels."""
    labels = ", ".join(by)
    return f"{how} by ({labels}) ({expr})" if labels else f"{how}({expr})"


def top(expr: str, count: int = TOP) -> str:
    """The largest series."""
    return f"topk({count}, {expr})"


def quantile(q: float, metric: str, by: Sequence[str] = (), *matchers: str) -> str:
    """A quantile of a classic histogram, estimated from its buckets."""
    buckets = total(rate(f"{metric}_bucket", *matchers), ("le", *by))
    return f"histogram_quantile({q:g}, {buckets})"


def of_agents(expr: str) -> str:
    """Only those series of an expression whose target is an agent."""
    return f"({expr}) and on (job, instance) {select(AGENT)}"


def legend(labels: Iterable[str]) -> str:
    """Grafana's legend format that shows these labels' values."""
    return " ".join("{{" + label + "}}" for label in labels)
