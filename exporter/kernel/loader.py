"""The loader child: one object, opened, loaded, attached and handed over; then it ends.

Run by :func:`exporter.kernel.load` as ``python -m exporter.kernel.loader`` or its
equivalent, never by hand. Descriptor 0 is its socket, 1 and 2 one file in memory
that holds its log; everything else it closes before it does anything. It is
single-threaded, starts no process, and gets the object as a sealed memory file
which it hashes itself: libbpf reads bytes from the network here and nowhere
else, and when it crashes it is this process that ends.

Request and answer are those of :mod:`.channel`. What a failure means to a
person is the parent's business (:mod:`.diagnosis`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import resource
import signal
import socket
import sys
import time

from exporter.hooks import split_section

from . import _libbpf, alternatives, channel, symbols
from .attach import Attached, AttachError, attach, learn_sections, prepare
from .attach.perf import sample
from .attach.places import parse_sampling
from .channel import Answer, Failure, LoadedProgram, Request, SampleRequest
from .weaken import weakened

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class RefusalError(Exception):
    """What the answer's ``failure`` says."""

    def __init__(self, stage: str, *, program: str = "", errno: int = 0, doing: str = "") -> None:
        super().__init__(doing)
        self.failure: Failure = {"stage": stage, "program": program, "errno": errno, "doing": doing}
        self.others: list[Failure] = []

    @classmethod
    def by(cls, error: OSError | AttachError, stage: str, *, program: str = "") -> RefusalError:
        """Of an exception that a call of ours ended with."""
        if isinstance(error, OSError):
            return cls(stage, program=program, errno=error.errno or 0, doing=error.strerror or "")
        return cls(stage, program=program, doing=str(error))


def main() -> int:
    """Serve the one request on descriptor 0."""
    _confine()
    parent = socket.socket(fileno=0)
    answer: Answer
    request, (given, *types) = channel.receive(parent)
    signal.alarm(int(request["deadline_s"]) + 2)
    try:
        if "sample" in request:
            answer, descriptors, _keep_open = _sample(request, given)
        else:
            answer, descriptors, _keep_open = _serve(request, given, types)
    except RefusalError as refused:
        answer = _nothing()
        answer["failure"], answer["failures"] = refused.failure, refused.others
        descriptors = []
    channel.send(parent, answer, descriptors)
    # No cleaning up: destroying links would detach what was just handed over.
    os._exit(0)


def _nothing() -> Answer:
    """An answer that says nothing yet."""
    return {"failure": None, "failures": [], "maps": [], "programs": [], "enums": {}, "stages": {}}


def _confine() -> None:
    try:
        _libbpf.close_from(3)
    except OSError:
        os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    _libbpf.die_with_parent()
    # Perf events take a descriptor per CPU and program.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _note(stage: str) -> None:
    """Leave in the log where we are: what the parent reads if it was the last thing."""
    os.write(2, f"loader: {stage}\n".encode())


