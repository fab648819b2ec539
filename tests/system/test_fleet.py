"""Sites and coordinator over real TLS, real sockets and real SQLite on this machine."""

import contextlib
import http.client
import json
import logging
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Message,
    Metadata,
    PullObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import ConfigRecord, ConfigRecordValue, RecordDict
from starlette.types import Receive, Scope, Send

import client.channel
import client.fleet
from client.app import make_app
from client.channel import Address
from client.fleet import BEAT, PULL, PUSH, Fleet, NodeKey, create_key
from privacy.errors import PrivacyError, ProtocolError
from server.certificates import Certificates, issue
from server.gateway import serve
from server.hub import Hub
from server.listener import Door, Listener
from tests.system.bent import begin_planted
from tests.system.cable import Cable

ROOT = Path(__file__).resolve().parents[2]
SITES = ("ash", "elm", "fir")
PAYLOAD_BYTES = 1 << 20
KINDS = ("echo", "refuse", "slow", "large", "last")
LAST = threading.Event()  # a site that is asked for the last time sets its own end
S = 20.0  # a deadline that a healthy fleet never needs, on a machine that does other work too


def answer(kind: str, node: int, payload: bytes) -> bytes:
    if kind == "refuse":
        raise {1: RuntimeError, 3: PrivacyError, 4: ProtocolError}[int(payload)]("a secret word")
    if kind == "slow":
        time.sleep(float(payload))
    if kind == "large":
        return bytes(PAYLOAD_BYTES + 100_000)
    if kind == "last":
        LAST.set()
    return payload[::-1]


@dataclass
class Site:
    """A site in a thread, and its key for attacks."""

    fleet: Fleet
    key: NodeKey
    node: int
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def start(self) -> None:
        app = make_app(KINDS, answer, log=lambda bug: None)
        self.thread = threading.Thread(target=self.fleet.serve, args=(app, KINDS, self.stop))
        self.thread.start()

    def end(self) -> None:
        self.stop.set()
        if self.thread is not None:
            self.thread.join(30)
            assert not self.thread.is_alive()


@dataclass
class House:
    """A coordinator and where it listens."""

    hub: Hub
    port: int
    certificates: Certificates
    folder: Path
    nodes: dict[str, int] = field(default_factory=dict)

    def address(self, **changes: object) -> Address:
        here = Address("127.0.0.1", self.port, self.certificates.authority.read_bytes())
        return replace(here, **changes)  # type: ignore[arg-type]

    def site(self, name: str) -> Site:
        """A site that is admitted and does not run yet."""
        key = create_key(self.folder / name / "node.key")
        self.nodes[name] = self.hub.admit(key.public)
        fleet = Fleet(self.address(), key, self.nodes[name], PAYLOAD_BYTES, self.folder / name)
        return Site(fleet, key, self.nodes[name])

    def exchange(
        self, kind: str, outgoing: Mapping[str, bytes], deadline_s: float = S
    ) -> tuple[dict[str, bytes], list[tuple[str, str, int]]]:
        """The answers, and what was refused."""
        refused: list[tuple[str, str, int]] = []
        run = self.hub.exchange(self.nodes, lambda *what: refused.append(what))
        return dict(run(kind, outgoing, deadline_s)), refused


@contextlib.contextmanager
def coordinator(folder: Path, database: Path | None) -> Iterator[House]:
    folder.mkdir(mode=0o700, exist_ok=True)
    hub = Hub(database, folder / "flower")
    certificates = issue(folder / "tls", ["127.0.0.1", "localhost"])
    with serve(hub, Door("127.0.0.1", 0, certificates), PAYLOAD_BYTES, {"/enrol": _enrol}) as port:
        yield House(hub, port, certificates, folder)
    hub.close()


async def _enrol(scope: Scope, receive: Receive, send: Send) -> None:
    """Stands for what a hospital enrols with: it tells how many bytes it got."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A coordinator on SQLite; no site is admitted yet."""
    folder = tmp_path_factory.mktemp("house")
    with coordinator(folder, folder / "state.db") as made:
        yield made


@pytest.fixture(scope="module")
def sites(house: House) -> Iterator[dict[str, Site]]:
    """Three sites that work."""
    made = {name: house.site(name) for name in SITES}
    for site in made.values():
        site.start()
    yield made
    for site in made.values():
        site.end()


