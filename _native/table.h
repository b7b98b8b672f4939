/* SPDX-License-Identifier: Apache-2.0
 *
 * The frame as its one writer sees it; frame.h is what readers see.
 */
#ifndef SKEP_TABLE_H
#define SKEP_TABLE_H

#include "frame.h"
#include "labels.h"

/* Shared by the frames of one image, which may have different owners: atomic. */
struct skep_budget {
	uint64_t limit;
	uint64_t used;
};

struct skep_bits {
	uint32_t offset_bits;
	uint32_t size_bits;
	uint8_t is_signed;
	uint8_t is_float;
};

/* `count` numbers that follow each other in the row's value, each added to a cell of its own. */
struct skep_value_op {
	struct skep_bits bits; /* of the first */
	uint32_t count;
	uint32_t cell;      /* of the first; with a slot: of slot 0 */
	uint8_t cell_type;  /* enum skep_cell_type */
	uint8_t is_gauge;
	uint8_t has_slot;   /* then count is 1 and the cell is chosen by the key */
	uint8_t read;       /* filled in by skep_frame_new */
	struct skep_bits slot; /* in the key */
	uint32_t slot_count;
	uint32_t raw;       /* filled in: index of the first among a row's raw values */
};

/* What one record adds to the cells of one instrument. */
struct skep_record_op {
	struct skep_value_op value; /* bits, cell_type and cell (of slot 0) are used */
	uint8_t has_value;          /* else the record's number is 1 */
	uint8_t is_histogram;
	uint8_t has_sum;
	uint32_t sum_cell;
	uint32_t edge_first; /* inclusive upper edges, rising, as a cell of cell_type has them */
	uint32_t edge_count;
	uint32_t below; /* slots under the first edge that no number of this type can reach */
};

/* Bytes of a record that are part of a key. */
struct skep_key_span {
	uint32_t offset;
	uint32_t len;
	uint8_t is_text; /* ends at the first NUL; what lies behind it is whatever was there before */
};

/* Of a frame that is fed with records: where its keys and numbers are in them. */
struct skep_record_config {
	uint32_t record_size; /* shorter ones are passed over; 0: the frame is fed with rows */
	struct skep_record_op *ops;
	uint32_t op_count;
	uint64_t *edges;
	struct skep_key_span *spans; /* one after the other they make a key */
	uint32_t span_count;
	uint8_t *mask; /* of a key: bits that belong to a label */
};

struct skep_frame_config {
	uint32_t key_size; /* of the map's key, and behind it the index of an element if there are several */
	uint32_t value_size;
	uint32_t elements; /* of an array in the value, each a row of its own; else 1 */
	uint32_t element_stride;
	uint32_t cells; /* of one series */
	uint32_t instruments;
	struct skep_value_op *ops; /* taken over, malloc()ed; so are the members of labels */
	uint32_t op_count;
	struct skep_record_config records; /* its arrays are taken over, too */
	struct skep_labels labels;
	struct skep_span overflow_prometheus; /* whole label text and attributes of the overflow series */
	struct skep_span overflow_otlp;
	uint8_t per_cpu;
	uint8_t skip_zero_rows;
	uint8_t expire_idle;
	uint8_t only_gauges;
	uint8_t has_gauges;
	uint32_t expire_after_s;
	uint64_t start_ns;
	struct skep_budget *budget;
	skep_resolve_fn resolve;
	void *resolve_context;
};

struct skep_frame;

/* NULL when memory is out; the configuration's arrays are then still the caller's. */
struct skep_frame *skep_frame_new(const struct skep_frame_config *config);
void skep_frame_free(struct skep_frame *frame);

void skep_frame_begin(struct skep_frame *frame, uint64_t now_ns, int64_t realtime_minus_monotonic_ns);

/* 0, -1 when memory is out, -2 when the resolver refused; rows before the failing one are applied. */
enum { SKEP_OK = 0, SKEP_NO_MEMORY = -1, SKEP_RESOLVER = -2 };
int skep_frame_apply(struct skep_frame *frame, const uint8_t *keys, const uint8_t *values, uint32_t count,
		     uint32_t value_stride, uint32_t cpus);
void skep_frame_finish(struct skep_frame *frame);

/* Adds what records (framed as record.h says) count, between whole reads or without any; results as above. */
enum { SKEP_FRAMING = -3 };
int skep_frame_add(struct skep_frame *frame, const uint8_t *records, size_t len, uint64_t now_ns,
		   int64_t realtime_minus_monotonic_ns);

const struct skep_frame_view *skep_frame_see(struct skep_frame *frame);
uint32_t skep_frame_live(const struct skep_frame *frame);
uint64_t skep_frame_rows(const struct skep_frame *frame);
uint64_t skep_frame_folded(const struct skep_frame *frame);

struct skep_frame_memory {
	uint64_t total;
	uint64_t keys;  /* bytes of row keys in use */
	uint64_t texts; /* bytes of label text and attributes in use */
};
void skep_frame_measure(const struct skep_frame *frame, struct skep_frame_memory *memory);

/* Random per process, so that nobody can choose keys that collide. */
extern uint64_t skep_hash_seed;

#endif
