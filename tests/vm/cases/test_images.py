"""The shipped images as a user runs them: the very bytes of the built catalog, through the agent, to a scrape.

``tests/kernel`` judges each program by a referee; here the question is whether
all of them run together on this kernel and what is known to have happened arrives
under its public name.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exporter.config import load
from tests.kernel.test_catalog import why_not_here
from tests.support import nfs, workload
from tests.support.libbpf import can_load

ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.skipif(not can_load(), reason="needs root and a kernel with BTF"),
    pytest.mark.skipif(
        not (ROOT / "build/catalog/index.json").exists(), reason="the catalog is not built (make set-up)"
    ),
]

IMAGES = (
    "active-connections", "block-latency", "capability-checks", "file-opens", "nfs-operations", "oom-kills",
    "process-exits", "runqueue-latency", "syscalls", "tcp-connect-latency", "tcp-connects", "tcp-retransmits",
    "tcp-states",
)  # fmt: skip
EXIT_CODE = 93
EXITS, CONNECTIONS, FAILURES, WRITES, NAPS = 40, 30, 50, 20, 100
KEPT, REFUSED, OPENS, KILLS, DENIED, REMOVED = 10, 25, 60, 2, 35, 15

#: What the work below must add to each series, found by a pattern of its labels.
#: The kernel and this process do more of most of these, so they are lower bounds;
#: an exit code and an error that nobody else makes are exact.
AT_LEAST = {
    "active-connections": (r'ebpf_tcp_connections_active\{direction="inbound",family="ipv4"', KEPT),
    "block-latency": (r'ebpf_block_request_duration_seconds_count\{.*operation="write"', WRITES),
    "capability-checks": (r'ebpf_capability_checks_total\{capability="sys_boot",result="denied"', DENIED),
    "file-opens": (r'ebpf_file_open_errors_total\{errno="ENOTDIR"', OPENS),
    "nfs-operations": (r'ebpf_nfs_operation_duration_seconds_count\{operation="REMOVE",version="4"', REMOVED),
    "oom-kills": (r"ebpf_oom_kills_total", KILLS),
    "process-exits": (rf'ebpf_process_exits_total\{{reason="exited",code="{EXIT_CODE}"', EXITS),
    "runqueue-latency": (r"ebpf_runqueue_latency_seconds_count", NAPS),
    "syscalls": (r'ebpf_syscall_errors_total\{syscall="rmdir",errno="ENOTEMPTY"', FAILURES),
    "tcp-connect-latency": (r'ebpf_tcp_connect_duration_seconds_count\{family="ipv4"', CONNECTIONS + KEPT),
    "tcp-connects": (
        r'ebpf_tcp_connect_errors_total\{family="ipv4",server_port="1",errno="ECONNREFUSED"',
        REFUSED,
    ),
    "tcp-retransmits": (r'ebpf_tcp_retransmits_total\{segment="data",family="ipv4"', 1),
    "tcp-states": (r'ebpf_tcp_state_changes_total\{old_state="close",new_state="syn_sent",family="ipv4"', CONNECTIONS),
}
EXACT = {"capability-checks", "nfs-operations", "oom-kills", "process-exits", "syscalls", "tcp-connects"}


#: With wrong magic numbers it only asks for CAP_SYS_BOOT.
REBOOT = {"x86_64": 169, "aarch64": 142}


class Agent:
    """A running agent and where it is scraped."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def scrape(self) -> str:
        """The body of ``/metrics``."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=60) as answer:
            return str(answer.read(), "utf-8")

    def value(self, pattern: str) -> float:
        """The sum of all series whose line begins with a pattern; 0 if there is none yet."""
        lines = re.findall(rf"^{pattern}[^\n]* (\S+)$", self.scrape(), re.MULTILINE)
        return sum(float(value) for value in lines)

    def running(self) -> set[str]:
        """The images that the log says are running."""
        return set(re.findall(r'msg="image running" image=(\S+)', self.log.read_text()))

    def decided(self) -> set[str]:
        """The images that run or have been refused."""
        return set(re.findall(r'msg="image (?:running|failed)" image=(\S+)', self.log.read_text()))


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent on all shipped images, up when each of them runs or was refused, or 120 s have gone."""
    home = tmp_path_factory.mktemp("agent")
    config = home / "agent.yaml"
    workload.sunrpc_available()  # loads it, as the first mount would
    images = "".join(f"  - ref: catalog:{image}\n" for image in IMAGES)
    config.write_text(f"images:\n{images}store: {{path: {home / 'store'}}}\n")
    assert load([config])
    port, log = free_port(), home / "log"
    command = [sys.executable, "-m", "exporter", "agent", f"--config.file={config}"]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], cwd=ROOT, stderr=output)
    found = Agent(process, port, log)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None and found.decided() != set(IMAGES):
            time.sleep(0.2)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print(log.read_text())


