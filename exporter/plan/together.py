"""Whether the metrics of several images can stand on one page."""

from __future__ import annotations

from collections.abc import Mapping

from exporter.errors import PlanError
from exporter.model import Instrument, Kind, prometheus_label

from .plan import Plan, TablePlan


def check_together(plans: Mapping[str, Plan]) -> dict[str, PlanError]:
    """Find images whose metrics would contradict each other on one page.

    Two images may share a Prometheus name only if kind, unit, help and label names agree and their constant
    labels differ; whoever comes first keeps the name.

    Args:
        plans: By image name, in the order of the configuration.

    Returns:
        For each image that must not run beside the ones before it, why.
    """
    owners: dict[str, list[tuple[str, TablePlan, Instrument]]] = {}
    errors: dict[str, PlanError] = {}
    for image, plan in plans.items():
        claims = [(table, metric.instrument) for table in plan.tables for metric in table.metrics]
        reason = next(filter(None, (_contradiction(image, *claim, owners) for claim in claims)), None)
        if reason:
            errors[image] = PlanError(reason, code="plan.clash")
            continue
        for table, instrument in claims:
            for exposed in exposed_names(instrument.prometheus_name, instrument.kind):
                owners.setdefault(exposed, []).append((image, table, instrument))
    return errors


def _contradiction(
    image: str, table: TablePlan, mine: Instrument, owners: Mapping[str, list[tuple[str, TablePlan, Instrument]]]
) -> str:
    for exposed in exposed_names(mine.prometheus_name, mine.kind):
        for other_image, other_table, other in owners.get(exposed, ()):
            if other.prometheus_name != mine.prometheus_name:
                difference = f"there it belongs to {other.prometheus_name!r}"
            else:
                difference = _difference(table, mine, other_table, other)
            if difference:
                return (
                    f"image {image!r}: metric {exposed!r} is also in image {other_image!r}, and {difference}; "
                    "rename one with metrics.<name>.rename, or give each image other labels"
                )
    return ""


def _difference(table: TablePlan, mine: Instrument, other_table: TablePlan, other: Instrument) -> str:
    comparisons: tuple[tuple[str, object, object], ...] = (
        ("kind", mine.kind.value, other.kind.value),
        ("unit", mine.unit, other.unit),
        ("help", mine.description, other.description),
        ("labels", _label_names(table), _label_names(other_table)),
    )
    for what, here, there in comparisons:
        if here != there:
            return f"its {what} is {here!r} here and {there!r} there"
    if dict(table.constant_labels) == dict(other_table.constant_labels):
        return "no constant label tells them apart"
    return ""


def _label_names(table: TablePlan) -> list[str]:
    names = [rule.name for rule in table.labels] + [name for name, _ in table.constant_labels]
    return sorted(prometheus_label(name) for name in names)


def exposed_names(name: str, kind: Kind) -> tuple[str, ...]:
    """The names under which a metric appears in the Prometheus text."""
    return (name, f"{name}_bucket", f"{name}_sum", f"{name}_count") if kind is Kind.HISTOGRAM else (name,)
