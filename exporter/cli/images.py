"""``skep pull``, ``push``, ``list``, ``tag``, ``images``: images between registries, store, archives and a reader."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.cli.progress import transfer
from exporter.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from exporter.config import RegistryConfig
    from exporter.image import Digest, Reference, Store, StoredImage

STATE_FILE = "agent-state.json"
_STATE_LIMIT = 16 << 20
_STATE_KEYS = ("name", "ref", "state", "reason", "digest")

Subparsers = argparse._SubParsersAction


def register(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the verbs."""
    pull = subparsers.add_parser(
        "pull",
        help="fetch an image from its registry into the store",
        description="Fetch an image, verify every byte, store it, and print its reference pinned by digest.",
    )
    pull.add_argument("reference", metavar="REF", help="HOST/PATH[:TAG][@sha256:…]")
    pull.add_argument(
        "--all-architectures", action="store_true", help="not only this machine's, as pushing it elsewhere needs"
    )
    pull.add_argument("--architecture", metavar="ARCH", default="", help="instead of this machine's, such as arm64")
    _add_transfer_options(pull)
    pull.set_defaults(run=_pull)

    push = subparsers.add_parser(
        "push",
        help="copy an image from the store to its registry",
        description="Copy an image to its registry, read it back, and print its reference pinned by digest.",
    )
    push.add_argument("reference", metavar="REF", help="HOST/PATH[:TAG], as it was built or pulled")
    _add_transfer_options(push)
    push.set_defaults(run=_push)

    _add_list(
        subparsers,
        "show the images of the store, and what the agent does with them",
        "Show every stored version of every image, and the state of the agent's images where there is one.",
    )

    tag = subparsers.add_parser(
        "tag",
        help="give an image a second name",
        description="Let another name mean an image of the store, of the shipped catalog (catalog:NAME) or of a layout "
        "(oci:DIR:NAME), so that it can be pushed elsewhere. A name that means another image already is only moved "
        "with --force; what it meant is kept until it is pruned.",
    )
    tag.add_argument("source", metavar="SRC", help="image of the store, catalog:NAME or oci:DIR[:NAME]")
    tag.add_argument("reference", metavar="DST", help="HOST/PATH[:TAG]")
    tag.add_argument("--force", "-f", action="store_true", help="also if DST means another image")
    _add_store_options(tag)
    tag.set_defaults(run=_tag)

    _add_images(subparsers)


def _add_list(subparsers: Subparsers[argparse.ArgumentParser], help_: str, description: str) -> None:
    listing = subparsers.add_parser("list", help=help_, description=description)
    listing.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        default="",
        help="only names that have this in them; * and ? as in a shell",
    )
    listing.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    listing.add_argument("--quiet", "-q", action="store_true", help="only references pinned by digest, one a line")
    _add_store_options(listing)
    listing.set_defaults(run=_list)


def _add_images(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    images = subparsers.add_parser(
        "images",
        help="remove, prune, export and import the images of the store",
        description="What else is done with the images of the store; skep list shows them.",
    )
    verbs = images.add_subparsers(title="verbs", metavar="VERB", dest="images_verb", required=True)
    _add_list(verbs, "show them, as skep list does", "Show every stored version of every image.")

    remove = verbs.add_parser(
        "rm",
        help="remove images",
        description="Remove names with all their kept versions, or by digest one version, and the blobs that nothing "
        "else names. What the agent runs is refused.",
    )
    remove.add_argument("references", metavar="REF", nargs="+", help="as skep list shows it, or pinned by digest")
    _add_store_options(remove)
    remove.set_defaults(run=_remove)

    prune = verbs.add_parser(
        "prune",
        help="remove versions that nothing names any more",
        description="Keep the newest versions of each image, and what the agent runs; remove the others and all blobs "
        "that nothing names, such as those of a pull that was interrupted.",
    )
    prune.add_argument(
        "--keep", metavar="N", type=_positive, default=1, help="versions of each image that stay (default: 1)"
    )
    _add_store_options(prune)
    prune.set_defaults(run=_prune)

    export = verbs.add_parser(
        "export",
        help="copy images into an archive or folder, for a machine without a network",
        description="Copy images into an OCI layout: one tar archive if the name ends in .tar, else a folder. "
        "skep images import reads both, and so does skopeo. Equal images make equal archives.",
    )
    export.add_argument("references", metavar="REF", nargs="*", help="images of the store")
    export.add_argument("--all", action="store_true", help="all images of the store")
    export.add_argument("--output", "-o", metavar="FILE.tar|DIR", type=Path, required=True, help="where to")
    _add_store_options(export)
    export.set_defaults(run=_export)

    import_ = verbs.add_parser(
        "import",
        help="copy images from an archive or folder into the store",
        description="Copy the images of an OCI layout (a folder, .tar or .tar.gz) into the store. Every blob is "
        "hashed, and what skep cannot run is refused, as in a pull.",
    )
    import_.add_argument("path", metavar="FILE.tar|DIR", type=Path, help="made by skep images export, skopeo or oras")
    import_.add_argument(
        "--as",
        metavar="REF",
        dest="reference",
        default="",
        help="what its one image is to be called, instead of its name",
    )
    _add_store_options(import_)
    import_.set_defaults(run=_import)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) == int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no count; must be 1 or more")
    return int(text)


