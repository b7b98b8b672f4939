"""``skep build``: one C file, or an object that exists, becomes an image; and how the shipped catalog is made.

What is built is also read back and planned, so that a struct which cannot be a
label, or an unknown tag, is refused here and not on the hosts.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter import resources
from exporter.cli.clang import (
    TARGET_MACROS,
    Clang,
    CompileError,
    Source,
    dump_vmlinux,
    fetching_atomics,
    first_error,
)
from exporter.cli.progress import steps
from exporter.errors import ConfigError, SkepError

if TYPE_CHECKING:
    from exporter.image import Digest
    from exporter.plan import Plan

_DESCRIPTION = "org.opencontainers.image.description"
_VERSION = "org.opencontainers.image.version"
_LICENSES = "org.opencontainers.image.licenses"
_CATALOG_LICENSE = "GPL-2.0-only OR BSD-2-Clause"
_CATALOG_FLAGS = ("-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror")
_STAMP = "skep-sources"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``build``."""
    parser = subparsers.add_parser(
        "build",
        help="make an image of one C file, or of an object that exists",
        description="Compile one eBPF C file and store it as an image, for amd64 and arm64 where the source allows it; "
        "an object, NAME.o, is stored as it is, with what --metadata says about it.",
    )
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="C file, or object NAME.o; with --catalog a folder of them"
    )
    parser.add_argument("reference", metavar="REF", nargs="?", help="name of the image; with --catalog the OCI layout")
    parser.add_argument("--metadata", metavar="FILE", type=Path, help="YAML that says what tags do not")
    parser.add_argument(
        "--architecture",
        metavar="ARCH",
        action="append",
        default=[],
        help="of an object: what machines it is for; repeatable (default: such as this one)",
    )
    parser.add_argument(
        "--btf", metavar="FILE", type=Path, help="types of kernels that do not show their own: BTF, or an archive of it"
    )
    parser.add_argument("--description", metavar="TEXT", default="", help="the image's description")
    parser.add_argument("--version", metavar="TEXT", default="", dest="image_version", help="the image's version")
    parser.add_argument("--cflags", metavar="FLAGS", action="append", default=[], help="flags for clang; repeatable")
    parser.add_argument(
        "-I", metavar="DIR", action="append", default=[], type=Path, dest="include_dirs", help="clang's"
    )
    parser.add_argument(
        "--mcpu", metavar="SET", default="v2", help="BPF instruction set; v3 needs Linux 5.12 (default: v2)"
    )
    parser.add_argument(
        "--vmlinux", metavar="ARCH:FILE", action="append", default=[], help="vmlinux.h of an architecture; repeatable"
    )
    parser.add_argument(
        "--output",
        "--output-file",
        "-o",
        metavar="FILE.o",
        type=Path,
        help="write this machine's object here; needs no REF",
    )
    parser.add_argument(
        "--binary-only", action="store_true", help="make no image, even if REF is given; needs --output"
    )
    parser.add_argument(
        "--local", "-l", action="store_true", help="compile with this machine's clang, as is always done"
    )
    parser.add_argument(
        "--store", "--storage", metavar="DIR", type=Path, help="where images are kept (default: this user's)"
    )
    parser.add_argument("--catalog", action="store_true", help="build all SRC/NAME/NAME.bpf.c into OCI layout REF")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.catalog:
        if not args.reference:
            raise ConfigError("--catalog needs the OCI layout to write to, after the folder of sources")
        build_catalog(args.source, Path(args.reference), say=print)
        return 0
    if args.binary_only and not args.output:
        raise ConfigError("--binary-only needs --output FILE.o, as nothing else would come out")
    if not args.reference and not args.output:
        raise ConfigError("build needs a name for the image (REF), or --output FILE.o for an object without one")
    from exporter.image import Store, default_store_path, parse_reference

    # Before clang runs: a misspelt name should not cost a build.
    reference = parse_reference(args.reference) if args.reference and not args.binary_only else None
    metadata = read_metadata(args.metadata) if args.metadata else {}
    types = _types(args.btf) if args.btf else b""
    built = (_given if args.source.suffix == ".o" else _compiled)(args, metadata)
    for line in summary(built.plan):
        print(line)
    if args.output:
        _write(args.output, built.objects[built.primary])
    if reference:
        annotations = {_DESCRIPTION: args.description or built.plan.description, _VERSION: args.image_version}
        store = Store(args.store or default_store_path())
        annotations = {key: text for key, text in annotations.items() if text}
        digest = store.add(reference, built.objects, metadata, annotations, types)
        print(f"{reference} {digest} ({', '.join(built.objects)})")
    return 0


