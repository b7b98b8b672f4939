"""From a C file to a Grafana panel: build, push, an agent of another store that pulls it, Prometheus, the dashboard."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dashboards import substituted, targets
from tests.support.prometheus import running_prometheus
from tests.support.registry import RunningRegistry, real_registry
from tests.support.workload import repeated

from .harness import ROOT, running_agent, skep


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """A real registry."""
    with real_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


ORIGINS = ("readme", "counter", "histogram", "events")


def process() -> None:
    """Start something that opens files and ends."""
    subprocess.run(["true"], check=True)


def authored(origin: str, directory: Path) -> Path:
    """The README's program, or what a template makes."""
    source = directory / origin / "first.bpf.c"
    source.parent.mkdir()
    if origin == "readme":
        source.write_text(re.findall(r"```c\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0])
    else:
        done = skep("init", "--template", origin, str(source))
        assert done.returncode == 0, done.stderr
    return source


def test_sources_reach_panels_with_data(registry: RunningRegistry, tmp_path: Path) -> None:
    """Nothing is edited on the way, and every query of their dashboards has an answer."""
    store, asked = ("--store", str(tmp_path / "author")), []
    references = {origin: f"{registry.host}/first/{origin}:1" for origin in ORIGINS}
    for origin, reference in references.items():
        source = authored(origin, tmp_path)
        for words in (("build", str(source), reference), ("push", reference), ("dashboard", reference)):
            done = skep(*words, *store)
            assert done.returncode == 0, done.stderr
        asked += list(targets(json.loads(done.stdout), origin))
    assert {target.file for target in asked} == set(ORIGINS)
    images = [{"ref": reference} for reference in references.values()]
    with running_agent(tmp_path, f"images: {json.dumps(images)}\n") as agent, repeated(process, 0.05):
        agent.wait(lambda page: all(page.state(origin) == "running" for origin in ORIGINS))
        with running_prometheus(tmp_path, {"skep": agent.url.removeprefix("http://")}) as prometheus:
            for target in asked:
                prometheus.wait(substituted(target.expr))
