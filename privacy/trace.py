"""What one walk through time leaves behind, and each sample's gradients, norm and share from it.

It walks nothing and clips nothing. A weight's gradient of one sample is the product of its gates'
gradients with what the weight was multiplied with, (g, L) x (L, d) over the sample's L steps. Where
that is small beside its factors it is made once and kept, and a weighted sum is one pass over it;
else norms come from Gram matrices over time, and a weighted sum is one product of all rows.
Sources: ghost norms, Li et al. 2022, arXiv:2110.05679, section 4, with time as the sequence;
book-keeping, Bu et al. 2023, arXiv:2210.00038, section 3.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from privacy.cells import Cell
from privacy.layer import held_norms, held_sum, without

# Gradients are kept where they take at most this much of what they are made of, which is then let
# go: that saves a product as large as the plain backward pass's own.
_KEPT = 1.5
# Rows gathered at once for Gram matrices: 2 MiB with 512 gates, about what a core's cache holds.
_GATHERED = 1024
# Gram matrices are exact to a part of the squares of single steps, which outweigh what is left of
# them where steps cancel. Norms are raised by this part, so that clipping errs to the safe side.
_GRAM_ROUNDING = 2.0**-21


@dataclass(frozen=True)
class Packing:
    """How samples lie in packed rows: step t holds the first sizes[t] columns, longest first.

    Attributes:
        sizes: rows of each of T >= 1 steps, falling; sizes[0] = B, their sum is N.
        order: (B,) sample of each column, or None where samples are as they came.
        back: (B,) column of each sample, or None with ``order``.
    """

    sizes: Sequence[int]
    order: Tensor | None = None
    back: Tensor | None = None

    def spread(self, values: Tensor) -> Tensor:
        """Give each row the value of its column: (B, ...) -> (N, ...)."""
        return torch.cat([values[:n] for n in self.sizes])

    def runs(self, rows: int) -> Iterator[tuple[slice, int]]:
        """Yield neighbouring columns of one length, from the first column on, and that length.

        At most ``rows`` rows at once, or one column.
        """
        for t in reversed(range(len(self.sizes))):
            shorter = self.sizes[t + 1] if t + 1 < len(self.sizes) else 0
            for start in range(shorter, self.sizes[t], width := max(1, rows // (t + 1))):
                yield slice(start, min(start + width, self.sizes[t])), t + 1

    def gather(self, rows: Tensor, columns: slice, length: int) -> Tensor:
        """Return the rows of columns of one length: (N, d) -> (k, L, d), a view where it can be."""
        batch = self.sizes[0]
        if self.sizes[length - 1] == batch:  # every column has these steps
            steps = rows[: length * batch].view(length, batch, -1)  # (L, B, d)
            return steps[:, columns].transpose(0, 1)
        starts = torch.tensor([0, *self.sizes[: length - 1]], device=rows.device).cumsum(0)
        index = torch.arange(columns.start, columns.stop, device=rows.device)[:, None] + starts
        return rows[index]  # (k, L) -> (k, L, d)

    def reversal(self, device: torch.device) -> Tensor:
        """Return (N,) the row that takes each row's place when every sample is turned in time."""
        sizes = torch.tensor(self.sizes, device=device)
        column = torch.cat([torch.arange(n, device=device) for n in self.sizes])
        step = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
        lengths = (sizes > torch.arange(self.sizes[0], device=device)[:, None]).sum(1)  # (B,)
        return (sizes.cumsum(0) - sizes)[lengths[column] - 1 - step] + column


