// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Records into a perf event array and values into a queue and a stack, each
 * counted when it is made and when there was no room. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct record {
	__u64 number;
	__u32 cpu;
	char text[20];
};

const volatile __u32 tgid = 0;
const volatile __s64 syscall_nr = -1;

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__type(value, struct record);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 100);
	__type(value, struct record);
} waiting SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 100);
	__type(value, __u64);
} piled SEC(".maps");

enum tally { MADE, LOST, QUEUE_FULL, TALLIES };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TALLIES);
	__type(key, __u32);
	__type(value, __u64);
} tallies SEC(".maps");

static __u64 add(__u32 tally)
{
	__u64 *cell = bpf_map_lookup_elem(&tallies, &tally);
	__u64 was = 0;

	if (cell) {
		was = *cell;
		__sync_fetch_and_add(cell, 1);
	}
	return was;
}

SEC("raw_tp/sys_enter")
int on_syscall(struct bpf_raw_tracepoint_args *ctx)
{
	struct record record = {};

	if ((__s64)ctx->args[1] != syscall_nr || bpf_get_current_pid_tgid() >> 32 != tgid)
		return 0;
	record.number = add(MADE);
	record.cpu = bpf_get_smp_processor_id();
	bpf_get_current_comm(record.text, sizeof(record.text));
	if (bpf_perf_event_output(ctx, &events, BPF_F_CURRENT_CPU, &record, sizeof(record)))
		add(LOST);
	if (bpf_map_push_elem(&waiting, &record, 0))
		add(QUEUE_FULL);
	bpf_map_push_elem(&piled, &record.number, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
