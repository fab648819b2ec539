"""A site against a server that lies, over a line of lists: what is answered, retried, given up."""

import logging
import stat
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.recorddict_pb2 import ArrayRecord, ConfigRecord, ConfigRecordValue, RecordDict

from client import fleet as module
from client.app import make_app
from client.channel import Address, Channel, Reply
from client.fleet import BEAT, PULL, PUSH, Fleet, NodeKey, create_key, load_key
from privacy.errors import AbsentError, DataError
from privacy.identity import create as create_identity
from server.certificates import issue

NODE = 7
LOST = AbsentError("127.0.0.1:1: cannot be reached (a test)")
Answer = Reply | AbsentError


@dataclass
class Line(Channel):
    """Stands for a channel: takes its replies from lists, and stops the site at their end."""

    stop: threading.Event
    pulls: list[Answer]
    pushes: list[Answer] = field(default_factory=list)
    pushed: list[PushMessagesRequest] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)

    def post(
        self, path: str, headers: Callable[[], Mapping[str, str]], body: bytes, limit_s: float
    ) -> Reply:
        found: Answer
        if path == BEAT:
            return Reply(200, b"", None)
        if path == PULL:
            assert PullMessagesRequest.FromString(body).node.node_id == NODE
            self.waits.append(headers()["fedward-wait"])
            found = self.pulls.pop(0)
            if not self.pulls and not self.pushes:
                self.stop.set()
        else:
            assert path == PUSH
            self.pushed.append(PushMessagesRequest.FromString(body))
            found = self.pushes.pop(0)
        if isinstance(found, AbsentError):
            raise found
        return found

    def end(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> NodeKey:
    return create_key(tmp_path_factory.mktemp("key") / "key" / "node.key")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return issue(tmp_path_factory.mktemp("tls") / "tls", ["127.0.0.1"]).authority.read_bytes()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_FIRST_S", 0.001)
    monkeypatch.setattr(module, "WAIT_MOST_S", 0.002)
    monkeypatch.setenv("FLWR_HOME", "restored")


Serve = Callable[..., Line]


@pytest.fixture
def serve(key: NodeKey, authority: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Let a site work on the given replies; return what it did."""

    def run(
        pulls: list[Answer],
        pushes: list[Answer] | None = None,
        answer: Callable[[str, int, bytes], bytes] = lambda kind, node, payload: payload[::-1],
        stop: threading.Event | None = None,
        gone: Callable[[], bool] = lambda: False,
    ) -> Line:
        stop = stop or threading.Event()
        line = Line(stop, pulls, pushes or [])
        fleet = Fleet(Address("127.0.0.1", 1, authority), key, NODE, 1000, tmp_path)
        fleet._channel = fleet._pulse = line
        monkeypatch.setattr(module, "Channel", lambda *_: line)  # what is sent last has its own
        fleet.serve(make_app(["echo"], answer), ["echo"], stop, gone)
        return line

    return run


def content(payload: bytes = b"abc", record: str = "fedward", name: str = "payload") -> RecordDict:
    value = ConfigRecord.Item(key=name, value=ConfigRecordValue(bytes=payload))
    return RecordDict(
        items=[RecordDict.Item(key=record, config_record=ConfigRecord(items=[value]))]
    )


def message(
    kind: str = "query.echo", held: RecordDict | None = None, node: int = NODE, ttl: float = 60.0
) -> Reply:
    metadata = Metadata(
        run_id=1, message_id="q", src_node_id=1, dst_node_id=node, message_type=kind, ttl=ttl,
        created_at=1.8e9,
    )  # fmt: skip
    asked = Message(metadata=metadata, content=held if held is not None else content())
    return Reply(200, PullMessagesResponse(messages_list=[asked]).SerializeToString(), 0.0)


NOTHING = Reply(200, b"", 0.0)
TAKEN = Reply(200, b"", 0.0)


def answers(line: Line) -> list[bytes | int]:
    """What was pushed: payloads, and codes of refusals."""
    told: list[bytes | int] = []
    for request in line.pushed:
        (one,) = request.messages_list
        assert one.metadata.reply_to_message_id == "q"
        assert {request.node.node_id, one.metadata.src_node_id} == {NODE}
        if one.HasField("error"):
            assert one.error.reason == "refused"
            told.append(one.error.code)
        else:
            told.append(one.content.items[0].config_record.items[0].value.bytes)
    return told


def test_a_message_is_answered(serve: Serve) -> None:
    assert answers(serve([message(), NOTHING], [TAKEN])) == [b"cba"]


def test_the_first_pull_and_each_after_trouble_do_not_wait(serve: Serve) -> None:
    line = serve([NOTHING, NOTHING, LOST, NOTHING, message(), NOTHING], [TAKEN])
    assert line.waits == ["0", "20", "20", "0", "20", "20"]


@pytest.mark.parametrize(
    ("kind", "held"),
    [
        ("query.steal", content()),
        ("train", content()),
        ("evaluate.echo", content()),
        ("query", content()),
        ("", content()),
        ("query.echo", RecordDict()),
        ("query.echo", content(record="other")),
        ("query.echo", content(name="other")),
        ("query.echo", RecordDict(items=[*content().items, *content(record="more").items])),
        (
            "query.echo",
            RecordDict(items=[RecordDict.Item(key="fedward", array_record=ArrayRecord())]),
        ),
        (
            "query.echo",
            RecordDict(
                items=[
                    RecordDict.Item(
                        key="fedward",
                        config_record=ConfigRecord(
                            items=[
                                ConfigRecord.Item(
                                    key="payload", value=ConfigRecordValue(string="x")
                                )
                            ]
                        ),
                    )
                ]
            ),
        ),
    ],
)
def test_what_is_not_ours_is_answered_with_an_error(
    serve: Serve, kind: str, held: RecordDict
) -> None:
    def never(kind: str, node: int, payload: bytes) -> bytes:
        raise AssertionError("the site was asked")

    assert answers(serve([message(kind, held), NOTHING], [TAKEN], never)) == [2]


@pytest.mark.parametrize("ttl", [float("nan"), float("inf"), -1.0, 0.0, 1e300])
def test_a_strange_lifetime_does_no_harm(serve: Serve, ttl: float) -> None:
    assert len(answers(serve([message(ttl=ttl), NOTHING], [TAKEN]))) == 1


def test_a_pull_that_waits_is_cut_when_the_site_is_told_to_stop(
    key: NodeKey, authority: bytes, tmp_path: Path
) -> None:
    cut = threading.Event()

    class Waiting(Line):
        def post(self, path: str, *rest: object) -> Reply:  # type: ignore[override]
            if path == PULL:
                self.stop.set()
                assert cut.wait(30)
                raise LOST
            return NOTHING

        def end(self) -> None:
            cut.set()

    stop = threading.Event()
    fleet = Fleet(Address("127.0.0.1", 1, authority), key, NODE, 1000, tmp_path)
    fleet._channel, fleet._pulse = Waiting(stop, []), Line(stop, [])
    fleet.serve(make_app(["echo"], lambda kind, node, payload: payload), ["echo"], stop)
    assert cut.is_set()


def test_a_fault_of_the_app_travels_as_a_number_alone(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(kind: str, node: int, payload: bytes) -> bytes:
        raise RuntimeError("a patient's name")

    with caplog.at_level(logging.INFO, "fedward.site"):
        assert answers(serve([message(), NOTHING], [TAKEN], broken)) == [1]
    assert "the answer failed by a fault of the program: RuntimeError" in caplog.text
    assert "patient" not in caplog.text


def test_an_answer_is_sent_until_it_is_taken(serve: Serve) -> None:
    trouble: list[Answer] = [LOST, Reply(503, b"", 0.0), Reply(429, b"", 0.0), Reply(401, b"", 0.0)]
    line = serve([message(), NOTHING], [*trouble, TAKEN])
    assert answers(line) == [b"cba"] * 5


def test_an_answer_that_is_too_late_is_dropped(serve: Serve) -> None:
    assert answers(serve([message(), NOTHING], [Reply(410, b"", 0.0)])) == [b"cba"]


def test_an_answer_that_nobody_can_wait_for_any_more_is_given_up(serve: Serve) -> None:
    line = serve([message(ttl=1e-9), NOTHING], [LOST])
    assert answers(line) == [b"cba"]


def test_an_answer_that_is_ready_when_the_site_is_stopped_is_sent(serve: Serve) -> None:
    """As the receipt of a study's end."""
    stop = threading.Event()

    def last(kind: str, node: int, payload: bytes) -> bytes:
        stop.set()
        return payload

    assert answers(serve([message()], [TAKEN], last, stop)) == [b"abc"]


@pytest.mark.parametrize("stopped", [True, False])
def test_an_answer_that_is_ready_when_the_site_has_left_is_not_sent(
    serve: Serve, stopped: bool
) -> None:
    stop, left = threading.Event(), threading.Event()

    def leaving(kind: str, node: int, payload: bytes) -> bytes:
        left.set()
        if stopped:
            stop.set()
        return payload

    assert answers(serve([message(), NOTHING], [], leaving, stop, left.is_set)) == []


def test_an_answer_that_was_not_taken_yet_is_not_sent_after_the_site_has_left(
    serve: Serve,
) -> None:
    seen = iter([False, False, True])
    line = serve([message(), NOTHING], [LOST, LOST], gone=lambda: next(seen, True))
    assert answers(line) == [b"cba"] * 2


@pytest.mark.parametrize("status", [400, 403, 413])
def test_an_answer_that_is_never_taken_is_told_as_a_fault(serve: Serve, status: int) -> None:
    """Else the server would ask the same again, and the site would work again, without end."""
    line = serve([message(), NOTHING], [Reply(status, b"", 0.0), TAKEN])
    assert answers(line) == [b"cba", 1]


def told(serve: Serve, caplog: pytest.LogCaptureFixture, *pulls: Answer) -> list[str]:
    with caplog.at_level(logging.INFO, "fedward.site"):
        serve([*pulls, NOTHING])
    return [record.message for record in caplog.records]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(200, b"\xff\xff", 0.0), "expected a message, got something else"),
        (message(node=8), "expected a message to this site, got another's"),
        (Reply(307, b"", 0.0), "expected an answer, got HTTP status 307"),
        (Reply(404, b"", 0.0), "expected an answer, got HTTP status 404"),
        (Reply(401, b"", 2.0), "the server does not know this site's key, or has revoked it"),
        (Reply(401, b"", None), "the server does not know this site's key, or has revoked it"),
        (Reply(401, b"", 9.6), "this machine's clock is 10 s fast"),
        (Reply(401, b"", -400.0), "this machine's clock is 400 s slow"),
        (LOST, "cannot be reached (a test)"),
    ],
)
def test_trouble_is_told_in_one_line_and_waited_out(
    serve: Serve, caplog: pytest.LogCaptureFixture, reply: Answer, words: str
) -> None:
    lines = told(serve, caplog, reply, reply, reply, NOTHING)
    assert len(lines) == 2
    assert words in lines[0]
    assert lines[0].startswith("127.0.0.1:1: ")
    assert lines[0].endswith("; trying again")
    assert lines[1] == "connected to 127.0.0.1:1"


