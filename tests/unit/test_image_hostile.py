"""A registry that lies, stalls, redirects and fishes for passwords."""

import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.config import RegistryConfig
from exporter.errors import ImageError
from exporter.image import Store, fetch, host_architecture, parse_reference, transport
from exporter.image.formats import OCI_INDEX
from exporter.image.reference import Digest
from exporter.image.registry import Challenge, Registry, parse_challenges, same_domain
from exporter.image.upload import push_image
from tests.support.images import bee_manifest, bpf_elf, digest_of, index_of
from tests.support.registry import (
    Answer,
    HostileRegistry,
    Request,
    docker_config,
    free_port,
    hostile_registry,
    make_certificate,
)

ELF = bpf_elf(b"payload" * 100)
HOST = host_architecture()
PLATFORM = {"os": "linux", "architecture": HOST}


@pytest.fixture
def hostile() -> Iterator[HostileRegistry]:
    """It starts out honest: a BumbleBee image at ``a/b:1``."""
    with hostile_registry() as server:
        serve(server)
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The store of the host that pulls."""
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No waiting between tries, no memory of dead registries, nobody's Docker credentials."""
    transport.circuits.reset()
    monkeypatch.setattr(transport, "_backoff", lambda _attempt: 0.001)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker"))


def serve(server: HostileRegistry, *, blob: Answer | None = None) -> str:
    """Offer the image, with ``blob`` in place of its object; return the manifest's digest."""
    server.blob("a/b", ELF, answer=blob)
    server.blob("a/b", b"{}")
    return server.manifest("a/b", "1", bee_manifest(ELF))


def code_of(server: HostileRegistry, store: Store, *, target: str = ":1", deadline_s: float = 20.0) -> str:
    """Pull; nothing may be recorded; return the error's code."""
    reference = parse_reference(f"{server.host}/a/b{target}")
    with pytest.raises(ImageError) as caught:
        fetch(reference, store=store, deadline_s=deadline_s)
    assert "\n" not in str(caught.value)
    assert store.resolve(reference) is None
    assert not store.blob_path(Digest.of(ELF)).exists()
    return caught.value.code


def test_the_honest_image_is_pulled(hostile: HostileRegistry, store: Store) -> None:
    """Otherwise the refusals below would prove nothing; and each blob is asked for once, as it is."""
    bundle = fetch(parse_reference(f"{hostile.host}/a/b:1"), store=store)
    assert bundle.object == ELF
    assert len(hostile.paths()) == len(set(hostile.paths())) == 3
    assert {request.headers["Accept-Encoding"] for request in hostile.requests} == {"identity"}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(body=ELF[:-1] + b"!"), "img.blob_digest"),
        (Answer(body=ELF[:50], length=len(ELF)), "img.truncated"),
        (Answer(body=ELF[:50], chunked=True), "img.truncated"),
        (Answer(body=b"", chunked=True), "img.truncated"),
        (Answer(body=ELF[:50], length=-1), "img.truncated"),
        (Answer(body=ELF + b"more", chunked=True), "img.blob_size"),
        (Answer(body=ELF + b"more"), "img.blob_size"),
        (Answer(body=ELF, headers={"Content-Encoding": "gzip"}), "img.content_encoding"),
        (Answer(404), "img.not_found"),
        (Answer(403), "img.denied"),
        (Answer(418, b"I am a teapot"), "img.status"),
        (Answer(500), "img.status"),
    ],
)
def test_dishonest_blob_is_refused(hostile: HostileRegistry, store: Store, answer: Answer, code: str) -> None:
    """Altered, cut off in all three ways, too long, compressed, refused."""
    serve(hostile, blob=answer)
    assert code_of(hostile, store) == code


