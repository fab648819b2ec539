"""A small study of every task, and records as its reader makes them; it asserts nothing."""

import copy
from typing import Any

import numpy as np
import torch

from shared_models.alarms import Alarms
from shared_models.inputs import InputSpec, input_spec
from shared_models.label import Label
from shared_models.mask import Mask
from shared_models.panel import Panel
from shared_models.study import Study, parse_study
from shared_models.survival import Lifetime
from shared_models.target import Answers, Target
from shared_models.tasks import target_of

FLAG: dict[str, Any] = {"kind": "category", "values": ["no", "yes"]}
AGE: dict[str, Any] = {"kind": "number", "low": 0, "high": 100}
STAY: dict[str, Any] = {
    "kind": "series",
    "steps": 6,
    "missing": "forward_indicator",
    "variables": {"pulse": {"low": 0, "high": 200}, "pain": {"low": 0, "high": 10}},
}
FILM: dict[str, Any] = {"kind": "image", "height": 8, "width": 8}
DAYS: dict[str, Any] = {"kind": "number", "low": 0, "high": 10, "unit": "days"}
SEX: dict[str, Any] = {"kind": "category", "values": ["female", "male"], "input": False}
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [4]},
    "cnn": {"channels": [2, 3], "hidden": 4},
    **{name: {"hidden": [4]} for name in ("lstm", "gru", "rnn")},
    "attention": {"width": 4, "heads": 2, "layers": 1, "feedforward": 6},
    "autoencoder": {"hidden": [4], "code": 1},
    "unet": {"channels": [2, 4]},
    "fusion": {"width": 3, "hidden": [4], "recurrent": [2], "channels": [2]},
}
MODELS = {name: {"name": name, **section} for name, section in SMALL.items()}
# Of each task: its columns without the target "ill", its network, and what else its study says.
TASK_STUDIES: dict[str, dict[str, Any]] = {
    "tabular": {"columns": {"age": AGE, "dose": AGE}, "model": MODELS["mlp"]},
    "image": {
        "columns": {"film": FILM},
        "model": MODELS["cnn"],
    },
    "series": {"columns": {"stay": STAY, "age": AGE}, "model": MODELS["lstm"]},
    "sequence": {
        "columns": {"dna": {"kind": "letters", "alphabet": "ACGT", "length": 12}},
        "model": MODELS["attention"],
    },
    "molecule": {
        "columns": {"smiles": {"kind": "molecule", "buckets": 16}, "dead": FLAG},
        "target": ["ill", "dead"],
        "model": MODELS["mlp"],
    },
    "anomaly": {
        "columns": {"age": AGE, "dose": AGE},
        "positive": ["yes"],
        "model": MODELS["autoencoder"],
    },
    "warning": {
        "columns": {"stay": STAY, "days": {**DAYS, "unit": "hours"}},
        "target": ["ill", "days"],
        "model": MODELS["lstm"],
        "warning": {"hours": [2, 4], "at": 4, "false_alarms": 0.3},
    },
    "fusion": {
        "columns": {"age": AGE, "stay": STAY, "film": {**FILM, "missing": "constant"}},
        "model": MODELS["fusion"],
    },
    "survival": {
        "columns": {"days": DAYS, "age": AGE, "dose": AGE},
        "target": ["days", "ill"],
        "model": MODELS["mlp"],
        "survival": {"edges": [2, 5, 8], "horizons": [2, 8]},
    },
    "segmentation": {
        "columns": {"film": FILM, "where": {"kind": "mask", "values": ["none", "cell", "wall"]}},
        "target": "where",
        "model": MODELS["unet"],
    },
}
VOLUME: dict[str, Any] = {**FILM, "depth": 4, "height": 4, "width": 4}
PRIVATE: dict[str, Any] = {
    "mode": "distributed",
    "epsilon": 4.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "expected_batch": 16,
    "records_max": 100,
}


