// SPDX-License-Identifier: Apache-2.0

#include "stream.h"

#include <inttypes.h>
#include <stdio.h>

enum { FRAMING = -3 };

/* A token is a thousand millionth of an event, so that a rate per second refills whole tokens every nanosecond. */
#define EVENT_TOKENS 1000000000ull
#define MOST_PER_S 1000000000ull

struct skep_stream {
	struct skep_stream_config config;
	struct skep_label_context context;
	struct skep_buf record;
	struct skep_buf values; /* of an array */
	uint64_t tokens;
	uint64_t filled_ns;
	uint64_t cache_ns;
	uint64_t place; /* of the next good record among the sample_one_in of which the first is let through */
	uint32_t value_chars;
	uint32_t attributes_limit;
	uint32_t attributes; /* of the record in hand */
	uint32_t left_out;   /* beyond the limit */
};

/* A bucket that holds one second's worth; a clock that steps back refills nothing. */
static void refill(struct skep_stream *stream, uint64_t now_ns)
{
	uint64_t rate = stream->config.events_per_s, full = rate * EVENT_TOKENS;
	uint64_t elapsed = now_ns > stream->filled_ns ? now_ns - stream->filled_ns : 0;

	stream->filled_ns = now_ns;
	if (elapsed >= 1000000000u || full - stream->tokens <= elapsed * rate)
		stream->tokens = full;
	else
		stream->tokens += elapsed * rate;
}

/* Whether sampling leaves a record out. Asked before the bucket, which is for what would be exported. */
static int passed_over(struct skep_stream *stream)
{
	uint64_t place = stream->place;

	stream->place = (place + 1) % stream->config.sample_one_in;
	return place != 0;
}

static uint8_t *write_fixed64(uint8_t *at, uint8_t tag, uint64_t value)
{
	*at++ = tag;
	memcpy(at, &value, 8);
	return at + 8;
}

/* opentelemetry/proto/logs/v1/logs.proto: ScopeLogs {log_records = 2}, LogRecord {time_unix_nano = 1,
 * severity_number = 2, attributes = 6, dropped_attributes_count = 7, observed_time_unix_nano = 11, event_name = 12}. */
static int open_otlp(struct skep_stream *stream, uint64_t time_ns)
{
	const struct skep_stream_config *config = &stream->config;
	uint8_t time[9];

	stream->record.len = 0;
	stream->attributes = stream->left_out = 0;
	write_fixed64(time, 0x09, time_ns);
	if (skep_buf_put(&stream->record, time, sizeof(time)))
		return -1;
	return skep_buf_put(&stream->record, config->labels.pool + config->severity.offset, config->severity.len);
}

/* Whether there is room for one more attribute; counts it either way. */
static int is_room(struct skep_stream *stream)
{
	if (stream->attributes == stream->attributes_limit) {
		stream->left_out++;
		return 0;
	}
	stream->attributes++;
	return 1;
}

/* Bytes of the first characters of a valid UTF-8 text. */
static size_t prefix_len(const uint8_t *text, size_t len, uint32_t chars)
{
	if (len <= chars)
		return len;
	for (size_t i = 0; i < len; i++)
		if ((text[i] & 0xc0) != 0x80 && chars-- == 0)
			return i;
	return len;
}

static int put_otlp(struct skep_stream *stream, const struct skep_label_rule *rule, const struct skep_value *value)
{
	struct skep_value shown = *value;

	if (!is_room(stream))
		return 0;
	if (shown.kind == SKEP_VALUE_TEXT)
		shown.len = prefix_len(shown.text, shown.len, stream->value_chars);
	return skep_write_otlp(&stream->config.labels, rule, &shown, 0x32, &stream->record);
}

static int close_otlp(struct skep_stream *stream, uint64_t now_ns, struct skep_buf *out)
{
	const struct skep_stream_config *config = &stream->config;
	struct skep_buf *record = &stream->record;
	uint8_t observed[9], head[11], left_out[11];
	size_t left_out_len = 0;

	if (stream->left_out) {
		left_out[0] = 0x38;
		left_out_len = (size_t)(skep_varint_write(left_out + 1, stream->left_out) - left_out);
	}

	write_fixed64(observed, 0x59, now_ns);
	if (skep_buf_put(record, config->labels.pool + config->labels.constant_otlp.offset,
			 config->labels.constant_otlp.len) ||
	    skep_buf_put(record, left_out, left_out_len) ||
	    skep_buf_put(record, observed, sizeof(observed)) ||
	    skep_buf_put(record, config->labels.pool + config->event_name.offset, config->event_name.len))
		return -1;
	head[0] = 0x12;
	size_t head_len = (size_t)(skep_varint_write(head + 1, record->len) - head);
	if (skep_buf_reserve(out, head_len + record->len))
		return -1;
	memcpy(out->data + out->len, head, head_len);
	memcpy(out->data + out->len + head_len, record->data, record->len);
	out->len += head_len + record->len;
	return 0;
}

