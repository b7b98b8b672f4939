/* SPDX-License-Identifier: Apache-2.0 */
#include "encode.h"

#include <math.h>
#include <string.h>

static const char digit_pairs[] = "0001020304050607080910111213141516171819"
				  "2021222324252627282930313233343536373839"
				  "4041424344454647484950515253545556575859"
				  "6061626364656667686970717273747576777879"
				  "8081828384858687888990919293949596979899";

static inline char *put(char *out, const void *data, size_t len)
{
	memcpy(out, data, len);
	return out + len;
}

static inline unsigned decimal_digits(uint64_t value)
{
	unsigned digits = 1;

	for (; value >= 10000; value /= 10000)
		digits += 4;
	return digits + (value >= 10) + (value >= 100) + (value >= 1000);
}

static void put_digits(char *out, uint64_t value, unsigned digits)
{
	char *at = out + digits;

	while (value >= 100) {
		at -= 2;
		memcpy(at, digit_pairs + 2 * (value % 100), 2);
		value /= 100;
	}
	if (value >= 10)
		memcpy(at - 2, digit_pairs + 2 * value, 2);
	else
		at[-1] = (char)('0' + value);
}

char *skep_write_u64(char *out, uint64_t value)
{
	unsigned digits = decimal_digits(value);

	put_digits(out, value, digits);
	return out + digits;
}

/* `value` without a point is digits; the point goes `places` before the end. */
static char *put_fraction(char *out, uint64_t value, unsigned places)
{
	unsigned digits;

	while (places && value % 10 == 0) {
		value /= 10;
		places--;
	}
	digits = decimal_digits(value);
	if (!places) {
		put_digits(out, value, digits);
		return out + digits;
	}
	if (digits > places) {
		put_digits(out, value, digits);
		out += digits - places;
		memmove(out + 1, out, places);
		*out = '.';
		return out + 1 + places;
	}
	*out++ = '0';
	*out++ = '.';
	memset(out, '0', places - digits);
	put_digits(out + places - digits, value, digits);
	return out + places;
}

char *skep_write_decimal(char *out, uint64_t magnitude, int negative, int exp10)
{
	if (!magnitude) {
		*out++ = '0';
		return out;
	}
	if (negative)
		*out++ = '-';
	if (exp10 < 0)
		return put_fraction(out, magnitude, (unsigned)-exp10);
	out = skep_write_u64(out, magnitude);
	memset(out, '0', (size_t)exp10);
	return out + exp10;
}

/* Shortest decimal that reads back as the same double, and of those the nearest:
 * R. Giulietti, "The Schubfach way to render doubles" (2020). A double c * 2^q
 * owns the interval of reals that round to it; the decimal grid 10^k with k the
 * largest such that the interval spans at least one step has one or two points
 * inside. Interval ends are compared as integers scaled by 4 * 10^-k, computed
 * from a 128-bit power of ten and rounded to odd, which keeps every comparison exact.
 */
uint64_t skep_powers[SKEP_POWER_MAX - SKEP_POWER_MIN + 1][2];

struct decimal {
	uint64_t digits;
	int exponent;
};

static uint64_t scaled_to_odd(const uint64_t power[2], uint64_t value)
{
	unsigned __int128 low = (unsigned __int128)power[1] * value;
	unsigned __int128 high = (unsigned __int128)power[0] * value + (uint64_t)(low >> 64);

	return (uint64_t)(high >> 64) | ((uint64_t)high > 1);
}

static struct decimal shortest(uint64_t fraction, int biased)
{
	uint64_t c = biased ? fraction | UINT64_C(1) << 52 : fraction;
	int q = (biased ? biased : 1) - 1075;

	if (q <= 0 && q > -53 && !(c & ((UINT64_C(1) << -q) - 1)))
		return (struct decimal){ c >> -q, 0 };

