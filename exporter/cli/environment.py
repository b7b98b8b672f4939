"""The files that this very skep runs from, so that they run elsewhere: interpreter, packages, libraries.

Nothing is fetched: what is here is what is taken. The interpreter, its library and the shared libraries keep their
paths; skep and the packages it needs go into a virtual environment at ``opt/skep``, whose interpreter looks nowhere
else for packages.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from exporter import resources
from exporter.errors import SkepError
from exporter.image.container import Entry

HOME = "opt/skep"
PYTHON = f"{HOME}/bin/python"
_VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
_PACKAGES = f"{HOME}/lib/{_VERSION}/site-packages"
# Of Python's own library: what a service has no use for.
_LEFT_OUT = {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data", "site-packages",
             "dist-packages"}  # fmt: skip
_SHARES = ("include", "catalog", "dashboards", "templates", "agent.yaml", "agent.schema.json")


def environment() -> tuple[list[Entry], list[str]]:
    """Everything a layer needs to run skep.

    Returns:
        The entries, and folders of libraries that the dynamic linker does not look into by itself.

    Raises:
        SkepError: ``package.environment``: a part of this installation cannot be found.
    """
    entries = [*_interpreter(), *_skep()]
    for package in _needed("skep"):
        if package.name.lower() != "skep":
            entries += _package(package)
    binaries = [entry.source for entry in entries if isinstance(entry.source, Path) and _is_elf(entry.source)]
    inside = {str(entry.source) for entry in entries if isinstance(entry.source, Path)}
    libraries = sorted(path for path in _libraries(binaries) if path not in inside)
    entries += [Entry(_in_image(Path(path)), Path(path)) for path in libraries]
    usual = re.compile(r"/(usr/)?lib(64|32|x32)?(/[a-z0-9_]+-linux-[a-z0-9]+)?")
    folders = dict.fromkeys(str(Path(path).parent) for path in libraries)
    return [*entries, *_frame()], [path for path in folders if not usual.fullmatch(path)]


def _interpreter() -> Iterator[Entry]:
    binary = Path(os.path.realpath(sys.executable))
    library = Path(sysconfig.get_path("stdlib"))
    if not (library / "os.py").is_file():
        raise SkepError(
            f"Python's library is not at {str(library)!r}; use an ordinary Python", code="package.environment"
        )
    yield Entry(_in_image(binary), binary)
    yield Entry(PYTHON, link=f"/{_in_image(binary)}")
    configuration = f"home = /{Path(_in_image(binary)).parent}\ninclude-system-site-packages = false\n"
    yield Entry(f"{HOME}/pyvenv.cfg", configuration.encode(), mode=0o644)
    inside = _in_image(library / "os.py").removesuffix("/os.py")
    for path in _files(library, _LEFT_OUT):
        yield Entry(f"{inside}/{path.relative_to(library)}", path)


def _skep() -> Iterator[Entry]:
    package = Path(resources.__file__).parent
    for path in _files(package, {"share", "__pycache__"}):
        yield Entry(f"{_PACKAGES}/exporter/{path.relative_to(package)}", path)
    for name in _SHARES:
        there = resources.share(name)
        # In a checkout the header's folder holds all native sources.
        files = [there / "skep.bpf.h"] if name == "include" else _files(there, set()) if there.is_dir() else [there]
        for path in files:
            inside = f"/{path.relative_to(there)}" if path != there else ""
            yield Entry(f"{_PACKAGES}/exporter/share/{name}{inside}", path)
    # A build leaves metadata in a checkout that is found before what pip installed, and is not of an installation.
    installed = (
        [entry for entry in _package(package) if ".dist-info/" in entry.path] for package in distributions(name="skep")
    )
    yield from next(filter(None, installed), ())


def _package(package: Distribution) -> Iterator[Entry]:
    for file in package.files or ():
        parts = file.parts
        path = Path(os.path.realpath(str(package.locate_file(file))))
        # Commands lie outside; a test suite may be dozens of megabytes.
        if ".." not in parts and "tests" not in parts[:-1] and path.is_file():
            yield Entry(f"{_PACKAGES}/{file}", path)


def _needed(name: str) -> list[Distribution]:
    """A distribution and all that it needs without extras; what a marker rules out is not installed."""
    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        key = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if key in found:
            continue
        try:
            found[key] = distribution(key)
        except PackageNotFoundError as error:
            if key == name:
                raise SkepError(
                    "skep is not installed as a package; install it with pip", code="package.environment"
                ) from error
            continue
        for requirement in found[key].requires or ():
            named = re.match(r"[A-Za-z0-9._-]+", requirement)
            if named and "extra ==" not in requirement:
                waiting.append(named[0])
    return list(found.values())


def _libraries(binaries: Iterable[Path]) -> set[str]:
    """Shared libraries that these load, and the dynamic linker, as this machine finds them."""
    paths = [str(path) for path in binaries]
    environment = {**os.environ, "LC_ALL": "C"}
    found: set[str] = set()
    for start in range(0, len(paths), 64):
        try:
            done = subprocess.run(
                ["ldd", *paths[start : start + 64]], capture_output=True, text=True, check=False, env=environment
            )
        except OSError as error:
            raise SkepError(
                f"ldd cannot be run: {error.strerror}; install it (Debian: libc-bin)", code="package.environment"
            ) from error
        if missing := re.search(r"^\s*(\S+) => not found", done.stdout, re.MULTILINE):
            raise SkepError(f"library {missing[1]!r} is not found by ldd; install it", code="package.environment")
        found.update(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, re.MULTILINE))
    return found


def _frame() -> Iterator[Entry]:
    """What programs expect of any root file system."""
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        host = Path("/") / name
        if host.is_symlink():
            yield Entry(name, link=str(host.readlink()))
    for name in ("dev", "proc", "sys", "run/skep", "var/lib/skep", "etc/skep"):
        yield Entry(name)
    yield Entry("tmp", mode=0o1777)
    yield Entry(
        "etc/passwd", b"root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n", mode=0o644
    )
    yield Entry("etc/group", b"root:x:0:\nnogroup:x:65534:\n", mode=0o644)
    yield Entry("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n", mode=0o644)


def _in_image(path: Path) -> str:
    """A file's own path there: its folder without links, for those of a merged /usr are made anew."""
    return f"{os.path.realpath(path.parent)}/{path.name}".lstrip("/")


def _files(folder: Path, left_out: set[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in left_out:
            continue
        if path.is_dir():
            # Folders of these names inside packages are theirs.
            yield from _files(path, left_out & {"__pycache__", "test", "tests"})
        elif path.is_file():
            yield path


def _is_elf(path: Path) -> bool:
    if path.suffix in (".py", ".pyc", ".pyi", ".txt", ".json"):
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"
