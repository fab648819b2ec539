"""The ring's sums: each unit's clipped gradient on the grid by itself, integers added exactly."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from privacy.dpsgd import Mechanism, PrivateStep
from privacy.stream import Stream
from tests.privacy.networks import KEY, NETWORKS, example, naive_sum, squared_error

SCALE = 2.0**30


def step(model: nn.Module, bound: float = 1.0, unit: str = "record") -> PrivateStep:
    return PrivateStep(model, squared_error, Mechanism(bound, 0.0, 0.5, 1.0, unit))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
def test_grid_sum_is_the_naive_loops(name: str) -> None:
    model, x, y = example(name, 7)
    got = torch.from_numpy(step(model, 0.5).fixed_point_sum(x, y, None, Stream(KEY), SCALE))
    expected = naive_sum(model, x, y, 0.5)
    # float32 gradients differ by 1e-7 of themselves, truncation by 7 of 2^30 a coordinate
    assert float((got / SCALE - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("name", ["linear", "conv2d", "attention", "embedding"])
@pytest.mark.parametrize("rows", [1, 7, 64, 65])
def test_a_sum_is_the_sum_of_its_records_bit_for_bit(name: str, rows: int) -> None:
    """One record's integers do not depend on the batch it is in."""
    model, x, y = example(name, rows)
    private = step(model)
    total = private.fixed_point_sum(x, y, None, Stream(KEY), 2.0**12)
    alone = sum(
        private.fixed_point_sum(x[i : i + 1], y[i : i + 1], None, Stream(KEY), 2.0**12)
        for i in range(rows)
    )
    # a coordinate within 1e-7 of a step of the grid may fall to either side: 1 in 10^4 here
    assert np.abs(total - alone).max() <= 1
    assert np.count_nonzero(total - alone) <= max(2, 1e-3 * total.size)


def test_no_record_is_longer_than_scale_times_the_bound() -> None:
    model, x, y = example("conv2d", 7)
    for bound in (1e-3, 0.7, 30.0):
        for row in range(7):
            got = step(model, bound).fixed_point_sum(
                x[row : row + 1], y[row : row + 1], None, Stream(KEY), 1e4 / bound
            )
            assert float(np.linalg.norm(got.astype(np.float64))) <= 1e4


def test_truncation_is_toward_zero() -> None:
    model = nn.Linear(2, 1, bias=False)
    x, y = torch.tensor([[0.9, -0.9]]), torch.zeros(1, 1)
    private = PrivateStep(model, lambda out, _: out[:, 0], Mechanism(10.0, 0.0, 0.5, 1.0))
    assert private.fixed_point_sum(x, y, None, Stream(KEY), 1.0).tolist() == [0, 0]
    assert private.fixed_point_sum(x, y, None, Stream(KEY), 3.0).tolist() == [2, -2]


def test_patients_are_clipped_as_one_in_any_order() -> None:
    model, x, y = example("linear", 200)
    owners = np.random.default_rng(3).integers(0, 40, 200)
    private = step(model, 2.0, "patient")
    got = private.fixed_point_sum(x, y, owners, Stream(KEY), SCALE)
    expected = naive_sum(model, x, y, 2.0, owners)
    assert float((torch.from_numpy(got) / SCALE - expected).norm()) <= 1e-5 * float(expected.norm())


def test_a_record_without_a_finite_gradient_adds_no_integer() -> None:
    model, x, y = example("linear", 5)
    y[2] = math.nan
    others = [0, 1, 3, 4]
    whole = step(model).fixed_point_sum(x, y, None, Stream(KEY), SCALE)
    rest = step(model).fixed_point_sum(x[others], y[others], None, Stream(KEY), SCALE)
    assert np.abs(whole - rest).max() <= 1e-6 * SCALE


def test_an_empty_batch_is_zero() -> None:
    model, x, y = example("linear", 3)
    got = step(model).fixed_point_sum(x[:0], y[:0], None, Stream(KEY), SCALE)
    assert got.dtype == np.int64
    assert not got.any()


def test_the_longest_vectors_still_add_exactly() -> None:
    model = nn.Linear(1, 1, bias=False)
    private = PrivateStep(model, lambda out, _: out[:, 0], Mechanism(1.0, 0.0, 0.5, 1.0))
    x, y = torch.ones(127, 1), torch.zeros(127, 1)
    one, many = (
        private.fixed_point_sum(x[:n], y[:n], None, Stream(KEY), 2.0**46) for n in (1, 127)
    )
    assert int(one[0]) > 2**45
    assert int(many[0]) == 127 * int(one[0])


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 2.0**61, 2.0**46 + 1])
def test_a_grid_that_could_wrap_is_refused(scale: float) -> None:
    model, x, y = example("linear", 3)
    with pytest.raises(ValueError, match="2\\^62"):
        step(model).fixed_point_sum(x, y, None, Stream(KEY), scale)
