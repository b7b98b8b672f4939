"""Registries to test against: Debian's real ``docker-registry``, and one that lies.

::

    with real_registry(tmp_path) as registry: ...                 plain HTTP, anonymous
    with real_registry(tmp_path, password=True) as registry: ...  HTTP Basic, user 'bee', password 'honey'
    with real_registry(tmp_path, tls=True) as registry: ...       registry.ca_file verifies it
    with real_registry(tmp_path, token=True) as registry: ...     Bearer tokens from registry.token_server
    with hostile_registry() as registry: registry.on("/v2/…", answer)

All of them listen on a free loopback port and are gone when the block ends.
"""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD = "bee", "honey"
# htpasswd -Bbn -C 4 bee honey
_HTPASSWD = "bee:$2y$04$vW3V7U2hOOd8GGF7fcTT7eNM4iROqroguQMwjZOmZI.a0wysOlYcy"
_SERVICE, _ISSUER = "test-registry", "test-issuer"


@dataclass(frozen=True)
class RunningRegistry:
    """A real registry: where it is, and what reaches it.

    Attributes:
        host: ``127.0.0.1:port``.
        storage: Directory of its file system driver; blobs may be altered there.
        ca_file: With TLS.
        token_server: With tokens.
    """

    host: str
    storage: Path
    process: subprocess.Popen[bytes]
    ca_file: Path | None = None
    token_server: "TokenServer | None" = None

    def blob_file(self, digest: str) -> Path:
        """The file in which the registry keeps a blob or manifest."""
        digits = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / digits[:2] / digits / "data"

    def stop(self) -> None:
        """End it now, as when its machine goes away."""
        self.process.terminate()
        self.process.wait(10)


def find_registry() -> str | None:
    """The registry program, or ``None`` when the machine has none."""
    return shutil.which("docker-registry")


@contextlib.contextmanager
def real_registry(
    directory: Path, *, password: bool = False, tls: bool = False, token: bool = False
) -> Iterator[RunningRegistry]:
    """Run ``docker-registry serve`` until the block ends."""
    program = find_registry()
    assert program, "docker-registry is not installed"
    directory.mkdir(parents=True, exist_ok=True)
    storage = directory / "storage"
    with contextlib.ExitStack() as stack:
        config: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
            "http": {"addr": "", "secret": "test"},
        }
        ca_file = None
        token_server = None
        if password:
            (directory / "htpasswd").write_text(_HTPASSWD + "\n")
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
        if tls:
            ca_file, certificate, key = make_certificate(directory)
            config["http"]["tls"] = {"certificate": str(certificate), "key": str(key)}
        if token:
            token_server = stack.enter_context(running_token_server(directory))
            config["auth"] = {
                "token": {
                    "realm": f"http://{token_server.host}/token",
                    "service": _SERVICE,
                    "issuer": _ISSUER,
                    "rootcertbundle": str(token_server.certificate),
                }
            }
        host, process = _start(program, directory, config)
        try:
            yield RunningRegistry(host, storage, process, ca_file, token_server)
        finally:
            process.terminate()
            process.wait(10)


def _start(program: str, directory: Path, config: dict[str, Any]) -> tuple[str, "subprocess.Popen[bytes]"]:
    # Somebody else may take the port between choosing it and the registry's listen: then choose again.
    for _ in range(5):
        port = free_port()
        config["http"]["addr"] = f"127.0.0.1:{port}"
        # YAML 1.2 is a superset of JSON.
        (directory / "config.yml").write_text(json.dumps(config))
        with (directory / "registry.log").open("wb") as log:
            process = subprocess.Popen(
                [program, "serve", str(directory / "config.yml")],
                stdout=log, stderr=log, env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
            )  # fmt: skip
        end = time.monotonic() + 15
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return f"127.0.0.1:{port}", process
            time.sleep(0.02)
        process.kill()
        process.wait()
    raise AssertionError((directory / "registry.log").read_text())


def free_port() -> int:
    """A loopback TCP port nobody listened on a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def docker_config(directory: Path, host: str, *, user: str = USER, password: str = PASSWORD) -> Path:
    """Write a Docker ``config.json`` that knows one registry."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.json"
    secret = base64.b64encode(f"{user}:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": secret}}}))
    return path


# Python 3.13 verifies as RFC 5280 says (VERIFY_X509_STRICT): an authority names its key's usage.
CA_USAGE = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")


def make_certificate(directory: Path) -> tuple[Path, Path, Path]:
    """Make an authority and a certificate for the loopback address: ``(ca, certificate, key)``."""
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    certificate, key = directory / "server.pem", directory / "server.key"
    request = directory / "server.csr"
    extensions = directory / "server.ext"
    extensions.write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\nauthorityKeyIdentifier=keyid\n"
    )
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl(
        "req", "-x509", *new_key, "-days", "2", "-subj", "/CN=test authority", "-keyout", ca_key, "-out", ca, *CA_USAGE
    )
    _openssl("req", *new_key, "-subj", "/CN=127.0.0.1", "-keyout", key, "-out", request)
    _openssl(
        "x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2",
        "-extfile", extensions, "-out", certificate,
    )  # fmt: skip
    return ca, certificate, key


def _openssl(*arguments: str | Path, data: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *map(str, arguments)], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


# -- A server whose every answer is a test's --------------------------------------------------


@dataclass
class Request:
    """What a client sent."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Answer:
    """What to send back.

    Attributes:
        body: Sent as it is.
        length: The Content-Length to claim; ``None``: the body's; -1: none, the end is the connection's.
        chunked: Send as one chunk and the ending one.
        stall_s: Wait before the headers.
        drip_s: Wait before each byte of the body.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    chunked: bool = False
    stall_s: float = 0.0
    drip_s: float = 0.0


