"""From what the loader child met to one line a person can act on: pure, given the log and the features.

libbpf returns one errno for many causes and says the rest in its log; so the log
is read here, by the phrases libbpf 1.4 and the kernel's verifier have used for
years. What none of them explains is said in the errno's words, never dropped.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.errors import KernelError
from exporter.hooks import Hook, hook_of, known_word, release, split_section

from .features import Capability, Features
from .map_types import map_kind

if TYPE_CHECKING:
    from .channel import Failure

LOG_LINES = 40

ENOTSUPP = 524
"""The kernel's own errno that user space has no name for."""

MEMCG_SINCE = (5, 11)
"""Linux kernel commit 3ac1f01b43b6 ("bpf: Eliminate rlimit-based memory accounting for bpf progs") and its series."""

# enum libbpf_errno of libbpf_legacy.h, from 4000 on.
_LIBBPF_ERRNOS = (
    "LIBELF", "FORMAT", "KVERSION", "ENDIAN", "INTERNAL", "RELOC", "LOAD", "VERIFY", "PROG2BIG", "KVER",
    "PROGTYPE", "WRNGPID", "INVSEQ", "NLPARSE",
)  # fmt: skip

# By a section's first word: what loading and attaching go through, which decides what they need.
_KPROBE_SECTIONS = ("kprobe", "kretprobe", "ksyscall", "kretsyscall")
_UPROBE_SECTIONS = ("uprobe", "uretprobe", "usdt")
_TRACEFS_SECTIONS = ("tp", "tracepoint")
_RAW_SECTIONS = ("raw_tp", "raw_tracepoint", "tp_btf")
_PERF_SECTIONS = (*_KPROBE_SECTIONS, *_UPROBE_SECTIONS, *_TRACEFS_SECTIONS, "perf_event")
_TRAMPOLINE_SECTIONS = ("fentry", "fexit", "fmod_ret", "lsm", "lsm_cgroup", "struct_ops", "freplace")
_NETWORK_SECTIONS = (
    "xdp", "tc", "tcx", "classifier", "action", "netkit", "netfilter", "cgroup", "cgroup_skb", "sockops", "sk_msg",
    "sk_skb", "flow_dissector", "sk_lookup", "lwt_in", "lwt_out", "lwt_xmit",
)  # fmt: skip

_TARGET = re.compile(r"prog '([^']+)': failed to find kernel BTF type ID of '([^']+)'")
_STATISTICS = re.compile(r"processed \d+ insns|verification time|stack depth|max_states|peak_states")
_UNTRACEABLE = re.compile(
    r"is not modifiable|is not allowed to be|not a function|[Cc]annot trace|can't attach|not traceable|is not sleepable"
)
_TOO_LARGE = re.compile(
    r"BPF program is too large\. Processed \d+ insn|program too large \(\d+ insns\)|"
    r"The sequence of \d+ jumps is too complex|too many states"
)
FROM_FILE = "its types come from a file, which serves CO-RE only; use a raw_tp, tracepoint or kprobe program"
"""Said where a kernel's own types are missed though a file stands in for them."""
_GIVE_TYPES = "give its types with `btf:` in the configuration, or use a kernel that shows them"


def errno_name(number: int) -> str:
    """``ENOENT (No such file or directory)``; also for the one the C library has no name for."""
    if number == ENOTSUPP:
        return "ENOTSUPP (Operation is not supported)"
    if 0 <= number - 4000 < len(_LIBBPF_ERRNOS):
        return f"LIBBPF_ERRNO__{_LIBBPF_ERRNOS[number - 4000]}"
    return f"{errno.errorcode.get(number, f'errno {number}')} ({os.strerror(number)})"


def failed_program(log: str) -> str:
    """The program that made a load fail, as far as the log names one; or ``""``."""
    return failed_target(log) or verifier_complaint(log)[0]


def failed_map(log: str) -> str:
    """The map that could not be created; or ``""``."""
    match = re.search(r"map '([^']+)': failed to create: ", log)
    return match[1] if match else ""


def map_left_out(log: str) -> str:
    """The map that the program which the verifier refused uses though it was not created; or ``""``."""
    match = re.match(r"BPF map '([^']+)' is referenced but wasn't created", verifier_complaint(log)[1])
    return match[1] if match else ""


