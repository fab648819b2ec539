"""A public key as six words, to be read over the telephone and compared by ear.

It is no identity: keys are pinned whole, the words only let two people notice that they hold
different ones.
"""

import hashlib

from privacy.roster import KEY_BYTES

WORDS = 6  # of 16 bits: finding another key with the same 96 bits takes 2^96 tries
_CONSONANTS = "bdfghjklmnprstvz"  # 4 bits each
_VOWELS = "aiou"  # 2 bits each


def fingerprint(public: bytes) -> str:
    """Return the fingerprint of an Ed25519 key: six words of five letters, one space between.

    Args:
        public: the key, 32 bytes.

    Returns:
        the first 96 bits of SHA-256("fedward fingerprint" | public), as proquints.

    Source: Wilkerson 2009, arXiv:0901.4016 (proquints).
    """
    if len(public) != KEY_BYTES:
        raise ValueError(f"expected a key of {KEY_BYTES} bytes, got {len(public)}")
    digest = hashlib.sha256(b"fedward fingerprint" + public).digest()
    return " ".join(proquint(digest[2 * word : 2 * word + 2]) for word in range(WORDS))


def proquint(pair: bytes) -> str:
    """Return two bytes as consonant, vowel, consonant, vowel, consonant, high bits first."""
    bits = int.from_bytes(pair, "big")
    if len(pair) != 2:
        raise ValueError(f"expected 2 bytes, got {len(pair)}")
    return (
        _CONSONANTS[bits >> 12]
        + _VOWELS[bits >> 10 & 3]
        + _CONSONANTS[bits >> 6 & 15]
        + _VOWELS[bits >> 4 & 3]
        + _CONSONANTS[bits & 15]
    )
