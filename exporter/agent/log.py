"""Log lines as logfmt or JSON, one per event, to stderr.

A line is a message and fields; the message is the same for every image, so that
lines can be counted, and what differs is in the fields.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TextIO

FORMATS = ("logfmt", "json")
LEVELS = ("debug", "info", "warn", "error")

_logger = logging.getLogger("skep")


def configure(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send the log to stderr (or ``stream``) from ``level`` on, in one of :data:`FORMATS`.

    To the journal each line says its priority, so that ``journalctl -p err`` finds it.
    """
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    formatter: logging.Formatter = _Logfmt() if form == "logfmt" else _Json()
    handler.setFormatter(_Prioritised(formatter) if goes_to_journal(target) else formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    number = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}[level]
    for name in (_logger.name, "exporter"):
        logging.getLogger(name).setLevel(number)


def debug(message: str, **fields: object) -> None:
    """Log what only someone who looks for it wants."""
    _logger.debug(message, extra={"fields": fields})


def info(message: str, **fields: object) -> None:
    """Log an event of normal life."""
    _logger.info(message, extra={"fields": fields})


def warn(message: str, **fields: object) -> None:
    """Log what a person should look at, some time."""
    _logger.warning(message, extra={"fields": fields})


def error(message: str, **fields: object) -> None:
    """Log what does not work."""
    _logger.error(message, extra={"fields": fields})


def bug(message: str, **fields: object) -> None:
    """Log an exception that should not have happened, with its traceback."""
    _logger.exception(message, extra={"fields": fields})


def goes_to_journal(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a stream is the one systemd connected to the journal: ``$JOURNAL_STREAM`` is its device and inode."""
    try:
        there = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


class _Prioritised(logging.Formatter):
    """Puts ``<N>`` before each line (sd-daemon(3)): 7 is debug, 6 info, 4 warning, 3 error."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        priority = 3 if record.levelno >= logging.ERROR else 4 if record.levelno >= logging.WARNING else 6
        return f"<{7 if record.levelno < logging.INFO else priority}>{self._inner.format(record)}"


class _Fields(logging.Formatter):
    def pairs(self, record: logging.LogRecord) -> dict[str, object]:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        level = {"WARNING": "warn", "CRITICAL": "error"}.get(record.levelname, record.levelname.lower())
        pairs: dict[str, object] = {"time": when, "level": level, "msg": record.getMessage()}
        if record.name != _logger.name:
            pairs["logger"] = record.name
        pairs.update({key: value for key, value in getattr(record, "fields", {}).items() if value not in (None, "")})
        if record.exc_info:
            pairs["traceback"] = self.formatException(record.exc_info)
        return pairs


class _Logfmt(_Fields):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_logfmt_value(value)}" for key, value in self.pairs(record).items())


class _Json(_Fields):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.pairs(record), default=str, ensure_ascii=False)


def _logfmt_value(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
    plain = text.isprintable() and not any(character in text for character in ' "=\\')
    return text if plain and text else json.dumps(text, ensure_ascii=False)


class Repeats:
    """Tells a repeated message once, then again when its count doubles or an hour has passed.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[object, tuple[str, int, float]] = {}

    def count(self, subject: object, message: str) -> int:
        """Count a message about a subject; give the count if it should be told now, else 0.

        Another message about the same subject begins again at 1.
        """
        now = self._clock()
        last, count, told = self._seen.get(subject, ("", 0, 0.0))
        count = count + 1 if message == last else 1
        tell = count & (count - 1) == 0 or now - told >= 3600
        self._seen[subject] = (message, count, now if tell else told)
        return count if tell else 0

    def clear(self, subject: object) -> int:
        """Forget a subject that is well again; give how often it was not."""
        return self._seen.pop(subject, ("", 0, 0.0))[1]
