"""What libbpf and the kernel say, and what a person is told; logs as libbpf 1.4 and Linux 5.10 to 6.18 write them."""

import errno
from dataclasses import replace

import pytest

from exporter.kernel.channel import Failure
from exporter.kernel.diagnosis import errno_name, explain, failed_target, last_stage, tail, verifier_complaint
from exporter.kernel.features import Capability, Features

ROOT = Features(
    release="6.12.1",
    version=(6, 12),
    btf=True,
    tracefs=True,
    capabilities=frozenset(Capability),
    perf_event_paranoid=2,
    lockdown="",
)
BPF_ONLY = replace(ROOT, capabilities=frozenset({Capability.BPF, Capability.PERFMON}))
NOBODY = replace(ROOT, capabilities=frozenset(), tracefs=False)
SECTIONS = {
    "tp": "tracepoint/sched/sched_switch",
    "up": "uprobe//lib/libc.so.6:malloc",
    "kp": "kprobe/vfs_read",
    "pe": "perf_event",
    "xdp": "xdp",
    "fentry": "fentry/vfs_read",
    "raw": "raw_tp/sys_enter",
    "nf": "netfilter",
    "cg": "cgroup/connect4",
}


def failing(stage: str, number: int = 0, *, program: str = "", doing: str = "doing it") -> Failure:
    """A failure as the loader reports it."""
    return {"stage": stage, "program": program, "errno": number, "doing": doing}


def load_log(program: str, *lines: str, number: int = errno.EINVAL) -> str:
    """What libbpf prints when the verifier refuses a program."""
    return "\n".join(
        [
            "loader: loading the object",
            f"libbpf: prog '{program}': BPF program load failed: whatever",
            f"libbpf: prog '{program}': -- BEGIN PROG LOAD LOG --",
            *lines,
            "processed 9 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0",
            "-- END PROG LOAD LOG --",
            f"libbpf: prog '{program}': failed to load: -{number}",
            "libbpf: failed to load object 'x'",
        ]
    )


NO_LOADING = (
    "libbpf: Error in bpf_object__probe_loading():Operation not permitted(1). Couldn't load trivial BPF program. "
    "Make sure your kernel supports BPF (CONFIG_BPF_SYSCALL=y) and/or that RLIMIT_MEMLOCK is set to big enough value."
)


