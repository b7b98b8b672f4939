/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Processes that the kernel chose to end because memory ran out: of the host, or
 * of a control group that has a limit.
 *
 * Counted when the choice falls, not when the process is gone: one that hangs
 * in the kernel was chosen all the same. A process that was ending anyway, and
 * is only let at the reserves to end sooner, counts too.
 *
 * The events name processes by id and command name: personal data.
 */
#include <skep.bpf.h>
#include "../kernel.h"
#include "../bounded.h"

#ifndef KERNEL_GIVES_VICTIM
#define KERNEL_GIVES_VICTIM bpf_core_type_exists(btf_trace_mark_victim___with_task)
#endif

#define SIGKILL 9
#define SEND_SIG_PRIV 1 /* linux/sched/signal.h: from the kernel */
#define GROUPS 4096

/* The victim's group. The limit that was hit may be that of a group above it. */
struct group {
	cgroup_id id SKEP_LABEL_AS("cgroup", "cgroup") SKEP_LABEL_AS("unit", "cgroup.unit");
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, GROUPS);
	__type(key, struct group);
	__type(value, __u64);
} kills SEC(".maps") SKEP_COUNTER("ebpf.oom.kills") SKEP_UNIT("{process}")
	SKEP_HELP("Processes that the kernel chose to end because memory ran out, by their control group.");

SKEP_ORDER_MAP(kills_order, struct group, GROUPS);

SKEP_CPU_COUNTER(missed) SKEP_COUNTER("ebpf.oom.kills.missed") SKEP_UNIT("{process}")
	SKEP_HELP("Processes ended for want of memory that were not counted because a map of the program was full.");

struct victim {
	__u32 pid SKEP_LABEL("process.pid"); /* of the thread the kernel picked, of its own namespace 0 */
	char comm[16] SKEP_LABEL("process.executable.name");
	struct group group;
};

struct kill_record {
	ktime_ns time;
	struct victim victim;
};

SKEP_LOST_MAP(events_lost);
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
	__type(value, struct kill_record);
} events SEC(".maps") SKEP_EVENT("ebpf.oom.kill") SKEP_SEVERITY("error") SKEP_LOST("events_lost")
	SKEP_HELP("The kernel chose a process to end because memory ran out.");

/* Only where the kernel gives no more than a thread id: who was last sent a
 * SIGKILL by the kernel, by the thread that caused it. The choice follows at once. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct victim);
} signalled SEC(".maps") SKEP_PRIVATE;

static __always_inline void describe(struct victim *victim, struct task_struct *task)
{
	victim->pid = task->pid;
	victim->group.id = group_of(task);
	bpf_core_read(victim->comm, sizeof(victim->comm), &task->comm);
}

SEC("tp_btf/signal_generate")
int BPF_PROG(on_signal, int signal, void *info, struct task_struct *task)
{
	struct victim victim = {};
	__u64 thread;

	if (KERNEL_GIVES_VICTIM || signal != SIGKILL || (__u64)info != SEND_SIG_PRIV)
		return 0;
	thread = bpf_get_current_pid_tgid();
	describe(&victim, task);
	bpf_map_update_elem(&signalled, &thread, &victim, BPF_ANY);
	return 0;
}

SEC("tp_btf/mark_victim")
int on_victim(__u64 *ctx)
{
	struct victim victim = {}, *noted;
	struct kill_record *record;
	struct task_struct *task;
	__u64 thread;

	if (bpf_core_type_exists(btf_trace_mark_victim___with_task)) {
		task = (struct task_struct *)ctx[0];
		describe(&victim, task);
	} else {
		victim.pid = ctx[0];
	}
	if (!KERNEL_GIVES_VICTIM) {
		thread = bpf_get_current_pid_tgid();
		noted = bpf_map_lookup_elem(&signalled, &thread);
		victim.group.id = 0;
		if (noted && noted->pid == victim.pid)
			victim = *noted;
		bpf_map_delete_elem(&signalled, &thread);
	}
	count_or_replace(&kills, &kills_order, &victim.group, &missed);
	record = skep_event_reserve(&events, sizeof(*record), &events_lost);
	if (!record)
		return 0;
	record->time = bpf_ktime_get_ns();
	record->victim = victim;
	skep_event_submit(record);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
