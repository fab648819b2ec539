"""The private step: the noisy mean gradient of one Poisson batch, clipped unit by unit.

It does not draw the batch, debit the ledger or move the weights: the caller does, in that order.
Per-sample gradients come from ``privacy.batches`` and their weights from ``privacy.clipping``; the
mechanism, the noise and the denominator are here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privacy.batches import Batches
from privacy.clipping import Clipping
from privacy.noise import CHUNK, Gaussian
from privacy.sampling import IntArray
from privacy.separation import Loss
from privacy.stream import Stream
from privacy.sums import Clip, clipped_sums, grid_sums

_LONGEST = 2.0**46  # grid steps of a unit: sixty-four add exactly in float64


@dataclass(frozen=True)
class Mechanism:
    """The sampled Gaussian mechanism that a study fixes for its private steps, in public.

    Attributes:
        clipping_norm: largest L2 norm C of one unit's gradient; > 0, may be infinite without noise.
        noise_multiplier: sigma; the sum carries noise of standard deviation sigma C.
        sampling_rate: probability q that a unit is in a batch; for the accountant and the sampler.
        expected_batch: what every sum is divided by, whatever the batch; > 0.
        unit: what is protected, and so what is clipped: a record, or all rows of a patient.
        clipping: how a unit's gradient is brought to norm C (``privacy.clipping``); the sensitivity
            is C in each. Automatic clipping needs a finite C.
    """

    clipping_norm: float
    noise_multiplier: float
    sampling_rate: float
    expected_batch: float
    unit: Literal["record", "patient"] = "record"
    clipping: Clipping = "flat"

    def __post_init__(self) -> None:
        if not self.clipping_norm > 0:
            raise ValueError(f"expected a clipping norm > 0, got {self.clipping_norm}")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"expected 0 <= noise multiplier < inf, got {self.noise_multiplier}")
        if self.clipping_norm == math.inf and self.noise_multiplier > 0:
            raise ValueError("expected a finite clipping norm with noise, got inf")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"expected 0 < sampling rate <= 1, got {self.sampling_rate}")
        if not 0 < self.expected_batch < math.inf:
            raise ValueError(f"expected an expected batch > 0, got {self.expected_batch}")
        if self.unit not in ("record", "patient"):
            raise ValueError(f"expected unit record or patient, got {self.unit}")
        if self.clipping not in ("flat", "layer", "automatic"):
            raise ValueError(f"expected clipping flat, layer or automatic, got {self.clipping}")
        if self.clipping == "automatic" and self.clipping_norm == math.inf:
            raise ValueError("expected a finite clipping norm with automatic clipping, got inf")

    @property
    def deviation(self) -> float:
        """The standard deviation of the noise on the clipped sum: sigma C."""
        return self.noise_multiplier * self.clipping_norm if self.noise_multiplier else 0.0


class PrivateStep:
    """Noisy mean gradients of one plain network, at whatever weights it holds when asked.

    Built once a network and kept (copies and checks cost milliseconds); the caller's network is
    neither hooked nor changed, and nn.LSTM, nn.GRU and nn.RNN keep their own parameter layout.

    Formal guarantee: with a batch Poisson-sampled at the mechanism's rate, one ``gradient`` is the
    Poisson-sampled Gaussian mechanism of sensitivity C and noise sigma C under adding or removing
    one unit (Abadi et al. 2016, arXiv:1607.00133, Algorithm 1), in real numbers.

    Edge cases:
        empty batch: the network is not called; the result is noise / expected_batch.
        norm 0: the unit adds nothing. Norm below C: added unscaled (flat clipping).
        NaN or infinite gradient, or one whose norm overflows float32 when squared: the whole unit
            counts as zero, in silence, since a refusal would tell that the record is there.
        clipping norm inf and noise multiplier 0: the plain gradient sum / expected_batch.
        a parameter that no output depends on: gradient 0, but noise.

    Limits, stated: sums are float32 within a physical batch and float64 across, and noise is
    floating-point (``privacy.noise``), so the guarantee is not proof against precision attacks.
    That a custom layer or loss keeps records apart is tried on the first batch (one row's loss must
    give no other row a gradient), not proved. nn.Dropout draws from the step's key.

    Attributes:
        mechanism: what is clipped to, and how much noise is added.
        size: P, the number of values of a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        mechanism: Mechanism,
        *,
        max_physical_batch: int | None = None,
    ) -> None:
        """Check ``model`` and make a private copy of it, which shares its weights.

        Args:
            model: a plain network that takes (B, ...) and whose parameters all require gradients.
            loss: (outputs, targets) -> (B,) losses, one a row, not averaged.
            mechanism: what to clip to, and how much noise.
            max_physical_batch: rows that go through the network at once; without it as many as
                take about 256 MiB. Changes memory, not the result.

        Raises:
            ValueError: no parameters, a frozen one, or a physical batch below 1.
            PrivacyError: a layer mixes records or has no per-sample gradient; it is named.
        """
        self.mechanism = mechanism
        self._parameters = list(model.parameters())
        self.size = sum(p.numel() for p in self._parameters)
        if not self._parameters or not all(p.requires_grad for p in self._parameters):
            raise ValueError("expected parameters that all require gradients")
        if max_physical_batch is not None and max_physical_batch < 1:
            raise ValueError(f"expected a physical batch >= 1, got {max_physical_batch}")
        per_patient = mechanism.unit == "patient"
        self._batches = Batches(model, loss, per_patient=per_patient, rows_max=max_physical_batch)

    @property
    def fallback(self) -> str:
        """Why per-sample gradients are made one by one, which is slow, in one line.

        Empty when every layer has a rule; known after the first batch at the latest.
        """
        return self._batches.fallback

    def gradient(
        self,
        x: Tensor,
        y: Tensor,
        units: IntArray | None,
        noise_key: bytes,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return the noisy mean gradient of one batch at the network's present weights.

        Args:
            x: (B, ...) inputs of the sampled rows; B may be 0.
            y: (B, ...) targets.
            units: (B,) patient of each row where the unit is the patient (all sampled rows of a
                patient in one call), else None.
            noise_key: 32 bytes, for this step only: two steps under one key share their noise,
                which their difference then lacks.
            out: (P,) where to write the result, in the parameters' dtype; new memory without it,
                which for millions of parameters takes a tenth of the time of a step.

        Returns:
            (P,) noisy sum / expected_batch in the order of ``model.parameters()``, in their dtype.

        Raises:
            ValueError: x, y, units or the losses do not match.
            PrivacyError: a layer regroups the rows, so that they have no gradients of their own, or
                the network or the loss mixes them.
        """
        stream = Stream(noise_key)
        like = self._parameters[0]
        result = (
            torch.empty(self.size, dtype=like.dtype, device=like.device) if out is None else out
        )
        # N(0, (sigma C)^2 I) once a step, and the public denominator, never len(x).
        share = 1.0 / self.mechanism.expected_batch
        deviation = self.mechanism.deviation * share
        start, noise = 0, Gaussian(stream, min(self.size, CHUNK))
        for total in _pieces(self._sums(x, y, units, stream)):
            stop = start + total.shape[0]
            values = torch.from_numpy(noise.draw(total.shape[0], deviation)).to(total.device)
            result[start:stop] = values.add_(total, alpha=share)
            start = stop
        return result

    def clipped_sum(self, x: Tensor, y: Tensor, units: IntArray | None, stream: Stream) -> Tensor:
        """Return (P,) float64, the sum of clipped unit gradients: not private until noise is added.

        Reads 8 bytes of ``stream``, the seed of dropout. Arguments and errors as ``gradient``.
        """
        return torch.cat([part.double().reshape(-1) for part in self._sums(x, y, units, stream)])

    def fixed_point_sum(
        self, x: Tensor, y: Tensor, units: IntArray | None, stream: Stream, scale: float
    ) -> npt.NDArray[np.int64]:
        """Return the clipped sum on a grid, added exactly: not private until noise is added.

        Args:
            x: (B, ...) inputs of the sampled rows; B may be 0.
            y: (B, ...) targets.
            units: as in ``gradient``.
            stream: 8 bytes of it are read, the seed of dropout.
            scale: integers per model unit, extra fraction bits included: with S steps of the ring
                for C and a grid finer than a step by g bits, S / C * 2^g. The caller rounds the sum
                to the ring's steps once, stochastically, by dropping these g bits.

        Returns:
            (P,) integers: the sum over units of trunc(scale x clipped gradient), each coordinate
            truncated toward zero by itself.

        Raises:
            ValueError: as ``gradient``; or scale x C is above 2^46, or with the rows above 2^62.
            PrivacyError: as ``gradient``.

        Guarantee: adding or removing a unit adds or removes one vector of L2 norm at most
        scale x C, exactly, as long as the gradient of a unit is the same number in either batch.
        That holds in real numbers, and in float32 as far as the arithmetic of a row does not depend
        on where it stands: physical batches have one fixed shape (the last is filled up), the sum
        of a patient's rows is float64, and no float is added across units. What remains is a
        margin, not a proof: charge 1.001 C.
        """
        longest = scale * self.mechanism.clipping_norm
        if not 0 < longest <= _LONGEST or not longest * x.shape[0] < 2.0**62:
            raise ValueError(
                f"expected 0 < scale x clipping norm <= 2^46, below 2^62 with {x.shape[0]} rows, "
                f"got {longest}"
            )
        self._check(x, y, units)
        totals = [torch.zeros(p.shape, dtype=torch.int64) for p in self._parameters]
        for block in self._batches.blocks(x, y, units, _seed(stream), exact=True):
            for position, total in grid_sums(block.layers, self._clip, block.units, scale):
                totals[position] += total.cpu()
        return torch.cat([total.reshape(-1) for total in totals]).numpy()

    def _sums(
        self, x: Tensor, y: Tensor, units: IntArray | None, stream: Stream
    ) -> Iterator[Tensor]:
        """Yield the sum of each parameter: float32 of one physical batch, float64 of several.

        Of one physical batch a sum is yielded before the next is made, while it is in cache.
        """
        self._check(x, y, units)
        totals: dict[int, Tensor] = {}
        ready = 0
        for block in self._batches.blocks(x, y, units, _seed(stream), exact=False):
            for position, total in clipped_sums(block.layers, self._clip):
                before = totals.get(position)
                totals[position] = total if before is None else before.double().add_(total)
                while block.alone and ready in totals:
                    yield totals.pop(ready)
                    ready += 1
        for position in range(ready, len(self._parameters)):
            if position not in totals:  # no output depends on it
                totals[position] = torch.zeros_like(self._parameters[position])
            yield totals.pop(position)

    @property
    def _clip(self) -> Clip:
        mechanism = self.mechanism
        return Clip(mechanism.clipping_norm, mechanism.clipping, self._batches.layers)

    def _check(self, x: Tensor, y: Tensor, units: IntArray | None) -> None:
        """Raise ValueError unless x, y and units fit each other and the mechanism."""
        rows = x.shape[0]
        if rows != y.shape[0]:
            raise ValueError(f"expected as many targets as inputs, got {y.shape[0]} and {rows}")
        if (units is None) == (self.mechanism.unit == "patient"):
            raise ValueError("expected patient ids exactly when the unit is the patient")
        if units is not None and units.shape != (rows,):
            raise ValueError(f"expected ({rows},) patient ids, got {units.shape}")


def _seed(stream: Stream) -> int:
    return int(stream.words64(1)[0] >> np.uint64(1))


def _pieces(sums: Iterator[Tensor]) -> Iterator[Tensor]:
    """Cut the parameters' sums, in order, into flat pieces that noise is added to in cache."""
    small: list[Tensor] = []
    length = 0
    for total in sums:
        size = total.numel()
        if small and length + size > CHUNK:
            yield torch.cat(small)
            small, length = [], 0
        if size > CHUNK // 2:
            yield from torch.split(total.reshape(-1), CHUNK)
        else:
            small.append(total.reshape(-1))
            length += size
    if small:
        yield torch.cat(small)
