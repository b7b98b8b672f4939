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

static uint64_t hash_key(const uint8_t *key, uint32_t size)
{
	uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a, 64 bit */

	for (uint32_t i = 0; i < size; i++)
		hash = (hash ^ key[i]) * 0x100000001b3u;
	return hash ^ hash >> 32;
}

int skep_walk_open(struct skep_walk *walk, uint32_t key_size, uint64_t max_entries)
{
	uint64_t slots = 64;

	memset(walk, 0, sizeof(*walk));
	walk->key_size = key_size;
	walk->step_limit = 64 * max_entries + 4096;
	walk->seen_capacity = 32;
	walk->slot_mask = slots - 1;
	walk->seen = malloc(walk->seen_capacity * key_size);
	walk->slots = calloc(slots, sizeof(*walk->slots));
	walk->previous = malloc(key_size);
	walk->next = malloc(key_size);
	if (walk->seen && walk->slots && walk->previous && walk->next)
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

int64_t skep_walk_rows(struct skep_walk *walk, int fd, uint8_t *keys, uint8_t *values, uint64_t value_stride,
		       uint32_t room)
{
	int64_t count = 0;

	while (count < room && !walk->done) {
		uint8_t *swap;
		uint64_t slot;
		int error = key_call(BPF_MAP_GET_NEXT_KEY, fd, walk->started ? walk->previous : NULL, walk->next);

		if (error == -ENOENT || (!error && ++walk->steps > walk->step_limit)) {
			walk->done = 1;
			break;
		}
		if (error)
			return error;
		swap = walk->previous;
		walk->previous = walk->next;
		walk->next = swap;
		walk->started = 1;

		slot = find_slot(walk, walk->previous);
		if (walk->slots[slot])
			continue;
		error = key_call(BPF_MAP_LOOKUP_ELEM, fd, walk->previous, values + (uint64_t)count * value_stride);
		if (error == -ENOENT) /* deleted since the last call */
			continue;
		if (error)
			return error;
		if (walk->seen_count == walk->seen_capacity) {
			error = grow(walk);
			if (error)
				return error;
			slot = find_slot(walk, walk->previous);
		}
		memcpy(walk->seen + walk->seen_count * walk->key_size, walk->previous, walk->key_size);
		walk->slots[slot] = (uint32_t)++walk->seen_count;
		memcpy(keys + (uint64_t)count * walk->key_size, walk->previous, walk->key_size);
		count++;
	}
	return count;
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
