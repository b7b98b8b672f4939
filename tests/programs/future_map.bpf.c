// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A map of a type that no kernel has yet, and a program that does without it. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, 9999);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} future SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} now SEC(".maps");

SEC("raw_tp/sys_enter")
int fine(void *ctx)
{
	__u32 key = 0;

	bpf_map_lookup_elem(&now, &key);
	return 0;
}

SEC("raw_tp/sys_enter")
int on_syscall(void *ctx)
{
	__u32 key = 0;

	bpf_map_lookup_elem(&future, &key);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
