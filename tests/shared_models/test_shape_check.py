"""Every network refuses records of another shape by name, and is else as it was."""

import copy
import pickle
from typing import Any

import pytest
import torch

from shared_models.inputs import input_spec
from shared_models.registry import build_network
from shared_models.study import Study
from shared_models.tasks import TASKS
from tests.shared_models.studies import FILM, MODELS, STAY, VOLUME, made_inputs, task_study

MASK: dict[str, Any] = {"kind": "mask", "values": ["none", "cell"]}
SICK: dict[str, Any] = {"kind": "category", "values": ["no", "yes"]}
# What else a task's network may be given.
OTHERS: dict[tuple[str, str], dict[str, Any]] = {
    ("segmentation", "unet"): {"target": "where", "columns": {"film": VOLUME, "where": MASK}},
    ("anomaly", "autoencoder"): {
        "target": "ill",
        "positive": ["yes"],
        "columns": {"film": FILM, "ill": SICK},
    },
    ("sequence", "cnn"): {
        "target": "ill",
        "columns": {"text": {"kind": "words", "buckets": 16, "length": 12}, "ill": SICK},
    },
}
READS: list[tuple[str, str, dict[str, Any]]] = [
    *((task, name, {}) for task in TASKS for name in TASKS[task].networks),
    *((task, name, {"data": data}) for (task, name), data in OTHERS.items()),
    (
        "anomaly",
        "autoencoder",
        {"data": {**OTHERS["anomaly", "autoencoder"], "columns": {"stay": STAY, "ill": SICK}}},
    ),
]


def study(task: str, name: str, changes: dict[str, Any]) -> Study:
    return task_study(task, model=MODELS[name], **changes)


def others(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of batches that are near (B, *shape): longer, shorter, doubled, without a batch."""
    found = [shape, (3, *shape, 1), (3, 2, *shape), (3, *(2 * side for side in shape)), (3,), ()]
    for place, side in enumerate(shape):
        rest = (shape[:place], shape[place + 1 :])
        found += [(3, *rest[0], size, *rest[1]) for size in (side - 1, side + 1, 2 * side)]
    return [one for one in found if one[1:] != shape]


@pytest.mark.parametrize(("task", "name", "changes"), READS)
def test_records_of_another_shape_are_refused_by_name(
    task: str, name: str, changes: dict[str, Any]
) -> None:
    asked = study(task, name, changes)
    network, x = build_network(asked), made_inputs(input_spec(asked), 3)
    assert len(network(x)) == 3
    wanted = ", ".join(map(str, ("B", *x.shape[1:])))
    for shape in others(tuple(x.shape[1:])):
        with pytest.raises(ValueError, match="expected") as raised:
            network(torch.zeros(shape, dtype=x.dtype))
        said = f'expected ({wanted}), got {shape}: the network "{name}" of study "small" reads '
        assert str(raised.value).startswith(said)


@pytest.mark.parametrize(
    ("task", "changes", "reads"),
    [
        ("tabular", {}, "records of 2 numbers"),
        ("image", {}, "pictures of 8 x 8 with 1 channel"),
        ("segmentation", OTHERS["segmentation", "unet"], "volumes of 4 x 4 x 4 with 1 channel"),
        ("series", {}, "series of 6 steps with 5 numbers each"),
        ("sequence", {}, "sequences of 12 token ids"),
        ("fusion", {}, "records of 92 numbers: static, series, image, then a mark for each"),
    ],
)
def test_the_refusal_says_what_the_network_reads(
    task: str, changes: dict[str, Any], reads: str
) -> None:
    network = build_network(task_study(task, **({"data": changes} if changes else {})))
    with pytest.raises(ValueError, match=f'of study "small" reads {reads}$'):
        network(torch.zeros(1, 1))


def test_a_copy_refuses_too_and_nothing_is_kept_beside_the_weights() -> None:
    asked = task_study("image")
    network = build_network(asked)
    bare = type(network)((1, 8, 8), 1, channels=(2, 3), hidden=4)  # type: ignore[call-arg]
    assert list(network.state_dict()) == list(bare.state_dict())
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        x = made_inputs(input_spec(asked), 2)
        assert torch.equal(other(x), network(x))
        with pytest.raises(ValueError, match="reads pictures of 8 x 8"):
            other(x[:, :, 1:])


def test_a_functional_call_refuses_too() -> None:
    asked = task_study("series")
    network, x = build_network(asked), made_inputs(input_spec(asked), 2)
    values = dict(network.named_parameters())
    assert torch.equal(torch.func.functional_call(network, values, (x,)), network(x))
    with pytest.raises(ValueError, match="reads series of 6 steps"):
        torch.func.functional_call(network, values, (x[:, 1:],))
