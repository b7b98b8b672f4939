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
 * given is remembered, and known ones are passed over. Cgroup storage `ends_early`
 * instead: there an end is only believed while the last key is there. A walk that constant deletion keeps from
 * ever ending is given up with -EAGAIN after `step_limit` steps: half of the rows
 * would pass for all, and the others for deleted ones.
 *
 * A trie is walked in an order of its own, longer prefixes before those that cover
 * them, which stands in for that memory. In a trie a look-up of a key that was
 * deleted just now finds the value of a covering prefix, so a row may be nobody's.
 * But then the kernel starts again behind it: a step back tells that the key before
 * it was deleted, and a first key behind a row that the row's was, and the row is
 * taken back. Only a key that was deleted and made again within that one step cannot
 * be told from one that stayed. */
struct skep_walk {
	uint8_t *seen;  /* keys given so far, key_size apart */
	uint32_t *slots; /* open addressing over `seen`: index + 1, 0 is empty */
	uint8_t *previous;
	uint8_t *next;
	uint64_t seen_count, seen_capacity, slot_mask;
	uint64_t steps, step_limit;
	uint32_t key_size;
	int started, done;
	int trie, ends_early;
	int ahead;	/* `next` is already what follows `previous` */
	uint8_t *last; /* of a trie: the key of the last row */
	int given;	/* and whether there is one */
	uint8_t *first;
};

int skep_walk_open(struct skep_walk *walk, uint32_t key_size, uint64_t max_entries, int trie, int ends_early);
void skep_walk_close(struct skep_walk *walk);

/* Up to `room` further rows; 0 only at the end. */
int64_t skep_walk_rows(struct skep_walk *walk, int fd, uint8_t *keys, uint8_t *values, uint64_t value_stride,
		       uint32_t room);

/* What remains of `count` rows that a batch look-up of a trie just gave: known keys are left out, and rows taken back. */
int64_t skep_walk_sift(struct skep_walk *walk, int fd, uint8_t *keys, uint8_t *values, uint64_t value_stride,
		       uint32_t count);

/* A descriptor of the map of that number, or a negative errno. */
int skep_map_by_id(uint32_t id);

struct skep_map_info {
	uint32_t type, id, key_size, value_size, max_entries;
};
int skep_map_info(int fd, struct skep_map_info *info);

/* One value, exactly by its key; -ENOENT if there is none. */
int skep_lookup(int fd, const void *key, void *value);

/* Take up to `room` values out of a queue or stack, each behind a struct skep_record into `out`. Those already
 * taken are given even if a later one fails. */
int64_t skep_queue_take(int fd, uint32_t value_size, uint32_t room, uint8_t *out);

#endif
