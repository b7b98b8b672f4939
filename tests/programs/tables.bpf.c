// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Maps of every type that has rows, to be filled from user space. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct key {
	__u32 id;
	__u32 kind;
};

struct wide {
	__u64 count;
	__u32 extra; /* 12 bytes and 4 of padding in a per-CPU slot */
} __attribute__((packed));

#define TABLE(name, map_type, key_type, value_type, entries) \
	struct {                                             \
		__uint(type, BPF_MAP_TYPE_##map_type);       \
		__uint(max_entries, entries);                \
		__type(key, key_type);                       \
		__type(value, value_type);                   \
	} name SEC(".maps")

TABLE(hash, HASH, struct key, __u64, 1000);
TABLE(lru_hash, LRU_HASH, struct key, __u64, 1000);
TABLE(percpu_hash, PERCPU_HASH, struct key, struct wide, 1000);
TABLE(lru_percpu_hash, LRU_PERCPU_HASH, struct key, struct wide, 1000);
TABLE(array, ARRAY, __u32, __u64, 300);
TABLE(percpu_array, PERCPU_ARRAY, __u32, struct wide, 300);
TABLE(large, HASH, struct key, __u64, 100000);
TABLE(single, HASH, struct key, __u64, 1);

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key); /* `id` is the prefix length */
	__type(value, __u64);
} lpm_trie SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 64);
	__uint(key_size, 4);
	__uint(value_size, 8 * 16);
} stack_trace SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 8);
	__type(value, __u64);
} queue SEC(".maps");

const volatile __u32 tgid = 0;

SEC("raw_tp/sys_enter")
int on_syscall(struct bpf_raw_tracepoint_args *ctx)
{
	if (bpf_get_current_pid_tgid() >> 32 == tgid)
		bpf_get_stackid(ctx, &stack_trace, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
