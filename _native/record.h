/* SPDX-License-Identifier: Apache-2.0
 *
 * Records as they travel from a ring (kernel) to its decoder (collect): a
 * byte string of these headers, each followed by `length` bytes of data and
 * padding up to a multiple of eight. Native byte order; never leaves the host.
 */
#ifndef SKEP_RECORD_H
#define SKEP_RECORD_H

#include <stdint.h>

struct skep_record {
	uint64_t position; /* of the record in its ring, 64-bit, never reused */
	uint32_t length;   /* of the data that follows */
	uint32_t reserved;
};

#define SKEP_RECORD_STEP(length) (sizeof(struct skep_record) + (((uint64_t)(length) + 7u) & ~(uint64_t)7u))

#endif
