"""Refuse networks and losses that mix the records of a batch: no clipping could bound one of them.

Known layers are refused by name. Whatever else a network or a loss does is tried on a few rows: the
gradient of the first row's loss must not reach another row, in any layer.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from privacy.bookkeeping import GradientCopy, clear
from privacy.errors import PrivacyError

Loss = Callable[[Tensor, Tensor], Tensor]

# Two sizes, so that an axis that happens to be as long as the batch is not taken for it.
_SIZES = (2, 3)
# Values are kept from overflow, where zero times infinity would say nothing.
_LARGEST = 1e3


def refuse_mixing_layers(model: nn.Module) -> None:
    """Raise PrivacyError naming the first layer that is known to mix records."""
    for name, module in model.named_modules():
        refuse_layer(name, module, _refusal(module))


def refuse_layer(name: str, module: nn.Module, reason: str) -> None:
    """Raise PrivacyError naming ``module`` if there is a reason."""
    if reason:
        raise PrivacyError(
            f"expected layers that keep records apart, got {type(module).__name__} "
            f"'{name or 'model'}' ({reason}); nothing was trained",
            hint="use GroupNorm or LayerNorm for norms, and nn.Dropout between layers",
        )


def expect_separate(gradients: GradientCopy, loss: Loss, x: Tensor, y: Tensor) -> int:
    """Raise PrivacyError if a record's loss depends on another record.

    Args:
        gradients: the private copy; what it says of layers is what is checked.
        loss: (outputs, targets) -> (B,) losses.
        x: (B, ...) inputs, B > 0: their first rows are tried, tamed to finite values.
        y: (B, ...) targets.

    Returns:
        How many bytes autograd keeps for each row between forward and backward.

    Raises:
        ValueError: the losses are not one a row.
    """
    saved = [_first_alone(gradients, loss, x, y, size) for size in _SIZES]
    return max(0, saved[1] - saved[0]) // (_SIZES[1] - _SIZES[0])  # weights are in both


def _first_alone(gradients: GradientCopy, loss: Loss, x: Tensor, y: Tensor, size: int) -> int:
    """Check that only the first of ``size`` rows has a gradient of its loss; return bytes saved."""
    rows = torch.arange(size, device=x.device) % len(x)
    targets = _tame(y[rows])
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with contextlib.ExitStack() as forward:
        hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
        forward.enter_context(hooks)

        def first(outputs: Tensor) -> Tensor:
            forward.close()
            return row_losses(loss, outputs, targets)[0]

        layers = gradients.run(_tame(x[rows]), first)
    others = [layer.rule.norms_squared()[1:] for layer in layers]
    clear(layers)
    if any(bool((squares > 0).any()) for squares in others):  # NaN says nothing
        raise PrivacyError(
            "expected a loss of each record by itself, got one that depends on other records of "
            "the batch; nothing was released",
            hint="a layer or the loss mixes records, and no clipping bounds one record's influence",
        )
    return sum(storages.values())


def row_losses(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the (B,) losses; raises ValueError unless there is one a row."""
    losses = loss(outputs, targets)
    rows = targets.shape[0]
    if losses.shape != (rows,):
        raise ValueError(f"expected ({rows},) losses, one a row, got {tuple(losses.shape)}")
    return losses


def _tame(values: Tensor) -> Tensor:
    if not values.is_floating_point():
        return values
    return values.nan_to_num(0.0, 0.0, 0.0).clamp(-_LARGEST, _LARGEST)


def _refusal(module: nn.Module) -> str:
    """Return why a layer is refused, or an empty text."""
    if isinstance(module, _BatchNorm):
        return "it mixes the records of a batch"
    if isinstance(module, _InstanceNorm) and module.track_running_stats:
        return "running statistics mix the records of a batch"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and (
        module.max_norm is not None or module.scale_grad_by_freq or module.sparse
    ):
        return "max_norm, scale_grad_by_freq and sparse depend on the batch's ids"
    if isinstance(module, nn.MultiheadAttention):
        return "its weights are read by no layer of their own; build attention of Linear layers"
    return ""
