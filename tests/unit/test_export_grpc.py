"""OTLP over gRPC against a receiver that behaves, misbehaves, and is not there."""

import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest

from exporter.config import OtlpConfig
from exporter.errors import ExportError
from exporter.export import otlp
from exporter.export.grpc_transport import grpc_target
from exporter.export.sender import OtlpSender, Verdict
from exporter.model import Resource, Scope
from tests.support.certificates import certificate, needs_openssl
from tests.support.frame_literals import FrameLiteral, SeriesLiteral, counter, snapshot
from tests.support.otlp_receiver import Answer, GrpcReceiver, unused_port

BODY = otlp.metrics_requests(snapshot(FrameLiteral([counter()], [SeriesLiteral((("cpu", "0"),), (7,))])))[0]
LOGS = otlp.logs_requests(Resource(), [(Scope("exits"), b"\x12\x00")])[0]
NEVER = threading.Event()


def sender(receiver: GrpcReceiver | str, signal: str = "metrics", **changes: object) -> OtlpSender:
    """A sender without jitter, impatient enough for a test."""
    endpoint = receiver if isinstance(receiver, str) else receiver.endpoint
    config = replace(OtlpConfig(endpoint=endpoint, protocol="grpc", timeout_s=5.0), **changes)  # type: ignore[arg-type]
    return OtlpSender(config, signal, uniform=lambda low, high: low)  # type: ignore[arg-type]


def test_grpc_is_imported_only_when_configured() -> None:
    """An agent that posts over HTTP does not carry its 16 MB, nor one over gRPC an HTTP client."""
    program = (
        "import sys; from exporter.config import OtlpConfig; from exporter.export.sender import OtlpSender\n"
        "OtlpSender(OtlpConfig(endpoint='http://127.0.0.1:1', protocol=sys.argv[1]), 'metrics')\n"
        "print('grpc' in sys.modules, 'urllib3' in sys.modules)"
    )
    for protocol, expected in (("http/protobuf", "False True\n"), ("grpc", "True False\n")):
        done = subprocess.run([sys.executable, "-c", program, protocol], capture_output=True, text=True, check=True)
        assert done.stdout == expected


@pytest.mark.parametrize(
    ("endpoint", "insecure", "target", "secure"),
    [
        ("http://collector:4317", False, "collector:4317", False),
        ("https://collector:4317/ignored", True, "collector:4317", True),
        ("https://collector", False, "collector:443", True),
        ("collector:4317", False, "collector:4317", True),
        ("collector:4317", True, "collector:4317", False),
        ("http://[::1]:4317", False, "[::1]:4317", False),
    ],
)
def test_scheme_of_the_endpoint_decides_about_tls(endpoint: str, insecure: bool, target: str, secure: bool) -> None:
    """Only without one ``insecure`` does."""
    assert grpc_target(endpoint, insecure=insecure) == (target, secure)


@pytest.mark.parametrize("endpoint", ["", "ftp://c:1", "http://", "http://u:p@c:1", "http://c:1?x=1", "http://c:99999"])
def test_endpoint_that_is_none_is_refused_in_one_line(endpoint: str) -> None:
    """Before anything is sent; a password is not repeated."""
    with pytest.raises(ExportError) as error:
        sender(endpoint)
    assert "\n" not in str(error.value)
    assert "u:p" not in str(error.value)


@pytest.mark.parametrize("headers", [{"grpc-timeout": "1"}, {"a b": "x"}, {"token": "a\nb"}, {"token": "ü"}])
def test_header_that_grpc_cannot_send_is_refused_at_once(headers: dict[str, str]) -> None:
    """Grpcio would raise at every call."""
    with pytest.raises(ExportError, match="otlp header"):
        sender("http://collector:4317", headers=headers)


@pytest.mark.parametrize(("signal", "body"), [("metrics", BODY), ("logs", LOGS)])
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_request_arrives_as_it_was_made(signal: str, body: bytes, compression: str) -> None:
    """Method, metadata and the message itself."""
    with GrpcReceiver() as receiver:
        client = sender(receiver, signal, headers={"Authorization": "Bearer x"}, compression=compression)
        outcome = client.post(body, stop=NEVER)
        client.close()
        (request,) = receiver.received
    assert (outcome.verdict, outcome.status, outcome.cause) == (Verdict.ACCEPTED, 0, "")
    assert request.message.SerializeToString() == body
    assert request.headers["authorization"] == "Bearer x"
    assert str(request.headers["user-agent"]).startswith("skep ")


