/* SPDX-License-Identifier: Apache-2.0
 *
 * One CPU's buffer of a perf event array (BPF_MAP_TYPE_PERF_EVENT_ARRAY), by the
 * rules of linux/perf_event.h (struct perf_event_mmap_page): the kernel writes
 * records before data_head, we give space back up to data_tail. Records may wrap
 * around the end. What did not fit the kernel counts itself.
 */
#ifndef SKEP_PERF_H
#define SKEP_PERF_H

#include <stddef.h>
#include <stdint.h>

struct skep_perf {
	int fd;
	void *pages; /* one of positions, then the data */
	uint64_t size; /* of the data, a power of two */
	size_t page_size;
	uint64_t lost_told; /* by records in the buffer */
	int counts_lost;    /* the kernel tells the exact count (first in 6.0) */
};

/* Open the buffer of a CPU and put it into the array; wakes at `watermark` bytes. Zero or a negative errno. */
int skep_perf_open(struct skep_perf *perf, int map_fd, uint32_t cpu, uint64_t size, uint32_t watermark);
void skep_perf_close(struct skep_perf *perf);

uint64_t skep_perf_used(const struct skep_perf *perf);
/* Records that did not fit, so far: exactly, or before 6.0 as far as the buffer has told. */
uint64_t skep_perf_lost(const struct skep_perf *perf);

/* As of ring.h: how many bytes skep_perf_take() will write at most if it takes whole records up to `limit`
 * bytes or one that is larger, and to which position that is. -EBADMSG when a header cannot be true. */
int64_t skep_perf_measure(const struct skep_perf *perf, uint64_t limit, uint64_t *end);
void skep_perf_take(struct skep_perf *perf, uint64_t end, uint8_t *out);

#endif