Handler = Callable[[Request], Answer]


class HostileRegistry:
    """An HTTP server of canned answers that remembers what it was asked."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.requests: list[Request] = []
        self.routes: dict[str, Handler] = {}
        self.closing = threading.Event()

    def on(self, path: str, answer: Answer | Handler) -> None:
        """Answer ``path`` (without query) so."""
        self.routes[path] = answer if callable(answer) else lambda _request: answer

    def blob(self, repository: str, content: bytes, *, answer: Answer | None = None) -> dict[str, Any]:
        """Serve a blob, or ``answer`` in its place; return the honest descriptor."""
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        self.on(f"/v2/{repository}/blobs/{digest}", answer or Answer(body=content))
        return {"mediaType": "application/octet-stream", "digest": digest, "size": len(content)}

    def manifest(self, repository: str, target: str, body: object, *, media_type: str = "") -> str:
        """Serve a manifest, JSON or bytes, under a tag and its digest; return the digest."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        digest = "sha256:" + hashlib.sha256(raw).hexdigest()
        headers = {"Content-Type": media_type or "application/vnd.oci.image.manifest.v1+json"}
        for name in (target, digest):
            self.on(f"/v2/{repository}/manifests/{name}", Answer(body=raw, headers=headers))
        return digest

    def paths(self) -> list[str]:
        """The paths asked for, in order."""
        return [request.path for request in self.requests]


@contextlib.contextmanager
def hostile_registry(*, tls: tuple[Path, Path] | None = None) -> Iterator[HostileRegistry]:
    """Serve canned answers until the block ends; unknown paths get 404.

    Args:
        tls: Certificate and key, for HTTPS.
    """
    registry = HostileRegistry("")

    class Handling(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def log_message(self, *_arguments: object) -> None:
            """Keep quiet."""

        def answer(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(self.command, url.path, parse_qs(url.query), dict(self.headers.items()), body)
            registry.requests.append(request)
            handler = registry.routes.get(url.path)
            answer = handler(request) if handler else Answer(404, b'{"errors":[{"code":"NAME_UNKNOWN"}]}')
            registry.closing.wait(answer.stall_s)
            with contextlib.suppress(OSError):
                self.send(answer)

        def send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for key, value in answer.headers.items():
                self.send_header(key, value)
            if answer.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif answer.length != -1:
                self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
            self.close_connection = answer.length is not None
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command == "HEAD":
                return
            body = answer.body
            if answer.chunked:
                body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
            if not answer.drip_s:
                self.wfile.write(body)
                return
            for byte in body:
                if registry.closing.wait(answer.drip_s):
                    return
                self.wfile.write(bytes([byte]))
                self.wfile.flush()

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = answer  # noqa: N815

    with _serving(Handling, tls) as host:
        registry.host = host
        try:
            yield registry
        finally:
            registry.closing.set()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    # Handler threads end with their connection; waiting for a stalled one would stall the test.
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_arguments: object) -> None:
        """A client that hangs up is what these tests are about."""


@contextlib.contextmanager
def _serving(handling: type[BaseHTTPRequestHandler], tls: tuple[Path, Path] | None) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), handling)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        # The handshake is made by the connection's own thread, at its first read.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# -- Tokens -----------------------------------------------------------------------------------


class TokenServer:
    """Issues signed tokens that the real registry accepts.

    Attributes:
        certificate: The registry's root of trust.
        life_s: How long the next tokens live.
        requests: What was asked, with the Authorization header.
    """

    def __init__(self, directory: Path) -> None:
        self.host = ""
        self.key, self.certificate = directory / "token.key", directory / "token.pem"
        self.life_s = 300
        self.requests: list[Request] = []
        self.public = False
        _openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test token",
            "-keyout", self.key, "-out", self.certificate,
        )  # fmt: skip

    def issue(self, scopes: list[str], subject: str) -> str:
        """Sign a token for scopes such as ``repository:a/b:pull,push``."""
        der = _openssl("x509", "-in", self.certificate, "-outform", "DER")
        now = int(time.time())
        access = [
            {"type": kind, "name": name, "actions": actions.split(",")}
            for kind, name, actions in (scope.split(":") for scope in scopes)
        ]
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        claims = {
            "iss": _ISSUER, "sub": subject, "aud": _SERVICE, "iat": now, "nbf": now - 5, "exp": now + self.life_s,
            "jti": str(time.monotonic_ns()), "access": access,
        }  # fmt: skip
        signed = f"{_base64url(json.dumps(header).encode())}.{_base64url(json.dumps(claims).encode())}"
        signature = _openssl("dgst", "-sha256", "-sign", self.key, data=signed.encode())
        return f"{signed}.{_base64url(signature)}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextlib.contextmanager
def running_token_server(directory: Path) -> Iterator[TokenServer]:
    """Serve tokens to whoever knows the password."""
    tokens = TokenServer(directory)
    with hostile_registry() as server:
        tokens.host = server.host
        tokens.requests = server.requests
        expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

        def issue(request: Request) -> Answer:
            if request.headers.get("Authorization") != expected and not tokens.public:
                return Answer(401, b'{"errors":[]}')
            token = tokens.issue(request.query.get("scope", []), USER)
            body = json.dumps({"token": token, "expires_in": tokens.life_s}).encode()
            return Answer(body=body, headers={"Content-Type": "application/json"})

        server.on("/token", issue)
        yield tokens
