// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Local storage of tasks and of cgroups, the latter since Linux 6.2. */
#define BY_CGROUP
#include "storage.bpf.c"
