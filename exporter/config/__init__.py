"""The agent's YAML: its types, their defaults, and how text becomes them.

Knows YAML, the environment it substitutes, and positions in files. Must not
know what a reference resolves to, what an object declares, or what a kernel can do: whoever
uses a value judges that. Everything downstream reads the frozen types;
nothing downstream reads YAML.
"""

from .document import json_schema
from .load import config_files, default_image_name, load, parse
from .otlp import OtlpEnvironment, make_otlp_config, settings_from_environment
from .schema import parse_duration, parse_value
from .types import (
    AgentConfig,
    AttachConfig,
    EventConfig,
    GlobalValue,
    ImageConfig,
    JsonEventsConfig,
    Limits,
    MapConfig,
    MetricConfig,
    OtlpConfig,
    OtlpSignalConfig,
    RegistryConfig,
    RetryConfig,
    StoreConfig,
)

__all__ = [
    "AgentConfig",
    "AttachConfig",
    "EventConfig",
    "GlobalValue",
    "ImageConfig",
    "JsonEventsConfig",
    "Limits",
    "MapConfig",
    "MetricConfig",
    "OtlpConfig",
    "OtlpEnvironment",
    "OtlpSignalConfig",
    "RegistryConfig",
    "RetryConfig",
    "StoreConfig",
    "config_files",
    "default_image_name",
    "json_schema",
    "load",
    "make_otlp_config",
    "parse",
    "parse_duration",
    "parse_value",
    "settings_from_environment",
]
