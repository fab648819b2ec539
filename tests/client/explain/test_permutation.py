"""Permutation importance: a planted column comes first, and one that is not used has none."""

import numpy as np
import pytest

from client.data.records import Records
from client.explain.layout import layout_of
from client.explain.permutation import (
    RECORDS_MAX,
    RECORDS_MIN,
    affordable,
    permutation_importance,
)
from shared_models.study import Study
from tests.client.explain.models import (
    letter_finder,
    random_weights,
    splice_study,
    study_of,
    table_study,
    weights,
)


def records_of(inputs: np.ndarray, targets: np.ndarray) -> Records:
    return Records(inputs, targets, (b"",) * len(targets))


def test_a_planted_column_comes_first_and_an_unused_one_has_none() -> None:
    study = table_study()
    inputs = np.random.default_rng(1).uniform(-1, 1, (900, 8)).astype(np.float32)
    records = records_of(inputs, (inputs[:, 4] > 0).astype(np.int64))
    network = weights(random_weights(study), layers__0__weight=[0, 0, 1, 0, 6, 0, 0, 0])
    found = permutation_importance(study, network, records, layout_of(study))
    assert found.groups == tuple("abcdefgh")
    assert found.records == RECORDS_MAX
    assert found.rises.argmax() == 4
    assert found.rises[4] > 0.5
    assert (found.rises[[0, 1, 3, 5, 6, 7]] == 0).all()
    assert found.rises[2] != 0


def test_a_planted_place_of_a_sequence_comes_first() -> None:
    study = splice_study()
    inputs = np.random.default_rng(1).integers(1, 5, (200, 8))
    records = records_of(inputs, (inputs[:, 5] == 3).astype(np.int64))
    found = permutation_importance(study, letter_finder(3, 5), records, layout_of(study))
    assert found.groups[int(found.rises.argmax())] == "place 6"


def test_the_same_records_give_the_same_figures() -> None:
    study = table_study((5,))
    inputs = np.random.default_rng(1).uniform(-1, 1, (40, 8)).astype(np.float32)
    records = records_of(inputs, np.arange(40) % 2)

    def again(study: Study) -> list[float]:
        found = permutation_importance(study, random_weights(study), records, layout_of(study))
        return [found.loss, *found.rises.tolist(), *found.deviations.tolist()]

    assert again(study) == again(study)


def tissue_study(side: int) -> Study:
    picture = {"kind": "image", "height": side, "width": side, "channels": 3}
    return study_of("image", {"p": picture}, {"name": "cnn", "channels": [32, 64, 64]})


def test_of_large_records_fewer_are_asked_about_and_of_small_ones_as_many_as_there_may_be() -> None:
    """Ten thousand million operations take a core some tenths of a second."""
    for side, least, most in ((8, RECORDS_MAX, RECORDS_MAX), (96, 16, 40)):
        study = tissue_study(side)
        records = records_of(np.zeros((1, 3, side, side), dtype=np.float32), np.array([1]))
        layout = layout_of(study)
        assert least <= affordable(random_weights(study), records, len(layout.groups)) <= most
    assert len(layout.groups) == 16
    assert affordable(random_weights(study), records, 10**9) == RECORDS_MIN


def test_as_many_records_as_can_be_afforded_are_shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    study = table_study()
    inputs = np.random.default_rng(1).uniform(-1, 1, (200, 8)).astype(np.float32)
    records = records_of(inputs, np.arange(200) % 2)
    monkeypatch.setattr("client.explain.permutation.WORK_MAX", 0)
    found = permutation_importance(study, random_weights(study), records, layout_of(study))
    assert found.records == RECORDS_MIN


def test_one_record_has_nobody_to_change_with() -> None:
    study = table_study((5,))
    records = records_of(np.ones((1, 8), dtype=np.float32), np.array([1]))
    found = permutation_importance(study, random_weights(study), records, layout_of(study))
    assert found.rises.tolist() == [0] * 8
