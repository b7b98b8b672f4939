"""OTLP, the client's side: one receiver, one signal, honest about what became of each request.

A *transport* carries the bytes of one attempt (:mod:`.http_transport`,
:mod:`.grpc_transport`; only the configured one is imported) and says what became
of it. Here is what both have in common: waiting between attempts and the account of
items. What may be sent again is what the protocol says, after the receiver's ``Retry-After`` or
``RetryInfo`` or full jitter, whichever is longer; while a receiver wants to be left
alone, no attempt is made.

No thread is started here; the agent calls :meth:`OtlpSender.send` from its own.

Source: OpenTelemetry protocol specification, "OTLP/HTTP" and "OTLP/gRPC".
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from exporter.config import OtlpConfig
from exporter.errors import ExportError

from .account import Account
from .outcome import Outcome, Signal, Verdict

__all__ = ["Account", "OtlpSender", "Outcome", "Signal", "Transport", "Verdict"]

_BACKOFF_FIRST_S = 1.0
_BACKOFF_MAX_S = 30.0


class Transport(Protocol):
    """Carries one signal's requests; for one thread at a time."""

    url: str

    def prepare(self, body: bytes) -> bytes:
        """Make what goes out, once for all attempts."""

    def exchange(self, prepared: bytes, stop: threading.Event) -> Outcome:
        """Make one attempt. Never raises for what the network or the receiver does."""

    def close(self) -> None: ...


def _transport(config: OtlpConfig, signal: Signal) -> Transport:
    if config.compression not in ("gzip", "none", ""):
        raise ExportError(
            f"otlp compression is {config.compression!r}; must be 'gzip' or 'none'", code="otlp.compression"
        )
    if config.protocol == "http/protobuf":
        from .http_transport import HttpTransport  # noqa: PLC0415 - as below

        return HttpTransport(config, signal)
    if config.protocol == "grpc":
        from .grpc_transport import GrpcTransport  # noqa: PLC0415 - 16 MB that only those pay who use it

        return GrpcTransport(config, signal)
    raise ExportError(f"otlp protocol is {config.protocol!r}; must be 'http/protobuf' or 'grpc'", code="otlp.protocol")


class OtlpSender:
    """Posts one signal's requests to the configured receiver.

    For one thread at a time, except :attr:`account`.

    Args:
        config: Endpoint, headers, limits and TLS files. What this signal has of its own in it
            comes first. Certificates are read again when their files change.
        signal: Which service, and which answer to expect.
        uniform: Gives the jitter; ``random.uniform`` if not given.

    Raises:
        ExportError: the configuration cannot work: endpoint, protocol, headers, or a TLS file.
    """

    def __init__(
        self, config: OtlpConfig, signal: Signal, *, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._transport = _transport(config.of_signal(signal), signal)
        self.url = self._transport.url
        self._uniform = uniform
        self._lock = threading.Lock()
        self._account = Account()
        self._not_before_s = 0.0  # monotonic: the receiver wants no attempt until then

    @property
    def account(self) -> Account:
        """Totals since the start; may be read from any thread."""
        with self._lock:
            return self._account

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def post(self, body: bytes, *, stop: threading.Event) -> Outcome:
        """Make one attempt, within the configured timeout; none while the receiver wants to be left alone.

        Returns promptly when ``stop`` is set, but for the time a name look-up and a
        connect may take (5 s). Never raises for what the network or the receiver does.
        """
        return self._attempt(self._transport.prepare(body), stop)

    def send(self, body: bytes, *, items: int, stop: threading.Event, deadline_s: float, hold: bool = False) -> Outcome:
        """Make attempts until there is a final answer, ``stop`` is set, or ``deadline_s`` seconds have passed.

        The last attempt may begin just before the deadline. Every item ends in :attr:`account`.

        Args:
            body: A serialized export request.
            items: Data points or log records in it.
            stop: Ends the waiting at once.
            deadline_s: A retry that could not begin before it is not waited for.
            hold: The caller has another use for it if there is no final answer, or if it is too large;
                then it is not booked.
        """
        prepared = self._transport.prepare(body)
        end = time.monotonic() + deadline_s
        attempt = 0
        while True:
            outcome = self._attempt(prepared, stop)
            if not outcome.retryable:
                break
            jitter = self._uniform(0.0, min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2.0 ** min(attempt, 20)))
            pause = max(jitter, outcome.retry_after_s or 0.0)
            if time.monotonic() + pause >= end or stop.wait(pause):
                break
            attempt += 1
        final = outcome.verdict in (Verdict.ACCEPTED, Verdict.REJECTED) and not outcome.too_large
        if final or not hold:
            self.settle(outcome, items)
        return outcome

    def settle(self, outcome: Outcome, items: int) -> None:
        """Book the items of a request posted by :meth:`post` whose outcome is final."""
        rejected = min(outcome.rejected_items, items) if outcome.accepted else 0
        with self._lock:
            was = self._account
            self._account = replace(
                was,
                accepted=was.accepted + (items - rejected if outcome.accepted else 0),
                rejected=was.rejected + (items if outcome.verdict is Verdict.REJECTED else rejected),
                failed=was.failed + (items if outcome.verdict in (Verdict.UNAVAILABLE, Verdict.STOPPED) else 0),
            )

    def _attempt(self, prepared: bytes, stop: threading.Event) -> Outcome:
        wait_s = self._not_before_s - time.monotonic()
        if wait_s > 0 and not stop.is_set():
            message = f"{self.url} asked for no attempt in the next {wait_s:.0f} s"
            return Outcome(Verdict.UNAVAILABLE, retry_after_s=wait_s, message=message, cause="retry_after")
        began_s = time.monotonic()
        outcome = self._transport.exchange(prepared, stop)
        took_s = time.monotonic() - began_s
        if outcome.retryable and outcome.retry_after_s:
            self._not_before_s = time.monotonic() + outcome.retry_after_s
        with self._lock:
            self._account = self._account.attempted(outcome.cause or "ok", len(prepared), took_s)
        return outcome
