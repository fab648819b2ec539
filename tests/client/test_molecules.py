"""Molecules as texts: what falls into which bucket, and what RDKit makes of them where it is."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data.holdout import held_out
from client.data.molecules import molecule_places, molecule_symbols
from client.data.read import read_records
from client.data.records import Records
from client.data.tokens import bucket
from privacy.errors import DataError, StudyError
from shared_models.contract import MoleculeColumn
from shared_models.sections import Evaluation
from shared_models.study import parse_study


def read(folder: Path, smiles: list[str], **column: Any) -> Records:
    path = folder / "molecules.csv"
    path.write_text("\n".join(["smiles,toxic", *(f'"{one}",1' for one in smiles)]) + "\n")
    document = {
        "name": "m",
        "task": "molecule",
        "rounds": 1,
        "data": {
            "target": "toxic",
            "columns": {
                "smiles": {"kind": "molecule", **column},
                "toxic": {"kind": "category", "values": ["0", "1"]},
            },
        },
        "model": {"name": "mlp"},
        "training": {"learning_rate": 0.1},
        "privacy": {"mode": "none"},
    }
    return read_records(parse_study(document), path)


def test_features_are_runs_of_symbols_in_public_buckets(tmp_path: Path) -> None:
    """CCl[nH]: the symbols C, Cl, [nH]; runs of two: C Cl and Cl [nH]."""
    found = read(tmp_path, ["CCl[nH]"], buckets=4096, grams=2).inputs
    wanted = np.zeros(4096)
    for gram in ("C", "Cl", "[nH]", "C Cl", "Cl [nH]"):
        wanted[bucket(gram, 4096)] += 1
    np.testing.assert_allclose(found[0], np.log1p(wanted), rtol=1e-6)


@pytest.mark.parametrize("features", ["ngrams", "morgan"])
def test_what_fell_into_a_bucket_is_what_was_counted_there(
    tmp_path: Path, features: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if features == "morgan":
        pytest.importorskip("rdkit")
    smiles = ["CC(=O)Oc1ccccc1C(=O)O", "C[N+](C)(C)C.[Cl-]", "c1cccc1"]  # the last: an odd one
    column = {"features": features, "buckets": 128, "grams": 3}
    contract = MoleculeColumn.model_validate({"kind": "molecule", **column})
    for text, row in zip(smiles, read(tmp_path, smiles, **column).inputs, strict=True):
        places = molecule_places(text, contract)
        counts = np.zeros(128)
        for number, runs in places.items():
            counts[number] = len(runs)
            assert all(0 <= run.start < run.stop <= len(molecule_symbols(text)) for run in runs)
        np.testing.assert_allclose(row, np.log1p(counts), rtol=1e-6)
    assert capfd.readouterr() == ("", "")  # what RDKit warns of, it shows


def test_a_symbol_that_comes_again_counts_again(tmp_path: Path) -> None:
    found = read(tmp_path, ["CCC"], buckets=64, grams=1).inputs[0]
    assert found[bucket("C", 64)] == pytest.approx(math.log(4))
    assert np.count_nonzero(found) == 1


def test_a_molecule_does_not_depend_on_the_others(tmp_path: Path) -> None:
    alone = read(tmp_path, ["c1ccccc1O"]).inputs[0]
    assert np.array_equal(read(tmp_path, ["CCO", "[Na+].[Cl-]", "c1ccccc1O"]).inputs[2], alone)


def test_without_rdkit_the_study_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.data.molecules.find_spec", lambda name: None)
    for column in ({"features": "morgan"}, {"split": "scaffold"}):
        with pytest.raises(StudyError, match="expected RDKit") as caught:
            read(tmp_path, ["CCO"], **column)
        assert "fedward[molecules]" in str(caught.value.hint)


def test_circles_are_the_same_however_a_molecule_is_written(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    one, other = read(tmp_path, ["OCC", "CCO"], features="morgan", buckets=256).inputs
    assert np.array_equal(one, other)
    assert one.max() > 0


@pytest.mark.parametrize("column", [{"features": "morgan"}, {"split": "scaffold"}])
def test_what_is_no_molecule_is_refused_without_being_shown(
    tmp_path: Path, column: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rdkit")
    with pytest.raises(DataError, match="row 3, column 'smiles': expected a molecule") as caught:
        read(tmp_path, ["CCO", "C1CCQQQ"], **column)
    assert "QQQ" not in str(caught.value) + "".join(capfd.readouterr())


def test_molecules_of_one_scaffold_are_on_one_side(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    rings = ["c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CCOC1", "c1ccc2ccccc2c1", "C1CCNC1"]
    smiles = [f"{'C' * tail}{ring}" for ring in rings for tail in range(8)]
    records = read(tmp_path, smiles, split="scaffold")
    assert records.patients is None
    assert len(set(records.identities)) == len(rings)
    sides = held_out(records, Evaluation(holdout=0.5), bytes(32)).reshape(len(rings), 8)
    assert (sides == sides[:, :1]).all()
    assert 0 < sides.sum() < sides.size
