/* SPDX-License-Identifier: Apache-2.0 */
#include "rows.h"

#include <errno.h>
#include <linux/bpf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "record.h"

static int bpf_call(enum bpf_cmd command, union bpf_attr *attr)
{
	return syscall(__NR_bpf, command, attr, sizeof(*attr)) < 0 ? -errno : 0;
}

int skep_lookup_batch(int fd, const void *in, void *out, void *keys, void *values, uint32_t *count)
{
	union bpf_attr attr;
	int error;

	memset(&attr, 0, sizeof(attr));
	attr.batch.in_batch = (uint64_t)(uintptr_t)in;
	attr.batch.out_batch = (uint64_t)(uintptr_t)out;
	attr.batch.keys = (uint64_t)(uintptr_t)keys;
	attr.batch.values = (uint64_t)(uintptr_t)values;
	attr.batch.count = *count;
	attr.batch.map_fd = (uint32_t)fd;
	error = bpf_call(BPF_MAP_LOOKUP_BATCH, &attr);
	/* Only these fill in the count; after any other error it is what we wrote. */
	*count = error == 0 || error == -ENOENT || error == -EINTR ? attr.batch.count : 0;
	return error;
}

static int key_call(enum bpf_cmd command, int fd, const void *key, void *out)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = (uint32_t)fd;
	attr.key = (uint64_t)(uintptr_t)key;
	attr.value = (uint64_t)(uintptr_t)out; /* in one union with next_key */
	return bpf_call(command, &attr);
}

int skep_lookup(int fd, const void *key, void *value)
{
	return key_call(BPF_MAP_LOOKUP_ELEM, fd, key, value);
}

int skep_map_by_id(uint32_t id)
{
	union bpf_attr attr;
	int fd;

	memset(&attr, 0, sizeof(attr));
	attr.map_id = id;
	fd = (int)syscall(__NR_bpf, BPF_MAP_GET_FD_BY_ID, &attr, sizeof(attr));
	return fd < 0 ? -errno : fd;
}

int skep_map_info(int fd, struct skep_map_info *info)
{
	struct bpf_map_info found;
	union bpf_attr attr;
	int error;

	memset(&attr, 0, sizeof(attr));
	memset(&found, 0, sizeof(found));
	attr.info.bpf_fd = (uint32_t)fd;
	attr.info.info_len = sizeof(found);
	attr.info.info = (uint64_t)(uintptr_t)&found;
	error = bpf_call(BPF_OBJ_GET_INFO_BY_FD, &attr);
	*info = (struct skep_map_info){found.type, found.id, found.key_size, found.value_size, found.max_entries};
	return error;
}

static uint64_t hash_key(const uint8_t *key, uint32_t size)
{
	uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a, 64 bit */

	for (uint32_t i = 0; i < size; i++)
		hash = (hash ^ key[i]) * 0x100000001b3u;
	return hash ^ hash >> 32;
}

int skep_walk_open(struct skep_walk *walk, uint32_t key_size, uint64_t max_entries, int trie, int ends_early)
{
	uint64_t slots = 64;

	memset(walk, 0, sizeof(*walk));
	walk->key_size = key_size;
	walk->trie = trie;
	walk->ends_early = ends_early;
	walk->step_limit = 64 * max_entries + 4096;
	walk->seen_capacity = 32;
	walk->slot_mask = slots - 1;
	walk->seen = malloc(walk->seen_capacity * key_size);
	walk->slots = calloc(slots, sizeof(*walk->slots));
	walk->previous = malloc(key_size);
	walk->next = malloc(key_size);
	walk->last = malloc(key_size);
	walk->first = malloc(key_size);
	if (walk->seen && walk->slots && walk->previous && walk->next && walk->last && walk->first)
		return 0;
	skep_walk_close(walk);
	return -ENOMEM;
}

void skep_walk_close(struct skep_walk *walk)
{
	free(walk->seen);
	free(walk->slots);
	free(walk->previous);
	free(walk->next);
	free(walk->last);
	free(walk->first);
	memset(walk, 0, sizeof(*walk));
	walk->done = 1;
}

