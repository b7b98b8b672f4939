/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * skep.bpf.h: what the author of an eBPF program includes so that skep exports
 * what the program counts. Nothing here is needed: a map named counter_x,
 * gauge_x, hist_x or print_x is exported as it is. This header gives names,
 * units, help and label decoders to what the map's BTF already says, and the
 * helpers that every such program writes again.
 *
 *	struct key { errno_code error; dev_nr device; };
 *
 *	struct {
 *		__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
 *		__uint(max_entries, 1024);
 *		__type(key, struct key);
 *		__type(value, __u64);
 *	} failures SEC(".maps") SKEP_COUNTER("disk.failures") SKEP_UNIT("{request}")
 *		SKEP_HELP("Requests that failed.");
 *
 * exports disk_failures_total{error="EIO",device="sda"}.
 *
 * Needs clang 14 or newer (declaration tags on typedefs), libbpf's headers, and
 * works with or without a vmlinux.h included before it. Compiles for BPF
 * instruction set v2, which every kernel from 5.10 runs: no atomic operation
 * here returns a value.
 */
#ifndef SKEP_BPF_H
#define SKEP_BPF_H

#ifndef __VMLINUX_H__
#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>
#include <linux/bpf.h>
#endif
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

/* ---- Tags -------------------------------------------------------------------
 * A tag is text in the object's BTF; it costs nothing at run time. All take
 * string literals. The image's metadata document wins over tags, and the
 * agent's configuration over both.
 */
#define SKEP_TAG(text) __attribute__((btf_decl_tag("skep:" text)))

/* What a map is, and its whole dotted OpenTelemetry name; on a member of a
 * struct value: what that member is. Prometheus' name follows from name, unit
 * and kind: "disk.failures" is disk_failures_total. */
#define SKEP_COUNTER(name) SKEP_TAG("kind=counter") SKEP_TAG("name=" name)
#define SKEP_GAUGE(name) SKEP_TAG("kind=gauge") SKEP_TAG("name=" name)
#define SKEP_HISTOGRAM(name) SKEP_TAG("kind=histogram") SKEP_TAG("name=" name)
#define SKEP_EVENT(name) SKEP_TAG("kind=event") SKEP_TAG("name=" name) /* a ring buffer, see below */
#define SKEP_PRIVATE SKEP_TAG("kind=none") /* never exported, whatever its name */

#define SKEP_UNIT(ucum) SKEP_TAG("unit=" ucum)	  /* as exported: "s", "By", "{request}" */
#define SKEP_SCALE(factor) SKEP_TAG("scale=" factor) /* stored number * factor = unit: "1e-9" */
#define SKEP_HELP(sentence) SKEP_TAG("help=" sentence)
#define SKEP_EXPORT SKEP_TAG("enabled=true") /* of a variable: exported as the tags on its struct's members say */
#define SKEP_OFF SKEP_TAG("enabled=false") /* exported only where the configuration asks for it */

/* Records come from a ring buffer, from a perf event array, and from a queue or
 * stack that is tagged SKEP_EVENT (its values are taken away). Each may say its
 * record type by __type(value, struct ...); one that cannot, because its values
 * have a size of their own, by name, if the object's BTF has the type. */
#define SKEP_RECORD(type) SKEP_TAG("record=" type)

/* Of a ring buffer: how grave its records are (trace, debug, info, warn, error)
 * and the map in which skep_event_reserve() counts what did not fit. */
#define SKEP_SEVERITY(level) SKEP_TAG("severity=" level)
#define SKEP_LOST(map) SKEP_TAG("lost=" map)

/* Of a ring buffer: the `const volatile bool` that says whether its records are
 * wanted. skep sets it before load as the configuration enables the event, so
 * that nobody pays for records that nobody reads. */
#define SKEP_SWITCH(global) SKEP_TAG("switch=" global)

/* Of a ring buffer: count its events in a counter of this whole name, beside the
 * events. SKEP_COUNTER or SKEP_HISTOGRAM on the ring itself: no events, its
 * records are only counted, or one member of each observed. On a member of the
 * record: SKEP_VALUE marks the number that the ring's own metric adds or
 * observes; SKEP_COUNTER or SKEP_HISTOGRAM makes a metric of its own;
 * SKEP_SERIES makes it a label of the metrics that stand beside events. */
