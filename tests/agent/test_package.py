"""``skep package``: the container image is unpacked as an engine would and run from its own files alone.

No container engine runs here: layers are applied in order, and the image's own entry point is started in a changed
root with its own environment, in a mount namespace with ``/proc`` and ``/sys`` and nothing else of this machine.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exporter.image import parse_reference
from exporter.image.store import Store
from tests.support.registry import free_port

from .harness import ROOT, SKEP, skep
from .objects import counting, make_calls, write


@dataclass
class Unpacked:
    """A container image's root, and how it is started."""

    archive: Path
    root: Path
    config: dict[str, Any]
    said: subprocess.CompletedProcess[str]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start the entry point with words of ours, or with its own."""
        runs = self.config["config"]
        command = [*runs["Entrypoint"], *(words or runs["Cmd"])]
        mounts = " && ".join(f"mount --rbind /{name} {self.root}/{name}" for name in ("proc", "sys", "dev"))
        return subprocess.Popen(
            ["unshare", "-m", "sh", "-c", f'{mounts} && exec /usr/sbin/chroot {self.root} "$@"', "sh", *command],
            env=dict(entry.split("=", 1) for entry in runs["Env"]),
            cwd="/", text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Start it and wait for its end."""
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=90)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, process.returncode, out, err)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unpacked]:
    """The counting object in a container image, unpacked."""
    folder = tmp_path_factory.mktemp("package")
    path = write(folder, "calls", counting("calls"))
    archive = folder / "calls.tar"
    done = skep(
        "package", str(path), "-t", "registry.example/me/calls:1.4", "-o", str(archive), "--store", str(folder / "s")
    )
    assert done.returncode == 0, done.stderr
    root = folder / "root"
    root.mkdir()
    with tarfile.open(archive) as tar:
        config = read(tar, "manifest.json")[0]["Config"]
        for layer in read(tar, "manifest.json")[0]["Layers"]:
            file = tar.extractfile(layer)
            assert file is not None
            with tarfile.open(fileobj=file, mode="r:gz") as content:
                content.extractall(root, filter="fully_trusted")  # our own, into a folder that is thrown away
        yield Unpacked(archive, root, read(tar, config), done)
    shutil.rmtree(root)


def read(tar: tarfile.TarFile, name: str) -> Any:  # noqa: ANN401 - JSON
    """A JSON member."""
    file = tar.extractfile(name)
    assert file is not None
    return json.load(file)


def test_archive_is_what_docker_and_what_oci_tools_read(unpacked: Unpacked) -> None:
    """Every digest, size and diff id is right, by a reading that shares no code with the writing."""
    with tarfile.open(unpacked.archive) as tar:
        blobs = {}
        for member in tar:
            if member.name.startswith("blobs/sha256/"):
                content = tar.extractfile(member).read()  # type: ignore[union-attr]
                assert hashlib.sha256(content).hexdigest() == member.name.removeprefix("blobs/sha256/")
                blobs[member.name] = content
        [docker] = read(tar, "manifest.json")
        [entry] = read(tar, "index.json")["manifests"]
        assert read(tar, "oci-layout") == {"imageLayoutVersion": "1.0.0"}
    assert docker["RepoTags"] == ["registry.example/me/calls:1.4"]
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "1.4"
    manifest = json.loads(blobs[f"blobs/sha256/{entry['digest'][7:]}"])
    assert entry["size"] == len(blobs[f"blobs/sha256/{entry['digest'][7:]}"])
    assert f"blobs/sha256/{manifest['config']['digest'][7:]}" == docker["Config"]
    assert [f"blobs/sha256/{layer['digest'][7:]}" for layer in manifest["layers"]] == docker["Layers"]
    assert [layer["size"] for layer in manifest["layers"]] == [len(blobs[path]) for path in docker["Layers"]]
    diff_ids = [f"sha256:{hashlib.sha256(gzip.decompress(blobs[path])).hexdigest()}" for path in docker["Layers"]]
    assert unpacked.config["rootfs"] == {"type": "layers", "diff_ids": diff_ids}
    assert unpacked.config["os"] == "linux" and unpacked.config["architecture"]
    with tarfile.open(fileobj=io.BytesIO(blobs[docker["Layers"][0]])) as layer:
        names = layer.getnames()
    assert len(names) == len(set(names))
    assert not any(name.startswith("/") or ".." in name.split("/") for name in names)


