/* SPDX-License-Identifier: Apache-2.0
 *
 * From the bytes of a key or record to label text (Prometheus), attribute bytes
 * (OTLP) and members (JSON). A rule per label, compiled once; each rule gives
 * one value, which one of the three writers below renders. exporter/collect/labels.py
 * states the same in Python.
 */
#ifndef SKEP_LABELS_H
#define SKEP_LABELS_H

#include "buffer.h"

/* Numbers are shared with exporter/collect/labels.py. */
enum skep_decoder {
	SKEP_UINT = 0,
	SKEP_INT = 1,
	SKEP_BOOL = 2,
	SKEP_FLOAT = 3,
	SKEP_HEX = 4,
	SKEP_STRING = 5,
	SKEP_BYTES = 6,
	SKEP_TABLE = 7, /* enum, errno, syscall, signal: number to text, else decimal */
	SKEP_IPV4 = 8,
	SKEP_IPV6 = 9,
	SKEP_IP = 10,
	SKEP_PORT = 11,
	SKEP_PORT_BE = 12,
	SKEP_DURATION = 13,
	SKEP_TIME = 14,
	SKEP_SLOW = 15, /* asks the resolver, through the cache */
	SKEP_PREFIX = 40, /* of a trie's key whose length word lies at byte `table_first` */
};

enum {
	SKEP_RULE_SIGNED = 1,
	SKEP_RULE_MAGNITUDE = 2, /* -2 and 2 mean the same (errno) */
	SKEP_RULE_NATURAL = 4,   /* negative: no such label */
	SKEP_RULE_STACK = 8,	 /* 32 bits, and above them those at bit `table_first`, `table_count` of them or none */
};

struct skep_span {
	uint32_t offset; /* in the pool */
	uint32_t len;
};

struct skep_table_entry {
	uint64_t value; /* two's complement; entries of one rule are sorted by it, unsigned */
	struct skep_span text;
};

struct skep_label_rule {
	uint8_t decoder;
	uint8_t flags;
	uint16_t resolver; /* which slow decoder, handed to the resolver */
	uint32_t offset_bits;
	uint32_t size_bits;
	uint32_t table_first;
	uint32_t table_count;
	struct skep_span prometheus; /* name=" */
	struct skep_span otlp;       /* KeyValue.key: tag, length, name */
	struct skep_span json;       /* "name": */
};

struct skep_labels {
	struct skep_label_rule *rules;
	uint32_t count;
	struct skep_table_entry *table;
	uint8_t *pool;
	struct skep_span constant_prometheus; /* a="b",c="d" */
	struct skep_span constant_otlp;       /* KeyValues with their tags */
	struct skep_span constant_json;       /* "a":"b","c":"d" */
};

/* Appends the UTF-8 text for `value` to `out`; returns 0, or -1 to stop everything. */
typedef int (*skep_resolve_fn)(void *context, int resolver, uint64_t value, struct skep_buf *out);

struct skep_cache; /* (resolver, value) to text, bounded, least recently used of a set goes */

struct skep_cache *skep_cache_new(void);
void skep_cache_clear(struct skep_cache *cache);
void skep_cache_free(struct skep_cache *cache);
size_t skep_cache_bytes(const struct skep_cache *cache);

struct skep_label_context {
	struct skep_buf scratch; /* text of the value in hand, if it is not elsewhere */
	struct skep_cache *cache;
	skep_resolve_fn resolve;
	void *resolve_context;
	int64_t realtime_minus_monotonic_ns;
};

enum skep_value_kind { SKEP_VALUE_TEXT = 0, SKEP_VALUE_INT = 1, SKEP_VALUE_BOOL = 2 };

struct skep_value {
	enum skep_value_kind kind;
	int64_t number;      /* of INT and BOOL */
	const uint8_t *text; /* valid UTF-8, of every kind; empty: no such label */
	size_t len;
};

/* `data` holds at least the rule's bits. The text is valid until the next call with this context. */
int skep_label_value(const struct skep_labels *labels, const struct skep_label_rule *rule, const uint8_t *data,
		     struct skep_label_context *context, struct skep_value *value);

int skep_write_prometheus(const struct skep_labels *labels, const struct skep_label_rule *rule,
			  const struct skep_value *value, struct skep_buf *out);
int skep_write_otlp(const struct skep_labels *labels, const struct skep_label_rule *rule,
		    const struct skep_value *value, uint8_t tag, struct skep_buf *out);
int skep_write_json(const struct skep_labels *labels, const struct skep_label_rule *rule,
		    const struct skep_value *value, struct skep_buf *out);

/* 2024-02-03T04:05:06.000000007Z; returns its length, always 30 up to the year 9999. */
#define SKEP_RFC3339_ROOM 40
size_t skep_rfc3339(int64_t unix_ns, char *out);

/* `size_bits` <= 64 bits from bit `offset_bits` on, little-endian. */
static inline uint64_t skep_read_bits(const uint8_t *data, uint32_t offset_bits, uint32_t size_bits)
{
	const uint8_t *from = data + (offset_bits >> 3);
	uint32_t shift = offset_bits & 7;
	uint32_t bytes = (shift + size_bits + 7) >> 3;
	uint64_t low = 0, value;

	memcpy(&low, from, bytes < 8 ? bytes : 8);
	value = low >> shift;
	if (bytes == 9)
		value |= (uint64_t)from[8] << (64 - shift);
	return size_bits < 64 ? value & ((1ull << size_bits) - 1) : value;
}

static inline uint64_t skep_sign_extend(uint64_t value, uint32_t size_bits)
{
	if (size_bits >= 64)
		return value;
	uint64_t sign = 1ull << (size_bits - 1);
	return (value ^ sign) - sign;
}

#endif
