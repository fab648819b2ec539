"""The ClientApp: which kinds it answers, and what of a refusal leaves the site."""

import re

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import PAYLOAD, RECORD, Answer, make_app
from privacy.errors import (
    AbsentError,
    DataError,
    FedwardError,
    PrivacyError,
    ProtocolError,
    StudyError,
)

SECRET = "patient Miller, 172.5 mg"


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def message(kind: str, content: RecordDict) -> Message:
    sent = Message(content, 5, kind)
    sent.metadata.__dict__["_message_id"] = "1"
    return sent


def content(payload: object) -> RecordDict:
    return RecordDict({RECORD: ConfigRecord({PAYLOAD: payload})})  # type: ignore[dict-item]


def ask(answer: Answer, kind: str = "query.masked", sent: RecordDict | None = None) -> Message:
    app = make_app(("masked", "shares"), answer)
    return app(
        message(kind, content(b"order") if sent is None else sent),
        Context(1, 5, {}, RecordDict(), {}),
    )


def echo(kind: str, node: int, payload: bytes) -> bytes:
    return f"{kind} {node} ".encode() + payload


@pytest.mark.parametrize("kind", ["masked", "shares"])
def test_a_known_kind_is_answered_with_bytes(kind: str) -> None:
    reply = ask(echo, f"query.{kind}")
    assert reply.content[RECORD][PAYLOAD] == f"{kind} 5 order".encode()


def test_a_reply_carries_the_payload_and_nothing_else() -> None:
    reply = ask(echo)
    assert list(reply.content) == [RECORD]
    assert list(reply.content[RECORD]) == [PAYLOAD]


@pytest.mark.parametrize("kind", ["query", "query.plain", "train", "evaluate.masked", "query.x.y"])
def test_an_unknown_kind_is_refused_and_reaches_no_site(kind: str) -> None:
    asked: list[str] = []

    def answer(kind: str, node: int, payload: bytes) -> bytes:
        asked.append(kind)
        return b""

    with pytest.raises(ValueError, match=r"function registered|message type"):
        ask(answer, kind)
    assert asked == []


@pytest.mark.parametrize(
    ("error", "code"),
    [(StudyError, 2), (DataError, 2), (PrivacyError, 3), (ProtocolError, 4), (AbsentError, 5)],
)
def test_a_refusal_is_its_code_and_the_word_refused(error: type[FedwardError], code: int) -> None:
    def refuse(kind: str, node: int, payload: bytes) -> bytes:
        raise error(f"expected less, got {SECRET}", hint=SECRET)

    reply = ask(refuse)
    assert (reply.error.code, reply.error.reason) == (code, "refused")
    assert not reply.has_content()


def test_the_reason_of_a_refusal_stays_in_the_sites_log(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(kind: str, node: int, payload: bytes) -> bytes:
        raise ProtocolError("message 4: expected this, got that; nothing was sent")

    ask(refuse)
    assert [(one.name, one.getMessage()) for one in caplog.records] == [
        ("fedward.site", "masked was refused: message 4: expected this, got that; nothing was sent")
    ]


def test_no_text_of_a_site_is_in_a_refusal() -> None:
    def refuse(kind: str, node: int, payload: bytes) -> bytes:
        raise PrivacyError(SECRET, hint=SECRET)

    reply = ask(refuse)
    assert "Miller" not in repr(reply) + str(vars(reply)) + str(vars(reply.error))


@pytest.mark.parametrize(
    "strange",
    [
        RecordDict(),
        RecordDict({"other": ConfigRecord({PAYLOAD: b"x"})}),
        RecordDict({RECORD: ConfigRecord({})}),
        RecordDict({RECORD: MetricRecord({PAYLOAD: 1.0})}),
        content("text"),
        content(5),
    ],
    ids=["nothing", "another record", "no payload", "metrics", "text", "a number"],
)
def test_a_message_of_another_shape_is_refused(strange: RecordDict) -> None:
    reply = ask(echo, sent=strange)
    assert (reply.error.code, reply.error.reason) == (2, "refused")


def test_the_text_of_a_bug_does_not_leave_a_site_that_keeps_a_log() -> None:
    def broken(kind: str, node: int, payload: bytes) -> bytes:
        raise ValueError(SECRET)

    kept: list[Exception] = []
    app = make_app(("masked",), broken, kept.append)
    context = Context(1, 5, {}, RecordDict(), {})
    reply = app(message("query.masked", content(b"order")), context)
    assert (reply.error.code, reply.error.reason) == (1, "refused")
    assert [str(bug) for bug in kept] == [SECRET]


def test_a_bug_in_a_simulation_stays_a_bug() -> None:
    def broken(kind: str, node: int, payload: bytes) -> bytes:
        raise ValueError(SECRET)

    with pytest.raises(ValueError, match=re.escape(SECRET)):
        ask(broken)
