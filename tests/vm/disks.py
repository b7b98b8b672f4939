"""File system images for the guest, each keyed by what is in it.

The kernel reads the images as ext2 through its ext4 driver: no journal, no
features that 5.10 does not know, whatever mke2fs there is. A guest writes to a
throw-away overlay, so an image is made once and booted many times.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.vm.kernels import Kernel
from tests.vm.packages import Archive, HarnessError, codename, run

#: Beside debootstrap's minimal base. busybox-static is the initramfs's shell too;
#: the compilers are there because kernel tests build their own programs.
ROOT_PACKAGES = (
    *("busybox-static", "iproute2", "iputils-ping", "kmod", "procps", "python3"),
    *("bpftool", "clang", "gcc", "libc6-dev", "linux-libc-dev", "llvm"),
)

LIBBPF = "libbpf.so.1"

#: Installed for developing, of no use to a test in a guest.
LEFT_OUT = {"cython", "grimp", "import-linter", "librt", "mypy", "pip", "ruff", "setuptools", "wheel"}

NOT_COPIED = {".git", ".venv", "dist", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
NOT_COPIED_FROM_BUILD = re.compile(r"vm|vm\.json|stamps|cython.*|tmp-.*|temp\..*|lib\..*|bdist\..*")

#: Programs that tests ask and whose packages would bring servers and web pages into
#: the guest; it is of this machine's release, so they are copied where there are any.
BORROWED = ("promtool",)

#: A guest that upgrades a package of small files has thousands of new ones beside the old.
INODES_PER_SPARE_MIB = 32

GUEST_REPOSITORY = "/skep"
GUEST_VENV = "/opt/skep-venv"


def python_version() -> str:
    """The interpreter of this checkout, ``3.11``: its extensions run under no other."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def our_libbpf() -> Path:
    """The library our extensions were linked with; the guest is of the same Debian release and takes it."""
    path = Path(run(["pkg-config", "--variable=libdir", "libbpf"]).strip()) / LIBBPF
    if not path.exists():
        raise HarnessError(f"libbpf: no {path}; run packaging/setup/system-packages run")
    return path.resolve()


def our_libbpf_headers() -> Path:
    """``bpf/bpf_helpers.h`` and the others, of that library."""
    return Path(run(["pkg-config", "--variable=includedir", "libbpf"]).strip()) / "bpf"


def tree_files(repository: Path) -> Iterator[Path]:
    """Every file of the working tree a test could need, committed or not, in a stable order."""
    for folder, names, files in os.walk(repository):
        here = Path(folder)
        at_build = here == repository / "build"

        def wanted(name: str, at_build: bool = at_build) -> bool:
            return name not in NOT_COPIED and not (at_build and NOT_COPIED_FROM_BUILD.fullmatch(name))

        names[:] = sorted(filter(wanted, names))
        for name in sorted(filter(wanted, files)):
            path = here / name
            if path.is_file() and not path.is_symlink():
                yield path


def digest_of(repository: Path) -> str:
    """A short name for the working tree as it is now."""
    total = hashlib.sha256()
    for path in tree_files(repository):
        data = path.read_bytes()
        total.update(f"{path.relative_to(repository)}\0{path.stat().st_mode & 0o111:o}\0{len(data)}\0".encode())
        total.update(data)
    return total.hexdigest()[:16]


def compile_ahead(*folders: Path) -> None:
    """Compile what can be, so that no guest does it again; a file that cannot is its importer's failure."""
    subprocess.run([sys.executable, "-m", "compileall", "-qq", *folders], check=False)


def key_of(*parts: object) -> str:
    """A short name for the given facts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def installed_distributions() -> list[importlib.metadata.Distribution]:
    """What of this virtual environment goes into the guest's."""
    found = {
        distribution.metadata["Name"].lower(): distribution
        for distribution in importlib.metadata.distributions()
        if distribution.files is not None
    }
    return [
        found[name]
        for name in sorted(found)
        if name not in LEFT_OUT and not name.startswith("types-") and name != "skep"
    ]


