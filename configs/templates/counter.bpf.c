/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * @NAME@: system calls, counted for each command.
 *
 * A map whose name starts with counter_, or that is tagged SKEP_COUNTER, is a
 * counter. Each member of its key is a label, named like the member; its value
 * is the number. Nothing else is needed to see it in Prometheus.
 *
 * The label is the name of a command, which may tell what a person does.
 */
#include <skep.bpf.h>

struct key {
	char command[16]; /* text up to the first NUL */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH); /* summed over CPUs when it is read */
	__uint(max_entries, 4096);
	__type(key, struct key);
	__type(value, __u64);
} calls SEC(".maps") SKEP_COUNTER("ebpf.@METRIC@.calls") SKEP_UNIT("{call}")
	SKEP_HELP("System calls begun.");

/* What did not fit into the map is better counted than forgotten. */
SKEP_CPU_COUNTER(missed) SKEP_COUNTER("ebpf.@METRIC@.missed") SKEP_UNIT("{call}")
	SKEP_HELP("System calls that were not counted because the map was full.");

/* A raw tracepoint exists on every kernel and needs no more than CAP_BPF and CAP_PERFMON. */
SEC("raw_tp/sys_enter")
int on_call(void *ctx)
{
	struct key key = {};
	__u64 zero = 0, *count;

	bpf_get_current_comm(key.command, sizeof(key.command));
	count = skep_lookup_or_init(&calls, &key, &zero);
	if (count)
		skep_add(count, 1);
	else
		skep_count_one(&missed);
	return 0;
}

/* The kernel lends most of its helpers to programs under the GPL only. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
