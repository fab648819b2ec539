"""Refuse networks and losses that mix the records of a batch: no clipping could bound one of them.

Known layers are refused by name. Whatever else a network or a loss does is tried on a few rows: the
gradient of the first row's loss must not reach another row in any layer, and neither it nor the
loss may change with the other rows.
"""

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from privacy.bookkeeping import GradientCopy, clear
from privacy.dropout import dropout_seed
from privacy.errors import PrivacyError

Loss = Callable[[Tensor, Tensor], Tensor]

# Values are kept from overflow, where zero times infinity would say nothing.
_LARGEST = 1e3
# Of a norm: another company may change the order of float32 sums, of packed sequences for one.
_SAME = 1e-4


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
        x: (B, ...) inputs, B > 0; a few rows are tried.
        y: (B, ...) targets.

    Returns:
        How many bytes autograd keeps for each row between forward and backward.

    Raises:
        ValueError: the losses are not one a row.
    """
    # Two sizes, so that an axis that happens to be as long as the batch is not taken for it.
    two, three = (_company(x, y, size, other=False) for size in (2, 3))
    _, _, fewer = _first_alone(gradients, loss, *two)
    value, norm, more = _first_alone(gradients, loss, *three)
    changed, moved, _ = _first_alone(gradients, loss, *_company(x, y, 3, other=True))
    for one, other in ((value, changed), (norm, moved)):
        if abs(one - other) > _SAME * abs(one):  # NaN says nothing
            raise _mixture()
    return max(0, more - fewer)  # weights are in both


def _first_alone(
    gradients: GradientCopy, loss: Loss, x: Tensor, y: Tensor
) -> tuple[float, float, int]:
    """Check that only the first row has a gradient of its loss.

    Returns:
        The first row's loss, its gradient's norm, and how many bytes autograd kept.
    """
    storages: dict[int, int] = {}
    found: list[float] = []

    def count(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with dropout_seed(0, x.device), contextlib.ExitStack() as forward:
        hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
        forward.enter_context(hooks)

        def first(outputs: Tensor) -> Tensor:
            forward.close()
            own = row_losses(loss, outputs, y)[0]
            found.append(float(own.detach()))
            return own

        layers = gradients.run(x, first)
    squares = [layer.rule.norms_squared().double() for layer in layers]
    clear(layers)
    if any(bool((each[1:] > 0).any()) for each in squares):  # NaN says nothing
        raise _mixture()
    return found[0], math.sqrt(sum(float(each[0]) for each in squares)), sum(storages.values())


def _company(x: Tensor, y: Tensor, size: int, *, other: bool) -> tuple[Tensor, Tensor]:
    """Return the first ``size`` rows, over and over if there are fewer, tamed to finite values.

    Numbers of all rows but the first are made smaller, so that no two rows are equal; in ``other``
    company by more, and ids and classes are those of the batch's last rows.
    """
    rows = torch.arange(size, device=x.device) % x.shape[0]
    ends = torch.cat([rows[:1], x.shape[0] - 1 - rows[1:]])
    found = []
    for values in (x, y):
        if values.is_floating_point():
            tame = values[rows].nan_to_num(0.0, 0.0, 0.0).clamp(-_LARGEST, _LARGEST)
            shares = torch.arange(size, device=x.device).mul(-2.0 if other else -0.25).exp2()
            found.append(tame * shares.to(tame.dtype).view(-1, *[1] * (tame.dim() - 1)))
        else:
            found.append(values[ends if other else rows])
    return found[0], found[1]


def _mixture() -> PrivacyError:
    return PrivacyError(
        "expected a loss of each record by itself, got one that depends on other records of the "
        "batch; nothing was released",
        hint="a layer or the loss mixes records, and no clipping bounds one record's influence",
    )


def row_losses(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the (B,) losses; raises ValueError unless there is one a row."""
    losses = loss(outputs, targets)
    rows = targets.shape[0]
    if losses.shape != (rows,):
        raise ValueError(f"expected ({rows},) losses, one a row, got {tuple(losses.shape)}")
    return losses


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
