"""How many bytes of kernel memory a map will take, from its definition alone and rather too many than too few.

Sources: ``kernel/bpf/hashtab.c`` (``struct htab_elem`` is 48 bytes before the
key, a bucket 16), ``arraymap.c``, ``lpm_trie.c``, ``ringbuf.c``,
``stackmap.c``, ``percpu_freelist.c`` and ``bpf_lru_list.c`` of the Linux kernel.
"""

from __future__ import annotations

from exporter.bpf import MapSpec, MapType

PAGE = 4096
PERF_BUFFER_BYTES = 256 << 10
"""Of each CPU, as ``kernel/rings.py`` opens them."""
_MAP = 1024
"""A map's own structure and its rounding."""
_HTAB_ELEM, _BUCKET, _POINTER = 48, 16, 8
_TRIE_NODE, _STACK_BUCKET = 64, 32
_RING_PAGES = 3
"""A ring's structure and its two position pages."""
_HASHES = (MapType.HASH, MapType.PERCPU_HASH, MapType.LRU_HASH, MapType.LRU_PERCPU_HASH)


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def map_memory(spec: MapSpec, possible_cpus: int) -> int:
    """Estimate the kernel memory of one map.

    Args:
        spec: As declared, ``max_entries`` as it will be created.
        possible_cpus: Of the host: each has its own slot in a per-CPU map.

    Returns:
        Bytes. Maps that grow with sockets, tasks, inodes or cgroups, and the maps inside a map, count as empty.
    """
    entries, value = spec.max_entries, _round_up(spec.value_size, 8)
    key = _round_up(spec.key_size, 8)
    match spec.type:
        case kind if kind in _HASHES:
            element = _HTAB_ELEM + key + (_POINTER + value * possible_cpus if kind.per_cpu else value)
            # A preallocated hash keeps one spare element per CPU, for updates in place.
            size = (entries + possible_cpus) * element + _power_of_two(entries) * _BUCKET
        case MapType.ARRAY:
            size = entries * value
        case MapType.PERCPU_ARRAY:
            size = entries * (_POINTER + value * possible_cpus)
        case MapType.RINGBUF | MapType.USER_RINGBUF:
            data = _power_of_two(_round_up(entries, PAGE))  # as libbpf makes it before creation
            size = data + _RING_PAGES * PAGE + data // PAGE * _POINTER * 2
        case MapType.LPM_TRIE:
            size = 2 * entries * (_TRIE_NODE + key + value)  # as many branching nodes as entries, at worst
        case MapType.STACK_TRACE:
            size = entries * (_STACK_BUCKET + value) + _power_of_two(entries) * _POINTER
        case MapType.QUEUE | MapType.STACK:
            size = (entries + 1) * value
        case MapType.BLOOM_FILTER:
            size = _round_up(entries * 15 // 8, PAGE)  # up to 15 hash functions, one bit each
        case MapType.PERF_EVENT_ARRAY | MapType.CGROUP_ARRAY | MapType.PROG_ARRAY | MapType.ARRAY_OF_MAPS:
            size = max(entries, possible_cpus) * _POINTER
        case MapType.HASH_OF_MAPS | MapType.SOCKHASH | MapType.DEVMAP_HASH:
            size = entries * (_HTAB_ELEM + key + value + _BUCKET)
        case MapType.ARENA:
            size = entries * PAGE
        case _:
            size = entries * _POINTER
    return _MAP + size


def perf_memory(possible_cpus: int) -> int:
    """The buffers of a perf event array that is read: one for each CPU, and a page of positions."""
    return possible_cpus * (PERF_BUFFER_BYTES + PAGE)


def data_memory(size: int) -> int:
    """The kernel memory of a section of globals, which is an array of one entry in whole pages."""
    return _MAP + _round_up(size, PAGE)
