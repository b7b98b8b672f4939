"""The web configuration: what it may say, and a server that does as it says while it changes."""

import base64
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import ConfigError, SkepError
from exporter.export import prometheus, web_access, web_config
from exporter.export import server as server_module
from exporter.export.prometheus import Exposition
from exporter.export.server import Handlers, MetricsServer, Scrape
from exporter.export.web_access import WebAccess
from exporter.export.web_config import RateLimit, make_context, parse, read_material
from exporter.model import Scale
from tests.support.authority import Authority, Pair
from tests.support.frame_literals import FrameLiteral, SeriesLiteral, counter, histogram, snapshot

TEXT = b"# TYPE ebpf_x gauge\nebpf_x 1\n"


def hashed(password: str, prefix: bytes = b"2b") -> str:
    """A bcrypt hash that is cheap to check."""
    return bcrypt.hashpw(password.encode(), b"$2b$04$abcdefghijklmnopqrstuu").replace(b"2b", prefix, 1).decode()


BEE = hashed("honey")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Signs the servers and the clients of this module."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def pair(authority: Authority) -> Pair:
    """The server's certificate; tests that rotate copy it."""
    return authority.issue("server")


# ---- the schema ----


def problems(text: str) -> list[str]:
    """What is wrong with a text, one line each."""
    with pytest.raises(SkepError) as error:
        parse(text, "web.yaml")
    return str(error.value).splitlines()


@pytest.mark.parametrize("text", ["", "# nothing\n", "tls_server_config:\nbasic_auth_users: {}\n", "rate_limit: {}\n"])
def test_file_that_says_nothing_asks_for_nothing(text: str) -> None:
    """As good as no file."""
    assert parse(text, "web.yaml") == web_config.WebConfig()


def test_everything_the_schema_has_is_read(tmp_path: Path) -> None:
    """Paths start from the file's directory; Go's names become OpenSSL's."""
    config = parse(
        f"""
tls_server_config:
  cert_file: server.pem
  key_file: /etc/key.pem
  client_ca_file: ca/clients.pem
  client_auth_type: RequireAndVerifyClientCert
  client_allowed_sans: [prometheus.example, 10.0.0.1]
  min_version: TLS12
  max_version: TLS12
  cipher_suites: [TLS_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]
  prefer_server_cipher_suites: false
  curve_preferences: [X25519]
http_server_config:
  http2: true
  headers:
    Strict-Transport-Security: max-age=31536000
    Content-Security-Policy: "default-src ${{self}}"
    X-XSS-Protection: ""
    X-Content-Type-Options: nosniff
    X-Frame-Options: deny
basic_auth_users: {{bee: {BEE}, "o'brien ä": '{hashed("x", b"2y")}'}}
rate_limit: {{interval: 1m0.5s, burst: 20}}
""",
        str(tmp_path / "web.yaml"),
    )
    assert config.tls is not None
    assert config.tls.paths == (str(tmp_path / "server.pem"), "/etc/key.pem", str(tmp_path / "ca/clients.pem"))
    assert config.tls.client_auth is ssl.CERT_REQUIRED
    assert config.tls.client_allowed_sans == ("prometheus.example", "10.0.0.1")
    assert (config.tls.min_version, config.tls.max_version) == (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2)
    assert config.tls.ciphers == ("ECDHE-RSA-AES128-GCM-SHA256",)
    assert (config.tls.prefer_server_ciphers, config.tls.curve) == (False, "X25519")
    assert dict(config.headers) == {
        "Strict-Transport-Security": "max-age=31536000",
        "Content-Security-Policy": "default-src ${self}",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "deny",
    }
    assert config.users[b"bee"] == BEE.encode()
    assert set(config.users) == {b"bee", "o'brien ä".encode()}
    assert config.rate_limit == RateLimit(60.5, 20)
    assert len(config.notes) == 1
    assert "HTTP/2 is not spoken" in config.notes[0]


