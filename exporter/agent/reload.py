"""The configuration while the agent runs: when it changed, and whether the last one read was good."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter.config import AgentConfig

CHECK_INTERVAL_S = 30.0
"""How often files are looked at for changed content."""


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """Where the configuration comes from.

    Attributes:
        files: Lists them anew, as some may have come or gone.
        read: Reads and validates all of it; raises ``ConfigError`` or ``Problems``.
        check_interval_s: How often to look for changed content; 0 for never.
    """

    files: Callable[[], Sequence[Path]]
    read: Callable[[], AgentConfig]
    check_interval_s: float = CHECK_INTERVAL_S

    def fingerprint(self) -> str:
        """A digest of the names and contents of all files; an unreadable one is as good as another content."""
        digest = hashlib.sha256()
        try:
            files = self.files()
        except Exception as error:
            return f"unreadable: {error}"
        for file in files:
            digest.update(f"{file}\0".encode())
            try:
                content = file.read_bytes()
            except OSError as error:
                content = f"unreadable: {error.errno}".encode()
            digest.update(f"{len(content)}\0".encode() + content)
        return digest.hexdigest()


class ReloadState:
    """What is told about reloads; the first reading, at the start, was good or there would be no agent."""

    def __init__(self) -> None:
        self.successful = True
        self.success_time_s = time.time()
        self.error = ""

    def succeed(self) -> None:
        """The configuration just read is in effect."""
        self.successful, self.success_time_s, self.error = True, time.time(), ""

    def fail(self, error: str) -> None:
        """The configuration just read changed nothing."""
        self.successful, self.error = False, error


class Watch:
    """Says when the content of the files is another than when it was last looked at."""

    def __init__(self, source: ConfigSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._seen = source.fingerprint()
        self._due_s = clock() + source.check_interval_s

    def look(self) -> None:
        """Take the content as it is now for known; it is about to be read."""
        self._seen = self._source.fingerprint()

    def changed(self) -> bool:
        """Whether it changed; looked at no more often than the interval."""
        if not self._source.check_interval_s or self._clock() < self._due_s:
            return False
        self._due_s = self._clock() + self._source.check_interval_s
        seen = self._source.fingerprint()
        changed, self._seen = seen != self._seen, seen
        return changed

    @property
    def wait_s(self) -> float:
        """How long until it is worth to ask again."""
        return max(0.0, self._due_s - self._clock()) if self._source.check_interval_s else float("inf")
