/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * @NAME@: an event for each program that is started.
 *
 * A ring buffer whose name starts with print_, or that is tagged SKEP_EVENT, is
 * a stream of events. Each member of its record is an attribute; the record's
 * type is said with __type(value, ...). They come out as log records over OTLP
 * and as JSON lines.
 *
 * An event has the name of a command and its user: it tells what a person does.
 */
#include <skep.bpf.h>

struct start {
	ktime_ns time; /* the time of the event */
	__u32 pid;
	uid_nr uid;
	char command[16];
};

/* Events that found no room in the ring are counted here, and exported as skep_ring_lost_total. */
SKEP_LOST_MAP(starts_lost);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
	__type(value, struct start);
} starts SEC(".maps") SKEP_EVENT("ebpf.@METRIC@.start") SKEP_LOST("starts_lost")
	SKEP_HELP("A process has begun to run another program.");

SEC("raw_tp/sched_process_exec")
int on_exec(void *ctx)
{
	struct start *start = skep_event_reserve(&starts, sizeof(*start), &starts_lost);

	if (!start)
		return 0;
	/* Fill every byte: what was in the ring before is not cleared. */
	start->time = bpf_ktime_get_ns();
	start->pid = bpf_get_current_pid_tgid() >> 32;
	start->uid = (__u32)bpf_get_current_uid_gid();
	bpf_get_current_comm(start->command, sizeof(start->command));
	skep_event_submit(start);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
