"""The agent's threads: started by name, started again after a bug, and watched for progress.

A part that does nothing because there is nothing to do makes progress; each says by
itself for how long it has been at one thing, and how long that may be.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import log

_RESTART_PAUSE_S = 1.0

Task = Callable[[threading.Event], None]


@contextlib.contextmanager
def set_after(seconds: float) -> Iterator[threading.Event]:
    """An event that is set when so much time has passed: a ``stop`` for what must end in time."""
    late = threading.Event()
    timer = threading.Timer(max(0.0, seconds), late.set)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


@dataclass(slots=True)
class _Part:
    thread: threading.Thread
    stop: threading.Event
    busy_s: Callable[[], float]
    limit_s: float


class Parts:
    """Threads by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[str, _Part] = {}

    def spawn(
        self,
        name: str,
        task: Task,
        stop: threading.Event,
        *,
        busy_s: Callable[[], float] = lambda: 0.0,
        limit_s: float = 60.0,
    ) -> None:
        """Run a task in a thread of its own until ``stop`` is set.

        Args:
            name: Of the part; another of this name must have ended.
            task: Called with ``stop``; when it fails by a bug it is called again.
            stop: Ends it.
            busy_s: For how long it has been at one thing.
            limit_s: How long that may be.
        """

        def guarded() -> None:
            while not stop.is_set():
                try:
                    task(stop)
                    return
                except Exception:  # a bug in one part must not end the others
                    log.bug("a part of the agent failed and is started again", part=name)
                    stop.wait(_RESTART_PAUSE_S)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        with self._lock:
            self._parts[name] = _Part(thread, stop, busy_s, limit_s)
        thread.start()

    def join(self, name: str, timeout_s: float) -> bool:
        """Wait for a part to end, at most so long; whether it did, or never was."""
        with self._lock:
            part = self._parts.get(name)
        if part is None:
            return True
        part.thread.join(max(0.0, timeout_s))
        return not part.thread.is_alive()

    def names(self) -> list[str]:
        """Parts that were started, in that order."""
        with self._lock:
            return list(self._parts)

    def stuck(self) -> list[str]:
        """Parts that ended though nobody told them to, or are at one thing for longer than they may."""
        with self._lock:
            parts = dict(self._parts)
        return [
            name
            for name, part in parts.items()
            if not part.stop.is_set() and (not part.thread.is_alive() or part.busy_s() > part.limit_s)
        ]
