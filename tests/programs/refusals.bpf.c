// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What can be wrong with a program or its place, one of each beside one that is right (see also refused.bpf.c). */
#include "seen.h"

extern void bpf_skep_no_such_kfunc(void) __ksym;

SEEN(0, "raw_tp/sys_enter", right, 0)
SEEN(1, "kprobe/skep_no_such_function", no_function, 0)
SEEN(2, "kprobe/notify_die", untraceable_function, 0)
SEEN(3, "tracepoint/skep/nothing", no_tracepoint, 0)
SEEN(4, "uprobe//skep/no/such/file:main", no_binary, 0)
SEEN(5, "uprobe/libskep_none.so:main", no_library, 0)
SEEN(6, "xdp/skepnone0", no_interface, 2)
SEEN(7, "perf_event/type=4,config=0xffffff,frequency=10", no_event, 0)
SEEN(8, "skep_kind/x", no_kind, 0)
SEEN(9, "sk_msg", no_map_of_sockets, 1)

SEC("raw_tp/sys_enter")
int too_many(void *ctx)
{
	__u64 sum = 0;

	/* The verifier walks every turn, and each tells another state. */
	for (int i = 0; i < 1000000; i++)
		sum += bpf_get_prandom_u32() & 1 ? i : sum >> 1;
	count((__u32)sum & 15);
	return 0;
}

SEC("raw_tp/sys_enter")
int no_kfunc(void *ctx)
{
	bpf_skep_no_such_kfunc();
	return 0;
}
