"""The OTLP sender against a receiver that behaves, misbehaves, and is not there."""

import socket
import ssl
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from exporter.config import OtlpConfig
from exporter.errors import ExportError
from exporter.export import otlp
from exporter.export.http_transport import retry_after_s, signal_url
from exporter.export.sender import OtlpSender, Verdict
from exporter.model import Resource, Scope
from tests.support.certificates import certificate, needs_openssl
from tests.support.frame_literals import FrameLiteral, SeriesLiteral, counter, snapshot
from tests.support.otlp_receiver import Answer, OtlpReceiver, unused_port

BODY = otlp.metrics_requests(snapshot(FrameLiteral([counter()], [SeriesLiteral((("cpu", "0"),), (7,))])))[0]
LOGS = otlp.logs_requests(Resource(), [(Scope("exits"), b"\x12\x00")])[0]
NEVER = threading.Event()


def sender(receiver: OtlpReceiver | str, signal: str = "metrics", **changes: object) -> OtlpSender:
    """A sender without jitter, impatient enough for a test."""
    endpoint = receiver if isinstance(receiver, str) else receiver.endpoint
    config = replace(OtlpConfig(endpoint=endpoint, timeout_s=5.0), **changes)  # type: ignore[arg-type]
    return OtlpSender(config, signal, uniform=lambda low, high: low)  # type: ignore[arg-type]


def stopping_after(seconds: float) -> threading.Event:
    """A stop event that another thread sets while a call is under way."""
    stop = threading.Event()
    threading.Timer(seconds, stop.set).start()
    return stop


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/metrics"),
        ("http://collector:4318/", "http://collector:4318/v1/metrics"),
        ("https://collector/otlp/", "https://collector/otlp/v1/metrics"),
        ("https://[::1]:4318", "https://[::1]:4318/v1/metrics"),
    ],
)
def test_signal_path_is_appended_to_the_general_endpoint(endpoint: str, url: str) -> None:
    """A base path is kept, slashes are not doubled."""
    assert signal_url(endpoint, "metrics") == url


@pytest.mark.parametrize(
    "endpoint",
    ["", "collector:4318", "grpc://collector:4317", "http://", "http://u:p@c:1", "http://c:1?x=1", "http://c:99999"],
)
def test_endpoint_that_is_no_receiver_is_refused_in_one_line(endpoint: str) -> None:
    """Before anything is sent; a password is not repeated."""
    with pytest.raises(ExportError) as error:
        sender(endpoint)
    assert "\n" not in str(error.value)
    assert "u:p" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("protocol", "http/json"), ("compression", "zstd"), ("ca_file", "/nowhere.pem"), ("key_file", "/k.pem")],
)
def test_setting_that_cannot_work_is_refused_at_once(key: str, value: str) -> None:
    """The message names what was found."""
    with pytest.raises(ExportError, match=value):
        sender("https://collector:4318", **{key: value})


def test_request_arrives_as_it_was_made() -> None:
    """Path, content type, gzip, configured headers, and the message itself."""
    with OtlpReceiver() as receiver:
        outcome = sender(receiver, headers={"Authorization": "Bearer x"}).post(BODY, stop=NEVER)
        assert (outcome.verdict, outcome.status, outcome.cause) == (Verdict.ACCEPTED, 200, "")
        (request,) = receiver.received
    assert not receiver.refused
    assert request.path == "/v1/metrics"
    assert request.headers["Content-Encoding"] == "gzip"
    assert request.headers["Authorization"] == "Bearer x"
    assert request.message.SerializeToString() == BODY


def test_uncompressed_when_told_so() -> None:
    """``compression: none`` sends the body as it is."""
    with OtlpReceiver() as receiver:
        assert sender(receiver, compression="none").post(BODY, stop=NEVER).accepted
        (request,) = receiver.received
    assert "Content-Encoding" not in request.headers
    assert request.wire_bytes == len(BODY)


