"""What an object declares: maps by libbpf's convention, globals by ELF offset, programs by section."""

import pytest

from exporter.bpf import GlobalSpec, MapType, ObjectSpec, ProgramSpec, read_object
from exporter.errors import ObjectError
from tests.support.clang import compile_bpf
from tests.support.elfwriter import BtfWriter, ObjectWriter, small_object


def refused(writer: ObjectWriter) -> ObjectError:
    """The error that reading the written object gives."""
    with pytest.raises(ObjectError) as caught:
        read_object(writer.build())
    assert "\n" not in str(caught.value)
    return caught.value


def compiled(source: str, **arguments: str) -> ObjectSpec:
    """What an object compiled from C declares."""
    return read_object(compile_bpf(source, **arguments))


def test_programs_are_the_global_functions_outside_text_in_file_order() -> None:
    """Functions in .text are called by programs and are none."""
    program = """
    static __attribute__((noinline)) int helper(int x) { return x + 1; }
    __attribute__((noinline)) int called(int x) { return x + 2; }
    SEC("tp_btf/b") int second(void *ctx) { return called(helper(0)); }
    SEC("tp_btf/a") int first(void *ctx) { return 0; }
    SEC("tp_btf/a") int first_too(void *ctx) { return 1; }
    char LICENSE[] SEC("license") = "Dual BSD/GPL";
    """
    spec = compiled("", program=program)
    assert [(entry.name, entry.section) for entry in spec.programs] == [
        ("second", "tp_btf/b"),
        ("first", "tp_btf/a"),
        ("first_too", "tp_btf/a"),
    ]
    assert spec.programs[1] == ProgramSpec("first", "tp_btf/a", 2)
    assert spec.license == "Dual BSD/GPL"


def test_map_definition_gives_sizes_types_and_tags() -> None:
    """__type gives both size and type; tags on the variable come along in order."""
    source = """
    struct key { u32 a; u64 b; };
    MAP(calls, LRU_HASH, 5000, struct key, u16) TAG("kind=counter") TAG("name=x.y");
    struct { __uint(type, STACK_TRACE); __uint(key_size, 4); __uint(value_size, 80); __uint(max_entries, 9); }
        stacks SEC(".maps");
    """
    spec = compiled(source)
    calls, stacks = spec.maps
    assert (calls.type, calls.key_size, calls.value_size, calls.max_entries) == (MapType.LRU_HASH, 16, 2, 5000)
    assert calls.tags == ("skep:kind=counter", "skep:name=x.y")
    assert (stacks.type, stacks.key_size, stacks.value_size) == (MapType.STACK_TRACE, 4, 80)
    assert stacks.key_type_id == stacks.value_type_id == 0
    assert spec.map("calls") is calls
    with pytest.raises(KeyError):
        spec.map("none")


def test_flags_pinning_and_inner_maps_are_recorded() -> None:
    """Everything libbpf's convention can say."""
    source = """
    struct inner { __uint(type, ARRAY); __uint(max_entries, 4); __type(key, u32); __type(value, u64); };
    struct { __uint(type, ARRAY_OF_MAPS); __uint(max_entries, 2); __type(key, u32); __array(values, struct inner); }
        outer SEC(".maps");
    struct { __uint(type, HASH); __uint(max_entries, 2); __uint(map_flags, 1); __uint(pinning, 1); __type(key, u32);
             __type(value, u32); __uint(numa_node, 0); __uint(map_extra, 0); } pinned SEC(".maps");
    int callee(void *ctx);
    struct { __uint(type, 3); __uint(max_entries, 2); __uint(key_size, 4); __array(values, int(void *)); }
        programs SEC(".maps");
    """
    outer, pinned, programs = compiled(source).maps
    assert outer.inner is not None
    assert (outer.inner.type, outer.inner.value_size, outer.inner.max_entries) == (MapType.ARRAY, 8, 4)
    assert (pinned.flags, pinned.pinning) == (1, 1)
    assert programs.type is MapType.PROG_ARRAY and programs.inner is None


