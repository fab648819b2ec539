"""Models whose weights were set by hand, so that what explains them is known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared_models.model_file import DESCRIPTION, MODEL, description, json_bytes
from shared_models.registry import build_network
from shared_models.study import Study, parse_study
from shared_models.weights import safetensors_of

ANSWER = {"kind": "category", "values": ["no", "yes"]}
LINEAR = {"name": "mlp", "hidden": []}


def study_of(
    task: str,
    columns: dict[str, Any],
    model: Mapping[str, Any],
    sections: Mapping[str, Any] | None = None,
    **data: Any,
) -> Study:
    return parse_study(
        {
            **(sections or {}),
            "name": "ward",
            "task": task,
            "rounds": 1,
            "data": {"target": "y", "columns": {"y": ANSWER, **columns}, **data},
            "model": dict(model),
            "training": {"learning_rate": 0.1},
            "privacy": {"mode": "none"},
        }
    )


def table_study(hidden: tuple[int, ...] = (), names: str = "abcdefgh") -> Study:
    number = {"kind": "number", "low": -1, "high": 1}
    return study_of("tabular", dict.fromkeys(names, number), {"name": "mlp", "hidden": [*hidden]})


def weights(network: nn.Module, **values: Any) -> nn.Module:
    """Set every weight to zero, but those that are named (a dot is written as two underscores)."""
    named = dict(network.named_parameters())
    with torch.no_grad():
        for parameter in named.values():
            parameter.zero_()
        for name, value in values.items():
            parameter = named[name.replace("__", ".")]
            parameter.copy_(torch.as_tensor(value, dtype=torch.float32).reshape(parameter.shape))
    return network.eval()


def random_weights(study: Study, seed: int = 5) -> nn.Module:
    return build_network(study, seed).eval()


def save(folder: Path, study: Study, network: nn.Module) -> Path:
    """Leave a model as a study leaves it."""
    folder.mkdir(exist_ok=True)
    (folder / MODEL).write_bytes(safetensors_of(network, {"study_digest": study.digest()}))
    (folder / DESCRIPTION).write_bytes(json_bytes(description(study, {"mode": "none"})))
    return folder


def splice_study(length: int = 8) -> Study:
    letters = {"kind": "letters", "alphabet": "ACGT", "length": length}
    return study_of(
        "sequence", {"s": letters}, {"name": "cnn", "channels": [1], "hidden": 1, "embedding": 1}
    )


def letter_finder(letter: int, place: int, length: int = 8) -> nn.Module:
    """A network of log-odds 4 where ``letter`` (1: A) stands at ``place`` (from 0), else 0."""
    embedding = torch.zeros(5, 1)
    embedding[letter] = 1
    halves = torch.zeros(length // 2)
    halves[place // 2] = 4
    return weights(
        random_weights(splice_study(length)),
        embedding__weight=embedding,
        blocks__0__weight=[0.0, 1.0, 0.0],
        hidden__weight=halves,
        out__weight=[1.0],
    )
