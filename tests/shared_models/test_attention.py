"""Facts about the attention network."""

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from privacy.errors import StudyError
from shared_models import sections
from shared_models.attention import Attention, SelfAttention, build_attention
from shared_models.inputs import InputSpec

Reader = Literal["none", "lstm", "gru", "rnn"]
READERS: tuple[Reader, ...] = ("none", "lstm", "gru", "rnn")


def tokens_network(recurrent: Reader = "none", length: int = 12) -> Attention:
    return Attention(
        2, length, vocabulary=8, width=8, heads=2, layers=2, feedforward=6, recurrent=recurrent
    )


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_has_the_known_number_of_parameters() -> None:
    network = build_attention(
        sections.Attention(name="attention"), InputSpec("tokens", (60,), vocabulary=5), 3
    )
    block = 4 * (64 * 64 + 64) + (64 * 128 + 128 + 128 * 64 + 64) + 2 * 128
    assert count(network) == 5 * 64 + 60 * 64 + 2 * block + 128 + 64 * 3 + 3


@settings(max_examples=30, deadline=None)
@given(
    reader=st.sampled_from(READERS),
    batch=st.integers(0, 4),
    steps=st.integers(1, 9),
    features=st.integers(1, 5),
    heads=st.integers(1, 3),
    outputs=st.integers(1, 4),
)
def test_any_series_gives_logits(
    reader: str, batch: int, steps: int, features: int, heads: int, outputs: int
) -> None:
    section = sections.Attention.model_validate(
        {"name": "attention", "width": 4 * heads, "heads": heads, "recurrent": reader}
    )
    network = build_attention(section, InputSpec("series", (steps, features)), outputs)
    assert network(torch.zeros(batch, steps, features)).shape == (batch, outputs)


@settings(max_examples=30, deadline=None)
@given(reader=st.sampled_from(READERS), data=st.data())
def test_padding_after_the_tokens_changes_nothing(reader: Reader, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=6))
    padding = data.draw(st.integers(1, 6))
    network = tokens_network(reader)
    short = torch.tensor([tokens])
    long = torch.tensor([tokens + [0] * padding])
    # 1e-5: sums over six and over twelve steps round differently in float32.
    torch.testing.assert_close(network(long), network(short), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reader", READERS)
def test_a_record_of_padding_alone_is_finite(reader: Reader) -> None:
    network = tokens_network(reader)
    loss = network(torch.zeros(2, 6, dtype=torch.int64)).square().sum()
    loss.backward()
    assert torch.isfinite(loss)
    for parameter in network.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize("reader", READERS)
def test_a_record_does_not_feel_its_neighbours(reader: Reader) -> None:
    network = tokens_network(reader)
    x = torch.randint(0, 8, (6, 7), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]), atol=1e-5, rtol=1e-5)


def test_the_order_of_tokens_matters() -> None:
    network = tokens_network()
    assert not torch.allclose(
        network(torch.tensor([[1, 2, 3, 4]])), network(torch.tensor([[4, 3, 2, 1]])), atol=1e-4
    )


def test_attention_is_the_softmax_of_the_scaled_scores() -> None:
    """Differential: the formula of the paper, written out for one head."""
    attention = SelfAttention(width=6, heads=1)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(3))
    attended = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    scores = attention.query(x) @ attention.key(x).mT / 6**0.5
    scores = scores.masked_fill(~attended[:, None], float("-inf"))
    expected = attention.out(scores.softmax(dim=-1) @ attention.value(x))
    torch.testing.assert_close(
        attention(x, attended[:, None, None]), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("reader", READERS)
def test_every_parameter_has_a_known_per_record_gradient(reader: Reader) -> None:
    """Only modules whose gradients private training knows: no parameter lies bare in ours."""
    known = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RNNBase)
    network = tokens_network(reader)
    owners = [m for m in network.modules() if any(True for _ in m.parameters(recurse=False))]
    assert owners
    assert all(isinstance(owner, known) for owner in owners)


def test_positions_are_looked_up_for_every_record() -> None:
    network = tokens_network()
    seen: list[torch.Tensor] = []
    network.positions.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    network(torch.ones(3, 5, dtype=torch.int64))
    assert seen[0].shape == (3, 5)
    assert seen[0].is_contiguous()


@pytest.mark.parametrize("kind", ["features", "image"])
def test_what_is_no_sequence_is_refused(kind: str) -> None:
    section = sections.Attention(name="attention")
    with pytest.raises(StudyError, match=r"'attention' expected a series or tokens"):
        build_attention(section, InputSpec(kind, (4,)), 1)  # type: ignore[arg-type]


def test_the_weights_are_those_that_mix_the_values() -> None:
    torch.manual_seed(0)
    attention, x = SelfAttention(8, 2), torch.randn(3, 5, 8)
    attended = torch.ones(3, 1, 1, 5, dtype=torch.bool)
    attended[1, 0, 0, 3:] = False
    weights = attention.weights(x, attended)  # (3, 2, 5, 5)
    assert (weights[1, :, :, 3:] == 0).all()
    values = attention.value(x).view(3, 5, 2, 4).transpose(1, 2)  # (3, 2, 5, 4)
    mixed = attention.out((weights @ values).transpose(1, 2).reshape(3, 5, 8))
    torch.testing.assert_close(mixed, attention(x, attended))
