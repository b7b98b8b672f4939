/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Counts what the shipped programs export, by other means: untyped raw
 * tracepoints, copied reads, one shared map with atomic addition instead of
 * per-CPU ones. Both must give the same numbers.
 */
#include <skep.bpf.h>
#include "../../configs/catalog/kernel.h"

const volatile __u64 only_group = 0; /* of on_switch */
const volatile __u32 only_tgid = 0;  /* of on_enter and on_return */

#define TABLE(name, key_type)                        \
	struct {                                     \
		__uint(type, BPF_MAP_TYPE_HASH);     \
		__uint(max_entries, 65536);          \
		__type(key, key_type);               \
		__type(value, __u64);                \
	} name SEC(".maps")

static __always_inline void count(void *map, const void *key)
{
	__u64 zero = 0, *value = skep_lookup_or_init(map, key, &zero);

	if (value)
		__sync_fetch_and_add(value, 1);
}

TABLE(switches, __u64); /* by control group of who comes */

SEC("raw_tp/sched_switch")
int on_switch(__u64 *ctx)
{
	struct task_struct *next = (void *)ctx[2];
	__u64 group = BPF_CORE_READ(next, cgroups, dfl_cgrp, kn, id);

	if (BPF_CORE_READ(next, pid) && (!only_group || group == only_group))
		count(&switches, &group);
	return 0;
}

struct change {
	__u32 old_state, new_state, family;
};
TABLE(changes, struct change);

SEC("raw_tp/inet_sock_set_state")
int on_change(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct change change = { (__u32)ctx[1], (__u32)ctx[2], BPF_CORE_READ(sk, __sk_common.skc_family) };

	if (BPF_CORE_READ(sk, sk_protocol) == 6)
		count(&changes, &change);
	return 0;
}

struct disk_requests {
	__u32 device, operation, failed;
};
TABLE(requests, struct disk_requests); /* issued here and completed whole, or failed */
TABLE(issued, __u64);

SEC("raw_tp/block_rq_issue")
int on_issue(__u64 *ctx)
{
	__u64 request = ctx[0], yes = 1;

	bpf_map_update_elem(&issued, &request, &yes, BPF_ANY);
	return 0;
}

SEC("raw_tp/block_rq_complete")
int on_complete(__u64 *ctx)
{
	struct request *request = (void *)ctx[0];
	__u64 id = ctx[0];
	struct request___before_5_17 *old = (void *)request;
	struct gendisk *disk;
	struct disk_requests key = {};

	if (bpf_core_field_exists(old->rq_disk))
		disk = BPF_CORE_READ(old, rq_disk);
	else
		disk = BPF_CORE_READ(request, q, disk);
	if (!disk)
		return 0;
	key.device = BPF_CORE_READ(disk, major) << 20 | BPF_CORE_READ(disk, first_minor);
	key.operation = BPF_CORE_READ(request, cmd_flags) & 0xff;
	if ((__u8)ctx[1]) {
		key.failed = 1;
		count(&requests, &key);
		key.failed = 0;
	}
	if ((__u32)ctx[2] >= BPF_CORE_READ(request, __data_len) && !bpf_map_delete_elem(&issued, &id))
		count(&requests, &key);
	return 0;
}

TABLE(calls, __u64);
TABLE(errors, __u64); /* number << 32 | errno */

SEC("raw_tp/sys_enter")
int on_enter(__u64 *ctx)
{
	__u64 number = ctx[1];

	if (bpf_get_current_pid_tgid() >> 32 == only_tgid)
		count(&calls, &number);
	return 0;
}

TABLE(current_call, __u64); /* thread to the call it is in */

SEC("raw_tp/sys_enter")
int on_begin(__u64 *ctx)
{
	__u64 thread = bpf_get_current_pid_tgid(), number = ctx[1];

	if (thread >> 32 == only_tgid)
		bpf_map_update_elem(&current_call, &thread, &number, BPF_ANY);
	return 0;
}

SEC("raw_tp/sys_exit")
int on_return(__u64 *ctx)
{
	__u64 thread = bpf_get_current_pid_tgid(), *number, key;
	long result = ctx[1];

	number = bpf_map_lookup_elem(&current_call, &thread);
	if (!number || result >= 0 || result < -4095)
		return 0;
	key = *number << 32 | (__u32)-result;
	count(&errors, &key);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
