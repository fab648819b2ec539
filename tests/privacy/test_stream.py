"""The keystream: known answers, the same bytes however they are read, words and uniforms."""

from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.stream import KEY_BYTES, Stream, fresh_key

KEY = bytes(range(32))


def blocks(key: bytes, count: int) -> bytes:
    """AES-256 of 0, 1, 2, ... as 128-bit big-endian numbers: counter mode by its definition."""
    cipher = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    return b"".join(cipher.update(number.to_bytes(16, "big")) for number in range(count))


def test_the_first_block_is_a_known_answer() -> None:
    # AES-256 of the zero block under the zero key: FIPS 197 / NIST AESAVS, GFSbox-256.
    assert Stream(bytes(32)).read(16).hex() == "dc95c078a2408989ad48a21492842087"


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(0, 200))
def test_the_stream_is_counter_mode_from_zero(key: bytes, count: int) -> None:
    assert Stream(key).read(count) == blocks(key, 13)[:count]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 100), max_size=12))
def test_the_bytes_do_not_depend_on_how_they_are_cut(cuts: list[int]) -> None:
    stream = Stream(KEY)
    assert b"".join(stream.read(n) for n in cuts) == Stream(KEY).read(sum(cuts))


@pytest.mark.parametrize("size", [(1 << 16) - 1, 1 << 16, (1 << 16) + 1, 300_000])
def test_a_long_read_is_many_short_ones(size: int) -> None:
    stream = Stream(KEY)
    parts = [stream.read(min(1000, size - start)) for start in range(0, size, 1000)]
    assert Stream(KEY).read(size) == b"".join(parts)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 300), st.integers(0, 100))
def test_a_stream_entered_later_gives_the_bytes_of_that_place(start: int, count: int) -> None:
    assert Stream(KEY, start).read(count) == Stream(KEY).read(start + count)[start:]


@pytest.mark.parametrize("place", [2**32 - 1, 2**32 + 5])
def test_the_counter_goes_beyond_32_bits(place: int) -> None:
    one = Cipher(algorithms.AES256(KEY), modes.ECB()).encryptor()
    expected = b"".join(one.update((place + k).to_bytes(16, "big")) for k in range(2))
    assert Stream(KEY, 16 * place).read(32) == expected


def test_filling_overwrites_the_words_and_no_others() -> None:
    words = np.ones(12, dtype="<u4")
    Stream(KEY).fill(words[2:9])
    assert words[2:9].tolist() == Stream(KEY).words32(7).tolist()
    assert words[[0, 1, 9, 10, 11]].tolist() == [1] * 5


@pytest.mark.parametrize("bit", range(256))
def test_every_bit_of_the_key_changes_the_stream(bit: int) -> None:
    other = bytearray(KEY)
    other[bit // 8] ^= 1 << bit % 8
    assert Stream(bytes(other)).read(16) != Stream(KEY).read(16)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_of_another_size_is_refused_and_not_shown(size: int) -> None:
    with pytest.raises(ValueError, match=f"expected a key of 32 bytes, got {size}") as caught:
        Stream(b"k" * size)
    assert "kk" not in str(caught.value)


@pytest.mark.parametrize(
    ("read", "size"),
    [(Stream.words16, 2), (Stream.words32, 4), (Stream.words64, 8)],
)
def test_words_are_the_little_endian_stream(
    read: Callable[[Stream, int], np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]], size: int
) -> None:
    raw = Stream(KEY).read(5 * size)
    expected = [int.from_bytes(raw[k : k + size], "little") for k in range(0, 5 * size, size)]
    assert read(Stream(KEY), 5).tolist() == expected


def test_uniforms_are_the_upper_53_bits_of_a_word() -> None:
    words = Stream(KEY).words64(1000)
    assert Stream(KEY).uniform(1000).tolist() == [int(word) // 2**11 / 2**53 for word in words]


def test_uniforms_are_in_the_half_open_interval_and_evenly_spread() -> None:
    values = Stream(KEY).uniform(100_000)
    assert values.min() >= 0
    assert values.max() < 1
    counts, _ = np.histogram(values, bins=100, range=(0, 1))
    # chi-square with 99 degrees of freedom: 99 +- 14; the stream is fixed, so is the answer
    assert ((counts - 1000) ** 2 / 1000).sum() < 99 + 5 * 14


def test_fresh_keys_are_never_the_same() -> None:
    keys = {fresh_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert {len(key) for key in keys} == {KEY_BYTES}
