"""A site's durable record of every private release: one event a row, chained by hashes, in SQLite.

Beside the events stand the site's policies, as rows of the same chain, so that nobody can say later
under which ceilings a debit was made. It does not add events up (``privacy.accounting`` does) and
reads no policy: whoever debits may bring a check that runs inside the transaction. A debit is on
disk before a record is read, so that a crash can cost one debit too many and never one too few.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from privacy.accounting import Event
from privacy.chain import Adopted, Entry, Row, canonical, row_of
from privacy.chainfile import ChainFile, through
from privacy.errors import PrivacyError
from privacy.heads import Head

_VERSION = 1  # of the table and of what is hashed (`privacy.chain`)
_KEY_LENGTH = 500

Check = Callable[[Sequence[Event]], None]


class Ledger:
    """One site's ledger file, open; close it, or use it in a ``with`` statement.

    Several processes may open one file. A connection belongs to the thread that opened it; a
    simulation with a thousand sites opens each ledger for the moment of its debit.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``, creating it with mode 0600 in an existing folder.

        Raises:
            PrivacyError: it is not a ledger of this version.
            DataError: it cannot be opened or written, as from all that follows.
        """
        self._file = ChainFile(path, "ledger", _VERSION)
        self._connection = self._file.connection

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
                refused, or a row of the chain is wrong (the last one always, all with ``allow`` or
                ``under``). Nothing was debited, and nothing may be read.
            DataError: the disk failed, with the same consequence.
        """
        if not 1 <= len(key) <= _KEY_LENGTH:
            raise ValueError(f"expected a key of 1 to {_KEY_LENGTH} characters, got {len(key)}")
        text = canonical(event)
        with self._file.failing("nothing was debited"), self._file.transaction():
            found = self._file.find(key)
            if found is not None:
                if found.text != text:
                    raise PrivacyError(
                        f"expected the event of row {found.number}, which holds this key, got "
                        "another; nothing was debited"
                    )
                return row_of(found)
            if allow is not None or under is not None:
                entries = [row.entry for row in self._rows()]
                _check_adopted(entries, under)
                if allow is not None:
                    allow([*(e for e in entries if isinstance(e, Event)), event])
            return row_of(self._file.append(key, text))

    def adopt(self, policy: str, *, allow: Check | None = None) -> Row | None:
        """Write down that the policy of this canonical text is in force, unless it is already.

        Args:
            policy: the text, the same for the same policy.
            allow: called with all verified events; it refuses by raising PrivacyError.

        Returns:
            the new row, or None when the policy was in force.

        Raises:
            PrivacyError: ``allow`` refused, or a row is wrong. Nothing changed.
            DataError: the disk failed. Nothing changed.
        """
        entry = Adopted(policy=policy)
        with self._file.failing("the policy was not adopted"), self._file.transaction():
            rows = list(self._rows())
            last = next((r.entry for r in reversed(rows) if isinstance(r.entry, Adopted)), None)
            if last == entry:
                return None
            if allow is not None:
                allow([row.entry for row in rows if isinstance(row.entry, Event)])
            return row_of(self._file.append(f"policy/{len(rows) + 1}", canonical(entry)))

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
        with self._file.failing("nothing was read"):
            return list(self._rows())

    def head(self) -> Head:
        """Return the end of the chain (its last row is checked), to be kept by peers and server."""
        with self._file.failing("nothing was read"):
            return self._file.last()

    def verify(self, *known: Head) -> Head:
        """Check every row, and that the chain goes through each of ``known``; return its end.

        Args:
            known: ends that others have kept, whole or from the wire. Without one, rows cut from
                the end, or an older copy put back, cannot be seen.

        Raises:
            PrivacyError: the first wrong row is named.
        """
        return through(self.rows(), known)

    def close(self) -> None:
        """Close the file; the ledger cannot be used any more."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _rows(self) -> Iterator[Row]:
        """Yield the rows in order, each checked against the one before."""
        return map(row_of, self._file.links())


def _check_adopted(entries: Sequence[Entry], under: str | None) -> None:
    """Raise PrivacyError when the policy adopted last is not the one of digest ``under``."""
    last = next((e for e in reversed(entries) if isinstance(e, Adopted)), None)
    if under is not None and (last is None or last.digest != under):
        raise PrivacyError(
            "expected a policy that the ledger has a row of, got one that was changed since; "
            "nothing was debited",
            "`fedward-site start` writes a changed policy down",
        )
