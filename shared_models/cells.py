"""The counts of a held-out set, as integers whose plain sum over sites still gives every metric.

It counts and reads back; metrics and intervals are computed elsewhere, by a library.

A site turns its held-out records into one int64 vector of "cells". Vectors of several sites are
added (under masks, as lanes of the aggregation protocol), and only the sum is read. In order:

    binary      no (B), yes (B)                       scores for "yes" of the records of each class
                Brier, Brier^2, loss, loss^2          fixed point
    multiclass  confusion (K, K)                      true class by predicted class
                for each class: others (B), own (B)   scores for that class, one against the rest
                Brier, Brier^2, loss, loss^2          fixed point
    regression  records
                |e|, e^2, e^4                         fixed point, e in widths of the target's range

Scores fall into B bins, most of them of equal width, the rest equal in log-odds near 0 and 1, where
a confident network has most of its scores; one half is an edge, so that decisions are exact.

Fixed point: classes 2^24, numbers 2^36 a unit, rounded to nearest. One record is saturated at a
loss of 16 (probability 1.1e-7 for its true class) and at an error of the whole public range, so
that no lane of 2^26 records passes 2^63.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from privacy.errors import DataError

Kind = Literal["binary", "multiclass", "regression"]
Cells = npt.NDArray[np.int64]
Targets = npt.NDArray[np.int64] | npt.NDArray[np.float32] | npt.NDArray[np.float64]
Predictions = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Numbers = npt.NDArray[np.float64]
Range = tuple[float, float]

# 16 kB a site for two classes. A class of many gets a quarter: sixteen classes make 8,452 lanes,
# 68 kB. Of 624 films, half of them scored within a thousandth of 1, the AUC is then told to 0.0001
# (bins of equal width alone: 0.022).
BINS: dict[Kind, int] = {"binary": 1024, "multiclass": 256, "regression": 0}
TAIL = 24.0  # log-odds of the outermost edges
LOSS_MAX = 16.0
RECORDS_MAX = 1 << 26
CLASS_SCALE = float(1 << 24)
NUMBER_SCALE = float(1 << 36)
SCORE_SUMS = ("brier", "brier squared", "loss", "loss squared")
ERROR_SUMS = ("absolute error", "squared error", "fourth power of error")


@dataclass(frozen=True)
class Tally:
    """What a vector of cells says, read back.

    Attributes:
        records: how many held-out records.
        confusion: (K, K) true class by predicted class; (0, 0) for numbers.
        scores: (C, 2, B) per class: scores of the others, scores of its own. C = 1 ("yes") for
            two classes, K for more, 0 for numbers.
        sums: as named in SCORE_SUMS or ERROR_SUMS, in their own units.
    """

    records: int
    confusion: Cells
    scores: Cells
    sums: Numbers


def cell_names(kind: Kind, classes: Sequence[str], bins: int | None = None) -> tuple[str, ...]:
    """Return the name of every cell, in order; it is the lane list of an evaluation.

    Args:
        kind: what the target asks for.
        classes: names in the order of the outputs; empty for numbers.
        bins: score bins, even; default BINS[kind].
    """
    _check(kind, classes)
    numbers = range(_bins(kind, bins))
    if kind == "regression":
        return ("records", *ERROR_SUMS)
    if kind == "binary":
        scores = [f"{name} score {b}" for name in classes for b in numbers]
        return (*scores, *SCORE_SUMS)
    confusion = [f"{true} as {decided}" for true in classes for decided in classes]
    scores = [
        f"{owner} {name} score {b}" for name in classes for owner in ("not", "is") for b in numbers
    ]
    return (*confusion, *scores, *SCORE_SUMS)


def bin_edges(bins: int) -> Numbers:
    """Return the (bins - 1,) rising inner edges of the score bins; for even bins .5 is one."""
    tail = bins // 8  # at each end
    middle = bins - 2 * tail  # of equal width
    # The outer two bins of equal width, cut again at equal steps of log-odds.
    odds = np.linspace(-TAIL, -math.log(max(middle - 1, 1)), tail + 1)[:-1]
    low = 1 / (1 + np.exp(-odds))  # (tail,)
    edges: Numbers = np.concatenate((low, np.arange(1, middle) / middle, 1 - low[::-1]))
    return edges


def count_cells(
    kind: Kind,
    classes: Sequence[str],
    targets: Targets,
    predictions: Predictions,
    *,
    bins: int | None = None,
    bounds: Range = (0.0, 1.0),
) -> Cells:
    """Count the held-out records of one site.

    Args:
        kind: what the target asks for.
        classes: names in the order of the outputs; empty for numbers.
        targets: (N,) class numbers, or numbers in the target's unit; N may be 0.
        predictions: (N, K) probabilities (two columns for two classes), or (N,) numbers.
        bins: score bins, even; default BINS[kind].
        bounds: public (low, high) of a number target; unused for classes.

    Returns:
        (L,) cells, L = len(cell_names(kind, classes, bins)). The cells of a union of record sets
        are the sum of their cells.

    Raises:
        DataError: a prediction is not finite.
        ValueError: shapes, class numbers or probabilities are not what ``kind`` asks for.
    """
    _check(kind, classes)
    if len(targets) > RECORDS_MAX:
        raise ValueError(f"expected at most {RECORDS_MAX} records, got {len(targets)}")
    if kind == "regression":
        errors = number_errors(targets, predictions) / _width(bounds)
        return np.concatenate(
            ([len(errors)], _fixed(error_powers(np.minimum(errors, 1.0)), NUMBER_SCALE))
        ).astype(np.int64)
    truth, scores = class_scores(classes, targets, predictions)
    count = _bins(kind, bins)
    sums = _fixed(score_moments(truth, scores), CLASS_SCALE)
    if kind == "binary":
        return np.concatenate((_histogram(scores[:, 1], truth, count).ravel(), sums))
    confusion = _pairs(truth, decisions(scores), len(classes))
    parts = [
        _histogram(scores[:, k], (truth == k).astype(np.int64), count) for k in range(len(classes))
    ]
    return np.concatenate((confusion.ravel(), np.stack(parts).ravel(), sums))


def read_cells(
    kind: Kind,
    classes: Sequence[str],
    cells: Cells,
    *,
    bins: int | None = None,
    bounds: Range = (0.0, 1.0),
) -> Tally:
    """Read a sum of cells back; the arguments are those of the counting.

    Raises:
        ValueError: ``cells`` has another length, or a negative count.
    """
    _check(kind, classes)
    count, size = _bins(kind, bins), len(classes)
    length = {
        "binary": 2 * count + 4,
        "multiclass": size * size + 2 * size * count + 4,
        "regression": 4,
    }[kind]
    if cells.shape != (length,) or cells.dtype != np.int64:
        raise ValueError(f"expected ({length},) int64 cells, got {cells.shape} {cells.dtype}")
    if length and cells.min() < 0:
        raise ValueError("expected counts >= 0 in every cell, got a negative one")
    if kind == "regression":
        width = _width(bounds)
        sums = cells[1:] / NUMBER_SCALE * np.array([width, width**2, width**4])
        return Tally(int(cells[0]), cells[:0].reshape(0, 0), cells[:0].reshape(0, 2, 0), sums)
    sums = cells[-4:] / CLASS_SCALE
    if kind == "binary":
        scores = cells[:-4].reshape(1, 2, count)
        confusion = scores[0].reshape(2, 2, count // 2).sum(axis=2)  # (2, B) -> (2, 2)
    else:
        confusion = cells[: size * size].reshape(size, size)
        scores = cells[size * size : -4].reshape(size, 2, count)
    return Tally(int(confusion.sum()), confusion, scores, sums)


def class_scores(
    classes: Sequence[str], targets: Targets, predictions: Predictions
) -> tuple[npt.NDArray[np.int64], Numbers]:
    """Return targets as (N,) int64 and probabilities as (N, K) float64, checked.

    Raises:
        DataError: a prediction is not finite.
        ValueError: wrong shapes, class numbers or probabilities.
    """
    scores = np.asarray(predictions, dtype=np.float64)
    truth = np.asarray(targets)
    if truth.ndim != 1 or scores.shape != (len(truth), len(classes)):
        raise ValueError(
            f"expected (N,) targets and (N, {len(classes)}) predictions, "
            f"got {truth.shape} and {scores.shape}"
        )
    check_finite(scores)
    whole = truth.astype(np.int64)
    if len(whole) == 0:
        return whole, scores
    if not (np.array_equal(whole, truth) and whole.min() >= 0 and whole.max() < len(classes)):
        raise ValueError(f"expected class numbers 0 to {len(classes) - 1} as targets")
    # Half-precision softmax sums to 1 within 1e-3.
    if not (scores.min() >= 0 and np.abs(scores.sum(axis=1) - 1.0).max() <= 1e-2):
        raise ValueError("expected probabilities that sum to 1, got other predictions")
    return whole, np.minimum(scores, 1.0)


def decisions(scores: Numbers) -> npt.NDArray[np.int64]:
    """Return the (N,) decided classes of (N, K) probabilities: yes from .5 on, or the largest."""
    chosen = scores[:, 1] >= 0.5 if scores.shape[1] == 2 else scores.argmax(axis=1)
    decided: npt.NDArray[np.int64] = chosen.astype(np.int64)
    return decided


def score_moments(truth: npt.NDArray[np.int64], scores: Numbers) -> Numbers:
    """Return (N, 4): Brier score, its square, log loss, its square, of every record.

    The Brier score is (p - y)^2 for two classes, in [0, 1], and the sum of it over the classes for
    more, in [0, 2] (Brier 1950); the loss is in nats, at most LOSS_MAX.
    """
    if scores.shape[1] == 2:
        brier = (scores[:, 1] - truth) ** 2
    else:
        brier = ((scores - np.eye(scores.shape[1])[truth]) ** 2).sum(axis=1)
    chance = scores[np.arange(len(truth)), truth]  # (N,) of the true class
    loss = -np.log(np.maximum(chance, np.exp(-LOSS_MAX)))
    return np.stack((brier, brier**2, loss, loss**2), axis=1)


def number_errors(targets: Targets, predictions: Predictions) -> Numbers:
    """Return the (N,) absolute errors, in the target's unit.

    Raises:
        DataError: a prediction is not finite.
        ValueError: wrong shapes.
    """
    truth = np.asarray(targets, dtype=np.float64)
    guesses = np.asarray(predictions, dtype=np.float64)
    if truth.ndim != 1 or guesses.shape != truth.shape:
        raise ValueError(f"expected (N,) numbers twice, got {truth.shape} and {guesses.shape}")
    check_finite(guesses)
    return np.abs(guesses - truth)


def error_powers(errors: Numbers) -> Numbers:
    """Return (N, 3): e, e^2 and e^4 of (N,) absolute errors."""
    return np.stack((errors, errors**2, errors**4), axis=1)


def _check(kind: Kind, classes: Sequence[str]) -> None:
    fits = {
        "binary": len(classes) == 2,
        "multiclass": len(classes) > 2,
        "regression": len(classes) == 0,
    }[kind]
    if not fits:
        raise ValueError(f"expected a number of classes that is {kind}, got {len(classes)}")


def _bins(kind: Kind, bins: int | None) -> int:
    if kind == "regression":
        return 0
    count = BINS[kind] if bins is None else bins
    if count < 2 or count % 2:
        raise ValueError(f"expected an even number of bins, got {count}")
    return count


def _width(bounds: Range) -> float:
    width = bounds[1] - bounds[0]
    if not width > 0:
        raise ValueError("expected bounds (low, high) with low < high")
    return width


def check_finite(predictions: Numbers) -> None:
    """Refuse predictions, of any shape, that are not finite.

    Raises:
        DataError: one is NaN or infinite.
    """
    if not np.isfinite(predictions).all():
        raise DataError(
            "expected finite predictions of the model, got others; no record was counted",
            "training may have diverged: try a smaller training.learning_rate",
        )


def _fixed(moments: Numbers, scale: float) -> Cells:
    total: Cells = np.rint(moments * scale).astype(np.int64).sum(axis=0)
    return total


def _histogram(scores: Numbers, group: npt.NDArray[np.int64], bins: int) -> Cells:
    """Return (2, bins) counts of the scores of groups 0 and 1."""
    place = np.searchsorted(bin_edges(bins), scores, side="right")
    return np.bincount(group * bins + place, minlength=2 * bins).reshape(2, bins).astype(np.int64)


def _pairs(truth: npt.NDArray[np.int64], decided: npt.NDArray[np.int64], size: int) -> Cells:
    """Return (size, size) counts of true by decided class."""
    counts = np.bincount(truth * size + decided, minlength=size * size)
    return counts.reshape(size, size).astype(np.int64)
