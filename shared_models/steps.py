"""From an opened sum to the next state: what the server does after a round and each site checks.

Both sides call it on the same integers and get the same bits.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from privacy.encoding import Encoding
from privacy.ring import Ring
from shared_models.lanes import total_weight
from shared_models.ring import ring_of
from shared_models.sections import DistributedPrivacy
from shared_models.strategies import State, next_state
from shared_models.study import Study

Integers = npt.NDArray[np.int16] | npt.NDArray[np.int32] | npt.NDArray[np.int64]


def encoding_of(study: Study, sites: int) -> Encoding:
    """Return how a site's vector becomes integers, in modes none and local.

    Sums of ``sites`` such vectors never wrap.
    """
    return Encoding(study.aggregation.ring_bits, sites, study.aggregation.value_bound)


def site_encoding(study: Study, sites: int, values: int) -> Encoding | Ring:
    """Return how a site's vector of ``values`` coordinates becomes integers, in any mode.

    Raises:
        StudyError: the study's values, or its noise, do not fit into the ring.
    """
    if isinstance(study.privacy, DistributedPrivacy):
        return ring_of(study, sites, values)
    return encoding_of(study, sites)


def after_sum(
    study: Study,
    state: State,
    values: Integers,
    lanes: npt.NDArray[np.int64],
    names: Sequence[str],
    asked: int,
    sites: int,
) -> State:
    """Return the state after a training round.

    In mode distributed the sum is one of clipped gradients, and the strategy's step is that of
    gradient descent: the update is -learning_rate / (weight x expected_batch) times the sum, where
    the weight counts the sites that answered, and L1 and L2 join it here, since they hang on the
    model alone. All of it is public: no record count is in it.

    Args:
        study: says how.
        state: before the round.
        values: (d,) the opened sum, in the integers of the encoding.
        lanes: (L,) the opened lanes; none under privacy.
        names: the sites whose updates were summed.
        asked: how many sites the sum could have had; sizes the encoding.
        sites: how many sites the study has.
    """
    update = site_encoding(study, asked, len(values)).dequantise(values)
    weight = total_weight(study, names, lanes)
    if isinstance(study.privacy, DistributedPrivacy):
        update *= -study.training.learning_rate
        weight = weight * study.privacy.expected_batch
    if weight > 0:
        update /= weight
        if isinstance(study.privacy, DistributedPrivacy):
            training = study.training  # as a site's descent joins them in the other modes
            penalty = training.weight_decay * state.model + training.l1 * np.sign(state.model)
            update -= training.learning_rate * penalty
    else:
        update.fill(0.0)
    return next_state(study.aggregation, study.rounds, state, update, len(names) / sites)


def evaluation_due(study: Study, number: int) -> bool:
    """Say whether the study evaluates the model after round ``number``."""
    return number % study.evaluation.every == 0 or number == study.rounds
