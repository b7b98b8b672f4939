"""``skep describe``: what is in an image, and what is said about it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.cli.images import printable, size_text
from exporter.cli.progress import transfer

if TYPE_CHECKING:
    from exporter.bpf import MapSpec, ObjectSpec
    from exporter.image import Bundle, StoredImage
    from exporter.plan import Plan

_PROVENANCE = {
    "org.opencontainers.image.version": "version",
    "org.opencontainers.image.created": "created",
    "org.opencontainers.image.source": "source",
    "org.opencontainers.image.revision": "revision",
    "org.opencontainers.image.authors": "authors",
    "org.opencontainers.image.vendor": "vendor",
    "org.opencontainers.image.licenses": "licences",
    "org.opencontainers.image.url": "url",
    "org.opencontainers.image.documentation": "documentation",
}
_DESCRIPTION = "org.opencontainers.image.description"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``describe``."""
    parser = subparsers.add_parser(
        "describe",
        help="show what is in an image",
        description="Show an image's digests, architectures, size and where it says it comes from; the object's "
        "programs with their hooks, its maps and globals; and what it exports. Every blob is hashed, nothing loaded. "
        "An image that is not in the store is pulled. Exit status 1 if it could not be run.",
    )
    parser.add_argument("reference", metavar="REF", help="image, catalog:NAME, layout or .o file")
    parser.add_argument("--architecture", metavar="ARCH", default="", help="instead of this machine's, such as arm64")
    parser.add_argument(
        "--pull",
        choices=("if-not-present", "always", "never"),
        default="if-not-present",
        help="(default: if-not-present)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument(
        "--store", "--storage", metavar="DIR", type=Path, help="where images are kept (default: this user's)"
    )
    parser.set_defaults(run=_describe)


def _describe(args: argparse.Namespace) -> int:
    from exporter.bpf import read_object
    from exporter.config import ImageConfig
    from exporter.errors import ObjectError, PlanError, Problems
    from exporter.image import ReferenceKind, Store, default_store_path, fetch, parse_reference
    from exporter.kernel import possible_cpus
    from exporter.plan import make_plan
    from exporter.resources import catalog_dir

    reference = parse_reference(args.reference)
    store = Store(args.store or default_store_path())
    if reference.kind is ReferenceKind.CATALOG:
        store = Store(catalog_dir())
    elif reference.kind is ReferenceKind.LAYOUT:
        store = Store(reference.path)
    with transfer("pull") as progress:
        bundle = fetch(reference, store=store, pull=args.pull, architecture=args.architecture, progress=progress)
    stored = None
    if reference.kind is not ReferenceKind.FILE:
        stored = next((image for image in store.list() if image.digest == bundle.digest), None)
    # An object that cannot be read or planned is what one may want to look at: it is said, not fatal.
    spec: ObjectSpec | None = None
    plan: Plan | None = None
    problem = ""
    try:
        spec = read_object(bundle.object)
        config = ImageConfig(name=reference.default_name, ref=args.reference)
        plan = make_plan(
            spec,
            config=config,
            version=bundle.version,
            metadata=bundle.metadata,
            possible_cpus=possible_cpus(),
        )
    except (ObjectError, PlanError, Problems) as error:
        problem = str(error)
    document = describe(bundle, stored, spec, plan, problem)
    if args.json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        for line in _lines(document, plan):
            print(line)
    return 1 if problem else 0


