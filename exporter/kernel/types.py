"""The types (BTF) of a kernel that does not show its own: from a file, an archive or a directory of them.

Programs that read the kernel's structures are fitted to it by its types (CO-RE).
Kernels built without ``CONFIG_DEBUG_INFO_BTF`` show none; then a file made for
that very kernel serves, as BTFHub collects them. What may be given:

- a file with BTF, or a ``vmlinux`` with a ``.BTF`` section: taken for this kernel's;
- an archive (tar, compressed or not) of such files, or of such archives;
- a directory of either.

In archives and directories a file belongs to this kernel if it is called
``RELEASE.btf`` or ``RELEASE.btf.tar.xz``; of several, the one in BTFHub's place
``ID/VERSION_ID/MACHINE/`` (of ``os-release``) is taken.
"""

from __future__ import annotations

import io
import lzma
import mmap
import os
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from exporter.errors import KernelError

SIZE_LIMIT = 64 << 20
"""Bytes of types; those of a whole distribution kernel are 5 to 10 MiB."""
MEMBERS_LIMIT = 100_000
ARCHIVE_LIMIT = 16 << 30
"""Bytes of all members together; they are passed over, not kept."""
NESTED_LIMIT = 4
"""Archives that carry this kernel's name which are opened inside one."""
_MAGIC = b"\x9f\xeb"
_MACHINES = {"aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Host:
    """The kernel whose types are wanted.

    Attributes:
        release: As ``uname -r``.
        distribution: BTFHub's folders for it: ``ubuntu/20.04/x86_64``.
    """

    release: str
    distribution: str

    @classmethod
    def this(cls, os_release: str = "/etc/os-release") -> Host:
        """The running kernel, on the distribution that ``os-release`` names."""
        uname = os.uname()
        values: dict[str, str] = {}
        try:
            for line in Path(os_release).read_text("utf-8", "replace").splitlines():
                name, _, value = line.partition("=")
                values[name] = value.strip("\"'")
        except OSError:
            pass
        machine = _MACHINES.get(uname.machine, uname.machine)
        return cls(uname.release, f"{values.get('ID', '')}/{values.get('VERSION_ID', '')}/{machine}")

    def closeness(self, name: str) -> int:
        """How well a file's name fits: 0 not at all, 1 by its release, 2 in the distribution's place too."""
        path = PurePosixPath(name)
        base = path.name
        for ending in (".xz", ".gz", ".bz2", ".tar", ".btf"):
            base = base.removesuffix(ending)
        if base != self.release or base == path.name:
            return 0
        return 2 if f"/{path.parent}".endswith(f"/{self.distribution}") else 1


def find_types(place: str, host: Host) -> bytes:
    """The kernel's types at a path.

    Raises:
        KernelError: code ``kernel.btf``: there are none for this kernel, or what is there is damaged.
    """
    path = Path(place)
    try:
        if path.is_dir():
            return _from_directory(path, host)
        with path.open("rb") as file:
            return _from_file(file, place, host)
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        raise _error(f"{place!r} cannot be read: {_said(error)}; correct the path, or get the file again") from error


def types_in(archive: bytes, subject: str, host: Host) -> bytes:
    """The kernel's types in the bytes of a file or archive that an image carries.

    Raises:
        KernelError: as :func:`find_types`.
    """
    try:
        return _from_file(io.BytesIO(archive), subject, host)
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        raise _error(f"{subject!r} cannot be read: {_said(error)}; rebuild the image") from error


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # tarfile tells every compression that it tried, a line each.
    return "it is neither types nor an archive" if "\n" in str(error) else str(error) or "it is cut short"


def _error(text: str) -> KernelError:
    return KernelError(f"btf: {text}", code="kernel.btf")


def _none(place: str, host: Host) -> KernelError:
    return _error(
        f"{place!r} has no types of kernel {host.release}; "
        f"expected {host.distribution}/{host.release}.btf or .btf.tar.xz"
    )


def _from_directory(path: Path, host: Host) -> bytes:
    exact = [path / host.distribution / f"{host.release}{ending}" for ending in (".btf", ".btf.tar.xz")]
    found = [one for one in exact if one.is_file()] or _best(_files(path), host)
    if not found:
        raise _none(str(path), host)
    with Path(found[0]).open("rb") as file:
        return _from_file(file, str(found[0]), host)


def _files(path: Path) -> Iterator[Path]:
    for count, (directory, _, names) in enumerate(os.walk(path)):
        if count > MEMBERS_LIMIT:
            return
        yield from (Path(directory, name) for name in names)


def _best(files: Iterable[Path], host: Host) -> list[Path]:
    fitting = sorted((-host.closeness(str(file)), str(file)) for file in files)
    return [Path(name) for closeness, name in fitting[:1] if closeness < 0]


def _from_file(file: IO[bytes], place: str, host: Host) -> bytes:
    head = file.read(4)
    file.seek(0)
    if head[:2] == _MAGIC:
        return _checked(_limited(file, place), place)
    if head == b"\x7fELF":
        return _checked(_section(file, place), place)
    return _from_archive(file, place, host)


def _limited(file: IO[bytes], place: str) -> bytes:
    data = file.read(SIZE_LIMIT + 1)
    if len(data) > SIZE_LIMIT:
        raise _error(f"{place!r} has more than {SIZE_LIMIT >> 20} MiB; give the types of one kernel")
    return data


def _from_archive(file: IO[bytes], place: str, host: Host) -> bytes:
    """The member that is this kernel's; or of an archive with one member only, that one."""
    best: tuple[int, bytes, str] = (0, b"", "")
    only: tuple[bytes, str] | None = None
    nested = total = 0
    # As a stream: members are read where they are met, and nothing is unpacked.
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        for count, member in enumerate(archive):
            total += member.size
            if count > MEMBERS_LIMIT or total > ARCHIVE_LIMIT:
                raise _error(f"{place!r} has {count} members of {total} bytes and more; give a smaller archive")
            if not member.isfile():
                continue
            closeness = host.closeness(member.name)
            sole = count == 0 and member.name.endswith(".btf")
            only = None if not sole else only
            if closeness <= best[0] and not sole:
                continue
            nested += closeness > 0
            content = archive.extractfile(member)
            if content is None or member.size > SIZE_LIMIT or nested > NESTED_LIMIT:
                text = f"{place!r}: member {member.name!r} has {member.size} bytes; at most {SIZE_LIMIT >> 20} MiB"
                raise _error(text)
            data = _limited(content, place)
            if closeness > best[0]:
                best = (closeness, data, member.name)
            elif sole:
                only = (data, member.name)
    if best[0]:
        return _unpacked(best[1], f"{place}/{best[2]}", host)
    # A file of one kernel that somebody renamed still is that kernel's: its path was given for this one.
    if only is not None and "/" not in only[1].removeprefix("./"):
        return _checked(only[0], f"{place}/{only[1]}")
    raise _none(place, host)


def _unpacked(data: bytes, place: str, host: Host) -> bytes:
    return _checked(data, place) if data[:2] == _MAGIC else _from_archive(io.BytesIO(data), place, host)


def _checked(data: bytes, place: str) -> bytes:
    """Types whose header speaks of what is there; libbpf looks at the rest, in the loader."""
    if len(data) >= 24 and data[:3] == _MAGIC + b"\1":
        header, types, types_size, strings, strings_size = struct.unpack_from("<IIIII", data, 4)
        if header + max(types + types_size, strings + strings_size) <= len(data) and types_size:
            return data
    raise _error(f"{place!r} is no BTF of a kernel, or is cut short; get the file again")


def _section(file: IO[bytes], place: str) -> bytes:
    """The ``.BTF`` section of a vmlinux, which may have a gigabyte of other things."""
    try:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as image:
            table, size, count, names = (
                struct.unpack_from(form, image, at)[0] for form, at in (("<Q", 40), ("<H", 58), ("<H", 60), ("<H", 62))
            )
            base = struct.unpack_from("<Q", image, table + names * size + 24)[0]
            for index in range(count):
                header = table + index * size
                name = base + struct.unpack_from("<I", image, header)[0]
                if image[name : name + 5] == b".BTF\0":
                    offset, length = struct.unpack_from("<QQ", image, header + 24)
                    if length <= SIZE_LIMIT:
                        return bytes(image[offset : offset + length])
    except (struct.error, io.UnsupportedOperation, IndexError, ValueError) as error:
        raise _error(f"{place!r} is a damaged ELF file; get it again") from error
    raise _error(f"{place!r} has no .BTF section; give a vmlinux that was built with types, or a file made by pahole")
