"""From nothing to numbers: ``skep init``, ``build``, ``run``, and what a mistake on the way gets."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.terminal import Terminal

from .harness import ROOT, SKEP, skep

QUIET = ("--no-tty", "--interval=200ms", "--duration=2s")


def run_lines(path: Path) -> list[dict[str, object]]:
    """Run an object for two seconds while processes are started; give the lines it prints."""
    process = subprocess.Popen(
        [*SKEP, "run", str(path), *QUIET], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        assert any("running" in line for line in process.stderr)
        for _ in range(5):
            subprocess.run(["true"], check=True)
            time.sleep(0.05)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait(10)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("template", ["counter", "histogram", "events"])
def test_each_template_builds_without_a_warning_and_prints_numbers(template: str, tmp_path: Path) -> None:
    """The first minute: nothing is edited between init and the first number."""
    source, made = tmp_path / f"first-{template}.bpf.c", tmp_path / "first.o"
    done = skep("init", "--template", template, str(tmp_path / f"first-{template}"))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"skep build {source}" in done.stdout
    done = skep("build", str(source), "--output", str(made), "--cflags=-Wall -Wextra -Wno-unused-parameter -Werror")
    assert (done.returncode, done.stderr) == (0, "")
    lines = run_lines(made)
    if template == "counter":
        calls = [line for line in lines if line.get("metric") == "ebpf_first_counter_calls_total"]
        assert any(line["attributes"] == {"command": "true"} and line["value"] > 0 for line in calls)  # type: ignore[operator]
    elif template == "histogram":
        stays = [line for line in lines if line.get("metric") == "ebpf_first_histogram_duration_seconds"]
        # A busy machine may have no idle moment in two seconds.
        assert {"task"} <= {line["attributes"]["occupation"] for line in stays} <= {"idle", "task"}  # type: ignore[index]
        assert all(line["count"] > 0 and line["sum"] > 0 for line in stays[-2:])  # type: ignore[operator]
    else:
        starts = [line for line in lines if line.get("event") == "ebpf.first_events.start"]
        assert sum(line["attributes"]["command"] == "true" for line in starts) >= 5  # type: ignore[index]
        assert {"pid", "uid", "command"} == set(starts[0]["attributes"])  # type: ignore[call-overload]


def test_init_writes_where_it_is_told_and_nothing_else(tmp_path: Path) -> None:
    """A name, a folder, a file; the default; BumbleBee's spellings."""
    table = [
        ((str(tmp_path / "a"),), "a.bpf.c", "calls"),
        ((f"{tmp_path}/folder/",), "folder/folder.bpf.c", "calls"),
        ((str(tmp_path / "x.c"), "-t", "events"), "x.c", "SKEP_EVENT"),
        (("--file", str(tmp_path / "y.bpf.c"), "-l", "C", "-o", "print"), "y.bpf.c", "SKEP_EVENT"),
    ]
    for words, path, text in table:
        done = skep("init", *words)
        assert (done.returncode, done.stderr) == (0, ""), words
        assert text in (tmp_path / path).read_text()
        assert "@" not in (tmp_path / path).read_text()
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == len(table)


def test_init_overwrites_nothing_and_refuses_what_cannot_be_a_name(tmp_path: Path) -> None:
    """What an engineer wrote is not lost to a second init."""
    (tmp_path / "mine.bpf.c").write_text("mine")
    for words, said in (
        ((str(tmp_path / "mine"),), "exists and is not overwritten"),
        ((str(tmp_path / "Not A Name"),), "must be a-z 0-9"),
        (("/proc/nowhere/a",), "cannot be written"),
    ):
        done = skep("init", *words)
        assert done.returncode == 1
        assert done.stderr.startswith("skep: ") and said in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "mine.bpf.c").read_text() == "mine"
    assert skep("init", "--template", "kprobe").returncode == 2


