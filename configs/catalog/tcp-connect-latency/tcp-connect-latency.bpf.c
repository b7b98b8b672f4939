/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * How long TCP connections that this host begins take to be established: from
 * the first SYN to the answer, so the round trip, what the far end needs to
 * answer, and a second, three, seven ... for each SYN that was lost.
 *
 * Connections that fail are not in it; the image tcp-connects counts them.
 */
#include <skep.bpf.h>
#include "../tcp.h"
#include "../bounded.h"

/* Tell control groups apart, and the ports connections go to. */
const volatile bool by_cgroup = false;
const volatile bool by_port = false;

/* Ports from here on are counted together as port 0: see tcp-connects. */
const volatile __u16 ports_below = 32768;

#define KEYS 512

struct connection {
	enum tcp_family family SKEP_LABEL("family");
	host_port port SKEP_LABEL("server.port");
	cgroup_id group SKEP_LABEL_AS("cgroup", "cgroup") SKEP_LABEL_AS("unit", "cgroup.unit");
};

static const struct skep_latency no_connections;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, KEYS);
	__type(key, struct connection);
	__type(value, struct skep_latency);
} durations SEC(".maps") SKEP_HISTOGRAM("ebpf.tcp.connect.duration") SKEP_UNIT("s")
	SKEP_HELP("Time from the first SYN of a TCP connection that this host begins until it is established.");

SKEP_ORDER_MAP(durations_order, struct connection, KEYS);

SKEP_CPU_COUNTER(missed) SKEP_COUNTER("ebpf.tcp.connect.duration.missed") SKEP_UNIT("{connection}")
	SKEP_HELP("TCP connections whose time to be established was not measured because a map of the program was full.");

/* Address of a socket that has sent a SYN to the time it did. Sockets are
 * reused in place, so one whose end was never seen is overwritten, not lost. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u64);
} connecting SEC(".maps") SKEP_PRIVATE;

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_change, const struct sock *sk, int old_state, int new_state)
{
	struct connection connection = {}, oldest;
	struct skep_latency *latency;
	__u64 id = (__u64)sk, *begin, took;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (new_state == TCP_SYN_SENT) {
		took = bpf_ktime_get_ns();
		if (bpf_map_update_elem(&connecting, &id, &took, BPF_ANY))
			skep_count_one(&missed);
		return 0;
	}
	if (old_state != TCP_SYN_SENT)
		return 0;
	begin = bpf_map_lookup_elem(&connecting, &id);
	if (!begin)
		return 0; /* its SYN was sent before we were there */
	took = bpf_ktime_get_ns() - *begin;
	bpf_map_delete_elem(&connecting, &id);
	if (new_state != TCP_ESTABLISHED)
		return 0;
	connection.family = family_of(sk);
	if (by_port && remote_port_of(sk) < ports_below)
		connection.port = remote_port_of(sk);
	if (by_cgroup)
		connection.group = group_of_socket(sk);
	latency = lookup_or_replace(&durations, &durations_order, &connection, &no_connections, &oldest);
	if (latency)
		skep_observe_ns(latency, took);
	else
		skep_count_one(&missed);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
