"""What is shipped beside the code says the same as the code: agent.yaml, run.yaml, the JSON schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

from exporter import config
from exporter.config.document import AGENT
from exporter.config.schema import Key, ListOf, MapOf, Object, Type

CONFIGS = Path(__file__).parents[2] / "configs"
BAD = sorted((Path(__file__).parents[1] / "tables" / "config" / "bad").glob("*.yaml"))


def everything_on() -> str:
    """The shipped agent.yaml with every key that is off turned on."""
    text = (CONFIGS / "agent.yaml").read_text()
    return re.sub(r"^(\s*)#(?=\S| {2,})", r"\1", text, flags=re.MULTILINE)


def keys_of(type_: Type, path: str = "") -> Iterator[tuple[str, Key]]:
    """Every key of the schema with its path."""
    if isinstance(type_, Object):
        for name, key in type_.keys.items():
            yield f"{path}.{name}", key
            yield from keys_of(key.type, f"{path}.{name}")
    elif isinstance(type_, ListOf):
        yield from keys_of(type_.item, f"{path}[]")
    elif isinstance(type_, MapOf):
        yield from keys_of(type_.value, f"{path}.*")


def paths_of(node: yaml.Node, type_: Type, path: str = "") -> Iterator[tuple[str, yaml.Node]]:
    """Each key that a document uses, named as :func:`keys_of` names it."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{path}.{key.value}" if isinstance(type_, Object) else f"{path}.*"
            yield name, value
            inner = type_.keys[key.value].type if isinstance(type_, Object) else getattr(type_, "value", type_)
            yield from paths_of(value, inner, name)
    elif isinstance(node, yaml.SequenceNode) and isinstance(type_, ListOf):
        for item in node.value:
            yield from paths_of(item, type_.item, f"{path}[]")


def test_shipped_configurations_are_read() -> None:
    """As they stand, with nothing in the environment."""
    agent = config.load([CONFIGS / "agent.yaml"], environment={})
    assert {image.name: image.enabled for image in agent.images} == {
        "runqueue-latency": True,
        "block-latency": True,
        "process-exits": True,
        "tcp-states": True,
        "oom-kills": True,
        "syscalls": False,
        "file-opens": False,
    }
    everything = config.parse(everything_on().replace("/etc/skep/token", "/dev/null"), "/etc/skep/agent.yaml",
                              environment={"CREDENTIALS_DIRECTORY": "/run/x"})  # fmt: skip
    catalog = {path.parent.name for path in (CONFIGS / "catalog").glob("*/*.bpf.c")}
    assert {image.name for image in everything.images} - {"dns"} == catalog, "every image is shown, on or off"
    run = config.load([CONFIGS / "run.yaml"], environment={})
    assert {image.name for image in run.images} == catalog
    off = {image.name for image in run.images if not image.enabled}
    assert off == {"nfs-operations"}, "what not every host can run"
    with_collector = config.load(
        [CONFIGS / "run.yaml", *sorted((CONFIGS / "run.d").glob("*.yaml"))],
        environment={"OTLP_ENDPOINT": "http://127.0.0.1:4318"},
    )
    assert with_collector.otlp.endpoint == "http://127.0.0.1:4318"


def test_agent_yaml_shows_every_key(tmp_path: Path) -> None:
    """Nobody has to read the code to find a key."""
    shown = {path for path, _ in paths_of(yaml.compose(everything_on(), Loader=yaml.SafeLoader), AGENT)}
    assert sorted({path for path, _ in keys_of(AGENT)} - shown) == []


def test_agent_yaml_with_every_key_on_is_valid() -> None:
    """What the comments show can be used by removing the mark."""
    text = everything_on().replace("/etc/skep/token", "/dev/null")
    read = config.parse(text, "/etc/skep/agent.yaml", environment={"CREDENTIALS_DIRECTORY": "/run/x"})
    assert "dns" in {image.name for image in read.images}


