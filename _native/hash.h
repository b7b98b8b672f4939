/* SPDX-License-Identifier: Apache-2.0
 *
 * One hash of bytes for all tables. The seed is random per process, so that nobody
 * can choose keys that collide.
 */
#ifndef SKEP_HASH_H
#define SKEP_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t skep_hash_mix(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t skep_hash(uint64_t seed, const uint8_t *data, size_t len)
{
	uint64_t hash = seed ^ (len * 0x9e3779b97f4a7c15u), word;

	for (; len >= 8; data += 8, len -= 8) {
		memcpy(&word, data, 8);
		hash = skep_hash_mix(hash ^ word ^ 0xa0761d6478bd642fu, 0xe7037ed1a0b428dbu);
	}
	if (len) {
		word = 0;
		memcpy(&word, data, len);
		hash = skep_hash_mix(hash ^ word ^ 0x8ebc6af09c88c6e3u, 0x589965cc75374cc3u);
	}
	return skep_hash_mix(hash ^ 0x1d8e4e27c47d124fu, 0xeb44accab455d165u);
}

#endif
