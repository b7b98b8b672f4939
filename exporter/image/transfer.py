"""From a reference to a bundle, over the network when the pull policy says so."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from exporter.config import RegistryConfig
from exporter.errors import ImageError
from exporter.image.bundle import Bundle
from exporter.image.formats import (
    BEE_CONFIG,
    BLOB_LIMIT,
    IMAGE_LIMIT,
    INDEX_DEPTH_LIMIT,
    INDEX_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    host_architecture,
    image_children,
    no_platform,
    normalise_architecture,
    parse_config,
    parse_manifest,
    recognise,
    select,
)
from exporter.image.reference import Digest, Reference, ReferenceKind
from exporter.image.registry import Registry, RemoteManifest
from exporter.image.store import Store, read_regular

DEADLINE_S = 300.0
ALL_ARCHITECTURES = "all"

Progress = Callable[[Descriptor, int], None]
"""Told of each blob how many of its bytes are through, at first 0; from the thread that transfers."""


class Source(Protocol):
    """Where an image comes from: a registry, another layout, an archive."""

    @property
    def subject(self) -> str:
        """Opens every message."""

    def manifest(self, target: str | Digest, *, size: int | None = None) -> RemoteManifest:
        """A manifest or index, hashed."""

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob in pieces, which the receiver hashes."""


Stage = Callable[[str], AbstractContextManager[object]]
"""Entered around a stage of the work, by its name: for whoever wants to know how long each takes."""


def fetch(
    reference: Reference,
    *,
    store: Store,
    registries: Mapping[str, RegistryConfig] | None = None,
    pull: str = "if-not-present",
    architecture: str = "",
    deadline_s: float = DEADLINE_S,
    stop: threading.Event | None = None,
    catalog: Path | None = None,
    progress: Progress | None = None,
    stage: Stage = lambda _name: nullcontext(),
) -> Bundle:
    """Give the verified object a reference of any kind means.

    A stored copy that turns out damaged is pulled again, by the digest it had: the
    repair never changes what runs. With ``always`` and an unreachable registry
    the error is raised; whoever prefers the stored copy then asks again with ``never``.

    Args:
        reference: Registry, catalog, layout or file.
        store: Where registry images are kept.
        registries: Settings by ``host[:port]``.
        pull: ``if-not-present``, ``always`` or ``never``; only registry references are ever pulled.
        architecture: Default this machine's.
        deadline_s: For the whole pull.
        stop: Gives up when set.
        catalog: Layout of the shipped images; default where they are installed.
        progress: Of a pull, if there is one.
        stage: Entered around ``resolve``, ``pull`` and ``verify``, as far as each is done.

    Raises:
        ImageError: see :mod:`exporter.image`.
    """
    if pull not in ("if-not-present", "always", "never"):
        raise ValueError(f"pull policy {pull!r}")
    match reference.kind:
        case ReferenceKind.FILE:
            return _read_file(reference)
        case ReferenceKind.LAYOUT:
            with stage("verify"):
                return Store(reference.path).bundle(reference, architecture)
        case ReferenceKind.CATALOG:
            with stage("verify"):
                return Store(catalog or _installed_catalog()).bundle(reference, architecture)
    present = _present(store, reference, pull)
    if present is not None and pull != "always":
        try:
            with stage("verify"):
                return store.bundle(reference, architecture)
        except ImageError as error:
            if pull == "never" or error.code not in ("img.cache_corrupt", "img.not_present"):
                raise
            pull_image(
                reference, store=store, registries=registries, architecture=architecture, deadline_s=deadline_s,
                stop=stop, repair=present.digest, progress=progress, stage=stage,
            )  # fmt: skip
            with stage("verify"):
                return store.bundle(reference, architecture)
    if pull == "never":
        with stage("verify"):
            return store.bundle(reference, architecture)
    pull_image(
        reference, store=store, registries=registries, architecture=architecture, deadline_s=deadline_s, stop=stop,
        progress=progress, stage=stage,
    )  # fmt: skip
    with stage("verify"):
        return store.bundle(reference, architecture)


