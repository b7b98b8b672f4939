/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * The few kernel types that the shipped programs read, each with only the
 * members they read. Every access is relocated by member name when the object
 * is loaded (preserve_access_index), so the order and the size of what is left
 * out do not matter, and one object fits every kernel from 5.10.
 *
 * A type with a suffix behind three underscores stands for the kernel's type
 * without it, as it was in some versions.
 */
#ifndef SKEP_CATALOG_KERNEL_H
#define SKEP_CATALOG_KERNEL_H

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

/* ---- Control groups ---- */

struct kernfs_node {
	__u64 id; /* what bpf_get_current_cgroup_id() gives */
};

struct cgroup {
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp; /* of the cgroup2 hierarchy */
};

/* ---- Tasks ---- */

struct signal_struct {
	atomic_t live; /* threads that have not begun to exit */
	int nr_threads; /* threads that are not yet released */
	int group_exit_code;
	unsigned int flags;
};

struct task_struct {
	unsigned int __state; /* 0: runnable */
	/* Absent without SMP; signed and of four bytes before v7, then of one: only an unsigned access is resized. */
	unsigned int on_cpu;
	int pid;
	int tgid;
	int exit_code;
	__u64 start_time; /* of the process, in ns of the monotonic clock */
	char comm[16];
	void *mm; /* NULL once its memory is given up, which follows its exit_code */
	struct task_struct *group_leader;
	struct signal_struct *signal;
	struct css_set *cgroups;
};

/* Before kernel commit 2f064a59a11f ("sched: Change task_struct::state") in v5.14. */
struct task_struct___before_5_14 {
	long state;
};

/* ---- Block devices ---- */

struct gendisk {
	int major;
	int first_minor;
};

struct request_queue {
	struct gendisk *disk;
};

struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	unsigned int __data_len;
};

/* Before kernel commit f3fa33acca9f ("block: remove the ->rq_disk field in struct request") in v5.17. */
struct request___before_5_17 {
	struct gendisk *rq_disk;
};

/* ---- Sockets ---- */

struct in6_addr {
	__u8 s6_addr[16];
};

struct sock_common {
	__u32 skc_daddr;
	__u32 skc_rcv_saddr;
	__u16 skc_dport; /* network order */
	__u16 skc_num;	 /* host order */
	unsigned short skc_family;
	volatile unsigned char skc_state;
	struct in6_addr skc_v6_daddr; /* absent without IPv6 */
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock_cgroup_data {
	struct cgroup *cgroup; /* of the cgroup2 hierarchy; absent before v5.15 and 5.10.77 */
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
	int sk_err; /* why it was closed, positive; 0: nobody said */
	struct sock_cgroup_data sk_cgrp_data;
};

struct sk_buff;

struct request_sock {
	struct sock_common __req_common;
};

/* ---- Remote procedure calls: types of the module sunrpc ---- */

struct rpc_procinfo {
	const char *p_name;
};

struct rpc_message {
	const struct rpc_procinfo *rpc_proc;
};

struct rpc_clnt {
	__u32 cl_prog;
	__u32 cl_vers;
};

struct rpc_task {
	int tk_status; /* 0 or a negative errno */
	struct rpc_message tk_msg;
	struct rpc_clnt *tk_client;
};

/* ---- Registers at a system call ---- */

struct pt_regs;

struct pt_regs___on_x86 {
	unsigned long cs;
	unsigned long orig_ax;
	unsigned long di; /* arguments, which a call leaves as they were */
	unsigned long si;
	unsigned long bx; /* those of 32-bit code */
	unsigned long cx;
};

struct pt_regs___on_arm64 {
	__u64 regs[31];
	__u64 orig_x0;
	__u64 pstate;
	__s32 syscallno;
};

#pragma clang attribute pop

/* The cgroup2 group of a task, as a path is looked up by; 0 on a kernel without any. */
static __always_inline __u64 group_of(struct task_struct *task)
{
	return bpf_core_field_exists(task->cgroups) ? task->cgroups->dfl_cgrp->kn->id : 0;
}

/* The group of who made a socket; 0 where the kernel does not say. */
static __always_inline __u64 group_of_socket(const struct sock *sk)
{
	return bpf_core_field_exists(sk->sk_cgrp_data.cgroup) ? sk->sk_cgrp_data.cgroup->kn->id : 0;
}

/* ---- How many arguments a tracepoint has here ----
 * The kernel has a typedef of each tracepoint's handler in its BTF, and a type
 * "exists" only if its arguments agree: so a kernel is asked what it has, not
 * how old it says it is. Stable kernels took such changes in the middle of a
 * series (block_rq_issue in 5.10.137).
 */

/* Before kernel commit a54895fa057c ("block: remove the request_queue to argument
 * request based tracepoints") in v5.11. */
typedef void (*btf_trace_block_rq_issue___with_queue)(void *, struct request_queue *, struct request *);

/* Since kernel commit 72ba14deb40a ("mm: update mark_victim tracepoints fields") in v6.9,
 * which stable kernels took too. Before, the tracepoint had the victim's thread id alone. */
typedef void (*btf_trace_mark_victim___with_task)(void *, struct task_struct *, unsigned int);

/* Since v6.16 of failed retransmissions too, with the error. */
typedef void (*btf_trace_tcp_retransmit_skb___with_error)(void *, const struct sock *, const struct sk_buff *, int);

/* Since v6.16: whether this thread was the last of its process. */
typedef void (*btf_trace_sched_process_exit___with_group_dead)(void *, struct task_struct *, bool);

#endif
