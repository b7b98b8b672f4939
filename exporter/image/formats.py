"""Manifests and indexes: read without trust, recognised, and written.

A manifest is JSON from a stranger. It is read with one spelling only (UTF-8, no
duplicate keys, no NaN, bounded size and depth), every digest is checked for
syntax before it can become a path or a URL, and titles stay labels.

Formats read: BumbleBee's and ours (a superset of it), and any manifest whose
single layer is a raw ELF object for BPF. BumbleBee, ecli and Inspektor Gadget
write no top-level ``mediaType``, so its absence means nothing.

Source: image-spec 1.1 ``manifest.md``, ``image-index.md``, ``descriptor.md``.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from exporter.errors import ImageError
from exporter.image.reference import Digest

MANIFEST_LIMIT = 4 << 20
BLOB_LIMIT = 32 << 20
IMAGE_LIMIT = 64 << 20
INDEX_DEPTH_LIMIT = 2

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)

BEE_CONFIG = "application/ebpf.oci.image.config.v1+json"
BEE_PROGRAM = "application/ebpf.oci.image.program.v1+binary"
KERNEL_TYPES = "application/vnd.skep.btf.v1"
"""A layer with BTF of kernels that do not show their own: one file, or an archive of them."""
TITLE = "org.opencontainers.image.title"
VERSION = "org.opencontainers.image.version"
CREATED = "org.opencontainers.image.created"
REF_NAME = "org.opencontainers.image.ref.name"
_ATTESTATION = "vnd.docker.reference.type"

_ARCHITECTURES = {
    "x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "arm64e": "arm64", "i386": "386", "i486": "386",
    "i586": "386", "i686": "386", "x86": "386", "armv6l": "arm", "armv7l": "arm", "armhf": "arm", "ppc64el": "ppc64le",
    "loongarch64": "loong64",
}  # fmt: skip


def normalise_architecture(text: str) -> str:
    """OCI's (Go's) word for an architecture: ``x86_64`` is ``amd64``, ``aarch64`` is ``arm64``."""
    lowered = text.strip().lower()
    return _ARCHITECTURES.get(lowered, lowered)


def host_architecture() -> str:
    """The architecture of this machine as OCI spells it."""
    return normalise_architecture(platform.machine())


@dataclass(frozen=True, slots=True)
class Platform:
    """What a descriptor says it runs on, in OCI's spelling."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}" + (f"/{self.variant}" if self.variant else "")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A typed content address: what to fetch, how long it is, what it must hash to."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    has_urls: bool = False

    @property
    def title(self) -> str:
        """A label for people, never a path."""
        return self.annotations.get(TITLE, "")


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one architecture: a config blob and layers."""

    digest: Digest
    media_type: str
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests, usually one for each architecture."""

    digest: Digest
    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Payload:
    """Which layer of a recognised manifest holds the object, and which types of kernels if one does."""

    format: str
    layer: Descriptor
    types: Descriptor | None = None


def strict_json(raw: bytes, *, subject: str, code: str = "img.manifest_json") -> Any:  # noqa: ANN401 JSON
    """Decode JSON that has exactly one meaning.

    Raises:
        ImageError: not UTF-8, not JSON, duplicate keys, NaN or Infinity, an
            unpaired surrogate, or nested too deeply.
    """

    def fail(reason: str, cause: Exception | None = None) -> NoReturn:
        raise ImageError(f"{subject}: {reason}", code=code) from cause

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(members)
        if len(found) != len(members):
            (repeated, _), *_ = Counter(key for key, _ in members).most_common(1)
            fail(f"key {repeated[:80]!r} appears twice in one JSON object")
        return found

    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=lambda word: fail(f"{word} is not JSON"))
        # An escaped lone surrogate decodes, and then breaks whoever prints it.
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as cause:
        fail("JSON is nested too deeply", cause)
    except UnicodeEncodeError as cause:
        fail("a JSON string holds an unpaired surrogate", cause)
    except ValueError as cause:
        start = raw.lstrip()[:1]
        if start == b"<":
            fail(f"got HTML or XML starting {raw.lstrip()[:40]!r}, not JSON; is the address a login page?", cause)
        fail(f"not JSON, starts {raw[:40]!r}", cause)
    return value


