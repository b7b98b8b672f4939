"""What may stand where: one description that reads nodes, and writes the JSON schema.

A type reads a node into a value, or records what is wrong and gives
:data:`INVALID`. Numbers, durations and booleans are recognised here, from text and
style, by rules that can be said in one sentence each.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from yaml.nodes import MappingNode, Node, SequenceNode

from .nodes import Reading, Text, describe, join

INVALID: Final = object()
"""What a type gives when it recorded a problem."""

JsonSchema = dict[str, Any]

_SUBSTITUTED: JsonSchema = {"type": "string", "pattern": r"\$\{"}


class Type(Protocol):
    """What a value may be."""

    def read(self, reading: Reading, node: Node, path: str) -> object: ...
    def json_schema(self) -> JsonSchema: ...


class _Scalar:
    """A type of single values: subclasses say what text means."""

    def read(self, reading: Reading, node: Node, path: str) -> object:
        text = reading.text(node, path)
        if text is None:
            return INVALID
        try:
            return self.parse(text)
        except ValueError as error:
            reading.fail(node, f"{path} is {error}")
            return INVALID

    def parse(self, text: Text) -> object:
        """Give the value, or raise ``ValueError`` with "<found>; must be <expected>"."""
        raise NotImplementedError


def _shown(text: Text) -> str:
    if not text.written:
        return "empty"
    return repr(text.written) if len(text.written) <= 100 else repr(text.written[:97] + "...")


@dataclass(frozen=True)
class String(_Scalar):
    """Text, whatever it looks like: ``on`` and ``0777`` stay as they are written.

    Attributes:
        pattern: A regular expression for the whole text, and ``meaning`` says it in words.
    """

    pattern: str = ""
    meaning: str = ""
    empty: bool = False

    def parse(self, text: Text) -> str:
        if not text.value and not self.empty:
            raise ValueError("empty; must be text, or leave the key out")
        if self.pattern and not re.fullmatch(self.pattern, text.value):
            raise ValueError(f"{_shown(text)}; must be {self.meaning}")
        if "\0" in text.value:
            raise ValueError(f"{_shown(text)}; must not hold a NUL character")
        return text.value

    def json_schema(self) -> JsonSchema:
        # YAML 1.1 tools, editors among them, read an unquoted 1 or true as a number or boolean.
        if not self.pattern:
            return {"type": ["string", "number", "boolean"]}
        return {"type": "string", "pattern": rf"^(?:{self.pattern})$|\$\{{"}


@dataclass(frozen=True)
class Choice(_Scalar):
    """One of a few words."""

    words: tuple[str, ...]

    def parse(self, text: Text) -> str:
        if text.value not in self.words:
            raise ValueError(f"{_shown(text)}; must be {_either(self.words)}{did_you_mean(text.value, self.words)}")
        return text.value

    def json_schema(self) -> JsonSchema:
        return {"anyOf": [{"enum": list(self.words)}, _SUBSTITUTED]}


@dataclass(frozen=True)
class Bool(_Scalar):
    """``true`` or ``false``, unquoted, and no other word."""

    def parse(self, text: Text) -> bool:
        if text.value not in ("true", "false") or not text.bare:
            quoted = "" if text.bare else ", quoted"
            raise ValueError(f"{_shown(text)}{quoted}; must be true or false{', unquoted' if quoted else ''}")
        return text.value == "true"

    def json_schema(self) -> JsonSchema:
        return {"anyOf": [{"type": "boolean"}, _SUBSTITUTED]}


_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,38})")


@dataclass(frozen=True)
class Int(_Scalar):
    """A decimal integer: no leading zeros, exponents or underscores."""

    minimum: int
    maximum: int = 1 << 53

    def parse(self, text: Text) -> int:
        if not text.bare or not _INTEGER.fullmatch(text.value):
            quoted = "" if text.bare else ", quoted"
            raise ValueError(f"{_shown(text)}{quoted}; must be a plain decimal integer")
        number = int(text.value)
        if number < self.minimum:
            raise ValueError(f"{number}; must be at least {self.minimum}")
        if number > self.maximum:
            raise ValueError(f"{number}; must be at most {self.maximum}")
        return number

    def json_schema(self) -> JsonSchema:
        return {"anyOf": [{"type": "integer", "minimum": self.minimum, "maximum": self.maximum}, _SUBSTITUTED]}


_DURATION = re.compile(r"(?:(\d{1,6})w)?(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?(?:(\d{1,9})ms)?")
_SECONDS = (604800.0, 86400.0, 3600.0, 60.0, 1.0, 0.001)


def parse_duration(text: str) -> float:
    """Read a duration such as ``10s`` or ``1h30m`` into seconds.

    Units are w, d, h, m, s and ms, each at most once and the larger first.

    Raises:
        ValueError: it is none.
    """
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"{text!r}; must be a duration such as 10s, 1h30m or 500ms")
    return sum(int(part) * seconds for part, seconds in zip(match.groups(), _SECONDS, strict=True) if part)


@dataclass(frozen=True)
class Duration(_Scalar):
    """Seconds, from ``10s`` or ``1h30m``."""

    minimum: str
    maximum: str = "52w"

    def parse(self, text: Text) -> float:
        try:
            seconds = parse_duration(text.value)
        except ValueError:
            raise ValueError(f"{_shown(text)}; must be a duration such as 10s, 1h30m or 500ms") from None
        if seconds < parse_duration(self.minimum):
            raise ValueError(f"{_shown(text)}; must be at least {self.minimum}")
        if seconds > parse_duration(self.maximum):
            raise ValueError(f"{_shown(text)}; must be at most {self.maximum}")
        return seconds

    def json_schema(self) -> JsonSchema:
        return {"type": "string", "pattern": r"^(\d+w)?(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$|\$\{", "minLength": 2}


_SIZE = re.compile(r"(0|[1-9]\d{0,15})(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)")
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}  # fmt: skip


@dataclass(frozen=True)
class Size(_Scalar):
    """Bytes, from ``64MiB``, ``512kB`` or ``4096B``."""

    minimum: str

    def parse(self, text: Text) -> int:
        match = _SIZE.fullmatch(text.value)
        if match is None:
            raise ValueError(f"{_shown(text)}; must be a size such as 64MiB, 512kB or 4096B")
        size = int(match[1]) * _BYTES[match[2]]
        least = _SIZE.fullmatch(self.minimum)
        assert least is not None
        if size < int(least[1]) * _BYTES[least[2]]:
            raise ValueError(f"{_shown(text)}; must be at least {self.minimum}")
        return size

    def json_schema(self) -> JsonSchema:
        return {"type": "string", "pattern": rf"^{_SIZE.pattern}$|\$\{{"}


@dataclass(frozen=True)
class PathText(_Scalar):
    """A path; a relative one starts from the directory of the file it is written in.

    Attributes:
        names: Whether text without a slash is not a path but a name that something else looks for.
    """

    names: bool = False

    def parse(self, text: Text) -> str:
        if not text.value or "\0" in text.value:
            raise ValueError(f"{_shown(text)}; must be a path")
        if self.names and "/" not in text.value:
            return text.value
        return str(text.directory / text.value)

    def json_schema(self) -> JsonSchema:
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class HttpUrl(_Scalar):
    """An ``http://`` or ``https://`` URL with a host and without credentials."""

    def parse(self, text: Text) -> str:
        try:
            url = urlsplit(text.value)
            good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            good = False
        if not good or re.search(r"\s", text.value) or url.query or url.fragment:
            raise ValueError(f"{_shown(text)}; must be a URL such as https://collector.example:4318")
        if url.username is not None or url.password is not None:
            raise ValueError("a URL with credentials in it; put them under headers")
        return text.value

    def json_schema(self) -> JsonSchema:
        return {"type": "string", "pattern": r"^https?://|\$\{"}


