/* SPDX-License-Identifier: Apache-2.0
 *
 * skep.bpf.h's arithmetic as an ordinary shared library, so that a test can call it.
 */
#include <skep.bpf.h>

__u32 log2_floor(__u64 value)
{
	return skep_log2_floor(value);
}

__u32 log2_ceil(__u64 value)
{
	return skep_log2_ceil(value);
}

void observe_ns(struct skep_latency *latency, __u64 ns)
{
	skep_observe_ns(latency, ns);
}

SKEP_HISTOGRAM_TYPE(small, 4, "1", "1");

void observe(struct small *histogram, __u64 value)
{
	skep_observe(histogram, value);
}
