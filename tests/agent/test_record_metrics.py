"""Counters and histograms of a ring's records, from a real ring to the page, against what was really made."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

from tests.support.clang import compile_bpf

from .harness import Page, running_agent, skep
from .objects import GETPGID, make_calls, write

PID = os.getpid()

SOURCE = """
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static u64 (*bpf_ktime_get_ns)(void) = (void *)5;
static void *(*bpf_ringbuf_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*bpf_ringbuf_submit)(void *data, u64 flags) = (void *)132;
typedef u64 ktime_ns;
const volatile u32 tgid = 0;
struct seen { ktime_ns at; u32 parity; char rest[4]; };
struct sized { u32 value; u32 parity; };
struct told { ktime_ns at; u32 number; u32 parity TAG("series=true");
              u64 size TAG("kind=histogram") TAG("slots=edges:9,99"); };
MAP(numbers, ARRAY, 2, u32, u64);
RING(counter_seen, struct seen) HELP;
RING(hist_sized, struct sized) TAG("slots=edges:10,100");
RING(told, struct told) TAG("kind=event") TAG("name=app.told") TAG("count=app.tellings");
SEC("raw_tp/sys_enter") int on_enter(u64 *context)
{
    u32 zero = 0;
    if (context[1] != GETPGID || bpf_get_current_pid_tgid() >> 32 != tgid)
        return 0;
    u64 *number = bpf_map_lookup_elem(&numbers, &zero);
    if (!number)
        return 0;
    *number += 1;
    u32 n = *number, parity = n % 2;
    struct seen *seen = bpf_ringbuf_reserve(&counter_seen, sizeof(*seen), 0);
    if (seen) {
        seen->at = bpf_ktime_get_ns();
        seen->parity = parity;
        seen->rest[0] = 'x';
        seen->rest[1] = 0;
        seen->rest[2] = n; /* what lies behind a text's end differs in every record */
        seen->rest[3] = n;
        bpf_ringbuf_submit(seen, 0);
    }
    struct sized *sized = bpf_ringbuf_reserve(&hist_sized, sizeof(*sized), 0);
    if (sized) {
        sized->value = n;
        sized->parity = parity;
        bpf_ringbuf_submit(sized, 0);
    }
    struct told *told = bpf_ringbuf_reserve(&told_ring, sizeof(*told), 0);
    if (told) {
        told->at = bpf_ktime_get_ns();
        told->number = n;
        told->parity = parity;
        told->size = n;
        bpf_ringbuf_submit(told, 0);
    }
    return 0;
}
char LICENSE[] SEC("license") = "GPL";
""".replace("RING(told,", "RING(told_ring,")


def image(directory: Path, *, help_text: str = "First.", **more: object) -> str:
    """One image of the configuration that makes records of this process's calls."""
    source = SOURCE.replace("GETPGID", str(GETPGID)).replace("HELP", f'TAG("help={help_text}")')
    path = write(directory, "app", compile_bpf(source, program=""))
    return json.dumps({"ref": str(path), "name": "app", "globals": {"tgid": PID}, **more})


def balances(page: Page) -> bool:
    """The account of every stream."""
    return all(received == rest for received, rest in page.accounts().values())


