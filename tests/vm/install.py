"""``python -m tests.vm.install``: the Debian package on real systems with systemd, from installation to purge.

::

    python -m tests.vm.install                             Debian 12 and 13; writes docs/install.md's table
    python -m tests.vm.install --release bookworm --case a_crash_loses_no_count

Each release's package is built first (``packaging/deb/build.py``), and from it two of higher versions are
made, as an upgrade needs them. The guest is that release with its own kernel, systemd and Python;
``guest/install.py`` runs in it. It has no network: what the package depends on is in its root.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporter.config import load
from tests.support.clang import compile_bpf
from tests.support.dashboards import read, substituted, targets
from tests.vm import disks, kernels, machine
from tests.vm.__main__ import BUILD, REPOSITORY, alone, say
from tests.vm.packages import Archive, HarnessError, codename, run

RESULTS = BUILD / "vm-install.json"
PAGE = REPOSITORY / "docs" / "install.md"
COMMAND = "python -m tests.vm.install"
SCENARIO = Path(__file__).parent / "guest" / "install.py"

#: A release and the kernel it came with.
RELEASES = {"bookworm": "6.1", "trixie": "6.12"}

#: Beside debootstrap's minimal base: systemd as it is installed everywhere, what the package
#: depends on, and what the scenario asks.
ROOT_PACKAGES = ("busybox-static", "systemd-sysv", "udev", "dbus", "kmod", "procps", "python3", "bpftool", "iproute2")
LIBRARIES = {"bookworm": ("libelf1", "libstdc++6", "zlib1g"), "trixie": ("libelf1t64", "libstdc++6", "zlib1g")}

#: Would only take time: nobody logs in, nothing is fetched.
MASKED = (
    *("getty@tty1.service", "serial-getty@ttyS0.service", "systemd-logind.service", "e2scrub_reap.service"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("systemd-timesyncd.service", "systemd-networkd.service", "networking.service"),
)
UNIT = """\
[Unit]
Description=the scenario
After=multi-user.target
[Service]
Type=exec
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStartPre=/usr/bin/stty -F /dev/ttyS1 raw
ExecStart=/usr/bin/python3 /skep/install.py
ExecStopPost=/usr/bin/systemctl --force --force poweroff
[Install]
WantedBy=default.target
"""
#: Room in the guest for three versions of the package, one beside the next while dpkg unpacks.
SPARE_MIB = 1024
CASE_TIMEOUT_S = 900.0
#: Metrics of images, in a query.
OF_IMAGES = re.compile(r"\bebpf_\w+")
#: It installs; without it there is nothing to look at.
FIRST_CASE = "installing_it_is_enough_for_a_scrape"

#: For each drop-in a program that needs it: object to C source.
NEEDY = {
    "tracepoint": """
MAP(counter_opens, ARRAY, 1, u32, u64);
static void *(*lookup)(void *map, const void *key) = (void *)1;
SEC("tp/syscalls/sys_enter_openat") int on_open(void *context)
{
    u32 key = 0;
    u64 *count = lookup(&counter_opens, &key);
    if (count)
        __sync_fetch_and_add(count, 1);
    return 0;
}
""",
    "packets": """
MAP(counter_packets, ARRAY, 1, u32, u64);
static void *(*lookup)(void *map, const void *key) = (void *)1;
SEC("xdp") int on_packet(void *context)
{
    u32 key = 0;
    u64 *count = lookup(&counter_packets, &key);
    if (count)
        __sync_fetch_and_add(count, 1);
    return 2;
}
""",
    "symbols": """
