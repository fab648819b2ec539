"""What the small terms of ring noise cost in delta, and a Renyi bound beside the library's.

It knows no event and keeps no history: privacy.accounting calls it with what it has merged.
"""

import math
from collections.abc import Callable, Iterable

from privacy.errors import PrivacyError

# Part of delta that is put aside for the small terms before epsilon is computed from the rest; it
# raises epsilon by less than .01 %. Half of delta is tried after it; then nothing is promised.
RESERVED = 1e-3
_ORDERS = (*range(2, 65), 128, 256, 512, 1024)
_EXPONENT_MAX = 700.0

# (sampling rate, noise multiplier, steps), as privacy.accounting merges them
History = Iterable[tuple[float, float, int]]


def with_slack(
    cost: Callable[[float], tuple[float, float]], delta: float, slack: float
) -> tuple[float, float]:
    """Return (PLD, RDP) epsilon at ``delta`` of releases that are not quite those accounted.

    Args:
        cost: the two epsilons of the accounted mechanisms at a delta.
        delta: of the whole.
        slack: total variation, of all releases together, between what was done and was accounted.

    Returns:
        upper bounds; infinite when the slack leaves nothing of delta.

    Two mechanisms within s of each other in total variation: (epsilon, delta') of the one is
    (epsilon, delta' + (1 + e^epsilon) s) of the other.
    """
    for share in (RESERVED, 0.5):
        pld, rdp = cost(delta * (1 - share))
        if covers(pld, delta * share, slack):
            return pld, rdp
    return math.inf, math.inf


def covers(epsilon: float, reserve: float, slack: float) -> bool:
    """Say whether ``reserve`` of a delta is enough for a slack at this epsilon."""
    return epsilon < _EXPONENT_MAX and (1 + math.exp(epsilon)) * slack <= reserve


def sampled_renyi(rate: float, curve: Callable[[int], float], order: int) -> float:
    """Return the Renyi divergence, of integer order, of Poisson sampling any symmetric noise.

        e_q(a) = 1/(a-1) ln [(1-q)^(a-1) (1 + (a-1) q)
                             + sum over l = 2..a of C(a,l) q^l (1-q)^(a-l) e^((l-1) e(l))]

    Args:
        rate: q, 0 < q <= 1.
        curve: e(l), the noise's own curve without sampling; l / (2 sigma^2) for the discrete
            Gaussian and for the Gaussian.
        order: a >= 2.

    Source: Zhu and Wang 2019, arXiv:1812.00132 (their general bound), without its factor 3: where
    the noise has p(z) = p(-z) and one record shifts it, the direction from mixture to plain is this
    binomial expansion and the other is never larger.
    """
    if not (0 < rate <= 1 and order >= 2):
        raise ValueError(f"expected 0 < rate <= 1 and an order >= 2, got {rate} and {order}")
    if rate == 1:
        return curve(order)
    stay = math.log1p(-rate)
    terms = [(order - 1) * stay + math.log1p((order - 1) * rate)]
    for l in range(2, order + 1):  # noqa: E741 - the source's letter
        chosen = math.lgamma(order + 1) - math.lgamma(l + 1) - math.lgamma(order - l + 1)
        terms.append(chosen + l * math.log(rate) + (order - l) * stay + (l - 1) * curve(l))
    largest = max(terms)
    return (largest + math.log(sum(math.exp(term - largest) for term in terms))) / (order - 1)


def renyi_epsilon(history: History, delta: float) -> float:
    """Return the epsilon of a history of ring sums by `sampled_renyi` over integer orders.

    Source of the conversion: Canonne, Kamath, Steinke 2020, arXiv:2004.00010, proposition 12.
    """
    kinds = [kind for kind in history if kind[2]]
    best = math.inf
    for order in _ORDERS:
        total = 0.0
        for rate, noise, steps in kinds:
            total += steps * sampled_renyi(rate, _gaussian(noise), order)
        tail = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        best = min(best, total + tail)
    return max(best, 0.0)


def _gaussian(noise: float) -> Callable[[int], float]:
    """Return the curve of Gaussian noise, discrete or not: Mironov 2017, arXiv:1702.07476."""
    return lambda order: order / (2 * noise**2)


def check_renyi(history: History, delta: float, epsilon: float) -> None:
    """Refuse an epsilon that lies above the Renyi bound.

    Raises:
        PrivacyError: both are upper bounds and this one is the loose one, so a figure is wrong.
    """
    bound = renyi_epsilon(history, delta)
    if not bound >= epsilon:
        raise PrivacyError(
            f"expected a Renyi bound >= PLD, got {bound} < {epsilon}; nothing is released on such "
            "figures"
        )
