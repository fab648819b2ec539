"""The private step: the noisy mean gradient of one Poisson batch, clipped unit by unit.

It does not draw the batch, debit the ledger or move the weights: the caller does, in that order.
Opacus gives the per-sample gradients and refuses layers that mix records; clipping, the sum over a
patient's rows, the noise and the denominator are here. It is the only file that imports Opacus, and
only when the first step is built, since the import takes seconds.
"""

import contextlib
import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import PackedSequence

from privacy.errors import PrivacyError
from privacy.noise import gaussian
from privacy.sampling import IntArray
from privacy.stream import Stream

Loss = Callable[[Tensor, Tensor], Tensor]

# Norms are float32 sums: clipping aims this much below the bound, so that true norms obey it.
_ROUNDING = 2.0**-19
# Bytes of per-sample gradients held at once when the caller names no physical batch.
_GRADIENT_BYTES = 1 << 28
# Values of an exact sum that are held in 64 bits at once.
_EXACT_VALUES = 1 << 18


@dataclass(frozen=True)
class Mechanism:
    """The sampled Gaussian mechanism that a study fixes for its private steps, in public.

    Attributes:
        clipping_norm: largest L2 norm C of one unit's gradient; > 0, may be infinite without noise.
        noise_multiplier: sigma; the sum carries noise of standard deviation sigma C.
        sampling_rate: probability q that a unit is in a batch; for the accountant and the sampler.
        expected_batch: what every sum is divided by, whatever the batch; > 0.
        unit: what is protected, and so what is clipped: a record, or all rows of a patient.
    """

    clipping_norm: float
    noise_multiplier: float
    sampling_rate: float
    expected_batch: float
    unit: Literal["record", "patient"] = "record"

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

    @property
    def deviation(self) -> float:
        """The standard deviation of the noise on the clipped sum: sigma C."""
        return self.noise_multiplier * self.clipping_norm if self.noise_multiplier else 0.0


