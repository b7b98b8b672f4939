"""Another configuration while the agent runs: by SIGHUP or by its content, and never by halves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.support.otlp_receiver import OtlpReceiver
from tests.support.systemd import ServiceManager

from .harness import Agent, Page, gone_from_kernel, in_kernel, running_agent
from .objects import counting, make_calls, only_missing_tracepoint, rejected_by_verifier, write

PID = os.getpid()
REFUSED = "configuration refused; what runs goes on as before"


def entry(directory: Path, name: str = "calls", **more: object) -> str:
    """One image of the configuration that counts this process's calls."""
    path = write(directory, name, counting(name))
    return json.dumps({"ref": str(path), "globals": {"tgid": PID}, **more})


def calls(page: Page, name: str = "calls") -> float:
    """What the counting object counted."""
    return page.sum(f"ebpf_{name}_total")


def change(agent: Agent, config: str) -> None:
    """Replace the configuration, as an editor or a package does."""
    file = agent.directory / "agent.yaml"
    new = file.with_suffix(".new")
    new.write_text(f"store: {{path: store}}\n{config}")
    new.replace(file)


def reload(agent: Agent, config: str) -> Page:
    """Change the configuration, send SIGHUP, and wait until it was read."""

    def told() -> int:
        return sum(len(agent.lines(text)) for text in ("configuration reloaded", REFUSED))

    before = told()
    change(agent, config)
    agent.process.send_signal(signal.SIGHUP)
    agent.wait(lambda _: told() > before)
    return agent.scrape()


def test_images_come_and_go_and_the_others_go_on(tmp_path: Path) -> None:
    """What is new is brought up, what is gone is detached, what is the same is not touched."""
    with running_agent(tmp_path, f"images: [{entry(tmp_path)}, {entry(tmp_path, 'others')}]") as agent:
        agent.wait_states(calls="running", others="running")
        make_calls(10)
        before = agent.programs()
        digests = {one["name"]: one["digest"] for one in agent.status()["images"]}
        page = reload(agent, f"images: [{entry(tmp_path)}, {entry(tmp_path, 'more')}]")
        [line] = agent.lines("image stopped, it is no longer configured", image="others")
        assert (line["ref"], line["digest"]) == (str(tmp_path / "others.o"), digests["others"])
        assert page.all("skep_config_last_reload_successful") == [1]
        agent.wait_states(calls="running", more="running")
        make_calls(5)
        page = agent.wait(lambda page: calls(page, "more") == 5)
        assert calls(page) == 15
        assert page.all("ebpf_others_total") == []
        assert page.all("skep_image_state", image="others") == []
        left = before & agent.programs()
        assert len(left) == 1
        if shutil.which("bpftool"):
            assert gone_from_kernel(before - left)


def test_bad_configuration_changes_nothing_and_says_so(tmp_path: Path) -> None:
    """By metric, log and status; a good one makes all well again."""
    with running_agent(tmp_path, f"images: [{entry(tmp_path)}]") as agent:
        page = agent.wait_states(calls="running")
        [first_s] = page.all("skep_config_last_reload_success_timestamp_seconds")
        make_calls(3)
        before = agent.programs()
        page = reload(agent, f"images: [{entry(tmp_path, 'others')}]\nlisten: here\nretry: 1")
        assert page.all("skep_config_last_reload_successful") == [0]
        assert page.all("skep_config_last_reload_success_timestamp_seconds") == [first_s]
        refused = [str(line["reason"]) for line in agent.lines(REFUSED)]
        assert [reason.partition("agent.yaml:")[2].partition(": ")[0] for reason in refused] == ["3:1", "4:1"]
        assert "listen is not a key" in agent.status()["reload_error"]
        make_calls(4)
        page = agent.wait(lambda page: calls(page) == 7)
        assert page.all("skep_image_state", image="others") == []
        page = reload(agent, f"images: [{entry(tmp_path)}]\n# better\n")
        assert page.all("skep_config_last_reload_successful") == [1]
        assert page.sum("skep_config_last_reload_success_timestamp_seconds") > first_s
        assert agent.programs() == before
        assert calls(agent.scrape()) == 7


def test_unreadable_file_and_certificate_change_nothing(tmp_path: Path) -> None:
    """What a configuration names is opened before anything changes."""
    with running_agent(tmp_path, f"images: [{entry(tmp_path)}]") as agent:
        agent.wait_states(calls="running")
        text = "images: []\notlp: {endpoint: 'https://127.0.0.1:1', ca_file: /nothing/ca.pem}"
        page = reload(agent, text)
        assert page.all("skep_config_last_reload_successful") == [0]
        assert page.state("calls") == "running"
        page = reload(agent, "images: []\nresource: {attributes: {a: '${file:/nothing}'}}")
        assert page.all("skep_config_last_reload_successful") == [0]
        assert page.state("calls") == "running"