def test_truncated_transfer_is_tried_again_by_whoever_retries_and_then_complete(
    hostile: HostileRegistry, store: Store
) -> None:
    """What was verified before stays: only the gap is fetched."""
    serve(hostile, blob=Answer(body=ELF[:50], length=len(ELF)))
    assert code_of(hostile, store) == "img.truncated"
    serve(hostile)
    hostile.requests.clear()
    assert fetch(parse_reference(f"{hostile.host}/a/b:1"), store=store).object == ELF
    assert len([path for path in hostile.paths() if "blobs" in path]) == 1


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(body=b"<html>Please log in</html>", headers={"Content-Type": "text/html"}), "img.manifest_json"),
        (Answer(body=b" " * ((4 << 20) + 1)), "img.manifest_too_large"),
        (Answer(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}), "img.content_encoding"),
        (Answer(body=bee_manifest(ELF), headers={"Docker-Content-Digest": digest_of(b"else")}), "img.manifest_digest"),
        (Answer(body=bee_manifest(ELF, layers=None)), "img.no_layers"),
        (Answer(body=bee_manifest(ELF)[:40], length=500), "img.truncated"),
        (Answer(body=b""), "img.manifest_json"),
        (Answer(body=bee_manifest(ELF), headers={"Content-Type": OCI_INDEX}), "img.manifest_type"),
    ],
)
def test_dishonest_manifest_is_refused(hostile: HostileRegistry, store: Store, answer: Answer, code: str) -> None:
    """A login page, an endless body, another digest, another type."""
    hostile.on("/v2/a/b/manifests/1", answer)
    assert code_of(hostile, store) == code


def test_oversize_manifest_is_not_read_to_its_end(hostile: HostileRegistry, store: Store) -> None:
    """A registry that never stops sending costs 4 MiB, not the machine."""
    hostile.on("/v2/a/b/manifests/1", Answer(body=b" " * (64 << 20)))
    tracemalloc.start()
    try:
        assert code_of(hostile, store) == "img.manifest_too_large"
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_manifest_that_is_not_the_pinned_one_is_refused(hostile: HostileRegistry, store: Store) -> None:
    """The pin is of the bytes."""
    pin = digest_of(b"something else")
    hostile.on(f"/v2/a/b/manifests/{pin}", Answer(body=bee_manifest(ELF)))
    assert code_of(hostile, store, target=f"@{pin}") == "img.manifest_digest"


def test_described_blob_over_the_limit_is_not_even_asked_for(hostile: HostileRegistry, store: Store) -> None:
    """32 MiB for one, 64 MiB for an image."""
    body = json.loads(bee_manifest(ELF))
    body["layers"][0]["size"] = (32 << 20) + 1
    hostile.manifest("a/b", "1", body)
    assert code_of(hostile, store) == "img.blob_size"
    body["layers"] += [
        {**body["layers"][0], "mediaType": "x/y", "digest": digest_of(b"%d" % n), "size": 30 << 20} for n in range(3)
    ]
    body["layers"][0]["size"] = len(ELF)
    hostile.manifest("a/b", "1", body)
    hostile.requests.clear()
    assert code_of(hostile, store) == "img.blob_size"
    assert hostile.paths() == ["/v2/a/b/manifests/1"]


def test_index_child_of_another_size_or_digest_is_refused(hostile: HostileRegistry, store: Store) -> None:
    """The chain holds at each link."""
    child = bee_manifest(ELF)
    hostile.manifest("a/b", "1", index_of((child, PLATFORM)), media_type=OCI_INDEX)
    hostile.on(f"/v2/a/b/manifests/{digest_of(child)}", Answer(body=bee_manifest(ELF, annotations={"a": "b"})))
    assert code_of(hostile, store) == "img.manifest_digest"
    index = json.loads(index_of((child, PLATFORM)))
    index["manifests"][0]["size"] += 1
    hostile.manifest("a/b", "1", index, media_type=OCI_INDEX)
    hostile.on(f"/v2/a/b/manifests/{digest_of(child)}", Answer(body=child))
    assert code_of(hostile, store) == "img.blob_size"


def test_index_that_leads_to_itself_ends(hostile: HostileRegistry, store: Store) -> None:
    """It can only be served with a wrong digest, and is refused for that."""
    child = digest_of(b"me")
    entry = {"mediaType": OCI_INDEX, "digest": child, "size": 2}
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
    for target in ("1", child):
        hostile.on(f"/v2/a/b/manifests/{target}", Answer(body=index))
    assert code_of(hostile, store) == "img.manifest_digest"