struct work { u64 function TAG("label=function:ksym"); };
MAP(counter_works, HASH, 4096, struct work, u64);
static void *(*lookup)(void *map, const void *key) = (void *)1;
static long (*update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
SEC("raw_tp/workqueue_execute_end") int on_work(u64 *context)
{
    struct work work = { context[1] };
    u64 one = 1, *count = lookup(&counter_works, &work);
    if (count)
        __sync_fetch_and_add(count, 1);
    else
        update(&counter_works, &work, &one, 0);
    return 0;
}
""",
    "binary": """
MAP(counter_calls, ARRAY, 1, u32, u64);
static void *(*lookup)(void *map, const void *key) = (void *)1;
SEC("uprobe") int on_call(void *context)
{
    u32 key = 0;
    u64 *count = lookup(&counter_calls, &key);
    if (count)
        __sync_fetch_and_add(count, 1);
    return 0;
}
""",
}
LICENSE = 'char LICENSE[] SEC("license") = "GPL";'


class Guests:
    """What the guests are made of."""

    def __init__(self) -> None:
        self.home = BUILD / "vm"
        self.archive = Archive(self.home / "apt", say)
        self.shelf = kernels.Shelf(self.home / "kernels", self.archive, say)
        self.disks = disks.Disks(self.home / "disks", REPOSITORY, self.archive, say)

    def root(self, release: str) -> tuple[Path, Path]:
        """A file system with a release as it is installed on a server, and the tree it was made from."""
        packages = (*ROOT_PACKAGES, *LIBRARIES[release])
        key = disks.key_of(release, packages, MASKED, UNIT, SPARE_MIB, disks.INODES_PER_SPARE_MIB)
        tree = self.home / "disks" / f"system-{release}-{key}"
        image = self.home / "disks" / f"{release}-{key}.img"
        if tree.exists() and image.exists():
            return image, tree
        if os.geteuid() != 0:
            raise HarnessError("making the guest's root file system needs root (debootstrap); run this as root once")
        say(f"{release}: debootstrap with systemd (once)")
        for old in (self.home / "disks").glob(f"system-{release}-*"):
            shutil.rmtree(old)
        fresh = tree.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.parent.mkdir(parents=True, exist_ok=True)
        options = ("--variant=minbase", f"--include={','.join(packages)}")
        run(["debootstrap", *options, release, fresh, self.archive.mirror], env={**os.environ, "LC_ALL": "C"})
        for junk in ("var/cache/apt/archives", "usr/share/doc", "usr/share/locale", "usr/share/man"):
            shutil.rmtree(fresh / junk, ignore_errors=True)
        for lists in (fresh / "var/lib/apt/lists", fresh / "etc/apt/sources.list.d"):
            shutil.rmtree(lists, ignore_errors=True)
            lists.mkdir()
        (fresh / "etc/apt/sources.list").write_text("")
        (fresh / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
        (fresh / "etc/hostname").write_text("vm\n")
        (fresh / "etc/hosts").write_text("127.0.0.1 localhost vm\n")
        system = fresh / "etc/systemd/system"
        for name in MASKED:
            (system / name).symlink_to("/dev/null")
        (system / "scenario.service").write_text(UNIT)
        wants = system / "multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / "scenario.service").symlink_to("../scenario.service")
        (system / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
        (fresh / "usr/lib/modules").mkdir(parents=True, exist_ok=True)
        (fresh / "skep").mkdir()
        fresh.rename(tree)
        self.disks.make(image, tree, spare_mib=SPARE_MIB, keep=1)
        return image, tree

    def package(self, release: str) -> Path:
        """The release's package, of the working tree as it is now."""
        say(f"{release}: building the package")
        said = run([sys.executable, REPOSITORY / "packaging/deb/build.py", "--release", release])
        say(said.strip().splitlines()[-1].removeprefix("skep deb: "))
        found = re.search(r"^skep deb: (dist/\S+\.deb):", said, re.MULTILINE)
        assert found
        return REPOSITORY / found[1]

    def wheel(self) -> Path:
        """The wheel, which is of the Python that runs this."""
        folder = self.home / "wheel"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        say("building the wheel")
        run([sys.executable, REPOSITORY / "packaging/wheel.py", folder])
        (made,) = folder.glob("*.whl")
        return made

    def cargo(self, release: str, package: Path) -> Path:
        """The disk with three versions of the package and what the scenario needs."""
        stage = self.home / "disks" / "stage-cargo"
        shutil.rmtree(stage, ignore_errors=True)
        packages = stage / "packages"
        packages.mkdir(parents=True)
        shutil.copy2(package, packages / f"first_{package.name.split('_')[1]}.deb")
        for number, name in enumerate(("second", "third"), start=2):
            repack(package, packages, name, number)
        shutil.copy2(SCENARIO, stage / "install.py")
        prometheus = shutil.which("prometheus")
        if prometheus is None:
            raise HarnessError("'prometheus' is not installed; run packaging/setup/system-packages vm")
        shutil.copy2(prometheus, stage / "prometheus")
        (stage / "queries.json").write_text(json.dumps(host_queries()))
        (stage / "images.json").write_text(json.dumps(ten_images()))
        for name, source in NEEDY.items():
            (stage / f"{name}.bpf.o").write_bytes(compile_bpf(source, program=LICENSE))
        image = self.home / "disks" / f"cargo{release}-{disks.key_of(time.time_ns())}.img"
        self.disks.make(image, stage, spare_mib=16, keep=1)
        return image

    def boot(
        self, release: str, cases: Sequence[str], package: Path
    ) -> tuple[machine.Account, dict[str, tuple[float, str]]]:
        """Run the scenario on a release; its account and its figures."""
        kernel = self.shelf.kernel(RELEASES[release])
        root, tree = self.root(release)
        logs = self.home / "logs" / f"install-{release}"
        logs.mkdir(parents=True, exist_ok=True)
        initramfs = logs / "initramfs.gz"
        initramfs.write_bytes(kernels.build_initramfs(kernel, tree / "bin/busybox"))
        orders = logs / "orders"
        orders.write_bytes(machine.encode_orders({"cases": list(cases)}))
        guest = machine.Guest(
            image=kernel.image,
            initramfs=initramfs,
            disks=(root, self.disks.modules(kernel), self.cargo(release, package), orders),
            command_line=machine.command_line(kernels.lsm_argument(kernel.config)) + " skep.init=/sbin/init",
        )
        figures: dict[str, tuple[float, str]] = {"size of the package": megabytes(package)}
        if release == codename():
            figures["size of the wheel"] = megabytes(self.wheel())

        def heard(event: dict[str, Any]) -> None:
            match event["event"]:
                case "facts":
                    say(f"{release}: {', '.join(f'{key} {text}' for key, text in event['facts'].items())}")
                case "figure":
                    figures[event["name"]] = (event["value"], event["unit"])
                    say(f"{release}: {event['name']}: {event['value']} {event['unit']}")
                case "case":
                    words = event.get("reason") or f"{event.get('took_s')} s"
                    say(f"{release}: {event['outcome']} {event['case']}: {words[:400]}")

        say(f"{release}: booting {kernel.release}")

        def once(number: int) -> machine.Account:
            return machine.boot(guest, logs / f"console-{number}.log", case_timeout_s=CASE_TIMEOUT_S, heard=heard)

        account, deaths = machine.boot_twice(once)
        for words in deaths:
            say(f"{release}: a guest died before its cases: {words}")
        stories = [f"=== {name}\n{text}" for name, text in account.details.items()]
        (logs / "failures.txt").write_text("\n\n".join(stories) + "\n")
        return account, figures


def megabytes(file: Path) -> tuple[float, str]:
    """A file's size as a figure."""
    return round(file.stat().st_size / 1e6, 1), "MB"


def repack(package: Path, folder: Path, name: str, number: int) -> None:
    """The same package with a higher version of everything, and from the third on another agent.yaml."""
    tree = folder / "tree"
    run(["dpkg-deb", "--raw-extract", package, tree])
    control = tree / "DEBIAN/control"
    found = re.search(r"^Version: (\S+)\.\d+\+(\S+)$", control.read_text(), re.MULTILINE)
    assert found
    version = f"{found[1]}.{100 + number}"
    control.write_text(
        re.sub(r"^Version: .*", f"Version: {version}+{found[2]}", control.read_text(), flags=re.MULTILINE)
    )
    (metadata,) = (tree / "usr/lib/skep/lib").glob("python3*/site-packages/skep-*.dist-info/METADATA")
    metadata.write_text(re.sub(r"^Version: .*", f"Version: {version}", metadata.read_text(), flags=re.MULTILINE))
    if number > 2:
        config = tree / "etc/skep/agent.yaml"
        config.write_text(config.read_text() + "# of the third version\n")
    target = folder / f"{name}_{version}+{found[2]}.deb"
    run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, target])
    shutil.rmtree(tree)