@pytest.mark.parametrize(("signal", "body"), [("metrics", BODY), ("logs", LOGS)])
def test_partial_success_is_read_and_counted(signal: str, body: bytes) -> None:
    """What the receiver threw away is not called exported."""
    with GrpcReceiver([Answer(rejected=3, message="too\nold")]) as receiver:
        client = sender(receiver, signal)
        outcome = client.send(body, items=10, stop=NEVER, deadline_s=5)
    assert (outcome.verdict, outcome.rejected_items, outcome.message) == (Verdict.ACCEPTED, 3, "too old")
    assert (client.account.accepted, client.account.rejected) == (7, 3)
    assert client.account.requests == {"partial": 1}


@pytest.mark.parametrize("code", ["CANCELLED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"])
def test_passing_trouble_is_tried_again_until_it_has_passed(code: str) -> None:
    """Two refusals, then accepted: the items are counted once."""
    with GrpcReceiver([Answer(code=code), Answer(code=code), Answer()]) as receiver:
        client = sender(receiver)
        assert client.send(BODY, items=4, stop=NEVER, deadline_s=5).accepted
        assert len(receiver.received) == 3
    assert (client.account.accepted, client.account.failed) == (4, 0)
    assert client.account.requests == {f"grpc_{code.lower()}": 2, "ok": 1}


