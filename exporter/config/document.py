"""Every key of the agent's YAML: its type, its meaning, its default.

The defaults written here are those of the types in ``types.py``; a test holds
the two, and ``configs/agent.yaml``, together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yaml.nodes import Node

from .nodes import Reading, join
from .schema import (
    Bool,
    Choice,
    Duration,
    HttpUrl,
    Int,
    JsonSchema,
    Key,
    ListOf,
    MapOf,
    Object,
    PathText,
    Size,
    String,
    Untyped,
)

IMAGE_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?"
IMAGE_NAME_MEANING = "letters, digits, '.', '_' and '-', at most 128"

_C_NAME = (r"[A-Za-z_][A-Za-z0-9_]{0,254}", "a C identifier")
_METRIC_NAME = (r"[A-Za-z_:][A-Za-z0-9_:]{0,254}", "a Prometheus metric name such as ebpf_block_request_errors_total")
_EVENT_NAME = (r"[A-Za-z_][A-Za-z0-9_.]{0,254}", "an OpenTelemetry event name such as ebpf.process.exit")
_ATTRIBUTE_NAME = (r"[A-Za-z_][A-Za-z0-9_.]{0,254}", "letters, digits, '_' and '.', not beginning with a digit")
_LABEL_NAME = (
    r"(?!le$|__|otel[._])" + _ATTRIBUTE_NAME[0],
    _ATTRIBUTE_NAME[1] + "; le, __… and otel.… are reserved",
)
_REGISTRY = (r"[A-Za-z0-9.-]+(?::[0-9]{1,5})?|\[[0-9a-fA-F:]+\](?::[0-9]{1,5})?", "a registry's host or host:port")
_HEADER = (r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", "an HTTP header name")

LIMITS = {
    "series": Key(
        Int(1, 10_000_000), "Live series of the image; more are folded into one overflow series a metric.", "10000"
    ),
    "events_per_s": Key(
        Int(1, 100_000_000), "Events exported per second and stream; more are dropped and counted.", "10000"
    ),
    "map_memory": Key(
        Size("4KiB"), "Memory its maps may take, computed before load; an image that needs more is refused.", "64MiB"
    ),
}

EXPIRE_AFTER = Key(Duration("1s"), "A series unchanged for this long is no longer shown until it changes.", "1h")

_TLS = {
    "ca_file": Key(PathText(), "Certificates to trust instead of the system's, PEM."),
    "cert_file": Key(PathText(), "Client certificate, PEM; needs key_file."),
    "key_file": Key(PathText(), "Key of the client certificate, PEM; needs cert_file."),
}


def _check_client_certificate(reading: Reading, node: Node, path: str, value: dict[str, Any]) -> None:
    for given, missing in (("cert_file", "key_file"), ("key_file", "cert_file")):
        if given in value and missing not in value:
            reading.fail(node, f"{join(path, missing)} is missing; {given} needs it")


def _check_retry(reading: Reading, node: Node, path: str, value: dict[str, Any]) -> None:
    first, most = value.get("first", 5.0), value.get("max", 600.0)
    if first > most:
        reading.fail(node, f"{join(path, 'first')} is {first:g}s; must not be above {join(path, 'max')}, {most:g}s")


def _check_json_events(reading: Reading, node: Node, path: str, value: dict[str, Any]) -> None:
    if "path" in value and value.get("stdout"):
        reading.fail(node, f"{path} has both path and stdout; keep one of the two")
    if "path" not in value and not value.get("stdout"):
        reading.fail(node, f"{join(path, 'path')} is missing; give a file, or stdout: true")


METRIC = Object(
    {
        "enabled": Key(Bool(), "Whether it is exported; the default is the image's own."),
        "rename": Key(String(*_METRIC_NAME), "Another Prometheus name for it."),
        "help": Key(String(), "Another help text."),
        "drop_labels": Key(ListOf(String()), "Labels to leave out; rows that then have the same labels are summed."),
    }
)

EVENT = Object(
    {
        "enabled": Key(
            Bool(), "Whether it is exported, and made if its program can be told; the default is the image's own."
        ),
        "sample_one_in": Key(
            Int(1, 1_000_000_000), "Of so many records one is exported; the others are dropped and counted.", "1"
        ),
    }
)

ATTACH = Object(
    {
        "target": Key(String(), "Kernel function, tracepoint or symbol instead of the section's."),
        "interfaces": Key(ListOf(String()), "Network interfaces (XDP, tc, netkit, socket filter)."),
        "binary": Key(
            PathText(names=True),
            "Executable or library (uprobe, USDT): a path, or a name that the dynamic linker or the shell would find.",
        ),
        "pid": Key(Int(1, 1 << 22), "Only this process (uprobe, USDT, perf event)."),
        "cgroup": Key(
            String(r"/.*|[^./][^/]*(/.*)?", "an absolute path, or one below the hierarchy's root"),
            "cgroup directory, from / or from the root of cgroup v2 (cgroup programs); default: that root.",
        ),
        "frequency_hz": Key(Int(1, 100_000), "Samples per second and CPU (perf event); not together with period."),
        "period": Key(Int(1), "Events per sample (perf event); not together with frequency_hz."),
        "direction": Key(
            Choice(("ingress", "egress", "primary", "peer")),
            "Which way (tc) or which end (netkit), where the section does not say.",
        ),
        "family": Key(Choice(("ipv4", "ipv6")), "Protocol family (netfilter); default: both."),
        "priority": Key(
            Int(-(1 << 31) + 1, (1 << 31) - 2),
            "Place among others: of a tc filter 1 to 65535, of netfilter lower first.",
        ),
        "enabled": Key(Bool(), "Whether the program is loaded at all.", "true"),
    }
)

MAP = Object(
    {
        "max_entries": Key(Int(1, (1 << 32) - 1), "Entries, or of a ring bytes, instead of the object's own."),
        "pin": Key(
            String(r"/.+", "an absolute path"),
            "Path in the BPF file system: the map that is there is used, else this one is put there, and stays.",
        ),
    }
)

IMAGE = Object(
    {
        "name": Key(
            String(IMAGE_NAME, IMAGE_NAME_MEANING),
            "Unique; names the image in collect[]=, logs, and as OpenTelemetry scope. "
            "Default: the last part of ref without tag and digest.",
        ),
        "ref": Key(
            String(),
            "Image reference (registry.example/bpf/name:tag@sha256:…), catalog:NAME, a .o file, or an OCI layout; "
            "a path that begins with ./ or ../ starts from this file's directory. A digest decides over the tag.",
        ),
        "pull": Key(
            Choice(("if-not-present", "always", "never")),
            "When to ask the registry. With if-not-present a restart alone never changes what runs.",
            "if-not-present",
        ),
        "required": Key(Bool(), "Whether /-/ready waits for it.", "false"),
        "partial": Key(Choice(("run", "refuse")), "What to do when some of its programs cannot attach.", "run"),
        "enabled": Key(Bool(), "Whether it runs at all; false keeps the entry and stops the image.", "true"),
        "labels": Key(MapOf(*_LABEL_NAME, String()), "Constant labels on every series and event."),
        "metrics": Key(MapOf(*_METRIC_NAME, METRIC), "Changes to single metrics, by Prometheus name."),
        "events": Key(MapOf(*_EVENT_NAME, EVENT), "Changes to single events, by OpenTelemetry name."),
        "globals": Key(
            MapOf(*_C_NAME, Untyped()),
            "Values of the program's `const volatile` globals; BTF says their types. A list is an array, a mapping a "
            "struct or union; what they leave out is zero, as in C. ksym:NAME is a kernel symbol's address.",
        ),
        "attach": Key(MapOf(*_C_NAME, ATTACH), "Where single programs attach, by the program's C name."),
        "maps": Key(MapOf(*_C_NAME, MAP), "Changes to single maps, by C name."),
        "limits": Key(Object(LIMITS), "What the image may use; defaults.limits fills what is left out."),
        "btf": Key(PathText(), "Types of the running kernel for this image, instead of the global btf."),
        "expire_after": Key(EXPIRE_AFTER.type, EXPIRE_AFTER.help),
    },
    json_extra={"anyOf": [{"required": ["ref"]}, {"required": ["name"]}, {"required": ["<<"]}]},
)

REGISTRY = Object(
    {
        **_TLS,
        "auth_file": Key(PathText(), "Credentials in the form of Docker's config.json; default: the user's own."),
        "plain_http": Key(Bool(), "Talk HTTP to it. Loopback registries may always be plain HTTP.", "false"),
    },
    check=_check_client_certificate,
)

# What OTLP may have for both signals, and again for one.
_OTLP_TRANSPORT = {
    "endpoint": Key(
        HttpUrl(),
        "Where to post. Over HTTP /v1/metrics and /v1/logs are appended, but to a signal's own endpoint nothing is. "
        "Without one nothing is posted.",
    ),
    "protocol": Key(Choice(("http/protobuf", "grpc")), "How to post.", "http/protobuf"),
    "headers": Key(MapOf(*_HEADER, String(r"[^\r\n]*", "one line")), "HTTP headers, gRPC metadata of each request."),
    "timeout": Key(Duration("100ms", "5m"), "How long one request may take.", "10s"),
    "compression": Key(Choice(("gzip", "none")), "Of request bodies.", "gzip"),
    **_TLS,
}


def _of_signal(keys: Mapping[str, Key]) -> dict[str, Key]:
    """Keys of one signal: without a default, since that is what both signals have."""
    return {name: Key(key.type, f"Instead of otlp.{name}, for this signal.") for name, key in keys.items()}


AGENT = Object(
    {
        "images": Key(ListOf(IMAGE), "The images to run, in this order."),
        "defaults": Key(
            Object(
                {
                    "limits": Key(Object(LIMITS), "Limits of each image that does not set its own."),
                    "expire_after": EXPIRE_AFTER,
                    "retry": Key(
                        Object(
                            {
                                "first": Key(Duration("100ms"), "Upper bound of the first wait.", "5s"),
                                "max": Key(Duration("100ms"), "Upper bound of every wait.", "10m"),
                            },
                            check=_check_retry,
                        ),
                        "An image that cannot run is tried again forever, after a random wait whose bound doubles.",
                    ),
                }
            ),
            "What images use that do not say it themselves.",
        ),
        "btf": Key(
            PathText(),
            "Types (BTF) of kernels that do not show their own: a file, an archive, or a directory with BTFHub's "
            "ID/VERSION/ARCH/RELEASE.btf.tar.xz. Not looked at where the kernel has them.",
        ),
        "registries": Key(MapOf(*_REGISTRY, REGISTRY), "How to talk to single registries, by host or host:port."),
        "resource": Key(
            Object({"attributes": Key(MapOf(*_ATTRIBUTE_NAME, String()), "Added to the OpenTelemetry resource.")}),
            "What all of this is measured on.",
        ),
        "otlp": Key(
            Object(
                {
                    **_OTLP_TRANSPORT,
                    "metrics": Key(
                        Object(
                            {
                                "enabled": Key(Bool(), "Whether metrics are posted.", "true"),
                                "interval": Key(Duration("1s", "1d"), "How often.", "60s"),
                                "temporality": Key(
                                    Choice(("cumulative", "delta", "lowmemory")),
                                    "What sums and histograms count from: their beginning, or the last post.",
                                    "cumulative",
                                ),
                                "export_timeout": Key(
                                    Duration("100ms", "1d"),
                                    "How long they are offered if nobody takes them; default: until the next are due.",
                                ),
                                **_of_signal(_OTLP_TRANSPORT),
                            },
                            check=_check_client_certificate,
                        ),
                        "Metrics over OTLP.",
                    ),
                    "logs": Key(
                        Object(
                            {
                                "enabled": Key(Bool(), "Whether events are posted as logs.", "true"),
                                "delay": Key(
                                    Duration("1ms", "5m"),
                                    "How long events are gathered before they are posted.",
                                    "200ms",
                                ),
                                "batch_records": Key(
                                    Int(1, 1_000_000), "Events in one request at most; default: 1 MiB of them."
                                ),
                                "queue_records": Key(
                                    Int(1, 1_000_000_000), "Events that may wait at most; default: 16 MiB of them."
                                ),
                                "export_timeout": Key(
                                    Duration("100ms", "52w"),
                                    "How long an event is offered to a receiver that is away before it is counted as "
                                    "failed; default: for ever.",
                                ),
                                "attribute_value_length_limit": Key(
                                    Int(1, 1_000_000_000),
                                    "Characters of a text that a program says in an event; the others are cut off. "
                                    "Default: all of them.",
                                ),
                                "attribute_count_limit": Key(
                                    Int(1, 1_000_000_000),
                                    "Attributes that a program gives an event; the others are left out and counted in "
                                    "it. Default: all of them.",
                                ),
                                **_of_signal(_OTLP_TRANSPORT),
                            },
                            check=_check_client_certificate,
                        ),
                        "Events over OTLP.",
                    ),
                    "traces": Key(
                        Object(_of_signal(_OTLP_TRANSPORT), check=_check_client_certificate),
                        "Spans of the agent's own work over OTLP, with telemetry.traces.",
                    ),
                },
                check=_check_client_certificate,
            ),
            "Where metrics and events are posted.",
        ),
        "events": Key(
            Object(
                {
                    "json": Key(
                        Object(
                            {
                                "path": Key(PathText(), "File to append to; not together with stdout."),
                                "stdout": Key(Bool(), "Write to stdout, which journald keeps.", "false"),
                                "max_size": Key(
                                    Size("64KiB"),
                                    "The file is renamed to PATH.1 before it grows beyond this, PATH.1 to PATH.2, …",
                                    "64MiB",
                                ),
                                "keep": Key(Int(0, 1000), "Renamed files kept; 0 keeps none.", "5"),
                            },
                            check=_check_json_events,
                        ),
                        "Events as JSON lines: time, event, image, attributes.",
                    )
                }
            ),
            "Where events go besides OTLP.",
        ),
        "store": Key(
            Object(
                {
                    "path": Key(
                        PathText(),
                        "Directory of pulled images. Default: /var/lib/skep/store for root, else skep/store in the "
                        "XDG data directory.",
                    ),
                    "keep": Key(Int(1, 1000), "Versions kept of each image, so that going back needs no network.", "3"),
                }
            ),
            "Where images are kept.",
        ),
        "telemetry": Key(
            Object(
                {
                    "bpf_stats": Key(
                        Bool(),
                        "Have the kernel measure how often programs run and for how long. It then reads the clock "
                        "twice for each run of any BPF program on the host, others' too. Needs CAP_SYS_ADMIN, or the "
                        "sysctl kernel.bpf_stats_enabled=1.",
                        "false",
                    ),
                    "traces": Key(
                        Bool(),
                        "Post spans of the agent's own work (image life, reload, scrape, export) over OTLP.",
                        "false",
                    ),
                }
            ),
            "What the agent tells about itself that costs something.",
        ),
    }
)


def json_schema() -> JsonSchema:
    """Give the JSON schema of the configuration, for editors and for CI."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "skep agent configuration",
        "$comment": "Generated by `skep check --schema`.",
        **AGENT.json_schema(),
    }
