"""What a service says to systemd, and what it gets from it (sd_notify(3), sd_listen_fds(3)).

One datagram per message. Without ``$NOTIFY_SOCKET`` every call does nothing. A message
that cannot be sent is not worth a failure: systemd notices by its own timeouts. Only
storing descriptors says whether it was heard, as the caller must know what is kept.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence

from exporter.errors import SkepError

FIRST_DESCRIPTOR = 3
"""``SD_LISTEN_FDS_START``: where passed descriptors begin."""
DESCRIPTORS_PER_MESSAGE = 253
"""``SCM_MAX_FD`` of the kernel's ``include/net/scm.h``."""

_SEND_TIMEOUT_S = 1.0
_STORE_TIMEOUT_S = 5.0


class Notifier:
    """Speaks to the service manager that started this process, if one did.

    Args:
        environment: Where ``NOTIFY_SOCKET``, ``WATCHDOG_USEC``, ``WATCHDOG_PID`` and ``FDSTORE`` are looked up.

    Attributes:
        watchdog_s: How often it wants to hear of us; 0 for never.
        store_limit: Descriptors it keeps for us over a restart. systemd sets ``$FDSTORE`` from version 254 on; before
            that the unit says it beside ``FileDescriptorStoreMax=``, since it cannot be asked.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # "@name" is Linux's abstract namespace; anything else is a path.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = 0.0
        with contextlib.suppress(ValueError):
            if int(environment.get("WATCHDOG_PID") or os.getpid()) == os.getpid():
                self.watchdog_s = int(environment.get("WATCHDOG_USEC") or 0) / 1e6
        self.store_limit = 0
        with contextlib.suppress(ValueError):
            if self._address:
                self.store_limit = max(0, int(environment.get("FDSTORE") or 0))
        self._last_status = ""

    @property
    def present(self) -> bool:
        """Whether there is somebody to tell."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Tell that start-up, or a reload, is over."""
        self._send(f"READY=1\nSTATUS={_one_line(status)}")
        self._last_status = status

    def status(self, status: str) -> None:
        """Tell one line for ``systemctl status``; the same line twice is sent once."""
        if status != self._last_status:
            self._send(f"STATUS={_one_line(status)}")
            self._last_status = status

    def reloading(self, status: str) -> None:
        """Tell that a reload begins; :meth:`ready` ends it."""
        # systemd wants to know that this is not older than its own request (Type=notify-reload).
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS={_one_line(status)}")
        self._last_status = status

    def stopping(self, status: str) -> None:
        """Tell that the end has begun."""
        self._send(f"STOPPING=1\nSTATUS={_one_line(status)}")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for so much more time from now, while starting, reloading or stopping takes long."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def alive(self) -> None:
        """Tell the watchdog that all is well; call it at least twice in ``watchdog_s``."""
        if self.watchdog_s:
            self._send("WATCHDOG=1")

    # ---- descriptors kept over a restart ----

    def store(self, name: str, descriptors: Sequence[int]) -> None:
        """Have descriptors kept under a name until :meth:`remove` or the service's stop.

        Args:
            name: At most 255 printable ASCII characters and no ``:``.
            descriptors: Stay ours too.

        Raises:
            SkepError: it could not be said.
        """
        assert name.isascii() and name.isprintable() and ":" not in name and len(name) <= 255, name
        for start in range(0, len(descriptors), DESCRIPTORS_PER_MESSAGE):
            some = descriptors[start : start + DESCRIPTORS_PER_MESSAGE]
            # Without FDPOLL=0 one whose poll() says hang-up, as that of a perf event may, would be dropped.
            self._send_or_raise(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", some)

    def remove(self, name: str) -> None:
        """Have all descriptors of a name let go of."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def barrier(self, timeout_s: float) -> bool:
        """Wait until everything said so far was done; whether it was in time."""
        if not self._address:
            return True
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                self._send_or_raise("BARRIER=1", [ours])
            except SkepError:
                return False
            finally:
                os.close(ours)
            # The other end is closed when the message was handled.
            poll = select.poll()
            poll.register(theirs, 0)
            return bool(poll.poll(timeout_s * 1000))
        finally:
            os.close(theirs)

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), self._socket(_SEND_TIMEOUT_S) as sender:
            sender.sendto(message.encode(), self._address)

    def _send_or_raise(self, message: str, descriptors: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        try:
            with self._socket(_STORE_TIMEOUT_S) as sender:
                sender.sendmsg([message.encode()], rights, 0, self._address)
        except OSError as error:
            raise SkepError(
                f"systemd: storing {len(descriptors)} descriptors: {error.strerror or error}; see NotifyAccess= "
                "and FileDescriptorStoreMax= of the unit",
                code="systemd",
            ) from error

    @staticmethod
    @contextlib.contextmanager
    def _socket(timeout_s: float) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(timeout_s)
            yield sender


def _one_line(status: str) -> str:
    return " ".join(status.split())


def passed_descriptors(environment: MutableMapping[str, str] = os.environ) -> list[tuple[str, int]]:
    """Take the descriptors that this process was started with: listening sockets and those that were stored.

    They are closed at the next exec from here on, and the environment forgets them, so that no child takes them
    for its own; a second call gives none.

    Returns:
        ``(name, descriptor)``; ``unknown`` for one without a name.
    """
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    environment.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return []
    passed = []
    for index in range(int(count)):
        fd = FIRST_DESCRIPTOR + index
        try:
            os.set_inheritable(fd, False)
        except OSError:
            continue  # it is not there; whoever looks for it will see
        passed.append((names[index] if index < len(names) and names[index] else "unknown", fd))
    return passed