class Disks:
    """The images made so far.

    Args:
        directory: Where they are kept.
        repository: The working tree to test.
        archive: Where packages come from.
        say: Called with one line per slow step.
    """

    def __init__(self, directory: Path, repository: Path, archive: Archive, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._repository = repository
        self._archive = archive
        self._say = say

    def base(self) -> Path:
        """A minimal Debian of this machine's own release, as a tree; libbpf is the one we build against."""
        suite, libbpf = codename(), our_libbpf()
        library = hashlib.sha256(libbpf.read_bytes()).hexdigest()
        home = self._directory / f"base-{key_of(suite, ROOT_PACKAGES, library)}"
        if home.exists():
            return home
        if os.geteuid() != 0:
            raise HarnessError("making the guest's root file system needs root (debootstrap); run this as root once")
        self._say(f"root file system: debootstrap {suite} (once)")
        fresh = home.with_name(home.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.parent.mkdir(parents=True, exist_ok=True)
        debs = self._directory / "debs"
        debs.mkdir(parents=True, exist_ok=True)
        include = ",".join(ROOT_PACKAGES)
        options = ("--variant=minbase", f"--include={include}", f"--cache-dir={debs.resolve()}")
        run(["debootstrap", *options, suite, fresh, self._archive.mirror], env={**os.environ, "LC_ALL": "C"})
        target = fresh / "usr/lib/x86_64-linux-gnu"
        for old in target.glob("libbpf.so*"):
            old.unlink()
        shutil.copyfile(libbpf, target / LIBBPF)
        shutil.copytree(our_libbpf_headers(), fresh / "usr/include/bpf")
        for junk in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
            shutil.rmtree(fresh / junk, ignore_errors=True)
        (fresh / "usr/lib/modules").mkdir(parents=True, exist_ok=True)
        (fresh / GUEST_REPOSITORY.lstrip("/")).mkdir()
        for old in self._directory.glob("base-*"):
            if old != fresh:
                shutil.rmtree(old)
        fresh.rename(home)
        return home

    def root(self) -> Path:
        """The guest's root: the base and a virtual environment equal to ours."""
        base = self.base()
        guest_python = (base / "usr/bin/python3").readlink().name.removeprefix("python")
        if guest_python != python_version():
            raise HarnessError(
                f"the guest has Python {guest_python}, this virtual environment has {python_version()}, and native "
                "extensions run under one of them only; make the environment with PYTHON=/usr/bin/python3"
            )
        distributions = installed_distributions()
        versions = {one.metadata["Name"]: one.version for one in distributions}
        borrowed = [name for name in BORROWED if shutil.which(name)]
        image = self._directory / f"root-{key_of(base.name, versions, borrowed)}.img"
        if not image.exists():
            self._say("root file system: copying the virtual environment")
            stage = self._directory / "stage-root"
            shutil.rmtree(stage, ignore_errors=True)
            run(["cp", "--archive", "--link", base, stage])
            for name in borrowed:
                shutil.copy2(str(shutil.which(name)), stage / "usr/local/bin" / name)
            self._copy_environment(stage / GUEST_VENV.lstrip("/"), distributions)
            self.make(image, stage, spare_mib=256)
        return image

    @staticmethod
    def _copy_environment(venv: Path, distributions: list[importlib.metadata.Distribution]) -> None:
        packages = venv / "lib" / f"python{python_version()}" / "site-packages"
        packages.mkdir(parents=True)
        for distribution in distributions:
            for file in distribution.files or ():
                if file.parts[0] == ".." or file.is_absolute():
                    continue
                source, target = Path(str(distribution.locate_file(file))), packages / file
                if source.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source, target)
        # What an editable installation of the working tree would have written.
        (packages / "skep-editable.pth").write_text(GUEST_REPOSITORY + "\n")
        information = packages / "skep-0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: skep\nVersion: 0\n")
        (venv / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
        (venv / "bin").mkdir()
        for name in ("python", "python3"):
            (venv / "bin" / name).symlink_to("/usr/bin/python3")
        script = venv / "bin" / "skep"
        script.write_text(f"#!{GUEST_REPOSITORY}/.venv/bin/python\nfrom exporter.__main__ import main\n\nmain()\n")
        script.chmod(0o755)
        compile_ahead(packages)

    def modules(self, kernel: Kernel) -> Path:
        """The kernel's modules and configuration, to be mounted on ``/usr/lib/modules``."""
        image = self._directory / f"modules-{kernel.version}.img"
        if not image.exists():
            self.make(image, kernel.modules.parent, spare_mib=4, keep=16)
        return image

    def tree(self) -> Path:
        """The working tree, to be mounted on ``/skep``."""
        image = self._directory / f"tree-{digest_of(self._repository)}.img"
        if image.exists():
            return image
        stage = self._directory / "stage-tree"
        shutil.rmtree(stage, ignore_errors=True)
        for path in tree_files(self._repository):
            target = stage / path.relative_to(self._repository)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        (stage / ".venv").symlink_to(GUEST_VENV)
        compile_ahead(stage / "exporter", stage / "tests")
        self.make(image, stage, spare_mib=64)
        return image

    def make(self, image: Path, tree: Path, *, spare_mib: int, keep: int = 2) -> None:
        """Write a tree as a file system image, and forget all but the newest of its kind."""
        used_kib = int(run(["du", "--summarize", "--apparent-size", "--block-size=1K", tree]).split()[0])
        spare = 4096 + spare_mib * INODES_PER_SPARE_MIB
        inodes = sum(len(names) + len(files) for _, names, files in os.walk(tree)) + spare
        size_kib = used_kib + inodes * 5 + (spare_mib << 10)
        fresh = image.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        run(["mke2fs", "-q", "-t", "ext2", "-m", "0", "-N", str(inodes), "-d", tree, fresh, f"{size_kib}k"])
        fresh.rename(image)
        if tree.name.startswith("stage-"):
            shutil.rmtree(tree)
        kind = image.name.partition("-")[0]
        others = sorted(self._directory.glob(f"{kind}-*.img"), key=lambda path: path.stat().st_mtime)
        for old in others[:-keep]:
            old.unlink()
