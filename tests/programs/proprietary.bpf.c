// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Calls a helper that is only for GPL programs, and says that it is not one. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("raw_tp/sys_enter")
int on_syscall(void *ctx)
{
	__u64 byte = 0;

	bpf_probe_read_kernel(&byte, 1, (void *)bpf_get_current_task());
	return (int)byte;
}

char LICENSE[] SEC("license") = "Proprietary";
