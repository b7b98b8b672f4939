/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * @NAME@: how long a CPU stays with one task, or with none, before it switches.
 *
 * A map whose value is struct skep_latency is a histogram of durations: they are
 * measured and summed in nanoseconds, counted in buckets of 1 us, 2 us, 4 us ...
 * 33.5 s, and exported in seconds. For other quantities there is
 * SKEP_HISTOGRAM_TYPE. Each member of the key is a label.
 */
#include <skep.bpf.h>

/* Shown without what the names have in common, in lower case: idle, task. */
enum occupation {
	OCCUPATION_IDLE,
	OCCUPATION_TASK,
};

struct key {
	enum occupation occupation;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 2);
	__type(key, struct key);
	__type(value, struct skep_latency);
} stays SEC(".maps") SKEP_HISTOGRAM("ebpf.@METRIC@.duration") SKEP_UNIT("s")
	SKEP_HELP("Time a CPU stayed with one task, or idle, before it switched.");

/* When this CPU switched last. The program's own: not exported. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} switched SEC(".maps") SKEP_PRIVATE;

static const struct skep_latency nothing_yet;

SEC("raw_tp/sched_switch")
int on_switch(void *ctx)
{
	__u64 now = bpf_ktime_get_ns(), since, *last;
	struct skep_latency *latency;
	struct key key = {};
	__u32 zero = 0;

	last = bpf_map_lookup_elem(&switched, &zero);
	if (!last)
		return 0;
	since = *last;
	*last = now;
	if (!since)
		return 0; /* the first switch we see on this CPU has no beginning */
	/* Still the task that leaves; the idle task of each CPU is number 0. */
	key.occupation = (__u32)bpf_get_current_pid_tgid() ? OCCUPATION_TASK : OCCUPATION_IDLE;
	latency = skep_lookup_or_init(&stays, &key, &nothing_yet);
	if (latency)
		skep_observe_ns(latency, now - since);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
