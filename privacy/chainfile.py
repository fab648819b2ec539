"""Rows of text in one SQLite file, each hashed with the row before it, on disk when it is written.

It does not know what the texts say: a ledger's events, a journal's notes. A row that was changed is
found when it is read; rows that were cut from the end only by an end that others have kept.
"""

import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from privacy.disk import disk_error
from privacy.errors import PrivacyError
from privacy.heads import EMPTY, Head

_WAIT_S = 60.0  # another process may be verifying a long history inside its transaction
_COLUMNS = "SELECT number, key, event, digest FROM events"


class Link(NamedTuple):
    """One row as it stands in the file; ``digest`` covers it and every row before it."""

    number: int  # from 1
    key: str
    text: str
    digest: str

    @property
    def head(self) -> Head:
        """The chain's end when this row was its last."""
        return Head(self.number, self.digest)


class Placed(Protocol):
    """Whatever stands at a place of a chain."""

    @property
    def number(self) -> int: ...  # noqa: D102
    @property
    def head(self) -> Head: ...  # noqa: D102


def row_digest(previous: str, number: int, key: str, text: str) -> str:
    """Return SHA-256, in hex, of the previous digest and this row's canonical JSON."""
    row = json.dumps([number, key, text], separators=(",", ":"))
    return hashlib.sha256(bytes.fromhex(previous) + row.encode()).hexdigest()


def changed(noun: str, number: int) -> PrivacyError:
    """Return the error for a row that is not what was written."""
    return PrivacyError(f"expected the digest of {noun} row {number} to hold, got a changed row")


def through(rows: Iterable[Placed], known: Iterable[Head]) -> Head:
    """Check that a chain goes through each of ``known``; return its end.

    Args:
        rows: all rows of the chain, in order.
        known: ends that others have kept, whole or from the wire.

    Raises:
        PrivacyError: the first wrong row is named.
    """
    kept: dict[int, list[Head]] = {}
    for one in known:
        kept.setdefault(one.rows, []).append(one)
    head = EMPTY
    for row in rows:
        head = row.head
        if any(one.wire() != head.wire() for one in kept.get(head.rows, ())):
            raise PrivacyError(f"expected the countersigned chain, got another at row {row.number}")
    longest = max(kept, default=0)
    if head.rows < longest:
        raise PrivacyError(
            f"expected {longest} rows or more, got {head.rows}: row {head.rows + 1} is gone"
        )
    return head


class ChainFile:
    """One chain, open; several processes may open one file, each connection in its own thread."""

    def __init__(self, path: Path, noun: str, version: int) -> None:
        """Open ``path``, creating it with mode 0600 in an existing folder.

        Args:
            path: of the file.
            noun: what errors call it.
            version: of the file; one of another version, or another kind, is refused.

        Raises:
            PrivacyError: it is no such file.
            DataError: it cannot be opened or written.
        """
        self.path, self._noun = path, noun
        with self.failing("nothing was read"):
            if not path.exists():
                _create(path, version)
            os.chmod(path, 0o600)  # SQLite's side files take it over
            self.connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
            try:
                self._prepare(version)
            except BaseException:
                self.connection.close()
                raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the write lock for the block: one process at a time, all of it or nothing."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        finally:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")

    @contextmanager
    def failing(self, became: str) -> Iterator[None]:
        """Turn what SQLite and the file system raise into one line that says what ``became``."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if (failed := disk_error(error, str(self.path), became)) is not None:
                raise failed from error
            raise PrivacyError(
                f"expected a {self._noun} that can be read and written at '{self.path.name}', got "
                f"{type(error).__name__}: {error}; {became}"
            ) from error

    def append(self, key: str, text: str) -> Link:
        """Write the next row; within a transaction, after whose end it is on disk."""
        last = self.last()
        number = last.rows + 1
        digest = row_digest(last.digest, number, key, text)
        self.connection.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?)", (number, key, text, digest)
        )
        return Link(number, key, text, digest)

    def find(self, key: str) -> Link | None:
        """Return the row that holds a key, checked against the row before it."""
        found = self.connection.execute(f"{_COLUMNS} WHERE key = ?", (key,)).fetchone()
        return None if found is None else self._in_place(found)

    def links(self) -> Iterator[Link]:
        """Yield the rows in order, each checked against the one before."""
        before = EMPTY
        for values in self.connection.execute(f"{_COLUMNS} ORDER BY number"):
            link = self._checked(values, before)
            before = link.head
            yield link

    def last(self) -> Head:
        """Return the end of the chain, its last row checked against the one before."""
        newest = self.connection.execute(f"{_COLUMNS} ORDER BY number DESC LIMIT 1").fetchone()
        return EMPTY if newest is None else self._in_place(newest).head

    def close(self) -> None:
        """Close the file; it cannot be used any more."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _prepare(self, expected: int) -> None:
        """Refuse a file of another kind; wait for the disk at every commit from now on."""
        run = self.connection.execute
        version = run("PRAGMA user_version").fetchone()[0]
        if version != expected:
            raise PrivacyError(
                f"expected a {self._noun} of version {expected}, got another kind of file or "
                f"version {version}; nothing was read"
            )
        if run("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise PrivacyError("expected a write-ahead log, got none; nothing was read")
        run("PRAGMA synchronous = FULL")

    def _in_place(self, values: tuple[object, ...]) -> Link:
        """Return one row, checked against the row before it."""
        found = self.connection.execute(
            "SELECT number, digest FROM events WHERE number = ? - 1", (values[0],)
        ).fetchone()
        before = EMPTY if found is None else Head(int(found[0]), str(found[1]))
        return self._checked(values, before)

    def _checked(self, values: tuple[object, ...], before: Head) -> Link:
        """Return the row after ``before``, or raise PrivacyError naming the first wrong one."""
        number, key, text, digest = values
        expected = before.rows + 1
        if not isinstance(number, int) or number != expected:
            raise PrivacyError(
                f"expected {self._noun} row {expected}, got row {number}: the chain is broken"
            )
        if isinstance(key, str) and isinstance(text, str) and isinstance(digest, str):
            with suppress(ValueError):  # the digest before it is no hex
                if row_digest(before.digest, number, key, text) == digest:
                    return Link(number, key, text, digest)
        raise changed(self._noun, number)


_EMPTY_FILE = """
PRAGMA synchronous = OFF;  -- the finished file is synced once, before it gets its name
PRAGMA journal_mode = WAL;
CREATE TABLE events (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    event TEXT NOT NULL,
    digest TEXT NOT NULL UNIQUE
) STRICT;
PRAGMA user_version = {version};
"""


def _create(path: Path, version: int) -> None:
    """Put an empty chain at ``path``, mode 0600, whole or not at all; one that is there stays."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            connection.executescript(_EMPTY_FILE.format(version=version))
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