	/* At a power of two the neighbour below is only half as far away. */
	int narrow_below = !fraction && biased > 1;
	int k = (q * 1262611 - (narrow_below ? 524031 : 0)) >> 22; /* floor(log10(2^q or 3/4 2^q)) */
	int shift = q + ((-k * 1741647) >> 19) + 1;                  /* q + floor(log2(10^-k)) + 1, 1 to 4 */
	const uint64_t *power = skep_powers[-k - SKEP_POWER_MIN];
	uint64_t odd = c & 1; /* ties go to even: an odd double does not own its interval's ends */
	uint64_t lower = scaled_to_odd(power, (4 * c - 2 + (uint64_t)narrow_below) << shift) + odd;
	uint64_t value = scaled_to_odd(power, (4 * c) << shift);
	uint64_t upper = scaled_to_odd(power, (4 * c + 2) << shift) - odd;
	uint64_t s = value / 4;

	if (s >= 10) {
		uint64_t tens = s / 10;
		int below = lower <= 40 * tens, above = 40 * tens + 40 <= upper;

		if (below != above)
			return (struct decimal){ tens + (uint64_t)above, k + 1 };
	}
	int below = lower <= 4 * s, above = 4 * s + 4 <= upper;

	if (below != above)
		return (struct decimal){ s + (uint64_t)above, k };
	uint64_t middle = 4 * s + 2;

	return (struct decimal){ s + (value > middle || (value == middle && (s & 1))), k };
}

char *skep_write_double(char *out, double value)
{
	uint64_t bits;

	memcpy(&bits, &value, sizeof(bits));
	if (isnan(value))
		return put(out, "NaN", 3);
	if (isinf(value))
		return put(out, value < 0 ? "-Inf" : "+Inf", 4);
	if (bits >> 63)
		*out++ = '-';
	bits &= UINT64_MAX >> 1;
	if (!bits) {
		*out++ = '0';
		return out;
	}

	struct decimal decimal = shortest(bits & ((UINT64_C(1) << 52) - 1), (int)(bits >> 52));

	while (decimal.digits % 10 == 0) {
		decimal.digits /= 10;
		decimal.exponent++;
	}
	unsigned digits = decimal_digits(decimal.digits);
	int scientific = decimal.exponent + (int)digits - 1;

	/* Plain from 0.0001 to below 1e21; beyond, digits and exponent. */
	if (scientific >= -4 && scientific < 21) {
		if (decimal.exponent < 0)
			return put_fraction(out, decimal.digits, (unsigned)-decimal.exponent);
		put_digits(out, decimal.digits, digits);
		memset(out + digits, '0', (size_t)decimal.exponent);
		return out + digits + decimal.exponent;
	}
	put_digits(out + 1, decimal.digits, digits);
	out[0] = out[1];
	if (digits > 1) {
		out[1] = '.';
		out += digits + 1;
	} else {
		out++;
	}
	*out++ = 'e';
	*out++ = scientific < 0 ? '-' : '+';
	unsigned magnitude = (unsigned)(scientific < 0 ? -scientific : scientific);

	if (magnitude < 10)
		*out++ = '0';
	return skep_write_u64(out, magnitude);
}

static double cell_double(const struct skep_form *form, uint64_t cell)
{
	double value;

	switch (form->cell_type) {
	case SKEP_CELL_F64:
		memcpy(&value, &cell, sizeof(value));
		break;
	case SKEP_CELL_I64:
		value = (double)(int64_t)cell;
		break;
	default:
		value = (double)cell;
	}
	value *= form->factor;
	return form->exp10 < 0 ? value / form->power : value * form->power;
}

static char *put_cell(char *out, const struct skep_form *form, uint64_t cell)
{
	int negative;

	if (!form->exact)
		return skep_write_double(out, cell_double(form, cell));
	negative = form->cell_type == SKEP_CELL_I64 && cell >> 63;
	return skep_write_decimal(out, negative ? -cell : cell, negative, form->exp10);
}

static inline int is_shown(const struct skep_form *form, const struct skep_series *series)
{
	return skep_series_shows(series, form->kind == SKEP_GAUGE);
}

