"""The line from the guest to the harness: one JSON object per line."""

from __future__ import annotations

import json
import os

VARIABLE = "SKEP_VM_CHANNEL"
GUEST_LINE = "/dev/ttyS1"


def in_guest() -> bool:
    """Whether the machine is a guest of the harness, whose devices a test may take away."""
    return os.environ.get(VARIABLE) == GUEST_LINE


def say(event: str, **fields: object) -> None:
    """Send one event; whole, or not at all."""
    data = json.dumps({"event": event, **fields}).encode() + b"\n"
    descriptor = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)
