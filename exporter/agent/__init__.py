"""The long-running agent: the only place with threads, signals, processes and time.

Knows the stages of the path and introduces them to each other; must not know any format
or layout. It reads as a story in ``agent.py``; an image's life is ``image.py``; one image's
way through the stages is ``program.py``, which ``skep run`` uses too. Names are imported on
first use: ``skep run`` does not carry a server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .agent import Agent, Options

__all__ = ["Agent", "Options"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".agent", __name__), name)
