"""Maps whose object leaves their size to a user space that is not there: what they get, and who is told."""

from __future__ import annotations

import pytest

from exporter.config import MapConfig
from exporter.plan import MapPlan
from tests.support.plans import plan_of, problems_of


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ("MAP(counter_x, HASH, 0, u32, u64);", MapPlan("counter_x", max_entries=10240)),
        ("MAP(x, 10, 0, u32, u64);", MapPlan("x", max_entries=10240)),
        ("MAP(x, PERCPU_ARRAY, 0, u32, u64);", MapPlan("x", max_entries=10240)),
        ("MAP(x, 16, 0, u32, u32);", MapPlan("x", max_entries=2)),
        ("struct { __uint(type, RINGBUF); } x SEC(\".maps\");", MapPlan("x", max_entries=1 << 18)),
        ("struct { __uint(type, STACK_TRACE); __type(key, u32); } x SEC(\".maps\");",
         MapPlan("x", max_entries=1024, value_size=127 * 8)),
        ("struct { __uint(type, STACK_TRACE); __type(key, u32); __uint(max_entries, 9); __uint(map_flags, 32); } "
         "x SEC(\".maps\");", MapPlan("x", value_size=127 * 32)),
    ],
)  # fmt: skip
def test_size_that_the_object_leaves_open_is_taken_by_default_and_told(source: str, made: MapPlan) -> None:
    """Tools with a user space of their own set it there, between opening and loading."""
    plan = plan_of(source, cpus=2)
    assert plan.maps == (made,)
    assert any(note.startswith(f"map {made.name!r}: its object leaves") for note in plan.notes)


@pytest.mark.parametrize(
    "source",
    [
        "MAP(x, PERF_EVENT_ARRAY, 0, u32, u32);",
        'struct { __uint(type, 29); __uint(map_flags, 1); __type(key, int); __type(value, u64); } x SEC(".maps");',
    ],
)
def test_size_that_is_open_by_right_stays_so(source: str) -> None:
    """The library counts the CPUs itself; local storage grows with what it is about."""
    plan = plan_of(source)
    assert plan.maps == () and not any("leaves" in note for note in plan.notes)


def test_configured_size_wins_over_the_default_and_needs_no_note() -> None:
    """Whoever said it knows."""
    plan = plan_of("MAP(counter_x, HASH, 0, u32, u64);", maps={"counter_x": MapConfig(max_entries=5)})
    assert plan.maps == (MapPlan("counter_x", max_entries=5),)
    assert not any("leaves" in note for note in plan.notes)


def test_size_taken_by_default_counts_towards_the_limit() -> None:
    """An open size is no way around limits.map_memory."""
    wide = "struct value { u64 a[2000]; }; struct { __uint(type, HASH); __type(key, u32); "
    (found,) = problems_of(wide + '__type(value, struct value); } x SEC(".maps");')
    assert "'x' 157.1 MiB" in found and "limits.map_memory is 64.0 MiB" in found, found