def parse_manifest(raw: bytes, *, subject: str, media_type: str = "") -> Manifest | Index:
    """Read the bytes of a manifest or index.

    Args:
        raw: As transferred; their SHA-256 is the digest of the result.
        subject: Opens every error message, such as ``image 'registry.example/a:1'``.
        media_type: The response's Content-Type; types that name no manifest are ignored.

    Raises:
        ImageError: ``img.manifest_too_large``, ``img.manifest_json``,
            ``img.manifest_type``, ``img.digest_syntax`` or ``img.no_layers``.
    """
    if len(raw) > MANIFEST_LIMIT:
        raise ImageError(
            f"{subject}: manifest is over {MANIFEST_LIMIT} bytes, the limit", code="img.manifest_too_large"
        )
    body = strict_json(raw, subject=f"{subject}: manifest")
    if not isinstance(body, dict):
        raise _broken(subject, f"is a JSON {_json_type(body)}, must be an object")
    version = body.get("schemaVersion")
    if isinstance(version, bool) or version != 2:
        raise _unsupported(subject, f"has schemaVersion {_shown(version)}, must be 2; push it in OCI format")
    stated = _string(body, "mediaType", subject)
    sent = media_type.partition(";")[0].strip().lower()
    if stated and stated not in MANIFEST_TYPES + INDEX_TYPES:
        raise _unsupported(subject, f"has media type {stated[:100]!r}; must be an OCI or Docker manifest or index")
    if stated and sent in MANIFEST_TYPES + INDEX_TYPES and sent != stated:
        raise _unsupported(subject, f"says it is {stated!r} but was served as {sent!r}")
    effective = stated or (sent if sent in MANIFEST_TYPES + INDEX_TYPES else "")
    # One document must not be an index to one reader and a manifest to another (CVE-2021-41190).
    is_index = "manifests" in body
    if is_index and ("layers" in body or "config" in body):
        raise _unsupported(subject, "has both 'manifests' and 'layers' or 'config'")
    if effective and (effective in INDEX_TYPES) != is_index:
        raise _unsupported(subject, f"has media type {effective!r} but the members of the other kind")
    if not is_index and "config" not in body and "layers" not in body:
        raise _unsupported(subject, "has neither 'config' and 'layers' nor 'manifests'")

    annotations = _annotations(body, subject)
    if is_index:
        entries = _descriptors(body["manifests"], f"{subject}: manifest 'manifests'")
        return Index(Digest.of(raw), effective or OCI_INDEX, entries, annotations)
    layers = body.get("layers")
    if not layers and (layers is None or isinstance(layers, list)):
        raise ImageError(f"{subject}: manifest has no layers, so no program; push it again", code="img.no_layers")
    return Manifest(
        digest=Digest.of(raw),
        media_type=effective or OCI_MANIFEST,
        artifact_type=_string(body, "artifactType", subject),
        config=_descriptor(body.get("config"), f"{subject}: manifest 'config'"),
        layers=_descriptors(layers, f"{subject}: manifest 'layers'"),
        annotations=annotations,
    )


def parse_descriptor(value: object, *, subject: str) -> Descriptor:
    """Read one descriptor, of a manifest or of a layout's ``index.json``."""
    return _descriptor(value, subject)


def select(index: Index, architecture: str) -> list[Descriptor]:
    """The children that may hold ``architecture``, best first.

    Attestations and children of platform ``unknown`` are skipped; nested indexes
    without a platform come last, for their own children may fit.

    Args:
        index: Whose children are meant.
        architecture: As OCI spells it.
    """
    wanted = normalise_architecture(architecture)
    direct, nested = [], []
    for child in index.manifests:
        if _ATTESTATION in child.annotations:
            continue
        if child.platform is None:
            if child.media_type in INDEX_TYPES:
                nested.append(child)
        elif child.platform.os == "linux" and child.platform.architecture == wanted:
            direct.append(child)
    # The baseline runs everywhere: amd64 without a variant or v1, arm64 without one or v8.
    direct.sort(key=lambda child: child.platform is not None and child.platform.variant not in ("", "v1", "v8"))
    return direct + nested


def image_children(index: Index) -> list[Descriptor]:
    """Every child that is an image or an index, so neither attestation nor of unknown platform."""
    return [
        child
        for child in index.manifests
        if _ATTESTATION not in child.annotations
        and (child.platform is not None or child.media_type in INDEX_TYPES)
        and (child.platform is None or child.platform.architecture != "unknown")
    ]


def no_platform(subject: str, architecture: str, available: Sequence[str]) -> ImageError:
    """The error for an image that was not built for this machine."""
    found = ", ".join(sorted(set(available))) or "none"
    return ImageError(
        f"{subject}: no image for linux/{architecture}, it has {found}; build and push it for this architecture",
        code="img.no_platform",
    )