def test_deeply_nested_index_ends(hostile: HostileRegistry, store: Store) -> None:
    """Honest digests, dishonest depth."""
    raw = index_of((bee_manifest(ELF), PLATFORM))
    for depth in range(6):
        hostile.manifest("a/b", f"d{depth}", raw, media_type=OCI_INDEX)
        raw = index_of((raw, None))
    hostile.manifest("a/b", "1", raw, media_type=OCI_INDEX)
    assert code_of(hostile, store) == "img.index_depth"
    assert len([path for path in hostile.paths() if "manifests" in path]) <= 3


@pytest.mark.parametrize("where", ["manifest headers", "blob headers", "blob body"])
def test_stalled_server_is_left_at_the_deadline(hostile: HostileRegistry, store: Store, where: str) -> None:
    """Whatever it is that does not come."""
    if where == "manifest headers":
        hostile.on("/v2/a/b/manifests/1", Answer(body=bee_manifest(ELF), stall_s=60))
    elif where == "blob headers":
        serve(hostile, blob=Answer(body=ELF, stall_s=60))
    else:
        serve(hostile, blob=Answer(body=ELF, drip_s=60))
    started = time.monotonic()
    assert code_of(hostile, store, deadline_s=1.0) == "img.deadline"
    assert time.monotonic() - started < 2.5


def test_dripping_server_is_left_at_the_deadline(hostile: HostileRegistry, store: Store) -> None:
    """A byte now and then satisfies every per-read timeout for ever."""
    serve(hostile, blob=Answer(body=ELF, drip_s=0.05))
    started = time.monotonic()
    assert code_of(hostile, store, deadline_s=1.0) == "img.deadline"
    assert time.monotonic() - started < 2.5


def test_dripping_headers_are_left_at_the_deadline(store: Store) -> None:
    """The status line itself may come a byte at a time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                try:
                    for byte in b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 1000:
                        if done.wait(0.05):
                            return
                        connection.sendall(bytes([byte]))
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        started = time.monotonic()
        with pytest.raises(ImageError) as caught:
            fetch(parse_reference(f"127.0.0.1:{server.getsockname()[1]}/a/b:1"), store=store, deadline_s=1.0)
        assert caught.value.code == "img.deadline"
        assert time.monotonic() - started < 2.5
        done.set()
        thread.join()


def test_stop_ends_a_stalled_pull_at_once(hostile: HostileRegistry, store: Store) -> None:
    """SIGTERM does not wait for a registry."""
    serve(hostile, blob=Answer(body=ELF, drip_s=60))
    stop = threading.Event()
    timer = threading.Timer(0.4, stop.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(ImageError) as caught:
        fetch(parse_reference(f"{hostile.host}/a/b:1"), store=store, stop=stop, deadline_s=60)
    assert caught.value.code == "img.stopped"
    assert time.monotonic() - started < 2
    timer.join()


def failing_first(server: HostileRegistry, count: int, answer: Answer) -> None:
    """Answer the manifest's first ``count`` requests so, then honestly."""
    seen: list[Request] = []

    def handle(request: Request) -> Answer:
        seen.append(request)
        return answer if len(seen) <= count else Answer(body=bee_manifest(ELF))

    server.on("/v2/a/b/manifests/1", handle)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_trouble_is_tried_again(hostile: HostileRegistry, store: Store, status: int) -> None:
    """Three tries more."""
    failing_first(hostile, 3, Answer(status))
    assert fetch(parse_reference(f"{hostile.host}/a/b:1"), store=store).object == ELF


@pytest.mark.parametrize("status", [400, 403, 404, 410, 501])
def test_a_clear_no_is_not_tried_again(hostile: HostileRegistry, store: Store, status: int) -> None:
    """It would be the same no."""
    failing_first(hostile, 1, Answer(status))
    with pytest.raises(ImageError):
        fetch(parse_reference(f"{hostile.host}/a/b:1"), store=store)
    assert len(hostile.paths()) == 1