def pull_image(
    reference: Reference,
    *,
    store: Store,
    registries: Mapping[str, RegistryConfig] | None = None,
    architecture: str = "",
    deadline_s: float = DEADLINE_S,
    stop: threading.Event | None = None,
    repair: Digest | None = None,
    progress: Progress | None = None,
    stage: Stage = lambda _name: nullcontext(),
) -> Digest:
    """Bring an image into the store; blobs that are there already, and hash right, are not fetched.

    Args:
        reference: A registry reference.
        store: Receives it.
        registries: Settings by ``host[:port]``.
        architecture: Default this machine's; :data:`ALL_ARCHITECTURES` for every one, as a later push needs.
        deadline_s: For all of it.
        stop: Gives up when set.
        repair: Ask for this digest instead of the tag.
        progress: Told of each blob that has to be fetched.
        stage: Entered around ``resolve`` and ``pull``.

    Returns:
        The digest the reference resolved to, of an index or a manifest.

    Raises:
        ImageError: nothing was recorded; verified blobs may stay until pruned.
    """
    if reference.kind is not ReferenceKind.REGISTRY:
        raise ImageError(
            f"image '{reference}' is not in a registry, so there is nothing to pull or push; use it as it is",
            code="img.ref_syntax",
        )
    config = registry_config(reference, registries)
    wanted = normalise_architecture(architecture) if architecture else host_architecture()
    with Registry(reference, config, deadline_s=deadline_s, stop=stop) as registry, store.writing():
        pulling = _Pull(registry, store, wanted, progress=progress)
        with stage("resolve"):
            root = registry.manifest(repair or reference.digest or reference.tag)
        with stage("pull"):
            descriptor = pulling.take_root(root)
            # Inside the lock: until it is recorded, nothing names these blobs.
            store.record(reference, descriptor)
    return root.digest


def copy_image(source: Source, digest: Digest, reference: Reference, *, store: Store) -> Digest:
    """Bring an image from a layout or archive into the store, every byte hashed.

    Architectures of an index that the source does not have are left out, as it may be a copy of what one
    machine pulled; what is there must be whole.

    Raises:
        ImageError: nothing was recorded; it is damaged, not one we run, or not there at all.
    """
    with store.writing():
        descriptor = _Pull(source, store, ALL_ARCHITECTURES, sparse=True).take_root(source.manifest(digest))
        store.record(reference, descriptor)
    return descriptor.digest


def registry_config(reference: Reference, registries: Mapping[str, RegistryConfig] | None) -> RegistryConfig:
    """The settings of a reference's registry; Docker Hub's may be keyed by any of its names."""
    table = registries or {}
    for key in (reference.registry, reference.api_host, f"index.{reference.registry}"):
        if key in table:
            return table[key]
    return RegistryConfig()


