"""Facts about the recurrent networks."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from privacy.errors import StudyError
from shared_models import sections
from shared_models.inputs import InputSpec
from shared_models.recurrent import CELLS, Cell, Recurrent, build_recurrent, last_step

NAMES: tuple[Cell, ...] = get_args(Cell)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def section(name: str, hidden: tuple[int, ...] = (128, 64)) -> sections.Recurrent:
    return sections.Recurrent.model_validate({"name": name, "hidden": hidden})


@pytest.mark.parametrize(("name", "gates"), [("lstm", 4), ("gru", 3), ("rnn", 1)])
def test_has_the_known_number_of_parameters(name: str, gates: int) -> None:
    network = build_recurrent(section(name), InputSpec("series", (100, 32)), 1)
    # a gate: input weights, state weights and torch's two biases
    first, second = gates * (32 * 128 + 128 * 128 + 256), gates * (128 * 64 + 64 * 64 + 128)
    assert count(network) == first + second + 64 + 1


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    batch=st.integers(0, 4),
    steps=st.integers(1, 9),
    features=st.integers(1, 5),
    hidden=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    outputs=st.integers(1, 4),
)
def test_any_series_gives_logits(
    name: Cell, batch: int, steps: int, features: int, hidden: list[int], outputs: int
) -> None:
    spec = InputSpec("series", (steps, features))
    network = build_recurrent(section(name, tuple(hidden)), spec, outputs)
    assert network(torch.zeros(batch, steps, features)).shape == (batch, outputs)


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(NAMES), data=st.data())
def test_padding_after_the_tokens_changes_nothing(name: Cell, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=6))
    padding = data.draw(st.integers(1, 5))
    network = Recurrent(name, 2, features=3, vocabulary=8, hidden=(5, 4))
    short = torch.tensor([tokens])
    long = torch.tensor([tokens + [0] * padding])
    torch.testing.assert_close(network(long), network(short), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_record_of_padding_alone_is_finite(name: Cell) -> None:
    network = Recurrent(name, 2, features=3, vocabulary=8, hidden=(5,))
    loss = network(torch.zeros(2, 6, dtype=torch.int64)).square().sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_record_does_not_feel_its_neighbours(name: Cell) -> None:
    network = Recurrent(name, 2, features=3, hidden=(5, 4))
    x = torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]), atol=1e-6, rtol=1e-5)


def test_the_last_output_decides_and_all_steps_reach_it() -> None:
    network = Recurrent("lstm", 1, features=2, hidden=(4, 3))
    x = torch.randn(1, 5, 2, generator=torch.Generator().manual_seed(2)).requires_grad_()
    network(x).sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(dim=2) > 0).all()


def test_last_step_takes_each_records_own_last_token() -> None:
    sequence = torch.arange(12.0).view(3, 4, 1)
    present = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]).bool()
    assert last_step(sequence, present).flatten().tolist() == [1.0, 6.0, 8.0]
    assert last_step(sequence, None).flatten().tolist() == [3.0, 7.0, 11.0]


@pytest.mark.parametrize("name", NAMES)
def test_private_training_can_swap_every_cell(name: Cell) -> None:
    """One layer a module, batch first, one direction, called on a plain tensor."""
    network = Recurrent(name, 1, features=3, hidden=(5, 4))
    cells = [m for m in network.modules() if isinstance(m, nn.RNNBase)]
    assert [type(cell) for cell in cells] == [CELLS[name]] * 2
    for cell in cells:
        assert (cell.num_layers, cell.batch_first, cell.bidirectional) == (1, True, False)


@pytest.mark.parametrize("kind", ["features", "image"])
def test_what_is_no_sequence_is_refused(kind: str) -> None:
    with pytest.raises(StudyError, match=r"'gru' expected a series or tokens"):
        build_recurrent(section("gru"), InputSpec(kind, (4,)), 1)  # type: ignore[arg-type]
