"""What a site must remember of the aggregation protocol across a crash, on disk before it is sent.

Counters, runs, acknowledged survivor sets, given answers and the integers of an open round. Channel
secrets, mask keys and the group key are never here: a restart is a new run. Sections 1, 2 and 6.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from privacy.disk import disk_error
from privacy.errors import ProtocolError
from privacy.roster import Kind
from privacy.wire import Counter, bitmap

_WAIT_S = 60.0
_TABLES = """
CREATE TABLE IF NOT EXISTS runs (run BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (
    site INTEGER PRIMARY KEY, round INTEGER NOT NULL, attempt INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS acks (
    run BLOB, round INTEGER, attempt INTEGER, cohort BLOB NOT NULL, survivors BLOB NOT NULL,
    PRIMARY KEY (run, round, attempt)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
    run BLOB, round INTEGER, attempt INTEGER, ack_set BLOB NOT NULL, answer BLOB NOT NULL,
    PRIMARY KEY (run, round, attempt)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS work (
    kind INTEGER, model BLOB, integers BLOB NOT NULL, lanes BLOB NOT NULL,
    PRIMARY KEY (kind, model)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS states (
    number INTEGER PRIMARY KEY, blob BLOB NOT NULL, result BLOB NOT NULL);
"""
_EXACT = """
CREATE TABLE IF NOT EXISTS exact_models (model BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS exact_set (
    one INTEGER PRIMARY KEY CHECK (one = 1), survivors BLOB NOT NULL);
"""
_STATES = 2  # the present one and the one before the last sum, which may be taken back

Integers = npt.NDArray[np.int32]
Lanes = npt.NDArray[np.int64]


class SiteStore:
    """One site's memory of one study's protocol, in SQLite; several processes may open it."""

    def __init__(self, path: Path | None) -> None:
        """Open ``path``, creating it with mode 0600; None keeps it in memory (simulations).

        Raises:
            ProtocolError: it is no such file.
            DataError: the disk failed, as from all that follows.
        """
        self._path = path
        with self._failing():
            # Not when it is there: to close it would drop the locks that this process has on it.
            if path is not None and not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._connection = sqlite3.connect(
                ":memory:" if path is None else path, timeout=_WAIT_S, isolation_level=None
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_TABLES + _EXACT)

    def begin_run(self, run: bytes) -> None:
        """Note a run; a repeated id is refused (section 1).

        Raises:
            ProtocolError: the site has taken part in this run before.
        """
        with self._writing() as connection:
            if connection.execute("SELECT 1 FROM runs WHERE run = ?", (run,)).fetchone():
                raise ProtocolError("expected a new run, got a repeated id; nothing was sent")
            connection.execute("INSERT INTO runs VALUES (?)", (run,))

    def counters(self) -> dict[int, Counter]:
        """Return the highest counter ever seen of each site, the own one included."""
        with self._failing():
            rows = self._connection.execute("SELECT site, round, attempt FROM counters").fetchall()
        return {site: Counter(number, attempt) for site, number, attempt in rows}

    def raise_counters(self, seen: Mapping[int, Counter]) -> None:
        """Keep the larger of what is stored and what was seen, for each site."""
        with self._writing() as connection:
            known = self.counters()
            rows = [(site, *max(c, known.get(site, c))) for site, c in seen.items()]
            connection.executemany("INSERT OR REPLACE INTO counters VALUES (?, ?, ?)", rows)

    def advance(self, own: int, counter: Counter) -> None:
        """Take the next (round, attempt) of this site, once (section 2, message 4).

        Raises:
            ProtocolError: it is not above the one before.
        """
        with self._writing() as connection:
            last = self.counters().get(own, Counter(0, 0))
            if counter <= last:
                raise ProtocolError(
                    f"message 4: expected a counter above {last}, got {counter}; nothing was sent"
                )
            row = (own, *counter)
            connection.execute("INSERT OR REPLACE INTO counters VALUES (?, ?, ?)", row)

    def acknowledge(
        self, run: bytes, counter: Counter, cohort: bytes, survivors: tuple[int, ...]
    ) -> None:
        """Keep the one set of survivors that is acknowledged in an attempt (message 9).

        Raises:
            ProtocolError: another set was acknowledged in this attempt.
        """
        with self._writing() as connection:
            told = connection.execute(
                "SELECT cohort, survivors FROM acks WHERE run = ? AND round = ? AND attempt = ?",
                (run, *counter),
            ).fetchone()
            if told is not None and told != (cohort, bitmap(survivors)):
                raise ProtocolError(
                    "message 8: expected the set of survivors that was acknowledged, got another; "
                    "nothing was sent"
                )
            connection.execute(
                "INSERT OR REPLACE INTO acks VALUES (?, ?, ?, ?, ?)",
                (run, *counter, cohort, bitmap(survivors)),
            )

    def answer(self, run: bytes, counter: Counter, ack_set: bytes) -> bytes | None:
        """Return the answer given in an attempt, or None.

        Raises:
            ProtocolError: it was given to another AckSet (section 2, message 11).
        """
        with self._failing():
            given = self._connection.execute(
                "SELECT ack_set, answer FROM answers WHERE run = ? AND round = ? AND attempt = ?",
                (run, *counter),
            ).fetchone()
        if given is None:
            return None
        if given[0] != ack_set:
            raise ProtocolError(
                "message 10: expected the set that was answered, got another; nothing was sent"
            )
        return bytes(given[1])

    def keep_answer(self, run: bytes, counter: Counter, ack_set: bytes, answer: bytes) -> None:
        """Keep the one answer of an attempt before it is sent, and forget the open round's work.

        Raises:
            ProtocolError: an answer was given in this attempt.
        """
        with self._writing() as connection:
            try:
                connection.execute(
                    "INSERT INTO answers VALUES (?, ?, ?, ?, ?)", (run, *counter, ack_set, answer)
                )
            except sqlite3.IntegrityError as error:
                raise ProtocolError(
                    "message 11: expected no answer before, one was given; nothing was sent"
                ) from error
            # Section 6: from now on the same model means fresh draws and a new debit.
            connection.execute("DELETE FROM work")

    def work(self, kind: Kind, model: bytes) -> tuple[Integers, Lanes] | None:
        """Return the integers that an open round on this model masked, or None."""
        with self._failing():
            row = self._connection.execute(
                "SELECT integers, lanes FROM work WHERE kind = ? AND model = ?", (int(kind), model)
            ).fetchone()
        if row is None:
            return None
        return np.frombuffer(row[0], dtype="<i4"), np.frombuffer(row[1], dtype="<i8")

    def keep_work(self, kind: Kind, model: bytes, values: Integers, lanes: Lanes) -> None:
        """Keep the integers of an open round, so that another attempt masks the same again."""
        row = (int(kind), model, values.astype("<i4").tobytes(), lanes.astype("<i8").tobytes())
        with self._writing() as connection:
            connection.execute("DELETE FROM work")
            connection.execute("INSERT INTO work VALUES (?, ?, ?, ?)", row)

    def states(self) -> list[tuple[bytes, bytes]]:
        """Return the last two states that the site computed itself, newest first.

        Each comes with the hash of the Result that led to it; an evaluation leads from a state to
        itself.
        """
        with self._failing():
            rows = self._connection.execute(
                "SELECT blob, result FROM states ORDER BY number DESC"
            ).fetchall()
        return [(bytes(blob), bytes(result)) for blob, result in rows]

    def keep_state(self, blob: bytes, result: bytes) -> None:
        """Keep a state that the site computed itself: after a restart it can vouch for it."""
        with self._writing() as connection:
            connection.execute("INSERT INTO states (blob, result) VALUES (?, ?)", (blob, result))
            connection.execute(
                "DELETE FROM states WHERE number <= (SELECT MAX(number) FROM states) - ?",
                (_STATES,),
            )

    def take_back(self, result: bytes) -> None:
        """Forget the states after the one that this Result led to; all, when none is of it."""
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM states WHERE number > "
                "COALESCE((SELECT MAX(number) FROM states WHERE result = ?), -1)",
                (result,),
            )

    def check_exact(self, model: bytes, survivors: tuple[int, ...] | None) -> None:
        """Check an exact evaluation under privacy (section 7).

        Args:
            model: hash of the state that is evaluated.
            survivors: whose cells would be opened; None before that is known.

        Raises:
            ProtocolError: the model was opened so before, or by another set of sites: two such sums
                that differ in one site would be that site's cells.
        """
        with self._failing():
            find = self._connection.execute
            opened = find("SELECT 1 FROM exact_models WHERE model = ?", (model,)).fetchone()
            fixed = find("SELECT survivors FROM exact_set").fetchone()
        if opened is not None:
            raise ProtocolError(
                "message 6: expected a model that was not evaluated exactly before, got one; "
                "nothing was sent"
            )
        if survivors is not None and fixed is not None and fixed[0] != bitmap(survivors):
            raise ProtocolError(
                "message 8: expected the set of survivors of the first exact evaluation, got "
                "another; nothing was sent"
            )

    def open_exact(self, model: bytes, survivors: tuple[int, ...]) -> None:
        """Note an exact evaluation before its answer is sent: no other set, no second time.

        Raises:
            ProtocolError: as `check_exact`.
        """
        with self._writing() as connection:
            self.check_exact(model, survivors)
            connection.execute("INSERT INTO exact_models VALUES (?)", (model,))
            connection.execute(
                "INSERT OR IGNORE INTO exact_set VALUES (1, ?)", (bitmap(survivors),)
            )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that is on disk when it ends."""
        with self._failing():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            where = str(self._path or "the protocol's store")
            if (failed := disk_error(error, where, "nothing was sent")) is not None:
                raise failed from error
            raise ProtocolError(
                f"the protocol's store failed ({type(error).__name__}); nothing was sent"
            ) from error
