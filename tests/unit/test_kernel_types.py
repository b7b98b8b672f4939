"""The types of a kernel that does not show its own, from wherever an operator keeps them."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from exporter.errors import KernelError
from exporter.kernel import Host, find_types, types_in
from tests.support.clang import compile_bpf
from tests.support.elfwriter import BtfWriter

HOST = Host("5.4.0-91-generic", "ubuntu/20.04/x86_64")


def types(name: str) -> bytes:
    """A little BTF that can be told from another."""
    writer = BtfWriter()
    writer.int(name, 4)
    return writer.build()


def tar(members: dict[str, bytes], mode: str = "w:xz") -> bytes:
    """An archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def written(path: Path, data: bytes) -> str:
    """Write a file and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def test_file_with_types_is_taken_as_it_is(tmp_path: Path) -> None:
    """Whoever names one file means it."""
    assert find_types(written(tmp_path / "any.name", types("a")), HOST) == types("a")


def test_vmlinux_gives_its_types_section(tmp_path: Path) -> None:
    """Any ELF file with one."""
    path = written(tmp_path / "vmlinux", compile_bpf("MAP(counter_x, HASH, 1, u32, u64);"))
    assert find_types(path, HOST)[:2] == b"\x9f\xeb"


@pytest.mark.parametrize("mode", ["w", "w:xz", "w:gz", "w:bz2"])
def test_archive_of_one_kernel_is_opened(tmp_path: Path, mode: str) -> None:
    """As BTFHub has them, in any compression, and also under another name."""
    data = tar({f"{HOST.release}.btf": types("a")}, mode)
    assert find_types(written(tmp_path / "x.tar", data), HOST) == types("a")
    data = tar({"./renamed.btf": types("b")}, mode)
    assert find_types(written(tmp_path / "x.tar", data), HOST) == types("b")


@pytest.mark.parametrize("nested", [False, True])
def test_archive_of_many_kernels_gives_the_one_of_this_host(tmp_path: Path, nested: bool) -> None:
    """Of several with its release the one in its distribution's place."""
    members = {}
    for distribution in ("debian/11/x86_64", "ubuntu/20.04/arm64", "ubuntu/20.04/x86_64", "zorin/1/x86_64"):
        for release in ("5.4.0-90-generic", HOST.release):
            data = types(f"{distribution}/{release}")
            name = f"./hub/{distribution}/{release}.btf"
            members |= {f"{name}.tar.xz": tar({f"{release}.btf": data})} if nested else {name: data}
    expected = types(f"{HOST.distribution}/{HOST.release}")
    assert find_types(written(tmp_path / "hub.tar.xz", tar(members)), HOST) == expected
    assert types_in(tar(members), "image x", HOST) == expected


@pytest.mark.parametrize("ending", [".btf", ".btf.tar.xz"])
@pytest.mark.parametrize("place", [HOST.distribution, "", "some/where"])
def test_directory_gives_the_file_of_this_host(tmp_path: Path, ending: str, place: str) -> None:
    """In BTFHub's shape, flat, or however an operator keeps them."""
    other = tar({"5.4.0-1.btf": types("b")})
    written(tmp_path / "ubuntu/20.04/x86_64/5.4.0-1.btf.tar.xz", other)
    data = types("a") if ending == ".btf" else tar({f"{HOST.release}.btf": types("a")})
    written(tmp_path / place / f"{HOST.release}{ending}", data)
    assert find_types(str(tmp_path), HOST) == types("a")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot be read"),
        (b"text", "cannot be read"),
        (b"\xfd7zXZ\0" + bytes(30), "cannot be read"),
        (types("a")[:-1], "is no BTF of a kernel, or is cut short"),
        (b"\x9f\xeb\x02" + types("a")[3:], "is no BTF of a kernel"),
        (b"\x7fELF" + bytes(100), "has no .BTF section"),
        (b"\x7fELF", "is a damaged ELF file"),
        (tar({f"{HOST.release}.btf": b"text"}), "cannot be read"),
        (tar({f"{HOST.release}.btf": types("a")[:20]}), "is no BTF of a kernel"),
        (tar({"5.4.0-1.btf": types("a"), "5.4.0-2.btf": types("b")}), "has no types of kernel 5.4.0-91-generic"),
        (tar({"ubuntu/20.04/x86_64/5.4.0-1.btf": types("a")}), "expected ubuntu/20.04/x86_64/5.4.0-91-generic.btf"),
        (tar({}), "has no types of kernel"),
        (tar({f"{HOST.release}.btf": types("a")})[:100], "cannot be read"),
    ],
)
def test_file_without_types_of_this_kernel_is_said_to_be_one(tmp_path: Path, data: bytes, words: str) -> None:
    """One line with the path, whatever the bytes."""
    with pytest.raises(KernelError) as raised:
        find_types(written(tmp_path / "given", data), HOST)
    assert raised.value.code == "kernel.btf"
    assert words in str(raised.value) and "given" in str(raised.value) and "\n" not in str(raised.value)


def test_path_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    """And an empty directory has nothing for this kernel."""
    with pytest.raises(KernelError, match="No such file or directory; correct the path"):
        find_types(str(tmp_path / "none"), HOST)
    with pytest.raises(KernelError, match=r"has no types of kernel 5\.4\.0-91-generic"):
        find_types(str(tmp_path), HOST)


def test_host_is_told_by_its_release_and_distribution(tmp_path: Path) -> None:
    """BTFHub calls aarch64 arm64; a machine without os-release still has a release."""
    path = written(tmp_path / "os-release", b'NAME="Debian"\nID=debian\nVERSION_ID="12"\n')
    machine = {"aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    assert Host.this(path) == Host(os.uname().release, f"debian/12/{machine}")
    assert Host.this(str(tmp_path / "none")) == Host(os.uname().release, f"//{machine}")
