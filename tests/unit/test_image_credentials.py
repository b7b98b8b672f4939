"""Docker's credential files and helpers, read as Docker and Podman write them."""

import base64
import json
import os
import time
from pathlib import Path

import pytest

from exporter.errors import ImageError
from exporter.image.credentials import CredentialFile, Credentials, default_path
from exporter.image.transport import Deadline

REGISTRY, REPOSITORY = "registry.example:5000", "bpf/disk"


def encoded(text: str) -> dict[str, str]:
    """An ``auths`` entry as docker login writes it."""
    return {"auth": base64.b64encode(text.encode()).decode()}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Where the file goes."""
    return tmp_path / "config.json"


def lookup(path: Path, body: object, *, registry: str = REGISTRY, deadline_s: float = 10) -> Credentials:
    """Write the file and ask it."""
    path.write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
    return CredentialFile(str(path), deadline=Deadline(deadline_s)).lookup(registry, REPOSITORY)


@pytest.mark.parametrize(
    "key",
    [
        REGISTRY, f"https://{REGISTRY}", f"https://{REGISTRY}/v1/", f"https://{REGISTRY}/v2/", f"http://{REGISTRY}",
        f"{REGISTRY}/bpf", f"{REGISTRY}/bpf/disk",
    ],
)  # fmt: skip
def test_entry_is_found_under_every_spelling(config: Path, key: str) -> None:
    """Docker's old and new, Podman's by path."""
    assert lookup(config, {"auths": {key: encoded("bee:honey:pot")}}) == Credentials("bee", "honey:pot")


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_is_found_under_all_its_names(config: Path, key: str) -> None:
    """The oldest of them is what docker login stores."""
    assert lookup(config, {"auths": {key: encoded("bee:honey")}}, registry="docker.io").username == "bee"


def test_most_particular_entry_wins(config: Path) -> None:
    """A robot account for one repository beside a person's for the registry."""
    auths = {REGISTRY: encoded("person:a"), f"{REGISTRY}/bpf": encoded("team:b"), f"{REGISTRY}/bpf/d": encoded("no:c")}
    assert lookup(config, {"auths": auths}).username == "team"


def test_other_registries_entries_are_not_used(config: Path) -> None:
    """Neither without the port nor with another."""
    auths = {"registry.example": encoded("a:b"), "registry.example:5001": encoded("a:b")}
    assert not lookup(config, {"auths": auths})


def test_tokens_are_told_from_passwords(config: Path) -> None:
    """Each is used in another way."""
    entry = {"auth": "", "identitytoken": "refresh", "registrytoken": "bearer"}
    assert lookup(config, {"auths": {REGISTRY: entry}}) == Credentials(
        identity_token="refresh", registry_token="bearer"
    )
    assert lookup(config, {"auths": {REGISTRY: {"username": "bee", "password": "honey"}}}).basic == "Basic YmVlOmhvbmV5"


def test_secret_is_in_no_representation() -> None:
    """Tracebacks and logs show reprs."""
    assert "honey" not in repr(Credentials("bee", "honey", "honey", "honey"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        ({"auths": {REGISTRY: 5}}, "not an object"),
        ({"auths": {REGISTRY: {"auth": "%%%"}}}, "not base64"),
        ({"auths": {REGISTRY: {"auth": "/////w=="}}}, "not base64"),
        ({"auths": {REGISTRY: encoded("bee")}}, "without ':'"),
        ({"credHelpers": {REGISTRY: "../../bin/sh"}}, "not a program's name"),
        ({"credHelpers": {REGISTRY: "no-such-helper"}}, "cannot be run"),
    ],
)
def test_unusable_file_is_one_line_with_its_path(config: Path, body: object, words: str) -> None:
    """It says which entry, never what the secret was."""
    with pytest.raises(ImageError, match=words) as caught:
        lookup(config, body)
    assert caught.value.code == "img.credentials"
    assert str(config) in str(caught.value)