def _given(args: argparse.Namespace, metadata: Mapping[str, Any]) -> Built:
    """An object that somebody else compiled."""
    from exporter.image import host_architecture
    from exporter.image.formats import normalise_architecture

    for name in ("cflags", "include_dirs", "vmlinux", "output"):
        if getattr(args, name):
            option = {"include_dirs": "-I"}.get(name, f"--{name}")
            raise ConfigError(f"{option} is for a C file, and {str(args.source)!r} is compiled already; leave it out")
    content = _existing(args.source, "object").read_bytes()
    words = [normalise_architecture(text) for text in args.architecture] or [host_architecture()]
    for word in words:
        if word not in TARGET_MACROS:
            raise ConfigError(f"--architecture {word!r}: expected one of {', '.join(TARGET_MACROS)}")
    source = Source(path=args.source)
    objects = dict.fromkeys(words, content)
    plan = _plan(source, objects, metadata)
    if functions := fetching_atomics(content):
        names = ", ".join(repr(name) for name in functions)
        _warn(f"object {args.source.name!r}: {names} has an atomic operation that kernels before 5.12 do not have")
    return Built(objects, words[0], plan)


def _compiled(args: argparse.Namespace, metadata: Mapping[str, Any]) -> Built:
    """What clang makes of a C file."""
    if args.architecture:
        raise ConfigError("--architecture is for an object NAME.o; a C file is compiled for all that it is good for")
    source = Source(
        path=_existing(args.source, "source"),
        include_dirs=tuple(_existing(path, "include folder") for path in args.include_dirs),
        cflags=tuple(word for flags in args.cflags for word in shlex.split(flags)),
        mcpu=args.mcpu,
        vmlinux=_vmlinux(args.vmlinux),
    )
    try:
        with steps(source.path.name) as step:
            return build(Clang(), source, metadata, warn=_warn, step=step)
    except CompileError as error:
        sys.stderr.write(error.diagnostics)
        raise


@dataclass(frozen=True, slots=True)
class Built:
    """What one source gave.

    Attributes:
        objects: Bytes by architecture, in OCI's spelling.
        primary: The architecture that was built first, this machine's where it is one that is built for.
        plan: What the image will export by itself.
    """

    objects: Mapping[str, bytes]
    primary: str
    plan: Plan


def build(
    clang: Clang,
    source: Source,
    metadata: Mapping[str, Any],
    *,
    warn: Callable[[str], None],
    step: Callable[[str], None] = lambda _: None,
) -> Built:
    """Compile, read back and plan one source for every architecture it is good for.

    Args:
        clang: The compiler.
        source: What to compile; ``skep.bpf.h`` is found by itself.
        metadata: The image's ``skep`` document, or empty.
        warn: Gets one line for each architecture that was left out, and why.
        step: Told what begins, for who waits.

    Raises:
        CompileError: for this machine, or where the other's ``vmlinux.h`` was given.
        SkepError: the object cannot be loaded by the kernels asked for, or planned.
    """
    from exporter.image import host_architecture

    source = replace(source, include_dirs=(*source.include_dirs, resources.include_dir()))
    host = host_architecture()
    primary = host if host in TARGET_MACROS else "amd64"
    with tempfile.TemporaryDirectory(prefix="skep-vmlinux-") as work:
        step(f"compiling for {primary}")
        source, objects = _compile_first(clang, source, primary, Path(work), warn)
        for other in TARGET_MACROS:
            if other == primary:
                continue
            step(f"compiling for {other}")
            content = _compile_other(clang, source, primary, other, warn)
            if content is not None:
                objects[other] = content
    step("planning what it exports")
    for content in objects.values():
        _check_instructions(source, content)
    return Built(objects, primary, _plan(source, objects, metadata))


