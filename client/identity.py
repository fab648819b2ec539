"""A site's Ed25519 key: made where it is used, kept in one file that only its owner may read.

It never leaves the site and it signs nothing here; rosters pin its public half.

The file is PKCS #8 in PEM (RFC 8410), not 32 raw bytes: it says what it is, so that a file of
another kind is refused instead of becoming a key, `openssl pkey` reads it, and the programs that
watch mail and repositories for secrets know it when it turns up where it should not.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from privacy.errors import DataError
from privacy.keys import KEY_BYTES, Identity, identity

FILE_BYTES_MAX = 4096  # a key takes 119
_OTHERS = 0o077  # every right of group and others
_OTHERS_WRITE = 0o022


def create(path: Path) -> Identity:
    """Make a new identity from the operating system's generator and keep it in ``path``.

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
                "no key was made",
                f"chmod 700 {quote(str(folder))}",
            )
        secret = os.urandom(KEY_BYTES)
        key = Ed25519PrivateKey.from_private_bytes(secret)
        text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:  # a link counts, wherever it points: O_EXCL follows none
            raise DataError(
                f"{path}: expected no file, found one; it was left as it is",
                "use this identity, or give another path",
            ) from None
        _write(file, path, text)
        _sync(folder)
        _sync(folder.parent)  # the folder may be new itself
    return identity(secret)


def load(path: Path) -> Identity:
    """Return the identity that is kept in ``path``.

    Raises:
        DataError: group or others have any right on the file, or may write into its folder; it is
            a link to outside its folder; it holds no Ed25519 key; or it cannot be read.
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
    key = _parse(text)
    if key is None:
        raise DataError(
            f"{path}: expected an Ed25519 private key in PEM without a password, found something "
            "else; it was left as it is",
            "restore the file from your own copy, or enrol again with a new identity",
        )
    return identity(key.private_bytes_raw())


def _parse(text: bytes) -> Ed25519PrivateKey | None:
    """Return the key in a file's bytes, None when there is none."""
    if len(text) > FILE_BYTES_MAX:
        return None
    try:
        key = load_pem_private_key(text, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
        return None  # the parser's words are dropped: they are about the key's bytes
    return key if isinstance(key, Ed25519PrivateKey) else None


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
