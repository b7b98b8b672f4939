// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Hooks on packets, under the names that libbpf knows and under those that others have given them. */
#include "seen.h"
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

SEEN(0, "tcx/ingress", on_tcx_ingress, TC_ACT_UNSPEC)
SEEN(1, "tcx/egress", on_tcx_egress, TC_ACT_UNSPEC)
SEEN(2, "tc/ingress", on_tc_ingress, TC_ACT_UNSPEC)
SEEN(3, "tc", on_tc, TC_ACT_UNSPEC)
SEEN(4, "classifier/egress/all", on_classifier, TC_ACT_UNSPEC)
SEEN(5, "action", on_action, TC_ACT_UNSPEC)
SEEN(6, "socket", on_socket, 0)
SEEN(7, "socket1", on_socket1, 64)
SEEN(8, "netfilter", on_netfilter, 1)
SEEN(9, "netfilter/ipv4/local_out", on_ipv4_output, 1)
SEEN(10, "xdp_pass", on_xdp_pass, 2)
SEEN(11, "xdp.frags/lo", on_xdp_frags, 2)
SEEN(12, "xdp/devmap", on_devmap, 2)
SEEN(13, "sk_lookup", on_sk_lookup, 1)
SEEN(14, "flow_dissector", on_flow_dissector, 0)
SEEN(15, "sk_msg", on_sk_msg, 1)
SEEN(16, "lwt_out", on_lwt_out, 0)
SEEN(17, "netkit/primary", on_netkit, -1)
