"""Generate the Grafana dashboards in ``dashboards/``: one per catalog image, the fleet, a host, the agent's cost.

Usage: ``python packaging/generate/dashboards.py [--check]``

Those of the images are what ``skep dashboard catalog:NAME`` prints. The host's is
put together from the same plans; the fleet's and the cost's are written here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from catalog_plans import catalog_plans

from exporter.cli.build import build_catalog
from exporter.dashboard import Board, Panel, Query, Row, Shape, image_board, image_summary, render
from exporter.dashboard.board import AGENT, TOP, legend, of_agents, quantile, rate, select, top, total
from exporter.image import Store
from exporter.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "configs" / "catalog"
BUILT = ROOT / "build" / "catalog"
TARGET = ROOT / "dashboards"

# Nobody asked for these records: without a receiver, of a stream that is only drained, and left out by sampling.
UNWANTED = 'reason!~"no_receiver|disabled|sample"'
NOT_RUNNING = 'state!="running"'
TABLE_ROWS = 200


def line(
    title: str,
    description: str,
    unit: str,
    *queries: tuple[str, str],
    shape: Shape = Shape.LINES,
    maximum: float | None = None,
) -> Panel:
    """A panel of lines."""
    return Panel(title, description, unit, tuple(Query(*query) for query in queries), shape, maximum=maximum)


def stat(
    title: str,
    description: str,
    query: tuple[str, str],
    *,
    unit: str = "short",
    width: int = 4,
    thresholds: tuple[tuple[float, str], ...] = (),
) -> Panel:
    """A small panel of single numbers, six or eight of which fill a line."""
    return Panel(title, description, unit, (Query(*query),), Shape.STAT, width=width, height=4, thresholds=thresholds)


def table(title: str, description: str, expr: str, columns: dict[str, str]) -> Panel:
    """A table of one query's labels and value."""
    return Panel(title, description, "short", (Query(expr),), Shape.TABLE, columns=columns)


# -- panels that several boards share -------------------------------------------------------


def agents_down() -> Panel:
    """Needs Prometheus's own ``up``, which every job has; the jobs of agents are those with the agent's metric."""
    down = f"({select('up')} == 0) and on (job) {total(select(AGENT), ['job'], how='group')}"
    return stat(
        "Agents down",
        "Targets that cannot be scraped, in jobs that have agents.",
        (f"count({down}) or vector(0)", "down"),
        thresholds=((1, "red"),),
    )


def images_not_running() -> Panel:
    """Which images to look at, and where."""
    return table(
        "Images that do not run",
        f"Images in another state than running, at most {TABLE_ROWS}. The agent's log and skep list have the reason.",
        top(f"{select('skep_image_state', NOT_RUNNING)} == 1", TABLE_ROWS),
        {"instance": "Host", "image": "Image", "state": "State"},
    )


def dropped(by: Sequence[str]) -> Panel:
    """What a rule of ours dropped."""
    return line(
        "Events dropped",
        "Records per second that a declared rule dropped. no_receiver: nothing to send them to is configured; rate: "
        "above events_per_s; queue_full: the receiver is slower than the events.",
        "cps",
        (top(total(rate("skep_events_dropped_total"), by)), legend(by)),
    )


def lost(by: Sequence[str]) -> Panel:
    """What a ring had no room for."""
    return line(
        "Events lost in the kernel",
        "Records per second that a program could not put into its ring, as it counted them. A ring whose program does "
        "not count has no line.",
        "cps",
        (top(total(rate("skep_ring_lost_total"), by)), legend(by)),
    )


def failed(by: Sequence[str]) -> Panel:
    """What could not be decoded or was refused."""
    return line(
        "Events failed",
        "Records per second that could not be decoded, or that a receiver refused.",
        "cps",
        (top(total(rate("skep_events_failed_total"), by)), legend(by)),
    )