static size_t cell_length(const struct skep_form *form, uint64_t cell)
{
	char scratch[SKEP_NUMBER_MAX];

	if (form->exact && !form->exp10 && !(form->cell_type == SKEP_CELL_I64 && cell >> 63))
		return decimal_digits(cell);
	return (size_t)(put_cell(scratch, form, cell) - scratch);
}

static size_t histogram_digits(const struct skep_form *form, const uint64_t *cells)
{
	size_t digits = 0;
	uint64_t count = 0;

	for (uint32_t i = 0; i < form->buckets; i++) {
		count += cells[i];
		digits += decimal_digits(count);
	}
	if (form->has_sum)
		digits += cell_length(form, cells[form->buckets]);
	return digits + (form->has_count ? decimal_digits(count) : 0); /* once more, as _count */
}

size_t skep_text_size(const struct skep_frame_view *view, const struct skep_form *form)
{
	const uint64_t *cells = view->cells + form->first_cell;
	size_t shown = 0, unlabelled = 0, labels = 0, digits = 0, per_series, braced;

	for (uint32_t i = 0; i < view->series_count; i++, cells += view->cells_per_series) {
		if (!is_shown(form, &view->series[i]))
			continue;
		shown++;
		unlabelled += !view->series[i].labels_len;
		labels += view->series[i].labels_len;
		digits += form->kind == SKEP_HISTOGRAM ? histogram_digits(form, cells) : cell_length(form, *cells);
	}
	/* Name, braces, space and line end; without labels neither braces nor an edge's comma. */
	braced = form->kind == SKEP_HISTOGRAM ? (size_t)form->has_count + form->has_sum : 1;
	per_series = braced * (form->name.len + 4);
	if (form->kind == SKEP_HISTOGRAM) {
		per_series += (form->has_count ? sizeof("_count") - 1 : 0) + (form->has_sum ? sizeof("_sum") - 1 : 0);
		per_series += form->buckets * (form->name.len + sizeof("_bucket{\n") - 1);
		for (uint32_t i = 0; i < form->buckets; i++)
			per_series += form->edges[i].len;
	}
	return shown * per_series + labels * (form->buckets + braced) + digits -
	       unlabelled * (2 * braced + form->buckets);
}

static char *put_name(char *out, const struct skep_form *form, const char *suffix, size_t suffix_len,
		      const char *labels, size_t labels_len)
{
	out = put(out, form->name.data, form->name.len);
	out = put(out, suffix, suffix_len);
	if (labels_len) {
		*out++ = '{';
		out = put(out, labels, labels_len);
		*out++ = '}';
	}
	*out++ = ' ';
	return out;
}

static char *put_histogram(char *out, const struct skep_form *form, const char *labels, size_t labels_len,
			   const uint64_t *cells)
{
	uint64_t count = 0;

	for (uint32_t i = 0; i < form->buckets; i++) {
		const struct skep_slice *edge = &form->edges[i];
		size_t comma = labels_len == 0; /* without labels, the edge's leading comma is left out */

		count += cells[i];
		out = put(out, form->name.data, form->name.len);
		out = put(out, "_bucket{", 8);
		out = put(out, labels, labels_len);
		out = put(out, edge->data + comma, edge->len - comma);
		out = skep_write_u64(out, count);
		*out++ = '\n';
	}
	if (form->has_sum) {
		out = put_name(out, form, "_sum", 4, labels, labels_len);
		out = put_cell(out, form, cells[form->buckets]);
		*out++ = '\n';
	}
	if (form->has_count) {
		out = put_name(out, form, "_count", 6, labels, labels_len);
		out = skep_write_u64(out, count);
		*out++ = '\n';
	}
	return out;
}

char *skep_text_write(const struct skep_frame_view *view, const struct skep_form *form, char *out)
{
	const uint64_t *cells = view->cells + form->first_cell;

	for (uint32_t i = 0; i < view->series_count; i++, cells += view->cells_per_series) {
		const struct skep_series *series = &view->series[i];
		const char *labels = (const char *)view->arena + series->text;

		if (!is_shown(form, series))
			continue;
		if (form->kind == SKEP_HISTOGRAM) {
			out = put_histogram(out, form, labels, series->labels_len, cells);
			continue;
		}
		out = put_name(out, form, "", 0, labels, series->labels_len);
		out = put_cell(out, form, *cells);
		*out++ = '\n';
	}
	return out;
}

