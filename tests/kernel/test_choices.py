"""What is chosen at load: one of several alternatives, programs without those that fail, shared maps, symbols."""

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.bpf import read_object
from exporter.config import AttachConfig, ImageConfig, MapConfig
from exporter.errors import KernelError, PlanError, Problems
from exporter.kernel import GlobalRequest, MapRequest, ProgramRequest, symbols
from exporter.plan import Plan, make_plan

from .conftest import GETPGID, Compile, Loading, make_calls, own_globals, rodata_offsets
from .test_load import cells

GROUP = {"by_fentry": 1, "by_kprobe": 2, "by_raw_tp": 3}


def planned(object: bytes, metadata: dict[str, object] | None = None, **config: object) -> Plan:
    """The plan of an object on this machine."""
    image = ImageConfig(**{"name": "image", "ref": "image"} | config)  # type: ignore[arg-type]
    return make_plan(
        read_object(object), config=image, version="", metadata=metadata or {}, possible_cpus=os.cpu_count() or 1
    )


def own_calls(object: bytes) -> tuple[GlobalRequest, ...]:
    """The globals that have the alternatives look at this process's ``getpgid`` calls."""
    place = rodata_offsets(object)["wanted_syscall"]
    return (*own_globals(object), GlobalRequest(".rodata", place, struct.pack("=q", GETPGID)))


def requests(plan: Plan, *names: str) -> list[ProgramRequest]:
    """What a plan would have loaded of these programs."""
    return [ProgramRequest(p.name, p.section, None, p.alternative, p.rank) for p in plan.programs if p.name in names]


def test_tags_make_groups_that_the_plan_carries(compile_object: Compile) -> None:
    """Optional sections are in it, with their ranks; a note says that one of them will run."""
    plan = planned(compile_object("alternatives"))
    found = {p.name: (p.alternative, p.rank) for p in plan.programs}
    assert {name: found[name] for name in GROUP} == {name: ("getpgid", rank) for name, rank in GROUP.items()}
    assert found["on_peek"] == ("", 0)
    assert "alternative 'getpgid': one program runs, the first that the host can: by_fentry, by_kprobe, by_raw_tp" in (
        plan.notes
    )


@pytest.mark.parametrize("partial", [True, False])
def test_first_alternative_that_the_kernel_can_counts_alone(
    loading: Loading, compile_object: Compile, partial: bool
) -> None:
    """Each calls once: whichever it is, the others are not loaded, and say why."""
    object = compile_object("alternatives")
    collection = loading(
        "alternatives",
        *requests(planned(object), *GROUP),
        globals=own_calls(object),
        read_maps=("seen",),
        partial=partial,
    )
    make_calls(77)
    assert cells(collection, "seen")[0] == 77
    taken = [program.name for program in collection.programs if program.attached]
    assert len(taken) == 1
    assert not any(program.error for program in collection.programs)
    for program in collection.programs:
        if not program.attached:
            rank = GROUP[program.name]
            assert program.passed_over
            assert (f"not needed, {taken[0]!r}" in program.passed_over) == (rank > GROUP[taken[0]])


def test_metadata_makes_groups_of_programs_without_tags(loading: Loading, compile_object: Compile) -> None:
    """And wins over the tag; a lower rank is tried first."""
    object = compile_object("alternatives")
    programs: dict[str, object] = {
        "by_raw_tp": {"rank": 0},
        "by_no_function": {"alternative": "getpgid", "rank": 9},
        "on_peek": {"alternative": "other", "rank": 1},
        "by_exit": {"alternative": "other"},
    }
    plan = planned(object, {"version": 1, "programs": programs})
    collection = loading("alternatives", *requests(plan, *GROUP, "on_peek", "by_exit"), globals=own_calls(object))
    assert [p.name for p in collection.programs if p.attached] == ["by_raw_tp", "on_peek"]


def test_probe_passes_over_what_the_kernel_does_not_have(loading: Loading, compile_object: Compile) -> None:
    """The kernel's types are asked before anything is loaded."""
    object = compile_object("alternatives")
    collection = loading(
        "alternatives", *requests(planned(object), "by_no_function", "by_exit"), read_maps=("seen",), partial=False
    )
    first, second = collection.programs
    assert "has no 'skep_no_such_function'" in first.passed_over
    assert second.attached


def test_group_without_any_that_can_run_says_why_of_the_last(loading: Loading, compile_object: Compile) -> None:
    """The first are passed over, the last fails by itself."""
    with pytest.raises(KernelError, match="no_such_tracepoint"):
        loading(
            "refused",
            ProgramRequest("missing_typed_tracepoint", "tp_btf/skep_no_such_tracepoint", None, "g", 1),
            ProgramRequest("missing_tracepoint", "tracepoint/skep/no_such_tracepoint", None, "g", 2),
        )


@pytest.mark.parametrize(
    ("programs", "words"),
    [
        ({"by_raw_tp": {"rank": 2}}, "two programs have one rank"),
        ({"on_peek": {"alternative": "alone"}}, "'on_peek' is its only program"),
        ({"nobody": {"alternative": "x"}}, "no such program"),
        ({"on_peek": {"alternative": "x", "rank": 100}}, "expected 0 to 99"),
        ({"on_peek": {"rang": 1}}, "'rang'"),
    ],
)
def test_wrong_groups_are_refused_by_the_plan(compile_object: Compile, programs: dict[str, object], words: str) -> None:
    """Before anything is loaded."""
    with pytest.raises((PlanError, Problems), match=re.escape(words)):
        planned(compile_object("alternatives"), {"version": 1, "programs": programs})


