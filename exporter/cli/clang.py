"""Turns one C file into BPF objects with clang; knows nothing of images and metrics.

clang runs in the source's folder with the paths of this machine mapped away, and
llvm-strip removes DWARF and keeps BTF, so that equal sources and an equal clang
give equal bytes anywhere.

Which architectures one source is good for is asked of clang's own intermediate
code, before optimisation: a function that takes the address of a member of
``struct pt_regs`` (all ``PT_REGS_*`` macros do, and ``BPF_KPROBE`` with
arguments) reads registers, and those differ. CO-RE flavours such as
``pt_regs___arm64`` are their author's own care and do not count.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from exporter.errors import SkepError

TARGET_MACROS = {"amd64": "x86", "arm64": "arm64"}
"""Architectures that are built for, in OCI's spelling, and libbpf's ``__TARGET_ARCH_`` names for them."""

CLANG_AT_LEAST = 14  # first to write declaration tags on typedefs and members to BTF
_TIMEOUT_S = 300
_KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")

_REMEDIES = {
    "bpf/": "install libbpf's headers (Debian: libbpf-dev)",
    "linux/": "install the kernel's user headers (Debian: linux-libc-dev)",
    "asm/": "install the kernel's user headers (Debian: linux-libc-dev)",
    "vmlinux.h": (
        "give --vmlinux=ARCH:FILE, made by 'bpftool btf dump file /sys/kernel/btf/vmlinux format c', "
        "or install bpftool so that skep makes it from this kernel"
    ),
}
# BumbleBee gives its sources this header; with it they compile unchanged. An IPv6 address is a u32 there.
_SOLO_TYPES = """\
#ifndef SKEP_BPF_H
typedef unsigned int ipv4_addr;
typedef unsigned int ipv6_addr;
typedef unsigned long long duration;
#endif
"""
_MISSING_HEADER = re.compile(r"fatal error: '([^']+)' file not found")
_ERROR_LINE = re.compile(r"^(?:.*?: )?(?:fatal )?error: .*$", re.MULTILINE)
_FUNCTION = re.compile(r'^define .*?@"?([\w.$]+)"?\(')
_REGISTER_ACCESS = re.compile(
    r"(?:getelementptr|preserve\.struct\.access\.index).*%struct\.(?:user_)?pt_regs(?:\.\d+)?(?![\w.])"
)


class CompileError(SkepError):
    """clang refused the source.

    Attributes:
        diagnostics: What clang said, for the person to read as it is.
    """

    def __init__(self, message: str, diagnostics: str) -> None:
        super().__init__(message, code="build.compile")
        self.diagnostics = diagnostics


@dataclass(frozen=True, slots=True)
class Source:
    """A C file and how it is to be compiled.

    Attributes:
        include_dirs: Searched before the system's, ``skep.bpf.h``'s folder among them.
        vmlinux: ``vmlinux.h`` by architecture.
    """

    path: Path
    include_dirs: tuple[Path, ...] = ()
    cflags: tuple[str, ...] = ()
    mcpu: str = "v2"
    vmlinux: Mapping[str, Path] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """How messages begin."""
        return f"source {self.path.name!r}"


class Clang:
    """One installed clang.

    Args:
        command: Name or path; default ``$CLANG``, then ``clang``.

    Raises:
        SkepError: ``build.tool``: it, or its llvm-strip, is not here or too old.
    """

    def __init__(self, command: str = "") -> None:
        self.path = _tool(command or os.environ.get("CLANG", "clang"), "clang", "clang 14 or newer (Debian: clang)")
        self.version = self._run(["--version"]).stdout.splitlines()[0]
        major = re.search(r"version (\d+)", self.version)
        if major is None or int(major[1]) < CLANG_AT_LEAST:
            raise SkepError(
                f"clang is {self.version!r}; building needs {CLANG_AT_LEAST} or newer, for declaration tags",
                code="build.tool",
            )
        suffix = re.search(r"-\d+$", Path(self.path).name)
        names = (f"llvm-strip{suffix[0]}",) if suffix else ("llvm-strip", f"llvm-strip-{major[1]}")
        found = next((path for name in names if (path := shutil.which(name))), names[0])
        self._strip = _tool(found, "llvm-strip", "llvm (Debian: llvm)")
        self._system_includes = self._find_system_includes()

    def compile(self, source: Source, architecture: str, *, warnings: bool = True) -> bytes:
        """Compile to a stripped object.

        Args:
            source: What to compile.
            architecture: One of :data:`TARGET_MACROS`.
            warnings: Whether to show clang's; one showing is enough for several architectures.

        Raises:
            CompileError: clang said no; the message has the remedy where we know one.
        """
        with tempfile.TemporaryDirectory(prefix="skep-build-") as work:
            target = Path(work) / "program.o"
            self._clang(source, architecture, Path(work), ["-c", "-o", str(target), *([] if warnings else ["-w"])])
            done = subprocess.run(
                [self._strip, "-g", str(target)], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
            )
            if done.returncode:
                raise SkepError(f"{source.subject}: llvm-strip failed: {done.stderr.strip()}", code="build.tool")
            return target.read_bytes()

    def register_readers(self, source: Source, architecture: str) -> tuple[str, ...]:
        """Name the functions that read processor registers."""
        with tempfile.TemporaryDirectory(prefix="skep-build-") as work:
            target = Path(work) / "program.ll"
            flags = ["-w", "-S", "-emit-llvm", "-Xclang", "-disable-llvm-passes", "-o", str(target)]
            self._clang(source, architecture, Path(work), flags)
            return register_readers(target.read_text(errors="replace"))

    def _clang(self, source: Source, architecture: str, work: Path, flags: Sequence[str]) -> None:
        folder = source.path.resolve().parent
        vmlinux = source.vmlinux.get(architecture)
        if vmlinux:
            (work / "vmlinux.h").symlink_to(vmlinux.resolve())
        (work / "solo_types.h").write_text(_SOLO_TYPES)
        maps = {folder: ".", **{path.resolve(): path.name for path in source.include_dirs}}
        command = [
            *("-O2", "-g", "-target", "bpf", f"-mcpu={source.mcpu}", f"-D__TARGET_ARCH_{TARGET_MACROS[architecture]}"),
            *(f"-ffile-prefix-map={path}={name}" for path, name in maps.items()),
            "-fdebug-compilation-dir=.",
            *(f"-I{path.resolve()}" for path in source.include_dirs),
            *("-isystem", str(work)),
            *(word for path in self._system_includes for word in ("-idirafter", path)),
            *source.cflags,
            *flags,
            source.path.name,
        ]
        done = self._run(command, cwd=folder)
        # clang was given the bare name; its reader knows the file by the path that was typed.
        name = re.escape(source.path.name)
        said = re.sub(
            rf"^((?:In file included from )?){name}(?=:\d)",
            lambda found: f"{found[1]}{source.path}",
            done.stderr,
            flags=re.MULTILINE,
        )
        if done.returncode:
            raise _compile_error(source, said)
        if said.strip():
            sys.stderr.write(said)

    def _run(self, arguments: Sequence[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self.path, *arguments],
                cwd=cwd,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                check=False,
                timeout=_TIMEOUT_S,
                env={**os.environ, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired as error:
            raise SkepError(f"clang did not end within {_TIMEOUT_S} s; gave up", code="build.tool") from error

    def _find_system_includes(self) -> tuple[str, ...]:
        """The C headers of this machine, which clang does not search for the BPF target (asm/types.h)."""
        said = self._run(["-v", "-E", "-x", "c", os.devnull]).stderr
        _, _, listed = said.partition("#include <...> search starts here:")
        folders = [line.strip() for line in listed.partition("End of search list.")[0].splitlines() if line.strip()]
        own = self._run(["-print-resource-dir"]).stdout.strip()
        return tuple(folder for folder in folders if not folder.startswith(own))


def _tool(command: str, name: str, install: str) -> str:
    path = shutil.which(command)
    if path is None:
        raise SkepError(f"{name} {command!r} is not on PATH; install {install}", code="build.tool")
    return path


def _compile_error(source: Source, said: str) -> CompileError:
    missing = _MISSING_HEADER.search(said)
    if missing:
        header = missing[1]
        known = (text for start, text in _REMEDIES.items() if header.startswith(start))
        remedy = next(known, "give its folder with -I")
        return CompileError(f"{source.subject} includes {header!r}, which is not here; {remedy}", said)
    if re.search(r"Cannot select:.*Atomic|XADD return value|unsupported atomic", said) and source.mcpu in ("v1", "v2"):
        return CompileError(
            f"{source.subject} uses the value of an atomic operation, which -mcpu={source.mcpu} does not have; "
            "do not use the value, or build with --mcpu=v3 for kernels from 5.12",
            said,
        )
    count = len(_ERROR_LINE.findall(said))
    return CompileError(f"{source.subject} does not compile; clang gave {count or 'no'} error{'s'[: count != 1]}", said)


def first_error(error: CompileError) -> str:
    """Clang's first error line, or our own message."""
    found = _ERROR_LINE.search(error.diagnostics)
    return found[0] if found else str(error)