TLS = "tls_server_config: {cert_file: c, key_file: k, "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tls_config: {}", "1:1: tls_config is not a key; did you mean 'tls_server_config'?"),
        ("- a", "1:1: the configuration is a list; must be a mapping"),
        ("rate_limit: {}\nrate_limit: {}", "2:1: rate_limit is given twice; first on line 1"),
        ("a: ]", "not YAML"),
        ("tls_server_config: {cert_file: c}", "1:20: tls_server_config.key_file is missing; TLS needs it, or key"),
        ("tls_server_config: {key: k}", "tls_server_config.cert_file is missing"),
        ("tls_server_config: {client_auth_type: NoClientCert, key: k}", "cert_file is missing"),
        ("tls_server_config: {min_version: TLS13}", "1:34: tls_server_config.min_version has no effect without a cert"),
        (TLS + "cert: x}", "1:54: tls_server_config.cert is given and cert_file too; keep one of the two"),
        (TLS + "client_ca_file: a}", "1:64: tls_server_config.client_ca_file is given but clients are not asked"),
        (TLS + "client_auth_type: Sometimes}", "is 'Sometimes'; must be NoClientCert, "),
        (TLS + "client_auth_type: RequireAnyClientCert}", "a certificate nobody verifies proves nothing"),
        (TLS + "client_auth_type: RequireClientCert}", "use RequireAndVerifyClientCert"),
        (
            TLS + "client_auth_type: VerifyClientCertIfGiven, client_allowed_sans: [a]}",
            "needs client_auth_type Require",
        ),
        (TLS + "client_allowed_sans: [a]}", "needs client_auth_type RequireAndVerifyClientCert"),
        (TLS + "min_version: TLS14}", "is 'TLS14'; must be TLS10, TLS11, TLS12 or TLS13"),
        (TLS + "max_version: TLS11}", "max_version is TLS11; must be TLS12 or TLS13"),
        (TLS + "min_version: TLS13, max_version: TLS12}", "min_version is TLS13; must not be above max_version, TLS12"),
        (TLS + "cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]}", "cipher_suites[0] is 'TLS_RSA_WITH_RC4_128_SHA'; must be"),
        (TLS + "max_version: TLS12, cipher_suites: [TLS_AES_128_GCM_SHA256]}", "holds only suites of TLS 1.3"),
        (TLS + "curve_preferences: [CurveP256, X25519]}", "Python's TLS can be held to one curve"),
        (TLS + "curve_preferences: [P256]}", "curve_preferences[0] is 'P256'"),
        (TLS + "prefer_server_cipher_suites: 1}", "is '1'; must be true or false"),
        (
            "http_server_config: {headers: {Server: x}}",
            "headers.Server is not a key; known are Strict-Transport-Security",
        ),
        ("http_server_config: {headers: {X-Frame-Options: DENY}}", "is 'DENY'; must be deny or sameorigin"),
        ("http_server_config: {headers: {X-Content-Type-Options: sniff}}", "must be nosniff"),
        ('http_server_config: {headers: {X-XSS-Protection: "0\\r\\nSet-Cookie: a"}}', "must be one line of ASCII"),
        (f'basic_auth_users: {{"a:b": "{BEE}"}}', "has the key 'a:b'; must be a user name without ':'"),
        ("rate_limit: {interval: 1s}", "rate_limit.burst is 0; must be at least 1, else nobody is answered"),
        ("rate_limit: {interval: 1 s, burst: 1}", "is '1 s'; must be a duration such as 1s or 500ms"),
        ("rate_limit: {interval: 1d, burst: 1}", "is '1d'; must be a duration"),
        ("rate_limit: {interval: 1s, burst: -1}", "is -1; must be at least 0"),
    ],
)
def test_what_it_may_not_say_is_one_line_with_its_place(text: str, expected: str) -> None:
    """Strictly: what is unknown, contradicts itself or could not be kept is refused."""
    (problem,) = problems(text)
    assert problem.startswith("web.yaml:1:" if "\nrate" not in text else "web.yaml:2:")
    assert expected in problem


@pytest.mark.parametrize(
    "value",
    [
        "honey-and-wax",
        "$2b$10$short",
        "$1$salt$mead",
        BEE.replace("$04$", "$03$"),
        BEE.replace("$04$", "$31$"),
        BEE + "x",
        "$2$" + BEE[4:],
    ],
)
def test_value_that_is_no_hash_is_refused_and_never_shown(value: str) -> None:
    """A password in its place must not end up in a log."""
    (problem,) = problems(f"basic_auth_users:\n  bee: '{value}'\n")
    assert problem.startswith("web.yaml:2:8: basic_auth_users.bee is ")
    assert value not in problem
    assert value[8:] not in problem


def test_all_problems_are_told_at_once_in_their_order() -> None:
    """One run is enough to mend a file."""
    told = problems("rate_limit: {interval: x}\nbasic_auth_users: {bee: x}\nhttp_server_config: {http2: maybe}\n")
    assert [line.split(":")[1] for line in told] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("config", "note"),
    [
        ("min_version: TLS10", "TLS 1.2 is the least"),
        ("client_auth_type: RequestClientCert", "are not asked for"),
    ],
)
def test_what_has_no_effect_is_taken_with_a_note(config: str, note: str) -> None:
    """A file that all exporters of a fleet share goes on working, and never means less than it says."""
    (found,) = parse(TLS + config + "}", "web.yaml").notes
    assert note in found


FILES = "cert_file: server.pem, key_file: server.key"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("", True),
        (f"tls_server_config: {{{FILES}}}", True),
        (f"tls_server_config: {{{FILES}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem}}", True),
        (f"tls_server_config: {{{FILES}, client_auth_type: VerifyClientCertIfGiven}}", True),
        (f"tls_server_config: {{{FILES}, cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA]}}", True),
        (f"tls_server_config: {{{FILES}, cipher_suites: [TLS_AES_256_GCM_SHA384], max_version: TLS13}}", True),
        (f"tls_server_config: {{{FILES}, curve_preferences: [CurveP384], min_version: TLS13}}", True),
        (f"basic_auth_users: {{bee: '{BEE}'}}\nhttp_server_config: {{http2: false}}", True),
        ("http_server_config: {headers: {X-Frame-Options: sameorigin, X-XSS-Protection: 1}}", True),
        (f"tls_server_config: {{{FILES}, client_ca_file: ca.pem}}", False),
        (f"tls_server_config: {{{FILES}, client_auth_type: Never}}", False),
        ("tls_server_config: {cert_file: server.pem}", False),
        ("tls_server_config: {cert_file: gone.pem, key_file: server.key}", False),
        ("tls_server_config: {cert_file: server.pem, key_file: server.pem}", False),
        ("tls_server_config: {cert_file: server.pem, key_file: other.key}", False),
        (f"tls_server_config: {{{FILES}, cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]}}", False),
        (f"tls_server_config: {{{FILES}, curve_preferences: [Curve25519]}}", False),
        (f"tls_server_config: {{{FILES}, min_version: SSL3}}", False),
        ("http_server_config: {headers: {X-Frame-Options: DENY}}", False),
        ("http_server_config: {headers: {X-Powered-By: bees}}", False),
        ("basic_auth_users: {bee: honey}", False),
        ("unknown: 1", False),
    ],
)
def test_verdict_is_promtools(text: str, good: bool, tmp_path: Path, authority: Authority, pair: Pair) -> None:
    """A file for one Prometheus exporter is a file for this one."""
    shutil.copy(pair.certificate, tmp_path / "server.pem")
    shutil.copy(pair.key, tmp_path / "server.key")
    shutil.copy(authority.certificate, tmp_path / "ca.pem")
    shutil.copy(authority.issue("other").key, tmp_path / "other.key")
    file = tmp_path / "web.yaml"
    file.write_text(text + "\n")
    theirs = subprocess.run(["promtool", "check", "web-config", file], capture_output=True, check=False)
    try:
        WebAccess(file)
        ours = True
    except SkepError as error:
        assert str(error).startswith(f"{file}:1:")
        ours = False
    assert (ours, theirs.returncode == 0) == (good, good), theirs.stderr


