"""The cells of an evaluation under privacy, and metrics with intervals from their noisy sums.

It adds no noise (privacy.cell_noise does). Cells are few, since each carries noise of its own, and
a unit counts once in them, however many rows a patient has. In order:

    binary      no (B), yes (B)      scores for "yes" of the units of each class, in bins
    multiclass  confusion (K, K)     true class by decided class
                own (B)              scores for the true class, in bins
    regression  units, e, e^2        of errors in widths of the target's public range, at most 1

The bins are equal in log-odds, not in probability: confident networks put most scores near 0 and
1. Loss and Brier score are read from the bins' middles.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from privacy.cell_noise import CellNoise
from privacy.stream import Stream
from shared_models.cells import (
    Cells,
    Kind,
    Numbers,
    Predictions,
    Range,
    Targets,
    class_scores,
    decisions,
    number_errors,
)
from shared_models.metrics import Figure, binned, class_figures, number_figures

# Inner edges of the score bins, symmetric about one half, so that decisions are exact.
_ODDS = (-4.0, -2.5, -1.5, -0.75, 0.0, 0.75, 1.5, 2.5, 4.0)
EDGES: Numbers = 1 / (1 + np.exp(-np.array(_ODDS)))
BINS = len(_ODDS) + 1
_MIDDLES: Numbers = 1 / (  # of the bins in log-odds; the outer two reach as far as the next ones
    1 + np.exp(-np.convolve([-5.5, *_ODDS, 5.5], [0.5, 0.5], mode="valid"))
)
_DRAWS = 30  # of the noise again, to see how far it moves a metric: its deviation within 13 %
_Z = 1.959964  # 95 %


def noised_cell_names(kind: Kind, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the name of every cell, in order; it is the lane list of a noised evaluation."""
    bins = range(BINS)
    if kind == "regression":
        return ("units", "error", "squared error")
    if kind == "binary":
        return tuple(f"{name} score {b}" for name in classes for b in bins)
    confusion = [f"{true} as {decided}" for true in classes for decided in classes]
    return (*confusion, *(f"own score {b}" for b in bins))


def cell_sensitivity(kind: Kind) -> float:
    """Return D2, the largest L2 norm of one unit's cells in counts.

    One count in one cell; a count in each of two groups of cells; (1, e, e^2) with e <= 1.
    """
    return {"binary": 1.0, "multiclass": math.sqrt(2), "regression": math.sqrt(3)}[kind]


def count_noised_cells(
    kind: Kind,
    classes: Sequence[str],
    targets: Targets,
    predictions: Predictions,
    units: npt.NDArray[np.int64] | None,
    step: int,
    *,
    bounds: Range = (0.0, 1.0),
) -> Cells:
    """Count the held-out units of one site, before noise.

    Args:
        kind: what the target asks for.
        classes: names in the order of the outputs; empty for numbers.
        targets: (N,) class numbers, or numbers in the target's unit; N may be 0.
        predictions: (N, K) probabilities, or (N,) numbers.
        units: (N,) patient of each row where the unit is the patient, else None.
        step: steps of one count; each of a patient's r rows counts floor(step / r) steps.
        bounds: public (low, high) of a number target.

    Returns:
        (L,) int64 in steps. Adding or removing one unit moves them by an integer vector of norm at
        most cell_sensitivity(kind) x step: a sum of r rows of norm D2 floor(step / r) at most.

    Edge case: a prediction that is not finite counts nowhere, in silence: a refusal would tell that
        its record is there.
    """
    weights = unit_weights(units, len(targets), step)
    sound = _sound(predictions)
    targets, predictions, weights = targets[sound], predictions[sound], weights[sound]
    if kind == "regression":
        errors = np.minimum(number_errors(targets, predictions) / (bounds[1] - bounds[0]), 1.0)
        parts = np.stack((np.ones(len(errors)), errors, errors**2), axis=1)
        # Toward zero, so that a unit's norm does not grow.
        sums: Cells = np.floor(parts * weights[:, None]).astype(np.int64).sum(axis=0)
        return sums
    truth, scores = class_scores(classes, targets, predictions)
    size = len(classes)
    if kind == "binary":
        return _counts(truth * BINS + _bin(scores[:, 1]), weights, 2 * BINS)
    confusion = _counts(truth * size + decisions(scores), weights, size * size)
    own = _counts(_bin(scores[np.arange(len(truth)), truth]), weights, BINS)
    return np.concatenate((confusion, own))


