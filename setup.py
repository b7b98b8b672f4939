"""Native extensions, and the data files that travel inside the package.

Sources live in ``_native/``; each built extension is installed inside the one
package that may import it. Shared files (BPF header, catalog, dashboards) are
read from the repository in a checkout and from ``exporter/share`` once installed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
LIBBPF_AT_LEAST = "1.4"

SHARED = {
    "include": ROOT / "_native" / "skep.bpf.h",
    "catalog": ROOT / "build" / "catalog",
    "dashboards": ROOT / "dashboards",
    "templates": ROOT / "configs" / "templates",
    "agent.yaml": ROOT / "configs" / "agent.yaml",
    "agent.schema.json": ROOT / "configs" / "agent.schema.json",
}


def pkg_config(package: str, *arguments: str) -> list[str]:
    """Ask pkg-config about a package, or say what to install."""
    try:
        done = subprocess.run(["pkg-config", *arguments, package], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"building skep needs {package} >= {LIBBPF_AT_LEAST} and pkg-config: {error}; "
            "run packaging/setup/system-packages run"
        ) from error
    return done.stdout.split()


class BuildWithShare(build_py):
    """Copy the shared files into the built package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        # A source archive brings the objects with it, so that a wheel is made of it without clang.
        if not ((ROOT / "PKG-INFO").is_file() and (ROOT / "build/catalog/index.json").is_file()):
            catalog = [sys.executable, "-m", "exporter.cli.build", "--catalog", "configs/catalog", "build/catalog"]
            subprocess.run(catalog, cwd=ROOT, check=True)
        share = Path(self.build_lib) / "exporter" / "share"
        for name, source in SHARED.items():
            target = share / name
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*lock"))
            elif source.is_file():
                if name == "include":
                    target = target / source.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


def extensions() -> list[Extension]:
    """Every native module; sanitizers come in by SKEP_CFLAGS."""
    flags = ["-O2", "-g", "-Wall", "-Wextra", "-Wno-unused-parameter", *os.environ.get("SKEP_CFLAGS", "").split()]
    link = os.environ.get("SKEP_CFLAGS", "").split()
    pkg_config("libbpf", f"--atleast-version={LIBBPF_AT_LEAST}")
    libbpf = pkg_config("libbpf", "--cflags", "--libs")
    common = {
        "include_dirs": ["_native"],
        "extra_compile_args": flags + [flag for flag in libbpf if flag.startswith("-I")],
        "extra_link_args": link,
    }

    def extension(module: str, *sources: str, libraries: tuple[str, ...] = ()) -> Extension:
        return Extension(module, [f"_native/{source}" for source in sources], libraries=list(libraries), **common)

    return [
        extension("exporter.kernel._libbpf", "_libbpf.pyx", libraries=("bpf",)),
        extension("exporter.kernel._reader", "_reader.pyx", "rows.c", "ring.c", "perf.c", "storage.c"),
        extension("exporter.collect._frame", "_frame.pyx", "frame.c", "labels.c", "records.c"),
        extension("exporter.export._encode", "_encode.pyx", "encode.c"),
        extension("exporter.export._sent", "_sent.pyx", "sent.c"),
    ]


setup(
    # A source archive leaves out all of setuptools' own build folder, which by default would be all of build/.
    options={"build": {"build_base": "build/setuptools"}},
    ext_modules=cythonize(
        extensions(),
        build_dir="build/cython",
        language_level=3,
        compiler_directives={"binding": True, "embedsignature": True},
    ),
    cmdclass={"build_py": BuildWithShare},
)
