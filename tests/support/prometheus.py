"""A real Prometheus in a process of its own, and what to ask it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.registry import free_port

Vector = list[tuple[Mapping[str, str], float]]


def available() -> bool:
    """Whether this machine has one."""
    return shutil.which("prometheus") is not None


class Prometheus:
    """A running server; :func:`running_prometheus` makes it."""

    def __init__(self, address: str, log: Path) -> None:
        self.address = address
        self._log = log

    def get(self, path: str, **parameters: str | Sequence[str]) -> Any:  # noqa: ANN401 - JSON
        """The data of one API answer; an error of the query fails the test with Prometheus's words."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}", timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expr: str) -> Vector:
        """An instant query's vector."""
        return [(each["metric"], float(each["value"][1])) for each in self.get("query", query=expr)["result"]]

    def names(self) -> set[str]:
        """Every metric name it has seen."""
        return set(self.get("label/__name__/values"))

    def wait(self, expr: str, timeout_s: float = 30.0) -> Vector:
        """Ask until there is an answer."""
        end = time.monotonic() + timeout_s
        while not (found := self.query(expr)):
            assert time.monotonic() < end, f"{expr} has no data\n{self._log.read_text()[-4000:]}"
            time.sleep(0.2)
        return found


@contextlib.contextmanager
def running_prometheus(
    directory: Path,
    targets: Mapping[str, str],
    *,
    rules: Path | None = None,
    settings: Mapping[str, Mapping[str, object]] | None = None,
) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes targets (job to address) and itself, and evaluates rules, every second.

    ``settings`` are more keys of a job's ``scrape_config``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [target]}], **(settings or {}).get(job, {})}
        for job, target in {**targets, "prometheus": address}.items()
    ]
    config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "scrape_configs": jobs}
    (directory / "prometheus.yml").write_text(json.dumps({**config, "rule_files": [str(rules)] if rules else []}))
    log = directory / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={directory / 'prometheus.yml'}",
             f"--storage.tsdb.path={directory / 'tsdb'}", f"--web.listen-address={address}"],
            stdout=output, stderr=output,
        )  # fmt: skip
    try:
        server = Prometheus(address, log)
        end = time.monotonic() + 30
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            try:
                urllib.request.urlopen(f"http://{address}/-/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait(10)
