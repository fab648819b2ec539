"""Rankings as screening reads them: by hand, by their formulas, and by other people's code."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from shared_models.metrics import Figure
from shared_models.screening import ALPHA, auc, bedroc, enrichment, mean_of, ranked

RECORDS = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=30)


def of(records: list[tuple[bool, int]]) -> tuple[np.ndarray, np.ndarray]:
    truth, scores = zip(*records, strict=True)
    return np.array(truth), np.array(scores, dtype=np.float64)


def distinct(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.random(count) < 0.1, draw.permutation(count).astype(np.float64)


@settings(max_examples=100, deadline=None)
@given(RECORDS)
def test_the_auc_is_scikit_learns(records: list[tuple[bool, int]]) -> None:
    truth, scores = of(records)
    found = auc(ranked(truth, scores))
    assert found.n == len(records)
    if 0 < truth.sum() < len(truth):
        assert found.value == pytest.approx(roc_auc_score(truth, scores))
    else:
        assert found.value is None


def test_enrichment_by_hand() -> None:
    """Of 200 records with 10 effects the first 2 are looked at: one has it, so .5 over .05."""
    truth = np.zeros(200, dtype=np.bool_)
    truth[[0, *range(100, 109)]] = True
    figure = enrichment(ranked(truth, -np.arange(200.0)))
    assert figure.value == pytest.approx(10)
    assert figure.low == pytest.approx(0.0945 * 20, abs=0.01)  # Wilson's limits of 1 in 2
    # All scores alike: whoever is looked at is a random choice.
    assert enrichment(ranked(truth, np.zeros(200))).value == pytest.approx(1)


def test_bedroc_is_equation_36() -> None:
    truth, scores = distinct(500, 1)
    ranks = np.flatnonzero(truth[np.argsort(-scores)]) + 1
    count, total = len(ranks), len(truth)
    part = count / total
    rie = np.exp(-ALPHA * ranks / total).mean() / (
        (1 - math.exp(-ALPHA)) / (math.exp(ALPHA / total) - 1) / total
    )
    wanted = rie * part * math.sinh(ALPHA / 2) / (
        math.cosh(ALPHA / 2) - math.cosh(ALPHA / 2 - ALPHA * part)
    ) + 1 / (1 - math.exp(ALPHA * (1 - part)))
    figure = bedroc(ranked(truth, scores))
    assert figure.value == pytest.approx(wanted, rel=1e-9)
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low < wanted < figure.high


@pytest.mark.parametrize("seed", range(3))
def test_both_are_rdkits(seed: int) -> None:
    scoring = pytest.importorskip("rdkit.ML.Scoring.Scoring")
    truth, scores = distinct(700, seed)
    rows = [[int(one)] for one in truth[np.argsort(-scores)]]
    blocks = ranked(truth, scores)
    assert bedroc(blocks).value == pytest.approx(scoring.CalcBEDROC(rows, 0, ALPHA))
    assert enrichment(blocks).value == pytest.approx(scoring.CalcEnrichment(rows, 0, [0.01])[0])


def test_the_first_and_the_last_place_are_one_and_nothing() -> None:
    truth = np.arange(100) < 7
    assert bedroc(ranked(truth, -np.arange(100.0))).value == pytest.approx(1)
    assert bedroc(ranked(truth, np.arange(100.0))).value == pytest.approx(0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=4, max_size=7))
def test_equal_scores_are_the_mean_over_their_orders(records: list[tuple[bool, int]]) -> None:
    truth, scores = of(records)
    if not 0 < truth.sum() < len(truth):
        return
    draw = np.random.default_rng(2)
    orders = [scores + draw.permutation(len(scores)) / 100 for _ in range(2000)]
    for figure in (bedroc, enrichment):
        each = [figure(ranked(truth, order)).value or 0.0 for order in orders]
        whole = figure(ranked(truth, scores)).value
        # 5 standard errors of 2000 draws
        assert whole == pytest.approx(np.mean(each), abs=5 * np.std(each) / math.sqrt(2000) + 1e-9)


@pytest.mark.parametrize("truth", [[], [True], [True, True], [False, False]])
def test_without_both_kinds_there_is_no_figure(truth: list[bool]) -> None:
    blocks = ranked(np.array(truth, dtype=np.bool_), np.zeros(len(truth)))
    for figure in (auc, bedroc, enrichment):
        assert figure(blocks) == Figure(None, None, None, len(truth))


def test_a_mean_is_of_what_has_a_value() -> None:
    figures = [Figure(0.6, 0.5, 0.7, 9), Figure(None, None, None, 9), Figure(0.8, 0.6, 0.9, 9)]
    found = mean_of(figures, 12)
    assert (found.value, found.low, found.high) == pytest.approx((0.7, 0.55, 0.8))
    assert found.n == 12
    assert mean_of([Figure(None, None, None, 9)], 12).value is None
