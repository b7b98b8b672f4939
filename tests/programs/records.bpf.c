// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Records into two rings, each counted when it is made and when it is lost. The
 * ring carries its record type the way images declare it: as a value type, which
 * must be cleared before the map is made. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define BURST 8

struct record {
	__u64 number;
	__u32 cpu;
	char text[20];
};

const volatile __u32 tgid = 0;
const volatile __s64 syscall_nr = -1;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
	__type(value, struct record);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} others SEC(".maps");

enum tally { MADE, LOST, DISCARDED, TALLIES };

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

static void make(void)
{
	struct record *record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	__u64 number = add(MADE);

	if (!record) {
		add(LOST);
		return;
	}
	record->number = number;
	record->cpu = bpf_get_smp_processor_id();
	__builtin_memset(record->text, 0, sizeof(record->text));
	bpf_get_current_comm(record->text, sizeof(record->text));
	/* Every seventh is thought better of. */
	if (number % 7 == 6) {
		bpf_ringbuf_discard(record, 0);
		add(DISCARDED);
	} else {
		bpf_ringbuf_submit(record, 0);
	}
}

SEC("raw_tp/sys_enter")
int on_syscall(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 now = bpf_ktime_get_ns();

	if ((__s64)ctx->args[1] != syscall_nr || bpf_get_current_pid_tgid() >> 32 != tgid)
		return 0;
#pragma unroll
	for (int i = 0; i < BURST; i++)
		make();
	bpf_ringbuf_output(&others, &now, sizeof(now), BPF_RB_NO_WAKEUP);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
