"""Facts about the registry of networks."""

import pytest
import torch
from torch import nn

from privacy.errors import StudyError
from shared_models.registry import NETWORKS, build_network
from shared_models.study import Study, parse_study
from shared_models.tasks import TASKS

COLUMNS: dict[str, dict[str, object]] = {
    "tabular": {"kind": "number", "low": 0.0, "high": 1.0},
    "image": {"kind": "image", "height": 8, "width": 8},
    "series": {"kind": "series", "steps": 6, "variables": {"hr": {"low": 0.0, "high": 300.0}}},
    "sequence": {"kind": "letters", "alphabet": "ACGT", "length": 10},
}
# Tasks whose target is a label; tests of the other targets build their networks.
PAIRS = [(task, name) for task in COLUMNS for name in TASKS[task].networks]
NONSENSE = [(task, name) for task in COLUMNS for name in NETWORKS if (task, name) not in PAIRS]


def study(task: str, network: str, classes: int = 2, **model: object) -> Study:
    values = [f"c{i}" for i in range(classes)]
    return parse_study(
        {
            "name": "t",
            "task": task,
            "rounds": 1,
            "data": {
                "target": "y",
                "columns": {"x": COLUMNS[task], "y": {"kind": "category", "values": values}},
            },
            "model": {"name": network, **model},
            "training": {"learning_rate": 0.1, "local_steps": 1},
            "privacy": {"mode": "none"},
        }
    )


def records(task: str) -> torch.Tensor:
    shapes = {"tabular": (3, 1), "image": (3, 1, 8, 8), "series": (3, 6, 1)}
    if task == "sequence":
        return torch.ones(3, 10, dtype=torch.int64)
    return torch.zeros(shapes[task])


@pytest.mark.parametrize(("task", "name"), PAIRS)
@pytest.mark.parametrize(("classes", "width"), [(2, 1), (5, 5)])
def test_every_network_that_a_task_names_does_it(
    task: str, name: str, classes: int, width: int
) -> None:
    network = build_network(study(task, name, classes))
    assert network(records(task)).shape == (3, width)


@pytest.mark.parametrize(("task", "name"), NONSENSE)
def test_a_network_that_cannot_do_the_task_is_refused(task: str, name: str) -> None:
    with pytest.raises(StudyError, match=rf"model\.name: task '{task}' expected .*'{name}'"):
        build_network(study(task, name))


def test_a_two_class_target_may_have_two_logits() -> None:
    assert build_network(study("tabular", "mlp", outputs=2))(records("tabular")).shape == (3, 2)


@pytest.mark.parametrize(("task", "name"), PAIRS)
def test_the_same_seed_gives_the_same_weights(task: str, name: str) -> None:
    first, second = (build_network(study(task, name), seed=5) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_seed_gives_other_weights() -> None:
    first, second = (build_network(study("tabular", "mlp"), seed) for seed in (0, 1))
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_the_weights_do_not_follow_the_callers_random_state() -> None:
    torch.manual_seed(1)
    first = build_network(study("tabular", "mlp"))
    torch.manual_seed(2)
    second = build_network(study("tabular", "mlp"))
    assert torch.equal(next(first.parameters()), next(second.parameters()))


def test_the_callers_random_state_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    build_network(study("tabular", "mlp"), seed=9)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("task", "name"), PAIRS)
def test_no_network_mixes_the_records_of_a_batch(task: str, name: str) -> None:
    modules = list(build_network(study(task, name)).modules())
    mixing = nn.modules.batchnorm._NormBase
    assert not any(isinstance(module, mixing) for module in modules)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_is_used_by_a_task(name: str) -> None:
    assert any(name in task.networks for task in TASKS.values())
