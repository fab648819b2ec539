"""What mechanisms cost: privacy loss distributions and Renyi divergences of histories, cached.

It knows no events and no ledger. A history says how often each kind of step was taken; whoever
wants an epsilon asks ``privacy.accounting``. It is the only file that imports dp-accounting, and
only when something is computed, since the import takes half a second. Composition is the library's;
the larger of two costs and the Renyi divergence of a group are here.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from dp_accounting.pld.pld_pmf import PLDPmf
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Floats = npt.NDArray[np.float64]

_BASES = 64  # distributions of single steps kept, 2 to 6 MB each
_TAILS = 14.0  # standard deviations that an integral goes beyond the outermost mean
_POINTS = 4.0  # of an integral a standard deviation: trapezoids under smooth tails are exact
_GROUP_ORDER = 64  # above it a group's divergence is left out, which can only raise the bound


class Kind(NamedTuple):
    """One Poisson-sampled Gaussian step, as one unit meets it.

    Attributes:
        rate: probability that a row of the unit is in the batch; 0 < q <= 1.
        noise: standard deviation of the noise in units of the clipping norm of one row; > 0.
        rows: most rows of the unit, each sampled and clipped by itself.
    """

    rate: float
    noise: float
    rows: int = 1


History = tuple[tuple[Kind, int], ...]  # how many steps of each kind, sorted by kind


class Either(NamedTuple):
    """Studies in which a unit pays for one of two histories: trained on, or held out."""

    train: History
    evaluate: History
    studies: int


class Paid(NamedTuple):
    """What one unit pays: everything in ``always``, and of each study in ``either`` one side."""

    always: History
    either: tuple[Either, ...] = ()


def gaussian(history: History) -> tuple[float, History]:
    """Split off the full-batch steps: their joint precision 1/sigma^2, and the sampled steps.

    T Gaussians of sigma are one of sigma / sqrt(T), exactly (Dong et al. 2019, arXiv:1905.02383,
    corollary 3.3), and k rows that are always there shift the sum by k clipping norms at most.
    """
    precision = sum(n * (kind.rows / kind.noise) ** 2 for kind, n in history if kind.rate == 1)
    return precision, tuple(item for item in history if item[0].rate < 1)


def pld_epsilon(paid: Paid, delta: float, interval: float) -> float:
    """Return the pessimistic PLD epsilon on a grid of ``interval`` (any grid is an upper bound).

    Source: Koskela et al. 2020, arXiv:1906.03049; Doroshenko et al. 2022, arXiv:2207.04380.
    """
    whole = _compose(paid.always, interval)
    for either in paid.either:
        one = _larger(
            _compose(either.train, interval), _compose(either.evaluate, interval), interval
        )
        whole = whole.compose(one.self_compose(either.studies))
    return float(whole.get_epsilon_for_delta(delta))


def rdp_epsilon(paid: Paid, delta: float) -> float:
    """Return the RDP epsilon over dp-accounting's default orders; infinite when no order is finite.

    Of a study in ``either`` each order takes the larger divergence of the two sides: an upper bound
    for whoever is on one of them. Source: Mironov et al. 2019, arXiv:1908.10530.
    """
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    total = _divergence(paid.always)
    for either in paid.either:
        larger = np.maximum(_divergence(either.train), _divergence(either.evaluate))
        total = total + either.studies * larger
    with _quiet():
        return float(compute_epsilon(_orders(), total, delta)[0])


def _compose(history: History, interval: float) -> "PrivacyLossDistribution":
    """Return the privacy loss distribution of a whole history."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    precision, sampled = gaussian(history)
    parts = [_step(kind, interval).self_compose(count) for kind, count in sampled]
    if precision > 0:
        deviation = 1 / math.sqrt(precision)
        parts.append(pld.from_gaussian_mechanism(deviation, value_discretization_interval=interval))
    return reduce(lambda one, other: one.compose(other), parts, pld.identity(interval))


@lru_cache(maxsize=_BASES)
def _step(kind: Kind, interval: float) -> "PrivacyLossDistribution":
    """Return the privacy loss distribution of one sampled step under add-or-remove-one.

    With several rows a unit the sum moves by at most as many clipping norms as rows were drawn, a
    binomial number: a mixture of Gaussians, which dominates every way to be drawn, and every unit
    with fewer rows. Source: Ganesh 2024, arXiv:2401.10294 (Poisson sampling); Choquette-Choo et al.
    2024, arXiv:2310.15526, section 4 (vectors are dominated by their norms).
    """
    from dp_accounting.pld import privacy_loss_distribution as pld

    if kind.rows == 1:
        return pld.from_gaussian_mechanism(
            kind.noise, value_discretization_interval=interval, sampling_prob=kind.rate
        )
    return pld.from_mixture_gaussian_mechanism(
        kind.noise,
        np.arange(kind.rows + 1, dtype=np.float64),
        _drawn(kind),
        value_discretization_interval=interval,
    )


