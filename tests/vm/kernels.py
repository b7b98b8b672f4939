"""One of Debian's cloud kernels, made ready to boot: image, modules, configuration, initramfs.

The cloud kernels have their virtio drivers and ext4 as modules, so an initramfs
has to load those, in the order of their dependencies, before any disk is there.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.vm.packages import Archive, Available, HarnessError, newest, pinned_dependencies, run

META_PACKAGE = "linux-image-cloud-amd64"

#: The kernels of the matrix; "newest" is whatever the mirror's highest version is.
SERIES = ("5.10", "6.1", "6.12", "newest")

#: What the initramfs needs to find a virtio disk and mount it. Those that a
#: kernel has built in, or no longer has, are left out.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")

INITRAMFS_SCRIPT = Path(__file__).parent / "guest" / "initramfs-init"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel on this machine's disk, unpacked from its package.

    Attributes:
        series: What the matrix calls it: ``5.10``, or the real series of the newest.
        release: ``uname -r``.
        version: The Debian package's version.
        image: The compressed kernel.
        modules: The tree that goes to ``/usr/lib/modules/RELEASE``.
        config: The settings it was built with.
    """

    series: str
    release: str
    version: str
    image: Path
    modules: Path
    config: Mapping[str, str]


def series_of(version: str) -> str:
    """``6.12.117-1`` is of the series ``6.12``."""
    return ".".join(re.split(r"[.~-]", version)[:2])


def parse_config(text: str) -> dict[str, str]:
    """Read a kernel's configuration; a setting that is off is absent."""
    return {
        name: value.strip('"')
        for name, sign, value in (line.partition("=") for line in text.splitlines())
        if sign and name.startswith("CONFIG_")
    }


def lsm_argument(config: Mapping[str, str]) -> str:
    """The kernel's own list of security modules with bpf in it.

    5.10 has the BPF security module built in and not in its list: programs
    attach to it and never run.
    """
    names = [name for name in config.get("CONFIG_LSM", "").split(",") if name]
    return "lsm=" + ",".join(names if "bpf" in names else [*names, "bpf"])


