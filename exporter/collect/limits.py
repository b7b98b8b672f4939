"""What one image may use of the agent: live series, and events per second."""

from __future__ import annotations

from dataclasses import dataclass, field

from exporter.collect import _frame


class SeriesBudget:
    """Shared by the frames of one image; counts live label sets times instruments.

    A label set that does not fit is folded into its frame's overflow series, which
    is not counted. Frames take and give atomically, so they may have different owners.
    """

    def __init__(self, limit: int) -> None:
        self.native = _frame.Budget(max(limit, 0))

    @property
    def limit(self) -> int:
        """Label sets times instruments that may be live."""
        return self.native.limit

    @property
    def used(self) -> int:
        """Label sets times instruments that are live."""
        return self.native.used


@dataclass(slots=True)
class TokenBucket:
    """The meaning of ``events_per_s``; ``records.c`` has the one that runs.

    It holds at most one second's worth of events and starts full. A clock that
    steps back refills nothing.
    """

    rate_per_s: int
    tokens: int = field(init=False)
    filled_ns: int = 0

    def __post_init__(self) -> None:
        self.tokens = self.rate_per_s * 1_000_000_000

    def refill(self, now_ns: int) -> None:
        """Let time pass."""
        elapsed_ns = min(max(now_ns - self.filled_ns, 0), 1_000_000_000)
        self.filled_ns = now_ns
        self.tokens = min(self.tokens + elapsed_ns * self.rate_per_s, self.rate_per_s * 1_000_000_000)

    def take(self) -> bool:
        """Whether one more event may pass."""
        if self.tokens < 1_000_000_000:
            return False
        self.tokens -= 1_000_000_000
        return True
