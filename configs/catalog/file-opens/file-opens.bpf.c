/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Files that processes opened, and opens that failed: open, openat, openat2 and
 * creat, of 64-bit and 32-bit processes. What is opened through io_uring is no
 * system call and not seen; nor are execve and open_by_handle_at.
 *
 * The end of the function that all four come down to is the hook; where the kernel
 * refuses it, the end of every system call, looked at for those four.
 *
 * The event, off by default, names paths and processes: personal data.
 */
#include <skep.bpf.h>
#include "../kernel.h"
#include "../bounded.h"

/* Tell control groups apart. Events always say the group. */
const volatile bool by_cgroup = false;

/* Whether the event ebpf.file.open is made, and whether only of opens that fail. */
const volatile bool events_enabled = false;
const volatile bool events_of_failures_only = false;

/* Events a second on each CPU; 0: no limit. */
const volatile __u32 events_per_cpu_s = 1000;

#define KEYS 2048
#define MAX_ERRNO 4095
#define PATH_SIZE 256

/* A call that a signal interrupted: see the image syscalls. */
#define EINTR 4
#define ERESTARTSYS 512
#define ERESTART_RESTARTBLOCK 516

/* Selector of 32-bit user code on x86, and the mode bit on arm64. */
#define USER32_CS 0x23
#define PSR_MODE32_BIT 0x10

struct group {
	cgroup_id id SKEP_LABEL_AS("cgroup", "cgroup") SKEP_LABEL_AS("unit", "cgroup.unit");
};

struct failure {
	errno_code error SKEP_LABEL("errno");
	struct group group;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, KEYS);
	__type(key, struct group);
	__type(value, __u64);
} calls SEC(".maps") SKEP_COUNTER("ebpf.file.open.calls") SKEP_UNIT("{call}")
	SKEP_HELP("System calls to open a file, whether or not they succeeded.");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, KEYS);
	__type(key, struct failure);
	__type(value, __u64);
} errors SEC(".maps") SKEP_COUNTER("ebpf.file.open.errors") SKEP_UNIT("{call}")
	SKEP_HELP("System calls to open a file that failed; calls a signal interrupted count as EINTR.");

SKEP_ORDER_MAP(calls_order, struct group, KEYS);
SKEP_ORDER_MAP(errors_order, struct failure, KEYS);

SKEP_CPU_COUNTER(missed) SKEP_COUNTER("ebpf.file.open.missed") SKEP_UNIT("{call}")
	SKEP_HELP("System calls to open a file that were not counted because a map of the program was full.");

struct open_record {
	ktime_ns time;
	struct failure result;
	__u32 pid SKEP_LABEL("process.pid");
	char comm[16] SKEP_LABEL("process.executable.name");
	char path[PATH_SIZE] SKEP_LABEL("file.path"); /* as the process gave it, cut to fit */
};

SKEP_LOST_MAP(events_lost);
SKEP_RATE_MAP(events_rate);
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1024 * 1024);
	__type(value, struct open_record);
} events SEC(".maps") SKEP_EVENT("ebpf.file.open") SKEP_OFF SKEP_LOST("events_lost")
	SKEP_SWITCH("events_enabled") SKEP_HELP("A process opened a file, or failed to.");

/* Which argument of the call that ends here is a path. */
enum call {
	CALL_OTHER,
	CALL_PATH_FIRST,  /* open, creat */
	CALL_PATH_SECOND, /* openat, openat2 */
};

/* Numbers of arch/x86/entry/syscalls/syscall_{64,32}.tbl, and for arm64 of
 * include/uapi/asm-generic/unistd.h and arch/arm64/tools/syscall_32.tbl. x32
 * processes use the 64-bit numbers with a bit of their own. */
