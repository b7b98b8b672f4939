"""The programs in ``packaging/generate``, which are no package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

DIRECTORY = Path(__file__).resolve().parents[2] / "packaging" / "generate"


def load_generator(name: str) -> ModuleType:
    """``packaging/generate/NAME.py``, imported as if it were run from its directory."""
    spec = importlib.util.spec_from_file_location(f"generate_{name}", DIRECTORY / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(DIRECTORY))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(DIRECTORY))
    return module
