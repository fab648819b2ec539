"""What of an evaluation is released: exact sums of cells, or noised ones, and at what cost.

Both sides compute it from the study and the number of sites; it reads no record. Source: section 7
of the protocol.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from privacy.accounting import noise_multiplier
from privacy.cell_noise import CellNoise, fit_cells
from privacy.errors import StudyError
from privacy.ring_accounting import RESERVED, covers
from shared_models.lanes import evaluate_lanes
from shared_models.ring import shares_of
from shared_models.sections import DistributedPrivacy, NoPrivacy
from shared_models.study import Study, is_exact
from shared_models.subgroups import (
    Told,
    cell_sensitivity,
    figures_from_cells,
    figures_from_noised_cells,
)


def planned_evaluations(study: Study) -> int:
    """Return how many evaluations may be debited: the due ones, and the spare attempts."""
    every, rounds = study.evaluation.every, study.rounds
    return rounds // every + (rounds % every > 0) + study.spare_attempts


def cell_noise(study: Study, sites: int) -> CellNoise | None:
    """Return the noise of each site's cells when ``sites`` may be summed; None for exact ones.

    It covers all evaluations of the study at ``evaluation.epsilon`` and ``privacy.delta``.

    Raises:
        StudyError: the study's thresholds do not fit the number of sites.
        PrivacyError: no noise is enough, or there is no sampler for so much.
    """
    if is_exact(study):
        return None
    return _noise(study, sites)


@lru_cache(maxsize=16)
def _fitted(
    epsilon: float, delta: float, releases: int, sensitivity: float, cells: int, sites: int, c: int
) -> CellNoise:
    multiplier = noise_multiplier(epsilon, delta * (1 - RESERVED), 1.0, releases)
    noise = fit_cells(multiplier, sensitivity, cells, sites, c)
    if not covers(epsilon, delta * RESERVED, releases * noise.slack):
        raise StudyError(
            f"evaluation.epsilon: expected one that still promises something, got {epsilon:.3g}; "
            "the study is refused"
        )
    return noise


def _noise(study: Study, sites: int) -> CellNoise:
    privacy = study.privacy
    if isinstance(privacy, NoPrivacy):
        raise ValueError("expected a private study")
    distributed = isinstance(privacy, DistributedPrivacy)
    return _fitted(
        study.evaluation.epsilon,
        privacy.delta,
        planned_evaluations(study),
        cell_sensitivity(study),
        len(evaluate_lanes(study)),
        sites,
        shares_of(study, sites).carriers if distributed else 1,
    )


def released_figures(study: Study, lanes: npt.NDArray[np.int64], shares: int, sites: int) -> Told:
    """Return the metrics of an opened evaluation, of all records and of groups of them.

    Args:
        study: as run.
        lanes: (L,) the opened sum.
        shares: sites in the sum.
        sites: how many the sum could have had.

    Raises:
        ValueError: the lanes are no sum of cells.
    """
    noise = cell_noise(study, sites)
    if noise is None:
        return figures_from_cells(study, lanes)
    return figures_from_noised_cells(study, lanes, noise, shares)
