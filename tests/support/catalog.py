"""The shipped catalog as a test wants it: its own copy, of the sources as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

from exporter.cli.build import build_catalog
from exporter.image import Store

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "configs" / "catalog"
BUILT = ROOT / "build" / "catalog"


def built_catalog(directory: Path) -> Store:
    """A layout of the catalog in the directory; clang runs only if a source is newer than what ``make`` built."""
    layout = directory / "catalog"
    if BUILT.is_dir():
        shutil.copytree(BUILT, layout)
    build_catalog(SOURCES, layout, say=lambda _: None)
    return Store(layout)
