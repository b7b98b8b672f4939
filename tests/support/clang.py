"""Compiles small BPF programs for tests, with a prelude instead of kernel headers."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

PRELUDE = """
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;
typedef signed char s8; typedef short s16; typedef int s32; typedef long long s64; typedef _Bool bool;
#define SEC(name) __attribute__((section(name), used))
#define __uint(name, val) int (*name)[val]
#define __type(name, val) typeof(val) *name
#define __array(name, val) typeof(val) *name[]
#define TAG(text) __attribute__((btf_decl_tag("skep:" text)))
enum { HASH = 1, ARRAY = 2, PERF_EVENT_ARRAY = 4, PERCPU_HASH = 5, PERCPU_ARRAY = 6, STACK_TRACE = 7, LRU_HASH = 9,
       LPM_TRIE = 11, ARRAY_OF_MAPS = 12, QUEUE = 22, STACK = 23, RINGBUF = 27, USER_RINGBUF = 31 };
#define MAP(name, map_type, entries, key_t, value_t) \\
    struct { __uint(type, map_type); __uint(max_entries, entries); __type(key, key_t); __type(value, value_t); } \\
    name SEC(".maps")
#define RING(name, record_t) \\
    struct { __uint(type, RINGBUF); __uint(max_entries, 65536); __type(value, record_t); } name SEC(".maps")
"""
PROGRAM = """
SEC("raw_tp/sched_switch") int on_switch(void *context) { return 0; }
char LICENSE[] SEC("license") = "GPL";
"""

CLANG = shutil.which("clang")


@functools.cache
def compile_bpf(source: str, *flags: str, program: str = PROGRAM) -> bytes:
    """Compile C source between the prelude and a one-line program into object bytes."""
    assert CLANG, "clang is part of the set-up (packaging/setup/system-packages)"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "program.bpf.c"
        path.write_text(PRELUDE + source + program)
        command = [
            CLANG,
            "-target",
            "bpf",
            "-g",
            "-O2",
            "-mcpu=v2",
            *flags,
            "-c",
            str(path),
            "-o",
            str(path.with_suffix(".o")),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return path.with_suffix(".o").read_bytes()
