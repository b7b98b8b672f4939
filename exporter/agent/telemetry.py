"""The agent's own metrics: each declared here, once, and read from the agent at scrape time.

Nothing is counted here. The agent's parts count for themselves, and one call takes
all event counts at one instant, so that in every scrape, for each image and stream,
received = exported + failed + sum of dropped + queued.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from exporter.export.account import DURATION_BOUNDS_S, Account
from exporter.export.prometheus import Exposition, registry_text
from exporter.kernel import ProgramUsage
from exporter.resources import version

STATES = ("pulling", "loading", "running", "degraded", "stale", "failed")
"""An image's life; see ``image.py``."""

VERSION = version()


@dataclass(frozen=True, slots=True)
class StreamCounts:
    """The accounting of one stream at one instant: received = exported + failed + sum(dropped) + queued."""

    image: str
    stream: str
    received: int
    exported: int
    failed: int
    queued: int
    dropped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Upgrades:
    """How often an image was replaced while it ran; for how long both versions, or neither, were attached in all."""

    count: int = 0
    overlap_s: float = 0.0
    gap_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ImageStatus:
    """What there is to tell about one image.

    Attributes:
        attached: Each program and whether it is attached.
        usage: What each program has used since the image runs, over its upgrades.
        map_entries: Map name to rows seen by the last read and rows it can hold; not of arrays.
        streams: Each stream and whether its program counts what it could not put into the ring.
        lost: Stream to records its program could not put into the ring.
        ring_fill: Stream to the highest share of its ring seen filled, 0 to 1.
        scrape_s: Seconds the last read took; None before the first.
        scrape_ok: Whether it read every map.
    """

    name: str
    ref: str
    state: str
    digest: str = ""
    version: str = ""
    format: str = ""
    pull_failures: Mapping[str, int] = field(default_factory=dict)
    upgrades: Upgrades = field(default_factory=Upgrades)
    attached: Mapping[str, bool] = field(default_factory=dict)
    usage: Mapping[str, ProgramUsage] = field(default_factory=dict)
    series: int = 0
    folded: int = 0
    map_entries: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    streams: Mapping[str, bool] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    ring_fill: Mapping[str, float] = field(default_factory=dict)
    scrape_s: float | None = None
    scrape_ok: bool = False


class Source(Protocol):
    """Where the numbers come from: the agent."""

    def image_statuses(self) -> Sequence[ImageStatus]: ...
    def runs_measured(self) -> bool:
        """Whether the kernel counts runs of programs and their time."""

    def stream_counts(self) -> Sequence[StreamCounts]: ...
    def otlp_accounts(self) -> Mapping[str, Account]:
        """What became of everything posted over OTLP, by signal (metrics, logs)."""

    def line_counts(self) -> Mapping[str, int]:
        """Records by what became of their JSON lines (written, dropped)."""

    def scrape_requests(self) -> tuple[Mapping[int, int], int]:
        """Scrapes answered so far by HTTP status, and those being made."""

    def last_reload(self) -> tuple[bool, float]:
        """Whether the configuration was good when it was read last, and when a good one was, in Unix seconds."""


