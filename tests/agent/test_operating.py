"""What an operator sees of a running agent: ``skep status``, what systemd is told, the journal's priorities."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.systemd import ServiceManager
from tests.support.threads import stopped_thread

from .harness import ROOT, running_agent, skep
from .objects import MISSING_TRACEPOINT, counting, make_calls, write

PID = os.getpid()


def image(directory: Path, name: str = "calls", extra: str = "", **more: object) -> str:
    """One image of the configuration that counts this process's calls."""
    path = write(directory, name, counting("calls", extra))
    return json.dumps({"ref": str(path), "globals": {"tgid": PID}, **more})


def test_status_tells_how_the_images_are(tmp_path: Path) -> None:
    """States, reasons, programs, events and maps, as they are now."""
    broken = write(tmp_path, "broken", b"no object")
    images = f"images: [{image(tmp_path, extra=MISSING_TRACEPOINT)}, {{ref: {broken}}}]"
    with running_agent(tmp_path, images) as agent:
        agent.wait_states(calls="degraded", broken="failed")
        make_calls(30)
        agent.wait(lambda page: page.sum("skep_events_received_total") == 30)
        shown = agent.status()
        by_name = {one["name"]: one for one in shown["images"]}
        assert (by_name["calls"]["state"], by_name["broken"]["state"]) == ("degraded", "failed")
        programs = {one["name"]: (one["attached"], one["error"]) for one in by_name["calls"]["programs"]}
        assert programs["on_enter"] == (True, "")
        assert "sys_enter_nothing_like_it" in programs["on_nothing"][1]
        [stream] = by_name["calls"]["streams"]
        assert (stream["received"], stream["dropped"]) == (30, {"no_receiver": 30})
        assert stream["received_per_s"] > 0
        assert {"name": "counter_calls", "entries": 2, "max_entries": 16} in by_name["calls"]["maps"]
        assert by_name["broken"]["retry_in_s"] is not None
        assert (shown["stuck"], shown["reload_successful"], shown["pid"]) == ([], True, agent.process.pid)
        page = skep("status", f"--status.socket={tmp_path / 'agent.sock'}")
        assert page.returncode == 3
        assert "broken: " in page.stdout
    gone = skep("status", f"--status.socket={tmp_path / 'agent.sock'}")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr.startswith("skep: no agent listens at ")


def test_second_agent_leaves_the_first_its_socket(tmp_path: Path) -> None:
    """It serves its metrics, says that it cannot be asked, and the first still can."""
    with running_agent(tmp_path / "one", f"images: [{image(tmp_path)}]") as first:
        first.wait_states(calls="running")
        shared = f"--status.socket={first.directory / 'agent.sock'}"
        with running_agent(tmp_path / "two", "images: []", shared) as second:
            second.scrape()
            [line] = second.lines("skep status cannot be answered")
            assert "another agent listens there" in str(line["reason"])
        assert first.status()["pid"] == first.process.pid


