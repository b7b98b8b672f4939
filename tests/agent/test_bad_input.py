"""Whatever is wrong with one image, a flag or a neighbour: one line that says what to do, and the rest runs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from exporter.image import Store, parse_reference
from tests.support.images import bpf_elf
from tests.support.registry import RunningRegistry, docker_config, free_port, real_registry

from .harness import ROOT, SKEP, running_agent, skep
from .objects import counting, make_calls, only_missing_tracepoint, rejected_by_verifier, write

PID = os.getpid()
RETRY = "defaults: {retry: {first: 300ms, max: 300ms}}\n"
SETPRIV = shutil.which("setpriv")

needs_registry = pytest.mark.skipif(shutil.which("docker-registry") is None, reason="needs docker-registry")


def entry(ref: object, **more: object) -> str:
    """One image of the configuration."""
    return json.dumps({"ref": str(ref), **more})


def good(directory: Path, name: str = "calls", **more: object) -> str:
    """An image that counts this process's calls."""
    return entry(write(directory, name, counting(name)), globals={"tgid": PID}, **more)


def push(directory: Path, registry: RunningRegistry, name: str, object_: bytes, config: Path | None = None) -> str:
    """Push an image with one object through the real command; its reference."""
    store = directory / "push-store"
    reference = f"{registry.host}/test/{name}"
    Store(store).add(parse_reference(reference), {"amd64": object_}, {}, {})
    environment = {**os.environ, "DOCKER_CONFIG": str(config.parent)} if config else None
    pushed = subprocess.run(
        [*SKEP, "push", reference, "--store", str(store)],
        cwd=ROOT, capture_output=True, text=True, check=False, env=environment, timeout=60,
    )  # fmt: skip
    assert pushed.returncode == 0, pushed.stderr
    return reference


BAD_OBJECTS = {
    "no-elf": (b"this is no object\n" * 10, "expected an ELF file"),
    "cut-off": (counting("calls")[:2000], ""),
    "header-only": (bpf_elf(), ""),
    "empty": (b"", ""),
    "rejected": (rejected_by_verifier(), "verifier"),
    "nothing-to-attach-to": (only_missing_tracepoint(), "sys_enter_nothing_like_it"),
}


def test_bad_objects_fail_alone_and_say_why(tmp_path: Path) -> None:
    """Each failure is in the metrics, the log and the state file, in one line; the good image counts."""
    images = [entry(write(tmp_path, name, content)) for name, (content, _) in BAD_OBJECTS.items()]
    with running_agent(tmp_path, f"images: [{', '.join([*images, good(tmp_path)])}]\n{RETRY}") as agent:
        page = agent.wait(
            lambda page: page.state("calls") == "running" and all(page.state(name) == "failed" for name in BAD_OBJECTS)
        )
        make_calls(50)
        page = agent.wait(lambda page: page.sum("ebpf_calls_total") == 50)
        assert page.sum("skep_image_state", state="failed") == len(BAD_OBJECTS)
        states = agent.state_file()
        for name, (_, said) in BAD_OBJECTS.items():
            reason = str(agent.lines("image failed", image=name)[0]["reason"])
            assert said.lower() in reason.lower(), reason
            assert "\n" not in reason
            assert states[name]["reason"] == reason
        assert "calls" not in {line["image"] for line in agent.lines("image failed")}
        listed = skep("list", "--store", str(tmp_path / "store")).stdout
        for name in (*BAD_OBJECTS, "calls"):
            assert name in listed
        assert "expected an ELF file" in listed


def test_repeated_failures_are_summarised(tmp_path: Path) -> None:
    """The same failure again is told at its 2nd, 4th, 8th… time, not each time."""
    broken = write(tmp_path, "broken", b"no object")
    config = f"images: [{entry(broken)}]\ndefaults: {{retry: {{first: 100ms, max: 100ms}}}}\n"
    with running_agent(tmp_path, config, "--log.level=debug") as agent:
        agent.wait(lambda _: any(line.get("times") == 8 for line in agent.lines("image failed")))
        assert [line.get("times", 1) for line in agent.lines("image failed")] == [1, 2, 4, 8]
        broken.write_bytes(counting("calls"))
        agent.wait_states(broken="running")
        assert agent.lines("image running")[0]["after_failures"] >= 8  # type: ignore[operator]


