"""Turns the members of a key or record into labels."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from exporter.bpf import Field, FieldKind, Layout, MapType
from exporter.bpf.btf import Enum, Enum64
from exporter.model import prometheus_label

from .context import BY_CGROUP, MapContext, described, listed
from .conventions import decoder_mismatch, enum_texts, infer_decoder, is_padding, kernel_enum, member_tags
from .decoders import DECODERS, Expression, parse_expression
from .metadata import LabelDeclaration, over
from .plan import Condition, LabelRule, StackSource, ValueRule

LABEL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}")
_NAME_LIMIT = 128
_SLOT_NAMES = ("slot", "bucket")
_SCALAR_NAMES = {"key": "key", "record": "value"}
"""What a key or record that is no struct is called."""
_LENGTH_BYTES = 4
_STACK_BUILD_ID = 1 << 5  # BPF_F_STACK_BUILD_ID
LABELS_LIMIT = 128
"""Labels of one map, counting those of each element of an array of structs."""
LIST_LIMIT = 256
"""Elements that one label may show."""
_NUMBERS = (FieldKind.UINT, FieldKind.INT, FieldKind.BOOL, FieldKind.ENUM)


@dataclass(slots=True)
class LabelReader:
    """Turns the members of a key or record into labels.

    Attributes:
        document: What the metadata says, by member name.
        whole: What the tags on the map's variable say about a key that is no struct.
        scalar_name: What such a key is called, if not as usual.
        time: The member that holds the record's time, once :meth:`rules` has met it.
        beside: Of elements of arrays of structs: the members met so far, which are no leaves of the layout.
    """

    map: MapContext
    part: str
    document: dict[str, LabelDeclaration]
    layout: Layout
    whole: LabelDeclaration
    scalar_name: str = ""
    time: Field | None = None
    slot: Field | None = None
    rules_made: list[LabelRule] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    conditions: tuple[Condition, ...] = ()
    beside: dict[str, Field] = field(default_factory=dict)

    def rules(self, *, slot_wanted: bool = False) -> tuple[tuple[LabelRule, ...], ValueRule | None]:
        """The labels in the order of the members, and where the slot number lies if one was wanted."""
        if self.map.is_trie and self.part == "key":
            self._trie()
        elif self.layout.scalar:
            self._scalar(self.layout.fields[0], slot_wanted)
        else:
            for member in self.layout.fields:
                self._member(member)
            if slot_wanted and self.slot is None:
                self._last_member_as_slot()
        for name in self.document:
            if name not in self.used:
                members = listed(
                    [self._scalar_name] if self.layout.scalar else [leaf.name for leaf in self.layout.leaves()]
                )
                self._problem(f"metadata names {self.part} member {name!r}, which does not exist; it has {members}")
        if len(self.rules_made) > LABELS_LIMIT:
            self._problem(
                f"{self.part} makes {len(self.rules_made)} labels, at most {LABELS_LIMIT}; tag some drop=true"
            )
        self._check_names()
        return tuple(self.rules_made), value_rule(self.slot) if self.slot else None

    @property
    def _scalar_name(self) -> str:
        if self.scalar_name:
            return self.scalar_name
        return "index" if self.map.is_array else _SCALAR_NAMES[self.part]

    def _problem(self, text: str) -> None:
        self.map.problem(self.part, text)

    def _trie(self) -> None:
        """The key of a longest-prefix-match trie: its length word shows in the labels of the members behind it."""
        size = self.layout.size
        if size <= _LENGTH_BYTES:
            self._problem(f"its key has {size} bytes; a trie's key is a __u32 of prefix length and the bytes it counts")
            return
        if self.layout.scalar:
            tags = member_tags(f"{self.map.owner} key", self.layout.fields[0].tags, self.map.problems).label
            declared = over(self.whole, tags)
            if "prefix" in self.document:
                declared = over(self.document["prefix"], declared)
                self.used.add("prefix")
            rest = Field("prefix", FieldKind.BYTES, 8 * _LENGTH_BYTES, 8 * (size - _LENGTH_BYTES))
            self._field(rest, replace(declared, decode=declared.decode or "prefix"), shown="prefix")
            return
        length, *rest_fields = self.layout.fields
        word = next(length.leaves())
        if word.offset_bits or not (word.size_bits == length.size_bits == 8 * _LENGTH_BYTES):
            self._problem("its key does not begin with the __u32 of prefix length that the kernel puts there")
            return
        self._declared(length)
        for member in rest_fields:
            declared = self._declared(member)
            aligned = member.offset_bits % 8 == 0 and member.size_bits % 8 == 0
            address = infer_decoder(member) in ("ipv4", "ipv6", "bytes", "string")
            if aligned and (address or (len(rest_fields) == 1 and not self._says_parts(member))):
                declared = replace(declared, decode=declared.decode or "prefix")
                self._field(member, declared, shown=member.name)
            else:
                self._member(member)

    def _says_parts(self, member: Field) -> bool:
        return any(map(self._has_said, member.members))

    def _scalar(self, whole: Field, slot_wanted: bool) -> None:
        tags = member_tags(f"{self.map.owner} {self.part}", whole.tags, self.map.problems).label
        stronger = over(self.whole, tags)
        name = self._scalar_name
        if name in self.document:
            stronger = over(self.document[name], stronger)
            self.used.add(name)
        if slot_wanted:
            if whole.kind in (FieldKind.UINT, FieldKind.INT, FieldKind.ENUM) and whole.size_bits <= 64:
                self.slot = whole
            return
        if self.map.is_array and not stronger.whole and self.map.spec.max_entries <= 1:
            return
        self._field(replace(whole, name=name), stronger, shown=name)

    def _member(self, member: Field) -> None:
        declared = self._declared(member)
        if member.kind in (FieldKind.STRUCT, FieldKind.UNION) and not self._taken_whole(member, declared):
            if declared.drop:
                return
            if member.kind is FieldKind.STRUCT:
                for part in member.members:
                    self._member(part)
                return
            self._union(member, declared)
            return
        if self._is_struct_array(member) and not self._taken_whole(member, declared):
            self._struct_array(member, declared)
            return
        self._field(member, declared, shown=member.name)

    @staticmethod
    def _is_struct_array(member: Field) -> bool:
        return member.element is not None and member.element.kind in (FieldKind.STRUCT, FieldKind.UNION)

    def _struct_array(self, member: Field, declared: LabelDeclaration) -> None:
        """Each element's members by themselves: ``pair.0.a``, ``pair.1.a``."""
        assert member.element is not None
        self._declared(member.element)
        if declared.drop:
            return
        if infer_decoder(member.element) is not None:  # a typedef that says what the struct is
            self._field(member, declared, shown=member.name)
            return
        if member.count > LABELS_LIMIT:
            self._problem(
                f"{self.part} member {member.name!r} is {described(member)}, too many for labels; tag it decode=bytes "
                "or drop=true"
            )
            return
        step = member.size_bits // member.count
        for index in range(member.count):
            element = member.element.moved(index * step, f"{member.name}.{index}")
            self.beside |= {leaf.name: leaf for leaf in element.leaves()}
            self._member(element)

    def _union(self, union: Field, declared: LabelDeclaration) -> None:
        """By its tag, by what is said about its members, or else all its bytes as they are."""
        if declared.union is not None:
            self._tagged_union(union, declared.union)
            return
        said = [part for part in union.members if self._has_said(part)]
        for part in said:
            self._member(part)
        if not said:
            # A union without a name is called by its members.
            last = union.name or "_".join(part.name.rpartition(".")[2] for part in union.members)
            whole = replace(union, name=last[:_NAME_LIMIT])
            self._field(whole, over(declared, LabelDeclaration(decode="bytes")), shown=last)

    def _tagged_union(self, union: Field, tag: str) -> None:
        """The member that the tag says holds; the others have no label then."""
        shown = f"{self.part} member {union.name!r}: union={tag}"
        parent = union.name.rpartition(".")[0]
        leaves = {leaf.name: leaf for leaf in self.layout.leaves()} | self.beside
        by = leaves.get(f"{parent}.{tag}" if parent else tag) or leaves.get(tag)
        if by is None or by.kind not in _NUMBERS or by.size_bits > 64:
            found = described(by) if by else "no member"
            numbers = listed(leaf.name for leaf in leaves.values() if leaf.kind in _NUMBERS and leaf.name)
            self._problem(f"{shown} names {found}; expected an integer or enum beside it, one of {numbers}")
            return
        met: list[tuple[Field, tuple[int, ...] | None]] = []
        for part in union.members:
            cases = self._declared(part).case
            if cases is not None:
                met.append((part, None if cases == ("*",) else self._case_values(part, cases, by)))
        values = [value for _, some in met for value in some or ()]
        if not met or len(set(values)) < len(values) or sum(some is None for _, some in met) > 1:
            which = "the same" if met else "no"
            self._problem(f"{shown}: its members have {which} case; give each a case=<value>,… of its own")
            return
        before = self.conditions
        for part, some in met:
            only = Condition(
                by.offset_bits, by.size_bits, tuple(values if some is None else some), negated=some is None
            )
            self.conditions = (*before, only)
            self._member(part)
        self.conditions = before

    def _case_values(self, part: Field, cases: tuple[str, ...], by: Field) -> tuple[int, ...]:
        names = {name: value for value, enumerator, text in enum_texts(by) for name in (text, enumerator)}
        found = []
        for case in cases:
            number = names.get(case)
            if number is None and re.fullmatch(r"-?[0-9]{1,20}|0x[0-9A-Fa-f]{1,16}", case):
                number = int(case, 0 if case.startswith("0x") else 10)
            if number is None or not -(1 << by.size_bits - 1) <= number < 1 << by.size_bits:
                self._problem(f"{self.part} member {part.name!r}: case {case!r} is no value of {by.name!r}; correct it")
                continue
            found.append(number & (1 << by.size_bits) - 1)
        return tuple(found)

    def _declared(self, member: Field) -> LabelDeclaration:
        owner = f"{self.map.owner} {self.part} member {member.name!r}"
        tags = member_tags(owner, member.tags, self.map.problems).label
        if member.name in self.document:
            self.used.add(member.name)
        return over(self.document.get(member.name), tags)

    def _has_said(self, member: Field) -> bool:
        return self._declared(member) != LabelDeclaration() or any(map(self._has_said, member.members))

    @staticmethod
    def _taken_whole(member: Field, declared: LabelDeclaration) -> bool:
        return not declared.drop and (declared.whole or infer_decoder(member) is not None)

    def _field(self, member: Field, declared: LabelDeclaration, *, shown: str) -> None:
        """Labels of one field that is taken as it is."""
        if self.map.spec.type in BY_CGROUP and member.offset_bits == 0 and self.part == "key":
            # The id of the cgroup, in struct bpf_cgroup_storage_key or alone.
            labels = declared.labels or ((member.name if declared.decode else "cgroup", ""),)
            declared = replace(declared, labels=labels, decode=declared.decode or "cgroup")
        is_time = declared.time is True or (declared.time is None and "ktime_ns" in member.typedefs)
        if is_time and self.part == "record" and not declared.whole and self.time is None:
            self.time = member
            return
        if declared.drop:
            return
        if self.part == "key" and declared.slot:
            self.slot = member
            return
        if is_padding(member) and not declared.whole:
            return
        for name, written in declared.labels or ((member.name, ""),):
            rule = self._rule(name, member, shown, written, declared.decode or "")
            if rule is None:
                return
            if rule.decoder in ("kstack", "ustack"):
                rule = replace(rule, stack=self._stack(declared.stack, rule.decoder, shown))
            self.rules_made.append(rule)

    def _rule(self, name: str, member: Field, shown: str, own: str, general: str) -> LabelRule | None:
        """One label; ``own`` and ``general`` are the expressions written for it and for its member."""
        expression = parse_expression(own or general) if own or general else Expression()
        if not expression.decoder and own and general:
            said = parse_expression(general)
            expression = replace(said, steps=(*said.steps, *expression.steps))
        decoder = expression.decoder or infer_decoder(member)
        if decoder and not decoder_mismatch(decoder, member, enum=expression.enum):
            return self._made(name, decoder, member, 1, expression)
        element = member.element
        if element is not None and member.count <= LIST_LIMIT:
            each = expression.decoder or infer_decoder(element)
            if each and not decoder_mismatch(each, element, enum=expression.enum):
                return self._made(name, each, element, member.count, expression)
        if decoder is None:
            self._problem(
                f"{self.part} member {shown!r} is {described(member)}, which has no form as a label; "
                "tag it decode=<decoder> or drop=true"
            )
        else:
            mismatch = decoder_mismatch(decoder, member, enum=expression.enum)
            if self.part == "record" and not own and not general:
                # Of a key that would fold rows; a record tells what else it has.
                self.map.note(f"{self.part} member {shown!r} left out: it is {mismatch}")
            else:
                self._problem(f"{self.part} member {shown!r} is {mismatch}; change its decoder or its type")
        return None

    def _made(self, name: str, decoder: str, member: Field, count: int, expression: Expression) -> LabelRule:
        rule = label_rule(self.map, name, decoder, member, expression)
        return replace(rule, count=count, conditions=self.conditions)

    def _stack(self, named: str | None, decoder: str, shown: str) -> StackSource | None:
        """Where the stacks of an id are: in the map that is named, else in the only one there is."""
        known = {spec.name: spec for spec in self.map.object.maps if spec.type is MapType.STACK_TRACE}
        name = named or (next(iter(known)) if len(known) == 1 else "")
        if name not in known:
            found = f"stack {name!r} is no map" if name else f"nothing says which of {len(known)} maps"
            self._problem(
                f"{self.part} member {shown!r}: {found} of type STACK_TRACE; the object has {listed(known)}, "
                "name one with stack="
            )
            return None
        leaves = [leaf for leaf in self.layout.leaves() if leaf.kind in (FieldKind.UINT, FieldKind.INT)]
        by_name = {leaf.name.rpartition(".")[2]: leaf for leaf in reversed(leaves) if leaf.size_bits <= 32}
        process = by_name.get("tgid") or by_name.get("pid")
        if decoder == "ustack" and process is None:
            self.map.note(
                f"{self.part} member {shown!r} is shown as addresses: no member tgid or pid says whose they are"
            )
        place = (process.offset_bits, process.size_bits) if process and decoder == "ustack" else None
        return StackSource(name, place, bool(known[name].flags & _STACK_BUILD_ID))

    def _last_member_as_slot(self) -> None:
        """By convention the last member is the slot when it is called so; it is then no label."""
        leaves = [leaf for leaf in self.layout.leaves() if not is_padding(leaf)]
        last = leaves[-1] if leaves else None
        if last is None or last.name not in _SLOT_NAMES or last.kind not in (FieldKind.UINT, FieldKind.INT):
            return
        self.slot = last
        self.rules_made = [
            rule for rule in self.rules_made if (rule.offset_bits, rule.size_bits) != (last.offset_bits, last.size_bits)
        ]

    def _check_names(self) -> None:
        for index, rule in enumerate(self.rules_made):
            shown = prometheus_label(rule.name)
            if not LABEL_NAME.fullmatch(rule.name):
                self._problem(f"label name {rule.name!r}; expected letters, digits, '_' and '.'")
            elif any(
                prometheus_label(other.name) == shown and not rule.excludes(other) for other in self.rules_made[:index]
            ):
                self._problem(f"two labels are named {shown!r}; give one another name with label=")


