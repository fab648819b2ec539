"""Each layer's rule against one plain backward pass a record, whichever way it computes."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from privacy import convolution, dense
from privacy.bookkeeping import BookkeepingCopy, clear
from privacy.errors import PrivacyError
from privacy.layer import flat
from privacy.persample import HookedCopy
from privacy.rule import UncoveredError
from tests.privacy.networks import squared_error

Case = tuple[Callable[[], nn.Module], Callable[[int], Tensor]]


def floats(*shape: int) -> Callable[[int], Tensor]:
    return lambda rows: torch.randn(rows, *shape)


def ids(*shape: int) -> Callable[[int], Tensor]:
    return lambda rows: torch.randint(0, 7, (rows, *shape))


class Scaled(nn.Module):
    """A scale and a shift that are not ones and zeros, as after some training."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -1.0, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh()


class Twice(nn.Module):
    """One layer that is called twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


class TiedToEmbedding(nn.Module):
    """An embedding whose rows are the weights of the output layer, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4, padding_idx=2)
        self.out = nn.Linear(4, 7)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embed(x).tanh())


class OneIdRow(nn.Module):
    """Ids that share memory: one row, expanded to the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(5, device=x.device).expand(len(x), 5)
        return (self.embed(places) * x[:, :, None]).tanh()


class Checkpointed(nn.Module):
    """Activations that are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        out: Tensor = checkpoint(self.second, hidden, use_reentrant=False)
        return out


class Bare(nn.Module):
    """Parameters of no layer, in the ways that vision and language models use them."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.places = nn.Parameter(torch.randn(1, 9, 4))
        self.scale = nn.Parameter(torch.rand(4))
        self.shift = nn.Parameter(torch.randn(6, 1))
        self.temperature = nn.Parameter(torch.tensor(0.3))
        self.unused = nn.Parameter(torch.randn(3))
        self.gates = nn.ParameterList([torch.randn(4), torch.randn(4)])
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)  # (B, 6, 4)
        x = x + self.places[:, : x.shape[1]]
        x = x + self.scale * self.inner(x)
        x = self.shift + x / functional.softplus(self.temperature)
        x += self.gates[0].sigmoid()
        return (1.0 - self.gates[1]) * x - 0.5 * self.scale[None] + self.token.repeat(len(x), 6, 1)


class BareTied(nn.Module):
    """One parameter of no layer in two modules, and a scale that is a layer's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = BareScale(), BareScale()
        self.second.scale = self.first.scale
        self.norm = nn.LayerNorm(4)
        self.norm.weight = self.first.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.first(x).tanh()))


class BareScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


