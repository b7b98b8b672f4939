"""Memory of an idle agent with ten images: proportional set size of all its processes.

``python -m tests.bench.memory`` needs root. Five of the shipped images run twice each, under two names and with
different constant labels. PSS divides a shared page among those who share it, so that the sum over processes counts
nothing twice.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.otlp_receiver import unused_port

ROOT = Path(__file__).parents[2]
IMAGES = ("runqueue-latency", "block-latency", "process-exits", "tcp-states", "syscalls")
SETTLE_S = 13.0  # metrics are posted for the first time within 10 s


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


def descendants(pid: int) -> list[int]:
    """A process and all that came of it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += descendants(int(child))
    return found


def measure(protocol: str = "") -> tuple[int, int, float]:
    """An agent with ten images of which nothing is asked.

    Args:
        protocol: Of an OTLP receiver that is not there; empty for none.

    Returns:
        Bytes of all its processes, how many they are, and the seconds from its start until all images were ready.
    """
    with tempfile.TemporaryDirectory() as directory, unused_port() as away:
        with unused_port() as port:
            pass
        lines = ["images:"]
        for tier in ("one", "two"):
            lines += [
                f"  - {{ref: 'catalog:{name}', name: {name}-{tier}, labels: {{tier: {tier}}}, required: true}}"
                for name in IMAGES
            ]
        lines.append(f"store: {{path: {directory}/store}}")
        if protocol:
            lines.append(f"otlp: {{endpoint: 'http://127.0.0.1:{away}', protocol: {protocol}}}")
        config = Path(directory, "agent.yaml")
        config.write_text("\n".join(lines) + "\n")
        flags = (f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}")
        begin = time.perf_counter()
        agent = subprocess.Popen(
            [sys.executable, "-m", "exporter", "agent", *flags],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            _wait_until_ready(agent, port)
            ready_s = time.perf_counter() - begin
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                answer.read()
            time.sleep(SETTLE_S)
            processes = descendants(agent.pid)
            return sum(map(pss_bytes, processes)), len(processes), ready_s
        finally:
            agent.terminate()
            agent.communicate(timeout=30)


def _wait_until_ready(agent: subprocess.Popen[str], port: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if agent.poll() is not None:
            raise SystemExit(f"agent ended: {agent.communicate()[1]}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready").close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.02)
        else:
            return
    raise SystemExit("agent is not ready after two minutes")


def main() -> None:
    """Measure without and with OTLP."""
    for title, protocol in (
        ("scraped only", ""),
        ("OTLP over HTTP", "http/protobuf"),
        *((("OTLP over gRPC", "grpc"),) if "--grpc" in sys.argv else ()),
    ):
        size, processes, ready_s = measure(protocol)
        print(
            f"ten images ready after {ready_s:.2f} s; idle, {title:16}",
            f"{size / (1 << 20):8.1f} MiB PSS, {processes} processes",
            flush=True,
        )


if __name__ == "__main__":
    main()
