"""``skep cleanup``: what a program that was killed left in the kernel goes."""

from __future__ import annotations

import argparse


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "cleanup",
        help="remove traffic-control filters that a killed skep left behind",
        description="Before Linux 6.6 a program on traffic control is a filter that stays when its maker is killed. "
        "Remove those of ours that nobody holds any more, in this network namespace; what runs, and what others made, "
        "is not touched. The agent does it by itself when it starts. Needs CAP_NET_ADMIN.",
    )
    parser.set_defaults(run=_cleanup)


def _cleanup(_args: argparse.Namespace) -> int:
    from exporter.kernel import sweep

    for left in sweep():
        print(f"removed filter {left.name!r} from {left.direction} of interface {left.ifindex}")
    return 0
