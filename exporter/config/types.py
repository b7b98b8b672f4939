"""What a configuration says once it is read: frozen types, every default applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

GlobalValue: TypeAlias = "bool | int | float | str | list[GlobalValue] | dict[str, GlobalValue]"
"""What a configuration may say of a global; BTF says whether it fits."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one image may use.

    Attributes:
        series: Live series over all of its metrics; more are folded into one overflow series a metric.
        events_per_s: Records exported per second and stream; more are dropped and counted.
        map_memory: Bytes its maps may take, computed before load.
    """

    series: int = 10_000
    events_per_s: int = 10_000
    map_memory: int = 64 << 20


@dataclass(frozen=True, slots=True)
class MetricConfig:
    """What the operator changes about one metric, keyed by its Prometheus name."""

    enabled: bool | None = None
    rename: str = ""
    help: str = ""
    drop_labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EventConfig:
    """What the operator changes about one event, keyed by its OpenTelemetry name.

    Attributes:
        sample_one_in: Of so many records one is exported; the others are dropped and counted.
    """

    enabled: bool | None = None
    sample_one_in: int = 1


@dataclass(frozen=True, slots=True)
class AttachConfig:
    """Where one program attaches instead of where its section name says.

    Only the keys that fit the program's type may be set; empty means: as in the section.

    Attributes:
        enabled: False leaves the program out, as if the object did not have it.
    """

    target: str = ""
    interfaces: tuple[str, ...] = ()
    binary: str = ""
    pid: int = 0
    cgroup: str = ""
    frequency_hz: int = 0
    period: int = 0
    direction: str = ""
    family: str = ""
    priority: int = 0
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class MapConfig:
    """What the operator changes about one map.

    Attributes:
        max_entries: Instead of the object's own; 0 leaves it.
        pin: A path in the BPF file system under which it is shared with whoever else uses that path.
    """

    max_entries: int = 0
    pin: str = ""


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """One entry of ``images``.

    Attributes:
        name: Unique; default the last part of the reference without tag and digest.
        ref: As written; ``image.reference.parse_reference`` reads it.
        pull: ``if-not-present``, ``always`` or ``never``.
        required: Whether readiness waits for it.
        partial: ``run`` or ``refuse``, when some of its programs cannot attach.
        labels: Constant labels on every series and event.
        globals: Values for ``const volatile`` globals by C name, checked against BTF: a bare ``true``
            or ``false`` is a bool, a bare decimal or ``0x`` number an int or float, all else text;
            ``ksym:NAME`` is the address of a kernel symbol; a list is an array, a mapping a struct or union.
        maps: Changes to single maps, by C name.
        expire_after_s: A series unchanged for this long is no longer shown.
        btf: Path of the types of kernels that do not show their own; empty for none.
        file, line: Where its reference stands, for messages.
    """

    name: str
    ref: str
    pull: str = "if-not-present"
    required: bool = False
    partial: str = "run"
    enabled: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, MetricConfig] = field(default_factory=dict)
    events: Mapping[str, EventConfig] = field(default_factory=dict)
    globals: Mapping[str, GlobalValue] = field(default_factory=dict)
    attach: Mapping[str, AttachConfig] = field(default_factory=dict)
    maps: Mapping[str, MapConfig] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    expire_after_s: float = 3600.0
    btf: str = ""
    file: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """How to talk to one registry, keyed by host[:port]."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    auth_file: str = ""
    plain_http: bool = False


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """Full-jitter exponential retry of an image that could not run, in seconds."""

    first_s: float = 5.0
    max_s: float = 600.0


@dataclass(frozen=True, slots=True)
class OtlpSignalConfig:
    """What one signal has of its own; None means: as :class:`OtlpConfig` says for both.

    Attributes:
        endpoint: Of this signal alone: over HTTP the whole URL, nothing is appended.
        headers: Instead of the general ones, not beside them.
    """

    endpoint: str | None = None
    protocol: str | None = None
    headers: Mapping[str, str] | None = None
    timeout_s: float | None = None
    compression: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    insecure: bool | None = None


