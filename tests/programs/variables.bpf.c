// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Global variables that are measured, in every section and of every shape. */
#include <skep.bpf.h>

const volatile __u32 tgid = 0;
const volatile __s64 wanted_call = -1;
const volatile __u64 limit SKEP_GAUGE("test.limit") = 42;
const volatile __u32 gauge_unsaid = 7; /* a setting, whatever its name */

struct sizes {
	__u64 calls SKEP_COUNTER("test.sizes.calls");
	__u32 pad;
	__s32 level SKEP_GAUGE("test.sizes.level");
};

__u64 counter_calls;
__u64 unrelated;
__u64 operations[4] SKEP_COUNTER("test.operations") SKEP_LABEL("operation");
__u64 counter_per_cpu[256] SKEP_DROP;
struct sizes sizes[2] SKEP_EXPORT;
struct sizes scratch;
struct skep_latency latency SKEP_HISTOGRAM("test.latency") SKEP_UNIT("s");
__u64 hist_plain[8];
static volatile __u64 own SKEP_COUNTER("test.own");
__s64 gauge_started SEC(".data.more") = 5;

SEC("raw_tp/sys_enter")
int on_syscall(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 call;

	if (bpf_get_current_pid_tgid() >> 32 != tgid || (__s64)ctx->args[1] != wanted_call)
		return 0;
	call = counter_calls;
	skep_add(&counter_calls, 1);
	skep_add(&unrelated, gauge_unsaid + limit);
	skep_add(&operations[call & 1], 1);
	skep_add(&counter_per_cpu[bpf_get_smp_processor_id() & 255], 1);
	skep_add(&sizes[1].calls, 2);
	sizes[1].level = -3;
	scratch.level = -4;
	skep_observe_ns(&latency, 1500);
	skep_add(&hist_plain[3], 1);
	skep_add(&own, 1);
	gauge_started = 6;
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
