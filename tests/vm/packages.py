"""Debian packages of other suites, taken from the mirror this machine already uses.

apt reads a private directory here: its own sources, lists, cache and an empty
package database. The machine's sources, pins and packages are neither used
for the choice nor changed. Proxy and certificate settings of the machine do
apply, since they say how to reach the mirror.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITES = ("bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid")
SECURED = ("bullseye", "bookworm", "trixie")


class HarnessError(Exception):
    """The matrix cannot be run here; one line: subject, found, expected, remedy."""


@dataclass(frozen=True, slots=True)
class Available:
    """One version of a package that the mirror has."""

    package: str
    version: str


Word = str | os.PathLike[str]


def run(command: Sequence[Word], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command to its end and return what it printed.

    Raises:
        HarnessError: it is not installed, or it failed; the last lines it wrote are in the message.
    """
    words = [os.fspath(word) for word in command]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=cwd, env=env)
    except FileNotFoundError as error:
        raise HarnessError(f"{words[0]!r} is not installed; run packaging/setup/system-packages vm") from error
    if done.returncode:
        last = " | ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-3:])
        raise HarnessError(f"{' '.join(words[:4])!r} ended with status {done.returncode}: {last}")
    return done.stdout


def codename() -> str:
    """The Debian release of this machine, such as ``bookworm``."""
    text = Path("/etc/os-release").read_text()
    found = re.search(r"^VERSION_CODENAME=\"?([a-z]+)", text, re.MULTILINE)
    if not found:
        raise HarnessError("/etc/os-release has no VERSION_CODENAME; the matrix is built from Debian's packages")
    return found[1]


def compare_versions(left: str, right: str) -> int:
    """Order two Debian versions as dpkg does: negative, zero or positive."""
    if left == right:
        return 0
    status = subprocess.run(["dpkg", "--compare-versions", left, "lt", right], check=False).returncode
    return -1 if status == 0 else 1


def newest(found: Iterable[Available], prefix: str = "") -> Available | None:
    """The highest version that starts with ``prefix``, or None."""
    best: Available | None = None
    for one in found:
        if one.version.startswith(prefix) and (best is None or compare_versions(one.version, best.version) > 0):
            best = one
    return best


def parse_madison(text: str) -> list[Available]:
    """Read ``apt-cache madison``: package, version and source between bars."""
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 3:
            found.append(Available(fields[0], fields[1]))
    return found


def pinned_dependencies(text: str, version: str) -> list[str]:
    """Packages of the same source at the same version that a package's record depends on."""
    found: list[str] = []
    for line in text.splitlines():
        if line.startswith(("Depends:", "Pre-Depends:")):
            found += re.findall(rf"([a-z0-9.+-]+) \(= {re.escape(version)}\)", line)
    return found


class Archive:
    """The mirror's suites, seen through an apt of our own.

    Args:
        directory: Where lists and downloads are kept.
        say: Called with one line per slow step.
    """

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self.directory = directory
        self._say = say
        self._updated = False

    @property
    def mirror(self) -> str:
        """The address of this machine's mirror of its own release."""
        return self._addresses()[0]

    def _addresses(self) -> tuple[str, str | None]:
        """The mirror of the release, and of its security suite where apt has one."""
        listing = run(["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"])
        by_suite: dict[str, str] = {}
        for line in listing.splitlines():
            suite, _, address = line.partition(" ")
            by_suite.setdefault(suite, address)
        name = codename()
        if name not in by_suite:
            raise HarnessError(f"apt knows no mirror of {name}; add one to /etc/apt/sources.list.d")
        return by_suite[name], by_suite.get(f"{name}-security")

    def _options(self) -> list[str]:
        settings = {
            "Dir::State": self.directory / "state",
            "Dir::State::status": self.directory / "status",
            "Dir::Cache": self.directory / "cache",
            "Dir::Etc::SourceList": self.directory / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::Etc::Preferences": "-",
            "Dir::Etc::PreferencesParts": "-",
            "APT::Sandbox::User": "root",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
        }
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def update(self) -> None:
        """Read the suites' package lists, once per run."""
        if self._updated:
            return
        self._say("reading the package lists of " + ", ".join(SUITES))
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        (self.directory / "status").touch()
        main, security = self._addresses()
        sources = [f"deb [signed-by={KEYRING}] {main} {suite} main" for suite in SUITES]
        if security:
            sources += [f"deb [signed-by={KEYRING}] {security} {suite}-security main" for suite in SECURED]
        (self.directory / "sources.list").write_text("\n".join(sources) + "\n")
        # A suite that moved to the archive must not keep the others away: what
        # could not be read shows as a package that is not there.
        try:
            run(["apt-get", *self._options(), "-q", "update"])
        except HarnessError as error:
            self._say(f"some package lists could not be read: {error}")
        self._updated = True

    def versions(self, package: str) -> list[Available]:
        """Every version of a package in every suite."""
        self.update()
        return parse_madison(run(["apt-cache", *self._options(), "madison", package]))

    def record(self, wanted: Available) -> str:
        """The package's paragraph in the lists."""
        self.update()
        return run(["apt-cache", *self._options(), "show", f"{wanted.package}={wanted.version}"])

    def unpack(self, wanted: Available, target: Path) -> None:
        """Download one package, verified by apt, and lay its files out under ``target``."""
        self.update()
        downloads = self.directory / "download"
        shutil.rmtree(downloads, ignore_errors=True)
        downloads.mkdir(parents=True)
        run(["apt-get", *self._options(), "-q", "download", f"{wanted.package}={wanted.version}"], cwd=downloads)
        target.mkdir(parents=True, exist_ok=True)
        for archive in downloads.glob("*.deb"):
            run(["dpkg-deb", "--extract", archive, target])
        shutil.rmtree(downloads)
