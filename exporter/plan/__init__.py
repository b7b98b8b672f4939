"""Decides what is measured and every name of it, from an object, its metadata and the configuration.

Knows naming, units, labels, buckets, limits. Must not know whether this kernel
can do it (``skep plan`` runs on a laptop without privilege) nor how a number is
encoded for its readers.
"""

from .context import NOT_TABLES, SOURCES
from .decoders import DECODERS
from .metadata import parse_metadata
from .plan import (
    Condition,
    GlobalPlan,
    HistogramRule,
    InnerSource,
    LabelRule,
    MapPlan,
    MetricPlan,
    Plan,
    ProgramPlan,
    SectionSource,
    StackSource,
    Step,
    StorageSource,
    StreamPlan,
    TablePlan,
    ValueRule,
)
from .planner import make_plan
from .sizes import LEFT_OPEN
from .together import check_together

__all__ = [
    "DECODERS",
    "LEFT_OPEN",
    "NOT_TABLES",
    "SOURCES",
    "Condition",
    "GlobalPlan",
    "HistogramRule",
    "InnerSource",
    "LabelRule",
    "MapPlan",
    "MetricPlan",
    "Plan",
    "ProgramPlan",
    "SectionSource",
    "StackSource",
    "Step",
    "StorageSource",
    "StreamPlan",
    "TablePlan",
    "ValueRule",
    "check_together",
    "make_plan",
    "parse_metadata",
]