@pytest.mark.parametrize(
    "code", ["INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "INTERNAL", "UNKNOWN"]
)
def test_final_status_is_not_tried_again(code: str) -> None:
    """The receiver's own words are in the outcome."""
    with GrpcReceiver([Answer(code=code, message="not like this")]) as receiver:
        client = sender(receiver)
        outcome = client.send(BODY, items=4, stop=NEVER, deadline_s=5)
        assert len(receiver.received) == 1
    assert (outcome.verdict, outcome.cause, client.account.rejected) == (Verdict.REJECTED, f"grpc_{code.lower()}", 4)
    assert outcome.message.endswith(f"answers {code}: not like this")


def test_exhausted_receiver_is_asked_again_only_if_it_says_when() -> None:
    """RESOURCE_EXHAUSTED without RetryInfo is final; with it the wait is a lower bound."""
    with GrpcReceiver([Answer(code="RESOURCE_EXHAUSTED", message="quota")]) as receiver:
        client = sender(receiver)
        outcome = client.send(BODY, items=1, stop=NEVER, deadline_s=5)
        assert len(receiver.received) == 1
    assert (outcome.verdict, outcome.too_large) == (Verdict.REJECTED, False)
    with GrpcReceiver([Answer(code="RESOURCE_EXHAUSTED", retry_info_s=1.0), Answer()]) as receiver:
        assert sender(receiver).send(BODY, items=1, stop=NEVER, deadline_s=5).accepted
        first, second = receiver.received
    assert second.at - first.at >= 1.0


def test_retry_info_beyond_the_deadline_leaves_the_receiver_alone() -> None:
    """Not even another call makes an attempt before its time, and the items are counted as failed."""
    with GrpcReceiver([Answer(code="UNAVAILABLE", retry_info_s=60.0)]) as receiver:
        client = sender(receiver)
        outcome = client.send(BODY, items=2, stop=NEVER, deadline_s=5)
        again = client.send(BODY, items=2, stop=NEVER, deadline_s=5)
        assert len(receiver.received) == 1
    assert (outcome.retryable, outcome.retry_after_s) == (True, 60.0)
    assert (again.retryable, again.cause) == (True, "retry_after")
    assert client.account.failed == 4


def test_message_beyond_the_receivers_limit_is_known_as_too_large() -> None:
    """The receiver's gRPC library itself refuses it, before and after decompression."""
    rows = [SeriesLiteral((("cpu", str(index)),), (index,)) for index in range(2000)]
    (body,) = otlp.metrics_requests(snapshot(FrameLiteral([counter()], rows)))
    for compression in ("none", "gzip"):
        with GrpcReceiver(max_bytes=16 << 10) as receiver:
            outcome = sender(receiver, compression=compression).post(body, stop=NEVER)
        assert (outcome.verdict, outcome.too_large) == (Verdict.REJECTED, True), outcome


def test_answer_beyond_the_limit_is_not_read() -> None:
    """GRPC's own limit on answers is ours."""
    with GrpcReceiver([Answer(body=b"\0" * (5 << 20))]) as receiver:
        outcome = sender(receiver).post(BODY, stop=NEVER)
    assert (outcome.verdict, outcome.cause) == (Verdict.REJECTED, "grpc_resource_exhausted")


def test_answer_that_is_not_otlp_is_accepted_and_said() -> None:
    """Whatever answers OK cannot crash the sender."""
    with GrpcReceiver([Answer(body=b"<html>")]) as receiver:
        outcome = sender(receiver).post(BODY, stop=NEVER)
    assert outcome.accepted
    assert "not OTLP" in outcome.message


def test_nobody_listening_is_retryable_and_said_in_one_line() -> None:
    """A receiver that is down fails the items after the deadline, not the agent."""
    with unused_port() as port:
        outcome = sender(f"http://127.0.0.1:{port}").post(BODY, stop=NEVER)
    assert (outcome.retryable, outcome.cause) == (True, "connect")
    assert "\n" not in outcome.message
    assert str(port) in outcome.message


def test_receiver_that_is_no_grpc_server_is_retryable_and_has_one_time_limit() -> None:
    """It accepts the connection and says something else, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        begin = time.monotonic()
        outcome = sender(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.5).post(BODY, stop=NEVER)
    assert outcome.retryable
    assert time.monotonic() - begin < 3


def test_receiver_that_was_restarted_is_simply_connected_to_again() -> None:
    """The wait between attempts is ours and not gRPC's."""
    with GrpcReceiver() as receiver:
        client = sender(receiver)
        assert client.post(BODY, stop=NEVER).accepted
        port = receiver.port
    assert client.post(BODY, stop=NEVER).retryable
    with GrpcReceiver(port=port):
        deadline = time.monotonic() + 10
        while not client.post(BODY, stop=NEVER).accepted:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_silent_receiver_has_one_time_limit() -> None:
    """A call that is taken and not answered."""
    with GrpcReceiver([Answer(silent=True)]) as receiver:
        begin = time.monotonic()
        outcome = sender(receiver, timeout_s=0.5).post(BODY, stop=NEVER)
        took = time.monotonic() - begin
    assert (outcome.retryable, outcome.cause) == (True, "timeout")
    assert 0.4 < took < 3


@pytest.mark.parametrize("answer", [Answer(silent=True), Answer(code="UNAVAILABLE", retry_info_s=30.0)])
def test_stop_ends_waiting_for_an_answer_or_a_retry(answer: Answer) -> None:
    """Shutdown does not wait for a receiver."""
    stop = threading.Event()
    with GrpcReceiver([answer]) as receiver:
        client = sender(receiver, timeout_s=20.0)
        threading.Timer(0.3, stop.set).start()
        begin = time.monotonic()
        outcome = client.send(BODY, items=5, stop=stop, deadline_s=60)
    assert not outcome.accepted
    assert client.account.failed == 5
    assert time.monotonic() - begin < 3


def test_every_item_is_accounted_for() -> None:
    """Given = accepted + rejected + failed, whatever happens."""
    answers = [
        Answer(),
        Answer(rejected=2),
        Answer(code="INVALID_ARGUMENT"),
        Answer(rejected=1000),
        Answer(code="UNAVAILABLE", retry_info_s=99),
    ]
    with GrpcReceiver(answers) as receiver:
        client = sender(receiver)
        for _ in answers:
            client.send(BODY, items=10, stop=NEVER, deadline_s=1)
    account = client.account
    assert (account.accepted, account.rejected, account.failed) == (18, 22, 10)


@needs_openssl
def test_tls_trusts_the_configured_authority_and_nobody_else(tmp_path: Path) -> None:
    """Without ``ca_file`` a self-signed receiver gets nothing."""
    cert, key = certificate(tmp_path, "receiver")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    with GrpcReceiver(credentials=credentials) as receiver:
        assert sender(receiver, ca_file=str(cert)).post(BODY, stop=NEVER).accepted
        outcome = sender(receiver).post(BODY, stop=NEVER)
        assert (outcome.verdict, outcome.cause) == (Verdict.UNAVAILABLE, "tls"), outcome
        assert len(receiver.received) == 1


@needs_openssl
def test_client_certificate_is_shown_and_renewed_without_a_restart(tmp_path: Path) -> None:
    """Mutual TLS; files are read again when they change, and a half-written one is an error of that attempt alone."""
    cert, key = certificate(tmp_path, "receiver")
    known_cert, known_key = certificate(tmp_path, "known")
    other_cert, other_key = certificate(tmp_path, "other")
    shown_cert, shown_key = tmp_path / "shown.pem", tmp_path / "shown.key"
    shown_cert.write_bytes(other_cert.read_bytes())
    shown_key.write_bytes(other_key.read_bytes())
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), cert.read_bytes())], root_certificates=known_cert.read_bytes(), require_client_auth=True
    )
    with GrpcReceiver(credentials=credentials) as receiver:
        client = sender(receiver, ca_file=str(cert), cert_file=str(shown_cert), key_file=str(shown_key))
        assert not client.post(BODY, stop=NEVER).accepted
        shown_cert.write_text("-----BEGIN CERT")
        assert client.post(BODY, stop=NEVER).cause == "tls"
        shown_cert.write_bytes(known_cert.read_bytes())
        shown_key.write_bytes(known_key.read_bytes())
        assert client.post(BODY, stop=NEVER).accepted


def test_tls_file_that_is_not_there_is_refused_at_once() -> None:
    """As over HTTP."""
    with pytest.raises(ExportError, match=r"/nowhere\.pem"):
        sender("https://collector:4317", ca_file="/nowhere.pem")
