"""``skep status``: how the running agent and its images are, asked over its socket."""

from __future__ import annotations

import argparse
import json
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import ExportError

if TYPE_CHECKING:
    from exporter.agent.status import Document, ImageDocument

_TIMEOUT_S = 10
_LIMIT_BYTES = 64 << 20


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``status``."""
    parser = subparsers.add_parser(
        "status",
        help="show how the running agent and its images are",
        description="Ask the running agent how it and its images are. Exit status: 0 if every image runs and the "
        "configuration is good, 3 if not, 1 if no agent answers.",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="show these, with their programs, events and maps")
    parser.add_argument("--json", action="store_true", help="print the whole document as JSON")
    parser.add_argument(
        "--status.socket",
        dest="status_socket",
        metavar="PATH",
        type=Path,
        help="as given to the agent (default: /run/skep/agent.sock; for a user, skep/agent.sock in $XDG_RUNTIME_DIR)",
    )
    parser.set_defaults(run=_status)


def _status(args: argparse.Namespace) -> int:
    from exporter.agent.status import default_socket

    document = ask(args.status_socket or default_socket())
    known = [image["name"] for image in document["images"]]
    for name in args.images:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise ExportError(f"image {name!r} is not configured; configured are {listed}", code="status.image")
    shown = [image for image in document["images"] if image["name"] in args.images or not args.images]
    document["images"] = shown
    if args.json:
        json.dump(document, sys.stdout, ensure_ascii=False, indent=1)
        print()
    else:
        for line in _page(document, detailed=bool(args.images)):
            print(line)
    good = all(image["state"] == "running" for image in shown) and document["reload_successful"]
    return 0 if good and not document["stuck"] else 3


def ask(path: Path) -> Document:
    """Give the document of the agent that listens at a socket.

    Raises:
        ExportError: none does, or it may not be asked.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        # Not settimeout(): a connect that has to wait for its turn would then fail at once.
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            asking.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", _TIMEOUT_S, 0))
        try:
            asking.connect(str(path))
            data = bytearray()
            while part := asking.recv(1 << 16):
                data += part
                if len(data) > _LIMIT_BYTES:
                    raise OSError("it never ends")
            document: Document = json.loads(data)
        except FileNotFoundError:
            text = f"no agent listens at {str(path)!r}; start one, or name its socket with --status.socket"
            raise ExportError(text, code="status.absent") from None
        except ConnectionRefusedError:
            raise ExportError(f"the agent that listened at {str(path)!r} is gone", code="status.absent") from None
        except PermissionError:
            text = f"agent at {str(path)!r} may not be asked by this user; join group skep, or use sudo"
            raise ExportError(text, code="status.permission") from None
        except BlockingIOError:
            raise ExportError(
                f"agent at {str(path)!r}: no answer in {_TIMEOUT_S} s; see its log", code="status.answer"
            ) from None
        except (OSError, ValueError) as error:
            raise ExportError(f"agent at {str(path)!r}: no answer: {error}", code="status.answer") from error
    return document


def _page(document: Document, *, detailed: bool) -> Iterator[str]:
    now_s = time.time()
    images = document["images"]
    up = sum(image["state"] in ("running", "degraded", "stale") for image in images)
    yield (
        f"skep {document['skep']}, process {document['pid']}, up {_ago(now_s - document['started'])}, "
        f"{'ready' if document['ready'] else 'not ready'}; {up} of {len(images)} images run"
    )
    if not document["reload_successful"]:
        yield f"configuration refused, the one of {_ago(now_s - document['reload_success_time'])} ago is in effect:"
        yield f"  {document['reload_error']}"
    if document["stuck"]:
        yield f"parts that do not move: {', '.join(document['stuck'])}"
    for signal, outcomes in sorted(document["otlp"].items()):
        yield f"otlp {signal}: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    if document["lines"]:
        yield "json lines: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(document["lines"].items()))
    if images:
        yield ""
        yield from _table([_HEAD, *(_row(image, now_s) for image in images)])
    for image in images:
        if detailed:
            yield ""
            yield from _details(image, now_s)
        elif image["reason"]:
            yield ""
            yield f"{image['name']}: {image['reason']}"


_HEAD = ("IMAGE", "STATE", "FOR", "PROGRAMS", "CPU", "SERIES", "EVENTS/S", "LOST", "VERSION", "DIGEST")
_WANTED = ("sample", "disabled", "no_receiver")
"""Reasons of drops that the configuration asks for; the alert on lost events leaves out the same."""


def _row(image: ImageDocument, now_s: float) -> tuple[str, ...]:
    programs, streams = image["programs"], image["streams"]
    programs = [program for program in programs if not program["passed_over"]]
    attached = sum(program["attached"] for program in programs)
    shares = [program["cpu_ratio"] for program in programs if program["cpu_ratio"] is not None]
    lost = sum(
        stream["failed"]
        + sum(count for reason, count in stream["dropped"].items() if reason not in _WANTED)
        + (stream["ring_lost"] or 0)
        for stream in streams
    )
    return (
        image["name"],
        image["state"],
        _ago(now_s - image["since"]),
        f"{attached}/{len(programs)}" if programs else "-",
        f"{sum(shares):.2%}" if shares else "-",
        str(image["series"]),
        f"{sum(stream['received_per_s'] for stream in streams):.1f}" if streams else "-",
        str(lost) if streams else "-",
        image["version"] or "-",
        image["digest"].removeprefix("sha256:")[:12] or "-",
    )


def _details(image: ImageDocument, now_s: float) -> Iterator[str]:
    yield f"{image['name']}: {image['ref']}"
    if image["reason"]:
        yield f"  {image['state']}: {image['reason']}"
    if image["retry_in_s"] is not None:
        yield f"  tried again in {_ago(image['retry_in_s'])}"
    if image["counting_since"]:
        kept = ", kept over a restart of the agent" if image["kept_over_restart"] else ""
        yield f"  counts since {_ago(now_s - image['counting_since'])} ago{kept}"
        yield f"  series: {image['series']} of at most {image['series_limit']}"
    for program in image["programs"]:
        told = program["error"] or f"not taken: {program['passed_over']}"
        state = f"attached, id {program['id']}" if program["attached"] else told
        used = f", {program['runs_per_s']:.1f} runs/s" if program["runs_per_s"] is not None else ""
        used += f", {program['cpu_ratio']:.3%} of a CPU" if program["cpu_ratio"] is not None else ""
        yield f"  program {program['name']}: {state}{used}"
    for map_ in image["maps"]:
        yield f"  map {map_['name']}: {map_['entries']} of {map_['max_entries']} rows"
    for stream in image["streams"]:
        dropped = "".join(f", {count} dropped ({reason})" for reason, count in sorted(stream["dropped"].items()))
        yield (
            f"  event {stream['name']}{'' if stream['enabled'] else ' (off)'}: {stream['received']} received, "
            f"{stream['received_per_s']:.1f}/s, {stream['exported']} exported, {stream['failed']} failed{dropped}, "
            f"{stream['queued']} queued; "
            f"{'unknown' if stream['ring_lost'] is None else stream['ring_lost']} lost in the ring, "
            f"which was at most {stream['ring_fill_max']:.0%} full"
        )


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _ago(seconds: float) -> str:
    """A duration for people: its two largest units."""
    left = int(max(0.0, seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])
