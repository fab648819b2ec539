"""How the mean of the sites' updates becomes the next model: small pure steps on float64 vectors.

Both sides compute them, so that a site can check the server's next model: only + - * / sqrt and
comparisons, one numpy ufunc at a time, nothing fused or reduced, hence the same bits everywhere.
Nothing here knows how the mean was formed or how it travelled.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from privacy.errors import ProtocolError
from shared_models.sections import Aggregation

Vector = npt.NDArray[np.float64]  # (P,) in model units
Moments = Mapping[str, Vector]


@dataclass(frozen=True)
class State:
    """The model after ``round`` rounds, and what the strategy remembers.

    Attributes:
        round: rounds done; 0 for the first model.
        model: (P,) parameters.
        moments: by name, (P,) each: "m" and "v" of the adaptive strategies, "control" of SCAFFOLD,
            "mean" of the last models when their mean is released.
    """

    round: int
    model: Vector
    moments: Moments

    def released(self) -> Vector:
        """Return (P,) the model that people take home."""
        return self.moments.get("mean", self.model)


def first_state(aggregation: Aggregation, model: npt.NDArray[np.float32]) -> State:
    """Return the state before the first round, with moments as their papers start them."""
    start = model.astype(np.float64)
    zero = np.zeros_like(start)
    moments: dict[str, Vector] = {}
    if aggregation.strategy in {"fedadam", "fedyogi", "fedadagrad"}:
        # v starts at tau^2 (Reddi et al. 2021, arXiv:2003.00295, Algorithm 2).
        moments = {"m": zero, "v": np.full_like(start, aggregation.adaptivity**2)}
    if aggregation.strategy == "scaffold":
        moments = {"control": zero}
    return State(0, start, moments)


def moment_names(aggregation: Aggregation) -> frozenset[str]:
    """Return the moments that a strategy cannot do without."""
    if aggregation.strategy in {"fedadam", "fedyogi", "fedadagrad"}:
        return frozenset({"m", "v"})
    return frozenset({"control"} if aggregation.strategy == "scaffold" else ())


def next_state(
    aggregation: Aggregation, rounds: int, state: State, update: Vector, share: float = 1.0
) -> State:
    """Apply one round.

    Args:
        aggregation: the study's section.
        rounds: rounds of the whole study.
        state: before the round.
        update: (P,) mean change of the sites' models; (2 P,) for SCAFFOLD: mean change of the
            models, then of the control variates.
        share: part of all sites that took part, in (0, 1]; SCAFFOLD only.
    """
    model, moments = STEPS[aggregation.strategy](aggregation, state, update, share)
    following = State(state.round + 1, model, moments)
    return _with_mean(aggregation, rounds, state, following)


def _averaging(
    aggregation: Aggregation, state: State, update: Vector, share: float
) -> tuple[Vector, dict[str, Vector]]:
    """FedAvg, McMahan et al. 2017, arXiv:1602.05629; FedProx differs at the site only."""
    del share
    return state.model + aggregation.server_learning_rate * update, {}


def _adaptive(
    second: Callable[[Vector, Vector, float], Vector],
) -> Callable[[Aggregation, State, Vector, float], tuple[Vector, dict[str, Vector]]]:
    """FedAdagrad, FedYogi, FedAdam: Reddi et al. 2021, arXiv:2003.00295, Algorithm 2."""

    def step(
        aggregation: Aggregation, state: State, update: Vector, share: float
    ) -> tuple[Vector, dict[str, Vector]]:
        del share
        beta1 = aggregation.beta1
        m = beta1 * state.moments["m"] + (1.0 - beta1) * update
        v = second(state.moments["v"], update * update, aggregation.beta2)
        scaled = m / (np.sqrt(v) + aggregation.adaptivity)
        return state.model + aggregation.server_learning_rate * scaled, {"m": m, "v": v}

    return step


def _adam(v: Vector, square: Vector, beta2: float) -> Vector:
    return beta2 * v + (1.0 - beta2) * square


def _yogi(v: Vector, square: Vector, beta2: float) -> Vector:
    return v - (1.0 - beta2) * square * np.sign(v - square)


def _adagrad(v: Vector, square: Vector, beta2: float) -> Vector:
    del beta2
    return v + square


def _scaffold(
    aggregation: Aggregation, state: State, update: Vector, share: float
) -> tuple[Vector, dict[str, Vector]]:
    """SCAFFOLD, Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1, lines 16 and 17."""
    count = len(state.model)
    model = state.model + aggregation.server_learning_rate * update[:count]
    return model, {"control": state.moments["control"] + share * update[count:]}


Step = Callable[[Aggregation, State, Vector, float], tuple[Vector, dict[str, Vector]]]
STEPS: dict[str, Step] = {
    "fedavg": _averaging,
    "fedprox": _averaging,
    "fedadam": _adaptive(_adam),
    "fedyogi": _adaptive(_yogi),
    "fedadagrad": _adaptive(_adagrad),
    "scaffold": _scaffold,
}


def _with_mean(aggregation: Aggregation, rounds: int, before: State, after: State) -> State:
    """Keep the running mean of the last models, when the study releases it."""
    # 0.29 * 100 is 28.999999999999996 in binary, and 29 rounds as written.
    counted = int(aggregation.average_last * rounds + 1e-9)
    first = rounds - counted + 1  # first round that counts
    if aggregation.average_last == 0 or after.round < first:
        return after
    previous = before.moments.get("mean", after.model)
    count = float(after.round - first + 1)
    mean = previous + (after.model - previous) / count
    return replace(after, moments={**after.moments, "mean": mean})


def state_bytes(state: State) -> bytes:
    """Return the state as safetensors of float64; equal states give equal bytes."""
    tensors = {"model": state.model, **{f"moment.{k}": v for k, v in state.moments.items()}}
    return safetensors.numpy.save(tensors, {"round": str(state.round)})


def state_hash(blob: bytes) -> bytes:
    """Return the SHA-256 (32 bytes) that stands for a state in every message."""
    return hashlib.sha256(blob).digest()


def read_state(blob: bytes, parameters: int) -> State:
    """Read a state from foreign bytes.

    Raises:
        ProtocolError: the bytes are not a state of ``parameters`` finite values.
    """
    if len(blob) > 4 * (8 * parameters) + 4096:
        raise ProtocolError(f"expected a state of {parameters} values, got {len(blob)} bytes")
    try:
        entries = safetensors.numpy.load(blob)
        round_ = int(_metadata(blob)["round"])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ProtocolError("expected a state in safetensors, got other bytes") from error
    vectors: dict[str, Vector] = {}
    for name, values in entries.items():
        if values.dtype != np.float64 or values.shape != (parameters,):
            raise ProtocolError(f"state: expected {parameters} float64 values in {name!r}")
        if not np.isfinite(values).all():
            raise ProtocolError(f"state: expected finite values in {name!r}; nothing was trained")
        vectors[name] = values
    if "model" not in vectors or round_ < 0:
        raise ProtocolError("state: expected a model after 0 rounds or more, got none")
    model = vectors.pop("model")
    return State(round_, model, {k.removeprefix("moment."): v for k, v in vectors.items()})


def _metadata(blob: bytes) -> dict[str, str]:
    # The header of safetensors: u64 length, then JSON with the metadata under one key.
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    metadata = header["__metadata__"]
    return {str(key): str(value) for key, value in metadata.items()}
