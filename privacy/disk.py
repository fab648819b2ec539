"""A disk that failed, told from a file whose content is wrong: a full disk is nobody's attack.

It reads and writes nothing.
"""

import sqlite3

from privacy.errors import DataError

_HINT = "make room on the disk, or let this user write there; then start again"
_CODES = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
)


def disk_error(error: sqlite3.Error | OSError, what: str, became: str) -> DataError | None:
    """Return the error that tells a person of a failed disk; None when the disk did not fail.

    Args:
        error: as SQLite or the system raised it.
        what: could not be read or written.
        became: of the data.
    """
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)  # none where Python itself raised it
        if code is None or code & 0xFF not in _CODES:  # the low byte of an extended code
            return None
        reason = str(error)
    else:
        reason = error.strerror or type(error).__name__
    return DataError(f"{what}: cannot be read or written ({reason}); {became}", _HINT)
