"""Every query of every dashboard has data on a real Prometheus that scrapes a real agent with work to count."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.kernel.test_catalog import why_not_here
from tests.support import workload
from tests.support.catalog import built_catalog
from tests.support.dashboards import DIRECTORY, FILES, Target, all_targets, families, read, substituted
from tests.support.otlp_receiver import Answer, OtlpReceiver
from tests.support.prometheus import Prometheus, available, running_prometheus
from tests.support.promql import selectors

from .harness import running_agent
from .objects import MISSING_TRACEPOINT, counting, make_calls, write

pytestmark = pytest.mark.skipif(not available(), reason="needs prometheus")

# Images of the catalog that cannot run on this kernel, or whose work cannot be made here, and why.
NOT_HERE: dict[str, str] = {}
if not workload.memory_can_be_limited():
    NOT_HERE["oom-kills"] = "no memory controller may be used, and this machine's own memory is not to run out"
NOT_HERE |= {name: why for name in ("capability-checks", "nfs-operations") if (why := why_not_here(name))}

# Metrics of the agent or the catalog that no panel shows, and why.
NOT_SHOWN: dict[str, str] = {}

# Metrics that alerts ask for and a running agent does not have, and why.
NOT_THERE: dict[str, str] = {}


# Has the kernel measure the runs of all programs.
MEASURED = "telemetry: {bpf_stats: true}\n"


@dataclass(frozen=True)
class Live:
    """What the tests ask."""

    prometheus: Prometheus
    agent: str


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The catalog, and beside it what makes every counter of trouble count; twelve seconds of work."""
    directory = tmp_path_factory.mktemp("live")
    names = [name for name in built_catalog(directory).names() if name not in NOT_HERE]
    by_cgroup: dict[str, object] = {"globals": {"by_cgroup": True}}
    halved: dict[str, object] = {"enabled": True, "sample_one_in": 2}  # so that records are dropped too
    more: dict[str, dict[str, object]] = {
        "process-exits": {"globals": {"by_cgroup": True}, "limits": {"events_per_s": 5}},
        "runqueue-latency": {"globals": {"by_cgroup": True}},
        "tcp-states": {
            "events": {"ebpf.tcp.state_change": {"enabled": True}},
            "limits": {"events_per_s": 5},
        },
        "oom-kills": {"events": {"ebpf.oom.kill": halved}},
        "tcp-connects": by_cgroup,
        "capability-checks": by_cgroup,
        "tcp-connect-latency": {"globals": {"by_cgroup": True, "by_port": True}},
        "active-connections": by_cgroup,
        "tcp-retransmits": {**by_cgroup, "events": {"ebpf.tcp.retransmit": halved}},
        "file-opens": {
            **by_cgroup,
            "events": {"ebpf.file.open": {"enabled": True}},
            "limits": {"events_per_s": 5},
        },
    }
    tgid: dict[str, object] = {"globals": {"tgid": os.getpid()}}
    images: list[dict[str, object]] = [
        {"name": name, "ref": f"oci:{directory}/catalog:{name}", **more.get(name, {})} for name in names
    ]
    images += [
        {"ref": str(write(directory, "folds", counting("folds"))), **tgid, "limits": {"series": 1}},
        {"ref": str(write(directory, "degraded", counting("degraded", MISSING_TRACEPOINT))), **tgid},
        {"name": "away", "ref": f"127.0.0.1:{_closed_port()}/nobody/away:1"},
    ]
    with OtlpReceiver() as receiver:
        otlp = {"endpoint": receiver.endpoint, "metrics": {"interval": "1s"}}
        with running_agent(directory, f"images: {json.dumps(images)}\notlp: {json.dumps(otlp)}\n{MEASURED}") as agent:
            agent.wait(lambda page: page.state("degraded") == "degraded" and page.state("away") == "failed")
            agent.wait(lambda page: all(page.state(name) == "running" for name in names))
            receiver.answer(*[Answer(), Answer(rejected=1, message="not this one")] * 500)
            target = agent.url.removeprefix("http://")
            with (
                running_prometheus(directory, {"skep": target}, rules=DIRECTORY / "alerts.yaml") as prometheus,
                working(directory),
            ):
                prometheus.wait('skep_build_info{job="skep"}')
                for expr in (
                    "min(changes(process_cpu_seconds_total{job='skep'}[1m])) > 4",
                    "rate(ebpf_block_request_errors_total[15s]) > 0",
                    *(["rate(ebpf_oom_kills_total[15s]) > 0"] if "oom-kills" in names else []),
                    "rate(ebpf_tcp_retransmits_total[15s]) > 0",
                    "rate(skep_events_dropped_total{reason='rate'}[15s]) > 0",
                    "rate(skep_series_folded_total[15s]) >= 0",
                    "rate(skep_image_pull_failures_total[15s]) >= 0",
                    "rate(skep_events_exported_total[15s]) > 0",
                ):
                    prometheus.wait(expr, 60)
                yield Live(prometheus, target)


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# In a group that looks like a unit's: a connection that stands while the first byte goes unheard, one that
# is refused, and the end.
IN_GROUP = (
    workload.DEAF
    + """
import ctypes, socket, struct, time
with (
    socket.create_server(("127.0.0.1", 0)) as listener,
    socket.create_connection(listener.getsockname()) as client,
    listener.accept()[0] as server,
):
    deaf(server, True)
    client.send(b"x")
    time.sleep(0.3)
    deaf(server, False)
try:
    socket.create_connection(("127.0.0.1", 1))
except OSError:
    pass
"""
)