KEYS = (
    *(
        "tls_server_config",
        "http_server_config",
        "basic_auth_users",
        "rate_limit",
        "headers",
        "http2",
        "interval",
        "burst",
    ),
    *("cert", "cert_file", "key", "key_file", "client_ca", "client_ca_file", "client_auth_type", "client_allowed_sans"),
    *("min_version", "max_version", "cipher_suites", "curve_preferences", "X-Frame-Options", "bee"),
)


@given(
    st.recursive(
        st.sampled_from(
            ["", "0", "1s", "true", "deny", "c", "TLS12", "TLS13", "X25519", BEE, "RequireAndVerifyClientCert"]
        ),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(KEYS),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
    | st.text(max_size=60)
)
def test_whatever_the_text_it_is_read_or_refused_in_lines(drawn: object) -> None:
    """A config comes back, or problems with their places; nothing else escapes."""
    try:
        parse(drawn if isinstance(drawn, str) else json.dumps(drawn), "web.yaml")
    except SkepError as error:
        assert all(line.startswith("web.yaml:") for line in str(error).splitlines())


# ---- certificates and keys ----


def context_of(text: str, file: str = "web.yaml") -> ssl.SSLContext:
    """The TLS context that a text asks for."""
    config = parse(text, file)
    assert config.tls is not None
    return make_context(config.tls, read_material(config.tls, file), file)


@pytest.fixture
def pems(tmp_path: Path, authority: Authority, pair: Pair) -> Path:
    """A directory of a good pair and of much that is none."""
    shutil.copy(pair.certificate, tmp_path / "server.pem")
    shutil.copy(pair.key, tmp_path / "server.key")
    shutil.copy(authority.issue("other").key, tmp_path / "other.key")
    (tmp_path / "empty").touch()
    text = pair.certificate.read_text()
    (tmp_path / "damaged.pem").write_text(text[:80] + "!!!!" + text[84:])
    locked = ("-aes256", "-passout", "pass:x", "-out", tmp_path / "locked.key")
    subprocess.run(["openssl", "pkey", "-in", pair.key, *locked], check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("certificate", "key", "expected"),
    [
        (
            "missing.pem",
            "server.key",
            "1:32: tls_server_config.cert_file '{dir}/missing.pem' cannot be read: No such file",
        ),
        (".", "server.key", "cannot be read: Is a directory"),
        ("server.pem", "empty", "tls_server_config.key_file '{dir}/empty' holds no private key; must be PEM"),
        ("empty", "server.key", "holds no certificate; must be PEM"),
        ("server.pem", "other.key", "key_file '{dir}/other.key' is not the key of cert_file"),
        ("server.pem", "locked.key", "key_file '{dir}/locked.key' is encrypted; decrypt it with `openssl pkey`"),
        ("damaged.pem", "server.key", "cert_file '{dir}/damaged.pem' or its key cannot be used: "),
    ],
)
def test_certificate_that_cannot_be_used_is_said_with_the_place_that_names_it(
    certificate: str, key: str, expected: str, pems: Path
) -> None:
    """And nothing asks for a password on a terminal."""
    with pytest.raises(ConfigError) as error:
        context_of(f"tls_server_config: {{cert_file: {certificate}, key_file: {key}}}", str(pems / "web.yaml"))
    assert str(error.value).startswith(f"{pems}/web.yaml:1:")
    assert expected.format(dir=pems) in str(error.value)
    assert "\n" not in str(error.value)


def test_client_authority_that_is_none_is_refused(pair: Pair) -> None:
    """An authority nobody can read must not become one that nobody needs."""
    text = (
        f"tls_server_config: {{cert_file: {pair.certificate}, key_file: {pair.key}, "
        f"client_ca_file: {pair.key}, client_auth_type: RequireAndVerifyClientCert}}"
    )
    with pytest.raises(ConfigError, match=r"client_ca_file .* holds no certificate that can be read"):
        context_of(text)


def block(text: str) -> str:
    """PEM as a YAML block under a key of the second level."""
    return "|\n" + "".join(f"    {line}\n" for line in text.splitlines())


def test_context_is_what_was_asked_for(pair: Pair) -> None:
    """Inline PEM; versions, suites and preference."""
    text = f"tls_server_config:\n  cert: {block(pair.certificate.read_text())}  key: {block(pair.key.read_text())}"
    context = context_of(text)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    context = context_of(text + "  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n")
    names = [each["name"] for each in context.get_ciphers() if each["protocol"] != "TLSv1.3"]
    assert names == ["ECDHE-ECDSA-AES128-GCM-SHA256"]
    modern = context_of(text + "  cipher_suites: [TLS_AES_128_GCM_SHA256]\n  prefer_server_cipher_suites: false\n")
    assert modern.minimum_version is ssl.TLSVersion.TLSv1_3
    assert not modern.options & ssl.OP_CIPHER_SERVER_PREFERENCE


# ---- the server ----


@contextmanager
def running(file: Path, handlers: Handlers | None = None, **options: object) -> Iterator[MetricsServer]:
    """A server under a web configuration, as the agent runs it."""
    serving = MetricsServer(
        ["127.0.0.1:0"],
        handlers or Handlers(metrics=lambda _: TEXT),
        web_config=file,
        **options,  # type: ignore[arg-type]
    )
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    try:
        yield serving
    finally:
        serving.close(grace_s=1)
        thread.join(5)
        assert not thread.is_alive()


def client_context(authority: Authority, identity: Pair | None = None) -> ssl.SSLContext:
    """A client that knows the authority, and may have a certificate."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    return context


def ask(
    serving: MetricsServer, context: ssl.SSLContext | None = None, user: str = "", target: str = "/metrics"
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request on a connection of its own; ``user`` is ``name:password``."""
    port = serving.ports[0]
    client = (
        http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
        if context is not None
        else http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    )
    headers = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
    with closing(client):
        client.request("GET", target, headers=headers)
        response = client.getresponse()
        return response.status, response.headers, response.read()


def write(file: Path, text: str) -> None:
    """Change a file the way careful tools do: whole, under its name at once, and old enough to be trusted."""
    temporary = file.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(file)


def tls_text(pair: Pair, more: str = "") -> str:
    """A configuration with TLS, and more of it."""
    return f"tls_server_config:\n  cert_file: {pair.certificate}\n  key_file: {pair.key}\n{more}"


def wait_until(true: Callable[[], bool]) -> None:
    """Fail the test unless it becomes true soon."""
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_scrape_over_tls_and_what_comes_in_the_clear_is_told_so(
    tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    """HTTPS only; a client that forgot the s learns why it is not answered."""
    file = tmp_path / "web.yaml"
    file.write_text(tls_text(pair))
    with running(file) as serving:
        assert serving.urls == (f"https://127.0.0.1:{serving.ports[0]}/metrics",)
        status, _, body = ask(serving, client_context(authority))
        assert (status, body) == (200, TEXT)
        status, _, body = ask(serving)
        assert (status, b"https://" in body) == (400, True)


def test_connection_over_tls_is_kept_and_ends_with_a_goodbye(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    """One handshake for many scrapes; the end is said, so that a truncated answer cannot look like one."""
    file = tmp_path / "web.yaml"
    file.write_text(tls_text(pair))
    with running(file) as serving:
        plain = socket.create_connection(("127.0.0.1", serving.ports[0]), timeout=5)
        context = client_context(authority)
        with context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            received = b""
            while not received.endswith(TEXT):
                received += client.recv(4096)
            client.sendall(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n")
            with closing(client.makefile("rb")) as stream:
                assert stream.read().endswith(TEXT)  # an end without a goodbye would raise


def test_client_without_a_certificate_that_is_asked_for_gets_nothing(
    tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    """Mutual TLS: no certificate, an expired one, one of somebody else's; then the right one."""
    refused: list[str] = []
    file = tmp_path / "web.yaml"
    file.write_text(
        tls_text(pair, f"  client_ca_file: {authority.certificate}\n  client_auth_type: RequireAndVerifyClientCert\n")
    )
    stranger = Authority(tmp_path / "stranger", "stranger").issue("mallory")
    handlers = Handlers(metrics=lambda _: TEXT, refused=lambda client, reason: refused.append(f"{client} {reason}"))
    with running(file, handlers) as serving:
        for identity in (None, authority.issue("late", expired=True), stranger):
            with pytest.raises((OSError, http.client.HTTPException)):
                ask(serving, client_context(authority, identity))
        wait_until(lambda: len(refused) == 3)
        assert ask(serving, client_context(authority, authority.issue("prometheus")))[0] == 200
    assert [line.partition(" ")[2] for line in refused] == [
        "peer did not return a certificate",
        "client certificate: certificate has expired",
        "client certificate: unable to get local issuer certificate",
    ]


def test_certificate_if_given_must_be_good(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    """None is fine, a stranger's is not."""
    file = tmp_path / "web.yaml"
    file.write_text(
        tls_text(pair, f"  client_ca_file: {authority.certificate}\n  client_auth_type: VerifyClientCertIfGiven\n")
    )
    stranger = Authority(tmp_path / "stranger", "stranger").issue("mallory")
    with running(file) as serving:
        assert ask(serving, client_context(authority))[0] == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(serving, client_context(authority, stranger))


@pytest.mark.parametrize(
    ("sans", "good"),
    [
        ("DNS:prometheus.example", True),
        ("DNS:other,IP:10.0.0.1", True),
        ("IP:0:0:0:0:0:0:0:9", True),
        ("email:bee@example.org", True),
        ("URI:spiffe://example/bee", True),
        ("DNS:xprometheus.example", False),
        ("DNS:PROMETHEUS.example", False),
        ("DNS:10.0.0.1x", False),
    ],
)
def test_allowed_names_are_exact(sans: str, good: bool, tmp_path: Path, authority: Authority, pair: Pair) -> None:
    """A certificate of the right authority for another name is another's."""
    file = tmp_path / "web.yaml"
    allowed = "[prometheus.example, 10.0.0.1, '::9', bee@example.org, 'spiffe://example/bee']"
    file.write_text(
        tls_text(
            pair,
            f"  client_ca_file: {authority.certificate}\n  client_auth_type: RequireAndVerifyClientCert\n"
            f"  client_allowed_sans: {allowed}\n",
        )
    )
    identity = authority.issue("client", sans)
    with running(file) as serving:
        if good:
            assert ask(serving, client_context(authority, identity))[0] == 200
        else:
            with pytest.raises((OSError, http.client.HTTPException)):
                ask(serving, client_context(authority, identity))


def knows_x25519() -> bool:
    """Whether this Python's ssl module can be held to it; Debian 12's cannot."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ecdh_curve("X25519")
    except (ValueError, ssl.SSLError):
        return False
    return True


@pytest.mark.parametrize(
    ("more", "tweak", "good"),
    [
        ("  max_version: TLS12\n", "TLSv1_3", False),
        ("  min_version: TLS13\n", "TLSv1_3", True),
        ("  min_version: TLS13\n", "TLSv1_2", False),
        ("  curve_preferences: [CurveP384]\n", "prime256v1", False),
        ("  curve_preferences: [CurveP384]\n", "secp384r1", True),
        ("  curve_preferences: [X25519]\n", "X25519", True),
        ("  curve_preferences: [X25519]\n", "secp384r1", False),
    ],
)
def test_versions_and_curve_are_held_to(more: str, tweak: str, good: bool, pems: Path, authority: Authority) -> None:
    """A client that can only do otherwise does not get in."""
    if "X25519" in more and not knows_x25519():
        pytest.skip("this Python's TLS takes only curves with elliptic-curve keys, not X25519")
    file = pems / "web.yaml"
    file.write_text(f"tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n{more}")
    context = client_context(authority)
    if tweak.startswith("TLSv"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion[tweak]
    else:
        context.set_ecdh_curve(tweak)
    with running(file) as serving:
        if good:
            assert ask(serving, context)[0] == 200
        else:
            with pytest.raises(OSError):
                ask(serving, context)


def test_passwords_are_asked_for_everywhere_and_every_answer_has_the_headers(tmp_path: Path) -> None:
    """401 with a challenge: no user, an unknown one, a wrong password, nonsense; wherever and however it asks."""
    file = tmp_path / "web.yaml"
    file.write_text(
        f"basic_auth_users: {{bee: '{BEE}', wasp: '{hashed('pässword', b'2y')}'}}\n"
        "http_server_config: {headers: {X-Frame-Options: deny}}\n"
    )
    with running(file) as serving:
        for user in ("", "bee:wax", "nobody:honey", "bee", ":", "bee:", "wasp:honey"):
            for target in ("/metrics", "/", "/-/healthy", "/nothing"):
                status, headers, body = ask(serving, user=user, target=target)
                assert (status, headers["WWW-Authenticate"], body) == (401, "Basic", b"unauthorized\n")
                assert headers["X-Frame-Options"] == "deny"
        for user in ("bee:honey", "wasp:pässword"):
            status, headers, body = ask(serving, user=user)
            assert (status, body, headers["X-Frame-Options"]) == (200, TEXT, "deny")
        with closing(http.client.HTTPConnection("127.0.0.1", serving.ports[0], timeout=5)) as client:
            for method, authorization, status in [
                ("POST", "Basic YmVlOndheA==", 401),
                ("POST", "Basic YmVlOmhvbmV5", 405),
                ("GET", "basic  YmVlOmhvbmV5 ", 200),
                ("GET", "Bearer YmVlOmhvbmV5", 401),
                ("GET", "Basic YmVl!mhvbmV5", 401),
                ("GET", "Basic", 401),
            ]:
                client.request(method, "/metrics", headers={"Authorization": authorization})
                response = client.getresponse()
                response.read()
                assert (response.status, response.headers["X-Frame-Options"]) == (status, "deny"), authorization


def test_password_longer_than_bcrypt_reads_is_judged_by_what_it_reads(tmp_path: Path) -> None:
    """As htpasswd and every other exporter have it; no byte of it is an error."""
    file = tmp_path / "web.yaml"
    file.write_text(f"basic_auth_users: {{bee: '{hashed('x' * 72)}'}}\n")
    with running(file) as serving:
        assert ask(serving, user="bee:" + "x" * 80)[0] == 200
        assert ask(serving, user="bee:" + "x" * 71)[0] == 401
        assert ask(serving, user="bee:\0")[0] == 401


class _CountingBcrypt:
    """Stands for the module: counts, and how many run at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[bytes] = []
        self.at_once = self.most_at_once = 0
        self._real = bcrypt.checkpw
        monkeypatch.setattr(bcrypt, "checkpw", self._check)

    def _check(self, password: bytes, hashed_password: bytes) -> bool:
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        self.calls.append(hashed_password)
        time.sleep(0.02)
        self.at_once -= 1
        return self._real(password, hashed_password)


def test_password_is_checked_once_however_many_ask_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time, and remembered; wrong ones do not push out the right one."""
    file = tmp_path / "web.yaml"
    file.write_text(f"basic_auth_users: {{bee: '{BEE}'}}\n")
    access = WebAccess(file)
    counting = _CountingBcrypt(monkeypatch)

    def header(user: str) -> str:
        return "Basic " + base64.b64encode(user.encode()).decode()

    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(access.refusal(header("bee:honey")))) for _ in range(41)]
    threads += [threading.Thread(target=access.refusal, args=(header(f"bee:{n}"),)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [None] * 41
    assert (len(counting.calls), counting.most_at_once) == (6, 1)
    monkeypatch.setattr(web_access, "_REMEMBERED", 3)
    for number in range(8):
        assert access.refusal(header(f"bee:guess {number}")) is not None
    assert access.refusal(header("bee:honey")) is None
    assert len(counting.calls) == 14


def test_unknown_user_costs_what_a_known_one_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who exists cannot be told by the time it takes."""
    file = tmp_path / "web.yaml"
    costly = bcrypt.hashpw(b"x", bcrypt.gensalt(5)).decode()
    file.write_text(f"basic_auth_users: {{bee: '{BEE}', wasp: '{costly}'}}\n")
    access = WebAccess(file)
    counting = _CountingBcrypt(monkeypatch)
    for number in range(20):
        token = base64.b64encode(f"nobody{number}:x".encode()).decode()
        assert access.refusal(f"Basic {token}") is not None
    assert {each[4:6] for each in counting.calls} == {b"04", b"05"}
    assert len(counting.calls) == 20


def test_passwords_that_pile_up_are_turned_away_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone else's guessing may delay a check, not hang it."""
    monkeypatch.setattr(web_access, "_BCRYPT_WAIT_S", 0.05)
    file = tmp_path / "web.yaml"
    file.write_text(f"basic_auth_users: {{bee: '{BEE}'}}\n")
    with running(file) as serving:
        assert serving.access is not None
        with serving.access._passwords._bcrypt:
            status, headers, _ = ask(serving, user="bee:honey")
        assert (status, headers["Retry-After"]) == (503, "5")
        monkeypatch.setattr(serving.access._passwords, "_queue", threading.Semaphore(0))
        assert ask(serving, user="bee:honey")[0] == 503
        monkeypatch.undo()
        assert ask(serving, user="bee:honey")[0] == 200


def test_rate_limit_is_a_bucket_of_requests(tmp_path: Path) -> None:
    """So many at once, then 429 until time has brought one back; before anything costs bcrypt."""
    file = tmp_path / "web.yaml"
    file.write_text(f"rate_limit: {{interval: 500ms, burst: 3}}\nbasic_auth_users: {{bee: '{BEE}'}}\n")
    with running(file) as serving:
        begin = time.monotonic()
        statuses = [ask(serving, user="bee:honey")[0] for _ in range(4)]
        assert statuses == [200, 200, 200, 429] or time.monotonic() - begin > 0.5
        time.sleep(0.55)
        assert ask(serving, user="bee:honey")[0] == 200


# ---- change ----


def test_users_change_without_a_restart(tmp_path: Path) -> None:
    """A new user gets in and an old one does not, with the next request; nothing of the old is remembered."""
    told: list[str] = []
    file = tmp_path / "web.yaml"
    file.write_text(f"basic_auth_users: {{bee: '{BEE}'}}\n")
    with running(file, Handlers(metrics=lambda _: TEXT, web_config=told.append)) as serving:
        assert ask(serving, user="bee:honey")[0] == 200
        write(file, f"basic_auth_users: {{wasp: '{hashed('sting')}'}}\n")
        assert ask(serving, user="bee:honey")[0] == 401
        assert ask(serving, user="wasp:sting")[0] == 200
        write(file, f"basic_auth_users: {{bee: '{hashed('nectar')}'}}\n")
        assert ask(serving, user="bee:honey")[0] == 401
        assert ask(serving, user="bee:nectar")[0] == 200
    assert told == ["", ""]


def test_file_that_stops_parsing_lets_nobody_in_until_it_is_mended(tmp_path: Path) -> None:
    """500 for right and wrong passwords alike, one line to the log, and back without a restart."""
    told: list[str] = []
    good = f"basic_auth_users: {{bee: '{BEE}'}}\n"
    file = tmp_path / "web.yaml"
    file.write_text(good)
    with running(file, Handlers(metrics=lambda _: TEXT, web_config=told.append)) as serving:
        write(file, "basic_auth_users: {bee: honey}\n")
        for user in ("bee:honey", "", "bee:honey"):
            status, _, body = ask(serving, user=user)
            assert (status, b"honey" in body) == (500, False)
        file.unlink()
        assert ask(serving, user="bee:honey")[0] == 500
        write(file, good)
        assert ask(serving, user="bee:honey")[0] == 200
    assert len(told) == 3
    assert told[0].startswith(f"{file}:1:25: basic_auth_users.bee is no bcrypt hash")
    assert told[1] == f"{file}: cannot be read: No such file or directory"
    assert told[2] == ""


def test_file_that_is_being_written_is_not_taken_for_whole(tmp_path: Path) -> None:
    """An editor empties the file first: for that instant it has no users, and still nobody gets in."""
    good = f"# {'x' * 100}\nbasic_auth_users: {{bee: '{BEE}'}}\n"
    file = tmp_path / "web.yaml"
    file.write_text(good)
    statuses: list[int] = []
    with running(file) as serving:
        client = threading.Thread(target=lambda: statuses.append(ask(serving)[0]))
        with file.open("w") as out:
            out.flush()
            client.start()
            time.sleep(0.1)
            out.write(good)
        client.join(5)
        assert statuses == [401]
        file.write_text("")
        assert ask(serving)[0] == 500


def test_tls_neither_comes_nor_goes_without_a_restart(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    """A file that loses its TLS must not lead to passwords in the clear."""
    told: list[str] = []
    users = f"basic_auth_users: {{bee: '{BEE}'}}\n"
    file = tmp_path / "web.yaml"
    for first, second, reason in [
        (tls_text(pair) + users, users, "tls_server_config is gone; restart skep to apply it"),
        (users, tls_text(pair) + users, "tls_server_config is new; restart skep to apply it"),
    ]:
        file.write_text(first)
        with running(file, Handlers(metrics=lambda _: TEXT, web_config=told.append)) as serving:
            write(file, second)
            context = client_context(authority) if first.startswith("tls") else None
            assert ask(serving, context, user="bee:honey")[0] == 500
        assert told.pop() == f"{file}: {reason}"


def server_name(serving: MetricsServer, authority: Authority) -> str:
    """Whose certificate the server shows."""
    with (
        socket.create_connection(("127.0.0.1", serving.ports[0]), timeout=5) as plain,
        client_context(authority).wrap_socket(plain, server_hostname="localhost") as client,
    ):
        certificate = client.getpeercert() or {}
    return str(dict(pair[0] for pair in certificate["subject"])["commonName"])  # type: ignore[misc, index]


def copied(pair: Pair, directory: Path) -> Pair:
    """A pair that may be changed."""
    copy = Pair(directory / "copy.pem", directory / "copy.key")
    copy.certificate.write_bytes(pair.certificate.read_bytes())
    copy.key.write_bytes(pair.key.read_bytes())
    return copy


def test_certificate_changes_without_a_restart(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    """The next handshake shows the new one; a connection from before ends after its next answer."""
    file = tmp_path / "web.yaml"
    current = copied(pair, tmp_path)
    file.write_text(tls_text(current))
    with running(file) as serving:
        assert server_name(serving, authority) == "server"
        with closing(
            http.client.HTTPSConnection("127.0.0.1", serving.ports[0], timeout=5, context=client_context(authority))
        ) as kept:
            kept.request("GET", "/metrics")
            response = kept.getresponse()
            assert (response.read(), response.headers["Connection"]) == (TEXT, None)
            current.replace(authority.issue("successor"))
            assert server_name(serving, authority) == "successor"
            kept.request("GET", "/metrics")
            response = kept.getresponse()
            assert (response.read(), response.headers["Connection"]) == (TEXT, "close")


def test_expired_certificate_is_mended_by_writing_another(tmp_path: Path, authority: Authority) -> None:
    """Clients refuse the old one; the server goes on, and serves as soon as there is a new one."""
    file = tmp_path / "web.yaml"
    current = copied(authority.issue("old", expired=True), tmp_path)
    file.write_text(tls_text(current))
    with running(file) as serving:
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            ask(serving, client_context(authority))
        current.replace(authority.issue("fresh"))
        assert ask(serving, client_context(authority))[0] == 200


def test_rotation_that_is_half_done_is_bridged_and_one_that_stays_so_is_told(
    tmp_path: Path, authority: Authority, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old pair goes on for a while; then 500 over the old certificate, a line, and back when it fits."""
    monkeypatch.setattr(web_access, "_ROTATION_S", 1.0)
    told: list[str] = []
    file = tmp_path / "web.yaml"
    current, successor = copied(pair, tmp_path), authority.issue("successor")
    file.write_text(tls_text(current))
    context = client_context(authority)
    with running(file, Handlers(metrics=lambda _: TEXT, web_config=told.append)) as serving:
        current.certificate.write_bytes(successor.certificate.read_bytes())
        assert ask(serving, context)[0] == 200
        assert told == []
        time.sleep(1.0)
        assert ask(serving, context)[0] == 500
        assert ask(serving, context)[0] == 500
        assert told == [f"{file}:3:13: tls_server_config.key_file '{current.key}' is not the key of cert_file"]
        current.key.write_bytes(successor.key.read_bytes())
        assert ask(serving, context)[0] == 200
        assert server_name(serving, authority) == "successor"
    assert told[1:] == [""]


def test_client_authority_that_changed_is_asked_at_once(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    """Whom the old one vouched for does not get in by the new one, nor goes on over a connection it kept."""
    other = Authority(tmp_path / "other", "other")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.certificate.read_bytes())
    file = tmp_path / "web.yaml"
    file.write_text(tls_text(pair, f"  client_ca_file: {trusted}\n  client_auth_type: RequireAndVerifyClientCert\n"))
    before, after = authority.issue("before"), other.issue("after")
    with running(file) as serving:
        assert ask(serving, client_context(authority, before))[0] == 200
        kept = http.client.HTTPSConnection(
            "127.0.0.1", serving.ports[0], timeout=5, context=client_context(authority, before)
        )
        kept.request("GET", "/metrics")
        assert kept.getresponse().read() == TEXT
        trusted.write_bytes(other.certificate.read_bytes())
        kept.request("GET", "/metrics")
        with closing(kept), pytest.raises(http.client.RemoteDisconnected):
            kept.getresponse()
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(serving, client_context(authority, before))
        assert ask(serving, client_context(authority, after))[0] == 200


def test_request_costs_no_reading_while_nothing_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the files' stat is looked at."""
    file = tmp_path / "web.yaml"
    file.write_text("http_server_config: {headers: {X-Frame-Options: deny}}\n")
    access = WebAccess(file)
    monkeypatch.setattr(web_access, "load", lambda _: pytest.fail("the file was read again"))
    for _ in range(3):
        assert access.refusal(None) is None


# ---- clients that are slow, and many ----


def test_silent_and_trickling_clients_over_tls_block_nobody(
    tmp_path: Path, authority: Authority, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those that never say hello, nor one that says it byte by byte, which is ended in time."""
    monkeypatch.setattr(server_module, "_HEAD_TIMEOUT_S", 0.6)
    file = tmp_path / "web.yaml"
    file.write_text(tls_text(pair))
    with running(file) as serving:
        silent = [socket.create_connection(("127.0.0.1", serving.ports[0]), timeout=5) for _ in range(30)]
        trickler = socket.create_connection(("127.0.0.1", serving.ports[0]), timeout=5)
        hello = ssl.MemoryBIO()
        with suppress(ssl.SSLWantReadError):
            client_context(authority).wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost").do_handshake()
        begin = time.monotonic()
        ended_s = 0.0

        def trickle() -> None:
            nonlocal ended_s
            with suppress(OSError):
                for byte in hello.read():
                    trickler.sendall(bytes([byte]))
                    time.sleep(0.02)
            ended_s = time.monotonic() - begin

        thread = threading.Thread(target=trickle)
        thread.start()
        assert ask(serving, client_context(authority))[0] == 200
        assert time.monotonic() - begin < 0.6
        thread.join(10)
        assert ended_s < 3
        wait_until(lambda: not serving.gate._connections)
        for client in (*silent, trickler):
            client.close()


def test_client_that_reads_a_byte_a_second_over_tls_blocks_nobody(
    tmp_path: Path, authority: Authority, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer has a limit for the whole of it, and others are served meanwhile."""
    monkeypatch.setattr(server_module, "_WRITE_TIMEOUT_S", 0.5)
    large = b"# \n" * (8 << 20 >> 2)
    file = tmp_path / "web.yaml"
    file.write_text(tls_text(pair))
    with running(file, Handlers(metrics=lambda _: large), max_requests=1) as serving:
        plain = socket.create_connection(("127.0.0.1", serving.ports[0]), timeout=5)
        with client_context(authority).wrap_socket(plain, server_hostname="localhost") as slow:
            slow.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert slow.recv(1) == b"H"
            assert ask(serving, client_context(authority))[2] == large
            assert slow.recv(1) == b"T"
            wait_until(lambda: not serving.gate._connections)


def test_forty_one_scrapes_at_once_over_tls_with_passwords(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    """Forty are answered; the one beyond --web.max-requests gets 503, and nobody waits for another's password."""
    begun, go_on = threading.Semaphore(0), threading.Event()

    def metrics(_: Scrape) -> bytes:
        begun.release()
        assert go_on.wait(20)
        return TEXT

    file = tmp_path / "web.yaml"
    file.write_text(tls_text(pair) + f"basic_auth_users: {{bee: '{BEE}'}}\n")
    statuses: list[int] = []
    context = client_context(authority)
    with running(file, Handlers(metrics=metrics)) as serving:
        threads = [
            threading.Thread(target=lambda: statuses.append(ask(serving, context, "bee:honey")[0])) for _ in range(41)
        ]
        for thread in threads:
            thread.start()
        for _ in range(40):
            assert begun.acquire(timeout=10)
        wait_until(lambda: statuses == [503])
        go_on.set()
        for thread in threads:
            thread.join(10)
    assert sorted(statuses) == [200] * 40 + [503]


# ---- a real Prometheus ----


def query(port: int, expression: str) -> list[dict[str, object]]:
    """What a Prometheus has; empty while it does not answer."""
    with (
        suppress(OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?query={expression}", timeout=5) as answer,
    ):
        found: list[dict[str, object]] = json.load(answer)["data"]["result"]
        return found
    return []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_prometheus_scrapes_openmetrics_over_mutual_tls_with_a_password(
    tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    """Gzipped, with its certificate, its password and its timeout; the numbers arrive, and their units."""
    instruments = [
        counter("ebpf.io", prometheus_name="ebpf_io_bytes_total", unit="By"),
        histogram(
            "ebpf.wait",
            prometheus_name="ebpf_wait_seconds",
            unit="s",
            bounds=(0.5,),
            first_cell=1,
            has_sum=True,
            scale=Scale(-9),
        ),
    ]
    frame = FrameLiteral(instruments, [SeriesLiteral((("path", 'a "b"\\\nc'),), (42, 1, 2, 5_000_000_001))])
    seen: list[Scrape] = []

    def metrics(scrape: Scrape) -> bytes:
        seen.append(scrape)
        return prometheus.render(snapshot(frame), b"", scrape.exposition)

    file = tmp_path / "web.yaml"
    file.write_text(
        tls_text(pair, f"  client_ca_file: {authority.certificate}\n  client_auth_type: RequireAndVerifyClientCert\n")
        + "  client_allowed_sans: [localhost]\n"
        + f"basic_auth_users: {{bee: '{BEE}'}}\nhttp_server_config: {{http2: true}}\n"
    )
    identity = authority.issue("prometheus")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running(file, Handlers(metrics=metrics, expositions=tuple(Exposition))) as serving:
        (tmp_path / "prometheus.yml").write_text(
            json.dumps(
                {
                    "scrape_configs": [
                        {
                            "job_name": "skep",
                            "scrape_interval": "1s",
                            "scrape_timeout": "1s",
                            "scheme": "https",
                            "basic_auth": {"username": "bee", "password": "honey"},
                            "tls_config": {
                                "ca_file": str(authority.certificate),
                                "cert_file": str(identity.certificate),
                                "key_file": str(identity.key),
                            },
                            "static_configs": [{"targets": [f"127.0.0.1:{serving.ports[0]}"]}],
                        }
                    ]
                }
            )
        )
        command = [
            "prometheus",
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "1"})
        try:
            end = time.monotonic() + 30
            while not (found := query(port, "ebpf_io_bytes_total")):
                assert time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.1)
            counts = query(port, 'ebpf_wait_seconds_bucket{le="0.5"}')
            sums = query(port, "ebpf_wait_seconds_sum")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/metadata", timeout=5) as answer:
                metadata = json.load(answer)["data"]
        finally:
            process.terminate()
            process.wait(10)
    assert found[0]["metric"]["path"] == 'a "b"\\\nc'  # type: ignore[index]
    assert [each[0]["value"][1] for each in (found, counts, sums)] == ["42", "1", "5.000000001"]  # type: ignore[index]
    assert metadata["ebpf_io_bytes"] == [{"type": "counter", "help": "Things.", "unit": "bytes"}]
    assert metadata["ebpf_wait_seconds"][0]["unit"] == "seconds"
    assert seen[0].exposition is Exposition.OPENMETRICS_1_0_0
    assert seen[0].deadline_s is not None
