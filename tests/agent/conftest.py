"""The agent's tests load BPF programs."""

from pathlib import Path

import pytest

from exporter.kernel.features import Capability, probe


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the privilege to load BPF these tests are skipped with that reason."""
    if probe().has(Capability.BPF, Capability.PERFMON, Capability.SYS_ADMIN):
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs root to load BPF programs"))