static uint64_t find_slot(const struct skep_walk *walk, const uint8_t *key)
{
	uint64_t slot = hash_key(key, walk->key_size) & walk->slot_mask;

	while (walk->slots[slot] &&
	       memcmp(walk->seen + (uint64_t)(walk->slots[slot] - 1) * walk->key_size, key, walk->key_size))
		slot = (slot + 1) & walk->slot_mask;
	return slot;
}

static int grow(struct skep_walk *walk)
{
	uint64_t slots = 2 * (walk->slot_mask + 1);
	uint8_t *seen = realloc(walk->seen, 2 * walk->seen_capacity * walk->key_size);
	uint32_t *table;

	if (!seen)
		return -ENOMEM;
	walk->seen = seen;
	table = calloc(slots, sizeof(*table));
	if (!table)
		return -ENOMEM;
	free(walk->slots);
	walk->slots = table;
	walk->slot_mask = slots - 1;
	walk->seen_capacity *= 2;
	for (uint64_t i = 0; i < walk->seen_count; i++)
		walk->slots[find_slot(walk, seen + i * walk->key_size)] = (uint32_t)i + 1;
	return 0;
}

/* 1 if the key is new and now remembered, 0 if it was known. */
static int remember(struct skep_walk *walk, const uint8_t *key)
{
	uint64_t slot = find_slot(walk, key);

	if (walk->slots[slot])
		return 0;
	if (walk->seen_count == walk->seen_capacity) {
		int error = grow(walk);

		if (error)
			return error;
		slot = find_slot(walk, key);
	}
	memcpy(walk->seen + walk->seen_count * walk->key_size, key, walk->key_size);
	walk->slots[slot] = (uint32_t)++walk->seen_count;
	return 1;
}

/* The order in which a trie is walked: below zero if `a` comes before `b`. */
static int trie_order(const uint8_t *a, const uint8_t *b, uint32_t key_size)
{
	uint32_t a_bits, b_bits, limit = 8 * (key_size - 4), bits;

	memcpy(&a_bits, a, 4);
	memcpy(&b_bits, b, 4);
	bits = a_bits < b_bits ? a_bits : b_bits;
	bits = bits < limit ? bits : limit;
	for (uint32_t i = 0; 8 * i < bits; i++) {
		uint8_t mask = bits - 8 * i >= 8 ? 0xff : (uint8_t)(0xff << (8 - (bits - 8 * i)));
		int difference = (a[4 + i] & mask) - (b[4 + i] & mask);

		if (difference)
			return difference;
	}
	return a_bits > b_bits ? -1 : a_bits < b_bits;
}

/* Whether a key was met before. */
static int known(const struct skep_walk *walk, const uint8_t *key)
{
	if (walk->trie)
		return walk->given && trie_order(key, walk->last, walk->key_size) <= 0;
	return walk->slots[find_slot(walk, key)] != 0;
}

static int note(struct skep_walk *walk, const uint8_t *key)
{
	if (!walk->trie)
		return remember(walk, key);
	memcpy(walk->last, key, walk->key_size);
	walk->given = 1;
	return 1;
}

/* Of a trie's rows, take back those before what is the first key now: they were deleted. Returns how many remain. */
static int64_t confirm(int fd, const struct skep_walk *walk, uint8_t *keys, uint8_t *values, uint64_t value_stride,
		       int64_t count)
{
	int64_t gone = 0;
	int error = count ? key_call(BPF_MAP_GET_NEXT_KEY, fd, NULL, walk->first) : 0;

	if (error == -ENOENT)
		return 0;
	while (!error && gone < count &&
	       trie_order(keys + (uint64_t)gone * walk->key_size, walk->first, walk->key_size) < 0)
		gone++;
	if (gone) {
		memmove(keys, keys + (uint64_t)gone * walk->key_size, (uint64_t)(count - gone) * walk->key_size);
		memmove(values, values + (uint64_t)gone * value_stride, (uint64_t)(count - gone) * value_stride);
	}
	return count - gone;
}

