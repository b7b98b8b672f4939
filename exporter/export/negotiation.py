"""What a client takes: ``Accept`` to one of the formats, ``Accept-Encoding`` to gzip or not.

RFC 9110, "Content Negotiation", with what scrapers mean by it:

- a range with parameters is about the format that has them: ``text/plain;version=1.0.0``
  says nothing of 0.0.4, and a version nobody here writes says nothing at all;
- the most specific range that fits a format gives its weight, so ``q=0`` takes out one
  format of many, and of equal weights the more specific wins, then the one said first;
- a client that takes none of them gets the text format 0.0.4, as every exporter does it: a scrape
  in a format that was not asked for tells more than 406.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from .prometheus import Exposition

_HEADER_LIMIT = 4096  # characters; what is beyond is not read: quoted strings take quadratic time to get wrong
_RANGES_LIMIT = 64

# One element of a list: anything but commas, quoted strings whole.
_ELEMENT = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^,"])+')
_PARAMETER = re.compile(r';[ \t]*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;," \t]*)[ \t]*')
_WEIGHT = re.compile(r"0(?:\.[0-9]*)?|1(?:\.0*)?|\.[0-9]+")

_TYPES: Mapping[Exposition, tuple[str, str]] = {
    # In the order that decides between equals.
    Exposition.TEXT_0_0_4: ("text/plain", "0.0.4"),
    Exposition.TEXT_1_0_0: ("text/plain", "1.0.0"),
    Exposition.OPENMETRICS_1_0_0: ("application/openmetrics-text", "1.0.0"),
}

# Every name here is one the old formats can write too: none is changed by these schemes. `dots` is not
# among them: it doubles each underscore, and nothing here does.
_ESCAPING = {"allow-utf-8": "allow-utf-8", "underscores": "underscores", "values": "values", "dots": "underscores"}


@dataclass(frozen=True, slots=True)
class Accepted:
    """The format a client gets.

    Attributes:
        exposition: What to write.
        content_type: What to call it. It names an escaping scheme if the client did, and then the one
            that describes the names: they are never escaped, since none needs it.
    """

    exposition: Exposition
    content_type: str


@dataclass(frozen=True, slots=True)
class _Range:
    """One element of a list of what is taken, with its weight and its place."""

    name: str
    weight: float
    place: int
    parameters: Mapping[str, str] = field(default_factory=dict)


def _ranges(header: str) -> Iterator[_Range]:
    """Read a list of weighted elements; what is malformed is passed over."""
    for place, element in enumerate(islice(_ELEMENT.finditer(header, 0, _HEADER_LIMIT), _RANGES_LIMIT)):
        name, semicolon, rest = element[0].strip().partition(";")
        parameters: dict[str, str] = {}
        tail = (semicolon + rest).rstrip()
        end = 0
        while match := _PARAMETER.match(tail, end):
            value = match[2]
            if value.startswith('"'):
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            parameters.setdefault(match[1].lower(), value)
            end = match.end()
        weight = parameters.pop("q", "1")
        if end == len(tail) and _WEIGHT.fullmatch(weight):
            yield _Range(name.strip().lower(), float(weight), place, parameters)


def _specificity(asked: _Range, media_type: str, version: str) -> int:
    """How exactly a range names a format; 0 if it does not."""
    if asked.name == media_type:
        said = asked.parameters.get("version")
        return 3 if said is None else 4 if said == version else 0
    if asked.name == media_type.partition("/")[0] + "/*":
        return 2
    return 1 if asked.name == "*/*" else 0


def accepted(header: str, offered: Sequence[Exposition] = tuple(Exposition)) -> Accepted:
    """Choose a format.

    Args:
        header: All ``Accept`` lines, joined by commas; empty if there is none.
        offered: What can be written; must hold the text format 0.0.4.
    """
    ranges = list(_ranges(header))
    best: tuple[tuple[float, int, int, int], Exposition, _Range] | None = None
    for order, (exposition, (media_type, version)) in enumerate(_TYPES.items()):
        if exposition not in offered:
            continue
        fitting = [(specificity, each) for each in ranges if (specificity := _specificity(each, media_type, version))]
        if not fitting:
            continue
        # The most specific decides; the heavier of two that are equally so.
        specificity, asked = max(fitting, key=lambda pair: (pair[0], pair[1].weight, -pair[1].place))
        rank = (asked.weight, specificity, -asked.place, -order)
        if asked.weight and (best is None or rank > best[0]):
            best = (rank, exposition, asked)
    if best is None:
        return Accepted(Exposition.TEXT_0_0_4, Exposition.TEXT_0_0_4.content_type)
    _, exposition, asked = best
    escaping = _ESCAPING.get(asked.parameters.get("escaping", "").lower())
    suffix = f"; escaping={escaping}" if escaping else ""
    return Accepted(exposition, exposition.content_type + suffix)


def accepts_gzip(header: str) -> bool:
    """Whether ``Accept-Encoding`` takes gzip at least as gladly as the bytes as they are."""
    weights: dict[str, float] = {}
    for coding in _ranges(header):
        weights.setdefault({"x-gzip": "gzip"}.get(coding.name, coding.name), coding.weight)
    gzip = weights.get("gzip", weights.get("*", 0.0))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)