def recognise(manifest: Manifest, *, subject: str) -> Payload:
    """Decide which layer is the object, by media type and title, before anything is downloaded.

    A ``generic`` payload must still prove by its first bytes that it is an object
    (:func:`is_bpf_elf`).

    Raises:
        ImageError: ``img.ambiguous_payload``, ``img.layer_encoding`` or
            ``img.unknown_format`` with the types seen.
    """
    types = [layer for layer in manifest.layers if layer.media_type == KERNEL_TYPES]
    layers = [layer for layer in manifest.layers if layer.media_type != KERNEL_TYPES]
    if len(types) > 1:
        raise ImageError(
            f"{subject}: {len(types)} layers are of type {KERNEL_TYPES}, must be 1 at most; put them into one archive",
            code="img.ambiguous_payload",
        )
    bee = [layer for layer in layers if layer.media_type == BEE_PROGRAM]
    if not bee and manifest.config.media_type == BEE_CONFIG:
        bee = [layer for layer in layers if layer.title == "program.o"]
    candidates = bee or (layers if len(layers) == 1 else [])
    if len(candidates) > 1:
        raise ImageError(
            f"{subject}: {len(candidates)} layers are programs, must be 1; which one is meant cannot be known",
            code="img.ambiguous_payload",
        )
    seen = ", ".join(sorted({layer.media_type[:80] for layer in manifest.layers}))
    if not candidates:
        raise ImageError(
            f"{subject}: {len(manifest.layers)} layers of type {seen}; "
            f"must be one {BEE_PROGRAM} or a single raw BPF object",
            code="img.unknown_format",
        )
    layer = candidates[0]
    kind = layer.media_type.lower()
    if layer.has_urls or "nondistributable" in kind or "foreign" in kind or kind.endswith(("+zstd", "+encrypted")):
        raise ImageError(
            f"{subject}: layer of type {layer.media_type[:80]!r} is encrypted, zstd or kept elsewhere; "
            "push the object as it is",
            code="img.layer_encoding",
        )
    if not bee and (".tar" in kind or kind.endswith(("+gzip", "+wasm"))):
        raise ImageError(
            f"{subject}: layer is of type {layer.media_type[:80]!r}, a container image or module; "
            f"must be {BEE_PROGRAM} or a raw BPF object",
            code="img.unknown_format",
        )
    return Payload("bumblebee" if bee else "generic", layer, types[0] if types else None)


def is_bpf_elf(data: bytes) -> bool:
    """Whether these bytes start as an ELF object for BPF (``e_machine`` 247) does."""
    if len(data) < 20 or data[:4] != b"\x7fELF" or data[5] not in (1, 2):
        return False
    return int.from_bytes(data[18:20], "little" if data[5] == 1 else "big") == 247


