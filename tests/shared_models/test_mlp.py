"""Facts about the multi-layer perceptron."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from privacy.errors import StudyError
from shared_models import sections
from shared_models.inputs import InputSpec
from shared_models.mlp import Mlp, build_mlp


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("features", "hidden", "outputs", "expected"),
    [
        (30, (64, 32), 1, 30 * 64 + 64 + 64 * 32 + 32 + 32 + 1),
        (13, (64, 64), 1, 13 * 64 + 64 + 64 * 64 + 64 + 64 + 1),
        (30, (64, 32), 2, 4_130),
    ],
)
def test_has_the_known_number_of_parameters(
    features: int, hidden: tuple[int, ...], outputs: int, expected: int
) -> None:
    assert count(Mlp(features, outputs, hidden)) == expected


def test_without_hidden_widths_is_a_linear_model() -> None:
    network = Mlp(5, 3, hidden=())
    (linear,) = network.layers
    assert isinstance(linear, nn.Linear)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(x), x @ linear.weight.T + linear.bias)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(0, 5),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    hidden=st.lists(st.integers(1, 9), max_size=3),
    outputs=st.integers(1, 4),
)
def test_any_widths_give_one_row_of_logits_a_record(
    batch: int, shape: list[int], hidden: list[int], outputs: int
) -> None:
    spec = InputSpec({1: "features", 2: "series", 3: "image"}[len(shape)], tuple(shape))  # type: ignore[arg-type]
    network = build_mlp(sections.Mlp(name="mlp", hidden=tuple(hidden)), spec, outputs)
    assert network(torch.zeros(batch, *shape)).shape == (batch, outputs)


def test_hidden_layers_are_followed_by_relu() -> None:
    network = Mlp(1, 1, hidden=(1,))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
    # 1 * relu(x + 1) + 1
    assert network(torch.tensor([[-5.0], [2.0]])).tolist() == [[1.0], [4.0]]


def test_dropout_changes_training_only() -> None:
    network = build_mlp(sections.Mlp(name="mlp", dropout=0.5), InputSpec("features", (8,)), 1)
    assert sum(isinstance(module, nn.Dropout) for module in network.modules()) == 2
    x = torch.ones(1, 8)
    network.eval()
    assert torch.equal(network(x), network(x))


def test_tokens_are_refused() -> None:
    with pytest.raises(StudyError, match=r"model\.name: 'mlp' expected numbers"):
        build_mlp(sections.Mlp(name="mlp"), InputSpec("tokens", (9,), vocabulary=5), 1)