class OwnMetrics(Collector):
    """Renders the agent's own metrics as in any format of a scrape.

    Args:
        source: The agent.
        exporter: Whether to say something of this process and its scrapes, and not only of its images.
    """

    def __init__(self, source: Source, *, exporter: bool = True) -> None:
        self._source = source
        self._exporter = exporter
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._process = ProcessCollector(registry=None)
        if exporter:
            self._registry.register(self._process)

    def render(self, exposition: Exposition = Exposition.TEXT_0_0_4, late: Collection[str] = ()) -> bytes:
        """Give the text, ready to follow that of the images; those that are ``late`` were not read for this scrape."""
        return registry_text(_Scrape(self, late) if late else self._registry, exposition)

    def families(self) -> Iterable[Metric]:
        """Give every family of the registry, for OTLP."""
        return self._registry.collect()

    def collect(self) -> Iterable[Metric]:
        """Give every family but those of the process (prometheus-client calls this)."""
        return self._collect(self._source.image_statuses())

    def of_scrape(self, late: Collection[str]) -> Iterable[Metric]:
        """Give every family, the images that are late as not read."""
        statuses = self._source.image_statuses()
        yield from self._collect([replace(i, scrape_ok=False) if i.name in late else i for i in statuses])
        if self._exporter:
            yield from self._process.collect()

    def _collect(self, images: Sequence[ImageStatus]) -> Iterable[Metric]:
        python = ".".join(map(str, sys.version_info[:3]))
        yield _gauge("skep_build_info", "Version of the agent.", ("version", "python"), [((VERSION, python), 1)])
        yield from self._images(images)
        yield from self._programs(images, runs=self._source.runs_measured())
        yield from self._events(self._source.stream_counts())
        yield from self._otlp(self._source.otlp_accounts())
        yield _counter(
            "skep_json_events",
            "Records sent to the JSON lines of events.json, by what became of them.",
            ("outcome",),
            [((outcome,), count) for outcome, count in self._source.line_counts().items()],
        )
        if self._exporter:
            codes, in_flight = self._source.scrape_requests()
            yield _counter(
                "skep_scrape_requests",
                "Scrapes answered, by HTTP status.",
                ("code",),
                [((str(code),), count) for code, count in sorted(codes.items())],
            )
            yield _gauge("skep_scrape_requests_in_flight", "Scrapes being made.", (), [((), in_flight)])
        successful, success_s = self._source.last_reload()
        yield _gauge(
            "skep_config_last_reload_successful",
            "Whether the configuration was good when it was read last.",
            (),
            [((), int(successful))],
        )
        yield _gauge(
            "skep_config_last_reload_success_timestamp_seconds",
            "When a configuration that was good was read last.",
            (),
            [((), success_s)],
        )

    @staticmethod
    def _images(images: Sequence[ImageStatus]) -> Iterable[Metric]:
        yield _gauge(
            "skep_image_info",
            "Image that runs: its reference as configured and what it resolved to.",
            ("image", "ref", "digest", "version", "format"),
            [((i.name, i.ref, i.digest, i.version, i.format), 1) for i in images if i.digest],
        )
        yield _gauge(
            "skep_image_state",
            "Whether the image is in this state.",
            ("image", "state"),
            [((i.name, state), int(i.state == state)) for i in images for state in STATES],
        )
        yield _counter(
            "skep_image_pull_failures",
            "Attempts to get the image that failed, by cause.",
            ("image", "code"),
            [((i.name, code), count) for i in images for code, count in i.pull_failures.items()],
        )
        yield _counter(
            "skep_image_upgrades",
            "Times another version took the place of the one that ran.",
            ("image",),
            [((i.name,), i.upgrades.count) for i in images],
        )
        yield _counter(
            "skep_image_upgrade_overlap_seconds",
            "Time in which both versions were attached, so that what happened was counted twice.",
            ("image",),
            [((i.name,), i.upgrades.overlap_s) for i in images],
        )
        yield _counter(
            "skep_image_upgrade_gap_seconds",
            "Time in which no version was attached, on hooks that take one program; nothing was counted.",
            ("image",),
            [((i.name,), i.upgrades.gap_s) for i in images],
        )
        yield _gauge(
            "skep_metric_series", "Live series of the image.", ("image",), [((i.name,), i.series) for i in images]
        )
        yield _counter(
            "skep_series_folded",
            "New label sets beyond limits.series, folded into an overflow series.",
            ("image",),
            [((i.name,), i.folded) for i in images],
        )
        entries = [((i.name, name), pair) for i in images for name, pair in i.map_entries.items()]
        yield _gauge(
            "skep_map_entries",
            "Rows of the map at the last read; an array has none to count.",
            ("image", "map"),
            [(k, v[0]) for k, v in entries],
        )
        yield _gauge(
            "skep_map_max_entries", "Rows the map can hold.", ("image", "map"), [(k, v[1]) for k, v in entries]
        )
        yield _gauge(
            "skep_stream_info",
            "Stream that is read; lost says whether records its full ring could not take are counted or unknown.",
            ("image", "stream", "lost"),
            [
                ((i.name, stream, "counted" if counted else "unknown"), 1)
                for i in images
                for stream, counted in i.streams.items()
            ],
        )
        yield _counter(
            "skep_ring_lost",
            "Records the program could not put into its full ring, as it counted them; absent where it does not count.",
            ("image", "stream"),
            [((i.name, stream), lost) for i in images for stream, lost in i.lost.items()],
        )
        yield _gauge(
            "skep_ring_fill_ratio_max",
            "Highest share of the ring seen filled.",
            ("image", "stream"),
            [((i.name, stream), ratio) for i in images for stream, ratio in i.ring_fill.items()],
        )
        read = [i for i in images if i.scrape_s is not None]
        yield _gauge(
            "skep_scrape_collector_duration_seconds",
            "Time the last read of the image's maps took.",
            ("collector",),
            [((i.name,), i.scrape_s or 0.0) for i in read],
        )
        yield _gauge(
            "skep_scrape_collector_success",
            "Whether the last read of the image's maps succeeded, before the deadline of this scrape if it has one.",
            ("collector",),
            [((i.name,), int(i.scrape_ok)) for i in images],
        )

    @staticmethod
    def _programs(images: Sequence[ImageStatus], *, runs: bool) -> Iterable[Metric]:
        labels = ("image", "program")
        yield _gauge(
            "skep_program_attached",
            "Whether the program is attached.",
            labels,
            [((i.name, program), int(on)) for i in images for program, on in i.attached.items()],
        )
        used = [((i.name, program), usage) for i in images for program, usage in i.usage.items()]
        yield _counter(
            "skep_program_recursion_misses",
            "Runs the kernel left out because the program was running on that CPU already (bpf_prog_info).",
            labels,
            [(key, usage.recursion_misses) for key, usage in used if usage.recursion_misses is not None],
        )
        if runs:
            yield _counter(
                "skep_program_runs",
                "Runs of the program while the kernel measured them (bpf_prog_info).",
                labels,
                [(key, usage.runs) for key, usage in used],
            )
            yield _counter(
                "skep_program_run_seconds",
                "Time on CPUs that these runs took (bpf_prog_info).",
                labels,
                [(key, usage.time_ns / 1e9) for key, usage in used],
            )

    @staticmethod
    def _otlp(accounts: Mapping[str, Account]) -> Iterable[Metric]:
        yield _counter(
            "skep_otlp_items",
            "Data points and log records posted over OTLP, by what became of them.",
            ("signal", "outcome"),
            [
                ((signal, outcome), count)
                for signal, a in accounts.items()
                for outcome, count in (("accepted", a.accepted), ("rejected", a.rejected), ("failed", a.failed))
            ],
        )
        yield _gauge(
            "skep_otlp_items_pending",
            "Data points and log records of requests that have no final answer yet.",
            ("signal",),
            [((signal,), a.pending) for signal, a in accounts.items()],
        )
        yield _counter(
            "skep_otlp_series_forgotten",
            "Series whose end, or last gains, were not told because too many left while the receiver was away.",
            ("signal",),
            [((signal,), a.forgotten) for signal, a in accounts.items() if signal == "metrics"],
        )
        yield _counter(
            "skep_otlp_requests",
            "Attempts to post, by how they ended: ok, partial, http_STATUS, grpc_STATUS, timeout, connect, tls, ….",
            ("signal", "cause"),
            [((signal, cause), count) for signal, a in accounts.items() for cause, count in sorted(a.requests.items())],
        )
        durations = HistogramMetricFamily(
            "skep_otlp_request_duration_seconds", "Time an attempt to post took.", labels=("signal",)
        )
        for signal, a in accounts.items():
            edges = [*map(str, DURATION_BOUNDS_S), "+Inf"]
            durations.add_metric([signal], list(zip(edges, accumulate(a.durations), strict=True)), a.duration_s)
        yield durations

    @staticmethod
    def _events(streams: Sequence[StreamCounts]) -> Iterable[Metric]:
        labels = ("image", "stream")
        yield _counter(
            "skep_events_received",
            "Records read from the stream's ring; equals exported + failed + dropped + queued.",
            labels,
            [((s.image, s.stream), s.received) for s in streams],
        )
        yield _counter(
            "skep_events_exported",
            "Records a receiver accepted; or that are counted in metrics, and no event is made of.",
            labels,
            [((s.image, s.stream), s.exported) for s in streams],
        )
        yield _counter(
            "skep_events_failed",
            "Records that could not be decoded, or that a receiver refused.",
            labels,
            [((s.image, s.stream), s.failed) for s in streams],
        )
        yield _counter(
            "skep_events_dropped",
            "Records dropped by a declared rule.",
            (*labels, "reason"),
            [((s.image, s.stream, reason), n) for s in streams for reason, n in sorted(s.dropped.items())],
        )
        yield _gauge(
            "skep_events_queued",
            "Records waiting to be sent.",
            labels,
            [((s.image, s.stream), s.queued) for s in streams],
        )


class _Scrape(Collector):
    """The agent's own metrics as one scrape has them."""

    def __init__(self, own: OwnMetrics, late: Collection[str]) -> None:
        self._own = own
        self._late = late

    def collect(self) -> Iterable[Metric]:
        return self._own.of_scrape(self._late)


Samples = Iterable[tuple[Sequence[str], float]]


def _gauge(name: str, help_: str, labels: Sequence[str], samples: Samples) -> Metric:
    family = GaugeMetricFamily(name, help_, labels=labels)
    for values, value in samples:
        family.add_metric(list(values), value)
    return family


def _counter(name: str, help_: str, labels: Sequence[str], samples: Samples) -> Metric:
    family = CounterMetricFamily(name, help_, labels=labels)
    for values, value in samples:
        family.add_metric(list(values), value)
    return family
