"""A logical batch as physical batches: per-sample gradients of each, of records or of patients.

It clips nothing, sums over no two units and adds no noise. It chooses between rules of our own
(``privacy.bookkeeping``) and, for layers that have none, Opacus' hooks (``privacy.persample``).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from privacy.bookkeeping import BookkeepingCopy, GradientCopy, Layer
from privacy.dropout import dropout_seed
from privacy.rule import UncoveredError
from privacy.sampling import IntArray
from privacy.separation import Loss, expect_separate, refuse_mixing_layers, row_losses
from privacy.sums import UnitGradients, by_unit, join, unit_layers

# Bytes of a physical batch when the caller names none: what autograd keeps, and its gradients.
_BATCH_BYTES = 1 << 28
_EXACT_ROWS = 64  # of a physical batch of one fixed shape
_FREED_BYTES = (1 << 25) - (1 << 16)  # just below the largest block that glibc learns from


@dataclass(frozen=True)
class Block:
    """The per-sample gradients of one physical batch; its layers are read once, and closed.

    Attributes:
        layers: with one gradient a unit; rows beyond ``units`` are filling.
        units: how many units it holds.
        alone: whether it is the whole logical batch.
    """

    layers: list[Layer]
    units: int
    alone: bool


class Batches:
    """Per-sample gradients of one network, at whatever weights it holds when asked.

    Attributes:
        fallback: why gradients are made one by one, which is slow; empty when they are not.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, *, per_patient: bool, rows_max: int | None
    ) -> None:
        """Copy ``model``; errors as ``privacy.dpsgd.PrivateStep``."""
        self._model = model
        self._loss = loss
        self._per_patient = per_patient
        self._rows_max = rows_max
        self._rows = 0  # of a physical batch; not known before the network was tried
        self._copy: GradientCopy
        self.fallback = ""
        # glibc hands what lies free at the heap's end back to the system, and each step takes it
        # anew, page by page. It keeps up to twice the largest block that was ever freed: one block,
        # never written to, tells it so (mallopt(3), M_MMAP_THRESHOLD).
        torch.empty(_FREED_BYTES, dtype=torch.uint8)
        refuse_mixing_layers(model)
        try:
            self._copy = BookkeepingCopy(model)
        except UncoveredError as error:
            self._fall_back(error)

    @property
    def layers(self) -> int:
        """How many trained layers there are; those that share a parameter are one."""
        return len(self._copy.layers)

    def blocks(
        self, x: Tensor, y: Tensor, units: IntArray | None, seed: int, *, exact: bool
    ) -> Iterator[Block]:
        """Run a logical batch.

        Args:
            x: (B, ...) inputs; B may be 0.
            y: (B, ...) targets.
            units: (B,) patient of each row, in any order, or None: each row is a unit.
            seed: what dropout is drawn from.
            exact: give a unit the same gradient in any company, as far as float32 can: physical
                batches of one shape, a patient's rows summed in float64.
        """
        rows = x.shape[0]
        if rows == 0:
            return
        if x.is_cuda:
            _refuse_short_floats()
        if not self._rows:
            self._rows = self._try_out(x, y)
        size = min(self._rows, _EXACT_ROWS) if exact else self._rows
        with dropout_seed(seed, x.device):
            if units is not None and (exact or np.unique(units).size < rows):
                yield from self._patients(x, y, units, size, exact=exact)
            elif rows <= size and not exact:
                yield Block(self._run(x, y), rows, alone=True)
            else:
                for start in range(0, rows, size):
                    part = slice(start, start + size)
                    filled = _filled(x[part], y[part], size) if exact else (x[part], y[part])
                    layers = self._run(*filled)
                    yield Block(layers, min(size, rows - start), alone=rows <= size)

    def _patients(
        self, x: Tensor, y: Tensor, units: IntArray, size: int, *, exact: bool
    ) -> Iterator[Block]:
        """Yield for each physical batch the gradients of the patients that end in it."""
        order = np.argsort(units, kind="stable")  # a patient's rows side by side
        units, rows = units[order], torch.from_numpy(order).to(x.device)
        carried: UnitGradients = {}  # of a patient with rows in the next batch too
        for start in range(0, units.size, size):
            stop = min(start + size, units.size)
            chosen = x[rows[start:stop]], y[rows[start:stop]]
            layers = self._run(*(_filled(*chosen, size) if exact else chosen))
            _, index = np.unique(units[start:stop], return_inverse=True)
            sums = by_unit(layers, index, wide=exact)
            if carried:
                join(carried, sums)
                carried = {}
            count = int(index[-1]) + 1
            if stop < units.size and units[stop] == units[stop - 1]:
                carried = {position: gradient[-1:].clone() for position, gradient in sums.items()}
                sums = {position: gradient[:-1] for position, gradient in sums.items()}
                count -= 1
            if count:
                alone = units.size <= size
                yield Block(unit_layers(self._copy.layers, sums), count, alone)

    def _run(self, x: Tensor, y: Tensor) -> list[Layer]:
        try:
            return self._copy.run(x, lambda outputs: row_losses(self._loss, outputs, y).sum())
        except UncoveredError as error:
            self._fall_back(error)
            return self._run(x, y)

    def _try_out(self, x: Tensor, y: Tensor) -> int:
        """Try whether records stay apart; return how many rows a physical batch has."""
        try:
            kept = 2 * expect_separate(self._copy, self._loss, x, y)  # values and gradients
        except UncoveredError as error:
            self._fall_back(error)
            return self._try_out(x, y)
        if self.fallback or self._per_patient:
            kept += 4 * sum(p.numel() for p in self._model.parameters())
        rows = max(1, _BATCH_BYTES // max(1, kept))
        return rows if self._rows_max is None else min(rows, self._rows_max)

    def _fall_back(self, error: UncoveredError) -> None:
        from privacy.persample import HookedCopy

        if self.fallback:
            raise error
        self.fallback = f"per-sample gradients are made one by one, which is slow: {error}"
        self._copy = HookedCopy(self._model)


def _refuse_short_floats() -> None:
    """Turn TF32 off: with its 10 bits a norm and the sum that it clips differ by up to 1e-3.

    It is a setting of the process, on by default for convolutions.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _filled(x: Tensor, y: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return x and y with copies of their last row, up to ``size`` rows."""
    rows = torch.arange(size, device=x.device).clamp(max=x.shape[0] - 1)
    return x[rows], y[rows]