/* OTLP: field numbers and types of opentelemetry/proto/metrics/v1/metrics.proto. */

enum {
	DATA_POINTS = 1 << 3 | 2,
	START_TIME = 2 << 3 | 1,
	TIME = 3 << 3 | 1,
	NUMBER_AS_DOUBLE = 4 << 3 | 1,
	NUMBER_AS_INT = 6 << 3 | 1,
	NUMBER_ATTRIBUTES = 7 << 3 | 2,
	NUMBER_FLAGS = 8 << 3 | 0,
	HISTOGRAM_COUNT = 4 << 3 | 1,
	HISTOGRAM_SUM = 5 << 3 | 1,
	HISTOGRAM_BUCKET_COUNTS = 6 << 3 | 2,
	HISTOGRAM_ATTRIBUTES = 9 << 3 | 2,
	HISTOGRAM_FLAGS = 10 << 3 | 0,
};

#define NO_RECORDED_VALUE 1u /* DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK */
#define FLAGS_FIELD 2u

#define FIXED64_FIELD 9u

static unsigned varint_size(uint64_t value)
{
	unsigned size = 1;

	for (; value >= 0x80; value >>= 7)
		size++;
	return size;
}

static uint8_t *put_varint(uint8_t *out, uint64_t value)
{
	for (; value >= 0x80; value >>= 7)
		*out++ = (uint8_t)(value | 0x80);
	*out++ = (uint8_t)value;
	return out;
}

static uint8_t *put_little64(uint8_t *out, uint64_t value)
{
	for (unsigned i = 0; i < 8; i++)
		*out++ = (uint8_t)(value >> (8 * i));
	return out;
}

static uint8_t *put_fixed64(uint8_t *out, uint8_t tag, uint64_t value)
{
	*out++ = tag;
	return put_little64(out, value);
}

static uint8_t *put_double(uint8_t *out, uint8_t tag, double value)
{
	uint64_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return put_fixed64(out, tag, bits);
}

/* Where the length-delimited field at `at` ends, or NULL if there is no whole one with this tag. */
static const uint8_t *field_end(const uint8_t *at, const uint8_t *end, uint8_t tag)
{
	uint64_t len = 0;
	unsigned shift = 0;

	if (at == end || *at++ != tag)
		return NULL;
	for (;;) {
		if (at == end || shift > 28)
			return NULL;
		len |= (uint64_t)(*at & 0x7f) << shift;
		shift += 7;
		if (!(*at++ & 0x80))
			break;
	}
	return len <= (uint64_t)(end - at) ? at + len : NULL;
}

int64_t skep_fields_fit(const uint8_t *fields, size_t len, uint8_t tag, uint64_t room, int at_least_one,
			uint64_t *count)
{
	const uint8_t *at = fields, *end = fields + len;

	*count = 0;
	while (at < end) {
		const uint8_t *next = field_end(at, end, tag);

		if (!next)
			return -1;
		if ((uint64_t)(next - fields) > room && (*count || !at_least_one))
			break;
		at = next;
		++*count;
	}
	return at - fields;
}

static const uint8_t *attributes(const struct skep_frame_view *view, const struct skep_series *series)
{
	return view->arena + series->text + series->labels_len;
}

/* An ended histogram keeps its shape, all zeros: a reader ends the series of each bucket by it. An ended
 * number has no value. */
static uint64_t point_size(const struct skep_form *form, const struct skep_series *series)
{
	int ended = !!(series->flags & SKEP_SERIES_ENDED);
	uint64_t size = FIXED64_FIELD + series->attrs_len + (ended ? FLAGS_FIELD : 0), counts;

	if (form->kind != SKEP_GAUGE)
		size += FIXED64_FIELD;
	if (form->kind != SKEP_HISTOGRAM)
		return size + (ended ? 0 : FIXED64_FIELD);
	counts = 8 * (uint64_t)form->buckets;
	return size + FIXED64_FIELD + (form->has_sum ? FIXED64_FIELD : 0) + 1 + varint_size(counts) + counts +
	       form->bounds.len;
}

