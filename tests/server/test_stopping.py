"""Early stopping by every task's own figure, as the server decides it from what was released."""

import logging
from typing import Any

import numpy as np
import pytest

import server.coordinator
import server.rounds
import simulations.run
from server.checkpoint import Checkpoint
from server.rounds import Exchange, Opened, Order, run_rounds
from shared_models.release import cell_noise
from shared_models.strategies import first_state
from shared_models.study import Study
from shared_models.tasks import TASKS, target_of
from tests.shared_models.studies import PRIVATE, better_answers, made_targets, task_study

SITES = ("ash", "elm", "oak")
COX = {"edges": [5], "horizons": [5], "loss": "cox"}
RISING = [0.0, 0.1, 0.2, 0.3, 0.4]  # how right the answers are, by round
PEAKED = [0.1, 0.9, 0.3, 0.2, 0.99]
KINDS = {type(target_of(task_study(task))): task for task in reversed(TASKS)}  # of target
RUNS = [
    *((task, release, {}) for task in TASKS for release in ("none", "exact")),
    *((task, "noised", {}) for task in KINDS.values()),
    ("survival", "none", {"survival": COX}),
]


class Sums:
    """Sums of a study whose model is as right in each round as ``shares`` has it."""

    def __init__(self, study: Study, shares: list[float], count: int) -> None:
        self.study, self.shares = study, shares
        self.target, self.noise = target_of(study), cell_noise(study, len(SITES))
        self.truth = made_targets(self.target, count)

    def __call__(self, exchange: Exchange, order: Order) -> Opened:
        if order.kind == "train":
            lanes = 3 if self.study.privacy.mode == "none" else 0
            return Opened(np.zeros(3, np.int64), np.zeros(lanes, np.int64), SITES)
        answers = better_answers(self.target, self.truth, self.shares[order.round - 1])
        truth = self.truth.numpy()
        if self.noise is None:
            return Opened(np.zeros(0, np.int64), self.target.count_cells(truth, answers), SITES)
        # Each a thousand times, so that the noise, which nobody adds here, is not felt.
        cells = self.target.count_noised_cells(truth, answers, None, self.noise.step)
        return Opened(np.zeros(0, np.int64), 1000 * cells, SITES)

    def finish(self, exchange: Exchange, sites: tuple[str, ...], state: bytes) -> None:
        del exchange, sites, state


def stopped_after(study: Study, shares: list[float], count: int = 60) -> tuple[int, bool]:
    start = Checkpoint(study.digest(), first_state(study.aggregation, np.zeros(3, np.float32)), ())
    sums = Sums(study, shares, count)
    asked = (lambda *_: iter(()), sums, lambda _: SITES, len(SITES), lambda _: None)
    *_, last = run_rounds(study, start, *asked)
    return last.state.round, last.stopped


def study(task: str, release: str, **changes: Any) -> Study:
    told = {} if release == "none" else {"privacy": PRIVATE}
    evaluation = {"every": 1, "patience": 2}
    evaluation |= {} if release == "none" else {"release": release}
    return task_study(task, **told, rounds=5, evaluation=evaluation, **changes)


@pytest.mark.parametrize(("task", "release", "changes"), RUNS)
def test_a_study_of_every_task_stops_when_its_figure_is_no_longer_better(
    task: str, release: str, changes: dict[str, Any]
) -> None:
    asked = study(task, release, **changes)
    assert stopped_after(asked, PEAKED) == (4, True)
    assert stopped_after(asked, RISING) == (5, False)


def test_a_figure_without_a_value_is_not_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fedward.server"):
        assert stopped_after(study("survival", "none", survival=COX), PEAKED, 1) == (5, False)
    assert "the evaluation tells no c_index: early stopping does not count it" in caplog.messages


def test_simulation_and_deployment_decide_by_the_same_code() -> None:
    loops = {server.rounds.run_rounds, server.coordinator.run_rounds, simulations.run.run_rounds}
    assert len(loops) == 1