def test_records_become_metrics_that_equal_what_was_made(tmp_path: Path) -> None:
    """Counts by label, buckets and sums; the events beside them may be sampled and limited as one likes."""
    more = {"events": {"app.told": {"sample_one_in": 10}}, "limits": {"events_per_s": 7}}
    config = f"images: [{image(tmp_path, **more)}]\nevents: {{json: {{path: e.jsonl}}}}\n"
    with running_agent(tmp_path, config) as agent:
        agent.wait_states(app="running")
        make_calls(200)
        page = agent.wait(lambda page: page.sum("ebpf_seen_total") == 200 and page.sum("app_tellings_total") == 200)
        assert page.all("ebpf_seen_total", parity="0", rest="x") == [100]
        assert page.all("ebpf_seen_total", parity="1", rest="x") == [100]
        assert page.all("ebpf_sized_bucket", parity="0", le="10.0") == [5]
        assert page.all("ebpf_sized_bucket", parity="0", le="100.0") == [50]
        assert page.all("ebpf_sized_count", parity="1") == [100]
        assert page.all("ebpf_sized_sum", parity="1") == [sum(range(1, 200, 2))]
        assert page.all("app_tellings_total", parity="1") == [100]
        assert page.all("app_told_size_bucket", parity="1", le="9.0") == [5]
        assert page.all("app_told_size_sum", parity="0") == [sum(range(2, 201, 2))]
        page = agent.wait(lambda page: page.sum("skep_events_queued") == 0)
        assert balances(page)
        assert page.all("skep_events_exported_total", stream="counter_seen") == [200]
        assert page.all("skep_events_exported_total", stream="app.told") == [7]
        assert page.all("skep_events_dropped_total", stream="app.told", reason="sample") == [180]
        agent.stop()
    assert len((tmp_path / "e.jsonl").read_text().splitlines()) == 7


def test_records_go_on_counting_over_an_upgrade(tmp_path: Path) -> None:
    """Other bytes of the object, the same meaning: the counts go on from where they were."""
    with running_agent(tmp_path, f"images: [{image(tmp_path)}]") as agent:
        agent.wait_states(app="running")
        make_calls(50)
        agent.wait(lambda page: page.sum("ebpf_seen_total") == 50)
        before = agent.programs()
        image(tmp_path / "new", help_text="Second.")
        file = agent.directory / "agent.yaml"
        new = image(tmp_path / "new", help_text="First.", labels={})
        object_path = tmp_path / "new" / "app.o"
        object_path.write_bytes(object_path.read_bytes() + b"\0" * 8)
        file.write_text(f"store: {{path: store}}\nimages: [{new}]")
        agent.wait(lambda _: agent.lines("image switched to another version"))
        assert agent.programs() != before
        make_calls(30)
        page = agent.wait(lambda page: page.sum("ebpf_sized_count") == 80)
        assert page.sum("ebpf_seen_total") == 80
        assert page.sum("app_tellings_total") == 80
        assert balances(page)


def test_label_sets_beyond_the_limit_count_in_one_series(tmp_path: Path) -> None:
    """As those of rows do; and the count is right."""
    with running_agent(tmp_path, f"images: [{image(tmp_path, limits={'series': 3})}]") as agent:
        agent.wait_states(app="running")
        make_calls(100)
        names = ("ebpf_seen_total", "ebpf_sized_count", "app_tellings_total")
        page = agent.wait(lambda page: all(page.sum(name) == 100 for name in names))
        assert page.sum("skep_metric_series") <= 3
        assert page.sum("skep_series_folded_total") > 0
        assert any(page.all(name, otel_metric_overflow="true") for name in names)


def test_run_prints_them_and_plan_and_build_name_them(tmp_path: Path) -> None:
    """With what a person asks for first."""
    image(tmp_path)
    path = str(tmp_path / "app.o")
    shown = skep("plan", path, "--store", str(tmp_path / "store"))
    assert shown.returncode == 0, shown.stderr
    assert "ring counter_seen: counted records of 16 bytes\n  ebpf_seen_total" in shown.stdout
    assert "ring counter_seen: records of 16 bytes, losses unknown, no events" in shown.stdout
    assert json.loads(skep("plan", path, "--json", "--store", str(tmp_path / "store")).stdout)["tables"][0]["records"]
    stop = threading.Event()
    calling = threading.Thread(target=lambda: [make_calls(1) for _ in iter(lambda: stop.wait(0.01), True)])
    calling.start()
    arguments = ("run", path, "--no-tty", "--duration", "1s", "--interval", "300ms", "--store", str(tmp_path / "store"))
    done = skep(*arguments, "--global", f"tgid={PID}")
    stop.set()
    calling.join()
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line.get("event") for line in told if "event" in line} == {"app.told"}
    last = {(line["metric"], line["attributes"].get("parity")): line for line in told if "metric" in line}
    assert last["ebpf_seen_total", 0]["value"] > 0
    assert last["ebpf_sized", 1]["buckets"]["10.0"] == 5
    assert sum(last["app_tellings_total", parity]["value"] for parity in (0, 1)) == sum(
        "event" in line for line in told
    )


