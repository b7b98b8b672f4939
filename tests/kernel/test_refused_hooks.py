"""``skep run`` of one object with everything wrong: each program's line says what and where, and the right one runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.kernel.features import probe

from .conftest import Compile

RELEASE = probe().release
KERNEL = re.escape(f"this kernel ({RELEASE})")
NO_KPROBES = rf"ENOTSUP .*{KERNEL} has no kprobes \(CONFIG_KPROBES\)"


@pytest.fixture(scope="module")
def said(compile_object: Compile, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What ``skep run`` says on stderr of the object with one of each mistake."""
    file = tmp_path_factory.mktemp("refusals") / "refusals.o"
    file.write_bytes(compile_object("refusals"))
    command = [sys.executable, "-m", "exporter", "run", str(file), "--no-tty", "--duration", "300ms"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert all(json.loads(line) for line in done.stdout.splitlines())
    return done.stderr


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (
            "no_function",
            rf"'skep_no_such_function': (ENOENT .*{KERNEL} has no such function|{NO_KPROBES}).*attach.target",
        ),
        ("untraceable_function", rf"'notify_die': (EINVAL .*{KERNEL} does not let it be probed|{NO_KPROBES})"),
        ("no_tracepoint", rf"'skep/nothing': ENOENT .*{KERNEL} has no such tracepoint.*attach.target"),
        ("no_binary", r"/skep/no/such/file.*ENOENT.*attach.binary"),
        ("no_library", r"'libskep_none.so'.*ENOENT.*attach.binary"),
        ("no_interface", rf"'skepnone0': ENODEV.*{KERNEL} has no such interface; .*attach.interfaces"),
        ("no_event", rf"type 4 config 16777215.*{KERNEL} does not count that.*software:cpu-clock"),
        ("no_kind", r"no program type for section 'skep_kind/x'; rename"),
        ("no_map_of_sockets", r"'sk_msg' attaches to a map of sockets"),
        ("too_many", rf"the verifier of {KERNEL} gives up on it: .*; branch and loop less"),
        (
            "no_kfunc",
            rf"calls kernel function 'bpf_skep_no_such_kfunc', which {KERNEL} does not have; declare it __weak",
        ),
    ],
)
def test_every_mistake_is_told_in_one_line_with_its_remedy(said: str, program: str, words: str) -> None:
    """Program, target, kernel and what to do."""
    told = [
        part
        for part in re.split(r"; (?=program ')|\n", said)
        if part.removeprefix("skep: ").startswith(f"program '{program}'")
    ]
    assert len(told) == 1, said
    assert re.search(words, told[0]), told[0]


def test_the_one_that_is_right_runs(said: str) -> None:
    """Alone."""
    assert "1 programs attached" in said
    assert "program 'right'" not in said


def test_object_without_any_that_runs_ends_with_the_reason(compile_object: Compile, tmp_path: Path) -> None:
    """The licence's, here."""
    file = tmp_path / "proprietary.o"
    file.write_bytes(compile_object("proprietary"))
    command = [sys.executable, "-m", "exporter", "run", str(file), "--no-tty", "--duration", "300ms"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.search(r"^skep: program 'on_syscall': .*licence.*GPL", done.stderr, re.MULTILINE), done.stderr
