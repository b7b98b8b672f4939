/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A cell for each program of an object, and which process to look at (0 for any). */
#ifndef SEEN_H
#define SEEN_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define SEEN_CELLS 32

const volatile __u32 tgid = 0;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SEEN_CELLS);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

static __always_inline void count(__u32 cell)
{
	__u64 *number = bpf_map_lookup_elem(&seen, &cell);

	if (number)
		__sync_fetch_and_add(number, 1);
}

static __always_inline void count_ours(__u32 cell)
{
	if (!tgid || bpf_get_current_pid_tgid() >> 32 == tgid)
		count(cell);
}

/* SEEN(cell, section, name) { statements } return value; */
#define SEEN(cell, section, name, verdict)         \
	SEC(section) int name(void *ctx)           \
	{                                          \
		count_ours(cell);                  \
		return verdict;                    \
	}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#endif