def test_two_images_with_one_metric_name(tmp_path: Path) -> None:
    """The later one in the configuration fails, naming both; another constant label lets both run."""
    one, two = write(tmp_path, "one", counting("calls")), write(tmp_path, "two", counting("calls"))
    tgid = {"tgid": PID}
    config = f"images: [{entry(one, globals=tgid)}, {entry(two, globals=tgid)}]\n{RETRY}"
    with running_agent(tmp_path / "clash", config) as agent:
        agent.wait_states(one="running", two="failed")
        reason = agent.state_file()["two"]["reason"]
        assert "'one'" in reason and "'two'" in reason and "ebpf_calls_total" in reason
        make_calls(3)
        assert agent.wait(lambda page: page.sum("ebpf_calls_total") == 3)
    labelled = (
        f"images: [{entry(one, globals=tgid, labels={'half': 'a'})}, {entry(two, globals=tgid, labels={'half': 'b'})}]"
    )
    with running_agent(tmp_path / "labelled", labelled) as agent:
        agent.wait_states(one="running", two="running")
        make_calls(3)
        agent.wait(lambda page: page.sum("ebpf_calls_total", half="a") == page.sum("ebpf_calls_total", half="b") == 3)


@needs_registry
def test_earlier_image_that_comes_late_keeps_its_name(tmp_path: Path) -> None:
    """Who has a name is decided by the configuration, not by who was faster."""
    with real_registry(tmp_path / "registry") as registry:
        reference = f"{registry.host}/test/late"
        config = (
            f"images: [{entry(reference, name='late', globals={'tgid': PID})}, "
            f"{entry(write(tmp_path, 'early', counting('calls')), globals={'tgid': PID})}]\n{RETRY}"
        )
        with running_agent(tmp_path, config) as agent:
            agent.wait_states(late="failed", early="running")
            push(tmp_path, registry, "late", counting("calls"))
            agent.wait_states(late="running", early="failed")
            make_calls(4)
            agent.wait(lambda page: page.sum("ebpf_calls_total") == 4)


def test_name_of_the_agents_own_metric_is_refused(tmp_path: Path) -> None:
    """An image cannot pass itself off as the agent."""
    image = good(tmp_path, metrics={"ebpf_calls_total": {"rename": "skep_image_info"}})
    with running_agent(tmp_path, f"images: [{image}]\n{RETRY}") as agent:
        agent.wait_states(calls="failed")
        assert "'skep_" in agent.state_file()["calls"]["reason"]


@needs_registry
def test_registry_that_is_down_is_asked_again(tmp_path: Path) -> None:
    """Its image is retried until the registry answers; afterwards the registry is not needed any more."""
    with real_registry(tmp_path / "registry") as registry:
        reference = push(tmp_path, registry, "remote", counting("remote"))
        unreachable = f"127.0.0.1:{free_port()}/test/gone"
        tgid = {"tgid": PID}
        config = (
            f"images: [{entry(reference, globals=tgid)}, {entry(unreachable)}, "
            f"{entry(f'{registry.host}/test/absent')}, {good(tmp_path)}]\n{RETRY}"
        )
        with running_agent(tmp_path, config) as agent:
            agent.wait_states(remote="running", calls="running", gone="failed", absent="failed")
            [pulled] = agent.lines("image pulled")
            [runs] = agent.lines("image running", image="remote")
            assert (pulled["image"], pulled["ref"], pulled["digest"]) == ("remote", reference, runs["digest"])
            for image in ("gone", "absent"):
                assert agent.lines("image failed", image=image)[0]["ref"]
            registry.stop()
            make_calls(9)
            page = agent.wait(lambda page: page.sum("ebpf_remote_total") == page.sum("ebpf_calls_total") == 9)
            assert page.sum("skep_image_pull_failures_total", image="gone", code="img.unreachable") >= 1
            assert page.sum("skep_image_pull_failures_total", image="absent", code="img.not_found") >= 1
            assert page.sum("skep_image_pull_failures_total", image="remote") == 0
    with running_agent(tmp_path, config) as agent:
        agent.wait_states(remote="running", calls="running", gone="failed")
        assert agent.lines("image pulled") == []


