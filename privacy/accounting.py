"""Turn the events of a dataset into what they cost (epsilon), and a target into a noise level.

It keeps no history: the ledger does, as events; epsilon is computed on reading.
The headline is the privacy loss distribution (PLD) of dp-accounting, pessimistic, under adding or
removing one unit; Renyi DP (RDP) stands beside it as the check.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from privacy.errors import PrivacyError
from privacy.ring_accounting import check_renyi, with_slack

if TYPE_CHECKING:
    from dp_accounting import DpEvent

Unit = Literal["record", "patient"]
Adjacency = Literal["add-or-remove-one"]
Text = Annotated[str, Field(min_length=1, max_length=200)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# (sampling rate, noise multiplier, steps) of each kind of event, sorted
History = tuple[tuple[float, float, int], ...]

_INTERVAL = (
    1e-4  # grid of the privacy loss; the q=.0128 reference figure moves .0015 from 1e-3 to it
)
_GRID_LOSS = 20.0  # above this epsilon the grid grows in proportion, else 600 takes 20 s
_REFINEMENTS = 2  # finer grids tried, by 4 each, before RDP < PLD is believed
_MAX_NOISE = 1e6  # a noise multiplier beyond it is a mistake in the study
_CLOSE = 5e-4  # calibration stops within this fraction of the least noise multiplier
_COARSE = 16  # its first search runs on a grid this much coarser: two fine evaluations remain


class Event(BaseModel):
    """One debit: ``steps`` Poisson-sampled Gaussian releases over one dataset.

    ``noise_multiplier`` is the standard deviation of the noise that protects the release, in units
    of ``clipping_norm`` (its L2 sensitivity); ``versions`` names the libraries that did it. In mode
    distributed it is the sigma' of the Gaussian that the ring's noise is as good as, but for a
    total variation of ``slack`` over all steps (`privacy.ring.Ring`), which is paid in delta.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    study: Text  # digest of the study file
    dataset: Text  # the steward's name for a patient population
    unit: Unit
    adjacency: Adjacency = "add-or-remove-one"
    sampler: Literal["poisson"] = "poisson"
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    noise_multiplier: Positive
    clipping_norm: Positive
    steps: Annotated[int, Field(gt=0)]
    denominator: Positive
    mode: Literal["local", "distributed"]
    phase: Literal["train", "evaluate"] = "train"
    slack: Annotated[float, Field(ge=0, lt=1)] = 0.0
    versions: dict[str, str] = Field(default_factory=dict)


class Spent(NamedTuple):
    """What a history costs: (epsilon, delta) for one ``unit``, with the check beside it."""

    epsilon: float
    rdp_epsilon: float
    delta: float
    unit: Unit
    adjacency: Adjacency
    accountant: str


def epsilon(events: Iterable[Event], delta: float) -> Spent:
    """Compose ``events`` and return their cost at ``delta``.

    Args:
        events: any number of debits, all for one unit; the caller has chosen which (a dataset's, a
            study's). None cost nothing.
        delta: probability that the bound does not hold; 0 < delta < 1.

    Returns:
        the upper bound on epsilon, with RDP's.

    Raises:
        ValueError: ``delta`` is not in (0, 1).
        PrivacyError: events of records and of patients are mixed (neither bounds the other), or RDP
            lies below PLD: both are upper bounds and PLD is the tight one, so a figure is wrong.

    Source: Koskela et al. 2020, arXiv:1906.03049, and Doroshenko et al. 2022, arXiv:2207.04380
    (PLD); Mironov et al. 2019, arXiv:1908.10530 (RDP). Equal events are merged first. Ring noise
    is checked by a third bound, which holds for any symmetric noise (`privacy.ring_accounting`).
    """
    if not 0 < delta < 1:
        raise ValueError(f"expected 0 < delta < 1, got {delta}")
    kept = list(events)
    units = sorted({event.unit for event in kept})
    if len(units) > 1:
        raise PrivacyError(
            "expected events of one unit, got records and patients; nothing was added"
        )
    history = _merge(kept)
    if any(event.mode == "distributed" for event in kept):
        slack = math.fsum(event.slack for event in kept)
        pld, rdp = with_slack(lambda rest: _ring_cost(history, rest), delta, slack)
    else:
        pld, rdp = _cost(history, delta)
    unit = kept[0].unit if kept else "record"
    return Spent(pld, rdp, delta, unit, "add-or-remove-one", f"PLD, dp-accounting {_version()}")


