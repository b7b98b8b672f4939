"""The selectors of a PromQL expression: enough of the language for queries that Prometheus has accepted."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(r'\s*("(?:\\.|[^"\\])*"|[A-Za-z_:$][\w:]*|\d[\w.]*|=~|!~|!=|==|>=|<=|\S)')
_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {"and", "or", "unless", "bool", "offset"}
_AGGREGATIONS = {"sum", "min", "max", "avg", "count", "group", "topk", "bottomk", "quantile", "stddev", "count_values"}


@dataclass(frozen=True)
class Selector:
    """One metric as an expression selects it.

    Attributes:
        matchers: ``(label, operator, value)``.
        range: What stands in brackets, or "".
        calls: Functions and aggregations around it, the innermost last.
    """

    metric: str
    matchers: tuple[tuple[str, str, str], ...]
    range: str
    calls: tuple[str, ...]


def selectors(expr: str) -> list[Selector]:
    """Every selector, in order."""
    tokens = _TOKEN.findall(expr)
    found: list[Selector] = []
    calls: list[str] = []
    called = ""
    at = 0
    while at < len(tokens):
        token = tokens[at]
        following = tokens[at + 1] if at + 1 < len(tokens) else ""
        at += 1
        if token in _LISTS and following == "(":
            at = tokens.index(")", at) + 1
        elif token == "(":
            calls.append(called)
            called = ""
        elif token == ")":
            calls.pop()
        elif token in _AGGREGATIONS or (following == "(" and _is_name(token) and token not in _WORDS):
            called = token
        elif _is_name(token) and token not in _WORDS:
            matchers: list[tuple[str, str, str]] = []
            range_ = ""
            if following == "{":
                end = tokens.index("}", at)
                parts = [part for part in tokens[at + 1 : end] if part != ","]
                matchers = [(parts[i], parts[i + 1], parts[i + 2][1:-1]) for i in range(0, len(parts), 3)]
                at = end + 1
            if at < len(tokens) and tokens[at] == "[":
                end = tokens.index("]", at)
                range_ = "".join(tokens[at + 1 : end])
                at = end + 1
            found.append(Selector(token, tuple(matchers), range_, tuple(filter(None, calls))))
    return found


def _is_name(token: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z_:][\w:]*", token))
