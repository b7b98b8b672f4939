"""Packets: XDP, traffic control, netkit, socket filters, netfilter, and what belongs to a network namespace."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable

from .. import _libbpf, netlink
from .places import AttachError, interfaces_of, parse_direction, parse_netfilter, parse_netkit_end
from .site import Attached, Site, all_or_none, links_of

# Of enum bpf_attach_type of linux/bpf.h.
_TCX = {"ingress": 46, "egress": 47}
_NETKIT = {"primary": 54, "peer": 55}
_NETFILTER = 45
_XDP_HAS_FRAGS = 1 << 5
_SO_ATTACH_BPF = 50
_ALL_PROTOCOLS = 3
_TCX_SINCE = (6, 6)
_SMALL_BUFFER = 2048
_NOT_BY_THE_DRIVER = (errno.EPERM, errno.EACCES, errno.EBUSY, errno.EEXIST, errno.ENODEV)


def prepare_xdp(site: Site) -> None:
    """Of frames in several buffers, libbpf sets the flag only for the sections it knows."""
    if site.word == "xdp.frags":
        site.program.add_flags(_XDP_HAS_FRAGS)
    if site.rest in ("devmap", "cpumap"):
        raise AttachError(f'section {site.section!r} runs from a map, which nobody fills here; declare SEC("xdp")')


def attach_xdp(site: Site) -> Attached:
    """To the interfaces of the option, or the one of ``xdp/IFACE``.

    By the driver; where it has no XDP or cannot take this program, by the kernel above it.
    """

    def one(ifindex: int) -> int:
        doing = f"attaching to packets of interface {ifindex}"
        try:
            return site.program.attach_link(doing, ifindex, _libbpf.XDP)
        except OSError as refusal:
            if refusal.errno in _NOT_BY_THE_DRIVER:
                raise
            return site.program.attach_link(doing, ifindex, _libbpf.XDP, flags=_libbpf.XDP_GENERIC_FLAG)

    return _by_interface(site, one, site.rest)


def attach_tc(site: Site) -> Attached:
    """By a tcx link (Linux 6.6); before, by a filter that :mod:`exporter.kernel.netlink` owns."""
    from ..features import parse_release  # noqa: PLC0415

    direction = parse_direction(site.section, site.options)
    priority = int(str(site.options.get("priority") or 0))
    if not 0 <= priority < 1 << 16:
        raise AttachError(f"attach.priority is {priority}; of a tc filter it is 1 to 65535")
    by_link = parse_release(os.uname().release) >= _TCX_SINCE and not priority

    def one(ifindex: int) -> int:
        if by_link:
            return site.program.attach_link(
                f"attaching to {direction} of interface {ifindex}", ifindex, _TCX[direction]
            )
        return netlink.add_filter(site.program.fd, site.program.name, ifindex, direction, priority=priority)

    return _by_interface(site, one)


def attach_netkit(site: Site) -> Attached:
    """To one end of netkit pairs."""
    end = parse_netkit_end(site.section, site.options)

    def one(ifindex: int) -> int:
        return site.program.attach_link(f"attaching to {end} of interface {ifindex}", ifindex, _NETKIT[end])

    return _by_interface(site, one)


def attach_socket(site: Site) -> Attached:
    """A packet socket for each interface, whose filter the program is; what it lets through is dropped."""

    def one(ifindex: int) -> int:
        # Protocol 0 receives nothing, so that no packet passes before the filter is there.
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as tap:
            tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
            tap.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, struct.pack("=i", site.program.fd))
            tap.bind((socket.if_indextoname(ifindex), _ALL_PROTOCOLS))
            return tap.detach()

    return _by_interface(site, one)


def attach_netfilter(site: Site) -> Attached:
    """A link for each protocol family."""
    with all_or_none() as links:
        for hook in parse_netfilter(site.rest, site.options):
            doing = f"attaching to netfilter hook {hook.hook} of family {hook.family} at priority {hook.priority}"
            links.append(site.program.attach_link(doing, 0, _NETFILTER, netfilter=hook))
    return Attached(links)


def attach_netns(site: Site) -> Attached:
    """To the network namespace of this process."""
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return links_of(lambda: site.program.attach_netns(namespace))
    finally:
        os.close(namespace)


def _by_interface(site: Site, one: Callable[[int], int], default: str = "") -> Attached:
    """Attach to every interface that is named, or to none: a part would look like all of the traffic."""
    names = interfaces_of(site.options) or ([default] if default else [])
    if not names:
        raise AttachError(f"section {site.section!r} names no interface; set attach.interfaces")
    with all_or_none() as links:
        for name in names:
            try:
                ifindex = socket.if_nametoindex(name)
            except OSError:  # which has no number
                raise OSError(errno.ENODEV, f"looking for interface {name!r}") from None
            try:
                links.append(one(ifindex))
            except OSError as error:
                raise OSError(error.errno, f"attaching to interface {name!r}") from None
    return Attached(links)
