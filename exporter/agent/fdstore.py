"""Programs that go on counting while the agent is away: their descriptors lie in systemd's store.

An image's links, programs and maps are stored under names ``bpf.<key>.<role>``, each
role as :mod:`exporter.kernel.adopt` calls it, and beside them under ``bpf.<key>.view`` a
sealed file in memory that says what they are: image, digest of the object, identity of
the plan, when counting began, and the kernel's view. The key is new for every load, so
that two versions of one image may lie there during a switch.

What comes back at a start is taken only by an image whose object and plan are the very
same; all else is let go of. Rings go on at the position the kernel keeps for their
consumer, and counters of maps at what the maps hold, since the time stored with them.
Values that were carried over an upgrade are in no map: after a restart that image's
series begin anew, with the start of the version that runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from exporter import kernel
from exporter.errors import KernelError, SkepError
from exporter.kernel.adopt import adopt, descriptors_of, view_of
from exporter.kernel.collection import let_go

from . import log
from .systemd import Notifier

PREFIX = "bpf."
VIEW = "view"
VERSION = 1

_VIEW_LIMIT_BYTES = 4 << 20
_BARRIER_S = 5.0
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes two loads of an image the same.

    Attributes:
        object: Digest of the object's bytes.
        plan: Digest of what is measured and how it is loaded.
    """

    image: str
    object: str
    plan: str


@dataclass(slots=True)
class _Kept:
    """One load of an image that came back."""

    key: str
    identity: Identity
    start_ns: int
    view: Any
    descriptors: dict[str, list[int]] = field(default_factory=dict)


