"""What the same records give without federation: pooled, each site alone, and a linear model.

They use no privacy and are a simulation's alone: no one could compute them in a deployment.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from client.training import BATCH_SIZE, Tensors, Trainer
from shared_models.inputs import PADDING, InputSpec, input_spec
from shared_models.metrics import Figure
from shared_models.sections import NoPrivacy
from shared_models.strategies import State, first_state, next_state
from shared_models.study import Study
from shared_models.tasks import target_of
from shared_models.weights import Vector32
from simulations.forecasts import simplest
from simulations.pool import Pool
from simulations.seeds import seeded_key

Figures = dict[str, Figure]

STEPS = 8  # of brightness, of each channel of a coloured picture


def baselines(
    study: Study, pool: Pool, first: Vector32, tell: Callable[[str, int], None] | None = None
) -> dict[str, Figures]:
    """Return the metrics, on the pooled hold-out, of models without federation.

    Args:
        study: whose network and rounds are used.
        pool: the records of all sites.
        first: (P,) the initial weights.
        tell: told the name of each training and its rounds as they pass.

    Returns:
        pooled: as `pooled`.
        local_only: the mean over sites of networks that saw their own site's records only, in as
            many rounds by the study's own server step.
        linear: a linear model on all training records.
        last_value, slot_mean: of a study with a forecast, what needs no model.
    """
    plain = _alone(study)
    trainer = Trainer(plain, None)
    held = pool.held()
    alone = []
    for index, name in enumerate(pool.sites):
        state = _trained(plain, trainer, pool.split(index).train, first, name, tell)
        alone.append(_measure(plain, held, trainer.predict(state, held.inputs)))
    return {
        "pooled": pooled(study, pool, first, tell),
        "local_only": _mean(alone),
        "linear": linear(plain, pool.train(), held),
        **{
            name: _measure(plain, held, answers)
            for name, answers in simplest(plain, pool.train(), held).items()
        },
    }


def pooled(
    study: Study, pool: Pool, first: Vector32, tell: Callable[[str, int], None] | None = None
) -> Figures:
    """Return the metrics of the study with one site, which has all training records.

    Rounds, the server's step and the mean of the last models are the study's own; there is no
    privacy. Where sites take a number of steps a round, a step's batch is as large as those of all
    sites together, so that a round sees as many records. Arguments are those of `baselines`.
    """
    plain = _alone(study)
    training = plain.training
    if training.local_steps is not None:
        size = (training.batch_size or BATCH_SIZE) * len(pool.sites)
        training = training.model_copy(update={"batch_size": size})
        plain = plain.model_copy(update={"training": training})
    trainer = Trainer(plain, None)
    held = pool.held()
    state = _trained(plain, trainer, pool.train(), first, "pooled", tell)
    return _measure(plain, held, trainer.predict(state, held.inputs))


def _alone(study: Study) -> Study:
    """Return the study without privacy, and without what is there for many sites alone."""
    step = study.aggregation
    if step.strategy in {"fedprox", "scaffold"}:  # against drift, of which one site has none
        step = step.model_copy(update={"strategy": "fedavg"})
    return study.model_copy(update={"privacy": NoPrivacy(mode="none"), "aggregation": step})


def _trained(
    study: Study,
    trainer: Trainer,
    records: Tensors,
    first: Vector32,
    label: str,
    tell: Callable[[str, int], None] | None,
) -> State:
    """Run the study's rounds as a federation of one."""
    state = first_state(study.aggregation, first)
    seed = study.simulation.seed
    for number in range(1, study.rounds + 1):
        if tell is not None:
            tell(label, number)

        def keys(purpose: str, step: int, number: int = number) -> bytes:
            return seeded_key(seed, "baseline", label, purpose, number, step)

        update = trainer.train(state, records, keys)
        change = update.change.astype(np.float64)
        state = next_state(study.aggregation, study.rounds, state, change)
    return state


