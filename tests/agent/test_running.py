"""The agent as a black box: images count, Prometheus and a receiver get it all, and the end is clean."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from tests.support.otlp_receiver import Answer, OtlpReceiver
from tests.support.registry import free_port

from .harness import Agent, Page, gone_from_kernel, in_kernel, running_agent
from .objects import MISSING_TRACEPOINT, counting, make_calls, write

PID = os.getpid()
EVENT = "ebpf.calls"
"""Of the counting object named ``calls``: its event, and with ``_total`` its counter."""


def image(directory: Path, name: str = "calls", **more: object) -> str:
    """One image of the configuration that counts this process's calls."""
    path = write(directory, name, counting(name))
    return json.dumps({"ref": str(path), "globals": {"tgid": PID}, **more})


def calls(page: Page, name: str = "calls") -> float:
    """What the counting object counted."""
    return page.sum(f"ebpf_{name}_total")


def test_counter_has_exactly_what_happened_and_events_balance(tmp_path: Path) -> None:
    """Two images count the same calls to the last one; without a receiver each event is counted as dropped."""
    config = f"images: [{image(tmp_path)}, {image(tmp_path, 'others')}]"
    with running_agent(tmp_path, config) as agent:
        agent.wait_states(calls="running", others="running")
        make_calls(1001)
        page = agent.wait(lambda page: page.sum("skep_events_received_total", image="calls") == 1001)
        assert calls(page) == 1001
        assert calls(page, "others") == 1001
        assert page.all("ebpf_calls_total", parity="0") == [500]
        assert page.sum("skep_events_dropped_total", image="calls", stream=EVENT, reason="no_receiver") == 1001
        assert page.sum("skep_scrape_collector_success") == 2
        assert page.sum("skep_image_info", image="calls", format="file") == 1
        assert page.all("skep_program_attached", image="calls", program="on_enter") == [1]
        assert agent.state_file()["calls"]["state"] == "running"
        assert page.sum("process_resident_memory_bytes") > 1e6


def test_event_limit_drops_what_is_above_it_and_says_so(tmp_path: Path) -> None:
    """limits.events_per_s holds in a burst; the rest is dropped for the reason rate."""
    config = f"images: [{image(tmp_path, limits={'events_per_s': 100})}]"
    with running_agent(tmp_path, config) as agent:
        agent.wait_states(calls="running")
        make_calls(1000)
        page = agent.wait(lambda page: page.sum("skep_events_received_total") == 1000)
        by_rate = page.sum("skep_events_dropped_total", reason="rate")
        assert 600 <= by_rate <= 900
        assert page.sum("skep_events_dropped_total", reason="no_receiver") == 1000 - by_rate


def test_series_limit_folds_the_rest_into_one_series(tmp_path: Path) -> None:
    """limits.series: the sum stays right, in a series of its own kind, and is counted."""
    config = f"images: [{image(tmp_path, limits={'series': 1})}]"
    with running_agent(tmp_path, config) as agent:
        agent.wait_states(calls="running")
        make_calls(100)
        page = agent.wait(lambda page: calls(page) == 100)
        assert page.all("ebpf_calls_total", otel_metric_overflow="true") == [50]
        assert page.sum("skep_series_folded_total", image="calls") >= 1
        assert page.all("skep_metric_series", image="calls") == [1]


def test_scrape_can_choose_images(tmp_path: Path) -> None:
    """collect[] and exclude[] go by image name; an unknown one is the scraper's mistake."""
    config = f"images: [{image(tmp_path)}, {image(tmp_path, 'others')}, {image(tmp_path, 'off', enabled=False)}]"
    with running_agent(tmp_path, config) as agent:
        agent.wait_states(calls="running", others="running")
        make_calls(1)
        assert [calls(agent.scrape("?collect[]=others"), name) for name in ("calls", "others")] == [0, 1]
        assert [calls(agent.scrape("?exclude[]=others"), name) for name in ("calls", "others")] == [1, 0]
        for unknown in ("?collect[]=nothing", "?exclude[]=off"):
            status, text = agent.get("/metrics" + unknown)
            assert status == 400
            assert "is not configured; configured are calls, others" in text
        assert agent.get("/metrics?collect[]=calls&exclude[]=others")[0] == 400
        assert agent.get("/")[0] == 200
        assert agent.get("/nothing")[0] == 404


def test_readiness_waits_for_required_images_only(tmp_path: Path) -> None:
    """An optional image that cannot run does not matter, a required one does, and is named."""
    broken = write(tmp_path, "broken", b"no object")
    config = f"images: [{image(tmp_path, required=True)}, {{ref: {broken}}}]"
    with running_agent(tmp_path / "one", config) as agent:
        agent.wait_states(calls="running", broken="failed")
        assert agent.get("/-/ready") == (200, "skep is ready\n")
    with running_agent(tmp_path / "two", f"images: [{image(tmp_path)}, {{ref: {broken}, required: true}}]") as agent:
        agent.wait_states(calls="running", broken="failed")
        status, text = agent.get("/-/ready")
        assert (status, "broken" in text, "calls" in text) == (503, True, False)
        assert agent.get("/-/healthy")[0] == 200


