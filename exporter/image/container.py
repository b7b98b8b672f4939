"""An ordinary container image, written without a container engine: layers, config, manifest.

One archive is both an OCI layout and what ``docker load`` has read since its beginning (``manifest.json``),
so Docker, Podman, containerd and skopeo take it. What is in the layers is the caller's business.
Equal files give an equal image.

Source: image-spec 1.1 ``config.md``, ``layer.md``; moby ``image/tarexport``.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from exporter.errors import ImageError
from exporter.image.archive import add_bytes
from exporter.image.formats import OCI_INDEX, OCI_MANIFEST, REF_NAME, compact_json
from exporter.image.reference import Digest, Reference

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_COMPRESSION = 6


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a layer: a file of this machine, bytes, a link or a folder; all root's.

    Attributes:
        path: In the image, without a slash in front.
        source: A file to copy, bytes to write, or ``None``.
        link: What a symbolic link points to.
        mode: Of bytes and folders; a copied file keeps its own execute bit.
    """

    path: str
    source: Path | bytes | None = None
    link: str = ""
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class Layer:
    """A finished layer.

    Attributes:
        file: Compressed, on disk.
        digest: Of the compressed bytes.
        diff_id: Of the bytes before compression.
        size: Compressed.
        comment: For the image's history.
    """

    file: Path
    digest: Digest
    diff_id: Digest
    size: int
    comment: str


class _Hashing:
    """Passes bytes on, and hashes and counts them."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._size = 0
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self._write(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """There is nothing here that waits."""


def write_layer(target: Path, entries: Iterable[Entry], *, comment: str) -> Layer:
    """Write a layer; parents that no entry names are folders of root's.

    Raises:
        OSError: a file cannot be read, or the layer not written.
    """
    made: dict[str, Entry] = {}
    for entry in entries:
        for parent in PurePosixPath(entry.path).parents[:-1]:
            made.setdefault(str(parent), Entry(str(parent)))
        made[entry.path] = entry
    with target.open("wb") as file:
        outer = _Hashing(file.write)
        # Without a name and a time in the header.
        with gzip.GzipFile("", "wb", _COMPRESSION, cast("BinaryIO", outer), mtime=0) as packed:
            inner = _Hashing(packed.write)
            with tarfile.open(fileobj=cast("BinaryIO", inner), mode="w", format=tarfile.GNU_FORMAT) as tar:
                for path in sorted(made):
                    _add(tar, made[path])
    return Layer(target, Digest(outer.hash.hexdigest()), Digest(inner.hash.hexdigest()), target.stat().st_size, comment)


def _add(tar: tarfile.TarFile, entry: Entry) -> None:
    member = tarfile.TarInfo(entry.path)
    member.mode = entry.mode
    if entry.link:
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, entry.link, 0o777
        tar.addfile(member)
    elif entry.source is None:
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
    elif isinstance(entry.source, bytes):
        add_bytes(tar, entry.path, entry.source, mode=entry.mode)
    else:
        with entry.source.open("rb") as file:
            status = os.fstat(file.fileno())
            member.size = status.st_size
            member.mode = 0o755 if status.st_mode & 0o111 else 0o644
            # Python holds compiled files against their source's time.
            member.mtime = int(status.st_mtime)
            tar.addfile(member, file)


def write_image(
    target: Path,
    name: Reference,
    layers: Sequence[Layer],
    *,
    architecture: str,
    created: datetime,
    runs: Mapping[str, Any],
) -> Digest:
    """Write an image of these layers: an archive if the name ends in ``.tar``, else a layout folder.

    Args:
        target: Replaced if it is an archive; a folder must not be there yet.
        name: Of kind ``REGISTRY``, with a tag.
        layers: Lowest first.
        architecture: As OCI spells it.
        created: When, UTC.
        runs: ``Entrypoint``, ``Cmd``, ``Env`` and the like of the image configuration.

    Returns:
        The digest of the manifest.

    Raises:
        ImageError: ``img.archive``: it cannot be written.
    """
    time = created.strftime("%Y-%m-%dT%H:%M:%SZ")
    config = compact_json({
        "created": time,
        "architecture": architecture,
        "os": "linux",
        "config": dict(runs),
        "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]},
        "history": [{"created": time, "created_by": "skep package", "comment": layer.comment} for layer in layers],
    })  # fmt: skip
    config_digest = Digest.of(config)
    manifest = compact_json({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": _CONFIG, "digest": str(config_digest), "size": len(config)},
        "layers": [{"mediaType": _LAYER, "digest": str(layer.digest), "size": layer.size} for layer in layers],
    })  # fmt: skip
    digest = Digest.of(manifest)
    index = compact_json({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{
            "mediaType": OCI_MANIFEST,
            "digest": str(digest),
            "size": len(manifest),
            "platform": {"architecture": architecture, "os": "linux"},
            # The tag alone is what skopeo looks for, the whole name what containerd does.
            "annotations": {REF_NAME: name.tag, "io.containerd.image.name": str(name)},
        }],
    })  # fmt: skip
    docker = compact_json([{
        "Config": _blob(config_digest),
        "RepoTags": [str(name)],
        "Layers": [_blob(layer.digest) for layer in layers],
    }])  # fmt: skip
    small = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": index,
        "manifest.json": docker,
        _blob(config_digest): config,
        _blob(digest): manifest,
    }
    try:
        (_write_archive if target.suffix == ".tar" else _write_folder)(target, small, layers)
    except OSError as cause:
        raise ImageError(
            f"image {str(target)!r} cannot be written: {cause.strerror or cause}; name a free place with room",
            code="img.archive",
        ) from cause
    return digest


def _blob(digest: Digest) -> str:
    return f"blobs/sha256/{digest.hex}"


def _write_archive(target: Path, small: Mapping[str, bytes], layers: Sequence[Layer]) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.resolve().parent)
    try:
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
            os.fchmod(file.fileno(), 0o644)
            for path, content in small.items():
                add_bytes(tar, path, content)
            for layer in {layer.digest: layer for layer in layers}.values():
                member = tarfile.TarInfo(_blob(layer.digest))
                member.size = layer.size
                with layer.file.open("rb") as content_file:
                    tar.addfile(member, content_file)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _write_folder(target: Path, small: Mapping[str, bytes], layers: Sequence[Layer]) -> None:
    (target / "blobs" / "sha256").mkdir(parents=True)
    for path, content in small.items():
        if path != "manifest.json":
            (target / path).write_bytes(content)
    for layer in layers:
        shutil.copyfile(layer.file, target / _blob(layer.digest))
