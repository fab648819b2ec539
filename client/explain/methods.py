"""Attributions: how much each part of a record speaks for what a network says of it.

It reads no record and draws no picture. A `Score` gives one number a record; an attribution is in
its unit, and positive where a part speaks for a higher one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from torch import nn

from client.explain.layout import Layout
from shared_models.attention import Attention, SelfAttention
from shared_models.inputs import PADDING
from shared_models.target import Target

Floats = npt.NDArray[np.float64]

AT_ONCE, NUMBERS_AT_ONCE = 64, 1 << 18  # points of a path or hidden copies, and their numbers
STEPS, STEPS_MAX, NUMBERS_MAX = 64, 512, 1 << 22  # of a path: so many steps, or numbers in them
GAP = 0.005  # of all that attributions say for and against; above it, more steps are taken
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(B, *P) points and (B,) the records that they stand for -> (B,) numbers."""


@dataclass(frozen=True)
class Subject:
    """A network, and N records that it is asked about.

    A token id is no quantity, so its embedding is what is changed: `points`, which for other
    records are the inputs themselves.

    Attributes:
        network: in evaluation mode.
        inputs: (N, *shape) float32, or (N, L) int64 token ids.
        asked: (N,) int64, which answer of each record is explained, as the target has them.
        target: of the study.
        layout: of the records.
    """

    network: nn.Module
    inputs: torch.Tensor
    asked: torch.Tensor
    target: Target
    layout: Layout

    def points(self) -> torch.Tensor:
        """Return (N, *P): the inputs, or (N, L, D) the embeddings of the tokens."""
        if self.inputs.is_floating_point():
            return self.inputs
        found: list[torch.Tensor] = []

        def note(output: torch.Tensor) -> torch.Tensor:
            found.append(output)
            return output

        with torch.no_grad(), _embedding(self.network, self.inputs, note):
            self.network(self.inputs)
        return found[0]

    def baselines(self) -> torch.Tensor:
        """Return (N, *P), records that say nothing.

        Numbers in the middle of their public range and no category; a flat picture of the same
        mean brightness, channel by channel; letters and words whose embedding is zero; a molecule
        without symbols. Of several parts each says nothing, and those that are there still are.
        """
        if self.layout.kind == "image":
            return _flat(self.inputs)
        found = torch.zeros_like(self.points())
        for part in self.layout.parts:
            if part.layout.kind == "image":
                pictures = self.inputs[:, part.numbers].reshape(-1, *part.shape)
                found[:, part.numbers] = _flat(pictures).flatten(1)
        there = found.shape[1] - len(self.layout.parts)
        if self.layout.parts:
            found[:, there:] = self.inputs[:, there:]
        return found

    def score(self, points: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return (B,) what is explained of the records, in the target's unit."""
        if self.inputs.is_floating_point():
            outputs = self.network(points)
        else:
            ids = self.inputs[rows]
            with _embedding(self.network, ids, lambda _: points):
                outputs = self.network(ids)
        return self.target.scores(outputs, self.asked[rows])


def _flat(pictures: torch.Tensor) -> torch.Tensor:
    means = pictures.mean(dim=(2, 3), keepdim=True)  # (N, C, H, W) -> (N, C, 1, 1)
    return means.expand_as(pictures)


@contextmanager
def _embedding(
    network: nn.Module, ids: torch.Tensor, answer: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """For as long as it lasts, the embedding that is given ``ids`` answers something else."""

    def hook(module: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> object:
        del module
        return answer(output) if given[0] is ids else output

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Embedding)]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def integrated_gradients(
    score: Score, points: torch.Tensor, baselines: torch.Tensor
) -> torch.Tensor:
    """Return what each number of a point adds on the straight way from its baseline.

    Args:
        score: of points.
        points: (N, *P).
        baselines: (N, *P).

    Returns:
        (N, *P) attributions, which add up to score(point) - score(baseline). The way is summed in
        STEPS, and in twice as many until they do so to a GAP, or there are STEPS_MAX, or fewer for
        a large record: how near they came stands beside them.

    Source: Sundararajan, Taly and Yan 2017, arXiv:1703.01365, section 3; Gauss-Legendre steps.
    """
    found = torch.zeros_like(points)
    most = min(STEPS_MAX, NUMBERS_MAX // points[0].numel())
    for row in range(len(points)):
        pair = torch.stack([points[row], baselines[row]])  # (2, *P)
        with torch.no_grad():
            ends = score(pair, torch.full((2,), row))
        whole, steps = float(ends[0] - ends[1]), STEPS
        found[row] = _along(score, pair, row, steps)
        while 2 * steps <= most:
            if abs(float(found[row].sum()) - whole) <= GAP * float(found[row].abs().sum()):
                break
            steps *= 2
            found[row] = _along(score, pair, row, steps)
    return found


def _along(score: Score, pair: torch.Tensor, row: int, steps: int) -> torch.Tensor:
    """Return the integral of one record's gradient, times the way: (*P,)."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
    way = pair[0] - pair[1]
    total = torch.zeros_like(way)
    sides = (-1,) + (1,) * way.dim()
    size = _at_once(way)
    for start in range(0, steps, size):
        part = slice(start, start + size)
        shares = torch.from_numpy((nodes[part] + 1) / 2).to(way).view(sides)  # (S, 1, ...)
        inside = (pair[1] + shares * way).requires_grad_()  # (S, *P)
        (gradient,) = torch.autograd.grad(
            score(inside, torch.full((len(inside),), row)).sum(), inside
        )
        total += (torch.from_numpy(weights[part] / 2).to(way).view(sides) * gradient).sum(dim=0)
    return total * way


def _at_once(point: torch.Tensor) -> int:
    return max(1, min(AT_ONCE, NUMBERS_AT_ONCE // point.numel()))


def occlusion(
    score: Score, points: torch.Tensor, baselines: torch.Tensor, layout: Layout
) -> Floats:
    """Return (N, M), how much a score falls when a cell is hidden: the mean over its regions.

    Source: Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2.
    """
    cell_of = torch.from_numpy(layout.cell_of.copy())
    deeper = points.dim() - 1 - cell_of.dim()  # 1 for embeddings, whose numbers are one place
    found = np.zeros((len(points), layout.regions.shape[1]))
    with torch.no_grad():
        for row in range(len(points)):
            one = torch.full((1,), row)
            whole = score(points[row : row + 1], one)
            regions = _regions(layout, points[row])  # (R, M)
            covered = regions.sum(axis=0).clip(min=1)  # (M,)
            falls = []
            for part in torch.split(torch.from_numpy(regions), _at_once(points[0])):
                hidden = part[:, cell_of]  # (S, M) -> (S, *shape)
                hidden = hidden.view(*hidden.shape, *(1,) * deeper)
                changed = torch.where(hidden, baselines[row], points[row])  # (S, *P)
                falls.append(whole - score(changed, one.expand(len(part))))
            found[row] = torch.cat(falls).numpy() @ regions / covered  # (R,) -> (M,)
    return found


def _regions(layout: Layout, point: torch.Tensor) -> npt.NDArray[np.bool_]:
    if layout.kind != "molecule":
        return layout.regions
    own = np.flatnonzero(point.numpy())
    regions: npt.NDArray[np.bool_] = np.arange(len(point)) == own[:, None]
    return regions  # (B,) == (R, 1) -> (R, B)


def attention_weights(network: nn.Module, inputs: torch.Tensor) -> Floats | None:
    """Return (N, T), how much each step is attended to, adding up to 1; None without attention.

    The layers' weights, each the mean over its heads and half of it the step itself, are multiplied
    from the first to the last, and averaged over the steps that read.

    Source: Abnar and Zuidema 2020, arXiv:2005.00928, section 3 (attention rollout).
    """
    if not isinstance(network, Attention):
        return None
    layers: list[torch.Tensor] = []

    def note(module: nn.Module, given: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        if isinstance(module, SelfAttention):
            layers.append(module.weights(*given).mean(dim=1))  # (N, H, T, T) -> (N, T, T)

    blocks = [module for module in network.modules() if isinstance(module, SelfAttention)]
    handles = [block.register_forward_pre_hook(note) for block in blocks]
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    steps = inputs.shape[1]
    rolled = torch.eye(steps).expand(len(inputs), steps, steps)
    for weights in layers:
        rolled = (weights + torch.eye(steps)) / 2 @ rolled
    reads = inputs != PADDING if network.tokens else torch.ones(inputs.shape[:2], dtype=torch.bool)
    share = reads / reads.sum(dim=1, keepdim=True).clamp(min=1)  # (N, T)
    found: Floats = (share[:, None] @ rolled)[:, 0].double().numpy()  # (N, 1, T) -> (N, T)
    return found


def to_cells(attributions: torch.Tensor, layout: Layout) -> Floats:
    """Add up (N, *P) attributions over the numbers of each cell: (N, M)."""
    count = len(attributions)
    numbers = attributions.double().reshape(count, layout.cell_of.size, -1).sum(dim=2).numpy()
    found = np.zeros((layout.regions.shape[1], count))
    np.add.at(found, layout.cell_of.reshape(-1), numbers.T)
    return found.T


def rank_correlation(one: Floats, other: Floats) -> float | None:
    """Return Spearman's correlation of two vectors; None when one is the same everywhere."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(spearmanr(one, other).statistic)