def _serve(request: Request, image: int, types: list[int]) -> tuple[Answer, list[int], _libbpf.Object]:
    """The answer, its descriptors, and the object that owns some of them until they are sent."""
    _note("checking the object")
    data = _sealed_bytes(image, request["sha256"])
    types_path = ""
    if request["types_sha256"]:
        _sealed_bytes(types[0], request["types_sha256"]).close()
        types_path = f"/proc/self/fd/{types[0]}"
    _libbpf.setup()
    _note("opening the object")
    learn_sections(wanted["section"] for wanted in request["programs"])
    try:
        bytes_ = weakened(data[:], request["weak"]) if request["weak"] else data
        opened = _libbpf.Object(bytes_, request["name"], types_path)
    except OSError as error:
        raise RefusalError.by(error, "open") from None
    programs, maps = _match(opened, request)
    failures, passed_over = _prepare(opened, programs, maps, request)
    enums: dict[str, dict[str, int]] = {}
    if request["enums"]:
        _note("reading the kernel's enums")
        try:
            enums = _libbpf.kernel_enums(request["enums"], types_path)
        except OSError as error:
            if types_path:
                raise RefusalError.by(error, "enums") from None
            # No types anywhere: then the object's own values are the best there are.
            enums = {name: {} for name in request["enums"]}
    for map_ in opened.maps():
        _note(f"map {map_.name} is of type {map_.type}")
    _note("loading the object")
    loading_s = time.monotonic()
    try:
        opened.load()
    except OSError as error:
        refused = RefusalError.by(error, "load")
        if request["partial"]:  # else it ends here anyhow
            without = {*request["skip"], *failures, *passed_over}
            loaded = [wanted for wanted in request["programs"] if wanted["name"] not in without]
            refused.others = [
                RefusalError("target", program=name, doing=target).failure
                for name, target in alternatives.without_target(loaded).items()
            ]
        raise refused from None
    loaded_s = time.monotonic()
    read_maps = [(name, maps[name]) for name in request["read_maps"]]
    answer = _nothing()
    answer["enums"] = enums
    answer["maps"] = [
        {
            "name": name,
            "type": map_.type,
            "key_size": map_.key_size,
            "value_size": map_.value_size,
            "max_entries": map_.max_entries,
        }
        for name, map_ in read_maps
    ]
    descriptors = [map_.fd for _, map_ in read_maps]
    for wanted in request["programs"]:
        name = wanted["name"]
        if name in request["skip"]:
            continue
        program = programs[name]
        entry: LoadedProgram = {
            "name": name,
            "failure": failures.get(name),
            "passed_over": passed_over.get(name, ""),
            "id": 0,
            "tag": "",
            "links": 0,
            "cpus": [],
        }
        answer["programs"].append(entry)
        if entry["failure"] or entry["passed_over"]:
            continue
        _note(f"attaching program {name}")
        attached = Attached([])
        try:
            attached = attach(program, wanted["attach"])
        except (OSError, AttachError) as error:
            refused = RefusalError.by(error, "attach", program=name)
            if not request["partial"]:
                raise refused from None
            entry["failure"] = refused.failure
        else:
            entry["id"], entry["tag"] = program.info()
            entry["links"] = len(attached.links)
            entry["cpus"] = list(attached.cpus)
            descriptors += [program.fd, *attached.links]
    answer["stages"] = {"load": [loading_s, loaded_s], "attach": [loaded_s, time.monotonic()]}
    return answer, descriptors, opened


def _sample(request: SampleRequest, program: int) -> tuple[Answer, list[int], None]:
    """Links that sample more CPUs with a program that runs."""
    _libbpf.setup()
    _note("sampling CPUs")
    _, rest = split_section(request["sample"])
    try:
        links = sample(program, parse_sampling(rest, request["attach"]), request["cpus"])
    except (OSError, AttachError) as error:
        raise RefusalError.by(error, "attach") from None
    return _nothing(), links, None


def _sealed_bytes(image: int, sha256: str) -> mmap.mmap:
    """The object's bytes, which nobody can change any more, if they are the ones that were meant."""
    if fcntl.fcntl(image, fcntl.F_GET_SEALS) & SEALS != SEALS:
        raise RefusalError("check", doing="the object's memory is not sealed")
    if not os.fstat(image).st_size:
        raise RefusalError("open", doing="it is empty")
    data = mmap.mmap(image, 0, prot=mmap.PROT_READ)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise RefusalError("check", doing=f"the object is sha256:{found}, the request says sha256:{sha256}")
    return data


