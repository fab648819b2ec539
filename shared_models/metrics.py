"""Every metric with its 95 % interval, from summed cells or from the pooled predictions themselves.

It does not count records at a site; the cells do. Both ways end in the same scikit-learn calls, so
they differ by the binning of scores alone (`auc_binning_error` bounds that). A metric that has no
value, such as the AUC of one class, is None, never 0 or 1.

Macro averages of many classes run over the classes that have held-out records and need two of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared_models.cells import (
    Cells,
    Kind,
    Numbers,
    Predictions,
    Range,
    Targets,
    class_scores,
    decisions,
    error_powers,
    number_errors,
    read_cells,
    score_moments,
)
from shared_models.intervals import (
    Limits,
    auc_limits,
    dependent_mean_limits,
    f1_limits,
    independent_mean_limits,
    mean_limits,
    proportion_limits,
)

_CLASS_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "precision",
    "sensitivity",
    "specificity",
    "f1",
    "auc",
    "pr_auc",
    "brier",
    "loss",
)
METRICS: dict[Kind, tuple[str, ...]] = {
    "binary": _CLASS_METRICS,
    "multiclass": _CLASS_METRICS,
    "regression": ("mae", "rmse", "loss"),
}
HEADLINE: dict[Kind, str] = {"binary": "auc", "multiclass": "accuracy", "regression": "rmse"}
LOWER_IS_BETTER = frozenset({"brier", "loss", "mae", "rmse", "surface_distance"})

# One ranking: is each record positive, how high does it score, how many such records.
Ranking = tuple[npt.NDArray[np.bool_], Numbers, Numbers]


@dataclass(frozen=True)
class Figure:
    """One metric: its value, its 95 % limits, and the number of records that it rests on.

    None where there is nothing to compute it from; a value may lack limits (one record).
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Classwise:
    """One metric of every class against the rest, (K,) each; NaN where it has no value.

    Attributes:
        values: the metric.
        lows: lower 95 % limits.
        highs: upper 95 % limits.
        counts: records that each rests on.
    """

    values: Numbers
    lows: Numbers
    highs: Numbers
    counts: Cells


def metrics_from_cells(
    kind: Kind,
    classes: Sequence[str],
    cells: Cells,
    *,
    bins: int | None = None,
    bounds: Range = (0.0, 1.0),
) -> dict[str, Figure]:
    """Return the metrics of a sum of cells.

    Args:
        kind: what the target asks for.
        classes: names in the order of the outputs; empty for numbers.
        cells: (L,) the sum over sites of `count_cells` with the same arguments.
        bins: score bins; default as in the counting.
        bounds: public (low, high) of a number target, as in the counting.

    Returns:
        METRICS[kind], each a figure; two classes are judged by the second, "yes".

    Raises:
        ValueError: ``cells`` is no such vector.
    """
    tally = read_cells(kind, classes, cells, bins=bins, bounds=bounds)
    means = tally.sums / tally.records if tally.records else tally.sums
    if kind == "regression":
        return number_figures(means, tally.records)
    rankings = [binned(scores) for scores in tally.scores]
    return class_figures(tally.confusion, rankings, means)


def exact_metrics(
    kind: Kind, classes: Sequence[str], targets: Targets, predictions: Predictions
) -> dict[str, Figure]:
    """Return the metrics of the predictions themselves, which only a simulation may pool.

    Args:
        kind: what the target asks for.
        classes: names in the order of the outputs; empty for numbers.
        targets: (N,) class numbers, or numbers in the target's unit; N may be 0.
        predictions: (N, K) probabilities (two columns for two classes), or (N,) numbers.

    Returns:
        METRICS[kind], each a figure; two classes are judged by the second, "yes".

    Raises:
        DataError: a prediction is not finite.
        ValueError: shapes, class numbers or probabilities are not what ``kind`` asks for.
    """
    if kind == "regression":
        powers = error_powers(number_errors(targets, predictions))
        return number_figures(_mean(powers), len(powers))
    truth, scores = class_scores(classes, targets, predictions)
    size = len(classes)
    if len(truth):
        from sklearn.metrics import confusion_matrix

        confusion = confusion_matrix(truth, decisions(scores), labels=range(size)).astype(np.int64)
    else:
        confusion = np.zeros((size, size), dtype=np.int64)
    ones = np.ones(len(truth))
    judged = [1] if kind == "binary" else range(size)
    rankings = [(truth == k, scores[:, k], ones) for k in judged]
    return class_figures(confusion, rankings, _mean(score_moments(truth, scores)))