def test_retry_after_is_obeyed_and_capped_by_the_deadline(hostile: HostileRegistry, store: Store) -> None:
    """In seconds; when it would take too long, the refusal is reported instead."""
    failing_first(hostile, 1, Answer(429, headers={"Retry-After": "1"}))
    started = time.monotonic()
    fetch(parse_reference(f"{hostile.host}/a/b:1"), store=store)
    assert 1 <= time.monotonic() - started < 3
    failing_first(hostile, 9, Answer(429, headers={"Retry-After": "3600"}))
    with pytest.raises(ImageError, match="429") as caught:
        fetch(parse_reference(f"{hostile.host}/a/b:1"), store=store, pull="always", deadline_s=5)
    assert caught.value.code == "img.status"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        ("86400", 30.0),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("-3", None),
    ],
)
def test_retry_after_header_forms(value: str | None, seconds: float | None) -> None:
    """Seconds or a date; nonsense is as if it were not there."""
    assert transport._retry_after(value) == seconds


def test_dead_registry_is_not_asked_again_by_every_image(store: Store) -> None:
    """The second image fails without connecting; a while later the registry gets its chance."""
    host = f"127.0.0.1:{free_port()}"
    for words in ("; check the network", "moments ago; check the network"):
        with pytest.raises(ImageError, match=words) as caught:
            fetch(parse_reference(f"{host}/a/b:1"), store=store)
        assert caught.value.code == "img.unreachable"


def test_name_that_does_not_resolve_is_unreachable(store: Store) -> None:
    """``.invalid`` never does."""
    with pytest.raises(ImageError, match=r"registry 'registry\.invalid' is unreachable") as caught:
        fetch(parse_reference("registry.invalid/a:1"), store=store, deadline_s=20)
    assert caught.value.code == "img.unreachable"


# -- Over TLS -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """An authority, and a certificate and key for the loopback address."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(307, headers={"Location": "http://elsewhere.example/x"}), "img.redirect"),
        (Answer(body=ELF, drip_s=0.05), "img.deadline"),
        (Answer(body=ELF, drip_s=60), "img.deadline"),
        (Answer(body=ELF, stall_s=60), "img.deadline"),
        (Answer(body=ELF[:50], length=len(ELF)), "img.truncated"),
        (Answer(body=ELF[:50], length=-1), "img.truncated"),
        (Answer(body=ELF), ""),
    ],
)
def test_dishonest_blob_is_refused_over_tls(
    store: Store, certificates: tuple[Path, Path, Path], answer: Answer, code: str
) -> None:
    """The same rules hold for encrypted connections, and HTTPS is not left for HTTP."""
    authority, *pair = certificates
    with hostile_registry(tls=(pair[0], pair[1])) as server:
        serve(server, blob=answer)
        registries = {server.host: RegistryConfig(ca_file=str(authority))}
        reference = parse_reference(f"{server.host}/a/b:1")
        started = time.monotonic()
        if code:
            with pytest.raises(ImageError) as caught:
                fetch(reference, store=store, registries=registries, deadline_s=1.0)
            assert caught.value.code == code
        else:
            assert fetch(reference, store=store, registries=registries).object == ELF
        assert time.monotonic() - started < 2.5


