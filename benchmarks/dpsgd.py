"""What a private step costs against the plain step of the same network, in one process a pair.

A plain step is forward, backward and torch.optim.SGD; a private one is clipping, noise, the mean
and the same descent. Records are made up, and the batch is the same each time: nothing is learnt.
Beside it: what a sample of the ring's noise costs. Whether all is right is the tests' business.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import rows as common
import torch
from rows import PAIRS_MIN, Row
from torch import Tensor, nn
from torch.nn import functional

from privacy.dpsgd import Mechanism, PrivateStep
from privacy.ring_noise import ring_noise
from privacy.stream import Stream, fresh_key
from shared_models.attention import Attention
from shared_models.cnn import Cnn
from shared_models.recurrent import Recurrent
from shared_models.weights import flatten_in_place

RATE = 0.01
MEMORY = 1.15  # of a plain step's
RING_SIGMA = 1 << 18  # ring steps: 16 deviations at a scale of 2^16, or a usual site's share


# ---- the networks


class Residual(nn.Module):
    """Two convolutions beside a shortcut: He et al. 2016, arXiv:1512.03385."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.GroupNorm(32, after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.GroupNorm(32, after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.GroupNorm(32, after)
            )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def resnet18() -> nn.Module:
    """ResNet-18 with GroupNorm and the stem for small pictures: one 3x3 convolution, no pooling."""
    blocks: list[nn.Module] = []
    width = 64
    for wider in (64, 128, 256, 512):
        blocks += [Residual(width, wider, 1 if wider == 64 else 2), Residual(wider, wider, 1)]
        width = wider
    stem = (nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.GroupNorm(32, 64), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class UNet(nn.Module):
    """A U-Net of two levels with GroupNorm: Ronneberger et al. 2015, arXiv:1505.04597."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        first, second, deepest = widths
        self.down = nn.ModuleList([self._double(1, first), self._double(first, second)])
        self.middle = self._double(second, deepest)
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(deepest, second, 2, 2), nn.ConvTranspose2d(second, first, 2, 2)]
        )
        self.merge = nn.ModuleList(
            [self._double(2 * second, second), self._double(2 * first, first)]
        )
        self.out = nn.Conv2d(first, 1, 1)

    @staticmethod
    def _double(before: int, after: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1),
            nn.GroupNorm(8, after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1),
            nn.GroupNorm(8, after),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level in self.down:
            x = level(x)
            kept.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.middle(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), kept.pop()], 1))
        out: Tensor = self.out(x)
        return out


def class_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def pixel_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    each = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    return each.flatten(1).mean(1)


@dataclass(frozen=True)
class Case:
    """A network, a batch for it, and what its private step may cost."""

    target: float
    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    targets: Callable[[], Tensor]
    losses: Callable[[Tensor, Tensor], Tensor] = class_losses
    device: str = "cpu"


def classes(rows: int, count: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(count, (rows,))


def picture(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(shape)


def cnn() -> nn.Module:
    return Cnn((1, 28, 28), 10)


def transformer() -> nn.Module:
    return Attention(10, length=128, vocabulary=1000, width=128, heads=4, layers=2, feedforward=512)


CASES: dict[str, Case] = {
    "cnn_b64": Case(1.35, cnn, picture(64, 1, 28, 28), classes(64, 10)),
    "cnn_b256": Case(1.5, cnn, picture(256, 1, 28, 28), classes(256, 10)),
    "resnet18gn_28_b32": Case(1.6, resnet18, picture(32, 1, 28, 28), classes(32, 10)),
    "resnet18gn_64_b16": Case(1.35, resnet18, picture(16, 1, 64, 64), classes(16, 10)),
    "transformer_b32": Case(
        1.4, transformer, lambda: torch.randint(1, 1000, (32, 128)), classes(32, 10)
    ),
    "lstm_b64": Case(
        2.0, lambda: Recurrent("lstm", 2, 32), picture(64, 100, 32), classes(64, 2)
    ),
    "gru_b64": Case(2.0, lambda: Recurrent("gru", 2, 32), picture(64, 100, 32), classes(64, 2)),
    "unet_b8": Case(
        1.6, UNet, picture(8, 1, 64, 64), lambda: (torch.rand(8, 1, 64, 64) > 0.5).float(),
        pixel_losses,
    ),
}  # fmt: skip


# ---- the steps: each gives the seconds of one

Step = Callable[[], float]


def made_up(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    """Return the network and its batch; the same numbers for every kind of step."""
    torch.manual_seed(1)
    made = case.build(), case.inputs(), case.targets()
    network, x, y = (part.to(case.device) for part in made)
    return network, x, y


def timed(case: Case, run: Callable[[], object]) -> Step:
    def step() -> float:
        began = time.perf_counter()
        run()
        if case.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return step


def plain_step(case: Case) -> Step:
    """Return the step that everybody trains with."""
    network, x, y = made_up(case)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        case.losses(network(x), y).mean().backward()
        optimizer.step()

    return timed(case, run)


def private_step(case: Case) -> Step:
    """Return ours, the descent included."""
    network, x, y = made_up(case)
    flat = flatten_in_place(network)
    step = PrivateStep(network, case.losses, Mechanism(1.0, 1.0, 0.5, float(len(x))))
    out, keys = torch.empty_like(flat), iter(range(1 << 30))

    def run() -> None:
        gradient = step.gradient(x, y, None, next(keys).to_bytes(32, "big"), out)
        flat.add_(gradient, alpha=-RATE)

    return timed(case, run)


def hooks_step(case: Case) -> Step:
    """Return Opacus' step with per-sample gradients, as its PrivacyEngine makes it."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer
    from opacus.validators import ModuleValidator

    network, x, y = made_up(case)
    network = GradSampleModule(ModuleValidator.fix(network))
    optimizer: Any = DPOptimizer(
        torch.optim.SGD(network.parameters(), lr=RATE),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=len(x),
    )

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        case.losses(network(x), y).mean().backward()
        optimizer.step()

    return timed(case, run)


def ghost_step(case: Case) -> Step:
    """Return Opacus' step with ghost clipping, as its PrivacyEngine makes it."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
    from opacus.validators import ModuleValidator

    network, x, y = made_up(case)
    network = GradSampleModuleFastGradientClipping(
        ModuleValidator.fix(network), max_grad_norm=1.0, use_ghost_clipping=True
    )
    optimizer: Any = DPOptimizerFastGradientClipping(
        torch.optim.SGD(network.parameters(), lr=RATE),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=len(x),
    )

    class Losses(nn.Module):
        reduction = "mean"

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            losses = case.losses(outputs, targets)
            return losses if self.reduction == "none" else losses.mean()

    loss: Any = DPLossFastGradientClipping(network, optimizer, Losses(), loss_reduction="mean")

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(network(x), y).backward()
        optimizer.step()

    return timed(case, run)


# ---- how it is measured


def ratio_row(row: Row, case: Case, make: Callable[[Case], Step], *, quick: bool) -> Row:
    """Pair a step with the plain one, the first of a pair changing."""
    try:
        other, plain = make(case), plain_step(case)
        slow = max(other(), plain())
        seconds = 2.0 if quick else 20.0
        pairs = common.interleave(
            other, plain, min(61, int(seconds / (2 * slow))), warm=1 if slow < 0.5 else 0
        )
    except (RuntimeError, NotImplementedError, ValueError, AttributeError, KeyError) as error:
        return replace(row, note=f"fails: {' '.join(str(error).split())[:100]}")
    ratios = [one / two for one, two in zip(pairs.ours, pairs.peer, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    note = f"private and plain: {pairs.times()}; {len(ratios)} pairs"
    return replace(row, value=middle, note=f"{note}, middle half {low:.2f} to {high:.2f}")


def memory_row(row: Row, name: str) -> Row:
    """Compare the peak memory of private steps with that of plain ones, a fresh process each."""
    private, plain = _peak_mib(name, "private"), _peak_mib(name, "plain")
    note = f"{private:.0f} to {plain:.0f} MiB, of whole processes"
    return replace(row, value=private / plain, note=note)


def _peak_mib(name: str, kind: str) -> float:
    """Run this file once more, as the process that is weighed."""
    command = [sys.executable, __file__, "--weigh", name, "--kind", kind]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def weigh(name: str, kind: str) -> float:
    """Take three steps and return this process's peak memory in MiB."""
    plain_step(Case(1.0, lambda: nn.Linear(2, 2), picture(2, 2), classes(2, 2)))()  # its imports
    step = (private_step if kind == "private" else plain_step)(CASES[name])
    for _ in range(3):
        step()
    return common.peak_bytes() / 2**20


def ring_rows(*, quick: bool) -> list[Row]:
    """Time the ring's sampler and numpy's Poisson of the same variance in turn.

    A Skellam sample would take two of them.
    """
    turns, samples = (PAIRS_MIN, 1 << 18) if quick else (9, 1 << 20)
    noise, stream = ring_noise(RING_SIGMA**2), Stream(fresh_key())
    generator = np.random.Generator(np.random.PCG64())
    ours, peer = [], []
    for _ in range(turns + 1):  # the first is to warm up
        began = time.perf_counter()
        noise.sample(samples, stream)
        middle = time.perf_counter()
        generator.poisson(float(RING_SIGMA) ** 2, samples)
        ours.append((middle - began) / samples * 1e9)
        peer.append((time.perf_counter() - middle) / samples * 1e9)
    ratios = [one / other for one, other in zip(ours[1:], peer[1:], strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    note = f"sigma 2^18, {samples:,} samples, median of {turns}"
    numpy = f"numpy {statistics.median(peer[1:]):.1f} ns; middle half {low:.2f} to {high:.2f}"
    return [
        Row("ring_noise_ns", statistics.median(ours[1:]), "ns", "lower", 40.0, note),
        Row("ring_noise_vs_numpy_poisson", ratio, "ratio", "lower", 1.0, f"{note}; {numpy}"),
    ]


SLOW = {"resnet18gn_64_b16"}  # 14 s for five pairs
STEPS: dict[str, Callable[[Case], Step]] = {
    "": private_step,
    "_opacus_hooks": hooks_step,
    "_opacus_ghost": ghost_step,
}


def pair_row(name: str, peer: str, *, quick: bool, device: str) -> Row:
    """Measure one pair in a process of its own.

    What ran before in a process decides how often a plain step's memory comes back from the system,
    which is up to two fifths of its time.
    """
    command = [sys.executable, __file__, "--pair", name, peer, "--device", device]
    done = subprocess.run(
        [*command, "--quick"] if quick else command, stdout=subprocess.PIPE, text=True, check=True
    )
    return Row(**json.loads(done.stdout))


def measured(*, quick: bool, only: Sequence[str], device: str) -> Iterator[Row]:
    """Measure the rows one after the other; what is slow is left out of a quick run."""
    for name in CASES:
        if only and name not in only:
            continue
        if quick and name in SLOW and not only:
            yield Row(name, None, "ratio", "lower", CASES[name].target, "not measured by --quick")
        else:
            yield pair_row(name, "", quick=quick, device=device)
        for peer in list(STEPS)[1:]:
            row = Row(f"{name}{peer}", None, "ratio", "lower", None, "not measured by --quick")
            yield row if quick else pair_row(name, peer, quick=True, device=device)
        if device == "cpu":
            row = Row(f"{name}_memory", None, "ratio", "lower", MEMORY, "not measured by --quick")
            yield row if quick else memory_row(row, name)
    if not only and device == "cpu":
        yield from ring_rows(quick=quick)


def main() -> None:
    """Measure the rows one after the other."""
    parser = common.options(__doc__)
    parser.add_argument("--only", action="append", default=[], choices=CASES, help="one network")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--weigh", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=("private", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--pair", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.weigh:
        print(weigh(asked.weigh, asked.kind))
        return
    if asked.pair:
        name, peer = asked.pair
        case = replace(CASES[name], device=asked.device)
        row = Row(f"{name}{peer}", None, "ratio", "lower", None if peer else case.target, "")
        print(json.dumps(asdict(ratio_row(row, case, STEPS[peer], quick=asked.quick))))
        return
    rows = []
    for row in measured(quick=asked.quick, only=asked.only, device=asked.device):
        print(f"{row.name} {'-' if row.value is None else f'{row.value:.2f}'}", file=sys.stderr)
        rows.append(replace(row, note=f"target missed; {row.note}") if row.missed() else row)
    about = {**common.machine(), "torch": torch.__version__, "device": asked.device}
    if asked.device == "cuda":
        about["device"] = torch.cuda.get_device_name()
    common.show("dpsgd", rows, about, as_json=asked.json)


if __name__ == "__main__":
    main()
