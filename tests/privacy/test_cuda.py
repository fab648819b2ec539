"""The private step on a CUDA device against the CPU's: every rule, both sums, dropout and noise."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privacy.dpsgd import Mechanism, PrivateStep
from privacy.stream import Stream
from tests.privacy.networks import KEY, NETWORKS, clipped, example, naive_sum, squared_error
from tests.privacy.test_rules import CASES
from tests.privacy.test_rules import example as rule_example

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def assert_near(got: Tensor, expected: Tensor) -> None:
    """Within 1e-4 of the norm; TF32 would differ by ten times that."""
    assert got.device.type == "cuda"
    assert float((got.cpu() - expected).norm()) <= 1e-4 * float(expected.norm())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_the_same_sum(name: str) -> None:
    model, x, y = example(name, 7)
    expected = naive_sum(model, x, y, 1.0)
    assert_near(clipped(model.cuda(), x.cuda(), y.cuda(), 1.0), expected)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_gives_the_same_sum(name: str) -> None:
    model, x, y = rule_example(name, 7)
    expected = naive_sum(model, x, y, 0.5)
    assert_near(clipped(model.cuda(), x.cuda(), y.cuda(), 0.5), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_patients_are_clipped_as_one(name: str) -> None:
    model, x, y = example(name, 7)
    owners = np.array([3, 1, 3, 2, 1, 3, 0])
    expected = naive_sum(model, x, y, 0.5, owners)
    step = PrivateStep(
        model.cuda(), squared_error, Mechanism(0.5, 0.0, 0.5, 1.0, "patient"), max_physical_batch=3
    )
    assert_near(step.clipped_sum(x.cuda(), y.cuda(), owners, Stream(KEY)), expected)


def test_tf32_is_off_whatever_was_set() -> None:
    model = nn.Conv2d(64, 64, 3, padding=1)
    x = torch.randn(4, 64, 16, 16)
    y = torch.randn(4, 64, 16, 16)
    expected = naive_sum(model, x, y, math.inf)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    got = clipped(model.cuda(), x.cuda(), y.cuda(), math.inf)
    assert float((got.cpu() - expected).norm()) <= 2e-5 * float(expected.norm())


@pytest.mark.parametrize("name", NETWORKS)
def test_sums_on_a_grid_hardly_differ(name: str) -> None:
    model, x, y = example(name, 7)
    mechanism = Mechanism(1.0, 0.0, 0.5, 1.0)
    scale = 2.0**20
    here = PrivateStep(model, squared_error, mechanism)
    expected = here.fixed_point_sum(x, y, None, Stream(KEY), scale)
    there = PrivateStep(model.cuda(), squared_error, mechanism)
    got = there.fixed_point_sum(x.cuda(), y.cuda(), None, Stream(KEY), scale)
    assert float(np.linalg.norm(got - expected)) <= 1e-4 * float(np.linalg.norm(expected)) + 7


def test_noise_is_that_of_the_key_and_not_of_the_device() -> None:
    model, x, y = example("conv2d", 7)
    mechanism = Mechanism(1.0, 2.0, 0.5, 4.0)
    expected = PrivateStep(model, squared_error, mechanism).gradient(x, y, None, KEY)
    got = PrivateStep(model.cuda(), squared_error, mechanism).gradient(
        x.cuda(), y.cuda(), None, KEY
    )
    assert_near(got, expected)


def test_dropout_is_drawn_from_the_key() -> None:
    model = nn.Sequential(nn.Linear(9, 64), nn.Dropout(0.5), nn.Linear(64, 2)).cuda()
    x, y = torch.randn(5, 9).cuda(), torch.randn(5, 2).cuda()
    step = PrivateStep(model, squared_error, Mechanism(1.0, 0.0, 0.5, 1.0))
    before = torch.cuda.get_rng_state()
    first, again, other = (
        step.clipped_sum(x, y, None, Stream(key)) for key in (KEY, KEY, bytes(32))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_an_empty_batch_is_noise_alone() -> None:
    model, x, y = example("linear", 1)
    step = PrivateStep(model.cuda(), squared_error, Mechanism(1.0, 1.0, 0.5, 1.0))
    got = step.gradient(x[:0].cuda(), y[:0].cuda(), None, KEY)
    assert got.device.type == "cuda"
    assert float(got.norm()) > 0
