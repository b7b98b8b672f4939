// SPDX-License-Identifier: Apache-2.0

#include "labels.h"

#include "hash.h"

#include <math.h>
#include <stdio.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rules are read as little-endian BPF writes them");

void skep_labels_free(struct skep_labels *labels)
{
	free(labels->rules);
	free(labels->table);
	free(labels->conditions);
	free(labels->pool);
}

int skep_labels_ask(const struct skep_labels *labels)
{
	for (uint32_t i = 0; i < labels->count; i++)
		if (labels->rules[i].decoder == SKEP_SLOW || labels->rules[i].flags & SKEP_RULE_STEPS)
			return 1;
	return 0;
}

void skep_label_context_free(struct skep_label_context *context)
{
	skep_buf_free(&context->scratch);
	skep_buf_free(&context->answer);
	skep_buf_free(&context->list);
	skep_buf_free(&context->elements);
	skep_cache_free(context->cache);
	context->cache = NULL;
}

size_t skep_label_context_bytes(const struct skep_label_context *context)
{
	return context->scratch.cap + context->answer.cap + context->list.cap + context->elements.cap +
	       skep_cache_bytes(context->cache);
}

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

static size_t mac_text(const uint8_t *address, char *out)
{
	for (int i = 0; i < 6; i++) {
		out[3 * i] = HEX[address[i] >> 4];
		out[3 * i + 1] = HEX[address[i] & 15];
		out[3 * i + 2] = ':';
	}
	return 17;
}

/* RFC 1035, 3.1 and 5.1: labels with their lengths before them; as text joined by dots, what is no letter, digit,
 * '-' or '_' escaped. Case means nothing, so there is none. Ends where the bytes do, or at what is no label. */
