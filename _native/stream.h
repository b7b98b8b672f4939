/* SPDX-License-Identifier: Apache-2.0
 *
 * From the records of one ring to OTLP log records and JSON lines.
 */
#ifndef SKEP_STREAM_H
#define SKEP_STREAM_H

#include "labels.h"
#include "record.h"

struct skep_stream_config {
	struct skep_labels labels; /* taken over, malloc()ed members; constants in OTLP have field 6 */
	uint32_t record_size;
	uint32_t time_offset_bits;
	uint32_t time_size_bits; /* 0: records have no time of their own */
	struct skep_span severity;   /* LogRecord.severity_number, with tag */
	struct skep_span event_name; /* LogRecord.event_name, with tag */
	struct skep_span json_name;  /* ","event":…,"image":…,"attributes":{ */
	uint64_t events_per_s;
	uint64_t sample_one_in; /* of so many good records one is exported; 0 and 1: all */
	uint8_t enabled;
	uint8_t measured; /* metrics are made of its records, whatever becomes of its events */
	uint8_t tail_size;    /* bytes of an element of the flexible array at the end; 0: there is none */
	uint32_t tail_offset; /* in bytes, at most record_size */
	struct skep_label_rule tail; /* SKEP_STRING, SKEP_BYTES; or SKEP_UINT, SKEP_INT: an array of such */
	skep_resolve_fn resolve;
	void *resolve_context;
};

struct skep_stream_counts {
	uint64_t received;
	uint64_t exported;
	uint64_t failed;
	uint64_t dropped_rate;
	uint64_t dropped_disabled;
	uint64_t dropped_sample;
	uint64_t measured; /* good records that metrics are made of, and no event */
};

struct skep_stream;

/* Of what the program says, in OTLP only: characters of a text, attributes of a record. UINT32_MAX is no limit. */
void skep_stream_limit(struct skep_stream *stream, uint32_t value_chars, uint32_t attributes);

struct skep_stream *skep_stream_new(const struct skep_stream_config *config);
void skep_stream_free(struct skep_stream *stream);

/*
 * Appends to `otlp` and `json`, either of which may be NULL, and adds to `counts`.
 * 0; -1 when memory is out; -2 when the resolver refused; -3 when the framing is damaged.
 */
int skep_stream_decode(struct skep_stream *stream, const uint8_t *records, size_t len, uint64_t now_ns,
		       int64_t realtime_minus_monotonic_ns, struct skep_buf *otlp, struct skep_buf *json,
		       struct skep_stream_counts *counts);

#endif
