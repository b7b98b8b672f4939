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
	SKEP_TABLE = 7, /* enum, errno, syscall, …: number to text, else decimal */
	SKEP_IPV4 = 8,
	SKEP_IPV6 = 9,
	SKEP_IP = 10,
	SKEP_PORT = 11,
	SKEP_PORT_BE = 12,
	SKEP_DURATION = 13,
	SKEP_TIME = 14,
	SKEP_SLOW = 15, /* asks the resolver, through the cache */
	SKEP_FLAGS = 16, /* names of the bits that are set, joined by '|', the rest in hexadecimal */
	SKEP_MAC = 17,
	SKEP_DNS = 18,
	SKEP_PREFIX = 40, /* of a trie's key whose length word lies at byte `table_first` */
};

enum {
	SKEP_RULE_SIGNED = 1,
	SKEP_RULE_MAGNITUDE = 2, /* -2 and 2 mean the same (errno) */
	SKEP_RULE_STEPS = 4,     /* text that is not empty goes through resolver `step`, through the cache */
	SKEP_RULE_NATURAL = 8,   /* negative: no such label */
	SKEP_RULE_STACK = 16,    /* 32 bits, and above them those at bit `table_first`, `table_count` of them or none */
};

struct skep_span {
	uint32_t offset; /* in the pool */
	uint32_t len;
};

struct skep_table_entry {
	uint64_t value; /* two's complement; entries of one rule are sorted by it, unsigned */
	struct skep_span text;
};

/* A label is there if the number is one of the values (of `table`, texts unused), or, negated, none of them. */
struct skep_condition {
	uint32_t offset_bits;
	uint32_t size_bits;
	uint32_t table_first;
	uint32_t table_count;
	uint32_t negated;
};

struct skep_label_rule {
	uint8_t decoder;
	uint8_t flags;
	uint16_t resolver; /* which slow decoder, handed to the resolver */
	uint16_t step;     /* which steps, likewise; beyond all slow decoders */
	uint16_t count;    /* elements of an array, size_bits apart; else 1 */
	uint32_t offset_bits;
	uint32_t size_bits;
	uint32_t table_first;
	uint32_t table_count;
	uint32_t condition_first; /* all of them must be met */
	uint32_t condition_count;
	struct skep_span prometheus; /* name=" */
	struct skep_span otlp;       /* KeyValue.key: tag, length, name */
	struct skep_span json;       /* "name": */
};

struct skep_labels {
	struct skep_label_rule *rules;
	uint32_t count;
	struct skep_table_entry *table;
	struct skep_condition *conditions;
	uint8_t *pool;
	struct skep_span constant_prometheus; /* a="b",c="d" */
	struct skep_span constant_otlp;       /* KeyValues with their tags */
	struct skep_span constant_json;       /* "a":"b","c":"d" */
};

/* Frees what labels point to. */
void skep_labels_free(struct skep_labels *labels);
/* Whether some rule asks the resolver. */
int skep_labels_ask(const struct skep_labels *labels);

/* Appends the UTF-8 text for `value`, or if `text` is not NULL for that text, to `out`; returns 0, or -1 to stop
 * everything. */
typedef int (*skep_resolve_fn)(void *context, int resolver, uint64_t value, const uint8_t *text, size_t len,
			       struct skep_buf *out);

struct skep_cache; /* (resolver, value or text) to text, bounded, least recently used of a set goes */

struct skep_cache *skep_cache_new(void);
void skep_cache_clear(struct skep_cache *cache);
void skep_cache_free(struct skep_cache *cache);
size_t skep_cache_bytes(const struct skep_cache *cache);

struct skep_label_context {
	struct skep_buf scratch; /* text of the value in hand, if it is not elsewhere */
	struct skep_buf answer;  /* of the resolver */
	struct skep_buf list;    /* text of a list */
	struct skep_buf elements; /* struct skep_element of a list */
	struct skep_cache *cache;
	skep_resolve_fn resolve;
	void *resolve_context;
	int64_t realtime_minus_monotonic_ns;
};

/* Frees its buffers and its cache. */
void skep_label_context_free(struct skep_label_context *context);
size_t skep_label_context_bytes(const struct skep_label_context *context);

enum skep_value_kind { SKEP_VALUE_TEXT = 0, SKEP_VALUE_INT = 1, SKEP_VALUE_BOOL = 2, SKEP_VALUE_LIST = 3 };

struct skep_value {
	enum skep_value_kind kind;
	int64_t number;      /* of INT and BOOL */
	const uint8_t *text; /* valid UTF-8, of every kind; empty: no such label */
	size_t len;
	const struct skep_element *elements; /* of LIST; its text is theirs joined by ',' */
	size_t count;
};

struct skep_element {
	enum skep_value_kind kind; /* never LIST */
	int64_t number;
	size_t offset; /* of its text in the list's */
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
