"""Build the Debian package: ``python packaging/deb/build.py [--release trixie]`` writes ``dist/skep_*.deb``.

::

    sdist ──▶ our wheel, built by the release's own Python ──┐
    requirements.txt ──▶ the very wheels, by their hashes ───┼──▶ stage/ ──▶ dist/skep_VERSION+debN_ARCH.deb
    argparse ──▶ manual page, completion; unit, conffiles ───┘

The package carries a virtual environment under /usr/lib/skep, whose extensions run under one
Python only: there is one package for each Debian release. This machine's own is built here,
any other in a root made by debootstrap, which is kept under ``build/deb`` and needs no network.

Two builds of one commit give the same bytes (``SOURCE_DATE_EPOCH``, by default the commit's time).
Needs what ``packaging/setup/system-packages package`` installs, and for another release root.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator, Sequence
from email.parser import HeaderParser
from email.utils import formatdate
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "deb"
DIST = ROOT / "dist"
FILES = Path(__file__).parent / "files"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
SYSTEMD = ROOT / "packaging" / "systemd"

PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
HOME = "usr/lib/skep"
MAINTAINER = "skep packagers <packagers@skep.invalid>"
#: What a root of another release needs beyond debootstrap's minimum.
COMPILER = ("gcc", "libc6-dev", "python3-dev", "pkg-config", "libbpf-dev", "libelf-dev", "zlib1g-dev", "dpkg-dev")
#: The release whose libbpf is too old, and where a newer one is.
BACKPORTS = {"bookworm": "bookworm-backports"}
#: In wheels, and of no use where nothing is compiled, type-checked or tested.
LEFT_OUT = re.compile(
    r".*\.(pyi|pyx|pxd|h)|py\.typed|RECORD|INSTALLER|REQUESTED|direct_url\.json|testdata|bin|"
    r"oras/tests|jsonschema/(tests|benchmarks)|referencing/tests|jsonschema_specifications/tests|certifi/tests"
)
KEPT = re.compile(r"exporter/share/.*")


class BuildError(Exception):
    """The package cannot be built; one line: subject, found, remedy."""


def say(text: str) -> None:
    """One line of progress."""
    sys.stdout.write(f"skep deb: {text}\n")
    sys.stdout.flush()


def run(command: Sequence[str | Path], *, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    """Run a command to its end and return what it printed.

    Raises:
        BuildError: it is not installed, or it failed; with its last lines.
    """
    words = [os.fspath(word) for word in command]
    env = {**os.environ, "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", **(environment or {})}
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=cwd, env=env)
    except FileNotFoundError as error:
        raise BuildError(f"{words[0]!r} is not installed; run packaging/setup/system-packages package") from error
    if done.returncode:
        last = "\n  ".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise BuildError(f"{' '.join(words[:5])!r} ended with status {done.returncode}:\n  {last}")
    return done.stdout


def os_release(root: Path = Path("/")) -> dict[str, str]:
    """What a Debian says of itself."""
    pairs = (line.partition("=") for line in (root / "etc/os-release").read_text().splitlines())
    return {key: value.strip('"') for key, _, value in pairs}


class Target:
    """Where the package's own release is: this machine, or a root that debootstrap made.

    Attributes:
        home: The folder we work in, as this machine sees it.
    """

    def __init__(self, release: str, *, rooted: bool) -> None:
        if release not in PYTHONS:
            raise BuildError(f"release {release!r} is not known; known are {', '.join(PYTHONS)}")
        self.release, self.python, self.rooted = release, PYTHONS[release], rooted
        self.root = self._made_root() if rooted else Path("/")
        self.home = self.root / "skep-build" if rooted else BUILD / release
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        found = self.run([f"/usr/bin/python{self.python}", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
        if found.strip() != self.python:
            raise BuildError(f"release {release!r}: its Python is {found.strip()}, expected {self.python}")

    @property
    def number(self) -> str:
        """``12`` of bookworm."""
        return os_release(self.root)["VERSION_ID"]

    def inside(self, path: Path) -> str:
        """A path under the root, as the root's own programs see it."""
        return f"/{path.relative_to(self.root)}"

    def run(self, command: Sequence[str], *, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
        """Run a program of that release; paths are those it sees, ``cwd`` is this machine's."""
        if not self.rooted:
            return run(command, cwd=cwd, environment=environment)
        script = f'cd "{self.inside(cwd or self.home)}" && exec "$@"'
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "PYTHONHASHSEED=0"]
        settings = [f"{name}={value}" for name, value in (environment or {}).items()]
        return run(["chroot", self.root, *clean, *settings, "/bin/sh", "-c", script, "sh", *command])

    def _made_root(self) -> Path:
        key = hashlib.sha256(repr((COMPILER, BACKPORTS)).encode()).hexdigest()[:12]
        root = BUILD / f"root-{self.release}-{key}"
        if root.exists():
            return root.resolve()
        if os.geteuid() != 0:
            raise BuildError(f"release {self.release!r} is not this machine's and needs a root of its own: run as root")
        say(f"debootstrap {self.release} (once)")
        fresh = root.with_name(root.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        mirror = mirror_of_this_machine()
        early = COMPILER if self.release not in BACKPORTS else [one for one in COMPILER if one != "libbpf-dev"]
        run(["debootstrap", "--variant=minbase", f"--include={','.join(early)}", self.release, fresh, mirror])
        if self.release in BACKPORTS:
            suite = BACKPORTS[self.release]
            (fresh / "etc/apt/sources.list.d/backports.list").write_text(f"deb {mirror} {suite} main\n")
            shutil.copyfile("/etc/resolv.conf", fresh / "etc/resolv.conf")
            run(["chroot", fresh, "apt-get", "-qq", "update"])
            run(
                [
                    "chroot",
                    fresh,
                    "apt-get",
                    "-qq",
                    "-y",
                    "--no-install-recommends",
                    "-t",
                    suite,
                    "install",
                    "libbpf-dev",
                ]
            )
        shutil.rmtree(fresh / "var/cache/apt", ignore_errors=True)
        shutil.rmtree(fresh / "var/lib/apt/lists", ignore_errors=True)
        for old in BUILD.glob(f"root-{self.release}-*"):
            if old != fresh:
                shutil.rmtree(old)
        fresh.rename(root)
        return root.resolve()


def mirror_of_this_machine() -> str:
    """Where apt has this machine's own release from; every release is there."""
    listing = run(["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"])
    name = os_release()["VERSION_CODENAME"]
    for line in listing.splitlines():
        suite, _, address = line.partition(" ")
        if suite == name:
            return address
    raise BuildError(f"apt knows no mirror of {name}; add one to /etc/apt/sources.list.d")


def commit_time() -> int:
    """``SOURCE_DATE_EPOCH``, else when what is built was committed."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    try:
        return int(given or run(["git", "log", "-1", "--format=%ct"], cwd=ROOT))
    except (BuildError, ValueError) as error:
        raise BuildError(
            f"SOURCE_DATE_EPOCH is {given!r} and git does not say when this was committed; set it"
        ) from error


def pip(*arguments: str | Path) -> None:
    """Run the pip of this environment."""
    run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments])


class Package:
    """One package on its way."""

    def __init__(self, target: Target, epoch: int) -> None:
        self.target, self.epoch = target, epoch
        self.stage = target.home / "stage"
        self.site = self.stage / HOME / "lib" / f"python{target.python}" / "site-packages"
        self.upstream = str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
        self.version = f"{self.upstream}+deb{target.number}"
        self.architecture = target.run(["dpkg", "--print-architecture"]).strip()

    # ---- what is inside ----

    def fill(self) -> None:
        """Lay out everything but the control files."""
        self.site.mkdir(parents=True)
        wheels = self._wheels()
        say("private environment")
        pip(
            *("install", "--no-index", "--no-deps", "--no-compile", "--target", self.site),
            *("--only-binary", ":all:", "--python-version", self.target.python, *self._platforms()),
            *sorted(wheels.glob("*.whl")),
        )
        self._trim()
        self._environment()
        self._shared_files()
        self._documents()
        self._native()
        self._compile()

    def _platforms(self) -> list[str]:
        machine = os.uname().machine
        names = [f"{name}_{machine}" for name in ("linux", "manylinux_2_28", "manylinux2014")]
        return [word for name in names for word in ("--platform", name)]

    def _wheels(self) -> Path:
        """Our own wheel and those we depend on, in one folder."""
        wheels, tools = self.target.home / "wheels", self.target.home / "tools"
        version = ("--only-binary", ":all:", "--python-version", self.target.python, *self._platforms())
        say(f"downloading what requirements.txt names, for Python {self.target.python}")
        pip("download", "--no-deps", "--require-hashes", "--requirement", REQUIREMENTS, "--dest", wheels, *version)
        pip(
            "install",
            "--no-compile",
            "--target",
            tools,
            *version,
            "--only-binary",
            ":all:",
            *self._build_requirements(),
        )
        source = self._source()
        say("compiling")
        inside = self.target.inside
        flags = f"-g0 -ffile-prefix-map={inside(source)}=."
        self.target.run(
            [
                f"/usr/bin/python{self.target.python}",
                "setup.py",
                "--quiet",
                "bdist_wheel",
                "--dist-dir",
                inside(wheels),
            ],
            cwd=source,
            environment={
                "PYTHONPATH": inside(tools),
                "SKEP_CFLAGS": flags,
                # From exporter/*/ in site-packages to /usr/lib/skep/lib, where our libbpf is.
                "LDFLAGS": "-Wl,-rpath,$ORIGIN/../../../.. -Wl,-z,relro,-z,now",
                "SOURCE_DATE_EPOCH": str(self.epoch),
            },
        )
        return wheels

    @staticmethod
    def _build_requirements() -> list[str]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        return list(project["build-system"]["requires"])

    def _source(self) -> Path:
        """The source archive, unpacked; the catalog's objects are in it."""
        say("source archive")
        catalog = ("build", "--catalog", "configs/catalog", "build/catalog")
        run([sys.executable, "-m", "exporter", *catalog], cwd=ROOT)
        folder = self.target.home / "source"
        run([sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT])
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
        (source,) = (path for path in folder.iterdir() if path.is_dir())
        return source

    def _trim(self) -> None:
        """Take away what no run needs."""
        for folder, names, files in os.walk(self.site):
            here = Path(folder)
            for name in [*names, *files]:
                path = here / name
                relative = str(path.relative_to(self.site))
                if KEPT.fullmatch(relative) or not (LEFT_OUT.fullmatch(name) or LEFT_OUT.fullmatch(relative)):
                    continue
                if name in names:
                    names.remove(name)
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def _environment(self) -> None:
        home = self.stage / HOME
        (home / "pyvenv.cfg").write_text(
            f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {self.target.python}\n"
        )
        (home / "bin").mkdir()
        (home / "bin/python3").symlink_to(f"../../../bin/python{self.target.python}")
        script = home / "bin/skep"
        script.write_text(
            f"#!/{HOME}/bin/python3 -I\nimport sys\n\nfrom exporter.__main__ import main\n\nsys.exit(main())\n"
        )
        script.chmod(0o755)
        (self.stage / "usr/bin").mkdir(parents=True)
        (self.stage / "usr/bin/skep").symlink_to("../lib/skep/bin/skep")

    def _shared_files(self) -> None:
        """Configuration, unit, dashboards."""
        put = self._put
        put(ROOT / "configs/agent.yaml", "etc/skep/agent.yaml")
        (self.stage / "etc/skep/agent.d").mkdir()
        put(SYSTEMD / "skep.default", "etc/default/skep")
        put(SYSTEMD / "skep.service", "usr/lib/systemd/system/skep.service")
        put(SYSTEMD / "skep.sysusers", "usr/lib/sysusers.d/skep.conf")
        for example in sorted((SYSTEMD / "skep.service.d").glob("*.conf.example")):
            put(example, f"usr/share/skep/drop-ins/{example.name.removesuffix('.example')}")
        share = f"../../{self.site.relative_to(self.stage / 'usr')}/exporter/share"
        for name in ("agent.schema.json", "catalog", "dashboards", "include"):
            (self.stage / "usr/share/skep" / name).symlink_to(f"{share}/{name}")

    def _documents(self) -> None:
        """Manual page, completion, copyright, changelog; made by this environment, the same for every release."""
        say("manual page, completion")
        generate = ROOT / "packaging/generate"
        environment = {"SOURCE_DATE_EPOCH": str(self.epoch), "PYTHONPATH": str(ROOT)}
        page = self.stage / "usr/share/man/man1/skep.1"
        bash = self.stage / "usr/share/bash-completion/completions/skep"
        zsh = self.stage / "usr/share/zsh/vendor-completions/_skep"
        for path in (page, bash, zsh):
            path.parent.mkdir(parents=True)
        run([sys.executable, generate / "man.py", page], environment=environment)
        run([sys.executable, generate / "completion.py", "bash", bash], environment=environment)
        run([sys.executable, generate / "completion.py", "zsh", zsh], environment=environment)
        documents = self.stage / "usr/share/doc/skep"
        documents.mkdir(parents=True)
        for document in sorted((ROOT / "docs").glob("*.md")):
            self._put(document, f"usr/share/doc/skep/{document.name}")
        self._put(ROOT / "CHANGELOG.md", "usr/share/doc/skep/NEWS.md")
        when = formatdate(self.epoch)
        (documents / "changelog").write_text(
            f"skep ({self.version}) stable; urgency=medium\n\n"
            f"  * Version {self.upstream}; what is new is in NEWS.md beside this file.\n\n -- {MAINTAINER}  {when}\n"
        )
        (documents / "copyright").write_text(
            (FILES / "copyright.head").read_text() + "\n" + "\n".join(self._licences())
        )
        for path in (page, documents / "changelog"):
            run(["gzip", "-9n", path])
        self._put(FILES / "lintian-overrides", "usr/share/lintian/overrides/skep")

    def _licences(self) -> Iterator[str]:
        """A paragraph for each library inside."""
        for metadata in sorted(self.site.glob("*.dist-info/METADATA")):
            fields = HeaderParser().parsestr(metadata.read_text())
            name = fields["Name"]
            if name == "skep":
                continue
            classifiers = [text.rpartition(" :: ")[2] for text in fields.get_all("Classifier", []) if "License" in text]
            licence = fields["License-Expression"] or ", ".join(classifiers) or fields["License"] or "see its folder"
            author = fields["Author"] or fields["Author-email"] or f"The {name} authors"
            folder = f"/{metadata.parent.relative_to(self.stage)}"
            short = " ".join(licence.split())[:80]
            yield (
                f"Files: {folder}/*\nCopyright: {' '.join(author.split())}\nLicense: {name}\n"
                f" {name} {fields['Version']}: {short}. Its text is in {folder} where its wheel has one.\n"
            )

    def _native(self) -> None:
        """Our own libbpf, and no symbols of the debugger in any library."""
        found = self.target.run(["pkg-config", "--variable=libdir", "libbpf"]).strip()
        library = self.target.root / found.lstrip("/") / "libbpf.so.1"
        ours = self.stage / HOME / "lib/libbpf.so.1"
        shutil.copyfile(library.resolve(), ours)
        libraries = [*self.site.rglob("*.so"), ours]
        self.target.run(["strip", "--strip-unneeded", "--remove-section=.comment", *map(self.target.inside, libraries)])
        for path in libraries:
            path.chmod(0o644)

    def _compile(self) -> None:
        """Compile every module, to be trusted without a look at its source: both come from this package only."""
        inside = self.target.inside
        self.target.run(
            [
                *(f"/usr/bin/python{self.target.python}", "-m", "compileall", "-q", "-j", "1"),
                *("--invalidation-mode", "unchecked-hash", "-s", inside(self.stage), "-p", "/", inside(self.site)),
            ]
        )

    def _put(self, source: Path, name: str) -> None:
        target = self.stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)

    # ---- what is said about it ----

    def close(self) -> Path:
        """Write the control files and the package."""
        self._settle()
        control = self.stage / "DEBIAN"
        control.mkdir()
        files = [path for path in sorted(self.stage.rglob("*")) if path.is_file() and not path.is_symlink()]
        conffiles = [path for path in files if path.is_relative_to(self.stage / "etc")]
        sums = (
            f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(self.stage)}\n"
            for path in files
            if path not in conffiles
        )
        installed_kib = sum((path.stat().st_size + 1023) // 1024 for path in files)
        (control / "md5sums").write_text("".join(sums))
        (control / "conffiles").write_text("".join(f"/{path.relative_to(self.stage)}\n" for path in conffiles))
        (control / "control").write_text(self._control(installed_kib))
        for name in ("postinst", "prerm", "postrm"):
            shutil.copyfile(FILES / name, control / name)
            (control / name).chmod(0o755)
        for path in control.iterdir():
            os.utime(path, (self.epoch, self.epoch))
        DIST.mkdir(exist_ok=True)
        package = DIST / f"skep_{self.version}_{self.architecture}.deb"
        fresh = package.with_suffix(".new")
        # By this machine's dpkg-deb for every release: the format is the same.
        epoch = {"SOURCE_DATE_EPOCH": str(self.epoch)}
        command = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z6", "--build", self.stage, fresh]
        run(command, environment=epoch)
        fresh.rename(package)
        return package

    def _settle(self) -> None:
        """Modes and times do not tell who built it when."""
        for path in (self.stage, *self.stage.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
            os.utime(path, (self.epoch, self.epoch), follow_symlinks=False)

    def _control(self, installed_kib: int) -> str:
        major, minor = self.target.python.split(".")
        depends = [
            *self._libraries(),
            f"python3 (>= {major}.{minor})",
            f"python3 (<< {major}.{int(minor) + 1})",
            "systemd | systemd-standalone-sysusers",
        ]
        return (
            f"Package: skep\nVersion: {self.version}\nArchitecture: {self.architecture}\nMaintainer: {MAINTAINER}\n"
            f"Installed-Size: {installed_kib}\nDepends: {', '.join(depends)}\nRecommends: ca-certificates\n"
            "Suggests: prometheus\nSection: admin\nPriority: optional\n"
            "Description: eBPF programs that travel as OCI images, and what they count\n"
            " An agent for every host of a fleet: it reads a list of OCI images, verifies\n"
            " each, loads its eBPF object and exports what it counts to Prometheus and\n"
            " OpenTelemetry.\n"
            " .\n"
            " Images for run queue and block latency, process exits, TCP states, system\n"
            " calls and more are inside, with Grafana dashboards and alerts. No compiler is\n"
            " needed on the host.\n"
        )

    def _libraries(self) -> list[str]:
        """Which packages the libraries inside need, as Debian's own tool finds them."""
        work = self.target.home / "shlibdeps"
        (work / "debian").mkdir(parents=True)
        (work / "debian/control").write_text("Source: skep\n\nPackage: skep\nArchitecture: any\nDescription: -\n -\n")
        binaries = [*self.site.rglob("*.so"), self.stage / HOME / "lib/libbpf.so.1"]
        inside = self.target.inside
        said = self.target.run(
            [
                *("dpkg-shlibdeps", "-O", "--ignore-missing-info", f"-l{inside(self.stage / HOME / 'lib')}"),
                *(f"-e{inside(path)}" for path in binaries),
            ],
            cwd=work,
        )
        needed = said.strip().partition("Depends=")[2]
        return sorted(one for one in needed.split(", ") if not one.startswith("libbpf"))


def main(arguments: list[str]) -> int:
    """Build."""
    mine = os_release().get("VERSION_CODENAME", "")
    parser = argparse.ArgumentParser(prog="build.py", description="build the Debian package into dist/")
    parser.add_argument("--release", default=mine, help=f"{' or '.join(PYTHONS)}; default: this machine's")
    parser.add_argument("--rooted", action="store_true", help="in a root of its own even for this machine's release")
    options = parser.parse_args(arguments)
    BUILD.mkdir(parents=True, exist_ok=True)
    try:
        # Two at a time would write to the same folders.
        with (BUILD / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            package = Package(Target(options.release, rooted=options.rooted or options.release != mine), commit_time())
            package.fill()
            made = package.close()
    except BuildError as error:
        say(str(error))
        return 1
    unpacked = sum(
        path.lstat().st_size for path in package.stage.rglob("*") if path.is_file() and not path.is_symlink()
    )
    say(f"{made.relative_to(ROOT)}: {made.stat().st_size / 1e6:.1f} MB, {unpacked / 1e6:.1f} MB installed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
