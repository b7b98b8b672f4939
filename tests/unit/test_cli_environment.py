"""What `skep package` takes along of the installation that it runs from."""

from pathlib import Path

import pytest

from exporter.cli import environment


def test_metadata_is_of_the_installation_and_not_of_a_build_in_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel that was built leaves ``skep.egg-info``, which Python finds first."""
    left = tmp_path / "skep.egg-info"
    left.mkdir()
    (left / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: skep\nVersion: 0.0.1\n")
    (left / "SOURCES.txt").write_text("setup.py\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert environment.distribution("skep").version == "0.0.1"
    metadata = [entry for entry in environment._skep() if entry.path.endswith(".dist-info/METADATA")]
    (entry,) = metadata
    assert isinstance(entry.source, Path) and "Version: 0.0.1\n" not in entry.source.read_text()
