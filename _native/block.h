/* SPDX-License-Identifier: Apache-2.0
 *
 * Arrays that grow. Large ones are mappings of their own, which grow by moving
 * pages and go back to the system when they shrink: small steps are cheap and
 * waste little. malloc() does so only until the first large block is freed; then
 * its threshold for mappings rises, and growing means copying. Include this first.
 */
#ifndef SKEP_BLOCK_H
#define SKEP_BLOCK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* mremap */
#endif

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#define SKEP_MAPPED_FROM SIZE_MAX /* mappings would hide what the sanitizer looks for */
#else
#define SKEP_MAPPED_FROM ((size_t)256 << 10)
#endif

struct skep_block {
	size_t len; /* of all, this included */
	size_t reserved;
};

static inline void skep_block_free(void *data)
{
	struct skep_block *block = data ? (struct skep_block *)data - 1 : NULL;

	if (block && block->len >= SKEP_MAPPED_FROM)
		munmap(block, block->len);
	else
		free(block);
}

/* The bytes of `data`, which may be NULL, in a block of another size; NULL, and `data` as it was, without memory. */
static inline void *skep_block_resize(void *data, size_t len)
{
	struct skep_block *old = data ? (struct skep_block *)data - 1 : NULL, *fresh;
	size_t old_len = old ? old->len : 0;
	int was_mapped = old_len >= SKEP_MAPPED_FROM, map;

	len += sizeof(struct skep_block);
	map = len >= SKEP_MAPPED_FROM;
	if (map) {
		len = (len + 4095) & ~(size_t)4095;
		fresh = was_mapped ? mremap(old, old_len, len, MREMAP_MAYMOVE) :
				     mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (fresh == MAP_FAILED)
			return NULL;
	} else {
		fresh = was_mapped ? malloc(len) : realloc(old, len);
		if (!fresh)
			return NULL;
	}
	if (old && was_mapped != map) {
		memcpy(fresh + 1, data, (old_len < len ? old_len : len) - sizeof(struct skep_block));
		skep_block_free(data);
	}
	fresh->len = len;
	return fresh + 1;
}

#endif
