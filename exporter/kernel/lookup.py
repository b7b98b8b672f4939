"""What numbers of the kernel are called on this machine, now.

Users, groups, processes, devices, network interfaces, symbols, PCI ids and
cgroups. Answers are kept in a bounded cache that drops what was used least recently; those that may
change, and the answer that there is none, expire. A number without a name is
shown as a number where that says something (``8:17``, ``1001``, ``0xffff…``),
and as nothing where it does not (a cgroup that is gone).

Cgroup paths are cut into unit, slice, container and pod by pure functions.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import grp
import logging
import os
import pwd
import re
import socket
import threading
import time
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from .removed import RemovedCgroups
from .usersymbols import UserSymbols

_log = logging.getLogger(__name__)

_CACHED = 8192
_CHANGING_S = 10.0
_COMM_S = 1.0  # ids are given again, and a process changes its name when it executes
_FOR_EVER = float("inf")


class Lookup:
    """Resolves the label values that only the machine knows.

    May be called from several threads; one lock guards it, and no answer takes
    longer than one walk of the cgroup tree, one read of the symbol list, or one
    question to the machine's user database.

    Args:
        proc, sys: Where procfs and sysfs are mounted.
        pci_ids: Where distributions keep the names of PCI ids.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        proc: str = "/proc",
        sys: str = "/sys",
        pci_ids: Sequence[str] = ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proc, self._sys = Path(proc), Path(sys)
        self._pci = PciIds([Path(place) for place in pci_ids])
        self._recent = _Recent(_CACHED, clock)
        self._symbols = KernelSymbols(Path(proc), clock)
        self._user_symbols = UserSymbols(Path(proc), clock)
        self._cgroups = Cgroups(Path(proc), clock)
        self._lock = threading.Lock()

    def resolve(self, decoder: str, value: int) -> str:
        """The text of a value, or the empty string; never raises for what the machine says.

        Args:
            decoder: ``uid``, ``gid``, ``pid.comm``, ``device``, ``interface``, ``ksym``, ``pci.vendor``,
                ``pci.device``, ``pci.class``, ``cgroup``, ``cgroup.unit``, ``cgroup.slice``,
                ``cgroup.container``, ``cgroup.pod`` or ``usym``.
            value: As the kernel has it, unsigned; of ``usym`` an address, and above its 64 bits the process's number.
        """
        with self._lock:
            kind, _, part = decoder.partition(".") if decoder.startswith("cgroup.") else (decoder, "", "")
            known = self._recent.get(kind, value)
            if known is None:
                known, keep_s = self._ask(kind, value)
                self._recent.put(kind, value, known, keep_s)
        return _CUTS[part](known) if part and known else known

    def close(self) -> None:
        """Close the descriptor on the cgroup mount; it is opened again when needed."""
        with self._lock:
            self._cgroups.close()

    def _ask(self, kind: str, value: int) -> tuple[str, float]:
        match kind:
            case "uid":
                return user_name(value), _CHANGING_S
            case "gid":
                return group_name(value), _CHANGING_S
            case "pid.comm":
                return self._comm(value), _COMM_S
            case "pci.vendor" | "pci.device" | "pci.class":
                return self._pci.name(kind, value), _FOR_EVER
            case "device":
                return self._device(value), _CHANGING_S
            case "interface":
                return interface_name(value), _CHANGING_S
            case "usym":
                return self._user_symbols.name(value >> 64, value & 0xFFFFFFFFFFFFFFFF), _CHANGING_S
            case "ksym":
                return self._symbols.name(value), _CHANGING_S
            case "cgroup":
                path = self._cgroups.path(value)
                return path, _FOR_EVER if path else _CHANGING_S
        raise ValueError(f"decoder {kind!r} is not looked up on the machine")

    def _comm(self, pid: int) -> str:
        # A thread's directory is there too, though no listing shows it.
        try:
            return (self._proc / str(pid) / "comm").read_bytes().rstrip(b"\n").decode("utf-8", "replace")
        except OSError:
            return ""

    def _device(self, dev: int) -> str:
        major, minor = dev >> 20 & 0xFFF, dev & 0xFFFFF
        if dev == 0:
            return ""
        try:
            target = (self._sys / "dev" / "block" / f"{major}:{minor}").readlink().name
        except OSError:
            return f"{major}:{minor}"
        # sysfs has '!' where a device's name has '/'.
        return target.replace("!", "/")


