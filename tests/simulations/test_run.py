"""Whole studies on made-up records: one seed gives the same bytes, every option does its work."""

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.training import Trainer
from privacy.ledger import Ledger
from shared_models.cells import count_cells
from shared_models.label import label
from shared_models.metrics import METRICS, auc_binning_error
from shared_models.registry import build_network
from shared_models.sections import SITES_MIN
from shared_models.strategies import first_state
from shared_models.study import Study
from shared_models.weights import vector_of
from simulations.outcome import Outcome
from simulations.pool import gather, pool
from simulations.run import Progress, simulate
from simulations.seeds import seeded_integer, seeded_key

STRATEGIES = ("fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "scaffold")
Run = Callable[..., Outcome]


@pytest.fixture
def run(toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path) -> Run:
    """run(private=False, workers=1, data=None, **changes) in a new folder each time."""
    count = 0

    def start(
        private: bool = False, workers: int = 1, data: Path | None = None, **changes: object
    ) -> Outcome:
        nonlocal count
        count += 1
        study = toy_study(private, **changes)
        return simulate(study, data or toy_csv, tmp_path / f"run-{count}", workers=workers)

    return start


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# The same bytes


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "scaffold"])
def test_any_number_of_workers_gives_the_same_model(run: Run, private: bool, strategy: str) -> None:
    changes = {"aggregation.strategy": strategy, "simulation.sites": 5}
    models = {run(private, workers, **changes).model for workers in (1, 2, 3)}
    assert len(models) == 1


def test_any_number_of_workers_gives_the_same_model_with_cohorts(run: Run) -> None:
    changes = {"aggregation.cohort": 3, "simulation.sites": 7}
    assert run(**changes).model == run(workers=3, **changes).model


@pytest.mark.parametrize("private", [False, True])
def test_another_seed_gives_another_model(run: Run, private: bool) -> None:
    models = {run(private, **{"simulation.seed": seed}).model for seed in (1, 2, 3)}
    assert len(models) == 3