def shipped_images() -> dict[str, bool]:
    """Name to whether it is on, of the images of the configuration we ship."""
    found = load([REPOSITORY / "configs/agent.yaml"], name_of=lambda ref: ref.partition(":")[2])
    return {image.name: image.enabled for image in found.images}


def ten_images() -> list[str]:
    """Ten of the catalog that run with the unit's own capabilities: all but the dear ones and that of a module."""
    off = {name for name, enabled in shipped_images().items() if not enabled} | {"nfs-operations"}
    every = sorted(path.parent.name for path in (REPOSITORY / "configs/catalog").glob("*/*.bpf.c"))
    return [name for name in every if name not in off][:10]


def host_queries() -> list[str]:
    """The queries of the host's board that must have data on any host that works; those of trouble have none.

    Of the images, those that are on in the configuration we ship; which metrics are theirs is on their own boards.
    """
    quiet = re.compile(r"dropped|lost|folded|failures|error|killed|state!=\"running\"\} == 1")
    boards = [read(REPOSITORY / f"dashboards/{name}.json") for name, enabled in shipped_images().items() if enabled]
    theirs = {metric for board in boards for one in targets(board) for metric in OF_IMAGES.findall(one.expr)}
    found = (substituted(one.expr, rate_interval="20s") for one in targets(read(REPOSITORY / "dashboards/host.json")))
    return sorted({one for one in found if not quiet.search(one) and theirs.issuperset(OF_IMAGES.findall(one))})


