"""What the other cases of the matrix take for granted about a kernel."""

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="kernel tests need root")


def test_kernel_describes_its_own_types() -> None:
    """CO-RE needs the kernel's BTF; the magic is little-endian here."""
    assert Path("/sys/kernel/btf/vmlinux").read_bytes()[:2] == b"\x9f\xeb"
