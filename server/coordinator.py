"""One process that runs a study: it serves letters and rounds until the study ends.

Everything that must not be forgotten is on disk before it is acted on, so that the process may end
at any moment and be started again. What people see of it is `server.live`'s.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from starlette.types import ASGIApp

from privacy.errors import AbsentError, DataError, FedwardError, PrivacyError, ProtocolError
from privacy.keys import Identity
from privacy.secagg_server import Coordinator as Keys
from server.attendance import Attendance, check_quorum
from server.books import Books, Page
from server.checkpoint import Checkpoint, Row, save
from server.costs import Costs
from server.folder import (
    BOOKS,
    CHECKPOINT,
    HOME,
    HUB,
    LOG,
    METRICS,
    ROUNDS,
    Folder,
    claimed,
    is_loopback,
)
from server.gateway import serve
from server.hub import Hub
from server.listener import Door
from server.masked import MaskedSum
from server.metrics import MetricsFile
from server.office import AUTHORITY_PATH, Authority, Office
from server.rounds import Exchange, Opened, Order, Summation, awaits_evaluation, run_rounds
from server.standing import HERE_S, Standing, read_checkpoint, released, released_subgroups
from server.store import ServerStore
from shared_models import letters
from shared_models.log_file import LogFile
from shared_models.notice import KIND as ENDED
from shared_models.notice import REASONS, Notice, notable, write_notice
from shared_models.notice import Reason as End
from shared_models.roster_file import RosterFile
from shared_models.sizes import answer_bytes
from shared_models.steps import evaluation_due
from shared_models.strategies import read_state, state_bytes, state_hash
from shared_models.study import Study
from shared_models.tasks import target_of

TICK_S = 1.0  # how soon another shell's seal or revoke is followed
_EVERYWHERE = "0.0.0.0"  # noqa: S104 - hospitals come from outside; the gateway lets nobody else in
_LOG = logging.getLogger("fedward.server")


class Coordinator:
    """A study in this process."""

    def __init__(
        self,
        folder: Folder,
        listen: str | None = None,
        watch: Callable[[Checkpoint], None] = lambda _: None,
    ) -> None:
        """Start nothing yet.

        Args:
            folder: of the study.
            listen: address of this machine; None: all of them, or loopback for a loopback host.
            watch: is shown each checkpoint before it is kept; simulations only.
        """
        host = folder.settings.host
        self._folder, self._study, self._watch = folder, folder.study, watch
        self._listen = listen or (host if is_loopback(host) else _EVERYWHERE)
        self._books = Books(folder / BOOKS)
        self._now = read_checkpoint(folder)
        self._attendance: Attendance | None = None

    def close(self) -> None:
        """Close the books."""
        self._books.close()

    def standing(self) -> Standing:
        """Return where the study stands; from any thread."""
        page, attendance = self._books.page(), self._attendance
        seen = {one.site: one.seen for one in page.sites if one.seen is not None}
        if attendance is not None:
            seen.update(attendance.seen(page))
        return Standing(self._study, page, self._now, attendance is not None, seen)

    def run(self) -> None:
        """Serve until the study has ended and the sites that are there were told.

        Raises:
            DataError: another process serves from the folder, the port is taken, or the disk is
                full: started again, the study goes on.
            ProtocolError, AbsentError: the study could not go on, and has ended so.
        """
        with claimed(self._folder.path), _logged(self._folder / LOG):
            _LOG.info("started: study %s, %s", self._study.name, self._study.digest())
            try:
                with self._opened() as (identity, attendance):
                    self._serve(identity, attendance)
            except FedwardError as error:
                _LOG.error("ended: %s", error)
                raise
            except KeyboardInterrupt:
                _LOG.info("interrupted")
                raise

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Identity, Attendance]]:
        """Let sites in while the context lasts."""
        folder, books = self._folder, self._books
        identity, certificates = folder.identity(), folder.certificates()
        hub = Hub(folder / HUB, folder / HOME)
        try:
            _check_nodes(hub, books.page(), folder / HUB)
            attendance = Attendance(hub, books)
            office = Office(
                self._study,
                folder.first_model,
                identity,
                books,
                folder / BOOKS,
                hub.admit,
                attendance.settle,
                attendance.hear,
            )
            door = Door(self._listen, folder.settings.port, certificates)
            payload = answer_bytes(self._study, folder.settings.parameters)
            authority = Authority(certificates.authority.read_bytes())
            extra: dict[str, ASGIApp] = {letters.PATH: office, AUTHORITY_PATH: authority}
            with serve(hub, door, payload, extra) as port, _repeated(attendance.settle):
                _LOG.info("listening on %s, port %d", self._listen, port)
                self._attendance = attendance
                yield identity, attendance
        finally:
            self._attendance = None
            hub.close()

    def _serve(self, identity: Identity, attendance: Attendance) -> None:
        """Walk through the study's life from wherever the books say it is."""
        trouble: FedwardError | None = None
        page = self._books.page()
        if page.ended is None:
            roster, trouble = self._sealed()
            if trouble is None:
                trouble = self._run_rounds(identity, attendance, roster)
            self._end(trouble)
        elif page.ended == "stopped":
            trouble = ProtocolError(page.why or "expected to go on, could not")
        self._tell(identity, attendance)
        if trouble is not None:
            raise type(trouble)(
                f"{trouble}; the study has stopped after round {self._round()}",
                "`fedward-server export` writes the model of its last round",
            )

    def _sealed(self) -> tuple[RosterFile, FedwardError | None]:
        """Wait until the roster is sealed and every site that stays has approved its plan."""
        while (roster := self._books.page().roster) is None:
            time.sleep(TICK_S)
        plan = self._folder.plan(roster.roster())
        if self._books.follow_plan(plan.digest.hex()):
            _LOG.warning("another version of the program makes another plan: sites approve anew")
        _LOG.info("the roster is sealed; plan %s", plan.digest.hex())
        try:
            while (page := self._books.page()).state != "running":
                check_quorum(page, plan.quorum)
                time.sleep(TICK_S)
        except ProtocolError as error:
            return roster, error
        return roster, None

    def _run_rounds(
        self, identity: Identity, attendance: Attendance, roster: RosterFile
    ) -> FedwardError | None:
        """Run the rounds that are left; return why they could not be, when they could not."""
        folder, study, parameters = self._folder, self._study, self._folder.settings.parameters
        plan = folder.plan(roster.roster())
        names = tuple(site.name for site in roster.sites)
        now = self._now
        if now is None:
            now = Checkpoint(study.digest(), read_state(folder.first(), parameters), ())
        if now.digest != study.digest():
            raise DataError(f"{folder / CHECKPOINT}: expected one of this study, found another's")
        rows = _Rows(folder, study, Costs(study, len(names), parameters), self._books, now)
        store = ServerStore(folder / ROUNDS)

        def keys(_: object) -> Keys:
            latest = self._books.page().roster or roster
            return Keys(identity, plan, latest.roster())

        masked = MaskedSum(keys, lambda _: (), study.aggregation.deadline_s, store=store)
        _LOG.info("rounds begin after round %d of %d", now.state.round, study.rounds)
        try:
            for done in run_rounds(
                study,
                now,
                attendance.exchange(self._books.page(), plan.quorum),
                _Counted(masked, self._books),
                lambda _: names,
                len(names),
                self._keep,
            ):
                rows.add(done)
        except (ProtocolError, AbsentError) as error:
            return error
        finally:
            store.close()
        return None

    def _keep(self, checkpoint: Checkpoint) -> None:
        self._watch(checkpoint)
        save(self._folder / CHECKPOINT, checkpoint)
        self._now = checkpoint

    def _end(self, trouble: FedwardError | None) -> None:
        reason: End = "stopped"
        if trouble is None:
            early = self._now is not None and self._now.stopped
            reason = "early" if early and self._round() < self._study.rounds else "finished"
        self._books.end(reason, "" if trouble is None else str(trouble))
        _LOG.info("after round %d: %s", self._round(), REASONS[reason])

    def _tell(self, identity: Identity, attendance: Attendance) -> None:
        """Give the notice to every site that is there, or comes back within the minute."""
        page = self._books.page()
        if page.roster is None or page.plan is None or page.ended is None:
            return
        now = self._now
        state = self._folder.first() if now is None else state_bytes(now.state)
        notice = Notice.model_validate(
            {
                "plan": page.plan,
                "reason": page.ended,
                "model": state_hash(state).hex(),
                "released": notable(released(now)[1]),
                "subgroups": {
                    group: told and notable(told) for group, told in released_subgroups(now).items()
                },
            }
        )
        message = write_notice(identity, notice, state)
        ask = attendance.exchange(page, 0)
        deadline_s = self._study.aggregation.deadline_s
        end = time.monotonic() + max(deadline_s, HERE_S)
        alone_since = time.monotonic()
        while time.monotonic() < end:
            there = self._untold() & attendance.here(self._books.page())
            if there:
                for site, answer in ask(ENDED, dict.fromkeys(there, message), deadline_s):
                    if answer == b"":
                        self._books.confirm_end(site)
                        _LOG.info("%s knows that the study has ended", site)
                alone_since = time.monotonic()
            if not self._untold() or (not there and time.monotonic() - alone_since > HERE_S):
                break
            time.sleep(TICK_S)
        for site in sorted(self._untold()):
            _LOG.warning("%s was not there to be told; `fedward-server start` tells it later", site)

    def _untold(self) -> set[str]:
        return {one.site for one in self._books.page().sites if one.stays and not one.told}

    def _round(self) -> int:
        return 0 if self._now is None else self._now.state.round


