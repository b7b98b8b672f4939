/* SPDX-License-Identifier: Apache-2.0
 *
 * A byte buffer that grows. Every writer returns 0, or -1 when memory is out;
 * a buffer that could not grow is unchanged.
 */
#ifndef SKEP_BUFFER_H
#define SKEP_BUFFER_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct skep_buf {
	uint8_t *data;
	size_t len;
	size_t cap;
};

static inline int skep_buf_reserve(struct skep_buf *buf, size_t more)
{
	if (buf->cap - buf->len >= more)
		return 0;
	size_t cap = buf->cap * 2 > buf->len + more ? buf->cap * 2 : buf->len + more;
	if (cap < 256)
		cap = 256;
	uint8_t *data = realloc(buf->data, cap);
	if (!data)
		return -1;
	buf->data = data;
	buf->cap = cap;
	return 0;
}

static inline int skep_buf_put(struct skep_buf *buf, const void *data, size_t len)
{
	if (skep_buf_reserve(buf, len))
		return -1;
	if (len)
		memcpy(buf->data + buf->len, data, len);
	buf->len += len;
	return 0;
}

static inline int skep_buf_byte(struct skep_buf *buf, uint8_t byte)
{
	if (skep_buf_reserve(buf, 1))
		return -1;
	buf->data[buf->len++] = byte;
	return 0;
}

static inline void skep_buf_free(struct skep_buf *buf)
{
	free(buf->data);
	memset(buf, 0, sizeof(*buf));
}

/* Protobuf base-128 varint; at most 10 bytes. */
static inline size_t skep_varint_len(uint64_t value)
{
	size_t len = 1;
	while (value >= 0x80) {
		value >>= 7;
		len++;
	}
	return len;
}

static inline uint8_t *skep_varint_write(uint8_t *to, uint64_t value)
{
	while (value >= 0x80) {
		*to++ = (uint8_t)value | 0x80;
		value >>= 7;
	}
	*to++ = (uint8_t)value;
	return to;
}

#endif
