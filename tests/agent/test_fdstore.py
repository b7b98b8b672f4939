"""Programs that count on while the agent is away, their descriptors in the service manager's store."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.systemd import ServiceManager

from .harness import Agent, Page, gone_from_kernel, in_kernel, running_agent
from .objects import GETPGID, counting, make_calls, write

PID = os.getpid()

pytestmark = pytest.mark.skipif(shutil.which("bpftool") is None, reason="needs bpftool")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    """A service manager that keeps 512 descriptors."""
    with ServiceManager(tmp_path / "notify") as made:
        yield made


def config(directory: Path, *, lines: bool = False, **more: object) -> str:
    """One image that counts this process's calls, its events in a file if wanted."""
    path = write(directory, "calls", counting("calls"))
    image = json.dumps({"ref": str(path), "globals": {"tgid": PID}, **more})
    return f"images: [{image}]\n" + ("events: {json: {path: events.jsonl}}\n" if lines else "")


def calls(page: Page) -> float:
    """What the object counted."""
    return page.sum("ebpf_calls_total")


def numbers(directory: Path) -> list[int]:
    """The number of each event that was written, in order."""
    lines = (directory / "events.jsonl").read_text().splitlines()
    return [json.loads(line)["attributes"]["number"] for line in lines]


@pytest.mark.parametrize("end", [Agent.kill, Agent.stop], ids=["kill -9", "SIGTERM"])
def test_counts_and_events_go_on_while_the_agent_is_away(
    tmp_path: Path, manager: ServiceManager, end: Callable[[Agent], object]
) -> None:
    """What happened meanwhile is counted, each event comes once, and the counter's start stays what it was."""
    text = config(tmp_path, lines=True)
    with running_agent(tmp_path, text, manager=manager) as agent:
        agent.wait_states(calls="running")
        make_calls(100)
        agent.wait(lambda page: page.sum("skep_events_exported_total") == 100)
        assert calls(agent.scrape()) == 100
        since = agent.status()["images"][0]["counting_since"]
        mine = agent.programs()
        manager.wait(lambda manager: any(name.endswith(".view") for name in manager.stored))
        end(agent)
    assert len(mine) == 1
    assert in_kernel(mine) == mine
    make_calls(51)
    with running_agent(tmp_path, text, manager=manager) as agent:
        agent.wait_states(calls="running")
        assert agent.lines("programs went on while the agent was away", image="calls")
        assert agent.programs() == mine
        page = agent.wait(lambda page: page.sum("skep_events_exported_total") == 51)
        assert calls(page) == 151
        make_calls(9)
        page = agent.wait(lambda page: page.sum("skep_events_exported_total") == 60)
        assert calls(page) == 160
        assert agent.status()["images"][0]["counting_since"] == since
        assert agent.status()["images"][0]["kept_over_restart"] is True
        agent.stop()
    assert numbers(tmp_path) == list(range(1, 161))
    assert manager.watched == []
    manager.empty()
    assert gone_from_kernel(mine)


def test_third_agent_takes_back_what_the_second_did(tmp_path: Path, manager: ServiceManager) -> None:
    """Nothing is stored twice or forgotten on the way."""
    text = config(tmp_path)
    kept: list[list[str]] = []
    for round_number in range(3):
        with running_agent(tmp_path, text, manager=manager) as agent:
            agent.wait_states(calls="running")
            make_calls(10)
            agent.wait(lambda page, now=round_number: calls(page) == 10 * (now + 1))  # type: ignore[misc]
            kept.append(sorted(manager.stored))
            agent.kill()
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize("tells_limit", [True, False], ids=["no room", "not told of"])
def test_without_a_store_sigterm_leaves_no_program(tmp_path: Path, tells_limit: bool) -> None:
    """A manager whose store is too small, or that has none, leaves nothing behind in the kernel."""
    with (
        ServiceManager(tmp_path / "notify", limit=2, tells_limit=tells_limit) as manager,
        running_agent(tmp_path, config(tmp_path), manager=manager) as agent,
    ):
        agent.wait_states(calls="running")
        mine = agent.programs()
        assert mine
        if tells_limit:
            [warning] = agent.lines("programs will not outlive a restart of the agent")
            assert "raise FileDescriptorStoreMax=" in str(warning["reason"])
        assert manager.heard("FDSTORE=1") == 0
        assert agent.status()["images"][0]["kept_over_restart"] is False
        agent.stop()
        assert gone_from_kernel(mine)