def test_program_that_cannot_attach_degrades_its_image(tmp_path: Path) -> None:
    """partial: run keeps the rest; partial: refuse fails the image; both name the program and the reason."""
    path = write(tmp_path, "partial", counting("calls", MISSING_TRACEPOINT))
    entry = {"ref": str(path), "globals": {"tgid": PID}}
    with running_agent(tmp_path / "run", f"images: [{json.dumps(entry)}]") as agent:
        page = agent.wait_states(partial="degraded")
        make_calls(3)
        page = agent.wait(lambda page: calls(page) == 3)
        assert page.all("skep_program_attached", program="on_nothing") == [0]
        assert page.all("skep_program_attached", program="on_enter") == [1]
        assert "sys_enter_nothing_like_it" in agent.state_file()["partial"]["reason"]
    with running_agent(tmp_path / "refuse", f"images: [{json.dumps({**entry, 'partial': 'refuse'})}]") as agent:
        agent.wait_states(partial="failed")
        assert "sys_enter_nothing_like_it" in agent.lines("image failed")[0]["reason"]  # type: ignore[operator]


@pytest.mark.skipif(shutil.which("bpftool") is None, reason="needs bpftool")
def test_sigterm_detaches_everything(tmp_path: Path) -> None:
    """After a clean end the kernel has none of our programs, and nobody is told that we still run."""
    with running_agent(tmp_path, f"images: [{image(tmp_path)}]") as agent:
        agent.wait_states(calls="running")
        mine = agent.programs()
        assert in_kernel(mine) == mine != set()
        assert agent.stop() == 0
        assert "skep stopped" in agent.log
        assert not (tmp_path / "store" / "agent-state.json").exists()
        assert not (tmp_path / "agent.sock").exists()
    assert gone_from_kernel(mine)


