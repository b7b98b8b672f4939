"""``make bench``: measure, print a table, write ``build/bench.json``.

Scrapes of 1,000, 10,000 and 100,000 series of three labels out of a real kernel map, beside
what they cannot be cheaper than and what prometheus-client takes for the same rows, in both formats and
compressed; points and events over OTLP beside the OpenTelemetry SDK; the time that each shipped program
takes per event; look-ups and loading; memory of an idle agent; an author's first minute. Every ratio is of two
things measured in this run: medians of samples that took turns, each case in a process of its own.

The file is a list of ``{name, value, unit, against, ratio}``; ``against`` names another entry
or is null, and so is the ratio then. Options pick parts: ``--sizes 1000 --no-programs``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.bench import case, first, kernel_side, memory, programs, push, rows

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
ROUNDS = 3
CASES = (
    "scrape",
    "floor",
    "render",
    "openmetrics",
    "gzip_1",
    "gzip_6",
    "gzip_9",
    "otlp",
    "client",
    "client_openmetrics",
)


@dataclass(frozen=True)
class Figure:
    """One measured number, and how many times another it is."""

    name: str
    value: float | None
    unit: str
    against: str | None = None
    ratio: float | None = None


@dataclass
class Case:
    """All rounds of one case."""

    samples_s: list[float]
    first_s: list[float]
    memory_bytes: list[int]
    made_bytes: int

    @property
    def cpu_ms(self) -> float:
        """Median CPU time of one repetition, user and system."""
        return statistics.median(self.samples_s) * 1e3

    @property
    def first_ms(self) -> float:
        """Median CPU time of the first one, when everything is new."""
        return statistics.median(self.first_s) * 1e3

    @property
    def memory_mib(self) -> float:
        """Median growth of the process's peak memory over what it had before."""
        return statistics.median(self.memory_bytes) / (1 << 20)


def build_floor() -> Path:
    """Compile the floor."""
    (BUILD / "bench").mkdir(parents=True, exist_ok=True)
    library = BUILD / "bench" / "floor.so"
    subprocess.run(
        ["cc", "-O2", "-Wall", "-shared", "-fPIC", "-o", library, ROOT / "tests" / "bench" / "floor.c"], check=True
    )
    return library