int skep_points_fit(const struct skep_frame_view *view, const struct skep_form *form, uint64_t room,
		    int at_least_one, struct skep_points *run)
{
	run->points = 0;
	run->size = 0;
	for (run->end = run->first; run->end < view->series_count; run->end++) {
		const struct skep_series *series = &view->series[run->end];
		uint64_t size, ignored;

		if (!is_shown(form, series))
			continue;
		size = point_size(form, series);
		size += 1 + varint_size(size);
		if (run->size + size > room && (run->points || !at_least_one))
			break;
		if (skep_fields_fit(attributes(view, series), series->attrs_len, NUMBER_ATTRIBUTES, UINT64_MAX, 0,
				    &ignored) < 0)
			return -1;
		run->points++;
		run->size += size;
	}
	return 0;
}

static uint8_t *put_number(uint8_t *out, const struct skep_form *form, uint64_t cell)
{
	int integral = form->exact && form->exp10 == 0;

	/* as_int is signed: what does not fit is a double. */
	if (integral && (form->cell_type == SKEP_CELL_I64 || cell <= INT64_MAX))
		return put_fixed64(out, NUMBER_AS_INT, cell);
	return put_double(out, NUMBER_AS_DOUBLE, cell_double(form, cell));
}

/* `cells` is NULL for a histogram that ended. */
static uint8_t *put_buckets(uint8_t *out, const struct skep_form *form, const uint64_t *cells)
{
	uint64_t count = 0;

	for (uint32_t i = 0; cells && i < form->buckets; i++)
		count += cells[i];
	out = put_fixed64(out, HISTOGRAM_COUNT, count);
	if (form->has_sum)
		out = put_double(out, HISTOGRAM_SUM, cells ? cell_double(form, cells[form->buckets]) : 0);
	*out++ = HISTOGRAM_BUCKET_COUNTS;
	out = put_varint(out, 8 * (uint64_t)form->buckets);
	for (uint32_t i = 0; i < form->buckets; i++)
		out = put_little64(out, cells ? cells[i] : 0);
	memcpy(out, form->bounds.data, form->bounds.len);
	return out + form->bounds.len;
}

uint8_t *skep_points_write(const struct skep_frame_view *view, const struct skep_form *form,
			   const struct skep_points *run, uint64_t time_ns, uint8_t *out)
{
	for (uint64_t i = run->first; i < run->end; i++) {
		const struct skep_series *series = &view->series[i];
		const uint8_t *at = attributes(view, series), *end = at + series->attrs_len;
		const uint64_t *cells = NULL;

		if (!is_shown(form, series))
			continue;
		if (!(series->flags & SKEP_SERIES_ENDED))
			cells = view->cells + i * view->cells_per_series + form->first_cell;
		*out++ = DATA_POINTS;
		out = put_varint(out, point_size(form, series));
		if (form->kind != SKEP_GAUGE)
			out = put_fixed64(out, START_TIME, series->start_ns);
		out = put_fixed64(out, TIME, time_ns);
		if (form->kind != SKEP_HISTOGRAM) {
			if (cells)
				out = put_number(out, form, *cells);
			memcpy(out, at, series->attrs_len);
			out += series->attrs_len;
		} else {
			out = put_buckets(out, form, cells);
			/* The frame keeps attributes as a number's field; a histogram's has another tag of the same size. */
			while (at < end) {
				const uint8_t *next = field_end(at, end, NUMBER_ATTRIBUTES);

				*out++ = HISTOGRAM_ATTRIBUTES;
				memcpy(out, at + 1, (size_t)(next - at) - 1);
				out += next - at - 1;
				at = next;
			}
		}
		if (!cells) {
			*out++ = form->kind == SKEP_HISTOGRAM ? HISTOGRAM_FLAGS : NUMBER_FLAGS;
			*out++ = NO_RECORDED_VALUE;
		}
	}
	return out;
}