@needs_registry
def test_blob_that_was_altered_in_the_registry_is_refused(tmp_path: Path) -> None:
    """Bytes that do not hash to their digest never reach the kernel."""
    content = counting("remote")
    with real_registry(tmp_path / "registry") as registry:
        reference = push(tmp_path, registry, "remote", content)
        [blob] = [path for path in registry.storage.rglob("data") if path.read_bytes() == content]
        blob.write_bytes(content[:-1] + b"x")
        with running_agent(tmp_path, f"images: [{entry(reference)}, {good(tmp_path)}]\n{RETRY}") as agent:
            page = agent.wait_states(remote="failed", calls="running")
            assert page.sum("skep_image_pull_failures_total", image="remote") >= 1
            assert "sha256:" in agent.state_file()["remote"]["reason"]
            blob.write_bytes(content)
            agent.wait_states(remote="running")


@needs_registry
def test_registry_that_wants_credentials(tmp_path: Path) -> None:
    """401 names the remedy; with auth_file the image runs."""
    with real_registry(tmp_path / "registry", password=True) as registry:
        auth = docker_config(tmp_path / "docker", registry.host)
        reference = push(tmp_path, registry, "remote", counting("remote"), auth)
        config = f"images: [{entry(reference)}, {good(tmp_path)}]\n{RETRY}"
        environment = {"DOCKER_CONFIG": str(tmp_path / "nothing"), "HOME": str(tmp_path)}
        with running_agent(tmp_path, config, environment=environment) as agent:
            page = agent.wait_states(remote="failed", calls="running")
            assert page.sum("skep_image_pull_failures_total", code="img.unauthorized") >= 1
        config += f"registries: {{'{registry.host}': {{auth_file: {auth}}}}}\n"
        with running_agent(tmp_path, config, environment=environment) as agent:
            agent.wait_states(remote="running", calls="running")


@needs_registry
def test_restart_does_not_change_what_runs(tmp_path: Path) -> None:
    """if-not-present keeps the stored version though the tag moved; always takes the new one or says why not."""
    with real_registry(tmp_path / "registry") as registry:
        reference = push(tmp_path, registry, "remote", counting("older"))
        config = f"images: [{entry(reference, globals={'tgid': PID})}]\n{RETRY}"
        with running_agent(tmp_path, config) as agent:
            first = agent.wait_states(remote="running")
        push(tmp_path, registry, "remote", counting("newer"))
        with running_agent(tmp_path, config) as agent:
            second = agent.wait_states(remote="running")
            make_calls(1)
            agent.wait(lambda page: page.sum("ebpf_older_total") == 1)
        always = config.replace('"ref"', '"pull": "always", "ref"')
        with running_agent(tmp_path, always) as agent:
            agent.wait_states(remote="running")
            make_calls(1)
            agent.wait(lambda page: page.sum("ebpf_newer_total") == 1)
        digests = [
            {have["digest"] for name, have, _ in page.samples if name == "skep_image_info"} for page in (first, second)
        ]
        assert digests[0] == digests[1]
        registry.stop()
        with running_agent(tmp_path, always) as agent:
            agent.wait_states(remote="stale")
            make_calls(1)
            agent.wait(lambda page: page.sum("ebpf_newer_total") == 1)
            agent.wait(lambda _: "runs the stored version" in agent.state_file()["remote"]["reason"])


