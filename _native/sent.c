// SPDX-License-Identifier: Apache-2.0
/*
 * How it works.
 *
 * A series is known by its attribute bytes. An observation goes over a frame and
 * finds each of its series here, by place first and by hash second; what it does not find
 * again has departed. A departed series stays until the receiver has all it gained and the point that ends it.
 *
 * Gains are added up, so that nothing depends on which observation was sent and which was not:
 *
 *     observed value - last observed value --> owed --(batch)--> pending --(accepted)--> gone
 *                                               ^---------------(refused)---'
 *
 * A series with another start, or with a value below its last one, counts anew: it gained all it shows.
 * The caller serialises all calls; none touches Python.
 */

#include "block.h"
#include "hash.h"
#include "sent.h"

#include <math.h>

#define NONE UINT32_MAX

/* Of skep_series.flags: LIVE while a series is in the batch, ENDED beside it if its end is. */
enum {
	SHOWN = 1u,  /* by the last observation */
	KEPT = 2u,   /* may come back as it was: then only what it gained since is new */
	KNOWN = 4u,  /* may be known to the receiver */
	ENDED = 8u,  /* and the receiver knows that it ended */
	GONE = 16u,  /* a free place, until the table is compacted */
	FIRST = 32u, /* its value in the batch is what makes it known */
};

struct skep_sent {
	struct skep_sent_config config;
	struct skep_frame_view view;
	struct skep_series *series; /* start_ns: of the batch, or with NAMES and LATEST of the series */
	uint8_t *state;
	uint64_t *latest;  /* LATEST, GAINS */
	uint64_t *owed;    /* GAINS; so are the following */
	uint64_t *pending; /* only while there is a batch */
	uint64_t *origin_ns; /* the series' own start */
	uint64_t *since_ns;  /* start of what is owed */
	uint32_t count;
	uint32_t cap;
	uint32_t gone;
	uint32_t next;       /* where the next series is expected */
	uint32_t generation; /* of the observation, kept in series.changed_s */
	uint64_t in_batch;
	uint64_t shown;
	uint64_t forgotten;
	uint32_t *slots; /* place + 1, 0 is empty; of free places too */
	uint32_t slot_count;
	uint8_t *arena;
	uint64_t arena_len;
	uint64_t arena_cap;
};

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

/* ---- numbers ---- */

static uint8_t type_of(const struct skep_sent *sent, uint32_t cell)
{
	return cell + 1 == sent->config.cells ? sent->config.cell_type : SKEP_CELL_U64;
}

static uint64_t sum(uint8_t cell_type, uint64_t a, uint64_t b)
{
	return cell_type == SKEP_CELL_F64 ? skep_as_bits(skep_as_double(a) + skep_as_double(b)) : a + b;
}

static int fell(uint8_t cell_type, uint64_t now, uint64_t before)
{
	switch (cell_type) {
	case SKEP_CELL_F64:
		return !(skep_as_double(now) >= skep_as_double(before));
	case SKEP_CELL_I64:
		return (int64_t)now < (int64_t)before;
	default:
		return now < before;
	}
}

static uint64_t difference(uint8_t cell_type, uint64_t now, uint64_t before)
{
	double gained;

	if (cell_type != SKEP_CELL_F64)
		return now - before;
	gained = skep_as_double(now) - skep_as_double(before);
	return skep_as_bits(isfinite(gained) ? gained : 0);
}

/* ---- the table of names ---- */

static const uint8_t *name_of(const struct skep_sent *sent, uint32_t at)
{
	return sent->arena + sent->series[at].text;
}

static int is_named(const struct skep_sent *sent, uint32_t at, const uint8_t *name, uint32_t len)
{
	return !(sent->state[at] & GONE) && sent->series[at].attrs_len == len && !memcmp(name_of(sent, at), name, len);
}

static uint64_t hash_of(const struct skep_sent *sent, const uint8_t *name, uint32_t len)
{
	return skep_hash(sent->config.seed, name, len);
}

static uint32_t slot_at(const struct skep_sent *sent, uint64_t hash)
{
	return (uint32_t)(((hash >> 32) * sent->slot_count) >> 32);
}

static void index_put(struct skep_sent *sent, uint32_t at)
{
	uint32_t slot = slot_at(sent, hash_of(sent, name_of(sent, at), sent->series[at].attrs_len));

	while (sent->slots[slot])
		if (++slot == sent->slot_count)
			slot = 0;
	sent->slots[slot] = at + 1;
}

