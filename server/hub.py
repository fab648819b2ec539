"""The coordinator's side of an exchange: who was asked what, and whose answers are believed.

It touches neither Flower nor sockets: `server.superlink` keeps Flower's state, and
`server.gateway` brings the requests of sites here before Flower sees them.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from server.superlink import (
    FAST_S,
    SIGNED,
    SLOW_S,
    STAMP,
    Envelope,
    RefusedError,
    SuperLink,
    authenticate,
    normal,
    read_node,
    read_push,
    write_pull,
    write_push,
)

if TYPE_CHECKING:  # the rounds bring the networks with them, which no transport needs
    from server.rounds import Exchange

STAMPS_MAX = 32768  # requests of a site while one could be sent again: 115 a second, 6 MB

# What a site may say instead of an answer: the exit codes of privacy.errors, and nothing else.
CODES = {
    1: "by a fault in its program",
    2: "as bad input",
    3: "by a privacy rule or its policy",
    4: "by the protocol",
    5: "because a peer was missing",
}
Report = Callable[[str, str, int], None]  # site, kind of message, one of CODES
_LOG = logging.getLogger("fedward.server")


@dataclass(frozen=True)
class _Answer:
    question: str
    payload: bytes | None
    code: int = 0


@dataclass
class _Question:
    """One message under way to one site."""

    site: str
    sent: Envelope
    payload: bytes = field(repr=False)
    answers: SimpleQueue[_Answer] = field(repr=False)
    answered: bool = False


@dataclass(frozen=True)
class Reply:
    """A push that answers what its site was asked.

    Attributes:
        body: the request that Flower gets: made here, without the payload.
    """

    body: bytes
    _question: _Question = field(repr=False)
    _answer: _Answer = field(repr=False)

    def deliver(self) -> None:
        """Hand it to the exchange that waits for it."""
        self._question.answered = True
        self._question.answers.put(self._answer)


class Hub:
    """The nodes of the sites, and the questions that are open."""

    def __init__(self, database: Path | None, home: Path) -> None:
        """Open Flower's state.

        Args:
            database: SQLite file with nodes and runs: sites go on by themselves after a crash of
                this process. None: in memory.
            home: a folder of ours that Flower is told to use; nothing is put there.

        Raises:
            DataError: the database cannot be made or read.
        """
        self._link = SuperLink(database, home)
        self._nodes = self._link.nodes()
        self._seen: dict[int, float] = {}
        self._stamps: dict[int, dict[bytes, float]] = {}
        self._lock = threading.Lock()
        self._questions: dict[str, _Question] = {}
        self._wake: Callable[[int], None] | None = None

    @property
    def app(self) -> ASGIApp:
        """Flower's app, for the gateway alone."""
        return self._link.app

    def close(self) -> None:
        """End Flower's run."""
        self._link.close()

    # --- nodes ---------------------------------------------------------------------------------

    def admit(self, pem: bytes) -> int:
        """Return the node of a site's transport key (EC P-384, PEM), made when it is new.

        Raises:
            DataError: it is no such key, or the state cannot be written.
            PrivacyError: the key was revoked; it can never come back.
        """
        pem = normal(pem)
        if pem not in self._nodes:
            self._nodes = {**self._nodes, pem: self._link.create_node(pem)}
        return self._nodes[pem]

    def expel(self, node: int) -> None:
        """Revoke a node's key: its next request is refused, and nobody waits for its answers.

        Raises:
            ValueError: there is no such node.
            DataError: the state cannot be written.
        """
        self._link.delete_node(node)
        self._nodes = {pem: known for pem, known in self._nodes.items() if known != node}
        with self._lock:
            for name, question in self._questions.items():
                if question.sent.node == node:
                    question.answers.put(_Answer(name, None))
        self._wake_up(node)

    def seen(self) -> dict[int, float]:
        """Return when each node's last valid request came, as a Unix time; since this start."""
        return dict(self._seen)

    # --- the exchange --------------------------------------------------------------------------

    def exchange(self, nodes: Mapping[str, int], report: Report | None = None) -> "Exchange":
        """Return the exchange with the sites of ``nodes`` (name to node).

        Answers are yielded as they arrive, until all are there or the deadline has passed; what
        comes later is dropped. A refusal is passed to ``report``, by default to the log. Sending
        begins with the first step of the iteration.

        Raises, while it is iterated:
            DataError: the state cannot be written.
        """

        def exchange(
            kind: str, outgoing: Mapping[str, bytes], deadline_s: float
        ) -> Iterator[tuple[str, bytes]]:
            end = time.monotonic() + deadline_s
            answers: SimpleQueue[_Answer] = SimpleQueue()
            asked = self._ask(kind, outgoing, nodes, deadline_s, answers)
            left = {question.sent.name: question.site for question in asked}
            try:
                while left:
                    try:
                        answer = answers.get(timeout=max(0.0, end - time.monotonic()))
                    except Empty:
                        return
                    site = left.pop(answer.question, None)
                    if site is None:  # it was revoked meanwhile, or answered before that
                        continue
                    if answer.payload is not None:
                        yield site, answer.payload
                    elif answer.code:
                        (report or _log)(site, kind, answer.code)
                    del answer  # else its payload would stay while the next one is waited for
            finally:
                self._forget(asked)

        return exchange

    def _ask(
        self,
        kind: str,
        outgoing: Mapping[str, bytes],
        nodes: Mapping[str, int],
        deadline_s: float,
        answers: SimpleQueue[_Answer],
    ) -> list[_Question]:
        known = set(self._nodes.values())
        sites = {nodes[site]: site for site in outgoing if nodes.get(site) in known}
        sent = self._link.send(kind, sites, deadline_s)
        asked = [
            _Question(sites[one.node], one, outgoing[sites[one.node]], answers) for one in sent
        ]
        for site in outgoing.keys() - {question.site for question in asked}:
            _LOG.warning("%s has no key here: it was not asked", site)
        with self._lock:
            self._questions.update({question.sent.name: question for question in asked})
        for question in asked:
            self._wake_up(question.sent.node)
        return asked

    def _forget(self, asked: Sequence[_Question]) -> None:
        with self._lock:
            for question in asked:
                del self._questions[question.sent.name]
        self._link.forget(question.sent for question in asked)

    # --- what the gateway asks -----------------------------------------------------------------

    def listen(self, wake: Callable[[int], None] | None) -> None:
        """Call ``wake`` with the node, from any thread, when there is something for it."""
        self._wake = wake

    def authenticate(self, headers: Sequence[tuple[bytes, bytes]]) -> int:
        """Return the node that signed this request, just now and never before.

        Raises:
            RefusedError: 401; 429 for a site that asks too often.
        """
        signed: dict[bytes, bytes] = {}
        for name, value in headers:
            if name in signed:  # two readers could take two different ones
                raise RefusedError(401)
            if name in SIGNED:
                signed[name] = value
        node = authenticate(signed, self._nodes)
        self._mark(node, signed[STAMP])
        self._seen[node] = time.time()
        return node

    def check(self, node: int, path: str, body: bytes) -> None:
        """Refuse (403) a pull or heartbeat in another node's name."""
        if read_node(path, body) != node:
            raise self._theft(node)

    def pending(self, node: int) -> bool:
        """Say whether there is something to tell the node: a message, or that it was revoked."""
        return self._open(node) is not None or node not in self._nodes.values()

    def question(self, node: int) -> bytes:
        """Return the reply to a pull: the oldest message that the node has not answered, if any.

        It is given again until it is answered: a reply may be lost, and a site be restarted.
        """
        question = self._open(node)
        return b"" if question is None else write_pull(question.sent, question.payload)

    def reply(self, node: int, body: bytes) -> Reply | None:
        """Return what a push answers; None when that was answered before.

        Raises:
            RefusedError: 400 it is no answer, 403 it is not the node's own or answers what
                another was asked, 410 nobody waits for it any more.
        """
        pushed = read_push(body)
        if pushed.nodes != {node}:
            raise self._theft(node)
        with self._lock:
            question = self._questions.get(pushed.question)
        if question is None:
            raise RefusedError(410)
        if question.sent.node != node:
            raise self._theft(node)
        if question.answered:
            return None
        code = 0
        if pushed.payload is None:
            code = pushed.code if pushed.code in CODES else 1
        answer = _Answer(pushed.question, pushed.payload, code)
        return Reply(write_push(question.sent), question, answer)

    def _open(self, node: int) -> _Question | None:
        with self._lock:
            mine = (
                question
                for question in self._questions.values()
                if question.sent.node == node and not question.answered
            )
            return next(mine, None)

    def _theft(self, node: int) -> RefusedError:
        """Tell the log who spoke in another's name: no program of ours does that."""
        _LOG.warning("node %d spoke in another's name and was refused", node)
        return RefusedError(403)

    def _wake_up(self, node: int) -> None:
        if self._wake is not None:
            self._wake(node)

    def _mark(self, node: int, stamp: bytes) -> None:
        """Remember the stamp for as long as it is valid; refuse it the second time."""
        present = time.monotonic()
        marks = self._stamps.setdefault(node, {})
        while marks and next(iter(marks.values())) < present - FAST_S - SLOW_S:
            del marks[next(iter(marks))]
        if stamp in marks:
            raise RefusedError(401)
        if len(marks) >= STAMPS_MAX:
            raise RefusedError(429)
        marks[stamp] = present


def _log(site: str, kind: str, code: int) -> None:
    _LOG.warning("%s refused %s %s", site, kind, CODES[code])
