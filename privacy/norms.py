"""Per-sample gradients of the scale and shift of GroupNorm, InstanceNorm, LayerNorm and RMSNorm.

They are as small as the layer's width, and always held. BatchNorm mixes records: it has no rule.
"""

from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.instancenorm import _InstanceNorm

from privacy.errors import PrivacyError
from privacy.layer import HeldRule, LayerRule, Saved, added, held_norms, held_sum
from privacy.rule import UncoveredError

Kind = TypeVar("Kind", nn.LayerNorm, nn.RMSNorm)


class ChannelNormRule(HeldRule):
    """GroupNorm and InstanceNorm: torch's own backward pass gives the per-sample gradients.

    The B records stand side by side as B times as many groups of one record, each with its own copy
    of scale and shift; the gradient of a copy is that of its record.
    """

    def __init__(self, module: nn.GroupNorm | _InstanceNorm) -> None:
        """Watch ``module``, which has a scale and a shift."""
        if isinstance(module, _InstanceNorm) and module.track_running_stats:
            raise UncoveredError("running statistics mix the records of a batch")
        super().__init__()
        self._module = module
        self._copies: list[list[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ...) by record, and keep the records' copies of scale and shift."""
        layer = self._module
        if isinstance(layer, _InstanceNorm):
            groups, axes = layer.num_features, int(type(layer).__name__[-2]) + 2
        else:
            groups, axes = layer.num_groups, max(2, x.dim())
        if x.dim() != axes:
            raise PrivacyError(
                f"expected (B, C, ...) inputs of {axes} axes for {type(layer).__name__}, "
                f"got {x.dim()} axes; nothing was released"
            )
        rows = x.shape[0]
        copies = [p.detach().repeat(rows) for p in layer.parameters(recurse=False)]  # (BC,) each
        if torch.is_grad_enabled():
            self._copies.append([copy.requires_grad_() for copy in copies])
        scale, shift = copies if len(copies) == 2 else (copies[0], None)
        wide = x.reshape(1, rows * x.shape[1], *x.shape[2:])  # (B, C, ...) -> (1, BC, ...)
        return functional.group_norm(wide, rows * groups, scale, shift, layer.eps).view(x.shape)

    @property
    def rows(self) -> int:
        """B of the recorded pass; 0 without a gradient; negative when calls differ in it."""
        found = {
            copies[0].shape[0] // self._module.weight.shape[0]
            for copies in self._copies
            if copies[0].grad is not None
        }
        return found.pop() if len(found) == 1 else -len(found)

    def clear(self) -> None:
        """Forget the pass."""
        super().clear()
        self._copies.clear()

    def _gradients(self) -> list[Tensor]:
        if self._held is None:
            width = self._module.weight.shape[0]
            self._held = added(
                [
                    [cast(Tensor, copy.grad).view(-1, width) for copy in copies]  # (BC,) -> (B, C)
                    for copies in self._copies
                    if copies[0].grad is not None
                ]
            )
        return self._held


class _ScaleRule(LayerRule[Kind]):
    """Layers that normalise the last axes of each position and scale them: gradients are held."""

    def _expect_batch(self, x: Tensor) -> None:
        if not x.dim() > self._module.weight.dim():
            raise PrivacyError(
                f"expected {type(self._module).__name__} to leave the axis of the records alone, "
                f"got {x.dim()} axes; nothing was released"
            )

    def _small(self, saved: Saved, gradient: Tensor) -> bool:  # noqa: ARG002
        return True

    def _norms(self, saved: Saved, gradient: Tensor) -> Tensor:
        return held_norms(self._gradients(saved, gradient))

    def _sum(self, saved: Saved, gradient: Tensor, weights: Tensor) -> list[Tensor]:
        return held_sum(self._gradients(saved, gradient), weights)


class LayerNormRule(_ScaleRule[nn.LayerNorm]):
    """y = (x - mean) / deviation * scale + shift over the last axes."""

    def _run(self, x: Tensor) -> tuple[Tensor, Saved]:
        layer = self._module
        self._expect_batch(x)
        y, mean, inverse = torch.native_layer_norm(
            x, layer.normalized_shape, layer.weight, layer.bias, layer.eps
        )
        return y, (x, mean, inverse)

    def _gradients(self, saved: Saved, gradient: Tensor) -> list[Tensor]:
        shape = self._module.weight.shape
        width, rows = shape.numel(), gradient.shape[0]
        x, g = (t.reshape(rows, -1, width) for t in (saved[0], gradient))  # (B, T, D)
        mean, inverse = (t.reshape(rows, 1, -1) for t in saved[1:])  # (B, 1, T)
        # sum_t g_t (x_t - mean_t) inverse_t
        scale = inverse @ (g * x) - (mean * inverse) @ g  # (B, 1, T) x (B, T, D) -> (B, 1, D)
        found = [scale.view(rows, *shape)]
        if self._module.bias is not None:
            found.append(g.sum(1).view(rows, *shape))
        return found


class RMSNormRule(_ScaleRule[nn.RMSNorm]):
    """y = x / root mean square * scale over the last axes."""

    def _run(self, x: Tensor) -> tuple[Tensor, Saved]:
        layer = self._module
        self._expect_batch(x)
        y = functional.rms_norm(x, tuple(layer.normalized_shape), layer.weight, layer.eps)
        return y, (x,)

    def _gradients(self, saved: Saved, gradient: Tensor) -> list[Tensor]:
        layer = self._module
        shape = layer.weight.shape
        x, g = (t.reshape(gradient.shape[0], -1, shape.numel()) for t in (saved[0], gradient))
        normal = functional.rms_norm(x, (shape.numel(),), None, layer.eps)  # (B, T, D)
        return [(g * normal).sum(1).view(-1, *shape)]
