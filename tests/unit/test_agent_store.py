"""What of ours lies in the service manager's store: how it gets there, and what comes back of it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.agent.fdstore import DescriptorStore, Identity
from exporter.agent.systemd import Notifier, passed_descriptors
from exporter.errors import SkepError
from tests.support.systemd import ServiceManager

IDENTITY = Identity("dns", "sha256:00", "11")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    """A service manager."""
    with ServiceManager(tmp_path / "notify", limit=600) as made:
        yield made


def open_files(count: int) -> list[int]:
    """So many different open files."""
    return [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(count)]


def close(descriptors: list[int]) -> None:
    """Close them."""
    for descriptor in descriptors:
        os.close(descriptor)


def is_open(descriptor: int) -> bool:
    """Whether it is."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def view(**changes: object) -> int:
    """A description of nothing, sealed, with changes."""
    document = {"version": 1, "image": "dns", "object": "sha256:00", "plan": "11", "start_ns": 5,
                "view": {"maps": [], "programs": [], "enums": {}}}  # fmt: skip
    fd = os.memfd_create("view", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, json.dumps(document | changes).encode())
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return fd


def test_many_descriptors_go_in_messages_the_kernel_takes(manager: ServiceManager) -> None:
    """At most 253 in one; all are kept under the name, none is watched."""
    notifier = Notifier(manager.environment)
    files = open_files(600)
    notifier.store("bpf.0.l0", files)
    assert notifier.barrier(5)
    close(files)
    assert manager.stored == ["bpf.0.l0"] * 600
    assert (manager.heard("FDSTORE=1"), manager.heard("FDPOLL=0"), manager.watched) == (3, 3, [])
    notifier.remove("bpf.0.l0")
    assert notifier.barrier(5)
    assert manager.stored == []


def test_barrier_ends_when_nobody_answers(tmp_path: Path) -> None:
    """A manager that hangs costs the time that was allowed, one that is gone costs nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as silent:
        silent.bind(str(tmp_path / "silent"))
        began_s = time.monotonic()
        assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "silent")}).barrier(0.2)
        assert 0.2 <= time.monotonic() - began_s < 2
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "nothing")}).barrier(5)
    assert Notifier({}).barrier(5)


def test_store_that_cannot_be_told_is_an_error(tmp_path: Path) -> None:
    """Whoever stores must know what is kept."""
    files = open_files(1)
    with pytest.raises(SkepError, match="systemd: storing 1 descriptors: No such file or directory; see NotifyAccess="):
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "nothing")}).store("a", files)
    close(files)


@pytest.mark.parametrize(
    ("environment", "limit"),
    [
        ({}, 0),
        ({"FDSTORE": "9"}, 0),
        ({"NOTIFY_SOCKET": "/a", "FDSTORE": "9"}, 9),
        ({"NOTIFY_SOCKET": "/a", "FDSTORE": "x"}, 0),
        ({"NOTIFY_SOCKET": "/a", "FDSTORE": "-1"}, 0),
        ({"NOTIFY_SOCKET": "/a"}, 0),
    ],
)
def test_there_is_a_store_where_the_manager_says_so(environment: dict[str, str], limit: int) -> None:
    """Without a manager to talk to there is none."""
    assert Notifier(environment).store_limit == limit


def test_passed_descriptors_are_taken_once_and_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment forgets them, and no child inherits them."""
    files = sorted(open_files(3))
    monkeypatch.setattr("exporter.agent.systemd.FIRST_DESCRIPTOR", files[0])
    for file in files:
        os.set_inheritable(file, True)
    count = files[2] - files[0] + 1
    names = ["a"] * count
    names[files[1] - files[0]] = "bpf.0.m0"
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": ":".join(names)}
    passed = passed_descriptors(environment)
    assert {("a", files[0]), ("bpf.0.m0", files[1]), ("a", files[2])} <= set(passed)
    assert not any(os.get_inheritable(file) for file in files)
    assert (environment, passed_descriptors(environment)) == ({}, [])
    close(files)


@pytest.mark.parametrize("environment", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "9"}, {"LISTEN_FDS": "9"}])
def test_descriptors_of_another_process_are_not_ours(environment: dict[str, str]) -> None:
    """LISTEN_PID says whose they are."""
    assert passed_descriptors(environment) == []


@pytest.mark.parametrize(
    "passed",
    [
        pytest.param(list, id="no description"),
        pytest.param(lambda: open_files(1), id="not sealed"),
        pytest.param(lambda: [view(), view()], id="two descriptions"),
        pytest.param(lambda: [view(version=2)], id="another version"),
        pytest.param(lambda: [view(object=None, start_ns="x")], id="wrong types"),
        pytest.param(lambda: [os.pipe()[0]], id="no file"),
    ],
)
def test_what_is_not_understood_is_let_go_of(manager: ServiceManager, passed: object) -> None:
    """Closed here and removed there; nothing of it is taken."""
    files, views = open_files(2), passed()  # type: ignore[operator]
    named = [("bpf.0.m0", files[0]), ("bpf.0.l0", files[1]), *(("bpf.0.view", fd) for fd in views)]
    notifier = Notifier(manager.environment)
    for name, fd in named:
        notifier.store(name, [fd])
    store = DescriptorStore(notifier, named)
    assert notifier.barrier(5)
    assert (store.images(), store.used, manager.stored) == (set(), 0, [])
    assert not any(is_open(fd) for _, fd in named)


@pytest.mark.parametrize(
    ("changes", "identity"),
    [
        ({"object": "sha256:ff"}, IDENTITY),
        ({"plan": "22"}, IDENTITY),
        ({"view": {"maps": [], "programs": [], "enums": {}}}, IDENTITY),  # says nothing of the map that is there
        ({"view": {"maps": [{"name": "m", "type": 1, "key_size": 4, "value_size": 8, "max_entries": 1, "id": 1}],
                   "programs": [], "enums": {}}}, IDENTITY),
        ({"view": {"maps": 5}}, IDENTITY),
    ],
)  # fmt: skip
def test_what_is_not_the_same_is_let_go_of(
    manager: ServiceManager, changes: dict[str, object], identity: Identity
) -> None:
    """Another object, another plan, or descriptors that are not what the description says."""
    notifier = Notifier(manager.environment)
    named = [("bpf.0.m0", open_files(1)[0]), ("bpf.0.view", view(**changes))]
    for name, fd in named:
        notifier.store(name, [fd])
    store = DescriptorStore(notifier, named)
    assert store.images() == {"dns"}
    assert store.take(identity) is None
    assert notifier.barrier(5)
    assert (store.images(), manager.stored) == (set(), [])
    assert not any(is_open(fd) for _, fd in named)


def test_descriptors_of_other_names_are_left_alone() -> None:
    """Listening sockets come the same way."""
    files = open_files(1)
    DescriptorStore(Notifier({}), [("skep.socket", files[0])])
    assert is_open(files[0])
    close(files)


def test_newest_of_two_loads_is_taken(manager: ServiceManager) -> None:
    """An agent that died in the middle of a switch leaves both."""
    named = [("bpf.0.view", view(start_ns=5)), ("bpf.1.view", view(start_ns=7)), ("bpf.2.view", view(image="other"))]
    notifier = Notifier(manager.environment)
    for name, fd in named:
        notifier.store(name, [fd])
    store = DescriptorStore(notifier, named)
    taken = store.take(IDENTITY)
    assert taken is not None
    assert (taken[0], taken[2]) == ("1", 7)
    store.keep_only({"dns"})
    assert notifier.barrier(5)
    assert manager.stored == ["bpf.1.view"]
