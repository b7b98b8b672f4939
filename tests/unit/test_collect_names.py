"""The generated tables of syscalls, errors and signals."""

from __future__ import annotations

import errno
import os
import signal
from types import ModuleType

import pytest

from exporter.collect import names
from tests.support.generators import load_generator


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The tool, imported from where it lies."""
    return load_generator("names")


def test_committed_names_are_what_this_machines_headers_say(generator: ModuleType) -> None:
    """Regenerated and compared; names that headers newer than the table add are the only difference allowed."""
    if os.uname().machine != "x86_64":
        pytest.skip("the headers of x86_64 come with its own libc only")
    newest = max(names.SYSCALLS["x86_64"])
    x86_64 = generator.syscalls("asm/unistd_64.h", (), generator.NEWER | generator.NEWER_X86_64)
    arm64 = generator.syscalls("asm-generic/unistd.h", generator.ARM64, generator.NEWER)
    assert {nr: name for nr, name in x86_64.items() if nr <= newest} == names.SYSCALLS["x86_64"]
    assert {nr: name for nr, name in arm64.items() if nr <= newest} == names.SYSCALLS["aarch64"]
    assert generator.errnos() == names.ERRNO
    assert generator.signals() == names.SIGNALS
    if max(x86_64) <= newest:
        assert generator.generate() == generator.TARGET.read_text(encoding="utf-8")


def test_names_agree_with_the_c_library() -> None:
    """Errors and signals as Python knows them, but for second names of one number."""
    aliases = {errno.EDEADLK, errno.EOPNOTSUPP}
    assert {nr: names.ERRNO[nr] for nr in errno.errorcode if nr not in aliases} == {
        nr: name for nr, name in errno.errorcode.items() if nr not in aliases
    }
    assert all(names.SIGNALS[one.value] == one.name for one in signal.Signals)


def test_well_known_calls_have_their_numbers() -> None:
    """Two architectures number them differently."""
    assert {machine: table[nr] for machine, table, nr in (
        ("x86_64", names.SYSCALLS["x86_64"], 321), ("aarch64", names.SYSCALLS["aarch64"], 280),
    )} == {"x86_64": "bpf", "aarch64": "bpf"}  # fmt: skip
    assert names.SYSCALLS["x86_64"][0] == "read"
    assert names.SYSCALLS["aarch64"][222] == "mmap"