def test_map_type_made_later_than_this_reader_is_kept_by_its_number() -> None:
    """A newer kernel's map may be private to the program."""
    (entry,) = compiled("MAP(m, 99, 1, u32, u32);").maps
    assert (entry.type, entry.type_number) == (MapType.UNSPEC, 99)


def test_globals_have_the_offsets_of_their_symbols() -> None:
    """BTF of an object that was never linked says 0 for all of them."""
    source = """
    const volatile u8 first = 1; const volatile u64 second = 2; const volatile char name[16] = "x";
    const int folded = 3;
    volatile int zero; volatile int also; volatile int one SEC(".data.mine") = 1; static volatile u16 hidden;
    """
    program = """
    SEC("raw_tp/x") int on_x(void *ctx) { return first + second + name[0] + zero + also + one + folded + hidden++; }
    char LICENSE[] SEC("license") = "GPL";
    """
    spec = compiled(source, program=program)
    found = {entry.name: entry for entry in spec.globals}
    assert found["first"].offset == 0 and found["second"].offset % 8 == 0 and found["second"].offset > 0
    assert found["name"].size == 16
    assert {name for name, entry in found.items() if entry.constant} == {"first", "second", "name"}
    assert found["one"].section == ".data.mine"
    assert {found["zero"].offset, found["also"].offset} <= {0, 2, 4, 8}
    assert found["zero"].offset != found["also"].offset
    assert found["hidden"].section == ".bss"
    assert "LICENSE" not in found


def test_small_object_written_by_hand_reads_like_a_compiled_one() -> None:
    """The test writer and the reader agree about the format."""
    spec = read_object(small_object().build())
    (entry,) = spec.globals
    assert entry == GlobalSpec("limit", ".rodata", 0, 4, entry.type_id, constant=True)


def test_object_without_btf_is_refused_with_the_remedy() -> None:
    """`llvm-strip -g` keeps BTF, a build without -g never had it."""
    writer = small_object()
    writer.with_btf = False
    error = refused(writer)
    assert error.code == "elf.no_btf" and "clang -g" in str(error)


def test_maps_that_btf_does_not_know_are_refused() -> None:
    """A .maps section is nothing without types."""
    writer = ObjectWriter()
    writer.program("on_switch")
    writer.section(".maps", bytes(32))
    assert refused(writer).code == "elf.no_btf"


@pytest.mark.parametrize(
    ("section", "code"),
    [("maps", "elf.legacy_maps"), ("maps/calls", "elf.legacy_maps"), (".maps.counter", "elf.map_section")],
)
def test_map_conventions_of_the_past_are_refused_by_name(section: str, code: str) -> None:
    """One clear line, before libbpf gives an obscure one."""
    writer = small_object()
    writer.section(section, bytes(20))
    error = refused(writer)
    assert error.code == code and repr(section) in str(error)


def with_map(build: str) -> ObjectWriter:
    """An object whose map is wrong in one way."""
    writer = ObjectWriter()
    writer.program("on_switch")
    btf: BtfWriter = writer.btf
    u32 = btf.int("unsigned int", 4)
    match build:
        case "unknown member":
            writer.map("m", 1, 1, key=u32, value=u32, extra=[("colour", btf.number(1))])
        case "member twice":
            writer.map("m", 1, 1, key=u32, value=u32, extra=[("type", btf.number(2))])
        case "size against type":
            writer.map("m", 1, 1, key=u32, value=u32, extra=[("key_size", btf.number(8))])
        case "number is no pointer":
            writer.map("m", 1, 1, key=u32, value=u32, extra=[("map_flags", u32)])
        case "values of a hash":
            inner = btf.struct("in", 8, [("type", btf.number(2), 0)])
            writer.map("m", 1, 1, key=u32, value=u32, extra=[("values", btf.array(btf.ptr(inner), 0))])
        case "value of no size":
            writer.map("m", 1, 1, key=u32, value=btf.record(7, "unknown", 0))
        case "value too large":
            writer.map("m", 1, 1, key=u32, value=btf.array(u32, 1 << 30))
        case "no struct":
            writer.variable(".maps", "m", u32, 4)
        case "no type":
            writer.variable(".maps", "m", btf.struct("", 8, [("max_entries", btf.number(1), 0)]), 8)
        case "static":
            writer.map("m", 1, 1, key=u32, value=u32)
            var = btf.var("hidden", u32, 0)
            writer.variables[".maps"].append((var, 4))
        case "no symbol":
            writer.map("m", 1, 1, key=u32, value=u32)
            writer.symbols.pop()
        case "no variable":
            writer.map("m", 1, 1, key=u32, value=u32)
            writer.variables[".maps"].append((u32, 4))
        case "same map twice":
            writer.map("m", 1, 1, key=u32, value=u32)
            writer.variables[".maps"] *= 2
        case "name":
            writer.map("a map", 1, 1, key=u32, value=u32)
        case "map in map in map":
            deepest = btf.struct("d", 8, [("type", btf.number(2), 0)])
            values = btf.array(btf.ptr(deepest), 0)
            inner = btf.struct("in", 16, [("type", btf.number(12), 0), ("values", values, 64)])
            writer.map("m", 12, 1, key=u32, extra=[("values", btf.array(btf.ptr(inner), 0))])
        case _:
            raise AssertionError(build)
    return writer


