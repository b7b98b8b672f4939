// SPDX-License-Identifier: Apache-2.0

#include "labels.h"

#include <math.h>
#include <stdio.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rules are read as little-endian BPF writes them");

/* ---- numbers as text ---- */

static size_t decimal(uint64_t value, char *out)
{
	char reversed[20];
	size_t len = 0;

	do {
		reversed[len++] = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	for (size_t i = 0; i < len; i++)
		out[i] = reversed[len - 1 - i];
	return len;
}

static size_t signed_decimal(uint64_t value, int is_signed, char *out)
{
	if (!is_signed || !(value >> 63))
		return decimal(value, out);
	*out = '-';
	return 1 + decimal(0 - value, out + 1);
}

static size_t decimal_128(unsigned __int128 value, int is_signed, char *out)
{
	char reversed[40];
	size_t len = 0, sign = 0;

	if (is_signed && (value >> 127)) {
		value = 0 - value;
		out[sign++] = '-';
	}
	do {
		reversed[len++] = (char)('0' + (int)(value % 10));
		value /= 10;
	} while (value);
	for (size_t i = 0; i < len; i++)
		out[sign + i] = reversed[len - 1 - i];
	return sign + len;
}

static const char HEX[] = "0123456789abcdef";

static size_t hex_128(unsigned __int128 value, char *out)
{
	char reversed[32];
	size_t len = 0;

	do {
		reversed[len++] = HEX[(int)(value & 15)];
		value >>= 4;
	} while (value);
	out[0] = '0';
	out[1] = 'x';
	for (size_t i = 0; i < len; i++)
		out[2 + i] = reversed[len - 1 - i];
	return 2 + len;
}

/* The fewest digits that read back as the same number. */
static size_t float_text(const uint8_t *data, uint32_t size_bits, char *out, size_t room)
{
	double number;
	float narrow = 0;

	if (size_bits == 32) {
		memcpy(&narrow, data, 4);
		number = (double)narrow;
	} else {
		memcpy(&number, data, 8);
	}
	if (isnan(number))
		return (size_t)snprintf(out, room, "NaN");
	if (isinf(number))
		return (size_t)snprintf(out, room, number > 0 ? "+Inf" : "-Inf");
	for (int digits = 1; digits <= 17; digits++) {
		int len = snprintf(out, room, "%.*g", digits, number);
		if (size_bits == 32 ? strtof(out, NULL) == narrow : strtod(out, NULL) == number)
			return (size_t)len;
	}
	return strlen(out);
}

/* Nanoseconds as decimal seconds without trailing zeros. */
static size_t duration_text(uint64_t value, int is_signed, char *out)
{
	size_t len = 0;

	if (is_signed && (value >> 63)) {
		out[len++] = '-';
		value = 0 - value;
	}
	len += decimal(value / 1000000000u, out + len);
	uint32_t rest = (uint32_t)(value % 1000000000u);
	if (rest) {
		out[len++] = '.';
		for (uint32_t unit = 100000000u; rest; unit /= 10) {
			out[len++] = (char)('0' + rest / unit);
			rest %= unit;
		}
	}
	return len;
}

static char *two_digits(char *out, uint32_t value)
{
	out[0] = (char)('0' + value / 10 % 10);
	out[1] = (char)('0' + value % 10);
	return out + 2;
}

size_t skep_rfc3339(int64_t unix_ns, char *out)
{
	int64_t seconds = unix_ns / 1000000000, ns = unix_ns % 1000000000;
	if (ns < 0) {
		ns += 1000000000;
		seconds--;
	}
	int64_t days = seconds / 86400, second = seconds % 86400;
	if (second < 0) {
		second += 86400;
		days--;
	}
	/* Proleptic Gregorian calendar in eras of 400 years; years begin in March, so
	 * that the leap day is a year's last. 719468 days lie between 0000-03-01 and 1970-01-01. */
	int64_t day_number = days + 719468;
	int64_t era = (day_number >= 0 ? day_number : day_number - 146096) / 146097;
	uint32_t day_of_era = (uint32_t)(day_number - era * 146097);
	uint32_t year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
	uint32_t day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
	uint32_t month_from_march = (5 * day_of_year + 2) / 153;
	uint32_t day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
	uint32_t month = month_from_march < 10 ? month_from_march + 3 : month_from_march - 9;
	uint32_t year = (uint32_t)(era * 400 + year_of_era + (month <= 2));
	char *at = out;

	at = two_digits(two_digits(at, year / 100), year % 100);
	*at++ = '-';
	at = two_digits(at, month);
	*at++ = '-';
	at = two_digits(at, day);
	*at++ = 'T';
	at = two_digits(at, (uint32_t)second / 3600);
	*at++ = ':';
	at = two_digits(at, (uint32_t)second / 60 % 60);
	*at++ = ':';
	at = two_digits(at, (uint32_t)second % 60);
	*at++ = '.';
	for (int64_t unit = 100000000; unit; unit /= 10)
		*at++ = (char)('0' + ns / unit % 10);
	*at++ = 'Z';
	return (size_t)(at - out);
}

/* ---- addresses ---- */

static size_t ipv4_text(const uint8_t *address, char *out)
{
	size_t len = 0;

	for (int i = 0; i < 4; i++) {
		if (i)
			out[len++] = '.';
		len += decimal(address[i], out + len);
	}
	return len;
}

static int is_mapped_ipv4(const uint8_t *address)
{
	static const uint8_t prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

	return memcmp(address, prefix, sizeof(prefix)) == 0;
}

/* RFC 5952: the longest run of two or more zero groups is "::", the first of equals. */
static size_t ipv6_text(const uint8_t *address, char *out)
{
	int run_start = -1, run_len = 1;
	uint32_t groups[8];
	size_t len = 0;

	if (is_mapped_ipv4(address)) {
		memcpy(out, "::ffff:", 7);
		return 7 + ipv4_text(address + 12, out + 7);
	}
	for (int i = 0; i < 8; i++)
		groups[i] = (uint32_t)address[2 * i] << 8 | address[2 * i + 1];
	for (int i = 0; i < 8;) {
		int end = i;
		while (end < 8 && !groups[end])
			end++;
		if (end - i > run_len) {
			run_start = i;
			run_len = end - i;
		}
		i = end + 1;
	}
	for (int i = 0; i < 8;) {
		if (i == run_start) {
			out[len++] = ':';
			out[len++] = ':';
			i += run_len;
			continue;
		}
		if (i && i != run_start + run_len)
			out[len++] = ':';
		int shift = 12;
		while (shift && !(groups[i] >> shift))
			shift -= 4;
		for (; shift >= 0; shift -= 4)
			out[len++] = HEX[groups[i] >> shift & 15];
		i++;
	}
	return len;
}

/* ---- text ---- */

/*
 * How many bytes the well-formed sequence at `in` has, or minus how many bytes one
 * U+FFFD stands for: the longest prefix of a well-formed sequence, at least one byte
 * (Unicode, "U+FFFD Substitution of Maximal Subparts"; what Python's "replace" does).
 */
static int utf8_sequence(const uint8_t *in, size_t len)
{
	uint8_t first = in[0], low = 0x80, high = 0xbf;
	int follow;

	if (first < 0x80)
		return 1;
	if (first >= 0xc2 && first <= 0xdf)
		follow = 1;
	else if (first >= 0xe0 && first <= 0xef)
		follow = 2;
	else if (first >= 0xf0 && first <= 0xf4)
		follow = 3;
	else
		return -1;
	if (first == 0xe0)
		low = 0xa0; /* no overlong forms */
	else if (first == 0xed)
		high = 0x9f; /* no surrogates */
	else if (first == 0xf0)
		low = 0x90;
	else if (first == 0xf4)
		high = 0x8f; /* nothing above U+10FFFF */
	for (int i = 1; i <= follow; i++) {
		if ((size_t)i >= len || in[i] < low || in[i] > high)
			return -i;
		low = 0x80;
		high = 0xbf;
	}
	return follow + 1;
}

static int put_clean(struct skep_buf *out, const uint8_t *in, size_t len)
{
	while (len) {
		size_t run = 0;
		int step = 0;
		while (run < len && (step = utf8_sequence(in + run, len - run)) > 0)
			run += (size_t)step;
		if (skep_buf_put(out, in, run))
			return -1;
		in += run;
		len -= run;
		if (len) {
			if (skep_buf_put(out, "\xef\xbf\xbd", 3))
				return -1;
			in += -step;
			len -= (size_t)-step;
		}
	}
	return 0;
}

static int put_hex(struct skep_buf *out, const uint8_t *in, size_t len)
{
	if (skep_buf_reserve(out, 2 * len))
		return -1;
	for (size_t i = 0; i < len; i++) {
		out->data[out->len++] = (uint8_t)HEX[in[i] >> 4];
		out->data[out->len++] = (uint8_t)HEX[in[i] & 15];
	}
	return 0;
}

/* ---- prefixes ---- */

enum { PREFIX_BYTES = 256 }; /* LPM_DATA_SIZE_MAX of kernel/bpf/lpm_trie.c */

/*
 * A member of a longest-prefix-match trie's key as 10.0.0.0/8. `key` is the trie's whole key: 32 bits of prefix
 * length and the data it counts, of which `bytes` are a part. Bits beyond the prefix mean nothing and are shown as zero.
 */
static int put_prefix(struct skep_buf *out, const uint8_t *key, const uint8_t *bytes, size_t size)
{
	uint8_t masked[PREFIX_BYTES];
	char room[80];
	uint32_t len;
	size_t before = 8 * (size_t)(bytes - key - 4), text = 0;

	if (size > PREFIX_BYTES)
		return 0;
	memcpy(&len, key, 4);
	len = len > before ? (uint32_t)(len - before) : 0;
	if (len > 8 * size)
		len = (uint32_t)(8 * size);
	memcpy(masked, bytes, size);
	if (len & 7)
		masked[len >> 3] &= (uint8_t)(0xff << (8 - (len & 7)));
	memset(masked + ((len + 7) >> 3), 0, size - ((len + 7) >> 3));
	if (size == 4) {
		text = ipv4_text(masked, room);
	} else if (size == 16) {
		text = ipv6_text(masked, room);
	} else if (skep_buf_put(out, "0x", 2) || put_hex(out, masked, size)) {
		return -1;
	}
	room[text++] = '/';
	text += decimal(len, room + text);
	return skep_buf_put(out, room, text);
}

/* ---- cache of slow labels ---- */

enum { CACHE_SETS = 512, CACHE_WAYS = 4 };

struct cache_entry {
	uint64_t value;
	uint8_t *text; /* NULL: free, or no text if `taken` */
	uint32_t len;
	uint32_t used; /* clock of the last hit */
	uint16_t resolver;
	uint8_t taken;
};

struct skep_cache {
	uint32_t clock;
	size_t text_bytes;
	struct cache_entry entries[CACHE_SETS][CACHE_WAYS];
};

struct skep_cache *skep_cache_new(void)
{
	return calloc(1, sizeof(struct skep_cache));
}

void skep_cache_clear(struct skep_cache *cache)
{
	if (!cache)
		return;
	for (int set = 0; set < CACHE_SETS; set++)
		for (int way = 0; way < CACHE_WAYS; way++)
			free(cache->entries[set][way].text);
	memset(cache, 0, sizeof(*cache));
}

void skep_cache_free(struct skep_cache *cache)
{
	skep_cache_clear(cache);
	free(cache);
}

size_t skep_cache_bytes(const struct skep_cache *cache)
{
	return cache ? sizeof(*cache) + cache->text_bytes : 0;
}

static int resolve(struct skep_label_context *context, uint16_t resolver, uint64_t value, struct skep_value *out)
{
	struct skep_cache *cache = context->cache;
	uint64_t hash = (value ^ ((uint64_t)resolver << 48)) * 0x9e3779b97f4a7c15u;
	struct cache_entry *set = cache->entries[hash >> 55], *oldest = set;

	cache->clock++;
	for (int way = 0; way < CACHE_WAYS; way++) {
		struct cache_entry *entry = &set[way];
		if (entry->taken && entry->value == value && entry->resolver == resolver) {
			entry->used = cache->clock;
			out->text = entry->text;
			out->len = entry->len;
			return 0;
		}
		if (!entry->taken || (oldest->taken && entry->used < oldest->used))
			oldest = entry;
	}
	int failed = context->resolve(context->resolve_context, resolver, value, &context->scratch);
	if (failed)
		return failed;
	out->text = context->scratch.data;
	out->len = context->scratch.len;
	uint8_t *text = NULL;
	if (out->len) {
		text = malloc(out->len);
		if (!text)
			return 0; /* works without being remembered */
		memcpy(text, out->text, out->len);
	}
	if (oldest->taken)
		cache->text_bytes -= oldest->len;
	free(oldest->text);
	*oldest = (struct cache_entry){.value = value,
				       .text = text,
				       .len = (uint32_t)out->len,
				       .used = cache->clock,
				       .resolver = resolver,
				       .taken = 1};
	cache->text_bytes += out->len;
	return 0;
}

/* ---- a rule's value ---- */

static int table_text(const struct skep_labels *labels, const struct skep_label_rule *rule, uint64_t key,
		      struct skep_value *value)
{
	const struct skep_table_entry *entries = labels->table + rule->table_first;
	uint32_t low = 0, high = rule->table_count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		if (entries[middle].value < key)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == rule->table_count || entries[low].value != key)
		return 0;
	value->text = labels->pool + entries[low].text.offset;
	value->len = entries[low].text.len;
	return 1;
}