@pytest.mark.parametrize("close", [False, True])
def test_connection_is_kept_between_requests_unless_the_receiver_ends_it(close: bool) -> None:
    """One handshake for many requests."""
    with OtlpReceiver([Answer(close=close)]) as receiver:
        client = sender(receiver)
        assert all(client.post(BODY, stop=NEVER).accepted for _ in range(3))
        assert len({each.peer for each in receiver.received}) == (3 if close else 1)


def test_receiver_that_was_restarted_is_simply_connected_to_again() -> None:
    """A kept connection that has ended meanwhile costs no failed attempt."""
    with OtlpReceiver() as receiver:
        client = sender(receiver)
        assert client.post(BODY, stop=NEVER).accepted
        port = receiver.port
        receiver.answer(Answer(close=True))
        assert client.post(BODY, stop=NEVER).accepted
    with OtlpReceiver(port=port) as receiver:
        assert client.post(BODY, stop=NEVER).accepted
    assert client.account.requests == {"ok": 3}


@pytest.mark.parametrize(("signal", "body"), [("metrics", BODY), ("logs", LOGS)])
def test_partial_success_is_read_and_counted(signal: str, body: bytes) -> None:
    """What the receiver threw away is not called exported."""
    with OtlpReceiver([Answer(rejected=3, message="too\nold")]) as receiver:
        client = sender(receiver, signal)
        outcome = client.send(body, items=10, stop=NEVER, deadline_s=5)
    assert (outcome.verdict, outcome.rejected_items, outcome.message) == (Verdict.ACCEPTED, 3, "too old")
    account = client.account
    assert (account.accepted, account.rejected, account.failed) == (7, 3, 0)
    assert account.requests == {"partial": 1}


@pytest.mark.parametrize("status", [301, 302, 307, 304])
def test_redirect_is_neither_followed_nor_a_success(status: int) -> None:
    """The body would go to, and be lost at, a place nobody configured."""
    with OtlpReceiver() as elsewhere, OtlpReceiver([Answer(status, {"Location": elsewhere.endpoint})]) as receiver:
        client = sender(receiver)
        outcome = client.send(BODY, items=1, stop=NEVER, deadline_s=5)
        assert not elsewhere.received
        assert len(receiver.received) == 1
    assert (outcome.verdict, outcome.cause, client.account.rejected) == (Verdict.REJECTED, "redirect", 1)
    assert elsewhere.endpoint in outcome.message


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 500, 501])
def test_final_status_is_not_tried_again(status: int) -> None:
    """The receiver's own words are in the outcome."""
    with OtlpReceiver([Answer(status, message="not like this")]) as receiver:
        client = sender(receiver)
        outcome = client.send(BODY, items=4, stop=NEVER, deadline_s=5)
        assert len(receiver.received) == 1
    assert (outcome.verdict, outcome.cause, client.account.rejected) == (Verdict.REJECTED, f"http_{status}", 4)
    assert outcome.message.endswith(f"answers {status}: not like this")


@pytest.mark.parametrize("trouble", [Answer(429), Answer(502), Answer(503), Answer(504), Answer(reset=True)])
def test_passing_trouble_is_tried_again_until_it_has_passed(trouble: Answer) -> None:
    """Two refusals, then accepted: the items are counted once."""
    with OtlpReceiver([trouble, trouble, Answer()]) as receiver:
        client = sender(receiver)
        assert client.send(BODY, items=4, stop=NEVER, deadline_s=5).accepted
        assert len(receiver.received) == 3
    account = client.account
    assert (account.accepted, account.rejected, account.failed) == (4, 0, 0)
    assert sum(account.requests.values()) == 3


def test_retry_after_is_honoured() -> None:
    """The receiver's wait is a lower bound."""
    with OtlpReceiver([Answer(429, {"Retry-After": "1"}), Answer()]) as receiver:
        assert sender(receiver).send(BODY, items=1, stop=NEVER, deadline_s=5).accepted
        first, second = receiver.received
    assert second.at - first.at >= 1.0


