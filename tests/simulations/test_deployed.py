"""A study as a deployment on this machine ends as the same study in one process: byte for byte."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from client.audit import read_audit
from privacy.accounting import Event
from privacy.ledger import Ledger
from shared_models.study import Study, load_study, parse_study
from simulations.deployed import deploy
from simulations.outcome import Outcome, write_outcome
from simulations.run import Progress, simulate

SUMMED: dict[str, Any] = {
    "mode": "distributed",
    "epsilon": 4.0,
    "delta": 1e-5,
    "clipping_norm": 1.0,
    "expected_batch": 16,
    "records_max": 60,
}
CHANGES: dict[str, dict[str, object]] = {
    "distributed, by group": {
        "privacy": SUMMED,
        "training": {"learning_rate": 0.5},
        "evaluation.subgroups": {"column": "ward", "smallest": 2},
        "evaluation.epsilon": 20.0,  # noise of about one, and counts of twenty
        "evaluation.holdout": 0.8,
    },
    "local, scaffold, exact figures, stopped early": {
        "aggregation.strategy": "scaffold",
        "evaluation.release": "exact",
        "training.learning_rate": 5.0,  # too large a step: the loss rises
        "evaluation.every": 1,
        "evaluation.patience": 1,
        "rounds": 3,
    },
}


class Both:
    """One study under both engines."""

    def __init__(self, study: Study, records: Path, folder: Path) -> None:
        self.study, self.folder, self.told = study, folder, list[Progress]()
        self.local = self._kept(simulate(study, records, folder / "local"), "local")
        deployed = deploy(study, records, folder / "deploy", watch=self.told.append)
        self.deploy = self._kept(deployed, "deploy")

    @property
    def rounds(self) -> int:
        """Those that were run."""
        return self.local.checkpoint.state.round

    def _kept(self, outcome: Outcome, engine: str) -> Outcome:
        write_outcome(outcome, self.folder / engine)
        return outcome

    def results(self, engine: str) -> dict[str, Any]:
        found = json.loads((self.folder / engine / "results.json").read_text())
        assert isinstance(found, dict)
        return found

    def files(self, name: str) -> set[bytes]:
        return {(self.folder / engine / name).read_bytes() for engine in ("local", "deploy")}


@pytest.fixture(scope="module", params=list(CHANGES))
def both(
    request: pytest.FixtureRequest,
    toy_document: Callable[..., dict[str, Any]],
    toy_csv: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Both:
    changes = {"aggregation.masking": "fsa1", **CHANGES[request.param]}
    study = parse_study(toy_document(private=True, **changes))
    return Both(study, toy_csv, tmp_path_factory.mktemp("both"))


def test_the_model_and_all_figures_are_the_same(both: Both) -> None:
    for name in ("model.safetensors", "model.json", "metrics.csv", "study.toml"):
        assert len(both.files(name)) == 1, name


def test_both_stop_early_where_the_study_says_so(both: Both) -> None:
    asked = both.study.evaluation.patience is not None
    for outcome in (both.local, both.deploy):
        assert outcome.checkpoint.stopped == asked
    assert both.rounds == both.study.rounds - asked
    card = next((both.folder / "deploy" / "deploy").glob("**/card.md")).read_text()
    assert f"| rounds | {both.rounds} of {both.study.rounds}: " in card


def test_the_results_differ_in_engine_and_costs_alone(both: Both) -> None:
    local, deployed = both.results("local"), both.results("deploy")
    assert (local.pop("engine"), deployed.pop("engine")) == ("local", "deploy")
    before, costs = local.pop("costs"), deployed.pop("costs")
    assert costs["bytes_up"] == before["bytes_up"]
    assert costs["bytes_down"] >= before["bytes_down"]  # the notice of the end, too
    assert deployed == local


def test_figures_by_group_are_told_and_taken_home(both: Both) -> None:
    asked, found = both.study.evaluation.subgroups, both.results("deploy")["subgroups"]
    cards = [*(both.folder / "deploy" / "deploy").glob("**/card.md")]
    assert len(cards) >= len(both.deploy.sites)
    if asked is None:
        assert found is None
        assert not any("The same by" in card.read_text() for card in cards)
        return
    assert set(found["metrics"]) == set(found["released"]) == {"a", "b", "c", "d"}
    told = [(name, one) for name, one in found["released"].items() if one is not None]
    assert told
    for card in cards:
        text = card.read_text()
        assert "The same by “ward”" in text
        for name, figures in told:
            assert f"| {name} | Accuracy | {figures['accuracy']['value']:.3f} |" in text


def test_whoever_watches_is_told_of_each_round(both: Both) -> None:
    assert [one.round for one in both.told] == list(range(1, both.rounds + 1))
    assert both.told[-1].metric == both.deploy.figures()


def test_each_site_was_a_hospital_of_its_own(both: Both) -> None:
    folder = both.folder / "deploy" / "deploy"
    for site in both.deploy.sites:
        notes = [note.kind for note in read_audit(folder / "sites" / site).notes]
        assert {"enrol", "roster", "approve", "sent", "ended"} <= set(notes)
        with Ledger(folder / "sites" / site / "ledger.db") as ledger:
            debits = [row.key for row in ledger.rows() if isinstance(row.entry, Event)]
        rounds = [int(key.split("/")[2]) for key in debits if "/train/" in key]
        assert rounds == list(range(1, both.rounds + 1))
        assert not (folder / "tokens" / site).exists()


def test_the_seed_is_the_simulations_alone(both: Both) -> None:
    coordinator = both.folder / "deploy" / "deploy" / "coordinator"
    founded = load_study(coordinator / "study.toml").document()
    assert "seed" not in founded.get("simulation", {})


def test_names_that_are_none_of_hospitals_are_refused_before_anything_is_made(
    toy_document: Callable[..., dict[str, Any]], toy_csv: Path, tmp_path: Path
) -> None:
    sites = tmp_path / "sites"
    sites.mkdir()
    for name in ("bonn", "ulm", "jena am see"):
        (sites / f"{name}.csv").write_bytes(toy_csv.read_bytes())
    document = toy_document(
        private=True, **{"aggregation.masking": "fsa1", "simulation": {"partition": "files"}}
    )
    (tmp_path / "study.toml").write_text(tomli_w.dumps(document))
    with pytest.raises(Exception, match="'jena am see': expected a name"):
        deploy(load_study(tmp_path / "study.toml"), sites, tmp_path / "out")
    assert not (tmp_path / "out").exists()
