r"""Label decoders as data, and the expressions that name them.

:data:`DECODERS` is the one place that says which decoders there are, what each
reads, what it costs and what it makes of a value it does not know. The plan's
checks, the compiler of labels and ``docs/decoders.md`` follow from it.

An expression is what a tag, the metadata document or the configuration writes::

    ipv4
    enum(tcp_state)
    map(1=read,2=write,*=other)
    string|regexp(/^kworker\/.*/kworker/)

A decoder first, with its argument if it takes one, then steps that change the
text it gave. Without a decoder the member's type or typedef says which.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass

from exporter.errors import PlanError

from .plan import Step

TEXT_BYTES = 4096
"""Of a key or record that one label may show as text."""
PREFIX_BYTES = 256
"""Of a trie's key behind its prefix length; LPM_DATA_SIZE_MAX of kernel/bpf/lpm_trie.c."""
EXPRESSION_LIMIT = 4096
REGEXP_LIMIT = 512
_C_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


class Reads(enum.Enum):
    """What the bits must be that a decoder reads."""

    INTEGER = "an integer, bool, enum or pointer of up to 64 bits"
    WIDE = "an integer of up to 128 bits, or up to 16 bytes"
    ENUM = "an enum, or with a name any integer of up to 64 bits"
    FLOAT = "a float or double"
    BYTES = "whole bytes"


class Cost(enum.Enum):
    """What a value costs that was not shown before."""

    FORMAT = "arithmetic"
    TABLE = "a search in a table"
    MACHINE = "a question to the machine, then remembered"


@dataclass(frozen=True, slots=True)
class Decoder:
    """One decoder.

    Attributes:
        shows: What it makes of a value.
        unknown: What it makes of a value that says nothing or that it does not know.
        sizes: Bits it reads; empty for any that ``reads`` allows.
        lasting: Its results are few and stay: a series with only such labels never becomes a dead thing's.
        named: Takes the name of an enum as its argument.
    """

    name: str
    reads: Reads
    cost: Cost
    shows: str
    unknown: str = ""
    sizes: tuple[int, ...] = ()
    lasting: bool = False
    named: bool = False


def _table(*decoders: Decoder) -> dict[str, Decoder]:
    return {decoder.name: decoder for decoder in decoders}


