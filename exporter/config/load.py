"""From files to one configuration: images of one name merge, any other key has one home."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode

from exporter.errors import ConfigError, Problems, SkepError, raise_all

from .document import AGENT, IMAGE, IMAGE_NAME, IMAGE_NAME_MEANING
from .nodes import TOP, Reading, compose, is_nothing, join, read_file
from .otlp import OtlpEnvironment, make_otlp_config, settings_from_environment
from .schema import did_you_mean
from .types import (
    AgentConfig,
    AttachConfig,
    EventConfig,
    ImageConfig,
    JsonEventsConfig,
    Limits,
    MapConfig,
    MetricConfig,
    RegistryConfig,
    RetryConfig,
    StoreConfig,
    TelemetryConfig,
)

NameOf = Callable[[str], str]
"""Gives an image's default name from its reference; raises ``SkepError`` for what is no reference."""


def default_image_name(ref: str) -> str:
    """Give the last part of a reference without tag, digest and ``.bpf.o``.

    >>> default_image_name("registry.example:5000/bpf/disk-latency:1.4@sha256:00")
    'disk-latency'
    """
    path = ref.partition("@")[0].rstrip("/").rpartition("/")[2]
    scheme, colon, rest = path.partition(":")
    if colon and scheme in ("catalog", "oci"):
        path = rest
    path = path.partition(":")[0]
    return path.removesuffix(".o").removesuffix(".bpf")


def config_files(file: Path, directory: Path | None = None) -> list[Path]:
    """List what one ``--config.file`` means: the file, then ``*.yaml`` of its ``agent.d``, by name.

    Args:
        file: Need not exist; reading it says so.
        directory: Read this one instead of the ``agent.d`` beside the file; then it must exist.

    Raises:
        ConfigError: a directory was named and cannot be read.
    """
    beside = file.parent / "agent.d"
    try:
        entries = sorted((directory or beside).iterdir())
    except OSError as error:
        if directory is None and isinstance(error, FileNotFoundError):
            return [file]
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(directory or beside)) from error
    return [file, *(entry for entry in entries if entry.suffix == ".yaml" and not entry.name.startswith("."))]


def load(
    paths: Sequence[Path], *, environment: Mapping[str, str] | None = None, name_of: NameOf = default_image_name
) -> AgentConfig:
    """Read files into one configuration.

    Args:
        paths: In order; an image of the first file that has it keeps its place.
        environment: For ``${VAR}``; default this process's.
        name_of: See :data:`NameOf`.

    Raises:
        ConfigError, Problems: everything that is wrong, with file, line and column.
    """
    problems: list[SkepError] = []
    texts: list[tuple[str, str]] = []
    for path in paths:
        try:
            texts.append((str(path), read_file(path)))
        except ConfigError as error:
            problems.append(error)
    return _read(texts, problems, environment, name_of)


def parse(
    text: str,
    file: str,
    *,
    environment: Mapping[str, str] | None = None,
    name_of: NameOf = default_image_name,
) -> AgentConfig:
    """Read one text; ``file`` is its name in messages and what relative paths start from.

    Raises:
        ConfigError, Problems: everything that is wrong, with file, line and column.
    """
    return _read([(file, text)], [], environment, name_of)


def _read(
    texts: Sequence[tuple[str, str]],
    problems: list[SkepError],
    environment: Mapping[str, str] | None,
    name_of: NameOf,
) -> AgentConfig:
    reading = Reading(os.environ if environment is None else environment)
    roots: list[Node] = []
    for file, text in texts:
        try:
            root = compose(text, file)
        except ConfigError as error:
            problems.append(error)
        else:
            if root is not None:
                roots.append(root)
    config = AgentConfig()
    try:
        config = _Merge(reading, name_of).read(roots)
    except Problems as error:  # the bound on visits: what was found so far is in reading.problems
        assert error.problems
    raise_all([*problems, *_in_order(reading.problems, [file for file, _ in texts])])
    return config