def run_case(name: str, *numbers: int, library: Path, body_bytes: int) -> dict[str, Any]:
    """One case, once, in its process; ``numbers`` are count, repeats and the map's descriptor."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.case", name, *map(str, numbers), str(library), str(body_bytes)],
        cwd=ROOT,
        pass_fds=(numbers[2],),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def scrapes(count: int, library: Path) -> list[Figure]:
    """All cases of one size."""
    repeats = max(3, min(101, 300_000 // count)) | 1
    cases = {name: Case([], [], [], 0) for name in CASES}
    fd = rows.create_map(count + count // 4)
    try:
        for _ in range(ROUNDS):
            for name, one in cases.items():
                # The scrape goes first: the floor copies a body of its size.
                few = max(3, repeats // 10) if name.startswith(("client", "gzip")) else repeats
                measured = run_case(name, count, few, fd, library=library, body_bytes=cases["scrape"].made_bytes)
                one.samples_s += measured["samples_s"]
                one.first_s.append(measured["first_s"])
                one.memory_bytes.append(measured["peak_bytes"] - measured["before_bytes"])
                one.made_bytes = measured["made_bytes"]
    finally:
        os.close(fd)
    title = f"{count} series, "
    floor, scrape, client = cases["floor"], cases["scrape"], cases["client"]

    def figure(what: str, value: float, unit: str, against: str = "", of: float = 0.0) -> Figure:
        ratio = value / of if against and of else None
        return Figure(title + what, value, unit, title + against if against else None, ratio)

    return [
        figure("floor: batch look-up in C and one copy", floor.cpu_ms, "ms CPU"),
        figure("skep scrape", scrape.cpu_ms, "ms CPU", "floor: batch look-up in C and one copy", floor.cpu_ms),
        figure("skep first scrape, every series new", scrape.first_ms, "ms CPU", "skep scrape", scrape.cpu_ms),
        figure("skep text alone", cases["render"].cpu_ms, "ms CPU", "skep scrape", scrape.cpu_ms),
        figure(
            "skep OpenMetrics alone", cases["openmetrics"].cpu_ms, "ms CPU", "skep text alone", cases["render"].cpu_ms
        ),
        *(
            figure(f"gzip level {level}", cases[f"gzip_{level}"].cpu_ms, "ms CPU", "skep scrape", scrape.cpu_ms)
            for level in (1, 6, 9)
        ),
        figure("skep OTLP requests alone", cases["otlp"].cpu_ms, "ms CPU", "skep text alone", cases["render"].cpu_ms),
        figure("prometheus-client, text alone", client.cpu_ms, "ms CPU", "skep scrape", scrape.cpu_ms),
        figure(
            "prometheus-client, OpenMetrics alone",
            cases["client_openmetrics"].cpu_ms,
            "ms CPU",
            "skep OpenMetrics alone",
            cases["openmetrics"].cpu_ms,
        ),
        figure("body", scrape.made_bytes / 1024, "KiB"),
        *(
            figure(f"body, gzip level {level}", made / 1024, "KiB", "body", scrape.made_bytes / 1024)
            for level in (1, 6, 9)
            for made in (cases[f"gzip_{level}"].made_bytes,)
        ),
        figure("skep scrape, memory", scrape.memory_mib, "MiB peak"),
        figure("prometheus-client, memory", client.memory_mib, "MiB peak", "skep scrape, memory", scrape.memory_mib),
    ]


def check_rows_are_the_same(library: Path) -> None:
    """Skep's and prometheus-client's text must say the same, or their times say nothing."""
    count = 1000
    fd = rows.create_map(count)
    try:
        rows.fill(fd, rows.keys(count), 0)
        texts = [case.text(name, count, fd, str(library)) for name in ("scrape", "client")]
    finally:
        os.close(fd)
    ours, theirs = (
        {
            (sample.name, tuple(sorted(sample.labels.items())), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        for text in texts
    )
    if ours != theirs or len(ours) != count:
        raise SystemExit(f"the two texts differ: {len(ours)} and {len(theirs)} samples, {len(ours & theirs)} in common")


def events(seconds: float) -> Iterator[Figure]:
    """Time per event of each shipped program."""
    for image, name, value, count in programs.measured(seconds):
        yield Figure(f"{image}: {name}, {count} events", value, "ns/event")


def idle() -> Iterator[Figure]:
    """Memory of all processes of an agent with ten images of which nothing is asked."""
    for title, protocol in (("scraped only", ""), ("OTLP over HTTP", "http/protobuf"), ("OTLP over gRPC", "grpc")):
        size, processes, ready_s = memory.measure(protocol)
        if not protocol:
            yield Figure("start to ready with ten images", ready_s, "s")
        yield Figure(f"idle with ten images, {title}, {processes} processes", size / (1 << 20), "MiB PSS")


def measured(options: argparse.Namespace) -> Iterator[Figure]:
    """Whatever was asked for, one after the other."""
    library = build_floor()
    check_rows_are_the_same(library)
    for count in options.sizes:
        yield from scrapes(count, library)
    if options.push:
        for row in push.measure(options.points, options.events):
            yield Figure(*row)
    if options.programs:
        yield from events(options.seconds)
    if options.kernel:
        yield from kernel_side.figures(library)
    if options.memory:
        yield from idle()
    if options.first:
        for verb, seconds in zip(("init", "build", "run to the first series"), first.measure(), strict=True):
            yield Figure(f"an author's first minute: {verb}", seconds, "s")


def shown(figure: Figure) -> str:
    """One line of the table."""
    value = "never ran" if figure.value is None else f"{figure.value:12,.3f} {figure.unit}"
    against = f"{figure.ratio:8.2f} x {figure.against}" if figure.ratio is not None else ""
    return f"{figure.name:58} {value:24} {against}".rstrip()


def verdicts(figures: list[Figure]) -> list[str]:
    """What the largest size must hold."""
    by_name = {figure.name: figure for figure in figures}
    lines = []
    for name, least, most, target in (
        ("100000 series, skep scrape", 0.0, 2.0, "at most twice the floor"),
        ("100000 series, prometheus-client, text alone", 10.0, float("inf"), "at least ten times cheaper"),
    ):
        ratio = by_name[name].ratio if name in by_name else None
        if ratio is not None:
            lines.append(f"{'met   ' if least <= ratio <= most else 'MISSED'}  {target}: {ratio:.2f} ({name})")
    return lines


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(prog="tests.bench", description="Measure skep.")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000, 10_000, 100_000], help="series")
    parser.add_argument("--programs", action=argparse.BooleanOptionalAction, default=True, help="time per event")
    parser.add_argument("--kernel", action=argparse.BooleanOptionalAction, default=True, help="look-ups and loading")
    parser.add_argument("--seconds", type=float, default=3.0, help="of work for each image")
    parser.add_argument("--push", action=argparse.BooleanOptionalAction, default=True, help="OTLP beside the SDK")
    parser.add_argument("--points", type=int, nargs="*", default=[10_000, 100_000], help="of a push")
    parser.add_argument("--events", type=int, default=50_000, help="of a push")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="of an idle agent")
    parser.add_argument("--first", action=argparse.BooleanOptionalAction, default=True, help="of an author")
    options = parser.parse_args()
    figures: list[Figure] = []
    for figure in measured(options):
        figures.append(figure)
        print(shown(figure), flush=True)
    (BUILD / "bench.json").write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")
    print(*verdicts(figures), *kernel_side.verdicts(figures), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
