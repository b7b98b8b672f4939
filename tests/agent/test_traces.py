"""Spans of the agent's own work: what they say, that they end up somewhere, and that they cost nothing while off."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.images import bee_manifest
from tests.support.otlp_receiver import Answer, GrpcReceiver, OtlpReceiver
from tests.support.registry import hostile_registry

from .harness import Agent, running_agent
from .objects import counting, make_calls, write

PID = os.getpid()
RETRY = "defaults: {retry: {first: 1s, max: 1s}}"
ON = "telemetry: {traces: true}"


def entry(directory: Path) -> str:
    """One image of the configuration that counts this process's calls."""
    return json.dumps({"ref": str(write(directory, "calls", counting("calls"))), "globals": {"tgid": PID}})


def otlp(endpoint: str, **more: object) -> str:
    """Traces alone go to this receiver."""
    return "otlp: " + json.dumps(
        {"endpoint": endpoint, "metrics": {"enabled": False}, "logs": {"enabled": False}} | more
    )


def test_images_life_reload_and_scrape_are_traced_to_the_end(tmp_path: Path) -> None:
    """Each stage below its image's bring-up; a failure with its code; what is made last is posted at SIGTERM."""
    with hostile_registry() as registry, OtlpReceiver() as receiver:
        program = counting("calls")
        manifest = bee_manifest(program)
        registry.blob("test/calls", program)
        registry.blob("test/calls", b"{}")
        digest = registry.manifest("test/calls", "1", manifest)
        image = json.dumps({"ref": f"{registry.host}/test/calls:1", "globals": {"tgid": PID}})
        broken = write(tmp_path, "broken", b"no object")
        config = f"images: [{image}, {{ref: {broken}}}]\n{RETRY}\n{otlp(receiver.endpoint)}\n{ON}\n"
        with running_agent(tmp_path, config) as agent:
            agent.wait_states(calls="running", broken="failed")
            (tmp_path / "agent.yaml").write_text(f"store: {{path: store}}\n{config}# again\n")
            agent.process.send_signal(signal.SIGHUP)
            agent.wait(lambda _: agent.lines("configuration reloaded"))
            began_s = time.monotonic()
            assert agent.stop() == 0
            assert time.monotonic() - began_s < 10
        spans = receiver.spans()
    by_name: dict[str, list[object]] = {}
    for span in spans:
        by_name.setdefault(span.name, []).append(span)
    bring_ups = {
        text(span, "skep.image"): span
        for span in sorted(spans, key=lambda s: -s.start_time_unix_nano)
        if span.name == "image.bring_up"
    }
    up = bring_ups["calls"]
    assert (text(up, "skep.digest"), up.status.code) == (digest, 0)
    stages = sorted(
        (span for span in spans if span.trace_id == up.trace_id and span is not up),
        key=lambda s: s.start_time_unix_nano,
    )
    assert [span.name for span in stages] == [
        "image.resolve", "image.pull", "image.verify", "image.plan", "image.loader", "image.load", "image.attach",
    ]  # fmt: skip
    for span in stages:
        assert up.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano <= up.end_time_unix_nano
    loader = stages[4]
    assert {span.parent_span_id for span in stages[5:]} == {loader.span_id}
    assert {span.parent_span_id for span in stages[:5]} == {up.span_id}
    failed = bring_ups["broken"]
    assert (failed.status.code, text(failed, "error.type")) == (2, "elf.magic")
    [reload] = [span for span in spans if span.name == "reload"]
    assert text(reload, "skep.cause") == "SIGHUP"
    assert by_name["scrape"]
    resources = {
        attribute.value.string_value
        for each in receiver.received
        for resource in each.message.resource_spans  # type: ignore[union-attr]
        for attribute in resource.resource.attributes
        if attribute.key == "service.name"
    }
    assert resources == {"skep"}


def text(span: object, name: str) -> str:
    """A text attribute of a span; empty if it has none."""
    return next((each.value.string_value for each in span.attributes if each.key == name), "")  # type: ignore[attr-defined]