def folded(by: Sequence[str]) -> Panel:
    """What the series limit folded."""
    return line(
        "Series folded",
        "New label sets per second beyond limits.series, counted together in one overflow series.",
        "cps",
        (top(total(rate("skep_series_folded_total"), by)), legend(by)),
    )


def otlp_items() -> Panel:
    """What became of what was posted."""
    by = ["signal", "outcome"]
    return line(
        "OTLP items",
        "Data points and log records per second posted to the collector, by what became of them.",
        "cps",
        (total(rate("skep_otlp_items_total"), by), legend(by)),
    )


def unattached() -> Panel:
    """What is only half there."""
    return table(
        "Programs not attached",
        f"Programs that this kernel, or a missing privilege, did not let attach, at most {TABLE_ROWS}.",
        top(f"{select('skep_program_attached')} == 0", TABLE_ROWS),
        {"instance": "Host", "image": "Image", "program": "Program"},
    )


# -- boards ---------------------------------------------------------------------------------


def fleet() -> Board:
    """What runs where, in which version, and what was lost."""
    state, info = select("skep_image_state"), select("skep_image_info")
    reloaded = select("skep_config_last_reload_successful")
    digests = total(info, ["image", "digest"], how="count")
    agents = Row(
        "Agents and images",
        (
            stat("Agents", "Agents that answer scrapes.", (f"count({select(AGENT)})", "agents")),
            agents_down(),
            stat(
                "Images by state",
                "How many images, over all hosts, are in each state.",
                (f"{total(state, ['state'])} > 0", "{{state}}"),
                width=8,
            ),
            stat(
                "Reloads refused",
                "Agents that refused their newest configuration and run with the one from before.",
                (f"{total(reloaded, how='count')} - {total(reloaded)}", "refused"),
                thresholds=((1, "red"),),
            ),
            stat(
                "Series",
                "Series of all images on all hosts.",
                (total(select("skep_metric_series")), "series"),
            ),
            line(
                "Images by state over time",
                "How many images, over all hosts, are in each state.",
                "short",
                (f"{total(state, ['state'])} > 0", "{{state}}"),
                shape=Shape.AREAS,
            ),
            table(
                "Hosts by image and state",
                "How many hosts have each image in each state.",
                f"{total(state, ['image', 'state'])} > 0",
                {"image": "Image", "state": "State", "Value": "Hosts"},
            ),
            images_not_running(),
            unattached(),
        ),
    )
    skew = Row(
        "Skew",
        (
            line(
                "Hosts not on the most common digest",
                "For each image, hosts that run another digest than most: a roll-out under way, or one that stopped.",
                "short",
                (f"{total(info, ['image'], how='count')} - {total(digests, ['image'], how='max')}", "{{image}}"),
            ),
            table(
                "Digests",
                "Each digest of each image, and on how many hosts it runs. More than one digest of an image is skew.",
                total(info, ["image", "ref", "version", "digest"], how="count"),
                {"image": "Image", "ref": "Reference", "version": "Version", "digest": "Digest", "Value": "Hosts"},
            ),
            line(
                "Upgrades",
                "How often per second another version of an image took the place of the one that ran.",
                "cps",
                (top(total(rate("skep_image_upgrades_total"), ["image"])), "{{image}}"),
            ),
            line(
                "Time counted twice, or not at all",
                "While an image is upgraded: as a share of time, both versions attached (twice) or none (gap), the "
                f"{TOP} largest by image.",
                "percentunit",
                (top(total(rate("skep_image_upgrade_overlap_seconds_total"), ["image"])), "{{image}} twice"),
                (top(total(rate("skep_image_upgrade_gap_seconds_total"), ["image"])), "{{image}} gap"),
            ),
            line(
                "Digests of each image",
                "How many digests of the image run at once: 1 when the fleet is of one mind.",
                "short",
                (total(digests, ["image"], how="count"), "{{image}}"),
            ),
            table(
                "Agent versions",
                "On how many hosts each version of the agent runs.",
                total(select(AGENT), ["version", "python"], how="count"),
                {"version": "Version", "python": "Python", "Value": "Hosts"},
            ),
        ),
    )
    losses = Row(
        "Losses and failures",
        (
            dropped(["image", "reason"]),
            lost(["image", "stream"]),
            failed(["image", "stream"]),
            folded(["image"]),
            line(
                "Hosts that drop most events",
                "Records per second dropped or lost in the kernel, those aside that nothing was to receive.",
                "cps",
                (
                    top(
                        total(
                            f"{rate('skep_events_dropped_total', UNWANTED)} or {rate('skep_ring_lost_total')}",
                            ["instance"],
                        )
                    ),
                    "{{instance}}",
                ),
            ),
            otlp_items(),
            table(
                "Streams",
                "On how many hosts each stream of events runs. lost: whether its program counts what a full ring could "
                "not take, or nobody can know.",
                total(select("skep_stream_info"), ["image", "stream", "lost"], how="count"),
                {"image": "Image", "stream": "Stream", "lost": "Losses", "Value": "Hosts"},
            ),
            line(
                "Pulls that fail",
                "Failed attempts per second to get an image, by cause.",
                "cps",
                (top(total(rate("skep_image_pull_failures_total"), ["image", "code"])), "{{image}} {{code}}"),
            ),
            line(
                "Reads that fail",
                "Hosts on which the last read of the image's maps failed.",
                "short",
                (
                    f"{total(select('skep_scrape_collector_success'), ['collector'], how='count')} - "
                    f"{total(select('skep_scrape_collector_success'), ['collector'])}",
                    "{{collector}}",
                ),
            ),
        ),
    )
    return Board(
        uid="skep-fleet",
        title="skep / Fleet",
        description="All agents: what runs where and in which version, and what was dropped, lost or failed.",
        rows=(agents, skew, losses),
    )


