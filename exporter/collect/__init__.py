"""Rows become series, records become events.

Knows how the bytes of keys, values and records are read (from a plan), what a
counter, a gauge and a histogram do over time, and the bounds on all of it. Does not
know libbpf, sockets, or what time it is: bytes and clocks are handed in.
"""

from exporter.collect.frame import Frame
from exporter.collect.labels import resolver_of
from exporter.collect.limits import SeriesBudget
from exporter.collect.records import AttributeLimits, LogBatch, RecordDecoder

__all__ = ["AttributeLimits", "Frame", "LogBatch", "RecordDecoder", "SeriesBudget", "resolver_of"]
