// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Longest-prefix-match tries with keys of every make. */
#include <skep.bpf.h>

const volatile __u32 tgid = 0;
const volatile __s64 wanted_call = -1;

struct v4 {
	__u32 prefixlen;
	__u32 network; /* network order */
};

struct v6 {
	__u32 prefixlen;
	__u8 network[16];
};

struct mixed {
	__u32 prefixlen;
	__u16 zone;
	__u8 rest[3];
} __attribute__((packed));

#define TRIE(name, key_type)                             \
	struct {                                         \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);     \
		__uint(max_entries, 1000);               \
		__uint(map_flags, BPF_F_NO_PREALLOC);    \
		__type(key, key_type);                   \
		__type(value, __u64);                    \
	} name SEC(".maps")

TRIE(counter_v4, struct v4);
TRIE(counter_v6, struct v6);
TRIE(counter_mixed, struct mixed);
TRIE(counter_whole, __u64) SKEP_LABEL("net");

SEC("raw_tp/sys_enter")
int on_syscall(struct bpf_raw_tracepoint_args *ctx)
{
	struct v4 key = {.prefixlen = 32, .network = 0x0302010a};
	__u64 *value;

	if (bpf_get_current_pid_tgid() >> 32 != tgid || (__s64)ctx->args[1] != wanted_call)
		return 0;
	value = bpf_map_lookup_elem(&counter_v4, &key);
	if (value)
		skep_add(value, 1);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
