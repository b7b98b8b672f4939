"""The life of the Debian package on a host with systemd, from installation to purge; runs inside the guest.

A service of the guest's starts it when the system is up. It needs nothing but the
system's Python, and does what an administrator would: apt, dpkg, systemctl, an editor,
a scrape. Cases run in order, each on what the one before left; one that fails does not keep the
others from being tried.

The disk on ``/skep`` holds ``packages/`` (``first``, ``second`` and ``third``, each with a higher
version), ``prometheus`` and ``dashboards/``.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

EVENTS = "/dev/ttyS1"
DISK = Path("/skep")
URL = "http://127.0.0.1:19435"
CONFIG = Path("/etc/skep/agent.yaml")
EXTRA = Path("/etc/skep/agent.d/test.yaml")
EXIT_CODE = 93
COUNTED = f'ebpf_process_exits_total{{reason="exited",code="{EXIT_CODE}"}}'
#: CAP_PERFMON and CAP_BPF of linux/capability.h.
TWO_CAPABILITIES = 1 << 38 | 1 << 39
PATIENCE_S = 120.0
EATER = (sys.executable, "-c", "b'x' * (1 << 26)")

Case = Callable[[], None]
CASES: list[Case] = []


def case(function: Case) -> Case:
    """Note a case; its docstring is what it proves."""
    CASES.append(function)
    return function


# -- the line to the harness ---------------------------------------------------------------


def say(event: str, **fields: object) -> None:
    """Send one event, whole."""
    data = json.dumps({"event": event, **fields}).encode() + b"\n"
    descriptor = os.open(EVENTS, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def figure(name: str, value: float, unit: str) -> None:
    """A measured value for the table."""
    say("figure", name=name, value=round(value, 2), unit=unit)


# -- what an administrator does ------------------------------------------------------------


def run(*command: str, check: bool = True, text: str | None = None) -> str:
    """Run a command; its output, or an error that holds it."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "SYSTEMD_PAGER": ""}
    done = subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        input=text if text is not None else "",
    )
    print(f"$ {' '.join(command)}\n{done.stdout}", flush=True)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} ended with status {done.returncode}: {done.stdout[-1500:]}")
    return done.stdout


def package(which: str) -> str:
    """The path of a version of the package."""
    (path,) = (DISK / "packages").glob(f"{which}_*.deb")
    return str(path)


def systemctl(*arguments: str, check: bool = True) -> str:
    """``systemctl``, without a pager."""
    return run("systemctl", "--no-pager", *arguments, check=check).strip()


def shown(*names: str) -> dict[str, str]:
    """Properties of the unit."""
    text = systemctl("show", "skep.service", *(f"--property={name}" for name in names))
    return dict(line.partition("=")[::2] for line in text.splitlines())  # type: ignore[misc]


def main_pid() -> int:
    """The agent's process; 0 if there is none."""
    return int(shown("MainPID")["MainPID"])


def scrape() -> str:
    """The body of ``/metrics``, as any user gets it."""
    with urllib.request.urlopen(f"{URL}/metrics", timeout=30) as answer:
        return str(answer.read(), "utf-8")


def samples(text: str) -> dict[str, float]:
    """Every series of a scrape."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            found[series] = float(value)
    return found


def value(series: str) -> float:
    """One series now; 0 if it is not there."""
    return samples(scrape()).get(series, 0.0)


def until(what: str, ready: Callable[[], object], patience_s: float = PATIENCE_S) -> object:
    """Wait until something is true, and give it; what is refused meanwhile is not yet true."""
    end = time.monotonic() + patience_s
    last: object = None
    while time.monotonic() < end:
        try:
            last = ready()
        except (OSError, AssertionError, ValueError, KeyError) as error:
            last = error
        else:
            if last:
                return last
        time.sleep(0.1)
    raise AssertionError(f"not in {patience_s:.0f} s: {what}; at last {last!r}")


def status() -> dict[str, Any]:
    """What ``skep status --json`` says."""
    done = subprocess.run(["skep", "status", "--json"], check=False, capture_output=True, text=True)
    if not done.stdout:
        raise AssertionError(f"skep status: {done.stderr}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def states() -> dict[str, str]:
    """Image to state."""
    return {image["name"]: image["state"] for image in status()["images"]}


def all_run() -> bool:
    """Whether every configured image runs."""
    found = states()
    return bool(found) and set(found.values()) == {"running"}


def attached_ids() -> set[int]:
    """The kernel's numbers of the programs that the agent says it attached."""
    return {one["id"] for image in status()["images"] for one in image["programs"] if one["attached"]}


