"""A site at work in a study: from the approved plan to the end, through restarts of either side.

It decides no round: the participant does. Here its parts are joined to the line, to the log and to
the end of the study. Everything that leaves is in the log before it is sent.
"""

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from client import folder as names
from client.app import make_app
from client.consent import Agreed, Steward, agree, place_of
from client.correspondence import Correspondence
from client.data.faults import LeftOut
from client.data.read import read_records
from client.enrolment import split_key
from client.fleet import Fleet, load_key
from client.journal import Journal
from client.lineage import Lineage
from client.masked import KINDS, Participant
from client.membership import Member, claimed, load
from client.policy import Policy, adopt, check, limit_threads, load_policy
from client.post import Post
from client.site import Entropy, Site, Split, system_entropy
from client.split import split
from client.takehome import take_home
from client.training import Trainer
from privacy import identity as identities
from privacy.errors import DataError, FedwardError, PrivacyError, ProtocolError
from privacy.heads import Heads
from privacy.keys import Identity
from privacy.ledger import Ledger
from privacy.secagg_setup import Site as Place
from privacy.secagg_store import SiteStore
from shared_models.debits import planned_mechanism
from shared_models.durable import write_durably
from shared_models.notice import KIND as ENDED
from shared_models.notice import REASONS, Notice, read_notice
from shared_models.plan import count_values
from shared_models.sizes import question_bytes
from shared_models.steps import site_encoding

_LOG = logging.getLogger("fedward.site")


@dataclass(frozen=True)
class Watched:
    """What whoever watches may know: where the study is.

    Attributes:
        round: of the state that the site has.
        rounds: of the study.
        waiting: sites that have not approved yet.
    """

    round: int
    rounds: int
    waiting: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """How it ended.

    Attributes:
        notice: of the coordinator.
        model: the folder that is taken home.
    """

    notice: Notice
    model: Path

    @property
    def words(self) -> str:
        """Why it ended."""
        return f"the study has ended: {REASONS[self.notice.reason]}"


Tell = Callable[[str], None]
Watch = Callable[[Watched], None]


def work(
    folder: Path,
    steward: Steward,
    tell: Tell,
    watch: Watch = lambda _: None,
    *,
    records: Callable[[], Split] | None = None,
    entropy: Entropy = system_entropy,
) -> Ended:
    """Take part in the study that a folder is enrolled in, until it ends.

    Args:
        folder: of the site.
        steward: is asked for the approval, unless one still holds.
        tell: is told what is waited for.
        watch: is told where the study is, whenever a message was answered.
        records: reads the records in the place of the enrolled file; simulations only.
        entropy: seeded; simulations only.

    Raises:
        PrivacyError: not approved; the policy, the ledger or the log refuses; revoked, or left.
        DataError: the folder is none of an enrolled site, or a file cannot be used.
        ProtocolError: the study has stopped; what it left is in the folder all the same.
    """
    with claimed(folder), _logged(folder / names.LOG):
        try:
            station = _Station(load(folder), steward, tell, watch, records, entropy)
            ended = station.run()
        except FedwardError as error:
            _LOG.error("ended: %s", error)
            raise
        except KeyboardInterrupt:
            _LOG.info("interrupted")
            raise
    if ended.notice.reason == "stopped":
        raise ProtocolError(
            f"{REASONS['stopped']}; what it left is in {ended.model}",
            "the coordinator knows why it stopped",
        )
    return ended


def verify(member: Member, identity: Identity) -> None:
    """Check the site's log against itself and against what others have signed of it.

    Raises:
        PrivacyError: a row was changed, or the log or the ledger is shorter than it was.
    """
    with Heads(member.folder / names.LOGS) as heads:
        signed = [one.head for one in heads.all() if one.owner == identity.public]
    with Journal(member.folder / names.JOURNAL) as journal:
        journal.verify(*signed)
    with Ledger(member.folder / names.LEDGER) as ledger:
        ledger.verify()