static int index_rebuild(struct skep_sent *sent, uint32_t slot_count)
{
	uint32_t *slots = skep_block_resize(NULL, (size_t)slot_count * 4);

	if (!slots)
		return -1;
	memset(slots, 0, (size_t)slot_count * 4);
	skep_block_free(sent->slots);
	sent->slots = slots;
	sent->slot_count = slot_count;
	for (uint32_t i = 0; i < sent->count; i++)
		if (!(sent->state[i] & GONE))
			index_put(sent, i);
	return 0;
}

/* A series of this name that this observation has not seen yet, or NONE. */
static uint32_t find(struct skep_sent *sent, const uint8_t *name, uint32_t len)
{
	if (sent->next < sent->count && sent->series[sent->next].changed_s != sent->generation &&
	    is_named(sent, sent->next, name, len))
		return sent->next++;
	if (!sent->slot_count)
		return NONE;
	for (uint32_t slot = slot_at(sent, hash_of(sent, name, len)); sent->slots[slot];) {
		uint32_t at = sent->slots[slot] - 1;

		if (sent->series[at].changed_s != sent->generation && is_named(sent, at, name, len)) {
			sent->next = at + 1;
			return at;
		}
		if (++slot == sent->slot_count)
			slot = 0;
	}
	return NONE;
}

static int grow(struct skep_sent *sent)
{
	uint32_t cap = sent->cap < 1024 ? sent->cap * 2 + 16 : sent->cap + sent->cap / 8;
	size_t row = sent->config.cells;

	if (cap >= NONE / 2)
		return -1;
	if (resize(&sent->series, cap, sizeof(struct skep_series)) || resize(&sent->state, cap, 1))
		return -1;
	if (sent->config.keep != SKEP_KEEP_NAMES && resize(&sent->latest, cap * row, 8))
		return -1;
	if (sent->config.keep == SKEP_KEEP_GAINS &&
	    (resize(&sent->owed, cap * row, 8) || resize(&sent->origin_ns, cap, 8) || resize(&sent->since_ns, cap, 8)))
		return -1;
	sent->cap = cap;
	return 0;
}

/* Whether bytes are fields of KeyValue, as frames keep them. Asked once a series: damage found only when it is
 * encoded would come back at every instant. */
static int are_attributes(const uint8_t *at, uint32_t len)
{
	const uint8_t *end = at + len;

	while (at < end) {
		uint64_t size = 0;
		unsigned shift = 0;

		if (*at++ != 0x3a)
			return 0;
		do {
			if (at == end || shift > 28)
				return 0;
			size |= (uint64_t)(*at & 0x7f) << shift;
			shift += 7;
		} while (*at++ & 0x80);
		if (size > (uint64_t)(end - at))
			return 0;
		at += size;
	}
	return 1;
}

static uint32_t add(struct skep_sent *sent, const uint8_t *name, uint32_t len, uint64_t start_ns)
{
	uint32_t at = sent->count, row = sent->config.cells;

	if (sent->count == sent->cap && grow(sent))
		return NONE;
	if (((uint64_t)sent->count + 1) * 4 > (uint64_t)sent->slot_count * 3 &&
	    index_rebuild(sent, sent->slot_count ? sent->slot_count * 2 : 64))
		return NONE;
	if (sent->arena_cap - sent->arena_len < len) {
		uint64_t cap = sent->arena_cap + sent->arena_cap / 8 + 4096 + len;

		if (resize(&sent->arena, cap, 1))
			return NONE;
		sent->arena_cap = cap;
	}
	if (len)
		memcpy(sent->arena + sent->arena_len, name, len);
	sent->series[at] = (struct skep_series){ .start_ns = start_ns, .text = sent->arena_len, .attrs_len = len };
	sent->arena_len += len;
	sent->state[at] = 0;
	if (sent->config.keep != SKEP_KEEP_NAMES)
		memset(sent->latest + (size_t)at * row, 0, row * 8u);
	if (sent->config.keep == SKEP_KEEP_GAINS) {
		memset(sent->owed + (size_t)at * row, 0, row * 8u);
		sent->origin_ns[at] = sent->since_ns[at] = start_ns;
	}
	sent->count++;
	sent->next = sent->count;
	index_put(sent, at);
	return at;
}