def work(kept: contextlib.ExitStack) -> None:
    """Do a known number of things that each of the images sees; connections that are kept stay open for a while."""
    for _ in range(EXITS):
        child = os.fork()
        if child == 0:
            os._exit(EXIT_CODE)
        os.waitpid(child, 0)
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        for _ in range(CONNECTIONS):
            with socket.create_connection(server.getsockname()):
                server.accept()[0].close()
    with socket.create_server(("127.0.0.1", 0), backlog=KEPT) as server:
        for _ in range(KEPT):
            client = kept.enter_context(socket.create_connection(server.getsockname()))
            taken = kept.enter_context(server.accept()[0])
    deaf: dict[str, Callable[[socket.socket, bool], None]] = {}
    exec("import ctypes, socket, struct\n" + workload.DEAF, deaf)
    deaf["deaf"](taken, True)
    client.send(b"x")
    time.sleep(0.5)
    deaf["deaf"](taken, False)
    for _ in range(REFUSED):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", 1))
    with workload.memory_limited_group("skep-image", 32 << 20) as (files, _, _):
        for _ in range(KILLS):
            assert workload.use_memory_until_killed(files) == signal.SIGKILL
    refused = (
        "import ctypes, os\nos.setuid(65534)\n"
        f"for _ in range({DENIED}): assert ctypes.CDLL(None).syscall({REBOOT[os.uname().machine]}, 0, 0, 0, 0) == -1\n"
    )
    subprocess.run([sys.executable, "-c", refused], check=True)
    with tempfile.TemporaryDirectory() as folder:
        if not why_not_here("nfs-operations") and nfs.available():
            with nfs.mounted(Path(folder)) as mount:
                for index in range(REMOVED):
                    Path(mount, f"file{index}").touch()
                    Path(mount, f"file{index}").unlink()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "file").touch()
        for _ in range(OPENS):
            with pytest.raises(NotADirectoryError):
                os.open(Path(folder, "file"), os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(FAILURES):
            with pytest.raises(OSError, match="not empty"):
                Path(folder).rmdir()
    with tempfile.TemporaryFile(dir=ROOT) as file:
        for block in range(WRITES):
            os.pwrite(file.fileno(), b"x" * 4096, block * 8192)
            os.fdatasync(file.fileno())
    for _ in range(NAPS):
        time.sleep(0.001)


@pytest.fixture(scope="module")
def added(agent: Agent) -> dict[str, float]:
    """Image to what the work added to its series."""
    before = {image: agent.value(pattern) for image, (pattern, _) in AT_LEAST.items()}
    with contextlib.ExitStack() as kept:
        work(kept)
        return {image: agent.value(pattern) - before[image] for image, (pattern, _) in AT_LEAST.items()}


def skip_if_not_here(image: str) -> None:
    """Some kernels cannot run some images; ``why_not_here`` has asked this one."""
    if reason := why_not_here(image):
        pytest.skip(reason)


@pytest.mark.parametrize("image", IMAGES)
def test_shipped_image_runs_in_the_agent(
    agent: Agent, image: str, record_property: Callable[[str, object], None]
) -> None:
    """It is loaded and attached whole, beside the others."""
    record_property("matrix", f"image/{image}")
    skip_if_not_here(image)
    refusals = [
        line
        for line in agent.log.read_text().splitlines()
        if f"image={image} " in line and not re.search(r'msg="(image running|alternative not taken)"', line)
    ]
    assert image in agent.running(), "\n".join(refusals)
    assert not refusals, "\n".join(refusals)


@pytest.mark.parametrize("image", IMAGES)
def test_shipped_image_exports_what_happened(
    added: dict[str, float], image: str, record_property: Callable[[str, object], None]
) -> None:
    """What was done a known number of times is in the scrape, under its public name and labels."""
    record_property("matrix", f"image/{image}")
    skip_if_not_here(image)
    _, expected = AT_LEAST[image]
    assert added[image] >= expected
    if image in EXACT:
        assert added[image] == expected


def test_every_shipped_image_has_its_case_here() -> None:
    """An image that is added to the catalog and not here would be shipped unproved."""
    assert {path.parent.name for path in (ROOT / "configs/catalog").glob("*/*.bpf.c")} == set(IMAGES)
