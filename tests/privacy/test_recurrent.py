"""The recurrent rule against the plain layer, one record at a time, in every shape it covers."""

import copy
import gc
import itertools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from privacy import trace
from privacy.cells import CELLS, Walk
from privacy.recurrent import RecurrentRule
from privacy.rule import Rule, UncoveredError
from privacy.trace import Packing, Trace

FEATURES, HIDDEN, STEPS = 3, 4, 5
KINDS = ["LSTM", "GRU", "RNN_TANH", "RNN_RELU"]
SHAPES = list(itertools.product(KINDS, (1, 2, 3), (False, True), (False, True)))
WAYS = {"kept": float("inf"), "ghost": 0.0}  # both ways to a norm, whatever the sizes


def make(
    kind: str, layers: int = 1, both: bool = False, bias: bool = True, first: bool = True
) -> nn.RNNBase:
    torch.manual_seed(len(kind) + 10 * layers)
    options = {
        "num_layers": layers,
        "bidirectional": both,
        "bias": bias,
        "batch_first": first,
    }
    if kind in ("LSTM", "GRU"):
        layer: nn.RNNBase = getattr(nn, kind)(FEATURES, HIDDEN, **options)
    else:
        layer = nn.RNN(FEATURES, HIDDEN, nonlinearity=kind[4:].lower(), **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(2)  # off the linear middle of the gates
    return layer


@dataclass
class Case:
    """A layer, B records of their lengths, first states, and a loss that reads every output."""

    layer: nn.RNNBase
    lengths: list[int]

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(sum(self.lengths) + len(self.lengths))
        layer, count = self.layer, len(self.lengths)
        stacked = layer.num_layers * (2 if layer.bidirectional else 1)
        width = HIDDEN * (2 if layer.bidirectional else 1)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        steps = max(self.lengths, default=STEPS)
        self.x = draw(count, steps, FEATURES)
        self.h0, self.c0 = draw(stacked, count, HIDDEN), draw(stacked, count, HIDDEN)
        self.by_output = draw(count, steps, width)
        self.by_last, self.by_cell = draw(stacked, count, HIDDEN), draw(stacked, count, HIDDEN)

    def states(self, rows: slice, grad: bool = True) -> tuple[Tensor, Tensor]:
        return tuple(s[:, rows].clone().requires_grad_(grad) for s in (self.h0, self.c0))

    def losses(self, output: Tensor, last: object, rows: slice) -> Tensor:
        """(b,) losses of padded (b, L, D H) outputs and last states."""
        present = torch.arange(output.shape[1]) < torch.tensor(self.lengths[rows])[:, None]
        weights = self.by_output[rows, : output.shape[1]] * present[..., None]
        losses = (output.square() * weights).sum((1, 2))
        h, c = last if isinstance(last, tuple) else (last, None)
        losses = losses + (h * self.by_last[:, rows]).sum((0, 2))
        return losses if c is None else losses + (c.sin() * self.by_cell[:, rows]).sum((0, 2))


@dataclass
class Pass:
    """What one pass gave: outputs padded (B, T, D H), gradients of inputs and states, rows."""

    output: Tensor
    last: tuple[Tensor, ...]
    inputs: Tensor
    firsts: list[Tensor]


def private(case: Case, packed: str = "", given: bool = True) -> tuple[RecurrentRule, Pass]:
    """Run the batch through the rule, as ``packed`` says: padded (""), "sorted" or "unsorted"."""
    layer = copy.deepcopy(case.layer).requires_grad_(False)
    rule, rows = RecurrentRule(layer), slice(None)
    x = case.x.clone().requires_grad_()
    states = case.states(rows)
    hx = (states if isinstance(layer, nn.LSTM) else states[0]) if given else None
    value: Tensor | PackedSequence = x if layer.batch_first else x.transpose(0, 1)
    if packed:
        value = pack_padded_sequence(
            value, torch.tensor(case.lengths), layer.batch_first, packed == "sorted"
        )
    output, last = rule.forward(value, hx)
    if isinstance(output, PackedSequence):
        output, _ = pad_packed_sequence(output, layer.batch_first)
    output = output if layer.batch_first else output.transpose(0, 1)
    case.losses(output, last, rows).sum().backward()
    parts = last if isinstance(last, tuple) else (last,)
    firsts = [s.grad for s in states[: len(parts)]] if given else []
    return rule, Pass(output.detach(), tuple(p.detach() for p in parts), x.grad, firsts)


def naive(case: Case, given: bool = True) -> tuple[list[list[Tensor]], list[Pass]]:
    """The definition: each record alone through the plain layer, unpadded, one backward each."""
    gradients, passes = [], []
    layer = copy.deepcopy(case.layer)
    for row, length in enumerate(case.lengths):
        rows = slice(row, row + 1)
        layer.zero_grad()
        x = case.x[rows, :length].clone().requires_grad_()
        states = case.states(rows)
        hx = (states if isinstance(layer, nn.LSTM) else states[0]) if given else None
        output, last = layer(x if layer.batch_first else x.transpose(0, 1), hx)
        output = output if layer.batch_first else output.transpose(0, 1)
        case.losses(output, last, rows).sum().backward()
        parts = last if isinstance(last, tuple) else (last,)
        gradients.append([p.grad.clone() for p in layer.parameters()])
        firsts = [s.grad for s in states[: len(parts)]] if given else []
        passes.append(Pass(output.detach(), tuple(p.detach() for p in parts), x.grad, firsts))
    return gradients, passes


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts]).double()


