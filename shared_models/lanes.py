"""The 64-bit lanes beside the values of a sum, and the weight of a site's update.

Under privacy a training round has no lanes at all: weight 1 a site, no loss, no count.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared_models.sections import NoPrivacy
from shared_models.study import Study, is_exact
from shared_models.subgroups import lane_names
from shared_models.tasks import target_of

Lanes = npt.NDArray[np.int64]

TRAIN_LANES = ("weight", "records", "loss")
LOSS_SCALE = 1 << 20  # losses travel as integers of this many to one
WEIGHT_SCALE = 1 << 16  # weights travel in these steps; a site counts as at most so many records
LOSS_MAX = float(1 << 33)  # of a site, summed; 2^53 in steps: each of 100 sites may mask that


def train_lanes(study: Study) -> tuple[str, ...]:
    """Return the names of a training round's lanes: () under privacy."""
    return TRAIN_LANES if isinstance(study.privacy, NoPrivacy) else ()


def evaluate_lanes(study: Study) -> tuple[str, ...]:
    """Return the names of an evaluation's lanes: fewer where each carries noise."""
    target = target_of(study)
    names = target.cell_names() if is_exact(study) else target.noised_cell_names()
    return lane_names(study, names)


def site_weight(study: Study, site: str, records: int) -> float:
    """Return the factor, in [0, 1], that a site applies to its update before encoding it."""
    if study.aggregation.weighting == "records":
        return min(records, WEIGHT_SCALE) / WEIGHT_SCALE
    if study.aggregation.weighting == "public":
        weights = study.aggregation.weights
        # As the lane will carry it, so that update and weight agree exactly.
        return round(weights.get(site, 0.0) / max(weights.values()) * WEIGHT_SCALE) / WEIGHT_SCALE
    if isinstance(study.privacy, NoPrivacy):
        return 1.0 if records else 0.0
    return 1.0  # whether a site has records is not told


def count_training(weight: float, records: int, loss: float) -> Lanes:
    """Return the lanes of a training round in mode none."""
    # A loss that diverged is told as the largest; nothing downstream would learn more from it.
    told = max(-LOSS_MAX, min(loss, LOSS_MAX)) if np.isfinite(loss) else 0.0
    fixed_loss = round(told * LOSS_SCALE)
    return np.array([round(weight * WEIGHT_SCALE), records, fixed_loss], dtype=np.int64)


def total_weight(study: Study, sites: Sequence[str], lanes: Lanes) -> float:
    """Return the sum of the factors of the sites whose updates were summed."""
    if isinstance(study.privacy, NoPrivacy):
        return float(lanes[0]) / WEIGHT_SCALE
    return sum(site_weight(study, site, 0) for site in sites)


def training_loss(lanes: Lanes) -> float | None:
    """Return the mean loss of the records that were trained on; None when it is not told."""
    if len(lanes) == 0 or lanes[1] == 0:
        return None
    return float(lanes[2]) / LOSS_SCALE / float(lanes[1])
