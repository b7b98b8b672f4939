"""Images carried without a network: OCI layouts as folders and tar archives, written and read.

::

    export_images({reference: digest}, PATH, store=…)   a folder or .tar, as skopeo's oci: and oci-archive: read it
    with open_source(PATH) as source:                    a folder, a .tar or .tar.gz, whoever wrote it
        for name, digest in source.images(): copy_image(source, digest, parse_reference(name), store=…)

An archive comes from a stranger: it is never unpacked. Its members are found by name, read in
memory up to the limits that a registry is held to, and hashed like everything else; a member with any other
name is not looked at. Equal images make equal archives.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from exporter.errors import ImageError
from exporter.image.formats import (
    BLOB_LIMIT,
    MANIFEST_LIMIT,
    REF_NAME,
    Descriptor,
    compact_json,
    descriptor_json,
    parse_descriptor,
    strict_json,
)
from exporter.image.reference import Digest, Reference
from exporter.image.registry import RemoteManifest
from exporter.image.store import Store, read_regular
from exporter.image.transfer import copy_image

_CONTAINERD_NAME = "io.containerd.image.name"
_KEPT_ONLY = "skep.reference"
_INDEX_LIMIT = 16 << 20
_MEMBERS_LIMIT = 65536
_PIECE = 1 << 20


class LayoutSource:
    """A layout to copy images from; made by :func:`open_source`."""

    def __init__(self, subject: str) -> None:
        self.subject = subject

    def images(self) -> list[tuple[str, Digest]]:
        """``(name, digest)`` of each image, in the layout's order; a name is empty where it has none.

        Versions that a store of ours keeps for rollback only are left out.

        Raises:
            ImageError: ``img.archive``: it is no layout, or none we can read.
        """
        raw = self._content("index.json", _INDEX_LIMIT)
        if raw is None:
            raise ImageError(
                f"{self.subject} has no index.json, so it is no OCI layout; make one with skep images export, "
                "or skopeo copy … oci-archive:FILE",
                code="img.archive",
            )
        body = strict_json(raw, subject=f"{self.subject}: index.json", code="img.archive")
        entries = body.get("manifests") if isinstance(body, dict) else None
        if not isinstance(entries, list):
            raise ImageError(f"{self.subject}: index.json has no list of manifests", code="img.archive")
        found = []
        for number, entry in enumerate(entries):
            descriptor = parse_descriptor(entry, subject=f"{self.subject}: manifests[{number}]")
            notes = descriptor.annotations
            name = notes.get(_CONTAINERD_NAME) or notes.get(REF_NAME, "")
            if name or _KEPT_ONLY not in notes:
                found.append((name, descriptor.digest))
        return found

    def manifest(self, target: str | Digest, *, size: int | None = None) -> RemoteManifest:
        """A manifest or index, hashed; its type is what its bytes say."""
        digest = target if isinstance(target, Digest) else Digest.parse(target, subject=self.subject)
        raw = self._blob(digest, MANIFEST_LIMIT)
        if size is not None and len(raw) != size:
            raise ImageError(
                f"{self.subject}: manifest {digest.short} is {len(raw)} bytes, its index says {size}; refusing it",
                code="img.blob_size",
            )
        return RemoteManifest(raw, "", digest)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob in pieces."""
        content = self._blob(descriptor.digest, BLOB_LIMIT)
        for offset in range(0, len(content), _PIECE):
            yield content[offset : offset + _PIECE]

    def _blob(self, digest: Digest, limit: int) -> bytes:
        content = self._content(f"blobs/sha256/{digest.hex}", limit)
        if content is None:
            raise ImageError(f"{self.subject}: blob {digest} is missing", code="img.not_present")
        found = Digest.of(content)
        if found != digest:
            raise ImageError(
                f"{self.subject}: blob {digest} hashes to {found}; refusing it, carry it over again",
                code="img.blob_digest",
            )
        return content

    def _content(self, name: str, limit: int) -> bytes | None:
        """The bytes under a name in the layout; ``None`` if there is no such file."""
        raise NotImplementedError


class _Folder(LayoutSource):
    def __init__(self, path: Path) -> None:
        super().__init__(f"layout {str(path)!r}")
        self._path = path

    def _content(self, name: str, limit: int) -> bytes | None:
        try:
            return read_regular(self._path / name, limit)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as cause:
            raise ImageError(f"{self.subject}: cannot read {name!r}: {cause.strerror}", code="img.archive") from cause