def auc_binning_error(
    kind: Kind, classes: Sequence[str], cells: Cells, *, bins: int | None = None
) -> float | None:
    """Return how far the AUC of the cells can be from that of the scores: value +- this.

    A pair of a positive and a negative in one bin counts one half, whatever their order was: the
    error is at most half the share of such pairs (macro: the mean over the classes).
    """
    bounds = []
    for others, own in read_cells(kind, classes, cells, bins=bins).scores.astype(np.float64):
        pairs = others.sum() * own.sum()
        if pairs:
            bounds.append(float((others * own).sum() / (2 * pairs)))
    enough = len(bounds) >= (1 if kind == "binary" else 2)
    return float(np.mean(bounds)) if enough else None


def _mean(moments: Numbers) -> Numbers:
    means: Numbers = moments.mean(axis=0) if len(moments) else np.zeros(moments.shape[1])
    return means


def binned(scores: Cells) -> Ranking:
    """Return a (2, B) histogram as weighted records that score their bin's number."""
    weights = scores.ravel().astype(np.float64)
    bins = scores.shape[1]
    positive, place = np.divmod(np.arange(2 * bins), bins)
    kept = weights > 0
    return positive[kept] == 1, place[kept].astype(np.float64), weights[kept]


def class_figures(
    confusion: Cells, rankings: Sequence[Ranking], means: Numbers
) -> dict[str, Figure]:
    """Return all metrics of classes; one ranking means two classes, judged by "yes"."""
    total, binary = int(confusion.sum()), len(rankings) == 1
    present = confusion.sum(axis=1) > 0
    rates, areas = _rates(confusion), _areas(rankings)
    figures = {
        "accuracy": _accuracy(confusion),
        "balanced_accuracy": _macro(rates["sensitivity"], present, total, independent=True),
        "brier": _mean_figure(means[0], means[1], total, 1.0 if binary else 2.0),
        "loss": _mean_figure(means[2], means[3], total),
    }
    if binary:
        figures |= {name: _one(rate, 1) for name, rate in rates.items()}
        figures |= {name: _one(area, 0) for name, area in areas.items()}
    else:
        for name, each in (rates | areas).items():
            # Rows of the confusion matrix hold different records, and so do its columns.
            independent = name in {"sensitivity", "precision"}
            figures[name] = _macro(each, present, total, independent=independent)
    return {name: figures[name] for name in _CLASS_METRICS}


def _accuracy(confusion: Cells) -> Figure:
    total = int(confusion.sum())
    if total == 0:
        return Figure(None, None, None, 0)
    from sklearn.metrics import accuracy_score

    truth, decided = np.divmod(np.arange(confusion.size), len(confusion))
    share = float(accuracy_score(truth, decided, sample_weight=confusion.ravel()))
    return Figure(share, *proportion_limits(share, total), total)


