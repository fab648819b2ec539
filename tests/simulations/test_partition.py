"""Partitions use every record once, keep patients whole, and come from seed and study alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.records import Records
from privacy.errors import DataError, StudyError
from shared_models.study import Study, parse_study
from simulations.partition import Rows, partition

PRIVATE = {
    "mode": "local", "unit": "patient", "epsilon": 1.0, "delta": 1e-5, "clipping_norm": 1.0,
    "sampling_rate": 0.1, "expected_batch": 8,
}  # fmt: skip
CLASSES = {"kind": "category", "values": ["a", "b", "c"]}


def study_of(
    how: str, sites: int = 5, target: dict[str, Any] = CLASSES, private: bool = False
) -> Study:
    columns = {
        "x": {"kind": "number", "low": 0, "high": 1},
        "y": target,
        "who": {"kind": "id"},
        "ward": {"kind": "category", "values": ["west", "east", "north", "south"], "input": False},
    }
    return parse_study(
        {
            "name": "ward",
            "task": "tabular",
            "rounds": 1,
            "data": {"target": "y", "patient": "who", "columns": columns},
            "model": {"name": "mlp"},
            "training": {"learning_rate": 0.1, "local_steps": 1},
            "privacy": PRIVATE if private else {"mode": "none"},
            "aggregation": {"masking": "none"},
            "simulation": {"sites": sites, "partition": how},
        }
    )


def records_of(
    labels: Any, patients: list[int] | None = None, ward: list[str] | None = None
) -> Records:
    size = len(labels)
    return Records(
        inputs=np.zeros((size, 1), dtype=np.float32),
        targets=np.array(labels, dtype=np.int64),
        identities=tuple(str(index).encode() for index in range(size)),
        patients=None if patients is None else np.array(patients, dtype=np.int64),
        public={} if ward is None else {"ward": np.array(ward, dtype=np.str_)},
    )


def sizes(sites: list[tuple[str, Rows]]) -> list[int]:
    return [len(rows) for _, rows in sites]


def test_iid_shares_are_equal_to_one_record() -> None:
    found = sizes(partition(study_of("iid", 7), records_of([0] * 100), 7))
    assert sorted(found) == [14] * 5 + [15] * 2


@pytest.mark.parametrize("how", ["iid", "dirichlet:0.5", "quantity:0.5"])
@given(
    labels=st.lists(st.integers(0, 2), max_size=40),
    sites=st.integers(3, 60),
    seed=st.integers(0, 9),
)
def test_every_record_is_at_exactly_one_site(
    how: str, labels: list[int], sites: int, seed: int
) -> None:
    found = partition(study_of(how, sites), records_of(labels), seed)
    assert len(found) == sites
    rows = np.concatenate([rows for _, rows in found])
    assert sorted(rows.tolist()) == list(range(len(labels)))
    assert rows.dtype == np.int64


@pytest.mark.parametrize("how", ["iid", "dirichlet:0.5", "quantity:0.5"])
@given(data=st.data(), patients=st.lists(st.integers(0, 8), max_size=40))
def test_records_of_one_patient_stay_together(
    how: str, data: st.DataObject, patients: list[int]
) -> None:
    dense = np.unique(patients, return_inverse=True)[1].tolist() if patients else []
    labels = data.draw(st.lists(st.integers(0, 2), min_size=len(dense), max_size=len(dense)))
    records = records_of(labels, patients=dense)
    found = partition(study_of(how, 4), records, 3)
    assert sum(sizes(found)) == len(dense)
    assert records.patients is not None
    homes = [set(records.patients[rows].tolist()) for _, rows in found]
    assert sum(map(len, homes)) == len(set(dense))


@pytest.mark.parametrize("how", ["iid", "dirichlet:0.5", "quantity:0.5"])
def test_the_seed_decides_and_global_generators_do_not(how: str) -> None:
    study, records = study_of(how), records_of([0, 1, 2] * 50)
    first = [rows.tolist() for _, rows in partition(study, records, 7)]
    np.random.seed(1)
    assert first == [rows.tolist() for _, rows in partition(study, records, 7)]
    assert first != [rows.tolist() for _, rows in partition(study, records, 8)]


def test_a_known_partition_stays() -> None:
    found = partition(study_of("iid", 3), records_of([0] * 9), 7)
    assert [rows.tolist() for _, rows in found] == [[2, 3, 7], [1, 5, 6], [0, 4, 8]]


@pytest.mark.parametrize("how", ["iid", "dirichlet:0.5", "quantity:0.5"])
def test_rows_of_a_site_increase(how: str) -> None:
    for _, rows in partition(study_of(how), records_of([0, 1, 2] * 50), 7):
        assert (np.diff(rows) > 0).all()


def skew(alpha: float) -> float:
    """Return the mean share of the commonest class at a site."""
    records = records_of([0, 1, 2] * 1000)
    sites = partition(study_of(f"dirichlet:{alpha}", 20), records, 7)
    return float(
        np.mean([np.bincount(records.targets[r]).max() / len(r) for _, r in sites if len(r)])
    )


def test_a_smaller_alpha_skews_labels_more() -> None:
    assert skew(1000.0) < 0.4 < 0.55 < skew(0.5) < 0.85 < skew(0.01)


def test_a_smaller_alpha_skews_quantities_more() -> None:
    records = records_of([0] * 2000)
    even = sizes(partition(study_of("quantity:1000", 10), records, 7))
    uneven = sizes(partition(study_of("quantity:0.3", 10), records, 7))
    assert max(even) < 230
    assert max(uneven) > 400


def test_quantity_skew_leaves_labels_alone() -> None:
    records = records_of([0, 1] * 2000)
    for _, rows in partition(study_of("quantity:5", 4), records, 7):
        assert abs(records.targets[rows].mean() - 0.5) < 0.1


@pytest.mark.parametrize("alpha", ["1e-300", "1e-5"])
def test_a_tiny_alpha_gives_all_to_one_site(alpha: str) -> None:
    assert max(sizes(partition(study_of(f"quantity:{alpha}"), records_of([0] * 30), 7))) == 30


def test_an_alpha_too_large_to_draw_from_is_refused() -> None:
    with pytest.raises(StudyError, match="smaller ALPHA"):
        partition(study_of("quantity:1e308"), records_of([0] * 30), 7)


def test_label_skew_of_a_number_is_refused() -> None:
    study = study_of("dirichlet:0.5", target={"kind": "number", "low": 0, "high": 1})
    with pytest.raises(StudyError, match="category target"):
        partition(study, records_of([0] * 9), 7)


def test_names_are_numbered_and_sort_in_order() -> None:
    names = [name for name, _ in partition(study_of("iid", 1001), records_of([0] * 9), 7)]
    assert names[0] == "site-0001"
    assert names[-1] == "site-1001"
    assert names == sorted(names)
    assert partition(study_of("iid", 3), records_of([0]), 7)[0][0] == "site-001"


def test_natural_sites_are_named_by_value_in_the_order_of_the_study() -> None:
    records = records_of([0] * 5, ward=["south", "east", "west", "east", "south"])
    found = partition(study_of("column:ward"), records, 7)
    assert [(name, rows.tolist()) for name, rows in found] == [
        ("west", [2]), ("east", [1, 3]), ("south", [0, 4]),
    ]  # fmt: skip


def test_a_natural_partition_of_two_sites_is_refused() -> None:
    records = records_of([0] * 3, ward=["south", "east", "east"])
    with pytest.raises(StudyError, match="3 sites, found 2"):
        partition(study_of("column:ward"), records, 7)


def test_a_column_that_is_not_public_is_refused() -> None:
    with pytest.raises(StudyError, match="one of ward, found 'x'"):
        partition(study_of("column:x"), records_of([0], ward=["east"]), 7)


def test_a_record_without_a_natural_site_is_refused() -> None:
    records = records_of([0] * 4, ward=["south", "east", "west", ""])
    with pytest.raises(DataError, match="record 4, column 'ward'"):
        partition(study_of("column:ward"), records, 7)


def test_a_patient_at_two_natural_sites_is_refused_when_patients_are_protected() -> None:
    records = records_of([0] * 4, patients=[0, 1, 2, 0], ward=["south", "east", "west", "west"])
    assert len(partition(study_of("column:ward"), records, 7)) == 3
    with pytest.raises(DataError, match="every patient at one site"):
        partition(study_of("column:ward", private=True), records, 7)


def test_files_are_not_divided_here() -> None:
    with pytest.raises(ValueError, match="files"):
        partition(study_of("files"), records_of([0] * 9), 7)


def test_ten_thousand_sites_hold_indices_only() -> None:
    found = partition(study_of("iid", 10_000), records_of([0] * 100_000), 7)
    assert set(sizes(found)) == {10}
    assert sum(rows.nbytes for _, rows in found) == 800_000
