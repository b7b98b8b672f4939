// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Hooks on functions of the kernel, each with a cell of its own; all see a getpgid() or an unlink() of a process. */
#include "seen.h"

SEEN(0, "kprobe/__x64_sys_getpgid", on_kprobe, 0)
SEEN(1, "kretprobe/__x64_sys_getpgid", on_kretprobe, 0)
SEEN(2, "kprobe.multi/__x64_sys_getp?id", on_pattern, 0)
SEEN(3, "kretprobe.multi/__x64_sys_getp?id", on_return_pattern, 0)
SEEN(4, "ksyscall/getpgid", on_ksyscall, 0)
SEEN(5, "kretsyscall/getpgid", on_kretsyscall, 0)
SEEN(6, "kprobe", on_plain_kprobe, 0)
SEEN(7, "fentry/__x64_sys_getpgid", on_fentry, 0)
SEEN(8, "fexit/__x64_sys_getpgid", on_fexit, 0)
SEEN(9, "fmod_ret/security_path_unlink", on_fmod_ret, 0)
SEEN(10, "lsm/path_unlink", on_lsm, 0)
SEEN(11, "kprobe.multi/__x64_sys_getpgid", on_multi, 0)
SEEN(12, "fentry", on_plain_fentry, 0)
SEEN(13, "kprobe/skep_no_such_function", on_no_function, 0)
SEEN(14, "fentry/skep_no_such_function", on_no_typed_function, 0)