class _Counted:
    """A sum whose attempts are in the books before a site may read a record for them."""

    def __init__(self, summation: Summation, books: Books) -> None:
        self._summation, self._books = summation, books

    def __call__(self, exchange: Exchange, order: Order) -> Opened:
        def counting(
            kind: str, outgoing: Mapping[str, bytes], deadline_s: float
        ) -> Iterator[tuple[str, bytes]]:
            if kind == "cohort":
                self._books.begin_attempt(order.kind)
            yield from exchange(kind, outgoing, deadline_s)

        return self._summation(counting, order)

    def finish(self, exchange: Exchange, sites: tuple[str, ...], state: bytes) -> None:
        self._summation.finish(exchange, sites, state)


class _Rows:
    """metrics.csv and the log, a row and a line a round; also of rounds that were taken back."""

    def __init__(
        self, folder: Folder, study: Study, costs: Costs, books: Books, start: Checkpoint
    ) -> None:
        self._study, self._costs, self._books = study, costs, books
        self._path = folder / METRICS
        names = target_of(study).metrics
        self._columns = ["round", "sites", "epsilon", *(f"released_{name}" for name in names)]
        done = start.state.round - awaits_evaluation(study, start)
        self._file = MetricsFile(self._path, self._columns, done)
        if done == start.state.round > self._file.last:  # cut between checkpoint and metrics
            self.add(start)

    def add(self, now: Checkpoint) -> None:
        number, row = now.state.round, now.history[-1]
        if number <= self._file.last:
            self._file = MetricsFile(self._path, self._columns, number - 1)
        figures = _values(row)
        epsilon = None
        if evaluation_due(self._study, number) or now.stopped:
            epsilon = self._costs.epsilon(self._books.page().begun)
            self._books.keep_epsilon(epsilon)
        told = {f"released_{name}": value for name, value in figures.items()}
        self._file.add({**row, **told, "epsilon": epsilon})
        words = "".join(f", {name} {value:.3f}" for name, value in figures.items() if value)
        _LOG.info("round %d of %d: %s sites%s", number, self._study.rounds, row["sites"], words)


