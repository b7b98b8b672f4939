"""``--filter MAP,LABEL,REGEX``: which rows and events ``skep run`` shows.

MAP is the name of a map, or of a metric or event that comes from it; LABEL one of its labels. What is shown has
the pattern in that label. Filters of one map must all let a row through; maps without a filter are shown whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.errors import ConfigError

if TYPE_CHECKING:
    from exporter.plan import Plan


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on the rows of a map, or the events of a ring."""

    map: str
    label: str
    pattern: re.Pattern[str]

    def __str__(self) -> str:
        return f"{self.map},{self.label},{self.pattern.pattern}"


def parse_filter(text: str) -> Filter:
    """Read ``MAP,LABEL,REGEX``; commas after the second belong to the pattern.

    Raises:
        ConfigError: a part is missing, or the pattern is none.
    """
    parts = text.split(",", 2)
    if len(parts) < 3 or not all(parts):
        raise ConfigError(f"filter {text!r} lacks a part; must be MAP,LABEL,REGEX, such as calls,command,^ssh")
    map_, label, pattern = (part.strip() for part in parts)
    try:
        return Filter(map_, label, re.compile(pattern))
    except re.error as error:
        raise ConfigError(f"filter {text!r}: {pattern!r} is no regular expression: {error}") from error


class Filters:
    """All filters of one run, checked against what the image exports.

    Raises:
        ConfigError: a filter names a map or label that the image does not have.
    """

    def __init__(self, filters: Iterable[Filter], plan: Plan) -> None:
        self.given: Sequence[Filter] = tuple(filters)
        self._of: dict[str, list[Filter]] = {}
        labels: dict[str, set[str]] = {}
        maps_of: dict[str, set[str]] = {}
        for table in plan.tables:
            names = {label.name for label in table.labels} | {name for name, _ in table.constant_labels}
            labels.setdefault(table.map, set()).update(names)
            for metric in table.metrics:
                for name in (metric.instrument.prometheus_name, metric.instrument.name, table.map):
                    maps_of.setdefault(name, set()).add(table.map)
        for stream in plan.streams:
            names = {label.name for label in stream.attributes} | {name for name, _ in stream.constant_labels}
            labels.setdefault(stream.map, set()).update(names)
            for name in (stream.event_name, stream.map):
                maps_of.setdefault(name, set()).add(stream.map)
        for one in self.given:
            if one.map not in maps_of:
                listed = ", ".join(sorted(labels)) or "none"
                raise ConfigError(f"filter '{one}': no exported map is called {one.map!r}; there are {listed}")
            # A metric and an event may share a name: the label tells which of them is meant.
            meant = [map_ for map_ in maps_of[one.map] if one.label in labels[map_]]
            if not meant:
                listed = ", ".join(sorted(set[str]().union(*(labels[map_] for map_ in maps_of[one.map])))) or "none"
                raise ConfigError(f"filter '{one}': {one.map!r} has no label {one.label!r}; it has {listed}")
            for map_ in meant:
                self._of.setdefault(map_, []).append(one)

    def keep(self, map_: str, attributes: Mapping[str, object]) -> bool:
        """Whether a row or event of this map is shown; a label it does not have is empty."""
        return all(one.pattern.search(_text(attributes.get(one.label, ""))) for one in self._of.get(map_, ()))

    def touch(self, map_: str) -> bool:
        """Whether any filter is about this map."""
        return map_ in self._of


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
