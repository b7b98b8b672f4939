"""How parent and loader child talk: one JSON document and its descriptors each way over AF_UNIX.

A message is eight bytes (length of the document, number of descriptors), one
filler byte for every 253 descriptors, which carries them, and the document.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, TypedDict


class Failure(TypedDict):
    """What the child could not do: ``errno`` is 0 where ``doing`` says all."""

    stage: str
    program: str
    errno: int
    doing: str


class WantedProgram(TypedDict):
    """A program to load, and the options of attaching it; of an ``alternative`` group, the lowest rank that can run."""

    name: str
    section: str
    attach: dict[str, object]
    alternative: str
    rank: int


class MapChange(TypedDict):
    """What is different about a map."""

    name: str
    clear_value_size: bool
    max_entries: int
    pin: str
    value_size: int


class GlobalValue(TypedDict):
    """A global's bytes in hexadecimal, or the kernel symbol whose address it gets."""

    section: str
    offset: int
    value: str
    ksym: str


class Request(TypedDict):
    """To the child; with it the object's descriptor, and that of the kernel's types if they have a hash here."""

    name: str
    sha256: str
    types_sha256: str
    deadline_s: float
    partial: bool
    skip: list[str]
    weak: list[str]
    leave_out: list[str]
    programs: list[WantedProgram]
    maps: list[MapChange]
    globals: list[GlobalValue]
    read_maps: list[str]
    enums: list[str]


class SampleRequest(TypedDict):
    """To the child: sample these CPUs with the loaded program whose descriptor comes with it."""

    sample: str
    attach: dict[str, object]
    cpus: list[int]
    deadline_s: float


class LoadedProgram(TypedDict):
    """A program that runs on ``links`` links, of which each is of one of ``cpus`` if there are any; or why it does not.

    ``passed_over`` is why another alternative was taken instead.
    """

    name: str
    failure: Failure | None
    passed_over: str
    id: int
    tag: str
    links: int
    cpus: list[int]


class CreatedMap(TypedDict):
    """A map as the kernel has it."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int


class Answer(TypedDict):
    """From the child; with it the descriptors of the maps, then of each program that runs and its links.

    ``failure`` is of the whole; ``failures`` are of single programs that would be the next to end a load.
    """

    failure: Failure | None
    failures: list[Failure]
    maps: list[CreatedMap]
    programs: list[LoadedProgram]
    enums: dict[str, dict[str, int]]
    stages: dict[str, list[float]]


_HEADER = struct.Struct("=II")
_DESCRIPTORS_PER_MESSAGE = 253  # SCM_MAX_FD of the kernel's include/net/scm.h
_DOCUMENT_LIMIT = 64 << 20
_NEVER_S = 3600.0


def send(channel: socket.socket, document: Request | SampleRequest | Answer, descriptors: Sequence[int] = ()) -> None:
    """Send a JSON-able document and descriptors, which stay the sender's too."""
    body = json.dumps(document, separators=(",", ":")).encode()
    channel.sendall(_HEADER.pack(len(body), len(descriptors)))
    for start in range(0, len(descriptors), _DESCRIPTORS_PER_MESSAGE):
        some = array.array("i", descriptors[start : start + _DESCRIPTORS_PER_MESSAGE])
        channel.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, some)])
    channel.sendall(body)


def receive(channel: socket.socket, *, deadline: float | None = None) -> tuple[Any, list[int]]:
    """Receive what :func:`send` sent, until the deadline on ``time.monotonic``.

    Returns:
        The document, and descriptors: close-on-exec, the caller's to close.

    Raises:
        EOFError: the other side ended before its message did.
        TimeoutError: the deadline came.
        OSError: ``EMFILE`` when this process may not open so many descriptors.
    """
    descriptors: list[int] = []
    try:
        body, count = _HEADER.unpack(_read(channel, _HEADER.size, descriptors, deadline))
        if body > _DOCUMENT_LIMIT:
            raise EOFError(f"a document of {body} bytes")
        _read(channel, -(-count // _DESCRIPTORS_PER_MESSAGE), descriptors, deadline)
        document = json.loads(_read(channel, body, descriptors, deadline))
        if len(descriptors) != count:
            raise EOFError(f"{len(descriptors)} of {count} descriptors")
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return document, descriptors


def _read(channel: socket.socket, size: int, descriptors: list[int], deadline: float | None) -> bytes:
    parts: list[bytes] = []
    while size:
        left = _NEVER_S if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer before the deadline")
        channel.settimeout(left)
        data, ancillary, flags, _ = channel.recvmsg(
            min(size, 1 << 16), socket.CMSG_SPACE(4 * _DESCRIPTORS_PER_MESSAGE), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                some = array.array("i")
                some.frombytes(payload[: len(payload) - len(payload) % some.itemsize])
                descriptors.extend(some)
        if flags & socket.MSG_CTRUNC:
            raise OSError(errno.EMFILE, "descriptors were lost on their way: the limit of open files is too low")
        if not data:
            raise EOFError("the other side closed")
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
