"""The scrape server over real sockets: ordinary clients, silent, slow and rude ones."""

import gzip
import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from exporter.errors import ExportError
from exporter.export import server as module
from exporter.export.listening import listen, location
from exporter.export.prometheus import Exposition
from exporter.export.server import Handlers, MetricsServer, Scrape, UnknownCollectorError, parse_address

TEXT = b"# TYPE ebpf_x gauge\nebpf_x 1\n" * 100
LOOPBACK = "127.0.0.1:0"


@contextmanager
def running(
    handlers: Handlers | None = None, *, addresses: tuple[str, ...] = (LOOPBACK,), **options: object
) -> Iterator[MetricsServer]:
    """A server that serves in a thread, as the agent runs it."""
    serving = MetricsServer(addresses, handlers or Handlers(metrics=lambda _: TEXT), **options)  # type: ignore[arg-type]
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    try:
        yield serving
    finally:
        serving.close(grace_s=1)
        thread.join(5)
        assert not thread.is_alive()


def ask(
    serving: MetricsServer, target: str = "/metrics", method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request on a connection of its own."""
    with closing(http.client.HTTPConnection("127.0.0.1", serving.ports[0], timeout=5)) as client:
        client.request(method, target, headers=headers)
        response = client.getresponse()
        return response, response.read()


def raw(serving: MetricsServer, data: bytes = b"") -> socket.socket:
    """A connection that says exactly this."""
    client = socket.create_connection(("127.0.0.1", serving.ports[0]), timeout=5)
    client.sendall(data)
    return client


def test_scrape_has_the_exact_content_type() -> None:
    """Prometheus 3 fails a scrape over any other."""
    with running() as serving:
        response, body = ask(serving)
    assert (response.status, body) == (200, TEXT)
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response.headers["Content-Length"] == str(len(TEXT))


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("br, gzip;q=0.5", True),
        ("*", True),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.0", False),
    ],
)
def test_body_is_gzipped_only_when_asked(accepted: str, packed: bool) -> None:
    """Weights of zero mean: not this."""
    with running() as serving:
        response, body = ask(serving, **{"Accept-Encoding": accepted})
    assert response.headers.get("Content-Encoding") == ("gzip" if packed else None)
    assert (gzip.decompress(body) if packed else body) == TEXT
    assert response.headers["Content-Length"] == str(len(body))


def test_handler_is_told_the_format_that_the_client_gets() -> None:
    """The content type is the format's; one the handler does not offer is never asked of it."""
    seen: list[Exposition] = []

    def metrics(scrape: Scrape) -> bytes:
        seen.append(scrape.exposition)
        return b""

    wish = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
    for offered in (tuple(Exposition), (Exposition.TEXT_0_0_4,)):
        with running(Handlers(metrics=metrics, expositions=offered)) as serving:
            response, _ = ask(serving, **wish)
        assert response.headers["Content-Type"] == seen[-1].content_type
        assert response.headers["Vary"] == "Accept, Accept-Encoding"
    assert seen == [Exposition.OPENMETRICS_1_0_0, Exposition.TEXT_0_0_4]


def test_head_has_the_headers_without_the_body() -> None:
    """As GET says, but nothing follows, and the connection goes on."""
    with running() as serving, closing(http.client.HTTPConnection("127.0.0.1", serving.ports[0], timeout=5)) as client:
        for _ in range(2):
            client.request("HEAD", "/metrics")
            response = client.getresponse()
            assert (response.status, response.headers["Content-Length"]) == (200, str(len(TEXT)))
            assert response.read() == b""


def test_connection_serves_one_scrape_after_the_other() -> None:
    """A scraper keeps its connection."""
    peers = set()
    with running() as serving, closing(http.client.HTTPConnection("127.0.0.1", serving.ports[0], timeout=5)) as client:
        for _ in range(3):
            client.request("GET", "/metrics")
            assert client.getresponse().read() == TEXT
            peers.add(client.sock.getsockname())
    assert len(peers) == 1


@pytest.mark.parametrize("target", ["/nothing", "/metrics/", "/-/", "//", "/metricsx", "/%2e%2e/etc/passwd"])
def test_other_paths_are_not_found(target: str) -> None:
    """Metrics are at one path."""
    with running(telemetry_path="/metrics") as serving:
        assert ask(serving, target)[0].status == (200 if target == "//" else 404)


def test_landing_page_links_to_everything() -> None:
    """A person who opens the port in a browser finds the way; text is escaped."""
    handlers = Handlers(metrics=lambda _: TEXT, landing=lambda: ("skep <1>", "a & b"))
    with running(handlers, telemetry_path="/numbers") as serving:
        response, body = ask(serving, "/")
        assert ask(serving, "/numbers")[1] == TEXT
        assert ask(serving, "/metrics")[0].status == 404
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    for part in (b"skep &lt;1&gt;", b"a &amp; b", b'href="/numbers"', b'href="/-/ready"', b'href="/-/healthy"'):
        assert part in body


def test_readiness_and_health_are_the_agents_word() -> None:
    """503 until every required image runs."""
    answers = [(False, "waiting for dns"), (True, "ready")]
    with running(Handlers(metrics=lambda _: TEXT, ready=lambda: answers.pop(0))) as serving:
        before, after, healthy = ask(serving, "/-/ready"), ask(serving, "/-/ready"), ask(serving, "/-/healthy")
    assert (before[0].status, before[1]) == (503, b"waiting for dns\n")
    assert (after[0].status, healthy[0].status) == (200, 200)


def test_scrape_filter_and_deadline_reach_the_handler() -> None:
    """``collect[]`` repeats, percent-decoded; the deadline is a little before the scraper's own, or there is none."""
    seen: list[Scrape] = []

    def metrics(scrape: Scrape) -> bytes:
        seen.append(scrape)
        return b""

    with running(Handlers(metrics=metrics)) as serving:
        ask(serving, "/metrics?collect[]=dns&collect%5B%5D=b%20c&other=1")
        ask(serving, "/metrics?exclude[]=dns")
        begin = time.monotonic()
        ask(serving, "/metrics", **{"X-Prometheus-Scrape-Timeout-Seconds": "9.5"})
        ask(serving, "/metrics", **{"X-Prometheus-Scrape-Timeout-Seconds": "1"})
        ask(serving, "/metrics", **{"X-Prometheus-Scrape-Timeout-Seconds": "nan"})
    filters = [(scrape.collect, scrape.exclude) for scrape in seen]
    assert filters == [(("dns", "b c"), ()), ((), ("dns",)), ((), ()), ((), ()), ((), ())]
    deadlines = [scrape.deadline_s - begin for scrape in seen if scrape.deadline_s is not None]
    assert deadlines == [pytest.approx(9.25, abs=0.2), pytest.approx(0.9, abs=0.2)]
    assert seen[4].deadline_s is None


def test_filter_that_cannot_be_is_a_bad_request() -> None:
    """Both at once, and names that are not there."""

    def metrics(scrape: Scrape) -> bytes:
        raise UnknownCollectorError(f"no image {scrape.collect[0]!r}; there are: 'dns'")

    with running(Handlers(metrics=metrics)) as serving:
        both = ask(serving, "/metrics?collect[]=a&exclude[]=b")
        unknown = ask(serving, "/metrics?collect[]=a")
        empty = ask(serving, "/metrics?collect[]=")
    assert (both[0].status, unknown[0].status, empty[0].status) == (400, 400, 400)
    assert unknown[1] == b"no image 'a'; there are: 'dns'\n"


def test_fault_of_a_handler_is_a_logged_500_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """The client learns nothing of the inside; the log does."""
    with running(Handlers(metrics=lambda _: b"", healthy=lambda: str(1 / 0))) as serving:
        response, body = ask(serving, "/-/healthy")
        assert ask(serving)[0].status == 200
    assert (response.status, b"Zero" in body) == (500, False)
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.ERROR]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "NONSENSE"])
def test_other_methods_are_refused(method: str) -> None:
    """Nothing can be changed over this port."""
    with running() as serving:
        response, _ = ask(serving, method=method)
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET http://[/ HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    ],
)
def test_nonsense_is_answered_or_dropped_and_the_server_goes_on(nonsense: bytes) -> None:
    """TLS to a plain port, half a request line, too long a line, no URL, too many headers."""
    with running() as serving:
        with raw(serving, nonsense) as client:
            client.shutdown(socket.SHUT_WR)
            answer = b""
            with closing(client.makefile("rb")) as stream:
                try:
                    answer = stream.read()
                except ConnectionResetError:
                    answer = b""
        assert b" 200 " not in answer
        assert ask(serving)[1] == TEXT


