"""What a user writes to name an image, read once and strictly.

::

    registry.example/bpf/disk:1.4@sha256:9f…   a registry's; the digest decides, the tag is for people
    disk, me/disk                              Docker Hub's: docker.io/library/disk, docker.io/me/disk
    catalog:block-latency                      shipped with skep
    ./disk.o, /srv/disk.o                      one local object
    oci:DIR, oci:DIR:NAME, oci:DIR@sha256:9f…  an OCI image layout; NAME is its ``ref.name``
    /srv/layout, ./layout                      the same, by a path that starts with /, ./, ../ or ~/

The grammar is the one Docker's reference library documents, matched whole.
A name that could be Docker Hub's is never looked up in the current directory:
what an agent runs may not depend on where it was started.

Nothing here opens a file or a socket.
"""

from __future__ import annotations

import enum
import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import PurePath

from exporter.errors import ImageError

DOCKER_HUB = "docker.io"
_DOCKER_HUB_API = "registry-1.docker.io"
_DOCKER_HUB_NAMES = {"docker.io", "index.docker.io", "registry-1.docker.io"}

_HEX = re.compile(r"[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_IPV6_HOST = re.compile(r"\[[0-9A-Fa-f:]{2,39}\]")
_LOOPBACK = re.compile(r"localhost|[A-Za-z0-9-]+\.localhost|127(?:\.[0-9]{1,3}){3}|\[(?:::1|(?:0{1,4}:){7}0{0,3}1)\]")
_NAME_LIMIT = 255
_TEXT_LIMIT = 4096


class ReferenceKind(enum.Enum):
    """Where the bytes of a reference are."""

    REGISTRY = "registry"
    CATALOG = "catalog"
    FILE = "file"
    LAYOUT = "layout"


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A SHA-256 content address; ``str()`` gives ``sha256:<64 hex>``.

    No other algorithm is accepted: an address that is also a path and a URL has one spelling.
    """

    hex: str

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.hex):
            raise ValueError("a digest is 64 lower-case hexadecimal digits")

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @property
    def short(self) -> str:
        """Enough of it for a table: the algorithm and 12 digits."""
        return f"sha256:{self.hex[:12]}"

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The digest of these bytes."""
        return cls(hashlib.sha256(data).hexdigest())

    @classmethod
    def parse(cls, text: str, *, subject: str = "") -> Digest:
        """Read ``sha256:<64 hex>``.

        Args:
            text: The digest alone.
            subject: What it belongs to, opening the error message.

        Raises:
            ImageError: any other length, algorithm or spelling (``img.digest_syntax``).
        """
        algorithm, _, digits = text.partition(":")
        if algorithm == "sha256" and _HEX.fullmatch(digits):
            return cls(digits)
        raise ImageError(
            f"{subject + ': ' if subject else ''}digest is {text[:100]!r}; "
            "must be 'sha256:' and 64 lower-case hexadecimal digits",
            code="img.digest_syntax",
        )


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference; ``str()`` is its canonical text, which parses to an equal one.

    Attributes:
        kind: Decides which of the other fields are set.
        registry: ``host[:port]``, lower case; Docker Hub is ``docker.io``.
        repository: Path without registry, tag and digest.
        tag: Of a registry reference; empty only beside a digest.
        digest: When set it alone decides what is meant.
        path: Of a file or layout, as written.
        name: Catalog name, or the ``ref.name`` inside a layout; may be empty for a layout.
    """

    kind: ReferenceKind
    registry: str = ""
    repository: str = ""
    tag: str = ""
    digest: Digest | None = None
    path: str = ""
    name: str = ""

    def __str__(self) -> str:
        pin = f"@{self.digest}" if self.digest else ""
        match self.kind:
            case ReferenceKind.REGISTRY:
                return f"{self.registry}/{self.repository}{':' + self.tag if self.tag else ''}{pin}"
            case ReferenceKind.CATALOG:
                return f"catalog:{self.name}"
            case ReferenceKind.FILE:
                return self.path
            case ReferenceKind.LAYOUT:
                return f"oci:{self.path}{':' + self.name if self.name else ''}{pin}"

    @property
    def default_name(self) -> str:
        """The last part without tag, digest and ``.bpf.o``: what an image is called when nobody names it."""
        match self.kind:
            case ReferenceKind.REGISTRY:
                return self.repository.rpartition("/")[2]
            case ReferenceKind.CATALOG:
                return self.name
            case ReferenceKind.FILE:
                return PurePath(self.path).name.removesuffix(".o").removesuffix(".bpf") or "object"
            case ReferenceKind.LAYOUT:
                last = re.split(r"[:@]", self.name.rpartition("/")[2])[0]
                return last or PurePath(self.path).name or "layout"

    @property
    def api_host(self) -> str:
        """The ``host[:port]`` that serves the registry's API; Docker Hub's is not its name."""
        return _DOCKER_HUB_API if self.registry == DOCKER_HUB else self.registry

    @property
    def loopback(self) -> bool:
        """Whether the registry is this machine, and so may speak plain HTTP."""
        return bool(_LOOPBACK.fullmatch(re.sub(r":\d+$", "", self.registry)))

    def pinned(self, digest: Digest) -> Reference:
        """The same reference with ``digest`` deciding."""
        return replace(self, digest=digest)

    @property
    def unpinned(self) -> Reference:
        """The same reference without its digest, or itself when only the digest says what is meant."""
        return replace(self, digest=None) if self.tag or self.kind is not ReferenceKind.REGISTRY else self


def parse_reference(text: str) -> Reference:
    """Read a reference of any kind.

    Raises:
        ImageError: ``img.ref_syntax`` with the reason (C source is one), or ``img.digest_syntax``
            when it is the digest that is malformed.

    Source: the reference grammar of github.com/distribution/reference, ``reference.go``
    and ``normalize.go``.
    """
    if not text:
        raise _malformed(text, "it is empty")
    if len(text) > _TEXT_LIMIT:
        raise _malformed(text, f"it is {len(text)} characters long, the limit is {_TEXT_LIMIT}")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise _malformed(text, "it holds a control character")
    if text.startswith("catalog:"):
        return _parse_catalog(text)
    if text.startswith("oci:"):
        return _parse_layout(text)
    is_path = text in (".", "..") or text.startswith(("/", "./", "../", "~/"))
    if text.endswith(".o") and (is_path or not set(text) & set("@:")):
        return Reference(ReferenceKind.FILE, path=text)
    if text.endswith(".c") and (is_path or _may_be_a_file(text)):
        raise ImageError(
            f"object {text!r} is C source; compile it first: skep build {text} --output {text[:-2]}.o",
            code="img.ref_syntax",
        )
    if is_path:
        return Reference(ReferenceKind.LAYOUT, path=_layout_path(text, text))
    return _parse_registry(text)


def _may_be_a_file(text: str) -> bool:
    """Whether a name has neither tag nor digest nor host, so that who wrote it hardly meant a registry's image."""
    first, slash, _ = text.partition("/")
    return not set(text) & set("@:") and not (slash and ("." in first or first.lower() == "localhost"))


def _parse_catalog(text: str) -> Reference:
    name = text.removeprefix("catalog:")
    if not _PART.fullmatch(name):
        raise _malformed(text, "what follows 'catalog:' must be a name such as 'block-latency'")
    return Reference(ReferenceKind.CATALOG, name=name)


def _layout_path(path: str, text: str) -> str:
    if ":" in path or "@" in path:
        raise _malformed(text, "a layout's path cannot hold ':' or '@'; write oci:DIR:NAME to pick an image of it")
    return path


def _parse_layout(text: str) -> Reference:
    rest, at, pin = text.removeprefix("oci:").partition("@")
    path, colon, name = rest.partition(":")
    if not path:
        raise _malformed(text, "no directory follows 'oci:'")
    if colon and not name:
        raise _malformed(text, "no name follows the directory's ':'")
    digest = Digest.parse(pin, subject=_subject(text)) if at else None
    return Reference(ReferenceKind.LAYOUT, path=path, name=name, digest=digest)


def _parse_registry(text: str) -> Reference:
    if "://" in text:
        raise _malformed(text, "it is a URL; leave out the scheme")
    if any(character.isspace() for character in text):
        raise _malformed(text, "it holds a space")
    if not text.isascii():
        raise _malformed(text, "it holds characters outside ASCII")
    rest, at, pin = text.partition("@")
    if at and "/" in pin:
        raise _malformed(text, "it holds credentials or a stray '@'; use a Docker credentials file")
    digest = Digest.parse(pin, subject=_subject(text)) if at else None

    first, slash, remainder = rest.partition("/")
    # A first part with a dot or a colon cannot be a Docker Hub user: it is a host. (Docker also takes
    # one with upper case for a host; folded to lower case it would read as a user, so it is refused.)
    if slash and (any(mark in first for mark in ".:[") or first.lower() == "localhost"):
        registry = _registry_host(first, text)
    else:
        registry, remainder = DOCKER_HUB, rest
    repository, colon, tag = remainder.partition(":")
    if colon and not _TAG.fullmatch(tag):
        reason = "the tag is empty" if not tag else f"tag {tag[:130]!r} must be up to 128 of A-Z a-z 0-9 . _ -"
        raise _malformed(text, reason + " and not start with . or -" if tag else reason)
    for part in repository.split("/"):
        if not _PART.fullmatch(part):
            raise _malformed(text, _part_reason(part))
    if registry == DOCKER_HUB and "/" not in repository:
        if not slash and _HEX.fullmatch(repository):
            raise _malformed(text, "64 hexadecimal digits are an image id, not a name")
        repository = f"library/{repository}"
    if len(registry) + 1 + len(repository) > _NAME_LIMIT:
        raise _malformed(text, f"the name is longer than {_NAME_LIMIT} characters")
    if not tag and not digest:
        tag = "latest"
    return Reference(ReferenceKind.REGISTRY, registry=registry, repository=repository, tag=tag, digest=digest)


def _part_reason(part: str) -> str:
    if not part:
        return "a part of its path is empty"
    if part in (".", ".."):
        return f"{part!r} is not a path part"
    if part != part.lower():
        return f"repository part {part!r} has upper case"
    return f"repository part {part!r} must be a-z 0-9 with single . _ or - between"


def _registry_host(host: str, text: str) -> str:
    name, colon, port = host, "", ""
    if not (host.startswith("[") and host.endswith("]")):
        name, colon, port = host.rpartition(":") if ":" in host else (host, "", "")
    if colon and not (port.isdecimal() and 1 <= int(port[:6]) <= 65535 and len(port) <= 5):
        raise _malformed(text, f"port {port[:20]!r} must be 1 to 65535")
    labels_fit = len(name) <= 253 and all(_HOST_LABEL.fullmatch(label) for label in name.split("."))
    if not (_IPV6_HOST.fullmatch(name) or labels_fit):
        raise _malformed(text, f"registry host {name[:100]!r} is not a host name or address")
    lowered = host.lower()
    return DOCKER_HUB if lowered in _DOCKER_HUB_NAMES else lowered


def _subject(text: str) -> str:
    """How an error calls the reference: a password before an ``@`` is never repeated in a log."""
    before, at, after = text.partition("@")
    if at and not after.startswith(("sha256:", "sha512:", "md5:")):
        before = "…"
    shown = before + at + after
    return f"reference {shown if len(shown) <= 200 else shown[:200] + '…'!r}"


def _malformed(text: str, reason: str) -> ImageError:
    return ImageError(
        f"{_subject(text)} is malformed: {reason}; "
        "write HOST/PATH[:TAG][@sha256:…], catalog:NAME, oci:DIR[:NAME] or the path of a .o file",
        code="img.ref_syntax",
    )
