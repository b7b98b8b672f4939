"""Boards as Grafana's classic JSON, which file provisioning of Grafana 10 and later reads.

Built with ``grafana-foundation-sdk``, whose types are generated from Grafana's own
schema (version 42). Only :func:`exporter.dashboard.render` imports this module, and only when it is called.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from .board import AGENT, Board, Panel, Shape, select

_LINE_FILL, _AREA_FILL = 8, 40
_DATASOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")

AnyPanel = heatmap.Panel | stat.Panel | table.Panel | timeseries.Panel


def encode(board: Board) -> str:
    """A board as JSON text with a newline at its end; equal boards give equal text."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(list(board.tags))
        .readonly()
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .refresh("1m")
        .time("now-1h", "now")
        .link(
            dashboard.DashboardLink("skep")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([board.tags[0]])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for variable in _variables(board):
        made.with_variable(variable)
    number = 0
    for row in board.rows:
        number += 1
        made.with_row(dashboard.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            made.with_panel(_panel(panel).id(number))
    return json.dumps(made.build(), cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"


def _variables(board: Board) -> Iterator[dashboard.QueryVariable]:
    """Job and instance of the agents, then the board's own; each sees what those before it left."""
    yield _variable("job", "Job", f"label_values({AGENT}, job)", ".+")
    yield _variable("instance", "Instance", f'label_values({AGENT}{{job=~"$job"}}, instance)', ".+")
    for variable in board.variables:
        # A series without the label belongs to "All" too.
        yield _variable(
            variable.label, variable.label, f"label_values({select(variable.metric)}, {variable.label})", ".*"
        )


def _variable(name: str, label: str, query: str, all_value: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(_DATASOURCE)
        .query({"query": query, "refId": f"{name}-values"})
        .definition(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(all_value)
        .current(models.VariableOption(text=["All"], value=["$__all"], selected=True))
    )


def _panel(panel: Panel) -> AnyPanel:
    made = _SHAPES[panel.shape](panel)
    made.title(panel.title).description(panel.description).datasource(_DATASOURCE).unit(panel.unit)
    made.span(panel.width).height(panel.height)
    if panel.maximum is not None:
        made.max(panel.maximum)
    steps = [models.Threshold(value=None, color="green")]
    steps += [models.Threshold(value=value, color=color) for value, color in panel.thresholds]
    made.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    for index, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).ref_id(chr(ord("A") + index)).datasource(_DATASOURCE)
        if panel.shape is Shape.TABLE:
            target.instant().format(PromQueryFormat.TABLE)
        else:
            target.legend_format(query.legend)
            if panel.shape is Shape.STAT:
                target.instant()
            else:
                target.range()
            if panel.shape is Shape.HEATMAP:
                target.format(PromQueryFormat.HEATMAP)
        made.with_target(target)
    return made


def _lines(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .axis_soft_min(0)
        .line_width(1)
        .fill_opacity(_AREA_FILL if panel.shape is Shape.AREAS else _LINE_FILL)
        .show_points(common.VisibilityMode.NEVER)
        .tooltip(
            common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
        .legend(
            common_builders.VizLegendOptions()
            .show_legend(True)
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
        )
    )
    if panel.shape is Shape.AREAS:
        made.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    return made


def _stat(panel: Panel) -> stat.Panel:
    return (
        stat.Panel()
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.VALUE if panel.thresholds else common.BigValueColorMode.NONE)
        .text_mode(
            common.BigValueTextMode.VALUE_AND_NAME
            if len(panel.queries) > 1 or "{{" in panel.queries[0].legend
            else common.BigValueTextMode.VALUE
        )
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _table(panel: Panel) -> table.Panel:
    return (
        table.Panel()
        .filterable(True)
        .with_transformation(
            models.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True} | ({} if "Value" in panel.columns else {"Value": True}),
                    "indexByName": {name: index for index, name in enumerate(panel.columns)},
                    "renameByName": dict(panel.columns),
                },
            )
        )
    )


def _heatmap(panel: Panel) -> heatmap.Panel:
    return (
        heatmap.Panel()
        .calculate(False)
        .cell_gap(1)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .tooltip(heatmap.HeatmapTooltip().mode(common.TooltipDisplayMode.SINGLE).y_histogram(True))
        .show_legend()
    )


_SHAPES: dict[Shape, Callable[[Panel], AnyPanel]] = {
    Shape.LINES: _lines,
    Shape.AREAS: _lines,
    Shape.STAT: _stat,
    Shape.TABLE: _table,
    Shape.HEATMAP: _heatmap,
}
