/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * What the programs on TCP have in common: states, address families, and both
 * ends of a connection.
 */
#ifndef SKEP_CATALOG_TCP_H
#define SKEP_CATALOG_TCP_H

#include <skep.bpf.h>
#include "kernel.h"

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

/* The socket's own family: one of IPv6 that talks to an IPv4 address is ipv6. */
static __always_inline enum tcp_family family_of(const struct sock *sk)
{
	int family = sk->__sk_common.skc_family;

	return family == AF_INET || family == AF_INET6 ? family : TCP_FAMILY_OTHER;
}

static __always_inline __u16 remote_port_of(const struct sock *sk)
{
	return __builtin_bswap16(sk->__sk_common.skc_dport);
}

/* Which end asked for the connection. */
enum direction {
	DIRECTION_OUTBOUND,
	DIRECTION_INBOUND,
};

/* Addresses are personal data where they stand for people: only events have them. */
struct tcp_ends {
	net_port remote_port SKEP_LABEL("network.peer.port");
	host_port local_port SKEP_LABEL("network.local.port");
	ipv6_addr local_address SKEP_LABEL_AS("network.local.address", "ip");
	ipv6_addr remote_address SKEP_LABEL_AS("network.peer.address", "ip");
};

static __always_inline void tell_ends(struct tcp_ends *ends, const struct sock_common *sk)
{
	__builtin_memset(ends, 0, sizeof(*ends));
	ends->local_port = sk->skc_num;
	ends->remote_port = sk->skc_dport;
	if (sk->skc_family == AF_INET6 && bpf_core_field_exists(sk->skc_v6_daddr)) {
		bpf_core_read(&ends->local_address, sizeof(ends->local_address), &sk->skc_v6_rcv_saddr);
		bpf_core_read(&ends->remote_address, sizeof(ends->remote_address), &sk->skc_v6_daddr);
	} else {
		/* ::ffff:a.b.c.d */
		__u32 local = sk->skc_rcv_saddr, remote = sk->skc_daddr;

		ends->local_address[10] = ends->local_address[11] = 0xff;
		ends->remote_address[10] = ends->remote_address[11] = 0xff;
		__builtin_memcpy(&ends->local_address[12], &local, sizeof(local));
		__builtin_memcpy(&ends->remote_address[12], &remote, sizeof(remote));
	}
}

#endif
