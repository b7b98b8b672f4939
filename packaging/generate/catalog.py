"""Generate ``docs/catalog.md``: a page of all shipped images, from their READMEs, their plans and ``docs/cost.md``.

Usage: ``python packaging/generate/catalog.py [--check]``

What an image is for, what it needs and what of it is personal is prose, in
``configs/catalog/NAME/README.md``; names, units, labels and switches are what
the planner makes of the object; the cost is what ``make bench`` measured.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from exporter.bpf import ObjectSpec, read_object
from exporter.cli.build import build_catalog
from exporter.config import ImageConfig
from exporter.image import Store, parse_reference
from exporter.model import prometheus_label
from exporter.plan import Plan, make_plan

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "configs" / "catalog"
BUILT = ROOT / "build" / "catalog"
COST = ROOT / "docs" / "cost.md"
TARGET = ROOT / "docs" / "catalog.md"

# Set by events.NAME.enabled, not by hand.
SWITCHES = {"events_enabled"}

HEADER = """# The catalog

<!-- Made by packaging/generate/catalog.py from configs/catalog/*/README.md, the images and cost.md; do not edit. -->

Images that come with skep, built for amd64 and arm64: `ref: catalog:NAME`. One object of each runs on every kernel from
5.10, unless its section says otherwise; [kernels.md](kernels.md) has what was proved where. `globals` are set in the
configuration, `images: [{ref: catalog:NAME, globals: {by_cgroup: true}}]`. Cost is CPU time of one run of a program as
the kernel counts it, on the machine that [cost.md](cost.md) tells of. Images with the global `by_cgroup` have the
labels `cgroup` and `unit` only where it is true; oom-kills always has.

Memory of every image is bounded. Where keys are not (ports, control groups that come and go), the one that came first
makes way when a map is full: its series starts again if it returns. What found no room at all is in `…_missed_total`.

"""


def described(name: str, spec: ObjectSpec, plan: Plan, costs: dict[str, list[tuple[str, str]]]) -> Iterator[str]:
    """The section of one image, line by line."""
    yield f"## {name}\n"
    yield (SOURCES / name / "README.md").read_text(encoding="utf-8").strip() + "\n"
    measured = ", ".join(f"{ns} ns `{program}`" for program, ns in costs[name])
    yield f"**Cost:** {measured}.\n"
    settings = [f"`{each.name}`" for each in spec.globals if each.constant and each.name not in SWITCHES]
    if settings:
        yield f"**Globals:** {', '.join(settings)}.\n"
    yield "| Metric | Kind | Unit | Labels | |"
    yield "|---|---|---|---|---|"
    for table in plan.tables:
        labels = " ".join(f"`{prometheus_label(label.name)}`" for label in table.labels)
        for metric in table.metrics:
            it = metric.instrument
            unit = f"`{it.unit}`"
            yield f"| `{it.prometheus_name}` | {it.kind.value} | {unit} | {labels} | {it.description} |"
    yield ""
    for stream in plan.streams:
        attributes = " ".join(f"`{label.name}`" for label in stream.attributes)
        state = "on" if stream.enabled else "off unless the configuration turns it on"
        yield f"**Event** `{stream.event_name}`, {state}: {stream.description} Attributes: {attributes}.\n"


def costs(text: str) -> dict[str, list[tuple[str, str]]]:
    """Programs and nanoseconds of each image, from the table "A program" of ``docs/cost.md``."""
    found: dict[str, list[tuple[str, str]]] = {}
    section = text.partition("## A program")[2]
    image = ""
    for row in re.finditer(r"^\| *([\w-]*) *\| *(\w+) *\| *((?:about )?[\d,]+) *\|", section, re.MULTILINE):
        image = row[1] or image
        found.setdefault(image, []).append((row[2], row[3]))
    return found


def generate(catalog: Store) -> str:
    """The whole page."""
    measured = costs(COST.read_text(encoding="utf-8"))
    lines: list[str] = []
    for name in sorted(catalog.names()):
        bundle = catalog.bundle(parse_reference(f"catalog:{name}"), "amd64")
        spec = read_object(bundle.object)
        config = ImageConfig(name=name, ref=f"catalog:{name}")
        plan = make_plan(spec, config=config, version="", metadata=bundle.metadata, possible_cpus=1)
        lines += described(name, spec, plan, measured)
    return HEADER + "\n".join(lines)


def main() -> None:
    """Write the page, or with ``--check`` fail if it would change."""
    build_catalog(SOURCES, BUILT, say=print)
    text = generate(Store(BUILT))
    if "--check" in sys.argv[1:]:
        if text != TARGET.read_text(encoding="utf-8"):
            raise SystemExit(f"{TARGET}: differs from the catalog; run packaging/generate/{Path(__file__).name}")
        return
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