class Trace:
    """One layer and direction in one batch: the gradients of its gates, and what meets them.

    Empty until the walk back records it. Gradients are listed as W_ih, W_hh, and then b_ih, b_hh
    where there are biases; samples are in the order of the batch before it was packed.
    """

    def __init__(self, cell: Cell, hidden_size: int, biased: bool, packing: Packing) -> None:
        self.cell = cell
        self.packing = packing
        self._columns = cell.columns(hidden_size)
        self._turn = cell.turn * hidden_size
        self._biased = biased
        self._gates: Tensor | None = None  # (N, blocks H)
        self._values: list[Tensor] = []  # (N, d) inputs, (N, H) outputs of the step before
        self._kept: list[Tensor] = []  # (B, d, g), (B, H, g), instead of the above
        self._sums = torch.empty(0)  # (B, blocks H) over time: the biases' gradients

    @property
    def recorded(self) -> bool:
        """Whether the walk back came by."""
        return self._gates is not None or bool(self._kept)

    def record(self, gates: Tensor, sums: Tensor, inputs: Tensor, before: Tensor) -> None:
        """Take the gradients of the gates, and what met them.

        Args:
            gates: (N, blocks H) gradients of what went into the gates.
            sums: (B, blocks H) of them over time.
            inputs: (N, d) what W_ih was multiplied with.
            before: (N, H) outputs of the step before, W_hh likewise.
        """
        self._gates, self._sums, self._values = gates, sums, [inputs, before]

    def norms_squared(self) -> Tensor:
        """Return (B,) float64 squared norms over all weights of this layer and direction."""
        if self._gates is not None and self._small(self._gates):
            everyone = list(self.packing.runs(len(self._gates)))
            self._kept = [self._products(*pair, everyone) for pair in self._pairs(self._gates)]
            self._gates, self._values = None, []
        norms = held_norms(self._kept) if self._gates is None else self._ghost_norms(self._gates)
        if self._biased:
            norms = norms + held_norms([self._sums[:, columns] for columns in self._columns])
        return norms if self.packing.back is None else norms[self.packing.back]

    def drop(self, broken: Tensor) -> None:
        """Let the (B,) bool samples ``broken`` be zero, whatever NaN they hold."""
        columns = self._by_column(broken)
        self._kept = [without(kept, columns) for kept in self._kept]
        self._sums = without(self._sums, columns)
        if self._gates is not None:
            rows = self.packing.spread(columns)  # (N,)
            self._gates = without(self._gates, rows)
            self._values = [without(values, rows) for values in self._values]

    def weighted_sum(self, weights: Tensor) -> list[Tensor]:
        """Return per weight the sum over samples b of weights[b] x gradient[b]; (B,) weights."""
        weights = self._by_column(weights)
        if self._gates is not None:
            rows = self.packing.spread(weights)[:, None]  # (N, 1)
            # (d, N) x (N, g) -> (d, g)
            sums = [(values * rows).t() @ gates for gates, values in self._pairs(self._gates)]
        else:
            sums = held_sum(self._kept, weights)
        return self._listed(sums, weights @ self._sums if self._biased else None)

    def per_sample(self, rows: slice) -> list[Tensor]:
        """Return per weight the (b, *shape) gradients of the samples ``rows``."""
        columns = rows if self.packing.back is None else self.packing.back[rows]
        if self._gates is not None:
            single = list(self.packing.runs(1))
            chosen = single[rows] if isinstance(columns, slice) else [single[c] for c in columns]
            made = [self._products(*pair, chosen) for pair in self._pairs(self._gates)]
        else:
            made = [kept[columns] for kept in self._kept]
        return self._listed(made, self._sums[columns] if self._biased else None)

    def _by_column(self, values: Tensor) -> Tensor:
        return values if self.packing.order is None else values[self.packing.order]

    def _pairs(self, gates: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return for each weight its gates' gradients, (N, g), and what it was multiplied with."""
        return [
            (gates[:, columns], values)
            for columns, values in zip(self._columns, self._values, strict=True)
        ]

    def _small(self, gates: Tensor) -> bool:
        """Whether all samples' gradients take little room beside what they are made of."""
        made = sum(g.shape[1] * values.shape[1] for g, values in self._pairs(gates))
        factors = gates.numel() + sum(values.numel() for values in self._values)
        return made * self.packing.sizes[0] <= _KEPT * factors

    def _products(self, gates: Tensor, values: Tensor, runs: Sequence[tuple[slice, int]]) -> Tensor:
        """Return the (b, d, g) gradients of one weight for the columns of ``runs``, b in all.

        Turned, since gates are wider than values, and a product is faster with wide rows.
        """
        count = sum(columns.stop - columns.start for columns, _ in runs)
        made, at = gates.new_empty(count, values.shape[1], gates.shape[1]), 0
        for columns, length in runs:
            left = self.packing.gather(gates, columns, length)  # (k, L, g)
            right = self.packing.gather(values, columns, length)  # (k, L, d)
            torch.bmm(right.mT, left, out=made[at : at + len(left)])  # -> (k, d, g)
            at += len(left)
        return made

    def _ghost_norms(self, gates: Tensor) -> Tensor:
        """Return (B,) squared norms of all weights but biases, by column, from Gram matrices.

        |sum_t a_t b_t^T|^2 = sum_ts <a_t, a_s> <b_t, b_s> (Li et al. 2022, equation 4).
        """
        inputs, before = self._values
        at_inputs, at_hidden = self._columns
        norms = [gates.new_empty(0, dtype=torch.float64)]
        for columns, length in self.packing.runs(_GATHERED):
            a = self.packing.gather(gates, columns, length).contiguous()  # (k, L, blocks H)
            x = self.packing.gather(inputs, columns, length).contiguous()  # (k, L, d)
            h = self.packing.gather(before, columns, length).contiguous()  # (k, L, H)
            if at_inputs == at_hidden:  # one Gram matrix for both weights
                products = (x @ x.mT).baddbmm_(h, h.mT).mul_(a @ a.mT)  # (k, L, L)
            else:
                to_x, to_h = a[..., at_inputs], a[..., at_hidden]
                products = (x @ x.mT).mul_(to_x @ to_x.mT)
                products += (h @ h.mT).mul_(to_h @ to_h.mT)
            squares = products.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float64)
            sums = products.sum((1, 2), dtype=torch.float64)
            norms.append((sums + _GRAM_ROUNDING * squares).clamp(min=0))
        return torch.cat(norms)

    def _listed(self, weights: list[Tensor], sums: Tensor | None) -> list[Tensor]:
        """List (..., d, g) gradients and (..., blocks H) sums as the layer has its parameters."""
        w_ih, w_hh = (weight.mT for weight in weights)
        if self._turn:
            w_ih = w_ih.roll(-self._turn, -2)
        if sums is None:
            return [w_ih, w_hh]
        b_ih, b_hh = (sums[..., columns] for columns in self._columns)
        return [w_ih, w_hh, b_ih.roll(-self._turn, -1), b_hh]
