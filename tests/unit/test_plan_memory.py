"""Map memory: an estimate that is never below what the kernel takes, and hardly above it."""

import pytest

from exporter.bpf import MapSpec, MapType
from exporter.kernel import rings
from exporter.plan.memory import PERF_BUFFER_BYTES, map_memory, perf_memory

# Type, key and value size, entries; then what `bpftool map show` said on a kernel 6.18 with 2 possible CPUs.
KERNEL = [
    (MapType.HASH, 4, 8, 10240, 918544),
    (MapType.HASH, 20, 216, 1000, 305872),
    (MapType.LRU_HASH, 4, 8, 10240, 918400),
    (MapType.LRU_HASH, 4, 8, 100, 9344),
    (MapType.PERCPU_HASH, 8, 224, 1000, 529280),
    (MapType.PERCPU_HASH, 4, 8, 10240, 1082240),
    (MapType.LRU_PERCPU_HASH, 4, 8, 1000, 97280),
    (MapType.ARRAY, 4, 8, 10240, 82232),
    (MapType.PERCPU_ARRAY, 4, 8, 1024, 24888),
    (MapType.RINGBUF, 0, 0, 1 << 20, 1065288),
    (MapType.RINGBUF, 0, 0, 4096, 16728),
]


def spec(map_type: MapType, key: int, value: int, entries: int) -> MapSpec:
    """A map of that shape."""
    return MapSpec("m", map_type, map_type.value, key, value, entries, 0, 0, 0)


@pytest.mark.parametrize(("map_type", "key", "value", "entries", "kernel"), KERNEL)
def test_estimate_is_what_the_kernel_takes_or_a_little_more(
    *, map_type: MapType, key: int, value: int, entries: int, kernel: int
) -> None:
    """At most one part in twenty and two KiB above."""
    estimate = map_memory(spec(map_type, key, value, entries), 2)
    assert kernel <= estimate <= kernel * 1.05 + 2048


@pytest.mark.parametrize("map_type", [MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH, MapType.PERCPU_ARRAY])
def test_per_cpu_value_counts_for_every_possible_cpu(map_type: MapType) -> None:
    """Each rounded up to eight bytes."""
    few, many = (map_memory(spec(map_type, 4, 12, 1000), cpus) for cpus in (1, 65))
    assert many - few >= 64 * 16 * 1000


@pytest.mark.parametrize("map_type", list(MapType))
def test_every_map_type_has_an_estimate(map_type: MapType) -> None:
    """Also those that are never exported."""
    assert map_memory(spec(map_type, 8, 8, 100), 4) > 0


def test_ring_is_rounded_up_as_libbpf_makes_it() -> None:
    """Whole pages, a power of two of them."""
    assert map_memory(spec(MapType.RINGBUF, 0, 0, 5000), 1) == map_memory(spec(MapType.RINGBUF, 0, 0, 8192), 1)


def test_perf_buffers_are_planned_as_large_as_they_are_opened() -> None:
    """The plan cannot ask the kernel package, which must not know of it."""
    assert rings.PERF_BUFFER_BYTES == PERF_BUFFER_BYTES
    assert perf_memory(3) == 3 * (rings.PERF_BUFFER_BYTES + 4096)
