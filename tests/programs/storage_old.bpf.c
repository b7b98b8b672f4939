// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Cgroup storage as it was first: made for each cgroup that the program is attached to. */
#include <skep.bpf.h>

const volatile __u32 tgid = 0;
const volatile __s64 wanted_call = -1;

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, struct bpf_cgroup_storage_key);
	__type(value, __u64);
} counter_sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE);
	__type(key, struct bpf_cgroup_storage_key);
	__type(value, __u64);
} counter_on_cpus SEC(".maps");

SEC("cgroup/sock_create")
int on_socket(struct bpf_sock *ctx)
{
	__u64 *value = bpf_get_local_storage(&counter_sockets, 0);

	skep_add(value, 1);
	value = bpf_get_local_storage(&counter_on_cpus, 0);
	skep_add(value, 1);
	return 1 + (tgid && wanted_call == -2);
}

char LICENSE[] SEC("license") = "GPL";
