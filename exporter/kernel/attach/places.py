"""Where a program attaches, read out of its section's words and the operator's options over them; pure.

Options are named as in the configuration's ``attach``; each wins over what the section
says. What is missing or contradicts itself is an :class:`AttachError` that names the option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Options = Mapping[str, object]

# enum perf_type_id, enum perf_hw_id and enum perf_sw_ids of linux/perf_event.h, by the names perf(1) gives them.
_PERF_TYPES = {"hardware": 0, "software": 1}
_PERF_EVENTS = {
    0: (
        "cpu-cycles", "instructions", "cache-references", "cache-misses", "branch-instructions", "branch-misses",
        "bus-cycles", "stalled-cycles-frontend", "stalled-cycles-backend", "ref-cycles",
    ),
    1: (
        "cpu-clock", "task-clock", "page-faults", "context-switches", "cpu-migrations", "minor-faults",
        "major-faults", "alignment-faults", "emulation-faults", "dummy", "bpf-output", "cgroup-switches",
    ),
}  # fmt: skip


class AttachError(ValueError):
    """The section and the options do not say, together, where to attach."""


class UserSymbol(NamedTuple):
    """A place in a binary: ``symbol`` plus ``offset``, or with no symbol an offset in the file."""

    binary: str
    symbol: str
    offset: int


class Sampling(NamedTuple):
    """A sampling perf event: ``enum perf_type_id``, its config, and one sample every so often."""

    type: int
    config: int
    sample: int
    by_frequency: bool
    pid: int


def parse_offset(text: str) -> tuple[str, int]:
    """``function+0x10`` as name and offset."""
    name, plus, offset = text.partition("+")
    try:
        return name, int(offset, 0) if plus else 0
    except ValueError:
        raise AttachError(f"offset {offset!r} in {text!r} is not a number") from None


def parse_user_symbol(rest: str, options: Options) -> UserSymbol:
    """The place a ``uprobe/BINARY:SYMBOL[+OFFSET]`` section and its options name."""
    from_section = rest.rpartition(":")
    binary = option(options, "binary") or from_section[0]
    place = option(options, "target") or from_section[2]
    if not binary:
        raise AttachError("no binary is named; set attach.binary")
    if not place:
        raise AttachError(f"no symbol of {binary!r} is named; set attach.target")
    if place[0].isdigit():
        return UserSymbol(binary, "", parse_offset("+" + place)[1])
    return UserSymbol(binary, *parse_offset(place))


def parse_usdt(rest: str, options: Options) -> tuple[str, str, str]:
    """Binary, provider and probe of ``usdt/BINARY:PROVIDER:PROBE`` and its options."""
    parts = rest.rsplit(":", 2)
    binary = option(options, "binary") or (parts[0] if len(parts) == 3 else "")
    probe = option(options, "target").split(":") if options.get("target") else parts[-2:]
    if not binary:
        raise AttachError("no binary is named; set attach.binary")
    if len(probe) != 2 or not all(probe):
        raise AttachError(f"probe {':'.join(probe)!r} is not PROVIDER:NAME; set attach.target")
    return binary, probe[0], probe[1]


def parse_sampling(rest: str, options: Options) -> Sampling:
    """The event of ``perf_event/type=software,config=cpu-clock,frequency=99`` (or ``period=``) and its options.

    ``attach.target`` replaces the config, with ``type:`` before it if that differs.
    """
    words = dict.fromkeys(("type", "config", "frequency", "period"), "")
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        key = "period" if key == "sample_period" else key
        if key not in words or not equals:
            raise AttachError(f"{part!r} in a perf_event section is none of {', '.join(f'{word}=' for word in words)}")
        words[key] = value
    target = option(options, "target")
    if ":" in target:
        words["type"], _, target = target.partition(":")
    words["config"] = target or words["config"] or "cpu-clock"
    if options.get("frequency_hz"):
        words["frequency"], words["period"] = str(options["frequency_hz"]), ""
    if options.get("period"):
        words["frequency"], words["period"] = "", str(options["period"])
    if bool(words["frequency"]) == bool(words["period"]):
        raise AttachError("a perf_event needs one of frequency and period; set attach.frequency_hz or attach.period")
    event_type = _number(words["type"] or "software", _PERF_TYPES, "type")
    names = {name: number for number, name in enumerate(_PERF_EVENTS.get(event_type, ()))}
    return Sampling(
        type=event_type,
        config=_number(words["config"], names, "config"),
        sample=_number(words["frequency"] or words["period"], {}, "frequency or period"),
        by_frequency=bool(words["frequency"]),
        pid=pid_of(options),
    )


def _number(text: str, names: Mapping[str, int], what: str) -> int:
    if text in names:
        return names[text]
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if number < 0:
        known = f", or one of {', '.join(names)}" if names else ""
        raise AttachError(f"perf event {what} {text!r} is not a number{known}")
    return number


def option(options: Options, key: str) -> str:
    """The option as text; ``""`` if it is not set."""
    return str(options.get(key) or "")


def pid_of(options: Options) -> int:
    """A process id; -1 is every process."""
    return int(str(options.get("pid") or -1))


def interfaces_of(options: Options) -> list[str]:
    """Names of interfaces; none if the option is not set."""
    value = options.get("interfaces")
    return [str(name) for name in value] if isinstance(value, Sequence) and not isinstance(value, str) else []


_DIRECTIONS = ("ingress", "egress")
_NETKIT_ENDS = ("primary", "peer")


def parse_direction(section: str, options: Options) -> str:
    """``ingress`` or ``egress``, by the option, or by a part of the section's name."""
    return _one_word("direction", _DIRECTIONS, section, options)