def parse_value(text: str) -> bool | int | float | str:
    """Read an unquoted value whose type something else knows (BTF): by how it is written, else it is text.

    ``true`` and ``false``, decimal and ``0x`` integers, and decimals with a point are what they look like.
    """
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?(0|[1-9][0-9]{0,19})", text):
        return int(text)
    if re.fullmatch(r"0x[0-9A-Fa-f]{1,16}", text):
        return int(text, 16)
    if re.fullmatch(r"-?(0|[1-9][0-9]{0,19})\.[0-9]{1,20}", text):
        return float(text)
    return text


@dataclass(frozen=True)
class Untyped(_Scalar):
    """A value whose type something else knows: :func:`parse_value`, or text if quoted; lists and mappings of such."""

    def read(self, reading: Reading, node: Node, path: str) -> object:
        return self._read(reading, node, path, ())

    def _read(self, reading: Reading, node: Node, path: str, within: tuple[Node, ...]) -> object:
        if any(node is outer for outer in within):
            reading.fail(node, f"{path} is an alias of what it stands in; write the value")
            return INVALID
        within = (*within, node)
        if isinstance(node, SequenceNode):
            items = reading.items(node, path) or ()
            return [self._read(reading, item, f"{path}[{index}]", within) for index, item in enumerate(items)]
        if isinstance(node, MappingNode):
            pairs = reading.pairs(node, path) or ()
            return {key.value: self._read(reading, value, join(path, key.value), within) for key, value in pairs}
        return super().read(reading, node, path)

    def parse(self, text: Text) -> bool | int | float | str:
        return parse_value(text.value) if text.bare else text.value

    def json_schema(self) -> JsonSchema:
        return {"type": ["boolean", "number", "string", "array", "object"]}


