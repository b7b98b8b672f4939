"""What attaches by the kernel's types: tp_btf, fentry and its kin, LSM, iterators."""

from __future__ import annotations

from .places import AttachError, option
from .site import Attached, Site, links_of

_ITERATES_GIVEN = {
    "bpf_map_elem": "the map", "bpf_sk_storage_map": "the map", "sockmap": "the map", "cgroup": "the cgroup",
}  # fmt: skip
"""Iterators that cannot be attached without saying what they go through, and what that is."""
ACTIVE_MODULES = "/sys/kernel/security/lsm"


def prepare(site: Site) -> None:
    """Name the function, hook or tracepoint: the verifier checks the arguments against its type."""
    target = option(site.options, "target")
    if site.section.startswith("iter") and (given := _ITERATES_GIVEN.get(target or site.rest)):
        raise AttachError(
            f"section {site.section!r} goes through what its own user space names, {given}, which is not done here; "
            "use iter/task, or export the map"
        )
    if target:
        site.program.set_target(target)
    elif not site.rest:
        raise AttachError(f"section {site.section!r} names no target; set attach.target")


def prepare_lsm(site: Site) -> None:
    """See besides that the hooks of BPF are called at all: without, a program attaches and never runs."""
    prepare(site)
    try:
        with open(ACTIVE_MODULES) as file:  # noqa: PTH123  the loader does without pathlib
            modules = file.read().strip()
    except OSError:  # securityfs is not mounted, or not for us: nothing is known
        return
    if "bpf" not in modules.split(","):
        raise AttachError(
            f"'bpf' is not among the active security modules ({modules}), so section {site.section!r} would never "
            f"run; boot with lsm={modules},bpf"
        )


def attach(site: Site) -> Attached:
    """As libbpf does by itself, the target being known since before the load."""
    return links_of(site.program.attach)