_NUMBER, _NOTHING = "its number", "no label"
DECODERS = _table(
    Decoder("uint", Reads.WIDE, Cost.FORMAT, "the number without a sign; of more than 63 bits as text"),
    Decoder("int", Reads.WIDE, Cost.FORMAT, "the number with its sign; of more than 64 bits as text"),
    Decoder("natural", Reads.INTEGER, Cost.FORMAT, "the number", "of a negative one: no label"),
    Decoder("bool", Reads.INTEGER, Cost.FORMAT, "`true` or `false`", lasting=True),
    Decoder("float", Reads.FLOAT, Cost.FORMAT, "the fewest digits that read back the same", sizes=(32, 64)),
    Decoder("hex", Reads.WIDE, Cost.FORMAT, "`0x1f`"),
    Decoder("string", Reads.BYTES, Cost.FORMAT, "text up to the first NUL, made valid UTF-8", "of no text: no label"),
    Decoder("bytes", Reads.BYTES, Cost.FORMAT, "each byte as two hexadecimal digits"),
    Decoder("enum", Reads.ENUM, Cost.TABLE, "the enumerator", _NUMBER, lasting=True, named=True),
    Decoder(
        "flags", Reads.ENUM, Cost.TABLE, "the enumerators whose bits are set: `read|write`", "bits left over as `0x80`",
        named=True,
    ),
    Decoder("ipv4", Reads.BYTES, Cost.FORMAT, "`10.1.2.3`", sizes=(32,)),
    Decoder("ipv6", Reads.BYTES, Cost.FORMAT, "`2001:db8::1`; of 4 bytes as `ipv4`", sizes=(32, 128)),
    Decoder("ip", Reads.BYTES, Cost.FORMAT, "as `ipv4` or `ipv6`; a mapped address as IPv4", sizes=(32, 128)),
    Decoder("prefix", Reads.BYTES, Cost.FORMAT,
            "a part of a trie's key: `10.0.0.0/8` of 4 bytes, `2001:db8::/32` of 16, else `0xabc000/12`"),
    Decoder("mac", Reads.BYTES, Cost.FORMAT, "the first six bytes: `52:54:00:12:34:56`", sizes=(48, 64)),
    Decoder("port", Reads.INTEGER, Cost.FORMAT, "the number"),
    Decoder("port_be", Reads.INTEGER, Cost.FORMAT, "the number, from network order", sizes=(16,)),
    Decoder("dns", Reads.BYTES, Cost.FORMAT, "a name of DNS wire format: `www.example.org`", "up to what is damaged"),
    Decoder("duration", Reads.INTEGER, Cost.FORMAT, "nanoseconds as seconds: `0.000128`"),
    Decoder("time", Reads.INTEGER, Cost.FORMAT, "`bpf_ktime_get_ns()` as RFC 3339 in UTC", "of 0: no label"),
    Decoder("errno", Reads.INTEGER, Cost.TABLE, "`EIO`, of 5 and of -5", "its number; of 0: no label", lasting=True),
    Decoder("syscall", Reads.INTEGER, Cost.TABLE, "`openat`, by the machine's own table", "its number; of -1: no label",
            lasting=True),
    Decoder("syscall.compat", Reads.INTEGER, Cost.TABLE, "the same of 32-bit programs (x86-64's table of i386)",
            "its number; of -1: no label", lasting=True),
    Decoder("signal", Reads.INTEGER, Cost.TABLE, "`SIGTERM`", "its number; of 0: no label", lasting=True),
    Decoder("protocol", Reads.INTEGER, Cost.TABLE, "what IP carries: `tcp`", _NUMBER, lasting=True),
    Decoder("family", Reads.INTEGER, Cost.TABLE, "a socket's address family: `inet6`", _NUMBER, lasting=True),
    Decoder("tcp_state", Reads.INTEGER, Cost.TABLE, "`established`", _NUMBER, lasting=True),
    Decoder("capability", Reads.INTEGER, Cost.TABLE, "`net_admin`", _NUMBER, lasting=True),
    Decoder("ethertype", Reads.INTEGER, Cost.TABLE, "`ipv6`, of 0x86dd in host order", _NUMBER, lasting=True),
    Decoder("uid", Reads.INTEGER, Cost.MACHINE, "the user's name", "its number; of -1: no label"),
    Decoder("gid", Reads.INTEGER, Cost.MACHINE, "the group's name", "its number; of -1: no label"),
    Decoder("pid.comm", Reads.INTEGER, Cost.MACHINE, "what the process or thread of that id calls itself",
            "of one that is gone: no label"),
    Decoder("device", Reads.INTEGER, Cost.MACHINE, "a kernel `dev_t` (major << 20 | minor) as `sda`",
            "`8:17`; of 0: no label", lasting=True),
    Decoder("interface", Reads.INTEGER, Cost.MACHINE, "a network interface's index as `eth0`",
            "its number; of 0: no label", lasting=True),
    Decoder("kstack", Reads.INTEGER, Cost.MACHINE, "the kernel stack of an id of a stack map: `read;vfs_read`",
            "of -EFAULT: no label; `[lost]`, `[gone]`", sizes=(32, 64)),
    Decoder("ustack", Reads.INTEGER, Cost.MACHINE, "the same of a process, by a member `tgid` or `pid` beside it",
            "`file+0x1f0`, `0x1f0`; of -EFAULT: no label; `[lost]`, `[gone]`", sizes=(32, 64)),
    Decoder("ksym", Reads.INTEGER, Cost.MACHINE, "the kernel function that an address lies in",
            "the address; of 0: no label"),
    Decoder("cgroup", Reads.INTEGER, Cost.MACHINE, "a cgroup's id as its path", _NOTHING),
    Decoder("cgroup.unit", Reads.INTEGER, Cost.MACHINE, "its innermost systemd unit: `nginx.service`", _NOTHING),
    Decoder("cgroup.slice", Reads.INTEGER, Cost.MACHINE, "its innermost slice: `system.slice`", _NOTHING),
    Decoder("cgroup.container", Reads.INTEGER, Cost.MACHINE,
            "its innermost container: 64 digits, or the name of an nspawn or LXC container", _NOTHING),
    Decoder("cgroup.pod", Reads.INTEGER, Cost.MACHINE, "its Kubernetes pod's UID", _NOTHING),
    Decoder("pci.vendor", Reads.INTEGER, Cost.MACHINE, "a PCI vendor id's name, by the machine's pci.ids",
            "`0x8086`", lasting=True),
    Decoder("pci.device", Reads.INTEGER, Cost.MACHINE, "vendor << 16 | device as the device's name",
            "`0x1533`", lasting=True),
    Decoder("pci.class", Reads.INTEGER, Cost.MACHINE, "a class code of 24 bits as the (sub)class's name",
            "`0x020000`", lasting=True),
)  # fmt: skip
"""Every decoder by its name."""

