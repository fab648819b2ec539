"""What evaluations tell, with noise and without, and the figure that stops a study by it."""

from typing import Any

import pytest

from privacy.cell_noise import fit_cells
from privacy.errors import StudyError
from shared_models.label import Label
from shared_models.study import Study, parse_study, stopping_figure
from shared_models.tasks import TASKS, target_of
from tests.shared_models.studies import (
    TASK_STUDIES,
    better_answers,
    made_targets,
    task_study,
)

GRADES = {"age": {"kind": "number", "low": 0, "high": 1}}
TARGETS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in TASKS},
    "cox": ("survival", {"survival": {"edges": [5], "horizons": [5], "loss": "cox"}}),
    "number": ("tabular", {"data": {"target": "y", "columns": {**GRADES, "y": GRADES["age"]}}}),
    "classes": (
        "tabular",
        {
            "data": {
                "target": "y",
                "columns": {**GRADES, "y": {"kind": "category", "values": list("abc")}},
            }
        },
    ),
}
PRIVATELY = [name for name in TARGETS if name != "cox"]  # which privacy refuses


def study(name: str, private: bool = False, **changes: Any) -> Study:
    task, own = TARGETS[name]
    return task_study(task, private, **{**own, **changes})


def with_value(figures: Any) -> set[str]:
    return {name for name, figure in figures.items() if figure.value is not None}


def test_every_task_has_a_small_study() -> None:
    assert set(TASK_STUDIES) == set(TASKS)


@pytest.mark.parametrize("name", TARGETS)
def test_an_exact_evaluation_tells_what_the_target_says(name: str) -> None:
    target = target_of(study(name))
    truth = made_targets(target, 200)
    cells = target.count_cells(truth.numpy(), better_answers(target, truth, 0.3))
    told = target.told(exact=True)
    assert with_value(target.figures_from_cells(cells)) == set(told) <= set(target.metrics)


@pytest.mark.parametrize("name", PRIVATELY)
def test_a_noised_evaluation_tells_what_the_target_says(name: str) -> None:
    target = target_of(study(name, private=True))
    noise = fit_cells(1e-4, target.cell_sensitivity, len(target.noised_cell_names()), 5, 1)
    truth = made_targets(target, 400)
    answers = better_answers(target, truth, 0.3)
    cells = target.count_noised_cells(truth.numpy(), answers, None, noise.step)
    found = target.figures_from_noised_cells(cells, noise, 5)
    assert with_value(found) == set(target.told(exact=False)) <= set(target.metrics)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_can_stop_a_study(name: str) -> None:
    """The figure is the loss where it is told, else the main one."""
    exact = study(name, evaluation={"patience": 2})
    assert stopping_figure(exact) == ("c_index" if name == "cox" else "loss")
    if name in PRIVATELY:
        noised = study(name, private=True, evaluation={"patience": 2})
        target = target_of(noised)
        assert stopping_figure(noised) == (
            "loss" if "loss" in target.told(exact=False) else target.headline
        )


def test_a_study_that_could_never_stop_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Label, "told", lambda self, *, exact: self.metrics if exact else ("accuracy",)
    )
    asked = task_study("tabular", private=True).document()
    asked["evaluation"] = {"patience": 2}
    with pytest.raises(StudyError, match=r"evaluation\.patience: expected .* a loss or auc, "):
        parse_study(asked)
    asked["evaluation"]["release"] = "exact"
    assert parse_study(asked).evaluation.patience == 2
