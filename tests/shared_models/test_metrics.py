"""Metrics: cells against exact predictions, known answers, coverage of the intervals."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binomtest, norm
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    mean_absolute_error,
    root_mean_squared_error,
)

from shared_models.cells import count_cells
from shared_models.intervals import (
    auc_limits,
    f1_limits,
    independent_mean_limits,
    mean_limits,
    proportion_limits,
)
from shared_models.metrics import (
    HEADLINE,
    METRICS,
    auc_binning_error,
    exact_metrics,
    metrics_from_cells,
)

YES_NO, LETTERS = ("no", "yes"), ("a", "b", "c", "d")
seeds = st.integers(0, 2**32 - 1)
RANKED = {"auc", "pr_auc"}


def two_classes(size, seed, separation=1.5, ties=0.1):
    rng = np.random.default_rng(seed)
    truth = (rng.random(size) < 0.4).astype(np.int64)
    score = expit(rng.normal(separation * (truth - 0.5), 1.0))
    score[rng.random(size) < ties] = 0.5  # on the edge of the decision
    return truth, np.stack((1 - score, score), axis=1)


def four_classes(size, seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, size)
    logits = rng.normal(size=(size, 4)) * 2 + 2 * np.eye(4)[truth]
    odds = np.exp(logits)
    return truth, odds / odds.sum(axis=1, keepdims=True)


def both(kind, classes, truth, scores, **options):
    cells = count_cells(kind, classes, truth, scores, **options)
    return (
        metrics_from_cells(kind, classes, cells, **options),
        exact_metrics(kind, classes, truth, scores),
        cells,
    )


def same(one, other, value_tolerance, limits_tolerance):
    """Equal None, equal n, value and limits within their tolerances."""

    def near(a, b, tolerance):
        return (a is None) == (b is None) and (a is None or abs(a - b) <= tolerance)

    return (
        one.n == other.n
        and near(one.value, other.value, value_tolerance)
        and near(one.low, other.low, limits_tolerance)
        and near(one.high, other.high, limits_tolerance)
    )


@given(st.integers(0, 80), seeds, st.sampled_from([2, 10, 40, 1024]))
@settings(max_examples=80, deadline=None)
def test_binary_cells_agree_with_exact_predictions(size, seed, bins):
    binned, exact, cells = both("binary", YES_NO, *two_classes(size, seed), bins=bins)
    for name in set(METRICS["binary"]) - RANKED:
        # Sums are rounded to 2^-25 a record; a variance near 0 then loses half its digits, and
        # two records multiply that by Student's 12.7.
        assert same(binned[name], exact[name], 2**-24, 5e-3), name
    error = auc_binning_error("binary", YES_NO, cells, bins=bins)
    assert (error is None) == (exact["auc"].value is None) == (binned["auc"].value is None)
    if error is not None:
        assert abs(binned["auc"].value - exact["auc"].value) <= error + 1e-12


@given(st.integers(0, 60), seeds, st.sampled_from([4, 256]))
@settings(max_examples=40, deadline=None)
def test_multiclass_cells_agree_with_exact_predictions(size, seed, bins):
    binned, exact, cells = both("multiclass", LETTERS, *four_classes(size, seed), bins=bins)
    for name in set(METRICS["multiclass"]) - RANKED:
        assert same(binned[name], exact[name], 2**-24, 5e-3), name
    error = auc_binning_error("multiclass", LETTERS, cells, bins=bins)
    assert (error is None) == (exact["auc"].value is None)
    if error is not None:
        assert abs(binned["auc"].value - exact["auc"].value) <= error + 1e-12


@given(st.integers(5, 60), seeds)
@settings(max_examples=40, deadline=None)
def test_regression_cells_agree_with_exact_predictions(size, seed):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(10, 50, size)
    guesses = np.clip(truth + rng.normal(0, 5, size), 10, 50)
    binned, exact, _ = both_numbers(truth, guesses)
    for name in METRICS["regression"]:
        # Squared errors are rounded to 40^2 x 2^-37 a record, fourth powers to 40^4 x 2^-37: the
        # limits of the RMSE take two square roots of the latter when errors are near 0.
        assert same(binned[name], exact[name], 1e-6, 0.1), name


def both_numbers(truth, guesses):
    cells = count_cells("regression", (), truth, guesses, bounds=(10, 50))
    return (
        metrics_from_cells("regression", (), cells, bounds=(10, 50)),
        exact_metrics("regression", (), truth, guesses),
        cells,
    )


def test_the_default_bins_hold_the_auc_to_a_thousandth():
    for separation in (0.5, 1.5, 4.0):
        binned, exact, cells = both("binary", YES_NO, *two_classes(3000, 3, separation, 0))
        assert auc_binning_error("binary", YES_NO, cells) < 1e-3
        assert abs(binned["pr_auc"].value - exact["pr_auc"].value) < 2e-3


def test_the_auc_of_a_confident_network_is_told_to_a_thousandth():
    """Half of the scores lie within a thousandth of 1: bins of equal width took .02 off."""
    draw = np.random.default_rng(4)
    truth = draw.integers(0, 2, 600)
    yes = 1 / (1 + np.exp(-(7 + 4 * truth + draw.normal(0, 4, 600))))
    assert np.mean(yes > 0.999) > 0.5
    binned, exact, _ = both("binary", YES_NO, truth, np.stack((1 - yes, yes), axis=1))
    assert abs(binned["auc"].value - exact["auc"].value) < 1e-3


@given(st.integers(2, 60), seeds)
@settings(max_examples=40, deadline=None)
def test_exact_figures_are_scikit_learns(size, seed):
    truth, scores = two_classes(size, seed)
    figures = exact_metrics("binary", YES_NO, truth, scores)
    assert figures["brier"].value == pytest.approx(brier_score_loss(truth, scores[:, 1]))
    assert figures["loss"].value == pytest.approx(log_loss(truth, scores, labels=[0, 1]))
    if 0 < truth.sum() < size:
        decided = scores[:, 1] >= 0.5
        assert figures["pr_auc"].value == average_precision_score(truth, scores[:, 1])
        assert figures["balanced_accuracy"].value == pytest.approx(
            balanced_accuracy_score(truth, decided)
        )
        assert figures["f1"].value == pytest.approx(f1_score(truth, decided))


def test_many_classes_and_numbers_are_scikit_learns():
    truth, scores = four_classes(200, 5)
    figures = exact_metrics("multiclass", LETTERS, truth, scores)
    assert figures["loss"].value == pytest.approx(log_loss(truth, scores))
    assert figures["f1"].value == pytest.approx(f1_score(truth, scores.argmax(1), average="macro"))
    guesses = scores[:, 0]
    figures = exact_metrics("regression", (), truth, guesses)
    assert figures["mae"].value == pytest.approx(mean_absolute_error(truth, guesses))
    assert figures["rmse"].value == pytest.approx(root_mean_squared_error(truth, guesses))


def test_a_table_by_hand():
    scores = np.array([0.9] * 6 + [0.1] * 2 + [0.8] * 1 + [0.2] * 11)
    truth = np.array([1] * 8 + [0] * 12)
    figures = exact_metrics("binary", YES_NO, truth, np.stack((1 - scores, scores), axis=1))
    expected = {
        "accuracy": (17 / 20, 20),
        "precision": (6 / 7, 7),
        "sensitivity": (6 / 8, 8),
        "specificity": (11 / 12, 12),
        "f1": (12 / 15, 9),
        "balanced_accuracy": ((6 / 8 + 11 / 12) / 2, 20),
        "auc": ((6 * 12 + 0) / 96, 20),
    }
    for name, (value, n) in expected.items():
        assert figures[name].value == pytest.approx(value), name
        assert figures[name].n == n, name


def test_nothing_is_defined_without_records():
    for kind, classes, shape in (
        ("binary", YES_NO, (0, 2)),
        ("multiclass", LETTERS, (0, 4)),
        ("regression", (), (0,)),
    ):
        binned, exact, _ = both(kind, classes, np.zeros(0, np.int64), np.zeros(shape))
        for figures in (binned, exact):
            assert tuple(figures) == METRICS[kind]
            assert all((f.value, f.low, f.high) == (None, None, None) for f in figures.values())


def test_one_class_alone_leaves_undefined_what_needs_two():
    scores = np.array([[0.8, 0.2], [0.6, 0.4]])
    for figures in both("binary", YES_NO, np.array([0, 0]), scores)[:2]:
        undefined = {name for name, figure in figures.items() if figure.value is None}
        assert undefined == {
            "auc",
            "pr_auc",
            "balanced_accuracy",
            "sensitivity",
            "precision",
            "f1",
        }
        assert figures["accuracy"].value == figures["specificity"].value == 1


def test_a_class_without_records_is_left_out_of_macro_averages():
    truth, scores = four_classes(100, 2)
    kept = truth < 3
    for figures in both("multiclass", LETTERS, truth[kept], scores[kept])[:2]:
        decided = scores[kept].argmax(axis=1)
        recalls = [(decided[truth[kept] == k] == k).mean() for k in range(3)]
        assert figures["sensitivity"].value == pytest.approx(np.mean(recalls))
        assert figures["auc"].value is not None


def test_every_kind_has_its_headline_among_its_metrics():
    assert all(HEADLINE[kind] in METRICS[kind] for kind in METRICS)


@given(seeds, st.integers(3, 60))
@settings(max_examples=40, deadline=None)
def test_limits_enclose_their_value(seed, size):
    truth, scores = two_classes(size, seed, separation=3)
    for name, figure in exact_metrics("binary", YES_NO, truth, scores).items():
        if figure.low is not None:
            assert figure.low - 1e-12 <= figure.value <= figure.high + 1e-12, name
            assert figure.low >= 0, name
            assert name == "loss" or figure.high <= 1, name


@given(st.integers(1, 500), st.data())
def test_wilsons_limits_are_scipys(trials, data):
    cases = data.draw(st.integers(0, trials))
    interval = binomtest(cases, trials).proportion_ci(method="wilson")
    assert proportion_limits(cases / trials, trials) == pytest.approx(
        (interval.low, interval.high), abs=1e-12
    )


def test_an_area_of_one_keeps_an_honest_lower_limit():
    low, high = auc_limits(1.0, 20, 20)
    assert 0.7 < low < 0.95
    assert high == 1
    assert auc_limits(0.0, 20, 20) == pytest.approx((0, 1 - low), abs=1e-9)


def coverage(draw, truth, repeats=400):
    limits = [draw(np.random.default_rng(seed)) for seed in range(repeats)]
    return np.mean([low <= truth <= high for low, high in limits])


# 400 repeats of 95 %: one standard error is 1.1 points; conservative intervals may reach 99 %.
@pytest.mark.parametrize(("separation", "size"), [(0.5, 60), (1.5, 60), (3.0, 80)])
def test_auc_limits_cover_about_95_percent(separation, size):
    truth = norm.cdf(separation / np.sqrt(2))

    def draw(rng):
        yes, no = rng.normal(separation, 1, size // 3), rng.normal(0, 1, size - size // 3)
        auc = (yes[:, None] > no).mean()
        return auc_limits(float(auc), len(no), len(yes))

    assert 0.92 <= coverage(draw, truth) <= 0.995


def test_f1_limits_cover_about_95_percent():
    chances = np.array([0.25, 0.1, 0.08, 0.57])  # TP, FP, FN, TN
    truth = 2 * 0.25 / (2 * 0.25 + 0.18)

    def draw(rng):
        tp, fp, fn, _ = rng.multinomial(80, chances)
        return f1_limits(2 * tp / (2 * tp + fp + fn), tp + fp + fn)

    assert 0.92 <= coverage(draw, truth) <= 0.985


def test_balanced_accuracy_limits_cover_about_95_percent():
    def draw(rng):
        shares = np.array([rng.binomial(30, 0.9) / 30, rng.binomial(60, 0.7) / 60])
        lows, highs = np.array(
            [proportion_limits(s, n) for s, n in zip(shares, (30, 60), strict=True)]
        ).T
        return independent_mean_limits(shares, lows, highs)

    assert 0.92 <= coverage(draw, 0.8) <= 0.985


def test_mean_limits_cover_about_95_percent():
    def draw(rng):
        values = rng.gamma(2.0, 1.0, 80)
        return mean_limits(values.mean(), (values**2).mean(), 80)

    assert 0.915 <= coverage(draw, 2.0) <= 0.985


def test_scipy_and_scikit_learn_are_imported_for_figures_alone() -> None:
    code = (
        "import sys, shared_models.metrics, shared_models.plan\n"
        "print(sorted({'scipy', 'sklearn', 'pandas'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