int skep_label_value(const struct skep_labels *labels, const struct skep_label_rule *rule, const uint8_t *data,
		     struct skep_label_context *context, struct skep_value *value)
{
	const uint8_t *bytes = data + (rule->offset_bits >> 3);
	size_t size = rule->size_bits >> 3;
	int is_signed = rule->flags & SKEP_RULE_SIGNED;
	char room[80];
	size_t len = 0;
	uint64_t number = 0;

	value->kind = SKEP_VALUE_TEXT;
	value->number = 0;
	value->text = NULL;
	value->len = 0;
	context->scratch.len = 0;
	if (rule->size_bits <= 64) {
		number = skep_read_bits(data, rule->offset_bits, rule->size_bits);
		if (is_signed)
			number = skep_sign_extend(number, rule->size_bits);
	}
	switch ((enum skep_decoder)rule->decoder) {
	case SKEP_UINT:
	case SKEP_INT:
		if (rule->size_bits > 64) {
			unsigned __int128 wide = 0;
			memcpy(&wide, bytes, size);
			if (is_signed && size < 16 && (bytes[size - 1] & 0x80))
				wide |= ~(unsigned __int128)0 << rule->size_bits;
			len = decimal_128(wide, is_signed, room);
			break;
		}
		if ((rule->flags & SKEP_RULE_NATURAL) && (number >> 63))
			return 0;
		len = signed_decimal(number, is_signed, room);
		/* An attribute holds 63 bits and a sign; what is larger stays text. */
		if (is_signed || !(number >> 63)) {
			value->kind = SKEP_VALUE_INT;
			value->number = (int64_t)number;
		}
		break;
	case SKEP_BOOL:
		value->kind = SKEP_VALUE_BOOL;
		value->number = number != 0;
		value->text = (const uint8_t *)(number ? "true" : "false");
		value->len = number ? 4 : 5;
		return 0;
	case SKEP_FLOAT:
		len = float_text(bytes, rule->size_bits, room, sizeof(room));
		break;
	case SKEP_HEX: {
		unsigned __int128 wide = 0;
		if (rule->size_bits > 64)
			memcpy(&wide, bytes, size);
		else
			wide = skep_read_bits(data, rule->offset_bits, rule->size_bits);
		len = hex_128(wide, room);
		break;
	}
	case SKEP_STRING: {
		const uint8_t *nul = memchr(bytes, 0, size);
		if (put_clean(&context->scratch, bytes, nul ? (size_t)(nul - bytes) : size))
			return -1;
		break;
	}
	case SKEP_BYTES:
		if (put_hex(&context->scratch, bytes, size))
			return -1;
		break;
	case SKEP_TABLE:
		if ((rule->flags & SKEP_RULE_MAGNITUDE) && is_signed && (number >> 63))
			number = 0 - number;
		if (table_text(labels, rule, number, value))
			return 0;
		len = signed_decimal(number, is_signed, room);
		break;
	case SKEP_IPV4:
		len = ipv4_text(bytes, room);
		break;
	case SKEP_IPV6:
		len = size == 4 ? ipv4_text(bytes, room) : ipv6_text(bytes, room);
		break;
	case SKEP_IP:
		if (size == 4)
			len = ipv4_text(bytes, room);
		else
			len = is_mapped_ipv4(bytes) ? ipv4_text(bytes + 12, room) : ipv6_text(bytes, room);
		break;
	case SKEP_PORT:
	case SKEP_PORT_BE:
		if (rule->decoder == SKEP_PORT_BE)
			number = (uint64_t)bytes[0] << 8 | bytes[1];
		len = decimal(number, room);
		value->kind = SKEP_VALUE_INT;
		value->number = (int64_t)number;
		break;
	case SKEP_DURATION:
		len = duration_text(number, is_signed, room);
		break;
	case SKEP_TIME:
		if (number)
			len = skep_rfc3339((int64_t)(number + (uint64_t)context->realtime_minus_monotonic_ns), room);
		break;
	case SKEP_PREFIX:
		if (put_prefix(&context->scratch, data + rule->table_first, bytes, size))
			return -1;
		break;
	case SKEP_SLOW:
		if (rule->flags & SKEP_RULE_STACK) {
			number &= 0xffffffff;
			if (rule->table_count)
				number |= skep_read_bits(data, rule->table_first, rule->table_count) << 32;
		}
		return resolve(context, rule->resolver, number, value);
	}
	if (len && skep_buf_put(&context->scratch, room, len))
		return -1;
	value->text = context->scratch.data;
	value->len = context->scratch.len;
	return 0;
}

