"""A record's side depends on the split key and its own identity, and on nothing else."""

import hashlib
import hmac
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.holdout import enrolled_fraction, fold_of, held_out, kept
from client.data.records import Records
from privacy.errors import DataError, StudyError
from shared_models.sections import Evaluation

KEY = hashlib.sha256(b"split").digest()
NAMES = st.lists(st.binary(min_size=1, max_size=8), max_size=30)


def records_of(
    names: list[bytes], patients: list[int] | None = None, **public: list[str]
) -> Records:
    size = len(names)
    return Records(
        inputs=np.zeros((size, 1), dtype=np.float32),
        targets=np.zeros(size, dtype=np.int64),
        identities=tuple(names),
        patients=None if patients is None else np.array(patients, dtype=np.int64),
        public={name: np.array(values, dtype=np.str_) for name, values in public.items()},
    )


def numbered(count: int) -> list[bytes]:
    return [str(index).encode() for index in range(count)]


@given(NAMES, st.floats(0.01, 0.99))
def test_a_record_is_held_out_when_its_hash_is_below_the_fraction(
    names: list[bytes], fraction: float
) -> None:
    found = held_out(records_of(names), Evaluation(holdout=fraction), KEY)
    for name, side in zip(names, found.tolist(), strict=True):
        value = int(hmac.new(KEY, name, hashlib.sha256).hexdigest(), 16)
        assert side == (value / 2**256 < fraction)  # no hash lies within 2^-53 of the fraction


def test_known_sides() -> None:
    found = held_out(records_of(numbered(12)), Evaluation(holdout=0.25), bytes(32))
    assert np.flatnonzero(found).tolist() == [4, 7, 10]


@given(NAMES, st.binary(min_size=1, max_size=8), st.integers(0, 30))
def test_one_record_more_moves_no_other(names: list[bytes], name: bytes, place: int) -> None:
    place = min(place, len(names))
    more = [*names[:place], name, *names[place:]]
    for sides in (
        lambda records: held_out(records, Evaluation(), KEY),
        lambda records: fold_of(records, 5, KEY),
        lambda records: kept(records, 0.6, KEY),
    ):
        before, after = sides(records_of(names)), sides(records_of(more))
        assert before.tolist() == np.delete(after, place).tolist()


def test_equal_identities_fall_on_one_side() -> None:
    found = held_out(records_of(numbered(50) * 2), Evaluation(holdout=0.5), KEY)
    assert found[:50].tolist() == found[50:].tolist()


def test_another_key_holds_out_others() -> None:
    records = records_of(numbered(200))
    first = held_out(records, Evaluation(holdout=0.5), KEY)
    assert first.tolist() != held_out(records, Evaluation(holdout=0.5), bytes(32)).tolist()


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_the_fraction_is_met_on_average(fraction: float) -> None:
    share = held_out(records_of(numbered(20_000)), Evaluation(holdout=fraction), KEY).mean()
    assert abs(share - fraction) < 5 * (fraction * (1 - fraction) / 20_000) ** 0.5  # 5 sigma


def test_a_smaller_fraction_holds_out_a_subset() -> None:
    records = records_of(numbered(500))
    small = held_out(records, Evaluation(holdout=0.1), KEY)
    assert not (small & ~held_out(records, Evaluation(holdout=0.3), KEY)).any()


def test_folds_are_even_on_average_and_unlike_the_hold_out() -> None:
    records = records_of(numbered(20_000))
    folds = fold_of(records, 5, KEY)
    assert np.abs(np.bincount(folds, minlength=5) - 4000).max() < 300  # 5 sigma is 283
    inside = held_out(records, Evaluation(holdout=0.2), KEY)[folds == 0].mean()
    assert abs(inside - 0.2) < 0.05  # it would be 1 with the same hash


def test_one_fold_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="folds >= 2"):
        fold_of(records_of([b"a"]), 1, KEY)


def test_a_short_key_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        held_out(records_of([b"a"]), Evaluation(), b"short")


def test_no_records_have_no_sides() -> None:
    records = records_of([], patients=[], part=[])
    column = Evaluation(holdout_column="part", holdout_values=("test",))
    assert held_out(records, Evaluation(), KEY).shape == (0,)
    assert held_out(records, column, KEY).shape == (0,)
    assert fold_of(records, 2, KEY).shape == (0,)


@pytest.mark.parametrize("wanted", [("1", "test"), ("1.0", "test", "none")])
def test_a_public_column_may_say_who_is_held_out(wanted: tuple[str, ...]) -> None:
    records = records_of(numbered(4), fold=["1", "2", "test", ""])
    evaluation = Evaluation(holdout_column="fold", holdout_values=wanted)
    assert held_out(records, evaluation, KEY).tolist() == [True, False, True, False]


def test_an_absent_public_column_is_named() -> None:
    evaluation = Evaluation(holdout_column="fold", holdout_values=("1",))
    with pytest.raises(StudyError, match=r"holdout_column: expected one of part, found 'fold'"):
        held_out(records_of([b"a"], part=["x"]), evaluation, KEY)


def test_a_patient_on_both_sides_of_a_column_is_refused() -> None:
    evaluation = Evaluation(holdout_column="fold", holdout_values=("1",))
    columns: dict[str, Any] = {"fold": ["1", "2", "1"]}
    apart = records_of([b"a", b"b", b"a"], patients=[0, 1, 0], **columns)
    assert held_out(apart, evaluation, KEY).tolist() == [True, False, True]
    both = records_of([b"a", b"a", b"b"], patients=[0, 0, 1], **columns)
    with pytest.raises(DataError, match="every patient on one side"):
        held_out(both, evaluation, KEY)


# Records that are left out


def test_a_site_within_the_public_maximum_keeps_everything() -> None:
    assert enrolled_fraction(100, 100) == enrolled_fraction(0, 100) == 1.0
    assert kept(records_of(numbered(50)), 1.0, KEY).all()


def test_a_site_above_it_keeps_no_more_than_the_maximum() -> None:
    records = records_of(numbered(3_000))
    fraction = enrolled_fraction(3_000, 1_000)
    for seed in range(40):
        key = hashlib.sha256(bytes([seed])).digest()
        # the fraction leaves 3 sqrt(1000) = 95, of a binomial that is 25 wide
        assert 500 < kept(records, fraction, key).sum() <= 1_000


def test_who_is_kept_does_not_follow_from_who_is_held_out() -> None:
    records = records_of(numbered(4_000))
    held, stay = held_out(records, Evaluation(holdout=0.5), KEY), kept(records, 0.5, KEY)
    # independent halves: a quarter in both, of deviation sqrt(3/16 / 4000) = .0068; five of them
    assert abs((held & stay).mean() - 0.25) < 0.035


def test_a_patient_is_kept_whole() -> None:
    names = [name for name in numbered(200) for _ in range(3)]
    found = kept(records_of(names), 0.5, KEY).reshape(200, 3)
    assert (found == found[:, :1]).all()
    assert 50 < found[:, 0].sum() < 150


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        kept(records_of(numbered(2)), fraction, KEY)