OTHERS = """
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static long (*bpf_perf_event_output)(void *ctx, void *map, u64 flags, void *data, u64 size) = (void *)25;
static long (*bpf_map_push_elem)(void *map, const void *value, u64 flags) = (void *)87;
const volatile u32 tgid = 0;
struct seen { u32 number; u32 parity TAG("series=true"); };
MAP(numbers, ARRAY, 1, u32, u64);
struct { __uint(type, PERF_EVENT_ARRAY); __uint(key_size, 4); __type(value, struct seen); } print_perf SEC(".maps")
    TAG("kind=event") TAG("count=app.perf");
struct { __uint(type, QUEUE); __uint(max_entries, 1000); __type(value, struct seen); } queue SEC(".maps")
    TAG("kind=event") TAG("name=app.queued");
SEC("raw_tp/sys_enter") int on_enter(u64 *context)
{
    u32 zero = 0;
    if (context[1] != GETPGID || bpf_get_current_pid_tgid() >> 32 != tgid)
        return 0;
    u64 *number = bpf_map_lookup_elem(&numbers, &zero);
    if (!number)
        return 0;
    *number += 1;
    struct seen seen = { *number, *number % 2 };
    bpf_perf_event_output(context, &print_perf, 0xffffffff, &seen, sizeof(seen));
    bpf_map_push_elem(&queue, &seen, 0);
    return 0;
}
char LICENSE[] SEC("license") = "GPL";
"""


def calls_on_every_cpu() -> int:
    """One call on each CPU; how many that are."""
    cpus = os.sched_getaffinity(0)
    try:
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})
            make_calls(1)
    finally:
        os.sched_setaffinity(0, cpus)
    return len(cpus)


def test_perf_event_array_and_queue_are_streams_like_a_ring(tmp_path: Path) -> None:
    """Events, counts and losses; what does not fit into the perf buffers the kernel counts."""
    path = write(tmp_path, "app", compile_bpf(OTHERS.replace("GETPGID", str(GETPGID)), program=""))
    entry = json.dumps({"ref": str(path), "name": "app", "globals": {"tgid": PID}, "limits": {"events_per_s": 10**6}})
    with running_agent(tmp_path, f"images: [{entry}]\nevents: {{json: {{path: e.jsonl}}}}\n") as agent:
        agent.wait_states(app="running")
        make_calls(100)
        page = agent.wait(lambda page: page.sum("app_perf_total") == 100)
        assert page.all("app_perf_total", parity="1") == [50]
        page = agent.wait(
            lambda page: all(
                page.all("skep_events_exported_total", stream=name) == [100] for name in ("ebpf.perf", "app.queued")
            )
        )
        assert page.all("skep_ring_lost_total", stream="ebpf.perf") == [0]
        agent.process.send_signal(signal.SIGSTOP)
        make_calls(30_000)
        agent.process.send_signal(signal.SIGCONT)
        made = 30_100

        def complete(page: Page) -> bool:
            """A CPU's buffer tells what it lost with the next record that it takes, and we may run on another now."""
            nonlocal made
            if page.sum("app_perf_total") + page.sum("skep_ring_lost_total", stream="ebpf.perf") == made:
                return True
            made += calls_on_every_cpu()
            return False

        page = agent.wait(complete)
        assert page.sum("skep_ring_lost_total", stream="ebpf.perf") > 1000
        assert page.sum("app_perf_total") > 5000
        assert balances(agent.wait(lambda page: page.sum("skep_events_queued") == 0))
    told = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    queued = [line["attributes"]["number"] for line in told if line["event"] == "app.queued"]
    assert queued[:1100] == list(range(1, 1101))