/* ---- writers ---- */

/* Prometheus text format 0.0.4, label values: backslash, quote and line feed are escaped, nothing else. */
int skep_write_prometheus(const struct skep_labels *labels, const struct skep_label_rule *rule,
			  const struct skep_value *value, struct skep_buf *out)
{
	if (skep_buf_reserve(out, rule->prometheus.len + 2 * value->len + 2))
		return -1;
	if (out->len)
		out->data[out->len++] = ',';
	memcpy(out->data + out->len, labels->pool + rule->prometheus.offset, rule->prometheus.len);
	out->len += rule->prometheus.len;
	for (size_t i = 0; i < value->len; i++) {
		uint8_t byte = value->text[i];
		if (byte == '\\' || byte == '"' || byte == '\n') {
			out->data[out->len++] = '\\';
			byte = byte == '\n' ? 'n' : byte;
		}
		out->data[out->len++] = byte;
	}
	out->data[out->len++] = '"';
	return 0;
}

/* opentelemetry/proto/common/v1/common.proto: KeyValue {key = 1, AnyValue value = 2},
 * AnyValue {string_value = 1, bool_value = 2, int_value = 3}. */
int skep_write_otlp(const struct skep_labels *labels, const struct skep_label_rule *rule,
		    const struct skep_value *value, uint8_t tag, struct skep_buf *out)
{
	size_t any_len = 2;

	if (value->kind == SKEP_VALUE_TEXT)
		any_len = 1 + skep_varint_len(value->len) + value->len;
	else if (value->kind == SKEP_VALUE_INT)
		any_len = 1 + skep_varint_len((uint64_t)value->number);
	size_t pair_len = rule->otlp.len + 1 + skep_varint_len(any_len) + any_len;
	if (skep_buf_reserve(out, pair_len + 12))
		return -1;
	uint8_t *at = out->data + out->len;
	*at++ = tag;
	at = skep_varint_write(at, pair_len);
	memcpy(at, labels->pool + rule->otlp.offset, rule->otlp.len);
	at += rule->otlp.len;
	*at++ = 0x12;
	at = skep_varint_write(at, any_len);
	if (value->kind == SKEP_VALUE_TEXT) {
		*at++ = 0x0a;
		at = skep_varint_write(at, value->len);
		memcpy(at, value->text, value->len);
		at += value->len;
	} else if (value->kind == SKEP_VALUE_BOOL) {
		*at++ = 0x10;
		*at++ = value->number != 0;
	} else {
		*at++ = 0x18;
		at = skep_varint_write(at, (uint64_t)value->number);
	}
	out->len = (size_t)(at - out->data);
	return 0;
}

