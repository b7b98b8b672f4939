"""Maps of maps: which labels come from which key, and where they lie."""

import pytest

from exporter.plan import InnerSource, ValueRule
from tests.support.plans import plan_of, problems_of, table_of

INNER = """
struct inner {{ __uint(type, {type}); __uint(max_entries, {entries}); __type(key, {key}); __type(value, {value}); }}
    spare SEC(".maps") = {{}};
"""
OUTER = """
struct {{ __uint(type, {type}); __uint(max_entries, 9); __type(key, {key}); __array(values, struct inner); }}
    {name} SEC(".maps") {tags};
"""


def source(
    *, outer: str = "u32", outer_type: str = "13", name: str = "counter_x", tags: str = "", **inner: object
) -> str:
    """A map of maps of these kinds."""
    held = INNER.format(**({"type": "HASH", "entries": 9, "key": "u64", "value": "u64"} | inner))
    return held + OUTER.format(type=outer_type, key=outer, name=name, tags=tags)


def test_labels_of_the_outer_key_come_first() -> None:
    """Each where it lies behind what was put before it."""
    text = "struct out { u16 zone; u16 pad; u8 id[6]; }; struct in { u32 code; u32 way; };"
    table = table_of(plan_of(text + source(outer="struct out", key="struct in")), "counter_x")
    assert table.source == InnerSource(10)
    assert (table.key_size, table.value_size, table.read_map) == (22, 8, "counter_x")
    assert [(rule.name, rule.offset_bits, rule.size_bits) for rule in table.labels] == [
        ("zone", 0, 16), ("id", 32, 48), ("code", 112, 32), ("way", 144, 32),
    ]  # fmt: skip


def test_scalar_keys_have_names_of_their_own() -> None:
    """The tag on the map names the outer one, metadata either."""
    rules = table_of(plan_of(source()), "counter_x").labels
    assert [rule.name for rule in rules] == ["outer", "key"]
    rules = table_of(plan_of(source(tags='TAG("label=tenant")', type="ARRAY", key="u32")), "counter_x").labels
    assert [rule.name for rule in rules] == ["tenant", "index"]
    labels = {"outer": {"name": "tenant"}, "key": {"name": "user", "decode": "uid"}}
    metadata = {"version": 1, "metrics": {"counter_x": {"labels": labels}}}
    rules = table_of(plan_of(source(), metadata=metadata), "counter_x").labels
    assert [(rule.name, rule.decoder) for rule in rules] == [("tenant", "uint"), ("user", "uid")]


def test_slot_number_and_prefix_of_an_inner_key_lie_behind_the_outer_one() -> None:
    """Both are read from the whole key."""
    text = "struct in { u32 code; u32 slot; };" + source(name="hist_x", key="struct in", outer="u64")
    rule = table_of(plan_of(text), "hist_x").metrics[0].histogram
    assert rule is not None and rule.slot == ValueRule(8 * (8 + 4 + 4), 32)
    (_, prefix) = table_of(plan_of(source(type="LPM_TRIE", key="u64", outer="u64")), "counter_x").labels
    assert (prefix.name, prefix.base_bytes, prefix.offset_bits) == ("prefix", 12, 8 * 16)


def test_tag_of_a_union_in_an_inner_key_lies_behind_the_outer_one() -> None:
    """Else bytes of the outer key would decide which member holds."""
    text = """
    struct in { u16 family; u16 pad; union { u32 v4 TAG("case=2") TAG("label=peer"); u64 id TAG("case=*"); } who
                TAG("union=family"); };
    """
    rules = table_of(plan_of(text + source(key="struct in", outer="u64")), "counter_x").labels
    assert [rule.name for rule in rules] == ["outer", "family", "peer", "who.id"]
    assert [[one.offset_bits for one in rule.conditions] for rule in rules] == [[], [], [8 * 12], [8 * 12]]
    assert rules[1].offset_bits == 8 * 12


def test_process_of_a_stack_in_an_inner_key_lies_behind_the_outer_one() -> None:
    """Its addresses are that process's."""
    text = """
    struct { __uint(type, STACK_TRACE); __uint(max_entries, 9); __uint(key_size, 4); __uint(value_size, 64); }
        stacks SEC(".maps");
    struct in { u32 tgid; s32 user TAG("decode=ustack"); };
    """
    rules = table_of(plan_of(text + source(key="struct in", outer="u64")), "counter_x").labels
    assert rules[2].stack is not None and rules[2].stack.process == (8 * 12, 32)


def test_per_cpu_values_of_inner_maps_are_summed() -> None:
    """As those of any map."""
    table = table_of(plan_of(source(type="PERCPU_ARRAY", key="u32", outer_type="ARRAY_OF_MAPS")), "counter_x")
    assert table.per_cpu and table.skip_zero_rows and table.expire_idle


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (source(name="x", tags='TAG("kind=counter")', type="QUEUE"), "map 'x': cannot be a counter: map type queue"),
        ("struct k { u32 a; };" + source(outer="struct k", key="struct k"), "label 'a' is one of the outer and of"),
        ("MAP(x, 13, 9, u32, u32) TAG(\"kind=gauge\");", "map 'x': nothing says what maps it holds; declare __array("),
    ],
)  # fmt: skip
def test_map_of_maps_that_cannot_be_read_is_an_error(text: str, words: str) -> None:
    """In one line."""
    found = problems_of(text)
    assert any(words in problem and "\n" not in problem for problem in found), found


def test_map_of_maps_without_a_kind_is_private() -> None:
    """Most hold what a program looks up."""
    plan = plan_of(source(name="x"))
    assert not plan.tables
    assert "map 'x': not exported: nothing says its kind" in plan.notes
