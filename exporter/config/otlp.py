"""OTLP's settings from two places: ``OTEL_*`` variables under the configuration, which wins.

A variable that cannot be read is as if it were not set, as the specification wants, and a
warning says so; its value is not repeated, since it may be a secret. So does one that is not
honoured, or not known.

Source: OpenTelemetry specification, "OpenTelemetry Protocol Exporter" and
"Environment Variable Specification".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from .schema import did_you_mean
from .types import OtlpConfig, OtlpSignalConfig

_SIGNALS = ("metrics", "logs", "traces")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_CLIENT_CERTIFICATE = frozenset({"cert_file", "key_file"})


@dataclass(frozen=True, slots=True)
class OtlpEnvironment:
    """What the environment says; only what it says is there.

    Attributes:
        general: Fields of :class:`OtlpConfig`.
        signals: Fields of :class:`OtlpSignalConfig` by signal.
        warnings: One line for each variable that was set and is not honoured.
    """

    general: Mapping[str, Any] = field(default_factory=dict)
    signals: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def _text(value: str) -> str:
    return value


def _milliseconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,10}", value) or not int(value):
        raise ValueError("a number of milliseconds above 0")
    return int(value) / 1000.0


def _count(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value) or not int(value):
        raise ValueError("a number above 0")
    return int(value)


def _boolean(value: str) -> bool:
    # The specification: only "true" is true; whatever else is false, and a word that is neither is told.
    if value.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return value.lower() == "true"


def _one_of(*words: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value.lower() not in words:
            raise ValueError(" or ".join(words))
        return value.lower()

    return read


def _headers(value: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    for pair in value.split(","):
        if not pair.strip():
            continue
        name, equals, text = pair.partition("=")
        # Baggage: values are percent-encoded, spaces around do not count.
        decoded = unquote(text.strip())
        if not equals or not _HEADER_NAME.fullmatch(name.strip()) or not decoded.isprintable():
            raise ValueError("name=value,… with percent-encoded values")
        headers[name.strip()] = decoded
    return headers


_TRANSPORT: dict[str, tuple[str, Callable[[str], Any]]] = {
    "ENDPOINT": ("endpoint", _text),
    "PROTOCOL": ("protocol", _one_of("grpc", "http/protobuf")),
    "HEADERS": ("headers", _headers),
    "TIMEOUT": ("timeout_s", _milliseconds),
    "COMPRESSION": ("compression", _one_of("gzip", "none")),
    "CERTIFICATE": ("ca_file", _text),
    "CLIENT_CERTIFICATE": ("cert_file", _text),
    "CLIENT_KEY": ("key_file", _text),
    "INSECURE": ("insecure", _boolean),
}


_OURS = ("OTEL_EXPORTER_OTLP_", "OTEL_BLRP_", "OTEL_METRIC_EXPORT_", "OTEL_LOGRECORD_")
"""Beginnings of the names that are read here: another name that begins so is a mistake."""

_NOT_HONOURED = {
    "OTEL_CONFIG_FILE": "the configuration is skep's own, see skep agent --help",
    "OTEL_EXPERIMENTAL_CONFIG_FILE": "the configuration is skep's own, see skep agent --help",
    "OTEL_EXPORTER_PROMETHEUS_HOST": "--web.listen-address says where metrics are served",
    "OTEL_EXPORTER_PROMETHEUS_PORT": "--web.listen-address says where metrics are served",
    "OTEL_LOG_LEVEL": "--log.level says it",
    "OTEL_METRICS_EXEMPLAR_FILTER": "there are no exemplars",
}


def settings_from_environment(env: Mapping[str, str]) -> OtlpEnvironment:
    """Read the ``OTEL_*`` variables of OTLP exporters; an empty one is as if it were not set.

    ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` are of the resource and read where that is made.
    """
    warnings: list[str] = []
    asked: set[str] = set()

    def read(name: str, kind: Callable[[str], Any]) -> Any:  # noqa: ANN401 - the kind's
        asked.add(name)
        value = env.get(name, "").strip()
        if not value:
            return None
        try:
            return kind(value)
        except ValueError as error:
            warnings.append(f"environment variable {name} is ignored: must be {error}")
            return None

    def transport(prefix: str) -> dict[str, Any]:
        found = {setting: read(f"{prefix}_{name}", kind) for name, (setting, kind) in _TRANSPORT.items()}
        return {setting: value for setting, value in found.items() if value is not None}

    general = transport("OTEL_EXPORTER_OTLP")
    signals = {signal: transport(f"OTEL_EXPORTER_OTLP_{signal.upper()}") for signal in _SIGNALS}
    for setting, name, kind in (
        (
            "temporality",
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
            _one_of("cumulative", "delta", "lowmemory"),
        ),
        ("metrics_interval_s", "OTEL_METRIC_EXPORT_INTERVAL", _milliseconds),
        ("metrics_export_timeout_s", "OTEL_METRIC_EXPORT_TIMEOUT", _milliseconds),
        ("logs_delay_s", "OTEL_BLRP_SCHEDULE_DELAY", _milliseconds),
        ("logs_export_timeout_s", "OTEL_BLRP_EXPORT_TIMEOUT", _milliseconds),
        ("logs_queue_records", "OTEL_BLRP_MAX_QUEUE_SIZE", _count),
        ("logs_batch_records", "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", _count),
        # Of two the one for log records comes last and wins.
        ("logs_value_length_limit", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", _count),
        ("logs_value_length_limit", "OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT", _count),
        ("logs_attribute_limit", "OTEL_ATTRIBUTE_COUNT_LIMIT", _count),
        ("logs_attribute_limit", "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT", _count),
    ):
        value = read(name, kind)
        if value is not None:
            general[setting] = value
    read("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", _one_of("explicit_bucket_histogram"))
    for signal in _SIGNALS:
        # Prometheus is served whatever the environment says, so naming it beside otlp is no mistake.
        exporters = {each.strip().lower() for each in env.get(f"OTEL_{signal.upper()}_EXPORTER", "").split(",")} - {""}
        if exporters:
            general[f"{signal}_enabled"] = "otlp" in exporters
        warnings += [
            f"environment variable OTEL_{signal.upper()}_EXPORTER names {unknown!r}; known is otlp"
            for unknown in sorted(exporters - {"otlp", "none", "prometheus"})
        ]
    if read("OTEL_SDK_DISABLED", _boolean):
        general |= {f"{signal}_enabled": False for signal in _SIGNALS}
    for name in sorted(name for name, value in env.items() if value.strip() and name not in asked):
        if name in _NOT_HONOURED:
            warnings.append(f"environment variable {name} is ignored: {_NOT_HONOURED[name]}")
        elif name.startswith(_OURS):
            warnings.append(f"environment variable {name} is not known{did_you_mean(name, tuple(sorted(asked)))}")
    return OtlpEnvironment(general, {signal: given for signal, given in signals.items() if given}, tuple(warnings))


def _fields(document: Mapping[str, Any]) -> dict[str, Any]:
    return {("timeout_s" if name == "timeout" else name): value for name, value in document.items()}


def _without(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are not given; a client certificate and its key come from one place or the other."""
    taken = set(given)
    if taken & _CLIENT_CERTIFICATE:
        taken |= _CLIENT_CERTIFICATE
    return {name: value for name, value in settings.items() if name not in taken}


_OF_SIGNAL: dict[str, dict[str, str]] = {
    "metrics": {
        "enabled": "metrics_enabled",
        "interval": "metrics_interval_s",
        "temporality": "temporality",
        "export_timeout": "metrics_export_timeout_s",
    },
    "logs": {
        "enabled": "logs_enabled",
        "delay": "logs_delay_s",
        "queue_records": "logs_queue_records",
        "batch_records": "logs_batch_records",
        "export_timeout": "logs_export_timeout_s",
        "attribute_value_length_limit": "logs_value_length_limit",
        "attribute_count_limit": "logs_attribute_limit",
    },
    "traces": {},
}
"""Keys that only one signal has, and their fields."""


def make_otlp_config(
    document: Mapping[str, Any], environment: OtlpEnvironment | None = None, *, traces: bool | None = None
) -> OtlpConfig:
    """Merge the configuration's ``otlp`` over the environment.

    What the configuration says for both signals also wins over what the environment says for one.

    Args:
        document: The keys of ``otlp`` as they were written, with their values read.
        environment: Nothing of it if not given.
        traces: What ``telemetry.traces`` says, if anything.
    """
    environment = environment or OtlpEnvironment()
    general = _fields({name: value for name, value in document.items() if name not in _SIGNALS})
    own: dict[str, Any] = {} if traces is None else {"traces_enabled": traces}
    signals: dict[str, Any] = {}
    for signal in _SIGNALS:
        given = dict(document.get(signal, {}))
        for key, name in _OF_SIGNAL[signal].items():
            if key in given:
                own[name] = given.pop(key)
        given = _fields(given)
        inherited = _without(environment.signals.get(signal, {}), {**general, **given})
        signals[signal] = OtlpSignalConfig(**inherited, **given)
    return OtlpConfig(**_without(environment.general, {**general, **own}), **general, **own, **signals)
