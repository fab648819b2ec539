"""Facts about tasks: losses and predictions."""

import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from shared_models.cells import Kind
from shared_models.contract import AnyColumn, Data
from shared_models.label import UNSCALED, Label, target_range
from shared_models.registry import build_network
from shared_models.study import load_study
from shared_models.tasks import TASKS, Task, TaskName

EXAMPLES = Path(__file__).parents[2] / "examples"

LOGIT = st.floats(-20, 20, width=32)


def target(kind: Kind, bounds: tuple[float, float] = UNSCALED) -> Label:
    classes = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "regression": ()}[kind]
    return Label(kind, classes, max(1, len(classes)), bounds)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(LOGIT, st.integers(0, 1)), min_size=1, max_size=6))
def test_binary_loss_is_minus_the_log_of_the_predicted_probability(
    rows: list[tuple[float, int]],
) -> None:
    outputs = torch.tensor([[z] for z, _ in rows])
    targets = torch.tensor([y for _, y in rows])
    expected = [math.log1p(math.exp(-z if y else z)) for z, y in rows]
    # rtol 1e-5, atol 1e-6: float32 of a loss up to 20
    np.testing.assert_allclose(
        target("binary").losses(outputs, targets).numpy(), expected, rtol=1e-5, atol=1e-6
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(LOGIT, LOGIT, LOGIT, st.integers(0, 2)), min_size=1, max_size=6))
def test_many_class_loss_agrees_with_the_predictions(
    rows: list[tuple[float, float, float, int]],
) -> None:
    outputs = torch.tensor([row[:3] for row in rows])
    targets = torch.tensor([row[3] for row in rows])
    chosen = target("multiclass").predictions(outputs)[np.arange(len(rows)), targets.numpy()]
    np.testing.assert_allclose(
        target("multiclass").losses(outputs, targets).numpy(), -np.log(chosen), rtol=1e-4, atol=1e-5
    )


def test_one_logit_and_two_logits_say_the_same() -> None:
    one, two = torch.tensor([[1.5], [-3.0]]), torch.tensor([[0.0, 1.5], [2.0, -1.0]])
    targets = torch.tensor([1, 1])
    np.testing.assert_allclose(
        target("binary").predictions(one), target("binary").predictions(two), rtol=1e-6
    )
    torch.testing.assert_close(
        target("binary").losses(one, targets), target("binary").losses(two, targets)
    )


@settings(max_examples=50, deadline=None)
@given(logits=st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=5))
def test_binary_predictions_are_two_probabilities(logits: list[float]) -> None:
    rows = target("binary").predictions(torch.tensor([[z] for z in logits]))
    assert rows.shape == (len(logits), 2)
    assert rows.dtype == np.float64
    assert ((rows >= 0) & (rows <= 1)).all()
    np.testing.assert_allclose(rows.sum(axis=1), 1.0, rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    st.floats(-1e3, 1e3, width=32),
    st.floats(1.0, 1e3, width=32),
    st.floats(0, 1, width=32),
    st.floats(-2, 2, width=32),
)
def test_number_loss_is_the_squared_error_in_half_ranges(
    low: float, span: float, share: float, output: float
) -> None:
    bounds = (low, low + span)
    outputs, number = torch.tensor([[output]]), low + share * span
    predicted = target("regression", bounds).predictions(outputs)
    assert predicted.shape == (1,)
    loss = target("regression", bounds).losses(outputs, torch.tensor([number]))
    expected = ((predicted[0] - number) / (span / 2)) ** 2
    # 1e-3: a float32 target of a thousand, less its low end, over a span of one
    assert loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_a_perfect_output_has_no_loss_at_either_end_of_the_range() -> None:
    ends = torch.tensor([[-1.0], [1.0]])
    assert target("regression", (18, 100)).losses(ends, torch.tensor([18.0, 100.0])).tolist() == [
        0.0,
        0.0,
    ]
    assert target("regression", (18, 100)).predictions(ends).tolist() == [18.0, 100.0]


@pytest.mark.parametrize(("kind", "width"), [("binary", 1), ("multiclass", 4), ("regression", 1)])
def test_a_batch_without_records_has_no_losses(kind: Kind, width: int) -> None:
    targets = torch.zeros(0, dtype=torch.float32 if kind == "regression" else torch.int64)
    assert target(kind).losses(torch.zeros(0, width), targets).shape == (0,)


def test_predictions_keep_no_gradient() -> None:
    outputs = torch.ones(1, 1, requires_grad=True)
    assert isinstance(target("binary").predictions(outputs), np.ndarray)


def test_the_range_of_a_number_target_is_the_studys() -> None:
    column = {"kind": "number", "low": 40.0, "high": 400.0}
    data = Data.model_validate({"target": "y", "columns": {"y": column}})
    assert target_range(data) == (40.0, 400.0)


def test_a_study_accepts_the_tasks_of_the_list_and_no_other() -> None:
    for name in TASKS:
        assert TypeAdapter(TaskName).validate_python(name) == name
    with pytest.raises(ValueError, match=r"expected 'tabular', .* or '\w+', found 'no-task'"):
        TypeAdapter(TaskName).validate_python("no-task")


def test_the_column_kinds_of_tasks_exist() -> None:
    union = get_args(AnyColumn)[0]
    kinds = {get_args(column.model_fields["kind"].annotation)[0] for column in get_args(union)}
    assert all(set(task.columns) <= kinds for task in TASKS.values())


@pytest.mark.parametrize(("task", "example"), [(t, e) for t in TASKS.values() for e in t.examples])
def test_every_example_of_a_task_is_a_study_of_it(task: Task, example: str) -> None:
    study = load_study(EXAMPLES / example / "study.toml")
    assert study.task == task.name
    build_network(study)


@pytest.mark.parametrize("example", sorted(path.parent.name for path in EXAMPLES.glob("*/*.toml")))
def test_every_example_can_run_without_privacy(example: str) -> None:
    study = load_study(EXAMPLES / example / "study.toml", ["privacy.mode=none"])
    assert study.privacy.mode == "none"


def test_every_example_belongs_to_a_task() -> None:
    named = {example for task in TASKS.values() for example in task.examples}
    assert named == {path.parent.name for path in EXAMPLES.glob("*/study.toml")}