def user_name(uid: int) -> str:
    """A user's name, or the number; nothing for -1, which the kernel has for "no user"."""
    uid &= 0xFFFFFFFF
    if uid == 0xFFFFFFFF:
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OSError):
        return str(uid)


def group_name(gid: int) -> str:
    """A group's name, or the number; nothing for -1."""
    gid &= 0xFFFFFFFF
    if gid == 0xFFFFFFFF:
        return ""
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OSError):
        return str(gid)


def interface_name(index: int) -> str:
    """An interface's name in this network namespace, or the number; nothing for 0."""
    if index == 0:
        return ""
    try:
        return socket.if_indextoname(index)
    except (OSError, OverflowError):
        return str(index)


class _Recent:
    """Answers by kind and value: bounded, the least recently used go first, old ones expire."""

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self._entries: OrderedDict[tuple[str, int], tuple[str, float]] = OrderedDict()
        self._size = size
        self._clock = clock

    def get(self, kind: str, value: int) -> str | None:
        entry = self._entries.get((kind, value))
        if entry is None:
            return None
        if entry[1] <= self._clock():
            del self._entries[kind, value]
            return None
        self._entries.move_to_end((kind, value))
        return entry[0]

    def put(self, kind: str, value: int, answer: str, keep_s: float) -> None:
        self._entries[kind, value] = (answer, self._clock() + keep_s)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)


class PciIds:
    """Names of PCI vendors, devices and classes, from the list that distributions ship.

    Nothing of it is kept: an answer is asked for once, and the list is a read of one or two megabytes.
    """

    def __init__(self, places: Sequence[Path]) -> None:
        self._places = places

    def name(self, kind: str, value: int) -> str:
        """What ``pci.vendor``, ``pci.device`` or ``pci.class`` calls a number; the number, if nothing."""
        match kind:
            case "pci.vendor":
                wanted, digits = [rb"^%04x  (.+)$" % (value & 0xFFFF)], 4
                value &= 0xFFFF
            case "pci.device":
                vendor, value = value >> 16 & 0xFFFF, value & 0xFFFF
                wanted, digits = [rb"^%04x  .*\n(?:[\t#].*\n)*?\t%04x  (.+)$" % (vendor, value)], 4
            case _:
                base, sub = value >> 16 & 0xFF, value >> 8 & 0xFF
                below = rb"^C %02x  .*\n(?:[\t#].*\n)*?\t%02x  (.+)$" % (base, sub)
                wanted, digits = [below, rb"^C %02x  (.+)$" % base], 6
        listed = self._read()
        for pattern in wanted:
            if match := re.search(pattern, listed, re.MULTILINE):
                return match[1].decode("utf-8", "replace")
        return f"{value:#0{digits + 2}x}"

    def _read(self) -> bytes:
        for place in self._places:
            with contextlib.suppress(OSError):
                return place.read_bytes()
        return b""


# ---- kernel symbols ----


def _module_fields(line: bytes) -> list[bytes]:
    return line.split(b" ", 6)[:6]


_SYMBOL_REACH = 1 << 20  # no function is larger: beyond it, an address belongs to something unlisted


