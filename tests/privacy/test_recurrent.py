"""The recurrent rule against the plain layer, one record at a time, in every shape it covers."""

import copy
import gc
import itertools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from privacy import trace
from privacy.cells import CELLS
from privacy.dpsgd import Mechanism, PrivateStep
from privacy.recurrent import RecurrentRule
from privacy.rule import UncoveredError
from privacy.stream import Stream
from privacy.trace import Packing, Trace
from shared_models.recurrent import Cell, Recurrent
from tests.privacy.networks import KEY, assert_close, median_norm, naive_sum, squared_error

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
            parameter.mul_(1.5)  # off the linear middle of the gates, and not yet chaotic
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


def assert_near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def assert_right(case: Case, packed: str = "", given: bool = True) -> None:
    """Norms to 1e-5 of each, sums to 1e-5 of the global norm: float32 in another order."""
    gradients, passes = naive(case, given)
    rule, got = private(case, packed, given)
    assert rule.rows == len(case.lengths)
    for row, (length, one) in enumerate(zip(case.lengths, passes, strict=True)):
        # Outputs are of order one or larger: float32 products in another order.
        largest = max(1.0, float(flat([one.output, *one.last]).abs().max()))
        assert_near(got.output[row, :length], one.output[0], 1e-6 * largest)
        for part, alone in zip(got.last, one.last, strict=True):
            assert_near(part[:, row], alone[:, 0], 1e-6 * largest)
        tolerance = 1e-5 * float(flat([one.inputs, *one.firsts]).norm())
        assert_near(got.inputs[row, :length], one.inputs[0], tolerance)
        assert not got.inputs[row, length:].any()  # padding has no part in anything
        for part, alone in zip(got.firsts, one.firsts, strict=True):
            assert_near(part[:, row], alone[:, 0], tolerance)
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [[1], [9], [1] * 7, [30] * 7])
def test_any_batch_and_length(way: str, kind: str, lengths: list[int]) -> None:
    assert_right(Case(make(kind, 2, True), lengths))
    assert_right(Case(make(kind, 2, True), lengths), given=False)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_has_no_norms_and_adds_nothing(way: str, kind: str) -> None:
    rule, got = private(Case(make(kind, 2, True), []))
    assert got.output.shape == (0, STEPS, 2 * HIDDEN)
    assert rule.rows == 0
    assert rule.norms_squared().shape == (0,)
    assert not flat(rule.weighted_sum(torch.empty(0))).any()
    assert all(len(gradient) == 0 for gradient in rule.per_sample(slice(None)))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    layers=st.integers(1, 3),
    flags=st.tuples(*[st.booleans()] * 4),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    packed=st.booleans(),
)
def test_any_lengths_match_single_records(
    kind: str, layers: int, flags: tuple[bool, ...], lengths: list[int], packed: bool
) -> None:
    both, bias, first, given_states = flags
    case = Case(make(kind, layers, both, bias, first), lengths if packed else lengths[:1] * 4)
    assert_right(case, "unsorted" if packed else "", given_states)


