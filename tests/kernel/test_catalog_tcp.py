"""The shipped programs on TCP count exactly the connections made, refused, lost and repeated.

Everything happens in a network namespace and a control group of its own, and the
programs tell groups apart: what else this machine does is not in the numbers.
"""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.test_catalog import needs_cgroup2, observed, shipped, smaller
from tests.support import workload
from tests.support.libbpf import Loaded, can_load, loaded, settled

pytestmark = [pytest.mark.skipif(not can_load(), reason="needs root and a kernel with BTF"), needs_cgroup2]

IPV4, IPV6 = int(socket.AF_INET), int(socket.AF_INET6)
Group = tuple[Path, int]

# A server on port 7001 of both families, one on a port that clients have, and one that hears nothing.
SERVERS = (
    workload.NEW_NETWORK
    + workload.DEAF
    + """
import json, select, time
def served(family, port, backlog=512):
    server = socket.socket(family)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1" if family == socket.AF_INET else "::1", port))
    server.listen(backlog)
    return server
def begun(port, family=socket.AF_INET):
    client = socket.socket(family)
    client.setblocking(False)
    client.connect_ex(("127.0.0.1" if family == socket.AF_INET else "::1", port))
    return client
def total_retransmits(sock):
    # struct tcp_info of linux/tcp.h: tcpi_total_retrans lies at 100
    return struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)[0]
def counters():
    found = {}
    for name in ("snmp", "netstat"):
        lines = open("/proc/thread-self/net/" + name).read().splitlines()
        for names, values in zip(lines[::2], lines[1::2]):
            for key, value in zip(names.split()[1:], values.split()[1:]):
                found[names.split(":")[0] + "." + key] = int(value)
    return found
v4, v6 = served(socket.AF_INET, 7001), served(socket.AF_INET6, 7001)
"""
)


@pytest.fixture
def group() -> Iterator[Group]:
    """A control group whose sockets are the test's own."""
    with workload.control_group("skep-tcp") as found:
        yield found


def rows_of(program: Loaded, name: str, group: Group) -> dict[tuple[int, ...], dict[str, int]]:
    """A map's rows of the group, without the group."""
    found = settled(lambda: program.rows(name))
    return {tuple(part for part in key if part != group[1]): row for key, row in found.items() if group[1] in key}


def counts_of(program: Loaded, name: str, group: Group) -> dict[tuple[int, ...], int]:
    """Rows of one number each."""
    return {key: row[""] for key, row in rows_of(program, name, group).items()}


# -- tcp-connects --------------------------------------------------------------------------

CONNECTS = (
    SERVERS
    + """
high = served(socket.AF_INET, 40000)
open("/proc/sys/net/ipv4/tcp_syn_retries", "w").write("1")
unheard = served(socket.AF_INET, 7003)
deaf(unheard, True)
lost = [begun(7003) for _ in range(4)]
for port, server, times in ((7001, v4, 100), (7001, v6, 40), (40000, high, 10)):
    for _ in range(times):
        with socket.create_connection(server.getsockname()[:2]):
            server.accept()[0].close()
refused = 0
for _ in range(30):
    try:
        socket.create_connection(("127.0.0.1", 7002))
    except ConnectionRefusedError:
        refused += 1
for _ in range(5):
    begun(7003).close()
poll = select.poll()
for client in lost:
    poll.register(client, select.POLLERR | select.POLLHUP)
errors = []
while len(errors) < len(lost):
    for fd, _ in poll.poll(30000):
        client = next(each for each in lost if each.fileno() == fd)
        errors.append(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        poll.unregister(fd)
print(json.dumps({"refused": refused, "errors": errors}))
"""
)


def test_connections_begun_failed_and_taken_are_counted_to_the_last(group: Group) -> None:
    """By family and server's port; a refusal, a silence and a change of mind are three things."""
    with loaded(shipped("tcp-connects"), {"by_cgroup": 1}) as program:
        said = json.loads(workload.run_in_group(group[0], CONNECTS))
        attempts = counts_of(program, "attempts", group)
        errors = counts_of(program, "errors", group)
        accepts = counts_of(program, "accepts", group)
        assert program.total("missed") == 0
    assert said == {"refused": 30, "errors": [errno.ETIMEDOUT] * 4}
    assert attempts == {
        (IPV4, 7001): 100, (IPV6, 7001): 40, (IPV4, 7002): 30, (IPV4, 7003): 9, (IPV4, 0): 10,
    }  # fmt: skip
    assert errors == {
        (IPV4, 7002, errno.ECONNREFUSED): 30, (IPV4, 7003, errno.ETIMEDOUT): 4, (IPV4, 7003, 0): 5,
    }  # fmt: skip
    assert accepts == {(IPV4, 7001): 100, (IPV6, 7001): 40, (IPV4, 0): 10}