def test_request_with_a_body_ends_the_connection() -> None:
    """Bytes nobody reads cannot become a second request."""
    smuggled = b"GET /-/ready HTTP/1.1\r\n\r\n"
    with (
        running() as serving,
        raw(serving, b"GET /-/healthy HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(smuggled), smuggled)) as client,
        closing(client.makefile("rb")) as stream,
    ):
        answer = stream.read()
    assert answer.count(b"HTTP/1.1") == 1
    assert b"Connection: close" in answer


def test_silent_clients_block_nobody() -> None:
    """Sixty connections that say nothing, or half a request, and a scrape answers at once."""
    with running() as serving:
        silent = [raw(serving, b"" if index % 2 else b"GET /metr") for index in range(60)]
        begin = time.monotonic()
        assert ask(serving)[1] == TEXT
        assert time.monotonic() - begin < 1
        for client in silent:
            client.close()


def test_clients_that_do_not_read_block_nobody() -> None:
    """More of them than scrapes are allowed: an answer being sent holds no place."""
    large = b"# \n" * (8 << 20 >> 2)
    with running(Handlers(metrics=lambda _: large), max_requests=2) as serving:
        deaf = [raw(serving, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(4)]
        time.sleep(0.3)
        assert ask(serving)[1] == large
        for client in deaf:
            client.close()


def wait_until(true: Callable[[], bool]) -> None:
    """Fail the test unless it becomes true soon."""
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("limit", "data"),
    [
        ("_FIRST_TIMEOUT_S", b""),
        ("_HEAD_TIMEOUT_S", b"GET /metrics HT"),
        ("_IDLE_TIMEOUT_S", b"GET /-/ready HTTP/1.1\r\n\r\n"),
    ],
)
def test_silence_has_a_limit(limit: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first word, within a request, and between two."""
    monkeypatch.setattr(module, limit, 0.2)
    with running() as serving, raw(serving, data) as client:
        begin = time.monotonic()
        while client.recv(4096):
            pass
        assert time.monotonic() - begin < 3
        wait_until(lambda: not serving.gate._connections)


def test_trickling_head_has_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not extend it."""
    monkeypatch.setattr(module, "_HEAD_TIMEOUT_S", 0.4)
    with running() as serving, raw(serving) as client:
        begin = time.monotonic()
        with pytest.raises(OSError):
            for byte in b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 100:
                client.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - begin < 3


def test_answer_nobody_takes_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread and the body of a client that stopped reading are given back."""
    monkeypatch.setattr(module, "_WRITE_TIMEOUT_S", 0.3)
    large = b"#\n" * (16 << 20)
    with running(Handlers(metrics=lambda _: large)) as serving, raw(serving, b"GET /metrics HTTP/1.1\r\n\r\n"):
        wait_until(lambda: bool(serving.gate._connections))
        wait_until(lambda: not serving.gate._connections)


def test_answers_being_sent_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that do not read cannot fill the memory; small answers go on."""
    monkeypatch.setattr(module, "_SENDING_LIMIT_BYTES", 40 << 20)
    large = b"#\n" * (16 << 20)
    with running(Handlers(metrics=lambda _: large)) as serving, raw(serving, b"GET /metrics HTTP/1.1\r\n\r\n"):
        wait_until(lambda: serving.gate._sending_bytes > 0)
        assert ask(serving)[0].status == 503
        assert ask(serving, "/-/healthy")[0].status == 200


def test_scrapes_beyond_the_limit_are_turned_away() -> None:
    """Forty at a time by default; the forty-first gets 503 at once, health is still answered."""
    begun, go_on = threading.Semaphore(0), threading.Event()

    def metrics(_: Scrape) -> bytes:
        begun.release()
        assert go_on.wait(10)
        return TEXT

    with running(Handlers(metrics=metrics)) as serving:
        clients = [raw(serving, b"GET /metrics HTTP/1.1\r\n\r\n") for _ in range(40)]
        for _ in clients:
            assert begun.acquire(timeout=5)
        response, body = ask(serving)
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert b"limit" in body
        assert ask(serving, "/-/healthy")[0].status == 200
        go_on.set()
        for client in clients:
            assert client.recv(15) == b"HTTP/1.1 200 OK"
            client.close()
        assert ask(serving)[0].status == 200


def test_scrape_that_never_ends_is_seen_and_a_client_that_does_not_read_is_not() -> None:
    """For the watchdog: what hangs in here is our fault, what hangs out there is not."""
    begun, go_on = threading.Event(), threading.Event()

    def metrics(_: Scrape) -> bytes:
        begun.set()
        assert go_on.wait(10)
        return TEXT * 10_000

    with running(Handlers(metrics=metrics)) as serving:
        assert serving.busy_s() == 0
        with raw(serving, b"GET /metrics HTTP/1.1\r\n\r\n") as client:
            assert begun.wait(5)
            time.sleep(0.3)
            assert 0.3 <= serving.busy_s() < 5
            go_on.set()
            assert client.recv(15) == b"HTTP/1.1 200 OK"
            assert serving.busy_s() == 0


def test_longest_silent_connection_gives_way_to_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connect and say nothing, the next scrape is answered; connections stay bounded."""
    monkeypatch.setattr(module, "_CONNECTIONS_LIMIT", 3)
    with running() as serving:
        first, second, third = [raw(serving) for _ in range(3)]
        wait_until(lambda: len(serving.gate._connections) == 3)
        second.sendall(b"GET /-/ready HTTP/1.1\r\n\r\n")  # has spoken last, so it goes last
        assert second.recv(15) == b"HTTP/1.1 200 OK"
        assert ask(serving)[1] == TEXT
        assert first.recv(1) == b""
        assert len(serving.gate._connections) <= 3
        with raw(serving), raw(serving):
            assert third.recv(1) == b""
        for client in (first, second, third):
            client.close()


def test_connection_is_turned_away_when_every_other_is_being_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that was received is never given up for a new connection."""
    monkeypatch.setattr(module, "_CONNECTIONS_LIMIT", 2)
    begun, go_on = threading.Semaphore(0), threading.Event()

    def metrics(_: Scrape) -> bytes:
        begun.release()
        assert go_on.wait(10)
        return TEXT

    with running(Handlers(metrics=metrics)) as serving:
        clients = [raw(serving, b"GET /metrics HTTP/1.1\r\n\r\n") for _ in range(2)]
        for _ in clients:
            assert begun.acquire(timeout=5)
        with raw(serving) as extra:
            assert extra.recv(1) == b""
        go_on.set()
        for client in clients:
            assert client.recv(15) == b"HTTP/1.1 200 OK"
            client.close()


def test_close_lets_a_scrape_finish_and_ends_idle_connections() -> None:
    """Nobody gets half an answer, and nobody holds up the end."""
    begun = threading.Event()

    def metrics(_: Scrape) -> bytes:
        begun.set()
        time.sleep(0.3)
        return TEXT

    with running(Handlers(metrics=metrics)) as serving:
        idle = raw(serving)
        active = raw(serving, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert begun.wait(5)
        begin = time.monotonic()
        serving.close(grace_s=5)
        assert time.monotonic() - begin < 2
        with closing(active.makefile("rb")) as stream:
            assert stream.read().endswith(b"\r\n\r\n" + TEXT)
        assert idle.recv(1) == b""
        with pytest.raises(OSError):
            raw(serving)
        idle.close()
        active.close()


def test_close_before_serving_and_twice_is_harmless() -> None:
    """However a start fails, stopping works."""
    serving = MetricsServer([LOOPBACK], Handlers(metrics=lambda _: b""))
    serving.close()
    serving.close()
    serving.serve_forever()


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        (":19435", ("", 19435)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:9", ("::1", 9)),
        ("host.example:65535", ("host.example", 65535)),
    ],
)
def test_address_is_host_and_port(address: str, parsed: tuple[str, int]) -> None:
    """The forms every exporter takes."""
    assert parse_address(address) == parsed


def test_vsock_address_is_listened_on() -> None:
    """As of other exporters; it has a port and no host."""
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        with pytest.raises(ExportError, match="this kernel has no vsock"):
            listen("vsock://:0")
        return
    with closing(listen("vsock://:0")) as listening:
        assert (listening.family, listening.getsockname()[0]) == (socket.AF_VSOCK, socket.VMADDR_CID_ANY)
        assert location(listening) == f"vsock://:{listening.getsockname()[1]}"
    with running(addresses=("vsock://:0", LOOPBACK)) as serving:
        assert serving.urls[0].startswith("vsock://:")
        assert len(serving.ports) == 1
        assert ask(serving)[0].status == 200
    with pytest.raises(ExportError, match="a vsock address has a port only; write 'vsock://:19435'"):
        listen("vsock://host:19435")


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_reload_is_asked_for_by_a_change_only(method: str) -> None:
    """The answer says how it went; looking at it changes nothing; off it is forbidden, with the flag."""
    asked = []

    def reload() -> tuple[bool, str]:
        asked.append(1)
        return len(asked) < 2, "read" if len(asked) < 2 else "line 3 is wrong"

    with running(Handlers(metrics=lambda _: TEXT, reload=reload)) as serving:
        assert ask(serving, "/-/reload")[0].status == 405
        assert asked == []
        response, body = ask(serving, "/-/reload", method)
        assert (response.status, body) == (200, b"read\n")
        response, body = ask(serving, "/-/reload", method)
        assert (response.status, body) == (500, b"line 3 is wrong\n")
        assert ask(serving, "/metrics", method)[0].status == 405
    with running() as serving:
        response, body = ask(serving, "/-/reload", method)
        assert response.status == 403
        assert b"--web.enable-lifecycle" in body


@pytest.mark.parametrize(
    "address", ["", "19435", "host", "host:", "host:port", "host:65536", "::1:9", "[::1]", "host:-1", "host:1٣"]
)
def test_address_that_is_none_is_refused(address: str) -> None:
    """One line, with examples."""
    with pytest.raises(ExportError, match="write ':19435'"):
        parse_address(address)


def test_several_addresses_of_both_families_are_served() -> None:
    """``:PORT`` answers IPv4 and IPv6 alike."""
    with running(addresses=(":0", LOOPBACK)) as serving:
        assert len(serving.ports) == 2
        hosts = [("127.0.0.1", serving.ports[0]), ("127.0.0.1", serving.ports[1])]
        if socket.has_dualstack_ipv6():
            hosts.append(("::1", serving.ports[0]))
        for host, port in hosts:
            with closing(http.client.HTTPConnection(host, port, timeout=5)) as client:
                client.request("GET", "/metrics")
                assert client.getresponse().read() == TEXT


def test_urls_are_what_this_machine_can_ask_for() -> None:
    """Every address is told as loopback, IPv6 in brackets."""
    with running(addresses=(":0", LOOPBACK), telemetry_path="/m") as serving:
        every, loopback = serving.ports
        assert serving.urls[1] == f"http://127.0.0.1:{loopback}/m"
        assert serving.urls[0] in (f"http://[::1]:{every}/m", f"http://127.0.0.1:{every}/m")


def test_sockets_that_systemd_listens_on_are_taken_and_other_descriptors_left(tmp_path: Path) -> None:
    """A TCP and a Unix socket are served; a socket that does not listen and a file are not touched."""
    path = str(tmp_path / "web.sock")
    tcp, unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    unix.bind(path)
    unix.listen()
    port = tcp.getsockname()[1]
    with socket.socket() as idle, (tmp_path / "file").open("wb") as file:
        passed = [tcp.detach(), idle.fileno(), file.fileno(), unix.detach()]
        with running(addresses=("127.0.0.1:1",), descriptors=passed) as serving:
            assert serving.urls == (f"http://127.0.0.1:{port}/metrics", f"unix:{path}")
            assert serving.ports == (port,)
            for family, where in ((socket.AF_INET, ("127.0.0.1", port)), (socket.AF_UNIX, path)):
                with socket.socket(family) as client:
                    client.settimeout(5)
                    client.connect(where)
                    client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                    with closing(client.makefile("rb")) as stream:
                        assert stream.read().endswith(b"\r\n\r\n" + TEXT)
        idle.getsockname()
        file.write(b"still open")


def test_systemd_sockets_without_any_is_one_clear_error(tmp_path: Path) -> None:
    """The flag is there, the socket unit is not."""
    with (tmp_path / "file").open("wb") as file, pytest.raises(ExportError, match="handed over no listening stream"):
        MetricsServer([], Handlers(metrics=lambda _: b""), descriptors=[file.fileno()])


def test_port_in_use_is_one_clear_error_and_leaves_nothing_open() -> None:
    """The first address is let go when the second cannot be had."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
        other.close()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ExportError) as error:
            MetricsServer([f"127.0.0.1:{free}", address], Handlers(metrics=lambda _: b""))
        assert str(error.value).startswith(f"listen address '{address}': port is in use; ")
        assert "\n" not in str(error.value)
        with socket.create_server(("127.0.0.1", free)):
            pass


def test_connection_can_be_wrapped_in_its_own_thread() -> None:
    """A handshake that hangs holds nobody else up, and is ended by the limit."""
    hang = threading.Event()
    calls: list[int] = []

    def wrap(connection: socket.socket) -> socket.socket:
        calls.append(1)
        if len(calls) == 1:
            hang.wait(5)
            raise OSError("no handshake")
        return connection

    with running(wrap=wrap) as serving, raw(serving):
        wait_until(lambda: bool(calls))
        assert ask(serving)[1] == TEXT
        hang.set()
        wait_until(lambda: not serving.gate._connections)