def _match(opened: _libbpf.Object, request: Request) -> tuple[dict[str, _libbpf.Program], dict[str, _libbpf.Map]]:
    """What libbpf sees of the object, if that is what the request was made from."""
    programs = {program.name: program for program in opened.programs()}
    maps = {map_.name: map_ for map_ in opened.maps()}
    for wanted in request["programs"]:
        program = programs.get(wanted["name"])
        section = wanted["section"].removeprefix("?")
        if program is None or program.section != section:
            found = f"it in section {program.section!r}" if program else f"no such program, but {sorted(programs)}"
            raise RefusalError("match", doing=f"program {wanted['name']!r} of section {section!r}: libbpf sees {found}")
    sections = {name: opened.section_map(name) for name in request["read_maps"]}
    maps |= {name: section for name, section in sections.items() if section is not None}
    for name in [*request["read_maps"], *(wanted["name"] for wanted in request["maps"])]:
        if name not in maps:
            raise RefusalError("match", doing=f"map {name!r}: libbpf sees no such map, but {sorted(maps)}")
    return programs, maps


def _prepare(
    opened: _libbpf.Object,
    programs: dict[str, _libbpf.Program],
    maps: dict[str, _libbpf.Map],
    request: Request,
) -> tuple[dict[str, Failure], dict[str, str]]:
    """Say everything that must be said between opening and loading.

    Returns:
        The failures of programs that will not be loaded, if the others may run without them; and the alternatives
        that are passed over, each with the reason.
    """
    wanted = {entry["name"]: entry for entry in request["programs"]}
    passed_over = alternatives.choose(request["programs"], request["skip"])
    failures: dict[str, Failure] = {}
    for name, program in programs.items():
        load = name in wanted and name not in request["skip"] and name not in passed_over
        try:
            if load:
                prepare(program, wanted[name]["attach"])
        except (OSError, AttachError) as error:
            refused = RefusalError.by(error, "attach", program=name)
            if not request["partial"]:
                raise refused from None
            failures[name] = refused.failure
        program.set_autoload(load and name not in failures)
    try:
        for name in request["leave_out"]:
            maps[name].leave_out()
        for change in request["maps"]:
            if change["clear_value_size"]:
                maps[change["name"]].clear_sizes()
            if change["value_size"]:
                maps[change["name"]].set_value_size(change["value_size"])
            if change["max_entries"]:
                maps[change["name"]].set_max_entries(change["max_entries"])
        pins = {change["name"]: change["pin"] for change in request["maps"]}
        for name, map_ in maps.items():
            _share(map_, pins.get(name, ""))
        for value in request["globals"]:
            bytes_ = _symbol(value["ksym"]) if value["ksym"] else bytes.fromhex(value["value"])
            opened.set_global(value["section"], value["offset"], bytes_)
    except OSError as error:
        raise RefusalError.by(error, "prepare") from None
    return failures, passed_over


def _share(map_: _libbpf.Map, path: str) -> None:
    """Share a map under a path, if it is the same map; without a path share nothing, whatever the object says."""
    map_.set_pin(path)
    if not path:
        return
    try:
        found = _libbpf.pinned_map(path)
    except OSError as error:
        if error.errno == errno.ENOENT and os.path.isdir(os.path.dirname(path)):  # noqa: PTH112, PTH120
            return  # libbpf will make and pin it
        raise RefusalError.by(error, "pin", program=map_.name) from None
    expected = {
        "type": map_.type,
        "key_size": map_.key_size,
        "value_size": map_.value_size,
        "max_entries": map_.max_entries,
        "flags": map_.flags,
    }
    if different := [key for key in expected if found[key] != expected[key]]:
        told = ", ".join(f"{key} {found[key]}, expected {expected[key]}" for key in different)
        raise RefusalError("pin", program=map_.name, doing=f"the map pinned at {path!r} has {told}")


def _symbol(name: str) -> bytes:
    found = symbols.addresses(name)
    doing = ""
    if not symbols.readable() or (found and not any(found)):
        doing = "the kernel hides the addresses of its symbols; it needs CAP_SYSLOG, and kernel.kptr_restrict at 1 or 0"
    elif not found:
        doing = "this kernel has no such symbol; name another"
    elif len(found) > 1:
        doing = f"this kernel has {len(found)} symbols of that name; name another"
    if doing:
        raise RefusalError("symbol", program=name, doing=doing)
    return found[0].to_bytes(8, sys.byteorder)


if __name__ == "__main__":
    sys.exit(main())