def host(plans: Sequence[Plan]) -> Board:
    """One host, all images of the catalog: where to look first when it misbehaves."""
    cpu = of_agents(rate("process_cpu_seconds_total"))
    agent = Row(
        "Agent",
        (
            stat("Version", "The agent's version.", (total(select(AGENT), ["version"], how="count"), "{{version}}")),
            stat(
                "Running for",
                "Time since the agent started; of several hosts, the one that started last.",
                (f"time() - max({of_agents(select('process_start_time_seconds'))})", "up"),
                unit="s",
            ),
            stat(
                "Configured",
                "Time since the configuration in force was read; of several hosts, the newest.",
                (f"time() - max({select('skep_config_last_reload_success_timestamp_seconds')})", "configured"),
                unit="s",
            ),
            stat(
                "Images running",
                "Images in state running.",
                (total(select("skep_image_state", 'state="running"')), "running"),
            ),
            stat(
                "Images not running",
                "Images in any other state.",
                (total(select("skep_image_state", NOT_RUNNING)), "not running"),
                thresholds=((1, "orange"),),
            ),
            stat(
                "Agent CPU",
                "CPU time the agent uses, as a share of one CPU. What the programs use in the kernel is not in it.",
                (total(cpu), "CPU"),
                unit="percentunit",
            ),
            stat(
                "Agent memory",
                "Resident memory of the agent. The maps of its images are not in it.",
                (total(of_agents(select("process_resident_memory_bytes"))), "memory"),
                unit="bytes",
            ),
            stat("Series", "Series of all its images.", (total(select("skep_metric_series")), "series")),
            images_not_running(),
            dropped(["image", "reason"]),
        ),
    )
    stats = tuple(replace(panel, width=3) if panel.shape is Shape.STAT else panel for panel in agent.panels)
    return Board(
        uid="skep-host",
        title="skep / Host",
        description="One host and every image of the catalog. Choose the host above; an image that does not run there "
        "has no data.",
        rows=(replace(agent, panels=stats), *(image_summary(plan) for plan in plans)),
    )