#define SKEP_COUNT(name) SKEP_TAG("count=" name)
#define SKEP_VALUE SKEP_TAG("value=true")
#define SKEP_SERIES SKEP_TAG("series=true")

/* Of a program: one of several that measure the same, each on kernels of its own.
 * Of a group the first by rank runs that the kernel can; the others are not
 * loaded. They fill the same maps.
 *
 *	SEC("fentry/do_unlinkat") SKEP_ALTERNATIVE("unlink", 1) int BPF_PROG(...)
 *	SEC("kprobe/do_unlinkat") SKEP_ALTERNATIVE("unlink", 2) int BPF_KPROBE(...) */
#define SKEP_ALTERNATIVE(group, rank) SKEP_TAG("alternative=" group ":" #rank)

/* How a slot array, or a slot number in a key, is laid out:
 *	log2_ceil          slot k counts (2^(k-1), 2^k], slot 0 counts 0 and 1
 *	log2_floor         slot k counts [2^k, 2^(k+1)), slot 0 counts 0 too
 *	linear:W or :W:MIN slot k counts [MIN + k*W, MIN + (k+1)*W)
 *	edges:E0,E1,...    slot k counts what is <= Ek and above the edge before
 * The last slot has no upper edge. */
#define SKEP_SLOTS(scheme) SKEP_TAG("slots=" scheme)
#define SKEP_SUM SKEP_TAG("sum=true")	/* the member that sums what the slots count */
#define SKEP_SLOT SKEP_TAG("slot=true") /* the key member that is a slot number */

/* On a member of a key or record, or on a typedef: the label's name, how its
 * number is shown, or that it is no label. SKEP_LABEL_AS may be repeated: one
 * cgroup id gives a cgroup and a unit. */
#define SKEP_LABEL(name) SKEP_TAG("label=" name)
#define SKEP_LABEL_AS(name, decoder) SKEP_TAG("label=" name ":" decoder)
#define SKEP_DECODE(decoder) SKEP_TAG("decode=" decoder)
#define SKEP_DROP SKEP_TAG("drop=true")
/* On a stack id of bpf_get_stackid(): the label, kstack or ustack, and the map of type STACK_TRACE. A user stack is
 * named with the help of a member tgid or pid beside it. */
#define SKEP_STACK(name, decoder, map) SKEP_TAG("label=" name ":" decoder) SKEP_TAG("stack=" map)

/* On a union: which member says what it holds; on its members: for which values
 * of that one they do, numbers or enumerators, "*" for all others. */
#define SKEP_UNION(member) SKEP_TAG("union=" member)
#define SKEP_CASE(values) SKEP_TAG("case=" values)

/* On an array in a value, each of whose elements is a series: the label that
 * tells them apart, "index" if nothing is said, and how it is shown: "cpu",
 * "op:enum(io_operation)". */
#define SKEP_INDEX(label) SKEP_TAG("index=" label)
#define SKEP_TIME SKEP_TAG("time=true") /* of a record: its bpf_ktime_get_ns() */

/* ---- Types whose name says how they are shown --------------------------------
 * A member of such a type needs no decoder tag. */
typedef __u32 ipv4_addr;	/* as in a packet or sock: network order */
typedef __u8 ipv6_addr[16];	/* an address mapped from IPv4 is shown as IPv4 */
typedef __u64 duration;		/* ns; exported in seconds */
typedef __u64 ktime_ns;		/* bpf_ktime_get_ns(): the time of a record */
typedef __u16 net_port;		/* network order */
typedef __u16 host_port;	/* host order */
typedef __u64 cgroup_id;	/* bpf_get_current_cgroup_id(): shown as its path */
typedef __s32 errno_code;	/* 5 and -5 are EIO */
typedef __u32 syscall_nr;	/* of this machine's own table: 0 is read on x86-64 */
typedef __u32 signal_nr;	/* 15 is SIGTERM */
typedef __u32 uid_nr;
typedef __u32 gid_nr;
typedef __u32 dev_nr;		/* kernel dev_t, major << 20 | minor: shown as sda */
typedef __u32 ifindex_nr;	/* shown as eth0 */
typedef __u64 ksym_addr;	/* shown as the kernel symbol that holds it */
typedef __u8 mac_address[6];	/* 52:54:00:12:34:56 */
typedef __u8 dns_name[256];	/* as in a packet: a length before each part */
typedef __u8 ip_protocol;	/* 6 is tcp */
typedef __u16 sock_family;	/* 10 is inet6 */

