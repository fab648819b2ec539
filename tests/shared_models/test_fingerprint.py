"""Six words tell two keys apart, and are those of the published encoding."""

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_models.fingerprint import fingerprint, proquint

CONSONANTS, VOWELS = "bdfghjklmnprstvz", "aiou"

# The examples of arXiv:0901.4016: addresses of four bytes, two words each.
PUBLISHED = {
    "127.0.0.1": "lusab babad",
    "63.84.220.193": "gutih tugad",
    "63.118.7.35": "gutuk bisog",
    "140.98.193.141": "mudof sakat",
    "64.255.6.200": "haguz biram",
    "128.30.52.45": "mabiv gibot",
    "147.67.119.2": "natag lisaf",
    "212.58.253.68": "tibup zujah",
    "216.35.68.215": "tobog higil",
    "216.68.232.21": "todah vobij",
    "198.81.129.136": "sinid makam",
    "12.110.110.204": "budov kuras",
}


@pytest.mark.parametrize(("address", "words"), PUBLISHED.items())
def test_the_words_are_those_of_the_paper(address: str, words: str) -> None:
    data = bytes(int(part) for part in address.split("."))
    assert f"{proquint(data[:2])} {proquint(data[2:])}" == words


def test_every_pair_of_bytes_has_a_word_of_its_own() -> None:
    assert len({proquint(number.to_bytes(2, "big")) for number in range(1 << 16)}) == 1 << 16


def test_the_fingerprint_is_that_of_the_domain_and_the_key() -> None:
    digest = hashlib.sha256(b"fedward fingerprint" + bytes(range(32))).digest()
    expected = " ".join(proquint(digest[at : at + 2]) for at in range(0, 12, 2))
    assert fingerprint(bytes(range(32))) == expected


@pytest.mark.parametrize(
    ("public", "words"),
    [
        (bytes(32), "bijod nabob fagus bikur vunag nunaj"),
        (bytes(range(32)), "pabor bupid vokab bibup zuhir lopuh"),
    ],
)
def test_a_fingerprint_never_changes(public: bytes, words: str) -> None:
    # Written down once: people keep these words on paper.
    assert fingerprint(public) == words


@given(st.binary(min_size=32, max_size=32))
def test_a_fingerprint_is_six_words_of_five_letters(public: bytes) -> None:
    word = f"[{CONSONANTS}][{VOWELS}][{CONSONANTS}][{VOWELS}][{CONSONANTS}]"
    assert re.fullmatch(" ".join([word] * 6), fingerprint(public))


@pytest.mark.parametrize("bit", range(256))
def test_keys_that_differ_in_one_bit_share_at_most_one_word(bit: int) -> None:
    # a word is equal by chance with 2^-16: two of six in one of 256 pairs with 1e-6
    key = bytes(range(32))
    other = bytearray(key)
    other[bit // 8] ^= 1 << bit % 8
    pairs = zip(fingerprint(key).split(), fingerprint(bytes(other)).split(), strict=True)
    assert sum(one == two for one, two in pairs) <= 1


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_key_of_another_length_has_none(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        fingerprint(bytes(length))


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_word_is_of_two_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="2 bytes"):
        proquint(bytes(length))
