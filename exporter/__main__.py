"""``python -m exporter`` and the entry point ``skep``."""

from __future__ import annotations

import sys

from exporter.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
