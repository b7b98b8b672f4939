"""Hooks by the sections that name them: which options each takes, since when it is there, what it needs.

One table for everybody who has to agree on it: the plan checks options before
anything is loaded, the loader attaches by it, a refusal is explained by it, and
``docs/hooks.md`` is held to it. Pure, and without imports, since the loader child
starts with it.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Hook(NamedTuple):
    """A kind of hook.

    Attributes:
        name: Of the kind; the first of its words.
        words: First words of its sections, without the marks of sleepable (``.s``) and writable (``.w``) programs.
        options: Keys of the configuration's ``attach`` that mean something here.
        since: First Linux that has it.
        capability: What it needs beside CAP_BPF, in words.
        needs: A setting of the kernel's configuration, or ``""``.
        refused: Why it is loaded by nobody here and what to do instead; ``""`` for hooks that attach.
    """

    name: str
    words: tuple[str, ...]
    options: frozenset[str]
    since: tuple[int, int]
    capability: str
    needs: str = ""
    refused: str = ""


_TARGET = frozenset({"target"})
_BINARY = frozenset({"binary", "target", "pid"})
_INTERFACES = frozenset({"interfaces"})
_PERFMON = "CAP_PERFMON"
_NET = "CAP_NET_ADMIN"
_BY_PERF = "CAP_PERFMON; CAP_SYS_ADMIN where kernel.perf_event_paranoid is 3 and there is no multi link"

HOOKS: tuple[Hook, ...] = (
    Hook("kprobe", ("kprobe", "kretprobe"), _TARGET, (4, 1), _BY_PERF, "CONFIG_KPROBES"),
    Hook("kprobe.multi", ("kprobe.multi", "kretprobe.multi"), _TARGET, (5, 18), _PERFMON, "CONFIG_FPROBE"),
    Hook("ksyscall", ("ksyscall", "kretsyscall"), _TARGET, (4, 17), _BY_PERF, "CONFIG_KPROBES"),
    Hook("uprobe", ("uprobe", "uretprobe"), _BINARY, (4, 3), _BY_PERF, "CONFIG_UPROBES"),
    Hook("uprobe.multi", ("uprobe.multi", "uretprobe.multi"), _BINARY, (6, 6), _PERFMON, "CONFIG_UPROBES"),
    Hook("usdt", ("usdt",), _BINARY, (4, 20), _BY_PERF, "CONFIG_UPROBES"),
    Hook("tracepoint", ("tracepoint", "tp"), _TARGET, (4, 7), _BY_PERF, "CONFIG_BPF_EVENTS"),
    Hook("raw_tracepoint", ("raw_tracepoint", "raw_tp"), _TARGET, (4, 17), _PERFMON, "CONFIG_BPF_EVENTS"),
    Hook("tp_btf", ("tp_btf",), _TARGET, (5, 5), _PERFMON, "CONFIG_DEBUG_INFO_BTF"),
    Hook("fentry", ("fentry", "fexit", "fmod_ret"), _TARGET, (5, 5), _PERFMON, "CONFIG_DEBUG_INFO_BTF"),
    Hook("lsm", ("lsm",), _TARGET, (5, 7), _PERFMON, "CONFIG_BPF_LSM"),
    Hook("iter", ("iter",), _TARGET, (5, 8), _PERFMON, "CONFIG_DEBUG_INFO_BTF"),
    Hook(
        "perf_event",
        ("perf_event",),
        frozenset({"target", "frequency_hz", "period", "pid"}),
        (4, 9),
        _BY_PERF,
        "CONFIG_PERF_EVENTS",
    ),
    Hook("xdp", ("xdp", "xdp.frags"), _INTERFACES, (4, 8), _NET),
    Hook(
        "tc", ("tc", "tcx", "classifier", "action"), _INTERFACES | {"direction", "priority"}, (4, 5), _NET,
        "CONFIG_NET_CLS_BPF",
    ),
    Hook("netkit", ("netkit",), _INTERFACES | {"direction"}, (6, 7), _NET, "CONFIG_NETKIT"),
    Hook("socket", ("socket",), _INTERFACES, (3, 19), "CAP_NET_RAW"),
    Hook(
        "netfilter",
        ("netfilter",),
        frozenset({"family", "target", "priority"}),
        (6, 4),
        _NET,
        "CONFIG_NETFILTER_BPF_LINK",
    ),
    Hook("cgroup", ("cgroup", "cgroup_skb", "sockops"), frozenset({"cgroup"}), (5, 7), _NET, "CONFIG_CGROUP_BPF"),
    Hook("lsm_cgroup", ("lsm_cgroup",), frozenset({"cgroup", "target"}), (6, 0), _PERFMON, "CONFIG_BPF_LSM"),
    Hook("flow_dissector", ("flow_dissector",), frozenset(), (5, 8), _NET),
    Hook("sk_lookup", ("sk_lookup",), frozenset(), (5, 9), _NET),
    Hook("sk_msg", ("sk_msg", "sk_skb"), frozenset(), (4, 17), _NET, refused=(
        "attaches to a map of sockets, which is not done here; count in a 'sockops' or 'cgroup_skb' program"
    )),
    Hook("lwt", ("lwt_in", "lwt_out", "lwt_xmit", "lwt_seg6local"), frozenset(), (4, 10), _NET, refused=(
        "attaches to a route, which `ip route` does; count in a 'tc/egress' program"
    )),
    Hook("struct_ops", ("struct_ops",), frozenset(), (5, 6), "CAP_SYS_ADMIN", refused=(
        "replaces functions of the kernel, which is not done here"
    )),
    Hook("freplace", ("freplace",), frozenset(), (5, 6), "CAP_SYS_ADMIN", refused=(
        "replaces a function of another BPF program, which is not done here"
    )),
    Hook("sk_reuseport", ("sk_reuseport",), frozenset(), (4, 19), _NET, refused=(
        "attaches to a socket of the program that owns it, which is not done here"
    )),
    Hook("syscall", ("syscall",), frozenset(), (5, 14), "none", refused=(
        "runs when user space calls it, which nobody does here; use an iterator"
    )),
    Hook("lirc_mode2", ("lirc_mode2",), frozenset(), (4, 18), _NET, refused=(
        "attaches to an infrared receiver, which is not done here"
    )),
)  # fmt: skip

_BY_WORD = {word: hook for hook in HOOKS for word in hook.words}
_LAST_PART = re.compile(r"[_\d-][^_\d-]*$")


def split_section(section: str) -> tuple[str, str]:
    """The first word of a section name without marks, and what stands behind its slash."""
    head, _, rest = section.removeprefix("?").partition("/")
    return head.removesuffix(".s").removesuffix(".w"), rest


def known_word(word: str) -> str:
    """The word of the table that a section's first word is, or begins with as older loaders read it; else ``""``.

    ``socket1`` is ``socket`` and ``xdp_pass`` is ``xdp``.
    """
    while word and word not in _BY_WORD:
        word = _LAST_PART.sub("", word) if _LAST_PART.search(word) else ""
    return word


def hook_of(section: str) -> Hook | None:
    """The kind of hook a section names; None for one that is not in the table."""
    return _BY_WORD.get(known_word(split_section(section)[0]))


def stems(section: str) -> list[str]:
    """Shorter spellings of a section, the longest first: what another loader may have read of it."""
    found = []
    name = section.removeprefix("?")
    while "/" in name:
        name = name.rpartition("/")[0]
        found.append(name)
    while _LAST_PART.search(name):
        name = _LAST_PART.sub("", name)
        found.append(name)
    # A traffic-control action sees what a classifier sees and answers alike, and attaches as one.
    return ["tc" if stem == "action" else stem for stem in found if stem]


def misfit(section: str, keys: list[str]) -> str:
    """What is wrong with these options for programs of a section, in words; ``""`` for nothing."""
    hook = hook_of(section)
    accepted = hook.options if hook is not None else frozenset()
    for key in keys:
        if key not in accepted:
            has = f"has {', '.join(sorted(accepted))}" if accepted else "has no attach options"
            return f"{key!r} does not fit section {section!r}, which {has}"
    return ""


def release(version: tuple[int, int]) -> str:
    """A kernel's version as people write it."""
    return f"{version[0]}.{version[1]}"