class PrivateStep:
    """Noisy mean gradients of one plain network, at whatever weights it holds when asked.

    Built once a network and kept (validation and hooks cost milliseconds); the caller's network is
    neither hooked nor changed, and nn.LSTM, nn.GRU and nn.RNN keep their own parameter layout.

    Formal guarantee: with a batch Poisson-sampled at the mechanism's rate, one ``gradient`` is the
    Poisson-sampled Gaussian mechanism of sensitivity C and noise sigma C under adding or removing
    one unit (Abadi et al. 2016, arXiv:1607.00133, Algorithm 1), in real numbers.

    Edge cases:
        empty batch: the network is not called; the result is noise / expected_batch.
        norm 0: the unit adds nothing. Norm below C: added unscaled.
        NaN or infinite gradient, or one whose float32 norm overflows: the whole unit counts as
            zero, in silence, since a refusal would tell that the record is there.
        clipping norm inf and noise multiplier 0: the plain gradient sum / expected_batch.
        a parameter that no output depends on: gradient 0, but noise.

    Limits, stated: sums are float32 within a physical batch and float64 across, and noise is
    floating-point (``privacy.noise``), so the guarantee is not proof against precision attacks.
    That a custom layer or loss keeps records apart is its author's duty: only the number of losses
    and of per-sample gradients is checked. nn.Dropout draws from the step's key, on the CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        mechanism: Mechanism,
        *,
        max_physical_batch: int | None = None,
    ) -> None:
        """Check ``model`` and hook a private copy of it.

        Args:
            model: a plain network that takes (B, ...) and whose parameters all require gradients.
            loss: (outputs, targets) -> (B,) losses, one a row, not averaged.
            mechanism: what to clip to, and how much noise.
            max_physical_batch: rows that go through the network at once; without it as many as
                keep the per-sample gradients within 256 MiB. Changes memory, not the result.

        Raises:
            ValueError: no parameters, a frozen one, or a physical batch below 1.
            PrivacyError: a layer mixes records or has no per-sample gradient; it is named.
        """
        self._model = model
        self._loss = loss
        self.mechanism = mechanism
        self._parameters = list(model.parameters())
        self.size = sum(p.numel() for p in self._parameters)
        if not self._parameters or not all(p.requires_grad for p in self._parameters):
            raise ValueError("expected parameters that all require gradients")
        if max_physical_batch is not None and max_physical_batch < 1:
            raise ValueError(f"expected a physical batch >= 1, got {max_physical_batch}")
        self._rows = max_physical_batch or max(1, _GRADIENT_BYTES // (4 * self.size))
        self._copy: _HookedCopy | None = _HookedCopy(model)

    def gradient(self, x: Tensor, y: Tensor, units: IntArray | None, noise_key: bytes) -> Tensor:
        """Return the noisy mean gradient of one batch at the network's present weights.

        Args:
            x: (B, ...) inputs of the sampled rows; B may be 0.
            y: (B, ...) targets.
            units: (B,) patient of each row where the unit is the patient (all sampled rows of a
                patient in one call), else None.
            noise_key: 32 bytes, for this step only: two steps under one key share their noise,
                which their difference then lacks.

        Returns:
            (P,) noisy sum / expected_batch in the order of ``model.parameters()``, in their dtype.

        Raises:
            ValueError: x, y, units or the losses do not match.
            PrivacyError: a layer regroups the rows, so that they have no gradients of their own.
        """
        stream = Stream(noise_key)
        total = self.clipped_sum(x, y, units, stream)
        noise = torch.from_numpy(gaussian(self.size, stream)).to(total.device)
        # N(0, (sigma C)^2 I) once a step, and the public denominator, never len(x).
        mean = total.add_(noise, alpha=self.mechanism.deviation) / self.mechanism.expected_batch
        return mean.to(self._parameters[0].dtype)

    def clipped_sum(self, x: Tensor, y: Tensor, units: IntArray | None, stream: Stream) -> Tensor:
        """Return (P,) float64, the sum of clipped unit gradients: not private until noise is added.

        Reads 8 bytes of ``stream``, the seed of dropout. Arguments and errors as ``gradient``.
        """
        total = torch.zeros(self.size, dtype=torch.float64, device=self._parameters[0].device)
        self._sum_into(total, x, y, units, stream, 1.0)
        return total

    def fixed_point_sum(
        self, x: Tensor, y: Tensor, units: IntArray | None, stream: Stream, grid: float
    ) -> IntArray:
        """Return (P,) int64, the exact sum of clipped unit gradients in units of 1 / ``grid``.

        Each unit's clipped gradient is rounded toward zero to the grid, so that its norm does not
        grow, and then added without error: with and without a unit, the sums differ by exactly
        what that unit adds. For the ring, where each site adds its share of integer noise. Other
        arguments, what is read of ``stream`` and errors as ``clipped_sum``.
        """
        total = torch.zeros(self.size, dtype=torch.int64, device=self._parameters[0].device)
        self._sum_into(total, x, y, units, stream, grid)
        return total.cpu().numpy()

    def _sum_into(
        self,
        total: Tensor,
        x: Tensor,
        y: Tensor,
        units: IntArray | None,
        stream: Stream,
        factor: float,
    ) -> None:
        """Add the clipped unit gradients times ``factor`` to a (P,) total, floating or exact."""
        units = self._checked(x, y, units)
        seed = int(stream.words64(1)[0] >> np.uint64(1))
        if len(x) == 0:
            return
        if units is not None:
            order = np.argsort(units, kind="stable")  # a patient's rows side by side
            units, rows = units[order], torch.from_numpy(order).to(x.device)
            x, y = x[rows], y[rows]
        segments = torch.split(total, [p.numel() for p in self._parameters])  # views
        with _dropout_seed(seed):
            for gradients in self._unit_gradients(x, y, units):
                _add_clipped(segments, gradients, self.mechanism.clipping_norm, factor)

    def _checked(self, x: Tensor, y: Tensor, units: IntArray | None) -> IntArray | None:
        """Return ``units`` when x, y and units fit each other and the mechanism."""
        if len(x) != len(y):
            raise ValueError(f"expected as many targets as inputs, got {len(y)} and {len(x)}")
        if (units is None) == (self.mechanism.unit == "patient"):
            raise ValueError("expected patient ids exactly when the unit is the patient")
        if units is not None and units.shape != (len(x),):
            raise ValueError(f"expected ({len(x)},) patient ids, got {units.shape}")
        return units

    def _unit_gradients(
        self, x: Tensor, y: Tensor, units: IntArray | None
    ) -> Iterator[list[Tensor | None]]:
        """Yield for each physical batch, per parameter, the (U, ...) gradients of whole units."""
        carried: list[Tensor | None] | None = None  # of a patient with rows in the next batch too
        for start in range(0, len(x), self._rows):
            stop = min(start + self._rows, len(x))
            gradients = self._row_gradients(x[start:stop], y[start:stop])
            if units is None:
                yield gradients
                continue
            _, index = np.unique(units[start:stop], return_inverse=True)
            sums = _sum_rows(gradients, index, carried)
            carried = None
            if stop < len(x) and units[stop] == units[stop - 1]:
                carried = [s if s is None else s[-1] for s in sums]
                sums = [s if s is None else s[:-1] for s in sums]
            yield sums

    def _row_gradients(self, x: Tensor, y: Tensor) -> list[Tensor | None]:
        """Return per parameter the (B, ...) gradient of each row, or None where it is unused."""
        private, self._copy = self._copy or _HookedCopy(self._model), None
        gradients = private.row_gradients(self._model, self._loss, x, y)
        self._copy = private  # not reached by an error, whose half-used hooks are thrown away
        return gradients


class _HookedCopy:
    """A private copy of a network under Opacus' hooks, reading the original's weights in place."""

    def __init__(self, model: nn.Module) -> None:
        from opacus.grad_sample import GradSampleModule

        _refuse_mixing_layers(model)
        private = _swap_recurrent(copy.deepcopy(model)).train()
        for module in private.modules():
            if hasattr(module, "inplace"):  # hooks cannot follow a value that is overwritten
                setattr(module, "inplace", False)  # noqa: B010
        try:
            self._hooked = GradSampleModule(private, loss_reduction="sum", strict=True)
        except NotImplementedError as error:
            raise PrivacyError(
                "expected layers whose records stay apart, got a trained layer that also has "
                "buffers; nothing was trained"
            ) from error
        named = dict(private.named_parameters())
        self._parameters = [named[name] for name, _ in model.named_parameters()]
        self._buffers = dict(private.named_buffers())
        self._padding = {
            module.weight: module.padding_idx
            for module in private.modules()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None
        }

    def row_gradients(
        self, model: nn.Module, loss: Loss, x: Tensor, y: Tensor
    ) -> list[Tensor | None]:
        """Return per-row gradients of ``loss`` at the weights and buffers ``model`` holds now."""
        for mine, theirs in zip(self._parameters, model.parameters(), strict=True):
            mine.data = theirs.data  # a view: nothing is copied, and nothing here writes to it
        for name, buffer in model.named_buffers():
            self._buffers[name].copy_(buffer)
        losses = loss(self._hooked(x), y)
        if losses.shape != (len(x),):
            raise ValueError(f"expected ({len(x)},) losses, one a row, got {tuple(losses.shape)}")
        with warnings.catch_warnings():  # the first layer's input needs no gradient, rightly
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            losses.sum().backward()  # type: ignore[no-untyped-call]
        return [self._take(parameter, len(x)) for parameter in self._parameters]

    def _take(self, parameter: nn.Parameter, rows: int) -> Tensor | None:
        """Return and forget the (rows, ...) gradients that the hooks left on ``parameter``."""
        gradient = cast(Tensor | None, getattr(parameter, "grad_sample", None))
        summed = parameter.grad
        parameter.grad = None
        parameter.grad_sample = None  # type: ignore[attr-defined]
        if gradient is None and summed is None:
            return None
        if gradient is None or len(gradient) != rows:
            raise PrivacyError(
                f"expected a gradient for each of {rows} rows, got "
                f"{'none' if gradient is None else len(gradient)}: a layer regroups the rows or "
                "reads another layer's weights; nothing was released"
            )
        if parameter in self._padding:
            gradient[:, self._padding[parameter]] = 0  # as in torch; Opacus trains this row
        return gradient


def _refuse_mixing_layers(model: nn.Module) -> None:
    """Raise PrivacyError naming the first layer whose records cannot be told apart."""
    from opacus.validators import ModuleValidator

    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    for name, module in model.named_modules():
        reason = _refusal(module)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            reason = reason or (
                "padding_idx on tied weights" if owners[id(module.weight)] > 1 else ""
            )
        if not reason and type(module) not in (nn.LSTM, nn.GRU):  # swapped before Opacus sees them
            check = ModuleValidator.VALIDATORS.get(type(module))
            reason = str(errors[0]) if check and (errors := check(module)) else ""
        if reason:
            raise PrivacyError(
                f"expected layers that keep records apart, got {type(module).__name__} "
                f"'{name or 'model'}' ({reason}); nothing was trained",
                hint="use GroupNorm or LayerNorm for norms, and nn.Dropout between layers",
            )


def _refusal(module: nn.Module) -> str:
    """Return why a layer is refused beyond what Opacus' validators know, or an empty text."""
    if isinstance(module, _BatchNorm):
        return "it mixes the records of a batch"  # Opacus knows the exact classes alone
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and (
        module.max_norm is not None or module.scale_grad_by_freq or module.sparse
    ):
        return "max_norm, scale_grad_by_freq and sparse depend on the batch's ids"
    if isinstance(module, nn.RNNBase):
        if type(module) not in (nn.RNN, nn.LSTM, nn.GRU):
            return "a recurrent layer of its own kind has no per-sample gradients"
        if module.dropout or module.proj_size:
            return "dropout and projections inside a recurrent layer have no private counterpart"
    return ""


