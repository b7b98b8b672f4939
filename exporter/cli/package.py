"""``skep package``: an ordinary container image that holds skep and one program, made without a container engine."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.cli.progress import steps
from exporter.cli.progress import transfer as shown_transfer
from exporter.errors import ConfigError, SkepError

if TYPE_CHECKING:
    from exporter.image import Reference, Store
    from exporter.image.container import Entry, Layer

_PROGRAM = "skep/image"
_CONFIG = "etc/skep/agent.yaml"
_PORT = 19435


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``package``."""
    parser = subparsers.add_parser(
        "package",
        help="make a container image that runs one program",
        description="Make an ordinary container image with this skep, the interpreter and libraries it runs on, and "
        "one program, for this machine's architecture. Started as it is, it serves the program's metrics; with the "
        "words 'run /skep/image' it prints them. Nothing is fetched but the program; no container engine is needed.",
    )
    parser.add_argument("reference", metavar="REF", help="image, catalog:NAME, layout or .o file")
    parser.add_argument("image", metavar="IMAGE", nargs="?", default="", help="what the container image is called")
    parser.add_argument("-t", "--tag", metavar="IMAGE", default="", help="the same, as docker build has it")
    parser.add_argument(
        "--output",
        "-o",
        metavar="FILE.tar|DIR",
        type=Path,
        help="archive for docker load and the like, or folder of an OCI layout (default: the image's name and .tar)",
    )
    parser.add_argument(
        "--store", "--storage", metavar="DIR", type=Path, help="where images are kept (default: this user's)"
    )
    parser.set_defaults(run=_package)


def _package(args: argparse.Namespace) -> int:
    from exporter.image import ReferenceKind, Store, default_store_path, host_architecture, parse_reference
    from exporter.image.container import write_image

    if bool(args.image) == bool(args.tag):
        raise ConfigError("package needs one name for the container image, after REF or with --tag")
    name = parse_reference(args.image or args.tag)
    if name.kind is not ReferenceKind.REGISTRY or name.digest:
        raise ConfigError(f"{args.image or args.tag!r} cannot name a container image; must be HOST/PATH[:TAG]")
    program = parse_reference(args.reference)
    target = args.output or Path(f"{name.default_name}.tar")
    if target.suffix != ".tar" and target.exists():
        raise SkepError(f"folder {str(target)!r} exists; name another, or remove it", code="package.exists")
    store = Store(args.store or default_store_path())
    created = _created()
    with tempfile.TemporaryDirectory(prefix="skep-package-") as text, steps(name.default_name) as step:
        work = Path(text)
        step("taking the program")
        content, title = _program(program, store, work)
        step("packing skep and what it runs on")
        layers, libraries = _layers(work, content)
        step("writing the image")
        variables = ["PATH=/opt/skep/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1"]
        if libraries:
            variables.append(f"LD_LIBRARY_PATH={':'.join(libraries)}")
        digest = write_image(
            target,
            name,
            layers,
            architecture=host_architecture(),
            created=created,
            runs={
                "Entrypoint": ["/opt/skep/bin/python", "-m", "exporter"],
                "Cmd": ["agent", f"--config.file=/{_CONFIG}"],
                "Env": variables,
                "ExposedPorts": {f"{_PORT}/tcp": {}},
                "WorkingDir": "/",
                "Labels": {"org.opencontainers.image.title": title, "skep.program": str(program)},
            },
        )
    print(f"{name} {digest} {target}")
    if target.suffix == ".tar":
        print(f"  docker load -i {target}    or podman load -i {target}", file=sys.stderr)
    print(f"  docker run --rm --privileged --pid=host -p {_PORT}:{_PORT} {name}", file=sys.stderr)
    print(f"  docker run --rm --privileged --pid=host {name} run /{_PROGRAM}", file=sys.stderr)
    return 0


def _created() -> datetime:
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(text), UTC) if text.isdecimal() and len(text) < 12 else datetime.now(UTC)


def _program(reference: Reference, store: Store, work: Path) -> tuple[list[Entry], str]:
    """The program as a layout for the container, and the configuration that runs it."""
    from exporter.agent.program import plan_bundle
    from exporter.config import ImageConfig
    from exporter.image import ReferenceKind, copy_image, fetch, host_architecture, parse_reference
    from exporter.image.archive import open_source
    from exporter.image.container import Entry
    from exporter.image.store import Store as Layout
    from exporter.resources import catalog_dir

    with shown_transfer("pull") as progress:
        bundle = fetch(reference, store=store, progress=progress)
    # What cannot be planned is told here and not by a container that ends at once.
    plan = plan_bundle(bundle, ImageConfig(name=reference.default_name, ref=str(reference)))
    layout = Layout(work / "layout")
    inside = parse_reference(f"oci:/{_PROGRAM}:{reference.default_name}")
    if reference.kind is ReferenceKind.FILE:
        layout.add(inside, {host_architecture(): bundle.object})
    else:
        place = store.path
        if reference.kind is ReferenceKind.CATALOG:
            place = catalog_dir()
        elif reference.kind is ReferenceKind.LAYOUT:
            place = Path(reference.path)
        with open_source(place) as source:
            copy_image(source, bundle.digest, inside, store=layout)
    files = sorted(path for path in layout.path.rglob("*") if path.is_file() and not path.name.startswith("."))
    entries = [Entry(f"{_PROGRAM}/{path.relative_to(layout.path)}", path.read_bytes(), mode=0o644) for path in files]
    # JSON is YAML; quotes need no thought.
    config = {"images": [{"name": reference.default_name, "ref": str(inside)}]}
    entries.append(Entry(_CONFIG, (json.dumps(config, indent=2) + "\n").encode(), mode=0o644))
    return entries, plan.description or reference.default_name


def _layers(work: Path, program: list[Entry]) -> tuple[list[Layer], list[str]]:
    from exporter.cli.environment import environment
    from exporter.image.container import write_layer

    try:
        entries, libraries = environment()
        return [
            write_layer(work / "skep.tar.gz", entries, comment="skep and what it runs on"),
            write_layer(work / "program.tar.gz", program, comment="the program"),
        ], libraries
    except OSError as error:
        raise SkepError(
            f"layer cannot be written: {error.strerror}: {error.filename!r}; is there room in {str(work.parent)!r}?",
            code="package.layer",
        ) from error
