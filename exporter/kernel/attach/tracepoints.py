"""Static tracepoints, of the kernel and of its modules."""

from __future__ import annotations

from .places import AttachError, option
from .site import Attached, Site, links_of


def attach_tracepoint(site: Site) -> Attached:
    """``tracepoint/CATEGORY/NAME``."""
    category, slash, name = (option(site.options, "target") or site.rest).partition("/")
    if not slash or not name:
        raise AttachError(f"tracepoint {category!r} is not CATEGORY/NAME; set attach.target")
    return links_of(lambda: site.program.attach_tracepoint(category, name))


def attach_raw_tracepoint(site: Site) -> Attached:
    """``raw_tp/NAME``."""
    if not (name := option(site.options, "target") or site.rest):
        raise AttachError(f"section {site.section!r} names no tracepoint; set attach.target")
    return links_of(lambda: site.program.attach_raw_tracepoint(name))
