"""Turn the events of a dataset into what they cost (epsilon), and a target into a noise level.

It keeps no history: the ledger does, as events; epsilon is computed on reading.
The headline is the privacy loss distribution (PLD) of dp-accounting, pessimistic, under adding or
removing one unit; Renyi DP (RDP) stands beside it as the check. ``privacy.losses`` computes both.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.metadata import version
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from privacy.errors import PrivacyError
from privacy.losses import Either, History, Kind, Paid, gaussian, pld_epsilon, rdp_epsilon
from privacy.ring_accounting import check_renyi, with_slack

Unit = Literal["record", "patient"]
Adjacency = Literal["add-or-remove-one"]
Text = Annotated[str, Field(min_length=1, max_length=200)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_INTERVAL = (
    1e-4  # grid of the privacy loss; the q=.0128 reference figure moves .0015 from 1e-3 to it
)
_GROUP_GRID = 10  # mixtures take 10 s on the fine grid; .0002 of epsilon 12 is lost on this one
_GRID_LOSS = 4.0  # above this epsilon the grid grows in proportion: .01 % of epsilon is lost
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


def epsilon(events: Iterable[Event], delta: float, rows: int | None = None) -> Spent:
    """Compose ``events`` and return their cost at ``delta``.

    Args:
        events: any number of debits, all for one unit; the caller has chosen which (a dataset's, a
            study's). None cost nothing.
        delta: probability that the bound does not hold; 0 < delta < 1.
        rows: the most records that one patient has, in public; >= 1. Given, events of records are
            charged as what they cost such a patient, and may stand beside events of patients.

    Returns:
        the upper bound on epsilon, with RDP's.

    Raises:
        ValueError: ``delta`` is not in (0, 1), or ``rows`` is below 1.
        PrivacyError: events of records and of patients are mixed (neither bounds the other), or RDP
            lies below PLD: both are upper bounds and PLD is the tight one, so a figure is wrong.

    Guarantee: within one study a unit is trained on or held out, by a rule that reads nothing but
    its own identity, and pays for that side alone; over studies those costs compose. The bound
    holds for every unit, whichever sides it was on. A patient whose records are charged one by one
    may have been on both sides of a study, and then pays for both.

    Source: Koskela et al. 2020, arXiv:1906.03049, and Doroshenko et al. 2022, arXiv:2207.04380
    (PLD); Mironov et al. 2019, arXiv:1908.10530 (RDP). Equal events are merged first. Ring noise
    is checked by a third bound, which holds for any symmetric noise (`privacy.ring_accounting`).
    """
    if not 0 < delta < 1:
        raise ValueError(f"expected 0 < delta < 1, got {delta}")
    if rows is not None and rows < 1:
        raise ValueError(f"expected rows >= 1, got {rows}")
    kept = list(events)
    units = sorted({event.unit for event in kept})
    if len(units) > 1 and rows is None:
        raise PrivacyError(
            "expected events of one unit, got records and patients; nothing was added"
        )
    charged = rows or 1
    paid = _merge(kept, charged)
    slack = math.fsum(event.slack * (charged if event.unit == "record" else 1) for event in kept)
    if slack > 0 or any(event.mode == "distributed" for event in kept):
        pld, rdp = with_slack(lambda rest: _ring_cost(paid, rest), delta, slack)
    else:
        pld, rdp = _cost(paid, delta)
    unit: Unit = "patient" if rows is not None else kept[0].unit if kept else "record"
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
        return pld_epsilon(_alone(rate, noise, steps), delta, rough) <= target

    def fine(noise: float) -> bool:
        return _cost(_alone(rate, noise, steps), delta)[0] <= target

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
    while not rdp_epsilon(_alone(rate, high, steps), delta) <= target:
        high *= 2
        if high > _MAX_NOISE:
            raise PrivacyError(
                f"expected a noise multiplier <= {_MAX_NOISE:g} for epsilon {target} at delta "
                f"{delta}, got none; nothing was trained"
            )
    return high


def _alone(rate: float, noise: float, steps: int) -> Paid:
    return Paid(((Kind(rate, noise), steps),))


def _merge(events: Iterable[Event], rows: int) -> Paid:
    """Add the steps of equal mechanisms, and find the studies that charge one of two sides."""
    studies: dict[str, dict[str, Counter[Kind]]] = defaultdict(lambda: defaultdict(Counter))
    for event in events:
        charged = rows if event.unit == "record" else 1
        kind = Kind(event.sampling_rate, event.noise_multiplier, charged)
        studies[event.study][event.phase][kind] += event.steps
    always: Counter[Kind] = Counter()
    either: Counter[tuple[History, History]] = Counter()
    for phases in studies.values():
        train, evaluate = _sorted(phases["train"]), _sorted(phases["evaluate"])
        if not (train and evaluate) or any(kind.rows > 1 for kind, _ in (*train, *evaluate)):
            always.update(phases["train"] + phases["evaluate"])
            continue
        (one, sampled), (other, also_sampled) = gaussian(train), gaussian(evaluate)
        if sampled or also_sampled:
            either[train, evaluate] += 1
        else:  # two Gaussians: the one with less noise dominates, exactly
            always.update(phases["train" if one >= other else "evaluate"])
    return Paid(
        _sorted(always),
        tuple(Either(*sides, count) for sides, count in sorted(either.items())),
    )


def _sorted(steps: Counter[Kind]) -> History:
    return tuple(sorted(steps.items()))


@lru_cache(maxsize=1024)
def _cost(paid: Paid, delta: float) -> tuple[float, float]:
    """Return (PLD epsilon, RDP epsilon), refining the grid while the two disagree."""
    if not paid.always and not paid.either:
        return 0.0, 0.0
    rdp = rdp_epsilon(paid, delta)
    interval = _INTERVAL * max(1.0, rdp / _GRID_LOSS if math.isfinite(rdp) else 1.0)
    if any(kind.rows > 1 and kind.rate < 1 for kind, _ in paid.always):
        interval *= _GROUP_GRID
    pld = math.inf
    for _ in range(_REFINEMENTS + 1):
        pld = min(pld, pld_epsilon(paid, delta, interval))
        if rdp >= pld:
            return pld, rdp
        interval /= 4
    both = rdp_epsilon(_both(paid), delta)
    if paid.either and both >= pld:
        # What dominates two sides may cost a little more than either in every order: RDP then
        # bounds it by the sum of the sides, which dominates it.
        return pld, both
    raise PrivacyError(
        f"expected RDP >= PLD, got {rdp} < {pld}; nothing is released on such figures"
    )


def _ring_cost(paid: Paid, delta: float) -> tuple[float, float]:
    """Return `_cost`, refused when it lies above the bound that holds for ring noise itself."""
    pld, rdp = _cost(paid, delta)
    steps = _both(paid).always
    if all(kind.rows == 1 for kind, _ in steps):
        check_renyi(((kind.rate, kind.noise, count) for kind, count in steps), delta, pld)
    return pld, rdp


def _both(paid: Paid) -> Paid:
    """Return the history of a unit that pays for both sides of every study."""
    steps = Counter(dict(paid.always))
    for train, evaluate, studies in paid.either:
        for kind, count in (*train, *evaluate):
            steps[kind] += studies * count
    return Paid(_sorted(steps))


def _version() -> str:
    return version("dp-accounting")