@pytest.mark.parametrize(
    ("failure", "log", "features", "code", "words"),
    [
        # Loading.
        (failing("load", errno.EPERM), NO_LOADING, NOBODY, "kernel.permission", "without CAP_BPF and CAP_PERFMON;"),
        (
            failing("load", errno.EPERM),
            NO_LOADING,
            replace(NOBODY, capabilities=frozenset({Capability.BPF})),
            "kernel.permission",
            "without CAP_PERFMON;",
        ),
        (failing("load", errno.EPERM), NO_LOADING, ROOT, "kernel.permission", "security module"),
        (
            failing("load", errno.EPERM),
            NO_LOADING,
            replace(ROOT, release="5.10.0", version=(5, 10)),
            "kernel.permission",
            "LimitMEMLOCK=infinity",
        ),
        (
            failing("load", errno.EPERM),
            "libbpf: prog 'fentry': BPF program load failed: Operation not permitted\n",
            replace(ROOT, lockdown="integrity"),
            "kernel.permission",
            "trampoline that section 'fentry/vfs_read' needs (lockdown is 'integrity'); use a tp_btf",
        ),
        (
            failing("load", errno.EPERM),
            "libbpf: prog 'raw': BPF program load failed: Operation not permitted\n",
            replace(ROOT, lockdown="confidentiality"),
            "kernel.permission",
            "lockdown is 'confidentiality'",
        ),
        (
            failing("load", 524),
            "libbpf: prog 'fentry': BPF program load failed: unknown error (-524)\n",
            ROOT,
            "kernel.attach_target",
            "no trampolines on this architecture",
        ),
        (
            failing("load", errno.EACCES),
            load_log(
                "raw", "0: R1=ctx()", "1: (79) r0 = *(u64 *)(r1 +400)", "invalid bpf_context access off=400 size=8"
            ),
            ROOT,
            "elf.verifier",
            "the verifier of this kernel (6.12.1) refuses it: invalid bpf_context access off=400 size=8;",
        ),
        (
            failing("load", errno.EACCES),
            load_log(
                "raw", "0: R1=ctx()", "1: (79) r0 = *(u64 *)(r1 +0)", "R1 invalid mem access 'trusted_ptr_or_null_'"
            ),
            ROOT,
            "elf.verifier",
            "refuses it: R1 invalid mem access 'trusted_ptr_or_null_'; compare the pointer with NULL before its use",
        ),
        (
            failing("load", errno.EINVAL),
            load_log(
                "raw",
                "<invalid CO-RE relocation>",
                "failed to resolve CO-RE relocation <byte_off> [7] struct rq.nothing (0:3 @ offset 12)",
            ),
            ROOT,
            "elf.core_reloc",
            "'struct rq.nothing'",
        ),
        (
            failing("load", errno.EINVAL),
            "libbpf: prog 'raw': relo #1: insn #4 (LDX/ST/STX) accesses field incorrectly.\n"
            + load_log(
                "raw",
                "4: <invalid CO-RE relocation>",
                "failed to resolve CO-RE relocation <byte_off> [61] struct task_struct.on_cpu (0:1 @ offset 4)",
            ),
            ROOT,
            "elf.core_reloc",
            "declare the member unsigned",
        ),
        (
            failing("load", errno.ESRCH),
            "libbpf: extern (func ksym) 'bpf_no_such_kfunc': not found in kernel or module BTFs\n",
            ROOT,
            "elf.core_reloc",
            "kernel function 'bpf_no_such_kfunc' is not in this kernel (6.12.1); declare it __weak",
        ),
        (
            failing("load", errno.EINVAL),
            load_log("raw", "cannot call GPL-restricted function from non-GPL compatible program"),
            ROOT,
            "elf.license",
            "program 'raw'",
        ),
        (
            failing("load", errno.ESRCH),
            "libbpf: kernel BTF is missing at '/sys/kernel/btf/vmlinux', was CONFIG_DEBUG_INFO_BTF enabled?\n"
            "libbpf: failed to find valid kernel BTF\nlibbpf: Error loading vmlinux BTF: -3\n",
            replace(ROOT, btf=False),
            "kernel.btf",
            "CONFIG_DEBUG_INFO_BTF",
        ),
        (
            failing("enums", errno.EINVAL),
            "",
            replace(ROOT, btf=False),
            "kernel.btf",
            "the types that were given for it",
        ),
        (
            failing("load", errno.EINVAL),
            "libbpf: failed to parse target BTF: -22\nlibbpf: failed to perform CO-RE relocations: -22\n",
            replace(ROOT, btf=False),
            "kernel.btf",
            "the types that were given for this kernel (6.12.1) are damaged",
        ),
        (failing("load", errno.ENOMEM), "", ROOT, "kernel.memory", "ENOMEM"),
        (
            failing("load", errno.ENOMEM),
            "libbpf: map 'big': failed to create: Cannot allocate memory(-12)\n",
            ROOT,
            "kernel.memory",
            "map 'big'",
        ),
        (
            failing("load", errno.EINVAL),
            "loader: map events is of type 27\nlibbpf: map 'events': failed to create: Invalid argument(-22)\n",
            replace(ROOT, release="5.4.0", version=(5, 4)),
            "kernel.map_type",
            "this kernel (5.4.0) has no maps of type ringbuf (first in 5.8); use a perf event array, or a newer kernel",
        ),
        (
            failing("load", errno.EINVAL),
            "loader: map m2 is of type 1\nloader: map m is of type 32\nloader: loading the object\n"
            "libbpf: map 'm': failed to create: Invalid argument(-22)\n",
            replace(ROOT, release="6.1.0", version=(6, 1)),
            "kernel.map_type",
            "map 'm': this kernel (6.1.0) has no maps of type cgrp_storage (first in 6.2); use a hash by",
        ),
        (
            failing("load", errno.EINVAL),
            "loader: map m is of type 99\nlibbpf: map 'm': failed to create: Invalid argument(-22)\n",
            ROOT,
            "kernel.map_type",
            "map 'm': this kernel (6.12.1) refuses its type 99, which this skep does not know either; use another",
        ),
        (
            failing("load", errno.EINVAL),
            "loader: map m is of type 1\nlibbpf: map 'm': failed to create: Invalid argument(-22)\n",
            ROOT,
            "elf.map_def",
            "map 'm': this kernel (6.12.1) refuses its definition of type hash (EINVAL",
        ),
        (
            failing("load", errno.EINVAL),
            "libbpf: map 'events': failed to create: Invalid argument(-22)\n",
            ROOT,
            "elf.map_def",
            "map 'events'",
        ),
        (
            failing("load", errno.EPERM),
            "libbpf: map 'm': failed to create: Operation not permitted(-1)\n",
            NOBODY,
            "kernel.permission",
            "map 'm': the kernel does not let",
        ),
        (
            failing("load", errno.EIO),
            "libbpf: something new\n",
            ROOT,
            "elf.load",
            "EIO (Input/output error): something new",
        ),
        # Attaching.
        (
            failing("attach", errno.EACCES, program="tp"),
            "",
            replace(BPF_ONLY, perf_event_paranoid=3),
            "kernel.permission",
            "kernel.perf_event_paranoid is 3: it needs CAP_SYS_ADMIN, or the sysctl at 2 or less",
        ),
        (
            failing("attach", errno.EACCES, program="tp"),
            "",
            replace(BPF_ONLY, tracefs=False),
            "kernel.permission",
            "CAP_DAC_READ_SEARCH",
        ),
        (
            failing("attach", errno.EACCES, program="pe"),
            "",
            replace(BPF_ONLY, capabilities=frozenset({Capability.BPF})),
            "kernel.permission",
            "it needs CAP_PERFMON",
        ),
        (failing("attach", errno.EACCES, program="up"), "", BPF_ONLY, "kernel.permission", "CAP_SYS_ADMIN"),
        (failing("attach", errno.EPERM, program="xdp"), "", BPF_ONLY, "kernel.permission", "CAP_NET_ADMIN"),
        (
            failing("attach", errno.EPERM, program="kp"),
            "",
            replace(ROOT, lockdown="confidentiality"),
            "kernel.permission",
            "lockdown is 'confidentiality'",
        ),
        (failing("attach", errno.EPERM, program="raw"), "", NOBODY, "kernel.permission", "this process has none"),
        (
            failing("attach", errno.ENOENT, program="tp"),
            "",
            replace(ROOT, tracefs=False),
            "kernel.attach_target",
            "mount -t tracefs",
        ),
        (
            failing("attach", errno.EOPNOTSUPP, program="kp"),
            "",
            ROOT,
            "kernel.attach_target",
            "has no kprobes (CONFIG_KPROBES)",
        ),
        (
            failing("attach", errno.EOPNOTSUPP, program="raw"),
            "",
            ROOT,
            "kernel.attach_target",
            "complete it with attach",
        ),
        (
            failing("load", errno.E2BIG),
            load_log("raw", "BPF program is too large. Processed 1000001 insn"),
            ROOT,
            "elf.too_large",
            "program 'raw': the verifier of this kernel (6.12.1) gives up on it: BPF program is too large. Processed "
            "1000001 insn; branch",
        ),
        (
            failing("load", errno.E2BIG),
            "libbpf: prog 'raw': BPF program load failed: Argument list too long\n",
            ROOT,
            "elf.too_large",
            "more instructions than this kernel (6.12.1) loads",
        ),
        (
            failing("load", errno.EINVAL),
            load_log("raw", "kfunc 'bpf_none' is referenced but wasn't resolved"),
            ROOT,
            "elf.core_reloc",
            "program 'raw': calls kernel function 'bpf_none', which this kernel (6.12.1) does not have",
        ),
        (
            failing("load", errno.EINVAL),
            load_log("fentry", "vfs_read() is not modifiable"),
            ROOT,
            "kernel.attach_target",
            "section 'fentry/vfs_read' names what this kernel (6.12.1) does not let be traced: vfs_read() is not mod",
        ),
        (
            failing("load", errno.EINVAL),
            "libbpf: prog 'nf': BPF program load failed: Invalid argument\n",
            replace(ROOT, release="5.10.0", version=(5, 10)),
            "kernel.hook",
            "this kernel (5.10.0) has no netfilter programs (first in 6.4); choose another hook",
        ),
        (
            failing("load", errno.EINVAL),
            "libbpf: prog 'nf': BPF program load failed: Invalid argument\n",
            ROOT,
            "kernel.hook",
            "this kernel (6.12.1) was perhaps built without CONFIG_NETFILTER_BPF_LINK",
        ),
        (
            failing("load", errno.EINVAL),
            "libbpf: specified path /tmp/x is not on BPF FS\nlibbpf: map 'm': failed to auto-pin at '/tmp/x': -22\n",
            ROOT,
            "kernel.pin",
            "map 'm': pin path '/tmp/x' is in no BPF file system",
        ),
        (
            failing("pin", program="m", doing="the map pinned at '/x' has type 1, expected 2"),
            "",
            ROOT,
            "kernel.pin",
            "map 'm': the map pinned at '/x' has type 1, expected 2; remove the pin",
        ),
        (
            failing("symbol", program="jiffies", doing="this kernel has no such symbol; name another"),
            "",
            ROOT,
            "kernel.symbol",
            "kernel symbol 'jiffies': this kernel has no such symbol",
        ),
        (
            failing("attach", errno.EADDRNOTAVAIL, program="kp"),
            "",
            ROOT,
            "kernel.attach_target",
            "has several functions of that name",
        ),
        (
            failing("attach", errno.EINVAL, program="kp"),
            "",
            ROOT,
            "kernel.attach_target",
            "does not let it be probed there",
        ),
        (
            failing("attach", errno.ENOENT, program="pe"),
            "",
            ROOT,
            "kernel.attach_target",
            "choose another event, such as software:cpu-clock",
        ),
        (failing("attach", errno.EBADF, program="cg"), "", ROOT, "kernel.attach_target", "a directory of cgroup v2"),
        (failing("attach", errno.ENODEV, program="xdp"), "", ROOT, "kernel.attach_target", "attach.interfaces"),
        (failing("attach", errno.EBUSY, program="xdp"), "", ROOT, "kernel.attach_target", "detach it first"),
        (
            failing("attach", errno.EBUSY, program="fentry"),
            "",
            ROOT,
            "kernel.attach_target",
            "this kernel (6.12.1) has no place to trace in it (as in a function that is inlined, or marked notrace)",
        ),
        (
            failing("attach", errno.ENOENT, program="raw"),
            "loader: attaching program other\nlibbpf: prog 'other': bad: no\nloader: attaching program raw\n"
            "libbpf: prog 'raw': failed to attach to raw tracepoint 'x': No such file or directory\n",
            ROOT,
            "kernel.attach_target",
            "has no such tracepoint, or its module is not loaded",
        ),
        (
            failing("attach", program="xdp", doing="no interface"),
            "",
            ROOT,
            "kernel.attach_target",
            "'xdp': no interface",
        ),
        # Opening.
        (
            failing("open", 4001),
            "libbpf: elf: 'x' is not a proper ELF object\n",
            ROOT,
            "elf.corrupt",
            "LIBBPF_ERRNO__FORMAT: elf: 'x' is not a proper ELF object; build it",
        ),
        (
            failing("open", errno.ESRCH),
            "libbpf: prog 'f': missing BPF prog type, check ELF section name 'socket1'\n",
            ROOT,
            "elf.prog_type",
            "program 'f': libbpf knows no program type for section 'socket1'",
        ),
        (failing("match", doing="map 'm' is not there"), "", ROOT, "elf.difference", "map 'm' is not there; the plan"),
        (failing("check", doing="not sealed"), "", ROOT, "kernel.loader", "loader: not sealed"),
    ],
)
def test_failure_becomes_one_line_with_its_remedy(
    failure: Failure, log: str, features: Features, code: str, words: str
) -> None:
    """Code and words, in one line without a full stop."""
    error = explain(failure, sections=SECTIONS, log=log, features=features)
    assert error.code == code, str(error)
    assert words in str(error)
    assert "\n" not in str(error)
    assert not str(error).endswith(".")


