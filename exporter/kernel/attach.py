"""Where a program attaches: its section's words, the operator's options over them; runs in the loader child.

libbpf attaches what a section names completely. What needs an argument that a
section cannot hold or that the operator chose (interfaces, a binary, a cgroup, a
sampling frequency) is attached here call by call. Options are named as in the
configuration's ``attach``; one that does not fit the program's type is an error,
never ignored.

Imports nothing at module level that a program without such options does not need.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ._libbpf import Program

Options = Mapping[str, object]

_TARGET = frozenset({"target"})
_BINARY = frozenset({"binary", "target", "pid"})
_SAMPLING = frozenset({"target", "frequency_hz", "period", "pid"})
_INTERFACES = frozenset({"interfaces"})
_CGROUP = frozenset({"cgroup"})

# By the section's first word, without the marks of sleepable (.s) and writable (.w) programs.
_OPTIONS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("tracepoint", "tp", "raw_tracepoint", "raw_tp", "kprobe", "kretprobe"), _TARGET),
    **dict.fromkeys(("kprobe.multi", "kretprobe.multi"), _TARGET),
    **dict.fromkeys(("tp_btf", "fentry", "fexit", "fmod_ret", "lsm", "iter"), _TARGET),
    **dict.fromkeys(("uprobe", "uretprobe", "uprobe.multi", "uretprobe.multi", "usdt"), _BINARY),
    "perf_event": _SAMPLING,
    **dict.fromkeys(("xdp", "xdp.frags", "tcx", "tc"), _INTERFACES),
    **dict.fromkeys(("cgroup", "cgroup_skb", "sockops"), _CGROUP),
}
_BY_BTF = ("tp_btf", "fentry", "fexit", "fmod_ret", "lsm", "iter")

# enum perf_type_id, enum perf_hw_id and enum perf_sw_ids of linux/perf_event.h, by the names perf(1) gives them.
_PERF_TYPES = {"hardware": 0, "software": 1}
_PERF_EVENTS = {
    0: (
        "cpu-cycles", "instructions", "cache-references", "cache-misses", "branch-instructions", "branch-misses",
        "bus-cycles", "stalled-cycles-frontend", "stalled-cycles-backend", "ref-cycles",
    ),
    1: (
        "cpu-clock", "task-clock", "page-faults", "context-switches", "cpu-migrations", "minor-faults",
        "major-faults", "alignment-faults", "emulation-faults", "dummy", "bpf-output", "cgroup-switches",
    ),
}  # fmt: skip

UPROBE_MULTI_SINCE = (6, 6)
"""Linux kernel commit 89ae89f53d20 ("bpf: Add multi uprobe link").