static int open_json(struct skep_stream *stream, uint64_t time_ns, struct skep_buf *out)
{
	const struct skep_stream_config *config = &stream->config;
	char time[SKEP_RFC3339_ROOM];
	size_t len = skep_rfc3339((int64_t)time_ns, time);

	if (skep_buf_put(out, "{\"time\":\"", 9) || skep_buf_put(out, time, len))
		return -1;
	return skep_buf_put(out, config->labels.pool + config->json_name.offset, config->json_name.len);
}

static int close_json(struct skep_stream *stream, int some, struct skep_buf *out)
{
	const struct skep_labels *labels = &stream->config.labels;

	if (labels->constant_json.len && some && skep_buf_byte(out, ','))
		return -1;
	if (skep_buf_put(out, labels->pool + labels->constant_json.offset, labels->constant_json.len))
		return -1;
	return skep_buf_put(out, "}}\n", 3);
}

static uint64_t element_at(const struct skep_stream_config *config, const uint8_t *data, uint32_t i)
{
	uint64_t number = 0;

	memcpy(&number, data + config->tail_offset + (size_t)i * config->tail_size, config->tail_size);
	return config->tail.decoder == SKEP_INT ? skep_sign_extend(number, config->tail_size * 8u) : number;
}

static int is_beyond_int64(const struct skep_stream_config *config, uint64_t number)
{
	return config->tail.decoder == SKEP_UINT && number >> 63;
}

static size_t put_decimal(const struct skep_stream_config *config, uint64_t number, char *room)
{
	return (size_t)(config->tail.decoder == SKEP_INT ? sprintf(room, "%" PRId64, (int64_t)number) :
							   sprintf(room, "%" PRIu64, number));
}

/* opentelemetry/proto/common/v1/common.proto: AnyValue {string_value = 1, int_value = 3, array_value = 5},
 * ArrayValue {values = 1}. */
static int write_array_otlp(struct skep_stream *stream, const uint8_t *data, uint32_t count)
{
	const struct skep_stream_config *config = &stream->config;
	struct skep_buf *values = &stream->values, *out = &stream->record;
	char room[24];

	values->len = 0;
	for (uint32_t i = 0; i < count; i++) {
		uint64_t number = element_at(config, data, i);
		uint8_t *at;

		if (skep_buf_reserve(values, 40))
			return -1;
		at = values->data + values->len;
		*at++ = 0x0a;
		if (is_beyond_int64(config, number)) {
			size_t len = put_decimal(config, number, room);
			*at++ = (uint8_t)(len + 2);
			*at++ = 0x0a;
			*at++ = (uint8_t)len;
			memcpy(at, room, len);
			at += len;
		} else {
			*at++ = (uint8_t)(1 + skep_varint_len(number));
			*at++ = 0x18;
			at = skep_varint_write(at, number);
		}
		values->len = (size_t)(at - values->data);
	}
	size_t any_len = 1 + skep_varint_len(values->len) + values->len;
	size_t pair_len = config->tail.otlp.len + 1 + skep_varint_len(any_len) + any_len;
	if (skep_buf_reserve(out, pair_len + 12))
		return -1;
	uint8_t *at = out->data + out->len;
	*at++ = 0x32;
	at = skep_varint_write(at, pair_len);
	memcpy(at, config->labels.pool + config->tail.otlp.offset, config->tail.otlp.len);
	at += config->tail.otlp.len;
	*at++ = 0x12;
	at = skep_varint_write(at, any_len);
	*at++ = 0x2a;
	at = skep_varint_write(at, values->len);
	memcpy(at, values->data, values->len);
	out->len = (size_t)(at + values->len - out->data);
	return 0;
}

static int write_array_json(struct skep_stream *stream, const uint8_t *data, uint32_t count, struct skep_buf *out)
{
	const struct skep_stream_config *config = &stream->config;

	if (skep_buf_put(out, config->labels.pool + config->tail.json.offset, config->tail.json.len))
		return -1;
	for (uint32_t i = 0; i < count; i++) {
		char room[25];
		room[0] = i ? ',' : '[';
		if (skep_buf_put(out, room, 1 + put_decimal(config, element_at(config, data, i), room + 1)))
			return -1;
	}
	return skep_buf_byte(out, ']');
}

/* The flexible array at the end of a record, as one attribute unless it is empty. */
static int decode_tail(struct skep_stream *stream, const uint8_t *data, uint32_t length, struct skep_buf *otlp,
		       struct skep_buf *json, int *some)
{
	const struct skep_stream_config *config = &stream->config;
	uint32_t count = (length - config->tail_offset) / config->tail_size;
	struct skep_label_rule rule = config->tail;
	struct skep_value value;

	if (!count)
		return 0;
	if (rule.decoder == SKEP_UINT || rule.decoder == SKEP_INT) {
		if (otlp && is_room(stream) && write_array_otlp(stream, data, count))
			return -1;
		if (json && ((*some && skep_buf_byte(json, ',')) || write_array_json(stream, data, count, json)))
			return -1;
		*some = 1;
		return 0;
	}
	rule.size_bits = count * config->tail_size * 8;
	int failed = skep_label_value(&config->labels, &rule, data, &stream->context, &value);
	if (failed || !value.len)
		return failed;
	if (otlp && put_otlp(stream, &rule, &value))
		return -1;
	if (json && ((*some && skep_buf_byte(json, ',')) || skep_write_json(&config->labels, &rule, &value, json)))
		return -1;
	*some = 1;
	return 0;
}

