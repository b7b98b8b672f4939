"""The wheel: built from the source archive, installed in a fresh environment, run without the checkout."""

from __future__ import annotations

import email
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.libbpf import can_load

ROOT = Path(__file__).parents[2]
IMAGES = sorted(path.parent.name for path in (ROOT / "configs/catalog").glob("*/*.bpf.c"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make dist` does."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, ROOT / "packaging/wheel.py", folder], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob("skep-*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are those this one has, so that no network is asked."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    pip = [home / "bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True)
    (theirs,) = home.glob("lib/python3*/site-packages")
    (ours,) = {Path(path) for path in sys.path if path.endswith("site-packages")}
    for entry in ours.iterdir():
        if (
            not entry.name.startswith(("skep", "__editable__", "_virtualenv", "pip", "distutils"))
            and not (theirs / entry.name).exists()
        ):
            (theirs / entry.name).symlink_to(entry)
    return home


def test_wheel_has_everything_a_host_needs(wheel: Path) -> None:
    """Libraries, catalog for both architectures, dashboards, header, schema; nothing of tests or the build."""
    assert "manylinux" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = email.message_from_bytes(archive.read(next(name for name in names if name.endswith("METADATA"))))
    for library in ("libbpf", "libelf"):
        assert [name for name in names if re.match(rf"skep\.libs/{library}-\w+", name)], library
    share = {name.removeprefix("exporter/share/") for name in names if name.startswith("exporter/share/")}
    assert {
        "include/skep.bpf.h",
        "agent.yaml",
        "agent.schema.json",
        "dashboards/host.json",
        "catalog/index.json",
    } <= share
    assert not [name for name in names if name.startswith(("tests", "packaging", "build"))]
    assert metadata["License-Expression"] == "Apache-2.0"


def environment() -> dict[str, str]:
    """Nothing of this checkout's, and no compiler."""
    return {"PATH": "/nonexistent", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}


def test_installed_wheel_says_its_versions_with_the_libbpf_it_brought(installed: Path) -> None:
    """The library that is mapped is the wheel's own, whatever the machine has."""
    program = (
        "from exporter.kernel import libbpf_version; libbpf_version();"
        "print([line.split()[-1] for line in open('/proc/self/maps') if 'libbpf' in line and '.so' in line])"
    )
    command = [installed / "bin/python", "-I", "-c", program]
    mapped = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/", env=environment()).stdout
    assert "skep.libs/libbpf-" in mapped
    assert "/usr/lib" not in mapped
    command = [installed / "bin/python", "-I", installed / "bin/skep", "version"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/", env=environment()).stdout
    assert re.search(r"^libbpf +\d", said, re.MULTILINE)


@pytest.fixture
def agent(installed: Path, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The installed agent on the whole catalog: its port and its log."""
    config, log = tmp_path / "agent.yaml", tmp_path / "log"
    images = "".join(f"  - {{ref: 'catalog:{name}', partial: run}}\n" for name in IMAGES)
    config.write_text(f"images:\n{images}store: {{path: store}}\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    flags = [f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}", f"--status.socket={tmp_path / 's'}"]
    with log.open("w") as file:
        command = [installed / "bin/python", "-I", installed / "bin/skep", "agent", *flags]
        process = subprocess.Popen(command, cwd="/", env=environment(), stdout=file, stderr=file)
    try:
        yield port, log
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print(log.read_text())


@pytest.mark.skipif(not can_load(), reason="needs root and a kernel with BTF")
def test_agent_of_the_wheel_runs_the_catalog_it_brought(agent: tuple[int, Path]) -> None:
    """BTF-typed tracepoints load and count here; what a kernel refuses is named and stops nothing."""
    port, log = agent
    text, end = "", time.monotonic() + 60
    while time.monotonic() < end and len(re.findall("image (?:running|degraded|failed)", log.read_text())) < len(
        IMAGES
    ):
        time.sleep(0.2)
    for _ in range(5):
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = str(answer.read(), "utf-8")
    running = set(re.findall(r'msg="image running" image=(\S+)', log.read_text()))
    assert {"process-exits", "runqueue-latency", "tcp-states", "syscalls", "block-latency"} <= running
    assert re.search(r'^ebpf_process_exits_total\{reason="exited",code="0"\} [1-9]', text, re.MULTILINE)
    assert shutil.which("clang", path=environment()["PATH"]) is None
