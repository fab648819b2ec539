"""Figures of a ranking as screening reads it: AUC, enrichment among the first, early recognition.

A ranking is blocks of equal scores, the highest first: (2, M) records without and with the effect.
Within a block every order is as likely, so that a histogram of scores is a ranking too.
"""

import math

import numpy as np
import numpy.typing as npt

from shared_models.intervals import Limits, auc_limits, mean_limits, proportion_limits
from shared_models.metrics import Figure

Blocks = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

ALPHA = 20.0  # of BEDROC: 80 % of the weight is on the first 8 %
FIRST = 0.01


def ranked(positive: npt.NDArray[np.bool_], scores: Numbers) -> Blocks:
    """Return the blocks of (N,) scores."""
    levels, place = np.unique(-scores, return_inverse=True)
    blocks = np.zeros((2, len(levels)), dtype=np.int64)
    np.add.at(blocks, (positive.astype(np.int64), place), 1)
    return blocks


def auc(blocks: Blocks) -> Figure:
    """Return the chance that a record with the effect ranks before one without."""
    others, own = blocks.astype(np.float64)
    below = others.sum() - np.cumsum(others)
    pairs = float(others.sum() * own.sum())
    total = int(blocks.sum())
    if not pairs:
        return Figure(None, None, None, total)
    area = float(own @ (below + others / 2)) / pairs
    return Figure(area, *auc_limits(area, int(others.sum()), int(own.sum())), total)


def enrichment(blocks: Blocks) -> Figure:
    """Return the share of the effect among the first 1 %, over its share among all.

    The first 1 % are rounded up to whole records. Limits are Wilson's of the first ones' share.
    """
    total, count = int(blocks.sum()), int(blocks[1].sum())
    if not 0 < count < total:
        return Figure(None, None, None, total)
    first = math.ceil(FIRST * total)
    sizes = blocks.sum(axis=0)
    before = np.cumsum(sizes) - sizes
    taken = np.clip(first - before, 0, sizes) / np.maximum(sizes, 1)  # (M,) part of each block
    share = float(taken @ blocks[1]) / first
    low, high = proportion_limits(share, first)
    scale = total / count
    return Figure(share * scale, _times(low, scale), _times(high, scale), total)


def bedroc(blocks: Blocks) -> Figure:
    """Return BEDROC: each record with the effect weighs exp(-alpha r / N) at rank r of N.

    It is 1 when all such come first and 0 when they come last. Limits are Student's of the mean
    weight. Source: Truchon and Bayly 2007, J. Chem. Inf. Model. 47:488, equation 36.
    """
    total, count = int(blocks.sum()), int(blocks[1].sum())
    if not 0 < count < total:
        return Figure(None, None, None, total)
    best = float(_weights(np.array([0]), np.array([count]), total, ALPHA)[0])
    worst = float(_weights(np.array([total - count]), np.array([count]), total, ALPHA)[0])
    sizes = blocks.sum(axis=0)
    before = np.cumsum(sizes) - sizes
    mean, square = (
        float(blocks[1] @ _weights(before, sizes, total, alpha)) / count
        for alpha in (ALPHA, 2 * ALPHA)
    )
    limits = mean_limits(mean, square, count, 1.0)
    value, low, high = (
        None if weight is None else min(max((weight - worst) / (best - worst), 0.0), 1.0)
        for weight in (mean, *limits)
    )
    return Figure(value, low, high, total)


def mean_of(figures: list[Figure], total: int) -> Figure:
    """Return the mean of figures that share records, of those that have a value.

    Limits are the means of the limits, never too narrow; of the figures that have both.
    """
    values = [figure.value for figure in figures if figure.value is not None]
    if not values:
        return Figure(None, None, None, total)
    limits: Limits = (None, None)
    lows = [figure.low for figure in figures if figure.value is not None and figure.low is not None]
    highs = [f.high for f in figures if f.value is not None and f.high is not None]
    if len(lows) == len(highs) == len(values):
        limits = float(np.mean(lows)), float(np.mean(highs))
    return Figure(float(np.mean(values)), *limits, total)


def _weights(
    before: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], total: int, alpha: float
) -> Numbers:
    """Return (M,) the mean of exp(-alpha r / N) over the ranks of each block, 0 of none."""
    step = alpha / total
    first = np.exp(-step * (before + 1.0))
    sums = first * np.expm1(-step * sizes) / math.expm1(-step)  # a geometric series
    means: Numbers = sums / np.maximum(sizes, 1)
    return means


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
