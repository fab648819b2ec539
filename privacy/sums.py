"""The clipped sum of one physical batch, from its layers' per-sample gradients.

It adds no noise and runs no network. Sums are float32, or exact integers of a grid for the ring.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from privacy.bookkeeping import Layer
from privacy.clipping import Clipping, clip_weights
from privacy.layer import HeldRule, flat
from privacy.sampling import IntArray

UnitGradients = dict[int, Tensor]  # position of a parameter -> (U, *shape)

_GRID_VALUES = 1 << 18  # of gradients that are brought to the grid at once, to stay in cache


@dataclass(frozen=True)
class Clip:
    """How units are clipped: to norm ``bound``, the way ``clipping``, in ``layers`` layers."""

    bound: float
    clipping: Clipping
    layers: int


def clipped_sums(layers: Sequence[Layer], clip: Clip) -> Iterator[tuple[int, Tensor]]:
    """Yield for each parameter its position and the (*shape,) sum of clipped gradients.

    The layers' books are closed as they are read.
    """
    for layer, weights in zip(layers, _weights(layers, clip), strict=True):
        yield from zip(layer.positions, layer.rule.weighted_sum(weights), strict=True)
        layer.rule.clear()


def grid_sums(
    layers: Sequence[Layer], clip: Clip, rows: int, scale: float
) -> Iterator[tuple[int, Tensor]]:
    """Yield for each parameter its position and the (*shape,) int64 sum over the first ``rows``.

    Each clipped gradient is multiplied by ``scale`` and truncated toward zero, which never makes it
    longer; integers below 2^53 add exactly in float64. The books are closed.
    """
    for layer, weights in zip(layers, _weights(layers, clip), strict=True):
        factors = weights.double() * scale  # (B,)
        size = sum(gradient[0].numel() for gradient in layer.rule.per_sample(slice(0, 1)))
        step = max(1, _GRID_VALUES // size)
        totals: list[Tensor] = []
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            for place, gradient in enumerate(layer.rule.per_sample(part)):
                steps = factors[part, None] * flat(gradient)  # (b, 1) x (b, p), float64
                whole = steps.trunc_().sum(0).view(gradient.shape[1:])
                if start == 0:
                    totals.append(whole)
                else:
                    totals[place] += whole
        yield from zip(layer.positions, (total.long() for total in totals), strict=True)
        layer.rule.clear()


def by_unit(layers: Sequence[Layer], index: IntArray, *, wide: bool) -> UnitGradients:
    """Return the gradients of the units: the sum over the rows of each.

    Args:
        layers: of a pass; their books are closed.
        index: (B,) number of each row's unit: 0 to U - 1, ascending; further rows are left out.
        wide: sum in float64, so that it does not matter where a unit's rows stand.
    """
    found: UnitGradients = {}
    for layer in layers:
        for position, gradient in zip(
            layer.positions, layer.rule.per_sample(slice(len(index))), strict=True
        ):
            rows = torch.from_numpy(index).to(gradient.device)
            gradient = gradient.double() if wide else gradient
            sums = gradient.new_zeros(int(index[-1]) + 1, *gradient.shape[1:])
            found[position] = sums.index_add_(0, rows, gradient)
        layer.rule.clear()
    return found


def join(earlier: UnitGradients, later: UnitGradients) -> None:
    """Add the one unit of ``earlier`` to the first unit of ``later``."""
    units = next(len(gradient) for gradient in (*later.values(), *earlier.values()))
    for position, gradient in earlier.items():
        if position not in later:
            later[position] = gradient.new_zeros(units, *gradient.shape[1:])
        later[position][0] += gradient[0]


def unit_layers(layers: Sequence[Layer], gradients: UnitGradients) -> list[Layer]:
    """Return ``gradients`` under the network's ``layers``, as the result of a pass."""
    present = [[p for p in layer.positions if p in gradients] for layer in layers]
    return [
        Layer(tuple(positions), HeldRule([gradients[p] for p in positions]))
        for positions in present
        if positions
    ]


def _weights(layers: Sequence[Layer], clip: Clip) -> Sequence[Tensor]:
    """Return (U,) weights for each layer; units without a finite norm are dropped."""
    if not layers:
        return []
    squares = torch.stack([layer.rule.norms_squared().double() for layer in layers])  # (L, U)
    weights, broken = clip_weights(squares, clip.layers, clip.bound, clip.clipping)
    if broken is not None:  # zero times NaN is NaN
        for layer in layers:
            layer.rule.drop(broken)
        weights = weights.masked_fill(broken, 0)
    return list(weights) if len(weights) > 1 else [weights[0]] * len(layers)
