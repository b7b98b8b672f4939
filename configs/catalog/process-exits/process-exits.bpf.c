/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Processes that ended, and how. A process ends once, with its last thread; its
 * status is what wait() gives its parent.
 */
#include <skep.bpf.h>
#include "../kernel.h"
#include "../bounded.h"

/* Count exits per control group too. Events always say the group. */
const volatile bool by_cgroup = false;

#define KERNEL_TELLS_LAST_THREAD bpf_core_type_exists(btf_trace_sched_process_exit___with_group_dead)

/* Events a second on each CPU, so that a fork loop does not flood; 0: no limit. */
const volatile __u32 events_per_cpu_s = 1000;

#define SIGNAL_GROUP_EXIT 0x4 /* linux/sched/signal.h */
#define STATUS_DUMPED 0x80
#define STATUS_SIGNAL 0x7f

enum exit_reason {
	EXIT_REASON_EXITED, /* returned a code */
	EXIT_REASON_KILLED, /* by a signal */
	EXIT_REASON_DUMPED, /* by a signal, leaving a core */
};

/* A key, and part of a record: the labels are named so that both show them alike. */
struct end {
	enum exit_reason reason SKEP_LABEL("reason");
	__s16 code SKEP_LABEL_AS("code", "natural"); /* -1, of none, where a signal ended it */
	__u16 signal SKEP_LABEL_AS("signal", "signal"); /* 0, of none, gives no label */
	cgroup_id group SKEP_LABEL_AS("cgroup", "cgroup") SKEP_LABEL_AS("unit", "cgroup.unit");
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct end);
	__type(value, __u64);
} exits SEC(".maps") SKEP_COUNTER("ebpf.process.exits") SKEP_UNIT("{process}")
	SKEP_HELP("Processes that ended, by the status their parent gets.");

SKEP_CPU_COUNTER(missed) SKEP_COUNTER("ebpf.process.exits.missed") SKEP_UNIT("{process}")
	SKEP_HELP("Processes whose end was not counted because a map of the program was full.");

/* Codes by groups are unbounded over the years. */
SKEP_ORDER_MAP(exits_order, struct end, 8192);

struct exit_record {
	ktime_ns time;
	struct end end;
};

SKEP_LOST_MAP(events_lost);
SKEP_RATE_MAP(events_rate);
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
	__type(value, struct exit_record);
} events SEC(".maps") SKEP_EVENT("ebpf.process.exit") SKEP_SEVERITY("warn") SKEP_LOST("events_lost")
	SKEP_HELP("A process returned a code other than 0, or a signal ended it.");

/* A process for all time: process ids come back, with another start. */
struct process {
	__u64 start_ns;
	__u64 id;
};

/* Processes whose end is counted, of those that had several threads; only where
 * the kernel does not tell the last. Read while the threads of one end together,
 * and then never again: the kernel drops the least recent. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct process);
	__type(value, __u8);
} counted SEC(".maps") SKEP_PRIVATE;

/* Two threads that exit together may both find no other alive. The first one to
 * note the process counts it, but none before the leader's status is there: a
 * leader that still has its memory comes here later. */
static __always_inline bool is_last_thread(struct task_struct *task)
{
	struct task_struct *leader = task->group_leader;
	struct process process = {leader->start_time, task->tgid};
	__u8 yes = 1;

	if (task->signal->live.counter != 0 || leader->mm)
		return false;
	if (task->signal->nr_threads == 1) /* the others are released, and one of them may have counted */
		return !bpf_map_lookup_elem(&counted, &process);
	return bpf_map_update_elem(&counted, &process, &yes, BPF_NOEXIST) == 0 ||
	       !bpf_map_lookup_elem(&counted, &process);
}

SEC("tp_btf/sched_process_exit")
int on_exit(__u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	struct exit_record *record;
	struct end end = {};
	bool is_last;
	int status;

	if (KERNEL_TELLS_LAST_THREAD)
		is_last = (__u8)ctx[1];
	else
		is_last = is_last_thread(task);
	if (!is_last)
		return 0;

	status = task->signal->flags & SIGNAL_GROUP_EXIT ? task->signal->group_exit_code :
							   task->group_leader->exit_code;
	end.signal = status & STATUS_SIGNAL;
	end.code = end.signal ? -1 : status >> 8 & 0xff;
	end.reason = !end.signal ? EXIT_REASON_EXITED : status & STATUS_DUMPED ? EXIT_REASON_DUMPED : EXIT_REASON_KILLED;
	if (by_cgroup)
		end.group = group_of(task);
	count_or_replace(&exits, &exits_order, &end, &missed);

	if (!end.code && !end.signal)
		return 0;
	if (!skep_event_allowed(&events_rate, events_per_cpu_s, &events_lost))
		return 0;
	record = skep_event_reserve(&events, sizeof(*record), &events_lost);
	if (!record)
		return 0;
	end.group = group_of(task);
	record->time = bpf_ktime_get_ns();
	record->end = end;
	skep_event_submit(record);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
