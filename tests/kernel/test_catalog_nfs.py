"""The shipped program on NFS counts what the kernel's own statistics of the mount count."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.kernel.test_catalog import observed, programs_here, shipped
from tests.support import nfs
from tests.support.libbpf import can_load, loaded

pytestmark = pytest.mark.skipif(not can_load(), reason="needs root and a kernel with BTF")


def text_of(number: int) -> str:
    """A ``char`` array that the referee read as one number."""
    return number.to_bytes(24, "little").split(b"\0")[0].decode()


def test_operations_of_a_mount_are_those_of_its_own_statistics(tmp_path: Path) -> None:
    """20 files are written, read and removed, and 30 looked for in vain, on a mount of this machine's own server."""
    chosen = programs_here("nfs-operations")
    if not nfs.available():
        pytest.skip("this kernel has no NFS server, or no client of version 4")
    with nfs.mounted(tmp_path) as mount, loaded(shipped("nfs-operations"), programs=chosen) as program:
        before = nfs.operations(mount)
        for index in range(20):
            (mount / f"file{index}").write_bytes(os.urandom(5000))
        for index in range(20):
            handle = os.open(mount / f"file{index}", os.O_RDONLY | os.O_DIRECT)
            assert len(os.read(handle, 8192)) == 5000
            os.close(handle)
        for index in range(30):
            assert not (mount / f"absent{index}").exists()
        for index in range(20):
            (mount / f"file{index}").unlink()
        after = nfs.operations(mount)
        rows = {(text_of(key[0]), key[1]): row for key, row in program.rows("durations").items()}
        failed = Counter(
            {(text_of(key[0]), key[2]): row[""] for key, row in program.rows("errors").items() if key[1] == 4}
        )
        assert program.total("missed") == 0
    made = {name: after[name] - before[name] for name in after if after[name] > before[name]}
    # What belongs to the session and not to the mount is in its statistics only now and then.
    compared = {
        "READ",
        "READ_PLUS",
        "WRITE",
        "LOOKUP",
        "OPEN",
        "CLOSE",
        "REMOVE",
        "GETATTR",
        "ACCESS",
        "COMMIT",
        "SETATTR",
    }
    counted = {name: observed(rows, (name, 4)) for name, version in rows if version == 4}
    assert {name: counted.get(name) for name in made.keys() & compared} == {
        name: made[name] for name in made.keys() & compared
    }
    assert made["WRITE"] >= 20
    assert made.get("READ", 0) + made.get("READ_PLUS", 0) >= 20  # the latter where CONFIG_NFS_V4_2_READ_PLUS is set
    assert made["REMOVE"] == 20
    assert failed["LOOKUP", errno.ENOENT] + failed["OPEN", errno.ENOENT] >= 30
    assert all(0 < row["sum"] < 60e9 * observed({(0,): row}) for row in rows.values())
