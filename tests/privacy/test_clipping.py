"""Weights from norms: what each way of clipping does to a unit, and that none adds more than C."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from privacy.clipping import ROUNDING, STABILITY, Clipping, clip_weights
from privacy.dpsgd import Mechanism, PrivateStep
from privacy.stream import Stream
from tests.privacy.networks import KEY, assert_close, example, squared_error

WAYS: tuple[Clipping, ...] = get_args(Clipping)
NAMES = ["linear", "conv2d", "attention", "tied", "parameter_of_no_layer", "unused"]


def step(model: nn.Module, bound: float, clipping: Clipping, unit: str = "record") -> PrivateStep:
    mechanism = Mechanism(bound, 0.0, 0.5, 1.0, unit, clipping)  # type: ignore[arg-type]
    return PrivateStep(model, squared_error, mechanism)


def layers(model: nn.Module) -> list[list[int]]:
    """Positions of the parameters of each layer; layers that share a parameter are one."""
    place = {id(p): i for i, p in enumerate(model.parameters())}
    found: list[set[int]] = []
    for module in model.modules():
        own = {place[id(p)] for p in module.parameters(recurse=False)}
        if own:
            found = [group for group in found if not group & own] + [
                own.union(*(group for group in found if group & own))
            ]
    return [sorted(group) for group in found]


def naive(model: nn.Module, x: Tensor, y: Tensor, bound: float, clipping: Clipping) -> Tensor:
    """The clipped sum by the definitions, one backward pass a record, in float64."""
    groups = layers(model)
    total = [torch.zeros(p.shape, dtype=torch.float64) for p in model.parameters()]
    for row in range(len(x)):
        model.zero_grad()
        squared_error(model(x[row : row + 1]), y[row : row + 1]).sum().backward()
        parts = [
            (torch.zeros_like(p) if p.grad is None else p.grad).double() for p in model.parameters()
        ]
        whole = math.sqrt(sum(float(part.square().sum()) for part in parts))
        for group in groups:
            norm, aim = whole, bound
            if clipping == "layer":
                norm = math.sqrt(sum(float(parts[i].square().sum()) for i in group))
                aim = bound / math.sqrt(len(groups))
            weight = aim / (norm + 0.01) if clipping == "automatic" else aim / max(norm, aim)
            for i in group:
                total[i] += weight * parts[i]
    model.zero_grad()
    return torch.cat([part.flatten() for part in total])


@pytest.mark.parametrize("clipping", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_each_way_of_clipping_is_the_naive_loops(name: str, clipping: Clipping) -> None:
    model, x, y = example(name, 7)
    for bound in (1e-3, 1.0, 50.0):
        got = step(model, bound, clipping).clipped_sum(x, y, None, Stream(KEY))
        assert_close(got, naive(model, x, y, bound, clipping))


@pytest.mark.parametrize("clipping", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_no_record_adds_more_than_the_bound(name: str, clipping: Clipping) -> None:
    model, x, y = example(name, 5)
    for bound in (1e-3, 0.7, 30.0):
        private = step(model, bound, clipping)
        for row in range(5):
            one = private.clipped_sum(x[row : row + 1], y[row : row + 1], None, Stream(KEY))
            assert 0 < float(one.norm()) <= bound


@pytest.mark.parametrize("clipping", WAYS)
def test_no_patient_adds_more_than_the_bound(clipping: Clipping) -> None:
    model, x, y = example("conv2d", 6)
    private = step(model, 0.7, clipping, "patient")
    got = private.clipped_sum(x, y, np.zeros(6, dtype=np.int64), Stream(KEY))
    assert 0 < float(got.norm()) <= 0.7


@settings(max_examples=200, deadline=None)
@given(
    norms=st.lists(st.floats(0, 1e18), min_size=1, max_size=6),
    more=st.integers(0, 3),
    bound=st.floats(1e-6, 1e6),
    clipping=st.sampled_from(WAYS),
)
def test_weighted_norms_stay_within_the_bound(
    norms: list[float], more: int, bound: float, clipping: Clipping
) -> None:
    squares = torch.tensor(norms, dtype=torch.float64)[:, None] ** 2
    weights, broken = clip_weights(squares, len(norms) + more, bound, clipping)
    assert broken is None
    assert float((weights.double() ** 2 * squares).sum()) <= bound**2


def test_a_norm_below_the_bound_is_kept_by_flat_clipping_alone() -> None:
    squares = torch.tensor([[0.25], [0.0]], dtype=torch.float64)
    kept = {c: clip_weights(squares, 2, 1.0, c)[0].flatten().tolist() for c in WAYS}
    assert kept["flat"] == [1.0]
    assert kept["layer"] == [1.0, 1.0]  # .5 is below 1 / sqrt(2)
    assert kept["automatic"] == [pytest.approx((1 - ROUNDING) / (0.5 + STABILITY))]


def test_an_infinite_bound_scales_nothing() -> None:
    squares = torch.tensor([[4.0, 0.0]], dtype=torch.float64)
    for clipping in ("flat", "layer"):
        assert clip_weights(squares, 1, math.inf, clipping)[0].tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match="finite clipping norm with automatic"):
        Mechanism(math.inf, 0.0, 0.5, 1.0, clipping="automatic")


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e39])
def test_a_unit_without_a_finite_norm_is_named(value: float) -> None:
    squares = torch.tensor([[1.0, 1.0, 1.0], [1.0, value, 1.0]], dtype=torch.float64)
    for clipping in WAYS:
        _, broken = clip_weights(squares, 2, 1.0, clipping)
        assert broken is not None
        assert broken.tolist() == [False, True, False]


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match="flat, layer or automatic"):
        Mechanism(1.0, 1.0, 0.5, 1.0, clipping="none")  # type: ignore[arg-type]