def absent_function(log: str) -> str:
    """The kernel function that an object wants and this kernel does not have; or ``""``."""
    match = re.search(r"extern \(func ksym\) '([^']+)': not found", log)
    return match[1] if match else ""


def _named_last(log: str) -> str:
    match = re.search(r"^(?:libbpf: )?prog '([^']+)': (?:missing BPF prog type|failed to load: -)", log, re.MULTILINE)
    return match[1] if match else ""


def failed_target(log: str) -> str:
    """The program whose kernel function or typed tracepoint a failed load did not find; or ``""``."""
    match = _TARGET.search(log)
    return match[1] if match else ""


def tail(log: str, lines: int = LOG_LINES) -> str:
    """The last lines, without our own notes and libbpf's prefix, newest last."""
    kept = [line.removeprefix("libbpf: ").rstrip() for line in log.splitlines() if not line.startswith("loader: ")]
    return "\n".join([line for line in kept if line][-lines:])


def last_stage(log: str) -> str:
    """What the loader was doing when it last said so."""
    notes = re.findall(r"^loader: (.+)$", log, re.MULTILINE)
    return notes[-1] if notes else "starting"


def said_of(program: str, log: str) -> str:
    """The last line of libbpf while it attached this program, without the program's name; or ``""``."""
    _, found, rest = log.partition(f"loader: attaching program {program}\n")
    line = tail(rest.partition("\nloader: ")[0], 1) if found else ""
    return re.sub(r"^(prog '[^']*': )|: (-\d+|[A-Z][^:]*)$", "", line) if line else ""


def verifier_complaint(log: str) -> tuple[str, str]:
    """The program that the verifier refused, and its last word on it; empty when the log has none.

    The complaint is the last line that is neither the statistics nor state: the verifier stops where it objects.
    """
    names = re.findall(r"prog '([^']+)': BPF program load failed", log)
    blocks = re.findall(r"-- BEGIN PROG LOAD LOG --\n(.*?)-- END PROG LOAD LOG --", log, re.DOTALL)
    if not blocks and "-- END PROG LOAD LOG --" in log:  # its beginning was too long ago to be kept
        blocks = [log.rpartition("-- END PROG LOAD LOG --")[0]]
    complaint = ""
    for line in reversed(blocks[-1].splitlines() if blocks else []):
        stripped = line.strip()
        if stripped and not _STATISTICS.match(stripped):
            complaint = stripped
            break
    return (names[-1] if names else _named_last(log)), complaint


@dataclass(frozen=True, slots=True)
class _Case:
    """One failure with everything that is known around it."""

    failure: Failure
    sections: Mapping[str, str]
    log: str
    features: Features
    types: str

    @property
    def no_btf(self) -> str:
        """That the kernel shows no types, and what is known or to be done about it."""
        return f"{self.kernel} shows no BTF of its own (CONFIG_DEBUG_INFO_BTF); {self.types or _GIVE_TYPES}"

    @property
    def errno(self) -> int:
        return self.failure["errno"]

    @property
    def doing(self) -> str:
        """What failed, and by which errno."""
        return f"{self.failure['doing']}: {errno_name(self.errno)}" if self.errno else self.failure["doing"]

    @property
    def kernel(self) -> str:
        return f"this kernel ({self.features.release})"

    def head(self, program: str) -> str:
        """The first word of a program's section, as the table of hooks has it."""
        return known_word(split_section(self.sections.get(program, ""))[0]).partition(".")[0]

    def hook(self, program: str) -> Hook | None:
        """The kind of hook a program's section names."""
        return hook_of(self.sections.get(program, ""))

    def lacks(self, program: str) -> str:
        """What this kernel is too old for, or was perhaps built without, that a program needs; or ``""``."""
        hook = self.hook(program)
        if hook is None or (not hook.needs and self.features.version >= hook.since):
            return ""
        if self.features.version < hook.since:
            return f"{self.kernel} has no {hook.name} programs (first in {release(hook.since)})"
        return f"{self.kernel} was perhaps built without {hook.needs}"


