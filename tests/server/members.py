"""Sites that are in the books without a process or a socket of their own; it asserts nothing."""

import hashlib
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privacy.keys import Identity
from privacy.keys import identity as from_secret
from server.books import Books

NAMES = ("bonn", "ulm", "jena", "graz")
LATER_S = 1000


def key(name: str) -> Identity:
    """The site's own key, the same for the same name."""
    return from_secret(hashlib.sha256(name.encode()).digest())


def pem(name: str) -> bytes:
    """The key of the site's requests, the same for the same name."""
    secret = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big")
    public = ec.derive_private_key(secret, ec.SECP384R1()).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def node(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


def later() -> int:
    return int(time.time()) + LATER_S


def enrol(books: Books, *names: str) -> None:
    for name in names or NAMES:
        secret = books.invite(name, later())
        books.enrol(name, secret, key(name).public, pem(name), lambda it=name: node(it))


def open_books(folder: Path) -> Books:
    return Books(folder / "books.db")
