"""Where events go: JSON lines to a file or stdout, beside OTLP, sampled, and made only where they are wanted."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from exporter.resources import catalog_dir
from tests.support.otlp_receiver import OtlpReceiver

from .harness import Page, running_agent
from .objects import counting, make_calls, write

PID = os.getpid()
EVENT = "ebpf.calls"


def image(directory: Path, **more: object) -> str:
    """One image of the configuration that counts this process's calls."""
    path = write(directory, "calls", counting("calls"))
    return json.dumps({"ref": str(path), "globals": {"tgid": PID}, **more})


def lines(path: Path) -> list[dict[str, object]]:
    """The events of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def connect_once() -> None:
    """Make the host's TCP sockets change their states."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0],
    ):
        client.shutdown(socket.SHUT_RDWR)


def test_event_that_is_enabled_is_made_and_one_that_is_not_is_not(tmp_path: Path) -> None:
    """The shipped tcp-states makes no record unless the configuration enables its event; it counts either way."""
    name, metric = "ebpf.tcp.state_change", "ebpf_tcp_state_changes_total"
    off = f"images: [{{ref: 'oci:{catalog_dir()}:tcp-states', name: tcp}}]\nevents: {{json: {{path: e.jsonl}}}}\n"
    with running_agent(tmp_path / "off", off) as agent:
        agent.wait_states(tcp="running")
        connect_once()
        page = agent.wait(lambda page: page.sum(metric) > 3)
        assert page.all("skep_events_received_total", stream=name) == [0]
        agent.stop()
    on = off.replace("name: tcp", f"name: tcp, events: {{{name}: {{enabled: true}}}}")
    with running_agent(tmp_path / "on", on) as agent:
        agent.wait_states(tcp="running")
        connect_once()
        agent.wait(lambda page: page.sum("skep_events_exported_total", stream=name) > 3)
        agent.stop()
    told = lines(tmp_path / "on" / "e.jsonl")
    assert {line["event"] for line in told} == {name}
    assert any(line["attributes"]["new_state"] == "established" for line in told)  # type: ignore[index]
    ours = [line["attributes"] for line in told if line["attributes"]["family"] == "ipv4"]  # type: ignore[index]
    assert "127.0.0.1" in {one["network.peer.address"] for one in ours}


def test_global_that_contradicts_an_event_is_refused(tmp_path: Path) -> None:
    """The image fails with the remedy; the agent lives."""
    entry = f"{{ref: 'oci:{catalog_dir()}:tcp-states', name: tcp, globals: {{events_enabled: true}}}}"
    with running_agent(tmp_path, f"images: [{entry}]") as agent:
        agent.wait_states(tcp="failed")
        assert "say events.ebpf.tcp.state_change.enabled" in str(agent.lines("image failed")[0]["reason"])


def test_file_has_every_event_and_is_renamed_as_it_fills(tmp_path: Path) -> None:
    """Whole lines, none lost, none twice, no file above its size, the oldest go by number."""
    config = f"images: [{image(tmp_path)}]\nevents: {{json: {{path: e.jsonl, max_size: 64KiB, keep: 3}}}}\n"
    with running_agent(tmp_path, config) as agent:
        agent.wait_states(calls="running")
        for _ in range(4):
            make_calls(300)
            agent.wait(lambda page: page.sum("skep_events_queued") == 0)
        page = agent.wait(lambda page: page.sum("skep_events_exported_total") == 1200)
        assert page.all("skep_json_events_total", outcome="written") == [1200]
        # Somebody else's rotation is respected.
        (tmp_path / "e.jsonl").rename(tmp_path / "taken.jsonl")
        make_calls(10)
        agent.wait(lambda page: page.sum("skep_events_exported_total") == 1210)
    files = [tmp_path / "e.jsonl.2", tmp_path / "e.jsonl.1", tmp_path / "taken.jsonl", tmp_path / "e.jsonl"]
    told = [line for file in files for line in lines(file)]
    assert [line["attributes"]["number"] for line in told] == list(range(1, 1211))  # type: ignore[index]
    assert {(line["event"], line["image"]) for line in told} == {(EVENT, "calls")}
    assert all(30_000 < file.stat().st_size <= 65536 for file in files[:2])
    assert (tmp_path / "e.jsonl").stat().st_mode & 0o777 == 0o640


