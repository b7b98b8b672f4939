// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Programs that a kernel refuses, each for its own reason; a test loads one of them. */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

struct task_struct {
	int no_such_member;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} table SEC(".maps");

SEC("raw_tp/sys_enter")
int fine(void *ctx)
{
	return 0;
}

SEC("raw_tp/sys_enter")
int unchecked_pointer(void *ctx)
{
	__u32 key = 0;
	__u64 *value = bpf_map_lookup_elem(&table, &key);

	return (int)*value;
}

SEC("raw_tp/sys_enter")
int missing_member(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, no_such_member);
}

SEC("tp_btf/skep_no_such_tracepoint")
int missing_typed_tracepoint(void *ctx)
{
	return 0;
}

SEC("fexit/skep_no_such_function")
int missing_function(void *ctx)
{
	return 0;
}

SEC("lsm/skep_no_such_check")
int missing_check(void *ctx)
{
	return 0;
}

SEC("tracepoint/skep/no_such_tracepoint")
int missing_tracepoint(void *ctx)
{
	return 0;
}

SEC("raw_tp/skep_no_such_tracepoint")
int missing_raw_tracepoint(void *ctx)
{
	return 0;
}

SEC("fentry/vfs_unlink")
int on_trampoline(void *ctx)
{
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
