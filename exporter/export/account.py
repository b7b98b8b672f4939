"""What became of everything a sender was given; light, so that who only reads it carries no protobuf."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

DURATION_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Inclusive upper edges of :attr:`Account.durations`."""

_NONE = (0,) * (len(DURATION_BOUNDS_S) + 1)


@dataclass(frozen=True, slots=True)
class Account:
    """Everything a sender was given, by what became of it; items given = accepted + rejected + failed + pending.

    Attributes:
        accepted: Items the receiver took.
        rejected: Items it refused for good, in part or with their whole request.
        failed: Items given up on: unavailable until the deadline, or stopped.
        pending: Items of requests that have no final answer yet.
        forgotten: Of metrics: series whose end, or last gains, were not told because they were too many.
        requests: Attempts by cause (:attr:`Outcome.cause`, ``"ok"`` for success).
        sent_bytes: Bodies as they were handed over, every attempt; of gRPC before compression.
        durations: Attempts by how long they took, one count for each of :data:`DURATION_BOUNDS_S` and one beyond.
        duration_s: How long they took together.
    """

    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    pending: int = 0
    forgotten: int = 0
    requests: Mapping[str, int] = field(default_factory=dict)
    sent_bytes: int = 0
    durations: tuple[int, ...] = _NONE
    duration_s: float = 0.0

    def attempted(self, cause: str, size: int, took_s: float) -> Account:
        """The same with one more attempt."""
        slot = bisect_left(DURATION_BOUNDS_S, took_s)
        return replace(
            self,
            requests={**self.requests, cause: self.requests.get(cause, 0) + 1},
            sent_bytes=self.sent_bytes + size,
            durations=tuple(count + (index == slot) for index, count in enumerate(self.durations)),
            duration_s=self.duration_s + took_s,
        )

    def __add__(self, other: Account) -> Account:
        """Both together, as of one sender that took the place of another."""
        return Account(
            self.accepted + other.accepted,
            self.rejected + other.rejected,
            self.failed + other.failed,
            self.pending + other.pending,
            self.forgotten + other.forgotten,
            dict(Counter(self.requests) + Counter(other.requests)),
            self.sent_bytes + other.sent_bytes,
            tuple(map(int.__add__, self.durations, other.durations)),
            self.duration_s + other.duration_s,
        )
