/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * System calls made, and those that failed. It runs twice at every call of every
 * process, and about doubles the time of the shortest ones.
 *
 * Numbers mean calls only within one table. 32-bit processes, and x32 ones,
 * have tables of their own: they are counted together, apart from the rest.
 */
#include <skep.bpf.h>
#include "../kernel.h"

#define CALLS 512 /* above the last number of any 64-bit table */
#define MAX_ERRNO 4095
#define EINTR 4

/* A call that a signal interrupted leaves the kernel's core with one of these
 * (linux/errno.h) and becomes EINTR, or starts again, after we have seen it. */
#define ERESTARTSYS 512
#define ERESTART_RESTARTBLOCK 516

/* Selector of 32-bit user code on x86, and the mode bit on arm64. */
#define USER32_CS 0x23
#define PSR_MODE32_BIT 0x10

typedef syscall_nr call_index SKEP_LABEL("syscall");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CALLS);
	__type(key, call_index);
	__type(value, __u64);
} calls SEC(".maps") SKEP_COUNTER("ebpf.syscall.calls") SKEP_UNIT("{call}")
	SKEP_HELP("System calls begun by 64-bit processes.");

struct failure {
	syscall_nr syscall;
	errno_code error SKEP_LABEL("errno");
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct failure);
	__type(value, __u64);
} failures SEC(".maps") SKEP_COUNTER("ebpf.syscall.errors") SKEP_UNIT("{call}")
	SKEP_HELP("System calls of 64-bit processes that failed; calls a signal interrupted count as EINTR.");

SKEP_CPU_COUNTER(other_calls) SKEP_COUNTER("ebpf.syscall.other_calls") SKEP_UNIT("{call}")
	SKEP_HELP("System calls of 32-bit and x32 processes, and numbers that no table has.");

SKEP_CPU_COUNTER(missed) SKEP_COUNTER("ebpf.syscall.errors.missed") SKEP_UNIT("{call}")
	SKEP_HELP("Failed system calls that were not counted because a map of the program was full.");

static __always_inline bool is_32_bit(struct pt_regs *regs)
{
	struct pt_regs___on_x86 *x86 = (void *)regs;
	struct pt_regs___on_arm64 *arm64 = (void *)regs;

	if (bpf_core_field_exists(x86->cs))
		return x86->cs == USER32_CS;
	if (bpf_core_field_exists(arm64->pstate))
		return arm64->pstate & PSR_MODE32_BIT;
	return false;
}

static __always_inline __u32 number_of(struct pt_regs *regs)
{
	struct pt_regs___on_x86 *x86 = (void *)regs;
	struct pt_regs___on_arm64 *arm64 = (void *)regs;

	if (bpf_core_field_exists(x86->orig_ax))
		return x86->orig_ax;
	if (bpf_core_field_exists(arm64->syscallno))
		return arm64->syscallno;
	return CALLS;
}

SEC("tp_btf/sys_enter")
int BPF_PROG(on_enter, struct pt_regs *regs, long id)
{
	__u32 number = id;
	__u64 *count = NULL;

	if (number < CALLS && !is_32_bit(regs))
		count = bpf_map_lookup_elem(&calls, &number);
	if (count)
		skep_add(count, 1);
	else
		skep_count_one(&other_calls);
	return 0;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(on_exit, struct pt_regs *regs, long result)
{
	struct failure failure = {};
	__u64 *count, zero = 0;

	if (result >= 0 || result < -MAX_ERRNO)
		return 0;
	failure.syscall = number_of(regs);
	if (failure.syscall >= CALLS || is_32_bit(regs))
		return 0;
	failure.error = -result;
	if (failure.error >= ERESTARTSYS && failure.error <= ERESTART_RESTARTBLOCK)
		failure.error = EINTR;
	count = skep_lookup_or_init(&failures, &failure, &zero);
	if (count)
		skep_add(count, 1);
	else
		skep_count_one(&missed);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
