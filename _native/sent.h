/* SPDX-License-Identifier: Apache-2.0
 *
 * What one receiver was sent of one instrument: which series it knows, and, where
 * sums go out as differences, what each gained that the receiver does not have yet.
 */
#ifndef SKEP_SENT_H
#define SKEP_SENT_H

#include <stddef.h>

#include "frame.h"

/* What is kept beside the names of series. */
enum skep_keep {
	SKEP_KEEP_NAMES = 0,  /* nothing: values are sent from the frame itself */
	SKEP_KEEP_LATEST = 1, /* the last value */
	SKEP_KEEP_GAINS = 2,  /* the last value, and what was gained and not yet taken by the receiver */
};

struct skep_sent_config {
	uint8_t keep;      /* enum skep_keep; of a gauge NAMES or LATEST */
	uint8_t is_gauge;
	uint8_t cell_type; /* enum skep_cell_type of the last cell; those before it are u64 */
	uint32_t cells;    /* of one series */
	uint64_t departed_limit; /* series that left and whose end is still to be told */
	uint64_t seed;
};

struct skep_sent;

/* NULL when memory is out. */
struct skep_sent *skep_sent_new(const struct skep_sent_config *config);
void skep_sent_free(struct skep_sent *sent);

/* One observation: begin, any number of frames and rows, finish. 0, or why not: memory is out, or the bytes of
 * a series are no attributes; what was observed until then holds. `keep_unseen`: series that were not observed may come back as they were. */
enum { SKEP_SENT_NO_MEMORY = -1, SKEP_SENT_DAMAGED = -2 };
void skep_sent_begin(struct skep_sent *sent);
int skep_sent_observe(struct skep_sent *sent, const struct skep_frame_view *view, uint32_t first_cell);
int skep_sent_row(struct skep_sent *sent, const uint8_t *attributes, uint32_t attributes_len, uint64_t start_ns,
		  const uint64_t *cells);
void skep_sent_finish(struct skep_sent *sent, int keep_unseen);

/* Series that `other` shows did not end, whatever becomes of them here. */
void skep_sent_yield(struct skep_sent *sent, struct skep_sent *other);

/* Decide what goes out now; the view then shows it. Until every series of it was accepted or refused
 * no further batch may be made. 0, or -1 when memory is out. */
int skep_sent_batch(struct skep_sent *sent, uint64_t time_ns);
const struct skep_frame_view *skep_sent_see(struct skep_sent *sent);
uint64_t skep_sent_in_batch(const struct skep_sent *sent);

/* The receiver has the series of the batch at places from `first` to before `end`, or will never have them as they
 * were sent: then what they gained goes out with the next batch. */
void skep_sent_accept(struct skep_sent *sent, uint64_t first, uint64_t end);
void skep_sent_refuse(struct skep_sent *sent, uint64_t first, uint64_t end, int maybe_taken);

/* The place behind the first `points` series of the batch from `first` on. */
uint64_t skep_sent_after(const struct skep_sent *sent, uint64_t first, uint64_t end, uint64_t points);

struct skep_sent_counts {
	uint64_t series;   /* remembered */
	uint64_t shown;    /* by the last observation */
	uint64_t forgotten; /* so far, beyond departed_limit */
	uint64_t bytes;
};
struct skep_sent_counts skep_sent_count(const struct skep_sent *sent);

#endif
