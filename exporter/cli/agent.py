"""``skep agent`` and ``skep check``: the configuration's two readers.

Process settings are flags with node_exporter's names, all else is YAML, and nothing is in both.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.config import AgentConfig

DEFAULT_FILE = Path("/etc/skep/agent.yaml")
DEFAULT_ADDRESS = ":19435"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``agent`` and ``check``."""
    agent = subparsers.add_parser(
        "agent",
        help="run the images of a configuration until told to stop",
        description="Run a configuration's images, serve their metrics, and post them where the configuration says.",
    )
    agent.add_argument(
        "--config.file",
        dest="config_file",
        metavar="FILE",
        type=Path,
        default=DEFAULT_FILE,
        help=f"the configuration; *.yaml in agent.d beside it are read too (default: {DEFAULT_FILE})",
    )
    agent.add_argument(
        "--config.dir", dest="config_dir", metavar="DIR", type=Path, help="read *.yaml here instead of in agent.d"
    )
    agent.add_argument(
        "--web.listen-address",
        dest="listen_addresses",
        metavar="ADDRESS",
        action="append",
        help="host:port, :port, [v6]:port or vsock://:port to serve metrics on; repeatable "
        f"(default: {DEFAULT_ADDRESS})",
    )
    agent.add_argument(
        "--web.telemetry-path",
        dest="telemetry_path",
        metavar="PATH",
        type=_path,
        default="/metrics",
        help="where metrics are served (default: /metrics)",
    )
    agent.add_argument(
        "--web.max-requests",
        dest="max_requests",
        metavar="N",
        type=_count,
        default=40,
        help="scrapes answered at a time, 0 for no limit (default: 40)",
    )
    agent.add_argument(
        "--web.enable-lifecycle",
        dest="lifecycle",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="let whoever may scrape have the configuration read again by POST or PUT to /-/reload",
    )
    agent.add_argument(
        "--web.disable-exporter-metrics",
        dest="disable_exporter_metrics",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="leave out metrics of the process and of its scrapes (process_*, skep_scrape_requests_*)",
    )
    agent.add_argument(
        "--config.check-interval",
        dest="check_interval_s",
        metavar="DURATION",
        type=_duration,
        default=30.0,
        help="how often to look whether the configuration's content changed, 0s for never; SIGHUP reads it anyway "
        "(default: 30s)",
    )
    agent.add_argument(
        "--status.socket",
        dest="status_socket",
        metavar="PATH",
        help="where `skep status` asks; empty for nowhere (default: /run/skep/agent.sock; for a user, "
        "skep/agent.sock in $XDG_RUNTIME_DIR)",
    )
    agent.add_argument(
        "--web.config.file",
        dest="web_config",
        metavar="FILE",
        type=Path,
        help="TLS, passwords and headers, in the file that all Prometheus exporters share; read again when it changes",
    )
    agent.add_argument(
        "--web.systemd-socket",
        dest="systemd_socket",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="serve on the sockets of a systemd socket unit instead of on addresses",
    )
    agent.add_argument(
        "--log.level",
        dest="log_level",
        choices=("debug", "info", "warn", "error"),
        default="info",
        help="(default: info)",
    )
    agent.add_argument(
        "--log.format", dest="log_format", choices=("logfmt", "json"), default="logfmt", help="(default: logfmt)"
    )
    agent.add_argument(
        "--version", action="store_true", help="show the versions of skep and what it stands on, and end"
    )
    agent.set_defaults(run=_agent)

    check = subparsers.add_parser(
        "check",
        help="say everything that is wrong with a configuration",
        description="Read files as one configuration, as the agent would, and print every error with file, line and "
        "column. One file alone brings the *.yaml of agent.d beside it. Needs no privilege; resolves ${…}.",
    )
    check.add_argument("files", metavar="FILE", nargs="*", type=Path, help=f"(default: {DEFAULT_FILE})")
    check.add_argument("--schema", action="store_true", help="print the JSON schema of the configuration instead")
    check.set_defaults(run=_check)


def _path(text: str) -> str:
    if not text.startswith("/") or text.startswith("/-/") or "?" in text or "#" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path to serve at; must begin with / and not with /-/")
    return text


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no count; must be 0 or more")
    return int(text)


def _duration(text: str) -> float:
    from exporter.config import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def read_configuration(files: list[Path]) -> AgentConfig:
    """Read files as one configuration, references judged too.

    Raises:
        ConfigError, Problems: everything that is wrong.
    """
    from exporter.config import load
    from exporter.image import parse_reference

    return load(files, name_of=lambda ref: parse_reference(ref).default_name)


def _agent(args: argparse.Namespace) -> int:
    if args.version:
        from .version import show

        return show()
    from exporter.config import config_files

    def files() -> list[Path]:
        return config_files(args.config_file, args.config_dir)

    config = read_configuration(files())
    # Everything the agent stands on, some 60 MB of it; not for the other verbs.
    from exporter.agent import Agent, Options
    from exporter.agent.log import configure
    from exporter.agent.reload import ConfigSource
    from exporter.agent.status import default_socket

    configure(args.log_level, args.log_format)
    status_socket: Path | None = default_socket()
    if args.status_socket is not None:
        status_socket = Path(args.status_socket) if args.status_socket else None
    options = Options(
        listen_addresses=tuple(args.listen_addresses or [DEFAULT_ADDRESS]),
        telemetry_path=args.telemetry_path,
        max_requests=args.max_requests,
        web_config=args.web_config,
        systemd_socket=args.systemd_socket,
        status_socket=status_socket,
        exporter_metrics=not args.disable_exporter_metrics,
        lifecycle=args.lifecycle,
    )
    source = ConfigSource(files, lambda: read_configuration(files()), args.check_interval_s)
    return Agent(config, options, source).run()


def _check(args: argparse.Namespace) -> int:
    from exporter.config import config_files, json_schema

    if args.schema:
        json.dump(json_schema(), sys.stdout, indent=2, ensure_ascii=False)
        print()
        return 0
    files: list[Path] = args.files or [DEFAULT_FILE]
    if len(files) == 1:
        files = config_files(files[0])
    config = read_configuration(files)
    enabled = sum(image.enabled for image in config.images)
    disabled = len(config.images) - enabled
    print(
        f"{', '.join(map(str, files))}: ok, {enabled} images" + (f", {disabled} more not enabled" if disabled else "")
    )
    return 0
