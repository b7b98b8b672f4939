"""Local storage: whose a row is becomes its labels."""

from exporter.plan import StorageSource
from tests.support.plans import instruments, plan_of, table_of

STORAGE = """
struct {{ __uint(type, {type}); __uint(map_flags, 1); __type(key, {key}); __type(value, {value}); }}
    {name} SEC(".maps") {tags};
"""


def source(type: int, key: str = "int", value: str = "u64", name: str = "counter_x", tags: str = "") -> str:
    """A storage of this type."""
    return STORAGE.format(type=type, key=key, value=value, name=name, tags=tags)


def test_task_storage_has_number_and_name_of_its_process() -> None:
    """Its threads and start time tell rows apart and are no labels."""
    table = table_of(plan_of(source(29)), "counter_x")
    assert table.source == StorageSource("task")
    assert (table.key_size, table.value_size, table.expire_idle) == (16, 8, True)
    assert [(rule.name, rule.decoder) for rule in table.labels] == [("pid", "uint"), ("comm", "pid.comm")]


def test_metadata_chooses_other_labels_of_a_task() -> None:
    """Fewer, more, or under other names."""
    labels = {"pid": {"drop": True}, "comm": {"name": "process"}, "tid": {"drop": False}}
    metadata = {"version": 1, "metrics": {"counter_x": {"labels": labels}}}
    table = table_of(plan_of(source(29), metadata=metadata), "counter_x")
    assert [(rule.name, rule.decoder) for rule in table.labels] == [("process", "pid.comm"), ("tid", "uint")]


def test_cgroup_storage_of_each_kind_has_the_cgroups_path() -> None:
    """By descriptor, by id, by id and attach type, per CPU."""
    key = "struct bpf_cgroup_storage_key { u64 cgroup_inode_id; u32 attach_type; u32 :32; };"
    table = table_of(plan_of(source(32)), "counter_x")
    assert table.source == StorageSource("cgroup") and table.key_size == 8
    assert [(rule.name, rule.decoder) for rule in table.labels] == [("cgroup", "cgroup")]
    table = table_of(plan_of(source(19, key="u64")), "counter_x")
    assert table.source is None
    assert [(rule.name, rule.decoder) for rule in table.labels] == [("cgroup", "cgroup")]
    table = table_of(plan_of(key + source(21, key="struct bpf_cgroup_storage_key")), "counter_x")
    assert table.per_cpu
    assert [(rule.name, rule.decoder) for rule in table.labels] == [("cgroup", "cgroup"), ("attach_type", "uint")]


def test_struct_in_a_storage_is_a_metric_per_member() -> None:
    """As in any map; a storage that nobody speaks of stays the program's own."""
    text = 'struct v { u64 reads TAG("kind=counter"); s32 depth TAG("kind=gauge"); };' + source(
        29, value="struct v", name="io", tags='TAG("kind=counter")'
    )
    assert set(instruments(plan_of(text))) == {"ebpf_io_reads_total", "ebpf_io_depth"}
    assert not plan_of(source(29, name="own")).tables