@pytest.fixture
def silent_registry() -> Iterator[tuple[int, socket.socket]]:
    """A registry that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1], server


def test_manager_is_asked_for_patience_while_an_image_is_pulled(
    tmp_path: Path, silent_registry: tuple[int, socket.socket]
) -> None:
    """READY comes when every image was tried once; until then more time is asked for, and metrics are served."""
    port, server = silent_registry
    with ServiceManager(tmp_path / "notify") as manager:
        images = f"images: [{image(tmp_path)}, {{ref: '127.0.0.1:{port}/disk:1'}}]"
        with running_agent(tmp_path, images, manager=manager) as agent:
            agent.wait_states(calls="running", disk="pulling")
            manager.wait(lambda manager: manager.heard("EXTEND_TIMEOUT_USEC=") >= 2)
            assert manager.heard("STATUS=pulling 2 of 2 images") >= 1
            assert manager.heard("READY=1") == 0
            server.close()
            # The connection that hangs in the queue is reset with its server.
            manager.wait(lambda manager: manager.heard("READY=1") == 1, 60)
            asked = manager.heard("EXTEND_TIMEOUT_USEC=")
            agent.wait_states(calls="running", disk="failed")
            assert manager.heard("STATUS=1 of 2 images run; disk is failed: ") >= 1
            assert manager.heard("EXTEND_TIMEOUT_USEC=") == asked


def test_watchdog_hears_nothing_while_one_thread_is_stuck(tmp_path: Path) -> None:
    """The others go on meanwhile: the log and skep status name it; when it moves again all is well again."""
    # Which thread is the reader: it alone waits in epoll with a limit, and is stopped there as a debugger would.
    (tmp_path / "sitecustomize.py").write_text("import exporter.agent.agent as a\na._STUCK_AFTER_S = 2.0\n")
    environment = {"WATCHDOG_USEC": "300000", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with (
        ServiceManager(tmp_path / "notify") as manager,
        running_agent(tmp_path, f"images: [{image(tmp_path)}]", environment=environment, manager=manager) as agent,
    ):
        agent.wait_states(calls="running")
        manager.wait(lambda manager: manager.heard("WATCHDOG=1") >= 3)
        with stopped_thread(agent.process.pid, lambda call: len(call) > 4 and call[4] == "0x1f4"):
            agent.wait(lambda _: agent.lines("parts of the agent do not move", parts="events"))
            heard = manager.heard("WATCHDOG=1")
            time.sleep(1)
            assert manager.heard("WATCHDOG=1") == heard
            assert agent.status()["stuck"] == ["events"]
        manager.wait(lambda manager: manager.heard("WATCHDOG=1") > heard)
        assert agent.status()["stuck"] == []
        make_calls(5)
        agent.wait(lambda page: page.sum("skep_events_received_total") == 5)


def test_end_comes_within_its_deadline(tmp_path: Path, silent_registry: tuple[int, socket.socket]) -> None:
    """Whatever hangs: a registry, and a receiver of metrics and events that never answers."""
    port, _ = silent_registry
    config = (
        f"images: [{image(tmp_path)}, {{ref: '127.0.0.1:{port}/disk:1'}}]\n"
        f"otlp: {{endpoint: 'http://127.0.0.1:{port}', metrics: {{interval: 1s}}}}\n"
    )
    with running_agent(tmp_path, config) as agent:
        agent.wait_states(calls="running")
        make_calls(11)
        agent.wait(lambda page: page.sum("skep_events_queued") == 11)
        time.sleep(1.5)
        began_s = time.monotonic()
        assert agent.stop() == 0
        assert time.monotonic() - began_s < 12
        assert agent.lines("events dropped at the end")[0]["records"] == 11


VETH = ("skeptest0", "skeptest1")
XDP = """
SEC("xdp") int on_packet(void *context)
{
    struct calls_key key = { 7 };
    u64 first = 1;
    u64 *cell = bpf_map_lookup_elem(&counter_calls, &key);
    if (cell)
        __sync_fetch_and_add(cell, 1);
    else
        bpf_map_update_elem(&counter_calls, &key, &first, 0);
    return 2;
}
"""


@pytest.fixture
def wire() -> Iterator[socket.socket]:
    """What is sent here arrives at the first interface of a pair."""
    made = subprocess.run(
        ["ip", "link", "add", VETH[0], "type", "veth", "peer", "name", VETH[1]], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("needs virtual Ethernet interfaces (CONFIG_VETH)")
    try:
        for name in VETH:
            with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind((VETH[1], 0))
            yield sender
    finally:
        subprocess.run(["ip", "link", "del", VETH[0]], check=True)


def test_hook_that_takes_one_program_is_handed_over(tmp_path: Path, wire: socket.socket) -> None:
    """The older XDP program goes first; when the newer cannot come it is put back; the counts go on either way."""

    def send(count: int) -> None:
        for _ in range(count):
            wire.send(b"\xff" * 6 + b"\x02" + bytes(5) + b"\x88\xb5" + bytes(50))

    def entry(name: str, content: bytes) -> str:
        path = write(tmp_path, name, content)
        attach = {"on_packet": {"interfaces": [VETH[0]]}}
        return json.dumps({"name": "packets", "ref": str(path), "attach": attach, "partial": "refuse"})

    def reload(config: str) -> None:
        (tmp_path / "agent.yaml").write_text(f"store: {{path: store}}\n{config}")
        agent.process.send_signal(signal.SIGHUP)

    first = f"images: [{entry('first', counting('calls', XDP))}]"
    with running_agent(tmp_path, first) as agent:
        agent.wait_states(packets="running")
        before = agent.scrape().sum("ebpf_calls_total", parity="7")  # the interface's own first words
        send(10)
        agent.wait(lambda page: page.sum("ebpf_calls_total", parity="7") == before + 10)
        reload(f"images: [{entry('second', counting('calls', XDP + 'const volatile u32 another = 1;'))}]")
        agent.wait(lambda _: len(agent.lines("image switched to another version")) == 1)
        agent.wait_states(packets="running")
        send(5)
        agent.wait(lambda page: page.sum("ebpf_calls_total", parity="7") == before + 15)
        reload(f"images: [{entry('third', counting('calls', XDP + MISSING_TRACEPOINT))}]")
        agent.wait_states(packets="stale")
        send(5)
        page = agent.wait(lambda page: page.sum("ebpf_calls_total", parity="7") == before + 20)
        # Twice the older went first: to the second version, and back to it from what could not attach.
        assert page.all("skep_image_upgrades_total") == [2]
        assert page.all("skep_image_upgrade_overlap_seconds_total") == [0]
        assert 0 < page.sum("skep_image_upgrade_gap_seconds_total") < 10
        assert "sys_enter_nothing_like_it" in agent.status()["images"][0]["reason"]
