"""What the cases came to: the rule for skips, build/vm.json, docs/kernels.md.

A skip is believed only if its reason names a fact the harness can check for
itself: the kernel is older than a feature, a setting is off in the kernel's
configuration file, emulation has no such hardware, or this kernel's lockdown
refused what another kernel of the table allowed. Any other skip is a failure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

Outcomes = dict[str, str]

_FIRST_IN = re.compile(r"\b(?:first in|since|older than|needs (?:linux|kernel)?) *v?(\d+)\.(\d+)", re.IGNORECASE)
_SETTING = re.compile(r"\b(CONFIG_[A-Z0-9_]+)\b")
_HARDWARE = re.compile(r"\b(no (?:PMU|such hardware|hardware (?:counters|performance counters)))\b", re.IGNORECASE)
_LOCKDOWN = re.compile(r"\blockdown\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What a skip's reason is checked against."""

    series: str
    config: Mapping[str, str]
    pmu: bool
    lockdown: str


def number(series: str) -> tuple[int, ...]:
    """``6.12`` as numbers that compare as releases do; a name that is no number comes last."""
    return tuple(int(part) for part in re.findall(r"\d+", series)) or (1 << 16,)


def why_skip_is_believed(reason: str, facts: KernelFacts) -> str:
    """The checked fact behind a skip, or nothing if there is none.

    A lockdown's fact rests on another kernel too: see :func:`settle`.
    """
    first = _FIRST_IN.search(reason)
    if first and number(facts.series) < (int(first[1]), int(first[2])):
        return f"older than {first[1]}.{first[2]}"
    setting = _SETTING.search(reason)
    if setting and facts.config.get(setting[1], "n") == "n":
        return f"{setting[1]} unset"
    hardware = _HARDWARE.search(reason)
    if hardware and not facts.pmu:
        return "no PMU under emulation"
    if _LOCKDOWN.search(reason) and facts.lockdown not in ("", "none"):
        return "lockdown"
    return ""


def settle(
    raw: Mapping[str, Mapping[str, tuple[str, str]]],
    facts: Mapping[str, KernelFacts],
    held: Mapping[str, Outcomes] = MappingProxyType({}),
) -> dict[str, Outcomes]:
    """Judge every outcome of every kernel.

    Args:
        raw: Kernel to case to (outcome, reason) as the guests told it.
        facts: Kernel to its facts.
        held: What earlier runs came to, on kernels that this one did not boot.

    Returns:
        Kernel to case to ``passed``, ``skipped: reason`` or ``failed: reason``.
    """
    settled: dict[str, Outcomes] = {}
    for kernel, cases in raw.items():
        settled[kernel] = {}
        for case, (outcome, reason) in cases.items():
            verdict = outcome
            if outcome == "failed":
                verdict = f"failed: {reason}"
            elif outcome == "skipped":
                believed = why_skip_is_believed(reason, facts[kernel])
                elsewhere = any(other.get(case, ("", ""))[0] == "passed" for other in raw.values()) or any(
                    cases.get(case) == "passed" for other, cases in held.items() if other not in raw
                )
                if believed == "lockdown" and not elsewhere:
                    believed = ""
                verdict = (
                    f"skipped: {believed} ({reason})"
                    if believed
                    else f"failed: skipped for a reason that could not be checked: {reason}"
                )
            settled[kernel][case] = verdict
    return settled


def held_in(path: Path) -> dict[str, Outcomes]:
    """What earlier runs left in the file."""
    return json.loads(path.read_text()) if path.exists() else {}


def merge(path: Path, fresh: Mapping[str, Mapping[str, Any]], *, replace: bool) -> dict[str, dict[str, Any]]:
    """Put fresh outcomes, or other words about kernels, into the file, and return all it then holds.

    Args:
        path: Such as ``build/vm.json``; made if it is not there.
        fresh: What this run found.
        replace: This run was of all cases: what it did not see is gone.
    """
    held = held_in(path)
    for kernel, cases in fresh.items():
        held[kernel] = dict(cases) if replace else {**held.get(kernel, {}), **cases}
    held = {kernel: dict(sorted(held[kernel].items())) for kernel in sorted(held, key=number)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(held, indent=1) + "\n")
    return held


