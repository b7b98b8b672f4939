"""Listening sockets: from addresses, or handed over by systemd."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from exporter.errors import ExportError

_VSOCK = "vsock://"
_LOOPBACKS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - is told, not bound


def parse_address(address: str) -> tuple[str, int]:
    """Read ``HOST:PORT``, ``[IPV6]:PORT`` or ``:PORT``.

    Returns:
        Host, ``""`` for every address of the machine, and port.

    Raises:
        ExportError: it is none of these.
    """
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 0xFFFF:
        raise ExportError(
            f"listen address {address!r}: not HOST:PORT; write ':19435', '127.0.0.1:19435' or '[::1]:19435'",
            code="web.address",
        )
    return host, int(port)


def listen(address: str) -> socket.socket:
    """Open a listening socket; ``:PORT`` takes IPv6 and IPv4 alike where the machine has both.

    Raises:
        ExportError: it cannot be listened on.
    """
    vsock = address.startswith(_VSOCK)
    host, port = parse_address(address.removeprefix(_VSOCK))
    if vsock and host:
        raise ExportError(
            f"listen address {address!r}: a vsock address has a port only; write 'vsock://:19435'", code="web.address"
        )
    try:
        if vsock:
            return _listen_vsock(port)
        if host in ("", "::") and socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
        flags = socket.AI_PASSIVE | socket.AI_ADDRCONFIG if not host else 0
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
        # A name like localhost may have both; scrapers are told IPv4 addresses more often.
        family, *_, sockaddr = min(found, key=lambda each: each[0] != socket.AF_INET)
        return socket.create_server(sockaddr[:2] if family == socket.AF_INET else sockaddr, family=family, backlog=128)
    except OSError as cause:
        if cause.errno == errno.EADDRINUSE:
            reason = "port is in use; stop what listens there (see `ss -ltnp`) or choose another port"
        elif cause.errno == errno.EACCES:
            reason = "permission denied; ports below 1024 need CAP_NET_BIND_SERVICE"
        elif cause.errno == errno.EAFNOSUPPORT and vsock:
            reason = "this kernel has no vsock (CONFIG_VSOCKETS, module vsock)"
        elif cause.errno == errno.EADDRNOTAVAIL:
            reason = "this machine does not have the address"
        else:
            reason = cause.strerror or str(cause)
        raise ExportError(f"listen address {address!r}: {reason}", code="web.listen") from cause


def _listen_vsock(port: int) -> socket.socket:
    """For the host of this virtual machine, or its guests, by the machine's context id."""
    listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        listening.bind((socket.VMADDR_CID_ANY, port or socket.VMADDR_PORT_ANY))
        listening.listen(128)
    except BaseException:
        listening.close()
        raise
    return listening


def handed_over(descriptors: Iterable[int]) -> list[socket.socket]:
    """Take the listening stream sockets among the descriptors that systemd passed to this process.

    Whatever else was passed (maps and links of the descriptor store) is left as it is.

    Raises:
        ExportError: there is none.
    """
    found = []
    for descriptor in descriptors:
        try:
            candidate = socket.socket(fileno=descriptor)
        except OSError:  # no socket
            continue
        if candidate.type == socket.SOCK_STREAM and candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            candidate.set_inheritable(False)
            found.append(candidate)
        else:
            candidate.detach()
    if not found:
        raise ExportError(
            "--web.systemd-socket: systemd handed over no listening stream socket; start skep by a socket unit "
            "(systemctl start skep.socket) or leave the flag out",
            code="web.systemd_socket",
        )
    return found


def location(listening: socket.socket) -> str:
    """Give the ``//HOST:PORT`` of a URL by which this machine reaches it, ``unix:PATH`` or ``vsock://:PORT``."""
    name = listening.getsockname()
    if listening.family == socket.AF_VSOCK:
        return f"{_VSOCK}:{name[1]}"
    if listening.family not in (socket.AF_INET, socket.AF_INET6):
        return f"unix:{name}" if listening.family == socket.AF_UNIX else str(name)
    host, port = name[:2]
    return f"//{_LOOPBACKS.get(host, f'[{host}]' if ':' in host else host)}:{port}"
