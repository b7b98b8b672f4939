"""Metrics of one receiver over time: nothing lost, nothing counted twice, and every series that leaves ends once."""

import random
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

from exporter.collect import Frame, SeriesBudget
from exporter.config import OtlpConfig
from exporter.errors import ExportError
from exporter.export import metrics as metrics_module
from exporter.export.metrics import MetricsExport, preference
from exporter.export.outcome import Outcome, Verdict
from exporter.export.sender import OtlpSender
from exporter.model import CellType, Instrument, Scale, Scope, Snapshot
from exporter.plan.plan import LabelRule, MetricPlan, TablePlan, ValueRule
from tests.support.frame_literals import FrameLiteral, SeriesLiteral, counter, gauge, histogram
from tests.support.frame_literals import snapshot as snapshot_of
from tests.support.frame_strategies import patient
from tests.support.metrics_ledger import Ledger, ledger
from tests.support.otlp_receiver import Answer, GrpcReceiver, OtlpReceiver

NEVER = threading.Event()
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND

ACCEPT = Outcome(Verdict.ACCEPTED)
REJECT = Outcome(Verdict.REJECTED, 400, cause="http_400")
TOO_LARGE = Outcome(Verdict.REJECTED, 413, cause="http_413", too_large=True)
AWAY = Outcome(Verdict.UNAVAILABLE, cause="connect")

CALLS = counter("ebpf.calls")
TIME = counter("ebpf.time", unit="s", first_cell=1, scale=Scale(-9))
LEVEL = gauge("ebpf.level", first_cell=2)
LATENCY = histogram("ebpf.latency", bounds=(1.0,), has_sum=True, first_cell=3)
LOAD = counter("ebpf.load", first_cell=6, cell_type=CellType.F64)
INSTRUMENTS = (CALLS, TIME, LEVEL, LATENCY, LOAD)


class ScriptedSender:
    """Answers as it is told, accepts when the script is over, and keeps what it accepted."""

    def __init__(self, script: Sequence[Outcome] = ()) -> None:
        self.script = list(script)
        self.ledger = Ledger()
        self.bodies: list[bytes] = []
        self.settled: dict[str, int] = {}

    def send(self, body: bytes, *, items: int, stop: threading.Event, deadline_s: float, hold: bool = False) -> Outcome:
        """One attempt."""
        assert hold
        self.bodies.append(body)
        outcome = self.script.pop(0) if self.script else ACCEPT
        if outcome.accepted:
            request = metrics_service_pb2.ExportMetricsServiceRequest.FromString(body)
            assert self.ledger.add(request) == items
        if outcome.accepted or (outcome.verdict is Verdict.REJECTED and not outcome.too_large):
            self.settle(outcome, items)
        return outcome

    def settle(self, outcome: Outcome, items: int) -> None:
        """Book."""
        self.settled[outcome.verdict.value] = self.settled.get(outcome.verdict.value, 0) + items


class ChangingFrame:
    """A frame whose series change from instant to instant, as a map's do."""

    def __init__(self, instruments: Sequence[Instrument] = INSTRUMENTS, scope: Scope | None = None) -> None:
        self.scope = scope or Scope("image")
        self.instruments = tuple(instruments)
        self.series: dict[str, SeriesLiteral] = {}
        self._literal = FrameLiteral(self.instruments, [])

    def put(self, key: str, *cells: float, start_ns: int = START, **changes: bool) -> None:
        """Set a series."""
        labels = (("key", key),) if key else ()
        self.series[key] = SeriesLiteral(labels, cells, start_ns=start_ns, **changes)  # type: ignore[arg-type]

    def view(self) -> object:
        """As a frame does."""
        self._literal = FrameLiteral(self.instruments, list(self.series.values()), scope=self.scope)
        return self._literal.view()


def at(second: int, *frames: ChangingFrame) -> Snapshot:
    """An instant."""
    return replace(snapshot_of(time_ns=START + second * SECOND), frames=frames)


def exporting(sender: ScriptedSender, temporality: str = "delta") -> MetricsExport:
    """An export over a scripted sender."""
    return MetricsExport(sender, temporality)  # type: ignore[arg-type]


