"""Networks and losses that mix records are refused, whatever they are made of."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privacy.dpsgd import Mechanism, PrivateStep
from privacy.errors import PrivacyError
from privacy.stream import Stream
from tests.privacy.networks import KEY, NETWORKS, example, squared_error

MECHANISM = Mechanism(1.0, 1.0, 0.5, 1.0)


class Mixing(nn.Module):
    """Linear layers with something between them."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.after, self.mix = nn.Linear(4, 5), nn.Linear(5, 2), mix

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.mix(self.before(x)))


MIXTURES: dict[str, Callable[[Tensor], Tensor]] = {
    "centred": lambda h: h - h.mean(0),
    "normed": lambda h: h / h.norm(),
    "shifted": lambda h: h.roll(1, 0),
    "attending": lambda h: (h @ h.T).softmax(1) @ h,
    "maximum": lambda h: h + h.amax(0),
    "faint": lambda h: h + 1e-6 * h.sum(0),
    "normed_unseen": lambda h: (h - h.mean(0).detach()) / h.std(0, correction=0).detach(),
}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_network_that_mixes_records_is_refused(name: str, rows: int) -> None:
    torch.manual_seed(0)
    step = PrivateStep(Mixing(MIXTURES[name]), squared_error, MECHANISM)
    with pytest.raises(PrivacyError, match="depends on other records"):
        step.gradient(torch.randn(rows, 4), torch.randn(rows, 2), None, KEY)


def cox(outputs: Tensor, targets: Tensor) -> Tensor:
    """The Cox partial likelihood, one term a record: each sees all records at risk."""
    order = targets[:, 0].argsort(descending=True)
    risk = outputs[order, 0].logcumsumexp(0)
    return (risk - outputs[order, 0])[order.argsort()]


def contrast(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(
        outputs @ targets.T, torch.arange(len(outputs)), reduction="none"
    )


@pytest.mark.parametrize(
    "loss", [cox, contrast, lambda o, y: squared_error(o, y).mean().expand(len(o))]
)
def test_a_loss_that_mixes_records_is_refused(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    step = PrivateStep(nn.Linear(4, 2), loss, MECHANISM)
    with pytest.raises(PrivacyError, match="depends on other records"):
        step.gradient(torch.randn(6, 4), torch.randn(6, 2), None, KEY)


def test_a_mixture_is_found_where_gradients_are_made_one_by_one() -> None:
    model = nn.Sequential(Mixing(MIXTURES["centred"]), nn.PReLU())
    step = PrivateStep(model, squared_error, MECHANISM)
    assert "PReLU '1'" in step.fallback
    with pytest.raises(PrivacyError, match="depends on other records"):
        step.gradient(torch.randn(5, 4), torch.randn(5, 2), None, KEY)


class TimeFirst(nn.Module):
    """A layer that is called on (T, B, F): its first axis is not the records'."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).sum(0)


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_an_axis_as_long_as_the_batch_is_not_taken_for_it(steps: int) -> None:
    step = PrivateStep(TimeFirst(), squared_error, MECHANISM)
    with pytest.raises(PrivacyError, match=r"regroups the rows|depends on other records"):
        step.gradient(torch.randn(steps, steps, 3), torch.randn(steps, 2), None, KEY)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_keep_records_apart_pass(name: str) -> None:
    for rows in (1, 7):
        model, x, y = example(name, rows)
        PrivateStep(model, squared_error, MECHANISM).gradient(x, y, None, KEY)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e38])
def test_broken_records_do_not_look_like_a_mixture(poison: float) -> None:
    model, x, y = example("conv2d", 4)
    x[:3], y[:2] = poison, poison
    got = PrivateStep(model, squared_error, MECHANISM).clipped_sum(x, y, None, Stream(KEY))
    assert got.isfinite().all()


def test_nothing_is_drawn_from_torchs_generator_by_the_trial() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.Linear(50, 1))
    x, y = torch.randn(4, 6), torch.randn(4, 1)
    state = torch.get_rng_state()
    PrivateStep(model, squared_error, MECHANISM).gradient(x, y, None, KEY)
    assert torch.equal(torch.get_rng_state(), state)
