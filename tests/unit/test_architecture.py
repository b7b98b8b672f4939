"""The house's walls: who may import whom, native modules included."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "exporter"
NATIVE_HOMES = {
    "_libbpf": "kernel",
    "_reader": "kernel",
    "_frame": "collect",
    "_encode": "export",
    "_sent": "export",
}


def imported_names(source: str) -> set[str]:
    """Every dotted name a module imports, with the names taken from it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(f"{node.module or ''}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize(("module", "home"), NATIVE_HOMES.items())
def test_native_module_is_imported_only_by_the_package_it_is_installed_in(module: str, home: str) -> None:
    """Import-linter does not see extensions, so the syntax trees are asked."""
    offenders = [
        path.relative_to(ROOT)
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] != home
        and any(module in name.split(".") for name in imported_names(path.read_text()))
    ]
    assert not offenders, f"{module} belongs to exporter.{home}"


def test_import_contracts_hold() -> None:
    """The layers of architecture.md, as import-linter reads them from pyproject.toml."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "package", ["image", "bpf", "plan", "kernel", "collect", "export", "agent", "dashboard", "cli"]
)
def test_every_package_opens_with_its_preface(package: str) -> None:
    """``__init__.py`` says what the package knows and what it must not know."""
    preface = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text()))
    assert preface, package
    assert "not" in preface, f"exporter.{package} does not say what it must not know"


@pytest.mark.slow
def test_threads_processes_and_signals_live_in_the_agent_alone() -> None:
    """``agent/`` owns threads and signals; the loader's child process belongs to ``kernel/``."""
    starters = {"threading.Thread", "signal.signal"}
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in ("agent", "cli"):
            continue
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        assert not calls & starters, f"{path.relative_to(ROOT)} starts a thread or takes a signal"
