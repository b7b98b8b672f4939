"""The kernel of this machine: load an object, attach it, read its maps and rings; rows and records are bytes.

Knows: libbpf, bpf(2), descriptors, what this kernel can do and what it refuses.
Must not know: that anyone is measuring. No metric, label, plan, image or
configuration is known here; it could be a library of its own.

One way in, :func:`load`: a one-shot child (:mod:`.loader`) parses the object,
loads and attaches it and hands the descriptors over; what comes back is a
:class:`Collection`. While it lives the programs run; :meth:`Collection.close`
detaches them. Everything after the load reads held descriptors and needs no
privilege.

Names are imported on first use, so that the child, which is of this package
too, pays for nothing it does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .collection import (
        Collection,
        GlobalRequest,
        LoadRequest,
        MapRequest,
        Program,
        ProgramRequest,
        load,
    )
    from .features import (
        Capability,
        Features,
        libbpf_version,
        online_cpus,
        possible_cpus,
        probe,
        shows_types,
    )
    from .inner import InnerRows
    from .maps import Batch, Map
    from .netlink import sweep
    from .rings import RingReader
    from .stacks import Stacks
    from .storage import StorageRows
    from .support import Finding, Verdict, findings
    from .types import Host, find_types, types_in
    from .usage import ProgramUsage, RunStatistics

_HOMES = {
    "Batch": "maps",
    "Capability": "features",
    "Collection": "collection",
    "Features": "features",
    "Finding": "support",
    "GlobalRequest": "collection",
    "InnerRows": "inner",
    "Host": "types",
    "LoadRequest": "collection",
    "Map": "maps",
    "MapRequest": "collection",
    "Program": "collection",
    "ProgramRequest": "collection",
    "ProgramUsage": "usage",
    "RingReader": "rings",
    "Stacks": "stacks",
    "StorageRows": "storage",
    "RunStatistics": "usage",
    "Verdict": "support",
    "find_types": "types",
    "findings": "support",
    "libbpf_version": "features",
    "load": "collection",
    "online_cpus": "features",
    "possible_cpus": "features",
    "probe": "features",
    "shows_types": "features",
    "sweep": "netlink",
    "types_in": "types",
}

__all__ = [
    "Batch",
    "Capability",
    "Collection",
    "Features",
    "Finding",
    "GlobalRequest",
    "Host",
    "InnerRows",
    "LoadRequest",
    "Map",
    "MapRequest",
    "Program",
    "ProgramRequest",
    "ProgramUsage",
    "RingReader",
    "RunStatistics",
    "Stacks",
    "StorageRows",
    "Verdict",
    "find_types",
    "findings",
    "libbpf_version",
    "load",
    "online_cpus",
    "possible_cpus",
    "probe",
    "shows_types",
    "sweep",
    "types_in",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
