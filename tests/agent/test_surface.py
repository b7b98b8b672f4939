"""What scrapers and collectors may ask of a running agent: formats, TLS and passwords, gRPC, delta."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import bcrypt
import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.support.authority import Authority, Pair
from tests.support.otlp_receiver import GrpcReceiver, OtlpReceiver
from tests.support.prometheus import running_prometheus
from tests.support.systemd import ServiceManager

from .harness import running_agent
from .objects import counting, make_calls, write

PID = os.getpid()
OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3"


def image(directory: Path, name: str = "calls") -> str:
    """One image of the configuration that counts this process's calls."""
    return json.dumps({"ref": str(write(directory, name, counting(name))), "globals": {"tgid": PID}})


def secured(directory: Path) -> tuple[Authority, Pair, Path]:
    """A web configuration with a certificate and the user bee, password honey; and who vouches for it."""
    authority = Authority(directory / "authority")
    pair = authority.issue("agent")
    hashed = bcrypt.hashpw(b"honey", bcrypt.gensalt(4)).decode()
    web = directory / "web.yml"
    web.write_text(
        f"tls_server_config: {{cert_file: {pair.certificate}, key_file: {pair.key}}}\n"
        f"basic_auth_users: {{bee: '{hashed}'}}\n"
    )
    return authority, pair, web


def test_openmetrics_over_tls_with_a_password(tmp_path: Path) -> None:
    """One file turns both on: without the password 401, with it the whole exposition, images' and own."""
    authority, _, web = secured(tmp_path)
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


def test_prometheus_scrapes_what_happened_over_tls_with_a_password(tmp_path: Path) -> None:
    """It trusts one authority and knows one password; its filter by image and its format are its own."""
    authority, pair, web = secured(tmp_path)
    secure = {
        "scheme": "https",
        "tls_config": {"ca_file": str(authority.certificate)},
        "basic_auth": {"username": "bee", "password": "honey"},
        "params": {"collect[]": ["calls"]},
    }
    images = f"images: [{image(tmp_path)}, {image(tmp_path, 'others')}]"
    with running_agent(tmp_path, images, f"--web.config.file={web}") as agent:
        target = agent.url.removeprefix("https://")
        with running_prometheus(tmp_path / "prometheus", {"skep": target}, settings={"skep": secure}) as prometheus:
            prometheus.wait('skep_image_state{image="others",state="running"} == 1')
            make_calls(42)
            prometheus.wait("sum(ebpf_calls_total) == 42")
            prometheus.wait('up{job="skep"} == 1')
            assert not prometheus.query("ebpf_others_total")
            # A rotated certificate, and a password that is taken away, are noticed without a restart.
            pair.replace(authority.issue("renewed"))
            web.write_text(web.read_text().replace("bee:", "wasp:"))
            prometheus.wait('up{job="skep"} == 0')
            web.write_text(web.read_text().replace("wasp:", "bee:"))
            make_calls(1)
            prometheus.wait("sum(ebpf_calls_total) == 43")
    assert agent.lines("the web configuration was read again")


def test_sockets_of_a_socket_unit_are_served_over_a_restart(tmp_path: Path) -> None:
    """Beside what systemd keeps in its store; both come back, and a scraper that connects meanwhile only waits."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "metrics.sock"))
        unix.listen()
        port = tcp.getsockname()[1]
        config = f"images: [{image(tmp_path)}]"
        with ServiceManager(tmp_path / "notify", sockets=(tcp, unix)) as manager:
            with running_agent(tmp_path, config, "--web.systemd-socket", manager=manager) as agent:
                assert agent.url == f"http://127.0.0.1:{port}"
                agent.wait_states(calls="running")
                make_calls(10)
                assert agent.lines("listening", url=f"unix:{tmp_path / 'metrics.sock'}")
                assert agent.stop() == 0
            with socket.socket(socket.AF_UNIX) as early:
                early.settimeout(20)
                early.connect(str(tmp_path / "metrics.sock"))
                early.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                make_calls(1)
                with running_agent(tmp_path, config, "--web.systemd-socket", manager=manager) as agent:
                    assert early.recv(15) == b"HTTP/1.1 200 OK"
                    agent.wait(lambda page: page.sum("ebpf_calls_total") == 11)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_receiver_that_wants_a_certificate_gets_the_renewed_one(tmp_path: Path, protocol: str) -> None:
    """One it does not trust costs waiting; the one that replaces it in the same files is taken without a restart."""
    authority = Authority(tmp_path / "authority")
    server, stranger = authority.issue("receiver"), Authority(tmp_path / "other", "other").issue("stranger")
    receiver: GrpcReceiver | OtlpReceiver
    if protocol == "grpc":
        chain = [(server.key.read_bytes(), server.certificate.read_bytes())]
        roots = authority.certificate.read_bytes()
        receiver = GrpcReceiver(credentials=grpc.ssl_server_credentials(chain, roots, require_client_auth=True))
    else:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(server.certificate, server.key)
        receiver = OtlpReceiver(tls=context)
    settings = {
        "endpoint": receiver.endpoint,
        "protocol": protocol,
        "timeout": "2s",
        "ca_file": str(authority.certificate),
        "cert_file": str(stranger.certificate),
        "key_file": str(stranger.key),
        "metrics": {"interval": "1s"},
    }
    with receiver, running_agent(tmp_path, f"images: [{image(tmp_path)}]\notlp: {json.dumps(settings)}") as agent:
        agent.wait_states(calls="running")
        make_calls(20)
        agent.wait(lambda _: agent.lines("receiver is not available", signal="logs"))
        assert agent.scrape().sum("skep_events_queued") == 20
        assert receiver.received == []
        stranger.replace(authority.issue("client"))
        agent.wait(lambda page: page.sum("skep_events_exported_total") == 20, 60)
        agent.wait(lambda page: page.sum("skep_otlp_items_total", signal="metrics", outcome="accepted") > 0, 60)


def test_series_of_an_image_that_is_gone_end_at_the_receiver(tmp_path: Path) -> None:
    """Each with one point that has no value (NoRecordedValue); those of the image that stays do not."""
    with OtlpReceiver() as receiver:
        otlp = f"otlp: {{endpoint: '{receiver.endpoint}', metrics: {{interval: 1s}}, logs: {{enabled: false}}}}"
        calls, others = image(tmp_path), image(tmp_path, "others")

        def points(name: str) -> list[tuple[int, bool]]:
            return [
                (point.as_int, bool(point.flags & 1))
                for request in receiver.metrics()
                for resource in request.resource_metrics
                for scope in resource.scope_metrics
                for metric in scope.metrics
                if metric.name == name
                for point in metric.sum.data_points
            ]

        with running_agent(tmp_path, f"images: [{calls}, {others}]\n{otlp}") as agent:
            agent.wait_states(calls="running", others="running")
            make_calls(4)
            agent.wait(lambda _: (2, False) in points("ebpf.others") and (2, False) in points("ebpf.calls"))
            (tmp_path / "agent.yaml").write_text(f"store: {{path: store}}\nimages: [{calls}]\n{otlp}")
            agent.process.send_signal(signal.SIGHUP)
            agent.wait(lambda _: points("ebpf.others")[-2:] == [(0, True), (0, True)])  # parity 0 and 1
            told = len(points("ebpf.others"))
            make_calls(4)
            agent.wait(lambda _: (4, False) in points("ebpf.calls"))
            assert len(points("ebpf.others")) == told
            assert not any(ended for _, ended in points("ebpf.calls"))


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
