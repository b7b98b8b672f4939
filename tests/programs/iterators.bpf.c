// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Iterators: they run when read, and leave their findings in a map. */
#include "seen.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
} __attribute__((preserve_access_index));

struct task_struct {
	int pid;
	int tgid;
} __attribute__((preserve_access_index));

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u64);
} gauge_threads SEC(".maps");

SEC("iter/task")
int on_task(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	static const char format[] = "%d\n";
	__u64 one = 1, *count, zero = 0;
	__u64 argument;
	__u32 key;

	if (!task)
		return 0;
	key = task->tgid;
	argument = task->pid;
	/* A new walk begins: the first thread of a process comes before its others. */
	if (task->pid == task->tgid)
		bpf_map_update_elem(&gauge_threads, &key, &zero, BPF_ANY);
	count = bpf_map_lookup_elem(&gauge_threads, &key);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&gauge_threads, &key, &one, BPF_ANY);
	bpf_seq_printf(ctx->meta->seq, format, sizeof(format), &argument, sizeof(argument));
	return 0;
}