@pytest.fixture
def idle(house: House) -> Iterator[Callable[[], Site]]:
    """Makes sites that are admitted and do nothing, for tests that speak in their name."""
    made: list[tuple[str, Site]] = []

    def make() -> Site:
        name = f"idle{time.monotonic_ns()}"
        made.append((name, house.site(name)))
        return made[-1][1]

    yield make
    for name, site in made:
        site.end()
        house.hub.expel(site.node)
        del house.nodes[name]


def name_of(house: House, site: Site) -> str:
    return next(name for name, node in house.nodes.items() if node == site.node)


# --- speaking by hand ----------------------------------------------------------------------------


def trusting(house: House) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(house.certificates.authority)
    return context


def request(
    house: House,
    path: str,
    body: object = b"",
    headers: Mapping[str, str] | None = None,
    method: str = "POST",
) -> tuple[int, bytes]:
    """One request of somebody who has the CA's certificate."""
    line = http.client.HTTPSConnection("127.0.0.1", house.port, context=trusting(house), timeout=30)
    try:
        line.putrequest(method, path)
        line.putheader("content-type", "application/protobuf")
        for name, value in (headers or {}).items():
            line.putheader(name, value)
        if isinstance(body, bytes):
            line.putheader("content-length", str(len(body)))
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # it refused before the body's end
            line.endheaders(body, encode_chunked=not isinstance(body, bytes))  # type: ignore[arg-type]
        response = line.getresponse()
        return response.status, response.read()
    finally:
        line.close()


def pull(node: int) -> bytes:
    return PullMessagesRequest(node=Node(node_id=node)).SerializeToString()


def push(node: int, source: int, question: str, payload: bytes = b"forged") -> bytes:
    value = ConfigRecord.Item(key="payload", value=ConfigRecordValue(bytes=payload))
    record = RecordDict.Item(key="fedward", config_record=ConfigRecord(items=[value]))
    message = Message(
        metadata=Metadata(src_node_id=source, dst_node_id=1, reply_to_message_id=question),
        content=RecordDict(items=[record]),
    )
    return PushMessagesRequest(node=Node(node_id=node), messages_list=[message]).SerializeToString()


def question_of(body: bytes) -> str:
    found = PullMessagesResponse.FromString(body).messages_list
    return found[0].metadata.message_id if found else ""


@contextlib.contextmanager
def asking(
    house: House, site: Site, payload: bytes = b"abc", deadline_s: float = S
) -> Iterator[dict[str, bytes]]:
    """An exchange with one site runs in the background; its answer is there at the end."""
    answers: dict[str, bytes] = {}
    name = name_of(house, site)

    def run() -> None:
        answers.update(house.exchange("echo", {name: payload}, deadline_s)[0])

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + S
    while not house.hub.pending(site.node):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield answers
    thread.join(deadline_s + 5)


# --- exchanges -----------------------------------------------------------------------------------


def test_three_sites_answer_what_each_was_asked(house: House, sites: dict[str, Site]) -> None:
    outgoing = {name: f"to {name}".encode() for name in SITES}
    answers, refused = house.exchange("echo", outgoing)
    assert answers == {name: payload[::-1] for name, payload in outgoing.items()}
    assert refused == []


def test_the_largest_payload_of_the_plan_comes_and_goes(
    house: House, sites: dict[str, Site]
) -> None:
    payload = os.urandom(PAYLOAD_BYTES)
    answers, _ = house.exchange("echo", dict.fromkeys(SITES, payload))
    assert answers == dict.fromkeys(SITES, payload[::-1])


def test_answers_come_as_they_arrive_and_late_ones_are_dropped(
    house: House, sites: dict[str, Site]
) -> None:
    waits = {"ash": b"0", "elm": b"3", "fir": b"0"}
    started = time.monotonic()
    exchange = house.hub.exchange(house.nodes)
    got = [site for site, _ in exchange("slow", waits, 1.5)]
    assert sorted(got) == ["ash", "fir"]
    assert time.monotonic() - started < 3.0  # it did not wait for elm
    # The late answer is not taken for the next question's.
    assert house.exchange("echo", {"elm": b"xyz"})[0] == {"elm": b"zyx"}