def test_gradients_are_kept_where_they_are_small() -> None:
    """The choice is by size alone, and either way frees what the other would hold."""
    for steps, kept in ((2, False), (9, True)):  # 4 H (F + H) = 112 <= 1.5 T (4 H + F + H) = 34 T
        rule, _ = private(Case(make("LSTM"), [steps] * 3))
        rule.norms_squared()
        (only,) = rule._traces
        assert (len(only._kept) == 2) == (only._gates is None) == kept


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_what_no_loss_reads_counts_as_zero(kind: str) -> None:
    layer = make(kind, 2, True).requires_grad_(False)
    x = torch.randn(3, STEPS, FEATURES)
    rule = RecurrentRule(layer)
    _, last = rule.forward(x)
    assert rule.rows == 0  # called, but without a gradient yet
    h = last[0] if isinstance(last, tuple) else last
    h[
        2
    ].square().sum().backward()  # the second layer forward in time; its other direction is unused
    assert rule.rows == 3
    parameters = dict(layer.named_parameters())
    for name, summed, single in zip(
        parameters, rule.weighted_sum(torch.ones(3)), rule.per_sample(slice(1, 3)), strict=True
    ):
        assert summed.shape == parameters[name].shape
        assert single.shape == (2, *parameters[name].shape)
        assert bool(summed.any()) != ("l1_reverse" in name)
        assert bool(single.any()) != ("l1_reverse" in name)
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_only_the_last_cell_state_may_be_read(way: str) -> None:
    layer = make("LSTM")
    x = torch.randn(4, STEPS, FEATURES)
    rule = RecurrentRule(copy.deepcopy(layer).requires_grad_(False))
    rule.forward(x)[1][1].square().sum().backward()
    layer(x)[1][1].square().sum().backward()
    expected = flat([p.grad for p in layer.parameters()])
    error = flat(rule.weighted_sum(torch.ones(4))) - expected
    assert float(error.norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_first_states_may_be_learned_and_losses_plain_sums(kind: str) -> None:
    """One state expanded over the batch, and gradients that come expanded from a sum."""
    layer, x = make(kind, 2, True), torch.randn(3, STEPS, FEATURES)
    rule = RecurrentRule(copy.deepcopy(layer).requires_grad_(False))
    gradients = []
    for forward in (layer.forward, rule.forward):
        first = torch.full((4, 1, HIDDEN), 0.3, requires_grad=True)
        h = first.expand(4, 3, HIDDEN)
        output, last = forward(x, (h, h) if kind == "LSTM" else h)
        (output.sum() + (last[0] if isinstance(last, tuple) else last).sum()).backward()
        gradients.append(first.grad)
    assert_near(gradients[1], gradients[0], 1e-5 * float(gradients[0].norm()))
    expected = flat([p.grad for p in layer.parameters()])
    error = flat(rule.weighted_sum(torch.ones(3))) - expected
    assert float(error.norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("broken_part", ["x", "by_output"])
@pytest.mark.parametrize("packed", ["", "unsorted"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_record_can_be_dropped(way: str, kind: str, packed: str, broken_part: str) -> None:
    lengths = [2, 5, 4, 5, 1, 3, 5] if packed else [STEPS] * 7
    case = Case(make(kind, 2, True), lengths)
    whole, _ = private(case, packed)
    getattr(case, broken_part)[3, 2] = torch.nan  # an input, or a loss, without a value
    rule, _ = private(case, packed)
    broken = ~rule.norms_squared().isfinite()
    assert broken.tolist() == [row == 3 for row in range(7)]
    rule.drop(broken)
    norms = whole.norms_squared()
    norms[3] = 0
    torch.testing.assert_close(rule.norms_squared(), norms, rtol=1e-5, atol=0)
    weights = torch.rand(7)
    got = flat(rule.weighted_sum(weights))
    weights[3] = 0
    expected = flat(whole.weighted_sum(weights))
    assert float((got - expected).norm()) <= 1e-5 * float(expected.norm())
    assert not flat(rule.per_sample(slice(3, 4))).any()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_the_layers_own(kind: str, packed: bool) -> None:
    """From one seed: the same outputs, and the same sum of gradients as plain autograd gives."""
    layer = make(kind, 3, True)
    layer.dropout = 0.5
    x = torch.randn(4, STEPS, FEATURES)
    value = pack_padded_sequence(x, torch.tensor([5, 2, 4, 1]), True, False) if packed else x
    rule = RecurrentRule(copy.deepcopy(layer).requires_grad_(False))
    outputs = []
    for forward in (layer.forward, rule.forward):
        torch.manual_seed(5)
        output, _ = forward(value)
        outputs.append(output.data if packed else output)
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)  # as without dropout
    expected = flat([p.grad for p in layer.parameters()])
    error = flat(rule.weighted_sum(torch.ones(4))) - expected
    assert float(error.norm()) <= 1e-5 * float(expected.norm())
    rule.clear()
    rule._layer.eval()
    torch.testing.assert_close(rule.forward(x)[0], layer.eval()(x)[0], rtol=1e-5, atol=1e-6)


def test_ghost_norms_are_not_below_the_true_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that nearly cancel: what is left is smaller than the rounding of their squares."""
    monkeypatch.setattr(trace, "_KEPT", 0.0)
    generator = torch.Generator().manual_seed(0)
    batch, steps = 200, 40
    gates = torch.randn(steps, batch, 4 * HIDDEN, generator=generator)
    gates[-1] = -gates[:-1].sum(0)  # the sum over time is 0 but for rounding
    scale = 1 + 1e-4 * torch.randn(steps, batch, 1, generator=generator)
    inputs = torch.randn(1, batch, FEATURES, generator=generator) * scale
    before = torch.randn(1, batch, HIDDEN, generator=generator) * scale
    trace_ = Trace(CELLS["LSTM"], HIDDEN, False, Packing([batch] * steps))
    trace_.record(gates.flatten(0, 1), gates.sum(0), inputs.flatten(0, 1), before.flatten(0, 1))
    values = torch.cat([inputs, before], 2).double()
    truth = torch.einsum("tbg,tbd->bgd", gates.double(), values).square().sum((1, 2))
    assert bool((trace_.norms_squared() >= truth * (1 - 1e-6)).all())
    monkeypatch.setattr(trace, "_GRAM_ROUNDING", 0.0)
    unraised = trace_.norms_squared()
    assert bool((unraised < truth * (1 - 1e-6)).any())  # what the raise is for
    assert bool((unraised >= 0).all())  # and a square is one whatever its rounding


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_opacus_gives_the_same_gradients(kind: str, both: bool) -> None:
    from opacus.grad_sample import GradSampleModule
    from opacus.layers import DPGRU, DPLSTM, DPRNN

    case = Case(make(kind, 2, both), [STEPS] * 6)
    rule, _ = private(case, given=False)
    kinds = {"LSTM": DPLSTM, "GRU": DPGRU}
    options = {} if kind in kinds else {"nonlinearity": kind[4:].lower()}
    theirs = kinds.get(kind, DPRNN)(
        FEATURES, HIDDEN, num_layers=2, batch_first=True, bidirectional=both, **options
    )
    theirs.load_state_dict(case.layer.state_dict())
    hooked = GradSampleModule(theirs, loss_reduction="sum")
    case.losses(*hooked(case.x), slice(None)).sum().backward()
    named = dict(theirs.named_parameters())
    expected = [named[name].grad_sample for name, _ in case.layer.named_parameters()]
    for got, wanted in zip(rule.per_sample(slice(None)), expected, strict=True):
        assert_near(got, wanted, 1e-5 * float(wanted.norm()))


def test_a_second_pass_remembers_nothing_of_the_first(way: str) -> None:
    layer = make("LSTM", 2).requires_grad_(False)
    rule = RecurrentRule(layer)
    norms = []
    for _ in range(2):
        x = torch.ones(3, STEPS, FEATURES)
        rule.forward(x)[0].sum().backward()
        norms.append(rule.norms_squared())
        alive = weakref.ref(rule._traces[0])
        rule.clear()
        gc.collect()
        assert alive() is None
        assert rule.rows == 0
    assert torch.equal(*norms)


def test_a_call_without_gradients_is_not_of_the_pass() -> None:
    rule = RecurrentRule(make("GRU").requires_grad_(False))
    with torch.no_grad():
        output, _ = rule.forward(torch.ones(3, STEPS, FEATURES))
    assert not output.requires_grad
    rule.forward(torch.ones(2, STEPS, FEATURES))[0].sum().backward()
    assert rule.rows == 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_changed_in_place_is_an_error_as_in_autograd(kind: str) -> None:
    rule = RecurrentRule(make(kind).requires_grad_(False))
    output, _ = rule.forward(torch.ones(3, STEPS, FEATURES))
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_the_gates_serve_one_backward_pass() -> None:
    rule = RecurrentRule(make("GRU").requires_grad_(False))
    output, _ = rule.forward(torch.ones(3, STEPS, FEATURES))
    output.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


class Derived(nn.LSTM):
    pass


def tied() -> nn.Module:
    layer = nn.RNN(HIDDEN, HIDDEN)
    layer.weight_ih_l0 = layer.weight_hh_l0
    return layer


REFUSED = {
    "got Derived": lambda: Derived(2, 3),
    "got Linear": lambda: nn.Linear(2, 3),
    "got proj_size": lambda: nn.LSTM(2, 3, proj_size=1),
    "tied": tied,
    "other ones": lambda: nn.utils.weight_norm(nn.LSTM(2, 3), "weight_hh_l0"),
    "got ParametrizedGRU": lambda: nn.utils.parametrizations.weight_norm(
        nn.GRU(2, 3), "weight_hh_l0"
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("text", REFUSED)
def test_other_layers_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UncoveredError, match=text) as refusal:
        RecurrentRule(REFUSED[text]())
    assert "\n" not in str(refusal.value)


def test_calls_without_rows_of_their_own_are_refused() -> None:
    rule = RecurrentRule(make("LSTM").requires_grad_(False))
    with pytest.raises(UncoveredError, match="got 2 axes"):
        rule.forward(torch.ones(STEPS, FEATURES))
    rule.forward(torch.ones(2, STEPS, FEATURES))
    with pytest.raises(UncoveredError, match="one call of LSTM a pass"):
        rule.forward(torch.ones(2, STEPS, FEATURES))


@pytest.mark.parametrize(
    ("shape", "states"),
    [((2, 3, 9), None), ((2, 0, FEATURES), None), ((2, 3, FEATURES), (1, 3, HIDDEN))],
)
def test_wrong_shapes_are_errors(shape: tuple[int, ...], states: tuple[int, ...] | None) -> None:
    for kind in KINDS:
        rule = RecurrentRule(make(kind))
        h = None if states is None else torch.zeros(states)
        with pytest.raises((ValueError, RuntimeError), match=r"[Ee]xpected"):
            rule.forward(torch.ones(shape), (h, h) if h is not None and kind == "LSTM" else h)
        if shape[2] != FEATURES:
            packed = pack_padded_sequence(torch.ones(shape), torch.tensor([3, 2]), True)
            with pytest.raises(RuntimeError, match="must be equal to input_size"):
                rule.forward(packed)
        with pytest.raises(ValueError, match="expected a pair"):
            rule.forward(
                torch.ones(2, 3, FEATURES),
                torch.zeros(1, 2, HIDDEN) if kind == "LSTM" else (torch.zeros(1, 2, HIDDEN),) * 2,
            )


def test_rows_turned_in_time_turn_back() -> None:
    packing = Packing([4, 3, 3, 1])
    reversal = packing.reversal(torch.device("cpu"))
    assert torch.equal(reversal[reversal], torch.arange(11))
    steps = torch.cat([torch.full((n,), float(t)) for t, n in enumerate(packing.sizes)])
    lengths = packing.spread(torch.tensor([4.0, 3, 3, 1]))
    assert torch.equal(steps[reversal], lengths - 1 - steps)
    assert torch.equal(packing.spread(torch.arange(4))[reversal], packing.spread(torch.arange(4)))


@pytest.mark.parametrize("vocabulary", [0, 9])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_whole_steps_of_the_shared_networks_are_the_naive_loops(
    cell: Cell, vocabulary: int
) -> None:
    torch.manual_seed(6)
    model = Recurrent(cell, 2, FEATURES, vocabulary, hidden=(6, 4))
    x = torch.randint(0, 9, (7, STEPS)) if vocabulary else torch.randn(7, STEPS, FEATURES)
    y = torch.randn(7, 2)
    for units in (None, np.array([3, 1, 3, 2, 1, 3, 5])):
        bound = 0.5 * median_norm(model, x, y)
        unit: Literal["record", "patient"] = "record" if units is None else "patient"
        step = PrivateStep(model, squared_error, Mechanism(bound, 0.0, 0.5, 1.0, unit))
        assert_close(
            step.clipped_sum(x, y, units, Stream(KEY)), naive_sum(model, x, y, bound, units)
        )
        assert not step.fallback
