"""What this kernel lacks for a program, and which of several for one measurement it can run; in the loader child.

The programs of a group are tried in the order of their ranks, the lowest first, by what
can be told without loading them: the kernel's version, its types, its tracepoints and its
symbols. One that looks well and fails at load or attach all the same is passed over by
the parent, which asks again without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from exporter.hooks import hook_of, release, split_section

from . import _libbpf, symbols
from .features import TRACEFS, parse_release

if TYPE_CHECKING:
    from .channel import WantedProgram


def choose(programs: Sequence[WantedProgram], failed: Sequence[str]) -> dict[str, str]:
    """The programs that are not to be loaded since another of their group is, and why.

    Where none of a group looks as if it could run, the last is left to fail and say so by itself.

    Args:
        programs: Of the request.
        failed: Those that did not load or attach before.
    """
    passed_over: dict[str, str] = {}
    for group in dict.fromkeys(program["alternative"] for program in programs if program["alternative"]):
        members = [p for p in programs if p["alternative"] == group and p["name"] not in failed]
        members.sort(key=lambda program: program["rank"])
        chosen = ""
        for index, program in enumerate(members):
            if chosen:
                passed_over[program["name"]] = f"not needed, {chosen!r} counts the same"
                continue
            lack = missing(program["section"], str(program["attach"].get("target") or ""))
            if lack and index + 1 < len(members):
                passed_over[program["name"]] = lack
            else:
                chosen = program["name"]
    return passed_over


def missing(section: str, target: str = "") -> str:
    """What this kernel lacks for a program of such a section; ``""`` if nothing that can be told beforehand."""
    hook = hook_of(section)
    if hook is None:
        return ""
    kernel = os.uname().release
    if parse_release(kernel) < hook.since:
        return f"this kernel ({kernel}) is older than {hook.name} programs (first in {release(hook.since)})"
    _, rest = split_section(section)
    look = _LOOKS.get(hook.name)
    name = target or rest
    if look is None or not name or look(name):
        return ""
    return f"this kernel ({kernel}) has no {name!r}"


def without_target(programs: Sequence[WantedProgram]) -> dict[str, str]:
    """Those whose typed function or tracepoint this kernel surely does not have, and its name.

    libbpf ends a load at the first of them; so all are told at once.
    """
    wanted = {}
    for program in programs:
        hook = hook_of(program["section"])
        name = str(program["attach"].get("target") or split_section(program["section"])[1])
        if hook is not None and hook.name in _TYPES and name.isidentifier():
            kind, pattern = _TYPES[hook.name]
            wanted[program["name"]] = hook.name, name, (kind, pattern.format(name))
    try:
        typed = _libbpf.kernel_types([type_ for _, _, type_ in wanted.values()])
    except OSError:  # no BTF
        return {}
    return {
        program: name
        for program, (hook_name, name, type_) in wanted.items()
        if type_ not in typed and not (hook_name in _MODULES and _MODULES[hook_name](name))
    }


def _typed(kind: str, name: str) -> bool:
    try:
        return bool(_libbpf.kernel_types([(kind, name)]))
    except OSError:  # no BTF
        return False


def _type(hook: str, name: str) -> bool:
    kind, pattern = _TYPES[hook]
    return _typed(kind, pattern.format(name))


def _function(name: str) -> bool:
    """Also one of a module, which only the symbols tell."""
    plain = name.partition("+")[0]
    told = symbols.readable() and "*" not in plain and "?" not in plain
    return not told or bool(symbols.addresses(plain, functions=True))


def _typed_function(name: str) -> bool:
    return _type("fentry", name) or (symbols.readable() and _function(name))


def _tracepoint(name: str) -> bool:
    roots = _events()
    return not roots or any(os.path.isdir(f"{root}/{name}") for root in roots)  # noqa: PTH112


def _raw_tracepoint(name: str) -> bool:
    """By its type in the kernel's BTF, or, of a module's, as an event of any category."""
    return _type("tp_btf", name) or _event(name)


def _event(name: str) -> bool:
    roots = _events()
    return not roots or any(
        os.path.isdir(f"{root}/{category}/{name}")  # noqa: PTH112
        for root in roots
        for category in os.listdir(root)  # noqa: PTH208
    )


def _events() -> list[str]:
    """The directories of tracepoints that this process may read."""
    found = []
    for root in TRACEFS:
        try:
            os.listdir(f"{root}/events")  # noqa: PTH208  access(2) would look at another user's rights
        except OSError:
            continue
        found.append(f"{root}/events")
    return found


_TYPES = {"fentry": ("function", "{}"), "lsm": ("function", "bpf_lsm_{}"), "tp_btf": ("typedef", "btf_trace_{}")}
"""What the kernel's types have for the target of a hook."""
_MODULES: dict[str, Callable[[str], bool]] = {"fentry": _function, "tp_btf": _event}
"""Whether a module may have what the kernel's own types lack."""
_LOOKS: dict[str, Callable[[str], bool]] = {
    "fentry": _typed_function,
    "lsm": lambda name: _type("lsm", name),
    "tp_btf": _raw_tracepoint,
    "tracepoint": _tracepoint,
    "raw_tracepoint": _raw_tracepoint,
    "kprobe": _function,
}