def _add_store_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", "--storage", metavar="DIR", type=Path, help="where images are kept (default: this user's)"
    )
    parser.add_argument(
        "--config.file",
        metavar="FILE",
        type=Path,
        dest="config_file",
        help="take 'store' and 'registries' from an agent's configuration",
    )


def _add_transfer_options(parser: argparse.ArgumentParser) -> None:
    _add_store_options(parser)
    add_registry_options(parser)
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=300.0, help="for all of it (default: 300)"
    )


def add_registry_options(parser: argparse.ArgumentParser) -> None:
    """What :func:`registry_settings` reads."""
    parser.add_argument("--plain-http", action="store_true", help="speak HTTP to this registry; loopback needs no flag")
    parser.add_argument("--ca-file", metavar="FILE", default="", help="trust these authorities too")
    parser.add_argument(
        "--auth-file", metavar="FILE", default="", help="Docker config.json with credentials, instead of the default"
    )
    parser.add_argument("--config-dir", metavar="DIR", default="", help="the folder of --auth-file's config.json")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from above 0 to 86400")
    return value


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a verb works: what the flags and the configuration amount to."""

    store: Store
    registries: Mapping[str, RegistryConfig]


def _places(args: argparse.Namespace) -> _Places:
    from exporter.config import config_files, load
    from exporter.image import Store, default_store_path

    path, registries = args.store, {}
    if args.config_file:
        config = load(config_files(args.config_file))
        registries = dict(config.registries)
        path = path or config.store.path
    return _Places(Store(path or default_store_path()), registries)


def _transfer(args: argparse.Namespace) -> tuple[Reference, _Places]:
    """The reference and the settings for its registry; flags win over the configuration."""
    from exporter.image import parse_reference

    reference = parse_reference(args.reference)
    places = _places(args)
    return reference, replace(places, registries=registry_settings(args, reference, places.registries))


def registry_settings(
    args: argparse.Namespace, reference: Reference, registries: Mapping[str, RegistryConfig]
) -> dict[str, RegistryConfig]:
    """The configuration's registries, with the flags of :func:`add_registry_options` for this reference's."""
    from exporter.config import RegistryConfig

    key = next((name for name in (reference.registry, reference.api_host) if name in registries), "")
    config = registries.get(key, RegistryConfig())
    auth_file = args.auth_file or (str(Path(args.config_dir) / "config.json") if args.config_dir else "")
    config = replace(
        config,
        plain_http=args.plain_http or config.plain_http,
        ca_file=args.ca_file or config.ca_file,
        auth_file=auth_file or config.auth_file,
    )
    return {**registries, reference.registry: config}


def _pull(args: argparse.Namespace) -> int:
    from exporter.image import ALL_ARCHITECTURES, pull_image

    reference, places = _transfer(args)
    with transfer("pull") as progress:
        digest = pull_image(
            reference,
            store=places.store,
            registries=places.registries,
            architecture=ALL_ARCHITECTURES if args.all_architectures else args.architecture,
            deadline_s=args.timeout,
            progress=progress,
        )
    return _print_pinned(reference, digest)


def _push(args: argparse.Namespace) -> int:
    from exporter.image.upload import push_image

    reference, places = _transfer(args)
    with transfer("push") as progress:
        digest = push_image(
            reference, store=places.store, registries=places.registries, deadline_s=args.timeout, progress=progress
        )
    return _print_pinned(reference, digest)


def _print_pinned(reference: Reference, digest: Digest) -> int:
    print(reference.pinned(digest))
    return 0


def _list(args: argparse.Namespace) -> int:
    store = _places(args).store
    stored = [image for image in store.list() if _matches(image.reference, args.pattern)]
    agent = read_agent_state(store.path)
    if agent is not None and args.pattern:
        agent = [
            image for image in agent if _matches(image["ref"], args.pattern) or _matches(image["name"], args.pattern)
        ]
    if args.quiet:
        for image in stored:
            name = image.reference.partition("@")[0]
            print(f"{name}@{image.digest}" if name else image.digest)
        return 0
    if args.json:
        document: dict[str, Any] = {"store": str(store.path), "images": [_as_json(image) for image in stored]}
        if agent is not None:
            document["agent"] = agent
        print(json.dumps(document, indent=2))
        return 0
    if agent:
        rows = [
            (image["name"], image["state"], image["ref"], _short(image["digest"]), image["reason"]) for image in agent
        ]
        print(table(("NAME", "STATE", "REFERENCE", "DIGEST", "REASON"), rows))
        if stored:
            print()
    if stored:
        headings = ("REFERENCE", "DIGEST", "ARCHITECTURES", "SIZE", "CREATED", "PULLED")
        print(table(headings, [_row(image) for image in stored]))
    if not stored and not agent:
        what = f"no image in {str(store.path)!r} is like {args.pattern!r}" if args.pattern else ""
        print(f"skep: {what or f'no images in {str(store.path)!r}; build or pull one'}", file=sys.stderr)
    return 0


def _matches(name: str, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(name, f"*{pattern}*")


def _tag(args: argparse.Namespace) -> int:
    from exporter.image import ReferenceKind, parse_reference

    target = parse_reference(args.reference)
    if target.kind is not ReferenceKind.REGISTRY or target.digest:
        raise ConfigError(f"DST is {args.reference!r}; must be HOST/PATH[:TAG], as a registry calls it")
    places = _places(args)
    source, digest = _stored(args.source, places.store)
    before = places.store.resolve(target)
    if before is not None and before.digest != digest:
        if not args.force:
            raise ImageError(
                f"image '{target}' means {before.digest.short} already; give --force to let it mean {digest.short}, "
                "or another name",
                code="img.tag_exists",
            )
        print(f"skep: image '{target}' meant {before.digest}; it is kept until it is pruned", file=sys.stderr)
    _copy(source, digest, target, places.store)
    return _print_pinned(target, digest)


def _stored(text: str, store: Store) -> tuple[Path, Digest]:
    """The layout an image lies in, and its digest there."""
    from exporter.image import ReferenceKind, Store, parse_reference
    from exporter.resources import catalog_dir

    reference = parse_reference(text)
    if reference.kind is ReferenceKind.FILE:
        raise ConfigError(f"{text!r} is an object and no image; make one of its source with skep build")
    layout = store
    if reference.kind is ReferenceKind.CATALOG:
        layout = Store(catalog_dir())
    elif reference.kind is ReferenceKind.LAYOUT:
        layout = Store(reference.path)
    root = layout.resolve(reference)
    if root is None:
        listed = ", ".join(repr(name) for name in layout.names()[:8]) or "nothing"
        raise ImageError(
            f"image '{reference}': not in {str(layout.path)!r}, which has {listed}; pull or build it first",
            code="img.not_present",
        )
    return layout.path, root.digest


def _copy(layout: Path, digest: Digest, reference: Reference, store: Store) -> None:
    from exporter.image import copy_image
    from exporter.image.archive import open_source

    with open_source(layout) as source:
        copy_image(source, digest, reference, store=store)


def _in_use(store: Store) -> list[Digest]:
    """What the agent of this store runs now."""
    from exporter.image import Digest

    return [Digest.parse(image["digest"]) for image in read_agent_state(store.path) or [] if image["digest"]]


def _remove(args: argparse.Namespace) -> int:
    from exporter.image import parse_reference

    store = _places(args).store
    references = [parse_reference(text) for text in args.references]
    used = _in_use(store)
    for reference in references:
        gone = store.forget(reference, used)
        if not gone:
            raise ImageError(f"image '{reference}': not in the store {str(store.path)!r}", code="img.not_present")
        _print_gone(gone)
    return 0


def _prune(args: argparse.Namespace) -> int:
    store = _places(args).store
    before = _blob_bytes(store)
    _print_gone(store.prune(args.keep, _in_use(store)))
    print(f"{size_text(before - _blob_bytes(store))} freed", file=sys.stderr)
    return 0


def _print_gone(images: Sequence[StoredImage]) -> None:
    for image in images:
        print(f"removed {printable(image.reference.partition('@')[0]) or '(unnamed)'}@{image.digest}")


def _blob_bytes(store: Store) -> int:
    return sum(path.stat().st_size for path in (store.path / "blobs" / "sha256").glob("*"))


def _export(args: argparse.Namespace) -> int:
    from exporter.image import ReferenceKind, parse_reference
    from exporter.image.archive import export_images

    store = _places(args).store
    if args.all == bool(args.references):
        raise ConfigError("export needs the images to export, or --all, and not both")
    named = [image.reference for image in store.list() if image.current] if args.all else args.references
    if not named:
        raise ImageError(f"no images in {str(store.path)!r}; build or pull one", code="img.not_present")
    images: dict[Reference, Digest] = {}
    for text in named:
        reference = parse_reference(text)
        if reference.kind is not ReferenceKind.REGISTRY:
            raise ConfigError(f"{text!r} is not in the store; give it a name there with skep tag, then export that")
        images[reference] = _stored(text, store)[1]
    export_images(images, args.output, store=store)
    for reference, digest in images.items():
        print(reference if reference.digest else reference.pinned(digest))
    return 0


def _import(args: argparse.Namespace) -> int:
    from exporter.image import ReferenceKind, copy_image, parse_reference
    from exporter.image.archive import open_source

    store = _places(args).store
    wanted = parse_reference(args.reference) if args.reference else None
    if wanted and (wanted.kind is not ReferenceKind.REGISTRY or wanted.digest):
        raise ConfigError(f"--as is {args.reference!r}; must be HOST/PATH[:TAG], as a registry calls it")
    with open_source(args.path) as source:
        images = source.images()
        if not images or (wanted and len(images) > 1):
            raise ImageError(
                f"{source.subject} holds {len(images)} images" + ("; --as is for one that holds one" if images else ""),
                code="img.archive",
            )
        for name, digest in images:
            # A name without a registry, such as a bare tag, would read as one of Docker Hub's.
            if wanted is None and "/" not in name:
                raise ImageError(
                    f"{source.subject}: image {digest.short} is called {name!r}, which names no registry; "
                    "say what to call it with --as HOST/PATH:TAG",
                    code="img.archive",
                )
            reference = wanted or parse_reference(name)
            if reference.kind is not ReferenceKind.REGISTRY:
                raise ImageError(
                    f"{source.subject}: image is called {name!r}, which is no registry's; rename it with --as",
                    code="img.archive",
                )
            copy_image(source, digest, reference, store=store)
            print(reference if reference.digest else reference.pinned(digest))
    return 0


def read_agent_state(store: Path) -> list[dict[str, str]] | None:
    """What the agent last wrote about its images; ``None`` when no agent uses this store.

    Raises:
        ImageError: ``img.agent_state``: the file is there and is not the agent's.
    """
    from exporter.image.formats import strict_json

    path = store / STATE_FILE
    try:
        with path.open("rb") as file:
            raw = file.read(_STATE_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as cause:
        raise ImageError(
            f"agent state {str(path)!r} cannot be read: {cause.strerror}; run as its owner", code="img.agent_state"
        ) from cause
    subject = f"agent state {str(path)!r}"
    body = strict_json(raw, subject=subject, code="img.agent_state")
    images = body.get("images") if isinstance(body, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise ImageError(f"{subject} has no list of images; restart the agent", code="img.agent_state")
    return [{key: str(image.get(key) or "") for key in _STATE_KEYS} for image in images]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart; what a stranger's image says cannot move the terminal's cursor."""
    cells = [list(headings), *([printable(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _row(image: StoredImage) -> tuple[str, ...]:
    name = image.reference.partition("@")[0] or "(unnamed)"
    return (
        name if image.current else f"{name} (kept)",
        image.digest.short,
        ",".join(image.architectures) or ("any" if image.complete else ""),
        size_text(image.size),
        image.created,
        image.pulled.partition(".")[0] + ("Z" if "." in image.pulled else ""),
    )


def _as_json(image: StoredImage) -> dict[str, Any]:
    return {**asdict(image), "digest": str(image.digest), "architectures": list(image.architectures)}


def _short(digest: str) -> str:
    return digest[:19] if digest.startswith("sha256:") else digest


def size_text(count: int) -> str:
    """Bytes for people."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def printable(text: str) -> str:
    """One line of a stranger's words that cannot move the cursor."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
