"""Write requirements.txt, the very files that go into the Debian package: ``python packaging/deb/lock.py``.

Resolves the dependencies in pyproject.toml for every Python the package is built
for, with one version of each, and notes the hash of each wheel that was chosen.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TARGET = Path(__file__).with_name("requirements.txt")
PYTHONS = ("3.11", "3.13")
#: Nobody installs an extra into a Debian package: it has all that a host's user sees.
EXTRAS = ("dashboards", "tui")
MACHINES = ("x86_64", "aarch64")
HEAD = """\
# What the Debian package carries, made by packaging/deb/lock.py from pyproject.toml; a test says when it is behind.
"""


def resolve(python: str, machine: str, wanted: list[str], constraints: list[str]) -> list[dict[str, Any]]:
    """Every distribution that pip would install for a Python and a machine, as pip reports it."""
    platforms = [word for name in ("manylinux_2_28", "manylinux2014") for word in ("--platform", f"{name}_{machine}")]
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"),
        *("--only-binary", ":all:", "--target", "/nonexistent", "--python-version", python, *platforms),
        *(["--constraint", "/dev/stdin"] if constraints else []),
        *wanted,
    ]
    # Only what the index has: a wheel that lies on this machine has another hash.
    environment = {name: value for name, value in os.environ.items() if name != "PIP_FIND_LINKS"}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, input="\n".join(constraints), text=True, env=environment
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return found


def main() -> int:
    """Resolve and write."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [one for name in EXTRAS for one in project["optional-dependencies"][name]]
    hashes: dict[str, set[str]] = {}
    for python, machine in itertools.product(PYTHONS, MACHINES):
        for one in resolve(python, machine, wanted, sorted(hashes)):
            metadata = one["metadata"]
            pin = f"{metadata['name'].lower().replace('_', '-')}=={metadata['version']}"
            hashes.setdefault(pin, set()).add(one["download_info"]["archive_info"]["hashes"]["sha256"])
    lines = [
        " \\\n".join([pin, *(f"    --hash=sha256:{one}" for one in sorted(hashes[pin]))]) for pin in sorted(hashes)
    ]
    TARGET.write_text(HEAD + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
