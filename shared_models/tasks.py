"""What can be learnt: each task's data, its networks, its loss for each record and its predictions.

It builds no network (the registry does) and computes no metric from predictions (metrics does).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch users know

from shared_models.contract import Data, NumberColumn

LossKind = Literal["binary", "multiclass", "regression"]
UNSCALED = (-1.0, 1.0)  # the range that a network's output has by itself


@dataclass(frozen=True)
class Task:
    """One kind of learning problem.

    Attributes:
        name: as a study's ``task`` writes it.
        summary: what it is, in plain words.
        networks: the names of the networks that can do it, the usual one first.
        columns: the kinds of input columns it wants.
        examples: studies under examples/ that do it.
    """

    name: str
    summary: str
    networks: tuple[str, ...]
    columns: tuple[str, ...]
    examples: tuple[str, ...]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "tabular",
            "Diagnosis, or a number, from one row of findings: ages, laboratory values, codes.",
            networks=("mlp",),
            columns=("number", "category"),
            examples=("breast", "heart"),
        ),
        Task(
            "image",
            "Diagnosis from one small picture, such as an X-ray.",
            networks=("cnn", "mlp"),
            columns=("image",),
            examples=("pneumonia", "digits"),
        ),
        Task(
            "series",
            "Outcome from measurements over time, such as the vital signs of a hospital stay.",
            networks=("lstm", "gru", "rnn", "attention", "mlp"),
            columns=("series", "number", "category"),
            examples=("icu",),
        ),
        Task(
            "sequence",
            "Class of a text, or of a sequence of letters such as DNA.",
            networks=("attention", "cnn", "lstm", "gru", "rnn"),
            columns=("letters", "words"),
            examples=("splice", "questions"),
        ),
    )
}


def target_range(data: Data) -> tuple[float, float]:
    """Return the public range of a number target; (-1, 1), which changes nothing, for classes."""
    target = data.columns[data.target]
    return (target.low, target.high) if isinstance(target, NumberColumn) else UNSCALED


def record_losses(
    kind: LossKind,
    outputs: torch.Tensor,
    targets: torch.Tensor,
    bounds: tuple[float, float] = UNSCALED,
) -> torch.Tensor:
    """Return each record's own loss; no record's loss depends on another record.

    Binary with one logit: binary cross entropy. Two or more logits: cross entropy. Number: squared
    error, with the target's public range scaled to [-1, 1], so that a step means the same for
    grams and for years.

    Args:
        kind: what ``inputs.loss_kind`` says of the data.
        outputs: (B, K) float32, as the network returned them.
        targets: (B,) int64 class index, or float32 in the units of the target.
        bounds: public range of a number target, as ``target_range`` returns it.

    Returns:
        (B,) float32 losses, in nats or squared half-ranges.
    """
    if kind == "regression":
        return (outputs[:, 0] - _to_unit(targets, bounds)).square()  # (B, 1) -> (B,)
    if outputs.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(
            outputs[:, 0], targets.to(outputs.dtype), reduction="none"
        )  # (B, 1) -> (B,)
    return F.cross_entropy(outputs, targets, reduction="none")  # (B, K) -> (B,)


def predictions(
    kind: LossKind, outputs: torch.Tensor, bounds: tuple[float, float] = UNSCALED
) -> npt.NDArray[np.float64]:
    """Return what the outputs mean to a person.

    Args:
        kind: what ``inputs.loss_kind`` says of the data.
        outputs: (B, K) float32, as the network returned them.
        bounds: public range of a number target, as ``target_range`` returns it.

    Returns:
        (B, C) float64 probabilities of the classes, C = 2 for a binary target however many logits;
        or (B,) float64 numbers in the units of the target.
    """
    logits = outputs.detach().to("cpu", torch.float64)  # float32 would round 1 - 1e-9 to 1
    if kind == "regression":
        low, high = bounds
        numbers: npt.NDArray[np.float64] = (low + (logits[:, 0] + 1) / 2 * (high - low)).numpy()
        return numbers  # (B, 1) -> (B,)
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)  # (B, 1) -> (B, 2)
    probabilities: npt.NDArray[np.float64] = logits.softmax(dim=1).numpy()  # (B, C)
    return probabilities


def _to_unit(targets: torch.Tensor, bounds: tuple[float, float]) -> torch.Tensor:
    low, high = bounds
    return 2 * (targets - low) / (high - low) - 1