class KernelSymbols:
    """Names of kernel functions by any address inside them, from ``/proc/kallsyms``.

    Read when first asked, and again when the list of modules changed (at most
    every ten seconds). Kept as sorted addresses, their places in the list, and
    one string of names: about 40 bytes a function.
    """

    def __init__(self, proc: Path, clock: Callable[[], float]) -> None:
        self._proc = proc
        self._clock = clock
        self._addresses: array[int] = array("Q")
        self._order: array[int] = array("I")
        self._starts: array[int] = array("I")
        self._names = b""
        self._modules: bytes | None = None
        self._checked = float("-inf")
        self._told = False

    def name(self, address: int) -> str:
        """The function an address lies in, or the address in hexadecimal; nothing for 0."""
        if address == 0:
            return ""
        self._refresh()
        at = bisect_right(self._addresses, address) - 1
        if at < 0 or address - self._addresses[at] > _SYMBOL_REACH:
            return hex(address)
        # Of several names for one address the list's first is shown.
        while at and self._addresses[at - 1] == self._addresses[at]:
            at -= 1
        listed = self._order[at]
        return self._names[self._starts[listed] : self._starts[listed + 1]].decode("utf-8", "replace")

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._checked < _CHANGING_S:
            return
        self._checked = now
        try:
            # name size users dependants state address: a module that came back elsewhere counts as changed
            lines = (self._proc / "modules").read_bytes().splitlines()
            modules = b"".join(fields[0] + fields[-1] for fields in map(_module_fields, lines))
        except OSError:
            modules = b""
        if self._modules == modules:
            return
        self._modules = modules
        try:
            self._read()
        except OSError as error:
            self._tell(f"cannot be read ({error.strerror})")

    def _read(self) -> None:
        addresses, starts, names = array("Q"), array("I", [0]), bytearray()
        listed = False
        with (self._proc / "kallsyms").open("rb") as lines:
            for line in lines:
                # address, type, name, and of a module's symbol its [module]
                address, kind, name = line.split(None, 3)[:3]
                listed = True
                if kind in b"tTwW" and address.strip(b"0"):
                    addresses.append(int(address, 16))
                    names += name
                    starts.append(len(names))
        self._order = array("I", sorted(range(len(addresses)), key=addresses.__getitem__))
        self._addresses = array("Q", (addresses[at] for at in self._order))
        self._starts, self._names = starts, bytes(names)
        if not addresses:
            self._tell("shows no addresses" if listed else "is empty")

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            _log.warning(
                "kernel symbols: %s %s, addresses are shown as numbers; give skep CAP_SYSLOG, and no "
                "ProtectKernelTunables= or ProtectKernelLogs= in its unit",
                self._proc / "kallsyms",
                why,
            )


# ---- cgroups ----