@dataclass(frozen=True, slots=True)
class OtlpConfig:
    """Where OTLP goes; no endpoint means it goes nowhere.

    Attributes:
        endpoint: An http or https URL; over gRPC also ``host:port``.
        endpoint_is_whole: Nothing is appended to the endpoint's path; set by :meth:`of_signal`.
        protocol: ``http/protobuf`` or ``grpc``.
        insecure: Over gRPC, whether an endpoint without a scheme is spoken to without TLS.
        temporality: ``cumulative``, ``delta``, or ``lowmemory``: histograms as differences, counters cumulative.
        metrics_export_timeout_s: How long one instant's metrics are offered; 0 until the next are due.
        logs_delay_s: How long events are gathered before they are posted.
        logs_queue_records: Events that may wait; 0 for as many as its bytes hold.
        logs_batch_records: Events in one request; 0 for as many as its bytes hold.
        logs_export_timeout_s: How long an event is offered before it has failed; 0 for ever.
        logs_value_length_limit: Characters of a text that a program says in an event; 0 for all of them.
        logs_attribute_limit: Attributes that a program gives an event; 0 for all of them.
        traces_enabled: Whether the agent posts spans of its own work.
        metrics, logs, traces: What a signal has of its own.
    """

    endpoint: str = ""
    protocol: str = "http/protobuf"
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 10.0
    compression: str = "gzip"
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    metrics_enabled: bool = True
    metrics_interval_s: float = 60.0
    logs_enabled: bool = True
    insecure: bool = False
    temporality: str = "cumulative"
    metrics_export_timeout_s: float = 0.0
    logs_delay_s: float = 0.2
    logs_queue_records: int = 0
    logs_batch_records: int = 0
    logs_export_timeout_s: float = 0.0
    logs_value_length_limit: int = 0
    logs_attribute_limit: int = 0
    traces_enabled: bool = False
    metrics: OtlpSignalConfig = field(default_factory=OtlpSignalConfig)
    logs: OtlpSignalConfig = field(default_factory=OtlpSignalConfig)
    traces: OtlpSignalConfig = field(default_factory=OtlpSignalConfig)
    endpoint_is_whole: bool = False

    def of_signal(self, signal: Literal["metrics", "logs", "traces"]) -> OtlpConfig:
        """Give the settings of one signal, its own in place of the general ones."""
        own: OtlpSignalConfig = getattr(self, signal)
        settings: dict[str, Any] = {each.name: getattr(own, each.name) for each in fields(own)}
        given = {name: value for name, value in settings.items() if value is not None}
        if not given:
            return self
        given[signal] = OtlpSignalConfig()
        given["endpoint_is_whole"] = self.endpoint_is_whole or "endpoint" in given
        return replace(self, **given)


@dataclass(frozen=True, slots=True)
class JsonEventsConfig:
    """Where events go as JSON lines: a file, stdout, or nowhere if neither is said.

    Attributes:
        max_size: Bytes after which the file is renamed to ``path.1``, and ``path.1`` to ``path.2``.
        keep: How many of the renamed are kept.
    """

    path: str = ""
    stdout: bool = False
    max_size: int = 64 << 20
    keep: int = 5


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Where images are kept; an empty path means the default of this user."""

    path: str = ""
    keep: int = 3


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """What the agent tells about itself that costs something.

    Attributes:
        bpf_stats: Whether the kernel is to measure the runs of programs.
    """

    bpf_stats: bool = False


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """A whole configuration, every default applied."""

    images: tuple[ImageConfig, ...] = ()
    registries: Mapping[str, RegistryConfig] = field(default_factory=dict)
    retry: RetryConfig = field(default_factory=RetryConfig)
    resource_attributes: Mapping[str, str] = field(default_factory=dict)
    otlp: OtlpConfig = field(default_factory=OtlpConfig)
    json_events: JsonEventsConfig = field(default_factory=JsonEventsConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
