"""The shipped catalog: what it exports is an interface, and it is built only when it changed."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from exporter.bpf import read_object
from exporter.cli.build import build_catalog
from exporter.config import ImageConfig
from exporter.image import Bundle, Store, parse_reference
from exporter.model import Kind
from exporter.plan import Plan, make_plan
from tests.support.catalog import built_catalog

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "configs" / "catalog"
GOLDEN = ROOT / "tests" / "golden" / "catalog.txt"
PAGE = ROOT / "docs" / "catalog.md"
NAMES = sorted(path.parent.name for path in SOURCES.glob("*/*.bpf.c"))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The whole catalog, built from its sources."""
    return built_catalog(tmp_path_factory.mktemp("catalog"))


def bundle(catalog: Store, name: str, architecture: str = "amd64") -> Bundle:
    """An image of the catalog."""
    return catalog.bundle(parse_reference(f"catalog:{name}"), architecture)


def plan(catalog: Store, name: str, **settings: bool) -> Plan:
    """What an image exports with some globals set."""
    image = bundle(catalog, name)
    config = ImageConfig(name=name, ref=f"catalog:{name}", globals=settings)
    return make_plan(
        read_object(image.object), config=config, version=image.version, metadata=image.metadata, possible_cpus=4
    )


def described(name: str, found: Plan) -> list[str]:
    """One line for each thing that alerts and dashboards may hang on."""
    lines = []
    for table in found.tables:
        labels = ",".join(label.name for label in table.labels)
        for metric in table.metrics:
            it = metric.instrument
            bounds = f" {len(it.bounds)} bounds {it.bounds[0]!r}..{it.bounds[-1]!r}" if it.bounds else ""
            lines.append(f"{name}: {it.kind.value} {it.prometheus_name}{{{labels}}} {it.name} [{it.unit}]{bounds}")
    for stream in found.streams:
        attributes = ",".join(label.name for label in stream.attributes)
        state = "on" if stream.enabled else "off"
        lines.append(f"{name}: event {stream.event_name}{{{attributes}}} severity {stream.severity} {state}")
    return lines


def test_names_units_labels_and_bounds_are_those_that_were_promised(catalog: Store) -> None:
    """A difference is a [CHANGE] for everyone who has an alert on it: change the file and the changelog together."""
    found = "".join(f"{line}\n" for name in NAMES for line in described(name, plan(catalog, name)))
    assert found == GOLDEN.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_shipped_image_is_built_for_both_architectures_and_described(catalog: Store, name: str) -> None:
    """An image runs on amd64 and arm64, says what it is, and under which licence."""
    for architecture in ("amd64", "arm64"):
        image = bundle(catalog, name, architecture)
        assert image.architecture == architecture
        assert image.annotations["org.opencontainers.image.description"].endswith(".")
        assert image.annotations["org.opencontainers.image.licenses"] == "GPL-2.0-only OR BSD-2-Clause"
        assert read_object(image.object).license == "Dual BSD/GPL"


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_has_a_sentence_of_help(catalog: Store, name: str) -> None:
    """Promtool asks for help texts, people for sentences."""
    found = plan(catalog, name)
    texts = [metric.instrument.description for table in found.tables for metric in table.metrics]
    texts += [stream.description for stream in found.streams]
    assert texts
    for text in texts:
        assert re.fullmatch(r"[A-Z].{15,}\.", text), text


@pytest.mark.parametrize("name", NAMES)
def test_histograms_keep_an_exact_sum_and_edges_that_are_powers_of_two_microseconds(catalog: Store, name: str) -> None:
    """0.000128, not 0.00012800000000000002."""
    for table in plan(catalog, name).tables:
        for metric in table.metrics:
            it = metric.instrument
            if it.kind is Kind.HISTOGRAM:
                assert it.has_sum
                assert (it.scale.exp10, it.scale.factor) == (-9, 1.0)
                assert [repr(bound) for bound in it.bounds] == [repr((1 << k) / 1_000_000) for k in range(26)]