def test_missing_kernel_function_names_program_section_and_target() -> None:
    """So that the operator can choose another, and the caller can load the rest without it."""
    log = "libbpf: prog 'fentry': failed to find kernel BTF type ID of 'vfs_read': -3\n"
    error = explain(failing("load", errno.ESRCH), sections=SECTIONS, log=log, features=ROOT)
    assert failed_target(log) == "fentry"
    assert error.code == "kernel.attach_target"
    assert "'fentry/vfs_read' attaches to 'vfs_read', which this kernel (6.12.1) does not have" in str(error)
    assert failed_target("") == ""


def test_complaint_is_found_in_a_log_whose_beginning_is_lost() -> None:
    """Megabytes of states come first; the file keeps the end."""
    log = "\n".join(
        load_log("big", *(f"{n}: R0=inv" for n in range(1000)), "BPF program is too large").splitlines()[500:]
    )
    assert verifier_complaint(log)[1] == "BPF program is too large"


def test_last_program_in_the_log_is_the_refused_one() -> None:
    """Only one load fails; a retry of libbpf may log it twice."""
    log = load_log("first", "R1 !read_ok") + "\n" + load_log("second", "R2 !read_ok")
    assert verifier_complaint(log) == ("second", "R2 !read_ok")
    assert verifier_complaint("nothing of that kind") == ("", "")