def test_retry_after_beyond_the_deadline_gives_up_at_once() -> None:
    """No attempt is made against the receiver's wish, no time is spent, and the items are counted as failed."""
    with OtlpReceiver([Answer(503, {"Retry-After": "60"})]) as receiver:
        client = sender(receiver)
        begin = time.monotonic()
        outcome = client.send(BODY, items=2, stop=NEVER, deadline_s=5)
        assert len(receiver.received) == 1
    assert (outcome.retryable, outcome.retry_after_s, client.account.failed) == (True, 60.0, 2)
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 17 ", 17.0),
        ("86400", 3600.0),
        ("Fri, 01 Aug 2025 12:00:30 GMT", 30.0),
        ("Fri, 01 Aug 2025 11:00:00 GMT", 0.0),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    """Anything else is as if it were not there."""
    assert retry_after_s(value, now=datetime(2025, 8, 1, 12, tzinfo=UTC)) == seconds


def test_jitter_is_full_and_grows() -> None:
    """Each wait is drawn from zero to a bound that doubles."""
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.0

    with OtlpReceiver([Answer(503)] * 7 + [Answer()]) as receiver:
        client = OtlpSender(OtlpConfig(endpoint=receiver.endpoint), "metrics", uniform=uniform)
        assert client.send(BODY, items=1, stop=NEVER, deadline_s=5).accepted
    assert drawn == [(0.0, bound) for bound in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0)]


def test_nobody_listening_is_retryable_and_said_in_one_line() -> None:
    """A receiver that is down fails the items after the deadline, not the agent."""
    with unused_port() as port:
        client = sender(f"http://127.0.0.1:{port}")
        outcome = client.post(BODY, stop=NEVER)
    assert (outcome.retryable, outcome.cause, outcome.status) == (True, "connect", 0)
    assert "\n" not in outcome.message
    assert str(port) in outcome.message


def test_name_that_does_not_resolve_is_retryable() -> None:
    """Name services come back too."""
    assert sender("http://collector.invalid:4318").post(BODY, stop=NEVER).retryable


@pytest.mark.parametrize(
    "answer", [Answer(silent=True), Answer(trickle_s=0.2), Answer(body=b"\0" * 400, trickle_s=0.05)]
)
def test_silent_or_trickling_receiver_has_one_time_limit(answer: Answer) -> None:
    """The limit is of the whole attempt, not of each read."""
    with OtlpReceiver([answer]) as receiver:
        begin = time.monotonic()
        outcome = sender(receiver, timeout_s=0.5).post(BODY, stop=NEVER)
        took = time.monotonic() - begin
    assert (outcome.retryable, outcome.cause) == (True, "timeout")
    assert 0.4 < took < 2


def test_receiver_that_does_not_read_has_one_time_limit() -> None:
    """A body larger than the socket's buffers cannot hold the sender."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = sender(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.5, compression="none")
        begin = time.monotonic()
        outcome = client.post(b"\0" * (32 << 20), stop=NEVER)
    assert (outcome.retryable, outcome.cause) == (True, "timeout")
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("answer", [Answer(silent=True), Answer(503, {"Retry-After": "30"})])
def test_stop_ends_waiting_for_an_answer_or_a_retry(answer: Answer) -> None:
    """Shutdown does not wait for a receiver."""
    with OtlpReceiver([answer]) as receiver:
        client = sender(receiver, timeout_s=20.0)
        begin = time.monotonic()
        outcome = client.send(BODY, items=5, stop=stopping_after(0.3), deadline_s=60)
    assert not outcome.accepted
    assert client.account.failed == 5
    assert time.monotonic() - begin < 3


def test_nothing_is_sent_once_stopped() -> None:
    """A set stop event sends nothing."""
    stop = threading.Event()
    stop.set()
    with OtlpReceiver() as receiver:
        assert sender(receiver).post(BODY, stop=stop).verdict is Verdict.STOPPED
        assert not receiver.received


def test_endless_answer_is_not_read() -> None:
    """The body of an answer is bounded; the request was accepted all the same."""
    with OtlpReceiver([Answer(body=b"\0" * (5 << 20)), Answer()]) as receiver:
        client = sender(receiver)
        outcome = client.post(BODY, stop=NEVER)
        assert outcome.accepted
        assert "longer than" in outcome.message
        assert client.post(BODY, stop=NEVER).accepted


def test_answer_that_is_not_otlp_is_accepted_and_said() -> None:
    """A proxy's HTML with status 200 cannot crash the sender."""
    with OtlpReceiver([Answer(body=b"<html>hello</html>", headers={"Content-Type": "text/html"})]) as receiver:
        outcome = sender(receiver).post(BODY, stop=NEVER)
    assert outcome.accepted
    assert "not OTLP" in outcome.message