def test_file_that_cannot_be_written_is_tried_until_it_can(tmp_path: Path) -> None:
    """Events wait; the log says it once; a restart of nothing is needed."""
    config = f"images: [{image(tmp_path)}]\nevents: {{json: {{path: later/e.jsonl}}}}\n"
    with running_agent(tmp_path, config) as agent:
        agent.wait_states(calls="running")
        make_calls(20)
        agent.wait(lambda _: agent.lines("events cannot be written"))
        assert agent.scrape().sum("skep_events_queued") == 20
        (tmp_path / "later").mkdir()
        agent.wait(lambda page: page.sum("skep_events_exported_total") == 20)
        assert agent.lines("events are written again")
    assert len(lines(tmp_path / "later" / "e.jsonl")) == 20


def test_stdout_has_the_events(tmp_path: Path) -> None:
    """As journald would get them; nobody reading it holds up nothing but the lines."""
    config = f"images: [{image(tmp_path)}]\nevents: {{json: {{stdout: true}}}}\n"
    # The pipe of a sleeping reader holds 64 KiB, some 450 lines.
    read_end, write_end = os.pipe()
    with running_agent(tmp_path, config, stdout=write_end) as agent:
        os.close(write_end)
        agent.wait_states(calls="running")
        make_calls(900)
        page = agent.wait(lambda page: page.sum("skep_events_received_total") == 900)
        assert page.sum("skep_events_queued") > 0
        data = b""
        while data.count(b"\n") < 900:
            data += os.read(read_end, 1 << 16)
        agent.wait(lambda page: page.sum("skep_events_exported_total") == 900)
    os.close(read_end)
    assert [json.loads(line)["attributes"]["number"] for line in data.splitlines()] == list(range(1, 901))


def test_otlp_and_lines_get_the_same_events(tmp_path: Path) -> None:
    """The account follows OTLP; the lines have one of their own."""
    with OtlpReceiver() as receiver:
        otlp = f"otlp: {{endpoint: '{receiver.endpoint}', metrics: {{enabled: false}}}}\n"
        config = f"images: [{image(tmp_path)}]\n{otlp}events: {{json: {{path: e.jsonl}}}}\n"
        with running_agent(tmp_path, config) as agent:
            agent.wait_states(calls="running")
            make_calls(250)
            page = agent.wait(lambda page: page.sum("skep_events_exported_total") == 250)
            page = agent.wait(lambda page: page.sum("skep_json_events_total", outcome="written") == 250)
            assert page.all("skep_json_events_total", outcome="dropped") == [0]
        posted = [
            attribute.value.int_value
            for request in receiver.logs()
            for of_resource in request.resource_logs
            for of_scope in of_resource.scope_logs
            for record in of_scope.log_records
            for attribute in record.attributes
            if attribute.key == "number"
        ]
    written = [line["attributes"]["number"] for line in lines(tmp_path / "e.jsonl")]  # type: ignore[index]
    assert posted == written == list(range(1, 251))


def test_sampling_is_by_stream_and_counted(tmp_path: Path) -> None:
    """Of ten records one; the rest is dropped for that reason, the counter has them all."""
    entry = image(tmp_path, events={EVENT: {"sample_one_in": 10}})
    with running_agent(tmp_path, f"images: [{entry}]\nevents: {{json: {{path: e.jsonl}}}}\n") as agent:
        agent.wait_states(calls="running")
        make_calls(200)

        def all_in(page: Page) -> bool:
            return page.sum("skep_events_exported_total") == 20

        page = agent.wait(all_in)
        assert page.sum("skep_events_dropped_total", stream=EVENT, reason="sample") == 180
        assert page.sum("ebpf_calls_total") == 200
    told = lines(tmp_path / "e.jsonl")
    assert [line["attributes"]["number"] for line in told] == list(range(1, 201, 10))  # type: ignore[index]
