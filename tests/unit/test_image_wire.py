"""Whatever bytes come out of a socket, the registry client returns or raises ImageError, and nothing else."""

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from exporter.errors import ImageError
from exporter.image import parse_reference, transport
from exporter.image.formats import Descriptor
from exporter.image.reference import Digest
from exporter.image.registry import Registry
from tests.support.images import bee_manifest, bpf_elf

GOOD = bee_manifest(bpf_elf())
_STATUS = st.sampled_from(
    [b"200 OK", b"204 N", b"307 T", b"401 U", b"404 N", b"503 S", b"999 X", b"abc", b"", b"100 C\r\n\r\nHTTP/1.1 200 O"]
).map(lambda status: b"HTTP/1.1 " + status + b"\r\n")
_HEADER = st.sampled_from(
    [
        b"Content-Length: 10", b"Content-Length: -1", b"Content-Length: abc", b"Content-Length: 5, 6",
        b"Content-Length: 99999999999999999999999", b"Content-Length: \xb2", b"Content-Length: %d" % len(GOOD),
        b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Content-Encoding: gzip",
        b"Location: http://127.0.0.1:1/x", b"Location: \xff\xfe", b"Location: http://[zz]/", b"Location: http://a..b/",
        b"Location: http://" + b"a" * 300 + b"/", b"Location: http://x:99999/", b"Location: //", b"Location: http://\xe9/",
        b'WWW-Authenticate: Bearer realm="http://127.0.0.1:1/t"', b"WWW-Authenticate: \xff",
        b'WWW-Authenticate: Bearer realm="http://127.0.0.1:1/\x01 \xe9"',
        b'WWW-Authenticate: Bearer realm="http://x:99999/"', b"Retry-After: 0", b"Retry-After: \xb2",
        b"Docker-Content-Digest: sha256:\xff", b"Docker-Content-Digest: x", b"Content-Type: \xff", b"no colon",
        b" fold", b"Set-Cookie: a", b"Connection: close", b"A: b\r\n" * 200,
    ]
).map(lambda header: header + b"\r\n")  # fmt: skip
_BODY = st.one_of(
    st.sampled_from([GOOD, b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhe", b"zz\r\n", b"-5\r\n", b"x" * 70_000, b""]),
    st.binary(max_size=40),
)
_ANSWER = st.one_of(
    st.binary(max_size=60),
    st.tuples(_STATUS, st.lists(_HEADER, max_size=4).map(b"".join), st.just(b"\r\n"), _BODY).map(b"".join),
)


class RawServer:
    """Answers each connection with the same bytes, then closes it."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.answer = b""
        self.host = f"127.0.0.1:{listener.getsockname()[1]}"

    def serve(self) -> None:
        """Until the listener is shut down."""
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.settimeout(2)
                    connection.recv(1 << 16)
                    connection.sendall(self.answer)
                except OSError:
                    continue


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    """One raw server for all examples."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        raw = RawServer(listener)
        thread = threading.Thread(target=raw.serve)
        thread.start()
        yield raw
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=_ANSWER, manifest=st.booleans())
@example(answer=b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\n", manifest=False)
def test_any_bytes_of_a_socket_are_content_or_an_image_error(
    server: RawServer, monkeypatch: pytest.MonkeyPatch, answer: bytes, manifest: bool
) -> None:
    """Status lines, headers, chunk sizes and bodies of any kind; what is returned has the digest asked for."""
    monkeypatch.setattr(transport, "_backoff", lambda _attempt: 0.0)
    transport.circuits.reset()
    server.answer = answer
    try:
        with Registry(parse_reference(f"{server.host}/a/b:1"), deadline_s=5) as client:
            if manifest:
                found = client.manifest("1")
                assert found.digest == Digest.of(found.raw)
            else:
                descriptor = Descriptor("x/y", Digest.of(GOOD), len(GOOD))
                assert b"".join(client.blob(descriptor)) == GOOD
    except ImageError as error:
        assert error.code.startswith("img.")
        assert "\n" not in str(error)
