"""What ``skep status`` shows, and the socket it asks."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter.agent.parts import Parts
from exporter.agent.status import Document, Rates, StatusServer
from exporter.agent.telemetry import StreamCounts
from exporter.cli import main
from exporter.cli.status import ask
from exporter.errors import ExportError
from exporter.kernel import ProgramUsage


def document(**changes: object) -> Document:
    """An agent with one image that runs and one that failed."""
    running = {
        "name": "dns", "ref": "registry.example/dns:1.4", "digest": "sha256:" + "ab" * 32, "version": "1.4",
        "format": "bumblebee", "state": "running", "reason": "", "since": 1e9, "counting_since": 1e9,
        "retry_in_s": None, "required": True, "series": 7, "series_limit": 100, "kept_over_restart": True,
        "programs": [{"name": "on_packet", "id": 4, "attached": True, "error": "", "passed_over": "",
                      "runs_per_s": 1700.0, "cpu_ratio": 0.0012},
                     {"name": "on_call", "id": 0, "attached": False, "error": "no such function", "passed_over": "",
                      "runs_per_s": None, "cpu_ratio": None}],
        "streams": [{"name": "dns.query", "enabled": True, "received": 15, "exported": 1, "failed": 2, "queued": 4,
                     "dropped": {"rate": 8, "sample": 100, "disabled": 7, "no_receiver": 6}, "received_per_s": 1.25,
                     "ring_lost": 5, "ring_fill_max": 0.25}],
        "maps": [{"name": "queries", "entries": 5, "max_entries": 1024}],
    }  # fmt: skip
    failed = running | {
        "name": "disk", "state": "failed", "reason": "registry is down", "digest": "", "version": "", "programs": [],
        "streams": [], "maps": [], "retry_in_s": 61.0, "counting_since": 0.0, "kept_over_restart": False,
    }  # fmt: skip
    whole: dict[str, Any] = {
        "version": 1, "skep": "0.1.0", "pid": 9, "started": 1e9, "ready": True, "listening": ["port 1"],
        "reload_successful": True, "reload_success_time": 1e9, "reload_error": "", "stuck": [],
        "otlp": {"logs": {"accepted": 3, "failed": 0}}, "lines": {"written": 4, "dropped": 0},
        "images": [running, failed],
    }  # fmt: skip
    return whole | changes  # type: ignore[return-value]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """The socket of an agent that answers."""
    stop = threading.Event()
    server = StatusServer(tmp_path / "run" / "agent.sock", document)
    thread = threading.Thread(target=server.run, args=(stop,))
    thread.start()
    yield tmp_path / "run" / "agent.sock"
    stop.set()
    server.wake()
    thread.join()
    server.close()
    assert not (tmp_path / "run" / "agent.sock").exists()


def test_socket_is_for_owner_and_group(path: Path) -> None:
    """And gives each who connects the whole document."""
    assert path.stat().st_mode & 0o777 == 0o660
    assert ask(path) == ask(path) == document()


def test_client_that_does_not_read_holds_nobody_up(path: Path) -> None:
    """Nor does one that says something."""
    with contextlib.ExitStack() as idle:
        for number in range(20):
            one = idle.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(str(path))
            with contextlib.suppress(OSError):  # it was answered already
                one.sendall(b"GET / HTTP/1.1\r\n\r\n" * number)
        assert ask(path) == document()


def test_answer_that_never_comes_is_seen(tmp_path: Path) -> None:
    """For the watchdog."""
    begun, go_on, stop = threading.Event(), threading.Event(), threading.Event()

    def slow() -> Document:
        begun.set()
        assert go_on.wait(10)
        return document()

    server = StatusServer(tmp_path / "s", slow)
    thread = threading.Thread(target=server.run, args=(stop,))
    thread.start()
    assert server.busy_s() == 0
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        assert begun.wait(5)
        time.sleep(0.3)
        assert 0.3 <= server.busy_s() < 5
        go_on.set()
        while client.recv(1 << 16):
            pass
    stop.set()
    server.wake()
    thread.join()
    assert server.busy_s() == 0
    server.close()


def test_socket_of_a_living_agent_is_not_taken(path: Path) -> None:
    """The second one says so and goes on without."""
    with pytest.raises(ExportError, match=r"another agent listens there; choose another with --status\.socket"):
        StatusServer(path, document)
    assert ask(path) == document()


def test_socket_of_a_dead_agent_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    """A file that is no socket is somebody's."""
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    StatusServer(path, document).close()
    path.write_text("mine")
    with pytest.raises(ExportError, match="something that is no socket is there"):
        StatusServer(path, document)
    assert path.read_text() == "mine"


def test_socket_taken_over_by_a_later_agent_stays(tmp_path: Path) -> None:
    """The earlier one removes only its own."""
    path = tmp_path / "agent.sock"
    first = StatusServer(path, document)
    path.unlink()
    second = StatusServer(path, document)
    first.close()
    assert path.exists()
    second.close()


def run(path: Path, *arguments: str) -> int:
    """``skep status``."""
    return main(["status", f"--status.socket={path}", *arguments])


