"""A source with one of everything, and what ``skep plan`` prints of it.

After a change that is meant: ``python -m tests.unit.test_plan_golden`` writes
the golden file anew; read the difference before it is committed.
"""

import json
from pathlib import Path

from exporter.cli.plan import plan_json, plan_text
from exporter.config import AttachConfig, EventConfig, MetricConfig
from exporter.plan import Plan
from tests.support.plans import plan_of

GOLDEN = Path(__file__).parents[1] / "golden"


def everything() -> Plan:
    """The golden source with a little of every configuration."""
    return plan_of(
        (GOLDEN / "plan.bpf.c").read_text(),
        metadata={"version": 1, "description": "One of everything"},
        labels={"tier": "db"},
        globals={"by_cgroup": True, "limit": 20, "filter": "eth", "only": "write"},
        attach={"on_packet": AttachConfig(interfaces=("eth0", "eth1"))},
        metrics={
            "ebpf_io_errors_total": MetricConfig(drop_labels=("device",)),
            "ebpf_by_index_total": MetricConfig(rename="my_counts_total", help="Counts by index."),
            "ebpf_state_packets": MetricConfig(enabled=False),
        },
        events={"ebpf.exits": EventConfig(enabled=False)},
    )


def test_plan_of_everything_is_printed_as_the_golden_file_has_it() -> None:
    """Names, units, kinds, buckets, labels, decoders, events, programs, memory and notes."""
    assert plan_text(everything()) == (GOLDEN / "plan.txt").read_text()


def test_plan_as_json_has_what_the_text_has() -> None:
    """Scripts read this form; nothing in it is a Python object."""
    made = json.loads(json.dumps(plan_json(everything())))
    io = next(table for table in made["tables"] if table["map"] == "io")
    assert io["labels"][1]["values"][:2] == [[0, "read"], [1, "write"]]
    assert io["metrics"][0]["instrument"]["kind"] == "histogram"
    assert io["metrics"][0]["instrument"]["cell_type"] == "u64"
    assert io["metrics"][0]["instrument"]["bounds"][-1] == 0.000128
    assert {"name": "limit", "section": ".rodata", "value": "14000000"}.items() <= made["globals"][1].items()
    assert made["maps"] == [
        {"name": "print_exits", "clear_value_size": True, "max_entries": 0, "pin": "", "value_size": 0},
        {"name": "quiet", "clear_value_size": True, "max_entries": 0, "pin": "", "value_size": 0},
    ]


if __name__ == "__main__":
    (GOLDEN / "plan.txt").write_text(plan_text(everything()))