def _values(row: Row) -> dict[str, float | None]:
    figures = row.get("released")
    if not isinstance(figures, Mapping):
        return {}
    return {str(name): figure["value"] for name, figure in figures.items()}


def _check_nodes(hub: Hub, page: Page, database: Path) -> None:
    """Check that Flower's state and the books are of one age: sites know their numbers.

    Raises:
        DataError: one of the two was restored without the other.
    """
    for one in page.sites:
        try:
            same = not one.stays or hub.admit(one.pem) == one.node
        except PrivacyError:  # revoked there, and by these books it is not
            same = False
        if not same:
            raise DataError(
                f"{database}: expected the number under which {one.site} enrolled, found another",
                "restore all files of the folder from the same copy",
            )


@contextlib.contextmanager
def _repeated(settle: Callable[[], Page]) -> Iterator[None]:
    """Follow the books every second, whatever the rounds wait for."""
    over = threading.Event()

    def work() -> None:
        trouble = ""
        while not over.wait(TICK_S):
            try:
                settle()
                trouble = ""
            except Exception as error:  # the outermost loop: a revocation must not wait for ever
                if str(error) != trouble:
                    _LOG.error("the books could not be followed: %s", error)
                trouble = str(error)

    thread = threading.Thread(target=work, name="fedward-books", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10.0)


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write what happens into the folder's log, one line each, in UTC."""
    lines = LogFile(path)
    log = logging.getLogger("fedward")
    before, log.level = log.level, logging.INFO
    log.addHandler(lines)
    try:
        yield
    finally:
        log.removeHandler(lines)
        log.level = before
        lines.close()
