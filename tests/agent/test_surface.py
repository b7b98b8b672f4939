"""What scrapers and collectors may ask of a running agent: formats, TLS and passwords, gRPC, delta."""

from __future__ import annotations

import base64
import json
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import bcrypt
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.support.authority import Authority
from tests.support.otlp_receiver import GrpcReceiver

from .harness import running_agent
from .objects import counting, make_calls, write

PID = os.getpid()
OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3"


def image(directory: Path, name: str = "calls") -> str:
    """One image of the configuration that counts this process's calls."""
    return json.dumps({"ref": str(write(directory, name, counting(name))), "globals": {"tgid": PID}})


def test_openmetrics_over_tls_with_a_password(tmp_path: Path) -> None:
    """One file turns both on: without the password 401, with it the whole exposition, images' and own."""
    authority = Authority(tmp_path / "authority")
    pair = authority.issue("agent")
    hashed = bcrypt.hashpw(b"honey", bcrypt.gensalt(4)).decode()
    web = tmp_path / "web.yml"
    web.write_text(
        f"tls_server_config: {{cert_file: {pair.certificate}, key_file: {pair.key}}}\n"
        f"basic_auth_users: {{bee: '{hashed}'}}\n"
    )
    context = ssl.create_default_context(cafile=str(authority.certificate))
    with running_agent(tmp_path, f"images: [{image(tmp_path)}]", f"--web.config.file={web}") as agent:
        assert agent.url.startswith("https://"), agent.url
        request = urllib.request.Request(agent.url + "/metrics", headers={"Accept": OPENMETRICS})

        def ask() -> tuple[int, str, str]:
            try:
                with urllib.request.urlopen(request, timeout=20, context=context) as answer:
                    return answer.status, answer.headers["Content-Type"], answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, "", ""

        assert ask()[0] == 401
        request.add_header("Authorization", "Basic " + base64.b64encode(b"bee:honey").decode())
        text = ""
        while 'skep_image_state{image="calls",state="running"} 1' not in text:
            text = ask()[2]
        make_calls(11)
        status, content_type, text = ask()
        assert (status, content_type.partition(";")[0]) == (200, "application/openmetrics-text")
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert sum(sample.value for sample in families["ebpf_calls"].samples) == 11
        assert "skep_image_state" in families
        web.write_text("basic_auth_users: [")
        assert ask()[0] == 500
        assert agent.lines("the web configuration cannot be used; every request gets 500")


def test_grpc_receiver_gets_the_deltas_and_every_event(tmp_path: Path) -> None:
    """Summed over all requests the deltas are the calls made; each call is one log record; the agent's own come too."""
    with GrpcReceiver() as receiver:
        otlp = (
            f"otlp: {{endpoint: '{receiver.endpoint}', protocol: grpc, "
            "metrics: {interval: 1s, temporality: delta}}\n"
        )
        with running_agent(tmp_path, f"images: [{image(tmp_path)}]\n{otlp}") as agent:
            agent.wait_states(calls="running")
            for _ in range(3):
                make_calls(100)
                agent.wait(lambda page: page.sum("skep_events_queued") == 0)
            agent.wait(lambda page: page.sum("skep_events_exported_total") == 300)
            assert agent.stop() == 0
        metrics = [
            metric
            for request in receiver.metrics()
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]
        records = [
            record
            for request in receiver.logs()
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]
    sums = [metric.sum for metric in metrics if metric.name == "ebpf.calls"]
    assert {total.aggregation_temporality for total in sums} == {1}
    assert sum(point.as_int for total in sums for point in total.data_points) == 300
    assert len(records) == 300
    assert any(metric.name.replace("_", ".") == "skep.image.state" for metric in metrics)


def test_environment_says_where_to_post_and_the_configuration_wins(tmp_path: Path) -> None:
    """OTEL_* variables are honoured as everywhere; one that is not understood is told."""
    with GrpcReceiver() as receiver:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=a%20b",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "soon",
        }
        config = f"images: [{image(tmp_path)}]\notlp: {{metrics: {{interval: 1s}}}}\n"
        with running_agent(tmp_path, config, environment=environment) as agent:
            agent.wait_states(calls="running")
            receiver.wait(lambda received: len(received) > 0)
            assert receiver.received[0].headers["x-tenant"] == "a b"
            [line] = agent.lines("an OTEL_ variable has no effect")
            assert "OTEL_EXPORTER_OTLP_TIMEOUT" in str(line["reason"])
