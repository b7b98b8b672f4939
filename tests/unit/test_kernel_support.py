"""What a refused attempt is told as: pure, for kernels and users that are not at hand."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from exporter.kernel.features import Capability, Features
from exporter.kernel.support import Verdict, can_load, explain_refusal, findings, mounted

ROOT = Features("6.1.0-1", (6, 1), True, True, frozenset(Capability), 3, "none")
SERVICE = replace(ROOT, capabilities=frozenset({Capability.BPF, Capability.PERFMON}), tracefs=False)


@pytest.mark.parametrize(
    ("name", "number", "features", "by_perf", "found", "remedy"),
    [
        ("kprobe", errno.EACCES, SERVICE, True, "perf_event_paranoid is 3", "CAP_SYS_ADMIN"),
        (
            "tracepoint",
            errno.EACCES,
            replace(SERVICE, perf_event_paranoid=2),
            True,
            "tracefs is not readable",
            "DAC_READ",
        ),
        ("tracepoint", errno.ENOENT, ROOT, True, "not mounted", "mount -t tracefs"),
        ("uprobe", errno.EACCES, replace(SERVICE, perf_event_paranoid=2), True, "EACCES", "uprobe.multi"),
        ("kprobe", errno.ENODEV, ROOT, True, "CONFIG_KPROBE_EVENTS", "raw_tp or tp_btf"),
        ("kprobe.multi", errno.EOPNOTSUPP, ROOT, False, "CONFIG_FPROBE", "use kprobe"),
        ("perf_event (hardware)", errno.ENOENT, ROOT, True, "no hardware counters", "software"),
        (
            "fentry",
            errno.EPERM,
            replace(ROOT, lockdown="integrity"),
            False,
            "lockdown is 'integrity'",
            "without lockdown",
        ),
        ("fentry", 524, ROOT, False, "no trampolines", "raw_tp"),
        ("xdp", errno.EPERM, ROOT, False, "EPERM", "security module"),
        ("netfilter", errno.EINVAL, ROOT, False, "built without it", ""),
    ],
)
def test_refusal_is_told_with_its_cause_and_remedy(  # noqa: PLR0917 - a row each
    name: str, number: int, features: Features, by_perf: bool, found: str, remedy: str
) -> None:
    """By errno, capabilities, sysctl and lockdown together."""
    said = explain_refusal(name, number, features, by_perf=by_perf)
    assert found in said[0] and remedy in said[1], said


def test_capabilities_of_before_5_8_are_understood() -> None:
    """Then CAP_SYS_ADMIN was all there was."""
    admin = replace(ROOT, capabilities=frozenset({Capability.SYS_ADMIN}))
    assert can_load(replace(admin, version=(5, 4)))
    assert can_load(admin)
    assert not can_load(replace(ROOT, capabilities=frozenset({Capability.BPF})))


def test_older_kernel_is_no_and_what_may_not_be_tried_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without privilege learns what a newer kernel would bring, and not that nothing works."""
    nobody = replace(ROOT, release="5.10.0", version=(5, 10), capabilities=frozenset())
    monkeypatch.setattr("exporter.kernel.support.probe", lambda: nobody)
    found = {one.name: one for one in findings()}
    assert found["capabilities"].verdict is Verdict.NO
    assert found["uprobe.multi"].verdict is Verdict.NO and found["uprobe.multi"].remedy == "use a kernel from 6.6"
    assert found["arena"].verdict is Verdict.NO
    assert found["raw_tp"].verdict is Verdict.UNKNOWN and "CAP_BPF, CAP_PERFMON" in found["raw_tp"].found
    assert "CAP_NET_ADMIN" in found["xdp"].found
    assert found["hash"].verdict is found["bpf_get_stackid"].verdict is Verdict.UNKNOWN


def test_mounts_are_found_behind_their_optional_fields() -> None:
    """The field before the dash may be missing or many."""
    text = (
        "22 1 0:21 / /proc rw shared:5 master:1 - proc proc rw\n"
        "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 none rw\n"
        "31 1 0:26 / /second rw - cgroup2 none rw\nrubbish\n"
    )
    assert mounted(text) == {"proc": "/proc", "cgroup2": "/sys/fs/cgroup"}
