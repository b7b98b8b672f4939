"""The Debian package of this machine's release; what it does on a system is ``tests/vm/install.py``'s to prove."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    shutil.which("dpkg-shlibdeps") is None or not Path("/usr/bin/python3").exists(), reason="needs dpkg-dev"
)


def build() -> Path:
    """Build it, and give where it is."""
    done = subprocess.run(
        [sys.executable, ROOT / "packaging/deb/build.py"], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^skep deb: (dist/\S+\.deb):", done.stdout, re.MULTILINE)
    assert found
    return ROOT / found[1]


@pytest.fixture(scope="module")
def package() -> Path:
    """Built from the tree as it is."""
    return build()


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files, and its control files in DEBIAN."""
    folder = tmp_path_factory.mktemp("package") / "root"
    subprocess.run(["dpkg-deb", "--raw-extract", package, folder], check=True)
    return folder


@pytest.mark.skipif(shutil.which("lintian") is None, reason="needs lintian")
def test_lintian_finds_no_error_and_no_warning(package: Path) -> None:
    """Beside what lintian-overrides names with its reason."""
    done = subprocess.run(
        ["lintian", "--fail-on", "error,warning", "--allow-root", package], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_two_builds_are_the_same_bytes(package: Path) -> None:
    """So that anybody can see what a package was made of."""
    first = package.read_bytes()
    assert build().read_bytes() == first


def test_configuration_is_the_administrators(unpacked: Path) -> None:
    """These, and only these, are replaced after a question."""
    assert (unpacked / "DEBIAN/conffiles").read_text().split() == ["/etc/default/skep", "/etc/skep/agent.yaml"]
    assert (unpacked / "etc/skep/agent.d").is_dir()


def test_it_depends_on_one_python_and_not_on_the_distributions_libbpf(unpacked: Path) -> None:
    """Extensions run under one Python; libbpf is inside."""
    control = (unpacked / "DEBIAN/control").read_text()
    (version,) = (path.name.removeprefix("python3.") for path in (unpacked / "usr/lib/skep/lib").glob("python3.*"))
    assert f"python3 (>= 3.{version}), python3 (<< 3.{int(version) + 1})" in control
    assert "libbpf" not in control
    assert (unpacked / "usr/lib/skep/lib/libbpf.so.1").is_file()
    assert "clang" not in control


def test_nothing_is_compiled_at_installation(unpacked: Path) -> None:
    """Every module has its compiled one, which is trusted without a look at its source."""
    site = next((unpacked / "usr/lib/skep/lib").glob("python3.*/site-packages"))
    sources = [path for path in site.rglob("*.py") if path.stat().st_size]
    assert len(sources) > 300
    for source in sources:
        (compiled,) = (source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")
        # Flags of PEP 552: hash-based (1) and not checked (2 is off).
        assert compiled.read_bytes()[4:8] == b"\1\0\0\0", source


def test_its_interpreter_is_the_distributions(unpacked: Path) -> None:
    """The link leads to /usr/bin, and the environment sees no other packages than its own."""
    link = (unpacked / "usr/lib/skep/bin/python3").readlink()
    assert Path("/usr/lib/skep/bin").joinpath(link).resolve().parent == Path("/usr/bin")
    assert "include-system-site-packages = false" in (unpacked / "usr/lib/skep/pyvenv.cfg").read_text()
    assert (unpacked / "usr/lib/skep/bin/skep").read_text().startswith("#!/usr/lib/skep/bin/python3 -I\n")