static void forget(struct skep_sent *sent, uint32_t at)
{
	sent->state[at] = GONE;
	sent->gone++;
}

/* Close the gaps of free places; not while a batch counts on places. If memory is out, at the next observation. */
static void compact(struct skep_sent *sent)
{
	size_t row = sent->config.cells * 8u;
	uint32_t kept = 0;
	uint64_t len = 0;

	for (uint32_t i = 0; i < sent->count; i++) {
		if (sent->state[i] & GONE)
			continue;
		/* Names lie in the order of their series, so that each moves down or stays. */
		memmove(sent->arena + len, name_of(sent, i), sent->series[i].attrs_len);
		sent->series[i].text = len;
		len += sent->series[i].attrs_len;
		if (i != kept) {
			sent->series[kept] = sent->series[i];
			sent->state[kept] = sent->state[i];
			if (sent->latest)
				memcpy(sent->latest + kept * (row / 8), sent->latest + i * (row / 8), row);
			if (sent->owed) {
				memcpy(sent->owed + kept * (row / 8), sent->owed + i * (row / 8), row);
				sent->origin_ns[kept] = sent->origin_ns[i];
				sent->since_ns[kept] = sent->since_ns[i];
			}
		}
		kept++;
	}
	sent->count = kept;
	sent->gone = 0;
	sent->arena_len = len;
	/* Slots name places: the old ones must not be used even if there is no memory for smaller ones. */
	if (index_rebuild(sent, kept * 2 + 64)) {
		memset(sent->slots, 0, (size_t)sent->slot_count * 4);
		for (uint32_t i = 0; i < kept; i++)
			index_put(sent, i);
	}
}

/* ---- observations ---- */

void skep_sent_begin(struct skep_sent *sent)
{
	if (!sent->in_batch && sent->gone > 64 + sent->count / 4)
		compact(sent);
	sent->generation++;
	sent->next = 0;
}

static int owes(const struct skep_sent *sent, uint32_t at)
{
	const uint64_t *owed;

	if (sent->config.keep != SKEP_KEEP_GAINS)
		return 0;
	owed = sent->owed + (size_t)at * sent->config.cells;
	for (uint32_t i = 0; i < sent->config.cells; i++)
		if (owed[i] && !(type_of(sent, i) == SKEP_CELL_F64 && skep_as_double(owed[i]) == 0))
			return 1;
	return 0;
}

static void update(struct skep_sent *sent, uint32_t at, uint64_t start_ns, const uint64_t *cells)
{
	uint32_t row = sent->config.cells;
	uint64_t *latest, *owed;
	int anew;

	if (sent->config.keep != SKEP_KEEP_GAINS) {
		sent->series[at].start_ns = start_ns;
		if (sent->config.keep == SKEP_KEEP_LATEST)
			memcpy(sent->latest + (size_t)at * row, cells, row * 8u);
		return;
	}
	latest = sent->latest + (size_t)at * row;
	owed = sent->owed + (size_t)at * row;
	anew = sent->origin_ns[at] != start_ns;
	if (anew && start_ns > sent->since_ns[at] && !owes(sent, at))
		sent->since_ns[at] = start_ns;
	for (uint32_t i = 0; i < row; i++)
		anew |= fell(type_of(sent, i), cells[i], latest[i]);
	if (!anew && !memcmp(latest, cells, row * 8u))
		return;
	for (uint32_t i = 0; i < row; i++) {
		uint8_t type = type_of(sent, i);

		owed[i] = sum(type, owed[i], difference(type, cells[i], anew ? 0 : latest[i]));
		latest[i] = cells[i];
	}
	sent->origin_ns[at] = start_ns;
}

static int see(struct skep_sent *sent, const uint8_t *name, uint32_t len, uint64_t start_ns, const uint64_t *cells,
	       int shown)
{
	uint32_t at = find(sent, name, len);

	if (at == NONE) {
		if (!are_attributes(name, len))
			return SKEP_SENT_DAMAGED;
		at = add(sent, name, len, start_ns);
		if (at == NONE)
			return SKEP_SENT_NO_MEMORY;
	}
	sent->series[at].changed_s = sent->generation;
	/* One that was hidden since the last observation may have gained before that. */
	sent->state[at] = (uint8_t)((sent->state[at] & ~SHOWN) | KEPT | (shown ? SHOWN : 0));
	/* Its values go out with this very observation. */
	if (sent->config.keep == SKEP_KEEP_NAMES)
		sent->state[at] |= KNOWN;
	update(sent, at, start_ns, cells);
	return 0;
}

