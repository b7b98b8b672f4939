/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * One of everything a plan can say; compiled after the prelude of
 * tests/support/clang.py, and printed by `skep plan` as plan.txt.
 */
typedef u32 ipv4_addr;
typedef u8 ipv6_addr[16];
typedef u64 duration;
typedef u64 ktime_ns;
typedef u16 net_port;
typedef u16 host_port;
typedef u64 cgroup_id;
typedef s32 errno_code;
typedef u32 syscall_nr;
typedef u32 signal_nr;
typedef u32 uid_nr;
typedef u32 dev_nr;
typedef u32 ifindex_nr;
typedef u64 ksym_addr;
typedef u32 minute_of_day __attribute__((btf_decl_tag("skep:label=minute")));

/* Tags: a histogram of slots in the value beside a counter and a gauge, per CPU. */
enum io_operation { IO_OPERATION_READ, IO_OPERATION_WRITE, IO_OPERATION_OTHER, __IO_OPERATION_MAX };
struct io_key {
	dev_nr dev TAG("label=device");
	enum io_operation operation;
	u32 pad;
};
struct io {
	u64 slots[9] TAG("slots=log2_ceil") TAG("scale=1e-6");
	u64 sum TAG("scale=1e-9");
	u64 errors TAG("kind=counter") TAG("name=ebpf.io.errors") TAG("unit={request}") TAG("help=Requests that failed.");
	s32 in_flight TAG("kind=gauge");
	u32 unused TAG("drop=true");
};
MAP(io, PERCPU_HASH, 512, struct io_key, struct io)
	TAG("kind=histogram") TAG("name=ebpf.io.duration") TAG("unit=s") TAG("help=Time that requests took.");

/* Two histograms, each with its sum, in structs of their own. */
struct sizes { u32 slots[4]; u64 sum; };
struct directions { struct sizes in; struct sizes out; };
MAP(hist_packets, LRU_HASH, 1000, ifindex_nr, struct directions) TAG("slots=edges:64,512,1500") TAG("unit=By");

/* Slots in the key. */
struct depth_key { u8 queue; u16 bucket; };
MAP(hist_depth, HASH, 100, struct depth_key, u64) TAG("slots=linear:10:0:5");
MAP(hist_cpu_depth, ARRAY, 6, u32, u64) TAG("slots=log2_floor");

/* Name prefixes, typedef names and every kind of label. */
struct everything {
	ipv4_addr saddr;
	ipv6_addr daddr;
	net_port dport;
	host_port sport;
	cgroup_id group TAG("label=cgroup:cgroup") TAG("label=unit:cgroup.unit") TAG("label=pod:cgroup.pod");
	errno_code error;
	syscall_nr call;
	signal_nr signal;
	uid_nr user;
	ksym_addr function;
	duration waited;
	minute_of_day when;
	char comm[16];
	u8 hash[8];
	bool last;
	double weight;
	s8 level;
	u32 low:3, high:5;
	unsigned __int128 big;
	void *pointer TAG("drop=true");
	u32 table[3] TAG("decode=hex");
	struct { u16 a; u16 b; } nested;
	union {
		u32 v4 TAG("decode=ipv4");
		u64 both;
	} target;
	union { u8 v6[16]; u32 v4; } peer TAG("label=peer.address:ip");
	u16 family TAG("decode=family");
	union {
		u32 v4 TAG("label=via:ipv4") TAG("case=2");
		u8 v6[16] TAG("label=via:ipv6") TAG("case=10");
	} via TAG("union=family");
	u16 ports[2];
	u8 mode TAG("decode=map(0=read,1=write)");
};
MAP(counter_everything, LRU_HASH, 1000, struct everything, u64);

/* A value of several numbers, of which not all are numbers. */
struct state { u64 packets; duration busy; float load; bool up; char name[8]; void *owner; };
MAP(gauge_state, PERCPU_ARRAY, 1, u32, struct state);
MAP(counter_by_index, ARRAY, 8, u32, u64);

/* An array in a value: each element is a series. */
struct by_mode { u64 total; u64 calls[2] TAG("index=mode:enum(io_operation)"); };
MAP(counter_mode, HASH, 8, u32, struct by_mode);

/* Events. */
struct exit {
	ktime_ns at;
	u32 pid TAG("drop=true");
	enum io_operation operation;
	char comm[16];
	s32 code TAG("label=exit.code");
};
MAP(lost, PERCPU_ARRAY, 1, u32, u64) TAG("kind=none");
RING(print_exits, struct exit);
RING(quiet, struct exit) TAG("kind=event") TAG("name=ebpf.quiet.exit") TAG("enabled=false") TAG("severity=warn")
	TAG("lost=lost") TAG("help=A process ended.");

/* Private: state of the program, and what has no rows to read. */
MAP(start, HASH, 10240, u64, u64);
MAP(counter_prefixes, LPM_TRIE, 10, u64, u64);
struct { __uint(type, STACK_TRACE); __uint(max_entries, 8); __uint(key_size, 4); __uint(value_size, 80); }
	stacks SEC(".maps");

const volatile bool by_cgroup;
const volatile u32 limit = 10;
const volatile char filter[16];
const volatile enum io_operation only;

SEC("?raw_tp/sys_enter") int on_call(void *context) { return limit + filter[0] + only; }
SEC("xdp") int on_packet(void *context) { return 2; }