class _FileHandle(ctypes.Structure):
    """``struct file_handle`` with room for what kernfs puts into it: a cgroup's 64-bit id."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint32),
        ("handle_type", ctypes.c_int32),
        ("id", ctypes.c_uint64),
    )


_FILEID_KERNFS = 0xFE
_WALKED = 65536
_WALK_PAUSE_S = 1.0
_MOUNT_PAUSE_S = 10.0


class Cgroups:
    """Paths of cgroups by id, in the one cgroup2 hierarchy of this machine.

    A cgroup's id is its directory's inode number, and a file handle that the
    kernel opens (5.7; CAP_DAC_READ_SEARCH). Without the capability the
    directories are walked, at most once a second and never for more than a
    tenth of the time.

    On a hybrid layout the cgroup2 mount is one beside those of the old
    controllers, whose inode numbers overlap: only the former counts.

    One that is gone by the time it is asked for is named by
    :class:`.removed.RemovedCgroups`, where the kernel has that.
    """

    def __init__(self, proc: Path, clock: Callable[[], float]) -> None:
        self._proc = proc
        self._clock = clock
        self._mount = ""
        self._fd = -1
        self._looked = float("-inf")
        self._may_open = True
        self._walked: dict[int, str] = {}
        self._walk_again = float("-inf")
        self._told = False
        self._open_by_handle = ctypes.CDLL(None, use_errno=True).open_by_handle_at
        self._removed = RemovedCgroups(self._alive)

    def path(self, cgroup_id: int) -> str:
        """The path from the hierarchy's root on, ``/`` for the root, or nothing if there is no such cgroup."""
        if not self._find_mount():
            return ""
        return self._alive(cgroup_id) or self._removed.path(cgroup_id)

    def _alive(self, cgroup_id: int) -> str:
        if self._may_open:
            try:
                return self._by_handle(cgroup_id)
            except OSError as error:
                if error.errno in (errno.ESTALE, errno.ENOENT):
                    return ""
                # Refused, or not known to this kernel: it will not be different next time.
                self._may_open = False
        return self._by_walk(cgroup_id)

    def close(self) -> None:
        """Close the descriptors on the mount."""
        self._removed.close()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._mount, self._looked = -1, "", float("-inf")

    def _find_mount(self) -> bool:
        if self._mount:
            return True
        now = self._clock()
        if now - self._looked < _MOUNT_PAUSE_S:
            return False
        self._looked = now
        try:
            self._mount = cgroup2_mount((self._proc / "self" / "mountinfo").read_text("utf-8", "surrogateescape"))
            if self._mount:
                self._fd = os.open(self._mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                self._removed.open(self._mount)
        except OSError:
            self._mount = ""
        if not self._mount and not self._told:
            self._told = True
            _log.warning("cgroups: no cgroup2 hierarchy is mounted; cgroup, unit, container and pod labels stay empty")
        return bool(self._mount)

    def _by_handle(self, cgroup_id: int) -> str:
        handle = _FileHandle(8, _FILEID_KERNFS, cgroup_id)
        fd = self._open_by_handle(self._fd, ctypes.byref(handle), os.O_PATH | os.O_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "open_by_handle_at")
        try:
            return self._below_mount(str(Path(f"/proc/self/fd/{fd}").readlink()))
        finally:
            os.close(fd)

    def _below_mount(self, path: str) -> str:
        if path.endswith(" (deleted)"):
            return ""
        if path == self._mount:
            return "/"
        prefix = self._mount.rstrip("/") + "/"
        return _text(path[len(prefix) - 1 :]) if path.startswith(prefix) else ""

    def _by_walk(self, cgroup_id: int) -> str:
        if cgroup_id not in self._walked:
            began = self._clock()
            if began < self._walk_again:
                return ""
            self._walked = walk_cgroups(self._mount, _WALKED)
            ended = self._clock()
            self._walk_again = ended + max(_WALK_PAUSE_S, 9 * (ended - began))
        return self._walked.get(cgroup_id, "")


def _text(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


def walk_cgroups(mount: str, most: int) -> dict[int, str]:
    """Inode number to path of every directory, the highest first, at most ``most``."""
    found: dict[int, str] = {}
    level = [mount]
    try:
        found[os.stat(mount).st_ino] = "/"  # noqa: PTH116 (one call a directory, no objects)
    except OSError:
        return found
    while level:
        below = []
        for directory in level:
            try:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            if len(found) >= most:
                                return found
                            found[entry.inode()] = _text(entry.path[len(mount.rstrip("/")) :])
                            below.append(entry.path)
            except OSError:
                continue  # gone since its parent was read
        level = below
    return found


def cgroup2_mount(mountinfo: str) -> str:
    """Where cgroup2 is mounted, by the text of ``/proc/self/mountinfo``; "" if nowhere.

    Of several mounts the one that shows the most (its root is highest) is taken.
    """
    found: list[tuple[int, str]] = []
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if separator and after.startswith("cgroup2 ") and len(fields) >= 5:
            root, mount = fields[3], re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
            found.append((root.rstrip("/").count("/"), mount))
    return min(found, key=lambda mount: mount[0])[1] if found else ""


# ---- what a cgroup path says ----

_UNIT = re.compile(r"\.(?:service|scope|socket|mount|swap)$")
_CONTAINER = re.compile(r"(?:^|[-:_.])([0-9a-f]{64})(?:\.scope)?$")
_NSPAWN = re.compile(r"systemd-nspawn@(.+)\.service$")
_LXC = re.compile(r"lxc\.payload\.(.+)$")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")  # as systemd writes what a unit's name cannot hold
_POD = re.compile(
    r"(?:^|-)pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?(?::|$)"
)


def unit_of(path: str) -> str:
    """The innermost systemd unit that is not a slice: ``nginx.service``, ``session-2.scope``."""
    for part in reversed(path.split("/")):
        if _UNIT.search(part):
            # systemd writes '_' before a name that the kernel could take for a file of its own.
            return part.removeprefix("_")
    return ""


def slice_of(path: str) -> str:
    """The innermost systemd slice: ``system.slice``."""
    for part in reversed(path.split("/")):
        if part.endswith(".slice"):
            return part.removeprefix("_")
    return ""


def container_of(path: str) -> str:
    """The innermost container's id, 64 hexadecimal digits; of systemd-nspawn and LXC, the container's name.

    Knows scopes of Docker, containerd, CRI-O and Podman, and the plain
    directories of the cgroupfs driver; the monitor beside a container (conmon)
    is not the container.
    """
    for part in reversed(path.split("/")):
        match = _CONTAINER.search(part)
        if match and "conmon" not in part:
            return match[1]
        if named := _NSPAWN.match(part) or _LXC.match(part):
            return _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), named[1])
    return ""


def pod_of(path: str) -> str:
    """The Kubernetes pod's UID, with dashes; of a static pod, the 32 digits the kubelet gave it."""
    for part in reversed(path.split("/")):
        match = _POD.search(part)
        if match:
            return match[1].replace("_", "-")
    return ""


_CUTS: dict[str, Callable[[str], str]] = {
    "unit": unit_of,
    "slice": slice_of,
    "container": container_of,
    "pod": pod_of,
}
