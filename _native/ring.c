/* SPDX-License-Identifier: Apache-2.0 */
#include "ring.h"

#include <errno.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "record.h"

/* A record in the ring: its header, its data, padding up to eight bytes. */
#define RING_STEP(length) (((uint64_t)(length) + BPF_RINGBUF_HDR_SZ + 7u) & ~(uint64_t)7u)

int skep_ring_open(struct skep_ring *ring, int fd, uint64_t size)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	void *consumer, *producer;

	memset(ring, 0, sizeof(*ring));
	if (size < page || size & (size - 1))
		return -EINVAL;
	consumer = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (consumer == MAP_FAILED)
		return -errno;
	producer = mmap(NULL, page + 2 * size, PROT_READ, MAP_SHARED, fd, (off_t)page);
	if (producer == MAP_FAILED) {
		int error = -errno;

		munmap(consumer, page);
		return error;
	}
	ring->consumer = consumer;
	ring->producer = producer;
	ring->data = (const uint8_t *)producer + page;
	ring->size = size;
	ring->page_size = page;
	ring->producer_bytes = page + 2 * size;
	return 0;
}

void skep_ring_close(struct skep_ring *ring)
{
	if (!ring->consumer)
		return;
	munmap(ring->consumer, ring->page_size);
	munmap((void *)ring->producer, ring->producer_bytes);
	memset(ring, 0, sizeof(*ring));
}

uint64_t skep_ring_used(const struct skep_ring *ring)
{
	return __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE) - __atomic_load_n(ring->consumer, __ATOMIC_RELAXED);
}

/* Acquire: the busy bit falls after the record's bytes are written. */
static uint32_t header_at(const struct skep_ring *ring, uint64_t position)
{
	return __atomic_load_n((const uint32_t *)(ring->data + (position & (ring->size - 1))), __ATOMIC_ACQUIRE);
}

static uint32_t length_of(uint32_t header)
{
	return header & ~(uint32_t)(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
}

int64_t skep_ring_measure(const struct skep_ring *ring, uint64_t limit, uint64_t *end)
{
	uint64_t position = __atomic_load_n(ring->consumer, __ATOMIC_RELAXED), produced, bytes = 0;

	/* The kernel wakes us only for a record at the consumer's position. Our last
	 * store of it must be seen before we look for more, or a record committed in
	 * between wakes nobody. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	produced = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);
	while (position < produced) {
		uint32_t header = header_at(ring, position);
		uint64_t step = RING_STEP(length_of(header));

		if (header & BPF_RINGBUF_BUSY_BIT)
			break;
		if (step > produced - position || produced - position > ring->size)
			return -EBADMSG;
		if (!(header & BPF_RINGBUF_DISCARD_BIT)) {
			uint64_t framed = SKEP_RECORD_STEP(length_of(header));

			if (bytes && bytes + framed > limit)
				break;
			bytes += framed;
		}
		position += step;
	}
	*end = position;
	return (int64_t)bytes;
}

void skep_ring_take(struct skep_ring *ring, uint64_t end, uint8_t *out)
{
	uint64_t position = __atomic_load_n(ring->consumer, __ATOMIC_RELAXED);

	while (position < end) {
		uint32_t header = header_at(ring, position), length = length_of(header);

		if (!(header & BPF_RINGBUF_DISCARD_BIT)) {
			struct skep_record record = {.position = position, .length = length};
			const uint8_t *data = ring->data + (position & (ring->size - 1)) + BPF_RINGBUF_HDR_SZ;

			memcpy(out, &record, sizeof(record));
			memcpy(out + sizeof(record), data, length);
			memset(out + sizeof(record) + length, 0, SKEP_RECORD_STEP(length) - sizeof(record) - length);
			out += SKEP_RECORD_STEP(length);
		}
		position += RING_STEP(length);
		/* Release: the space is the kernel's only after we have read it. One by
		 * one, so that a burst finds room while the rest is still being copied. */
		__atomic_store_n(ring->consumer, position, __ATOMIC_RELEASE);
	}
}
