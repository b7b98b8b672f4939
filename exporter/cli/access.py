"""``skep login`` and ``skep logout``: credentials of registries, where Docker keeps them too."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from exporter.cli.images import add_registry_options, registry_settings
from exporter.errors import ConfigError

if TYPE_CHECKING:
    from exporter.config import RegistryConfig
    from exporter.image import Reference

_PASSWORD_LIMIT = 1 << 16


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both verbs."""
    login = subparsers.add_parser(
        "login",
        help="log in to a registry",
        description="Ask a registry whether it takes a user name and password, and keep them if it does: with the "
        "credential helper that Docker's config.json names, else in that file. What is not given is asked for on the "
        "terminal.",
    )
    login.add_argument("registry", metavar="HOST", nargs="?", default="", help="HOST[:PORT] (default: Docker Hub)")
    login.add_argument("--username", "-u", metavar="NAME", default="", help="who to log in as")
    login.add_argument("--password-stdin", action="store_true", help="read the password, or token, from stdin")
    add_registry_options(login)
    login.set_defaults(run=_login)

    logout = subparsers.add_parser(
        "logout",
        help="forget the credentials of a registry",
        description="Remove what skep login, docker login or podman login kept for a registry.",
    )
    logout.add_argument("registry", metavar="HOST", nargs="?", default="", help="HOST[:PORT] (default: Docker Hub)")
    add_registry_options(logout)
    logout.set_defaults(run=_logout)


def _registry(args: argparse.Namespace) -> tuple[Reference, dict[str, RegistryConfig]]:
    from exporter.image.login import parse_registry

    registry = parse_registry(args.registry)
    return registry, registry_settings(args, registry, {})


def _login(args: argparse.Namespace) -> int:
    from exporter.image.credentials import Credentials
    from exporter.image.login import log_in

    registry, registries = _registry(args)
    credentials = Credentials(*_ask(args, registry.registry))
    where, asked = log_in(registry, credentials, registries=registries)
    if not asked:
        print(f"skep: registry {registry.registry!r} lets everybody in and did not check them", file=sys.stderr)
    print(f"logged in to {registry.registry} as {credentials.username}; kept in {where}")
    return 0


def _ask(args: argparse.Namespace, registry: str) -> tuple[str, str]:
    """User name and password; what is missing is asked for where there is somebody to ask."""
    username = args.username
    if args.password_stdin:
        if not username:
            raise ConfigError("--password-stdin needs --username, as stdin holds the password")
        password = sys.stdin.read(_PASSWORD_LIMIT).rstrip("\r\n")
    elif sys.stdin.isatty():
        import getpass

        if not username:
            print(f"Username for {registry}: ", end="", file=sys.stderr, flush=True)
            username = sys.stdin.readline().strip()
        password = getpass.getpass(f"Password for {username}: ") if username else ""
    else:
        raise ConfigError("there is no terminal to ask on; give --username, and the password with --password-stdin")
    if not username or not password:
        raise ConfigError(f"the {'password' if username else 'user name'} is empty")
    if ":" in username:
        raise ConfigError(f"user name {username!r} holds ':', which HTTP Basic cannot carry")
    return username, password


def _logout(args: argparse.Namespace) -> int:
    from exporter.image.login import log_out

    registry, registries = _registry(args)
    known = log_out(registry, registries=registries)
    print(f"logged out of {registry.registry}" if known else f"not logged in to {registry.registry}")
    return 0
