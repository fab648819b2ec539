"""Keys from a seed: repeatable, and independent for other labels."""

import hashlib
import hmac

from hypothesis import given
from hypothesis import strategies as st

from simulations.seeds import seeded_integer, seeded_key

SEEDS = st.integers(0, (1 << 63) - 1)
LABELS = st.lists(st.one_of(st.text("abc1", max_size=3), st.integers(0, 99)), max_size=4)


def test_a_key_is_the_hmac_of_its_labels() -> None:
    seed = (7).to_bytes(8, "little")
    assert seeded_key(7, "site-001", "noise", 3) == hmac.digest(
        seed, b"site-001\0noise\x003", hashlib.sha256
    )


@given(SEEDS, SEEDS, LABELS)
def test_another_seed_gives_another_key(one: int, two: int, labels: list[str | int]) -> None:
    assert (seeded_key(one, *labels) == seeded_key(two, *labels)) == (one == two)


@given(SEEDS, LABELS, LABELS)
def test_other_labels_give_another_key(
    seed: int, one: list[str | int], two: list[str | int]
) -> None:
    same = [str(label) for label in one] == [str(label) for label in two]
    empty = {("",), ()}  # no label and one empty label are one text: nothing uses either
    if {tuple(map(str, one)), tuple(map(str, two))} == empty:
        return
    assert (seeded_key(seed, *one) == seeded_key(seed, *two)) == same


def test_an_integer_fits_a_torch_seed() -> None:
    values = [seeded_integer(seed, "model") for seed in range(200)]
    assert all(0 <= value < 1 << 63 for value in values)
    assert len(set(values)) == 200
    assert max(values) > 1 << 62
