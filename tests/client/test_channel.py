"""A site's line against servers that misbehave: what is refused, and in which words."""

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from client import channel as module
from client.channel import Address, Channel, proxy_of
from privacy.errors import AbsentError, DataError
from server.certificates import Certificates, issue
from shared_models.transport import server_context

BODY_MAX = 1000


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return issue(tmp_path_factory.mktemp("tls") / "tls", ["127.0.0.1", "example.test"])


class Server:
    """Answers each request on each connection with the next of the given texts."""

    def __init__(self, certificates: Certificates) -> None:
        self.replies: list[bytes] = []
        self.requests: list[bytes] = []
        self.connections = 0
        self.behave: Callable[[ssl.SSLSocket], None] = self._answer
        self._tls = server_context(certificates.chain, certificates.key)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                raw, _ = self._socket.accept()
                self.connections += 1
                with contextlib.suppress(OSError), self._tls.wrap_socket(raw, True) as line:
                    self.behave(line)

    def _answer(self, line: ssl.SSLSocket) -> None:
        while self.replies:
            got = line.recv(65536)
            if not got:
                return
            self.requests.append(got)
            line.sendall(self.replies.pop(0))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def server(certificates: Certificates) -> Iterator[Server]:
    made = Server(certificates)
    yield made
    made.close()


@pytest.fixture
def channel(server: Server, certificates: Certificates) -> Iterator[Channel]:
    made = Channel(Address("127.0.0.1", server.port, certificates.authority.read_bytes()), BODY_MAX)
    yield made
    made.close()


def post(channel: Channel, limit_s: float = 10.0) -> module.Reply:
    return channel.post("/path", lambda: {"x-name": "value"}, b"", limit_s)


def ok(body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%s\r\n%s" % (len(body), more, body)


def test_a_reply_comes_with_its_status_and_body(server: Server, channel: Channel) -> None:
    server.replies = [ok(b"hello"), b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n"]
    reply = post(channel)
    assert (reply.status, reply.body, reply.skew_s) == (200, b"hello", None)
    assert post(channel).status == 401
    assert server.connections == 1
    assert server.requests[0].startswith(b"POST /path HTTP/1.1\r\n")
    assert b"x-name: value" in server.requests[0]


def test_a_connection_that_was_closed_while_idle_is_replaced_once(
    server: Server, channel: Channel
) -> None:
    server.replies = [ok(b"one")]
    assert post(channel).body == b"one"
    server.replies = [ok(b"two")]  # on a new connection: the first one ended with its reply
    assert post(channel).body == b"two"
    assert server.connections == 2


def test_a_connection_that_ends_between_head_and_body_is_replaced_too(
    server: Server, channel: Channel
) -> None:
    server.replies = [ok(b"one")]
    assert post(channel).body == b"one"
    assert channel._line is not None
    ended = select.poll()
    ended.register(channel._line.sock, select.POLLRDHUP)
    assert ended.poll(10_000)

    def whole(line: ssl.SSLSocket) -> None:
        got = b""
        while not got.endswith(b"body"):  # an answer to the head alone could meet the body
            got += line.recv(65536)
        line.sendall(ok(b"two"))

    server.behave = whole
    # The head meets a reset, so that TLS can write no body.
    assert channel.post("/path", dict, b"body", 10.0).body == b"two"


def test_a_redirect_is_not_followed(server: Server, channel: Channel) -> None:
    server.replies = [
        b"HTTP/1.1 307 There\r\nlocation: https://127.0.0.1:1/x\r\ncontent-length: 0\r\n\r\n"
    ]
    assert post(channel).status == 307
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (ok(b"x" * (BODY_MAX + 1)), "a reply of 1001 bytes"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n", "a reply of 999999999999"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
            + b"100\r\n"
            + b"x" * 256
            + b"\r\n"
            + (b"400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n"),
            "a reply above 1000 bytes",
        ),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "half a reply"),
        (b"HTTP/1.1 200 OK\r\n\r\nwithout an end", "a reply without an end"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "expected an answer of fedward's server"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", "expected an answer"),
    ],
)
def test_a_reply_that_is_none_is_refused(
    server: Server, channel: Channel, reply: bytes, words: str
) -> None:
    server.replies = [reply]
    with pytest.raises(AbsentError, match=words):
        post(channel)


