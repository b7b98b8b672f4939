"""What the agent tells about itself while it runs: cost of programs, what a receiver takes, what a read left out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.kernel.features import probe
from exporter.kernel.usage import SYSCTL
from tests.support.otlp_receiver import Answer, OtlpReceiver

from .harness import Agent, Page, running_agent, skep
from .objects import counting, make_calls, write

PID = os.getpid()
ANOTHER = "\nconst volatile u32 another = 1;"
SETPRIV = shutil.which("setpriv")


def image(directory: Path, extra: str = "", name: str = "calls") -> str:
    """One image of the configuration that counts this process's calls."""
    content = write(directory, f"{name}{len(extra)}", counting(name, extra))
    return json.dumps({"name": name, "ref": str(content), "globals": {"tgid": PID}})


def reload(agent: Agent, config: str) -> None:
    """Have it read another configuration, and wait until it did."""
    before = len(agent.lines("configuration reloaded"))
    (agent.directory / "agent.yaml").write_text(f"store: {{path: store}}\n{config}")
    agent.process.send_signal(signal.SIGHUP)
    agent.wait(lambda _: len(agent.lines("configuration reloaded")) > before)


# ---- what programs cost ----


def used_per_second(agent: Agent) -> tuple[float | None, float | None]:
    """Runs of the program on_enter and its share of a CPU, as ``skep status`` says."""
    [program] = [one for one in agent.status()["images"][0]["programs"] if one["name"] == "on_enter"]
    return program["runs_per_s"], program["cpu_ratio"]


def test_runs_and_their_time_go_on_over_an_upgrade(tmp_path: Path) -> None:
    """With telemetry.bpf_stats; without it they are not shown, and the kernel measures nothing for us."""
    stats = "telemetry: {bpf_stats: true}"
    with running_agent(tmp_path, f"images: [{image(tmp_path)}]\n{stats}") as agent:
        agent.wait_states(calls="running")
        before = agent.scrape().sum("skep_program_runs_total", image="calls", program="on_enter")
        make_calls(5000)
        page = agent.scrape()
        runs = page.sum("skep_program_runs_total", image="calls", program="on_enter")
        seconds = page.sum("skep_program_run_seconds_total", image="calls", program="on_enter")
        assert runs >= before + 5000
        assert runs * 1e-9 < seconds < 60
        agent.wait(lambda _: used_per_second(agent)[0] is not None)
        make_calls(1000)
        rate, share = used_per_second(agent)
        assert rate is not None and share is not None
        assert (rate > 0, 0 < share < 1) == (True, True)
        reload(agent, f"images: [{image(tmp_path, ANOTHER)}]\n{stats}")
        agent.wait(lambda _: agent.lines("image switched to another version"))
        page = agent.scrape()
        assert page.sum("skep_program_runs_total", image="calls") >= runs
        assert page.sum("skep_program_run_seconds_total", image="calls") >= seconds
        if probe().version >= (5, 12):
            assert page.all("skep_program_recursion_misses_total", program="on_enter") == [0]
        reload(agent, f"images: [{image(tmp_path, ANOTHER)}]")
        assert agent.scrape().all("skep_program_runs_total") == []
        assert used_per_second(agent) == (None, None)
        if probe().version >= (5, 12):
            assert agent.scrape().all("skep_program_recursion_misses_total", program="on_enter") == [0]


@pytest.fixture
def sysctl() -> Iterator[Path]:
    """The switch for everybody; as before when the test ends."""
    before = SYSCTL.read_text()
    yield SYSCTL
    SYSCTL.write_text(before)


@pytest.mark.skipif(SETPRIV is None, reason="needs setpriv")
def test_without_the_privilege_the_sysctl_serves_as_well(tmp_path: Path, sysctl: Path) -> None:
    """Off: one line with the remedy, and everything else runs. On: the runs are shown."""
    drop = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    config = f"images: [{image(tmp_path)}]\ntelemetry: {{bpf_stats: true}}"
    told = "runs of programs are not measured, as telemetry.bpf_stats would have it"
    sysctl.write_text("0")
    with running_agent(tmp_path / "off", config, prefix=drop) as agent:
        agent.wait_states(calls="running")
        [line] = agent.lines(told)
        assert str(line["reason"]).startswith("BPF statistics: EPERM ")
        assert "CAP_SYS_ADMIN" in str(line["reason"])
        assert agent.scrape().all("skep_program_runs_total") == []
    sysctl.write_text("1")
    with running_agent(tmp_path / "on", config, prefix=drop) as agent:
        agent.wait_states(calls="running")
        make_calls(100)
        assert agent.lines(told) == []
        assert agent.scrape().sum("skep_program_runs_total", program="on_enter") >= 100


