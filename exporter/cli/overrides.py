"""Flags that say about one image what an agent's configuration and the image's metadata would.

``--set KEY=VALUE`` is a key below the image's entry in ``images``; ``--metadata FILE`` and ``--kind MAP=KIND``
say what is measured in an object that does not say it itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import ConfigError, Problems, SkepError, raise_all

if TYPE_CHECKING:
    from exporter.config import ImageConfig
    from exporter.image import Bundle

_NAMED = ("attach", "events", "maps", "metrics")
"""Keys whose own keys are names, which may have dots in them."""
_FLAT = ("globals", "labels", "limits")
_FIXED = {"name": "it is that of REF", "ref": "give REF", "enabled": "it is run because you say so"}
_KINDS = ("counter", "gauge", "histogram", "event", "none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that :func:`configured` and :func:`described` read."""
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="settings",
        action="append",
        default=[],
        help="a key of an image's configuration, such as limits.map_memory=128MiB, attach.PROGRAM.interfaces=[eth0] or "
        "maps.MAP.max_entries=1000; repeatable",
    )
    parser.add_argument(
        "--metadata", metavar="FILE", type=Path, help="YAML that says what is measured, instead of the image's own"
    )
    parser.add_argument(
        "--kind",
        metavar="MAP=KIND",
        dest="kinds",
        action="append",
        default=[],
        help="measure this map, or MAP.MEMBER, as a counter, gauge, histogram or event (event:STRUCT if the map does "
        "not say what its records are); repeatable",
    )


def configured(args: argparse.Namespace, config: ImageConfig) -> ImageConfig:
    """Lay ``--set`` over an image's configuration.

    Raises:
        ConfigError, Problems: a key that is none, or a value that it cannot have.
    """
    if not args.settings:
        return config
    said = _parsed(args.settings, config.name)
    changes: dict[str, Any] = {}
    for field in {text.partition("=")[0].partition(".")[0].strip() for text in args.settings}:
        name = {"expire_after": "expire_after_s"}.get(field, field)
        value = getattr(said, name)
        if field in _NAMED:
            value = {**getattr(config, name), **_merged(getattr(config, name), value)}
        elif field == "limits":
            value = _over(config.limits, value)
        elif isinstance(value, Mapping):
            value = {**getattr(config, name), **value}
        changes[name] = value
    return replace(config, **changes)


def described(args: argparse.Namespace, bundle: Bundle) -> Bundle:
    """Lay ``--metadata`` and ``--kind`` over what an image says of itself.

    Raises:
        ConfigError: the file is no metadata, or a kind is none.
    """
    from exporter.cli.build import read_metadata

    document: dict[str, Any] = read_metadata(args.metadata) if args.metadata else dict(bundle.metadata)
    if not args.metadata and not args.kinds:
        return bundle
    for text in args.kinds:
        name, equals, kind = text.partition("=")
        kind, _, record = kind.partition(":")
        if not equals or not name or kind not in _KINDS or (record and kind != "event"):
            raise ConfigError(f"--kind {text!r}; must be MAP=KIND or MAP.MEMBER=KIND, KIND one of {', '.join(_KINDS)}")
        section = "events" if kind == "event" else "metrics"
        entries = document.get(section) or {}
        if not isinstance(entries, Mapping) or not isinstance(entries.get(name, {}), Mapping):
            break  # the plan says what is wrong with the document
        said = ({"record": record} if record else {}) if kind == "event" else {"kind": kind}
        document[section] = {**entries, name: {**entries.get(name, {}), **said}}
    return replace(bundle, metadata={"version": 1, **document})


def _parsed(settings: Sequence[str], name: str) -> ImageConfig:
    """Read settings as the lines of a configuration they stand for."""
    from exporter.config import parse

    tree: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        path = _path(key.strip())
        if not equals or not all(path):
            raise ConfigError(f"--set {text!r}; must be KEY=VALUE, such as limits.map_memory=128MiB")
        if path[0] in _FIXED:
            raise ConfigError(f"--set {path[0]} is not for here; {_FIXED[path[0]]}")
        if "\n" in value:
            raise ConfigError(f"--set {key} has a line break in its value; must be one line")
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {key} is below what --set gives a value; keep one of the two")
        if path[-1] in node:
            raise ConfigError(f"--set {key} is given twice")
        node[path[-1]] = value
    lines = ["images:", f"- name: {_quoted(name)}", "  ref: ./given.o", *_lines(tree, "  ")]
    try:
        return parse("\n".join(lines) + "\n", "--set", environment={}).images[0]
    except (ConfigError, Problems) as error:
        problems = error.problems if isinstance(error, Problems) else (error,)
        raise_all([_placed(problem, name) for problem in problems])
        raise


def _placed(problem: SkepError, name: str) -> SkepError:
    """The same problem without the line and column of a text that nobody wrote."""
    text = str(problem)
    if isinstance(problem, ConfigError) and problem.line:
        text = text.removeprefix(f"{problem.file}:{problem.line}:{problem.column}: ")
    return ConfigError(f"--set {text.replace(f'images[{name}].', '', 1)}")


def _path(key: str) -> list[str]:
    first, dot, rest = key.partition(".")
    if not dot:
        return [key]
    if first in _NAMED:
        middle, _, last = rest.rpartition(".")
        return [first, middle, last]
    return [first, rest] if first in _FLAT else key.split(".")


def _lines(tree: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{indent}{_quoted(key)}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{_quoted(key)}: {value}")
    return lines


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _over(old[name], value) if name in old else value for name, value in new.items()}


def _over(old: Any, new: Any) -> Any:  # noqa: ANN401 - any of the configuration's dataclasses
    """One entry of a configuration with what another says that is not its default."""
    default = type(new)()
    said = {name: getattr(new, name) for name in type(new).__dataclass_fields__}
    return replace(old, **{name: value for name, value in said.items() if value != getattr(default, name)})
