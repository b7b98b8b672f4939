"""A real ``skep agent`` in a process of its own, and what to ask it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.systemd import ServiceManager

ROOT = Path(__file__).parents[2]
SKEP = (sys.executable, "-m", "exporter")

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


class Page:
    """One scrape, parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: list[tuple[str, dict[str, str], float]] = [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def all(self, name: str, **labels: str) -> list[float]:
        """Values of the samples of this name that have these labels."""
        return [v for n, have, v in self.samples if n == name and labels.items() <= have.items()]

    def sum(self, name: str, **labels: str) -> float:
        """Their sum; 0 if there is none."""
        return sum(self.all(name, **labels))

    def state(self, image: str) -> str:
        """The state an image is in; exactly one."""
        [state] = [
            have["state"] for n, have, v in self.samples if n == "skep_image_state" and have["image"] == image and v
        ]
        return state

    def accounts(self) -> dict[tuple[str, str], tuple[float, float]]:
        """For each stream: records received, and the sum of all that became of them."""
        streams = {(have["image"], have["stream"]) for n, have, _ in self.samples if n == "skep_events_received_total"}
        ends = (
            "skep_events_exported_total",
            "skep_events_failed_total",
            "skep_events_dropped_total",
            "skep_events_queued",
        )
        return {
            (image, stream): (
                self.sum("skep_events_received_total", image=image, stream=stream),
                sum(self.sum(end, image=image, stream=stream) for end in ends),
            )
            for image, stream in streams
        }


class Agent:
    """A running agent; :func:`running_agent` makes it."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self.process = process
        self.url = ""

    @property
    def log(self) -> str:
        """Everything it has logged so far."""
        return (self.directory / "agent.log").read_text()

    def lines(self, message: str, **fields: str) -> list[dict[str, object]]:
        """Log lines with this message and these fields."""
        parsed = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in parsed if line["msg"] == message and fields.items() <= line.items()]

    def get(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> tuple[int, str]:
        """Status and body of a GET, or of another method."""
        request = urllib.request.Request(self.url + path, headers=dict(headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def scrape(self, query: str = "") -> Page:
        """Scrape; every scrape must balance."""
        status, text = self.get("/metrics" + query)
        assert status == 200, text
        page = Page(text)
        for stream, (received, ended) in page.accounts().items():
            assert received == ended, (stream, received, ended)
        return page

    def wait(self, until: Callable[[Page], object], timeout_s: float = 30.0) -> Page:
        """Scrape until a predicate holds; fails the test, with the log, if it does not in time."""
        end = time.monotonic() + timeout_s
        while True:
            page = self.scrape()
            if until(page):
                return page
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, (
                self.log
                + "\n"
                + "\n".join(
                    line for line in page.text.splitlines() if "skep_image_state" in line or "skep_events" in line
                )
            )
            time.sleep(0.1)

    def wait_states(self, timeout_s: float = 30.0, **states: str) -> Page:
        """Wait until images are in these states."""
        named = {name.replace("_", "-"): state for name, state in states.items()}
        return self.wait(lambda page: all(page.state(n) == state for n, state in named.items()), timeout_s)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """SIGKILL, and it is gone."""
        self.process.kill()
        self.process.wait(30)

    def status(self) -> dict[str, Any]:
        """What ``skep status --json`` prints."""
        done = skep("status", "--json", f"--status.socket={self.directory / 'agent.sock'}")
        assert done.returncode in (0, 3), done.stderr
        return dict(json.loads(done.stdout))

    def programs(self) -> set[int]:
        """The kernel's numbers of the programs it has attached."""
        return {one["id"] for image in self.status()["images"] for one in image["programs"] if one["attached"]}

    def state_file(self) -> dict[str, dict[str, str]]:
        """What ``skep list`` would show, by image name."""
        entries = json.loads((self.directory / "store" / "agent-state.json").read_text())["images"]
        return {entry["name"]: entry for entry in entries}


def in_kernel(programs: set[int]) -> set[int]:
    """Which of these programs the kernel has."""
    shown = subprocess.run(["bpftool", "prog", "show", "-j"], capture_output=True, text=True, check=True)
    return programs & {program["id"] for program in json.loads(shown.stdout)}


def gone_from_kernel(programs: set[int]) -> bool:
    """Whether the kernel has none of these programs, or soon: it frees them a moment after their last descriptor."""
    end = time.monotonic() + 5
    while in_kernel(programs) and time.monotonic() < end:
        time.sleep(0.1)
    return bool(programs) and not in_kernel(programs)


@contextlib.contextmanager
def running_agent(
    directory: Path,
    config: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    prefix: tuple[str, ...] = (),
    manager: ServiceManager | None = None,
    stdout: int | None = None,
) -> Iterator[Agent]:
    """Run an agent on a free port with its store in ``directory``; it is gone when the block ends.

    With a service manager it is started as its service, with what that keeps for it. The log is of this start only.
    """
    environment = dict(environment or {})
    descriptors: list[int] = []
    if manager is not None:
        environment |= manager.environment
        descriptors = manager.descriptors
        prefix = (*prefix, *manager.launcher(sys.executable, descriptors))
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "agent.yaml"
    file.write_text(f"store: {{path: store}}\n{config}")
    command = [
        *prefix, *SKEP, "agent", f"--config.file={file}", "--web.listen-address=127.0.0.1:0", "--log.format=json",
        f"--status.socket={directory / 'agent.sock'}", *arguments,
    ]  # fmt: skip
    with (directory / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=stdout, stderr=log, env={**os.environ, **environment}, pass_fds=descriptors
        )
    if manager is not None:
        manager.main_pid = process.pid
    agent = Agent(directory, process)
    try:
        end = time.monotonic() + 20
        while not agent.url:
            found = re.search(r'"url": "(https?://[^"]*)/metrics"', agent.log)
            if found:
                agent.url = found[1]
            assert process.poll() is None and time.monotonic() < end, agent.log
            time.sleep(0.02)
        yield agent
        assert not re.search(r'"traceback": |Traceback \(most recent', agent.log), agent.log
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def skep(*arguments: str, prefix: tuple[str, ...] = (), timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end."""
    return subprocess.run(
        [*prefix, *SKEP, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
    )
