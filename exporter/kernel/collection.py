"""Loading an object through the one-shot child, and what is held of it afterwards.

The parent never lets libbpf near the object. It gives a child a sealed copy and a
deadline, and takes descriptors back; whether the child answers, refuses, crashes
or hangs, that is this image's result and nobody else's.

A program is attached for as long as a descriptor of its link is open anywhere.
So the child is started by ``subprocess`` with ``close_fds``: between fork and
exec only C code runs, and exec closes every descriptor but the child's own three.
A fork without exec anywhere in a process that holds a :class:`Collection` would
copy its links and keep programs running after :meth:`Collection.close`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from exporter.errors import KernelError
from exporter.hooks import hook_of

from . import _reader, channel, diagnosis, features, netlink
from .maps import Map
from .usage import ProgramUsage, program_usage

_ROOT = Path(__file__).resolve().parents[2]
# No site packages, no user's environment, no code of .pth files in a privileged process.
_COMMAND = (
    "-I",
    "-S",
    "-B",
    "-c",
    "import sys; sys.path.append(sys.argv[1]); from exporter.kernel.loader import main; main()",
)
_LOG_BYTES = 64 << 10
_KILL_PATIENCE_S = 5.0
_SAMPLE_DEADLINE_S = 10.0
_ITERATOR_CHUNK = 64 << 10
_TEXT_BYTES = 1 << 20
_SHOWN_CAUSES, _SHOWN_NAMES = 3, 5
_START_REMEDY = f"see that {sys.executable!r} is there and may be executed"
_START_REMEDIES = {
    errno.EAGAIN: "raise TasksMax or LimitNPROC",
    errno.ENOMEM: "the machine or MemoryMax is out of memory",
    errno.EMFILE: "raise LimitNOFILE",
    errno.ENFILE: "raise the sysctl fs.file-max",
}


@dataclass(frozen=True, slots=True)
class ProgramRequest:
    """A program to load and attach.

    Attributes:
        section: As the object has it; libbpf must see the same.
        attach: Options over the section, by the names of :mod:`exporter.hooks`; None for none.
        alternative: A group of programs for one measurement, of which one runs: that of the lowest rank which can.
    """

    name: str
    section: str
    attach: Mapping[str, object] | None = None
    alternative: str = ""
    rank: int = 0


@dataclass(frozen=True, slots=True)
class MapRequest:
    """What is changed about a map before it is created.

    Attributes:
        clear_value_size: A ring buffer declared with a record type: the kernel wants sizes of 0.
        max_entries: 0 leaves it.
        pin: A path in the BPF file system under which it is shared: the map there is used, or this one put there.
        value_size: 0 leaves it.
    """

    name: str
    clear_value_size: bool = False
    max_entries: int = 0
    pin: str = ""
    value_size: int = 0


@dataclass(frozen=True, slots=True)
class GlobalRequest:
    """Bytes of a global variable, written before load; or those of the address of a kernel symbol."""

    section: str
    offset: int
    value: bytes
    ksym: str = ""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One object and what is wanted of it.

    Attributes:
        name: Of the object in messages and in the kernel's names of its global data.
        object: The ELF file.
        programs: Those to load; the object's others stay out of the kernel.
        read_maps: Maps whose rows or records will be read: their descriptors come back. A section of global
            variables, such as ``.bss``, is a map of one row.
        enums: Kernel enums whose values are asked for.
        partial: Programs that cannot load or attach are reported and the others run; else the first fails the load.
        deadline_s: Of one attempt, its beginning to its end; each program that has to be left out costs another.
        types: BTF of the running kernel, for one that shows none; empty for its own.
        no_types: Why there is none, if it was looked for; said where it is missed.
    """

    name: str
    object: bytes
    programs: tuple[ProgramRequest, ...]
    maps: tuple[MapRequest, ...] = ()
    globals: tuple[GlobalRequest, ...] = ()
    read_maps: tuple[str, ...] = ()
    enums: tuple[str, ...] = ()
    partial: bool = True
    deadline_s: float = 30.0
    types: bytes = b""
    no_types: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """A program of the request, and what became of it.

    Attributes:
        attached: Whether it runs.
        error: Why it does not, one line that does not repeat its name; else empty.
        passed_over: Why another alternative runs instead, which is no error; else empty.
        id, tag: The kernel's, 0 and empty if not loaded.
        fd: Its descriptor, owned by the collection; -1 if not attached.
        links: Descriptors that keep it attached, owned by the collection.
        cpus: The CPU of each link, if it is attached CPU by CPU.
        attach: As requested.
    """

    name: str
    section: str
    attached: bool
    error: str = ""
    passed_over: str = ""
    id: int = 0
    tag: str = ""
    fd: int = -1
    links: tuple[int, ...] = field(default=(), repr=False)
    cpus: tuple[int, ...] = field(default=(), repr=False)
    attach: Mapping[str, object] = field(default_factory=dict, repr=False)