def test_ports_of_clients_are_told_apart_when_asked_for(group: Group) -> None:
    """``ports_below`` is the operator's to say."""
    code = SERVERS + "high = served(socket.AF_INET, 40000)\nsocket.create_connection(high.getsockname()).close()\n"
    with loaded(shipped("tcp-connects"), {"by_cgroup": 1, "ports_below": 65535}) as program:
        workload.run_in_group(group[0], code)
        assert counts_of(program, "attempts", group) == {(IPV4, 40000): 1}


# -- tcp-connect-latency -------------------------------------------------------------------

LATENCIES = (
    SERVERS
    + """
unheard = served(socket.AF_INET, 7003)
deaf(unheard, True)
started = time.monotonic_ns()
slow = begun(7003)
begin = time.monotonic_ns()
for server, times in ((v4, 200), (v6, 60)):
    for _ in range(times):
        with socket.create_connection(server.getsockname()[:2]):
            server.accept()[0].close()
quick = time.monotonic_ns() - begin
try:
    socket.create_connection(("127.0.0.1", 7002))
except ConnectionRefusedError:
    pass
deaf(unheard, False)
select.select([], [slow], [], 30)
assert slow.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
print(json.dumps({"quick": quick, "slow": time.monotonic_ns() - started}))
"""
)


def test_time_to_be_established_is_measured_of_every_connection(group: Group) -> None:
    """One lost its first SYN and took a second more; refused ones are not in it."""
    with loaded(shipped("tcp-connect-latency"), {"by_cgroup": 1, "by_port": 1}) as program:
        said = json.loads(workload.run_in_group(group[0], LATENCIES))
        rows = rows_of(program, "durations", group)
        assert program.total("missed") == 0
        assert min(len(program.rows("connecting")) for _ in range(50)) == 0, "sockets that are established stay noted"
    assert rows.keys() == {(IPV4, 7001), (IPV6, 7001), (IPV4, 7003)}
    assert observed(rows, (IPV4, 7001)) == 200
    assert observed(rows, (IPV6, 7001)) == 60
    assert observed(rows, (IPV4, 7003)) == 1
    assert 0 < rows[IPV4, 7001]["sum"] + rows[IPV6, 7001]["sum"] <= said["quick"]
    # The second SYN leaves a second after the first (RFC 6298); the process saw its end later than the kernel.
    slow_ns = rows[IPV4, 7003]["sum"]
    assert 900_000_000 < slow_ns <= said["slow"]
    slot = next(index for index in range(27) if slow_ns <= (1 << index) * 1000)
    assert rows[IPV4, 7003][f"slots[{slot}]"] == 1


def test_latency_of_all_ports_and_groups_is_one_histogram_of_each_family(group: Group) -> None:
    """Without its switches the image has two series at most."""
    with loaded(shipped("tcp-connect-latency")) as program:
        workload.run_in_group(group[0], SERVERS + "socket.create_connection(v4.getsockname()).close()\n")
        rows = program.rows("durations")
    assert {key[1:] for key in rows} == {(0, 0)}
    assert observed(rows) >= 1


# -- tcp-retransmits -----------------------------------------------------------------------

RETRANSMITS = (
    SERVERS
    + """
unheard = served(socket.AF_INET, 7003)
deaf(unheard, True)
calling = [begun(7003) for _ in range(3)]
client = socket.create_connection(v4.getsockname())
server = v4.accept()[0]
other = socket.create_connection(v6.getsockname()[:2])
other_server = v6.accept()[0]
deaf(server, True)
deaf(other_server, True)
client.send(b"x")
other.send(b"y")
half = socket.socket()
half.setblocking(False)
deaf(half, True)
half.connect_ex(v4.getsockname())
time.sleep(1.5)
deaf(server, False)
deaf(other_server, False)
assert server.recv(1) == b"x" and other_server.recv(1) == b"y"
def settled():
    while True:
        before = counters()
        sums = sum(map(total_retransmits, [*calling, half])), total_retransmits(client), total_retransmits(other)
        if counters() == before:
            return before, sums
counted, (syn, data4, data6) = settled()
for each in (*calling, half):
    each.close()
unheard.close()
v4.close()
print(json.dumps({"syn": syn, "data4": data4, "data6": data6, "all": counted["Tcp.RetransSegs"],
    "syn_and_ack": counted["TcpExt.TCPSynRetrans"], "ports": [client.getsockname()[1], other.getsockname()[1]]}))
"""
)
SYN, SYN_ACK, DATA = range(3)


