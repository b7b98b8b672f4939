/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "storage.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rows.h"

#ifndef __NR_pidfd_open
#define __NR_pidfd_open 434 /* of every architecture */
#endif

enum { PIDFD_OF_THREAD = O_EXCL /* PIDFD_THREAD of linux/pidfd.h, since Linux 6.9 */ };
enum { DEPTH_LIMIT = 64, ROWS_LIMIT = 1 << 20 };

void skep_rows_free(struct skep_rows *rows)
{
	free(rows->keys);
	free(rows->values);
	rows->keys = rows->values = NULL;
	rows->count = rows->capacity = 0;
}

/* Room for one more row; a value is looked up into it before it counts. */
static int reserve(struct skep_rows *rows)
{
	uint64_t capacity = rows->capacity ? 2 * rows->capacity : 64;
	uint8_t *grown;

	if (rows->count < rows->capacity)
		return 0;
	if (rows->count >= ROWS_LIMIT)
		return -E2BIG;
	grown = realloc(rows->keys, capacity * rows->key_size);
	if (!grown)
		return -ENOMEM;
	rows->keys = grown;
	grown = realloc(rows->values, capacity * rows->value_size);
	if (!grown)
		return -ENOMEM;
	rows->values = grown;
	rows->capacity = capacity;
	return 0;
}

static uint8_t *next_value(const struct skep_rows *rows)
{
	return rows->values + rows->count * rows->value_size;
}

static void add_key(struct skep_rows *rows, const void *key)
{
	memcpy(rows->keys + rows->count * rows->key_size, key, rows->key_size);
	rows->count++;
}

/* ---- tasks ---- */

/* Field 22 of /proc/.../stat. The name in parentheses may hold anything; what follows its last one does not. */
static int start_ticks(int task, uint64_t *ticks)
{
	char text[1024], *at;
	int fd = openat(task, "stat", O_RDONLY | O_CLOEXEC);
	ssize_t size;

	if (fd < 0)
		return -errno;
	size = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (size <= 0)
		return -ESRCH;
	text[size] = 0;
	at = strrchr(text, ')');
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	if (!at)
		return -ESRCH;
	*ticks = strtoull(at, NULL, 10);
	return 0;
}

/* One task, of which `directory` is the one below procfs. What has gone meanwhile has no row. */
static int task_row(int map_fd, int parent, const char *directory, uint32_t process, uint32_t thread, unsigned flags,
		    struct skep_rows *rows)
{
	struct skep_task_key key = {process, thread, 0};
	int error = reserve(rows), task, pidfd;

	if (error)
		return error;
	pidfd = (int)syscall(__NR_pidfd_open, thread, flags);
	if (pidfd < 0)
		return errno == ESRCH ? 0 : -errno;
	error = skep_lookup(map_fd, &pidfd, next_value(rows));
	if (!error) {
		task = openat(parent, directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
		error = task < 0 ? -errno : start_ticks(task, &key.start_ticks);
		if (task >= 0)
			close(task);
		if (!error)
			add_key(rows, &key);
	}
	close(pidfd);
	/* The directory of a task that ended is gone (ENOENT), or there and empty (ESRCH). */
	return error == -ENOENT || error == -ESRCH ? 0 : error;
}

static int thread_rows(int map_fd, int proc, const char *name, uint32_t process, struct skep_rows *rows)
{
	char path[300];
	struct dirent *entry;
	DIR *threads;
	int error = 0, fd;

	snprintf(path, sizeof(path), "%s/task", name);
	fd = openat(proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT || errno == ESRCH ? 0 : -errno;
	threads = fdopendir(fd);
	if (!threads) {
		close(fd);
		return -ENOMEM;
	}
	while (!error && (entry = readdir(threads)))
		if (isdigit((unsigned char)entry->d_name[0]))
			error = task_row(map_fd, fd, entry->d_name, process, (uint32_t)strtoul(entry->d_name, NULL, 10),
					 PIDFD_OF_THREAD, rows);
	closedir(threads);
	return error;
}

int skep_task_rows(int map_fd, int proc, struct skep_rows *rows)
{
	int pidfd = (int)syscall(__NR_pidfd_open, getpid(), PIDFD_OF_THREAD);
	int each_thread = pidfd >= 0, error = 0, fd = openat(proc, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct dirent *entry;
	DIR *tasks;

	if (each_thread)
		close(pidfd);
	if (fd < 0)
		return -errno;
	tasks = fdopendir(fd);
	if (!tasks) {
		close(fd);
		return -ENOMEM;
	}
	while (!error && (entry = readdir(tasks))) {
		uint32_t process = (uint32_t)strtoul(entry->d_name, NULL, 10);

		if (!process)
			continue;
		error = each_thread ? thread_rows(map_fd, proc, entry->d_name, process, rows)
				    : task_row(map_fd, proc, entry->d_name, process, process, 0, rows);
	}
	closedir(tasks);
	return error;
}

/* ---- cgroups ---- */

static int cgroup_row(int map_fd, int cgroup, struct skep_rows *rows)
{
	struct stat found;
	uint64_t id;
	int error = reserve(rows);

	if (error)
		return error;
	error = skep_lookup(map_fd, &cgroup, next_value(rows));
	if (!error && fstat(cgroup, &found))
		error = -errno;
	if (!error) {
		id = found.st_ino;
		add_key(rows, &id);
	}
	/* A cgroup that is being removed cannot be asked any more: EBADF, ENODEV or ENOENT by the kernel's age. */
	return error == -ENOENT || error == -ENODEV || error == -EBADF ? 0 : error;
}

static int cgroup_tree(int map_fd, int cgroup, int depth, struct skep_rows *rows)
{
	int error = cgroup_row(map_fd, cgroup, rows);
	struct dirent *entry;
	DIR *below;

	if (error || depth >= DEPTH_LIMIT) {
		close(cgroup);
		return error;
	}
	below = fdopendir(cgroup);
	if (!below) {
		close(cgroup);
		return -ENOMEM;
	}
	while (!error && (entry = readdir(below))) {
		int child;

		if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
			continue;
		child = openat(cgroup, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (child >= 0)
			error = cgroup_tree(map_fd, child, depth + 1, rows);
		else if (errno != ENOENT)
			error = -errno;
	}
	closedir(below);
	return error;
}

int skep_cgroup_rows(int map_fd, int root, struct skep_rows *rows)
{
	int fd = openat(root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 ? -errno : cgroup_tree(map_fd, fd, 0, rows);
}