# Attributes of events that may stand for a person; no metric has them, and each image says so where it has them.
PERSONAL = {
    "process.pid", "process.executable.name", "file.path", "network.peer.address", "network.local.address",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_label_names_a_process_or_a_person(catalog: Store, name: str) -> None:
    """Process ids, names, users, paths and addresses are unbounded, and not everyone's to know."""
    found = plan(catalog, name)
    labels = {label.name for table in found.tables for label in table.labels}
    attributes = {label.name for stream in found.streams for label in stream.attributes}
    assert not (labels | attributes) & {"pid", "tgid", "tid", "comm", "uid", "user.id", "process", "command"}
    assert not labels & PERSONAL
    assert {label for label in labels if "address" in label or label.startswith("process.")} == set()


@pytest.mark.parametrize("name", NAMES)
def test_image_with_personal_data_says_so_in_its_source_and_on_its_page(catalog: Store, name: str) -> None:
    """Who turns an event on has read what it tells."""
    attributes = {label.name for stream in plan(catalog, name).streams for label in stream.attributes}
    source = (SOURCES / name / f"{name}.bpf.c").read_text()
    assert ("personal data" in source) == bool(attributes & PERSONAL)
    [section] = re.findall(rf"^## {name}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    [told] = re.findall(r"^\*\*Personal data:\*\*(.*?)$", section, re.MULTILINE)
    assert {attribute for attribute in PERSONAL if f"`{attribute}`" in told} == attributes & PERSONAL
    assert told.strip().startswith("none") == (not attributes & PERSONAL)


@pytest.mark.parametrize("name", NAMES)
def test_memory_stays_far_under_the_default_limit_on_a_large_host(catalog: Store, name: str) -> None:
    """Default limit 64 MiB, 128 CPUs."""
    image = bundle(catalog, name)
    found = make_plan(
        read_object(image.object),
        config=ImageConfig(name=name, ref=f"catalog:{name}"),
        version="",
        metadata=image.metadata,
        possible_cpus=128,
    )
    assert 0 < found.map_memory < 48 << 20


def test_page_of_the_catalog_is_what_its_generator_makes(catalog: Store) -> None:
    """Regenerate with: python packaging/generate/catalog.py."""
    path = ROOT / "packaging" / "generate" / "catalog.py"
    spec = importlib.util.spec_from_file_location("generate_catalog", path)
    assert spec and spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert PAGE.read_text() == generator.generate(catalog)
    measured = generator.costs(generator.COST.read_text())
    programs = {
        name: {program.name for program in read_object(bundle(catalog, name).object).programs} for name in NAMES
    }
    assert measured.keys() == set(NAMES), "each image has its cost"
    assert not {name for name, rows in measured.items() if not {program for program, _ in rows} <= programs[name]}


def test_keys_are_made_of_zeroes_between_their_members_too() -> None:
    """A map compares all bytes, and members that are named in an initialiser leave those between them as they were."""
    found = [
        f"{path.name}: {line.strip()}"
        for path in SOURCES.glob("*/*.c")
        for line in path.read_text().splitlines()
        if re.search(r"struct \w+ \w+ = \{ *\.", line)
    ]
    assert not found


@pytest.mark.slow
def test_catalog_is_built_again_only_when_a_source_changed(tmp_path: Path) -> None:
    """A second run does nothing; a changed comment in the shared header builds all; a removed image goes."""
    sources, layout = tmp_path / "sources", tmp_path / "build" / "catalog"
    for name in ("syscalls", "tcp-states"):
        shutil.copytree(SOURCES / name, sources / name)
    for header in SOURCES.glob("*.h"):
        shutil.copy(header, sources / header.name)
    said: list[str] = []
    assert build_catalog(sources, layout, say=said.append)
    assert not build_catalog(sources, layout, say=said.append)
    assert len(said) == 2
    before = {name: bundle(Store(layout), name).digest for name in ("syscalls", "tcp-states")}
    with (sources / "kernel.h").open("a") as header:
        header.write("/* changed */\n")
    shutil.rmtree(sources / "syscalls")
    assert build_catalog(sources, layout, say=said.append)
    assert Store(layout).names() == ["tcp-states"]
    assert bundle(Store(layout), "tcp-states").digest == before["tcp-states"], "a comment changes no byte"
    assert list(layout.parent.iterdir()) == [layout], "nothing is left beside it"
