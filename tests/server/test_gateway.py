"""The gateway without sockets: waits, slow bodies, second pushes, and what Flower gets to see."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import ConfigRecord, ConfigRecordValue, RecordDict
from starlette.types import Receive, Scope, Send

from client.fleet import BEAT, PULL, PUSH, NodeKey, create_key
from server import gateway as module
from server.gateway import Gateway
from server.hub import Hub
from shared_models.transport import ENVELOPE_BYTES

PAYLOAD_BYTES = 100_000
FOREVER = 15.0  # nothing here takes so long, unless it hangs


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    made = Hub(None, tmp_path_factory.mktemp("hub"))
    yield made
    made.close()


@pytest.fixture
def key(tmp_path: Path) -> NodeKey:
    return create_key(tmp_path / "key" / "node.key")


@pytest.fixture
def node(hub: Hub, key: NodeKey) -> int:
    return hub.admit(key.public)


@pytest.fixture
def gateway(hub: Hub) -> Gateway:
    hub.listen(None)  # or it would wake the loop of the test before
    return Gateway(hub, PAYLOAD_BYTES)


Call = tuple[str, Mapping[str, str], Receive]


def body(*pieces: bytes) -> Receive:
    """A body that comes in pieces, all at once."""
    left = list(pieces) or [b""]

    async def receive() -> Mapping[str, object]:
        if not left:
            await asyncio.sleep(FOREVER)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    return receive  # type: ignore[return-value]


async def ask(
    gateway: Gateway, path: str, headers: Mapping[str, str], receive: Receive
) -> tuple[int, bytes]:
    status, pieces = 0, []

    async def send(message: Mapping[str, object]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]  # type: ignore[assignment]
        else:
            pieces.append(message["body"])

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "https",
        "http_version": "1.1",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "headers": [
            (b"content-type", b"application/protobuf"),
            *((name.encode(), value.encode()) for name, value in headers.items()),
        ],
    }
    await asyncio.wait_for(gateway(scope, receive, send), FOREVER)
    return status, b"".join(pieces)


def pull(node: int) -> bytes:
    return PullMessagesRequest(node=Node(node_id=node)).SerializeToString()


def push(node: int, question: str, content: RecordDict | None = None, **more: object) -> bytes:
    value = ConfigRecord.Item(key="payload", value=ConfigRecordValue(bytes=b"an answer"))
    record = RecordDict.Item(key="fedward", config_record=ConfigRecord(items=[value]))
    message = Message(
        metadata=Metadata(
            src_node_id=node,
            dst_node_id=1,
            reply_to_message_id=question,
            **more,  # type: ignore[arg-type]
        ),
        content=content if content is not None else RecordDict(items=[record]),
    )
    return PushMessagesRequest(node=Node(node_id=node), messages_list=[message]).SerializeToString()


class Asked:
    """One site is asked, in a thread of the loop's executor, while the loop runs."""

    def __init__(self, hub: Hub, gateway: Gateway, node: int, deadline_s: float = FOREVER) -> None:
        self.refused: list[tuple[str, str, int]] = []
        exchange = hub.exchange({"ash": node}, lambda *what: self.refused.append(what))
        loop = asyncio.get_running_loop()
        hub.listen(lambda woken: loop.call_soon_threadsafe(gateway.wake, woken))  # type: ignore[arg-type]
        self.answers = loop.run_in_executor(
            None, lambda: dict(exchange("echo", {"ash": b"abc"}, deadline_s))
        )


def question_of(reply: bytes) -> str:
    return PullMessagesResponse.FromString(reply).messages_list[0].metadata.message_id


def test_a_pull_that_waits_gets_the_message_when_it_comes(
    hub: Hub, gateway: Gateway, key: NodeKey, node: int
) -> None:
    async def run() -> None:
        headers = {**key.headers(), "fedward-wait": "14"}
        waiting = asyncio.create_task(ask(gateway, PULL, headers, body(pull(node))))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        asked = Asked(hub, gateway, node)
        status, reply = await waiting
        assert status == 200
        name = question_of(reply)
        assert (await ask(gateway, PUSH, key.headers(), body(push(node, name))))[0] == 200
        assert await asked.answers == {"ash": b"an answer"}

    asyncio.run(run())