class DescriptorStore:
    """What of ours lies in systemd's store.

    Args:
        notifier: Speaks to systemd.
        passed: Descriptors this process was started with; those of other names are left alone.
    """

    def __init__(self, notifier: Notifier, passed: Sequence[tuple[str, int]] = ()) -> None:
        self._notifier = notifier
        self._names: dict[str, dict[str, int]] = {}
        self._kept: list[_Kept] = []
        self._lock = threading.RLock()
        self._take_in(passed)

    @property
    def on(self) -> bool:
        """Whether programs are left to systemd when this process ends."""
        return self._notifier.store_limit > 0

    @property
    def used(self) -> int:
        """Descriptors of ours in the store."""
        with self._lock:
            return sum(sum(names.values()) for names in self._names.values())

    # ---- what came back ----

    def _take_in(self, passed: Sequence[tuple[str, int]]) -> None:
        by_key: dict[str, dict[str, list[int]]] = {}
        for name, fd in passed:
            if name.startswith(PREFIX):
                key, _, role = name.removeprefix(PREFIX).partition(".")
                by_key.setdefault(key, {}).setdefault(role, []).append(fd)
        for key, roles in by_key.items():
            self._names[key] = {role: len(fds) for role, fds in roles.items()}
            views = roles.pop(VIEW, [])
            try:
                if len(views) != 1:
                    raise ValueError(f"{len(views)} descriptions, expected one")
                self._kept.append(_read_view(key, views[0], roles))
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warn("kept descriptors cannot be understood and are let go of", key=key, reason=repr(error))
                let_go([fd for fds in roles.values() for fd in fds])
                self._forget(key)
            finally:
                _close(views)

    def images(self) -> set[str]:
        """Names of the images whose programs came back and were not taken yet."""
        with self._lock:
            return {kept.identity.image for kept in self._kept}

    def take(self, identity: Identity) -> tuple[str, kernel.Collection, int] | None:
        """Give what was kept of an image, if it is the same; whatever else was kept of it is let go of.

        Returns:
            Its key, the collection, and when it began to count (``CLOCK_REALTIME``, ns).
        """
        with self._lock:
            mine = [kept for kept in self._kept if kept.identity.image == identity.image]
            self._kept = [kept for kept in self._kept if kept not in mine]
        taken = None
        for kept in sorted(mine, key=lambda kept: -kept.start_ns):
            reason = "it is another object" if kept.identity.object != identity.object else ""
            reason = reason or ("it is planned otherwise" if kept.identity.plan != identity.plan else "")
            reason = reason or ("a newer one was kept too" if taken is not None else "")
            if not reason:
                try:
                    collection = adopt(identity.image, kept.view, kept.descriptors)
                    taken = kept.key, collection, kept.start_ns
                    continue
                except (KernelError, KeyError, TypeError) as error:
                    reason = str(error)
            log.info("kept programs are let go of", image=identity.image, object=kept.identity.object, reason=reason)
            self._let_go(kept)
        return taken

    def keep_only(self, images: set[str]) -> None:
        """Let go of what was kept of other images than these."""
        with self._lock:
            others = [kept for kept in self._kept if kept.identity.image not in images]
            self._kept = [kept for kept in self._kept if kept.identity.image in images]
        for kept in others:
            identity = kept.identity
            log.info(
                "kept programs are let go of",
                image=identity.image,
                object=identity.object,
                reason="it is not configured",
            )
            self._let_go(kept)

    def _let_go(self, kept: _Kept) -> None:
        let_go([fd for fds in kept.descriptors.values() for fd in fds])
        self._forget(kept.key)

    # ---- what is put there ----

    def put(self, identity: Identity, collection: kernel.Collection, start_ns: int) -> str:
        """Store an image's descriptors.

        Returns:
            The key to :meth:`drop` them by; empty if there is no store.

        Raises:
            SkepError: they could not be stored, or not all of them; then none is.
        """
        if not self.on:
            return ""
        roles = {role: fds for role, fds in descriptors_of(collection).items() if fds}
        key = secrets.token_hex(4)
        view = _write_view(
            {
                "version": VERSION,
                "image": identity.image,
                "object": identity.object,
                "plan": identity.plan,
                "start_ns": start_ns,
                "view": view_of(collection),
            }
        )
        try:
            self._reserve(identity.image, key, {VIEW: 1} | {role: len(fds) for role, fds in roles.items()})
            for role, fds in roles.items():
                self._notifier.store(_name(key, role), fds)
            # Last: without it the others say nothing and are let go of.
            self._notifier.store(_name(key, VIEW), [view])
        except SkepError:
            self._forget(key)
            raise
        finally:
            os.close(view)
        return key

    def _reserve(self, image: str, key: str, names: dict[str, int]) -> None:
        """Note what will be stored. systemd closes what is beyond its limit and does not say so."""
        with self._lock:
            count, used, limit = sum(names.values()), self.used, self._notifier.store_limit
            if used + count > limit:
                raise SkepError(
                    f"image {image!r}: {count} descriptors do not fit, {used} of {limit} are in use; "
                    "raise FileDescriptorStoreMax= of the unit",
                    code="systemd",
                )
            self._names[key] = names

    def drop(self, key: str) -> None:
        """Have systemd let go of an image's descriptors, and wait until it did: a link it holds is attached."""
        if key:
            self._forget(key)
            if not self._notifier.barrier(_BARRIER_S):
                log.warn("systemd does not say that it let go of descriptors; their programs may run on", key=key)

    def _forget(self, key: str) -> None:
        with self._lock:
            names = self._names.pop(key, {})
        for role in names:
            self._notifier.remove(_name(key, role))


def _name(key: str, role: str) -> str:
    return f"{PREFIX}{key}.{role}"


def _write_view(document: dict[str, Any]) -> int:
    """A document as a file in memory that nobody can change any more."""
    fd = os.memfd_create("skep-view", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(json.dumps(document, separators=(",", ":")).encode())
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read_view(key: str, fd: int, descriptors: dict[str, list[int]]) -> _Kept:
    """What a description says.

    Raises:
        OSError, ValueError, KeyError, TypeError: it is none of ours.
    """
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise ValueError("the description is not sealed")
    document = json.loads(os.pread(fd, _VIEW_LIMIT_BYTES, 0))
    if document["version"] != VERSION:
        raise ValueError(f"the description is of version {document['version']!r}, expected {VERSION}")
    identity = Identity(document["image"], document["object"], document["plan"])
    return _Kept(key, identity, int(document["start_ns"]), document["view"], descriptors)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
