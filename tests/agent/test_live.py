"""``skep run`` on a terminal, and what ``--filter`` leaves of its output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.terminal import Terminal

from .harness import ROOT, SKEP, skep
from .objects import counting, make_calls, write

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
SHOW_CURSOR = b"\x1b[?25h"


def run(path: Path, *words: str, columns: int = 100, lines: int = 30) -> Terminal:
    """``skep run`` of the counting object, which counts our calls only."""
    command = [*SKEP, "run", str(path), "--interval=200ms", f"--global=tgid={os.getpid()}", *words]
    return Terminal(command, columns=columns, lines=lines, cwd=ROOT)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An object with a counter by parity and an event for each call."""
    return write(tmp_path_factory.mktemp("live"), "calls", counting("calls"))


def test_live_view_shows_rows_rates_and_events_and_gives_the_terminal_back(calls: Path) -> None:
    """Until q; then the screen, the cursor and the line's modes are as they were, and nothing is left."""
    with run(calls) as terminal:
        terminal.expect("1 of 1 programs attached")
        make_calls(100)
        terminal.expect("events: 100")
        for text in ("ebpf.calls  number=100", "ebpf_calls_total", "parity", "rate/s", " 50"):
            terminal.expect(text)
        assert terminal.modes != terminal.modes_before
        terminal.press("q")
        assert terminal.wait() == 0
        assert terminal.modes == terminal.modes_before
        assert terminal.raw.count(ENTER) == terminal.raw.count(LEAVE) == 1
        assert terminal.raw.rindex(SHOW_CURSOR) > 0
        assert "Traceback" not in terminal.text


def test_pause_holds_what_is_shown_and_loses_no_event(calls: Path) -> None:
    """What came meanwhile is there afterwards."""
    with run(calls) as terminal:
        terminal.expect("1 of 1 programs attached")
        terminal.press("p")
        terminal.expect("PAUSED")
        make_calls(7)
        time.sleep(0.6)
        assert "number=7" not in terminal.text
        terminal.press("p")
        terminal.expect("number=7")
        terminal.expect("events: 7")
        terminal.press("q")
        assert terminal.wait() == 0


def test_keys_sort_focus_and_filter(calls: Path) -> None:
    """A filter is typed after /; a wrong one is told below and changes nothing."""
    with run(calls) as terminal:
        terminal.expect("1 of 1 programs attached")
        make_calls(10)
        terminal.expect("events: 10")
        terminal.expect("▼")
        terminal.press("r")
        terminal.expect("▲")
        terminal.forget()
        terminal.press("s\t")
        terminal.expect("ebpf_calls_total")
        terminal.press("/nothing,x,y\r")
        terminal.expect("no exported map is called 'nothing'")
        terminal.press("/calls,parity,[\r")
        terminal.expect("is no regular expression")
        terminal.forget()
        terminal.press("/ebpf_calls_total,parity,^1$\r")
        terminal.expect("1 rows")
        terminal.press("q")
        assert terminal.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_live_view_as_q_does(calls: Path, number: signal.Signals) -> None:
    """The terminal is given back, status 0."""
    with run(calls) as terminal:
        terminal.expect("1 of 1 programs attached")
        os.kill(terminal.pid, number)
        assert terminal.wait() == 0
        assert terminal.modes == terminal.modes_before
        assert LEAVE in terminal.raw


def test_terminal_is_given_back_after_an_error_of_ours(calls: Path, tmp_path: Path) -> None:
    """A bug shows its traceback, on a terminal that can be typed in."""
    (tmp_path / "sitecustomize.py").write_text(
        "import exporter.cli.live as live\n"
        "def broken(self, columns): raise RuntimeError('made to fail')\n"
        "live.LiveView._head = broken\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with Terminal([*SKEP, "run", str(calls)], cwd=ROOT, environment=environment) as terminal:
        assert terminal.wait() == 1
        assert "made to fail" in terminal.text
        assert terminal.modes == terminal.modes_before
        assert LEAVE in terminal.raw


def test_terminal_that_is_too_small_gets_a_line(calls: Path) -> None:
    """Before anything is loaded; and while it runs a window made smaller says so and comes back."""
    with run(calls, columns=30, lines=5) as terminal:
        assert terminal.wait() == 1
        assert "terminal is 30 columns by 5 lines, the live view needs 40 by 10" in terminal.text
        assert "--no-tty" in terminal.text and "Traceback" not in terminal.text
        assert ENTER not in terminal.raw
    with run(calls) as terminal:
        terminal.expect("1 of 1 programs attached")
        terminal.resize(30, 5)
        terminal.expect("terminal too small")
        terminal.forget()
        terminal.resize(90, 25)
        terminal.expect("1 of 1 programs attached")
        terminal.press("q")
        assert terminal.wait() == 0


def test_without_the_extra_a_line_says_how_and_json_lines_come(calls: Path, tmp_path: Path) -> None:
    """As they do in a pipe."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['rich'] = None\n")
    command = [*SKEP, "run", str(calls), "--interval=200ms", f"--global=tgid={os.getpid()}"]
    with Terminal(command, cwd=ROOT, environment={"PYTHONPATH": str(tmp_path)}) as terminal:
        terminal.expect("pip install 'skep[tui]'")
        terminal.expect("running")
        make_calls(4)
        terminal.expect('"metric":"ebpf_calls_total"')
        assert ENTER not in terminal.raw
        os.kill(terminal.pid, signal.SIGINT)
        assert terminal.wait() == 0


def test_filter_leaves_only_its_rows_and_events(calls: Path) -> None:
    """By map, metric or event name; several on one map must all fit; other maps are shown whole."""
    command = ("run", str(calls), "--no-tty", "--interval=200ms", "--duration=1500ms", f"--global=tgid={os.getpid()}")
    process = subprocess.Popen(
        [*SKEP, *command, "--filter=ebpf_calls_total,parity,^1$", "-f", "ebpf.calls,number,^[0-9]$"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert any("running" in line for line in process.stderr)
        make_calls(30)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["attributes"]["parity"] for line in lines if line.get("metric") == "ebpf_calls_total"} == {1}
    numbers = [line["attributes"]["number"] for line in lines if line.get("event") == "ebpf.calls"]
    assert numbers == list(range(1, 10))


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("calls", 2, "lacks a part"),
        ("calls,parity,[", 2, "is no regular expression"),
        ("none,parity,1", 1, "no exported map is called 'none'; there are "),
        ("ebpf_calls_total,none,1", 1, "has no label 'none'; it has "),
    ],
)
def test_filter_that_cannot_be_is_refused_with_what_can(calls: Path, text: str, status: int, said: str) -> None:
    """Before anything is loaded."""
    done = skep("run", str(calls), "--no-tty", "--duration=100ms", f"--filter={text}")
    assert done.returncode == status
    assert said in done.stderr and "Traceback" not in done.stderr
