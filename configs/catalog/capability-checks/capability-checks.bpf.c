/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Checks of a capability, and what came of them. One is counted each time the
 * kernel asks whether a process has a capability in a user namespace, whatever
 * other security modules say afterwards.
 */
#include <skep.bpf.h>
#include "../kernel.h"
#include "../bounded.h"

/* Tell control groups apart. */
const volatile bool by_cgroup = false;

#define KEYS 2048

/* linux/capability.h; numbers are never given twice */
enum capability {
	CAP_CHOWN,
	CAP_DAC_OVERRIDE,
	CAP_DAC_READ_SEARCH,
	CAP_FOWNER,
	CAP_FSETID,
	CAP_KILL,
	CAP_SETGID,
	CAP_SETUID,
	CAP_SETPCAP,
	CAP_LINUX_IMMUTABLE,
	CAP_NET_BIND_SERVICE,
	CAP_NET_BROADCAST,
	CAP_NET_ADMIN,
	CAP_NET_RAW,
	CAP_IPC_LOCK,
	CAP_IPC_OWNER,
	CAP_SYS_MODULE,
	CAP_SYS_RAWIO,
	CAP_SYS_CHROOT,
	CAP_SYS_PTRACE,
	CAP_SYS_PACCT,
	CAP_SYS_ADMIN,
	CAP_SYS_BOOT,
	CAP_SYS_NICE,
	CAP_SYS_RESOURCE,
	CAP_SYS_TIME,
	CAP_SYS_TTY_CONFIG,
	CAP_MKNOD,
	CAP_LEASE,
	CAP_AUDIT_WRITE,
	CAP_AUDIT_CONTROL,
	CAP_SETFCAP,
	CAP_MAC_OVERRIDE,
	CAP_MAC_ADMIN,
	CAP_SYSLOG,
	CAP_WAKE_ALARM,
	CAP_BLOCK_SUSPEND,
	CAP_AUDIT_READ,
	CAP_PERFMON,
	CAP_BPF,
	CAP_CHECKPOINT_RESTORE,
};

enum check_result {
	CHECK_RESULT_GRANTED,
	CHECK_RESULT_DENIED,
};

struct check {
	enum capability capability SKEP_LABEL("capability");
	enum check_result result SKEP_LABEL("result");
	cgroup_id group SKEP_LABEL_AS("cgroup", "cgroup") SKEP_LABEL_AS("unit", "cgroup.unit");
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, KEYS);
	__type(key, struct check);
	__type(value, __u64);
} checks SEC(".maps") SKEP_COUNTER("ebpf.capability.checks") SKEP_UNIT("{check}")
	SKEP_HELP("Checks by the kernel whether a process has a capability.");

SKEP_ORDER_MAP(checks_order, struct check, KEYS);

SKEP_CPU_COUNTER(missed) SKEP_COUNTER("ebpf.capability.checks.missed") SKEP_UNIT("{check}")
	SKEP_HELP("Checks of a capability that were not counted because a map of the program was full.");

static __always_inline void count(int capability, int result)
{
	struct check check = {};

	check.capability = capability;
	check.result = result ? CHECK_RESULT_DENIED : CHECK_RESULT_GRANTED;
	if (by_cgroup)
		check.group = bpf_get_current_cgroup_id();
	count_or_replace(&checks, &checks_order, &check, &missed);
}

/* Since v6.14. It needs no trampoline, which a kernel that is locked down refuses. */
SEC("?tp_btf/cap_capable")
SKEP_ALTERNATIVE("check", 1)
int BPF_PROG(on_check_traced, const void *cred, void *namespace, const void *owner, int capability, int result)
{
	count(capability, result);
	return 0;
}

SEC("fexit/cap_capable")
SKEP_ALTERNATIVE("check", 2)
int BPF_PROG(on_check, const void *cred, void *namespace, int capability, unsigned int options, int result)
{
	count(capability, result);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