def test_posts_are_traced_and_spans_are_accounted_for(tmp_path: Path) -> None:
    """Over gRPC, asked for by the environment; the other signals go on, and counts are those of the receiver."""
    with GrpcReceiver() as receiver:
        environment = {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=7",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }
        config = f"images: [{entry(tmp_path)}]\notlp: {{metrics: {{interval: 1s}}}}"
        with running_agent(tmp_path, config, environment=environment) as agent:
            agent.wait_states(calls="running")
            make_calls(30)
            agent.wait(lambda page: page.sum("skep_events_exported_total") == 30)
            page = agent.wait(lambda page: page.sum("skep_otlp_items_total", signal="traces", outcome="accepted") > 3)
            assert page.sum("skep_otlp_items_total", signal="traces", outcome="failed") == 0
            assert page.sum("skep_otlp_request_duration_seconds_count", signal="traces") > 0
            receiver.wait(lambda _: any(span.name == "export.metrics" for span in receiver.spans()))
        spans = receiver.spans()
        assert {each.headers["x-tenant"] for each in receiver.received} == {"7"}
    [logs] = [span for span in spans if span.name == "export.logs"]
    assert next(each.value.int_value for each in logs.attributes if each.key == "skep.items") == 30
    metrics = next(span for span in spans if span.name == "export.metrics")
    assert next(each.value.int_value for each in metrics.attributes if each.key == "skep.accepted") > 0
    assert any(span.parent_span_id == metrics.span_id and span.name == "export.read" for span in spans)


@pytest.mark.parametrize("answer", [Answer(503), Answer(400), Answer(reset=True)])
def test_receiver_that_takes_no_spans_is_told_once(tmp_path: Path, answer: Answer) -> None:
    """One line with what it said, spans counted as failed, everything else as ever; and no traceback."""
    with OtlpReceiver([answer]) as receiver:
        config = f"images: [{entry(tmp_path)}]\n{otlp(receiver.endpoint, timeout='1s')}\n{ON}"
        environment = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
        with running_agent(tmp_path, config, environment=environment) as agent:
            agent.wait_states(calls="running")
            make_calls(3)
            page = agent.wait(lambda page: page.sum("skep_otlp_items_total", signal="traces", outcome="failed") > 0)
            assert page.sum("ebpf_calls_total") == 3
            [line] = agent.lines("receiver is not available", signal="traces")[:1]
            assert line["reason"]
            assert agent.stop() == 0
            assert [each for each in agent.log.splitlines() if not each.startswith("{")] == []


def test_receiver_of_spans_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """The deadline of SIGTERM is for spans too."""
    with OtlpReceiver([Answer(silent=True)]) as receiver:
        config = f"images: [{entry(tmp_path)}]\n{otlp(receiver.endpoint, timeout='60s')}\n{ON}"
        with running_agent(tmp_path, config, environment={"OTEL_BSP_SCHEDULE_DELAY": "100"}) as agent:
            agent.wait_states(calls="running")
            time.sleep(0.5)
            began_s = time.monotonic()
            assert agent.stop() == 0
            assert time.monotonic() - began_s < 10
            assert agent.lines("traces are lost: their receiver did not take them in time")


def imported(agent: Agent) -> set[str]:
    """Modules it has imported, by the interpreter's own account."""
    return {line.rpartition("|")[2].strip() for line in agent.log.splitlines() if line.startswith("import time:")}


def test_nothing_of_tracing_is_imported_while_it_is_off(tmp_path: Path) -> None:
    """With a receiver for the other signals; a reload turns it on and off again."""
    with OtlpReceiver() as receiver:
        config = f"images: [{entry(tmp_path)}]\notlp: {{endpoint: '{receiver.endpoint}', metrics: {{interval: 1s}}}}\n"
        environment = {"PYTHONPROFILEIMPORTTIME": "1", "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with running_agent(tmp_path, config, environment=environment) as agent:
            agent.wait_states(calls="running")
            receiver.wait(lambda received: len(received) > 0)
            assert "exporter.agent.outlets" in imported(agent)
            assert not {name for name in imported(agent) if name.startswith("opentelemetry.sdk.trace")}
            assert not {name for name in imported(agent) if name.startswith("opentelemetry.exporter")}
            assert receiver.spans() == []

            def reload(more: str) -> None:
                before = len(agent.lines("configuration reloaded"))
                (tmp_path / "agent.yaml").write_text(f"store: {{path: store}}\n{config}{more}")
                agent.process.send_signal(signal.SIGHUP)
                agent.wait(lambda _: len(agent.lines("configuration reloaded")) > before)

            reload(ON)
            agent.wait(lambda page: page.sum("skep_otlp_items_total", signal="traces", outcome="accepted") > 0)
            assert {name for name in imported(agent) if name.startswith("opentelemetry.sdk.trace")}
            reload("# off again")
            spans = len(receiver.spans())
            assert spans
            page = agent.scrape()
            time.sleep(0.5)
            assert len(receiver.spans()) == spans == page.sum("skep_otlp_items_total", signal="traces")