def test_container_prints_the_programs_numbers(unpacked: Unpacked) -> None:
    """``docker run IMAGE run /skep/image``, with nothing but the image's own files."""
    done = unpacked.run("version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("skep "), done.stdout
    process = unpacked.start(
        "run", "/skep/image", "--no-tty", "--interval=200ms", "--duration=2s", f"--global=tgid={os.getpid()}"
    )
    try:
        assert process.stderr is not None
        said = next((line for line in process.stderr if "running" in line), "")
        make_calls(20)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, said + err
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["attributes"]["number"] for line in lines if "event" in line} == set(range(1, 21))


def test_container_serves_the_programs_metrics_as_it_is(unpacked: Unpacked) -> None:
    """Its own command, but for the port, which another test may have."""
    port = free_port()
    process = unpacked.start(*unpacked.config["config"]["Cmd"], f"--web.listen-address=127.0.0.1:{port}")
    page = ""
    try:
        end = time.monotonic() + 60
        while 'skep_image_state{image="calls",state="running"} 1' not in page:
            assert time.monotonic() < end and process.poll() is None, page
            time.sleep(0.3)
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
            except OSError:
                continue
        # Loaded and attached; it counts no calls, as nobody told it whose.
        [told] = [line for line in page.splitlines() if line.startswith("skep_image_info{")]
        assert 'image="calls"' in told and 'ref="oci:/skep/image:calls"' in told
        assert unpacked.config["config"]["ExposedPorts"] == {"19435/tcp": {}}
        assert unpacked.config["config"]["Cmd"] == ["agent", "--config.file=/etc/skep/agent.yaml"]
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_program_keeps_its_digest_in_the_container(unpacked: Unpacked, tmp_path: Path) -> None:
    """So that what runs there can be told from what was signed and pushed; a folder is an OCI layout."""
    reference = parse_reference("registry.example/bpf/calls:1")
    digest = Store(tmp_path / "s").add(reference, {"amd64": counting("calls"), "arm64": counting("calls")})
    done = skep(
        "package", str(reference), "r.example/c:1", "-o", str(tmp_path / "folder"), "--store", str(tmp_path / "s")
    )
    assert done.returncode == 0, done.stderr
    index = json.loads((tmp_path / "folder" / "index.json").read_text())
    manifest = json.loads((tmp_path / "folder/blobs/sha256" / index["manifests"][0]["digest"][7:]).read_text())
    blob = tmp_path / "folder/blobs/sha256" / manifest["layers"][-1]["digest"][7:]
    with tarfile.open(blob) as tar:
        assert f"skep/image/blobs/sha256/{digest.hex}" in tar.getnames()
    again = skep(
        "package", str(reference), "r.example/c:1", "-o", str(tmp_path / "folder"), "--store", str(tmp_path / "s")
    )
    assert again.returncode == 1 and "exists" in again.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("catalog:syscalls",), "needs one name"),
        (("catalog:syscalls", "a/b:1", "-t", "a/c:1"), "needs one name"),
        (("catalog:syscalls", "-t", "./x.o"), "cannot name a container image"),
        (("catalog:none", "-t", "a/b:1"), "none"),
        (("./nothing.o", "-t", "a/b:1"), "does not exist"),
        (("catalog:syscalls", "-t", "a/b:1", "-o", "/nowhere/x.tar"), "cannot be written"),
    ],
)
def test_package_used_wrongly_is_one_line(words: tuple[str, ...], said: str) -> None:
    """And leaves no file."""
    done = subprocess.run([*SKEP, "package", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert said in done.stderr and done.stderr.startswith("skep: ") and done.stderr.count("\n") == 1, done.stderr
    assert not (ROOT / "b.tar").exists()