def explain(
    failure: Failure, *, sections: Mapping[str, str], log: str, features: Features, types: str = ""
) -> KernelError:
    """Say what a failure of the loader means.

    ``sections`` has that of each program of the request, ``log`` what libbpf and the verifier said, ``types`` what
    became of finding the kernel's types elsewhere, if it does not show its own.
    """
    case = _Case(failure, sections, log, features, types)
    message, code = _EXPLAIN.get(failure["stage"], _explain_other)(case)
    return KernelError(message, code=code, log=tail(log))


def _explain_other(case: _Case) -> tuple[str, str]:
    return f"loader: {case.doing}", "kernel.loader"


def _explain_match(case: _Case) -> tuple[str, str]:
    return f"{case.doing}; the plan and libbpf must see one object, rebuild it", "elf.difference"


def _explain_open(case: _Case) -> tuple[str, str]:
    build = "build it with clang -target bpf"
    if not case.errno:
        return f"object: {case.doing}; {build}", "elf.corrupt"
    if match := re.search(r"prog '([^']+)': missing BPF prog type, check ELF section name '([^']+)'", case.log):
        return _unknown_section(match), "elf.prog_type"
    words = tail(case.log, 1)
    return f"object: libbpf cannot open it: {errno_name(case.errno)}{words and ': ' + words}; {build}", "elf.corrupt"


def _unknown_section(match: re.Match[str]) -> str:
    return f"program {match[1]!r}: libbpf knows no program type for section {match[2]!r}; rename the section"


def _explain_pin(case: _Case) -> tuple[str, str]:
    remedy = "remove the pin, choose another path with maps.…pin, or make the definitions equal"
    if case.errno:
        remedy = "see that the path is in a mounted BPF file system (mount -t bpf bpf /sys/fs/bpf)"
    return f"map {case.failure['program']!r}: {case.doing}; {remedy}", "kernel.pin"


def _explain_symbol(case: _Case) -> tuple[str, str]:
    return f"kernel symbol {case.failure['program']!r}: {case.doing}", "kernel.symbol"


def _explain_prepare(case: _Case) -> tuple[str, str]:
    return f"object: {case.doing}; rebuild the object or correct the plan", "elf.difference"


def _explain_enums(case: _Case) -> tuple[str, str]:
    return f"kernel: {case.doing}; the types that were given for it are damaged, get them again", "kernel.btf"


def _explain_target(case: _Case) -> tuple[str, str]:
    return _without_target(case, case.failure["program"], case.doing)


def _without_target(case: _Case, program: str, target: str) -> tuple[str, str]:
    has = f"attaches to {target!r}, which {case.kernel} does not have; choose another with attach.target"
    return f"program {program!r}: section {case.sections.get(program, '')!r} {has}", "kernel.attach_target"


