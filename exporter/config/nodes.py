"""YAML text to a bounded node tree, and node to text: what no schema needs to know.

PyYAML composes nodes with marks (file, line, column) and is asked for nothing
else: its resolver, which would make ``on`` a boolean and ``0777`` an octal
number, never decides a value here. A first pass over the event stream refuses what would
make composing expensive or ambiguous: depth, size, tags, a second document.
Aliases share nodes, so a small file may describe a huge tree;
:class:`Reading` counts every visit and stops at a bound.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from exporter.errors import ConfigError, Problems

try:
    from yaml import CSafeLoader as Loader
except ImportError:  # PyYAML built without libyaml: slower, the same nodes
    from yaml import SafeLoader as Loader  # type: ignore[assignment]

FILE_LIMIT_BYTES = 1 << 20
DEPTH_LIMIT = 32
VISIT_LIMIT = 100_000
SECRET_LIMIT_BYTES = 64 << 10

_SUBSTITUTION = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class _Named(io.StringIO):
    """Text with the file name that marks will carry."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name


def read_file(path: Path) -> str:
    """Read a configuration file.

    Raises:
        ConfigError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from error
    if len(data) > FILE_LIMIT_BYTES:
        raise ConfigError(
            f"is larger than {FILE_LIMIT_BYTES >> 20} MiB; a configuration is text of a few kB", file=str(path)
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        raise ConfigError(
            f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8",
            file=str(path),
            line=before.count(b"\n") + 1,
            column=len(before) - before.rfind(b"\n"),
        ) from error


def compose(text: str, file: str) -> Node | None:
    """Compose the one document of ``text``; None if there is nothing but comments.

    Raises:
        ConfigError: the text is not YAML, or more than a configuration needs.
    """
    try:
        _refuse_the_unbounded(text, file)
        loader = Loader(_Named(text, file))
        try:
            node: Node | None = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = f", {error.context}" if error.context else ""
        raise ConfigError(
            f"not YAML: {error.problem or error.context}{context if error.problem else ''}",
            file=file,
            line=mark.line + 1 if mark else 1,
            column=mark.column + 1 if mark else 1,
        ) from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        line, column = _first_unprintable(text)
        raise ConfigError("not YAML: a control character; remove it", file=file, line=line, column=column) from error
    return None if node is None or is_nothing(node) else node


def _refuse_the_unbounded(text: str, file: str) -> None:
    depth = documents = 0
    for event in yaml.parse(_Named(text, file), Loader=Loader):
        problem = ""
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                problem = "a second document starts here; one file is one document"
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
            if depth > DEPTH_LIMIT:
                problem = f"nested deeper than {DEPTH_LIMIT} levels"
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        tag = getattr(event, "tag", None)
        if tag is not None:
            problem = f"tag {tag!r} is not supported; the key decides the type of its value"
        if problem:
            assert event.start_mark is not None
            mark = event.start_mark
            raise ConfigError(problem, file=file, line=mark.line + 1, column=mark.column + 1)


def _first_unprintable(text: str) -> tuple[int, int]:
    match = re.search(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
    start = match.start() if match else 0
    return text.count("\n", 0, start) + 1, start - text.rfind("\n", 0, start)


@dataclass(frozen=True, slots=True)
class Text:
    """A scalar after substitution.

    Attributes:
        value: What it says.
        written: What the file says, for messages: a substituted secret is not shown.
        directory: Of the file it stands in; what a relative path starts from.
        bare: Neither quoted nor a block: may be read as a number or a boolean. Something
            substituted may be too, since YAML's flow style forces quotes around it.
    """

    value: str
    written: str
    directory: Path
    bare: bool


@dataclass(slots=True)
class Reading:
    """One reading of one configuration: the environment, what was found wrong, and how much was visited."""

    environment: Mapping[str, str]
    problems: list[ConfigError] = field(default_factory=list)
    visits: int = 0
    _merging: list[Node] = field(default_factory=list)

    def fail(self, node: Node, message: str) -> None:
        """Record a problem at a node's position."""
        mark = node.start_mark
        self.problems.append(ConfigError(message, file=mark.name, line=mark.line + 1, column=mark.column + 1))

    def visit(self, node: Node) -> None:
        """Count a node and what it holds; raises what was found so far, and the bound, when aliases make too many."""
        self.visits += 1 + (len(node.value) if not isinstance(node, ScalarNode) else 0)
        if self.visits > VISIT_LIMIT:
            self.fail(node, f"aliases expand to more than {VISIT_LIMIT} values; write less")
            raise Problems(self.problems)

    def text(self, node: Node, path: str) -> Text | None:
        """Read a scalar, or record why it is not one."""
        self.visit(node)
        if not isinstance(node, ScalarNode):
            self.fail(node, f"{path} is {describe(node)}; must be a single value")
            return None
        written: str = node.value
        bare = _is_bare(node)
        directory = Path(node.start_mark.name).absolute().parent
        if "${" not in written:
            return Text(written, written, directory, bare)
        try:
            value = _SUBSTITUTION.sub(self._substitute, written)
        except ValueError as error:
            self.fail(node, f"{path}: {error}")
            return None
        return Text(value, written, directory, bare or _SUBSTITUTION.sub("", written) == "")

    def _substitute(self, match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        name = match[1]
        if not match[2]:
            raise ValueError(f"{match[0]!r} has no closing brace; write $${{ for a literal ${{")
        if name.startswith("file:"):
            return _secret(name.removeprefix("file:"))
        if not _VARIABLE.match(name):
            raise ValueError(f"{match[0]!r} is neither ${{NAME}} nor ${{file:/path}}; write $${{ for a literal ${{")
        if name not in self.environment:
            raise ValueError(f"environment variable {name!r} is not set")
        return self.environment[name]

    def pairs(self, node: Node, path: str) -> list[tuple[ScalarNode, Node]] | None:
        """Read a mapping's keys and values: merge keys expanded, duplicate keys recorded.

        A bare nothing (``key:`` with all below it commented out) is an empty mapping.
        """
        self.visit(node)
        if is_nothing(node):
            return []
        if not isinstance(node, MappingNode):
            self.fail(node, f"{path} is {describe(node)}; must be a mapping")
            return None
        own: dict[str, tuple[ScalarNode, Node]] = {}
        merged: dict[str, tuple[ScalarNode, Node]] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self.fail(key, f"{path} has {describe(key)} as a key; must be a single value")
            elif key.value == "<<" and _is_bare(key):
                for pair in self._merged(value, path):
                    merged.setdefault(pair[0].value, pair)
            elif key.value in own:
                first = own[key.value][0].start_mark
                self.fail(key, f"{join(path, key.value)} is given twice; first on line {first.line + 1}")
            else:
                own[key.value] = (key, value)
        return list(own.values()) + [pair for name, pair in merged.items() if name not in own]

    def _merged(self, node: Node, path: str) -> Iterator[tuple[ScalarNode, Node]]:
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            if any(source is open_ for open_ in self._merging):
                self.fail(source, f"{join(path, '<<')} merges a mapping into itself")
            elif isinstance(source, MappingNode):
                self._merging.append(source)
                yield from self.pairs(source, path) or []
                self._merging.pop()
            else:
                self.fail(source, f"{join(path, '<<')} is {describe(source)}; must be an alias of a mapping")

    def items(self, node: Node, path: str) -> list[Node] | None:
        """Read a list's nodes; a bare nothing is an empty list."""
        self.visit(node)
        if is_nothing(node):
            return []
        if not isinstance(node, SequenceNode):
            self.fail(node, f"{path} is {describe(node)}; must be a list")
            return None
        return list(node.value)


def _secret(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"'${{file:{path}}}' is not an absolute path")
    try:
        with Path(path).open("rb") as file:
            data = file.read(SECRET_LIMIT_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"'${{file:{path}}}' cannot be read: {reason}") from error
    if len(data) > SECRET_LIMIT_BYTES:
        raise ValueError(f"'${{file:{path}}}' is larger than {SECRET_LIMIT_BYTES >> 10} KiB")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"'${{file:{path}}}' is not UTF-8") from error
    return text.removesuffix("\n").removesuffix("\r")


def is_nothing(node: Node) -> bool:
    """Whether there is nothing at all after the key."""
    return isinstance(node, ScalarNode) and _is_bare(node) and node.value == ""


def _is_bare(node: ScalarNode) -> bool:
    return not node.style  # None from PyYAML's own parser, "" from libyaml's


def describe(node: Node) -> str:
    """What a node is, for a message: its text, or what kind of collection."""
    if isinstance(node, ScalarNode):
        return repr(node.value) if len(node.value) <= 100 else repr(node.value[:97] + "...")
    return "a mapping" if isinstance(node, MappingNode) else "a list"


def join(path: str, key: str) -> str:
    """Extend a path that is shown in messages."""
    return f"{path}.{key}" if path and path != TOP else key


TOP = "the configuration"
"""What messages call the whole document."""
