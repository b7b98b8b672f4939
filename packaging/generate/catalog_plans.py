"""The plans of the shipped images, for the generators beside this file."""

from __future__ import annotations

from exporter.bpf import read_object
from exporter.config import ImageConfig
from exporter.image import Store, parse_reference
from exporter.plan import Plan, make_plan


def catalog_plans(catalog: Store) -> list[Plan]:
    """The plan of each image of a built catalog, by name, as an agent without configuration for it has it."""
    plans = []
    for name in sorted(catalog.names()):
        bundle = catalog.bundle(parse_reference(f"catalog:{name}"), "amd64")
        config = ImageConfig(name=name, ref=f"catalog:{name}")
        plans.append(
            make_plan(
                read_object(bundle.object),
                config=config,
                version=bundle.version,
                metadata=bundle.metadata,
                possible_cpus=1,
            )
        )
    return plans