def _rates(confusion: Cells) -> dict[str, Classwise]:
    """Return precision, sensitivity, specificity and F1 of every class against the rest."""
    size, total = len(confusion), int(confusion.sum())
    if total == 0:
        empty = np.full(size, np.nan)
        nothing = Classwise(empty, empty, empty, np.zeros(size, dtype=np.int64))
        return dict.fromkeys(("precision", "sensitivity", "specificity", "f1"), nothing)
    from sklearn.metrics import precision_recall_fscore_support

    truth, decided = np.divmod(np.arange(size * size), size)
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth,
        decided,
        labels=range(size),
        sample_weight=confusion.ravel().astype(np.float64),
        zero_division=np.nan,
    )
    hits, has, said = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    others, spared = total - has, total - has - said + hits
    specificity = np.divide(spared, others, out=np.full(size, np.nan), where=others > 0)
    return {
        "precision": _classwise(precision, said, proportion_limits),
        "sensitivity": _classwise(recall, has, proportion_limits),
        "specificity": _classwise(specificity, others, proportion_limits),
        "f1": _classwise(f1, has + said - hits, f1_limits),
    }


def _areas(rankings: Sequence[Ranking]) -> dict[str, Classwise]:
    """Return the areas under the ROC and the precision-recall curve of every ranking."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    auc, pr_auc = np.full((3, len(rankings)), np.nan), np.full((3, len(rankings)), np.nan)
    counts = np.zeros(len(rankings), dtype=np.int64)
    for k, (positive, scores, weights) in enumerate(rankings):
        total, own = round(weights.sum()), round(weights[positive].sum())
        counts[k] = total
        if 0 < own < total:
            area = float(roc_auc_score(positive, scores, sample_weight=weights))
            auc[:, k] = area, *auc_limits(area, total - own, own)
            area = float(average_precision_score(positive, scores, sample_weight=weights))
            # Boyd, Eng and Page 2013: binomial limits with the number of positives as trials.
            pr_auc[:, k] = area, *proportion_limits(area, own)
    return {
        name: Classwise(values=area[0], lows=area[1], highs=area[2], counts=counts)
        for name, area in (("auc", auc), ("pr_auc", pr_auc))
    }


def _classwise(
    values: Numbers, counts: Cells, limits: Callable[[float, float], Limits]
) -> Classwise:
    pairs = [
        limits(float(value), float(count)) if count else (np.nan, np.nan)
        for value, count in zip(values, counts, strict=True)
    ]
    lows, highs = np.array(pairs, dtype=np.float64).T
    return Classwise(values, lows, highs, counts)


def _one(each: Classwise, k: int) -> Figure:
    n = int(each.counts[k])
    if np.isnan(each.values[k]):
        return Figure(None, None, None, n)
    return Figure(float(each.values[k]), float(each.lows[k]), float(each.highs[k]), n)


def _macro(
    each: Classwise, present: npt.NDArray[np.bool_], total: int, *, independent: bool
) -> Figure:
    """Average over the classes with records that have a value, when there are two or more."""
    chosen = present & ~np.isnan(each.values)
    if present.sum() < 2 or not chosen.any():
        return Figure(None, None, None, total)
    values, lows, highs = each.values[chosen], each.lows[chosen], each.highs[chosen]
    limits = (
        independent_mean_limits(values, lows, highs)
        if independent
        else dependent_mean_limits(lows, highs)
    )
    return Figure(float(values.mean()), *limits, total)


def _mean_figure(
    mean: np.float64, mean_square: np.float64, count: int, ceiling: float = np.inf
) -> Figure:
    if count == 0:
        return Figure(None, None, None, 0)
    value = float(mean)
    return Figure(value, *mean_limits(value, float(mean_square), count, ceiling), count)


def number_figures(means: Numbers, count: int) -> dict[str, Figure]:
    """Return MAE, RMSE and the mean squared error from the means of e, e^2 and e^4."""
    error, square, fourth = means
    loss = _mean_figure(square, fourth, count)
    roots = [None if x is None else float(np.sqrt(x)) for x in (loss.value, loss.low, loss.high)]
    return {
        "mae": _mean_figure(error, square, count),
        "rmse": Figure(roots[0], roots[1], roots[2], count),
        "loss": loss,
    }
