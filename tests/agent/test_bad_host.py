"""A host that lacks what an image needs: the image says so, and what can run does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from exporter.image import Store, parse_reference

from .harness import running_agent
from .objects import counting, make_calls, write

PID = os.getpid()
RETRY = "defaults: {retry: {first: 300ms, max: 300ms}}\n"

NEEDS_KERNEL_TYPES = """
SEC("tp_btf/sys_enter") int on_typed_enter(void *context) { return 0; }
"""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="hiding BTF needs a mount namespace")
def test_kernel_without_btf_is_said_to_be_one(tmp_path: Path) -> None:
    """With its BTF hidden, a program that needs the kernel's types is refused in one line, and an untyped one runs."""
    typed = write(tmp_path, "typed", counting("typed", NEEDS_KERNEL_TYPES))
    untyped = write(tmp_path, "untyped", counting("untyped"))
    images = [{"ref": str(path), "globals": {"tgid": PID}} for path in (typed, untyped)]
    # libbpf looks for a vmlinux file along a list of paths when the kernel shows no BTF: none is here.
    privately = "mount --make-rprivate /sys && mount -t tmpfs none /sys/kernel/btf"
    hide = ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", privately + ' && exec "$@"', "sh")
    with running_agent(tmp_path, f"images: {json.dumps(images)}\n{RETRY}", prefix=hide) as agent:
        agent.wait_states(typed="failed", untyped="running")
        reason = agent.state_file()["typed"]["reason"]
        assert "BTF" in reason and "CONFIG_DEBUG_INFO_BTF" in reason and "\n" not in reason
        make_calls(7)
        agent.wait(lambda page: page.sum("ebpf_untyped_total") == 7)


def test_image_of_another_architecture_lists_those_it_has(tmp_path: Path) -> None:
    """An index without this machine's architecture is refused before anything is loaded."""
    layout = tmp_path / "layout"
    Store(layout).add(parse_reference("registry.example/test/foreign:1"), {"riscv64": counting("foreign")}, {}, {})
    foreign = f"oci:{layout}:registry.example/test/foreign:1"
    good = write(tmp_path, "good", counting("good"))
    images = [{"name": "foreign", "ref": foreign}, {"ref": str(good), "globals": {"tgid": PID}}]
    with running_agent(tmp_path, f"images: {json.dumps(images)}\n{RETRY}") as agent:
        agent.wait_states(foreign="failed", good="running")
        reason = agent.state_file()["foreign"]["reason"]
        assert "riscv64" in reason
        assert agent.scrape().sum("skep_image_pull_failures_total", image="foreign", code="img.no_platform") >= 1


def loaders_of(agent: int) -> list[int]:
    """Loader children of an agent that are running now."""
    found = []
    for task in Path(f"/proc/{agent}/task").iterdir():
        try:
            children = (task / "children").read_text().split()
            found += [int(pid) for pid in children if b"kernel.loader" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        except OSError:  # a thread or a child that has just ended
            continue
    return found


def test_loader_that_is_killed_is_one_images_failure_and_is_tried_again(tmp_path: Path) -> None:
    """The death of the privileged child names its signal; the image comes up at the next try."""
    image = {"ref": str(write(tmp_path, "late", b"not yet an object")), "globals": {"tgid": PID}}
    with running_agent(tmp_path, f"images: [{json.dumps(image)}]\n{RETRY}") as agent:
        agent.wait_states(late="failed")
        write(tmp_path, "late", counting("late"))
        end = time.monotonic() + 20
        killed = False
        while not killed and time.monotonic() < end:
            for loader in loaders_of(agent.process.pid):
                os.kill(loader, signal.SIGSEGV)
                killed = True
        assert killed, agent.log
        agent.wait_states(late="running")
        reasons = " ".join(str(line["reason"]) for line in agent.lines("image failed", image="late"))
        assert "SIGSEGV" in reasons, reasons
        make_calls(5)
        agent.wait(lambda page: page.sum("ebpf_late_total") == 5)
