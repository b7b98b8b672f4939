"""Push a stored image, and prove that the registry serves what was meant.

The upload protocol (is the blob there, open a session, follow its Location, put) is
``oras``'s. Three parts of oras 0.2.43 are not sound enough and are replaced by ours:

- ``do_request``, its transport and authentication: it has no timeouts, sleeps up to 131 s on any
  exception, sends credentials to whatever realm is named, keeps one token without refreshing
  it, and must be told Basic from Bearer beforehand. :class:`~exporter.image.registry.Registry` does these.
- ``Container.parse``: its pattern is not anchored and turns ``host/a//b`` into Docker Hub's ``b``.
  Its fields are set from our parsed reference instead.
- ``upload_manifest``: it serialises JSON anew, so the digest changes, and knows one media type.
  The manifest's own bytes are put through the same client.

One client serves one repository. Importing this module imports oras and its JSON schema
packages; that is why :mod:`exporter.image` does not.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin

import oras.client
import oras.container
import requests
import urllib3

from exporter.config import RegistryConfig
from exporter.errors import ImageError
from exporter.image.formats import Descriptor, Index, Manifest, parse_manifest
from exporter.image.reference import Digest, Reference, ReferenceKind
from exporter.image.registry import Registry
from exporter.image.store import Store
from exporter.image.transfer import DEADLINE_S, Progress, registry_config
from exporter.image.transport import read_limited

_ANSWER_LIMIT = 1 << 20


def push_image(
    reference: Reference,
    *,
    store: Store,
    registries: Mapping[str, RegistryConfig] | None = None,
    deadline_s: float = DEADLINE_S,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
) -> Digest:
    """Copy what ``reference`` means in the store to its registry.

    Args:
        reference: Registry reference; with a tag, the registry's tag is moved.
        store: Must hold every blob of every architecture.
        registries: Settings by ``host[:port]``.
        deadline_s: For all of it.
        stop: Gives up when set.
        progress: Told of each blob before and after it was sent, or found to be there.

    Returns:
        The digest the registry serves under the reference, read back after the push.

    Raises:
        ImageError: ``img.not_present`` when a blob is missing here; ``img.push`` when the registry then serves
            something else; what a pull raises.
    """
    if reference.kind is not ReferenceKind.REGISTRY:
        raise ImageError(
            f"image '{reference}' is not in a registry, so there is nowhere to push it; "
            "build it under the registry's name",
            code="img.ref_syntax",
        )
    root = store.resolve(reference)
    if root is None:
        raise ImageError(
            f"image '{reference}': not in the store {str(store.path)!r}; build or pull it first", code="img.not_present"
        )
    config = registry_config(reference, registries)
    with Registry(reference, config, deadline_s=deadline_s, stop=stop, push=True) as registry:
        client = _Client(registry, reference, progress)
        client.push_document(store, root, target=reference.tag or str(root.digest))
        served = registry.manifest(reference.tag or root.digest)
    if served.digest != root.digest:
        raise ImageError(
            f"image '{reference}': pushed {root.digest}, but the registry now serves {served.digest}; "
            "someone else pushed the same tag, or the registry rewrites manifests",
            code="img.push",
        )
    return root.digest


class _Client(oras.client.OrasClient):  # type: ignore[misc]
    """oras's upload protocol over our requests."""

    def __init__(self, registry: Registry, reference: Reference, progress: Progress | None = None) -> None:
        super().__init__(hostname=reference.api_host, insecure=registry.base.startswith("http://"))
        self._registry = registry
        self._progress = progress
        # Parsed from a name that any pattern reads alike, then set to what we know.
        self._container = oras.container.Container("placeholder", registry=reference.api_host)
        namespace, _, repository = reference.repository.rpartition("/")
        self._container.namespace, self._container.repository = namespace or None, repository

    def push_document(self, store: Store, descriptor: Descriptor, *, target: str) -> None:
        """Push what a manifest or index names, then itself: a registry refuses dangling ones."""
        raw = store.read(descriptor)
        subject = self._registry.subject
        document = parse_manifest(raw, subject=subject, media_type=descriptor.media_type)
        if isinstance(document, Index):
            self._push_children(store, document)
        else:
            self._push_blobs(store, document)
        self.do_request(
            self._registry.url(f"manifests/{target}"), "PUT", data=raw, headers={"Content-Type": document.media_type}
        )

    def _push_children(self, store: Store, index: Index) -> None:
        for child in index.manifests:
            try:
                self.push_document(store, child, target=str(child.digest))
            except ImageError as error:
                if error.code != "img.not_present":
                    raise
                shown = child.platform or child.media_type
                raise ImageError(
                    f"{self._registry.subject}: its image for {shown} is not in the store; "
                    "pull it with --all-architectures before pushing",
                    code="img.not_present",
                ) from error

    def _push_blobs(self, store: Store, manifest: Manifest) -> None:
        for part in {part.digest: part for part in (manifest.config, *manifest.layers)}.values():
            # Hashed again here; the registry hashes once more what it gets.
            store.read(part)
            if self._progress:
                self._progress(part, 0)
            layer = {"digest": str(part.digest), "size": part.size, "mediaType": part.media_type}
            try:
                self.upload_blob(str(store.blob_path(part.digest)), self._container, layer)
            except ValueError as cause:
                # oras's way to say that the answer to POST names no upload session.
                raise ImageError(
                    f"{self._registry.subject}: registry {self.hostname!r} accepted an upload but gave no Location "
                    "for it; it does not follow the distribution specification",
                    code="img.push",
                ) from cause
            if self._progress:
                self._progress(part, part.size)

    def do_request(  # noqa: PLR0917 as oras calls it
        self,
        url: str,
        method: str = "GET",
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
        json: dict[str, Any] | None = None,
        stream: bool = False,
    ) -> requests.Response:
        """Send through our registry client; the answer is read whole, for nothing large is asked for here.

        Raises:
            ImageError: also for a refusal of anything but a HEAD, which only asks.
        """
        if json is not None or stream:
            raise NotImplementedError("no request of an upload needs this")
        kept = {key: value for key, value in (headers or {}).items() if key.lower() != "content-length"}
        # Without a body POST must still say that its length is 0.
        body = b"" if data is None and method in ("POST", "PUT") else data
        answer = self._registry.request(method, url, headers=kept, body=body)
        if method != "HEAD" and not 200 <= answer.status < 300:
            self._registry.fail(answer, "right to push" if answer.status in (401, 403) else "place for this upload")
        response = _as_requests(answer, self._registry.subject, has_body=method != "HEAD" and answer.status != 204)
        if location := response.headers.get("Location"):
            # oras appends what is not absolute to the host's name: '.evil.example/' would become another host.
            response.headers["Location"] = self._absolute(url, location)
        return response

    def _absolute(self, url: str, location: str) -> str:
        try:
            return urljoin(url, location)
        except ValueError as cause:
            raise ImageError(
                f"{self._registry.subject}: registry {self.hostname!r} gave the malformed Location {location[:200]!r}",
                code="img.redirect",
            ) from cause


def _as_requests(answer: urllib3.BaseHTTPResponse, subject: str, *, has_body: bool) -> requests.Response:
    """What oras looks at: status, headers, body."""
    body = read_limited(answer, _ANSWER_LIMIT, subject=subject) if has_body else b""
    answer.close()
    response = requests.Response()
    response.status_code = answer.status
    response.headers.update(answer.headers)
    response.reason = answer.reason or ""
    response.raw = io.BytesIO(body or b"")
    return response