def _explain_load(case: _Case) -> tuple[str, str]:
    log, number = case.log, case.errno
    program, complaint = verifier_complaint(log)
    subject = f"program {program!r}" if program else "object"
    if match := re.search(r"specified path (\S+) is not on BPF FS", log):
        named = re.search(r"map '([^']+)'[^\n]*pin", log)
        message = f"{'map ' + repr(named[1]) if named else 'object'}: pin path {match[1]!r} is in no BPF file system"
        return f"{message}; choose one below /sys/fs/bpf (mount -t bpf bpf /sys/fs/bpf)", "kernel.pin"
    if match := re.search(r"map '([^']+)': failed to create: .*?\((-?\d+)\)", log):
        return _explain_map(case, match[1], abs(int(match[2])))
    if name := failed_target(log):
        target = _TARGET.search(log)
        assert target
        return _without_target(case, name, target[2])
    if re.search(r"failed to find valid kernel BTF|[Ee]rror loading vmlinux BTF|kernel BTF is missing", log):
        return f"{subject}: needs the types of the running kernel; {case.no_btf}", "kernel.btf"
    if re.search(r"failed to parse target BTF", log):
        given = f"the types that were given for {case.kernel} are damaged or of something else"
        return f"{subject}: {given}; get the BTF of this very kernel", "kernel.btf"
    if match := re.search(r"prog '([^']+)': missing BPF prog type, check ELF section name '([^']+)'", log):
        return _unknown_section(match), "elf.prog_type"
    if match := re.search(r"kfunc '([^']+)' is referenced but wasn't resolved", log):
        message = f"{subject}: calls kernel function {match[1]!r}, which {case.kernel} does not have; declare it __weak"
        return f"{message}, and ask bpf_ksym_exists() before its call", "elf.core_reloc"
    if match := re.search(r"extern \((func |var )?ksym\) '([^']+)': not found", log):
        what = "function" if match[1] == "func " else "symbol"
        message = f"object: kernel {what} {match[2]!r} is not in {case.kernel}; declare it __weak"
        return f"{message}, and ask bpf_ksym_exists() before its use", "elf.core_reloc"
    if match := re.search(r"extern '([^']+)' \(strong\): not resolved", log):
        message = f"object: extern {match[1]!r} is neither a symbol nor a setting of {case.kernel}; declare it __weak"
        return f"{message}, and test its address before its use", "elf.core_reloc"
    if match := re.search(r"failed to find the address for kernel symbol '([^']+)'", log):
        message = f"{subject}: reads kernel symbol {match[1]!r}, which {case.kernel} has a type but no address for"
        return f"{message}; declare it __weak, or build the kernel with CONFIG_KALLSYMS_ALL", "elf.core_reloc"
    if match := re.search(
        r"failed to resolve CO-RE relocation (?:<[a-z_]+> )?(?:\[\d+\] )?(.+?)(?: \(.*\))?$", log, re.M
    ):
        if "accesses field incorrectly" in log:  # the member is there, in another size or kind
            other = f"{subject}: {case.kernel} has {match[1]!r} in another size than it is read with"
            return f"{other}; declare the member unsigned, or read it with BPF_CORE_READ_BITFIELD", "elf.core_reloc"
        none = f"{subject}: {case.kernel} has no match for {match[1]!r}"
        return f"{none}; guard it with bpf_core_field_exists() or its kin", "elf.core_reloc"
    if "cannot call GPL-restricted function from non-GPL compatible program" in log:
        message = f"{subject}: calls a function for GPL programs and its licence is not one"
        return message + '; declare SEC("license") "Dual BSD/GPL" or "GPL"', "elf.license"
    if match := _TOO_LARGE.search(log):
        message = f"{subject}: the verifier of {case.kernel} gives up on it: {match[0]}"
        return f"{message}; branch and loop less, or split it", "elf.too_large"
    if complaint and _UNTRACEABLE.search(complaint):
        section = case.sections.get(program, "")
        message = f"{subject}: section {section!r} names what {case.kernel} does not let be traced: {complaint}"
        return f"{message}; choose another with attach.target", "kernel.attach_target"
    # A complaint means that the verifier ran, and then its word explains the errno: it too says EPERM and EACCES.
    may_load = case.features.has(Capability.BPF, Capability.PERFMON)
    if complaint and (may_load or number != errno.EPERM):
        remedy = "compare the pointer with NULL before its use" if "or_null_" in complaint else "correct the program"
        return f"{subject}: the verifier of {case.kernel} refuses it: {complaint}; {remedy}", "elf.verifier"
    if number in (errno.EPERM, errno.EACCES):
        return f"{subject}: {_load_remedy(case, program)}", "kernel.permission"
    if number == errno.E2BIG:
        message = f"{subject}: it has more instructions than {case.kernel} loads for this process"
        return f"{message}; split it, or give CAP_BPF", "elf.too_large"
    if number == errno.ENOMEM:
        return f"{subject}: {errno_name(number)} when loading it; make maps or program smaller", "kernel.memory"
    if number in (errno.EINVAL, errno.EOPNOTSUPP) and program and (lacks := case.lacks(program)):
        instead = "choose another hook, or declare an alternative"
        return f"{subject}: section {case.sections.get(program, '')!r}: {lacks}; {instead}", "kernel.hook"
    if number == ENOTSUPP and case.head(program) in _TRAMPOLINE_SECTIONS:
        message = f"{subject}: {case.kernel} has no trampolines on this architecture (arm64: first in 6.0)"
        return message + "; use a tp_btf or raw_tp program", "kernel.attach_target"
    return f"{subject}: {case.doing}: {tail(log, 1)}; see the log", "elf.load"


