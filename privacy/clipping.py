"""How much of each unit's gradient counts: weights from norms, so that no unit adds more than C.

It holds no gradients: the private step scales and sums them by these weights.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Clipping = Literal["flat", "layer", "automatic"]

# Norms are float32 sums: clipping aims this much below the bound, so that true norms obey it.
ROUNDING = 2.0**-19
# Of Bu et al. 2022, arXiv:2206.07136, section 4: keeps small gradients small.
STABILITY = 0.01
# A unit whose squared norm passes this counts as zero, as does one with NaN or inf.
_SQUARE_MAX = torch.finfo(torch.float32).max


def clip_weights(
    squares: Tensor, layers: int, bound: float, clipping: Clipping
) -> tuple[Tensor, Tensor | None]:
    """Return what to scale each unit's gradients by.

    Args:
        squares: (L, U) float64 squared norms of U units' gradients in the L layers they have.
        layers: how many layers the network has; >= L, a public number.
        bound: C > 0.
        clipping: flat scales a whole gradient by min(1, C / norm) (Abadi et al. 2016,
            arXiv:1607.00133); layer does so in each layer by itself, to C / sqrt(layers) (McMahan
            et al. 2018, arXiv:1710.06963, section 3.2); automatic scales a whole gradient by
            C / (norm + .01), whatever its norm (Bu et al. 2022, arXiv:2206.07136).

    Returns:
        (L or 1, U) float32 weights, and (U,) bool: units that are to count as zero; None without.

    Guarantee: the L2 norm of a weighted gradient is at most C, so the sum's sensitivity to one unit
    is C (add or remove). Flat: by definition. Layer: the squares of at most ``layers`` norms, each
    <= C^2 / layers, sum to at most C^2. Automatic: norm C / (norm + .01) < C.
    """
    total = squares.sum(0)  # (U,)
    whole = bool(total.max() <= _SQUARE_MAX)  # NaN is the maximum, and compares false
    broken = None if whole else ~(total <= _SQUARE_MAX)
    aim = bound * (1 - ROUNDING)
    if clipping == "layer":
        weights = (aim / math.sqrt(layers) / squares.sqrt()).clamp(max=1)  # norm 0 gives inf, so 1
    elif clipping == "automatic":
        weights = (aim / (total.sqrt() + STABILITY))[None]
    else:
        weights = (aim / total.sqrt()).clamp(max=1)[None]
    return weights.float(), broken
