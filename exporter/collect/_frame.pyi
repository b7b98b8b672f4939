from collections.abc import Callable, Sequence

from typing_extensions import Buffer

from exporter.collect.labels import Compiled, Span
from exporter.collect.tally import CompiledRecords

class Budget:
    def __init__(self, limit: int) -> None: ...
    @property
    def limit(self) -> int: ...
    @property
    def used(self) -> int: ...

class Table:
    def __init__(
        self,
        *,
        labels: Compiled,
        ops: Sequence[tuple[object, ...]],
        records: CompiledRecords | None,
        budget: Budget,
        ask: Callable[[str, int], str],
        resolvers: Sequence[str],
        key_size: int,
        value_size: int,
        elements: int,
        element_stride: int,
        cells: int,
        instruments: int,
        per_cpu: bool,
        skip_zero_rows: bool,
        expire_idle: bool,
        gauges: int,
        expire_after_s: int,
        start_ns: int,
    ) -> None: ...
    def begin(self, now_ns: int, realtime_minus_monotonic_ns: int) -> None: ...
    def apply(self, keys: Buffer, values: Buffer, count: int, value_stride: int, cpus: int) -> None: ...
    def finish(self) -> None: ...
    def add(self, records: Buffer, now_ns: int, realtime_minus_monotonic_ns: int) -> None: ...
    def view(self) -> object: ...
    @property
    def live(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def folded(self) -> int: ...
    def memory(self) -> tuple[int, int, int]: ...
    def series(self) -> list[tuple[bytes, bytes, bytes, int, bool]]: ...

class Stream:
    def __init__(
        self,
        *,
        labels: Compiled,
        ask: Callable[[str, int], str],
        resolvers: Sequence[str],
        record_size: int,
        time: tuple[int, int] | None,
        severity: Span,
        event_name: Span,
        json_name: Span,
        events_per_s: int,
        sample_one_in: int,
        enabled: bool,
        measured: bool,
        tail: tuple[int, int, int, Span, Span] | None,
    ) -> None: ...
    def limit(self, value_chars: int, attributes: int) -> None: ...
    def decode(
        self, records: Buffer, now_ns: int, realtime_minus_monotonic_ns: int, otlp: bool, json: bool
    ) -> tuple[int, int, int, int, int, int, int, bytes, bytes]: ...
