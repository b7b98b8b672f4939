"""Which programs are loaded, where they attach, and which of them are alternatives for one measurement."""

from __future__ import annotations

import re
from dataclasses import fields

from exporter.bpf import ObjectSpec, ProgramSpec
from exporter.config import AttachConfig, ImageConfig
from exporter.errors import PlanError, SkepError
from exporter.hooks import hook_of

from .context import listed
from .metadata import RANK_LIMIT, ImageMetadata, ProgramDeclaration
from .plan import ProgramPlan

_TAG = "skep:alternative="
_ALTERNATIVE = re.compile(r"([A-Za-z0-9_.-]{1,64}):(\d{1,2})")


def plan_programs(
    spec: ObjectSpec,
    config: ImageConfig,
    document: ImageMetadata,
    problems: list[SkepError],
    notes: list[str],
) -> tuple[ProgramPlan, ...]:
    """Choose the programs to load; what is wrong is added to ``problems``.

    One whose section begins with ``?`` is loaded if the configuration says where it attaches, or if it is an
    alternative.
    """
    names = [program.name for program in spec.programs]
    if not names:
        problems.append(PlanError("object: it has no programs; mark a function with SEC(…)", code="plan.programs"))
    for name in config.attach:
        if name not in names:
            text = f"image {config.name!r}: attach.{name}: no such program; it has {listed(names)}"
            problems.append(PlanError(text, code="plan.config"))
    for name in document.programs:
        if name not in names:
            text = f"metadata 'programs.{name}': no such program; the object has {listed(names)}"
            problems.append(PlanError(text, code="plan.metadata"))
    plans = []
    for program in spec.programs:
        attach = config.attach.get(program.name)
        if attach is not None and not attach.enabled:
            notes.append(f"program {program.name!r}: not loaded, as attach.{program.name}.enabled says")
            continue
        if attach is not None:
            _check_attach(config.name, program, attach, problems)
        group, rank = _alternative(program, document.programs.get(program.name, ProgramDeclaration()), problems)
        if attach is None and not group and program.section.startswith("?"):
            notes.append(
                f"program {program.name!r}: not loaded, as section {program.section!r} says; name it under attach"
            )
            continue
        plans.append(ProgramPlan(program.name, program.section, attach, group, rank))
    if names and not plans:
        text = f"image {config.name!r}: none of its programs is to be loaded; name one under attach ({listed(names)})"
        problems.append(PlanError(text, code="plan.programs"))
    _check_groups(plans, problems, notes)
    return tuple(plans)


def _check_attach(image: str, program: ProgramSpec, attach: AttachConfig, problems: list[SkepError]) -> None:
    hook = hook_of(program.section)
    if hook is None:
        return  # a kind that only libbpf knows, which then says what it thinks of it
    default = AttachConfig()
    for key in (part.name for part in fields(attach) if part.name != "enabled"):
        if getattr(attach, key) != getattr(default, key) and key not in hook.options:
            expected = f"expected {listed(sorted(hook.options))}" if hook.options else "it has no options"
            text = f"has no meaning for section {program.section!r}; {expected}"
            problems.append(PlanError(f"image {image!r}: attach.{program.name}.{key} {text}", code="plan.config"))


def _alternative(program: ProgramSpec, said: ProgramDeclaration, problems: list[SkepError]) -> tuple[str, int]:
    """The group and rank of a program, the document's over the tag's."""
    group, rank = "", 0
    for tag in program.tags:
        if not tag.startswith("skep:"):
            continue
        match = _ALTERNATIVE.fullmatch(tag.removeprefix(_TAG)) if tag.startswith(_TAG) else None
        if match is None:
            text = f"program {program.name!r}: tag {tag[:100]!r}; expected {_TAG}<group>:<rank>, rank 0 to {RANK_LIMIT}"
            problems.append(PlanError(text, code="plan.tag"))
        else:
            group, rank = match[1], int(match[2])
    return (
        group if said.alternative is None else said.alternative,
        rank if said.rank is None else said.rank,
    )


def _check_groups(plans: list[ProgramPlan], problems: list[SkepError], notes: list[str]) -> None:
    for group in dict.fromkeys(plan.alternative for plan in plans if plan.alternative):
        members = sorted((plan for plan in plans if plan.alternative == group), key=lambda plan: plan.rank)
        names = [plan.name for plan in members]
        if len({plan.rank for plan in members}) < len(members):
            ranks = ", ".join(f"{plan.name} {plan.rank}" for plan in members)
            text = f"alternative {group!r}: two programs have one rank ({ranks}); give each its own"
            problems.append(PlanError(text, code="plan.programs"))
        if len(members) == 1:
            text = f"alternative {group!r}: {names[0]!r} is its only program; add another, or take the tag away"
            problems.append(PlanError(text, code="plan.programs"))
        notes.append(f"alternative {group!r}: one program runs, the first that the host can: {', '.join(names)}")
