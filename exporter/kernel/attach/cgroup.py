"""cgroup programs: packets, sockets, addresses, TCP's callbacks, sysctls, devices; by directory of cgroup v2."""

from __future__ import annotations

import errno
import os

from .places import option
from .site import Attached, Site, links_of

MOUNTS = "/proc/self/mountinfo"


def attach(site: Site) -> Attached:
    """To the cgroup of the option; by default to the root of all, so that every process is seen.

    A relative path begins at the unified hierarchy's root.
    """
    root = cgroup2_root()
    path = os.path.join(root, option(site.options, "cgroup"))  # noqa: PTH118  the loader does without pathlib
    if not path:
        raise OSError(errno.ENOENT, "looking for a mounted cgroup v2 hierarchy")
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, f"opening cgroup {path!r}") from None
    try:
        return links_of(lambda: site.program.attach_cgroup(directory))
    except OSError as error:
        if error.errno == errno.EBADF:  # a directory, but none of cgroup v2
            where = f", which is mounted at {root!r}" if root else ", and none is mounted"
            raise OSError(errno.EBADF, f"attaching to {path!r}, which is no cgroup v2 directory{where}") from None
        raise OSError(error.errno, f"attaching to cgroup {path!r}") from None
    finally:
        os.close(directory)


def cgroup2_root(mounts: str = "") -> str:
    """Where the unified hierarchy is mounted, hybrid layouts included; ``""`` if it is not.

    ``mounts`` is a text of ``mountinfo`` instead of this process's own.
    """
    if not mounts:
        with open(MOUNTS) as file:  # noqa: PTH123
            mounts = file.read()
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        # A part of the hierarchy, bound somewhere, is not its root.
        if after.startswith("cgroup2 ") and len(fields) > 4 and fields[3] == "/":
            return fields[4].replace("\\040", " ")
    return ""
