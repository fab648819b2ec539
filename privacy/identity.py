"""The Ed25519 key of a site or of the server, kept in one file that only its owner may read.

It is made where it is used and never leaves; it signs nothing here. Rosters pin its public half.

The file is PKCS #8 in PEM (RFC 8410), not 32 raw bytes: it says what it is, so that a file of
another kind is refused instead of becoming a key, `openssl pkey` reads it, and the programs that
watch mail and repositories for secrets know it when it turns up where it should not.
"""

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from privacy import keyfile
from privacy.errors import DataError
from privacy.keys import KEY_BYTES, Identity, identity


def create(path: Path) -> Identity:
    """Make a new identity from the operating system's generator and keep it in ``path``.

    Raises:
        DataError: as `privacy.keyfile.keep`; no key was kept.
    """
    secret = os.urandom(KEY_BYTES)
    key = Ed25519PrivateKey.from_private_bytes(secret)
    keyfile.keep(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return identity(secret)


def load(path: Path) -> Identity:
    """Return the identity that is kept in ``path``.

    Raises:
        DataError: as `privacy.keyfile.read`; or it holds no Ed25519 key.
    """
    key = _parse(keyfile.read(path))
    if key is None:
        raise DataError(
            f"{path}: expected an Ed25519 private key in PEM without a password, found something "
            "else; it was left as it is",
            "restore the file from your own copy; a new identity would have to be pinned anew",
        )
    return identity(key.private_bytes_raw())


def _parse(text: bytes | None) -> Ed25519PrivateKey | None:
    """Return the key in a file's bytes, None when there is none."""
    if text is None:
        return None
    try:
        key = load_pem_private_key(text, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
        return None  # the parser's words are dropped: they are about the key's bytes
    return key if isinstance(key, Ed25519PrivateKey) else None
