"""Reads BPF objects: ELF by pyelftools, BTF by our own reader, into what they declare.

Knows ELF, BTF and libbpf's conventions for maps, programs and globals. Must not
know the running kernel (the same file gives the same spec anywhere, without
privilege) nor anything of metrics. Whatever the bytes, reading them ends in
bounded time with a spec or an :class:`~exporter.errors.ObjectError`.
"""

from .btf import Btf
from .layout import Field, FieldKind, Layout, layout_of
from .spec import GlobalSpec, MapSpec, MapType, ObjectSpec, ProgramSpec, read_object

__all__ = [
    "Btf",
    "Field",
    "FieldKind",
    "GlobalSpec",
    "Layout",
    "MapSpec",
    "MapType",
    "ObjectSpec",
    "ProgramSpec",
    "layout_of",
    "read_object",
]
