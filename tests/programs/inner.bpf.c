// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Maps that hold maps. */
#include <skep.bpf.h>

const volatile __u32 tgid = 0;
const volatile __s64 wanted_call = -1;

struct tenant {
	__u32 zone;
	char name[8];
};

struct operation {
	__u32 code;
	__u32 pad;
};

struct by_operation {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct operation);
	__type(value, __u64);
} spare SEC(".maps") = {}; /* else clang leaves the struct of its key out */

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 256);
	__type(key, struct tenant);
	__array(values, struct by_operation);
} requests SEC(".maps") SKEP_COUNTER("test.requests");

struct per_cpu {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, __u64);
} first SEC(".maps"), second SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 8);
	__type(key, __u32);
	__array(values, struct per_cpu);
} gauge_levels SEC(".maps") SKEP_LABEL("level") = {.values = {[1] = &first, [5] = &second}};

struct trie {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct operation);
	__type(value, __u64);
} nets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 8);
	__type(key, __u64);
	__array(values, struct trie);
} counter_nets SEC(".maps");

SEC("raw_tp/sys_enter")
int on_syscall(struct bpf_raw_tracepoint_args *ctx)
{
	struct tenant tenant = {.zone = 7, .name = "db"};
	struct operation operation = {.code = 3};
	__u32 level = 5, two = 2;
	__u64 zero = 0, *value;
	void *inner;

	if (bpf_get_current_pid_tgid() >> 32 != tgid || (__s64)ctx->args[1] != wanted_call)
		return 0;
	inner = bpf_map_lookup_elem(&requests, &tenant);
	if (inner) {
		value = skep_lookup_or_init(inner, &operation, &zero);
		if (value)
			skep_add(value, 1);
	}
	inner = bpf_map_lookup_elem(&gauge_levels, &level);
	if (inner) {
		value = bpf_map_lookup_elem(inner, &two);
		if (value)
			skep_add(value, 1);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
