"""Globals from the configuration: only `const volatile`, and only what the type can hold."""

import pytest

from tests.support.plans import plan_of, problems_of

SOURCE = """
enum mode { MODE_OFF, MODE_ON = 5 };
const volatile bool flag; const volatile u8 small; const volatile s16 number; const volatile u64 large;
const volatile float real; const volatile double wide; const volatile char text[8]; const volatile enum mode mode;
const volatile struct { u32 a; } pair; const volatile u32 list[4]; const volatile unsigned __int128 huge;
struct range { u8 kind : 3; u8 closed : 1; u16 ports[2]; union { u32 v4; u8 v6[16]; }; char name[4]; };
const volatile struct range range; const volatile struct range ranges[2]; const volatile bool flags[3];
const volatile s16 grid[2][2]; const volatile u8 mac[6]; const volatile union { u32 word; u16 half; } either;
const volatile char names[2][4]; volatile u32 changing; static const volatile u32 hidden = 1;
"""
PROGRAM = """
SEC("raw_tp/x") int on_x(void *context) {
    return flag + small + number + large + text[0] + mode + pair.a + list[0] + huge + range.kind +
        ranges[0].kind + flags[0] + grid[0][0] + mac[0] + either.word + names[0][0] + changing + hidden;
}
char LICENSE[] SEC("license") = "GPL";
"""


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("flag", True, "01"),
        ("flag", False, "00"),
        ("small", 255, "ff"),
        ("number", -2, "feff"),
        ("large", (1 << 64) - 1, "ff" * 8),
        ("real", 1.5, "0000c03f"),
        ("wide", 1, "000000000000f03f"),
        ("text", "größe", "6772c3b6c39f6500"),
        ("text", "", "00" * 8),
        ("mode", "MODE_ON", "05000000"),
        ("mode", "on", "05000000"),
        ("mode", 5, "05000000"),
        ("huge", 1 << 100, "00" * 12 + "10000000"),
        ("hidden", 3, "03000000"),
        ("pair", {"a": 7}, "07000000"),
        ("pair", {}, "00000000"),
        ("list", [1, 2], "0100000002000000" + "00" * 8),
        ("list", [], "00" * 16),
        ("flags", [True, False, True], "010001"),
        ("grid", [[1, -1], [2]], "0100ffff02000000"),
        ("mac", [0x52, 0x54], "525400000000"),
        ("names", ["eth", "lo"], "657468006c6f0000"),
        ("either", {"half": 258}, "02010000"),
        ("range", {"kind": 5, "closed": 1, "ports": [80, 443]}, "0d00" + "5000bb01" + "0000" + "00" * 16 + "00" * 4),
        ("range", {"v4": 1, "name": "in"}, "00" * 8 + "01000000" + "00" * 12 + "696e0000"),
        ("ranges", [{}, {"kind": 1}], "00" * 28 + "01" + "00" * 27),
    ],
)
def test_value_becomes_the_bytes_of_its_type(name: str, value: object, written: str) -> None:
    """Whole and little-endian; text ends with a NUL."""
    plan = plan_of(SOURCE, program=PROGRAM, globals={name: value})
    (entry,) = plan.globals
    assert (entry.name, entry.section, entry.value.hex()) == (name, ".rodata", written)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("flag", 1, "is 1; expected true or false"),
        ("small", 256, "is 256; expected 0 to 255"),
        ("small", -1, "is -1; expected 0 to 255"),
        ("small", True, "is True; expected an integer"),
        ("small", 1.0, "is 1.0; expected an integer"),
        ("small", "1", "is '1'; expected an integer"),
        ("number", 32768, "is 32768; expected -32768 to 32767"),
        ("real", 1e39, "is 1e+39; too large for float"),
        ("wide", "1", "is '1'; expected a number"),
        ("text", "eight by", "has 8 bytes; expected fewer than 8, none of them NUL"),
        ("text", "a\0b", "has 3 bytes; expected fewer than 8, none of them NUL"),
        ("text", 5, "is 5; expected text"),
        ("mode", "MODE_AUTO", "is 'MODE_AUTO'; expected one of MODE_OFF, MODE_ON"),
        ("mode", 4, "is 4; expected one of MODE_OFF, MODE_ON"),
        ("mode", True, "is True; expected one of MODE_OFF, MODE_ON"),
        ("pair", 1, "is 1; expected a mapping with members of struct: a"),
        ("pair", {"b": 1}, ".b is no member of struct; there are a"),
        ("pair", {"a": -1}, ".a is -1; expected 0 to 4294967295"),
        ("list", 1, "is 1; expected a list of up to 4"),
        ("list", [1, 2, 3, 4, 5], "has 5 elements; expected up to 4"),
        ("list", [1, "x"], "[1] is 'x'; expected an integer"),
        ("list", {"a": 1}, "is {'a': 1}; expected a list of up to 4"),
        ("small", [1], "is [1]; expected an integer"),
        ("flag", {"a": 1}, "is {'a': 1}; expected true or false"),
        ("names", ["long"], "[0] has 4 bytes; expected fewer than 4, none of them NUL"),
        ("names", ["a", "b", "c"], "has 3 elements; expected up to 2"),
        ("either", {"half": 1, "word": 2}, ".word lies over .half; give one of them"),
        ("range", {"kind": 8}, ".kind is 8; expected 0 to 7"),
        ("range", {"v4": 1, "v6": [1]}, ".v6 lies over .v4; give one of them"),
        ("ranges", [{"ports": [65536]}], "[0].ports[0] is 65536; expected 0 to 65535"),
        ("ranges", [{"name": 5}], "[0].name is 5; expected text"),
        ("changing", 1, "is a variable, but not `const volatile`; settable in this object: "),
        ("missing", 1, "does not exist; settable in this object: flag, small, number"),
    ],
)
def test_value_that_the_type_cannot_hold_is_an_error_with_the_range(name: str, value: object, words: str) -> None:
    """Checked before load, by BTF."""
    (text,) = problems_of(SOURCE, program=PROGRAM, globals={name: value})
    assert text.startswith(f"image 'image': globals.{name}{'' if words[0] in '.[' else ' '}{words}"), text