def kernel_ids() -> set[int]:
    """The programs that observe, in this kernel; systemd's own are of other types."""
    listed = json.loads(subprocess.run(["bpftool", "-j", "prog"], check=True, capture_output=True).stdout or "[]")
    return {one["id"] for one in listed if one["type"] in ("tracing", "raw_tracepoint", "tracepoint", "kprobe")}


def exits(count: int) -> None:
    """So many processes end with the code that nobody else uses."""
    for _ in range(count):
        child = os.fork()
        if child == 0:
            os._exit(EXIT_CODE)
        os.waitpid(child, 0)


class Load:
    """Exits without end in a process of its own, and scrapes beside it, until told to stop."""

    def __init__(self) -> None:
        self.made = 0
        self.went_back: list[str] = []
        self.scrapes = 0
        self.longest_gap_s = 0.0
        self._before = value(COUNTED)
        self._stop = threading.Event()
        self._scraper = threading.Thread(target=self._scrape)

    def __enter__(self) -> Load:
        self._process = subprocess.Popen([sys.executable, __file__, "--load"], stdout=subprocess.PIPE, text=True)
        self._scraper.start()
        time.sleep(1.0)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(1.0)
        self._process.send_signal(signal.SIGTERM)
        out, _err = self._process.communicate(timeout=60)
        self.made = int(out)
        self._stop.set()
        self._scraper.join()

    def _scrape(self) -> None:
        last: dict[str, float] = {}
        last_s = time.monotonic()
        while not self._stop.wait(0.2):
            with contextlib.suppress(OSError):
                text = scrape()
                now = {
                    series: number
                    for series, number in samples(text).items()
                    if series.startswith("ebpf_") and re.match(r"\w+_(total|count|sum|bucket)\b", series)
                }
                self.went_back += [f"{s}: {last[s]} to {n}" for s, n in now.items() if n < last.get(s, 0.0)]
                last |= now
                self.scrapes += 1
                self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - last_s)
                last_s = time.monotonic()

    def check(self) -> None:
        """Whatever happened, every exit was counted once and nothing went back.

        Raises:
            AssertionError: not so.
        """
        until("images run again", all_run)
        assert self.made > 50, self.made
        assert not self.went_back, self.went_back[:5]
        counted = value(COUNTED) - self._before
        assert counted == self.made, f"counted {counted}, made {self.made}"


def load_forever() -> None:
    """The loading process: print how many there were."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    made = 0
    while not stopped.is_set():
        exits(1)
        made += 1
        time.sleep(0.005)
    print(made)


def pss_mib() -> float:
    """The unit's processes, each page shared with others counted in part; after scrapes, as it is in the long run."""
    for _ in range(3):
        scrape()
    total_kib = 0
    group = shown("ControlGroup")["ControlGroup"]
    for pid in Path(f"/sys/fs/cgroup{group}/cgroup.procs").read_text().split():
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total_kib += int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:")))
    assert total_kib
    return total_kib / 1024


def write_extra(text: str) -> None:
    """Configure something beside the package's own file."""
    EXTRA.write_text(text)


def reload() -> None:
    """Reload, and wait until it took effect."""
    before = value("skep_config_last_reload_success_timestamp_seconds")
    systemctl("reload", "skep")
    until("reloaded", lambda: value("skep_config_last_reload_success_timestamp_seconds") > before)


# -- the cases -----------------------------------------------------------------------------


@case
def installing_it_is_enough_for_a_scrape() -> None:
    """``apt install ./skep.deb``, nothing else, and the first scrape has numbers of the kernel."""
    started = time.monotonic()
    run("apt-get", "install", "-y", "--no-install-recommends", package("first"))
    installed_s = time.monotonic() - started
    until("a scrape with series", lambda: re.search(r"^ebpf_", scrape(), re.MULTILINE))
    figure("from `apt install` to the first scrape", time.monotonic() - started, "s")
    figure("`apt install` alone", installed_s, "s")