class _Pull:
    """One pull in progress: what to take of an index, and how much is enough."""

    def __init__(
        self,
        source: Source,
        store: Store,
        architecture: str,
        *,
        sparse: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._source = source
        self._store = store
        self._architecture = architecture
        self._sparse = sparse
        self._progress = progress
        self._subject = source.subject
        self._bytes = 0

    def take_root(self, root: RemoteManifest) -> Descriptor:
        document = parse_manifest(root.raw, subject=self._subject, media_type=root.media_type)
        available: list[str] = []
        if not self._take(document, root.raw, available, depth=0):
            raise no_platform(self._subject, self._architecture, available)
        fallback = OCI_INDEX if isinstance(document, Index) else OCI_MANIFEST
        return Descriptor(document.media_type or fallback, root.digest, len(root.raw))

    def _take(self, document: Manifest | Index, raw: bytes, available: list[str], *, depth: int) -> bool:
        """Store what this document leads to, then the document; ``False`` when nothing of it fits."""
        if isinstance(document, Manifest):
            self._take_image(document)
        elif not self._take_index(document, available, depth=depth):
            return False
        own = Descriptor(document.media_type, document.digest, len(raw))
        if not self._store.holds(own):
            self._store.write(own, (raw,))
        return True

    def _take_index(self, index: Index, available: list[str], *, depth: int) -> bool:
        if depth >= INDEX_DEPTH_LIMIT:
            raise self._too_deep()
        available += [str(child.platform) for child in index.manifests if child.platform]
        everything = self._architecture == ALL_ARCHITECTURES
        taken = False
        for child in image_children(index) if everything else select(index, self._architecture):
            if child.media_type in INDEX_TYPES and depth + 1 >= INDEX_DEPTH_LIMIT:
                raise self._too_deep()
            try:
                document, raw = self._child(child)
            except ImageError as error:
                if self._sparse and error.code == "img.not_present":
                    continue
                raise
            if self._take(document, raw, available, depth=depth + 1):
                taken = True
                if not everything:
                    break
        return taken

    def _child(self, child: Descriptor) -> tuple[Manifest | Index, bytes]:
        if self._store.holds(child):
            raw = self._store.read(child)
        else:
            raw = self._source.manifest(child.digest, size=child.size).raw
        return parse_manifest(raw, subject=self._subject, media_type=child.media_type), raw

    def _take_image(self, manifest: Manifest) -> None:
        # Refuse what we could not run before its bytes cost anything.
        recognise(manifest, subject=self._subject)
        parts = {part.digest: part for part in (manifest.config, *manifest.layers)}
        self._bytes += sum(part.size for part in parts.values())
        if self._bytes > IMAGE_LIMIT:
            raise ImageError(
                f"{self._subject}: its blobs add up to {self._bytes} bytes, the limit is {IMAGE_LIMIT}; refusing it",
                code="img.blob_size",
            )
        for part in parts.values():
            if not self._store.holds(part):
                self._store.write(part, self._watched(part))
        if manifest.config.media_type == BEE_CONFIG:
            _, stated = parse_config(self._store.read(manifest.config), subject=self._subject)
            if stated and self._architecture not in (stated, ALL_ARCHITECTURES):
                raise no_platform(self._subject, self._architecture, [f"linux/{stated}"])

    def _watched(self, part: Descriptor) -> Iterator[bytes]:
        pieces = self._source.blob(part)
        if self._progress is None:
            yield from pieces
            return
        done = 0
        self._progress(part, done)
        for piece in pieces:
            done += len(piece)
            yield piece
            self._progress(part, done)

    def _too_deep(self) -> ImageError:
        return ImageError(
            f"{self._subject}: indexes are nested more than {INDEX_DEPTH_LIMIT} deep; push a flat index",
            code="img.index_depth",
        )


def _present(store: Store, reference: Reference, pull: str) -> Descriptor | None:
    try:
        return store.resolve(reference)
    except ImageError as error:
        # A damaged index.json names nothing; recording the next pull starts a new one.
        if pull == "never" or error.code != "img.cache_corrupt":
            raise
        return None


def _read_file(reference: Reference) -> Bundle:
    path = Path(os.path.expanduser(reference.path))  # noqa: PTH111 Path.expanduser raises for an unknown user
    try:
        content = read_regular(path, BLOB_LIMIT)
    except FileNotFoundError as cause:
        raise ImageError(
            f"object {reference.path!r} does not exist; a reference that ends in .o is a local file", code="img.file"
        ) from cause
    except OSError as cause:
        raise ImageError(
            f"object {reference.path!r} cannot be read: {cause.strerror}; name a readable .o file", code="img.file"
        ) from cause
    digest = Digest.of(content)
    return Bundle(reference, digest, digest, digest, "file", content)


def _installed_catalog() -> Path:
    from exporter.resources import catalog_dir  # noqa: PLC0415 only a catalog reference needs the shipped files

    return Path(catalog_dir())
