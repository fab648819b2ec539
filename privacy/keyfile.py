"""Private keys on disk: one file each, which only its owner may read, and never another's.

It knows no kind of key: callers give and take PEM bytes, and parse them.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote

from privacy.errors import DataError

FILE_BYTES_MAX = 4096  # a key takes 119 (Ed25519) to 306 (P-384) bytes
_OTHERS = 0o077  # every right of group and others
_OTHERS_WRITE = 0o022


def keep(path: Path, text: bytes) -> None:
    """Put the key ``text`` into ``path``, which must not exist.

    The file has mode 0600 from its first moment, and it is on disk when this returns. A missing
    folder is made with mode 0700.

    Raises:
        DataError: ``path`` exists (it is never overwritten), others may enter its folder, or it
            cannot be written. No key was kept.
    """
    folder = path.parent
    with _failing(path, "written; no key was kept"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & _OTHERS:
            raise DataError(
                f"{folder}: expected a folder of mode 0700, found one that others may enter; "
                "no key was kept",
                f"chmod 700 {quote(str(folder))}",
            )
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:  # a link counts, wherever it points: O_EXCL follows none
            raise DataError(
                f"{path}: expected no file, found one; it was left as it is",
                "use the key that is there, or give another path",
            ) from None
        _write(file, path, text)
        _sync(folder)
        _sync(folder.parent)  # the folder may be new itself


def read(path: Path) -> bytes | None:
    """Return what ``path`` holds; None when it is too large for a key.

    Raises:
        DataError: group or others have any right on the file, or may write into its folder; it is
            a link to outside its folder; or it cannot be read.
    """
    with _failing(path, "read"):
        real = path.resolve(strict=True)
        if not real.is_relative_to(path.parent.resolve(strict=True)):
            raise DataError(
                f"{path}: expected a key in its own folder, found a link to elsewhere; "
                "it was not read",
                "move the key itself there",
            )
        _check_folder(real.parent)
        text = _read(path, real)
    return text if len(text) <= FILE_BYTES_MAX else None


def _write(file: int, path: Path, text: bytes) -> None:
    """Fill the file that was just created; an incomplete one is removed."""
    try:
        with os.fdopen(file, "wb") as stream:
            os.fchmod(file, 0o600)  # whatever the umask took away from the owner
            stream.write(text)
            stream.flush()
            os.fsync(file)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def _read(path: Path, real: Path) -> bytes:
    """Return the file's bytes; its rights are those of the very file that is open."""
    # O_NOFOLLOW: the last step became a link since it was resolved. O_NONBLOCK: a pipe hangs us.
    file = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(file).st_mode
        if not stat.S_ISREG(mode):
            raise DataError(f"{path}: expected a file, found something else; it was not read")
        if mode & _OTHERS:
            raise DataError(
                f"{path}: expected mode 0600, found {stat.S_IMODE(mode):04o}: others than its "
                "owner have rights on this key; it was not used",
                f"chmod 600 {quote(str(path))}",
            )
        return os.read(file, FILE_BYTES_MAX + 1)
    finally:
        os.close(file)


def _check_folder(folder: Path) -> None:
    """Refuse a folder in which others could put another key in the place of this one."""
    if folder.stat().st_mode & _OTHERS_WRITE:
        raise DataError(
            f"{folder}: expected a folder that only its owner may change, found another; "
            "the key was not used",
            f"chmod 700 {quote(str(folder))}",
        )


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _failing(path: Path, what: str) -> Iterator[None]:
    """Turn an error of the file system into one that names the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: a ring of links
        reason = error.strerror if isinstance(error, OSError) else "links in a ring"
        raise DataError(f"{path}: cannot be {what} ({reason})") from error
