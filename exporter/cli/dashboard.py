"""``skep dashboard``: a Grafana dashboard for any image, from its plan."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from exporter.errors import SkepError

from .plan import Subparsers, add_plan_arguments, planned


def register(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "dashboard",
        help="make a Grafana dashboard for an image",
        description="Write the dashboard of an image as Grafana's JSON, ready for file provisioning or import: every "
        "metric and event it exports, under the names it exports them by. Loads nothing and needs no privilege; an "
        "image that is not in the store is pulled.",
    )
    add_plan_arguments(parser)
    parser.add_argument(
        "--output", "-o", metavar="FILE", type=Path, help="where to write it (default: standard output)"
    )
    parser.set_defaults(run=_dashboard)


def _dashboard(args: argparse.Namespace) -> int:
    from exporter.dashboard import image_board, render

    plan = planned(args)
    if not plan.tables and not plan.streams:
        notes = "; ".join(plan.notes) or "it has no maps that are metrics or events"
        raise SkepError(f"image {plan.scope.name!r} exports nothing, so there is nothing to show: {notes}")
    text = render(image_board(plan))
    if args.output is None:
        sys.stdout.write(text)
        return 0
    try:
        args.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SkepError(
            f"cannot write {str(args.output)!r}: {error.strerror}; name a file that may be written"
        ) from error
    return 0
