"""The files that a run leaves: complete, finite, and each agrees with the others."""

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from privacy.accounting import epsilon
from privacy.ledger import Ledger
from server.metrics import MetricsFile, read_metrics
from shared_models.metrics import METRICS
from shared_models.model_file import json_bytes
from shared_models.noised_cells import BINS
from shared_models.registry import build_network
from shared_models.study import Study, load_study
from shared_models.tasks import target_of
from simulations.outcome import join_metrics, write_outcome
from simulations.pool import gather, pool
from simulations.run import simulate

KEYS = {
    "study",
    "study_digest",
    "versions",
    "engine",
    "seed",
    "sites",
    "rounds",
    "metrics",
    "released",
    "sites_metrics",
    "baselines",
    "privacy",
    "costs",
}
PRIVACY = {
    "evaluation",
    "mode",
    "unit",
    "adjacency",
    "epsilon",
    "delta",
    "rdp_epsilon",
    "accountant",
    "trusted",
}
COSTS = {"wall_s", "site_rounds_per_s", "peak_rss_mb", "bytes_up", "bytes_down"}


def numbers(document: object) -> Iterator[float]:
    if isinstance(document, dict):
        for value in document.values():
            yield from numbers(value)
    elif isinstance(document, list):
        for value in document:
            yield from numbers(value)
    elif isinstance(document, float):
        yield document


@pytest.fixture(scope="module", params=["none", "local"])
def left(
    request: pytest.FixtureRequest,
    toy_study: Callable[..., Study],
    toy_csv: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any]]:
    """The folder and results of a run in each mode."""
    folder = tmp_path_factory.mktemp("run")
    study = toy_study(request.param == "local", rounds=5)
    results = write_outcome(simulate(study, toy_csv, folder), folder)
    return folder, results


Left = tuple[Path, dict[str, Any]]


def test_results_have_every_key_of_the_interface(left: Left) -> None:
    results = json.loads((left[0] / "results.json").read_bytes())
    assert set(results) >= KEYS
    assert set(results["privacy"]) == PRIVACY
    assert set(results["costs"]) == COSTS
    for figure in results["metrics"].values():
        assert set(figure) == {"value", "low", "high", "n"}
    assert results == left[1]


def test_no_number_is_nan_or_infinite(left: Left) -> None:
    found = list(numbers(json.loads((left[0] / "results.json").read_bytes())))
    assert len(found) > 50
    assert all(math.isfinite(value) for value in found)


def test_intervals_hold_their_values(left: Left) -> None:
    for figure in left[1]["metrics"].values():
        if figure["value"] is not None and figure["low"] is not None:
            assert figure["low"] <= figure["value"] <= figure["high"]


def test_nan_is_refused_by_the_writer() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        json_bytes({"value": math.nan})


def test_the_model_file_gives_the_metrics_of_the_results(left: Left, toy_csv: Path) -> None:
    folder, results = left
    study = load_study(folder / "study.toml")
    network = build_network(study, seed=12345)  # its own first weights must not matter
    network.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    network.eval()
    held = pool(study, gather(study, toy_csv)).held()
    with torch.no_grad():
        predicted = target_of(study).predictions(network(held.inputs))
    figures = target_of(study).exact_figures(held.targets.numpy(), predicted)
    for name, figure in figures.items():
        assert results["metrics"][name]["value"] == pytest.approx(figure.value, abs=1e-6)


def test_the_model_file_names_its_study(left: Left) -> None:
    folder, results = left
    with safetensors.safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata() == {"study_digest": results["study_digest"]}
    description = json.loads((folder / "model.json").read_bytes())
    assert description["study_digest"] == results["study_digest"]
    assert description["classes"] == ["no", "yes"]
    assert description["privacy"] == results["privacy"]


def test_the_study_file_loads_into_the_same_study(left: Left) -> None:
    folder, results = left
    study = load_study(folder / "study.toml")
    assert study.digest() == results["study_digest"]