static int put_dns_name(struct skep_buf *out, const uint8_t *in, size_t len)
{
	size_t at = 0, start = out->len;

	while (at < len && in[at] && in[at] <= 63 && at + 1 + in[at] <= len) {
		size_t end = at + 1 + in[at];
		if (skep_buf_reserve(out, 4 * (size_t)in[at] + 1))
			return -1;
		if (out->len > start)
			out->data[out->len++] = '.';
		for (at++; at < end; at++) {
			uint8_t byte = in[at];
			if (byte >= 'A' && byte <= 'Z')
				byte |= 0x20;
			if ((byte >= 'a' && byte <= 'z') || (byte >= '0' && byte <= '9') || byte == '-' || byte == '_') {
				out->data[out->len++] = byte;
				continue;
			}
			out->data[out->len++] = '\\';
			if (byte > ' ' && byte < 0x7f) {
				out->data[out->len++] = byte;
				continue;
			}
			out->data[out->len++] = (uint8_t)('0' + byte / 100);
			out->data[out->len++] = (uint8_t)('0' + byte / 10 % 10);
			out->data[out->len++] = (uint8_t)('0' + byte % 10);
		}
	}
	if (out->len == start && len && !in[0])
		return skep_buf_byte(out, '.'); /* the root */
	return 0;
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
	uint64_t value; /* or the hash of the text that was asked for */
	uint8_t *text;  /* what was asked for, if it was text, then the answer; NULL if both are empty */
	uint32_t asked_len;
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

/* `asked` is NULL for a number. */
static int resolve(struct skep_label_context *context, uint16_t resolver, uint64_t value, const uint8_t *asked,
		   size_t asked_len, struct skep_value *out)
{
	struct skep_cache *cache = context->cache;

	if (asked)
		value = skep_hash(0, asked, asked_len);
	uint64_t hash = (value ^ ((uint64_t)resolver << 48)) * 0x9e3779b97f4a7c15u;
	struct cache_entry *set = cache->entries[hash >> 55], *oldest = set;

	cache->clock++;
	for (int way = 0; way < CACHE_WAYS; way++) {
		struct cache_entry *entry = &set[way];
		if (entry->taken && entry->value == value && entry->resolver == resolver &&
		    (!asked || (entry->asked_len == asked_len && !memcmp(entry->text, asked, asked_len)))) {
			entry->used = cache->clock;
			out->text = entry->text + entry->asked_len;
			out->len = entry->len;
			return 0;
		}
		if (!entry->taken || (oldest->taken && entry->used < oldest->used))
			oldest = entry;
	}
	context->answer.len = 0;
	int failed = context->resolve(context->resolve_context, resolver, value, asked, asked_len, &context->answer);
	if (failed)
		return failed;
	out->text = context->answer.data;
	out->len = context->answer.len;
	uint8_t *text = NULL;
	if (asked_len + out->len) {
		text = malloc(asked_len + out->len);
		if (!text)
			return 0; /* works without being remembered */
		if (asked_len)
			memcpy(text, asked, asked_len);
		if (out->len)
			memcpy(text + asked_len, out->text, out->len);
	}
	if (oldest->taken)
		cache->text_bytes -= oldest->asked_len + oldest->len;
	free(oldest->text);
	*oldest = (struct cache_entry){.value = value,
				       .text = text,
				       .asked_len = (uint32_t)asked_len,
				       .len = (uint32_t)out->len,
				       .used = cache->clock,
				       .resolver = resolver,
				       .taken = 1};
	cache->text_bytes += asked_len + out->len;
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

static unsigned __int128 read_wide(const uint8_t *data, uint32_t offset_bits, uint32_t size_bits)
{
	if (size_bits <= 64)
		return skep_read_bits(data, offset_bits, size_bits);
	return skep_read_bits(data, offset_bits, 64) |
	       (unsigned __int128)skep_read_bits(data, offset_bits + 64, size_bits - 64) << 64;
}

/* Names of the bits that are set: of all of them together if they have one, else one by one. */
static int put_flags(const struct skep_labels *labels, const struct skep_label_rule *rule, uint64_t number,
		     struct skep_buf *out, struct skep_value *value)
{
	char room[40];
	uint64_t rest = number;

	if (table_text(labels, rule, number, value))
		return 0;
	for (uint32_t i = 0; i < rule->table_count && rest; i++) {
		const struct skep_table_entry *entry = &labels->table[rule->table_first + i];
		if (!entry->value || entry->value & (entry->value - 1) || !(rest & entry->value))
			continue;
		rest &= ~entry->value;
		if ((out->len && skep_buf_byte(out, '|')) ||
		    skep_buf_put(out, labels->pool + entry->text.offset, entry->text.len))
			return -1;
	}
	if (rest || !number) {
		size_t len = number ? hex_128(rest, room) : decimal(0, room);
		if ((out->len && skep_buf_byte(out, '|')) || skep_buf_put(out, room, len))
			return -1;
	}
	value->text = out->data;
	value->len = out->len;
	return 0;
}

/* The value of one element, before any steps. */
static int decode(const struct skep_labels *labels, const struct skep_label_rule *rule, uint32_t offset_bits,
		  const uint8_t *data, struct skep_label_context *context, struct skep_value *value)
{
	const uint8_t *bytes = data + (offset_bits >> 3);
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
		number = skep_read_bits(data, offset_bits, rule->size_bits);
		if (is_signed)
			number = skep_sign_extend(number, rule->size_bits);
	}
	switch ((enum skep_decoder)rule->decoder) {
	case SKEP_UINT:
	case SKEP_INT:
		if (rule->size_bits > 64) {
			unsigned __int128 wide = read_wide(data, offset_bits, rule->size_bits);
			if (is_signed && rule->size_bits < 128 && wide >> (rule->size_bits - 1))
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
	case SKEP_HEX:
		len = hex_128(read_wide(data, offset_bits, rule->size_bits), room);
		break;
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
		return resolve(context, rule->resolver, number, NULL, 0, value);
	case SKEP_FLAGS:
		if (rule->size_bits < 64)
			number &= (1ull << rule->size_bits) - 1;
		return put_flags(labels, rule, number, &context->scratch, value);
	case SKEP_MAC:
		len = mac_text(bytes, room);
		break;
	case SKEP_DNS:
		if (put_dns_name(&context->scratch, bytes, size))
			return -1;
		break;
	}
	if (len && skep_buf_put(&context->scratch, room, len))
		return -1;
	value->text = context->scratch.data;
	value->len = context->scratch.len;
	return 0;
}

/* The value of one element, after its steps. */
static int one_value(const struct skep_labels *labels, const struct skep_label_rule *rule, uint32_t offset_bits,
		     const uint8_t *data, struct skep_label_context *context, struct skep_value *value)
{
	int failed = decode(labels, rule, offset_bits, data, context, value);

	if (failed || !(rule->flags & SKEP_RULE_STEPS) || !value->len)
		return failed;
	if (value->text == context->answer.data) { /* which the steps' answer is about to overwrite */
		if (skep_buf_put(&context->scratch, value->text, value->len))
			return -1;
		value->text = context->scratch.data;
	}
	value->kind = SKEP_VALUE_TEXT;
	return resolve(context, rule->step, 0, value->text, value->len, value);
}

static int is_met(const struct skep_labels *labels, const struct skep_condition *condition, const uint8_t *data)
{
	uint64_t number = skep_read_bits(data, condition->offset_bits, condition->size_bits);

	for (uint32_t i = 0; i < condition->table_count; i++)
		if (labels->table[condition->table_first + i].value == number)
			return !condition->negated;
	return (int)condition->negated;
}

int skep_label_value(const struct skep_labels *labels, const struct skep_label_rule *rule, const uint8_t *data,
		     struct skep_label_context *context, struct skep_value *value)
{
	value->elements = NULL;
	value->count = 0;
	for (uint32_t i = 0; i < rule->condition_count; i++) {
		if (is_met(labels, &labels->conditions[rule->condition_first + i], data))
			continue;
		value->kind = SKEP_VALUE_TEXT;
		value->text = NULL;
		value->len = 0;
		return 0;
	}
	if (rule->count <= 1)
		return one_value(labels, rule, rule->offset_bits, data, context, value);
	context->list.len = context->elements.len = 0;
	for (uint32_t i = 0; i < rule->count; i++) {
		int failed = one_value(labels, rule, rule->offset_bits + i * rule->size_bits, data, context, value);
		if (failed)
			return failed;
		if (i && skep_buf_byte(&context->list, ','))
			return -1;
		struct skep_element element = {value->kind, value->number, context->list.len, value->len};
		if (skep_buf_put(&context->list, value->text, value->len) ||
		    skep_buf_put(&context->elements, &element, sizeof(element)))
			return -1;
	}
	value->kind = SKEP_VALUE_LIST;
	value->text = context->list.data;
	value->len = context->list.len;
	value->elements = (const struct skep_element *)(const void *)context->elements.data;
	value->count = rule->count;
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
 * AnyValue {string_value = 1, bool_value = 2, int_value = 3, array_value = 5}, ArrayValue {values = 1}. */
static size_t any_len(enum skep_value_kind kind, int64_t number, size_t len)
{
	if (kind == SKEP_VALUE_INT)
		return 1 + skep_varint_len((uint64_t)number);
	if (kind == SKEP_VALUE_BOOL)
		return 2;
	return 1 + skep_varint_len(len) + len;
}

static uint8_t *any_write(uint8_t *at, enum skep_value_kind kind, int64_t number, const uint8_t *text, size_t len)
{
	if (kind == SKEP_VALUE_INT) {
		*at++ = 0x18;
		return skep_varint_write(at, (uint64_t)number);
	}
	if (kind == SKEP_VALUE_BOOL) {
		*at++ = 0x10;
		*at++ = number != 0;
		return at;
	}
	*at++ = 0x0a;
	at = skep_varint_write(at, len);
	if (len)
		memcpy(at, text, len);
	return at + len;
}

int skep_write_otlp(const struct skep_labels *labels, const struct skep_label_rule *rule,
		    const struct skep_value *value, uint8_t tag, struct skep_buf *out)
{
	size_t value_len, array_len = 0;

	for (size_t i = 0; i < value->count; i++) {
		const struct skep_element *element = &value->elements[i];
		size_t len = any_len(element->kind, element->number, element->len);
		array_len += 1 + skep_varint_len(len) + len;
	}
	if (value->kind == SKEP_VALUE_LIST)
		value_len = 1 + skep_varint_len(array_len) + array_len;
	else
		value_len = any_len(value->kind, value->number, value->len);
	size_t pair_len = rule->otlp.len + 1 + skep_varint_len(value_len) + value_len;
	if (skep_buf_reserve(out, pair_len + 12))
		return -1;
	uint8_t *at = out->data + out->len;
	*at++ = tag;
	at = skep_varint_write(at, pair_len);
	memcpy(at, labels->pool + rule->otlp.offset, rule->otlp.len);
	at += rule->otlp.len;
	*at++ = 0x12;
	at = skep_varint_write(at, value_len);
	if (value->kind == SKEP_VALUE_LIST) {
		*at++ = 0x2a;
		at = skep_varint_write(at, array_len);
		for (size_t i = 0; i < value->count; i++) {
			const struct skep_element *element = &value->elements[i];
			*at++ = 0x0a;
			at = skep_varint_write(at, any_len(element->kind, element->number, element->len));
			at = any_write(at, element->kind, element->number, value->text + element->offset, element->len);
		}
	} else {
		at = any_write(at, value->kind, value->number, value->text, value->len);
	}
	out->len = (size_t)(at - out->data);
	return 0;
}

/* RFC 8259; the short escapes where there are some, U+007F and above as they are. */
static uint8_t *json_value(uint8_t *at, enum skep_value_kind kind, const uint8_t *text, size_t len)
{
	static const char SHORT[32] = {['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r'};

	if (kind != SKEP_VALUE_TEXT) {
		memcpy(at, text, len);
		return at + len;
	}
	*at++ = '"';
	for (size_t i = 0; i < len; i++) {
		uint8_t byte = text[i];
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
	return at;
}

int skep_write_json(const struct skep_labels *labels, const struct skep_label_rule *rule,
		    const struct skep_value *value, struct skep_buf *out)
{
	if (skep_buf_reserve(out, rule->json.len + 6 * value->len + 3 * value->count + 2))
		return -1;
	uint8_t *at = out->data + out->len;
	memcpy(at, labels->pool + rule->json.offset, rule->json.len);
	at += rule->json.len;
	if (value->kind == SKEP_VALUE_LIST) {
		*at++ = '[';
		for (size_t i = 0; i < value->count; i++) {
			const struct skep_element *element = &value->elements[i];
			if (i)
				*at++ = ',';
			at = json_value(at, element->kind, value->text + element->offset, element->len);
		}
		*at++ = ']';
	} else {
		at = json_value(at, value->kind, value->text, value->len);
	}
	out->len = (size_t)(at - out->data);
	return 0;
}
