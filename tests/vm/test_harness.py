"""The kernel matrix's own parts, without a virtual machine."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.vm import disks, kernels, machine, packages, results
from tests.vm.guest import channel

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


# -- packages ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("versions", "prefix", "expected"),
    [
        ([], "", None),
        (["6.1.9-1"], "5.10.", None),
        (["6.1.9-1", "6.1.10-1"], "6.1.", "6.1.10-1"),
        (["6.12.9-1~bpo12+1", "6.12.9-1"], "6.12.", "6.12.9-1"),
        (["6.12.9-1", "6.1.300-1"], "6.1.", "6.1.300-1"),
        (["6.12.9-1", "7.2.1-1", "6.1.9-1"], "", "7.2.1-1"),
    ],
)
def test_newest_version_is_dpkgs_idea_of_newest(versions: list[str], prefix: str, expected: str | None) -> None:
    """Numbers are numbers, a backport comes before what it was made from, 6.1 is not 6.12."""
    found = packages.newest([packages.Available("linux", version) for version in versions], prefix)
    assert (found.version if found else None) == expected


def test_madison_lines_are_versions_and_others_are_left_out() -> None:
    """``apt-cache madison`` as it prints."""
    text = "linux-image-cloud-amd64 |  6.1.192-2 | uri suite/main amd64 Packages\nN: a note\n"
    assert packages.parse_madison(text) == [packages.Available("linux-image-cloud-amd64", "6.1.192-2")]


def test_dependencies_of_the_same_version_are_followed_and_no_others() -> None:
    """A meta package names the real one with its exact version."""
    depends = "linux-base-7.2-cloud (= 7.2.13-1), linux-image-7.2+deb14 (= 7.2.13-1), kmod"
    record = f"Depends: {depends}\nRecommends: x (= 7.2.13-1)\n"
    assert packages.pinned_dependencies(record, "7.2.13-1") == ["linux-base-7.2-cloud", "linux-image-7.2+deb14"]


def test_command_that_is_not_installed_is_named_with_the_remedy() -> None:
    """A missing tool is the reader's first error."""
    with pytest.raises(packages.HarnessError, match=r"'no-such-tool' is not installed; run packaging/setup"):
        packages.run(["no-such-tool"])


def test_command_that_fails_shows_its_last_words() -> None:
    """Not the whole of its output, and on one line."""
    with pytest.raises(packages.HarnessError, match=r"status 3: b \| c \| d$"):
        packages.run(["sh", "-c", "printf 'a\\nb\\nc\\nd\\n' >&2; exit 3"])


# -- kernels -------------------------------------------------------------------------------

MODULES_DEP = """\
kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz
kernel/fs/jbd2/jbd2.ko.xz: kernel/lib/crc32c-generic.ko.xz
kernel/lib/crc16.ko.xz:
kernel/lib/crc32c-generic.ko.xz:
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/virtio/virtio.ko.xz:
"""


def test_modules_load_after_all_they_need_and_once() -> None:
    """Those that are built in, or gone, are left out."""
    order = [
        kernels.module_name(path)
        for path in kernels.load_order(MODULES_DEP, ("virtio_pci", "built_in", "crc32c_generic", "ext4"))
    ]
    assert order == ["virtio", "virtio_pci", "crc32c_generic", "jbd2", "crc16", "ext4"]


@pytest.mark.parametrize(
    ("version", "series"),
    [("5.10.262-1", "5.10"), ("6.12.95-1~bpo12+1", "6.12"), ("7.3~rc2-1", "7.3"), ("7.2.13-1", "7.2")],
)
def test_series_is_the_first_two_numbers(version: str, series: str) -> None:
    """As the kernel's own releases are counted."""
    assert kernels.series_of(version) == series


@pytest.mark.parametrize(
    ("setting", "argument"),
    [
        ("lockdown,yama,apparmor", "lsm=lockdown,yama,apparmor,bpf"),
        ("landlock,bpf,apparmor", "lsm=landlock,bpf,apparmor"),
        ("", "lsm=bpf"),
    ],
)
def test_bpf_security_module_is_on_beside_the_kernels_own(setting: str, argument: str) -> None:
    """On 5.10 programs attach to LSM hooks and never run without it."""
    config = kernels.parse_config(f'# CONFIG_X is not set\nCONFIG_LSM="{setting}"\n')
    assert kernels.lsm_argument(config) == argument
    assert "CONFIG_X" not in config


