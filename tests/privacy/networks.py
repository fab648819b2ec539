"""Networks, records and the naive loop over single records that private steps are compared with."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privacy.dpsgd import Mechanism, PrivateStep
from privacy.stream import Stream

KEY = bytes(range(32))


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).sum(1)


def naive_sum(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    bound: float,
    units: npt.NDArray[np.int64] | None = None,
    losses: Callable[[Tensor, Tensor], Tensor] = squared_error,
) -> Tensor:
    """The clipped sum by the definition: one plain backward a row, one clip a unit, in float64."""
    owners = np.arange(len(x)) if units is None else units
    total = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    for owner in np.unique(owners):
        gradient = torch.zeros_like(total)
        for row in np.flatnonzero(owners == owner):
            model.zero_grad()
            losses(model(x[row : row + 1]), y[row : row + 1]).sum().backward()
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
            gradient += torch.cat([part.flatten() for part in parts]).double()
        total += gradient * min(1.0, bound / max(float(gradient.norm()), 1e-300))
    model.zero_grad()
    return total


def assert_close(got: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the global norm: float32 sums in another order differ by about 1e-7 of it."""
    assert float((got - expected).norm()) <= 1e-5 * float(expected.norm())


class Last(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.layer(x)[0]  # (B, T, H), or (T, B, H)
        return outputs[:, -1] if self.layer.batch_first else outputs[-1]


class FirstAxis(nn.Module):
    """Time first, as recurrent layers want it by default."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1)


class Attention(nn.Module):
    """Self-attention of Linear layers with a causal mask in a buffer, and a residual norm."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.out = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.register_buffer("mask", torch.full((5, 5), -math.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split(6, -1)  # (B, T, 6) each
        scores = q @ k.mT / math.sqrt(6) + self.mask  # (B, T, T)
        return self.norm(x + self.out(scores.softmax(-1) @ v)).mean(1)


class Positions(nn.Module):
    """A parameter that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(5, 6))
        self.body = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.tanh(x + self.position)).mean(1)


class Tied(nn.Module):
    """One weight that is read by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Unused(nn.Module):
    """A layer that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(6, 3)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def images(*channels_and_size: int) -> Callable[[int], Tensor]:
    return lambda rows: torch.randn(rows, *channels_and_size)


def tokens(rows: int) -> Tensor:
    return torch.randint(0, 7, (rows, 5))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), images(6)),
    "linear_on_sequences": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Flatten()), images(5, 6)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3, stride=2), nn.Flatten()), images(2, 9)),
    "conv2d": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2),
            nn.Flatten(),
            nn.Linear(64, 3),
        ),
        images(2, 8, 8),
    ),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten()), images(1, 3, 3, 3)),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 2, stride=2), nn.Flatten()),
        images(2, 4, 4),
    ),
    "instance_norm": (
        lambda: nn.Sequential(nn.InstanceNorm2d(2, affine=True), nn.Flatten(), nn.Linear(32, 2)),
        images(2, 4, 4),
    ),
    "layer_norm": (lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)), images(6)),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 6, padding_idx=2), nn.Flatten(), nn.Linear(30, 3)),
        tokens,
    ),
    "lstm": (
        lambda: nn.Sequential(Last(nn.LSTM(6, 4, batch_first=True)), nn.Linear(4, 2)),
        images(5, 6),
    ),
    "lstm_deep_both_ways": (
        lambda: Last(nn.LSTM(6, 3, num_layers=2, bidirectional=True, batch_first=True)),
        images(5, 6),
    ),
    "lstm_alone_time_first": (
        lambda: nn.Sequential(FirstAxis(), Last(nn.LSTM(6, 4))),
        images(5, 6),
    ),
    "gru": (lambda: Last(nn.GRU(6, 4, bias=False, batch_first=True)), images(5, 6)),
    "rnn_relu": (lambda: Last(nn.RNN(6, 4, nonlinearity="relu", batch_first=True)), images(5, 6)),
    "attention": (lambda: nn.Sequential(nn.Embedding(7, 6), Attention()), tokens),
    "attention_then_lstm": (
        lambda: nn.Sequential(
            nn.Linear(6, 6), Last(nn.LSTM(6, 4, batch_first=True)), nn.LayerNorm(4)
        ),
        images(5, 6),
    ),
    "parameter_of_no_layer": (Positions, images(5, 6)),
    "tied": (Tied, images(6)),
    "unused": (Unused, images(6)),
}


def example(name: str, rows: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build, inputs = NETWORKS[name]
        model = build()
        x = inputs(rows)
        y = torch.randn_like(model(inputs(2))[:1]).expand(rows, *model(inputs(2)).shape[1:]).clone()
        return model, x, y


def clipped(
    model: nn.Module, x: Tensor, y: Tensor, bound: float, rows: int | None = None
) -> Tensor:
    mechanism = Mechanism(bound, 0.0, 0.5, 1.0)
    step = PrivateStep(model, squared_error, mechanism, max_physical_batch=rows)
    return step.clipped_sum(x, y, None, Stream(KEY))


def median_norm(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """A bound that clips about half of the records."""
    norms = [
        float(naive_sum(model, x[i : i + 1], y[i : i + 1], math.inf).norm()) for i in range(len(x))
    ]
    return float(np.median(norms))