def test_other_plan_or_object_begins_anew(tmp_path: Path, manager: ServiceManager) -> None:
    """What was kept of another configuration or object is let go of: it would mean something else."""
    with running_agent(tmp_path, config(tmp_path), manager=manager) as agent:
        agent.wait_states(calls="running")
        make_calls(5)
        agent.wait(lambda page: calls(page) == 5)
        first = agent.programs()
        agent.kill()
    with running_agent(tmp_path, config(tmp_path, labels={"tier": "db"}), manager=manager) as agent:
        agent.wait_states(calls="running")
        assert gone_from_kernel(first)
        [line] = agent.lines("kept programs are let go of", image="calls")
        assert line["reason"] == "it is planned otherwise"
        make_calls(3)
        page = agent.wait(lambda page: calls(page) == 3)
        assert page.sum("ebpf_calls_total", tier="db") == 3
        keys = {name.split(".")[1] for name in manager.stored}
        assert len(keys) == 1
        agent.kill()
    text = config(tmp_path, labels={"tier": "db"})
    write(tmp_path, "calls", counting("calls", "\nconst volatile u32 another = 1;\n"))
    with running_agent(tmp_path, text, manager=manager) as agent:
        agent.wait_states(calls="running")
        [line] = agent.lines("kept programs are let go of", image="calls")
        assert line["reason"] == "it is another object"
        assert calls(agent.scrape()) == 0


def test_image_that_is_not_configured_any_more_is_let_go_of(tmp_path: Path, manager: ServiceManager) -> None:
    """Its programs end when the agent starts without it."""
    with running_agent(tmp_path, config(tmp_path), manager=manager) as agent:
        agent.wait_states(calls="running")
        mine = agent.programs()
        agent.kill()
    with running_agent(tmp_path, "images: []\n", manager=manager):
        assert gone_from_kernel(mine)
        manager.wait(lambda manager: manager.stored == [])


@pytest.mark.parametrize("lost", [".m0", ".p0", ".l0", ".view"])
def test_incomplete_store_begins_anew(tmp_path: Path, manager: ServiceManager, lost: str) -> None:
    """A descriptor that is missing makes the rest worthless; nothing of it stays."""
    with running_agent(tmp_path, config(tmp_path), manager=manager) as agent:
        agent.wait_states(calls="running")
        make_calls(5)
        first = agent.programs()
        agent.kill()
    manager.lose(lost)
    with running_agent(tmp_path, config(tmp_path), manager=manager) as agent:
        agent.wait_states(calls="running")
        assert gone_from_kernel(first)
        make_calls(2)
        agent.wait(lambda page: calls(page) == 2)
        assert len({name.split(".")[1] for name in manager.stored}) == 1


EVERY_KIND = """
SEC("tracepoint/syscalls/sys_enter_getpgid") int on_tracepoint(void *context) { return count(GETPGID); }
SEC("tp_btf/sys_enter") int on_btf(u64 *context) { return 0; }
SEC("perf_event/type=software,config=cpu-clock,frequency=50") int on_sample(void *context) { return 0; }
""".replace("GETPGID", str(GETPGID))


def test_every_kind_of_link_is_taken_back(tmp_path: Path, manager: ServiceManager) -> None:
    """Tracepoints and samples are perf events below, the latter one for each CPU."""
    path = write(tmp_path, "calls", counting("calls", EVERY_KIND))
    text = f"images: [{json.dumps({'ref': str(path), 'globals': {'tgid': PID}})}]"
    with running_agent(tmp_path, text, manager=manager) as agent:
        agent.wait_states(calls="running")
        make_calls(10)
        agent.wait(lambda page: calls(page) == 20)
        mine = agent.programs()
        assert len(mine) == 4
        agent.kill()
    assert max(manager.stored.count(name) for name in manager.stored) == os.cpu_count()
    make_calls(10)
    with running_agent(tmp_path, text, manager=manager) as agent:
        agent.wait_states(calls="running")
        assert agent.programs() == mine
        agent.wait(lambda page: calls(page) == 40)
        agent.kill()
    assert in_kernel(mine) == mine
    manager.empty()
    assert gone_from_kernel(mine)
