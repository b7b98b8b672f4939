"""The installation's harness, without a virtual machine."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from tests.vm import install, machine
from tests.vm.packages import compare_versions

CONTROL = "Package: skep\nVersion: 0.1.0+deb12\nArchitecture: all\nMaintainer: x <x@y.invalid>\nDescription: x\n x\n"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with the files that a higher version changes."""
    tree = tmp_path / "tree"
    for name, text in {
        "DEBIAN/control": CONTROL,
        "DEBIAN/conffiles": "/etc/skep/agent.yaml\n",
        "etc/skep/agent.yaml": "images: []\n",
        "usr/lib/skep/lib/python3.11/site-packages/skep-0.1.0.dist-info/METADATA": "Name: skep\nVersion: 0.1.0\n",
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    made = tmp_path / "skep_0.1.0+deb12_all.deb"
    subprocess.run(["dpkg-deb", "--build", tree, made], check=True, capture_output=True)
    return made


def test_versions_for_the_upgrade_are_each_higher_and_the_third_changes_the_configuration(
    package: Path, tmp_path: Path
) -> None:
    """Of dpkg's version and of the one that the program tells."""
    folder = tmp_path / "packages"
    folder.mkdir()
    last = "0.1.0+deb12"
    for number, name in ((2, "second"), (3, "third")):
        install.repack(package, folder, name, number)
        (made,) = folder.glob(f"{name}_*.deb")
        show = ["dpkg-deb", "--field", made, "Version"]
        version = subprocess.run(show, check=True, capture_output=True, text=True).stdout.strip()
        assert compare_versions(version, last) > 0
        assert version in made.name
        last = version
        files = subprocess.run(["dpkg-deb", "--fsys-tarfile", made], check=True, capture_output=True).stdout
        assert (b"# of the third version" in files) == (number == 3)
        assert f"Version: {version.partition('+')[0]}\n".encode() in files


def test_results_of_one_release_replace_its_own_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the page shows both, the rows of its table between the marks and nothing else changed."""
    monkeypatch.setattr(install, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(install, "PAGE", tmp_path / "page.md")
    install.PAGE.write_text("# x\n<!-- begin: python -m tests.vm.install -->\nold\n<!-- end -->\nafter\n")
    for release, outcome in (("bookworm", "failed"), ("trixie", "passed"), ("bookworm", "passed")):
        account = machine.Account()
        for event in (
            {"event": "facts", "facts": {"system": release, "release": "6.1", "systemd": "252", "python": "3.11"}},
            {"event": "collected", "cases": ["it_works", "never_begun"]},
            {"event": "case", "case": "it_works", "outcome": outcome},
        ):
            account.hear(event)
        install.merge(release, account, {"size": (10.0, "MB")})
    install.write_page()
    text = install.PAGE.read_text()
    assert text.startswith("# x\n<!-- begin")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    assert "| it works | passed | passed |" in text
    assert "| never begun | failed | failed |" in text
    assert "| size | 10.0 MB | 10.0 MB |" in text


def test_every_case_says_what_it_proves_and_the_harness_can_name_it() -> None:
    """The scenario is read, not imported: it is the guest's."""
    tree = ast.parse(install.SCENARIO.read_text())
    cases = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and any(getattr(one, "id", "") == "case" for one in node.decorator_list)
    ]
    assert cases[0].name == install.FIRST_CASE
    assert all(ast.get_docstring(node) for node in cases)


def test_queries_that_must_have_data_are_most_of_the_hosts_board() -> None:
    """Those of trouble are left out, and nothing but those."""
    found = install.host_queries()
    assert len(found) >= 12
    assert any("ebpf_process_exits_total" in one for one in found)
    assert not any("nfs" in one or "syscalls" in one for one in found)


def test_ten_images_are_ten_and_need_no_drop_in() -> None:
    """Those of the shipped configuration, and others as cheap."""
    found = install.ten_images()
    assert len(found) == 10
    assert {name for name, enabled in install.shipped_images().items() if enabled} < set(found)


def test_a_figure_that_one_release_has_alone_is_told_as_such() -> None:
    """The wheel is of one Python."""
    known = {
        release: {"facts": {"system": release}, "figures": figures, "cases": {}}
        for release, figures in (("bookworm", {"size of the wheel": (9.5, "MB")}), ("trixie", {}))
    }
    assert "| size of the wheel | 9.5 MB | not measured |" in install.table(known)
