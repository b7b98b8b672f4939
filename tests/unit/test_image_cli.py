"""``skep pull``, ``skep push``, ``skep list`` as a user types them."""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exporter.cli import images
from exporter.errors import SkepError
from exporter.image import Store, host_architecture, parse_reference, transport
from tests.support.images import bpf_elf
from tests.support.registry import RunningRegistry, docker_config, real_registry

HOST = host_architecture()
Skep = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def _nobodys_docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    transport.circuits.reset()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """A registry; tests use repositories of their own."""
    with real_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def skep(capsys: pytest.CaptureFixture[str]) -> Skep:
    """Run a command line; give its exit status and standard output."""
    parser = argparse.ArgumentParser(prog="skep")
    images.register(parser.add_subparsers(required=True))

    def run(*words: object) -> tuple[int, str]:
        args = parser.parse_args([str(word) for word in words])
        return args.run(args), capsys.readouterr().out

    return run


def test_push_and_pull_print_the_pinned_reference(plain: RunningRegistry, tmp_path: Path, skep: Skep) -> None:
    """What they print can be pasted into agent.yaml, and pulled as it is."""
    reference = parse_reference(f"{plain.host}/cli/disk:1.4")
    digest = Store(tmp_path / "a").add(reference, {HOST: bpf_elf()})
    pinned = f"{plain.host}/cli/disk:1.4@{digest}"
    assert skep("push", reference, "--store", tmp_path / "a") == (0, pinned + "\n")
    assert skep("pull", reference, "--store", tmp_path / "b") == (0, pinned + "\n")
    assert skep("pull", pinned, "--store", tmp_path / "c") == (0, pinned + "\n")
    assert Store(tmp_path / "c").bundle(parse_reference(pinned)).object == bpf_elf()


def test_all_architectures_are_pulled_on_request(plain: RunningRegistry, tmp_path: Path, skep: Skep) -> None:
    """By default only what this machine runs is."""
    reference = parse_reference(f"{plain.host}/cli/multi:1")
    Store(tmp_path / "a").add(reference, {"amd64": bpf_elf(b"1"), "arm64": bpf_elf(b"2")})
    skep("push", reference, "--store", tmp_path / "a")
    for words, architectures in (
        ((), HOST),
        (("--architecture", "aarch64"), "arm64"),
        (("--all-architectures",), "amd64,arm64"),
    ):
        store = tmp_path / f"store{len(words)}{architectures}"
        skep("pull", reference, "--store", store, *words)
        assert architectures in skep("list", "--store", store)[1]


def test_registry_settings_come_from_flags_or_the_agents_configuration(tmp_path: Path, skep: Skep) -> None:
    """The same host, the same credentials, the same store as the agent."""
    with real_registry(tmp_path / "registry", password=True, tls=True) as running:
        auth = docker_config(tmp_path / "auth", running.host)
        reference = parse_reference(f"{running.host}/disk:1")
        digest = Store(tmp_path / "store").add(reference, {HOST: bpf_elf()})
        config = tmp_path / "agent.yaml"
        config.write_text(
            f"store: {{path: {tmp_path}/store}}\n"
            f'registries: {{"{running.host}": {{ca_file: {running.ca_file}, auth_file: {auth}}}}}\n'
        )
        assert str(digest) in skep("push", reference, "--config.file", config)[1]
        flags = ("--ca-file", running.ca_file, "--auth-file", auth)
        assert str(digest) in skep("pull", reference, "--store", tmp_path / "b", *flags)[1]
        with pytest.raises(SkepError):
            skep("pull", reference, "--store", tmp_path / "c", "--ca-file", running.ca_file)


def test_list_of_nothing_says_what_to_do(tmp_path: Path, skep: Skep) -> None:
    """And prints no table; JSON stays JSON."""
    assert skep("list", "--store", tmp_path) == (0, "")
    assert json.loads(skep("list", "--store", tmp_path, "--json")[1]) == {"store": str(tmp_path), "images": []}


def test_list_shows_versions_sizes_and_times(tmp_path: Path, skep: Skep) -> None:
    """One line each, the version kept for rollback marked."""
    store = Store(tmp_path)
    reference = parse_reference("registry.example/bpf/disk:1.4")
    old = store.add(reference, {HOST: bpf_elf(b"old")})
    created = {"org.opencontainers.image.created": "2026-01-02T03:04:05Z"}
    new = store.add(reference, {HOST: bpf_elf(b"x" * 5000)}, {}, created)
    heading, *rows = skep("list", "--store", tmp_path)[1].splitlines()
    assert heading.split() == ["REFERENCE", "DIGEST", "ARCHITECTURES", "SIZE", "CREATED", "PULLED"]
    assert rows[0].split()[:-1] == [str(reference), new.short, HOST, "5.6", "KiB", "2026-01-02T03:04:05Z"]
    assert rows[1].split()[:4] == [str(reference), "(kept)", old.short, HOST]
    assert rows[1].split()[5] == "B"
    listed = json.loads(skep("list", "--store", tmp_path, "--json")[1])["images"]
    assert [(image["digest"], image["current"]) for image in listed] == [(str(new), True), (str(old), False)]


def test_list_shows_the_agents_images_with_state_and_reason(tmp_path: Path, skep: Skep) -> None:
    """Also those that never got as far as the store."""
    digest = Store(tmp_path).add(parse_reference("registry.example/a:1"), {HOST: bpf_elf()})
    state = {
        "images": [
            {"name": "a", "ref": "registry.example/a:1", "state": "running", "reason": "", "digest": str(digest)},
            {
                "name": "b",
                "ref": "registry.example/b:1",
                "state": "failed",
                "reason": "no manifest 1 (404)",
                "digest": None,
            },
        ]
    }
    (tmp_path / "agent-state.json").write_text(json.dumps(state))
    lines = skep("list", "--store", tmp_path)[1].splitlines()
    assert lines[0].split() == ["NAME", "STATE", "REFERENCE", "DIGEST", "REASON"]
    assert lines[1].split() == ["a", "running", "registry.example/a:1", digest.short, "-"]
    assert lines[2].split(maxsplit=4) == ["b", "failed", "registry.example/b:1", "-", "no manifest 1 (404)"]
    assert lines[3] == ""
    assert json.loads(skep("list", "--store", tmp_path, "--json")[1])["agent"][1]["state"] == "failed"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"images": 5}', '{"images": [5]}'])
def test_foreign_state_file_is_one_line(tmp_path: Path, skep: Skep, text: str) -> None:
    """Not a traceback, whatever lies there."""
    (tmp_path / "agent-state.json").write_text(text)
    with pytest.raises(SkepError, match="agent state"):
        skep("list", "--store", tmp_path)


def test_table_cannot_move_the_cursor() -> None:
    """Annotations are a stranger's words."""
    assert "\x1b" not in images.table(("A",), [("\x1b[2Jgone\r\n",)])


def test_damaged_blobs_do_not_break_the_list(tmp_path: Path, skep: Skep) -> None:
    """Listing is how one finds out."""
    store = Store(tmp_path)
    digest = store.add(parse_reference("registry.example/a:1"), {HOST: bpf_elf()})
    store.blob_path(digest).write_bytes(b"damaged")
    assert digest.short in skep("list", "--store", tmp_path)[1]


@pytest.mark.parametrize("seconds", ["0", "-1", "x", "nan", "1e9"])
def test_senseless_timeout_is_a_usage_error(skep: Skep, seconds: str) -> None:
    """Exit status 2, by argparse."""
    with pytest.raises(SystemExit) as caught:
        skep("pull", "registry.example/a", "--timeout", seconds)
    assert caught.value.code == 2
