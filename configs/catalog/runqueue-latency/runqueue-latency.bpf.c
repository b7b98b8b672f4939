/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * How long runnable tasks waited for a CPU.
 *
 * A wait begins when a task becomes runnable (woken, new, or preempted while it
 * still had work) and ends when it is switched in. `waiting` holds the tasks
 * that wait now, so it is as small as the run queues are. Idle tasks do not
 * wait and are not counted. Waits measured and waits missed are together all
 * switches to a task.
 */
#include <skep.bpf.h>
#include "../kernel.h"

/* One histogram per control group, instead of one for the host. */
const volatile bool by_cgroup = false;

struct group {
	/* 0, of no group, gives no labels. */
	cgroup_id id SKEP_LABEL_AS("cgroup", "cgroup") SKEP_LABEL_AS("unit", "cgroup.unit");
};

static const struct skep_latency no_waits;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct group);
	__type(value, struct skep_latency);
} waits SEC(".maps") SKEP_HISTOGRAM("ebpf.runqueue.latency") SKEP_UNIT("s")
	SKEP_HELP("Time that runnable tasks waited for a CPU.");

SKEP_CPU_COUNTER(missed) SKEP_COUNTER("ebpf.runqueue.latency.missed") SKEP_UNIT("{wait}")
	SKEP_HELP("Waits for a CPU that were not measured: their begin was not seen, or a map was full.");

/* Thread id to the time it became runnable. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u64);
} waiting SEC(".maps") SKEP_PRIVATE;

/* Groups that are gone, oldest first. Their counts stay until room is needed,
 * so that the last ones are still read; then they go before any living group. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 1024);
	__uint(value_size, sizeof(struct group));
} removed_groups SEC(".maps") SKEP_PRIVATE;

static __always_inline void begin_wait(struct task_struct *task, __u64 now, __u64 flags)
{
	__u32 pid = task->pid;

	/* When this fails, it waits already, and that wait goes on; or there is no
	 * room, and the wait is missed when it ends. */
	if (pid)
		bpf_map_update_elem(&waiting, &pid, &now, flags);
}

static __always_inline struct skep_latency *waits_of(const struct group *group)
{
	struct skep_latency *latency = skep_lookup_or_init(&waits, group, &no_waits);
	struct group gone;

	if (latency || bpf_map_pop_elem(&removed_groups, &gone))
		return latency;
	bpf_map_delete_elem(&waits, &gone);
	return skep_lookup_or_init(&waits, group, &no_waits);
}

static __always_inline void end_wait(struct task_struct *task, __u64 now)
{
	struct skep_latency *latency;
	struct group group = {};
	__u32 pid = task->pid;
	__u64 *begin, waited;

	if (!pid)
		return;
	begin = bpf_map_lookup_elem(&waiting, &pid);
	if (!begin) {
		/* It became runnable before we were there, or where the kernel does not
		 * run us, or `waiting` was full. */
		skep_count_one(&missed);
		return;
	}
	waited = now - *begin;
	bpf_map_delete_elem(&waiting, &pid);
	if (by_cgroup)
		group.id = group_of(task);
	latency = waits_of(&group);
	if (latency)
		skep_observe_ns(latency, waited);
	else
		skep_count_one(&missed);
}

static __always_inline bool is_runnable(struct task_struct *task)
{
	struct task_struct___before_5_14 *old = (void *)task;

	if (bpf_core_field_exists(old->state))
		return old->state == 0;
	return task->__state == 0;
}

/* Attached first: a wait seen to begin must be seen to end. */
SEC("tp_btf/sched_switch")
int BPF_PROG(on_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	__u64 now = bpf_ktime_get_ns();

	if (preempt || is_runnable(prev))
		begin_wait(prev, now, BPF_ANY);
	end_wait(next, now);
	return 0;
}

/* A wake-up also reaches a task that runs (it had only prepared to sleep): no
 * wait begins. If it was preempted then, it waits already: BPF_NOEXIST. */
SEC("tp_btf/sched_wakeup")
int BPF_PROG(on_wakeup, struct task_struct *task)
{
	if (bpf_core_field_exists(task->on_cpu) && task->on_cpu)
		return 0;
	begin_wait(task, bpf_ktime_get_ns(), BPF_NOEXIST);
	return 0;
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(on_wakeup_new, struct task_struct *task)
{
	begin_wait(task, bpf_ktime_get_ns(), BPF_NOEXIST);
	return 0;
}

SEC("tp_btf/cgroup_rmdir")
int BPF_PROG(on_cgroup_rmdir, struct cgroup *cgroup)
{
	struct group group = {}, oldest;

	if (!by_cgroup)
		return 0;
	group.id = cgroup->kn->id;
	if (!bpf_map_lookup_elem(&waits, &group))
		return 0;
	if (!bpf_map_push_elem(&removed_groups, &group, 0))
		return 0;
	if (!bpf_map_pop_elem(&removed_groups, &oldest))
		bpf_map_delete_elem(&waits, &oldest);
	bpf_map_push_elem(&removed_groups, &group, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
