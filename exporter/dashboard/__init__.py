"""Decides what people look at: the panels, queries and variables that show what an image exports.

Knows plans, PromQL and Grafana's form. Must not know where a plan came from,
nor the machine it runs on: the dashboard of an image is the same everywhere.

:func:`image_board` turns a plan into a :class:`Board`, by rule; :func:`render`
turns a board into Grafana's classic JSON. The committed dashboards and
``skep dashboard`` both come out of these two. Only :func:`render` needs the
package ``grafana-foundation-sdk``, an extra, and imports it when it is called.
"""

import warnings

from exporter.errors import SkepError

from .board import Board, Panel, Query, Row, Shape, Variable
from .image import image_board, image_summary

__all__ = ["Board", "Panel", "Query", "Row", "Shape", "Variable", "image_board", "image_summary", "render"]


def render(board: Board) -> str:
    """A board as JSON text; equal boards give equal text.

    Raises:
        SkepError: ``dashboard.sdk``: the package that writes Grafana's form is not installed.
    """
    try:
        # The package would rather write Grafana's second model, which Grafana 10 and 11 cannot read.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Prefer using dashboardv2", DeprecationWarning)
            from .grafana import encode  # noqa: PLC0415 - imports the extra
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("grafana_foundation_sdk"):
            raise
        raise SkepError(
            "Python package 'grafana-foundation-sdk' is not installed; dashboards are written with it: "
            "pip install 'skep[dashboards]'",
            code="dashboard.sdk",
        ) from error
    return encode(board)