class _Station:
    """One site's work, in this thread and one for letters."""

    def __init__(
        self,
        member: Member,
        steward: Steward,
        tell: Tell,
        watch: Watch,
        records: Callable[[], Split] | None,
        entropy: Entropy,
    ) -> None:
        self._member, self._steward, self._tell, self._watch = member, steward, tell, watch
        self._entropy, self._given_records = entropy, records
        self._identity = identities.load(member.folder / names.IDENTITY)
        self._split: Split | None = None
        self._stop = threading.Event()
        self._trouble: FedwardError | None = None
        self._notice: tuple[Notice, bytes] | None = None

    def run(self) -> Ended:
        member, identity = self._member, self._identity
        self._check_stays()
        verify(member, identity)
        policy = self._policy()
        with closing(self._post()) as post:
            agreed = agree(member, identity, policy, post, self._steward, self._tell)
        torch.set_num_threads(1)  # the same bytes at any load
        limit_threads(policy)
        trainer = Trainer(member.study, planned_mechanism(member.study))
        if trainer.fallback:
            self._tell(f"note: {trainer.fallback}")
        first = bytes.fromhex(member.membership.first_model)
        lineage = Lineage(member.study, trainer.parameters, first)
        with (
            closing(SiteStore(member.folder / names.PROTOCOL)) as store,
            Heads(member.folder / names.PEERS) as heads,
            Journal(member.folder / names.JOURNAL) as journal,
            closing(self._post()) as post,
            Correspondence(member, identity, post, agreed.roster, self._end) as letters,
        ):
            participant = Participant(
                self._site(policy, agreed, trainer),
                self._place(agreed, letters),
                lineage,
                store,
                heads=heads,
            )
            if not member.has(names.NOTICE):
                self._serve(agreed, participant, journal, letters)
            if self._trouble is not None:
                raise self._trouble
            notice, state = self._noticed(agreed)
            model = take_home(member, letters.roster, agreed.plan, notice, state, participant.known)
        return Ended(notice, model)

    def _check_stays(self) -> None:
        if self._member.has(names.LEFT):
            raise PrivacyError(
                f"this site has left {self._member.study.name}",
                "`fedward-site enrol` takes part in another study",
            )

    def _policy(self) -> Policy:
        """Return the policy, written into ledger and log before anything is done under it."""
        folder = self._member.folder
        policy = load_policy(folder / names.POLICY)
        check(policy, self._member.study)
        with Ledger(folder / names.LEDGER) as ledger:
            row = adopt(policy, ledger)
        if row is not None:
            with Journal(folder / names.JOURNAL) as journal:
                journal.note("policy", policy=policy.digest(), ledger=row.digest)
        return policy

    def _post(self) -> Post:
        member = self._member
        return Post(
            member.address(),
            member.server,
            self._identity,
            member.membership.site,
            member.membership.study,
        )

    def _site(self, policy: Policy, agreed: Agreed, trainer: Trainer) -> Site:
        study = self._member.study
        values = count_values(study, trainer.parameters)
        return Site(
            name=self._member.membership.site,
            study=study,
            encoding=site_encoding(study, agreed.plan.n, values),
            trainer=trainer,
            records=self._records,
            folder=self._member.folder,
            policy=policy,
            entropy=self._entropy,
        )

    def _records(self) -> Split:
        """Read the records, once a start: the first debit was written down before."""
        if self._split is None:
            if self._given_records is not None:
                self._split = self._given_records()
            else:
                member, study = self._member.membership, self._member.study
                read = read_records(study, Path(member.data), leave_out=True)
                _tell_left_out(read.left_out)
                key = split_key(self._member.folder)
                self._split = split(study, read, key, member.fraction)
        return self._split

    def _place(self, agreed: Agreed, letters: Correspondence) -> Callable[[tuple[int, ...]], Place]:
        own = place_of(self._member, self._identity, agreed.roster)

        def place(members: tuple[int, ...]) -> Place:
            if members:
                raise ProtocolError("expected a run of all sites, got one of some; it was refused")
            return Place(self._identity, own, agreed.plan, letters.roster.roster())

        return place

    def _serve(
        self,
        agreed: Agreed,
        participant: Participant,
        journal: Journal,
        letters: Correspondence,
    ) -> None:
        member = self._member
        approval = agreed.plan.digest.hex()

        def answer(kind: str, node: int, message: bytes) -> bytes:
            del node
            asked = hashlib.sha256(message).hexdigest()
            try:
                self._check_stays()
                reply = (
                    self._hear_end(agreed, journal, message)
                    if kind == ENDED
                    else participant.answer(kind, message)
                )
            except FedwardError as error:
                journal.note("refused", message=kind, asked=asked, code=error.exit_code)
                raise
            journal.note(
                "sent",
                message=kind,
                asked=asked,
                bytes=len(reply),
                sha256=hashlib.sha256(reply).hexdigest(),
                approval=approval,
                ledger=participant_ledger(),
            )
            known = participant.known
            done = 0 if known is None else known.state.round
            self._watch(Watched(done, member.study.rounds, letters.waiting))
            return reply

        def participant_ledger() -> str:
            with Ledger(member.folder / names.LEDGER) as ledger:
                head = ledger.head()
            return f"{head.rows}/{head.digest}"

        def log(bug: Exception) -> None:
            _LOG.error("an answer failed by a fault of the program: %s", type(bug).__name__)

        self._watch(Watched(0, member.study.rounds, letters.waiting))
        kinds = (*KINDS, ENDED)
        most = question_bytes(member.study, agreed.parameters)
        key = load_key(member.folder / names.NODE)
        fleet = Fleet(member.address(), key, member.membership.node, most, member.folder / "flower")
        _LOG.info("at work in %s under plan %s", member.study.name, approval)
        fleet.serve(make_app(kinds, answer, log), kinds, self._stop)

    def _hear_end(self, agreed: Agreed, journal: Journal, message: bytes) -> bytes:
        notice, state = read_notice(message, self._member.server, agreed.plan.digest)
        journal.note("ended", reason=notice.reason, model=notice.model)
        try:
            write_durably(self._member.folder / names.NOTICE, message)
        except OSError as error:
            raise DataError(
                f"{self._member.folder / names.NOTICE}: cannot be written ({error.strerror})"
            ) from error
        self._notice = notice, state
        _LOG.info("the study has ended: %s", REASONS[notice.reason])
        self._stop.set()
        return b""

    def _noticed(self, agreed: Agreed) -> tuple[Notice, bytes]:
        if self._notice is not None:
            return self._notice
        path = self._member.folder / names.NOTICE
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise KeyboardInterrupt from None  # stopped from outside before the end
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        return read_notice(data, self._member.server, agreed.plan.digest)

    def _end(self, trouble: FedwardError | None) -> None:
        self._trouble = trouble
        self._stop.set()


def _tell_left_out(left_out: LeftOut) -> None:
    """Say in the site's own log which records broke the contract."""
    if left_out.count:
        _LOG.warning("records that break the contract and are left out: %d", left_out.count)
        for place in left_out.places:
            _LOG.warning("left out: %s", place)


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write what happens into the site's log for people, one line each, in UTC."""
    try:
        path.touch(mode=0o600)
        lines = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
    form = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    form.converter = time.gmtime
    lines.setFormatter(form)
    log = logging.getLogger("fedward")
    before, log.level = log.level, logging.INFO
    log.addHandler(lines)
    try:
        yield
    finally:
        log.removeHandler(lines)
        log.level = before
        lines.close()
