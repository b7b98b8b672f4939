"""``python -m tests.bench.picture``: draw what the host dashboard asks a real Prometheus, into ``docs/dashboard.svg``.

A real agent runs the catalog, a real Prometheus scrapes it, this machine gets
something to do; then the queries of one panel of each image are asked over that
time and drawn. Only the drawing is not Grafana's. Needs root and matplotlib
(``pip install --group picture``).
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from tests.agent.harness import running_agent
from tests.agent.test_dashboards_live import NOT_HERE, working
from tests.support.catalog import built_catalog
from tests.support.dashboards import DIRECTORY, ROOT, panels, read, substituted
from tests.support.prometheus import Prometheus, running_prometheus
from tests.support.workload import repeated

TARGET = ROOT / "docs" / "dashboard.svg"
DURATION_S = 120
COLUMNS = 3
SHOWN = 6
"""Lines in a panel, the largest."""
UNITS = {"s": "s", "reqps": "/s", "cps": "/s", "ops": "/s", "percentunit": "", "bytes": "B"}

INK, GRID, PAPER = "#d8d9da", "#2c3235", "#181b1f"


def burst() -> None:
    """More tasks than CPUs for a while, so that something moves."""
    spin = [sys.executable, "-c", "import time\nend = time.monotonic() + 8\nwhile time.monotonic() < end: pass"]
    tasks = [subprocess.Popen(spin) for _ in range(6)]
    for task in tasks:
        task.wait()


def chosen(name: str) -> Mapping[str, Any] | None:
    """The panel of an image's dashboard that is drawn: its first that shows lines."""
    kinds = ("timeseries",)
    return next((panel for panel in panels(read(DIRECTORY / f"{name}.json")) if panel["type"] in kinds), None)


def lines_of(prometheus: Prometheus, panel: Mapping[str, Any], begin: float, end: float) -> list[tuple[str, Any]]:
    """Legend and points of each line, the largest first."""
    found = []
    for target in panel["targets"]:
        expr = substituted(target["expr"], rate_interval="10s")
        for series in prometheus.get("query_range", query=expr, start=f"{begin:.3f}", end=f"{end:.3f}", step="2")[
            "result"
        ]:
            legend = target.get("legendFormat", "")
            for label, value in series["metric"].items():
                legend = legend.replace("{{" + label + "}}", value)
            legend = re.sub(r"{{\w+}}", "", legend).strip()
            points = [(float(at) - begin, float(value)) for at, value in series["values"]]
            found.append((legend, [point for point in points if math.isfinite(point[1])]))
    return sorted(found, key=lambda line: -max((value for _, value in line[1]), default=0.0))[:SHOWN]


def draw(axes: Axes, name: str, panel: Mapping[str, Any], lines: Sequence[tuple[str, Any]]) -> None:
    """One panel."""
    axes.set_title(f"{name}: {panel['title']}", loc="left", fontsize=8, color=INK)
    for legend, points in lines:
        axes.plot(*zip(*points, strict=True), linewidth=1.0, label=legend[:40])
    unit = panel["fieldConfig"]["defaults"].get("unit", "")
    axes.yaxis.set_major_formatter(EngFormatter(unit=UNITS.get(unit, ""), sep=""))
    top = max((value for _, points in lines for _, value in points), default=1.0)
    axes.set_ylim(bottom=0, top=top * 1.4 or 1.0)  # room for the legend
    if any(legend for legend, _ in lines):
        axes.legend(loc="upper left", fontsize=6, frameon=False, labelcolor=INK, ncols=2)
    axes.set_facecolor(PAPER)
    axes.grid(color=GRID, linewidth=0.5)
    axes.tick_params(colors=INK, labelsize=6, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def main() -> None:
    """Run everything, ask, draw."""
    mpl.rcParams |= {"svg.hashsalt": "skep", "svg.fonttype": "none", "font.family": "sans-serif"}
    with tempfile.TemporaryDirectory(prefix="skep-picture-") as text, contextlib.ExitStack() as stack:
        directory = Path(text)
        names = [name for name in built_catalog(directory).names() if name not in NOT_HERE]
        images = [{"name": name, "ref": f"oci:{directory}/catalog:{name}"} for name in names]
        agent = stack.enter_context(running_agent(directory, f"images: {json.dumps(images)}\n"))
        agent.wait(lambda page: all(page.state(name) == "running" for name in names))
        targets = {"skep": agent.url.removeprefix("http://")}
        prometheus = stack.enter_context(running_prometheus(directory, targets))
        stack.enter_context(working(directory))
        stack.enter_context(repeated(burst, 12))
        begin = time.time() + 10
        time.sleep(DURATION_S + 10)
        drawn = []
        for name in names:
            panel = chosen(name)
            lines = lines_of(prometheus, panel, begin, time.time()) if panel else []
            if panel and any(points for _, points in lines):
                drawn.append((name, panel, lines))
    rows = -(-len(drawn) // COLUMNS)
    figure = Figure(figsize=(14, 2.6 * rows), facecolor=PAPER, layout="constrained")
    for index, one in enumerate(drawn):
        draw(figure.add_subplot(rows, COLUMNS, index + 1), *one)
    figure.savefig(TARGET, metadata={"Date": None})
    print(f"{TARGET.relative_to(ROOT)}: {len(drawn)} panels of {len(names)} images")


if __name__ == "__main__":
    main()
