/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * TCP connections that this host began, those of them that failed and why, and
 * those that others began to it.
 *
 * A connection is begun when its SYN is about to be sent: a connect() that finds
 * no route or no free port of its own before that is not seen. One is taken when
 * its handshake is done, whether or not the program ever accepts it.
 */
#include <skep.bpf.h>
#include "../tcp.h"
#include "../bounded.h"

/* Tell control groups apart: of who made the socket, and of a taken connection who listens. */
const volatile bool by_cgroup = false;

/* Ports from here on are given to clients for a while (net.ipv4.ip_local_port_range).
 * Servers there are counted together as port 0. */
const volatile __u16 ports_below = 32768;

#define KEYS 8192

struct connection {
	enum tcp_family family SKEP_LABEL("family");
	host_port port SKEP_LABEL("server.port");
	cgroup_id group SKEP_LABEL_AS("cgroup", "cgroup") SKEP_LABEL_AS("unit", "cgroup.unit");
};

struct failure {
	struct connection connection;
	errno_code error SKEP_LABEL("errno"); /* 0, of none, gives no label: it was given up, or never sent */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KEYS);
	__type(key, struct connection);
	__type(value, __u64);
} attempts SEC(".maps") SKEP_COUNTER("ebpf.tcp.connect.attempts") SKEP_UNIT("{connection}")
	SKEP_HELP("TCP connections that this host began, by the port they go to.");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KEYS);
	__type(key, struct failure);
	__type(value, __u64);
} errors SEC(".maps") SKEP_COUNTER("ebpf.tcp.connect.errors") SKEP_UNIT("{connection}")
	SKEP_HELP("TCP connections that this host began and that were never established; without errno if it gave up itself.");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KEYS);
	__type(key, struct connection);
	__type(value, __u64);
} accepts SEC(".maps") SKEP_COUNTER("ebpf.tcp.accepts") SKEP_UNIT("{connection}")
	SKEP_HELP("TCP connections that others began to this host and that were established, by its port.");

SKEP_CPU_COUNTER(missed) SKEP_COUNTER("ebpf.tcp.connects.missed") SKEP_UNIT("{connection}")
	SKEP_HELP("TCP connections that were not counted because a map of the program was full.");

SKEP_ORDER_MAP(attempts_order, struct connection, KEYS);
SKEP_ORDER_MAP(errors_order, struct failure, KEYS);
SKEP_ORDER_MAP(accepts_order, struct connection, KEYS);

static __always_inline void describe(struct connection *connection, const struct sock *sk, __u16 port)
{
	connection->family = family_of(sk);
	connection->port = port < ports_below ? port : 0;
	if (by_cgroup)
		connection->group = group_of_socket(sk);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_change, const struct sock *sk, int old_state, int new_state)
{
	struct failure failure = {};

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (new_state == TCP_SYN_SENT) {
		describe(&failure.connection, sk, remote_port_of(sk));
		count_or_replace(&attempts, &attempts_order, &failure.connection, &missed);
	} else if (old_state == TCP_SYN_SENT && new_state == TCP_CLOSE) {
		describe(&failure.connection, sk, remote_port_of(sk));
		failure.error = sk->sk_err;
		count_or_replace(&errors, &errors_order, &failure, &missed);
	} else if (old_state == TCP_SYN_RECV && new_state == TCP_ESTABLISHED) {
		describe(&failure.connection, sk, sk->__sk_common.skc_num);
		count_or_replace(&accepts, &accepts_order, &failure.connection, &missed);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