def _compile_first(
    clang: Clang, source: Source, architecture: str, work: Path, warn: Callable[[str], None]
) -> tuple[Source, dict[str, bytes]]:
    from exporter.image import host_architecture

    try:
        return source, {architecture: clang.compile(source, architecture)}
    except CompileError as error:
        made = work / "vmlinux.h"
        if (
            "'vmlinux.h' file not found" not in error.diagnostics
            or architecture != host_architecture()
            or not dump_vmlinux(made)
        ):
            raise
    warn(f"{source.subject}: vmlinux.h made from this kernel; give --vmlinux for a build that others can repeat")
    source = replace(source, vmlinux={**source.vmlinux, architecture: made})
    return source, {architecture: clang.compile(source, architecture)}


def _compile_other(clang: Clang, source: Source, primary: str, other: str, warn: Callable[[str], None]) -> bytes | None:
    if other in source.vmlinux:
        return clang.compile(source, other, warnings=False)
    if readers := clang.register_readers(source, primary):
        names = ", ".join(repr(name) for name in readers)
        warn(
            f"{source.subject}: function{'s'[: len(readers) != 1]} {names} read{'s'[len(readers) != 1 :]} registers, "
            f"which differ on {other}; built for {primary} only, give --vmlinux={other}:FILE to build both"
        )
        return None
    # No registers: types of the first architecture serve, as their offsets are relocated on the host.
    if primary in source.vmlinux:
        source = replace(source, vmlinux={**source.vmlinux, other: source.vmlinux[primary]})
    try:
        return clang.compile(source, other, warnings=False)
    except CompileError as error:
        warn(f"{source.subject}: built for {primary} only; for {other} clang says {first_error(error)!r}")
        return None


def _check_instructions(source: Source, content: bytes) -> None:
    functions = fetching_atomics(content)
    if functions and source.mcpu in ("v1", "v2"):
        names = ", ".join(repr(name) for name in functions)
        raise SkepError(
            f"{source.subject}: {names} has an atomic operation that kernels before 5.12 do not have (its value is "
            "used, or it is no addition); do not use its value, or say --mcpu=v3",
            code="build.instructions",
        )


def _plan(source: Source, objects: Mapping[str, bytes], metadata: Mapping[str, Any]) -> Plan:
    """Plan every object; they must export the same, or what a host shows would hang on its processor."""
    from exporter.bpf import read_object
    from exporter.config import ImageConfig
    from exporter.plan import make_plan

    config = ImageConfig(name=source.path.stem.removesuffix(".bpf"), ref=str(source.path))
    plans = {
        name: make_plan(read_object(content), config=config, version="", metadata=metadata, possible_cpus=1)
        for name, content in objects.items()
    }
    first, *others = plans.values()
    for name, other in zip(list(plans)[1:], others, strict=True):
        if (other.tables, other.streams) != (first.tables, first.streams):
            raise SkepError(
                f"{source.subject}: exports something else on {name} than on {next(iter(plans))}; "
                "make keys, values and tags independent of the architecture",
                code="build.architectures",
            )
    return first


def summary(plan: Plan) -> list[str]:
    """Say in a few lines what an image exports."""
    lines = []
    for table in plan.tables:
        labels = ",".join([label.name for label in table.labels] + [name for name, _ in table.constant_labels])
        for metric in table.metrics:
            instrument = metric.instrument
            lines.append(f"{instrument.kind.value:9} {instrument.prometheus_name}{f'{{{labels}}}' if labels else ''}")
    for stream in plan.streams:
        if stream.metrics_only:
            continue
        names = ",".join(attribute.name for attribute in (*stream.attributes, *filter(None, [stream.tail])))
        lines.append(f"{'event':9} {stream.event_name}{{{names}}}{'' if stream.enabled else ' (off)'}")
    if not lines:
        lines.append("exports nothing: no map has a kind; name one counter_x, or tag it SKEP_COUNTER")
    return lines