def assert_near(got: Tensor, expected: Tensor, share: float) -> None:
    """Within ``share`` of the largest value: float32 products in another order."""
    torch.testing.assert_close(got, expected, rtol=0, atol=share * float(expected.abs().max()))


def assert_right(case: Case, packed: str = "", given: bool = True) -> None:
    """Norms to 1e-5 of each, sums to 1e-5 of the global norm: float32 in another order."""
    gradients, passes = naive(case, given)
    rule, got = private(case, packed, given)
    assert rule.rows == len(case.lengths)
    for row, (length, one) in enumerate(zip(case.lengths, passes, strict=True)):
        assert_near(got.output[row, :length], one.output[0], 1e-6)
        assert_near(got.inputs[row, :length], one.inputs[0], 1e-5)
        assert not got.inputs[row, length:].any()  # padding has no part in anything
        pairs = zip((*got.last, *got.firsts), (*one.last, *one.firsts), strict=True)
        for part, single in pairs:
            assert_near(part[:, row], single[:, 0], 1e-5)
    norms = torch.tensor([float(flat(g).square().sum()) for g in gradients]).double()
    torch.testing.assert_close(rule.norms_squared().double(), norms, rtol=2e-5, atol=0)  # squared
    weights = torch.rand(len(gradients), generator=torch.Generator().manual_seed(1))
    total = sum(w * flat(g) for w, g in zip(weights.double(), gradients, strict=True))
    shared = rule.weighted_sum(weights)
    assert [s.shape for s in shared] == [p.shape for p in case.layer.parameters()]
    assert float((flat(shared) - total).norm()) <= 1e-5 * float(total.norm())
    single = rule.per_sample(slice(1, None))
    for row, gradient in enumerate(gradients[1:]):
        error = flat([s[row] for s in single]) - flat(gradient)
        assert float(error.norm()) <= 1e-5 * float(flat(gradient).norm())


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(trace, "_KEPT", WAYS[request.param])
    return request.param


@pytest.mark.parametrize(("kind", "layers", "both", "bias"), SHAPES)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("packed", ["", "sorted", "unsorted"])
def test_every_shape_matches_single_records(
    way: str, kind: str, layers: int, both: bool, bias: bool, first: bool, packed: str
) -> None:
    lengths = {"": [STEPS] * 7, "sorted": [5, 5, 4, 2, 2, 1, 1], "unsorted": [2, 5, 1, 4, 5, 2, 3]}
    assert_right(Case(make(kind, layers, both, bias, first), lengths[packed]), packed)
