"""The traced gradient: autograd's figures, or none at all."""

from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import torch
from torch import nn

from client.traced import Gradient, gradient_by_autograd, traced_gradient
from shared_models import sections
from shared_models.cells import Kind
from shared_models.cnn import build_cnn
from shared_models.inputs import InputSpec
from shared_models.label import Label
from shared_models.mlp import Mlp

Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def losses_of(kind: Kind) -> Losses:
    return Label(kind, (), 1).losses


def batch(shape: Sequence[int], classes: int, rows: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    targets = torch.randint(0, classes, (rows,), generator=generator)
    return torch.randn((rows, *shape), generator=generator), targets


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return make().train()


def values_of(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in network.parameters()]


def cnn(shape: tuple[int, ...], outputs: int, norm: Literal["none", "group"]) -> nn.Module:
    section = sections.Cnn(name="cnn", channels=(4, 8), hidden=10, norm=norm)
    return build_cnn(section, InputSpec("image", shape), outputs)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Kind, tuple[int, ...], int]] = {
    "mlp, one logit": (lambda: Mlp(6, 1, (5, 4)), "binary", (6,), 2),
    "mlp, two logits": (lambda: Mlp(6, 2, (5,)), "binary", (6,), 2),
    "mlp, classes": (lambda: Mlp(6, 4, ()), "multiclass", (6,), 4),
    "mlp, number": (lambda: Mlp(6, 1, (5,)), "regression", (6,), 2),
    "cnn": (lambda: cnn((1, 8, 8), 3, "none"), "multiclass", (1, 8, 8), 3),
    "cnn, group norm": (lambda: cnn((2, 8, 8), 1, "group"), "binary", (2, 8, 8), 2),
}


def both(name: str) -> tuple[nn.Module, Gradient, Gradient, torch.Tensor, torch.Tensor]:
    make, kind, shape, classes = NETWORKS[name]
    network, losses = seeded(make), losses_of(kind)
    inputs, targets = batch(shape, classes)
    traced = traced_gradient(network, losses, inputs, targets)
    assert traced is not None, f"{name} cannot be traced"
    return network, traced, gradient_by_autograd(network, losses), inputs, targets


@pytest.mark.parametrize("name", NETWORKS)
def test_the_traced_gradient_is_that_of_the_mean_loss(name: str) -> None:
    network, traced, _, inputs, targets = both(name)
    network.zero_grad()
    losses_of(NETWORKS[name][1])(network(inputs), targets).mean().backward()  # type: ignore[no-untyped-call]
    found, _ = traced(values_of(network), inputs, targets)
    for gradient, parameter in zip(found, network.parameters(), strict=True):
        # float32 sums in another order
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_holds_at_other_weights_and_other_records(name: str) -> None:
    network, traced, autograd, inputs, targets = both(name)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5).add_(0.01)
    inputs, targets = inputs.flip(0) * 2, targets.roll(1)
    found, loss = traced(values_of(network), inputs, targets)
    expected, expected_loss = autograd(values_of(network), inputs, targets)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_is_the_sum_over_the_batch(name: str) -> None:
    network, traced, autograd, inputs, targets = both(name)
    expected = losses_of(NETWORKS[name][1])(network(inputs), targets).sum()
    for gradient in (traced, autograd):
        _, loss = gradient(values_of(network), inputs, targets)
        assert not loss.requires_grad
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)


def test_the_same_batch_gives_the_same_bits() -> None:
    network, traced, _, inputs, targets = both("cnn")
    one, _ = traced(values_of(network), inputs, targets)
    two, _ = traced(values_of(network), inputs, targets)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_tracing_changes_no_weight_and_leaves_no_gradient() -> None:
    network = seeded(lambda: Mlp(6, 1, (5,)))
    before = [value.clone() for value in values_of(network)]
    traced_gradient(network, losses_of("binary"), *batch((6,), 2))
    assert all(torch.equal(a, b) for a, b in zip(before, values_of(network), strict=True))
    assert all(parameter.grad is None for parameter in network.parameters())


class Chance(nn.Module):
    """A network whose gradient is another at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(records.shape, generator=self.generator)
        outputs: torch.Tensor = self.layer(records * (1 + noise))
        return outputs


class Counting(nn.Module):
    """A network that computes something else each time, in a way that tracing cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)
        self.calls = 0

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        outputs: torch.Tensor = self.layer(records * self.calls)
        return outputs


class Steepening(Counting):
    """A network with the same outputs and a steeper gradient each time."""

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        outputs: torch.Tensor = self.layer(records)
        return outputs + self.calls * (outputs - outputs.detach())


class Asking(nn.Module):
    """A network that looks at the values that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(records)
        return outputs if float(outputs.detach().sum()) > 0 else 2 * outputs


@pytest.mark.parametrize("make", [Chance, Asking, Counting, Steepening])
def test_a_network_that_cannot_be_traced_has_no_traced_gradient(
    make: Callable[[], nn.Module],
) -> None:
    assert traced_gradient(seeded(make), losses_of("binary"), *batch((6,), 2)) is None


def test_a_network_whose_gradient_is_nan_has_no_traced_gradient() -> None:
    inputs, targets = batch((6,), 2)
    inputs[0, 0] = torch.nan
    assert traced_gradient(seeded(lambda: Mlp(6, 1)), losses_of("binary"), inputs, targets) is None


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_network_is_traced_rightly_or_not_at_all(
    cell: Callable[..., nn.Module],
) -> None:
    class Sequence_(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell(3, 4, batch_first=True)
            self.out = nn.Linear(4, 1)

        def forward(self, records: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.out(self.cell(records)[0][:, -1])
            return outputs

    network, losses = seeded(Sequence_), losses_of("binary")
    inputs, targets = batch((5, 3), 2)
    traced = traced_gradient(network, losses, inputs, targets)
    if traced is None:
        return
    found, _ = traced(values_of(network), inputs * 2, targets)
    expected, _ = gradient_by_autograd(network, losses)(values_of(network), inputs * 2, targets)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
