"""All records side by side: every record at one site, on one side of the hold-out."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from client.training import Tensors
from privacy.errors import DataError, StudyError
from shared_models.study import Study
from simulations.pool import Pool, gather, pool
from simulations.run import simulate


def rows_of(tensors: Tensors) -> Counter[tuple[float, ...]]:
    pairs = zip(tensors.inputs.tolist(), tensors.targets.tolist(), strict=True)
    return Counter((*inputs, target) for inputs, target in pairs)


def pooled(study: Study, records: Path, fold: int | None = None) -> Pool:
    return pool(study, gather(study, records), fold)


@pytest.mark.parametrize("partition", ["iid", "dirichlet:0.3", "quantity:0.5", "column:ward"])
def test_every_record_is_at_one_site_on_one_side(
    toy_study: Callable[..., Study], toy_csv: Path, partition: str
) -> None:
    records = pooled(toy_study(**{"simulation.partition": partition}), toy_csv)
    everything = gather(toy_study(), toy_csv).records
    found: Counter[tuple[float, ...]] = Counter()
    for index in range(len(records.sites)):
        split = records.split(index)
        found += rows_of(split.train) + rows_of(split.held)
    assert found == rows_of(
        Tensors(torch.from_numpy(everything.inputs), torch.from_numpy(everything.targets))
    )


def test_training_and_held_out_records_are_those_of_the_sites(
    toy_study: Callable[..., Study], toy_csv: Path
) -> None:
    records = pooled(toy_study(), toy_csv)
    splits = [records.split(index) for index in range(3)]
    assert rows_of(records.train()) == sum((rows_of(s.train) for s in splits), Counter())
    held = [s.held.targets.tolist() for s in splits]
    together = [target for own in held for target in own]
    assert records.held().targets.tolist() == together  # in the order of held_site()
    assert records.held_site().tolist() == [k for k, own in enumerate(held) for _ in own]


def test_equal_records_are_on_one_side_at_any_site(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    header, *lines = toy_csv.read_text().splitlines()
    doubled = tmp_path / "doubled.csv"
    doubled.write_text("\n".join([header, *lines, *lines]) + "\n")
    records = pooled(toy_study(), doubled)
    train, held = rows_of(records.train()), rows_of(records.held())
    assert train
    assert held
    assert not set(train) & set(held)


def test_every_record_is_held_out_in_one_fold(
    toy_study: Callable[..., Study], toy_csv: Path
) -> None:
    study = toy_study(**{"evaluation.folds": 3})
    folds = [pooled(study, toy_csv, fold) for fold in range(3)]
    held = sum((rows_of(fold.held()) for fold in folds), Counter())
    assert held == rows_of(folds[0].train()) + rows_of(folds[0].held())
    assert all(len(fold.held()) for fold in folds)


def with_patients(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path, unit: str
) -> tuple[Study, Path]:
    """A private study of patients with three records each."""
    header, *lines = toy_csv.read_text().splitlines()
    path = tmp_path / "patients.csv"
    rows = [f"{line},p{number % 40}" for number, line in enumerate(lines)]
    path.write_text("\n".join([header + ",patient", *rows]) + "\n")
    changes = {"data.columns.patient": {"kind": "id"}, "data.patient": "patient", "rounds": 1}
    return toy_study(private=True, **changes, **{"privacy.unit": unit}), path


def test_a_patient_is_at_one_site_on_one_side(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    study, path = with_patients(toy_study, toy_csv, tmp_path, "patient")
    gathered = gather(study, path)
    places: dict[bytes, set[tuple[str, bool]]] = {}
    records = pool(study, gathered)
    held = set(rows_of(records.held()))
    for name, own in gathered.sites:
        site = gathered.records.take(own)
        for k, identity in enumerate(site.identities):
            row = (*site.inputs[k].tolist(), site.targets[k].item())
            places.setdefault(identity, set()).add((name, row in held))
    assert len(places) == 40
    assert all(len(where) == 1 for where in places.values())
    splits = [records.split(index) for index in range(3)]
    for side in (side for one in splits for side in (one.train, one.held)):
        # numbered from 0 without gaps: the sampler draws from them, and an evaluation counts them
        assert side.patients is not None
        assert np.unique(side.patients).tolist() == list(range(int(side.patients.max()) + 1))
        assert np.bincount(side.patients).tolist() == [3] * (len(side) // 3)


def test_where_records_are_the_unit_patients_only_choose_the_side(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    study, path = with_patients(toy_study, toy_csv, tmp_path, "record")
    assert pooled(study, path).split(0).train.patients is None
    assert simulate(study, path, tmp_path / "out").checkpoint.state.round == 1


def test_the_same_seed_gives_the_same_split_and_another_seed_another(
    toy_study: Callable[..., Study], toy_csv: Path
) -> None:
    def held(seed: int) -> Counter[tuple[float, ...]]:
        return rows_of(pooled(toy_study(**{"simulation.seed": seed}), toy_csv).held())

    assert held(1) == held(1)
    assert held(1) != held(2)


def test_files_are_sites_under_their_names(
    toy_study: Callable[..., Study], toy_csv: Path, tmp_path: Path
) -> None:
    header, *lines = toy_csv.read_text().splitlines()
    for name, part in (("north", lines[:60]), ("east", lines[60:90]), ("south", lines[90:])):
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *part]) + "\n")
    records = pooled(toy_study(**{"simulation.partition": "files"}), tmp_path)
    assert records.sites == ("east", "north", "south")
    assert (records.ends - records.starts).tolist() == [30, 60, 30]


def test_files_want_a_path(toy_study: Callable[..., Study]) -> None:
    with pytest.raises(DataError, match="--data: missing"):
        gather(toy_study(**{"simulation.partition": "files"}), None)


def test_natural_sites_below_three_are_refused(
    toy_study: Callable[..., Study], toy_csv: Path
) -> None:
    with pytest.raises(StudyError, match="expected a column with >= 3 sites, found 2 in 'ill'"):
        gather(toy_study(**{"simulation.partition": "column:ill"}), toy_csv)


def test_a_table_without_a_record_is_refused(
    toy_study: Callable[..., Study], tmp_path: Path
) -> None:
    path = tmp_path / "bare.csv"
    path.write_text("age,marker,ward,ill\n")
    with pytest.raises(DataError, match="expected records, found none"):
        gather(toy_study(), path)


def test_more_sites_than_records_leaves_empty_sites(
    toy_study: Callable[..., Study], toy_csv: Path
) -> None:
    records = pooled(toy_study(**{"simulation.sites": 150}), toy_csv)
    sizes = records.ends - records.starts
    assert sizes.min() == 0
    assert sizes.sum() == 120
    empty = records.split(int(np.argmin(sizes)))
    assert len(empty.train) == len(empty.held) == 0