def test_empty_file_and_missing_default_are_anonymous(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most hosts have no credentials at all; a *configured* file must exist."""
    assert not lookup(config, b"")
    assert not lookup(config, {"auths": None, "credsStore": ""})
    monkeypatch.setenv("DOCKER_CONFIG", str(config.parent / "none"))
    assert not CredentialFile("", deadline=Deadline(5)).lookup(REGISTRY, REPOSITORY)
    with pytest.raises(ImageError, match="does not exist; correct registries"):
        CredentialFile(str(config.parent / "none"), deadline=Deadline(5)).lookup(REGISTRY, REPOSITORY)


def test_default_file_is_docker_configs_then_homes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Docker's own tools look."""
    monkeypatch.setenv("DOCKER_CONFIG", "/etc/docker-config")
    assert default_path() == Path("/etc/docker-config/config.json")
    monkeypatch.delenv("DOCKER_CONFIG")
    monkeypatch.setenv("HOME", "/home/bee")
    assert default_path() == Path("/home/bee/.docker/config.json")


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential helper ``test`` on the PATH; the test writes its shell script."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    path = programs / "docker-credential-test"
    path.write_text("")
    path.chmod(0o755)
    return path


def answering(helper: Path, script: str) -> None:
    """Let the helper run this after reading its input into ``$server``."""
    helper.write_text(f"#!/bin/sh\nread -r server\n{script}\n")


@pytest.mark.parametrize("where", [{"credHelpers": {REGISTRY: "test"}}, {"credsStore": "test"}])
def test_helper_is_asked_for_the_registry(config: Path, helper: Path, where: dict[str, object]) -> None:
    """One for the host, or one for all."""
    answering(helper, 'echo "{\\"ServerURL\\":\\"$server\\",\\"Username\\":\\"$server\\",\\"Secret\\":\\"honey\\"}"')
    assert lookup(config, where) == Credentials(REGISTRY, "honey")


def test_helper_for_the_host_goes_before_the_file_and_the_store_after(config: Path, helper: Path) -> None:
    """Docker's order."""
    answering(helper, 'echo "{\\"Username\\":\\"helped\\",\\"Secret\\":\\"x\\"}"')
    auths = {"auths": {REGISTRY: encoded("filed:x")}}
    assert lookup(config, {**auths, "credHelpers": {REGISTRY: "test"}}).username == "helped"
    assert lookup(config, {**auths, "credsStore": "test"}).username == "filed"
    assert lookup(config, {"auths": {REGISTRY: {}}, "credsStore": "test"}).username == "helped"


def test_helpers_identity_token(config: Path, helper: Path) -> None:
    """Marked by its user name."""
    answering(helper, 'echo "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"refresh\\"}"')
    assert lookup(config, {"credsStore": "test"}) == Credentials(identity_token="refresh")


def test_helper_that_knows_nothing_means_anonymous(config: Path, helper: Path) -> None:
    """It says so on its standard output and fails."""
    answering(helper, 'echo "credentials not found in native keychain"; exit 1')
    assert not lookup(config, {"credsStore": "test"})


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo honey >&2; exit 3", "failed with status 3"),
        ("echo honey", "not JSON"),
        ("echo []", "not a JSON object"),
        ('echo \'{"Username":"honey"}\'', "lacks Username or Secret"),
    ],
)
def test_failing_helper_is_one_line_without_its_output(config: Path, helper: Path, script: str, words: str) -> None:
    """Its output may be half a secret."""
    answering(helper, script)
    with pytest.raises(ImageError, match=words) as caught:
        lookup(config, {"credsStore": "test"})
    assert caught.value.code == "img.credentials"


def test_helper_that_hangs_is_ended_in_time(config: Path, helper: Path) -> None:
    """One that waits for a keyring nobody will unlock."""
    answering(helper, "exec sleep 60")
    started = time.monotonic()
    with pytest.raises(ImageError, match="gave no answer"):
        lookup(config, {"credsStore": "test"}, deadline_s=0.5)
    assert time.monotonic() - started < 3
