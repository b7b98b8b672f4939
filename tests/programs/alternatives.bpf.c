// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* One measurement, three ways: the getpgid() calls of a process. */
#include <skep.bpf.h>
#include "seen.h"

struct pt_regs;

const volatile __s64 wanted_syscall = -1;
const volatile __u64 address = 0;

SEC("?fentry/__x64_sys_getpgid") SKEP_ALTERNATIVE("getpgid", 1)
int BPF_PROG(by_fentry)
{
	count_ours(0);
	return 0;
}

SEC("?kprobe/__x64_sys_getpgid") SKEP_ALTERNATIVE("getpgid", 2)
int BPF_KPROBE(by_kprobe)
{
	count_ours(0);
	return 0;
}

SEC("?raw_tp/sys_enter") SKEP_ALTERNATIVE("getpgid", 3)
int by_raw_tp(struct bpf_raw_tracepoint_args *ctx)
{
	if ((__s64)ctx->args[1] == wanted_syscall)
		count_ours(0);
	return 0;
}

SEC("fentry/skep_no_such_function") SKEP_ALTERNATIVE("nothing", 1)
int by_no_function(void *ctx)
{
	return 0;
}

SEC("raw_tp/sys_exit") SKEP_ALTERNATIVE("nothing", 2)
int by_exit(struct bpf_raw_tracepoint_args *ctx)
{
	count_ours(1);
	return 0;
}

/* What the kernel has at the address it was given. */
SEC("raw_tp/sys_enter")
int on_peek(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 cell = 2;
	__u64 *found = bpf_map_lookup_elem(&seen, &cell);

	if (found && address)
		*found = address;
	return 0;
}