/* ---- Counting ---------------------------------------------------------------*/

/* Add atomically. Per-CPU values need it too: an interrupt may run the same
 * program between a plain add's load and store, and kernels are beginning to
 * run tracing programs preemptibly. */
#define skep_add(counter, n) ((void)__sync_fetch_and_add((counter), (n)))

/**
 * skep_lookup_or_init - the value under a key, put there first if need be.
 * @map: a hash of any kind. @zero: the value a new key starts with.
 *
 * Two CPUs may race to add one key: the loser finds the winner's value.
 * Returns NULL when the map is full; count that with skep_count_one().
 */
static __always_inline void *skep_lookup_or_init(void *map, const void *key, const void *zero)
{
	void *value = bpf_map_lookup_elem(map, key);

	if (value)
		return value;
	bpf_map_update_elem(map, key, zero, BPF_NOEXIST);
	return bpf_map_lookup_elem(map, key);
}

typedef __u32 skep_index SKEP_DROP; /* an array's key that is no label */

/* A map of one u64 per CPU: SKEP_CPU_COUNTER(name), then tags, then ';'. */
#define SKEP_CPU_COUNTER(name)                            \
	struct {                                          \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);  \
		__uint(max_entries, 1);                   \
		__type(key, skep_index);                  \
		__type(value, __u64);                     \
	} name SEC(".maps")

/* Add one to such a map. */
static __always_inline void skep_count_one(void *cpu_counter)
{
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(cpu_counter, &zero);

	if (count)
		skep_add(count, 1);
}

/* ---- Histograms ---------------------------------------------------------------*/

/* The k with 2^k <= value < 2^(k+1); 0 for 0. At most six branches, no loop. */
static __always_inline __u32 skep_log2_floor(__u64 value)
{
	__u32 power = 0;

	if (value >> 32) { value >>= 32; power += 32; }
	if (value >> 16) { value >>= 16; power += 16; }
	if (value >> 8) { value >>= 8; power += 8; }
	if (value >> 4) { value >>= 4; power += 4; }
	if (value >> 2) { value >>= 2; power += 2; }
	if (value >> 1) power += 1;
	return power;
}

/* The least k with value <= 2^k. 2^k is the inclusive upper edge ("le") of slot k,
 * which is what Prometheus and OpenTelemetry mean by a bucket's bound. */
static __always_inline __u32 skep_log2_ceil(__u64 value)
{
	return value <= 1 ? 0 : skep_log2_floor(value - 1) + 1;
}

/* A histogram of `slot_count` log2_ceil slots, to be used as a map's value or a
 * member of one. The scales turn slot edges, and the sum, into the map's unit. */
#define SKEP_HISTOGRAM_TYPE(name, slot_count, slot_scale, sum_scale)                    \
	struct name {                                                                   \
		__u64 slots[slot_count] SKEP_SLOTS("log2_ceil") SKEP_SCALE(slot_scale); \
		__u64 sum SKEP_SUM SKEP_SCALE(sum_scale);                               \
	}

/* Count `value` in the slot; a slot beyond the last is counted in the last. */
static __always_inline void skep_hist_add(__u64 *slots, __u32 slot_count, __u64 *sum, __u32 slot, __u64 value)
{
	if (slot >= slot_count)
		slot = slot_count - 1;
	skep_add(&slots[slot], 1);
	skep_add(sum, value);
}

/* Observe a value in a SKEP_HISTOGRAM_TYPE. */
#define skep_observe(histogram, value)                                                                            \
	({                                                                                                        \
		__u64 skep_value_ = (value);                                                                      \
		skep_hist_add((histogram)->slots, sizeof((histogram)->slots) / sizeof(__u64), &(histogram)->sum, \
			      skep_log2_ceil(skep_value_), skep_value_);                                          \
	})