def describe(
    bundle: Bundle, stored: StoredImage | None, spec: ObjectSpec | None, plan: Plan | None, problem: str
) -> dict[str, Any]:
    """All that is known of an image, as JSON values.

    Args:
        bundle: Its verified bytes.
        stored: What the store or layout has of it; ``None`` for a file.
        spec: What the object declares, unless it cannot be read.
        plan: What it exports, unless it cannot be planned.
        problem: Why not.
    """
    from exporter.plan.memory import map_memory

    annotations = dict(bundle.annotations)
    document: dict[str, Any] = {
        "reference": str(bundle.reference),
        "digest": str(bundle.digest),
        "manifest_digest": str(bundle.manifest_digest),
        "object_digest": str(bundle.object_digest),
        "format": bundle.format,
        "architecture": bundle.architecture,
        "architectures": list(stored.architectures) if stored else [],
        "complete": stored.complete if stored else True,
        "size": stored.size if stored else len(bundle.object),
        "object_size": len(bundle.object),
        "description": annotations.get(_DESCRIPTION, "") or (plan.description if plan else ""),
        "provenance": {word: annotations[key] for key, word in _PROVENANCE.items() if key in annotations},
        "annotations": annotations,
        "metadata": dict(bundle.metadata),
        "problem": problem,
    }
    if spec is not None:
        from exporter.kernel import possible_cpus

        cpus = possible_cpus()
        document["license"] = spec.license
        document["programs"] = [
            {"name": one.name, "section": one.section, "instructions": one.instructions} for one in spec.programs
        ]
        document["maps"] = [
            {
                "name": one.name,
                "type": one.type.name.lower(),
                "key_size": one.key_size,
                "value_size": one.value_size,
                "max_entries": one.max_entries,
                "memory": map_memory(one, cpus),
            }
            for one in (_as_made(one, plan) for one in spec.maps)
        ]
        document["globals"] = [
            {"name": one.name, "section": one.section, "size": one.size, "constant": one.constant}
            for one in spec.globals
        ]
    if plan is not None:
        document["metrics"] = [
            {
                "name": metric.instrument.prometheus_name,
                "otel_name": metric.instrument.name,
                "kind": metric.instrument.kind.value,
                "unit": metric.instrument.unit,
                "help": metric.instrument.description,
                "map": table.map,
                "labels": [label.name for label in table.labels] + [name for name, _ in table.constant_labels],
            }
            for table in plan.tables
            for metric in table.metrics
        ]
        document["events"] = [
            {
                "name": stream.event_name,
                "enabled": stream.enabled,
                "description": stream.description,
                "map": stream.map,
                "attributes": [label.name for label in (*stream.attributes, *filter(None, [stream.tail]))]
                + [name for name, _ in stream.constant_labels],
            }
            for stream in plan.streams
            if not stream.metrics_only
        ]
        document["notes"] = list(plan.notes)
    return document


def _as_made(spec: MapSpec, plan: Plan | None) -> MapSpec:
    """A map with the size that it is given where its object leaves that open."""
    made = next((one for one in plan.maps if one.name == spec.name), None) if plan is not None else None
    if made is None:
        return spec
    entries, value_size = made.max_entries or spec.max_entries, made.value_size or spec.value_size
    return replace(spec, max_entries=entries, value_size=value_size)


def _lines(document: dict[str, Any], plan: Plan | None) -> Iterator[str]:
    from exporter.cli.build import summary
    from exporter.cli.images import table

    yield printable(document["reference"])
    if document["description"]:
        yield f"  {printable(document['description'])}"
    yield ""
    facts = {
        "digest": document["digest"],
        "manifest": document["manifest_digest"] if document["manifest_digest"] != document["digest"] else "",
        "object": f"{document['object_digest']}, {size_text(document['object_size'])}",
        "format": document["format"],
        "architecture": document["architecture"] or "not said",
        "stored": "".join(
            [
                ", ".join(document["architectures"]) or "any",
                f", {size_text(document['size'])}",
                "" if document["complete"] else "; other architectures were not pulled",
            ]
        )
        if document["format"] != "file"
        else "",
        **document["provenance"],
        "licence of the object": document.get("license", ""),
        "metadata document": "yes" if document["metadata"] else "no",
    }
    wide = max(map(len, facts))
    for name, value in facts.items():
        if value:
            yield f"  {name:{wide}}  {printable(str(value))}"
    other = {
        key: text for key, text in document["annotations"].items() if key not in _PROVENANCE and key != _DESCRIPTION
    }
    for name, value in sorted(other.items()):
        yield f"  {printable(name)}  {printable(value)}"
    if document["problem"]:
        yield ""
        for line in document["problem"].splitlines():
            yield f"  cannot be run: {printable(line)}"
    if document.get("programs"):
        yield ""
        rows = [(one["name"], one["section"], str(one["instructions"])) for one in document["programs"]]
        yield table(("PROGRAM", "HOOK", "INSTRUCTIONS"), rows)
    if document.get("maps"):
        yield ""
        rows_of_maps = [
            (
                one["name"],
                one["type"],
                f"{one['key_size']} + {one['value_size']} B",
                str(one["max_entries"]),
                size_text(one["memory"]),
            )
            for one in document["maps"]
        ]
        yield table(("MAP", "TYPE", "KEY + VALUE", "MAX ENTRIES", "MEMORY"), rows_of_maps)
    if document.get("globals"):
        constants = [one["name"] for one in document["globals"] if one["constant"]]
        if constants:
            yield ""
            yield f"can be set: {', '.join(map(printable, constants))}"
    if plan is not None:
        yield ""
        yield "EXPORTS"
        for line in summary(plan):
            yield f"  {line}"
        for note in plan.notes:
            yield f"  note: {note}"