int skep_sent_observe(struct skep_sent *sent, const struct skep_frame_view *view, uint32_t first_cell)
{
	const uint64_t *cells = view->cells + first_cell;

	for (uint32_t i = 0; i < view->series_count; i++, cells += view->cells_per_series) {
		const struct skep_series *series = &view->series[i];
		int shown = skep_series_shows(series, sent->config.is_gauge);

		if (!shown && !(sent->config.keep == SKEP_KEEP_GAINS && series->flags & SKEP_SERIES_KEPT))
			continue;
		int failed = see(sent, view->arena + series->text + series->labels_len, series->attrs_len, series->start_ns,
				 cells, shown);
		if (failed)
			return failed;
	}
	return 0;
}

int skep_sent_row(struct skep_sent *sent, const uint8_t *attributes, uint32_t attributes_len, uint64_t start_ns,
		  const uint64_t *cells)
{
	return see(sent, attributes, attributes_len, start_ns, cells, 1);
}

/* Whether a series that left has nothing more to be told. */
static int is_settled(const struct skep_sent *sent, uint32_t at)
{
	return !owes(sent, at) && (sent->state[at] & (KNOWN | ENDED)) != KNOWN;
}

void skep_sent_finish(struct skep_sent *sent, int keep_unseen)
{
	uint64_t departed = 0;

	sent->shown = 0;
	for (uint32_t i = 0; i < sent->count; i++) {
		uint8_t *state = &sent->state[i];

		if (*state & GONE)
			continue;
		if (sent->series[i].changed_s != sent->generation)
			*state &= keep_unseen ? (uint8_t)~SHOWN : (uint8_t)~(SHOWN | KEPT);
		if (*state & SHOWN) {
			sent->shown++;
			continue;
		}
		if (sent->series[i].flags)
			continue; /* in a batch */
		if (is_settled(sent, i)) {
			if (!(sent->config.keep == SKEP_KEEP_GAINS && *state & KEPT))
				forget(sent, i);
		} else if (++departed > sent->config.departed_limit) {
			forget(sent, i);
			sent->forgotten++;
		}
	}
}

void skep_sent_yield(struct skep_sent *sent, struct skep_sent *other)
{
	for (uint32_t i = 0; i < sent->count; i++) {
		if (sent->state[i] & (GONE | SHOWN) || !other->slot_count)
			continue;
		const uint8_t *name = name_of(sent, i);
		uint32_t len = sent->series[i].attrs_len;

		for (uint32_t slot = slot_at(other, hash_of(other, name, len)); other->slots[slot];) {
			uint32_t at = other->slots[slot] - 1;

			if (other->state[at] & SHOWN && is_named(other, at, name, len)) {
				sent->state[i] |= ENDED;
				break;
			}
			if (++slot == other->slot_count)
				slot = 0;
		}
	}
}

/* ---- batches ---- */

int skep_sent_batch(struct skep_sent *sent, uint64_t time_ns)
{
	size_t cells = (size_t)sent->count * sent->config.cells;

	if (sent->config.keep == SKEP_KEEP_GAINS && cells) {
		if (resize(&sent->pending, cells, 8))
			return -1;
		memcpy(sent->pending, sent->owed, cells * 8);
	}
	for (uint32_t i = 0; i < sent->count; i++) {
		struct skep_series *series = &sent->series[i];
		uint8_t *state = &sent->state[i];
		int value = sent->config.keep != SKEP_KEEP_NAMES && (*state & SHOWN || (!(*state & GONE) && owes(sent, i)));

		if (!value && (*state & (KNOWN | ENDED | GONE | SHOWN)) != KNOWN)
			continue;
		if (sent->config.keep == SKEP_KEEP_GAINS) {
			series->start_ns = sent->since_ns[i];
			sent->since_ns[i] = time_ns;
		}
		if (value)
			*state = (uint8_t)((*state & ~ENDED) | KNOWN | ((*state & (KNOWN | ENDED)) == KNOWN ? 0 : FIRST));
		series->flags = SKEP_SERIES_LIVE | (value ? 0 : SKEP_SERIES_ENDED);
		sent->in_batch++;
	}
	if (sent->config.keep == SKEP_KEEP_GAINS && cells)
		memset(sent->owed, 0, cells * 8);
	return 0;
}