/* Durations: measured and summed in ns, bounded by 1 us, 2 us, 4 us ... 33.5 s,
 * exported in seconds. A map with such a value has SKEP_UNIT("s"). */
#define SKEP_LATENCY_SLOTS 27
#define SKEP_LATENCY_MEMBERS                                                                  \
	__u64 slots[SKEP_LATENCY_SLOTS] SKEP_SLOTS("log2_ceil") SKEP_SCALE("1e-6");           \
	__u64 sum SKEP_SUM SKEP_SCALE("1e-9")

struct skep_latency {
	SKEP_LATENCY_MEMBERS;
};

/* Observe ns in anything that has SKEP_LATENCY_MEMBERS. The microseconds are
 * rounded up, so that 1001 ns is above the bound of 1 us, as it must be. A
 * clock that went back counts as 0. */
#define skep_observe_ns(latency, ns)                                                                         \
	({                                                                                                   \
		__u64 skep_ns_ = (ns);                                                                       \
		if ((__s64)skep_ns_ < 0)                                                                     \
			skep_ns_ = 0;                                                                        \
		skep_hist_add((latency)->slots, SKEP_LATENCY_SLOTS, &(latency)->sum,                         \
			      skep_log2_ceil((skep_ns_ + 999) / 1000), skep_ns_);                            \
	})

/* ---- Events -------------------------------------------------------------------
 *
 *	SKEP_LOST_MAP(exits_lost);
 *	struct {
 *		__uint(type, BPF_MAP_TYPE_RINGBUF);
 *		__uint(max_entries, 256 * 1024);
 *		__type(value, struct exit_record);
 *	} exits SEC(".maps") SKEP_EVENT("process.exit") SKEP_LOST("exits_lost");
 *
 *	struct exit_record *record = skep_event_reserve(&exits, sizeof(*record), &exits_lost);
 *	if (!record)
 *		return 0;
 *	... fill every byte ...
 *	skep_event_submit(record);
 *
 * The kernel counts a failed reserve nowhere; the lost map does, and the agent
 * exports it. (The value type of a ring buffer is for readers of the BTF: the
 * kernel wants a value size of 0, which skep sets before it loads.)
 */
#define SKEP_LOST_MAP(name) SKEP_CPU_COUNTER(name) SKEP_PRIVATE

static __always_inline void *skep_event_reserve(void *ring, __u64 size, void *lost)
{
	void *record = bpf_ringbuf_reserve(ring, size, 0);

	if (!record)
		skep_count_one(lost);
	return record;
}

static __always_inline void skep_event_submit(void *record)
{
	bpf_ringbuf_submit(record, 0);
}

/* A stop in the kernel, for events that a flood makes worthless: at most
 * `per_s` a second on each CPU, 0 for no limit. The limit is best a
 * `const volatile __u32`, so that the agent's configuration can set it:
 *
 *	const volatile __u32 events_per_cpu_s = 1000;
 *	SKEP_RATE_MAP(exits_rate);
 *	if (!skep_event_allowed(&exits_rate, events_per_cpu_s, &exits_lost))
 *		return 0;
 *
 * What it stops is counted in the lost map too. Nested runs on one CPU may let
 * one more through; they never stop the counting.
 */
struct skep_rate {
	__u64 since_ns;
	__u64 used;
};

#define SKEP_RATE_MAP(name)                               \
	struct {                                          \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);  \
		__uint(max_entries, 1);                   \
		__type(key, __u32);                       \
		__type(value, struct skep_rate);          \
	} name SEC(".maps") SKEP_PRIVATE

static __always_inline bool skep_event_allowed(void *rate_map, __u32 per_s, void *lost)
{
	__u32 zero = 0;
	struct skep_rate *rate;
	__u64 now;

	if (!per_s)
		return true;
	rate = bpf_map_lookup_elem(rate_map, &zero);
	if (!rate)
		return true;
	now = bpf_ktime_get_ns();
	if (now - rate->since_ns >= 1000000000ull) {
		rate->since_ns = now;
		rate->used = 0;
	}
	if (rate->used >= per_s) {
		skep_count_one(lost);
		return false;
	}
	rate->used++;
	return true;
}

#endif