def rows_of(case: str, named: Mapping[str, str]) -> list[tuple[str, str]]:
    """The tables and rows a case belongs to: what the test named, one or more between spaces, else its file."""
    if case in named:
        parts = [name.partition("/") for name in named[case].split()]
        return [(group, row or group) for group, _, row in parts]
    return [("tests", Path(case.partition("::")[0]).stem.removeprefix("test_").replace("_", " "))]


def cell(outcomes: list[str]) -> str:
    """One row on one kernel: all passed, why not, or how many of them."""
    if not outcomes:
        return "–"
    failed = sum(outcome.startswith("failed") for outcome in outcomes)
    skipped = [outcome for outcome in outcomes if outcome.startswith("skipped")]
    passed = len(outcomes) - failed - len(skipped)
    if failed:
        return f"**{failed} of {len(outcomes)} failed**"
    if not skipped:
        return "yes" if passed == 1 else f"yes ({passed})"
    why = ", ".join(sorted({outcome.removeprefix("skipped: ").partition(" (")[0] for outcome in skipped}))
    return why if not passed else f"{passed} of {len(outcomes)}; {why}"


def table(
    settled: Mapping[str, Outcomes], named: Mapping[str, str], told: Mapping[str, Mapping[str, Any]], programs: str
) -> str:
    """The page for people: what was run on which kernel and what it came to.

    Args:
        settled: From :func:`settle`.
        named: Case to the row its test named.
        told: Kernel to the facts its guest told.
        programs: The command that makes this page.
    """
    kernels = sorted(settled, key=number)
    lines = [
        "# Kernels",
        "",
        f"<!-- Made by `{programs}`; do not edit. -->",
        "",
        "Every case below ran inside a virtual machine on a Debian cloud kernel, with an emulated processor",
        '(`make vm`), or, in the column "here", on the kernel of the machine that made the table. A number in',
        "brackets is how many cases the row stands for; `–` means not run there.",
        "A skip is printed with the fact that the harness checked; anything else is a failure.",
        "",
        "| | " + " | ".join(kernels) + " |",
        "|---|" + "---|" * len(kernels),
    ]
    for title, key in (("release", "release"), ("security modules", "lsm"), ("lockdown", "lockdown")):
        lines.append(f"| {title} | " + " | ".join(str(told.get(kernel, {}).get(key, "")) for kernel in kernels) + " |")
    lost = [str(len(told.get(kernel, {}).get("deaths_before_tests", ()))) for kernel in kernels]
    lines.append("| guests lost before their tests, and booted again | " + " | ".join(lost) + " |")
    settings = sorted({name for kernel in kernels for name in told.get(kernel, {}).get("config", {})})
    for name in settings:
        values = [told.get(kernel, {}).get("config", {}).get(name) or "unset" for kernel in kernels]
        lines.append(f"| `{name}` | " + " | ".join(values) + " |")
    groups: dict[str, dict[str, list[str]]] = {}
    for case in sorted({case for cases in settled.values() for case in cases}):
        for group, row in rows_of(case, named):
            groups.setdefault(group, {}).setdefault(row, []).append(case)
    head = ["| | " + " | ".join(kernels) + " |", "|---|" + "---|" * len(kernels)]
    for group in sorted(groups, key=lambda name: (name == "tests", name)):
        lines += ["", f"## {group.capitalize()}", "", *head]
        for row, cases in sorted(groups[group].items()):
            cells = [cell([settled[kernel][case] for case in cases if case in settled[kernel]]) for kernel in kernels]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
    failures = [
        f"- {kernel}: `{case}`: {' '.join(verdict.removeprefix('failed: ').split())[:300]}"
        for kernel in kernels
        for case, verdict in settled[kernel].items()
        if verdict.startswith("failed")
    ]
    if failures:
        lines += ["", "## Failures", "", *failures]
    return "\n".join(lines) + "\n"