@pytest.mark.parametrize("wait", ["", "0", "-5", "1e3", "nan", "9999", "x"])
def test_a_pull_that_does_not_ask_to_wait_is_answered(
    gateway: Gateway, key: NodeKey, node: int, wait: str
) -> None:
    headers = {**key.headers(), **({"fedward-wait": wait} if wait else {})}
    assert asyncio.run(ask(gateway, PULL, headers, body(pull(node)))) == (200, b"")


def test_a_pull_waits_no_longer_than_it_asks(gateway: Gateway, key: NodeKey, node: int) -> None:
    headers = {**key.headers(), "fedward-wait": "1"}
    assert asyncio.run(ask(gateway, PULL, headers, body(pull(node)))) == (200, b"")
    assert gateway._waiting == {}


def test_a_second_pull_of_a_node_ends_the_first(gateway: Gateway, key: NodeKey, node: int) -> None:
    async def run() -> None:
        tasks = []
        for _ in range(3):
            headers = {**key.headers(), "fedward-wait": "14"}
            tasks.append(asyncio.create_task(ask(gateway, PULL, headers, body(pull(node)))))
            await asyncio.sleep(0.2)
        assert [task.done() for task in tasks] == [True, True, False]
        assert len(gateway._waiting) == 1
        gateway.close()
        assert await tasks[2] == (200, b"")

    asyncio.run(run())


