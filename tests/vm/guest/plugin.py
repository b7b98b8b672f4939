"""Pytest plugin: report every case to the harness as it happens.

A test may name the row of the matrix it belongs to with pytest's own
``record_property("matrix", "hook/kprobe")``; others are grouped by file.
"""

from __future__ import annotations

import pytest

from tests.vm.guest.channel import say

DETAIL_LIMIT = 24_000


class _Case:
    """The worst of a case's three phases."""

    def __init__(self) -> None:
        self.outcome, self.reason, self.detail, self.row = "passed", "", "", ""


_cases: dict[str, _Case] = {}


def _one_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a report is not a pass, as the test said it."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext.strip().splitlines()[-1:]
    return " ".join(str(text).split())[:2000]


def pytest_collection_finish(session: pytest.Session) -> None:
    """The cases are known; those that collecting already failed come as reports."""
    say("collected", cases=[item.nodeid for item in session.items])


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be imported, or skips itself whole, is a case of its own."""
    if report.failed:
        say("case", case=report.nodeid, outcome="failed", reason=_one_line(report), detail=_detail(report))
    elif report.skipped:
        say("case", case=report.nodeid, outcome="skipped", reason=_one_line(report))


def pytest_runtest_logstart(nodeid: str, location: tuple[str, int | None, str]) -> None:
    """A case begins."""
    _cases[nodeid] = _Case()
    say("start", case=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One phase of a case ended."""
    case = _cases[report.nodeid]
    case.row = next((str(value) for name, value in report.user_properties if name == "matrix"), case.row)
    if report.failed and case.outcome != "failed":
        case.outcome, case.reason, case.detail = "failed", _one_line(report), _detail(report)
    elif report.skipped and case.outcome == "passed":
        case.outcome, case.reason = "skipped", _one_line(report)


def pytest_runtest_logfinish(nodeid: str, location: tuple[str, int | None, str]) -> None:
    """A case is over."""
    case = _cases.pop(nodeid)
    say("case", case=nodeid, outcome=case.outcome, reason=case.reason, detail=case.detail, row=case.row)


def _detail(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The whole story of a failure, captured output included; its end if it is long."""
    parts = [report.longreprtext, *(f"--- {name}\n{text}" for name, text in report.sections)]
    return "\n".join(parts)[-DETAIL_LIMIT:]