def _larger(
    one: "PrivacyLossDistribution", other: "PrivacyLossDistribution", interval: float
) -> "PrivacyLossDistribution":
    """Return a distribution that dominates both: its curve is the larger delta at every epsilon.

    As a function of e^epsilon, a delta that is convex, non-increasing, 1 at 0 and never below
    1 - e^epsilon is that of some pair of distributions; the larger of two such functions is one.
    Dominating pairs compose to dominating pairs, also when steps are chosen by what came before:
    whoever paid for one side or the other in each of many studies, in any pattern, is bounded by
    the composition of the larger ones. Source: Zhu, Dong and Wang 2022, arXiv:2106.08567, section
    3. Between grid points the curve is connected from above (Doroshenko et al. 2022,
    arXiv:2207.04380, algorithm 1). Adding and removing are kept apart: a unit that is there in one
    study is there in all.
    """
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    return PrivacyLossDistribution(
        _larger_pmf(one._pmf_remove, other._pmf_remove, interval),
        _larger_pmf(one._pmf_add, other._pmf_add, interval),
    )


def _larger_pmf(one: "PLDPmf", other: "PLDPmf", interval: float) -> "PLDPmf":
    from dp_accounting.pld.pld_pmf import create_pmf_pessimistic_connect_dots_fixed_gap

    dense = (one.to_dense_pmf(), other.to_dense_pmf())
    low = min(pmf._lower_loss for pmf in dense)
    high = max(pmf._lower_loss + pmf.size - 1 for pmf in dense)
    curves = [
        _curve(pmf._lower_loss - low, pmf._probs, pmf._infinity_mass, high - low + 1, interval)
        for pmf in dense
    ]
    deltas = np.minimum.accumulate(np.maximum(*curves).clip(0, 1))
    return create_pmf_pessimistic_connect_dots_fixed_gap(interval, low, high, deltas)


def _curve(start: int, probs: Floats, infinite: float, size: int, interval: float) -> Floats:
    """Return (size,) delta at each grid point, of losses ``probs`` from grid point ``start`` on.

    delta_i = P(infinite) + sum over j > i of p_j (1 - e^(epsilon_i - epsilon_j)).
    """
    from scipy.signal import lfilter

    above = np.zeros(size)  # p_j from the last grid point down
    stop = size - start
    above[stop - len(probs) : stop] = probs[::-1]
    shifted = np.concatenate([[0.0], above[:-1]])  # p_{i+1} beside i
    decay = math.exp(-interval)
    mass = np.cumsum(shifted)
    # sum of p_j e^(epsilon_i - epsilon_j) by recursion: no power overflows, no small term is lost
    lower = lfilter([decay], [1.0, -decay], shifted)
    return np.asarray((infinite + mass - lower)[::-1])


def _divergence(history: History) -> Floats:
    """Return the (orders,) Renyi divergences of a whole history."""
    precision, sampled = gaussian(history)
    total = np.asarray(_orders(), dtype=np.float64) * (precision / 2)
    for kind, count in sampled:
        total = total + count * (_rdp_step(kind) if kind.rows == 1 else _rdp_group(kind))
    return total


@lru_cache(maxsize=8 * _BASES)
def _rdp_step(kind: Kind) -> Floats:
    """Return the (orders,) Renyi divergences of one sampled step of one row, by dp-accounting."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(_orders())
    with _quiet():  # an order that fails to converge is left out, which can only raise the bound
        accountant.compose(PoissonSampledDpEvent(kind.rate, GaussianDpEvent(kind.noise)))
    return np.asarray(accountant.rdp)


@lru_cache(maxsize=_BASES)
def _rdp_group(kind: Kind) -> Floats:
    """Return the (orders,) Renyi divergences of one sampled step of several rows, by quadrature.

    Of the mixture of ``_step`` against the plain Gaussian, and the other way round; the larger.
    """
    from scipy.special import logsumexp

    orders = np.asarray(_orders(), dtype=np.float64)
    spacing = min(kind.noise, kind.noise**2) / _POINTS  # the mixture's roots are noise^2 away
    reach = kind.rows * _GROUP_ORDER  # the last bump of p^a q^(1-a)
    x = np.arange(-_TAILS * kind.noise, reach + _TAILS * kind.noise, spacing)
    plain = -0.5 * (x / kind.noise) ** 2 - math.log(kind.noise * math.sqrt(2 * math.pi))
    ratio = np.full_like(x, -np.inf)  # log of the mixture over the plain Gaussian
    with np.errstate(divide="ignore"):  # a weight that is too small for a float is 0
        weights = np.log(_drawn(kind))
    for rows, weight in enumerate(weights):
        np.logaddexp(ratio, weight + rows * (x - rows / 2) / kind.noise**2, out=ratio)
    found = np.full_like(orders, np.inf)
    for place, order in enumerate(orders):
        if order <= _GROUP_ORDER:
            up, down = logsumexp(plain + order * ratio), logsumexp(plain + (1 - order) * ratio)
            found[place] = (max(float(up), float(down)) + math.log(spacing)) / (order - 1)
    return found


def _drawn(kind: Kind) -> Floats:
    """Return the (rows + 1,) probabilities that 0, 1, ... rows of a unit are in the batch."""
    from scipy.stats import binom

    return np.asarray(binom.pmf(np.arange(kind.rows + 1), kind.rows, kind.rate))


def _orders() -> Sequence[float]:
    from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS

    orders: Sequence[float] = DEFAULT_RDP_ORDERS
    return orders


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the warnings of dp-accounting (it logs through absl) for a moment."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
