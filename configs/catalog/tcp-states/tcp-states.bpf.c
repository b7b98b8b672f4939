/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * TCP connections changing state.
 *
 * The kernel reports what a full socket does: a passive connection begins as
 * listen to syn_recv, and TIME-WAIT, which is no full socket, is a close.
 *
 * The event, off by default, has both addresses: personal data.
 */
#include <skep.bpf.h>
#include "../tcp.h"

/* Whether the event ebpf.tcp.state_change is made: only where it is enabled, as
 * a busy server has many and is not slowed for what nobody reads. */
const volatile bool events_enabled = false;

/* Events a second on each CPU; 0: no limit. */
const volatile __u32 events_per_cpu_s = 10000;

/* A key, and part of a record: the labels are named so that both show them alike. */
struct change {
	enum tcp_state old_state SKEP_LABEL("old_state");
	enum tcp_state new_state SKEP_LABEL("new_state");
	enum tcp_family family SKEP_LABEL("family");
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 512); /* 13 x 13 x 3 possible */
	__type(key, struct change);
	__type(value, __u64);
} changes SEC(".maps") SKEP_COUNTER("ebpf.tcp.state_changes") SKEP_UNIT("{change}")
	SKEP_HELP("State changes of TCP sockets.");

SKEP_CPU_COUNTER(missed) SKEP_COUNTER("ebpf.tcp.state_changes.missed") SKEP_UNIT("{change}")
	SKEP_HELP("State changes of TCP sockets that were not counted because a map of the program was full.");

struct change_record {
	ktime_ns time;
	struct change change;
	struct tcp_ends ends;
};

SKEP_LOST_MAP(events_lost);
SKEP_RATE_MAP(events_rate);
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1024 * 1024);
	__type(value, struct change_record);
} events SEC(".maps") SKEP_EVENT("ebpf.tcp.state_change") SKEP_OFF SKEP_LOST("events_lost")
	SKEP_SWITCH("events_enabled") SKEP_HELP("A TCP socket changed its state.");

static __always_inline void report(const struct change *change, struct sock *sk)
{
	struct change_record *record;

	if (!skep_event_allowed(&events_rate, events_per_cpu_s, &events_lost))
		return;
	record = skep_event_reserve(&events, sizeof(*record), &events_lost);
	if (!record)
		return;
	__builtin_memset(record, 0, sizeof(*record));
	record->time = bpf_ktime_get_ns();
	record->change = *change;
	tell_ends(&record->ends, &sk->__sk_common);
	skep_event_submit(record);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_change, struct sock *sk, int old_state, int new_state)
{
	struct change change = {};
	__u64 *count, zero = 0;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	change.old_state = old_state;
	change.new_state = new_state;
	change.family = family_of(sk);
	count = skep_lookup_or_init(&changes, &change, &zero);
	if (count)
		skep_add(count, 1);
	else
		skep_count_one(&missed);
	if (events_enabled)
		report(&change, sk);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
