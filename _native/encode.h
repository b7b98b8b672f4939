/* SPDX-License-Identifier: Apache-2.0
 *
 * From a frame's table to Prometheus text and OTLP protobuf. Nothing here
 * allocates, touches Python or depends on the locale: the caller asks how many
 * bytes will be written, gives that much room, and gets back where the writing ended. All of it runs without the GIL.
 */
#ifndef SKEP_ENCODE_H
#define SKEP_ENCODE_H

#include <stddef.h>
#include <stdint.h>

#include "frame.h"

enum skep_kind { SKEP_COUNTER = 0, SKEP_GAUGE = 1, SKEP_HISTOGRAM = 2 };

/* The longest number written: 20 digits and 22 zeros, a sign and a point. */
#define SKEP_NUMBER_MAX 48u

struct skep_slice {
	const char *data;
	size_t len;
};

/* One instrument, compiled: what does not change from series to series. */
struct skep_form {
	uint8_t kind;       /* enum skep_kind */
	uint8_t cell_type;  /* enum skep_cell_type; of a histogram, of its sum (counts are u64) */
	uint8_t has_sum;    /* histogram: one more cell after the counts */
	uint8_t has_count;  /* histogram: says its count beside the last bucket; not OpenMetrics without a sum */
	uint8_t exact;      /* integers times a power of ten: printed as exact decimals */
	int32_t exp10;      /* -22 to 22 when `exact` */
	double factor;      /* otherwise: cell * factor, then ... */
	double power;       /* ... times 10^exp10, or divided by 10^-exp10 when exp10 < 0 */
	uint32_t first_cell;
	uint32_t buckets; /* histogram: counts, the last without an upper edge */
	struct skep_slice name;
	const struct skep_slice *edges; /* histogram: `,le="0.000128"} ` for each count */
	struct skep_slice bounds;       /* histogram: explicit_bounds as its protobuf field, may be empty */
};

/* A live series has a sample of every instrument of its frame, but no gauge while its row is gone.
 *
 * Bytes that the text of all samples takes, exactly; 0 if there is none. Exact because memory that is
 * taken and given back at one size is used again by malloc, while a bound that is cut costs
 * fresh pages at every scrape (measured: 6.0 ms instead of 1.7 for 8 MB).
 */
size_t skep_text_size(const struct skep_frame_view *view, const struct skep_form *form);
/* Write all samples; returns the end. */
char *skep_text_write(const struct skep_frame_view *view, const struct skep_form *form, char *out);

/* A run of series whose data points go into one message. */
struct skep_points {
	uint64_t first;  /* series from here ... */
	uint64_t end;    /* ... to before here */
	uint64_t points; /* of those that have one */
	uint64_t size;   /* bytes, field tags and lengths included */
};

/* Take as many points from `run->first` as fit in `room` bytes, and at least one
 * if `at_least_one`. Returns 0, or -1 if a series' attribute bytes are no
 * KeyValue fields (`run->end` is the series).
 */
int skep_points_fit(const struct skep_frame_view *view, const struct skep_form *form, uint64_t room,
		    int at_least_one, struct skep_points *run);
/* Write a run that skep_points_fit() measured; returns the end. */
uint8_t *skep_points_write(const struct skep_frame_view *view, const struct skep_form *form,
			   const struct skep_points *run, uint64_t time_ns, uint8_t *out);

/* How many of the `len` bytes of length-delimited fields with this one-byte tag
 * fit in `room` (whole fields, at least one if `at_least_one`); counts them.
 * Returns -1 if the bytes are something else.
 */
int64_t skep_fields_fit(const uint8_t *fields, size_t len, uint8_t tag, uint64_t room, int at_least_one,
			uint64_t *count);

/* Numbers as text; each returns the end and writes at most SKEP_NUMBER_MAX. */
char *skep_write_u64(char *out, uint64_t value);
char *skep_write_decimal(char *out, uint64_t magnitude, int negative, int exp10); /* |exp10| <= 22 */
char *skep_write_double(char *out, double value);

/* 10^k for k from SKEP_POWER_MIN, as 128-bit significands rounded up, top bit set.
 * Filled once, by exact integers, before skep_write_double() is called.
 */
#define SKEP_POWER_MIN (-292)
#define SKEP_POWER_MAX 324
extern uint64_t skep_powers[SKEP_POWER_MAX - SKEP_POWER_MIN + 1][2];

#endif