def cost() -> Board:
    """What the agent takes from the hosts it runs on."""
    fill = f"{select('skep_map_entries')} / {select('skep_map_max_entries')}"
    process = Row(
        "Process",
        (
            line(
                "CPU",
                f"CPU time of the agent as a share of one CPU, the {TOP} largest by host.",
                "percentunit",
                (top(of_agents(rate("process_cpu_seconds_total"))), "{{instance}}"),
            ),
            line(
                "Resident memory",
                f"Resident memory of the agent, the {TOP} largest by host. Maps are kernel memory and not in it.",
                "bytes",
                (top(of_agents(select("process_resident_memory_bytes"))), "{{instance}}"),
            ),
            line(
                "Virtual memory",
                f"Address space of the agent, the {TOP} largest by host.",
                "bytes",
                (top(of_agents(select("process_virtual_memory_bytes"))), "{{instance}}"),
            ),
            line(
                "File descriptors",
                f"Open descriptors as a share of the limit, the {TOP} largest. Each program and map is one.",
                "percentunit",
                (
                    top(of_agents(f"{select('process_open_fds')} / {select('process_max_fds')}")),
                    "{{instance}}",
                ),
                maximum=1.0,
            ),
        ),
    )
    scrapes = Row(
        "Scrapes and series",
        (
            line(
                "Scrape duration",
                f"What Prometheus waited for the whole scrape, the {TOP} largest by host.",
                "s",
                (top(of_agents(select("scrape_duration_seconds"))), "{{instance}}"),
            ),
            line(
                "Scrape requests",
                "Answers to scrapes per second, by HTTP status: 503 where too many came at once.",
                "cps",
                (top(total(rate("skep_scrape_requests_total"), ["code"])), "{{code}}"),
            ),
            line(
                "Scrapes in flight",
                f"Scrapes that are answered at this moment, the {TOP} largest by host.",
                "short",
                (top(total(select("skep_scrape_requests_in_flight"), ["instance"])), "{{instance}}"),
            ),
            line(
                "Read duration by image",
                f"Time the last read of the image's maps took, the {TOP} largest by image and host.",
                "s",
                (top(select("skep_scrape_collector_duration_seconds")), "{{collector}} {{instance}}"),
            ),
            line(
                "Series by image",
                f"Live series of the image, the {TOP} largest by image and host.",
                "short",
                (top(select("skep_metric_series")), "{{image}} {{instance}}"),
            ),
            line(
                "Samples per scrape",
                f"Samples Prometheus took from one scrape, the {TOP} largest by host.",
                "short",
                (top(of_agents(select("scrape_samples_scraped"))), "{{instance}}"),
            ),
            folded(["image", "instance"]),
            line(
                "Map fill",
                f"Rows as a share of what the map can hold, the {TOP} largest by map and host; maps of one row aside. "
                "An array is always full; a hash that is full forgets its oldest rows or misses new ones.",
                "percentunit",
                (top(f"{fill} and {select('skep_map_max_entries')} > 1"), "{{image}} {{map}} {{instance}}"),
                maximum=1.0,
            ),
        ),
    )
    runs, seconds = rate("skep_program_runs_total"), rate("skep_program_run_seconds_total")
    by = ["image", "program", "instance"]
    programs = Row(
        "Programs in the kernel",
        (
            line(
                "CPU of programs",
                f"CPU time that programs take in the kernel, as a share of one CPU, the {TOP} largest by program and "
                "host. Needs telemetry.bpf_stats, or the sysctl kernel.bpf_stats_enabled.",
                "percentunit",
                (top(total(seconds, by)), legend(by)),
            ),
            line(
                "Time per run",
                f"What one run of a program takes, the {TOP} largest by program and host. Needs the same.",
                "s",
                (top(f"{total(seconds, by)} / {total(runs, by)}"), legend(by)),
            ),
            line(
                "Runs",
                f"Runs of programs per second, the {TOP} largest by program and host. Needs the same.",
                "cps",
                (top(total(runs, by)), legend(by)),
            ),
            line(
                "Runs left out",
                "Runs per second that the kernel left out because the program ran on that CPU already: what they would "
                f"have counted is missing. The {TOP} largest by program and host.",
                "cps",
                (top(total(rate("skep_program_recursion_misses_total"), by)), legend(by)),
            ),
        ),
    )
    posting = Row(
        "OTLP",
        (
            line(
                "Attempts to post",
                "Attempts per second, by how they ended: ok, partial, http_STATUS, grpc_STATUS, timeout, connect, tls.",
                "cps",
                (top(total(rate("skep_otlp_requests_total"), ["signal", "cause"])), "{{signal}} {{cause}}"),
            ),
            line(
                "Time of an attempt, p99",
                "99th percentile of the time an attempt to post takes, by signal.",
                "s",
                (quantile(0.99, "skep_otlp_request_duration_seconds", ("signal",)), "{{signal}}"),
            ),
            line(
                "Items pending",
                f"Data points and log records without a final answer yet, the {TOP} largest by signal and host.",
                "short",
                (top(total(select("skep_otlp_items_pending"), ["signal", "instance"])), "{{signal}} {{instance}}"),
            ),
            line(
                "Series forgotten",
                "Series per second whose end, or last gains, were not told because too many left while the receiver "
                "was away.",
                "cps",
                (
                    top(total(rate("skep_otlp_series_forgotten_total"), ["signal", "instance"])),
                    "{{signal}} {{instance}}",
                ),
            ),
        ),
    )
    events = Row(
        "Events",
        (
            line(
                "Events received",
                f"Records per second read from rings, the {TOP} largest by stream and host.",
                "cps",
                (top(total(rate("skep_events_received_total"), ["stream", "instance"])), "{{stream}} {{instance}}"),
            ),
            line(
                "Events exported",
                f"Records per second a receiver accepted, the {TOP} largest by stream and host.",
                "cps",
                (top(total(rate("skep_events_exported_total"), ["stream", "instance"])), "{{stream}} {{instance}}"),
            ),
            line(
                "Events queued",
                f"Records waiting to be sent, the {TOP} largest by stream and host.",
                "short",
                (top(total(select("skep_events_queued"), ["stream", "instance"])), "{{stream}} {{instance}}"),
            ),
            line(
                "Highest ring fill",
                f"Highest share of a ring seen filled since its image was loaded, the {TOP} largest.",
                "percentunit",
                (top(select("skep_ring_fill_ratio_max")), "{{stream}} {{instance}}"),
                maximum=1.0,
            ),
            dropped(["stream", "reason", "instance"]),
            lost(["stream", "instance"]),
        ),
    )
    return Board(
        uid="skep-cost",
        title="skep / Agent cost",
        description="What the agent and its programs take: CPU, memory, series, scrapes, rings, queues, posting.",
        rows=(process, programs, scrapes, events, posting),
    )


def generate(catalog: Store) -> dict[str, str]:
    """Every file by its name."""
    plans = catalog_plans(catalog)
    boards = {plan.scope.name: image_board(plan) for plan in plans}
    boards |= {"fleet": fleet(), "host": host(plans), "cost": cost()}
    return {f"{name}.json": render(board) for name, board in boards.items()}


def main() -> None:
    """Write the dashboards, or with ``--check`` fail if any would change."""
    build_catalog(SOURCES, BUILT, say=print)
    files = generate(Store(BUILT))
    there = {path.name: path.read_text(encoding="utf-8") for path in TARGET.glob("*.json")}
    if "--check" in sys.argv[1:]:
        differing = sorted(name for name in files.keys() | there.keys() if files.get(name) != there.get(name))
        if differing:
            raise SystemExit(f"{TARGET}: {', '.join(differing)} differ; run packaging/generate/{Path(__file__).name}")
        return
    for name in there.keys() - files.keys():
        (TARGET / name).unlink()
    for name, text in files.items():
        (TARGET / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
