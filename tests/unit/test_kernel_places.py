"""Sections and options together say where a program attaches; and what text of the kernel says about a machine."""

import pytest

from exporter.hooks import split_section
from exporter.kernel.attach import AttachError, check_options
from exporter.kernel.attach.places import Sampling, UserSymbol, parse_sampling, parse_usdt, parse_user_symbol
from exporter.kernel.features import (
    Capability,
    Features,
    parse_capabilities,
    parse_cpu_list,
    parse_lockdown,
    parse_release,
)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("xdp", ("xdp", "")),
        ("?kprobe/vfs_read", ("kprobe", "vfs_read")),
        ("uprobe.s//bin/x:f", ("uprobe", "/bin/x:f")),
        ("raw_tp.w/x", ("raw_tp", "x")),
        ("uprobe.multi//bin/x:f*", ("uprobe.multi", "/bin/x:f*")),
        ("xdp.frags", ("xdp.frags", "")),
    ],
)
def test_section_is_split_into_its_word_and_the_rest(section: str, expected: tuple[str, str]) -> None:
    """Marks of optional, sleepable and writable programs do not change where they attach."""
    assert split_section(section) == expected


@pytest.mark.parametrize(
    ("rest", "options", "expected"),
    [
        ("/bin/x:f", {}, UserSymbol("/bin/x", "f", 0)),
        ("/bin/x:f+0x10", {}, UserSymbol("/bin/x", "f", 16)),
        ("/bin/x:f+8", {}, UserSymbol("/bin/x", "f", 8)),
        ("/bin/x:0x1040", {}, UserSymbol("/bin/x", "", 0x1040)),
        ("/odd:name/x:f", {}, UserSymbol("/odd:name/x", "f", 0)),
        ("libc.so.6:malloc", {"binary": "/opt/libc.so.6"}, UserSymbol("/opt/libc.so.6", "malloc", 0)),
        ("/bin/x:f", {"target": "g"}, UserSymbol("/bin/x", "g", 0)),
        ("", {"binary": "/bin/x", "target": "g@V_1"}, UserSymbol("/bin/x", "g@V_1", 0)),
    ],
)
def test_user_symbol_comes_from_section_and_options(
    rest: str, options: dict[str, object], expected: UserSymbol
) -> None:
    """The options win, word by word."""
    assert parse_user_symbol(rest, options) == expected


@pytest.mark.parametrize(
    ("rest", "options", "words"),
    [
        ("", {}, "attach.binary"),
        ("", {"binary": "/bin/x"}, "attach.target"),
        ("", {"target": "f"}, "attach.binary"),
        ("/bin/x:f+ten", {}, "'ten'"),
        ("/bin/x:0xzz", {}, "'0xzz'"),
    ],
)
def test_incomplete_user_symbol_says_what_to_set(rest: str, options: dict[str, object], words: str) -> None:
    """The option that is missing, by its name."""
    with pytest.raises(AttachError, match=words):
        parse_user_symbol(rest, options)


def test_usdt_probe_comes_from_section_and_options() -> None:
    """Binary, provider and name; the last two together in one option."""
    assert parse_usdt("/bin/x:p:n", {}) == ("/bin/x", "p", "n")
    assert parse_usdt("/bin/x:p:n", {"binary": "/y", "target": "q:m"}) == ("/y", "q", "m")
    with pytest.raises(AttachError, match=r"attach\.binary"):
        parse_usdt("", {"target": "q:m"})
    with pytest.raises(AttachError, match="PROVIDER:NAME"):
        parse_usdt("", {"binary": "/y", "target": "q"})


@pytest.mark.parametrize(
    ("rest", "options", "expected"),
    [
        ("type=software,config=cpu-clock,frequency=99", {}, Sampling(1, 0, 99, True, -1)),
        ("type=1,config=0,frequency=99", {}, Sampling(1, 0, 99, True, -1)),
        ("type=0,config=1,sample_period=1000000", {}, Sampling(0, 1, 1000000, False, -1)),
        ("type=hardware,config=cache-misses,period=10", {}, Sampling(0, 3, 10, False, -1)),
        ("type=4,config=0x3c,period=10", {}, Sampling(4, 0x3C, 10, False, -1)),
        ("", {"frequency_hz": 49}, Sampling(1, 0, 49, True, -1)),
        ("frequency=99", {"period": 5}, Sampling(1, 0, 5, False, -1)),
        ("period=99", {"frequency_hz": 5, "pid": 7}, Sampling(1, 0, 5, True, 7)),
        ("frequency=99", {"target": "page-faults"}, Sampling(1, 2, 99, True, -1)),
        ("frequency=99", {"target": "hardware:instructions"}, Sampling(0, 1, 99, True, -1)),
    ],
)
def test_perf_event_comes_from_section_and_options(rest: str, options: dict[str, object], expected: Sampling) -> None:
    """By name or number; the options win."""
    assert parse_sampling(rest, options) == expected


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("", r"attach\.frequency_hz"),
        ("frequency=9,period=9", r"attach\.frequency_hz"),
        ("type=software,config=cpu-clok,frequency=9", "'cpu-clok'.*cpu-clock"),
        ("type=soft,config=0,frequency=9", "'soft'.*hardware, software"),
        ("frequency=-9", "'-9'"),
        ("frequency=x", "'x'"),
        ("freq=9", "'freq=9'.*frequency="),
        ("frequency", "'frequency'"),
    ],
)
def test_wrong_perf_event_says_what_there_is(rest: str, words: str) -> None:
    """A mistake names itself and what it could have been."""
    with pytest.raises(AttachError, match=words):
        parse_sampling(rest, {})


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("raw_tp/x", "interfaces"),
        ("xdp", "target"),
        ("kprobe/f", "binary"),
        ("socket", "target"),
        ("uprobe/x:y", "cgroup"),
    ],
)
def test_option_that_does_not_fit_is_never_ignored(section: str, key: str) -> None:
    """It names the option and the section."""
    with pytest.raises(AttachError, match=f"'{key}' does not fit section '{section}'"):
        check_options(section, {key: "x"})
    check_options(section, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0\n", (0,)), ("0-3\n", (0, 1, 2, 3)), ("0-1,4,6-7", (0, 1, 4, 6, 7)), ("", ()), ("0-", ()), ("x", ())],
)
def test_cpu_list_is_read(text: str, expected: tuple[int, ...]) -> None:
    """The kernel's list format; anything else is no list."""
    assert parse_cpu_list(text) == expected


def test_kernel_release_is_read() -> None:
    """Two numbers; a distribution's suffix does not matter."""
    assert parse_release("6.1.0-18-amd64") == (6, 1)
    assert parse_release("5.10") == (5, 10)
    assert parse_release("odd") == (0, 0)


def test_capabilities_and_lockdown_are_read() -> None:
    """As /proc and securityfs show them."""
    status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t000000c000001000\n"
    assert parse_capabilities(status) == {Capability.BPF, Capability.PERFMON, Capability.NET_ADMIN}
    assert parse_capabilities("") == frozenset()
    assert parse_lockdown("none [integrity] confidentiality\n") == "integrity"
    assert parse_lockdown("") == ""


def test_sys_admin_stands_for_bpf_and_perfmon() -> None:
    """As the kernel has it; not for the network's capability."""
    features = Features("6.1", (6, 1), True, True, frozenset({Capability.SYS_ADMIN}), 2, "")
    assert features.has(Capability.BPF, Capability.PERFMON)
    assert not features.has(Capability.NET_ADMIN)
