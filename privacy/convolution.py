"""Per-sample gradients of convolutions and transposed convolutions in one to three dimensions.

Source: the weight gradient of B records as one convolution in B groups, Rochette et al. 2019,
arXiv:1912.06015; ghost norms, Li et al. 2022, arXiv:2110.05679; Bu et al. 2022, arXiv:2205.10683.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from privacy.errors import PrivacyError
from privacy.layer import LayerRule, Saved

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

# Gradients are held up to this many times the size of the inputs and output gradients that they
# replace. Up to here that was faster than the ghost norm, and a network's few small layers cost
# little memory.
HELD = 6


class ConvolutionRule(LayerRule[Convolution | Transposed]):
    """A convolution: the gradient of W correlates the (padded) input with the output gradient."""

    _transposed = False

    def __init__(self, module: Convolution | Transposed) -> None:
        """Watch a convolution; a padding that is no row of zeros becomes a step of its own."""
        super().__init__(module)
        self._axes = len(module.kernel_size)
        zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        self._padding = cast("tuple[int, ...]", module.padding) if zeros else (0,) * self._axes
        self._padded = None if zeros else module._reversed_padding_repeated_twice
        self._mode = "constant" if module.padding_mode == "zeros" else module.padding_mode

    def _run(self, x: Tensor) -> tuple[Tensor, Saved]:
        self._expect_batch(x)
        if self._padded is not None:
            x = functional.pad(x, self._padded, mode=self._mode)
        return self._convolve(x, (0,) * self._axes), (x,)

    def _convolve(self, x: Tensor, output_padding: Sequence[int]) -> Tensor:
        layer = self._module
        return torch.convolution(
            x, layer.weight, layer.bias, layer.stride, self._padding, layer.dilation,
            self._transposed, output_padding, layer.groups,
        )  # fmt: skip

    def _expect_batch(self, x: Tensor) -> None:
        if x.dim() != self._axes + 2:
            raise PrivacyError(
                f"expected (B, C, ...) inputs of {self._axes + 2} axes for "
                f"{type(self._module).__name__}, got {x.dim()} axes; nothing was released"
            )

    def _small(self, saved: Saved, gradient: Tensor) -> bool:
        kept = (saved[0].numel() + gradient.numel()) // len(gradient)
        return self._module.weight.numel() <= HELD * kept

    def _gradients(self, saved: Saved, gradient: Tensor) -> list[Tensor]:
        rows, weight = len(gradient), self._module.weight
        # (B, C, ...) -> (1, BC, ...): B records side by side as B times as many groups
        x, g = (t.reshape(1, -1, *t.shape[2:]) for t in (saved[0], gradient))
        shape = weight.new_empty(1).expand(rows * len(weight), *weight.shape[1:])  # of no values
        wide = self._weight_gradient(g, x, shape, rows * self._module.groups)
        found = [wide.view(rows, *weight.shape)]
        return found if self._module.bias is None else [*found, gradient.flatten(2).sum(2)]

    def _sum(self, saved: Saved, gradient: Tensor, weights: Tensor) -> list[Tensor]:
        g = gradient * weights.view(-1, *[1] * (gradient.dim() - 1))
        found = [self._weight_gradient(g, saved[0], self._module.weight, self._module.groups)]
        if self._module.bias is not None:
            found.append(g.sum([0, *range(2, g.dim())]))
        return found

    def _weight_gradient(self, g: Tensor, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        layer = self._module
        found = torch.ops.aten.convolution_backward(
            g, x, weight, None, layer.stride, self._padding, layer.dilation, self._transposed,
            self._output_padding(x, g), groups, [False, True, False],
        )  # fmt: skip
        return cast(Tensor, found[1])

    def _output_padding(self, x: Tensor, g: Tensor) -> Sequence[int]:  # noqa: ARG002
        return (0,) * self._axes

    def _norms(self, saved: Saved, gradient: Tensor) -> Tensor:
        (x,), g = saved, gradient
        if self._transposed:  # the transpose of a convolution from the output to the input
            x, g = g, x
        squares = self._ghost(x, g)
        if self._module.bias is not None:
            squares += torch.linalg.vector_norm(gradient.flatten(2).sum(2).double(), dim=1).square()
        return squares

    def _ghost(self, x: Tensor, g: Tensor) -> Tensor:
        """Return (B,) squared norms of sum_t g_t patch_t^T = sum_ts (patch_t . patch_s)(g_t . g_s).

        In float64, since terms may cancel. x (B, C, *in), g (B, O, *out).
        """
        layer = self._module
        rows, out = len(x), g.shape[2:]
        x = functional.pad(x, [p for p in reversed(self._padding) for _ in range(2)]).double()
        x = x.reshape(rows * layer.groups, -1, *x.shape[2:])  # (BG, C/G, *padded)
        g = g.double().reshape(rows * layer.groups, -1, math.prod(out))  # (BG, O/G, T)
        grams = g.mT @ g  # (BG, T, T)
        padded = math.prod(x.shape[2:])
        # Either the products of all pairs of pixels, summed over the kernel, or those of patches.
        if padded**2 < math.prod(layer.kernel_size) * grams.shape[1] ** 2:
            flat = x.flatten(2)
            pairs = (flat.mT @ flat).view(len(x), *x.shape[2:], *x.shape[2:])
            patches = sum(
                pairs[(slice(None), *self._window(offset, out), *self._window(offset, out))]
                for offset in self._offsets()
            )
            patches = cast(Tensor, patches).reshape(grams.shape)
        else:
            cut = [x[(slice(None), slice(None), *self._window(o, out))] for o in self._offsets()]
            columns = torch.stack(cut, 1).flatten(3).flatten(1, 2)  # (BG, K C/G, T)
            patches = columns.mT @ columns  # (BG, T, T)
        return (patches * grams).sum((1, 2)).view(rows, layer.groups).sum(1)

    def _offsets(self) -> Iterator[tuple[int, ...]]:
        return itertools.product(*(range(size) for size in self._module.kernel_size))

    def _window(self, offset: tuple[int, ...], out: Sequence[int]) -> tuple[slice, ...]:
        """Return where in the padded input the kernel's cell at ``offset`` looks, per axis."""
        layer = self._module
        starts = [cell * dilation for cell, dilation in zip(offset, layer.dilation, strict=True)]
        return tuple(
            slice(start, start + stride * (size - 1) + 1, stride)
            for start, stride, size in zip(starts, layer.stride, out, strict=True)
        )


class TransposedConvolutionRule(ConvolutionRule):
    """A transposed convolution: inputs and output gradients change places."""

    _transposed = True

    def _run(self, x: Tensor, output_size: list[int] | None = None) -> tuple[Tensor, Saved]:
        self._expect_batch(x)
        layer = cast(nn.ConvTranspose2d, self._module)
        stride, padding, kernel, dilation = (
            list(sizes)
            for sizes in (layer.stride, self._padding, layer.kernel_size, layer.dilation)
        )
        wider = layer._output_padding(x, output_size, stride, padding, kernel, self._axes, dilation)
        return self._convolve(x, wider), (x,)

    def _output_padding(self, x: Tensor, g: Tensor) -> Sequence[int]:
        layer = self._module
        return [
            g.shape[2 + i]
            - (x.shape[2 + i] - 1) * layer.stride[i]
            + 2 * self._padding[i]
            - layer.dilation[i] * (layer.kernel_size[i] - 1)
            - 1
            for i in range(self._axes)
        ]
