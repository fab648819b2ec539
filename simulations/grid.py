"""A Flower Grid inside one process: messages go to the ClientApp, answers come as they arise.

With workers, each worker process owns some of the nodes and runs the same ClientApp on the same
messages; a node always meets the same worker. Nothing is held for all nodes at once.
"""

import contextlib
import itertools
import multiprocessing
import os
import queue
import selectors
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from shared_models.transport import PAYLOAD, RECORD

RUN_ID, SERVER_NODE = 1, 0
OK, BUG = b"ok", b"bug"  # what may stand after an empty frame, besides an error's code
GRACE_S = 5.0  # for an answer that is nearly there when the deadline passes
HANG_S = 600
WINDOW = 4  # messages a worker may hold: enough to keep it busy, few enough to keep memory flat


class LocalGrid(Grid):
    """Calls one ClientApp for every node, here or in worker processes."""

    def __init__(self, app: ClientApp, nodes: Iterable[int], workers: int = 1) -> None:
        """Start the workers, if there are to be more than one.

        Args:
            app: answers for every node of its process.
            nodes: node ids, from 1.
            workers: processes that run the app; each with one thread, forked here and now.
        """
        _identify()
        self._app = app
        self._nodes = tuple(nodes)
        self._ids = itertools.count(1)
        self._context = _context()
        self._workers: list[_Worker] = []
        for _ in range(workers if workers > 1 else 0):
            self._workers.append(_Worker(app, [w.connection for w in self._workers]))
        self._readable = selectors.DefaultSelector()
        for worker in self._workers:
            self._readable.register(worker.connection, selectors.EVENT_READ, worker)

    def close(self) -> None:
        """End the workers."""
        self._readable.close()
        for worker in self._workers:
            worker.close()

    def set_run(self, run: Run) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Run:
        """The one run of this grid."""
        return Run.create_empty(RUN_ID)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message of this run."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes; they are always there."""
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse: a local node answers at once, so there is nothing to come back for."""
        raise NotImplementedError("use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse, as push_messages does."""
        raise NotImplementedError("use send_and_receive")

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yield each answer as it arises; stop sending once ``timeout`` seconds are over."""
        end = float("inf") if timeout is None else time.monotonic() + timeout
        if self._workers:
            yield from self._in_workers(messages, end)
            return
        for message in messages:
            if time.monotonic() > end:
                return
            self._number(message)
            yield self._app(message, self._context)

    def _number(self, message: Message) -> None:
        # A reply names the message it answers, so the id must be there before the app is called.
        message.metadata.__dict__["_message_id"] = str(next(self._ids))

    def _in_workers(self, messages: Iterable[Message], end: float) -> Iterator[Message]:
        """Keep every worker supplied with up to WINDOW messages of its own nodes."""
        for worker in self._workers:
            worker.forget()
        queues: dict[int, list[Message]] = {i: [] for i in range(len(self._workers))}
        source = iter(messages)
        exhausted = False
        while True:
            # Draw messages until every worker has work, too many wait for one, or none are left.
            while (
                not exhausted
                and any(not queues[i] and w.free() for i, w in enumerate(self._workers))
                and sum(map(len, queues.values())) < WINDOW * len(self._workers)
            ):
                message = next(source, None)
                if message is None:
                    exhausted = True
                    break
                self._number(message)
                queues[message.metadata.dst_node_id % len(self._workers)].append(message)
            if time.monotonic() > end:
                exhausted, queues = True, {index: [] for index in queues}
            for index, worker in enumerate(self._workers):
                while queues[index] and worker.free():
                    worker.send(queues[index].pop(0))
            if not any(worker.pending for worker in self._workers):
                return
            left = None if end == float("inf") else max(0.0, end - time.monotonic()) + GRACE_S
            ready = self._readable.select(left)
            if not ready:
                return  # those that did not answer in time are absent
            for key, _ in ready:
                yield key.data.receive()


class _Worker:
    """One forked process that answers for its nodes."""

    def __init__(self, app: ClientApp, others: list[Connection]) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        others = [*others, self.connection]
        self.pending: list[tuple[Message, bool]] = []  # and whether the thread writes it
        self._last: bytes | None = None
        # A thread writes: if both ends wrote large messages at once, both would wait for ever.
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._process = context.Process(target=_serve, args=(app, theirs, others), daemon=True)
        self._process.start()
        theirs.close()

    def free(self) -> bool:
        return len(self.pending) < WINDOW

    def send(self, message: Message) -> None:
        if not self._writer.is_alive():  # not before: all processes are forked without threads
            self._writer.start()
        payload = _payload(message)
        # Most messages of a round are one and the same object: send it once, then say "again".
        repeated = payload is self._last
        self._last = payload
        kind, node = message.metadata.message_type, message.metadata.dst_node_id
        head = f"{kind} {node} {int(repeated)}".encode()
        # When all that the thread wrote is answered, the pipe has room for a window of heads:
        # writing one here costs less than waking the thread.
        threaded = not repeated or any(threaded for _, threaded in self.pending)
        self.pending.append((message, threaded))
        if not threaded:
            self._put(head)
            return
        self._outgoing.put(head)
        if not repeated:
            self._outgoing.put(payload)

    def _write(self) -> None:
        while (piece := self._outgoing.get()) is not None:
            self._put(piece)

    def _put(self, piece: bytes) -> None:
        with contextlib.suppress(OSError):  # the reader sees the end of the pipe and says so
            self.connection.send_bytes(piece)

    def forget(self) -> None:
        """Drop the answers of an exchange that was left early: they would pass for later ones."""
        while self.pending:
            if not self.connection.poll(HANG_S):
                raise RuntimeError(f"a worker process of the simulation hangs for {HANG_S} s")
            self.receive()

    def receive(self) -> Message:
        try:
            body, status = self.connection.recv_bytes(), OK
            if not body:
                status, body = self.connection.recv_bytes(), self.connection.recv_bytes()
        except (EOFError, OSError):
            raise RuntimeError("a worker process of the simulation died") from None
        if status == BUG:
            raise RuntimeError("a worker process of the simulation failed:\n" + body.decode())
        message, _ = self.pending.pop(0)
        if status == OK:
            return Message(_content(body), reply_to=message)
        return Message(Error(code=int(status), reason="refused"), reply_to=message)

    def close(self) -> None:
        if self._writer.is_alive():
            self._outgoing.put(None)
            self._writer.join(timeout=5)
        self.connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(app: ClientApp, connection: Connection, others: list[Connection]) -> None:
    """Answer messages until the pipe closes; the parent alone reacts to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for other in others:  # else a pipe whose parent died would stay open in its siblings
        other.close()
    import torch

    torch.set_num_threads(1)
    _identify()
    context = _context()
    content = _content(b"")
    for number in itertools.count(1):
        try:
            message = _next_message(connection, content)
            content = message.content
            message.metadata.__dict__["_message_id"] = str(number)
            for piece in _answer(app, message, context):
                connection.send_bytes(piece)
        except (EOFError, OSError):
            return  # the parent closed the pipe, or is gone


def _next_message(connection: Connection, last: RecordDict) -> Message:
    kind, node, repeated = connection.recv_bytes().decode().split()
    content = last if repeated == "1" else _content(connection.recv_bytes())
    return Message(content, int(node), kind)


def _answer(app: ClientApp, message: Message, context: Context) -> tuple[bytes, ...]:
    """Return the frames of an answer: itself, or an empty one, how it went, and the rest.

    A bug travels to the parent as its traceback.
    """
    try:
        reply = app(message, context)
    except Exception:
        return b"", BUG, traceback.format_exc().encode()
    if reply.has_error():
        return b"", str(reply.error.code).encode(), b""
    payload = _payload(reply)
    return (payload,) if payload else (b"", OK, b"")


def _identify() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_NODE, 1


def _context() -> Context:
    return Context(RUN_ID, SERVER_NODE, {}, RecordDict(), {})


def _content(payload: bytes) -> RecordDict:
    return RecordDict({RECORD: ConfigRecord({PAYLOAD: payload})})


def _payload(message: Message) -> bytes:
    payload = message.content[RECORD][PAYLOAD]
    if not isinstance(payload, bytes):
        raise TypeError("expected a message of this project's own")
    return payload