class Collection:
    """A loaded object: its programs run until :meth:`close`, or until this process ends.

    Attributes:
        maps: The maps asked for, by name.
        programs: In the order of the request.
        enums: ``{enum: {enumerator: value}}`` of the running kernel; ``{}`` for one it does not have.
        stages: When ``load`` and ``attach`` began and ended, monotonic seconds; empty if they were elsewhere.
    """

    def __init__(
        self,
        name: str,
        programs: Sequence[Program],
        maps: Sequence[Map],
        enums: Mapping[str, Mapping[str, int]],
        stages: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.name = name
        self.programs = tuple(programs)
        self.maps = {map.name: map for map in maps}
        self.enums = enums
        self.stages = stages or {}
        self._open = True
        self._lock = threading.Lock()
        self._last_usage: dict[str, ProgramUsage] = {}

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def usage(self) -> dict[str, ProgramUsage]:
        """What each loaded program has used; of one that is detached, what it had when it was. From any thread."""
        with self._lock:
            for program in self.programs:
                used = program_usage(program.fd) if program.fd >= 0 else None
                if used is not None:
                    self._last_usage[program.name] = used
            return dict(self._last_usage)

    def iterate(self, *, text: bool = True) -> Iterator[tuple[str, bytes]]:
        """Run every iterator once to its end.

        Yields:
            The program's name and, if asked for, the beginning of what it wrote.

        Raises:
            KernelError: ``kernel.iterate``: one could not be run; the others were, or will be if asked again.
        """
        failed = None
        for program in self.programs:
            for link in program.links if _is_iterator(program) else ():
                try:
                    yield program.name, _read_iterator(link, _TEXT_BYTES if text else 0)
                except OSError as error:
                    told = f"{error.strerror}: {diagnosis.errno_name(error.errno or 0)}"
                    failed = failed or KernelError(f"program {program.name!r}: {told}", code="kernel.iterate")
        if failed:
            raise failed

    def follow_cpus(self, online: Sequence[int]) -> bool:
        """Have programs that sample every CPU sample just these: some may have come or gone since.

        Returns:
            Whether anything changed.

        Raises:
            KernelError: a CPU that came cannot be sampled; those that went are let go of all the same.
        """
        changed = False
        with self._lock:
            for index, program in enumerate(self.programs):
                if not program.links or not program.cpus or set(program.cpus) == set(online):
                    continue
                changed = True
                links = dict(zip(program.cpus, program.links, strict=True))
                let_go([links.pop(cpu) for cpu in program.cpus if cpu not in online])
                try:
                    came = [cpu for cpu in online if cpu not in links]
                    links.update(zip(came, _sample(program, came), strict=True) if came else ())
                finally:
                    kept = replace(program, cpus=tuple(links), links=tuple(links.values()))
                    self.programs = (*self.programs[:index], kept, *self.programs[index + 1 :])
        return changed

    def detach(self) -> None:
        """Detach every program; the maps can still be read. Harmless when repeated."""
        with self._lock:
            programs, self.programs = self.programs, tuple(replace(p, links=()) for p in self.programs)
        for program in programs:
            let_go(program.links)
        self.usage()  # the last runs too: nothing runs any more, and the program is still held
        with self._lock:
            programs, self.programs = self.programs, tuple(replace(p, fd=-1) for p in self.programs)
            let_go([program.fd for program in programs])

    def close(self) -> None:
        """Detach every program and let go of every map; harmless when repeated."""
        if not self._open:
            return
        self._open = False
        self.detach()
        for map in self.maps.values():
            map.close()


def load(request: LoadRequest) -> Collection:
    """Load and attach an object in a child of its own.

    Raises:
        KernelError: the kernel, libbpf or this machine refused; ``code`` says
            why and ``log`` has the last lines of libbpf and the verifier.
            ``kernel.crashed`` and ``kernel.deadline``: the child did not answer;
            ``kernel.loader``: it could not be started.
    """
    sections = {program.name: program.section for program in request.programs}
    refused: dict[str, KernelError] = {}
    absent: list[str] = []
    left_out: dict[str, KernelError] = {}
    while True:
        deadline = time.monotonic() + request.deadline_s
        try:
            answer, descriptors, log = _ask_child(request, tuple(refused), absent, tuple(left_out), deadline)
        except OSError as refusal:  # no process, no descriptor, no memory for one
            number = refusal.errno or 0
            raise KernelError(
                f"loader: cannot be started: {diagnosis.errno_name(number)}; "
                + _START_REMEDIES.get(number, _START_REMEDY),
                code="kernel.loader",
            ) from refusal
        function = diagnosis.absent_function(log) if answer["failure"] else ""
        if function and function not in absent:
            # Asked again, only the programs that call it fail.
            absent.append(function)
            continue
        unknown = diagnosis.failed_map(log) if answer["failure"] else ""
        if answer["failure"] and request.partial and unknown not in ("", *left_out, *request.read_maps):
            error = _explained(request, answer["failure"], log)
            if error.code == "kernel.map_type":
                # Nobody reads it: only the programs that use it fail without.
                left_out[unknown] = error
                continue
        told = [answer["failure"]] if answer["failure"] else [entry["failure"] for entry in answer["programs"]]
        errors = {
            failure["program"] or diagnosis.failed_program(log): _explained(request, failure, log, left_out)
            for failure in told
            if failure
        }
        if answer["failure"] and diagnosis.failed_target(log):
            # Others lack theirs too, and each would end a load of its own.
            errors = {
                failure["program"]: _explained(request, failure, "", left_out) for failure in answer["failures"]
            } | errors
        if answer["failure"]:
            # One program that does not load fails all of them; the others are loaded again without it.
            again = {name: error for name, error in errors.items() if name in sections and name not in refused}
        else:
            again = {name: error for name, error in errors.items() if _replaceable(request, name, {*refused, *errors})}
            if not again:
                return _collect(request, answer, descriptors, refused, errors)
            let_go(descriptors)
        gone = {*refused, *again}
        may_go_on = request.partial or all(_replaceable(request, name, gone) for name in again)
        if not again or not may_go_on or len(gone) == len(sections):
            raise _none_runs(refused | errors)
        refused |= again


def _is_iterator(program: Program) -> bool:
    hook = hook_of(program.section)
    return hook is not None and hook.name == "iter"


def _read_iterator(link: int, keep_bytes: int) -> bytes:
    """Run an iterator to its end, and give the beginning of its text."""
    kept = bytearray()
    fd = _reader.open_iterator(link)
    try:
        while data := os.read(fd, _ITERATOR_CHUNK):
            kept += data[: max(0, keep_bytes - len(kept))]
    except OSError as error:
        raise OSError(error.errno, "running the iterator") from None
    finally:
        os.close(fd)
    return bytes(kept)


def _sample(program: Program, cpus: Sequence[int]) -> list[int]:
    """Links of a program that runs to the samples of more CPUs; in a child, which has the privilege."""
    request: channel.SampleRequest = {
        "sample": program.section,
        "attach": dict(program.attach),
        "cpus": list(cpus),
        "deadline_s": _SAMPLE_DEADLINE_S,
    }
    answer, links, log = _ask(request, [program.fd], time.monotonic() + _SAMPLE_DEADLINE_S, _SAMPLE_DEADLINE_S)
    if failure := answer["failure"]:
        sections = {program.name: program.section}
        told: channel.Failure = {**failure, "program": program.name}
        raise diagnosis.explain(told, sections=sections, log=log, features=features.probe())
    return links


def _replaceable(request: LoadRequest, name: str, gone: set[str]) -> bool:
    """Whether what a program measures has another program left."""
    group = next(program.alternative for program in request.programs if program.name == name)
    return bool(group) and any(p.alternative == group and p.name not in gone for p in request.programs)


def _collect(
    request: LoadRequest,
    answer: channel.Answer,
    descriptors: Sequence[int],
    refused: Mapping[str, KernelError],
    errors: Mapping[str, KernelError],
) -> Collection:
    """What came of the load: ``refused`` were not asked for in the end, ``errors`` are of those that were."""
    given = iter(descriptors)
    maps = [Map(**entry, fd=next(given)) for entry in answer["maps"]]
    programs: dict[str, Program] = {}
    answers = {entry["name"]: entry for entry in answer["programs"]}
    for name, error in (*refused.items(), *errors.items()):
        programs[name] = Program(name, "", attached=False, error=_nameless(error, name))
    for name, entry in answers.items():
        if name not in programs and entry["passed_over"]:
            programs[name] = Program(name, "", attached=False, passed_over=entry["passed_over"])
        elif name not in programs:
            fd, links = next(given), tuple(next(given) for _ in range(entry["links"]))
            programs[name] = Program(
                name, "", attached=True, id=entry["id"], tag=entry["tag"], fd=fd, links=links, cpus=tuple(entry["cpus"])
            )
    served = {wanted.alternative for wanted in request.programs if programs[wanted.name].attached} - {""}
    ordered = []
    for wanted in request.programs:
        program = replace(programs[wanted.name], section=wanted.section, attach=dict(wanted.attach or {}))
        if wanted.alternative in served and program.error:
            # Another took its place: that is no error.
            program = replace(program, error="", passed_over=program.error)
        ordered.append(program)
    collection = Collection(request.name, ordered, maps, answer["enums"], answer["stages"])
    if not any(program.attached for program in ordered) and (refused or errors):
        # Nothing runs: that is no part of a success.
        collection.close()
        raise _none_runs(dict(refused) | dict(errors))
    return collection


def _none_runs(errors: Mapping[str, KernelError]) -> KernelError:
    """One error for a load of which nothing is left: each cause once, with the programs that it stopped."""
    causes: dict[tuple[str, str], list[str]] = {}
    for name, error in errors.items():
        causes.setdefault((error.code, _beginning(str(error), name)), []).append(name)
    first = next(iter(errors.values()))
    if len(errors) == 1:
        return first
    parts = []
    for names in list(causes.values())[:_SHOWN_CAUSES]:
        others = f" (and so {_listed(names[1:])})" if names[1:] else ""
        parts.append(f"{errors[names[0]]}{others}")
    if len(causes) > _SHOWN_CAUSES:
        rest = [name for names in list(causes.values())[_SHOWN_CAUSES:] for name in names]
        parts.append(f"and for other reasons {_listed(rest)}")
    return KernelError("; ".join(parts), code=first.code, log=first.log)


def _beginning(message: str, name: str) -> str:
    """What tells causes of one code apart: a message without the program, its section and its target."""
    return re.sub(r"'[^']*'", "''", _without(message, name))


def _without(message: str, name: str) -> str:
    return message.removeprefix(f"program {name!r}: ")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN_NAMES])
    more = len(names) - _SHOWN_NAMES
    return shown if more <= 0 else f"{shown} and {more} more"


