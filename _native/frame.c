// SPDX-License-Identifier: Apache-2.0
/*
 * How a frame works.
 *
 * A row is what the kernel has: one key of the map, its whole bytes, padding and
 * dropped members too, because the kernel tells rows apart by them. A row remembers
 * its last raw values. A series is what is exported: one label text. Each read,
 * a row adds what it gained to the cells of its series; several rows may share one.
 *
 * Series s has room for one row beside it, at the same index ("direct"): the usual
 * case, where a row costs no pointer to its series. Further rows of a series are
 * "extra" and do keep one. Row ids are 24 bits, the highest saying which.
 *
 * Rows are found by position first (a map that did not change comes in the same
 * order every time), by hash second. Both hash tables keep 4 bytes a slot: 8 bits of
 * the hash and the id; what the id stands for is compared where it lies.
 *
 * A row that a complete read did not bring is gone from the kernel and is forgotten:
 * if its key comes back it counts from zero there, and here it adds to its series.
 * A read that was not finished forgets nothing.
 *
 * A frame may be fed with records instead. There is no row in the kernel then: a record
 * adds its numbers to the cells of its series, at once and for good. What is kept as
 * "rows" is only the way from the label bytes of records to their series, so that few
 * records are rendered; it is bounded, and label sets beyond the budget leave none. A
 * series that expires is forgotten whole, since nobody else remembers its count.
 */

#include "block.h"
#include "hash.h"
#include "record.h"
#include "table.h"

#include <math.h>

#define NONE 0xffffffu          /* no id */
#define EXTRA 0x800000u         /* row ids from here on are extra rows */
#define MOST (EXTRA - 2u)       /* series, and extra rows, per frame */
#define SLOT_EMPTY 0xffffffffu  /* id NONE: no id is stored with it */
#define SLOT_REMOVED 0xfeffffffu
#define NEVER 0xffffffffu

/* Of skep_series.flags, private: the rest is the number of rows. */
#define SERIES_USED SKEP_SERIES_KEPT
#define SERIES_ROW 0x100u

enum read { READ_U64, READ_U32, READ_U16, READ_U8, READ_BITS, READ_BITS_SIGNED, READ_F32, READ_F64 };

uint64_t skep_hash_seed;

struct rows {
	uint8_t *keys;
	uint64_t *last;   /* raw values, `raws` of them each */
	uint64_t *used;   /* one bit a row */
	uint64_t *seen;   /* by the read in progress */
	uint32_t *series; /* extra rows only; of an unused row: the next unused one */
	uint32_t count;   /* used or not */
	uint32_t cap;
};

struct index {
	uint32_t *slots;
	uint32_t cap;
	uint32_t live;
	uint32_t removed;
};

struct skep_frame {
	struct skep_frame_config config;
	struct skep_frame_view view;
	uint32_t raws; /* raw values of one row */
	uint8_t raws_are_plain; /* one op, one u64 at a byte boundary, no slot, no gauge */

	struct skep_series *series; /* parallel to `cells` and to the direct rows */
	uint64_t *cells;
	uint32_t series_count;
	uint32_t series_cap;
	uint32_t free_series; /* list through start_ns */
	uint32_t free_count;
	uint32_t live;
	uint32_t overflow;

	struct rows direct;
	struct rows extra;
	uint32_t free_extra;
	uint32_t free_extra_count;

	struct index by_key;
	struct index by_text;

	uint8_t *arena;
	uint64_t arena_len;
	uint64_t arena_cap;
	uint64_t arena_dead;

	struct skep_label_context context;
	struct skep_buf text;
	struct skep_buf attributes;
	uint64_t *raw; /* of the row in hand */
	uint8_t *record_key; /* of the record in hand */
	uint32_t record_row; /* of the one before, or NONE */
	uint8_t *element_key; /* of a value's element: the map's key and its index */

	uint64_t now_ns;
	uint64_t cache_ns;
	uint64_t series_start_ns; /* of series that are new in this read */
	uint32_t now_s;
	uint32_t next_expiry_s;
	uint32_t next_direct;
	uint32_t next_extra;
	uint8_t gauges_moved;
	uint64_t folded;
};

/* ---- small things ---- */

static uint64_t hash_bytes(const uint8_t *data, size_t len)
{
	return skep_hash(skep_hash_seed, data, len);
}

static int bit(const uint64_t *bits, uint32_t i)
{
	return bits[i >> 6] >> (i & 63) & 1;
}

static void set_bit(uint64_t *bits, uint32_t i)
{
	bits[i >> 6] |= 1ull << (i & 63);
}

static void clear_bit(uint64_t *bits, uint32_t i)
{
	bits[i >> 6] &= ~(1ull << (i & 63));
}

static size_t words(uint32_t bits)
{
	return ((size_t)bits + 63) / 64;
}

static int resize(void *pointer, size_t count, size_t size)
{
	void *old, *fresh;

	memcpy(&old, pointer, sizeof(old));
	fresh = skep_block_resize(old, count * size);
	if (!fresh)
		return -1;
	memcpy(pointer, &fresh, sizeof(fresh));
	return 0;
}

static uint32_t grown(uint32_t cap)
{
	return cap < 1024 ? cap * 2 + 16 : cap + cap / 32;
}

/* A failed resize leaves arrays longer than their capacity, which harms nothing. */
static int resize_rows(struct skep_frame *frame, struct rows *rows, uint32_t cap)
{
	size_t old = words(rows->cap), now = words(cap);

	if (resize(&rows->keys, cap, frame->config.key_size) || resize(&rows->last, cap, frame->raws * 8u) ||
	    resize(&rows->used, now, 8) || resize(&rows->seen, now, 8))
		return -1;
	if (rows == &frame->extra && resize(&rows->series, cap, 4))
		return -1;
	if (now > old) {
		memset(rows->used + old, 0, (now - old) * 8);
		memset(rows->seen + old, 0, (now - old) * 8);
	}
	rows->cap = cap;
	return 0;
}

static int resize_series(struct skep_frame *frame, uint32_t cap)
{
	if (resize(&frame->series, cap, sizeof(struct skep_series)) ||
	    resize(&frame->cells, cap, frame->config.cells * 8u) || resize_rows(frame, &frame->direct, cap))
		return -1;
	frame->series_cap = cap;
	return 0;
}

static struct rows *rows_of(struct skep_frame *frame, uint32_t row)
{
	return row & EXTRA ? &frame->extra : &frame->direct;
}

static uint32_t place(uint32_t row)
{
	return row & (EXTRA - 1);
}

