"""95 % intervals of proportions, areas under curves and means, in closed form: no resampling.

It does not compute the figures themselves. Every function takes what a sum of cells can give, so
that a real run and a simulation print the same intervals. Undefined is (None, None).
"""

import math

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
_Z = 1.959963984540054  # the normal quantile of (1 + LEVEL) / 2

Limits = tuple[float | None, float | None]
Numbers = npt.NDArray[np.float64]
UNDEFINED: Limits = (None, None)


def proportion_limits(share: float, trials: float) -> Limits:
    """Return Wilson's limits of ``share`` of ``trials`` (> 0; need not be a whole number of cases).

    Source: Wilson 1927, the score interval; equal to scipy's binomtest where cases are whole.
    """
    if not trials > 0:
        return UNDEFINED
    weight = _Z**2 / trials
    centre = share + weight / 2
    reach = _Z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    low, high = (centre - reach) / (1 + weight), (centre + reach) / (1 + weight)
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def auc_limits(auc: float, negatives: int, positives: int) -> Limits:
    """Return the limits of one area under the ROC curve, inside [0, 1]; they never collapse.

    Source: Newcombe 2006, Statistics in Medicine 25:559, method 5: Hanley and McNeil's variance
    with both sample sizes replaced by their mean, inverted as a score interval.
    """
    if min(negatives, positives) < 1:
        return UNDEFINED
    from scipy.optimize import brentq

    spread = (negatives + positives) / 2 - 1

    def gap(area: float) -> float:
        inner = 1 + spread * ((1 - area) / (2 - area) + area / (1 + area))
        variance = area * (1 - area) * inner / (negatives * positives)
        return (area - auc) ** 2 - _Z**2 * variance

    # At 0 and 1 the variance is 0, so a root sits on the edge itself: search just inside of it.
    inside = min(max(auc, 1e-12), 1 - 1e-12)
    low = brentq(gap, 0.0, inside) if gap(0.0) > 0 > gap(inside) else auc
    high = brentq(gap, inside, 1.0) if gap(inside) < 0 < gap(1.0) else auc
    return float(low), float(high)


def f1_limits(f1: float, concerned: float) -> Limits:
    """Return the limits of F1, where ``concerned`` = TP + FP + FN.

    F1 = 2J / (1 + J) grows with Jaccard's J = TP / (TP + FP + FN), a plain proportion of the
    records that are not true negatives: Wilson's limits of J are carried over.
    """
    if not concerned > 0:
        return UNDEFINED
    low, high = proportion_limits(f1 / (2 - f1), concerned)
    if low is None or high is None:
        return UNDEFINED
    return 2 * low / (1 + low), 2 * high / (1 + high)


def mean_limits(mean: float, mean_square: float, count: int, ceiling: float = math.inf) -> Limits:
    """Return Student's limits of a mean of values in [0, ceiling], from its first two moments."""
    if count < 2:
        return UNDEFINED
    from scipy.stats import t

    variance = max(0.0, mean_square - mean**2) * count / (count - 1)
    reach = float(t.ppf(0.5 + LEVEL / 2, count - 1)) * math.sqrt(variance / count)
    return max(0.0, mean - reach), min(ceiling, mean + reach)


def independent_mean_limits(values: Numbers, lows: Numbers, highs: Numbers) -> Limits:
    """Return the limits of the mean of independent estimates, from each one's own limits.

    Source: Zou and Donner 2008, Statistics in Medicine 27:1693 (MOVER).
    """
    middle, count = float(values.mean()), len(values)
    below = math.sqrt(float(((values - lows) ** 2).sum())) / count
    above = math.sqrt(float(((highs - values) ** 2).sum())) / count
    return max(0.0, middle - below), min(1.0, middle + above)


def dependent_mean_limits(lows: Numbers, highs: Numbers) -> Limits:
    """Return limits of the mean of estimates that share records: the mean limits, never too narrow.

    The standard deviation of a mean is at most the mean of the standard deviations, with equality
    when the estimates move together.
    """
    return float(lows.mean()), float(highs.mean())
