"""What all of this is measured on: the OpenTelemetry resource, the same after every restart.

The SDK's default instance id is new at each start, which would make every restart
a new target; here it is derived from the machine's id and the service's name, as
the semantic conventions allow.

Source: OpenTelemetry semantic conventions, "Service" and "Host".
"""

from __future__ import annotations

import platform
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path

from opentelemetry.sdk.resources import OTELResourceDetector
from opentelemetry.sdk.resources import Resource as SdkResource

from exporter.model import Resource

from .telemetry import VERSION

# The namespace that the semantic conventions give for service.instance.id.
_INSTANCE_NAMESPACE = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")
_MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
# Well-known values of host.arch, by uname's machine.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm32", "i686": "x86"}


def machine_id() -> str:
    """Give the id that systemd or D-Bus gave this installation; empty if neither did."""
    for file in _MACHINE_ID_FILES:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text and text != "uninitialized":
            return text
    return ""


def detect_resource(attributes: Mapping[str, str]) -> Resource:
    """Describe this host and this service.

    Args:
        attributes: Of the configuration; they win over ``OTEL_RESOURCE_ATTRIBUTES`` and
            ``OTEL_SERVICE_NAME``, and those over what is detected.
    """
    host_id = machine_id()
    release = _os_release()
    found = {
        "service.name": "skep",
        "service.version": VERSION,
        "host.id": host_id,
        "host.name": socket.gethostname(),
        "host.arch": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os.type": "linux",
        "os.name": release.get("NAME", ""),
        "os.version": release.get("VERSION_ID", ""),
        "os.description": release.get("PRETTY_NAME", ""),
    }
    resource = SdkResource({key: value for key, value in found.items() if value})
    resource = resource.merge(OTELResourceDetector().detect()).merge(SdkResource(dict(attributes)))
    merged = {key: str(value) for key, value in resource.attributes.items()}
    if "service.instance.id" not in merged:
        # Without a machine id the host's name is the next most stable thing.
        subject = (host_id or merged["host.name"]) + merged["service.name"]
        merged["service.instance.id"] = str(uuid.uuid5(_INSTANCE_NAMESPACE, subject))
    return Resource(tuple(sorted(merged.items())))


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}