def _swap_recurrent(model: nn.Module) -> nn.Module:
    """Return ``model`` with Opacus' layer, of the same parameter names, for each recurrent one."""
    swapped = {m: _recurrent(m) for m in model.modules() if isinstance(m, nn.RNNBase)}
    for module in list(model.modules()):
        for name, child in module._modules.items():  # a layer may hang in several places
            if isinstance(child, nn.RNNBase):
                module._modules[name] = swapped[child]
    return swapped[model] if isinstance(model, nn.RNNBase) else model


def _recurrent(layer: nn.RNNBase) -> nn.Module:
    """Return Opacus' layer of the same shape; its weights are bound later, at each call."""
    from opacus.layers import DPGRU, DPLSTM, DPRNN

    kinds = {nn.RNN: DPRNN, nn.GRU: DPGRU, nn.LSTM: DPLSTM}
    options = {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}
    swapped: nn.Module = kinds[type(layer)](
        layer.input_size,
        layer.hidden_size,
        num_layers=layer.num_layers,
        bias=layer.bias,
        batch_first=layer.batch_first,
        bidirectional=layer.bidirectional,
        **options,
    )
    swapped.register_forward_pre_hook(_refuse_unsorted)
    return swapped


def _refuse_unsorted(layer: nn.Module, inputs: tuple[object, ...]) -> None:
    """Refuse packed sequences in another order than the rows: gradients would change owner."""
    packed = inputs[0]
    if isinstance(packed, PackedSequence) and packed.sorted_indices is not None:
        order = packed.sorted_indices
        if not torch.equal(order, torch.arange(len(order), device=order.device)):
            raise PrivacyError(
                f"expected rows in the order of their lengths, got another before "
                f"{type(layer).__name__}; nothing was released",
                hint="pad the sequences and mask them instead of packing",
            )