def test_server_that_never_shakes_hands_is_left(store: Store, certificates: tuple[Path, Path, Path]) -> None:
    """It accepts the connection and says nothing; the connect timeout covers the handshake."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        registries = {host: RegistryConfig(ca_file=str(certificates[0]))}
        started = time.monotonic()
        with pytest.raises(ImageError) as caught:
            fetch(parse_reference(f"{host}/a/b:1"), store=store, registries=registries, deadline_s=1.0)
        assert caught.value.code in ("img.deadline", "img.unreachable")
        assert time.monotonic() - started < 2.5


# -- Redirects ----------------------------------------------------------------------------------


def redirecting(server: HostileRegistry, location: str, status: int = 307) -> None:
    """Send whoever wants the object elsewhere."""
    server.blob("a/b", ELF, answer=Answer(status, headers={"Location": location}))


def test_blob_may_come_from_elsewhere_but_credentials_stay(
    hostile: HostileRegistry, store: Store, tmp_path: Path
) -> None:
    """Object storage behind a registry is normal; our password is not its business."""
    expected = "Basic YmVlOmhvbmV5"

    def guarded(answer: Answer) -> object:
        wants = Answer(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        return lambda request: answer if request.headers.get("Authorization") == expected else wants

    with hostile_registry() as storage:
        storage.on("/object", Answer(body=ELF))
        for path in list(hostile.routes):
            answer = hostile.routes[path](Request("GET", path, {}, {}, b""))
            hostile.routes[path] = guarded(answer)  # type: ignore[assignment]
        blob = f"/v2/a/b/blobs/{digest_of(ELF)}"
        hostile.routes[blob] = guarded(Answer(307, headers={"Location": f"http://{storage.host}/object"}))  # type: ignore[assignment]
        config = RegistryConfig(auth_file=str(docker_config(tmp_path, hostile.host)))
        bundle = fetch(parse_reference(f"{hostile.host}/a/b:1"), store=store, registries={hostile.host: config})
        assert bundle.object == ELF
        assert [request.headers.get("Authorization") for request in storage.requests] == [None]


def test_redirect_loop_ends(hostile: HostileRegistry, store: Store) -> None:
    """After five."""
    redirecting(hostile, f"/v2/a/b/blobs/{digest_of(ELF)}")
    assert code_of(hostile, store) == "img.redirect"
    assert len([path for path in hostile.paths() if path.endswith(digest_of(ELF))]) == 6


@pytest.mark.parametrize(
    "location", ["", "file:///etc/passwd", "ftp://x.example/", "http://u:p@127.0.0.1/", "http://", "http://[::1"]
)
def test_redirect_to_nowhere_is_refused(hostile: HostileRegistry, store: Store, location: str) -> None:
    """And the credentials some of them hold are not repeated."""
    redirecting(hostile, location)
    assert code_of(hostile, store) == "img.redirect"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://elsewhere.example/x", "it leaves HTTPS"),
        ("https://127.0.0.1/x", "into this machine"),
        ("https://localhost/x", "into this machine"),
        ("https://[::1]/x", "into this machine"),
        ("https://[::ffff:127.0.0.1]/x", "into this machine"),
        ("https://169.254.169.254/latest/meta-data/", "into this machine"),
        ("https://0.0.0.0/x", "into this machine"),
    ],
)
def test_public_registry_cannot_send_us_inside(location: str, reason: str) -> None:
    """Metadata services and local daemons listen there."""
    deadline = transport.Deadline(5, subject="image 'a'")
    carrier = transport.Transport("registry.example", loopback=False, config=RegistryConfig(), deadline=deadline)
    with pytest.raises(ImageError, match=reason) as caught:
        carrier._redirected(carrier._parse("https://registry.example/v2/"), location)
    assert caught.value.code == "img.redirect"
    assert carrier._redirected(carrier._parse("https://registry.example/v2/"), "https://10.0.0.7/x").host == "10.0.0.7"


def test_name_that_resolves_inside_is_refused_before_a_request(
    hostile: HostileRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connected address counts, not the name: DNS is the attacker's as well."""
    port = int(hostile.host.rpartition(":")[2])
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo",
        lambda host, *more, **named: real("127.0.0.1" if host == "rebound.example" else host, *more, **named),
    )  # fmt: skip
    deadline = transport.Deadline(5, subject="image 'a'")
    config = RegistryConfig(plain_http=True)
    carrier = transport.Transport("registry.example", loopback=False, config=config, deadline=deadline)
    with pytest.raises(ImageError, match=r"rebound\.example \(127\.0\.0\.1\)") as caught:
        carrier.request("GET", f"http://rebound.example:{port}/v2/")
    assert caught.value.code == "img.redirect"
    assert hostile.requests == []


# -- Passwords ----------------------------------------------------------------------------------


def challenging(server: HostileRegistry, challenge: str) -> None:
    """Ask everybody to authenticate so."""
    for path in list(server.routes):
        server.on(path, Answer(401, headers={"WWW-Authenticate": challenge}))