@dataclass(frozen=True)
class ListOf:
    """A list, each element of one type and none given twice."""

    item: Type

    def read(self, reading: Reading, node: Node, path: str) -> object:
        nodes = reading.items(node, path)
        if nodes is None:
            return INVALID
        values: list[Any] = []
        for index, item in enumerate(nodes):
            value = self.item.read(reading, item, f"{path}[{index}]")
            if value is not INVALID and value in values:
                reading.fail(item, f"{path}[{index}] is {describe(item)} again; give each once")
            values.append(value)
        return tuple(values)

    def json_schema(self) -> JsonSchema:
        return {"type": ["array", "null"], "items": self.item.json_schema(), "uniqueItems": True}


@dataclass(frozen=True)
class MapOf:
    """A mapping from names the user chooses to values of one type."""

    key: str
    key_meaning: str
    value: Type

    def read(self, reading: Reading, node: Node, path: str) -> object:
        pairs = reading.pairs(node, path)
        if pairs is None:
            return INVALID
        result: dict[str, Any] = {}
        for key, value in pairs:
            if not re.fullmatch(self.key, key.value):
                reading.fail(key, f"{path} has the key {describe(key)}; must be {self.key_meaning}")
            result[key.value] = self.value.read(reading, value, join(path, key.value))
        return result

    def json_schema(self) -> JsonSchema:
        return {
            "type": ["object", "null"],
            "propertyNames": {"pattern": f"^(?:{self.key}|<<)$"},
            "additionalProperties": self.value.json_schema(),
        }


@dataclass(frozen=True)
class Key:
    """One key of an :class:`Object`.

    Attributes:
        help: What it means, one sentence or two.
        default: As it would be written; empty if there is none to write.
    """

    type: Type
    help: str
    default: str = ""
    required: bool = False


Check = Callable[[Reading, Node, str, dict[str, Any]], None]


@dataclass(frozen=True)
class Object:
    """A mapping with fixed keys; reads into a dict of the keys that are there.

    Attributes:
        check: Called with what was read when every key was right by itself.
    """

    keys: Mapping[str, Key]
    check: Check | None = None
    help: str = ""
    json_extra: JsonSchema = field(default_factory=dict)

    def read(self, reading: Reading, node: Node, path: str) -> object:
        pairs = reading.pairs(node, path)
        if pairs is None:
            return INVALID
        before = len(reading.problems)
        result: dict[str, Any] = {}
        for key, value in pairs:
            known = self.keys.get(key.value)
            if known is None:
                hint = did_you_mean(key.value, self.keys) or f"; known are {', '.join(self.keys)}"
                reading.fail(key, f"{join(path, key.value)} is not a key{hint}")
            else:
                result[key.value] = known.type.read(reading, value, join(path, key.value))
        for name, known in self.keys.items():
            if known.required and name not in result:
                reading.fail(node, f"{join(path, name)} is missing; {known.help[0].lower()}{known.help[1:]}")
        if self.check is not None and len(reading.problems) == before:
            self.check(reading, node, path, result)
        return result

    def json_schema(self) -> JsonSchema:
        properties: JsonSchema = {}
        for name, key in self.keys.items():
            properties[name] = {**key.type.json_schema(), "description": key.help}
            if key.default:
                properties[name]["default"] = _json_default(key.default)
        schema: JsonSchema = {
            "type": ["object", "null"],
            "properties": {**properties, "<<": {"description": "YAML merge key."}},
            "additionalProperties": False,
            **self.json_extra,
        }
        required = [name for name, key in self.keys.items() if key.required]
        if required:
            schema["required"] = required
        return schema


def _json_default(text: str) -> bool | int | str:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if _INTEGER.fullmatch(text) else text


def did_you_mean(word: str, words: Mapping[str, Any] | tuple[str, ...]) -> str:
    """Give ``; did you mean 'x'?`` if a known word is near."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _either(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