def test_a_server_that_never_answers_is_left_in_time(server: Server, channel: Channel) -> None:
    server.behave = lambda line: time.sleep(20)
    with pytest.raises(AbsentError, match="no answer in time"):
        post(channel, 0.3)


def test_a_server_that_answers_a_byte_at_a_time_is_left_in_time(
    server: Server, channel: Channel
) -> None:
    def drip(line: ssl.SSLSocket) -> None:
        line.recv(65536)
        for byte in ok(b"x" * 500):
            line.sendall(bytes([byte]))
            time.sleep(0.05)

    server.behave = drip
    started = time.monotonic()
    with pytest.raises(AbsentError, match="no answer in time"):
        post(channel, 0.5)
    assert time.monotonic() - started < 15  # all of it takes 27 s


def test_a_request_that_is_ended_by_another_thread_fails_and_no_other_begins(
    server: Server, channel: Channel
) -> None:
    silent = threading.Event()
    server.behave = lambda line: silent.wait(20) and None
    threading.Timer(0.3, channel.end).start()
    with pytest.raises(AbsentError):
        post(channel, 15.0)
    silent.set()
    with pytest.raises(AbsentError):
        post(channel, 1.0)
    assert server.connections == 1


def test_a_port_that_nobody_listens_on_is_told(certificates: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    channel = Channel(Address("127.0.0.1", port, certificates.authority.read_bytes()), 10)
    said = rf"127.0.0.1:{port}: cannot be reached \(Connection ref"
    with pytest.raises(AbsentError, match=said) as found:
        post(channel)
    assert "is the coordinator's program started" in found.value.hint


def test_a_name_that_is_unknown_is_told(certificates: Certificates) -> None:
    address = Address("name.invalid", 443, certificates.authority.read_bytes(), proxy="")
    with pytest.raises(AbsentError, match=r"name\.invalid:443: the name is not known here"):
        post(Channel(address, 10))


def test_a_server_without_tls_is_told(certificates: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def greet() -> None:
            line, _ = plain.accept()
            line.sendall(b"220 mail.example ESMTP\r\n")
            line.close()

        threading.Thread(target=greet, daemon=True).start()
        port = plain.getsockname()[1]
        channel = Channel(Address("127.0.0.1", port, certificates.authority.read_bytes()), 10)
        with pytest.raises(AbsentError, match=r"no TLS 1.3 spoken there|cannot be reached"):
            post(channel)


def test_an_older_tls_is_refused(certificates: Certificates) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    server = Server(certificates)
    with (
        contextlib.closing(server),
        socket.create_connection(("127.0.0.1", server.port), 10) as raw,
        pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
    ):
        old.wrap_socket(raw)


@pytest.mark.parametrize(
    ("date", "skew"),
    [
        (b"date: Thu, 01 Jan 1970 00:16:40 GMT\r\n", 600.0),
        (b"date: Thu, 01 Jan 1970 00:36:40 GMT\r\n", -600.0),
        (b"date: yesterday\r\n", None),
        (b"", None),
    ],
)
def test_the_skew_of_the_clocks_is_told(
    server: Server,
    channel: Channel,
    monkeypatch: pytest.MonkeyPatch,
    date: bytes,
    skew: float | None,
) -> None:
    monkeypatch.setattr(module, "clock", lambda: 1600.0)
    server.replies = [ok(b"", date)]
    assert post(channel).skew_s == skew


@pytest.mark.parametrize(("told", "skew"), [(1590, 10.0), (1610, 0.0), (1630, 0.0), (1640, -10.0)])
def test_a_slow_answer_is_no_skew(
    server: Server, channel: Channel, monkeypatch: pytest.MonkeyPatch, told: int, skew: float
) -> None:
    times = iter((1600.0, 1630.0))
    monkeypatch.setattr(module, "clock", lambda: next(times))
    server.replies = [ok(b"", f"date: {formatdate(told, usegmt=True)}\r\n".encode())]
    assert post(channel).skew_s == skew


def test_a_pinned_authority_that_is_none_is_told() -> None:
    with pytest.raises(
        DataError, match="pinned authority: expected a certificate in PEM"
    ) as caught:
        Channel(Address("127.0.0.1", 1, b"not a certificate"), 10)
    assert caught.value.hint == "enrol again"


# --- proxies -------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in tuple(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    return monkeypatch


def found(host: str, proxy: str | None = None) -> tuple[str, int, str] | None:
    made = proxy_of(Address(host, 443, b"", proxy))
    return made and (made.host, made.port, made.headers.get("Proxy-Authorization", ""))


def test_the_proxy_of_the_environment_is_used_but_not_for_this_machine(
    environment: pytest.MonkeyPatch,
) -> None:
    assert found("study.example") is None
    environment.setenv("HTTPS_PROXY", "http://proxy.hospital:3128")
    assert found("study.example") == ("proxy.hospital", 3128, "")
    for here in ("127.0.0.1", "127.8.9.1", "::1", "localhost"):
        assert found(here) is None
    environment.setenv("NO_PROXY", "example,other.org")
    assert found("study.example") is None
    assert found("study.example.org") == ("proxy.hospital", 3128, "")


def test_a_proxy_that_is_named_goes_before_the_environment(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("HTTPS_PROXY", "http://proxy.hospital:3128")
    assert found("study.example", "") is None
    assert found("study.example", "http://other:80") == ("other", 80, "")
    assert found("127.0.0.1", "other:8080") == ("other", 8080, "")
    # RFC 7617, section 2: its example.
    assert found("x", "http://Aladdin:open%20sesame@p:1") == (
        "p",
        1,
        "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
    )


@pytest.mark.parametrize("url", ["https://p:1", "socks5://p:1", "http://", "http://p:x", "p:99999"])
def test_a_proxy_of_another_kind_is_refused(environment: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(DataError, match="expected a proxy as http://host:port") as caught:
        found("study.example", url.replace("//", "//user:word@"))
    assert "word" not in str(caught.value)


class Proxy:
    """Takes one CONNECT and carries it to ``port``, or refuses it."""

    def __init__(self, port: int, status: bytes) -> None:
        self.asked = b""
        self._there, self._status = port, status
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        here, _ = self._socket.accept()
        self.asked = here.recv(65536)
        here.sendall(b"HTTP/1.1 " + self._status + b"\r\n\r\n")
        if not self._status.startswith(b"200"):
            here.close()
            return
        there = socket.create_connection(("127.0.0.1", self._there))
        for source, target in ((here, there), (there, here)):
            threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)


def test_tls_goes_through_a_proxy_to_the_server(server: Server, certificates: Certificates) -> None:
    """The name is the proxy's to resolve, and the certificate must be the server's."""
    proxy = Proxy(server.port, b"200 Connection established")
    authority = certificates.authority.read_bytes()
    url = f"http://user:word@127.0.0.1:{proxy.port}"
    channel = Channel(Address("example.test", server.port, authority, url), BODY_MAX)
    server.replies = [ok(b"hello")]
    assert post(channel).body == b"hello"
    assert proxy.asked.startswith(b"CONNECT example.test:")
    assert b"Proxy-Authorization: Basic dXNlcjp3b3Jk" in proxy.asked
    assert b"dXNlcjp3b3Jk" not in b"".join(server.requests)
    channel.close()


def test_a_proxy_that_refuses_is_told(server: Server, certificates: Certificates) -> None:
    proxy = Proxy(server.port, b"407 Proxy Authentication Required")
    authority = certificates.authority.read_bytes()
    address = Address("example.test", 443, authority, f"http://127.0.0.1:{proxy.port}")
    words = rf"example.test:443: cannot be reached by proxy 127.0.0.1:{proxy.port} \(Tunnel.*407"
    with pytest.raises(AbsentError, match=words):
        post(Channel(address, BODY_MAX))


def test_no_key_is_in_the_words_of_an_address(tmp_path: Path) -> None:
    assert "secret" not in repr(Address("h", 1, b"secret")) + repr(
        proxy_of(Address("h", 1, b"", "http://u:secret@p:1"))
    )
