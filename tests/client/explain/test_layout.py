"""What of a record is shown as one: every number has its cell, every cell can be hidden."""

import numpy as np
import pytest

from client.explain.layout import GROUPS_MAX, REGIONS_MAX, layout_of
from shared_models.inputs import input_spec
from shared_models.study import Study
from tests.client.explain.models import splice_study, study_of
from tests.client.explain.test_methods import ATTENTION, CASES, PICTURE, STAY

LARGE = {
    "long text": splice_study(1501),
    "long stay": study_of("series", {"s": {**STAY, "steps": 700}}, ATTENTION),
    "odd picture": study_of("image", {"p": {**PICTURE, "width": 101}}, {"name": "cnn"}),
}


@pytest.mark.parametrize("study", [*CASES.values(), *LARGE.values()], ids=[*CASES, *LARGE])
def test_cells_cover_the_input_and_regions_and_groups_cover_the_cells(study: Study) -> None:
    layout = layout_of(study)
    cells = int(np.prod(layout.shape))
    assert layout.cell_of.shape == input_spec(study).shape
    assert np.unique(layout.cell_of).tolist() == list(range(cells))
    assert layout.regions.shape[1] == cells
    assert layout.regions.any(axis=0).all()
    assert len(layout.regions) <= REGIONS_MAX
    shuffled = np.concatenate([group.cells for group in layout.groups])
    assert sorted(shuffled.tolist()) == list(range(cells))  # each once
    assert len(layout.groups) <= 2 * GROUPS_MAX


def test_a_column_is_one_cell_with_all_its_values_and_its_mark() -> None:
    columns = {
        "age": {"kind": "number", "low": 0, "high": 1, "missing": "indicator"},
        "sex": {"kind": "category", "values": ["f", "m"]},
        "code": {"kind": "category", "values": ["a", "b", "c"], "missing": "indicator"},
    }
    layout = layout_of(study_of("tabular", columns, {"name": "mlp"}))
    assert layout.names == ("age", "sex", "code")
    assert layout.cell_of.tolist() == [0, 0, 1, 1, 2, 2, 2, 2]
