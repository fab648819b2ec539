"""The keys of FSA1: identities, agreement, one HKDF label per derived key, boxes, commitments.

It keeps nothing on disk and knows no message: callers pass the bytes that are bound into each key.
Section numbers are those of the protocol description (FSA1); integers are little-endian.
"""

import hashlib
import hmac
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.errors import ProtocolError

Entropy = Callable[[int], bytes]  # count -> that many fresh random bytes; os.urandom in a real run

KEY_BYTES = 32
TAG_BYTES = 16
SIGNATURE_BYTES = 64
BOX_OVERHEAD = 16  # the GCM tag
VERDICTS = 4096  # signature verdicts kept a process: about 20 rounds of a cohort of 50, 1 MB


def u16(number: int) -> bytes:
    """Return ``number`` as two little-endian bytes."""
    return number.to_bytes(2, "little")


def hkdf(ikm: bytes, salt: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """Return ``length`` bytes of HKDF-SHA256. Source: RFC 5869."""
    return HKDF(hashes.SHA256(), length, salt, info).derive(ikm)


# --- identities (section 1): Ed25519, pinned in the roster -------------------------------------


@dataclass(frozen=True)
class Identity:
    """A long-lived Ed25519 key that signs messages; ``public`` (32 bytes) is what rosters pin."""

    _key: Ed25519PrivateKey = field(repr=False)
    public: bytes

    def sign(self, header: bytes, body: bytes) -> bytes:
        """Return the 64-byte signature over "FSA1-sig", header, body (section 2; RFC 8032)."""
        return self._key.sign(b"FSA1-sig" + header + body)


def identity(secret: bytes) -> Identity:
    """Return the identity whose Ed25519 seed is ``secret`` (32 bytes)."""
    key = Ed25519PrivateKey.from_private_bytes(secret)
    return Identity(key, key.public_key().public_bytes_raw())


def fresh_identity(entropy: Entropy = os.urandom) -> Identity:
    """Return a new identity."""
    return identity(entropy(KEY_BYTES))


def verify(public: bytes, header: bytes, body: bytes, signature: bytes) -> bool:
    """Say whether ``signature`` is that of ``public`` over "FSA1-sig", header, body.

    The verdict on an equal (key, signature, message) is remembered per process, keyed by SHA-256:
    virtual sites of one process receive the same signed bytes. A verdict is a function of those
    bytes alone, so remembering it changes no answer.
    """
    message = b"FSA1-sig" + header + body
    claim = hashlib.sha256(public + signature)  # both of fixed length: no two claims run together
    claim.update(message)
    verdict = _verdict(claim.digest())
    if not verdict:
        verdict.append(_verify(public, signature, message))
    return verdict[0]


@lru_cache(maxsize=VERDICTS)
def _verdict(claim: bytes) -> list[bool]:  # noqa: ARG001 the argument is the cache's key
    """Return the place of one claim's verdict, empty until `verify` fills it."""
    return []


def _verify(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):  # ValueError: not a key
        return False
    return True


# --- key agreement: X25519 ---------------------------------------------------------------------


@dataclass(frozen=True)
class AgreementKey:
    """An X25519 key of one run (channel) or one attempt (mask); ``secret`` is its 32 raw bytes."""

    _key: X25519PrivateKey = field(repr=False)
    secret: bytes = field(repr=False)
    public: bytes


Agreement = Callable[[AgreementKey, bytes], bytes]  # own key, peer's public key -> shared secret


def agreement_key(secret: bytes) -> AgreementKey:
    """Return the X25519 key of ``secret`` (32 bytes, clamped as RFC 7748 says when used)."""
    key = X25519PrivateKey.from_private_bytes(secret)
    return AgreementKey(key, secret, key.public_key().public_bytes_raw())


def agree(own: AgreementKey, peer: bytes) -> bytes:
    """Return the X25519 shared secret, 32 bytes.

    Raises:
        ProtocolError: ``peer`` is no key or a low-order point (the result would be all zeros).

    Source: RFC 7748, section 6.1.
    """
    try:
        return own._key.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as error:
        raise ProtocolError(
            "expected an X25519 key of full order, got a low-order one; nothing was sent"
        ) from error


class SharedAgreements:
    """An `Agreement` that computes each pair once, for simulations of both ends in one process.

    It remembers secrets, so a real site never uses it: there a secret lives one attempt.
    """

    def __init__(self, pairs: int = 8192) -> None:
        """Remember at most ``pairs`` pairs; the oldest is forgotten first."""
        self._pairs = pairs
        self._known: dict[bytes, bytes] = {}

    def __call__(self, own: AgreementKey, peer: bytes) -> bytes:
        """Return what `agree` returns; the second end of a pair takes it and it is forgotten."""
        pair = own.public + peer if own.public < peer else peer + own.public
        known = self._known.pop(pair, None)
        if known is not None:
            return known
        shared = agree(own, peer)
        if len(self._known) >= self._pairs:
            del self._known[next(iter(self._known))]
        self._known[pair] = shared
        return shared


# --- derived keys (sections 1, 3, 5): one label each -------------------------------------------


def channel_keys(shared: bytes, transcript: bytes, low: int, high: int) -> tuple[bytes, bytes]:
    """Return the box keys (low to high, high to low) of two sites for one run (section 1)."""
    both = hkdf(shared, transcript, b"fsa1 channel" + u16(low) + u16(high), 2 * KEY_BYTES)
    return both[:KEY_BYTES], both[KEY_BYTES:]


def group_key(parts: Iterable[bytes], transcript: bytes) -> bytes:
    """Return kappa, which every site of the run has and the server has not (section 1).

    Args:
        parts: the sites' 32-byte parts in index order.
        transcript: T, the SHA-256 of all RunHello.
    """
    return hkdf(b"".join(parts), transcript, b"fsa1 group")


def pair_mask_key(shared: bytes, ctx: bytes, low: int, high: int, cohort_hash: bytes) -> bytes:
    """Return the key of the mask that site ``low`` adds and ``high`` subtracts (section 3)."""
    return hkdf(shared, ctx, b"fsa1 mask" + u16(low) + u16(high) + cohort_hash)


def self_mask_key(secret: bytes, ctx: bytes, index: int) -> bytes:
    """Return the key of a site's own mask, from its self-mask secret b (section 3)."""
    return hkdf(secret, ctx, b"fsa1 self" + u16(index))


def mac_key(kappa: bytes, ctx: bytes) -> bytes:
    """Return the key of the MAC's coefficients rho (section 5)."""
    return hkdf(kappa, ctx, b"fsa1 mac")


# --- tags and commitments (section 2) ----------------------------------------------------------


def group_tag(kappa: bytes, ctx: bytes) -> bytes:
    """Return the 16 bytes that show a site's kappa and ctx to its peers (message 5)."""
    return hmac.digest(kappa, ctx, "sha256")[:TAG_BYTES]


def part_commitment(part: bytes) -> bytes:
    """Return the commitment to a part of the group key (message 1)."""
    return hashlib.sha256(b"fsa1 part" + part).digest()


def self_commitment(ctx: bytes, secret: bytes) -> bytes:
    """Return the commitment to a self-mask secret b (message 5)."""
    return hashlib.sha256(b"fsa1 commit" + ctx + secret).digest()


def share_commitment(ctx: bytes, kind: int, destination: int, share: bytes) -> bytes:
    """Return the commitment to one share; kind 0 is for b, 1 for the mask secret (message 5)."""
    head = b"fsa1 share" + ctx + kind.to_bytes(1, "little") + u16(destination)
    return hashlib.sha256(head + share).digest()


# --- boxes (section 1): AES-256-GCM under a channel key ----------------------------------------


def box_nonce(round_number: int, attempt: int, number: int) -> bytes:
    """Return the 12-byte nonce of message ``number``; with one key it is used once."""
    return round_number.to_bytes(4, "little") + u16(attempt) + u16(number) + bytes(4)


def seal(key: bytes, nonce: bytes, plain: bytes, bound: bytes) -> bytes:
    """Return ``plain`` encrypted, with a 16-byte tag over it and over ``bound``."""
    return AESGCM(key).encrypt(nonce, plain, bound)


def unseal(key: bytes, nonce: bytes, box: bytes, bound: bytes) -> bytes | None:
    """Return what is in the box, or None when it does not open."""
    try:
        return AESGCM(key).decrypt(nonce, box, bound)
    except InvalidTag:
        return None