def test_init_asks_on_a_terminal(tmp_path: Path) -> None:
    """For the template, by number or name, again after a wrong answer, and for the name."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "exporter", "init"], cwd=tmp_path, stdin=slave, stdout=subprocess.PIPE, stderr=slave,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(slave)
    try:
        os.write(master, b"kprobe\n3\nasked\n")
        out, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        os.close(master)
    assert process.returncode == 0
    assert "SKEP_EVENT" in (tmp_path / "asked.bpf.c").read_text()
    assert out.startswith(b"asked.bpf.c")


# -- Mistakes ------------------------------------------------------------------------------------

STRUCT_LABEL = """
#include <skep.bpf.h>
struct inner { __u64 a[300]; };
struct key { struct inner what; };
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 8); __type(key, struct key); __type(value, __u64);
} counter_x SEC(".maps");
SEC("raw_tp/sys_enter") int on_call(void *ctx) { return 0; }
char LICENSE[] SEC("license") = "GPL";
"""


def test_source_that_does_not_compile_shows_clangs_words_once(tmp_path: Path) -> None:
    """With file and line as the user knows them, for all architectures together."""
    source = tmp_path / "wrong.bpf.c"
    source.write_text("#include <skep.bpf.h>\nint x = nothing_like_it;\n")
    done = skep("build", str(source), "registry.example/wrong:1", "--store", str(tmp_path / "store"))
    assert done.returncode == 1
    assert done.stderr.count("nothing_like_it'") == 1
    assert f"{source}:2:9: error: " in done.stderr
    assert done.stderr.splitlines()[-1] == "skep: source 'wrong.bpf.c' does not compile; clang gave 1 error"
    assert not (tmp_path / "store").exists()


def test_build_tells_a_terminal_what_it_is_at_and_leaves_only_its_result(tmp_path: Path) -> None:
    """What began is on one line that is written over, and wiped out before clang's words are shown."""
    good, bad = tmp_path / "good.bpf.c", tmp_path / "bad.bpf.c"
    assert skep("init", str(good)).returncode == 0
    bad.write_text("#include <skep.bpf.h>\nint x = nothing_like_it;\n")
    for source, status in ((good, 0), (bad, 1)):
        with Terminal([*SKEP, "build", str(source), "--output", str(tmp_path / "a.o")], cwd=ROOT) as terminal:
            assert terminal.wait() == status, terminal.text
            *steps, after = terminal.raw.split(b"\r\x1b[K")
        assert any(b"compiling for" in step for step in steps)
        assert b"compiling for" not in after
        assert (b"nothing_like_it" in after) is (source is bad)


@pytest.mark.parametrize(
    ("header", "remedy"),
    [("bpf/nothing.h", "libbpf-dev"), ("linux/nothing.h", "linux-libc-dev"), ("mine.h", "give its folder with -I")],
)
def test_missing_header_is_answered_with_what_to_install(header: str, remedy: str, tmp_path: Path) -> None:
    """By where such headers come from."""
    source = tmp_path / "a.bpf.c"
    source.write_text(f"#include <{header}>\n")
    done = skep("build", str(source), "--output", str(tmp_path / "a.o"))
    assert done.returncode == 1
    assert remedy in done.stderr.splitlines()[-1]


def test_missing_compiler_is_answered_with_what_to_install(tmp_path: Path) -> None:
    """One line, before anything else is tried."""
    source = tmp_path / "a.bpf.c"
    source.write_text("")
    done = subprocess.run(
        [*SKEP, "build", str(source), "--output", str(tmp_path / "a.o")],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "skep: clang 'clang' is not on PATH; install clang 14 or newer (Debian: clang)\n"


def test_key_that_cannot_be_a_label_is_refused_at_build_time(tmp_path: Path) -> None:
    """It names map and member; nothing is stored."""
    source = tmp_path / "a.bpf.c"
    source.write_text(STRUCT_LABEL)
    done = skep("build", str(source), "registry.example/a:1", "--store", str(tmp_path / "store"))
    assert done.returncode == 1
    assert "counter_x" in done.stderr and "what" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()