def test_receiver_that_is_no_http_server_is_retryable() -> None:
    """Garbage instead of a status line is a failed connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def babble() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1 << 16)
                peer.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        outcome = sender(f"http://127.0.0.1:{listener.getsockname()[1]}").post(BODY, stop=NEVER)
        thread.join()
    assert (outcome.retryable, outcome.cause) == (True, "connect")


def test_every_item_is_accounted_for() -> None:
    """Given = accepted + rejected + failed, whatever happens."""
    answers = [Answer(), Answer(rejected=2), Answer(400), Answer(rejected=1000), Answer(503, {"Retry-After": "99"})]
    with OtlpReceiver(answers) as receiver:
        client = sender(receiver)
        for _ in answers:
            client.send(BODY, items=10, stop=NEVER, deadline_s=1)
    account = client.account
    assert (account.accepted, account.rejected, account.failed) == (18, 22, 10)
    assert sum(account.durations) == sum(account.requests.values())
    assert 0 < account.duration_s < 60
    twice = account + account
    assert (twice.accepted, twice.durations[0], twice.requests) == (
        36,
        2 * account.durations[0],
        {cause: 2 * count for cause, count in account.requests.items()},
    )
    assert account.sent_bytes == sum(each.wire_bytes for each in receiver.received)


def server_context(cert: Path, key: Path, clients: Path | None = None) -> ssl.SSLContext:
    """A receiver's TLS, with client certificates if their authority is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    if clients:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return context


@needs_openssl
def test_tls_trusts_the_configured_authority_and_nobody_else(tmp_path: Path) -> None:
    """Without ``ca_file`` a self-signed receiver gets nothing."""
    cert, key = certificate(tmp_path, "receiver")
    with OtlpReceiver(tls=server_context(cert, key)) as receiver:
        assert sender(receiver, ca_file=str(cert)).post(BODY, stop=NEVER).accepted
        outcome = sender(receiver).post(BODY, stop=NEVER)
        assert (outcome.verdict, outcome.cause) == (Verdict.UNAVAILABLE, "tls")
        assert len(receiver.received) == 1


@needs_openssl
def test_client_certificate_is_shown(tmp_path: Path) -> None:
    """Mutual TLS with ``cert_file`` and ``key_file``."""
    cert, key = certificate(tmp_path, "receiver")
    client_cert, client_key = certificate(tmp_path, "client")
    with OtlpReceiver(tls=server_context(cert, key, client_cert)) as receiver:
        assert not sender(receiver, ca_file=str(cert)).post(BODY, stop=NEVER).accepted
        with_certificate = sender(receiver, ca_file=str(cert), cert_file=str(client_cert), key_file=str(client_key))
        assert with_certificate.post(BODY, stop=NEVER).accepted


@needs_openssl
def test_renewed_authority_is_taken_without_a_restart(tmp_path: Path) -> None:
    """Files are read again when they change; a half-written one is an error of that attempt alone."""
    old, _ = certificate(tmp_path, "old")
    cert, key = certificate(tmp_path, "receiver")
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(old.read_bytes())
    with OtlpReceiver(tls=server_context(cert, key)) as receiver:
        client = sender(receiver, ca_file=str(trusted))
        assert not client.post(BODY, stop=NEVER).accepted
        trusted.write_text("-----BEGIN CERT")
        assert client.post(BODY, stop=NEVER).cause == "tls"
        trusted.write_bytes(cert.read_bytes())
        assert client.post(BODY, stop=NEVER).accepted
