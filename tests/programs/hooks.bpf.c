// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* One event, counted by every kind of hook that sees it, so that each is the
 * other's referee: system call `syscall_nr` made by process `tgid`. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

const volatile __u32 tgid = 0;
const volatile __s64 syscall_nr = -1;

enum hook { HOOK_RAW_TP, HOOK_TP_BTF, HOOK_TRACEPOINT, HOOKS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HOOKS);
	__type(key, __u32);
	__type(value, __u64);
} calls SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HOOKS);
	__type(key, __u32);
	__type(value, __u64);
} calls_per_cpu SEC(".maps");

static void count(__u32 hook)
{
	__u64 *cell;

	if (bpf_get_current_pid_tgid() >> 32 != tgid)
		return;
	cell = bpf_map_lookup_elem(&calls, &hook);
	if (cell)
		__sync_fetch_and_add(cell, 1);
	cell = bpf_map_lookup_elem(&calls_per_cpu, &hook);
	if (cell)
		*cell += 1;
}

SEC("raw_tp/sys_enter")
int on_raw_tp(struct bpf_raw_tracepoint_args *ctx)
{
	if ((__s64)ctx->args[1] == syscall_nr)
		count(HOOK_RAW_TP);
	return 0;
}

SEC("tp_btf/sys_enter")
int on_tp_btf(__u64 *ctx)
{
	if ((__s64)ctx[1] == syscall_nr)
		count(HOOK_TP_BTF);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_getpgid")
int on_tracepoint(void *ctx)
{
	count(HOOK_TRACEPOINT);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