def push(export: MetricsExport, shot: Snapshot) -> None:
    """One interval."""
    export.take(shot)
    export.post(stop=NEVER, deadline_s=0.0)


CALLS_OF_A = ("image", "ebpf.calls", (("key", "a"),))


@pytest.mark.parametrize("name", ["cumulative", "delta", "lowmemory"])
def test_each_kind_has_the_preferred_temporality(name: str) -> None:
    """Of lowmemory, what is recorded as it happens goes out as differences, what is observed as a total does not."""
    sender = ScriptedSender()
    export = exporting(sender, name)
    frame = ChangingFrame()
    for second, value in ((1, 5), (2, 7)):
        frame.put("a", value, value * SECOND, value, value, 1, value, float(value))
        push(export, at(second, frame))
    last = {key[1]: points[-1] for key, points in sender.ledger.streams.items()}
    of_counters, of_histograms = {"cumulative": (2, 2), "delta": (1, 1), "lowmemory": (2, 1)}[name]
    assert {point.temporality for metric, point in last.items() if metric in ("ebpf.calls", "ebpf.time")} == {
        of_counters
    }
    assert last["ebpf.latency"].temporality == of_histograms
    assert last["ebpf.calls"].values == ((2,) if of_counters == 1 else (7,))
    assert last["ebpf.time"].values == ((2.0,) if of_counters == 1 else (7.0,))
    assert last["ebpf.latency"].values == ((2, 0, 2.0) if of_histograms == 1 else (7, 1, 7.0))
    assert last["ebpf.level"].values == (7,)


def test_unknown_temporality_is_refused() -> None:
    """With what is known."""
    with pytest.raises(ExportError, match="'sideways'; must be 'cumulative', 'delta' or 'lowmemory'"):
        preference("sideways")