static __always_inline enum call call_on_x86(struct pt_regs___on_x86 *regs)
{
	__u32 number = regs->orig_ax;

	if (regs->cs == USER32_CS)
		return number == 5 || number == 8     ? CALL_PATH_FIRST :
		       number == 295 || number == 437 ? CALL_PATH_SECOND :
							CALL_OTHER;
	number &= ~0x40000000;
	return number == 257 || number == 437 ? CALL_PATH_SECOND :
	       number == 2 || number == 85    ? CALL_PATH_FIRST :
						CALL_OTHER;
}

static __always_inline enum call call_on_arm64(struct pt_regs___on_arm64 *regs)
{
	__u32 number = regs->syscallno;

	if (regs->pstate & PSR_MODE32_BIT)
		return number == 5 || number == 8     ? CALL_PATH_FIRST :
		       number == 322 || number == 437 ? CALL_PATH_SECOND :
							CALL_OTHER;
	return number == 56 || number == 437 ? CALL_PATH_SECOND : CALL_OTHER;
}

static __always_inline enum call call_of(struct pt_regs *regs)
{
	struct pt_regs___on_x86 *x86 = (void *)regs;
	struct pt_regs___on_arm64 *arm64 = (void *)regs;

	if (bpf_core_field_exists(x86->cs))
		return call_on_x86(x86);
	if (bpf_core_field_exists(arm64->pstate))
		return call_on_arm64(arm64);
	return CALL_OTHER;
}

/* Where the path was given; 32-bit processes give arguments in other registers on x86. */
static __always_inline __u64 path_of(struct pt_regs *regs, enum call call)
{
	struct pt_regs___on_x86 *x86 = (void *)regs;
	struct pt_regs___on_arm64 *arm64 = (void *)regs;

	if (bpf_core_field_exists(x86->cs)) {
		if (x86->cs == USER32_CS)
			return (__u32)(call == CALL_PATH_FIRST ? x86->bx : x86->cx);
		return call == CALL_PATH_FIRST ? x86->di : x86->si;
	}
	if (bpf_core_field_exists(arm64->pstate))
		return call == CALL_PATH_FIRST ? arm64->orig_x0 : arm64->regs[1];
	return 0;
}

static __always_inline void report(__u64 path, const struct failure *result)
{
	struct open_record *record;

	if (!skep_event_allowed(&events_rate, events_per_cpu_s, &events_lost))
		return;
	record = skep_event_reserve(&events, sizeof(*record), &events_lost);
	if (!record)
		return;
	__builtin_memset(record, 0, sizeof(*record));
	record->time = bpf_ktime_get_ns();
	record->result = *result;
	record->result.group.id = bpf_get_current_cgroup_id();
	record->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(record->comm, sizeof(record->comm));
	if (path)
		bpf_probe_read_user_str(record->path, sizeof(record->path), (void *)path);
	skep_event_submit(record);
}

static __always_inline void count(__u64 path, long result)
{
	struct failure failure = {};

	if (by_cgroup)
		failure.group.id = bpf_get_current_cgroup_id();
	count_or_replace(&calls, &calls_order, &failure.group, &missed);
	if (result < 0 && result >= -MAX_ERRNO) {
		failure.error = -result;
		if (failure.error >= ERESTARTSYS && failure.error <= ERESTART_RESTARTBLOCK)
			failure.error = EINTR;
		count_or_replace(&errors, &errors_order, &failure, &missed);
	}
	if (events_enabled && (failure.error || !events_of_failures_only))
		report(path, &failure);
}

/* The result is a long before v7, an int since. */
SEC("?fexit/do_sys_openat2")
SKEP_ALTERNATIVE("open", 1)
int BPF_PROG(on_open, int directory, const char *path, void *how, long result)
{
	count((__u64)path, (int)result);
	return 0;
}

SEC("tp_btf/sys_exit")
SKEP_ALTERNATIVE("open", 2)
int BPF_PROG(on_exit, struct pt_regs *regs, long result)
{
	enum call call = call_of(regs);

	if (call != CALL_OTHER)
		count(path_of(regs, call), result);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