def _explained(
    request: LoadRequest, failure: channel.Failure, log: str, left_out: Mapping[str, KernelError] | None = None
) -> KernelError:
    sections = {program.name: program.section for program in request.programs}
    types = diagnosis.FROM_FILE if request.types else request.no_types
    error = diagnosis.explain(failure, sections=sections, log=log, features=features.probe(), types=types)
    if cause := (left_out or {}).get(diagnosis.map_left_out(log)):
        program = failure["program"] or diagnosis.failed_program(log)
        return KernelError(f"program {program!r}: uses {cause}", code=cause.code, log=error.log)
    return error


def _nameless(error: KernelError, name: str) -> str:
    return _without(str(error), name)


def _ask_child(
    request: LoadRequest, skip: Sequence[str], weak: Sequence[str], leave_out: Sequence[str], deadline: float
) -> tuple[channel.Answer, list[int], str]:
    """One child's answer, the descriptors that came with it, and its log."""
    document: channel.Request = {
        "name": request.name,
        "sha256": hashlib.sha256(request.object).hexdigest(),
        "types_sha256": hashlib.sha256(request.types).hexdigest() if request.types else "",
        "deadline_s": max(0.0, deadline - time.monotonic()),
        "partial": request.partial,
        "skip": list(skip),
        "weak": list(weak),
        "leave_out": list(leave_out),
        "programs": [
            {
                "name": program.name,
                "section": program.section,
                "attach": dict(program.attach or {}),
                "alternative": program.alternative,
                "rank": program.rank,
            }
            for program in request.programs
        ],
        "maps": [
            {
                "name": map.name,
                "clear_value_size": map.clear_value_size,
                "max_entries": map.max_entries,
                "pin": map.pin,
                "value_size": map.value_size,
            }
            for map in request.maps
        ],
        "globals": [
            {"section": value.section, "offset": value.offset, "value": value.value.hex(), "ksym": value.ksym}
            for value in request.globals
        ],
        "read_maps": list(request.read_maps),
        "enums": list(request.enums),
    }
    sealed: list[int] = []
    try:
        sealed.append(_sealed(request.object))
        if request.types:
            sealed.append(_sealed(request.types))
        return _ask(document, sealed, deadline, request.deadline_s)
    finally:
        for descriptor in sealed:
            os.close(descriptor)


