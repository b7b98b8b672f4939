"""A stream's switch: the global by which a program learns whether its records are wanted."""

from __future__ import annotations

import pytest

from exporter.config import EventConfig
from exporter.plan import Plan
from tests.support.plans import plan_of, problems_of

SOURCE = """
const volatile bool wanted = 0; const volatile u32 level; volatile bool moving;
RING(print_exits, u64) TAG("switch=%s");
RING(print_starts, u64) TAG("switch=%s") TAG("enabled=false");
"""
PROGRAM = """
SEC("raw_tp/x") int on_x(void *context) { return wanted + level + moving; }
char LICENSE[] SEC("license") = "GPL";
"""


def planned(**config: object) -> Plan:
    """The plan with one switch for both streams, of which one is off by default."""
    return plan_of(SOURCE % ("wanted", "wanted"), program=PROGRAM, **config)


def switched(plan: Plan) -> dict[str, bytes]:
    """Globals that are written before load."""
    return {entry.name: entry.value for entry in plan.globals}


@pytest.mark.parametrize(
    ("events", "value"),
    [
        ({}, 1),
        ({"ebpf.exits": EventConfig(enabled=False)}, 0),
        ({"ebpf.exits": EventConfig(enabled=False), "ebpf.starts": EventConfig(enabled=True)}, 1),
        ({"ebpf.starts": EventConfig(enabled=True)}, 1),
    ],
)
def test_switch_is_on_where_any_of_its_streams_is(events: dict[str, EventConfig], value: int) -> None:
    """The image's default counts where the configuration says nothing."""
    plan = planned(events=events)
    assert switched(plan) == {"wanted": bytes([value])}
    assert [stream.switch for stream in plan.streams] == ["wanted", "wanted"]


def test_global_that_says_the_same_is_let_through() -> None:
    """It is superfluous, and not wrong."""
    assert switched(planned(globals={"wanted": True})) == {"wanted": b"\x01"}


@pytest.mark.parametrize("said", [False, 1, "on"])
def test_global_that_contradicts_the_switch_is_an_error(said: object) -> None:
    """One of the two would not get what it says."""
    [text] = problems_of(SOURCE % ("wanted", "wanted"), program=PROGRAM, globals={"wanted": said})
    assert text.startswith(f"image 'image': globals.wanted is {str(said).lower() if said is False else repr(said)}, ")
    assert text.endswith(
        "switches ebpf.exits, ebpf.starts, which is on; leave it out and say events.ebpf.exits.enabled"
    )


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nothing", "which is no `const volatile` global; the object has wanted, level"),
        ("moving", "which is no `const volatile` global; the object has wanted, level"),
        ("level", "of type unsigned int; expected bool"),
    ],
)
def test_switch_that_cannot_be_set_is_an_error(name: str, found: str) -> None:
    """Told with the map that names it."""
    [text] = problems_of(SOURCE % (name, "wanted"), program=PROGRAM)
    assert text.startswith(f"map 'print_exits': switch is {name!r}")
    assert text.endswith(found)


def test_metadata_may_name_the_switch() -> None:
    """For objects without tags."""
    plan = plan_of(
        SOURCE.replace(' TAG("switch=%s")', ""),
        program=PROGRAM,
        metadata={"version": 1, "events": {"print_exits": {"switch": "wanted"}}},
    )
    assert switched(plan) == {"wanted": b"\x01"}