def test_changed_content_is_noticed_without_a_signal(tmp_path: Path) -> None:
    """Also of a file that is new in agent.d; a refused one is told once and not again until it changes."""
    arguments = ("--config.check-interval=300ms",)
    with running_agent(tmp_path, f"images: [{entry(tmp_path)}]", *arguments) as agent:
        agent.wait_states(calls="running")
        directory = tmp_path / "agent.d"
        directory.mkdir()
        (directory / "more.yaml").write_text(f"images: [{entry(tmp_path, 'others')}]")
        agent.wait(lambda page: page.all("skep_image_state", image="others"))
        agent.wait_states(calls="running", others="running")
        (directory / "more.yaml").write_text("images: nothing")
        agent.wait(lambda page: page.all("skep_config_last_reload_successful") == [0])
        time.sleep(1.0)
        assert len(agent.lines(REFUSED)) == 1
        assert agent.scrape().state("others") == "running"
        (directory / "more.yaml").unlink()
        agent.wait(lambda page: page.all("skep_config_last_reload_successful") == [1])
        assert agent.scrape().all("skep_image_state", image="others") == []


def test_same_metrics_carry_their_counts_over_an_upgrade(tmp_path: Path) -> None:
    """Another object whose tables mean the same: old final + new, on the same series; the event too is there once."""
    config = f"images: [{entry(tmp_path)}]\nevents: {{json: {{path: e.jsonl}}}}\n"
    with running_agent(tmp_path, config) as agent:
        agent.wait_states(calls="running")
        make_calls(100)
        agent.wait(lambda page: page.sum("skep_events_exported_total") == 100)
        before = agent.programs()
        write(tmp_path, "second", counting("calls", "\nconst volatile u32 another = 1;\n"))
        changed = json.dumps({"ref": str(tmp_path / "second.o"), "name": "calls", "globals": {"tgid": PID}})
        reload(agent, config.replace(entry(tmp_path), changed))
        agent.wait(lambda _: agent.lines("image switched to another version"))
        assert calls(agent.scrape()) == 100
        make_calls(3)  # below what the old maps had: no fall is there to show that these are others
        agent.wait(lambda page: calls(page) == 103)
        make_calls(200)  # and above it
        page = agent.wait(lambda page: page.sum("skep_events_exported_total") == 303)
        assert calls(page) == 303
        assert page.all("ebpf_calls_total", parity="0") == [50 + 101]
        [line] = agent.lines("image switched to another version")
        assert (line["tables_carried"], line["tables_new"]) == (1, 0)
        assert line["ref"] == str(tmp_path / "second.o")
        assert 0 < float(str(line["overlap_ms"])) < 5000
        [overlap_s] = page.all("skep_image_upgrade_overlap_seconds_total", image="calls")
        assert abs(overlap_s * 1000 - float(str(line["overlap_ms"]))) < 0.001
        assert page.all("skep_image_upgrades_total", image="calls") == [1]
        assert page.all("skep_image_upgrade_gap_seconds_total", image="calls") == [0]
        if shutil.which("bpftool"):
            assert gone_from_kernel(before)
    events = [json.loads(line)["attributes"]["number"] for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert events == [*range(1, 101), *range(1, 204)]


def test_other_meaning_begins_new_series(tmp_path: Path) -> None:
    """A metric with other labels is another series: it starts at nothing, now."""
    with OtlpReceiver() as receiver:
        otlp = f"\notlp: {{endpoint: '{receiver.endpoint}', metrics: {{interval: 1s}}, logs: {{enabled: false}}}}\n"
        with running_agent(tmp_path, f"images: [{entry(tmp_path)}]{otlp}") as agent:
            agent.wait_states(calls="running")
            make_calls(100)
            agent.wait(lambda page: calls(page) == 100)
            changed_ns = time.time_ns()
            dropped = entry(tmp_path, metrics={"ebpf_calls_total": {"drop_labels": ["parity"]}})
            reload(agent, f"images: [{dropped}]{otlp}")
            agent.wait(lambda page: calls(page) == 0)
            make_calls(7)
            page = agent.wait(lambda page: calls(page) == 7)
            assert page.all("ebpf_calls_total") == [7]
            agent.stop()
        [metric] = [
            metric
            for of_resource in receiver.metrics()[-1].resource_metrics
            for of_scope in of_resource.scope_metrics
            for metric in of_scope.metrics
            if metric.name == "ebpf.calls"
        ]
        [point] = [each for each in metric.sum.data_points if not each.flags & 1]  # the old ones may end in it
        assert (point.as_int, point.start_time_unix_nano > changed_ns) == (7, True)


@pytest.mark.parametrize("broken", [rejected_by_verifier, only_missing_tracepoint, lambda: b"no object"])
def test_version_that_does_not_come_up_leaves_the_old_one_running(tmp_path: Path, broken: object) -> None:
    """Stale, with the reason; and when it is mended the counts go on."""
    config = f"images: [{entry(tmp_path)}]"
    with running_agent(tmp_path, config) as agent:
        agent.wait_states(calls="running")
        make_calls(10)
        before = agent.programs()
        write(tmp_path, "broken", broken())  # type: ignore[operator]
        page = reload(agent, f"images: [{{ref: {tmp_path / 'broken.o'}, name: calls}}]")
        assert page.all("skep_config_last_reload_successful") == [1]
        agent.wait_states(calls="stale")
        assert agent.programs() == before
        make_calls(10)
        agent.wait(lambda page: calls(page) == 20)
        assert "runs the version from before" in agent.status()["images"][0]["reason"]
        reload(agent, config)
        agent.wait_states(calls="running")
        make_calls(1)
        agent.wait(lambda page: calls(page) == 21)
        assert agent.programs() == before


def test_change_that_does_not_concern_the_kernel_loads_nothing(tmp_path: Path) -> None:
    """What is required or when to pull can change under a program that runs."""
    with running_agent(tmp_path, f"images: [{entry(tmp_path)}]") as agent:
        agent.wait_states(calls="running")
        before = agent.programs()
        reload(agent, f"images: [{entry(tmp_path, required=True, pull='never')}]")
        agent.wait(lambda _: agent.status()["images"][0]["required"])
        agent.wait_states(calls="running")
        assert agent.programs() == before
        assert agent.get("/-/ready")[0] == 200


def test_receivers_change_and_nothing_is_lost_on_the_way(tmp_path: Path) -> None:
    """Events that wait for a receiver that is away go to the one that comes with the new configuration."""
    images = f"images: [{entry(tmp_path)}]\n"
    away = "otlp: {endpoint: 'http://127.0.0.1:1', metrics: {enabled: false}}\n"
    with OtlpReceiver() as receiver, running_agent(tmp_path, images + away) as agent:
        agent.wait_states(calls="running")
        make_calls(100)
        agent.wait(lambda page: page.sum("skep_events_queued") == 100)
        reload(agent, images + f"otlp: {{endpoint: '{receiver.endpoint}', metrics: {{interval: 1s}}}}\n")
        make_calls(100)
        agent.wait(lambda page: page.sum("skep_events_exported_total") == 200)
        agent.wait(lambda page: page.sum("skep_otlp_items_total", signal="metrics", outcome="accepted") > 0)
        page = reload(agent, images + "events: {json: {path: e.jsonl}}\n")
        make_calls(50)
        page = agent.wait(lambda page: page.sum("skep_events_exported_total") == 250)
        assert page.sum("skep_otlp_items_total", signal="logs", outcome="accepted") == 200
        reload(agent, images)
        make_calls(5)
        agent.wait(lambda page: page.sum("skep_events_dropped_total", reason="no_receiver") == 5)
    assert len((tmp_path / "e.jsonl").read_text().splitlines()) == 50


def test_reload_is_told_to_the_service_manager_and_its_store_follows(tmp_path: Path) -> None:
    """RELOADING with its time, then READY; descriptors of a version that was replaced are let go of."""
    with ServiceManager(tmp_path / "notify") as manager:
        config = f"images: [{entry(tmp_path)}]"
        with running_agent(tmp_path, config, manager=manager) as agent:
            agent.wait_states(calls="running")
            manager.wait(lambda manager: manager.heard("READY=1") == 1)
            make_calls(10)
            first, before = set(manager.stored), agent.programs()
            write(tmp_path, "second", counting("calls", "\nconst volatile u32 another = 1;\n"))
            changed = json.dumps({"ref": str(tmp_path / "second.o"), "name": "calls", "globals": {"tgid": PID}})
            reload(agent, f"images: [{changed}]")
            manager.wait(lambda manager: manager.heard("READY=1") == 2)
            [told] = [lines for lines in manager.messages if "RELOADING=1" in lines]
            assert any(line.startswith("MONOTONIC_USEC=") for line in told)
            agent.wait(lambda _: agent.lines("image switched to another version"))
            manager.wait(lambda manager: not first & set(manager.stored))
            if shutil.which("bpftool"):
                assert gone_from_kernel(before)
            mine = agent.programs()
            agent.wait(lambda page: calls(page) == 10)
            agent.kill()
        if shutil.which("bpftool"):
            assert in_kernel(mine) == mine
        make_calls(5)
        with running_agent(tmp_path, f"images: [{changed}]", manager=manager) as agent:
            agent.wait_states(calls="running")
            # What was carried is in no map: this is the version that runs, since it does.
            agent.wait(lambda page: calls(page) == 5)
            reload(agent, "images: []")
            manager.wait(lambda manager: manager.stored == [])
