"""Logging in to a registry: ask it whether it takes the credentials, and only then keep them.

Kept where Docker keeps them, so that one login serves both; see :mod:`exporter.image.credentials`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from exporter.config import RegistryConfig
from exporter.errors import ImageError
from exporter.image.credentials import CredentialFile, Credentials
from exporter.image.reference import DOCKER_HUB, Reference, ReferenceKind, parse_reference
from exporter.image.registry import Registry
from exporter.image.transfer import registry_config
from exporter.image.transport import Deadline


def parse_registry(text: str) -> Reference:
    """Read ``HOST[:PORT]``; a scheme in front, a slash behind and a path are forgiven, as Docker does.

    Returns:
        A reference without a repository, which only the functions here take.

    Raises:
        ImageError: ``img.ref_syntax``.
    """
    host = text.removeprefix("https://").removeprefix("http://").partition("/")[0]
    if not host or host in ("docker.io", "index.docker.io"):
        return Reference(ReferenceKind.REGISTRY, registry=DOCKER_HUB)
    # A word alone would read as a user of Docker Hub: a port, or being localhost, makes it a host.
    if not (set(host) & set(".:[") or host.lower() == "localhost"):
        raise ImageError(
            f"registry {host[:100]!r} is malformed: HOST must have a dot or a port, such as {host[:40] + ':5000'!r}",
            code="img.ref_syntax",
        )
    parsed = parse_reference(f"{host}/login")
    return replace(parsed, repository="", tag="")


def log_in(
    registry: Reference,
    credentials: Credentials,
    *,
    registries: Mapping[str, RegistryConfig] | None = None,
    deadline_s: float = 60.0,
) -> tuple[str, bool]:
    """Check credentials with a registry and keep them.

    Returns:
        Where they are kept, and whether the registry asked for them at all.

    Raises:
        ImageError: it does not take them, and nothing was kept; or they cannot be written.
    """
    config = registry_config(registry, registries)
    # A file that is named and not yet there is about to be made.
    asking = config if Path(config.auth_file).is_file() else replace(config, auth_file="")
    with Registry(registry, asking, deadline_s=deadline_s, credentials=credentials) as client:
        asked = client.check_login()
    return _file(config, deadline_s).save(registry.registry, credentials), asked


def log_out(registry: Reference, *, registries: Mapping[str, RegistryConfig] | None = None) -> bool:
    """Forget the credentials of a registry; whether there were any.

    Raises:
        ImageError: the file cannot be read or written, or the helper failed.
    """
    return _file(registry_config(registry, registries), 60.0).erase(registry.registry)


def _file(config: RegistryConfig, deadline_s: float) -> CredentialFile:
    return CredentialFile(config.auth_file, deadline=Deadline(deadline_s, stop=None, subject="login"), writing=True)
