"""The kinds of maps there are, and the first kernel with each.

Sources of the versions: the commits that added each, as libbpf's and the kernel's documentation list them.
"""

from __future__ import annotations

from typing import NamedTuple


class MapKind(NamedTuple):
    """A map type: its number in ``enum bpf_map_type``, its name, and the first kernel version with it."""

    number: int
    name: str
    since: tuple[int, int]


MAP_KINDS = tuple(
    MapKind(*row)
    for row in (
        (1, "hash", (3, 19)), (2, "array", (3, 19)), (5, "percpu_hash", (4, 6)), (6, "percpu_array", (4, 6)),
        (9, "lru_hash", (4, 10)), (10, "lru_percpu_hash", (4, 10)), (11, "lpm_trie", (4, 11)), (27, "ringbuf", (5, 8)),
        (4, "perf_event_array", (4, 3)), (7, "stack_trace", (4, 6)), (12, "array_of_maps", (4, 12)),
        (13, "hash_of_maps", (4, 12)), (22, "queue", (4, 20)), (23, "stack", (4, 20)), (24, "sk_storage", (5, 2)),
        (28, "inode_storage", (5, 10)), (29, "task_storage", (5, 11)), (32, "cgrp_storage", (6, 2)),
        (19, "cgroup_storage", (4, 19)), (21, "percpu_cgroup_storage", (4, 20)), (30, "bloom_filter", (5, 16)),
        (31, "user_ringbuf", (6, 1)),
        (33, "arena", (6, 9)), (3, "prog_array", (4, 2)), (8, "cgroup_array", (4, 8)), (14, "devmap", (4, 14)),
        (15, "sockmap", (4, 14)), (16, "cpumap", (4, 15)), (17, "xskmap", (4, 18)), (18, "sockhash", (4, 18)),
        (20, "reuseport_sockarray", (4, 19)), (25, "devmap_hash", (5, 4)), (26, "struct_ops", (5, 6)),
    )
)  # fmt: skip
"""In the order a reader wants them."""


def map_kind(number: int) -> MapKind | None:
    """The kind of that number, if it is a known one."""
    return next((kind for kind in MAP_KINDS if kind.number == number), None)