def module_name(path: str) -> str:
    """``kernel/fs/ext4/ext4.ko.xz`` is the module ``ext4``."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def load_order(modules_dep: str, wanted: Iterable[str]) -> list[str]:
    """Paths of the wanted modules and of all they depend on, each after what it needs.

    Args:
        modules_dep: What depmod wrote: ``path: dependency dependency …``.
        wanted: Module names; those the file does not have are built in, or gone, and left out.
    """
    needs: dict[str, list[str]] = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {module_name(path): path for path in needs}
    order: list[str] = []

    def add(path: str) -> None:
        if path not in order:
            for needed in needs[path]:
                add(needed)
            order.append(path)

    for name in wanted:
        if name in by_name:
            add(by_name[name])
    return order


def plain_module(path: Path) -> bytes:
    """A module's ELF bytes, whatever it is compressed with."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dcq", path], check=True, capture_output=True).stdout
    return data


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A "newc" archive, the form the kernel unpacks as its first root.

    Args:
        entries: Path without leading slash, mode with file type, contents.

    Source: Documentation/driver-api/early-userspace/buffer-format.rst in the kernel.
    """
    out = io.BytesIO()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        text = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(text), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        out.write(header + text + b"\0" * (-(len(header) + len(text)) % 4))
        out.write(data + b"\0" * (-len(data) % 4))
    return out.getvalue()


def build_initramfs(kernel: Kernel, busybox: Path) -> bytes:
    """The first root: a shell, the modules that bring the disks, the script that mounts them."""
    order = load_order((kernel.modules / "modules.dep").read_text(), BOOT_MODULES)
    entries = [(name, 0o040755, b"") for name in ("bin", "dev", "proc", "sys", "root", "modules")]
    entries += [("bin/busybox", 0o100755, busybox.read_bytes()), ("init", 0o100755, INITRAMFS_SCRIPT.read_bytes())]
    names = []
    for path in order:
        names.append(module_name(path))
        entries.append((f"modules/{names[-1]}.ko", 0o100644, plain_module(kernel.modules / path)))
    entries.append(("modules/order", 0o100644, "".join(f"{name}\n" for name in names).encode()))
    return gzip.compress(cpio(entries), compresslevel=1, mtime=0)


class Shelf:
    """The kernels fetched so far.

    Args:
        directory: One folder per series.
        archive: Where they come from.
        say: Called with one line per slow step.
    """

    def __init__(self, directory: Path, archive: Archive, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._archive = archive
        self._say = say

    def kernel(self, series: str, *, refresh: bool = False) -> Kernel:
        """The kernel of a series, fetched if it is not here yet.

        Args:
            series: ``5.10``, or ``newest``.
            refresh: Ask the mirror for a newer one.

        Raises:
            HarnessError: the mirror has none and none was fetched before.
        """
        home = self._directory / series
        note = home / "kernel.json"
        if refresh or not note.exists():
            self._fetch(series, home, note)
        facts = json.loads(note.read_text())
        release = facts["release"]
        return Kernel(
            series=series_of(facts["version"]),
            release=release,
            version=facts["version"],
            image=home / "vmlinuz",
            modules=home / "modules" / release,
            config=parse_config((home / "modules" / release / "config").read_text()),
        )

    def _fetch(self, series: str, home: Path, note: Path) -> None:
        prefix = "" if series == "newest" else f"{series}."
        wanted = newest(self._archive.versions(META_PACKAGE), prefix)
        if wanted is None:
            raise HarnessError(
                f"kernel {series}: no {META_PACKAGE} of that series on {self._archive.mirror}; name one of its kernels"
            )
        if note.exists() and json.loads(note.read_text())["version"] == wanted.version:
            return
        self._say(f"kernel {series}: fetching {wanted.version}")
        unpacked = home.with_name(home.name + ".new")
        shutil.rmtree(unpacked, ignore_errors=True)
        tree = unpacked / "tree"
        pending, seen = [wanted], {wanted.package}
        while pending:
            package = pending.pop()
            if package is not wanted:
                self._archive.unpack(package, tree)
            for name in pinned_dependencies(self._archive.record(package), package.version):
                if re.match(r"linux-(image|modules|binary|base)-", name) and name not in seen:
                    seen.add(name)
                    pending.append(Available(name, package.version))
        release = self._arrange(tree, unpacked)
        (unpacked / "kernel.json").write_text(json.dumps({"release": release, "version": wanted.version}))
        shutil.rmtree(home, ignore_errors=True)
        unpacked.rename(home)

    @staticmethod
    def _arrange(tree: Path, home: Path) -> str:
        """Keep image, modules and configuration of an unpacked package; return its release."""
        images = sorted(tree.glob("boot/vmlinuz-*")) + sorted(tree.glob("usr/lib/modules/*/vmlinuz"))
        roots = [path for path in (tree / "lib/modules", tree / "usr/lib/modules") if path.is_dir()]
        releases = [path for root in roots for path in root.iterdir() if path.is_dir()]
        if not images or not releases:
            raise HarnessError(f"the kernel's packages hold {len(images)} images and {len(releases)} module trees")
        release = releases[0].name
        modules = home / "modules" / release
        modules.parent.mkdir(parents=True)
        releases[0].rename(modules)
        if images[0].exists():
            images[0].rename(home / "vmlinuz")
        else:
            (modules / "vmlinuz").rename(home / "vmlinuz")
        config = next(iter(tree.glob("boot/config-*")), modules / "config")
        if config != modules / "config":
            config.rename(modules / "config")
        shutil.rmtree(tree)
        base = home / "depmod"
        (base / "lib").mkdir(parents=True)
        (base / "lib/modules").symlink_to(home / "modules")
        run(["depmod", "--basedir", base.resolve(), release])
        shutil.rmtree(base)
        return release
