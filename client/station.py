"""A site at work in a study: from the approved plan to the end, through restarts of either side.

It decides no round: the participant does. Here its parts are joined to the line, to the log and to
the end of the study. Everything that leaves is in the log before it is sent.
"""

import hashlib
import logging
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from client import folder as names
from client.app import make_app
from client.audit import read_audit
from client.consent import Agreed, Steward, agree, check_meant, place_of, recall
from client.correspondence import Correspondence
from client.data.faults import LeftOut
from client.data.read import read_records
from client.enrolment import split_key
from client.fleet import Fleet, load_key
from client.journal import Journal
from client.lineage import Lineage
from client.masked import KINDS, Participant
from client.membership import Member, check_stays, claimed, load
from client.policy import Policy, adopt, check, limit_threads, load_policy
from client.post import post_of
from client.site import Entropy, Site, Split, system_entropy
from client.site_log import KEPT, Tell, keep_bug, logged, once
from client.split import split
from client.takehome import take_home
from client.training import Trainer
from privacy import identity as identities
from privacy.errors import DataError, FedwardError, ProtocolError
from privacy.heads import Heads
from privacy.ledger import Ledger
from privacy.secagg_setup import Site as Place
from privacy.secagg_store import SiteStore
from privacy.wire import read_header
from shared_models.debits import planned_mechanism
from shared_models.durable import write_durably
from shared_models.notice import KIND as ENDED
from shared_models.notice import REASONS, Notice, read_notice
from shared_models.plan import count_values
from shared_models.sizes import question_bytes
from shared_models.steps import site_encoding
from shared_models.strategies import state_hash

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


Watch = Callable[[Watched], None]


def work(
    folder: Path,
    steward: Steward,
    tell: Tell,
    watch: Watch = lambda _: None,
    *,
    meant: str | None = None,
    records: Callable[[], Split] | None = None,
    entropy: Entropy = system_entropy,
) -> Ended:
    """Take part in the study that a folder is enrolled in, until it ends.

    Args:
        folder: of the site.
        steward: is asked for the approval, unless one still holds.
        tell: is told what is waited for and what is new, one line each, as in the site's log.
        watch: is told where the study is, whenever that may have changed; in any thread.
        meant: digest of the plan that is expected; as `client.consent.agree`.
        records: reads the records in the place of the enrolled file; simulations only.
        entropy: seeded; simulations only.

    Raises:
        PrivacyError: not approved, or another plan than was meant; the policy, the ledger or the
            log refuses; revoked, or left.
        DataError: the folder is none of an enrolled site, or a file cannot be used.
        ProtocolError: the study has stopped; what it left is in the folder all the same.
    """
    load(folder)  # a folder of nobody is left as it is
    with claimed(folder), logged(folder / names.LOG, tell):
        try:
            ended = _Station(load(folder), steward, watch, meant, records, entropy).run()
        except FedwardError as error:
            KEPT.error("ended: %s", error)
            raise
        except KeyboardInterrupt:
            KEPT.info("interrupted")
            raise
    if ended.notice.reason == "stopped":
        raise ProtocolError(
            f"the study has stopped: {REASONS['stopped']}; what it left is in {ended.model}",
            "the coordinator knows why it stopped",
        )
    return ended


