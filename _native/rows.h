/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading a map's rows through bpf(2), many at once where the kernel can and
 * key by key where it cannot. No Python object is known here; every function
 * may run without the GIL. Functions return a count or zero, or a negative
 * errno.
 */
#ifndef SKEP_ROWS_H
#define SKEP_ROWS_H

#include <stdint.h>

/* The kernel's own errno that user space has no name for: "operation is not
 * supported"; a per-CPU array gives it to a batch look-up before 5.13. */
#define SKEP_ENOTSUPP 524

/* One BPF_MAP_LOOKUP_BATCH. `in` is the cursor the last call left in `out`, or
 * NULL for the first; a cursor is max(4, key_size) bytes (a bucket number of
 * hashes, a key of everything else). `count` holds the room before and the rows
 * after. -ENOENT means: these rows are the last. */
int skep_lookup_batch(int fd, const void *in, void *out, void *keys, void *values, uint32_t *count);

/* A walk by BPF_MAP_GET_NEXT_KEY that gives each key once. When the key it
 * stands on is deleted the kernel starts again from the first one; so every key
 * given is remembered, and known ones are passed over. `step_limit` ends a walk
 * that constant deletion would keep from ever ending. */
struct skep_walk {
	uint8_t *seen;  /* keys given so far, key_size apart */
	uint32_t *slots; /* open addressing over `seen`: index + 1, 0 is empty */
	uint8_t *previous;
	uint8_t *next;
	uint64_t seen_count, seen_capacity, slot_mask;
	uint64_t steps, step_limit;
	uint32_t key_size;
	int started, done;
};

int skep_walk_open(struct skep_walk *walk, uint32_t key_size, uint64_t max_entries);
void skep_walk_close(struct skep_walk *walk);

/* Up to `room` further rows; 0 only at the end. */
int64_t skep_walk_rows(struct skep_walk *walk, int fd, uint8_t *keys, uint8_t *values, uint64_t value_stride,
		       uint32_t room);

/* Take up to `room` values out of a queue or stack, each behind a struct skep_record into `out`. Those already
 * taken are given even if a later one fails. */
int64_t skep_queue_take(int fd, uint32_t value_size, uint32_t room, uint8_t *out);

#endif