def test_programs_that_do_not_load_do_not_sink_the_others(loading: Loading) -> None:
    """The verifier, a member that is not there, a typed tracepoint that is not there: each is told, the fourth runs."""
    sections = {
        "unchecked_pointer": "raw_tp/sys_enter",
        "fine": "raw_tp/sys_enter",
        "missing_member": "raw_tp/sys_enter",
        "missing_typed_tracepoint": "tp_btf/skep_no_such_tracepoint",
    }
    collection = loading("refused", *(ProgramRequest(name, section) for name, section in sections.items()))
    told = {program.name: program.error for program in collection.programs}
    assert [program.name for program in collection.programs if program.attached] == ["fine"]
    assert "R0 invalid mem access" in told["unchecked_pointer"]
    assert "no_such_member" in told["missing_member"]
    assert "skep_no_such_tracepoint" in told["missing_typed_tracepoint"]


@pytest.fixture
def pin() -> Iterator[Path]:
    """A path in the BPF file system that is free, and is again afterwards."""
    path = Path(f"/sys/fs/bpf/skep-test-{os.getpid()}")
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)


HOOK = ProgramRequest("on_raw_tp", "raw_tp/sys_enter")


def test_pinned_map_is_shared_by_whoever_names_the_path(loading: Loading, compile_object: Compile, pin: Path) -> None:
    """The first puts it there, the second counts in the same one, and it stays when both have gone."""
    globals = own_globals(compile_object("hooks"), syscall=GETPGID)
    options = {"globals": globals, "maps": (MapRequest("calls", pin=str(pin)),), "read_maps": ("calls",)}
    first = loading("hooks", HOOK, **options)
    second = loading("hooks", HOOK, **options)
    make_calls(10)
    assert cells(first, "calls")[0] == cells(second, "calls")[0] == 20
    first.close()
    second.close()
    third = loading("hooks", HOOK, **options)
    assert cells(third, "calls")[0] == 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_entries": 9}, "has max_entries 3, expected 9"),
        ({"pin": "/tmp/skep-no-pin"}, "BPF file system"),
        ({"pin": "/sys/fs/bpf/skep-none/x"}, "BPF file system"),
    ],
)
def test_pin_that_does_not_fit_is_refused(loading: Loading, pin: Path, change: dict[str, object], words: str) -> None:
    """Another definition, or no place for a pin: map, path and remedy."""
    loading("hooks", HOOK, maps=(MapRequest("calls", pin=str(pin)),))
    with pytest.raises(KernelError, match=words) as caught:
        loading("hooks", HOOK, maps=(MapRequest(**{"name": "calls", "pin": str(pin)} | change),))  # type: ignore[arg-type]
    assert caught.value.code in ("kernel.pin", "kernel.map_def", "elf.map_def")
    assert "'calls'" in str(caught.value)


def test_global_gets_the_address_of_a_kernel_symbol(loading: Loading, compile_object: Compile) -> None:
    """As the kernel's own table has it."""
    object = compile_object("alternatives")
    offset = rodata_offsets(object)["address"]
    collection = loading(
        "alternatives",
        ProgramRequest("on_peek", "raw_tp/sys_enter"),
        globals=(GlobalRequest(".rodata", offset, b"", "vfs_unlink"),),
        read_maps=("seen",),
    )
    make_calls(1)
    assert [cells(collection, "seen")[2]] == symbols.addresses("vfs_unlink")


def test_symbol_that_is_not_there_is_named(loading: Loading, compile_object: Compile) -> None:
    """With what to do."""
    place = (GlobalRequest(".rodata", rodata_offsets(compile_object("alternatives"))["address"], b"", "skep_nothing"),)
    with pytest.raises(KernelError, match="kernel symbol 'skep_nothing': this kernel has no such symbol") as caught:
        loading("alternatives", ProgramRequest("on_peek", "raw_tp/sys_enter"), globals=place)
    assert caught.value.code == "kernel.symbol"


def test_configured_maps_and_symbols_are_in_the_plan(compile_object: Compile) -> None:
    """The object's own size, too, is what the plan reckons with."""
    plan = planned(
        compile_object("alternatives"),
        globals={"address": "ksym:vfs_unlink"},
        maps={"seen": MapConfig(max_entries=100_000, pin="/sys/fs/bpf/x")},
    )
    assert [(m.name, m.max_entries, m.pin) for m in plan.maps] == [("seen", 100_000, "/sys/fs/bpf/x")]
    assert plan.map_memory > 800_000
    assert [(g.ksym, g.value) for g in plan.globals] == [("vfs_unlink", bytes(8))]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"maps": {"sean": MapConfig(max_entries=1)}}, "maps.sean: no such map; it has"),
        ({"globals": {"tgid": "ksym:vfs_unlink"}}, "an address goes into a __u64"),
        ({"globals": {"address": "ksym:not a name"}}, "expected ksym:NAME"),
        ({"attach": {"by_raw_tp": AttachConfig(interfaces=("lo",))}}, "has no meaning for section"),
    ],
)
def test_configuration_that_does_not_fit_the_object_is_refused(
    compile_object: Compile, config: dict[str, object], words: str
) -> None:
    """In one line that says what there is."""
    with pytest.raises((PlanError, Problems), match=re.escape(words)):
        planned(compile_object("alternatives"), **config)