class _Station:
    """One site's work, in this thread and one for letters."""

    def __init__(
        self,
        member: Member,
        steward: Steward,
        watch: Watch,
        meant: str | None,
        records: Callable[[], Split] | None,
        entropy: Entropy,
    ) -> None:
        self._member, self._steward, self._watch = member, steward, watch
        self._meant = meant
        self._entropy, self._given_records = entropy, records
        self._identity = identities.load(member.folder / names.IDENTITY)
        self._split: Split | None = None
        self._stop = threading.Event()
        self._trouble: FedwardError | None = None
        self._round = 0
        self._waiting: tuple[str, ...] = ()

    def run(self) -> Ended:
        member, identity = self._member, self._identity
        check_stays(member)
        read_audit(member.folder)  # a past that was changed or cut is no ground to go on from
        if member.has(names.NOTICE):
            agreed = recall(member, identity)
            check_meant(agreed.approval.plan, self._meant)
            return self._go_home(agreed)
        policy = self._policy()
        with closing(post_of(member, identity)) as post:
            tell = once(_LOG.info)
            agreed = agree(member, identity, policy, post, self._steward, tell, meant=self._meant)
        self._work(policy, agreed)
        if self._trouble is not None:
            raise self._trouble
        if not member.has(names.NOTICE):
            raise KeyboardInterrupt  # stopped from outside before the end
        return self._go_home(agreed)

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

    def _work(self, policy: Policy, agreed: Agreed) -> None:
        """Answer the coordinator until the study ends, or something here ends the work."""
        member, study = self._member, self._member.study
        limit_threads(policy)
        trainer = Trainer(study, planned_mechanism(study))
        if trainer.fallback:
            _LOG.info("note: %s", trainer.fallback)
        first = bytes.fromhex(member.membership.first_model)
        with (
            closing(SiteStore(member.folder / names.PROTOCOL)) as store,
            Heads(member.folder / names.PEERS) as heads,
            Journal(member.folder / names.JOURNAL) as journal,
            closing(post_of(member, self._identity)) as post,
        ):
            letters = Correspondence(
                member,
                self._identity,
                post,
                agreed.roster,
                heard=lambda: self._show(letters),
                end=self._end,
            )
            participant = Participant(
                self._site(policy, agreed, trainer),
                self._place(agreed, letters),
                Lineage(study, trainer.parameters, first),
                store,
                heads=heads,
            )
            with letters:
                self._serve(agreed, participant, journal, letters)

    def _serve(
        self,
        agreed: Agreed,
        participant: Participant,
        journal: Journal,
        letters: Correspondence,
    ) -> None:
        member = self._member
        approval = agreed.approval.plan
        self._reach(participant)
        self._show(letters)

        def answer(kind: str, node: int, message: bytes) -> bytes:
            del node
            asked = hashlib.sha256(message).hexdigest()
            try:
                check_stays(member)
                if kind == ENDED:
                    reply = self._hear_end(agreed, journal, letters, message)
                else:
                    reply = participant.answer(kind, message)
                    check_stays(member)  # it may have left while it trained
            except FedwardError as error:
                journal.note("refused", message=kind, asked=asked, code=error.exit_code)
                raise
            with Ledger(member.folder / names.LEDGER) as ledger:
                head = ledger.head()
            journal.note(
                "sent",
                message=kind,
                round=_round_of(reply),
                asked=asked,
                asked_bytes=len(message),
                bytes=len(reply),
                sha256=hashlib.sha256(reply).hexdigest(),
                approval=approval,
                ledger=f"{head.rows}/{head.digest}",
            )
            if self._reach(participant):
                KEPT.info("round %d of %d is done", self._round, member.study.rounds)
            self._show(letters)
            return reply

        kinds = (*KINDS, ENDED)
        most = question_bytes(member.study, agreed.parameters)
        key = load_key(member.folder / names.NODE)
        fleet = Fleet(member.address(), key, member.membership.node, most, member.folder / "flower")
        _LOG.info("at work in %s under plan %s", member.study.name, approval)
        app = make_app(kinds, answer, keep_bug)
        fleet.serve(app, kinds, self._stop, gone=lambda: member.has(names.LEFT))

    def _hear_end(
        self, agreed: Agreed, journal: Journal, letters: Correspondence, message: bytes
    ) -> bytes:
        notice, _ = read_notice(message, self._member.server, bytes.fromhex(agreed.approval.plan))
        journal.note("ended", reason=notice.reason, model=notice.model)
        try:
            write_durably(self._member.folder / names.NOTICE, message)
        except OSError as error:
            raise DataError(
                f"{self._member.folder / names.NOTICE}: cannot be written ({error.strerror})"
            ) from error
        KEPT.info("the study has ended: %s", REASONS[notice.reason])
        letters.tell_end()  # it is there: it waits for the answer
        self._stop.set()
        return b""

    def _go_home(self, agreed: Agreed) -> Ended:
        """Write what is taken home, from the notice and what this site has computed itself."""
        member = self._member
        path = member.folder / names.NOTICE
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        plan = bytes.fromhex(agreed.approval.plan)
        notice, state = read_notice(data, member.server, plan)
        with closing(SiteStore(member.folder / names.PROTOCOL)) as store:
            own = {state_hash(blob).hex() for blob, _ in store.states()}
        computed = notice.model in {member.membership.first_model, *own}
        return Ended(notice, take_home(member, agreed.roster, agreed.plan, notice, state, computed))

    def _reach(self, participant: Participant) -> bool:
        """Note how far the site is; say whether that is a round further."""
        known, before = participant.known, self._round
        self._round = 0 if known is None else known.state.round
        return self._round > before

    def _show(self, letters: Correspondence) -> None:
        waiting = letters.waiting
        if waiting != self._waiting:
            self._waiting = waiting
            if waiting:
                KEPT.info("waiting until %s approve", ", ".join(waiting))
        self._watch(Watched(self._round, self._member.study.rounds, waiting))

    def _end(self, trouble: FedwardError) -> None:
        self._trouble = trouble
        self._stop.set()


def _round_of(reply: bytes) -> int | None:
    """Return the round that a message says it is of; None before there is one."""
    try:
        return read_header(reply).counter.round or None
    except ProtocolError:  # it is empty, or a greeting
        return None


def _tell_left_out(left_out: LeftOut) -> None:
    """Say in the site's own log which records broke the contract."""
    if left_out.count:
        _LOG.warning("records that break the contract and are left out: %d", left_out.count)
        for place in left_out.places:
            _LOG.warning("left out: %s", place)
