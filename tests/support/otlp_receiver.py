"""OTLP receivers written from the protocol, HTTP and gRPC: they record what they are sent and answer as they are told.

Each answer is one of :class:`Answer`'s; they are used up in order, and the last one
is repeated. ``python -m tests.support.otlp_receiver [PORT]`` runs it and prints a line per request.
"""

from __future__ import annotations

import concurrent.futures
import gzip
import http.server
import socket
import socketserver
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import grpc  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

PROTOBUF = "application/x-protobuf"

Message = (
    metrics_service_pb2.ExportMetricsServiceRequest
    | logs_service_pb2.ExportLogsServiceRequest
    | trace_service_pb2.ExportTraceServiceRequest
)


@dataclass(frozen=True)
class Answer:
    """How to treat one request.

    Attributes:
        rejected, message: A ``partial_success`` with so many rejected items.
        reset: Close the connection with a reset instead of answering.
        silent: Keep the connection open and say nothing.
        body: Instead of the protocol's own answer.
        trickle_s: Seconds between the bytes of the answer.
        close: End the connection after the answer.
        code: Of gRPC: the status by its name.
        retry_info_s: Of gRPC: a ``RetryInfo`` in the status' details.
        before: Of gRPC: called before the answer is given.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    rejected: int = 0
    message: str = ""
    reset: bool = False
    silent: bool = False
    body: bytes | None = None
    trickle_s: float = 0.0
    close: bool = False
    code: str = "OK"
    retry_info_s: float | None = None
    before: Callable[[], None] | None = None


@dataclass(frozen=True)
class Received:
    """One request as it came, and decoded."""

    path: str
    headers: Mapping[str, str]
    wire_bytes: int
    message: Message
    peer: tuple[str, int]
    at: float


class _Records:
    """What both receivers keep: answers to give, requests received."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = list(answers) or [Answer()]
        self._lock = threading.Condition()
        self._received: list[Received] = []
        self.refused: list[str] = []
        self.closing = threading.Event()

    def answer(self, *answers: Answer) -> None:
        """Replace the answers to come."""
        with self._lock:
            self._answers = list(answers)

    @property
    def received(self) -> list[Received]:
        """Every request that was read whole, in order."""
        with self._lock:
            return list(self._received)

    def metrics(self) -> list[metrics_service_pb2.ExportMetricsServiceRequest]:
        """The metrics requests."""
        messages = [each.message for each in self.received]
        return [each for each in messages if isinstance(each, metrics_service_pb2.ExportMetricsServiceRequest)]

    def logs(self) -> list[logs_service_pb2.ExportLogsServiceRequest]:
        """The logs requests."""
        messages = [each.message for each in self.received]
        return [each for each in messages if isinstance(each, logs_service_pb2.ExportLogsServiceRequest)]

    def spans(self) -> list[trace_pb2.Span]:
        """Every span of the traces requests."""
        return [
            span
            for each in self.received
            if isinstance(each.message, trace_service_pb2.ExportTraceServiceRequest)
            for resource in each.message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def wait(self, until: Callable[[list[Received]], bool], timeout_s: float = 10.0) -> list[Received]:
        """Wait until what was received satisfies a predicate; fails the test if it does not in time."""
        with self._lock:
            assert self._lock.wait_for(lambda: until(self._received), timeout_s), f"received {len(self._received)}"
            return list(self._received)

    def _record(self, received: Received) -> Answer:
        with self._lock:
            self._received.append(received)
            self._lock.notify_all()
            return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        raise NotImplementedError


class OtlpReceiver(_Records):
    """Listens on a loopback port until it is closed.

    Args:
        answers: See :class:`Answer`.
        port: 0 for any free one.
        tls: For HTTPS.
    """

    def __init__(self, answers: Sequence[Answer] = (), *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(answers)
        receiver = self

        class Handler(_Handler):
            owner = receiver

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                """Resets are part of the tests."""

        self._server = Server(("127.0.0.1", port), Handler)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "https" if tls else "http"
        self.port: int = self._server.server_address[1]
        self.endpoint = f"{scheme}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def __enter__(self) -> OtlpReceiver:
        return self

    def close(self) -> None:
        """Stop listening; a silent connection is let go."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


_REQUESTS: dict[str, type[Message]] = {
    "/v1/metrics": metrics_service_pb2.ExportMetricsServiceRequest,
    "/v1/logs": logs_service_pb2.ExportLogsServiceRequest,
    "/v1/traces": trace_service_pb2.ExportTraceServiceRequest,
}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20
    owner: OtlpReceiver

    def log_message(self, *_: object) -> None:
        """Tests look at ``received``."""

    def do_POST(self) -> None:
        """One export request."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        suffix = next((path for path in _REQUESTS if self.path.endswith(path)), None)
        try:
            assert suffix, f"no such path: {self.path}"
            assert self.headers["Content-Type"] == PROTOBUF, f"content type {self.headers['Content-Type']!r}"
            assert self.headers.get("Content-Encoding", "identity") in ("gzip", "identity")
            plain = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            message = _REQUESTS[suffix].FromString(plain)
        except Exception as error:
            self.owner.refused.append(f"{error}")
            self._reply(Answer(400, message=str(error)), None)
            return
        received = Received(self.path, dict(self.headers), len(body), message, self.client_address, time.monotonic())
        self._reply(self.owner._record(received), message)

    def _reply(self, answer: Answer, message: Message | None) -> None:
        if answer.silent:
            self.owner.closing.wait(self.timeout)
            self.close_connection = True
            return
        if answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        body = answer.body if answer.body is not None else protocol_body(answer, message)
        head = [f"HTTP/1.1 {answer.status} x", f"Content-Length: {len(body)}"]
        headers = {"Content-Type": PROTOBUF, **answer.headers}
        if answer.close:
            headers["Connection"] = "close"
            self.close_connection = True
        whole = "\r\n".join([*head, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode() + body
        if not answer.trickle_s:
            self.wfile.write(whole)
            return
        with suppress(OSError):
            for index in range(len(whole)):
                self.wfile.write(whole[index : index + 1])
                if self.owner.closing.wait(answer.trickle_s):
                    return


def protocol_body(answer: Answer, message: Message | None) -> bytes:
    """The protocol's own answer."""
    if not 200 <= answer.status < 300:
        status: bytes = status_pb2.Status(message=answer.message).SerializeToString()
        return status
    if isinstance(message, logs_service_pb2.ExportLogsServiceRequest):
        logs = logs_service_pb2.ExportLogsServiceResponse()
        if answer.rejected or answer.message:
            logs.partial_success.rejected_log_records = answer.rejected
            logs.partial_success.error_message = answer.message
        return logs.SerializeToString()
    if isinstance(message, trace_service_pb2.ExportTraceServiceRequest):
        return trace_service_pb2.ExportTraceServiceResponse().SerializeToString()
    metrics = metrics_service_pb2.ExportMetricsServiceResponse()
    if answer.rejected or answer.message:
        metrics.partial_success.rejected_data_points = answer.rejected
        metrics.partial_success.error_message = answer.message
    return metrics.SerializeToString()


_METHODS: dict[str, type[Message]] = {
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": (
        metrics_service_pb2.ExportMetricsServiceRequest
    ),
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export": logs_service_pb2.ExportLogsServiceRequest,
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": trace_service_pb2.ExportTraceServiceRequest,
}


class GrpcReceiver(_Records):
    """The same over gRPC.

    Args:
        answers: See :class:`Answer`; of HTTP's fields ``rejected``, ``message``, ``body`` and ``silent`` count.
        port: 0 for any free one.
        credentials: Of ``grpc.ssl_server_credentials``.
        max_bytes: Largest message, after decompression; gRPC's own default is 4 MiB.
    """

    def __init__(
        self,
        answers: Sequence[Answer] = (),
        *,
        port: int = 0,
        credentials: object = None,
        max_bytes: int = 4 << 20,
    ) -> None:
        super().__init__(answers)
        self._server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(4),
            handlers=[_GrpcHandlers(self)],
            options=[("grpc.max_receive_message_length", max_bytes), ("grpc.so_reuseport", 0)],
        )
        address = f"127.0.0.1:{port}"
        if credentials is None:
            self.port: int = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self.endpoint = f"{'https' if credentials else 'http'}://127.0.0.1:{self.port}"
        self._server.start()

    def __enter__(self) -> GrpcReceiver:
        return self

    def close(self) -> None:
        """Stop listening; calls under way end."""
        self.closing.set()
        self._server.stop(0).wait()

    def serve(self, method: str, body: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer one call."""
        try:
            message = _METHODS[method].FromString(body)
        except DecodeError as error:
            self.refused.append(f"{error}")
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        headers = dict(context.invocation_metadata())
        peer = ("127.0.0.1", int(context.peer().rpartition(":")[2]))
        answer = self._record(Received(method, headers, len(body), message, peer, time.monotonic()))
        if answer.before is not None:
            answer.before()
        if answer.silent:
            self.closing.wait(20)
        if answer.code != "OK":
            code = getattr(grpc.StatusCode, answer.code)
            if answer.retry_info_s is not None:
                info = error_details_pb2.RetryInfo()
                info.retry_delay.FromNanoseconds(int(answer.retry_info_s * 1e9))
                status = status_pb2.Status(code=code.value[0], message=answer.message)
                status.details.add().Pack(info)
                context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(code, answer.message)
        return answer.body if answer.body is not None else protocol_body(answer, message)


class _GrpcHandlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Every OTLP method, its messages as bytes."""

    def __init__(self, owner: GrpcReceiver) -> None:
        self._owner = owner

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = details.method
        if method not in _METHODS:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda body, context: self._owner.serve(method, body, context))


@contextmanager
def unused_port() -> Iterator[int]:
    """A loopback port nothing listens on, kept from others by being bound."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def main() -> None:
    """Run until interrupted."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 4318
    with OtlpReceiver(port=port) as receiver:
        print(f"listening on {receiver.endpoint}", flush=True)
        shown = 0
        with suppress(KeyboardInterrupt):
            while True:
                for each in receiver.received[shown:]:
                    shown += 1
                    print(f"{each.path} {each.wire_bytes} bytes: {str(each.message)[:2000]}", flush=True)
                time.sleep(0.2)


if __name__ == "__main__":
    main()