@contextlib.contextmanager
def working(directory: Path) -> Iterator[None]:
    """Everything the catalog counts, again and again: processes that end, connections, requests, failed ones, calls."""
    with contextlib.ExitStack() as stack:
        device = None
        if workload.loop_available():
            small = stack.enter_context(workload.small_tmpfs(directory / "small", 1 << 20))
            with (small / "disk").open("wb") as file:
                file.truncate(8 << 20)
            with contextlib.suppress(OSError), (small / "rest").open("wb", buffering=0) as rest:
                while rest.write(bytes(4096)):
                    pass
            device, _ = stack.enter_context(workload.loop_device(small / "disk"))

        root = workload.cgroup2_root()
        group = root / f"skep-live-{os.getpid()}.service" if root else None
        if group:
            group.mkdir()
            stack.callback(group.rmdir)

        scarce: list[Path] = []
        if workload.memory_can_be_limited():
            limited = workload.memory_limited_group("skep-live-oom", 32 << 20, ".service")
            scarce, _, _ = stack.enter_context(limited)

        def work() -> None:
            if scarce:
                workload.use_memory_until_killed(scarce)
            subprocess.run(["sh", "-c", "false; kill -9 $$"], check=False)
            for _ in range(20):
                subprocess.run(["false"], check=False)
            with (
                socket.create_server(("127.0.0.1", 0)) as server,
                socket.create_connection(server.getsockname()),
                server.accept()[0],
            ):
                pass
            if group:
                workload.run_in_group(group, IN_GROUP)
            make_calls(100)
            with contextlib.suppress(OSError):
                Path("/nowhere").stat()
            if device:
                requests(device)

        with workload.repeated(work, 0.1):
            yield


def requests(device: Path) -> None:
    """Reads of holes, which succeed, and writes, for which there is no room behind the device."""
    page = mmap.mmap(-1, 4096)
    handle = os.open(device, os.O_RDWR | os.O_DIRECT)
    try:
        for index in range(20):
            os.preadv(handle, [page], index * 4096)
        for index in range(20):
            with contextlib.suppress(OSError):
                os.pwritev(handle, [page], index * 4096)
    finally:
        os.close(handle)


def asked_here() -> list[Target]:
    """The queries that must have data: all but those on images that are not here."""
    absent = {
        selector.metric
        for target in all_targets()
        if target.file.removesuffix(".json") in NOT_HERE
        for selector in target.selectors
        if selector.metric.startswith("ebpf_")
    }
    return [
        target
        for target in all_targets()
        if target.file.removesuffix(".json") not in NOT_HERE
        and not absent & {selector.metric for selector in target.selectors}
    ]


def test_every_query_has_data_of_agents_and_of_nobody_else(live: Live) -> None:
    """All variables at "All"; a new image needs work in working(), or a reason in NOT_HERE."""
    empty, foreign = [], []
    for target in asked_here():
        found = live.prometheus.query(substituted(target.expr))
        if not any(math.isfinite(value) for _, value in found):
            empty.append(str(target))
        if any(labels.get("instance", live.agent) != live.agent for labels, _ in found):
            foreign.append(str(target))
    assert not empty, "\n".join(empty)
    assert not foreign, "\n".join(foreign)


def test_every_query_has_data_when_the_host_is_chosen(live: Live) -> None:
    """As somebody looks at one host: job and instance are names, not patterns."""
    empty = []
    for target in asked_here():
        chosen = target.expr.replace("$job", "skep").replace("$instance", re.escape(live.agent).replace("\\", "\\\\"))
        if not live.prometheus.query(substituted(chosen)):
            empty.append(str(target))
    assert not empty, "\n".join(empty)


def test_every_variable_has_values(live: Live) -> None:
    """Job and instance of the agents alone; each label of an image."""
    asked = {
        (variable["name"], variable["query"]["query"])
        for path in FILES
        if path.stem not in NOT_HERE
        for variable in read(path)["templating"]["list"]
        if variable["type"] == "query"
    }
    for name, query in sorted(asked):
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert found
        values = live.prometheus.get(f"label/{found[2]}/values", **{"match[]": substituted(found[1])})
        assert values or (name == "unit" and not workload.cgroup2_root()), query
        if name in ("job", "instance"):
            assert values == ["skep" if name == "job" else live.agent]


def test_every_exported_metric_is_on_a_dashboard_and_every_shown_one_is_exported(live: Live) -> None:
    """Of the agent and of the catalog; a new metric needs a panel, or a reason in NOT_SHOWN."""
    counted = {name for name in live.prometheus.names() if name.startswith("ebpf_")}
    counted = {name for name in counted if not name.startswith(("ebpf_folds", "ebpf_degraded"))}
    own = {name for name in live.prometheus.names() if name.startswith("skep_")}
    shown = {selector.metric for target in asked_here() for selector in target.selectors}
    assert counted
    assert families(counted | own, shown) == set(NOT_SHOWN)
    assert shown <= live.prometheus.names()


def test_alerts_and_records_are_evaluated_on_metrics_that_exist(live: Live) -> None:
    """No rule fails, every record has data, and the trouble made here is seen: an image that is away is pending."""
    groups = live.prometheus.get("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert {name: rule["health"] for name, rule in rules.items() if rule["health"] != "ok"} == {}
    names = live.prometheus.names()
    assert {name for name, rule in rules.items() if rule["type"] == "recording"} <= names
    asked = {
        selector.metric
        for group in yaml.safe_load((DIRECTORY / "alerts.yaml").read_text())["groups"]
        for rule in group["rules"]
        for selector in selectors(rule["expr"])
    }
    assert asked - names <= set(NOT_THERE)
    pending = {
        (name, alert["labels"].get("image", "")) for name, rule in rules.items() for alert in rule.get("alerts", ())
    }
    assert {("SkepImageNotRunning", "away"), ("SkepImageNotRunning", "degraded")} <= pending
    assert ("SkepEventsDropped", "process-exits") in pending
    assert ("SkepDown", "") not in pending
