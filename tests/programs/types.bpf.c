/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Reads members of the kernel's structures where the kernel's types say they lie.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

const volatile __u32 tgid;

/* Not the kernel's order: only relocation finds the members. */
struct task_struct {
	struct task_struct *group_leader;
	int tgid;
	char comm[16];
	int pid;
} __attribute__((preserve_access_index));

enum perf_sw_ids { PERF_COUNT_SW_CPU_CLOCK = 77 };

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, char[16]);
	__type(value, __u64);
} comms SEC(".maps");

static int count(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	char comm[16] = {};
	__u64 one = 1, *calls;

	if (BPF_CORE_READ(task, tgid) != tgid)
		return 0;
	BPF_CORE_READ_STR_INTO(&comm, task, group_leader, comm);
	calls = bpf_map_lookup_elem(&comms, comm);
	if (calls)
		__sync_fetch_and_add(calls, bpf_core_enum_value_exists(enum perf_sw_ids, PERF_COUNT_SW_CPU_CLOCK));
	else
		bpf_map_update_elem(&comms, comm, &one, BPF_ANY);
	return 0;
}

SEC("raw_tp/sys_enter") int on_enter(void *context) { return count(); }
SEC("tp_btf/sys_enter") int on_typed_enter(void *context) { return 0; }
