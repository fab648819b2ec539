"""What the coordinator must remember of the protocol across a crash: counters and an open attempt.

One SQLite file; every write is on disk before anything is sent. Section 2 of the protocol. A sum is
written and read in pieces: whole, the driver and SQLite would hold two more of it.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from privacy.errors import DataError
from privacy.roster import Kind
from privacy.wire import Counter

Order = tuple[bytes, Kind]  # a model's hash, and what it was sent out for

_TABLES = """
CREATE TABLE IF NOT EXISTS counter (
    one INTEGER PRIMARY KEY CHECK (one = 1), round INTEGER NOT NULL, attempt INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS orders (
    number INTEGER PRIMARY KEY, model BLOB NOT NULL, kind INTEGER NOT NULL, result BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS attempt (
    one INTEGER PRIMARY KEY CHECK (one = 1), head BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS words (number INTEGER PRIMARY KEY, piece BLOB NOT NULL);
"""
_PIECE = 1 << 18  # bytes


class ServerStore:
    """The coordinator's memory of one study's protocol."""

    def __init__(self, path: Path | None) -> None:
        """Open ``path``, creating it with mode 0600; None keeps it in memory (tests).

        Raises:
            DataError: it is no such file, or the disk failed.
        """
        # Not when it is there: to close it would drop the locks that this process has on it.
        if path is not None and not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        with _failing(path):
            self._path = path
            self._connection = sqlite3.connect(
                ":memory:" if path is None else path, timeout=60.0, isolation_level=None
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_TABLES)

    def keep_counter(self, counter: Counter) -> None:
        """Keep the counter of the attempt that is about to begin."""
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO counter VALUES (1, ?, ?)", counter)

    def counter(self) -> Counter:
        """Return the last counter used; (0, 0) before the first."""
        with _failing(self._path):
            row = self._connection.execute("SELECT round, attempt FROM counter").fetchone()
        return Counter(0, 0) if row is None else Counter(*row)

    def keep_orders(self, orders: Mapping[Order, bytes], *, forget_sum: bool = False) -> None:
        """Keep which Result each of the last orders started after, oldest first.

        Args:
            orders: model and kind to the Result's hash.
            forget_sum: in the same moment forget the last sum: it was taken back.
        """
        rows = [(model, int(kind), result) for (model, kind), result in orders.items()]
        with self._writing() as connection:
            connection.execute("DELETE FROM orders")
            connection.executemany(
                "INSERT INTO orders (model, kind, result) VALUES (?, ?, ?)", rows
            )
            if forget_sum:
                connection.execute("DELETE FROM attempt")
                connection.execute("DELETE FROM words")

    def orders(self) -> dict[Order, bytes]:
        """Return the last orders, oldest first."""
        with _failing(self._path):
            rows = self._connection.execute(
                "SELECT model, kind, result FROM orders ORDER BY number"
            ).fetchall()
        return {(bytes(model), Kind(kind)): bytes(result) for model, kind, result in rows}

    def keep_attempt(self, head: bytes, words: memoryview) -> None:
        """Keep an attempt and its sum, both at once; what was kept before is forgotten.

        Args:
            head: of an attempt whose shares are about to be asked for, or whose sum is open now.
            words: that sum.
        """
        starts = range(0, len(words), _PIECE)
        pieces = ((number, words[at : at + _PIECE]) for number, at in enumerate(starts))
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO attempt VALUES (1, ?)", (head,))
            # Pieces as long as those of the sum before are written over them.
            connection.executemany("INSERT OR REPLACE INTO words VALUES (?, ?)", pieces)
            connection.execute("DELETE FROM words WHERE number >= ?", (len(starts),))

    def last_attempt(self) -> tuple[bytes, Iterator[bytes]] | None:
        """Return the last attempt that was kept and, in pieces, its sum: to be read at once."""
        with _failing(self._path):
            row = self._connection.execute("SELECT head FROM attempt").fetchone()
        return None if row is None else (bytes(row[0]), self._words())

    def _words(self) -> Iterator[bytes]:
        with _failing(self._path):
            rows = self._connection.execute("SELECT piece FROM words ORDER BY number")
            yield from (piece for (piece,) in rows)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with _failing(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


@contextmanager
def _failing(path: Path | None) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(f"{path}: the store failed ({type(error).__name__})") from error
