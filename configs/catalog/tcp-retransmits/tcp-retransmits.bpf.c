/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * TCP segments that were sent again because no answer came: loss on the way, a
 * far end that is overloaded, or one that is not there.
 *
 * One is counted per buffer the kernel sends again; with segmentation offload
 * that can be several segments on the wire, which TcpRetransSegs counts. What
 * could not be sent for lack of something here is not counted.
 *
 * The event, off by default, has both addresses: personal data.
 */
#include <skep.bpf.h>
#include "../tcp.h"
#include "../bounded.h"

/* Tell control groups apart, of who made the socket. Events always say the group. */
const volatile bool by_cgroup = false;

/* Whether the event ebpf.tcp.retransmit is made. */
const volatile bool events_enabled = false;

/* Events a second on each CPU; 0: no limit. */
const volatile __u32 events_per_cpu_s = 1000;

#define KEYS 4096

enum segment {
	SEGMENT_SYN,	 /* nobody answers where we connect to */
	SEGMENT_SYN_ACK, /* nobody completes a connection that was begun to us */
	SEGMENT_DATA,	 /* of a connection that was established, its FIN included */
};

/* A key, and part of a record. */
struct what {
	enum segment segment SKEP_LABEL("segment");
	enum tcp_family family SKEP_LABEL("family");
	cgroup_id group SKEP_LABEL_AS("cgroup", "cgroup") SKEP_LABEL_AS("unit", "cgroup.unit");
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KEYS);
	__type(key, struct what);
	__type(value, __u64);
} retransmits SEC(".maps") SKEP_COUNTER("ebpf.tcp.retransmits") SKEP_UNIT("{segment}")
	SKEP_HELP("TCP segments that were sent again.");

SKEP_ORDER_MAP(retransmits_order, struct what, KEYS);

SKEP_CPU_COUNTER(missed) SKEP_COUNTER("ebpf.tcp.retransmits.missed") SKEP_UNIT("{segment}")
	SKEP_HELP("TCP segments sent again that were not counted because a map of the program was full.");

struct retransmit_record {
	ktime_ns time;
	struct what what;
	struct tcp_ends ends;
};

SKEP_LOST_MAP(events_lost);
SKEP_RATE_MAP(events_rate);
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
	__type(value, struct retransmit_record);
} events SEC(".maps") SKEP_EVENT("ebpf.tcp.retransmit") SKEP_OFF SKEP_LOST("events_lost")
	SKEP_SWITCH("events_enabled") SKEP_HELP("A TCP segment was sent again.");

static __always_inline void count(enum segment segment, const struct sock *sk, const struct sock_common *ends)
{
	struct what what = {};
	struct retransmit_record *record;

	what.segment = segment;
	what.family = family_of(sk);
	if (by_cgroup)
		what.group = group_of_socket(sk);
	count_or_replace(&retransmits, &retransmits_order, &what, &missed);
	if (!events_enabled || !skep_event_allowed(&events_rate, events_per_cpu_s, &events_lost))
		return;
	record = skep_event_reserve(&events, sizeof(*record), &events_lost);
	if (!record)
		return;
	__builtin_memset(record, 0, sizeof(*record));
	what.group = group_of_socket(sk);
	record->time = bpf_ktime_get_ns();
	record->what = what;
	tell_ends(&record->ends, ends);
	skep_event_submit(record);
}

SEC("tp_btf/tcp_retransmit_skb")
int on_retransmit(__u64 *ctx)
{
	const struct sock *sk = (const struct sock *)ctx[0];

	if (bpf_core_type_exists(btf_trace_tcp_retransmit_skb___with_error) && (int)ctx[2])
		return 0;
	count(sk->__sk_common.skc_state == TCP_SYN_SENT ? SEGMENT_SYN : SEGMENT_DATA, sk, &sk->__sk_common);
	return 0;
}

SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(on_retransmit_synack, const struct sock *sk, const struct request_sock *request)
{
	count(SEGMENT_SYN_ACK, sk, &request->__req_common);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
