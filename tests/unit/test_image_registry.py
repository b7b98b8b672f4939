"""Round trips through a real registry: plain, TLS, Basic, tokens; and what is done when its disk lies."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from exporter.config import RegistryConfig
from exporter.errors import ImageError
from exporter.image import (
    ALL_ARCHITECTURES,
    Reference,
    Store,
    fetch,
    host_architecture,
    parse_reference,
    pull_image,
    registry,
    transfer,
    transport,
)
from exporter.image.formats import BEE_PROGRAM, OCI_MANIFEST
from exporter.image.reference import Digest
from exporter.image.upload import push_image
from tests.support.images import bee_manifest, bpf_elf, descriptor, digest_of, index_of
from tests.support.registry import RunningRegistry, docker_config, make_certificate, real_registry

HOST = host_architecture()
OTHER = "arm64" if HOST == "amd64" else "amd64"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """One registry without TLS or passwords for this file; tests use repositories of their own."""
    with real_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No waiting between tries, no memory of dead registries, nobody's Docker credentials."""
    transport.circuits.reset()
    monkeypatch.setattr(transport, "_backoff", lambda _attempt: 0.001)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker"))


@pytest.fixture
def built(tmp_path: Path) -> Store:
    """The store of whoever builds and pushes."""
    return Store(tmp_path / "built")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The store of the host that pulls."""
    return Store(tmp_path / "store")


def put(
    running: RunningRegistry, repository: str, tag: str, raw: bytes, *blobs: bytes, kind: str = OCI_MANIFEST
) -> None:
    """Push by bare HTTP, so that manifests of any shape get in."""
    base = f"http://{running.host}/v2/{repository}"
    for blob in blobs:
        location = requests.post(f"{base}/blobs/uploads/", timeout=5).headers["Location"]
        joint = "&" if "?" in location else "?"
        assert requests.put(f"{location}{joint}digest={digest_of(blob)}", data=blob, timeout=5).status_code == 201
    answer = requests.put(f"{base}/manifests/{tag}", data=raw, headers={"Content-Type": kind}, timeout=5)
    assert answer.status_code == 201, answer.text


def round_trip(reference: Reference, built: Store, store: Store, config: RegistryConfig) -> None:
    """Build for two architectures, push, pull this one's, compare."""
    registries = {reference.registry: config}
    objects = {HOST: bpf_elf(b"mine"), OTHER: bpf_elf(b"other")}
    digest = built.add(reference, objects, {"version": 1}, {"org.opencontainers.image.version": "1.4"})
    assert push_image(reference, store=built, registries=registries) == digest
    bundle = fetch(reference, store=store, registries=registries)
    assert (bundle.digest, bundle.object, bundle.architecture) == (digest, objects[HOST], HOST)
    assert (bundle.metadata, bundle.version, bundle.format) == ({"version": 1}, "1.4", "bumblebee")
    assert (
        fetch(reference, store=store, pull="always", architecture=OTHER, registries=registries).object == objects[OTHER]
    )


def test_plain_http_on_loopback_needs_no_configuration(plain: RunningRegistry, built: Store, store: Store) -> None:
    """An index of two architectures there and back."""
    round_trip(parse_reference(f"{plain.host}/plain/disk:1.4"), built, store, RegistryConfig())


def test_tls_with_a_private_authority(tmp_path: Path, built: Store, store: Store) -> None:
    """``ca_file`` makes a loopback registry HTTPS; without it the connection is refused with a remedy."""
    with real_registry(tmp_path / "registry", tls=True) as running:
        reference = parse_reference(f"{running.host}/disk:1")
        round_trip(reference, built, store, RegistryConfig(ca_file=str(running.ca_file)))
        (tmp_path / "stranger").mkdir()
        stranger, _, _ = make_certificate(tmp_path / "stranger")
        other_ca = RegistryConfig(ca_file=str(stranger))
        with pytest.raises(ImageError, match="ca_file") as caught:
            fetch(reference, store=store, pull="always", registries={running.host: other_ca})
        assert caught.value.code == "img.tls"
        with pytest.raises(ImageError, match="speaks HTTPS: set registries") as caught:
            fetch(reference, store=store, pull="always")
        assert caught.value.code == "img.status"


def test_plain_registry_asked_by_tls_says_so(plain: RunningRegistry, store: Store, tmp_path: Path) -> None:
    """The opposite mistake."""
    certificates, _, _ = make_certificate(tmp_path)
    with pytest.raises(ImageError, match="plain_http") as caught:
        fetch(
            parse_reference(f"{plain.host}/a:1"), store=store,
            registries={plain.host: RegistryConfig(ca_file=str(certificates))},
        )  # fmt: skip
    assert caught.value.code == "img.tls"


