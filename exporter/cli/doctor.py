"""``skep doctor``: what this kernel, this user and these settings allow, and the remedy where they do not."""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from exporter.errors import ConfigError

if TYPE_CHECKING:
    from exporter.kernel import Finding

_GROUPS = {"host": "THIS HOST", "hook": "HOOKS", "map": "MAPS", "helper": "HELPERS"}
_NEEDED = ("kernel", "capabilities", "kernel BTF", "raw_tp", "tp_btf", "hash", "percpu_array", "ringbuf")
"""What the shipped catalog stands on."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``doctor``."""
    parser = subparsers.add_parser(
        "doctor",
        help="show what this kernel and this user allow, and the remedy",
        description="Try every hook, map type and some helpers with the least program there is, look at the settings "
        "around them, and say what works, since which kernel, and what to do where it does not. Nothing stays loaded. "
        "Without privilege it says what cannot be tried. Exit status: 0 if what the shipped images need is there, or "
        "with NAME all of those; 3 if not.",
    )
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="show these only, such as kprobe or ringbuf; * and ? as in a shell"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from exporter.kernel import Verdict, findings

    found = [_as_used(one) for one in findings()]
    needed = {finding.name for finding in found if finding.name in _NEEDED}
    if args.names:
        shown = [one for one in found if any(fnmatch.fnmatchcase(one.name, name) for name in args.names)]
        for name in args.names:
            if not fnmatch.filter([one.name for one in found], name):
                listed = ", ".join(one.name for one in found)
                raise ConfigError(f"{name!r} is nothing that is looked at; there are {listed}")
        found, needed = shown, {one.name for one in shown}
    missing = [one.name for one in found if one.name in needed and one.verdict is not Verdict.YES]
    if args.json:
        document = {
            "good": not missing,
            "missing": missing,
            "findings": [
                {
                    "group": one.group,
                    "name": one.name,
                    "verdict": one.verdict.value,
                    "since": one.since,
                    "found": one.found,
                    "remedy": one.remedy,
                }
                for one in found
            ],
        }
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        for line in _page(found):
            print(line)
        what = "what was asked for" if args.names else "what the shipped images need"
        print()
        print(f"{what}: {'is there' if not missing else 'lacks ' + ', '.join(missing)}", file=sys.stdout)
    return 3 if missing else 0


def _as_used(finding: Finding) -> Finding:
    """A hook or map type that the kernel has, and of which skep makes no use, with why."""
    from exporter.bpf import MapType
    from exporter.hooks import HOOKS
    from exporter.kernel import Verdict
    from exporter.plan import NOT_TABLES, SOURCES

    if finding.verdict is not Verdict.YES:
        return finding
    if finding.group == "hook":
        why = next((hook.refused for hook in HOOKS if finding.name in (hook.name, *hook.words)), "")
        return replace(finding, found="skep attaches none", remedy=why) if why else finding
    if finding.group == "map" and (kind := MapType[finding.name.upper()]) not in SOURCES and kind in NOT_TABLES:
        return replace(finding, found="gives no rows", remedy=NOT_TABLES[kind])
    return finding


def _page(found: Sequence[Finding]) -> Iterator[str]:
    wide = max((len(one.name) for one in found), default=0)
    told = max((len(one.found) for one in found), default=0)
    told = min(told, 48)
    for group, title in _GROUPS.items():
        rows = [one for one in found if one.group == group]
        if not rows:
            continue
        if group != found[0].group:
            yield ""
        yield title
        for one in rows:
            line = f"  {one.verdict.value:8}{one.name:{wide}}  {one.since:5}"
            if group == "host":
                line = f"  {one.verdict.value:8}{one.name:{wide}}"
            yield f"{line}  {one.found:{told}}  {one.remedy}".rstrip()
