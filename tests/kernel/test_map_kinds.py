"""What maps and variables of every kind hold, as a scrape shows it: from C source to Prometheus text on this kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter.agent.program import Program, load, make_lookup, plan_bundle
from exporter.config import ImageConfig
from exporter.export import prometheus
from exporter.image import Bundle, Digest, parse_reference
from exporter.model import Resource, Snapshot

from .conftest import GETPGID, Compile, make_calls

Sample = tuple[str, frozenset[tuple[str, str]]]
Running = Callable[..., Program]


def bundle_of(content: bytes) -> Bundle:
    """An object as it comes from a file."""
    digest = Digest.of(content)
    return Bundle(parse_reference("./kinds.o"), digest, digest, digest, "file", content)


@pytest.fixture
def running(compile_object: Compile) -> Iterator[Running]:
    """Run a test object as the agent does, counting this process's ``getpgid`` calls; all ends with the test."""
    programs: list[Program] = []

    def run(name: str, *, before: Program | None = None, **config: object) -> Program:
        bundle = bundle_of(compile_object(name))
        image = ImageConfig("kinds", "./kinds.o", globals={"tgid": os.getpid(), "wanted_call": GETPGID}, **config)  # type: ignore[arg-type]
        programs.append(load(bundle, plan_bundle(bundle, image), image, resolve=make_lookup().resolve, before=before))
        return programs[-1]

    yield run
    for program in programs:
        program.close()


def scrape(program: Program) -> dict[Sample, float]:
    """One scrape as a Prometheus reads it."""
    with program.lock:
        program.read(time.monotonic())
        assert not program.last_read.error
        text = prometheus.render(Snapshot(time.time_ns(), Resource(), program.frames())).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def one(samples: dict[Sample, float], name: str, **labels: str) -> float:
    """A sample that must be there."""
    return samples[name, frozenset(labels.items())]


def named(samples: dict[Sample, float], name: str) -> dict[frozenset[tuple[str, str]], float]:
    """All samples of one name."""
    return {labels: value for (found, labels), value in samples.items() if found == name}


# Variables.


def test_variables_of_every_section_and_shape_are_metrics(running: Running) -> None:
    """A number, a struct, an array by index or summed, a histogram; what nobody speaks of stays private."""
    program = running("variables")
    make_calls(5)
    samples = scrape(program)
    assert one(samples, "ebpf_calls_total") == 5
    assert one(samples, "test_limit") == 42
    assert named(samples, "test_operations_total") == {
        frozenset({("operation", "0")}): 3,
        frozenset({("operation", "1")}): 2,
    }
    assert one(samples, "ebpf_per_cpu_total") == 5
    assert one(samples, "test_sizes_calls_total", index="1") == 10
    assert one(samples, "test_sizes_level", index="1") == -3
    assert one(samples, "test_latency_seconds_count") == 5
    assert one(samples, "test_latency_seconds_sum") == pytest.approx(7.5e-6)
    assert one(samples, "test_latency_seconds_bucket", le="2e-06") == 5
    assert one(samples, "ebpf_plain_bucket", le="7.0") == 0
    assert one(samples, "ebpf_plain_bucket", le="15.0") == 5
    assert one(samples, "test_own_total") == 5
    assert one(samples, "ebpf_started") == 6
    assert not [name for name, _ in samples if "unrelated" in name or "unsaid" in name]


def test_variables_count_on_and_are_no_map_that_fills(running: Running) -> None:
    """Each read is the newest value; a section of variables has no fill to warn of."""
    program = running("variables")
    for calls in (1, 2, 3):
        make_calls(1)
        assert one(scrape(program), "ebpf_calls_total") == calls
    assert program.map_entries == {}


def test_newer_version_carries_the_counts_of_variables_on(running: Running) -> None:
    """Its own variables begin at zero again; the series does not."""
    old = running("variables")
    make_calls(4)
    assert one(scrape(old), "ebpf_calls_total") == 4
    new = running("variables", before=old)
    old.detach()
    assert new.succeed(old) == len(new.plan.tables)
    make_calls(3)
    assert one(scrape(new), "ebpf_calls_total") == 7
    assert one(scrape(new), "ebpf_per_cpu_total") == 7