def _in_order(problems: Sequence[ConfigError], files: Sequence[str]) -> list[ConfigError]:
    """Order problems as a reader meets them, file by file; one that an alias repeats is told once."""
    unique = {str(problem): problem for problem in problems}
    return sorted(unique.values(), key=lambda p: (files.index(p.file), p.line, p.column))


@dataclass(frozen=True, slots=True)
class _Image:
    """One entry of ``images``, of one file or merged of several: its name, its path for messages, its node."""

    name: str
    path: str
    node: Node


class _Merge:
    """Makes one document of several, then reads it."""

    def __init__(self, reading: Reading, name_of: NameOf) -> None:
        self.reading = reading
        self.name_of = name_of

    def read(self, roots: Sequence[Node]) -> AgentConfig:
        images: list[_Image] = []
        rest: dict[str, tuple[ScalarNode, Node]] = {}
        for root in roots:
            for key, value in self.reading.pairs(root, TOP) or []:
                if key.value == "images":
                    self._collect(value, images)
                elif key.value in rest:
                    self._twice(key, rest[key.value][0], key.value)
                else:
                    rest[key.value] = (key, value)
        values: dict[str, Any] = {}
        for key, value in rest.values():
            known = AGENT.keys.get(key.value)
            if known is None:
                hint = did_you_mean(key.value, AGENT.keys) or f"; known are {', '.join(AGENT.keys)}"
                self.reading.fail(key, f"{key.value} is not a key{hint}")
            else:
                values[key.value] = known.type.read(self.reading, value, key.value)
        read = [(image, self._image(image)) for image in images]
        if self.reading.problems:
            return AgentConfig()
        return _build(read, values, settings_from_environment(self.reading.environment))

    def _collect(self, node: Node, images: list[_Image]) -> None:
        """Add one file's images; one whose name an earlier file has is merged into it."""
        here: dict[str, Node] = {}
        earlier = {image.name: place for place, image in enumerate(images) if image.name}
        for index, entry in enumerate(self.reading.items(node, "images") or []):
            path = f"images[{index}]"
            name = self._name(entry, path)
            if name in here:
                line = here[name].start_mark.line + 1
                self.reading.fail(entry, f"{path} is named {name!r} as the one on line {line}; give one another name")
                IMAGE.read(self.reading, entry, path)
            elif name in earlier:
                old = images[earlier[name]]
                merged = self._merged(old.node, entry, old.path)
                images[earlier[name]] = _Image(name, old.path, merged)
            else:
                images.append(_Image(name, f"images[{name}]" if name else path, entry))
            if name:
                here[name] = entry

    def _name(self, entry: Node, path: str) -> str:
        """Give an image's name, written or from its reference; "" with the problem recorded if there is none."""
        if is_nothing(entry):
            self.reading.fail(entry, f"{path} is empty; give the image's reference as ref")
        if not isinstance(entry, MappingNode):
            return ""  # reading it as an image says so
        # Apart: what is wrong with its texts is recorded when the whole image is read.
        apart = Reading(self.reading.environment, visits=self.reading.visits)
        pairs = {key.value: value for key, value in apart.pairs(entry, path) or []}
        ref = apart.text(pairs["ref"], path) if "ref" in pairs else None
        name = apart.text(pairs["name"], path) if "name" in pairs else None
        self.reading.visits = apart.visits
        default = ""
        if ref is not None and ref.value:
            try:
                default = self.name_of(ref.value)
            except SkepError as error:
                self.reading.fail(pairs["ref"], f"{join(path, 'ref')}: {error}")
        if "name" in pairs:
            return name.value if name is not None else ""
        if "ref" not in pairs:
            self.reading.fail(entry, f"{path} has neither ref nor name; give the image's reference as ref")
        elif default and not re.fullmatch(IMAGE_NAME, default):
            self.reading.fail(
                pairs["ref"], f"{path} would be named {default!r}; give it a name of {IMAGE_NAME_MEANING}"
            )
            return ""
        return default

    def _merged(self, old: Node, new: Node, path: str, *, top: bool = True) -> Node:
        """Merge two mappings into one whose nodes keep their own marks; a leaf in both is an error."""
        pairs = {key.value: (key, value) for key, value in self.reading.pairs(old, path) or []}
        for key, value in self.reading.pairs(new, path) or []:
            if key.value not in pairs:
                pairs[key.value] = (key, value)
                continue
            first_key, first = pairs[key.value]
            if top and key.value == "name":
                continue
            if isinstance(first, MappingNode) and isinstance(value, MappingNode):
                pairs[key.value] = (first_key, self._merged(first, value, join(path, key.value), top=False))
            else:
                self._twice(key, first_key, join(path, key.value))
        return MappingNode(old.tag, list(pairs.values()), old.start_mark, old.end_mark)

    def _twice(self, key: ScalarNode, first: ScalarNode, path: str) -> None:
        mark = first.start_mark
        if mark.name == key.start_mark.name:
            self.reading.fail(key, f"{path} is given twice; first on line {mark.line + 1}")
        else:
            self.reading.fail(key, f"{path} is also in {mark.name}:{mark.line + 1}; keep one of the two")

    def _image(self, image: _Image) -> dict[str, Any]:
        value = IMAGE.read(self.reading, image.node, image.path)
        if not isinstance(value, dict):
            return {}
        if "ref" not in value and "name" in value:
            self.reading.fail(image.node, f"{image.path} has no ref in any file; give the image's reference as ref")
        return {**value, "name": image.name}


