"""What one receiver was sent of one instrument (``_native/sent.c``)."""

class Sent:
    """The series of one instrument as one receiver has them. One owner serialises all calls.

    Args:
        keep: Beside names: 0 nothing, 1 the last values, 2 also what was gained and not yet accepted.
        is_gauge: Then ``keep`` is 0 or 1.
        cell_type: ``CellType``; of a histogram, of its sum.
        cells: Of one series.
        departed_limit: Series that left and whose end was not yet told, at most; further ones are forgotten.

    Attributes:
        in_batch: Series of the batch that were neither accepted nor refused.
        series: Series remembered.
        shown: Series of the last observation.
        forgotten: Series beyond ``departed_limit`` so far.
    """

    def __init__(self, *, keep: int, is_gauge: bool, cell_type: int, cells: int, departed_limit: int) -> None: ...
    def begin(self) -> None:
        """Begin an observation."""

    def observe(self, capsule: object, first_cell: int) -> None:
        """Observe a frame, by its view.

        Raises:
            ValueError: a series' attribute bytes are no ``KeyValue`` fields.
        """

    def row(self, attributes: bytes, start_ns: int, cells: bytes) -> None:
        """Observe one series: ``KeyValue`` fields with tag 0x3a, and 8 bytes a cell."""

    def finish(self, keep_unseen: bool) -> None:
        """End the observation: what it did not see has departed; with ``keep_unseen`` it may come back as it was."""

    def yield_to(self, other: Sent) -> None:
        """Tell no end of departed series that ``other`` shows."""

    def batch(self, time_ns: int) -> None:
        """Decide what goes out; every series of it must be accepted or refused before the next.

        Raises:
            RuntimeError: the last one is not settled.
        """

    def view(self) -> object:
        """A capsule ``skep.frame_view`` of the batch, cells from 0."""

    def accept(self, first: int, end: int) -> None:
        """The receiver has the series at these places."""

    def refuse(self, first: int, end: int, maybe_taken: bool) -> None:
        """They will not be sent again as they were: their gains go out with the next batch.

        Args:
            first: Place of the first.
            end: Place behind the last.
            maybe_taken: The receiver did not say that it does not have them.
        """

    def after(self, first: int, end: int, points: int) -> int:
        """The place behind the first ``points`` series of the batch from ``first`` on."""

    @property
    def in_batch(self) -> int: ...
    @property
    def series(self) -> int: ...
    @property
    def shown(self) -> int: ...
    @property
    def forgotten(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