def test_a_refusal_arrives_as_its_code_alone(house: House, sites: dict[str, Site]) -> None:
    answers, refused = house.exchange("refuse", {"ash": b"3", "elm": b"4", "fir": b"1"})
    assert answers == {}
    assert sorted(refused) == [("ash", "refuse", 3), ("elm", "refuse", 4), ("fir", "refuse", 1)]


def test_a_kind_that_is_not_ours_is_answered_with_an_error(
    house: House, sites: dict[str, Site]
) -> None:
    assert house.exchange("steal", {"ash": b""}) == ({}, [("ash", "steal", 2)])


def test_a_site_that_was_never_there_gets_its_message_when_it_comes(
    house: House, idle: Callable[[], Site]
) -> None:
    site = idle()
    with asking(house, site) as answers:
        site.start()
    assert list(answers.values()) == [b"cba"]


def test_an_answer_that_the_plan_does_not_allow_is_told_as_a_fault(
    house: House, sites: dict[str, Site]
) -> None:
    assert house.exchange("large", {"ash": b""}) == ({}, [("ash", "large", 1)])


def test_an_app_that_ends_its_site_is_heard_first(house: House, idle: Callable[[], Site]) -> None:
    site = idle()
    LAST.clear()
    site.stop = LAST
    site.start()
    name = name_of(house, site)
    assert house.exchange("last", {name: b"abc"})[0] == {name: b"cba"}
    site.end()


def test_sites_are_online_in_flowers_state_and_seen_here(
    house: House, sites: dict[str, Site]
) -> None:
    house.exchange("echo", dict.fromkeys(SITES, b"abc"))
    run = house.hub._link._run
    assert run is not None
    nodes = {site.node for site in sites.values()}
    assert nodes <= house.hub._link._state.get_nodes(run[0])
    seen = house.hub.seen()
    assert all(0 <= time.time() - seen[node] < 60 for node in nodes)


def test_no_payload_is_in_the_database(house: House, sites: dict[str, Site]) -> None:
    mark = b"the mark that nobody may find " * 40
    assert house.exchange("echo", dict.fromkeys(SITES, mark))[0]
    for file in house.folder.glob("state.db*"):
        content = file.read_bytes()
        assert mark[:30] not in content
        assert mark[::-1][:30] not in content
        assert file.stat().st_mode & 0o077 == 0


def test_flower_keeps_nothing_of_an_exchange_that_is_over(
    house: House, sites: dict[str, Site]
) -> None:
    house.exchange("echo", dict.fromkeys(SITES, b"abc"))
    state = house.hub._link._state
    assert (state.num_message_ins(), state.num_message_res(), len(state.object_store)) == (0, 0, 0)


# --- who is let in -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-runs",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/register-node",
        "/v1/fleet/activate-node",
        "/v1/fleet/get-fab",
        "/v1/fleet/get-run",
        "/v1/fleet/pull-object",
        "/v1/fleet/push-object",
        "/v1/fleet/confirm-message-received",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull%2dmessages",
        "/v1/fleet/pull-messages?x=1",
        "//v1/fleet/pull-messages",
        "/docs",
        "/openapi.json",
        "/health",
        "/",
    ],
)
def test_no_other_path_is_answered(house: House, path: str) -> None:
    assert request(house, path)[0] == 404


def test_no_other_method_is_answered(house: House) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS"):
        assert request(house, PULL, method=method)[0] == 404


@pytest.mark.parametrize("path", [PULL, PUSH, BEAT])
def test_an_outsider_with_the_ca_certificate_is_refused(
    house: House, sites: dict[str, Site], tmp_path: Path, path: str
) -> None:
    stranger = create_key(tmp_path / "stranger.key")
    body = pull(sites["ash"].node)
    assert request(house, path, body)[0] == 401
    assert request(house, path, body, stranger.headers())[0] == 401
    # A site's public key is no secret: without the signature it is worth nothing.
    stolen = {
        **stranger.headers(),
        "flwr-public-key": sites["ash"].key.headers()["flwr-public-key"],
    }
    assert request(house, path, body, stolen)[0] == 401