@pytest.mark.parametrize(
    "realm",
    [
        "https://collector.example/token", "http://collector.example/token", "http://localhost:{port}/token",
        "https://user:pw@127.0.0.1/token", "token", "file:///etc/passwd", "http://[::1",
    ],
)  # fmt: skip
def test_foreign_realm_gets_no_password(hostile: HostileRegistry, store: Store, tmp_path: Path, realm: str) -> None:
    """Not by HTTPS to another domain, not by HTTP to another host, not to what is no address."""
    with hostile_registry() as collector:
        challenging(hostile, f'Bearer realm="{realm.format(port=collector.host.rpartition(":")[2])}",service="s"')
        config = RegistryConfig(auth_file=str(docker_config(tmp_path, hostile.host)))
        with pytest.raises(ImageError, match="refusing it") as caught:
            fetch(parse_reference(f"{hostile.host}/a/b:1"), store=store, registries={hostile.host: config})
        assert caught.value.code == "img.auth_realm"
        assert collector.requests == []


def test_foreign_realm_with_an_entry_of_its_own_is_trusted(
    hostile: HostileRegistry, store: Store, tmp_path: Path
) -> None:
    """The remedy the error names works; and the scope asked for is ours, whatever the challenge says."""
    with hostile_registry() as tokens:
        tokens.on("/token", Answer(body=b'{"access_token": "abc"}'))
        realm = f"http://{tokens.host}/token"
        wants = f'Bearer realm="{realm}",service="s",scope="repository:secret/other:pull,push"'
        routes = dict(hostile.routes)
        for path, handler in routes.items():
            hostile.on(
                path,
                lambda request, handler=handler: (
                    handler(request)
                    if request.headers.get("Authorization") == "Bearer abc"
                    else Answer(401, headers={"WWW-Authenticate": wants})
                ),
            )
        config = RegistryConfig(auth_file=str(docker_config(tmp_path, hostile.host)))
        fetch(parse_reference(f"{hostile.host}/a/b:1"), store=store, registries={hostile.host: config})
        (request,) = tokens.requests
        assert request.query["scope"] == ["repository:a/b:pull"]
        assert request.headers["Authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"token": 5}', b'{"token": "a\\nb"}', b'{"token":""}', b" " * 70_000]
)
def test_token_servers_nonsense_is_refused(hostile: HostileRegistry, store: Store, body: bytes) -> None:
    """It would become a header."""
    challenging(hostile, f'Bearer realm="http://{hostile.host}/token"')
    hostile.on("/token", Answer(body=body))
    assert code_of(hostile, store) == "img.auth_token"


def test_token_servers_redirect_is_not_followed(hostile: HostileRegistry, store: Store, tmp_path: Path) -> None:
    """The request carries the password."""
    with hostile_registry() as collector:
        challenging(hostile, f'Bearer realm="http://{hostile.host}/token"')
        hostile.on("/token", Answer(302, headers={"Location": f"http://{collector.host}/steal"}))
        config = RegistryConfig(auth_file=str(docker_config(tmp_path, hostile.host)))
        with pytest.raises(ImageError) as caught:
            fetch(parse_reference(f"{hostile.host}/a/b:1"), store=store, registries={hostile.host: config})
        assert caught.value.code == "img.redirect"
        assert collector.requests == []


@pytest.mark.parametrize("challenge", ["", "Negotiate", "Digest realm=x", "Bearer", "Bearer realm=", ",,,", '"'])
def test_401_without_a_way_to_go_on_is_one_line(hostile: HostileRegistry, store: Store, challenge: str) -> None:
    """Whatever it offers instead."""
    challenging(hostile, challenge)
    assert code_of(hostile, store) == "img.unauthorized"


def test_refused_token_is_not_asked_for_for_ever(hostile: HostileRegistry, store: Store) -> None:
    """One token, one more try, an error."""
    challenging(hostile, f'Bearer realm="http://{hostile.host}/token"')
    hostile.on("/token", Answer(body=b'{"token": "abc"}'))
    assert code_of(hostile, store) == "img.unauthorized"
    assert hostile.paths().count("/token") == 1


