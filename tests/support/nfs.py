"""An NFS mount of this machine's own server, without any daemon: what they would tell the kernel is told here.

The server is the kernel's (module nfsd), version 4 only. It wants a port mapper to be there, so a small one answers
yes to everything; and it asks for who is who and what is exported in caches that are filled beforehand.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_NFSD = Path("/proc/fs/nfsd")
_CACHES = Path("/proc/net/rpc")
_FOREVER = 2147483647
# include/uapi/linux/nfsd/export.h: insecure port, async, no subtree check, fsid
_FLAGS = 0x2 | 0x10 | 0x400 | 0x2000


def available() -> bool:
    """Whether this kernel has both ends, loading them if need be."""
    if not shutil.which("modprobe"):
        return False
    return not any(
        subprocess.run(["modprobe", module], check=False, capture_output=True).returncode
        for module in ("nfsd", "nfsv4")
    )


def _mount(source: str, target: Path, kind: str, data: str = "") -> None:
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), 0, data.encode()):
        raise OSError(ctypes.get_errno(), f"mount {kind}")


@contextmanager
def _port_mapper() -> Iterator[None]:
    """Answers each call (RFC 5531) with success and TRUE."""

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError, struct.error):
            while head := connection.recv(4, socket.MSG_WAITALL):
                call = connection.recv(struct.unpack(">I", head)[0] & 0x7FFFFFFF, socket.MSG_WAITALL)
                reply = call[:4] + struct.pack(">6I", 1, 0, 0, 0, 0, 1)
                connection.sendall(struct.pack(">I", 0x80000000 | len(reply)) + reply)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 111)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """Export a file system in memory and mount it by NFS; yields where."""
    exported, target = folder / "exported", folder / "mounted"
    exported.mkdir()
    target.mkdir()
    _mount("none", exported, "tmpfs")
    if not (_NFSD / "threads").exists():
        _mount("nfsd", _NFSD, "nfsd")
    (_CACHES / "auth.unix.ip/channel").write_text(f"nfsd 127.0.0.1 {_FOREVER} skep\n")
    (_CACHES / "nfsd.export/channel").write_text(f"skep {exported} {_FOREVER} {_FLAGS} 65534 65534 0\n")
    (_CACHES / "nfsd.fh/channel").write_text(f"skep 1 \\x00000000 {_FOREVER} {exported}\n")
    try:
        with _port_mapper():
            for version in ("-2", "-3"):
                with suppress(OSError):  # 7.2 has no version 2 any more
                    (_NFSD / "versions").write_text(version)
            (_NFSD / "nfsv4gracetime").write_text("10")
            (_NFSD / "portlist").write_text("tcp 2049")  # newer servers listen nowhere by themselves
            (_NFSD / "threads").write_text("4")
            with suppress(OSError):
                (_NFSD / "v4_end_grace").write_text("Y")
            _mount("127.0.0.1:/", target, "nfs4", "vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1")
            try:
                yield target
            finally:
                _libc.umount2(os.fsencode(target), 0)
                (_NFSD / "threads").write_text("0")
    finally:
        for name in ("nfsd.fh", "nfsd.export", "auth.unix.ip"):
            (_CACHES / name / "flush").write_text(str(_FOREVER))
        _libc.umount2(os.fsencode(exported), 2)


def operations(mount: Path) -> dict[str, int]:
    """Operations of a mount so far, as the kernel's own statistics of it have them."""
    text = Path("/proc/self/mountstats").read_text()
    section = text.partition(f" mounted on {mount} ")[2].partition("\ndevice ")[0]
    lines = section.partition("per-op statistics")[2].splitlines()
    return {name.strip(): int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest}