def test_agent_yaml_shows_the_defaults() -> None:
    """What is shown as a default is what leaving it out means."""
    text = everything_on()
    defaults = dict(keys_of(AGENT))
    shown = paths_of(yaml.compose(text, Loader=yaml.SafeLoader), AGENT)
    different = {
        path: (node.value, defaults[path].default)
        for path, node in shown
        if isinstance(node, yaml.ScalarNode)
        and path in defaults
        and defaults[path].default
        and not path.startswith(".images[]")
        and node.value != defaults[path].default
    }
    assert different == {}


def test_defaults_of_the_schema_are_those_of_the_types() -> None:
    """Writing every documented default changes nothing."""
    written = """
    images:
      - {ref: a}
      - {name: b, ref: a, pull: if-not-present, required: false, partial: run, enabled: true, expire_after: 1h,
         limits: {series: 10000, events_per_s: 10000, map_memory: 64MiB}, events: {e: {sample_one_in: 1}},
             attach: {p: {enabled: true}}}
    defaults: {limits: {series: 10000, events_per_s: 10000, map_memory: 64MiB}, expire_after: 1h,
               retry: {first: 5s, max: 10m}}
    otlp: {protocol: http/protobuf, timeout: 10s, compression: gzip, metrics: {enabled: true, interval: 60s,
               temporality: cumulative},
           logs: {enabled: true, delay: 200ms}}
    events: {json: {path: /a, stdout: false, max_size: 64MiB, keep: 5}}
    store: {keep: 3}
    telemetry: {bpf_stats: false, traces: false}
    """
    used = dict(paths_of(yaml.compose(written, Loader=yaml.SafeLoader), AGENT))
    for path, key in keys_of(AGENT):
        if key.default and not path.startswith(".registries"):
            node = used[path]
            assert isinstance(node, yaml.MappingNode) or node.value == key.default, path
    read = config.parse(written, "a.yaml", environment={})
    plain, spelled = read.images
    assert (plain.limits, plain.expire_after_s, plain.pull, plain.partial, plain.required, plain.enabled) == (
        spelled.limits, spelled.expire_after_s, spelled.pull, spelled.partial, spelled.required, spelled.enabled,
    )  # fmt: skip
    assert read.images[0].limits == config.Limits()
    assert spelled.events == {"e": config.EventConfig()}
    assert read.json_events == config.JsonEventsConfig(path="/a")
    assert (read.otlp, read.retry, read.store) == (config.OtlpConfig(), config.RetryConfig(), config.StoreConfig())


def test_committed_json_schema_is_the_generated_one() -> None:
    """Regenerate with: skep check --schema > configs/agent.schema.json."""
    committed = (CONFIGS / "agent.schema.json").read_text()
    assert committed == json.dumps(config.json_schema(), indent=2, ensure_ascii=False) + "\n"


def test_json_schema_is_a_schema_and_takes_what_is_shipped() -> None:
    """An editor that uses it does not complain about our own files."""
    schema = config.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    texts = [path.read_text() for path in [*CONFIGS.glob("*.yaml"), *CONFIGS.glob("run.d/*.yaml")]]
    for text in [*texts, everything_on()]:
        assert [error.message for error in validator.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize(
    "name",
    [
        "unknown-image-key", "unknown-key-in-every-section", "boolean-words-of-yaml-1.1", "integer-out-of-range",
        "sizes", "choice-without-a-near-word", "label-names", "label-names-reserved", "duration-without-unit",
        "otlp-endpoint", "image-without-ref-and-name", "registry-name", "metric-name", "drop-label-twice",
    ],
)  # fmt: skip
def test_json_schema_refuses_what_the_agent_refuses(name: str) -> None:
    """Those mistakes that a schema can see are seen in the editor."""
    [path] = [path for path in BAD if path.stem == name]
    value = yaml.safe_load(path.read_text())
    assert list(jsonschema.Draft202012Validator(config.json_schema()).iter_errors(value))
