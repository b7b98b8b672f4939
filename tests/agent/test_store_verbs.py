"""``skep login``, ``logout``, ``tag``, ``images``: a real registry, real files, as a user types them."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.image import Store, host_architecture, parse_reference
from tests.support.images import bpf_elf
from tests.support.registry import PASSWORD, USER, RunningRegistry, real_registry
from tests.support.terminal import Terminal

from .harness import ROOT, SKEP

HOST = host_architecture()


def skep(*words: object, typed: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end, without a terminal."""
    return subprocess.run(
        [*SKEP, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        input=typed if typed is not None else "", env={**os.environ, **environment},
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """It ended with status 1 and one line that says this."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("skep: ") and done.stderr.count("\n") == 1, done.stderr
    for text in said:
        assert text in done.stderr


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """A registry that wants a password."""
    with real_registry(tmp_path_factory.mktemp("basic"), password=True) as running:
        yield running


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """A registry whose token server wants the password."""
    with real_registry(tmp_path_factory.mktemp("token"), token=True) as running:
        yield running


# -- Credentials -----------------------------------------------------------------------------------


def test_login_keeps_what_the_registry_takes_and_push_then_works(guarded: RunningRegistry, tmp_path: Path) -> None:
    """Before: refused with what to do. After: pushed. After logout: refused again."""
    auth = tmp_path / "new" / "config.json"
    reference = f"{guarded.host}/login/a:1"
    Store(tmp_path / "store").add(parse_reference(reference), {HOST: bpf_elf()})
    push = ("push", reference, "--store", tmp_path / "store", "--config-dir", auth.parent)
    refused(skep("push", reference, "--store", tmp_path / "store", DOCKER_CONFIG=str(tmp_path)), "skep login")
    words = ("login", guarded.host, "-u", USER, "--password-stdin", "--auth-file", auth)
    refused(skep(*words, typed="wrong\n"), "refuses the credentials sent")
    assert not auth.exists()
    done = skep(*words, typed=PASSWORD + "\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"logged in to {guarded.host} as {USER}; kept in {auth}" in done.stdout
    assert PASSWORD not in done.stdout
    assert stat.S_IMODE(auth.stat().st_mode) == 0o600
    assert skep(*push).returncode == 0
    assert skep("logout", guarded.host, "--auth-file", auth).stdout == f"logged out of {guarded.host}\n"
    assert json.loads(auth.read_text()) == {"auths": {}}
    assert "not logged in" in skep("logout", guarded.host, "--auth-file", auth).stdout
    refused(skep(*push), "wants a password and none is known")


def test_login_goes_through_the_token_server(tokens: RunningRegistry, tmp_path: Path) -> None:
    """A right password gives a token without any rights; a wrong one is told."""
    words = ("login", f"http://{tokens.host}/", "-u", USER, "--password-stdin", "--auth-file", tmp_path / "c.json")
    refused(skep(*words, typed="wrong"), "refuses the credentials sent")
    done = skep(*words, typed=PASSWORD)
    assert (done.returncode, done.stderr) == (0, "")


def test_login_leaves_the_rest_of_dockers_file_alone(guarded: RunningRegistry, tmp_path: Path) -> None:
    """Other registries, other settings; a link stays a link."""
    real = tmp_path / "real.json"
    other = {"auths": {"other.example": {"auth": "eDp5"}}, "psFormat": "table"}
    real.write_text(json.dumps(other))
    (tmp_path / "config.json").symlink_to(real)
    words = ("login", guarded.host, "-u", USER, "--password-stdin")
    assert skep(*words, typed=PASSWORD, DOCKER_CONFIG=str(tmp_path)).returncode == 0
    assert (tmp_path / "config.json").is_symlink()
    body = json.loads(real.read_text())
    assert set(body["auths"]) == {"other.example", guarded.host}
    assert skep("logout", guarded.host, DOCKER_CONFIG=str(tmp_path)).returncode == 0
    assert json.loads(real.read_text()) == other


def test_login_uses_the_credential_helper_that_the_file_names(guarded: RunningRegistry, tmp_path: Path) -> None:
    """The secret goes to its stdin and not into the file; logout asks it to erase."""
    helper = tmp_path / "docker-credential-box"
    helper.write_text(
        f'#!/bin/sh\necho "$1" >> {tmp_path}/verbs\n[ "$1" = get ] && cat {tmp_path}/kept || cat > {tmp_path}/kept\n'
    )
    helper.chmod(0o755)
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {guarded.host: "box"}}))
    environment = {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = ("login", guarded.host, "-u", USER, "--password-stdin")
    done = skep(*words, typed=PASSWORD, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "docker-credential-box" in done.stdout
    assert json.loads((tmp_path / "kept").read_text()) == {
        "ServerURL": guarded.host, "Username": USER, "Secret": PASSWORD,
    }  # fmt: skip
    assert "auths" not in json.loads((tmp_path / "config.json").read_text())
    reference = f"{guarded.host}/helper/a:1"
    Store(tmp_path / "store").add(parse_reference(reference), {HOST: bpf_elf()})
    assert skep("push", reference, "--store", tmp_path / "store", **environment).returncode == 0
    assert skep("logout", guarded.host, **environment).returncode == 0
    assert (tmp_path / "verbs").read_text().split() == ["store", "get", "erase"]
    helper.write_text("#!/bin/sh\nexit 3\n")
    refused(skep(*words, typed=PASSWORD, **environment), "docker-credential-box", "status 3")


def test_login_asks_on_a_terminal_without_an_echo(guarded: RunningRegistry, tmp_path: Path) -> None:
    """The password is typed and not seen."""
    with Terminal([*SKEP, "login", guarded.host, "--auth-file", str(tmp_path / "c.json")], cwd=ROOT) as terminal:
        terminal.expect("Username")
        terminal.press(USER + "\n")
        terminal.expect("Password")
        time.sleep(0.3)  # getpass empties what was typed before it took the echo away
        terminal.press(PASSWORD + "\n")
        assert terminal.wait() == 0
        assert "logged in" in terminal.text
        assert PASSWORD not in terminal.text
    assert (tmp_path / "c.json").exists()


@pytest.mark.parametrize(
    ("words", "typed", "said"),
    [
        (("r.example",), "", "no terminal to ask on"),
        (("r.example", "--password-stdin"), "x", "needs --username"),
        (("r.example", "-u", "a", "--password-stdin"), "", "password is empty"),
        (("r.example", "-u", "a:b", "--password-stdin"), "x", "':'"),
        (("word", "-u", "a", "--password-stdin"), "x", "a dot or a port"),
        (("127.0.0.1:1", "-u", "a", "--password-stdin"), "x", "unreachable"),
    ],
)
def test_login_used_wrongly_is_one_line(words: tuple[str, ...], typed: str, said: str, tmp_path: Path) -> None:
    """Nothing is written."""
    refused(skep("login", *words, "--auth-file", tmp_path / "c.json", typed=typed), said)
    assert not (tmp_path / "c.json").exists()


# -- Names -------------------------------------------------------------------------------------------


def test_tag_gives_a_second_name_and_does_not_take_one_away(tmp_path: Path) -> None:
    """A name in use is refused with what it means; with --force it moves, and the former stays."""
    store = Store(tmp_path)
    first = store.add(parse_reference("r.example/a:1"), {"amd64": bpf_elf(b"1"), "arm64": bpf_elf(b"2")})
    second = store.add(parse_reference("r.example/b:1"), {HOST: bpf_elf(b"3")})
    words = ("tag", "r.example/a:1")
    done = skep(*words, "r.example/c:1", "--store", tmp_path)
    assert (done.returncode, done.stdout) == (0, f"r.example/c:1@{first}\n")
    assert skep(*words, "r.example/c:1", "--store", tmp_path).returncode == 0, "the same again is no change"
    refused(skep(*words, "r.example/b:1", "--store", tmp_path), second.short, first.short, "--force")
    assert store.resolve(parse_reference("r.example/b:1")).digest == second  # type: ignore[union-attr]
    done = skep(*words, "r.example/b:1", "--force", "--store", tmp_path)
    assert done.returncode == 0 and str(second) in done.stderr
    assert store.bundle(parse_reference("r.example/b:1")).digest == first
    assert store.bundle(parse_reference(f"r.example/b:1@{second}")).object == bpf_elf(b"3")
    refused(skep("tag", "r.example/none:1", "r.example/d:1", "--store", tmp_path), "pull or build it first")
    refused(skep("tag", "r.example/a:1", "catalog:d", "--store", tmp_path), "HOST/PATH")
    refused(skep("tag", "./a.o", "r.example/d:1", "--store", tmp_path), "is an object and no image")


def test_tag_takes_an_image_of_a_layout_into_the_store(tmp_path: Path) -> None:
    """How a shipped image comes into a registry of one's own."""
    digest = Store(tmp_path / "layout").add(
        parse_reference(f"oci:{tmp_path}/layout:disk"), {"amd64": bpf_elf(), "arm64": bpf_elf(b"2")}
    )
    done = skep("tag", f"oci:{tmp_path}/layout:disk", "r.example/mine/disk:1", "--store", tmp_path / "store")
    assert done.stdout == f"r.example/mine/disk:1@{digest}\n"
    assert skep("list", "--quiet", "--store", tmp_path / "store").stdout == done.stdout


# -- Store and archives --------------------------------------------------------------------------------


def test_images_carried_in_an_archive_are_the_same_there(tmp_path: Path) -> None:
    """Digest for digest, all architectures; equal images make equal archives; folders too."""
    store = Store(tmp_path / "a")
    references = ["r.example/bpf/disk:1", "r.example/bpf/net:2"]
    digests = [
        store.add(parse_reference(references[0]), {"amd64": bpf_elf(b"1"), "arm64": bpf_elf(b"2")}, {"version": 1}),
        store.add(parse_reference(references[1]), {HOST: bpf_elf(b"3")}),
    ]
    pinned = [f"{name}@{digest}" for name, digest in zip(references, digests, strict=True)]
    for target in ("one.tar", "two.tar", "folder"):
        done = skep("images", "export", *references, "-o", tmp_path / target, "--store", tmp_path / "a")
        assert (done.returncode, done.stdout.split(), done.stderr) == (0, pinned, "")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    for source in ("one.tar", "folder"):
        fresh = tmp_path / f"from-{source}"
        done = skep("images", "import", tmp_path / source, "--store", fresh)
        assert (done.returncode, sorted(done.stdout.split())) == (0, sorted(pinned)), done.stderr
        for name, digest in zip(references, digests, strict=True):
            assert Store(fresh).bundle(parse_reference(name)).digest == digest
    assert Store(tmp_path / "from-one.tar").bundle(parse_reference(references[0]), "arm64").object == bpf_elf(b"2")


def test_export_of_what_one_machine_pulled_is_imported_as_far_as_it_goes(tmp_path: Path) -> None:
    """An index whose other architecture was never fetched still arrives under its digest."""
    reference = parse_reference("r.example/multi:1")
    store = Store(tmp_path / "a")
    digest = store.add(reference, {"amd64": bpf_elf(b"1"), "arm64": bpf_elf(b"2")})
    other = "arm64" if HOST == "amd64" else "amd64"
    gone = store.bundle(reference, other)
    for lost in (gone.manifest_digest, gone.object_digest):
        store.blob_path(lost).unlink()
    assert skep("images", "export", reference, "-o", tmp_path / "x.tar", "--store", tmp_path / "a").returncode == 0
    done = skep("images", "import", tmp_path / "x.tar", "--store", tmp_path / "b")
    assert done.stdout == f"{reference}@{digest}\n", done.stderr
    assert Store(tmp_path / "b").bundle(reference).architecture == HOST


def test_archive_that_is_damaged_or_none_is_refused_and_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    """Whatever the bytes: one line, no image recorded, nothing written elsewhere."""
    reference = parse_reference("r.example/a:1")
    Store(tmp_path / "a").add(reference, {HOST: bpf_elf(b"payload")})
    whole = tmp_path / "whole.tar"
    assert skep("images", "export", reference, "-o", whole, "--store", tmp_path / "a").returncode == 0
    raw = whole.read_bytes()
    cases = {
        "flipped": (raw.replace(b"payload", b"pAyload"), "refusing it"),
        "cut": (raw[: len(raw) // 2], ""),
        "empty": (b"", "cannot be read"),
        "text": (b"no archive at all" * 100, "expected a tar archive"),
    }
    for name, (content, said) in cases.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(content)
        refused(skep("images", "import", path, "--store", tmp_path / "b"), said)
        assert Store(tmp_path / "b").list() == []
    hostile = tmp_path / "hostile.tar"
    with tarfile.open(hostile, "w") as tar:
        link = tarfile.TarInfo("index.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    refused(skep("images", "import", hostile, "--store", tmp_path / "b"), "no index.json")
    refused(skep("images", "import", tmp_path / "none.tar", "--store", tmp_path / "b"), "does not exist")


def test_image_without_a_registrys_name_must_be_given_one(tmp_path: Path) -> None:
    """Its bare tag would read as an image of Docker Hub."""
    Store(tmp_path / "layout").add(parse_reference(f"oci:{tmp_path}/layout:1.4"), {HOST: bpf_elf()})
    refused(skep("images", "import", tmp_path / "layout", "--store", tmp_path / "s"), "'1.4'", "--as")
    done = skep("images", "import", tmp_path / "layout", "--as", "r.example/a:1.4", "--store", tmp_path / "s")
    assert done.stdout.startswith("r.example/a:1.4@sha256:"), done.stderr


def test_rm_and_prune_free_the_disk_and_spare_what_runs(tmp_path: Path) -> None:
    """Blobs that nothing names are gone; what the agent runs is not."""
    store = Store(tmp_path)
    old = store.add(parse_reference("r.example/a:1"), {HOST: bpf_elf(b"old" * 1000)})
    new = store.add(parse_reference("r.example/a:1"), {HOST: bpf_elf(b"new" * 1000)})
    other = store.add(parse_reference("r.example/b:1"), {HOST: bpf_elf(b"b")})
    state = {"name": "b", "ref": "r.example/b:1", "state": "running", "reason": "", "digest": str(other)}
    (tmp_path / "agent-state.json").write_text(json.dumps({"images": [state]}))
    refused(skep("images", "rm", "r.example/b:1", "--store", tmp_path), "what the agent runs")
    done = skep("images", "prune", "--store", tmp_path)
    assert done.stdout == f"removed r.example/a:1@{old}\n" and "KiB freed" in done.stderr
    assert {image.digest for image in store.list()} == {new, other}
    done = skep("images", "rm", "r.example/a:1", "--store", tmp_path)
    assert done.stdout == f"removed r.example/a:1@{new}\n"
    assert {image.digest for image in store.list()} == {other}
    assert len(list((tmp_path / "blobs" / "sha256").iterdir())) == 3
    refused(skep("images", "rm", "r.example/a:1", "--store", tmp_path), "not in the store")
    assert skep("list", "zzz", "--store", tmp_path).returncode == 0


# -- Progress ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", ["rich", "without"])
def test_pull_shows_progress_on_a_terminal_and_leaves_only_its_result(
    guarded: RunningRegistry, tmp_path: Path, extra: str
) -> None:
    """With the extra as bars, without as one line; stdout is the same in a pipe."""
    auth = tmp_path / "c.json"
    skep("login", guarded.host, "-u", USER, "--password-stdin", "--auth-file", auth, typed=PASSWORD)
    reference = parse_reference(f"{guarded.host}/progress/{extra}:1")
    Store(tmp_path / "a").add(reference, {HOST: bpf_elf(b"x" * 300_000)})
    if extra == "without":
        (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['rich'] = None\n")
    for verb, store in (("push", "a"), ("pull", "b")):
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [*SKEP, verb, str(reference), "--store", str(tmp_path / store), "--auth-file", str(auth)],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        os.close(slave)
        seen = b""
        try:
            out, _ = process.communicate(timeout=30)
            while True:
                try:
                    part = os.read(master, 65536)
                except OSError:
                    break
                if not part:
                    break
                seen += part
        finally:
            process.kill()
            os.close(master)
        assert process.returncode == 0, seen
        assert verb.encode() in seen and b"program" in seen
        assert out.decode().startswith(f"{reference}@sha256:")
    quiet = skep("pull", reference, "--store", tmp_path / "c", "--auth-file", auth)
    assert quiet.stderr == ""