# ---- a scraper's deadline ----


def test_scrape_answers_by_its_deadline_with_what_it_has(tmp_path: Path) -> None:
    """What was not read is not shown and its collector failed; the next scrape has it, and no image went stale."""
    with running_agent(tmp_path, f"images: [{image(tmp_path)}]") as agent:
        agent.wait_states(calls="running")
        make_calls(7)
        hurried = Page(agent.get("/metrics", {"X-Prometheus-Scrape-Timeout-Seconds": "0.000001"})[1])
        assert hurried.all("skep_scrape_collector_success", collector="calls") == [0]
        assert hurried.all("ebpf_calls_total") == []
        assert hurried.state("calls") == "running"
        assert hurried.all("process_cpu_seconds_total")
        patient = Page(agent.get("/metrics", {"X-Prometheus-Scrape-Timeout-Seconds": "10"})[1])
        assert patient.all("skep_scrape_collector_success", collector="calls") == [1]
        assert patient.sum("ebpf_calls_total") == 7
        [line] = agent.lines("a scraper's deadline came before all images were read")
        assert line["images"] == "calls"


# ---- what a receiver takes, and what nobody can know ----


def test_posting_says_how_long_it_takes_and_what_is_in_hand(tmp_path: Path) -> None:
    """Per signal, by cause; over a change of the configuration counts go on; the receiver gets these numbers too."""
    with OtlpReceiver() as receiver:
        config = (
            f"images: [{image(tmp_path)}]\n"
            f"otlp: {{endpoint: '{receiver.endpoint}', metrics: {{interval: 1s, temporality: delta}}}}\n"
        )
        with running_agent(tmp_path, config) as agent:
            agent.wait_states(calls="running")
            make_calls(10)
            page = agent.wait(
                lambda page: (
                    page.sum("skep_otlp_items_total", signal="logs", outcome="accepted") == 10
                    and page.sum("skep_otlp_requests_total", signal="metrics", cause="ok") > 0
                )
            )
            for signal_name in ("logs", "metrics"):
                attempts = page.sum("skep_otlp_requests_total", signal=signal_name)
                assert page.all("skep_otlp_request_duration_seconds_count", signal=signal_name) == [attempts]
                assert page.sum("skep_otlp_request_duration_seconds_sum", signal=signal_name) > 0
                assert page.all("skep_otlp_items_pending", signal=signal_name) == [0]
            assert page.all("skep_otlp_series_forgotten_total", signal="metrics") == [0]
            reload(agent, config + "resource: {attributes: {a: b}}")
            later = agent.scrape()
            for name in ("skep_otlp_requests_total", "skep_otlp_request_duration_seconds_count"):
                assert later.sum(name) >= page.sum(name)
            receiver.answer(Answer(503, headers={"Retry-After": "1"}))
            make_calls(5)
            page = agent.wait(lambda page: page.sum("skep_otlp_items_pending", signal="metrics") > 0)
            page = agent.wait(lambda page: page.sum("skep_otlp_items_pending", signal="logs") == 5)
            assert page.sum("skep_events_queued") == 5
            receiver.answer(Answer())
            agent.wait(lambda page: page.sum("skep_events_exported_total") == 15)
            agent.wait(lambda page: page.sum("skep_otlp_items_pending") == 0)
        names = {
            metric.name
            for request in receiver.metrics()
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
        assert "skep_otlp_request_duration_seconds" in names


def test_loss_that_nobody_counts_is_said_to_be_unknown(tmp_path: Path) -> None:
    """The program does not count what its full ring could not take, and nobody else can."""
    with running_agent(tmp_path, f"images: [{image(tmp_path)}]") as agent:
        page = agent.wait_states(calls="running")
        assert page.all("skep_stream_info", image="calls", lost="unknown") == [1]
        assert page.all("skep_stream_info", lost="counted") == []
        assert page.all("skep_ring_lost_total") == []


def test_events_whose_receiver_hangs_at_the_end_are_not_lost_in_silence(tmp_path: Path) -> None:
    """Whatever is still queued when the agent ends is said."""
    with OtlpReceiver([Answer(silent=True)]) as receiver:
        config = f"images: [{image(tmp_path)}]\notlp: {{endpoint: '{receiver.endpoint}', metrics: {{enabled: false}}}}"
        with running_agent(tmp_path, config) as agent:
            agent.wait_states(calls="running")
            make_calls(12)
            agent.wait(lambda page: page.sum("skep_events_queued") == 12)
            time.sleep(0.5)
            assert agent.stop() == 0
            told = agent.lines("events dropped at the end") + agent.lines(
                "events are lost: their receiver did not let go of them in time"
            )
            assert sum(int(str(line["records"])) for line in told) == 12


def test_metrics_of_the_process_are_left_out_if_they_are_not_wanted(tmp_path: Path) -> None:
    """As of every exporter; those of the images stay. Else scrapes are counted by status."""
    with running_agent(tmp_path, f"images: [{image(tmp_path)}]", "--web.disable-exporter-metrics") as agent:
        page = agent.wait_states(calls="running")
        assert not [name for name, _, _ in page.samples if name.startswith(("process_", "skep_scrape_requests"))]
    with running_agent(tmp_path, "images: []", "--no-web.disable-exporter-metrics") as agent:
        assert agent.get("/metrics?collect[]=nothing")[0] == 400
        page = agent.scrape()
        assert page.all("skep_scrape_requests_total", code="400") == [1]
        assert page.all("skep_scrape_requests_in_flight") == [1]
        assert page.sum("process_resident_memory_bytes") > 0


def test_batches_are_those_of_the_environment(tmp_path: Path) -> None:
    """OTEL_BLRP_*; a name that nobody knows is told."""
    environment = {
        "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": "10",
        "OTEL_BLRP_SCHEDULE_DELAY": "300",
        "OTEL_BLRP_DELAY": "1",
        "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT": "1",
    }
    with OtlpReceiver() as receiver:
        config = f"images: [{image(tmp_path)}]\notlp: {{endpoint: '{receiver.endpoint}', metrics: {{enabled: false}}}}"
        with running_agent(tmp_path, config, environment=environment) as agent:
            agent.wait_states(calls="running")
            make_calls(100)
            agent.wait(lambda page: page.sum("skep_events_exported_total") == 100)
            [line] = agent.lines("an OTEL_ variable has no effect")
            assert "OTEL_BLRP_DELAY is not known" in str(line["reason"])
        batches = [
            scope.log_records
            for request in receiver.logs()
            for resource in request.resource_logs
            for scope in resource.scope_logs
        ]
    sizes = [len(batch) for batch in batches]
    assert {(len(one.attributes), one.dropped_attributes_count) for batch in batches for one in batch} == {(1, 1)}
    assert sum(sizes) == 100
    assert max(sizes) <= 10


# ---- what an operator asks over the port ----


def test_configuration_is_read_again_over_http_if_that_is_allowed(tmp_path: Path) -> None:
    """200 when it was good, 500 with the reason when it was not; only with the flag."""
    config = f"images: [{image(tmp_path)}]\n"
    with running_agent(tmp_path, config, "--web.enable-lifecycle") as agent:
        agent.wait_states(calls="running")
        (tmp_path / "agent.yaml").write_text("store: {path: store}\nimages: []\n")
        assert agent.get("/-/reload", method="POST") == (200, "configuration reloaded\n")
        page = agent.scrape()
        assert page.all("skep_image_state") == []
        (tmp_path / "agent.yaml").write_text("images: nothing\n")
        status, text = agent.get("/-/reload", method="PUT")
        assert status == 500
        assert "agent.yaml:1:9" in text
        assert agent.lines("configuration reloaded", cause="/-/reload")
        assert agent.get("/-/reload")[0] == 405
    with running_agent(tmp_path / "off", "images: []") as agent:
        assert agent.get("/-/reload", method="POST")[0] == 403
        assert agent.lines("configuration reloaded") == []


def test_version_of_the_agent_is_told_in_several_lines() -> None:
    """As every exporter does it."""
    done = skep("agent", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["skep", "libbpf", "kernel", "python"]
