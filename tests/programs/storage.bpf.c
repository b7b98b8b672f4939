// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Local storage of tasks and of cgroups. */
#include <skep.bpf.h>

const volatile __u32 tgid = 0;
const volatile __s64 wanted_call = -1;

struct cgroup;
struct css_set {
	struct cgroup *dfl_cgrp;
} __attribute__((preserve_access_index));
struct task_struct {
	struct css_set *cgroups;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} counter_by_task SEC(".maps");

#ifdef BY_CGROUP
struct {
	__uint(type, 32); /* BPF_MAP_TYPE_CGRP_STORAGE, younger than some headers */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} counter_by_cgroup SEC(".maps");

static void *(*const cgrp_storage_get)(void *map, struct cgroup *cgroup, void *value, __u64 flags) = (void *)210;
#endif

SEC("tp_btf/sys_enter")
int on_syscall(__u64 *ctx)
{
	struct task_struct *task;
	__u64 *value;

	if (bpf_get_current_pid_tgid() >> 32 != tgid || (__s64)ctx[1] != wanted_call)
		return 0;
	task = (struct task_struct *)bpf_get_current_task_btf();
	value = bpf_task_storage_get(&counter_by_task, (void *)task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (value)
		skep_add(value, 1);
#ifdef BY_CGROUP
	value = cgrp_storage_get(&counter_by_cgroup, task->cgroups->dfl_cgrp, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (value)
		skep_add(value, 1);
#endif
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
