"""The agent's small parts: log lines, what systemd hears, who we are, what is told twice."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter.agent import Agent, Options, identity, log
from exporter.agent.events import EventReader
from exporter.agent.systemd import Notifier
from exporter.agent.telemetry import STATES, ImageStatus, OwnMetrics, StreamCounts, Upgrades
from exporter.config import AgentConfig, StoreConfig
from exporter.export.account import Account
from exporter.kernel import ProgramUsage


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged, with the process's logging as it was afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def test_logfmt_line_has_the_message_and_its_fields(lines: io.StringIO) -> None:
    """Quoted where needed, nothing for empty fields."""
    log.configure("info", "logfmt", lines)
    log.info("image running", image="dns", ref="a b", reason="", count=3, share=0.5, ok=True, text='say "x"\nnow')
    line = lines.getvalue()
    assert line.endswith(
        'level=info msg="image running" image=dns ref="a b" count=3 share=0.500 ok=true text="say \\"x\\"\\nnow"\n'
    )
    assert line.count("\n") == 1
    assert line.startswith("time=20")


def test_json_line_is_one_object(lines: io.StringIO) -> None:
    """With a bug's traceback in a field of its own."""
    log.configure("debug", "json", lines)
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        log.bug("it failed", part="http")
    entry = json.loads(lines.getvalue())
    assert (entry["level"], entry["msg"], entry["part"]) == ("error", "it failed", "http")
    assert "RuntimeError: boom" in entry["traceback"]


