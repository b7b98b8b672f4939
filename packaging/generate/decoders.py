"""Generate ``docs/decoders.md`` from the table of decoders.

Usage: ``python packaging/generate/decoders.py [--check]``
"""

from __future__ import annotations

import sys
from pathlib import Path

from exporter.plan.conventions import typedef_decoders
from exporter.plan.decoders import DECODERS, Decoder

TARGET = Path(__file__).resolve().parents[2] / "docs" / "decoders.md"

HEAD = r"""# Label decoders

<!-- Made by packaging/generate/decoders.py from exporter/plan/decoders.py; do not edit. -->

A decoder turns the bytes of one member of a key or record into a label. The member's type names one; a typedef, a
tag (`SKEP_DECODE`, `SKEP_LABEL_AS`) or the metadata document (`decode`, `labels`) names another.

| Type | Decoder |
|---|---|
| integer of 8 to 128 bits, bit-field | `uint` or `int` |
| `_Bool`, enum, `float` and `double`, pointer | `bool`, `enum`, `float`, `hex` |
| `char[]` | `string` |
| `unsigned char[]`, union | `bytes` |
| array of any of these | a list: `1,2,3` in labels, an array in OTLP and JSON |
| struct, array of structs | a label for each member: `peer.port`, `pair.0.port` |

Lists have at most 256 elements. A union is shown by its members where another member says which one holds:

```c
struct key {
	__u16 family;
	union {
		ipv4_addr v4 SKEP_CASE("2") SKEP_LABEL("peer");
		ipv6_addr v6 SKEP_CASE("10") SKEP_LABEL("peer");
	} address SKEP_UNION("family");
};
```

`SKEP_CASE` takes numbers or enumerators, separated by commas, or `*` for all that no other member has. Without
`SKEP_UNION`, the members that have a tag of their own are shown, or else all bytes.

## Expressions

Where a decoder is named, steps may follow it; they change the text it gave, and leave empty text alone. Without a
decoder in front they go on from what the type says.

| Step | Does |
|---|---|
| `map(0=read,1=write)` | gives texts others; what is not listed stays, or becomes that of `*=` |
| `regexp(/PATTERN/REPLACEMENT/)` | replaces what matches; `\1` is the first group |
| `regexp(/PATTERN/)` | keeps what matches, or its first group; no label where nothing does |

```c
__u8 direction SKEP_DECODE("map(0=in,1=out,*=other)");
char comm[16] SKEP_DECODE("string|regexp(#^kworker/.*#kworker#)");
__u32 state SKEP_DECODE("enum(tcp_state)");
```

Patterns are RE2's, so that no text takes long; any character but a letter, a digit, a bracket, a space or one of
`\ , |` may delimit them. In `map` a backslash makes `,` `=` `)` and itself literal. `enum(NAME)` and `flags(NAME)`
take the names of an enum of the object, or of the running kernel's.

## All decoders

"Steady" ones have few results that stay: a series with only such labels is shown for as long as its row is there, one
with others until `expire_after` has passed without a change.
"""


def size(decoder: Decoder) -> str:
    """What it reads, in words."""
    if decoder.sizes:
        return " or ".join(str(bits // 8) for bits in decoder.sizes) + " bytes"
    return decoder.reads.value


def generate() -> str:
    """The whole page."""
    rows = [
        f"| `{decoder.name}`{' or `' + decoder.name + '(NAME)`' if decoder.named else ''} | {size(decoder)} "
        f"| {decoder.shows} | {decoder.unknown} | {decoder.cost.value} | {'yes' if decoder.lasting else ''} |"
        for decoder in DECODERS.values()
    ]
    table = ["| Decoder | Reads | Shows | Unknown | Costs | Steady |", "|---|---|---|---|---|---|", *rows]
    names: dict[str, list[str]] = {}
    for typedef, decoder in typedef_decoders().items():
        names.setdefault(decoder, []).append(f"`{typedef}`")
    typedefs = [f"| {', '.join(words)} | `{decoder}` |" for decoder, words in names.items()]
    return "\n".join(
        [HEAD, *table, "", "## Typedefs that name one", "", "| Typedef | Decoder |", "|---|---|", *typedefs, ""]
    )


def main() -> None:
    """Write the page, or with ``--check`` fail if it would change."""
    text = generate()
    if "--check" in sys.argv[1:]:
        if text != TARGET.read_text(encoding="utf-8"):
            raise SystemExit(f"{TARGET}: differs from the table of decoders; run {Path(__file__).name}")
        return
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