def test_only_so_many_pulls_wait(
    gateway: Gateway, key: NodeKey, node: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITERS_MAX", 0)
    headers = {**key.headers(), "fedward-wait": "14"}
    reply = asyncio.run(asyncio.wait_for(ask(gateway, PULL, headers, body(pull(node))), 5))
    assert reply == (200, b"")


def test_a_pull_of_a_node_that_is_revoked_meanwhile_is_refused(
    hub: Hub, gateway: Gateway, key: NodeKey, node: int
) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        hub.listen(lambda woken: loop.call_soon_threadsafe(gateway.wake, woken))  # type: ignore[arg-type]
        headers = {**key.headers(), "fedward-wait": "14"}
        waiting = asyncio.create_task(ask(gateway, PULL, headers, body(pull(node))))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(hub.expel, node)
        assert (await asyncio.wait_for(waiting, 7.0))[0] == 401  # half of what it wanted to wait

    asyncio.run(run())


@pytest.mark.parametrize("which", ["PIECE_S", "STRANGER_S"])
def test_a_body_that_comes_too_slowly_is_refused(
    hub: Hub, key: NodeKey, node: int, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    monkeypatch.setattr(module, "STRANGER_S", 100.0)
    monkeypatch.setattr(module, which, 0.2)
    gateway = Gateway(hub, PAYLOAD_BYTES, {"/enrol": never_called})

    async def trickle() -> Mapping[str, object]:
        await asyncio.sleep(0.15 if which == "STRANGER_S" else FOREVER)
        return {"type": "http.request", "body": b"x", "more_body": True}

    for path, headers in {"/enrol": {}, PULL: key.headers()}.items():
        assert asyncio.run(ask(gateway, path, headers, trickle))[0] == 408  # type: ignore[arg-type]


async def never_called(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("an extra app was called")


def test_strangers_take_turns(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(hub, PAYLOAD_BYTES, {"/enrol": never_called})

    async def stuck() -> Mapping[str, object]:  # type: ignore[return]
        await asyncio.sleep(FOREVER)

    async def run() -> None:
        held = [
            asyncio.create_task(ask(gateway, "/enrol", {}, stuck))  # type: ignore[arg-type]
            for _ in range(module.EXTRA_AT_ONCE)
        ]
        await asyncio.sleep(0.1)
        assert (await ask(gateway, "/enrol", {}, body(b"")))[0] == 503
        for task in held:
            task.cancel()

    asyncio.run(run())


def test_a_node_pushes_one_answer_at_a_time(gateway: Gateway, key: NodeKey, node: int) -> None:
    async def stuck() -> Mapping[str, object]:  # type: ignore[return]
        await asyncio.sleep(FOREVER)

    async def run() -> None:
        first = asyncio.create_task(ask(gateway, PUSH, key.headers(), stuck))  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
        again = push(node, "0" * 64)
        assert (await ask(gateway, PUSH, key.headers(), body(again)))[0] == 429
        first.cancel()
        await asyncio.sleep(0.1)
        assert (await ask(gateway, PUSH, key.headers(), body(again)))[0] == 410

    asyncio.run(run())


def test_the_ceiling_is_the_payload_and_its_envelope(
    gateway: Gateway, key: NodeKey, node: int
) -> None:
    def status(size: int, declared: bool) -> int:
        headers = {**key.headers(), **({"content-length": str(size)} if declared else {})}
        pieces = [b"\0" * min(65536, size - start) for start in range(0, size, 65536)]
        return asyncio.run(ask(gateway, PUSH, headers, body(*pieces)))[0]

    largest = PAYLOAD_BYTES + ENVELOPE_BYTES
    for declared in (True, False):
        assert status(largest, declared) == 400  # it is read, and is no message
        assert status(largest + 1, declared) == 413


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "9" * 30, "+5", " 5"])
def test_a_length_that_is_no_length_is_refused(gateway: Gateway, length: str) -> None:
    assert asyncio.run(ask(gateway, PUSH, {"content-length": length}, body(b"")))[0] == 413


def test_a_body_longer_than_it_says_is_refused(gateway: Gateway, key: NodeKey, node: int) -> None:
    headers = {**key.headers(), "content-length": "5"}
    assert asyncio.run(ask(gateway, PULL, headers, body(b"12345", b"6")))[0] == 413


def test_two_headers_of_one_name_are_refused(
    gateway: Gateway, key: NodeKey, node: int, hub: Hub
) -> None:
    for name in ("flwr-public-key", "flwr-timestamp", "flwr-signature"):
        headers = key.headers()
        pairs = [(n.encode(), v.encode()) for n, v in (*headers.items(), (name, headers[name]))]
        with pytest.raises(module.RefusedError) as caught:
            hub.authenticate(pairs)
        assert caught.value.status == 401


def test_flower_sees_none_of_a_sites_bytes(
    hub: Hub, gateway: Gateway, key: NodeKey, node: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    flower: Callable[..., object] = hub.app

    async def spy(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        seen.append(message["body"] + repr(scope["headers"]).encode())

        async def again() -> Mapping[str, object]:
            return message

        await flower(scope, again, send)  # type: ignore[misc]

    monkeypatch.setattr(hub._link, "app", spy)

    async def run() -> None:
        asked = Asked(hub, gateway, node)
        headers = {**key.headers(), "fedward-wait": "14"}
        _, reply = await ask(gateway, PULL, headers, body(pull(node)))
        forged = push(
            node, question_of(reply), group_id="MARK", message_type="MARK", message_id="MARK"
        )
        headers = {**key.headers(), "x-mark": "MARK"}
        assert (await ask(gateway, PUSH, headers, body(forged)))[0] == 200
        assert await asked.answers == {"ash": b"an answer"}

    asyncio.run(run())
    assert len(seen) == 2
    assert not [one for one in seen if b"MARK" in one or b"an answer" in one]


OTHER = ConfigRecord.Item(key="other", value=ConfigRecordValue(bytes=b"x"))
WORDS = ConfigRecord.Item(key="payload", value=ConfigRecordValue(string="x"))
GOOD = ConfigRecord.Item(key="payload", value=ConfigRecordValue(bytes=b"x"))


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict(items=[RecordDict.Item(key="other", config_record=ConfigRecord(items=[GOOD]))]),
        RecordDict(items=[RecordDict.Item(key="fedward", config_record=ConfigRecord())]),
        RecordDict(
            items=[RecordDict.Item(key="fedward", config_record=ConfigRecord(items=[OTHER]))]
        ),
        RecordDict(
            items=[RecordDict.Item(key="fedward", config_record=ConfigRecord(items=[WORDS]))]
        ),
        RecordDict(
            items=[RecordDict.Item(key="fedward", config_record=ConfigRecord(items=[GOOD, OTHER]))]
        ),
        RecordDict(
            items=[RecordDict.Item(key="fedward", config_record=ConfigRecord(items=[GOOD]))] * 2
        ),
    ],
)
def test_a_content_that_is_not_one_payload_is_refused(
    hub: Hub, gateway: Gateway, key: NodeKey, node: int, content: RecordDict
) -> None:
    bad = push(node, "0" * 64, content)
    assert asyncio.run(ask(gateway, PUSH, key.headers(), body(bad)))[0] == 400


def test_a_code_outside_the_list_is_a_fault(
    hub: Hub, gateway: Gateway, key: NodeKey, node: int
) -> None:
    async def run() -> None:
        asked = Asked(hub, gateway, node)
        headers = {**key.headers(), "fedward-wait": "14"}
        _, reply = await ask(gateway, PULL, headers, body(pull(node)))
        request = PushMessagesRequest.FromString(push(node, question_of(reply)))
        request.messages_list[0].ClearField("content")
        request.messages_list[0].error.code = 77
        request.messages_list[0].error.reason = "a patient's name"
        told = request.SerializeToString()
        assert (await ask(gateway, PUSH, key.headers(), body(told)))[0] == 200
        assert await asked.answers == {}
        assert asked.refused == [("ash", "echo", 1)]

    asyncio.run(run())


def test_an_answer_in_anothers_name_is_refused_even_to_ones_own_question(
    hub: Hub, gateway: Gateway, key: NodeKey, node: int
) -> None:
    async def run() -> None:
        asked = Asked(hub, gateway, node)
        headers = {**key.headers(), "fedward-wait": "14"}
        _, reply = await ask(gateway, PULL, headers, body(pull(node)))
        right = push(node, question_of(reply))
        for change in ("node", "source"):
            wrong = PushMessagesRequest.FromString(right)
            if change == "node":
                wrong.node.node_id = node + 1
            else:
                wrong.messages_list[0].metadata.src_node_id = node + 1
            told = body(wrong.SerializeToString())
            assert (await ask(gateway, PUSH, key.headers(), told))[0] == 403
        assert (await ask(gateway, PUSH, key.headers(), body(right)))[0] == 200
        await asked.answers

    asyncio.run(run())


def test_a_site_cannot_fill_the_memory_with_one_answer_many_times(
    hub: Hub, gateway: Gateway, key: NodeKey, node: int, tmp_path: Path
) -> None:
    """The exchange goes on, for another site has not answered: the second one is not kept."""
    other = hub.admit(create_key(tmp_path / "key" / "other.key").public)
    held: SimpleQueue[object] = SimpleQueue()
    asked = hub._ask("echo", {"ash": b"", "elm": b""}, {"ash": node, "elm": other}, 5.0, held)  # type: ignore[arg-type]
    name = next(one.sent.name for one in asked if one.sent.node == node)
    for _ in range(3):
        assert asyncio.run(ask(gateway, PUSH, key.headers(), body(push(node, name))))[0] == 200
    assert held.qsize() == 1
    hub._forget(asked)


def test_a_fault_of_flower_is_one_line(
    hub: Hub,
    gateway: Gateway,
    key: NodeKey,
    node: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise OSError("database or disk is full")

    monkeypatch.setattr(hub._link, "app", broken)
    beat = asyncio.run(ask(gateway, BEAT, key.headers(), body(pull(node))))
    assert beat == (500, b"")
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == [
        "a request could not be answered: OSError"
    ]


def test_an_answer_that_flower_refuses_is_not_believed(
    hub: Hub, gateway: Gateway, key: NodeKey, node: int
) -> None:
    async def run() -> None:
        asked = Asked(hub, gateway, node, 1.0)
        headers = {**key.headers(), "fedward-wait": "14"}
        _, reply = await ask(gateway, PULL, headers, body(pull(node)))
        run = hub._link._run
        assert run is not None
        hub._link._state.finish_task(run[1], "failed", "")  # as if its heartbeat had stopped
        status, _ = await ask(gateway, PUSH, key.headers(), body(push(node, question_of(reply))))
        assert status >= 400
        assert await asked.answers == {}

    asyncio.run(run())
