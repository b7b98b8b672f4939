/* SPDX-License-Identifier: Apache-2.0
 *
 * What the frame (collect) shows its readers (export): a table of series, each a
 * row of 64-bit cells, with its label text and OTLP attribute bytes rendered
 * once when the series was first seen. The capsule named SKEP_FRAME_VIEW holds a
 * pointer to struct skep_frame_view; it is valid while the frame's owner holds
 * the frame's lock, and readers change nothing.
 */
#ifndef SKEP_FRAME_H
#define SKEP_FRAME_H

#include <stdint.h>
#include <string.h>

#define SKEP_FRAME_VIEW "skep.frame_view"
#define SKEP_FRAME_VERSION 1u

enum skep_cell_type { SKEP_CELL_U64 = 0, SKEP_CELL_I64 = 1, SKEP_CELL_F64 = 2 };

/* A SKEP_CELL_F64 is a double's bits. */
static inline double skep_as_double(uint64_t bits)
{
	double number;

	memcpy(&number, &bits, sizeof(number));
	return number;
}

static inline uint64_t skep_as_bits(double number)
{
	uint64_t bits;

	memcpy(&bits, &number, sizeof(bits));
	return bits;
}

/* A series that is not live keeps its place (its row may come back) and is not exported.
 * ROWLESS is only set in frames that have a gauge beside other instruments: the series'
 * row is gone, so its gauges are not exported (their cells are 0) while its counters and
 * histograms still are. ENDED is set by no frame, but in views that `sent.c` makes: a live series with
 * it is written as the last of its kind, with the flag that says so and without a value. KEPT
 * is set in frames where a place is in use: that of a series, live or not, and not a free one.
 * Bits not named here belong to the frame. */
enum {
	SKEP_SERIES_LIVE = 1u,
	SKEP_SERIES_OVERFLOW = 2u,
	SKEP_SERIES_ROWLESS = 4u,
	SKEP_SERIES_ENDED = 8u,
	SKEP_SERIES_KEPT = 0x80u,
};

struct skep_series {
	uint64_t start_ns;   /* CLOCK_REALTIME ns: the count began here */
	uint64_t text;       /* offset in the arena: label text, then attribute bytes */
	uint32_t labels_len; /* bytes of `name="value",…`, escaped, no braces, may be 0 */
	uint32_t attrs_len;  /* bytes of repeated KeyValue, each with tag 0x3a (field 7) and length */
	uint32_t changed_s;  /* seconds after the frame's start of the last change, or of its row's leaving */
	uint32_t flags;
};

/* Whether a series has a sample of an instrument. */
static inline int skep_series_shows(const struct skep_series *series, int is_gauge)
{
	if (is_gauge)
		return (series->flags & (SKEP_SERIES_LIVE | SKEP_SERIES_ROWLESS)) == SKEP_SERIES_LIVE;
	return series->flags & SKEP_SERIES_LIVE;
}

struct skep_frame_view {
	uint32_t version;          /* SKEP_FRAME_VERSION */
	uint32_t series_count;     /* entries in `series`, live or not */
	uint32_t cells_per_series; /* of all the frame's instruments together */
	uint32_t reserved;
	const struct skep_series *series;
	const uint64_t *cells; /* series i owns cells[i * cells_per_series ...] */
	const uint8_t *arena;
};

#endif
