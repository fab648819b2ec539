"""How much a reader will take into memory, and files opened under that ceiling.

It knows no format. A file is counted after decompression, so that a small one cannot grow.
"""

import gzip
import io
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

from client.data.faults import Faults, fault
from privacy.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BYTES_MAX = 2 << 30  # of one file after decompression, and of one array of records
CELLS_MAX = 1 << 25  # of one table; a cell of text takes some 60 bytes


def check_bytes(count: int, source: object) -> None:
    """Refuse ``count`` bytes above the ceiling.

    Raises:
        DataError: names ``source`` and both sizes.
    """
    if count > BYTES_MAX:
        raise _too_many_bytes(count, source)


def fit(count: int, size: int, source: object, faults: Faults) -> int:
    """Return how many of ``count`` records of ``size`` bytes are taken, from the first on.

    The others are left out where records are: how many there are must not stop a round. One record
    more or less then moves one other across the ceiling, and no further.

    Raises:
        DataError: as `check_bytes`, unless records are left out.
    """
    most = BYTES_MAX // max(1, size)
    if count > most:
        faults.add([_too_many_bytes(count * size, source)], count - most)
    return min(count, most)


def full(count: int, source: object, faults: Faults) -> bool:
    """Say whether a table of ``count`` cells ends here: what comes after them is left out.

    Raises:
        DataError: there are more than the ceiling, unless records are left out.
    """
    if count <= CELLS_MAX:
        return False
    faults.add(
        [
            DataError(
                f"{source}: expected at most {CELLS_MAX:,} cells, found more; no record was used",
                "divide it among several files",
            )
        ]
    )
    return True


def check_file(path: Path, count: int | None = None) -> None:
    """Refuse what is not a regular file below the ceiling.

    Args:
        path: of the file.
        count: of its bytes that would be read; None: all of them.

    Raises:
        DataError: it is absent, a folder or a device, or too large.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: expected a file, found none")
        check_bytes(path.stat().st_size if count is None else count, path)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error for a file that the operating system does not give."""
    return DataError(f"{path}: cannot be read ({error.strerror or 'damaged'}); no record was used")


def text_of(path: Path, faults: Faults) -> io.TextIOWrapper:
    """Open a UTF-8 text file, unpacked when its name ends in .gz; line ends are kept.

    Where records are left out it ends at the ceiling, and what comes after counts as one of them.

    Bytes that are not UTF-8 become lone surrogates (PEP 383): ``is_text`` finds them line by line,
    so that they spoil the record that holds them and no other.

    Raises:
        DataError: it cannot be read; while it is read: it is damaged, or passes the ceiling.
    """
    check_file(path, 0 if faults.leave_out else None)
    return io.TextIOWrapper(
        _opened(path, faults), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )


def is_text(line: str) -> bool:
    """Say whether a line of ``text_of`` was UTF-8."""
    if line.isascii():
        return True
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def not_text(path: Path, row: int) -> DataError:
    """Return the error for a row that ``is_text`` does not find to be text."""
    return fault(f"{path}: row {row}: expected UTF-8 text", "save the file as UTF-8")


class _Bounded(io.RawIOBase):
    """The bytes of ``file``, up to the ceiling; its faults become errors of ours."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, path: Path, faults: Faults) -> None:
        self._file = file
        self._path = path
        self._faults = faults
        self._count = 0
        self._over = False

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read into ``buffer``; return how many bytes."""
        view = memoryview(buffer)
        try:
            chunk = self._file.read(len(view))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{self._path}: expected a whole gzip file; no record was used"
            ) from error
        except OSError as error:
            raise unreadable(self._path, error) from error
        if self._over:
            return 0
        room = BYTES_MAX - self._count
        self._count += len(chunk)
        if self._count > BYTES_MAX:
            self._faults.add([_too_many_bytes(self._count, self._path)])
            self._over = True
            # Half a line could be another record: it is cut off, or spoilt by what is no text.
            chunk = chunk[: chunk.rfind(b"\n", 0, room) + 1] or b"\xff"
        view[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _too_many_bytes(count: int, source: object) -> DataError:
    return DataError(
        f"{source}: expected at most {BYTES_MAX:,} bytes, found {count:,}; no record was used",
        "divide it among several files, or name fewer columns",
    )


def _opened(path: Path, faults: Faults) -> io.BufferedReader:
    try:
        file: IO[bytes] | gzip.GzipFile = path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error
    if path.suffix == ".gz":
        file = gzip.GzipFile(fileobj=file)
    return io.BufferedReader(_Bounded(file, path, faults), 1 << 18)
