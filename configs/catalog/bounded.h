/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Maps whose keys are unbounded over a host's life (ports, control groups that
 * come and go) and whose memory is not: the key that came first makes way.
 *
 * An LRU map does that too, but takes keys from the living long before it is
 * full on a machine of many CPUs, each of which keeps free entries to itself.
 */
#ifndef SKEP_CATALOG_BOUNDED_H
#define SKEP_CATALOG_BOUNDED_H

#include <skep.bpf.h>

/* Keys of a map in the order they came: SKEP_ORDER_MAP(name, key type, as many as the map holds). */
#define SKEP_ORDER_MAP(name, key_type, entries)           \
	struct {                                          \
		__uint(type, BPF_MAP_TYPE_QUEUE);         \
		__uint(max_entries, entries);             \
		__uint(value_size, sizeof(key_type));     \
	} name SEC(".maps") SKEP_PRIVATE

/**
 * lookup_or_replace - the value under a key, put there first if need be.
 * @map: a hash. @order: its SKEP_ORDER_MAP. @zero: what a new key starts with.
 * @oldest: room for one key.
 *
 * When the map is full its oldest key goes; its series starts again if it
 * returns. NULL only if others took the room at once.
 */
static __always_inline void *lookup_or_replace(void *map, void *order, const void *key, const void *zero, void *oldest)
{
	void *value = bpf_map_lookup_elem(map, key);
	/* Not a long: before 6.4 map helpers give 32 bits, and the upper half of the register is zero. */
	int error;

	if (value)
		return value;
	error = bpf_map_update_elem(map, key, zero, BPF_NOEXIST);
	if (error == -7 /* E2BIG */ && !bpf_map_pop_elem(order, oldest)) {
		bpf_map_delete_elem(map, oldest);
		error = bpf_map_update_elem(map, key, zero, BPF_NOEXIST);
	}
	if (!error)
		bpf_map_push_elem(order, key, 0);
	return bpf_map_lookup_elem(map, key);
}

/* Add one to the u64 under a key; what finds no room is counted in `missed`. */
#define count_or_replace(map, order, key, missed)                                                        \
	({                                                                                               \
		typeof(*(key)) oldest_;                                                                  \
		__u64 zero_ = 0, *count_ = lookup_or_replace((map), (order), (key), &zero_, &oldest_);   \
                                                                                                         \
		if (count_)                                                                              \
			skep_add(count_, 1);                                                             \
		else                                                                                     \
			skep_count_one(missed);                                                          \
	})

#endif
