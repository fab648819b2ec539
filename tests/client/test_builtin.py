"""The records inside scikit-learn come under their own names, or the study is at fault."""

import json

import pytest
from sklearn import datasets

from client.data.builtin import read_builtin
from client.data.faults import Faults
from privacy.errors import StudyError
from shared_models.contract import Data


def contract(builtin: str | None, values: list[str], **columns: object) -> Data:
    y = {"kind": "category", "values": values}
    document = {"target": "y", "columns": {"y": y, **columns}, "builtin": builtin}
    return Data.model_validate_json(json.dumps(document))


RADIUS = {"mean radius": {"kind": "number", "low": 0, "high": 50}}
IMAGE = {"image": {"kind": "image", "height": 8, "width": 8, "high": 16}}


def test_breast_cancer_has_569_records_under_their_names() -> None:
    table = read_builtin(contract("breast_cancer", ["malignant", "benign"], **RADIUS), Faults())
    assert table.length == 569
    assert table.columns["y"].tolist().count("malignant") == 212
    assert table.columns["mean radius"][0] == 17.99  # the first record of the published file


def test_digits_have_1797_pictures() -> None:
    table = read_builtin(contract("digits", [str(i) for i in range(10)], **IMAGE), Faults())
    digits = datasets.load_digits()
    assert table.columns["image"].shape == (1797, 8, 8)
    assert table.columns["y"].tolist() == [str(digit) for digit in digits.target]


def test_a_column_that_they_do_not_have_is_refused() -> None:
    with pytest.raises(StudyError, match="mean radius"):
        read_builtin(contract("digits", ["0", "1"], **RADIUS), Faults())


def test_without_builtin_records_a_path_is_asked_for() -> None:
    with pytest.raises(StudyError, match=r"data\.builtin") as caught:
        read_builtin(contract(None, ["0", "1"], **RADIUS), Faults())
    assert "--data" in caught.value.hint