def metrics_from_noised_cells(
    kind: Kind,
    classes: Sequence[str],
    cells: Cells,
    noise: CellNoise,
    shares: int,
    *,
    bounds: Range = (0.0, 1.0),
) -> dict[str, Figure]:
    """Return the metrics of a noisy sum, with 95 % intervals of sampling and noise together.

    Args:
        kind: what the target asks for.
        classes: names in the order of the outputs; empty for numbers.
        cells: (L,) the opened sum, in steps.
        noise: of each share.
        shares: sites in the sum: each added one.
        bounds: public (low, high) of a number target.

    Returns:
        METRICS[kind]; what few cells cannot tell (the areas of many classes) has no value. It is
        post-processing of a noisy sum: nothing more is spent.

    Classes: counts below 0 and what the noise adds to a rate move figures, so the noise is drawn
    again, _DRAWS times, on the counts that the sum stands for: the mean of the figures tells the
    bias, which is taken off, and their deviation is added to the limits that the counts alone
    would have (the parametric bootstrap: Efron and Tibshirani 1993, sections 6.5 and 10.6).
    Numbers: by the delta method.
    """
    if kind == "regression":
        counts, deviation = cells / noise.step, noise.deviation(shares)
        return _number_metrics(counts, deviation, bounds[1] - bounds[0])
    return redrawn(
        cells,
        noise,
        shares,
        lambda noisy: _projected(kind, classes, noisy),
        lambda whole: _class_metrics(kind, classes, whole),
    )


def redrawn(
    cells: Cells,
    noise: CellNoise,
    shares: int,
    project: Callable[[Numbers], Cells],
    metrics: Callable[[Cells], dict[str, Figure]],
) -> dict[str, Figure]:
    """Return the metrics of a noisy sum, without the noise's bias and with its deviation.

    Args:
        cells: (L,) the opened sum, in steps.
        noise: of each share.
        shares: sites in the sum: each added one.
        project: makes whole counts >= 0 of noisy ones.
        metrics: of whole counts, with the limits of counts without noise.
    """
    deviation = noise.deviation(shares)
    whole = project(cells / noise.step)
    figures = metrics(whole)
    stream = Stream(hashlib.sha256(cells.astype("<i8").tobytes()).digest())  # public: no secret
    from privacy.noise import gaussian  # torch comes with it, and lanes are asked by every program

    drawn = (whole + deviation * gaussian(len(whole), stream) for _ in range(_DRAWS))
    again = [metrics(project(one)) for one in drawn]
    return {
        name: _corrected(figure, [other[name].value for other in again])
        for name, figure in figures.items()
    }


def _projected(kind: Kind, classes: Sequence[str], counts: Numbers) -> Cells:
    """Return whole counts >= 0, each group of cells with the total that it had."""
    if kind == "binary":
        return whole_counts(counts)
    edge = len(classes) ** 2
    return np.concatenate((whole_counts(counts[:edge]), whole_counts(counts[edge:])))