def test_identity_token_is_exchanged_in_a_form(hostile: HostileRegistry, store: Store, tmp_path: Path) -> None:
    """OAuth2: a POST with the refresh token, never a query that lands in logs."""
    challenging(hostile, f'Bearer realm="http://{hostile.host}/token",service="s"')
    hostile.on("/token", Answer(body=b'{"access_token": "abc"}'))
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": {hostile.host: {"auth": "", "identitytoken": "refresh me"}}}))
    with pytest.raises(ImageError):
        fetch(
            parse_reference(f"{hostile.host}/a/b:1"), store=store,
            registries={hostile.host: RegistryConfig(auth_file=str(path))},
        )  # fmt: skip
    (request,) = [request for request in hostile.requests if request.path == "/token"]
    assert (request.method, request.query) == ("POST", {})
    assert b"grant_type=refresh_token&refresh_token=refresh+me" in request.body


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Bearer realm="https://a/t",service="s",scope="x:y:pull,push"',
         [Challenge("bearer", {"realm": "https://a/t", "service": "s", "scope": "x:y:pull,push"})]),
        ("bearer realm=https://a/t, service=s", [Challenge("bearer", {"realm": "https://a/t", "service": "s"})]),
        ('Basic realm="a, b", Bearer realm="c"',
         [Challenge("basic", {"realm": "a, b"}), Challenge("bearer", {"realm": "c"})]),
        ('BASIC REALM="a\\"b"', [Challenge("basic", {"realm": 'a"b'})]),
        ("Negotiate, Basic realm=x", [Challenge("negotiate", {}), Challenge("basic", {"realm": "x"})]),
        ("Basic", [Challenge("basic", {})]),
        ('realm="x"', []),
        ("", []),
    ],
)  # fmt: skip
def test_challenges_are_read_by_the_grammar(header: str, expected: list[Challenge]) -> None:
    """Quoted commas, several schemes in one header, any case."""
    assert parse_challenges([header]) == expected


def test_challenge_of_any_length_is_read_in_no_time() -> None:
    """The pattern does not backtrack without end."""
    started = time.monotonic()
    for header in ('Bearer a="' + "\\" * 8000, "a " * 4000, ", " * 4000, "a=" * 4000, 'a="b"' * 2000):
        parse_challenges([header])
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("registry-1.docker.io", "auth.docker.io", True),
        ("registry.example", "registry.example", True),
        ("a.registry.example", "b.registry.example", True),
        ("registry.example", "evil.example", False),
        ("a.co.uk", "b.co.uk", False),
        ("x.a.co.uk", "y.a.co.uk", True),
        ("10.0.0.1", "10.9.0.1", False),
        ("[::1]", "[::2]", False),
        ("registry", "auth", False),
        ("docker.io.evil.example", "docker.io", False),
    ],
)
def test_domains_of_one_owner(one: str, other: str, same: bool) -> None:
    """A guard, in both directions."""
    assert same_domain(one, other) is same
    assert same_domain(other, one) is same