def test_log_is_bounded_and_without_our_own_notes() -> None:
    """Forty lines, newest last."""
    log = "loader: opening\n" + "".join(f"libbpf: line {n}\n" for n in range(100)) + "loader: loading\n"
    assert tail(log).splitlines() == [f"line {n}" for n in range(60, 100)]
    assert last_stage(log) == "loading"
    assert last_stage("") == "starting"


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (errno.ENOENT, "ENOENT (No such file or directory)"),
        (524, "ENOTSUPP (Operation is not supported)"),
        (4000, "LIBBPF_ERRNO__LIBELF"),
        (4013, "LIBBPF_ERRNO__NLPARSE"),
        (999, "errno 999 (Unknown error 999)"),
    ],
)
def test_every_errno_has_a_name(number: int, name: str) -> None:
    """Those of the C library, of the kernel alone, and of libbpf."""
    assert errno_name(number) == name


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            "libbpf: extern '__per_cpu_start' (strong): not resolved\nlibbpf: failed to load object 'x'",
            "object: extern '__per_cpu_start' is neither a symbol nor a setting of this kernel (6.12.1); declare it "
            "__weak, and test its address before its use",
        ),
        (
            load_log("raw", "ldimm64 failed to find the address for kernel symbol 'runqueues'."),
            "program 'raw': reads kernel symbol 'runqueues', which this kernel (6.12.1) has a type but no address for; "
            "declare it __weak, or build the kernel with CONFIG_KALLSYMS_ALL",
        ),
    ],
)
def test_symbol_that_this_kernel_does_not_give_is_named(log: str, said: str) -> None:
    """Neither is the program wrong, nor is an errno a reason."""
    error = explain(failing("load", errno.ESRCH), sections=SECTIONS, log=log, features=ROOT)
    assert (str(error), error.code) == (said, "elf.core_reloc")


def test_cgroup_security_hook_needs_the_trampoline_that_lockdown_refuses() -> None:
    """As fentry does; a container's limits have nothing to do with it."""
    log = load_log("lc", number=errno.EPERM)
    sections = {"lc": "lsm_cgroup/socket_create"}
    error = explain(failing("load", errno.EPERM), sections=sections, log=log, features=ROOT)
    assert "refuses the trampoline that section 'lsm_cgroup/socket_create' needs" in str(error)