CASES: dict[str, Case] = {
    "linear": (lambda: nn.Linear(4, 3), floats(4)),
    "linear_without_bias": (lambda: nn.Linear(4, 3, bias=False), floats(4)),
    "linear_on_sequences": (lambda: nn.Linear(4, 3), floats(5, 4)),
    "linear_on_sequences_without_bias": (lambda: nn.Linear(4, 3, bias=False), floats(5, 4)),
    "linear_on_one_step": (lambda: nn.Linear(40, 30), floats(1, 40)),
    "linear_on_grids": (lambda: nn.Linear(4, 3), floats(2, 3, 4)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1, dilation=2), floats(3, 9)),
    "conv1d_groups": (lambda: nn.Conv1d(4, 6, 3, groups=2), floats(4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3), floats(3, 7, 6)),
    "conv2d_padding": (lambda: nn.Conv2d(3, 4, (3, 5), padding=(1, 2)), floats(3, 7, 6)),
    "conv2d_wide": (lambda: nn.Conv2d(2, 3, 3, padding=1), floats(2, 4, 20)),
    "conv2d_stride": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), floats(3, 8, 7)),
    "conv2d_strides": (lambda: nn.Conv2d(3, 4, 3, stride=(1, 2), padding=1), floats(3, 8, 7)),
    "conv2d_dilation": (lambda: nn.Conv2d(3, 4, 3, padding=2, dilation=(2, 1)), floats(3, 8, 7)),
    "conv2d_groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), floats(4, 5, 5)),
    "conv2d_depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False), floats(4, 5, 5)),
    "conv2d_one_by_one": (lambda: nn.Conv2d(3, 5, 1, stride=2), floats(3, 6, 6)),
    "conv2d_patches": (lambda: nn.Conv2d(3, 5, 4, stride=4), floats(3, 8, 8)),
    "conv2d_same": (lambda: nn.Conv2d(3, 4, (2, 3), padding="same"), floats(3, 6, 6)),
    "conv2d_valid": (lambda: nn.Conv2d(3, 4, 3, padding="valid"), floats(3, 6, 6)),
    "conv2d_reflect": (
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), floats(3, 6, 6)
    ),
    "conv2d_replicate": (
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"), floats(3, 6, 6)
    ),
    "conv2d_circular": (
        lambda: nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="circular"), floats(3, 6, 6)
    ),
    "conv2d_on_one_pixel": (lambda: nn.Conv2d(8, 9, 3, padding=1), floats(8, 1, 1)),
    "conv2d_on_four_pixels": (lambda: nn.Conv2d(8, 9, 3, padding=1), floats(8, 2, 2)),
    "conv2d_to_one_pixel": (lambda: nn.Conv2d(8, 9, 3, stride=2, padding=1), floats(8, 2, 2)),
    "conv2d_taps_in_padding": (
        lambda: nn.Conv2d(2, 3, 3, padding=4, dilation=4, groups=1), floats(2, 2, 3)
    ),
    "conv2d_all_in_padding": (lambda: nn.Conv2d(2, 3, 1, stride=9, padding=1), floats(2, 3, 3)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=1), floats(2, 3, 4, 3)),
    "conv3d_groups": (lambda: nn.Conv3d(2, 4, 2, groups=2), floats(2, 3, 4, 3)),
    "transposed1d": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1), floats(3, 5)),
    "transposed2d": (lambda: nn.ConvTranspose2d(3, 4, 2, stride=2), floats(3, 4, 3)),
    "transposed2d_padding": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        floats(4, 4, 3),
    ),
    "transposed2d_dilation": (
        lambda: nn.ConvTranspose2d(3, 4, 3, dilation=2, padding=2, bias=False), floats(3, 4, 3)
    ),
    "transposed3d": (
        lambda: nn.ConvTranspose3d(2, 3, 2, stride=(2, 1, 2), padding=1), floats(2, 3, 2, 3)
    ),
    "group_norm": (lambda: Scaled(nn.GroupNorm(2, 4)), floats(4, 3, 3)),
    "group_norm_on_vectors": (lambda: Scaled(nn.GroupNorm(2, 6)), floats(6)),
    "group_norm_on_sequences": (lambda: Scaled(nn.GroupNorm(1, 4)), floats(4, 5)),
    "instance_norm1d": (lambda: Scaled(nn.InstanceNorm1d(3, affine=True)), floats(3, 6)),
    "instance_norm2d": (lambda: Scaled(nn.InstanceNorm2d(3, affine=True)), floats(3, 3, 2)),
    "instance_norm3d": (lambda: Scaled(nn.InstanceNorm3d(2, affine=True)), floats(2, 3, 2, 2)),
    "layer_norm": (lambda: Scaled(nn.LayerNorm(6)), floats(6)),
    "layer_norm_on_sequences": (lambda: Scaled(nn.LayerNorm(6)), floats(5, 6)),
    "layer_norm_without_bias": (lambda: Scaled(nn.LayerNorm(6, bias=False)), floats(5, 6)),
    "layer_norm_over_two_axes": (lambda: Scaled(nn.LayerNorm((3, 4))), floats(2, 3, 4)),
    "rms_norm": (lambda: Scaled(nn.RMSNorm(6)), floats(5, 6)),
    "rms_norm_over_two_axes": (lambda: Scaled(nn.RMSNorm((3, 4), eps=1e-3)), floats(2, 3, 4)),
    "embedding": (lambda: Scaled(nn.Embedding(7, 4)), ids(5)),
    "embedding_of_one": (lambda: Scaled(nn.Embedding(7, 4)), ids()),
    "embedding_of_grids": (lambda: Scaled(nn.Embedding(7, 4, padding_idx=0)), ids(2, 3)),
    "embedding_of_one_row": (OneIdRow, floats(5)),
    "linear_twice": (lambda: Twice(nn.Linear(4, 4)), floats(5, 4)),
    "conv2d_twice": (lambda: Twice(nn.Conv2d(2, 2, 3, padding=1)), floats(2, 4, 4)),
    "group_norm_twice": (lambda: Twice(nn.GroupNorm(2, 4)), floats(4, 3)),
    "layer_norm_twice": (lambda: Twice(nn.LayerNorm(4)), floats(3, 4)),
    "tied_to_embedding": (TiedToEmbedding, ids(5)),
    "checkpointed": (Checkpointed, floats(4)),
    "bare_parameters": (Bare, floats(5, 4)),
    "bare_parameters_tied": (BareTied, floats(3, 4)),
    "in_place": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)), floats(4)
    ),
}  # fmt: skip


