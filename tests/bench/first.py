"""An author's first minute: from ``skep init`` to the first series, each verb a process of its own as it is typed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SKEP = (sys.executable, "-m", "exporter")


def measure(template: str = "counter") -> tuple[float, float, float]:
    """Seconds that ``init``, ``build``, and ``run`` up to its first series took."""
    with tempfile.TemporaryDirectory() as directory:
        source, made = Path(directory, "first.bpf.c"), Path(directory, "first.o")
        times = [time.perf_counter()]
        for words in (("init", "--template", template, str(source)), ("build", str(source), "--output", str(made))):
            subprocess.run([*SKEP, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter())
        run = subprocess.Popen(
            [*SKEP, "run", str(made), "--no-tty", "--duration", "30s"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert run.stdout is not None
        try:
            for line in run.stdout:
                if '"metric"' in line:
                    times.append(time.perf_counter())
                    break
        finally:
            run.terminate()
            run.communicate(timeout=30)
    begin, written, built, shown = times
    return written - begin, built - written, shown - built
