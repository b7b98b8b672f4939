"""BPF objects for the agent's tests: each counts the ``getpgid`` calls of one process."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

from tests.support.clang import compile_bpf

GETPGID = {"x86_64": 121, "aarch64": 155}[platform.machine()]
"""A system call that Python and pytest do not make by themselves."""

_HELPERS = """
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static void *(*bpf_ringbuf_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*bpf_ringbuf_submit)(void *data, u64 flags) = (void *)132;
"""

_COUNT = """
const volatile u32 tgid = 0;
struct calls_key { u32 parity; };
struct call { u64 number; u32 parity; u32 pad __attribute__((btf_decl_tag("skep:drop=true"))); };
MAP(counter_NAME, HASH, 16, struct calls_key, u64);
MAP(numbers, ARRAY, 2, u32, u64);
RING(print_NAME, struct call);

static int count(long nr)
{
    u32 zero = 0, one = 1;
    if (nr != GETPGID || bpf_get_current_pid_tgid() >> 32 != tgid)
        return 0;
    u64 *number = bpf_map_lookup_elem(&numbers, &zero);
    if (!number)
        return 0;
    *number += 1;
    struct calls_key key = { *number % 2 };
    u64 first = 1;
    u64 *cell = bpf_map_lookup_elem(&counter_NAME, &key);
    if (cell)
        *cell += 1;
    else
        bpf_map_update_elem(&counter_NAME, &key, &first, 0);
    struct call *call = bpf_ringbuf_reserve(&print_NAME, sizeof(*call), 0);
    if (call) {
        call->number = *number;
        call->parity = key.parity;
        call->pad = 0;
        bpf_ringbuf_submit(call, 0);
    }
    return 0;
}
SEC("raw_tp/sys_enter") int on_enter(u64 *context) { return count(context[1]); }
"""

_LICENSE = '\nchar LICENSE[] SEC("license") = "GPL";\n'


@functools.cache
def counting(name: str, extra: str = "") -> bytes:
    """An object whose map ``counter_<name>`` counts calls by parity, and whose ring tells of each."""
    return compile_bpf(
        _HELPERS + _COUNT.replace("NAME", name).replace("GETPGID", str(GETPGID)) + extra, program=_LICENSE
    )


MISSING_TRACEPOINT = """
SEC("tracepoint/syscalls/sys_enter_nothing_like_it") int on_nothing(void *context) { return 0; }
"""


@functools.cache
def only_missing_tracepoint() -> bytes:
    """An object with nothing that could attach."""
    return compile_bpf("MAP(counter_nothing, ARRAY, 1, u32, u64);" + MISSING_TRACEPOINT, program=_LICENSE)


@functools.cache
def rejected_by_verifier() -> bytes:
    """An object that follows a pointer that may be null."""
    source = """
MAP(counter_rejected, HASH, 1, u32, u64);
SEC("raw_tp/sys_enter") int on_enter(void *context)
{
    u32 zero = 0;
    u64 *cell = bpf_map_lookup_elem(&counter_rejected, &zero);
    *cell += 1;
    return 0;
}
"""
    return compile_bpf(_HELPERS + source, program=_LICENSE)


@functools.cache
def foreign() -> bytes:
    """An object as tools carry it: no kinds, a size left open, two programs for one thing, a large map."""
    source = """
struct large { u64 filler[2048]; };
MAP(scratch, HASH, 4096, u32, struct large);
struct { __uint(type, HASH); __type(key, u32); __type(value, u64); } calls SEC(".maps");
static int count(void)
{
    u32 cpu = 0;
    u64 first = 1, *cell = bpf_map_lookup_elem(&calls, &cpu);
    if (cell)
        __sync_fetch_and_add(cell, 1);
    else
        bpf_map_update_elem(&calls, &cpu, &first, 0);
    return 0;
}
SEC("raw_tp/sys_enter") int on_enter(void *context) { return count(); }
SEC("raw_tp/sys_enter") int on_twice(void *context) { return count(); }
"""
    return compile_bpf(_HELPERS + source, program=_LICENSE)


@functools.cache
def nothing_attaches() -> bytes:
    """Four programs, three of them without their tracepoint and one without an interface."""
    programs = "".join(
        f'SEC("raw_tp/skep_no_such_{name}") int on_{name}(void *context) {{ return 0; }}\n' for name in "abc"
    )
    return compile_bpf(programs + 'SEC("xdp") int on_packet(void *context) { return 2; }', program=_LICENSE)


def write(directory: Path, name: str, content: bytes) -> Path:
    """Write ``name.o``."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.o"
    path.write_bytes(content)
    return path


def make_calls(count: int) -> None:
    """Exactly so many ``getpgid`` system calls of this process."""
    for _ in range(count):
        os.getpgid(0)
