"""Per-sample gradients of convolutions and transposed convolutions in one to three dimensions.

Source: the weight gradient of B records as one convolution in B groups, Rochette et al. 2019,
arXiv:1912.06015; ghost norms, Li et al. 2022, arXiv:2110.05679; Bu et al. 2022, arXiv:2205.10683.
"""

import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from privacy.errors import PrivacyError
from privacy.layer import LayerRule, Saved, chunks, held_norms

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

# Gradients are held up to this many times the size of the inputs and output gradients that they
# replace: memory stays near a plain step's.
HELD = 1
GHOST = 0.5  # above this share of its cost, gradients that are made and let go are faster
NARROW = 16  # values a line below which torch's grouped convolution is the slower way
_NARROW_VALUES = 1 << 18  # read at once, to stay in cache
_ALL = slice(None)
FEW = 4  # positions of an output up to which the weight gradient is a product of matrices


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
        kept = (saved[0].numel() + gradient.numel()) // gradient.shape[0]
        return self._module.weight.numel() <= HELD * kept

    def _gradients(self, saved: Saved, gradient: Tensor) -> list[Tensor]:
        found = [self._weights_by_row(gradient, saved[0])]
        return found if self._module.bias is None else [*found, gradient.flatten(2).sum(2)]

    def _weights_by_row(self, g: Tensor, x: Tensor) -> Tensor:
        """Return the (B, *shape) weight gradients of B rows."""
        rows, weight, stride = x.shape[0], self._module.weight, self._module.stride
        if stride == (1, 1) and not self._transposed and g.shape[-1] < NARROW:
            return self._narrow(g, x)
        # (B, C, ...) -> (1, BC, ...): B rows side by side as B times as many groups
        wide_x, wide_g = (t.reshape(1, -1, *t.shape[2:]) for t in (x, g))
        shape = (rows * weight.shape[0], *weight.shape[1:])
        wide = weight.new_empty(1).expand(shape)  # it is the shape that counts
        found = self._weight_gradient(wide_g, wide_x, wide, rows * self._module.groups)
        return found.view(rows, *weight.shape)

    def _narrow(self, g: Tensor, x: Tensor) -> Tensor:
        """Return the weight gradients of a flat map of stride 1, as products of matrices.

        Lines of the padded map follow one another in memory: a tap of the kernel reads them all
        from a place of its own on, and what it reads beyond a line's end has a gradient of zero.
        Where it can be, the padding before a line is also the padding after the line above it.
        """
        layer, ((high, wide), (down, right)) = self._module, (self._padding, self._module.dilation)
        (rows, outputs, lines, length), width = g.shape, x.shape[-1] + wide
        after = 0 if wide <= right * (layer.kernel_size[1] - 1) <= width else wide
        width += after
        x = functional.pad(x, (wide, after, high, high + 1))  # one line more than is ever counted
        shape = (x.shape[1], *layer.kernel_size, lines * width)  # (C, h, w, T)
        step = min(rows, max(1, _NARROW_VALUES // math.prod(shape)))
        columns, left = g.new_empty(step, *shape), g.new_zeros(step, outputs, lines, width)
        found = g.new_empty(rows, *layer.weight.shape)
        for start in range(0, rows, step):
            part = x[start : start + step]
            count = part.shape[0] * layer.groups
            strides = (*part.stride()[:2], down * width, right, 1)
            shifted = part.as_strided((part.shape[0], *shape), strides, part.storage_offset())
            columns[: part.shape[0]].copy_(shifted)
            left[: part.shape[0], :, :, :length].copy_(g[start : start + step])
            torch.bmm(
                left[: part.shape[0]].view(count, -1, shape[-1]),  # (bG, O/G, T)
                columns[: part.shape[0]].view(count, -1, shape[-1]).mT,  # (bG, T, C/G h w)
                out=found[start : start + step].view(count, outputs // layer.groups, -1),
            )
        return found

    def _sum(self, saved: Saved, gradient: Tensor, weights: Tensor) -> list[Tensor]:
        (x,), layer = saved, self._module
        g = gradient * weights.view(-1, *[1] * (gradient.dim() - 1))
        if self._transposed or math.prod(g.shape[2:]) > FEW:
            found = [self._weight_gradient(g, x, layer.weight, layer.groups)]
        else:
            found = [self._few_positions(g, x)]
        if layer.bias is not None:
            found.append(g.sum([0, *range(2, g.dim())]))
        return found

    def _few_positions(self, g: Tensor, x: Tensor) -> Tensor:
        """Return the weight gradient as one product over records and positions.

        Small maps leave taps of the kernel that read padding alone; they are not computed.
        """
        weight, groups = self._module.weight, self._module.groups
        taps = self._taps(x.shape[2:], g.shape[2:])
        columns = self._columns(x.transpose(0, 1), g.shape[2:], taps, 1)  # (C, K, B, *out)
        left = g.transpose(0, 1).reshape(groups, len(weight) // groups, -1)  # (G, O/G, BT)
        right = columns.view(groups, -1, left.shape[2])  # (G, K C/G, BT)
        product = left @ right.mT  # (G, O/G, BT) x (G, BT, K C/G) -> (G, O/G, K C/G)
        cells = (len(weight), weight.shape[1], *(len(axis) for axis in taps))
        whole = torch.zeros_like(weight)
        whole[(_ALL, _ALL, *(slice(axis.start, axis.stop) for axis in taps))] = product.view(cells)
        return whole

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
        places = math.prod((x if self._transposed else g).shape[2:])
        # Multiplications of the Gram matrices, in float64 at half the speed, and of the gradients.
        if 2 * places * (x.shape[1] + g.shape[1]) > GHOST * self._module.weight.numel():
            rows = chunks(g.shape[0], self._module.weight.numel())
            return torch.cat([held_norms(self._gradients((x[s],), g[s])) for s in rows])
        squares = self._ghost(g, x) if self._transposed else self._ghost(x, g)
        if self._module.bias is not None:
            squares += torch.linalg.vector_norm(gradient.flatten(2).sum(2).double(), dim=1).square()
        return squares

    def _ghost(self, x: Tensor, g: Tensor) -> Tensor:
        """Return (B,) squared norms of sum_t g_t patch_t^T = sum_ts (patch_t . patch_s)(g_t . g_s).

        In float64, since terms may cancel. x (B, C, *in), g (B, O, *out).
        """
        groups, out = self._module.groups, g.shape[2:]
        taps = self._taps(x.shape[2:], out)
        x, g = x.double(), g.double().reshape(len(x), groups, -1, math.prod(out))
        grams = g.mT @ g  # (B, G, T, O/G) x (B, G, O/G, T) -> (B, G, T, T)
        # Either the products of all pairs of pixels, summed over the kernel, or those of patches.
        pixels, cells = math.prod(x.shape[2:]), math.prod(map(len, taps))
        if pixels**2 < cells * grams.shape[-1] ** 2:
            flat = x.reshape(len(x), groups, -1, pixels)  # (B, G, C/G, pixels)
            pairs = (flat.mT @ flat).view(len(x), groups, *x.shape[2:], *x.shape[2:])
            pairs = functional.pad(pairs, 2 * self._both_sides())
            patches = pairs.new_zeros(len(x), groups, *out, *out)
            for offset in itertools.product(*taps):
                window = self._window(offset, out)
                patches += pairs[(_ALL, _ALL, *window, *window)]
        else:
            columns = self._columns(x, out, taps, 2)  # (B, C, K, *out)
            columns = columns.view(len(x), groups, -1, grams.shape[-1])  # (B, G, K C/G, T)
            patches = columns.mT @ columns  # (B, G, T, T)
        return grams.mul_(patches.view(grams.shape)).sum((1, 2, 3))

    def _both_sides(self) -> list[int]:
        """Return the padding of both sides per axis, last axis first, as torch's pad wants it."""
        return [pad for pad in reversed(self._padding) for _ in range(2)]

    def _taps(self, size: Sequence[int], out: Sequence[int]) -> list[range]:
        """Return per axis the cells of the kernel that read more than padding at some position."""
        layer = self._module
        taps = []
        for axis in range(self._axes):
            stride, pad = layer.stride[axis], self._padding[axis]
            live = [
                cell
                for cell in range(layer.kernel_size[axis])
                if any(
                    0 <= stride * place + layer.dilation[axis] * cell - pad < size[axis]
                    for place in range(out[axis])
                )
            ]
            taps.append(range(live[0], live[-1] + 1) if live else range(1))
        return taps

    def _columns(self, x: Tensor, out: Sequence[int], taps: Sequence[range], axis: int) -> Tensor:
        """Return what each of K taps reads of (., ., ...) ``x``, side by side along ``axis``."""
        x = functional.pad(x, self._both_sides())
        cut = [x[(_ALL, _ALL, *self._window(tap, out))] for tap in itertools.product(*taps)]
        return torch.stack(cut, axis)

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
