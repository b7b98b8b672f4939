"""Global variables as metrics: which are, under what names, and where their bytes lie."""

import pytest

from exporter.bpf import read_object
from exporter.plan import SectionSource
from tests.support.clang import compile_bpf
from tests.support.plans import instruments, plan_of, problems_of, table_of

PROGRAM = """
SEC("raw_tp/x") int on_x(void *context) { %s return 0; }
char LICENSE[] SEC("license") = "GPL";
"""


def used(*names: str) -> str:
    """A program that keeps these variables alive."""
    return PROGRAM % "".join(f'asm volatile("" :: "r"(&{name}));' for name in names)


def test_number_with_a_prefix_is_one_series() -> None:
    """Its place is what the object's symbol table says."""
    source = "u64 first; u64 counter_x; s32 gauge_y = 3;"
    plan = plan_of(source, program=used("first", "counter_x", "gauge_y"))
    places = {
        entry.name: entry
        for entry in read_object(compile_bpf(source, program=used("first", "counter_x", "gauge_y"))).globals
    }
    x, y = table_of(plan, "counter_x"), table_of(plan, "gauge_y")
    assert (x.labels, x.key_size, x.value_size, x.per_cpu, x.skip_zero_rows) == ((), 4, 8, False, False)
    assert x.source == SectionSource(".bss", places["counter_x"].offset, 1)
    assert y.source == SectionSource(".data", 0, 1)
    assert set(instruments(plan)) == {"ebpf_x_total", "ebpf_y"}
    assert plan.read_maps == (".bss", ".data")
    assert instruments(plan)["ebpf_x_total"].description == "Counter in eBPF global counter_x"


def test_array_is_a_series_per_index_which_may_be_named_or_dropped() -> None:
    """A row nobody counted in is no series; an array of one element has no index."""
    source = """
    u64 counter_a[5]; u64 b[3] TAG("kind=counter") TAG("label=cpu"); u64 counter_c[3] TAG("drop=true");
    u64 counter_d[1]; struct { u32 x; u64 y; } counter_e[2]; struct { u64 y[2]; } counter_f[2] TAG("index=cpu");
    """
    plan = plan_of(source, program=used("counter_a", "b", "counter_c", "counter_d", "counter_e", "counter_f"))
    labels = {table.map: [rule.name for rule in table.labels] for table in plan.tables}
    assert labels == {
        "counter_a": ["index"], "b": ["cpu"], "counter_c": [], "counter_d": [], "counter_e": ["index"],
        "counter_f": ["cpu", "index"],
    }  # fmt: skip
    assert table_of(plan, "counter_a").skip_zero_rows
    assert table_of(plan, "counter_a").source == SectionSource(".bss", table_of(plan, "counter_a").source.offset, 5)  # type: ignore[union-attr]
    assert table_of(plan, "counter_e").value_size == 16


def test_histogram_takes_an_array_of_numbers_as_its_slots() -> None:
    """And an array of structs, or of arrays, as its rows."""
    source = """
    u64 hist_a[9]; u64 hist_b[4][9]; struct h { u64 slots[9]; u64 sum; }; struct h hist_c[3];
    u64 d[9] TAG("kind=histogram"); u64 e[9];
    """
    metadata = {"version": 1, "metrics": {"e": {"kind": "histogram", "name": "test.e"}}}
    plan = plan_of(source, program=used("hist_a", "hist_b", "hist_c", "d", "e"), metadata=metadata)
    shapes = {table.map: (table.source.count, len(table.metrics[0].instrument.bounds)) for table in plan.tables}  # type: ignore[union-attr]
    assert shapes == {"hist_a": (1, 8), "hist_b": (4, 8), "hist_c": (3, 8), "d": (1, 8), "e": (1, 8)}


def test_variable_that_nobody_speaks_of_is_private_without_a_word() -> None:
    """A program has many; also one whose struct is laid out like a histogram."""
    source = """
    u64 x; const volatile u32 gauge_limit = 1; struct scratch { u64 slots[4] TAG("slots=log2_ceil"); } y;
    u64 counter_z TAG("kind=none"); MAP(counter_m, HASH, 9, u32, u64);
    """
    plan = plan_of(source, program=used("x", "y", "counter_z"))
    assert [table.map for table in plan.tables] == ["counter_m"]
    assert plan.notes == ()


def test_constant_is_a_metric_where_it_is_said() -> None:
    """Its value is the one that was set before the load."""
    source = 'const volatile u32 limit TAG("kind=gauge") = 1;'
    plan = plan_of(source, program=used("limit"), globals={"limit": 9})
    assert table_of(plan, "limit").source == SectionSource(".rodata", 0, 1)


def test_struct_with_tagged_members_is_exported_where_its_variable_says_so() -> None:
    """Its type alone does not: a program keeps zeroes of it to start rows with."""
    source = """
    struct in { u64 n TAG("kind=counter"); u64 o; };
    struct out { u32 a; struct in b; } x[2] TAG("enabled=true"); struct out zero;
    """
    assert set(instruments(plan_of(source, program=used("x", "zero")))) == {"ebpf_x_b_n_total"}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('u64 x TAG("kind=event");', "global 'x': a variable gives no events"),
        ('char x[8] TAG("kind=counter");', "global 'x': its value is an array of 8 chars"),
        ('u64 x[0] TAG("kind=histogram");', "global 'x': an array without elements; give it a length"),
        ('u64 x TAG("unit=s");', "global 'x': it has unit but no kind"),
        ('u64 x TAG("kind=counter") TAG("name=skep.x");', "global 'x': metric name 'skep_x_total' begins as"),
        ('u64 x TAG("kind=counter") TAG("name=ebpf.y"); u64 counter_y;', "is also that of"),
    ],
)
def test_variable_that_cannot_be_what_is_asked_is_an_error(source: str, words: str) -> None:
    """In one line that names it."""
    program = used("x", "counter_y") if "counter_y" in source else used("x")
    found = problems_of(source, program=program)
    assert any(words in text and "\n" not in text for text in found), found


def test_metadata_may_speak_of_a_variable_and_of_its_members() -> None:
    """An object that cannot be rebuilt."""
    source = "struct s { u64 a; u64 b; }; struct s x;"
    metadata = {"version": 1, "metrics": {"x": {"kind": "counter"}, "x.b": {"kind": "gauge", "name": "test.b"}}}
    assert set(instruments(plan_of(source, program=used("x"), metadata=metadata))) == {"ebpf_x_a_total", "test_b"}
