/* SPDX-License-Identifier: Apache-2.0
 *
 * What a scrape cannot be cheaper than: every row out of the kernel by batch
 * look-up, and one copy of a body of the scrape's size into fresh memory.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* `keys` and `values` have room for `chunk` rows and are used again for each. Returns the rows read, or -errno. */
long floor_read(int fd, void *keys, void *values, uint32_t chunk)
{
	uint8_t token[512]; /* of a hash map a bucket's number, 4 bytes; of others a key */
	long rows = 0;
	int first = 1;

	for (;;) {
		union bpf_attr attr;
		int failed;

		memset(&attr, 0, sizeof(attr));
		attr.batch.in_batch = first ? 0 : (uint64_t)(uintptr_t)token;
		attr.batch.out_batch = (uint64_t)(uintptr_t)token;
		attr.batch.keys = (uint64_t)(uintptr_t)keys;
		attr.batch.values = (uint64_t)(uintptr_t)values;
		attr.batch.count = chunk;
		attr.batch.map_fd = (uint32_t)fd;
		failed = syscall(__NR_bpf, BPF_MAP_LOOKUP_BATCH, &attr, sizeof(attr.batch));
		if (failed && errno != ENOENT)
			return -errno;
		rows += attr.batch.count;
		if (failed)
			return rows;
		first = 0;
	}
}

/* The same where there is no batch: key by key, two calls a row. `keys` has room for two. */
long floor_walk(int fd, uint8_t *keys, void *value, uint32_t key_size)
{
	uint8_t *previous = NULL, *next = keys, *other = keys + key_size;
	union bpf_attr attr;
	long rows = 0;

	for (;;) {
		memset(&attr, 0, sizeof(attr));
		attr.map_fd = (uint32_t)fd;
		attr.key = (uint64_t)(uintptr_t)previous;
		attr.next_key = (uint64_t)(uintptr_t)next;
		if (syscall(__NR_bpf, BPF_MAP_GET_NEXT_KEY, &attr, sizeof(attr)))
			return errno == ENOENT ? rows : -errno;
		attr.key = (uint64_t)(uintptr_t)next;
		attr.value = (uint64_t)(uintptr_t)value;
		if (!syscall(__NR_bpf, BPF_MAP_LOOKUP_ELEM, &attr, sizeof(attr)))
			rows++;
		else if (errno != ENOENT)
			return -errno;
		previous = next;
		next = other;
		other = previous;
	}
}

/* Returns a byte of the copy, so that the copy is made. */
int floor_copy(const char *body, size_t size)
{
	char *copy = malloc(size);
	int last;

	if (!copy)
		return -1;
	memcpy(copy, body, size);
	last = ((volatile char *)copy)[size - 1];
	free(copy);
	return last;
}