MASKED = {
    "local": (True, {}),
    "scaffold": (False, {"aggregation.strategy": "scaffold"}),
    "cohorts": (False, {"aggregation.cohort": 4, "simulation.sites": 6}),
    "records": (False, {"aggregation.weighting": "records"}),
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("case", list(MASKED))
def test_masked_and_plain_sums_give_the_same_model(run: Run, case: str, workers: int) -> None:
    private, changes = MASKED[case]
    plain = run(private, **changes, **{"aggregation.masking": "none"})
    masked = run(private, workers, **changes, **{"aggregation.masking": "fsa1"})
    # The study differs in one key, so the digest in the file's metadata does: compare the weights.
    assert masked.checkpoint.state.model.tobytes() == plain.checkpoint.state.model.tobytes()
    assert masked.checkpoint.history == plain.checkpoint.history
    assert masked.checkpoint.spent_attempts == 0


# Strategies, cohorts, weights


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs(run: Run, strategy: str, private: bool) -> None:
    outcome = run(private, **{"aggregation.strategy": strategy})
    assert outcome.checkpoint.state.round == 4
    assert np.isfinite(outcome.checkpoint.state.model).all()


def test_the_strategies_are_not_one_and_the_same(run: Run) -> None:
    models = {
        run(
            **{"aggregation.strategy": strategy, "aggregation.proximal": 1.0}
        ).checkpoint.state.model.tobytes()
        for strategy in STRATEGIES
    }
    assert len(models) == len(STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_learns(run: Run, strategy: str) -> None:
    changes: dict[str, object] = {"aggregation.strategy": strategy, "rounds": 20}
    if strategy in {"fedadam", "fedyogi", "fedadagrad"}:
        changes["aggregation.server_learning_rate"] = 0.1
    auc = run(**changes).figures()["auc"].value
    assert auc is not None
    assert auc > 0.85  # the records are easy: a guess is at 0.5, deviation 0.12 with 23 records


def test_a_cohort_of_three_is_asked_each_round(run: Run, tmp_path: Path) -> None:
    outcome = run(**{"aggregation.cohort": 3, "simulation.sites": 8})
    assert [row["sites"] for row in outcome.checkpoint.history] == [3, 3, 3, 3]
    assert len(outcome.sites) == 8


def test_sites_that_no_cohort_asked_have_spent_nothing(run: Run, tmp_path: Path) -> None:
    outcome = run(True, **{"aggregation.cohort": 3, "simulation.sites": 8, "rounds": 1})
    assert outcome.spent is not None
    assert outcome.spent.epsilon > 0
    assert len(list((tmp_path / "run-1" / "sites").glob("*/ledger.db"))) == 3


def test_weighting_by_records_is_the_weighted_mean(
    run: Run, toy_study: Callable[..., Study], toy_csv: Path
) -> None:
    changes = {
        "aggregation.weighting": "records",
        "simulation.partition": "quantity:0.5",
        "rounds": 1,
        "training.learning_rate": 0.05,  # no change near value_bound, where it would be clamped
    }
    outcome = run(**changes)
    study = outcome.study
    records = pool(study, gather(study, toy_csv))
    first = vector_of(build_network(study, seeded_integer(study.simulation.seed, "model")))
    state, trainer = first_state(study.aggregation, first), Trainer(study, None)
    total, count = np.zeros(len(first)), 0
    for index, name in enumerate(records.sites):
        own = records.split(index).train

        def keys(purpose: str, step: int, name: str = name) -> bytes:
            return seeded_key(study.simulation.seed, name, purpose, 1, step)

        change = trainer.train(state, own, keys).change
        total += len(own) * change.astype(np.float64)
        count += len(own)
    assert len({len(records.split(index).train) for index in range(3)}) > 1  # else it proves less
    # A site rounds to one of 2^31 / 3 steps and its weight is records / 2^16, in float32.
    rounding = 3 * (3 / 2**31) / (count / 2**16) + 2**-23
    assert outcome.checkpoint.state.model == pytest.approx(first + total / count, abs=rounding)


def test_public_weights_decide_what_a_site_counts(run: Run) -> None:
    def model(weights: dict[str, float]) -> np.ndarray:
        changes = {"aggregation.weighting": "public", "aggregation.weights": weights, "rounds": 1}
        return run(**changes).checkpoint.state.model

    names = [f"site-{number:03d}" for number in (1, 2, 3)]
    lone = [model({name: 1.0}) for name in names]
    # 3 sites, 2^31 / 3 steps each: a sum is off by at most 3 steps, and the mean of sums as much.
    mean = (lone[0] + lone[1] + 2 * lone[2]) / 4
    weighted = model({names[0]: 1.0, names[1]: 1.0, names[2]: 2.0})
    assert weighted == pytest.approx(mean, abs=2**-22)
    assert np.abs(lone[0] - lone[1]).max() > 1e-3


def test_equal_weights_are_those_of_no_weights(run: Run) -> None:
    names = [f"site-{number:03d}" for number in (1, 2, 3)]
    weights = {"aggregation.weighting": "public", "aggregation.weights": dict.fromkeys(names, 2.5)}
    one, other = run().checkpoint.state.model, run(**weights).checkpoint.state.model
    assert one.tobytes() == other.tobytes()


# Folds, early stopping, evaluation


def test_in_folds_every_record_is_predicted_once(run: Run, tmp_path: Path) -> None:
    outcome = run(**{"evaluation.folds": 3})
    assert len(outcome.targets) == len(outcome.predictions) == len(outcome.site_index) == 120
    assert np.bincount(outcome.site_index).tolist() == [40, 40, 40]
    assert outcome.figures()["accuracy"].n == 120


def test_in_folds_the_targets_are_all_records(run: Run, toy_csv: Path) -> None:
    outcome = run(**{"evaluation.folds": 3})
    ill = sum(line.endswith("yes") for line in toy_csv.read_text().splitlines())
    assert int(outcome.targets.sum()) == ill


def test_folds_leave_one_metrics_file_with_their_mean(run: Run, tmp_path: Path) -> None:
    run(**{"evaluation.folds": 3})
    folder = tmp_path / "run-1"
    folds = [rows(folder / f"fold-{number}") for number in (1, 2, 3)]
    together = rows(folder)
    assert [row["round"] for row in together] == ["1", "2", "3", "4"]
    mean = np.mean([float(fold[-1]["accuracy"]) for fold in folds])
    assert float(together[-1]["accuracy"]) == pytest.approx(mean)


def test_early_stopping_ends_the_study_when_the_loss_no_longer_falls(run: Run) -> None:
    # A step so large that the loss rises: it stops after the second evaluation.
    changes = {
        "rounds": 50,
        "training.learning_rate": 500.0,
        "aggregation.value_bound": 1e4,
        "evaluation.every": 1,
        "evaluation.patience": 3,
    }
    outcome = run(**changes)
    assert outcome.checkpoint.stopped
    assert outcome.checkpoint.state.round < 50
    losses = [row["released"]["loss"]["value"] for row in outcome.checkpoint.history]  # type: ignore[index]
    assert min(losses[-3:]) >= min(losses[:-3])


def test_a_falling_loss_is_not_stopped(run: Run) -> None:
    changes = {"rounds": 12, "training.learning_rate": 0.05, "evaluation.every": 1}
    outcome = run(**changes, **{"evaluation.patience": 3})
    assert not outcome.checkpoint.stopped
    assert outcome.checkpoint.state.round == 12


def test_the_released_figures_are_the_exact_ones_but_for_binning(run: Run) -> None:
    outcome = run(rounds=6)
    exact, released = outcome.figures(), outcome.results()["released"]
    assert isinstance(released, dict)
    assert set(released) == set(METRICS["binary"]) == set(exact)
    cells = count_cells("binary", ("no", "yes"), outcome.targets, outcome.predictions)
    ranking = auc_binning_error("binary", ("no", "yes"), cells)
    assert ranking is not None
    counted = {"accuracy", "balanced_accuracy", "precision", "sensitivity", "specificity", "f1"}
    for name in counted:  # counts of decisions: no binning
        assert released[name]["value"] == pytest.approx(exact[name].value, abs=1e-12)
        assert released[name]["n"] == exact[name].n
    assert released["auc"]["value"] == pytest.approx(exact["auc"].value, abs=ranking + 1e-12)
    for name in ("brier", "loss"):  # fixed point of 20 bits a record
        assert released[name]["value"] == pytest.approx(exact[name].value, abs=2**-19)


def test_a_watcher_is_told_every_round_and_the_figures_when_due(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    told: list[Progress] = []
    simulate(toy_study(True, rounds=5), toy_csv, tmp_path, watch=told.append)
    assert [step.round for step in told] == [1, 2, 3, 4, 5]
    assert [bool(step.metric) for step in told] == [False, True, False, True, True]
    spent = [step.epsilon for step in told if step.epsilon is not None]
    assert spent == sorted(spent)
    assert len(set(spent)) == 3


# Privacy


def test_private_training_debits_once_a_site_and_round(run: Run, tmp_path: Path) -> None:
    outcome = run(True)
    for site in outcome.sites:
        with Ledger(tmp_path / "run-1" / "sites" / site / "ledger.db") as ledger:
            phases = [event.phase for event in ledger.events(study=outcome.study.digest())]
        # Four rounds, evaluated every other one.
        assert phases == ["train", "train", "evaluate", "train", "train", "evaluate"]


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_the_epsilon_spent_is_below_that_of_the_study(run: Run, epsilon: float) -> None:
    keys = {"privacy.epsilon": epsilon, "evaluation.epsilon": epsilon}
    privacy = run(True, **keys).results()["privacy"]
    assert isinstance(privacy, dict)
    assert 0 < privacy["epsilon"] <= epsilon
    assert privacy["rdp_epsilon"] >= privacy["epsilon"]
    assert privacy["mode"] == "local"
    assert privacy["delta"] == 1e-5


def test_whoever_is_held_out_pays_for_the_evaluations(run: Run) -> None:
    """One record is trained on or held out: the larger of the two is what a run costs."""
    privacy = run(True, **{"privacy.epsilon": 0.5, "evaluation.epsilon": 3.0}).results()["privacy"]
    assert isinstance(privacy, dict)
    assert 0.5 < privacy["epsilon"] <= 3.0


def test_noised_figures_are_released_under_privacy(run: Run, tmp_path: Path) -> None:
    results = run(True).results()
    released, exact = results["released"], results["metrics"]
    assert isinstance(released, dict)
    assert isinstance(exact, dict)
    assert set(released) == set(exact)
    assert released["accuracy"]["value"] != exact["accuracy"]["value"]
    told = [row["released_accuracy"] for row in rows(tmp_path / "run-1")]
    assert [bool(text) for text in told] == [False, True, False, True]


def test_the_rounds_history_holds_no_count_and_no_loss_under_privacy(run: Run) -> None:
    for row in run(True).checkpoint.history:
        assert set(row) - {"released"} == {"round", "sites"}


def test_much_noise_moves_the_model_more_than_any_record(
    run: Run, toy_document: Callable[..., dict[str, dict[str, object]]]
) -> None:
    privacy = toy_document(private=True)["privacy"] | {"noise_multiplier": 400.0}
    del privacy["epsilon"]
    changes: dict[str, object] = {"aggregation.value_bound": 1e3, "simulation.seed": 3}
    plain, private = run(**changes), run(True, privacy=privacy, **changes)
    first = vector_of(build_network(plain.study, seeded_integer(3, "model")))
    # One coordinate: sd of learning rate 0.5 * sigma 400 / batch 16 * sqrt(8 steps / 3 sites) = 20.
    drift = (private.checkpoint.state.model - first).std()
    assert 14 < drift < 28  # 33 coordinates: the sd of that estimate is 2.5
    assert np.abs(plain.checkpoint.state.model - first).max() < 4


# Sites as they come


PARTITIONS = ("iid", "dirichlet:0.1", "quantity:0.3", "column:ward")


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("partition", PARTITIONS)
def test_every_partition_runs(run: Run, partition: str, private: bool) -> None:
    outcome = run(private, **{"simulation.partition": partition, "simulation.sites": 6})
    assert len(outcome.sites) == (4 if partition == "column:ward" else 6)
    assert outcome.study.simulation.sites == len(outcome.sites)
    assert outcome.figures()["accuracy"].value is not None


@pytest.mark.parametrize("private", [False, True])
def test_sites_with_one_class_one_record_or_none_are_lived_with(
    run: Run, toy_csv: Path, tmp_path: Path, private: bool
) -> None:
    header, *lines = toy_csv.read_text().splitlines()
    sites = {
        "large": lines[:80],
        "one-class": [line for line in lines[80:] if line.endswith("yes")],
        "one-record": lines[80:81],
        "empty": [],
    }
    folder = tmp_path / "sites"
    folder.mkdir()
    for name, part in sites.items():
        (folder / f"{name}.csv").write_text("\n".join([header, *part]) + "\n")
    outcome = run(private, data=folder, **{"simulation.partition": "files"})
    assert outcome.sites == ("empty", "large", "one-class", "one-record")
    assert np.isfinite(outcome.checkpoint.state.model).all()
    own = outcome.results()["sites_metrics"]
    assert isinstance(own, dict)
    assert own["empty"] == {"n": 0, **dict.fromkeys(METRICS["binary"])}
    assert own["one-class"]["auc"] is None  # undefined, not 0 and not 1
    assert own["large"]["auc"] is not None if private else own["large"]["auc"] > 0.5


def test_an_empty_site_does_not_pull_the_model(run: Run, toy_csv: Path, tmp_path: Path) -> None:
    header, *lines = toy_csv.read_text().splitlines()

    def model(names: dict[str, list[str]]) -> np.ndarray:
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        for name, part in names.items():
            (folder / f"{name}.csv").write_text("\n".join([header, *part]) + "\n")
        changes = {"simulation.partition": "files", "rounds": 1}
        return run(data=folder, **changes).checkpoint.state.model

    full = {"a": lines[:40], "b": lines[40:80], "c": lines[80:]}
    # One more site takes a coarser step of rounding: 2^31 / 4 instead of 2^31 / 3.
    assert model({**full, "empty": []}) == pytest.approx(model(full), abs=2**-22)


def test_one_record_a_site_runs(run: Run, toy_csv: Path, tmp_path: Path) -> None:
    path = tmp_path / "few.csv"
    path.write_text("\n".join(toy_csv.read_text().splitlines()[: SITES_MIN + 1]) + "\n")
    outcome = run(data=path)
    assert np.isfinite(outcome.checkpoint.state.model).all()


def test_a_number_target_runs(run: Run) -> None:
    outcome = run(**{"data.target": "age", "rounds": 6})
    assert label(outcome.study).kind == "regression"
    mae = outcome.figures()["mae"].value
    assert mae is not None
    assert math.isfinite(mae)
    assert mae < 40  # the ages lie between 20 and 90


def test_many_classes_run(run: Run) -> None:
    outcome = run(**{"data.target": "ward"})
    assert outcome.predictions.shape[1] == 4
    assert outcome.predictions.sum(axis=1) == pytest.approx(1.0)