def test_initramfs_archive_is_what_the_kernel_unpacks() -> None:
    """Every entry comes back by the format's own rules, whatever its length."""
    entries = [
        ("bin", 0o040755, b""),
        ("init", 0o100755, b"#!"),
        ("a/bc", 0o100644, b"12345"),
        ("d", 0o100644, bytes(4)),
    ]
    data, position, found = kernels.cpio(entries), 0, []
    while True:
        assert data[position : position + 6] == b"070701"
        fields = [int(data[position + 6 + 8 * index : position + 14 + 8 * index], 16) for index in range(13)]
        name_start = position + 110
        name = data[name_start : name_start + fields[11] - 1].decode()
        start = -(-(name_start + fields[11]) // 4) * 4
        if name == "TRAILER!!!":
            break
        found.append((name, fields[1], data[start : start + fields[6]]))
        position = -(-(start + fields[6]) // 4) * 4
    assert found == entries


@pytest.mark.parametrize("script", ["init", "initramfs-init"])
def test_guest_scripts_are_plain_shell(script: str) -> None:
    """They run under busybox and dash before anything else does."""
    subprocess.run(["sh", "-n", HERE / "guest" / script], check=True)


# -- disks ---------------------------------------------------------------------------------


def test_working_tree_has_what_tests_need_and_not_what_they_do_not(tmp_path: Path) -> None:
    """Built objects and extensions go in; history, environments, caches and the matrix itself stay out."""
    inside = ("exporter/a.py", "exporter/_a.so", "build/catalog/index.json", "tests/vm/guest/init")
    outside = (
        ".git/HEAD",
        ".venv/bin/python",
        "build/vm/disks/x.img",
        "build/vm.json",
        "build/cython-a/a.c",
        "a/__pycache__/a.pyc",
    )
    for name in (*inside, *outside):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert {str(path.relative_to(tmp_path)) for path in disks.tree_files(tmp_path)} == set(inside)


def test_disk_of_the_working_tree_is_named_by_its_content(tmp_path: Path) -> None:
    """The same files give the same name, one changed byte or mode bit another."""
    file = tmp_path / "a"
    file.write_text("one")
    first = disks.digest_of(tmp_path)
    os.utime(file, (0, 0))
    assert disks.digest_of(tmp_path) == first
    file.chmod(0o755)
    second = disks.digest_of(tmp_path)
    file.write_text("two")
    assert len({first, second, disks.digest_of(tmp_path)}) == 3


# -- machine -------------------------------------------------------------------------------


def test_events_survive_torn_reads_and_stray_lines() -> None:
    """The line is cut anywhere, and the kernel may write to it."""
    data = b'{"event": "start", "case": "a"}\r\n[ 1.0] oops\n{"no": 1}\n[]\n{"event": "end", "status": 0}\n'
    found, rest = [], b""
    for index in range(len(data)):
        events, rest = machine.parse_events(rest + data[index : index + 1])
        found += events
    assert [event["event"] for event in found] == ["start", "end"]
    assert rest == b""


def test_orders_fill_whole_sectors_and_come_back() -> None:
    """The guest reads them from a raw disk."""
    data = machine.encode_orders({"python": ["-k", "ä"]})
    assert len(data) % 4096 == 0
    assert json.loads(data.rstrip(b"\0")) == {"python": ["-k", "ä"]}


def test_case_the_guest_died_in_and_those_after_it_are_failures() -> None:
    """Nothing that was to run is forgotten."""
    account = machine.Account(death="Kernel panic")
    for event in (
        {"event": "collected", "cases": ["a", "b", "c"]},
        {"event": "start", "case": "a"},
        {"event": "case", "case": "a", "outcome": "passed"},
        {"event": "start", "case": "b"},
    ):
        account.hear(event)
    found = account.results()
    assert found["a"][0] == "passed"
    assert found["b"] == ("failed", "the guest died during this case: Kernel panic")
    assert found["c"] == ("failed", "not run, the guest died before: Kernel panic")
    assert not account.died_before_tests


@pytest.mark.parametrize(("deaths", "boots"), [(0, 1), (1, 2), (2, 2)])
def test_guest_that_dies_before_its_tests_is_booted_once_more_and_counted(deaths: int, boots: int) -> None:
    """Once, not until it works."""
    attempts: list[int] = []

    def attempt(number: int) -> machine.Account:
        attempts.append(number)
        return machine.Account(death="panic") if number <= deaths else machine.Account(finished=True)

    account, counted = machine.boot_twice(attempt)
    assert attempts == list(range(1, boots + 1))
    assert counted == ["panic"] * deaths
    assert account.finished == (deaths < 2)


def fake_machine(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> machine.Guest:
    """A guest whose QEMU is a shell script; ``$console`` is the file of its first serial line."""
    path = directory / "qemu-system-x86_64"
    path.write_text(f"#!/bin/sh\nconsole={directory}/console\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return machine.Guest(directory / "vmlinuz", directory / "initramfs", (), "")


FACTS = 'echo \'{"event": "facts", "facts": {"release": "6.1"}}\'\necho \'{"event": "collected", "cases": ["a"]}\'\n'


def test_boot_takes_the_guest_at_its_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts, cases, outcomes and the end arrive in order."""
    done = '{"event": "case", "case": "a", "outcome": "skipped", "reason": "why", "row": "hook/x"}'
    guest = fake_machine(tmp_path, monkeypatch, f'{FACTS}echo \'{done}\'\necho \'{{"event": "end", "status": 0}}\'')
    heard: list[str] = []
    account = machine.boot(
        guest, tmp_path / "console", case_timeout_s=5, heard=lambda event: heard.append(event["event"])
    )
    assert heard == ["facts", "collected", "case", "end"]
    assert account.results() == {"a": ("skipped", "why")}
    assert account.rows == {"a": "hook/x"}
    assert account.finished
    assert account.death == ""


def test_panic_is_told_in_the_consoles_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the guest counts as lost before its tests."""
    guest = fake_machine(tmp_path, monkeypatch, "printf 'booting\\nKernel panic - not syncing\\nCPU: 0\\n' >$console")
    account = machine.boot(guest, tmp_path / "console", case_timeout_s=5, heard=lambda event: None)
    assert account.death == "Kernel panic - not syncing | CPU: 0"
    assert account.died_before_tests


def test_silent_case_ends_the_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that hangs costs its timeout, and is named."""
    pid = tmp_path / "pid"
    start = 'echo \'{"event": "start", "case": "a"}\''
    guest = fake_machine(tmp_path, monkeypatch, f"{FACTS}{start}\necho $$ >{pid}\nexec sleep 60")
    account = machine.boot(guest, tmp_path / "console", case_timeout_s=0.3, heard=lambda event: None)
    assert account.results()["a"][1].startswith("the guest died during this case: silent for 0 s")
    assert not Path(f"/proc/{pid.read_text().strip()}").exists(), "the machine is still running"


def test_guests_end_with_their_run_and_no_more_are_booted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever interrupts a run of several is not kept waiting for them."""
    monkeypatch.setattr(machine, "_ending", threading.Event())
    guest = fake_machine(tmp_path, monkeypatch, f"{FACTS}exec sleep 60")
    up = threading.Event()

    def run() -> machine.Account:
        return machine.boot(guest, tmp_path / "console", case_timeout_s=60, heard=lambda event: up.set())

    with ThreadPoolExecutor() as pool:
        running = pool.submit(run)
        assert up.wait(10)
        machine.end_guests()
        assert not running.result(timeout=10).finished
    with pytest.raises(packages.HarnessError, match="was ended"):
        run()


# -- the guest's pytest plugin ---------------------------------------------------------------

CASES = """
import pytest
def test_passes(record_property): record_property("matrix", "hook/kprobe")
def test_fails(): print("said"); assert 1 == 2
def test_skips(): pytest.skip("needs CONFIG_FPROBE")
@pytest.fixture
def broken(): raise RuntimeError("no")
def test_set_up_fails(broken): pass
@pytest.fixture
def late(): yield; raise RuntimeError("late")
def test_torn_down_badly(late): pass
"""


def test_plugin_reports_each_case_once_with_its_worst_phase(tmp_path: Path) -> None:
    """What pytest knows of a case reaches the harness, collecting errors included."""
    (tmp_path / "test_good.py").write_text(CASES)
    (tmp_path / "test_bad.py").write_text("import no_such_module\n")
    line = tmp_path / "line"
    line.touch()
    environment = {**os.environ, channel.VARIABLE: str(line), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.vm.guest.plugin", "-p", "no:cacheprovider"]
    options = ["--continue-on-collection-errors", f"--rootdir={tmp_path}", str(tmp_path)]
    subprocess.run([*command, *options], check=False, env=environment, cwd=tmp_path, capture_output=True)
    account = machine.Account()
    for event in machine.parse_events(line.read_bytes())[0]:
        account.hear(event)
    found = {case.rpartition("::")[2]: outcome for case, outcome in account.results().items()}
    assert {case: outcome for case, (outcome, _) in found.items()} == {
        "test_bad.py": "failed",
        "test_passes": "passed",
        "test_fails": "failed",
        "test_skips": "skipped",
        "test_set_up_fails": "failed",
        "test_torn_down_badly": "failed",
    }
    assert found["test_skips"][1] == "needs CONFIG_FPROBE"
    assert "assert 1 == 2" in found["test_fails"][1]
    assert "no_such_module" in found["test_bad.py"][1]
    assert "said" in account.details["test_good.py::test_fails"]
    assert account.rows == {"test_good.py::test_passes": "hook/kprobe"}


def test_cases_run_here_are_heard_as_a_guests_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the kernel that runs now; one that is silent for too long ends the run."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "test_good.py").write_text(CASES)
    (tmp_path / "test_slow.py").write_text("def test_slow(): __import__('time').sleep(600)\n")
    arguments = [*machine.PYTEST, "-q", f"--rootdir={tmp_path}", str(tmp_path)]
    heard: list[str] = []
    account = machine.run_here(
        arguments,
        tmp_path,
        tmp_path / "log",
        facts={"release": "6.1"},
        case_timeout_s=2.0,
        heard=lambda event: heard.append(event["event"]),
    )
    found = {case.rpartition("::")[2]: outcome for case, outcome in account.results().items()}
    assert found["test_passes"] == ("passed", "")
    assert found["test_slow"][0] == "failed" and "silent for 2 s" in found["test_slow"][1]
    assert heard[0] == "collected" and account.facts == {"release": "6.1"}
    assert not account.died_before_tests


# -- results -------------------------------------------------------------------------------


def facts(series: str = "6.1", *, lockdown: str = "none", pmu: bool = False) -> results.KernelFacts:
    """A kernel with FPROBE off and BPF_LSM on."""
    return results.KernelFacts(series, {"CONFIG_BPF_LSM": "y", "CONFIG_MODULE": "m"}, pmu, lockdown)


@pytest.mark.parametrize(
    ("reason", "believed"),
    [
        ("this kernel has no kprobe.multi (first in 5.18)", ""),
        ("this kernel has no uprobe.multi (first in 6.6)", "older than 6.6"),
        ("first in 6.10", "older than 6.10"),
        ("kprobe.multi needs CONFIG_FPROBE", "CONFIG_FPROBE unset"),
        ("LSM needs CONFIG_BPF_LSM", ""),
        ("needs CONFIG_MODULE", ""),
        ("no PMU", "no PMU under emulation"),
        ("I did not feel like it", ""),
        ("refused by lockdown", ""),
        ("", ""),
    ],
)
def test_skip_is_believed_only_for_a_fact_that_holds(reason: str, believed: str) -> None:
    """The version and the configuration are the kernel's own, not the test's."""
    assert results.why_skip_is_believed(reason, facts()) == believed


def test_lack_of_hardware_is_not_believed_where_there_is_some() -> None:
    """With a performance counter unit the probe was wrong."""
    assert results.why_skip_is_believed("no PMU", facts(pmu=True)) == ""


@pytest.mark.parametrize(
    ("elsewhere", "verdict"), [("passed", "skipped: lockdown"), ("skipped", "failed: skipped for")]
)
def test_lockdown_excuses_only_what_another_kernel_of_the_table_allowed(elsewhere: str, verdict: str) -> None:
    """Else it would excuse a test that never runs anywhere."""
    raw = {"6.1": {"a": ("skipped", "refused by lockdown")}, "6.12": {"a": (elsewhere, "refused by lockdown")}}
    settled = results.settle(raw, {"6.1": facts(lockdown="integrity"), "6.12": facts("6.12")})
    assert settled["6.1"]["a"].startswith(verdict)


def test_lockdown_is_excused_by_a_kernel_of_an_earlier_run() -> None:
    """A run of one kernel is judged as a run of all would be."""
    raw = {"6.1": {"x::a": ("skipped", "lockdown refuses it")}}
    kernel = {"6.1": facts(lockdown="integrity")}
    for before, verdict in (
        ({}, "failed"),
        ({"6.12": {"x::a": "passed"}}, "skipped"),
        ({"6.1": {"x::a": "passed"}}, "failed"),
    ):
        assert results.settle(raw, kernel, before)["6.1"]["x::a"].startswith(verdict)


def test_merge_keeps_other_kernels_and_drops_what_a_whole_run_no_longer_has(tmp_path: Path) -> None:
    """A narrowed run adds to the file, a whole one replaces its kernels."""
    path = tmp_path / "build" / "vm.json"
    results.merge(path, {"6.12": {"a": "passed"}, "5.10": {"a": "passed", "b": "passed"}}, replace=True)
    results.merge(path, {"5.10": {"b": "failed: x"}}, replace=False)
    assert json.loads(path.read_text()) == {"5.10": {"a": "passed", "b": "failed: x"}, "6.12": {"a": "passed"}}
    results.merge(path, {"5.10": {"c": "passed"}}, replace=True)
    held = json.loads(path.read_text())
    assert held == {"5.10": {"c": "passed"}, "6.12": {"a": "passed"}}
    assert list(held) == ["5.10", "6.12"], "in the order of releases, not of letters"


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], "–"),
        (["passed"], "yes"),
        (["passed", "passed"], "yes (2)"),
        (["skipped: older than 6.6 (no uprobe.multi)"], "older than 6.6"),
        (["passed", "skipped: CONFIG_FPROBE unset (x)"], "1 of 2; CONFIG_FPROBE unset"),
        (["passed", "failed: x", "skipped: older than 6.6 (y)"], "**1 of 3 failed**"),
    ],
)
def test_cell_says_the_worst_first(outcomes: list[str], expected: str) -> None:
    """A failure hides nothing behind passes."""
    assert results.cell(outcomes) == expected


def test_page_has_a_row_for_each_group_and_every_failure_in_words() -> None:
    """Kernels in the order of releases; a case that was not run somewhere is a dash there."""
    settled = {
        "6.12": {"tests/kernel/test_maps.py::a": "passed", "x::b": "passed"},
        "5.10": {"tests/kernel/test_maps.py::a": "failed: the verifier\nsaid no"},
    }
    told = {"5.10": {"release": "5.10.0-46", "config": {"CONFIG_FPROBE": ""}, "deaths_before_tests": ["panic"]}}
    page = results.table(settled, {"x::b": "hook/kprobe hook/kretprobe"}, told, "make vm")
    assert "| | 5.10 | 6.12 |" in page
    assert "## Hook\n\n| | 5.10 | 6.12 |\n|---|---|---|\n| kprobe | – | yes |\n| kretprobe | – | yes |" in page
    assert "| maps | **1 of 1 failed** | yes |" in page
    assert "- 5.10: `tests/kernel/test_maps.py::a`: the verifier said no" in page
    assert "| guests lost before their tests, and booted again | 1 | 0 |" in page
    assert "| `CONFIG_FPROBE` | unset | unset |" in page