def test_another_trouble_is_told_too(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    lines = told(serve, caplog, LOST, Reply(401, b"", 0.0), LOST, NOTHING)
    assert len(lines) == 4


def test_waits_grow_are_capped_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_FIRST_S", 0.5)
    monkeypatch.setattr(module, "WAIT_MOST_S", 15.0)
    drawn = {n: [module._pause(n) for _ in range(200)] for n in (1, 2, 5, 6, 10**6)}
    for failures, most in {1: 0.5, 2: 1.0, 5: 8.0, 6: 15.0, 10**6: 15.0}.items():
        assert most / 2 <= min(drawn[failures]) < max(drawn[failures]) <= most


# --- keys ----------------------------------------------------------------------------------------


def test_a_key_that_was_kept_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "site" / "node.key"
    made = create_key(path)
    assert load_key(path).public == made.public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert repr(made).count("EllipticCurvePrivateKey") == 0


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    create_identity(tmp_path / "site" / "identity.pem")
    other = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "site" / "p256.pem").write_bytes(
        other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (tmp_path / "site" / "p256.pem").chmod(0o600)
    (tmp_path / "site" / "empty.pem").touch(0o600)
    for name in ("identity.pem", "p256.pem", "empty.pem"):
        with pytest.raises(DataError, match="expected an EC P-384 private key in PEM"):
            load_key(tmp_path / "site" / name)
