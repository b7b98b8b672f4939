"""Small images for tests: objects that look like BPF from outside, and manifests of every shape."""

import hashlib
import json
from typing import Any

from exporter.image.formats import BEE_CONFIG, BEE_PROGRAM, OCI_INDEX, OCI_MANIFEST, TITLE


def bpf_elf(content: bytes = b"program", *, machine: int = 247) -> bytes:
    """Bytes with the header of an ELF object; nothing in it can be loaded."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + (1).to_bytes(2, "little") + machine.to_bytes(2, "little") + content


def digest_of(data: bytes) -> str:
    """``sha256:<hex>`` of these bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor(data: bytes, media_type: str, **more: object) -> dict[str, Any]:
    """An honest descriptor of ``data``."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}


def bee_manifest(program: bytes, config: bytes = b"{}", **more: object) -> bytes:
    """A manifest as BumbleBee writes it: compact, no ``mediaType``, no ``artifactType``, two titles."""
    body = {
        "schemaVersion": 2,
        "config": descriptor(config, BEE_CONFIG, annotations={TITLE: "config.json"}),
        "layers": [descriptor(program, BEE_PROGRAM, annotations={TITLE: "program.o"})],
        **more,
    }
    return json.dumps(body, separators=(",", ":")).encode()


def index_of(*children: tuple[bytes, dict[str, str] | None], media_type: str = OCI_INDEX, **more: object) -> bytes:
    """An index of manifests, each with its platform or none."""
    entries = []
    for raw, platform in children:
        kind = json.loads(raw).get("mediaType", OCI_INDEX if b'"manifests"' in raw else OCI_MANIFEST)
        entries.append(descriptor(raw, kind, **({"platform": platform} if platform else {})))
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries, **more}).encode()
