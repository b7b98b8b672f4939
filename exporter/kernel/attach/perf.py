"""Sampling by perf events, one for each CPU."""

from __future__ import annotations

from collections.abc import Sequence

from .. import _libbpf
from .places import Sampling, parse_sampling
from .site import Attached, Site, all_or_none


def attach(site: Site) -> Attached:
    """One event per online CPU, or one that follows a process over all of them."""
    from ..features import online_cpus  # noqa: PLC0415

    sampling = parse_sampling(site.rest, site.options)
    cpus = online_cpus() if sampling.pid < 0 else (-1,)
    return Attached(sample(site.program.fd, sampling, cpus), cpus if sampling.pid < 0 else ())


def sample(program_fd: int, sampling: Sampling, cpus: Sequence[int]) -> list[int]:
    """Attach a loaded program to the samples of these CPUs, all of them or none."""
    with all_or_none() as links:
        for cpu in cpus:
            event = _libbpf.open_perf_event(
                type=sampling.type,
                config=sampling.config,
                sample=sampling.sample,
                by_frequency=sampling.by_frequency,
                pid=sampling.pid,
                cpu=cpu,
            )
            links.append(_libbpf.attach_perf_event(program_fd, event))
    return links