const struct skep_frame_view *skep_sent_see(struct skep_sent *sent)
{
	sent->view = (struct skep_frame_view){
		.version = SKEP_FRAME_VERSION,
		.series_count = sent->count,
		.cells_per_series = sent->config.cells,
		.series = sent->series,
		.cells = sent->config.keep == SKEP_KEEP_GAINS ? sent->pending : sent->latest,
		.arena = sent->arena,
	};
	return &sent->view;
}

uint64_t skep_sent_in_batch(const struct skep_sent *sent)
{
	return sent->in_batch;
}

static void leave_batch(struct skep_sent *sent, uint32_t at)
{
	sent->series[at].flags = 0;
	sent->state[at] &= (uint8_t)~FIRST;
	if (!--sent->in_batch) {
		skep_block_free(sent->pending);
		sent->pending = NULL;
	}
}

void skep_sent_accept(struct skep_sent *sent, uint64_t first, uint64_t end)
{
	for (uint64_t i = first; i < end && i < sent->count; i++) {
		uint32_t at = (uint32_t)i, flags = sent->series[at].flags;

		if (!flags)
			continue;
		if (flags & SKEP_SERIES_ENDED) {
			sent->state[at] |= ENDED;
			/* It may have come back meanwhile, and even left again. */
			if (sent->state[at] & SHOWN || owes(sent, at))
				sent->state[at] &= (uint8_t)~(KNOWN | ENDED);
			else if (!(sent->config.keep == SKEP_KEEP_GAINS && sent->state[at] & KEPT))
				forget(sent, at);
		}
		leave_batch(sent, at);
	}
}

void skep_sent_refuse(struct skep_sent *sent, uint64_t first, uint64_t end, int maybe_taken)
{
	uint32_t row = sent->config.cells;

	for (uint64_t i = first; i < end && i < sent->count; i++) {
		uint32_t at = (uint32_t)i, flags = sent->series[at].flags;

		if (!flags)
			continue;
		if (sent->config.keep == SKEP_KEEP_GAINS) {
			for (uint32_t cell = 0; cell < row && !(flags & SKEP_SERIES_ENDED); cell++) {
				size_t place = (size_t)at * row + cell;

				sent->owed[place] = sum(type_of(sent, cell), sent->owed[place], sent->pending[place]);
			}
			sent->since_ns[at] = sent->series[at].start_ns;
		}
		if (sent->state[at] & FIRST && !maybe_taken)
			sent->state[at] &= (uint8_t)~KNOWN;
		leave_batch(sent, at);
	}
}

uint64_t skep_sent_after(const struct skep_sent *sent, uint64_t first, uint64_t end, uint64_t points)
{
	for (; first < end && points; first++)
		points -= sent->series[first].flags != 0;
	return first;
}

struct skep_sent_counts skep_sent_count(const struct skep_sent *sent)
{
	uint64_t row = sizeof(struct skep_series) + 1, cells = sent->config.cells * 8u;

	if (sent->latest)
		row += cells;
	if (sent->owed)
		row += cells + 16;
	return (struct skep_sent_counts){
		.series = sent->count - sent->gone,
		.shown = sent->shown,
		.forgotten = sent->forgotten,
		.bytes = sizeof(*sent) + sent->cap * row + sent->slot_count * 4u + sent->arena_cap +
			 (sent->pending ? sent->count * cells : 0),
	};
}

struct skep_sent *skep_sent_new(const struct skep_sent_config *config)
{
	struct skep_sent *sent = calloc(1, sizeof(*sent));

	if (!sent)
		return NULL;
	sent->config = *config;
	/* A name may be empty: a pointer that may be read. */
	if (resize(&sent->arena, 1, 1)) {
		free(sent);
		return NULL;
	}
	sent->arena_cap = 1;
	return sent;
}

void skep_sent_free(struct skep_sent *sent)
{
	if (!sent)
		return;
	skep_block_free(sent->series);
	skep_block_free(sent->state);
	skep_block_free(sent->latest);
	skep_block_free(sent->owed);
	skep_block_free(sent->pending);
	skep_block_free(sent->origin_ns);
	skep_block_free(sent->since_ns);
	skep_block_free(sent->slots);
	skep_block_free(sent->arena);
	free(sent);
}
