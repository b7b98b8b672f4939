"""Traffic-control filters by rtnetlink, where the kernel has no tcx link (first in 6.6).

Such a filter is in no descriptor: it stays when its maker dies. So each of ours has an
*owner*, a socket bound to a name that is in the filter's own name too::

    filter   skep:TOKEN:PROGRAM
    owner    @skep/tc/TOKEN/INTERFACE-INDEX/DIRECTION      an abstract Unix name

The owner is a descriptor like that of a link: sent, stored and counted as one, and it
says by itself which filter is its. Who closes it for good deletes the filter first
(:func:`let_go`). A filter whose owner nobody holds any more was left behind by a process
that died; :func:`sweep` deletes those. Filters of any other name are never touched. Both
names are per network namespace, so owner and filter are always looked for in one place.

The clsact qdisc that a first filter needs is made and left: another's filter may stand
in it by then, and empty it does nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

PREFIX = "skep:"
_OWNER = b"\0skep/tc/"

# linux/rtnetlink.h, linux/netlink.h, linux/pkt_sched.h, linux/pkt_cls.h.
_NEWQDISC, _NEWTFILTER, _DELTFILTER, _GETTFILTER = 36, 44, 45, 46
_REQUEST, _ACK, _EXCL, _CREATE, _DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
_ERROR, _DONE = 2, 3
_KIND, _OPTIONS, _NESTED = 1, 2, 0x8000
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _DIRECT_ACTION = 6, 7, 8, 1
_CLSACT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_ALL_PROTOCOLS = socket.htons(3)
_HEADER, _TCMSG = struct.Struct("=IHHII"), struct.Struct("=BxxxiIII")


class Filter(NamedTuple):
    """A BPF filter on one side of an interface; ``info`` is its priority and protocol as the kernel packs them."""

    ifindex: int
    direction: str
    handle: int
    info: int
    name: str

    @property
    def owner(self) -> bytes:
        """The name its owner is bound to."""
        return owner_name(self.name.split(":")[1], self.ifindex, self.direction)


def owner_name(token: str, ifindex: int, direction: str) -> bytes:
    """The address of an owner."""
    return _OWNER + f"{token}/{ifindex}/{direction}".encode()


def add_filter(program_fd: int, program: str, ifindex: int, direction: str, *, priority: int = 0) -> int:
    """Have a program see, and judge, the packets of one direction of an interface.

    Returns:
        The owner's descriptor, the caller's.

    Raises:
        OSError: the kernel's refusal.
    """
    token = os.urandom(8).hex()
    name = f"{PREFIX}{token}:{program}"
    owner = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        # Before the filter is there: one without an owner is swept away.
        owner.bind(owner_name(token, ifindex, direction))
        with _Netlink() as netlink:
            try:
                qdisc = _TCMSG.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT, 0) + _attribute(_KIND, b"clsact\0")
                netlink.ask(_NEWQDISC, _CREATE | _EXCL, qdisc)
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise
            options = (
                _attribute(_BPF_FD, struct.pack("=I", program_fd))
                + _attribute(_BPF_NAME, name.encode() + b"\0")
                + _attribute(_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
            )
            place = _TCMSG.pack(0, ifindex, 0, _PARENTS[direction], priority << 16 | _ALL_PROTOCOLS)
            body = place + _attribute(_KIND, b"bpf\0") + _attribute(_OPTIONS | _NESTED, options)
            netlink.ask(_NEWTFILTER, _CREATE | _EXCL, body)
    except BaseException:
        owner.close()
        raise
    return owner.detach()


def is_owner(fd: int) -> bool:
    """Whether a descriptor is the owner of a filter."""
    return bool(_owned(fd))


def let_go(fd: int) -> None:
    """Delete the filter whose owner this is; harmless for any other descriptor, which stays open in any case."""
    if not (address := _owned(fd)):
        return
    token, ifindex, direction = address.removeprefix(_OWNER).decode().split("/")
    with contextlib.suppress(OSError), _Netlink() as netlink:  # the interface may be gone, and the filter with it
        for found in netlink.filters(int(ifindex), direction):
            if found.name.startswith(f"{PREFIX}{token}:"):
                netlink.delete(found)


def sweep() -> list[Filter]:
    """Delete the filters of this network namespace whose owners are no more, and tell which."""
    removed = []
    try:
        with _Netlink() as netlink:
            for ifindex, _ in socket.if_nameindex():
                for direction in _PARENTS:
                    for found in netlink.filters(ifindex, direction):
                        if found.name.startswith(PREFIX) and found.name.count(":") >= 2 and not _alive(found.owner):
                            with contextlib.suppress(OSError):  # gone meanwhile, or not ours to delete
                                netlink.delete(found)
                                removed.append(found)
    except OSError:  # no rtnetlink here, so no filters of ours either
        return removed
    return removed


def _owned(fd: int) -> bytes:
    """The name an owner is bound to; empty for any other descriptor."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return b""
    with socket.socket(fileno=os.dup(fd)) as one:
        address = one.getsockname() if one.family == socket.AF_UNIX else b""
    return address if isinstance(address, bytes) and address.startswith(_OWNER) else b""


def _alive(owner: bytes) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
        try:
            one.connect(owner)
        except ConnectionRefusedError:
            return False
        except OSError:  # not to be told: leave it
            return True
        return True


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + bytes(-length % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & ~_NESTED, data[4:length]
        data = data[(length + 3) & ~3 :]


class _Netlink:
    """One rtnetlink socket."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(5.0)
        self._sequence = 0

    def __enter__(self) -> _Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Send one request and give the bodies of its answers.

        Raises:
            OSError: what the kernel answered.
        """
        self._sequence += 1
        wants = _REQUEST | flags | (0 if flags & _DUMP == _DUMP else _ACK)
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, wants, self._sequence, 0) + body)
        bodies: list[bytes] = []
        while True:
            data = self._socket.recv(1 << 16)
            while len(data) >= _HEADER.size:
                length, answer, _, sequence, _ = _HEADER.unpack_from(data)
                body, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
                if sequence != self._sequence:
                    continue
                if answer == _DONE:
                    return bodies
                if answer == _ERROR:
                    number = -struct.unpack_from("=i", body)[0]
                    if number:
                        raise OSError(number, "asking rtnetlink")
                    return bodies
                bodies.append(body)

    def filters(self, ifindex: int, direction: str) -> Iterator[Filter]:
        """The BPF filters of one direction of an interface."""
        place = _TCMSG.pack(0, ifindex, 0, _PARENTS[direction], 0)
        for body in self.ask(_GETTFILTER, _DUMP, place):
            _, index, handle, _, info = _TCMSG.unpack_from(body)
            attributes = dict(_attributes(body[_TCMSG.size :]))
            if attributes.get(_KIND) != b"bpf\0":
                continue
            options = dict(_attributes(attributes.get(_OPTIONS, b"")))
            name = options.get(_BPF_NAME, b"").rstrip(b"\0").decode(errors="replace")
            if handle:
                yield Filter(index, direction, handle, info, name)

    def delete(self, found: Filter) -> None:
        place = _TCMSG.pack(0, found.ifindex, found.handle, _PARENTS[found.direction], found.info)
        self.ask(_DELTFILTER, 0, place + _attribute(_KIND, b"bpf\0"))