/* Put what follows `previous` into `next`: 0, 1 at the end, or a negative errno. `scratch` has room for a value. */
static int look_ahead(struct skep_walk *walk, int fd, uint8_t *scratch)
{
	for (;;) {
		int error = key_call(BPF_MAP_GET_NEXT_KEY, fd, walk->started ? walk->previous : NULL, walk->next);

		if (++walk->steps > walk->step_limit)
			return -EAGAIN;
		if (error != -ENOENT)
			return error;
		if (!walk->started || !walk->ends_early ||
		    key_call(BPF_MAP_LOOKUP_ELEM, fd, walk->previous, scratch) != -ENOENT)
			return 1;
		walk->started = 0;
	}
}

static int64_t walk_keys(struct skep_walk *walk, int fd, uint8_t *keys, uint8_t *values, uint64_t value_stride,
			 uint32_t room)
{
	int64_t count = 0;
	int error;

	while (count < room && !walk->done) {
		uint8_t *value = values + (uint64_t)count * value_stride;
		uint8_t *swap;

		error = walk->ahead ? 0 : look_ahead(walk, fd, value);
		if (error < 0)
			return error;
		if (error) {
			walk->done = 1;
			break;
		}
		swap = walk->previous;
		walk->previous = walk->next;
		walk->next = swap;
		walk->started = 1;
		walk->ahead = 0;
		if (known(walk, walk->previous))
			continue;
		error = key_call(BPF_MAP_LOOKUP_ELEM, fd, walk->previous, value);
		if (error == -ENOENT) /* deleted since the last call */
			continue;
		if (error)
			return error;
		error = note(walk, walk->previous);
		if (error < 0)
			return error;
		memcpy(keys + (uint64_t)count * walk->key_size, walk->previous, walk->key_size);
		count++;
		if (!walk->trie)
			continue;
		/* At once, before the key can come back. */
		error = look_ahead(walk, fd, NULL);
		if (error < 0)
			return error;
		walk->done = error;
		walk->ahead = !error;
		if (!error && known(walk, walk->next))
			count--;
		else if (count == 1)
			count = confirm(fd, walk, keys, values, value_stride, count);
	}
	return count;
}

int64_t skep_walk_rows(struct skep_walk *walk, int fd, uint8_t *keys, uint8_t *values, uint64_t value_stride,
		       uint32_t room)
{
	int64_t count = 0;

	while (!count && !walk->done) {
		count = walk_keys(walk, fd, keys, values, value_stride, room);
		if (count > 0 && walk->trie)
			count = confirm(fd, walk, keys, values, value_stride, count);
	}
	return count;
}

int64_t skep_walk_sift(struct skep_walk *walk, int fd, uint8_t *keys, uint8_t *values, uint64_t value_stride,
		       uint32_t count)
{
	int64_t kept = 0;
	int fresh = 0;

	for (uint32_t i = 0; i < count; i++) {
		const uint8_t *key = keys + (uint64_t)i * walk->key_size;

		if (known(walk, key)) {
			kept -= fresh;
			fresh = 0;
			continue;
		}
		note(walk, key);
		if (kept != i) {
			memmove(keys + (uint64_t)kept * walk->key_size, key, walk->key_size);
			memmove(values + (uint64_t)kept * value_stride, values + (uint64_t)i * value_stride, value_stride);
		}
		kept++;
		fresh = 1;
	}
	if (fresh && !key_call(BPF_MAP_GET_NEXT_KEY, fd, walk->last, walk->next) && known(walk, walk->next))
		kept--;
	walk->steps += count;
	return walk->steps > walk->step_limit ? -EAGAIN : confirm(fd, walk, keys, values, value_stride, kept);
}

int64_t skep_queue_take(int fd, uint32_t value_size, uint32_t room, uint8_t *out)
{
	uint64_t step = SKEP_RECORD_STEP(value_size);

	for (uint32_t taken = 0; taken < room; taken++, out += step) {
		struct skep_record record = {.length = value_size};
		int error = key_call(BPF_MAP_LOOKUP_AND_DELETE_ELEM, fd, NULL, out + sizeof(record));

		if (error == -ENOENT || (error && taken))
			return taken;
		if (error)
			return error;
		memcpy(out, &record, sizeof(record));
	}
	return room;
}