/* RFC 8259; the short escapes where there are some, U+007F and above as they are. */
int skep_write_json(const struct skep_labels *labels, const struct skep_label_rule *rule,
		    const struct skep_value *value, struct skep_buf *out)
{
	if (skep_buf_reserve(out, rule->json.len + 6 * value->len + 2))
		return -1;
	memcpy(out->data + out->len, labels->pool + rule->json.offset, rule->json.len);
	out->len += rule->json.len;
	if (value->kind != SKEP_VALUE_TEXT) {
		memcpy(out->data + out->len, value->text, value->len);
		out->len += value->len;
		return 0;
	}
	uint8_t *at = out->data + out->len;
	*at++ = '"';
	for (size_t i = 0; i < value->len; i++) {
		static const char SHORT[32] = {['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r'};
		uint8_t byte = value->text[i];
		if (byte == '"' || byte == '\\') {
			*at++ = '\\';
			*at++ = byte;
		} else if (byte >= 0x20) {
			*at++ = byte;
		} else if (SHORT[byte]) {
			*at++ = '\\';
			*at++ = (uint8_t)SHORT[byte];
		} else {
			memcpy(at, "\\u00", 4);
			at[4] = (uint8_t)HEX[byte >> 4];
			at[5] = (uint8_t)HEX[byte & 15];
			at += 6;
		}
	}
	*at++ = '"';
	out->len = (size_t)(at - out->data);
	return 0;
}