def parse_netkit_end(section: str, options: Options) -> str:
    """``primary`` or ``peer`` of a pair of netkit interfaces."""
    return _one_word("direction", _NETKIT_ENDS, section, options)


def _one_word(key: str, words: Sequence[str], section: str, options: Options) -> str:
    said = option(options, key)
    if said and said not in words:
        raise AttachError(f"attach.{key} is {said!r}; expected one of {', '.join(words)}")
    named = [word for word in words if word in re.split(r"[/_-]", section)]
    if not said and len(named) != 1:
        raise AttachError(f"section {section!r} names no {key} ({' or '.join(words)}); set attach.{key}")
    return said or named[0]


class Netfilter(NamedTuple):
    """A netfilter hook: protocol family and hook by number, and where among others it stands."""

    family: int
    hook: int
    priority: int


# enum nf_inet_hooks and NFPROTO_* of linux/netfilter.h, by nft(8)'s names.
_FAMILIES = {"ipv4": 2, "ipv6": 10}
_NETFILTER_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
_OTHER_HOOK_NAMES = {"pre_routing": "prerouting", "local_in": "input", "local_out": "output",
                     "post_routing": "postrouting"}  # fmt: skip


def parse_netfilter(rest: str, options: Options) -> list[Netfilter]:
    """The hooks of ``netfilter/HOOK`` or ``netfilter/FAMILY/HOOK`` and its options; without a family, both."""
    from_section, _, name = rest.rpartition("/")
    family, name = option(options, "family") or from_section, option(options, "target") or name
    hook = _NETFILTER_HOOKS.get(_OTHER_HOOK_NAMES.get(name.lower(), name.lower()))
    if hook is None:
        found = f"netfilter hook {name!r} is unknown" if name else "no netfilter hook is named"
        raise AttachError(f"{found}; set attach.target to one of {', '.join(_NETFILTER_HOOKS)}")
    if family and family not in _FAMILIES:
        raise AttachError(f"family {family!r} is unknown; set attach.family to one of {', '.join(_FAMILIES)}")
    families = [_FAMILIES[family]] if family else list(_FAMILIES.values())
    return [Netfilter(number, hook, int(str(options.get("priority") or 0))) for number in families]
