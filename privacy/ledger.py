"""A site's durable record of every private release: one event a row, chained by hashes, in SQLite.

Beside the events stand the site's policies, as rows of the same chain, so that nobody can say later
under which ceilings a debit was made. It does not add events up (``privacy.accounting`` does) and
reads no policy: whoever debits may bring a check that runs inside the transaction. A debit is on
disk before a record is read, so that a crash can cost one debit too many and never one too few.
"""

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from privacy.accounting import Event
from privacy.chain import Adopted, Entry, Row, canonical, checked, row_digest
from privacy.errors import PrivacyError
from privacy.heads import EMPTY, Head

_VERSION = 1  # of the table and of what is hashed (`privacy.chain`)
_WAIT_S = 60.0  # another process may be verifying a long history inside its transaction
_KEY_LENGTH = 500
_COLUMNS = "SELECT number, key, event, digest FROM events"


Check = Callable[[Sequence[Event]], None]


class Ledger:
    """One site's ledger file, open; close it, or use it in a ``with`` statement.

    Several processes may open one file. A connection belongs to the thread that opened it; a
    simulation with a thousand sites opens each ledger for the moment of its debit.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``, creating it with mode 0600 in an existing folder.

        Raises:
            PrivacyError: it is not a ledger of this version, or it cannot be opened or written.
        """
        self.path = path
        with self._failing("nothing was read"):
            # Not when it is there: to close it would drop the locks that this process has on it.
            if not path.exists():
                _create(path)
            os.chmod(path, 0o600)  # SQLite's side files take it over
            self._connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def debit(
        self, event: Event, key: str, *, allow: Check | None = None, under: str | None = None
    ) -> Row:
        """Write ``event`` durably under ``key``, or return the row that already holds it.

        Args:
            event: what is about to be done.
            key: names the attempt (study, run, round, attempt, phase), 1 to 500 characters; asked
                again with an equal event, as in a resumed run, it costs nothing more.
            allow: called with all verified events and ``event`` last, in the transaction that
                writes it, so that two processes cannot both take the last of a budget. It refuses
                by raising PrivacyError. Not called when the row exists: it was allowed.
            under: digest of the policy that allows it, which must be the one adopted last.

        Returns:
            the row; it is on disk (synchronous=FULL) when this returns.

        Raises:
            ValueError: ``key`` is empty or too long.
            PrivacyError: ``key`` holds another event, another policy is in force, ``allow``
                refused, a row of the chain is wrong (the last one always, all with ``allow`` or
                ``under``), or the disk failed. Nothing was debited, and nothing may be read.
        """
        if not 1 <= len(key) <= _KEY_LENGTH:
            raise ValueError(f"expected a key of 1 to {_KEY_LENGTH} characters, got {len(key)}")
        text = canonical(event)
        with self._failing("nothing was debited"), self._transaction():
            found = self._connection.execute(f"{_COLUMNS} WHERE key = ?", (key,)).fetchone()
            if found is not None:
                if found[2] != text:
                    raise PrivacyError(
                        f"expected the event of row {found[0]}, which holds this key, got another; "
                        "nothing was debited"
                    )
                return self._row_in_place(found)
            if allow is not None or under is not None:
                entries = [row.entry for row in self._rows()]
                _check_adopted(entries, under)
                if allow is not None:
                    allow([*(e for e in entries if isinstance(e, Event)), event])
            return self._append(key, event)

    def adopt(self, policy: str, *, allow: Check | None = None) -> Row | None:
        """Write down that the policy of this canonical text is in force, unless it is already.

        Args:
            policy: the text, the same for the same policy.
            allow: called with all verified events; it refuses by raising PrivacyError.

        Returns:
            the new row, or None when the policy was in force.

        Raises:
            PrivacyError: ``allow`` refused, a row is wrong, or the disk failed. Nothing changed.
        """
        entry = Adopted(policy=policy)
        with self._failing("the policy was not adopted"), self._transaction():
            rows = list(self._rows())
            last = next((r.entry for r in reversed(rows) if isinstance(r.entry, Adopted)), None)
            if last == entry:
                return None
            if allow is not None:
                allow([row.entry for row in rows if isinstance(row.entry, Event)])
            return self._append(f"policy/{len(rows) + 1}", entry)

    def events(self, dataset: str | None = None, study: str | None = None) -> list[Event]:
        """Return the events, oldest first, of one dataset or study or of all, verified.

        Raises:
            PrivacyError: a row is wrong; it is named, and no event is returned.
        """
        events = (row.entry for row in self.rows() if isinstance(row.entry, Event))
        return [
            event
            for event in events
            if dataset in (None, event.dataset) and study in (None, event.study)
        ]

    def rows(self) -> list[Row]:
        """Return all rows, oldest first; raise PrivacyError, naming the row, where one is wrong."""
        with self._failing("nothing was read"):
            return list(self._rows())

    def head(self) -> Head:
        """Return the end of the chain (its last row is checked), to be kept by peers and server."""
        with self._failing("nothing was read"):
            return self._last()

    def verify(self, *known: Head) -> Head:
        """Check every row, and that the chain goes through each of ``known``; return its end.

        Args:
            known: ends that others have kept, whole or from the wire. Without one, rows cut from
                the end, or an older copy put back, cannot be seen.

        Raises:
            PrivacyError: the first wrong row is named.
        """
        kept: dict[int, list[Head]] = {}
        for one in known:
            kept.setdefault(one.rows, []).append(one)
        head = EMPTY
        for row in self.rows():
            head = row.head
            if any(one.wire() != head.wire() for one in kept.get(head.rows, ())):
                raise PrivacyError(
                    f"expected the countersigned chain, got another at row {row.number}"
                )
        longest = max(kept, default=0)
        if head.rows < longest:
            raise PrivacyError(
                f"expected {longest} rows or more, got {head.rows}: row {head.rows + 1} is gone"
            )
        return head

    def close(self) -> None:
        """Close the file; the ledger cannot be used any more."""
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

    def _prepare(self) -> None:
        """Refuse a file of another kind; wait for the disk at every commit from now on."""
        run = self._connection.execute
        version = run("PRAGMA user_version").fetchone()[0]
        if version != _VERSION:
            raise PrivacyError(
                f"expected a ledger of version {_VERSION}, got another kind of file or version "
                f"{version}; nothing was read"
            )
        if run("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise PrivacyError("expected a write-ahead log, got none; nothing was read")
        run("PRAGMA synchronous = FULL")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Hold the write lock for the block: one process at a time, all of it or nothing."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def _failing(self, became: str) -> Iterator[None]:
        """Turn what SQLite and the file system raise into one line that says what ``became``."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise PrivacyError(
                f"expected a ledger that can be read and written at '{self.path.name}', got "
                f"{type(error).__name__}: {error}; {became}"
            ) from error

    def _append(self, key: str, entry: Entry) -> Row:
        """Write the next row; within a transaction."""
        text, last = canonical(entry), self._last()
        number = last.rows + 1
        digest = row_digest(last.digest, number, key, text)
        self._connection.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?)", (number, key, text, digest)
        )
        return Row(number, key, entry, digest)

    def _rows(self) -> Iterator[Row]:
        """Yield the rows in order, each checked against the one before."""
        before = EMPTY
        for values in self._connection.execute(f"{_COLUMNS} ORDER BY number"):
            row = checked(values, before)
            before = row.head
            yield row

    def _last(self) -> Head:
        """Return the end of the chain, its last row checked against the one before."""
        newest = self._connection.execute(f"{_COLUMNS} ORDER BY number DESC LIMIT 1").fetchone()
        return EMPTY if newest is None else self._row_in_place(newest).head

    def _row_in_place(self, values: tuple[object, ...]) -> Row:
        """Return one row, checked against the row before it."""
        found = self._connection.execute(
            "SELECT number, digest FROM events WHERE number = ? - 1", (values[0],)
        ).fetchone()
        return checked(values, EMPTY if found is None else Head(int(found[0]), str(found[1])))


_EMPTY_LEDGER = f"""
PRAGMA synchronous = OFF;  -- the finished file is synced once, before it gets its name
PRAGMA journal_mode = WAL;
CREATE TABLE events (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    event TEXT NOT NULL,
    digest TEXT NOT NULL UNIQUE
) STRICT;
PRAGMA user_version = {_VERSION};
"""


def _create(path: Path) -> None:
    """Put an empty ledger at ``path``, mode 0600, whole or not at all; one that is there stays."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            connection.executescript(_EMPTY_LEDGER)
        os.fsync(descriptor)
        with suppress(FileExistsError):  # another process was first
            os.link(draft, path)
    finally:
        os.unlink(draft)
        os.close(descriptor)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name too must outlive a power cut
    finally:
        os.close(folder)


def _check_adopted(entries: Sequence[Entry], under: str | None) -> None:
    """Raise PrivacyError when the policy adopted last is not the one of digest ``under``."""
    last = next((e for e in reversed(entries) if isinstance(e, Adopted)), None)
    if under is not None and (last is None or last.digest != under):
        raise PrivacyError(
            "expected a policy that the ledger has a row of, got one that was changed since; "
            "nothing was debited",
            "`fedward-site start` writes a changed policy down",
        )