def value_rule(leaf: Field) -> ValueRule:
    """Where a field's number lies."""
    return ValueRule(leaf.offset_bits, leaf.size_bits, leaf.signed, leaf.kind is FieldKind.FLOAT)


def label_rule(context: MapContext, name: str, decoder: str, member: Field, expression: Expression) -> LabelRule:
    """One label of a field by a decoder that reads it."""
    texts: tuple[tuple[int, str, str], ...] = ()
    enum_name = ""
    if DECODERS[decoder].named:
        by_name = replace(member, enumerators=_enumerators(context, expression.enum)) if expression.enum else member
        texts = enum_texts(by_name)
        enum_name = expression.enum.split("___")[0] or kernel_enum(member)
    return LabelRule(
        name=name,
        decoder=decoder,
        offset_bits=member.offset_bits,
        size_bits=member.size_bits,
        signed=member.signed and decoder != "uint" and member.kind in (FieldKind.INT, FieldKind.ENUM),
        values=tuple((value, text) for value, _, text in texts),
        enum_name=enum_name,
        enumerators=tuple((enumerator, text) for _, enumerator, text in texts),
        steps=expression.steps,
    )


def _enumerators(context: MapContext, name: str) -> tuple[tuple[int, str], ...]:
    """Those of an enum of the object; none if it does not have it, and only the running kernel may know."""
    types = context.object.btf
    small, large = types.find(Enum, name), types.find(Enum64, name)
    found = small or large
    if found is not None and found[1].values:
        return found[1].values
    context.note(f"enum {name!r} is not in the object: its names are the running kernel's, or there are none")
    return ()
