"""The listener: connections that say nothing, or too little, or are too many."""

import asyncio
import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from privacy.errors import DataError
from server import listener as module
from server.certificates import Certificates, issue
from server.listener import Door, Listener


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return issue(tmp_path_factory.mktemp("tls") / "tls", ["127.0.0.1"])


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture
def listener(certificates: Certificates) -> Iterator[Listener]:
    made = Listener(Door("127.0.0.1", 0, certificates), hello)
    made.start()
    yield made
    made.stop()


def connect(listener: Listener, certificates: Certificates) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates.authority)
    raw = socket.create_connection(("127.0.0.1", listener.port), 15)
    return context.wrap_socket(raw, server_hostname="127.0.0.1")


def is_closed(line: socket.socket) -> bool:
    """Whether the other end hangs up within the socket's 15 s."""
    try:
        return line.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def get(line: ssl.SSLSocket) -> bytes:
    line.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
    response = http.client.HTTPResponse(line)
    response.begin()
    return response.read()


def test_no_answer_waits_for_an_acknowledgement(
    listener: Listener, certificates: Certificates
) -> None:
    took = []
    with connect(listener, certificates) as line:
        for _ in range(9):
            began = time.perf_counter()
            assert get(line) == b"hello"
            took.append(time.perf_counter() - began)
    # A client may delay an acknowledgement by 40 ms, and Nagle's algorithm waits for it: every
    # answer took that long, head and body being two segments. The fastest of nine takes 1 ms.
    assert min(took) < 0.02


def test_it_serves_and_tells_the_date_but_not_its_name(
    listener: Listener, certificates: Certificates
) -> None:
    with connect(listener, certificates) as line:
        line.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        response = http.client.HTTPResponse(line)
        response.begin()
        assert response.read() == b"hello"
        assert response.getheader("date")
        assert response.getheader("server") is None


def test_a_connection_that_says_nothing_is_closed(
    listener: Listener, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEAD_S", 0.3)
    with connect(listener, certificates) as line:
        assert is_closed(line)


def test_a_connection_that_trickles_its_head_is_closed(
    listener: Listener, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the second head of a connection that was served once."""
    monkeypatch.setattr(module, "HEAD_S", 0.5)
    with connect(listener, certificates) as line:
        assert get(line) == b"hello"
        line.sendall(b"POST / HTTP/1.1\r\n")
        line.settimeout(0.1)
        end = time.monotonic() + 15
        while time.monotonic() < end:
            try:
                line.sendall(b"x: y\r\n")
                if line.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except OSError:
                return
        raise AssertionError("it was never closed")


def test_a_connection_that_is_used_now_and_then_stays(
    listener: Listener, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEAD_S", 0.3)
    with connect(listener, certificates) as line:
        for _ in range(3):
            assert get(line) == b"hello"
            time.sleep(0.5)


def test_a_connection_that_never_says_hello_is_closed(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_S", 0.3)
    listener = Listener(Door("127.0.0.1", 0, certificates), hello)
    listener.start()
    with socket.create_connection(("127.0.0.1", listener.port), 15) as raw:
        assert is_closed(raw)
    listener.stop()


def test_the_one_that_is_idle_longest_makes_room(
    listener: Listener, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 3)
    with contextlib.ExitStack() as stack:
        lines = []
        for _ in range(4):
            lines.append(stack.enter_context(connect(listener, certificates)))
            assert get(lines[-1]) == b"hello"
        assert is_closed(lines[0])
        assert [get(line) for line in lines[1:]] == [b"hello"] * 3


def test_a_head_that_is_too_long_is_refused(listener: Listener, certificates: Certificates) -> None:
    with connect(listener, certificates) as line:
        with contextlib.suppress(OSError):
            line.sendall(b"POST / HTTP/1.1\r\nx: " + b"y" * 4 * module.HEAD_BYTES)
        with contextlib.suppress(OSError):
            assert line.recv(100).startswith(b"HTTP/1.1 400")


def test_a_port_that_is_taken_is_told(listener: Listener, certificates: Certificates) -> None:
    with pytest.raises(DataError, match=r"expected to listen on 127.0.0.1:.*in use") as caught:
        Listener(Door("127.0.0.1", listener.port, certificates), hello)
    assert "choose another port" in caught.value.hint


def test_a_certificate_that_is_none_is_told(certificates: Certificates, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    broken = Certificates(certificates.authority, tmp_path / "empty", certificates.key)
    with pytest.raises(DataError, match="expected a certificate and"):
        Listener(Door("127.0.0.1", 0, broken), hello)


def test_a_site_that_waits_when_the_door_is_closed_is_no_news(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "STOP_S", 0)
    asked = threading.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await asyncio.Event().wait()

    listener = Listener(Door("127.0.0.1", 0, certificates), wait)
    listener.start()
    with connect(listener, certificates) as line:
        line.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        assert asked.wait(10)
        listener.stop()
    assert caplog.text == ""


def test_a_listener_that_never_started_gives_its_port_back(certificates: Certificates) -> None:
    listener = Listener(Door("127.0.0.1", 0, certificates), hello)
    port = listener.port
    listener.stop()
    with socket.create_server(("127.0.0.1", port)) as taken:
        assert taken.getsockname()[1] == port
