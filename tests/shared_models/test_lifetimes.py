"""Harrell's c, Kaplan-Meier and life tables: known answers, direct formulas, resampling."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_models.lifetimes import concordance, kaplan_meier, life_table

RECORD = st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 4))
Record = tuple[int, bool, int]


def of(records: list[Record]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    times, events, risks = zip(*records, strict=True) if records else ((), (), ())
    return (
        np.array(times, dtype=np.float64),
        np.array(events, dtype=np.bool_),
        np.array(risks, dtype=np.float64),
    )


def ones(times: np.ndarray) -> np.ndarray:
    return np.ones(len(times))


def by_pairs(records: list[Record]) -> Fraction | None:
    """Harrell's c by its definition, a pair at a time."""
    won, pairs = Fraction(0), 0
    for time, event, risk in records:
        for other, seen, less in records:
            if event and (time < other or (time == other and not seen)):
                pairs += 1
                won += Fraction(1, 2) if risk == less else Fraction(int(risk > less))
    return won / pairs if pairs else None


@settings(max_examples=200, deadline=None)
@given(st.lists(RECORD, max_size=12))
def test_c_is_the_definitions(records: list[Record]) -> None:
    times, events, risks = of(records)
    found, wanted = concordance(times, events, risks, ones(times)), by_pairs(records)
    if wanted is None:
        assert found.value is None
    else:
        assert found.value == pytest.approx(float(wanted), abs=1e-12)
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= found.value <= found.high <= 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(RECORD, st.integers(1, 3)), max_size=8))
def test_a_weight_is_so_many_records(weighted: list[tuple[Record, int]]) -> None:
    times, events, risks = of([record for record, _ in weighted])
    weights = np.array([count for _, count in weighted], dtype=np.float64)
    counted = concordance(times, events, risks, weights)
    written = concordance(
        *(every := of([r for r, n in weighted for _ in range(n)])), ones(every[0])
    )
    assert counted.pairs == written.pairs
    for name in ("value", "low", "high"):
        one, other = getattr(counted, name), getattr(written, name)
        assert one is other is None or one == pytest.approx(other, abs=1e-9)


def test_records_in_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(1)
    times, risks = draw.integers(0, 9, 60).astype(float), draw.integers(0, 5, 60).astype(float)
    events = draw.random(60) < 0.5
    whole = concordance(times, events, risks, ones(times))
    monkeypatch.setattr("shared_models.lifetimes.PAIRS_AT_ONCE", 100)
    assert concordance(times, events, risks, ones(times)).value == pytest.approx(whole.value)


def test_the_interval_is_the_bootstraps() -> None:
    draw = np.random.default_rng(2)
    count = 150
    risks = draw.normal(size=count)
    lived, cut = draw.exponential(np.exp(-risks)), draw.exponential(1.5, count)
    times, events = np.minimum(lived, cut), lived < cut
    found = concordance(times, events, risks, ones(times))
    again = [
        concordance(times[rows], events[rows], risks[rows], ones(times)).value
        for rows in draw.integers(0, count, (300, count))
    ]
    assert found.low is not None
    assert found.high is not None
    # 20 %: a deviation of 300 draws is known to 4 %, the jackknife's own error is 1 / sqrt(150)
    assert (found.high - found.low) / 3.92 == pytest.approx(np.std(again), rel=0.2)


def test_kaplan_meier_by_hand() -> None:
    """Six records, ends 1, 2+, 3, 3, 5+, 6: 5 of 6, then 2 of the 4 left, then 0 of 1."""
    times = np.array([3.0, 1.0, 5.0, 3.0, 6.0, 2.0])
    events = np.array([True, True, False, True, True, False])
    curve = kaplan_meier(times, events)
    at = {t: curve.at(t) for t in (0.5, 1, 2.5, 3, 5.5, 6, 7)}
    shares = {t: None if one is None else one[0] for t, one in at.items()}
    assert shares == pytest.approx(
        {0.5: 1, 1: 5 / 6, 2.5: 5 / 6, 3: 5 / 12, 5.5: 5 / 12, 6: 0, 7: 0}
    )
    # Greenwood: S^2 (1/(6 x 5) + 2/(4 x 2))
    assert at[3] is not None
    assert at[3][1] == pytest.approx(5 / 12 * math.sqrt(1 / 30 + 2 / 8))


def test_a_curve_ends_where_nobody_was_seen_any_more() -> None:
    curve = kaplan_meier(np.array([1.0, 2.0]), np.array([True, False]))
    assert curve.at(2.0) is not None
    assert curve.at(2.5) is None
    assert kaplan_meier(np.zeros(0), np.zeros(0, dtype=np.bool_)).at(1.0) is None


def test_a_life_table_by_hand() -> None:
    """Of 100, 20 events and 10 cut short in the first interval: 1 - 20/95; then 35 of 70 less 5."""
    table = life_table(np.array([1.0, 2.0]), np.array([20.0, 33.0]), np.array([10.0, 8.0]), 29.0)
    first, second = table.at(1.0), table.at(2.0)
    assert first is not None
    assert second is not None
    assert first[0] == pytest.approx(1 - 20 / 95)
    assert second[0] == pytest.approx((1 - 20 / 95) * (1 - 33 / 66))
    assert first[1] == pytest.approx(75 / 95 * math.sqrt(20 / (95 * 75)))


def test_a_life_table_of_nobody_tells_nothing() -> None:
    nothing = np.zeros(2)
    assert life_table(np.array([1.0, 2.0]), nothing, nothing, 0.0).at(1.0) is None
    lone = life_table(np.array([1.0, 2.0]), nothing, np.array([1.0, 0.0]), 0.0)
    assert lone.at(1.0) == (1.0, 0.0)
    assert lone.at(2.0) is None  # the only record was cut short before


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=15))
def test_without_records_cut_short_a_life_table_is_kaplan_meiers(
    records: list[tuple[int, bool]],
) -> None:
    times = np.array([time for time, _ in records], dtype=np.float64)
    happened = np.bincount(times.astype(int), minlength=6)[1:].astype(np.float64)
    table = life_table(np.arange(1.0, 6.0), happened, np.zeros(5), 0.0)
    curve = kaplan_meier(times, np.ones(len(times), dtype=np.bool_))
    for time in range(1, 6):
        one, other = table.at(time), curve.at(time)
        assert one == other == (0.0, 0.0) or one == pytest.approx(other)