static int decode(struct skep_stream *stream, const uint8_t *data, uint32_t length, uint64_t now_ns,
		  struct skep_buf *otlp, struct skep_buf *json)
{
	const struct skep_stream_config *config = &stream->config;
	uint64_t time_ns = now_ns;
	struct skep_value value;
	int failed, some = 0;

	if (config->time_size_bits) {
		uint64_t ktime = skep_read_bits(data, config->time_offset_bits, config->time_size_bits);
		uint64_t wall = ktime + (uint64_t)stream->context.realtime_minus_monotonic_ns;
		if (ktime && ktime <= INT64_MAX && wall <= INT64_MAX) /* else it is no time */
			time_ns = wall;
	}
	if ((otlp && open_otlp(stream, time_ns)) || (json && open_json(stream, time_ns, json)))
		return -1;
	for (uint32_t i = 0; i < config->labels.count; i++) {
		const struct skep_label_rule *rule = &config->labels.rules[i];
		failed = skep_label_value(&config->labels, rule, data, &stream->context, &value);
		if (failed)
			return failed;
		if (!value.len)
			continue;
		if (otlp && put_otlp(stream, rule, &value))
			return -1;
		if (json && ((some && skep_buf_byte(json, ',')) || skep_write_json(&config->labels, rule, &value, json)))
			return -1;
		some = 1;
	}
	if (config->tail_size) {
		failed = decode_tail(stream, data, length, otlp, json, &some);
		if (failed)
			return failed;
	}
	if ((otlp && close_otlp(stream, now_ns, otlp)) || (json && close_json(stream, some, json)))
		return -1;
	return 0;
}

int skep_stream_decode(struct skep_stream *stream, const uint8_t *records, size_t len, uint64_t now_ns,
		       int64_t realtime_minus_monotonic_ns, struct skep_buf *otlp, struct skep_buf *json,
		       struct skep_stream_counts *counts)
{
	stream->context.realtime_minus_monotonic_ns = realtime_minus_monotonic_ns;
	if (now_ns - stream->cache_ns > 10000000000u) {
		skep_cache_clear(stream->context.cache);
		stream->cache_ns = now_ns;
	}
	refill(stream, now_ns);
	/* What is measured anyway is not also an event that nobody receives. */
	int events = stream->config.enabled && (otlp || json || !stream->config.measured);
	while (len) {
		struct skep_record header;
		if (len < sizeof(header))
			return FRAMING;
		memcpy(&header, records, sizeof(header));
		uint64_t step = SKEP_RECORD_STEP(header.length);
		if (len < step)
			return FRAMING;
		counts->received++;
		if (!events && !stream->config.measured) {
			counts->dropped_disabled++;
		} else if (header.length < stream->config.record_size) {
			counts->failed++;
		} else if (!events) {
			counts->measured++;
		} else if (passed_over(stream)) {
			counts->dropped_sample++;
		} else if (stream->tokens < EVENT_TOKENS) {
			counts->dropped_rate++;
		} else {
			size_t otlp_len = otlp ? otlp->len : 0, json_len = json ? json->len : 0;
			int failed = decode(stream, records + sizeof(header), header.length, now_ns, otlp, json);
			if (failed) {
				/* Half a record must not be left behind. */
				if (otlp)
					otlp->len = otlp_len;
				if (json)
					json->len = json_len;
				return failed;
			}
			stream->tokens -= EVENT_TOKENS;
			counts->exported++;
		}
		records += step;
		len -= step;
	}
	return 0;
}

struct skep_stream *skep_stream_new(const struct skep_stream_config *config)
{
	struct skep_stream *stream = calloc(1, sizeof(*stream));

	if (!stream)
		return NULL;
	if (skep_labels_ask(&config->labels) && !(stream->context.cache = skep_cache_new())) {
		free(stream);
		return NULL;
	}
	stream->config = *config;
	skep_stream_limit(stream, UINT32_MAX, UINT32_MAX);
	if (stream->config.events_per_s > MOST_PER_S)
		stream->config.events_per_s = MOST_PER_S;
	if (!stream->config.sample_one_in)
		stream->config.sample_one_in = 1;
	stream->tokens = stream->config.events_per_s * EVENT_TOKENS;
	stream->context.resolve = config->resolve;
	stream->context.resolve_context = config->resolve_context;
	return stream;
}

void skep_stream_limit(struct skep_stream *stream, uint32_t value_chars, uint32_t attributes)
{
	stream->value_chars = value_chars;
	stream->attributes_limit = attributes;
}

void skep_stream_free(struct skep_stream *stream)
{
	if (!stream)
		return;
	skep_buf_free(&stream->record);
	skep_buf_free(&stream->values);
	skep_label_context_free(&stream->context);
	skep_labels_free(&stream->config.labels);
	free(stream);
}