class _Archive(LayoutSource):
    def __init__(self, path: Path, tar: tarfile.TarFile) -> None:
        super().__init__(f"archive {str(path)!r}")
        self._tar = tar
        self._members: dict[str, tarfile.TarInfo] = {}
        for number, member in enumerate(tar):
            if number >= _MEMBERS_LIMIT:
                raise ImageError(f"{self.subject} has over {_MEMBERS_LIMIT} members; refusing it", code="img.archive")
            if member.isreg():
                self._members.setdefault(member.name.removeprefix("./"), member)

    def _content(self, name: str, limit: int) -> bytes | None:
        member = self._members.get(name)
        if member is None:
            return None
        if member.size > limit:
            raise ImageError(
                f"{self.subject}: {name[:80]!r} is {member.size} bytes, the limit is {limit}; refusing it",
                code="img.blob_size",
            )
        try:
            file = self._tar.extractfile(member)
            assert file is not None
            content = file.read(limit + 1)
        except (tarfile.TarError, OSError, EOFError) as cause:
            raise _unreadable(self.subject, cause) from cause
        if len(content) != member.size:
            raise ImageError(f"{self.subject} ends within {name[:80]!r}; copy it again", code="img.truncated")
        return content


@contextmanager
def open_source(path: Path) -> Iterator[LayoutSource]:
    """Open a layout folder, or an archive of one, for :func:`~exporter.image.transfer.copy_image`.

    Raises:
        ImageError: ``img.archive``: it is neither.
    """
    if path.is_dir():
        yield _Folder(path)
        return
    subject = f"archive {str(path)!r}"
    try:
        tar = tarfile.open(path, mode="r:*")  # noqa: SIM115 closed below
    except FileNotFoundError as cause:
        raise ImageError(f"{subject} does not exist", code="img.archive") from cause
    except (tarfile.TarError, OSError, EOFError) as cause:
        raise _unreadable(subject, cause) from cause
    with tar:
        try:
            source = _Archive(path, tar)
        except (tarfile.TarError, OSError, EOFError) as cause:
            raise _unreadable(subject, cause) from cause
        yield source


def export_images(images: Mapping[Reference, Digest], target: Path, *, store: Store) -> None:
    """Copy images out of the store, into a layout folder, or an archive if the name ends in ``.tar``.

    A folder may hold images already; they stay. An archive is replaced whole.

    Raises:
        ImageError: an image is not whole here, or the target cannot be written.
    """
    with open_source(store.path) as source:
        if target.suffix != ".tar":
            for reference, digest in images.items():
                copy_image(source, digest, reference, store=Store(target))
            return
        try:
            with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.resolve().parent) as work:
                layout = Store(Path(work) / "layout")
                for reference, digest in images.items():
                    copy_image(source, digest, reference, store=layout)
                made = Path(work) / "made.tar"
                _write_tar(layout, images, made)
                made.replace(target)
        except OSError as cause:
            raise ImageError(
                f"archive {str(target)!r} cannot be written: {cause.strerror}; name a folder with room",
                code="img.archive",
            ) from cause


def _write_tar(layout: Store, images: Mapping[Reference, Digest], target: Path) -> None:
    entries = []
    for reference in sorted(images, key=str):
        descriptor = layout.resolve(reference)
        assert descriptor is not None
        # Without the time of this copy: equal images make equal archives.
        entries.append({**descriptor_json(descriptor), "annotations": {REF_NAME: str(reference)}})
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
    blobs = sorted((layout.path / "blobs" / "sha256").iterdir())
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        add_bytes(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        add_bytes(tar, "index.json", compact_json(index))
        for blob in blobs:
            add_bytes(tar, f"blobs/sha256/{blob.name}", blob.read_bytes())


def add_bytes(tar: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644, mtime: int = 0) -> None:
    """Add a file of root's to an archive."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), mode, mtime
    tar.addfile(member, io.BytesIO(content))


def _unreadable(subject: str, cause: Exception) -> ImageError:
    # tarfile lists every compression it tried, a line each.
    said = (getattr(cause, "strerror", "") or str(cause) or type(cause).__name__).splitlines()
    reason = said[0].rstrip(":")
    return ImageError(
        f"{subject} cannot be read: {reason}; expected a tar archive or folder with an OCI layout", code="img.archive"
    )