def test_differences_follow_each_other_without_a_gap() -> None:
    """The first begins where the series did; one that gained nothing is a zero, not a gap."""
    sender = ScriptedSender()
    export = exporting(sender)
    frame = ChangingFrame([CALLS])
    for second, value in ((1, 5), (2, 5), (3, 9)):
        frame.put("a", value)
        push(export, at(second, frame))
    points = sender.ledger.streams[CALLS_OF_A]
    assert [((p.start_ns - START) // SECOND, (p.time_ns - START) // SECOND, p.values) for p in points] == [
        (0, 1, (5,)),
        (1, 2, (0,)),
        (2, 3, (4,)),
    ]


def test_request_without_an_answer_goes_out_again_unchanged_and_what_came_since_behind_it() -> None:
    """A receiver that had it after all can tell that it is the same."""
    sender = ScriptedSender([AWAY, AWAY])
    export = exporting(sender)
    frame = ChangingFrame([CALLS])
    for second, value in ((1, 5), (2, 6), (3, 9)):
        frame.put("a", value)
        push(export, at(second, frame))
    assert sender.bodies[0] == sender.bodies[1] == sender.bodies[2]
    assert [point.values for point in sender.ledger.streams[CALLS_OF_A]] == [(5,), (4,)]
    assert sender.settled == {"accepted": 2}
    assert export.in_hand == 0


def test_refused_differences_go_out_with_the_next() -> None:
    """From where they began; each refusal is counted."""
    sender = ScriptedSender([REJECT])
    export = exporting(sender)
    frame = ChangingFrame([CALLS])
    for second, value in ((1, 5), (2, 6)):
        frame.put("a", value)
        push(export, at(second, frame))
    (point,) = sender.ledger.streams[CALLS_OF_A]
    assert (point.start_ns, point.values) == (START, (6,))
    assert sender.settled == {"rejected": 1, "accepted": 1}


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_cumulative_requests_that_were_not_delivered_are_given_up_and_differences_never(temporality: str) -> None:
    """The next instant says it all, or does not."""
    sender = ScriptedSender([AWAY])
    export = exporting(sender, temporality)
    frame = ChangingFrame([CALLS])
    frame.put("a", 5)
    push(export, at(1, frame))
    assert export.in_hand == (0 if temporality == "cumulative" else 1)
    assert sender.settled == ({"unavailable": 1} if temporality == "cumulative" else {})
    assert export.abandon() == (0 if temporality == "cumulative" else 1)


@pytest.mark.parametrize("temporality", ["cumulative", "delta", "lowmemory"])
def test_vanished_series_ends_with_one_point_without_a_value(temporality: str) -> None:
    """Of every kind; once accepted, never again; the others go on."""
    sender = ScriptedSender()
    export = exporting(sender, temporality)
    frame = ChangingFrame()
    for key in "ab":
        frame.put(key, 5, 5, 5, 5, 5, 5, 5.0)
    push(export, at(1, frame))
    del frame.series["a"]
    for second in (2, 3, 4):
        push(export, at(second, frame))
    sender.ledger.check()
    ended = {name: points for name, points in sender.ledger.streams.items() if name[2] == (("key", "a"),)}
    assert [[point.ended for point in points] for points in ended.values()] == [[False, True]] * len(INSTRUMENTS)
    assert not any(
        point.ended for name, points in sender.ledger.streams.items() if name not in ended for point in points
    )


def test_end_stands_in_the_metric_of_the_series_that_go_on() -> None:
    """One metric a request, not two of one name."""
    for temporality in ("cumulative", "delta"):
        sender = ScriptedSender()
        export = exporting(sender, temporality)
        frame = ChangingFrame([CALLS])
        frame.put("a", 1)
        frame.put("b", 1)
        push(export, at(1, frame))
        del frame.series["a"]
        push(export, at(2, frame))
        last = metrics_service_pb2.ExportMetricsServiceRequest.FromString(sender.bodies[-1])
        (metric,) = last.resource_metrics[0].scope_metrics[0].metrics
        assert sorted(point.flags for point in metric.sum.data_points) == [0, 1]


def test_ended_histogram_keeps_its_bounds() -> None:
    """A reader of classic histograms ends one series a bucket by it."""
    sender = ScriptedSender()
    export = exporting(sender, "cumulative")
    frame = ChangingFrame([replace(LATENCY, first_cell=0)])
    frame.put("a", 1, 2, 3)
    push(export, at(1, frame))
    frame.series.clear()
    push(export, at(2, frame))
    last = metrics_service_pb2.ExportMetricsServiceRequest.FromString(sender.bodies[-1])
    (point,) = last.resource_metrics[0].scope_metrics[0].metrics[0].histogram.data_points
    assert (point.flags, point.count, point.sum) == (1, 0, 0.0)
    assert (list(point.explicit_bounds), list(point.bucket_counts)) == ([1.0], [0, 0])
    assert (point.start_time_unix_nano, point.attributes[0].value.string_value) == (START, "a")


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_end_is_owed_until_it_is_accepted(temporality: str) -> None:
    """However often the receiver was away or refused."""
    sender = ScriptedSender()
    export = exporting(sender, temporality)
    frame = ChangingFrame([CALLS])
    frame.put("a", 1)
    push(export, at(1, frame))
    frame.series.clear()
    sender.script = [AWAY, REJECT, AWAY]
    for second in range(2, 8):
        push(export, at(second, frame))
    assert [point.ended for point in sender.ledger.streams[CALLS_OF_A]] == [False, True]


def test_series_that_comes_back_before_its_end_was_told_did_not_end() -> None:
    """Nothing to tell."""
    sender = ScriptedSender()
    export = exporting(sender, "cumulative")
    frame = ChangingFrame([CALLS])
    frame.put("a", 1)
    push(export, at(1, frame))
    kept = dict(frame.series)
    frame.series.clear()
    sender.script = [AWAY]
    push(export, at(2, frame))
    frame.series = kept
    push(export, at(3, frame))
    assert [point.ended for point in sender.ledger.streams[CALLS_OF_A]] == [False, False]


def test_what_a_series_gained_before_it_left_is_delivered_before_its_end() -> None:
    """Though the frame forgot it while the receiver was away."""
    sender = ScriptedSender()
    export = exporting(sender)
    frame = ChangingFrame([CALLS])
    frame.put("a", 1)
    push(export, at(1, frame))
    sender.script = [AWAY, AWAY]
    frame.put("a", 4)
    push(export, at(2, frame))
    frame.put("a", 9)
    push(export, at(3, frame))
    frame.series.clear()
    for second in (4, 5, 6):
        push(export, at(second, frame))
    sender.ledger.check()
    assert [(p.values, p.ended) for p in sender.ledger.streams[CALLS_OF_A]] == [
        ((1,), False),
        ((3,), False),
        ((5,), False),
        ((), True),
    ]


def test_hidden_series_that_comes_back_as_it_was_is_not_counted_again() -> None:
    """Idle series are hidden, with their counts; after their end only what is new is a difference."""
    sender = ScriptedSender()
    export = exporting(sender)
    frame = ChangingFrame([CALLS])
    frame.put("a", 100)
    push(export, at(1, frame))
    frame.put("a", 100, live=False)
    for second in (2, 3):
        push(export, at(second, frame))
    frame.put("a", 103)
    push(export, at(4, frame))
    sender.ledger.check()
    assert [(p.values, p.ended) for p in sender.ledger.streams[CALLS_OF_A]] == [
        ((100,), False),
        ((), True),
        ((3,), False),
    ]


def test_what_a_series_gained_before_it_was_hidden_is_delivered() -> None:
    """Though no instant showed it so; even if none showed it at all."""
    sender = ScriptedSender()
    export = exporting(sender)
    frame = ChangingFrame([CALLS])
    frame.put("a", 100)
    push(export, at(1, frame))
    frame.put("a", 105, live=False)
    frame.put("b", 7, live=False)
    for second in (2, 3, 4):
        push(export, at(second, frame))
    assert [(p.values, p.ended) for p in sender.ledger.streams[CALLS_OF_A]] == [
        ((100,), False),
        ((5,), False),
        ((), True),
    ]
    assert [p.values for p in sender.ledger.streams["image", "ebpf.calls", (("key", "b"),)]] == [(7,), ()]


def test_frame_that_cannot_be_read_for_a_while_is_not_counted_again() -> None:
    """Its series end, since nobody knows them; when it is back only what is new is a difference."""
    sender = ScriptedSender()
    export = exporting(sender)
    frame, other = ChangingFrame([CALLS]), ChangingFrame([CALLS], Scope("other"))
    frame.put("a", 100)
    other.put("a", 1)
    push(export, at(1, frame, other))
    for second in (2, 3, 4):
        push(export, at(second, other))
    frame.put("a", 103)
    push(export, at(5, frame, other))
    assert [(p.values, p.ended) for p in sender.ledger.streams[CALLS_OF_A]] == [
        ((100,), False),
        ((), True),
        ((3,), False),
    ]


def test_series_that_begins_anew_counts_from_zero() -> None:
    """Another start, even at a higher value; or a lower value, even with the same start."""
    sender = ScriptedSender()
    export = exporting(sender)
    frame = ChangingFrame([CALLS])
    for second, value, start_s in ((1, 5, 0), (3, 6, 2), (4, 2, 2)):
        frame.put("a", value, start_ns=START + start_s * SECOND)
        push(export, at(second, frame))
    sender.ledger.check()
    assert [point.values for point in sender.ledger.streams[CALLS_OF_A]] == [(5,), (6,), (2,)]


def test_upgraded_image_goes_on_in_the_same_stream() -> None:
    """A new frame and a new version of the scope: counts add up, and nothing ended."""
    for temporality, values in (("delta", [(5,), (2,)]), ("cumulative", [(5,), (2,)])):
        sender = ScriptedSender()
        export = exporting(sender, temporality)
        old = ChangingFrame([CALLS], Scope("image", "1"))
        old.put("a", 5)
        push(export, at(1, old))
        del old
        new = ChangingFrame([CALLS, LEVEL], Scope("image", "2"))
        new.instruments = (CALLS, replace(LEVEL, first_cell=1))
        new.put("a", 2, 0, start_ns=START + 2 * SECOND)
        for second in (3, 4):
            push(export, at(second, new))
        points = sender.ledger.streams[CALLS_OF_A]
        assert [point.values for point in points][:2] == values
        assert not any(point.ended for point in points)


def test_metric_that_changed_its_form_does_not_end_what_goes_on() -> None:
    """Other bounds: the series that both have go on, one that is gone ends."""
    sender = ScriptedSender()
    export = exporting(sender, "cumulative")
    old = ChangingFrame([replace(LATENCY, first_cell=0)])
    old.put("a", 1, 2, 3)
    old.put("b", 1, 2, 3)
    push(export, at(1, old))
    del old
    new = ChangingFrame([replace(LATENCY, first_cell=0, bounds=(1.0, 2.0))])
    new.put("a", 1, 2, 3, 4)
    for second in (2, 3, 4):
        push(export, at(second, new))
    streams = {name[2][0][1]: [point.ended for point in points] for name, points in sender.ledger.streams.items()}
    assert streams == {"a": [False] * 4, "b": [False, True]}


def test_image_that_is_gone_leaves_nothing_behind() -> None:
    """Its series end, and are then forgotten."""
    for temporality in ("cumulative", "delta", "lowmemory"):
        sender = ScriptedSender()
        export = exporting(sender, temporality)
        frame = ChangingFrame()
        frame.put("a", 5, 5, 5, 5, 5, 5, 5.0)
        push(export, at(1, frame))
        del frame
        for second in (2, 3, 4):
            push(export, at(second))
        assert all(points[-1].ended for points in sender.ledger.streams.values())
        assert export.memory_bytes == 0
        assert len(sender.bodies) == 2


def test_ends_beyond_the_limit_are_forgotten_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that is away for ever costs bounded memory."""
    monkeypatch.setattr(metrics_module, "DEPARTED_LIMIT", 10)
    sender = ScriptedSender()
    export = exporting(sender, "cumulative")
    frame = ChangingFrame([CALLS])
    for second in range(1, 30):
        sender.script = [AWAY]
        frame.series.clear()
        for index in range(10):
            frame.put(f"{second}.{index}", 1)
        push(export, at(second, frame))
    assert export.forgotten == 270
    assert export.memory_bytes < 64_000


def test_times_go_forward_whatever_the_clock_does() -> None:
    """It was set back between two instants."""
    sender = ScriptedSender()
    export = exporting(sender)
    frame = ChangingFrame([CALLS])
    for second in (5, 2, 3, 9):
        frame.put("a", 10 * second)
        push(export, at(second, frame))
    sender.ledger.check()


def test_request_that_is_too_large_is_halved_until_it_fits_and_the_next_ones_are_made_smaller() -> None:
    """Every point arrives once, in delta too, and the limit is learnt."""
    for temporality in ("cumulative", "delta"):
        frame = ChangingFrame([CALLS])
        for index in range(4000):
            frame.put(f"{index}", index + 1)

        class Narrow(ScriptedSender):
            def send(self, body: bytes, **given: object) -> Outcome:
                if len(body) > 40_000:
                    self.script.insert(0, TOO_LARGE)
                return super().send(body, **given)  # type: ignore[arg-type]

        sender = Narrow()
        export = exporting(sender, temporality)
        push(export, at(1, frame))
        tried = len(sender.bodies)
        push(export, at(2, frame))
        assert tried > len(sender.bodies) - tried, "the limit was not learnt"
        assert all(len(body) <= 40_000 for body in sender.bodies[tried:])
        sender.ledger.check()
        assert {name[2][0][1]: int(total[0]) for name, total in sender.ledger.totals().items()} == {
            str(index): index + 1 for index in range(4000)
        }
        assert sender.settled == {"accepted": 8000}


def test_request_that_is_refused_for_its_size_however_small_is_rejected() -> None:
    """No endless halving."""
    sender = ScriptedSender([TOO_LARGE])
    export = exporting(sender, "cumulative")
    frame = ChangingFrame([CALLS])
    frame.put("a", 1)
    push(export, at(1, frame))
    assert len(sender.bodies) == 1
    assert sender.settled == {"rejected": 1}


def test_half_of_a_split_request_that_is_refused_goes_out_again_alone() -> None:
    """What the other half delivered is not sent twice."""
    frame = ChangingFrame([CALLS])
    for index in range(1000):
        frame.put(f"{index}", index + 1)
    sender = ScriptedSender([TOO_LARGE, ACCEPT, REJECT])
    export = exporting(sender)
    for second in (1, 2):
        push(export, at(second, frame))
    sender.ledger.check()
    assert {int(total[0]) for total in sender.ledger.totals().values()} == set(range(1, 1001))
    starts = {points[-1].start_ns for points in sender.ledger.streams.values()}
    assert starts == {START, START + SECOND}


def test_damaged_frame_does_not_stop_the_export_for_good() -> None:
    """An error in encoding is raised; the next instant is encoded as if nothing had been."""
    sender = ScriptedSender()
    export = exporting(sender, "cumulative")
    frame = FrameLiteral([CALLS], [SeriesLiteral((), (1,))], attribute_bytes=b"x")
    with pytest.raises(ValueError, match="no KeyValue"):
        export.take(snapshot_of(frame))
    good = ChangingFrame([CALLS])
    good.put("a", 1)
    with pytest.raises(ValueError, match="no KeyValue"):
        export.take(replace(snapshot_of(frame), frames=[good, frame]))
    del frame
    push(export, at(200, good))
    assert sender.ledger.totals()[CALLS_OF_A] == (1,)


# ---- any history ----


@dataclass
class Truth:
    """What really happened to one key."""

    gained: list[float] = field(default_factory=lambda: [0, 0, 0, 0, 0.0])
    cells: list[float] = field(default_factory=lambda: [0, 0, 0, 0, 0.0])
    start_ns: int = START
    state: str = "absent"


GAIN_TABLE = (CALLS, replace(LATENCY, first_cell=1), replace(LOAD, first_cell=4), replace(LEVEL, first_cell=5))
changes = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["gain", "gain", "hide", "vanish", "anew"]), st.integers(0, 9)),
    max_size=4,
    unique_by=lambda change: change[0],
)
verdicts = st.lists(st.sampled_from([ACCEPT, ACCEPT, REJECT, AWAY, TOO_LARGE]), max_size=5)


@patient
@given(st.lists(st.tuples(changes, verdicts, st.booleans()), max_size=12), st.sampled_from(["delta", "lowmemory"]))
def test_whatever_happens_the_receiver_has_every_gain_once(
    history: list[tuple[list[tuple[str, str, int]], list[Outcome], bool]], temporality: str
) -> None:
    """Series gain, hide, return, vanish and begin anew; maps cannot be read; requests are refused, lost or halved."""
    keys = {key: Truth() for key in "abcd"}
    sender = ScriptedSender()
    export = exporting(sender, temporality)
    frame = ChangingFrame(GAIN_TABLE)
    second = 0

    def step(readable: bool) -> None:
        nonlocal second
        second += 1
        frame.series.clear()
        for key, truth in keys.items():
            if truth.state != "absent":
                live = truth.state == "live"
                frame.put(key, *truth.cells, 7, start_ns=truth.start_ns, live=live)
        push(export, at(second, *([frame] if readable else [])))

    for happened, answers, readable in history:
        if readable:  # a frame that is not read does not change
            for key, change, amount in happened:
                truth = keys[key]
                if change == "vanish":
                    truth.state = "absent"
                elif change == "hide":
                    truth.state = "hidden" if truth.state == "live" else truth.state
                else:
                    if truth.state == "absent" or change == "anew":
                        truth.cells = [0, 0, 0, 0, 0.0]
                        # Not there at the last read: it began after that.
                        truth.start_ns = START + second * SECOND + len(truth.gained)
                    truth.state = "live"
                    for index in range(5):
                        truth.cells[index] += amount * (index + 1)
                        truth.gained[index] += amount * (index + 1)
        sender.script = list(answers)
        step(readable)
    sender.script = []
    for _ in range(4):
        step(True)
    if temporality == "delta":
        sender.ledger.check()
    totals = sender.ledger.totals()
    for key, truth in keys.items():
        name = (("key", key),)
        streams = [sender.ledger.streams.get(("image", metric, name), []) for metric in ("ebpf.latency", "ebpf.load")]
        if truth.gained[0] or truth.state == "live":
            assert totals.get(("image", "ebpf.latency", name), (0, 0, 0)) == tuple(truth.gained[1:4])
        if temporality == "delta":
            assert totals.get(("image", "ebpf.calls", name), (0,))[0] == truth.gained[0]
            assert totals.get(("image", "ebpf.load", name), (0,))[0] == truth.gained[4]
        for points in streams:
            if points:
                assert points[-1].ended == (truth.state != "live")
    assert export.in_hand == 0


# ---- real receivers ----


@contextmanager
def receiving(protocol: str, answers: Sequence[Answer]) -> Iterator[OtlpReceiver | GrpcReceiver]:
    """A receiver of either protocol."""
    kind: Callable[..., OtlpReceiver | GrpcReceiver] = GrpcReceiver if protocol == "grpc" else OtlpReceiver
    with kind(answers) as receiver:
        yield receiver


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_receiver_has_what_was_counted(protocol: str, temporality: str) -> None:
    """Both protocols, through trouble: content equals ground truth."""
    trouble = [Answer(), Answer(503, code="UNAVAILABLE"), Answer(400, code="INVALID_ARGUMENT"), Answer()]
    with receiving(protocol, trouble) as receiver:
        config = OtlpConfig(endpoint=receiver.endpoint, protocol=protocol, timeout_s=5.0)
        sender = OtlpSender(config, "metrics", uniform=lambda low, _high: low)
        export = MetricsExport(sender, temporality)
        frame = ChangingFrame()
        for second in range(1, 6):
            for key in "abc":
                frame.put(key, second, second * SECOND, 10 - second, second, 1, 3 * second, second / 2)
            export.take(at(second, frame))
            export.post(stop=NEVER, deadline_s=5.0)
        refused = receiver.received[2]
        taken = [each for each in receiver.received if each is not refused and each is not receiver.received[1]]
    account = sender.account
    got = ledger(each.message for each in taken)  # type: ignore[misc]
    got.check()
    totals = got.totals()
    for key in "abc":
        name = (("key", key),)
        assert totals["image", "ebpf.calls", name] == (5,)
        assert totals["image", "ebpf.time", name] == (5.0,)
        assert totals["image", "ebpf.level", name] == (5,)
        assert totals["image", "ebpf.latency", name] == (5, 1, 15.0)
        assert totals["image", "ebpf.load", name] == (2.5,)
    assert (account.accepted, account.rejected, account.failed) == (15 * 4, 15, 0)


# ---- real frames ----


@patient
@given(st.integers(0, 1 << 32))
def test_real_frame_under_churn_is_delivered_to_the_last_count(seed: int) -> None:
    """Rows of a map are evicted and come back, idle series are hidden, the receiver is away now and then."""
    chance = random.Random(seed)
    plan = TablePlan(
        map="calls",
        key_size=4,
        value_size=8,
        per_cpu=False,
        labels=(LabelRule("key", "uint", 0, 32),),
        metrics=(MetricPlan(CALLS, value=ValueRule(0, 64)),),
        expire_after_s=3,
        expire_idle=chance.random() < 0.5,
    )
    frame = Frame(plan, scope=Scope("image"), resolve=lambda _d, _v: "", budget=SeriesBudget(100), start_ns=START)
    sender = ScriptedSender()
    export = exporting(sender)
    rows: dict[int, int] = {}
    gained: dict[int, int] = {}

    def instant(second: int) -> None:
        frame.begin(START + second * SECOND)
        keys = b"".join(struct.pack("<I", key) for key in rows)
        frame.apply(keys, b"".join(struct.pack("<Q", value) for value in rows.values()), len(rows), 8, 1)
        frame.finish()
        push(export, replace(snapshot_of(time_ns=START + second * SECOND), frames=[frame]))

    for second in range(1, 40):
        for key in range(6):
            if chance.random() < 0.25:
                amount = chance.randrange(1, 100)
                rows[key] = rows.get(key, 0) + amount
                gained[key] = gained.get(key, 0) + amount
            elif chance.random() < 0.1:
                rows.pop(key, None)
        sender.script = [chance.choice([ACCEPT, ACCEPT, AWAY, REJECT, TOO_LARGE]) for _ in range(3)]
        instant(second)
    sender.script = []
    instant(40)
    sender.ledger.check()
    assert {int(name[2][0][1]): total[0] for name, total in sender.ledger.totals().items()} == gained
