"""Per-sample gradients of nn.Linear and nn.Embedding, from inputs and output gradients.

Any number of axes may lie between the batch and the features: their T positions are summed.
Source: Li et al. 2022, arXiv:2110.05679, section 4 (ghost norms); Bu et al. 2023, arXiv:2210.00038.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from privacy.layer import LayerRule, Saved
from privacy.rule import UncoveredError

# Gradients are held up to this many times the size of the inputs and output gradients that they
# replace: memory stays near a plain step's. Below it the ghost norm is also the slower way.
HELD = 1


class LinearRule(LayerRule[nn.Linear]):
    """y = W x + b: the gradient of W is the sum over positions of g x^T, that of b the sum of g."""

    def _run(self, x: Tensor) -> tuple[Tensor, Saved]:
        layer = self._module
        return functional.linear(x, layer.weight, layer.bias), (x,)

    def _small(self, saved: Saved, gradient: Tensor) -> bool:
        (x,) = saved
        if x.dim() <= 2:  # one position: its norm is a product of two
            return False
        kept = (x.numel() + gradient.numel()) // x.shape[0]
        return x.shape[-1] * gradient.shape[-1] <= HELD * kept

    def _gradients(self, saved: Saved, gradient: Tensor) -> list[Tensor]:
        x, g = _positions(saved[0]), _positions(gradient)  # (B, T, d), (B, T, p)
        weight = g.mT @ x  # (B, p, T) x (B, T, d) -> (B, p, d)
        return [weight] if self._module.bias is None else [weight, g.sum(1)]

    def _norms(self, saved: Saved, gradient: Tensor) -> Tensor:
        (x,), biased = saved, self._module.bias is not None
        if x.dim() == 2:  # |g x^T| = |g| |x|, and b acts as one more input, of value 1
            inputs, outputs = _squares(x), _squares(gradient)
            return outputs.mul_(inputs.add_(1) if biased else inputs)
        # |sum_t g_t x_t^T|^2 = sum_ts (x_t . x_s)(g_t . g_s), in float64: terms may cancel
        wide_x, wide_g = _positions(x).double(), _positions(gradient).double()
        grams = wide_x @ wide_x.mT  # (B, T, d) x (B, d, T) -> (B, T, T)
        if biased:
            grams += 1
        return grams.mul_(wide_g @ wide_g.mT).sum((1, 2))

    def _sum(self, saved: Saved, gradient: Tensor, weights: Tensor) -> list[Tensor]:
        x, g = saved[0], gradient * weights.view(-1, *[1] * (gradient.dim() - 1))
        if x.dim() > 2:
            x, g = (t.reshape(-1, t.shape[-1]) for t in (x, g))  # (B, ..., d) -> (BT, d)
        weight = g.mT @ x  # (p, BT) x (BT, d) -> (p, d)
        return [weight] if self._module.bias is None else [weight, g.sum(0)]


class EmbeddingRule(LayerRule[nn.Embedding]):
    """y = W[id]: the gradient of a row of W is the sum of g over the positions of its id."""

    def __init__(self, module: nn.Embedding) -> None:
        """Watch an embedding whose gradient does not depend on the batch's ids as a whole."""
        super().__init__(module)
        if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
            raise UncoveredError("max_norm, scale_grad_by_freq and sparse have no rule")

    def _run(self, ids: Tensor) -> tuple[Tensor, Saved]:
        return functional.embedding(ids, self._module.weight), (ids,)

    def _small(self, saved: Saved, gradient: Tensor) -> bool:  # noqa: ARG002
        return False  # every record may touch any row

    def _gradients(self, saved: Saved, gradient: Tensor) -> list[Tensor]:
        keys, g = self._keyed(saved[0], gradient)
        rows, (count, width) = gradient.shape[0], self._module.weight.shape
        summed = g.new_zeros(rows * count, width).index_add_(0, keys, g)
        return [summed.view(rows, count, width)]

    def _norms(self, saved: Saved, gradient: Tensor) -> Tensor:
        keys, g = self._keyed(saved[0], gradient)  # (BT,), (BT, d)
        found, place = torch.unique(keys, return_inverse=True)  # (U,), (BT,)
        sums = g.new_zeros(len(found), g.shape[1]).index_add_(0, place, g)  # (U, d)
        squares: Tensor = torch.linalg.vector_norm(sums, dim=1).double().square()
        owners = found // self._module.num_embeddings  # (U,) the row of the batch
        return squares.new_zeros(gradient.shape[0]).index_add_(0, owners, squares)

    def _sum(self, saved: Saved, gradient: Tensor, weights: Tensor) -> list[Tensor]:
        g = gradient * weights.view(-1, *[1] * (gradient.dim() - 1))
        ids, g = self._masked(saved[0], g)
        return [torch.zeros_like(self._module.weight).index_add_(0, ids, g)]

    def _keyed(self, ids: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return (BT,) keys, one for each pair of row and id, and the (BT, d) gradients."""
        flat, g = self._masked(ids, gradient)
        owners = torch.arange(len(ids), device=ids.device).repeat_interleave(len(flat) // len(ids))
        return owners * self._module.num_embeddings + flat, g

    def _masked(self, ids: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return (BT,) ids and (BT, d) gradients, zero where torch gives padding none."""
        flat, g = ids.reshape(-1), gradient.reshape(-1, gradient.shape[-1])
        if self._module.padding_idx is not None:
            g = g.masked_fill((flat == self._module.padding_idx)[:, None], 0)
        return flat, g


def _squares(x: Tensor) -> Tensor:
    """Return the (B,) squared norms of (B, d), in float64: a product of two hides no extremes."""
    squares: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).square_()
    return squares


def _positions(tensor: Tensor) -> Tensor:
    """Return (B, T, d) of (B, ..., d)."""
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])
