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

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u64);
} walks SEC(".maps");

SEC("iter/task")
int on_task(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	static const char format[] = "%d\n";
	__u64 walk = ctx->meta->session_id, one = 1, *count, *last;
	__u64 argument;
	__u32 key;
	bool begun;

	if (!task)
		return 0;
	key = task->tgid;
	argument = task->pid;
	/* Threads come by number: that of a process's first may be above those of its others. */
	last = bpf_map_lookup_elem(&walks, &key);
	count = bpf_map_lookup_elem(&gauge_threads, &key);
	begun = last && *last == walk;
	if (!begun)
		bpf_map_update_elem(&walks, &key, &walk, BPF_ANY);
	if (count && begun)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&gauge_threads, &key, &one, BPF_ANY);
	bpf_seq_printf(ctx->meta->seq, format, sizeof(format), &argument, sizeof(argument));
	return 0;
}
