"""Prometheus names of OpenTelemetry names: an interface that alerts hang on."""

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.model import Kind, prometheus_label, prometheus_name

COUNTER, GAUGE, HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
NAMES = [
    # What the shipped images export.
    ("ebpf.runqueue.latency", HISTOGRAM, "s", "ebpf_runqueue_latency_seconds"),
    ("ebpf.block.request.duration", HISTOGRAM, "s", "ebpf_block_request_duration_seconds"),
    ("ebpf.block.request.errors", COUNTER, "{request}", "ebpf_block_request_errors_total"),
    ("ebpf.process.exits", COUNTER, "{exit}", "ebpf_process_exits_total"),
    ("ebpf.tcp.state_changes", COUNTER, "{change}", "ebpf_tcp_state_changes_total"),
    ("ebpf.syscall.calls", COUNTER, "", "ebpf_syscall_calls_total"),
    # Units.
    ("ebpf.disk.io", COUNTER, "By", "ebpf_disk_io_bytes_total"),
    ("ebpf.disk.io", GAUGE, "By/s", "ebpf_disk_io_bytes_per_second"),
    ("ebpf.fan.speed", GAUGE, "{rotation}/min", "ebpf_fan_speed_per_min"),
    ("ebpf.fan.speed", GAUGE, "{rotation}/m", "ebpf_fan_speed_per_minute"),
    ("ebpf.requests", GAUGE, "1/s", "ebpf_requests_per_second"),
    ("ebpf.cache.hits", GAUGE, "1", "ebpf_cache_hits_ratio"),
    ("ebpf.cache.hits", COUNTER, "1", "ebpf_cache_hits_total"),
    ("ebpf.cache.hits", HISTOGRAM, "1", "ebpf_cache_hits"),
    ("ebpf.load", GAUGE, "%", "ebpf_load_percent"),
    ("ebpf.temperature", GAUGE, "Cel", "ebpf_temperature_celsius"),
    ("ebpf.memory", GAUGE, "MiBy", "ebpf_memory_mebibytes"),
    ("ebpf.distance", GAUGE, "km", "ebpf_distance_km"),
    ("ebpf.flow", GAUGE, "m3/s", "ebpf_flow_m3_per_second"),
    ("ebpf.queue", GAUGE, "{packet}", "ebpf_queue"),
    ("ebpf.speed", GAUGE, "m/s", "ebpf_speed_meters_per_second"),
    ("ebpf.odd", GAUGE, "a^b-c", "ebpf_odd_a_b_c"),
    ("ebpf.odd", GAUGE, "By/", "ebpf_odd_bytes"),
    ("ebpf.odd", GAUGE, "/s", "ebpf_odd_per_second"),
    # What is there already is not added again.
    ("ebpf.wait.seconds", HISTOGRAM, "s", "ebpf_wait_seconds"),
    ("ebpf.exits_total", COUNTER, "", "ebpf_exits_total"),
    ("ebpf.total.exits", COUNTER, "s", "ebpf_exits_seconds_total"),
    ("ebpf.hit.ratio", GAUGE, "1", "ebpf_hit_ratio"),
    ("ebpf.bytes_per_second", GAUGE, "By/s", "ebpf_bytes_per_second"),
    # What a Prometheus name cannot hold.
    ("ebpf..two__and-three/four", GAUGE, "", "ebpf_two_and_three_four"),
    ("9p.requests", GAUGE, "", "_9p_requests"),
    ("ebpf.größe", GAUGE, "", "ebpf_gr_e"),
    ("ns:name", GAUGE, "", "ns:name"),
]


@pytest.mark.parametrize(("name", "kind", "unit", "expected"), NAMES)
def test_prometheus_name_has_unit_and_suffix_once(name: str, kind: Kind, unit: str, expected: str) -> None:
    """The default translation of the compatibility specification."""
    assert prometheus_name(name, kind=kind, unit=unit) == expected


@given(st.text(min_size=1, max_size=40), st.sampled_from(Kind), st.text(max_size=12))
def test_prometheus_name_is_always_one(name: str, kind: Kind, unit: str) -> None:
    """Whatever the parts, a scrape must not fail on the name."""
    assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*|", prometheus_name(name, kind=kind, unit=unit))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("device", "device"),
        ("network.peer.port", "network_peer_port"),
        ("9lives", "key_9lives"),
        ("_private", "key_private"),
        ("__reserved", "key__reserved"),
        ("größe", "gr__e"),
    ],
)
def test_label_name_keeps_clear_of_what_prometheus_reserves(name: str, expected: str) -> None:
    """Names beginning with two underscores are Prometheus' own."""
    assert prometheus_label(name) == expected


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_names_of_shipped_metrics_pass_promtool() -> None:
    """Its rules are what users lint with."""
    lines = []
    for name, kind, unit, _ in NAMES[:6]:
        full = prometheus_name(name, kind=kind, unit=unit)
        lines += [f"# HELP {full} What it is.", f"# TYPE {full} {kind.value}"]
        if kind is Kind.HISTOGRAM:
            lines += [f'{full}_bucket{{le="+Inf"}} 1', f"{full}_sum 1", f"{full}_count 1"]
        else:
            lines.append(f"{full} 1")
    page = "\n".join(lines) + "\n"
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
