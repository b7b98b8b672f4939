/* SPDX-License-Identifier: Apache-2.0 */
#include "perf.h"

#include <errno.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "record.h"

/* Since Linux kernel commit 119a784c8127 ("perf/core: Add a new read format to get a number of lost samples") (in
 * v6.0); older headers do not name it. */
#define READ_LOST (1u << 4)

/* PERF_RECORD_SAMPLE with PERF_SAMPLE_RAW alone: header, u32 size, that many bytes. */
#define SAMPLE_HEAD (sizeof(struct perf_event_header) + sizeof(uint32_t))

static int open_event(uint32_t cpu, uint32_t watermark, int counts_lost)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(attr),
		.config = PERF_COUNT_SW_BPF_OUTPUT,
		.sample_type = PERF_SAMPLE_RAW,
		.sample_period = 1,
		.watermark = 1,
		.wakeup_watermark = watermark,
		.read_format = counts_lost ? READ_LOST : 0,
	};
	long fd = syscall(SYS_perf_event_open, &attr, -1, (int)cpu, -1, PERF_FLAG_FD_CLOEXEC);

	return fd < 0 ? -errno : (int)fd;
}

static int put_into(int map_fd, uint32_t cpu, int fd)
{
	union bpf_attr attr;
	uint32_t value = (uint32_t)fd;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = (uint32_t)map_fd;
	attr.key = (uint64_t)(uintptr_t)&cpu;
	attr.value = (uint64_t)(uintptr_t)&value;
	return syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &attr, sizeof(attr)) ? -errno : 0;
}

int skep_perf_open(struct skep_perf *perf, int map_fd, uint32_t cpu, uint64_t size, uint32_t watermark)
{
	int error;

	memset(perf, 0, sizeof(*perf));
	perf->page_size = (size_t)sysconf(_SC_PAGESIZE);
	perf->counts_lost = 1;
	perf->fd = open_event(cpu, watermark, 1);
	if (perf->fd == -EINVAL) {
		perf->counts_lost = 0;
		perf->fd = open_event(cpu, watermark, 0);
	}
	if (perf->fd < 0)
		return perf->fd;
	perf->size = size;
	perf->pages = mmap(NULL, perf->page_size + size, PROT_READ | PROT_WRITE, MAP_SHARED, perf->fd, 0);
	if (perf->pages == MAP_FAILED) {
		error = -errno;
		close(perf->fd);
		perf->pages = NULL;
		return error;
	}
	error = put_into(map_fd, cpu, perf->fd);
	if (!error && ioctl(perf->fd, PERF_EVENT_IOC_ENABLE, 0))
		error = -errno;
	if (error)
		skep_perf_close(perf);
	return error;
}

void skep_perf_close(struct skep_perf *perf)
{
	if (!perf->pages)
		return;
	munmap(perf->pages, perf->page_size + perf->size);
	close(perf->fd);
	perf->pages = NULL;
}

static uint64_t head_of(const struct skep_perf *perf)
{
	const struct perf_event_mmap_page *page = perf->pages;

	return __atomic_load_n(&page->data_head, __ATOMIC_ACQUIRE);
}

static uint64_t tail_of(const struct skep_perf *perf)
{
	const struct perf_event_mmap_page *page = perf->pages;

	return __atomic_load_n(&page->data_tail, __ATOMIC_RELAXED);
}

uint64_t skep_perf_used(const struct skep_perf *perf)
{
	return head_of(perf) - tail_of(perf);
}

uint64_t skep_perf_lost(const struct skep_perf *perf)
{
	uint64_t counts[2]; /* value, lost */

	if (perf->counts_lost && read(perf->fd, counts, sizeof(counts)) == (ssize_t)sizeof(counts))
		return counts[1];
	return perf->lost_told;
}

/* Bytes at a position, which may wrap around the end of the data. */
static void copy(const struct skep_perf *perf, uint64_t position, void *to, size_t len)
{
	const uint8_t *data = (const uint8_t *)perf->pages + perf->page_size;
	uint64_t from = position & (perf->size - 1), first = perf->size - from;

	if (first >= len) {
		memcpy(to, data + from, len);
	} else {
		memcpy(to, data + from, first);
		memcpy((uint8_t *)to + first, data, len - first);
	}
}

/* The raw bytes of a sample, or -1 of what is none. */
static int64_t sample_length(const struct skep_perf *perf, uint64_t position, const struct perf_event_header *header)
{
	uint32_t length;

	if (header->type != PERF_RECORD_SAMPLE || header->size < SAMPLE_HEAD)
		return -1;
	copy(perf, position + sizeof(*header), &length, sizeof(length));
	return length <= header->size - SAMPLE_HEAD ? (int64_t)length : -1;
}

int64_t skep_perf_measure(const struct skep_perf *perf, uint64_t limit, uint64_t *end)
{
	uint64_t position = tail_of(perf), head = head_of(perf), bytes = 0;

	while (position < head) {
		struct perf_event_header header;

		copy(perf, position, &header, sizeof(header));
		if (header.size < sizeof(header) || header.size > head - position || head - position > perf->size)
			return -EBADMSG;
		int64_t length = sample_length(perf, position, &header);
		if (length >= 0) {
			uint64_t framed = SKEP_RECORD_STEP(length);

			if (bytes && bytes + framed > limit)
				break;
			bytes += framed;
		}
		position += header.size;
	}
	*end = position;
	return (int64_t)bytes;
}

void skep_perf_take(struct skep_perf *perf, uint64_t end, uint8_t *out)
{
	struct perf_event_mmap_page *page = perf->pages;
	uint64_t position = tail_of(perf);

	while (position < end) {
		struct perf_event_header header;

		copy(perf, position, &header, sizeof(header));
		int64_t length = sample_length(perf, position, &header);
		if (length >= 0) {
			struct skep_record record = {.position = position, .length = (uint32_t)length};
			uint64_t step = SKEP_RECORD_STEP(length);

			memcpy(out, &record, sizeof(record));
			copy(perf, position + SAMPLE_HEAD, out + sizeof(record), (size_t)length);
			memset(out + sizeof(record) + length, 0, step - sizeof(record) - (uint64_t)length);
			out += step;
		} else if (header.type == PERF_RECORD_LOST) {
			uint64_t lost[2] = {0, 0}; /* id, count */

			if (header.size >= sizeof(header) + sizeof(lost))
				copy(perf, position + sizeof(header), lost, sizeof(lost));
			perf->lost_told += lost[1];
		}
		position += header.size;
		/* Release: the space is the kernel's only after we have read it. */
		__atomic_store_n(&page->data_tail, position, __ATOMIC_RELEASE);
	}
}
