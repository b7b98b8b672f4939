"""Plans of C sources, for tests."""

from collections.abc import Mapping

from exporter.bpf import read_object
from exporter.config import ImageConfig
from exporter.errors import PlanError, Problems
from exporter.model import Instrument
from exporter.plan import Plan, TablePlan, make_plan
from tests.support.clang import PROGRAM, compile_bpf


def plan_of(
    source: str,
    *,
    metadata: Mapping[str, object] | None = None,
    cpus: int = 4,
    program: str = PROGRAM,
    **config: object,
) -> Plan:
    """The plan of a C source with an image's configuration."""
    image = ImageConfig(**{"name": "image", "ref": "image"} | config)  # type: ignore[arg-type]
    spec = read_object(compile_bpf(source, program=program))
    return make_plan(spec, config=image, version="1.0", metadata=metadata or {}, possible_cpus=cpus)


def problems_of(source: str, **arguments: object) -> list[str]:
    """What is wrong with a C source and its configuration; none is a failure of the test."""
    try:
        plan_of(source, **arguments)  # type: ignore[arg-type]
    except Problems as problems:
        assert all(isinstance(problem, PlanError) for problem in problems.problems)
        return [str(problem) for problem in problems.problems]
    except PlanError as problem:
        return [str(problem)]
    raise AssertionError("a plan was made")


def table_of(plan: Plan, name: str) -> TablePlan:
    """The only table of that map."""
    (table,) = [table for table in plan.tables if table.map == name]
    return table


def instruments(plan: Plan) -> dict[str, Instrument]:
    """Every instrument by its Prometheus name."""
    return {metric.instrument.prometheus_name: metric.instrument for table in plan.tables for metric in table.metrics}