def _ask(
    document: channel.Request | channel.SampleRequest, given: Sequence[int], deadline: float, deadline_s: float
) -> tuple[channel.Answer, list[int], str]:
    """Start a child, give it a document and descriptors, and take its answer."""
    with contextlib.ExitStack() as stack:
        log = os.memfd_create("skep-loader-log", os.MFD_CLOEXEC)
        stack.callback(os.close, log)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        stack.enter_context(ours)
        with theirs:
            child = _start(theirs.fileno(), log)
        try:
            channel.send(ours, document, given)
            answer, descriptors = channel.receive(ours, deadline=deadline)
        except TimeoutError:
            _kill(child)
            raise KernelError(
                f"loader: no answer within {deadline_s:g} s, killed while {diagnosis.last_stage(_text(log))}; "
                "raise the deadline if the machine is that slow",
                code="kernel.deadline",
                log=diagnosis.tail(_text(log)),
            ) from None
        except (EOFError, ConnectionError) as error:
            raise _ended_early(child, _text(log)) from error
        except OSError as error:
            _kill(child)
            raise KernelError(
                f"loader: {error.strerror}: {diagnosis.errno_name(error.errno or 0)}; raise LimitNOFILE",
                code="kernel.descriptors",
            ) from error
        except BaseException:
            _kill(child)
            raise
        _reap(child, deadline)
        return answer, descriptors, _text(log)


