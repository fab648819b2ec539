"""Per-sample gradients of whatever network Opacus knows: for layers that have no rule of their own.

It is the only file that imports Opacus, and only when such a network is met, since the import takes
seconds. Every gradient of a physical batch is held, which costs several times a plain step.
"""

import copy
import warnings
from collections import Counter
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from privacy.bookkeeping import Layer, Objective, owner_groups
from privacy.errors import PrivacyError
from privacy.layer import HeldRule
from privacy.separation import refuse_layer


class HookedCopy:
    """A private copy of a network under Opacus' hooks, reading the original's weights in place."""

    def __init__(self, model: nn.Module) -> None:
        """Copy and hook ``model``.

        Raises:
            PrivacyError: Opacus' validators refuse a layer, or it has no per-sample gradient.
        """
        _validate(model)
        self._model = model
        place = {id(p): index for index, p in enumerate(model.parameters())}
        self.layers = [
            Layer(
                tuple(sorted({place[id(p)] for m in group for p in m.parameters(recurse=False)})),
                HeldRule(),
            )
            for group in owner_groups(model)
        ]
        self._hooks: _Hooks | None = _Hooks(model)

    def run(self, x: Tensor, objective: Objective) -> list[Layer]:
        """Run forward and backward; as ``GradientCopy.run``."""
        hooks, self._hooks = self._hooks or _Hooks(self._model), None
        gradients = hooks.gradients(self._model, x, objective)
        self._hooks = hooks  # not reached by an error, whose half-used hooks are thrown away
        present = [
            [position for position in layer.positions if gradients[position] is not None]
            for layer in self.layers
        ]
        return [
            Layer(tuple(positions), HeldRule([cast(Tensor, gradients[p]) for p in positions]))
            for positions in present
            if positions
        ]


class _Hooks:
    """The hooked copy of one network."""

    def __init__(self, model: nn.Module) -> None:
        from opacus.grad_sample import GradSampleModule

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

    def gradients(self, model: nn.Module, x: Tensor, objective: Objective) -> list[Tensor | None]:
        """Return per parameter the (B, ...) gradients, or None where no output depends on it."""
        for mine, theirs in zip(self._parameters, model.parameters(), strict=True):
            mine.data = theirs.data  # a view: nothing is copied, and nothing here writes to it
        for name, buffer in model.named_buffers():
            self._buffers[name].copy_(buffer)
        value = objective(self._hooked(x))
        with warnings.catch_warnings():  # the first layer's input needs no gradient, rightly
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            value.backward()  # type: ignore[no-untyped-call]
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


def _validate(model: nn.Module) -> None:
    """Raise PrivacyError naming the first layer that Opacus refuses, or means something else by."""
    from opacus.validators import ModuleValidator

    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    for name, module in model.named_modules():
        reason = ""
        if isinstance(module, nn.RNNBase):
            reason = _recurrent_refusal(module)
        elif check := ModuleValidator.VALIDATORS.get(type(module)):
            reason = str(errors[0]) if (errors := check(module)) else ""
        elif getattr(module, "padding_mode", "zeros") != "zeros":
            reason = "its padding is taken for zeros where another layer has no rule of its own"
        elif isinstance(module, nn.Embedding) and module.padding_idx is not None:
            reason = "padding_idx on tied weights" if owners[id(module.weight)] > 1 else ""
        refuse_layer(name, module, reason)


def _recurrent_refusal(layer: nn.RNNBase) -> str:
    """Return why a recurrent layer is refused, or an empty text."""
    if type(layer) not in (nn.RNN, nn.LSTM, nn.GRU):
        return "a recurrent layer of its own kind has no per-sample gradients"
    if layer.dropout or layer.proj_size:
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
