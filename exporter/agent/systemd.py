"""What a service says to systemd: one datagram per message (sd_notify(3)).

Without ``$NOTIFY_SOCKET`` every call does nothing. A message that cannot be sent is
not worth a failure: systemd notices by its own timeouts.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """Speaks to the service manager that started this process, if one did.

    Args:
        environment: Where ``NOTIFY_SOCKET``, ``WATCHDOG_USEC``, ``WATCHDOG_PID`` and ``FDSTORE`` are looked up.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # "@name" is Linux's abstract namespace; anything else is a path.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = 0.0
        with contextlib.suppress(ValueError):
            if int(environment.get("WATCHDOG_PID") or os.getpid()) == os.getpid():
                self.watchdog_s = int(environment.get("WATCHDOG_USEC") or 0) / 1e6
        self._last_status = ""

    def ready(self, status: str) -> None:
        """Tell that start-up is over."""
        self._send(f"READY=1\nSTATUS={status}")
        self._last_status = status

    def status(self, status: str) -> None:
        """Tell one line for ``systemctl status``; the same line twice is sent once."""
        if status != self._last_status:
            self._send(f"STATUS={status}")
            self._last_status = status

    def stopping(self, status: str) -> None:
        """Tell that the end has begun."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    def alive(self) -> None:
        """Tell the watchdog that all is well; call it at least twice in ``watchdog_s``."""
        if self.watchdog_s:
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.settimeout(1.0)
            sender.sendto(message.encode(), self._address)
