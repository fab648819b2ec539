"""The keystream: known answers, the same bytes however they are read, words and uniforms."""

from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.stream import KEY_BYTES, Stream, fresh_key

KEY = bytes(range(32))


def blocks(key: bytes, count: int, start: int = 0) -> bytes:
    """AES-256 of start, start + 1, ... as 128-bit big-endian numbers: counter mode as defined."""
    cipher = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    numbers = range(start, start + count)
    return b"".join(cipher.update(number.to_bytes(16, "big")) for number in numbers)


@pytest.mark.parametrize(
    ("key", "first"),
    [
        ("00" * 32, "dc95c078a2408989ad48a21492842087"),
        ("80" + "00" * 31, "e35a6dcb19b201a01ebcfa8aa22b5759"),
        ("c0" + "00" * 31, "b29169cdcf2d83e838125a12ee6aa400"),
        ("f0" + "00" * 31, "1c777679d50037c79491a94da76a9a35"),
        ("ff" * 32, "4bf85f1b5d54adbc307b0a048389adcb"),
        (
            "c47b0294dbbbee0fec4757f22ffeee3587ca4730c3d33b691df38bab076bc558",
            "46f2fb342d6f0ab477476fc501242c5f",
        ),
        (
            "28d46cffa158533194214a91e712fc2b45b518076675affd910edeca5f41ac64",
            "4bf3b0a69aeb6657794f2901b1440ad4",
        ),
    ],
)
def test_the_first_block_is_nists_of_the_zero_block(key: str, first: str) -> None:
    # NIST AESAVS, GFSbox (the zero key), VarKey256 and KeySbox256: AES-256 of the zero block.
    assert Stream(bytes.fromhex(key)).read(16).hex() == first


def test_the_definition_of_counter_mode_is_that_of_nist() -> None:
    """SP 800-38A, F.5.5. Our streams start at zero and that one does not, so here is what the
    next test compares a stream with."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    stream = blocks(key, 4, 0xF0F1F2F3F4F5F6F7F8F9FAFBFCFDFEFF)
    assert bytes(p ^ s for p, s in zip(plain, stream, strict=True)).hex() == (
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )


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
