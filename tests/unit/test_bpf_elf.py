"""ELF files: what is refused, by which code, and that nothing is taken on trust."""

import struct

import pytest

from exporter.bpf import read_object
from exporter.bpf.elf import read_elf
from exporter.errors import ObjectError
from tests.support.clang import compile_bpf
from tests.support.elfwriter import ALLOC, COMPRESSED, EXEC, EXIT, FUNC, LOCAL, NOBITS, ObjectWriter, small_object

SECTION_COUNT, SECTION_HEADERS, NAMES_SECTION, MACHINE, FILE_TYPE = 60, 40, 62, 18, 16


def refused(data: bytes) -> ObjectError:
    """The error that reading gives."""
    with pytest.raises(ObjectError) as caught:
        read_object(data)
    assert "\n" not in str(caught.value)
    return caught.value


def patched(place: int, form: str, value: int) -> bytes:
    """The small object with one field of its header changed."""
    data = bytearray(small_object().build())
    struct.pack_into(form, data, place, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "elf.magic"),
        (b"\x7fEL", "elf.magic"),
        (b"#!/bin/sh\n", "elf.magic"),
        (b"\x7fELF", "elf.corrupt"),
        (b"\x7fELF\x02\x01\x01" + bytes(56), "elf.corrupt"),
        (patched(4, "<B", 1), "elf.class"),
        (patched(5, "<B", 2), "elf.endian"),
        (patched(5, "<B", 0), "elf.endian"),
        (patched(MACHINE, "<H", 62), "elf.machine"),
        (patched(MACHINE, "<H", 0), "elf.machine"),
        (patched(FILE_TYPE, "<H", 2), "elf.type"),
        (patched(SECTION_COUNT, "<H", 0), "elf.corrupt"),
        (patched(SECTION_COUNT, "<H", 60000), "elf.corrupt"),
        (patched(SECTION_COUNT, "<H", 9), "elf.corrupt"),
        (patched(SECTION_HEADERS, "<Q", 1 << 63), "elf.corrupt"),
        (patched(SECTION_HEADERS, "<Q", 0), "elf.corrupt"),
        (patched(NAMES_SECTION, "<H", 1), "elf.corrupt"),
        (patched(NAMES_SECTION, "<H", 0xFFFF), "elf.corrupt"),
        (patched(58, "<H", 40), "elf.corrupt"),
    ],
)
def test_header_that_is_not_of_a_bpf_object_is_refused_by_its_code(data: bytes, code: str) -> None:
    """Each mistake has a code of its own, since it becomes a metric attribute."""
    assert refused(data).code == code


def test_machine_is_named_in_the_message() -> None:
    """A person who gave the wrong file sees what it is."""
    assert str(refused(patched(MACHINE, "<H", 62))) == (
        "object: its machine is 62 (x86-64), expected 247 (BPF); build it with `clang -target bpf`"
    )


def test_truncated_object_is_refused_wherever_it_ends() -> None:
    """No prefix of an object is an object."""
    data = small_object().build()
    for length in range(0, len(data), 7):
        assert refused(data[:length]).code in ("elf.magic", "elf.corrupt")


def test_compressed_section_is_refused() -> None:
    """The loader would take its bytes raw and another reader inflated: two views of one file."""
    writer = small_object()
    writer.section(".data.x", bytes(32), flags=COMPRESSED)
    assert "compressed" in str(refused(writer.build()))


def test_two_sections_of_one_name_are_refused() -> None:
    """Which of them is meant must not hang on the reader."""
    writer = small_object()
    writer.section("license", b"MIT\0")
    assert "both named 'license'" in str(refused(writer.build()))


@pytest.mark.parametrize("offset", [0, 63, 64, 70])
def test_section_over_another_or_over_the_header_is_refused(offset: int) -> None:
    """Overlapping bytes could be a program to one reader and data to another."""
    writer = small_object()
    writer.section(".evil", bytes(8), offset=offset)
    assert "overlap" in str(refused(writer.build()))


def test_section_without_bytes_in_the_file_may_be_anywhere() -> None:
    """.bss takes no place in the file, however large."""
    writer = small_object()
    writer.section(".note", type=NOBITS, size=1 << 40, offset=64)
    assert read_object(writer.build()).programs


def test_section_beyond_the_end_of_the_file_is_refused() -> None:
    """A size is checked before anything is read by it."""
    writer = small_object()
    writer.section(".far", bytes(8), size=1 << 62)
    assert "the file ends at" in str(refused(writer.build()))


@pytest.mark.parametrize(("offset", "size"), [(0, 17), (16, 1), (1 << 63, 8), (0, 1 << 63)])
def test_symbol_outside_its_section_is_refused(offset: int, size: int) -> None:
    """A program or variable is where its section is, or nowhere."""
    writer = ObjectWriter()
    index = writer.section("raw_tp/x", EXIT, flags=ALLOC | EXEC)
    writer.symbol("on_x", index, offset, size, kind=FUNC)
    assert "its section ends at 16" in str(refused(writer.build()))


def test_symbol_in_a_section_that_does_not_exist_is_refused() -> None:
    """An index is checked before it is followed."""
    writer = small_object()
    writer.symbol("lost", 40, 0, 0)
    assert "is in section 40" in str(refused(writer.build()))


def test_name_that_is_defined_twice_is_refused() -> None:
    """Two global symbols of one name could be two variables to two readers."""
    writer = small_object()
    writer.symbol("limit", 3, 0, 4)
    assert "defined twice" in str(refused(writer.build()))


def test_object_without_symbols_is_refused() -> None:
    """Without a symbol table nothing can be found."""
    data = bytearray(small_object().build())
    headers, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    struct.pack_into("<I", data, headers + (count - 1) * 64 + 4, 1)
    assert "symbol tables" in str(refused(bytes(data)))


def test_static_program_is_refused_with_the_remedy() -> None:
    """The loader refuses it, and says so less clearly."""
    writer = small_object()
    writer.program("hidden", "raw_tp/other", binding=LOCAL)
    assert "remove `static`" in str(refused(writer.build()))


def test_section_bytes_are_those_of_the_file() -> None:
    """The build step reads instructions from here."""
    elf = read_elf(small_object().build())
    section = elf.section("raw_tp/sched_switch")
    assert section is not None and section.executable
    assert elf.data(section) == EXIT


def test_what_clang_writes_is_read_with_and_without_optimisation() -> None:
    """The reader's ideas of a correct file are not stricter than the compiler's."""
    source = (
        "MAP(counter_a, HASH, 10, u32, u64); const volatile u64 big; static volatile int hidden; int zero; int one = 1;"
    )
    for flags in ((), ("-O1",), ("-gdwarf-4",)):
        spec = read_object(compile_bpf(source, *flags))
        assert [entry.name for entry in spec.maps] == ["counter_a"]
        assert [entry.name for entry in spec.programs] == ["on_switch"]