def _class_metrics(kind: Kind, classes: Sequence[str], counts: Cells) -> dict[str, Figure]:
    """Return the metrics of counts, with the limits of counts without noise."""
    size = len(classes)
    if kind == "binary":
        scores = counts.reshape(2, BINS)
        confusion = scores.reshape(2, 2, BINS // 2).sum(axis=2)  # (2, B) -> (2, 2)
        own = scores[1] + scores[0, ::-1]  # the bins are symmetric: scores for the true class
        return class_figures(confusion, [binned(scores)], _moments(own, binary=True))
    confusion = counts[: size * size].reshape(size, size)
    moments = _moments(counts[size * size :], binary=False)
    return class_figures(confusion, [_UNKNOWN] * size, moments)


def _number_metrics(counts: Numbers, deviation: float, width: float) -> dict[str, Figure]:
    """Return MAE, RMSE and mean squared error of noisy (units, e, e^2), e in widths of the range.

    Without e^4 the deviation of e^2 is the largest that its mean allows.
    """
    units = max(round(float(counts[0])), 0)
    if not units:
        return number_figures(np.zeros(3), 0)
    error, square = counts[1:] / units
    plain = number_figures(np.clip([error, square, square], 0.0, 1.0), units)
    # Var(A / U) = Var(A) (1 + (A / U)^2) / U^2, to first order, with the same noise on both.
    noises = [deviation * math.hypot(1.0, ratio) / units for ratio in (error, square)]
    mae = widened(plain["mae"], _Z * noises[0], 1.0)
    loss = widened(plain["loss"], _Z * noises[1], 1.0)
    roots = [None if x is None else math.sqrt(x) * width for x in (loss.value, loss.low, loss.high)]
    return {
        "mae": _scaled(mae, width),
        "rmse": Figure(roots[0], roots[1], roots[2], units),
        "loss": _scaled(loss, width**2),
    }


def _scaled(figure: Figure, factor: float) -> Figure:
    value, low, high = (
        None if x is None else x * factor for x in (figure.value, figure.low, figure.high)
    )
    return Figure(value, low, high, figure.n)


_UNKNOWN = (np.zeros(0, dtype=np.bool_), np.zeros(0), np.zeros(0))  # a ranking without records


def _moments(own: Cells, *, binary: bool) -> Numbers:
    """Return the means of Brier score, its square, loss, its square from scores of true classes."""
    if not own.sum():
        return np.zeros(4)
    brier, loss = (1 - _MIDDLES) ** 2, -np.log(_MIDDLES)
    if not binary:
        brier = brier * 2  # the other classes' part is at most as large, and is not told
    parts = np.stack((brier, brier**2, loss, loss**2), axis=1)  # (B, 4)
    means: Numbers = own @ parts / own.sum()  # (B,) x (B, 4) -> (4,)
    return means


def _corrected(figure: Figure, others: Sequence[float | None]) -> Figure:
    """Return a figure without the noise's bias, whose limits also bear the noise's deviation."""
    moved = [value for value in others if value is not None]
    if figure.value is None or len(moved) < 2:
        return replace(figure, low=None, high=None)
    ceiling = 1.0 if figure.value <= 1 else math.inf  # losses may be larger
    bias = float(np.mean(moved)) - figure.value
    right = min(max(figure.value - bias, 0.0), ceiling)
    shift = right - figure.value
    low, high = figure.low, figure.high
    shifted = Figure(
        right,
        None if low is None else low + shift,
        None if high is None else high + shift,
        figure.n,
    )
    return widened(shifted, _Z * float(np.std(moved, ddof=1)), ceiling)


def widened(figure: Figure, noise: float, ceiling: float) -> Figure:
    """Return a figure whose limits, within 0 and ``ceiling``, also bear a reach of noise."""
    if figure.value is None:
        return figure
    low = figure.value if figure.low is None else figure.low
    high = figure.value if figure.high is None else figure.high
    return replace(
        figure,
        low=max(0.0, figure.value - math.hypot(figure.value - low, noise)),
        high=min(ceiling, figure.value + math.hypot(high - figure.value, noise)),
    )


def whole_counts(noisy: Numbers) -> Cells:
    """Return the nearest counts >= 0 with the same total, rounded: projection onto the simplex.

    Source: Duchi et al. 2008, doi:10.1145/1390156.1390191, figure 1. Cutting negative counts off
    would add what it cuts to the total.
    """
    total = float(noisy.sum())
    if not total > 0:
        return np.zeros(len(noisy), dtype=np.int64)
    falling = np.sort(noisy)[::-1]
    over = (np.cumsum(falling) - total) / np.arange(1, len(noisy) + 1)
    last = int(np.flatnonzero(falling > over)[-1])
    whole: Cells = np.rint(np.maximum(noisy - over[last], 0.0)).astype(np.int64)
    return whole


def unit_weights(units: npt.NDArray[np.int64] | None, rows: int, step: int) -> Cells:
    """Return the (N,) steps that each row counts: a unit's add up to ``step`` at most."""
    if units is None:
        return np.full(rows, step, dtype=np.int64)
    _, place, sizes = np.unique(units, return_inverse=True, return_counts=True)
    weights: Cells = (step // sizes)[place]
    return weights


def _sound(predictions: Predictions) -> npt.NDArray[np.bool_]:
    finite: npt.NDArray[np.bool_] = np.isfinite(predictions)
    return finite if finite.ndim == 1 else np.asarray(finite.all(axis=1))


def _bin(scores: Numbers) -> npt.NDArray[np.int64]:
    return np.searchsorted(EDGES, scores, side="right")


def _counts(place: npt.NDArray[np.int64], weights: Cells, length: int) -> Cells:
    counts = np.zeros(length, dtype=np.int64)
    np.add.at(counts, place, weights)
    return counts
