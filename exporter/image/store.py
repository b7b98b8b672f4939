"""Images on disk: an OCI image layout that two processes and a power cut may share.

::

    oci-layout                   {"imageLayoutVersion": "1.0.0"}
    index.json                   one descriptor per reference and kept version
    blobs/sha256/<hex>           manifests, indexes, configs, objects; named by what they hash to
    ingest/                      files being written
    .lock, .blobs.lock           empty, for flock(2)

The newest version of a reference carries ``org.opencontainers.image.ref.name``
with the full reference, as BumbleBee and ORAS write it; versions kept for
rollback carry only ``skep.reference``, so a standard tool sees each name once.

Writing: temporary file, fsync, rename, fsync of the directory. A blob is in place
before anything names it, and a manifest before ``index.json`` does. Whoever
adds blobs holds ``.blobs.lock`` shared, so that collecting garbage (exclusive) cannot
take a blob that nobody names *yet*; ``.lock`` covers each change of ``index.json``.

Reading needs no lock and no write access (the shipped catalog is such a
layout): ``index.json`` is replaced whole, and every blob is hashed again as it is
read. One that does not hash to its name is removed and reported.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from exporter.errors import ImageError
from exporter.image.bundle import Bundle, assemble
from exporter.image.formats import (
    BLOB_LIMIT,
    CREATED,
    REF_NAME,
    Descriptor,
    Index,
    Manifest,
    build_artifact,
    compact_json,
    descriptor_json,
    image_children,
    parse_descriptor,
    parse_manifest,
    strict_json,
)
from exporter.image.reference import Digest, Reference, ReferenceKind, parse_reference

_REFERENCE = "skep.reference"
_PULLED = "skep.pulled"
_INDEX_LIMIT = 64 << 20
_LOCK_TIMEOUT_S = 30.0
_LOCK_POLL_S = 0.05
_SYSTEM_STATE = Path("/var/lib/skep")
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One version of one reference in the store.

    Attributes:
        reference: Full reference, or what another tool named it; empty when unnamed.
        digest: Of the index or manifest.
        current: Whether the reference resolves to it; others are kept for rollback.
        architectures: Present here, as OCI spells them; empty when the image does not say.
        size: Bytes of all its blobs that are here.
        created: ``org.opencontainers.image.created``, or empty.
        pulled: RFC 3339 UTC time of the last pull or build; empty when another tool wrote it.
        complete: Whether every blob of every architecture is here.
    """

    reference: str
    digest: Digest
    current: bool
    architectures: tuple[str, ...]
    size: int
    created: str
    pulled: str
    complete: bool


# ``Store.list`` hides the builtin's name inside the class.
_Descriptors = list[Descriptor]
_Images = list[StoredImage]
_Names = list[str]


