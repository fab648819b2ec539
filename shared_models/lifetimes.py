"""Times until an event, some of them cut short: Harrell's c, Kaplan-Meier, life tables.

Records carry weights, so that a histogram is read as the records that it counted. It knows no
network and no study. Censored: the record was last seen, without the event, at its time.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared_models.intervals import UNDEFINED, Limits, proportion_limits

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

PAIRS_AT_ONCE = 1 << 22
_Z = 1.959963984540054  # the normal quantile of .975


@dataclass(frozen=True)
class Concordance:
    """Harrell's c: of the pairs whose order is known, the share whose risks have that order.

    Attributes:
        value: equal risks count one half; None without a pair.
        low, high: 95 % limits; None without a pair.
        pairs: pairs whose order is known.
    """

    value: float | None
    low: float | None
    high: float | None
    pairs: float


@dataclass(frozen=True)
class Curve:
    """The share without the event after each of some times, as a step function.

    Attributes:
        times: (M,) rising.
        shares: (M,) from that time on.
        spreads: (M,) Greenwood's sum: the variance of log(share); inf where the share is 0.
        seen: (M,) weight of the records that were seen until there.
    """

    times: Numbers
    shares: Numbers
    spreads: Numbers
    seen: Numbers

    def at(self, time: float) -> tuple[float, float] | None:
        """Return the share at a time and its standard error; None where nobody was seen so long."""
        after, upto = (int(np.searchsorted(self.times, time, side)) for side in ("left", "right"))
        share = float(self.shares[upto - 1]) if upto else 1.0
        if share > 0 and (after == len(self.times) or not self.seen[after] > 0):
            return None
        return share, share * math.sqrt(self.spreads[upto - 1]) if upto and share > 0 else 0.0


def concordance(times: Numbers, events: Flags, risks: Numbers, weights: Numbers) -> Concordance:
    """Return Harrell's c of (N,) records.

    A pair's order is known when the earlier one had the event; at equal times, when one had it and
    the other was cut short. Two events at one time have no order.

    Args:
        times: (N,).
        events: (N,) True where the event happened at that time.
        risks: (N,) any scale; larger means earlier.
        weights: (N,) how many records each stands for.

    The variance is the sum of the squared influences of the single records (the infinitesimal
    jackknife), on the scale of log-odds so that limits stay within 0 and 1. Sources: Harrell et al.
    1982, JAMA 247:2543; Pencina and D'Agostino 2004, Statistics in Medicine 23:2109, section 3.
    """
    won, pairs = np.zeros(len(times)), np.zeros(len(times))  # of each record, over its pairs
    first = np.flatnonzero(events)
    for start in range(0, len(first), step := max(1, PAIRS_AT_ONCE // max(1, len(times)))):
        rows = first[start : start + step]
        time, risk = times[rows, None], risks[rows, None]  # (R, 1)
        known = (times > time) | ((times == time) & ~events)  # (R, N)
        right = known * (0.5 * (risk == risks) + (risk > risks))  # (R, N)
        won[rows] += right @ weights
        pairs[rows] += known @ weights
        won += weights[rows] @ right
        pairs += weights[rows] @ known
    total = float(weights @ pairs) / 2
    if not total > 0:
        return Concordance(None, None, None, 0.0)
    value = min(max(float(weights @ won) / 2 / total, 0.0), 1.0)
    variance = float(weights @ ((won - value * pairs) / total) ** 2)
    return Concordance(value, *_limits(value, variance, float(weights @ events)), total)


def _limits(value: float, variance: float, events: float) -> Limits:
    odds = value * (1 - value)
    if not variance > 0 or not odds > 0:  # too few records to differ: as so many plain trials
        return proportion_limits(value, events)
    centre, reach = math.log(value / (1 - value)), _Z * math.sqrt(variance) / odds
    return _logistic(centre - reach), _logistic(centre + reach)


def _logistic(odds: float) -> float:
    return 0.5 * (1 + math.tanh(odds / 2))


def kaplan_meier(times: Numbers, events: Flags) -> Curve:
    """Return the product-limit estimate of (N,) records, with a step at each time that occurs.

    Sources: Kaplan and Meier 1958, JASA 53:457; Greenwood 1926 for the variance.
    """
    steps, place = np.unique(times, return_inverse=True)
    happened = np.bincount(place[events], minlength=len(steps)).astype(np.float64)
    ended = np.bincount(place, minlength=len(steps)).astype(np.float64)
    seen = (len(times) - np.cumsum(ended) + ended).astype(np.float64)  # just before each step
    return _curve(steps, happened, seen, seen)


def life_table(ends: Numbers, happened: Numbers, cut: Numbers, later: float) -> Curve:
    """Return the actuarial estimate of records counted by interval.

    Those cut short within an interval count as seen for half of it: Cutler and Ederer 1958.

    Args:
        ends: (J,) upper ends of the intervals, rising.
        happened: (J,) events within each.
        cut: (J,) censored within each.
        later: records that were seen beyond the last interval.
    """
    ended = happened + cut
    seen = later + np.cumsum(ended[::-1])[::-1]  # at the beginning of each interval
    return _curve(ends, happened, seen - cut / 2, seen)


def _curve(times: Numbers, happened: Numbers, at_risk: Numbers, seen: Numbers) -> Curve:
    some = happened > 0
    rates = np.divide(happened, at_risk, out=np.zeros(len(times)), where=some)
    with np.errstate(divide="ignore"):
        parts = np.divide(rates, at_risk - happened, out=np.zeros(len(times)), where=some)
    return Curve(times, np.cumprod(1 - np.minimum(rates, 1.0)), np.cumsum(parts), seen)


def share_limits(share: float, error: float, count: float) -> Limits:
    """Return 95 % limits of a share from its standard error, within 0 and 1.

    Without an error, since nothing or everything happened to the ``count`` records: Wilson's.
    """
    if not math.isfinite(error):
        return UNDEFINED
    if error == 0:
        return proportion_limits(share, count)
    return max(0.0, share - _Z * error), min(1.0, share + _Z * error)