def noise_multiplier(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Return the least noise multiplier whose cost is at most ``epsilon``, within 0.05 %.

    Args:
        epsilon: the target; > 0 and finite.
        delta: 0 < delta < 1.
        sampling_rate: 0 < q <= 1.
        steps: how many releases in all; > 0.

    Returns:
        the noise multiplier; the PLD epsilon that ``epsilon()`` gives for it is <= the target.

    Raises:
        ValueError: an argument is out of range.
        PrivacyError: no noise multiplier up to a million is enough.
    """
    if not (0 < epsilon < math.inf and 0 < delta < 1 and 0 < sampling_rate <= 1 and steps > 0):
        raise ValueError(
            "expected epsilon > 0, 0 < delta < 1, 0 < sampling rate <= 1 and steps > 0, "
            f"got {epsilon}, {delta}, {sampling_rate} and {steps}"
        )
    return _calibrate(float(epsilon), float(delta), float(sampling_rate), int(steps))


@lru_cache(maxsize=256)
def _calibrate(target: float, delta: float, rate: float, steps: int) -> float:
    """Search on a coarse grid, below what RDP accepts; then on the grid that is reported."""
    rough = _COARSE * _INTERVAL * max(1.0, target / _GRID_LOSS)

    def coarse(noise: float) -> bool:
        return _pld(((rate, noise, steps),), delta, rough) <= target

    def fine(noise: float) -> bool:
        return _cost(((rate, noise, steps),), delta)[0] <= target

    high = _rdp_bracket(target, delta, rate, steps)
    if coarse(high):
        high = _least(coarse, high, 0.5)
    while not fine(high):
        high *= 1 + _CLOSE
    return _least(fine, high, _CLOSE)


def _least(accepts: Callable[[float], bool], high: float, gap: float) -> float:
    """Return an accepted value within ``_CLOSE`` of the least, given an accepted ``high``."""
    low = high * (1 - gap)
    while accepts(low):
        high, gap = low, min(2 * gap, 0.5)
        low = high * (1 - gap)
    while high * (1 - _CLOSE) > low * (1 + 1e-9):  # the margin ends the loop at equality
        middle = math.sqrt(low * high)
        if accepts(middle):
            high = middle
        else:
            low = middle
    return high


def _rdp_bracket(target: float, delta: float, rate: float, steps: int) -> float:
    """Return a noise multiplier that RDP already accepts; PLD needs no more than that."""
    high = 1.0
    while not _rdp(((rate, high, steps),), delta) <= target:
        high *= 2
        if high > _MAX_NOISE:
            raise PrivacyError(
                f"expected a noise multiplier <= {_MAX_NOISE:g} for epsilon {target} at delta "
                f"{delta}, got none; nothing was trained"
            )
    return high


def _merge(events: Iterable[Event]) -> History:
    """Add the steps of equal mechanisms; full-batch steps become one Gaussian (exact)."""
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        kind = (event.sampling_rate, event.noise_multiplier)
        steps[kind] = steps.get(kind, 0) + event.steps
    return tuple(sorted((rate, noise, count) for (rate, noise), count in steps.items()))


@lru_cache(maxsize=1024)
def _cost(history: History, delta: float) -> tuple[float, float]:
    """Return (PLD epsilon, RDP epsilon), refining the grid while the two disagree."""
    if not history:
        return 0.0, 0.0
    rdp = _rdp(history, delta)
    interval = _INTERVAL * max(1.0, rdp / _GRID_LOSS)
    pld = math.inf
    for _ in range(_REFINEMENTS + 1):
        pld = min(pld, _pld(history, delta, interval))
        if rdp >= pld:
            return pld, rdp
        interval /= 4
    raise PrivacyError(
        f"expected RDP >= PLD, got {rdp} < {pld}; nothing is released on such figures"
    )


def _ring_cost(history: History, delta: float) -> tuple[float, float]:
    """Return `_cost`, refused when it lies above the bound that holds for ring noise itself."""
    pld, rdp = _cost(history, delta)
    check_renyi(history, delta, pld)
    return pld, rdp


def _pld(history: History, delta: float, interval: float) -> float:
    """Return the pessimistic PLD epsilon on a grid of ``interval`` (any grid is an upper bound)."""
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.privacy_accountant import NeighboringRelation

    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, interval)
    for event in _dp_events(history):
        accountant.compose(event)
    return float(accountant.get_epsilon(delta))


def _rdp(history: History, delta: float) -> float:
    """Return the RDP epsilon over dp-accounting's default orders."""
    from dp_accounting.privacy_accountant import NeighboringRelation
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    with _quiet():  # an order that fails to converge is left out, which can only raise the bound
        for event in _dp_events(history):
            accountant.compose(event)
        return float(accountant.get_epsilon(delta))


def _dp_events(history: History) -> "Iterator[DpEvent]":
    """Yield the library's events; the full-batch ones as one plain Gaussian."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

    # T Gaussians of sigma are one of sigma / sqrt(T), exactly: Dong et al. 2019, arXiv:1905.02383
    precision = sum(count / noise**2 for rate, noise, count in history if rate == 1)
    if precision > 0:
        yield GaussianDpEvent(1 / math.sqrt(precision))
    for rate, noise, count in history:
        if rate < 1:
            yield SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), count)


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


def _version() -> str:
    return version("dp-accounting")