def test_proxy_of_the_environment_is_used_but_not_for_loopback(
    hostile: HostileRegistry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A company's registry is behind one; this machine's is not."""
    with hostile_registry() as proxy:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://{proxy.host}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert fetch(parse_reference(f"{hostile.host}/a/b:1"), store=store).object == ELF
        assert proxy.requests == []
        config = {"registry.example": RegistryConfig(plain_http=True)}
        with pytest.raises(ImageError):
            fetch(parse_reference("registry.example/a:1"), store=store, registries=config)
        assert proxy.requests[0].path == "/v2/a/manifests/1"
        assert proxy.requests[0].headers["Host"] == "registry.example"


def test_netrc_is_not_read(
    hostile: HostileRegistry, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its passwords are for other programs."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login bee password honey\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    fetch(parse_reference(f"{hostile.host}/a/b:1"), store=store)
    assert all("Authorization" not in request.headers for request in hostile.requests)


def open_files() -> int:
    """How many descriptors this process holds."""
    return len(list(Path("/proc/self/fd").iterdir()))


# -- Pushing ------------------------------------------------------------------------------------


def accepting(server: HostileRegistry) -> None:
    """Take every upload, keep nothing."""
    server.routes.clear()
    server.on("/v2/a/b/blobs/uploads/", Answer(202, headers={"Location": "/upload?session=1"}))
    server.on("/upload", Answer(201))
    server.on("/v2/a/b/manifests/1", Answer(201))


@pytest.mark.parametrize(
    ("path", "answer", "code"),
    [
        ("/v2/a/b/blobs/uploads/", Answer(403, b'{"errors":[{"code":"DENIED"}]}'), "img.denied"),
        ("/v2/a/b/blobs/uploads/", Answer(202), "img.push"),
        ("/v2/a/b/blobs/uploads/", Answer(202, headers={"Location": "file:///etc/x"}), "img.redirect"),
        ("/v2/a/b/blobs/uploads/", Answer(202, headers={"Location": ".elsewhere.example/x"}), "img.not_found"),
        ("/v2/a/b/blobs/uploads/", Answer(302, headers={"Location": "/elsewhere"}), "img.redirect"),
        ("/upload", Answer(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}'), "img.status"),
        ("/upload", Answer(200, b"x" * 100, length=500), "img.truncated"),
        ("/v2/a/b/manifests/1", Answer(413), "img.status"),
        ("/v2/a/b/manifests/1", Answer(201), "img.status"),
        ("/v2/a/b/manifests/1", Answer(200, bee_manifest(ELF)), "img.push"),
    ],
)
def test_push_to_a_dishonest_registry_is_one_line(
    hostile: HostileRegistry, store: Store, path: str, answer: Answer, code: str
) -> None:
    """Refusing, breaking the protocol, or serving something else afterwards."""
    reference = parse_reference(f"{hostile.host}/a/b:1")
    store.add(reference, {HOST: ELF})
    accepting(hostile)
    hostile.on(path, answer)
    with pytest.raises(ImageError) as caught:
        push_image(reference, store=store, deadline_s=10)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_push_sends_the_very_bytes_and_verifies_by_reading_back(hostile: HostileRegistry, store: Store) -> None:
    """A digest is of bytes: JSON that was serialised anew is another image."""
    reference = parse_reference(f"{hostile.host}/a/b:1")
    digest = store.add(reference, {HOST: ELF})
    accepting(hostile)
    kept: list[bytes] = []

    def manifests(request: Request) -> Answer:
        kept.extend([request.body] if request.method == "PUT" else [])
        return Answer(201) if request.method == "PUT" else Answer(body=kept[-1])

    hostile.on("/v2/a/b/manifests/1", manifests)
    assert push_image(reference, store=store) == digest == Digest.of(kept[-1])
    uploads = [request for request in hostile.requests if request.path == "/upload"]
    assert {digest_of(request.body) for request in uploads} == {request.query["digest"][0] for request in uploads}


def test_push_does_not_follow_an_upload_with_our_password(
    hostile: HostileRegistry, store: Store, tmp_path: Path
) -> None:
    """An upload session may be anywhere; the Authorization header is for the registry."""
    with hostile_registry() as elsewhere:
        elsewhere.on("/upload", Answer(201))
        reference = parse_reference(f"{hostile.host}/a/b:1")
        store.add(reference, {HOST: ELF})
        wants = Answer(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        grants = Answer(202, headers={"Location": f"http://{elsewhere.host}/upload"})
        hostile.routes.clear()
        hostile.on("/v2/a/b/blobs/uploads/", lambda request: grants if "Authorization" in request.headers else wants)
        config = RegistryConfig(auth_file=str(docker_config(tmp_path, hostile.host)))
        with pytest.raises(ImageError):
            push_image(reference, store=store, registries={hostile.host: config})
        assert elsewhere.requests
        assert all("Authorization" not in request.headers for request in elsewhere.requests)


def test_no_connection_outlives_a_pull(hostile: HostileRegistry, store: Store) -> None:
    """An agent pulls for years: descriptors may not add up."""
    reference = parse_reference(f"{hostile.host}/a/b:1")
    fetch(reference, store=store)
    before = open_files()
    for _ in range(5):
        fetch(reference, store=store, pull="always")
        hostile.on("/v2/a/b/manifests/2", Answer(404))
        with pytest.raises(ImageError):
            fetch(parse_reference(f"{hostile.host}/a/b:2"), store=store)
    # The server's threads are in this process too, and close a moment later.
    end = time.monotonic() + 5
    while open_files() > before and time.monotonic() < end:
        time.sleep(0.02)
    assert open_files() <= before


def test_registry_client_is_closed_twice_without_harm(hostile: HostileRegistry) -> None:
    """``with`` inside a try that also closes."""
    with Registry(parse_reference(f"{hostile.host}/a/b:1"), deadline_s=5) as client:
        client.manifest("1")
    client.__exit__()
