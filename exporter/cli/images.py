"""``skep pull``, ``skep push``, ``skep list``: images between a registry, the store and a reader."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import ImageError

if TYPE_CHECKING:
    from exporter.config import RegistryConfig
    from exporter.image import Digest, Reference, Store, StoredImage

STATE_FILE = "agent-state.json"
_STATE_LIMIT = 16 << 20
_STATE_KEYS = ("name", "ref", "state", "reason", "digest")

Subparsers = argparse._SubParsersAction


def register(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the three verbs."""
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

    listing = subparsers.add_parser(
        "list",
        help="show the images of the store, and what the agent does with them",
        description="Show every stored version of every image, and the state of the agent's images where there is one.",
    )
    listing.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    _add_store_options(listing)
    listing.set_defaults(run=_list)


def _add_store_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", metavar="DIR", type=Path, help="where images are kept (default: this user's)")
    parser.add_argument(
        "--config.file",
        metavar="FILE",
        type=Path,
        dest="config_file",
        help="take 'store' and 'registries' from an agent's configuration",
    )


def _add_transfer_options(parser: argparse.ArgumentParser) -> None:
    _add_store_options(parser)
    parser.add_argument("--plain-http", action="store_true", help="speak HTTP to this registry; loopback needs no flag")
    parser.add_argument("--ca-file", metavar="FILE", default="", help="trust these authorities too")
    parser.add_argument("--auth-file", metavar="FILE", default="", help="Docker config.json instead of the default")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=300.0, help="for all of it (default: 300)"
    )


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
    from exporter.config import RegistryConfig
    from exporter.image import parse_reference

    reference = parse_reference(args.reference)
    places = _places(args)
    key = next((name for name in (reference.registry, reference.api_host) if name in places.registries), "")
    config = places.registries.get(key, RegistryConfig())
    config = replace(
        config,
        plain_http=args.plain_http or config.plain_http,
        ca_file=args.ca_file or config.ca_file,
        auth_file=args.auth_file or config.auth_file,
    )
    return reference, replace(places, registries={**places.registries, reference.registry: config})


def _pull(args: argparse.Namespace) -> int:
    from exporter.image import ALL_ARCHITECTURES, pull_image

    reference, places = _transfer(args)
    digest = pull_image(
        reference,
        store=places.store,
        registries=places.registries,
        architecture=ALL_ARCHITECTURES if args.all_architectures else args.architecture,
        deadline_s=args.timeout,
    )
    return _print_pinned(reference, digest)


def _push(args: argparse.Namespace) -> int:
    from exporter.image.upload import push_image

    reference, places = _transfer(args)
    digest = push_image(reference, store=places.store, registries=places.registries, deadline_s=args.timeout)
    return _print_pinned(reference, digest)


def _print_pinned(reference: Reference, digest: Digest) -> int:
    print(reference.pinned(digest))
    return 0


def _list(args: argparse.Namespace) -> int:
    store = _places(args).store
    stored = store.list()
    agent = read_agent_state(store.path)
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
        print(f"skep: no images in {str(store.path)!r}; build or pull one", file=sys.stderr)
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
    cells = [list(headings), *([_printable(cell) or "-" for cell in row] for row in rows)]
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
        _size(image.size),
        image.created,
        image.pulled.partition(".")[0] + ("Z" if "." in image.pulled else ""),
    )


def _as_json(image: StoredImage) -> dict[str, Any]:
    return {**asdict(image), "digest": str(image.digest), "architectures": list(image.architectures)}


def _short(digest: str) -> str:
    return digest[:19] if digest.startswith("sha256:") else digest


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
