"""``skep run``, ``check`` and ``version`` as a user sees them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from .harness import ROOT, SKEP, skep
from .objects import (
    MISSING_TRACEPOINT,
    counting,
    foreign,
    make_calls,
    nothing_attaches,
    only_missing_tracepoint,
    rejected_by_verifier,
    write,
)


def started(process: subprocess.Popen[str]) -> str:
    """Read stderr up to the line that says that it runs."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "running" in line:
            break
    return said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_prints_rows_and_events_until_it_is_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    """JSON lines with exact counts, each event once and in order, status 0."""
    path = write(tmp_path, "calls", counting("calls"))
    process = subprocess.Popen(
        [*SKEP, "run", str(path), "--no-tty", "--interval=200ms", f"--global=tgid={os.getpid()}"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        said = started(process)
        make_calls(100)
        time.sleep(0.5)
        make_calls(3)
        process.send_signal(number)
        out, more = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, said + more
    lines = [json.loads(line) for line in out.splitlines()]
    events = [line for line in lines if line.get("event") == "ebpf.calls"]
    assert [event["attributes"]["number"] for event in events] == list(range(1, 104))
    assert all(event["image"] == "calls" for event in lines)
    rows = [line for line in lines if line.get("metric") == "ebpf_calls_total"]
    last = {row["attributes"]["parity"]: row["value"] for row in rows}
    assert last == {0: 51, 1: 52}
    assert rows[0]["value"] <= last[rows[0]["attributes"]["parity"]]


def test_run_ends_after_its_duration(tmp_path: Path) -> None:
    """A measurement of a second takes about a second."""
    path = write(tmp_path, "calls", counting("calls"))
    began = time.monotonic()
    done = skep("run", str(path), "--no-tty", "--duration=1s")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert time.monotonic() - began < 15


def test_run_names_a_program_that_cannot_attach_and_goes_on(tmp_path: Path) -> None:
    """The others count; why this one does not is on stderr."""
    path = write(tmp_path, "calls", counting("calls", MISSING_TRACEPOINT))
    done = skep("run", str(path), "--no-tty", "--duration=300ms")
    assert done.returncode == 0
    assert "sys_enter_nothing_like_it" in done.stderr


def test_run_measures_a_foreign_object_as_flags_say(tmp_path: Path) -> None:
    """Nothing in it says a kind, it leaves sizes open and wants more memory than images get: three flags."""
    path = write(tmp_path, "foreign", foreign())
    plain = skep("run", str(path), "--no-tty", "--duration=300ms")
    assert plain.returncode == 1, plain.stderr
    assert "raise limits.map_memory" in plain.stderr
    flags = ("--set=limits.map_memory=256MiB", "--kind=calls=counter", "--set=attach.on_twice.enabled=false")
    done = skep("run", str(path), "--no-tty", "--duration=1s", *flags)
    assert done.returncode == 0, done.stderr
    assert "map 'calls': its object leaves open max_entries; 10240 taken" in done.stderr
    assert "1 programs attached" in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows and all(row["metric"] == "ebpf_calls_total" and row["value"] > 0 for row in rows)


def test_run_of_what_cannot_attach_at_all_names_every_program_once(tmp_path: Path) -> None:
    """Whoever mends the first need not be shown the next."""
    path = write(tmp_path, "nothing", nothing_attaches())
    done = skep("run", str(path), "--no-tty", "--duration=300ms")
    assert done.returncode == 1
    line = next(line for line in done.stderr.splitlines() if line.startswith("skep: program"))
    assert "skep_no_such_a" in line and "(and so 'on_b', 'on_c')" in line and "attach.interfaces" in line, line


def test_run_of_what_cannot_run_ends_with_the_reason(tmp_path: Path) -> None:
    """One line and, from the verifier, its last lines; status 1; never a traceback."""
    table = [
        (str(tmp_path / "nowhere.o"), (), "does not exist"),
        (str(write(tmp_path, "text", b"no object")), (), "expected an ELF file"),
        (str(write(tmp_path, "rejected", rejected_by_verifier())), (), "verifier"),
        (str(write(tmp_path, "nothing", only_missing_tracepoint())), (), "sys_enter_nothing_like_it"),
        (str(write(tmp_path, "calls", counting("calls"))), ("--global=nothing=1",), "nothing"),
        (str(write(tmp_path, "calls", counting("calls"))), ("--global=tgid=many",), "tgid"),
        (str(write(tmp_path, "calls", counting("calls"))), ("--global=tgid=1", "--global=tgid=2"), "given twice"),
        ("UPPER", (), "UPPER"),
        ("catalog:nothing", (), "nothing"),
    ]
    for reference, options, said in table:
        done = skep("run", reference, "--no-tty", "--duration=100ms", "--store", str(tmp_path / "store"), *options)
        assert done.returncode == 1, (reference, options, done.stderr)
        assert done.stderr.startswith("skep: "), done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--interval=1"], ["--duration=0s"], ["--global=x"], ["--global==1"], ["--pull=sometimes"], []]
)
def test_run_used_wrongly_is_told_how_to(arguments: list[str]) -> None:
    """Wrong usage is status 2."""
    done = skep("run", *arguments, *(["a.o"] if arguments else []))
    assert done.returncode == 2
    assert "usage: skep run" in done.stderr
    assert "Traceback" not in done.stderr


def test_reader_that_goes_away_ends_run_quietly(tmp_path: Path) -> None:
    """``skep run … | head -1`` leaves nothing behind and prints no traceback."""
    path = write(tmp_path, "calls", counting("calls"))
    process = subprocess.Popen(
        [*SKEP, "run", str(path), "--no-tty", "--interval=50ms", f"--global=tgid={os.getpid()}"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        started(process)
        make_calls(10)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        make_calls(10)
        process.wait(20)
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait(10)
        process.stderr.close()  # type: ignore[union-attr]


def test_check_prints_every_error_of_every_file(tmp_path: Path) -> None:
    """The files are one configuration; what is wrong in each is told at once."""
    (tmp_path / "agent.yaml").write_text("images: [{ref: catalog:a}]\nstor: {}\n")
    (tmp_path / "agent.d").mkdir()
    (tmp_path / "agent.d" / "b.yaml").write_text("images: [{name: a, pull: sometimes}]\n")
    done = skep("check", str(tmp_path / "agent.yaml"))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"skep: {tmp_path}/agent.yaml:2:1: stor is not a key; did you mean 'store'?",
        f"skep: {tmp_path}/agent.d/b.yaml:1:26: images[a].pull is 'sometimes'; must be if-not-present, always or never",
    ]


def test_check_of_the_shipped_configuration_succeeds() -> None:
    """Both shipped files, and says what they hold."""
    done = skep("check", "configs/agent.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 images, 2 more not enabled" in done.stdout
    assert skep("check", "configs/run.yaml").returncode == 0


def test_check_prints_the_schema() -> None:
    """What is committed was made by this."""
    done = skep("check", "--schema")
    assert done.stdout == (ROOT / "configs" / "agent.schema.json").read_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(done.stdout))


def test_version_names_what_skep_stands_on() -> None:
    """The four things a bug report needs."""
    done = skep("version")
    named = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert set(named) == {"skep", "libbpf", "kernel", "python"}
    assert named["python"] == ".".join(map(str, sys.version_info[:3]))
    assert named["kernel"].startswith(os.uname().release)