def read_metadata(path: Path) -> dict[str, Any]:
    """Read a metadata document; what its keys mean is the plan's business.

    Raises:
        ConfigError: not there, not YAML, or not a mapping.
    """
    import yaml

    try:
        document = yaml.safe_load(_existing(path, "metadata").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = {"line": mark.line + 1, "column": mark.column + 1} if mark else {"line": 0, "column": 0}
        text = getattr(error, "problem", None) or "not UTF-8"
        raise ConfigError(f"not YAML: {text}", file=str(path), **where) from error
    if not isinstance(document, dict):
        raise ConfigError(f"metadata is {document!r:.60}; expected a mapping", file=str(path))
    return document


def build_catalog(sources: Path, layout: Path, *, say: Callable[[str], None]) -> bool:
    """Build every ``NAME/NAME.bpf.c`` for all architectures into an OCI layout; nothing if no source changed.

    The layout is made beside the old one and takes its place whole.

    Returns:
        Whether anything was built.

    Raises:
        SkepError: one does not build, or not for every architecture.
    """
    names = sorted(path.parent.name for path in _existing(sources, "catalog").glob("*/*.bpf.c"))
    if not names:
        raise ConfigError(f"catalog {str(sources)!r} has no NAME/NAME.bpf.c")
    clang = Clang()
    stamp = _fingerprint(sources, clang)
    if (layout / _STAMP).is_file() and (layout / _STAMP).read_text() == stamp:
        return False
    layout.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{layout.name}-", dir=layout.parent) as work:
        fresh = Path(work) / "layout"
        for name in names:
            digest = _build_shipped(clang, sources / name, fresh)
            say(f"catalog:{name} {digest}")
        (fresh / _STAMP).write_text(stamp)
        if layout.exists():
            layout.rename(Path(work) / "old")
        fresh.rename(layout)
    return True


def _build_shipped(clang: Clang, folder: Path, layout: Path) -> Digest:
    from exporter.image import Store, parse_reference

    name = folder.name
    path = folder / "metadata.yaml"
    metadata = read_metadata(path) if path.exists() else {}
    source = Source(_existing(folder / f"{name}.bpf.c", "source"), cflags=_CATALOG_FLAGS)
    try:
        built = build(clang, source, metadata, warn=_warn)
    except CompileError as error:
        sys.stderr.write(error.diagnostics)
        raise
    missing = [architecture for architecture in TARGET_MACROS if architecture not in built.objects]
    if missing:
        raise SkepError(
            f"{source.subject}: not built for {', '.join(missing)}; "
            f"a shipped image is built for {', '.join(TARGET_MACROS)}",
            code="build.architectures",
        )
    annotations = {_DESCRIPTION: built.plan.description, _VERSION: resources.version(), _LICENSES: _CATALOG_LICENSE}
    return Store(layout).add(parse_reference(f"catalog:{name}"), built.objects, metadata, annotations)


def _fingerprint(sources: Path, clang: Clang) -> str:
    """A digest of all that the catalog's bytes depend on."""
    digest = hashlib.sha256(f"{clang.version}\n{resources.version()}\n{sorted(TARGET_MACROS)}\n".encode())
    own = Path(__file__).parent
    files: Iterable[Path] = sorted(path for path in sources.rglob("*") if path.is_file())
    for path in (*files, resources.include_dir() / "skep.bpf.h", own / "build.py", own / "clang.py"):
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest() + "\n"


def _vmlinux(options: Iterable[str]) -> dict[str, Path]:
    from exporter.image.formats import normalise_architecture

    found = {}
    for option in options:
        before, colon, after = option.partition(":")
        architecture = normalise_architecture(before) if before != "x86" else "amd64"
        if not colon or architecture not in TARGET_MACROS:
            raise ConfigError(f"--vmlinux={option!r}: expected ARCH:FILE with ARCH one of {', '.join(TARGET_MACROS)}")
        found[architecture] = _existing(Path(after), "vmlinux.h")
    return found


def _existing(path: Path, subject: str) -> Path:
    if not path.exists():
        raise ConfigError(f"{subject} {str(path)!r} does not exist")
    return path


def _types(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SkepError(f"btf {str(path)!r} cannot be read: {error.strerror}", code="build.btf") from error
    if content[:2] != b"\x9f\xeb" and not tarfile.is_tarfile(path):
        raise SkepError(
            f"btf {str(path)!r} starts {content[:8]!r}; expected BTF, or a tar archive of it", code="build.btf"
        )
    return content


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise SkepError(f"object {str(path)!r} cannot be written: {error.strerror}", code="build.output") from error


def _warn(line: str) -> None:
    print(f"skep: {line}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run ``build`` alone, as the Makefile does before the native modules exist."""
    parser = argparse.ArgumentParser(prog="skep")
    register(parser.add_subparsers(required=True))
    args = parser.parse_args(["build", *(sys.argv[1:] if argv is None else argv)])
    try:
        return int(args.run(args))
    except SkepError as error:
        for line in str(error).splitlines():
            _warn(line)
        return 1


if __name__ == "__main__":
    sys.exit(main())