def _load_remedy(case: _Case, program: str) -> str:
    features, head = case.features, case.head(program)
    needed = [Capability.BPF, Capability.PERFMON]
    needed += [Capability.NET_ADMIN] if head in _NETWORK_SECTIONS else []
    if missing := " and ".join(f"CAP_{capability.name}" for capability in needed if not features.has(capability)):
        return f"the kernel does not let this process load BPF without {missing}; give it that, or run as root"
    if features.version < MEMCG_SINCE:
        return f"{case.kernel} counts BPF memory against RLIMIT_MEMLOCK; set LimitMEMLOCK=infinity"
    if head in _TRAMPOLINE_SECTIONS:
        because = "" if features.lockdown in ("", "none") else f" (lockdown is {features.lockdown!r})"
        section = case.sections[program]
        return (
            f"{case.kernel} refuses the trampoline that section {section!r} needs{because}; "
            "use a tp_btf or raw_tp program, or boot without lockdown"
        )
    if features.lockdown == "confidentiality":
        return "lockdown is 'confidentiality' and refuses programs that read the kernel; boot with 'integrity' or less"
    return "the kernel refuses to load it in spite of its capabilities; look for a security module or a container limit"


_INSTEAD = {
    "ringbuf": "a perf event array",
    "task_storage": "a hash by bpf_get_current_pid_tgid()",
    "cgrp_storage": "a hash by bpf_get_current_cgroup_id()",
    "inode_storage": "a hash by inode number",
    "sk_storage": "a hash by bpf_get_socket_cookie()",
}
"""Of a map type that a kernel does not have yet."""


def _explain_map(case: _Case, name: str, number: int) -> tuple[str, str]:
    if number in (errno.ENOMEM, errno.E2BIG):
        message = f"map {name!r}: the kernel has no memory for it ({errno_name(number)}); lower its max_entries"
        return message, "kernel.memory"
    if number in (errno.EPERM, errno.EACCES):
        return f"map {name!r}: {_load_remedy(case, '')}", "kernel.permission"
    noted = re.search(rf"^loader: map {re.escape(name)} is of type (\d+)$", case.log, re.MULTILINE)
    kind = map_kind(int(noted[1])) if noted else None
    if noted and not kind and number == errno.EINVAL:
        message = f"map {name!r}: {case.kernel} refuses its type {noted[1]}, which this skep does not know either"
        return f"{message}; use another type, or newer ones of both", "kernel.map_type"
    if number in (errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP) and kind and case.features.version < kind.since:
        message = f"map {name!r}: {case.kernel} has no maps of type {kind.name} (first in {release(kind.since)})"
        return f"{message}; use {_INSTEAD.get(kind.name, 'another type')}, or a newer kernel", "kernel.map_type"
    of_type = f" of type {kind.name}" if kind else ""
    message = f"map {name!r}: {case.kernel} refuses its definition{of_type} ({errno_name(number)})"
    return message + "; see that type, sizes, max_entries and flags go together", "elf.map_def"


def _explain_attach(case: _Case) -> tuple[str, str]:
    number, program = case.errno, case.failure["program"]
    head = case.head(program)
    message = f"program {program!r}: {case.doing}"
    if not number:  # section and options contradict each other, and the sentence says how
        return message, "kernel.attach_target"
    if number in (errno.EPERM, errno.EACCES):
        return f"{message}; {_attach_remedy(case.features, head)}", "kernel.permission"
    remedy = _place_remedy(case, program, head, number)
    if not remedy and (words := said_of(program, case.log)):
        message = f"program {program!r}: {words}: {errno_name(number)}"
    remedy = remedy or f"see that {case.kernel} has it, or choose another with attach"
    return f"{message}; {remedy}", "kernel.attach_target"


