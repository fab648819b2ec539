"""Cells: what one site counts, and that sums of counts are counts of unions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import DataError
from shared_models.cells import (
    LOSS_MAX,
    bin_edges,
    cell_names,
    count_cells,
    read_cells,
)

CLASSES = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "regression": ()}
kinds = st.sampled_from(sorted(CLASSES))
seeds = st.integers(0, 2**32 - 1)


def records(kind, size, seed):
    rng = np.random.default_rng(seed)
    if kind == "regression":
        return rng.uniform(10, 50, size), rng.uniform(10, 50, size)
    count = len(CLASSES[kind])
    scores = rng.dirichlet(np.full(count, 0.4), size)
    scores[rng.random(size) < 0.3] = 1 / count  # ties, and exactly one half
    return rng.integers(0, count, size), scores


def naive_cells(kind, targets, predictions, bins, bounds):
    """One record at a time, one named cell at a time."""
    classes = CLASSES[kind]
    cells = dict.fromkeys(cell_names(kind, classes, bins), 0)
    for target, prediction in zip(targets, predictions, strict=True):
        if kind == "regression":
            error = min(abs(prediction - target) / (bounds[1] - bounds[0]), 1.0)
            cells["records"] += 1
            cells["absolute error"] += round(error * 2**36)
            cells["squared error"] += round(error**2 * 2**36)
            cells["fourth power of error"] += round(error**4 * 2**36)
            continue
        truth = classes[target]
        if kind == "binary":
            place = sum(edge <= prediction[1] for edge in bin_edges(bins))
            cells[f"{truth} score {place}"] += 1
            brier = (prediction[1] - target) ** 2
        else:
            best = max(range(len(classes)), key=lambda k: prediction[k])
            cells[f"{truth} as {classes[best]}"] += 1
            for k, name in enumerate(classes):
                place = sum(edge <= prediction[k] for edge in bin_edges(bins))
                cells[f"{'is' if k == target else 'not'} {name} score {place}"] += 1
            brier = sum((p - (k == target)) ** 2 for k, p in enumerate(prediction))
        loss = min(LOSS_MAX, -np.log(max(prediction[target], 1e-30)))
        for name, value in (("brier", brier), ("loss", loss)):
            cells[name] += round(value * 2**24)
            cells[f"{name} squared"] += round(value**2 * 2**24)
    return list(cells.values())


@given(kinds, st.integers(0, 30), seeds, st.sampled_from([2, 4, 10, 64]))
@settings(max_examples=60, deadline=None)
def test_counting_agrees_with_a_loop_over_records_and_names(kind, size, seed, bins):
    targets, predictions = records(kind, size, seed)
    bounds = (10.0, 50.0)
    cells = count_cells(kind, CLASSES[kind], targets, predictions, bins=bins, bounds=bounds)
    naive = np.array(naive_cells(kind, targets, predictions, bins, bounds))
    sums = 4 if kind != "regression" else 3
    assert np.array_equal(cells[:-sums], naive[:-sums])
    # A last bit of a logarithm may round the other way: one unit a record.
    assert np.abs(cells[-sums:] - naive[-sums:]).max() <= size


@given(kinds, st.lists(st.integers(0, 20), min_size=1, max_size=5), seeds)
@settings(max_examples=40, deadline=None)
def test_cells_of_a_union_are_the_sum_of_the_sites_cells(kind, sizes, seed):
    targets, predictions = records(kind, sum(sizes), seed)
    cuts = np.cumsum(sizes)[:-1]
    whole = count_cells(kind, CLASSES[kind], targets, predictions, bounds=(10, 50))
    parts = [
        count_cells(kind, CLASSES[kind], t, p, bounds=(10, 50))
        for t, p in zip(np.split(targets, cuts), np.split(predictions, cuts), strict=True)
    ]
    assert np.array_equal(whole, np.sum(parts, axis=0))


@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_there_is_a_distinct_name_for_every_cell(kind):
    targets, predictions = records(kind, 5, 1)
    names = cell_names(kind, CLASSES[kind])
    cells = count_cells(kind, CLASSES[kind], targets, predictions, bounds=(10, 50))
    assert len(set(names)) == len(names) == len(cells)
    assert cells.dtype == np.int64


@given(st.integers(1, 600))
def test_one_half_is_an_edge_and_edges_increase(half):
    edges = bin_edges(2 * half)
    assert len(edges) == 2 * half - 1
    assert edges[half - 1] == 0.5
    assert (np.diff(edges) > 0).all()


def test_a_score_just_below_one_half_is_a_no():
    below = np.nextafter(0.5, 0)
    scores = np.array([[1 - below, below], [0.5, 0.5]])
    tally = read_cells(
        "binary", ("no", "yes"), count_cells("binary", ("no", "yes"), [1, 1], scores)
    )
    assert tally.confusion.tolist() == [[0, 0], [1, 1]]


def test_no_records_are_all_zero_cells():
    for kind, classes in CLASSES.items():
        targets, predictions = records(kind, 0, 0)
        assert not count_cells(kind, classes, targets, predictions).any()


def test_one_hopeless_record_is_saturated():
    cells = count_cells("binary", ("no", "yes"), [1], np.array([[1.0, 0.0]]))
    assert read_cells("binary", ("no", "yes"), cells).sums.tolist() == [1, 1, 16, 256]
    cells = count_cells("regression", (), [20.0], np.array([1e30]), bounds=(10, 50))
    assert read_cells("regression", (), cells, bounds=(10, 50)).sums.tolist() == [40, 40**2, 40**4]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_prediction_that_is_not_finite_is_refused_in_one_line(bad):
    with pytest.raises(DataError, match="no record was counted") as caught:
        count_cells("binary", ("no", "yes"), [1], np.array([[bad, 0.5]]))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="finite"):
        count_cells("regression", (), [1.0], np.array([bad]))


@pytest.mark.parametrize(
    ("kind", "classes", "targets", "predictions", "options"),
    [
        ("binary", ("no", "yes"), [2], [[0.5, 0.5]], {}),
        ("binary", ("no", "yes"), [-1], [[0.5, 0.5]], {}),
        ("binary", ("no", "yes"), [0.5], [[0.5, 0.5]], {}),
        ("binary", ("no", "yes"), [1], [[3.0, -2.0]], {}),
        ("binary", ("no", "yes"), [1], [[0.2, 0.2]], {}),
        ("binary", ("no", "yes"), [1], [0.5], {}),
        ("binary", ("no", "yes"), [1], [[0.5, 0.5]], {"bins": 3}),
        ("binary", ("no", "yes"), [1], [[0.5, 0.5]], {"bins": 0}),
        ("binary", ("a", "b", "c"), [1], [[0.5, 0.5, 0.0]], {}),
        ("multiclass", ("no", "yes"), [1], [[0.5, 0.5]], {}),
        ("regression", (), [1.0], [[1.0]], {}),
        ("regression", (), [1.0], [1.0], {"bounds": (1.0, 1.0)}),
    ],
)
def test_what_does_not_fit_the_kind_is_a_callers_bug(kind, classes, targets, predictions, options):
    with pytest.raises(ValueError, match="expected"):
        count_cells(kind, classes, np.array(targets), np.array(predictions), **options)


@pytest.mark.parametrize(
    "cells", [np.zeros(3, np.int64), np.zeros(2052), np.full(2052, -1, np.int64)]
)
def test_reading_refuses_other_lengths_types_and_negative_counts(cells):
    with pytest.raises(ValueError, match="expected"):
        read_cells("binary", ("no", "yes"), cells)