Through it CAP_BPF and CAP_PERFMON are enough; the perf way wants CAP_SYS_ADMIN.
"""


class AttachError(ValueError):
    """The section and the options do not say, together, where to attach."""


class UserSymbol(NamedTuple):
    """A place in a binary: ``symbol`` plus ``offset``, or with no symbol an offset in the file."""

    binary: str
    symbol: str
    offset: int


class Sampling(NamedTuple):
    """A sampling perf event: ``enum perf_type_id``, its config, and one sample every so often."""

    type: int
    config: int
    sample: int
    by_frequency: bool
    pid: int


def split_section(section: str) -> tuple[str, str]:
    """The first word of a section name without marks, and what stands behind its slash."""
    head, _, rest = section.removeprefix("?").partition("/")
    return head.removesuffix(".s").removesuffix(".w"), rest


def check_options(section: str, options: Options) -> None:
    """Raise :class:`AttachError` for an option that programs of this section do not have."""
    head, _ = split_section(section)
    accepted = _OPTIONS.get(head, frozenset())
    for key in options:
        if key not in accepted:
            has = f"has {', '.join(sorted(accepted))}" if accepted else "has no attach options"
            raise AttachError(f"attach option {key!r} does not fit section {section!r}, which {has}")


def prepare(program: Program, options: Options) -> None:
    """What must be said about attaching before the object is loaded."""
    check_options(program.section, options)
    head, rest = split_section(program.section)
    if head in _BY_BTF and options.get("target"):
        program.set_target(_text(options, "target"))
    if head in ("uprobe", "uretprobe") and _by_multi_link(parse_user_symbol(rest, options), options):
        program.set_uprobe_multi()


def attach(program: Program, options: Options) -> list[int]:
    """Attach one loaded program.

    Returns:
        Descriptors, the caller's: closing the last copy of each detaches.

    Raises:
        AttachError: see there.
        OSError: the kernel's refusal; ``strerror`` is what was being done.
    """
    head, rest = split_section(program.section)
    before = set(_own_descriptors())
    link: int | None
    if head in ("tracepoint", "tp"):
        category, slash, name = (_text(options, "target") or rest).partition("/")
        if not slash or not name:
            raise AttachError(f"tracepoint {category!r} is not CATEGORY/NAME; set attach.target")
        link = program.attach_tracepoint(category, name)
    elif head in ("raw_tracepoint", "raw_tp"):
        if not (name := _text(options, "target") or rest):
            raise AttachError(f"section {program.section!r} names no tracepoint; set attach.target")
        link = program.attach_raw_tracepoint(name)
    elif head in ("kprobe", "kretprobe") and options.get("target"):
        function, offset = parse_offset(_text(options, "target"))
        link = program.attach_kprobe(function, offset=offset, retprobe=head == "kretprobe")
    elif head in ("kprobe.multi", "kretprobe.multi") and options.get("target"):
        link = program.attach_kprobe_multi(_text(options, "target"), retprobe=head == "kretprobe.multi")
    elif head in ("uprobe", "uretprobe"):
        link = _attach_uprobe(program, parse_user_symbol(rest, options), options, retprobe=head == "uretprobe")
    elif head in ("uprobe.multi", "uretprobe.multi"):
        place = parse_user_symbol(rest, options)
        link = program.attach_uprobe_multi(
            place.binary, place.symbol, one=False, retprobe=head == "uretprobe.multi", pid=_pid(options)
        )
    elif head == "usdt":
        binary, provider, probe = parse_usdt(rest, options)
        link = program.attach_usdt(binary, provider, probe, pid=_pid(options))
    elif head == "perf_event":
        return _attach_perf_event(program, parse_sampling(rest, options))
    elif head in ("xdp", "xdp.frags"):
        return _attach_interfaces(program, _interfaces(options) or ([rest] if rest else []), _attach_xdp)
    elif head in ("tcx", "tc"):
        return _attach_interfaces(program, _interfaces(options), type(program).attach_tcx)
    elif options.get("cgroup"):
        link = _attach_cgroup(program, _text(options, "cgroup"))
    elif _OPTIONS.get(head) == _CGROUP:
        raise AttachError(f"section {program.section!r} names no cgroup; set attach.cgroup")
    else:
        link = program.attach()
    if link is not None:
        return [link]
    # A composite link (USDT): its parts are the descriptors that were not there before.
    return [_duplicate(fd) for fd, kind in _own_descriptors().items() if fd not in before and _is_link(kind)]


def parse_offset(text: str) -> tuple[str, int]:
    """``function+0x10`` as name and offset."""
    name, plus, offset = text.partition("+")
    try:
        return name, int(offset, 0) if plus else 0
    except ValueError:
        raise AttachError(f"offset {offset!r} in {text!r} is not a number") from None


def parse_user_symbol(rest: str, options: Options) -> UserSymbol:
    """The place a ``uprobe/BINARY:SYMBOL[+OFFSET]`` section and its options name."""
    from_section = rest.rpartition(":")
    binary = _text(options, "binary") or from_section[0]
    place = _text(options, "target") or from_section[2]
    if not binary:
        raise AttachError("no binary is named; set attach.binary")
    if not place:
        raise AttachError(f"no symbol of {binary!r} is named; set attach.target")
    if place[0].isdigit():
        return UserSymbol(binary, "", parse_offset("+" + place)[1])
    return UserSymbol(binary, *parse_offset(place))


def parse_usdt(rest: str, options: Options) -> tuple[str, str, str]:
    """Binary, provider and probe of ``usdt/BINARY:PROVIDER:PROBE`` and its options."""
    parts = rest.rsplit(":", 2)
    binary = _text(options, "binary") or (parts[0] if len(parts) == 3 else "")
    probe = _text(options, "target").split(":") if options.get("target") else parts[-2:]
    if not binary:
        raise AttachError("no binary is named; set attach.binary")
    if len(probe) != 2 or not all(probe):
        raise AttachError(f"probe {':'.join(probe)!r} is not PROVIDER:NAME; set attach.target")
    return binary, probe[0], probe[1]


def parse_sampling(rest: str, options: Options) -> Sampling:
    """The event of ``perf_event/type=software,config=cpu-clock,frequency=99`` (or ``period=``) and its options.

    ``attach.target`` replaces the config, with ``type:`` before it if that differs.
    """
    words = dict.fromkeys(("type", "config", "frequency", "period"), "")
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        key = "period" if key == "sample_period" else key
        if key not in words or not equals:
            raise AttachError(f"{part!r} in a perf_event section is none of {', '.join(f'{word}=' for word in words)}")
        words[key] = value
    target = _text(options, "target")
    if ":" in target:
        words["type"], _, target = target.partition(":")
    words["config"] = target or words["config"] or "cpu-clock"
    if options.get("frequency_hz"):
        words["frequency"], words["period"] = str(options["frequency_hz"]), ""
    if options.get("period"):
        words["frequency"], words["period"] = "", str(options["period"])
    if bool(words["frequency"]) == bool(words["period"]):
        raise AttachError("a perf_event needs one of frequency and period; set attach.frequency_hz or attach.period")
    event_type = _number(words["type"] or "software", _PERF_TYPES, "type")
    names = {name: number for number, name in enumerate(_PERF_EVENTS.get(event_type, ()))}
    return Sampling(
        type=event_type,
        config=_number(words["config"], names, "config"),
        sample=_number(words["frequency"] or words["period"], {}, "frequency or period"),
        by_frequency=bool(words["frequency"]),
        pid=_pid(options),
    )


def _number(text: str, names: Mapping[str, int], what: str) -> int:
    if text in names:
        return names[text]
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if number < 0:
        known = f", or one of {', '.join(names)}" if names else ""
        raise AttachError(f"perf event {what} {text!r} is not a number{known}")
    return number


def _text(options: Options, key: str) -> str:
    return str(options.get(key) or "")


def _pid(options: Options) -> int:
    """A process id; -1 is every process."""
    return int(str(options.get("pid") or -1))


def _interfaces(options: Options) -> list[str]:
    value = options.get("interfaces")
    return [str(name) for name in value] if isinstance(value, Sequence) and not isinstance(value, str) else []


def _by_multi_link(place: UserSymbol, options: Options) -> bool:
    from .features import parse_release  # noqa: PLC0415

    # By plain symbol only: offsets and symbol versions need the perf way. So does a
    # process: the multi link took it for a thread until Linux 6.10 (commit 46ba0e49b642).
    plain = place.symbol and not place.offset and "@" not in place.symbol
    return bool(plain) and not options.get("pid") and parse_release(os.uname().release) >= UPROBE_MULTI_SINCE


def _attach_uprobe(program: Program, place: UserSymbol, options: Options, *, retprobe: bool) -> int | None:
    if _by_multi_link(place, options):
        return program.attach_uprobe_multi(place.binary, place.symbol, one=True, retprobe=retprobe, pid=-1)
    return program.attach_uprobe(place.binary, place.symbol, offset=place.offset, retprobe=retprobe, pid=_pid(options))


def _attach_perf_event(program: Program, sampling: Sampling) -> list[int]:
    """One event per online CPU; a CPU that comes later is not sampled, one that goes away just falls silent."""
    from . import _libbpf  # noqa: PLC0415
    from .features import online_cpus  # noqa: PLC0415

    links: list[int] = []
    # A process's event follows it over all CPUs.
    for cpu in online_cpus() if sampling.pid < 0 else (-1,):
        event = _libbpf.open_perf_event(
            type=sampling.type,
            config=sampling.config,
            sample=sampling.sample,
            by_frequency=sampling.by_frequency,
            pid=sampling.pid,
            cpu=cpu,
        )
        link = program.attach_perf_event(event)
        assert link is not None
        links.append(link)
    return links


def _attach_xdp(program: Program, ifindex: int) -> int:
    """By the driver; where it has no XDP or cannot take this program, by the kernel above it."""
    try:
        return program.attach_xdp(ifindex, generic=False)
    except OSError as refusal:
        if refusal.errno in (errno.EPERM, errno.EACCES, errno.EBUSY, errno.EEXIST, errno.ENODEV):
            raise
        return program.attach_xdp(ifindex, generic=True)


def _attach_interfaces(program: Program, names: Sequence[str], one: object) -> list[int]:
    import socket  # noqa: PLC0415

    if not names:
        raise AttachError(f"section {program.section!r} names no interface; set attach.interfaces")
    links: list[int] = []
    try:
        for name in names:
            try:
                ifindex = socket.if_nametoindex(name)
            except OSError:  # which has no number
                raise OSError(errno.ENODEV, f"looking for interface {name!r}") from None
            try:
                links.append(one(program, ifindex))  # type: ignore[operator]
            except OSError as error:
                raise OSError(error.errno, f"attaching to interface {name!r}") from None
    except OSError:
        # All or none: half of a program's interfaces would look like all of the traffic.
        for link in links:
            os.close(link)
        raise
    return links


def _attach_cgroup(program: Program, path: str) -> int | None:
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, f"opening cgroup {path!r}") from None
    try:
        return program.attach_cgroup(directory)
    finally:
        os.close(directory)


def _own_descriptors() -> dict[int, str]:
    """Every open descriptor of this process and what it is."""
    found: dict[int, str] = {}
    # os and not pathlib: the loader does without it.
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")  # noqa: PTH115
    return found


def _is_link(kind: str) -> bool:
    return kind.startswith(("anon_inode:bpf_link", "anon_inode:bpf-link", "anon_inode:[perf_event]"))


def _duplicate(fd: int) -> int:
    return os.dup(fd)
