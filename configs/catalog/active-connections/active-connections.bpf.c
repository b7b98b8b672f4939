/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * TCP connections that are established now.
 *
 * Those that were established before the image began to run are not known and
 * never counted, so that no count is ever wrong by their going; a restart of
 * the agent alone changes nothing. A connection that either end has closed is
 * not established any more.
 */
#include <skep.bpf.h>
#include "../tcp.h"

/* Tell control groups apart: of who made the socket, and of a taken connection who listens. */
const volatile bool by_cgroup = false;

/* Ports from here on are counted together as port 0: see tcp-connects. */
const volatile __u16 ports_below = 32768;

#define KEYS 8192

struct connection {
	enum direction direction SKEP_LABEL("direction");
	enum tcp_family family SKEP_LABEL("family");
	host_port port SKEP_LABEL("server.port");
	cgroup_id group SKEP_LABEL_AS("cgroup", "cgroup") SKEP_LABEL_AS("unit", "cgroup.unit");
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, KEYS);
	__type(key, struct connection);
	__type(value, __u64);
} active SEC(".maps") SKEP_GAUGE("ebpf.tcp.connections.active") SKEP_UNIT("{connection}")
	SKEP_HELP("TCP connections that are established now, of those made since the image runs.");

SKEP_CPU_COUNTER(missed) SKEP_COUNTER("ebpf.tcp.connections.missed") SKEP_UNIT("{connection}")
	SKEP_HELP("TCP connections that were never counted as active because a map of the program was full.");

/* Keys of `active` in the order they came. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, KEYS);
	__uint(value_size, sizeof(struct connection));
} active_order SEC(".maps") SKEP_PRIVATE;

/* Address of each socket that is counted to what it is counted as: what is
 * taken away again is what was added, whatever else changed meanwhile. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct connection);
} counted SEC(".maps") SKEP_PRIVATE;

/* A full map gives the room of keys that count nothing now, the oldest first. */
static __always_inline __u64 *active_of(const struct connection *connection)
{
	__u64 *count = bpf_map_lookup_elem(&active, connection), zero = 0;
	struct connection oldest;
	int error, tries;

	if (count)
		return count;
	error = bpf_map_update_elem(&active, connection, &zero, BPF_NOEXIST);
	for (tries = 0; tries < 4; tries++) {
		if (error != -7 /* E2BIG */ || bpf_map_pop_elem(&active_order, &oldest))
			break;
		count = bpf_map_lookup_elem(&active, &oldest);
		if (count && *count) {
			bpf_map_push_elem(&active_order, &oldest, 0);
			continue;
		}
		bpf_map_delete_elem(&active, &oldest);
		error = bpf_map_update_elem(&active, connection, &zero, BPF_NOEXIST);
	}
	if (!error)
		bpf_map_push_elem(&active_order, connection, 0);
	return bpf_map_lookup_elem(&active, connection);
}

static __always_inline void begin(const struct sock *sk, enum direction direction, __u16 port)
{
	struct connection connection = {}; /* what lies between the members too */
	__u64 id = (__u64)sk, *count;

	connection.direction = direction;
	connection.family = family_of(sk);
	connection.port = port < ports_below ? port : 0;
	if (by_cgroup)
		connection.group = group_of_socket(sk);
	count = active_of(&connection);
	if (!count || bpf_map_update_elem(&counted, &id, &connection, BPF_ANY)) {
		skep_count_one(&missed);
		return;
	}
	skep_add(count, 1);
}

static __always_inline void end(const struct sock *sk)
{
	__u64 id = (__u64)sk, *count;
	struct connection *connection = bpf_map_lookup_elem(&counted, &id);

	if (!connection)
		return; /* established before we were there, or missed */
	count = bpf_map_lookup_elem(&active, connection);
	if (count)
		skep_add(count, -1);
	bpf_map_delete_elem(&counted, &id);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_change, const struct sock *sk, int old_state, int new_state)
{
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (new_state == TCP_ESTABLISHED && old_state == TCP_SYN_SENT)
		begin(sk, DIRECTION_OUTBOUND, remote_port_of(sk));
	else if (new_state == TCP_ESTABLISHED && old_state == TCP_SYN_RECV)
		begin(sk, DIRECTION_INBOUND, sk->__sk_common.skc_num);
	else if (old_state == TCP_ESTABLISHED)
		end(sk);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
