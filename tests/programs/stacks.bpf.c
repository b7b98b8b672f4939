// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Counts by stack, of the kernel's and of the process's functions. */
#include <skep.bpf.h>

const volatile __u32 tgid = 0;
const volatile __s64 wanted_call = -1;

struct key {
	__u32 tgid SKEP_DROP;
	__s32 kernel SKEP_STACK("kernel", "kstack", "stacks");
	__s32 user SKEP_STACK("user", "ustack", "stacks");
	__s32 built SKEP_STACK("built", "ustack", "by_build_id");
};

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 1024);
	__uint(key_size, 4);
	__uint(value_size, 8 * 64);
} stacks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_STACK_BUILD_ID);
	__uint(key_size, 4);
	__uint(value_size, 32 * 64);
} by_build_id SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct key);
	__type(value, __u64);
} counter_calls SEC(".maps");

SEC("raw_tp/sys_enter")
int on_syscall(struct bpf_raw_tracepoint_args *ctx)
{
	struct key key = {};
	__u64 zero = 0, *value;

	if (bpf_get_current_pid_tgid() >> 32 != tgid || (__s64)ctx->args[1] != wanted_call)
		return 0;
	key.tgid = tgid;
	key.kernel = bpf_get_stackid(ctx, &stacks, BPF_F_REUSE_STACKID);
	key.user = bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK | BPF_F_REUSE_STACKID);
	key.built = bpf_get_stackid(ctx, &by_build_id, BPF_F_USER_STACK | BPF_F_REUSE_STACKID);
	value = skep_lookup_or_init(&counter_calls, &key, &zero);
	if (value)
		skep_add(value, 1);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