class Store:
    """An OCI image layout directory; cheap to make, safe to share between threads and processes.

    Args:
        path: Made when first written to.
    """

    def __init__(self, path: Path | str) -> None:
        # Path.expanduser raises for a user that does not exist; this leaves the text alone.
        self.path = Path(os.path.expanduser(path))  # noqa: PTH111

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    # -- Reading ---------------------------------------------------------------------------

    def resolve(self, reference: Reference) -> Descriptor | None:
        """The root a reference means here, or ``None``.

        A digest decides alone, among all kept versions; else the name's newest.

        Raises:
            ImageError: ``img.cache_corrupt``, ``img.store_io``.
        """
        entries = self._entries()
        if reference.digest:
            return next((entry for entry in entries if entry.digest == reference.digest), None)
        wanted = _name(reference)
        if not wanted:
            return self._only(entries, reference)
        return next((entry for entry in entries if _is_named(entry, wanted)), None)

    def bundle(self, reference: Reference, architecture: str = "") -> Bundle:
        """Read an image, hashing every blob.

        Args:
            reference: Of any kind that lives in a layout.
            architecture: Default this machine's.

        Raises:
            ImageError: ``img.not_present``; ``img.cache_corrupt``, and then the damaged blob is gone; what
                :func:`exporter.image.bundle.assemble` raises.
        """
        root = self.resolve(reference)
        if root is None:
            raise self._absent(reference)
        return assemble(reference, root, self.read, architecture=architecture)

    def read(self, descriptor: Descriptor) -> bytes:
        """The bytes of a blob, hashed.

        Raises:
            ImageError: ``img.not_present``, ``img.cache_corrupt``, ``img.store_io``.
        """
        path = self.blob_path(descriptor.digest)
        if descriptor.size > BLOB_LIMIT:
            raise ImageError(
                f"store {str(self.path)!r}: blob {descriptor.digest.short} is described as {descriptor.size} bytes, "
                f"the limit is {BLOB_LIMIT}",
                code="img.blob_size",
            )
        try:
            content = read_regular(path, BLOB_LIMIT)
        except FileNotFoundError as cause:
            raise ImageError(
                f"store {str(self.path)!r}: blob {descriptor.digest} is missing; pull the image again",
                code="img.not_present",
            ) from cause
        except OSError as cause:
            self._failed("read", path, cause)
        found = Digest.of(content)
        if found != descriptor.digest:
            with suppress(OSError):
                path.unlink()
            raise ImageError(
                f"store {str(self.path)!r}: blob {descriptor.digest} now hashes to {found}; "
                "refusing it, pull or install the image again",
                code="img.cache_corrupt",
            )
        if len(content) != descriptor.size:
            raise ImageError(
                f"store {str(self.path)!r}: blob {descriptor.digest.short} is {len(content)} bytes, "
                f"described as {descriptor.size}; refusing it",
                code="img.blob_size",
            )
        return content

    def holds(self, descriptor: Descriptor) -> bool:
        """Whether the blob is here and hashes to its name; a damaged one is discarded."""
        try:
            self.read(descriptor)
        except ImageError as error:
            if error.code == "img.store_io":
                raise
            return False
        return True

    def list(self) -> _Images:
        """Every kept version, by reference, the newest of each first.

        Damaged or missing blobs show as sizes and architectures that are not there.
        """
        return [self._describe(entry) for entry in sorted(self._entries(), key=_listing_order)]

    def names(self) -> _Names:
        """What the layout's images are called."""
        return sorted({name for entry in self._entries() if (name := entry.annotations.get(REF_NAME))})

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob of this digest is, or would be."""
        return self.path / "blobs" / "sha256" / digest.hex

    # -- Writing ---------------------------------------------------------------------------

    def add(
        self,
        reference: Reference,
        objects: Mapping[str, bytes],
        metadata: Mapping[str, Any] | None = None,
        annotations: Mapping[str, str] | None = None,
        types: bytes = b"",
    ) -> Digest:
        """Build an image and name it.

        Args:
            reference: Without a digest: the digest is what comes out.
            objects: Object bytes by architecture.
            metadata: The ``skep`` document.
            annotations: Of the manifests.
            types: BTF of kernels that do not show their own, one file or an archive of them; empty for none.

        Returns:
            The digest of the index (several architectures) or the manifest.
        """
        if reference.digest:
            raise ImageError(
                f"image '{reference}' names a digest, which only a finished image has; leave it out",
                code="img.ref_syntax",
            )
        if reference.kind is ReferenceKind.FILE or not _name(reference):
            raise ImageError(
                f"image '{reference}' is no name for an image; write HOST/PATH[:TAG] or oci:DIR:NAME",
                code="img.ref_syntax",
            )
        for architecture, content in objects.items():
            if len(content) > BLOB_LIMIT:
                raise ImageError(
                    f"image '{reference}': object for {architecture} is {len(content)} bytes, "
                    f"the limit is {BLOB_LIMIT}; strip it",
                    code="img.blob_size",
                )
        if len(types) > BLOB_LIMIT:
            raise ImageError(
                f"image '{reference}': types of kernels are {len(types)} bytes, the limit is {BLOB_LIMIT}; "
                "give an archive of those kernels that need them",
                code="img.blob_size",
            )
        artifact = build_artifact(objects, metadata or {}, annotations or {}, types)
        with self.writing():
            for descriptor, content in artifact.blobs:
                self.write(descriptor, (content,))
            self.record(reference, artifact.root, when=_build_time())
        return artifact.root.digest

    def prepare(self) -> None:
        """Make the folders and locks, so that they belong to whoever runs this and not to the first who writes.

        A root that pulls into a service's store then leaves nothing there that the service could not replace.

        Raises:
            ImageError: ``img.store_io``.
        """
        self._prepare()
        for name in (".lock", ".blobs.lock"):
            with self._locked(name, fcntl.LOCK_SH, wait=False):
                pass

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold off garbage collection while blobs are added that nothing names yet."""
        self._prepare()
        with self._locked(".blobs.lock", fcntl.LOCK_SH):
            # Not before: until the lock is held somebody's garbage collection takes a file that is being written.
            marker = self.path / "oci-layout"
            if not marker.exists():
                with self._replacing(marker) as write:
                    write(_LAYOUT)
            yield

    def write(self, descriptor: Descriptor, pieces: Iterable[bytes]) -> None:
        """Put a blob in place once its size and digest are right; needs :meth:`writing`.

        Args:
            descriptor: What the pieces must amount to.
            pieces: May raise; nothing is left then.

        Raises:
            ImageError: ``img.blob_digest``, ``img.blob_size``, ``img.store_io``, and what ``pieces`` raises.
        """
        target = self.blob_path(descriptor.digest)
        hasher, size = hashlib.sha256(), 0
        with self._replacing(target) as write:
            for piece in pieces:
                hasher.update(piece)
                size += len(piece)
                write(piece)
            subject = f"store {str(self.path)!r}: blob {descriptor.digest.short}"
            if size != descriptor.size:
                raise ImageError(
                    f"{subject} is {size} bytes, described as {descriptor.size}; refusing it", code="img.blob_size"
                )
            if hasher.hexdigest() != descriptor.digest.hex:
                raise ImageError(
                    f"{subject} hashes to sha256:{hasher.hexdigest()}; refusing it", code="img.blob_digest"
                )

    def record(self, reference: Reference, root: Descriptor, *, when: datetime | None = None) -> None:
        """Let ``reference`` mean ``root`` from now on; its former meaning is kept for rollback.

        A pin is a name of its own: pulling ``a:1@sha256:…`` says nothing about what ``a:1`` means.

        Args:
            reference: The name.
            root: Its index or manifest, already written.
            when: To note as the time of it; default now.

        Raises:
            ImageError: ``img.store_io``.
        """
        name, family = _name(reference), _name(replace(reference, digest=None))
        entry = replace(
            root, annotations={REF_NAME: name, _REFERENCE: family, _PULLED: _timestamp(when or datetime.now(UTC))}
        )
        with self._locked(".lock", fcntl.LOCK_EX):
            kept: _Descriptors = []
            for other in self._entries_or_start_over():
                former = _is_named(other, name)
                spare = REF_NAME not in other.annotations and other.annotations.get(_REFERENCE) == family
                if (former or spare) and other.digest == root.digest:
                    continue
                if former:
                    older = {key: text for key, text in other.annotations.items() if key != REF_NAME}
                    other = replace(other, annotations={**older, _REFERENCE: family})  # noqa: PLW2901
                kept.append(other)
            self._write_index([entry, *kept])

    def forget(self, reference: Reference, in_use: Collection[Digest] = ()) -> _Images:
        """Forget an image and delete its blobs: a name with all its kept versions, or by digest that one version.

        Args:
            reference: As it was built or pulled, or with the digest of a version of it.
            in_use: Digests that may not go, such as those now running.

        Returns:
            The versions forgotten; none if the store has no such image.

        Raises:
            ImageError: ``img.in_use``: nothing was forgotten.
        """
        name, family = _name(reference), _name(replace(reference, digest=None))
        if not (self.path / "index.json").exists():
            return []
        with self._locked(".lock", fcntl.LOCK_EX):
            entries = self._entries()
            leaving = [
                entry
                for entry in entries
                if (_is_named(entry, name) or entry.annotations.get(_REFERENCE) == family)
                and reference.digest in (None, entry.digest)
            ]
            used = next((entry.digest for entry in leaving if entry.digest in in_use), None)
            if used is not None:
                raise ImageError(
                    f"image '{reference}': {used.short} is what the agent runs; take it from its configuration first",
                    code="img.in_use",
                )
            forgotten = [self._describe(entry) for entry in leaving]
            if leaving:
                self._write_index([entry for entry in entries if entry not in leaving])
            # Under the lock still: nobody is writing the index, whose new file would be garbage to us.
            self._collect_garbage()
        return forgotten

    def prune(self, keep: int, in_use: Collection[Digest] = ()) -> _Images:
        """Forget all but the newest versions of each reference, then delete blobs nothing names.

        While another process is adding images, blobs stay until the next time.

        Args:
            keep: Versions of each reference that stay, pinned ones included; at least 1.
            in_use: Digests that stay whatever their age, such as those now running.

        Returns:
            The versions forgotten.
        """
        if keep < 1:
            raise ValueError("keep must be at least 1")
        if not (self.path / "index.json").exists():
            return []
        with self._locked(".lock", fcntl.LOCK_EX):
            staying: _Descriptors = []
            leaving: _Descriptors = []
            seen: dict[str, set[Digest]] = {}
            for entry in sorted(self._entries(), key=lambda entry: -_pulled(entry)):
                name = entry.annotations.get(_REFERENCE) or entry.annotations.get(REF_NAME) or str(entry.digest)
                versions = seen.setdefault(name, set())
                if entry.digest in in_use or entry.digest in versions or len(versions) < keep:
                    versions.add(entry.digest)
                    staying.append(entry)
                else:
                    leaving.append(entry)
            forgotten = [self._describe(entry) for entry in leaving]
            if leaving:
                self._write_index(staying)
            # Under the lock still: nobody is writing the index, whose new file would be garbage to us.
            self._collect_garbage()
        return forgotten

    # -- Inside ----------------------------------------------------------------------------

    def _entries(self) -> _Descriptors:
        path = self.path / "index.json"
        try:
            raw = read_regular(path, _INDEX_LIMIT)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as cause:
            self._failed("read", path, cause)
        subject = f"store {str(self.path)!r}: index.json"
        try:
            body = strict_json(raw, subject=subject)
            if not isinstance(body, dict) or not isinstance(body.get("manifests"), list):
                raise ImageError(f"{subject}: has no list of manifests", code="img.cache_corrupt")
            return [
                parse_descriptor(entry, subject=f"{subject}: manifests[{number}]")
                for number, entry in enumerate(body["manifests"])
            ]
        except ImageError as cause:
            raise ImageError(f"{cause}; move it away and pull again", code="img.cache_corrupt") from cause

    def _entries_or_start_over(self) -> _Descriptors:
        try:
            return self._entries()
        except ImageError as error:
            if error.code != "img.cache_corrupt":
                raise
            # Blobs are found again by pulling; what was named is kept for whoever wants to look.
            with suppress(OSError):
                (self.path / "index.json").replace(self.path / "index.json.corrupt")
            return []

    def _write_index(self, entries: _Descriptors) -> None:
        body = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [descriptor_json(entry) for entry in entries],
        }
        with self._replacing(self.path / "index.json") as write:
            write(compact_json(body))

    def _only(self, entries: _Descriptors, reference: Reference) -> Descriptor | None:
        current = [entry for entry in entries if REF_NAME in entry.annotations or _REFERENCE not in entry.annotations]
        if len(current) > 1:
            names = ", ".join(repr(name) for name in self.names()[:20])
            raise ImageError(
                f"image '{reference}': the layout holds {len(current)} images ({names}); name one with oci:DIR:NAME",
                code="img.ambiguous_name",
            )
        return current[0] if current else None

    def _absent(self, reference: Reference) -> ImageError:
        if reference.kind is ReferenceKind.REGISTRY:
            return ImageError(
                f"image '{reference}': not in the store {str(self.path)!r}; pull it first", code="img.not_present"
            )
        if not (self.path / "oci-layout").exists():
            return ImageError(
                f"image '{reference}': {str(self.path)!r} is not an OCI layout, it has no file oci-layout",
                code="img.not_present",
            )
        names = ", ".join(repr(name) for name in self.names()[:20]) or "nothing"
        return ImageError(
            f"image '{reference}': not in the layout {str(self.path)!r}, it has {names}", code="img.not_present"
        )

    def _describe(self, entry: Descriptor) -> StoredImage:
        blobs: dict[Digest, int] = {}
        architectures: _Names = []
        created, complete = self._survey(entry, blobs, architectures, depth=0)
        return StoredImage(
            reference=entry.annotations.get(REF_NAME) or entry.annotations.get(_REFERENCE, ""),
            digest=entry.digest,
            current=REF_NAME in entry.annotations or _REFERENCE not in entry.annotations,
            architectures=tuple(dict.fromkeys(architectures)),
            size=sum(blobs.values()),
            created=created,
            pulled=entry.annotations.get(_PULLED, ""),
            complete=complete,
        )

    def _survey(
        self, entry: Descriptor, blobs: dict[Digest, int], architectures: _Names, *, depth: int
    ) -> tuple[str, bool]:
        """Add up what is on disk below ``entry``; return its creation time and whether all is there."""
        document = self._document(entry)
        if document is None or depth > 4:
            return "", False
        blobs[entry.digest] = self._size(entry.digest) or 0
        created = document.annotations.get(CREATED, "")
        if isinstance(document, Index):
            complete = True
            for child in image_children(document):
                inner, whole = self._survey(child, blobs, architectures, depth=depth + 1)
                created, complete = created or inner, complete and whole
            return created, complete
        complete = True
        for part in (document.config, *document.layers):
            size = self._size(part.digest)
            blobs[part.digest] = size or 0
            complete = complete and size == part.size
        if complete and (architecture := self._architecture(entry, document)):
            architectures.append(architecture)
        return created, complete

    def _architecture(self, entry: Descriptor, manifest: Manifest) -> str:
        if entry.platform:
            return entry.platform.architecture
        with suppress(ImageError):
            body = strict_json(self.read(manifest.config), subject="config")
            if isinstance(body, dict) and isinstance(body.get("architecture"), str):
                return str(body["architecture"])
        return ""

    def _document(self, entry: Descriptor) -> Manifest | Index | None:
        """A manifest for listing and collecting, where damage is not an error."""
        try:
            raw = read_regular(self.blob_path(entry.digest), BLOB_LIMIT)
            if Digest.of(raw) != entry.digest:
                return None
            return parse_manifest(raw, subject=f"store {str(self.path)!r}")
        except (OSError, ImageError):
            return None

    def _size(self, digest: Digest) -> int | None:
        try:
            return self.blob_path(digest).stat().st_size
        except OSError:
            return None

    def _collect_garbage(self) -> None:
        with self._locked(".blobs.lock", fcntl.LOCK_EX, wait=False) as locked:
            if not locked:
                return
            named: set[str] = set()
            for entry in self._entries():
                self._mark(entry, named, depth=0)
            for directory, keep in ((self.path / "blobs" / "sha256", named), (self.path / "ingest", set[str]())):
                try:
                    stale = [file for file in directory.iterdir() if file.name not in keep]
                except FileNotFoundError:
                    continue
                for file in stale:
                    try:
                        file.unlink()
                    except OSError as cause:
                        self._failed("delete", file, cause)

    def _mark(self, entry: Descriptor, named: set[str], *, depth: int) -> None:
        named.add(entry.digest.hex)
        document = self._document(entry) if depth <= 4 else None
        if isinstance(document, Index):
            for child in document.manifests:
                self._mark(child, named, depth=depth + 1)
        elif document is not None:
            named.update(part.digest.hex for part in (document.config, *document.layers))

    def _prepare(self) -> None:
        try:
            for directory in (self.path / "blobs" / "sha256", self.path / "ingest"):
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            self._failed("create", self.path, cause)

    @contextmanager
    def _replacing(self, target: Path) -> Iterator[Callable[[bytes], object]]:
        """Write a file that appears whole, or not at all, under its name."""
        name = ""
        try:
            ingest = self.path / "ingest"
            ingest.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=ingest)
            with os.fdopen(descriptor, "wb") as file:
                yield file.write
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            Path(name).replace(target)
            name = ""
            _sync_directory(target.parent)
        except OSError as cause:
            self._failed("write", target, cause)
        finally:
            if name:
                with suppress(OSError):
                    Path(name).unlink()

    @contextmanager
    def _locked(self, name: str, how: int, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lock; without ``wait`` give ``False`` when somebody else does."""
        path = self.path / name
        try:
            # O_CLOEXEC is Python's default: a credential helper does not inherit the lock.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as cause:
            self._failed("lock", path, cause)
        try:
            end = time.monotonic() + _LOCK_TIMEOUT_S
            while not (locked := _try_lock(descriptor, how)) and wait:
                if time.monotonic() > end:
                    raise ImageError(
                        f"store {str(self.path)!r}: another process has held {name} for {_LOCK_TIMEOUT_S:g} s; "
                        "end it and try again",
                        code="img.store_io",
                    )
                time.sleep(_LOCK_POLL_S)
            yield locked
        finally:
            os.close(descriptor)

    def _failed(self, verb: str, path: Path, cause: OSError) -> NoReturn:
        remedies = {
            errno.ENOSPC: "free space there",
            errno.EDQUOT: "raise the quota",
            errno.EFBIG: "raise the file size limit",
            errno.EROFS: "it is mounted read-only; choose another with store.path",
            errno.EACCES: "give this user write access or choose another with store.path",
            errno.EPERM: "give this user write access or choose another with store.path",
        }
        remedy = remedies.get(cause.errno or 0, "check the file system")
        raise ImageError(
            f"store {str(self.path)!r}: cannot {verb} {path.name!r}: {cause.strerror or cause}; {remedy}",
            code="img.store_io",
        ) from cause


def default_store_path() -> Path:
    """``/var/lib/skep/store`` for root and for its owner, else ``skep/store`` in the XDG data directory."""
    if os.geteuid() == 0 or _owns(_SYSTEM_STATE):
        return _SYSTEM_STATE / "store"
    data = os.environ.get("XDG_DATA_HOME", "")
    # A relative path is invalid by the XDG Base Directory specification and to be ignored.
    if not data.startswith("/"):
        try:
            data = str(Path.home() / ".local" / "share")
        except RuntimeError:
            data = "/var/tmp/skep-" + str(os.geteuid())  # noqa: S108 without a home there is no better place
    return Path(data) / "skep" / "store"


def _owns(directory: Path) -> bool:
    try:
        return directory.stat().st_uid == os.geteuid()
    except OSError:
        return False


def _is_named(entry: Descriptor, wanted: str) -> bool:
    """Whether the entry is the current one of this name; other tools may have written it less canonically."""
    name = entry.annotations.get(REF_NAME)
    if name is None:
        return False
    if name == wanted:
        return True
    try:
        return str(parse_reference(name)) == wanted
    except ImageError:
        return False


def _name(reference: Reference) -> str:
    """What a reference is called in a layout; empty when it names none."""
    in_layout = reference.kind in (ReferenceKind.CATALOG, ReferenceKind.LAYOUT)
    return reference.name if in_layout else str(reference)


def _listing_order(entry: Descriptor) -> tuple[str, bool, float]:
    family = entry.annotations.get(_REFERENCE) or entry.annotations.get(REF_NAME, "")
    return family, REF_NAME not in entry.annotations, -_pulled(entry)


def _pulled(entry: Descriptor) -> float:
    """When the entry was recorded, seconds since the epoch; other tools' entries are oldest."""
    try:
        return datetime.fromisoformat(entry.annotations.get(_PULLED, "")).timestamp()
    except ValueError:
        return 0.0


def _timestamp(when: datetime) -> str:
    return when.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _build_time() -> datetime | None:
    """``SOURCE_DATE_EPOCH`` (reproducible-builds.org), so that equal sources make equal layouts."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(text), UTC) if text.isascii() and text.isdecimal() and len(text) < 12 else None


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file; a pipe or device put in its place neither blocks nor runs on for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"over {limit} bytes", str(path))
    return content


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
