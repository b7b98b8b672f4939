/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * How long block devices took to serve requests, and how many they failed.
 *
 * The time runs from when the driver gets a request (issue) until it is
 * complete: the device's own time, without what was spent in the I/O scheduler.
 * A request that is requeued and issued again is timed from its last issue; one
 * that completes in parts is counted once, with its last part.
 */
#include <skep.bpf.h>
#include "../kernel.h"

/* linux/blk_types.h, the same numbers since v4.10 */
#define REQ_OP_MASK 0xff
#define REQ_OP_READ 0
#define REQ_OP_WRITE 1
#define REQ_OP_FLUSH 2
#define REQ_OP_DISCARD 3

#define MINORBITS 20

enum block_operation {
	BLOCK_OPERATION_READ,
	BLOCK_OPERATION_WRITE,
	BLOCK_OPERATION_DISCARD,
	BLOCK_OPERATION_FLUSH,
	BLOCK_OPERATION_OTHER,
};

struct key {
	dev_nr device; /* the whole disk */
	enum block_operation operation;
};

struct requests {
	SKEP_LATENCY_MEMBERS;
	__u64 errors SKEP_COUNTER("ebpf.block.request.errors") SKEP_UNIT("{request}")
		SKEP_HELP("Block device requests that completed with an error.");
};

static const struct requests no_requests;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 512);
	__type(key, struct key);
	__type(value, struct requests);
} requests SEC(".maps") SKEP_HISTOGRAM("ebpf.block.request.duration") SKEP_UNIT("s")
	SKEP_HELP("Time from the issue of a request to a block device until its completion.");

SKEP_CPU_COUNTER(missed) SKEP_COUNTER("ebpf.block.request.missed") SKEP_UNIT("{request}")
	SKEP_HELP("Block device requests that were not measured because a map of the program was full.");

/* Address of a request in flight to the time of its issue. Requests are reused
 * in place, so one whose end was never seen is overwritten, not lost. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u64);
} in_flight SEC(".maps") SKEP_PRIVATE;

static __always_inline struct gendisk *disk_of(struct request *request)
{
	struct request___before_5_17 *old = (void *)request;

	if (bpf_core_field_exists(old->rq_disk))
		return old->rq_disk;
	return request->q->disk;
}

static __always_inline enum block_operation operation_of(struct request *request)
{
	switch (request->cmd_flags & REQ_OP_MASK) {
	case REQ_OP_READ:
		return BLOCK_OPERATION_READ;
	case REQ_OP_WRITE:
		return BLOCK_OPERATION_WRITE;
	case REQ_OP_FLUSH:
		return BLOCK_OPERATION_FLUSH;
	case REQ_OP_DISCARD:
		return BLOCK_OPERATION_DISCARD;
	default:
		return BLOCK_OPERATION_OTHER;
	}
}

static __always_inline int begin_request(struct request *request)
{
	__u64 id = (__u64)request, now;

	if (!disk_of(request))
		return 0; /* a command to a controller, not to a block device */
	now = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&in_flight, &id, &now, BPF_ANY))
		skep_count_one(&missed);
	return 0;
}

SEC("tp_btf/block_rq_issue")
int on_issue(__u64 *ctx)
{
	struct request *request;

	if (bpf_core_type_exists(btf_trace_block_rq_issue___with_queue)) {
		request = (struct request *)ctx[1];
		/* Keep the two loads apart: an offset chosen at run time is refused. */
		asm volatile("" : "+r"(request));
	} else {
		request = (struct request *)ctx[0];
	}
	return begin_request(request);
}

SEC("tp_btf/block_rq_complete")
int BPF_PROG(on_complete, struct request *request, int error, unsigned int bytes)
{
	__u64 id = (__u64)request, *begin, took = 0;
	struct gendisk *disk = disk_of(request);
	struct requests *counts;
	struct key key = {};
	bool last;

	if (!disk)
		return 0;
	last = bytes >= request->__data_len;
	if (!last && !error)
		return 0;
	begin = last ? bpf_map_lookup_elem(&in_flight, &id) : NULL;
	if (begin) {
		took = bpf_ktime_get_ns() - *begin;
		bpf_map_delete_elem(&in_flight, &id);
	} else if (!error) {
		return 0; /* issued before we were there, or never issued */
	}
	key.device = disk->major << MINORBITS | disk->first_minor;
	key.operation = operation_of(request);
	counts = skep_lookup_or_init(&requests, &key, &no_requests);
	if (!counts) {
		skep_count_one(&missed);
		return 0;
	}
	if (begin)
		skep_observe_ns(counts, took);
	if (error)
		skep_add(&counts->errors, 1);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
