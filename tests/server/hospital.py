"""A hospital for tests of the coordinator: real keys, letters, fleet and rounds, in one thread.

Its records are made up and its steward approves at once. It asserts nothing.
"""

import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch

from client.app import make_app
from client.channel import Address
from client.fleet import Fleet, create_key
from client.lineage import Lineage
from client.masked import KINDS, Participant
from client.policy import Policy
from client.post import Post, fetch_authority
from client.site import Site, Split
from client.training import Tensors, Trainer
from privacy import identity
from privacy.heads import Head, countersign
from privacy.roster import Plan
from privacy.secagg_setup import Site as Place
from privacy.secagg_store import SiteStore
from shared_models import letters
from shared_models.debits import planned_mechanism
from shared_models.invitation import read_token
from shared_models.notice import KIND, Notice, read_notice
from shared_models.plan import count_values, make_plan
from shared_models.roster_file import RosterFile, read_roster
from shared_models.sizes import question_bytes
from shared_models.steps import site_encoding
from shared_models.study import Study, read_canonical

WAIT_S = 60.0  # nothing here takes so long, unless it hangs
HEAD = Head(1, "ab" * 28)
_ONE = threading.Lock()  # torch's generator is one for the process


class Hospital:
    """One site in one study."""

    def __init__(self, token: str, folder: Path, records: int = 24) -> None:
        self.invitation, self.folder = read_token(token), folder
        self.name = self.invitation.site
        self.identity = identity.create(folder / "identity.key")
        self.key = create_key(folder / "node.key")
        self.authority = fetch_authority(self.invitation)
        self.address = Address(self.invitation.host, self.invitation.port, self.authority)
        self.post = Post(
            self.address,
            self.invitation.server,
            self.identity,
            self.name,
            self.invitation.study.hex(),
            folder / "journal.db",
        )
        self.records = records
        self.stop = threading.Event()
        self.news: letters.News | None = None
        self.notice: Notice | None = None
        self.state = b""
        self.kinds: list[str] = []
        self.before: Callable[[str], None] = lambda kind: None  # called before each answer
        self.own: bytes | None = None  # the state that it knows by itself
        self._thread: threading.Thread | None = None
        self._store: SiteStore | None = None

    def enrol(self) -> letters.Enrolled:
        self.enrolled = self.post.enrol(self.invitation.secret, self.key.public)
        self.study = read_canonical(self.enrolled.study)
        return self.enrolled

    def ask(self, rows: int | None = None) -> letters.News:
        head = None
        if rows is not None:
            end = Head(rows, f"{rows:02x}" * 28)
            head = countersign(self.identity, self.identity.public, end)
        self.news = self.post.ask(head)
        return self.news

    def roster(self) -> RosterFile:
        news = self.await_news(lambda news: news.roster is not None)
        assert news.roster is not None
        return read_roster(news.roster.encode())

    def await_news(self, holds: Callable[[letters.News], bool]) -> letters.News:
        end = time.monotonic() + WAIT_S
        while not holds(news := self.ask()):
            if time.monotonic() > end:
                raise TimeoutError(f"{self.name} waited for news too long")
            time.sleep(0.2)
        return news

    def plan(self) -> Plan:
        parameters = trainer_of(self.study).parameters
        first = bytes.fromhex(self.enrolled.first_model)
        return make_plan(self.study, self.roster().roster(), parameters, first)

    def approve(self, confirmed: Collection[str] = ()) -> None:
        self.post.approve(self.plan().digest.hex(), confirmed)

    def work(self) -> "Hospital":
        """Take part in the rounds, in a thread."""
        self._thread = threading.Thread(target=self._serve, name=self.name, daemon=True)
        self._thread.start()
        return self

    def end(self) -> None:
        """Stop, as by Ctrl-C; started again it goes on from its store."""
        self.stop.set()
        if self._thread is not None:
            self._thread.join(WAIT_S)
        self.post.close()
        self.stop = threading.Event()

    def _serve(self) -> None:
        study, plan, roster = self.study, self.plan(), self.roster()
        own = [one.name for one in roster.sites].index(self.name)
        trainer = trainer_of(study)
        encoding = site_encoding(study, plan.n, count_values(study, trainer.parameters))
        site = Site(
            name=self.name,
            study=study,
            encoding=encoding,
            trainer=trainer,
            records=lambda: Split(made(own, self.records), made(own + 100, self.records)),
            folder=self.folder,
            policy=Policy(allow_exact_release=True),
        )
        first = bytes.fromhex(self.enrolled.first_model)
        lineage = Lineage(study, trainer.parameters, first)
        store = SiteStore(self.folder / "protocol.db")

        def place(_: object) -> Place:
            latest = self.ask().roster  # a real site asks beside the rounds
            assert latest is not None
            return Place(self.identity, own, plan, read_roster(latest.encode()).roster())

        participant = Participant(site, place, lineage, store)

        def answer(kind: str, node: int, message: bytes) -> bytes:
            self.kinds.append(kind)
            self.before(kind)
            if kind == KIND:
                self.notice, self.state = read_notice(message, self.invitation.server, plan.digest)
                self.own = participant.known.blob if participant.known else None
                self.stop.set()
                return b""
            with _ONE:
                return participant.answer(kind, message)

        kinds = (*KINDS, KIND)
        most = question_bytes(study, trainer.parameters)
        fleet = Fleet(self.address, self.key, self.enrolled.node, most, self.folder)
        try:
            fleet.serve(make_app(kinds, answer, lambda bug: None), kinds, self.stop)
        finally:
            store.close()


def trainer_of(study: Study) -> Trainer:
    return Trainer(study, planned_mechanism(study))


def made(seed: int, count: int) -> Tensors:
    """Records whose illness follows from their one number."""
    draw = np.random.default_rng(seed)
    inputs = draw.uniform(-1, 1, (count, 1)).astype(np.float32)
    ill = (inputs[:, 0] + draw.normal(0, 0.3, count) > 0).astype(np.int64)
    return Tensors(torch.from_numpy(inputs), torch.from_numpy(ill))
