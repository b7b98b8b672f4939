/* SPDX-License-Identifier: Apache-2.0
 *
 * Consumer of one BPF ring buffer (BPF_MAP_TYPE_RINGBUF), by the rules of the
 * kernel's Documentation/bpf/ringbuf.rst: two positions that only grow, a data
 * area mapped twice in a row so that no record is ever split, and a header of
 * eight bytes before each record whose first 32 bits are length, busy bit and
 * discard bit. We are the only writer of the consumer's position.
 */
#ifndef SKEP_RING_H
#define SKEP_RING_H

#include <stddef.h>
#include <stdint.h>

struct skep_ring {
	uint64_t *consumer; /* one page, ours to write */
	const uint64_t *producer; /* one page, then the data twice */
	const uint8_t *data;
	uint64_t size; /* of the data, a power of two */
	size_t page_size, producer_bytes;
};

/* Zero or a negative errno. */
int skep_ring_open(struct skep_ring *ring, int fd, uint64_t size);
void skep_ring_close(struct skep_ring *ring);

/* Bytes that finished records and the ring's headers take now. */
uint64_t skep_ring_used(const struct skep_ring *ring);

/* How many bytes skep_ring_take() will write if it takes whole records up to
 * `limit` bytes, or one that is larger, and to which position that is. -EBADMSG
 * when a header cannot be true. */
int64_t skep_ring_measure(const struct skep_ring *ring, uint64_t limit, uint64_t *end);

/* Copy the records before `end` into `out`, each behind a struct skep_record,
 * and give their space back to the kernel one by one. */
void skep_ring_take(struct skep_ring *ring, uint64_t end, uint8_t *out);

#endif
