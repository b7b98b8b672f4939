"""Images: references, registries, digests, the store. An object is bytes to it.

Knows OCI images and the registries that serve them. Must not know what is in an object beyond the
ELF header that proves it is one, nor BTF, plans, kernels or metrics.

::

    parse_reference("registry.example/bpf/disk:1.4")   -> Reference
    fetch(reference, store=Store(default_store_path())) -> Bundle        every kind of reference, one front door
    pull_image(reference, store=…)                      -> Digest        into the store only
    Store.add(reference, {"amd64": …}, metadata)        -> Digest        what a build makes
    upload.push_image(reference, store=…)               -> Digest        in a module of its own, for it imports oras
    archive.open_source(path), copy_image(source, …)    -> Digest        from a layout or archive into the store

Everything raises :class:`~exporter.errors.ImageError` with one of these codes:

====================== ==========================================================================
img.ref_syntax         a reference is malformed, or of a kind that cannot be used so
img.digest_syntax      a digest is not ``sha256:`` and 64 lower-case hexadecimal digits
img.unreachable        no connection to the registry, or no answer
img.tls                the registry's certificate, or our TLS files
img.timeout            a body stood still
img.deadline           not complete in time
img.stopped            the stop event was set
img.redirect           a redirect, or a name, leads where it may not
img.auth_realm         credentials are asked for somewhere else than at the registry
img.auth_token         the token server's answer holds no token
img.credentials        a credentials file or helper
img.unauthorized       401 with what we have
img.denied             403
img.not_found          404
img.status             any other refusal
img.manifest_digest    manifest bytes are not the ones asked for
img.manifest_too_large over 4 MiB
img.manifest_json      not JSON, or not one meaning
img.manifest_type      JSON, but no manifest or index we know
img.config             our config blob is malformed
img.no_layers          a manifest without layers
img.ambiguous_payload  several layers are programs
img.unknown_format     no layer is a program
img.layer_encoding     the program layer is encrypted, zstd or kept elsewhere
img.no_platform        not built for this architecture
img.index_depth        indexes in indexes in indexes
img.blob_digest        a blob does not hash to its digest
img.blob_size          a blob, or all of them, larger than said or allowed
img.truncated          a body ended early
img.content_encoding   a body came compressed though that was refused
img.cache_corrupt      a stored blob or the store's index was altered
img.not_present        not in the store or layout, and not to be pulled
img.ambiguous_name     the layout holds several images and none was named
img.store_io           the disk said no
img.in_use             the agent runs what is to be removed
img.tag_exists         the name means another image
img.file               a local object file
img.archive            a file that should hold an OCI layout, or cannot be written
img.push               after a push the registry serves something else, or breaks the upload protocol
====================== ==========================================================================

Names are imported on first use: a reader of references pays for no HTTP client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.image.bundle import Bundle
    from exporter.image.formats import Manifest, host_architecture
    from exporter.image.reference import Digest, Reference, ReferenceKind, parse_reference
    from exporter.image.store import Store, StoredImage, default_store_path
    from exporter.image.transfer import ALL_ARCHITECTURES, copy_image, fetch, pull_image

_HOMES = {
    "ALL_ARCHITECTURES": "transfer",
    "Bundle": "bundle",
    "Digest": "reference",
    "Manifest": "formats",
    "Reference": "reference",
    "ReferenceKind": "reference",
    "Store": "store",
    "copy_image": "transfer",
    "StoredImage": "store",
    "default_store_path": "store",
    "fetch": "transfer",
    "host_architecture": "formats",
    "parse_reference": "reference",
    "pull_image": "transfer",
}

__all__ = [
    "ALL_ARCHITECTURES",
    "Bundle",
    "Digest",
    "Manifest",
    "Reference",
    "ReferenceKind",
    "Store",
    "StoredImage",
    "copy_image",
    "default_store_path",
    "fetch",
    "host_architecture",
    "parse_reference",
    "pull_image",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