def test_journal_gets_priorities(lines: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each line, where stderr is the journal's; nowhere else."""
    with (tmp_path / "stderr").open("w+") as stream:
        there = os.fstat(stream.fileno())
        for told in (f"{there.st_dev}:{there.st_ino}", f"{there.st_dev}:{there.st_ino + 1}"):
            monkeypatch.setenv("JOURNAL_STREAM", told)
            log.configure("debug", "logfmt", stream)
            for tell in (log.debug, log.info, log.warn, log.error):
                tell("a")
        stream.seek(0)
        begins = [line[:4] for line in stream]
    assert begins == ["<7>t", "<6>t", "<4>t", "<3>t", *["time"] * 4]
    assert not log.goes_to_journal(lines, {"JOURNAL_STREAM": "1:1"})


@pytest.mark.parametrize(("level", "told"), [("debug", 4), ("info", 3), ("warn", 2), ("error", 1)])
def test_level_holds_for_the_agent_and_its_packages(lines: io.StringIO, level: str, told: int) -> None:
    """--log.level means every line."""
    log.configure(level, "logfmt", lines)
    log.debug("a")
    log.info("b")
    log.warn("c")
    logging.getLogger("exporter.export.server").error("d")
    assert len(lines.getvalue().splitlines()) == told


def test_repeated_message_is_told_at_its_doublings_and_each_hour() -> None:
    """A failure every 5 s does not fill a disk, and is not forgotten either."""
    now = 0.0
    repeats = log.Repeats(clock=lambda: now)
    told = []
    for _ in range(20):
        told.append(repeats.count("dns", "down"))
        now += 5
    assert [count for count in told if count] == [1, 2, 4, 8, 16]
    now += 3600
    assert repeats.count("dns", "down") == 21
    assert repeats.count("dns", "other") == 1
    assert repeats.clear("dns") == 1
    assert repeats.clear("dns") == 0


@pytest.mark.parametrize("abstract", [False, True])
def test_service_manager_hears_datagrams(tmp_path: Path, abstract: bool) -> None:
    """By path and by abstract name; a status that did not change is not repeated."""
    name = f"\0skep-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        manager.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": name.replace("\0", "@"), "WATCHDOG_USEC": "6000000"})
        notifier.ready("started")
        notifier.status("started")
        notifier.status("2 of 2 images run")
        notifier.alive()
        notifier.extend_timeout(1.5)
        before_us = time.monotonic_ns() // 1000
        notifier.reloading("reloading\nthe configuration")
        notifier.stopping("detaching")
        heard = [manager.recv(4096).decode() for _ in range(6)]
    reloading, told_us, status = heard.pop(4).split("\n")
    assert (reloading, status) == ("RELOADING=1", "STATUS=reloading the configuration")
    assert before_us <= int(told_us.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    assert heard == [
        "READY=1\nSTATUS=started",
        "STATUS=2 of 2 images run",
        "WATCHDOG=1",
        "EXTEND_TIMEOUT_USEC=1500000",
        "STOPPING=1\nSTATUS=detaching",
    ]
    assert notifier.watchdog_s == 6


@pytest.mark.parametrize(
    "environment",
    [{}, {"NOTIFY_SOCKET": "/nowhere/notify"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "6", "WATCHDOG_PID": "1"}],
)
def test_without_a_service_manager_nothing_happens(environment: dict[str, str]) -> None:
    """No socket, a socket that is gone, a watchdog that is not ours."""
    notifier = Notifier(environment)
    notifier.ready("a")
    notifier.status("b")
    notifier.alive()
    notifier.stopping("c")
    assert notifier.watchdog_s == 0


def test_identity_is_the_same_at_every_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derived from the machine and the service's name; the configuration wins over the environment."""
    monkeypatch.setattr(identity, "machine_id", lambda: "0123456789abcdef0123456789abcdef")
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=kernel,deployment.environment.name=lab")
    first = dict(identity.detect_resource({"deployment.environment.name": "production"}).attributes)
    assert first == dict(identity.detect_resource({"deployment.environment.name": "production"}).attributes)
    assert first["deployment.environment.name"] == "production"
    assert first["team"] == "kernel"
    assert first["service.name"] == "skep"
    assert first["host.id"] == "0123456789abcdef0123456789abcdef"
    assert first["host.name"] == socket.gethostname()
    assert first["os.type"] == "linux"
    namespace = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")
    assert first["service.instance.id"] == str(uuid.uuid5(namespace, "0123456789abcdef0123456789abcdefskep"))
    renamed = dict(identity.detect_resource({"service.name": "bees"}).attributes)
    assert renamed["service.instance.id"] != first["service.instance.id"]
    given = dict(identity.detect_resource({"service.instance.id": "mine"}).attributes)
    assert given["service.instance.id"] == "mine"


class Source:
    """One image with everything there is to tell."""

    def image_statuses(self) -> list[ImageStatus]:
        running = ImageStatus(
            name="dns",
            ref='registry.example/"dns"\n:1',
            state="degraded",
            digest="sha256:00",
            version="1.4",
            format="bumblebee",
            pull_failures={"img.unreachable": 3},
            attached={"on_packet": True, "on_call": False},
            upgrades=Upgrades(2, 0.25, 0.5),
            usage={"on_packet": ProgramUsage(12, 1_500_000_000, 3)},
            series=7,
            folded=2,
            map_entries={"queries": (5, 1024)},
            streams={"dns.query": True, "dns.other": False},
            lost={"dns.query": 9},
            ring_fill={"dns.query": 0.5},
            scrape_s=0.25,
            scrape_ok=True,
        )
        return [running, ImageStatus("other", "catalog:other", "pulling")]

    def stream_counts(self) -> list[StreamCounts]:
        return [StreamCounts("dns", "dns.query", 15, 1, 2, 4, {"rate": 8})]

    def runs_measured(self) -> bool:
        return True

    def otlp_accounts(self) -> dict[str, Account]:
        logs = Account(accepted=1, pending=6).attempted("ok", 100, 0.05).attempted("http_503", 100, 99.0)
        return {"logs": logs, "metrics": Account(forgotten=8)}

    def line_counts(self) -> dict[str, int]:
        return {"written": 4, "dropped": 3}

    def scrape_requests(self) -> tuple[dict[int, int], int]:
        return {200: 7, 503: 1}, 2

    def last_reload(self) -> tuple[bool, float]:
        return False, 1.5e9


def test_own_metrics_say_what_the_agent_knows() -> None:
    """Each is in the text once, with its labels, and the events' account balances."""
    families = {
        family.name: family for family in text_string_to_metric_families(OwnMetrics(Source()).render().decode())
    }
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    dns, stream = ("image", "dns"), ("stream", "dns.query")
    expected = {
        ("skep_image_info", ("digest", "sha256:00"), ("format", "bumblebee"), dns,
         ("ref", 'registry.example/"dns"\n:1'), ("version", "1.4")): 1,
        ("skep_image_pull_failures_total", ("code", "img.unreachable"), dns): 3,
        ("skep_program_attached", dns, ("program", "on_call")): 0,
        ("skep_program_attached", dns, ("program", "on_packet")): 1,
        ("skep_program_runs_total", dns, ("program", "on_packet")): 12,
        ("skep_program_run_seconds_total", dns, ("program", "on_packet")): 1.5,
        ("skep_program_recursion_misses_total", dns, ("program", "on_packet")): 3,
        ("skep_image_upgrades_total", dns): 2,
        ("skep_image_upgrade_overlap_seconds_total", dns): 0.25,
        ("skep_image_upgrade_gap_seconds_total", dns): 0.5,
        ("skep_metric_series", dns): 7,
        ("skep_series_folded_total", dns): 2,
        ("skep_map_entries", dns, ("map", "queries")): 5,
        ("skep_map_max_entries", dns, ("map", "queries")): 1024,
        ("skep_ring_lost_total", dns, stream): 9,
        ("skep_ring_fill_ratio_max", dns, stream): 0.5,
        ("skep_scrape_collector_duration_seconds", ("collector", "dns")): 0.25,
        ("skep_scrape_collector_success", ("collector", "dns")): 1,
        ("skep_scrape_collector_success", ("collector", "other")): 0,
        ("skep_events_received_total", dns, stream): 15,
        ("skep_events_exported_total", dns, stream): 1,
        ("skep_events_failed_total", dns, stream): 2,
        ("skep_events_dropped_total", dns, ("reason", "rate"), stream): 8,
        ("skep_events_queued", dns, stream): 4,
        ("skep_otlp_items_total", ("outcome", "accepted"), ("signal", "logs")): 1,
        ("skep_otlp_items_total", ("outcome", "failed"), ("signal", "metrics")): 0,
        ("skep_otlp_items_pending", ("signal", "logs")): 6,
        ("skep_otlp_series_forgotten_total", ("signal", "metrics")): 8,
        ("skep_otlp_requests_total", ("cause", "http_503"), ("signal", "logs")): 1,
        ("skep_otlp_request_duration_seconds_bucket", ("le", "0.025"), ("signal", "logs")): 0,
        ("skep_otlp_request_duration_seconds_bucket", ("le", "0.05"), ("signal", "logs")): 1,
        ("skep_otlp_request_duration_seconds_bucket", ("le", "30.0"), ("signal", "logs")): 1,
        ("skep_otlp_request_duration_seconds_bucket", ("le", "+Inf"), ("signal", "logs")): 2,
        ("skep_otlp_request_duration_seconds_sum", ("signal", "logs")): 99.05,
        ("skep_stream_info", dns, ("lost", "counted"), stream): 1,
        ("skep_stream_info", dns, ("lost", "unknown"), ("stream", "dns.other")): 1,
        ("skep_scrape_requests_total", ("code", "503")): 1,
        ("skep_scrape_requests_in_flight",): 2,
        ("skep_json_events_total", ("outcome", "dropped")): 3,
        ("skep_config_last_reload_successful",): 0,
        ("skep_config_last_reload_success_timestamp_seconds",): 1.5e9,
    }  # fmt: skip
    assert {key: samples.get(key) for key in expected} == expected
    states = [key for key in samples if key[0] == "skep_image_state"]
    assert len(states) == 2 * len(STATES)
    assert samples["skep_image_state", dns, ("state", "degraded")] == 1
    assert samples["skep_image_state", ("image", "other"), ("state", "pulling")] == 1
    assert sum(samples[key] for key in states) == 2
    assert "process_resident_memory_bytes" in families
    assert "process_cpu_seconds" in families
    bare = OwnMetrics(Source(), exporter=False).render().decode()
    assert {family.name for family in text_string_to_metric_families(bare)} == {
        name for name in families if not name.startswith(("process_", "skep_scrape_requests"))
    }


def test_part_that_fails_is_told_and_started_again(
    tmp_path: Path, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in one thread ends neither the agent nor that part of it; SIGTERM still ends it cleanly."""
    began: list[float] = []
    real_run = EventReader.run

    def run(self: EventReader, stop: threading.Event) -> None:
        began.append(time.monotonic())
        if len(began) == 1:
            raise RuntimeError("a bug")
        real_run(self, stop)

    def end_when_running_again() -> None:
        end = time.monotonic() + 20
        while len(began) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(EventReader, "run", run)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    log.configure("info", "json", lines)
    try:
        agent = Agent(AgentConfig(store=StoreConfig(path=str(tmp_path))), Options(("127.0.0.1:0",)))
        threading.Thread(target=end_when_running_again, daemon=True).start()
        assert agent.run() == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    entries = [json.loads(line) for line in lines.getvalue().splitlines()]
    [told] = [entry for entry in entries if entry["level"] == "error"]
    assert (told["part"], "RuntimeError: a bug" in told["traceback"]) == ("events", True)
    assert len(began) == 2
    assert entries[-1]["msg"] == "skep stopped"
