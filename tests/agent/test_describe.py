"""``skep describe``: what is in an image, for a person and for a script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.image import Store, host_architecture, parse_reference
from tests.support.catalog import built_catalog
from tests.support.clang import compile_bpf
from tests.support.images import bpf_elf

from .harness import skep
from .objects import counting, write


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped images as an ordinary layout."""
    return built_catalog(tmp_path_factory.mktemp("catalog")).path


def test_image_is_described_from_digest_to_label(catalog: Path) -> None:
    """Identity, provenance, hooks, maps with their memory, metrics with unit and labels."""
    name = f"oci:{catalog}:block-latency"
    done = skep("describe", name, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["digest"] != found["manifest_digest"]
    assert found["architectures"] == ["amd64", "arm64"] and found["architecture"] == host_architecture()
    assert found["complete"] and found["size"] > found["object_size"]
    assert found["provenance"]["licences"] == "GPL-2.0-only OR BSD-2-Clause"
    assert {one["section"] for one in found["programs"]} == {"tp_btf/block_rq_issue", "tp_btf/block_rq_complete"}
    assert all(one["instructions"] > 0 for one in found["programs"])
    [flight] = [one for one in found["maps"] if one["name"] == "in_flight"]
    assert (flight["type"], flight["key_size"], flight["value_size"], flight["max_entries"]) == ("hash", 8, 8, 16384)
    assert flight["memory"] > 16384 * 16
    [duration] = [one for one in found["metrics"] if one["name"] == "ebpf_block_request_duration_seconds"]
    assert (duration["kind"], duration["unit"], duration["labels"]) == ("histogram", "s", ["device", "operation"])
    page = skep("describe", name).stdout
    for text in (found["digest"], "tp_btf/block_rq_issue", "in_flight", "ebpf_block_request_duration_seconds"):
        assert text in page


def test_object_without_an_image_is_described_too(tmp_path: Path) -> None:
    """By the digest of its bytes."""
    path = write(tmp_path, "calls", counting("calls"))
    found = json.loads(skep("describe", str(path), "--json").stdout)
    assert found["format"] == "file" and found["architectures"] == []
    assert [one["name"] for one in found["events"]] == ["ebpf.calls"]
    assert "tgid" in {one["name"] for one in found["globals"]}


def test_only_what_makes_events_is_described_as_one(tmp_path: Path) -> None:
    """With the array at its end; a ring that is only counted makes none. Maps have the size they will be made with."""
    content = compile_bpf("""
        struct line { u64 at; u32 length; char text[]; }; struct call { u32 nr; };
        RING(print_lines, struct line); RING(counter_calls, struct call); MAP(counter_open, HASH, 0, u32, u64);
    """)
    found = json.loads(skep("describe", str(write(tmp_path, "lines", content)), "--json").stdout)
    assert {one["name"]: one["attributes"] for one in found["events"]} == {"ebpf.lines": ["at", "length", "text"]}
    assert {one["name"]: one["labels"] for one in found["metrics"]} == {
        "ebpf_calls_total": ["nr"], "ebpf_open_total": ["key"],
    }  # fmt: skip
    [opened] = [one for one in found["maps"] if one["name"] == "counter_open"]
    assert opened["max_entries"] == 10240 and opened["memory"] > 10240 * 64


def test_image_that_cannot_run_is_described_as_far_as_it_goes(tmp_path: Path) -> None:
    """With the reason, status 1, and without a stranger's control characters."""
    reference = parse_reference("registry.example/odd:1")
    notes = {"org.opencontainers.image.source": "\x1b[2Jhttps://example/", "mine": "a\x1bb"}
    Store(tmp_path).add(reference, {host_architecture(): bpf_elf()}, {}, notes)
    done = skep("describe", str(reference), "--store", str(tmp_path))
    assert done.returncode == 1
    assert "cannot be run: " in done.stdout and "\x1b" not in done.stdout
    assert "mine  a?b" in done.stdout
    assert json.loads(skep("describe", str(reference), "--store", str(tmp_path), "--json").stdout)["problem"]


def test_description_of_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    """As for every verb."""
    for words, said in (
        (("registry.example/a:1", "--pull=never"), "not in the store"),
        (("catalog:none",), "none"),
        (("./none.o",), "does not exist"),
    ):
        done = skep("describe", *words, "--store", str(tmp_path))
        assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1
