"""Turns the members of a key or record into labels."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from exporter.bpf import Field, FieldKind, Layout, MapType
from exporter.model import prometheus_label

from .context import BY_CGROUP, MapContext, described, listed
from .conventions import decoder_mismatch, enum_texts, infer_decoder, is_padding, kernel_enum, member_tags
from .metadata import LabelDeclaration, over
from .plan import LabelRule, StackSource, ValueRule

LABEL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}")
_SLOT_NAMES = ("slot", "bucket")
_SCALAR_NAMES = {"key": "key", "record": "value"}
"""What a key or record that is no struct is called."""
_LENGTH_BYTES = 4
_STACK_BUILD_ID = 1 << 5  # BPF_F_STACK_BUILD_ID


@dataclass(slots=True)
class LabelReader:
    """Turns the members of a key or record into labels.

    Attributes:
        document: What the metadata says, by member name.
        whole: What the tags on the map's variable say about a key that is no struct.
        scalar_name: What such a key is called, if not as usual.
        time: The member that holds the record's time, once :meth:`rules` has met it.
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
            tagged = [part for part in member.members if self._has_said(part)]
            for part in tagged:
                self._member(part)
            if not tagged:
                self._problem(
                    f"{self.part} member {member.name!r} is a union; tag it, or the members to show, "
                    "with label=<name>:<decoder> or drop=true"
                )
            return
        self._field(member, declared, shown=member.name)

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
        inferred = declared.decode or infer_decoder(member)
        for name, named_decoder in declared.labels or ((member.name, ""),):
            decoder = named_decoder or inferred
            if decoder is None:
                self._problem(
                    f"{self.part} member {shown!r} is {described(member)}, which has no form as a label; "
                    "tag it decode=<decoder> or drop=true"
                )
                return
            mismatch = decoder_mismatch(decoder, member)
            if mismatch:
                self._problem(f"{self.part} member {shown!r} is {mismatch}; change its decoder or its type")
                return
            rule = _label_rule(name, decoder, member)
            if decoder in ("kstack", "ustack"):
                rule = replace(rule, stack=self._stack(declared.stack, decoder, shown))
            self.rules_made.append(rule)

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
        seen: dict[str, str] = {}
        for rule in self.rules_made:
            shown = prometheus_label(rule.name)
            if not LABEL_NAME.fullmatch(rule.name):
                self._problem(f"label name {rule.name!r}; expected letters, digits, '_' and '.'")
            elif shown in seen:
                self._problem(f"two labels are named {shown!r}; give one another name with label=")
            seen[shown] = rule.name


def value_rule(leaf: Field) -> ValueRule:
    """Where a field's number lies."""
    return ValueRule(leaf.offset_bits, leaf.size_bits, leaf.signed, leaf.kind is FieldKind.FLOAT)


def _label_rule(name: str, decoder: str, member: Field) -> LabelRule:
    texts = enum_texts(member) if decoder == "enum" else ()
    return LabelRule(
        name=name,
        decoder=decoder,
        offset_bits=member.offset_bits,
        size_bits=member.size_bits,
        signed=member.signed and decoder != "uint" and member.kind in (FieldKind.INT, FieldKind.ENUM),
        values=tuple((value, text) for value, _, text in texts),
        enum_name=kernel_enum(member) if decoder == "enum" else "",
        enumerators=tuple((enumerator, text) for _, enumerator, text in texts),
    )