def test_port_in_use_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    """One line, status 1."""
    config = tmp_path / "agent.yaml"
    config.write_text(f"images: [{good(tmp_path)}]\nstore: {{path: store}}\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = skep("agent", f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"skep: listen address '127.0.0.1:{port}': port is in use")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imags: []\n", "agent.yaml:1:1: imags is not a key; did you mean 'images'?"),
        ("images:\n  - ref: UPPER/case\n", "agent.yaml:2:10: images[0].ref: "),
        ("images:\n  - ref: 'registry.example/a@sha256:short'\n", "agent.yaml:2:10: images[0].ref: "),
        ("store: {keep: often}\n", "agent.yaml:1:15: store.keep is 'often'; must be a plain decimal integer"),
    ],
)
def test_bad_configuration_ends_both_verbs_with_its_position(tmp_path: Path, text: str, message: str) -> None:
    """Agent and check say the same line."""
    config = tmp_path / "agent.yaml"
    config.write_text(text)
    for done in (skep("agent", f"--config.file={config}"), skep("check", str(config))):
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert f"{tmp_path}/{message}" in line


@pytest.mark.parametrize("address", ["9100", "host:name", "[::1:9100", "127.0.0.1:70000", "192.0.2.1:0"])
def test_address_that_cannot_be_listened_on_is_told(tmp_path: Path, address: str) -> None:
    """One line that names the address; nothing starts."""
    (tmp_path / "agent.yaml").write_text("store: {path: store}\n")
    done = skep("agent", f"--config.file={tmp_path / 'agent.yaml'}", f"--web.listen-address={address}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"skep: listen address {address!r}: ")
    assert "Traceback" not in done.stderr


def test_missing_configuration_is_told(tmp_path: Path) -> None:
    """The default file of a fresh machine, or a typing mistake."""
    done = skep("agent", f"--config.file={tmp_path / 'nowhere.yaml'}")
    assert done.returncode == 1
    assert done.stderr == f"skep: {tmp_path / 'nowhere.yaml'}: cannot be read: No such file or directory\n"


@pytest.mark.skipif(SETPRIV is None, reason="needs setpriv")
def test_without_privilege_the_agent_serves_and_says_what_is_missing(tmp_path: Path) -> None:
    """Its images fail with the capability to grant; check works all the same; run ends with that line."""
    assert SETPRIV
    # Still root by number, so that it may read what the test may, but without a single capability.
    nobody = (SETPRIV, "--bounding-set=-all", "--inh-caps=-all")
    image = good(tmp_path)
    with running_agent(tmp_path, f"images: [{image}]\n{RETRY}", prefix=nobody) as agent:
        agent.wait_states(calls="failed")
        assert "CAP_BPF" in agent.state_file()["calls"]["reason"]
        assert agent.get("/-/healthy")[0] == 200
    checked = skep("check", str(tmp_path / "agent.yaml"), prefix=nobody)
    assert (checked.returncode, checked.stderr) == (0, "")
    ran = skep(
        "run", str(tmp_path / "calls.o"), "--no-tty", "--duration=1s", "--store", str(tmp_path / "s"), prefix=nobody
    )
    assert ran.returncode == 1
    assert "CAP_BPF" in ran.stderr
    assert "Traceback" not in ran.stderr


@needs_registry
def test_store_that_cannot_be_written_fails_images_of_registries_only(tmp_path: Path) -> None:
    """A full or read-only disk: local objects run, and the reason is told."""
    (tmp_path / "file").write_text("in the way")
    with real_registry(tmp_path / "registry") as registry:
        reference = push(tmp_path, registry, "remote", counting("remote"))
        config = f"images: [{entry(reference)}, {good(tmp_path)}]\n{RETRY}"
        file = tmp_path / "agent.yaml"
        with running_agent(tmp_path, config) as agent:
            agent.wait_states(remote="running", calls="running")
        file.unlink()
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("in the way")
    with running_agent(tmp_path, config) as agent:
        agent.wait_states(remote="failed", calls="running")
        assert agent.lines("cannot write the state file")
