"""The simplest forecasts of a series' next value: what was measured last, and the mean of its slot.

They read a network's inputs, back in the units of the study, and learn nothing else from records.
"""

import numpy as np
import numpy.typing as npt

from client.training import Tensors
from shared_models.contract import CategoryColumn, SeriesColumn, Variable
from shared_models.inputs import input_spec
from shared_models.study import Study

Numbers = npt.NDArray[np.float64]


def simplest(study: Study, train: Tensors, held: Tensors) -> dict[str, Numbers]:
    """Return (M,) forecasts of the held-out records in the target's unit; none without a forecast.

    Args:
        study: whose `forecast` says which variable and which slot.
        train: records whose means are taken.
        held: M records.

    Returns:
        last_value: what the series holds at its last step: where a missing value is the one before
            it, the last that was measured; the middle of the range where none was.
        slot_mean: the mean of the training records of the same slot; of all of them where there is
            none. No patient has a mean of their own: those held out are new.
    """
    if study.forecast is None or not len(train):
        return {}
    names, columns = input_spec(study).names, study.data.inputs
    variable = next(
        column.variables[study.forecast.of]
        for column in columns.values()
        if isinstance(column, SeriesColumn) and study.forecast.of in column.variables
    )
    last = held.inputs[:, -1, names.index(study.forecast.of)].numpy()  # (M, T, F) -> (M,)
    slot = columns[study.forecast.slot]
    if not isinstance(slot, CategoryColumn):
        raise ValueError("expected a category as the slot")
    features = [names.index(f"{study.forecast.slot}={value}") for value in slot.values]
    return {
        "last_value": _unscaled(last.astype(np.float64), variable),
        "slot_mean": _slot_means(features, train, held),
    }


def _slot_means(features: list[int], train: Tensors, held: Tensors) -> Numbers:
    """Return (M,) means; ``features``: of the values of the slot, each 1 in the records it has."""
    truth = train.targets.numpy().astype(np.float64)
    belongs = train.inputs[:, -1, features].numpy().astype(np.float64)  # (N, T, F) -> (N, S)
    counts = belongs.sum(axis=0)
    means = np.where(counts > 0, truth @ belongs / np.maximum(counts, 1), truth.mean())  # (S,)
    own = held.inputs[:, -1, features].numpy().astype(np.float64)  # (M, S)
    found: Numbers = np.where(own.any(axis=1), own @ means, truth.mean())
    return found


def _unscaled(values: Numbers, variable: Variable) -> Numbers:
    """Return numbers of the variable's range from those that it was scaled to, [-1, 1]."""
    share, span = (values + 1) / 2, variable.high - variable.low
    above = np.expm1(share * np.log1p(span)) if variable.scale == "log" else share * span
    found: Numbers = variable.low + above
    return found