def example(name: str, rows: int) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        build, inputs = CASES[name]
        model = build()
        x = inputs(rows)
        return model, x, torch.randn_like(model(x))


def naive_gradients(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Per parameter the (B, *shape) gradients, in float64, each from a pass of its own."""
    found = []
    for row in range(len(x)):
        loss = squared_error(model(x[row : row + 1]), y[row : row + 1]).sum()
        parameters = list(model.parameters())
        found.append(
            torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        )
    return [torch.stack(parts).double() for parts in zip(*found, strict=True)]


def norms(gradients: list[Tensor]) -> Tensor:
    return torch.cat([flat(g) for g in gradients], 1).norm(dim=1)


# How a gradient comes about depends on sizes; here each way is forced on all of them.
WAYS: dict[str, dict[str, int]] = {
    "by_size": {},
    "never_held": {"HELD": 0},
    "products": {"HELD": 0, "FEW": 1 << 30},
    "grouped": {"HELD": 1 << 30, "NARROW": 0},
    "narrow": {"HELD": 1 << 30, "NARROW": 1 << 30},
}


def take(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WAYS[way].items():
        monkeypatch.setattr(convolution, name, value)
        if hasattr(dense, name):
            monkeypatch.setattr(dense, name, value)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("name", CASES)
def test_a_rule_is_the_naive_loop(
    name: str, rows: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(way, monkeypatch)
    model, x, y = example(name, rows)
    expected = naive_gradients(model, x, y)
    watched = BookkeepingCopy(model)
    layers = watched.run(x, lambda outputs: squared_error(outputs, y).sum())
    positions = [position for layer in layers for position in layer.positions]
    assert sorted(positions) == list(range(len(expected)))

    squares = torch.stack([layer.rule.norms_squared().double() for layer in layers]).sum(0)
    assert torch.allclose(squares.sqrt(), norms(expected), rtol=1e-5)

    for part in (slice(None), slice(0, 1), slice(rows // 2, rows)):
        each = [gradient for layer in layers for gradient in layer.rule.per_sample(part)]
        for position, gradient in zip(positions, each, strict=True):
            difference = (gradient - expected[position][part]).norm()
            assert difference <= 1e-5 * expected[position][part].norm() + 1e-12

    weights = torch.rand(rows)
    total = float(torch.stack([(weights @ flat(e).float()).norm() for e in expected]).norm())
    for layer in layers:
        for position, got in zip(layer.positions, layer.rule.weighted_sum(weights), strict=True):
            wanted = torch.tensordot(weights.double(), expected[position], 1)
            assert got.shape == wanted.shape
            assert float((got - wanted).norm()) <= 1e-5 * total
    clear(layers)
    assert all(layer.rule.rows == 0 for layer in watched.layers)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_a_dropped_row_adds_nothing_though_it_holds_nan(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(way, monkeypatch)
    model, x, y = example(name, 4)
    expected = naive_gradients(model, x, y)
    y[2] = math.nan
    if x.is_floating_point():
        x[2] = math.nan
    layers = BookkeepingCopy(model).run(x, lambda outputs: squared_error(outputs, y).sum())
    squares = torch.stack([layer.rule.norms_squared().double() for layer in layers]).sum(0)
    assert squares.isfinite().tolist() == [True, True, False, True]
    for layer in layers:
        layer.rule.drop(~squares.isfinite())
        weights = torch.tensor([0.5, 1.0, 0.0, 0.25])
        for position, got in zip(layer.positions, layer.rule.weighted_sum(weights), strict=True):
            wanted = torch.tensordot(weights.double(), expected[position], 1)
            assert float((got - wanted).norm()) <= 1e-5 * float(wanted.norm()) + 1e-6


# Opacus fails on a missing bias, trains the padding row of a tied embedding, and pads with zeros
# whatever the layer says.
UNKNOWN_TO_OPACUS = {
    "layer_norm_without_bias", "tied_to_embedding", "conv2d_reflect", "conv2d_replicate",
    "conv2d_circular",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CASES if name not in UNKNOWN_TO_OPACUS])
def test_a_rule_is_opacus_gradient(name: str) -> None:
    model, x, y = example(name, 7)
    ours = BookkeepingCopy(model).run(x, lambda outputs: squared_error(outputs, y).sum())
    theirs = HookedCopy(model).run(x, lambda outputs: squared_error(outputs, y).sum())
    assert [layer.positions for layer in ours] == [layer.positions for layer in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(
            one.rule.norms_squared().double().sqrt(), other.rule.norms_squared().sqrt(), rtol=1e-5
        )


# What a rule must not do


def test_a_value_overwritten_after_a_layer_read_it_is_an_error() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            out = self.second(hidden)
            hidden.mul_(2.0)
            return out + hidden

    copy = BookkeepingCopy(Overwriting())
    x = torch.randn(3, 4)
    first, second = copy.run(x, lambda outputs: squared_error(outputs, x).sum())
    first.rule.norms_squared()
    with pytest.raises(PrivacyError, match="changed in place"):
        second.rule.norms_squared()


def test_a_first_layers_output_may_be_overwritten() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv1d(2, 4, 3), nn.Conv1d(4, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(functional.relu(self.first(x), inplace=True))

    torch.manual_seed(2)
    model, x, y = InPlace(), torch.randn(3, 2, 9), torch.randn(3, 2, 5)
    layers = BookkeepingCopy(model).run(x, lambda outputs: squared_error(outputs, y).sum())
    squares = torch.stack([layer.rule.norms_squared() for layer in layers]).sum(0)
    assert torch.allclose(squares.sqrt(), norms(naive_gradients(model, x, y)), rtol=1e-5)


def test_no_gradient_is_computed_for_weights_and_none_is_left() -> None:
    model, x, y = example("in_place", 3)
    copy = BookkeepingCopy(model)
    copy.run(x, lambda outputs: squared_error(outputs, y).sum())
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is None and not p.requires_grad for p in copy._copy.parameters())
    mine = [p.data_ptr() for p in copy._copy.parameters()]
    assert mine == [p.data_ptr() for p in model.parameters()]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3), (3, 6, 6)),
        (nn.ConvTranspose2d(3, 4, 3), (3, 6, 6)),
        (nn.InstanceNorm2d(3, affine=True), (3, 6, 6)),
        (nn.LayerNorm((3, 6)), (3, 6)),
        (nn.RMSNorm((3, 6)), (3, 6)),
    ],
)
def test_an_input_without_a_batch_is_refused(layer: nn.Module, shape: tuple[int, ...]) -> None:
    copy = BookkeepingCopy(layer)
    with pytest.raises(PrivacyError, match="axes"):
        copy.run(torch.randn(shape), lambda outputs: outputs.sum())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Bilinear(3, 3, 2),
        nn.PReLU(),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        nn.EmbeddingBag(7, 3),
    ],
)
def test_a_layer_without_a_rule_is_named(layer: nn.Module) -> None:
    with pytest.raises(UncoveredError, match="has no rule"):
        BookkeepingCopy(nn.Sequential(nn.Linear(3, 3), layer))


def test_cancelling_positions_are_not_lost() -> None:
    """Gradients of positions that nearly cancel: float32 Gram matrices would see noise only."""
    torch.manual_seed(0)
    model = nn.Linear(200, 200, bias=False)  # held nowhere: 40,000 weights, 4 positions
    a, g = torch.randn(1, 200), torch.randn(1, 200)
    x = torch.stack([a, a, a, a * (1 + 1e-4)], 1) * 1e3
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])[None, :, None]
    layers = BookkeepingCopy(model).run(x, lambda outputs: (outputs * g[:, None] * signs).sum())
    got = float(layers[0].rule.norms_squared().sqrt())
    exact = ((g[:, None] * signs).double().mT @ x.double()).norm()
    assert got == pytest.approx(float(exact), rel=1e-5)


class OwnLinear(nn.Linear):
    """A layer that may compute anything."""


class Product(nn.Module):
    """A parameter of no layer that meets its input in some other way."""

    def __init__(self, meet: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.bare, self.meet = nn.Parameter(torch.randn(shape)), meet

    def forward(self, x: Tensor) -> Tensor:
        return self.meet(x, self.bare)


@pytest.mark.parametrize(
    "model",
    [
        OwnLinear(4, 3),
        Product(lambda x, p: x @ p, 4, 3),
        Product(lambda x, p: torch.einsum("bi,ij->bj", x, p), 4, 3),
        Product(lambda x, p: x + p, 3, 4),  # along the axis of the records
        Product(lambda x, p: x + (p + torch.ones(3, 4)).sum(0), 3, 4),
        Product(lambda x, p: x + (p + torch.ones(3, 4)).sum(0), 4),
        Product(lambda x, p: torch.cat([x, p]), 3, 4),
        Product(lambda x, p: x + p.mean(), 4),
        Product(lambda x, p: x + p[torch.tensor([0, 0, 1, 1])], 2),
        Product(lambda x, p: x + p.expand(3, 4).sum(0), 1, 4),
        Product(lambda x, p: x + p.T[0], 4, 1),
    ],
)
def test_what_is_not_known_of_a_bare_parameter_has_no_rule(model: nn.Module) -> None:
    watched = BookkeepingCopy(model)

    def try_two_sizes() -> None:  # one length may be the batch's by chance
        for rows in (3, 2):
            clear(watched.run(torch.randn(rows, 4), lambda outputs: outputs.sum()))

    with pytest.raises(UncoveredError, match="a parameter of no layer"):
        try_two_sizes()


@pytest.mark.parametrize("pad", [0, 1, 2, 5])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (2, 1), (3, 1), (3, 3), (5, 2)])
@pytest.mark.parametrize("width", [1, 2, 4, 11])
def test_lines_share_their_padding_only_where_it_is_wide_enough(
    width: int, kernel: int, dilation: int, pad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    take("narrow", monkeypatch)
    if width + 2 * pad < dilation * (kernel - 1) + 1:
        pytest.skip("the kernel is wider than the padded line")
    model = nn.Conv2d(2, 4, (2, kernel), padding=(1, pad), dilation=(1, dilation), groups=2)
    x = torch.randn(3, 2, 4, width)
    y = torch.randn_like(model(x))
    layers = BookkeepingCopy(model).run(x, lambda outputs: squared_error(outputs, y).sum())
    expected = norms(naive_gradients(model, x, y))
    squares = torch.stack([layer.rule.norms_squared().double() for layer in layers]).sum(0)
    assert torch.allclose(squares.sqrt(), expected, rtol=1e-5)
