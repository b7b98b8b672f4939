/* SPDX-License-Identifier: Apache-2.0
 *
 * Where libbpf's messages go in the loader: to descriptor 2, a file in memory
 * that the parent reads when the loader has ended, in whatever way it ended. The
 * file stays bounded, and its end is what is kept: a verifier log may be
 * megabytes, and its last lines say what is wrong.
 */
#ifndef SKEP_LOG_H
#define SKEP_LOG_H

#include <bpf/libbpf.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define SKEP_LOG_MESSAGE (256 << 10)
#define SKEP_LOG_FILE (1 << 20)

static int skep_log_print(enum libbpf_print_level level, const char *format, va_list arguments)
{
	va_list again;
	size_t length, begin;
	char *text;
	int size;

	if (level == LIBBPF_DEBUG)
		return 0;
	va_copy(again, arguments);
	size = vsnprintf(NULL, 0, format, again);
	va_end(again);
	text = size > 0 ? malloc((size_t)size + 1) : NULL;
	if (!text)
		return 0;
	vsnprintf(text, (size_t)size + 1, format, arguments);
	length = (size_t)size;
	begin = length > SKEP_LOG_MESSAGE ? length - SKEP_LOG_MESSAGE : 0;
	if (lseek(STDERR_FILENO, 0, SEEK_CUR) > SKEP_LOG_FILE && ftruncate(STDERR_FILENO, 0) == 0)
		lseek(STDERR_FILENO, 0, SEEK_SET);
	while (begin < length) {
		ssize_t written = write(STDERR_FILENO, text + begin, length - begin);

		if (written <= 0)
			break;
		begin += (size_t)written;
	}
	free(text);
	return 0;
}

#endif