def test_service_manager_is_told(tmp_path: Path) -> None:
    """READY once, what the images do as STATUS, WATCHDOG while all is well, STOPPING at the end."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "300000"}
        with running_agent(tmp_path, f"images: [{image(tmp_path)}]", environment=environment) as agent:
            agent.wait_states(calls="running")
            told = ""
            while "1 of 1 images run" not in told or told.count("WATCHDOG=1") < 3:
                told += manager.recv(4096).decode() + "\n"
            assert told.count("READY=1") == 1
            agent.stop()
            while "STOPPING=1" not in told:
                told += manager.recv(4096).decode() + "\n"


def test_metrics_and_events_reach_a_receiver(tmp_path: Path) -> None:
    """Every event arrives once with its attributes; sums have start times; the resource is the same after a restart."""
    resources = []
    with OtlpReceiver() as receiver:
        otlp = f"otlp: {{endpoint: '{receiver.endpoint}', metrics: {{interval: 1s}}}}\n"
        extra = "resource: {attributes: {deployment.environment.name: test}}\n"
        for round_number in (1, 2):
            with running_agent(tmp_path / str(round_number), f"images: [{image(tmp_path)}]\n{otlp}{extra}") as agent:
                agent.wait_states(calls="running")
                make_calls(300)
                page = agent.wait(lambda page: page.sum("skep_events_exported_total") == 300)
                assert page.sum("skep_events_queued") == 0
                make_calls(5)
                assert agent.stop() == 0  # what is there at the end is flushed
            resources.append(
                {a.key: a.value.string_value for a in receiver.metrics()[-1].resource_metrics[0].resource.attributes}
            )
        records = [
            record
            for request in receiver.logs()
            for of_resource in request.resource_logs
            for of_scope in of_resource.scope_logs
            for record in of_scope.log_records
        ]
        assert len(records) == 610
        numbers = sorted(a.value.int_value for r in records for a in r.attributes if a.key == "number")
        assert numbers == sorted([*range(1, 306)] * 2)
        assert {record.event_name for record in records} == {EVENT}
        assert all(abs(record.time_unix_nano / 1e9 - time.time()) < 120 for record in records)
        [metric] = [
            metric
            for of_resource in receiver.metrics()[-1].resource_metrics
            for of_scope in of_resource.scope_metrics
            for metric in of_scope.metrics
            if metric.name == "ebpf.calls"
        ]
        assert sum(point.as_int for point in metric.sum.data_points) == 305
        assert all(0 < point.start_time_unix_nano <= point.time_unix_nano for point in metric.sum.data_points)
    assert resources[0] == resources[1]
    assert resources[0]["service.name"] == "skep"
    assert resources[0]["host.arch"] in ("amd64", "arm64")
    assert resources[0]["deployment.environment.name"] == "test"
    assert len(resources[0]["service.instance.id"]) == 36


def test_receiver_that_is_away_costs_nothing_but_a_wait(tmp_path: Path) -> None:
    """Events wait, scrapes go on and balance, the log says it once, and all arrive when the receiver is back."""
    port = free_port()
    otlp = f"otlp: {{endpoint: 'http://127.0.0.1:{port}', metrics: {{interval: 1s}}}}\n"
    with running_agent(tmp_path, f"images: [{image(tmp_path)}]\n{otlp}") as agent:
        agent.wait_states(calls="running")
        make_calls(200)
        page = agent.wait(lambda page: page.sum("skep_events_queued") == 200)
        agent.wait(lambda page: page.sum("skep_otlp_items_total", signal="metrics", outcome="failed") > 0)
        assert calls(page) == 200
        with OtlpReceiver(port=port) as receiver:
            agent.wait(lambda page: page.sum("skep_events_exported_total") == 200, 60)
            receiver.answer(Answer(status=400))
            make_calls(10)
            agent.wait(lambda page: page.sum("skep_events_failed_total") == 10)
        told = [line for line in agent.lines("receiver is not available") if line["signal"] == "logs"]
        assert 1 <= len(told) <= 6
        assert agent.lines("receiver takes data again", signal="logs")
        assert agent.lines("receiver refused items", signal="logs")


def test_events_that_cannot_be_delivered_at_the_end_are_told(tmp_path: Path) -> None:
    """The end does not wait for a receiver that never comes, and says what it drops."""
    otlp = f"otlp: {{endpoint: 'http://127.0.0.1:{free_port()}'}}\n"
    with running_agent(tmp_path, f"images: [{image(tmp_path)}]\n{otlp}") as agent:
        agent.wait_states(calls="running")
        make_calls(7)
        agent.wait(lambda page: page.sum("skep_events_queued") == 7)
        began = time.monotonic()
        assert agent.stop() == 0
        assert time.monotonic() - began < 15
        assert agent.lines("events dropped at the end")[0]["records"] == 7


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_promtool_has_no_complaint(tmp_path: Path) -> None:
    """Names, help, types and units are as the ecosystem's linter wants them."""
    broken = write(tmp_path, "broken", b"no object")
    with running_agent(
        tmp_path, f"images: [{image(tmp_path)}, {{ref: {broken}}}, {{ref: '127.0.0.1:1/a:1'}}]"
    ) as agent:
        make_calls(10)
        page = agent.wait_states(calls="running", broken="failed", a="failed")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page.text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def query(port: int, expression: str) -> list[dict[str, object]]:
    """The result of an instant query."""
    address = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.request.quote(expression)}"  # type: ignore[attr-defined]
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return list(json.load(answer)["data"]["result"])
    except OSError:
        return []


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus")
def test_real_prometheus_scrapes_and_answers(tmp_path: Path) -> None:
    """The target is up, what happened can be queried, and killing Prometheus leaves the agent running."""
    with running_agent(tmp_path, f"images: [{image(tmp_path)}]") as agent:
        agent.wait_states(calls="running")
        make_calls(42)
        target = agent.url.removeprefix("http://")
        (tmp_path / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s}\n"
            f"scrape_configs: [{{job_name: skep, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        port = free_port()
        with (tmp_path / "prometheus.log").open("wb") as log:
            prometheus = subprocess.Popen(
                ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}",
                 f"--storage.tsdb.path={tmp_path / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"],
                stdout=log, stderr=log,
            )  # fmt: skip
        try:
            end = time.monotonic() + 40
            while not (result := query(port, "sum(ebpf_calls_total)")) and time.monotonic() < end:
                time.sleep(0.3)
            assert result and result[0]["value"][1] == "42", (tmp_path / "prometheus.log").read_text()  # type: ignore[index]
            assert query(port, "up")[0]["value"][1] == "1"  # type: ignore[index]
            assert query(port, 'skep_image_state{state="running"} == 1')
        finally:
            prometheus.kill()
            prometheus.wait(10)
        make_calls(1)
        assert calls(agent.scrape()) == 43


def test_silent_client_does_not_hold_up_a_scrape(tmp_path: Path) -> None:
    """Connections that say nothing cost nobody else anything."""
    with running_agent(tmp_path, f"images: [{image(tmp_path)}]", "--web.max-requests=2") as agent:
        agent.wait_states(calls="running")
        host, port = agent.url.removeprefix("http://").split(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(5)]
        try:
            began = time.monotonic()
            agent.scrape()
            assert time.monotonic() - began < 3
        finally:
            for connection in silent:
                connection.close()


def stop_twice(agent: Agent) -> int:
    """SIGTERM while SIGTERM is being handled."""
    agent.process.terminate()
    return agent.stop()


def test_second_signal_changes_nothing(tmp_path: Path) -> None:
    """An impatient service manager gets the same clean end."""
    with running_agent(tmp_path, f"images: [{image(tmp_path)}]") as agent:
        agent.wait_states(calls="running")
        assert stop_twice(agent) == 0