@case
def every_image_of_the_shipped_configuration_runs() -> None:
    """With two capabilities, at the distribution's own perf_event_paranoid."""
    until("all images run", all_run)
    assert len(states()) >= 4, states()
    figure("memory of the agent as shipped", pss_mib(), "MiB PSS")


@case
def the_agent_is_user_skep_with_two_capabilities() -> None:
    """Enabled and active; no process of the unit has more."""
    assert systemctl("is-active", "skep") == "active"
    assert systemctl("is-enabled", "skep") == "enabled"
    text = Path(f"/proc/{main_pid()}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    uid = pwd.getpwnam("skep").pw_uid
    assert fields["Uid"].split() == [str(uid)] * 4
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert int(fields[kind], 16) == TWO_CAPABILITIES, (kind, fields[kind])
    assert fields["NoNewPrivs"] == "1"
    assert Path("/proc/sys/kernel/perf_event_paranoid").read_text().strip() == "3"


@case
def what_happens_is_counted_exactly() -> None:
    """Two hundred exits with one code are two hundred."""
    before = value(COUNTED)
    exits(200)
    assert value(COUNTED) - before == 200


@case
def prometheus_scrapes_it_and_the_host_dashboard_has_data() -> None:
    """Every query of the board for one host, as Grafana sends it, on a Prometheus that scrapes this agent."""
    home = Path("/run/prometheus")
    home.mkdir()
    (home / "prometheus.yml").write_text(
        "global: {scrape_interval: 2s}\nscrape_configs:\n"
        "  - {job_name: skep, static_configs: [{targets: ['127.0.0.1:19435']}]}\n"
    )
    flags = (f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data", "--log.level=error")
    server = subprocess.Popen([str(DISK / "prometheus"), *flags, "--web.listen-address=127.0.0.1:19090"])

    def query(expr: str) -> list[Any]:
        address = "http://127.0.0.1:19090/api/v1/query?" + urllib.parse.urlencode({"query": expr})
        with urllib.request.urlopen(address, timeout=30) as answer:
            found: list[Any] = json.load(answer)["data"]["result"]
        return found

    def work() -> None:
        exits(20)
        with contextlib.suppress(OSError):
            urllib.request.urlopen("http://127.0.0.1:1/", timeout=1)
        Path("/var/tmp/work").write_bytes(os.urandom(1 << 16))
        os.sync()

    # What is killed for its memory is counted by its control group.
    run("systemd-run", "--wait", "--quiet", "--unit=eater", "-p", "MemoryMax=16M", *EATER, check=False)
    killed = until("an OOM kill", lambda: [s for s in samples(scrape()) if s.startswith("ebpf_oom_kills_total{")])
    assert isinstance(killed, list)
    assert len(killed) == 1, killed
    assert 'unit="eater.service"' in killed[0], killed
    try:
        until("Prometheus is up and has four scrapes", lambda: (work(), query("count_over_time(up[1m]) > 4"))[1])
        expressions = json.loads((DISK / "queries.json").read_text())
        end = time.monotonic() + PATIENCE_S
        empty = list(expressions)
        while empty and time.monotonic() < end:
            work()
            time.sleep(1.0)
            empty = [expression for expression in empty if not query(expression)]
        figure("queries of the host dashboard with data", len(expressions) - len(empty), f"of {len(expressions)}")
        assert not empty, empty
    finally:
        server.kill()
        server.wait()


@case
def a_reload_brings_up_what_is_added_and_touches_nothing_else() -> None:
    """``systemctl reload`` with one more image: the same process, the same programs of the others."""
    pid, before = main_pid(), attached_ids()
    write_extra("images: [{name: calls, ref: 'catalog:syscalls'}]\n")
    reload()
    until("the added image runs", lambda: states().get("calls") == "running")
    assert main_pid() == pid
    assert before < attached_ids()


@case
def a_reload_of_a_bad_configuration_changes_nothing_and_says_so() -> None:
    """The unit stays active; the metric and ``skep status`` tell."""
    pid, before = main_pid(), attached_ids()
    write_extra("images: [{name: calls, ref: 'catalog:syscalls', enabled: perhaps}]\n")
    systemctl("reload", "skep")
    until("the refusal is told", lambda: value("skep_config_last_reload_successful") == 0)
    assert "perhaps" in status()["reload_error"]
    assert (main_pid(), attached_ids()) == (pid, before)
    assert systemctl("is-active", "skep") == "active"
    EXTRA.unlink()
    reload()


@case
def a_crash_loses_no_count() -> None:
    """SIGKILL under load: systemd starts the next one, which takes the very programs back."""
    pid, before = main_pid(), attached_ids()
    assert before == kernel_ids(), (before, kernel_ids())
    with Load() as load:
        os.kill(pid, signal.SIGKILL)
        until("another process", lambda: main_pid() not in (0, pid))
        until("images run again", all_run)
    load.check()
    figure("without an answer after kill -9", load.longest_gap_s, "s")
    assert attached_ids() == before == kernel_ids()


@case
def a_restart_loses_no_count() -> None:
    """``systemctl restart`` under load, and after systemd itself was executed again."""
    before = attached_ids()
    systemctl("daemon-reexec")
    with Load() as load:
        systemctl("restart", "skep")
    load.check()
    assert attached_ids() == before == kernel_ids()


@case
def an_upgrade_loses_no_count() -> None:
    """A package of a higher version under load: other files, another process, the same programs, no counter back."""
    pid, before = main_pid(), attached_ids()
    with Load() as load:
        started = time.monotonic()
        run("apt-get", "install", "-y", "--no-install-recommends", package("second"))
        figure("upgrade", time.monotonic() - started, "s")
        until("another process", lambda: main_pid() not in (0, pid))
        until("images run again", all_run)
    load.check()
    figure("without an answer during an upgrade", load.longest_gap_s, "s")
    assert attached_ids() == before == kernel_ids()
    assert run("dpkg-query", "-W", "-f=${Version}", "skep") in package("second")


@case
def an_upgrade_keeps_a_configuration_that_was_changed() -> None:
    """Both sides changed agent.yaml: the administrator's stays, the package's lies beside it, and nobody is asked."""
    text = CONFIG.read_text().replace("  - ref: catalog:tcp-states\n", "", 1) + "# kept by hand\n"
    CONFIG.write_text(text)
    reload()
    until("an image is gone", lambda: "tcp-states" not in states())
    before = attached_ids()
    with Load() as load:
        run("dpkg", "--force-confold", "--install", package("third"))
    load.check()
    assert CONFIG.read_text() == text
    assert "# of the third version" in CONFIG.with_name("agent.yaml.dpkg-dist").read_text()
    assert attached_ids() == before
    assert not [name for name in status()["images"] if "dpkg" in name["name"]]


@case
def flags_of_etc_default_reach_the_agent() -> None:
    """Two words in SKEP_ARGS are two arguments."""
    file = Path("/etc/default/skep")
    text = file.read_text()
    flags = "--web.listen-address=:19435 --web.listen-address=127.0.0.1:19436"
    file.write_text(text.replace('SKEP_ARGS=""', f'SKEP_ARGS="{flags}"'))
    systemctl("restart", "skep")
    with urllib.request.urlopen("http://127.0.0.1:19436/-/healthy", timeout=30) as answer:
        assert answer.status == 200
    file.write_text(text)
    systemctl("restart", "skep")


@case
def ten_images_are_ready_soon() -> None:
    """Ten of the catalog, from nothing: loaded, attached and served."""
    names = json.loads((DISK / "images.json").read_text())
    assert len(names) == 10, names
    kept = CONFIG.read_text()
    CONFIG.write_text("images:\n" + "".join(f"  - ref: catalog:{name}\n" for name in names))
    systemctl("stop", "skep")
    systemctl("start", "skep")
    until("all ten run", lambda: len(states()) == 10 and all_run())
    times = shown("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    took = int(times["ActiveEnterTimestampMonotonic"]) - int(times["ExecMainStartTimestampMonotonic"])
    figure("start to ready with ten images", took / 1e6, "s")
    figure("memory of the agent with ten images", pss_mib(), "MiB PSS")
    figure(
        "memory of the unit with ten images, maps included", int(shown("MemoryCurrent")["MemoryCurrent"]) / 2**20, "MiB"
    )
    CONFIG.write_text(kept)
    systemctl("restart", "skep")


DROP_INS = Path("/etc/systemd/system/skep.service.d")


@contextlib.contextmanager
def drop_ins(*names: str) -> Iterator[None]:
    """The service with these, as install.md says it; at the end as it was, and without what was configured beside."""
    DROP_INS.mkdir(parents=True, exist_ok=True)
    try:
        for name in names:
            shutil.copy(f"/usr/share/skep/drop-ins/{name}.conf", DROP_INS)
        systemctl("daemon-reload")
        systemctl("restart", "skep")
        yield
    finally:
        shutil.rmtree(DROP_INS)
        EXTRA.unlink(missing_ok=True)
        systemctl("daemon-reload")
        systemctl("restart", "skep")
        until("images run again", all_run)


def refusal(name: str) -> str:
    """Why an image cannot run."""
    until(f"{name} is refused", lambda: states().get(name) == "failed")
    (reason,) = (image["reason"] for image in status()["images"] if image["name"] == name)
    return str(reason)


def runs(name: str, series: str) -> dict[str, float]:
    """Its series, once there are some that have counted."""
    until(f"{name} runs", lambda: states().get(name) == "running")
    found = until(
        f"{series} counts", lambda: {s: n for s, n in samples(scrape()).items() if s.startswith(series) and n}
    )
    assert isinstance(found, dict)
    return found


@case
def a_drop_in_lets_a_tracepoint_attach() -> None:
    """It is refused with the remedy at perf_event_paranoid 3, and runs once kprobes-tracepoints.conf is there."""
    write_extra("images: [{name: opens, ref: /skep/tracepoint.bpf.o}]\n")
    reload()
    reason = refusal("opens")
    assert "CAP_SYS_ADMIN" in reason or "perf_event_paranoid" in reason, reason
    with drop_ins("kprobes-tracepoints"):
        runs("opens", "ebpf_opens")


@case
def a_drop_in_lets_xdp_attach() -> None:
    """It is refused for want of CAP_NET_ADMIN, and sees the packets of loopback once network.conf is there."""
    write_extra("images: [{name: packets, ref: /skep/packets.bpf.o, attach: {on_packet: {interfaces: [lo]}}}]\n")
    reload()
    reason = refusal("packets")
    assert "CAP_NET_ADMIN" in reason, reason
    with drop_ins("network"):
        runs("packets", "ebpf_packets")


@case
def a_drop_in_names_kernel_functions() -> None:
    """Addresses are numbers without symbols.conf and names with it."""
    write_extra("images: [{name: works, ref: /skep/symbols.bpf.o}]\n")
    reload()
    found = runs("works", "ebpf_works")
    assert all('function="0x' in series for series in found), found
    with drop_ins("symbols"):
        found = runs("works", "ebpf_works")
        assert not any('function="0x' in series for series in found), found


@case
def a_drop_in_shows_the_binaries_of_users() -> None:
    """A library below /root cannot be opened until user-binaries.conf is beside kprobes-tracepoints.conf."""
    library = Path("/root/libelf.so.1")
    shutil.copy(next(Path("/usr/lib").glob("*-linux-gnu/libelf.so.1")), library)
    attach = f"on_call: {{binary: {library}, target: elf_version}}"
    text = f"images: [{{name: calls, ref: /skep/binary.bpf.o, attach: {{{attach}}}}}]\n"
    write_extra(text)
    with drop_ins("kprobes-tracepoints"):
        reason = refusal("calls")
        assert str(library) in reason, reason
    write_extra(text)
    with drop_ins("kprobes-tracepoints", "user-binaries"):
        until("it is attached", lambda: states().get("calls") == "running")
        run(sys.executable, "-c", f"import ctypes; ctypes.CDLL('{library}').elf_version(0)")
        assert sum(runs("calls", "ebpf_calls").values()) == 1


@case
def root_and_the_service_share_the_store() -> None:
    """An image that root adds is listed for the service's user, and the agent still writes there."""
    run("skep", "list")
    store = Path("/var/lib/skep/store")
    assert {path.owner() for path in (store, *store.iterdir())} == {"skep"}
    run("runuser", "-u", "skep", "--", "skep", "list")


@case
def a_stop_detaches_everything() -> None:
    """Nothing of ours is in the kernel, and the next start begins anew."""
    assert kernel_ids()
    systemctl("stop", "skep")
    until("nothing is attached", lambda: not kernel_ids())
    assert systemctl("is-active", "skep", check=False) == "inactive"
    systemctl("start", "skep")
    until("images run again", all_run)


@case
def removing_it_detaches_everything_and_keeps_the_configuration() -> None:
    """``apt remove``: no program, no process, no unit; what was configured stays."""
    run("apt-get", "remove", "-y", "skep")
    assert not kernel_ids()
    assert not Path("/usr/lib/skep").exists()
    assert subprocess.run(["pgrep", "-u", "skep"], check=False, capture_output=True).stdout == b""
    assert "# kept by hand" in CONFIG.read_text()


@case
def installed_again_it_has_the_configuration_of_before() -> None:
    """Removed is not purged: the administrator's file is what runs."""
    run("dpkg", "--force-confold", "--install", package("third"))
    until("images run again", all_run)
    assert "tcp-states" not in states()
    assert systemctl("is-enabled", "skep") == "enabled"


@case
def purging_it_leaves_nothing() -> None:
    """No program in the kernel, no file of the package's, of its user's or of its service's."""
    run("apt-get", "purge", "-y", "skep")
    assert not kernel_ids()
    left = [
        path
        for path in (
            "/etc/skep",
            "/var/lib/skep",
            "/var/log/skep",
            "/run/skep",
            "/usr/lib/skep",
            "/usr/share/skep",
            "/etc/default/skep",
        )
        if Path(path).exists()
    ]
    assert not left, left
    assert not run("find", "/", "-xdev", "-user", "skep").strip()
    assert not list(Path("/etc/systemd/system").rglob("skep*"))


@case
def after_a_purge_it_installs_as_on_a_fresh_host() -> None:
    """No mask, no leftover keeps it from starting."""
    run("apt-get", "install", "-y", "--no-install-recommends", package("third"))
    until("images run", all_run)
    assert "tcp-states" in states()
    run("apt-get", "purge", "-y", "skep")
    assert not kernel_ids()


# -- the story -----------------------------------------------------------------------------


def facts() -> dict[str, Any]:
    """What this machine is."""
    release = dict(line.partition("=")[::2] for line in Path("/etc/os-release").read_text().splitlines() if line)  # type: ignore[misc]
    return {
        "system": release["PRETTY_NAME"].strip('"'),
        "release": os.uname().release,
        "systemd": run("systemctl", "--version").split()[1],
        "python": sys.version.split()[0],
        "perf_event_paranoid": Path("/proc/sys/kernel/perf_event_paranoid").read_text().strip(),
    }


def journal() -> Iterator[str]:
    """What the service said last."""
    yield run("journalctl", "-u", "skep", "-n", "60", "--no-pager", "-o", "cat", check=False)


def main() -> int:
    """Run the cases in order."""
    say("facts", facts=facts())
    orders = json.loads(Path("/dev/vdd").read_bytes().rstrip(b"\0"))
    wanted = [one for one in CASES if not orders["cases"] or one.__name__ in orders["cases"]]
    say("collected", cases=[one.__name__ for one in wanted])
    failed = 0
    for one in wanted:
        say("start", case=one.__name__)
        started = time.monotonic()
        try:
            one()
        except Exception as error:  # reported to the harness
            failed += 1
            detail = traceback.format_exc() + "\n".join(journal())
            reason = " ".join(str(error).split())[:1000]
            say("case", case=one.__name__, outcome="failed", reason=reason, detail=detail[-24_000:])
            # What it left must not be the next one's failure.
            EXTRA.unlink(missing_ok=True)
            systemctl("reload-or-restart", "skep", check=False)
        else:
            say("case", case=one.__name__, outcome="passed", took_s=round(time.monotonic() - started, 1))
    say("end", status=1 if failed else 0)
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--load"]:
        load_forever()
    else:
        sys.exit(main())
