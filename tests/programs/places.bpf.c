// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Hooks whose place the operator names: binaries, interfaces, clocks, cgroups. */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ptrace.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/usdt.bpf.h>

enum place { PLACE_UPROBE, PLACE_URETPROBE, PLACE_PERF, PLACE_XDP, PLACE_CGROUP, PLACE_USDT, PLACE_PATTERN, PLACE_PATTERN_RETURN, PLACES };

const volatile __u16 port = 0;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PLACES);
	__type(key, __u32);
	__type(value, __u64);
} visits SEC(".maps");

static void count(__u32 place)
{
	__u64 *cell = bpf_map_lookup_elem(&visits, &place);

	if (cell)
		__sync_fetch_and_add(cell, 1);
}

SEC("uprobe")
int on_call(void *ctx)
{
	count(PLACE_UPROBE);
	return 0;
}

SEC("uretprobe")
int on_return(void *ctx)
{
	count(PLACE_URETPROBE);
	return 0;
}

SEC("uprobe.multi")
int on_pattern(void *ctx)
{
	count(PLACE_PATTERN);
	return 0;
}

SEC("uretprobe.multi")
int on_pattern_return(void *ctx)
{
	count(PLACE_PATTERN_RETURN);
	return 0;
}

SEC("usdt")
int BPF_USDT(on_probe)
{
	count(PLACE_USDT);
	return 0;
}

SEC("perf_event/type=software,config=cpu-clock,frequency=1000")
int on_sample(void *ctx)
{
	count(PLACE_PERF);
	return 0;
}

static int is_ours(void *data, void *end)
{
	struct ethhdr *ethernet = data;
	struct iphdr *ip = data + sizeof(*ethernet);
	struct udphdr *udp = (void *)ip + sizeof(*ip);

	return (void *)(udp + 1) <= end && ethernet->h_proto == bpf_htons(ETH_P_IP) && ip->protocol == 17 &&
	       udp->dest == bpf_htons(port);
}

SEC("xdp")
int on_packet(struct xdp_md *ctx)
{
	if (is_ours((void *)(long)ctx->data, (void *)(long)ctx->data_end))
		count(PLACE_XDP);
	return XDP_PASS;
}

SEC("xdp/lo")
int on_lo_packet(struct xdp_md *ctx)
{
	return on_packet(ctx);
}

SEC("cgroup_skb/egress")
int on_egress(void *ctx)
{
	count(PLACE_CGROUP);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