def register_readers(llvm_ir: str) -> tuple[str, ...]:
    """Name the functions in unoptimised LLVM IR that take the address of a member of ``struct pt_regs``."""
    found: dict[str, None] = {}
    function = ""
    for line in llvm_ir.splitlines():
        if started := _FUNCTION.match(line):
            function = started[1]
        elif line == "}":
            function = ""
        elif function and _REGISTER_ACCESS.search(line):
            # BPF_KPROBE(name) puts the body into ____name and reads in both.
            found[function.removeprefix("____")] = None
    return tuple(found)


# BPF_STX | BPF_ATOMIC on 4 and 8 bytes; an immediate of 0 is BPF_ADD without BPF_FETCH, which is all that
# kernels before v5.12 have (Linux commit 5ffa25502b5a, "bpf: Add instructions for atomic_[cmp]xchg").
_ATOMIC_OPCODES = (0xC3, 0xDB)
_LOAD_IMMEDIATE_64 = 0x18
_INSTRUCTION = struct.Struct("<BBhi")


def fetching_atomics(content: bytes) -> tuple[str, ...]:
    """Name the functions of an object with atomic operations that kernels before 5.12 refuse.

    Raises:
        ObjectError: it is no BPF object.
    """
    from exporter.bpf.elf import read_elf

    elf = read_elf(content)
    found: dict[str, None] = {}
    for section in elf.sections:
        if not section.executable:
            continue
        code = elf.data(section)
        offset = 0
        while offset + 8 <= len(code):
            opcode, _, _, immediate = _INSTRUCTION.unpack_from(code, offset)
            if opcode in _ATOMIC_OPCODES and immediate:
                holder = next(
                    (
                        symbol.name
                        for symbol in elf.symbols
                        if symbol.section == section.index and symbol.offset <= offset < symbol.offset + symbol.size
                    ),
                    section.name,
                )
                found[holder] = None
            offset += 16 if opcode == _LOAD_IMMEDIATE_64 else 8
    return tuple(found)


def dump_vmlinux(target: Path) -> bool:
    """Write this kernel's ``vmlinux.h`` with bpftool; False where that cannot be done."""
    bpftool = shutil.which("bpftool") or shutil.which("bpftool", path="/usr/sbin:/sbin")
    if bpftool is None or not _KERNEL_BTF.exists():
        return False
    done = subprocess.run(
        [bpftool, "btf", "dump", "file", str(_KERNEL_BTF), "format", "c"],
        capture_output=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    if done.returncode:
        return False
    target.write_bytes(done.stdout)
    return True