def _sealed(data: bytes) -> int:
    """A file in memory with these bytes, which nobody can change any more."""
    fd = os.memfd_create("skep-object", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _start(channel_fd: int, log: int) -> subprocess.Popen[bytes]:
    _bury()
    # libbpf looks for the binaries and libraries of uprobes along these two.
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, *_COMMAND, str(_ROOT)],
        stdin=channel_fd,
        stdout=log,
        stderr=log,
        close_fds=True,
        cwd="/",
        env=environment | {"LC_ALL": "C"},
        process_group=0,  # a Ctrl-C is for the parent to handle
    )


def _ended_early(child: subprocess.Popen[bytes], log: str) -> KernelError:
    """The child went away without an answer."""
    try:
        status = child.wait(_KILL_PATIENCE_S)
    except subprocess.TimeoutExpired:
        _kill(child)
        status = child.returncode
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            how = f"killed by {signal.Signals(-status).name}"
    else:
        how = f"ended with status {status}"
    return KernelError(
        f"loader: {how} while {diagnosis.last_stage(log)}; the object is damaged or libbpf has a bug, rebuild it",
        code="kernel.crashed",
        log=diagnosis.tail(log),
    )


def _reap(child: subprocess.Popen[bytes], deadline: float) -> None:
    """After its answer the child ends by itself; it holds links until it has."""
    try:
        child.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _kill(child)


_lingering: list[subprocess.Popen[bytes]] = []


def _kill(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    try:
        child.wait(_KILL_PATIENCE_S)
    except subprocess.TimeoutExpired:
        # In the middle of a long allocation the kernel does not die of SIGKILL until it is
        # done. Do not hang with it; the next load buries it.
        _lingering.append(child)


def _bury() -> None:
    for child in list(_lingering):
        if child.poll() is not None:
            with contextlib.suppress(ValueError):  # another thread was faster
                _lingering.remove(child)


def _text(log: int) -> str:
    size = os.fstat(log).st_size
    return os.pread(log, _LOG_BYTES, max(0, size - _LOG_BYTES)).decode(errors="replace")


def let_go(descriptors: Sequence[int]) -> None:
    """Close descriptors for good; of those that own a filter of traffic control, the filter goes first."""
    for descriptor in descriptors:
        if descriptor >= 0:
            netlink.let_go(descriptor)
            os.close(descriptor)


__all__ = [
    "Collection",
    "GlobalRequest",
    "LoadRequest",
    "MapRequest",
    "Program",
    "ProgramRequest",
    "load",
]