def linear(study: Study, train: Tensors, held: Tensors) -> Figures:
    """Return the metrics of logistic (or ridge) regression on summary features."""
    spec = input_spec(study)
    features: Callable[[InputSpec, npt.NDArray[np.generic]], Any] = FEATURES[spec.kind]
    if study.warning is not None:
        features = partial(_prefixes, study.warning.hours)
    elif study.task == "image" and spec.kind == "image" and spec.shape[0] > 1:
        features = _colours
    x, y = features(spec, train.inputs.numpy()), train.targets.numpy()
    unseen = features(spec, held.inputs.numpy())
    return _measure(study, held, target_of(study).linear(x, y, unseen))


def _measure(study: Study, held: Tensors, predicted: npt.NDArray[np.float64]) -> Figures:
    return target_of(study).exact_figures(held.targets.numpy(), predicted)


def _mean(parts: list[Figures]) -> Figures:
    """Average each metric over the sites where it is defined; the interval is of the mean's n."""
    means: Figures = {}
    for name, figure in parts[0].items():
        values = [part[name].value for part in parts]
        known = [value for value in values if value is not None]
        mean = float(np.mean(known)) if known else None
        means[name] = replace(figure, value=mean, low=None, high=None)
    return means


def _flat(spec: InputSpec, inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    del spec
    return inputs.reshape(len(inputs), -1).astype(np.float64)


def _colours(spec: InputSpec, inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Share of the points in each equal step of each channel: (N, C, H, W) -> (N, C STEPS)."""
    count, channels = len(inputs), spec.shape[0]
    steps = np.minimum((inputs * STEPS).astype(np.int64), STEPS - 1).reshape(count, channels, -1)
    shares = [(steps == step).mean(axis=2) for step in range(STEPS)]  # (N, C) each
    return np.concatenate(shares, axis=1)


def _summary(spec: InputSpec, inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Mean, least, largest, first and last of each variable over time: (N, T, F) -> (N, 5 F)."""
    del spec
    x = inputs.astype(np.float64)
    pieces = [x.mean(axis=1), x.min(axis=1), x.max(axis=1), x[:, 0], x[:, -1]]
    return np.concatenate(pieces, axis=1)


def _prefixes(
    hours: Sequence[int], spec: InputSpec, inputs: npt.NDArray[np.generic]
) -> npt.NDArray[np.float64]:
    """Return the summaries of what was known by each hour: (N, T, F) -> (N, H x 5 F)."""
    return np.concatenate([_summary(spec, inputs[:, :hour]) for hour in hours], axis=1)


def _joined(spec: InputSpec, inputs: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Return the features of every part, and which of them are there: (N, F) -> (N, G)."""
    ends = np.cumsum([math.prod(part.shape) for part in spec.parts])
    *pieces, marks = np.split(inputs.astype(np.float64), ends, axis=1)
    found = [
        _summary(spec, piece.reshape(-1, *part.shape)) if part.name == "series" else piece
        for part, piece in zip(spec.parts, pieces, strict=True)
    ]
    return np.concatenate([*found, marks], axis=1)


def _bag(spec: InputSpec, inputs: npt.NDArray[np.generic]) -> csr_array:
    """Counts of tokens, (N, L) -> (N, V); of a small alphabet, the token at each position."""
    tokens = inputs.astype(np.int64)
    count, length = tokens.shape
    rows = np.repeat(np.arange(count), length)
    if spec.vocabulary <= 64:
        columns = (np.arange(length) * spec.vocabulary + tokens).reshape(-1)
        width = length * spec.vocabulary
    else:
        columns, width = tokens.reshape(-1), spec.vocabulary
    kept = tokens.reshape(-1) != PADDING
    ones = np.ones(int(kept.sum()))
    return csr_array((ones, (rows[kept], columns[kept])), shape=(count, width))


Features = Callable[[InputSpec, npt.NDArray[np.generic]], Any]  # dense, or sparse for tokens
FEATURES: dict[str, Features] = {
    "features": _flat,
    "image": _flat,
    "volume": _flat,
    "series": _summary,
    "tokens": _bag,
    "parts": _joined,
}