def test_the_study_file_has_the_sites_that_the_records_gave(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    study = toy_study(**{"simulation.partition": "column:ward", "rounds": 1})
    results = write_outcome(simulate(study, toy_csv, tmp_path), tmp_path)
    assert load_study(tmp_path / "study.toml").simulation.sites == results["sites"] == 4


def test_metrics_have_a_row_a_round_and_figures_when_due(left: Left) -> None:
    folder, results = left
    with (folder / "metrics.csv").open(newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header == [
        *("round", "sites", "epsilon", "train_loss"),
        *METRICS["binary"],
        *(f"released_{name}" for name in METRICS["binary"]),
    ]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
    evaluated = [bool(row[header.index("accuracy")]) for row in rows]
    assert evaluated == [False, True, False, True, True]
    last = dict(zip(header, rows[-1], strict=True))
    assert float(last["auc"]) == results["metrics"]["auc"]["value"]


def test_epsilon_so_far_ends_at_the_epsilon_of_the_results(left: Left) -> None:
    folder, results = left
    last = read_metrics(folder)[-1]
    assert last["epsilon"] == results["privacy"]["epsilon"]


def test_epsilon_is_that_of_the_ledgers(left: Left) -> None:
    folder, results = left
    if results["privacy"]["mode"] == "none":
        assert results["privacy"]["epsilon"] is None
        assert not list(folder.rglob("ledger.db"))
        return
    with Ledger(folder / "sites" / "site-002" / "ledger.db") as ledger:
        events = ledger.events(study=results["study_digest"])
    assert results["privacy"]["epsilon"] == epsilon(events, 1e-5).epsilon


def test_sites_together_are_the_pooled_hold_out(left: Left) -> None:
    results = left[1]
    sites = results["sites_metrics"]
    assert sum(site["n"] for site in sites.values()) == results["metrics"]["accuracy"]["n"]
    hits = sum(site["accuracy"] * site["n"] for site in sites.values() if site["n"])
    pooled = results["metrics"]["accuracy"]
    assert hits == pytest.approx(pooled["value"] * pooled["n"])


def test_bytes_are_those_of_the_messages(left: Left) -> None:
    results, rounds, sites = left[1], 5, 3
    parameters = sum(
        np.prod(shape.shape)
        for shape in safetensors.torch.load_file(left[0] / "model.safetensors").values()
    )
    training = 4 * parameters + (0 if results["privacy"]["mode"] == "local" else 8 * 3)
    exact = rounds * sites * training
    cells = 2 * BINS if results["privacy"]["mode"] == "local" else 2 * 1024 + 4
    evaluations = sum(number % 2 == 0 or number == rounds for number in range(1, rounds + 1))
    assert results["costs"]["bytes_up"] == exact + evaluations * sites * 8 * cells


def test_metrics_rows_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("round,auc\n1,0.5\n2,0.6\n3,0.7\n")
    assert MetricsFile(path, ["round", "auc"], 2).last == 2
    assert read_metrics(tmp_path) == [{"round": 1.0, "auc": 0.5}, {"round": 2.0, "auc": 0.6}]


def test_metrics_of_a_new_run_start_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("round,auc\n1,0.5\n")
    assert MetricsFile(path, ["round", "auc"], 0).last == 0
    assert read_metrics(tmp_path) == []


def test_the_metrics_of_folds_are_their_mean_where_known(tmp_path: Path) -> None:
    folds = [tmp_path / "a", tmp_path / "b"]
    for fold, text in zip(folds, ("1,0.5\n2,\n3,0.9\n", "1,0.7\n2,\n"), strict=True):
        fold.mkdir()
        (fold / "metrics.csv").write_text("round,auc\n" + text)
    join_metrics(folds, tmp_path)
    assert read_metrics(tmp_path) == [
        {"round": 1.0, "auc": pytest.approx(0.6)},
        {"round": 2.0, "auc": None},
        {"round": 3.0, "auc": pytest.approx(0.9)},
    ]