@pytest.mark.parametrize(
    ("build", "code", "words"),
    [
        ("unknown member", "elf.map_def", "map 'm': has member 'colour'"),
        ("member twice", "elf.map_def", "has member 'type' twice"),
        ("size against type", "elf.map_def", "says key_size 8, its key type has 4 bytes"),
        ("number is no pointer", "elf.map_def", "write it with __uint()"),
        ("values of a hash", "elf.map_def", "holds maps"),
        ("value of no size", "elf.map_def", "has as value struct 'unknown' without a definition"),
        ("value too large", "elf.map_def", "at most 1073741824"),
        ("no struct", "elf.map_def", "expected a struct"),
        ("no type", "elf.map_def", "has no type"),
        ("static", "elf.map_def", "is static or extern"),
        ("no symbol", "elf.corrupt", "has 0 ELF symbols"),
        ("no variable", "elf.corrupt", "lists integer 'unsigned int'"),
        ("same map twice", "elf.corrupt", "used twice"),
        ("name", "elf.corrupt", "no C identifier"),
        ("map in map in map", "elf.map_def", "has member 'values'"),
    ],
)
def test_map_definition_that_libbpf_would_refuse_is_refused(build: str, code: str, words: str) -> None:
    """Here with one line that names the map and the remedy."""
    error = refused(with_map(build))
    assert (error.code, words in str(error)) == (code, True), str(error)


def test_section_that_only_btf_has_is_refused() -> None:
    """A data section that ELF lacks means the two halves are not of one object."""
    writer = small_object()
    writer.variables[".data"] = writer.variables[".rodata"]
    assert "ELF has none" in str(refused(writer))


def test_variable_whose_sizes_differ_is_refused() -> None:
    """Writing a global must not reach beyond it."""
    writer = small_object()
    wide = writer.btf.int("unsigned long long", 8)
    writer.variable(".rodata", "wide", wide, 4)
    assert "has 4 bytes in ELF and 8 in BTF" in str(refused(writer))


def test_more_maps_than_any_object_has_are_refused() -> None:
    """The work that follows is per map."""
    writer = ObjectWriter()
    u32 = writer.btf.int("unsigned int", 4)
    definition = writer.btf.struct("", 8, [("type", writer.btf.number(1), 0)])
    for index in range(1100):
        writer.variable(".maps", f"m{index}", definition, 8)
    assert refused(writer).code == "elf.size"
    assert u32 == 1


def test_key_that_only_an_inner_map_names_is_an_error_with_the_remedy() -> None:
    """Clang leaves its struct out, and libbpf cannot tell its size either."""
    source = """
    struct key { u32 a; };
    struct inner { __uint(type, HASH); __uint(max_entries, 1); __type(key, struct key); __type(value, u64); };
    struct { __uint(type, ARRAY_OF_MAPS); __uint(max_entries, 2); __type(key, u32); __array(values, struct inner); }
    outer SEC(".maps");
    """
    with pytest.raises(
        ObjectError, match=r"'outer.inner': has as key struct 'key' without a definition; before the map"
    ):
        read_object(compile_bpf(source))