def _sum_rows(
    gradients: Sequence[Tensor | None], index: IntArray, carried: Sequence[Tensor | None] | None
) -> list[Tensor | None]:
    """Add the rows of each unit: (B, ...) -> (U, ...); ``carried`` belongs to the first unit."""
    rows = torch.from_numpy(index)
    sums: list[Tensor | None] = []
    for position, gradient in enumerate(gradients):
        if gradient is None:
            sums.append(None)
            continue
        summed = gradient.new_zeros((int(index.max()) + 1, *gradient.shape[1:]))
        summed.index_add_(0, rows.to(gradient.device), gradient)
        before = carried[position] if carried is not None else None
        if before is not None:
            summed[0] += before
        sums.append(summed)
    return sums


def _add_clipped(
    segments: Sequence[Tensor], gradients: Sequence[Tensor | None], bound: float, factor: float
) -> None:
    """Add each unit's gradient, scaled to an L2 norm of at most ``bound``, to the (P,) total.

    ``segments`` are the (p,) views of the total that belong to the parameters: float64, or int64
    that take ``factor`` times the gradients, rounded toward zero.
    """
    flat = [(s, g.flatten(1)) for s, g in zip(segments, gradients, strict=True) if g is not None]
    if not flat:
        return
    parts = [torch.linalg.vector_norm(gradient, dim=1) for _, gradient in flat]
    norm = torch.linalg.vector_norm(torch.stack(parts), dim=0)  # (U,)
    finite = torch.isfinite(norm)
    scale = (bound * (1 - _ROUNDING) / norm).clamp(max=1)  # norm 0 gives inf, and so 1
    if not bool(finite.all()):  # 0 x NaN is NaN: such units are taken out, not multiplied away
        scale, flat = scale[finite], [(segment, gradient[finite]) for segment, gradient in flat]
    if segments[0].dtype == torch.float64:
        for segment, gradient in flat:
            segment.add_(scale @ gradient)  # (U,) x (U, p) -> (p,)
        return
    steps = scale.double() * factor  # exact but for 2^-53, which the margin of the bound covers
    for segment, gradient in flat:
        units = max(1, _EXACT_VALUES // gradient.shape[1])
        pairs = zip(torch.split(steps, units), torch.split(gradient, units), strict=True)
        for step, part in pairs:
            fixed = (part.double() * step[:, None]).trunc_().to(torch.int64)  # (u, p)
            segment.add_(fixed.sum(dim=0))


@contextlib.contextmanager
def _dropout_seed(seed: int) -> Iterator[None]:
    """Start torch's CPU generator, which nn.Dropout reads, at ``seed``; put it back afterwards."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
