"""``skep version``: of skep and of what it stands on."""

from __future__ import annotations

import argparse
import platform


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``version``."""
    parser = subparsers.add_parser(
        "version",
        help="show the versions of skep, libbpf, the kernel and Python",
        description="Show the versions of skep, libbpf, the kernel and Python, one a line.",
    )
    parser.set_defaults(run=lambda _args: show())


def show() -> int:
    """Print the versions; gives the exit status."""
    from exporter.kernel import libbpf_version
    from exporter.resources import version

    print(f"skep    {version()}")
    print(f"libbpf  {libbpf_version()}")
    print(f"kernel  {platform.release()} {platform.machine()}")
    print(f"python  {platform.python_version()}")
    return 0
