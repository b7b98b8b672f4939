/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows of local storage. The kernel shows a task's or a cgroup's only to who holds
 * a descriptor of it, and lists none: so every task, or every cgroup, is opened and
 * asked. That is four system calls a task; few have a row.
 */
#ifndef SKEP_STORAGE_H
#define SKEP_STORAGE_H

#include <stddef.h>
#include <stdint.h>

struct skep_rows {
	uint8_t *keys, *values;
	size_t key_size, value_size;
	uint64_t count, capacity;
};

/* A task's key. The start time tells it from one that has the same number later. */
struct skep_task_key {
	uint32_t process, thread;
	uint64_t start_ticks;
};

/* The rows of all tasks below `proc`, a descriptor of procfs; of their threads if the kernel can open one (6.9),
 * else of the first thread of each process. 0 or a negative errno; the rows are the caller's to free either way. */
int skep_task_rows(int map_fd, int proc, struct skep_rows *rows);

/* The rows of all cgroups from the directory `root` on; a key is the cgroup's id. */
int skep_cgroup_rows(int map_fd, int root, struct skep_rows *rows);

void skep_rows_free(struct skep_rows *rows);

#endif