def merge(release: str, account: machine.Account, figures: dict[str, tuple[float, str]]) -> None:
    """Note a release's results beside those of the other."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known[release] = {
        "facts": account.facts,
        "cases": {name: outcome for name, (outcome, _) in account.results().items()},
        "figures": figures,
    }
    RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def table(known: dict[str, Any]) -> str:
    """What ``docs/install.md`` shows between its marks."""
    releases = [release for release in RELEASES if release in known]
    lines = ["| | " + " | ".join(known[release]["facts"].get("system", release) for release in releases) + " |"]
    lines.append("|---" * (len(releases) + 1) + "|")
    for name, key in (("kernel", "release"), ("systemd", "systemd"), ("Python", "python")):
        lines.append(f"| {name} | " + " | ".join(known[release]["facts"].get(key, "") for release in releases) + " |")
    for kind in ("figures", "cases"):
        for name in dict.fromkeys(name for release in releases for name in known[release][kind]):
            cells = []
            for release in releases:
                found = known[release][kind].get(name, "not measured")
                cells.append(found if isinstance(found, str) else " ".join(map(str, found)))
            lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_page() -> None:
    """Put the newest table into the page."""
    text = PAGE.read_text()
    begin, end = "<!-- begin: python -m tests.vm.install -->\n", "\n<!-- end -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    PAGE.write_text(head + begin + table(json.loads(RESULTS.read_text())) + end + tail)


def main(arguments: list[str]) -> int:
    """Run the scenario on the releases asked for."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="prove the Debian package in virtual machines")
    parser.add_argument("--release", action="append", choices=RELEASES, help="repeat; default: all")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="repeat; default: all")
    parser.add_argument("--package", type=Path, metavar="DEB", help="this one instead of one built now; of one release")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, functools.partial(_end, 143))
    failures = 0
    try:
        with alone(BUILD / "vm" / "lock"):
            guests = Guests()
            for release in options.release or RELEASES:
                cases = [FIRST_CASE, *options.case] if options.case else []
                account, figures = guests.boot(release, cases, options.package or guests.package(release))
                found = account.results()
                failed = sorted(name for name, (outcome, _) in found.items() if outcome != "passed")
                if not account.finished:
                    failed.append(f"the guest's end ({account.death})")
                failures += len(failed)
                say(f"{release}: {len(found) - len(failed)} passed, {len(failed)} failed {', '.join(failed)}".rstrip())
                if not options.case:
                    merge(release, account, figures)
            if not options.case:
                write_page()
    except HarnessError as error:
        say(str(error))
        return 2
    return 1 if failures else 0


def _end(code: int, *_: object) -> None:
    sys.exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