STEPS = ("map", "regexp")
"""What an expression may do with the text that a decoder gave; empty text stays empty."""


def size_mismatch(name: str, *, offset_bits: int, size_bits: int) -> str:
    """What a decoder takes if it cannot read so many bits at that place, or ``""``."""
    decoder = DECODERS[name]
    whole_bytes = offset_bits % 8 == 0 and size_bits % 8 == 0
    if name == "prefix":
        good, expected = whole_bytes and size_bits <= PREFIX_BYTES * 8, f"whole bytes, at most {PREFIX_BYTES}"
    elif decoder.sizes:
        good = size_bits in decoder.sizes and whole_bytes
        expected = " or ".join(str(bits // 8) for bits in decoder.sizes) + " bytes"
    elif decoder.reads is Reads.BYTES:
        good, expected = whole_bytes and size_bits <= TEXT_BYTES * 8, f"whole bytes, at most {TEXT_BYTES}"
    elif decoder.reads is Reads.WIDE:
        good, expected = size_bits <= 128, "at most 16 bytes"
    else:
        good, expected = size_bits <= 64, "integers of up to 64 bits"
    return "" if good else expected


@dataclass(frozen=True, slots=True)
class Expression:
    """A decoder and what follows it.

    Attributes:
        decoder: Of :data:`DECODERS`, or ``""`` for the one that the member's type asks for.
        enum: The argument of ``enum`` and ``flags``.
    """

    decoder: str = ""
    enum: str = ""
    steps: tuple[Step, ...] = ()


def parse_expression(text: str) -> Expression:
    """Read an expression.

    Raises:
        PlanError: it is none; the message says which words there are.
    """
    if len(text) > EXPRESSION_LIMIT:
        raise PlanError(f"an expression of {len(text)} characters; at most {EXPRESSION_LIMIT}", code="plan.decoder")
    return _Parser(text).expression()


@dataclass(slots=True)
class _Parser:
    """Walks an expression from left to right; brackets and separators can be escaped with a backslash."""

    text: str
    at: int = 0

    def expression(self) -> Expression:
        made = Expression()
        steps: list[Step] = []
        first = True
        while True:
            word = self._word()
            if word in STEPS and self._peek() == "(":
                steps.append(self._map() if word == "map" else self._regexp())
            elif first and word in DECODERS:
                made = Expression(word, self._enum_name() if DECODERS[word].named and self._peek() == "(" else "")
            elif first:
                allowed = ", ".join(sorted([*DECODERS, *(f"{step}(…)" for step in STEPS)]))
                raise self._error(f"{word or self.text[:60]!r}; expected one of {allowed}")
            else:
                raise self._error(f"step {word!r}; expected map(…) or regexp(…)")
            first = False
            if self.at == len(self.text):
                return Expression(made.decoder, made.enum, tuple(steps))
            if self._peek() != "|":
                raise self._error(f"{self.text[self.at :][:60]!r} after {self.text[: self.at][-60:]!r}; expected '|'")
            self.at += 1

    @staticmethod
    def _error(text: str) -> PlanError:
        return PlanError(text, code="plan.decoder")

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _word(self) -> str:
        match = re.compile(r"[a-z0-9_.]*", re.ASCII).match(self.text, self.at)
        assert match
        self.at = match.end()
        return match[0] if match[0] or self._peek() else self.text[self.at :]

    def _enum_name(self) -> str:
        name = self._until(")", 1)
        if not _C_NAME.fullmatch(name):
            raise self._error(f"enum name {name[:60]!r}; expected a C identifier")
        return name

    def _until(self, ends: str, skip: int = 0) -> str:
        """What stands before the next of these characters that has no backslash; the position is then behind it."""
        start = self.at
        self.at += skip
        found: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            self.at += 1
            if char in ends:
                return "".join(found)
            if char == "\\" and self._peek():
                # In a regular expression a backslash before anything but the delimiter is the expression's own.
                following = self._peek()
                self.at += 1
                dropped = following in ends or (len(ends) > 1 and following == "\\")
                char = following if dropped else char + following
            found.append(char)
        raise self._error(f"{self.text[start:][:60]!r} has no closing {ends[-1]!r}")

    def _map(self) -> Step:
        pairs: dict[str, str] = {}
        default: str | None = None
        start = self.at
        self.at += 1
        while True:
            key = self._until("=,)")
            if self.text[self.at - 1] != "=":
                raise self._error(f"{self.text[start:][:60]!r}: {key[:60]!r} has no value; write map(value=text,…)")
            value = self._until(",)")
            if key in pairs or (key == "*" and default is not None):
                raise self._error(f"map has {key[:60]!r} twice; remove one")
            if key == "*":
                default = value
            else:
                pairs[_number(key)] = value
            if self.text[self.at - 1] == ")":
                return Step("map", pairs=tuple(pairs.items()), default=default)

    def _regexp(self) -> Step:
        self.at += 1
        mark = self._peek()
        if not mark or mark.isalnum() or mark in "\\()|, ":
            raise self._error(f"regexp({mark}…; expected regexp(/pattern/) or regexp(/pattern/replacement/)")
        self.at += 1
        pattern = self._until(mark)
        replacement: str | None = None
        if self._peek() != ")":
            replacement = self._until(mark)
        if self._peek() != ")":
            raise self._error(f"regexp({mark}{pattern[:60]}{mark}…; expected ')' after the last {mark!r}")
        self.at += 1
        step = Step("regexp", pattern=pattern, replacement=replacement)
        compile_step(step)
        return step


def _number(key: str) -> str:
    """A key as decoders show it: ``0x10`` is 16."""
    return str(int(key, 16)) if re.fullmatch(r"0x[0-9A-Fa-f]{1,16}", key) else key


def compile_step(step: Step) -> Callable[[str], str]:
    """Make the function that a step stands for.

    Regular expressions are RE2's: their time grows with the text and not beyond, whatever an image brings.

    Raises:
        PlanError: the regular expression is none, or its replacement names a group that it has not.
    """
    if step.kind == "map":
        texts, default = dict(step.pairs), step.default
        return lambda text: texts.get(text, text if default is None else default)
    import re2  # noqa: PLC0415 - takes 3 MiB that most agents need not spend

    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    shown = f"regexp {step.pattern[:60]!r}"
    if len(step.pattern) > REGEXP_LIMIT:
        raise PlanError(f"{shown} has {len(step.pattern)} characters; at most {REGEXP_LIMIT}", code="plan.decoder")
    try:
        pattern = re2.compile(step.pattern, options=options)
    except re2.error as error:
        said = error.args[0].decode("utf-8", "replace") if error.args and isinstance(error.args[0], bytes) else error
        raise PlanError(f"{shown}: {said}; correct it (RE2's syntax)", code="plan.decoder") from error
    replacement = step.replacement
    if replacement is None:
        return lambda text: _kept(pattern.search(text))
    parts = re.split(r"\\([0-9\\])", replacement)
    for group in parts[1::2]:
        if group != "\\" and int(group) > pattern.groups:
            raise PlanError(
                f"{shown} has {pattern.groups} groups, its replacement names \\{group}", code="plan.decoder"
            )
    return lambda text: pattern.sub(lambda match: _expanded(match, parts), text)


def _kept(match: re.Match[str] | None) -> str:
    """The first group, or all that matched where there is none; nothing where nothing did."""
    if match is None:
        return ""
    return (match[1] if match.re.groups else match[0]) or ""


def _expanded(match: re.Match[str], parts: list[str]) -> str:
    """The replacement with its groups: every second part is the number of one, or an escaped backslash."""
    return "".join(
        part if index % 2 == 0 else "\\" if part == "\\" else match[int(part)] or "" for index, part in enumerate(parts)
    )
