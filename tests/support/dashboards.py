"""The committed dashboards, and the rules of grafana/dashboard-linter 0.2 over a dashboard's JSON.

The linter itself is a Go program; its rules are few, and here they are. Where it
is silent (heatmaps, overlaps, uids) the house has rules of its own.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.models import units

from tests.support.promql import Selector, selectors

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "dashboards"
FILES = sorted(DIRECTORY.glob("*.json"))
UNITS = {value for name, value in vars(units).items() if not name.startswith("_") and isinstance(value, str)}
DATASOURCES = ("$datasource", "${datasource}")
PROMETHEUS_OWN = {"up", "scrape_duration_seconds", "scrape_samples_scraped"}
HISTOGRAM_SERIES = re.compile(r"_(bucket|sum|count)$")

Dashboard = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """One query of one panel."""

    file: str
    panel: str
    kind: str
    expr: str

    def __str__(self) -> str:
        return f"{self.file}: {self.panel}: {self.expr}"

    @property
    def selectors(self) -> list[Selector]:
        return selectors(self.expr)


def read(path: Path) -> Dashboard:
    """One dashboard."""
    found = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def panels(dashboard: Dashboard) -> list[Mapping[str, Any]]:
    """Every panel that shows something."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def targets(dashboard: Dashboard, file: str = "") -> Iterator[Target]:
    """Every query of every panel."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield Target(file, panel["title"], panel["type"], target["expr"])


def all_targets() -> list[Target]:
    """Every query of every committed dashboard."""
    return [target for path in FILES for target in targets(read(path), path.name)]


def substituted(expr: str, *, rate_interval: str = "15s") -> str:
    """An expression as Grafana sends it with every variable at "All"."""
    expr = expr.replace("$__rate_interval", rate_interval)
    expr = re.sub(r"\$(job|instance)\b", ".+", expr)
    return re.sub(r"\$\w+", ".*", expr)


def families(metrics: set[str], shown: set[str]) -> set[str]:
    """Metrics of which no series is shown; a histogram is shown by any of its three."""
    stems = shown | {HISTOGRAM_SERIES.sub("", name) for name in shown}
    return {name for name in metrics if name not in stems and HISTOGRAM_SERIES.sub("", name) not in stems}


def findings(dashboard: Dashboard) -> list[str]:
    """What is wrong with a dashboard: ``rule: what``."""
    return [*_template_findings(dashboard), *_panel_findings(dashboard), *_target_findings(dashboard), *_own(dashboard)]


def _template_findings(dashboard: Dashboard) -> Iterator[str]:
    variables = dashboard["templating"]["list"]
    sources = [variable for variable in variables if variable["type"] == "datasource"]
    if [(source["name"], source["label"], source["query"]) for source in sources] != [
        ("datasource", "Data source", "prometheus")
    ]:
        yield "template-datasource-rule: one variable 'datasource' of Prometheus, labelled 'Data source'"
    for name in ("job", "instance"):
        found = [variable for variable in variables if variable["name"] == name]
        if not found:
            yield f"template-{name}-rule: no variable {name!r}"
            continue
        wanted = {"type": "query", "label": name.title(), "multi": True, "includeAll": True, "allValue": ".+"}
        for key, value in wanted.items():
            if found[0].get(key) != value:
                yield f"template-{name}-rule: {key} is {found[0].get(key)!r}, must be {value!r}"
    exprs = " ".join(target.expr for target in targets(dashboard))
    for variable in variables:
        if variable["type"] != "query":
            continue
        name = variable["name"]
        if variable["datasource"]["uid"] not in DATASOURCES:
            yield f"template-datasource-rule: variable {name!r} has a fixed data source"
        if variable["refresh"] != 2:
            yield f"template-on-time-change-reload-rule: variable {name!r} is not refreshed when the time range changes"
        query = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        if not query or query[2] != name or len(selectors(query[1])) != 1:
            yield f"template-label-promql-rule: variable {name!r} asks {variable['query']['query']!r}"
        if not re.search(rf"\${name}\b", exprs):
            yield f"template-unused-rule: variable {name!r}"
    known = {variable["name"] for variable in variables} | {"__rate_interval"}
    for used in sorted(set(re.findall(r"\$\{?(\w+)", exprs)) - known):
        yield f"template-unknown: ${used} is no variable"


def _panel_findings(dashboard: Dashboard) -> Iterator[str]:
    for panel in panels(dashboard):
        title = panel.get("title", "")
        if not title or not panel.get("description"):
            yield f"panel-title-description-rule: {title!r}"
        if panel.get("datasource", {}).get("uid") not in DATASOURCES:
            yield f"panel-datasource-rule: {title!r}"
        if panel["fieldConfig"]["defaults"].get("unit") not in UNITS:
            yield f"panel-units-rule: {title!r} has {panel['fieldConfig']['defaults'].get('unit')!r}"
        if not panel.get("targets"):
            yield f"panel-no-targets-rule: {title!r}"
        for target in panel.get("targets", ()):
            if target["datasource"]["uid"] not in DATASOURCES:
                yield f"panel-datasource-rule: a target of {title!r}"
            if panel["type"] != "table" and not target.get("legendFormat"):
                yield f"legend: a target of {title!r} has none"


def _target_findings(dashboard: Dashboard) -> Iterator[str]:
    for target in targets(dashboard):
        found = target.selectors
        if not found:
            yield f"target-promql-rule: {target.expr!r} selects nothing"
        for selector in found:
            for label in ("job", "instance"):
                if (label, "=~", f"${label}") not in selector.matchers:
                    yield f"target-{label}-rule: {selector.metric} in {target.panel!r}"
            if selector.range and selector.range != "$__rate_interval":
                yield f"target-rate-interval-rule: {selector.metric}[{selector.range}] in {target.panel!r}"
            last = selector.calls[-1] if selector.calls else ""
            counter = selector.metric.endswith(("_total", "_bucket", "_sum", "_count"))
            if counter and not (selector.range and last in ("rate", "irate", "increase")):
                yield f"target-counter-agg-rule: {selector.metric} in {target.panel!r}"
            drawn = target.kind == "heatmap" or "histogram_quantile" in selector.calls
            if selector.metric.endswith("_bucket") and not drawn:
                yield f"target-histogram-rule: {selector.metric} in {target.panel!r}"


def _own(dashboard: Dashboard) -> Iterator[str]:
    if dashboard["editable"] is not False:
        yield "uneditable-dashboard: it is editable"
    if dashboard.get("id") is not None or not re.fullmatch(r"skep-[A-Za-z0-9_-]{1,35}", dashboard["uid"]):
        yield f"uid: {dashboard['uid']!r}"
    if "skep" not in dashboard["tags"]:
        yield "tags: no 'skep'"
    if dashboard["schemaVersion"] != 42 or dashboard["graphTooltip"] != 1 or dashboard["timezone"] != "browser":
        yield "form: schema 42, shared crosshair, the reader's time zone"
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(set(ids)) != len(ids):
        yield "ids: two panels share one"
    for one, other in itertools.combinations(dashboard["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        if not (apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]):
            yield f"layout: {one['title']!r} and {other['title']!r} overlap"
    for panel in dashboard["panels"]:
        if panel["gridPos"]["x"] + panel["gridPos"]["w"] > 24:
            yield f"layout: {panel['title']!r} is wider than the page"
    titles = [(row, panel["title"]) for row, panel in _by_row(dashboard)]
    for row, title in sorted({entry for entry in titles if titles.count(entry) > 1}):
        yield f"titles: {title!r} twice in {row!r}"


def _by_row(dashboard: Dashboard) -> Iterator[tuple[str, Mapping[str, Any]]]:
    row = ""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            yield row, panel
