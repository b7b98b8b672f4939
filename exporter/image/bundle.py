"""What comes out of this package: verified bytes and what was said about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from exporter.errors import ImageError
from exporter.image.formats import (
    BEE_CONFIG,
    CREATED,
    INDEX_DEPTH_LIMIT,
    INDEX_TYPES,
    VERSION,
    Descriptor,
    Manifest,
    Payload,
    host_architecture,
    is_bpf_elf,
    no_platform,
    normalise_architecture,
    parse_config,
    parse_manifest,
    recognise,
    select,
)
from exporter.image.reference import Digest, Reference

ReadBlob = Callable[[Descriptor], bytes]


@dataclass(frozen=True, slots=True)
class Bundle:
    """One object and its metadata, every byte checked against the digests named here.

    Attributes:
        reference: As asked for.
        digest: What the reference resolved to: of an index, a manifest, or a local file's bytes.
        manifest_digest: Of the manifest chosen for this architecture; equals ``digest`` without an index.
        object_digest: Of ``object``.
        format: ``bumblebee`` (ours too), ``generic``, or ``file``.
        object: The ELF object; nobody here has looked into it.
        metadata: The ``skep`` document of the config blob, or ``{}``; not validated.
        annotations: The manifest's over the index's.
        version: ``org.opencontainers.image.version``, else the tag, else empty.
        architecture: As OCI spells it; empty when the image does not say.
        created: ``org.opencontainers.image.created``, or empty.
        types: Reads the BTF of kernels that do not show their own, one file or an archive of them; None if it carries
            none. Few hosts want it, so it is not held.
    """

    reference: Reference
    digest: Digest
    manifest_digest: Digest
    object_digest: Digest
    format: str
    object: bytes
    metadata: Mapping[str, Any] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    architecture: str = ""
    created: str = ""
    types: Callable[[], bytes] | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The manifest an architecture leads to, and the annotations of the indexes above it."""

    manifest: Manifest
    annotations: Mapping[str, str]
    architecture: str


def choose(root: Descriptor, read: ReadBlob, *, architecture: str, subject: str) -> Chosen:
    """Walk from a root descriptor to the manifest for ``architecture``.

    Args:
        root: Of an index or a manifest.
        read: Gives the verified bytes of a descriptor.
        architecture: As OCI spells it.
        subject: Opens every message.

    Raises:
        ImageError: ``img.no_platform``, ``img.index_depth``, and what parsing raises.
    """
    available: list[str] = []
    found = _choose(root, read, available, architecture=architecture, subject=subject)
    if found is None:
        raise no_platform(subject, architecture, available)
    return found


def _choose(
    descriptor: Descriptor,
    read: ReadBlob,
    available: list[str],
    *,
    architecture: str,
    subject: str,
    annotations: Mapping[str, str] | None = None,
    above: tuple[Digest, ...] = (),
) -> Chosen | None:
    # The second check is for readers that do not hash: digests cannot form a cycle.
    depth = len(above)
    if depth > INDEX_DEPTH_LIMIT or descriptor.digest in above:
        raise ImageError(
            f"{subject}: indexes are nested more than {INDEX_DEPTH_LIMIT} deep or in a cycle; push a flat index",
            code="img.index_depth",
        )
    document = parse_manifest(read(descriptor), subject=subject, media_type=descriptor.media_type)
    stated = descriptor.platform.architecture if descriptor.platform else ""
    inherited = dict(annotations or {})
    if isinstance(document, Manifest):
        if stated not in ("", "unknown", architecture):
            available.append(stated)
            return None
        return Chosen(document, inherited | dict(document.annotations), stated)
    available += [str(child.platform) for child in document.manifests if child.platform]
    for child in select(document, architecture):
        if depth + 1 == INDEX_DEPTH_LIMIT and child.media_type in INDEX_TYPES:
            raise ImageError(
                f"{subject}: indexes are nested more than {INDEX_DEPTH_LIMIT} deep; push a flat index",
                code="img.index_depth",
            )
        inner = _choose(
            child, read, available, architecture=architecture, subject=subject,
            annotations=inherited | dict(document.annotations), above=(*above, descriptor.digest),
        )  # fmt: skip
        if inner:
            return inner
    return None


def assemble(reference: Reference, root: Descriptor, read: ReadBlob, *, architecture: str = "") -> Bundle:
    """Build a bundle out of verified blobs.

    Args:
        reference: As asked for; opens every message.
        root: What it resolved to.
        read: Gives the verified bytes of a descriptor.
        architecture: Default this machine's.

    Raises:
        ImageError: the image is not one we run on this architecture.
    """
    subject = f"image '{reference}'"
    wanted = normalise_architecture(architecture) if architecture else host_architecture()
    chosen = choose(root, read, architecture=wanted, subject=subject)
    manifest = chosen.manifest
    payload = recognise(manifest, subject=subject)
    metadata: Mapping[str, Any] = {}
    stated = chosen.architecture
    if manifest.config.media_type == BEE_CONFIG:
        metadata, of_config = parse_config(read(manifest.config), subject=subject)
        stated = stated or of_config
        if of_config not in ("", wanted):
            raise no_platform(subject, wanted, [f"linux/{of_config}"])
    content = read(payload.layer)
    check_payload(payload, content, subject=subject)
    return Bundle(
        reference=reference,
        digest=root.digest,
        manifest_digest=manifest.digest,
        object_digest=payload.layer.digest,
        format=payload.format,
        object=content,
        metadata=metadata,
        annotations=chosen.annotations,
        version=chosen.annotations.get(VERSION) or reference.tag,
        architecture=stated,
        created=chosen.annotations.get(CREATED, ""),
        types=partial(read, payload.types) if payload.types else None,
    )


def check_payload(payload: Payload, content: bytes, *, subject: str) -> None:
    """A layer nobody labelled as a program must at least begin as one.

    Raises:
        ImageError: ``img.unknown_format``.
    """
    if payload.format == "generic" and not is_bpf_elf(content):
        raise ImageError(
            f"{subject}: layer of type {payload.layer.media_type[:80]!r} starts {content[:8]!r}; "
            "must be an ELF object for BPF",
            code="img.unknown_format",
        )