static const uint8_t *key_of(struct skep_frame *frame, uint32_t row)
{
	return rows_of(frame, row)->keys + (size_t)place(row) * frame->config.key_size;
}

static uint32_t series_of(struct skep_frame *frame, uint32_t row)
{
	return row & EXTRA ? frame->extra.series[place(row)] : row;
}

static uint32_t row_count(const struct skep_series *series)
{
	return series->flags / SERIES_ROW;
}

static int budget_take(struct skep_frame *frame)
{
	struct skep_budget *budget = frame->config.budget;
	uint64_t used = __atomic_load_n(&budget->used, __ATOMIC_RELAXED), want;

	do {
		want = used + frame->config.instruments;
		if (want > budget->limit)
			return 0;
	} while (!__atomic_compare_exchange_n(&budget->used, &used, want, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return 1;
}

static void budget_give(struct skep_frame *frame)
{
	__atomic_fetch_sub(&frame->config.budget->used, frame->config.instruments, __ATOMIC_RELAXED);
}

/* ---- hash tables ---- */

static uint32_t slot_at(const struct index *index, uint64_t hash)
{
	return (uint32_t)(((hash >> 32) * index->cap) >> 32);
}

static uint32_t slot_value(uint64_t hash, uint32_t id)
{
	return (uint32_t)(hash & 0xff) << 24 | id;
}

static void index_put(struct index *index, uint64_t hash, uint32_t id)
{
	uint32_t at = slot_at(index, hash);

	while (index->slots[at] != SLOT_EMPTY && index->slots[at] != SLOT_REMOVED)
		if (++at == index->cap)
			at = 0;
	if (index->slots[at] == SLOT_REMOVED)
		index->removed--;
	index->slots[at] = slot_value(hash, id);
	index->live++;
}

static void index_remove(struct index *index, uint64_t hash, uint32_t id)
{
	uint32_t at = slot_at(index, hash), want = slot_value(hash, id);

	while (index->slots[at] != want)
		if (++at == index->cap)
			at = 0;
	index->slots[at] = SLOT_REMOVED;
	index->removed++;
	index->live--;
}

static uint32_t find_row(struct skep_frame *frame, uint64_t hash, const uint8_t *key)
{
	const struct index *index = &frame->by_key;
	uint32_t tag = (uint32_t)(hash & 0xff);

	if (!index->cap)
		return NONE;
	for (uint32_t at = slot_at(index, hash);;) {
		uint32_t slot = index->slots[at];
		if (slot == SLOT_EMPTY)
			return NONE;
		if (slot >> 24 == tag && slot != SLOT_REMOVED &&
		    memcmp(key_of(frame, slot & NONE), key, frame->config.key_size) == 0)
			return slot & NONE;
		if (++at == index->cap)
			at = 0;
	}
}

static uint64_t text_hash(struct skep_frame *frame, uint32_t id)
{
	return hash_bytes(frame->arena + frame->series[id].text, frame->series[id].labels_len);
}

static uint32_t find_series(struct skep_frame *frame, uint64_t hash, const uint8_t *text, size_t len)
{
	const struct index *index = &frame->by_text;
	uint32_t tag = (uint32_t)(hash & 0xff);

	if (!index->cap)
		return NONE;
	for (uint32_t at = slot_at(index, hash);;) {
		uint32_t slot = index->slots[at];
		if (slot == SLOT_EMPTY)
			return NONE;
		if (slot >> 24 == tag && slot != SLOT_REMOVED) {
			const struct skep_series *series = &frame->series[slot & NONE];
			if (series->labels_len == len && memcmp(frame->arena + series->text, text, len) == 0)
				return slot & NONE;
		}
		if (++at == index->cap)
			at = 0;
	}
}

/* Linear probing with tags: 7/8 full costs few cache lines. */
static int crowded(const struct index *index)
{
	return ((uint64_t)index->live + index->removed + 1) * 8 > (uint64_t)index->cap * 7;
}

/* What a table at rest should have: full enough to waste little, with room for one sixteenth more. */
static uint32_t index_snug(uint32_t live)
{
	return (uint32_t)((uint64_t)live * 8 / 7 + live / 16 + 16);
}

static int index_alloc(struct index *fresh, uint32_t cap)
{
	fresh->slots = skep_block_resize(NULL, (size_t)cap * 4);
	if (!fresh->slots)
		return -1;
	memset(fresh->slots, 0xff, (size_t)cap * 4);
	fresh->cap = cap;
	fresh->live = fresh->removed = 0;
	return 0;
}

/* Enter every row, or every series, anew. */
static int index_rebuild(struct skep_frame *frame, struct index *index, uint32_t cap)
{
	struct index fresh;

	if (index_alloc(&fresh, cap))
		return -1;
	if (index == &frame->by_key) {
		for (uint32_t i = 0; i < frame->series_count; i++)
			if (bit(frame->direct.used, i))
				index_put(&fresh, hash_bytes(key_of(frame, i), frame->config.key_size), i);
		for (uint32_t i = 0; i < frame->extra.count; i++)
			if (bit(frame->extra.used, i))
				index_put(&fresh, hash_bytes(key_of(frame, i | EXTRA), frame->config.key_size), i | EXTRA);
	} else {
		for (uint32_t i = 0; i < frame->series_count; i++)
			if ((frame->series[i].flags & SERIES_USED) && i != frame->overflow)
				index_put(&fresh, text_hash(frame, i), i);
	}
	skep_block_free(index->slots);
	*index = fresh;
	return 0;
}

/* Room for one more entry. A read may bring many, so tables double; what is too much goes at the read's end. */
static int index_ready(struct skep_frame *frame, struct index *index)
{
	if (!crowded(index))
		return 0;
	uint32_t snug = index_snug(index->live);
	return index_rebuild(frame, index, snug < index->cap / 2 ? index->cap : 2 * snug);
}

/* ---- series ---- */

static int arena_ready(struct skep_frame *frame, uint64_t more)
{
	if (frame->arena_cap - frame->arena_len >= more)
		return 0;
	uint64_t cap = frame->arena_cap + frame->arena_cap / 32 + 4096;
	if (cap < frame->arena_len + more)
		cap = frame->arena_len + more;
	if (resize(&frame->arena, cap, 1))
		return -1;
	frame->arena_cap = cap;
	return 0;
}

/* A new series; NONE when memory is out. */
static uint32_t series_add(struct skep_frame *frame, const uint8_t *text, size_t text_len, const uint8_t *attributes,
			   size_t attributes_len, uint32_t flags)
{
	uint32_t id;

	if (arena_ready(frame, text_len + attributes_len))
		return NONE;
	if (frame->free_series != NONE) {
		id = frame->free_series;
	} else {
		if (frame->series_count == frame->series_cap) {
			uint32_t cap = grown(frame->series_cap);
			if (frame->series_count >= MOST || resize_series(frame, cap < MOST ? cap : MOST))
				return NONE;
		}
		id = frame->series_count;
	}
	if (!(flags & SKEP_SERIES_OVERFLOW)) {
		if (index_ready(frame, &frame->by_text))
			return NONE;
		index_put(&frame->by_text, hash_bytes(text, text_len), id);
	}
	if (id == frame->series_count) {
		frame->series_count++;
		frame->direct.count++;
	} else {
		frame->free_series = (uint32_t)frame->series[id].start_ns;
		frame->free_count--;
	}
	frame->series[id] = (struct skep_series){
		.start_ns = frame->series_start_ns,
		.text = frame->arena_len,
		.labels_len = (uint32_t)text_len,
		.attrs_len = (uint32_t)attributes_len,
		.changed_s = frame->now_s,
		.flags = SERIES_USED | SKEP_SERIES_LIVE | flags,
	};
	memcpy(frame->arena + frame->arena_len, text, text_len);
	memcpy(frame->arena + frame->arena_len + text_len, attributes, attributes_len);
	frame->arena_len += text_len + attributes_len;
	memset(frame->cells + (size_t)id * frame->config.cells, 0, frame->config.cells * 8u);
	frame->live++;
	if (frame->now_s + frame->config.expire_after_s < frame->next_expiry_s)
		frame->next_expiry_s = frame->now_s + frame->config.expire_after_s;
	return id;
}

/* A series without rows. */
static void series_remove(struct skep_frame *frame, uint32_t id)
{
	struct skep_series *series = &frame->series[id];

	if (id == frame->overflow)
		frame->overflow = NONE;
	else {
		index_remove(&frame->by_text, text_hash(frame, id), id);
		if (series->flags & SKEP_SERIES_LIVE)
			budget_give(frame);
	}
	if (series->flags & SKEP_SERIES_LIVE)
		frame->live--;
	frame->arena_dead += (uint64_t)series->labels_len + series->attrs_len;
	memset(series, 0, sizeof(*series));
	series->start_ns = frame->free_series;
	frame->free_series = id;
	frame->free_count++;
}

static uint32_t overflow_series(struct skep_frame *frame)
{
	const struct skep_frame_config *config = &frame->config;

	if (frame->overflow == NONE)
		frame->overflow = series_add(frame, config->labels.pool + config->overflow_prometheus.offset,
					     config->overflow_prometheus.len,
					     config->labels.pool + config->overflow_otlp.offset,
					     config->overflow_otlp.len, SKEP_SERIES_OVERFLOW);
	return frame->overflow;
}

/* Label text and attributes of a key, into frame->text and frame->attributes. */
static int render(struct skep_frame *frame, const uint8_t *key)
{
	const struct skep_labels *labels = &frame->config.labels;
	struct skep_value value;

	frame->text.len = frame->attributes.len = 0;
	for (uint32_t i = 0; i < labels->count; i++) {
		const struct skep_label_rule *rule = &labels->rules[i];
		int failed = skep_label_value(labels, rule, key, &frame->context, &value);
		if (failed)
			return failed;
		if (!value.len)
			continue;
		if (skep_write_prometheus(labels, rule, &value, &frame->text) ||
		    skep_write_otlp(labels, rule, &value, 0x3a, &frame->attributes))
			return -1;
	}
	if (labels->constant_prometheus.len && frame->text.len && skep_buf_byte(&frame->text, ','))
		return -1;
	if (skep_buf_put(&frame->text, labels->pool + labels->constant_prometheus.offset,
			 labels->constant_prometheus.len))
		return -1;
	return skep_buf_put(&frame->attributes, labels->pool + labels->constant_otlp.offset, labels->constant_otlp.len);
}

/* ---- rows ---- */

/* Attach a row to a series and enter it into the table of keys; NONE when memory is out. */
static uint32_t row_attach(struct skep_frame *frame, const uint8_t *key, uint64_t hash, uint32_t id)
{
	uint32_t row = id, at = id;

	if (index_ready(frame, &frame->by_key))
		return NONE;
	if (bit(frame->direct.used, id)) {
		struct rows *extra = &frame->extra;
		at = frame->free_extra;
		if (at != NONE) {
			frame->free_extra = extra->series[at];
			frame->free_extra_count--;
		} else {
			if (extra->count == extra->cap) {
				uint32_t cap = grown(extra->cap);
				if (extra->count >= MOST || resize_rows(frame, extra, cap < MOST ? cap : MOST))
					return NONE;
			}
			at = extra->count++;
		}
		extra->series[at] = id;
		row = at | EXTRA;
	}
	struct rows *rows = rows_of(frame, row);
	memcpy(rows->keys + (size_t)at * frame->config.key_size, key, frame->config.key_size);
	memset(rows->last + (size_t)at * frame->raws, 0, frame->raws * 8u);
	set_bit(rows->used, at);
	index_put(&frame->by_key, hash, row);
	frame->series[id].flags += SERIES_ROW;
	frame->series[id].flags &= ~SKEP_SERIES_ROWLESS;
	return row;
}

static void row_detach(struct skep_frame *frame, uint32_t row)
{
	const struct skep_frame_config *config = &frame->config;
	uint32_t id = series_of(frame, row), at = place(row);
	struct rows *rows = rows_of(frame, row);
	struct skep_series *series = &frame->series[id];

	index_remove(&frame->by_key, hash_bytes(key_of(frame, row), config->key_size), row);
	clear_bit(rows->used, at);
	clear_bit(rows->seen, at);
	if (row & EXTRA) {
		frame->extra.series[at] = frame->free_extra;
		frame->free_extra = at;
		frame->free_extra_count++;
	}
	frame->gauges_moved = 1;
	series->flags -= SERIES_ROW;
	if (row_count(series))
		return;
	if (config->only_gauges) {
		series_remove(frame, id);
		return;
	}
	if (config->has_gauges)
		series->flags |= SKEP_SERIES_ROWLESS;
	if (!config->expire_idle)
		series->changed_s = frame->now_s;
	uint32_t due = series->flags & SKEP_SERIES_LIVE ? series->changed_s + config->expire_after_s : 0;
	if (due < frame->next_expiry_s)
		frame->next_expiry_s = due;
}

/* From a series that may not be shown again to the overflow series. */
static uint32_t row_to_overflow(struct skep_frame *frame, uint32_t row)
{
	uint32_t overflow = overflow_series(frame), size = frame->config.key_size;

	if (overflow == NONE)
		return NONE;
	uint8_t *key = malloc(size ? size : 1);
	uint64_t *last = malloc(frame->raws * 8u + 8u);
	uint32_t moved = NONE;
	if (key && last) {
		memcpy(key, key_of(frame, row), size);
		memcpy(last, rows_of(frame, row)->last + (size_t)place(row) * frame->raws, frame->raws * 8u);
		row_detach(frame, row);
		moved = row_attach(frame, key, hash_bytes(key, size), overflow);
		if (moved != NONE) {
			struct rows *rows = rows_of(frame, moved);
			memcpy(rows->last + (size_t)place(moved) * frame->raws, last, frame->raws * 8u);
			set_bit(rows->seen, place(moved));
			frame->folded++;
		}
	}
	free(key);
	free(last);
	return moved;
}

/* ---- values ---- */

static uint64_t read_one(const struct skep_value_op *op, const uint8_t *value, uint32_t i)
{
	const uint8_t *at = value + (op->bits.offset_bits >> 3);
	uint64_t number;

	switch ((enum read)op->read) {
	case READ_U64:
		memcpy(&number, at + (size_t)i * 8, 8);
		return number;
	case READ_U32: {
		uint32_t narrow;
		memcpy(&narrow, at + (size_t)i * 4, 4);
		return narrow;
	}
	case READ_U16: {
		uint16_t narrow;
		memcpy(&narrow, at + (size_t)i * 2, 2);
		return narrow;
	}
	case READ_U8:
		return at[i];
	case READ_F32: {
		float narrow;
		memcpy(&narrow, at + (size_t)i * 4, 4);
		return skep_as_bits((double)narrow);
	}
	case READ_F64:
		memcpy(&number, at + (size_t)i * 8, 8);
		return number;
	case READ_BITS:
	case READ_BITS_SIGNED:
		break;
	}
	number = skep_read_bits(value, op->bits.offset_bits + i * op->bits.size_bits, op->bits.size_bits);
	return op->read == READ_BITS_SIGNED ? skep_sign_extend(number, op->bits.size_bits) : number;
}

/* A number as its cell has it: integers become doubles in F64 cells. */
static uint64_t read_cell(const struct skep_value_op *op, const uint8_t *value, uint32_t i)
{
	uint64_t number = read_one(op, value, i);

	if (op->cell_type != SKEP_CELL_F64 || op->bits.is_float)
		return number;
	return skep_as_bits(op->bits.is_signed ? (double)(int64_t)number : (double)number);
}

static uint64_t add(uint8_t cell_type, uint64_t a, uint64_t b)
{
	return cell_type == SKEP_CELL_F64 ? skep_as_bits(skep_as_double(a) + skep_as_double(b)) : a + b;
}

static void read_row(struct skep_frame *frame, const uint8_t *value, uint32_t slot_stride, uint32_t cpus)
{
	for (uint32_t o = 0; o < frame->config.op_count; o++) {
		const struct skep_value_op *op = &frame->config.ops[o];
		uint64_t *raw = frame->raw + op->raw;
		for (uint32_t i = 0; i < op->count; i++)
			raw[i] = read_cell(op, value, i);
		for (uint32_t cpu = 1; cpu < cpus; cpu++)
			for (uint32_t i = 0; i < op->count; i++)
				raw[i] = add(op->cell_type, raw[i], read_cell(op, value + (size_t)cpu * slot_stride, i));
	}
}

/* What a counter gained; `last` becomes what to compare with next time. */
static uint64_t gain(uint8_t cell_type, uint64_t raw, uint64_t *last)
{
	uint64_t before = *last;

	switch ((enum skep_cell_type)cell_type) {
	case SKEP_CELL_U64:
		*last = raw;
		return raw >= before ? raw - before : raw;
	case SKEP_CELL_I64:
		*last = raw;
		if ((int64_t)raw >= (int64_t)before)
			return raw - before;
		return (int64_t)raw > 0 ? raw : 0;
	case SKEP_CELL_F64: {
		double now = skep_as_double(raw), then = skep_as_double(before);
		if (!isfinite(now)) /* tells nothing, and would spoil the sum for ever */
			return skep_as_bits(0);
		*last = raw;
		if (now >= then)
			return skep_as_bits(now - then);
		return skep_as_bits(now > 0 ? now : 0);
	}
	}
	return 0;
}

static uint32_t slot_cell(const struct skep_value_op *op, const uint8_t *key)
{
	uint64_t slot = skep_read_bits(key, op->slot.offset_bits, op->slot.size_bits);

	if (op->slot.is_signed) {
		slot = skep_sign_extend(slot, op->slot.size_bits);
		if (slot >> 63)
			slot = 0;
	}
	return op->cell + (uint32_t)(slot < op->slot_count ? slot : op->slot_count - 1);
}

/* The raw values in hand differ from the row's last ones. */
static int row_change(struct skep_frame *frame, uint32_t row, const uint8_t *key)
{
	uint32_t id = series_of(frame, row);

	if (!(frame->series[id].flags & SKEP_SERIES_LIVE)) {
		if (budget_take(frame)) {
			frame->series[id].flags |= SKEP_SERIES_LIVE;
			frame->live++;
			uint32_t due = frame->now_s + frame->config.expire_after_s;
			if (due < frame->next_expiry_s)
				frame->next_expiry_s = due;
		} else {
			row = row_to_overflow(frame, row);
			if (row == NONE)
				return SKEP_NO_MEMORY;
			id = series_of(frame, row);
		}
	}
	frame->series[id].changed_s = frame->now_s;
	uint64_t *cells = frame->cells + (size_t)id * frame->config.cells;
	uint64_t *last = rows_of(frame, row)->last + (size_t)place(row) * frame->raws;
	for (uint32_t o = 0; o < frame->config.op_count; o++) {
		const struct skep_value_op *op = &frame->config.ops[o];
		uint64_t *raw = frame->raw + op->raw, *before = last + op->raw;
		if (op->is_gauge) {
			memcpy(before, raw, op->count * 8u);
			frame->gauges_moved = 1;
			continue;
		}
		uint64_t *cell = cells + (op->has_slot ? slot_cell(op, key) : op->cell);
		for (uint32_t i = 0; i < op->count; i++)
			if (raw[i] != before[i])
				cell[i] = add(op->cell_type, cell[i], gain(op->cell_type, raw[i], &before[i]));
	}
	return SKEP_OK;
}

static int row_new(struct skep_frame *frame, const uint8_t *key, uint64_t hash, uint32_t *row)
{
	int failed = render(frame, key);

	if (failed)
		return failed;
	uint32_t id = find_series(frame, hash_bytes(frame->text.data, frame->text.len), frame->text.data,
				  frame->text.len);
	if (id == NONE) {
		if (budget_take(frame)) {
			id = series_add(frame, frame->text.data, frame->text.len, frame->attributes.data,
					frame->attributes.len, 0);
			if (id == NONE)
				budget_give(frame);
		} else {
			id = overflow_series(frame);
			frame->folded += id != NONE;
		}
	}
	*row = id == NONE ? NONE : row_attach(frame, key, hash, id);
	return *row == NONE ? SKEP_NO_MEMORY : SKEP_OK;
}

/* The row at its expected place, or NONE. */
static uint32_t expected_row(struct skep_frame *frame, const uint8_t *key)
{
	uint32_t size = frame->config.key_size, at = frame->next_direct;

	if (at < frame->direct.count && bit(frame->direct.used, at) &&
	    memcmp(frame->direct.keys + (size_t)at * size, key, size) == 0)
		return at;
	at = frame->next_extra;
	if (at < frame->extra.count && bit(frame->extra.used, at) &&
	    memcmp(frame->extra.keys + (size_t)at * size, key, size) == 0)
		return at | EXTRA;
	return NONE;
}

static int all_zero(const uint64_t *raw, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (raw[i])
			return 0;
	return 1;
}

static inline int apply_row(struct skep_frame *frame, const uint8_t *key, const uint8_t *value, uint32_t slot_stride,
			    uint32_t cpus)
{
	uint32_t row = expected_row(frame, key), raws = frame->raws;

	if (frame->raws_are_plain && cpus == 1)
		memcpy(frame->raw, value + (frame->config.ops->bits.offset_bits >> 3), 8);
	else
		read_row(frame, value, slot_stride, cpus);
	if (row == NONE) {
		uint64_t hash = hash_bytes(key, frame->config.key_size);
		row = find_row(frame, hash, key);
		if (row == NONE) {
			if (frame->config.skip_zero_rows && all_zero(frame->raw, raws))
				return SKEP_OK;
			int failed = row_new(frame, key, hash, &row);
			if (failed)
				return failed;
		}
	}
	struct rows *rows = rows_of(frame, row);
	uint32_t at = place(row);
	if (row & EXTRA)
		frame->next_extra = at + 1;
	else
		frame->next_direct = at + 1;
	set_bit(rows->seen, at);
	if (memcmp(frame->raw, rows->last + (size_t)at * raws, raws * 8u))
		return row_change(frame, row, key);
	return SKEP_OK;
}

/* The elements of an array in the value, each under the map's key and its own index. */
static int apply_elements(struct skep_frame *frame, const uint8_t *key, const uint8_t *value, uint32_t slot_stride,
			  uint32_t cpus)
{
	const struct skep_frame_config *config = &frame->config;
	size_t map_key_size = config->key_size - sizeof(uint32_t);

	memcpy(frame->element_key, key, map_key_size);
	for (uint32_t i = 0; i < config->elements; i++) {
		memcpy(frame->element_key + map_key_size, &i, sizeof(i));
		int failed = apply_row(frame, frame->element_key, value + (size_t)i * config->element_stride,
				       slot_stride, cpus);
		if (failed)
			return failed;
	}
	return SKEP_OK;
}

int skep_frame_apply(struct skep_frame *frame, const uint8_t *keys, const uint8_t *values, uint32_t count,
		     uint32_t value_stride, uint32_t cpus)
{
	uint32_t slot_stride = cpus > 1 ? value_stride / cpus : value_stride;
	size_t key_stride = frame->config.key_size;

	if (frame->element_key) {
		key_stride -= sizeof(uint32_t);
		for (uint32_t i = 0; i < count; i++) {
			int failed = apply_elements(frame, keys + i * key_stride, values + (size_t)i * value_stride,
						    slot_stride, cpus);
			if (failed)
				return failed;
		}
		return SKEP_OK;
	}
	for (uint32_t i = 0; i < count; i++) {
		int failed = apply_row(frame, keys + i * key_stride, values + (size_t)i * value_stride, slot_stride,
				       cpus);
		if (failed)
			return failed;
	}
	return SKEP_OK;
}

/* ---- records ---- */

#define SPARE_ROWS 1024u /* extra rows that a frame of records may have beyond one a series */

static void make_record_key(struct skep_frame *frame, const uint8_t *data)
{
	const struct skep_record_config *config = &frame->config.records;
	uint8_t *key = frame->record_key;

	for (uint32_t i = 0; i < config->span_count; i++) {
		const struct skep_key_span *span = &config->spans[i];
		size_t len = span->is_text ? strnlen((const char *)data + span->offset, span->len) : span->len;
		memcpy(key, data + span->offset, len);
		memset(key + len, 0, span->len - len);
		key += span->len;
	}
	for (uint32_t i = 0; i < frame->config.key_size; i++)
		frame->record_key[i] &= config->mask[i];
}

static void forget_extra_rows(struct skep_frame *frame)
{
	for (uint32_t i = 0; i < frame->extra.count; i++)
		if (bit(frame->extra.used, i))
			row_detach(frame, i | EXTRA);
}

/* A label set met for the first time, or again after its row was forgotten. */
static int record_new(struct skep_frame *frame, uint64_t hash, uint32_t *id)
{
	int failed = render(frame, frame->record_key);

	if (failed)
		return failed;
	*id = find_series(frame, hash_bytes(frame->text.data, frame->text.len), frame->text.data, frame->text.len);
	if (*id == NONE) {
		if (!budget_take(frame)) {
			*id = overflow_series(frame);
			frame->folded += *id != NONE;
			return *id == NONE ? SKEP_NO_MEMORY : SKEP_OK;
		}
		*id = series_add(frame, frame->text.data, frame->text.len, frame->attributes.data,
				 frame->attributes.len, 0);
		if (*id == NONE) {
			budget_give(frame);
			return SKEP_NO_MEMORY;
		}
	}
	if (frame->extra.count - frame->free_extra_count >= SPARE_ROWS + frame->series_count)
		forget_extra_rows(frame);
	frame->record_row = row_attach(frame, frame->record_key, hash, *id);
	return frame->record_row == NONE ? SKEP_NO_MEMORY : SKEP_OK;
}

static int number_above(uint8_t cell_type, uint64_t number, uint64_t edge)
{
	switch ((enum skep_cell_type)cell_type) {
	case SKEP_CELL_U64:
		return number > edge;
	case SKEP_CELL_I64:
		return (int64_t)number > (int64_t)edge;
	case SKEP_CELL_F64:
		return skep_as_double(number) > skep_as_double(edge);
	}
	return 0;
}

/* How many edges a number is above. */
static uint32_t slot_of(const struct skep_record_op *op, const uint64_t *edges, uint64_t number)
{
	uint32_t low = 0, high = op->edge_count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		if (number_above(op->value.cell_type, number, edges[op->edge_first + middle]))
			low = middle + 1;
		else
			high = middle;
	}
	return op->below + low;
}

static void count_record(struct skep_frame *frame, uint64_t *cells, const uint8_t *data)
{
	const struct skep_record_config *config = &frame->config.records;

	for (uint32_t o = 0; o < config->op_count; o++) {
		const struct skep_record_op *op = &config->ops[o];
		uint8_t cell_type = op->value.cell_type;
		uint64_t number = 1;

		if (op->has_value) {
			number = read_cell(&op->value, data, 0);
			if (cell_type == SKEP_CELL_F64 && !isfinite(skep_as_double(number)))
				continue; /* tells nothing, and would spoil the sum for ever */
			if (!op->is_histogram && cell_type != SKEP_CELL_U64 && number >> 63)
				continue; /* a counter only grows */
		}
		if (!op->is_histogram) {
			cells[op->value.cell] = add(cell_type, cells[op->value.cell], number);
			continue;
		}
		cells[op->value.cell + slot_of(op, config->edges, number)]++;
		if (op->has_sum)
			cells[op->sum_cell] = add(cell_type, cells[op->sum_cell], number);
	}
}

static int add_record(struct skep_frame *frame, const uint8_t *data)
{
	uint32_t size = frame->config.key_size, id;

	make_record_key(frame, data);
	if (frame->record_row == NONE || memcmp(key_of(frame, frame->record_row), frame->record_key, size)) {
		uint64_t hash = hash_bytes(frame->record_key, size);
		frame->record_row = find_row(frame, hash, frame->record_key);
		if (frame->record_row == NONE) {
			int failed = record_new(frame, hash, &id);
			if (failed)
				return failed;
			goto found;
		}
	}
	id = series_of(frame, frame->record_row);
found:
	frame->series[id].changed_s = frame->now_s;
	count_record(frame, frame->cells + (size_t)id * frame->config.cells, data);
	return SKEP_OK;
}

static void tell_time(struct skep_frame *frame, uint64_t now_ns, int64_t realtime_minus_monotonic_ns)
{
	uint64_t since = now_ns > frame->config.start_ns ? (now_ns - frame->config.start_ns) / 1000000000u : 0;

	frame->now_ns = now_ns;
	frame->now_s = since < NEVER / 4 ? (uint32_t)since : NEVER / 4;
	frame->context.realtime_minus_monotonic_ns = realtime_minus_monotonic_ns;
	/* What a slow label says may change: users are renamed, devices come back as others. */
	if (now_ns - frame->cache_ns > 10000000000u) {
		skep_cache_clear(frame->context.cache);
		frame->cache_ns = now_ns;
	}
}

int skep_frame_add(struct skep_frame *frame, const uint8_t *records, size_t len, uint64_t now_ns,
		   int64_t realtime_minus_monotonic_ns)
{
	tell_time(frame, now_ns, realtime_minus_monotonic_ns);
	while (len) {
		struct skep_record header;
		if (len < sizeof(header))
			return SKEP_FRAMING;
		memcpy(&header, records, sizeof(header));
		uint64_t step = SKEP_RECORD_STEP(header.length);
		if (len < step)
			return SKEP_FRAMING;
		if (header.length >= frame->config.records.record_size) {
			int failed = add_record(frame, records + sizeof(header));
			if (failed)
				return failed;
		}
		records += step;
		len -= step;
	}
	return SKEP_OK;
}

/* ---- the end of a read ---- */

static void forget_gone(struct skep_frame *frame, struct rows *rows, uint32_t flag)
{
	for (size_t word = 0; word < words(rows->count); word++)
		for (uint64_t gone = rows->used[word] & ~rows->seen[word]; gone; gone &= gone - 1)
			row_detach(frame, ((uint32_t)word * 64 + (uint32_t)__builtin_ctzll(gone)) | flag);
}

/* Gauges are not carried: they are added up anew, so that float sums cannot drift. */
static void add_up_gauges(struct skep_frame *frame)
{
	for (uint32_t o = 0; o < frame->config.op_count; o++) {
		const struct skep_value_op *op = &frame->config.ops[o];
		if (!op->is_gauge)
			continue;
		uint64_t *cells = frame->cells + op->cell;
		uint32_t stride = frame->config.cells;
		for (uint32_t i = 0; i < frame->series_count; i++)
			cells[(size_t)i * stride] =
				bit(frame->direct.used, i) ? frame->direct.last[(size_t)i * frame->raws + op->raw] : 0;
		for (uint32_t i = 0; i < frame->extra.count; i++) {
			if (!bit(frame->extra.used, i))
				continue;
			uint64_t *cell = cells + (size_t)frame->extra.series[i] * stride;
			*cell = add(op->cell_type, *cell, frame->extra.last[(size_t)i * frame->raws + op->raw]);
		}
	}
}

static void expire(struct skep_frame *frame)
{
	const struct skep_frame_config *config = &frame->config;
	uint32_t next = NEVER;

	for (uint32_t i = 0; i < frame->series_count; i++) {
		struct skep_series *series = &frame->series[i];
		if (!(series->flags & SERIES_USED))
			continue;
		uint32_t due = series->changed_s + config->expire_after_s;
		int live = series->flags & SKEP_SERIES_LIVE, late = due <= frame->now_s;
		if (!row_count(series)) {
			if (late || !live)
				series_remove(frame, i);
			else if (due < next)
				next = due;
		} else if (live && config->expire_idle && !config->has_gauges && i != frame->overflow) {
			if (late) {
				series->flags &= ~SKEP_SERIES_LIVE;
				frame->live--;
				budget_give(frame);
			} else if (due < next) {
				next = due;
			}
		}
	}
	frame->next_expiry_s = next;
}

static void expire_records(struct skep_frame *frame)
{
	const struct skep_frame_config *config = &frame->config;
	uint32_t next = NEVER;

	if (config->expire_idle) {
		for (uint32_t i = 0; i < frame->extra.count; i++)
			if (bit(frame->extra.used, i) &&
			    frame->series[frame->extra.series[i]].changed_s + config->expire_after_s <= frame->now_s)
				row_detach(frame, i | EXTRA);
		for (uint32_t i = 0; i < frame->series_count; i++) {
			uint32_t due = frame->series[i].changed_s + config->expire_after_s;
			if (!(frame->series[i].flags & SERIES_USED))
				continue;
			if (due <= frame->now_s) {
				if (bit(frame->direct.used, i))
					row_detach(frame, i);
				series_remove(frame, i);
			} else if (due < next) {
				next = due;
			}
		}
	}
	frame->next_expiry_s = next;
}

/* Forget dead label text. Optional: without memory it is tried again at the next read. */
static void compact_arena(struct skep_frame *frame)
{
	uint64_t len = 0, size = frame->arena_len - frame->arena_dead;
	uint8_t *arena = skep_block_resize(NULL, size + 1);

	if (!arena)
		return;
	for (uint32_t i = 0; i < frame->series_count; i++) {
		struct skep_series *series = &frame->series[i];
		if (!(series->flags & SERIES_USED))
			continue;
		uint64_t both = (uint64_t)series->labels_len + series->attrs_len;
		memcpy(arena + len, frame->arena + series->text, both);
		series->text = len;
		len += both;
	}
	skep_block_free(frame->arena);
	frame->arena = arena;
	frame->arena_len = len;
	frame->arena_cap = size + 1;
	frame->arena_dead = 0;
}

static void move_row(struct skep_frame *frame, struct rows *rows, uint32_t from, uint32_t to)
{
	uint32_t size = frame->config.key_size;

	memmove(rows->keys + (size_t)to * size, rows->keys + (size_t)from * size, size);
	memmove(rows->last + (size_t)to * frame->raws, rows->last + (size_t)from * frame->raws, frame->raws * 8u);
	clear_bit(rows->used, from);
	set_bit(rows->used, to);
}

/* Close the gaps that free series and rows leave. Optional, too. */
static void compact_tables(struct skep_frame *frame)
{
	uint32_t *moved = malloc(((size_t)frame->series_count + 1) * 4), kept = 0;
	struct index by_key = {0}, by_text = {0};
	uint32_t rows = frame->by_key.live, series = frame->by_text.live;

	/* All memory first: halfway through, ids would mean two things. */
	if (!moved || index_alloc(&by_key, index_snug(rows)) || index_alloc(&by_text, index_snug(series))) {
		free(moved);
		skep_block_free(by_key.slots);
		skep_block_free(by_text.slots);
		return;
	}
	skep_block_free(frame->by_key.slots);
	skep_block_free(frame->by_text.slots);
	frame->by_key = by_key;
	frame->by_text = by_text;

	for (uint32_t i = 0; i < frame->series_count; i++) {
		moved[i] = kept;
		if (!(frame->series[i].flags & SERIES_USED))
			continue;
		if (i != kept) {
			frame->series[kept] = frame->series[i];
			memcpy(frame->cells + (size_t)kept * frame->config.cells,
			       frame->cells + (size_t)i * frame->config.cells, frame->config.cells * 8u);
			if (bit(frame->direct.used, i))
				move_row(frame, &frame->direct, i, kept);
		}
		kept++;
	}
	frame->series_count = frame->direct.count = kept;
	frame->free_series = NONE;
	frame->free_count = 0;
	if (frame->overflow != NONE)
		frame->overflow = moved[frame->overflow];
	kept = 0;
	for (uint32_t i = 0; i < frame->extra.count; i++) {
		if (!bit(frame->extra.used, i))
			continue;
		frame->extra.series[kept] = moved[frame->extra.series[i]];
		if (i != kept)
			move_row(frame, &frame->extra, i, kept);
		kept++;
	}
	frame->extra.count = kept;
	frame->free_extra = NONE;
	frame->free_extra_count = 0;
	free(moved);

	for (uint32_t i = 0; i < frame->series_count; i++) {
		if (bit(frame->direct.used, i))
			index_put(&frame->by_key, hash_bytes(key_of(frame, i), frame->config.key_size), i);
		if (i != frame->overflow)
			index_put(&frame->by_text, text_hash(frame, i), i);
	}
	for (uint32_t i = 0; i < frame->extra.count; i++)
		index_put(&frame->by_key, hash_bytes(key_of(frame, i | EXTRA), frame->config.key_size), i | EXTRA);
}

static int spare(uint32_t count, uint32_t cap)
{
	return cap - count > 64 + count / 256;
}

static void trim_index(struct skep_frame *frame, struct index *index)
{
	uint32_t snug = index_snug(index->live);

	if (index->cap > snug + snug / 8)
		index_rebuild(frame, index, snug);
}

/* Give back what the arrays have beyond their use; if memory is out, at the next read. */
static void trim(struct skep_frame *frame)
{
	trim_index(frame, &frame->by_key);
	trim_index(frame, &frame->by_text);
	if (spare(frame->series_count, frame->series_cap))
		resize_series(frame, frame->series_count + 1);
	if (spare(frame->extra.count, frame->extra.cap))
		resize_rows(frame, &frame->extra, frame->extra.count + 1);
	if (frame->arena_cap - frame->arena_len > 4096 + frame->arena_len / 256 &&
	    !resize(&frame->arena, frame->arena_len + 1, 1))
		frame->arena_cap = frame->arena_len + 1;
}

void skep_frame_begin(struct skep_frame *frame, uint64_t now_ns, int64_t realtime_minus_monotonic_ns)
{
	tell_time(frame, now_ns, realtime_minus_monotonic_ns);
	frame->next_direct = frame->next_extra = 0;
	if (frame->direct.count)
		memset(frame->direct.seen, 0, words(frame->direct.count) * 8);
	if (frame->extra.count)
		memset(frame->extra.seen, 0, words(frame->extra.count) * 8);
}

void skep_frame_finish(struct skep_frame *frame)
{
	if (frame->config.records.record_size) {
		frame->record_row = NONE;
		if (frame->next_expiry_s <= frame->now_s)
			expire_records(frame);
	} else {
		forget_gone(frame, &frame->direct, 0);
		forget_gone(frame, &frame->extra, EXTRA);
		if (frame->next_expiry_s <= frame->now_s)
			expire(frame);
	}
	if (frame->free_count > 256 + frame->series_count / 2 || frame->free_extra_count > 256 + frame->extra.count / 2)
		compact_tables(frame);
	if (frame->arena_dead > 16384 && frame->arena_dead > frame->arena_len / 4)
		compact_arena(frame);
	trim(frame);
	/* What the next read brings for the first time was not there now: it began after this. */
	frame->series_start_ns = frame->now_ns;
}

/* ---- from outside ---- */

const struct skep_frame_view *skep_frame_see(struct skep_frame *frame)
{
	/* A read that was not finished leaves gauges to add up. */
	if (frame->config.has_gauges && frame->gauges_moved)
		add_up_gauges(frame);
	frame->gauges_moved = 0;
	frame->view = (struct skep_frame_view){
		.version = SKEP_FRAME_VERSION,
		.series_count = frame->series_count,
		.cells_per_series = frame->config.cells,
		.series = frame->series,
		.cells = frame->cells,
		.arena = frame->arena,
	};
	return &frame->view;
}

uint32_t skep_frame_live(const struct skep_frame *frame)
{
	return frame->live;
}

uint64_t skep_frame_rows(const struct skep_frame *frame)
{
	return frame->by_key.live;
}

uint64_t skep_frame_folded(const struct skep_frame *frame)
{
	return frame->folded;
}

void skep_frame_measure(const struct skep_frame *frame, struct skep_frame_memory *memory)
{
	const struct skep_frame_config *config = &frame->config;
	uint64_t row = config->key_size + frame->raws * 8u;
	uint64_t table = 0;

	for (uint32_t i = 0; i < config->labels.count; i++)
		table += config->labels.rules[i].table_count * sizeof(struct skep_table_entry);
	memory->keys = (uint64_t)frame->by_key.live * config->key_size;
	memory->texts = frame->arena_len - frame->arena_dead;
	memory->total = sizeof(*frame) + frame->series_cap * (sizeof(struct skep_series) + config->cells * 8u + row) +
			frame->extra.cap * (row + 4) + 16 * (words(frame->direct.cap) + words(frame->extra.cap)) +
			((uint64_t)frame->by_key.cap + frame->by_text.cap) * 4 + frame->arena_cap + frame->raws * 8u +
			frame->text.cap + frame->attributes.cap + skep_label_context_bytes(&frame->context) +
			config->op_count * sizeof(struct skep_value_op) +
			config->records.op_count * sizeof(struct skep_record_op) +
			config->labels.count * sizeof(struct skep_label_rule) + table;
}

static uint8_t reader_of(const struct skep_value_op *op)
{
	uint32_t size = op->bits.size_bits;

	if (op->bits.is_float)
		return size == 32 ? READ_F32 : READ_F64;
	if (op->bits.offset_bits % 8 == 0 && size == 64)
		return READ_U64;
	if (op->bits.is_signed)
		return READ_BITS_SIGNED;
	if (op->bits.offset_bits % 8 == 0)
		return size == 32 ? READ_U32 : size == 16 ? READ_U16 : size == 8 ? READ_U8 : READ_BITS;
	return READ_BITS;
}

struct skep_frame *skep_frame_new(const struct skep_frame_config *config)
{
	struct skep_frame *frame = calloc(1, sizeof(*frame));

	if (!frame)
		return NULL;
	frame->config = *config;
	frame->raws_are_plain = config->op_count == 1 && !config->ops[0].has_slot;
	for (uint32_t o = 0; o < config->op_count; o++) {
		struct skep_value_op *op = &config->ops[o];
		op->read = reader_of(op);
		op->raw = frame->raws;
		frame->raws += op->count;
		frame->raws_are_plain &= op->count == 1 && op->read == READ_U64 && op->cell_type != SKEP_CELL_F64;
	}
	for (uint32_t o = 0; o < config->records.op_count; o++)
		config->records.ops[o].value.read = reader_of(&config->records.ops[o].value);
	frame->context.resolve = config->resolve;
	frame->context.resolve_context = config->resolve_context;
	frame->free_series = frame->free_extra = frame->overflow = frame->record_row = NONE;
	frame->next_expiry_s = NEVER;
	frame->series_start_ns = config->start_ns;
	frame->raw = calloc(frame->raws + 1, 8);
	frame->record_key = calloc(config->key_size + 1, 1);
	/* Empty label sets have text too: a pointer that may be read. */
	if (config->elements > 1)
		frame->element_key = calloc(config->key_size, 1);
	if (!frame->raw || !frame->record_key || (config->elements > 1 && !frame->element_key) ||
	    skep_buf_reserve(&frame->text, 256) || skep_buf_reserve(&frame->attributes, 256) ||
	    resize_series(frame, 1) || resize_rows(frame, &frame->extra, 1) || arena_ready(frame, 1) ||
	    (skep_labels_ask(&config->labels) && !(frame->context.cache = skep_cache_new()))) {
		memset(&frame->config, 0, sizeof(frame->config));
		skep_frame_free(frame);
		return NULL;
	}
	return frame;
}

static void free_rows(struct rows *rows)
{
	skep_block_free(rows->keys);
	skep_block_free(rows->last);
	skep_block_free(rows->used);
	skep_block_free(rows->seen);
	skep_block_free(rows->series);
}

void skep_frame_free(struct skep_frame *frame)
{
	if (!frame)
		return;
	for (uint32_t i = 0; i < frame->series_count; i++)
		if ((frame->series[i].flags & (SERIES_USED | SKEP_SERIES_LIVE)) == (SERIES_USED | SKEP_SERIES_LIVE) &&
		    i != frame->overflow)
			budget_give(frame);
	free_rows(&frame->direct);
	free_rows(&frame->extra);
	skep_block_free(frame->series);
	skep_block_free(frame->cells);
	skep_block_free(frame->by_key.slots);
	skep_block_free(frame->by_text.slots);
	skep_block_free(frame->arena);
	free(frame->raw);
	free(frame->record_key);
	free(frame->config.records.ops);
	free(frame->config.records.edges);
	free(frame->config.records.spans);
	free(frame->config.records.mask);
	skep_buf_free(&frame->text);
	skep_buf_free(&frame->attributes);
	free(frame->element_key);
	skep_label_context_free(&frame->context);
	free(frame->config.ops);
	skep_labels_free(&frame->config.labels);
	free(frame);
}
