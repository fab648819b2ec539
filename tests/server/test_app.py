"""The exchange over a Flower Grid: what goes out, and whose answers are believed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from server.app import PAYLOAD, RECORD, make_exchange

NODES = {"ash": 1, "elm": 2, "fir": 3}
OUT = {"ash": b"to ash", "elm": b"to elm", "fir": b"to fir"}


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def content(payload: object) -> RecordDict:
    return RecordDict({RECORD: ConfigRecord({PAYLOAD: payload})})  # type: ignore[dict-item]


@dataclass
class Wire(Grid):
    """A grid that answers each message with what the test says, from the node that it says."""

    answers: dict[int, RecordDict | Error] = field(default_factory=dict)
    sources: dict[int, int] = field(default_factory=dict)
    sent: list[tuple[int, str, bytes]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    timeout: float | None = None

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        self.timeout = timeout
        for number, message in enumerate(messages):
            node = message.metadata.dst_node_id
            payload = message.content.config_records[RECORD][PAYLOAD]
            assert isinstance(payload, bytes)
            self.sent.append((node, message.metadata.message_type, payload))
            self.log.append(f"sent {node}")
            message.metadata.__dict__["_message_id"] = str(number)
            answer = self.answers.get(node, content(b"from " + str(node).encode()))
            reply = Message(answer, reply_to=message)
            source = self.sources.get(node, node)
            reply.metadata.__dict__["_src_node_id"] = source
            yield reply

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: object, **keys: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError


def answered(wire: Wire, outgoing: dict[str, bytes] | None = None) -> dict[str, bytes]:
    pairs = list(make_exchange(wire, NODES)("masked", outgoing or OUT, 7.5))
    assert len(pairs) == len({site for site, _ in pairs})
    return dict(pairs)


def test_every_site_gets_its_own_bytes_under_the_kind() -> None:
    wire = Wire()
    answered(wire)
    assert wire.sent == [
        (1, "query.masked", b"to ash"),
        (2, "query.masked", b"to elm"),
        (3, "query.masked", b"to fir"),
    ]


def test_answers_come_under_the_names_of_their_sites() -> None:
    assert answered(Wire()) == {"ash": b"from 1", "elm": b"from 2", "fir": b"from 3"}


def test_the_deadline_is_the_grids() -> None:
    wire = Wire()
    answered(wire)
    assert wire.timeout == 7.5


def test_an_answer_is_passed_on_before_the_next_message_is_made() -> None:
    wire = Wire()
    for site, _ in make_exchange(wire, NODES)("masked", OUT, 1.0):
        wire.log.append(f"got {site}")
    assert wire.log == ["sent 1", "got ash", "sent 2", "got elm", "sent 3", "got fir"]


def test_a_refusal_is_no_answer() -> None:
    wire = Wire(answers={2: Error(code=3, reason="refused")})
    assert set(answered(wire)) == {"ash", "fir"}


def test_the_answer_of_an_unknown_node_is_ignored() -> None:
    assert set(answered(Wire(sources={2: 99}))) == {"ash", "fir"}


def test_the_answer_of_a_site_that_was_not_asked_is_ignored() -> None:
    wire = Wire(sources={2: 3})
    assert answered(wire, {"ash": b"x", "elm": b"x"}) == {"ash": b"from 1"}


@pytest.mark.parametrize(
    "strange",
    [
        RecordDict(),
        RecordDict({"other": ConfigRecord({PAYLOAD: b"x"})}),
        RecordDict({RECORD: ConfigRecord({})}),
        RecordDict({RECORD: MetricRecord({PAYLOAD: 1.0})}),
        content("text"),
        content(5),
        content([b"a", b"b"]),
    ],
    ids=["nothing", "another record", "no payload", "metrics", "text", "a number", "a list"],
)
def test_an_answer_of_another_shape_is_ignored(strange: RecordDict) -> None:
    # One hostile site must not end the run of all.
    assert set(answered(Wire(answers={2: strange}))) == {"ash", "fir"}
