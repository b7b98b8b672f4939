// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Hooks of a cgroup. */
#include "seen.h"

SEEN(0, "cgroup_skb/ingress", on_ingress, 1)
SEEN(1, "cgroup_skb/egress", on_egress, 1)
SEEN(2, "cgroup/sock_create", on_sock_create, 1)
SEEN(3, "cgroup/sock_release", on_sock_release, 1)
SEEN(4, "cgroup/connect4", on_connect4, 1)
SEEN(5, "cgroup/bind4", on_bind4, 1)
SEEN(6, "cgroup/sendmsg4", on_sendmsg4, 1)
SEEN(7, "cgroup/post_bind4", on_post_bind4, 1)
SEEN(8, "cgroup/sysctl", on_sysctl, 1)
SEEN(9, "cgroup/dev", on_device, 1)
SEEN(10, "cgroup/getsockopt", on_getsockopt, 1)
SEEN(11, "cgroup/setsockopt", on_setsockopt, 1)

SEC("sockops")
int on_sockops(struct bpf_sock_ops *ctx)
{
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		count(12);
	return 1;
}
