"""What the report draws of the final model, as JSON: ROC, calibration, confusion matrix, errors.

It draws nothing, and keeps no record by itself: everything here is a count or a rate over records.
It reads pooled predictions, which only a simulation may have.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from sklearn.metrics import auc, confusion_matrix, roc_curve

from shared_models.cells import (
    Kind,
    Numbers,
    Predictions,
    Range,
    Targets,
    class_scores,
    decisions,
    number_errors,
)
from shared_models.intervals import proportion_limits

Json = float | int | str | Sequence["Json"] | Mapping[str, "Json"] | None

ROC_POINTS_MAX = 150  # a curve of this many points is smooth on paper; 8 classes stay below 20 kB
CALIBRATION_BINS = 10
ERROR_BINS = 30
GRID_BINS = 24


def curves(
    kind: Kind,
    classes: Sequence[str],
    targets: Targets,
    predictions: Predictions,
    *,
    bounds: Range = (0.0, 1.0),
) -> dict[str, Json]:
    """Return what the report draws of one set of held-out predictions.

    Args:
        kind: what the target asks for.
        classes: names in the order of the outputs; empty for numbers.
        targets: (N,) class numbers, or numbers in the target's unit.
        predictions: (N, K) probabilities (two columns for two classes), or (N,) numbers.
        bounds: public (low, high) of a number target; unused for classes.

    Returns:
        kind and classes; for classes roc (a list of {class, fpr, tpr, auc}), calibration (a list of
        {score, rate, low, high, n}; for many classes of the decided class) and confusion (K, K);
        for numbers errors {edges, counts} and grid {edges, counts}, true by predicted.

    Raises:
        DataError: a prediction is not finite.
        ValueError: shapes, class numbers or probabilities are not what ``kind`` asks for.
    """
    shape: dict[str, Json] = {"kind": kind, "classes": list(classes)}
    if kind == "regression":
        return shape | _number_curves(targets, predictions, bounds)
    truth, scores = class_scores(classes, targets, predictions)
    judged = [1] if kind == "binary" else range(len(classes))
    decided = decisions(scores)
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    if len(truth):
        matrix = confusion_matrix(truth, decided, labels=range(len(classes)))
    if kind == "binary":
        calibration = _calibration(scores[:, 1], truth == 1)
    else:
        calibration = _calibration(scores[np.arange(len(truth)), decided], decided == truth)
    rocs: list[Json] = [
        roc(classes[k], truth == k, scores[:, k])
        for k in judged
        if 0 < (truth == k).sum() < len(truth)
    ]
    return shape | {"roc": rocs, "calibration": calibration, "confusion": matrix.tolist()}


def roc(name: str, positive: npt.NDArray[np.bool_], scores: Numbers) -> dict[str, Json]:
    """Return {class, fpr, tpr, auc} of (N,) scores, of both kinds some, in 150 points at most."""
    fpr, tpr, _ = roc_curve(positive, scores)
    area = float(auc(fpr, tpr))
    if len(fpr) > ROC_POINTS_MAX:
        # Points evenly spread along the curve, both ends among them.
        along = np.cumsum(np.hypot(np.diff(fpr, prepend=0), np.diff(tpr, prepend=0)))
        wanted = np.linspace(0, along[-1], ROC_POINTS_MAX)
        kept = np.unique(np.clip(np.searchsorted(along, wanted), 0, len(fpr) - 1))
        kept = np.union1d(kept, [0, len(fpr) - 1])
        fpr, tpr = fpr[kept], tpr[kept]
    return {"class": name, "fpr": _short(fpr), "tpr": _short(tpr), "auc": round(area, 6)}


def _calibration(scores: Numbers, happened: npt.NDArray[np.bool_]) -> list[Json]:
    """Return mean score and observed rate, with Wilson's limits, of ten equal bins of scores."""
    place = np.minimum((scores * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins: list[Json] = []
    for k in range(CALIBRATION_BINS):
        inside = place == k
        count = int(inside.sum())
        if count:
            rate = float(happened[inside].mean())
            low, high = proportion_limits(rate, count)
            row = {"score": float(scores[inside].mean()), "rate": rate}
            if low is not None and high is not None:
                row |= {"low": low, "high": high}
            bins.append({name: round(value, 6) for name, value in row.items()} | {"n": count})
    return bins


def _number_curves(targets: Targets, predictions: Predictions, bounds: Range) -> dict[str, Json]:
    number_errors(targets, predictions)  # checks shapes and finite values
    low, high = bounds
    truth = np.asarray(targets, dtype=np.float64)
    guesses = np.clip(np.asarray(predictions, dtype=np.float64), low, high)
    reach = float(np.abs(guesses - truth).max()) if len(truth) else high - low
    edges = np.linspace(-reach, reach, ERROR_BINS + 1) if reach > 0 else np.array([-1.0, 1.0])
    counts, _ = np.histogram(guesses - truth, bins=edges)
    grid_edges = np.linspace(low, high, GRID_BINS + 1)
    grid, _, _ = np.histogram2d(truth, guesses, bins=(grid_edges, grid_edges))
    return {
        "errors": {"edges": _short(edges), "counts": counts.tolist()},
        "grid": {"edges": _short(grid_edges), "counts": grid.astype(int).tolist()},
    }


def _short(values: Numbers) -> list[Json]:
    return [round(float(value), 6) for value in values]
