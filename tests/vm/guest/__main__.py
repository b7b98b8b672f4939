"""The guest's runner: say what kernel this is, run what was ordered, say that it is done."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.vm.guest import channel
from tests.vm.kernels import parse_config

ORDERS = Path("/dev/vdd")

#: Settings the matrix's table shows, or a skip may rest on, beside those a test names.
SHOWN = (
    "CONFIG_DEBUG_INFO_BTF",
    "CONFIG_FPROBE",
    "CONFIG_FUNCTION_ERROR_INJECTION",
    "CONFIG_BPF_LSM",
    "CONFIG_BPF_JIT_ALWAYS_ON",
)


def text_of(path: str) -> str:
    """A small file's text, or nothing."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def config_text(release: str) -> str:
    """The configuration a kernel was built with, from where distributions and the kernel itself keep it."""
    for place in (f"/usr/lib/modules/{release}/config", f"/boot/config-{release}"):
        if text := text_of(place):
            return text
    with contextlib.suppress(OSError):
        return gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
    return ""


def facts() -> dict[str, Any]:
    """What the harness writes at the head of this kernel's results."""
    release = platform.release()
    on = parse_config(config_text(release))
    lockdown = text_of("/sys/kernel/security/lockdown")
    return {
        "release": release,
        "version": platform.version(),
        "cpus": os.cpu_count(),
        "memory_kib": int(text_of("/proc/meminfo").split()[1]),
        "lsm": text_of("/sys/kernel/security/lsm"),
        "lockdown": lockdown.partition("[")[2].partition("]")[0],
        "btf_bytes": Path("/sys/kernel/btf/vmlinux").stat().st_size if Path("/sys/kernel/btf/vmlinux").exists() else 0,
        "perf_event_paranoid": text_of("/proc/sys/kernel/perf_event_paranoid"),
        "pmu": Path("/sys/bus/event_source/devices/cpu").exists(),
        "config": {name: on.get(name, "") for name in SHOWN},
    }


def main() -> int:
    """Carry out the orders: a command of Python's, whose status is ours."""
    os.environ[channel.VARIABLE] = channel.GUEST_LINE
    # Where feature probes look for a kernel's configuration.
    release = platform.release()
    boot = Path(f"/boot/config-{release}")
    if not boot.exists():
        boot.symlink_to(f"/usr/lib/modules/{release}/config")
    channel.say("facts", facts=facts())
    orders = json.loads(ORDERS.read_bytes().rstrip(b"\0"))
    status = subprocess.run([sys.executable, *orders["python"]], check=False, stdin=subprocess.DEVNULL).returncode
    channel.say("end", status=status)
    return status


if __name__ == "__main__":
    sys.exit(main())
