"""What packages are made of: unit, drop-ins, pinned libraries, manual page and completion."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from exporter.cli import parser as whole_parser

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "packaging/systemd/skep.service"
DROP_INS = sorted((ROOT / "packaging/systemd/skep.service.d").glob("*.conf.example"))
BY_DEFAULT = {"CAP_BPF", "CAP_PERFMON"}
EXPOSURE_BELOW = 3.0


def settings(path: Path) -> configparser.ConfigParser:
    """A unit file without keys that come twice."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser


def test_unit_has_two_capabilities_and_no_more() -> None:
    """What needs more is a drop-in that somebody puts there."""
    service = settings(UNIT)["Service"]
    assert set(service["CapabilityBoundingSet"].split()) == set(service["AmbientCapabilities"].split()) == BY_DEFAULT


def test_unit_keeps_descriptors_over_every_end_but_a_stop() -> None:
    """The store is there, told to the agent, never emptied by a start limit, and all of it can be passed at once."""
    parser = settings(UNIT)
    service = parser["Service"]
    kept = int(service["FileDescriptorStoreMax"])
    assert service["Environment"] == f"FDSTORE={kept}"
    assert int(service["LimitNOFILE"]) > kept + 1024
    assert parser["Unit"]["StartLimitIntervalSec"] == "0"
    assert service["Restart"] == "always"
    assert "RestartPreventExitStatus" not in service


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_unit_is_exposed_less_than_any_agent_of_its_kind() -> None:
    """Systemd's own score of it, lower is better."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", UNIT],
        check=True,
        capture_output=True,
        text=True,
    )
    found = re.search(r"exposure level for skep.service: ([0-9.]+)", done.stdout)
    assert found
    assert float(found[1]) < EXPOSURE_BELOW


@pytest.mark.parametrize("path", DROP_INS, ids=lambda path: path.name.partition(".")[0])
def test_drop_in_says_what_for_how_why_and_at_what_cost(path: Path) -> None:
    """A capability is given by somebody who knows what it is."""
    text = path.read_text()
    assert text.startswith("# Images ")
    for word in ("# Install:", "# Why:", "# What it costs:", "systemctl restart skep"):
        assert word in text
    service = settings(path)["Service"]
    assert service.get("CapabilityBoundingSet") == service.get("AmbientCapabilities")


def test_maintainer_script_of_an_upgrade_restarts_and_does_not_stop() -> None:
    """A stop would empty the descriptor store."""
    files = ROOT / "packaging/deb/files"
    for name in ("postinst", "prerm", "postrm"):
        subprocess.run(["sh", "-n", files / name], check=True)
    prerm = (files / "prerm").read_text()
    assert re.search(r'\[ "\$1" = remove \].*\n\s*deb-systemd-invoke stop', prerm)
    assert prerm.count("stop skep.service") == 1
    assert "stop skep" not in (files / "postinst").read_text()


def test_pinned_libraries_are_what_pyproject_asks_for() -> None:
    """The Debian package carries what was resolved from pyproject.toml; if this fails run packaging/deb/lock.py."""
    text = (ROOT / "packaging/deb/requirements.txt").read_text()
    pins = {name: Version(version) for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in [
        *project["dependencies"],
        *project["optional-dependencies"]["tui"],
        *project["optional-dependencies"]["dashboards"],
    ]:
        wanted = Requirement(line)
        assert wanted.name in pins
        assert wanted.specifier.contains(pins[wanted.name])
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", text)) >= len(pins)


def verbs() -> list[str]:
    """Every verb of the command."""
    (action,) = (one for one in whole_parser()._actions if one.dest == "==SUPPRESS==" or one.choices)
    assert action.choices is not None
    return list(action.choices)


def generate(script: str, *arguments: str) -> None:
    """Run a generator as the package's build does."""
    subprocess.run([sys.executable, ROOT / "packaging/generate" / script, *arguments], check=True, cwd=ROOT)


def test_manual_page_has_every_verb_and_is_the_same_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made of the arguments themselves."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name in ("one", "two"):
        generate("man.py", str(tmp_path / name))
    text = (tmp_path / "one").read_text()
    assert text == (tmp_path / "two").read_text()
    assert not re.findall(r"^'", text, re.MULTILINE), "troff takes a line that begins with a quote for a request"
    assert "2023\\-11\\-14" in text
    for verb in verbs():
        assert f"skep {verb}" in text.replace("\\-", "-")


def test_bash_completes_verbs_and_flags(tmp_path: Path) -> None:
    """``skep st<TAB>`` and ``skep agent --web.l<TAB>``."""
    script = tmp_path / "skep"
    generate("completion.py", "bash", str(script))

    def complete(*words: str) -> list[str]:
        line = " ".join(words)
        program = (
            f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; "
            f"COMP_POINT={len(line)}; name=$(complete -p skep | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
            f'$name skep {words[-1]} {words[-2]}; echo "${{COMPREPLY[@]}}"'
        )
        return subprocess.run(["bash", "-c", program], check=True, capture_output=True, text=True).stdout.split()

    assert "status" in complete("skep", "st")
    assert complete("skep", "agent", "--web.l") == ["--web.listen-address"]
