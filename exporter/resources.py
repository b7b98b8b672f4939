"""Files that travel with skep: the header and templates for BPF authors, the catalog, dashboards, the configuration.

An installed skep has them in ``exporter/share``; a checkout where they are made
or kept. Nobody else knows which of the two this is.
"""

from __future__ import annotations

from pathlib import Path

from exporter.errors import SkepError

_INSTALLED = Path(__file__).parent / "share"
_CHECKOUT = Path(__file__).parents[1]
_CHECKOUT_PLACES = {
    "include": "_native",
    "catalog": "build/catalog",
    "dashboards": "dashboards",
    "templates": "configs/templates",
    "agent.yaml": "configs/agent.yaml",
    "agent.schema.json": "configs/agent.schema.json",
}
_MADE_BY = {"catalog": "run 'skep build --catalog configs/catalog build/catalog'"}


def share(name: str) -> Path:
    """Find a file or folder that travels with skep.

    Args:
        name: ``include``, ``catalog``, ``dashboards``, ``templates``, ``agent.yaml`` or ``agent.schema.json``.

    Raises:
        SkepError: ``resource``: this installation does not have it.
        KeyError: nothing is called that.
    """
    in_checkout = _CHECKOUT / _CHECKOUT_PLACES[name]
    installed = _INSTALLED / name
    if installed.exists():
        return installed
    if not is_checkout():
        raise SkepError(f"resource {name!r} is not at {str(installed)!r}; install skep again", code="resource")
    if not in_checkout.exists():
        remedy = _MADE_BY.get(name, "check it out again")
        raise SkepError(f"resource {name!r} is not at {str(in_checkout)!r}; {remedy}", code="resource")
    return in_checkout


def is_checkout() -> bool:
    """Whether this package lies in a checkout of its repository, and not in ``site-packages``."""
    return (_CHECKOUT / "_native" / "skep.bpf.h").is_file()


def include_dir() -> Path:
    """The folder to give a C compiler with ``-I``; it holds ``skep.bpf.h``."""
    return share("include")


def catalog_dir() -> Path:
    """The OCI layout with the shipped images; what ``catalog:NAME`` names."""
    return share("catalog")


def version() -> str:
    """Skep's own version."""
    if is_checkout():
        import tomllib  # noqa: PLC0415 - the two cost 20 ms at each start, and few ask

        return str(tomllib.loads((_CHECKOUT / "pyproject.toml").read_text())["project"]["version"])
    import importlib.metadata  # noqa: PLC0415

    return importlib.metadata.version("skep")
