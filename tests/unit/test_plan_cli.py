"""``skep plan``: from a file or a configured image to tables, without privilege."""

import argparse
import json
from pathlib import Path

import pytest

from exporter.cli import plan
from exporter.errors import ConfigError, ObjectError, SkepError
from tests.support.clang import compile_bpf

SOURCE = """
struct key { u32 device; };
MAP(counter_calls, HASH, 10, struct key, u64) TAG("help=Calls.");
const volatile u32 limit;
"""


def skep(*arguments: object) -> int:
    """Run the verb as the command line does."""
    parser = argparse.ArgumentParser()
    plan.register(parser.add_subparsers())
    args = parser.parse_args(["plan", *map(str, arguments)])
    result: int = args.run(args)
    return result


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An object file, with the store kept out of the way."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    path = tmp_path / "calls.bpf.o"
    path.write_bytes(compile_bpf(SOURCE))
    return path


def test_object_file_is_planned_under_its_own_name(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five minutes from a C file to names starts here."""
    assert skep(program, "--store", program.parent / "store", "--cpus", 2) == 0
    shown = capsys.readouterr().out
    assert shown == (
        "image calls\n"
        "\n"
        "map counter_calls: rows of 4 + 8 bytes\n"
        "  ebpf_calls_total\n"
        "    OpenTelemetry ebpf.calls, counter\n"
        "    Calls.\n"
        "  labels\n"
        "    device  uint\n"
        "  a series that does not change for 3600 s is not shown until it does\n"
        "\n"
        "programs\n"
        "  on_switch  raw_tp/sched_switch\n"
        "\n"
        "map memory 0.0 MiB\n"
    )


def test_json_is_one_object(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For scripts."""
    assert skep(program, "--json", "--store", program.parent / "store") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["tables"][0]["metrics"][0]["instrument"]["prometheus_name"] == "ebpf_calls_total"


def configured(program: Path) -> Path:
    """A configuration with that object twice."""
    path = program.parent / "agent.yaml"
    path.write_text(
        f"images:\n"
        f"  - {{ref: '{program}', name: one, globals: {{limit: 5}},\n"
        f"     metrics: {{ebpf_calls_total: {{rename: my_calls_total, drop_labels: [device]}}}}}}\n"
        f"  - {{ref: '{program}', name: two}}\n"
    )
    return path


def test_configured_image_is_planned_as_the_agent_would(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rename, dropped labels and globals are those of the file."""
    store = ("--store", program.parent / "store")
    assert skep("--config", configured(program), "--image", "one", *store) == 0
    shown = capsys.readouterr().out
    assert "image one\n" in shown and "  my_calls_total\n" in shown and "device" not in shown
    assert "  limit  .rodata+0 = 05 00 00 00\n" in shown
    assert skep("--config", configured(program), "--image", "two", *store) == 0
    assert "ebpf_calls_total" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no image is named"),
        (("--image", "one"), "--image needs --config"),
        (("--config", "CONFIG"), "2 images match --image ''; it has one, two"),
        (("--config", "CONFIG", "--image", "three"), "no image matches --image 'three'; it has one, two"),
        (("--config", "CONFIG", "--image", "three", "PROGRAM"), "no image matches --image 'three'"),
    ],
)
def test_image_that_is_not_named_plainly_is_an_error(program: Path, arguments: tuple[str, ...], words: str) -> None:
    """It lists what could be meant."""
    places = {"CONFIG": str(configured(program)), "PROGRAM": str(program)}
    with pytest.raises(ConfigError) as caught:
        skep(*(places.get(argument, argument) for argument in arguments))
    assert words in str(caught.value)


def test_file_that_is_no_object_is_a_skep_error(tmp_path: Path) -> None:
    """The command line shows one line of it and no traceback."""
    path = tmp_path / "broken.o"
    path.write_bytes(compile_bpf(SOURCE)[:3000])
    with pytest.raises((ObjectError, SkepError)):
        skep(path, "--store", tmp_path / "store")
