/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Operations of the NFS client, of every version: how long they took and what
 * they came to. Each is one call to the server; the kernel sends one again by
 * itself where an answer is missing, and that is in the time of the one.
 *
 * NFSv4 puts several operations in one call, which has the name of the main one.
 */
#include <skep.bpf.h>
#include "../kernel.h"

#define NFS_PROGRAM 100003 /* RFC 5531, 18.3 */
#define MAX_STATUS 65535   /* NFSv4's own are from 10001 */

struct operation {
	char name[24] SKEP_LABEL("operation"); /* as the protocol writes it: READ, GETATTR */
	__u32 version SKEP_LABEL("version");
};

struct failure {
	struct operation operation;
	errno_code error SKEP_LABEL("errno");
};

static const struct skep_latency no_operations;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 256); /* more than all versions have */
	__type(key, struct operation);
	__type(value, struct skep_latency);
} durations SEC(".maps") SKEP_HISTOGRAM("ebpf.nfs.operation.duration") SKEP_UNIT("s")
	SKEP_HELP("Time from when an operation of an NFS mount was begun until the server's answer was taken.");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct failure);
	__type(value, __u64);
} errors SEC(".maps") SKEP_COUNTER("ebpf.nfs.operation.errors") SKEP_UNIT("{operation}")
	SKEP_HELP("Operations of NFS mounts that failed, by what the server or the network said.");

SKEP_CPU_COUNTER(missed) SKEP_COUNTER("ebpf.nfs.operation.missed") SKEP_UNIT("{operation}")
	SKEP_HELP("Operations of NFS mounts that were not counted because a map of the program was full.");

SEC("tp_btf/rpc_stats_latency")
int BPF_PROG(on_operation, const struct rpc_task *task, __s64 queued, __s64 round_trip, __s64 took)
{
	struct rpc_clnt *client;
	struct skep_latency *latency;
	struct failure failure = {};
	__u64 *count, zero = 0;
	int status;

	if (!task) /* never, but newer kernels take no module's word for it */
		return 0;
	client = task->tk_client;
	status = task->tk_status;
	if (client->cl_prog != NFS_PROGRAM)
		return 0;
	failure.operation.version = client->cl_vers;
	bpf_probe_read_kernel_str(failure.operation.name, sizeof(failure.operation.name),
				  task->tk_msg.rpc_proc->p_name);
	latency = skep_lookup_or_init(&durations, &failure.operation, &no_operations);
	if (latency)
		skep_observe_ns(latency, took);
	else
		skep_count_one(&missed);
	if (status >= 0 || status < -MAX_STATUS)
		return 0;
	failure.error = -status;
	count = skep_lookup_or_init(&errors, &failure, &zero);
	if (count)
		skep_add(count, 1);
	else
		skep_count_one(&missed);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