def test_a_server_under_another_ca_is_refused(
    house: House, sites: dict[str, Site], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = issue(tmp_path / "other", ["127.0.0.1"]).authority.read_bytes()
    fleet = Fleet(
        house.address(authority=other), sites["ash"].key, sites["ash"].node, 1024, tmp_path
    )
    assert one_line(fleet, caplog) == (
        f"127.0.0.1:{house.port}: the server's certificate is not signed by the pinned authority "
        "(hint: a proxy that opens TLS must leave this host alone; or the server was replaced); "
        "trying again"
    )


def test_a_server_of_another_name_is_refused(
    house: House, sites: dict[str, Site], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet(
        house.address(host="127.1", proxy=""), sites["ash"].key, sites["ash"].node, 1024, tmp_path
    )
    assert "certificate is for another name" in one_line(fleet, caplog)


def test_a_revoked_site_is_refused_at_once(
    house: House, idle: Callable[[], Site], caplog: pytest.LogCaptureFixture
) -> None:
    site = house.site(name := f"leaver{time.monotonic_ns()}")
    assert request(house, PULL, pull(site.node), site.key.headers())[0] == 200
    house.hub.expel(site.node)
    assert request(house, PULL, pull(site.node), site.key.headers())[0] == 401
    assert "does not know this site's key, or has revoked it" in one_line(site.fleet, caplog)
    assert house.exchange("echo", {name: b"abc"}) == ({}, [])  # nobody waits for it
    with pytest.raises(PrivacyError, match="revoked"):
        house.hub.admit(site.key.public)
    del house.nodes[name]


def one_line(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> str:
    """What a site logs that cannot connect: one line, however often it tries."""
    stop = threading.Event()
    app = make_app(KINDS, answer)
    thread = threading.Thread(target=fleet.serve, args=(app, KINDS, stop))
    with caplog.at_level(logging.INFO, "fedward.site"):
        caplog.clear()
        thread.start()
        time.sleep(1.5)  # two or three attempts
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    # Other sites of this process log too, and may live by the clock that a test has moved.
    lines = [r.message for r in caplog.records if r.thread == thread.ident]
    assert len(lines) == 1
    return lines[0]


# --- messages are bound to their node ------------------------------------------------------------


def test_a_node_cannot_pull_or_beat_in_anothers_name(
    house: House, idle: Callable[[], Site]
) -> None:
    victim, thief = idle(), idle()
    with asking(house, victim) as answers:
        assert request(house, PULL, pull(victim.node), thief.key.headers())[0] == 403
        assert request(house, BEAT, pull(victim.node), thief.key.headers())[0] == 403
        assert request(house, PULL, pull(thief.node), thief.key.headers()) == (200, b"")
        victim.start()
    assert list(answers.values()) == [b"cba"]


def test_a_node_cannot_confirm_or_fetch_anothers_message(
    house: House, idle: Callable[[], Site]
) -> None:
    victim, thief = idle(), idle()
    with asking(house, victim) as answers:
        name = question_of(request(house, PULL, pull(victim.node), victim.key.headers())[1])
        run = house.hub._link._run
        assert run is not None
        for route, body in {
            "confirm-message-received": ConfirmMessageReceivedRequest(
                node=Node(node_id=thief.node), run_id=run[0], message_object_id=name
            ),
            "pull-object": PullObjectRequest(
                node=Node(node_id=thief.node), run_id=run[0], object_id=name
            ),
        }.items():
            status, _ = request(
                house, f"/v1/fleet/{route}", body.SerializeToString(), thief.key.headers()
            )
            assert status == 404
        victim.start()
    assert list(answers.values()) == [b"cba"]


def test_a_node_cannot_answer_anothers_message(house: House, idle: Callable[[], Site]) -> None:
    victim, thief = idle(), idle()
    with asking(house, victim) as answers:
        name = question_of(request(house, PULL, pull(victim.node), victim.key.headers())[1])
        for node, source in [
            (thief.node, thief.node),
            (thief.node, victim.node),
            (victim.node, thief.node),
            (victim.node, victim.node),
        ]:
            forged = push(node, source, name)
            assert request(house, PUSH, forged, thief.key.headers())[0] == 403
        victim.start()
    assert list(answers.values()) == [b"cba"]


def test_the_stock_app_would_have_taken_the_forged_answer(tmp_path: Path) -> None:
    """Why the gateway binds messages: without it, B's key answers for A. Else drop the check."""
    hub = Hub(None, tmp_path)
    keys = [create_key(tmp_path / name / "node.key") for name in "ab"]
    victim, thief = (hub.admit(key.public) for key in keys)
    certificates = issue(tmp_path / "tls", ["127.0.0.1"])
    listener = Listener(Door("127.0.0.1", 0, certificates), hub.app)
    listener.start()
    stock = House(hub, listener.port, certificates, tmp_path)
    sent = hub._link.send("echo", [victim], S)
    from server.superlink import write_push

    forged = PushMessagesRequest.FromString(write_push(sent[0]))
    forged.node.node_id = thief
    body = forged.SerializeToString()
    assert request(stock, PUSH, body, keys[1].headers())[0] == 200
    assert hub._link._state.num_message_res() == 1
    listener.stop()
    hub.close()


def test_an_answer_to_nothing_is_refused(house: House, idle: Callable[[], Site]) -> None:
    site = idle()
    stale = push(site.node, site.node, "0" * 64)
    assert request(house, PUSH, stale, site.key.headers())[0] == 410


def test_a_replayed_request_is_refused(house: House, idle: Callable[[], Site]) -> None:
    site = idle()
    headers = site.key.headers()
    assert request(house, PULL, pull(site.node), headers)[0] == 200
    assert request(house, PULL, pull(site.node), headers)[0] == 401
    assert request(house, PUSH, push(site.node, site.node, "0" * 64), headers)[0] == 401


def test_an_answer_that_is_sent_twice_counts_once(house: House, idle: Callable[[], Site]) -> None:
    """Harmless, as after a restart of the coordinator, which forgets what it saw."""
    site = idle()
    with asking(house, site) as answers:
        name = question_of(request(house, PULL, pull(site.node), site.key.headers())[1])
        body = push(site.node, site.node, name, b"first")
        assert request(house, PUSH, body, site.key.headers())[0] == 200
        other = push(site.node, site.node, name, b"second")
        assert request(house, PUSH, other, site.key.headers())[0] in (200, 410)
    assert list(answers.values()) == [b"first"]


def test_a_message_is_given_again_until_it_is_answered(
    house: House, idle: Callable[[], Site]
) -> None:
    site = idle()
    with asking(house, site) as answers:
        first = request(house, PULL, pull(site.node), site.key.headers())
        assert request(house, PULL, pull(site.node), site.key.headers()) == first
        site.start()
    assert list(answers.values()) == [b"cba"]


# --- sizes and slowness --------------------------------------------------------------------------


def test_an_extra_app_gets_small_whole_bodies(house: House) -> None:
    assert request(house, "/enrol", b"x" * 5000) == (200, b"5000")
    assert request(house, "/enrol", b"x" * 65537)[0] == 413
    assert request(house, "/enrol", method="GET")[0] == 404


def test_a_hundred_idle_connections_do_not_stop_the_service(
    house: House, sites: dict[str, Site]
) -> None:
    context = trusting(house)
    with contextlib.ExitStack() as stack:
        for number in range(100):
            raw = stack.enter_context(socket.create_connection(("127.0.0.1", house.port), 30))
            if number % 3:  # a third says nothing at all, a third says hello, a third half a head
                tls = context.wrap_socket(raw, server_hostname="127.0.0.1")
                stack.callback(tls.close)
                if number % 3 == 2:
                    tls.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n")
        answers, _ = house.exchange("echo", dict.fromkeys(SITES, b"abc"))
        assert answers == dict.fromkeys(SITES, b"cba")


# --- processes that are killed -------------------------------------------------------------------


class Process:
    """A script beside this file, and the lines it writes."""

    def __init__(self, script: str, *arguments: object) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, Path(__file__).with_name(script), *map(str, arguments)],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def line(self) -> str:
        """The next line; what hangs is ended by the test's own time limit."""
        assert self.popen.stdout is not None
        watchdog = threading.Timer(60, self.popen.kill)
        watchdog.start()
        line = self.popen.stdout.readline()
        watchdog.cancel()
        assert line, "the process ended"
        return line.strip()

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait(30)

    def peak_mb(self) -> float:
        """The most memory it ever had."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


@contextlib.contextmanager
def process(script: str, *arguments: object) -> Iterator[Process]:
    made = Process(script, *arguments)
    try:
        yield made
    finally:
        if made.popen.poll() is None:
            made.kill()
        if made.popen.stdout is not None:
            made.popen.stdout.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def test_a_killed_coordinator_comes_back_and_large_bodies_cost_it_nothing(tmp_path: Path) -> None:
    """Its sites answer again by themselves. One test for both: a coordinator takes seconds."""
    port = free_port()
    key = create_key(tmp_path / "ash" / "node.key")
    (tmp_path / "ash.pub").write_bytes(key.public)
    with process("coordinator.py", tmp_path, port) as first:
        node = json.loads(first.line())["nodes"]["ash"]
        authority = tmp_path / "tls" / "authority.pem"
        fleet = Fleet(
            Address("127.0.0.1", port, authority.read_bytes()), key, node, 1 << 20, tmp_path
        )
        site = Site(fleet, key, node)
        site.start()
        try:
            assert json.loads(first.line()) == {"number": 0, "right": ["ash"]}
            first.kill()
            with process("coordinator.py", tmp_path, port) as second:
                assert json.loads(second.line())["nodes"] == {"ash": node}
                assert json.loads(second.line()) == {"number": 0, "right": ["ash"]}
                certificates = Certificates(authority, authority, authority)
                _refuse_a_gigabyte(House(None, port, certificates, tmp_path), key, second)  # type: ignore[arg-type]
                assert json.loads(second.line())["right"] == ["ash"]
        finally:
            site.end()


def _refuse_a_gigabyte(house: House, key: NodeKey, coordinator: Process) -> None:
    """By its length, and in pieces without one; in all of it the memory grows by < 32 MB.

    The bound is many times the 1 MB that a payload may have, and a thirtieth of what was sent.
    """
    before = coordinator.peak_mb()
    piece = b"x" * (1 << 20)
    headers = {"content-length": str(1 << 30)}
    for signed in ({}, key.headers()):
        assert _pour(house, {**headers, **signed}, piece, chunked=False) == 413
    assert _pour(house, {"transfer-encoding": "chunked"}, piece, chunked=True) == 401
    chunked = {"transfer-encoding": "chunked", **key.headers()}
    assert _pour(house, chunked, piece, chunked=True) == 413
    assert coordinator.peak_mb() - before < 32


def _pour(house: House, headers: Mapping[str, str], piece: bytes, chunked: bool) -> int:
    """Send a gigabyte, or as much of it as is taken; return the status."""
    head = f"POST {PUSH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/protobuf\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with (
        socket.create_connection(("127.0.0.1", house.port), 30) as raw,
        trusting(house).wrap_socket(raw, server_hostname="127.0.0.1") as line,
    ):
        line.sendall(head.encode() + b"\r\n")
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # it hung up on us
            for _ in range(1 << 10):
                line.sendall(b"100000\r\n" + piece + b"\r\n" if chunked else piece)
        return int(line.recv(64).split()[1])


def test_a_site_that_was_killed_at_work_answers_when_it_is_back(
    house: House, idle: Callable[[], Site]
) -> None:
    site = idle()
    folder = house.folder / name_of(house, site)
    shutil.copy(house.certificates.authority, folder / "authority.pem")
    with (
        contextlib.ExitStack() as until_answered,
        asking(house, site, b"1", 90.0) as answers,  # two interpreters start in this time
    ):
        with process("site.py", folder, house.port, site.node, 60) as first:
            assert (first.line(), first.line()) == ("ready", "echo")
            first.kill()
        second = until_answered.enter_context(process("site.py", folder, house.port, site.node, 0))
        assert (second.line(), second.line()) == ("ready", "echo")
    assert list(answers.values()) == [b"1"]


# --- networks, certificates and clocks that fail -------------------------------------------------


def test_a_network_that_is_cut_while_a_site_works_costs_no_answer(
    house: House, idle: Callable[[], Site]
) -> None:
    site = idle()
    cable = Cable(house.port)
    site.fleet = Fleet(
        house.address(port=cable.port), site.key, site.node, PAYLOAD_BYTES, house.folder
    )
    site.start()
    answers: dict[str, bytes] = {}
    name = name_of(house, site)
    thread = threading.Thread(
        target=lambda: answers.update(house.exchange("slow", {name: b"1.0"})[0])
    )
    thread.start()
    time.sleep(0.7)  # the site works on it
    cable.cut()
    time.sleep(1.5)  # its answer was ready, and could not be sent
    assert answers == {}
    cable.mend()
    thread.join(S + 5)
    assert answers == {name: b"0.1"}
    site.end()
    cable.close()


def test_an_expired_certificate_is_told_and_a_new_one_needs_nothing_of_the_site(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(None, tmp_path)
    long_ago = datetime.now(UTC) - timedelta(days=500)
    old = issue(tmp_path / "tls", ["127.0.0.1"], long_ago)
    port = free_port()
    key = create_key(tmp_path / "ash" / "node.key")
    address = Address("127.0.0.1", port, old.authority.read_bytes())
    node = hub.admit(key.public)
    site = Site(Fleet(address, key, node, 1024, tmp_path), key, node)
    with caplog.at_level(logging.INFO, "fedward.site"):
        with serve(hub, Door("127.0.0.1", port, old), 1024):
            site.start()
            time.sleep(1.0)
        renewed = issue(tmp_path / "tls", ["127.0.0.1"])
        with serve(hub, Door("127.0.0.1", port, renewed), 1024):
            answers = dict(hub.exchange({"ash": node})("echo", {"ash": b"abc"}, S))
            site.end()
    assert answers == {"ash": b"cba"}
    lines = [r.message for r in caplog.records if r.name == "fedward.site"]
    assert lines[0].startswith(f"127.0.0.1:{port}: the server's certificate has expired (hint:")
    assert lines[-1] == f"connected to 127.0.0.1:{port}"
    hub.close()


@pytest.mark.parametrize(("ahead_s", "how"), [(600.0, "fast"), (-600.0, "slow")])
def test_a_clock_that_is_off_is_told_in_one_line(
    house: House,
    idle: Callable[[], Site],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    ahead_s: float,
    how: str,
) -> None:
    site = idle()
    true = time.time
    monkeypatch.setattr(
        client.fleet, "now", lambda: datetime.fromtimestamp(true() + ahead_s, tz=UTC)
    )
    monkeypatch.setattr(client.channel, "clock", lambda: true() + ahead_s)
    line = one_line(site.fleet, caplog)
    told = re.search(r"this machine's clock is (\d+) s (fast|slow); the server refuses", line)
    assert told
    # The Date header counts whole seconds, is made once a second, and the machine may be busy.
    assert (abs(int(told[1]) - 600) <= 5, told[2]) == (True, how)


# --- no code from outside ------------------------------------------------------------------------


def test_a_bundle_with_planted_code_is_never_fetched_nor_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is hostile: Flower's run has a bundle. The gateway keeps what sites ask for.

    Processes that meet such a run are in test_deployment_attacks.
    """
    marker = tmp_path / "it-ran"
    hub = Hub(None, tmp_path)
    paths: set[str] = set()
    monkeypatch.setattr(hub._link, "_begin", lambda: begin_planted(hub._link._state, str(marker)))

    from server.gateway import Gateway

    inner = Gateway(hub, 1024)

    async def recording(scope: Scope, receive: Receive, send: Send) -> None:
        paths.add(scope["path"])
        await inner(scope, receive, send)

    certificates = issue(tmp_path / "tls", ["127.0.0.1"])
    listener = Listener(Door("127.0.0.1", 0, certificates), recording)
    listener.start()
    house = House(hub, listener.port, certificates, tmp_path)
    site = house.site("ash")
    site.start()
    before = set(sys.modules)
    answers, _ = house.exchange("echo", {"ash": b"abc"})
    site.end()
    listener.stop()
    hub.close()
    assert answers == {"ash": b"cba"}
    assert paths == {PULL, PUSH, BEAT}
    assert not marker.exists()
    assert not [name for name in sys.modules.keys() - before if name.startswith("client")]
    assert sorted(path.name for path in (tmp_path / "ash").iterdir()) == ["node.key"]