def parse_config(raw: bytes, *, subject: str) -> tuple[Mapping[str, Any], str]:
    """Read our config blob, BumbleBee's (``{}``) included.

    Returns:
        The metadata document under ``skep``, or ``{}``; and the architecture it states, or ``""``.

    Raises:
        ImageError: ``img.config``.
    """
    body = strict_json(raw, subject=f"{subject}: config", code="img.config")
    if not isinstance(body, dict):
        raise ImageError(f"{subject}: config is a JSON {_json_type(body)}, must be an object", code="img.config")
    document = body.get("skep", {})
    if not isinstance(document, dict):
        raise ImageError(
            f"{subject}: config 'skep' is a JSON {_json_type(document)}, must be an object", code="img.config"
        )
    architecture = body.get("architecture")
    return document, normalise_architecture(architecture) if isinstance(architecture, str) else ""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished image: its root and every blob, in the order a registry wants them."""

    root: Descriptor
    blobs: tuple[tuple[Descriptor, bytes], ...]


def build_artifact(
    objects: Mapping[str, bytes], metadata: Mapping[str, Any], annotations: Mapping[str, str], types: bytes = b""
) -> Artifact:
    """Write an image that skep and BumbleBee both read; equal input gives equal bytes.

    Args:
        objects: Object bytes by architecture; one gives a manifest, several an index.
        metadata: The ``skep`` document, may be empty.
        annotations: For the manifests and the index, such as ``org.opencontainers.image.version``.
        types: BTF of kernels that do not show their own, one file or an archive; empty for no such layer.
    """
    if not objects:
        raise ValueError("an image needs at least one object")
    blobs: list[tuple[Descriptor, bytes]] = []
    children: list[Descriptor] = []
    for architecture, content in sorted(objects.items(), key=lambda item: normalise_architecture(item[0])):
        target = Platform("linux", normalise_architecture(architecture))
        body: dict[str, Any] = {"architecture": target.architecture, "os": target.os}
        if metadata:
            body["skep"] = metadata
        config = compact_json(body)
        config_entry = Descriptor(BEE_CONFIG, Digest.of(config), len(config), {TITLE: "config.json"})
        layer_entry = Descriptor(BEE_PROGRAM, Digest.of(content), len(content), {TITLE: "program.o"})
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": BEE_CONFIG,
            "config": descriptor_json(config_entry),
            "layers": [descriptor_json(layer_entry)],
        }
        if types:
            types_entry = Descriptor(KERNEL_TYPES, Digest.of(types), len(types))
            manifest["layers"].append(descriptor_json(types_entry))
            blobs.append((types_entry, types))
        if annotations:
            manifest["annotations"] = dict(sorted(annotations.items()))
        raw = compact_json(manifest)
        child = Descriptor(OCI_MANIFEST, Digest.of(raw), len(raw), platform=target)
        blobs += [(config_entry, config), (layer_entry, content), (child, raw)]
        children.append(child)
    if len(children) == 1:
        return Artifact(children[0], tuple(blobs))
    index: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "artifactType": BEE_CONFIG,
        "manifests": [descriptor_json(child) for child in children],
    }
    if annotations:
        index["annotations"] = dict(sorted(annotations.items()))
    raw = compact_json(index)
    root = Descriptor(OCI_INDEX, Digest.of(raw), len(raw))
    return Artifact(root, (*blobs, (root, raw)))


def descriptor_json(descriptor: Descriptor) -> dict[str, Any]:
    """The JSON members of a descriptor; empty ones are left out."""
    members: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.platform:
        members["platform"] = {"architecture": descriptor.platform.architecture, "os": descriptor.platform.os}
        if descriptor.platform.variant:
            members["platform"]["variant"] = descriptor.platform.variant
    if descriptor.annotations:
        members["annotations"] = dict(descriptor.annotations)
    return members


def compact_json(value: object) -> bytes:
    """JSON without spaces, as every OCI tool writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _descriptors(value: object, subject: str) -> tuple[Descriptor, ...]:
    if not isinstance(value, list):
        raise ImageError(f"{subject} is a JSON {_json_type(value)}, must be a list", code="img.manifest_json")
    return tuple(_descriptor(entry, f"{subject}[{number}]") for number, entry in enumerate(value))


def _descriptor(value: object, subject: str) -> Descriptor:
    if not isinstance(value, dict):
        raise ImageError(f"{subject} is a JSON {_json_type(value)}, must be an object", code="img.manifest_json")
    digest = value.get("digest")
    if not isinstance(digest, str):
        raise ImageError(f"{subject} has no digest", code="img.digest_syntax")
    size = value.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 63:
        raise ImageError(f"{subject} has size {_shown(size)}, must be a byte count", code="img.manifest_json")
    return Descriptor(
        media_type=_string(value, "mediaType", subject),
        digest=Digest.parse(digest, subject=subject),
        size=size,
        annotations=_annotations(value, subject),
        platform=_platform(value.get("platform"), subject),
        has_urls=bool(value.get("urls")),
    )


def _platform(value: object, subject: str) -> Platform | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ImageError(f"{subject} has a platform that is no JSON object", code="img.manifest_json")
    os = _string(value, "os", subject).lower() or "linux"
    architecture = normalise_architecture(_string(value, "architecture", subject))
    variant = _string(value, "variant", subject)
    return Platform(os, architecture, variant) if architecture else None


def _annotations(holder: Mapping[str, Any], subject: str) -> Mapping[str, str]:
    value = holder.get("annotations")
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ImageError(f"{subject} has annotations that are not strings", code="img.manifest_json")
    title = value.get(TITLE, "")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in title):
        raise ImageError(f"{subject} has a title with control characters: {title[:60]!r}", code="img.manifest_json")
    return value


def _string(holder: Mapping[str, Any], key: str, subject: str) -> str:
    value = holder.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ImageError(f"{subject} has {key} {_shown(value)}, must be a string", code="img.manifest_json")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):
        raise ImageError(f"{subject} has {key} {value[:60]!r} with control characters", code="img.manifest_json")
    return value


def _json_type(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _shown(value: object) -> str:
    return repr(value)[:60] if isinstance(value, (str, int, float, type(None))) else f"a JSON {_json_type(value)}"


def _broken(subject: str, reason: str) -> ImageError:
    return ImageError(f"{subject}: manifest {reason}", code="img.manifest_json")


def _unsupported(subject: str, reason: str) -> ImageError:
    return ImageError(f"{subject}: manifest {reason}", code="img.manifest_type")
