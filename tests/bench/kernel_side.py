"""What lies between skep and the kernel: look-ups by map type, loading, and what a loaded image takes.

``python -m tests.bench.kernel_side`` prints it alone. A look-up is held against the same system calls made by C in this
process: batches where the kernel has them, else key by key. Loading is from the verified object to its last program
attached, the loader's process included, for each image of the catalog and for all of them at once in threads.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import statistics
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import KernelError
from tests.bench import rows

if TYPE_CHECKING:
    from exporter.agent.program import Program
    from tests.bench.__main__ import Figure

ENTRIES = 10_000
ROUNDS = 15
_CHUNK_ROWS = 4096
_NO_PREALLOC = 1


@dataclass(frozen=True)
class Kind:
    """A map type; ``key`` makes the n-th key, ``walk``: the kernel has no batch that could be used."""

    name: str
    type: int
    key: struct.Struct
    value_size: int = 8
    flags: int = 0
    per_cpu: bool = False
    walk: bool = False

    def keys(self) -> list[bytes]:
        """All keys."""
        if self.name == "lpm_trie":
            return [struct.pack("=I", 32) + struct.pack(">I", 10 << 24 | number) for number in range(ENTRIES)]
        return [self.key.pack(number) for number in range(ENTRIES)]


_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
KINDS = (
    Kind("hash", 1, _U64),
    Kind("lru_hash", 9, _U64),
    Kind("percpu_hash", 5, _U64, per_cpu=True),
    Kind("lru_percpu_hash", 10, _U64, per_cpu=True),
    Kind("array", 2, _U32),
    Kind("percpu_array", 6, _U32, per_cpu=True),
    Kind("lpm_trie", 11, _U64, flags=_NO_PREALLOC),
)


def lookups(library: Path) -> list[tuple[str, float, float]]:
    """``(map type, skep's ns per entry, C's)``, medians of reads that took turns."""
    from exporter.kernel import Map, possible_cpus

    native = ctypes.CDLL(str(library))
    native.floor_read.restype = native.floor_walk.restype = ctypes.c_long
    found = []
    for kind in KINDS:
        fd, _ = rows.bpf(0, struct.pack("=IIIII56x", kind.type, kind.key.size, kind.value_size, ENTRIES, kind.flags))
        stride = 8 * possible_cpus() if kind.per_cpu else kind.value_size
        for number, key in enumerate(kind.keys()):
            _update(fd, key, struct.pack("=Q", number) * (stride // 8))
        source = Map(
            kind.name, type=kind.type, key_size=kind.key.size, value_size=kind.value_size, max_entries=ENTRIES, fd=fd
        )
        keys = ctypes.create_string_buffer(_CHUNK_ROWS * kind.key.size)
        values = ctypes.create_string_buffer(_CHUNK_ROWS * stride)
        by_batch = native.floor_read(fd, keys, values, _CHUNK_ROWS) >= 0

        def ours(source: Map = source) -> int:
            return sum(batch.count for batch in source.batches(_CHUNK_ROWS))

        def floor(
            fd: int = fd,
            keys: object = keys,
            values: object = values,
            size: int = kind.key.size,
            batch: bool = by_batch,
        ) -> int:
            read: int = (
                native.floor_read(fd, keys, values, _CHUNK_ROWS) if batch else native.floor_walk(fd, keys, values, size)
            )
            return read

        least = ENTRIES * 9 // 10 if kind.name.startswith("lru") else ENTRIES  # an LRU map may have evicted
        mine: list[float] = []
        theirs: list[float] = []
        for _ in range(ROUNDS):
            mine.append(_seconds(ours, least))
            theirs.append(_seconds(floor, least))
        count = ours()
        source.close()
        found.append((kind.name, statistics.median(mine) / count * 1e9, statistics.median(theirs) / count * 1e9))
    return found


def _update(fd: int, key: bytes, value: bytes) -> None:
    key_buffer, value_buffer = (
        ctypes.create_string_buffer(key, len(key)),
        ctypes.create_string_buffer(value, len(value)),
    )
    rows.bpf(2, struct.pack("=IxxxxQQQ", fd, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0))


def _seconds(read: Callable[[], int], least: int) -> float:
    begin = time.process_time()
    count = read()
    took = time.process_time() - begin
    assert count >= least, count
    return took


def _resident_bytes() -> int:
    found = re.search(r"^Pss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


def _map_bytes(program: Program) -> int:
    """Kernel memory of the maps that are read, as the kernel accounts it."""
    total = 0
    for source in program.collection.maps.values():
        found = re.search(r"^memlock:\s+(\d+)", Path(f"/proc/self/fdinfo/{source.fd}").read_text(), re.MULTILINE)
        total += int(found[1]) if found else 0
    return total


def loading() -> tuple[list[tuple[str, float, float, float]], float]:
    """``(image, seconds to attached, MiB of this process, MiB of its maps)`` of each, and seconds for all at once."""
    from exporter.agent.program import load, make_lookup, plan_bundle
    from exporter.config import ImageConfig
    from exporter.image import Store, parse_reference
    from exporter.resources import catalog_dir
    from tests.bench.programs import catalog

    store, resolve, parts = Store(catalog_dir()), make_lookup().resolve, []
    for reference in catalog():
        bundle = store.bundle(parse_reference(f"catalog:{reference.rpartition(':')[2]}"))
        config = ImageConfig(reference.rpartition(":")[2], reference)
        parts.append((config, bundle, plan_bundle(bundle, config)))

    def attached(part: tuple[ImageConfig, object, object]) -> Program:
        config, bundle, plan = part
        return load(bundle, plan, config, resolve=resolve)  # type: ignore[arg-type]

    for part in list(parts):
        try:
            attached(part).close()  # the first start reads Python and libbpf from disk
        except KernelError as error:
            print(f"{part[0].name}: not measured: {error}", file=sys.stderr)
            parts.remove(part)
    each = []
    for part in parts:
        times, sizes, maps = [], [], 0
        for _ in range(3):
            gc.collect()
            before, begin = _resident_bytes(), time.monotonic()
            program = attached(part)
            times.append(time.monotonic() - begin)
            with program.lock:
                program.read(time.monotonic())
            sizes.append(_resident_bytes() - before)
            maps = _map_bytes(program)
            program.close()
        # The first load of an image is the one that grows the process.
        each.append((part[0].name, statistics.median(times), max(sizes) / (1 << 20), maps / (1 << 20)))
    together = []
    for _ in range(3):
        begin = time.monotonic()
        with ThreadPoolExecutor(len(parts)) as pool:
            programs = list(pool.map(attached, parts))
        together.append(time.monotonic() - begin)
        for program in programs:
            program.close()
    return each, statistics.median(together)


def figures(library: Path) -> list[Figure]:
    """All of it, for the table."""
    from tests.bench.__main__ import Figure

    made = []
    for name, ours, floor in lookups(library):
        against = f"look-up of {name}: system calls in C"
        made.append(Figure(against, floor, "ns/entry"))
        made.append(Figure(f"look-up of {name}: skep", ours, "ns/entry", against, ours / floor))
    each, together = loading()
    for name, seconds, resident, maps in each:
        made.append(Figure(f"{name}: object to attached", seconds * 1e3, "ms"))
        made.append(Figure(f"{name}: memory of the agent", resident, "MiB PSS"))
        made.append(Figure(f"{name}: memory of its maps", maps, "MiB"))
    made.append(Figure(f"all {len(each)} images at once: object to attached", together * 1e3, "ms"))
    return made


def verdicts(found: list[Figure]) -> list[str]:
    """Whether each look-up holds its bound."""
    return [
        f"{'met   ' if figure.ratio <= 1.2 else 'MISSED'}  at most 1.2 times C: {figure.ratio:.2f} ({figure.name})"
        for figure in found
        if figure.name.startswith("look-up of ") and figure.ratio is not None
    ]


def main() -> None:
    """Print it."""
    from tests.bench.__main__ import build_floor, shown

    found = figures(build_floor())
    print(*map(shown, found), *verdicts(found), sep="\n")


if __name__ == "__main__":
    assert os.geteuid() == 0, "loading needs root"
    main()
