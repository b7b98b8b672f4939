"""Which types of the kernel an image is loaded with: the kernel's own, or a file's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exporter import kernel
from exporter.agent.program import kernel_types
from exporter.config import ImageConfig
from exporter.image import Bundle, Digest, parse_reference
from tests.support.elfwriter import BtfWriter

DIGEST = Digest("0" * 64)


def types(name: str) -> bytes:
    """A little BTF that can be told from another."""
    writer = BtfWriter()
    writer.int(name, 4)
    return writer.build()


def bundle(carried: bytes = b"") -> Bundle:
    """An image that may carry types."""
    return Bundle(
        parse_reference("x/y:1"), DIGEST, DIGEST, DIGEST, "file", b"", types=(lambda: carried) if carried else None
    )


def config(path: Path | str = "") -> ImageConfig:
    """An image whose configuration may name types."""
    return ImageConfig("image", "x/y:1", btf=str(path))


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that shows no types."""
    monkeypatch.setattr(kernel, "shows_types", lambda: False)


def test_kernel_that_shows_its_types_is_asked_for_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its own are the right ones; a wrong path then harms nobody."""
    monkeypatch.setattr(kernel, "shows_types", lambda: True)
    assert kernel_types(bundle(types("a")), config(tmp_path / "none")) == (b"", "")


@pytest.mark.usefixtures("hidden")
def test_types_come_from_the_configuration_before_the_image(tmp_path: Path) -> None:
    """Who runs the host knows its kernel."""
    (tmp_path / f"{os.uname().release}.btf").write_bytes(types("a"))
    assert kernel_types(bundle(types("b")), config(tmp_path)) == (types("a"), "")
    assert kernel_types(bundle(types("b")), config()) == (types("b"), "")


@pytest.mark.usefixtures("hidden")
def test_types_that_are_not_found_are_no_failure_yet(tmp_path: Path) -> None:
    """Why there are none is kept for whoever misses them."""
    found, why = kernel_types(bundle(b"text"), config(tmp_path / "none"))
    assert found == b""
    assert "none' cannot be read: No such file" in why and "'image image' cannot be read" in why and "\n" not in why
    assert kernel_types(bundle(), config()) == (b"", "")