def test_segments_sent_again_are_those_the_kernel_and_the_sockets_say(group: Group) -> None:
    """SYNs nobody hears, answers nobody hears, and a byte nobody hears for a second and a half."""
    with loaded(shipped("tcp-retransmits"), {"by_cgroup": 1, "events_enabled": 1}) as program:
        said = json.loads(workload.run_in_group(group[0], RETRANSMITS))
        counted = counts_of(program, "retransmits", group)
        records = [record for record in program.records("events") if record["what.group"] == group[1]]
        assert program.total("missed") == program.total("events_lost") == 0
    assert counted[SYN, IPV4] == said["syn"] >= 4
    assert counted[DATA, IPV4] == said["data4"] >= 2
    assert counted[DATA, IPV6] == said["data6"] >= 2
    assert counted[SYN_ACK, IPV4] == said["syn_and_ack"] - said["syn"] >= 1
    assert sum(counted.values()) == said["all"] == len(records)
    data4 = next(record for record in records if (record["what.segment"], record["what.family"]) == (DATA, IPV4))
    assert data4["ends.local_port"] == said["ports"][0]
    assert socket.ntohs(data4["ends.remote_port"]) == 7001
    assert data4["ends.remote_address"].to_bytes(16, "little") == bytes(10) + b"\xff\xff\x7f\x00\x00\x01"
    answer = next(record for record in records if record["what.segment"] == SYN_ACK)
    assert answer["ends.local_port"] == 7001, "of the connection, not of the listener"
    assert answer["ends.remote_port"] != 0
    data6 = next(record for record in records if (record["what.segment"], record["what.family"]) == (DATA, IPV6))
    assert data6["ends.remote_address"].to_bytes(16, "little") == bytes(15) + b"\x01"


# -- active-connections --------------------------------------------------------------------

ACTIVE = (
    SERVERS
    + """
kept, accepted = [], []
def connect(server, times):
    for _ in range(times):
        kept.append(socket.create_connection(server.getsockname()[:2]))
        accepted.append(server.accept()[0])
high = served(socket.AF_INET, 40000)
def established():
    lines = [line.split() for name in ("tcp", "tcp6") for line in open("/proc/thread-self/net/" + name)]
    return sum(line[3] == "01" for line in lines)
while True:
    try:
        exec(input())
    except EOFError:
        break
    print(json.dumps(established()), flush=True)
"""
)
OUTBOUND, INBOUND = range(2)


def test_active_connections_are_those_that_the_kernel_lists(group: Group) -> None:
    """They come, some go at one end, and all go; those from before are never counted, nor their going."""
    with workload.conversation_in_group(group[0], ACTIVE) as ask:
        assert ask("connect(v4, 6)") == "12"
        with loaded(shipped("active-connections"), {"by_cgroup": 1}) as program:

            def active() -> dict[tuple[int, ...], int]:
                return {key: count for key, count in counts_of(program, "active", group).items() if count}

            def both(port: int, family: int, count: int) -> dict[tuple[int, ...], int]:
                return {(OUTBOUND, family, port): count, (INBOUND, family, port): count} if count else {}

            assert active() == {}
            assert ask("connect(v4, 50); connect(v6, 20); connect(high, 5)") == str(12 + 150)
            expected = both(7001, IPV4, 50) | both(7001, IPV6, 20) | both(0, IPV4, 5)
            assert active() == expected
            assert ask("[each.close() for each in kept[6:16]]; time.sleep(0.1)") == str(12 + 130)
            assert active() == expected | both(7001, IPV4, 40)
            # A reset ends both ends at once.
            reset = "each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); each.close()"
            assert ask(f"for each in accepted[16:26]: {reset}") == str(12 + 110)
            assert active() == expected | both(7001, IPV4, 30)
            assert ask("[each.close() for each in kept[:6]]; time.sleep(0.1)") == "110"
            assert active() == expected | both(7001, IPV4, 30)
            assert ask("[each.close() for each in kept + accepted]; time.sleep(0.1)") == "0"
            assert active() == {}
            noted: Any = program.rows("counted").values()
            assert not [row for row in noted if row["group"] == group[1]], "sockets that are gone stay noted"
            assert program.total("missed") == 0


def test_full_map_gives_the_room_of_keys_that_count_nothing(group: Group, tmp_path: Path) -> None:
    """With room for four keys, connections to many ports one after the other are all counted."""
    with (
        workload.conversation_in_group(group[0], ACTIVE) as ask,
        loaded(smaller("active-connections", tmp_path, "KEYS 8192", "KEYS 4"), {"by_cgroup": 1}) as program,
    ):
        ask("connect(v6, 1)")
        for port in range(7100, 7120):
            ask(f"s = served(socket.AF_INET, {port}); connect(s, 1); c = kept.pop(), accepted.pop()")
            found = counts_of(program, "active", group)
            assert found[OUTBOUND, IPV6, 7001] == found[INBOUND, IPV6, 7001] == 1
            ask("c[0].close(); c[1].close(); s.close(); time.sleep(0.05)")
        missed = program.total("missed")
    assert missed == 0
