"""The local grid: every message answered once, few held at a time, and nothing that hangs."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from client.app import make_app
from privacy.errors import PrivacyError
from simulations.grid import PAYLOAD, RECORD, WINDOW, ConfigRecord, LocalGrid, Message, RecordDict

Answer = Callable[[int, bytes], bytes]
WORKERS = pytest.mark.parametrize("workers", [1, 2, 3])


@contextmanager
def grid_of(answer: Answer, workers: int, nodes: int = 40) -> Iterator[LocalGrid]:
    app = make_app(("echo",), lambda kind, node, message: answer(node, message))
    grid = LocalGrid(app, range(1, nodes + 1), workers)
    try:
        yield grid
    finally:
        grid.close()


def message(node: int, payload: bytes = b"x") -> Message:
    return Message(RecordDict({RECORD: ConfigRecord({PAYLOAD: payload})}), node, "query.echo")


def payload_of(reply: Message) -> bytes:
    payload = reply.content[RECORD][PAYLOAD]
    assert isinstance(payload, bytes)
    return payload


def echo(node: int, payload: bytes) -> bytes:
    return b"%d:%b" % (node, payload)


@WORKERS
def test_every_message_gets_the_answer_to_itself(workers: int) -> None:
    sent: dict[str, Message] = {}

    def messages() -> Iterator[Message]:
        for node in range(1, 41):
            made = message(node, b"m%d" % node)
            yield made
            sent[made.metadata.message_id] = made

    with grid_of(echo, workers) as grid:
        replies = list(grid.send_and_receive(messages()))
    assert len(sent) == len(replies) == 40
    assert {reply.metadata.reply_to_message_id for reply in replies} == set(sent)
    for reply in replies:
        asked = sent[reply.metadata.reply_to_message_id].metadata.dst_node_id
        assert reply.metadata.src_node_id == asked
        assert payload_of(reply) == b"%d:m%d" % (asked, asked)


@WORKERS
def test_ids_are_not_used_again_by_a_later_exchange(workers: int) -> None:
    with grid_of(echo, workers) as grid:
        ids = [
            reply.metadata.reply_to_message_id
            for _ in range(3)
            for reply in grid.send_and_receive(message(node) for node in range(1, 6))
        ]
    assert len(set(ids)) == 15


@pytest.mark.parametrize("step", [1, 2])  # step 2: all messages are for the nodes of one worker
@WORKERS
def test_few_messages_are_drawn_ahead_of_the_answers(workers: int, step: int) -> None:
    drawn = answered = most = 0

    def messages() -> Iterator[Message]:
        nonlocal drawn, most
        for node in range(step, 200 * step + 1, step):
            drawn += 1
            most = max(most, drawn - answered)
            yield message(node)

    with grid_of(echo, workers, 400) as grid:
        for _ in grid.send_and_receive(messages()):
            answered += 1
    assert answered == 200
    # One process: one at a time. Workers: WINDOW each under way, and as many waiting for them.
    assert most <= (1 if workers == 1 else 2 * WINDOW * workers)


@WORKERS
def test_after_the_timeout_no_message_is_sent(workers: int) -> None:
    def slow(node: int, payload: bytes) -> bytes:
        time.sleep(0.02)
        return payload

    with grid_of(slow, workers, 1000) as grid:
        began = time.monotonic()
        everything = (message(node) for node in range(1, 1001))
        replies = list(grid.send_and_receive(everything, timeout=0.1))
        assert time.monotonic() - began < 5  # all of them would take 20 s and more, over workers
    assert 0 < len(replies) < 200


@pytest.mark.parametrize("workers", [2, 3])
def test_a_worker_that_dies_ends_the_exchange(workers: int) -> None:
    def mortal(node: int, payload: bytes) -> bytes:
        if node == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return payload

    with (
        grid_of(mortal, workers) as grid,
        pytest.raises(RuntimeError, match="worker process of the simulation died"),
    ):
        list(grid.send_and_receive(message(node) for node in range(1, 41)))


def test_a_bug_in_a_worker_is_told_to_the_parent_and_not_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def wrong(node: int, payload: bytes) -> bytes:
        raise KeyError("the cause")

    with grid_of(wrong, 2) as grid, pytest.raises(RuntimeError, match="KeyError: 'the cause'"):
        list(grid.send_and_receive([message(1)]))
    assert capfd.readouterr() == ("", "")


def test_large_messages_both_ways_do_not_wait_for_each_other() -> None:
    size = 4 << 20  # far more than a pipe holds

    def large(node: int, payload: bytes) -> bytes:
        return bytes([node]) * len(payload)

    with grid_of(large, 2) as grid:
        replies = list(
            grid.send_and_receive(message(node, bytes([100 + node]) * size) for node in range(1, 9))
        )
    assert sorted(reply.metadata.src_node_id for reply in replies) == list(range(1, 9))
    assert all(payload_of(reply) == bytes([reply.metadata.src_node_id]) * size for reply in replies)


def test_one_payload_for_all_nodes_reaches_all_of_them() -> None:
    shared = bytes(1 << 20)
    with grid_of(lambda node, payload: b"%d" % len(payload), 2) as grid:
        for other in (shared, b"short", shared):
            replies = list(grid.send_and_receive(message(node, other) for node in range(1, 21)))
            assert {payload_of(reply) for reply in replies} == {b"%d" % len(other)}


@WORKERS
def test_an_exchange_left_early_leaves_no_answer_to_the_next(workers: int) -> None:
    with grid_of(echo, workers) as grid:
        for _ in grid.send_and_receive(message(node, b"old") for node in range(1, 41)):
            break
        replies = list(grid.send_and_receive(message(node, b"new") for node in range(1, 41)))
    assert sorted(map(payload_of, replies)) == sorted(b"%d:new" % node for node in range(1, 41))


@WORKERS
def test_a_refusal_travels_as_its_exit_code_without_words(workers: int) -> None:
    def refuse(node: int, payload: bytes) -> bytes:
        raise PrivacyError("a word of the site")

    with grid_of(refuse, workers) as grid:
        (reply,) = grid.send_and_receive([message(1)])
    assert reply.has_error()
    assert reply.error.code == PrivacyError.exit_code
    assert "word" not in str(reply.error.reason)


def test_a_node_always_meets_the_same_worker_and_workers_share_the_nodes() -> None:
    met: dict[int, set[bytes]] = {}
    with grid_of(lambda node, payload: b"%d" % os.getpid(), 2, 20) as grid:
        for _ in range(3):
            for reply in grid.send_and_receive(message(node) for node in range(1, 21)):
                met.setdefault(reply.metadata.src_node_id, set()).add(payload_of(reply))
    assert all(len(processes) == 1 for processes in met.values())
    assert len(set.union(*met.values())) == 2


def test_a_worker_has_one_thread() -> None:
    with grid_of(lambda node, payload: b"%d" % torch.get_num_threads(), 2) as grid:
        (reply,) = grid.send_and_receive([message(1)])
    assert payload_of(reply) == b"1"


def test_close_ends_the_workers() -> None:
    with grid_of(lambda node, payload: b"%d" % os.getpid(), 2) as grid:
        replies = list(grid.send_and_receive(message(node) for node in (1, 2)))
    for process in {int(payload_of(reply)) for reply in replies}:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