def test_basic_authentication(tmp_path: Path, built: Store, store: Store) -> None:
    """With the password; without it, and with a wrong one, 401 and a remedy."""
    with real_registry(tmp_path / "registry", password=True) as running:
        reference = parse_reference(f"{running.host}/disk:1")
        good = RegistryConfig(auth_file=str(docker_config(tmp_path / "good", running.host)))
        bad = RegistryConfig(auth_file=str(docker_config(tmp_path / "bad", running.host, password="wax")))
        round_trip(reference, built, store, good)
        for config, words in ((RegistryConfig(), "none is known"), (bad, "refuses the credentials")):
            with pytest.raises(ImageError, match=words) as caught:
                fetch(reference, store=store, pull="always", registries={running.host: config})
            assert caught.value.code == "img.unauthorized"
            assert "wax" not in str(caught.value)


def test_docker_config_of_the_user_is_found(
    tmp_path: Path, built: Store, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``$DOCKER_CONFIG``, as after docker login."""
    with real_registry(tmp_path / "registry", password=True) as running:
        docker_config(tmp_path / "docker", running.host)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
        round_trip(parse_reference(f"{running.host}/disk:1"), built, store, RegistryConfig())


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[RunningRegistry]:
    """A registry that wants Bearer tokens."""
    with real_registry(tmp_path / "registry", token=True) as running:
        yield running


def test_token_authentication_asks_for_just_this_repository(
    tokens: RunningRegistry, tmp_path: Path, built: Store, store: Store
) -> None:
    """One token for all requests of a pull, with the action it needs and no more."""
    assert tokens.token_server
    config = RegistryConfig(auth_file=str(docker_config(tmp_path / "docker", tokens.host)))
    reference = parse_reference(f"{tokens.host}/bpf/disk:1")
    round_trip(reference, built, store, config)
    scopes = [request.query["scope"] for request in tokens.token_server.requests]
    assert scopes == [["repository:bpf/disk:pull,push"], ["repository:bpf/disk:pull"], ["repository:bpf/disk:pull"]]


def test_refused_token_is_renewed_once(tokens: RunningRegistry, tmp_path: Path, built: Store) -> None:
    """A registry that forgets a token in the middle of a pull gets a new one, not an error."""
    config = RegistryConfig(auth_file=str(docker_config(tmp_path / "docker", tokens.host)))
    reference = parse_reference(f"{tokens.host}/bpf/disk:1")
    digest = built.add(reference, {HOST: bpf_elf()})
    push_image(reference, store=built, registries={tokens.host: config})
    assert tokens.token_server
    with registry.Registry(reference, config, deadline_s=20) as client:
        assert client.manifest("1").digest == digest
        assert client._token
        client._token.value = client._token.value[:-8] + "tampered"
        before = len(tokens.token_server.requests)
        assert client.manifest("1").digest == digest
        assert len(tokens.token_server.requests) == before + 1
        # An expired one is not even tried.
        client._token.expires = time.monotonic() - 1
        assert client.manifest("1").digest == digest


def test_token_server_that_says_no_is_401(tokens: RunningRegistry, store: Store) -> None:
    """Anonymous, where the token server wants a password."""
    with pytest.raises(ImageError, match=r"token server .* refuses an anonymous request") as caught:
        fetch(parse_reference(f"{tokens.host}/bpf/disk:1"), store=store)
    assert caught.value.code == "img.unauthorized"


def test_anonymous_token_for_a_public_repository(
    tokens: RunningRegistry, tmp_path: Path, built: Store, store: Store
) -> None:
    """As on every public registry."""
    reference = parse_reference(f"{tokens.host}/bpf/disk:1")
    config = RegistryConfig(auth_file=str(docker_config(tmp_path / "docker", tokens.host)))
    built.add(reference, {HOST: bpf_elf()})
    push_image(reference, store=built, registries={tokens.host: config})
    assert tokens.token_server
    tokens.token_server.public = True
    assert fetch(reference, store=store).object == bpf_elf()


def test_digest_decides_and_a_moved_tag_does_not_matter(plain: RunningRegistry, built: Store, store: Store) -> None:
    """``tag@digest`` gets what was pinned, by any tag beside it."""
    reference = parse_reference(f"{plain.host}/pin/disk:1")
    first = built.add(reference, {HOST: bpf_elf(b"1")})
    push_image(reference, store=built)
    built.add(reference, {HOST: bpf_elf(b"2")})
    push_image(reference, store=built)
    assert fetch(reference.pinned(first), store=store).object == bpf_elf(b"1")
    assert fetch(reference, store=store).object == bpf_elf(b"2")
    assert fetch(parse_reference(f"{plain.host}/pin/disk@{first}"), store=store).object == bpf_elf(b"1")


def test_pull_policies(plain: RunningRegistry, built: Store, store: Store) -> None:
    """If-not-present never notices a moved tag, always does, never needs what is there."""
    reference = parse_reference(f"{plain.host}/policy/disk:1")
    with pytest.raises(ImageError) as caught:
        fetch(reference, store=store, pull="never")
    assert caught.value.code == "img.not_present"
    first = built.add(reference, {HOST: bpf_elf(b"1")})
    push_image(reference, store=built)
    assert fetch(reference, store=store).digest == first
    second = built.add(reference, {HOST: bpf_elf(b"2")})
    push_image(reference, store=built)
    assert fetch(reference, store=store).digest == first
    assert fetch(reference, store=store, pull="never").digest == first
    assert fetch(reference, store=store, pull="always").digest == second
    # Rollback needs no network.
    assert fetch(reference.pinned(first), store=store, pull="never").object == bpf_elf(b"1")


def test_stored_image_needs_no_registry(tmp_path: Path, built: Store, store: Store) -> None:
    """With the registry gone: what is stored runs; a new pull is one line, quickly."""
    with real_registry(tmp_path / "registry") as running:
        reference = parse_reference(f"{running.host}/disk:1")
        built.add(reference, {HOST: bpf_elf()})
        push_image(reference, store=built)
        fetch(reference, store=store)
        running.stop()
        assert fetch(reference, store=store).object == bpf_elf()
        started = time.monotonic()
        with pytest.raises(ImageError, match="unreachable: Connection refused; check the network") as caught:
            fetch(reference, store=store, pull="always", deadline_s=20)
        assert caught.value.code == "img.unreachable"
        assert time.monotonic() - started < 5


def test_image_as_bumblebee_pushes_it(plain: RunningRegistry, store: Store) -> None:
    """Compact JSON, no ``mediaType``, no ``artifactType``, config ``{}``, two titles."""
    program = bpf_elf(b"bee")
    put(plain, "solo/probe", "v1", bee_manifest(program), program, b"{}")
    bundle = fetch(parse_reference(f"{plain.host}/solo/probe:v1"), store=store)
    assert (bundle.object, bundle.format, bundle.metadata) == (program, "bumblebee", {})
    assert (bundle.version, bundle.architecture) == ("v1", "")


def test_index_with_attestations_and_uname_spelling(plain: RunningRegistry, store: Store) -> None:
    """What image builders really push; only this architecture's blobs are fetched."""
    mine, other = bpf_elf(b"mine"), bpf_elf(b"other")
    children = {content: bee_manifest(content, mediaType=OCI_MANIFEST) for content in (mine, other)}
    for content, raw in children.items():
        put(plain, "odd/probe", digest_of(raw), raw, content, b"{}")
    spelled = {"amd64": "x86_64", "arm64": "aarch64"}
    index = index_of(
        (children[other], {"os": "unknown", "architecture": "unknown"}),
        (children[other], {"os": "linux", "architecture": spelled[OTHER]}),
        (children[mine], {"os": "Linux", "architecture": spelled[HOST]}),
    )
    put(plain, "odd/probe", "1", index, kind="application/vnd.oci.image.index.v1+json")
    reference = parse_reference(f"{plain.host}/odd/probe:1")
    bundle = fetch(reference, store=store)
    assert (bundle.object, bundle.digest, bundle.architecture) == (mine, Digest.of(index), HOST)
    assert not store.blob_path(Digest.of(other)).exists()
    with pytest.raises(ImageError, match="no image for linux/riscv64") as caught:
        fetch(reference, store=store, architecture="riscv64")
    assert caught.value.code == "img.no_platform"


def test_image_for_another_architecture_is_refused(plain: RunningRegistry, built: Store, store: Store) -> None:
    """A single manifest too says what it was built for."""
    reference = parse_reference(f"{plain.host}/wrong/arch:1")
    built.add(reference, {OTHER: bpf_elf()})
    push_image(reference, store=built)
    with pytest.raises(ImageError, match=f"no image for linux/{HOST}, it has linux/{OTHER}") as caught:
        fetch(reference, store=store)
    assert caught.value.code == "img.no_platform"
    assert store.resolve(reference) is None


def test_any_single_raw_object_is_an_image(plain: RunningRegistry, store: Store) -> None:
    """As ``oras push`` makes them; and a layer that is no object is not one."""
    for content, name in ((bpf_elf(b"raw"), "good"), (b"#!/bin/sh", "bad")):
        empty = descriptor(b"{}", "application/vnd.oci.empty.v1+json")
        raw = json.dumps(
            {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": empty, "layers": [descriptor(content, "x/y")]}
        ).encode()
        put(plain, f"raw/{name}", "1", raw, content, b"{}")
    assert fetch(parse_reference(f"{plain.host}/raw/good:1"), store=store).format == "generic"
    with pytest.raises(ImageError, match="must be an ELF object for BPF") as caught:
        fetch(parse_reference(f"{plain.host}/raw/bad:1"), store=store)
    assert caught.value.code == "img.unknown_format"


def test_several_program_layers_are_refused(plain: RunningRegistry, store: Store) -> None:
    """Peers take the first or the last; we do not guess."""
    one, two = bpf_elf(b"1"), bpf_elf(b"2")
    raw = bee_manifest(one, layers=[descriptor(one, BEE_PROGRAM), descriptor(two, BEE_PROGRAM)])
    put(plain, "two/layers", "1", raw, one, two, b"{}")
    with pytest.raises(ImageError, match="2 layers are programs") as caught:
        fetch(parse_reference(f"{plain.host}/two/layers:1"), store=store)
    assert caught.value.code == "img.ambiguous_payload"
    assert not store.blob_path(Digest.of(one)).exists()


def test_what_is_not_there_is_404(plain: RunningRegistry, built: Store, store: Store) -> None:
    """Repository or tag; one line with both."""
    with pytest.raises(ImageError, match=r"has no manifest 9 \(404.*check the name and the tag") as caught:
        fetch(parse_reference(f"{plain.host}/no/such:9"), store=store)
    assert caught.value.code == "img.not_found"


Alter = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    ("alter", "code"),
    [
        (lambda content: content[:-1] + b"!", "img.blob_digest"),
        (lambda content: content[:-1], "img.blob_size"),
        (lambda content: content + b"!", "img.blob_size"),
        (lambda _content: b"", "img.blob_size"),
    ],
)
def test_blob_altered_on_the_registrys_disk_is_refused(
    plain: RunningRegistry, built: Store, store: Store, alter: Alter, code: str
) -> None:
    """The registry does not hash what it serves; we do, before anything is stored."""
    # Content of its own for each case: the registry shares blobs between repositories.
    content = bpf_elf(str(store.path).encode())
    reference = parse_reference(f"{plain.host}/altered/disk:1")
    built.add(reference, {HOST: content})
    push_image(reference, store=built)
    path = plain.blob_file(digest_of(content))
    path.write_bytes(alter(content))
    with pytest.raises(ImageError, match="refusing it") as caught:
        fetch(reference, store=store)
    assert caught.value.code == code
    assert store.resolve(reference) is None
    assert not store.blob_path(Digest.of(content)).exists()


def test_manifest_altered_on_the_registrys_disk_is_refused_by_pin(
    plain: RunningRegistry, built: Store, store: Store
) -> None:
    """And by tag as well, for the registry names the digest it believes in."""
    reference = parse_reference(f"{plain.host}/altered/manifest:1")
    digest = built.add(reference, {HOST: bpf_elf(b"manifest")})
    push_image(reference, store=built)
    path = plain.blob_file(str(digest))
    path.write_bytes(path.read_bytes().replace(b'"program.o"', b'"progrem.o"'))
    for each in (reference, reference.pinned(digest)):
        with pytest.raises(ImageError) as caught:
            fetch(each, store=store)
        assert caught.value.code == "img.manifest_digest"


def test_damaged_store_is_repaired_with_the_same_version(plain: RunningRegistry, built: Store, store: Store) -> None:
    """The tag has moved on meanwhile; a repair must not be an upgrade."""
    reference = parse_reference(f"{plain.host}/repair/disk:1")
    first = built.add(reference, {HOST: bpf_elf(b"1")})
    push_image(reference, store=built)
    fetch(reference, store=store)
    built.add(reference, {HOST: bpf_elf(b"2")})
    push_image(reference, store=built)
    store.blob_path(Digest.of(bpf_elf(b"1"))).write_bytes(b"damaged")
    bundle = fetch(reference, store=store)
    assert (bundle.digest, bundle.object) == (first, bpf_elf(b"1"))
    store.blob_path(Digest.of(bpf_elf(b"1"))).write_bytes(b"damaged")
    with pytest.raises(ImageError) as caught:
        fetch(reference, store=store, pull="never")
    assert caught.value.code == "img.cache_corrupt"
    # Damage to the root manifest itself, and then to the index.
    store.blob_path(first).write_bytes(b"damaged")
    assert fetch(reference, store=store).digest == first
    (store.path / "index.json").write_bytes(b"damaged")
    assert fetch(reference, store=store).object == bpf_elf(b"2")


def test_pulled_image_can_be_pushed_when_it_is_whole(plain: RunningRegistry, built: Store, store: Store) -> None:
    """One architecture of two is not; the error says how to get the rest."""
    reference = parse_reference(f"{plain.host}/mirror/disk:1")
    digest = built.add(reference, {HOST: bpf_elf(b"m"), OTHER: bpf_elf(b"o")})
    push_image(reference, store=built)
    pull_image(reference, store=store)
    with pytest.raises(ImageError, match="--all-architectures") as caught:
        push_image(reference, store=store)
    assert caught.value.code == "img.not_present"
    assert pull_image(reference, store=store, architecture=ALL_ARCHITECTURES) == digest
    assert push_image(reference, store=store) == digest
    assert store.list()[0].complete


def test_push_of_what_is_not_stored_says_so(plain: RunningRegistry, store: Store) -> None:
    """Before any request."""
    with pytest.raises(ImageError, match="build or pull it first") as caught:
        push_image(parse_reference(f"{plain.host}/absent/disk:1"), store=store)
    assert caught.value.code == "img.not_present"


def test_push_of_a_damaged_object_is_refused(plain: RunningRegistry, built: Store) -> None:
    """A flipped bit on the builder's disk does not become everybody's."""
    reference = parse_reference(f"{plain.host}/damaged/disk:1")
    built.add(reference, {HOST: bpf_elf(b"damaged")})
    built.blob_path(Digest.of(bpf_elf(b"damaged"))).write_bytes(b"x")
    with pytest.raises(ImageError) as caught:
        push_image(reference, store=built)
    assert caught.value.code == "img.cache_corrupt"


@pytest.mark.parametrize("text", ["catalog:disk", "./disk.o", "oci:dir"])
def test_only_registry_references_travel(store: Store, text: str) -> None:
    """There is no registry to ask for the others."""
    for act in (pull_image, push_image):
        with pytest.raises(ImageError, match="not in a registry"):
            act(parse_reference(text), store=store)


def test_local_kinds_come_through_the_same_door(tmp_path: Path, built: Store, store: Store) -> None:
    """A file, a layout, the catalog: all bundles."""
    path = tmp_path / "disk.bpf.o"
    path.write_bytes(bpf_elf(b"file"))
    bundle = fetch(parse_reference(str(path)), store=store)
    assert (bundle.object, bundle.format, bundle.digest) == (bpf_elf(b"file"), "file", Digest.of(bpf_elf(b"file")))
    catalog = Store(tmp_path / "catalog")
    catalog.add(parse_reference("catalog:disk"), {HOST: bpf_elf(b"catalog")}, {"version": 1})
    assert fetch(parse_reference("catalog:disk"), store=store, catalog=catalog.path).object == bpf_elf(b"catalog")
    assert fetch(parse_reference(f"oci:{catalog.path}:disk"), store=store).object == bpf_elf(b"catalog")
    with pytest.raises(ImageError, match="it has 'disk'"):
        fetch(parse_reference("catalog:dusk"), store=store, catalog=catalog.path)
    with pytest.raises(ImageError, match="does not exist") as caught:
        fetch(parse_reference(str(tmp_path / "no.o")), store=store)
    assert caught.value.code == "img.file"
    assert not store.path.exists()


def test_stop_ends_a_pull_before_it_begins(plain: RunningRegistry, store: Store) -> None:
    """An agent that is told to end does not start a download."""
    stop = threading.Event()
    stop.set()
    with pytest.raises(ImageError) as caught:
        fetch(parse_reference(f"{plain.host}/a/b:1"), store=store, stop=stop)
    assert caught.value.code == "img.stopped"


def test_settings_of_docker_hub_may_be_keyed_by_any_of_its_names() -> None:
    """Users write what they see."""
    config = RegistryConfig(auth_file="/x")
    for key in ("docker.io", "registry-1.docker.io", "index.docker.io"):
        assert transfer.registry_config(parse_reference("disk"), {key: config}) is config
    assert dataclasses.asdict(transfer.registry_config(parse_reference("a.example/b"), {})) == dataclasses.asdict(
        RegistryConfig()
    )