def test_page_has_a_line_for_each_image(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what is wrong below; status 3, as one does not run."""
    assert run(path) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("skep 0.1.0, process 9, up ")
    assert lines[0].endswith(", ready; 1 of 2 images run")
    assert lines[1:3] == ["otlp logs: 3 accepted, 0 failed", "json lines: 0 dropped, 4 written"]
    [dns] = [line.split() for line in lines if line.startswith("dns ")]
    # Lost: refused or undecodable, above the limit, and in the full ring; not what the configuration leaves out.
    assert [dns[1], *dns[3:]] == ["running", "1/2", "0.12%", "7", "1.2", "15", "1.4", "ab" * 6]
    assert "disk: registry is down" in lines


def test_details_of_one_image(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs with their errors, maps and events; status 0, as this one runs."""
    assert run(path, "dns") == 0
    out = capsys.readouterr().out
    assert "\n  program on_packet: attached, id 4, 1700.0 runs/s, 0.120% of a CPU\n" in out
    assert "\n  program on_call: no such function\n" in out
    assert "\n  map queries: 5 of 1024 rows\n" in out
    assert "15 received, 1.2/s, 1 exported, 2 failed, 7 dropped (disabled), " in out
    assert ", 8 dropped (rate), 100 dropped (sample), 4 queued; 5 lost in the ring, which was at most 25% full\n" in out
    assert "disk" not in out


def test_json_is_the_document(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the images asked for."""
    assert run(path, "--json") == 3
    assert json.loads(capsys.readouterr().out) == document()


def test_refused_configuration_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even when every image runs."""
    shown = document(reload_successful=False, reload_error="agent.yaml:1:1: no", images=document()["images"][:1])
    stop = threading.Event()
    server = StatusServer(tmp_path / "s", lambda: shown)
    thread = threading.Thread(target=server.run, args=(stop,))
    thread.start()
    assert run(tmp_path / "s") == 3
    out = capsys.readouterr().out
    assert "configuration refused, the one of " in out
    assert "\n  agent.yaml:1:1: no\n" in out
    stop.set()
    server.wake()
    thread.join()
    server.close()


def test_mistakes_get_a_line(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No agent, a dead one, an image that is none."""
    assert run(tmp_path / "nothing") == 1
    assert "no agent listens at " in capsys.readouterr().err
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    assert run(tmp_path / "dead") == 1
    assert "is gone\n" in capsys.readouterr().err
    assert run(path, "dsn") == 1
    assert capsys.readouterr().err == "skep: image 'dsn' is not configured; configured are dns, disk\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_user_who_may_not_ask_is_told(path: Path) -> None:
    """With the remedy."""
    path.parent.chmod(0o755)
    for parent in (path.parent.parent, path.parent.parent.parent, path.parent.parent.parent.parent):
        parent.chmod(0o755)
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        with pytest.raises(ExportError, match="may not be asked by this user; join group skep"):
            ask(path)
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_agent_that_is_stuck_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that listens and does not answer costs a bounded time."""
    monkeypatch.setattr("exporter.cli.status._TIMEOUT_S", 1)
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(tmp_path / "s"))
        stuck.listen(0)
        with pytest.raises(ExportError, match="no answer in 1 s; see its log"):
            ask(tmp_path / "s")


def test_rate_is_over_the_last_minute() -> None:
    """Of what was received, also of a stream that is new."""
    now_s = 0.0
    rates = Rates(lambda: now_s)

    def counts(received: int) -> StreamCounts:
        return StreamCounts("dns", "dns.query", received, 0, 0, 0, {})

    assert rates.rate(counts(5)) == 0
    rates.sample([])
    now_s = 10
    assert rates.rate(counts(50)) == 5
    for second in range(20, 200, 10):
        now_s = second
        rates.sample([counts(second)])
    now_s = 200
    assert rates.rate(counts(200)) == 1


def test_what_programs_use_is_over_the_last_minute() -> None:
    """And begins when it was first seen: systemd may have kept it attached before this agent was there."""
    now_s = 0.0
    rates = Rates(lambda: now_s)
    key = ("dns", "on_packet")
    rates.sample([])
    assert rates.of_program(key, ProgramUsage(7_000_000, 9)) == (None, None)
    now_s = 10
    rates.sample([], {key: ProgramUsage(7_000_000, 10**9)})
    assert rates.of_program(key, ProgramUsage(7_000_000, 10**9)) == (None, None)
    now_s = 20
    assert rates.of_program(key, ProgramUsage(7_000_500, 10**9 + 10**8)) == (50, 0.01)
    for second in range(20, 200, 10):
        now_s = second
        rates.sample([], {key: ProgramUsage(8_000_000 + second, 10**9)})
    now_s = 200
    assert rates.of_program(key, ProgramUsage(8_000_200, 10**9)) == (1, 0)


def test_part_that_does_not_move_is_found() -> None:
    """One that ended on its own, one that is at one thing too long; not one that was told to end."""
    parts, stop, told, release = Parts(), threading.Event(), threading.Event(), threading.Event()
    busy_s = 0.0
    parts.spawn("ends", lambda _: None, stop)
    parts.spawn("works", lambda _: release.wait() and None, stop, busy_s=lambda: busy_s, limit_s=5)
    parts.spawn("told", lambda _: None, told)
    told.set()
    assert parts.join("ends", 5)
    assert parts.stuck() == ["ends"]
    busy_s = 6
    assert parts.stuck() == ["ends", "works"]
    stop.set()
    release.set()
    assert parts.join("works", 5)
    assert parts.stuck() == []
