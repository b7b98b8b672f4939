/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * TCP connections changing state.
 *
 * The kernel reports what a full socket does: a passive connection begins as
 * listen to syn_recv, and TIME-WAIT, which is no full socket, is a close.
 */
#include <skep.bpf.h>
#include "../kernel.h"

/* Whether the event ebpf.tcp.state_change is made: only where it is enabled, as
 * a busy server has many and is not slowed for what nobody reads. */
const volatile bool events_enabled = false;

/* Events a second on each CPU; 0: no limit. */
const volatile __u32 events_per_cpu_s = 10000;

#define IPPROTO_TCP 6
#define AF_INET 2
#define AF_INET6 10

/* net/tcp_states.h; part of the kernel's interface since 4.16 (tcp_diag, BPF) */
enum tcp_state {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RECV = 3,
	TCP_FIN_WAIT1 = 4,
	TCP_FIN_WAIT2 = 5,
	TCP_TIME_WAIT = 6,
	TCP_CLOSE = 7,
	TCP_CLOSE_WAIT = 8,
	TCP_LAST_ACK = 9,
	TCP_LISTEN = 10,
	TCP_CLOSING = 11,
	TCP_NEW_SYN_RECV = 12,
	TCP_BOUND_INACTIVE = 13,
};

enum tcp_family {
	TCP_FAMILY_OTHER = 0,
	TCP_FAMILY_IPV4 = AF_INET,
	TCP_FAMILY_IPV6 = AF_INET6,
};

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
	net_port remote_port SKEP_LABEL("network.peer.port");
	host_port local_port SKEP_LABEL("network.local.port");
	ipv6_addr local_address SKEP_LABEL("network.local.address");
	ipv6_addr remote_address SKEP_LABEL("network.peer.address");
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
	record->local_port = sk->__sk_common.skc_num;
	record->remote_port = sk->__sk_common.skc_dport;
	if (change->family == TCP_FAMILY_IPV6 && bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		bpf_core_read(&record->local_address, sizeof(record->local_address), &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(&record->remote_address, sizeof(record->remote_address), &sk->__sk_common.skc_v6_daddr);
	} else {
		/* ::ffff:a.b.c.d */
		__u32 local = sk->__sk_common.skc_rcv_saddr, remote = sk->__sk_common.skc_daddr;

		record->local_address[10] = record->local_address[11] = 0xff;
		record->remote_address[10] = record->remote_address[11] = 0xff;
		__builtin_memcpy(&record->local_address[12], &local, sizeof(local));
		__builtin_memcpy(&record->remote_address[12], &remote, sizeof(remote));
	}
	skep_event_submit(record);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_change, struct sock *sk, int old_state, int new_state)
{
	struct change change = {};
	__u64 *count, zero = 0;
	int family;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	family = sk->__sk_common.skc_family;
	change.old_state = old_state;
	change.new_state = new_state;
	change.family = family == AF_INET || family == AF_INET6 ? family : TCP_FAMILY_OTHER;
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