def _place_remedy(case: _Case, program: str, head: str, number: int) -> str:
    """What to do where the kernel says that this cannot be attached there; ``""`` if that is not clear."""
    if head in _TRACEFS_SECTIONS and not case.features.tracefs:
        return "tracefs is not mounted or not readable: mount -t tracefs nodev /sys/kernel/tracing"
    if head in (*_TRACEFS_SECTIONS, *_RAW_SECTIONS) and number == errno.ENOENT:
        return f"{case.kernel} has no such tracepoint, or its module is not loaded; choose another with attach.target"
    if head in _KPROBE_SECTIONS:
        return _function_remedy(case, number)
    if head in _UPROBE_SECTIONS and number in (errno.ENOENT, errno.ESRCH, errno.EISDIR, errno.ENOTDIR):
        return "see that file, symbol and process are there, or choose others with attach.binary, attach.target"
    if head in _TRAMPOLINE_SECTIONS and number == errno.EBUSY:
        # Any number of programs share a function: it has no call at its beginning that could be turned to them.
        return (
            f"{case.kernel} has no place to trace in it (as in a function that is inlined, or marked notrace); "
            "choose another with attach.target"
        )
    if number in (errno.EBUSY, errno.EEXIST):
        return f"another program is attached there on {case.kernel}; detach it first"
    if head == "perf_event" and number in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.EINVAL):
        return f"{case.kernel} does not count that on this machine; choose another event, such as software:cpu-clock"
    if number == errno.ENODEV:
        return f"{case.kernel} has no such interface; choose another with attach.interfaces"
    if number == errno.EAFNOSUPPORT:
        return "packet sockets are not allowed here; RestrictAddressFamilies= of the unit needs AF_PACKET"
    if number == errno.EBADF and head in ("cgroup", "cgroup_skb", "sockops", "lsm_cgroup"):
        return "choose a directory of cgroup v2 with attach.cgroup"
    if number == errno.EINVAL and (lacks := case.lacks(program)):
        return f"{lacks}; choose another hook, or declare an alternative"
    if number == errno.EOPNOTSUPP:
        return f"section {case.sections.get(program, '')!r} does not say where; complete it with attach"
    return ""


def _function_remedy(case: _Case, number: int) -> str:
    instead = "choose another with attach.target, or use a tp_btf or raw_tp program"
    if number in (errno.ENOENT, errno.ESRCH):
        return f"{case.kernel} has no such function, or inlines it; {instead}"
    if number == errno.EADDRNOTAVAIL:
        return f"{case.kernel} has several functions of that name; {instead}"
    if number in (errno.EOPNOTSUPP, ENOTSUPP, errno.ENOSYS):
        return f"{case.kernel} has no kprobes (CONFIG_KPROBES), or not there; {instead}"
    if number == errno.EINVAL:
        return f"{case.kernel} does not let it be probed there; {instead}"
    return ""


def _attach_remedy(features: Features, head: str) -> str:
    if head == "socket" and Capability.SYS_ADMIN not in features.capabilities:
        return "it needs CAP_NET_RAW"
    if head in _NETWORK_SECTIONS and not features.has(Capability.NET_ADMIN):
        return "it needs CAP_NET_ADMIN"
    instead = "or use a tp_btf or raw_tp program"
    if head in _PERF_SECTIONS and Capability.SYS_ADMIN not in features.capabilities:
        if (features.perf_event_paranoid or 0) >= 3:
            setting = f"kernel.perf_event_paranoid is {features.perf_event_paranoid}"
            return f"{setting}: it needs CAP_SYS_ADMIN, or the sysctl at 2 or less; {instead}"
        if head in _TRACEFS_SECTIONS and not features.tracefs:
            return f"tracefs is not readable to this process: it needs CAP_DAC_READ_SEARCH; {instead}"
        if not features.has(Capability.PERFMON):
            return "it needs CAP_PERFMON"
        if head in _UPROBE_SECTIONS:
            return "it needs CAP_SYS_ADMIN for that on this kernel"
    if features.lockdown not in ("", "none"):
        return f"kernel lockdown is {features.lockdown!r}, which refuses it"
    has = ", ".join(f"CAP_{capability.name}" for capability in sorted(features.capabilities))
    return f"it needs more privilege; this process has {has or 'none'}"


_EXPLAIN = {
    "attach": _explain_attach,
    "enums": _explain_enums,
    "load": _explain_load,
    "match": _explain_match,
    "open": _explain_open,
    "pin": _explain_pin,
    "prepare": _explain_prepare,
    "symbol": _explain_symbol,
    "target": _explain_target,
}
