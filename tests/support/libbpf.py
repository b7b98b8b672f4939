"""Loads BPF objects straight through libbpf and reads maps one key at a time.

The referee of the kernel tests: it shares no code with ``exporter.kernel`` and
``exporter.collect``, so that a count they both get wrong is not taken for right.
Slow, and only for maps nobody deletes from meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from exporter.bpf import Field, FieldKind, MapType, layout_of, read_object

_lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_SAMPLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def _declare(name: str, result: object, *arguments: object) -> ctypes._NamedFuncPointer:
    function = getattr(_lib, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


_P, _S, _I = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_open = _declare("bpf_object__open_mem", _P, _S, ctypes.c_size_t, _P)
_load = _declare("bpf_object__load", _I, _P)
_close = _declare("bpf_object__close", None, _P)
_next_map = _declare("bpf_object__next_map", _P, _P, _P)
_next_program = _declare("bpf_object__next_program", _P, _P, _P)
_map_fd = _declare("bpf_map__fd", _I, _P)
_map_name = _declare("bpf_map__name", _S, _P)
_map_type = _declare("bpf_map__type", _I, _P)
_set_value_size = _declare("bpf_map__set_value_size", _I, _P, ctypes.c_uint32)
_initial_value = _declare("bpf_map__initial_value", _P, _P, ctypes.POINTER(ctypes.c_size_t))
_program_name = _declare("bpf_program__name", _S, _P)
_set_autoload = _declare("bpf_program__set_autoload", _I, _P, ctypes.c_bool)
_autoload = _declare("bpf_program__autoload", ctypes.c_bool, _P)
_program_fd = _declare("bpf_program__fd", _I, _P)
_attach = _declare("bpf_program__attach", _P, _P)
_detach = _declare("bpf_link__destroy", _I, _P)
_next_key = _declare("bpf_map_get_next_key", _I, _I, _P, _P)
_lookup = _declare("bpf_map_lookup_elem", _I, _I, _P, _P)
_ring_new = _declare("ring_buffer__new", _P, _I, _SAMPLE, _P, _P)
_ring_consume = _declare("ring_buffer__consume", _I, _P)
_ring_free = _declare("ring_buffer__free", None, _P)
_cpus = _declare("libbpf_num_possible_cpus", _I)
_lib.libbpf_set_print.argtypes = [_P]
_lib.libbpf_set_print.restype = _P

T = TypeVar("T")
Row = dict[str, int]


class Loaded:
    """A loaded and attached object."""

    def __init__(self, content: bytes, globals: Mapping[str, int], programs: tuple[str, ...]) -> None:
        self.spec = read_object(content)
        self.messages: list[str] = []
        self._content = content
        vsnprintf = ctypes.CDLL(None).vsnprintf

        def keep(level: int, text: bytes, arguments: int) -> int:
            buffer = ctypes.create_string_buffer(4096)
            vsnprintf(buffer, len(buffer), ctypes.c_char_p(text), ctypes.c_void_p(arguments))
            if level == 0:
                self.messages.append(buffer.value.decode(errors="replace"))
            return 0

        self._print = _PRINT(keep)
        before = _lib.libbpf_set_print(ctypes.cast(self._print, _P))
        try:
            self._object = _open(content, len(content), None)
            assert self._object, self.messages
            self._prepare(globals, programs)
            if _load(self._object):
                raise AssertionError("".join(self.messages)[-4000:])
        finally:
            _lib.libbpf_set_print(before)
        self.fds = {_map_name(item).decode(): _map_fd(item) for item in self._maps()}
        self.programs: dict[str, int] = {}
        self._links = []
        for program in self._programs():
            name = _program_name(program).decode()
            if not _autoload(program):
                continue
            link = _attach(program)
            assert link, f"{name} does not attach: errno {ctypes.get_errno()}"
            self._links.append(link)
            self.programs[name] = _program_fd(program)

    def _prepare(self, globals: Mapping[str, int], programs: tuple[str, ...]) -> None:
        for item in self._maps():
            if _map_type(item) == MapType.RINGBUF:
                _set_value_size(item, 0)
        for name, value in globals.items():
            spec = next(entry for entry in self.spec.globals if entry.name == name)
            rodata = next(item for item in self._maps() if _map_name(item).endswith(spec.section.encode()))
            address = _initial_value(rodata, ctypes.byref(ctypes.c_size_t()))
            ctypes.memmove(address + spec.offset, value.to_bytes(spec.size, "little"), spec.size)
        for program in self._programs():
            if programs:  # also what its section "?…" keeps from being loaded by itself
                _set_autoload(program, _program_name(program).decode() in programs)

    def _maps(self) -> Iterator[int]:
        item = None
        while item := _next_map(self._object, item):
            yield item

    def _programs(self) -> Iterator[int]:
        item = None
        while item := _next_program(self._object, item):
            yield item

    def rows(self, name: str) -> dict[tuple[int, ...], Row]:
        """Keys (their members in order) to value members, per-CPU values summed; arrays by element name."""
        spec = self.spec.map(name)
        key_fields = _fields(layout_of(self.spec.btf, spec.key_type_id).leaves())
        value_fields = _fields(layout_of(self.spec.btf, spec.value_type_id).leaves())
        per_cpu = spec.type.per_cpu
        stride = -(-spec.value_size // 8) * 8
        cpus = _cpus() if per_cpu else 1
        value = ctypes.create_string_buffer(stride * cpus)
        found = {}
        for key in self._keys(self.fds[name], spec.key_size):
            if _lookup(self.fds[name], key, value):
                continue
            total: Row = {}
            for cpu in range(cpus):
                raw = value.raw[cpu * stride : cpu * stride + spec.value_size]
                for label, number in _decode(value_fields, raw).items():
                    total[label] = total.get(label, 0) + number
            found[tuple(_decode(key_fields, key).values())] = total
        return found

    def total(self, name: str) -> int:
        """The sum of all numbers of a map."""
        return sum(sum(row.values()) for row in self.rows(name).values())

    def _keys(self, fd: int, size: int) -> Iterator[bytes]:
        following = ctypes.create_string_buffer(size)
        key = None
        while _next_key(fd, key, following) == 0:
            key = following.raw
            yield key

    def records(self, name: str) -> list[dict[str, int]]:
        """All records that are in a ring now."""
        fields = _fields(layout_of(self.spec.btf, self.spec.map(name).value_type_id).leaves())
        found: list[dict[str, int]] = []

        def sample(_context: int, data: int, size: int) -> int:
            found.append(_decode(fields, ctypes.string_at(data, size)))
            return 0

        callback = _SAMPLE(sample)
        ring = _ring_new(self.fds[name], callback, None, None)
        assert ring
        try:
            _ring_consume(ring)
        finally:
            _ring_free(ring)
        return found

    def skipped(self) -> int:
        """How often the kernel did not run a program because it ran on that CPU already."""
        total = 0
        for fd in self.programs.values():
            with Path(f"/proc/self/fdinfo/{fd}").open() as info:
                total += sum(int(line.split()[1]) for line in info if line.startswith("recursion_misses"))
        return total

    def close(self) -> None:
        """Detach and unload."""
        for link in self._links:
            _detach(link)
        _close(self._object)


def _fields(leaves: Iterator[Field]) -> list[tuple[str, int, int, bool]]:
    fields = []
    for leaf in leaves:
        count = leaf.count if leaf.kind is FieldKind.ARRAY else 1
        size = leaf.size_bits // count
        for index in range(count):
            name = f"{leaf.name}[{index}]" if leaf.kind is FieldKind.ARRAY else leaf.name
            fields.append((name, (leaf.offset_bits + index * size) // 8, size // 8, leaf.signed))
    return fields


def _decode(fields: list[tuple[str, int, int, bool]], raw: bytes) -> dict[str, int]:
    return {
        name: int.from_bytes(raw[offset : offset + size], "little", signed=signed)
        for name, offset, size, signed in fields
    }


@contextmanager
def loaded(
    content: bytes, globals: Mapping[str, int] | None = None, programs: tuple[str, ...] = ()
) -> Iterator[Loaded]:
    """Load an object, attach (some of) its programs, unload at the end.

    Args:
        content: The object.
        globals: ``const volatile`` globals by name.
        programs: Only these; all if empty.
    """
    item = Loaded(content, globals or {}, programs)
    try:
        yield item
    finally:
        item.close()


def settled(read: Callable[[], T], *, tries: int = 200) -> T:
    """Read until two readings in a row agree: nothing was counted while we looked."""
    for _ in range(tries):
        value = read()
        if read() == value:
            return value
        time.sleep(0.01)
    raise AssertionError("the machine does not come to rest")


def can_load() -> bool:
    """Whether this process may load BPF programs here."""
    return os.geteuid() == 0 and Path("/sys/kernel/btf/vmlinux").exists() and struct.calcsize("P") == 8