def task_study(task: str, private: bool = False, **changes: Any) -> Study:
    """The study of a task; ``changes`` take the place of sections: model={"name": "mlp"}."""
    own = copy.deepcopy(TASK_STUDIES[task])
    columns = {**own.pop("columns"), "sex": SEX}
    if task != "segmentation":
        columns["ill"] = FLAG
    data = {"target": own.pop("target", "ill"), "columns": columns}
    if "positive" in own:
        data["positive"] = own.pop("positive")
    return parse_study(
        {
            "name": "small",
            "task": task,
            "rounds": 8,
            "data": data,
            "training": {"learning_rate": 0.1},
            "privacy": PRIVATE if private else {"mode": "none"},
            **own,
            **changes,
        }
    )


def made_inputs(spec: InputSpec, count: int, seed: int = 0) -> torch.Tensor:
    """Inputs of so many records: within [-1, 1], or ids of which the last half may be padding."""
    draw = torch.Generator().manual_seed(seed)
    if spec.kind == "tokens":
        ids = torch.randint(1, spec.vocabulary, (count, *spec.shape), generator=draw)
        lengths = torch.randint(spec.shape[0] // 2, spec.shape[0] + 1, (count, 1), generator=draw)
        return ids * (torch.arange(spec.shape[0]) < lengths)
    inputs = torch.rand((count, *spec.shape), generator=draw) * 2 - 1
    if spec.kind == "parts":  # the marks of which parts are there
        marks = len(spec.parts)
        inputs[:, -marks:] = (inputs[:, -marks:] > 0).float()
    return inputs


def made_targets(target: Target, count: int, seed: int = 0) -> torch.Tensor:
    """Targets of so many records, of every class and kind."""
    draw = torch.Generator().manual_seed(seed)
    flags = torch.randint(0, 2, (count,), generator=draw)
    times = torch.rand((count,), generator=draw) * 9 + 0.5
    match target:
        case Panel():
            return torch.randint(-1, 2, (count, len(target.names)), generator=draw)
        case Alarms():
            return torch.stack((flags.float(), times), dim=1)
        case Lifetime():
            return torch.stack((times, flags.float()), dim=1)
        case Mask():
            shape = (count, *target.sizes)
            return torch.randint(0, len(target.names) + 1, shape, generator=draw)
        case Label(kind="regression"):
            low, high = target.bounds
            return low + (high - low) * torch.rand((count,), generator=draw)
        case Label():
            return torch.randint(0, len(target.classes), (count,), generator=draw)
    return flags


def made_answers(target: Target, count: int, seed: int = 0) -> Answers:
    """What an untrained network might say of so many records."""
    draw = torch.Generator().manual_seed(seed)
    sizes = target.sizes if isinstance(target, Mask) else ()
    outputs = torch.randn((count, target.outputs, *sizes), generator=draw)
    return target.predictions(outputs.abs())  # errors of copies are not negative


def made_records(study: Study, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of so many records."""
    return made_inputs(input_spec(study), count, seed), made_targets(target_of(study), count, seed)


def better_answers(target: Target, targets: torch.Tensor, share: float, seed: int = 0) -> Answers:
    """Answers that are right by a share, 0 to 1, and else an untrained network's."""
    truth, made = targets.numpy(), made_answers(target, len(targets), seed)
    match target:
        case Panel():
            right = np.clip(truth, 0, 1)
        case Alarms():
            right = np.repeat(truth[:, :1], target.steps, axis=1)
        case Lifetime(cox=True):
            right = truth[:, 1:] * (1 - truth[:, :1] / 10)
        case Lifetime():
            survived = (truth[:, :1] > np.array(target.edges)) | (truth[:, 1:] == 0)
            right = np.where(survived, 1.0, truth[:, :1] / 11)  # who ends later, is less at risk
        case Mask():
            right = np.stack([truth == k for k in range(1, len(target.names) + 1)], axis=1)
        case Label(kind="regression"):
            right = truth
        case Label():
            right = np.eye(len(target.classes))[truth]
        case _:
            right = truth[:, None]
    answers: Answers = share * right.astype(np.float64) + (1 - share) * made
    return answers