def _build(
    images: Sequence[tuple[_Image, dict[str, Any]]], values: Mapping[str, Any], environment: OtlpEnvironment
) -> AgentConfig:
    defaults: Mapping[str, Any] = values.get("defaults", {})
    limits = replace(Limits(), **defaults.get("limits", {}))
    expire_after_s = defaults.get("expire_after", ImageConfig.__dataclass_fields__["expire_after_s"].default)
    retry = defaults.get("retry", {})
    telemetry = dict(values.get("telemetry", {}))
    return AgentConfig(
        images=tuple(
            _build_image(image.node, {"btf": values.get("btf", ""), **value}, limits, expire_after_s)
            for image, value in images
        ),
        registries={host: RegistryConfig(**value) for host, value in values.get("registries", {}).items()},
        retry=RetryConfig(**{f"{name}_s": value for name, value in retry.items()}),
        resource_attributes=values.get("resource", {}).get("attributes", {}),
        otlp=make_otlp_config(values.get("otlp", {}), environment, traces=telemetry.pop("traces", None)),
        json_events=JsonEventsConfig(**values.get("events", {}).get("json", {})),
        store=StoreConfig(**values.get("store", {})),
        telemetry=TelemetryConfig(**telemetry),
    )


def _build_image(node: Node, value: dict[str, Any], limits: Limits, expire_after_s: float) -> ImageConfig:
    ref = value["ref"]
    ref_node = next((item for key, item in node.value if key.value == "ref"), node)
    scheme, path = ("oci:", ref.removeprefix("oci:")) if ref.startswith("oci:") else ("", ref)
    if path.startswith(("./", "../")):
        ref = scheme + os.path.normpath(Path(ref_node.start_mark.name).absolute().parent / path)
    plain = ("pull", "required", "partial", "enabled", "labels", "globals", "btf")
    simple = {name: value[name] for name in plain if name in value}
    return ImageConfig(
        name=value["name"],
        ref=ref,
        **simple,
        metrics={name: MetricConfig(**item) for name, item in value.get("metrics", {}).items()},
        events={name: EventConfig(**item) for name, item in value.get("events", {}).items()},
        attach={name: AttachConfig(**item) for name, item in value.get("attach", {}).items()},
        maps={name: MapConfig(**item) for name, item in value.get("maps", {}).items()},
        limits=replace(limits, **value.get("limits", {})),
        expire_after_s=value.get("expire_after", expire_after_s),
        file=ref_node.start_mark.name,
        line=ref_node.start_mark.line + 1,
    )
